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

/// With a mask up to this, the first slot that is aligned is in the lower half of a segment.
const LOW_MASK: u64 = (IO_TLB_SEGSIZE / 2 - 1) as u64 * IO_TLB_SIZE as u64;

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
    /// for each of them; if they are the lowest that may be it, and in the lower half, which one register holds. Most often they are.
    #[inline(always)]
    pub(crate) fn find_low(&self, free: u64, base: u64) -> Option<(usize, u64)> {
        let aligned = (self.every as u64).wrapping_shl(self.first_start(base) as u32);
        let lowest = (free & aligned).trailing_zeros();
        let run = (self.run as u64).wrapping_shl(lowest);
        let fits = free & run == run && lowest as usize + self.slots <= u64::BITS as usize;
        (fits && self.boundary_mask == u64::MAX && self.mask <= LOW_MASK).then_some((lowest as usize, run))
    }

    /// As [`Self::find_low`], in the whole segment, whichever it is.
    #[inline(never)]
    pub(crate) fn find(self, free: u128, base: u64) -> Option<(usize, u128)> {
        let mut runs = free;
        let mut have = 1;
        while have < self.slots {
            let more = have.min(self.slots - have);
            runs &= runs >> more;
            have += more;
        }
        let first = (runs & self.starts(base)).trailing_zeros();
        (first < u128::BITS).then(|| (first as usize, self.run << first))
    }

    /// How many slots after `base` the first is whose address is as wanted.
    #[inline(always)]
    fn first_start(&self, base: u64) -> u64 {
        (self.want.wrapping_sub(base) & self.mask) >> IO_TLB_SHIFT
    }

    /// The slots of the segment at `base` whose addresses may be a mapping's first.
    fn starts(&self, base: u64) -> u128 {
        let first = self.first_start(base);
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
    use rand::{Rng, SeedableRng};
    use rand_xoshiro::Xoshiro256PlusPlus;

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

    #[test]
    fn what_is_found_in_one_half_is_what_is_found_in_the_whole() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(4);
        let mut found = 0;
        for _ in 0..20_000 {
            let attributes = Attributes {
                min_align_mask: (1 << random.random_range(0..13)) - 1,
                alloc_align_mask: (1 << random.random_range(0..19)) - 1,
                boundary_mask: if random.random() { u64::MAX } else { 0x3_ffff },
                ..Attributes::default()
            };
            let most = 1 << random.random_range(0..17);
            let size = random.random_range(1..=most);
            let Ok(need) = Need::new(Some(random.random()), size, &attributes) else { continue };
            let free: u128 = random.random::<u128>() | random.random::<u128>() | random.random::<u128>();
            let base = random.random::<u64>() >> 8 & !(IO_TLB_SIZE as u64 - 1);
            if let Some((first, run)) = need.find_low(free as u64, base) {
                found += 1;
                assert_eq!(need.find(free, base), Some((first, run.into())), "{need:?} {free:#x} {base:#x}");
            }
        }
        assert!(found > 1000, "{found}");
    }
}
