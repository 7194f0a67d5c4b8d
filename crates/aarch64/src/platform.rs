//! What a vCPU sees of the machine outside itself.

use guest_ram::GuestRam;
use serde::{Deserialize, Serialize};

use crate::core::Core;

/// Who accesses, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Index of the vCPU.
    pub cpu: usize,
    /// Virtual time in nanoseconds.
    pub now: u64,
}

/// A physical address that answers with an abort (reported as a synchronous External abort).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusFault;

/// A system register by its encoding: op0 in bits 15:14, op1 13:11, CRn 10:7, CRm 6:3, op2 2:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SysKey(pub u16);

impl SysKey {
    /// From the five fields.
    pub const fn new(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> Self {
        Self((op0 << 14) | (op1 << 11) | (crn << 7) | (crm << 3) | op2)
    }
}

/// Levels of a vCPU's interrupt inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqLines {
    /// IRQ.
    pub irq: bool,
    /// FIQ.
    pub fiq: bool,
}

/// An access by a vCPU to a traced page (see [`guest_ram::Watch::trace`]). A store is not done yet.
#[derive(Clone, Copy, Debug)]
pub struct Traced<'a> {
    /// The vCPU, in the middle of the instruction at its `pc`.
    pub core: &'a Core,
    /// Guest memory.
    pub ram: &'a GuestRam,
    /// Physical address of the first byte.
    pub pa: u64,
    /// Bytes: 1 to 16, all in one page. One call is one single-copy atomic access at least as the architecture has it;
    /// an access across two pages comes a byte at a time.
    pub size: u8,
    /// What a store writes, little-endian; `None` for a load.
    pub value: Option<u128>,
    /// The page's watch flags, which tell for whom this is.
    pub flags: u8,
}

/// The machine as a vCPU sees it.
pub trait Platform {
    /// Reads `size` (1, 2, 4 or 8) bytes at `pa`, which is not RAM.
    ///
    /// # Errors
    /// [`BusFault`] when nothing answers there.
    fn mmio_read(&mut self, at: At, pa: u64, size: u8) -> Result<u64, BusFault>;
    /// Writes the low `size` bytes of `value`.
    ///
    /// # Errors
    /// As [`Platform::mmio_read`].
    fn mmio_write(&mut self, at: At, pa: u64, size: u8, value: u64) -> Result<(), BusFault>;
    /// Reads a GICv3 CPU interface register (ICC_*_EL1); `None` makes the access UNDEFINED.
    fn icc_read(&mut self, at: At, reg: SysKey) -> Option<u64>;
    /// Writes a GICv3 CPU interface register; `None` makes the access UNDEFINED.
    fn icc_write(&mut self, at: At, reg: SysKey, value: u64) -> Option<()>;
    /// Level of the vCPU's interrupt inputs now.
    fn irq(&self, cpu: usize) -> IrqLines;
    /// Drives a private peripheral interrupt: INTID 27 (virtual timer), 30 (physical timer).
    fn set_ppi(&mut self, at: At, intid: u32, level: bool);
    /// Whether the platform wants the run to end after this instruction. Asked after every call above; reading it
    /// clears it.
    fn take_yield(&mut self) -> bool;
    /// A vCPU accesses a traced page. Nothing that it can see may change here.
    fn traced(&mut self, access: &Traced<'_>) {
        let _ = access;
    }
}
