//! The fast engine: decoded pages, and straight runs of ops within them.

use super::code::Page;
use super::fetch;
use crate::core::{Core, Ctx, Flow, Place};

/// Runs until something happened that interrupts or the run's end depend on, or `left` instructions.
pub(super) fn run(core: &mut Core, ctx: &mut Ctx<'_>, mut left: u64) {
    core.set_pc(core.pc);
    while left > 0 && !run_one_page(core, ctx, &mut left) {}
}

/// Runs until control leaves the page that it is in (`false`), or as [`run`] (`true`).
pub(super) fn run_one_page(core: &mut Core, ctx: &mut Ctx<'_>, left: &mut u64) -> bool {
    let Some(index) = fetch(core, ctx) else { return true };
    // A page whose decoded instructions are there is watched already.
    let mut page = match ctx.shared.code.take(index) {
        Some(page) => page,
        None => {
            ctx.shared.watch_code(core, index);
            ctx.shared.code.make(index)
        }
    };
    let boundary = run_page(core, ctx, &mut page, index, left);
    ctx.shared.code.put(page);
    boundary
}

/// Instructions after which a chain of ops comes back here, whatever it does, so that it is never deeper than this even
/// where calls at a function's end are not made jumps.
const CHUNK: u64 = 1024;

/// Runs in one page until control leaves it (`false`) or there is something to check (`true`).
pub(super) fn run_page(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    page: &mut Page,
    index: usize,
    left: &mut u64,
) -> bool {
    let here = core.pc >> 12;
    loop {
        let at = (core.pc >> 2) as usize % page.ops.len();
        let chunk = (*left).min(CHUNK) as usize;
        let n = (page.ops.len() - at).min(chunk);
        let ops = &page.ops[at..at + n];
        let Some(first) = ops.first() else { return false };
        let end_pc = core.pc.wrapping_add(4 * n as u64);
        let place = Place { page: Some(page), end_pc, after: chunk - n, left: 0 };
        let (flow, ended, Place { end_pc, after, left: behind, .. }) = {
            let mut ctx =
                Ctx { platform: &mut *ctx.platform, shared: &mut *ctx.shared, ended: false, at: place };
            ((first.chain)(core, ops, &mut ctx), ctx.ended, ctx.at)
        };
        let done = (chunk - after - behind) as u64;
        if done == 0 {
            page.decode(at, &ctx.shared.ram, index, &ctx.shared.features);
            continue;
        }
        // Where control would be without the jump, which took no time.
        let behind = end_pc.wrapping_sub(4 * behind as u64);
        if matches!(flow, Flow::Next | Flow::Sync) {
            core.pc = behind;
        }
        core.moved(behind);
        *left -= done;
        if ended || matches!(flow, Flow::Sync | Flow::Fault) {
            return true;
        }
        if core.pc >> 12 != here || core.pc & 3 != 0 || *left == 0 {
            return false;
        }
    }
}
