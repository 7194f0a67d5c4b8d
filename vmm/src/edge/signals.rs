//! Signals that ask the program to end, as input: the run stops at the end of a slice and leaves the terminal as it was.

use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// From now on SIGHUP, SIGINT and SIGTERM are read here and do not end the program by themselves. The set is of those that
/// are blocked for it.
///
/// # Errors
/// When the host has no more descriptors; the signals then do what they did.
pub(crate) fn open() -> nix::Result<(SignalFd, SigSet)> {
    let set: SigSet = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    let source = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    set.thread_block()?;
    Ok((source, set))
}

/// The number of the signal that came, if one did.
pub(crate) fn read(source: &SignalFd) -> Option<u8> {
    let info = source.read_signal().ok().flatten()?;
    u8::try_from(info.ssi_signo).ok()
}

/// Watches for SIGHUP, SIGINT and SIGTERM.
pub(super) struct Signals {
    source: SignalFd,
    received: Option<u8>,
}

impl Signals {
    /// From now on these signals come here and do not end the program by themselves.
    ///
    /// # Errors
    /// When the host has no more descriptors; the signals then do what they did.
    pub(super) fn watch() -> nix::Result<Self> {
        let (source, _) = open()?;
        Ok(Self { source, received: None })
    }

    /// The number of the signal that came.
    pub(super) fn received(&self) -> Option<u8> {
        self.received
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.received = read(&self.source).or(self.received);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = ops.add(Events::new_raw(self.source.as_raw_fd(), EventSet::IN)) {
            log::warn!("cannot watch for signals: {e}");
        }
    }
}
