//! Counts what is refused, where there is too much of it to be told one by one.
//!
//! Constraint: in [`WINDOW`] at most [`LOG_INS`] refused log-ins and [`OPERATIONS`] refused requests are told one by one, and
//! at its end at most [`TOLD`] sources and one line for the rest. [`SOURCES`] are told apart. With names of the greatest
//! length that is some 50 MB a day, whatever comes. Decided on times that are handed in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use knarr_core::path::printable;

/// How long it is counted before the count is told.
pub(super) const WINDOW: Duration = Duration::from_secs(300);
/// Refused log-ins that are told one by one, of one source and of all.
const LOG_INS_OF_ONE: u32 = 5;
const LOG_INS: u32 = 100;
/// Refused requests that are told one by one, of one user and of all.
const OPERATIONS_OF_ONE: u32 = 50;
const OPERATIONS: u32 = 100;
/// Sources and users that are counted apart; the others are counted together.
const SOURCES: usize = 4_096;
/// Sources and users whose counts are told apart.
const TOLD: usize = 20;

/// Whether something is told by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Single,
    Counted,
}

/// Who was refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Source(String),
    User(String),
    /// This many others.
    Others(u64),
}

/// What was not told by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) who: Who,
    pub(super) log_ins: u64,
    pub(super) connections: u64,
    pub(super) operations: u64,
}

impl Counts {
    const fn all(&self) -> u64 {
        self.log_ins + self.connections + self.operations
    }
}

#[derive(Debug, Default)]
struct Counting {
    singles: u32,
    log_ins: u64,
    connections: u64,
    operations: u64,
}

/// What was refused since the window began.
#[derive(Debug, Default)]
pub(super) struct Tally {
    until: Option<Instant>,
    log_ins: u32,
    operations: u32,
    by: BTreeMap<Who, Counting>,
}

/// The source of a connection: an IPv6 /64 is one.
pub(super) fn source(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            format!("{}/64", std::net::Ipv6Addr::from(network))
        }
    }
}

impl Tally {
    fn of(&mut self, who: Who, now: Instant) -> &mut Counting {
        self.until.get_or_insert(now + WINDOW);
        let is_known = self.by.contains_key(&who);
        let who = if is_known || self.by.len() < SOURCES {
            who
        } else {
            Who::Others(0)
        };
        self.by.entry(who).or_default()
    }

    /// A log-in of `source` was refused.
    pub(super) fn log_in(&mut self, source: &str, now: Instant) -> Fate {
        let has_room = self.log_ins < LOG_INS;
        let counting = self.of(Who::Source(source.to_owned()), now);
        if has_room && counting.singles < LOG_INS_OF_ONE {
            counting.singles += 1;
            self.log_ins += 1;
            return Fate::Single;
        }
        counting.log_ins += 1;
        Fate::Counted
    }

    /// A request of `user` was refused.
    pub(super) fn operation(&mut self, user: &str, now: Instant) -> Fate {
        let has_room = self.operations < OPERATIONS;
        let counting = self.of(Who::User(user.to_owned()), now);
        if has_room && counting.singles < OPERATIONS_OF_ONE {
            counting.singles += 1;
            self.operations += 1;
            return Fate::Single;
        }
        counting.operations += 1;
        Fate::Counted
    }

    /// A connection of `source` was turned away.
    pub(super) fn connection(&mut self, source: &str, now: Instant) {
        self.of(Who::Source(source.to_owned()), now).connections += 1;
    }

    /// Whether the window has come to its end.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// How long the window still lasts.
    pub(super) fn left(&self, now: Instant) -> Duration {
        let left = |until: Instant| until.saturating_duration_since(now);
        self.until.map_or(WINDOW, left)
    }

    /// Ends the window: what was only counted, the most first.
    pub(super) fn end(&mut self) -> Vec<Counts> {
        let ended = std::mem::take(self);
        let counts = ended.by.into_iter().map(|(who, counting)| Counts {
            who,
            log_ins: counting.log_ins,
            connections: counting.connections,
            operations: counting.operations,
        });
        let mut counts: Vec<Counts> = counts.filter(|counts| counts.all() > 0).collect();
        // Who could not be told apart is among the others, however many they are.
        counts.sort_by_key(|counts| {
            let others = matches!(counts.who, Who::Others(_));
            (others, std::cmp::Reverse(counts.all()))
        });
        if counts.len() > TOLD {
            let rest = counts.split_off(TOLD);
            let sum = |count: fn(&Counts) -> u64| rest.iter().map(count).sum();
            counts.push(Counts {
                who: Who::Others(rest.len() as u64),
                log_ins: sum(|counts| counts.log_ins),
                connections: sum(|counts| counts.connections),
                operations: sum(|counts| counts.operations),
            });
        }
        counts
    }
}

impl Counts {
    /// What is recorded of it.
    pub(super) fn text(&self) -> String {
        let mut parts = Vec::new();
        for (count, one, many) in [
            (self.log_ins, "log-in", "log-ins"),
            (self.connections, "connection", "connections"),
            (self.operations, "request", "requests"),
        ] {
            match count {
                0 => {}
                1 => parts.push(format!("1 more {one}")),
                count => parts.push(format!("{count} more {many}")),
            }
        }
        let who = match &self.who {
            Who::Source(source) => format!("from {source}"),
            Who::User(user) => format!("of {}", printable(user.as_bytes())),
            Who::Others(_) => "of others".to_owned(),
        };
        let minutes = WINDOW.as_secs() / 60;
        format!("{} {who} within {minutes} minutes", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h45_a_flood_of_refused_log_ins_becomes_a_bounded_number_of_records() {
        let (mut tally, start) = (Tally::default(), Instant::now());
        let mut singles = 0;
        for number in 0..100_000_u32 {
            let source = source(IpAddr::from(number.to_be_bytes()));
            for _ in 0..2 {
                singles += u32::from(tally.log_in(&source, start) == Fate::Single);
            }
            tally.connection(&source, start);
        }
        assert_eq!(singles, LOG_INS);
        assert!(tally.by.len() <= SOURCES + 1);
        assert!(!tally.is_over(start + WINDOW - Duration::from_secs(1)));
        assert!(tally.is_over(start + WINDOW));
        let told = tally.end();
        assert_eq!(told.len(), TOLD + 1);
        let sum = |count: fn(&Counts) -> u64| told.iter().map(count).sum::<u64>();
        assert_eq!(sum(|counts| counts.log_ins) + u64::from(LOG_INS), 200_000);
        assert_eq!(sum(|counts| counts.connections), 100_000);
        assert!(tally.end().is_empty());
        // A new window tells the first ones again.
        assert_eq!(tally.log_in("192.0.2.1", start), Fate::Single);
    }

    #[test]
    fn who_is_refused_most_is_told_first_and_by_name() {
        let (mut tally, start) = (Tally::default(), Instant::now());
        for (user, count) in [("acme", 52), ("be\nta", 250)] {
            for _ in 0..count {
                tally.operation(user, start);
            }
        }
        let told: Vec<String> = tally.end().iter().map(Counts::text).collect();
        assert_eq!(
            told,
            [
                "200 more requests of be\\nta within 5 minutes",
                "2 more requests of acme within 5 minutes"
            ]
        );
    }

    #[test]
    fn an_ipv6_network_of_64_bits_is_one_source() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
