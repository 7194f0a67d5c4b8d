//! Lane by lane: integer instructions whose lanes have one size.

use super::lane_ops::Lane;
use super::{check_enabled, get, half, lane, low, map, saturated, signed, splat};
use crate::core::{Core, Ctx, Flow, Op};

/// Runs a lane operation over whole vectors of which only `bytes` count.
#[inline(always)]
fn each<T: Lane, const B: u32>(core: &mut Core, op: &Op, b: u128) {
    let mask = low(op.a);
    let (d, a, b) = (core.v[op.d as usize] & mask, core.v[op.n as usize] & mask, b & mask);
    if let Some(result) = T::whole::<B>(a, b) {
        core.v[op.d as usize] = result & mask;
        return;
    }
    let mut q = false;
    let result = map::<B>(d, a, b, |d, a, b| T::f::<B>(d, a, b, &mut q));
    core.v[op.d as usize] = result & mask;
    saturated(core, q);
}

/// Two registers.
pub(crate) fn binary<T: Lane, const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    each::<T, B>(core, op, core.v[op.m as usize]);
    Flow::Next
}

/// One register.
pub(crate) fn unary<T: Lane, const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    each::<T, B>(core, op, 0);
    Flow::Next
}

/// A register and lane `op.imm` of another.
pub(crate) fn by_element<T: Lane, const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let b = splat(get(core.v[op.m as usize], op.imm as u32, B), B);
    each::<T, B>(core, op, b);
    Flow::Next
}

/// A register and the same immediate for every lane. Lanes that do not count stay zero.
pub(crate) fn immediate<T: Lane, const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let mask = low(op.a);
    let (d, a) = (core.v[op.d as usize] & mask, core.v[op.n as usize] & mask);
    let mut q = false;
    let result = map::<B>(d, a, 0, |d, a, _| T::f::<B>(d, a, op.imm, &mut q));
    core.v[op.d as usize] = result & mask;
    saturated(core, q);
    Flow::Next
}

/// Adjacent pairs of the two registers one after the other.
pub(crate) fn pairwise<T: Lane, const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (a, b) = (core.v[op.n as usize], core.v[op.m as usize]);
    let mut q = false;
    let mut fold = |v: u128| {
        (0..64 / B)
            .fold(0u128, |r, i| r | lane(i, B, T::f::<B>(0, get(v, 2 * i, B), get(v, 2 * i + 1, B), &mut q)))
    };
    let (first, second) = (fold(a), fold(b));
    core.v[op.d as usize] = if op.a == 16 {
        first | second << 64
    } else {
        half(first, false) & u128::from(u32::MAX) | (second & u128::from(u32::MAX)) << 32
    };
    Flow::Next
}

/// ADDP, scalar: the sum of the two 64-bit lanes.
pub(crate) fn addp_scalar(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let v = core.v[op.n as usize];
    core.v[op.d as usize] = u128::from((v as u64).wrapping_add((v >> 64) as u64));
    Flow::Next
}

/// ADDV, SMAXV, …: all lanes into one; `op.a` is the bytes of the source.
pub(crate) fn across<T: Lane, const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let v = core.v[op.n as usize];
    let mut q = false;
    // The two lengths apart, so that each is unrolled.
    let mut fold = |lanes: u32| (1..lanes).fold(get(v, 0, B), |r, i| T::f::<B>(0, r, get(v, i, B), &mut q));
    let result = if op.a == 16 { fold(128 / B) } else { fold(64 / B) };
    core.v[op.d as usize] = lane(0, B, result);
    Flow::Next
}

/// SADDLV and UADDLV: the sum in twice the size.
pub(crate) fn across_long<const SIGNED: bool, const B: u32>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let v = core.v[op.n as usize];
    let fold = |lanes| (0..lanes).fold(0u64, |r, i| r.wrapping_add(extend::<SIGNED>(get(v, i, B), B)));
    let sum = if op.a == 16 { fold(128 / B) } else { fold(64 / B) };
    core.v[op.d as usize] = lane(0, 2 * B, sum);
    Flow::Next
}

/// SADDLP, UADDLP, SADALP, UADALP: sums of adjacent lanes in twice the size, with or without accumulation.
pub(crate) fn pair_long<const SIGNED: bool, const ACCUMULATE: bool, const B: u32>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let (v, old) = (core.v[op.n as usize], core.v[op.d as usize]);
    let mut result = 0;
    for i in 0..64 / B {
        let sum =
            extend::<SIGNED>(get(v, 2 * i, B), B).wrapping_add(extend::<SIGNED>(get(v, 2 * i + 1, B), B));
        let old = if ACCUMULATE { get(old, i, 2 * B) } else { 0 };
        result |= lane(i, 2 * B, old.wrapping_add(sum));
    }
    core.v[op.d as usize] = result & low(op.a);
    Flow::Next
}

/// A lane extended to 64 bits.
#[inline(always)]
pub(super) fn extend<const SIGNED: bool>(value: u64, bits: u32) -> u64 {
    if SIGNED { signed(value, bits) as u64 } else { value }
}
