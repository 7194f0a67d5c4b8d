//! The host code of the most frequent instructions. It does what their handlers in `exec` do, from the operands that
//! decoding left in the [`Op`]: a template is used only for words that were decoded to such a handler.

use std::mem::offset_of;

use super::asm::{Alu, Asm, Cond, Jump, Mem, R12, R14, R15, RAX, RBX, RCX, RDI, RDX, RSI, Reg, Shift};
use super::asm::{W32, W64, Width, at, indexed};
use super::state::{CORE_BIAS, Run};
use crate::core::{Core, Op, SP, ZERO};
use crate::decode::{bit, bits};
use crate::mmu::{Mmu, layout};

/// A general-purpose register of the guest.
pub(super) const fn x(index: u8) -> Mem {
    at(RBX, index as i32 * 8 - CORE_BIAS as i32)
}

/// What is at an offset in [`Core`].
pub(super) const fn field(offset: usize) -> Mem {
    at(RBX, offset as i32 - offset_of!(Core, r) as i32 - CORE_BIAS as i32)
}

const NZCV: Mem = field(offset_of!(Core, nzcv));

/// Jumps of a template to where the handler itself is called instead.
pub(super) type Slow = Vec<Jump>;

fn width(word: u32) -> Width {
    if bit(word, 31) { W64 } else { W32 }
}

fn put(asm: &mut Asm, d: u8, value: Reg) {
    asm.store(3, x(d), value);
}

/// Where the carry is to come from.
#[derive(Clone, Copy)]
enum Carry {
    Add,
    Sub,
    None,
}

/// NZCV from the flags that the host's arithmetic left.
fn put_flags(asm: &mut Asm, carry: Carry) {
    asm.lahf();
    match carry {
        Carry::None => {
            asm.high_byte();
            asm.alu_imm(Alu::And, W32, RCX, 0xc0);
        }
        Carry::Add | Carry::Sub => {
            asm.set(Cond::OVERFLOW, RAX);
            asm.set(if matches!(carry, Carry::Add) { Cond::CARRY } else { Cond::NO_CARRY }, RDX);
            asm.high_byte();
            asm.alu_imm(Alu::And, W32, RCX, 0xc0);
            asm.extend_zero(0, RAX, RAX);
            asm.extend_zero(0, RDX, RDX);
            asm.lea(RDX, indexed(RAX, RDX, 1, 0));
            asm.shift(Shift::Shl, W32, RDX, 4);
            asm.alu(Alu::Or, W32, RCX, RDX);
        }
    }
    asm.shift(Shift::Shl, W32, RCX, 24);
    asm.store(2, NZCV, RCX);
}

/// Leaves flags such that the answer says whether an A64 condition holds. Uses RAX and RCX. `None`: always.
pub(super) fn condition(asm: &mut Asm, cond: u32) -> Option<Cond> {
    let (n, z, c, v) = (1 << 31, 1 << 30, 1 << 29, 1 << 28);
    let holds = match cond >> 1 {
        0..=3 => {
            let flag = [z, c, n, v][(cond >> 1) as usize];
            asm.test_mem_imm(NZCV, flag);
            Cond::NOT_ZERO
        }
        4 => {
            asm.load(W32, RAX, NZCV);
            asm.alu_imm(Alu::And, W32, RAX, (c | z) as i32);
            asm.alu_imm(Alu::Cmp, W32, RAX, c as i32);
            Cond::ZERO
        }
        5 | 6 => {
            // N differs from V, in the sign.
            asm.load(W32, RAX, NZCV);
            asm.mov(W32, RCX, RAX);
            asm.shift(Shift::Shl, W32, RCX, 3);
            if cond >> 1 == 6 {
                // Or Z.
                asm.alu(Alu::Xor, W32, RCX, RAX);
                asm.shift(Shift::Shl, W32, RAX, 1);
                asm.alu(Alu::Or, W32, RAX, RCX);
            } else {
                asm.alu(Alu::Xor, W32, RAX, RCX);
            }
            Cond::NO_SIGN
        }
        _ => return None,
    };
    Some(if cond & 1 == 0 { holds } else { holds.inverted() })
}

/// A constant operand, in place if it can be.
fn alu_constant(asm: &mut Asm, op: Alu, w: Width, value: u64) {
    let short = if w == W64 { i32::try_from(value as i64).ok() } else { Some(value as u32 as i32) };
    match short {
        Some(value) => asm.alu_imm(op, w, RAX, value),
        None => {
            asm.constant(RCX, value);
            asm.alu(op, w, RAX, RCX);
        }
    }
}

/// The end of additions and subtractions: RAX has the result, the host's flags are those of it.
fn finish_sum(asm: &mut Asm, op: &Op) {
    put(asm, op.d, RAX);
    if bit(op.word, 29) {
        put_flags(asm, if bit(op.word, 30) { Carry::Sub } else { Carry::Add });
    }
}

fn add_sub(word: u32) -> Alu {
    if bit(word, 30) { Alu::Sub } else { Alu::Add }
}

fn logical(word: u32) -> Alu {
    [Alu::And, Alu::Or, Alu::Xor, Alu::And][bits(word, 30, 29) as usize]
}

fn finish_logical(asm: &mut Asm, op: &Op) {
    put(asm, op.d, RAX);
    if bits(op.word, 30, 29) == 3 {
        let w = width(op.word);
        asm.test(w, RAX, RAX);
        put_flags(asm, Carry::None);
    }
}

/// Rm, shifted by a constant, into RCX.
fn shifted(asm: &mut Asm, op: &Op) {
    let w = width(op.word);
    asm.load(w, RCX, x(op.m));
    let kind = [Shift::Shl, Shift::Shr, Shift::Sar, Shift::Ror][bits(op.word, 23, 22) as usize];
    asm.shift(kind, w, RCX, bits(op.word, 15, 10));
}

/// Rm, extended, into RCX.
fn extended(asm: &mut Asm, m: u8, option: u32) {
    match option & 7 {
        size @ 0..=2 => asm.load_zero(size, RCX, x(m)),
        3 | 7 => asm.load(W64, RCX, x(m)),
        signed => asm.load_signed(W64, signed - 4, RCX, x(m)),
    }
}

fn bitfield(asm: &mut Asm, op: &Op) {
    let word = op.word;
    let (r, s) = (bits(word, 21, 16), bits(word, 15, 10));
    let w = width(word);
    let size = if w == W64 { 64 } else { 32 };
    let opc = bits(word, 30, 29);
    asm.load(w, RAX, x(op.n));
    if opc != 1 {
        let right = if opc == 0 { Shift::Sar } else { Shift::Shr };
        asm.shift(Shift::Shl, w, RAX, size - 1 - s);
        asm.shift(right, w, RAX, if s >= r { size - 1 - s + r } else { r - s - 1 });
        return put(asm, op.d, RAX);
    }
    let ones = |count: u32| u64::MAX >> (64 - count);
    let mask = if s >= r {
        asm.shift(Shift::Shr, w, RAX, r);
        ones(s - r + 1)
    } else {
        asm.shift(Shift::Shl, w, RAX, size - r);
        ones(s + 1) << (size - r)
    };
    asm.constant(RCX, mask);
    asm.alu(Alu::And, w, RAX, RCX);
    asm.not(w, RCX);
    asm.alu_mem(Alu::And, w, RCX, x(op.d));
    asm.alu(Alu::Or, w, RAX, RCX);
    put(asm, op.d, RAX);
}

fn select(asm: &mut Asm, op: &Op) {
    let w = width(op.word);
    asm.load(w, RDX, x(op.m));
    if bit(op.word, 30) {
        asm.not(w, RDX);
    }
    if bit(op.word, 10) {
        asm.alu_imm(Alu::Add, w, RDX, 1);
    }
    match condition(asm, bits(op.word, 15, 12)) {
        Some(cond) => asm.cmov_mem(cond, w, RDX, x(op.n)),
        None => asm.load(w, RDX, x(op.n)),
    }
    put(asm, op.d, RDX);
}

/// How an address is made. The numbers are bits 11:10 of the word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Offset,
    Post,
    Pre,
}

/// The base, and the first address of the access, into RAX.
fn base(asm: &mut Asm, slow: &mut Slow, op: &Op, form: Form) {
    if op.n == SP {
        asm.test_mem_byte(x(SP), 15);
        slow.push(asm.jump_if_later(Cond::NOT_ZERO));
    }
    asm.load(W64, RAX, x(op.n));
    if form != Form::Post && op.imm != 0 {
        asm.lea(RAX, at(RAX, op.imm as i32));
    }
}

/// Finds the page of the `bytes` at RAX in the fast path: then they are at RAX plus RCX. Uses RDX and RSI.
fn probe(asm: &mut Asm, slow: &mut Slow, bytes: u32, key: usize) {
    asm.mov(W64, RCX, RAX);
    asm.shift(Shift::Shr, W64, RCX, layout::SHIFT);
    asm.alu_imm(Alu::And, W32, RCX, layout::MASK as i32);
    if bytes == 1 {
        asm.mov(W64, RDX, RAX);
    } else {
        asm.lea(RDX, at(RAX, bytes as i32 - 1));
    }
    asm.mov(W64, RSI, RDX);
    asm.shift(Shift::Shr, W64, RSI, 63);
    asm.alu_imm(Alu::And, W64, RDX, -0x1000);
    asm.alu_mem(Alu::Or, W64, RDX, tags(RSI));
    asm.alu_mem(Alu::Cmp, W64, RDX, indexed(R14, RCX, 0, key as i32));
    slow.push(asm.jump_if_later(Cond::NOT_ZERO));
    asm.load(W64, RCX, indexed(R14, RCX, 0, layout::ADDEND as i32));
}

/// The tag of the half of the address space that the register says.
pub(super) fn tags(half: Reg) -> Mem {
    let offset = offset_of!(Core, mmu) + Mmu::TAGS;
    indexed(RBX, half, 3, offset as i32 - offset_of!(Core, r) as i32 - CORE_BIAS as i32)
}

/// Writes the base back where the form says so. RAX is as [`base`] left it.
fn write_back(asm: &mut Asm, op: &Op, form: Form) {
    match form {
        Form::Offset => {}
        Form::Pre => put(asm, op.n, RAX),
        Form::Post => {
            asm.lea(RAX, at(RAX, op.imm as i32));
            put(asm, op.n, RAX);
        }
    }
}

/// One register, once RAX has the address.
fn single(asm: &mut Asm, slow: &mut Slow, op: &Op, form: Form) {
    let (size, opc) = (bits(op.word, 31, 30), bits(op.word, 23, 22));
    let host = indexed(RAX, RCX, 0, 0);
    if opc == 0 {
        probe(asm, slow, 1 << size, layout::WRITE);
        asm.load(W64, RDX, x(op.d));
        asm.store(size, host, RDX);
        write_back(asm, op, form);
        return;
    }
    probe(asm, slow, 1 << size, layout::READ);
    match opc {
        1 => asm.load_zero(size, RDX, host),
        2 => asm.load_signed(W64, size, RDX, host),
        _ => asm.load_signed(W32, size, RDX, host),
    }
    write_back(asm, op, form);
    put(asm, op.d, RDX);
}

fn pair(asm: &mut Asm, slow: &mut Slow, op: &Op, form: Form) {
    let (opc, load) = (bits(op.word, 31, 30), bit(op.word, 22));
    let size = if opc == 2 { 3 } else { 2 };
    base(asm, slow, op, form);
    probe(asm, slow, 2 << size, if load { layout::READ } else { layout::WRITE });
    let (first, second) = (indexed(RAX, RCX, 0, 0), indexed(RAX, RCX, 0, 1 << size));
    if !load {
        asm.load(W64, RDX, x(op.d));
        asm.load(W64, RSI, x(op.a));
        asm.store(size, first, RDX);
        asm.store(size, second, RSI);
        return write_back(asm, op, form);
    }
    if opc == 1 {
        asm.load_signed(W64, size, RDX, first);
        asm.load_signed(W64, size, RSI, second);
    } else {
        asm.load_zero(size, RDX, first);
        asm.load_zero(size, RSI, second);
    }
    write_back(asm, op, form);
    put(asm, op.d, RDX);
    put(asm, op.a, RSI);
}

/// The address of word `index` of the page that executes, plus an offset, into RAX.
pub(super) fn relative(asm: &mut Asm, index: usize, offset: i64) {
    let distance = offset.wrapping_add(4 * index as i64);
    match i32::try_from(distance) {
        Ok(distance) => asm.lea(RAX, at(R15, distance)),
        Err(_) => {
            asm.constant(RAX, distance as u64);
            asm.alu(Alu::Add, W64, RAX, R15);
        }
    }
}

/// Calls the handler of an op by itself, or its fast path.
fn call(asm: &mut Asm, slow: &mut Slow, native: crate::exec::chain::Native, op: usize) {
    asm.load(W64, RDI, at(R12, offset_of!(Run, core) as i32));
    asm.constant(RSI, op as u64);
    asm.load(W64, RDX, at(R12, offset_of!(Run, ctx) as i32));
    asm.constant(RAX, native as usize as u64);
    asm.call_reg(RAX);
    asm.test_byte(RAX, RAX);
    slow.push(asm.jump_if_later(Cond::ZERO));
}

/// What [`straight`] made.
pub(super) enum Made {
    /// All of the instruction.
    All,
    /// Nothing: the handler is to be called the slow way.
    Nothing,
    /// Nothing: no space for more ops.
    Full,
}

/// The code of an instruction that is not a branch. `keep` finds a place for a copy of the op.
pub(super) fn straight(
    asm: &mut Asm,
    slow: &mut Slow,
    op: &Op,
    index: usize,
    keep: impl FnOnce(&Op) -> Option<usize>,
) -> Made {
    let word = op.word;
    if word & 0x1f00_0000 == 0x1000_0000 {
        if bit(word, 31) {
            relative(asm, 0, op.imm as i64)
        } else {
            relative(asm, index, op.imm as i64)
        }
        put(asm, op.d, RAX);
        return Made::All;
    }
    // Literals: 32 and 64 bits, and 32 sign-extended.
    if word & 0x3f00_0000 == 0x1800_0000 && bits(word, 31, 30) != 3 {
        relative(asm, index, op.imm as i64);
        let size = if bits(word, 31, 30) == 1 { 3 } else { 2 };
        probe(asm, slow, 1 << size, layout::READ);
        if bits(word, 31, 30) == 2 {
            asm.load_signed(W64, 2, RDX, indexed(RAX, RCX, 0, 0));
        } else {
            asm.load_zero(size, RDX, indexed(RAX, RCX, 0, 0));
        }
        put(asm, op.d, RDX);
        return Made::All;
    }
    let Some(native) = op.native else { return Made::Nothing };
    let w = width(word);
    match word >> 24 & 0x1f {
        // Additions and subtractions: immediate, shifted, extended.
        0x11 => {
            asm.load(w, RAX, x(op.n));
            asm.alu_imm(add_sub(word), w, RAX, op.imm as i32);
            finish_sum(asm, op);
        }
        0x0b => {
            if bit(word, 21) {
                extended(asm, op.m, bits(word, 15, 13));
                asm.shift(Shift::Shl, W64, RCX, bits(word, 12, 10));
            } else {
                shifted(asm, op);
            }
            asm.load(w, RAX, x(op.n));
            asm.alu(add_sub(word), w, RAX, RCX);
            finish_sum(asm, op);
        }
        // Logical: immediate, or move wide.
        0x12 if !bit(word, 23) => {
            asm.load(w, RAX, x(op.n));
            alu_constant(asm, logical(word), w, op.imm);
            finish_logical(asm, op);
        }
        0x12 if bits(word, 30, 29) == 3 => {
            asm.load(w, RAX, x(op.d));
            asm.constant(RCX, !(0xffff << op.a));
            asm.alu(Alu::And, w, RAX, RCX);
            alu_constant(asm, Alu::Or, w, op.imm);
            put(asm, op.d, RAX);
        }
        0x12 => {
            asm.constant(RAX, op.imm);
            put(asm, op.d, RAX);
        }
        // Logical, shifted register.
        0x0a => {
            shifted(asm, op);
            if bit(word, 21) {
                asm.not(w, RCX);
            }
            if op.n == ZERO && bits(word, 30, 29) == 1 {
                put(asm, op.d, RCX);
            } else {
                asm.load(w, RAX, x(op.n));
                asm.alu(logical(word), w, RAX, RCX);
                finish_logical(asm, op);
            }
        }
        0x13 if !bit(word, 23) => bitfield(asm, op),
        0x1a if bits(word, 23, 21) == 4 => select(asm, op),
        // Loads and stores of a general register: the unsigned offset; the others by bits 11:10.
        0x19 if !bit(word, 26) && !prefetch(word) => {
            base(asm, slow, op, Form::Offset);
            single(asm, slow, op, Form::Offset);
        }
        0x18 if word & 0x3f20_0000 == 0x3800_0000 && bits(word, 11, 10) != 2 && !prefetch(word) => {
            let form = [Form::Offset, Form::Post, Form::Offset, Form::Pre][bits(word, 11, 10) as usize];
            base(asm, slow, op, form);
            single(asm, slow, op, form);
        }
        0x18 if word & 0x3f20_0c00 == 0x3820_0800 && !prefetch(word) => {
            let offset = Op { imm: 0, ..*op };
            base(asm, slow, &offset, Form::Offset);
            extended(asm, op.m, bits(word, 15, 13));
            asm.shift(Shift::Shl, W64, RCX, u32::from(op.a));
            asm.alu(Alu::Add, W64, RAX, RCX);
            single(asm, slow, op, Form::Offset);
        }
        0x08 | 0x09 if word & 0x3e00_0000 == 0x2800_0000 => {
            let form = [Form::Offset, Form::Post, Form::Offset, Form::Pre][bits(word, 24, 23) as usize];
            pair(asm, slow, op, form);
        }
        // Hints and barriers that do nothing.
        0x15 if word & 0xffff_e000 == 0xd503_2000 => {}
        _ => match keep(op) {
            Some(op) => call(asm, slow, native, op),
            None => return Made::Full,
        },
    }
    Made::All
}

/// PRFM among the loads and stores of a general register.
fn prefetch(word: u32) -> bool {
    bits(word, 31, 30) == 3 && bits(word, 23, 22) == 2
}
