//! Code that changes: what the manual promises about instructions that were modified (DDI 0487 B2.4.4), with the cache
//! maintenance that it asks for, on decoded and undecoded pages alike.

mod bare;

use aarch64::Features;
use bare::*;
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use pgtable::descriptor as d;
use pgtable::{Builder, Stage1};

/// MOVZ X0, #n.
fn movz(n: u64) -> u64 {
    0xd280_0000 | n << 5
}

/// DC CVAU; DSB; IC IVAU; DSB; ISB on the line at [X9].
fn sync(ops: &mut Asm) {
    dynasm!(ops; .arch aarch64; dc cvau, x9; dsb ish; ic ivau, x9; dsb ish; isb);
}

#[test]
fn the_next_instruction_of_the_same_page() {
    on_both(1, Features::default(), |m| {
        m.code(CODE, |ops| {
            dynasm!(ops; .arch aarch64
                ; mov x3, 0
                ; ->again:
                ; adr x9, ->patch
                ; str w2, [x9]
            );
            sync(ops);
            dynasm!(ops; .arch aarch64
                ; ->patch:
                ; movz x0, 1
                ; add x3, x3, x0
                ; add w2, w2, 0x20 // one more, in the immediate of MOVZ
                ; sub x1, x1, 1
                ; cbnz x1, ->again
                ; hvc 1
            );
        });
        m.set_x(0, 1, 100);
        m.set_x(0, 2, movz(1000));
        m.expect_hvc(0, 1);
        assert_eq!(m.x(0, 0), 1099);
        assert_eq!(m.x(0, 3), (1000..1100).sum::<u64>());
    });
}

/// So often that the native engine runs out of space for code, more than once.
#[test]
fn an_instruction_that_never_stays() {
    on_both(1, Features::default(), |m| {
        m.code(CODE, |ops| {
            dynasm!(ops; .arch aarch64
                ; mov x3, 0
                ; adr x9, ->patch
                ; ->again:
                ; str w2, [x9]
            );
            sync(ops);
            dynasm!(ops; .arch aarch64
                ; bl ->function
                ; add w2, w2, 0x20
                ; sub x1, x1, 1
                ; cbnz x1, ->again
                ; hvc 1
                ; ->function:
                ; ->patch:
                ; movz x0, 1
            );
            // Made with it, and dropped with it.
            for _ in 0..300 {
                dynasm!(ops; .arch aarch64; ldr x4, [sp, 8]; madd x5, x4, x4, x5);
            }
            dynasm!(ops; .arch aarch64; add x3, x3, x0; ret);
        });
        m.cluster.core_mut(0).r[33] = DATA;
        m.set_x(0, 1, 900);
        m.set_x(0, 2, movz(1));
        m.expect_hvc(0, 1);
        assert_eq!(m.x(0, 3), (1..=900).sum::<u64>());
    });
}

#[test]
fn a_routine_in_another_page() {
    on_both(1, Features::default(), |m| {
        let routine = CODE + 0x3ff8;
        m.code(routine, |ops| dynasm!(ops; .arch aarch64; movz x0, 7; ret));
        m.code(CODE, |ops| {
            dynasm!(ops; .arch aarch64
                ; mov x3, 0
                ; ->again:
                ; blr x9
                ; add x3, x3, x0
                ; str w2, [x9]
            );
            sync(ops);
            dynasm!(ops; .arch aarch64
                ; add w2, w2, 0x20
                ; sub x1, x1, 1
                ; cbnz x1, ->again
                ; hvc 1
            );
        });
        m.set_x(0, 1, 10);
        m.set_x(0, 2, movz(100));
        m.set_x(0, 9, routine);
        m.expect_hvc(0, 1);
        assert_eq!(m.x(0, 3), 7 + (100..109).sum::<u64>());
    });
}

#[test]
fn every_kind_of_store_is_noticed() {
    let stores: [fn(&mut Asm); 10] = [
        |ops| dynasm!(ops; .arch aarch64; str x2, [x9]),
        |ops| dynasm!(ops; .arch aarch64; strh w2, [x9]),
        |ops| dynasm!(ops; .arch aarch64; strb w2, [x9]),
        |ops| dynasm!(ops; .arch aarch64; stp w2, w4, [x9]),
        |ops| dynasm!(ops; .arch aarch64; stlr w2, [x9]),
        |ops| dynasm!(ops; .arch aarch64; sttr w2, [x9]),
        |ops| dynasm!(ops; .arch aarch64; ldxr w5, [x9]; stxr w6, w2, [x9]),
        |ops| dynasm!(ops; .arch aarch64; fmov d0, x2; str d0, [x9]),
        |ops| dynasm!(ops; .arch aarch64; fmov d0, x2; st1 {v0.s}[0], [x9]),
        |ops| dynasm!(ops; .arch aarch64; swp w2, w5, [x9]),
    ];
    let features = Features { lse: true, ..Features::default() };
    on_both(1, features, |m| {
        let ret = 0xd65f_03c0u64;
        m.cluster.core_mut(0).sys.cpacr_el1 = 3 << 20;
        for (n, store) in stores.iter().enumerate() {
            let (code, routine) = (CODE + n as u64 * 0x2000, CODE + n as u64 * 0x2000 + 0x1000);
            // 0x11 and 0x22 differ in the lowest halfword of MOVZ only, and in its lowest byte only for 0x11 and 0x12.
            m.code(routine, |ops| dynasm!(ops; .arch aarch64; movz x0, 0x11; ret));
            m.code(code, |ops| {
                dynasm!(ops; .arch aarch64; blr x9; mov x7, x0);
                store(ops);
                sync(ops);
                dynasm!(ops; .arch aarch64; blr x9; hvc 1);
            });
            m.set_x(0, 2, movz(0x12) | ret << 32);
            m.set_x(0, 4, ret);
            m.set_x(0, 9, routine);
            m.jump(0, code);
            m.expect_hvc(0, 1);
            assert_eq!((m.x(0, 7), m.x(0, 0)), (0x11, 0x12), "store {n}");
        }
    });
}

#[test]
fn dc_zva_over_code() {
    on_both(1, Features::default(), |m| {
        let mut cfg = Stage1 { tsz: 25, oas: 44, ..Stage1::default() };
        let mut mem = Ram(m.ram.clone());
        let mut low = Builder::stage1(&mut cfg, &mut mem, TABLES).unwrap();
        low.map(&mut mem, RAM, RAM, 0x100_0000, d::AF | d::SH_INNER).unwrap();
        let space =
            Space { ttbr0: cfg.ttb, ttbr1: 0, tcr: 25 | 1 << 23 | 4 << 32, mair: 0xff, sctlr: 0x30d0_1805 };
        m.set_translation(0, &space);
        let routine = CODE + 0x1000;
        m.code(routine, |ops| dynasm!(ops; .arch aarch64; movz x0, 7; ret));
        m.code(CODE, |ops| {
            dynasm!(ops; .arch aarch64; blr x9; dc zva, x9);
            sync(ops);
            dynasm!(ops; .arch aarch64; blr x9; hvc 1);
        });
        m.set_x(0, 9, routine);
        m.jump(0, CODE);
        let trap = m.expect_trap(0);
        // UDF #0.
        assert_eq!((trap.esr, trap.elr), (1 << 25, routine));
    });
}

#[test]
fn stores_through_another_address() {
    on_both(1, Features::default(), |m| {
        let mut cfg = Stage1 { tsz: 25, oas: 44, ..Stage1::default() };
        let mut mem = Ram(m.ram.clone());
        let mut low = Builder::stage1(&mut cfg, &mut mem, TABLES).unwrap();
        let text = d::AF | d::SH_INNER | d::AP_READ_ONLY;
        low.map(&mut mem, RAM, RAM, 0x20_0000, text).unwrap();
        let alias = 0x7000_0000;
        low.map(&mut mem, alias, CODE, 0x1_0000, d::AF | d::SH_INNER | d::XN | d::PXN).unwrap();
        let space =
            Space { ttbr0: cfg.ttb, ttbr1: 0, tcr: 25 | 1 << 23 | 4 << 32, mair: 0xff, sctlr: 0x30d0_1805 };
        m.set_translation(0, &space);
        m.code(CODE + 0x40, |ops| {
            dynasm!(ops; .arch aarch64
                ; movz x0, 1
                ; hvc 1
            );
        });
        // The alias is writable in the TLB before the code has been decoded.
        m.code(CODE, |ops| {
            dynasm!(ops; .arch aarch64
                ; str xzr, [x10, 0x800]
                ; add x9, x11, 0x40
                ; str w2, [x10, 0x40]
            );
            sync(ops);
            dynasm!(ops; .arch aarch64; br x9);
        });
        m.set_x(0, 10, alias);
        m.set_x(0, 11, CODE);
        for n in 5..10 {
            m.set_x(0, 2, movz(n));
            m.jump(0, CODE);
            m.expect_hvc(0, 1);
            assert_eq!(m.x(0, 0), n);
        }
    });
}

#[test]
fn another_vcpu_and_a_device_write_code() {
    on_both(2, Features::default(), |m| {
        let routine = CODE + 0x1000;
        m.code(routine, |ops| dynasm!(ops; .arch aarch64; movz x0, 1; hvc 1));
        m.code(CODE + 0x2000, |ops| {
            dynasm!(ops; .arch aarch64; str w2, [x9]);
            sync(ops);
            dynasm!(ops; .arch aarch64; hvc 2);
        });
        for n in 2..6 {
            m.jump(0, routine);
            m.expect_hvc(0, 1);
            assert_eq!(m.x(0, 0), n - 1);
            m.set_x(1, 2, movz(n));
            m.set_x(1, 9, routine);
            m.jump(1, CODE + 0x2000);
            m.expect_hvc(1, 2);
        }
        for n in 6..9 {
            m.jump(0, routine);
            m.expect_hvc(0, 1);
            assert_eq!(m.x(0, 0), n - 1);
            assert!(m.ram.write(routine, &(movz(n) as u32).to_le_bytes()));
        }
    });
}

#[test]
fn a_loop_that_writes_into_its_own_page() {
    // Code and data share a page, and a line: nothing is executed stale, and nothing is lost.
    on_both(1, Features::default(), |m| {
        m.code(CODE, |ops| {
            dynasm!(ops; .arch aarch64
                ; adr x9, ->data
                ; ->again:
                ; ldr x2, [x9]
                ; add x2, x2, x1
                ; str x2, [x9]
                ; sub x1, x1, 1
                ; cbnz x1, ->again
                ; hvc 1
                ; .align 8
                ; ->data:
                ; .u64 0
            );
        });
        m.set_x(0, 1, 1000);
        m.expect_hvc(0, 1);
        assert_eq!(m.x(0, 2), 500_500);
    });
}
