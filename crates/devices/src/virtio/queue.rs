//! A virtqueue as a device sees it, whatever its layout: requests come out, and go back used.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::feature;
use super::packed::Packed;
use super::split::{Split, SplitState};
use crate::agent::Time;
use crate::bounce::Mapping;
use crate::dma::{DmaPort, Scatter, Segment};
use crate::pci::StateError;

/// The vector number that means none (virtio 1.3 §4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Segments that a request may have, its indirect table's included. QEMU's limit; Linux needs 256.
pub(super) const MAX_SEGMENTS: usize = 1024;

/// What names a request to its queue until it goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Index of its first descriptor in a split queue, its Buffer ID in a packed one.
    pub id: u16,
    /// Elements of the ring that it takes: one of the available ring, or its descriptors in a packed ring.
    pub slots: u16,
}

/// A request as it lies in memory: what the device reads, then what it writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// What names it.
    pub head: Head,
    /// What the driver wrote for the device.
    pub readable: Scatter,
    /// What the device fills.
    pub writable: Scatter,
    /// Its place in the bounce pool. The two above are in there as well once it is mapped.
    pub(crate) mapping: Option<Box<Mapping>>,
}

impl Chain {
    /// Appends what a descriptor describes. `at` is where the chain begins, for the error.
    pub(super) fn push(&mut self, at: u16, segment: Segment, writable: bool) -> Result<(), QueueError> {
        if self.readable.segments() + self.writable.segments() == MAX_SEGMENTS {
            return Err(QueueError::Chain(at));
        }
        if writable {
            self.writable.push(segment);
        } else if self.writable.segments() > 0 {
            return Err(QueueError::Order(at));
        } else {
            self.readable.push(segment);
        }
        Ok(())
    }
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

/// What the driver says about a queue before it enables it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Areas {
    /// Queue Size.
    pub(super) size: u16,
    /// Descriptor area: descriptor table or ring.
    pub(super) desc: u64,
    /// Driver area: available ring, or driver event suppression structure.
    pub(super) driver: u64,
    /// Device area: used ring, or device event suppression structure.
    pub(super) device: u64,
}

impl Areas {
    /// Whether no part of the largest queue at these addresses wraps round.
    fn fit(&self) -> bool {
        [self.desc, self.driver, self.device].iter().all(|a| a.checked_add(16 << 15).is_some())
    }
}

/// The layout of an enabled queue (virtio 1.3 §2.7, §2.8), and the device's place in it.
#[derive(Debug)]
enum Ring {
    Off,
    Split(Split),
    Packed(Packed),
}

/// One queue: the transport's registers for it and its place in the rings.
#[derive(Debug)]
pub struct Virtqueue {
    max_size: u16,
    /// What the driver chose.
    pub(super) areas: Areas,
    /// MSI-X vector.
    pub(super) vector: u16,
    /// When the reset that the driver asked for happens.
    pub(super) reset_at: Option<Time>,
    ring: Ring,
}

/// A [`Virtqueue`] as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtqueueState {
    areas: Areas,
    vector: u16,
    reset_at: Option<Time>,
    ring: RingState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum RingState {
    Off,
    Split(SplitState),
    Packed(Packed),
}

impl Virtqueue {
    /// A queue after reset. `max_size` is the device's own: a power of two.
    pub fn new(max_size: u16) -> Self {
        debug_assert!(max_size.is_power_of_two());
        let areas = Areas { size: max_size, desc: 0, driver: 0, device: 0 };
        Self { max_size, areas, vector: NO_VECTOR, reset_at: None, ring: Ring::Off }
    }

    /// Whether the driver enabled it.
    pub fn enabled(&self) -> bool {
        !matches!(self.ring, Ring::Off)
    }

    /// Largest size.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// The driver chooses a size; one that cannot be is ignored (virtio 1.3 §4.1.4.3.2).
    pub(super) fn set_size(&mut self, size: u16, features: u64) {
        let whole = size.is_power_of_two() || size > 0 && features & feature::RING_PACKED != 0;
        if whole && size <= self.max_size {
            self.areas.size = size;
        }
    }

    /// Enables the queue with the registers as they are and the features that the driver accepted. `false`: the
    /// registers cannot be right.
    pub(super) fn enable(&mut self, features: u64) -> bool {
        let ring = if !self.areas.fit() {
            None
        } else if features & feature::RING_PACKED != 0 {
            Packed::new(self.areas, self.max_size, features).map(Ring::Packed)
        } else {
            Split::new(self.areas, self.max_size, features).map(Ring::Split)
        };
        let fits = ring.is_some();
        self.ring = ring.unwrap_or(Ring::Off);
        fits
    }

    /// Back to the state after reset.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Takes the next request. When there is none, asks the driver to notify of the next.
    ///
    /// # Errors
    /// When the rings or the chain are unusable.
    pub fn pop(&mut self, port: &DmaPort) -> Result<Option<Chain>, QueueError> {
        match &mut self.ring {
            Ring::Off => Ok(None),
            Ring::Split(ring) => ring.pop(port),
            Ring::Packed(ring) => ring.pop(port),
        }
    }

    /// Device addresses of what the driver writes to make requests available; of a queue that is not enabled, none.
    pub(super) fn announcements(&self) -> Range<u64> {
        match &self.ring {
            Ring::Off => 0..0,
            Ring::Split(ring) => ring.announcements(),
            Ring::Packed(ring) => ring.announcements(),
        }
    }

    /// What of that made the last request available that [`Virtqueue::pop`] gave.
    pub(super) fn announced(&self, head: Head) -> Range<u64> {
        match &self.ring {
            Ring::Off => 0..0,
            Ring::Split(ring) => ring.announced(),
            Ring::Packed(ring) => ring.announced(head),
        }
    }

    /// Undoes the last [`Virtqueue::pop`] that was not undone, which gave this request.
    pub fn put_back(&mut self, head: Head) {
        match &mut self.ring {
            Ring::Off => {}
            Ring::Split(ring) => ring.put_back(),
            Ring::Packed(ring) => ring.put_back(head),
        }
    }

    /// Returns a request; `true` when the driver wants an interrupt for it.
    ///
    /// # Errors
    /// When the rings are unusable.
    pub fn push(&mut self, port: &DmaPort, head: Head, written: u32) -> Result<bool, QueueError> {
        match &mut self.ring {
            Ring::Off => Ok(false),
            Ring::Split(ring) => ring.push(port, head, written),
            Ring::Packed(ring) => ring.push(port, head, written),
        }
    }

    /// As plain data.
    pub fn save(&self) -> VirtqueueState {
        let ring = match &self.ring {
            Ring::Off => RingState::Off,
            Ring::Split(ring) => RingState::Split(ring.save()),
            Ring::Packed(ring) => RingState::Packed(*ring),
        };
        VirtqueueState { areas: self.areas, vector: self.vector, reset_at: self.reset_at, ring }
    }

    /// Takes over a state.
    ///
    /// # Errors
    /// When no queue of this size can be in it.
    pub fn restore(&mut self, s: &VirtqueueState) -> Result<(), StateError> {
        // An enabled queue keeps the registers that it was enabled with: they cannot be written then.
        let ring = match s.ring {
            RingState::Off => Some(Ring::Off),
            _ if !s.areas.fit() => None,
            RingState::Split(ring) => Split::restore(s.areas, self.max_size, ring).map(Ring::Split),
            RingState::Packed(ring) => ring.plausible(s.areas, self.max_size).then_some(Ring::Packed(ring)),
        };
        self.ring = ring.ok_or(StateError)?;
        (self.areas, self.vector, self.reset_at) = (s.areas, s.vector, s.reset_at);
        Ok(())
    }
}
