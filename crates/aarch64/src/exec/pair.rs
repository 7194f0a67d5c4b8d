//! Loads and stores of a pair of general-purpose registers.
//!
//! CONSTRAINED UNPREDICTABLE choices (DDI 0487 K1.2): LDP with Rt == Rt2 leaves the second value; with writeback, a
//! base that is also a target has the loaded value, and one that is stored is stored as it was before.

use super::chain::{Runs, access};
use super::load_store::{Datum, Pair, attempt, base};
use super::{by_bool, dst, rn_sp, rt, src};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op, SP};
use crate::decode::{bits, signed};
use crate::exception::Fault;
use crate::mmu::{self, AccessKind};

const OFFSET: u32 = 0;
const PRE: u32 = 1;
const POST: u32 = 2;

/// Two elements, each an access of its own.
#[inline(always)]
fn load_two<T: Datum>(core: &mut Core, ctx: &mut Ctx<'_>, va: u64) -> Result<[T; 2], Fault> {
    let first = mmu::load(core, ctx, va, AccessKind::Normal)?;
    let second = mmu::load(core, ctx, va.wrapping_add(size_of::<T>() as u64), AccessKind::Normal)?;
    Ok([first, second])
}

#[inline(always)]
fn store_two<T: Datum>(core: &mut Core, ctx: &mut Ctx<'_>, va: u64, pair: [T; 2]) -> Result<(), Fault> {
    let [first, second] = pair;
    mmu::store(core, ctx, va, first, AccessKind::Normal)?;
    mmu::store(core, ctx, va.wrapping_add(size_of::<T>() as u64), second, AccessKind::Normal)
}

fn run_load<T: Datum, const SIGNED: bool, const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    let base = attempt!(base::<ON_SP>(core, op, ctx));
    let moved = base.wrapping_add(op.imm);
    let va = if FORM == POST { base } else { moved };
    let [first, second] = attempt!(load_two::<T>(core, ctx, va));
    if FORM != OFFSET {
        core.r[op.n as usize] = moved;
    }
    let extend = |value: T| if SIGNED { value.sign_extended() } else { value.zero_extended() };
    core.r[op.d as usize] = extend(first);
    core.r[op.a as usize] = extend(second);
    Flow::Next
}

fn run_store<T: Datum, const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    let base = attempt!(base::<ON_SP>(core, op, ctx));
    let moved = base.wrapping_add(op.imm);
    let va = if FORM == POST { base } else { moved };
    let pair = [T::from_register(core.r[op.d as usize]), T::from_register(core.r[op.a as usize])];
    attempt!(store_two(core, ctx, va, pair));
    if FORM != OFFSET {
        core.r[op.n as usize] = moved;
    }
    Flow::Next
}

/// The fast path of [`run_load`]: both elements by one access of twice the size, in a page as they are.
fn try_load<T: Pair, const SIGNED: bool, const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
) -> bool {
    let base = core.r[op.n as usize];
    let moved = base.wrapping_add(op.imm);
    let va = if FORM == POST { base } else { moved };
    if ON_SP && base & 15 != 0 {
        return false;
    }
    let Some((first, second)) = T::try_load_pair(core, va) else { return false };
    if FORM != OFFSET {
        core.r[op.n as usize] = moved;
    }
    let extend = |value: T| if SIGNED { value.sign_extended() } else { value.zero_extended() };
    core.r[op.d as usize] = extend(first);
    core.r[op.a as usize] = extend(second);
    true
}

/// The fast path of [`run_store`].
fn try_store<T: Pair, const FORM: u32, const ON_SP: bool>(core: &mut Core, op: &Op) -> bool {
    let base = core.r[op.n as usize];
    let moved = base.wrapping_add(op.imm);
    let va = if FORM == POST { base } else { moved };
    if ON_SP && base & 15 != 0 {
        return false;
    }
    if !T::try_store_pair(core, va, core.r[op.d as usize], core.r[op.a as usize]) {
        return false;
    }
    if FORM != OFFSET {
        core.r[op.n as usize] = moved;
    }
    true
}

fn build<const FORM: u32>(word: u32) -> Option<Op> {
    let (opc, load) = (bits(word, 31, 30), bits(word, 22, 22));
    let n = rn_sp(word);
    let run: Runs = by_bool!(n == SP, ON_SP => match (opc, load) {
        (0, 0) => access(try_store::<u32, FORM, ON_SP>, run_store::<u32, FORM, ON_SP>),
        (2, 0) => access(try_store::<u64, FORM, ON_SP>, run_store::<u64, FORM, ON_SP>),
        (0, _) => access(try_load::<u32, false, FORM, ON_SP>, run_load::<u32, false, FORM, ON_SP>),
        (1, 1) => access(try_load::<u32, true, FORM, ON_SP>, run_load::<u32, true, FORM, ON_SP>),
        (2, _) => access(try_load::<u64, false, FORM, ON_SP>, run_load::<u64, false, FORM, ON_SP>),
        _ => return None,
    });
    let scale = if opc == 2 { 3 } else { 2 };
    let second = bits(word, 14, 10);
    let (d, a) = if load != 0 { (dst(word), dst(second)) } else { (rt(word), src(second)) };
    Some(Op { imm: (signed(word, 21, 15) << scale) as u64, d, n, a, ..Op::with(run, word) })
}

/// LDP, LDPSW, STP with an offset; LDNP, STNP.
pub(crate) fn offset(word: u32, _: &Features) -> Option<Op> {
    build::<OFFSET>(word)
}

/// Pre-indexed.
pub(crate) fn pre(word: u32, _: &Features) -> Option<Op> {
    build::<PRE>(word)
}

/// Post-indexed.
pub(crate) fn post(word: u32, _: &Features) -> Option<Op> {
    build::<POST>(word)
}
