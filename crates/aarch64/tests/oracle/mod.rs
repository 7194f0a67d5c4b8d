//! One program of many instruction sequences, run here and by `qemu-aarch64`.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::process::Command;

use crate::bare;
use crate::encodings::Encoding;
use aarch64::{EngineKind, Features, decode};
use rand::Rng;

/// Where the program is, here and in the process that QEMU runs.
pub(crate) const BASE: u64 = 0x4030_0000;
/// Code is at [`BASE`], data after it.
pub(crate) const DATA: u64 = BASE + 0x10_0000;
/// What memory operands are in: the middle is what bases point to.
pub(crate) const SCRATCH: u64 = DATA;
pub(crate) const SCRATCH_SIZE: u64 = 0x4_0000;
pub(crate) const MIDDLE: u64 = SCRATCH + SCRATCH_SIZE / 2;
/// Initial and final registers of each sequence: X0 to X28, NZCV, FPSR, FPCR, then V0 to V31.
pub(crate) const STATES: u64 = DATA + SCRATCH_SIZE;
pub(crate) const STATE: u64 = 32 * 8 + 32 * 16;
pub(crate) const SEQUENCES: u64 = 64;
pub(crate) const END: u64 = STATES + 2 * SEQUENCES * STATE;

/// How long a sequence is.
pub(crate) const LENGTH: usize = 24;

/// What both have.
pub(crate) const FEATURES: Features = Features { crc32: true, lse: true, pan: false };

/// Bits of a word.
pub(crate) fn bits(word: u32, hi: u32, lo: u32) -> u32 {
    word >> lo & (u32::MAX >> (31 - (hi - lo)))
}

/// MOVZ and MOVK of a constant.
pub(crate) fn constant(out: &mut Vec<u32>, rd: u32, value: u64) {
    for part in 0..4 {
        let piece = (value >> (16 * part) & 0xffff) as u32;
        let opcode = if part == 0 { 0xd280_0000 } else { 0xf280_0000 };
        out.push(opcode | (part as u32) << 21 | piece << 5 | rd);
    }
}

/// Whether an encoding is one to try, and is about memory.
pub(crate) fn suitable(e: &Encoding) -> Option<bool> {
    let memory = e.group.starts_with("ld")
        || e.group.starts_with("asisdls")
        || e.group.starts_with("memop")
        || e.group.starts_with("comswap");
    let control = [
        "barriers",
        "branch",
        "comp",
        "cond",
        "exception",
        "extended",
        "hints",
        "misc",
        "pstate",
        "sys",
        "tchange",
        "test",
        "perm",
    ];
    if e.group.starts_with("condcmp") || e.group.starts_with("condsel") {
        return Some(false);
    }
    let out = control.iter().any(|c| e.group.starts_with(c))
        // The address is the same on both sides, but the page of the program is all that is mapped.
        || e.name.contains("loadlit")
        // Tried in pairs.
        || e.group.starts_with("ldstexcl")
        // We run at EL1, where EL0 may not read.
        || e.group == "ldst_unpriv";
    (!out).then_some(memory)
}

/// A word of an encoding with random fields, if it is allocated and has one meaning.
pub(crate) fn instance(e: &Encoding, memory: bool, rng: &mut impl Rng) -> Option<Vec<u32>> {
    let mut word = rng.random::<u32>() & !e.mask | e.value;
    let mut out = Vec::new();
    // X29 and X30 are ours, and SP is not to be touched.
    let avoid = |field: u32| field == 29 || field == 30;
    if memory {
        let rn = rng.random_range(0..29);
        word = word & !0x3e0 | rn << 5;
        let (rt, rt2, rm) = (bits(word, 4, 0), bits(word, 14, 10), bits(word, 20, 16));
        let register_offset = e.group == "ldst_regoff";
        let post_register = e.group.ends_with("sep") || e.group.ends_with("sop");
        if [rt, rt2, rm].iter().any(|r| *r == rn || avoid(*r) || *r + 1 == rn) || rt == rt2 {
            return None;
        }
        if e.name.starts_with("CASP") && (rt + 1 >= 29 || rm + 1 >= 29) {
            return None;
        }
        let aligned = if rng.random() { 0 } else { rng.random_range(0..64) };
        let atomic = e.group.starts_with("memop") || e.group.starts_with("comswap") || e.group == "ldstord";
        constant(&mut out, rn, MIDDLE + if atomic { 0 } else { aligned });
        if (register_offset || post_register) && rm != 31 {
            constant(&mut out, rm, rng.random_range(0..0x1000));
        }
    } else if [bits(word, 4, 0), bits(word, 9, 5), bits(word, 20, 16), bits(word, 14, 10)]
        .iter()
        .any(|r| avoid(*r))
    {
        return None;
    } else if e.group.starts_with("addsub_imm") || e.group.starts_with("addsub_ext") || e.group == "log_imm" {
        // Field 31 is SP.
        if bits(word, 4, 0) == 31 || bits(word, 9, 5) == 31 {
            return None;
        }
    }
    if decode::name(word, &FEATURES) != Some(e.name) {
        return None;
    }
    out.push(word);
    Some(out)
}

/// A load-exclusive and a store-exclusive to the same place.
pub(crate) fn exclusive(rng: &mut impl Rng) -> Vec<u32> {
    let mut out = Vec::new();
    let (size, order) = (rng.random_range(0..4u32), rng.random_range(0..2u32) << 15);
    let pair = size >= 2 && rng.random();
    constant(&mut out, 20, MIDDLE + 64);
    let base = 0x0800_0000 | size << 30 | 20 << 5 | order;
    if pair {
        out.push(base | 0x0060_0000 | 31 << 16 | 3 << 10 | 2);
        out.push(base | 0x0020_0000 | 6 << 16 | 5 << 10 | 4);
    } else {
        out.push(base | 0x0040_0000 | 31 << 16 | 31 << 10 | 2);
        out.push(base | 6 << 16 | 31 << 10 | 4);
    }
    out
}

/// Loads the registers of state `at` (X30 is its address), or stores them.
pub(crate) fn registers(out: &mut Vec<u32>, at: u64, load: bool) {
    constant(out, 30, at);
    let flag = u32::from(load) << 22;
    let system = |read: u32, rt: u32| if load { 0xd510_0000 | read | rt } else { 0xd530_0000 | read | rt };
    const NZCV: u32 = 0xb4200;
    const FPCR: u32 = 0xb4400;
    const FPSR: u32 = 0xb4420;
    for v in 0..32 {
        out.push(0x3d80_0000 | flag | (16 + v) << 10 | 30 << 5 | v);
    }
    for (n, register) in [(29, NZCV), (30, FPSR), (31, FPCR)] {
        if load {
            out.push(0xf940_0000 | n << 10 | 30 << 5 | 29);
            out.push(system(register, 29));
        } else {
            // Cumulative flags beside the rest.
            out.push(system(register, 29));
            out.push(0xf900_0000 | n << 10 | 30 << 5 | 29);
        }
    }
    for x in 0..29 {
        out.push(0xf900_0000 | flag | x << 10 | 30 << 5 | x);
    }
}

/// The whole program: each sequence between loading its registers and storing them.
pub(crate) fn program(sequences: &[Vec<u32>], end: &[u32]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, sequence) in sequences.iter().enumerate() {
        let state = STATES + 2 * i as u64 * STATE;
        registers(&mut out, state, true);
        out.extend_from_slice(sequence);
        registers(&mut out, state + STATE, false);
    }
    out.extend_from_slice(end);
    assert!(out.len() * 4 < (DATA - BASE) as usize);
    out.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Scratch memory and initial registers.
pub(crate) fn data(rng: &mut impl Rng) -> Vec<u8> {
    let mut data = vec![0; (END - DATA) as usize];
    rng.fill(&mut data[..SCRATCH_SIZE as usize]);
    for i in 0..SEQUENCES {
        let at = (STATES - DATA + 2 * i * STATE) as usize;
        let mut put =
            |n: usize, value: u64| data[at + n * 8..at + n * 8 + 8].copy_from_slice(&value.to_le_bytes());
        for x in 0..29 {
            put(x, interesting(rng));
        }
        put(29, u64::from(rng.random::<u32>() & 0xf000_0000));
        put(30, 0);
        // FPCR: rounding mode, FZ, DN, AHP.
        put(31, u64::from(rng.random::<u32>() & 0x07c0_0000));
        for v in 0..64 {
            put(32 + v, if rng.random() { float(rng) } else { interesting(rng) });
        }
    }
    data
}

pub(crate) fn interesting(rng: &mut impl Rng) -> u64 {
    match rng.random_range(0..6) {
        0 => rng.random_range(0..16),
        1 => (rng.random_range(-16..0i64)) as u64,
        2 => 1 << rng.random_range(0..64),
        3 => u64::MAX >> rng.random_range(0..64),
        _ => rng.random(),
    }
}

/// Bits that make interesting doubles, singles and halves.
pub(crate) fn float(rng: &mut impl Rng) -> u64 {
    let single = |rng: &mut dyn rand::RngCore| match rng.random_range(0..8) {
        0 => 0,
        1 => 0x8000_0000,
        2 => 0x7f80_0000,
        3 => 0x7fc0_0000 | rng.random::<u32>() & 0x803f_ffff,
        4 => 0x7f80_0001 | rng.random::<u32>() & 0x803f_ffff,
        5 => rng.random::<u32>() & 0x807f_ffff,
        _ => (rng.random_range(-100.0..100.0f32)).to_bits(),
    };
    match rng.random_range(0..8) {
        0 => 0x7ff0_0000_0000_0000,
        1 => 0x7ff0_0000_0000_0001 | rng.random::<u64>() & 0x8007_ffff_ffff_ffff,
        2 => 0x7ff8_0000_0000_0000 | rng.random::<u64>() & 0x8007_ffff_ffff_ffff,
        3 => rng.random::<u64>() & 0x800f_ffff_ffff_ffff,
        4 => (rng.random_range(-1e6..1e6f64)).to_bits(),
        _ => u64::from(single(rng)) << 32 | u64::from(single(rng)),
    }
}

/// A static ELF of one segment.
pub(crate) fn elf(code: &[u8], data: &[u8]) -> Vec<u8> {
    let size = (DATA - BASE) as usize + data.len();
    let header = 0x1000usize;
    let mut out = vec![0; header + size];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(16, &2u16.to_le_bytes());
    put(18, &183u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(24, &BASE.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    put(68, &7u32.to_le_bytes());
    put(72, &(header as u64).to_le_bytes());
    put(80, &BASE.to_le_bytes());
    put(88, &BASE.to_le_bytes());
    put(96, &(size as u64).to_le_bytes());
    put(104, &(size as u64).to_le_bytes());
    put(112, &0x1000u64.to_le_bytes());
    put(header, code);
    put(header + (DATA - BASE) as usize, data);
    out
}

/// What QEMU makes of it: the data area at the end.
pub(crate) fn on_qemu(sequences: &[Vec<u32>], data: &[u8]) -> Vec<u8> {
    // write(1, DATA, END - DATA), exit(0)
    let mut end = Vec::new();
    constant(&mut end, 0, 1);
    constant(&mut end, 1, DATA);
    constant(&mut end, 2, END - DATA);
    constant(&mut end, 8, 64);
    end.push(0xd400_0001);
    constant(&mut end, 0, 0);
    constant(&mut end, 8, 93);
    end.push(0xd400_0001);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let (_, path) = file.keep().expect("a file");
    std::fs::write(&path, elf(&program(sequences, &end), data)).expect("an ELF");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let output = Command::new("qemu-aarch64").args(["-cpu", "max"]).arg(&path).output().expect("QEMU runs");
    let _ = std::fs::remove_file(&path);
    assert!(output.status.success(), "QEMU: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What we make of it.
pub(crate) fn here(engine: EngineKind, sequences: &[Vec<u32>], data: &[u8]) -> Vec<u8> {
    let mut machine = bare::Machine::new(engine, 1, FEATURES);
    // One gigabyte block, Normal memory, mapped to itself.
    machine.poke(bare::TABLES.start + 8, 0x4000_0000 | 3 << 8 | 1 << 10 | 1);
    let tcr = 25 | 1 << 23 | 4 << 32;
    let space = bare::Space { ttbr0: bare::TABLES.start, ttbr1: 0, tcr, mair: 0xff, sctlr: 0x30d0_1805 };
    machine.set_translation(0, &space);
    machine.cluster.core_mut(0).sys.cpacr_el1 = 3 << 20;
    // HVC #1
    assert!(machine.ram.write(BASE, &program(sequences, &[0xd400_0022])));
    assert!(machine.ram.write(DATA, data));
    machine.jump(0, BASE);
    machine.expect_hvc(0, 1);
    let mut out = vec![0; data.len()];
    assert!(machine.ram.read(DATA, &mut out));
    out
}

/// Whether QEMU is there. Without it a test is skipped, but not in CI.
pub(crate) fn available() -> bool {
    if Command::new("qemu-aarch64").arg("--version").output().is_ok() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "qemu-aarch64 is needed");
    println!("SKIPPED: qemu-aarch64 is not installed");
    false
}

/// Puts forward branches between instances: each skips one to three of them.
pub(crate) fn join(instances: &[Vec<u32>], rng: &mut impl Rng) -> Vec<u32> {
    let branches: Vec<bool> = instances.iter().map(|_| rng.random_range(0..5) == 0).collect();
    let length = |i: usize| instances[i].len() as u32 + u32::from(branches[i]);
    let mut out = Vec::new();
    for (i, instance) in instances.iter().enumerate() {
        if branches[i] {
            let end = (i + rng.random_range(1..4)).min(instances.len());
            let words: u32 = (i..end).map(length).sum();
            let register = rng.random_range(0..29u32);
            let wide = rng.random::<u32>() & 0x8000_0000;
            out.push(match rng.random_range(0..4) {
                0 => 0x5400_0000 | words << 5 | rng.random_range(0..16),
                1 => 0x3400_0000 | wide | rng.random::<u32>() & 1 << 24 | words << 5 | register,
                2 => 0x3600_0000 | wide | rng.random::<u32>() & 0x01f8_0000 | words << 5 | register,
                _ => 0x1400_0000 | words,
            });
        }
        out.extend(instance);
    }
    out
}
