//! The edge of the machine: host input and output, on event-manager's loop.
//!
//! Nothing inside the machine knows of file descriptors or the host's clock (design contract 9). What arrives here is
//! handed in at a point of virtual time that the run loop chooses.

mod passt;
pub(crate) mod signals;
mod stdin;
mod terminal;
mod vhost;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use signals::Signals;

pub use passt::Passt;
pub use stdin::Keyboard;
pub use terminal::{Escape, RawMode};
pub use vhost::{Answer, Identity, VhostDisk, VhostNet};

type Subscriber = Arc<Mutex<dyn MutEventSubscriber>>;

/// Where the guest's Ethernet frames go, and where frames for it come from.
pub trait Wire {
    /// Sends a frame, or drops it when the other side is far behind.
    fn send(&mut self, frame: &[u8]);

    /// Passes on what waits, as far as the other side takes it.
    fn flush(&mut self);

    /// The next frame, if one has come.
    fn receive(&mut self) -> Option<Vec<u8>>;
}

/// Watches a descriptor that something else reads: only its readiness ends a wait.
struct Readiness(RawFd);

impl MutEventSubscriber for Readiness {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {}

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = ops.add(Events::new_raw(self.0, EventSet::IN)) {
            log::warn!("cannot watch descriptor {}: {e}", self.0);
        }
    }
}

/// The host's side of the machine's consoles and network.
pub struct Edge {
    manager: EventManager<Subscriber>,
    keyboard: Option<Arc<Mutex<Keyboard>>>,
    signals: Option<Arc<Mutex<Signals>>>,
    sources: usize,
}

impl Edge {
    /// An edge without any source.
    ///
    /// # Errors
    /// When the host has no more descriptors.
    pub fn new() -> Result<Self, event_manager::Error> {
        Ok(Self { manager: EventManager::new()?, keyboard: None, signals: None, sources: 0 })
    }

    /// Takes console input from the program's standard input.
    pub fn watch_stdin(&mut self) {
        let keyboard = Arc::new(Mutex::new(Keyboard::new()));
        self.manager.add_subscriber(keyboard.clone());
        self.keyboard = Some(keyboard);
    }

    /// Lets `source` becoming readable end a [`Edge::wait`].
    pub fn watch(&mut self, source: &impl AsRawFd) {
        self.manager.add_subscriber(Arc::new(Mutex::new(Readiness(source.as_raw_fd()))));
        self.sources += 1;
    }

    /// Takes signals that ask the program to end as input.
    pub fn watch_signals(&mut self) {
        match Signals::watch() {
            Ok(signals) => {
                let signals = Arc::new(Mutex::new(signals));
                self.manager.add_subscriber(signals.clone());
                self.signals = Some(signals);
            }
            Err(e) => log::warn!("cannot watch for signals: {e}"),
        }
    }

    /// The number of such a signal, if one came.
    pub fn signal(&self) -> Option<u8> {
        self.signals.as_ref().and_then(|s| stdin::locked(s).received())
    }

    /// Whether input may come at a time of its own. If not, the run is a function of its options and files alone.
    pub fn has_sources(&self) -> bool {
        self.sources > 0 || self.keyboard.as_ref().is_some_and(|k| stdin::locked(k).live())
    }

    /// Handles what the host has for us, waiting up to `milliseconds` for it.
    pub fn wait(&mut self, milliseconds: i32) {
        if !self.has_sources() && self.signals.is_none() {
            return;
        }
        if let Err(e) = self.manager.run_with_timeout(milliseconds) {
            log::debug!("event loop: {e}");
        }
    }

    /// Console input since the last call.
    pub fn take_keys(&mut self) -> Vec<u8> {
        self.keyboard.as_ref().map_or_else(Vec::new, |k| stdin::locked(k).take())
    }

    /// Whether the user asked to leave.
    pub fn quit(&self) -> bool {
        self.keyboard.as_ref().is_some_and(|k| stdin::locked(k).quit())
    }
}
