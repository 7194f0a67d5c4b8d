//! Translation granules and the geometry that follows from them (DDI 0487, D8.2).

use serde::{Deserialize, Serialize};

/// The last lookup level; its entries are pages.
pub(crate) const LAST: i8 = 3;

/// A translation granule: the size of a page and of a full table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Granule {
    /// 4 KiB pages, 512 entries a table.
    #[default]
    G4K,
    /// 16 KiB pages, 2048 entries a table.
    G16K,
    /// 64 KiB pages, 8192 entries a table.
    G64K,
}

impl Granule {
    /// Decodes `TCR_ELx.TG0`, `VTCR_EL2.TG0`, `CD.TG0` or `STE.S2TG`. `None` for the reserved value.
    pub const fn from_tg0(tg: u8) -> Option<Self> {
        match tg & 3 {
            0 => Some(Self::G4K),
            1 => Some(Self::G64K),
            2 => Some(Self::G16K),
            _ => None,
        }
    }

    /// Decodes `TCR_ELx.TG1` or `CD.TG1`. `None` for the reserved value.
    pub const fn from_tg1(tg: u8) -> Option<Self> {
        match tg & 3 {
            1 => Some(Self::G16K),
            2 => Some(Self::G4K),
            3 => Some(Self::G64K),
            _ => None,
        }
    }

    /// log2 of the page size: 12, 14 or 16.
    #[inline]
    pub const fn bits(self) -> u8 {
        match self {
            Self::G4K => 12,
            Self::G16K => 14,
            Self::G64K => 16,
        }
    }

    /// The page size in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.bits()
    }

    /// Address bits that one full table resolves: 9, 11 or 13.
    #[inline]
    pub const fn stride(self) -> u8 {
        self.bits() - 3
    }

    /// log2 of the bytes that one entry at `level` covers. Levels run from -1 to 3.
    #[inline]
    pub const fn shift(self, level: i8) -> u8 {
        self.bits() + self.stride() * (LAST - level) as u8
    }

    /// Whether a block descriptor is allowed at `level` (D8.3.1). `pa52`: 52-bit output addresses are in use, which
    /// is what allows the largest block of each granule.
    #[inline]
    pub const fn allows_block(self, level: i8, pa52: bool) -> bool {
        match self {
            Self::G4K => level == 1 || level == 2 || (level == 0 && pa52),
            Self::G16K | Self::G64K => level == 2 || (level == 1 && pa52),
        }
    }

    /// log2 of how many adjacent entries at `level` one contiguous span has; `None` where the bit is RES0 (D8.7.1).
    #[inline]
    pub const fn contiguous_bits(self, level: i8) -> Option<u8> {
        match (self, level) {
            (Self::G4K, 1..=3) => Some(4),
            (Self::G16K, 3) => Some(7),
            (Self::G16K, 2) | (Self::G64K, 2 | 3) => Some(5),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_is_the_manuals() {
        let sizes = |g: Granule| [1, 2, 3].map(|level| 1u64 << g.shift(level));
        assert_eq!(sizes(Granule::G4K), [1 << 30, 2 << 20, 4 << 10]);
        assert_eq!(sizes(Granule::G16K), [64 << 30, 32 << 20, 16 << 10]);
        assert_eq!(sizes(Granule::G64K), [4 << 40, 512 << 20, 64 << 10]);
        assert_eq!(Granule::G4K.shift(-1), 48);
        let span = |g: Granule, level| g.contiguous_bits(level).map(|n| 1u64 << (g.shift(level) + n));
        assert_eq!(span(Granule::G4K, 3), Some(64 << 10));
        assert_eq!(span(Granule::G4K, 2), Some(32 << 20));
        assert_eq!(span(Granule::G16K, 3), Some(2 << 20));
        assert_eq!(span(Granule::G16K, 2), Some(1 << 30));
        assert_eq!(span(Granule::G64K, 3), Some(2 << 20));
        assert_eq!(span(Granule::G64K, 2), Some(16 << 30));
        assert_eq!(span(Granule::G64K, 1), None);
    }

    #[test]
    fn granule_fields() {
        for (tg0, tg1, granule) in [(0, 2, Granule::G4K), (1, 3, Granule::G64K), (2, 1, Granule::G16K)] {
            assert_eq!(Granule::from_tg0(tg0), Some(granule));
            assert_eq!(Granule::from_tg1(tg1), Some(granule));
        }
        assert_eq!((Granule::from_tg0(3), Granule::from_tg1(0)), (None, None));
    }
}
