//! LD1 to LD4 and ST1 to ST4: element structures.
//!
//! The accesses are those of the elements, so that alignment is checked against an element's size. What is aligned
//! well enough is moved in larger pieces, which nobody can tell.

use super::memory::{Datum, base_field};
use super::{check_enabled, get, set, splat};
use crate::core::{Core, Ctx, Flow, Handler, Op, SP, ZERO};
use crate::decode::{bit, bits};
use crate::exception::Fault;
use crate::exec::by_bool;
use crate::exec::load_store::{attempt, base};
use crate::mmu::{self, AccessKind};

/// The base register's new value, for the post-indexed forms.
#[inline(always)]
fn write_back(core: &mut Core, op: &Op, base: u64) {
    if bit(op.word, 23) {
        core.r[op.n as usize] = base.wrapping_add(core.r[op.m as usize]).wrapping_add(op.imm & 0xff);
    }
}

/// The bytes of a vector.
#[inline(always)]
fn width(op: &Op) -> u64 {
    if bit(op.word, 30) { 16 } else { 8 }
}

/// A register from memory: `bytes` is 8 or 16.
#[inline(always)]
fn load_register<T: Datum>(core: &mut Core, ctx: &mut Ctx<'_>, va: u64, bytes: u64) -> Result<u128, Fault> {
    const KIND: AccessKind = AccessKind::Normal;
    if bytes == 16 && va & 15 == 0 {
        return mmu::load::<u128>(core, ctx, va, KIND);
    }
    let mut value = 0;
    if va & 7 == 0 {
        for at in (0..bytes).step_by(8) {
            let part: u64 = mmu::load(core, ctx, va.wrapping_add(at), KIND)?;
            value |= u128::from(part) << (8 * at);
        }
    } else {
        for at in (0..bytes).step_by(size_of::<T>()) {
            let part: T = mmu::load(core, ctx, va.wrapping_add(at), KIND)?;
            value |= part.to_register() << (8 * at);
        }
    }
    Ok(value)
}

#[inline(always)]
fn store_register<T: Datum>(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    va: u64,
    bytes: u64,
    value: u128,
) -> Result<(), Fault> {
    const KIND: AccessKind = AccessKind::Normal;
    if bytes == 16 && va & 15 == 0 {
        return mmu::store(core, ctx, va, value, KIND);
    }
    if va & 7 == 0 {
        for at in (0..bytes).step_by(8) {
            mmu::store(core, ctx, va.wrapping_add(at), (value >> (8 * at)) as u64, KIND)?;
        }
    } else {
        for at in (0..bytes).step_by(size_of::<T>()) {
            mmu::store(core, ctx, va.wrapping_add(at), T::from_register(value >> (8 * at)), KIND)?;
        }
    }
    Ok(())
}

/// Register `i` of the list.
#[inline(always)]
fn listed(op: &Op, i: u64) -> usize {
    (u64::from(op.d) + i) as usize % 32
}

/// LD1 and ST1 of `op.a` whole registers.
fn whole<T: Datum, const LOAD: bool, const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let base = attempt!(base::<ON_SP>(core, op, ctx));
    let bytes = width(op);
    for i in 0..u64::from(op.a) {
        let va = base.wrapping_add(i * bytes);
        if LOAD {
            core.v[listed(op, i)] = attempt!(load_register::<T>(core, ctx, va, bytes));
        } else {
            attempt!(store_register::<T>(core, ctx, va, bytes, core.v[listed(op, i)]));
        }
    }
    write_back(core, op, base);
    Flow::Next
}

/// LD2 to LD4 and ST2 to ST4 of whole registers: structures of `op.a` elements.
fn interleaved<T: Datum, const LOAD: bool, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let base = attempt!(base::<ON_SP>(core, op, ctx));
    let size = size_of::<T>() as u64;
    let bits = 8 * size as u32;
    let (count, lanes) = (u64::from(op.a), width(op) / size);
    let mut va = base;
    let mut loaded = [0u128; 4];
    for e in 0..lanes as u32 {
        for i in 0..count {
            if LOAD {
                let part: T = attempt!(mmu::load(core, ctx, va, AccessKind::Normal));
                loaded[i as usize & 3] |= part.to_register() << (e * bits);
            } else {
                let part = u128::from(get(core.v[listed(op, i)], e, bits));
                attempt!(mmu::store(core, ctx, va, T::from_register(part), AccessKind::Normal));
            }
            va = va.wrapping_add(size);
        }
    }
    if LOAD {
        for i in 0..count {
            core.v[listed(op, i)] = loaded[i as usize & 3];
        }
    }
    write_back(core, op, base);
    Flow::Next
}

/// One lane of `op.a` registers: lane number in `op.imm` from bit 8.
fn one_lane<T: Datum, const LOAD: bool, const ON_SP: bool>(
    core: &mut Core,
    op: &Op,
    ctx: &mut Ctx<'_>,
) -> Flow {
    check_enabled!(core, ctx);
    let base = attempt!(base::<ON_SP>(core, op, ctx));
    let size = size_of::<T>() as u64;
    let (bits, lane) = (8 * size as u32, (op.imm >> 8) as u32);
    let mut loaded = [0u64; 4];
    for i in 0..u64::from(op.a) {
        let va = base.wrapping_add(i * size);
        if LOAD {
            let part: T = attempt!(mmu::load(core, ctx, va, AccessKind::Normal));
            loaded[i as usize & 3] = part.to_register() as u64;
        } else {
            let part = u128::from(get(core.v[listed(op, i)], lane, bits));
            attempt!(mmu::store(core, ctx, va, T::from_register(part), AccessKind::Normal));
        }
    }
    if LOAD {
        for i in 0..u64::from(op.a) {
            let v = &mut core.v[listed(op, i)];
            *v = set(*v, lane, bits, loaded[i as usize & 3]);
        }
    }
    write_back(core, op, base);
    Flow::Next
}

/// LD1R to LD4R: one element of each of `op.a` registers, repeated.
fn replicate<T: Datum, const ON_SP: bool>(core: &mut Core, op: &Op, ctx: &mut Ctx<'_>) -> Flow {
    check_enabled!(core, ctx);
    let base = attempt!(base::<ON_SP>(core, op, ctx));
    let size = size_of::<T>() as u64;
    let mut loaded = [0u128; 4];
    for i in 0..u64::from(op.a) {
        let part: T = attempt!(mmu::load(core, ctx, base.wrapping_add(i * size), AccessKind::Normal));
        let all = splat(part.to_register() as u64, 8 * size as u32);
        loaded[i as usize & 3] = if width(op) == 16 { all } else { all & u128::from(u64::MAX) };
    }
    for i in 0..u64::from(op.a) {
        core.v[listed(op, i)] = loaded[i as usize & 3];
    }
    write_back(core, op, base);
    Flow::Next
}

/// A handler by the base-2 logarithm of the element's size.
macro_rules! by_size {
    ($size:expr, $handler:ident $(, $arg:expr)*) => {
        match $size & 3 {
            0 => $handler::<u8 $(, $arg)*>,
            1 => $handler::<u16 $(, $arg)*>,
            2 => $handler::<u32 $(, $arg)*>,
            _ => $handler::<u64 $(, $arg)*>,
        }
    };
}

/// The rest of an op: `bytes` is what a post-index by immediate adds.
fn finish(word: u32, run: Handler, registers: u32, bytes: u32, lane: u32) -> Op {
    // Post-index by register unless the field is 31.
    let rm = bits(word, 20, 16) as u8;
    let by_register = rm != 31;
    Op {
        d: bits(word, 4, 0) as u8,
        n: base_field(word),
        m: if bit(word, 23) && by_register { rm } else { ZERO },
        a: registers as u8,
        imm: u64::from(if by_register { 0 } else { bytes } | lane << 8),
        ..Op::new(run, word)
    }
}

/// Multiple structures. The rows name the opcodes that exist.
pub(crate) fn multiple(word: u32) -> Option<Op> {
    let (size, quad) = (bits(word, 11, 10), bit(word, 30));
    let (registers, elements) = match bits(word, 15, 12) {
        0b0000 => (4, 4),
        0b0010 => (4, 1),
        0b0100 => (3, 3),
        0b0110 => (3, 1),
        0b0111 => (1, 1),
        0b1000 => (2, 2),
        0b1010 => (2, 1),
        _ => return None,
    };
    // One doubleword in each register is no structure.
    if size == 3 && !quad && elements != 1 {
        return None;
    }
    let run: Handler = by_bool!(base_field(word) == SP, ON_SP => by_bool!(bit(word, 22), LOAD => {
        if elements == 1 {
            by_size!(size, whole, LOAD, ON_SP)
        } else {
            by_size!(size, interleaved, LOAD, ON_SP)
        }
    }));
    Some(finish(word, run, registers, registers * if quad { 16 } else { 8 }, 0))
}

/// Single structures: to or from one lane.
pub(crate) fn lane(word: u32) -> Option<Op> {
    let (q, s, size) = (bits(word, 30, 30), bits(word, 12, 12), bits(word, 11, 10));
    let all = q << 3 | s << 2 | size;
    let (scale, index) = match (bits(word, 15, 14), size) {
        (0, _) => (0, all),
        (1, 0 | 2) => (1, all >> 1),
        (2, 0) => (2, all >> 2),
        (2, 1) if s == 0 => (3, q),
        _ => return None,
    };
    let registers = (bits(word, 13, 13) << 1 | bits(word, 21, 21)) + 1;
    let run: Handler = by_bool!(base_field(word) == SP, ON_SP => by_bool!(bit(word, 22), LOAD =>
        by_size!(scale, one_lane, LOAD, ON_SP)));
    Some(finish(word, run, registers, registers << scale, index))
}

/// Load single structure and replicate.
pub(crate) fn repeat(word: u32) -> Option<Op> {
    let size = bits(word, 11, 10);
    let registers = (bits(word, 13, 13) << 1 | bits(word, 21, 21)) + 1;
    let run: Handler = by_bool!(base_field(word) == SP, ON_SP => by_size!(size, replicate, ON_SP));
    Some(finish(word, run, registers, registers << size, 0))
}
