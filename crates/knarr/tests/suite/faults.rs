//! The promises under faults, kept by the program as a whole: kills, power cuts, cut lines, full disks.
//!
//! Constraints: the program runs as it is installed, with a state directory of its own, against real
//! servers. Random faults are seeded; a failure names its seed. `KNARR_TEST_KILLS` and
//! `KNARR_TEST_POWER_CUTS` ask for more rounds than the usual ones.

mod batch;
mod disk;
mod kill;
pub(crate) mod machine;
mod memory;
mod names;
mod network;
mod node;
mod object;
mod power;
mod source;
pub(crate) mod support;
mod sweep;
mod watch;
