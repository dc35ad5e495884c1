//! When to try again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often and how soon a failed attempt is repeated: exponential, with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// How many attempts there are in all before a person has to act; at least 1.
    pub attempts: u32,
    /// The pause after the first failure.
    pub from: Duration,
    /// The longest pause.
    pub to: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 8,
            from: Duration::from_secs(5),
            to: Duration::from_secs(600),
        }
    }
}

impl RetryPolicy {
    /// The pause after `failed` failures (from 1), or nothing if there were enough. `chance` in 0..=1
    /// spreads the pause over its upper half, so that many do not come back at once.
    #[must_use]
    pub fn pause(&self, failed: u32, chance: f64) -> Option<Duration> {
        (failed < self.attempts).then(|| self.backoff(failed, chance))
    }

    /// The same without an end; for probes of an endpoint.
    #[must_use]
    pub fn backoff(&self, failed: u32, chance: f64) -> Duration {
        let doublings = failed.saturating_sub(1).min(20);
        let full = self.from.saturating_mul(1 << doublings).min(self.to);
        full.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_then_end() {
        let policy = RetryPolicy {
            attempts: 5,
            from: Duration::from_secs(5),
            to: Duration::from_secs(30),
        };
        let pauses: Vec<_> = (1..=5).map(|failed| policy.pause(failed, 1.0)).collect();
        let seconds = |s| Some(Duration::from_secs(s));
        assert_eq!(
            pauses,
            [seconds(5), seconds(10), seconds(20), seconds(30), None]
        );
        assert_eq!(policy.pause(2, 0.0), seconds(5));
        assert_eq!(policy.backoff(u32::MAX, 1.0), Duration::from_secs(30));
    }
}
