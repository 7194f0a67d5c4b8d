//! What a TCR/TTBR, a CD or an STE says about one translation-table base.

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, FaultKind};
use crate::granule::{Granule, LAST};

/// One stage 1 translation-table base, as a TCR/TTBR pair or a CD describes it.
///
/// The default is the smallest useful one: 4 KiB granule, no options; `tsz`, `ttb` and `oas` must be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage1 {
    /// The granule.
    pub granule: Granule,
    /// T0SZ or T1SZ: the input size is `64 - tsz` bits. A value out of range is a level 0 Translation fault.
    pub tsz: u8,
    /// Table base PA (see [`table_base`]). Bits below the table's natural alignment are ignored.
    pub ttb: u64,
    /// Output size in bits: the smaller of IPS and what is implemented (see [`output_bits`]).
    pub oas: u8,
    /// This is the TTB1 range. The walk does not look at it: it is for the user's TLB and diagnostics.
    pub upper: bool,
    /// HPD: hierarchical permissions (APTable, XNTable, PXNTable) are off.
    pub hpd: bool,
    /// HA: hardware sets the Access flag; a clear one is reported by [`Leaf::needs_af`](crate::Leaf::needs_af).
    pub ha: bool,
    /// HD: hardware manages dirty state (only with `ha`); see [`Leaf::needs_dirty`](crate::Leaf::needs_dirty).
    pub hd: bool,
    /// CD.AFFD: a clear Access flag does not fault (IHI 0070, 5.4).
    pub affd: bool,
    /// The regime has one privilege level (EL2 without E2H, EL3): AP\[1\] and PXN have no meaning, XN is bit 54.
    pub single: bool,
    /// 52-bit output addresses in descriptors: TCR.DS for 4 and 16 KiB (which also allows 52-bit input), FEAT_LPA for
    /// 64 KiB.
    pub pa52: bool,
    /// FEAT_LVA: 52-bit input addresses with the 64 KiB granule.
    pub lva: bool,
    /// FEAT_TTST (SMMU: IDR3.STT): `tsz` up to 48 (47 for 64 KiB) rather than 39.
    pub ttst: bool,
    /// TCR.SHx or CD.SHx, the shareability of leaves when their own SH bits hold address (`pa52` with 4 or 16 KiB).
    pub sh: u8,
}

impl Stage1 {
    /// The level of the first lookup, or `None` if `tsz` is out of range for the granule.
    #[inline]
    pub const fn start_level(&self) -> Option<i8> {
        let wide = match self.granule {
            Granule::G64K => self.lva,
            _ => self.pa52,
        };
        if self.tsz < min_tsz(wide) || self.tsz > max_tsz(self.granule, self.ttst) {
            return None;
        }
        // The range check leaves 16 to 52 bits, at least one more than the page offset.
        let above_page = 64 - self.tsz - self.granule.bits();
        Some(LAST - ((above_page - 1) / self.granule.stride()) as i8)
    }
}

/// One stage 2 translation-table base, as VTCR_EL2/VTTBR_EL2 or an STE describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage2 {
    /// The granule.
    pub granule: Granule,
    /// T0SZ: the input size is `64 - tsz` bits. A value out of range is a level 0 Translation fault.
    pub tsz: u8,
    /// SL0, the encoded initial lookup level, with SL2 as bit 2 (4 KiB granule and `pa52` only).
    pub sl0: u8,
    /// Table base PA. Bits below the (concatenated) table's natural alignment are ignored.
    pub ttb: u64,
    /// Output size in bits: the smaller of PS and what is implemented.
    pub oas: u8,
    /// HA: hardware sets the Access flag.
    pub ha: bool,
    /// HD: hardware manages dirty state (only with `ha`).
    pub hd: bool,
    /// STE.S2AFFD: a clear Access flag does not fault (IHI 0070, 5.2).
    pub affd: bool,
    /// 52-bit output addresses in descriptors: VTCR.DS for 4 and 16 KiB, FEAT_LPA for 64 KiB.
    pub pa52: bool,
    /// FEAT_TTST: `tsz` up to 48 (47 for 64 KiB) and, with 4 KiB, an initial level of 3.
    pub ttst: bool,
    /// VTCR.SH0 or STE.S2SH0, used as [`Stage1::sh`] is.
    pub sh: u8,
}

impl Stage2 {
    /// The level that SL0 (and SL2) encodes, whether or not it suits `tsz`; `None` for a reserved encoding.
    #[inline]
    pub const fn encoded_level(&self) -> Option<i8> {
        match (self.granule, self.sl0) {
            (Granule::G4K, 0) => Some(2),
            (Granule::G4K, 1) => Some(1),
            (Granule::G4K, 2) => Some(0),
            (Granule::G4K, 3) if self.ttst => Some(3),
            (Granule::G4K, 4) if self.pa52 => Some(-1),
            (Granule::G16K, 3) if !self.pa52 => None,
            (Granule::G16K, 0..=3) | (Granule::G64K, 0..=2) => Some(LAST - self.sl0 as i8),
            _ => None,
        }
    }

    /// The level of the first lookup. `None` if `tsz` is out of range, SL0 is reserved, or the two do not agree: the
    /// first lookup would resolve no bit, or need more than 16 concatenated tables (DDI 0487, D8.2.2).
    ///
    /// Limits that follow from the implemented PA size are not known here; see [`Stage2::fits`].
    #[inline]
    pub const fn start_level(&self) -> Option<i8> {
        // There is no 52-bit IPA without 52-bit PA.
        if self.tsz < min_tsz(self.pa52) || self.tsz > max_tsz(self.granule, self.ttst) {
            return None;
        }
        let Some(level) = self.encoded_level() else { return None };
        let (bits, shift) = (64 - self.tsz, self.granule.shift(level));
        if bits < shift + 1 || bits > shift + self.granule.stride() + 4 {
            return None;
        }
        Some(level)
    }

    /// Whether an implementation with `pa_bits` of physical address accepts the configuration: the input is no wider
    /// than that, and the initial level is one that it supports (S2InvalidSL in the manual's pseudocode).
    pub const fn fits(&self, pa_bits: u8) -> bool {
        let Some(level) = self.start_level() else { return false };
        let enough = match (self.granule, level) {
            (Granule::G4K, -1) | (Granule::G16K, 0) => pa_bits >= 52,
            (Granule::G4K, 0) | (Granule::G64K, 1) => pa_bits >= 44,
            (Granule::G16K, 1) => pa_bits >= 42,
            _ => true,
        };
        enough && 64 - self.tsz <= pa_bits
    }
}

/// The smallest TxSZ: 48 bits of input, or 52.
const fn min_tsz(wide: bool) -> u8 {
    if wide { 12 } else { 16 }
}

/// The largest TxSZ.
const fn max_tsz(granule: Granule, ttst: bool) -> u8 {
    match (ttst, granule) {
        (false, _) => 39,
        (true, Granule::G64K) => 47,
        (true, _) => 48,
    }
}

/// The output size in bits that an IPS, PS or OAS field encodes. The reserved value 7 counts as the widest, 52; the
/// caller takes the minimum with what it implements.
pub const fn output_bits(ps: u8) -> u8 {
    match ps & 7 {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}

/// The table base address in a TTBR, VTTBR, or CD/STE TTB field placed at its register position. `wide`: 52-bit
/// addresses are in use (DS, or a 64 KiB granule with a 52-bit IPS), so bits 5:2 are address bits 51:48.
pub const fn table_base(ttbr: u64, wide: bool) -> u64 {
    if wide { ttbr & 0xffff_ffff_ffc0 | (ttbr >> 2 & 0xf) << 48 } else { ttbr & 0xffff_ffff_fffe }
}

/// One half of the input address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Half {
    /// Translated by TTB0.
    Lower,
    /// Translated by TTB1.
    Upper,
}

/// How a stage 1 regime divides its input addresses between TTB0 and TTB1 (DDI 0487, D8.2.1; IHI 0070, 3.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// T0SZ.
    pub t0sz: u8,
    /// T1SZ.
    pub t1sz: u8,
    /// TBI0: the top byte of lower addresses is ignored. The caller folds TBID in for instruction fetches.
    pub tbi0: bool,
    /// TBI1.
    pub tbi1: bool,
    /// EPD0: walks from TTB0 are disabled.
    pub epd0: bool,
    /// EPD1.
    pub epd1: bool,
    /// The regime has TTB0 only (EL2 without E2H, EL3; SMMU streams of StreamWorld EL2 or EL3).
    pub single: bool,
}

impl Ranges {
    /// The half that `va` belongs to, or the level 0 Translation fault of an address that is not canonical or whose
    /// walks are disabled.
    #[inline]
    pub const fn select(&self, va: u64) -> Result<Half, Fault> {
        const FAULT: Fault = Fault::new(FaultKind::Translation, 0);
        let upper = !self.single && va >> 55 & 1 == 1;
        let (tsz, tbi, epd) =
            if upper { (self.t1sz, self.tbi1, self.epd1) } else { (self.t0sz, self.tbi0, self.epd0) };
        // Where the top byte is ignored, bit 55 stands for it.
        let va = if tbi { ((va << 8) as i64 >> 8) as u64 } else { va };
        let va = if self.single && tbi { va & (u64::MAX >> 8) } else { va };
        let above = match 64u32.saturating_sub(tsz as u32) {
            64 => 0,
            bits => va >> bits,
        };
        let want = if upper && tsz > 0 { u64::MAX >> (64 - if tsz < 64 { tsz } else { 64 }) } else { 0 };
        if epd || above != want { Err(FAULT) } else { Ok(if upper { Half::Upper } else { Half::Lower }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: Result<Half, Fault> = Err(Fault::new(FaultKind::Translation, 0));

    #[test]
    fn canonical_addresses() {
        let r = Ranges { t0sz: 16, t1sz: 25, ..Ranges::default() };
        assert_eq!(r.select(0), Ok(Half::Lower));
        assert_eq!(r.select(0x0000_ffff_ffff_ffff), Ok(Half::Lower));
        assert_eq!(r.select(0x0001_0000_0000_0000), FAULT);
        assert_eq!(r.select(u64::MAX), Ok(Half::Upper));
        assert_eq!(r.select(0xffff_ff80_0000_0000), Ok(Half::Upper));
        assert_eq!(r.select(0xffff_ff7f_ffff_ffff), FAULT);
        assert_eq!(r.select(0x5a00_0000_0000_0000), FAULT);
        assert_eq!(r.select(0x7fff_ffff_ffff_ffff), FAULT);
    }

    #[test]
    fn top_byte_and_disabled_walks() {
        let r = Ranges { t0sz: 16, t1sz: 16, tbi0: true, epd1: true, ..Ranges::default() };
        assert_eq!(r.select(0x5a00_1234_0000_0000), Ok(Half::Lower));
        assert_eq!(r.select(0x5a01_1234_0000_0000), FAULT);
        assert_eq!(r.select(u64::MAX), FAULT);
        let r = Ranges { t1sz: 16, tbi1: true, ..r };
        assert_eq!(Ranges { epd1: false, ..r }.select(0x00ff_ffff_0000_0000), Ok(Half::Upper));
    }

    #[test]
    fn one_range() {
        let r = Ranges { t0sz: 16, single: true, ..Ranges::default() };
        assert_eq!(r.select(0x1000), Ok(Half::Lower));
        assert_eq!(r.select(u64::MAX), FAULT);
        let r = Ranges { tbi0: true, ..r };
        assert_eq!(r.select(0xff00_0000_0000_1000), Ok(Half::Lower));
        assert_eq!(r.select(0xff80_0000_0000_1000), FAULT);
    }

    #[test]
    fn nonsense_sizes_do_not_panic() {
        for tsz in [0, 1, 63, 64, 65, 255] {
            for va in [0, 1, 1 << 55, u64::MAX, 0xff << 48] {
                for tbi in [false, true] {
                    let r = Ranges { t0sz: tsz, t1sz: tsz, tbi0: tbi, tbi1: tbi, ..Ranges::default() };
                    let _ = r.select(va);
                    let _ = Ranges { single: true, ..r }.select(va);
                }
            }
            assert_eq!(Stage1 { tsz, ..Stage1::default() }.start_level(), None);
            assert_eq!(Stage2 { tsz, ..Stage2::default() }.start_level(), None);
        }
    }

    #[test]
    fn stage1_start_levels() {
        let level = |granule, tsz| Stage1 { granule, tsz, ..Stage1::default() }.start_level();
        assert_eq!([16, 24, 25, 33, 34, 39].map(|t| level(Granule::G4K, t)), [0, 0, 1, 1, 2, 2].map(Some));
        assert_eq!([16, 17, 27, 28, 38, 39].map(|t| level(Granule::G16K, t)), [0, 1, 1, 2, 2, 3].map(Some));
        assert_eq!([16, 21, 22, 34, 35, 39].map(|t| level(Granule::G64K, t)), [1, 1, 2, 2, 3, 3].map(Some));
        assert_eq!(level(Granule::G4K, 15), None);
        assert_eq!(level(Granule::G4K, 40), None);
        let wide = Stage1 { tsz: 12, pa52: true, lva: true, ttst: true, ..Stage1::default() };
        assert_eq!(wide.start_level(), Some(-1));
        assert_eq!(Stage1 { granule: Granule::G16K, ..wide }.start_level(), Some(0));
        assert_eq!(Stage1 { granule: Granule::G64K, ..wide }.start_level(), Some(1));
        assert_eq!(Stage1 { tsz: 48, ..wide }.start_level(), Some(3));
        assert_eq!(Stage1 { tsz: 48, granule: Granule::G64K, ..wide }.start_level(), None);
    }

    #[test]
    fn stage2_start_levels() {
        let s2 = |granule, tsz, sl0| Stage2 { granule, tsz, sl0, ..Stage2::default() };
        assert_eq!(
            s2(Granule::G4K, 24, 1).start_level(),
            Some(1),
            "40 bits, two concatenated level 1 tables"
        );
        assert_eq!(s2(Granule::G4K, 20, 2).start_level(), Some(0), "44 bits from level 0");
        assert_eq!(s2(Granule::G4K, 20, 1).start_level(), None, "44 bits would need 32 level 1 tables");
        assert_eq!(s2(Granule::G4K, 21, 1).start_level(), Some(1), "43 bits: 16 level 1 tables");
        assert_eq!(s2(Granule::G4K, 39, 2).start_level(), None, "25 bits resolve nothing at level 0");
        assert_eq!(s2(Granule::G64K, 16, 2).start_level(), Some(1));
        assert_eq!(s2(Granule::G64K, 16, 3).start_level(), None);
        assert_eq!(
            s2(Granule::G16K, 16, 2).start_level(),
            Some(1),
            "48 bits: two concatenated level 1 tables"
        );
        assert!(s2(Granule::G4K, 20, 2).fits(44) && !s2(Granule::G4K, 24, 2).fits(40));
        assert!(!s2(Granule::G4K, 20, 2).fits(42));
    }

    #[test]
    fn register_fields() {
        assert_eq!(table_base(0xabcd_1234_5678_9041, false), 0x1234_5678_9040);
        assert_eq!(table_base(0xabcd_1234_5678_907d, true), 0x000f_1234_5678_9040);
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(output_bits), [32, 36, 40, 42, 44, 48, 52, 52]);
    }
}
