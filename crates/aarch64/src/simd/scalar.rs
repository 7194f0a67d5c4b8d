//! Scalar FP that sets flags or selects.

use super::{check_enabled, env, get, lane, raise};
use crate::core::{Core, Ctx, Flow, Op};
use crate::exec::holds;
use crate::fp::{self, Format};

/// FCMP and FCMPE. `op.a` is 1 for a comparison with zero.
pub(crate) fn fcmp<F: Format, const SIGNAL: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let mut env = env(core);
    let a = get(core.v[op.n as usize], 0, F::SIZE);
    let b = if op.a == 1 { 0 } else { get(core.v[op.m as usize], 0, F::SIZE) };
    core.nzcv = fp::compare::<F>(a, b, SIGNAL, &mut env);
    raise(core, &env);
    Flow::Next
}

/// FCCMP and FCCMPE: `op.a` is the condition, `op.imm` the flags when it does not hold.
pub(crate) fn fccmp<F: Format, const SIGNAL: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    if !holds(core.nzcv, u32::from(op.a)) {
        core.nzcv = op.imm as u32;
        return Flow::Next;
    }
    let mut env = env(core);
    let (a, b) = (core.v[op.n as usize], core.v[op.m as usize]);
    core.nzcv = fp::compare::<F>(get(a, 0, F::SIZE), get(b, 0, F::SIZE), SIGNAL, &mut env);
    raise(core, &env);
    Flow::Next
}

/// FCSEL: `op.a` is the condition.
pub(crate) fn fcsel<const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let from = if holds(core.nzcv, u32::from(op.a)) { op.n } else { op.m };
    core.v[op.d as usize] = lane(0, B, get(core.v[from as usize], 0, B));
    Flow::Next
}
