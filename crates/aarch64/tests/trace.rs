//! Tracing: every access to a marked page is told, exact to the byte, and nothing else differs.

mod bare;

use aarch64::Features;
use bare::*;
use dynasmrt::{DynasmLabelApi, dynasm};
use guest_ram::{PAGE_SIZE, Tracer};
use pgtable::descriptor as d;
use pgtable::{Builder, Stage1};

/// The vCPU's MMU on, with RAM and the device mapped to themselves.
fn mapped(m: &mut Machine) {
    m.cluster.core_mut(0).sys.cpacr_el1 = 3 << 20;
    let mut cfg = Stage1 { tsz: 25, oas: 44, ..Stage1::default() };
    let mut mem = Ram(m.ram.clone());
    let mut low = Builder::stage1(&mut cfg, &mut mem, TABLES).unwrap();
    low.map(&mut mem, RAM, RAM, 0x100_0000, d::AF | d::SH_INNER).unwrap();
    low.map(&mut mem, DEVICE, DEVICE, 0x1000, d::AF | 1 << 2).unwrap();
    let tcr = 25 | 1 << 23 | 4 << 32;
    m.set_translation(0, &Space { ttbr0: cfg.ttb, ttbr1: 0, tcr, mair: 0xff, sctlr: 0x30d0_1805 });
}

fn trace(m: &Machine, pa: u64, flags: u8) {
    m.ram.watch().trace((pa - RAM) as usize / PAGE_SIZE, flags);
}

/// Stores of all kinds to [`DATA`] and its neighbours, loads from there, and a call with a frame record.
fn work(m: &mut Machine) {
    m.code(CODE, |ops| {
        dynasm!(ops; .arch aarch64
            ; mov x20, 50
            ; ->again:
            ; str x1, [x9]
            ; strb w1, [x9, 0x11]
            ; add x12, x9, 0xffe
            ; str w1, [x12] // across the end of the page
            ; stp x1, x2, [x9, 0x20]
            ; str q0, [x9, 0x30]
            ; dc zva, x9
            ; ->retry:
            ; ldxr x3, [x9]
            ; add x3, x3, 1
            ; stxr w4, x3, [x9]
            ; cbnz w4, ->retry
            ; ldr x5, [x9]
            ; ldr x6, [x10]
            ; str x6, [x10, 8]
            ; bl ->leaf
            ; sub x20, x20, 1
            ; cbnz x20, ->again
            ; hvc 1
            ; ->leaf:
            ; stp x29, x30, [sp, -16]!
            ; mov x29, sp
            ; str x1, [x9, 0x100]
            ; ldp x29, x30, [sp], 16
            ; ret
        );
    });
    m.set_x(0, 1, 0x1122_3344_5566_7788);
    m.set_x(0, 2, 0);
    m.set_x(0, 9, DATA);
    m.set_x(0, 10, DATA + 0x1000);
    m.set_x(0, 33, DATA + 0x4000);
    m.jump(0, CODE);
    m.expect_hvc(0, 1);
}

#[test]
fn stores_are_told_byte_for_byte() {
    on_both(1, Features::default(), |m| {
        mapped(m);
        work(m);
        assert!(m.board.traced.is_empty());
        trace(m, DATA, Tracer::CHECKER.stores());
        work(m);
        let seen = std::mem::take(&mut m.board.traced);
        let first: Vec<_> = seen.iter().take(6).map(|s| (s.pa - DATA, s.size, s.value.unwrap())).collect();
        let x1 = 0x1122_3344_5566_7788;
        assert_eq!(
            first,
            [(0, 8, x1), (0x11, 1, 0x88), (0xffe, 1, 0x88), (0xfff, 1, 0x77), (0x20, 8, x1), (0x28, 8, 0)]
        );
        assert_eq!((seen[6].pa - DATA, seen[6].size), (0x30, 16));
        assert!(seen[7..11].iter().all(|s| (s.size, s.value) == (16, Some(0))), "DC ZVA");
        assert_eq!((seen[11].size, seen[11].value), (8, Some(1)), "the store-exclusive");
        assert_eq!(seen.len(), 50 * 13, "and the one in the function");
        assert!(seen.iter().all(|s| s.value.is_some()), "no loads");
        // The code that did it, and its callers.
        assert_eq!(seen[0].trace.pc, CODE + 4);
        let leaf = seen[12];
        assert_eq!(leaf.trace.callers[0], leaf.trace.lr);
        assert!(leaf.trace.lr > CODE && leaf.trace.lr < CODE + 0x60);
        assert!(seen.windows(2).all(|s| s[0].now <= s[1].now));
    });
}

#[test]
fn loads_are_told_where_they_are_wanted() {
    on_both(1, Features::default(), |m| {
        mapped(m);
        work(m);
        trace(m, DATA + 0x1000, Tracer::POOL.loads());
        work(m);
        let seen = std::mem::take(&mut m.board.traced);
        assert_eq!(seen.len(), 50);
        assert!(seen.iter().all(|s| (s.pa, s.size, s.value) == (DATA + 0x1000, 8, None)));
    });
}

#[test]
fn tracing_may_begin_in_the_middle_of_a_run() {
    on_both(1, Features::default(), |m| {
        mapped(m);
        work(m);
        m.board.trace_next = Some((m.ram.clone(), DATA, Tracer::CHECKER.stores()));
        m.code(CODE + 0x1000, |ops| {
            dynasm!(ops; .arch aarch64
                ; str x1, [x9, 8]
                ; str x1, [x11]
                ; str x1, [x9, 16]
                ; hvc 2
            );
        });
        m.set_x(0, 11, DEVICE);
        m.jump(0, CODE + 0x1000);
        m.expect_hvc(0, 2);
        assert_eq!(m.board.traced.iter().map(|s| s.pa).collect::<Vec<_>>(), [DATA + 16]);
        // A traced store may make other pages traced.
        m.board.trace_next = Some((m.ram.clone(), DATA + 0x1000, Tracer::CHECKER.stores()));
        m.board.traced.clear();
        work(m);
        assert_eq!(m.board.traced.iter().filter(|s| s.pa == DATA + 0x1008).count(), 50);
    });
}

#[test]
fn writes_of_devices_are_told() {
    let m = Machine::new(aarch64::EngineKind::Native { after: 0 }, 1, Features::default());
    trace(&m, DATA, Tracer::CHECKER.stores());
    trace(&m, DATA + 0x1000, Tracer::CHECKER.loads());
    assert!(m.ram.write(DATA + 0xffc, &[1; 8]));
    assert!(m.ram.write(DATA + 0x1000, &[1; 8]));
    let traced = m.ram.watch().take_traced();
    assert_eq!(traced.iter().map(|h| (h.offset + RAM - DATA, h.len)).collect::<Vec<_>>(), [(0xffc, 8)]);
}

#[test]
fn a_traced_run_is_the_same_run() {
    let run = |flags: u8| {
        let mut m = Machine::new(aarch64::EngineKind::Native { after: 0 }, 1, Features::default());
        mapped(&mut m);
        work(&mut m);
        for page in 0..3 {
            trace(&m, DATA + page * 0x1000, flags);
        }
        work(&mut m);
        m
    };
    let all = Tracer::CHECKER.stores() | Tracer::CHECKER.loads();
    let (plain, traced) = (run(0), run(all));
    assert!(!traced.board.traced.is_empty());
    assert_eq!(plain.now, traced.now);
    assert!(plain.cluster.state() == traced.cluster.state());
    plain.ram.watch().clear(0, all);
}
