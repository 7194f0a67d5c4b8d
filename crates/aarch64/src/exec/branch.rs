//! Branches.

use super::chain::{Runs, branch as kind};
use super::{by_bool, holds, rn, rt, sf};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op};
use crate::decode::{bit, bits, signed};

/// The link register.
const LR: u8 = 30;

fn run_direct(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    core.pc = core.pc.wrapping_add(op.imm);
    Flow::Jump
}

fn run_call(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    core.r[LR as usize] = core.pc.wrapping_add(4);
    core.pc = core.pc.wrapping_add(op.imm);
    Flow::Jump
}

/// B, BL.
pub(crate) fn direct(word: u32, _: &Features) -> Option<Op> {
    let run: Runs = if bit(word, 31) { kind(run_call) } else { kind(run_direct) };
    Some(Op { imm: (signed(word, 25, 0) << 2) as u64, ..Op::with(run, word) })
}

#[inline(always)]
fn branch_if(core: &mut Core, op: &Op, taken: bool) -> Flow {
    if taken {
        core.pc = core.pc.wrapping_add(op.imm);
        Flow::Jump
    } else {
        Flow::Next
    }
}

fn run_conditional<const COND: u32>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let (n, z, c, v) = (core.nzcv >> 31 & 1, core.nzcv >> 30 & 1, core.nzcv >> 29 & 1, core.nzcv >> 28 & 1);
    let taken = match COND {
        0 => z != 0,
        1 => z == 0,
        2 => c != 0,
        3 => c == 0,
        4 => n != 0,
        5 => n == 0,
        6 => v != 0,
        7 => v == 0,
        8 => c > z,
        9 => c <= z,
        10 => n == v,
        11 => n != v,
        _ => holds(core.nzcv, COND),
    };
    branch_if(core, op, taken)
}

/// B.cond.
pub(crate) fn conditional(word: u32, _: &Features) -> Option<Op> {
    let handlers: [Runs; 16] = [
        kind(run_conditional::<0>),
        kind(run_conditional::<1>),
        kind(run_conditional::<2>),
        kind(run_conditional::<3>),
        kind(run_conditional::<4>),
        kind(run_conditional::<5>),
        kind(run_conditional::<6>),
        kind(run_conditional::<7>),
        kind(run_conditional::<8>),
        kind(run_conditional::<9>),
        kind(run_conditional::<10>),
        kind(run_conditional::<11>),
        kind(run_conditional::<12>),
        kind(run_conditional::<13>),
        kind(run_direct),
        kind(run_direct),
    ];
    let run = handlers[bits(word, 3, 0) as usize];
    Some(Op { imm: (signed(word, 23, 5) << 2) as u64, ..Op::with(run, word) })
}

fn run_compare<const SF: bool, const NONZERO: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let value = core.r[op.n as usize];
    let zero = if SF { value == 0 } else { value as u32 == 0 };
    branch_if(core, op, zero != NONZERO)
}

/// CBZ, CBNZ.
pub(crate) fn compare(word: u32, _: &Features) -> Option<Op> {
    let run: Runs = by_bool!(sf(word), SF => by_bool!(bit(word, 24), NZ => kind(run_compare::<SF, NZ>)));
    Some(Op { imm: (signed(word, 23, 5) << 2) as u64, n: rt(word), ..Op::with(run, word) })
}

fn run_test<const NONZERO: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let set = core.r[op.n as usize] >> (op.a & 63) & 1 != 0;
    branch_if(core, op, set == NONZERO)
}

/// TBZ, TBNZ.
pub(crate) fn test(word: u32, _: &Features) -> Option<Op> {
    let run: Runs = by_bool!(bit(word, 24), NZ => kind(run_test::<NZ>));
    let at = bits(word, 31, 31) << 5 | bits(word, 23, 19);
    Some(Op { imm: (signed(word, 18, 5) << 2) as u64, n: rt(word), a: at as u8, ..Op::with(run, word) })
}

fn run_register<const LINK: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let target = core.r[op.n as usize];
    if LINK {
        core.r[LR as usize] = core.pc.wrapping_add(4);
    }
    core.pc = core.mmu.branch_target(target);
    Flow::Jump
}

/// BR, BLR, RET.
pub(crate) fn register(word: u32, _: &Features) -> Option<Op> {
    let run: Runs =
        if bits(word, 22, 21) == 1 { kind(run_register::<true>) } else { kind(run_register::<false>) };
    Some(Op { n: rn(word), ..Op::with(run, word) })
}
