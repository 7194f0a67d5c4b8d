//! Loads and stores of one general-purpose register, and prefetches.
//!
//! CONSTRAINED UNPREDICTABLE choices (DDI 0487 K1.2): with writeback and Rt == Rn, a load leaves the loaded value in
//! the register and a store stores the value from before.

use super::chain::{Runs, access, simple, whole};
use super::{by_bool, dst, extended, or_sp, rm, rn_sp, rt};
use crate::config::Features;
use crate::core::{Core, Ctx, Flow, Op, SP};
use crate::decode::{bit, bits, signed};
use crate::exception::{self, Fault};
use crate::mmu::{self, AccessKind, Prim};
use crate::sys::sctlr;

/// Unwraps an access, or leaves the handler: the exception is taken.
macro_rules! attempt {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(fault) => return fault.into(),
        }
    };
}

pub(crate) use attempt;

/// What a general-purpose register and memory exchange.
pub(crate) trait Datum: Prim {
    /// Zero-extended.
    fn zero_extended(self) -> u64;
    /// Sign-extended to 64 bits.
    fn sign_extended(self) -> u64;
    /// The low bits of a register.
    fn from_register(value: u64) -> Self;
}

/// What is loaded and stored in pairs.
pub(crate) trait Pair: Datum {
    /// Two elements, when the fast path serves both.
    fn try_load_pair(core: &Core, va: u64) -> Option<(Self, Self)>;
    /// Stores the low bits of two registers, when the fast path serves both.
    fn try_store_pair(core: &mut Core, va: u64, first: u64, second: u64) -> bool;
}

impl Pair for u32 {
    #[inline(always)]
    fn try_load_pair(core: &Core, va: u64) -> Option<(u32, u32)> {
        let both: u64 = mmu::try_load(core, va, AccessKind::Normal)?;
        Some((both as u32, (both >> 32) as u32))
    }
    #[inline(always)]
    fn try_store_pair(core: &mut Core, va: u64, first: u64, second: u64) -> bool {
        mmu::try_store(core, va, second << 32 | first & 0xffff_ffff, AccessKind::Normal)
    }
}

impl Pair for u64 {
    #[inline(always)]
    fn try_load_pair(core: &Core, va: u64) -> Option<(u64, u64)> {
        let both: u128 = mmu::try_load(core, va, AccessKind::Normal)?;
        Some((both as u64, (both >> 64) as u64))
    }
    #[inline(always)]
    fn try_store_pair(core: &mut Core, va: u64, first: u64, second: u64) -> bool {
        mmu::try_store(core, va, u128::from(second) << 64 | u128::from(first), AccessKind::Normal)
    }
}

macro_rules! datum {
    ($($unsigned:ty, $signed:ty;)*) => {$(
        impl Datum for $unsigned {
            #[inline(always)]
            fn zero_extended(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sign_extended(self) -> u64 {
                self as $signed as u64
            }
            #[inline(always)]
            fn from_register(value: u64) -> Self {
                value as Self
            }
        }
    )*};
}

datum! { u8, i8; u16, i16; u32, i32; u64, i64; }

/// How a load extends.
const ZERO_EXTEND: u32 = 0;
const SIGN_64: u32 = 1;
const SIGN_32: u32 = 2;

/// Address forms.
const OFFSET: u32 = 0;
const PRE: u32 = 1;
const POST: u32 = 2;
/// Base and Rm << `a`.
const INDEX: u32 = 3;
/// Base and extended Rm << `a`; `imm` is the extension.
const INDEX_EXTENDED: u32 = 4;
/// PC and `imm`.
const LITERAL: u32 = 5;
/// As [`OFFSET`], with the permissions of EL0.
const UNPRIVILEGED: u32 = 6;

/// The base register, its alignment checked when it is SP.
///
/// # Errors
/// The SP alignment fault.
#[inline(always)]
pub(crate) fn base<const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    let base = core.r[op.n as usize];
    if ON_SP && base & 15 != 0 {
        misaligned_sp(core, ctx)?;
    }
    Ok(base)
}

#[cold]
fn misaligned_sp(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<(), Fault> {
    let check = if core.pstate.el == 0 { sctlr::SA0 } else { sctlr::SA };
    if core.sys.sctlr_el1 & check != 0 { Err(exception::sp_alignment(core, ctx)) } else { Ok(()) }
}

/// The address of an access, and the base's new value for the forms that write it back.
#[inline(always)]
fn address<const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Result<(u64, u64), Fault> {
    if FORM == LITERAL {
        return Ok((core.pc.wrapping_add(op.imm), 0));
    }
    let base = base::<ON_SP>(core, op, ctx)?;
    let moved = match FORM {
        INDEX => base.wrapping_add(core.r[op.m as usize] << (op.a & 7)),
        INDEX_EXTENDED => base.wrapping_add(extended(core.r[op.m as usize], op.imm as u32) << (op.a & 7)),
        _ => base.wrapping_add(op.imm),
    };
    Ok((if FORM == POST { base } else { moved }, moved))
}

const fn kind<const FORM: u32>() -> AccessKind {
    if FORM == UNPRIVILEGED { AccessKind::Unpriv } else { AccessKind::Normal }
}

fn run_load<T: Datum, const EXTEND: u32, const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    let (va, moved) = attempt!(address::<FORM, ON_SP>(core, op, ctx));
    let value: T = attempt!(mmu::load(core, ctx, va, kind::<FORM>()));
    if FORM == PRE || FORM == POST {
        core.r[op.n as usize] = moved;
    }
    core.r[op.d as usize] = match EXTEND {
        ZERO_EXTEND => value.zero_extended(),
        SIGN_64 => value.sign_extended(),
        _ => u64::from(value.sign_extended() as u32),
    };
    Flow::Next
}

fn run_store<T: Datum, const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    let (va, moved) = attempt!(address::<FORM, ON_SP>(core, op, ctx));
    let value = T::from_register(core.r[op.d as usize]);
    attempt!(mmu::store(core, ctx, va, value, kind::<FORM>()));
    if FORM == PRE || FORM == POST {
        core.r[op.n as usize] = moved;
    }
    Flow::Next
}

/// [`address`], where nothing can be wrong with the base.
#[inline(always)]
fn fast_address<const FORM: u32, const ON_SP: bool>(core: &Core, op: &Op) -> Option<(u64, u64)> {
    if FORM == LITERAL || (ON_SP && core.r[op.n as usize] & 15 != 0) {
        return None;
    }
    let base = core.r[op.n as usize];
    let moved = match FORM {
        INDEX => base.wrapping_add(core.r[op.m as usize] << (op.a & 7)),
        INDEX_EXTENDED => base.wrapping_add(extended(core.r[op.m as usize], op.imm as u32) << (op.a & 7)),
        _ => base.wrapping_add(op.imm),
    };
    Some((if FORM == POST { base } else { moved }, moved))
}

/// The fast path of [`run_load`].
fn try_load<T: Datum, const EXTEND: u32, const FORM: u32, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
) -> bool {
    let Some((va, moved)) = fast_address::<FORM, ON_SP>(core, op) else { return false };
    let Some(value) = mmu::try_load::<T>(core, va, kind::<FORM>()) else { return false };
    if FORM == PRE || FORM == POST {
        core.r[op.n as usize] = moved;
    }
    core.r[op.d as usize] = match EXTEND {
        ZERO_EXTEND => value.zero_extended(),
        SIGN_64 => value.sign_extended(),
        _ => u64::from(value.sign_extended() as u32),
    };
    true
}

/// The fast path of [`run_store`].
fn try_store<T: Datum, const FORM: u32, const ON_SP: bool>(core: &mut Core, op: &Op) -> bool {
    let Some((va, moved)) = fast_address::<FORM, ON_SP>(core, op) else { return false };
    let value = T::from_register(core.r[op.d as usize]);
    if !mmu::try_store(core, va, value, kind::<FORM>()) {
        return false;
    }
    if FORM == PRE || FORM == POST {
        core.r[op.n as usize] = moved;
    }
    true
}

/// The handler for a size (base-2 logarithm of the bytes) and `opc`: 0 store, 1 load, 2 and 3 sign-extending loads.
fn pick<const FORM: u32, const ON_SP: bool>(size: u32, opc: u32) -> Option<Runs> {
    Some(match (size, opc) {
        (0, 0) => access(try_store::<u8, FORM, ON_SP>, run_store::<u8, FORM, ON_SP>),
        (1, 0) => access(try_store::<u16, FORM, ON_SP>, run_store::<u16, FORM, ON_SP>),
        (2, 0) => access(try_store::<u32, FORM, ON_SP>, run_store::<u32, FORM, ON_SP>),
        (3, 0) => access(try_store::<u64, FORM, ON_SP>, run_store::<u64, FORM, ON_SP>),
        (0, 1) => access(try_load::<u8, ZERO_EXTEND, FORM, ON_SP>, run_load::<u8, ZERO_EXTEND, FORM, ON_SP>),
        (1, 1) => {
            access(try_load::<u16, ZERO_EXTEND, FORM, ON_SP>, run_load::<u16, ZERO_EXTEND, FORM, ON_SP>)
        }
        (2, 1) => {
            access(try_load::<u32, ZERO_EXTEND, FORM, ON_SP>, run_load::<u32, ZERO_EXTEND, FORM, ON_SP>)
        }
        (3, 1) => {
            access(try_load::<u64, ZERO_EXTEND, FORM, ON_SP>, run_load::<u64, ZERO_EXTEND, FORM, ON_SP>)
        }
        (0, 2) => access(try_load::<u8, SIGN_64, FORM, ON_SP>, run_load::<u8, SIGN_64, FORM, ON_SP>),
        (1, 2) => access(try_load::<u16, SIGN_64, FORM, ON_SP>, run_load::<u16, SIGN_64, FORM, ON_SP>),
        (2, 2) => access(try_load::<u32, SIGN_64, FORM, ON_SP>, run_load::<u32, SIGN_64, FORM, ON_SP>),
        (0, 3) => access(try_load::<u8, SIGN_32, FORM, ON_SP>, run_load::<u8, SIGN_32, FORM, ON_SP>),
        (1, 3) => access(try_load::<u16, SIGN_32, FORM, ON_SP>, run_load::<u16, SIGN_32, FORM, ON_SP>),
        _ => return None,
    })
}

fn build<const FORM: u32>(word: u32) -> Option<Op> {
    let (size, opc) = (bits(word, 31, 30), bits(word, 23, 22));
    let n = rn_sp(word);
    let run = by_bool!(n == SP, ON_SP => pick::<FORM, ON_SP>(size, opc))?;
    let d = if opc == 0 { rt(word) } else { dst(word) };
    Some(Op { d, n, ..Op::with(run, word) })
}

/// Unsigned scaled offset.
pub(crate) fn scaled(word: u32, _: &Features) -> Option<Op> {
    let imm = u64::from(bits(word, 21, 10)) << bits(word, 31, 30);
    Some(Op { imm, ..build::<OFFSET>(word)? })
}

fn imm9(word: u32) -> u64 {
    signed(word, 20, 12) as u64
}

/// Unscaled offset: LDUR, STUR.
pub(crate) fn unscaled(word: u32, _: &Features) -> Option<Op> {
    Some(Op { imm: imm9(word), ..build::<OFFSET>(word)? })
}

/// Unprivileged: LDTR, STTR.
pub(crate) fn unprivileged(word: u32, _: &Features) -> Option<Op> {
    Some(Op { imm: imm9(word), ..build::<UNPRIVILEGED>(word)? })
}

/// Pre-indexed.
pub(crate) fn pre(word: u32, _: &Features) -> Option<Op> {
    Some(Op { imm: imm9(word), ..build::<PRE>(word)? })
}

/// Post-indexed.
pub(crate) fn post(word: u32, _: &Features) -> Option<Op> {
    Some(Op { imm: imm9(word), ..build::<POST>(word)? })
}

/// Register offset.
pub(crate) fn register(word: u32, _: &Features) -> Option<Op> {
    let option = bits(word, 15, 13);
    // Only the word and doubleword extensions are allocated.
    if option & 2 == 0 {
        return None;
    }
    let op = if option == 3 { build::<INDEX>(word)? } else { build::<INDEX_EXTENDED>(word)? };
    let shift = if bit(word, 12) { bits(word, 31, 30) } else { 0 };
    Some(Op { imm: u64::from(option), m: rm(word), a: shift as u8, ..op })
}

/// LDR, LDRSW (literal).
pub(crate) fn literal(word: u32, _: &Features) -> Option<Op> {
    let run: Runs = match bits(word, 31, 30) {
        0 => whole(run_load::<u32, ZERO_EXTEND, LITERAL, false>),
        1 => whole(run_load::<u64, ZERO_EXTEND, LITERAL, false>),
        2 => whole(run_load::<u32, SIGN_64, LITERAL, false>),
        _ => return None,
    };
    Some(Op { imm: (signed(word, 23, 5) << 2) as u64, d: dst(word), ..Op::with(run, word) })
}

/// Prefetches: there are no caches to prefetch into.
pub(crate) fn prefetch(word: u32, _: &Features) -> Option<Op> {
    // With a misaligned SP as the base, whether the fault is taken is a choice; it is not.
    Some(Op::with(simple(super::nop), word))
}

/// PRFM (register): its extension has to be allocated.
pub(crate) fn prefetch_register(word: u32, _: &Features) -> Option<Op> {
    bit(word, 14).then(|| Op::with(simple(super::nop), word))
}

/// The fast path of [`run_acquire`].
fn try_acquire<T: Datum, const ON_SP: bool>(core: &mut Core, op: &Op) -> bool {
    let va = core.r[op.n as usize];
    if ON_SP && va & 15 != 0 {
        return false;
    }
    let Some(value) = mmu::try_load::<T>(core, va, AccessKind::Ordered) else { return false };
    core.r[op.d as usize] = value.zero_extended();
    true
}

/// The fast path of [`run_release`].
fn try_release<T: Datum, const ON_SP: bool>(core: &mut Core, op: &Op) -> bool {
    let va = core.r[op.n as usize];
    let value = T::from_register(core.r[op.d as usize]);
    !(ON_SP && va & 15 != 0) && mmu::try_store(core, va, value, AccessKind::Ordered)
}

fn run_acquire<T: Datum, const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let va = attempt!(base::<ON_SP>(core, op, ctx));
    let value: T = attempt!(mmu::load(core, ctx, va, AccessKind::Ordered));
    core.r[op.d as usize] = value.zero_extended();
    Flow::Next
}

fn run_release<T: Datum, const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    let va = attempt!(base::<ON_SP>(core, op, ctx));
    let value = T::from_register(core.r[op.d as usize]);
    attempt!(mmu::store(core, ctx, va, value, AccessKind::Ordered));
    Flow::Next
}

/// LDAR, STLR and their byte and halfword forms. Everything here is sequentially consistent.
pub(crate) fn ordered(word: u32, _: &Features) -> Option<Op> {
    let load = bit(word, 22);
    let n = or_sp(bits(word, 9, 5));
    let run: Runs = by_bool!(n == SP, ON_SP => match (bits(word, 31, 30), load) {
        (0, false) => access(try_release::<u8, ON_SP>, run_release::<u8, ON_SP>),
        (1, false) => access(try_release::<u16, ON_SP>, run_release::<u16, ON_SP>),
        (2, false) => access(try_release::<u32, ON_SP>, run_release::<u32, ON_SP>),
        (_, false) => access(try_release::<u64, ON_SP>, run_release::<u64, ON_SP>),
        (0, true) => access(try_acquire::<u8, ON_SP>, run_acquire::<u8, ON_SP>),
        (1, true) => access(try_acquire::<u16, ON_SP>, run_acquire::<u16, ON_SP>),
        (2, true) => access(try_acquire::<u32, ON_SP>, run_acquire::<u32, ON_SP>),
        (_, true) => access(try_acquire::<u64, ON_SP>, run_acquire::<u64, ON_SP>),
    });
    Some(Op { d: if load { dst(word) } else { rt(word) }, n, ..Op::with(run, word) })
}
