//! Reads what a manifest lists. What comes from outside is no path before it was checked (K12).

use std::collections::BTreeMap;

use knarr_core::RelPath;
use knarr_core::job::ManifestFormat;
use knarr_core::path::printable;
use knarr_steps::{ChecksumAlgorithm, Hasher};
use serde::Deserialize;

use super::{Expected, LISTED};

/// What the manifest at `path` lists, by paths below the source.
///
/// # Errors
/// A text for a person, if anything in it cannot be used: then nothing of it is.
pub(super) fn listed(
    text: &[u8],
    path: &RelPath,
    format: ManifestFormat,
) -> Result<BTreeMap<RelPath, Expected>, String> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut listed = BTreeMap::new();
    let mut add = |place: &str, name: &[u8], expected| -> Result<(), String> {
        let wrong = |reason: &str| {
            let name: Vec<u8> = name.iter().copied().take(200).collect();
            format!("{place} names \"{}\", {reason}", printable(&name))
        };
        let plain = name.strip_prefix(b"./").unwrap_or(name);
        let below = RelPath::new(plain)
            .map_err(|error| wrong(&format!("which is no path below it: {error}")))?;
        let full = match path.parent() {
            Some(directory) => directory.join(&below),
            None => Ok(below),
        };
        let full = full.map_err(|error| wrong(&format!("which is no path: {error}")))?;
        if full == *path {
            return Err(wrong("which is the manifest itself"));
        }
        if listed.len() >= LISTED {
            return Err(format!("it lists more than {LISTED} files"));
        }
        if listed.insert(full, expected).is_some() {
            return Err(wrong("for the second time"));
        }
        Ok(())
    };
    match format {
        ManifestFormat::Json => {
            for (number, item) in items(text)?.into_iter().enumerate() {
                let place = format!("item {}", number + 1);
                let (name, expected) = item.read().map_err(|why| format!("{place}: {why}"))?;
                add(&place, name.as_bytes(), expected)?;
            }
        }
        _ => {
            for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                let place = format!("line {}", number + 1);
                let is_remark = format == ManifestFormat::Lines && line.starts_with(b"#");
                if line.trim_ascii().is_empty() || is_remark {
                    continue;
                }
                let Some(algorithm) = algorithm(format) else {
                    add(&place, line, Expected::default())?;
                    continue;
                };
                let (name, checksum) =
                    checked(line, algorithm).ok_or_else(|| no_checksum(&place, algorithm))?;
                let expected = Expected {
                    size: None,
                    checksum: Some((algorithm, checksum)),
                };
                add(&place, &name, expected)?;
            }
        }
    }
    if listed.is_empty() {
        return Err("it lists no file".to_owned());
    }
    Ok(listed)
}

const fn algorithm(format: ManifestFormat) -> Option<ChecksumAlgorithm> {
    match format {
        ManifestFormat::Lines | ManifestFormat::Json => None,
        ManifestFormat::Sha256sum => Some(ChecksumAlgorithm::Sha256),
        ManifestFormat::Sha512sum => Some(ChecksumAlgorithm::Sha512),
        ManifestFormat::Md5sum => Some(ChecksumAlgorithm::Md5),
    }
}

fn no_checksum(place: &str, algorithm: ChecksumAlgorithm) -> String {
    let tool = algorithm.suffix().trim_start_matches('.');
    format!("{place} is not a line as {tool}sum writes it: a checksum, two spaces, a name")
}

fn is_checksum(word: &[u8], algorithm: ChecksumAlgorithm) -> bool {
    word.len() == Hasher::new(algorithm).finish().len() && word.iter().all(u8::is_ascii_hexdigit)
}

fn lower(checksum: &[u8]) -> String {
    String::from_utf8_lossy(checksum).to_ascii_lowercase()
}

/// The name and the checksum of a line of `sha256sum` and its like.
fn checked(line: &[u8], algorithm: ChecksumAlgorithm) -> Option<(Vec<u8>, String)> {
    // A name with a line feed or backslash in it is escaped, and the line says so.
    let (line, escaped) = match line.strip_prefix(b"\\") {
        Some(rest) => (rest, true),
        None => (line, false),
    };
    let space = line.iter().position(|byte| *byte == b' ')?;
    let (checksum, rest) = line.split_at_checked(space)?;
    if !is_checksum(checksum, algorithm) {
        return None;
    }
    let name = rest
        .strip_prefix(b"  ")
        .or_else(|| rest.strip_prefix(b" *"))?;
    let name = if escaped {
        unescaped(name)?
    } else {
        name.to_vec()
    };
    Some((name, lower(checksum)))
}

fn unescaped(name: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next()? {
                b'\\' => b'\\',
                b'n' => b'\n',
                b'r' => b'\r',
                _ => return None,
            },
            other => *other,
        });
    }
    Some(plain)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum JsonItem {
    Name(String),
    Object(JsonObject),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonObject {
    name: String,
    size: Option<u64>,
    sha256: Option<String>,
    sha512: Option<String>,
    md5: Option<String>,
}

fn items(text: &[u8]) -> Result<Vec<JsonItem>, String> {
    serde_json::from_slice(text).map_err(|error| {
        format!(
            "it is not a JSON list of names, or of objects with `name` and perhaps `size`, `sha256`, `sha512` \
             and `md5`: {error}"
        )
    })
}

impl JsonItem {
    fn read(self) -> Result<(String, Expected), String> {
        let object = match self {
            Self::Name(name) => return Ok((name, Expected::default())),
            Self::Object(object) => object,
        };
        let strongest = [
            (ChecksumAlgorithm::Sha512, object.sha512),
            (ChecksumAlgorithm::Sha256, object.sha256),
            (ChecksumAlgorithm::Md5, object.md5),
        ];
        let mut checksum = None;
        for (algorithm, given) in strongest {
            let Some(given) = given else { continue };
            if !is_checksum(given.as_bytes(), algorithm) {
                let name = algorithm.suffix().trim_start_matches('.');
                return Err(format!(
                    "its {name} is not a checksum in hexadecimal digits"
                ));
            }
            checksum = checksum.or_else(|| Some((algorithm, lower(given.as_bytes()))));
        }
        let size = object.size;
        Ok((object.name, Expected { size, checksum }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    fn read(text: &[u8], format: ManifestFormat) -> Result<BTreeMap<RelPath, Expected>, String> {
        listed(text, &path("in/all.manifest"), format)
    }

    fn names(listed: &BTreeMap<RelPath, Expected>) -> Vec<String> {
        listed.keys().map(RelPath::to_string).collect()
    }

    #[test]
    fn names_are_below_the_directory_of_the_manifest() {
        let text = b"\xef\xbb\xbf# what there is\r\nb.csv\r\n\r\n./a.csv\nsub/c d.csv\n";
        let found = read(text, ManifestFormat::Lines).unwrap();
        assert_eq!(names(&found), ["in/a.csv", "in/b.csv", "in/sub/c d.csv"]);
    }

    #[test]
    fn checksums_are_read_as_the_tools_write_them() {
        let sum = "9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08";
        let text = format!("{sum}  a.csv\n{sum} *b.csv\n\\{sum}  c\\\\d\n");
        let found = read(text.as_bytes(), ManifestFormat::Sha256sum).unwrap();
        assert_eq!(names(&found), ["in/a.csv", "in/b.csv", "in/c\\d"]);
        let all_same = found.values().all(|expected| {
            expected.checksum == Some((ChecksumAlgorithm::Sha256, sum.to_ascii_lowercase()))
        });
        assert!(all_same, "{found:?}");
        for wrong in ["a.csv\n", "abc  a.csv\n", &format!("{sum} a.csv\n")] {
            let error = read(wrong.as_bytes(), ManifestFormat::Sha256sum).unwrap_err();
            assert!(error.contains("line 1"), "{error}");
        }
        let error = read(text.as_bytes(), ManifestFormat::Md5sum).unwrap_err();
        assert!(error.contains("md5sum"), "{error}");
    }

    #[test]
    fn json_names_files_with_what_is_known_of_them() {
        let text = br#"["a", {"name": "b", "size": 7, "md5": "d41d8cd98f00b204e9800998ecf8427e"}]"#;
        let found = read(text, ManifestFormat::Json).unwrap();
        let b = &found[&path("in/b")];
        assert_eq!(b.size, Some(7));
        assert!(matches!(b.checksum, Some((ChecksumAlgorithm::Md5, _))));
        for wrong in [
            &b"{"[..],
            b"{\"files\": []}",
            br#"[{"name": "a", "sha1": "x"}]"#,
            br#"[{"name": "a", "sha256": "x"}]"#,
        ] {
            read(wrong, ManifestFormat::Json).unwrap_err();
        }
    }

    #[test]
    fn h02_a_manifest_that_names_what_is_no_path_below_it_is_not_used_at_all() {
        let long = [b"a".repeat(40_000), b"\n".to_vec()].concat();
        let many: Vec<u8> = (0..=LISTED)
            .flat_map(|number| format!("{number}\n").into_bytes())
            .collect();
        let cases: [(&[u8], &str); 13] = [
            (b"good\n/etc/passwd\n", "line 2"),
            (b"../other\n", "line 1"),
            (b"a/../../b\n", "line 1"),
            (b"a//b\n", "line 1"),
            (b"a\0b\n", "line 1"),
            (b"a\na\n", "second time"),
            (b"a\n./a\n", "second time"),
            (b"all.manifest\n", "itself"),
            (b"", "no file"),
            (b"# nothing\n", "no file"),
            (b"\0", "line 1"),
            (&long, "line 1"),
            (&many, "more than"),
        ];
        for (text, told) in cases {
            let error = read(text, ManifestFormat::Lines).unwrap_err();
            assert!(error.contains(told), "{error}");
            assert!(error.len() < 1_000, "{error}");
        }
    }
}
