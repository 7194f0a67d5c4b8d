//! The reference engine: fetch, decode, execute.

use super::{count, fetch};
use crate::core::{Core, Ctx, Flow};
use crate::decode::decode;

/// Runs until something happened that interrupts or the run's end depend on, or `left` instructions.
pub(super) fn run(core: &mut Core, ctx: &mut Ctx<'_>, left: u64) {
    for _ in 0..left {
        let start = core.pc;
        core.set_pc(start);
        let Some(page) = fetch(core, ctx) else { return };
        ctx.shared.watch_code(core, page);
        let mut word = [0; 4];
        let pa = ctx.shared.ram.base() + ((page as u64) << 12 | (start & 0xffc));
        ctx.shared.ram.read(pa, &mut word);
        let op = decode(u32::from_le_bytes(word), &ctx.shared.features);
        ctx.ended = false;
        let flow = (op.run)(core, &op, ctx);
        if matches!(flow, Flow::Next | Flow::Sync) {
            core.pc = start.wrapping_add(4);
        }
        count(core, start, 1);
        if ctx.ended || matches!(flow, Flow::Sync | Flow::Fault) {
            return;
        }
    }
}
