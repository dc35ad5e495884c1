//! Waiting for a condition, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

/// Asks `condition` again and again (first every millisecond, later every 20 ms) until it holds.
///
/// # Panics
///
/// If it does not hold within `deadline`; the message says `what` was waited for.
#[track_caller]
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    assert!(
        poll(deadline, || condition().then_some(())).is_some(),
        "waited {deadline:?} in vain for: {what}"
    );
}

/// Asks `probe` until it gives a value, at most for `deadline`.
pub fn poll<T>(deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if start.elapsed() >= deadline {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
