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
        let ops = &page.ops[at..at + n];
        ctx.end = n;
        let (mut k, mut pc) = (0, start);
        let flow = loop {
            let Some(op) = ops.get(k) else { break Flow::Next };
            core.pc = pc;
            let flow = (op.run)(core, op, ctx);
            k += 1;
            pc = pc.wrapping_add(4);
            if flow != Flow::Next || k >= ctx.end {
                break flow;
            }
        };
        if matches!(flow, Flow::Next | Flow::Sync) {
            core.pc = pc;
        }
        count(core, start, k as u64);
        *left -= k as u64;
        if ctx.end == 0 || matches!(flow, Flow::Sync | Flow::Fault) {
            return true;
        }
        if core.pc >> 12 != here || core.pc & 3 != 0 || *left == 0 {
            return false;
        }
    }
}
