//! Stream table: level 1 descriptors and stream table entries (sections 5.1 and 5.2).

use serde::{Deserialize, Serialize};

use super::{bit, bits, keep};

/// Size of an STE, log2 of bytes.
pub const STE_SHIFT: u32 = 6;
/// Size of a level 1 descriptor, log2 of bytes.
pub const L1STD_SHIFT: u32 = 3;

/// Level 1 stream table descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct L1Std(pub u64);

impl L1Std {
    /// Span: the level 2 table has 2^(Span-1) STEs; 0 for none.
    #[must_use]
    pub fn span(self) -> u32 {
        bits(self.0, 4, 0) as u32
    }

    /// L2Ptr: address of the level 2 table.
    #[must_use]
    pub fn l2ptr(self) -> u64 {
        keep(self.0, 55, 6)
    }
}

/// A stream table entry as it lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ste(pub [u64; 8]);

impl Ste {
    flags! {
        /// V: the STE is valid.
        v: 0[0];
        /// PPAR: responses that the SMMU itself makes to page requests carry the request's PASID.
        ppar: 1[18];
        /// MEV: similar events may be merged.
        mev: 1[19];
        /// S2FWB: stage 2 forces write-back.
        s2fwb: 1[25];
        /// S1STALLD: stage-1 faults do not stall.
        s1stalld: 1[27];
        /// MTCFG: MemAttr replaces the incoming type.
        mtcfg: 1[36];
        /// S2AA64: stage 2 tables are VMSAv8-64.
        s2aa64: 2[51];
        /// S2ENDI: stage 2 tables are big-endian.
        s2endi: 2[52];
        /// S2AFFD: no stage 2 access flag faults.
        s2affd: 2[53];
        /// S2PTW: a stage 1 walk must not touch Device memory.
        s2ptw: 2[54];
        /// S2HD: hardware manages dirty state at stage 2.
        s2hd: 2[55];
        /// S2HA: hardware sets the access flag at stage 2.
        s2ha: 2[56];
        /// S2S: stage 2 faults stall.
        s2s: 2[57];
        /// S2R: stage 2 faults are recorded.
        s2r: 2[58];
        /// S2HAFT: hardware sets the access flag of stage 2 table descriptors, too.
        s2haft: 2[59];
        /// S2SL0_2: bit 2 of S2SL0.
        s2sl0_2: 3[2];
        /// S2DS: 52-bit addresses with 4 and 16 KiB.
        s2ds: 3[3];
    }
    fields! {
        /// Config: what the stream does.
        config: 0[3:1];
        /// S1Fmt: the CD table's format.
        s1fmt: 0[5:4];
        /// S1CDMax: log2 of the number of CDs.
        s1cdmax: 0[63:59];
        /// S1DSS: what happens without a SubstreamID.
        s1dss: 1[1:0];
        /// EATS: how ATS is answered.
        eats: 1[29:28];
        /// STRW: the StreamWorld.
        strw: 1[31:30];
        /// MemAttr: type for MTCFG.
        memattr: 1[35:32];
        /// SHCFG: shareability override.
        shcfg: 1[45:44];
        /// PRIVCFG: privilege override.
        privcfg: 1[49:48];
        /// INSTCFG: instruction/data override.
        instcfg: 1[51:50];
        /// S2VMID.
        s2vmid: 2[15:0];
        /// S2T0SZ.
        s2t0sz: 2[37:32];
        /// S2SL0.
        s2sl0: 2[39:38];
        /// S2SH0: shareability of stage 2 walks.
        s2sh0: 2[45:44];
        /// S2TG.
        s2tg: 2[47:46];
        /// S2PS.
        s2ps: 2[50:48];
    }

    /// S1ContextPtr: address of the CD, or of the CD table.
    #[must_use]
    pub fn s1contextptr(&self) -> u64 {
        keep(self.0[0], 55, 6)
    }

    /// S2TTB.
    #[must_use]
    pub fn s2ttb(&self) -> u64 {
        keep(self.0[3], 55, 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_manual_has_them() {
        let ste = Ste([u64::MAX, 0, 0, 0, 0, 0, 0, 0]);
        assert!(ste.v());
        assert_eq!((ste.config(), ste.s1fmt(), ste.s1cdmax()), (7, 3, 31));
        assert_eq!(ste.s1contextptr(), 0x00ff_ffff_ffff_ffc0);
        let ste = Ste([0, 2 << 30 | 1 << 44 | 2 << 48 | 3 << 50, 1 << 51 | 0x1234, 0x12_3450, 0, 0, 0, 0]);
        assert_eq!((ste.strw(), ste.shcfg(), ste.privcfg(), ste.instcfg()), (2, 1, 2, 3));
        assert!(ste.s2aa64());
        assert_eq!((ste.s2vmid(), ste.s2ttb()), (0x1234, 0x12_3450));
    }
}
