//! What the fuzz targets and the replay of their corpora run: any bytes, and what must hold for them.

use jiff::tz::TimeZone;

use crate::entry::{Entry, Kind};
use crate::filter::Filter;
use crate::location::Location;
use crate::path::{RelPath, tree_order};
use crate::plan::{conflict_path, numbered_path};
use crate::template::{Template, TemplateInput};
use crate::time::Timestamp;

/// Any bytes as a path: accepted, they survive a round trip and never lead out; and every name made
/// from them is a path again.
///
/// # Panics
/// If one of that does not hold.
pub fn path(bytes: &[u8]) {
    let Ok(path) = RelPath::new(bytes) else {
        return;
    };
    assert_eq!(path.as_bytes(), bytes);
    assert!(
        path.components()
            .all(|component| !matches!(component, b"" | b"." | b".."))
    );
    for kind in [Kind::File, Kind::Directory] {
        let back = RelPath::from_order_key(&path.order_key(kind)).expect("a key reads back");
        assert_eq!(back, path);
        assert!(tree_order((&path, kind), (&path, kind)).is_eq());
    }
    let shown = path.to_string();
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    for made in [
        numbered_path(&path, 2),
        conflict_path(&Entry::file(path.clone(), 1)),
    ] {
        assert!(RelPath::new(made.as_bytes()).is_ok());
        assert_eq!(made.parent(), path.parent());
    }
    if let Some(parent) = path.parent() {
        assert!(path.is_below(&parent));
        assert_eq!(parent.join_name(path.name()).as_ref(), Ok(&path));
    }
}

/// Any text as a template, a location and a glob, and a path through the template: no panic, and what
/// comes out of a template is a path.
///
/// # Panics
/// If that does not hold.
pub fn template(bytes: &[u8]) {
    let (text, path) = match bytes.iter().position(|byte| *byte == 0) {
        Some(zero) => (
            bytes.get(..zero).unwrap_or_default(),
            bytes.get(zero + 1..).unwrap_or_default(),
        ),
        None => (bytes, b"dir/name.csv".as_slice()),
    };
    let text = String::from_utf8_lossy(text);
    if let Ok(location) = Location::parse(&text) {
        // What is shown reads back as the same place.
        let shown = location.to_string();
        assert_eq!(Location::parse(&shown).as_ref(), Ok(&location), "{shown}");
    }
    let filter = Filter::new([&*text], []);
    let (Ok(template), Ok(path)) = (Template::parse(&text), RelPath::new(path)) else {
        return;
    };
    if let Ok(filter) = filter {
        let _taken: bool = filter.takes_path_from_root(&path, Kind::File);
    }
    let input = TemplateInput {
        path: &path,
        mtime: None,
        now: Timestamp::from_seconds(1_795_251_600),
        time_zone: &TimeZone::UTC,
        matched: None,
    };
    if let Ok(filled) = template.fill(&input) {
        assert!(RelPath::new(filled.as_bytes()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    fn replay(target: &str, run: fn(&[u8])) {
        let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../fuzz/corpus")
            .join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(corpus).expect("the corpus is part of the repository") {
            run(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 15, "only {count} files in the corpus of {target}");
    }

    #[test]
    fn k12_the_corpus_of_paths_is_replayed() {
        replay("relpath", super::path);
    }

    #[test]
    fn h58_the_corpus_of_templates_is_replayed() {
        replay("template", super::template);
    }
}
