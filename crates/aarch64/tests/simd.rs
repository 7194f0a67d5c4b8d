//! What a user process on QEMU cannot show of SIMD and FP: traps, faults in the middle of an instruction, Device
//! memory, literals, the stack pointer as a base.

mod bare;

use aarch64::Features;
use bare::*;
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

/// One page of RAM ([`DATA`]) with nothing after it.
const LAST_PAGE: u64 = 0x8000_0000;
/// All RAM again, as Device-nGnRnE memory.
const AS_DEVICE: u64 = 0xc000_0000;
const SCTLR_M: u64 = 0x30d0_1805;
const SCTLR_A: u64 = 2;

/// EC 0x07, IL, and the condition fields of an instruction that has none.
const TRAP_FP: u64 = 0x07 << 26 | 1 << 25 | 1 << 24 | 0xe << 20;
/// A Data Abort at EL1: translation fault at level 3, and alignment fault.
const TRANSLATION_READ: u64 = 0x25 << 26 | 1 << 25 | 0b000111;
const TRANSLATION_WRITE: u64 = TRANSLATION_READ | 1 << 6;
const ALIGNMENT_READ: u64 = 0x25 << 26 | 1 << 25 | 0b100001;

type Code = fn(&mut Asm);

/// RAM mapped to itself, the page and the Device mapping.
fn prepare(m: &mut Machine, extra: u64) {
    let (l1, l2, l3) = (TABLES.start, TABLES.start + 0x1000, TABLES.start + 0x2000);
    m.poke(l1 + 8, 0x4000_0000 | 3 << 8 | 1 << 10 | 1);
    m.poke(l1 + 16, l2 | 3);
    m.poke(l1 + 24, 0x4000_0000 | 1 << 2 | 1 << 10 | 1);
    m.poke(l2, l3 | 3);
    m.poke(l3, DATA | 3 << 8 | 1 << 10 | 3);
    let tcr = 25 | 1 << 23 | 4 << 32;
    m.set_translation(0, &Space { ttbr0: l1, ttbr1: 0, tcr, mair: 0xff, sctlr: SCTLR_M | extra });
    m.cluster.core_mut(0).sys.cpacr_el1 = 3 << 20;
    for i in 0..0x200 {
        m.poke(DATA + 8 * i, (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
}

fn v(m: &Machine, n: usize) -> u128 {
    m.cluster.core(0).v[n]
}

fn ram(m: &Machine, pa: u64) -> u128 {
    u128::from(m.peek(pa + 8)) << 64 | u128::from(m.peek(pa))
}

#[test]
fn cpacr_traps() {
    on_both(1, Features::default(), |m| {
        prepare(m, 0);
        let code: [Code; 8] = [
            |ops| dynasm!(ops; .arch aarch64; fadd s0, s1, s2),
            |ops| dynasm!(ops; .arch aarch64; fmov x0, d1),
            |ops| dynasm!(ops; .arch aarch64; add v0.b16, v1.b16, v2.b16),
            |ops| dynasm!(ops; .arch aarch64; ldr q0, [x1]),
            |ops| dynasm!(ops; .arch aarch64; stp d0, d1, [sp, -16]!),
            |ops| dynasm!(ops; .arch aarch64; ld1 {v0.b16}, [x1]),
            |ops| dynasm!(ops; .arch aarch64; fccmp d0, d1, 0, eq),
            |ops| dynasm!(ops; .arch aarch64; movi v0.d2, 0),
        ];
        for one in code {
            m.code(CODE, |ops| {
                one(ops);
                dynasm!(ops; .arch aarch64; hvc 1);
            });
            for (fpen, el0, traps) in [
                (0, false, true),
                (1, false, false),
                (2, false, true),
                (3, false, false),
                (1, true, true),
                (3, true, false),
            ] {
                let core = m.cluster.core_mut(0);
                core.sys.cpacr_el1 = fpen << 20;
                core.pstate.sp_sel = true;
                (core.r[1], core.r[33]) = (DATA, DATA + 0x100);
                // The tables let EL0 do nothing: an access that does not trap aborts, the rest is an UNDEFINED HVC.
                if el0 {
                    m.enter_user(0, CODE);
                } else {
                    m.jump(0, CODE);
                }
                let hvc = m.until_hvc(0);
                let core = m.cluster.core(0);
                if traps {
                    assert_eq!((core.sys.esr[1], core.sys.elr[1]), (TRAP_FP, CODE));
                } else if !el0 {
                    assert_eq!(hvc, 1);
                } else {
                    assert_ne!(core.sys.esr[1] >> 26, 7);
                }
            }
        }
    });
}

#[test]
fn a_fault_in_the_middle_leaves_the_base() {
    on_both(1, Features::default(), |m| {
        prepare(m, 0);
        let code: [(Code, u64); 7] = [
            (|ops| dynasm!(ops; .arch aarch64; ldp q2, q3, [x1], 32), TRANSLATION_READ),
            (|ops| dynasm!(ops; .arch aarch64; stp q2, q3, [x1, 0]!), TRANSLATION_WRITE),
            (|ops| dynasm!(ops; .arch aarch64; ld1 {v2.b16, v3.b16}, [x1], 32), TRANSLATION_READ),
            (|ops| dynasm!(ops; .arch aarch64; ld2 {v2.s4, v3.s4}, [x1], x5), TRANSLATION_READ),
            (
                |ops| dynasm!(ops; .arch aarch64; st4 {v2.h8, v3.h8, v4.h8, v5.h8}, [x1], 64),
                TRANSLATION_WRITE,
            ),
            (|ops| dynasm!(ops; .arch aarch64; ld3 {v2.d, v3.d, v4.d}[1], [x1], 24), TRANSLATION_READ),
            (
                |ops| dynasm!(ops; .arch aarch64; ld4r {v2.d2, v3.d2, v4.d2, v5.d2}, [x1], 32),
                TRANSLATION_READ,
            ),
        ];
        for (one, esr) in code {
            m.code(CODE, |ops| {
                one(ops);
                dynasm!(ops; .arch aarch64; hvc 1);
            });
            let base = LAST_PAGE + 0xff0;
            m.set_x(0, 1, base);
            m.set_x(0, 5, 100);
            m.jump(0, CODE);
            let trap = m.expect_trap(0);
            assert_eq!((trap.esr, trap.far, m.x(0, 1)), (esr, LAST_PAGE + 0x1000, base));
        }
    });
}

#[test]
fn literals_and_stack() {
    on_both(1, Features::default(), |m| {
        prepare(m, 0);
        m.code(CODE, |ops| {
            dynasm!(ops; .arch aarch64
                ; ldr s0, >data
                ; ldr d1, >data
                ; ldr q2, >data
                ; ldr q3, [sp, 16]
                ; stp q3, q2, [sp, -32]!
                ; ldr b4, [sp], 1
                ; hvc 1
                ; .align 16
                ; data:
                ; .u64 0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00
            );
        });
        let core = m.cluster.core_mut(0);
        core.r[33] = DATA + 0x100;
        core.v = [u128::MAX; 32];
        m.jump(0, CODE);
        m.expect_hvc(0, 1);
        assert_eq!(v(m, 0), 0x5566_7788);
        assert_eq!(v(m, 1), 0x1122_3344_5566_7788);
        assert_eq!(v(m, 2), 0x99aa_bbcc_ddee_ff00_1122_3344_5566_7788);
        assert_eq!(v(m, 3), ram(m, DATA + 0x110));
        assert_eq!((ram(m, DATA + 0xe0), ram(m, DATA + 0xf0)), (v(m, 3), v(m, 2)));
        assert_eq!(v(m, 4), v(m, 3) & 0xff);
        assert_eq!(m.cluster.core(0).r[33], DATA + 0xe1);
        // The stack pointer is misaligned now.
        m.code(CODE, |ops| dynasm!(ops; .arch aarch64; ldr b4, [sp]; hvc 1));
        m.cluster.core_mut(0).sys.sctlr_el1 |= 8;
        m.jump(0, CODE);
        assert_eq!(m.expect_trap(0).esr >> 26, 0x26);
        m.cluster.core_mut(0).r[33] = DATA;
    });
}

/// Structures are aligned by element, in Device memory and with alignment checking.
#[test]
fn elements_are_the_accesses() {
    on_both(1, Features::default(), |m| {
        let device = AS_DEVICE + (DATA - RAM);
        for (extra, base) in [(0, device), (SCTLR_A, DATA)] {
            prepare(m, extra);
            m.code(CODE, |ops| {
                dynasm!(ops; .arch aarch64
                    ; ld1 {v0.b16}, [x1]
                    ; ld1 {v1.h8}, [x2]
                    ; ld1 {v2.s4}, [x3]
                    ; ld2 {v4.b16, v5.b16}, [x1]
                    ; hvc 1
                    ; ldr q0, [x1]
                    ; hvc 2
                );
            });
            m.set_x(0, 1, base + 1);
            m.set_x(0, 2, base + 2);
            m.set_x(0, 3, base + 4);
            m.jump(0, CODE);
            m.expect_hvc(0, 1);
            assert_eq!(v(m, 0), ram(m, DATA + 1));
            assert_eq!(v(m, 1), ram(m, DATA + 2));
            assert_eq!(v(m, 2), ram(m, DATA + 4));
            let even = (0..16).fold(0, |r, i| r | (ram(m, DATA + 1 + 2 * i) & 0xff) << (8 * i));
            assert_eq!(v(m, 4), even);
            let trap = m.expect_trap(0);
            assert_eq!((trap.esr, trap.far), (ALIGNMENT_READ, base + 1));
            m.code(CODE, |ops| dynasm!(ops; .arch aarch64; ld1 {v1.h8}, [x1]; hvc 1));
            m.jump(0, CODE);
            let trap = m.expect_trap(0);
            assert_eq!((trap.esr, trap.far), (ALIGNMENT_READ, base + 1));
        }
    });
}
