//! Writes a file in order, with many requests in flight.
//!
//! Constraints: at most `requests_in_flight` WRITEs wait for their status, and never more than 16 MiB.
//! What counts as acknowledged is the part without gaps from the start: a record that is made of it
//! never runs ahead of the bytes. The first WRITE that fails ends the writer.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::client::answer::Pending;
use crate::client::handle::next_joining;
use crate::client::operations::finished;
use crate::client::{Error, Handle};

/// Bytes at most that wait for their acknowledgement.
const WINDOW_BYTES: u64 = 16 * 1024 * 1024;

/// Whether a file is flushed to the server's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Flushed with `fsync@openssh.com`, or an error.
    Flushed,
    /// Left to the server.
    Unflushed,
}

/// How a file is written.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Where to start, in bytes.
    pub offset: u64,
    /// Bytes of a request; less if the server takes less.
    pub request_bytes: u32,
    /// Requests in flight over all connections.
    pub requests_in_flight: usize,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            offset: 0,
            request_bytes: 128 * 1024,
            requests_in_flight: 64,
        }
    }
}

#[derive(Debug)]
struct InFlight {
    end: u64,
    pending: Pending,
}

/// A file that is being written.
#[derive(Debug)]
pub struct FileWriter {
    handles: Vec<Handle>,
    /// Where further handles come from.
    joining: Option<mpsc::Receiver<Handle>>,
    next_handle: usize,
    request_bytes: usize,
    requests_in_flight: usize,
    /// Where the bytes that are held back start.
    send_at: u64,
    acknowledged: u64,
    /// Bytes that are not sent yet: less than a request, but for a call that was dropped.
    held: VecDeque<Bytes>,
    held_bytes: usize,
    window: VecDeque<InFlight>,
    failure: Option<Error>,
}

impl FileWriter {
    /// Writes the file that all of `handles` are open on, one handle per connection.
    ///
    /// # Errors
    ///
    /// [`Error::Misused`] without a handle.
    pub fn new(handles: Vec<Handle>, options: &WriteOptions) -> Result<Self, Error> {
        let limit = handles
            .iter()
            .map(|handle| handle.client().limits().write_bytes)
            .min();
        let limit = limit.ok_or(Error::Misused {
            operation: "write",
            needs: "a handle",
        })?;
        let request_bytes = options.request_bytes.clamp(1, limit);
        let affordable = usize::try_from(WINDOW_BYTES / u64::from(request_bytes));
        let affordable = affordable.unwrap_or(usize::MAX).max(1);
        Ok(Self {
            handles,
            joining: None,
            next_handle: 0,
            request_bytes: usize::try_from(request_bytes).unwrap_or(usize::MAX),
            requests_in_flight: options.requests_in_flight.clamp(1, affordable),
            send_at: options.offset,
            acknowledged: options.offset,
            held: VecDeque::new(),
            held_bytes: 0,
            window: VecDeque::new(),
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

    /// Takes the next bytes; returns when they are sent or held back for the next request, which is
    /// when there is room in the window. If the future is dropped, the bytes count as taken.
    ///
    /// # Errors
    ///
    /// The failure of this or any earlier write, then and for ever; [`Error::ConnectionLost`].
    pub async fn write(&mut self, data: Bytes) -> Result<(), Error> {
        self.check()?;
        if !data.is_empty() {
            self.held_bytes += data.len();
            self.held.push_back(data);
        }
        let outcome = self.send_full().await;
        self.remember(outcome)
    }

    /// Everything before this byte is acknowledged by the server (not: flushed to its disk).
    #[must_use]
    pub const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The byte behind the last one that was taken.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.send_at + self.held_bytes as u64
    }

    /// The first of the handles, for what is to be asked about the file meanwhile.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        self.handles
            .first()
            .expect("a writer is only made with a handle")
    }

    /// Lets no handle join any more, and gives back those that came and were not used.
    pub async fn end_joining(&mut self) {
        let Some(mut joining) = self.joining.take() else {
            return;
        };
        joining.close();
        while let Some(handle) = joining.recv().await {
            // Nothing was written through it.
            handle.close().await.ok();
        }
    }

    /// Sends what is held back and waits until everything is acknowledged.
    ///
    /// # Errors
    ///
    /// Those of [`Self::write`].
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.check()?;
        let outcome = self.send_and_wait().await;
        self.remember(outcome)
    }

    /// Waits until everything is acknowledged, flushes the file to the disk if wanted, and gives the
    /// handles back. Returns the byte behind the last one written.
    ///
    /// # Errors
    ///
    /// Those of [`Self::write`], [`Handle::sync`] and [`Handle::close`].
    pub async fn finish(mut self, durability: Durability) -> Result<u64, Error> {
        self.flush().await?;
        // One is enough: the flush is of the file, whoever wrote it.
        if durability == Durability::Flushed {
            self.handle().sync().await?;
        }
        for handle in self.handles {
            handle.close().await?;
        }
        Ok(self.acknowledged)
    }

    fn check(&self) -> Result<(), Error> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn remember(&mut self, outcome: Result<(), Error>) -> Result<(), Error> {
        if let Err(error) = &outcome {
            self.failure = Some(error.clone());
            self.window.clear();
            self.held.clear();
            self.held_bytes = 0;
        }
        outcome
    }

    async fn send_full(&mut self) -> Result<(), Error> {
        while self.held_bytes >= self.request_bytes {
            self.send(self.request_bytes).await?;
        }
        self.reap()
    }

    async fn send_and_wait(&mut self) -> Result<(), Error> {
        self.send_full().await?;
        if self.held_bytes > 0 {
            self.send(self.held_bytes).await?;
        }
        while !self.window.is_empty() {
            self.wait_oldest().await?;
        }
        Ok(())
    }

    async fn send(&mut self, length: usize) -> Result<(), Error> {
        self.reap()?;
        while self.window.len() >= self.requests_in_flight {
            self.wait_oldest().await?;
            self.reap()?;
        }
        let wanted = u32::try_from(self.request_bytes).unwrap_or(u32::MAX);
        while let Some(handle) = next_joining(&mut self.joining) {
            if handle.client().limits().write_bytes >= wanted {
                self.handles.push(handle);
            }
        }
        let weight = u32::try_from(length).unwrap_or(u32::MAX);
        let index = self.pick_handle();
        let (held, held_bytes, send_at) = (&mut self.held, &mut self.held_bytes, &mut self.send_at);
        let offset = *send_at;
        // The bytes are taken only when they can be sent at once: nothing is lost if this is dropped.
        let take = || {
            *held_bytes -= length;
            *send_at += length as u64;
            take_front(held, length)
        };
        let pending = self.handles[index]
            .submit_write(offset, weight, take)
            .await?;
        self.next_handle = (index + 1) % self.handles.len();
        self.window.push_back(InFlight {
            end: self.send_at,
            pending,
        });
        Ok(())
    }

    /// The connection with the fewest requests in flight, in turn if they are equal.
    fn pick_handle(&self) -> usize {
        let count = self.handles.len();
        let in_turn = (0..count).map(|step| (self.next_handle + step) % count);
        in_turn
            .min_by_key(|index| self.handles[*index].client().requests_in_flight())
            .unwrap_or_default()
    }

    /// Takes those acknowledgements that have arrived.
    fn reap(&mut self) -> Result<(), Error> {
        while let Some(front) = self.window.front_mut() {
            let Some(answer) = front.pending.try_answer() else {
                return Ok(());
            };
            let end = front.end;
            self.window.pop_front();
            finished(&answer?, self.handle().subject("write"))?;
            self.acknowledged = end;
        }
        Ok(())
    }

    async fn wait_oldest(&mut self) -> Result<(), Error> {
        let Some(front) = self.window.front_mut() else {
            return Ok(());
        };
        let answer = (&mut front.pending).await;
        let end = front.end;
        self.window.pop_front();
        finished(&answer?, self.handle().subject("write"))?;
        self.acknowledged = end;
        Ok(())
    }
}

fn take_front(held: &mut VecDeque<Bytes>, length: usize) -> Vec<Bytes> {
    let mut taken = Vec::with_capacity(1);
    let mut wanted = length;
    while wanted > 0 {
        let Some(front) = held.front_mut() else { break };
        if front.len() > wanted {
            taken.push(front.split_to(wanted));
            break;
        }
        wanted -= front.len();
        taken.extend(held.pop_front());
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_cut_from_pieces_of_any_size() {
        let mut held: VecDeque<Bytes> = [&b"abc"[..], b"d", b"efgh"]
            .into_iter()
            .map(Bytes::from_static)
            .collect();
        assert_eq!(take_front(&mut held, 5).concat(), b"abcde");
        assert_eq!(take_front(&mut held, 3).concat(), b"fgh");
        assert!(held.is_empty());
    }
}
