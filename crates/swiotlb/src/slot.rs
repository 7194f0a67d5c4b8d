//! What is remembered of a mapping, in the slot that its address is in.

use std::sync::atomic::Ordering::Relaxed;

use crate::IO_TLB_SIZE;
use crate::sync::AtomicU64;

/// The original of slots that have none: memory allocated from the pool, not a buffer bounced through it
/// (`INVALID_PHYS_ADDR`).
const INVALID: u64 = u64::MAX;

/// A mapping, as its record has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The original's address; `None` for slots that were allocated.
    pub original: Option<u64>,
    /// Bytes mapped.
    pub size: usize,
    /// Slots taken, padding included.
    pub slots: usize,
    /// How many of them come before the slot that the address is in (`pad_slots`).
    pub pad_slots: usize,
    /// Where in that slot the address is.
    pub offset: usize,
}

/// One slot's record: written by who maps and read by whoever has the address, who are ordered by the two fences of
/// [`crate::ordering`]; removed under the area's lock, before the slots are free. So relaxed accesses do.
#[derive(Debug)]
pub(crate) struct Slot {
    original: AtomicU64,
    /// size (32 bits), offset (16), slots (8), pad_slots (8); 0: no mapping's address is here.
    rest: AtomicU64,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Slot { original: AtomicU64::new(INVALID), rest: AtomicU64::new(0) }
    }

    /// The mapping whose address is in this slot.
    #[inline]
    pub(crate) fn load(&self) -> Option<Record> {
        let rest = self.rest.load(Relaxed);
        (rest != 0).then(|| {
            let original = self.original.load(Relaxed);
            Record {
                original: (original != INVALID).then_some(original),
                size: (rest & 0xffff_ffff) as usize,
                offset: (rest >> 32 & 0xffff) as usize,
                slots: (rest >> 48 & 0xff) as usize,
                pad_slots: (rest >> 56) as usize,
            }
        })
    }

    #[inline]
    pub(crate) fn store(&self, record: &Record) {
        // All are bounded by a segment's size: 2^18 bytes, 128 slots.
        let rest = record.size as u64
            | (record.offset as u64) << 32
            | (record.slots as u64) << 48
            | (record.pad_slots as u64) << 56;
        self.original.store(record.original.unwrap_or(INVALID), Relaxed);
        self.rest.store(rest, Relaxed);
    }

    #[inline]
    pub(crate) fn clear(&self) {
        self.rest.store(0, Relaxed);
    }
}

impl Record {
    /// Bytes from the start of the first slot to the mapping's address.
    pub(crate) fn before(&self) -> usize {
        self.pad_slots * IO_TLB_SIZE + self.offset
    }
}
