//! Finding things in the custody record.

use std::time::Duration;

use knarr_core::record::Action;
use knarr_store::history::{HistoryFilter, TracePath};
use knarr_store::runs::RunId;

use crate::fixture::{Fixture, START, path, record};

/// Twelve records of three files, two jobs, three runs, one second apart.
fn filled() -> Fixture {
    let fixture = Fixture::new();
    fixture
        .store
        .transact(|tx| {
            let records: Vec<_> = (0..12_u64)
                .map(|number| {
                    let name = ["a/x.csv", "b/a/x.csv", "ba/x.csv"][(number % 3) as usize];
                    let action = if number == 7 {
                        Action::Failed
                    } else {
                        Action::Created
                    };
                    let mut record = record(name, action);
                    record.run = number / 4;
                    record.job = if number < 6 { "one" } else { "two" }.to_owned();
                    record.at = START.after(Duration::from_secs(number));
                    record.size = number;
                    record
                })
                .collect();
            tx.append_custody(&records)
        })
        .wait()
        .unwrap();
    fixture
}

fn trace(fixture: &Fixture, of: &TracePath, limit: usize) -> Vec<u64> {
    let records = fixture
        .store
        .read(|reader| reader.trace(of, limit))
        .unwrap();
    records
        .into_iter()
        .map(|record| record.record.size)
        .collect()
}

#[test]
fn a_path_is_traced_exactly_or_by_its_end() {
    let fixture = filled();
    let exact = |text| TracePath::Exact(path(text));
    let ends = |text| TracePath::EndsWith(path(text));
    assert_eq!(trace(&fixture, &exact("a/x.csv"), 100), [0, 3, 6, 9]);
    assert!(trace(&fixture, &exact("x.csv"), 100).is_empty());
    assert_eq!(
        trace(&fixture, &ends("a/x.csv"), 100),
        [0, 1, 3, 4, 6, 7, 9, 10]
    );
    assert_eq!(trace(&fixture, &ends("b/a/x.csv"), 100), [1, 4, 7, 10]);
    assert_eq!(trace(&fixture, &ends("x.csv"), 100).len(), 12);
    assert_eq!(trace(&fixture, &ends("x.csv"), 2), [10, 11], "the newest");
}

#[test]
fn history_takes_every_filter() {
    let fixture = filled();
    let ask = |filter: HistoryFilter, limit| {
        let records = fixture
            .store
            .read(|reader| reader.history(&filter, limit))
            .unwrap();
        records
            .into_iter()
            .map(|record| record.record.size)
            .collect::<Vec<_>>()
    };
    let any = HistoryFilter::default;
    let at = |seconds| Some(START.after(Duration::from_secs(seconds)));
    assert_eq!(ask(any(), 3), [11, 10, 9]);
    assert_eq!(
        ask(
            HistoryFilter {
                before: Some(9),
                ..any()
            },
            2
        ),
        [7, 6]
    );
    assert_eq!(
        ask(
            HistoryFilter {
                job: Some("one".to_owned()),
                ..any()
            },
            3
        ),
        [5, 4, 3]
    );
    assert_eq!(
        ask(
            HistoryFilter {
                run: Some(RunId(1)),
                ..any()
            },
            9
        ),
        [7, 6, 5, 4]
    );
    assert_eq!(
        ask(
            HistoryFilter {
                action: Some(Action::Failed),
                ..any()
            },
            9
        ),
        [7]
    );
    assert_eq!(
        ask(
            HistoryFilter {
                since: at(9),
                ..any()
            },
            9
        ),
        [11, 10, 9]
    );
    assert_eq!(
        ask(
            HistoryFilter {
                until: at(2),
                ..any()
            },
            9
        ),
        [1, 0]
    );
    assert_eq!(
        ask(
            HistoryFilter {
                since: at(3),
                until: at(5),
                ..any()
            },
            9
        ),
        [4, 3]
    );
    let since = HistoryFilter {
        since: at(99),
        ..any()
    };
    assert!(ask(since, 9).is_empty());
    let until = HistoryFilter {
        until: at(0),
        ..any()
    };
    assert!(ask(until, 9).is_empty());
    let paths = Some(HistoryFilter::globs(["b/**"]).unwrap());
    assert_eq!(ask(HistoryFilter { paths, ..any() }, 3), [10, 7, 4]);
    let all = HistoryFilter {
        job: Some("two".to_owned()),
        run: Some(RunId(1)),
        action: Some(Action::Created),
        since: at(0),
        until: at(60),
        paths: Some(HistoryFilter::globs(["*.csv"]).unwrap()),
        before: Some(100),
    };
    assert_eq!(ask(all, 9), [6]);
}

#[test]
fn a_clock_that_was_set_back_hides_nothing() {
    let fixture = filled();
    fixture
        .store
        .transact(|tx| {
            let mut late = record("late", Action::Created);
            late.at = START.after(Duration::from_secs(1));
            tx.append_custody(&[late])
        })
        .wait()
        .unwrap();
    let count = |since, until| {
        let at = |seconds| Some(START.after(Duration::from_secs(seconds)));
        let filter = HistoryFilter {
            since: at(since),
            until: at(until),
            ..HistoryFilter::default()
        };
        fixture
            .store
            .read(|reader| reader.history(&filter, 100))
            .unwrap()
            .len()
    };
    assert_eq!(count(1, 2), 2);
    assert_eq!(count(2, 99), 10);
}
