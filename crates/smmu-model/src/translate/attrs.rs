//! Memory attributes: from MAIR and MemAttr, and what two stages make together (chapter 13).

use pgtable::Leaf;

use crate::cache::Mapping;
use crate::transaction::{MemAttrs, Shareability};

impl MemAttrs {
    /// Device and non-cacheable memory is always outer shareable (section 13.1.4).
    pub(crate) fn normalised(self) -> Self {
        let non_cacheable = self.mair == 0x44;
        if self.is_device() || non_cacheable {
            MemAttrs { shareability: Shareability::Outer, ..self }
        } else {
            self
        }
    }

    /// Of a stage 1 leaf.
    pub(crate) fn stage1(leaf: &Leaf, mair: u64) -> Self {
        let mair = (mair >> (u32::from(leaf.attr_index()) * 8)) as u8;
        MemAttrs { mair, shareability: Shareability::from_sh(leaf.shareability()) }.normalised()
    }

    /// Of a stage 2 leaf, as if stage 1 allowed everything.
    pub(crate) fn stage2(leaf: &Leaf, fwb: bool, mteperm: bool) -> Self {
        let mair = match leaf.mem_attr() & 7 {
            device @ 0..=3 if fwb => device << 2,
            5 if fwb => 0x44,
            6 | 7 if fwb => 0xff,
            _ if fwb => 0,
            // NoTagAccess, which means nothing here (section 3.23.1).
            _ if mteperm && leaf.mem_attr() == 4 => 0xff,
            _ => mair_of_memattr(leaf.mem_attr()),
        };
        MemAttrs { mair, shareability: Shareability::from_sh(leaf.shareability()) }.normalised()
    }

    /// What memory gets when stage 1 says `self` and stage 2 says `other`: the more restrictive of each.
    pub(crate) fn combined(self, other: MemAttrs) -> Self {
        let mair = match (self.is_device(), other.is_device()) {
            (true, true) => self.mair.min(other.mair),
            (true, false) => self.mair,
            (false, true) => other.mair,
            (false, false) => {
                weaker(self.mair >> 4, other.mair >> 4) << 4 | weaker(self.mair & 15, other.mair & 15)
            }
        };
        MemAttrs { mair, ..self }.shared_by(self, other)
    }

    /// The same type with the wider shareability of two stages.
    fn shared_by(self, one: MemAttrs, other: MemAttrs) -> Self {
        let shareability = match (one.shareability, other.shareability) {
            (Shareability::Outer, _) | (_, Shareability::Outer) => Shareability::Outer,
            (Shareability::Inner, _) | (_, Shareability::Inner) => Shareability::Inner,
            _ => Shareability::NonShareable,
        };
        MemAttrs { shareability, ..self }.normalised()
    }
}

impl Mapping {
    /// What a stage 2 entry makes of stage 1's attributes. With S2FWB, MemAttr bits 2:0 say 6 for write-back whatever stage 1
    /// says, and 7 for what stage 1 says; else, and without, the more restrictive counts (DDI 0487, D8.6.6).
    #[inline]
    pub(crate) fn over(&self, stage1: MemAttrs) -> MemAttrs {
        match self.fwb.map(|memattr| memattr & 7) {
            Some(6) => MemAttrs { mair: 0xff, ..stage1.combined(self.attrs) }.shared_by(stage1, self.attrs),
            // Nothing is less restrictive.
            _ if self.attrs.mair == 0xff => stage1.shared_by(stage1, self.attrs),
            _ => stage1.combined(self.attrs),
        }
    }
}

/// How cacheable a MAIR nibble is: 0 not at all, 1 write-through, 2 write-back.
fn cacheability(nibble: u8) -> u8 {
    match nibble & 15 {
        0 | 4 => 0,
        1..=3 | 8..=11 => 1,
        _ => 2,
    }
}

/// The less cacheable of two MAIR nibbles; the first, with its allocation hints, if they are equal.
fn weaker(a: u8, b: u8) -> u8 {
    if cacheability(b) < cacheability(a) { b } else { a }
}

/// MemAttr as an STE, GBPA or a stage 2 descriptor has it, as a MAIR byte.
pub(crate) fn mair_of_memattr(memattr: u8) -> u8 {
    let normal = |bits: u8| match bits & 3 {
        1 => 0x4,
        2 => 0xb,
        _ => 0xf,
    };
    match memattr & 15 {
        device @ 0..=3 => device << 2,
        // Reserved: Device-nGnRnE.
        4 | 8 | 12 => 0,
        outer_inner => normal(outer_inner >> 2) << 4 | normal(outer_inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_restrictive_wins() {
        let attrs = |mair, shareability| MemAttrs { mair, shareability };
        let wb = MemAttrs::WRITE_BACK;
        let nc = attrs(0x44, Shareability::Outer);
        let device = MemAttrs::DEVICE_NGNRE;
        assert_eq!(wb.combined(wb), wb);
        assert_eq!(wb.combined(nc), nc);
        assert_eq!(nc.combined(wb), nc);
        assert_eq!(wb.combined(device), device);
        assert_eq!(device.combined(attrs(0, Shareability::Outer)).mair, 0);
        let wt = attrs(0xbb, Shareability::NonShareable);
        assert_eq!(wb.combined(wt), attrs(0xbb, Shareability::Inner));
    }

    #[test]
    fn memattr_encodings() {
        assert_eq!([0, 1, 2, 3].map(mair_of_memattr), [0x00, 0x04, 0x08, 0x0c]);
        assert_eq!([4, 8, 12].map(mair_of_memattr), [0; 3]);
        assert_eq!((mair_of_memattr(5), mair_of_memattr(15), mair_of_memattr(0xa)), (0x44, 0xff, 0xbb));
    }
}
