//! The state of one vCPU, and the types that every instruction handler shares.

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::engine::Page;
use crate::exec::chain::{self, Runs};
use crate::mmu::Mmu;
use crate::platform::{At, Platform};
use crate::shared::{Exit, Shared};
use crate::sys::SysRegs;

/// Index in [`Core::r`] that always reads as zero (XZR as a source).
pub const ZERO: u8 = 31;
/// Index in [`Core::r`] where writes to XZR go and from which nothing reads.
pub const SINK: u8 = 32;
/// Index in [`Core::r`] of the current stack pointer.
pub const SP: u8 = 33;

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Core {
    /// X0 to X30, then [`ZERO`], [`SINK`] and [`SP`]: decoding picks the index, so that handlers need no branch.
    /// The rest is never used: the size makes indexing by a `u8` free of bounds checks.
    #[serde(with = "registers")]
    pub r: [u64; 256],
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
    /// Instructions begun since power-on, as of some moment in the past: use [`Core::retired`].
    pub retired_base: u64,
    /// Where `pc` would have been at that moment for the way to here to be straight: the distance of `pc` from it is
    /// what `retired_base` does not count yet.
    pub straight: u64,
    /// Virtual time at which the instruction `retired == time_base.0` began, so that time is exact mid-run.
    pub time_base: (u64, u64),
}

impl Core {
    /// A vCPU in its reset state: EL1 with the handler stack, everything masked, MMU off. General registers, which
    /// are UNKNOWN after reset, are zero.
    pub fn new(index: usize, config: &Config) -> Self {
        Self {
            r: [0; 256],
            pc: 0,
            nzcv: 0,
            v: [0; 32],
            fpcr: 0,
            fpsr: 0,
            pstate: Pstate { daif: 0x3c0, el: 1, sp_sel: true, ss: false, il: false, pan: false, uao: false },
            sys: SysRegs::new(index, config),
            mmu: Mmu::new(),
            monitor: None,
            event: false,
            index,
            retired_base: 0,
            straight: 0,
            time_base: (0, 0),
        }
    }

    /// Instructions begun since power-on, not counting the one at `pc`. One that takes an exception counts as well,
    /// so that a guest that only faults still gets older.
    #[inline]
    pub fn retired(&self) -> u64 {
        self.retired_base.wrapping_add(self.pc.wrapping_sub(self.straight) >> 2)
    }

    /// Virtual time in nanoseconds at which the instruction at `pc` begins.
    #[inline]
    pub fn now(&self) -> u64 {
        self.time_base.1.wrapping_add(self.retired().wrapping_sub(self.time_base.0))
    }

    /// `pc` is now what it is instead of `behind`, without any time passing.
    #[inline(always)]
    pub(crate) fn moved(&mut self, behind: u64) {
        self.straight = self.straight.wrapping_add(self.pc.wrapping_sub(behind));
    }

    /// Moves `pc` without any time passing. Handlers just set `pc`: the engine that runs them keeps count.
    pub fn set_pc(&mut self, pc: u64) {
        self.retired_base = self.retired();
        self.straight = pc;
        self.pc = pc;
    }

    /// Who accesses and when, for the platform.
    #[inline]
    pub fn at(&self) -> At {
        At { cpu: self.index, now: self.now() }
    }
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

impl Reservation {
    /// Bytes of the exclusives reservation granule, as CTR_EL0.ERG says.
    pub const GRANULE: u64 = 64;

    /// Whether a store touches the reserved granule.
    pub fn overlaps(&self, pa: u64, len: u64) -> bool {
        pa < self.granule.saturating_add(Self::GRANULE) && self.granule < pa.saturating_add(len)
    }
}

/// A predecoded instruction: a handler and its operands. What the operands mean is the handler's business.
#[derive(Clone, Copy)]
pub struct Op {
    /// Executes the instruction and the ones after it.
    pub(crate) chain: Chain,
    /// Executes the instruction alone.
    pub(crate) run: Handler,
    /// Executes it, or its fast path, from generated code.
    pub(crate) native: Option<chain::Native>,
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

/// Executes the predecoded instructions of a straight run, the first of which is its own, up to one that does not answer
/// [`Flow::Next`] or to [`Ctx::end_block`]. How many are left is in [`Place::left`].
pub(crate) type Chain = fn(&mut Core, &[Op], &mut Ctx<'_>) -> Flow;

/// What a handler can reach outside its vCPU.
pub struct Ctx<'a> {
    /// Devices, interrupt controller, power control.
    pub platform: &'a mut dyn Platform,
    /// RAM, decoded pages, broadcasts: what all vCPUs share.
    pub shared: &'a mut Shared,
    /// The straight run is to end: see [`Ctx::end_block`].
    pub ended: bool,
    /// Where the block engine is.
    pub(crate) at: Place<'a>,
}

/// Where the block engine is, of which only it and the chain of ops know.
#[derive(Default)]
pub(crate) struct Place<'a> {
    /// The page that executes.
    pub(crate) page: Option<&'a Page>,
    /// Address behind the present straight run.
    pub(crate) end_pc: u64,
    /// Instructions that may execute after the present straight run.
    pub(crate) after: usize,
    /// Instructions of the straight run behind the one that ended it.
    pub(crate) left: usize,
}

impl<'a> Ctx<'a> {
    /// What handlers need outside of a run of the block engine.
    pub fn new(platform: &'a mut dyn Platform, shared: &'a mut Shared) -> Self {
        Self { platform, shared, ended: false, at: Place::default() }
    }
}

impl Op {
    /// An op without operands.
    #[inline]
    pub const fn new(run: Handler, word: u32) -> Self {
        Self::with(Runs { run, chain: chain::any, native: None }, word)
    }

    /// An op without operands, of a handler whose kind is known.
    #[inline]
    pub(crate) const fn with(runs: Runs, word: u32) -> Self {
        Self { chain: runs.chain, run: runs.run, native: runs.native, imm: 0, d: 0, n: 0, m: 0, a: 0, word }
    }
}

impl Ctx<'_> {
    /// Ends the straight run after the present instruction, as [`Flow::Sync`] does, for those who do not decide the
    /// handler's answer: the slow path of an access that reached a device or wrote to the code being executed.
    #[inline]
    pub fn end_block(&mut self) {
        self.ended = true;
    }

    /// To be called after each call of the platform that may have changed an interrupt or asks to yield.
    pub fn after_platform(&mut self) {
        self.end_block();
        if self.platform.take_yield() {
            self.shared.exit = Some(Exit::Yield);
        }
    }
}

/// What the engine does after a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next instruction.
    Next,
    /// A branch was taken: `pc` was set.
    Jump,
    /// Like [`Flow::Next`], but state changed that interrupts or translation depend on: interrupts are checked and
    /// the next instruction is fetched through the TLB again. When [`Shared::exit`] is set the run ends.
    Sync,
    /// As [`Flow::Sync`], but the handler has set `pc`: an exception was taken, with `pc` at the vector, or returned
    /// from.
    Fault,
}

/// X0 to X30 and SP as 32 words.
mod registers {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::SP;

    pub(super) fn serialize<S: Serializer>(r: &[u64; 256], s: S) -> Result<S::Ok, S::Error> {
        let mut out = [0; 32];
        out[..31].copy_from_slice(&r[..31]);
        out[31] = r[SP as usize];
        out.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u64; 256], D::Error> {
        let stored = <[u64; 32]>::deserialize(d)?;
        let mut r = [0; 256];
        r[..31].copy_from_slice(&stored[..31]);
        r[SP as usize] = stored[31];
        Ok(r)
    }
}
