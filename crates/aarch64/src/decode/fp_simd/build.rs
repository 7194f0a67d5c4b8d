//! From an instruction word and its possible handlers to an op: what the rows share.
//!
//! A function's name says which field values are allocated; its list of handlers is by lane size.

use crate::core::{Handler, Op, SINK, SP, ZERO};
use crate::decode::{bit, bits};
use crate::simd::{convert, logic};

/// The same handler for lanes of 8, 16, 32 and 64 bits: the parameters before the size follow it.
macro_rules! lanes {
    ($handler:path $(, $arg:tt $(:: $rest:ident)*)*) => {{
        use $handler as handler;
        [
            handler::<$($arg $(:: $rest)*,)* 8>,
            handler::<$($arg $(:: $rest)*,)* 16>,
            handler::<$($arg $(:: $rest)*,)* 32>,
            handler::<$($arg $(:: $rest)*,)* 64>,
        ]
    }};
}

/// As `lanes`, without 64 bits.
macro_rules! small {
    ($handler:path $(, $arg:tt $(:: $rest:ident)*)*) => {{
        use $handler as handler;
        [
            handler::<$($arg $(:: $rest)*,)* 8>,
            handler::<$($arg $(:: $rest)*,)* 16>,
            handler::<$($arg $(:: $rest)*,)* 32>,
        ]
    }};
}

/// As `lanes`, 16 and 32 bits only.
macro_rules! middle {
    ($handler:path, $op:path) => {{
        use $handler as handler;
        [handler::<$op, 16>, handler::<$op, 32>]
    }};
}

/// From 8, 16 and 32 bits to twice that.
macro_rules! wide {
    ($handler:path, $op:path) => {{
        use $handler as handler;
        [handler::<$op, 8, 16>, handler::<$op, 16, 32>, handler::<$op, 32, 64>]
    }};
}

/// From 16 and 32 bits to twice that.
macro_rules! wide_hs {
    ($handler:path, $op:path) => {{
        use $handler as handler;
        [handler::<$op, 16, 32>, handler::<$op, 32, 64>]
    }};
}

/// Single and double precision.
macro_rules! sd {
    ($handler:path, $op:ty) => {{
        use $handler as handler;
        [handler::<$op, Single>, handler::<$op, Double>]
    }};
}

pub(super) use {lanes, middle, sd, small, wide, wide_hs};

type Maybe = Option<Op>;

/// Q: a vector of 16 bytes rather than 8.
const fn q(w: u32) -> bool {
    bit(w, 30)
}

/// Bytes of the vector.
const fn width(w: u32) -> u8 {
    if q(w) { 16 } else { 8 }
}

const fn size(w: u32) -> usize {
    bits(w, 23, 22) as usize
}

/// The bit that tells double from single precision.
const fn double(w: u32) -> usize {
    bits(w, 22, 22) as usize
}

/// Registers in their usual places.
fn registers(w: u32, a: u8, run: Handler) -> Op {
    Op { d: bits(w, 4, 0) as u8, n: bits(w, 9, 5) as u8, m: bits(w, 20, 16) as u8, a, ..Op::new(run, w) }
}

/// A general register as a destination.
fn to(field: u32) -> u8 {
    if field == 31 { SINK } else { field as u8 }
}

// Vectors: `a` is their width.

/// One handler whatever the lanes.
pub(super) fn vector(w: u32, run: Handler) -> Maybe {
    Some(registers(w, width(w), run))
}

/// All sizes; 64 bits need a full vector.
pub(super) fn all(w: u32, run: [Handler; 4]) -> Maybe {
    if size(w) == 3 && !q(w) { None } else { vector(w, run[size(w)]) }
}

/// 8, 16 and 32 bits.
pub(super) fn bhs(w: u32, run: [Handler; 3]) -> Maybe {
    vector(w, *run.get(size(w))?)
}

/// 8 and 16 bits.
pub(super) fn bh(w: u32, run: [Handler; 2]) -> Maybe {
    vector(w, *run.get(size(w))?)
}

/// 16 and 32 bits.
pub(super) fn hs(w: u32, run: [Handler; 2]) -> Maybe {
    vector(w, *run.get(size(w).checked_sub(1)?)?)
}

/// Bytes only.
pub(super) fn bytes(w: u32, run: Handler) -> Maybe {
    if size(w) == 0 { vector(w, run) } else { None }
}

/// 32 bits, where bit 22 must be clear.
pub(super) fn words(w: u32, run: Handler) -> Maybe {
    if double(w) == 0 { vector(w, run) } else { None }
}

/// Single precision, or double in a full vector.
pub(super) fn float(w: u32, run: [Handler; 2]) -> Maybe {
    if double(w) == 1 && !q(w) { None } else { vector(w, run[double(w)]) }
}

/// Conversions to the next format: `imm` is which half.
pub(super) fn half_float(w: u32, run: [Handler; 2]) -> Maybe {
    Some(Op { imm: u64::from(q(w)), ..registers(w, 0, run[double(w)]) })
}

/// FCVTXN of a vector.
pub(super) fn fcvtxn(w: u32) -> Maybe {
    Some(Op { imm: u64::from(q(w)), ..registers(w, 2, convert::fcvtxn) })
}

/// Across lanes, of which there are at least four.
pub(super) fn across(w: u32, run: [Handler; 3]) -> Maybe {
    if width(w) >> size(w) < 4 { None } else { bhs(w, run) }
}

/// Widening: `imm` is which half of the sources.
pub(super) fn long(w: u32, run: [Handler; 3]) -> Maybe {
    Some(Op { imm: u64::from(q(w)), ..bhs(w, run)? })
}

/// As [`long`], 16 and 32 bits.
pub(super) fn long_hs(w: u32, run: [Handler; 2]) -> Maybe {
    Some(Op { imm: u64::from(q(w)), ..hs(w, run)? })
}

/// As [`long`], bytes only.
pub(super) fn long_bytes(w: u32, run: Handler) -> Maybe {
    Some(Op { imm: u64::from(q(w)), ..bytes(w, run)? })
}

/// Narrowing: `a` is which half of the destination.
pub(super) fn narrow(w: u32, run: [Handler; 3]) -> Maybe {
    Some(Op { a: u8::from(q(w)), ..bhs(w, run)? })
}

/// SHLL: shifts by the lane's size. `a` is which half of the source.
pub(super) fn shll(w: u32, run: [Handler; 3]) -> Maybe {
    Some(Op { imm: 8 << size(w), a: u8::from(q(w)), ..bhs(w, run)? })
}

// Scalars.

/// `a` as given: bytes, or what the handler wants.
pub(super) fn scalar(w: u32, a: u8, run: Handler) -> Maybe {
    Some(registers(w, a, run))
}

/// All sizes.
pub(super) fn scalar_all(w: u32, run: [Handler; 4]) -> Maybe {
    scalar(w, 1 << size(w), run[size(w)])
}

/// 16 and 32 bits.
pub(super) fn scalar_hs(w: u32, run: [Handler; 2]) -> Maybe {
    Some(Op { a: 1 << size(w), ..hs(w, run)? })
}

/// Single and double precision.
pub(super) fn scalar_float(w: u32, run: [Handler; 2]) -> Maybe {
    scalar(w, 4 << double(w), run[double(w)])
}

/// Narrowing of one lane.
pub(super) fn scalar_narrow(w: u32, run: [Handler; 3]) -> Maybe {
    Some(Op { a: 2, ..bhs(w, run)? })
}

/// Widening of one lane.
pub(super) fn scalar_long(w: u32, run: [Handler; 2]) -> Maybe {
    Some(Op { a: 0, ..hs(w, run)? })
}

// By element.

/// The register and lane of an integer element.
fn integer_element(w: u32) -> Option<(u8, u32)> {
    let (l, m, h) = (bits(w, 21, 21), bits(w, 20, 20), bits(w, 11, 11));
    match size(w) {
        1 => Some((bits(w, 19, 16) as u8, h << 2 | l << 1 | m)),
        2 => Some((bits(w, 20, 16) as u8, h << 1 | l)),
        _ => None,
    }
}

/// Lane `imm`.
pub(super) fn element(w: u32, run: [Handler; 2]) -> Maybe {
    let (m, index) = integer_element(w)?;
    Some(Op { m, imm: u64::from(index), ..hs(w, run)? })
}

/// Lane `imm`, a scalar.
pub(super) fn scalar_element(w: u32, run: [Handler; 2]) -> Maybe {
    Some(Op { a: 1 << size(w), ..element(w, run)? })
}

/// Lane `a`; `imm` is which half of the first source.
pub(super) fn long_element(w: u32, run: [Handler; 2]) -> Maybe {
    let (m, index) = integer_element(w)?;
    Some(Op { m, a: index as u8, imm: u64::from(q(w)), ..hs(w, run)? })
}

/// Lane `a`, a scalar.
pub(super) fn scalar_long_element(w: u32, run: [Handler; 2]) -> Maybe {
    long_element(w, run)
}

/// The lane of an FP element.
fn float_index(w: u32) -> Option<u64> {
    let (l, h) = (bits(w, 21, 21), bits(w, 11, 11));
    match (double(w), l) {
        (0, _) => Some(u64::from(h << 1 | l)),
        (_, 0) => Some(u64::from(h)),
        _ => None,
    }
}

/// Lane `imm`.
pub(super) fn float_element(w: u32, run: [Handler; 2]) -> Maybe {
    Some(Op { imm: float_index(w)?, ..float(w, run)? })
}

/// Lane `imm`, a scalar.
pub(super) fn scalar_float_element(w: u32, run: [Handler; 2]) -> Maybe {
    Some(Op { imm: float_index(w)?, ..scalar_float(w, run)? })
}

// Shifts by immediate.

/// The base-2 logarithm of a lane's bytes from immh, and immh:immb.
fn shift(w: u32) -> Option<(usize, u32)> {
    let immh = bits(w, 22, 19);
    Some((immh.checked_ilog2()? as usize, bits(w, 22, 16)))
}

/// The shift amount to the right for lanes of `8 << scale` bits.
const fn right(scale: usize, imm: u32) -> u64 {
    ((16 << scale) - imm) as u64
}

/// The shift amount to the left.
const fn left(scale: usize, imm: u32) -> u64 {
    (imm - (8 << scale)) as u64
}

/// Right by `imm`; 64 bits need a full vector.
pub(super) fn shift_right(w: u32, run: [Handler; 4]) -> Maybe {
    let (scale, imm) = shift(w)?;
    if scale == 3 && !q(w) { None } else { Some(Op { imm: right(scale, imm), ..vector(w, run[scale])? }) }
}

/// Left by `imm`.
pub(super) fn shift_left(w: u32, run: [Handler; 4]) -> Maybe {
    let (scale, imm) = shift(w)?;
    if scale == 3 && !q(w) { None } else { Some(Op { imm: left(scale, imm), ..vector(w, run[scale])? }) }
}

/// Right by `imm`, a scalar.
pub(super) fn scalar_shift_right(w: u32, run: [Handler; 4]) -> Maybe {
    let (scale, imm) = shift(w)?;
    Some(Op { imm: right(scale, imm), ..registers(w, 1 << scale, run[scale]) })
}

/// Left by `imm`, a scalar.
pub(super) fn scalar_shift_left(w: u32, run: [Handler; 4]) -> Maybe {
    let (scale, imm) = shift(w)?;
    Some(Op { imm: left(scale, imm), ..registers(w, 1 << scale, run[scale]) })
}

/// Right by `imm`, narrowing; `a` is which half of the destination.
pub(super) fn shift_narrow(w: u32, run: [Handler; 3]) -> Maybe {
    let (scale, imm) = shift(w)?;
    Some(Op { imm: right(scale, imm), ..registers(w, u8::from(q(w)), *run.get(scale)?) })
}

/// As [`shift_narrow`], a scalar.
pub(super) fn scalar_shift_narrow(w: u32, run: [Handler; 3]) -> Maybe {
    Some(Op { a: 2, ..shift_narrow(w, run)? })
}

/// Left by `imm`, widening; `a` is which half of the source.
pub(super) fn shift_long(w: u32, run: [Handler; 3]) -> Maybe {
    let (scale, imm) = shift(w)?;
    Some(Op { imm: left(scale, imm), ..registers(w, u8::from(q(w)), *run.get(scale)?) })
}

/// Fixed point with `imm` bits after the point. Half precision is not there.
pub(super) fn fixed(w: u32, run: [Handler; 2]) -> Maybe {
    let (scale, imm) = shift(w)?;
    let run = run[scale.checked_sub(2)?];
    if scale == 3 && !q(w) { None } else { Some(Op { imm: right(scale, imm), ..vector(w, run)? }) }
}

/// As [`fixed`], a scalar.
pub(super) fn scalar_fixed(w: u32, run: [Handler; 2]) -> Maybe {
    let (scale, imm) = shift(w)?;
    Some(Op { imm: right(scale, imm), ..registers(w, 1 << scale, run[scale.checked_sub(2)?]) })
}

// Copies and permutations.

/// The base-2 logarithm of a lane's bytes and the lane, from imm5.
fn imm5(w: u32) -> Option<(usize, u64)> {
    let imm5 = bits(w, 20, 16);
    let scale = imm5.trailing_zeros();
    if scale > 3 { None } else { Some((scale as usize, u64::from(imm5 >> (scale + 1)))) }
}

/// DUP (element).
pub(super) fn dup(w: u32, run: [Handler; 4]) -> Maybe {
    let (scale, imm) = imm5(w)?;
    if scale == 3 && !q(w) { None } else { Some(Op { imm, ..vector(w, run[scale])? }) }
}

/// DUP (element), scalar.
pub(super) fn dup_scalar(w: u32, run: [Handler; 4]) -> Maybe {
    let (scale, imm) = imm5(w)?;
    Some(Op { imm, ..registers(w, 1 << scale, run[scale]) })
}

/// DUP (general).
pub(super) fn dup_general(w: u32, run: [Handler; 4]) -> Maybe {
    dup(w, run)
}

/// INS (general).
pub(super) fn ins_general(w: u32, run: [Handler; 4]) -> Maybe {
    let (scale, imm) = imm5(w)?;
    Some(Op { imm, ..registers(w, 0, run[scale]) })
}

/// INS (element): lane `a` into lane `imm`.
pub(super) fn ins_element(w: u32, run: [Handler; 4]) -> Maybe {
    let (scale, imm) = imm5(w)?;
    Some(Op { imm, ..registers(w, (bits(w, 14, 11) >> scale) as u8, run[scale]) })
}

/// SMOV and UMOV of lanes of fewer than `8 << limit` bits. `a` is the bytes of the result.
pub(super) fn to_general(w: u32, limit: usize, run: [Handler; 4]) -> Maybe {
    let (scale, imm) = imm5(w)?;
    let a = if q(w) { 8 } else { 4 };
    if scale >= limit { None } else { Some(Op { imm, d: to(bits(w, 4, 0)), ..registers(w, a, run[scale]) }) }
}

/// EXT from byte `imm`, which must be in the first source.
pub(super) fn ext(w: u32) -> Maybe {
    let imm = bits(w, 14, 11);
    if imm >= u32::from(width(w)) {
        return None;
    }
    Some(Op { imm: u64::from(imm), ..vector(w, crate::simd::permute::ext)? })
}

/// TBL and TBX with a table of `registers`.
pub(super) fn table(w: u32, registers: u64, run: Handler) -> Maybe {
    Some(Op { imm: registers, ..vector(w, run)? })
}

/// `AdvSIMDExpandImm`, inverted where MVNI and BIC say so.
fn expand_immediate(w: u32) -> u64 {
    let imm8 = u64::from(bits(w, 18, 16) << 5 | bits(w, 9, 5));
    let (op, cmode) = (bit(w, 29), bits(w, 15, 12));
    const WORDS: u64 = 0x1_0000_0001;
    const HALVES: u64 = 0x1_0001_0001_0001;
    const BYTES: u64 = 0x0101_0101_0101_0101;
    match cmode {
        0b0000..=0b0111 => (imm8 << (8 * (cmode >> 1))) * WORDS,
        0b1000..=0b1011 => (imm8 << (8 * (cmode >> 1 & 1))) * HALVES,
        0b1100 => (imm8 << 8 | 0xff) * WORDS,
        0b1101 => (imm8 << 16 | 0xffff) * WORDS,
        0b1110 if !op => imm8 * BYTES,
        0b1110 => (0..8).map(|i| ((imm8 >> i & 1) * 0xff) << (8 * i)).sum(),
        _ if !op => single_immediate(imm8) * WORDS,
        _ => double_immediate(imm8),
    }
}

/// `VFPExpandImm` for single precision.
fn single_immediate(imm8: u64) -> u64 {
    let exponent = if imm8 & 0x40 != 0 { 0x3e00_0000 } else { 0x4000_0000 };
    (imm8 & 0x80) << 24 | exponent | (imm8 & 0x3f) << 19
}

/// `VFPExpandImm` for double precision.
fn double_immediate(imm8: u64) -> u64 {
    let exponent = if imm8 & 0x40 != 0 { 0x3fc0 << 48 } else { 0x4000 << 48 };
    (imm8 & 0x80) << 56 | exponent | (imm8 & 0x3f) << 48
}

/// Modified immediates. MVNI is MOVI of the inverse; BIC inverts by itself.
pub(super) fn modified_immediate(w: u32, run: Handler) -> Maybe {
    let (op, cmode) = (bit(w, 29), bits(w, 15, 12));
    let inverted = op && (cmode < 0b1100 && cmode & 1 == 0 || cmode >> 1 == 0b110);
    let imm = expand_immediate(w);
    Some(Op { imm: if inverted { !imm } else { imm }, ..vector(w, run)? })
}

// Scalar FP.

/// FMOV (scalar, immediate).
pub(super) fn float_immediate(w: u32, a: u8) -> Maybe {
    let imm8 = u64::from(bits(w, 20, 13));
    let imm = if a == 4 { single_immediate(imm8) } else { double_immediate(imm8) };
    Some(Op { imm, ..registers(w, a, logic::movi) })
}

/// The addend is `a`.
pub(super) fn fused(w: u32, run: Handler) -> Maybe {
    Some(registers(w, bits(w, 14, 10) as u8, run))
}

/// The condition is `a`; `imm` are FCCMP's flags.
pub(super) fn conditional(w: u32, run: Handler) -> Maybe {
    Some(Op { imm: u64::from(bits(w, 3, 0)) << 28, ..registers(w, bits(w, 15, 12) as u8, run) })
}

/// From an FP register to a general one.
pub(super) fn from_float(w: u32, run: Handler) -> Maybe {
    Some(Op { d: to(bits(w, 4, 0)), ..registers(w, 8, run) })
}

/// From a general register to an FP one.
pub(super) fn to_float(w: u32, run: Handler) -> Maybe {
    Some(registers(w, 0, run))
}

/// Bits after the point; a 32-bit register has no more than 32.
fn fraction(w: u32) -> Option<u64> {
    let fraction = 64 - bits(w, 15, 10);
    if !bit(w, 31) && fraction > 32 { None } else { Some(u64::from(fraction)) }
}

/// As [`from_float`], to fixed point.
pub(super) fn from_float_fixed(w: u32, run: Handler) -> Maybe {
    Some(Op { imm: fraction(w)?, ..from_float(w, run)? })
}

/// As [`to_float`], from fixed point.
pub(super) fn to_float_fixed(w: u32, run: Handler) -> Maybe {
    Some(Op { imm: fraction(w)?, ..to_float(w, run)? })
}

/// The other half of the vector register.
pub(super) fn top_half(op: Maybe) -> Maybe {
    op.map(|op| Op { imm: 1, ..op })
}

// General registers as sources are used as they are: 31 reads as zero there.
const _: () = assert!(ZERO == 31 && SP > 31);
