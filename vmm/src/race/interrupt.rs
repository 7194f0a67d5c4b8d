//! Ctrl-C during a search: what was found so far is kept.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::SignalFd;

use crate::edge::signals;

/// SIGHUP, SIGINT and SIGTERM come here, and do not end the program, for as long as this lives.
pub struct Interrupt {
    source: SignalFd,
    set: SigSet,
}

impl Interrupt {
    /// Begins to watch.
    ///
    /// # Errors
    /// When the host has no more descriptors; the signals then do what they did.
    pub fn watch() -> nix::Result<Self> {
        let (source, set) = signals::open()?;
        Ok(Self { source, set })
    }

    /// What becomes readable when a signal came.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// The number of the signal that came.
    pub fn received(&self) -> Option<u8> {
        signals::read(&self.source)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        // A signal that came twice is taken here, or it would end the program now.
        while let Ok(Some(_)) = self.source.read_signal() {}
        let _ = self.set.thread_unblock();
    }
}
