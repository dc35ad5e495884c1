//! How long files take until they are at the destination, seen from outside.
//!
//! Constraints: the clock of a file starts right after it was closed and stops when it is there under its
//! final name in its full length; a thread looks every half millisecond, which is the resolution.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;

const PERIOD: Duration = Duration::from_micros(500);

/// How long the last files may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Tells what was closed.
pub(crate) struct Closed {
    sender: mpsc::SyncSender<(String, u64, Instant)>,
}

impl Closed {
    /// A file of this name and length was closed just now.
    pub(crate) fn closed(&self, name: String, length: u64) {
        // If the looking thread is gone, it has failed, and that is seen at the end.
        self.sender.send((name, length, Instant::now())).ok();
    }
}

/// Runs `work`, which tells what it closes, and gives the time that each file took, in milliseconds.
///
/// # Errors
///
/// What `work` says, or that files are missing in the end.
pub(crate) fn watched(
    destination: &Path,
    work: impl FnOnce(&Closed) -> Outcome,
) -> Result<Vec<f64>, String> {
    let (sender, receiver) = mpsc::sync_channel(1024);
    thread::scope(|scope| {
        let looking = scope.spawn(|| look(destination, receiver));
        let closed = Closed { sender };
        let outcome = work(&closed);
        drop(closed);
        let times = looking
            .join()
            .unwrap_or_else(|_| Err("the looking thread panicked".to_owned()));
        outcome.and(times)
    })
}

fn look(
    destination: &Path,
    receiver: mpsc::Receiver<(String, u64, Instant)>,
) -> Result<Vec<f64>, String> {
    let (mut open, mut times) = (Vec::new(), Vec::new());
    let mut closed_until: Option<Instant> = None;
    loop {
        match receiver.recv_timeout(PERIOD) {
            Ok((name, length, since)) => open.push((destination.join(name), length, since)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let end = *closed_until.get_or_insert_with(|| Instant::now() + LIMIT);
                if open.is_empty() {
                    return Ok(times);
                }
                if Instant::now() > end {
                    return Err(format!("{} files did not arrive", open.len()));
                }
                thread::sleep(PERIOD);
            }
        }
        open.retain(|(path, length, since)| {
            let there = fs::metadata(path).is_ok_and(|metadata| metadata.len() == *length);
            if there {
                times.push(since.elapsed().as_secs_f64() * 1e3);
            }
            !there
        });
    }
}
