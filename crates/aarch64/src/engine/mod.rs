//! The engines.

mod block;
mod code;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod native;
mod step;

pub(crate) use code::{CodeCache, Page};

use crate::config::EngineKind;
use crate::core::{Core, Ctx};
use crate::shared::Exit;
use crate::sys::debug;
use crate::{exception, mmu};

/// Runs `core` for at most `budget` instructions; how many it was is in [`Core::retired`].
pub(crate) fn run(core: &mut Core, ctx: &mut Ctx<'_>, kind: EngineKind, budget: u64) -> Exit {
    let stop = core.retired().saturating_add(budget);
    loop {
        if core.retired() >= stop {
            return Exit::Budget;
        }
        exception::take_pending_interrupt(core, ctx);
        // Software Step and breakpoints need a boundary after each instruction.
        let stepping = exception::step_enabled(core);
        let left = if stepping || debug::breaking(core) { 1 } else { stop - core.retired() };
        core.sys.stepped_exclusive &= !stepping;
        match kind {
            EngineKind::Step => step::run(core, ctx, left),
            EngineKind::Block => block::run(core, ctx, left),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            EngineKind::Native { after } => native::run(core, ctx, left, after),
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            EngineKind::Native { .. } => block::run(core, ctx, left),
        }
        core.pstate.ss &= !stepping;
        if let Some(exit) = ctx.shared.exit.take() {
            return exit;
        }
    }
}

/// Translates `pc` for execution: the index in RAM of the page to execute from. `None`: an exception was taken, which
/// counts as an instruction.
#[inline]
fn fetch(core: &mut Core, ctx: &mut Ctx<'_>) -> Option<usize> {
    let pc = core.pc;
    if let Ok(pa) = mmu::fetch(core, ctx) {
        return Some(((pa - ctx.shared.ram.base()) >> 12) as usize);
    }
    count(core, pc, 1);
    None
}

/// Accounts for `n` instructions from `start` on, after which control is at `pc`.
#[inline]
fn count(core: &mut Core, start: u64, n: u64) {
    core.moved(start.wrapping_add(4 * n));
}
