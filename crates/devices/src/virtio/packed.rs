//! The packed layout (virtio 1.3 §2.8): one ring of descriptors that both sides write, and a structure for each side
//! that says when it wants to be told.
//!
//! The two sides are one ring apart at most, so one bit, the wrap counter, tells a descriptor of this round from one of
//! the last. A look at the ring is one step of the machine, so a descriptor is read whole, and written used with one
//! store.

use std::ops::Range;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::feature;
use super::queue::{Areas, Chain, Head, MAX_SEGMENTS, QueueError};
use crate::dma::{DmaPort, Segment};

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Where its flags are.
const FLAGS: u64 = 14;

/// Flags of a descriptor.
mod flag {
    pub(super) const NEXT: u16 = 1;
    pub(super) const WRITE: u16 = 1 << 1;
    pub(super) const INDIRECT: u16 = 1 << 2;
    pub(super) const AVAIL: u16 = 1 << 7;
    pub(super) const USED: u16 = 1 << 15;
}

/// Flags of an event suppression structure (virtio 1.3 §2.8.10).
mod event {
    pub(super) const ENABLE: u16 = 0;
    pub(super) const DISABLE: u16 = 1;
    pub(super) const DESC: u16 = 2;
    pub(super) const MASK: u16 = 3;
    /// The wrap counter beside the offset.
    pub(super) const WRAP: u16 = 1 << 15;
}

/// A place in the ring: an index, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    index: u16,
    wrap: bool,
}

impl Cursor {
    /// Where both sides begin.
    const START: Self = Self { index: 0, wrap: true };

    /// `slots` further on in a ring of `size`, and at most once round.
    fn forth(self, slots: u16, size: u16) -> Self {
        let index = u32::from(self.index) + u32::from(slots.min(size));
        match index.checked_sub(size.into()) {
            Some(rest) => Self { index: rest as u16, wrap: !self.wrap },
            None => Self { index: index as u16, wrap: self.wrap },
        }
    }

    /// `slots` back.
    fn back(self, slots: u16, size: u16) -> Self {
        let slots = slots.min(size);
        match self.index.checked_sub(slots) {
            Some(index) => Self { index, wrap: self.wrap },
            None => Self { index: size - (slots - self.index), wrap: !self.wrap },
        }
    }

    /// Whether a descriptor with these flags is available here.
    fn available(self, flags: u16) -> bool {
        (flags & flag::AVAIL != 0) == self.wrap && (flags & flag::USED != 0) != self.wrap
    }

    /// How an event suppression structure names this place.
    fn as_event(self) -> u16 {
        self.index | if self.wrap { event::WRAP } else { 0 }
    }
}

/// A descriptor as the driver wrote it.
struct Descriptor {
    segment: Segment,
    id: u16,
    flags: u16,
}

impl Descriptor {
    fn parse(bytes: [u8; DESCRIPTOR as usize]) -> Self {
        let word = u128::from_le_bytes(bytes);
        Self {
            segment: Segment { iova: word as u64, len: (word >> 64) as u32 },
            id: (word >> 96) as u16,
            flags: (word >> 112) as u16,
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// An enabled packed queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Packed {
    areas: Areas,
    event_idx: bool,
    indirect: bool,
    /// The next descriptor that the driver makes available.
    avail: Cursor,
    /// The next descriptor to write as used.
    used: Cursor,
}

impl Packed {
    /// A queue at the start of its ring; `None` when it cannot be at these addresses (virtio 1.3 §2.8.10.1).
    pub(super) fn new(areas: Areas, max_size: u16, features: u64) -> Option<Self> {
        let event_idx = features & feature::EVENT_IDX != 0;
        let indirect = features & feature::INDIRECT_DESC != 0;
        let queue = Self { areas, event_idx, indirect, avail: Cursor::START, used: Cursor::START };
        queue.plausible(areas, max_size).then_some(queue)
    }

    /// Whether a queue with these registers can be in this state.
    pub(super) fn plausible(&self, areas: Areas, max_size: u16) -> bool {
        let Areas { size, desc, driver, device } = self.areas;
        let aligned = desc % DESCRIPTOR == 0 && driver % 4 == 0 && device % 4 == 0;
        self.areas == areas
            && aligned
            && size <= max_size
            && self.avail.index < size
            && self.used.index < size
    }

    pub(super) fn pop(&mut self, port: &DmaPort) -> Result<Option<Chain>, QueueError> {
        let start = self.avail;
        let mut last = self.read(port, start)?;
        if !start.available(last.flags) {
            self.ask(port)?;
            return Ok(None);
        }
        let broken = || QueueError::Chain(start.index);
        let mut chain = Chain::default();
        let mut slots = 1;
        if last.has(flag::INDIRECT) {
            // A table is a list of its own, and needs the feature (§2.8.7, §2.8.19).
            if last.has(flag::NEXT) || !self.indirect {
                return Err(broken());
            }
            self.read_table(port, last.segment, &mut chain)?;
        } else {
            chain.push(start.index, last.segment, last.has(flag::WRITE))?;
            while last.has(flag::NEXT) {
                if slots == self.areas.size {
                    return Err(broken());
                }
                // The whole list is available before its first descriptor is (§2.8.17).
                let at = start.forth(slots, self.areas.size);
                last = self.read(port, at)?;
                if !at.available(last.flags) || last.has(flag::INDIRECT) {
                    return Err(broken());
                }
                chain.push(start.index, last.segment, last.has(flag::WRITE))?;
                slots += 1;
            }
        }
        // The Buffer ID is in the last descriptor of a list. Any is right: it means something to the driver only.
        chain.head = Head { id: last.id, slots };
        self.avail = start.forth(slots, self.areas.size);
        Ok(Some(chain))
    }

    /// Where the driver makes requests available, as device addresses: the ring.
    pub(super) fn announcements(&self) -> Range<u64> {
        self.areas.desc..self.areas.desc + DESCRIPTOR * u64::from(self.areas.size)
    }

    /// The flags of the first descriptor of the last request that was taken.
    pub(super) fn announced(&self, head: Head) -> Range<u64> {
        let flags = self.slot(self.avail.back(head.slots, self.areas.size), FLAGS).0;
        flags..flags + 2
    }

    pub(super) fn put_back(&mut self, head: Head) {
        self.avail = self.avail.back(head.slots, self.areas.size);
    }

    pub(super) fn push(&mut self, port: &DmaPort, head: Head, written: u32) -> Result<bool, QueueError> {
        let at = self.used;
        let marks = if at.wrap { flag::AVAIL | flag::USED } else { 0 };
        let flags = marks | if written > 0 { flag::WRITE } else { 0 };
        let half = u64::from(written) | u64::from(head.id) << 32 | u64::from(flags) << 48;
        port.store(half.to_le(), self.slot(at, 8), Ordering::Release).map_err(memory)?;
        self.used = at.forth(head.slots, self.areas.size);
        self.wants_event(port, at, head.slots)
    }

    fn slot(&self, at: Cursor, offset: u64) -> GuestAddress {
        GuestAddress(self.areas.desc + u64::from(at.index) * DESCRIPTOR + offset)
    }

    fn read(&self, port: &DmaPort, at: Cursor) -> Result<Descriptor, QueueError> {
        port.read_obj(self.slot(at, 0)).map(Descriptor::parse).map_err(memory)
    }

    /// The elements of an indirect table. All flags but WRITE are reserved there, and ignored.
    fn read_table(&self, port: &DmaPort, table: Segment, chain: &mut Chain) -> Result<(), QueueError> {
        let at = self.avail.index;
        let len = u64::from(table.len);
        if len == 0 || len % DESCRIPTOR != 0 || len > MAX_SEGMENTS as u64 * DESCRIPTOR {
            return Err(QueueError::Chain(at));
        }
        let mut bytes = vec![0; len as usize];
        port.read_slice(&mut bytes, GuestAddress(table.iova)).map_err(memory)?;
        for descriptor in bytes.as_chunks().0.iter().map(|&bytes| Descriptor::parse(bytes)) {
            chain.push(at, descriptor.segment, descriptor.has(flag::WRITE))?;
        }
        Ok(())
    }

    /// Asks for a notification of the next descriptor that the driver makes available.
    fn ask(&self, port: &DmaPort) -> Result<(), QueueError> {
        let word = if self.event_idx {
            u32::from(self.avail.as_event()) | u32::from(event::DESC) << 16
        } else {
            u32::from(event::ENABLE) << 16
        };
        port.store(word.to_le(), GuestAddress(self.areas.device), Ordering::Relaxed).map_err(memory)
    }

    /// Whether the driver wants an interrupt, now that `slots` descriptors from `from` on have been used.
    fn wants_event(&self, port: &DmaPort, from: Cursor, slots: u16) -> Result<bool, QueueError> {
        let word: u32 = port.load(GuestAddress(self.areas.driver), Ordering::Relaxed).map_err(memory)?;
        let word = u32::from_le(word);
        let (place, flags) = (word as u16, (word >> 16) as u16 & event::MASK);
        Ok(match flags {
            event::DISABLE => false,
            event::DESC if self.event_idx => {
                let wrap = place & event::WRAP != 0;
                // As if the ring went on behind its end.
                let round = if wrap == from.wrap { 0 } else { u32::from(self.areas.size) };
                let place = u32::from(place & !event::WRAP) + round;
                let from = u32::from(from.index);
                (from..from + u32::from(slots)).contains(&place)
            }
            // Reserved values too: an interrupt too many does no harm.
            _ => true,
        })
    }
}

fn memory(e: vm_memory::GuestMemoryError) -> QueueError {
    QueueError::Ring(virtio_queue::Error::GuestMemory(e))
}
