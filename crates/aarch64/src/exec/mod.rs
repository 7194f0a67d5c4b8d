//! What instructions do.

use crate::core::{Core, Ctx, Flow, Op};
use crate::exception;

/// The Undefined Instruction exception.
pub(crate) fn undefined(core: &mut Core, _op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    exception::undefined(core, ctx)
}

/// Whether control never falls through: an unconditional branch, or an exception-generating instruction.
pub(crate) const fn ends_straight(word: u32) -> bool {
    word & 0x7c00_0000 == 0x1400_0000
        || word & 0xfe00_0000 == 0xd600_0000
        || word & 0xff00_0000 == 0xd400_0000
}
