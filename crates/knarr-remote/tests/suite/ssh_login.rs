//! Passwords, questions and passphrases.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use knarr_remote::ssh::{Authentication, Prompter, Question, Secret, SshError, SshOptions};
use knarr_testkit::asyncssh::AsyncsshServer;
use knarr_testkit::sshd::{KeyKind, Sshd};

use crate::sftp_support::{asyncssh_options, by_key, ssh_options};
use crate::ssh::{connect, refused};

/// Answers as it was told, and remembers what it was asked.
#[derive(Debug, Default)]
struct Answers {
    answers: Vec<(&'static str, &'static str)>,
    asked: std::sync::Mutex<Vec<String>>,
}

#[async_trait]
impl Prompter for Answers {
    async fn passphrase(&self, _key: &Path) -> Option<Secret> {
        Some(Secret::new("sesame"))
    }

    async fn password(&self, target: &str) -> Option<Secret> {
        self.asked.lock().unwrap().push(target.to_owned());
        Some(Secret::new("hush"))
    }

    async fn answer(&self, question: &Question) -> Option<Secret> {
        self.asked.lock().unwrap().push(question.prompt.clone());
        let (_, answer) = self
            .answers
            .iter()
            .find(|(prompt, _)| question.prompt.starts_with(prompt))?;
        Some(Secret::new(*answer))
    }
}

#[tokio::test]
async fn a_password_logs_in_and_a_wrong_one_is_named_but_not_shown() {
    let server = AsyncsshServer::builder().password("hush").start();
    connect(&asyncssh_options(&server, "hush").ssh)
        .await
        .unwrap();
    let prompter = Arc::new(Answers::default());
    let mut options = asyncssh_options(&server, "").ssh;
    let asked: Arc<dyn Prompter> = Arc::<Answers>::clone(&prompter);
    options.authentication = Authentication {
        prompter: Some(asked),
        ..Authentication::default()
    };
    connect(&options).await.unwrap();
    assert_eq!(*prompter.asked.lock().unwrap(), [options.target()]);

    let error = refused(&asyncssh_options(&server, "not it").ssh).await;
    let SshError::Refused { tried, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*tried, ["password"]);
    assert!(!format!("{error} {error:?}").contains("not it"));
}

#[tokio::test]
async fn questions_are_answered_by_the_password_or_by_who_is_asked() {
    let single = AsyncsshServer::builder()
        .interactive("Password", "hush")
        .start();
    connect(&asyncssh_options(&single, "hush").ssh)
        .await
        .unwrap();
    let error = refused(&asyncssh_options(&single, "no").ssh).await;
    assert!(
        error.to_string().contains("keyboard-interactive"),
        "{error}"
    );

    let many = AsyncsshServer::builder()
        .interactive("Code", "42")
        .interactive("Colour", "blue")
        .start();
    let answers = Answers {
        answers: vec![("Code", "42"), ("Colour", "blue")],
        ..Answers::default()
    };
    let prompter: Arc<dyn Prompter> = Arc::new(answers);
    let mut options = asyncssh_options(&many, "unused").ssh;
    options.authentication.prompter = Some(prompter);
    connect(&options).await.unwrap();
    options.authentication.prompter = None;
    let error = refused(&options).await;
    assert!(error.to_string().contains("no answer"), "{error}");
}

#[tokio::test]
async fn an_encrypted_key_asks_for_its_passphrase() {
    let server = Sshd::start();
    let key = server
        .add_client_key("locked", KeyKind::Ed25519, "sesame")
        .unwrap();
    let prompter: Arc<dyn Prompter> = Arc::new(Answers::default());
    let authentication = Authentication {
        prompter: Some(prompter),
        ..by_key(key)
    };
    connect(&SshOptions {
        authentication,
        ..ssh_options(&server)
    })
    .await
    .unwrap();
}
