//! AND, ORR, EOR and ANDS.

use super::chain::{Runs, simple};
use super::{bit_masks, by_bool, by_two_bits, nz, or_sp, rd, rn, sf, shifted, three, trunc};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op};
use crate::decode::{bit, bits};

/// `OPC` as encoded: AND, ORR, EOR, ANDS.
#[inline(always)]
fn finish<const SF: bool, const OPC: u32>(core: &mut Core, d: u8, x: u64, y: u64) -> Flow {
    let result = trunc::<SF>(match OPC {
        1 => x | y,
        2 => x ^ y,
        _ => x & y,
    });
    if OPC == 3 {
        core.nzcv = nz::<SF>(result);
    }
    core.r[d as usize] = result;
    Flow::Next
}

fn immediate<const SF: bool, const OPC: u32>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let x = core.r[op.n as usize];
    finish::<SF, OPC>(core, op.d, x, op.imm)
}

/// AND, ORR, EOR, ANDS (immediate).
pub(crate) fn imm(word: u32, _: &Features) -> Option<Op> {
    let (n, opc) = (bits(word, 22, 22), bits(word, 30, 29));
    if !sf(word) && n != 0 {
        return None;
    }
    let (mask, _) = bit_masks(n, bits(word, 15, 10), bits(word, 21, 16), true)?;
    let run: Runs = by_bool!(sf(word), SF => by_two_bits!(opc, OPC => simple(immediate::<SF, OPC>)));
    let d = if opc == 3 { rd(word) } else { or_sp(word) };
    Some(Op { imm: mask, d, n: rn(word), ..Op::with(run, word) })
}

fn plain<const SF: bool, const OPC: u32, const NOT: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let (x, y) = (core.r[op.n as usize], core.r[op.m as usize]);
    finish::<SF, OPC>(core, op.d, x, if NOT { !y } else { y })
}

/// ORR with XZR: MOV (register).
fn mov<const SF: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    core.r[op.d as usize] = trunc::<SF>(core.r[op.m as usize]);
    Flow::Next
}

fn with_shift<const SF: bool, const OPC: u32, const NOT: bool, const KIND: u32>(
    core: &mut Core,
    op: &Op,
    _: &mut Ctx<'_>,
) -> Flow {
    let y = shifted::<SF, KIND>(core.r[op.m as usize], u32::from(op.a));
    let x = core.r[op.n as usize];
    finish::<SF, OPC>(core, op.d, x, if NOT { !y } else { y })
}

/// AND, BIC, ORR, ORN, EOR, EON, ANDS, BICS (shifted register).
pub(crate) fn shift(word: u32, _: &Features) -> Option<Op> {
    let (kind, amount, opc, not) =
        (bits(word, 23, 22), bits(word, 15, 10), bits(word, 30, 29), bit(word, 21));
    if !sf(word) && amount >= 32 {
        return None;
    }
    let run: Runs = if amount == 0 && opc == 1 && !not && rn(word) == crate::core::ZERO {
        by_bool!(sf(word), SF => simple(mov::<SF>))
    } else if amount == 0 {
        by_bool!(sf(word), SF => by_bool!(not, NOT => by_two_bits!(opc, OPC => simple(plain::<SF, OPC, NOT>))))
    } else {
        by_bool!(sf(word), SF => by_bool!(not, NOT => by_two_bits!(opc, OPC =>
            by_two_bits!(kind, KIND => simple(with_shift::<SF, OPC, NOT, KIND>)))))
    };
    Some(Op { a: amount as u8, ..three(run, word) })
}
