//! FP arithmetic lane by lane: vectors, and scalars as vectors of one lane.

use super::float_lanes::{Float1, Float3};
use super::{check_enabled, env, get, lane, raise};
use crate::core::{Core, Ctx, Flow, Op};
use crate::fp::{self, Format};

/// How many lanes the instruction works on.
#[inline(always)]
fn lanes<F: Format>(op: &Op) -> u32 {
    u32::from(op.a) * 8 / F::SIZE
}

/// Two registers.
pub(crate) fn binary<T: Float3, F: Format>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    each::<T, F>(core, op, |b, i| get(b, i, F::SIZE));
    Flow::Next
}

/// A register and lane `op.imm` of another.
pub(crate) fn by_element<T: Float3, F: Format>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let at = op.imm as u32;
    each::<T, F>(core, op, |b, _| get(b, at, F::SIZE));
    Flow::Next
}

#[inline(always)]
fn each<T: Float3, F: Format>(core: &mut Core, op: &Op, second: impl Fn(u128, u32) -> u64) {
    let (d, a, b) = (core.v[op.d as usize], core.v[op.n as usize], core.v[op.m as usize]);
    let (mut result, mut env) = (0, env(core));
    for i in 0..lanes::<F>(op) {
        let value = T::f::<F>(get(d, i, F::SIZE), get(a, i, F::SIZE), second(b, i), &mut env);
        result |= lane(i, F::SIZE, value);
    }
    core.v[op.d as usize] = result;
    raise(core, &env);
}

/// One register; `op.imm` is the lane operation's.
pub(crate) fn unary<T: Float1, F: Format>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let a = core.v[op.n as usize];
    let (mut result, mut env) = (0, env(core));
    for i in 0..lanes::<F>(op) {
        result |= lane(i, F::SIZE, T::f::<F>(get(a, i, F::SIZE), op.imm, &mut env));
    }
    core.v[op.d as usize] = result;
    raise(core, &env);
    Flow::Next
}

/// Adjacent pairs of the two registers one after the other.
pub(crate) fn pairwise<T: Float3, F: Format>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (a, b) = (core.v[op.n as usize], core.v[op.m as usize]);
    let (mut result, mut env) = (0, env(core));
    let lanes = lanes::<F>(op);
    for i in 0..lanes {
        let (v, at) = if i < lanes / 2 { (a, i) } else { (b, i - lanes / 2) };
        let (x, y) = (get(v, 2 * at, F::SIZE), get(v, 2 * at + 1, F::SIZE));
        result |= lane(i, F::SIZE, T::f::<F>(0, x, y, &mut env));
    }
    core.v[op.d as usize] = result;
    raise(core, &env);
    Flow::Next
}

/// The two lowest lanes of one register into one (FADDP and the like, scalar).
pub(crate) fn pair_scalar<T: Float3, F: Format>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (a, mut env) = (core.v[op.n as usize], env(core));
    let value = T::f::<F>(0, get(a, 0, F::SIZE), get(a, 1, F::SIZE), &mut env);
    core.v[op.d as usize] = lane(0, F::SIZE, value);
    raise(core, &env);
    Flow::Next
}

/// FMAXV and the like: four lanes into one, as a tree (`Reduce`).
pub(crate) fn across<T: Float3, F: Format>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (a, mut env) = (core.v[op.n as usize], env(core));
    let low = T::f::<F>(0, get(a, 0, F::SIZE), get(a, 1, F::SIZE), &mut env);
    let high = T::f::<F>(0, get(a, 2, F::SIZE), get(a, 3, F::SIZE), &mut env);
    core.v[op.d as usize] = lane(0, F::SIZE, T::f::<F>(0, low, high, &mut env));
    raise(core, &env);
    Flow::Next
}

/// FMADD, FMSUB, FNMADD, FNMSUB: the addend is `op.a`. `ADDEND` and `PRODUCT` say what is negated.
pub(crate) fn fused<F: Format, const ADDEND: bool, const PRODUCT: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let read = |r: u8| get(core.v[r as usize], 0, F::SIZE);
    let (mut c, mut a, b) = (read(op.a), read(op.n), read(op.m));
    if ADDEND {
        c = fp::neg::<F>(c);
    }
    if PRODUCT {
        a = fp::neg::<F>(a);
    }
    let mut env = env(core);
    core.v[op.d as usize] = lane(0, F::SIZE, fp::mul_add::<F>(c, a, b, &mut env));
    raise(core, &env);
    Flow::Next
}
