//! The steps of a job with their keys: secrets from where secrets are, public keys from files.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use knarr_engine::Steps;
use knarr_steps::{Keys, Secret, StepSpec};

use crate::cli::context::Context;
use crate::command_error::CommandError;
use crate::config::{Config, SecretSource};
use crate::secrets::Secrets;

/// The largest file of public keys: a whole team's fit many times.
const KEY_FILE_BYTES: u64 = 4 << 20;

/// The steps, ready to be used.
///
/// # Errors
/// If a secret or a file that they name cannot be had.
pub(crate) async fn ready(
    specs: Vec<StepSpec>,
    files: &BTreeMap<String, PathBuf>,
    secrets: &Secrets<'_>,
    context: &Context,
    config: &Config,
) -> Result<Steps, CommandError> {
    if specs.is_empty() {
        return Ok(Steps::default());
    }
    let mut keys = Keys::new();
    for references in specs.iter().map(StepSpec::references) {
        for name in references.secrets {
            let text = secrets.get(&SecretSource::Secret(name.clone())).await?;
            keys = keys.with_secret(name, Secret::new(text.as_bytes().to_vec()));
        }
        for written in references.files {
            let path = files
                .get(&written)
                .map_or(Path::new(&written), PathBuf::as_path);
            let content = key_file(path)?;
            keys = keys.with_file(written, content);
        }
    }
    let spool = context.state_of(config)?.join("spool");
    Ok(Steps::new(specs, keys, spool))
}

fn key_file(path: &Path) -> Result<Vec<u8>, CommandError> {
    let unreadable = |error: std::io::Error| {
        let message = format!("cannot read the public keys in {}: {error}", path.display());
        CommandError::usage(message)
            .hint("paths of key files are relative to the configuration file")
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut content = Vec::new();
    file.take(KEY_FILE_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(unreadable)?;
    if content.len() as u64 > KEY_FILE_BYTES {
        let message = format!("{} is too large for a file of public keys", path.display());
        return Err(CommandError::usage(message));
    }
    Ok(content)
}
