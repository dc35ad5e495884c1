//! "Did you mean …?"

/// A help for `wrong`: the nearest of `known`, or all of them behind `label`.
pub(crate) fn help(wrong: &str, known: &[&str], label: &str) -> String {
    match nearest(wrong, known.iter().copied()) {
        Some(right) => format!("did you mean `{right}`?"),
        None => format!("{label}: {}", known.join(", ")),
    }
}

/// The one of `known` that `wrong` most likely was meant to be, if one is near enough.
pub(crate) fn nearest<'k>(
    wrong: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    let length = wrong.chars().count();
    known
        .into_iter()
        .map(|right| {
            (
                distance(&wrong.to_lowercase(), &right.to_lowercase()),
                right,
            )
        })
        .filter(|(distance, right)| *distance <= length.max(right.chars().count()).div_ceil(3))
        .filter(|(distance, right)| *distance < right.chars().count().min(length))
        .min_by_key(|(distance, _right)| *distance)
        .map(|(_distance, right)| right)
}

/// How many letters have to be put in, left out, changed or swapped with their neighbour.
fn distance(left: &str, right: &str) -> usize {
    // Names are short; what is not gets no suggestion rather than a long computation.
    let (left, right): (Vec<char>, Vec<char>) = (
        left.chars().take(64).collect(),
        right.chars().take(64).collect(),
    );
    let width = right.len() + 1;
    let mut rows: Vec<Vec<usize>> = vec![(0..width).collect()];
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut cost = (rows[i][j] + usize::from(a != b))
                .min(rows[i][j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                cost = cost.min(rows[i - 1][j - 1] + 1);
            }
            row.push(cost);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::{help, nearest};

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        let known = ["watch", "match", "to", "after", "schedule"];
        for (wrong, right) in [
            ("wacth", Some("watch")),
            ("shedule", Some("schedule")),
            ("To", Some("to")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(wrong, known), right, "{wrong}");
        }
        assert_eq!(help("colour", &["a", "b"], "known"), "known: a, b");
    }
}
