//! Garage, a production S3 store, as one private node.
//!
//! Constraints: its data lies in the memory-backed space; a fresh start means fresh directories, because
//! Garage keeps blocks of removed objects for minutes. The port stays the same over starts.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use knarr_testkit::port::ReservedPort;
use knarr_testkit::process::ServerProcess;

use crate::Outcome;
use crate::bench::row;
use crate::bench::s3::{Access, write};
use crate::bench::space::Space;

const BUCKET: &str = "knarr-bench";
// Garage wants GK and 24 hexadecimal digits, and 64 of them.
const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
const SECRET_KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A running Garage; killed on drop.
#[derive(Debug)]
pub(crate) struct Garage {
    process: Option<ServerProcess>,
    program: PathBuf,
    directory: PathBuf,
    s3_port: ReservedPort,
    rpc_port: ReservedPort,
}

impl Garage {
    /// Starts one with an empty bucket.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub(crate) fn start(program: &Path, space: &Space) -> Result<Self, String> {
        let port = || ReservedPort::new().map_err(|error| error.chain());
        let mut garage = Self {
            process: None,
            program: program.to_owned(),
            directory: space.fresh("garage")?,
            s3_port: port()?,
            rpc_port: port()?,
        };
        garage.start_again()?;
        Ok(garage)
    }

    /// Starts it again, with an empty bucket.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub(crate) fn start_again(&mut self) -> Outcome {
        self.process = None;
        row::remove(&self.directory)?;
        fs::create_dir(&self.directory)
            .map_err(|error| format!("cannot make {}: {error}", self.directory.display()))?;
        let configuration = self.directory.join("garage.toml");
        let directory = self.directory.display();
        let (rpc, s3) = (self.rpc_port.address(), self.s3_port.address());
        let text = format!(
            "metadata_dir = \"{directory}/meta\"\ndata_dir = \"{directory}/data\"\n\
             db_engine = \"lmdb\"\nreplication_factor = 1\n\
             rpc_bind_addr = \"{rpc}\"\nrpc_public_addr = \"{rpc}\"\nrpc_secret = \"{SECRET_KEY}\"\n\
             [s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"{s3}\"\nroot_domain = \".s3.local\"\n"
        );
        write(&configuration, &text)?;
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&configuration);
        command.args(["server", "--single-node", "--default-bucket"]);
        command
            .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY)
            .env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY)
            .env("GARAGE_DEFAULT_BUCKET", BUCKET)
            .env("RUST_LOG", "garage=warn");
        let log = self.directory.join("log");
        let mut process = ServerProcess::spawn("garage", command, &log).map_err(|e| e.chain())?;
        process
            .wait_ready(|_| answers(s3))
            .map_err(|error| error.chain())?;
        self.process = Some(process);
        Ok(())
    }

    /// How to reach it.
    pub(crate) fn access(&self) -> Access {
        Access {
            url: format!("http://{}", self.s3_port.address()),
            bucket: BUCKET.to_owned(),
            access_key: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.to_owned(),
            region: "garage".to_owned(),
        }
    }
}

fn answers(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}
