//! How the bytes travel: any stream will do, and a channel that hands out whole buffers avoids a copy.

use std::future::Future;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Room that is offered to a reader, in bytes. Buffers are shared with what was read before while
/// at least a quarter of it is left.
const READ_BYTES: usize = 128 * 1024;

/// Where the packets of the server come from, in pieces of any size.
pub trait PacketSource: Send {
    /// The next bytes, as they come: packets may be cut anywhere. `None` is the end.
    ///
    /// What is returned is kept as it is: payloads of replies are slices of it.
    fn next(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;
}

/// Where the packets of the client go.
pub trait PacketSink: Send {
    /// Sends the next bytes: several small packets, or a part of a large one. Returns when the stream has
    /// taken them, so that what waits stays with the client, where it is counted.
    fn send(&mut self, packets: Bytes) -> impl Future<Output = io::Result<()>> + Send;
}

/// The packets of an [`AsyncRead`].
#[derive(Debug)]
pub struct StreamSource<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R> StreamSource<R> {
    /// Reads from `reader`, which needs no buffer of its own.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
        }
    }
}

impl<R: AsyncRead + Unpin + Send> PacketSource for StreamSource<R> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.buffer.capacity() < READ_BYTES / 4 {
            self.buffer = BytesMut::with_capacity(READ_BYTES);
        }
        let read_bytes = self.reader.read_buf(&mut self.buffer).await?;
        Ok((read_bytes > 0).then(|| self.buffer.split().freeze()))
    }
}

/// Packets into an [`AsyncWrite`].
#[derive(Debug)]
pub struct StreamSink<W> {
    writer: W,
}

impl<W> StreamSink<W> {
    /// Writes to `writer`, which needs no buffer of its own.
    pub const fn new(writer: W) -> Self {
        Self { writer }
    }
}

impl<W: AsyncWrite + Unpin + Send> PacketSink for StreamSink<W> {
    async fn send(&mut self, packets: Bytes) -> io::Result<()> {
        self.writer.write_all(&packets).await?;
        self.writer.flush().await
    }
}
