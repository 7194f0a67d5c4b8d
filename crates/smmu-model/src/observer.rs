//! Somebody who watches and never interferes: statistics, tests, a checker.

use crate::spec::command::Command;
use crate::spec::event::Event;

/// Is told what the SMMU does. Every method does nothing unless implemented.
pub trait Observer: Send {
    /// A command was consumed.
    fn command(&mut self, command: &Command) {
        let _ = command;
    }

    /// An event record was written to the queue.
    fn event(&mut self, event: &Event) {
        let _ = event;
    }
}

/// Where an observer sits. It is no part of the SMMU's state: a copy or a snapshot has none.
#[derive(Default)]
pub(crate) struct Seat(pub(crate) Option<Box<dyn Observer>>);

impl Clone for Seat {
    fn clone(&self) -> Self {
        Seat(None)
    }
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Seat(taken)" } else { "Seat(empty)" })
    }
}

impl Seat {
    pub(crate) fn command(&mut self, command: &Command) {
        if let Some(observer) = &mut self.0 {
            observer.command(command);
        }
    }

    pub(crate) fn event(&mut self, event: &Event) {
        if let Some(observer) = &mut self.0 {
            observer.event(event);
        }
    }
}
