//! The kept inputs, and a few thousand random ones, without libFuzzer: `cargo test` needs no C++ compiler's coverage.

use std::fs;
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use smmulab_fuzz::*;

/// Runs every file in `corpus/<name>`, and random bytes.
fn replay<I: for<'a> Arbitrary<'a>>(name: &str, run: fn(I)) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut inputs: Vec<Vec<u8>> = Vec::new();
    if let Ok(files) = fs::read_dir(&directory) {
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        inputs.extend(paths.iter().map(|path| fs::read(path).unwrap()));
    }
    // SplitMix64: any bytes do.
    let mut state = name.len() as u64;
    let mut word = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    for n in 0..200u64 {
        inputs.push((0..n * 4).flat_map(|_| word().to_le_bytes()).collect());
    }
    for bytes in inputs {
        if let Ok(input) = I::arbitrary_take_rest(Unstructured::new(&bytes)) {
            run(input);
        }
    }
}

macro_rules! targets {
    ($($name:ident),*) => { $(
        #[test]
        fn $name() {
            replay(stringify!($name), $name::run);
        }
    )* };
}

targets! {
    smmu_registers, smmu_queues, virtio_blk, virtio_net, virtio_console, virtio_rng, pci_config, gic_its, pgtable_walk
}
