//! What russh asks: who is let in, and what is done on a channel.
//!
//! Constraint: nothing here waits for a channel, as russh waits for what is here. The work of a channel is a task of
//! its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use knarr_core::time::{Clock as _, SystemClock};
use knarr_sftp::server::{Execution, ServeLimits, ServeOptions, serve};
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handle, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use crate::event::{LogIn, Method, ServeEvent};
use crate::ssh::channel::{Inbox, Sink, Source, receive};
use crate::ssh::connection::Connection;
use crate::ssh::observed::Observed;
use crate::users::{Known, Requirement, certificate};

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandlerError {
    /// The protocol of SSH.
    #[error("SSH: {source}")]
    Ssh {
        /// What is wrong.
        #[source]
        source: russh::Error,
    },
}

impl From<russh::Error> for HandlerError {
    fn from(source: russh::Error) -> Self {
        Self::Ssh { source }
    }
}

type Outcome<T> = Result<T, HandlerError>;

/// The answers for one connection.
pub(crate) struct Handler {
    connection: Arc<Connection>,
    /// Who has shown a key, and has to give a password too.
    half: Option<String>,
    known: Option<Arc<Known>>,
    /// Channels that are open and have no task yet.
    waiting: HashMap<ChannelId, Parked>,
}

/// A channel that nobody has asked anything on. What comes meanwhile is thrown away: russh would wait for room
/// in the queue of the channel, for ever and with it the whole connection.
struct Parked {
    wanted: oneshot::Sender<()>,
    task: JoinHandle<Option<Channel<Msg>>>,
}

impl Parked {
    fn new(mut channel: Channel<Msg>) -> Self {
        let (wanted, mut is_wanted) = oneshot::channel();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    // An error says that the connection has gone.
                    wanted = &mut is_wanted => return wanted.ok().map(|()| channel),
                    message = channel.wait() => {
                        message?;
                    }
                }
            }
        });
        Self { wanted, task }
    }

    /// Nothing that comes from now on is thrown away: clients do not wait for the answer to their request. Gives the
    /// channel, or nothing if it is gone.
    fn want(self) -> JoinHandle<Option<Channel<Msg>>> {
        // If nobody is there to be told, the task says so.
        self.wanted.send(()).ok();
        self.task
    }
}

fn methods() -> MethodSet {
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    methods.push(MethodKind::Password);
    methods.push(MethodKind::KeyboardInteractive);
    methods
}

/// By what somebody wants to log in.
#[derive(Clone, Copy)]
struct Proof<'a> {
    method: Method,
    /// The key that was shown, if there was one.
    key: Option<&'a PublicKey>,
}

impl<'a> Proof<'a> {
    const fn of(method: Method) -> Self {
        Self { method, key: None }
    }

    const fn key(key: &'a PublicKey) -> Self {
        Self {
            method: Method::Key,
            key: Some(key),
        }
    }
}

fn refusal() -> Auth {
    Auth::Reject {
        // The same for everyone, whatever there is: it tells nobody who is known.
        proceed_with_methods: Some(methods()),
        partial_success: false,
    }
}

fn now() -> Timestamp {
    SystemClock.now().to_calendar()
}

impl Handler {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self {
            connection,
            half: None,
            known: None,
            waiting: HashMap::new(),
        }
    }

    fn address(&self) -> IpAddr {
        self.connection.name.peer.ip()
    }

    fn tell(&self, user: &str, proof: Proof<'_>, fingerprint: Option<&str>, outcome: LogIn) {
        let of_key = proof
            .key
            .map(|key| key.fingerprint(HashAlg::Sha256).to_string());
        self.connection.shared.observer.observe(&ServeEvent::LogIn {
            session: &self.connection.name,
            user,
            method: proof.method,
            fingerprint: fingerprint.or(of_key.as_deref()),
            outcome,
        });
    }

    /// What becomes of an attempt whose proof was right or not.
    fn judge(
        &mut self,
        known: Option<&Arc<Known>>,
        name: &str,
        method: Method,
        right: bool,
    ) -> LogIn {
        let Some(known) = known else {
            return LogIn::UnknownUser;
        };
        if !right {
            return LogIn::WrongCredential;
        }
        if let Some(obstacle) = known.user.obstacle(self.address(), now()) {
            return obstacle;
        }
        match (known.user.requirement, method) {
            (Requirement::Any, _) => {}
            (Requirement::KeyAndPassword, Method::Password | Method::Question) => {
                // It is not told that the password was right.
                if self.half.as_deref() != Some(name) {
                    return LogIn::WrongCredential;
                }
            }
            (Requirement::KeyAndPassword, _) => {
                self.half = Some(name.to_owned());
                return LogIn::Partial;
            }
        }
        // Changed since it was looked up: the proof was for what is no more.
        if known.ended.is_cancelled() {
            return LogIn::WrongCredential;
        }
        let Some(presence) = known.enter() else {
            return LogIn::TooManySessions;
        };
        self.known = Some(Arc::clone(known));
        self.connection.enter(presence);
        LogIn::Accepted
    }

    fn conclude(
        &mut self,
        known: Option<&Arc<Known>>,
        name: &str,
        proof: Proof<'_>,
        right: bool,
    ) -> Auth {
        let outcome = self.judge(known, name, proof.method, right);
        self.tell(name, proof, None, outcome);
        self.answer(outcome)
    }

    /// What the client is told of it.
    fn answer(&self, outcome: LogIn) -> Auth {
        match outcome {
            LogIn::Accepted => Auth::Accept,
            LogIn::Partial => {
                let mut methods = MethodSet::empty();
                methods.push(MethodKind::Password);
                methods.push(MethodKind::KeyboardInteractive);
                Auth::Reject {
                    proceed_with_methods: Some(methods),
                    partial_success: true,
                }
            }
            _ => {
                self.connection.failures.fetch_add(1, Ordering::AcqRel);
                refusal()
            }
        }
    }

    async fn by_password(&mut self, user: &str, password: &str, method: Method) -> Auth {
        let known = self.connection.shared.users.get(user);
        let hash = known
            .as_ref()
            .and_then(|known| known.user.password.as_ref());
        let right = self.connection.shared.passwords.check(hash, password).await;
        self.conclude(known.as_ref(), user, Proof::of(method), right)
    }

    fn key_admits(&self, known: Option<&Arc<Known>>, key: &russh::keys::PublicKey) -> bool {
        let (address, now) = (self.address(), now());
        known.is_some_and(|known| {
            let mut keys = known.user.keys.iter();
            keys.any(|authorized| authorized.admits(key, address, now))
        })
    }

    /// Begins the work of a channel.
    fn start(&self, channel: Parked, session: &Session) {
        let Some(known) = self.known.clone() else {
            return;
        };
        let connection = Arc::clone(&self.connection);
        let channel = channel.want();
        let (handle, counted) = (session.handle(), connection.channels.enter());
        connection.shared.tasks.clone().spawn(async move {
            if let Ok(Some(channel)) = channel.await {
                sftp(connection, &known, channel, handle).await;
            }
            drop(counted);
        });
    }
}

/// Serves SFTP on a channel until the client or the connection ends it.
async fn sftp(connection: Arc<Connection>, known: &Known, channel: Channel<Msg>, handle: Handle) {
    let id = channel.id();
    let user = known.user.name.clone();
    let files = match known.files().await {
        Ok(files) => files,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(user, %error, cause, "the places of a user cannot be opened");
            // The connection may be gone: then there is nobody to tell.
            handle.channel_failure(id).await.ok();
            handle.close(id).await.ok();
            return;
        }
    };
    if handle.channel_success(id).await.is_err() {
        return;
    }
    let (read, write) = channel.split();
    let (inbox, write) = (Arc::new(Inbox::default()), Arc::new(write));
    connection.remember(&inbox);
    if connection.cut.is_cancelled() {
        inbox.end();
    }
    let options = ServeOptions {
        limits: ServeLimits {
            idle: connection.shared.options.idle,
            ..connection.shared.options.limits.clone()
        },
        execution: Execution::OnBlockingThread,
        ..ServeOptions::default()
    };
    let source = Source(Arc::clone(&inbox));
    let sink = Sink {
        inbox: Arc::clone(&inbox),
        channel: Arc::clone(&write),
        cut: connection.cut.clone(),
    };
    let observer = Observed::new(Arc::clone(&connection), user, Arc::clone(&files));
    let serving = serve(
        source,
        sink,
        files.file_system(),
        options,
        Arc::new(observer),
    );
    let mut serving = std::pin::pin!(serving);
    let outcome = tokio::select! {
        outcome = &mut serving => outcome,
        () = receive(read, &inbox) => serving.await,
    };
    if let Err(error) = &outcome {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::debug!(%error, cause, "an SFTP channel ended");
    }
    // As sftp-server does; who is gone does not hear it.
    write.exit_status(u32::from(outcome.is_err())).await.ok();
    write.eof().await.ok();
    write.close().await.ok();
}

impl russh::server::Handler for Handler {
    type Error = HandlerError;

    async fn auth_none(&mut self, _user: &str) -> Outcome<Auth> {
        Ok(refusal())
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Outcome<Auth> {
        Ok(self.by_password(user, password, Method::Password).await)
    }

    /// One question, for the password: for clients that know no other way to ask for one.
    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Outcome<Auth> {
        let Some(mut answers) = response else {
            return Ok(Auth::Partial {
                name: "".into(),
                instructions: "".into(),
                prompts: vec![("Password: ".into(), false)].into(),
            });
        };
        let answer = answers.next().unwrap_or_default();
        let answer = Zeroizing::new(String::from_utf8(answer.to_vec()).unwrap_or_default());
        // Two answers to one question are none.
        let answer = match answers.next() {
            None => answer.as_str(),
            Some(_) => "",
        };
        Ok(self.by_password(user, answer, Method::Question).await)
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Outcome<Auth> {
        if matches!(
            offer.algorithm,
            Algorithm::Rsa { hash: None } | Algorithm::Dsa
        ) {
            return Ok(refusal());
        }
        let users = &self.connection.shared.users;
        let known = users.get(user);
        // It is not said here whether the key is that of a certificate.
        if users.take_certificates() || self.key_admits(known.as_ref(), offer.public_key) {
            return Ok(Auth::Accept);
        }
        let proof = Proof::key(offer.public_key);
        Ok(self.conclude(known.as_ref(), user, proof, false))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Outcome<Auth> {
        let known = self.connection.shared.users.get(user);
        let right = self.key_admits(known.as_ref(), key.public_key);
        let proof = Proof::key(key.public_key);
        Ok(self.conclude(known.as_ref(), user, proof, right))
    }

    async fn auth_openssh_certificate(&mut self, user: &str, shown: &Certificate) -> Outcome<Auth> {
        let known = self.connection.shared.users.get(user);
        let right = known.as_ref().is_some_and(|known| {
            let authorities = &known.user.authorities;
            certificate::admits(shown, authorities, user, self.address(), now())
        });
        let outcome = self.judge(known.as_ref(), user, Method::Certificate, right);
        let key = shown.public_key().fingerprint(HashAlg::Sha256).to_string();
        let proof = Proof::of(Method::Certificate);
        self.tell(user, proof, Some(&key), outcome);
        Ok(self.answer(outcome))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Outcome<()> {
        let open = self.waiting.len() + self.connection.channels.now();
        if open >= self.connection.shared.options.channels {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        self.waiting.insert(channel.id(), Parked::new(channel));
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Outcome<()> {
        self.waiting.remove(&channel);
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Outcome<()> {
        match self.waiting.remove(&channel) {
            Some(channel) if name == "sftp" => self.start(channel, session),
            Some(other) => {
                self.waiting.insert(channel, other);
                session.channel_failure(channel)?;
            }
            None => session.channel_failure(channel)?,
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Outcome<()> {
        Ok(session.channel_failure(channel)?)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Outcome<()> {
        Ok(session.channel_failure(channel)?)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Outcome<()> {
        Ok(session.channel_failure(channel)?)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Outcome<()> {
        Ok(session.channel_failure(channel)?)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Outcome<()> {
        Ok(session.channel_failure(channel)?)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        session: &mut Session,
    ) -> Outcome<()> {
        Ok(session.channel_failure(channel)?)
    }
}
