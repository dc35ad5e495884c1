//! Archives made by zip, and such that only an attacker makes.

use knarr_steps::{ArchiveFault, Node, StepError};

use crate::files::{Output, contents, context, fault, run, run_one};
use crate::programs::{output_of, run_in};
use crate::support::text;
use crate::zip_builder::{Entry, archive, deflated, stored};

fn extract(content: &[u8]) -> Result<Vec<Output>, StepError> {
    run_one("[extract]", &context(), "x.zip", content)
}

fn refused(entries: &[Entry]) -> ArchiveFault {
    fault(extract(&archive(entries)))
}

#[test]
fn archives_made_by_zip_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let content = text(700_000);
    std::fs::create_dir_all(at.join("d/e")).unwrap();
    std::fs::write(at.join("d/a.csv"), &content).unwrap();
    std::fs::write(at.join("d/e/\u{fc}"), b"umlaut").unwrap();
    std::fs::write(at.join("d/empty"), b"").unwrap();
    std::os::unix::fs::symlink("a.csv", at.join("d/link")).unwrap();
    for (arguments, name) in [
        (&["-qry", "x.zip", "d"][..], "x.zip"),
        (&["-qry0", "y.zip", "d"], "y.zip"),
    ] {
        output_of(at, "zip", arguments);
        let whole = std::fs::read(at.join(name)).unwrap();
        for chunk_bytes in [7, 65_536] {
            let out = run("[extract]", &context(), &[("in/x", &whole)], chunk_bytes).unwrap();
            let find = |name: &str| {
                out.iter()
                    .find(|one| one.path == format!("in/{name}"))
                    .unwrap()
            };
            assert!(find("d/a.csv").content == content);
            assert_eq!(find("d/e/\u{fc}").content, b"umlaut");
            assert_eq!(find("d/empty").content, b"");
            assert_eq!(find("d/e").node, Node::Directory);
            let target = b"a.csv".as_slice().into();
            assert_eq!(find("d/link").node, Node::Symlink { target });
        }
    }
    // Written to a pipe: the lengths stand behind the contents.
    let piped = run_in(at, "sh", &["-c", "cat d/a.csv | zip -q - - | cat"], b"").unwrap();
    let out = extract(&piped).unwrap();
    assert!(contents(&out) == [("-", content.as_slice())]);
}

#[test]
fn archives_made_here_can_be_read_by_unzip_and_python() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let content = text(300_000);
    let inputs: [(&str, &[u8]); 3] = [("d/a.csv", &content), ("d/\u{fc}", b"x"), ("b", b"")];
    let out = run(
        "[{ archive: { format: zip, name: x.zip } }]",
        &context(),
        &inputs,
        65_536,
    )
    .unwrap();
    std::fs::write(at.join("x.zip"), &out[0].content).unwrap();
    output_of(at, "unzip", &["-tq", "x.zip"]);
    let script = "import zipfile, sys; z = zipfile.ZipFile('x.zip'); assert z.testzip() is None; z.extractall('out')";
    output_of(at, "python3", &["-c", script]);
    for (name, wanted) in inputs {
        assert!(
            std::fs::read(at.join("out").join(name)).unwrap() == wanted,
            "{name}"
        );
    }
}

#[test]
fn an_archive_of_more_than_65535_files_has_the_long_end_and_can_be_read() {
    let names: Vec<String> = (0..65_600).map(|number| format!("f{number}")).collect();
    let inputs: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let out = run(
        "[{ archive: { format: zip, name: x.zip, level: 1 } }]",
        &context(),
        &inputs,
        1,
    )
    .unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("x.zip"), &out[0].content).unwrap();
    let script = "import zipfile; assert len(zipfile.ZipFile('x.zip').namelist()) == 65600";
    output_of(directory.path(), "python3", &["-c", script]);
    assert_eq!(extract(&out[0].content).unwrap().len(), 65_600);
    let result = run_one(
        "[{ extract: { max_entries: 65599 } }]",
        &context(),
        "x",
        &out[0].content,
    );
    assert!(matches!(
        fault(result),
        ArchiveFault::Limit {
            option: "max_entries",
            ..
        }
    ));
}

#[test]
fn h10_names_that_leave_the_directory_or_collide_refuse_the_whole_archive() {
    for name in [
        "../a",
        "/a",
        "a/../../b",
        "a\\b",
        "..\\a",
        "C:/x",
        "a//b",
        "",
    ] {
        let fault = refused(&[stored("good", b"x"), stored(name, b"x")]);
        let named = matches!(
            fault,
            ArchiveFault::Name(_) | ArchiveFault::AmbiguousName(_)
        );
        assert!(named, "{name}: {fault:?}");
    }
    assert_eq!(
        refused(&[stored("a", b""), stored("a", b"")]),
        ArchiveFault::Duplicate
    );
    assert_eq!(
        refused(&[stored("a", b""), stored("A", b"")]),
        ArchiveFault::CaseCollision
    );
    assert_eq!(
        refused(&[stored("a", b""), stored("a/b", b"")]),
        ArchiveFault::Conflict
    );
}

#[test]
fn h10_the_two_descriptions_of_an_entry_have_to_agree() {
    let good = stored("a", b"content");
    let other_name = Entry {
        local_name: b"../b".to_vec(),
        ..good.clone()
    };
    assert_eq!(refused(&[other_name]), ArchiveFault::Mismatch("the name"));
    let other_size = Entry {
        local_size: Some(3),
        ..good.clone()
    };
    assert_eq!(refused(&[other_size]), ArchiveFault::Mismatch("the length"));
    let mut extra = vec![0x75, 0x70, 9, 0, 1, 0, 0, 0, 0];
    extra.extend(b"../b");
    assert_eq!(
        refused(&[Entry {
            extra,
            ..good.clone()
        }]),
        ArchiveFault::Mismatch("the name")
    );
    let mut whole = archive(&[good]);
    whole[8] = 8;
    assert_eq!(
        fault(extract(&whole)),
        ArchiveFault::Mismatch("the compression")
    );
}

#[test]
fn h11_links_and_devices_of_zip_follow_the_same_rules() {
    let link = |target: &[u8]| Entry {
        mode: 0o120_777,
        ..stored("d/l", target)
    };
    assert_eq!(extract(&archive(&[link(b"../a")])).unwrap().len(), 1);
    for target in [
        &b"/etc/passwd"[..],
        b"../../a",
        b"a/../..",
        b"",
        &[b'x'; 5000],
    ] {
        let fault = refused(&[link(target)]);
        assert!(matches!(fault, ArchiveFault::Link(_)), "{fault:?}");
    }
    assert_eq!(
        refused(&[link(b"x"), stored("d/l/a", b"")]),
        ArchiveFault::Conflict
    );
    for mode in [0o020_666, 0o060_666, 0o140_666] {
        let fault = refused(&[Entry {
            mode,
            ..stored("x", b"")
        }]);
        assert!(matches!(fault, ArchiveFault::Special(_)), "{fault:?}");
    }
    let setuid = Entry {
        mode: 0o106_755,
        ..stored("x", b"x")
    };
    assert_eq!(extract(&archive(&[setuid])).unwrap()[0].mode, Some(0o755));
}

#[test]
fn h12_entries_that_share_bytes_are_refused_before_anything_is_put_out() {
    let kernel = deflated("a", &vec![0; 1 << 20]);
    let mut entries = vec![kernel];
    for number in 1..50 {
        let mut again = stored(&format!("f{number}"), b"");
        again.offset = Some(0);
        entries.push(again);
    }
    assert_eq!(refused(&entries), ArchiveFault::Overlap);
    // As in the well-known bomb: each content contains the headers that follow it.
    let inner = archive(&[stored("b", b"payload")]);
    let quoted = Entry {
        data: inner.clone(),
        ..stored("a", &inner)
    };
    let mut outer = stored("b", b"payload");
    outer.offset = Some(31);
    assert_eq!(refused(&[quoted, outer]), ArchiveFault::Overlap);
}

#[test]
fn h12_what_an_archive_declares_is_checked_before_it_is_unpacked() {
    let bomb = archive(&[
        deflated("a", &vec![0; 30 << 20]),
        deflated("b", &vec![0; 30 << 20]),
    ]);
    for (limits, option) in [
        ("max_output: 50MiB", "max_output"),
        ("max_ratio: 500", "max_ratio"),
    ] {
        let yaml = format!("[{{ extract: {{ {limits} }} }}]");
        let fault = fault(run_one(&yaml, &context(), "x", &bomb));
        assert!(
            matches!(fault, ArchiveFault::Limit { option: met, .. } if met == option),
            "{fault:?}"
        );
    }
    // What lies about its length comes out only up to that.
    let liar = Entry {
        size: 100,
        ..deflated("a", &vec![0; 1 << 20])
    };
    assert!(matches!(
        refused(&[liar]),
        ArchiveFault::Mismatch(_) | ArchiveFault::Corrupt(_)
    ));
    let short = Entry {
        size: 1 << 21,
        ..deflated("a", &vec![0; 1 << 20])
    };
    assert!(matches!(refused(&[short]), ArchiveFault::Corrupt(_)));
}

#[test]
fn h13_an_archive_cut_at_any_byte_or_with_any_flipped_bit_is_never_taken_for_another() {
    let content = text(300);
    let whole = archive(&[deflated("a", &content), stored("b", b"stored")]);
    let good = extract(&whole).unwrap();
    for length in 0..whole.len() {
        assert!(
            extract(whole.get(..length).unwrap()).is_err(),
            "cut at {length}"
        );
    }
    // What the directory says of types and permissions is covered by no checksum.
    let records = |wanted: &[u8]| {
        let found = whole
            .windows(4)
            .enumerate()
            .filter(|(_, window)| *window == wanted);
        found.map(|(position, _)| position).collect::<Vec<_>>()
    };
    let directory = records(b"PK\x01\x02");
    assert_eq!(directory.len(), 2);
    let is_covered = |byte: usize| {
        let in_record = |start: &usize| byte >= *start && (38..42).contains(&(byte - start));
        !directory.iter().any(in_record)
    };
    for bit in (0..whole.len() * 8).filter(|bit| is_covered(bit / 8)) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(out) = extract(&flipped) {
            assert!(
                contents(&out) == contents(&good),
                "bit {bit} changes the output"
            );
        }
    }
    let appended = [whole.as_slice(), b"x"].concat();
    assert!(extract(&appended).is_err());
    let prefixed = [&b"PK\x03\x04 prefix"[..], &whole].concat();
    assert!(extract(&prefixed).is_err());
}

#[test]
fn h13_encrypted_and_unknown_contents_are_refused() {
    assert_eq!(
        refused(&[Entry {
            flags: 1,
            ..stored("a", b"x")
        }]),
        ArchiveFault::Encrypted
    );
    assert_eq!(
        refused(&[Entry {
            method: 99,
            ..stored("a", b"x")
        }]),
        ArchiveFault::Encrypted
    );
    let fault = refused(&[Entry {
        method: 14,
        ..stored("a", b"x")
    }]);
    assert!(matches!(fault, ArchiveFault::Unsupported(_)), "{fault:?}");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a"), b"content").unwrap();
    output_of(
        directory.path(),
        "zip",
        &["-q", "-P", "password", "x.zip", "a"],
    );
    let whole = std::fs::read(directory.path().join("x.zip")).unwrap();
    assert_eq!(self::fault(extract(&whole)), ArchiveFault::Encrypted);
    let wrong = Entry {
        crc: 1,
        ..stored("a", b"content")
    };
    assert!(matches!(refused(&[wrong]), ArchiveFault::Corrupt(_)));
}
