//! Load-exclusive and store-exclusive.
//!
//! A reservation is by physical address. The running vCPU's is in [`Core::monitor`]; its own stores do not break it,
//! those of others and of devices do (see [`crate::shared`]).
//!
//! CONSTRAINED UNPREDICTABLE choices (DDI 0487 K1.2): a store-exclusive whose address or size differs from the
//! load's fails; Rs equal to Rt or Rn stores the old value to the old address and then has the status.

use super::chain::{Runs, access, whole};
use super::load_store::{Datum, attempt, base};
use super::{by_bool, dst, rm, rn_sp, rt, src};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op, Reservation, SP};
use crate::decode::{bit, bits};
use crate::mmu::{self, AccessKind};

fn reserve(core: &mut Core, pa: u64, size: u8) {
    let granule = pa & !(Reservation::GRANULE - 1);
    core.monitor = Some(Reservation { granule, address: pa, size });
    core.sys.stepped_exclusive = true;
}

/// ExclusiveMonitorsPass: the reservation is spent either way.
fn passes(core: &mut Core, pa: u64, size: u8) -> bool {
    core.monitor.take().is_some_and(|m| m.address == pa && m.size == size)
}

/// The fast path of [`run_load`].
fn try_load<T: Datum, const ON_SP: bool>(core: &mut Core, op: &Op) -> bool {
    let va = core.r[op.n as usize];
    if ON_SP && va & 15 != 0 {
        return false;
    }
    let size = size_of::<T>() as u8;
    let Some(pa) = mmu::try_physical(core, va, size, false) else { return false };
    let Some(value) = mmu::try_load::<T>(core, va, AccessKind::Exclusive) else { return false };
    reserve(core, pa, size);
    core.r[op.d as usize] = value.zero_extended();
    true
}

/// The fast path of [`run_store`].
fn try_store<T: Datum, const ON_SP: bool>(core: &mut Core, op: &Op) -> bool {
    let va = core.r[op.n as usize];
    if ON_SP && va & 15 != 0 {
        return false;
    }
    let size = size_of::<T>() as u8;
    let Some(pa) = mmu::try_physical(core, va, size, true) else { return false };
    let pass = core.monitor.is_some_and(|m| m.address == pa && m.size == size);
    if pass && !mmu::try_store(core, va, T::from_register(core.r[op.d as usize]), AccessKind::Exclusive) {
        return false;
    }
    core.monitor = None;
    core.r[op.m as usize] = u64::from(!pass);
    true
}

fn run_load<T: Datum, const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let va = attempt!(base::<ON_SP>(core, op, ctx));
    let size = size_of::<T>() as u8;
    let pa = attempt!(mmu::physical(core, ctx, va, size, false));
    let value: T = attempt!(mmu::load(core, ctx, va, AccessKind::Exclusive));
    reserve(core, pa, size);
    core.r[op.d as usize] = value.zero_extended();
    Flow::Next
}

fn run_store<T: Datum, const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let va = attempt!(base::<ON_SP>(core, op, ctx));
    let size = size_of::<T>() as u8;
    let pa = attempt!(mmu::physical(core, ctx, va, size, true));
    let pass = passes(core, pa, size);
    if pass {
        let value = T::from_register(core.r[op.d as usize]);
        attempt!(mmu::store(core, ctx, va, value, AccessKind::Exclusive));
    }
    core.r[op.m as usize] = u64::from(!pass);
    Flow::Next
}

fn run_load_pair<const SF: bool, const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let va = attempt!(base::<ON_SP>(core, op, ctx));
    let size = if SF { 16 } else { 8 };
    let pa = attempt!(mmu::physical(core, ctx, va, size, false));
    let (first, second) = if SF {
        let value: u128 = attempt!(mmu::load(core, ctx, va, AccessKind::Exclusive));
        (value as u64, (value >> 64) as u64)
    } else {
        let value: u64 = attempt!(mmu::load(core, ctx, va, AccessKind::Exclusive));
        (value & 0xffff_ffff, value >> 32)
    };
    reserve(core, pa, size);
    core.r[op.d as usize] = first;
    core.r[op.a as usize] = second;
    Flow::Next
}

fn run_store_pair<const SF: bool, const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let va = attempt!(base::<ON_SP>(core, op, ctx));
    let size = if SF { 16 } else { 8 };
    let pa = attempt!(mmu::physical(core, ctx, va, size, true));
    let pass = passes(core, pa, size);
    if pass {
        let (first, second) = (core.r[op.d as usize], core.r[op.a as usize]);
        if SF {
            let value = u128::from(second) << 64 | u128::from(first);
            attempt!(mmu::store(core, ctx, va, value, AccessKind::Exclusive));
        } else {
            let value = second << 32 | first & 0xffff_ffff;
            attempt!(mmu::store(core, ctx, va, value, AccessKind::Exclusive));
        }
    }
    core.r[op.m as usize] = u64::from(!pass);
    Flow::Next
}

/// LDXR, LDAXR, STXR, STLXR and their byte and halfword forms.
pub(crate) fn single(word: u32, _: &Features) -> Option<Op> {
    let load = bit(word, 22);
    let n = rn_sp(word);
    let run: Runs = by_bool!(n == SP, ON_SP => match (bits(word, 31, 30), load) {
        (0, false) => access(try_store::<u8, ON_SP>, run_store::<u8, ON_SP>),
        (1, false) => access(try_store::<u16, ON_SP>, run_store::<u16, ON_SP>),
        (2, false) => access(try_store::<u32, ON_SP>, run_store::<u32, ON_SP>),
        (_, false) => access(try_store::<u64, ON_SP>, run_store::<u64, ON_SP>),
        (0, true) => access(try_load::<u8, ON_SP>, run_load::<u8, ON_SP>),
        (1, true) => access(try_load::<u16, ON_SP>, run_load::<u16, ON_SP>),
        (2, true) => access(try_load::<u32, ON_SP>, run_load::<u32, ON_SP>),
        (_, true) => access(try_load::<u64, ON_SP>, run_load::<u64, ON_SP>),
    });
    let (d, m) = if load { (dst(word), rm(word)) } else { (rt(word), dst(bits(word, 20, 16))) };
    Some(Op { d, n, m, ..Op::with(run, word) })
}

/// LDXP, LDAXP, STXP, STLXP.
pub(crate) fn pair(word: u32, _: &Features) -> Option<Op> {
    let (load, n, second) = (bit(word, 22), rn_sp(word), bits(word, 14, 10));
    let run: Runs = by_bool!(n == SP, ON_SP => by_bool!(bit(word, 30), SF => if load {
        whole(run_load_pair::<SF, ON_SP>)
    } else {
        whole(run_store_pair::<SF, ON_SP>)
    }));
    let (d, a) = if load { (dst(word), dst(second)) } else { (rt(word), src(second)) };
    Some(Op { d, n, a, m: dst(bits(word, 20, 16)), ..Op::with(run, word) })
}
