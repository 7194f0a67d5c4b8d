//! Instructions whose results are half as wide as their sources.

use super::lane_ops::shift_right;
use super::{check_enabled, get, lane, saturate, saturate_small, saturated, signed};
use crate::core::{Core, Ctx, Flow, Op};

/// Puts `N` narrow lanes where the form says: `op.a` is 0 for the lower half (the upper becomes zero), 1 for the upper
/// half (the lower stays), 2 for one scalar lane.
#[inline(always)]
fn narrow<const B: u32>(core: &mut Core, op: &Op, f: impl Fn(u32, &mut bool) -> u64) {
    let lanes = if op.a == 2 { 1 } else { 64 / B };
    let (mut result, mut q) = (0, false);
    for i in 0..lanes {
        result |= lane(i, B, f(i, &mut q));
    }
    let d = &mut core.v[op.d as usize];
    *d = if op.a == 1 { (*d & u128::from(u64::MAX)) | result << 64 } else { result };
    saturated(core, q);
}

/// ADDHN, SUBHN and their rounding forms: the upper halves of sums or differences.
pub(crate) fn high<const SUBTRACT: bool, const ROUND: bool, const B: u32>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let (a, b) = (core.v[op.n as usize], core.v[op.m as usize]);
    narrow::<B>(core, op, |i, _| {
        let (a, b) = (get(a, i, 2 * B), get(b, i, 2 * B));
        let sum = if SUBTRACT { a.wrapping_sub(b) } else { a.wrapping_add(b) };
        sum.wrapping_add(if ROUND { 1 << (B - 1) } else { 0 }) >> B
    });
    Flow::Next
}

/// What a narrowing shift or extraction does with what does not fit.
pub(crate) const TRUNCATE: u8 = 0;
/// From signed to signed.
pub(crate) const SIGNED: u8 = 1;
/// From unsigned to unsigned.
pub(crate) const UNSIGNED: u8 = 2;
/// From signed to unsigned.
pub(crate) const SIGNED_TO_UNSIGNED: u8 = 3;

/// SHRN, SQSHRN, XTN, SQXTN, …: shifts right by `op.imm` (0 for the extractions), then narrows.
pub(crate) fn shift_narrow<const MODE: u8, const ROUND: bool, const B: u32>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let (a, by) = (core.v[op.n as usize], op.imm as u32);
    narrow::<B>(core, op, |i, q| {
        let value = get(a, i, 2 * B);
        if MODE == TRUNCATE {
            // What a rounding carry loses is beyond the result.
            let round = if ROUND && by > 0 { 1 << (by - 1) } else { 0 };
            return value.wrapping_add(round) >> by;
        }
        let unsigned = MODE != SIGNED;
        if B < 32 {
            let wide = if MODE == UNSIGNED { value as i64 } else { signed(value, 2 * B) };
            let round = if ROUND && by > 0 { 1 << (by - 1) } else { 0 };
            return saturate_small((wide + round) >> by, B, unsigned, q);
        }
        let wide = if MODE == UNSIGNED { i128::from(value) } else { i128::from(signed(value, 2 * B)) };
        saturate(if by == 0 { wide } else { shift_right(wide, by, ROUND) }, B, unsigned, q)
    });
    Flow::Next
}
