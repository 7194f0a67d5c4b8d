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
    let build = |lanes| {
        (0..lanes).fold(0, |result, i| {
            let (second, at) = from(i, lanes);
            result | lane(i, B, get(if second { b } else { a }, at, B))
        })
    };
    // The two lengths apart, so that each is unrolled.
    core.v[op.d as usize] = if op.a == 16 { build(128 / B) } else { build(64 / B) };
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
    let mut entries = [0; 64];
    for (i, chunk) in entries.chunks_mut(16).take(op.imm as usize).enumerate() {
        chunk.copy_from_slice(&core.v[(usize::from(op.n) + i) % 32].to_le_bytes());
    }
    let (indices, old) = (core.v[op.m as usize].to_le_bytes(), core.v[op.d as usize].to_le_bytes());
    let mut result = [0; 16];
    for i in 0..16 {
        let inside = u64::from(indices[i]) < 16 * op.imm;
        let outside = if KEEP { old[i] } else { 0 };
        result[i] = if inside { entries[usize::from(indices[i] & 63)] } else { outside };
    }
    core.v[op.d as usize] = u128::from_le_bytes(result) & low(op.a);
    Flow::Next
}
