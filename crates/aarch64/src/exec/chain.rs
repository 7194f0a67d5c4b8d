//! How the ops of a straight run go from one to the next without coming back to the engine.
//!
//! Each op holds, beside its handler, a function that runs the handler and ends in a call of the next op's: a jump,
//! once optimised, and otherwise no deeper than a page is long. What a kind of handler cannot do, such a function
//! does not check.
#![allow(unsafe_code)]

use crate::core::{Core, Ctx, Flow, Handler, Op};

/// A handler as the engines call it.
#[derive(Clone, Copy)]
pub(crate) struct Runs {
    /// Alone.
    pub(crate) run: Handler,
    /// Within a straight run.
    pub(crate) chain: crate::core::Chain,
    /// From generated code.
    pub(crate) native: Option<Native>,
}

/// A handler, or its fast path, as generated code calls it: by the host's C calling convention. `false`: nothing was
/// done, and [`Runs::run`] is to be called.
pub(crate) type Native = extern "C" fn(&mut Core, &Op, &mut Ctx<'_>) -> bool;

/// A handler by its own type, so that code can be generated around it.
pub(crate) trait Exec: Fn(&mut Core, &Op, &mut Ctx<'_>) -> Flow + Copy + 'static {}
impl<F: Fn(&mut Core, &Op, &mut Ctx<'_>) -> Flow + Copy + 'static> Exec for F {}

/// The fast path of an access: `false` when there is more to it, with nothing done.
pub(crate) trait Try: Fn(&mut Core, &Op) -> bool + Copy + 'static {}
impl<F: Fn(&mut Core, &Op) -> bool + Copy + 'static> Try for F {}

/// The fast path of anything else, as [`Try`].
pub(crate) trait Quick: Fn(&mut Core, &Op, &mut Ctx<'_>) -> bool + Copy + 'static {}
impl<F: Fn(&mut Core, &Op, &mut Ctx<'_>) -> bool + Copy + 'static> Quick for F {}

/// The one value of a function's type, of which a caller has shown one.
#[inline(always)]
fn the<F: Copy + 'static>() -> F {
    const { assert!(size_of::<F>() == 0, "a plain function, which captures nothing") };
    // SAFETY: F has no bytes, so that nothing is read, and is inhabited: each of the functions below takes an F before
    // it names a function that comes here. F is Copy, so that there being one more means nothing.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

#[inline(always)]
fn stop(flow: Flow, rest: &[Op], ctx: &mut Ctx<'_>) -> Flow {
    ctx.at.left = rest.len();
    flow
}

#[inline(always)]
fn go_on(core: &mut Core, rest: &[Op], ctx: &mut Ctx<'_>) -> Flow {
    match rest.first() {
        Some(next) => (next.chain)(core, rest, ctx),
        None => stop(Flow::Next, rest, ctx),
    }
}

/// Makes `pc` that of the op before `rest`.
#[inline(always)]
fn locate(core: &mut Core, rest: &[Op], ctx: &Ctx<'_>) {
    core.pc = ctx.at.end_pc.wrapping_sub(4 * (rest.len() as u64 + 1));
}

/// A handler that may do anything.
pub(crate) fn any(core: &mut Core, ops: &[Op], ctx: &mut Ctx<'_>) -> Flow {
    let Some((op, rest)) = ops.split_first() else { return stop(Flow::Next, ops, ctx) };
    locate(core, rest, ctx);
    let flow = (op.run)(core, op, ctx);
    if flow != Flow::Next || ctx.ended {
        return stop(flow, rest, ctx);
    }
    go_on(core, rest, ctx)
}

/// What is in the place of an op that is not decoded: it is left for the engine to do that.
pub(crate) fn undecoded(_: &mut Core, ops: &[Op], ctx: &mut Ctx<'_>) -> Flow {
    stop(Flow::Next, ops, ctx)
}

fn run<F: Exec>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    the::<F>()(core, op, ctx)
}

fn simple_chain<F: Exec>(core: &mut Core, ops: &[Op], ctx: &mut Ctx<'_>) -> Flow {
    let Some((op, rest)) = ops.split_first() else { return stop(Flow::Next, ops, ctx) };
    the::<F>()(core, op, ctx);
    go_on(core, rest, ctx)
}

/// A handler that always answers [`Flow::Next`], and neither looks at `pc` or the time nor reaches memory or the
/// platform.
pub(crate) fn simple<F: Exec>(_: F) -> Runs {
    Runs { run: run::<F>, chain: simple_chain::<F>, native: Some(simple_native::<F>) }
}

extern "C" fn simple_native<F: Exec>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> bool {
    the::<F>()(core, op, ctx);
    true
}

fn branch_chain<F: Exec>(core: &mut Core, ops: &[Op], ctx: &mut Ctx<'_>) -> Flow {
    let Some((op, rest)) = ops.split_first() else { return stop(Flow::Next, ops, ctx) };
    locate(core, rest, ctx);
    match the::<F>()(core, op, ctx) {
        Flow::Jump => jump(core, rest, ctx),
        _ => go_on(core, rest, ctx),
    }
}

/// Goes on at `pc`, which the op before `rest` has set: directly if that is in this page.
#[inline(always)]
fn jump(core: &mut Core, rest: &[Op], ctx: &mut Ctx<'_>) -> Flow {
    let (target, behind) = (core.pc, ctx.at.end_pc.wrapping_sub(4 * rest.len() as u64));
    // `behind - 1` is in the page, `behind` may be past it.
    if let Some(page) = ctx.at.page
        && (target ^ behind.wrapping_sub(1)) >> 12 == 0
        && target & 3 == 0
    {
        let (at, chunk) = ((target >> 2) as usize % page.ops.len(), ctx.at.after + rest.len());
        let n = (page.ops.len() - at).min(chunk);
        if let Some(ops) = page.ops.get(at..at + n)
            && let Some(first) = ops.first()
        {
            core.moved(behind);
            ctx.at.after = chunk - n;
            ctx.at.end_pc = target.wrapping_add(4 * n as u64);
            return (first.chain)(core, ops, ctx);
        }
    }
    stop(Flow::Jump, rest, ctx)
}

/// A handler that looks at `pc` or jumps, but does nothing else than [`simple`] ones do.
pub(crate) fn branch<F: Exec>(_: F) -> Runs {
    Runs { run: run::<F>, chain: branch_chain::<F>, native: None }
}

fn whole_chain<F: Exec>(core: &mut Core, ops: &[Op], ctx: &mut Ctx<'_>) -> Flow {
    let Some((op, rest)) = ops.split_first() else { return stop(Flow::Next, ops, ctx) };
    locate(core, rest, ctx);
    let flow = the::<F>()(core, op, ctx);
    if flow != Flow::Next || ctx.ended {
        return stop(flow, rest, ctx);
    }
    go_on(core, rest, ctx)
}

/// A handler that may do anything, which is frequent enough to have code of its own.
pub(crate) fn whole<F: Exec>(_: F) -> Runs {
    Runs { run: run::<F>, chain: whole_chain::<F>, native: None }
}

fn access_chain<T: Try>(core: &mut Core, ops: &[Op], ctx: &mut Ctx<'_>) -> Flow {
    let Some((op, rest)) = ops.split_first() else { return stop(Flow::Next, ops, ctx) };
    if the::<T>()(core, op) { go_on(core, rest, ctx) } else { slow_access(core, ops, ctx) }
}

#[cold]
#[inline(never)]
fn slow_access(core: &mut Core, ops: &[Op], ctx: &mut Ctx<'_>) -> Flow {
    any(core, ops, ctx)
}

/// A load or store: a fast path, which does not look at `pc`, and the whole.
pub(crate) fn access<T: Try, F: Exec>(_: T, _: F) -> Runs {
    Runs { run: run::<F>, chain: access_chain::<T>, native: Some(access_native::<T>) }
}

extern "C" fn access_native<T: Try>(core: &mut Core, op: &Op, _: &mut Ctx<'_>) -> bool {
    the::<T>()(core, op)
}

extern "C" fn quick_native<T: Quick>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> bool {
    the::<T>()(core, op, ctx)
}

/// A handler that may do anything, but for what is frequent: a fast path that looks at neither `pc` nor the time, and
/// after which a straight run goes on.
pub(crate) fn quick<T: Quick, F: Exec>(_: T, _: F) -> Runs {
    Runs { run: run::<F>, chain: whole_chain::<F>, native: Some(quick_native::<T>) }
}
