//! Sources that misbehave are not talked to for a while, as OpenSSH's `PerSourcePenalties` has it.
//!
//! Constraints: the table has a limit; when it is full, what ends first makes room. Decided on times that are handed
//! in, so that nothing here waits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// What is punished, and by how much. The defaults are OpenSSH's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Penalties {
    /// A connection that tried to log in and did not manage.
    pub failed_log_in: Duration,
    /// A connection that never tried.
    pub no_log_in: Duration,
    /// A connection that took too long to log in.
    pub too_slow: Duration,
    /// What is not more than this in all is forgiven.
    pub least: Duration,
    /// No source is punished for longer.
    pub most: Duration,
    /// Sources that are remembered.
    pub sources: usize,
    /// Bits of an IPv6 address that make a source; of an IPv4 address it is all of them.
    pub ipv6_bits: u8,
    /// Networks that are never punished.
    pub exempt: Vec<crate::users::Network>,
}

impl Default for Penalties {
    fn default() -> Self {
        Self {
            failed_log_in: Duration::from_secs(5),
            no_log_in: Duration::from_secs(1),
            too_slow: Duration::from_secs(10),
            least: Duration::from_secs(15),
            most: Duration::from_secs(600),
            sources: 65_536,
            ipv6_bits: 64,
            exempt: Vec::new(),
        }
    }
}

/// What a connection did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Offence {
    FailedLogIn,
    NoLogIn,
    TooSlow,
}

/// Who is being punished.
#[derive(Debug)]
pub(crate) struct PenaltyTable {
    options: Penalties,
    sources: HashMap<IpAddr, Penalty>,
}

/// What a source has to wait.
#[derive(Debug, Clone, Copy)]
struct Penalty {
    until: Instant,
    /// It was more than is forgiven at some time, and is waited for to its end since.
    holds: bool,
}

impl PenaltyTable {
    pub(crate) fn new(options: Penalties) -> Self {
        Self {
            options,
            sources: HashMap::new(),
        }
    }

    fn source(&self, address: IpAddr) -> IpAddr {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let shift = 128 - u32::from(self.options.ipv6_bits.min(128));
                let mask = if shift >= 128 { 0 } else { u128::MAX << shift };
                IpAddr::from((u128::from(address) & mask).to_be_bytes())
            }
            address @ IpAddr::V4(_) => address,
        }
    }

    /// Adds to what `address` has to wait.
    pub(crate) fn add(&mut self, address: IpAddr, offence: Offence, now: Instant) {
        if self
            .options
            .exempt
            .iter()
            .any(|network| network.contains(address))
        {
            return;
        }
        let more = match offence {
            Offence::FailedLogIn => self.options.failed_log_in,
            Offence::NoLogIn => self.options.no_log_in,
            Offence::TooSlow => self.options.too_slow,
        };
        let source = self.source(address);
        if !self.sources.contains_key(&source) && self.sources.len() >= self.options.sources {
            self.make_room(now);
        }
        let fresh = Penalty {
            until: now,
            holds: false,
        };
        let penalty = self.sources.entry(source).or_insert(fresh);
        if penalty.until <= now {
            *penalty = fresh;
        }
        penalty.until = (penalty.until + more).min(now + self.options.most);
        penalty.holds |= penalty.until - now > self.options.least;
    }

    /// Whether `address` has to wait.
    pub(crate) fn holds(&self, address: IpAddr, now: Instant) -> bool {
        let penalty = self.sources.get(&self.source(address));
        penalty.is_some_and(|penalty| penalty.holds && penalty.until > now)
    }

    fn make_room(&mut self, now: Instant) {
        self.sources.retain(|_, penalty| penalty.until > now);
        if self.sources.len() >= self.options.sources
            && let Some(first) = self.sources.iter().min_by_key(|(_, penalty)| penalty.until)
        {
            let first = *first.0;
            self.sources.remove(&first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn h45_four_failed_log_ins_close_the_door_and_time_opens_it() {
        let mut table = PenaltyTable::new(Penalties::default());
        let now = Instant::now();
        for _ in 0..3 {
            table.add(address(1), Offence::FailedLogIn, now);
            assert!(!table.holds(address(1), now));
        }
        table.add(address(1), Offence::FailedLogIn, now);
        assert!(table.holds(address(1), now));
        assert!(!table.holds(address(2), now));
        assert!(table.holds(address(1), now + Duration::from_secs(19)));
        assert!(!table.holds(address(1), now + Duration::from_secs(20)));
        for _ in 0..1000 {
            table.add(address(1), Offence::FailedLogIn, now);
        }
        assert!(table.holds(address(1), now + Duration::from_secs(580)));
        assert!(!table.holds(address(1), now + Duration::from_secs(600)));
    }

    #[test]
    fn h45_a_network_of_ipv6_is_one_source_and_an_exempt_one_none() {
        let mut table = PenaltyTable::new(Penalties {
            exempt: vec![crate::users::Network::parse("192.0.2.0/24").unwrap()],
            ..Penalties::default()
        });
        let now = Instant::now();
        for last in 0..20_u16 {
            table.add(
                IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]),
                Offence::FailedLogIn,
                now,
            );
            table.add(address(1), Offence::FailedLogIn, now);
        }
        assert!(table.holds("2001:db8::ffff".parse().unwrap(), now));
        assert!(!table.holds(address(1), now));
    }

    #[test]
    fn h45_the_table_of_sources_is_bounded() {
        let mut table = PenaltyTable::new(Penalties {
            sources: 100,
            ..Penalties::default()
        });
        let now = Instant::now();
        for number in 0..10_000_u32 {
            let address = IpAddr::from(number.to_be_bytes());
            for _ in 0..4 {
                table.add(
                    address,
                    Offence::FailedLogIn,
                    now + Duration::from_millis(number.into()),
                );
            }
            assert!(table.sources.len() <= 100);
        }
        // The last one is there, and pushed out the first.
        let last = IpAddr::from(9999_u32.to_be_bytes());
        assert!(table.holds(last, now + Duration::from_millis(9999)));
    }
}
