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
    run_pieces(core, ctx, budget, |core, ctx, left| {
        match kind {
            EngineKind::Step => step::run(core, ctx, left),
            EngineKind::Block => block::run(core, ctx, left),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            EngineKind::Native { after } => native::run(core, ctx, left, after),
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            EngineKind::Native { .. } => block::run(core, ctx, left),
        }
        None
    })
}

/// As [`run`], and ends with [`Exit::Yield`] before the instruction at `pc`, unless that is the first one. It is slow only in that
/// instruction's page.
pub(crate) fn run_to(core: &mut Core, ctx: &mut Ctx<'_>, budget: u64, pc: u64) -> Exit {
    run_pieces(core, ctx, budget, |core, ctx, left| {
        let mut left = if core.pc >> 12 == pc >> 12 { 1 } else { left };
        core.set_pc(core.pc);
        block::run_one_page(core, ctx, &mut left);
        (core.pc == pc).then_some(Exit::Yield)
    })
}

/// Runs at most `budget` instructions by `piece`, which is given how many it may run up to the next boundary, and may end the
/// run unless the guest did.
#[inline(always)]
fn run_pieces(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    budget: u64,
    mut piece: impl FnMut(&mut Core, &mut Ctx<'_>, u64) -> Option<Exit>,
) -> Exit {
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
        let ended = piece(core, ctx, left);
        core.pstate.ss &= !stepping;
        if let Some(exit) = ctx.shared.exit.take().or(ended) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Features;
    use crate::testing::{RAM, Rig};

    /// A loop over two pages: X0 and X1 count.
    fn rig() -> Rig {
        let rig = Rig::new(Features::default());
        let words = [
            (0, 0x9100_0400u32),      // add x0, x0, #1
            (4, 0x1400_03ff),         // b   0x1000
            (0x1000, 0x9100_0421u32), // add x1, x1, #1
            (0x1004, 0x17ff_fbff),    // b   0
        ];
        for (at, word) in words {
            assert!(rig.shared.ram.write(RAM + at, &word.to_le_bytes()));
        }
        rig
    }

    #[test]
    fn a_run_to_an_address_stops_there_each_time_and_is_otherwise_like_any() {
        let mut rig = rig();
        let mut to = |budget, pc| {
            let (core, mut ctx) = rig.parts();
            let exit = run_to(core, &mut ctx, budget, RAM + pc);
            (exit, core.pc - RAM, core.retired())
        };
        assert_eq!(to(1000, 0x1004), (Exit::Yield, 0x1004, 3));
        assert_eq!(to(1000, 0x1004), (Exit::Yield, 0x1004, 7), "the first instruction is no arrival");
        assert_eq!(to(2, 0x1000), (Exit::Budget, 4, 9));
        assert_eq!(to(1000, 0x1000), (Exit::Yield, 0x1000, 10));
        assert_eq!(to(991, 0x2000), (Exit::Budget, 4, 1001));
        let mut other = self::rig();
        let (core, mut ctx) = other.parts();
        assert_eq!(run(core, &mut ctx, EngineKind::Step, 1001), Exit::Budget);
        assert_eq!((core.pc, core.r), (rig.core.pc, rig.core.r));
    }
}
