//! Carries one direction of one connection.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::line::{Item, Line};
use super::{Action, Behaviour, Direction, Fault, IN_FLIGHT_BYTES, Link, Shared};

/// How often a waiting thread looks whether its connection was ended.
pub(super) const GLANCE: Duration = Duration::from_millis(50);

/// Bytes read at once.
const CHUNK: usize = 256 * 1024;

/// Most bytes held back where there is no latency: a proxy that hides back pressure would make a
/// slow receiver look fast.
const UNDELAYED_BYTES: usize = 256 * 1024;

/// Bytes written at once where there is a limit, so that the flow is even.
const THROTTLED_CHUNK: usize = 4096;

/// Carries `direction` of `link` until its end.
pub(super) fn run(link: &Arc<Link>, direction: Direction, shared: &Arc<Shared>) {
    let (from, to, count) = match direction {
        Direction::ToServer => (&link.client, &link.server, &shared.to_server),
        Direction::ToClient => (&link.server, &link.client, &shared.to_client),
    };
    let line = Line::new();
    let side = Side {
        link,
        direction,
        shared,
        to,
        count,
    };
    thread::scope(|scope| {
        scope.spawn(|| read_all(from, &line, &side));
        write_all(&line, &side);
    });
}

struct Side<'a> {
    link: &'a Arc<Link>,
    direction: Direction,
    shared: &'a Arc<Shared>,
    to: &'a TcpStream,
    count: &'a AtomicU64,
}

/// Whether the thread is to go on.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Stop,
}

impl Side<'_> {
    fn black_hole(&self) -> bool {
        self.link.black_hole.load(Ordering::Relaxed)
            || self.shared.lock().behaviour == Behaviour::BlackHole
    }

    /// Waits while nothing may pass.
    fn wait_in_black_hole(&self) -> Next {
        while self.black_hole() {
            if self.link.is_dead() {
                return Next::Stop;
            }
            let control = self.shared.lock();
            drop(
                self.shared
                    .changed
                    .wait_timeout(control, GLANCE)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
        if self.link.is_dead() {
            Next::Stop
        } else {
            Next::Go
        }
    }

    /// The first fault within `start..end`, taken off the list.
    fn take_fault(&self, start: u64, end: u64) -> Option<Fault> {
        let mut control = self.shared.lock();
        let here = |fault: &Fault| {
            fault.direction == self.direction
                && (start..end).contains(&fault.at_byte)
                && fault
                    .connection
                    .is_none_or(|number| number == self.link.number)
        };
        let (index, _) = control
            .faults
            .iter()
            .enumerate()
            .filter(|(_, fault)| here(fault))
            .min_by_key(|(_, fault)| fault.at_byte)?;
        self.shared.faults.fetch_add(1, Ordering::Relaxed);
        Some(control.faults.remove(index))
    }

    /// Writes all of `data`, evenly if there is a limit.
    fn write(&self, data: &[u8]) -> io::Result<()> {
        let throttle = self.shared.lock().throttle;
        let step = if throttle.is_some() {
            THROTTLED_CHUNK
        } else {
            data.len().max(1)
        };
        for part in data.chunks(step) {
            let start = Instant::now();
            self.write_part(part)?;
            if let Some(bytes_per_second) = throttle {
                let share = u64::try_from(part.len()).unwrap_or(u64::MAX);
                let nanoseconds = share.saturating_mul(1_000_000_000) / bytes_per_second.max(1);
                self.pause_until(start + Duration::from_nanos(nanoseconds));
            }
        }
        Ok(())
    }

    fn write_part(&self, mut part: &[u8]) -> io::Result<()> {
        let mut to = self.to;
        while !part.is_empty() {
            if self.link.is_dead() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            match to.write(part) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.count
                        .fetch_add(u64::try_from(written).unwrap_or(0), Ordering::Relaxed);
                    part = part.get(written..).unwrap_or_default();
                }
                Err(error) if is_glance(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sleeps until `instant`, or until the connection is ended.
    fn pause_until(&self, instant: Instant) {
        loop {
            let left = instant.saturating_duration_since(Instant::now());
            if left.is_zero() || self.link.is_dead() {
                return;
            }
            thread::sleep(left.min(GLANCE));
        }
    }

    /// Carries out a fault (all but the corruption, which needs the data).
    fn act(&self, action: Action) -> Next {
        match action {
            Action::Reset => {
                self.link.reset();
                Next::Stop
            }
            Action::Close => {
                self.link.close();
                Next::Stop
            }
            Action::HalfClose => {
                self.to.shutdown(Shutdown::Write).ok();
                Next::Stop
            }
            Action::BlackHole => {
                self.link.black_hole.store(true, Ordering::SeqCst);
                self.wait_in_black_hole()
            }
            Action::Stall(duration) => {
                self.pause_until(Instant::now() + duration);
                Next::Go
            }
            Action::Corrupt => Next::Go,
        }
    }
}

fn is_glance(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn read_all(mut from: &TcpStream, line: &Line, side: &Side<'_>) {
    let mut buffer = line.buffer(CHUNK);
    while side.wait_in_black_hole() == Next::Go {
        let item = match from.read(&mut buffer) {
            Ok(0) => Item::End,
            // A small piece is copied, so that the line does not hold large buffers for it.
            Ok(length) if length < CHUNK / 4 => {
                Item::Data(buffer.get(..length).unwrap_or_default().to_vec())
            }
            Ok(length) => {
                let mut full = std::mem::replace(&mut buffer, line.buffer(CHUNK));
                full.truncate(length);
                Item::Data(full)
            }
            Err(error) if is_glance(&error) => continue,
            Err(_) => Item::Broken,
        };
        let last = !matches!(item, Item::Data(_));
        if push(item, line, side) == Next::Stop || last {
            return;
        }
    }
}

fn push(mut item: Item, line: &Line, side: &Side<'_>) -> Next {
    loop {
        let delayed = !side.shared.lock().latency.is_zero();
        let limit = if delayed {
            IN_FLIGHT_BYTES
        } else {
            UNDELAYED_BYTES
        };
        match line.push(item, limit, GLANCE) {
            Ok(()) => return Next::Go,
            Err(_) if side.link.is_dead() => return Next::Stop,
            Err(back) => item = back,
        }
    }
}

fn write_all(line: &Line, side: &Side<'_>) {
    let mut position = 0_u64;
    let mut open = true;
    loop {
        let Some((arrived, item)) = line.pop(GLANCE) else {
            if side.link.is_dead() {
                return;
            }
            continue;
        };
        let latency = side.shared.lock().latency;
        side.pause_until(arrived + latency);
        if side.wait_in_black_hole() == Next::Stop {
            return;
        }
        match item {
            Item::Data(mut data) => {
                let length = data.len();
                // After a half close the rest is read and dropped, so that the sender can go on.
                if open && deliver(&mut data, position, side) == Next::Stop {
                    open = false;
                }
                position += u64::try_from(length).unwrap_or(0);
                line.give_back(length, data);
            }
            Item::End => {
                side.to.shutdown(Shutdown::Write).ok();
                return;
            }
            Item::Broken => {
                side.link.reset();
                return;
            }
        }
    }
}

/// Writes one chunk, which starts at `position`, with the faults that lie in it.
fn deliver(data: &mut [u8], position: u64, side: &Side<'_>) -> Next {
    let mut done = 0;
    while done < data.len() {
        let start = position + u64::try_from(done).unwrap_or(0);
        let end = position + u64::try_from(data.len()).unwrap_or(0);
        let fault = side.take_fault(start, end);
        let place = fault.map_or(data.len(), |fault| {
            usize::try_from(fault.at_byte - position).unwrap_or(data.len())
        });
        if side
            .write(data.get(done..place).unwrap_or_default())
            .is_err()
        {
            side.link.reset();
            return Next::Stop;
        }
        done = place;
        let Some(fault) = fault else { continue };
        if fault.action == Action::Corrupt {
            if let Some(byte) = data.get_mut(place) {
                *byte = !*byte;
            }
        } else if side.act(fault.action) == Next::Stop {
            return Next::Stop;
        }
    }
    Next::Go
}
