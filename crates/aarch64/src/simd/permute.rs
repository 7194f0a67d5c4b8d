//! Lanes in another order.

use super::{check_enabled, get, half, lane, low};
use crate::core::{Core, Ctx, Flow, Op};

/// ZIP1 and ZIP2: interleaves the lower or upper halves.
pub(crate) fn zip<const PART: u32, const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    arrange::<B>(core, op, ctx, |i, lanes| (i % 2 != 0, i / 2 + PART * (lanes / 2)))
}

/// UZP1 and UZP2: the even or odd lanes of both.
pub(crate) fn uzp<const PART: u32, const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    arrange::<B>(core, op, ctx, |i, lanes| (i >= lanes / 2, (2 * i + PART) % lanes))
}

/// TRN1 and TRN2: the even or odd lanes of both, interleaved.
pub(crate) fn trn<const PART: u32, const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    arrange::<B>(core, op, ctx, |i, _| (i % 2 != 0, (i & !1) + PART))
}

/// Makes lane `i` from the lane that `from(i, lanes)` names: whether it is the second source's, and its index.
#[inline(always)]
fn arrange<const B: u32>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
    from: impl Fn(u32, u32) -> (bool, u32),
) -> Flow {
    check_enabled!(core, ctx);
    let (a, b) = (core.v[op.n as usize], core.v[op.m as usize]);
    let lanes = u32::from(op.a) * 8 / B;
    let mut result = 0;
    for i in 0..lanes {
        let (second, at) = from(i, lanes);
        result |= lane(i, B, get(if second { b } else { a }, at, B));
    }
    core.v[op.d as usize] = result;
    Flow::Next
}

/// REV16, REV32, REV64: the lanes of each group of `G` bits in reverse.
pub(crate) fn rev<const G: u32, const B: u32>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let a = core.v[op.n as usize];
    let mut result = 0;
    for i in 0..128 / B {
        // Lanes in a group are a power of two.
        result |= lane(i, B, get(a, i ^ (G / B - 1), B));
    }
    core.v[op.d as usize] = result & low(op.a);
    Flow::Next
}

/// EXT: 8 or 16 bytes of the two registers one after the other, from byte `op.imm`.
pub(crate) fn ext(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (a, b) = (core.v[op.n as usize], core.v[op.m as usize]);
    let by = 8 * op.imm as u32;
    core.v[op.d as usize] = if op.a == 16 {
        if by == 0 { a } else { a >> by | b << (128 - by) }
    } else {
        half((half(a, false) | b << 64) >> by, false)
    };
    Flow::Next
}

/// TBL and TBX: `op.imm` registers from `op.n` on are the table.
pub(crate) fn table<const KEEP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let (indices, old) = (core.v[op.m as usize], core.v[op.d as usize]);
    let mut result = 0;
    for i in 0..u32::from(op.a) {
        let index = get(indices, i, 8);
        let value = if index < 16 * op.imm {
            let register = (u32::from(op.n) + index as u32 / 16) % 32;
            get(core.v[register as usize], index as u32 % 16, 8)
        } else if KEEP {
            get(old, i, 8)
        } else {
            0
        };
        result |= lane(i, 8, value);
    }
    core.v[op.d as usize] = result;
    Flow::Next
}
