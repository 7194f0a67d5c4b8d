//! What `qemu-aarch64` made of instruction sequences, kept as text, so that it can be checked without QEMU.
//!
//! A file is a list of batches. A batch begins with `batch SEED`, from which its initial registers and memory follow
//! ([`initial`]). Then comes a line for each sequence, `WORDS | CHANGES`, all in hexadecimal: the code, and what is in
//! the registers that it changed (`x` general, `n` NZCV, `s` FPSR, `c` FPCR, `v` half a vector register, by half). The
//! sequences of a batch run one after the other; `memory` lists the doublewords changed in the end, by offset.
//!
//! `cargo test -p aarch64 --test vectors -- --ignored` records them anew.

mod bare;
mod encodings;
mod oracle;

use std::fmt::Write as _;
use std::path::PathBuf;

use aarch64::EngineKind;
use encodings::ENCODINGS;
use oracle::{DATA, END, SCRATCH_SIZE, SEQUENCES, STATE, STATES, here, instance, join, on_qemu, suitable};
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

const REGISTERS: usize = STATE as usize / 8;

/// SplitMix64: the initial state must stay what it is whatever becomes of other generators.
struct Stable(u64);

impl Stable {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number that integer instructions find interesting.
    fn integer(&mut self) -> u64 {
        let (kind, value) = (self.next() % 6, self.next());
        match kind {
            0 => value % 16,
            1 => (value % 16).wrapping_neg(),
            2 => 1 << (value % 64),
            3 => u64::MAX >> (value % 64),
            _ => value,
        }
    }

    /// Bits that FP instructions find interesting: one double, or two singles.
    fn float(&mut self) -> u64 {
        let (kind, value) = (self.next() % 12, self.next());
        let single = |kind: u64, bits: u64| match kind % 8 {
            0 => bits & 0x8000_0000,
            1 => bits & 0x8000_0000 | 0x7f80_0000,
            2 => bits & 0x803f_ffff | 0x7fc0_0000,
            3 => bits & 0x803f_ffff | 0x7f80_0001,
            4 => bits & 0x807f_ffff,
            _ => bits & 0x83ff_ffff | 0x3c00_0000,
        };
        match kind {
            0 => value & 1 << 63,
            1 => value & 1 << 63 | 0x7ff << 52,
            2 => value & 0x8007_ffff_ffff_ffff | 0x7ff8 << 48,
            3 => value & 0x8007_ffff_ffff_ffff | 0x7ff << 52 | 1,
            4 => value & 0x800f_ffff_ffff_ffff,
            5..8 => value & 0x803f_ffff_ffff_ffff | 0x3fc0 << 48,
            _ => single(self.next(), value >> 32) << 32 | single(self.next(), value & 0xffff_ffff),
        }
    }
}

/// The data area of a batch before it runs.
fn initial(seed: u64) -> Vec<u8> {
    let mut rng = Stable(seed);
    let mut words = vec![0u64; (END - DATA) as usize / 8];
    let (scratch, states) = words.split_at_mut(SCRATCH_SIZE as usize / 8);
    scratch.fill_with(|| rng.next());
    for state in states.chunks_mut(2 * REGISTERS) {
        for (i, register) in state.iter_mut().take(REGISTERS).enumerate() {
            *register = match i {
                0..29 => rng.integer(),
                29 => rng.next() & 0xf000_0000,
                30 => 0,
                31 => rng.next() & 0x07c0_0000,
                _ if rng.next().is_multiple_of(4) => rng.integer(),
                _ => rng.float(),
            };
        }
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn word(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"))
}

fn label(register: usize) -> String {
    match register {
        0..29 => format!("x{register}"),
        29 => "n".into(),
        30 => "s".into(),
        31 => "c".into(),
        _ => format!("v{}.{}", (register - 32) / 2, register % 2),
    }
}

/// A batch as text.
fn describe(seed: u64, sequences: &[Vec<u32>], before: &[u8], after: &[u8]) -> String {
    let mut out = format!("batch {seed:x}\n");
    for (i, sequence) in sequences.iter().enumerate() {
        let code: Vec<String> = sequence.iter().map(|word| format!("{word:08x}")).collect();
        write!(out, "{} |", code.join(" ")).expect("a string");
        let state = (STATES - DATA) as usize + 2 * i * STATE as usize;
        for register in 0..REGISTERS {
            let (old, new) =
                (word(before, state + 8 * register), word(after, state + STATE as usize + 8 * register));
            if old != new {
                write!(out, " {}={new:x}", label(register)).expect("a string");
            }
        }
        out.push('\n');
    }
    out.push_str("memory");
    for at in (0..SCRATCH_SIZE as usize).step_by(8) {
        if word(before, at) != word(after, at) {
            write!(out, " {at:x}={:x}", word(after, at)).expect("a string");
        }
    }
    out.push('\n');
    out
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// Runs a batch on one engine and compares it with what the file says.
fn replay(engine: EngineKind, seed: u64, text: &str, sequences: &[Vec<u32>]) -> Result<(), String> {
    let before = initial(seed);
    let after = here(engine, sequences, &before);
    let ours = describe(seed, sequences, &before, &after);
    match ours.lines().zip(text.lines()).find(|(ours, theirs)| ours != theirs) {
        None => Ok(()),
        Some((ours, theirs)) => {
            Err(format!("{engine:?}, batch {seed:x}:\n  ours     {ours}\n  recorded {theirs}"))
        }
    }
}

#[test]
fn recorded_sequences_give_the_recorded_results() {
    let mut files: Vec<_> = std::fs::read_dir(directory())
        .expect("vectors")
        .map(|entry| entry.expect("vectors").path())
        .collect();
    files.sort();
    let (mut checked, mut failed) = (0, Vec::new());
    for file in &files {
        let text = std::fs::read_to_string(file).expect("vectors");
        for batch in text.split("batch ").skip(1) {
            let seed = u64::from_str_radix(batch.lines().next().unwrap_or_default(), 16).expect("a seed");
            let sequences: Vec<Vec<u32>> = batch
                .lines()
                .filter_map(|line| line.split_once(" |"))
                .map(|(code, _)| {
                    code.split(' ').map(|word| u32::from_str_radix(word, 16).expect("a word")).collect()
                })
                .collect();
            checked += sequences.len();
            for engine in EngineKind::ALL {
                failed.extend(replay(engine, seed, &format!("batch {batch}"), &sequences).err());
            }
        }
    }
    assert!(checked > 1000, "{checked} sequences");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Records batches of sequences by QEMU.
fn record(name: &str, first_seed: u64, sequences: &[Vec<u32>]) {
    let mut text = String::new();
    for (i, batch) in sequences.chunks(SEQUENCES as usize).enumerate() {
        let seed = first_seed + i as u64;
        let before = initial(seed);
        text += &describe(seed, batch, &before, &on_qemu(batch, &before));
    }
    std::fs::write(directory().join(name), text).expect("a file");
}

#[test]
#[ignore = "records the vectors"]
fn record_vectors() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let candidates: Vec<_> = ENCODINGS.iter().filter_map(|e| Some((e, suitable(e)?))).collect();
    let (mut integer, mut memory, mut simd) = (Vec::new(), Vec::new(), Vec::new());
    for (encoding, is_memory) in &candidates {
        let fp = encoding.group.starts_with("asi") || encoding.group.starts_with("float");
        let (list, count) = match (is_memory, fp) {
            (true, _) => (&mut memory, 1),
            (_, true) => (&mut simd, 3),
            _ => (&mut integer, 2),
        };
        for _ in 0..count {
            list.extend((0..10_000).find_map(|_| instance(encoding, *is_memory, &mut rng)));
        }
    }
    let mixed: Vec<Vec<u32>> = (0..SEQUENCES)
        .map(|_| {
            let instances: Vec<Vec<u32>> = (0..8)
                .filter_map(|_| {
                    (0..10_000).find_map(|_| {
                        let (e, memory) = candidates[rand::Rng::random_range(&mut rng, 0..candidates.len())];
                        instance(e, memory, &mut rng)
                    })
                })
                .collect();
            join(&instances, &mut rng)
        })
        .collect();
    record("integer.txt", 0x100, &integer);
    record("memory.txt", 0x200, &memory);
    record("simd.txt", 0x300, &simd);
    record("mixed.txt", 0x400, &mixed);
}
