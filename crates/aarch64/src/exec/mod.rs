//! What instructions do: the functions that turn a word into an [`Op`], each next to the handlers it picks from.
//!
//! Handlers are specialised at decode time (width, flags, shift) so that the common ones are a few host
//! instructions. A builder answers `None` for what is not allocated.

pub(crate) mod add_sub;
pub(crate) mod atomic;
pub(crate) mod bitfield;
pub(crate) mod branch;
pub(crate) mod chain;
pub(crate) mod conditional;
pub(crate) mod exclusive;
pub(crate) mod load_store;
pub(crate) mod logical;
pub(crate) mod moves;
pub(crate) mod multiply;
pub(crate) mod pair;
pub(crate) mod system;

use crate::core::{Core, Ctx, Flow, Op, SINK, SP};
use crate::decode::bits;
use crate::exception;

/// Picks a const generic by a run-time truth: `by_bool!(x, NAME => expression with NAME)`.
macro_rules! by_bool {
    ($test:expr, $name:ident => $body:expr) => {
        if $test {
            const $name: bool = true;
            $body
        } else {
            const $name: bool = false;
            $body
        }
    };
}

/// Picks a const generic out of 0 to 3.
macro_rules! by_two_bits {
    ($value:expr, $name:ident => $body:expr) => {
        match $value & 3 {
            0 => {
                const $name: u32 = 0;
                $body
            }
            1 => {
                const $name: u32 = 1;
                $body
            }
            2 => {
                const $name: u32 = 2;
                $body
            }
            _ => {
                const $name: u32 = 3;
                $body
            }
        }
    };
}

pub(crate) use {by_bool, by_two_bits};

/// The Undefined Instruction exception.
pub(crate) fn undefined(core: &mut Core, _op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    exception::undefined(core, ctx).into()
}

/// Does nothing.
pub(crate) fn nop(_core: &mut Core, _op: &Op, _ctx: &mut Ctx<'_>) -> Flow {
    Flow::Next
}

/// Whether control never falls through: an unconditional branch, or an exception-generating instruction.
pub(crate) const fn ends_straight(word: u32) -> bool {
    word & 0x7c00_0000 == 0x1400_0000
        || word & 0xfe00_0000 == 0xd600_0000
        || word & 0xff00_0000 == 0xd400_0000
}

/// A destination register field: 31 is nowhere.
const fn dst(field: u32) -> u8 {
    if field & 31 == 31 { SINK } else { (field & 31) as u8 }
}

/// A source register field: 31 reads as zero, which is where [`crate::core::ZERO`] is.
const fn src(field: u32) -> u8 {
    (field & 31) as u8
}

/// A register field in which 31 is the stack pointer.
const fn or_sp(field: u32) -> u8 {
    if field & 31 == 31 { SP } else { (field & 31) as u8 }
}

/// Rd in bits 4:0, as a destination.
const fn rd(word: u32) -> u8 {
    dst(word)
}

/// Rt in bits 4:0, as a source.
const fn rt(word: u32) -> u8 {
    src(word)
}

/// Rn in bits 9:5, as a source.
const fn rn(word: u32) -> u8 {
    src(word >> 5)
}

/// Rn in bits 9:5, 31 being the stack pointer.
const fn rn_sp(word: u32) -> u8 {
    or_sp(word >> 5)
}

/// Rm in bits 20:16, as a source.
const fn rm(word: u32) -> u8 {
    src(word >> 16)
}

/// The 64-bit form.
const fn sf(word: u32) -> bool {
    word >> 31 != 0
}

/// The value as a register of this width holds it.
#[inline(always)]
const fn trunc<const SF: bool>(value: u64) -> u64 {
    if SF { value } else { value as u32 as u64 }
}

/// N and Z of a result, in bits 31:30.
#[inline(always)]
const fn nz<const SF: bool>(value: u64) -> u32 {
    if SF {
        ((value >> 32) as u32 & 0x8000_0000) | ((value == 0) as u32) << 30
    } else {
        (value as u32 & 0x8000_0000) | ((value as u32 == 0) as u32) << 30
    }
}

/// Shifts as ShiftReg: 0 LSL, 1 LSR, 2 ASR, 3 ROR. The amount is less than the width.
#[inline(always)]
const fn shifted<const SF: bool, const KIND: u32>(value: u64, amount: u32) -> u64 {
    if SF {
        let amount = amount & 63;
        match KIND {
            0 => value << amount,
            1 => value >> amount,
            2 => (value as i64 >> amount) as u64,
            _ => value.rotate_right(amount),
        }
    } else {
        let (value, amount) = (value as u32, amount & 31);
        (match KIND {
            0 => value << amount,
            1 => value >> amount,
            2 => (value as i32 >> amount) as u32,
            _ => value.rotate_right(amount),
        }) as u64
    }
}

/// ExtendReg: `option` 0 to 7 is UXTB, UXTH, UXTW, UXTX, SXTB, SXTH, SXTW, SXTX.
#[inline(always)]
pub(crate) const fn extended(value: u64, option: u32) -> u64 {
    match option & 7 {
        0 => value as u8 as u64,
        1 => value as u16 as u64,
        2 => value as u32 as u64,
        4 => value as i8 as u64,
        5 => value as i16 as u64,
        6 => value as i32 as u64,
        _ => value,
    }
}

/// ConditionHolds, for PSTATE.NZCV in bits 31:28.
#[inline(always)]
pub(crate) const fn holds(nzcv: u32, cond: u32) -> bool {
    // One bit for each value of NZCV, for each condition.
    const TABLE: [u16; 16] = {
        let mut table = [0u16; 16];
        let mut cond = 0;
        while cond < 16 {
            let mut flags = 0;
            while flags < 16 {
                let (n, z, c, v) = (flags & 8 != 0, flags & 4 != 0, flags & 2 != 0, flags & 1 != 0);
                let base = match cond >> 1 {
                    0 => z,
                    1 => c,
                    2 => n,
                    3 => v,
                    4 => c && !z,
                    5 => n == v,
                    6 => n == v && !z,
                    _ => true,
                };
                let holds = if cond & 1 != 0 && cond != 15 { !base } else { base };
                table[cond] |= (holds as u16) << flags;
                flags += 1;
            }
            cond += 1;
        }
        table
    };
    TABLE[(cond & 15) as usize] >> (nzcv >> 28) & 1 != 0
}

/// DecodeBitMasks: the `wmask` and `tmask` of a logical immediate or bitfield instruction.
fn bit_masks(n: u32, imms: u32, immr: u32, immediate: bool) -> Option<(u64, u64)> {
    let len = 31u32.checked_sub(((n & 1) << 6 | (!imms & 0x3f)).leading_zeros())?;
    if len < 1 {
        return None;
    }
    let levels = (1u32 << len) - 1;
    if immediate && imms & levels == levels {
        return None;
    }
    let (s, r) = (imms & levels, immr & levels);
    let size = 1u32 << len;
    let ones = |count: u32| if count >= 64 { u64::MAX } else { (1u64 << count) - 1 };
    let element = ones(size);
    let replicate = |value: u64| {
        let mut value = value & element;
        let mut width = size;
        while width < 64 {
            value |= value << width;
            width *= 2;
        }
        value
    };
    let welem = ones(s + 1);
    let rotated = if r == 0 { welem } else { (welem >> r | welem << (size - r)) & element };
    let diff = s.wrapping_sub(r) & levels;
    Some((replicate(rotated), replicate(ones(diff + 1))))
}

/// An op with Rd, Rn and Rm filled in: the shape of most register forms.
const fn three(runs: chain::Runs, word: u32) -> Op {
    let mut op = Op::with(runs, word);
    op.d = rd(word);
    op.n = rn(word);
    op.m = rm(word);
    op
}

/// The condition field in bits 15:12.
const fn cond_field(word: u32) -> u32 {
    bits(word, 15, 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let (n, z, c, v) = (1 << 31, 1 << 30, 1 << 29, 1 << 28);
        assert!(holds(z, 0) && !holds(0, 0) && holds(0, 1));
        assert!(holds(c, 8) && !holds(c | z, 8) && holds(c | z, 9));
        assert!(holds(n | v, 10) && holds(n, 11) && holds(n | v | z, 13));
        assert!(holds(0, 14) && holds(0, 15));
    }

    #[test]
    fn logical_immediates() {
        assert_eq!(bit_masks(1, 0, 0, true).map(|m| m.0), Some(1));
        assert_eq!(bit_masks(0, 0b111100, 0, true).map(|m| m.0), Some(0x5555_5555_5555_5555));
        assert_eq!(bit_masks(0, 0b111100, 1, true).map(|m| m.0), Some(0xaaaa_aaaa_aaaa_aaaa));
        assert_eq!(bit_masks(1, 62, 0, true).map(|m| m.0), Some(u64::MAX >> 1));
        assert_eq!(bit_masks(1, 63, 0, true), None);
        assert_eq!(bit_masks(0, 0b111111, 0, true), None);
    }
}
