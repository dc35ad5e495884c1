//! Puts a file with a checksum beside each file: `name.sha256`, as `sha256sum` writes it.

use std::fmt;

use bytes::Bytes;
use md5::Md5;
use md5::digest::Digest as _;
use sha2::{Sha256, Sha512};

use crate::error::StepError;
use crate::spec::{ChecksumAlgorithm, ChecksumOptions};
use crate::step::{PassThrough, Pulled, SideFile, Step, StepSummary};

/// The step `checksum`: the content passes unchanged.
pub(crate) struct Checksum {
    algorithm: ChecksumAlgorithm,
    hasher: Hasher,
    passing: PassThrough,
    ended: bool,
    bytes: u64,
}

/// Computes a checksum.
#[derive(Clone)]
pub struct Hasher(Function);

#[derive(Clone)]
enum Function {
    Sha256(Sha256),
    Sha512(Sha512),
    Md5(Md5),
}

impl fmt::Debug for Hasher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Hasher").finish_non_exhaustive()
    }
}

impl Hasher {
    /// Of nothing so far.
    #[must_use]
    pub fn new(algorithm: ChecksumAlgorithm) -> Self {
        Self(match algorithm {
            ChecksumAlgorithm::Sha256 => Function::Sha256(Sha256::new()),
            ChecksumAlgorithm::Sha512 => Function::Sha512(Sha512::new()),
            ChecksumAlgorithm::Md5 => Function::Md5(Md5::new()),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            Function::Sha256(hasher) => hasher.update(data),
            Function::Sha512(hasher) => hasher.update(data),
            Function::Md5(hasher) => hasher.update(data),
        }
    }

    /// The checksum in lower-case hexadecimal digits; begins anew.
    pub fn finish(&mut self) -> String {
        match &mut self.0 {
            Function::Sha256(hasher) => hex(&hasher.finalize_reset()),
            Function::Sha512(hasher) => hex(&hasher.finalize_reset()),
            Function::Md5(hasher) => hex(&hasher.finalize_reset()),
        }
    }
}

/// The checksum for a file in what `sha256sum` and its like write, or in a file with nothing but the
/// checksum; in lower-case hexadecimal digits. Nothing if it has none for a file of this name.
#[must_use]
pub fn find_checksum(text: &str, name: &str, algorithm: ChecksumAlgorithm) -> Option<String> {
    let digits = Hasher::new(algorithm).finish().len();
    let is_checksum =
        |word: &str| word.len() == digits && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut alone = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        if !is_checksum(word) {
            continue;
        }
        let named = rest.trim_start().trim_start_matches('*');
        if named.is_empty() {
            alone = alone.or(Some(word));
        } else if named == name || named.rsplit(['/', '\\']).next() == Some(name) {
            return Some(word.to_ascii_lowercase());
        }
    }
    alone.map(str::to_ascii_lowercase)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Checksum {
    pub(crate) fn new(options: ChecksumOptions) -> Self {
        Self {
            algorithm: options.algorithm,
            hasher: Hasher::new(options.algorithm),
            passing: PassThrough::default(),
            ended: false,
            bytes: 0,
        }
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Checksum")
            .field("algorithm", &self.algorithm)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Step for Checksum {
    fn feed(&mut self, input: Bytes) -> Result<(), StepError> {
        if self.ended || !self.passing.is_empty() {
            return Err(StepError::OutOfTurn {
                what: "input was fed that nobody asked for",
            });
        }
        self.passing.put(input);
        Ok(())
    }

    fn end(&mut self) {
        self.ended = true;
    }

    fn pull(&mut self) -> Result<Pulled, StepError> {
        Ok(match self.passing.take() {
            Some(chunk) => {
                self.hasher.update(&chunk);
                self.bytes += chunk.len() as u64;
                Pulled::Chunk(chunk)
            }
            None if self.ended => Pulled::Finished,
            None => Pulled::NeedsInput,
        })
    }

    fn summary(&self) -> StepSummary {
        StepSummary {
            input_bytes: self.bytes,
            output_bytes: self.bytes,
            members: 1,
            note: Some(format!(
                "checksum {}",
                self.algorithm.suffix().trim_start_matches('.')
            )),
            ..StepSummary::new()
        }
    }

    fn output_size(&self, input: Option<u64>) -> Option<u64> {
        input
    }

    fn side_files(&mut self, name: &[u8]) -> Vec<SideFile> {
        vec![SideFile {
            name: [name, self.algorithm.suffix().as_bytes()].concat(),
            content: Bytes::from(line(&self.hasher.finish(), name)),
        }]
    }
}

/// A line as `sha256sum` writes it: where the name has a line break or a backslash, the line begins with
/// a backslash and the name is escaped.
fn line(digest: &str, name: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'\\' => escaped.extend_from_slice(b"\\\\"),
            b'\n' => escaped.extend_from_slice(b"\\n"),
            b'\r' => escaped.extend_from_slice(b"\\r"),
            other => escaped.push(*other),
        }
    }
    let mark: &[u8] = if escaped.len() == name.len() {
        b""
    } else {
        b"\\"
    };
    [mark, digest.as_bytes(), b"  ", &escaped, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_line_break_cannot_forge_a_line() {
        assert_eq!(line("00", b"a b"), b"00  a b\n");
        assert_eq!(line("00", b"a\n11  b"), b"\\00  a\\n11  b\n");
        assert_eq!(line("00", b"a\\b"), b"\\00  a\\\\b\n");
    }

    #[test]
    fn checksums_are_found_in_the_forms_that_partners_send() {
        let mut hasher = Hasher::new(ChecksumAlgorithm::Md5);
        hasher.update(b"content");
        let sum = hasher.finish();
        let find = |text: &str| find_checksum(text, "a.csv", ChecksumAlgorithm::Md5);
        for text in [
            format!("{sum}\n"),
            format!("{sum}  a.csv\n"),
            format!("{} *a.csv\r\n", sum.to_uppercase()),
            format!("{sum}  out/a.csv"),
            format!("0000  x\n{sum}\ta.csv"),
        ] {
            assert_eq!(find(&text), Some(sum.clone()), "{text:?}");
        }
        for text in [
            String::new(),
            format!("{sum}  b.csv"),
            sum.replace('0', "g") + "x",
        ] {
            assert_eq!(find(&text), None, "{text:?}");
        }
    }
}
