//! FEAT_LSE: atomic memory operations, swap, compare and swap.
//!
//! Nothing else runs during an instruction, so that a load and a store are atomic. Write permission is checked
//! first, whether or not the store happens.

use super::load_store::{Datum, attempt, base};
use super::{by_bool, dst, rm, rn_sp, rt};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Handler, Op, SP};
use crate::decode::{bit, bits};
use crate::mmu::{self, AccessKind};

/// `OPC` as in bits 14:12: ADD, CLR, EOR, SET, SMAX, SMIN, UMAX, UMIN; 8 is SWP.
#[inline(always)]
fn combine<T: Datum, const OPC: u32>(old: T, operand: T) -> T {
    let (x, y) = (old.zero_extended(), operand.zero_extended());
    let (sx, sy) = (old.sign_extended() as i64, operand.sign_extended() as i64);
    T::from_register(match OPC {
        0 => x.wrapping_add(y),
        1 => x & !y,
        2 => x ^ y,
        3 => x | y,
        4 => sx.max(sy) as u64,
        5 => sx.min(sy) as u64,
        6 => x.max(y),
        7 => x.min(y),
        _ => y,
    })
}

fn run_operation<T: Datum, const OPC: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    let va = attempt!(base::<ON_SP>(core, op, ctx));
    attempt!(mmu::physical_update(core, ctx, va, size_of::<T>() as u8));
    let old: T = attempt!(mmu::load(core, ctx, va, AccessKind::Atomic));
    let new = combine::<T, OPC>(old, T::from_register(core.r[op.m as usize]));
    attempt!(mmu::store(core, ctx, va, new, AccessKind::Atomic));
    core.r[op.d as usize] = old.zero_extended();
    Flow::Next
}

fn pick<T: Datum, const ON_SP: bool>(opc: u32) -> Handler {
    match opc {
        0 => run_operation::<T, 0, ON_SP>,
        1 => run_operation::<T, 1, ON_SP>,
        2 => run_operation::<T, 2, ON_SP>,
        3 => run_operation::<T, 3, ON_SP>,
        4 => run_operation::<T, 4, ON_SP>,
        5 => run_operation::<T, 5, ON_SP>,
        6 => run_operation::<T, 6, ON_SP>,
        7 => run_operation::<T, 7, ON_SP>,
        _ => run_operation::<T, 8, ON_SP>,
    }
}

/// LDADD, LDCLR, LDEOR, LDSET, LDSMAX, LDSMIN, LDUMAX, LDUMIN, SWP in all sizes and orders.
pub(crate) fn operation(word: u32, features: &Features) -> Option<Op> {
    if !features.lse {
        return None;
    }
    let opc = bits(word, 15, 12);
    let n = rn_sp(word);
    let run = by_bool!(n == SP, ON_SP => match bits(word, 31, 30) {
        0 => pick::<u8, ON_SP>(opc),
        1 => pick::<u16, ON_SP>(opc),
        2 => pick::<u32, ON_SP>(opc),
        _ => pick::<u64, ON_SP>(opc),
    });
    Some(Op { d: dst(word), n, m: rm(word), ..Op::new(run, word) })
}

fn run_swap<T: Datum, const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let va = attempt!(base::<ON_SP>(core, op, ctx));
    attempt!(mmu::physical_update(core, ctx, va, size_of::<T>() as u8));
    let old: T = attempt!(mmu::load(core, ctx, va, AccessKind::Atomic));
    if old.zero_extended() == T::from_register(core.r[op.m as usize]).zero_extended() {
        let new = T::from_register(core.r[op.d as usize]);
        attempt!(mmu::store(core, ctx, va, new, AccessKind::Atomic));
    }
    core.r[op.a as usize] = old.zero_extended();
    Flow::Next
}

/// CAS and its byte, halfword, acquire and release forms.
pub(crate) fn compare_and_swap(word: u32, features: &Features) -> Option<Op> {
    if !features.lse {
        return None;
    }
    let n = rn_sp(word);
    let run: Handler = by_bool!(n == SP, ON_SP => match bits(word, 31, 30) {
        0 => run_swap::<u8, ON_SP>,
        1 => run_swap::<u16, ON_SP>,
        2 => run_swap::<u32, ON_SP>,
        _ => run_swap::<u64, ON_SP>,
    });
    // Rs is compared (`m`) and receives the old value (`a`).
    Some(Op { d: rt(word), n, m: rm(word), a: dst(bits(word, 20, 16)), ..Op::new(run, word) })
}

fn run_swap_pair<const SF: bool, const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let va = attempt!(base::<ON_SP>(core, op, ctx));
    attempt!(mmu::physical_update(core, ctx, va, if SF { 16 } else { 8 }));
    let join = |low: u64, high: u64| {
        if SF { u128::from(high) << 64 | u128::from(low) } else { u128::from(high << 32 | low & 0xffff_ffff) }
    };
    let registers = |core: &Core, first: u8| {
        // The pair's second register: 31 is XZR, and nothing is above it since the first is even.
        join(core.r[first as usize], core.r[(first + 1) as usize])
    };
    let (expected, new) = (registers(core, op.m), registers(core, op.d));
    let old = if SF {
        attempt!(mmu::load::<u128>(core, ctx, va, AccessKind::Atomic))
    } else {
        u128::from(attempt!(mmu::load::<u64>(core, ctx, va, AccessKind::Atomic)))
    };
    if old == expected {
        if SF {
            attempt!(mmu::store(core, ctx, va, new, AccessKind::Atomic));
        } else {
            attempt!(mmu::store(core, ctx, va, new as u64, AccessKind::Atomic));
        }
    }
    let (low, high) =
        if SF { (old as u64, (old >> 64) as u64) } else { (old as u64 & 0xffff_ffff, old as u64 >> 32) };
    core.r[op.m as usize] = low;
    core.r[op.a as usize] = high;
    Flow::Next
}

/// CASP and its acquire and release forms.
pub(crate) fn compare_and_swap_pair(word: u32, features: &Features) -> Option<Op> {
    let (s, t) = (bits(word, 20, 16), bits(word, 4, 0));
    if !features.lse || s & 1 != 0 || t & 1 != 0 {
        return None;
    }
    let n = rn_sp(word);
    let run: Handler = by_bool!(n == SP, ON_SP => by_bool!(bit(word, 30), SF => run_swap_pair::<SF, ON_SP>));
    Some(Op { d: rt(word), n, m: rm(word), a: dst(s + 1), ..Op::new(run, word) })
}
