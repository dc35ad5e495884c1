//! Tests that need root: they fail without it, unless they are left out on purpose.

/// Whether the test may go on: true for root. Without root it panics, unless
/// `KNARR_TEST_WITHOUT_ROOT=1` says that such tests are left out; then it prints a line and gives false.
///
/// Use it through [`needs_root!`](crate::needs_root).
///
/// # Panics
///
/// If the process is not root's and nobody asked to leave such tests out.
#[must_use]
#[track_caller]
#[expect(clippy::print_stderr, reason = "a test that is left out must say so")]
pub fn present_or_left_out(what: &'static str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let left_out = std::env::var_os("KNARR_TEST_WITHOUT_ROOT").is_some_and(|value| value == "1");
    assert!(left_out, "{}", crate::TestkitError::NeedsRoot { what });
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    record(&name);
    eprintln!("LEFT OUT (needs root for {what}, KNARR_TEST_WITHOUT_ROOT=1): {name}");
    false
}

/// `cargo xtask test` shows these names after the summary, which counts such tests as passed.
fn record(name: &str) {
    use std::io::Write as _;
    if let Some(path) = std::env::var_os("KNARR_TEST_LEFT_OUT") {
        let file = std::fs::File::options().append(true).open(path);
        file.and_then(|mut file| file.write_all(format!("{name}\n").as_bytes()))
            .ok();
    }
}

/// First line of a test that needs root: returns from the test only if such tests were left out on
/// purpose, and fails loudly if they were not.
#[macro_export]
macro_rules! needs_root {
    ($what:literal) => {
        if !$crate::root::present_or_left_out($what) {
            return;
        }
    };
    () => {
        $crate::needs_root!("this test")
    };
}
