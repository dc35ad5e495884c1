//! Finds the configuration file and refuses one that others may write to.

use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::{self, Bases, Config, ConfigProblems};
use crate::environment::Environment;

/// The longest configuration file that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 4 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    /// The named file is not there.
    #[error("the configuration file {} does not exist", .0.display())]
    NotFound(PathBuf),
    /// None of the usual files is there, and the command needs one.
    #[error("there is no configuration: none of {0} exists")]
    NoneOf(String),
    /// It cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Anybody may write to it, and it names what is copied where.
    #[error("the configuration file {} is writable by everybody (mode {mode:04o})", path.display())]
    WorldWritable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is longer than [`MAX_BYTES`].
    #[error("the configuration file {} is longer than {MAX_BYTES} bytes", .0.display())]
    TooLong(PathBuf),
    /// It is not UTF-8.
    #[error("the configuration file {} is not UTF-8", .0.display())]
    NotText(PathBuf),
    /// It is wrong.
    #[error(transparent)]
    Wrong(#[from] Box<ConfigProblems>),
}

/// Loads `named`, or the first of the usual files that exists, or nothing if none does.
///
/// # Errors
/// A [`FindError`], also if `named` does not exist.
pub(crate) fn load(
    named: Option<&Path>,
    environment: &Environment,
) -> Result<Option<Config>, FindError> {
    if let Some(path) = named {
        return match read(path)? {
            Some(text) => parse(path, &text, environment).map(Some),
            None => Err(FindError::NotFound(path.to_owned())),
        };
    }
    for path in usual_files(environment) {
        if let Some(text) = read(&path)? {
            return parse(&path, &text, environment).map(Some);
        }
    }
    Ok(None)
}

/// The files that are looked for, in order.
pub(crate) fn usual_files(environment: &Environment) -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("knarr.yaml")];
    if let Some(directory) = environment.config_home() {
        files.push(directory.join("knarr/knarr.yaml"));
    }
    files.push(PathBuf::from("/etc/knarr/knarr.yaml"));
    files
}

/// The error that says that none of the usual files exists.
pub(crate) fn none_found(environment: &Environment) -> FindError {
    let names: Vec<String> = usual_files(environment)
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    FindError::NoneOf(names.join(", "))
}

fn parse(path: &Path, text: &str, environment: &Environment) -> Result<Config, FindError> {
    let absolute = environment.absolute(path);
    let bases = Bases {
        directory: absolute.parent().unwrap_or(Path::new("/")),
        home: environment.home.as_deref(),
    };
    let mut config = config::parse(text, path, bases).map_err(Box::new)?;
    config.file = Some(absolute);
    Ok(config)
}

/// The text of the file, or nothing if it does not exist. What is checked is what is read: the
/// permissions are those of the opened file.
fn read(path: &Path) -> Result<Option<String>, FindError> {
    let error = |source| FindError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    let metadata = file.metadata().map_err(error)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_file() && mode & 0o002 != 0 {
        return Err(FindError::WorldWritable {
            path: path.to_owned(),
            mode,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(error)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(FindError::TooLong(path.to_owned()));
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_error| FindError::NotText(path.to_owned()))
}
