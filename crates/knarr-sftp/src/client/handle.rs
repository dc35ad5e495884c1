//! A file that is open on the server.

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::client::answer::{Answer, Expect, Payload, Pending, RawHandle};
use crate::client::operations::{Subject, finished, refused, unsendable};
use crate::client::{Client, Error};
use crate::codec::{Attributes, ExtendedRequest, Extension, Request};

/// WRITEs that carry more are encoded outside the lock, into a buffer of their own.
const OWN_BUFFER_BYTES: usize = 8 * 1024;

/// A file or directory that is open on the server. Dropping it gives it back without waiting;
/// [`Self::close`] waits and tells how that went.
#[derive(Debug)]
pub struct Handle {
    raw: RawHandle,
    client: Client,
    path: Bytes,
}

/// A handle that has come meanwhile. Nobody is asked again once there is nobody who could send one.
pub(super) fn next_joining(joining: &mut Option<mpsc::Receiver<Handle>>) -> Option<Handle> {
    match joining.as_mut()?.try_recv() {
        Ok(handle) => Some(handle),
        Err(mpsc::error::TryRecvError::Empty) => None,
        Err(mpsc::error::TryRecvError::Disconnected) => {
            *joining = None;
            None
        }
    }
}

impl Handle {
    pub(crate) const fn new(raw: RawHandle, client: Client, path: Bytes) -> Self {
        Self { raw, client, path }
    }

    /// The connection that it belongs to.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The path that it was opened with.
    #[must_use]
    pub const fn path(&self) -> &Bytes {
        &self.path
    }

    /// Gives it back. Some servers report here that earlier writes failed.
    ///
    /// # Errors
    ///
    /// [`Error::Status`], [`Error::ConnectionLost`]. The handle is gone in any case.
    pub async fn close(self) -> Result<(), Error> {
        let Self { raw, client, path } = self;
        let subject = Subject::new("close", &path);
        let admission = client.core().admit(0).await?;
        // From here to the submission nothing waits, so the handle cannot get lost between.
        let bytes = raw.disarm();
        let request = Request::Close { handle: &bytes[..] };
        let submitted = client.core().submit(admission, &request, Expect::Status)?;
        let pending = submitted.map_err(|source| unsendable(source, subject))?;
        finished(&pending.await?, subject)
    }

    /// Reads up to `length` bytes at `offset`, in one request; the server may return fewer. `None` is
    /// the end of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Status`], [`Error::ConnectionLost`].
    pub async fn read(&self, offset: u64, length: u32) -> Result<Option<Bytes>, Error> {
        if length == 0 {
            return Ok(Some(Bytes::new()));
        }
        let length = length.min(self.client.limits().read_bytes);
        let subject = self.subject("read");
        let request = Request::Read {
            handle: &self.raw.bytes[..],
            offset,
            length,
        };
        let expect = Expect::Data {
            asked_bytes: length,
        };
        match self.client.ask(&request, expect, length, subject).await? {
            Answer::Data(Payload::One(bytes)) => Ok(Some(bytes)),
            Answer::Data(Payload::Pieces(pieces)) => Ok(Some(pieces.concat().into())),
            Answer::Status(status) if status.code == crate::codec::StatusCode::Eof => Ok(None),
            other => Err(refused(&other, subject)),
        }
    }

    /// Writes `data` at `offset`, in one request. It must not be longer than
    /// [`crate::client::TransferLimits::write_bytes`].
    ///
    /// # Errors
    ///
    /// [`Error::Unsendable`] if it is longer than a packet; [`Error::Status`],
    /// [`Error::ConnectionLost`].
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let subject = self.subject("write");
        let weight = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let request = Request::Write {
            handle: &self.raw.bytes[..],
            offset,
            data,
        };
        if data.len() < OWN_BUFFER_BYTES {
            let answer = self
                .client
                .ask(&request, Expect::Status, weight, subject)
                .await?;
            return finished(&answer, subject);
        }
        let core = self.client.core();
        let admission = core.admit(weight).await?;
        let mut packet = BytesMut::with_capacity(data.len() + 25 + self.raw.bytes.len());
        let encoded = request.encode(0, core.packet_limit(), &mut packet);
        encoded.map_err(|source| unsendable(source, subject))?;
        let pending = core.submit_packet(admission, packet, Expect::Status)?;
        finished(&pending.await?, subject)
    }

    /// Attributes of the open file.
    ///
    /// # Errors
    ///
    /// [`Error::Status`], [`Error::ConnectionLost`].
    pub async fn stat(&self) -> Result<Attributes, Error> {
        let request = Request::Fstat {
            handle: &self.raw.bytes[..],
        };
        self.client.attributes(&request, self.subject("stat")).await
    }

    /// Sets those attributes of the open file that are given; a size cuts or extends it.
    ///
    /// # Errors
    ///
    /// [`Error::Status`], [`Error::ConnectionLost`].
    pub async fn set_attributes(&self, attributes: Attributes) -> Result<(), Error> {
        let request = Request::Fsetstat {
            handle: &self.raw.bytes[..],
            attributes,
        };
        self.client
            .done(&request, self.subject("set attributes of"))
            .await
    }

    /// Flushes the file to the server's disk.
    ///
    /// # Errors
    ///
    /// [`Error::ExtensionMissing`] without `fsync@openssh.com`; [`Error::Status`],
    /// [`Error::ConnectionLost`].
    pub async fn sync(&self) -> Result<(), Error> {
        self.client.require(Extension::Fsync)?;
        let request = Request::Extended(ExtendedRequest::Fsync {
            handle: &self.raw.bytes[..],
        });
        self.client.done(&request, self.subject("flush")).await
    }

    /// Has the server copy `length` bytes, or all to the end if zero, to another open file.
    ///
    /// # Errors
    ///
    /// [`Error::ExtensionMissing`] without `copy-data`; [`Error::Misused`] if `to` belongs to another
    /// connection; [`Error::Status`], [`Error::ConnectionLost`].
    pub async fn copy_data(
        &self,
        from_offset: u64,
        length: u64,
        to: &Self,
        to_offset: u64,
    ) -> Result<(), Error> {
        self.client.require(Extension::CopyData)?;
        let subject = self.subject("copy");
        if !self.client.is_same_connection(&to.client) {
            let needs = "two handles of the same connection";
            return Err(Error::Misused {
                operation: subject.operation,
                needs,
            });
        }
        let request = Request::Extended(ExtendedRequest::CopyData {
            from: &self.raw.bytes[..],
            from_offset,
            length,
            to: &to.raw.bytes[..],
            to_offset,
        });
        self.client.done(&request, subject).await
    }

    pub(crate) fn subject(&self, operation: &'static str) -> Subject<'_> {
        Subject::new(operation, &self.path)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.raw.bytes
    }

    /// Sends a WRITE of several pieces once there is room for it, and then calls `taken`.
    pub(crate) async fn submit_write(
        &self,
        offset: u64,
        length: u32,
        take: impl FnOnce() -> Vec<Bytes> + Send,
    ) -> Result<Pending, Error> {
        let core = self.client.core();
        let admission = core.admit(length).await?;
        let submitted = core.submit_write(admission, &self.raw.bytes, offset, take())?;
        submitted.map_err(|source| unsendable(source, self.subject("write")))
    }
}
