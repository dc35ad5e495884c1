//! What the files say, line by line. Keys, hashes and certificates were made by ssh-keygen.

use super::*;

const KEY_A: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEsDeO8N/JjW2OIwjrLz/I8vhHbktyUywZlr/Z43otPy";
const KEY_B: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIFDTsnd+7ftYzMGA1WceYfxU2gVwg6LbrsInbnIIsUp";
const KEY_AUTHORITY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILeNvyjXtGMJAIRvP3TEwZ8BIc0+1l3j7KTHRAFUOq38";
const KEY_ECDSA: &str = concat!(
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBK+WoIP1A8wK",
    "dTRXgl3lX5ae9j75YHAw/fyRGB3KhR+T7WNhsFAZRCsjEFlsu4AscuBfZG2LkALL/G+0/Ax93YQ=",
);
const HASHED: &str = "|1|SOQEf/MIEmHXgdJ3yLdaHdj5BY0=|jpNIZuMYW4PIK/VErqCwFKnRi3w=";
const HASHED_WITH_PORT: &str = "|1|N9y/W1y5+lSpoqrg3kOQVEO1Rno=|G9Fdg1FSbm4v9TwTjweROvnnkb8=";
/// For host.example and *.wild.example, from 2020 to 2030, with key A inside.
const HOST_CERTIFICATE: &str = concat!(
    "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29tAAA",
    "AIIcTOCOguVMLukC1wddzO8Ju7eAtBFKg6xjAfEB0C9OdAAAAIEsDeO8N/JjW2OIwjrLz/I8vhHbktyUywZl",
    "r/Z43otPyAAAAAAAAAAAAAAACAAAABHRlc3QAAAAiAAAADGhvc3QuZXhhbXBsZQAAAA4qLndpbGQuZXhhbXB",
    "sZQAAAABeC+EAAAAAAHDb2IAAAAAAAAAAAAAAAAAAAAAzAAAAC3NzaC1lZDI1NTE5AAAAILeNvyjXtGMJAIR",
    "vP3TEwZ8BIc0+1l3j7KTHRAFUOq38AAAAUwAAAAtzc2gtZWQyNTUxOQAAAEA/wtpaRtkhOjfI+ygm9Zrl2k/",
    "iJvJFO5a/3y58vg5sDjW5cdz/D/6mCLGN1Dr1IGYzcsU5JsFkPmSaKc1Jp4cM",
);
/// The same for a user, with key B inside.
const USER_CERTIFICATE: &str = concat!(
    "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29tAAA",
    "AIKz3FCqjKMQpAFXfBxddNhNfmuJ+1ShADxz55PuOJCKwAAAAIIFDTsnd+7ftYzMGA1WceYfxU2gVwg6Lbrs",
    "InbnIIsUpAAAAAAAAAAAAAAABAAAABHVzZXIAAAAQAAAADGhvc3QuZXhhbXBsZQAAAABeC+EAAAAAAHDb2IA",
    "AAAAAAAAAggAAABVwZXJtaXQtWDExLWZvcndhcmRpbmcAAAAAAAAAF3Blcm1pdC1hZ2VudC1mb3J3YXJkaW5",
    "nAAAAAAAAABZwZXJtaXQtcG9ydC1mb3J3YXJkaW5nAAAAAAAAAApwZXJtaXQtcHR5AAAAAAAAAA5wZXJtaXQ",
    "tdXNlci1yYwAAAAAAAAAAAAAAMwAAAAtzc2gtZWQyNTUxOQAAACC3jb8o17RjCQCEbz90xMGfASHNPtZd4+y",
    "kx0QBVDqt/AAAAFMAAAALc3NoLWVkMjU1MTkAAABADH0HT/JErUNWap/2geBCG5ckLutC3qKjV/oTBRpUBHO",
    "7RKCe6s2IGvAbQ3TR8ZIQRYgntPYQAwCv/UI1veuVDg==",
);
/// For any host, with key B inside.
const NAMELESS_CERTIFICATE: &str = concat!(
    "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29tAAA",
    "AIBmv9dHxkFqNGtHiG3O0iZX+kBRxMPHAdunkTjk4QcHSAAAAIIFDTsnd+7ftYzMGA1WceYfxU2gVwg6Lbrs",
    "InbnIIsUpAAAAAAAAAAAAAAACAAAABG5vbmUAAAAAAAAAAF4L4QAAAAAAcNvYgAAAAAAAAAAAAAAAAAAAADM",
    "AAAALc3NoLWVkMjU1MTkAAAAgt42/KNe0YwkAhG8/dMTBnwEhzT7WXePspMdEAVQ6rfwAAABTAAAAC3NzaC1",
    "lZDI1NTE5AAAAQPtgTktgqSsdS8tZubyItypiQ22ohlNaw2ysCn0GRvE/Ld3wNJnkDVun4WAGUTYZvpmfKCI",
    "Bw/g2M5t6j4EZjQY=",
);

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;

fn known(text: &str) -> KnownHosts {
    let mut hosts = KnownHosts::default();
    hosts.add(Path::new("known_hosts"), text).unwrap();
    hosts
}

fn key(text: &str) -> PublicKey {
    PublicKey::from_openssh(text).unwrap()
}

fn certificate(text: &str) -> Certificate {
    Certificate::from_openssh(text).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Short {
    Trusted,
    Unknown,
    Changed(usize),
    Revoked(usize),
    Bad,
}

fn short(verdict: &Verdict) -> Short {
    match verdict {
        Verdict::Trusted => Short::Trusted,
        Verdict::Unknown => Short::Unknown,
        Verdict::Changed { place, .. } => Short::Changed(place.line),
        Verdict::Revoked { place } => Short::Revoked(place.line),
        Verdict::BadCertificate { .. } => Short::Bad,
    }
}

#[test]
fn h50_a_host_is_known_by_its_lines_and_by_nothing_else() {
    let a = KEY_A;
    let cases: &[(String, &str, u16, Short)] = &[
        (String::new(), "host", 22, Short::Unknown),
        (format!("host {a}"), "host", 22, Short::Trusted),
        (format!("host {a}"), "HOST", 22, Short::Trusted),
        (format!("host {a} a comment"), "host", 22, Short::Trusted),
        (
            format!("\thost\t{}\r", a.replace(' ', "\t")),
            "host",
            22,
            Short::Trusted,
        ),
        (format!("# host {a}"), "host", 22, Short::Unknown),
        (format!("other {a}"), "host", 22, Short::Unknown),
        (format!("host2 {a}"), "host", 22, Short::Unknown),
        (
            format!("one,host,10.0.0.1 {a}"),
            "10.0.0.1",
            22,
            Short::Trusted,
        ),
        (format!("[host]:2222 {a}"), "host", 2222, Short::Trusted),
        (format!("[host]:2222 {a}"), "host", 22, Short::Unknown),
        (format!("[host]:2222 {a}"), "host", 2223, Short::Unknown),
        // The bare name is enough for the same key, but says nothing about another.
        (format!("host {a}"), "host", 2222, Short::Trusted),
        (format!("host {KEY_B}"), "host", 2222, Short::Unknown),
        (format!("*.example {a}"), "a.example", 22, Short::Trusted),
        (
            format!("*.example,!bad.example {a}"),
            "bad.example",
            22,
            Short::Unknown,
        ),
        (format!("h?st {a}"), "host", 22, Short::Trusted),
        (format!("host {KEY_B}"), "host", 22, Short::Changed(1)),
        (
            format!("\n\nhost {KEY_ECDSA}"),
            "host",
            22,
            Short::Changed(3),
        ),
        (
            format!("host {KEY_B}\nhost {KEY_ECDSA}\nhost {a}"),
            "host",
            22,
            Short::Trusted,
        ),
        (
            format!("@revoked * {a}\nhost {a}"),
            "host",
            22,
            Short::Revoked(1),
        ),
        (
            format!("host {a}\n@revoked host {a}"),
            "host",
            22,
            Short::Revoked(2),
        ),
        (
            format!("host {a}\n@revoked elsewhere {a}"),
            "host",
            22,
            Short::Revoked(2),
        ),
        // An authority's key is no host key.
        (
            format!("@cert-authority host {a}"),
            "host",
            22,
            Short::Unknown,
        ),
        (format!("@unheard-of host {a}"), "host", 22, Short::Unknown),
        // Broken lines say nothing.
        ("host".to_owned(), "host", 22, Short::Unknown),
        ("host ssh-ed25519".to_owned(), "host", 22, Short::Unknown),
        (
            "host ssh-ed25519 AAAA".to_owned(),
            "host",
            22,
            Short::Unknown,
        ),
        (format!("|1|broken {a}"), "host", 22, Short::Unknown),
        (
            format!("host ssh-dss AAAAB3NzaC1kc3MAAACB\nhost {a}"),
            "host",
            22,
            Short::Trusted,
        ),
        (
            format!("{HASHED} {a}"),
            "hashed.example",
            22,
            Short::Trusted,
        ),
        (
            format!("{HASHED} {a}"),
            "Hashed.Example",
            22,
            Short::Trusted,
        ),
        (
            format!("{HASHED} {KEY_B}"),
            "hashed.example",
            22,
            Short::Changed(1),
        ),
        (format!("{HASHED} {a}"), "other.example", 22, Short::Unknown),
        (
            format!("{HASHED_WITH_PORT} {a}"),
            "hashed.example",
            2222,
            Short::Trusted,
        ),
        (
            format!("{HASHED_WITH_PORT} {a}"),
            "hashed.example",
            22,
            Short::Unknown,
        ),
    ];
    for (text, host, port, expected) in cases {
        let verdict = known(text).check(host, *port, &key(KEY_A));
        assert_eq!(
            short(&verdict),
            *expected,
            "{host}:{port} by {text:?}: {verdict:?}"
        );
    }
}

#[test]
fn h50_the_types_of_the_known_keys_are_told_in_order() {
    let hosts = known(&format!(
        "host {KEY_ECDSA}\nother {KEY_B}\nhost {KEY_A}\nhost {KEY_B}"
    ));
    let types: Vec<String> = hosts
        .key_types("host", 22)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(types, ["ecdsa-sha2-nistp256", "ssh-ed25519"]);
    assert!(hosts.key_types("unheard-of", 22).is_empty());
}

#[test]
fn h50_a_certificate_counts_only_from_a_trusted_authority_for_this_host_and_now() {
    let authority = format!("@cert-authority *.example {KEY_AUTHORITY}");
    let check = |text: &str, of: &str, host: &str, now| {
        short(&known(text).check_certificate(host, 22, &certificate(of), now))
    };
    assert_eq!(
        check(&authority, HOST_CERTIFICATE, "host.example", NOW),
        Short::Trusted
    );
    assert_eq!(
        check(&authority, HOST_CERTIFICATE, "a.wild.example", NOW),
        Short::Trusted
    );
    assert_eq!(
        check(&authority, HOST_CERTIFICATE, "else.example", NOW),
        Short::Bad
    );
    assert_eq!(
        check(&authority, HOST_CERTIFICATE, "host.example", 1_577_836_799),
        Short::Bad
    );
    assert_eq!(
        check(&authority, HOST_CERTIFICATE, "host.example", 1_893_456_000),
        Short::Bad
    );
    assert_eq!(
        check(&authority, USER_CERTIFICATE, "host.example", NOW),
        Short::Bad
    );
    assert_eq!(
        check(&authority, NAMELESS_CERTIFICATE, "host.example", NOW),
        Short::Bad
    );
    // An authority for other hosts, or none at all: then only the key inside counts.
    let elsewhere = format!("@cert-authority *.elsewhere {KEY_AUTHORITY}");
    assert_eq!(
        check(&elsewhere, HOST_CERTIFICATE, "host.example", NOW),
        Short::Unknown
    );
    let by_key = format!("host.example {KEY_A}");
    assert_eq!(
        check(&by_key, HOST_CERTIFICATE, "host.example", NOW),
        Short::Trusted
    );
    assert_eq!(
        check(&by_key, USER_CERTIFICATE, "host.example", NOW),
        Short::Changed(1)
    );
    // Revoking works for the authority and for the key inside.
    for revoked in [KEY_AUTHORITY, KEY_A] {
        let text = format!("{authority}\n@revoked * {revoked}");
        assert_eq!(
            check(&text, HOST_CERTIFICATE, "host.example", NOW),
            Short::Revoked(2)
        );
    }
    assert!(known(&authority).has_authority("host.example", 2222));
    assert!(!known(&by_key).has_authority("host.example", 22));
}

#[test]
fn h50_a_forged_certificate_is_refused() {
    let authority = known(&format!("@cert-authority * {KEY_AUTHORITY}"));
    let mut bytes = certificate(HOST_CERTIFICATE).to_bytes().unwrap();
    // The serial number is part of what is signed; it stands behind the key.
    let at = bytes
        .windows(4)
        .position(|window| window == b"test")
        .unwrap();
    bytes[at] = b'b';
    let forged = Certificate::from_bytes(&bytes).unwrap();
    let verdict = authority.check_certificate("host.example", 22, &forged, NOW);
    assert!(
        matches!(&verdict, Verdict::BadCertificate { reason } if reason.contains("signature")),
        "{verdict:?}"
    );
}

#[test]
fn h50_a_file_that_cannot_be_read_is_an_error_and_a_missing_one_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    assert!(KnownHosts::load(&[missing]).unwrap().lines.is_empty());
    // A directory can be opened and not read, whoever asks.
    let error = KnownHosts::load(&[directory.path().to_path_buf()]).unwrap_err();
    assert!(
        matches!(error, KnownHostsError::Unreadable { .. }),
        "{error}"
    );
}

#[test]
fn h50_a_revocation_that_cannot_be_understood_stops_everything() {
    for text in ["@revoked * ssh-ed25519 AAAA", "@revoked *", "@revoked"] {
        let error = KnownHosts::default()
            .add(Path::new("known_hosts"), text)
            .unwrap_err();
        assert!(error.to_string().contains("known_hosts:1"), "{error}");
    }
    // A type that is not spoken here cannot be presented to us.
    known("@revoked * ssh-dss AAAAB3NzaC1kc3MAAACB");
}
