//! The line that `ls -l` would print: some clients show it, and old ones read it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use knarr_core::time::{Clock as _, SystemClock};
use knarr_sftp::codec::Attributes;
use knarr_sftp::server::UserNames;
use rustix::fs::{FileType, Stat};

use crate::files::attributes::size_of;

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
    let shown = Shown {
        mode: stat.st_mode,
        // Its type is another one on each system.
        links: stat.st_nlink.to_string(),
        owner: (stat.st_uid, stat.st_gid),
        size: size_of(stat),
        modified_seconds: stat.st_mtime,
    };
    line(name, &shown, names, zone, now_seconds)
}

/// The line for something of which only the attributes are known.
pub(crate) fn line_of(name: &[u8], attributes: &Attributes, names: &dyn UserNames) -> Vec<u8> {
    let owner = attributes
        .owner
        .map_or((0, 0), |owner| (owner.user, owner.group));
    let shown = Shown {
        mode: attributes.permissions.unwrap_or(0),
        links: "1".to_owned(),
        owner,
        size: attributes.size.unwrap_or(0),
        modified_seconds: attributes
            .times
            .map_or(0, |times| times.modified_seconds.into()),
    };
    let now_seconds = SystemClock.now().seconds();
    line(name, &shown, names, &TimeZone::UTC, now_seconds)
}

/// What is shown of something.
struct Shown {
    mode: u32,
    links: String,
    owner: (u32, u32),
    size: u64,
    modified_seconds: i64,
}

fn line(
    name: &[u8],
    shown: &Shown,
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
    let user = or_number(names.user(shown.owner.0), shown.owner.0);
    let group = or_number(names.group(shown.owner.1), shown.owner.1);
    let age = now_seconds.saturating_sub(shown.modified_seconds);
    let format = if (0..RECENT_SECONDS).contains(&age) {
        "%b %e %H:%M"
    } else {
        "%b %e  %Y"
    };
    let time = Timestamp::from_second(shown.modified_seconds).map_or_else(
        |_| "?".to_owned(),
        |time| time.to_zoned(zone.clone()).strftime(format).to_string(),
    );
    let mut line = format!(
        "{} {:>4} {user:<8} {group:<8} {:>8} {time:<12} ",
        mode_text(shown.mode),
        shown.links,
        shown.size,
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
