//! `alert`: the alert rules and what lasts, and a test message.

use clap::{Args, Subcommand};
use knarr_core::alert::{Condition, Kind, Notification, Rule, Severity, Subject, stable_key};
use knarr_core::units::Span;
use knarr_core::{Clock as _, Timestamp};
use knarr_engine::outbox::notifier::Notifier;
use knarr_engine::outbox::shape::Made;
use knarr_engine::outbox::{AlertFacts, Message};
use knarr_node::{query, timestamp, v1};
use knarr_store::Store;
use knarr_store::outbox::MessageKind;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::cli::backend::{Backend, Fresh, Session, told};
use crate::cli::context::Context;
use crate::cli::look::shown_time;
use crate::cli::telling::{made, node_name};
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::config::Config;
use crate::output::{Align, Format, Output, Style};

/// Show the alert rules and what lasts, and send test messages
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  knarr alert ls\n  knarr alert test oncall")]
pub(crate) struct AlertArguments {
    #[command(subcommand)]
    verb: AlertVerb,
}

#[derive(Debug, Subcommand)]
enum AlertVerb {
    /// List the alert rules, who is told, and what lasts
    #[command(after_help = "Examples:\n  knarr alert ls\n  knarr alert ls --json")]
    Ls,
    /// Send a test message to a target, or to all targets of a rule, and print what came back
    ///
    /// It is sent now, without the queue of other messages. Exit code 4 if one was not delivered.
    #[command(after_help = "Example:\n  knarr alert test oncall")]
    Test {
        /// A target or a rule of the configuration
        name: String,
    },
}

pub(crate) fn run(
    arguments: &AlertArguments,
    context: &Context,
    output: &mut Output,
) -> CommandResult {
    match &arguments.verb {
        AlertVerb::Ls => list(context, output),
        AlertVerb::Test { name } => test(name, context, output),
    }
}

/// A rule as data.
#[derive(Serialize)]
struct Listed<'r> {
    rule: &'r str,
    when: &'r str,
    about: &'r [String],
    severity: &'r str,
    to: &'r [String],
    lasting: Vec<Lasting<'r>>,
}

/// What lasts under a rule.
#[derive(Serialize)]
struct Lasting<'r> {
    about: &'r str,
    name: &'r str,
    since: Timestamp,
}

/// A rule in the form of the protocol, without what lasts.
pub(crate) fn rule_of(rule: &Rule) -> v1::AlertRule {
    v1::AlertRule {
        name: rule.name.clone(),
        when: in_words(&rule.condition),
        about: rule.about.clone(),
        severity: rule.severity.name().to_owned(),
        to: targets(rule).into_iter().map(str::to_owned).collect(),
        lasting: Vec::new(),
    }
}

/// The rules of the node, or those of the configuration.
fn rules(context: &Context) -> Result<Vec<v1::AlertRule>, CommandError> {
    let Some(session) = session(context)? else {
        // There is no state yet: nothing lasts.
        let config = context.required_config()?;
        return Ok(config.rules.iter().map(rule_of).collect());
    };
    match &session.backend {
        Backend::Node(client) => {
            let request = v1::ListRulesRequest {};
            let listed = session.runtime.block_on(client.alerts().list(request));
            Ok(listed.map_err(told)?.into_inner().rules)
        }
        Backend::State(store) => {
            let config = context.required_config()?;
            let mut rules: Vec<_> = config.rules.iter().map(rule_of).collect();
            query::fill_rules(store, &mut rules)?;
            Ok(rules)
        }
    }
}

/// Who answers, if there is a state.
fn session(context: &Context) -> Result<Option<Session>, CommandError> {
    let state = context.state()?;
    if !state.join("knarr.db").exists() {
        context.required_config()?;
        return Ok(None);
    }
    Session::open(context, Fresh::Refuse).map(Some)
}

fn list(context: &Context, output: &mut Output) -> CommandResult {
    let rules = rules(context)?;
    let mut rows = Vec::new();
    for rule in &rules {
        let lasting = rule.lasting.iter().map(|lasting| Lasting {
            about: &lasting.about,
            name: &lasting.name,
            since: timestamp(lasting.since),
        });
        let listed = Listed {
            rule: &rule.name,
            when: &rule.when,
            about: &rule.about,
            severity: &rule.severity,
            to: &rule.to,
            lasting: lasting.collect(),
        };
        if output.format == Format::Json {
            output.json(&listed)?;
            continue;
        }
        let about = if rule.about.is_empty() {
            "all".to_owned()
        } else {
            rule.about.join(", ")
        };
        let lasting: Vec<String> = listed
            .lasting
            .iter()
            .map(|lasting| format!("{} since {}", lasting.name, shown_time(lasting.since)))
            .collect();
        let lasting = if lasting.is_empty() {
            "-".to_owned()
        } else {
            lasting.join(", ")
        };
        rows.push([
            rule.name.clone(),
            rule.when.clone(),
            about,
            rule.to.join(", "),
            lasting,
        ]);
    }
    if output.format == Format::Text {
        if rows.is_empty() {
            return Err(CommandError::usage("the configuration has no alert rules")
                .hint("write some under `alerts`; docs/alerts.md shows how"));
        }
        let headings = [
            ("RULE", Align::Left),
            ("WHEN", Align::Left),
            ("ABOUT", Align::Left),
            ("TO", Align::Left),
            ("LASTS", Align::Left),
        ];
        output.table(headings, &rows)?;
    }
    Ok(Outcome::Done)
}

fn in_words(condition: &Condition) -> String {
    match condition {
        Condition::Failed { times: 1 } => "a run failed".to_owned(),
        Condition::Failed { times } => format!("{times} runs in a row failed"),
        Condition::NothingBy(deadline) => {
            format!("nothing came by {}", deadline.by.strftime("%H:%M"))
        }
        Condition::NothingFor(longer) => format!("nothing came for {}", Span(*longer)),
        Condition::Held => "a plan is held".to_owned(),
        Condition::Down(longer) => format!("down for {}", Span(*longer)),
        Condition::Expiring(within) => format!("expires within {}", Span(*within)),
    }
}

/// Everybody whom a rule may tell.
fn targets(rule: &Rule) -> Vec<&str> {
    let escalated = rule.escalation.iter().flat_map(|step| &step.targets);
    let mut all: Vec<&str> = Vec::new();
    for target in rule.targets.iter().chain(escalated) {
        if !all.contains(&target.as_str()) {
            all.push(target);
        }
    }
    all
}

fn test(name: &str, context: &Context, output: &mut Output) -> CommandResult {
    let session = Session::open(context, Fresh::Make)?;
    let tested = match &session.backend {
        Backend::Node(client) => {
            let name = name.to_owned();
            let request = v1::TestAlertRequest { name };
            let tested = session.runtime.block_on(client.alerts().test(request));
            tested.map_err(told)?.into_inner().targets
        }
        Backend::State(store) => {
            let config = context.required_config()?;
            let testing = test_all(name, &config, context, store);
            session.runtime.block_on(testing)?
        }
    };
    let mut outcome = Outcome::Done;
    for one in &tested {
        if !one.delivered {
            outcome = Outcome::Unreachable;
        }
        print(one, output)?;
    }
    Ok(outcome)
}

/// Sends a test message to a target, or to all targets of a rule.
///
/// # Errors
/// If there is no such target and no such rule, or a target cannot be used.
pub(crate) async fn test_all(
    name: &str,
    config: &Config,
    context: &Context,
    store: &Store,
) -> Result<Vec<v1::TestedTarget>, CommandError> {
    let rule = config.rules.iter().find(|rule| rule.name == name);
    let targets = match rule {
        Some(rule) => targets(rule),
        None if config.targets.contains_key(name) => vec![name],
        None => {
            let rules = config.rules.iter().map(|rule| rule.name.as_str());
            let known: Vec<&str> = config
                .targets
                .keys()
                .map(String::as_str)
                .chain(rules)
                .collect();
            let help = crate::suggest::help(name, &known, "known targets and rules");
            let message = format!("there is no target and no rule `{name}`");
            return Err(CommandError::usage(message).hint(help));
        }
    };
    let severity = rule.map_or(Severity::Info, |rule| rule.severity);
    let mut tested = Vec::new();
    for target in targets {
        let sent = send(target, severity, config, context, store).await?;
        let (delivered, answer) = match sent {
            Ok(answer) => (true, answer),
            Err(reason) => (false, reason),
        };
        tested.push(v1::TestedTarget {
            target: target.to_owned(),
            delivered,
            answer,
        });
    }
    Ok(tested)
}

/// What became of a test message.
type Sent = Result<String, String>;

async fn send(
    target: &str,
    severity: Severity,
    config: &Config,
    context: &Context,
    store: &Store,
) -> Result<Sent, CommandError> {
    let Some(shape) = config.targets.get(target) else {
        return Ok(Err("it is not configured".to_owned()));
    };
    let node = node_name(config);
    let made = made(context, config, store, (target, shape), &node)?;
    Ok(match made {
        Made::Target(to, _options) => {
            let message = message(&node, severity, context.clock.now());
            let delivered = to.deliver(&message).await;
            delivered
                .map(|receipt| receipt.output)
                .map_err(|error| error.to_string())
        }
        Made::Notifier(options) => {
            let cancel = CancellationToken::new();
            let notifier = Notifier::new(target, &node, options, store.clone(), cancel).await;
            match notifier {
                Ok(notifier) => match notifier.test().await {
                    Ok(()) => Ok("the table knarr_events is there".to_owned()),
                    Err(error) => Err(knarr_engine::chain(&error)),
                },
                Err(error) => Err(knarr_engine::chain(&error)),
            }
        }
    })
}

fn message(node: &str, severity: Severity, now: Timestamp) -> Message {
    let notification = Notification {
        rule: "test".to_owned(),
        subject: Subject::job("test"),
        kind: Kind::Problem,
        severity,
        targets: vec![String::new()],
        since: now,
        episode: 1,
        at: now,
        due: now,
        text: format!("this is a test message of {node}: nothing is wrong"),
    };
    let written = AlertFacts::messages(&notification).into_iter().next();
    let facts = written.map(|message| message.payload).unwrap_or_default();
    Message {
        key: stable_key("test", &[&now.nanoseconds().to_le_bytes()]),
        kind: MessageKind::Alert,
        node: node.to_owned(),
        job: String::new(),
        run: None,
        created_at: now,
        facts: serde_json::from_str(&facts).unwrap_or_default(),
    }
}

fn print(tested: &v1::TestedTarget, output: &mut Output) -> Result<(), CommandError> {
    let v1::TestedTarget {
        target,
        delivered,
        answer,
    } = tested;
    if output.format == Format::Json {
        let line =
            serde_json::json!({ "target": target, "delivered": delivered, "answer": answer });
        return Ok(output.json(&line)?);
    }
    let word = if *delivered {
        output.paint(Style::Good, "delivered")
    } else {
        output.paint(Style::Bad, "not delivered")
    };
    let answer = knarr_core::path::printable(answer.as_bytes()).to_string();
    let answer = if answer.is_empty() {
        "the receiver said nothing more".to_owned()
    } else {
        answer
    };
    Ok(output.line(format!("{word}  {target}   {answer}"))?)
}
