//! What can be told without a disk.

use crate::files::place::{normal, stays_inside};
use crate::files::policy::{Permission, Permissions, Policy, Rule};

#[test]
fn h01_every_way_to_write_a_path_ends_below_the_root() {
    for (path, expected) in [
        (&b""[..], &b""[..]),
        (b".", b""),
        (b"/", b""),
        (b"..", b""),
        (b"../../etc/passwd", b"etc/passwd"),
        (b"/etc/../../../x", b"x"),
        (b"a//b/./c/", b"a/b/c"),
        (b"a/../../b", b"b"),
        (b"..\\x", b"..\\x"),
        (b"%2e%2e/x", b"%2e%2e/x"),
        (b"a/\xff\xfe", b"a/\xff\xfe"),
    ] {
        assert_eq!(normal(path), expected, "{}", path.escape_ascii());
    }
}

#[test]
fn h04_a_link_that_leads_out_by_its_text_is_known() {
    for (link, target, inside) in [
        (&b"a"[..], &b"b"[..], true),
        (b"d/a", b"../b", true),
        (b"d/a", b"../../b", false),
        (b"a", b"..", false),
        (b"a", b"/etc", false),
        (b"d/e/a", b"../x/../../y", true),
        (b"a", b"x/../..", false),
    ] {
        assert_eq!(
            stays_inside(link, target),
            inside,
            "{}",
            target.escape_ascii()
        );
    }
}

#[test]
fn the_longest_prefix_decides_what_is_allowed() {
    let rule = |prefix: &[u8], permissions| Rule {
        prefix: prefix.to_vec(),
        permissions,
    };
    let policy = Policy::new(Permissions::READ_ONLY)
        .with_rule(rule(b"in", Permissions::DROP_BOX))
        .with_rule(rule(b"in/seen", Permissions::ALL));
    assert!(policy.check(b"in/x", Permission::Upload).is_ok());
    assert!(policy.check(b"in/x", Permission::Download).is_err());
    assert!(policy.check(b"in", Permission::List).is_err());
    assert!(policy.check(b"in/seen/x", Permission::Delete).is_ok());
    assert!(policy.check(b"inbox", Permission::Upload).is_err());
    assert!(policy.check(b"inbox", Permission::List).is_ok());
}
