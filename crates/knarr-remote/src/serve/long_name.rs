//! The line that `ls -l` would print: some clients show it, and old ones read it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use knarr_sftp::server::UserNames;
use rustix::fs::{FileType, Stat};

use crate::serve::attributes::size_of;

/// Files changed longer ago than this, in seconds, are shown with the year: half a year, as `ls` has it.
const RECENT_SECONDS: i64 = 365 * 24 * 60 * 60 / 2;

/// The line for `name`. `now_seconds` decides whether the year or the time is shown.
pub(crate) fn long_name(
    name: &[u8],
    stat: &Stat,
    names: &dyn UserNames,
    zone: &TimeZone,
    now_seconds: i64,
) -> Vec<u8> {
    let or_number = |name: String, id: u32| {
        if name.is_empty() {
            id.to_string()
        } else {
            name
        }
    };
    let user = or_number(names.user(stat.st_uid), stat.st_uid);
    let group = or_number(names.group(stat.st_gid), stat.st_gid);
    let age = now_seconds.saturating_sub(stat.st_mtime);
    let format = if (0..RECENT_SECONDS).contains(&age) {
        "%b %e %H:%M"
    } else {
        "%b %e  %Y"
    };
    let time = Timestamp::from_second(stat.st_mtime).map_or_else(
        |_| "?".to_owned(),
        |time| time.to_zoned(zone.clone()).strftime(format).to_string(),
    );
    let mut line = format!(
        "{} {:>4} {user:<8} {group:<8} {:>8} {time:<12} ",
        mode_text(stat.st_mode),
        stat.st_nlink,
        size_of(stat),
    )
    .into_bytes();
    line.extend_from_slice(name);
    line
}

fn mode_text(mode: u32) -> String {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        _ => '-',
    };
    let mut text = String::with_capacity(10);
    text.push(kind);
    for (shift, special, marks) in [(6, 0o4000, "sS"), (3, 0o2000, "sS"), (0, 0o1000, "tT")] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        let mut marks = marks.chars();
        let (with, without) = (marks.next().unwrap_or('s'), marks.next().unwrap_or('S'));
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => with,
            (true, false) => without,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_shown_as_ls_shows_them() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "lrwxrwxrwx"),
            (0o104_755, "-rwsr-xr-x"),
            (0o041_777, "drwxrwxrwt"),
            (0o102_640, "-rw-r-S---"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }
}
