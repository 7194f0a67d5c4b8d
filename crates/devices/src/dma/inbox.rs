//! Interrupt messages on their way to the ITS.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

/// A write to GITS_TRANSLATER: who wrote, and what (IHI 0069 §9.19, GITS_TRANSLATER).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// DeviceID, which travels beside the write.
    pub device_id: u32,
    /// EventID, the data written.
    pub event_id: u32,
}

/// What has been written to GITS_TRANSLATER and not yet been translated by the ITS. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct ItsInbox(Arc<Mutex<VecDeque<Message>>>);

impl ItsInbox {
    /// Messages that fit; a device whose message does not fit keeps it and tries again.
    pub const CAPACITY: usize = 4096;

    fn queue(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Appends a message; `false` when the inbox is full.
    pub fn post(&self, message: Message) -> bool {
        let mut queue = self.queue();
        let fits = queue.len() < Self::CAPACITY;
        if fits {
            queue.push_back(message);
        }
        fits
    }

    /// Takes the oldest message.
    pub fn take(&self) -> Option<Message> {
        self.queue().pop_front()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue().is_empty()
    }

    /// Whether another message would be refused.
    pub fn is_full(&self) -> bool {
        self.queue().len() >= Self::CAPACITY
    }

    /// The waiting messages, oldest first, for a snapshot.
    pub fn save(&self) -> Vec<Message> {
        self.queue().iter().copied().collect()
    }

    /// Replaces the waiting messages.
    pub fn restore(&self, messages: &[Message]) {
        *self.queue() = messages.iter().take(Self::CAPACITY).copied().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_has_an_end() {
        let inbox = ItsInbox::default();
        for event_id in 0..ItsInbox::CAPACITY as u32 {
            assert!(inbox.post(Message { device_id: 8, event_id }));
        }
        assert!(inbox.is_full());
        assert!(!inbox.post(Message { device_id: 8, event_id: 0 }));
        assert_eq!(inbox.take(), Some(Message { device_id: 8, event_id: 0 }));
        let other = ItsInbox::default();
        other.restore(&inbox.save());
        assert_eq!(other.take(), Some(Message { device_id: 8, event_id: 1 }));
    }
}
