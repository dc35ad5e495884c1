//! The certificates and keys that the configuration names, and until when they are valid.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use knarr_core::Timestamp;
use knarr_engine::announce::Credential;

use crate::config::{Config, EndpointKind};

/// No key or certificate is as long as this, in bytes.
const MOST_BYTES: u64 = 1 << 20;

/// All that can be read of them, by name: the path of the file.
pub(crate) fn read(config: &Config, now: Timestamp) -> Vec<Credential> {
    let mut found = Vec::new();
    for path in files(config) {
        let Some(content) = content_of(&path) else {
            continue;
        };
        let expires = match std::str::from_utf8(&content) {
            Ok(text) if text.contains("-cert-v01@openssh.com ") => {
                knarr_remote::ssh::certificate_expiry(text)
            }
            _ => knarr_steps::openpgp_expiry(&content, now),
        };
        if let Some(expires) = expires {
            let name = path.to_string_lossy().into_owned();
            found.push(Credential { name, expires });
        }
    }
    found
}

/// The files that may hold something that expires.
fn files(config: &Config) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for endpoint in config.endpoints.values() {
        let EndpointKind::Sftp(settings) = &endpoint.kind else {
            continue;
        };
        for key in &settings.keys {
            // As OpenSSH has it: the certificate of `id` lies in `id-cert.pub`.
            let mut certificate = key.clone().into_os_string();
            certificate.push("-cert.pub");
            files.insert(certificate.into());
        }
    }
    for job in config.jobs.values() {
        files.extend(job.key_files.values().cloned());
    }
    files
}

fn content_of(path: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(MOST_BYTES).read_to_end(&mut content).ok()?;
    Some(content)
}
