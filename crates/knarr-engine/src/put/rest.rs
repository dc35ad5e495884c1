//! The moment of rest between the last write to a file and our reading it.

use std::time::Duration;

use knarr_core::{Entry, Timestamp};

use crate::context::Context;

/// How old the last write has to be before a file is read. Its time is that of the *beginning* of the last
/// write(2): one that takes longer than our reading cannot be told by comparing times. A node needs
/// no such rest: it is told when a file is closed.
const AT_REST: Duration = Duration::from_millis(100);

/// Waits until files that were just written to have been left alone for a moment, or for the end of all.
pub(crate) async fn at_rest(context: &Context, entries: impl Iterator<Item = &Entry>) {
    let now = context.clock.now();
    let Some(rest) = entries.filter_map(|entry| rest_of(entry.mtime?, now)).max() else {
        return;
    };
    tokio::select! {
        () = context.cancel.cancelled() => {}
        () = tokio::time::sleep(rest) => {}
    }
}

/// How long a file has to be left alone from `now` on. A time to come says nothing of the last write.
fn rest_of(mtime: Timestamp, now: Timestamp) -> Option<Duration> {
    if mtime > now {
        return None;
    }
    let rest = AT_REST.checked_sub(now.since(mtime))?;
    (!rest.is_zero()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k2_r35_a_file_is_left_alone_until_a_tenth_of_a_second_after_its_last_write() {
        let written = Timestamp::from_seconds(1_000);
        let rest_after = |milliseconds| {
            rest_of(written, written.after(Duration::from_millis(milliseconds)))
                .map(|rest| rest.as_millis())
        };
        assert_eq!(rest_after(0), Some(100));
        assert_eq!(rest_after(40), Some(60));
        assert_eq!(rest_after(100), None);
        assert_eq!(rest_after(86_400_000), None);
        // A clock that was set back, or a time that somebody gave the file.
        assert_eq!(
            rest_of(written.after(Duration::from_secs(1)), written),
            None
        );
    }
}
