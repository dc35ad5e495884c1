//! As much of HTTP/1.1 as a forwarder needs: heads, and where bodies end.

use std::io::{self, BufRead, Read as _};

/// Largest head that is taken.
const HEAD_LIMIT: usize = 256 * 1024;

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// Where the chunks say.
    Chunked,
    /// Where the connection ends (responses only).
    UntilClose,
}

/// The head of a request or of a response.
#[derive(Debug, Clone)]
pub(super) struct Head {
    /// What is forwarded: the head without `Expect`.
    pub(super) bytes: Vec<u8>,
    /// Method of a request.
    pub(super) method: String,
    /// Target of a request.
    pub(super) target: String,
    /// Status of a response.
    pub(super) status: u16,
    /// Where the body ends.
    pub(super) framing: Framing,
    /// Whether the client waits for permission to send the body.
    pub(super) expects_continue: bool,
    /// Whether the connection ends afterwards.
    pub(super) closes: bool,
}

/// Reads a head; `None` at the orderly end of the connection.
pub(super) fn read_head(from: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut head = Head {
        bytes: Vec::new(),
        method: String::new(),
        target: String::new(),
        status: 0,
        framing: Framing::None,
        expects_continue: false,
        closes: false,
    };
    let first = read_line(from)?;
    if first.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&first).into_owned();
    let mut words = text.split_whitespace();
    let (one, two) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    head.method = one.to_owned();
    head.target = two.to_owned();
    head.status = two.parse().unwrap_or(0);
    head.bytes = first;
    loop {
        let line = read_line(from)?;
        if line.is_empty() || head.bytes.len() > HEAD_LIMIT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if line == b"\r\n" {
            head.bytes.extend_from_slice(&line);
            return Ok(Some(head));
        }
        let text = String::from_utf8_lossy(&line).to_ascii_lowercase();
        let (name, value) = text.split_once(':').unwrap_or((&text, ""));
        match (name.trim(), value.trim()) {
            ("content-length", value) => {
                let length = value.parse().map_err(|_| io::ErrorKind::InvalidData)?;
                head.framing = Framing::Length(length);
            }
            ("transfer-encoding", value) if value.contains("chunked") => {
                head.framing = Framing::Chunked;
            }
            ("connection", "close") => head.closes = true,
            ("expect", _) => {
                head.expects_continue = true;
                continue;
            }
            _ => {}
        }
        head.bytes.extend_from_slice(&line);
    }
}

impl Head {
    /// Reads the framing as that of a response to `request`.
    pub(super) fn into_response(mut self, request: &Self) -> Self {
        let bodiless =
            request.method == "HEAD" || self.status < 200 || [204, 304].contains(&self.status);
        if bodiless {
            self.framing = Framing::None;
        } else if self.framing == Framing::None {
            self.framing = Framing::UntilClose;
        }
        self
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let limit = u64::try_from(HEAD_LIMIT).unwrap_or(u64::MAX);
    from.take(limit).read_until(b'\n', &mut line)?;
    if !line.is_empty() && !line.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// Copies a body with its framing, at most `limit` bytes of it; gives the number of bytes of the body.
pub(super) fn copy_body(
    from: &mut impl BufRead,
    framing: Framing,
    limit: Option<u64>,
    to: &mut impl io::Write,
) -> io::Result<u64> {
    let limit = limit.unwrap_or(u64::MAX);
    match framing {
        Framing::None => Ok(0),
        Framing::Length(length) => copy_exactly(from, length.min(limit), to),
        Framing::UntilClose => io::copy(&mut from.take(limit), to),
        Framing::Chunked => copy_chunks(from, limit, to),
    }
}

fn copy_exactly(from: &mut impl BufRead, length: u64, to: &mut impl io::Write) -> io::Result<u64> {
    let copied = io::copy(&mut from.take(length), to)?;
    if copied == length {
        Ok(copied)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn copy_chunks(from: &mut impl BufRead, limit: u64, to: &mut impl io::Write) -> io::Result<u64> {
    let mut total = 0;
    loop {
        let line = read_line(from)?;
        let text = String::from_utf8_lossy(&line);
        let digits = text.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData)?;
        to.write_all(&line)?;
        if size == 0 {
            break;
        }
        let wanted = size.min(limit - total);
        total += copy_exactly(from, wanted, to)?;
        if wanted < size {
            return Ok(total);
        }
        to.write_all(&read_line(from)?)?;
    }
    // Trailers, then the empty line.
    loop {
        let line = read_line(from)?;
        to.write_all(&line)?;
        if line == b"\r\n" || line.is_empty() {
            return Ok(total);
        }
    }
}
