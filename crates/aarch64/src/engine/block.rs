//! The fast engine: decoded pages, and straight runs of ops within them.

use super::code::Page;
use super::{count, fetch};
use crate::core::{Core, Ctx, Flow};

/// Runs until something happened that interrupts or the run's end depend on, or `left` instructions.
pub(super) fn run(core: &mut Core, ctx: &mut Ctx<'_>, mut left: u64) {
    core.set_pc(core.pc);
    while left > 0 {
        let Some(index) = fetch(core, ctx) else { return };
        let mut page = ctx.shared.code.take(index);
        let boundary = run_page(core, ctx, &mut page, index, &mut left);
        ctx.shared.code.put(index, page);
        if boundary {
            return;
        }
    }
}

/// Runs in one page until control leaves it (`false`) or there is something to check (`true`).
fn run_page(core: &mut Core, ctx: &mut Ctx<'_>, page: &mut Page, index: usize, left: &mut u64) -> bool {
    let here = core.pc >> 12;
    loop {
        let start = core.pc;
        let at = (start >> 2) as usize % page.ops.len();
        let straight = match page.straight[at] {
            0 => page.decode(at, &ctx.shared.ram, index, &ctx.shared.features),
            n => n as usize,
        };
        let n = straight.min(usize::try_from(*left).unwrap_or(usize::MAX));
        let Some((first, rest)) = page.ops[at..at + n].split_first() else { return false };
        ctx.ended = false;
        ctx.end_pc = start.wrapping_add(4 * n as u64);
        let flow = (first.chain)(core, first, rest, ctx);
        let done = (n - ctx.left) as u64;
        if matches!(flow, Flow::Next | Flow::Sync) {
            core.pc = start.wrapping_add(4 * done);
        }
        count(core, start, done);
        *left -= done;
        if ctx.ended || matches!(flow, Flow::Sync | Flow::Fault) {
            return true;
        }
        if core.pc >> 12 != here || core.pc & 3 != 0 || *left == 0 {
            return false;
        }
    }
}
