//! The event queue: records wait in a FIFO, and each is written in a step of its own (sections 3.5.3, 7.2 and 7.4).

use std::collections::VecDeque;

use crate::irq::IrqSource;
use crate::memory::Memory;
use crate::queue::Geometry;
use crate::smmu::Smmu;
use crate::spec::event::{EVENT_SHIFT, Event};
use crate::spec::registers::{EVENTQ_PROD, OVERFLOW, cr0, gerror};

/// Records that are not written yet.
pub(crate) type Fifo = VecDeque<Event>;

impl Smmu {
    fn eventq(&self) -> Geometry {
        self.regs.eventq.geometry(self.config.eventqs, self.config.oas, EVENT_SHIFT)
    }

    /// Whether records can go to the queue: it is enabled, and no abort waits to be acknowledged.
    pub(crate) fn eventq_writable(&self) -> bool {
        self.regs.cr0 & cr0::EVENTQEN != 0 && !self.regs.gerror_active(gerror::EVENTQ_ABT_ERR)
    }

    /// Records an event. One that can not be recorded is lost, unless its transaction stalls: then it waits
    /// (section 7.2). There are at most as many of those as stalled transactions.
    pub(crate) fn record(&mut self, event: Event) {
        if event.stall.is_none() {
            if !self.eventq_writable() {
                self.stats.events_dropped += 1;
                return;
            }
            if self.events.len() >= self.config.event_fifo as usize {
                self.overflow();
                return;
            }
        }
        self.events_recorded += 1;
        self.events.push_back(event);
    }

    /// Records an event, unless one of those that wait says the same and merging is allowed.
    pub(crate) fn record_merging(&mut self, event: Event, mev: bool) {
        if mev && self.config.merge && self.events.iter().any(|other| other.merges_with(&event)) {
            self.stats.events_merged += 1;
        } else {
            self.record(event);
        }
    }

    /// An event was lost because there is no room: OVFLG toggles, if software has acknowledged the last time.
    fn overflow(&mut self) {
        self.stats.events_dropped += 1;
        let queue = &mut self.regs.eventq;
        if (queue.prod ^ queue.cons) & OVERFLOW == 0 {
            queue.prod ^= OVERFLOW;
            let prod = queue.prod;
            self.observer.tell(|o| o.register(EVENTQ_PROD, prod));
        }
    }

    /// Whether [`Smmu::step_event`] has a record to write or to drop.
    #[must_use]
    pub fn event_pending(&self) -> bool {
        !self.events.is_empty()
            && self.eventq_writable()
            && (!self.regs.eventq.is_full(self.eventq())
                || self.events.iter().any(|event| event.stall.is_none()))
    }

    /// Writes one record to the event queue; if it is full, drops one.
    pub fn step_event(&mut self, mem: &dyn Memory) {
        if !self.event_pending() {
            return;
        }
        let geometry = self.eventq();
        if self.regs.eventq.is_full(geometry) {
            if let Some(n) = self.events.iter().position(|event| event.stall.is_none()) {
                self.events.remove(n);
                self.overflow();
            }
            return;
        }
        let Some(event) = self.events.pop_front() else { return };
        let mut bytes = [0; 32];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(event.record()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        if mem.write(geometry.entry(self.regs.eventq.prod), &bytes).is_err() {
            // The record is lost, a stalled transaction's stays (section 7.2).
            if event.stall.is_some() {
                self.events.push_front(event);
            } else {
                self.stats.events_dropped += 1;
            }
            self.raise_gerror(gerror::EVENTQ_ABT_ERR);
            return;
        }
        *self.stats.events.entry(event.code()).or_default() += 1;
        self.observer.event(&event);
        let was_empty = self.regs.eventq.is_empty(geometry);
        self.regs.eventq.advance_prod(geometry);
        // The interrupt marks the change from empty to non-empty (section 3.18).
        if was_empty {
            self.raise(IrqSource::EventQ);
        }
    }

    /// Whether a record that was there when `recorded` had been made still waits, and can go.
    pub(crate) fn event_before(&self, recorded: u64) -> bool {
        self.events_recorded - (self.events.len() as u64) < recorded && self.event_pending()
    }

    /// The event queue is not writable: records that wait are lost, but those of stalled transactions.
    pub(crate) fn drop_events(&mut self) {
        let before = self.events.len();
        self.events.retain(|event| event.stall.is_some());
        self.stats.events_dropped += (before - self.events.len()) as u64;
    }
}
