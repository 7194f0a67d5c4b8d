//! Exceptions: syndromes, entry, return (DDI 0487 D1.3, D24.2.40 for ESR_ELx).
//!
//! Everything here is general in the exception level, though only EL0 and EL1 exist so far.

use crate::core::{Core, Ctx, Flow, Pstate, SP};
use crate::platform::{IrqLines, SysKey};
use crate::sys::debug;

/// The instruction cannot complete: the exception has been taken already and `pc` is at the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

impl From<Fault> for Flow {
    fn from(_: Fault) -> Self {
        Flow::Fault
    }
}

/// Exception classes, ESR_ELx.EC.
pub mod ec {
    /// Unknown reason: UNDEFINED instructions.
    pub const UNKNOWN: u8 = 0x00;
    /// Trapped WFI or WFE.
    pub const WFX: u8 = 0x01;
    /// Access to SIMD or floating-point trapped by CPACR_EL1.
    pub const FP: u8 = 0x07;
    /// Illegal Execution state.
    pub const ILLEGAL: u8 = 0x0e;
    /// SVC.
    pub const SVC: u8 = 0x15;
    /// Trapped MSR, MRS or system instruction.
    pub const SYSTEM: u8 = 0x18;
    /// Instruction Abort from a lower level; from the same level, one more.
    pub const INSTRUCTION_ABORT: u8 = 0x20;
    /// PC alignment fault.
    pub const PC_ALIGNMENT: u8 = 0x22;
    /// Data Abort from a lower level; from the same level, one more.
    pub const DATA_ABORT: u8 = 0x24;
    /// SP alignment fault.
    pub const SP_ALIGNMENT: u8 = 0x26;
    /// SError.
    pub const SERROR: u8 = 0x2f;
    /// Breakpoint from a lower level; from the same level, one more.
    pub const BREAKPOINT: u8 = 0x30;
    /// Software Step from a lower level; from the same level, one more.
    pub const STEP: u8 = 0x32;
    /// Watchpoint from a lower level; from the same level, one more.
    pub const WATCHPOINT: u8 = 0x34;
    /// BRK.
    pub const BRK: u8 = 0x3c;
}

/// ESR_ELx.IL: the instruction is 32 bits long. It is set for every exception from AArch64 state.
const IL: u64 = 1 << 25;
/// Condition fields of a syndrome for an instruction that is not conditional: CV = 1, COND = AL.
const NO_CONDITION: u32 = 0x1e0_0000;

/// The fault status code of debug exceptions.
const DEBUG: u32 = 0x22;

/// What a synchronous exception reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome {
    /// Exception class.
    pub ec: u8,
    /// Instruction-specific syndrome, 25 bits.
    pub iss: u32,
    /// Address for FAR_ELx, for the classes that report one.
    pub far: Option<u64>,
}

/// Offsets within one part of the vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vector {
    /// Synchronous.
    Sync = 0,
    /// IRQ or vIRQ.
    Irq = 0x80,
    /// FIQ or vFIQ.
    Fiq = 0x100,
    /// SError.
    SError = 0x180,
}

/// PSTATE.DAIF bits, in SPSR positions.
pub mod daif {
    /// Debug exceptions masked.
    pub const D: u32 = 1 << 9;
    /// SError masked.
    pub const A: u32 = 1 << 8;
    /// IRQ masked.
    pub const I: u32 = 1 << 7;
    /// FIQ masked.
    pub const F: u32 = 1 << 6;
    /// All four.
    pub const ALL: u32 = D | A | I | F;
}

/// PSTATE as SPSR_ELx holds it.
pub fn spsr(core: &Core) -> u64 {
    let p = &core.pstate;
    let mode = u64::from(p.el) << 2 | u64::from(p.sp_sel && p.el != 0);
    u64::from(core.nzcv & 0xf000_0000)
        | u64::from(p.uao) << 23
        | u64::from(p.pan) << 22
        | u64::from(p.ss) << 21
        | u64::from(p.il) << 20
        | u64::from(p.daif & daif::ALL)
        | mode
}

/// Moves to an exception level and stack pointer selection: banks SP and turns the MMU to the new level's view.
pub fn set_level(core: &mut Core, el: u8, sp_sel: bool) {
    let bank = |el: u8, sel: bool| if sel { usize::from(el & 3) } else { 0 };
    let old = bank(core.pstate.el, core.pstate.sp_sel && core.pstate.el != 0);
    core.sys.sp[old] = core.r[SP as usize];
    core.r[SP as usize] = core.sys.sp[bank(el, sp_sel && el != 0)];
    core.pstate.el = el;
    core.pstate.sp_sel = sp_sel && el != 0;
    core.mmu.set_view(&core.pstate);
}

/// Takes an exception to the level that exceptions from the present one go to. `back` is the preferred return
/// address.
fn enter(core: &mut Core, vector: Vector, back: u64) {
    let from = core.pstate.el;
    let to = from.max(1);
    let group = match (from < to, core.pstate.sp_sel) {
        (true, _) => 0x400,
        (false, true) => 0x200,
        (false, false) => 0,
    };
    let bank = usize::from(to & 3);
    core.sys.spsr[bank] = spsr(core);
    core.sys.elr[bank] = back;
    core.pstate.daif = daif::ALL;
    core.pstate.ss = false;
    core.pstate.il = false;
    core.pstate.uao = false;
    if core.sys.features.pan && core.sys.sctlr_el1 & crate::sys::sctlr::SPAN == 0 {
        core.pstate.pan = true;
    }
    set_level(core, to, true);
    core.pc = core.sys.vbar[bank].wrapping_add(group + vector as u64);
}

/// Takes a synchronous exception whose preferred return address is `back`.
pub fn take_at(core: &mut Core, _ctx: &mut Ctx<'_>, syndrome: Syndrome, back: u64) -> Fault {
    let to = usize::from(core.pstate.el.max(1) & 3);
    core.sys.esr[to] = u64::from(syndrome.ec) << 26 | IL | u64::from(syndrome.iss & 0x1ff_ffff);
    if let Some(far) = syndrome.far {
        core.sys.far[to] = far;
    }
    enter(core, Vector::Sync, back);
    Fault
}

/// Takes a synchronous exception that the instruction at `pc` causes and that returns to it.
#[cold]
pub fn take(core: &mut Core, ctx: &mut Ctx<'_>, syndrome: Syndrome) -> Fault {
    let pc = core.pc;
    take_at(core, ctx, syndrome, pc)
}

/// An UNDEFINED instruction.
#[cold]
pub fn undefined(core: &mut Core, ctx: &mut Ctx<'_>) -> Fault {
    take(core, ctx, Syndrome { ec: ec::UNKNOWN, iss: 0, far: None })
}

/// SVC: returns to the next instruction.
pub fn svc(core: &mut Core, ctx: &mut Ctx<'_>, imm: u16) -> Fault {
    // SSAdvance: the instruction counts as executed for Software Step.
    core.pstate.ss = false;
    let next = core.pc.wrapping_add(4);
    take_at(core, ctx, Syndrome { ec: ec::SVC, iss: u32::from(imm), far: None }, next)
}

/// BRK: returns to itself.
#[cold]
pub fn brk(core: &mut Core, ctx: &mut Ctx<'_>, imm: u16) -> Fault {
    take(core, ctx, Syndrome { ec: ec::BRK, iss: u32::from(imm), far: None })
}

/// A system register or instruction access trapped with EC 0x18.
#[cold]
pub fn system_trap(core: &mut Core, ctx: &mut Ctx<'_>, key: SysKey, rt: u32, read: bool) -> Fault {
    let (k, rt) = (u32::from(key.0), rt & 31);
    let (op0, op1, crn) = (k >> 14 & 3, k >> 11 & 7, k >> 7 & 15);
    let (crm, op2) = (k >> 3 & 15, k & 7);
    let iss = op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | rt << 5 | crm << 1 | u32::from(read);
    take(core, ctx, Syndrome { ec: ec::SYSTEM, iss, far: None })
}

/// A WFI (`event` false) or WFE trapped by SCTLR_EL1.nTWI or nTWE.
#[cold]
pub fn wfx_trap(core: &mut Core, ctx: &mut Ctx<'_>, event: bool) -> Fault {
    take(core, ctx, Syndrome { ec: ec::WFX, iss: NO_CONDITION | u32::from(event), far: None })
}

/// SIMD and floating-point access trapped by CPACR_EL1.FPEN.
#[cold]
pub fn fp_trap(core: &mut Core, ctx: &mut Ctx<'_>) -> Fault {
    take(core, ctx, Syndrome { ec: ec::FP, iss: NO_CONDITION, far: None })
}

/// SP is not aligned to 16 bytes and SCTLR_ELx.SA or SA0 forbids it.
#[cold]
pub fn sp_alignment(core: &mut Core, ctx: &mut Ctx<'_>) -> Fault {
    take(core, ctx, Syndrome { ec: ec::SP_ALIGNMENT, iss: 0, far: None })
}

/// PC is not aligned to 4 bytes.
#[cold]
pub fn pc_alignment(core: &mut Core, ctx: &mut Ctx<'_>) -> Fault {
    let far = Some(core.pc);
    take(core, ctx, Syndrome { ec: ec::PC_ALIGNMENT, iss: 0, far })
}

/// An instruction in Illegal Execution state.
#[cold]
pub fn illegal_state(core: &mut Core, ctx: &mut Ctx<'_>) -> Fault {
    take(core, ctx, Syndrome { ec: ec::ILLEGAL, iss: 0, far: None })
}

/// An Instruction Abort at `pc` with the given fault status code.
#[cold]
pub fn instruction_abort(core: &mut Core, ctx: &mut Ctx<'_>, ifsc: u32) -> Fault {
    let (ec, far) = (ec::INSTRUCTION_ABORT + u8::from(core.pstate.el != 0), Some(core.pc));
    take(core, ctx, Syndrome { ec, iss: ifsc, far })
}

/// What a Data Abort reports. Stage-1 aborts have no valid ISS[23:14] (ISV = 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAbort {
    /// Faulting address.
    pub va: u64,
    /// Data fault status code.
    pub dfsc: u32,
    /// WnR.
    pub write: bool,
    /// CM: cache maintenance or address translation.
    pub maintenance: bool,
}

/// A Data Abort at the instruction at `pc`.
#[cold]
pub fn data_abort(core: &mut Core, ctx: &mut Ctx<'_>, abort: DataAbort) -> Fault {
    let DataAbort { va, dfsc, write, maintenance } = abort;
    let ec = ec::DATA_ABORT + u8::from(core.pstate.el != 0);
    let iss = dfsc | u32::from(write) << 6 | u32::from(maintenance) << 8;
    take(core, ctx, Syndrome { ec, iss, far: Some(va) })
}

/// Software Step debugging is enabled at the present level (DDI 0487 D2.10.2), so that the engine must give each
/// instruction a fetch of its own.
#[inline]
pub fn step_enabled(core: &Core) -> bool {
    core.sys.mdscr_el1 & debug::SS != 0 && step_enabled_at(core, core.pstate.el, core.pstate.daif)
}

/// As [`step_enabled`], for the level and masks that an exception return goes to.
fn step_enabled_at(core: &Core, el: u8, daif_bits: u32) -> bool {
    core.sys.mdscr_el1 & debug::SS != 0 && debug::enabled_at(&core.sys, el, daif_bits)
}

/// A breakpoint matched the instruction at `pc`.
#[cold]
pub fn breakpoint(core: &mut Core, ctx: &mut Ctx<'_>) -> Fault {
    let ec = ec::BREAKPOINT + u8::from(core.pstate.el != 0);
    take(core, ctx, Syndrome { ec, iss: DEBUG, far: None })
}

/// A watchpoint matched the access to `va`, which was not made.
#[cold]
pub fn watchpoint(core: &mut Core, ctx: &mut Ctx<'_>, va: u64, write: bool) -> Fault {
    let ec = ec::WATCHPOINT + u8::from(core.pstate.el != 0);
    take(core, ctx, Syndrome { ec, iss: u32::from(write) << 6 | DEBUG, far: Some(va) })
}

/// A Software Step exception: taken instead of an instruction when stepping is enabled and PSTATE.SS is 0.
#[cold]
pub fn software_step(core: &mut Core, ctx: &mut Ctx<'_>) -> Fault {
    let ec = ec::STEP + u8::from(core.pstate.el != 0);
    // ISV = 1, EX = whether a load-exclusive was stepped, IFSC = debug.
    let iss = 1 << 24 | u32::from(core.sys.stepped_exclusive) << 6 | DEBUG;
    core.sys.stepped_exclusive = false;
    take(core, ctx, Syndrome { ec, iss, far: None })
}

/// An asynchronous exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// IRQ.
    Irq,
    /// FIQ.
    Fiq,
}

/// The interrupt to take before the next instruction, if any. FIQ before IRQ, as is usual.
#[inline]
pub fn pending_interrupt(core: &Core, lines: IrqLines) -> Option<Interrupt> {
    if lines.fiq && core.pstate.daif & daif::F == 0 {
        Some(Interrupt::Fiq)
    } else if lines.irq && core.pstate.daif & daif::I == 0 {
        Some(Interrupt::Irq)
    } else {
        None
    }
}

/// Takes an interrupt between instructions: `pc` is the instruction that would have been next.
pub fn interrupt(core: &mut Core, which: Interrupt) {
    let vector = match which {
        Interrupt::Irq => Vector::Irq,
        Interrupt::Fiq => Vector::Fiq,
    };
    core.set_pc(core.pc);
    let pc = core.pc;
    enter(core, vector, pc);
    core.straight = core.pc;
}

/// Takes the interrupt that is pending and not masked, if any. Answers whether it did.
#[inline]
pub fn take_pending_interrupt(core: &mut Core, ctx: &mut Ctx<'_>) -> bool {
    let lines = ctx.platform.irq(core.index);
    let Some(which) = pending_interrupt(core, lines) else { return false };
    interrupt(core, which);
    true
}

/// Takes an SError interrupt with the given syndrome.
pub fn serror(core: &mut Core, iss: u32) {
    let to = usize::from(core.pstate.el.max(1) & 3);
    core.sys.esr[to] = u64::from(ec::SERROR) << 26 | IL | u64::from(iss & 0x1ff_ffff);
    let pc = core.pc;
    enter(core, Vector::SError, pc);
}

/// Whether an SPSR value describes a state that cannot be returned to from `el` (DDI 0487 D1.4.2.2).
fn illegal_return(spsr: u64, el: u8) -> bool {
    let (target, handler) = ((spsr >> 2 & 3) as u8, spsr & 1 != 0);
    // AArch32 is not implemented, nor are EL2 and EL3.
    spsr >> 4 & 1 != 0 || spsr >> 1 & 1 != 0 || target > el || target > 1 || (target == 0 && handler)
}

/// ERET. The exclusive monitor is cleared and the event register set, as for every exception return.
///
/// # Errors
/// UNDEFINED at EL0.
pub fn eret(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<(), Fault> {
    let el = core.pstate.el;
    if el == 0 {
        return Err(undefined(core, ctx));
    }
    let bank = usize::from(el & 3);
    let (spsr, target) = (core.sys.spsr[bank], core.sys.elr[bank]);
    let illegal = illegal_return(spsr, el);
    let (to, daif_bits) = ((spsr >> 2 & 3) as u8, spsr as u32 & daif::ALL);

    // DebugExceptionReturnSS: stepping becomes active by a return from where it is not enabled to where it is.
    let ss = spsr >> 21 & 1 != 0
        && !step_enabled(core)
        && step_enabled_at(core, if illegal { el } else { to }, daif_bits);
    core.nzcv = spsr as u32 & 0xf000_0000;
    let features = core.sys.features;
    core.pstate = Pstate {
        daif: daif_bits,
        ss,
        il: illegal || spsr >> 20 & 1 != 0,
        pan: features.pan && spsr >> 22 & 1 != 0,
        ..core.pstate
    };
    if illegal {
        set_level(core, el, core.pstate.sp_sel);
    } else {
        set_level(core, to, spsr & 1 != 0);
    }
    core.monitor = None;
    core.event = true;
    core.pc = core.mmu.branch_target(target);
    Ok(())
}
