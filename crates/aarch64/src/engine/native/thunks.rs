//! The pieces that all generated code shares: how it is entered and left, and how it calls.

use std::mem::offset_of;

use super::asm::{Alu, Asm, Cond, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, Reg};
use super::asm::{W64, at, indexed};
use super::buffer::Buffer;
use super::state::Run;
use super::template::field;
use crate::core::Core;

/// Addresses of the pieces.
#[derive(Clone, Copy)]
pub(super) struct Thunks {
    /// A function of a `Run` and of where to begin.
    pub(super) enter: usize,
    /// Leaves, at the `pc` that is there already.
    pub(super) exit: usize,
    /// Leaves; RCX is the offset in the page to go on at.
    pub(super) uncompiled: u32,
    /// Calls the handler of word ESI, RDX instructions before RBP will be what is left. Returns if code goes on.
    pub(super) slow: usize,
    /// RAX: from an address in another page to its code.
    pub(super) cross: usize,
    /// Bytes of the buffer that these take.
    pub(super) end: usize,
}

const SAVED: [Reg; 6] = [RBX, RBP, R12, R13, R14, R15];

impl Thunks {
    pub(super) fn new(buffer: &mut Buffer) -> Option<Self> {
        let mut asm = Asm::new(buffer.next());
        let a = &mut asm;

        let enter = a.here();
        for r in SAVED {
            a.push(r);
        }
        // The stack is aligned for calls from here on.
        a.alu_imm(Alu::Sub, W64, RSP, 8);
        a.mov(W64, R12, RDI);
        a.load(W64, RBX, at(R12, offset_of!(Run, registers) as i32));
        a.load(W64, RBP, at(R12, offset_of!(Run, left) as i32));
        a.load(W64, R13, at(R12, offset_of!(Run, page) as i32));
        a.load(W64, R14, at(R12, offset_of!(Run, entries) as i32));
        a.load(W64, R15, at(R12, offset_of!(Run, page_va) as i32));
        a.jump_reg(RSI);

        let uncompiled = a.here();
        a.lea(RAX, indexed(R15, RCX, 0, 0));
        a.store(3, field(offset_of!(Core, pc)), RAX);
        let exit = a.here();
        a.store(3, at(R12, offset_of!(Run, left) as i32), RBP);
        let out = a.here();
        a.alu_imm(Alu::Add, W64, RSP, 8);
        for r in SAVED.into_iter().rev() {
            a.pop(r);
        }
        a.ret();

        let slow = a.here();
        a.alu_imm(Alu::Sub, W64, RSP, 8);
        a.store(3, at(R12, offset_of!(Run, page) as i32), R13);
        a.store(3, at(R12, offset_of!(Run, page_va) as i32), R15);
        a.mov(W64, RDI, R12);
        a.alu(Alu::Add, W64, RDX, RBP);
        a.call_mem(at(R12, offset_of!(Run, slow) as i32));
        a.test_byte(RAX, RAX);
        let leave = a.jump_if_later(Cond::NOT_ZERO);
        a.load(W64, R14, at(R12, offset_of!(Run, entries) as i32));
        a.alu_imm(Alu::Add, W64, RSP, 8);
        a.ret();
        a.land(leave);
        // Over the return address.
        a.alu_imm(Alu::Add, W64, RSP, 16);
        a.jump(out);

        let cross = a.here();
        a.alu_imm(Alu::Sub, W64, RSP, 8);
        a.mov(W64, RDI, R12);
        a.mov(W64, RSI, RAX);
        a.call_mem(at(R12, offset_of!(Run, cross) as i32));
        a.load(W64, R13, at(R12, offset_of!(Run, page) as i32));
        a.load(W64, R15, at(R12, offset_of!(Run, page_va) as i32));
        a.alu_imm(Alu::Add, W64, RSP, 8);
        a.ret();

        let code = asm.finish();
        buffer.append(&code).then_some(Self {
            enter,
            exit,
            uncompiled: u32::try_from(uncompiled).ok()?,
            slow,
            cross,
            end: buffer.used(),
        })
    }
}
