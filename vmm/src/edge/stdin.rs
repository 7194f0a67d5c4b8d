//! Console input from standard input, be it a terminal, a pipe or a file.

use std::io::{IsTerminal, Read};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::terminal::Escape;

/// Locks, going on with what is there after a panic elsewhere.
pub(super) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// The most that is taken from the host before the guest has taken it from here.
const BUFFER: usize = 4096;
/// What a terminal's user may have typed ahead of the guest; more is dropped, as a terminal drops it. It is read all
/// the same, for the escape that leaves.
const TYPED_AHEAD: usize = 1 << 16;
/// What is taken from a file at once.
const FROM_FILE: usize = 1 << 16;

/// Bytes typed and not yet given to the guest.
#[derive(Debug, Default)]
pub struct Keyboard {
    pending: Vec<u8>,
    escape: Escape,
    quit: bool,
    terminal: bool,
    source: Source,
}

/// What standard input is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Source {
    /// Something whose input comes when it comes: a terminal or a pipe.
    #[default]
    Live,
    /// A file, all of which is there: it is read when the guest has taken what was read before, so that the run does
    /// not depend on the host.
    File,
    /// Nothing more will come.
    Ended,
}

impl Keyboard {
    /// Nothing typed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was typed since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        while self.source == Source::File && self.pending.len() < FROM_FILE {
            if !self.read() {
                self.source = Source::Ended;
            }
        }
        std::mem::take(&mut self.pending)
    }

    /// Whether input may come at a time of its own.
    pub fn live(&self) -> bool {
        self.source == Source::Live
    }

    /// Whether Ctrl-A x was typed.
    pub fn quit(&self) -> bool {
        self.quit
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.quit |= self.escape.filter(bytes, &mut self.pending);
        if self.terminal {
            self.pending.truncate(TYPED_AHEAD);
        }
    }

    /// Reads once; `false` at the end of input.
    fn read(&mut self) -> bool {
        let mut buffer = [0; BUFFER];
        match std::io::stdin().lock().read(&mut buffer) {
            Ok(0) => false,
            Ok(n) => {
                self.feed(&buffer[..n]);
                true
            }
            Err(e) => e.kind() == std::io::ErrorKind::Interrupted,
        }
    }
}

impl MutEventSubscriber for Keyboard {
    fn process(&mut self, _: Events, ops: &mut EventOps<'_>) {
        if (self.terminal || self.pending.len() < BUFFER) && !self.read() {
            // End of input: stop watching, or the loop would spin.
            let _ = ops.remove(Events::new(&std::io::stdin(), EventSet::IN));
            self.source = Source::Ended;
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.terminal = std::io::stdin().is_terminal();
        // A regular file or /dev/null cannot be polled (EPERM).
        if ops.add(Events::new_raw(std::io::stdin().as_raw_fd(), EventSet::IN)).is_err() {
            self.source = Source::File;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_is_found_behind_any_number_of_keys() {
        let mut keyboard = Keyboard { terminal: true, ..Keyboard::new() };
        for _ in 0..100 {
            keyboard.feed(&[b'k'; BUFFER]);
        }
        assert!(!keyboard.quit());
        assert_eq!(keyboard.pending.len(), TYPED_AHEAD);
        keyboard.feed(b"\x01x");
        assert!(keyboard.quit());
        assert_eq!(keyboard.take(), [b'k'; TYPED_AHEAD]);
    }
}
