//! Every step and its opposite, and steps in any order.

use knarr_steps::{
    Emitted, Format, Head, Keys, Node, Pipeline, Recipe, Secret, StepError, StepSpec,
};

use crate::files::{
    CHUNK_SIZES, contents, context, context_with, drive, path, run, run_one, steps,
};
use crate::programs::output_of;
use crate::support::{compress, text};

/// Small for single bytes, larger than a chunk otherwise.
fn sizes_for(chunk_bytes: usize) -> &'static [usize] {
    if chunk_bytes < 100 {
        &[0, 1, 5000]
    } else {
        &[0, 70_000, 1_500_000]
    }
}

#[test]
fn what_is_compressed_is_decompressed_to_the_same_and_gets_its_name_back() {
    for format in ["gzip", "zstd", "xz", "bzip2"] {
        for chunk_bytes in CHUNK_SIZES {
            for size in sizes_for(chunk_bytes) {
                let content = text(*size);
                let yaml =
                    format!("[{{ compress: {{ format: {format}, level: 1 }} }}, decompress]");
                let out = run(&yaml, &context(), &[("d/a.csv", &content)], chunk_bytes).unwrap();
                assert!(
                    contents(&out) == [("d/a.csv", content.as_slice())],
                    "{format} {size}"
                );
            }
        }
    }
}

#[test]
fn what_is_compressed_can_be_read_by_the_programs() {
    let content = text(1_000_000);
    let directory = tempfile::tempdir().unwrap();
    for (format, program, suffix) in [
        ("gzip", "gzip", "gz"),
        ("zstd", "zstd", "zst"),
        ("xz", "xz", "xz"),
        ("bzip2", "bzip2", "bz2"),
    ] {
        let yaml = format!("[{{ compress: {{ format: {format}, level: 2 }} }}]");
        let out = run_one(&yaml, &context(), "a", &content).unwrap();
        assert_eq!(out[0].path, format!("a.{suffix}"));
        assert!(out[0].content.len() < content.len() / 2);
        std::fs::write(directory.path().join(&out[0].path), &out[0].content).unwrap();
        let back = output_of(directory.path(), program, &["-dc", &out[0].path]);
        assert!(back == content, "{format}");
    }
}

#[test]
fn an_archive_gives_its_files_back_for_every_format_and_chunk_size() {
    for format in ["tar", "tar.gz", "tar.zst", "zip"] {
        for chunk_bytes in CHUNK_SIZES {
            for size in sizes_for(chunk_bytes) {
                let content = text(*size);
                let long = format!("d/{}", "n".repeat(200));
                let inputs: [(&str, &[u8]); 4] = [
                    ("d/a.csv", &content),
                    ("b", b""),
                    ("d/\u{e9}", b"x"),
                    (&long, b"long"),
                ];
                let yaml = format!("[{{ archive: {{ format: {format}, level: 1 }} }}, extract]");
                let yaml = if format == "tar" {
                    "[{ archive: tar }, extract]"
                } else {
                    &yaml
                };
                let out = run(yaml, &context(), &inputs, chunk_bytes).unwrap();
                // The archive lies beside the first of the files.
                let wanted: Vec<_> = inputs
                    .iter()
                    .map(|(name, content)| (format!("d/{name}"), *content))
                    .collect();
                let wanted: Vec<(&str, &[u8])> = wanted
                    .iter()
                    .map(|(name, content)| (name.as_str(), *content))
                    .collect();
                assert!(contents(&out) == wanted, "{format} {size} {chunk_bytes}");
            }
        }
    }
}

#[test]
fn a_file_of_unknown_length_goes_into_a_tar_archive_by_way_of_the_spool() {
    let content = text(700_000);
    let packed = compress(Format::Gzip, &content);
    for chunk_bytes in [7, 65_536] {
        let inputs: [(&str, &[u8]); 2] =
            [("a.gz", &packed), ("b.gz", &compress(Format::Gzip, b"b"))];
        let out = run(
            "[decompress, { archive: { format: tar, name: all.tar } }]",
            &context(),
            &inputs,
            chunk_bytes,
        )
        .unwrap();
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].path, "all.tar");
        let back = run_one("[extract]", &context(), "all.tar", &out[0].content).unwrap();
        assert!(contents(&back) == [("a", content.as_slice()), ("b", b"b")]);
    }
}

#[test]
fn a_file_that_does_not_keep_its_promised_length_is_an_error() {
    for (promised, wanted) in [(2, true), (4, true), (3, false)] {
        let mut head = Head::file(path("a"));
        head.size = Some(promised);
        let pipeline = Pipeline::new(&steps("[{ archive: tar }]"), &context()).unwrap();
        let result = drive(pipeline, vec![(head, b"abc")], 10);
        let is_changed =
            matches!(&result, Err(error @ StepError::SizeChanged { .. }) if !error.is_permanent());
        assert_eq!(is_changed, wanted, "{promised}: {result:?}");
    }
}

#[test]
fn a_checksum_stands_beside_each_file_as_the_programs_want_it() {
    let content = text(300_000);
    let directory = tempfile::tempdir().unwrap();
    for (algorithm, program) in [
        ("sha256", "sha256sum"),
        ("sha512", "sha512sum"),
        ("md5", "md5sum"),
    ] {
        let yaml = format!("[{{ checksum: {algorithm} }}]");
        let inputs: [(&str, &[u8]); 2] = [("a b.csv", &content), ("x\\y", b"")];
        let out = run(&yaml, &context(), &inputs, 65_536).unwrap();
        let names: Vec<&str> = out.iter().map(|output| output.path.as_str()).collect();
        let beside = |name: &str| format!("{name}.{algorithm}");
        assert_eq!(
            names,
            ["a b.csv", &beside("a b.csv"), "x\\y", &beside("x\\y")]
        );
        for output in &out {
            std::fs::write(directory.path().join(&output.path), &output.content).unwrap();
        }
        for name in ["a b.csv", "x\\y"] {
            let checked = output_of(
                directory.path(),
                program,
                &["-c", "--strict", &beside(name)],
            );
            assert!(
                checked.ends_with(b": OK\n"),
                "{}",
                String::from_utf8_lossy(&checked)
            );
        }
    }
    let out = run("[checksum]", &context(), &[("a", b"abc")], 1).unwrap();
    let line = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n";
    assert!(contents(&out) == [("a", &b"abc"[..]), ("a.sha256", line.as_bytes())]);
}

#[test]
fn steps_work_in_any_order_and_the_files_between_them_may_be_many() {
    let content = text(50_000);
    let inputs: [(&str, &[u8]); 2] = [("a", &content), ("b", b"bb")];
    // Unpack, compress each file, and pack again.
    let packed = run("[{ archive: zip }]", &context(), &inputs, 1000).unwrap();
    let yaml =
        "[extract, { compress: gzip }, { archive: { format: tar.gz, name: new.tgz } }, checksum]";
    let again = run_one(yaml, &context(), "x.zip", &packed[0].content).unwrap();
    let names: Vec<&str> = again.iter().map(|output| output.path.as_str()).collect();
    assert_eq!(names, ["new.tgz", "new.tgz.sha256"]);
    let back = run_one(
        "[extract, decompress]",
        &context(),
        "new.tgz",
        &again[0].content,
    )
    .unwrap();
    assert!(contents(&back) == [("a", content.as_slice()), ("b", b"bb")]);
}

#[test]
fn directories_and_links_pass_steps_that_concern_contents() {
    let mut directory = Head::file(path("d"));
    directory.node = Node::Directory;
    let mut link = Head::file(path("d/l"));
    link.node = Node::Symlink {
        target: (*b"f").into(),
    };
    let file = Head::file(path("d/f"));
    let inputs = || {
        vec![
            (directory.clone(), &b""[..]),
            (file.clone(), b"content"),
            (link.clone(), b""),
        ]
    };
    for yaml in [
        "[]",
        "[{ compress: gzip }, decompress]",
        "[{ archive: { format: tar, name: a.tar } }, extract]",
        "[{ archive: { format: zip, name: a.zip } }, extract]",
    ] {
        let pipeline = Pipeline::new(&steps(yaml), &context()).unwrap();
        let (out, _) = drive(pipeline, inputs(), 3).unwrap();
        let seen: Vec<_> = out
            .iter()
            .map(|one| (one.path.as_str(), one.node.clone()))
            .collect();
        let wanted = [
            ("d", directory.node.clone()),
            ("d/f", Node::File),
            ("d/l", link.node.clone()),
        ];
        assert_eq!(seen, wanted, "{yaml}");
        assert_eq!(out[1].content, b"content");
    }
}

#[test]
fn no_input_at_all_is_no_output_at_all() {
    for yaml in [
        "[]",
        "[decompress]",
        "[{ archive: zip }]",
        "[extract, { archive: tar }]",
    ] {
        assert_eq!(run(yaml, &context(), &[], 1), Ok(Vec::new()), "{yaml}");
    }
}

#[test]
fn what_a_pipeline_did_not_ask_for_is_refused() {
    let mut pipeline = Pipeline::new(&steps("[decompress]"), &context()).unwrap();
    let out_of_turn = |result| matches!(result, Err(StepError::OutOfTurn { .. }));
    assert!(out_of_turn(pipeline.feed(bytes::Bytes::from_static(b"x"))));
    assert!(out_of_turn(pipeline.end()));
    pipeline.begin(Head::file(path("a"))).unwrap();
    assert!(
        out_of_turn(pipeline.feed(bytes::Bytes::from_static(b"x"))),
        "before a pull"
    );
    assert_eq!(pipeline.pull(), Ok(Emitted::NeedsInput));
    assert!(
        out_of_turn(pipeline.begin(Head::file(path("b")))),
        "in the middle of a file"
    );
    assert!(out_of_turn(pipeline.finish()));
    assert!(Pipeline::new(&vec![StepSpec::decompress(); 17], &context()).is_err());
}

#[test]
fn h25_no_key_shows_in_what_is_printed() {
    let secret = || Secret::new(b"AGE-SECRET-KEY-SENTINEL".to_vec());
    let keys = Keys::new().with_secret("our-key", secret());
    assert!(!format!("{keys:?} {:?}", secret()).contains("SENTINEL"));
    let context = context_with(keys);
    assert!(!format!("{context:?}").contains("SENTINEL"));
    for yaml in [
        "[{ decrypt: { pgp: our-key } }]",
        "[{ decrypt: { age: { identity: our-key } } }]",
        "[{ sign: { pgp: our-key } }]",
    ] {
        let error = Recipe::new(&steps(yaml), &context).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(
            !shown.contains("SENTINEL") && shown.contains("our-key"),
            "{shown}"
        );
    }
    let error = Recipe::new(&steps("[{ sign: { pgp: other } }]"), &context).unwrap_err();
    assert!(error.to_string().contains("not found"), "{error}");
}
