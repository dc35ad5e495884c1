//! Fixtures: seeded randomness, nasty names, trees of files, comparison of trees.
//!
//! Constraints: the same seed always gives the same tree, byte for byte and with the same times, on
//! every machine, so that a failure can be replayed from its seed alone.

mod compare;
mod names;
mod tree;

pub use compare::{Compare, Node, assert_same_tree, differences, read_tree};
pub use names::{NastyName, nasty_names};
pub use tree::{TreeBuilder, TreeSummary, content, write_content};

/// A small seeded generator (SplitMix64): deterministic, fast, not for secrets.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// A generator that starts at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..end`, and 0 if `end` is 0. The bias of the remainder does not matter for tests.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end.max(1)
    }

    /// An index into a list of this length, which must not be 0.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(u64::try_from(length).unwrap_or(u64::MAX))).unwrap_or(0)
    }
}
