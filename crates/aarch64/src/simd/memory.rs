//! Loads and stores of one or two SIMD and FP registers.

use super::check_enabled;
use crate::core::{Core, Ctx, Flow, Handler, Op, SINK, SP};
use crate::decode::{bit, bits, signed};
use crate::exec::load_store::{attempt, base};
use crate::exec::{by_bool, extended};
use crate::mmu::{self, AccessKind, Prim};

/// What a SIMD and FP register and memory exchange.
pub(crate) trait Datum: Prim {
    /// The register's new value.
    fn to_register(self) -> u128;
    /// The low part of a register.
    fn from_register(value: u128) -> Self;
}

macro_rules! datum {
    ($($type:ty)*) => {$(
        impl Datum for $type {
            #[inline(always)]
            fn to_register(self) -> u128 {
                self as u128
            }
            #[inline(always)]
            fn from_register(value: u128) -> Self {
                value as Self
            }
        }
    )*};
}

datum! { u8 u16 u32 u64 u128 }

/// Address forms: base and `imm`.
const OFFSET: u32 = 0;
/// Base and `imm`, written back.
const PRE: u32 = 1;
/// Base, then base and `imm` written back.
const POST: u32 = 2;
/// Base and extended Rm << `a`; `imm` is the extension.
const INDEX: u32 = 3;
/// PC and `imm`.
const LITERAL: u32 = 4;

/// The address of an access and the base's new value.
#[inline(always)]
fn address<const FORM: u32>(core: &Core, op: &Op, base: u64) -> (u64, u64) {
    let moved = match FORM {
        INDEX => base.wrapping_add(extended(core.r[op.m as usize], op.imm as u32) << (op.a & 7)),
        _ => base.wrapping_add(op.imm),
    };
    (if FORM == POST { base } else { moved }, moved)
}

/// The base: the program counter for a literal.
macro_rules! start {
    ($form:expr, $on_sp:expr, $core:ident, $op:ident, $ctx:ident) => {{
        check_enabled!($core, $ctx);
        if $form == LITERAL { $core.pc } else { attempt!(base::<$on_sp>($core, $op, $ctx)) }
    }};
}

fn run_load<T: Datum, const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    let base = start!(FORM, ON_SP, core, op, ctx);
    let (va, moved) = address::<FORM>(core, op, base);
    let value: T = attempt!(mmu::load(core, ctx, va, AccessKind::Normal));
    if FORM == PRE || FORM == POST {
        core.r[op.n as usize] = moved;
    }
    core.v[(op.d & 31) as usize] = value.to_register();
    Flow::Next
}

fn run_store<T: Datum, const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    let base = start!(FORM, ON_SP, core, op, ctx);
    let (va, moved) = address::<FORM>(core, op, base);
    let value = T::from_register(core.v[(op.d & 31) as usize]);
    attempt!(mmu::store(core, ctx, va, value, AccessKind::Normal));
    if FORM == PRE || FORM == POST {
        core.r[op.n as usize] = moved;
    }
    Flow::Next
}

/// The handler for the base-2 logarithm of the bytes.
fn pick<const FORM: u32, const ON_SP: bool>(scale: u32, load: bool) -> Option<Handler> {
    Some(match (scale, load) {
        (0, false) => run_store::<u8, FORM, ON_SP>,
        (1, false) => run_store::<u16, FORM, ON_SP>,
        (2, false) => run_store::<u32, FORM, ON_SP>,
        (3, false) => run_store::<u64, FORM, ON_SP>,
        (4, false) => run_store::<u128, FORM, ON_SP>,
        (0, true) => run_load::<u8, FORM, ON_SP>,
        (1, true) => run_load::<u16, FORM, ON_SP>,
        (2, true) => run_load::<u32, FORM, ON_SP>,
        (3, true) => run_load::<u64, FORM, ON_SP>,
        (4, true) => run_load::<u128, FORM, ON_SP>,
        _ => return None,
    })
}

/// A base register field, in which 31 is SP.
pub(super) fn base_field(word: u32) -> u8 {
    match bits(word, 9, 5) {
        31 => SP,
        n => n as u8,
    }
}

/// The base-2 logarithm of a single register's size.
fn scale(word: u32) -> u32 {
    bits(word, 23, 23) << 2 | bits(word, 31, 30)
}

fn single<const FORM: u32>(word: u32) -> Option<Op> {
    let n = base_field(word);
    let run = by_bool!(n == SP, ON_SP => pick::<FORM, ON_SP>(scale(word), bit(word, 22)))?;
    Some(Op { d: bits(word, 4, 0) as u8, n, imm: signed(word, 20, 12) as u64, ..Op::new(run, word) })
}

/// Unsigned scaled offset.
pub(crate) fn scaled(word: u32) -> Option<Op> {
    Some(Op { imm: u64::from(bits(word, 21, 10)) << scale(word), ..single::<OFFSET>(word)? })
}

/// LDUR and STUR.
pub(crate) fn unscaled(word: u32) -> Option<Op> {
    single::<OFFSET>(word)
}

/// Pre-indexed.
pub(crate) fn pre(word: u32) -> Option<Op> {
    single::<PRE>(word)
}

/// Post-indexed.
pub(crate) fn post(word: u32) -> Option<Op> {
    single::<POST>(word)
}

/// Register offset. Only the word and doubleword extensions are allocated.
pub(crate) fn register(word: u32) -> Option<Op> {
    let option = bits(word, 15, 13);
    if option & 2 == 0 {
        return None;
    }
    let shift = if bit(word, 12) { scale(word) } else { 0 };
    let m = bits(word, 20, 16) as u8;
    Some(Op { imm: u64::from(option), m, a: shift as u8, ..single::<INDEX>(word)? })
}

/// PC-relative.
pub(crate) fn literal(word: u32) -> Option<Op> {
    let run = pick::<LITERAL, false>(bits(word, 31, 30) + 2, true)?;
    Some(Op {
        d: bits(word, 4, 0) as u8,
        n: SINK,
        imm: (signed(word, 23, 5) << 2) as u64,
        ..Op::new(run, word)
    })
}

fn run_load_pair<T: Datum, const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    let base = start!(FORM, ON_SP, core, op, ctx);
    let (va, moved) = address::<FORM>(core, op, base);
    let first: T = attempt!(mmu::load(core, ctx, va, AccessKind::Normal));
    let next = va.wrapping_add(size_of::<T>() as u64);
    let second: T = attempt!(mmu::load(core, ctx, next, AccessKind::Normal));
    if FORM == PRE || FORM == POST {
        core.r[op.n as usize] = moved;
    }
    core.v[(op.d & 31) as usize] = first.to_register();
    core.v[(op.a & 31) as usize] = second.to_register();
    Flow::Next
}

fn run_store_pair<T: Datum, const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    let base = start!(FORM, ON_SP, core, op, ctx);
    let (va, moved) = address::<FORM>(core, op, base);
    let (first, second) = (core.v[(op.d & 31) as usize], core.v[(op.a & 31) as usize]);
    attempt!(mmu::store(core, ctx, va, T::from_register(first), AccessKind::Normal));
    let next = va.wrapping_add(size_of::<T>() as u64);
    attempt!(mmu::store(core, ctx, next, T::from_register(second), AccessKind::Normal));
    if FORM == PRE || FORM == POST {
        core.r[op.n as usize] = moved;
    }
    Flow::Next
}

fn pair<const FORM: u32>(word: u32) -> Option<Op> {
    let n = base_field(word);
    let opc = bits(word, 31, 30);
    let run: Handler = by_bool!(n == SP, ON_SP => match (opc, bit(word, 22)) {
        (0, false) => run_store_pair::<u32, FORM, ON_SP>,
        (1, false) => run_store_pair::<u64, FORM, ON_SP>,
        (2, false) => run_store_pair::<u128, FORM, ON_SP>,
        (0, true) => run_load_pair::<u32, FORM, ON_SP>,
        (1, true) => run_load_pair::<u64, FORM, ON_SP>,
        (2, true) => run_load_pair::<u128, FORM, ON_SP>,
        _ => return None,
    });
    let imm = (signed(word, 21, 15) << (opc + 2)) as u64;
    Some(Op { imm, d: bits(word, 4, 0) as u8, n, a: bits(word, 14, 10) as u8, ..Op::new(run, word) })
}

/// LDP and STP with an offset; LDNP and STNP.
pub(crate) fn pair_offset(word: u32) -> Option<Op> {
    pair::<OFFSET>(word)
}

/// LDP and STP, pre-indexed.
pub(crate) fn pair_pre(word: u32) -> Option<Op> {
    pair::<PRE>(word)
}

/// LDP and STP, post-indexed.
pub(crate) fn pair_post(word: u32) -> Option<Op> {
    pair::<POST>(word)
}
