//! Shows what the engine does: bars on a terminal, log lines otherwise.
//!
//! Constraints: an event costs a few atomic additions; bars exist only for large files in flight, so
//! their number is bounded by the transfers at once; names come escaped.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use knarr_core::RelPath;
use knarr_engine::observer::{Event, Observer, Trouble};

use crate::config::Colour;
use crate::output::{Style, paint};

/// Files from this length on have a bar of their own (bytes).
const LARGE_BYTES: u64 = 32 << 20;
/// How often bars are drawn, in hertz.
const DRAW_HERTZ: u8 = 8;

/// The bars of the process, if there are any; log lines have to go around them.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Stderr, around the bars.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct AroundBars;

impl Write for AroundBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match BARS.get() {
            Some(bars) => bars.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Bars on a terminal.
#[derive(Debug)]
pub(crate) struct Bars {
    bars: MultiProgress,
    overall: ProgressBar,
    items: AtomicU64,
    items_done: AtomicU64,
    large: Mutex<HashMap<RelPath, ProgressBar>>,
    large_count: AtomicUsize,
    colour: Colour,
}

impl Bars {
    /// Begins to draw.
    pub(crate) fn start(colour: Colour) -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(DRAW_HERTZ);
        let bars = MultiProgress::with_draw_target(target);
        let overall = bars.add(ProgressBar::new(0));
        overall.set_style(style(
            "{bar:24} {bytes} of {total_bytes}, {msg}, {binary_bytes_per_sec}, {eta} left",
        ));
        overall.set_message("looking");
        // Only log lines need it; the first to start wins.
        let _second: Result<(), _> = BARS.set(bars.clone());
        Self {
            bars,
            overall,
            items: AtomicU64::new(0),
            items_done: AtomicU64::new(0),
            large: Mutex::default(),
            large_count: AtomicUsize::new(0),
            colour,
        }
    }

    /// Takes all bars away.
    pub(crate) fn finish(&self) {
        self.overall.finish_and_clear();
        // A terminal that is gone shows nothing anyway.
        let _gone: io::Result<()> = self.bars.clear();
    }

    fn count(&self) {
        let (done, all) = (
            self.items_done.load(Ordering::Relaxed),
            self.items.load(Ordering::Relaxed),
        );
        self.overall.set_message(format!("{done} of {all} files"));
    }

    fn line(&self, line: String) {
        // The same: nobody is there to read it.
        let _gone: io::Result<()> = self.bars.println(line);
    }

    fn started(&self, path: &RelPath, size: u64) {
        if size < LARGE_BYTES {
            return;
        }
        let bar = self.bars.add(ProgressBar::new(size));
        bar.set_style(style("  {bar:22} {percent:>3}% of {total_bytes}, {msg}"));
        bar.set_message(path.to_string());
        let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = large.insert(path.clone(), bar) {
            old.finish_and_clear();
        }
        self.large_count.store(large.len(), Ordering::Relaxed);
    }

    fn progressed(&self, path: Option<&RelPath>, bytes: u64) {
        self.overall.inc(bytes);
        if let Some(path) = path
            && self.large_count.load(Ordering::Relaxed) > 0
        {
            let large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(bar) = large.get(path) {
                bar.inc(bytes);
            }
        }
    }

    fn finished(&self, path: &RelPath) {
        self.items_done.fetch_add(1, Ordering::Relaxed);
        self.count();
        if self.large_count.load(Ordering::Relaxed) > 0 {
            let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(bar) = large.remove(path) {
                bar.finish_and_clear();
            }
            self.large_count.store(large.len(), Ordering::Relaxed);
        }
    }
}

impl Observer for Bars {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Planned { items, bytes } => {
                self.items.fetch_add(*items, Ordering::Relaxed);
                self.overall.inc_length(*bytes);
                self.count();
            }
            Event::Started { path, size } => self.started(path, *size),
            Event::Progress { path, bytes } => self.progressed(*path, *bytes),
            Event::Finished { path, .. } => self.finished(path),
            Event::Retry { path, error } => {
                let word = paint(self.colour, Style::Warning, "again:");
                self.line(format!("{word} {path}: {}", safe(error)));
            }
            Event::Trouble {
                path,
                kind,
                message,
            } => {
                let (word, style) = match kind {
                    Trouble::Conflict => ("conflict:", Style::Warning),
                    Trouble::Problem => ("problem:", Style::Warning),
                    Trouble::Error => ("error:", Style::Bad),
                    Trouble::Notice => ("note:", Style::Faint),
                };
                let word = paint(self.colour, style, word);
                let message = safe(message);
                self.line(match path {
                    Some(path) => format!("{word} {path}: {message}"),
                    None => format!("{word} {message}"),
                });
            }
            _ => {}
        }
    }
}

/// Log lines.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lines;

/// Log lines about one run of a job: each says of which run and file it is.
#[derive(Debug, Clone)]
struct RunLines {
    job: String,
    run: u64,
}

impl RunLines {
    /// The same for all lines about a file, whatever its name has in it.
    fn file(&self, path: &RelPath) -> String {
        let of = [self.job.as_bytes(), path.as_bytes()].join(&0);
        let hash = knarr_core::ContentHash::of(&of).to_string();
        hash.get(..16).unwrap_or(&hash).to_owned()
    }
}

impl Observer for RunLines {
    fn event(&self, event: &Event<'_>) {
        let (job, run) = (self.job.as_str(), self.run);
        match event {
            Event::Started { path, size } => {
                let file = self.file(path);
                tracing::debug!(job, run, file, %path, size, "begun");
            }
            Event::Finished {
                path,
                action,
                bytes,
            } => {
                let file = self.file(path);
                tracing::info!(job, run, file, %path, action = action.name(), bytes, "done");
            }
            Event::Retry { path, error } => {
                let (file, error) = (self.file(path), safe(error));
                tracing::warn!(job, run, file, %path, %error, "failed, will be tried again");
            }
            Event::Trouble {
                path: Some(path),
                kind,
                message,
            } => {
                let (file, message) = (self.file(path), safe(message));
                match kind {
                    Trouble::Error => tracing::error!(job, run, file, %path, "{message}"),
                    Trouble::Conflict => {
                        tracing::warn!(job, run, file, %path, kind = "conflict", "{message}");
                    }
                    Trouble::Problem => {
                        tracing::warn!(job, run, file, %path, kind = "problem", "{message}");
                    }
                    Trouble::Notice => tracing::info!(job, run, file, %path, "{message}"),
                }
            }
            Event::Trouble {
                path: None,
                kind,
                message,
            } => {
                let message = safe(message);
                match kind {
                    Trouble::Error => tracing::error!(job, run, "{message}"),
                    Trouble::Conflict | Trouble::Problem => tracing::warn!(job, run, "{message}"),
                    Trouble::Notice => tracing::info!(job, run, "{message}"),
                }
            }
            _ => {}
        }
    }
}

impl Observer for Lines {
    fn for_run(&self, job: &str, run: u64) -> Option<Arc<dyn Observer>> {
        let job = job.to_owned();
        Some(Arc::new(RunLines { job, run }))
    }

    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Finished {
                path,
                action,
                bytes,
            } => {
                tracing::info!(%path, action = action.name(), bytes, "done");
            }
            Event::Retry { path, error } => {
                tracing::warn!(%path, error = %safe(error), "failed, will be tried again");
            }
            Event::Trouble {
                path,
                kind,
                message,
            } => {
                let path = path.map(ToString::to_string).unwrap_or_default();
                let message = safe(message);
                match kind {
                    Trouble::Error => tracing::error!(path, "{message}"),
                    Trouble::Conflict => tracing::warn!(path, kind = "conflict", "{message}"),
                    Trouble::Problem => tracing::warn!(path, kind = "problem", "{message}"),
                    Trouble::Notice => tracing::info!(path, "{message}"),
                }
            }
            _ => {}
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates here are constant and right")
        .progress_chars("█▌ ")
}

fn safe(text: &str) -> String {
    knarr_core::path::printable(text.as_bytes()).to_string()
}
