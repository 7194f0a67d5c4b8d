//! A split virtqueue: rust-vmm's, driven over a DMA port, with what it leaves to its user.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::agent::Time;
use crate::dma::{DmaPort, Scatter, Segment};
use crate::pci::StateError;

/// The vector number that means none (virtio 1.3 §4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Segments that a request may have, its indirect table's included. QEMU's limit; Linux needs 256.
const MAX_SEGMENTS: usize = 1024;

const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// A request as it lies in memory: what the device reads, then what it writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Index of its first descriptor, which names it in the used ring.
    pub head: u16,
    /// What the driver wrote for the device.
    pub readable: Scatter,
    /// What the device fills.
    pub writable: Scatter,
}

/// Why a queue cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings cannot be accessed, or their content makes no sense.
    #[error("unusable virtqueue: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// The chain has no end, too many descriptors, or one that cannot be read.
    #[error("broken descriptor chain at {0}")]
    Chain(u16),
    /// A readable descriptor follows a writable one.
    #[error("descriptor chain at {0} is out of order")]
    Order(u16),
}

/// One queue: the transport's registers for it and its place in the rings.
#[derive(Debug)]
pub struct Virtqueue {
    /// Size that the driver chose.
    pub(super) size: u16,
    /// Descriptor area.
    pub(super) desc: u64,
    /// Driver area (available ring).
    pub(super) driver: u64,
    /// Device area (used ring).
    pub(super) device: u64,
    /// MSI-X vector.
    pub(super) vector: u16,
    /// When the reset that the driver asked for happens.
    pub(super) reset_at: Option<Time>,
    queue: Queue,
}

/// A [`Virtqueue`] as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtqueueState {
    size: u16,
    desc: u64,
    driver: u64,
    device: u64,
    vector: u16,
    reset_at: Option<Time>,
    enabled: bool,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
}

impl Virtqueue {
    /// A queue after reset. `max_size` is the device's own: a power of two.
    pub fn new(max_size: u16) -> Self {
        let queue = Queue::new(max_size).expect("the largest queue size is a power of two");
        Self { size: max_size, desc: 0, driver: 0, device: 0, vector: NO_VECTOR, reset_at: None, queue }
    }

    /// Whether the driver enabled it.
    pub fn enabled(&self) -> bool {
        self.queue.ready()
    }

    /// Largest size.
    pub fn max_size(&self) -> u16 {
        self.queue.max_size()
    }

    /// Enables the queue with the registers as they are. `false`: they cannot be right.
    pub(super) fn enable(&mut self, event_idx: bool) -> bool {
        let q = &mut self.queue;
        let fits = q.try_set_size(self.size).is_ok()
            && q.try_set_desc_table_address(GuestAddress(self.desc)).is_ok()
            && q.try_set_avail_ring_address(GuestAddress(self.driver)).is_ok()
            && q.try_set_used_ring_address(GuestAddress(self.device)).is_ok()
            && [self.desc, self.driver, self.device].iter().all(|a| a.checked_add(16 << 15).is_some());
        if fits {
            q.set_event_idx(event_idx);
            q.set_next_avail(0);
            q.set_next_used(0);
            q.set_ready(true);
        }
        fits
    }

    /// Back to the state after reset.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size());
    }

    /// Takes the next request. When there is none, asks the driver to notify of the next.
    ///
    /// # Errors
    /// When the rings or the chain are unusable.
    pub fn pop(&mut self, port: &DmaPort) -> Result<Option<Chain>, QueueError> {
        if !self.enabled() {
            return Ok(None);
        }
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

    /// Undoes the last [`Virtqueue::pop`].
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns a request; `true` when the driver wants an interrupt for it.
    ///
    /// # Errors
    /// When the rings are unusable.
    pub fn push(&mut self, port: &DmaPort, head: u16, written: u32) -> Result<bool, QueueError> {
        if !self.enabled() {
            return Ok(false);
        }
        self.queue.add_used(port, head, written)?;
        if self.queue.event_idx_enabled() {
            return Ok(self.queue.needs_notification(port)?);
        }
        // rust-vmm's queue does not look at this flag.
        let flags: u16 = port
            .load(GuestAddress(self.driver), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(flags) & AVAIL_F_NO_INTERRUPT == 0)
    }

    /// As plain data.
    pub fn save(&self) -> VirtqueueState {
        VirtqueueState {
            size: self.size,
            desc: self.desc,
            driver: self.driver,
            device: self.device,
            vector: self.vector,
            reset_at: self.reset_at,
            enabled: self.queue.ready(),
            event_idx: self.queue.event_idx_enabled(),
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// Takes over a state.
    ///
    /// # Errors
    /// When no queue of this size can be in it.
    pub fn restore(&mut self, s: &VirtqueueState) -> Result<(), StateError> {
        self.reset();
        // An enabled queue keeps the registers that it was enabled with: they cannot be written then.
        if s.enabled {
            let state = QueueState {
                max_size: self.max_size(),
                next_avail: s.next_avail,
                next_used: s.next_used,
                event_idx_enabled: s.event_idx,
                size: s.size,
                ready: true,
                desc_table: s.desc,
                avail_ring: s.driver,
                used_ring: s.device,
            };
            self.queue = Queue::try_from(state).map_err(|_| StateError)?;
        }
        (self.size, self.desc, self.driver, self.device) = (s.size, s.desc, s.driver, s.device);
        (self.vector, self.reset_at) = (s.vector, s.reset_at);
        Ok(())
    }
}

/// Reads a descriptor chain. The iterator just ends when something is wrong; a chain that ended properly is one whose
/// last descriptor has no successor.
fn collect(mut descriptors: virtio_queue::DescriptorChain<&DmaPort>) -> Result<Chain, QueueError> {
    let head = descriptors.head_index();
    let mut chain = Chain { head, ..Chain::default() };
    let mut more = true;
    for descriptor in &mut descriptors {
        let segment = Segment { iova: descriptor.addr().0, len: descriptor.len() };
        if chain.readable.segments() + chain.writable.segments() == MAX_SEGMENTS {
            return Err(QueueError::Chain(head));
        }
        if descriptor.is_write_only() {
            chain.writable.push(segment);
        } else if chain.writable.segments() > 0 {
            return Err(QueueError::Order(head));
        } else {
            chain.readable.push(segment);
        }
        more = descriptor.has_next();
    }
    if more { Err(QueueError::Chain(head)) } else { Ok(chain) }
}
