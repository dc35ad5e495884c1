//! The configuration as it is meant: checked, complete, with absolute paths.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;
use knarr_core::alert::Rule;
use knarr_core::filter::Filter;
use knarr_core::job::{After, Deletes, Priority, Verify};
use knarr_core::location::{Location, ObjectStoreKind};
use knarr_core::matching::Matching;
use knarr_core::parameters::Parameters;
use knarr_core::phrase::{About, Phrase};
use knarr_core::plan::{IfExists, SymlinkPolicy};
use knarr_core::retry::RetryPolicy;
use knarr_core::schedule::Schedule;
use knarr_core::template::Template;
use knarr_engine::announce::BeforeShape;
use knarr_engine::conditions::{Choice, Conditions};
use knarr_engine::outbox::shape::TargetShape;
use knarr_engine::{Duplicates, FileChecks, ManifestSpec, Publish};
use knarr_steps::StepSpec;

use crate::config::network::Origin;
pub use crate::config::shape::{LogFormat, SecretSource, TemporaryFiles};

mod sftp_server;

pub use sftp_server::{ServedMount, ServedUser, SftpServer, UserPassword};

/// A whole configuration.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The file it was read from, if there was one.
    pub file: Option<PathBuf>,
    /// The name of this node, if the file gives it one.
    pub node_name: Option<String>,
    /// The state directory, if the file names one; absolute.
    pub state: Option<PathBuf>,
    /// How long what an interrupted transfer left is kept; nothing for the usual time.
    pub keep_unfinished: Option<Duration>,
    /// Where `knarr run` logs, besides standard error.
    pub log: LogSettings,
    /// Where metrics are served.
    pub metrics: Option<Metrics>,
    /// How long what happened is kept.
    pub retention: Retention,
    /// Who is told, and what is done, by name; with absolute paths.
    pub targets: BTreeMap<String, TargetShape>,
    /// The alert rules, those of jobs too.
    pub rules: Vec<Rule>,
    /// Where the node listens for calls over HTTP, if it does.
    pub http_listen: Option<SocketAddr>,
    /// What the file says of each job and each endpoint, as JSON, by its place (`jobs.invoices`).
    pub(crate) written: BTreeMap<String, String>,
    /// The endpoints by name.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// The jobs by name.
    pub jobs: BTreeMap<String, Job>,
    /// The own SFTP server, if there is one.
    pub sftp_server: Option<SftpServer>,
}

/// A log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The file, if there is to be one; absolute.
    pub file: Option<PathBuf>,
    /// When it is this long, in bytes, a new one is begun.
    pub max_bytes: u64,
    /// How many older files are kept.
    pub keep: u32,
    /// How its lines are written.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            file: None,
            max_bytes: 64 << 20,
            keep: 5,
            format: LogFormat::default(),
        }
    }
}

/// Where metrics are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// The address and port.
    pub listen: SocketAddr,
}

/// How long what happened is kept; nothing is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Runs and custody records.
    pub history: Option<Duration>,
    /// Events that nobody who follows them took.
    pub events: Option<Duration>,
}

/// What is done before a run, and who is told of files and runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// What has to succeed before a run looks at its source. Only the local file may name commands here.
    pub before: Vec<BeforeShape>,
    /// Targets that are told of each file that was delivered.
    pub after_file: Vec<String>,
    /// Targets that are told of each run that ended.
    pub after_run: Vec<String>,
}

/// A place: its kind and how to reach it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub kind: EndpointKind,
    /// What it may be asked for at once.
    pub limits: Limits,
    /// How deliveries to it are verified.
    pub verify: Option<Verify>,
}

/// Where an endpoint is.
#[derive(Debug, Clone)]
pub enum EndpointKind {
    /// A directory of this machine; absolute.
    Local(PathBuf),
    /// A directory on an SFTP server.
    Sftp(Box<SftpSettings>),
    /// A prefix in a bucket.
    Object(Box<ObjectSettings>),
}

/// What one endpoint may be asked for at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most connections; at least 1.
    pub connections: Option<usize>,
    /// The most files in flight; at least 1.
    pub transfers: Option<usize>,
    /// The most bytes a second; at least 1.
    pub bandwidth_bytes_per_second: Option<u64>,
}

/// How to reach a directory on an SFTP server. Nothing here is a secret itself.
#[derive(Debug, Clone, Default)]
pub struct SftpSettings {
    /// A host name, an address, or a `Host` of `~/.ssh/config`.
    pub host: String,
    /// The port, if it is given.
    pub port: Option<u16>,
    /// The user, if it is given.
    pub user: Option<String>,
    /// The directory that paths are relative to; empty for the user's home.
    pub path: String,
    /// The password.
    pub password: Option<SecretSource>,
    /// Private key files; absolute.
    pub keys: Vec<PathBuf>,
    /// The passphrase of encrypted keys.
    pub passphrase: Option<SecretSource>,
    /// Whether to ask the agent; nothing means: if one is there.
    pub agent: Option<bool>,
    /// The answer to keyboard-interactive prompts.
    pub keyboard_interactive: Option<SecretSource>,
    /// Fingerprints of host keys, `SHA256:…`; if there are any, no other key is accepted.
    pub host_keys: Vec<String>,
    /// The file of known hosts, instead of the usual ones; absolute.
    pub known_hosts: Option<PathBuf>,
    /// Who wrote it: what came over the network logs in with the secrets that it names, and with nothing else
    /// that the node has.
    pub(crate) origin: Origin,
}

/// How to reach a prefix in a bucket. Nothing here is a secret itself.
#[derive(Debug, Clone)]
pub struct ObjectSettings {
    /// Which kind of store.
    pub store: ObjectStoreKind,
    /// The bucket or container.
    pub bucket: String,
    /// The prefix that paths are relative to, without slashes at its ends.
    pub prefix: String,
    /// The region, if it is given.
    pub region: Option<String>,
    /// The profile of `~/.aws/config`.
    pub profile: Option<String>,
    /// The URL of a compatible store.
    pub endpoint: Option<String>,
    /// Whether the bucket stands in the path rather than in the host name.
    pub path_style: Option<bool>,
    /// The account (Azure).
    pub account: Option<String>,
    /// The access key (S3, Azure).
    pub access_key: Option<SecretSource>,
    /// The secret key (S3).
    pub secret_key: Option<SecretSource>,
    /// The JSON key of a service account (Google).
    pub service_account: Option<SecretSource>,
    /// The size of parts in bytes.
    pub part_bytes: Option<u64>,
}

impl ObjectSettings {
    /// A prefix in a bucket, with all the rest from the environment.
    #[must_use]
    pub const fn new(store: ObjectStoreKind, bucket: String, prefix: String) -> Self {
        Self {
            store,
            bucket,
            prefix,
            region: None,
            profile: None,
            endpoint: None,
            path_style: None,
            account: None,
            access_key: None,
            secret_key: None,
            service_account: None,
            part_bytes: None,
        }
    }
}

/// A job that delivers what comes to watched directories, or what a place has when it runs.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name.
    pub name: String,
    /// The watched directories; absolute, none inside another. None of them if there is a `from`.
    pub watch: Vec<PathBuf>,
    /// Where it takes files from when it runs. Local paths are absolute.
    pub from: Option<Location>,
    /// When it runs by itself.
    pub schedules: Vec<Schedule>,
    /// After which job it runs.
    pub after_job: Option<String>,
    /// After uploads of which users of the own SFTP server it runs.
    pub after_upload: Vec<String>,
    /// What is done before a run, and who is told of files and runs.
    pub hooks: Hooks,
    /// With what somebody who calls its URL proves that he may.
    pub http_token: Option<SecretSource>,
    /// Who wrote it.
    pub(crate) origin: Origin,
    /// Which files are meant, with the temporary names left out as `temporary` says.
    pub filter: Filter,
    /// Which files are meant by a run, where that depends on when it begins.
    pub matching: Option<Matching>,
    /// Which of them a run takes.
    pub choice: Choice,
    /// What has to hold for a run to begin.
    pub conditions: Conditions,
    /// What is asked of each file's content.
    pub checks: FileChecks,
    /// What whoever asks for a run may say.
    pub parameters: Parameters,
    /// How whoever the files come from is told of their delivery.
    pub acknowledge: Option<AcknowledgeSettings>,
    /// What becomes of a file whose content was delivered before; nothing: it is delivered.
    pub duplicates: Option<Duplicates>,
    /// Which jobs go first.
    pub priority: Priority,
    /// What to do with temporary names.
    pub temporary: TemporaryFiles,
    /// How long a file must not have changed, where nothing better says that it is complete.
    pub settle: Option<Duration>,
    /// What is done to the content on its way.
    pub steps: Vec<StepSpec>,
    /// The files with public keys that the steps name, as they are written and where they are.
    pub key_files: BTreeMap<String, PathBuf>,
    /// Where to.
    pub to: Destination,
    /// When what a run delivers becomes visible.
    pub publish: Publish,
    /// The files that list what a run takes.
    pub manifest: Option<ManifestSpec>,
    /// What becomes of the source.
    pub after: After,
    /// What a deletion at the source means.
    pub deletes: Deletes,
    /// What to do when something is there already.
    pub if_exists: IfExists,
    /// What to do with symbolic links.
    pub symlinks: SymlinkPolicy,
    /// How deliveries are verified; nothing for what the endpoint says.
    pub verify: Option<Verify>,
    /// The most bytes a second.
    pub bandwidth_bytes_per_second: Option<u64>,
    /// How failed attempts are repeated.
    pub retry: RetryPolicy,
    /// How often everything is looked at again.
    pub rescan: Duration,
    /// How often a directory is looked at that cannot be watched.
    pub poll: Duration,
    /// How often the destination is compared with what was delivered; nothing for never.
    pub verify_destination: Option<Duration>,
    /// The zone of dates in the destination.
    pub time_zone: TimeZone,
}

/// How whoever the files come from is told of their delivery.
#[derive(Debug, Clone)]
pub struct AcknowledgeSettings {
    /// Where to; the source, if it is nothing. Local paths are absolute.
    pub to: Option<Location>,
    /// The path of the file there.
    pub file: Phrase,
    /// What it holds.
    pub content: Phrase,
    /// Whether each file has one, or each run that delivered something.
    pub per: About,
    /// A glob of what lies at the source and is an acknowledgement.
    pub(crate) is_own: Option<String>,
}

impl AcknowledgeSettings {
    /// Whether the SHA-256 of each file has to be known.
    pub(crate) fn needs_sha256(&self) -> bool {
        self.file.needs_sha256() || self.content.needs_sha256()
    }
}

/// A directory somewhere, and the template of the paths below it.
#[derive(Debug, Clone)]
pub struct Destination {
    /// As it was written.
    pub written: String,
    /// The directory: what stood before the first placeholder. Local paths are absolute.
    pub base: Location,
    /// The rest.
    pub template: Template,
}
