//! Context descriptors and their level 1 descriptors (sections 5.3 and 5.4).

use serde::{Deserialize, Serialize};

use super::{bit, bits, keep};

/// Size of a CD, log2 of bytes.
pub const CD_SHIFT: u32 = 6;
/// Size of a level 1 descriptor, log2 of bytes.
pub const L1CD_SHIFT: u32 = 3;

/// Level 1 CD table descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct L1Cd(pub u64);

impl L1Cd {
    /// V: there is a level 2 table.
    #[must_use]
    pub fn v(self) -> bool {
        bit(self.0, 0)
    }

    /// L2Ptr: address of the level 2 table.
    #[must_use]
    pub fn l2ptr(self) -> u64 {
        keep(self.0, 55, 12)
    }
}

/// A context descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cd(pub [u64; 8]);

impl Cd {
    flags! {
        /// EPD0: no walks from TTB0.
        epd0: 0[14];
        /// ENDI: tables are big-endian.
        endi: 0[15];
        /// EPD1: no walks from TTB1.
        epd1: 0[30];
        /// V: the CD is valid.
        v: 0[31];
        /// AFFD: no access flag faults.
        affd: 0[35];
        /// WXN: writable is not executable.
        wxn: 0[36];
        /// UWXN: unprivileged-writable is not privileged-executable (AArch32).
        uwxn: 0[37];
        /// TBI0.
        tbi0: 0[38];
        /// TBI1.
        tbi1: 0[39];
        /// PAN: privileged accesses to unprivileged-accessible data fault.
        pan: 0[40];
        /// AA64: tables are VMSAv8-64.
        aa64: 0[41];
        /// HD: hardware manages dirty state.
        hd: 0[42];
        /// HA: hardware sets the access flag.
        ha: 0[43];
        /// S: faults stall.
        s: 0[44];
        /// R: faults are recorded.
        r: 0[45];
        /// A: terminated transactions abort, else they are RAZ/WI.
        a: 0[46];
        /// ASET: the ASID is not shared with the CPUs' broadcasts.
        aset: 0[47];
        /// HAD0: hierarchical attributes of TTB0's tables are off.
        had0: 1[1];
        /// HAD1.
        had1: 2[1];
        /// HAFT: hardware sets the access flag of table descriptors, too.
        haft: 1[3];
        /// DS: 52-bit addresses with 4 and 16 KiB.
        ds: 2[58];
        /// E0PD0: no unprivileged accesses by TTB0.
        e0pd0: 1[2];
        /// E0PD1.
        e0pd1: 2[2];
    }
    fields! {
        /// T0SZ.
        t0sz: 0[5:0];
        /// TG0.
        tg0: 0[7:6];
        /// SH0: shareability of TTB0's walks.
        sh0: 0[13:12];
        /// T1SZ.
        t1sz: 0[21:16];
        /// TG1.
        tg1: 0[23:22];
        /// SH1.
        sh1: 0[29:28];
        /// IPS: output size.
        ips: 0[34:32];
        /// ASID.
        asid: 0[63:48];
        /// MAIR1 and MAIR0.
        mair: 3[63:0];
    }

    /// TTB0.
    #[must_use]
    pub fn ttb0(&self) -> u64 {
        keep(self.0[1], 55, 4)
    }

    /// TTB1.
    #[must_use]
    pub fn ttb1(&self) -> u64 {
        keep(self.0[2], 55, 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_manual_has_them() {
        // What Linux writes for a 48-bit, 4 KiB stage 1 domain: T0SZ 16, EPD1, IPS 48 bits, AA64, R, A, ASET, ASID 1.
        let word0 = 16 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47 | 1 << 48;
        let cd = Cd([word0, 0x8000_0002, 0, 0xff04_0044, 0, 0, 0, 0]);
        assert!(cd.v() && cd.aa64() && cd.epd1() && !cd.epd0() && cd.r() && cd.a() && !cd.s() && cd.aset());
        assert_eq!((cd.t0sz(), cd.tg0(), cd.ips(), cd.asid()), (16, 0, 5, 1));
        assert!(cd.had0() && !cd.had1());
        assert_eq!((cd.ttb0(), cd.mair()), (0x8000_0000, 0xff04_0044));
    }
}
