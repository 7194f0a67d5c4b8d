//! From decoded instructions to code.

use super::WORDS;
use super::asm::{Alu, Asm, Cond, Jump, R13, R15, RAX, RBP, RCX, RDX, RSI, Shift, W32, W64, at};
use super::buffer::Buffer;
use super::template::{self, Made, Slow, condition, relative, x};
use super::thunks::Thunks;
use crate::core::Op;
use crate::decode::{bit, bits};
use crate::exec::ends_straight;

/// Instructions of a basic block, and of all that is made at once.
const BLOCK: usize = 64;
const UNIT: usize = 256;

/// The link register.
const LR: u8 = 30;

/// Where the handler is called because a template's fast path does not serve.
struct Rest {
    jumps: Slow,
    /// Where to go on afterwards.
    back: usize,
    index: usize,
    /// Instructions of the block from this one on.
    behind: usize,
}

/// A block that does not fit into the budget.
struct Bail {
    jump: Jump,
    index: usize,
    length: usize,
}

struct Unit<'a> {
    asm: Asm,
    buffer: &'a mut Buffer,
    thunks: &'a Thunks,
    ops: &'a [Op; WORDS],
    table: &'a mut [usize; WORDS],
    rest: Vec<Rest>,
    bails: Vec<Bail>,
}

/// A branch by what is in its word.
enum Branch {
    Always { link: bool },
    If,
    Compare,
    Test,
    Register { link: bool },
}

/// `None` for what is not a branch.
fn branch(word: u32) -> Option<Branch> {
    if word & 0x7c00_0000 == 0x1400_0000 {
        Some(Branch::Always { link: bit(word, 31) })
    } else if word & 0xff00_0010 == 0x5400_0000 {
        Some(Branch::If)
    } else if word & 0x7e00_0000 == 0x3400_0000 {
        Some(Branch::Compare)
    } else if word & 0x7e00_0000 == 0x3600_0000 {
        Some(Branch::Test)
    } else if matches!(word & 0xffff_fc1f, 0xd61f_0000 | 0xd63f_0000 | 0xd65f_0000) {
        Some(Branch::Register { link: bits(word, 22, 21) == 1 })
    } else {
        None
    }
}

/// Makes the code of word `start` and of what follows it. `false`: there was no space.
pub(super) fn compile(
    buffer: &mut Buffer,
    thunks: &Thunks,
    ops: &[Op; WORDS],
    decoded: &[bool; WORDS],
    table: &mut [usize; WORDS],
    start: usize,
) -> bool {
    // Plenty for what is made at once.
    if buffer.left() < 256 * UNIT {
        return false;
    }
    let asm = Asm::new(buffer.next());
    let mut unit = Unit { asm, buffer, thunks, ops, table, rest: Vec::new(), bails: Vec::new() };
    let mut at = start;
    let mut falls = true;
    while falls {
        let there = at >= WORDS || unit.table[at] != thunks.uncompiled;
        if there || at - start >= UNIT || !decoded[at] {
            unit.go_to(at as i64);
            break;
        }
        let more = || (at..WORDS.min(at + BLOCK)).take_while(|&i| decoded[i]);
        let length = more()
            .position(|i| branch(ops[i].word).is_some() || ends_straight(ops[i].word))
            .map_or_else(|| more().count(), |last| last + 1);
        match unit.block(at, length) {
            Some(goes_on) => falls = goes_on,
            None => return false,
        }
        at += length;
    }
    unit.finish()
}

impl Unit<'_> {
    /// One basic block. Answers whether control can fall through, or `None` when there is no space.
    fn block(&mut self, at: usize, length: usize) -> Option<bool> {
        self.table[at] = self.asm.here();
        self.asm.alu_imm(Alu::Sub, W64, RBP, length as i32);
        let jump = self.asm.jump_if_later(Cond::SIGN);
        self.bails.push(Bail { jump, index: at, length });
        for index in at..at + length {
            let op = self.ops[index];
            if let Some(branch) = branch(op.word) {
                return Some(self.branch(&op, index, branch));
            }
            self.instruction(&op, index, at + length - index)?;
        }
        Some(true)
    }

    fn instruction(&mut self, op: &Op, index: usize, behind: usize) -> Option<()> {
        let mut jumps = Slow::new();
        let buffer = &mut *self.buffer;
        match template::straight(&mut self.asm, &mut jumps, op, index, |op| buffer.keep(op)) {
            Made::All if jumps.is_empty() => {}
            Made::All => self.rest.push(Rest { jumps, back: self.asm.here(), index, behind }),
            Made::Nothing => self.call_handler(index, behind),
            Made::Full => return None,
        }
        Some(())
    }

    fn call_handler(&mut self, index: usize, behind: usize) {
        self.asm.constant(RSI, index as u64);
        self.asm.constant(RDX, behind as u64);
        self.asm.call(self.thunks.slow);
    }

    /// Goes on at a word of this page, or of another one.
    fn go_to(&mut self, index: i64) {
        match usize::try_from(index) {
            Ok(index) if index < WORDS && self.table[index] != self.thunks.uncompiled => {
                self.asm.jump(self.table[index]);
            }
            Ok(index) if index < WORDS => {
                self.asm.constant(RCX, 4 * index as u64);
                self.asm.jump_mem(at(R13, 8 * index as i32));
            }
            _ => {
                relative(&mut self.asm, 0, index.wrapping_mul(4));
                self.cross();
            }
        }
    }

    /// Goes on at the address in RAX, in another page.
    fn cross(&mut self) {
        self.asm.call(self.thunks.cross);
        self.asm.jump_reg(RAX);
    }

    /// Goes on at a word if a condition holds, and behind here if not.
    fn go_if(&mut self, cond: Cond, index: i64) {
        if let Ok(index) = usize::try_from(index)
            && index < WORDS
            && self.table[index] != self.thunks.uncompiled
        {
            return self.asm.jump_if(cond, self.table[index]);
        }
        let otherwise = self.asm.jump_if_later(cond.inverted());
        self.go_to(index);
        self.asm.land(otherwise);
    }

    /// The branch that ends a block. Answers whether control can fall through.
    fn branch(&mut self, op: &Op, index: usize, branch: Branch) -> bool {
        let target = index as i64 + (op.imm as i64 >> 2);
        let nonzero = bit(op.word, 24);
        match branch {
            Branch::Always { link } => {
                if link {
                    relative(&mut self.asm, index + 1, 0);
                    self.asm.store(3, x(LR), RAX);
                }
                self.go_to(target);
                return false;
            }
            Branch::If => match condition(&mut self.asm, bits(op.word, 3, 0)) {
                Some(cond) => self.go_if(cond, target),
                None => {
                    self.go_to(target);
                    return false;
                }
            },
            Branch::Compare => {
                let w = if bit(op.word, 31) { W64 } else { W32 };
                self.asm.cmp_mem_imm(w, x(op.n), 0);
                self.go_if(if nonzero { Cond::NOT_ZERO } else { Cond::ZERO }, target);
            }
            Branch::Test => {
                let a = u32::from(op.a & 63);
                self.asm.load(W64, RAX, x(op.n));
                self.asm.shift(Shift::Shr, W64, RAX, a);
                self.asm.test_byte_imm(RAX, 1);
                self.go_if(if nonzero { Cond::NOT_ZERO } else { Cond::ZERO }, target);
            }
            Branch::Register { link } => {
                self.register(op, index, link);
                return false;
            }
        }
        true
    }

    fn register(&mut self, op: &Op, index: usize, link: bool) {
        let a = &mut self.asm;
        a.load(W64, RAX, x(op.n));
        // An address with a tag is for the handler.
        a.mov(W64, RCX, RAX);
        a.shift(Shift::Shl, W64, RCX, 8);
        a.shift(Shift::Sar, W64, RCX, 8);
        a.alu(Alu::Cmp, W64, RCX, RAX);
        let tagged = a.jump_if_later(Cond::NOT_ZERO);
        if link {
            a.mov(W64, RDX, RAX);
            relative(a, index + 1, 0);
            a.store(3, x(LR), RAX);
            a.mov(W64, RAX, RDX);
        }
        a.mov(W64, RCX, RAX);
        a.alu(Alu::Sub, W64, RCX, R15);
        a.alu_imm(Alu::Cmp, W64, RCX, 0x1000);
        let elsewhere = a.jump_if_later(Cond::NO_CARRY);
        a.test_byte_imm(RCX, 3);
        let unaligned = a.jump_if_later(Cond::NOT_ZERO);
        a.jump_mem(super::asm::indexed(R13, RCX, 1, 0));
        a.land(elsewhere);
        a.land(unaligned);
        self.cross();
        self.rest.push(Rest { jumps: vec![tagged], back: self.thunks.exit, index, behind: 1 });
    }

    /// What is seldom needed comes last.
    fn finish(mut self) -> bool {
        for Rest { jumps, back, index, behind } in std::mem::take(&mut self.rest) {
            for jump in jumps {
                self.asm.land(jump);
            }
            self.call_handler(index, behind);
            self.asm.jump(back);
        }
        for Bail { jump, index, length } in std::mem::take(&mut self.bails) {
            self.asm.land(jump);
            self.asm.alu_imm(Alu::Add, W64, RBP, length as i32);
            self.asm.constant(RCX, 4 * index as u64);
            self.asm.jump(self.thunks.uncompiled);
        }
        self.buffer.append(&self.asm.finish())
    }
}
