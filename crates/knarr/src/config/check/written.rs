//! What the file says, to be compared with what it said before.

use std::collections::BTreeMap;

use crate::config::node::{Node, Value};

/// What the file says of the node, its SFTP server, its targets and alerts, as JSON: the first two key by key.
pub(super) fn sections(root: &Node) -> BTreeMap<String, String> {
    let mut written = BTreeMap::new();
    for section in ["node", "sftp_server", "targets", "alerts"] {
        let Some((_, node)) = root.get(section) else {
            continue;
        };
        match &node.value {
            Value::Map(entries) if matches!(section, "node" | "sftp_server") => {
                // That it is there is said by something.
                written.insert(section.to_owned(), String::new());
                for (key, node) in entries {
                    written.insert(format!("{section}.{}", key.name), node.json());
                }
            }
            _ => {
                written.insert(section.to_owned(), node.json());
            }
        }
    }
    written
}
