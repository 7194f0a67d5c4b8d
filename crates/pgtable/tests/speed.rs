//! A rough timing of walks; `cargo test --release -p pgtable -- --ignored --nocapture` prints it.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use pgtable::{Access, Builder, Controls, Stage1, Step, Walk, descriptor as d};

#[test]
#[ignore = "a measurement, not a test"]
fn nanoseconds_a_walk() {
    let mut sparse = BTreeMap::new();
    let mut cfg = Stage1 { tsz: 16, oas: 48, ..Stage1::default() };
    let mut tables = Builder::stage1(&mut cfg, &mut sparse, 0..0x10_0000).unwrap();
    tables.coarsest = 3;
    tables.map(&mut sparse, 0, 0x4000_0000, 4 << 20, d::AF).unwrap();
    let mut memory = vec![0u64; 0x2_0000];
    for (at, descriptor) in sparse {
        memory[(at / 8) as usize] = descriptor;
    }
    let (access, controls) = (Access { privileged: true, ..Access::default() }, Controls::default());
    let start = Instant::now();
    let (walks, mut sum) = (10_000_000u64, 0u64);
    for i in 0..walks {
        let mut step = Walk::stage1(black_box(&cfg), (i * 0x1008) & 0x3f_ffff);
        loop {
            match step {
                Step::Fetch(walk) => step = walk.next(memory[(walk.address() / 8) as usize]),
                Step::Done(leaf) => {
                    assert!(leaf.check(black_box(&access), &controls).is_ok());
                    sum = sum.wrapping_add(leaf.pa);
                    break;
                }
                Step::Fault(fault) => panic!("{fault}"),
            }
        }
    }
    black_box(sum);
    println!("{:.1} ns a four-level walk with its check", start.elapsed().as_nanos() as f64 / walks as f64);
}
