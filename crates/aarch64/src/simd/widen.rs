//! Instructions whose results, or one source, are twice as wide as a source.

use super::integer::extend;
use super::lane_ops::polynomial;
use super::{check_enabled, get, half, lane, saturate, saturated, signed};
use crate::core::{Core, Ctx, Flow, Op};

/// What one lane of a widening instruction computes, in lanes of `W` bits from sources extended to 64.
pub(crate) trait Long {
    /// Whether sources are sign-extended.
    const SIGNED: bool;
    /// The new lane; `d` is the destination's old value.
    fn f<const W: u32>(d: u64, a: u64, b: u64, q: &mut bool) -> u64;
}

macro_rules! long {
    ($($name:ident $signed:literal |$d:pat_param, $a:ident, $b:ident, $q:pat_param| $body:expr;)*) => {$(
        pub(crate) struct $name;
        impl Long for $name {
            const SIGNED: bool = $signed;
            #[inline(always)]
            fn f<const W: u32>($d: u64, $a: u64, $b: u64, $q: &mut bool) -> u64 {
                $body
            }
        }
    )*};
}

/// The doubled, saturated product of sign-extended sources.
#[inline(always)]
fn doubled<const W: u32>(a: u64, b: u64, q: &mut bool) -> i128 {
    let product = 2 * i128::from(a as i64) * i128::from(b as i64);
    i128::from(signed(saturate(product, W, false, q), W))
}

long! {
    Saddl true |_, a, b, _| a.wrapping_add(b);
    Uaddl false |_, a, b, _| a.wrapping_add(b);
    Ssubl true |_, a, b, _| a.wrapping_sub(b);
    Usubl false |_, a, b, _| a.wrapping_sub(b);
    Sabal true |d, a, b, _| d.wrapping_add((a as i64).abs_diff(b as i64));
    Uabal false |d, a, b, _| d.wrapping_add(a.abs_diff(b));
    Sabdl true |_, a, b, _| (a as i64).abs_diff(b as i64);
    Uabdl false |_, a, b, _| a.abs_diff(b);
    Smull true |_, a, b, _| a.wrapping_mul(b);
    Umull false |_, a, b, _| a.wrapping_mul(b);
    Smlal true |d, a, b, _| d.wrapping_add(a.wrapping_mul(b));
    Umlal false |d, a, b, _| d.wrapping_add(a.wrapping_mul(b));
    Smlsl true |d, a, b, _| d.wrapping_sub(a.wrapping_mul(b));
    Umlsl false |d, a, b, _| d.wrapping_sub(a.wrapping_mul(b));
    Pmull false |_, a, b, _| polynomial(a, b);
    Sqdmull true |_, a, b, q| doubled::<W>(a, b, q) as u64;
    Sqdmlal true |d, a, b, q| {
        let product = doubled::<W>(a, b, q);
        saturate(i128::from(signed(d, W)) + product, W, false, q)
    };
    Sqdmlsl true |d, a, b, q| {
        let product = doubled::<W>(a, b, q);
        saturate(i128::from(signed(d, W)) - product, W, false, q)
    };
}

/// Sources of `B` bits, results of `W` = 2 * `B`, `N` of them; `upper` is which half of the sources.
#[inline(always)]
fn widen<T: Long, const B: u32, const W: u32>(core: &mut Core, d: u8, a: u128, b: u128, lanes: u32) {
    let old = core.v[d as usize];
    let (mut result, mut q) = (0, false);
    for i in 0..lanes {
        let (a, b) = (get(a, i, B), get(b, i, B));
        let (a, b) = if T::SIGNED { (signed(a, B) as u64, signed(b, B) as u64) } else { (a, b) };
        result |= lane(i, W, T::f::<W>(get(old, i, W), a, b, &mut q));
    }
    core.v[d as usize] = result;
    saturated(core, q);
}

/// Both sources are narrow. `op.imm` is 1 for their upper halves.
pub(crate) fn long<T: Long, const B: u32, const W: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (a, b) = (core.v[op.n as usize], core.v[op.m as usize]);
    widen::<T, B, W>(core, op.d, half(a, op.imm != 0), half(b, op.imm != 0), 64 / B);
    Flow::Next
}

/// The second source is lane `op.a` of a register.
pub(crate) fn long_element<T: Long, const B: u32, const W: u32>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let (a, b) = (core.v[op.n as usize], get(core.v[op.m as usize], u32::from(op.a), B));
    widen::<T, B, W>(core, op.d, half(a, op.imm != 0), super::splat(b, B), 64 / B);
    Flow::Next
}

/// Scalar SQDMULL and the like: one lane.
pub(crate) fn long_scalar<T: Long, const B: u32, const W: u32>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let (a, b) = (core.v[op.n as usize], core.v[op.m as usize]);
    widen::<T, B, W>(core, op.d, a, b >> (B * u32::from(op.a)), 1);
    Flow::Next
}

/// SADDW and the like: the first source is wide already. `op.imm` is 1 for the upper half of the second.
pub(crate) fn wide<T: Long, const B: u32, const W: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (a, b) = (core.v[op.n as usize], half(core.v[op.m as usize], op.imm != 0));
    let (mut result, mut q) = (0, false);
    for i in 0..64 / B {
        let b = get(b, i, B);
        let b = if T::SIGNED { signed(b, B) as u64 } else { b };
        result |= lane(i, W, T::f::<W>(0, get(a, i, W), b, &mut q));
    }
    core.v[op.d as usize] = result;
    Flow::Next
}

/// SSHLL, USHLL, SHLL: extends and shifts left by `op.imm`. `op.a` is 1 for the upper half.
pub(crate) fn shift_long<const SIGNED: bool, const B: u32>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let a = half(core.v[op.n as usize], op.a != 0);
    let mut result = 0;
    for i in 0..64 / B {
        result |= lane(i, 2 * B, extend::<SIGNED>(get(a, i, B), B) << op.imm);
    }
    core.v[op.d as usize] = result;
    Flow::Next
}
