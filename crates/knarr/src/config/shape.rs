//! The configuration as it is written. What these types and their comments say is the JSON Schema.

mod checks;
mod extras;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use knarr_core::choose::Order;
use knarr_core::job::{After, Deletes, ManifestFormat, Priority, Publish, Verify};
use knarr_core::plan::{IfExists, SymlinkPolicy};
use knarr_core::schedule::{Missed, Overlap};
use knarr_core::units::{ByteSize, Span};
use knarr_engine::announce::BeforeShape;
use knarr_engine::outbox::shape::{RuleShape, TargetShape};
use knarr_steps::StepSpec;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

pub(super) use self::checks::{CheckShape, DuplicatesShape, HoursShape, ScanShape};
pub(super) use self::extras::{AcknowledgeShape, ParameterShape, PerShape};
use crate::config::read::{At, Many, SECRET};

mod sftp_server;

pub(super) use sftp_server::{
    GivenPermissions, PermissionName, PermissionSet, RequireShape, ServerLimitsShape,
    ServerUserShape, SftpServerShape,
};

/// The configuration of Knarr, `knarr.yaml`.
#[derive(Debug, JsonSchema)]
#[schemars(title = "knarr.yaml", deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "read section by section, so that one error does not hide others"
)]
pub(super) struct ConfigShape {
    /// This node.
    pub(super) node: Option<NodeShape>,
    /// The places that jobs and commands name as `endpoint:path`.
    pub(super) endpoints: Option<BTreeMap<String, EndpointShape>>,
    /// Who is told, and what is done, by name.
    pub(super) targets: Option<BTreeMap<String, TargetShape>>,
    /// When somebody is told, by name.
    pub(super) alerts: Option<BTreeMap<String, RuleShape>>,
    /// What `knarr run` does.
    pub(super) jobs: Option<BTreeMap<String, JobShape>>,
    /// The own SFTP server, for `knarr run` and `knarr sftp-server`.
    pub(super) sftp_server: Option<SftpServerShape>,
}

/// This node.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeShape {
    /// The name of this node in records; the host name by default.
    pub(super) name: Option<String>,
    /// Where Knarr keeps its state; by default /var/lib/knarr for root, else
    /// $XDG_STATE_HOME/knarr.
    pub(super) state: Option<String>,
    /// How long what an interrupted transfer left (staged files, unfinished multipart uploads) is kept to
    /// go on from; 7d by default.
    pub(super) keep_unfinished: Option<At<Span>>,
    /// Where `knarr run` logs, besides standard error.
    pub(super) log: Option<LogShape>,
    /// Metrics for Prometheus.
    pub(super) metrics: Option<MetricsShape>,
    /// How long what happened is kept.
    pub(super) retention: Option<RetentionShape>,
    /// Where to listen for calls over HTTP that run jobs; nowhere by default.
    pub(super) http: Option<HttpShape>,
}

/// A log file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogShape {
    /// The file; none by default.
    pub(super) file: Option<At<String>>,
    /// When it is this long it is called `FILE.1`, and a new one is begun; 64MiB by default.
    pub(super) max_size: Option<At<ByteSize>>,
    /// How many older files are kept; 5 by default.
    #[schemars(range(max = 1000))]
    pub(super) keep: Option<At<u32>>,
    /// How its lines are written; `json` by default.
    pub(super) format: Option<LogFormat>,
}

/// How lines of a log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Metrics for Prometheus.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MetricsShape {
    /// The address and port that they are served on, such as 127.0.0.1:9464.
    pub(super) listen: At<String>,
}

/// How long what happened is kept.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetentionShape {
    /// Runs and custody records, such as 400d; for ever by default.
    pub(super) history: Option<At<Span>>,
    /// Events that a target `postgres` did not take, such as 30d; until it takes them by default.
    pub(super) events: Option<At<Span>>,
}

/// What is done before a run, and who is told of files and runs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HooksShape {
    /// What has to succeed before a run looks at its source.
    #[serde(default)]
    pub(super) before: Many<At<BeforeShape>>,
    /// Targets that are told of each file that was delivered, once that is on record.
    #[serde(default)]
    pub(super) after_file: Many<At<String>>,
    /// Targets that are told of each run that ended.
    #[serde(default)]
    pub(super) after_run: Many<At<String>>,
}

/// Where to listen for calls over HTTP that run jobs, see `http_token` of a job.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpShape {
    /// The address and the port, such as 127.0.0.1:8080. Without TLS: other than on this machine, put a
    /// server with TLS before it.
    pub(super) listen: At<String>,
}

/// A place: its kind and how to reach it.
#[derive(Debug, JsonSchema)]
#[schemars(tag = "type", rename_all = "lowercase")]
#[expect(
    dead_code,
    reason = "read as the shape of its type, so that errors know their place"
)]
pub(super) enum EndpointShape {
    /// A directory on an SFTP server.
    Sftp(SftpShape),
    /// A bucket of Amazon S3 or of a compatible store.
    S3(S3Shape),
    /// A bucket of Google Cloud Storage.
    Gcs(GcsShape),
    /// A container of Azure Blob Storage.
    Azure(AzureShape),
    /// A directory of this machine.
    Local(LocalShape),
}

/// The names of the kinds of endpoints.
pub(super) const ENDPOINT_TYPES: [&str; 5] = ["sftp", "s3", "gcs", "azure", "local"];

/// A secret, by reference: `{ secret: name }` in the store of `knarr secret set`, or
/// `{ env: NAME }`, an environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// The name in the store of secrets.
    Secret(String),
    /// The name of an environment variable.
    Env(String),
}

/// What one endpoint may be asked for at once.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsShape {
    /// The most connections at once.
    #[schemars(range(min = 1, max = 256))]
    pub(super) connections: Option<At<u32>>,
    /// The most files in flight at once.
    #[schemars(range(min = 1, max = 1024))]
    pub(super) transfers: Option<At<u32>>,
    /// The most bytes a second, such as 20MiB.
    pub(super) bandwidth: Option<At<ByteSize>>,
}

/// A directory on an SFTP server.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SftpShape {
    /// A host name, an address, or a `Host` of ~/.ssh/config.
    pub(super) host: At<String>,
    /// 22, or what ~/.ssh/config says.
    pub(super) port: Option<u16>,
    /// The user; by default what ~/.ssh/config says, or the own name.
    pub(super) user: Option<String>,
    /// The directory that paths of this endpoint are relative to; by default the user's home.
    pub(super) path: Option<At<String>>,
    /// The password.
    pub(super) password: Option<SecretSource>,
    /// A private key file in OpenSSH format; several are tried in turn.
    #[serde(default)]
    pub(super) key: Many<At<String>>,
    /// The passphrase of an encrypted key.
    pub(super) passphrase: Option<SecretSource>,
    /// Whether to ask the SSH agent for keys.
    pub(super) agent: Option<bool>,
    /// The answer to what the server asks in keyboard-interactive authentication.
    pub(super) keyboard_interactive: Option<SecretSource>,
    /// The fingerprint of the host key that alone is accepted, `SHA256:…`; or a list of them.
    #[serde(default)]
    pub(super) host_key: Many<At<String>>,
    /// The file of known hosts, instead of ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts.
    pub(super) known_hosts: Option<At<String>>,
    /// What may be asked for at once.
    #[serde(default)]
    pub(super) limits: LimitsShape,
    /// How deliveries are verified.
    pub(super) verify: Option<Verify>,
}

/// A bucket of Amazon S3 or of a compatible store.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct S3Shape {
    /// The bucket.
    pub(super) bucket: At<String>,
    /// The prefix that paths of this endpoint are relative to.
    pub(super) path: Option<At<String>>,
    /// The region; by default that of the profile or environment.
    pub(super) region: Option<String>,
    /// The profile of ~/.aws/config.
    pub(super) profile: Option<String>,
    /// The URL of a compatible store, such as http://127.0.0.1:9000.
    pub(super) endpoint: Option<At<String>>,
    /// Whether the bucket stands in the path rather than in the host name.
    pub(super) path_style: Option<bool>,
    /// The access key, instead of a profile or the environment.
    pub(super) access_key: Option<SecretSource>,
    /// The secret key that belongs to the access key.
    pub(super) secret_key: Option<SecretSource>,
    /// The size of the parts of a multipart upload; between 5MiB and 5GiB.
    pub(super) part_size: Option<At<ByteSize>>,
    /// What may be asked for at once.
    #[serde(default)]
    pub(super) limits: LimitsShape,
    /// How deliveries are verified.
    pub(super) verify: Option<Verify>,
}

/// A bucket of Google Cloud Storage.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GcsShape {
    /// The bucket.
    pub(super) bucket: At<String>,
    /// The prefix that paths of this endpoint are relative to.
    pub(super) path: Option<At<String>>,
    /// The JSON key of a service account; by default the application default credentials.
    pub(super) service_account: Option<SecretSource>,
    /// The size of the parts of a multipart upload; between 5MiB and 5GiB.
    pub(super) part_size: Option<At<ByteSize>>,
    /// What may be asked for at once.
    #[serde(default)]
    pub(super) limits: LimitsShape,
    /// How deliveries are verified.
    pub(super) verify: Option<Verify>,
}

/// A container of Azure Blob Storage.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AzureShape {
    /// The container.
    pub(super) container: At<String>,
    /// The storage account.
    pub(super) account: String,
    /// The prefix that paths of this endpoint are relative to.
    pub(super) path: Option<At<String>>,
    /// The URL of a compatible store.
    pub(super) endpoint: Option<At<String>>,
    /// The key of the account; by default what the environment offers.
    pub(super) access_key: Option<SecretSource>,
    /// The size of the parts of a multipart upload; between 5MiB and 4GiB.
    pub(super) part_size: Option<At<ByteSize>>,
    /// What may be asked for at once.
    #[serde(default)]
    pub(super) limits: LimitsShape,
    /// How deliveries are verified.
    pub(super) verify: Option<Verify>,
}

/// A directory of this machine.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LocalShape {
    /// The directory; relative to the configuration file's.
    pub(super) path: At<String>,
    /// What may be asked for at once.
    #[serde(default)]
    pub(super) limits: LimitsShape,
    /// How deliveries are verified.
    pub(super) verify: Option<Verify>,
}

/// A job: deliver what comes to watched directories, or what a place has when the job runs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JobShape {
    /// The directory to watch, or a list of them; relative to the configuration file's.
    #[serde(default)]
    pub(super) watch: Many<At<String>>,
    /// Instead of `watch`: where to take files from whenever the job runs: a path, a URL or
    /// `endpoint:path`. What was taken is remembered, so that each version of a file is taken once.
    pub(super) from: Option<At<String>>,
    /// When the job runs by itself; a list for several. Without it, and without `after_job`, it runs when
    /// `knarr job run` asks for it.
    #[serde(default)]
    pub(super) schedule: Many<At<ScheduleShape>>,
    /// The job runs whenever this one has run, and all of that went well.
    pub(super) after_job: Option<At<String>>,
    /// With this token, `POST /v1/jobs/NAME/run` on the address of `node.http` runs the job.
    pub(super) http_token: Option<SecretSource>,
    /// The job runs whenever one of these users of `sftp_server` has uploaded something. Without `settle`, what
    /// was uploaded is taken at once: it has its name only when it is complete.
    #[serde(default)]
    pub(super) after_upload: Many<At<String>>,
    /// Which files are meant, and when they are complete.
    #[serde(default, rename = "match")]
    pub(super) matching: MatchShape,
    /// What has to hold for a run, and for each file.
    #[serde(default)]
    pub(super) checks: Many<At<CheckShape>>,
    /// The only hours in which the job runs; a run that is under way at their end stops, and the next one goes
    /// on from there.
    #[serde(default)]
    pub(super) window: Many<At<HoursShape>>,
    /// What whoever asks for a run may say, by name: `knarr job run JOB --set NAME=VALUE`.
    #[serde(default)]
    pub(super) parameters: BTreeMap<String, At<ParameterShape>>,
    /// Which jobs go first where several wait for the transfers of an endpoint (`limits.transfers`), or for
    /// one of the 32 runs at once: `high`, `normal` (default) or `low`.
    pub(super) priority: Option<Priority>,
    /// A file that tells whoever the files come from that they were delivered.
    pub(super) acknowledge: Option<At<AcknowledgeShape>>,
    /// What is done to the content on its way.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub(super) steps: At<Vec<StepSpec>>,
    /// Where to: a path, a URL or `endpoint:path`, with placeholders such as {mtime:%Y/%m/%d},
    /// {name}, {stem}, {extension}, {dir}, {now:%Y-%m-%d} and the named groups of `match.regex`.
    pub(super) to: At<String>,
    /// When what a run delivers becomes visible at the destination: `each` file by itself (default), all as a
    /// `batch`, or as a batch with `{ last: GLOB }`: files that become visible when all others are.
    pub(super) publish: Option<At<Publish>>,
    /// What becomes of the source after its delivery was verified.
    pub(super) after: Option<At<After>>,
    /// What a deletion at the source means for the destination.
    pub(super) deletes: Option<At<Deletes>>,
    /// What to do when something is at the destination already.
    pub(super) if_exists: Option<IfExists>,
    /// What to do with symbolic links; they are never followed.
    pub(super) symlinks: Option<SymlinkPolicy>,
    /// How deliveries are verified; by default as the endpoint says.
    pub(super) verify: Option<Verify>,
    /// The most bytes a second, such as 20MiB.
    pub(super) bandwidth: Option<At<ByteSize>>,
    /// How failed attempts are repeated.
    #[serde(default)]
    pub(super) retry: RetryShape,
    /// How often everything is looked at again, whatever the events said; 1h by default.
    pub(super) rescan: Option<At<Span>>,
    /// How often a directory is looked at that the system does not watch (network file systems, or too
    /// few inotify watches); 30s by default, or `rescan` if that is less.
    pub(super) poll: Option<At<Span>>,
    /// How often what was delivered is compared with what the destination holds; what is missing or was
    /// changed there is delivered again, as `if_exists` says. 0s is never, and the default; with
    /// `deletes: mirror` it is 1d.
    pub(super) verify_destination: Option<At<Span>>,
    /// What is done before a run, and who is told of files and runs.
    #[serde(default)]
    pub(super) hooks: HooksShape,
    /// Alert rules about this job: as under `alerts`, without `about`.
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "read one by one, so that one error does not hide others"
    )]
    pub(super) alert: Many<RuleShape>,
    /// The time zone of dates in `to`, such as Europe/Berlin; the machine's by default.
    pub(super) timezone: Option<At<String>>,
}

/// When a job runs by itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScheduleShape {
    /// A cron pattern: minute, hour, day of the month, month, day of the week; with seconds before them if
    /// there are six fields.
    pub(super) cron: At<String>,
    /// The time zone of the pattern, such as Europe/Berlin; by default the job's `timezone`.
    pub(super) timezone: Option<At<String>>,
    /// What happens when it is time and the last run has not ended.
    pub(super) overlap: Option<Overlap>,
    /// What happens to times at which the node was not running.
    pub(super) missed: Option<Missed>,
    /// Runs begin up to so much later, each job at its own moment; 0s by default.
    pub(super) jitter: Option<At<Span>>,
}

impl<T: Default> Default for At<T> {
    fn default() -> Self {
        Self {
            value: T::default(),
            span: 0..0,
        }
    }
}

/// Which files are meant, and when they are complete.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MatchShape {
    /// Globs of which a file has to match one. Without `/` they match the name at any depth.
    #[serde(default)]
    pub(super) include: Many<At<String>>,
    /// Globs of what is left out; a directory with all that is in it.
    #[serde(default)]
    pub(super) exclude: Many<At<String>>,
    /// A regular expression that the whole path below the source has to match. Its named groups,
    /// `(?<customer>…)`, are placeholders in `to`.
    pub(super) regex: Option<At<String>>,
    /// Take only what manifests list, files at the source: all that one of them lists, or nothing of it.
    pub(super) manifest: Option<At<ManifestShape>>,
    /// Leave files alone that changed before: `today`, `yesterday`, `today-7d`, `now-2h`, `2026-11-01`.
    pub(super) modified_from: Option<At<String>>,
    /// Leave files alone that changed then or later.
    pub(super) modified_until: Option<At<String>>,
    /// Leave files alone that changed before the last run began that went well.
    pub(super) newer_than_last_run: Option<bool>,
    /// Only so many of the newest; the others are never taken.
    pub(super) newest: Option<At<u32>>,
    /// At most so many in one run; the next run takes the others.
    pub(super) limit: Option<At<u32>>,
    /// Which come first if there is a limit: by `name` (default), the `oldest`, `newest`, `smallest` or `largest`.
    pub(super) order: Option<Order>,
    /// How long a file must not have changed, where nothing better says that it is complete.
    pub(super) settle: Option<Span>,
    /// Leave files alone that changed less long ago.
    pub(super) min_age: Option<Span>,
    /// Leave files alone that changed longer ago.
    pub(super) max_age: Option<At<Span>>,
    /// Leave smaller files alone.
    pub(super) min_size: Option<ByteSize>,
    /// Leave larger files alone.
    pub(super) max_size: Option<At<ByteSize>>,
    /// What to do with the temporary files of editors and desktop programs.
    pub(super) temporary: Option<TemporaryFiles>,
}

/// Files that list what is taken.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestShape {
    /// A glob: which files are manifests. What they list lies beside or below them.
    pub(super) file: At<String>,
    /// How they are written: `lines` (default), `sha256sum`, `sha512sum`, `md5sum` or `json`.
    pub(super) format: Option<ManifestFormat>,
}

/// What to do with the temporary files of editors and desktop programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemporaryFiles {
    /// Leave them alone.
    #[default]
    Ignore,
    /// Treat them as any other file.
    Take,
}

/// How failed attempts are repeated.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryShape {
    /// How many attempts there are in all before a person has to act; 8 by default.
    #[schemars(range(min = 1))]
    pub(super) attempts: Option<At<u32>>,
    /// The pause after the first failure, which doubles each time; 5s by default.
    pub(super) from: Option<At<Span>>,
    /// The longest pause; 10m by default.
    pub(super) to: Option<At<Span>>,
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(SECRET, SecretVisitor)
    }
}

struct SecretVisitor;

impl<'de> Visitor<'de> for SecretVisitor {
    type Value = SecretSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ secret: NAME } or { env: NAME }")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<SecretSource, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretSource, A::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "lowercase")]
        enum Name {
            Secret,
            Env,
        }
        let source = match map.next_key::<Name>()? {
            Some(Name::Secret) => SecretSource::Secret(map.next_value()?),
            Some(Name::Env) => SecretSource::Env(map.next_value()?),
            None => {
                return Err(serde::de::Error::custom(
                    "{ secret: NAME } is expected here",
                ));
            }
        };
        match map.next_key::<Name>()? {
            None => Ok(source),
            Some(_) => Err(serde::de::Error::custom(
                "either `secret` or `env` is expected here, not both",
            )),
        }
    }
}

impl JsonSchema for SecretSource {
    fn schema_name() -> Cow<'static, str> {
        "SecretSource".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        let one = |name: &str, description: &str| {
            serde_json::json!({
                "type": "object",
                "properties": { name: { "type": "string", "minLength": 1, "description": description } },
                "required": [name],
                "additionalProperties": false
            })
        };
        json_schema!({
            "description": "A secret, by reference; never the secret itself.",
            "oneOf": [
                one("secret", "The name under which `knarr secret set` stored it."),
                one("env", "The name of an environment variable that holds it."),
            ]
        })
    }
}
