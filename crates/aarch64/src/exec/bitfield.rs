//! Bitfield moves, extract, and the one-source operations.

use super::chain::{Runs, simple};
use super::{bit_masks, by_bool, by_two_bits, rd, rn, sf, shifted, three, trunc};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op};
use crate::decode::bits;

/// A shift by the constant in `a`: what most bitfield moves are.
fn shift<const SF: bool, const KIND: u32>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    core.r[op.d as usize] = shifted::<SF, KIND>(core.r[op.n as usize], u32::from(op.a));
    Flow::Next
}

/// UBFX and its like: shift right by `a`, keep the bits of `imm`.
fn extract_unsigned<const SF: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    core.r[op.d as usize] = (core.r[op.n as usize] >> op.a) & op.imm;
    Flow::Next
}

/// UBFIZ: keep the bits of `imm`, shift left by `a`.
fn insert_in_zero<const SF: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    core.r[op.d as usize] = trunc::<SF>((core.r[op.n as usize] & op.imm) << op.a);
    Flow::Next
}

/// SBFX, SXTB and so on: shift left by `m`, then arithmetically right by `a`.
fn extract_signed<const SF: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let value = core.r[op.n as usize];
    core.r[op.d as usize] = if SF {
        ((value << op.m) as i64 >> op.a) as u64
    } else {
        u64::from((((value as u32) << op.m) as i32 >> op.a) as u32)
    };
    Flow::Next
}

/// The general form, as the manual has it. The masks are rebuilt from the word, since what reaches this is rare.
fn general<const SF: bool, const OPC: u32>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let (immr, imms) = (bits(op.word, 21, 16), bits(op.word, 15, 10));
    let Some((wmask, tmask)) = bit_masks(SF as u32, imms, immr, false) else { return Flow::Next };
    let (dst, src) = (core.r[op.d as usize], core.r[op.n as usize]);
    let rotated = shifted::<SF, 3>(src, immr);
    let result = match OPC {
        // SBFM: the top is the copied sign.
        0 => {
            let top = if src >> imms & 1 != 0 { u64::MAX } else { 0 };
            top & !tmask | rotated & wmask & tmask
        }
        // BFM: the top is what was there.
        1 => {
            let bottom = dst & !wmask | rotated & wmask;
            dst & !tmask | bottom & tmask
        }
        // UBFM.
        _ => rotated & wmask & tmask,
    };
    core.r[op.d as usize] = trunc::<SF>(result);
    Flow::Next
}

/// SBFM, BFM, UBFM.
pub(crate) fn bitfield(word: u32, _: &Features) -> Option<Op> {
    let (immr, imms, opc) = (bits(word, 21, 16), bits(word, 15, 10), bits(word, 30, 29));
    let width = if sf(word) { 64 } else { 32 };
    if immr >= width || imms >= width {
        return None;
    }
    let ones = |count: u32| if count >= 64 { u64::MAX } else { (1u64 << count) - 1 };
    let with = |run: Runs, a: u32, m: u32, imm: u64| {
        Some(Op { a: a as u8, m: m as u8, imm, d: rd(word), n: rn(word), ..Op::with(run, word) })
    };
    match (opc, imms) {
        // LSR and ASR.
        (2, _) if imms == width - 1 => with(by_bool!(sf(word), SF => simple(shift::<SF, 1>)), immr, 0, 0),
        (0, _) if imms == width - 1 => with(by_bool!(sf(word), SF => simple(shift::<SF, 2>)), immr, 0, 0),
        // LSL.
        (2, _) if imms + 1 == immr => {
            with(by_bool!(sf(word), SF => simple(shift::<SF, 0>)), width - immr, 0, 0)
        }
        (2, _) if imms >= immr => {
            with(by_bool!(sf(word), SF => simple(extract_unsigned::<SF>)), immr, 0, ones(imms - immr + 1))
        }
        (2, _) => {
            with(by_bool!(sf(word), SF => simple(insert_in_zero::<SF>)), width - immr, 0, ones(imms + 1))
        }
        (0, _) if imms >= immr => {
            let left = width - 1 - imms;
            with(by_bool!(sf(word), SF => simple(extract_signed::<SF>)), left + immr, left, 0)
        }
        _ => with(by_bool!(sf(word), SF => by_two_bits!(opc, OPC => simple(general::<SF, OPC>))), 0, 0, 0),
    }
}

fn run_extract<const SF: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let (high, low) = (core.r[op.n as usize], core.r[op.m as usize]);
    core.r[op.d as usize] = if SF {
        ((u128::from(high) << 64 | u128::from(low)) >> op.a) as u64
    } else {
        u64::from(((high << 32 | low & 0xffff_ffff) >> op.a) as u32)
    };
    Flow::Next
}

/// EXTR.
pub(crate) fn extract(word: u32, _: &Features) -> Option<Op> {
    let lsb = bits(word, 15, 10);
    if !sf(word) && lsb >= 32 {
        return None;
    }
    let run: Runs = by_bool!(sf(word), SF => simple(run_extract::<SF>));
    Some(Op { a: lsb as u8, ..three(run, word) })
}

/// `OPC` as in bits 12:10 of the word.
fn run_one_source<const SF: bool, const OPC: u32>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let x = core.r[op.n as usize];
    let w = x as u32;
    core.r[op.d as usize] = if SF {
        match OPC {
            0 => x.reverse_bits(),
            1 => (x & 0x00ff_00ff_00ff_00ff) << 8 | x >> 8 & 0x00ff_00ff_00ff_00ff,
            2 => x.swap_bytes().rotate_left(32),
            3 => x.swap_bytes(),
            4 => u64::from(x.leading_zeros()),
            // CLS: a bit that differs from the one below it ends the run; the last bit always does.
            _ => u64::from((x ^ x << 1 | 1).leading_zeros()),
        }
    } else {
        u64::from(match OPC {
            0 => w.reverse_bits(),
            1 => (w & 0x00ff_00ff) << 8 | w >> 8 & 0x00ff_00ff,
            2 => w.swap_bytes(),
            4 => w.leading_zeros(),
            _ => (w ^ w << 1 | 1).leading_zeros(),
        })
    };
    Flow::Next
}

/// RBIT, REV16, REV32, REV, CLZ, CLS.
pub(crate) fn one_source(word: u32, _: &Features) -> Option<Op> {
    let run: Runs = by_bool!(sf(word), SF => match bits(word, 12, 10) {
        0 => simple(run_one_source::<SF, 0>),
        1 => simple(run_one_source::<SF, 1>),
        2 => simple(run_one_source::<SF, 2>),
        3 => simple(run_one_source::<SF, 3>),
        4 => simple(run_one_source::<SF, 4>),
        _ => simple(run_one_source::<SF, 5>),
    });
    Some(Op { d: rd(word), n: rn(word), ..Op::with(run, word) })
}
