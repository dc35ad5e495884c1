//! Names of users and groups, from the system's files.
//!
//! Constraint: read once, when they are first asked for. Users of a directory service are shown as numbers.

use std::collections::HashMap;
use std::sync::OnceLock;

use knarr_sftp::server::UserNames;

/// The names of `/etc/passwd` and `/etc/group`.
#[derive(Debug, Default)]
pub(crate) struct SystemNames {
    users: OnceLock<HashMap<u32, String>>,
    groups: OnceLock<HashMap<u32, String>>,
}

impl UserNames for SystemNames {
    fn user(&self, id: u32) -> String {
        let users = self.users.get_or_init(|| read("/etc/passwd"));
        users.get(&id).cloned().unwrap_or_default()
    }

    fn group(&self, id: u32) -> String {
        let groups = self.groups.get_or_init(|| read("/etc/group"));
        groups.get(&id).cloned().unwrap_or_default()
    }
}

fn read(path: &str) -> HashMap<u32, String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let named = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
    };
    let mut names = HashMap::new();
    for (id, name) in text.lines().filter_map(named) {
        // The first name of a number counts, as for the C library.
        names.entry(id).or_insert(name);
    }
    names
}

/// The home directory of a user, by the same file.
pub(crate) fn home_of(user: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(user))?;
    line.split(':').nth(5).map(str::to_owned)
}
