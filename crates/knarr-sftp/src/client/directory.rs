//! Listing a directory, with a few requests ahead.

use std::collections::VecDeque;

use crate::client::answer::{Answer, Expect, Pending};
use crate::client::operations::{NAMES_WEIGHT, refused};
use crate::client::{Error, Handle};
use crate::codec::{NameEntry, Request, StatusCode};

/// Requests that are sent ahead at first: a small directory then takes one round trip, not two.
const AHEAD_AT_FIRST: usize = 2;

/// Requests that are sent ahead at most.
const AHEAD: usize = 8;

/// How a directory is listed.
#[derive(Debug, Clone)]
pub struct DirectoryOptions {
    /// Names at most. A server that invents names without end is cut off here.
    pub name_limit: u64,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            name_limit: 50_000_000,
        }
    }
}

/// A directory that is being listed.
#[derive(Debug)]
pub struct Directory {
    handle: Handle,
    options: DirectoryOptions,
    in_flight: VecDeque<Pending>,
    ahead: usize,
    seen_names: u64,
    ended: bool,
}

impl Directory {
    pub(crate) const fn new(handle: Handle, options: DirectoryOptions) -> Self {
        let in_flight = VecDeque::new();
        Self {
            handle,
            options,
            in_flight,
            ahead: AHEAD_AT_FIRST,
            seen_names: 0,
            ended: false,
        }
    }

    /// The next names, in the server's order, with `.` and `..` if the server lists them; `None` at
    /// the end. Only `None` says that the listing is complete. Names are slices of the packet: copy
    /// those that are kept. None of them has been checked: see [`NameEntry::is_plain`].
    ///
    /// If the future is dropped, nothing is lost: the next call goes on.
    ///
    /// # Errors
    ///
    /// [`Error::DirectoryTooLarge`] behind the limit; [`Error::Status`], [`Error::ConnectionLost`].
    pub async fn next_batch(&mut self) -> Result<Option<Vec<NameEntry>>, Error> {
        while !self.ended {
            self.ask_ahead().await?;
            let Some(front) = self.in_flight.front_mut() else {
                self.ended = true;
                break;
            };
            let answer = front.await;
            self.in_flight.pop_front();
            match answer? {
                Answer::Names(names) => return self.take(names),
                // The requests behind this one get the same answer, or what this one missed: they
                // are looked at before the listing counts as complete. No more are sent.
                Answer::Status(status) if status.code == StatusCode::Eof => self.ahead = 0,
                other => {
                    self.ended = true;
                    return Err(refused(&other, self.handle.subject("list")));
                }
            }
        }
        Ok(None)
    }

    /// Every name at once, `.` and `..` included.
    ///
    /// # Errors
    ///
    /// Those of [`Self::next_batch`].
    pub async fn collect(mut self) -> Result<Vec<NameEntry>, Error> {
        let mut names = Vec::new();
        while let Some(batch) = self.next_batch().await? {
            names.extend(batch);
        }
        Ok(names)
    }

    async fn ask_ahead(&mut self) -> Result<(), Error> {
        while self.in_flight.len() < self.ahead {
            let request = Request::Readdir {
                handle: self.handle.bytes(),
            };
            let subject = self.handle.subject("list");
            let client = self.handle.client();
            let pending = if self.in_flight.is_empty() {
                client
                    .submit(&request, Expect::Names, NAMES_WEIGHT, subject)
                    .await?
            } else {
                match client.try_submit(&request, Expect::Names, NAMES_WEIGHT, subject)? {
                    Some(pending) => pending,
                    None => return Ok(()),
                }
            };
            self.in_flight.push_back(pending);
        }
        Ok(())
    }

    fn take(&mut self, names: Vec<NameEntry>) -> Result<Option<Vec<NameEntry>>, Error> {
        if names.is_empty() {
            // Not foreseen, but some servers end like this; asking again would never end.
            self.ended = true;
            return Ok(None);
        }
        self.seen_names += names.len() as u64;
        if self.seen_names > self.options.name_limit {
            self.ended = true;
            let path = self.handle.path().clone();
            return Err(Error::DirectoryTooLarge {
                path,
                limit: self.options.name_limit,
            });
        }
        self.ahead = (self.ahead * 2).min(AHEAD);
        Ok(Some(names))
    }
}
