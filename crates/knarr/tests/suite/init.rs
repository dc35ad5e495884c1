//! `init`: the file that it writes works.

use crate::program::Place;

#[test]
fn a_local_delivery_is_set_up_without_questions() {
    let place = Place::new();
    std::fs::create_dir(place.path("in")).unwrap();
    let printed = place
        .run(&[
            "init",
            "--source",
            "in",
            "--destination",
            "out",
            "--decompress",
        ])
        .good();
    assert_eq!(printed, "knarr.yaml is written\nstart it: knarr run\n");
    assert!(place.run(&["check"]).good().contains("0 endpoints, 1 job"));
    let text = std::fs::read_to_string(place.path("knarr.yaml")).unwrap();
    assert!(
        text.contains("steps: [decompress]") && text.starts_with("# What Knarr moves."),
        "{text}"
    );
    let again = place.run(&["init", "--source", "in", "--destination", "out"]);
    assert_eq!(again.code, 2);
    assert!(
        again
            .stderr
            .starts_with("error: knarr.yaml exists already\n"),
        "{}",
        again.stderr
    );
    assert_eq!(
        std::fs::read_to_string(place.path("knarr.yaml")).unwrap(),
        text
    );
}

#[test]
fn what_is_missing_is_named_where_nobody_can_be_asked() {
    let place = Place::new();
    let done = place.run(&["init", "--source", "in"]);
    assert_eq!(done.code, 2);
    assert!(
        done.stderr.starts_with("error: --destination is missing\n"),
        "{}",
        done.stderr
    );
    let loops = place.run(&["init", "--source", "in", "--destination", "in/out"]);
    assert_eq!(loops.code, 2);
    assert!(!place.path("knarr.yaml").exists());
}

#[test]
fn remote_destinations_become_endpoints() {
    for (destination, flags, parts) in [
        (
            "sftp://acme@host.example:2222/~/in",
            &[
                "--password",
                "acme",
                "--host-key",
                "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
            ][..],
            &[
                "type: sftp",
                "port: 2222",
                "user: acme",
                "path: /~/in",
                "password: { secret: acme }",
            ][..],
        ),
        (
            "s3://bucket/a/b",
            &["--endpoint", "http://127.0.0.1:9000", "--keys", "ak", "sk"],
            &[
                "type: s3",
                "bucket: bucket",
                "path: a/b",
                "access_key: { secret: ak }",
            ],
        ),
    ] {
        let place = Place::new();
        let mut arguments = vec![
            "init",
            "--source",
            "in",
            "--no-connect",
            "--destination",
            destination,
        ];
        arguments.extend(flags);
        let printed = place.run(&arguments).good();
        assert!(
            printed.contains("store the secret it names: knarr secret set "),
            "{printed}"
        );
        let text = std::fs::read_to_string(place.path("knarr.yaml")).unwrap();
        for part in parts {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(place.run(&["check"]).good().contains("1 endpoint, 1 job"));
    }
}
