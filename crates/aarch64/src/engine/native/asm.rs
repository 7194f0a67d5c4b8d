//! An assembler for the x86-64 instructions that the templates use. Intel's names; operands destination first.

/// A general register of the host, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reg(u8);

pub(super) const RAX: Reg = Reg(0);
pub(super) const RCX: Reg = Reg(1);
pub(super) const RDX: Reg = Reg(2);
pub(super) const RBX: Reg = Reg(3);
pub(super) const RSP: Reg = Reg(4);
pub(super) const RBP: Reg = Reg(5);
pub(super) const RSI: Reg = Reg(6);
pub(super) const RDI: Reg = Reg(7);
pub(super) const R12: Reg = Reg(12);
pub(super) const R13: Reg = Reg(13);
pub(super) const R14: Reg = Reg(14);
pub(super) const R15: Reg = Reg(15);

/// A place in memory: base, perhaps an index times 1, 2, 4 or 8, and a displacement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mem {
    base: Reg,
    index: Option<(Reg, u8)>,
    disp: i32,
}

/// `[base + disp]`.
pub(super) const fn at(base: Reg, disp: i32) -> Mem {
    Mem { base, index: None, disp }
}

/// `[base + (index << shift) + disp]`. The index is not RSP.
pub(super) const fn indexed(base: Reg, index: Reg, shift: u8, disp: i32) -> Mem {
    Mem { base, index: Some((index, shift)), disp }
}

/// Whether an operation is on 64 bits or on 32, which clears the upper half of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    W32,
    W64,
}

pub(super) use Width::{W32, W64};

/// Arithmetic on two operands: the number in its opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Shifts: the number in the opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    Ror = 1,
    Shl = 4,
    Shr = 5,
    Sar = 7,
}

/// Conditions: the number in the opcode. The lowest bit inverts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cond(u8);

impl Cond {
    pub(super) const OVERFLOW: Cond = Cond(0);
    /// Unsigned less: the carry flag.
    pub(super) const CARRY: Cond = Cond(2);
    pub(super) const NO_CARRY: Cond = Cond(3);
    pub(super) const ZERO: Cond = Cond(4);
    pub(super) const NOT_ZERO: Cond = Cond(5);
    pub(super) const SIGN: Cond = Cond(8);
    pub(super) const NO_SIGN: Cond = Cond(9);

    pub(super) const fn inverted(self) -> Cond {
        Cond(self.0 ^ 1)
    }
}

/// A jump whose target is not known yet.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Jump(usize);

/// Code that will be at a known address.
pub(super) struct Asm {
    code: Vec<u8>,
    base: usize,
}

impl Asm {
    pub(super) fn new(base: usize) -> Self {
        Self { code: Vec::with_capacity(1024), base }
    }

    /// The address of what comes next.
    pub(super) fn here(&self) -> usize {
        self.base + self.code.len()
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.code
    }

    fn byte(&mut self, byte: u8) {
        self.code.push(byte);
    }

    fn imm32(&mut self, value: i32) {
        self.code.extend_from_slice(&value.to_le_bytes());
    }

    /// Opcode, with the register and the memory operand.
    fn with_mem(&mut self, w: Width, opcode: &[u8], reg: u8, m: Mem, byte_register: bool) {
        let index = m.index.map_or(0, |(r, _)| r.0);
        let rex =
            0x40 | u8::from(w == W64) << 3 | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | m.base.0 >> 3;
        if rex != 0x40 || byte_register {
            self.byte(rex);
        }
        self.code.extend_from_slice(opcode);
        // RBP and R13 as a base always take a displacement.
        let mode = match m.disp {
            0 if m.base.0 & 7 != 5 => 0,
            -128..=127 => 1,
            _ => 2,
        };
        let field = (reg & 7) << 3;
        match m.index {
            Some((r, shift)) => {
                self.byte(mode << 6 | field | 4);
                self.byte(shift << 6 | (r.0 & 7) << 3 | m.base.0 & 7);
            }
            // RSP and R12 as a base need the byte that could name an index.
            None if m.base.0 & 7 == 4 => {
                self.byte(mode << 6 | field | 4);
                self.byte(0x24);
            }
            None => self.byte(mode << 6 | field | m.base.0 & 7),
        }
        match mode {
            1 => self.byte(m.disp as u8),
            2 => self.imm32(m.disp),
            _ => {}
        }
    }

    /// Opcode, with two registers.
    fn with_reg(&mut self, w: Width, opcode: &[u8], reg: u8, rm: Reg, byte_register: bool) {
        let rex = 0x40 | u8::from(w == W64) << 3 | (reg >> 3 & 1) << 2 | rm.0 >> 3;
        if rex != 0x40 || byte_register {
            self.byte(rex);
        }
        self.code.extend_from_slice(opcode);
        self.byte(0xc0 | (reg & 7) << 3 | rm.0 & 7);
    }

    pub(super) fn mov(&mut self, w: Width, d: Reg, s: Reg) {
        self.with_reg(w, &[0x8b], d.0, s, false);
    }

    pub(super) fn load(&mut self, w: Width, d: Reg, m: Mem) {
        self.with_mem(w, &[0x8b], d.0, m, false);
    }

    /// Stores 8, 4, 2 or 1 bytes: `size` is the base-2 logarithm.
    pub(super) fn store(&mut self, size: u32, m: Mem, s: Reg) {
        match size {
            0 => self.with_mem(W32, &[0x88], s.0, m, true),
            1 => {
                self.byte(0x66);
                self.with_mem(W32, &[0x89], s.0, m, false);
            }
            2 => self.with_mem(W32, &[0x89], s.0, m, false),
            _ => self.with_mem(W64, &[0x89], s.0, m, false),
        }
    }

    /// Loads 4, 2 or 1 bytes, zero-extended, or 8.
    pub(super) fn load_zero(&mut self, size: u32, d: Reg, m: Mem) {
        match size {
            0 => self.with_mem(W32, &[0x0f, 0xb6], d.0, m, false),
            1 => self.with_mem(W32, &[0x0f, 0xb7], d.0, m, false),
            2 => self.with_mem(W32, &[0x8b], d.0, m, false),
            _ => self.with_mem(W64, &[0x8b], d.0, m, false),
        }
    }

    /// Loads 4, 2 or 1 bytes, sign-extended to the width.
    pub(super) fn load_signed(&mut self, w: Width, size: u32, d: Reg, m: Mem) {
        match (size, w) {
            (0, _) => self.with_mem(w, &[0x0f, 0xbe], d.0, m, false),
            (1, _) => self.with_mem(w, &[0x0f, 0xbf], d.0, m, false),
            (_, W64) => self.with_mem(W64, &[0x63], d.0, m, false),
            (_, W32) => self.with_mem(W32, &[0x8b], d.0, m, false),
        }
    }

    /// Zero-extends 4, 2 or 1 bytes to 64 bits.
    pub(super) fn extend_zero(&mut self, size: u32, d: Reg, s: Reg) {
        match size {
            0 => self.with_reg(W32, &[0x0f, 0xb6], d.0, s, true),
            1 => self.with_reg(W32, &[0x0f, 0xb7], d.0, s, false),
            _ => self.mov(W32, d, s),
        }
    }

    pub(super) fn lea(&mut self, d: Reg, m: Mem) {
        self.with_mem(W64, &[0x8d], d.0, m, false);
    }

    /// A constant, in the shortest of its forms. Flags stay.
    pub(super) fn constant(&mut self, d: Reg, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            if d.0 >= 8 {
                self.byte(0x41);
            }
            self.byte(0xb8 | d.0 & 7);
            self.imm32(value as i32);
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.with_reg(W64, &[0xc7], 0, d, false);
            self.imm32(value);
        } else {
            self.byte(0x48 | d.0 >> 3);
            self.byte(0xb8 | d.0 & 7);
            self.code.extend_from_slice(&value.to_le_bytes());
        }
    }

    pub(super) fn alu(&mut self, op: Alu, w: Width, d: Reg, s: Reg) {
        self.with_reg(w, &[(op as u8) << 3 | 3], d.0, s, false);
    }

    pub(super) fn alu_mem(&mut self, op: Alu, w: Width, d: Reg, m: Mem) {
        self.with_mem(w, &[(op as u8) << 3 | 3], d.0, m, false);
    }

    pub(super) fn alu_imm(&mut self, op: Alu, w: Width, d: Reg, value: i32) {
        match i8::try_from(value) {
            Ok(value) => {
                self.with_reg(w, &[0x83], op as u8, d, false);
                self.byte(value as u8);
            }
            Err(_) => {
                self.with_reg(w, &[0x81], op as u8, d, false);
                self.imm32(value);
            }
        }
    }

    /// Compares memory with a constant.
    pub(super) fn cmp_mem_imm(&mut self, w: Width, m: Mem, value: i8) {
        self.with_mem(w, &[0x83], Alu::Cmp as u8, m, false);
        self.byte(value as u8);
    }

    /// Flags of a bitwise AND.
    pub(super) fn test(&mut self, w: Width, a: Reg, b: Reg) {
        self.with_reg(w, &[0x85], a.0, b, false);
    }

    pub(super) fn test_byte(&mut self, a: Reg, b: Reg) {
        self.with_reg(W32, &[0x84], a.0, b, true);
    }

    pub(super) fn test_byte_imm(&mut self, a: Reg, value: u8) {
        self.with_reg(W32, &[0xf6], 0, a, true);
        self.byte(value);
    }

    /// Flags of memory AND a constant: of a byte or of 32 bits.
    pub(super) fn test_mem_imm(&mut self, m: Mem, value: u32) {
        self.with_mem(W32, &[0xf7], 0, m, false);
        self.imm32(value as i32);
    }

    pub(super) fn test_mem_byte(&mut self, m: Mem, value: u8) {
        self.with_mem(W32, &[0xf6], 0, m, false);
        self.byte(value);
    }

    pub(super) fn shift(&mut self, op: Shift, w: Width, d: Reg, amount: u32) {
        if amount != 0 {
            self.with_reg(w, &[0xc1], op as u8, d, false);
            self.byte(amount as u8);
        }
    }

    pub(super) fn not(&mut self, w: Width, d: Reg) {
        self.with_reg(w, &[0xf7], 2, d, false);
    }

    pub(super) fn set(&mut self, cond: Cond, d: Reg) {
        self.with_reg(W32, &[0x0f, 0x90 | cond.0], 0, d, true);
    }

    pub(super) fn cmov_mem(&mut self, cond: Cond, w: Width, d: Reg, m: Mem) {
        self.with_mem(w, &[0x0f, 0x40 | cond.0], d.0, m, false);
    }

    /// SF, ZF and CF into bits 15, 14 and 8 of RAX.
    pub(super) fn lahf(&mut self) {
        self.byte(0x9f);
    }

    /// The upper of the two low bytes of RAX, zero-extended into RCX.
    pub(super) fn high_byte(&mut self) {
        self.code.extend_from_slice(&[0x0f, 0xb6, 0xcc]);
    }

    pub(super) fn push(&mut self, r: Reg) {
        if r.0 >= 8 {
            self.byte(0x41);
        }
        self.byte(0x50 | r.0 & 7);
    }

    pub(super) fn pop(&mut self, r: Reg) {
        if r.0 >= 8 {
            self.byte(0x41);
        }
        self.byte(0x58 | r.0 & 7);
    }

    pub(super) fn ret(&mut self) {
        self.byte(0xc3);
    }

    pub(super) fn jump_reg(&mut self, r: Reg) {
        self.with_reg(W32, &[0xff], 4, r, false);
    }

    pub(super) fn call_reg(&mut self, r: Reg) {
        self.with_reg(W32, &[0xff], 2, r, false);
    }

    pub(super) fn call_mem(&mut self, m: Mem) {
        self.with_mem(W32, &[0xff], 2, m, false);
    }

    /// The distance to `target` from behind a 32-bit field that comes next. Code is in one buffer of less than 2 GiB.
    fn relative(&mut self, target: usize) {
        let distance = target as i64 - (self.here() as i64 + 4);
        self.imm32(distance as i32);
    }

    pub(super) fn call(&mut self, target: usize) {
        self.byte(0xe8);
        self.relative(target);
    }

    pub(super) fn jump(&mut self, target: usize) {
        self.byte(0xe9);
        self.relative(target);
    }

    pub(super) fn jump_if(&mut self, cond: Cond, target: usize) {
        self.code.extend_from_slice(&[0x0f, 0x80 | cond.0]);
        self.relative(target);
    }

    /// A conditional jump to where [`Asm::land`] will say.
    pub(super) fn jump_if_later(&mut self, cond: Cond) -> Jump {
        self.code.extend_from_slice(&[0x0f, 0x80 | cond.0]);
        self.imm32(0);
        Jump(self.code.len())
    }

    /// Where the distance of a jump is.
    pub(super) fn distance_at(&self, jump: Jump) -> usize {
        self.base + jump.0 - 4
    }

    /// A jump to where [`Asm::land`] will say.
    pub(super) fn jump_later(&mut self) -> Jump {
        self.byte(0xe9);
        self.imm32(0);
        Jump(self.code.len())
    }

    /// The target of a jump is here.
    pub(super) fn land(&mut self, jump: Jump) {
        let distance = (self.code.len() - jump.0) as i32;
        self.code[jump.0 - 4..jump.0].copy_from_slice(&distance.to_le_bytes());
    }
}
