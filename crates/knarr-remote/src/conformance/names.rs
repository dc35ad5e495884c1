//! Names: every one arrives byte-exact or is refused; none is changed, dropped or merged.

use std::collections::BTreeMap;

use bytes::Bytes;
use knarr_core::RelPath;

use super::Fixture;
use super::support::{
    assert_content, assert_refused, chain, file_options, list, put, read_all, relative, stat,
    try_put,
};
use crate::error::ErrorKind;
use crate::listing::ListOptions;
use crate::remote::{ReadOptions, Replace};

/// Names that somebody somewhere handled wrongly (R-37, H-02).
fn nasty_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "-rf",
        "--",
        "~",
        "~root",
        " ",
        " leading",
        "trailing ",
        "trailing.",
        "...",
        "..a",
        "a..",
        "new\nline",
        "carriage\rreturn",
        "tab\tbed",
        "\u{1b}[31mred",
        "\u{7f}",
        "quote\"d",
        "it's",
        "back\\slash",
        "C:",
        "a:b",
        "CON",
        "nul.txt",
        "LPT1",
        "*",
        "?",
        "[a-z]",
        "{a,b}",
        "$(id)",
        "`id`",
        "a;b",
        "a|b",
        "a&b=c",
        "a+b",
        "100%",
        "%2e%2e",
        "%2F",
        "a%00b",
        "a#b",
        "a?b=c",
        "<xml>&amp;",
        "@",
        "=cmd",
        "\u{202e}gpj.exe",
        "caf\u{e9}",
        "cafe\u{301}",
        "\u{1f6a2}",
        "\u{feff}bom",
        "日本語",
        "a\u{a0}b",
        "é".repeat(127).as_str(),
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.push(vec![b'n'; 255]);
    names.push(b"latin-1 caf\xe9".to_vec());
    names.push(b"\xff\xfe".to_vec());
    names.push(b"\xff\xfd".to_vec());
    names.push(b"cut utf-8 \xe2\x82".to_vec());
    names
}

pub(super) async fn r37_every_name_arrives_byte_exact_or_is_refused(fixture: Fixture) {
    let remote = &*fixture.subject;
    let mut paths: Vec<RelPath> = Vec::new();
    for name in nasty_names() {
        paths.push(RelPath::from_name(&name).expect("nasty, but a name"));
        let below = [b"in \\ a \xc3\xa9 [directory]/".as_slice(), &name].concat();
        paths.push(RelPath::new(below).expect("nasty, but a path"));
    }
    paths.push(relative(&["level twenty chars -"; 30].join("/")));

    let mut written: BTreeMap<RelPath, Bytes> = BTreeMap::new();
    for (number, path) in paths.into_iter().enumerate() {
        let content = Bytes::from(format!("content {number}"));
        let options = file_options(&path, content.len(), Replace::Nothing);
        match try_put(remote, &path, options, &content).await {
            Ok(committed) => {
                assert_eq!(
                    committed.entry.path, path,
                    "the commit is about another name"
                );
                written.insert(path, content);
            }
            // Taken by a twin that this place holds for the same name, or not possible here.
            Err(error) => assert!(
                matches!(
                    error.kind,
                    ErrorKind::InvalidName | ErrorKind::AlreadyExists
                ),
                "\"{path}\" was refused without saying that it is the name: {}",
                chain(&error)
            ),
        }
    }
    assert!(
        written.len() > 20,
        "only {} of the names can be held",
        written.len()
    );

    let listed = list(remote, ListOptions::default()).await;
    let files: Vec<&RelPath> = listed
        .iter()
        .filter(|entry| entry.kind == knarr_core::Kind::File)
        .map(|entry| &entry.path)
        .collect();
    for path in written.keys() {
        assert!(
            files.contains(&path),
            "\"{path}\" was written and is not listed"
        );
    }
    for path in &files {
        assert!(
            written.contains_key(*path),
            "\"{path}\" is listed and was not written"
        );
    }
    for (path, content) in &written {
        match read_all(remote, path, ReadOptions::default()).await {
            Ok(read) => assert_eq!(read, content[..], "the content of \"{path}\""),
            Err(error) => panic!("reading \"{path}\" failed: {}", chain(&error)),
        }
    }
}

pub(super) async fn r38_names_that_differ_by_case_never_merge(fixture: Fixture) {
    let remote = &*fixture.subject;
    let (first, second) = (
        Bytes::from_static(b"first"),
        Bytes::from_static(b"the second"),
    );
    put(remote, "Docs/Readme", first.clone()).await;
    for other in ["Docs/README", "docs/readme"] {
        let path = relative(other);
        let options = file_options(&path, second.len(), Replace::Nothing);
        let result = try_put(remote, &path, options, &second).await;
        if remote.describe().capabilities.case_insensitive {
            assert_refused(
                result,
                &[ErrorKind::AlreadyExists],
                "writing the same name in capitals",
            );
            assert!(
                stat(remote, other).await.is_some(),
                "the same name is not found"
            );
        } else {
            if let Err(error) = result {
                panic!(
                    "\"{path}\" is another name and was refused: {}",
                    chain(&error)
                );
            }
            assert_content(remote, other, &second).await;
        }
    }
    assert_content(remote, "Docs/Readme", &first).await;
}
