//! What generated code and the engine share while code runs.

use super::NativePage;
use crate::core::Core;

/// The base register of generated code points this far behind the start of [`Core::r`], so that the guest's registers
/// are within the reach of short displacements.
pub(super) const CORE_BIAS: usize = 128;

/// One run of generated code. RBX is `core` with its bias, R12 points here, R13, R14 and R15 are `page`, `entries` and
/// `page_va`, RBP is `left`.
#[repr(C)]
pub(super) struct Run {
    /// The vCPU.
    pub(super) core: *mut Core,
    /// What handlers get: a `Ctx`, whose lifetime cannot be named here.
    pub(super) ctx: *mut (),
    /// Where [`Core::r`] is, and [`CORE_BIAS`].
    pub(super) registers: *mut u8,
    /// The page that executes. Generated code knows that its table comes first.
    pub(super) page: *const NativePage,
    /// The fast path's entries of the present data view.
    pub(super) entries: *const u8,
    /// The fast path's entries of the present code view.
    pub(super) code_entries: *const u8,
    /// Virtual address of the page that executes.
    pub(super) page_va: u64,
    /// Instructions that may still execute, as of the last exit.
    pub(super) left: i64,
    /// Calls the handler of an op.
    pub(super) slow: extern "C" fn(*mut Run, u32, i64) -> bool,
    /// Finds the code of a virtual address in another page.
    pub(super) cross: extern "C" fn(*mut Run, u64) -> usize,
    /// Where to go on when there is none.
    pub(super) exit: usize,
    /// What a table holds where there is no code.
    pub(super) uncompiled: u32,
    /// `left` at the start.
    pub(super) budget: i64,
    /// [`Core::retired`] at the start.
    pub(super) retired: u64,
    /// The exit was one after which interrupts, or the run's end, are to be looked at.
    pub(super) boundary: bool,
}

impl Run {
    /// Instructions since power-on when `left` are left.
    pub(super) fn retired(&self, left: i64) -> u64 {
        self.retired.wrapping_add(self.budget.wrapping_sub(left) as u64)
    }
}
