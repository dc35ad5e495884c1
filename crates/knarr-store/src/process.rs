//! Which process, so that it can be told later whether it is still there.
//!
//! A process number alone is used again. With the boot, the namespace of process numbers and the time
//! the process started it is unique. Where one of these cannot be had, the answer leans to "may still
//! live": a dead run shown as running is a lesser evil than a live one shown as dead.

use std::fs;

use rustix::process::{Pid, test_kill_process};

/// Whether a process is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Dead,
    MayLive,
}

/// This process, as it is noted in a run: `pid boot namespace start`.
pub(crate) fn token() -> String {
    let pid = std::process::id();
    format!(
        "{pid} {} {} {}",
        boot(),
        namespace(),
        start_of(pid).unwrap_or_else(unknown)
    )
}

/// Whether the process that wrote `token` is there.
pub(crate) fn life_of(token: &str) -> Life {
    let mut words = token.split(' ');
    let (Some(pid), Some(boot_then), Some(namespace_then), Some(start_then)) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Life::MayLive;
    };
    if boot_then != "?" && boot() != "?" && boot_then != boot() {
        return Life::Dead;
    }
    if namespace_then != namespace() {
        return Life::MayLive;
    }
    let Some((number, pid)) = pid
        .parse::<u32>()
        .ok()
        .and_then(|number| Some((number, Pid::from_raw(i32::try_from(number).ok()?)?)))
    else {
        return Life::MayLive;
    };
    if test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
        return Life::Dead;
    }
    match start_of(number) {
        Some(start) if start_then != "?" && start != start_then => Life::Dead,
        _ => Life::MayLive,
    }
}

fn unknown() -> String {
    "?".to_owned()
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| unknown(), |text| text.trim().to_owned())
}

fn namespace() -> String {
    fs::read_link("/proc/self/ns/pid").map_or_else(
        |_| unknown(),
        |link| link.to_string_lossy().replace(' ', "_"),
    )
}

/// When a process started, in ticks since boot: the 22nd field of `stat`, counted behind the name, which
/// may contain anything.
fn start_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_another_with_its_number_does_not() {
        assert_eq!(life_of(&token()), Life::MayLive);
        let mut words: Vec<String> = token().split(' ').map(str::to_owned).collect();
        words[3] = "1".to_owned();
        assert_eq!(life_of(&words.join(" ")), Life::Dead);
        words[1] = "another-boot".to_owned();
        assert_eq!(life_of(&words.join(" ")), Life::Dead);
    }

    #[test]
    fn a_process_that_ended_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let start = start_of(child.id()).unwrap_or_else(unknown);
        let token = format!("{} {} {} {start}", child.id(), boot(), namespace());
        child.wait().unwrap();
        assert_eq!(life_of(&token), Life::Dead);
        assert_eq!(life_of("nonsense"), Life::MayLive);
    }
}
