//! From decoded instructions to code.

use std::mem::offset_of;

use super::asm::{
    Alu, Asm, Cond, Jump, R12, R13, R15, RAX, RBP, RCX, RDX, RSI, Shift, W32, W64, at, indexed,
};
use super::buffer::Buffer;
use super::state::Run;
use super::template::{self, Made, Slow, condition, relative, tags, x};
use super::thunks::Thunks;
use super::{NativePage, WORDS};
use crate::core::Op;
use crate::decode::{bit, bits};
use crate::exec::ends_straight;
use crate::mmu::layout;

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
    table: &'a mut [u32; WORDS],
    rest: Vec<Rest>,
    bails: Vec<Bail>,
    /// Jumps to what has no code yet: for now they leave.
    exits: Vec<(Jump, usize)>,
    /// Jumps to where a page that the fast path of fetches does not know is looked up. RAX has the address.
    crosses: Vec<Slow>,
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

/// From an address in RAX to its code by the fast path of fetches, as `mmu::fetch_fast` has it. Answers the jumps for
/// where that does not serve.
fn cross_fast(a: &mut Asm) -> Slow {
    let mut slow = Slow::new();
    a.test_byte_imm(RAX, 3);
    slow.push(a.jump_if_later(Cond::NOT_ZERO));
    a.mov(W64, RCX, RAX);
    a.shift(Shift::Shr, W64, RCX, layout::SHIFT);
    a.alu_imm(Alu::And, W32, RCX, layout::MASK as i32);
    a.alu_mem(Alu::Add, W64, RCX, at(R12, offset_of!(Run, code_entries) as i32));
    a.mov(W64, RDX, RAX);
    a.shift(Shift::Shr, W64, RDX, 63);
    a.load(W64, RDX, tags(RDX));
    a.mov(W64, RSI, RAX);
    a.alu_imm(Alu::And, W64, RSI, -0x1000);
    a.alu(Alu::Or, W64, RDX, RSI);
    a.alu_mem(Alu::Cmp, W64, RDX, at(RCX, layout::READ as i32));
    slow.push(a.jump_if_later(Cond::NOT_ZERO));
    a.load(W64, RDX, at(RCX, layout::ADDEND as i32));
    a.test(W64, RDX, RDX);
    slow.push(a.jump_if_later(Cond::ZERO));
    a.mov(W64, R13, RDX);
    a.mov(W64, R15, RSI);
    // RCX as the way out for what has no code wants it.
    a.mov(W32, RCX, RAX);
    a.alu_imm(Alu::And, W32, RCX, 0xfff);
    a.load(W32, RAX, indexed(R13, RCX, 0, 0));
    slow
}

/// Makes the code of word `start` and of what follows it. `false`: there was no space.
pub(super) fn compile(
    buffer: &mut Buffer,
    thunks: &Thunks,
    ops: &[Op; WORDS],
    decoded: &[bool; WORDS],
    page: &mut NativePage,
    start: usize,
) -> bool {
    // Plenty for what is made at once.
    if buffer.left() < 256 * UNIT {
        return false;
    }
    let asm = Asm::new(buffer.next());
    let table = &mut page.table;
    let (rest, bails, exits, crosses) = Default::default();
    let mut unit = Unit { asm, buffer, thunks, ops, table, rest, bails, exits, crosses };
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
    let Some(open) = unit.finish() else { return false };
    page.open.extend(open);
    // Those that lead to what was just made.
    page.open.retain(|&(index, at)| {
        let target = page.table[usize::from(index)];
        let has_code = target != thunks.uncompiled;
        if has_code {
            buffer.link(at as usize, target as usize);
        }
        !has_code
    });
    true
}

impl Unit<'_> {
    /// One basic block. Answers whether control can fall through, or `None` when there is no space.
    fn block(&mut self, at: usize, length: usize) -> Option<bool> {
        self.table[at] = self.asm.here() as u32;
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
                self.asm.jump(self.table[index] as usize);
            }
            Ok(index) if index < WORDS => {
                let jump = self.asm.jump_later();
                self.exits.push((jump, index));
            }
            _ => {
                relative(&mut self.asm, 0, index.wrapping_mul(4));
                self.cross();
            }
        }
    }

    /// Goes on at the address in RAX, in another page.
    fn cross(&mut self) {
        // Here, not in a function: the host's branch predictor has little room, and this is one jump.
        let slow = cross_fast(&mut self.asm);
        self.asm.jump_reg(RAX);
        self.crosses.push(slow);
    }

    /// Goes on at a word if a condition holds, and behind here if not.
    fn go_if(&mut self, cond: Cond, index: i64) {
        if let Ok(index) = usize::try_from(index)
            && index < WORDS
        {
            if self.table[index] != self.thunks.uncompiled {
                return self.asm.jump_if(cond, self.table[index] as usize);
            }
            let jump = self.asm.jump_if_later(cond);
            return self.exits.push((jump, index));
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
        a.load(W32, RAX, indexed(R13, RCX, 0, 0));
        a.jump_reg(RAX);
        a.land(elsewhere);
        a.land(unaligned);
        self.cross();
        self.rest.push(Rest { jumps: vec![tagged], back: self.thunks.exit, index, behind: 1 });
    }

    /// What is seldom needed comes last. Answers the jumps to what has no code yet, or `None` when there is no space.
    fn finish(mut self) -> Option<Vec<(u16, u32)>> {
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
            self.asm.jump(self.thunks.uncompiled as usize);
        }
        for jumps in std::mem::take(&mut self.crosses) {
            for jump in jumps {
                self.asm.land(jump);
            }
            self.asm.call(self.thunks.cross);
            self.asm.jump_reg(RAX);
        }
        let mut open = Vec::new();
        for (jump, index) in std::mem::take(&mut self.exits) {
            open.push((index as u16, self.asm.distance_at(jump) as u32));
            self.asm.land(jump);
            self.asm.constant(RCX, 4 * index as u64);
            self.asm.jump(self.thunks.uncompiled as usize);
        }
        self.buffer.append(&self.asm.finish()).then_some(open)
    }
}
