//! Identification registers, computed from the feature options.

use super::SysRegs;

/// Breakpoints: the fewest that the architecture allows.
pub(super) const BREAKPOINTS: usize = 2;
/// Watchpoints: the fewest that the architecture allows.
pub(super) const WATCHPOINTS: usize = 2;

/// MIDR_EL1: implementer 0 (reserved for software use), architecture by ID registers, a part number of our own.
pub(super) const MIDR: u64 = 0xf << 16 | 0x5a3 << 4;
/// CTR_EL0: 64-byte lines, ERG and CWG of 64 bytes, PIPT instruction cache, IDC = DIC = 0.
pub(super) const CTR: u64 = 1 << 31 | 4 << 24 | 4 << 20 | 4 << 16 | 3 << 14 | 4;
/// DCZID_EL0.BS: DC ZVA zeroes 2^4 words.
pub(super) const DCZID: u64 = 4;
/// Bytes that DC ZVA zeroes.
pub const ZVA_BYTES: u64 = 4 << DCZID;
/// CLIDR_EL1: one level, separate caches, which is the level of coherence and of both unifications.
pub(super) const CLIDR: u64 = 1 << 27 | 1 << 24 | 1 << 21 | 3;
/// CCSIDR_EL1 of either cache: 128 sets, 4 ways, 64-byte lines (32 KiB).
pub(super) const CCSIDR: u64 = 127 << 13 | 3 << 3 | 2;
/// Size of a physical address in bits, as ID_AA64MMFR0_EL1.PARange says.
pub const PA_BITS: u8 = 44;

/// MPIDR_EL1 as QEMU `virt` assigns it: affinity 0 counts up to 16 CPUs, then affinity 1.
pub(super) fn mpidr(index: usize) -> u64 {
    1 << 31 | ((index as u64 / 16) & 0xff) << 8 | (index as u64 % 16)
}

/// What the ID registers say about one set of options.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a>(pub &'a SysRegs);

impl Identity<'_> {
    /// The register with op0 = 3, op1 = 0, CRn = 0 and the given CRm (1 to 7) and op2. All that is not assigned, and
    /// all about AArch32, which is not implemented, reads as zero.
    pub fn register(&self, crm: u16, op2: u16) -> u64 {
        match (crm, op2) {
            (4, 0) => self.pfr0(),
            (5, 0) => self.dfr0(),
            (6, 0) => self.isar0(),
            (7, 0) => self.mmfr0(),
            (7, 1) => self.mmfr1(),
            _ => 0,
        }
    }

    /// ID_AA64PFR0_EL1: EL0 and EL1 in AArch64 only, FP and SIMD without half precision, GICv3 system registers, and
    /// no speculation that could leak (CSV2, CSV3).
    fn pfr0(&self) -> u64 {
        1 << 60 | 1 << 56 | 1 << 24 | 1 << 4 | 1
    }

    /// ID_AA64DFR0_EL1: Armv8.0 debug, no PMU, no trace.
    fn dfr0(&self) -> u64 {
        6 | (BREAKPOINTS as u64 - 1) << 12 | (WATCHPOINTS as u64 - 1) << 20
    }

    /// ID_AA64ISAR0_EL1.
    fn isar0(&self) -> u64 {
        let f = &self.0.features;
        u64::from(f.crc32) << 16 | if f.lse { 2 << 20 } else { 0 }
    }

    /// ID_AA64MMFR0_EL1: 44-bit physical addresses, 16-bit ASIDs, mixed endianness, granules of 4, 16 and 64 KiB.
    fn mmfr0(&self) -> u64 {
        4 | 2 << 4 | 1 << 8 | 1 << 20
    }

    /// ID_AA64MMFR1_EL1.
    fn mmfr1(&self) -> u64 {
        u64::from(self.0.features.pan) << 20
    }
}
