//! GnuPG with a keyring of its own, as a partner uses it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Parameters of an RSA key, for [`Gpg::generate`].
pub const RSA: &str = "Key-Type: RSA\nKey-Length: 2048\nSubkey-Type: RSA\nSubkey-Length: 2048\n";
/// Parameters of an Ed25519 key with an X25519 subkey.
pub const ED25519: &str =
    "Key-Type: eddsa\nKey-Curve: ed25519\nSubkey-Type: ecdh\nSubkey-Curve: cv25519\n";

/// A GnuPG of its own, with its own keys. Its agent ends with it.
#[derive(Debug)]
pub struct Gpg {
    home: TempDir,
}

impl Default for Gpg {
    fn default() -> Self {
        Self::new()
    }
}

impl Gpg {
    /// Without keys.
    ///
    /// # Panics
    /// If no directory can be made.
    #[must_use]
    pub fn new() -> Self {
        let home = TempDir::new().expect("a directory can be made");
        // Otherwise a passphrase is made as slow as this machine allows.
        std::fs::write(home.path().join("gpg-agent.conf"), "s2k-count 65536\n")
            .expect("a file can be written");
        Self { home }
    }

    /// Its home.
    #[must_use]
    pub fn at(&self) -> &Path {
        self.home.path()
    }

    /// Runs `gpg` with this on its standard input, and gives what it puts out.
    ///
    /// # Errors
    /// What it says, if it ends badly.
    pub fn try_run(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
        let home = self.at().display().to_string();
        let mut all = vec![
            "--homedir",
            &home,
            "--batch",
            "--no-tty",
            "--yes",
            "--quiet",
        ];
        all.extend(["--pinentry-mode", "loopback", "--trust-model", "always"]);
        if !arguments.contains(&"--passphrase") {
            all.extend(["--passphrase", ""]);
        }
        all.extend(arguments);
        run_in(self.at(), "gpg", &all, input)
    }

    /// The same, for what has to succeed.
    ///
    /// # Panics
    /// If it does not.
    pub fn run(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        self.try_run(arguments, input)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Makes a key with these parameters for a name.
    ///
    /// # Panics
    /// If that does not work.
    pub fn generate(&self, kind: &str, name: &str, more: &[&str], protection: &str) {
        let parameters = format!(
            "{kind}Name-Real: {name}\nName-Email: {name}@example.org\n{protection}\n%commit\n"
        );
        let arguments = [more, &["--full-generate-key"]].concat();
        drop(self.run(&arguments, parameters.as_bytes()));
    }

    /// The public key of a name, armored.
    #[must_use]
    pub fn public(&self, name: &str) -> Vec<u8> {
        self.run(&["--armor", "--export", name], b"")
    }

    /// Its private key, armored.
    #[must_use]
    pub fn secret(&self, name: &str) -> Vec<u8> {
        self.run(&["--armor", "--export-secret-keys", name], b"")
    }
}

/// The agent would stay for ever.
impl Drop for Gpg {
    fn drop(&mut self) {
        let home = self.at().display().to_string();
        drop(run_in(
            self.at(),
            "gpgconf",
            &["--homedir", &home, "--kill", "all"],
            b"",
        ));
    }
}

/// Runs a program in a directory with this on its standard input, and returns what it puts out.
///
/// # Errors
/// What it says, if it ends badly.
///
/// # Panics
/// If it is not installed.
pub fn run_in(
    directory: &Path,
    program: &str,
    arguments: &[&str],
    input: &[u8],
) -> Result<Vec<u8>, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{program} cannot be started ({error}): `cargo xtask setup` installs it")
        });
    let mut stdin = child.stdin.take().expect("it is piped");
    let output = std::thread::scope(|scope| {
        // A program that does not read all of it closes the pipe.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().expect("it was started")
    });
    if output.status.success() {
        Ok(output.stdout)
    } else {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!(
            "{program} {arguments:?}: {}: {text}",
            output.status
        ))
    }
}
