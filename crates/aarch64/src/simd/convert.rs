//! Conversions between formats and between FP and general registers; integer estimates.

use super::float_lanes::rounding;
use super::{check_enabled, env, get, half, lane, raise};
use crate::core::{Core, Ctx, Flow, Op};
use crate::fp::{self, Double, Format, Single};

/// FCVT: from one format to another.
pub(crate) fn fcvt<S: Format, D: Format>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let mut env = env(core);
    let value = fp::convert::<S, D>(get(core.v[op.n as usize], 0, S::SIZE), &mut env);
    core.v[op.d as usize] = lane(0, D::SIZE, value);
    raise(core, &env);
    Flow::Next
}

/// FCVTL: the lower or, if `op.imm`, the upper half to the next larger format.
pub(crate) fn fcvtl<S: Format, D: Format>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (a, mut env) = (half(core.v[op.n as usize], op.imm != 0), env(core));
    let mut result = 0;
    for i in 0..128 / D::SIZE {
        result |= lane(i, D::SIZE, fp::convert::<S, D>(get(a, i, S::SIZE), &mut env));
    }
    core.v[op.d as usize] = result;
    raise(core, &env);
    Flow::Next
}

/// FCVTN: to the next smaller format, into the lower or, if `op.imm`, the upper half.
pub(crate) fn fcvtn<S: Format, D: Format>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (a, mut env) = (core.v[op.n as usize], env(core));
    let mut result = 0;
    for i in 0..128 / S::SIZE {
        result |= lane(i, D::SIZE, fp::convert::<S, D>(get(a, i, S::SIZE), &mut env));
    }
    narrow(core, op, result);
    raise(core, &env);
    Flow::Next
}

/// FCVTXN: doubles to singles, rounding to odd. `op.a` is the number of lanes; a scalar is one.
pub(crate) fn fcvtxn(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (a, mut env) = (core.v[op.n as usize], env(core));
    let mut result = 0;
    for i in 0..u32::from(op.a) {
        result |= lane(i, 32, fp::convert_odd::<Double, Single>(get(a, i, 64), &mut env));
    }
    narrow(core, op, result);
    raise(core, &env);
    Flow::Next
}

/// Writes 64 bits to the lower half, clearing the upper, or to the upper, keeping the lower.
#[inline(always)]
fn narrow(core: &mut Core, op: &Op, result: u128) {
    let d = &mut core.v[op.d as usize];
    *d = if op.imm != 0 { half(*d, false) | result << 64 } else { result };
}

/// FCVT*: to a general register of `SIZE` bits, with `op.imm` bits after the point.
pub(crate) fn to_general<F: Format, const MODE: u8, const UNSIGNED: bool, const SIZE: u32>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let (a, mut env) = (get(core.v[op.n as usize], 0, F::SIZE), env(core));
    let mode = rounding::<MODE>(&env);
    core.r[op.d as usize] = fp::to_fixed::<F>(a, SIZE, op.imm as u32, UNSIGNED, mode, &mut env);
    raise(core, &env);
    Flow::Next
}

/// SCVTF and UCVTF from a general register of `SIZE` bits, with `op.imm` bits after the point.
pub(crate) fn from_general<F: Format, const UNSIGNED: bool, const SIZE: u32>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let mut env = env(core);
    let value = fp::from_fixed::<F>(core.r[op.n as usize], SIZE, op.imm as u32, UNSIGNED, &mut env);
    core.v[op.d as usize] = lane(0, F::SIZE, value);
    raise(core, &env);
    Flow::Next
}

/// URECPE and URSQRTE.
pub(crate) fn unsigned_estimate<const ROOT: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let a = core.v[op.n as usize];
    let mut result = 0;
    for i in 0..u32::from(op.a) / 4 {
        let value = get(a, i, 32) as u32;
        let estimate = if ROOT { fp::unsigned_rsqrt(value) } else { fp::unsigned_recip(value) };
        result |= lane(i, 32, u64::from(estimate));
    }
    core.v[op.d as usize] = result;
    Flow::Next
}
