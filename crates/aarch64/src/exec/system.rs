//! Exception generation, hints, barriers and system-register moves.

use super::chain::{access, quick, simple, whole};
use super::{nop, undefined};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Handler, Op};
use crate::decode::bits;
use crate::platform::SysKey;
use crate::shared::{Broadcast, Exit};
use crate::sys::timer;
use crate::{exception, sys};

fn imm16(op: &Op) -> u16 {
    bits(op.word, 20, 5) as u16
}

fn run_svc(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    exception::svc(core, ctx, imm16(op)).into()
}

fn run_brk(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    exception::brk(core, ctx, imm16(op)).into()
}

/// There is no EL2: above EL0 the platform is the conduit's other end, as a hypervisor would be.
fn run_hvc(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    if core.pstate.el == 0 {
        return undefined(core, op, ctx);
    }
    ctx.shared.exit = Some(Exit::Hvc(imm16(op)));
    Flow::Sync
}

/// SVC.
pub(crate) fn svc(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(run_svc, word))
}

/// HVC.
pub(crate) fn hvc(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(run_hvc, word))
}

/// BRK.
pub(crate) fn brk(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(run_brk, word))
}

/// What is allocated and takes the Undefined Instruction exception here: SMC without EL3; HLT, DCPS and DRPS outside
/// Debug state.
pub(crate) fn not_here(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(undefined, word))
}

/// Hints that do nothing: NOP, YIELD, and all that later architectures allocated there.
pub(crate) fn hint(word: u32, _: &Features) -> Option<Op> {
    Some(Op::with(simple(nop), word))
}

fn run_wfi(core: &mut Core, _: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let lines = ctx.platform.irq(core.index);
    if lines.irq || lines.fiq {
        return Flow::Next;
    }
    super::load_store::attempt!(sys::wfx_allowed(core, ctx, false));
    ctx.shared.exit = Some(Exit::Wfi);
    Flow::Sync
}

fn run_wfe(core: &mut Core, _: &Op, ctx: &mut Ctx<'_>) -> Flow {
    timer::sync_events(core);
    if std::mem::take(&mut core.event) {
        return Flow::Next;
    }
    super::load_store::attempt!(sys::wfx_allowed(core, ctx, true));
    ctx.shared.exit = Some(Exit::Wfe);
    Flow::Sync
}

fn run_sev(core: &mut Core, _: &Op, ctx: &mut Ctx<'_>) -> Flow {
    core.event = true;
    ctx.shared.broadcast.push(Broadcast::Event);
    Flow::Next
}

fn run_sevl(core: &mut Core, _: &Op, _: &mut Ctx<'_>) -> Flow {
    core.event = true;
    Flow::Next
}

/// WFI.
pub(crate) fn wfi(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(run_wfi, word))
}

/// WFE.
pub(crate) fn wfe(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(run_wfe, word))
}

/// SEV.
pub(crate) fn sev(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(run_sev, word))
}

/// SEVL.
pub(crate) fn sevl(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(run_sevl, word))
}

/// DMB, DSB: memory is sequentially consistent.
pub(crate) fn barrier(word: u32, _: &Features) -> Option<Op> {
    Some(Op::with(simple(nop), word))
}

fn run_isb(_: &mut Core, _: &Op, _: &mut Ctx<'_>) -> Flow {
    Flow::Sync
}

/// ISB: what follows is fetched and translated anew.
pub(crate) fn isb(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(run_isb, word))
}

fn run_clrex(core: &mut Core, _: &Op, _: &mut Ctx<'_>) -> Flow {
    core.monitor = None;
    Flow::Next
}

/// CLREX.
pub(crate) fn clrex(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(run_clrex, word))
}

fn run_eret(core: &mut Core, _: &Op, ctx: &mut Ctx<'_>) -> Flow {
    super::load_store::attempt!(exception::eret(core, ctx));
    Flow::Fault
}

/// ERET.
pub(crate) fn eret(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(run_eret, word))
}

/// The registers that a kernel reads all the time, where nothing can be wrong with that.
fn try_mrs<const KEY: u16>(core: &mut Core, op: &Op) -> bool {
    let (privileged, s) = (core.pstate.el != 0, &core.sys);
    let (allowed, value) = match KEY {
        SP_EL0 => (privileged && core.pstate.sp_sel, s.sp[0]),
        TPIDR_EL1 => (privileged, s.tpidr_el1),
        TPIDR_EL0 => (true, s.tpidr_el0),
        _ => (privileged, u64::from(core.pstate.daif)),
    };
    if allowed {
        core.r[op.d as usize] = value;
    }
    allowed
}

const SP_EL0: u16 = SysKey::new(3, 0, 4, 1, 0).0;
const TPIDR_EL1: u16 = SysKey::new(3, 0, 13, 0, 4).0;
const TPIDR_EL0: u16 = SysKey::new(3, 3, 13, 0, 2).0;
const DAIF: u16 = SysKey::new(3, 3, 4, 2, 1).0;

/// The register of an MRS or MSR.
fn key(word: u32) -> u16 {
    bits(word, 20, 5) as u16
}

/// MRS.
pub(crate) fn mrs(word: u32, _: &Features) -> Option<Op> {
    let runs = match key(word) {
        SP_EL0 => access(try_mrs::<SP_EL0>, sys::mrs),
        TPIDR_EL1 => access(try_mrs::<TPIDR_EL1>, sys::mrs),
        TPIDR_EL0 => access(try_mrs::<TPIDR_EL0>, sys::mrs),
        DAIF => access(try_mrs::<DAIF>, sys::mrs),
        _ => whole(sys::mrs),
    };
    Some(Op { d: super::rd(word), ..Op::with(runs, word) })
}

/// After unmasking interrupts there is nothing to look into unless one is pending.
#[inline]
fn unmasked(core: &mut Core, ctx: &mut Ctx<'_>, flow: Flow) -> Flow {
    let quiet = flow == Flow::Sync
        && ctx.shared.exit.is_none()
        && !exception::step_enabled(core)
        && !sys::debug::breaking(core)
        && exception::pending_interrupt(core, ctx.platform.irq(core.index)).is_none();
    if quiet { Flow::Next } else { flow }
}

/// PSTATE.DAIF becomes `new`, if that is all that happens.
fn try_daif(core: &mut Core, ctx: &Ctx<'_>, new: u32) -> bool {
    let old = core.pstate.daif;
    if core.pstate.el == 0 || core.sys.mdscr_el1 & (sys::debug::SS | sys::debug::MDE) != 0 {
        return false;
    }
    core.pstate.daif = new;
    let quiet = old & !new == 0 || exception::pending_interrupt(core, ctx.platform.irq(core.index)).is_none();
    if !quiet {
        core.pstate.daif = old;
    }
    quiet
}

fn try_msr_daif(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> bool {
    let value = core.r[super::rt(op.word) as usize];
    try_daif(core, ctx, value as u32 & exception::daif::ALL)
}

fn try_msr_immediate_daif(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> bool {
    let (mask, old) = (bits(op.word, 11, 8) << 6, core.pstate.daif);
    try_daif(core, ctx, if bits(op.word, 7, 5) == 6 { old | mask } else { old & !mask })
}

fn run_msr_daif(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let flow = sys::msr(core, op, ctx);
    unmasked(core, ctx, flow)
}

fn run_msr_immediate_daif(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let flow = sys::msr_immediate(core, op, ctx);
    unmasked(core, ctx, flow)
}

/// MSR (register).
pub(crate) fn msr(word: u32, _: &Features) -> Option<Op> {
    let runs = if key(word) == DAIF { quick(try_msr_daif, run_msr_daif) } else { whole(sys::msr) };
    Some(Op::with(runs, word))
}

/// MSR (immediate): the fields that there are.
pub(crate) fn msr_immediate(word: u32, features: &Features) -> Option<Op> {
    match (bits(word, 18, 16), bits(word, 7, 5)) {
        (3, 6 | 7) => Some(Op::with(quick(try_msr_immediate_daif, run_msr_immediate_daif), word)),
        (0, 5) => Some(Op::new(sys::msr_immediate, word)),
        (0, 4) if features.pan => Some(Op::new(sys::msr_immediate, word)),
        _ => None,
    }
}

/// SYS and SYSL.
pub(crate) fn sys(word: u32, _: &Features) -> Option<Op> {
    let run: Handler = if bits(word, 21, 21) != 0 { sys::sysl } else { sys::sys };
    Some(Op::new(run, word))
}
