//! The split layout (virtio 1.3 §2.7): rust-vmm's queue, driven over a DMA port, with what it leaves to its user.

use std::ops::Range;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::feature;
use super::queue::{Areas, Chain, Head, QueueError};
use crate::dma::{DmaPort, Segment};

const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Bytes before the available ring's first element, and of each.
const AVAIL_HEADER: u64 = 4;
const AVAIL_ELEMENT: u64 = 2;

/// An enabled split queue.
#[derive(Debug)]
pub(super) struct Split {
    queue: Queue,
    driver: GuestAddress,
}

/// What of a [`Split`] the registers do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SplitState {
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
}

impl Split {
    /// A queue at the start of its rings; `None` when it cannot be at these addresses.
    pub(super) fn new(areas: Areas, max_size: u16, features: u64) -> Option<Self> {
        let event_idx = features & feature::EVENT_IDX != 0;
        Self::restore(areas, max_size, SplitState { event_idx, next_avail: 0, next_used: 0 })
    }

    /// A queue in this state; `None` when none can be in it.
    pub(super) fn restore(areas: Areas, max_size: u16, s: SplitState) -> Option<Self> {
        let state = QueueState {
            max_size,
            next_avail: s.next_avail,
            next_used: s.next_used,
            event_idx_enabled: s.event_idx,
            size: areas.size,
            ready: true,
            desc_table: areas.desc,
            avail_ring: areas.driver,
            used_ring: areas.device,
        };
        Some(Self { queue: Queue::try_from(state).ok()?, driver: GuestAddress(areas.driver) })
    }

    pub(super) fn save(&self) -> SplitState {
        SplitState {
            event_idx: self.queue.event_idx_enabled(),
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    pub(super) fn pop(&mut self, port: &DmaPort) -> Result<Option<Chain>, QueueError> {
        // Twice: between the look at an empty ring and the request for a notification nothing can happen here, so
        // the second look finds something only if the first could not read it.
        for _ in 0..2 {
            let mut available = self.queue.iter(port)?;
            if let Some(chain) = available.next() {
                return collect(chain).map(Some);
            }
            if !self.queue.enable_notification(port)? {
                return Ok(None);
            }
        }
        Err(QueueError::Chain(self.queue.next_avail()))
    }

    /// Where the driver makes requests available, as device addresses: the available ring's elements.
    pub(super) fn announcements(&self) -> Range<u64> {
        let first = self.driver.0 + AVAIL_HEADER;
        first..first + AVAIL_ELEMENT * u64::from(self.queue.size())
    }

    /// The element of the last request that was taken.
    pub(super) fn announced(&self) -> Range<u64> {
        let index = self.queue.next_avail().wrapping_sub(1) % self.queue.size().max(1);
        let first = self.driver.0 + AVAIL_HEADER + AVAIL_ELEMENT * u64::from(index);
        first..first + AVAIL_ELEMENT
    }

    pub(super) fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    pub(super) fn push(&mut self, port: &DmaPort, head: Head, written: u32) -> Result<bool, QueueError> {
        self.queue.add_used(port, head.id, written)?;
        if self.queue.event_idx_enabled() {
            return Ok(self.queue.needs_notification(port)?);
        }
        // rust-vmm's queue does not look at this flag.
        let flags: u16 =
            port.load(self.driver, Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(flags) & AVAIL_F_NO_INTERRUPT == 0)
    }
}

/// Reads a descriptor chain. The iterator just ends when something is wrong; a chain that ended properly is one whose
/// last descriptor has no successor.
fn collect(mut descriptors: virtio_queue::DescriptorChain<&DmaPort>) -> Result<Chain, QueueError> {
    let id = descriptors.head_index();
    let mut chain = Chain { head: Head { id, slots: 1 }, ..Chain::default() };
    let mut more = true;
    for descriptor in &mut descriptors {
        let segment = Segment { iova: descriptor.addr().0, len: descriptor.len() };
        chain.push(id, segment, descriptor.is_write_only())?;
        more = descriptor.has_next();
    }
    if more { Err(QueueError::Chain(id)) } else { Ok(chain) }
}
