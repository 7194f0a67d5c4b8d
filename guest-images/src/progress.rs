//! Progress of long work: a bar on a terminal, nothing in a pipe.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// How to show progress. Bars go to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Bars.
    Bars,
    /// Nothing.
    Quiet,
}

impl Progress {
    /// Bars if standard error is a terminal.
    pub fn auto() -> Self {
        if std::io::stderr().is_terminal() { Self::Bars } else { Self::Quiet }
    }

    /// A bar from 0 to 100.
    pub(crate) fn percent(self, what: &str) -> ProgressBar {
        self.bar(ProgressBar::new(100), "{msg:40} [{bar:30}] {pos:>3}%", what)
    }

    /// Something that moves, for work of unknown length.
    pub(crate) fn spinner(self, what: &str) -> ProgressBar {
        self.bar(ProgressBar::new_spinner(), "{msg} {spinner} {elapsed}", what)
    }

    fn bar(self, bar: ProgressBar, template: &str, what: &str) -> ProgressBar {
        if self == Self::Quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
            return bar;
        }
        bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
        bar.set_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}
