//! Addition and subtraction, and the conditional compares.

use super::chain::{Runs, simple};
use super::{
    by_bool, by_two_bits, cond_field, extended, holds, nz, or_sp, rd, rm, rn, rn_sp, sf, shifted, three,
    trunc,
};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op};
use crate::decode::{bit, bits};

/// AddWithCarry: the result and NZCV.
#[inline(always)]
const fn add_with_carry<const SF: bool>(x: u64, y: u64, carry: bool) -> (u64, u32) {
    if SF {
        let (sum, c1) = x.overflowing_add(y);
        let (sum, c2) = sum.overflowing_add(carry as u64);
        let overflow = (x ^ sum) & (y ^ sum);
        (sum, nz::<true>(sum) | ((c1 | c2) as u32) << 29 | ((overflow >> 63) as u32) << 28)
    } else {
        let wide = (x as u32 as u64) + (y as u32 as u64) + carry as u64;
        let sum = wide as u32;
        let overflow = (x as u32 ^ sum) & (y as u32 ^ sum);
        (sum as u64, nz::<false>(sum as u64) | ((wide >> 32) as u32) << 29 | (overflow >> 31) << 28)
    }
}

/// Flags of `x - y`, and the difference.
#[inline(always)]
const fn subtract<const SF: bool>(x: u64, y: u64) -> (u64, u32) {
    if SF {
        let difference = x.wrapping_sub(y);
        let overflow = (x ^ y) & (x ^ difference);
        (difference, nz::<true>(difference) | ((x >= y) as u32) << 29 | ((overflow >> 63) as u32) << 28)
    } else {
        let (x, y) = (x as u32, y as u32);
        let difference = x.wrapping_sub(y);
        let overflow = (x ^ y) & (x ^ difference);
        (difference as u64, nz::<false>(difference as u64) | ((x >= y) as u32) << 29 | (overflow >> 31) << 28)
    }
}

/// The common end of all forms.
#[inline(always)]
fn finish<const SF: bool, const SUB: bool, const S: bool>(core: &mut Core, d: u8, x: u64, y: u64) -> Flow {
    if S {
        let (result, nzcv) = if SUB { subtract::<SF>(x, y) } else { add_with_carry::<SF>(x, y, false) };
        core.nzcv = nzcv;
        core.r[d as usize] = result;
    } else {
        let result = if SUB { x.wrapping_sub(y) } else { x.wrapping_add(y) };
        core.r[d as usize] = trunc::<SF>(result);
    }
    Flow::Next
}

fn immediate<const SF: bool, const SUB: bool, const S: bool>(
    core: &mut Core,
    op: &Op,
    _: &mut Ctx<'_>,
) -> Flow {
    let x = core.r[op.n as usize];
    finish::<SF, SUB, S>(core, op.d, x, op.imm)
}

/// ADD, ADDS, SUB, SUBS (immediate).
pub(crate) fn imm(word: u32, _: &Features) -> Option<Op> {
    let (sub, s) = (bit(word, 30), bit(word, 29));
    let run: Runs =
        by_bool!(sf(word), SF => by_bool!(sub, SUB => by_bool!(s, S => simple(immediate::<SF, SUB, S>))));
    let imm = u64::from(bits(word, 21, 10)) << if bit(word, 22) { 12 } else { 0 };
    Some(Op { imm, d: if s { rd(word) } else { or_sp(word) }, n: rn_sp(word), ..Op::with(run, word) })
}

fn plain<const SF: bool, const SUB: bool, const S: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let (x, y) = (core.r[op.n as usize], core.r[op.m as usize]);
    finish::<SF, SUB, S>(core, op.d, x, y)
}

fn with_shift<const SF: bool, const SUB: bool, const S: bool, const KIND: u32>(
    core: &mut Core,
    op: &Op,
    _: &mut Ctx<'_>,
) -> Flow {
    let y = shifted::<SF, KIND>(core.r[op.m as usize], u32::from(op.a));
    let x = core.r[op.n as usize];
    finish::<SF, SUB, S>(core, op.d, x, y)
}

/// ADD, ADDS, SUB, SUBS (shifted register).
pub(crate) fn shift(word: u32, _: &Features) -> Option<Op> {
    let (kind, amount) = (bits(word, 23, 22), bits(word, 15, 10));
    if kind == 3 || (!sf(word) && amount >= 32) {
        return None;
    }
    let (sub, s) = (bit(word, 30), bit(word, 29));
    let run: Runs = if amount == 0 {
        by_bool!(sf(word), SF => by_bool!(sub, SUB => by_bool!(s, S => simple(plain::<SF, SUB, S>))))
    } else {
        by_bool!(sf(word), SF => by_bool!(sub, SUB => by_bool!(s, S =>
            by_two_bits!(kind, KIND => simple(with_shift::<SF, SUB, S, KIND>)))))
    };
    Some(Op { a: amount as u8, ..three(run, word) })
}

fn with_extend<const SF: bool, const SUB: bool, const S: bool>(
    core: &mut Core,
    op: &Op,
    _: &mut Ctx<'_>,
) -> Flow {
    let y = extended(core.r[op.m as usize], op.imm as u32) << op.a;
    let x = core.r[op.n as usize];
    finish::<SF, SUB, S>(core, op.d, x, y)
}

/// ADD, ADDS, SUB, SUBS (extended register).
pub(crate) fn extend(word: u32, _: &Features) -> Option<Op> {
    let amount = bits(word, 12, 10);
    if amount > 4 {
        return None;
    }
    let (sub, s) = (bit(word, 30), bit(word, 29));
    let run: Runs =
        by_bool!(sf(word), SF => by_bool!(sub, SUB => by_bool!(s, S => simple(with_extend::<SF, SUB, S>))));
    Some(Op {
        imm: u64::from(bits(word, 15, 13)),
        d: if s { rd(word) } else { or_sp(word) },
        n: rn_sp(word),
        m: rm(word),
        a: amount as u8,
        ..Op::with(run, word)
    })
}

fn with_carry<const SF: bool, const SUB: bool, const S: bool>(
    core: &mut Core,
    op: &Op,
    _: &mut Ctx<'_>,
) -> Flow {
    let y = core.r[op.m as usize];
    let carry = core.nzcv & 1 << 29 != 0;
    let (result, nzcv) = add_with_carry::<SF>(core.r[op.n as usize], if SUB { !y } else { y }, carry);
    if S {
        core.nzcv = nzcv;
    }
    core.r[op.d as usize] = result;
    Flow::Next
}

/// ADC, ADCS, SBC, SBCS.
pub(crate) fn carry(word: u32, _: &Features) -> Option<Op> {
    let (sub, s) = (bit(word, 30), bit(word, 29));
    let run: Runs =
        by_bool!(sf(word), SF => by_bool!(sub, SUB => by_bool!(s, S => simple(with_carry::<SF, SUB, S>))));
    Some(three(run, word))
}

/// `m` is a register, `imm` a constant: one of them is zero. `a` holds the condition and the flags otherwise.
fn compare<const SF: bool, const SUB: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    core.nzcv = if holds(core.nzcv, u32::from(op.a >> 4)) {
        let (x, y) = (core.r[op.n as usize], core.r[op.m as usize] | op.imm);
        if SUB { subtract::<SF>(x, y).1 } else { add_with_carry::<SF>(x, y, false).1 }
    } else {
        u32::from(op.a & 15) << 28
    };
    Flow::Next
}

/// CCMN, CCMP (register and immediate).
pub(crate) fn conditional_compare(word: u32, _: &Features) -> Option<Op> {
    let run: Runs = by_bool!(sf(word), SF => by_bool!(bit(word, 30), SUB => simple(compare::<SF, SUB>)));
    let immediate = bit(word, 11);
    Some(Op {
        imm: if immediate { u64::from(bits(word, 20, 16)) } else { 0 },
        n: rn(word),
        m: if immediate { crate::core::ZERO } else { rm(word) },
        a: (cond_field(word) << 4 | bits(word, 3, 0)) as u8,
        ..Op::with(run, word)
    })
}
