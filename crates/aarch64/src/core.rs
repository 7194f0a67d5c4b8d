//! The state of one vCPU, and the types that every instruction handler shares.

use serde::{Deserialize, Serialize};

use crate::mmu::Mmu;
use crate::platform::Platform;
use crate::shared::Shared;
use crate::sys::SysRegs;

/// Index in [`Core::r`] that always reads as zero (XZR as a source).
pub const ZERO: u8 = 31;
/// Index in [`Core::r`] where writes to XZR go and from which nothing reads.
pub const SINK: u8 = 32;
/// Index in [`Core::r`] of the current stack pointer.
pub const SP: u8 = 33;

/// One vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Core {
    /// X0 to X30, then [`ZERO`], [`SINK`] and [`SP`]: decoding picks the index, so that handlers need no branch.
    pub r: [u64; 34],
    /// Address of the instruction being executed.
    pub pc: u64,
    /// PSTATE.NZCV as in SPSR bits 31:28.
    pub nzcv: u32,
    /// The SIMD and FP registers.
    pub v: [u128; 32],
    /// FPCR.
    pub fpcr: u32,
    /// FPSR.
    pub fpsr: u32,
    /// The other PSTATE fields.
    pub pstate: Pstate,
    /// System registers, banked stack pointers among them.
    pub sys: SysRegs,
    /// Translation state: the software TLB and what selects its entries.
    pub mmu: Mmu,
    /// The exclusive monitor: the open reservation of this vCPU.
    pub monitor: Option<Reservation>,
    /// The event register of WFE.
    pub event: bool,
    /// Index of this vCPU.
    pub index: usize,
    /// Instructions retired since reset.
    pub retired: u64,
    /// Virtual time at which the instruction `retired == time_base.0` began, so that time is exact mid-run.
    pub time_base: (u64, u64),
}

/// PSTATE without NZCV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pstate {
    /// DAIF in bits 9:6, as in SPSR.
    pub daif: u32,
    /// Current exception level, 0 or 1 for now; EL2 comes later.
    pub el: u8,
    /// SPSel: the handler stack (SP_ELx) rather than SP_EL0.
    pub sp_sel: bool,
    /// Software step.
    pub ss: bool,
    /// Illegal execution state.
    pub il: bool,
    /// PAN, when FEAT_PAN is on.
    pub pan: bool,
    /// UAO, when FEAT_UAO is on.
    pub uao: bool,
}

/// An open exclusive reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Physical address, aligned to the reservation granule.
    pub granule: u64,
    /// Exact physical address and size of the load-exclusive, both of which the store must match.
    pub address: u64,
    /// Bytes.
    pub size: u8,
}

/// A predecoded instruction: a handler and its operands. What the operands mean is the handler's business.
#[derive(Clone, Copy)]
pub struct Op {
    /// Executes the instruction.
    pub run: Handler,
    /// Immediate, or whatever the decoder prepared.
    pub imm: u64,
    /// Register indices (into [`Core::r`] or [`Core::v`]).
    pub d: u8,
    /// First source.
    pub n: u8,
    /// Second source.
    pub m: u8,
    /// Third source, or a small immediate.
    pub a: u8,
    /// The instruction word, for syndromes and for handlers that pick the rest out of it.
    pub word: u32,
}

/// Executes one predecoded instruction.
pub type Handler = fn(&mut Core, &Op, &mut Ctx<'_>) -> Flow;

/// What a handler can reach outside its vCPU.
pub struct Ctx<'a> {
    /// Devices, interrupt controller, power control.
    pub platform: &'a mut dyn Platform,
    /// RAM, decoded blocks, broadcasts: what all vCPUs share.
    pub shared: &'a mut Shared,
}

/// What the engine does after a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next instruction.
    Next,
    /// `pc` was set: a branch taken, an exception taken or returned from. Retired unless an exception says not.
    Jump,
    /// Like [`Flow::Next`], but state changed that interrupts or translation depend on: the block ends here.
    Sync,
    /// Leave the run after this instruction; the reason is in [`Shared::exit`].
    Exit,
    /// The instruction took a synchronous exception: `pc` is the vector; it did not retire.
    Fault,
}
