//! How many connections there may be that have not logged in, as OpenSSH's `MaxStartups` has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// From when on, and how likely, a new connection is turned away while others have not logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Startups {
    /// Below this many none is.
    pub begin: usize,
    /// The chance at that number, in percent; it grows evenly from there.
    pub percent: u8,
    /// From this many on every one is.
    pub full: usize,
}

impl Default for Startups {
    fn default() -> Self {
        Self {
            begin: 10,
            percent: 30,
            full: 100,
        }
    }
}

impl Startups {
    /// Whether a connection is taken while `waiting` have not logged in; `dice` is any number, each as likely.
    pub(crate) fn take(self, waiting: usize, dice: u32) -> bool {
        if waiting < self.begin || self.percent == 0 && waiting < self.full {
            return true;
        }
        if waiting >= self.full {
            return false;
        }
        let percent = usize::from(self.percent.min(100));
        let span = (self.full - self.begin).max(1);
        let chance = percent + (100 - percent) * (waiting - self.begin) / span;
        usize::try_from(dice % 100).unwrap_or(0) >= chance
    }
}

/// A number of things that are under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Count(Arc<AtomicUsize>);

impl Count {
    pub(crate) fn now(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    /// One more, until what is returned is dropped.
    pub(crate) fn enter(&self) -> Counted {
        self.0.fetch_add(1, Ordering::AcqRel);
        Counted(Arc::clone(&self.0))
    }
}

/// One of a [`Count`].
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h45_the_more_have_not_logged_in_the_fewer_are_taken() {
        let startups = Startups::default();
        let taken = |waiting| {
            (0..100)
                .filter(|dice| startups.take(waiting, *dice))
                .count()
        };
        assert_eq!(taken(0), 100);
        assert_eq!(taken(9), 100);
        assert_eq!(taken(10), 70);
        assert_eq!(taken(55), 35);
        assert_eq!(taken(99), 1);
        assert_eq!(taken(100), 0);
        assert_eq!(taken(5000), 0);
    }
}
