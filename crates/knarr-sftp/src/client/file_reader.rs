//! Reads a file in order, with many requests ahead.
//!
//! Constraints: at most `requests_in_flight` replies wait to be taken, and never more than 16 MiB.
//! Only the oldest request is waited for; the others complete into their slots meanwhile. What the
//! server returns short is asked for again before anything behind it is handed out, so the bytes come
//! in order and without a gap, or with an error.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::client::answer::{Answer, Expect, Payload, Pending};
use crate::client::handle::next_joining;
use crate::client::operations::refused;
use crate::client::{Error, Handle};
use crate::codec::{Request, StatusCode};

/// Bytes at most that are asked for ahead.
const WINDOW_BYTES: u64 = 16 * 1024 * 1024;

/// A server that returns less than it was asked for is asked for less, but not below this.
const SHORT_BYTES: u32 = 32 * 1024;

/// Requests ahead at first, where the end is not known: a small file must not cost a whole window.
const AHEAD_AT_FIRST: usize = 2;

/// What to do at the end that the caller expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtEnd {
    /// Stop there, whatever follows.
    #[default]
    Stop,
    /// Ask for one byte more: if it is there, the file grew ([`Error::Grew`]).
    ExpectEndOfFile,
}

/// How a file is read.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Where to start, in bytes.
    pub offset: u64,
    /// Where to end, in bytes from the start of the file; `None` reads to the end of the file.
    pub end: Option<u64>,
    /// What to do at `end`.
    pub at_end: AtEnd,
    /// Bytes of a request; less if the server takes less.
    pub request_bytes: u32,
    /// Requests in flight over all connections.
    pub requests_in_flight: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            offset: 0,
            end: None,
            at_end: AtEnd::Stop,
            request_bytes: 255 * 1024,
            requests_in_flight: 64,
        }
    }
}

#[derive(Debug)]
struct Ask {
    offset: u64,
    length: u32,
    /// `None` if it has still to be sent: what a short reply left out.
    pending: Option<Pending>,
}

/// A file that is being read.
#[derive(Debug)]
pub struct FileReader {
    handles: Vec<Handle>,
    /// Where further handles come from.
    joining: Option<mpsc::Receiver<Handle>>,
    next_handle: usize,
    request_bytes: u32,
    /// Requests ahead, now and at most.
    ahead: usize,
    ahead_limit: usize,
    /// The next byte to ask for.
    ask_at: u64,
    end: Option<u64>,
    at_end: AtEnd,
    window: VecDeque<Ask>,
    /// Pieces of the oldest reply.
    ready: VecDeque<Bytes>,
    /// Where the server said that the file ends.
    end_of_file: Option<u64>,
    failure: Option<Error>,
}

impl FileReader {
    /// Reads the file that all of `handles` are open on, one handle per connection.
    ///
    /// # Errors
    ///
    /// [`Error::Misused`] without a handle.
    pub fn new(handles: Vec<Handle>, options: &ReadOptions) -> Result<Self, Error> {
        let limit = handles
            .iter()
            .map(|handle| handle.client().limits().read_bytes)
            .min();
        let limit = limit.ok_or(Error::Misused {
            operation: "read",
            needs: "a handle",
        })?;
        let request_bytes = options.request_bytes.clamp(1, limit);
        let affordable = WINDOW_BYTES / u64::from(request_bytes);
        let ahead_limit = usize::try_from(affordable).unwrap_or(usize::MAX).max(1);
        let ahead_limit = ahead_limit.min(options.requests_in_flight.max(1));
        let known_end = options.end.is_some();
        Ok(Self {
            handles,
            joining: None,
            next_handle: 0,
            request_bytes,
            ahead: if known_end {
                ahead_limit
            } else {
                AHEAD_AT_FIRST.min(ahead_limit)
            },
            ahead_limit,
            ask_at: options.offset,
            end: options.end,
            at_end: if known_end {
                options.at_end
            } else {
                AtEnd::Stop
            },
            window: VecDeque::new(),
            ready: VecDeque::new(),
            end_of_file: None,
            failure: None,
        })
    }

    /// Has the handles that come from `joining` share the work as soon as they come, so that nothing
    /// waits for connections that are still being made. They must be open on the very same file.
    #[must_use]
    pub fn joined_by(mut self, joining: mpsc::Receiver<Handle>) -> Self {
        self.joining = Some(joining);
        self
    }

    /// The next bytes, in order; `None` at the end. If the future is dropped, nothing is lost. After
    /// an error every call returns that error.
    ///
    /// # Errors
    ///
    /// [`Error::EndedEarly`] and [`Error::Grew`] if the file is not what was expected;
    /// [`Error::Status`], [`Error::ConnectionLost`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let outcome = self.advance().await;
        if let Err(error) = &outcome {
            self.failure = Some(error.clone());
            self.window.clear();
        }
        outcome
    }

    /// Gives all handles back and tells how that went.
    ///
    /// # Errors
    ///
    /// The first of [`Handle::close`].
    pub async fn close(self) -> Result<(), Error> {
        for handle in self.handles {
            handle.close().await?;
        }
        Ok(())
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            self.fill().await?;
            let Some(front) = self.window.front_mut() else {
                return Ok(None);
            };
            let Some(pending) = &mut front.pending else {
                continue;
            };
            let answer = pending.await?;
            let Some(ask) = self.window.pop_front() else {
                continue;
            };
            self.take(&ask, answer)?;
        }
    }

    fn take(&mut self, ask: &Ask, answer: Answer) -> Result<(), Error> {
        match answer {
            Answer::Data(payload) => self.take_data(ask, payload),
            Answer::Status(status) if status.code == StatusCode::Eof => self.take_end(ask),
            other => Err(refused(&other, self.subject_handle().subject("read"))),
        }
    }

    fn take_data(&mut self, ask: &Ask, payload: Payload) -> Result<(), Error> {
        if let Some(expected_bytes) = self.expected_end().filter(|end| ask.offset >= *end) {
            return Err(Error::Grew {
                path: self.path(),
                expected_bytes,
            });
        }
        match payload {
            Payload::One(bytes) => self.ready.push_back(bytes),
            Payload::Pieces(pieces) => self.ready.extend(pieces),
        }
        let length: usize = self.ready.iter().map(Bytes::len).sum();
        // The receiving task lets nothing through that is longer than what was asked for.
        let length = u32::try_from(length).unwrap_or(ask.length).min(ask.length);
        let missing = ask.length - length;
        if missing > 0 {
            self.request_bytes = self.request_bytes.min(length.max(SHORT_BYTES));
            let offset = ask.offset + u64::from(length);
            self.window.push_front(Ask {
                offset,
                length: missing,
                pending: None,
            });
        } else {
            self.ahead = (self.ahead * 2).min(self.ahead_limit);
        }
        Ok(())
    }

    fn take_end(&mut self, ask: &Ask) -> Result<(), Error> {
        match self.end {
            Some(end) if ask.offset < end => Err(Error::EndedEarly {
                path: self.path(),
                expected_bytes: end,
                actual_bytes: ask.offset,
            }),
            _ => {
                // The replies behind it are looked at, too: one with data says that the file grew.
                self.end_of_file.get_or_insert(ask.offset);
                Ok(())
            }
        }
    }

    /// Behind this byte no data may come.
    fn expected_end(&self) -> Option<u64> {
        self.end_of_file.or(self.end)
    }

    /// Sends requests while there is room; waits for room only if nothing is in flight.
    async fn fill(&mut self) -> Result<(), Error> {
        let wanted = self.request_bytes;
        while let Some(handle) = next_joining(&mut self.joining) {
            if handle.client().limits().read_bytes >= wanted {
                self.handles.push(handle);
            }
        }
        if let Some(front) = self.window.front_mut()
            && front.pending.is_none()
        {
            let handle = &self.handles[self.next_handle];
            front.pending = Some(send(handle, front.offset, front.length).await?);
        }
        while self.window.len() < self.ahead {
            let Some(length) = self.next_length() else {
                return Ok(());
            };
            let (offset, handle) = (self.ask_at, &self.handles[self.next_handle]);
            let pending = if self.window.is_empty() {
                send(handle, offset, length).await?
            } else {
                match try_send(handle, offset, length)? {
                    Some(pending) => pending,
                    None => return Ok(()),
                }
            };
            self.next_handle = (self.next_handle + 1) % self.handles.len();
            self.ask_at += u64::from(length);
            self.window.push_back(Ask {
                offset,
                length,
                pending: Some(pending),
            });
        }
        Ok(())
    }

    fn next_length(&self) -> Option<u32> {
        if self.end_of_file.is_some() {
            return None;
        }
        let left = match self.end {
            None => u64::MAX - self.ask_at,
            Some(end) if self.ask_at < end => end - self.ask_at,
            Some(end) => u64::from(self.ask_at == end && self.at_end == AtEnd::ExpectEndOfFile),
        };
        let length = u32::try_from(left)
            .unwrap_or(u32::MAX)
            .min(self.request_bytes);
        (length > 0).then_some(length)
    }

    fn path(&self) -> Bytes {
        self.subject_handle().path().clone()
    }

    fn subject_handle(&self) -> &Handle {
        self.handles
            .first()
            .expect("a reader is only made with a handle")
    }
}

async fn send(handle: &Handle, offset: u64, length: u32) -> Result<Pending, Error> {
    let request = Request::Read {
        handle: handle.bytes(),
        offset,
        length,
    };
    let expect = Expect::Data {
        asked_bytes: length,
    };
    handle
        .client()
        .submit(&request, expect, length, handle.subject("read"))
        .await
}

fn try_send(handle: &Handle, offset: u64, length: u32) -> Result<Option<Pending>, Error> {
    let request = Request::Read {
        handle: handle.bytes(),
        offset,
        length,
    };
    let expect = Expect::Data {
        asked_bytes: length,
    };
    handle
        .client()
        .try_submit(&request, expect, length, handle.subject("read"))
}
