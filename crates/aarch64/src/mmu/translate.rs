//! Translation of one address: TLB, table walk, permissions, memory type; and AT, which shows the result.

use pgtable::{
    Access, Controls, Fault as WalkFault, FaultKind, Granule, Half, Ranges, Stage1, Step, Walk, output_bits,
    table_base,
};

use guest_ram::GuestRam;

use super::host;
use super::tlb::{Cached, Filling, View, is_device};
use crate::core::{Core, Ctx};
use crate::exception::{self, DataAbort, Fault};
use crate::sys::{PA_BITS, SysRegs, debug, sctlr};

/// A fault status code, as in ISS.DFSC, ISS.IFSC and PAR_EL1.FST.
pub(super) type Status = u32;
/// Synchronous External abort, not on a walk.
pub(super) const EXTERNAL: Status = 0x10;
/// Alignment fault.
pub(super) const ALIGNMENT: Status = 0x21;
/// IMPLEMENTATION DEFINED fault: unsupported exclusive or atomic access.
pub(super) const UNSUPPORTED: Status = 0x35;
/// A watchpoint matched: no fault status code, but handled as one until the exception is taken.
pub(super) const WATCHPOINT: Status = 0x100;
/// Device-nGnRnE as a byte of MAIR_EL1: what data accesses are with the MMU off.
const DEVICE_NGNRNE: u8 = 0;
/// Normal memory, non-cacheable in both domains.
const NON_CACHEABLE: u8 = 0x44;

/// Where an access goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    /// Physical address of the exact byte.
    pub(super) pa: u64,
    /// The memory type as a byte of MAIR_EL1.
    pub(super) attr: u8,
    /// Shareability.
    pub(super) sh: u8,
}

impl Page {
    pub(super) fn is_device(&self) -> bool {
        is_device(self.attr)
    }

    fn of(e: &Cached, va: u64) -> Self {
        Self { pa: e.pa | va & 0xfff, attr: e.attr, sh: e.sh }
    }
}

/// What an access needs of a translation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// It writes; otherwise it reads or fetches.
    pub(super) write: bool,
    /// It does not mind Device memory, where everything must be aligned.
    pub(super) aligned: bool,
}

impl Want {
    /// A read or fetch.
    pub(super) const READ: Self = Self { write: false, aligned: true };
}

/// The bits of an ASID that are in use, by TCR_EL1.AS.
pub(super) fn asid_bits(sys: &SysRegs, asid: u64) -> u16 {
    let mask = if sys.tcr_el1 >> 36 & 1 != 0 { 0xffff } else { 0xff };
    (asid & mask) as u16
}

/// The ASID of the TTBR that TCR_EL1.A1 selects.
pub(super) fn current_asid(sys: &SysRegs) -> u16 {
    let ttbr = if sys.tcr_el1 >> 22 & 1 != 0 { sys.ttbr1_el1 } else { sys.ttbr0_el1 };
    asid_bits(sys, ttbr >> 48)
}

/// TG0 or TG1. A reserved value is taken as 4 KiB.
fn granule(tcr: u64, upper: bool) -> Granule {
    let granule = if upper {
        Granule::from_tg1((tcr >> 30 & 3) as u8)
    } else {
        Granule::from_tg0((tcr >> 14 & 3) as u8)
    };
    granule.unwrap_or_default()
}

/// log2 of the page size of the half that `va` (bits 55:0) is in.
pub(super) fn page_bits(sys: &SysRegs, va: u64) -> u8 {
    granule(sys.tcr_el1, va >> 55 & 1 != 0).bits()
}

/// TTBRn_EL1 and TCR_EL1 as the walker wants them.
fn stage1(sys: &SysRegs, upper: bool) -> Stage1 {
    let tcr = sys.tcr_el1;
    let (tsz, ttbr) = if upper { (tcr >> 16 & 63, sys.ttbr1_el1) } else { (tcr & 63, sys.ttbr0_el1) };
    Stage1 {
        granule: granule(tcr, upper),
        // Out of range is CONSTRAINED UNPREDICTABLE between a Translation fault and the nearest value: the latter.
        tsz: (tsz as u8).clamp(16, 39),
        ttb: table_base(ttbr, false),
        oas: output_bits((tcr >> 32 & 7) as u8).min(PA_BITS),
        upper,
        ..Stage1::default()
    }
}

fn ranges(sys: &SysRegs) -> Ranges {
    let tcr = sys.tcr_el1;
    let bit = |n: u32| tcr >> n & 1 != 0;
    Ranges {
        t0sz: ((tcr & 63) as u8).clamp(16, 39),
        t1sz: ((tcr >> 16 & 63) as u8).clamp(16, 39),
        tbi0: bit(37),
        tbi1: bit(38),
        epd0: bit(7),
        epd1: bit(23),
        single: false,
    }
}

/// Walks the tables for `va`.
#[inline]
fn walk(sys: &SysRegs, ram: &GuestRam, va: u64) -> Result<pgtable::Leaf, WalkFault> {
    let upper = ranges(sys).select(va)? == Half::Upper;
    let mut step = Walk::stage1(&stage1(sys, upper), va);
    loop {
        match step {
            Step::Fetch(walk) => match host::read::<u64>(ram, walk.address()) {
                Some(descriptor) if sys.sctlr_el1 & sctlr::EE != 0 => {
                    step = walk.next(descriptor.swap_bytes())
                }
                Some(descriptor) => step = walk.next(u64::from_le(descriptor)),
                None => return Err(WalkFault::new(FaultKind::External, walk.level())),
            },
            Step::Done(leaf) => return Ok(leaf),
            Step::Fault(fault) => return Err(fault),
        }
    }
}

/// With the MMU off addresses are physical and data is Device-nGnRnE memory (DDI 0487 D8.2.12).
fn flat(sys: &SysRegs, view: View, va: u64) -> Result<Page, Status> {
    let r = ranges(sys);
    let ignore = if va >> 55 & 1 != 0 { r.tbi1 } else { r.tbi0 };
    let address = if ignore { va & (u64::MAX >> 8) } else { va };
    if address >> PA_BITS != 0 {
        return Err(u32::from(WalkFault::new(FaultKind::AddressSize, 0).status_code()));
    }
    // Instructions are Normal, write-through with SCTLR_EL1.I, else non-cacheable; all is outer shareable.
    let attr = match (view.is_code(), sys.sctlr_el1 & sctlr::I != 0) {
        (false, _) => DEVICE_NGNRNE,
        (true, true) => 0xaa,
        (true, false) => NON_CACHEABLE,
    };
    Ok(Page { pa: address, attr, sh: 2 })
}

/// Translates `va` with the permissions of `view`. An unaligned access to Device memory is an Alignment fault, which
/// comes before a Permission fault and after all others.
pub(super) fn translate(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    view: View,
    va: u64,
    want: Want,
) -> Result<Page, Status> {
    if core.sys.sctlr_el1 & sctlr::M == 0 {
        let page = flat(&core.sys, view, va)?;
        return if page.is_device() && !want.aligned { Err(ALIGNMENT) } else { Ok(page) };
    }
    if !core.mmu.fast.ready {
        core.mmu.set_view(&core.pstate);
    }
    let cached = match core.mmu.tlb.find(view, va) {
        // A cached translation that denies the access may be out of date: the fault comes from the tables.
        Some(cached) if cached.permits(want.write) => cached,
        _ => fill(core, ctx, view, va, want)?,
    };
    if cached.is_device() && !want.aligned {
        return Err(ALIGNMENT);
    }
    let sys = &core.sys;
    // Where each access is checked or swapped, the fast path has nothing to offer.
    let checked = sys.sctlr_el1 & (sctlr::A | sctlr::EE | sctlr::E0E) != 0 || debug::watching(sys);
    if view.is_code() || !checked {
        core.mmu.fast.fill(&ctx.shared.ram, view, va, &cached);
    }
    Ok(Page::of(&cached, va))
}

/// Walks, checks, and caches the translation for `view`.
fn fill(core: &mut Core, ctx: &Ctx<'_>, view: View, va: u64, want: Want) -> Result<Cached, Status> {
    let leaf = walk(&core.sys, &ctx.shared.ram, va).map_err(|fault| u32::from(fault.status_code()))?;
    let controls = Controls {
        wxn: core.sys.sctlr_el1 & sctlr::WXN != 0,
        pan: view == View::KernelPanData,
        ..Controls::default()
    };
    let access = Access { write: false, instruction: view.is_code(), privileged: view.privileged() };
    let allowed = |write| leaf.check(&Access { write, ..access }, &controls).is_ok();
    let attr = (core.sys.mair_el1 >> (8 * leaf.attr_index()) & 0xff) as u8;
    let (read, can_write) = (allowed(false), !view.is_code() && allowed(true));
    if is_device(attr) && !want.aligned {
        return Err(ALIGNMENT);
    }
    if !(if want.write { can_write } else { read }) {
        return Err(u32::from(WalkFault::new(FaultKind::Permission, leaf.level).status_code()));
    }
    let filling = Filling {
        pa: leaf.pa,
        global: !leaf.ng(),
        read,
        write: can_write,
        size: leaf.size.trailing_zeros() as u8,
        attr,
        sh: leaf.shareability(),
    };
    let mmu = &mut core.mmu;
    Ok(mmu.tlb.fill(&mut mmu.fast, view, va, filling))
}

/// Where `va` leads by the tables as they are now, for who looks on: no state changes.
pub(super) fn peek(sys: &SysRegs, ram: &GuestRam, va: u64) -> Option<u64> {
    if sys.sctlr_el1 & sctlr::M == 0 {
        return Some(va);
    }
    walk(sys, ram, va).ok().map(|leaf| leaf.pa)
}

/// AT S1E0R, S1E0W, S1E1R, S1E1W: PAR_EL1 gets the result.
///
/// # Errors
/// A synchronous External abort on the walk is taken as a Data Abort; all other faults are the result.
pub fn address_translate(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    va: u64,
    user: bool,
    write: bool,
) -> Result<(), Fault> {
    let view = if user { View::UserData } else { View::KernelData };
    const RES1: u64 = 1 << 11;
    core.sys.par_el1 = match translate(core, ctx, view, va, Want { write, aligned: true }) {
        Ok(mut page) => {
            // With SCTLR_EL1.C clear no data access is cacheable.
            if core.sys.sctlr_el1 & sctlr::C == 0 && !page.is_device() {
                page.attr = NON_CACHEABLE;
            }
            // Device and non-cacheable memory is outer shareable whatever the descriptor says.
            let sh = if page.is_device() || page.attr == NON_CACHEABLE { 2 } else { u64::from(page.sh) };
            // NS is 1: there is no Secure state.
            u64::from(page.attr) << 56 | page.pa & 0x0000_ffff_ffff_f000 | RES1 | 1 << 9 | sh << 7
        }
        Err(dfsc @ 0x14..=0x17) => {
            let abort = DataAbort { va, dfsc, write: true, maintenance: true };
            return Err(exception::data_abort(core, ctx, abort));
        }
        Err(status) => RES1 | u64::from(status) << 1 | 1,
    };
    Ok(())
}
