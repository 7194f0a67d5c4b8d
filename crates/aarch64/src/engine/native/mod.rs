//! The native engine: code of the host, made from decoded pages that executed a few times.
//!
//! Code is made of basic blocks. Each begins by taking its length from the budget, or leaves when that is not enough: an
//! instruction is executed in a block as a whole or by the block engine. Frequent instructions have templates; the
//! others call their handlers, as do the templates where their fast path does not serve. Jumps within a page go straight
//! to their target, once it has code; to another page they look it up by the same fast path that fetches use.
#![allow(unsafe_code)]

mod asm;
mod buffer;
mod compile;
mod state;
mod template;
mod thunks;

use std::mem::offset_of;
use std::ptr::from_mut;

use self::buffer::Buffer;
use self::state::{CORE_BIAS, Run};
use self::thunks::Thunks;
use super::code::Page;
pub(super) use super::code::WORDS;
use super::{block, fetch};
use crate::core::{Core, Ctx, Flow};
use crate::mmu;

/// Code of one page.
#[repr(C)]
pub(super) struct NativePage {
    /// Where that of each instruction is. Code is in the lowest 4 GiB.
    table: [u32; WORDS],
    /// Jumps to instructions that had no code when they were made: which, and where the jump's distance is.
    open: Vec<(u16, u32)>,
    /// Where the decoded page is kept.
    slot: usize,
}

/// All code that was made, and what it is entered and left by.
pub(super) struct Native {
    buffer: Buffer,
    thunks: Thunks,
}

/// Instructions that the block engine executes before it looks again whether there is code.
const COLD_RUN: u64 = 128;

impl Native {
    /// `None` where the host does not let a program make code.
    pub(super) fn new() -> Option<Self> {
        let mut buffer = Buffer::new()?;
        let thunks = Thunks::new(&mut buffer)?;
        Some(Self { buffer, thunks })
    }

    /// Lets a table name no code any more.
    pub(super) fn empty(&self, page: &mut NativePage) {
        page.table = [self.thunks.uncompiled; WORDS];
    }

    /// Forgets all code. No table may name any of it any more.
    pub(super) fn clear(&mut self) {
        self.buffer.truncate(self.thunks.end);
    }

    /// Makes the code of a page from word `at` on. `false`: there is no space left.
    fn compile(&mut self, page: &mut Page, slot: usize, at: usize) -> bool {
        let native = page.native.get_or_insert_with(|| {
            Box::new(NativePage { table: [self.thunks.uncompiled; WORDS], open: Vec::new(), slot })
        });
        compile::compile(&mut self.buffer, &self.thunks, &page.ops, &page.decoded, native, at)
    }

    /// Where the code of word `at` is.
    fn entry(&self, page: &NativePage, at: usize) -> Option<usize> {
        let entry = page.table[at % WORDS];
        (entry != self.thunks.uncompiled).then_some(entry as usize)
    }
}

/// Runs until something happened that interrupts or the run's end depend on, or `left` instructions.
pub(super) fn run(core: &mut Core, ctx: &mut Ctx<'_>, mut left: u64, after: u32) {
    core.set_pc(core.pc);
    while left > 0 {
        let Some(index) = fetch(core, ctx) else { return };
        let before = left;
        if let Some(entry) = find(core, ctx, index, after) {
            if run_native(core, ctx, &mut left, (index, entry)) {
                return;
            }
            if left != before {
                continue;
            }
        }
        // Cold code, or a block that is longer than what is left.
        let mut page = match ctx.shared.code.take(index) {
            Some(page) => page,
            None => {
                ctx.shared.watch_code(core, index);
                ctx.shared.code.make(index)
            }
        };
        page.entered = page.entered.saturating_add(1);
        let mut some = left.min(COLD_RUN);
        left -= some;
        let boundary = block::run_page(core, ctx, &mut page, index, &mut some);
        left += some;
        ctx.shared.code.put(page);
        if boundary {
            return;
        }
    }
}

/// The code at `pc`, which is in the page of RAM with that index. It is made if the page is warm.
fn find(core: &Core, ctx: &mut Ctx<'_>, index: usize, after: u32) -> Option<usize> {
    let at = (core.pc >> 2) as usize % WORDS;
    ctx.shared.code.free_tables();
    // Not where each fetch is looked at.
    if !mmu::plain_fetches(core) {
        return None;
    }
    let (slot, page, native) = ctx.shared.code.warm(index, after)?;
    if let Some(entry) = page.native.as_deref().and_then(|page| native.entry(page, at)) {
        return Some(entry);
    }
    if !page.decoded[at] {
        page.decode(at, &ctx.shared.ram, index, &ctx.shared.features);
    }
    if !native.compile(page, slot, at) {
        ctx.shared.code.forget_native();
        return None;
    }
    page.native.as_deref().and_then(|page| native.entry(page, at))
}

/// Runs code until it leaves. `true`: there is something to check.
fn run_native(core: &mut Core, ctx: &mut Ctx<'_>, left: &mut u64, (index, entry): (usize, usize)) -> bool {
    let code = &mut ctx.shared.code;
    let Some(Thunks { enter, exit, uncompiled, .. }) = code.native().map(|native| native.thunks) else {
        return false;
    };
    let tables = code.tables_freed();
    let Some(page) = code.execute(index) else { return false };
    let code_entries = core.mmu.code_entries(tables);
    if mmu::fetch_fast(core, core.pc).is_some() {
        core.mmu.set_table(core.pc, page as *const NativePage as usize);
    }
    let budget = (*left).min(1 << 32) as i64;
    let mut run = Run {
        core: from_mut(core),
        ctx: std::ptr::null_mut(),
        registers: std::ptr::null_mut(),
        page,
        entries: core.mmu.data_entries(),
        code_entries,
        page_va: core.pc & !0xfff,
        left: budget,
        slow,
        cross,
        exit,
        uncompiled,
        budget,
        retired: core.retired(),
        boundary: false,
    };
    ctx.ended = false;
    run.ctx = from_mut(ctx).cast();
    run.registers = run.core.cast::<u8>().wrapping_add(offset_of!(Core, r) + CORE_BIAS);
    // SAFETY: `enter` was made by `Thunks` to be called like this, and `entry` is code that was made since the buffer was
    // last cleared: a page's table does not outlive that. The code reaches through `run` what is borrowed here
    // exclusively, and nothing here touches that before it returns.
    unsafe { (std::mem::transmute::<usize, extern "C" fn(*mut Run, usize)>(enter))(&raw mut run, entry) };
    ctx.shared.code.done();
    *left -= (budget - run.left) as u64;
    core.retired_base = run.retired(run.left);
    core.straight = core.pc;
    run.boundary
}

/// Calls the handler of word `index` of the page that executes, `left` instructions before the end of the budget. `true`:
/// generated code is to leave, and everything is in its place.
extern "C" fn slow(run: *mut Run, index: u32, left: i64) -> bool {
    // SAFETY: generated code passes the `Run` that it was entered with, whose pointers are those of `run_native`'s own
    // exclusive references; that one waits, and generated code holds no references.
    let (run, core, ctx) = unsafe { (&mut *run, &mut *(*run).core, &mut *(*run).ctx.cast::<Ctx<'_>>()) };
    let pc = run.page_va.wrapping_add(4 * u64::from(index));
    core.pc = pc;
    core.retired_base = run.retired(left);
    core.straight = pc;
    // A copy: what the handler does may drop the page.
    // SAFETY: tables are freed only while no generated code runs.
    let slot = unsafe { (*run.page).slot };
    let Some(op) = ctx.shared.code.op(slot, index as usize) else { return leave(run, left, true) };
    let flow = (op.run)(core, &op, ctx);
    if flow == Flow::Next && !ctx.ended {
        run.entries = core.mmu.data_entries();
        return false;
    }
    if matches!(flow, Flow::Next | Flow::Sync) {
        core.pc = pc.wrapping_add(4);
    }
    leave(run, left - 1, ctx.ended || matches!(flow, Flow::Sync | Flow::Fault))
}

fn leave(run: &mut Run, left: i64, boundary: bool) -> bool {
    run.left = left;
    run.boundary = boundary;
    true
}

/// Where to go on for `va`, which is not in the page that executes: its code, if the fast path of fetches finds the page
/// and there is some; or out.
extern "C" fn cross(run: *mut Run, va: u64) -> usize {
    // SAFETY: as in `slow`.
    let (run, core, ctx) = unsafe { (&mut *run, &mut *(*run).core, &mut *(*run).ctx.cast::<Ctx<'_>>()) };
    if let Some(pa) = mmu::fetch_fast(core, va) {
        let index = ((pa - ctx.shared.ram.base()) >> 12) as usize;
        if let Some(page) = ctx.shared.code.execute(index) {
            let entry = page.table[(va >> 2) as usize % WORDS];
            if entry != run.uncompiled {
                (run.page, run.page_va) = (page, va & !0xfff);
                core.mmu.set_table(va, page as *const NativePage as usize);
                return entry as usize;
            }
        }
    }
    core.pc = va;
    run.exit
}
