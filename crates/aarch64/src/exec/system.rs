//! Exception generation, hints, barriers and system-register moves.

use super::chain::simple;
use super::{nop, undefined};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Handler, Op};
use crate::decode::bits;
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

/// MRS.
pub(crate) fn mrs(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(sys::mrs, word))
}

/// MSR (register).
pub(crate) fn msr(word: u32, _: &Features) -> Option<Op> {
    Some(Op::new(sys::msr, word))
}

/// MSR (immediate): the fields that there are.
pub(crate) fn msr_immediate(word: u32, features: &Features) -> Option<Op> {
    let allocated = match (bits(word, 18, 16), bits(word, 7, 5)) {
        (0, 5) | (3, 6 | 7) => true,
        (0, 4) => features.pan,
        _ => false,
    };
    allocated.then(|| Op::new(sys::msr_immediate, word))
}

/// SYS and SYSL.
pub(crate) fn sys(word: u32, _: &Features) -> Option<Op> {
    let run: Handler = if bits(word, 21, 21) != 0 { sys::sysl } else { sys::sys };
    Some(Op::new(run, word))
}
