//! The patterns of `known_hosts` and `ssh_config`: `*`, `?` and, in lists, a `!` in front.

/// What a list of patterns says about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListMatch {
    /// A pattern matches, and no negated one does.
    Yes,
    /// None matches.
    No,
    /// A negated pattern matches, so the list does not, whatever else stands in it.
    Negated,
}

/// Whether `pattern` matches all of `text`. Linear in the product of their lengths.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last `*` stands, and which text it has swallowed up to.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, swallowed)) => {
                    star = Some((at, swallowed + 1));
                    p = at + 1;
                    t = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// What a list of patterns says about `text`; both are compared in lower case.
pub(super) fn list_matches<'a>(
    patterns: impl IntoIterator<Item = &'a str>,
    text: &str,
) -> ListMatch {
    let text = text.to_ascii_lowercase();
    let mut found = ListMatch::No;
    for pattern in patterns {
        let pattern = pattern.to_ascii_lowercase();
        match pattern.strip_prefix('!') {
            Some(negated) if matches(negated.as_bytes(), text.as_bytes()) => {
                return ListMatch::Negated;
            }
            None if matches(pattern.as_bytes(), text.as_bytes()) => found = ListMatch::Yes,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_match_as_in_openssh() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "host", true),
            ("?", "", false),
            ("h?st", "host", true),
            ("h?st", "hoost", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("10.0.*.1", "10.0.33.1", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("[host]:22*", "[host]:2200", true),
            ("host", "host2", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
        let long = "a".repeat(2_000);
        assert!(!matches(
            format!("{}b", "*a".repeat(500)).as_bytes(),
            long.as_bytes()
        ));
    }

    #[test]
    fn a_negated_pattern_wins_wherever_it_stands() {
        assert_eq!(list_matches(["*.a", "!x.a"], "x.a"), ListMatch::Negated);
        assert_eq!(list_matches(["!x.a", "*.a"], "x.a"), ListMatch::Negated);
        assert_eq!(list_matches(["!x.a", "*.a"], "Y.A"), ListMatch::Yes);
        assert_eq!(list_matches(["!x.a"], "y.a"), ListMatch::No);
    }
}
