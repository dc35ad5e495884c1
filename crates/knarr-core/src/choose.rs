//! Which of many files come first: the newest, the oldest, by name, by size.
//!
//! Constraint: what is kept in memory is as much as is chosen, however many files are offered.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::entry::Fingerprint;
use crate::path::RelPath;
use crate::time::Timestamp;

/// Which file comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The first by name.
    #[default]
    Name,
    /// The one that changed longest ago.
    Oldest,
    /// The one that changed last.
    Newest,
    /// The shortest.
    Smallest,
    /// The longest.
    Largest,
}

/// What a file is compared by: the less, the earlier. Equal ones come by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(Key, RelPath);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Same,
    Least(i64),
    Greatest(Reverse<i64>),
    Shortest(u64),
    Longest(Reverse<u64>),
}

impl Order {
    /// The rank of a file. One without a time counts as the oldest.
    #[must_use]
    pub fn rank(self, path: &RelPath, mtime: Option<Timestamp>, size: u64) -> Rank {
        let changed = mtime.map_or(i64::MIN, Timestamp::nanoseconds);
        let key = match self {
            Self::Name => Key::Same,
            Self::Oldest => Key::Least(changed),
            Self::Newest => Key::Greatest(Reverse(changed)),
            Self::Smallest => Key::Shortest(size),
            Self::Largest => Key::Longest(Reverse(size)),
        };
        Rank(key, path.clone())
    }

    /// The rank of a file that was seen.
    #[must_use]
    pub fn rank_of(self, path: &RelPath, seen: Option<&Fingerprint>) -> Rank {
        let (mtime, size) = seen.map_or((None, 0), |seen| (seen.mtime, seen.size));
        self.rank(path, mtime, size)
    }
}

/// Keeps the first so many of what is offered.
#[derive(Debug)]
pub struct Chooser<T> {
    most: usize,
    /// The last of the kept ones on top.
    kept: BinaryHeap<Kept<T>>,
}

#[derive(Debug)]
struct Kept<T> {
    rank: Rank,
    value: T,
}

impl<T> PartialEq for Kept<T> {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl<T> Eq for Kept<T> {}

impl<T> PartialOrd for Kept<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Kept<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank.cmp(&other.rank)
    }
}

impl<T> Chooser<T> {
    /// Keeps `most` at most.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            kept: BinaryHeap::new(),
        }
    }

    /// Offers one. Returns what is not among the first any more, if anything.
    pub fn offer(&mut self, rank: Rank, value: T) -> Option<T> {
        self.kept.push(Kept { rank, value });
        if self.kept.len() > self.most {
            return self.kept.pop().map(|kept| kept.value);
        }
        None
    }

    /// Those that were kept, the first one first.
    #[must_use]
    pub fn into_chosen(self) -> Vec<T> {
        let sorted = self.kept.into_sorted_vec();
        sorted.into_iter().map(|kept| kept.value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_kept_in_any_order_of_offers() {
        let files = [("a", 30, 5), ("b", 10, 7), ("c", 20, 6), ("d", 20, 9)];
        for (order, expected) in [
            (Order::Name, ["a", "b"]),
            (Order::Oldest, ["b", "c"]),
            (Order::Newest, ["a", "c"]),
            (Order::Smallest, ["a", "c"]),
            (Order::Largest, ["d", "b"]),
        ] {
            for rotation in 0..files.len() {
                let mut chooser = Chooser::new(2);
                for (name, seconds, size) in files.iter().cycle().skip(rotation).take(files.len()) {
                    let path = RelPath::new(name.as_bytes()).unwrap();
                    let mtime = Some(Timestamp::from_seconds(*seconds));
                    chooser.offer(order.rank(&path, mtime, *size), *name);
                }
                assert_eq!(chooser.into_chosen(), expected, "{order:?}");
            }
        }
    }
}
