//! Whether a store keeps the conditions of requests, as far as that was found out.

use std::sync::atomic::Ordering;

use super::Inner;

/// Whether a store keeps the condition of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Conditions {
    /// Nobody knows yet.
    Unknown = 0,
    /// Somebody is finding out.
    Probing = 1,
    /// It has refused by one.
    Kept = 2,
    /// It ignores them, or refuses to hear of them.
    Ignored = 3,
}

impl Inner {
    /// What is known by now.
    pub(super) fn conditions(&self) -> Conditions {
        match self.conditions.load(Ordering::Relaxed) {
            1 => Conditions::Probing,
            2 => Conditions::Kept,
            3 => Conditions::Ignored,
            _ => Conditions::Unknown,
        }
    }

    /// Notes what was found out.
    pub(super) fn set_conditions(&self, conditions: Conditions) {
        self.conditions.store(conditions as u8, Ordering::Relaxed);
    }

    /// Whether this caller is the one to find out.
    pub(super) fn begin_probe(&self) -> bool {
        let (from, to) = (Conditions::Unknown as u8, Conditions::Probing as u8);
        self.conditions
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}
