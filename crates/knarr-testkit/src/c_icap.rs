//! c-icap, an ICAP server: with its echo service, which gives everything back, and its content filter, which
//! refuses what has [`VIRUS`] in it.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::TestkitError;
use crate::error::must;
use crate::port::ReservedPort;
use crate::process::ServerProcess;
use crate::tools;

/// What the service `filter` refuses.
pub const VIRUS: &str = "KNARR-TEST-VIRUS";

/// Where Debian's packages put the services.
const SERVICES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/c_icap",
    "/usr/lib/aarch64-linux-gnu/c_icap",
    "/usr/lib/c_icap",
];

/// A running server with the services `echo` and `filter`.
#[derive(Debug)]
pub struct CIcap {
    // Before the directory: it is dropped first, and prints its log if the test has failed.
    process: Option<ServerProcess>,
    port: ReservedPort,
    directory: TempDir,
}

impl CIcap {
    /// Starts one.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not start.
    #[must_use]
    #[track_caller]
    pub fn start() -> Self {
        must(Self::try_start())
    }

    fn try_start() -> Result<Self, TestkitError> {
        let directory = tempfile::Builder::new().prefix("knarr-icap-").tempdir();
        let directory = directory.map_err(TestkitError::file(
            "making a directory in",
            &std::env::temp_dir(),
        ))?;
        let mut server = Self {
            process: None,
            port: ReservedPort::new()?,
            directory,
        };
        server.launch()?;
        Ok(server)
    }

    /// The URL of a service.
    #[must_use]
    pub fn url(&self, service: &str) -> String {
        format!("icap://127.0.0.1:{}/{service}", self.port.number())
    }

    /// Ends it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it again, on the same port.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        must(self.launch());
    }

    /// Which requests it answered.
    #[must_use]
    pub fn access_log(&self) -> String {
        let log = fs::read(self.directory.path().join("access.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn launch(&mut self) -> Result<(), TestkitError> {
        let program = tools::find(
            "c-icap",
            "the Debian packages c-icap and libc-icap-mod-contentfiltering",
        )?;
        let mut services = SERVICES.iter().filter(|path| {
            let module = Path::new(path).join("srv_content_filtering.so");
            module.exists()
        });
        let missing = || TestkitError::MissingProgram {
            program: "srv_content_filtering.so".to_owned(),
            package: "the Debian package libc-icap-mod-contentfiltering",
        };
        let services = services.next().ok_or_else(missing)?;
        let directory = self.directory.path().display();
        let port = self.port.number();
        let text = format!(
            "PidFile {directory}/pid\nCommandsSocket {directory}/ctl\nTimeout 30\nStartServers 1\nMaxServers 2\n\
             MinSpareThreads 2\nMaxSpareThreads 8\nThreadsPerChild 8\nPort 127.0.0.1:{port}\nTmpDir {directory}\n\
             DebugLevel 1\nModulesDir {services}\nServicesDir {services}\n\
             TemplateDir /usr/share/c_icap/templates/\nTemplateDefaultLanguage en\n\
             LoadMagicFile /etc/c-icap/c-icap.magic\nServerLog {directory}/server.log\n\
             AccessLog {directory}/access.log\nService echo srv_echo.so\nService filter srv_content_filtering.so\n\
             acl everybody src 0.0.0.0/0.0.0.0\nsrv_content_filtering.MaxBodyData 20M\n\
             srv_content_filtering.Match Virus body /{VIRUS}/ score=10\n\
             srv_content_filtering.Profile scan block score{{Virus>5}}\n\
             srv_content_filtering.ProfileOption scan AnyContentType\n\
             srv_content_filtering.ProfileAccess scan everybody\n"
        );
        let configuration = self.directory.path().join("c-icap.conf");
        fs::write(&configuration, text).map_err(TestkitError::file("writing", &configuration))?;
        let mut command = Command::new(program);
        command.arg("-f").arg(&configuration).args(["-N", "-D"]);
        let log = self.directory.path().join("log");
        let mut process = ServerProcess::spawn("c-icap", command, &log)?;
        let address = self.port.address();
        process.wait_ready(|_| TcpStream::connect(address).is_ok())?;
        self.process = Some(process);
        Ok(())
    }
}
