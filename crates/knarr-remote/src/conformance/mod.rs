//! The suite that every place and every decorator passes.
//!
//! * Gated by [`crate::Description::capabilities`] only, never by the name of a backend: what a place
//!   says it can do it has to do, and what it cannot do it has to refuse in words.
//! * Each case gets a fresh, empty root that nobody else touches, and panics with what it expected.
//! * A case that does not end within [`CASE_LIMIT`] has failed: a place that hangs is broken.
//! * What lies beside the suite: faults of one kind of place (a cut connection, a full disk), which
//!   its own tests bring about.
//!
//! Call [`run_all`] with a function that makes a fresh remote; [`run_reading`] checks only the
//! methods that change nothing, on a tree that another remote filled.

mod concurrency;
mod listing;
mod names;
mod nodes;
mod reading;
mod removing;
mod renaming;
mod resuming;
mod support;
mod writing;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

pub use self::support::{RecordingSink, pattern, put, read_all, relative, try_put};
use crate::remote::Remote;

/// How long one case may take.
pub const CASE_LIMIT: Duration = Duration::from_mins(2);

/// What a case works with.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// The remote under test.
    pub subject: Arc<dyn Remote>,
    /// What fills the tree before something is read: the subject itself, or another way to the same
    /// place where the subject does not write.
    pub filler: Arc<dyn Remote>,
}

impl Fixture {
    /// A fixture whose subject fills itself.
    #[must_use]
    pub fn of(subject: Arc<dyn Remote>) -> Self {
        let filler = Arc::clone(&subject);
        Self { subject, filler }
    }
}

/// One behaviour that every place has.
#[derive(Clone, Copy)]
pub struct Case {
    /// The behaviour as a sentence.
    pub name: &'static str,
    /// Checks it.
    pub run: fn(Fixture) -> BoxFuture<'static, ()>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$(Case {
            name: stringify!($name),
            run: |fixture| Box::pin($module::$name(fixture)),
        }),*]
    };
}

/// The cases that change nothing through the subject.
pub const READING: &[Case] = cases![
    reading::a_file_is_read_whole_and_from_any_offset,
    reading::an_empty_file_is_read_as_no_bytes,
    reading::a_file_that_is_not_the_expected_one_is_not_read,
    reading::a_file_replaced_while_it_is_read_is_never_read_as_a_mixture,
    reading::what_is_not_a_file_is_not_read,
    reading::stat_tells_what_is_there_and_what_is_not,
    listing::a_listing_comes_in_tree_order,
    listing::an_empty_root_lists_as_nothing,
    listing::a_part_of_the_tree_can_be_listed,
    listing::a_filter_leaves_out_files_and_whole_directories,
    listing::a_directory_that_is_missing_is_not_an_empty_one,
    listing::a_big_listing_is_complete_and_may_be_dropped_half_way,
    listing::k7_list_and_stat_and_commit_agree_on_what_they_saw,
];

/// The cases that write.
pub const WRITING: &[Case] = cases![
    writing::k2_nothing_is_visible_before_the_commit,
    writing::files_of_all_sizes_arrive_whole,
    writing::what_was_committed_says_how_it_is_known,
    writing::a_wrong_length_is_refused,
    writing::an_abort_leaves_nothing_visible,
    writing::k6_only_what_may_be_replaced_is_replaced,
    writing::a_batch_is_committed_item_by_item,
    writing::mtimes_are_kept_as_exactly_as_promised,
    writing::modes_are_kept_where_promised,
    resuming::k9_a_suspended_upload_goes_on_where_it_was,
    resuming::k9_what_is_there_need_not_be_read_again_where_the_place_hashes_it,
    resuming::k9_a_dropped_upload_ends_whole,
    resuming::a_resume_state_of_something_gone_starts_over,
    resuming::what_an_earlier_attempt_left_can_be_given_up_by_what_it_saved,
    nodes::directories_are_made_with_and_without_asking,
    nodes::files_and_directories_never_replace_each_other,
    nodes::symbolic_links_are_kept_as_links,
    names::r37_every_name_arrives_byte_exact_or_is_refused,
    names::r38_names_that_differ_by_case_never_merge,
    renaming::a_file_gets_another_name,
    renaming::k6_a_rename_replaces_only_what_it_may,
    renaming::a_directory_gets_another_name,
    removing::what_was_named_is_removed_and_nothing_else,
    removing::k5_another_version_or_another_kind_is_not_removed,
    concurrency::many_files_are_written_at_once,
    concurrency::k2_of_many_writers_of_one_path_one_wins_whole,
];

/// Checks everything on fresh remotes from `make`.
///
/// # Panics
/// With the names of all cases that failed; each has said before what it expected.
pub async fn run_all<Make, Made>(make: Make)
where
    Make: Fn() -> Made + Send + Sync,
    Made: Future<Output = Arc<dyn Remote>> + Send,
{
    let make = &make;
    run(READING.iter().chain(WRITING), || async move {
        Fixture::of(make().await)
    })
    .await;
}

/// Checks only what reads, on fresh fixtures from `make`.
///
/// # Panics
/// With the names of all cases that failed; each has said before what it expected.
pub async fn run_reading<Make, Made>(make: Make)
where
    Make: Fn() -> Made + Send + Sync,
    Made: Future<Output = Fixture> + Send,
{
    run(READING, make).await;
}

async fn run<Make, Made>(cases: impl IntoIterator<Item = &Case> + Send, make: Make)
where
    Make: Fn() -> Made + Send + Sync,
    Made: Future<Output = Fixture> + Send,
{
    let mut failed = Vec::new();
    let cases: Vec<&Case> = cases.into_iter().collect();
    let count = cases.len();
    for case in cases {
        let fixture = make().await;
        tracing::debug!(case = case.name, "conformance");
        // A task of its own, so that one panic does not hide what the other cases have to say.
        let task = tokio::spawn(tokio::time::timeout(CASE_LIMIT, (case.run)(fixture)));
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(_elapsed)) => {
                failed.push(format!("{}: did not end within {CASE_LIMIT:?}", case.name));
            }
            Err(error) => failed.push(format!("{}: {}", case.name, panic_text(error))),
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {count} conformance cases failed:\n* {}",
        failed.len(),
        failed.join("\n* ")
    );
}

fn panic_text(error: tokio::task::JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else {
        return "was cancelled".to_owned();
    };
    if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else {
        "panicked".to_owned()
    }
}
