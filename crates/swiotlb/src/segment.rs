//! Which slots of a segment are free, and where among them a mapping fits.
//!
//! The kernel keeps, in every slot, the number of free slots from there on, and counts them anew on every change. A
//! segment is 128 slots, so here one `u128` has a bit for every free slot, and runs are found by shifting.

use crate::{Attributes, Error, IO_TLB_SEGSIZE, IO_TLB_SHIFT, IO_TLB_SIZE, PAGE_SIZE};

/// Bits 0, 2ⁿ, 2·2ⁿ, …: the slots that are aligned alike.
const EVERY: [u128; 8] = {
    let mut every = [0; 8];
    let mut log2 = 0;
    while log2 < 8 {
        let mut slot = 0;
        while slot < IO_TLB_SEGSIZE {
            every[log2] |= 1 << slot;
            slot += 1 << log2;
        }
        log2 += 1;
    }
    every
};

/// The n lowest bits: looked up faster than shifted, in two registers as it would be.
static LOW: [u128; IO_TLB_SEGSIZE + 1] = {
    let mut low = [0; IO_TLB_SEGSIZE + 1];
    let mut slots = 1;
    while slots <= IO_TLB_SEGSIZE {
        low[slots] = low[slots - 1] << 1 | 1;
        slots += 1;
    }
    low
};

/// Bytes in a segment.
const MOST: usize = IO_TLB_SEGSIZE * IO_TLB_SIZE;

/// The `slots` lowest bits.
#[inline]
pub(crate) fn low(slots: usize) -> u128 {
    LOW[slots.min(IO_TLB_SEGSIZE)]
}

/// What a mapping needs: how many slots, and at which addresses they may start. What is seldom called takes it by value:
/// so in a mapping that fits at once it is in registers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// Slots in a row.
    pub slots: usize,
    /// As many low bits.
    pub run: u128,
    /// Bytes from the start of the first slot to the buffer's first byte.
    pub offset: usize,
    /// Slots that are as far apart as those with the right address are.
    every: u128,
    /// The address of the first slot, under this mask …
    mask: u64,
    /// … is this.
    want: u64,
    boundary_mask: u64,
    pub limit: u64,
    pub cpu: usize,
}

impl Need {
    /// What [`Self::new`] says of the most common of mappings, by comparisons alone; `None`: the attributes have masks, or
    /// the size is not possible.
    #[inline(always)]
    pub(crate) fn plain(size: usize, attributes: &Attributes) -> Option<Self> {
        let Attributes { min_align_mask, alloc_align_mask, boundary_mask, limit, cpu, .. } = *attributes;
        if min_align_mask | alloc_align_mask | !boundary_mask != 0 || size == 0 || size > MOST {
            return None;
        }
        let slots = (size + IO_TLB_SIZE - 1) >> IO_TLB_SHIFT;
        let (every, mask) = if size >= PAGE_SIZE { (EVERY[1], IO_TLB_SIZE as u64) } else { (EVERY[0], 0) };
        let run = low(slots);
        Some(Need { slots, run, offset: 0, every, mask, want: 0, boundary_mask, limit, cpu })
    }

    /// What `size` bytes whose original is at `original` need; without an original, only alignment counts.
    ///
    /// # Errors
    /// A size or mask that no pool can satisfy.
    pub(crate) fn new(original: Option<u64>, size: usize, attributes: &Attributes) -> Result<Self, Error> {
        let Attributes { min_align_mask, alloc_align_mask, boundary_mask, limit, cpu, .. } = *attributes;
        let holes = |mask: u64| mask & mask.wrapping_add(1);
        if holes(min_align_mask) | holes(alloc_align_mask) | holes(boundary_mask) != 0 {
            return Err(Error::Mask);
        }
        if size == 0 || size > MOST || alloc_align_mask >= MOST as u64 {
            return Err(Error::Size { size });
        }
        let slot_mask = IO_TLB_SIZE as u64 - 1;
        let like = original.unwrap_or(0);

        // Pre-padding: the part of the original's offset that the slots' own alignment would lose.
        let offset = (like & min_align_mask & (alloc_align_mask | slot_mask)) as usize;
        let padded = (size + offset + alloc_align_mask as usize) & !(alloc_align_mask as usize);
        let slots = (padded + IO_TLB_SIZE - 1) >> IO_TLB_SHIFT;
        if padded > MOST || (slots * IO_TLB_SIZE - 1) as u64 > boundary_mask {
            return Err(Error::Size { size });
        }

        let page = alloc_align_mask == 0 && min_align_mask == 0 && padded >= PAGE_SIZE;
        let aligned = alloc_align_mask | slot_mask | if page { PAGE_SIZE as u64 - 1 } else { 0 };
        let min_align_mask = if original.is_some() { min_align_mask } else { 0 };
        let mask = (aligned | min_align_mask) & !slot_mask;
        // The mask is 2ⁿ-1 down to a slot's bits, so the right slots are 2ⁿ apart.
        let log2 = (u64::BITS - mask.leading_zeros()).saturating_sub(IO_TLB_SHIFT).min(7) as usize;
        Ok(Need {
            slots,
            run: low(slots),
            offset,
            every: EVERY[log2],
            mask,
            want: like & min_align_mask & !aligned,
            boundary_mask,
            limit,
            cpu,
        })
    }

    /// The slots and the alignment in bytes of a pool that can hold this mapping and nothing else.
    pub(crate) fn own_pool(&self) -> Option<(usize, u64)> {
        let before = usize::try_from(self.want >> IO_TLB_SHIFT).ok()?;
        let slots = before.checked_add(self.slots)?;
        let mut align = (self.mask | (PAGE_SIZE as u64 - 1)).checked_add(1)?;
        if self.boundary_mask != u64::MAX {
            // No boundary is crossed that a pool at address 0 would not cross.
            align = align.max((slots as u64).checked_mul(IO_TLB_SIZE as u64)?.checked_next_power_of_two()?);
        }
        Some((slots, align))
    }

    /// The first of [`Self::slots`] slots in a row that are among the `free` ones of the segment at address `base`, and a bit
    /// for each of them.
    #[inline(always)]
    pub(crate) fn find(&self, free: u128, base: u64) -> Option<(usize, u128)> {
        let starts = self.starts(base);
        // The lowest that is free is most often it.
        let lowest = (free & starts).trailing_zeros();
        if lowest >= u128::BITS {
            return None;
        }
        let (first, run) = (lowest as usize, self.run << lowest);
        match free & run == run && first + self.slots <= IO_TLB_SEGSIZE {
            true => Some((first, run)),
            false => self.find_run(free, starts).map(|first| (first, self.run << first)),
        }
    }

    /// As [`Self::find`], the first of those that may be one.
    #[cold]
    #[inline(never)]
    fn find_run(self, free: u128, starts: u128) -> Option<usize> {
        let mut runs = free;
        let mut have = 1;
        while have < self.slots {
            let more = have.min(self.slots - have);
            runs &= runs >> more;
            have += more;
        }
        let runs = runs & starts;
        (runs != 0).then(|| runs.trailing_zeros() as usize)
    }

    /// The slots of the segment at `base` whose addresses may be a mapping's first.
    #[inline(always)]
    fn starts(&self, base: u64) -> u128 {
        let first = (self.want.wrapping_sub(base) & self.mask) >> IO_TLB_SHIFT;
        if first >= IO_TLB_SEGSIZE as u64 {
            return 0;
        }
        let aligned = if first == 0 { self.every } else { self.every << first };
        if self.boundary_mask == u64::MAX { aligned } else { aligned & self.inside(base) }
    }

    /// The slots of the segment at `base` from which a mapping would not cross the boundary.
    #[cold]
    #[inline(never)]
    fn inside(self, base: u64) -> u128 {
        let bytes = (self.slots * IO_TLB_SIZE) as u64;
        let inside = |slot: &usize| {
            let start = base.wrapping_add((slot << IO_TLB_SHIFT) as u64);
            (start ^ start.wrapping_add(bytes - 1)) & !self.boundary_mask == 0
        };
        (0..IO_TLB_SEGSIZE).filter(inside).fold(0, |mask, slot| mask | 1 << slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_way_comes_to_the_same_as_the_long_one() {
        let plain = Attributes { limit: 1 << 40, cpu: 3, ..Attributes::default() };
        for size in 0..MOST + 2 {
            let long = Need::new(Some(0x1234_5678), size, &plain).ok();
            assert_eq!(Need::plain(size, &plain), long, "{size} bytes");
        }
        for masks in [
            Attributes { min_align_mask: 0xfff, ..plain },
            Attributes { alloc_align_mask: 0xfff, ..plain },
            Attributes { boundary_mask: 0xffff, ..plain },
        ] {
            assert_eq!(Need::plain(4096, &masks), None, "{masks:?}");
        }
    }
}
