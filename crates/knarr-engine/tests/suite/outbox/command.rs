//! Commands: run as they stand in the configuration file, byte for byte, and never outlived.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::record::Action;
use knarr_engine::outbox::shape::{HooksShape, RuleShape};
use knarr_engine::outbox::{
    CommandOptions, CommandTarget, LocalFile, Message, Target as _, TargetError,
};
use knarr_store::outbox::{MessageKind, NewMessage, OutboxFilter};
use knarr_store::runs::RunId;

use super::support::{Office, START, facts, message, until};

fn command(run: &[&str], limit: Duration) -> CommandTarget {
    let options = CommandOptions {
        run: run.iter().map(|&part| part.to_owned()).collect(),
        environment: BTreeMap::new(),
        directory: None,
        limit,
    };
    CommandTarget::new(
        options,
        &LocalFile::read_from("/etc/knarr/knarr.yaml".into()),
    )
    .unwrap()
}

const LONG: Duration = Duration::from_secs(120);

async fn stored(office: &Office, new: NewMessage) -> Message {
    let key = new.key.clone();
    office.enqueue(vec![new]).await;
    let rows = office.rows(OutboxFilter::All);
    let row = rows.iter().find(|row| row.message.key == key).unwrap();
    Message::of(row, "edge-1")
}

fn variables(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let pairs = bytes
        .split(|byte| *byte == 0)
        .filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=').unwrap();
            (pair[..at].to_vec(), pair[at + 1..].to_vec())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn h05_evil_names_reach_a_command_byte_for_byte_and_no_shell() {
    let office = Office::new();
    let canary = office.path("canary");
    let (arguments, environment) = (office.path("arguments"), office.path("environment"));
    let script = format!(
        "printf '%s\\0' \"$@\" > {}\ncat /proc/$$/environ > {}",
        arguments.display(),
        environment.display()
    );
    let script = office.script("recorder", &script);
    let target = command(
        &[&script, "--file={path}", "--", "{path}", "{job}:{size}"],
        LONG,
    );
    let touch = format!("touch {}", canary.display());
    let touch = touch.replace('/', "\u{2044}");
    let names: Vec<Vec<u8>> = [
        format!("$({touch})"),
        format!("`{touch}`"),
        format!("; {touch}"),
        format!("| {touch}"),
        "--checkpoint-action=exec".to_owned(),
        "-oProxyCommand=x".to_owned(),
        "line\nbreak".to_owned(),
        "%s%n{path}{{7*7}}${jndi:ldap}".to_owned(),
        "spaces  and 'quotes\" *".to_owned(),
    ]
    .into_iter()
    .map(String::into_bytes)
    .chain([b"not \xff utf-8".to_vec()])
    .collect();
    for name in names {
        let mut new = facts(&name).message("sensors", RunId(7), "erp");
        new.key.push('x');
        let message = stored(&office, new).await;
        target.deliver(&message).await.unwrap();
        let expected = [
            b"--file=".as_slice(),
            &name,
            b"\0--\0",
            &name,
            b"\0sensors:10\0",
        ];
        assert_eq!(std::fs::read(&arguments).unwrap(), expected.concat());
        let variables = variables(&environment);
        assert_eq!(variables[b"KNARR_PATH".as_slice()], name);
        let destination = [b"/out/".as_slice(), &name].concat();
        assert_eq!(variables[b"KNARR_DESTINATION".as_slice()], destination);
    }
    assert!(!canary.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn h05_a_name_does_not_become_an_option() {
    let office = Office::new();
    let canary = office.path("ran");
    let script = office.script("run", &format!("touch {}", canary.display()));
    let message = stored(&office, message("-rf", "sensors", "erp")).await;
    let refused = command(&[&script, "{path}"], LONG).deliver(&message).await;
    assert!(
        matches!(refused, Err(TargetError::Refused { .. })),
        "{refused:?}"
    );
    assert!(!canary.exists());
    for run in [["--", "{path}"], ["-f", "./{path}"], ["x", "{destination}"]] {
        let run = [script.as_str(), run[0], run[1]];
        command(&run, LONG).deliver(&message).await.unwrap();
    }
    assert!(canary.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn h25_a_command_gets_a_clean_environment() {
    let office = Office::new();
    let environment = office.path("environment");
    let script = format!("cat /proc/$$/environ > {}", environment.display());
    let script = office.script("recorder", &script);
    let message = stored(&office, message("a", "sensors", "erp")).await;
    command(&[&script], LONG).deliver(&message).await.unwrap();
    // The test runner sets many more of its own.
    assert!(std::env::vars().any(|(name, _)| name.starts_with("CARGO")));
    let allowed = |name: &[u8]| {
        [b"PATH".as_slice(), b"HOME", b"LANG"].contains(&name) || name.starts_with(b"KNARR_")
    };
    for name in variables(&environment).keys() {
        assert!(allowed(name), "{}", String::from_utf8_lossy(name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k12_a_message_can_never_choose_a_command() {
    let office = Office::new();
    let (canary, script) = (office.path("canary"), office.script("hook", "exit 0"));
    let path = canary.to_str().unwrap();
    let payload = serde_json::json!({
        "run": ["/usr/bin/touch", path],
        "command": { "run": ["/usr/bin/touch", path] },
        "path": format!("/usr/bin/touch {path}"),
        "PATH": "/tmp",
    });
    let new = NewMessage {
        key: "k".to_owned(),
        target: "erp".to_owned(),
        job: "sensors".to_owned(),
        run: None,
        kind: MessageKind::AfterFile,
        payload: payload.to_string(),
        due_at: START,
    };
    let message = stored(&office, new).await;
    command(&[&script, "{path}", "{run}"], LONG)
        .deliver(&message)
        .await
        .unwrap();
    assert!(!canary.exists());
    // What is added over a network names targets and has no place for more.
    let hooks = r#"{"after_file": [{"command": {"run": ["/usr/bin/touch", "x"]}}]}"#;
    assert!(serde_json::from_str::<HooksShape>(hooks).is_err());
    let hooks = r#"{"command": {"run": ["/usr/bin/touch", "x"]}}"#;
    assert!(serde_json::from_str::<HooksShape>(hooks).is_err());
    let rule = r#"{"on": {"failure": 1}, "to": ["ops"], "command": {"run": ["/bin/true"]}}"#;
    assert!(serde_json::from_str::<RuleShape>(rule).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_a_hook_that_hangs_is_killed_with_its_children_and_tried_again() {
    let office = Office::new();
    let pids = office.path("pids");
    let script = format!(
        "sleep 1000 & echo $! >> {0}\necho $$ >> {0}\necho waiting for ever >&2\nsleep 1000",
        pids.display()
    );
    let script = office.script("hangs", &script);
    let target = command(&[&script], Duration::from_secs(2));
    let running = office.start(&[("erp", Arc::new(target))]);
    office.enqueue(vec![message("a", "sensors", "erp")]).await;
    running.waker.wake();
    until("it was given up", || {
        office.rows(OutboxFilter::All)[0].attempts == 1
    })
    .await;
    running.stop().await;
    let row = office.rows(OutboxFilter::Waiting).remove(0);
    let error = row.last_error.unwrap();
    assert!(
        error.contains("was killed after 2s: waiting for ever"),
        "{error}"
    );
    assert_all_gone(&pids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_a_hook_that_is_under_way_when_the_node_stops_leaves_nothing_running() {
    let office = Office::new();
    let pids = office.path("pids");
    let script = format!(
        "sleep 1000 & echo $! >> {0}\necho $$ >> {0}\nsleep 1000",
        pids.display()
    );
    let script = office.script("hangs", &script);
    let running = office.start(&[("erp", Arc::new(command(&[&script], LONG)))]);
    office.enqueue(vec![message("a", "sensors", "erp")]).await;
    running.waker.wake();
    let lines = || {
        std::fs::read_to_string(&pids)
            .unwrap_or_default()
            .lines()
            .count()
    };
    until("it runs", || lines() == 2).await;
    running.stop().await;
    assert_all_gone(&pids).await;
    assert_eq!(office.rows(OutboxFilter::Waiting)[0].attempts, 0);
}

async fn assert_all_gone(pids: &Path) {
    let pids = std::fs::read_to_string(pids).unwrap();
    for pid in pids.lines() {
        // A process that was killed and not yet waited for is gone, too.
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat
                .rsplit_once(") ")
                .map(|(_, rest)| rest.starts_with('Z'));
            state.unwrap_or(true)
        };
        until(&format!("process {pid} is gone"), is_gone).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_a_command_that_leaves_children_behind_is_done_when_it_ends() {
    let office = Office::new();
    let pids = office.path("pids");
    let script = format!("sleep 1000 & echo $! >> {}\necho done", pids.display());
    let script = office.script("leaves", &script);
    let message = stored(&office, message("a", "sensors", "erp")).await;
    let receipt = command(&[&script], LONG).deliver(&message).await.unwrap();
    assert_eq!(receipt.output, "done");
    assert_all_gone(&pids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k10_of_endless_output_the_end_is_kept() {
    let office = Office::new();
    let script = "head -c 20000000 /dev/zero | tr '\\0' x >&2\necho the end >&2\nexit 3";
    let script = office.script("talks", script);
    let message = stored(&office, message("a", "sensors", "erp")).await;
    let error = command(&[&script], LONG)
        .deliver(&message)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("ended with 3"), "{text}");
    assert!(
        text.ends_with("the end") && text.len() < 5_000,
        "{}",
        text.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_a_command_that_fails_half_way_through_1000_messages_gets_them_all_in_order() {
    let office = Office::new();
    let (log, mended) = (office.path("log"), office.path("mended"));
    // Does its work and then fails: what is told twice is told with the same key.
    let script = format!(
        "echo $KNARR_KEY $KNARR_PATH >> {log}\n\
         [ -e {mended} ] || [ $(wc -l < {log}) -le 500 ] || {{ echo full >&2; exit 1; }}",
        log = log.display(),
        mended = mended.display()
    );
    let script = office.script("half", &script);
    let running = office.start(&[("erp", Arc::new(command(&[&script], LONG)))]);
    let names: Vec<String> = (0..1_000).map(|number| format!("f{number:04}")).collect();
    let messages: Vec<NewMessage> = names.iter().map(|n| message(n, "sensors", "erp")).collect();
    let keys: Vec<String> = messages.iter().map(|message| message.key.clone()).collect();
    office.enqueue(messages).await;
    running.waker.wake();
    let failed = || office.rows(OutboxFilter::Waiting)[0].attempts == 1;
    until("it fails", failed).await;
    assert_eq!(office.rows(OutboxFilter::All).len(), 500);
    std::fs::write(&mended, "").unwrap();
    office
        .pass_until(&running, "all are done", || {
            office.rows(OutboxFilter::All).is_empty()
        })
        .await;
    running.stop().await;
    let log = std::fs::read_to_string(&log).unwrap();
    let told: Vec<&str> = log
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(told.len(), 1_001, "one was repeated");
    assert_eq!(told[500], told[501]);
    let mut seen = BTreeSet::new();
    let once: Vec<&str> = told.into_iter().filter(|key| seen.insert(*key)).collect();
    assert_eq!(once, keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_missing_is_a_matter_of_the_target() {
    let office = Office::new();
    let message = stored(&office, message("a", "sensors", "erp")).await;
    let error = command(&["/nonexistent/import"], LONG)
        .deliver(&message)
        .await;
    assert!(
        matches!(error, Err(TargetError::Unreachable { .. })),
        "{error:?}"
    );
}

#[test]
fn k8_the_key_of_a_hook_is_that_of_the_delivery() {
    let key = |facts: knarr_engine::outbox::FileFacts| facts.message("a", RunId(1), "erp").key;
    let one = facts(b"a");
    assert_eq!(key(one.clone()), key(one.clone()));
    let others = [
        knarr_engine::outbox::FileFacts {
            size: 11,
            ..one.clone()
        },
        knarr_engine::outbox::FileFacts {
            at: START.after(Duration::from_nanos(1)),
            ..one.clone()
        },
        knarr_engine::outbox::FileFacts {
            action: Action::Updated.name().to_owned(),
            ..one.clone()
        },
    ];
    for other in others {
        assert_ne!(key(other), key(one.clone()));
    }
    assert_ne!(one.message("a", RunId(1), "ops").key, key(one.clone()));
    assert_ne!(one.message("b", RunId(1), "erp").key, key(one));
}

#[test]
fn names_are_not_read_as_bytes_of_another_kind() {
    let name = std::ffi::OsStr::from_bytes(b"base16:00");
    let facts = facts(name.as_bytes());
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(
        serde_json::from_str::<knarr_engine::outbox::FileFacts>(&text).unwrap(),
        facts
    );
}
