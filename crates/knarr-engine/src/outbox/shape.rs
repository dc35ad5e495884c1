//! How targets and alert rules stand in the configuration file.
//!
//! Two shapes, so that the type carries where a thing may come from (K12): a [`TargetShape`] is read from
//! the local file only and may be a command; what is added over a network names targets ([`HooksShape`],
//! `to:` of a rule) and can define none.

mod secret;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use knarr_core::Clock;
use knarr_core::alert::{
    Condition, Deadline, Escalation, HoursError, QuietHours, Recovery, Rule, Severity, Weekdays,
};
use knarr_core::retry::RetryPolicy;
use knarr_core::units::Span;
use knarr_store::secrets::SecretValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::outbox::command::CommandError;
use crate::outbox::email::EmailError;
use crate::outbox::notifier::{NotifierOptions, PostgresSecurity};
use crate::outbox::webhook::WebhookError;
use crate::outbox::{
    CommandOptions, CommandTarget, EmailOptions, EmailSecurity, EmailTarget, LocalFile, Target,
    TargetOptions, WebhookOptions, WebhookTarget, webhook_url,
};

pub use secret::{SecretRef, UrlShape};

/// How long a webhook or a mail may take.
const NETWORK_LIMIT: Duration = Duration::from_secs(30);
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// Somebody who is told, or something that is done. Exactly one of `webhook`, `email`, `command` and
/// `postgres`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetShape {
    /// Messages as JSON over HTTPS.
    pub webhook: Option<WebhookShape>,
    /// Messages as mails.
    pub email: Option<EmailShape>,
    /// A command for each message. Only in the configuration file.
    pub command: Option<CommandShape>,
    /// Everything that happens to files, as rows of a PostgreSQL table.
    pub postgres: Option<PostgresShape>,
    /// The most deliveries at once, of different jobs; 4 by default.
    #[schemars(range(min = 1, max = 64))]
    pub at_once: Option<usize>,
    /// How a message that fails is repeated.
    pub retry: Option<RetryShape>,
}

/// How often and how soon something is repeated.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryShape {
    /// How many attempts in all; 12 by default.
    #[schemars(range(min = 1, max = 1000))]
    pub attempts: Option<u32>,
    /// The pause after the first failure; 5s by default. It doubles.
    pub from: Option<Span>,
    /// The longest pause; 30m by default.
    pub to: Option<Span>,
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookShape {
    /// Where; https, or http to this machine.
    pub url: UrlShape,
    /// Signs each request: `Knarr-Signature: v1=` and HMAC-SHA256 of `timestamp.body`.
    pub secret: Option<SecretRef>,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<SecretRef>,
    /// A file with certificates (PEM) that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// How long a request may take; 30s by default.
    pub timeout: Option<Span>,
}

/// Mail.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmailShape {
    /// The SMTP server.
    pub host: String,
    /// Its port; 587, 465 or 25 by default, as the security has it.
    pub port: Option<u16>,
    /// `starttls` (default), `tls`, or `none` to a server on this machine.
    #[serde(default)]
    pub security: EmailSecurity,
    /// The user to log in as.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretRef>,
    /// The sender's address.
    pub from: String,
    /// The receivers' addresses.
    pub to: Vec<String>,
    /// A file with a certificate (PEM) that is trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// How long one mail may take; 30s by default.
    pub timeout: Option<Span>,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandShape {
    /// The absolute path of a program, and its arguments, with placeholders such as `{destination}`.
    pub run: Vec<String>,
    /// Variables besides PATH, HOME, LANG and KNARR_…; never secrets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The directory that it runs in; `/` by default.
    pub directory: Option<PathBuf>,
    /// How long it may run before it is killed with all it started; 5m by default.
    pub timeout: Option<Span>,
}

/// The PostgreSQL notifier.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresShape {
    /// The host, or the directory of its socket.
    pub host: String,
    /// The port; 5432 by default.
    pub port: Option<u16>,
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: Option<SecretRef>,
    /// `tls` (default), or `none` to this machine or over a socket.
    #[serde(default)]
    pub security: PostgresSecurity,
    /// A file with certificates (PEM) that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// The most rows in one statement; 500 by default.
    #[schemars(range(min = 1, max = 5000))]
    pub batch: Option<usize>,
}

/// The hooks of a job: names of targets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HooksShape {
    /// Told of each file that was delivered, once that is on record.
    #[serde(default)]
    pub after_file: Vec<String>,
    /// Told of each run that ended.
    #[serde(default)]
    pub after_run: Vec<String>,
}

/// An alert rule. Exactly one of the conditions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleShape {
    /// When it applies.
    pub on: ConditionShape,
    /// The jobs, endpoints or certificates that it is about; all by default.
    #[serde(default)]
    pub about: Vec<String>,
    /// Names of targets.
    pub to: Vec<String>,
    /// `info`, `warning` (default) or `critical`.
    #[serde(default)]
    pub severity: Severity,
    /// Whether the end is told, too; it is by default.
    pub recovery: Option<RecoveryShape>,
    /// How often it is repeated while it lasts; not by default.
    pub repeat: Option<Span>,
    /// Who else is told of what lasts.
    #[serde(default)]
    pub escalate: Vec<EscalationShape>,
    /// When only what is urgent is told.
    pub quiet: Option<QuietShape>,
}

/// When a rule applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConditionShape {
    /// So many runs failed in a row; `failure: 1` is each.
    Failure(u32),
    /// Nothing came by a time of day.
    NothingBy(DeadlineShape),
    /// Nothing came for so long.
    NothingFor(Span),
    /// A plan waits for approval: `held: {}`.
    Held(HeldShape),
    /// An endpoint cannot be reached for so long.
    EndpointDown(Span),
    /// A certificate or key is valid for less than this.
    Expiring(Span),
}

/// Nothing more to say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeldShape {}

/// A time of day until which something has to have come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeadlineShape {
    /// `06:00`.
    pub time: String,
    /// What came before this time does not count; what came before the last deadline, by default.
    pub since: Option<String>,
    /// `[mon, tue]`; every day by default.
    #[serde(default)]
    pub days: Vec<DayShape>,
    /// `Europe/Berlin`; UTC by default.
    pub timezone: Option<String>,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the days of the week say it")]
pub enum DayShape {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// Whether the end of something is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryShape {
    /// It is.
    Told,
    /// It is not.
    Silent,
}

/// Who else is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EscalationShape {
    /// After so long.
    pub after: Span,
    /// Names of targets.
    pub to: Vec<String>,
}

/// Quiet hours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuietShape {
    /// `22:00`.
    pub from: String,
    /// `07:00`.
    pub to: String,
    /// The days on which they begin; every day by default.
    #[serde(default)]
    pub days: Vec<DayShape>,
    /// `Europe/Berlin`; UTC by default.
    pub timezone: Option<String>,
    /// What is told all the same; `critical` by default.
    pub urgent: Option<Severity>,
}

/// Why a target or a rule cannot be made of what stands there.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// None or several kinds.
    #[error("a target has exactly one of `webhook`, `email`, `command` and `postgres`")]
    Kind,
    /// None or several kinds of what is done before a run.
    #[error("what is done before a run is exactly one of `http`, `tcp` and `command`")]
    BeforeKind,
    /// A secret cannot be had.
    #[error("{0}")]
    Secret(String),
    /// A user without password, or the other way round.
    #[error("`user` and `password` of mail go together")]
    Login,
    /// A file cannot be read.
    #[error("cannot read {path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Not a time of day.
    #[error("`{0}` is not a time of day: write 06:00 or 18:30:15")]
    Time(String),
    /// Not a time zone.
    #[error("`{0}` is not a time zone: write a name such as Europe/Berlin, or UTC")]
    Zone(String),
    /// Not quiet hours.
    #[error(transparent)]
    Hours(#[from] HoursError),
    /// Not a webhook.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// Not a mail.
    #[error(transparent)]
    Email(#[from] EmailError),
    /// Not a command.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Fetches a secret.
pub type Fetch<'f> = dyn Fn(&SecretRef) -> Result<SecretValue, String> + 'f;

/// A target that was made.
#[derive(Debug)]
pub enum Made {
    /// One for the worker.
    Target(Arc<dyn Target>, TargetOptions),
    /// The PostgreSQL notifier, which follows the events.
    Notifier(NotifierOptions),
}

impl TargetShape {
    /// Makes the target of what stands in the local configuration file `file`, for the node of this name.
    ///
    /// # Errors
    /// If it cannot be used as it stands.
    pub fn make(
        self,
        file: &LocalFile,
        node: &str,
        fetch: &Fetch<'_>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Made, ShapeError> {
        let options = self.options();
        let target: Arc<dyn Target> = match (self.webhook, self.email, self.command, self.postgres)
        {
            (Some(webhook), None, None, None) => webhook.make(fetch, clock)?,
            (None, Some(email), None, None) => email.make(fetch, node)?,
            (None, None, Some(command), None) => {
                Arc::new(CommandTarget::new(command.into(), file)?)
            }
            (None, None, None, Some(postgres)) => return postgres.make(fetch).map(Made::Notifier),
            _ => return Err(ShapeError::Kind),
        };
        Ok(Made::Target(target, options))
    }

    /// Whether it can be made, as far as that can be told without secrets and without reading files.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, file: &LocalFile) -> Result<(), ShapeError> {
        match (&self.webhook, &self.email, &self.command, &self.postgres) {
            (Some(webhook), None, None, None) => match &webhook.url {
                UrlShape::Plain(url) => Ok(webhook_url(url).map(drop)?),
                UrlShape::Secret(_) => Ok(()),
            },
            (None, Some(email), None, None) => {
                if email.user.is_some() != email.password.is_some() {
                    return Err(ShapeError::Login);
                }
                Ok(crate::outbox::email::check_addresses(
                    &email.from,
                    &email.to,
                )?)
            }
            (None, None, Some(command), None) => {
                Ok(CommandTarget::new(command.clone().into(), file).map(drop)?)
            }
            (None, None, None, Some(_)) => Ok(()),
            _ => Err(ShapeError::Kind),
        }
    }

    fn options(&self) -> TargetOptions {
        let usual = TargetOptions::default();
        let retry = self.retry.as_ref();
        let span = |span: Option<Span>, usual: Duration| span.map_or(usual, |span| span.0);
        TargetOptions {
            at_once: self.at_once.unwrap_or(usual.at_once).clamp(1, 64),
            retry: RetryPolicy {
                attempts: retry
                    .and_then(|retry| retry.attempts)
                    .unwrap_or(usual.retry.attempts)
                    .max(1),
                from: span(retry.and_then(|retry| retry.from), usual.retry.from),
                to: span(retry.and_then(|retry| retry.to), usual.retry.to),
            },
        }
    }
}

impl WebhookShape {
    fn make(
        self,
        fetch: &Fetch<'_>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Arc<dyn Target>, ShapeError> {
        let url = match self.url {
            UrlShape::Plain(url) => SecretValue::new(url.into_bytes()),
            UrlShape::Secret(secret) => fetch(&secret).map_err(ShapeError::Secret)?,
        };
        let options = WebhookOptions {
            url,
            secret: fetched(self.secret.as_ref(), fetch)?,
            token: fetched(self.token.as_ref(), fetch)?,
            certificates: certificates(self.ca.as_deref())?,
            limit: self.timeout.map_or(NETWORK_LIMIT, |span| span.0),
        };
        Ok(Arc::new(WebhookTarget::new(options, Arc::clone(clock))?))
    }
}

impl EmailShape {
    fn make(self, fetch: &Fetch<'_>, node: &str) -> Result<Arc<dyn Target>, ShapeError> {
        let login = match (self.user, fetched(self.password.as_ref(), fetch)?) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            _ => return Err(ShapeError::Login),
        };
        let options = EmailOptions {
            host: self.host,
            port: self.port,
            security: self.security,
            login,
            from: self.from,
            to: self.to,
            certificates: certificates(self.ca.as_deref())?,
            limit: self.timeout.map_or(NETWORK_LIMIT, |span| span.0),
        };
        Ok(Arc::new(EmailTarget::new(options, node)?))
    }
}

impl PostgresShape {
    fn make(self, fetch: &Fetch<'_>) -> Result<NotifierOptions, ShapeError> {
        Ok(NotifierOptions {
            host: self.host,
            port: self.port.unwrap_or(5_432),
            database: self.database,
            user: self.user,
            password: fetched(self.password.as_ref(), fetch)?,
            security: self.security,
            certificates: certificates(self.ca.as_deref())?,
            batch: self.batch.unwrap_or(500).clamp(1, 5_000),
        })
    }
}

impl From<CommandShape> for CommandOptions {
    fn from(shape: CommandShape) -> Self {
        Self {
            run: shape.run,
            environment: shape.env,
            directory: shape.directory,
            limit: shape.timeout.map_or(COMMAND_LIMIT, |span| span.0),
        }
    }
}

fn fetched(
    secret: Option<&SecretRef>,
    fetch: &Fetch<'_>,
) -> Result<Option<SecretValue>, ShapeError> {
    secret.map(fetch).transpose().map_err(ShapeError::Secret)
}

pub(crate) fn certificates(path: Option<&Path>) -> Result<Option<Vec<u8>>, ShapeError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| ShapeError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    };
    path.map(read).transpose()
}

impl RuleShape {
    /// Makes the rule of this name.
    ///
    /// # Errors
    /// If a time, a zone or the quiet hours are not valid.
    pub fn make(self, name: &str) -> Result<Rule, ShapeError> {
        let condition = match self.on {
            ConditionShape::Failure(times) => Condition::Failed { times },
            ConditionShape::NothingBy(deadline) => Condition::NothingBy(Deadline {
                by: time(&deadline.time)?,
                since: deadline.since.as_deref().map(time).transpose()?,
                days: days(&deadline.days),
                zone: zone(deadline.timezone.as_deref())?,
            }),
            ConditionShape::NothingFor(span) => Condition::NothingFor(span.0),
            ConditionShape::Held(HeldShape {}) => Condition::Held,
            ConditionShape::EndpointDown(span) => Condition::Down(span.0),
            ConditionShape::Expiring(span) => Condition::Expiring(span.0),
        };
        let quiet = |quiet: QuietShape| -> Result<QuietHours, ShapeError> {
            Ok(QuietHours::new(
                time(&quiet.from)?,
                time(&quiet.to)?,
                days(&quiet.days),
                zone(quiet.timezone.as_deref())?,
                quiet.urgent.unwrap_or(Severity::Critical),
            )?)
        };
        let escalation = self.escalate.into_iter().map(|step| Escalation {
            after: step.after.0,
            targets: step.to,
        });
        Ok(Rule {
            name: name.to_owned(),
            condition,
            about: self.about,
            severity: self.severity,
            targets: self.to,
            recovery: match self.recovery {
                None | Some(RecoveryShape::Told) => Recovery::Told,
                Some(RecoveryShape::Silent) => Recovery::Silent,
            },
            repeat: self.repeat.map(|span| span.0),
            escalation: escalation.collect(),
            quiet: self.quiet.map(quiet).transpose()?,
        })
    }
}

fn time(text: &str) -> Result<Time, ShapeError> {
    text.parse()
        .map_err(|_not_one| ShapeError::Time(text.to_owned()))
}

fn zone(name: Option<&str>) -> Result<TimeZone, ShapeError> {
    name.map_or(Ok(TimeZone::UTC), |name| {
        TimeZone::get(name).map_err(|_unknown| ShapeError::Zone(name.to_owned()))
    })
}

/// These days; all of them if none is named.
#[must_use]
pub fn days(days: &[DayShape]) -> Weekdays {
    if days.is_empty() {
        return Weekdays::ALL;
    }
    Weekdays::of(days.iter().map(|day| match day {
        DayShape::Mon => Weekday::Monday,
        DayShape::Tue => Weekday::Tuesday,
        DayShape::Wed => Weekday::Wednesday,
        DayShape::Thu => Weekday::Thursday,
        DayShape::Fri => Weekday::Friday,
        DayShape::Sat => Weekday::Saturday,
        DayShape::Sun => Weekday::Sunday,
    }))
}
