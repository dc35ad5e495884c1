//! The brake on mass deletion.

use serde::{Deserialize, Serialize};

/// When a plan that removes much is held until a person approves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brake {
    /// So many removals are always allowed.
    pub files: u64,
    /// So many percent of all known entries are allowed.
    pub percent: u64,
}

impl Default for Brake {
    fn default() -> Self {
        Self {
            files: 100,
            percent: 30,
        }
    }
}

/// Why a plan is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MassDeletion {
    /// More removals than the brake allows.
    TooMany,
    /// The listing is empty though something was there before.
    SuspiciouslyEmpty,
}

impl Brake {
    /// Whether removing `removals` of `known` entries has to be approved, given how many entries the
    /// listing had (`listed`) from whose gaps the removals follow.
    #[must_use]
    pub const fn holds(&self, removals: u64, known: u64, listed: u64) -> Option<MassDeletion> {
        if removals == 0 {
            return None;
        }
        if listed == 0 {
            return Some(MassDeletion::SuspiciouslyEmpty);
        }
        let share = known.saturating_mul(self.percent) / 100;
        let allowed = if share > self.files {
            share
        } else {
            self.files
        };
        if removals > allowed {
            Some(MassDeletion::TooMany)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k5_the_brake_holds_above_a_hundred_files_and_thirty_percent() {
        let brake = Brake::default();
        assert_eq!(brake.holds(0, 10, 0), None);
        assert_eq!(brake.holds(1, 10, 0), Some(MassDeletion::SuspiciouslyEmpty));
        assert_eq!(brake.holds(100, 150, 50), None);
        assert_eq!(brake.holds(101, 150, 49), Some(MassDeletion::TooMany));
        assert_eq!(brake.holds(300, 1000, 700), None);
        assert_eq!(brake.holds(301, 1000, 699), Some(MassDeletion::TooMany));
    }
}
