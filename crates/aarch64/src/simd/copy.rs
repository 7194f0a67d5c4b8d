//! Lanes to and from lanes and general registers.

use super::{check_enabled, get, lane, low, set, signed, splat};
use crate::core::{Core, Ctx, Flow, Op};

/// DUP (element): lane `op.imm` everywhere; also the scalar form.
pub(crate) fn dup_element<const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let value = get(core.v[op.n as usize], op.imm as u32, B);
    core.v[op.d as usize] = splat(value, B) & low(op.a);
    Flow::Next
}

/// DUP (general).
pub(crate) fn dup_general<const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    core.v[op.d as usize] = splat(core.r[op.n as usize], B) & low(op.a);
    Flow::Next
}

/// INS (general): into lane `op.imm`.
pub(crate) fn ins_general<const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let d = core.v[op.d as usize];
    core.v[op.d as usize] = set(d, op.imm as u32, B, core.r[op.n as usize]);
    Flow::Next
}

/// INS (element): from lane `op.a` into lane `op.imm`.
pub(crate) fn ins_element<const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let value = get(core.v[op.n as usize], u32::from(op.a), B);
    core.v[op.d as usize] = set(core.v[op.d as usize], op.imm as u32, B, value);
    Flow::Next
}

/// UMOV: lane `op.imm`.
pub(crate) fn umov<const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    core.r[op.d as usize] = get(core.v[op.n as usize], op.imm as u32, B);
    Flow::Next
}

/// SMOV: lane `op.imm`, to 32 bits if `op.a` is 4, else to 64.
pub(crate) fn smov<const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let value = signed(get(core.v[op.n as usize], op.imm as u32, B), B) as u64;
    core.r[op.d as usize] = if op.a == 4 { value & u64::from(u32::MAX) } else { value };
    Flow::Next
}

/// FMOV from a general register to a whole one, which becomes zero above.
pub(crate) fn fmov_from_general<const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    core.v[op.d as usize] = lane(0, B, core.r[op.n as usize]);
    Flow::Next
}

/// FMOV (register).
pub(crate) fn fmov<const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    core.v[op.d as usize] = lane(0, B, get(core.v[op.n as usize], 0, B));
    Flow::Next
}
