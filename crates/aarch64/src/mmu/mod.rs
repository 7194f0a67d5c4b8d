//! The MMU: how data accesses and instruction fetches reach memory (DDI 0487 D8).
//!
//! [`load`] and [`store`] are the fast path: one compare, then a copy. Whatever that does not serve (no key, another
//! page, a device, a watched page, a fault) is in `access`, and the translation itself in `translate`.

mod access;
mod host;
#[cfg(test)]
mod tests;
mod tlb;
mod translate;

use serde::{Deserialize, Serialize};

pub use self::access::{Maintenance, maintain, physical, physical_update, zero_block};
pub use self::host::Prim;
pub(crate) use self::host::layout;
pub use self::translate::address_translate;
pub use crate::exception::Fault;

use self::host::Fast;
use self::tlb::{ByAddress, Tlb, View};
use self::translate::Want;
use crate::core::{Core, Ctx, Pstate};
use crate::exception;
use crate::platform::SysKey;
use crate::sys::{SysRegs, debug, sctlr};

/// What kind of access an instruction makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// An ordinary one: unaligned addresses are fine in Normal memory, unless SCTLR_ELx.A says otherwise.
    Normal,
    /// LDTR and STTR: with EL0's permissions. Alignment as for `Normal`.
    Unpriv,
    /// Load-acquire and store-release: always aligned.
    Ordered,
    /// Exclusive: always aligned, and RAM only.
    Exclusive,
    /// Atomic read-modify-write: always aligned, and RAM only.
    Atomic,
}

impl AccessKind {
    /// Whether an unaligned address is an Alignment fault whatever the memory and SCTLR_ELx.A.
    #[inline(always)]
    pub const fn aligned(self) -> bool {
        matches!(self, AccessKind::Ordered | AccessKind::Exclusive | AccessKind::Atomic)
    }
}

/// Translation state of one vCPU. Cached translations are architectural; the fast path's keys follow from them and are
/// neither compared nor part of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mmu {
    tlb: Tlb,
    /// TCR_EL1.TBI0 and TBI1.
    tbi: [bool; 2],
    /// TLBIs that affected this vCPU, for statistics and for whoever keeps something derived from translations.
    pub invalidations: u64,
    #[serde(skip)]
    fast: Fast,
}

impl PartialEq for Mmu {
    fn eq(&self, other: &Self) -> bool {
        (&self.tlb, self.tbi, self.invalidations) == (&other.tlb, other.tbi, other.invalidations)
    }
}

impl Default for Mmu {
    fn default() -> Self {
        Self::new()
    }
}

impl Mmu {
    /// Reset state: nothing cached.
    pub fn new() -> Self {
        Self { tlb: Tlb::new(), tbi: [false; 2], invalidations: 0, fast: Fast::default() }
    }

    /// Where the tags of the fast path are, in bytes, for generated code.
    pub(crate) const TAGS: usize = std::mem::offset_of!(Mmu, fast) + layout::TAGS;

    /// The fast path's entries of the present data view, for generated code. They stay where they are.
    pub(crate) fn data_entries(&self) -> *const u8 {
        self.fast.data_entries()
    }

    /// The fast path's entries of the present code view, for generated code, in which no table is that was taken away
    /// before the `tables`-th time.
    pub(crate) fn code_entries(&mut self, tables: u64) -> *const u8 {
        if self.fast.tables != tables {
            self.fast.tables = tables;
            self.fast.drop_tables();
        }
        self.fast.code_entries()
    }

    /// Generated code for the page that `pc` is in has its table here. [`fetch_fast`] serves `pc`.
    pub(crate) fn set_table(&mut self, pc: u64, table: usize) {
        self.fast.set_table(pc, table);
    }

    /// Turns to the permissions of another exception level, stack pointer or PAN.
    pub fn set_view(&mut self, pstate: &Pstate) {
        self.fast.data = data_view(pstate, AccessKind::Normal);
        self.fast.unprivileged = data_view(pstate, AccessKind::Unpriv);
        self.fast.code = code_view(pstate);
        if !self.fast.ready {
            self.tlb.refresh(&mut self.fast);
        }
    }

    /// SCTLR_EL1, TCR_EL1 or MAIR_EL1 was written: all that they shaped is forgotten.
    pub fn controls_changed(&mut self, sys: &SysRegs) {
        self.tbi = [sys.tcr_el1 >> 37 & 1 != 0, sys.tcr_el1 >> 38 & 1 != 0];
        self.tlb.invalidate_all(&mut self.fast);
        self.tables_changed(sys);
    }

    /// TTBR0_EL1 or TTBR1_EL1 was written: what is cached stays, tagged with its ASID.
    pub fn tables_changed(&mut self, sys: &SysRegs) {
        self.tlb.select(&mut self.fast, translate::current_asid(sys));
    }

    /// Every access must take the slow path once: many pages became watched, or watchpoints may have to see accesses.
    pub fn drop_all_keys(&mut self) {
        self.fast.drop_all();
    }

    /// Accesses to the RAM page at `pa` must take the slow path from now on, as its watch `flags` say.
    pub fn drop_keys(&mut self, pa: u64, flags: u8) {
        self.fast.drop_keys(pa, flags);
    }

    /// Another vCPU's TLBI, already checked there, with its operand.
    pub fn broadcast_tlbi(&mut self, sys: &SysRegs, op: SysKey, operand: u64) {
        self.invalidate(sys, op, operand);
    }

    /// TLBI at EL1: `op` tells which by its op2, as the local and the Inner Shareable forms agree.
    pub fn invalidate(&mut self, sys: &SysRegs, op: SysKey, operand: u64) {
        self.invalidations = self.invalidations.wrapping_add(1);
        let asid = translate::asid_bits(sys, operand >> 48);
        let va = operand << 12 & 0x00ff_ffff_ffff_f000;
        match op.0 & 7 {
            0 => self.tlb.invalidate_all(&mut self.fast),
            2 => self.tlb.invalidate_asid(&mut self.fast, asid, translate::current_asid(sys)),
            which => {
                // VAE1 and VALE1 name an ASID, VAAE1 and VAALE1 do not.
                let asid = (which & 3 == 1).then_some(asid);
                let page_bits = translate::page_bits(sys, va);
                self.tlb.invalidate_address(&mut self.fast, ByAddress { va, asid }, page_bits);
            }
        }
    }

    /// Where a branch to `va` goes: with a tag that the present translation regime ignores, to the canonical address.
    #[inline(always)]
    pub fn branch_target(&self, va: u64) -> u64 {
        if va == ((va << 8) as i64 >> 8) as u64 { va } else { self.untagged(va) }
    }

    #[cold]
    fn untagged(&self, va: u64) -> u64 {
        let upper = va >> 55 & 1 != 0;
        if self.tbi[usize::from(upper)] { ((va << 8) as i64 >> 8) as u64 } else { va }
    }
}

/// [`Mmu::branch_target`].
#[inline(always)]
pub fn branch_target(core: &Core, va: u64) -> u64 {
    core.mmu.branch_target(va)
}

/// Whose permissions a data access has.
fn data_view(p: &Pstate, kind: AccessKind) -> View {
    if p.el == 0 || (kind == AccessKind::Unpriv && !p.uao) {
        View::UserData
    } else if p.pan {
        View::KernelPanData
    } else {
        View::KernelData
    }
}

fn code_view(p: &Pstate) -> View {
    if p.el == 0 { View::UserCode } else { View::KernelCode }
}

/// The physical address of an exclusive access, if the fast path serves it.
#[inline(always)]
pub(crate) fn try_physical(core: &Core, va: u64, size: u8, write: bool) -> Option<u64> {
    let fast = &core.mmu.fast;
    if va & (u64::from(size) - 1) != 0 { None } else { fast.physical(fast.data, va, write) }
}

/// Loads from a virtual address if the fast path serves it.
#[inline(always)]
pub(crate) fn try_load<T: Prim>(core: &Core, va: u64, kind: AccessKind) -> Option<T> {
    let fast = &core.mmu.fast;
    let view = if matches!(kind, AccessKind::Unpriv) { fast.unprivileged } else { fast.data };
    if kind.aligned() && va & (T::SIZE - 1) != 0 { None } else { fast.load(view, va) }
}

/// Stores to a virtual address if the fast path serves it.
#[inline(always)]
pub(crate) fn try_store<T: Prim>(core: &Core, va: u64, value: T, kind: AccessKind) -> bool {
    let fast = &core.mmu.fast;
    let view = if matches!(kind, AccessKind::Unpriv) { fast.unprivileged } else { fast.data };
    !(kind.aligned() && va & (T::SIZE - 1) != 0) && fast.store(view, va, value)
}

/// Loads from a virtual address.
///
/// # Errors
/// The Data Abort that was taken.
#[inline(always)]
pub fn load<T: Prim>(core: &mut Core, ctx: &mut Ctx<'_>, va: u64, kind: AccessKind) -> Result<T, Fault> {
    let fast = &core.mmu.fast;
    let view = if matches!(kind, AccessKind::Unpriv) { fast.unprivileged } else { fast.data };
    if !(kind.aligned() && va & (T::SIZE - 1) != 0)
        && let Some(value) = fast.load(view, va)
    {
        return Ok(value);
    }
    access::load_slow(core, ctx, va, kind)
}

/// Stores to a virtual address.
///
/// # Errors
/// The Data Abort that was taken; nothing was stored.
#[inline(always)]
pub fn store<T: Prim>(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    va: u64,
    value: T,
    kind: AccessKind,
) -> Result<(), Fault> {
    let fast = &core.mmu.fast;
    let view = if matches!(kind, AccessKind::Unpriv) { fast.unprivileged } else { fast.data };
    if !(kind.aligned() && va & (T::SIZE - 1) != 0) && fast.store(view, va, value) {
        return Ok(());
    }
    access::store_slow(core, ctx, va, value, kind)
}

/// Translates `pc` for execution: the physical address of the instruction, which is RAM.
///
/// # Errors
/// The exception that was taken instead of the instruction: Software Step, PC alignment, Instruction Abort, Breakpoint,
/// Illegal Execution state, in this order of priority.
#[inline(always)]
pub fn fetch(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    match fetch_fast(core, core.pc) {
        Some(pa) => Ok(pa),
        None => fetch_slow(core, ctx),
    }
}

/// The physical address of the instruction at `pc`, when nothing can be wrong with it.
#[inline(always)]
pub(crate) fn fetch_fast(core: &Core, pc: u64) -> Option<u64> {
    core.mmu.fast.fetch(pc).filter(|_| plain_fetches(core))
}

/// Whether translation is all that can be wrong with a fetch.
#[inline(always)]
pub(crate) fn plain_fetches(core: &Core) -> bool {
    !core.pstate.il && core.sys.mdscr_el1 & (debug::SS | debug::MDE) == 0
}

#[cold]
fn fetch_slow(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    if exception::step_enabled(core) && !core.pstate.ss {
        return Err(exception::software_step(core, ctx));
    }
    if core.pc & 3 != 0 {
        return Err(exception::pc_alignment(core, ctx));
    }
    let view = code_view(&core.pstate);
    let pa = match translate::translate(core, ctx, view, core.pc, Want::READ) {
        Ok(page) if ctx.shared.ram.offset(page.pa, 4).is_some() => page.pa,
        // Nothing but RAM can be executed from: an External abort.
        Ok(_) => return Err(exception::instruction_abort(core, ctx, translate::EXTERNAL)),
        Err(status) => return Err(exception::instruction_abort(core, ctx, status)),
    };
    if debug::breaking(core) && debug::breakpoint(core) {
        return Err(exception::breakpoint(core, ctx));
    }
    if core.pstate.il {
        return Err(exception::illegal_state(core, ctx));
    }
    Ok(pa)
}

/// Where `va` is as EL1's tables have it now, for who looks on: no state changes.
pub(crate) fn peek_address(core: &Core, ram: &guest_ram::GuestRam, va: u64) -> Option<u64> {
    translate::peek(&core.sys, ram, va)
}

/// Where the data at `va` is as the vCPU sees it, cached translations first, for who looks on: no state changes.
pub(crate) fn peek_data(core: &Core, ram: &guest_ram::GuestRam, va: u64) -> Option<u64> {
    let translates = core.sys.sctlr_el1 & sctlr::M != 0 && core.mmu.fast.ready;
    let view = data_view(&core.pstate, AccessKind::Normal);
    let cached = translates.then(|| core.mmu.tlb.find(view, va)).flatten();
    cached.map(|cached| cached.pa | va & 0xfff).or_else(|| peek_address(core, ram, va))
}

/// SP must be aligned where SCTLR_EL1.SA (SA0 at EL0) says so.
///
/// # Errors
/// The SP alignment fault that was taken.
#[inline(always)]
pub fn check_sp(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<(), Fault> {
    if core.r[usize::from(crate::core::SP)] & 15 != 0 {
        let check = if core.pstate.el == 0 { sctlr::SA0 } else { sctlr::SA };
        if core.sys.sctlr_el1 & check != 0 {
            return Err(exception::sp_alignment(core, ctx));
        }
    }
    Ok(())
}
