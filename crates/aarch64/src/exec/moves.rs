//! Move wide, and PC-relative addresses.

use super::chain::{Runs, branch, simple};
use super::{by_bool, rd, sf, trunc};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op};
use crate::decode::{bit, bits, signed};

fn constant(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    core.r[op.d as usize] = op.imm;
    Flow::Next
}

/// `imm` is shifted into place; `a` is where.
fn keep<const SF: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let old = core.r[op.d as usize];
    core.r[op.d as usize] = trunc::<SF>(old & !(0xffff << op.a) | op.imm);
    Flow::Next
}

/// MOVN, MOVZ, MOVK.
pub(crate) fn wide(word: u32, _: &Features) -> Option<Op> {
    let shift = bits(word, 22, 21) * 16;
    if !sf(word) && shift >= 32 {
        return None;
    }
    let imm = u64::from(bits(word, 20, 5)) << shift;
    let (run, imm): (Runs, u64) = match bits(word, 30, 29) {
        0 => (simple(constant), if sf(word) { !imm } else { u64::from(!imm as u32) }),
        2 => (simple(constant), imm),
        _ => (by_bool!(sf(word), SF => simple(keep::<SF>)), imm),
    };
    Some(Op { imm, d: rd(word), a: shift as u8, ..Op::with(run, word) })
}

fn address(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    core.r[op.d as usize] = core.pc.wrapping_add(op.imm);
    Flow::Next
}

fn page_address(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    core.r[op.d as usize] = (core.pc & !0xfff).wrapping_add(op.imm);
    Flow::Next
}

/// ADR, ADRP.
pub(crate) fn pc_relative(word: u32, _: &Features) -> Option<Op> {
    let offset = signed(word, 23, 5) << 2 | i64::from(bits(word, 30, 29));
    let (run, imm): (Runs, i64) =
        if bit(word, 31) { (branch(page_address), offset << 12) } else { (branch(address), offset) };
    Some(Op { imm: imm as u64, d: rd(word), ..Op::with(run, word) })
}
