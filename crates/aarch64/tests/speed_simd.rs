//! Nanoseconds a SIMD or FP instruction takes, beside an integer addition.
//! `cargo test --release -p aarch64 --test speed_simd -- --ignored --nocapture`

mod bare;

use std::time::Instant;

use aarch64::{EngineKind, Features};
use dynasmrt::dynasm;

macro_rules! each {
    ($($name:literal { $($code:tt)* })*) => {
        [$(($name, (|ops: &mut bare::Asm| { dynasm!(ops; .arch aarch64; $($code)*); }) as fn(&mut bare::Asm)),)*]
    };
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let all = each! {
        "add x" { add x1, x2, x3 }
        "ldr x" { ldr x1, [x20] }
        "ldr q" { ldr q1, [x20] }
        "str q" { str q1, [x20] }
        "ldp q" { ldp q1, q2, [x20] }
        "stp q" { stp q1, q2, [x20] }
        "ldp x" { ldp x1, x2, [x20] }
        "ld1 16b" { ld1 {v1.b16}, [x20] }
        "ld1 4x" { ld1 {v1.b16, v2.b16, v3.b16, v4.b16}, [x20] }
        "ld4 8h" { ld4 {v1.h8, v2.h8, v3.h8, v4.h8}, [x20] }
        "movi" { movi v1.b16, 3 }
        "and" { and v1.b16, v2.b16, v3.b16 }
        "eor" { eor v1.b16, v2.b16, v3.b16 }
        "add 16b" { add v1.b16, v2.b16, v3.b16 }
        "add 4s" { add v1.s4, v2.s4, v3.s4 }
        "cmeq 16b" { cmeq v1.b16, v2.b16, 0 }
        "cmhs 16b" { cmhs v1.b16, v2.b16, v3.b16 }
        "umaxp 16b" { umaxp v1.b16, v2.b16, v3.b16 }
        "addp 16b" { addp v1.b16, v2.b16, v3.b16 }
        "shrn 8b" { shrn v1.b8, v2.h8, 4 }
        "ushr 4s" { ushr v1.s4, v2.s4, 4 }
        "shl 4s" { shl v1.s4, v2.s4, 4 }
        "sri 4s" { sri v1.s4, v2.s4, 4 }
        "ushll" { ushll v1.h8, v2.b8, 0 }
        "umull" { umull v1.d2, v2.s2, v3.s2 }
        "uaddlv" { uaddlv h1, v2.b16 }
        "cnt" { cnt v1.b16, v2.b16 }
        "rev64" { rev64 v1.b16, v2.b16 }
        "rev32" { rev32 v1.b16, v2.b16 }
        "ext" { ext v1.b16, v2.b16, v3.b16, 3 }
        "tbl" { tbl v1.b16, {v2.b16}, v3.b16 }
        "zip1" { zip1 v1.b16, v2.b16, v3.b16 }
        "dup" { dup v1.b16, w1 }
        "fmov x" { fmov x1, d2 }
        "umov" { umov w1, v2.b[0] }
        "ins" { ins v1.d[1], x1 }
        "sqadd 8h" { sqadd v1.h8, v2.h8, v3.h8 }
        "fadd d" { fadd d1, d2, d3 }
        "fmul d" { fmul d1, d2, d3 }
        "fmadd d" { fmadd d1, d2, d3, d4 }
        "fdiv d" { fdiv d1, d2, d3 }
        "fsqrt d" { fsqrt d1, d2 }
        "fcmp d" { fcmp d1, d2 }
        "scvtf" { scvtf d1, x1 }
        "fcvtzs" { fcvtzs x1, d2 }
        "fadd 4s" { fadd v1.s4, v2.s4, v3.s4 }
        "fmla 4s" { fmla v1.s4, v2.s4, v3.s4 }
    };
    for (name, code) in all {
        let mut machine = bare::Machine::new(EngineKind::default(), 1, Features::default());
        machine.poke(bare::TABLES.start + 8, 0x4000_0000 | 3 << 8 | 1 << 10 | 1);
        let tcr = 25 | 1 << 23 | 4 << 32;
        let space = bare::Space { ttbr0: bare::TABLES.start, ttbr1: 0, tcr, mair: 0xff, sctlr: 0x30d0_1805 };
        machine.set_translation(0, &space);
        machine.code(bare::CODE, |ops| {
            for _ in 0..256 {
                code(ops);
            }
            dynasm!(ops; .arch aarch64; b -1024);
        });
        machine.set_x(0, 20, bare::DATA);
        machine.cluster.core_mut(0).sys.cpacr_el1 = 3 << 20;
        for i in 0..32u64 {
            let value = (1.0 + i as f64 / 3.0).to_bits();
            machine.cluster.core_mut(0).v[i as usize] = u128::from(value) << 64 | u128::from(value);
        }
        machine.jump(0, bare::CODE);
        machine.run(0, 100_000);
        let mut best = f64::MAX;
        for _ in 0..5 {
            let begin = Instant::now();
            let ran = machine.run(0, 400_000);
            best = best.min(begin.elapsed().as_nanos() as f64 / ran.retired as f64);
        }
        println!("{name:10} {best:6.2}");
    }
}
