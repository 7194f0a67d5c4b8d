//! Multiplication, division, variable shifts and CRC32.

use super::chain::{Runs, simple};
use super::{by_bool, by_two_bits, rm, sf, shifted, src, three, trunc};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op};
use crate::decode::{bit, bits};

fn multiply_add<const SF: bool, const SUB: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let product = core.r[op.n as usize].wrapping_mul(core.r[op.m as usize]);
    let addend = core.r[op.a as usize];
    let result = if SUB { addend.wrapping_sub(product) } else { addend.wrapping_add(product) };
    core.r[op.d as usize] = trunc::<SF>(result);
    Flow::Next
}

fn multiply_long<const SIGNED: bool, const SUB: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let (n, m) = (core.r[op.n as usize], core.r[op.m as usize]);
    let product = if SIGNED {
        i64::from(n as i32).wrapping_mul(i64::from(m as i32)) as u64
    } else {
        u64::from(n as u32).wrapping_mul(u64::from(m as u32))
    };
    let addend = core.r[op.a as usize];
    core.r[op.d as usize] = if SUB { addend.wrapping_sub(product) } else { addend.wrapping_add(product) };
    Flow::Next
}

fn multiply_high<const SIGNED: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let (n, m) = (core.r[op.n as usize], core.r[op.m as usize]);
    core.r[op.d as usize] = if SIGNED {
        (i128::from(n as i64).wrapping_mul(i128::from(m as i64)) >> 64) as u64
    } else {
        (u128::from(n).wrapping_mul(u128::from(m)) >> 64) as u64
    };
    Flow::Next
}

/// MADD, MSUB, SMADDL, SMSUBL, UMADDL, UMSUBL, SMULH, UMULH.
pub(crate) fn three_source(word: u32, _: &Features) -> Option<Op> {
    let sub = bit(word, 15);
    let unsigned = bit(word, 23);
    let run: Runs = match bits(word, 22, 21) {
        0 => by_bool!(sf(word), SF => by_bool!(sub, SUB => simple(multiply_add::<SF, SUB>))),
        1 => by_bool!(!unsigned, SIGNED => by_bool!(sub, SUB => simple(multiply_long::<SIGNED, SUB>))),
        _ => by_bool!(!unsigned, SIGNED => simple(multiply_high::<SIGNED>)),
    };
    Some(Op { a: src(bits(word, 14, 10)), ..three(run, word) })
}

fn divide<const SF: bool, const SIGNED: bool>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let (n, m) = (core.r[op.n as usize], core.r[op.m as usize]);
    // Division by zero gives zero; the most negative number by -1 gives itself.
    core.r[op.d as usize] = match (SF, SIGNED) {
        (true, false) => n.checked_div(m).unwrap_or(0),
        (false, false) => u64::from((n as u32).checked_div(m as u32).unwrap_or(0)),
        (true, true) if m != 0 => (n as i64).wrapping_div(m as i64) as u64,
        (false, true) if m as u32 != 0 => u64::from((n as i32).wrapping_div(m as i32) as u32),
        _ => 0,
    };
    Flow::Next
}

fn variable_shift<const SF: bool, const KIND: u32>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let amount = core.r[op.m as usize] as u32 & if SF { 63 } else { 31 };
    core.r[op.d as usize] = shifted::<SF, KIND>(core.r[op.n as usize], amount);
    Flow::Next
}

/// UDIV, SDIV.
pub(crate) fn division(word: u32, _: &Features) -> Option<Op> {
    let run: Runs = by_bool!(sf(word), SF => by_bool!(bit(word, 10), SIGNED => simple(divide::<SF, SIGNED>)));
    Some(three(run, word))
}

/// LSLV, LSRV, ASRV, RORV.
pub(crate) fn variable(word: u32, _: &Features) -> Option<Op> {
    let kind = bits(word, 11, 10);
    let run: Runs = by_bool!(sf(word), SF => by_two_bits!(kind, KIND => simple(variable_shift::<SF, KIND>)));
    Some(three(run, word))
}

/// The CRC tables, for reflected polynomials: CRC-32 and CRC-32C.
static TABLES: [[u32; 256]; 2] = [crc_table(0xedb8_8320), crc_table(0x82f6_3b78)];

const fn crc_table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { polynomial } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// `SIZE` is the base-2 logarithm of the bytes.
fn run_crc<const CASTAGNOLI: bool, const SIZE: u32>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> Flow {
    let table = &TABLES[CASTAGNOLI as usize];
    let mut crc = core.r[op.n as usize] as u32;
    for byte in &core.r[op.m as usize].to_le_bytes()[..1 << SIZE] {
        crc = crc >> 8 ^ table[usize::from(crc as u8 ^ byte)];
    }
    core.r[op.d as usize] = u64::from(crc);
    Flow::Next
}

/// CRC32B, CRC32H, CRC32W, CRC32X and the CRC32C forms.
pub(crate) fn crc(word: u32, features: &Features) -> Option<Op> {
    if !features.crc32 {
        return None;
    }
    let run: Runs =
        by_bool!(bit(word, 12), C => by_two_bits!(bits(word, 11, 10), SIZE => simple(run_crc::<C, SIZE>)));
    Some(Op { m: rm(word), ..three(run, word) })
}
