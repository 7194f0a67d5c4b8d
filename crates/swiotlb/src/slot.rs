//! What is remembered of a mapping, in the slot that its address is in.

use std::sync::atomic::Ordering::Relaxed;

use crate::IO_TLB_SIZE;
use crate::sync::AtomicU64;

/// The original of slots that have none: memory allocated from the pool, not a buffer bounced through it
/// (`INVALID_PHYS_ADDR`).
const INVALID: u64 = u64::MAX;

/// A mapping, as its slot has it: packed, since it is compared and stored more often than looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    original: u64,
    /// size (32 bits), offset (16), slots (8), pad_slots (8). All are bounded by a segment's size: 2^18 bytes, 128 slots.
    rest: u64,
}

impl Record {
    /// `size` bytes of `original`, or `None` for slots that were allocated; in `slots` slots, padding included, of which
    /// `pad_slots` come before the slot that the address is in, at `offset` there.
    #[inline]
    pub(crate) fn new(
        original: Option<u64>,
        size: usize,
        slots: usize,
        pad_slots: usize,
        offset: usize,
    ) -> Self {
        let rest = size as u64 | (offset as u64) << 32 | (slots as u64) << 48 | (pad_slots as u64) << 56;
        Record { original: original.unwrap_or(INVALID), rest }
    }

    /// The original's address; `None` for slots that were allocated.
    #[inline]
    pub(crate) fn original(self) -> Option<u64> {
        (self.original != INVALID).then_some(self.original)
    }

    /// Bytes mapped.
    #[inline]
    pub(crate) fn size(self) -> usize {
        (self.rest & 0xffff_ffff) as usize
    }

    /// Where in its slot the address is.
    #[inline]
    pub(crate) fn offset(self) -> usize {
        (self.rest >> 32 & 0xffff) as usize
    }

    /// Slots taken, padding included.
    #[inline]
    pub(crate) fn slots(self) -> usize {
        (self.rest >> 48 & 0xff) as usize
    }

    /// How many of them come before the slot that the address is in (`pad_slots`).
    #[inline]
    pub(crate) fn pad_slots(self) -> usize {
        (self.rest >> 56) as usize
    }

    /// Bytes from the start of the first slot to the mapping's address.
    #[inline]
    pub(crate) fn before(self) -> usize {
        self.pad_slots() * IO_TLB_SIZE + self.offset()
    }
}

/// One slot's record: written by who maps and read by whoever has the address, who are ordered by the two fences of
/// [`crate::ordering`]; removed under the area's lock, before the slots are free. So relaxed accesses do.
#[derive(Debug)]
pub(crate) struct Slot {
    original: AtomicU64,
    /// 0: no mapping's address is here.
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
        (rest != 0).then(|| Record { original: self.original.load(Relaxed), rest })
    }

    #[inline]
    pub(crate) fn store(&self, record: Record) {
        self.original.store(record.original, Relaxed);
        self.rest.store(record.rest, Relaxed);
    }

    #[inline]
    pub(crate) fn clear(&self) {
        self.rest.store(0, Relaxed);
    }
}
