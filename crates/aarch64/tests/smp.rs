//! Several vCPUs: exclusive monitors, events, interrupts and timers, at exact instruction counts.

mod bare;

use aarch64::{EngineKind, Exit, Features, IrqLines};
use bare::*;
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

const LDXR: u64 = CODE + 0x100;
const STXR: u64 = CODE + 0x110;
const STR: u64 = CODE + 0x120;
const CLREX: u64 = CODE + 0x130;
const LDXP: u64 = CODE + 0x140;
const STXP: u64 = CODE + 0x150;
const LDXRB: u64 = CODE + 0x160;
const STXRB: u64 = CODE + 0x170;
const WFE: u64 = CODE + 0x180;
const SEV: u64 = CODE + 0x190;
const SEVL: u64 = CODE + 0x1a0;
const SVC: u64 = CODE + 0x1b0;
const DC_ZVA: u64 = CODE + 0x1c0;

type Routine = (u64, fn(&mut Asm));

/// Each is one instruction on [X1], and HVC #1. Store-exclusives answer in W3.
fn routines(m: &mut Machine) {
    let all: [Routine; 13] = [
        (LDXR, |ops| dynasm!(ops; .arch aarch64; ldxr x0, [x1]; hvc 1)),
        (STXR, |ops| dynasm!(ops; .arch aarch64; stxr w3, x2, [x1]; hvc 1)),
        (STR, |ops| dynasm!(ops; .arch aarch64; str x2, [x1]; hvc 1)),
        (CLREX, |ops| dynasm!(ops; .arch aarch64; clrex; hvc 1)),
        (LDXP, |ops| dynasm!(ops; .arch aarch64; ldxp x0, x4, [x1]; hvc 1)),
        (STXP, |ops| dynasm!(ops; .arch aarch64; stxp w3, x2, x2, [x1]; hvc 1)),
        (LDXRB, |ops| dynasm!(ops; .arch aarch64; ldxrb w0, [x1]; hvc 1)),
        (STXRB, |ops| dynasm!(ops; .arch aarch64; stxrb w3, w2, [x1]; hvc 1)),
        (WFE, |ops| dynasm!(ops; .arch aarch64; wfe; hvc 1)),
        (SEV, |ops| dynasm!(ops; .arch aarch64; sev; hvc 1)),
        (SEVL, |ops| dynasm!(ops; .arch aarch64; sevl; hvc 1)),
        (SVC, |ops| dynasm!(ops; .arch aarch64; svc 1; hvc 1)),
        (DC_ZVA, |ops| dynasm!(ops; .arch aarch64; dc zva, x1; hvc 1)),
    ];
    for (at, code) in all {
        m.code(at, code);
    }
}

/// Runs one routine.
#[track_caller]
fn go(m: &mut Machine, cpu: usize, routine: u64, x1: u64) {
    m.set_x(cpu, 1, x1);
    m.jump(cpu, routine);
    m.expect_hvc(cpu, 1);
}

/// Runs a store-exclusive; whether it succeeded.
#[track_caller]
fn passes(m: &mut Machine, cpu: usize, routine: u64, x1: u64) -> bool {
    m.set_x(cpu, 3, 77);
    go(m, cpu, routine, x1);
    match m.x(cpu, 3) {
        0 => true,
        1 => false,
        status => panic!("status {status}"),
    }
}

#[test]
fn reservations() {
    on_both(2, Features::default(), |m| {
        routines(m);
        let a = DATA + 0x40;
        // Alone: passes once.
        m.set_x(0, 2, 5);
        go(m, 0, LDXR, a);
        assert!(passes(m, 0, STXR, a));
        assert_eq!(m.peek(a), 5);
        m.set_x(0, 2, 6);
        assert!(!passes(m, 0, STXR, a));
        assert_eq!(m.peek(a), 5, "a failed store-exclusive stores nothing");
        // CLREX, and an exception return.
        go(m, 0, LDXR, a);
        go(m, 0, CLREX, a);
        assert!(!passes(m, 0, STXR, a));
        go(m, 0, LDXR, a);
        m.jump(0, SVC);
        m.expect_trap(0);
        m.expect_hvc(0, 1); // the vector's ERET, and on
        assert!(!passes(m, 0, STXR, a));
        // Another vCPU's plain store to the granule: the same word, its neighbour; not the next granule.
        for (other, want) in
            [(a, false), (a + 0x38, false), (a + 0x40, true), (a - 8, true), (a + 0x1000, true)]
        {
            go(m, 0, LDXR, a);
            m.set_x(1, 2, 9);
            go(m, 1, STR, other);
            assert_eq!(passes(m, 0, STXR, a), want, "{other:#x}");
        }
        // The store breaks it even when it writes the value that is there.
        go(m, 0, LDXR, a);
        let same = m.peek(a);
        m.set_x(1, 2, same);
        go(m, 1, STR, a);
        assert!(!passes(m, 0, STXR, a));
        // A load does not, nor does a load-exclusive; the first store-exclusive wins.
        go(m, 0, LDXR, a);
        go(m, 1, LDXR, a);
        assert!(passes(m, 1, STXR, a));
        assert!(!passes(m, 0, STXR, a));
        // A failed store-exclusive breaks nobody's.
        go(m, 0, LDXR, a);
        assert!(!passes(m, 1, STXR, a));
        assert!(passes(m, 0, STXR, a));
        // A device's write.
        go(m, 0, LDXR, a);
        m.poke(a + 8, 1);
        assert!(!passes(m, 0, STXR, a));
        go(m, 0, LDXR, a);
        m.poke(a + 0x40, 1);
        assert!(passes(m, 0, STXR, a));
        // A device's write after another vCPU had a turn.
        go(m, 0, LDXR, a);
        go(m, 1, SEV, a);
        m.poke(a, 1);
        go(m, 1, SEV, a);
        assert!(!passes(m, 0, STXR, a));
        // Pairs and bytes.
        go(m, 0, LDXP, a);
        assert!(passes(m, 0, STXP, a));
        assert_eq!((m.peek(a), m.peek(a + 8)), (6, 6));
        go(m, 0, LDXP, a);
        m.set_x(1, 2, 9);
        go(m, 1, STR, a + 8);
        assert!(!passes(m, 0, STXP, a));
        go(m, 0, LDXRB, a + 3);
        assert!(passes(m, 0, STXRB, a + 3));
        assert_eq!(m.peek(a), 0x0600_0006);
    });
}

#[test]
fn reservations_of_pages_with_a_write_key() {
    // The other vCPU has stored to the page before, so that its TLB has the fast way ready.
    on_both(2, Features::default(), |m| {
        routines(m);
        let mut mem = Ram(m.ram.clone());
        let mut cfg = pgtable::Stage1 { tsz: 25, oas: 44, ..pgtable::Stage1::default() };
        let mut low = pgtable::Builder::stage1(&mut cfg, &mut mem, TABLES).unwrap();
        let attrs = pgtable::descriptor::AF | pgtable::descriptor::SH_INNER;
        low.map(&mut mem, RAM, RAM, 0x100_0000, attrs).unwrap();
        let space =
            Space { ttbr0: cfg.ttb, ttbr1: 0, tcr: 25 | 1 << 23 | 4 << 32, mair: 0xff, sctlr: 0x30d0_1805 };
        for cpu in 0..2 {
            m.set_translation(cpu, &space);
        }
        let a = DATA;
        for _ in 0..3 {
            for cpu in 0..2 {
                m.set_x(cpu, 2, 1);
                go(m, cpu, STR, a);
                go(m, cpu, STR, a + 0x80);
            }
            go(m, 0, LDXR, a);
            go(m, 1, STR, a + 0x80);
            assert!(passes(m, 0, STXR, a));
            go(m, 0, LDXR, a);
            go(m, 1, STR, a);
            assert!(!passes(m, 0, STXR, a));
            go(m, 0, LDXR, a);
            go(m, 1, DC_ZVA, a + 0x20);
            assert!(!passes(m, 0, STXR, a));
            // Both hold one.
            go(m, 0, LDXR, a);
            go(m, 1, LDXR, a + 0x80);
            assert!(passes(m, 0, STXR, a));
            assert!(passes(m, 1, STXR, a + 0x80));
        }
    });
}

/// Increments [X1] X2 times with exclusives, then HVC #1.
fn counting(m: &mut Machine) {
    m.code(CODE, |ops| {
        dynasm!(ops; .arch aarch64
            ; ->again:
            ; ldxr x0, [x1]
            ; add x0, x0, 1
            ; stxr w3, x0, [x1]
            ; cbnz w3, ->again
            ; sub x2, x2, 1
            ; cbnz x2, ->again
            ; hvc 1
        );
    });
}

#[test]
fn no_increment_is_lost() {
    for quantum in [1, 2, 3, 5, 7, 100] {
        on_both(4, Features::default(), |m| {
            counting(m);
            let mut left: Vec<usize> = (0..4).collect();
            for cpu in 0..4 {
                m.set_x(cpu, 1, DATA);
                m.set_x(cpu, 2, 100);
            }
            let mut turns = 0;
            while !left.is_empty() {
                // With short turns of equal length nobody may ever win: every so often one gets a longer turn.
                turns += 1;
                left.retain(|&cpu| {
                    let extra = if (turns + cpu) % 7 == 0 { 10 } else { 0 };
                    m.run(cpu, quantum + extra).exit != Exit::Hvc(1)
                });
                assert!(turns < 10_000, "no progress");
            }
            assert_eq!(m.peek(DATA), 400);
        });
    }
}

#[test]
fn events() {
    on_both(2, Features::default(), |m| {
        routines(m);
        let wfe = |m: &mut Machine, cpu: usize| {
            m.jump(cpu, WFE);
            m.run(cpu, 10).exit
        };
        // What reset and the fixture left in the event register.
        for cpu in 0..2 {
            m.cluster.take_event(cpu);
        }
        assert_eq!(wfe(m, 0), Exit::Wfe);
        assert!(!m.cluster.has_event(0));
        // SEV reaches every vCPU, its own included.
        go(m, 1, SEV, 0);
        assert!(m.cluster.has_event(0) && m.cluster.has_event(1));
        // The waiting WFE takes the event and goes on.
        assert!(m.cluster.take_event(0));
        m.expect_hvc(0, 1);
        assert_eq!(wfe(m, 0), Exit::Wfe);
        m.cluster.take_event(1);
        // SEVL is local, and an event that is there makes WFE pass at once and is gone.
        go(m, 1, SEVL, 0);
        assert!(!m.cluster.has_event(0));
        assert_eq!(wfe(m, 1), Exit::Hvc(1));
        assert_eq!(wfe(m, 1), Exit::Wfe);
        // The loss of a reservation is an event: a store by the other vCPU, and by a device.
        go(m, 0, LDXR, DATA);
        assert_eq!(wfe(m, 0), Exit::Wfe);
        m.set_x(1, 2, 1);
        go(m, 1, STR, DATA + 0x40);
        assert!(!m.cluster.take_event(0));
        go(m, 1, STR, DATA);
        assert!(m.cluster.take_event(0));
        go(m, 0, LDXR, DATA);
        assert_eq!(wfe(m, 0), Exit::Wfe);
        m.poke(DATA, 9);
        assert!(m.cluster.take_event(0));
        // An exception return is one.
        assert_eq!(wfe(m, 0), Exit::Wfe);
        m.jump(0, SVC);
        m.expect_trap(0);
        m.expect_hvc(0, 1);
        assert_eq!(wfe(m, 0), Exit::Hvc(1));
    });
}

#[test]
fn wfi_and_interrupts() {
    on_both(1, Features::default(), |m| {
        m.code(CODE, |ops| {
            dynasm!(ops; .arch aarch64
                ; wfi
                ; mov x0, 1
                ; msr daifclr, 2
                ; mov x0, 2
                ; mov x0, 3
                ; hvc 1
            );
        });
        let ran = m.run(0, 100);
        assert_eq!((ran.exit, ran.retired), (Exit::Wfi, 1));
        assert!(!m.cluster.wfi_wake(0, &m.board));
        m.board.lines[0] = IrqLines { irq: true, fiq: false };
        assert!(m.cluster.wfi_wake(0, &m.board));
        // It goes on behind the WFI, and takes the interrupt once it is not masked: at the very next instruction.
        let trap = m.expect_trap(0);
        assert_eq!((trap.vector, trap.elr, m.x(0, 0)), (0x280, CODE + 12, 1));
        assert_eq!(trap.spsr, 0x345);
        // Level-triggered: it comes again after the return unless the handler sees to it.
        assert_eq!(m.expect_trap(0).elr, CODE + 12);
        m.board.lines[0].irq = false;
        m.expect_hvc(0, 1);
        assert_eq!(m.x(0, 0), 3);
        // FIQ first.
        m.board.lines[0] = IrqLines { irq: true, fiq: true };
        m.cluster.core_mut(0).pstate.daif = 0;
        m.jump(0, CODE + 4);
        assert_eq!(m.expect_trap(0).vector, 0x300);
    });
}

/// Sets the virtual timer X4 ticks ahead and counts in X0 up to the interrupt.
fn timer_loop(m: &mut Machine) {
    m.code(CODE, |ops| {
        dynasm!(ops; .arch aarch64
            ; msr CNTV_TVAL_EL0, x4
            ; mov x5, 1
            ; msr CNTV_CTL_EL0, x5
            ; mov x0, 0
            ; msr daifclr, 2
            ; ->again:
            ; add x0, x0, 1
            ; add x6, x6, x0
            ; str x6, [x1]
            ; b ->again
        );
    });
}

#[test]
fn the_timer_interrupts_at_an_exact_instruction() {
    let run = |engine: EngineKind, quantum: u64, ticks: u64| {
        let mut m = Machine::new(engine, 1, Features::default());
        timer_loop(&mut m);
        m.set_x(0, 1, DATA);
        m.set_x(0, 4, ticks);
        let hvc = m.until_hvc_by(0, quantum);
        assert_eq!(hvc, 0x1280);
        // The vector's HVC has retired as well.
        let core = m.cluster.core(0);
        (m.now, core.sys.elr[1], m.x(0, 0), core.retired(), m.board.ppis.clone())
    };
    for ticks in [1, 2, 10, 1000] {
        let reference = run(EngineKind::Step, 1_000_000, ticks);
        for engine in EngineKind::ALL {
            for quantum in [1, 3, 17, 64, 999, 1_000_000] {
                assert_eq!(run(engine, quantum, ticks), reference, "{engine:?} {quantum} {ticks}");
            }
        }
        // TVAL was written at count 0: the condition is met at exactly `ticks` ticks of 16 ns, and the HVC in the vector
        // is the one instruction after that. A timer of a tick or two is still in the prologue.
        assert_eq!(reference.0, 16 * ticks + 1);
        assert!(reference.4.contains(&(16 * ticks, 0, 27, true)), "{:?}", reference.4);
    }
}

#[test]
fn time_is_exact_within_a_run() {
    on_both(1, Features::default(), |m| {
        // Sixteen instructions a tick, so that each read of the counter, 16 instructions on, is one more.
        m.code(CODE, |ops| {
            for _ in 0..8 {
                dynasm!(ops; .arch aarch64; mrs x0, CNTVCT_EL0; str x0, [x1], 8);
                for _ in 0..14 {
                    dynasm!(ops; .arch aarch64; nop);
                }
            }
            dynasm!(ops; .arch aarch64; mov x2, DEVICE; ldr w3, [x2, 4]; ldr w3, [x2, 8]; hvc 1);
        });
        m.set_x(0, 1, DATA);
        m.expect_hvc(0, 1);
        for n in 0..8 {
            assert_eq!(m.peek(DATA + n * 8), n);
        }
        let times: Vec<u64> = m.board.accesses.iter().map(|access| access.0).collect();
        assert_eq!(times, [129, 130]);
    });
}

#[test]
fn a_snapshot_has_the_same_future() {
    // The TLB and the reservation are part of the state; what is decoded and the fast keys are not.
    let mut m = Machine::new(EngineKind::Block, 2, Features::default());
    counting(&mut m);
    for cpu in 0..2 {
        m.set_x(cpu, 1, DATA);
        m.set_x(cpu, 2, 1000);
    }
    for turn in 0..50 {
        m.run(turn % 2, 7);
    }
    let state = m.cluster.state().clone();
    let (value, now) = (m.peek(DATA), m.now);
    let future = |m: &mut Machine| {
        for turn in 0..50 {
            m.run(turn % 2, 11);
        }
        (m.peek(DATA), m.now, m.x(0, 2), m.x(1, 2), m.cluster.core(0).retired())
    };
    let first = future(&mut m);
    assert!(first.0 > value);
    m.poke(DATA, value);
    m.now = now;
    m.cluster.restore(state);
    assert_eq!(future(&mut m), first);
}
