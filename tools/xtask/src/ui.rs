//! What the user sees on stderr while something runs: one line per step, a spinner where stderr is a
//! terminal, plain lines where it is not. Results go to stdout and are no business of this file.

use std::fmt::Display;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A step that is under way. Dropped without [`Step::done`] it is shown as failed.
#[derive(Debug)]
pub(crate) struct Step {
    title: String,
    bar: Option<ProgressBar>,
    since: Instant,
    finished: bool,
}

/// Shows that `title` begins.
pub(crate) fn step(title: impl Into<String>) -> Step {
    let title = title.into();
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.set_message(title.clone());
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    });
    if bar.is_none() {
        eprintln!("  .. {title}");
    }
    Step {
        title,
        bar,
        since: Instant::now(),
        finished: false,
    }
}

/// A line that is no step: what was found, which way is taken.
pub(crate) fn note(text: impl Display) {
    eprintln!("{text}");
}

/// "1 round", "2 rounds".
pub(crate) fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

impl Step {
    /// Shows how far it is; only on a terminal, where the line can be replaced.
    pub(crate) fn now(&self, detail: impl Display) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {detail}", self.title));
        }
    }

    /// Ends it well, with what came out of it.
    pub(crate) fn done(mut self, detail: impl Display) {
        self.finished = true;
        let detail = detail.to_string();
        let colon = if detail.is_empty() { "" } else { ": " };
        self.end("ok", &format!("{colon}{detail}"));
    }

    fn end(&self, mark: &str, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!(
            "  {mark} {}{detail} ({:.1} s)",
            self.title,
            self.since.elapsed().as_secs_f32()
        );
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.end("--", " did not succeed");
        }
    }
}
