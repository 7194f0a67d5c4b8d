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

/// The `slots` lowest bits.
#[inline]
pub(crate) fn low(slots: usize) -> u128 {
    if slots >= IO_TLB_SEGSIZE { u128::MAX } else { (1 << slots) - 1 }
}

/// What a mapping needs: how many slots, and at which addresses they may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// Slots in a row.
    pub slots: usize,
    /// As many low bits.
    pub run: u128,
    /// Bytes from the start of the first slot to the buffer's first byte.
    pub offset: usize,
    /// The address of the first slot, under this mask …
    mask: u64,
    /// … is this.
    want: u64,
    boundary_mask: u64,
    pub limit: u64,
    pub cpu: usize,
}

impl Need {
    /// What `size` bytes whose original is at `original` need; without an original, only alignment counts.
    ///
    /// # Errors
    /// A size or mask that no pool can satisfy.
    #[inline]
    pub(crate) fn new(original: Option<u64>, size: usize, attributes: &Attributes) -> Result<Self, Error> {
        let Attributes { min_align_mask, alloc_align_mask, boundary_mask, limit, cpu, .. } = *attributes;
        for mask in [min_align_mask, alloc_align_mask, boundary_mask] {
            if mask & mask.wrapping_add(1) != 0 {
                return Err(Error::Mask);
            }
        }
        let most = IO_TLB_SEGSIZE * IO_TLB_SIZE;
        if size == 0 || size > most || alloc_align_mask >= most as u64 {
            return Err(Error::Size { size });
        }
        let slot_mask = IO_TLB_SIZE as u64 - 1;
        let like = original.unwrap_or(0);

        // Pre-padding: the part of the original's offset that the slots' own alignment would lose.
        let offset = (like & min_align_mask & (alloc_align_mask | slot_mask)) as usize;
        let padded = (size + offset + alloc_align_mask as usize) & !(alloc_align_mask as usize);
        let slots = padded.div_ceil(IO_TLB_SIZE);
        if padded > most || (slots * IO_TLB_SIZE - 1) as u64 > boundary_mask {
            return Err(Error::Size { size });
        }

        let page = alloc_align_mask == 0 && min_align_mask == 0 && padded >= PAGE_SIZE;
        let aligned = alloc_align_mask | slot_mask | if page { PAGE_SIZE as u64 - 1 } else { 0 };
        let min_align_mask = if original.is_some() { min_align_mask } else { 0 };
        Ok(Need {
            slots,
            run: low(slots),
            offset,
            mask: (aligned | min_align_mask) & !slot_mask,
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

    /// The first of [`Self::slots`] slots in a row that are among the `free` ones of the segment at address `base`.
    #[inline]
    pub(crate) fn find(&self, free: u128, base: u64) -> Option<usize> {
        let starts = self.starts(base);
        // The lowest that is free is most often it.
        let lowest = (free & starts).trailing_zeros();
        if lowest >= u128::BITS {
            return None;
        }
        if free >> lowest & self.run == self.run {
            return Some(lowest as usize);
        }
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
    #[inline]
    fn starts(&self, base: u64) -> u128 {
        // The mask is 2ⁿ-1 down to a slot's bits, so the right slots are 2ⁿ apart.
        let first = (self.want.wrapping_sub(base) & self.mask) >> IO_TLB_SHIFT;
        if first >= IO_TLB_SEGSIZE as u64 {
            return 0;
        }
        let log2 = (u64::BITS - self.mask.leading_zeros()).saturating_sub(IO_TLB_SHIFT).min(7) as usize;
        let aligned = EVERY[log2] << first;
        let last = base.wrapping_add((IO_TLB_SEGSIZE * IO_TLB_SIZE - 1) as u64);
        if (base ^ last) & !self.boundary_mask == 0 {
            return aligned;
        }
        let bytes = (self.slots * IO_TLB_SIZE) as u64;
        let inside = |slot: &usize| {
            let start = base.wrapping_add((slot << IO_TLB_SHIFT) as u64);
            (start ^ start.wrapping_add(bytes - 1)) & !self.boundary_mask == 0
        };
        aligned & (0..IO_TLB_SEGSIZE).filter(inside).fold(0, |mask, slot| mask | 1 << slot)
    }
}
