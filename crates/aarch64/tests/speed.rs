//! How fast the engines are. `cargo test --release -p aarch64 --test speed -- --ignored --nocapture`

mod bare;

use std::time::Instant;

use aarch64::{EngineKind, Features};
use dynasmrt::{DynasmLabelApi, dynasm};

/// A loop like compiled code: loads, stores, arithmetic, compares, a call and conditional branches.
fn mixed(machine: &mut bare::Machine) {
    machine.code(bare::CODE, |ops| {
        dynasm!(ops; .arch aarch64
            ; outer:
            ; mov x0, x20
            ; mov x1, 64
            ; mov x2, 0
            ; inner:
            ; ldr x3, [x0]
            ; add x2, x2, x3, lsl 3
            ; eor x4, x2, x3
            ; ldp x5, x6, [x0, 16]
            ; sub x5, x5, x6
            ; and x5, x5, 0xff
            ; cmp x5, 16
            ; b.lo >skip
            ; str x4, [x0, 8]
            ; skip:
            ; bl >function
            ; add x0, x0, 32
            ; subs x1, x1, 1
            ; b.ne <inner
            ; b <outer
            ; function:
            ; stp x29, x30, [sp, -16]!
            ; ubfx x7, x2, 3, 8
            ; ldrb w8, [x20, x7]
            ; add w2, w2, w8
            ; ldp x29, x30, [sp], 16
            ; ret
        );
    });
}

/// Nanoseconds that this thread has been on a CPU.
fn cpu_time() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn measure(name: &str, engine: EngineKind, code: fn(&mut bare::Machine)) {
    let mut machine = bare::Machine::new(engine, 1, Features::default());
    machine.poke(bare::TABLES.start + 8, 0x4000_0000 | 3 << 8 | 1 << 10 | 1);
    let tcr = 25 | 1 << 23 | 4 << 32;
    let space = bare::Space { ttbr0: bare::TABLES.start, ttbr1: 0, tcr, mair: 0xff, sctlr: 0x30d0_1805 };
    machine.set_translation(0, &space);
    code(&mut machine);
    machine.set_x(0, 20, bare::DATA);
    machine.cluster.core_mut(0).r[33] = bare::DATA + 0x10000;
    machine.jump(0, bare::CODE);
    machine.run(0, 1_000_000);
    let (begin, wall) = (cpu_time(), Instant::now());
    let mut retired = 0;
    while wall.elapsed().as_millis() < 2000 {
        retired += machine.run(0, 1_000_000).retired;
    }
    println!(
        "{name} {engine:?}: {:.0} million instructions a second of CPU",
        retired as f64 * 1e3 / (cpu_time() - begin) as f64
    );
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    for engine in [EngineKind::default(), EngineKind::Block, EngineKind::Step] {
        measure("mixed", engine, mixed);
    }
}
