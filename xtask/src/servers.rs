//! Servers to try things with: a private sshd and a local S3 server, with a ready `knarr.yaml`.
//!
//! Constraints: everything lies in one directory with a fixed name, so that a second terminal finds it
//! without copying ports by hand; everything that runs is gone after Ctrl-C.

use std::fs;
use std::path::{Path, PathBuf};

use knarr_testkit::s3::{S3Server as _, S3sFs};
use knarr_testkit::sshd::Sshd;
use tokio::signal::unix::{SignalKind, signal};

use crate::{Outcome, workspace_root};

/// Runs the servers until Ctrl-C or SIGTERM. The sample files go to the directory given as the
/// only argument, `target/try` unless said otherwise.
///
/// # Errors
///
/// If a server does not start or a file cannot be written.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let directory = match arguments {
        [] => workspace_root().join("target/try"),
        [directory] => PathBuf::from(directory),
        _ => return Err("at most one argument: the directory for the sample files".to_owned()),
    };
    let cannot = |error: knarr_testkit::TestkitError| error.chain();
    let sshd = Sshd::builder().try_start().map_err(cannot)?;
    let s3 = S3sFs::try_start().map_err(cannot)?;
    write_samples(&directory, &sshd, &s3)
        .map_err(|error| format!("cannot write to {}: {error}", directory.display()))?;
    describe(&directory, &sshd, &s3);
    wait_for_signal()?;
    eprintln!("stopping");
    fs::remove_dir_all(&directory).ok();
    Ok(())
}

fn write_samples(directory: &Path, sshd: &Sshd, s3: &S3sFs) -> std::io::Result<()> {
    fs::create_dir_all(directory.join("cargo"))?;
    fs::write(directory.join("cargo/manifest.txt"), "barley 12\nwool 3\n")?;
    let environment = format!(
        "export AWS_ACCESS_KEY_ID={}\nexport AWS_SECRET_ACCESS_KEY={}\nexport AWS_REGION={}\n\
         export AWS_ENDPOINT_URL={}\nexport AWS_ALLOW_HTTP=true\n",
        s3.access_key(),
        s3.secret_key(),
        s3.region(),
        s3.endpoint_url()
    );
    fs::write(directory.join("env"), environment)?;
    let configuration = format!(
        "endpoints:\n\
         \x20 partner:\n\
         \x20   type: sftp\n\
         \x20   host: {}\n\
         \x20   port: {}\n\
         \x20   user: {}\n\
         \x20   key: {}\n\
         \x20   host_key: \"{}\"\n\
         \x20   path: {}\n\
         \x20 archive:\n\
         \x20   type: s3\n\
         \x20   bucket: {}\n\
         \x20   endpoint: {}\n\
         \x20   region: {}\n\
         \x20   path_style: true\n",
        sshd.host(),
        sshd.port(),
        sshd.user(),
        sshd.client_key_path().display(),
        sshd.host_key_fingerprint(),
        sshd.data_directory().display(),
        s3.bucket(),
        s3.endpoint_url(),
        s3.region()
    );
    fs::write(directory.join("knarr.yaml"), configuration)
}

fn describe(directory: &Path, sshd: &Sshd, s3: &S3sFs) {
    let directory = directory.display();
    println!("SFTP   {}/", sshd.url(&sshd.data_directory()));
    println!(
        "         private key   {}",
        sshd.client_key_path().display()
    );
    println!("         host key      {}", sshd.host_key_fingerprint());
    println!(
        "         known_hosts   {}",
        sshd.known_hosts_path().display()
    );
    println!("S3     s3://{}/ at {}", s3.bucket(), s3.endpoint_url());
    println!("         access key    {}", s3.access_key());
    println!("         secret key    {}", s3.secret_key());
    println!("         region        {}", s3.region());
    println!(
        "files  {directory}/knarr.yaml (endpoints `partner:` and `archive:`), {directory}/env"
    );
    println!();
    println!("In another terminal:");
    println!("  . {directory}/env");
    println!("  knarr --config {directory}/knarr.yaml copy {directory}/cargo partner:cargo");
    println!("  knarr --config {directory}/knarr.yaml copy partner:cargo archive:cargo");
    println!("  knarr --config {directory}/knarr.yaml ls archive:");
    println!();
    println!("Ctrl-C stops the servers and removes everything.");
}

fn wait_for_signal() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| format!("cannot wait for signals: {error}"))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())
            .map_err(|error| format!("cannot wait for SIGTERM: {error}"))?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            result = tokio::signal::ctrl_c() => {
                result.map_err(|error| format!("cannot wait for Ctrl-C: {error}"))
            }
        }
    })
}
