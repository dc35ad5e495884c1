//! Plans in files: reviewed by a person, carried out exactly as they are, or not at all.
//!
//! The format is JSON lines, version 1: a header, one line a decision in the planner's order, and a
//! last line with their number and the BLAKE3 hash of all decision lines. Entries are written with all
//! that was seen, so that a plan made again from unmoved trees is equal to the letter.

use std::io::{BufRead, Write};

use knarr_core::ContentHash;
use knarr_core::plan::{Decision, Operation};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// The version of the format.
pub const VERSION: u32 = 1;
/// A line longer than this is refused (bytes).
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub knarr_plan: u32,
    /// When it was made.
    pub created: String,
    /// What `knarr apply` needs to make the same plan again: the arguments of `knarr plan`.
    pub arguments: serde_json::Value,
}

/// The last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Footer {
    decisions: u64,
    hash: ContentHash,
}

/// Writes a plan, decision by decision.
#[derive(Debug)]
pub struct PlanWriter<W: Write> {
    out: W,
    hasher: blake3::Hasher,
    decisions: u64,
}

impl<W: Write> PlanWriter<W> {
    /// Begins a plan.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin(mut out: W, header: &Header) -> std::io::Result<Self> {
        serde_json::to_writer(&mut out, header)?;
        out.write_all(b"\n")?;
        Ok(Self {
            out,
            hasher: blake3::Hasher::new(),
            decisions: 0,
        })
    }

    /// Adds a decision.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, decision: &Decision) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(decision)?;
        line.push(b'\n');
        self.hasher.update(&line);
        self.decisions += 1;
        self.out.write_all(&line)
    }

    /// Ends the plan.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> std::io::Result<W> {
        let footer = Footer {
            decisions: self.decisions,
            hash: ContentHash::from(self.hasher.finalize()),
        };
        serde_json::to_writer(&mut self.out, &footer)?;
        self.out.write_all(b"\n")?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Reads a plan, decision by decision.
#[derive(Debug)]
pub struct PlanReader<R: BufRead> {
    input: R,
    hasher: blake3::Hasher,
    line: usize,
    decisions: u64,
    ended: bool,
}

impl<R: BufRead> PlanReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`EngineError::PlanFile`].
    pub fn open(input: R) -> Result<(Header, Self), EngineError> {
        let mut reader = Self {
            input,
            hasher: blake3::Hasher::new(),
            line: 0,
            decisions: 0,
            ended: false,
        };
        let line = reader.read_line()?;
        let header: Header = reader.parse(&line)?;
        if header.knarr_plan != VERSION {
            let reason = format!(
                "it is of version {}, and this knarr reads version {VERSION}",
                header.knarr_plan
            );
            return Err(EngineError::PlanFile { line: 1, reason });
        }
        Ok((header, reader))
    }

    /// The next decision, or nothing once the last line was checked.
    ///
    /// # Errors
    /// [`EngineError::PlanFile`], also if the plan was changed or cut after it was made.
    pub fn next_decision(&mut self) -> Result<Option<Decision>, EngineError> {
        if self.ended {
            return Ok(None);
        }
        let line = self.read_line()?;
        if line.starts_with(b"{\"decisions\"") {
            let footer: Footer = self.parse(&line)?;
            let hash = ContentHash::from(self.hasher.finalize());
            if footer
                != (Footer {
                    decisions: self.decisions,
                    hash,
                })
            {
                let reason = "the plan was changed after it was made".to_owned();
                return Err(EngineError::PlanFile {
                    line: self.line,
                    reason,
                });
            }
            self.ended = true;
            return Ok(None);
        }
        self.hasher.update(&line);
        self.decisions += 1;
        self.parse(&line).map(Some)
    }

    fn read_line(&mut self) -> Result<Vec<u8>, EngineError> {
        self.line += 1;
        let failed = |reason: String| EngineError::PlanFile {
            line: self.line,
            reason,
        };
        let mut line = Vec::new();
        let mut limited = std::io::Read::take(&mut self.input, MAX_LINE_BYTES);
        limited
            .read_until(b'\n', &mut line)
            .map_err(|error| failed(error.to_string()))?;
        if line.last() != Some(&b'\n') {
            return Err(failed("the plan is cut off here".to_owned()));
        }
        Ok(line)
    }

    fn parse<'a, T: Deserialize<'a>>(&self, line: &'a [u8]) -> Result<T, EngineError> {
        serde_json::from_slice(line).map_err(|error| EngineError::PlanFile {
            line: self.line,
            reason: error.to_string(),
        })
    }
}

/// Says where a plan made now differs from the one in the file; `None` stands for its end.
pub(crate) fn difference(
    reviewed: Option<&Decision>,
    now: Option<&Decision>,
) -> Option<EngineError> {
    let moved = |decision: &Decision, difference: &str| EngineError::PlanMoved {
        path: decision.path().to_string(),
        difference: difference.to_owned(),
    };
    match (reviewed, now) {
        (None, None) => None,
        (Some(reviewed), None) => Some(moved(reviewed, "needs nothing any more")),
        (None, Some(now)) => Some(moved(now, "needs something the plan does not have")),
        (Some(reviewed), Some(now)) if reviewed == now => None,
        (Some(reviewed), Some(now)) if reviewed.path() != now.path() => {
            if reviewed.path() < now.path() {
                Some(moved(reviewed, "needs nothing any more"))
            } else {
                Some(moved(now, "needs something the plan does not have"))
            }
        }
        (Some(_), Some(now)) => Some(moved(now, "changed since the plan was made")),
    }
}

/// One line for a person: what a decision would do.
#[must_use]
pub fn describe(decision: &Decision) -> String {
    use knarr_core::plan::{Beside, Side};
    let arrow = |to: &Side| match to {
        Side::Destination => "→",
        Side::Source => "←",
    };
    match decision {
        Decision::Operation(Operation::Put {
            to,
            entry,
            replaces,
            beside,
            ..
        }) => {
            let verb = match (replaces, beside) {
                (_, Beside::Numbered) => "keep both",
                (Some(_), Beside::No) => "update",
                (None, Beside::No) => "create",
            };
            format!("{verb} {} {} ({} bytes)", arrow(to), entry.path, entry.size)
        }
        Decision::Operation(Operation::Rename { to, from, entry }) => {
            format!("rename {} {} (was {})", arrow(to), entry.path, from.path)
        }
        Decision::Operation(Operation::Remove { to, seen, .. }) => {
            format!("delete {} {}", arrow(to), seen.path)
        }
        Decision::Operation(Operation::Adopt { source, .. }) => format!("same {}", source.path),
        Decision::Operation(Operation::Forget { path, .. }) => format!("forget {path}"),
        Decision::Conflict(conflict) => format!(
            "conflict {}: the other version is kept as {}",
            conflict.source.path, conflict.conflict_path
        ),
        Decision::Problem(problem) => format!("problem {}: {}", problem.path, problem.message),
    }
}

#[cfg(test)]
mod tests {
    use knarr_core::plan::{Beside, Compare, Phase, Side};
    use knarr_core::{Entry, RelPath};

    use super::*;

    fn put(name: &[u8], size: u64) -> Decision {
        Decision::Operation(Operation::Put {
            to: Side::Destination,
            entry: Entry::file(RelPath::new(name).unwrap(), size),
            replaces: None,
            beside: Beside::No,
            compare: Compare::No,
            phase: Phase::Normal,
        })
    }

    fn written(decisions: &[Decision]) -> Vec<u8> {
        let header = Header {
            knarr_plan: VERSION,
            created: "now".into(),
            arguments: serde_json::json!({ "source": "a" }),
        };
        let mut writer = PlanWriter::begin(Vec::new(), &header).unwrap();
        decisions
            .iter()
            .for_each(|decision| writer.add(decision).unwrap());
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Decision>, EngineError> {
        let (_, mut reader) = PlanReader::open(bytes)?;
        let mut decisions = Vec::new();
        while let Some(decision) = reader.next_decision()? {
            decisions.push(decision);
        }
        Ok(decisions)
    }

    #[test]
    fn a_plan_reads_back_to_the_letter() {
        let decisions = [put(b"a", 1), put(b"\xff\n", u64::MAX)];
        assert_eq!(read(&written(&decisions)).unwrap(), decisions);
        assert_eq!(read(&written(&[])).unwrap(), []);
    }

    #[test]
    fn a_plan_that_was_cut_or_changed_is_refused() {
        let whole = written(&[put(b"a", 1), put(b"b", 2)]);
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
        }
        let text = String::from_utf8(whole).unwrap();
        assert!(read(text.replace("\"size\":2", "\"size\":3").as_bytes()).is_err());
    }

    #[test]
    fn the_first_difference_is_named() {
        let (a, b) = (put(b"a", 1), put(b"b", 1));
        let said = |reviewed, now| difference(reviewed, now).map(|error| error.to_string());
        assert_eq!(said(Some(&a), Some(&a)), None);
        assert!(
            said(Some(&a), Some(&b))
                .unwrap()
                .contains("\"a\" needs nothing")
        );
        assert!(
            said(Some(&b), Some(&a))
                .unwrap()
                .contains("\"a\" needs something")
        );
        let changed = put(b"a", 2);
        assert!(
            said(Some(&a), Some(&changed))
                .unwrap()
                .contains("\"a\" changed")
        );
        assert!(said(None, Some(&a)).is_some() && said(Some(&a), None).is_some());
    }
}
