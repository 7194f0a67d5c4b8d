//! Bitwise instructions and modified immediates: whole vectors at once.

use super::{check_enabled, low};
use crate::core::{Core, Ctx, Flow, Op};

macro_rules! bitwise {
    ($($(#[$doc:meta])* $name:ident |$d:pat_param, $n:ident, $m:pat_param| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
            check_enabled!(core, ctx);
            let ($d, $n, $m) = (core.v[op.d as usize], core.v[op.n as usize], core.v[op.m as usize]);
            core.v[op.d as usize] = $body & low(op.a);
            Flow::Next
        }
    )*};
}

bitwise! {
    /// AND.
    and |_, n, m| n & m;
    /// BIC.
    bic |_, n, m| n & !m;
    /// ORR, and so MOV.
    orr |_, n, m| (n | m);
    /// ORN.
    orn |_, n, m| (n | !m);
    /// EOR.
    eor |_, n, m| (n ^ m);
    /// BSL: the destination selects.
    bsl |d, n, m| ((n & d) | (m & !d));
    /// BIT: inserts where the second source has ones.
    bit |d, n, m| ((n & m) | (d & !m));
    /// BIF: inserts where the second source has noughts.
    bif |d, n, m| ((n & !m) | (d & m));
    /// NOT.
    not |_, n, _| !n;
}

#[inline(always)]
fn both(op: &Op) -> u128 {
    u128::from(op.imm) << 64 | u128::from(op.imm)
}

/// MOVI, MVNI and FMOV (vector, immediate): `op.imm` in both halves.
pub(crate) fn movi(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    core.v[op.d as usize] = both(op) & low(op.a);
    Flow::Next
}

/// ORR (vector, immediate).
pub(crate) fn orr_immediate(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    core.v[op.d as usize] = (core.v[op.d as usize] | both(op)) & low(op.a);
    Flow::Next
}

/// BIC (vector, immediate).
pub(crate) fn bic_immediate(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    core.v[op.d as usize] = core.v[op.d as usize] & !both(op) & low(op.a);
    Flow::Next
}
