//! The slow path of data accesses: alignment, translation of each page, devices, watched pages, big-endian order.

use guest_ram::{CODE, LOADS, MONITOR, STORES};

use super::tlb::View;
use super::translate::{ALIGNMENT, EXTERNAL, Page, Status, UNSUPPORTED, WATCHPOINT, Want, translate};
use super::{AccessKind, Prim, data_view, host};
use crate::core::{Core, Ctx};
use crate::exception::{self, DataAbort, Fault};
use crate::platform::Traced;
use crate::sys::{ZVA_BYTES, debug, sctlr};

/// Where the bytes of one access are: in one page, or the end of one and the start of another.
struct Span {
    first: Page,
    /// The second page and how many bytes are in the first.
    second: Option<(Page, u64)>,
}

/// What an access asks for.
#[derive(Clone, Copy)]
struct Request {
    va: u64,
    size: u64,
    kind: AccessKind,
    write: bool,
}

/// A fault at an address.
type At = (u64, Status);

/// Whether data accesses at the present level are big-endian.
fn big_endian(core: &Core) -> bool {
    let bit = if core.pstate.el == 0 { sctlr::E0E } else { sctlr::EE };
    core.sys.sctlr_el1 & bit != 0
}

/// Checks alignment and translates each page.
fn locate(core: &mut Core, ctx: &mut Ctx<'_>, r: Request) -> Result<Span, At> {
    let unaligned = r.va & (r.size - 1) != 0;
    if unaligned && (r.kind.aligned() || core.sys.sctlr_el1 & sctlr::A != 0) {
        return Err((r.va, ALIGNMENT));
    }
    let view = data_view(&core.pstate, r.kind);
    let want = Want { write: r.write, aligned: !unaligned };
    let mut page = |va: u64| translate(core, ctx, view, va, want).map_err(|status| (va, status));
    let first = page(r.va)?;
    let here = 0x1000 - (r.va & 0xfff);
    let second = if here < r.size { Some((page(r.va.wrapping_add(here))?, here)) } else { None };
    // Watchpoints come after all faults of the MMU.
    if let Some(va) = debug::watchpoint(core, r.va, r.size, r.write, view.privileged()) {
        return Err((va, WATCHPOINT));
    }
    Ok(Span { first, second })
}

/// Takes the Data Abort for a fault, or the Watchpoint exception.
fn abort(core: &mut Core, ctx: &mut Ctx<'_>, (va, dfsc): At, write: bool) -> Fault {
    if dfsc == WATCHPOINT {
        return exception::watchpoint(core, ctx, va, write);
    }
    exception::data_abort(core, ctx, DataAbort { va, dfsc, write, maintenance: false })
}

#[cold]
#[inline(never)]
pub(super) fn load_slow<T: Prim>(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    va: u64,
    kind: AccessKind,
) -> Result<T, Fault> {
    let request = Request { va, size: T::SIZE, kind, write: false };
    let value = match locate(core, ctx, request) {
        Ok(Span { first, second: None }) => read(core, ctx, request, first.pa),
        Ok(Span { first, second: Some((second, split)) }) => {
            let mut value = 0u128;
            let mut result = Ok(());
            for i in 0..T::SIZE {
                let pa = if i < split { first.pa + i } else { second.pa + (i - split) };
                let byte = Request { va: va.wrapping_add(i), size: 1, ..request };
                result = result
                    .and_then(|()| read::<u8>(core, ctx, byte, pa))
                    .map(|b| value |= u128::from(b) << (8 * i));
            }
            result.map(|()| T::narrow(value))
        }
        Err(at) => Err(at),
    };
    ctx.shared.traced_meanwhile(core);
    match value {
        Ok(value) if big_endian(core) => Ok(value.swapped()),
        Ok(value) => Ok(value),
        Err(at) => Err(abort(core, ctx, at, false)),
    }
}

#[cold]
#[inline(never)]
pub(super) fn store_slow<T: Prim>(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    va: u64,
    value: T,
    kind: AccessKind,
) -> Result<(), Fault> {
    let request = Request { va, size: T::SIZE, kind, write: true };
    let value = if big_endian(core) { value.swapped() } else { value };
    let done = match locate(core, ctx, request) {
        Ok(Span { first, second: None }) => write(core, ctx, request, first.pa, value),
        Ok(Span { first, second: Some((second, split)) }) => (0..T::SIZE).try_for_each(|i| {
            let pa = if i < split { first.pa + i } else { second.pa + (i - split) };
            let byte = Request { va: va.wrapping_add(i), size: 1, ..request };
            write(core, ctx, byte, pa, (value.widen() >> (8 * i)) as u8)
        }),
        Err(at) => Err(at),
    };
    ctx.shared.traced_meanwhile(core);
    done.map_err(|at| abort(core, ctx, at, true))
}

/// Tells the platform of an access to a traced page.
#[cold]
fn traced(core: &Core, ctx: &mut Ctx<'_>, pa: u64, size: u64, value: Option<u128>, flags: u8) {
    let access = Traced { core, ram: &ctx.shared.ram, pa, size: size as u8, value, flags };
    ctx.platform.traced(&access);
}

/// Reads from one page.
fn read<T: Prim>(core: &Core, ctx: &mut Ctx<'_>, r: Request, pa: u64) -> Result<T, At> {
    if let Some(offset) = ctx.shared.ram.offset(pa, T::SIZE)
        && let Some(value) = host::read(&ctx.shared.ram, pa)
    {
        let flags = ctx.shared.ram.watch().flags((offset >> 12) as usize);
        if flags & LOADS != 0 {
            traced(core, ctx, pa, T::SIZE, None, flags);
        }
        return Ok(value);
    }
    device_access(r, pa, |part, offset| {
        let value = ctx.platform.mmio_read(core.at(), pa + offset, part);
        ctx.after_platform();
        value.map(|value| u128::from(value & mask(part)) << (8 * offset))
    })
    .map(T::narrow)
}

/// Writes to one page.
fn write<T: Prim>(core: &Core, ctx: &mut Ctx<'_>, r: Request, pa: u64, value: T) -> Result<(), At> {
    if let Some(offset) = ctx.shared.ram.offset(pa, T::SIZE) {
        // An access to one page stays in it, so its first byte tells whether it is watched.
        let flags = ctx.shared.ram.watch().flags((offset >> 12) as usize);
        if flags & (CODE | MONITOR) != 0 && ctx.shared.watched_store(pa, T::SIZE) {
            ctx.end_block();
        }
        if flags & STORES & !(CODE | MONITOR) != 0 {
            traced(core, ctx, pa, T::SIZE, Some(value.widen()), flags);
        }
        host::write(&ctx.shared.ram, pa, value);
        return Ok(());
    }
    device_access(r, pa, |part, offset| {
        let value = (value.widen() >> (8 * offset)) as u64 & mask(part);
        let done = ctx.platform.mmio_write(core.at(), pa + offset, part, value);
        ctx.after_platform();
        done.map(|()| 0)
    })
    .map(|_| ())
}

fn mask(bytes: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(bytes))
}

/// Splits an access that is not to RAM into what devices take: parts of at most 8 bytes, aligned. `f` gets each part's
/// size and offset and answers its value in place.
fn device_access(
    r: Request,
    pa: u64,
    mut f: impl FnMut(u8, u64) -> Result<u128, crate::platform::BusFault>,
) -> Result<u128, At> {
    if matches!(r.kind, AccessKind::Exclusive | AccessKind::Atomic) {
        return Err((r.va, UNSUPPORTED));
    }
    let part = if pa & (r.size.min(8) - 1) == 0 { r.size.min(8) } else { 1 };
    let mut value = 0;
    for offset in (0..r.size).step_by(part as usize) {
        value |= f(part as u8, offset).map_err(|_| (r.va.wrapping_add(offset), EXTERNAL))?;
    }
    Ok(value)
}

/// The physical address of an exclusive access, checked for `write` or read. It is RAM.
///
/// # Errors
/// The Data Abort that was taken.
pub fn physical(core: &mut Core, ctx: &mut Ctx<'_>, va: u64, size: u8, write: bool) -> Result<u64, Fault> {
    if let Some(pa) = super::try_physical(core, va, size, write) {
        return Ok(pa);
    }
    exclusive_address(core, ctx, va, size, write).map_err(|at| abort(core, ctx, at, write))
}

/// The physical address of an atomic read-modify-write, which is RAM. What a read alone would have caused is reported
/// as a read (ISS.WnR).
///
/// # Errors
/// The Data Abort that was taken.
pub fn physical_update(core: &mut Core, ctx: &mut Ctx<'_>, va: u64, size: u8) -> Result<u64, Fault> {
    exclusive_address(core, ctx, va, size, false).map_err(|at| abort(core, ctx, at, false))?;
    physical(core, ctx, va, size, true)
}

fn exclusive_address(core: &mut Core, ctx: &mut Ctx<'_>, va: u64, size: u8, write: bool) -> Result<u64, At> {
    let request = Request { va, size: u64::from(size), kind: AccessKind::Exclusive, write };
    let Span { first, .. } = locate(core, ctx, request)?;
    match ctx.shared.ram.offset(first.pa, request.size) {
        Some(_) => Ok(first.pa),
        None => Err((va, UNSUPPORTED)),
    }
}

/// DC ZVA: zeroes the block that holds `va`.
///
/// # Errors
/// The Data Abort that was taken; ISS.CM is 0, as this is not classified as maintenance.
pub fn zero_block(core: &mut Core, ctx: &mut Ctx<'_>, va: u64) -> Result<(), Fault> {
    let (view, block) = (data_view(&core.pstate, AccessKind::Normal), va & !(ZVA_BYTES - 1));
    let mut parts = (0..ZVA_BYTES).step_by(16);
    // The block is in one page: what serves its first part serves them all.
    if parts.all(|offset| core.mmu.fast.store(view, block + offset, 0u128)) {
        return Ok(());
    }
    // Any Device memory is an Alignment fault, as if this were unaligned.
    let page =
        translate(core, ctx, view, va, Want { write: true, aligned: false }).map_err(|status| (va, status));
    let watched = debug::watchpoint(core, block, ZVA_BYTES, true, view.privileged());
    let page = page.and_then(|page| watched.map_or(Ok(page), |va| Err((va, WATCHPOINT))));
    let done = page.and_then(|page| {
        let pa = page.pa & !(ZVA_BYTES - 1);
        (0..ZVA_BYTES).step_by(16).try_for_each(|offset| {
            let request = Request { va, size: 16, kind: AccessKind::Normal, write: true };
            write(core, ctx, request, pa + offset, 0u128)
        })
    });
    ctx.shared.traced_meanwhile(core);
    done.map_err(|at| abort(core, ctx, at, true))
}

/// What a cache maintenance instruction by VA checks before it does nothing: caches are always coherent here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintenance {
    /// Data that is there must be readable, at EL0.
    Clean,
    /// DC IVAC destroys data: write permission is needed.
    Invalidate,
}

/// A cache maintenance instruction by VA.
///
/// # Errors
/// The Data Abort that was taken.
pub fn maintain(core: &mut Core, ctx: &mut Ctx<'_>, va: u64, what: Maintenance) -> Result<(), Fault> {
    // PAN does not apply.
    let view = if core.pstate.el == 0 { View::UserData } else { View::KernelData };
    let write = what == Maintenance::Invalidate;
    match translate(core, ctx, view, va, Want { write, aligned: true }) {
        Ok(_) => Ok(()),
        Err(dfsc) => {
            Err(exception::data_abort(core, ctx, DataAbort { va, dfsc, write: true, maintenance: true }))
        }
    }
}
