//! Archives made by tar, and such that only an attacker makes.

use knarr_steps::{ArchiveFault, Format, Node, StepError};

use crate::files::{Output, contents, context, fault, run, run_one};
use crate::programs::output_of;
use crate::support::{compress, text};
use crate::tar_builder::{Entry, archive, extended, file, node, open_archive};

fn extract(content: &[u8]) -> Result<Vec<Output>, StepError> {
    run_one("[extract]", &context(), "x.tar", content)
}

fn refused(entries: &[Entry]) -> ArchiveFault {
    fault(extract(&archive(entries)))
}

#[test]
fn archives_made_by_tar_come_back_in_every_format_and_compression() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let content = text(400_000);
    let long = format!("d/{}/{}", "x".repeat(120), "y".repeat(150));
    std::fs::create_dir_all(at.join("d").join("x".repeat(120))).unwrap();
    std::fs::write(at.join("d/a.csv"), &content).unwrap();
    std::fs::write(at.join("d/empty"), b"").unwrap();
    std::fs::write(at.join(&long), b"long").unwrap();
    std::os::unix::fs::symlink("a.csv", at.join("d/link")).unwrap();
    std::fs::hard_link(at.join("d/a.csv"), at.join("d/same")).unwrap();
    for (format, compression) in [
        ("gnu", "-z"),
        ("pax", "-J"),
        ("ustar", "-j"),
        ("posix", "--zstd"),
        ("gnu", "--no-auto-compress"),
    ] {
        let exclude = if format == "ustar" {
            "--exclude=x*"
        } else {
            "--exclude=nothing"
        };
        let format = format!("--format={format}");
        let arguments = [
            "--sort=name",
            &format,
            compression,
            exclude,
            "-cf",
            "-",
            "./d",
        ];
        let whole = output_of(at, "tar", &arguments);
        let out = run("[extract]", &context(), &[("in/x.tar", &whole)], 65_536).unwrap();
        let find = |name: &str| out.iter().find(|one| one.path == format!("in/{name}"));
        assert!(find("d/a.csv").unwrap().content == content, "{format}");
        assert_eq!(find("d/empty").unwrap().content, b"");
        assert_eq!(find("d").unwrap().node, Node::Directory);
        let target = b"a.csv".as_slice().into();
        assert_eq!(find("d/link").unwrap().node, Node::Symlink { target });
        let target = crate::files::path("in/d/a.csv");
        assert_eq!(find("d/same").unwrap().node, Node::HardLink { target });
        if exclude == "--exclude=nothing" {
            assert_eq!(find(&long).unwrap().content, b"long", "{format}");
        }
    }
}

#[test]
fn archives_made_here_can_be_read_by_tar() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let content = text(300_000);
    let long = format!("d/{}", "z".repeat(180));
    let inputs: [(&str, &[u8]); 3] = [("d/a.csv", &content), (&long, b"long"), ("b", b"")];
    for (format, name) in [("tar", "x.tar"), ("tar.gz", "x.tgz"), ("tar.zst", "x.tzst")] {
        let yaml = format!("[{{ archive: {{ format: {format}, name: {name} }} }}]");
        let out = run(&yaml, &context(), &inputs, 65_536).unwrap();
        std::fs::write(at.join(name), &out[0].content).unwrap();
        let target = at.join(format);
        std::fs::create_dir(&target).unwrap();
        output_of(&target, "tar", &["-xf", &format!("../{name}")]);
        for (name, wanted) in inputs {
            assert!(
                std::fs::read(target.join(name)).unwrap() == wanted,
                "{format} {name}"
            );
        }
    }
}

#[test]
fn h10_names_that_leave_the_directory_refuse_the_whole_archive() {
    for name in [
        "../a",
        "a/../../b",
        "/etc/passwd",
        "a//b",
        "a/./b",
        "..",
        "",
        "a/",
        "C:\\x",
        "c:x",
        "..\\a",
        "a\\..\\b",
        "\\\\host\\share",
    ] {
        let fault = refused(&[file("good", b"x"), file(name, b"x")]);
        let named = matches!(
            fault,
            ArchiveFault::Name(_) | ArchiveFault::AmbiguousName(_)
        );
        assert!(named, "{name}: {fault:?}");
    }
    let error = extract(&archive(&[file("../\u{1b}[31m", b"x")])).unwrap_err();
    assert!(!error.to_string().contains('\u{1b}'), "{error}");
}

#[test]
fn h10_duplicate_and_colliding_names_refuse_the_whole_archive() {
    assert_eq!(
        refused(&[file("a", b"1"), file("a", b"2")]),
        ArchiveFault::Duplicate
    );
    assert_eq!(
        refused(&[file("a", b"1"), file("./a", b"2")]),
        ArchiveFault::Duplicate
    );
    assert_eq!(
        refused(&[file("a", b"1"), file("A", b"2")]),
        ArchiveFault::CaseCollision
    );
    assert_eq!(
        refused(&[file("a", b"1"), file("a/b", b"2")]),
        ArchiveFault::Conflict
    );
}

#[test]
fn h11_links_stay_inside_and_nothing_is_written_through_them() {
    let good = [
        file("d/f", b"x"),
        node("d/l", b'2', "../d/f"),
        node("h", b'1', "d/f"),
    ];
    assert_eq!(extract(&archive(&good)).unwrap().len(), 3);
    for entries in [
        vec![node("l", b'2', "/tmp"), file("l/a", b"x")],
        vec![node("l", b'2', ".."), file("l/a", b"x")],
        vec![node("l", b'2', "d/../..")],
        vec![node("h", b'1', "../outside")],
        vec![node("h", b'1', "/etc/passwd")],
        vec![node("h", b'1', "not-there")],
        vec![node("s", b'2', "f"), node("h", b'1', "s")],
    ] {
        let fault = refused(&entries);
        assert!(matches!(fault, ArchiveFault::Link(_)), "{fault:?}");
    }
    let through = [file("d/f", b"x"), node("l", b'2', "d"), file("l/a", b"x")];
    assert_eq!(refused(&through), ArchiveFault::Conflict);
    // A directory that becomes a link afterwards, or whose permissions are set through one.
    let swapped = [file("d/f", b"x"), node("d", b'2', "e")];
    assert_eq!(refused(&swapped), ArchiveFault::Conflict);
    let chmod = [node("l", b'2', "d"), node("l/", b'5', "")];
    assert_eq!(refused(&chmod), ArchiveFault::Conflict);
}

#[test]
fn h11_links_can_be_left_out_or_refused_altogether() {
    let entries = archive(&[
        node("out", b'2', "/etc"),
        file("a", b"x"),
        node("h", b'1', "a"),
    ]);
    let skip = run_one("[{ extract: { links: skip } }]", &context(), "x", &entries).unwrap();
    assert!(contents(&skip) == [("a", &b"x"[..])]);
    let through = archive(&[node("l", b'2', "/etc"), file("l/a", b"x")]);
    let result = run_one("[{ extract: { links: skip } }]", &context(), "x", &through);
    assert_eq!(fault(result), ArchiveFault::Conflict);
    let inside = archive(&[file("a", b"x"), node("l", b'2', "a")]);
    let result = run_one("[{ extract: { links: refuse } }]", &context(), "x", &inside);
    assert!(matches!(fault(result), ArchiveFault::Link(_)));
}

#[test]
fn h11_devices_sparse_files_and_unknown_types_are_refused_and_setuid_is_dropped() {
    for kind in [b'3', b'4', b'6'] {
        let fault = refused(&[node("x", kind, "")]);
        assert!(matches!(fault, ArchiveFault::Special(_)), "{fault:?}");
    }
    for kind in [b'S', b'D', b'M', b'V', b'Z'] {
        let fault = refused(&[node("x", kind, "")]);
        assert!(matches!(fault, ArchiveFault::Unsupported(_)), "{fault:?}");
    }
    let mut setuid = file("x", b"x");
    setuid.mode = 0o6755;
    assert_eq!(extract(&archive(&[setuid])).unwrap()[0].mode, Some(0o755));
}

#[test]
fn h11_lengths_that_contradict_each_other_or_are_no_numbers_are_refused() {
    let mut entry = file("a", b"abc");
    // Negative, not octal, and beyond what fits.
    for size in [
        &b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfd"[..],
        b"0000000009\0\0",
        b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
    ] {
        entry.size = size.to_vec();
        let fault = refused(&[entry.clone()]);
        assert!(matches!(fault, ArchiveFault::Corrupt(_)), "{fault:?}");
    }
    let smuggled = archive(&[file("evil", b"x")]);
    for entries in [
        // The length of pax hides or shows entries that the header does not.
        vec![extended(b'x', b"10 size=0\n"), file("a", &smuggled)],
        vec![extended(b'x', b"12 size=999\n"), file("a", b"abc")],
        vec![extended(b'x', b"9 size=3\n9 size=3\n"), file("a", b"abc")],
        vec![
            extended(b'x', b"9 path=b\n"),
            extended(b'x', b"9 path=c\n"),
            file("a", b""),
        ],
        vec![
            extended(b'x', b"9 path=b\n"),
            extended(b'L', b"c\0"),
            file("a", b""),
        ],
        vec![
            extended(b'L', b"b\0"),
            extended(b'L', b"c\0"),
            file("a", b""),
        ],
        vec![extended(b'L', b"b\0c\0"), file("a", b"")],
        vec![extended(b'x', b"99 path=b\n"), file("a", b"")],
        vec![file("a", b""), extended(b'x', b"9 path=b\n")],
        vec![Entry {
            kind: b'5',
            ..file("d", b"content")
        }],
        vec![
            file("f", b""),
            Entry {
                kind: b'1',
                link: b"f".to_vec(),
                ..file("d", b"content")
            },
        ],
        vec![extended(b'x', &vec![b'9'; 200_000]), file("a", b"")],
    ] {
        let fault = refused(&entries);
        assert!(matches!(fault, ArchiveFault::Corrupt(_)), "{fault:?}");
    }
    for entries in [
        vec![extended(b'g', b"9 path=b\n"), file("a", b"")],
        vec![extended(b'x', b"22 GNU.sparse.major=1\n"), file("a", b"")],
    ] {
        let fault = refused(&entries);
        assert!(matches!(fault, ArchiveFault::Unsupported(_)), "{fault:?}");
    }
    let harmless = [
        extended(b'g', b"13 comment=x\n"),
        extended(b'x', b"9 path=b\n"),
        file("a", b"1"),
    ];
    assert!(contents(&extract(&archive(&harmless)).unwrap()) == [("b", &b"1"[..])]);
}

#[test]
fn h12_limits_hold_before_what_breaks_them_is_put_out() {
    let many: Vec<Entry> = (0..20)
        .map(|number| file(&format!("f{number}"), b"12345"))
        .collect();
    let deep = file("1/2/3/4/5", b"x");
    let huge = Entry {
        size: b"77777777777\0".to_vec(),
        ..file("huge", b"x")
    };
    for (limits, entries, option) in [
        ("max_entries: 19", many.clone(), "max_entries"),
        ("max_output: 99", many, "max_output"),
        ("max_depth: 4", vec![deep.clone()], "max_depth"),
        ("max_entries: 4", vec![deep], "max_entries"),
        ("max_name: 9", vec![file("0123456789", b"")], "max_name"),
        ("max_output: 1GiB", vec![huge], "max_output"),
    ] {
        let yaml = format!("[{{ extract: {{ {limits} }} }}]");
        let result = run_one(&yaml, &context(), "x", &archive(&entries));
        let fault = fault(result);
        assert!(
            matches!(fault, ArchiveFault::Limit { option: met, .. } if met == option),
            "{limits}: {fault:?}"
        );
        assert!(fault.to_string().contains(option));
    }
    // 100 MB of zeros in a few KB: the ratio of the decompression.
    let zeros = archive(&[file("zeros", &vec![0; 40 << 20])]);
    let bomb = compress(Format::Gzip, &zeros);
    let result = run_one("[{ extract: { max_ratio: 100 } }]", &context(), "x", &bomb);
    assert!(
        matches!(result, Err(StepError::LimitExceeded { .. })),
        "{:?}",
        result.map(|_| ())
    );
}

#[test]
fn h12_one_step_unpacks_one_layer() {
    let mut whole = archive(&[file("f", b"x")]);
    for _ in 0..16 {
        whole = archive(&[file("inner.tar", &whole)]);
    }
    let out = extract(&whole).unwrap();
    assert_eq!((out.len(), out[0].path.as_str()), (1, "inner.tar"));
}

#[test]
fn h13_an_archive_cut_at_any_byte_is_never_complete() {
    let plain = archive(&[
        file("a", b"content"),
        extended(b'x', b"9 path=b\n"),
        file("x", &text(600)),
        node("d/", b'5', ""),
    ]);
    for whole in [
        plain.clone(),
        compress(Format::Gzip, &plain),
        compress(Format::Zstd, &plain),
    ] {
        for length in 0..whole.len() {
            let cut = whole.get(..length).unwrap();
            let result = run("[extract]", &context(), &[("x.tar", cut)], 4096);
            assert!(result.is_err(), "cut at {length} of {}", whole.len());
        }
        assert_eq!(extract(&whole).unwrap().len(), 3);
    }
}

#[test]
fn h13_what_is_behind_the_end_or_damaged_in_a_header_is_seen() {
    let whole = archive(&[file("a", b"content")]);
    let with_padding = [whole.as_slice(), &[0; 9000]].concat();
    assert_eq!(extract(&with_padding).unwrap().len(), 1);
    let appended = [whole.clone(), archive(&[file("b", b"x")])].concat();
    assert_eq!(fault(extract(&appended)), ArchiveFault::TrailingGarbage);
    let one_zero_block = [
        open_archive(&[file("a", b"x")]),
        vec![0; 512],
        whole.clone(),
    ]
    .concat();
    assert_eq!(
        fault(extract(&one_zero_block)),
        ArchiveFault::TrailingGarbage
    );
    let two = archive(&[file("a", b"content"), file("b", b"content")]);
    for bit in 0..512 * 8 {
        let mut flipped = two.clone();
        flipped[1024 + bit / 8] ^= 1 << (bit % 8);
        // The checksum itself can be written with zeros or blanks before it.
        if let Ok(out) = extract(&flipped) {
            assert!(
                contents(&out) == [("a", &b"content"[..]), ("b", b"content")],
                "bit {bit}"
            );
            assert!(
                (148..156).contains(&(bit / 8)),
                "bit {bit} of the second header"
            );
        }
    }
    for content in [
        &b""[..],
        b"plain text",
        &text(5000),
        b"7z\xbc\xaf\x27\x1c\0\x04",
        b"Rar!\x1a\x07\x01\0",
    ] {
        let fault = fault(extract(content));
        assert!(matches!(
            fault,
            ArchiveFault::NotAnArchive | ArchiveFault::Unsupported(_)
        ));
    }
}
