//! An HTTP/1.1 proxy for S3 that answers, drops, cuts and delays by rule.
//!
//! Constraints: one thread per connection, one request at a time on it, bodies streamed (nothing
//! larger than a head is held). The `Host` header passes unchanged, since S3 signatures cover it.
//! `Expect: 100-continue` is answered here, so that a rule can still refuse the body.

mod message;

use std::io::{self, BufReader, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use message::{Framing, Head, copy_body, read_head};

use crate::TestkitError;
use crate::error::must;
use crate::proxy::reset;

/// Most requests that the log keeps.
const LOG_LIMIT: usize = 100_000;

/// What a matching [`Rule`] does to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAction {
    /// Answers itself; the server never sees the request.
    Answer(Answer),
    /// Lets the server do it, then gives this answer instead of the server's.
    AnswerAfterwards(Answer),
    /// Resets the connection as soon as the head of the request is there.
    DropRequest,
    /// Resets both sides after so many bytes of the request's body.
    CutRequest {
        /// Bytes of the body that the server still gets.
        after_body_bytes: u64,
    },
    /// Lets the server do it, then resets the connection instead of answering.
    DropResponse,
    /// Resets the connection after so many bytes of the answer's body.
    CutResponse {
        /// Bytes of the body that the client still gets.
        after_body_bytes: u64,
    },
    /// Waits, then forwards.
    Delay(Duration),
    /// Takes the request and never answers.
    Hang,
}

/// An answer of the proxy itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers besides `Content-Length`.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Answer {
    /// An S3 error in XML with this status.
    #[must_use]
    pub fn s3_error(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
             <Message>from the fault proxy</Message><RequestId>knarr</RequestId></Error>"
        );
        let headers = vec![("Content-Type".to_owned(), "application/xml".to_owned())];
        Self {
            status,
            headers,
            body,
        }
    }

    /// 503 `SlowDown`.
    #[must_use]
    pub fn slow_down() -> Self {
        Self::s3_error(503, "SlowDown")
    }

    /// 500 `InternalError`.
    #[must_use]
    pub fn internal_error() -> Self {
        Self::s3_error(500, "InternalError")
    }

    /// 429 `TooManyRequests`, with `Retry-After` in seconds.
    #[must_use]
    pub fn too_many_requests(retry_after: u32) -> Self {
        let mut answer = Self::s3_error(429, "TooManyRequests");
        answer
            .headers
            .push(("Retry-After".to_owned(), retry_after.to_string()));
        answer
    }

    /// 200 with an error in the body: what completing a multipart upload may answer.
    #[must_use]
    pub fn ok_with_error() -> Self {
        Self::s3_error(200, "InternalError")
    }

    /// 404 `NoSuchUpload`.
    #[must_use]
    pub fn no_such_upload() -> Self {
        Self::s3_error(404, "NoSuchUpload")
    }
}

/// Which requests an action is for. Rules are tried in the order they were given; the first that
/// matches and is due decides.
#[derive(Debug, Clone)]
pub struct Rule {
    method: Option<String>,
    containing: Vec<String>,
    not_containing: Vec<String>,
    first: u64,
    times: u64,
    seen: u64,
    action: HttpAction,
}

impl Rule {
    /// For every request, the first time only.
    #[must_use]
    pub fn any(action: HttpAction) -> Self {
        Self {
            method: None,
            containing: Vec::new(),
            not_containing: Vec::new(),
            first: 1,
            times: 1,
            seen: 0,
            action,
        }
    }

    /// For requests with this method, the first time only.
    #[must_use]
    pub fn on(method: &str, action: HttpAction) -> Self {
        Self {
            method: Some(method.to_owned()),
            ..Self::any(action)
        }
    }

    /// Only if the path or the query holds this text.
    #[must_use]
    pub fn containing(mut self, text: &str) -> Self {
        self.containing.push(text.to_owned());
        self
    }

    /// Only if the path and the query do not hold this text.
    #[must_use]
    pub fn not_containing(mut self, text: &str) -> Self {
        self.not_containing.push(text.to_owned());
        self
    }

    /// From the n-th matching request on, counted from 1.
    #[must_use]
    pub fn nth(mut self, first: u64) -> Self {
        self.first = first;
        self
    }

    /// For so many matching requests in a row.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// For all matching requests.
    #[must_use]
    pub fn always(mut self) -> Self {
        self.times = u64::MAX;
        self
    }

    fn is_due(&mut self, head: &Head) -> bool {
        let target = &head.target;
        let matches = self
            .method
            .as_ref()
            .is_none_or(|method| *method == head.method)
            && self.containing.iter().all(|text| target.contains(text))
            && !self.not_containing.iter().any(|text| target.contains(text));
        if !matches {
            return false;
        }
        self.seen += 1;
        self.seen >= self.first && self.seen - self.first < self.times
    }
}

/// One request that came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Bytes of the body that went to the server.
    pub body_bytes: u64,
    /// Status that the client got; `None` if it got no answer.
    pub status: Option<u16>,
    /// Whether a rule interfered.
    pub faulty: bool,
}

/// A running HTTP proxy on loopback.
#[derive(Debug)]
pub struct HttpFaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    stopping: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    requests: Vec<Request>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpFaultProxy {
    /// Starts a proxy to this address.
    ///
    /// # Panics
    ///
    /// If no loopback port can be had.
    #[must_use]
    #[track_caller]
    pub fn start(upstream: SocketAddr) -> Self {
        must(Self::try_start(upstream))
    }

    /// Starts a proxy to this address.
    ///
    /// # Errors
    ///
    /// If no loopback port can be had.
    pub fn try_start(upstream: SocketAddr) -> Result<Self, TestkitError> {
        let spawn_error = |source| TestkitError::Spawn {
            program: "the HTTP fault proxy".to_owned(),
            source,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(spawn_error)?;
        let address = listener.local_addr().map_err(spawn_error)?;
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared {
            upstream,
            stopping: AtomicBool::new(false),
            state,
        });
        let acceptor = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("http-fault-proxy".to_owned())
                .spawn(move || accept_all(&listener, &shared))
                .map_err(spawn_error)?
        };
        Ok(Self {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, to be used as the endpoint.
    #[must_use]
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a rule.
    pub fn rule(&self, rule: Rule) {
        self.shared.lock().rules.push(rule);
    }

    /// Removes all rules.
    pub fn clear_rules(&self) {
        self.shared.lock().rules.clear();
    }

    /// The requests so far (the first 100,000).
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// The requests so far with this method whose path or query holds this text.
    #[must_use]
    pub fn requests_like(&self, method: &str, containing: &str) -> Vec<Request> {
        let like =
            |request: &Request| request.method == method && request.target.contains(containing);
        self.requests().into_iter().filter(like).collect()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.lock().requests.clear();
    }
}

impl Drop for HttpFaultProxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        TcpStream::connect(self.address).ok();
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, _)) = listener.accept() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(shared);
        // An error of a connection is what the client sees of it: nothing to report here.
        let serve = move || serve(client, &shared).unwrap_or(());
        if thread::Builder::new()
            .name("http-fault".to_owned())
            .spawn(serve)
            .is_err()
        {
            return;
        }
    }
}

/// One connection of a client and its connection to the server.
struct Exchange<'a> {
    client: BufReader<TcpStream>,
    server: BufReader<TcpStream>,
    shared: &'a Shared,
}

fn serve(client: TcpStream, shared: &Shared) -> io::Result<()> {
    let server = match TcpStream::connect_timeout(&shared.upstream, Duration::from_secs(10)) {
        Ok(server) => server,
        Err(error) => {
            reset(&client);
            return Err(error);
        }
    };
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client, server) = (BufReader::new(client), BufReader::new(server));
    let mut exchange = Exchange {
        client,
        server,
        shared,
    };
    while let Some(head) = read_head(&mut exchange.client)? {
        let action = {
            let mut state = shared.lock();
            state
                .rules
                .iter_mut()
                .find_map(|rule| rule.is_due(&head).then(|| rule.action.clone()))
        };
        let mut request = Request {
            method: head.method.clone(),
            target: head.target.clone(),
            body_bytes: 0,
            status: None,
            faulty: action.is_some(),
        };
        let outcome = exchange.handle(&head, action, &mut request);
        let mut state = shared.lock();
        if state.requests.len() < LOG_LIMIT {
            state.requests.push(request);
        }
        drop(state);
        if outcome.is_err() {
            reset(exchange.client.get_ref());
            reset(exchange.server.get_ref());
            return outcome;
        }
        if head.closes {
            exchange.client.get_ref().shutdown(Shutdown::Write)?;
            return Ok(());
        }
    }
    Ok(())
}

impl Exchange<'_> {
    /// Handles one request; an error means that the connection is to be reset.
    fn handle(
        &mut self,
        head: &Head,
        action: Option<HttpAction>,
        request: &mut Request,
    ) -> io::Result<()> {
        let cut = || Err(io::ErrorKind::ConnectionReset.into());
        match action {
            None => self.forward(head, request, None),
            Some(HttpAction::Delay(duration)) => {
                thread::sleep(duration);
                self.forward(head, request, None)
            }
            Some(HttpAction::Answer(answer)) => {
                self.allow_body(head)?;
                copy_body(&mut self.client, head.framing, None, &mut io::sink())?;
                self.answer(head, &answer, request)
            }
            Some(HttpAction::AnswerAfterwards(answer)) => {
                self.send_request(head, request, None)?;
                self.receive_response(head, &mut io::sink(), None)?;
                self.answer(head, &answer, request)
            }
            Some(HttpAction::DropRequest) => cut(),
            Some(HttpAction::CutRequest { after_body_bytes }) => {
                self.send_request(head, request, Some(after_body_bytes))?;
                cut()
            }
            Some(HttpAction::DropResponse) => {
                self.send_request(head, request, None)?;
                self.receive_response(head, &mut io::sink(), None)?;
                cut()
            }
            Some(HttpAction::CutResponse { after_body_bytes }) => {
                self.forward(head, request, Some(after_body_bytes))?;
                cut()
            }
            Some(HttpAction::Hang) => {
                self.allow_body(head)?;
                copy_body(&mut self.client, head.framing, None, &mut io::sink())?;
                // Until the client gives up and closes, or the proxy ends.
                let mut byte = [0];
                self.client
                    .get_ref()
                    .set_read_timeout(Some(Duration::from_millis(50)))?;
                while !self.shared.stopping.load(Ordering::SeqCst) {
                    match self.client.get_ref().peek(&mut byte) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        _ => break,
                    }
                }
                cut()
            }
        }
    }

    fn allow_body(&mut self, head: &Head) -> io::Result<()> {
        if head.expects_continue {
            self.client
                .get_mut()
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        Ok(())
    }

    fn answer(&mut self, head: &Head, answer: &Answer, request: &mut Request) -> io::Result<()> {
        let mut text = format!("HTTP/1.1 {} from-the-fault-proxy\r\n", answer.status);
        for (name, value) in &answer.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n", answer.body.len()));
        if head.method != "HEAD" {
            text.push_str(&answer.body);
        }
        request.status = Some(answer.status);
        self.client.get_mut().write_all(text.as_bytes())
    }

    fn send_request(
        &mut self,
        head: &Head,
        request: &mut Request,
        limit: Option<u64>,
    ) -> io::Result<()> {
        self.allow_body(head)?;
        let server = self.server.get_mut();
        server.write_all(&head.bytes)?;
        request.body_bytes = copy_body(&mut self.client, head.framing, limit, server)?;
        Ok(())
    }

    fn forward(
        &mut self,
        head: &Head,
        request: &mut Request,
        limit: Option<u64>,
    ) -> io::Result<()> {
        self.send_request(head, request, None)?;
        let mut client = self.client.get_ref().try_clone()?;
        let response = self.receive_response(head, &mut client, limit)?;
        request.status = Some(response.status);
        let ends = response.closes || response.framing == Framing::UntilClose;
        if limit.is_none() && ends && !head.closes {
            // Orderly, not a reset: the client may still be reading.
            client.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    fn receive_response(
        &mut self,
        head: &Head,
        to: &mut impl io::Write,
        limit: Option<u64>,
    ) -> io::Result<Head> {
        loop {
            let response = read_head(&mut self.server)?
                .ok_or(io::ErrorKind::UnexpectedEof)?
                .into_response(head);
            // Interim answers are for us: the client got its own from us.
            if response.status < 200 {
                continue;
            }
            to.write_all(&response.bytes)?;
            copy_body(&mut self.server, response.framing, limit, to)?;
            return Ok(response);
        }
    }
}
