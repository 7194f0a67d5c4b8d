//! Guests that do anything at all: random instructions over random tables, vectors and pointers, on both engines, which
//! must agree in every bit of state after every turn, and must not panic.

mod bare;

use aarch64::{EngineKind, Features};
use bare::*;
use dynasmrt::{DynasmApi, dynasm};
use pgtable::descriptor as d;
use pgtable::{Builder, Stage1};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const SIZE: u64 = 2 << 20;
/// Where the tables are; the last of them maps [`REGION`].
const TABLE_POOL: std::ops::Range<u64> = RAM + 0x18_0000..RAM + 0x1f_0000;
/// Sixteen pages that map to nearby memory, in various ways.
const REGION: u64 = 0x5000_0000;
const TEXT: u64 = RAM + 0x2_0000;
const TEXT_BYTES: u64 = 0x2000;

/// Templates whose register and small immediate fields are filled at random: word and mask of what is random. They
/// make programs that do something before they crash.
const TEMPLATES: &[(u32, u32)] = &[
    (0x8b00_0000, 0x0007_00e7), // ADD Xd, Xn, Xm, of X0 to X7
    (0xca00_0000, 0x0007_fce7), // EOR, shifted
    (0xd280_0000, 0x001f_ffe7), // MOVZ Xd, #imm
    (0xf100_0000, 0x003f_fce7), // SUBS Xd, Xn, #imm
    (0x9ac0_2000, 0x0007_04e7), // LSLV, LSRV
    (0x5400_0000, 0x0000_00ef), // B.cond, up to 7 forward
    (0xb400_0000, 0x0000_00e7), // CBZ
    (0xf940_0000, 0x0000_f8e7), // LDR Xt, [X8 to X15, #imm]
    (0xf900_0000, 0x0000_f8e7), // STR
    (0xf840_0000, 0x001f_f0e7), // LDUR, unaligned
    (0xf800_0000, 0x001f_f0e7), // STUR
    (0x3900_0000, 0x003f_fce7), // STRB
    (0xa940_0000, 0x003f_9ce7), // LDP
    (0xa900_0000, 0x003f_9ce7), // STP
    (0xc85f_7c00, 0x0000_00e7), // LDXR
    (0xc800_7c00, 0x0007_00e7), // STXR
    (0xd508_8300, 0x0000_00e7), // TLBI VMALLE1IS, VAE1IS, …
    (0xd508_8700, 0x0000_00e7), // TLBI VMALLE1, VAE1, …
    (0xd50b_7420, 0x0000_0007), // DC ZVA
    (0xd503_3fdf, 0),           // ISB
    (0xd503_207f, 0x0000_00e0), // hints: WFE, WFI, SEV, …
    (0xd53b_e040, 0x0000_0007), // MRS CNTVCT_EL0
    (0xd51b_e300, 0x0000_0067), // MSR CNTV_TVAL_EL0, CTL, CVAL
    (0xd503_40df, 0x0000_0f20), // MSR DAIFSet, DAIFClr
    (0xd508_7800, 0x0000_0067), // AT S1E1R, …
    (0xd518_2000, 0x0000_0027), // MSR TTBR0_EL1, TTBR1_EL1
    (0xd400_0001, 0x0000_0000), // SVC
    (0xd69f_03e0, 0),           // ERET
];

fn fill(rng: &mut Xoshiro256PlusPlus) -> u32 {
    if rng.random_range(0..12) == 0 {
        return rng.random();
    }
    let (word, random) = TEMPLATES[rng.random_range(0..TEMPLATES.len())];
    // Bases are X8 to X15 for loads and stores.
    let base = if word & 0x0a00_0000 == 0x0800_0000 { 1 << 8 } else { 0 };
    (word | rng.random::<u32>() & random) ^ base
}

/// A machine full of nonsense.
fn build(engine: EngineKind, seed: u64) -> Machine {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
    let features = Features { lse: rng.random(), pan: rng.random(), ..Features::default() };
    let mut m = Machine::with_ram(engine, 2, features, SIZE);
    let mut mem = Ram(m.ram.clone());
    let mut cfg = Stage1 { tsz: 25, oas: 44, ..Stage1::default() };
    let mut low = Builder::stage1(&mut cfg, &mut mem, TABLE_POOL).unwrap();
    low.coarsest = if rng.random() { 3 } else { 1 };
    let user = if rng.random() { d::AP_USER | d::AP_READ_ONLY } else { 0 };
    low.map(&mut mem, RAM, RAM, SIZE, d::AF | user).unwrap();
    for page in 0..16 {
        let pa = match rng.random_range(0..8) {
            0 => TEXT,
            1 => TEXT + 0x1000,
            // The tables themselves, down to the one that maps this.
            2 => TABLE_POOL.start + rng.random_range(0..5) * 0x1000,
            3 => DEVICE,
            _ => RAM + 0x4_0000 + rng.random_range(0..4) * 0x1000,
        };
        let mut attrs = d::AF | d::attr_index(u8::from(rng.random_range(0..4) == 0));
        for bit in [d::AP_USER, d::AP_READ_ONLY, d::NG, d::XN, d::PXN] {
            attrs |= if rng.random_range(0..3) == 0 { bit } else { 0 };
        }
        if rng.random_range(0..6) != 0 {
            low.map(&mut mem, REGION + page * 0x1000, pa, 0x1000, attrs).unwrap();
        }
    }
    for at in (0..TEXT_BYTES).step_by(4) {
        assert!(m.ram.write(TEXT + at, &fill(rng).to_le_bytes()));
    }
    // Vectors: step over what faulted; an interrupt sets the timer anew. At other times they are random, too.
    for slot in 0..16 {
        m.code(VECTORS + slot * 0x80, |ops| {
            dynasm!(ops; .arch aarch64; mrs x28, ELR_EL1);
            if slot % 4 == 0 {
                dynasm!(ops; .arch aarch64; add x28, x28, 4; msr ELR_EL1, x28);
            } else {
                dynasm!(ops; .arch aarch64; mov x28, 37; msr CNTV_TVAL_EL0, x28);
            }
            dynasm!(ops; .arch aarch64; eret);
        });
    }
    for cpu in 0..2 {
        let core = m.cluster.core_mut(cpu);
        for r in &mut core.r[0..8] {
            *r = rng.random::<u64>() >> rng.random_range(0..64);
        }
        for r in &mut core.r[8..16] {
            *r = REGION + rng.random_range(0..0x1_0000) / 8 * 8;
        }
        // WXN, where the code is read-only.
        let wxn = u64::from(user != 0 && rng.random());
        let sctlr = 0x30d0_1805 | wxn << 19 | 7 << 14;
        let tcr = 25 | 25 << 16 | 2 << 30 | 4 << 32 | rng.random_range(0..2) << 36;
        let space = Space { ttbr0: cfg.ttb, ttbr1: cfg.ttb, tcr, mair: 0xff, sctlr };
        m.set_translation(cpu, &space);
        m.cluster.core_mut(cpu).pstate.daif = 0;
        m.jump(cpu, TEXT + rng.random_range(0..TEXT_BYTES) / 4 * 4);
    }
    m
}

fn ram(m: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    assert!(m.ram.read(RAM, &mut bytes));
    bytes
}

/// Runs one seed; answers how many instructions began.
fn compare(seed: u64, turns: u64) -> u64 {
    EngineKind::ALL[1..].iter().map(|&engine| compare_with(engine, seed, turns)).min().unwrap_or(0)
}

fn compare_with(engine: EngineKind, seed: u64, turns: u64) -> u64 {
    let mut step = build(EngineKind::Step, seed);
    let mut block = build(engine, seed);
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(!seed);
    let mut begun = 0;
    for turn in 0..turns {
        let cpu = (turn % 2) as usize;
        let quantum = 1 << rng.random_range(0..9);
        let (a, b) = (step.turn(cpu, quantum), block.turn(cpu, quantum));
        assert_eq!(a, b, "{engine:?} seed {seed} turn {turn}");
        if step.cluster.state() != block.cluster.state() {
            for cpu in 0..2 {
                let (a, b) = (step.cluster.core(cpu), block.cluster.core(cpu));
                assert_eq!(
                    (a.pc, a.r, &a.sys, a.monitor),
                    (b.pc, b.r, &b.sys, b.monitor),
                    "{engine:?} seed {seed} turn {turn}"
                );
            }
            panic!("seed {seed} turn {turn}: states differ");
        }
        begun += a.retired;
    }
    assert_eq!(step.board, block.board, "seed {seed}");
    assert!(ram(&step) == ram(&block), "seed {seed}: RAM differs");
    begun
}

#[test]
fn both_engines_agree_about_nonsense() {
    let begun: u64 = (0..150).map(|seed| compare(seed, 100)).sum();
    // If guests stopped at once this would test nothing.
    assert!(begun > 500_000, "{begun}");
}

#[test]
#[ignore = "long"]
fn both_engines_agree_about_much_nonsense() {
    let base: u64 = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1000);
    for seed in base..base + 20_000 {
        compare(seed, 200);
    }
}
