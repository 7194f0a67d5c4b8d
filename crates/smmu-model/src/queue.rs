//! Circular queues in memory: base, size and the two indices with their wrap bits (section 3.5.1).

use serde::{Deserialize, Serialize};

use crate::spec::{align, bits, keep};

/// PROD or CONS has 20 bits of index and wrap.
const INDEX: u32 = 0xf_ffff;

/// The registers of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queue {
    /// The BASE register.
    pub(crate) base: u64,
    /// The PROD register with whatever flags it has.
    pub(crate) prod: u32,
    /// The CONS register.
    pub(crate) cons: u32,
}

/// A queue's BASE register has RA/WA at bit 62, the address in 55:5 and LOG2SIZE in 4:0.
pub(crate) const BASE_FIELDS: u64 = 1 << 62 | 0x00ff_ffff_ffff_ffff;

/// Size and position of a queue, worked out of its registers. `max` is the ID register's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    log2: u32,
    shift: u32,
    base: u64,
}

impl Queue {
    /// A LOG2SIZE above `max` behaves as `max`; an address is aligned to the queue's size (section 6.3.26) and truncated
    /// to `oas` bits (section 3.4.3).
    pub(crate) fn geometry(&self, max: u8, oas: u8, entry_shift: u32) -> Geometry {
        let log2 = (bits(self.base, 4, 0) as u32).min(u32::from(max));
        let base = align(keep(self.base, u32::from(oas.clamp(6, 56)) - 1, 5), (log2 + entry_shift).max(5));
        Geometry { log2, shift: entry_shift, base }
    }

    /// Nothing to consume: indices and wrap bits are equal.
    pub(crate) fn is_empty(&self, g: Geometry) -> bool {
        (self.prod ^ self.cons) & g.mask() == 0
    }

    /// No room: indices are equal and wrap bits differ.
    pub(crate) fn is_full(&self, g: Geometry) -> bool {
        (self.prod ^ self.cons) & g.mask() == 1 << g.log2
    }

    /// Moves the read index on by one entry and keeps the flags.
    pub(crate) fn advance_cons(&mut self, g: Geometry) {
        self.cons = g.next(self.cons);
    }

    /// Moves the write index on by one entry and keeps the flags.
    pub(crate) fn advance_prod(&mut self, g: Geometry) {
        self.prod = g.next(self.prod);
    }
}

impl Geometry {
    /// How many entries there are.
    pub(crate) fn entries(self) -> u64 {
        1 << self.log2
    }

    /// Index and wrap bit.
    fn mask(self) -> u32 {
        (2 << self.log2) - 1
    }

    fn next(self, index: u32) -> u32 {
        index & !INDEX | (index & INDEX).wrapping_add(1) & self.mask()
    }

    /// Address of the entry that a PROD or CONS value points at.
    pub(crate) fn entry(self, index: u32) -> u64 {
        let n = index & ((1 << self.log2) - 1);
        self.base + (u64::from(n) << self.shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_at_every_size() {
        for log2 in 0..=19u8 {
            let mut q = Queue { base: 0x8000_0000 | u64::from(log2), ..Queue::default() };
            let g = q.geometry(19, 44, 4);
            assert!(q.is_empty(g) && !q.is_full(g));
            q.cons = 0x4000_0000;
            for _ in 0..1 << log2 {
                assert!(!q.is_full(g));
                q.advance_prod(g);
            }
            assert!(q.is_full(g) && !q.is_empty(g));
            assert_eq!(q.prod, 1 << log2);
            for _ in 0..1 << log2 {
                q.advance_cons(g);
            }
            assert!(q.is_empty(g));
            assert_eq!(q.cons, 0x4000_0000 | 1 << log2, "flags stay");
            q.advance_prod(g);
            assert_eq!(g.entry(q.prod), if log2 == 0 { 0x8000_0000 } else { 0x8000_0010 });
        }
    }

    #[test]
    fn size_is_limited_and_base_aligned() {
        let q = Queue { base: 0x8000_ffe0 | 31, ..Queue::default() };
        assert_eq!(q.geometry(8, 44, 4), Geometry { log2: 8, shift: 4, base: 0x8000_f000 });
        let q = Queue { base: u64::MAX, prod: u32::MAX, cons: 0x1234_5678 };
        let g = q.geometry(19, 44, 5);
        assert_eq!(g.base, 0x0fff_ff00_0000);
        assert!(g.entry(q.prod) > g.base);
    }
}
