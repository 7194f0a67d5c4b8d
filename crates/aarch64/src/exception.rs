//! Exceptions (placeholder).

use crate::core::{Core, Ctx, Flow};

/// Undefined Instruction exception at `pc`.
pub fn undefined(_core: &mut Core, _ctx: &mut Ctx<'_>) -> Flow {
    Flow::Fault
}

/// Illegal Execution State exception at `pc`.
pub fn illegal_state(_core: &mut Core, _ctx: &mut Ctx<'_>) -> Flow {
    Flow::Fault
}

/// Takes a pending and unmasked interrupt.
pub fn take_pending_interrupt(_core: &mut Core, _ctx: &mut Ctx<'_>) {}
