//! SIMD and FP instructions: handlers, one file a family. `decode/fp_simd` picks them and prepares their operands.
//!
//! Conventions: `op.d`, `op.n`, `op.m` are registers, `op.a` is how many bytes of the destination are written (the rest
//! becomes zero), `op.imm` is the family's own. Lanes travel as zero-extended `u64`.

pub(crate) mod convert;
pub(crate) mod copy;
pub(crate) mod float;
pub(crate) mod float_lanes;
pub(crate) mod integer;
pub(crate) mod lane_ops;
pub(crate) mod logic;
pub(crate) mod memory;
pub(crate) mod narrow;
pub(crate) mod permute;
pub(crate) mod scalar;
pub(crate) mod structures;
pub(crate) mod widen;

use crate::core::{Core, Ctx};
use crate::exception::Fault;
use crate::fp::{Env, QC};
use crate::sys;

/// Whether the instruction may execute; else the trap has been taken.
#[inline(always)]
fn enabled(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<(), Fault> {
    sys::fp_enabled(core, ctx)
}

/// Returns [`Flow::Fault`](crate::core::Flow) from a handler when SIMD and FP trap.
macro_rules! check_enabled {
    ($core:ident, $ctx:ident) => {
        if $crate::simd::enabled($core, $ctx).is_err() {
            return $crate::core::Flow::Fault;
        }
    };
}
pub(crate) use check_enabled;

/// `bits` ones.
#[inline(always)]
const fn ones(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// Lane `i` of lanes of `bits` bits.
#[inline(always)]
const fn get(v: u128, i: u32, bits: u32) -> u64 {
    (v >> (i * bits)) as u64 & ones(bits)
}

/// A vector that has `value` in lane `i` and zeros elsewhere.
#[inline(always)]
const fn lane(i: u32, bits: u32, value: u64) -> u128 {
    ((value & ones(bits)) as u128) << (i * bits)
}

/// `v` with lane `i` replaced.
#[inline(always)]
const fn set(v: u128, i: u32, bits: u32, value: u64) -> u128 {
    (v & !lane(i, bits, u64::MAX)) | lane(i, bits, value)
}

/// A lane as a signed number.
#[inline(always)]
const fn signed(value: u64, bits: u32) -> i64 {
    ((value << (64 - bits)) as i64) >> (64 - bits)
}

/// The low `bytes` (1 to 16) of a vector.
#[inline(always)]
const fn low(bytes: u8) -> u128 {
    u128::MAX >> (128 - 8 * bytes as u32)
}

/// The value repeated in all lanes.
#[inline(always)]
const fn splat(value: u64, bits: u32) -> u128 {
    (u128::MAX / ones(bits) as u128) * (value & ones(bits)) as u128
}

/// One half of a vector, as the `2` forms of widening instructions read it.
#[inline(always)]
const fn half(v: u128, upper: bool) -> u128 {
    if upper { v >> 64 } else { v & u64::MAX as u128 }
}

/// The environment of an FP instruction.
#[inline(always)]
fn env(core: &Core) -> Env {
    Env::new(core.fpcr)
}

/// Adds what an FP instruction raised.
#[inline(always)]
fn raise(core: &mut Core, env: &Env) {
    core.fpsr |= env.flags;
}

/// Sets FPSR.QC when an instruction saturated.
#[inline(always)]
fn saturated(core: &mut Core, yes: bool) {
    if yes {
        core.fpsr |= QC;
    }
}

/// Applies `f` to the lanes of three vectors.
#[inline(always)]
fn map<const B: u32>(d: u128, a: u128, b: u128, mut f: impl FnMut(u64, u64, u64) -> u64) -> u128 {
    (0..128 / B).fold(0, |r, i| r | lane(i, B, f(get(d, i, B), get(a, i, B), get(b, i, B))))
}

/// `SatQ`: clamps to a lane's signed or unsigned range, and notes it.
#[inline(always)]
fn saturate(value: i128, bits: u32, unsigned: bool, q: &mut bool) -> u64 {
    let (min, max) =
        if unsigned { (0, ones(bits) as i128) } else { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) };
    let clamped = value.clamp(min, max);
    *q |= clamped != value;
    clamped as u64 & ones(bits)
}

/// [`saturate`] for lanes of at most 32 bits.
#[inline(always)]
fn saturate_small(value: i64, bits: u32, unsigned: bool, q: &mut bool) -> u64 {
    let (min, max) =
        if unsigned { (0, ones(bits) as i64) } else { (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1) };
    let clamped = value.clamp(min, max);
    *q |= clamped != value;
    clamped as u64 & ones(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes() {
        assert_eq!(splat(0xab, 8), 0xabab_abab_abab_abab_abab_abab_abab_abab);
        assert_eq!(splat(1, 64), (1 << 64) | 1);
        assert_eq!(get(set(0, 3, 16, 0x1_2345), 3, 16), 0x2345);
        assert_eq!(signed(0x80, 8), -128);
        assert_eq!(low(16), u128::MAX);
        assert_eq!(low(1), 0xff);
    }

    #[test]
    fn saturation() {
        let mut q = false;
        assert_eq!(saturate(127, 8, false, &mut q), 127);
        assert!(!q);
        assert_eq!(saturate(-129, 8, false, &mut q), 0x80);
        assert_eq!(saturate(-1, 8, true, &mut q), 0);
        assert!(q);
    }
}
