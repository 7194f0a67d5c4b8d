//! The bits of a 64-bit VMSAv8-64 descriptor (DDI 0487, D8.3), for building tables and for taking leaves apart.

use crate::granule::{Granule, LAST};

/// Bit 0: the descriptor is valid.
pub const VALID: u64 = 1;
/// Bit 1: a table above the last level, a page at the last.
pub const TABLE: u64 = 1 << 1;
/// Stage 1 bit 5, NS.
pub const NS: u64 = 1 << 5;
/// Stage 1 AP\[1\]: unprivileged access is permitted.
pub const AP_USER: u64 = 1 << 6;
/// Stage 1 AP\[2\]: read-only.
pub const AP_READ_ONLY: u64 = 1 << 7;
/// Stage 2 S2AP\[0\]: readable.
pub const S2AP_READ: u64 = 1 << 6;
/// Stage 2 S2AP\[1\]: writable.
pub const S2AP_WRITE: u64 = 1 << 7;
/// SH: Outer Shareable.
pub const SH_OUTER: u64 = 2 << 8;
/// SH: Inner Shareable.
pub const SH_INNER: u64 = 3 << 8;
/// The Access flag.
pub const AF: u64 = 1 << 10;
/// Stage 1 nG: the mapping belongs to one ASID.
pub const NG: u64 = 1 << 11;
/// Dirty Bit Modifier.
pub const DBM: u64 = 1 << 51;
/// The Contiguous bit.
pub const CONTIGUOUS: u64 = 1 << 52;
/// Stage 1 PXN.
pub const PXN: u64 = 1 << 53;
/// Stage 1 UXN; XN in a regime of one privilege level; stage 2 XN\[1\].
pub const XN: u64 = 1 << 54;
/// Table: PXNTable.
pub const PXN_TABLE: u64 = 1 << 59;
/// Table: UXNTable, or XNTable in a regime of one privilege level.
pub const XN_TABLE: u64 = 1 << 60;
/// Table APTable\[0\]: no unprivileged access below.
pub const AP_TABLE_NO_USER: u64 = 1 << 61;
/// Table APTable\[1\]: no write access below.
pub const AP_TABLE_READ_ONLY: u64 = 1 << 62;
/// Table: NSTable.
pub const NS_TABLE: u64 = 1 << 63;

/// The stage 1 AttrIndx field for `index` (0 to 7).
pub const fn attr_index(index: u8) -> u64 {
    ((index & 7) as u64) << 2
}

/// The stage 2 MemAttr field for `attr` (0 to 15).
pub const fn mem_attr(attr: u8) -> u64 {
    ((attr & 15) as u64) << 2
}

/// What a descriptor is at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bit 0 clear, or an encoding reserved at this level.
    Invalid,
    /// Points to a table of the next level.
    Table,
    /// A block or a page.
    Leaf,
}

/// What `descriptor` is at `level`.
#[inline]
pub const fn kind(descriptor: u64, granule: Granule, level: i8, pa52: bool) -> Kind {
    match (descriptor & 3, level == LAST) {
        (3, true) => Kind::Leaf,
        (3, false) => Kind::Table,
        (1, false) if granule.allows_block(level, pa52) => Kind::Leaf,
        _ => Kind::Invalid,
    }
}

/// Whether [`kind`] says that it is a table.
#[inline]
pub const fn is_table(descriptor: u64, level: i8) -> bool {
    descriptor & 3 == 3 && level != LAST
}

/// Bits `[high:low]` of an address as a mask; `high` below 63.
#[inline]
const fn mask(high: u8, low: u8) -> u64 {
    (1u64 << (high + 1)) - (1u64 << low)
}

/// The address in `descriptor`, of which bits `low` and up belong to an address: `granule.bits()` for a table or page,
/// `granule.shift(level)` for a block. With `pa52`, bits 51:48 come from where the granule keeps them.
#[inline]
pub const fn address(descriptor: u64, granule: Granule, low: u8, pa52: bool) -> u64 {
    // A level 0 block of 512 GiB is the largest: low is at most 42 for a leaf (64 KiB, level 1), 39 for 4 KiB.
    let base = if low < 48 { descriptor & mask(47, low) } else { 0 };
    if !pa52 {
        base
    } else if matches!(granule, Granule::G64K) {
        base | (descriptor >> 12 & 0xf) << 48
    } else {
        base | descriptor & mask(49, 48) | (descriptor >> 8 & 3) << 50
    }
}

/// The inverse of [`address`]: `pa` as descriptor bits. Bits of `pa` that the format cannot hold are dropped.
pub const fn encode_address(pa: u64, granule: Granule, pa52: bool) -> u64 {
    let base = pa & mask(47, granule.bits());
    if !pa52 {
        base
    } else if matches!(granule, Granule::G64K) {
        base | (pa >> 48 & 0xf) << 12
    } else {
        base | pa & mask(49, 48) | (pa >> 50 & 3) << 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        let pa = 0x000f_edcb_a987_0000;
        for granule in [Granule::G4K, Granule::G16K, Granule::G64K] {
            for (pa52, want) in [(true, pa), (false, pa & mask(47, 0))] {
                let bits = encode_address(pa, granule, pa52);
                assert_eq!(address(bits, granule, granule.bits(), pa52), want, "{granule:?} {pa52}");
            }
        }
    }

    #[test]
    fn kinds() {
        use Kind::*;
        let all = |g, level, pa52| [0, 1, 2, 3].map(|bits| kind(bits, g, level, pa52));
        assert_eq!(all(Granule::G4K, 3, false), [Invalid, Invalid, Invalid, Leaf]);
        assert_eq!(all(Granule::G4K, 2, false), [Invalid, Leaf, Invalid, Table]);
        assert_eq!(all(Granule::G4K, 0, false), [Invalid, Invalid, Invalid, Table]);
        assert_eq!(all(Granule::G4K, 0, true), [Invalid, Leaf, Invalid, Table]);
        assert_eq!(all(Granule::G16K, 1, false), [Invalid, Invalid, Invalid, Table]);
        assert_eq!(all(Granule::G64K, 1, true), [Invalid, Leaf, Invalid, Table]);
    }
}
