//! What makes hits and walks fast can not be seen: an SMMU that goes the long way does the same.

use pgtable::{Builder, Stage2, descriptor as d};
use smmu_model::{AccessKind, Config, Progress, Replace, Transaction};

use crate::lab::*;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }
}

const STREAMS: u64 = 8;
const BLOCK: u64 = 0x20_0000;

/// Streams of stage 1 and of both stages, of which two at a time share an ASID.
fn lab(config: &Config) -> (Lab, Builder) {
    let (mut lab, tables) = Lab::stage1(config.clone());
    let mut stage2 = Stage2 { tsz: 20, sl0: 2, oas: 44, ..Stage2::default() };
    let mut second = lab.tables2(&mut stage2);
    for (from, bytes) in [(0x1000_0000, 0x300_0000), (0x8000_0000, 0x40_0000)] {
        lab.map(&mut second, from, from, bytes, S2_RW);
    }
    let stage2_word = 20 << 32 | 2 << 38 | 1 << 40 | 1 << 42 | 3 << 44 | 4 << 48 | 1 << 51 | 1 << 58;
    for n in 0..STREAMS {
        lab.context(n, CdFields { word0: cd(16, 0, 1 + n / 2), ..CdFields::default() });
        let at = CDS + n * 64;
        let ste = if n < 5 { ste_stage1(at) } else { [1 | 7 << 1 | at, 1 << 44, stage2_word, stage2.ttb] };
        lab.ste(SID + n as u32, ste);
    }
    (lab, tables)
}

/// The pages that are used: some next to each other, some within a block or what is there in its place.
fn page(dice: &mut Dice) -> u64 {
    dice.below(2) * BLOCK + dice.below(12) * 0x1000
}

fn transaction(dice: &mut Dice) -> Transaction {
    let kinds = [AccessKind::Read, AccessKind::Read, AccessKind::Write, AccessKind::Atomic];
    let address = page(dice) + dice.below(0x1000);
    Transaction {
        privileged: dice.below(4) == 0,
        instruction: dice.below(8) == 0,
        ..Transaction::new(SID + dice.below(STREAMS) as u32, address, kinds[dice.below(4) as usize])
    }
}

/// What the guest does in between.
fn change(n: u64, dice: &mut Dice, lab: &mut Lab, tables: &mut Builder) {
    let va = page(dice);
    let asid = 1 + dice.below(STREAMS / 2);
    let sid = SID + dice.below(STREAMS) as u32;
    match n {
        0 => lab.unmap(tables, 3, va % BLOCK),
        1 => lab.map(tables, va % BLOCK, 0x8000_0000 + va % BLOCK, 0x1000, RW),
        2 => lab.map(tables, va % BLOCK, 0x8010_0000, 0x1000, RW & !d::NG),
        3 => lab.map(tables, va % BLOCK, 0x8010_0000, 0x1000, RO),
        4 => tables.set(&mut Words(&lab.ram), 2, BLOCK, 0x8020_0000 | RW | d::VALID).map(drop).unwrap(),
        5 => {
            lab.unmap(tables, 2, BLOCK);
            lab.map(tables, va | BLOCK, 0x8030_0000 + va % BLOCK, 0x1000, RW);
        }
        6 => lab.command(tlbi_va(asid, va)),
        7 => lab.command([0x11 | asid << 48, 0]),
        8 => lab.command(NSNH_ALL),
        9 => lab.command(cfgi_ste(sid)),
        10 => lab.command(cfgi_cd(sid, 0)),
        _ => lab.command(CFGI_ALL),
    }
}

#[test]
fn an_smmu_that_forgets_its_shortcuts_does_the_same() {
    let configs = [
        Config { tlb: 8, ste_cache: 4, cd_cache: 4, ..Config::linux() },
        Config { tlb: 16, walk_cache: 0, replace: Replace::Random, seed: 3, ..Config::linux() },
        Config { tlb: 0, ste_cache: 4, ..Config::linux() },
        Config { combined: false, ..linux() },
        Config::parse("keep-all=on,pmcg=2").unwrap(),
    ];
    for (n, config) in configs.iter().enumerate() {
        let mut dice = Dice(n as u64);
        let (mut fast, mut fast_tables) = lab(config);
        let (mut slow, mut slow_tables) = lab(config);
        for round in 0..3000 {
            if dice.below(8) == 0 {
                let (what, seed) = (dice.below(12), dice.below(u64::MAX));
                change(what, &mut Dice(seed), &mut fast, &mut fast_tables);
                change(what, &mut Dice(seed), &mut slow, &mut slow_tables);
                continue;
            }
            let t = transaction(&mut dice);
            let ends =
                if dice.below(2) == 0 { fast.smmu.translate(&t, &fast.ram).0 } else { steps(&mut fast, &t) };
            // A copy has no shortcuts.
            let copy = slow.smmu.clone();
            slow.smmu.restore(copy);
            assert_eq!(ends, steps(&mut slow, &t), "{config:?}, {round}: {t:?}");
            if let Progress::Latched(id, _) = ends {
                fast.smmu.complete(id);
                slow.smmu.complete(id);
            }
            // The event queue shall not overflow.
            assert_eq!(fast.events(), slow.events());
        }
        let text = |lab: &Lab| serde_json::to_string(&lab.smmu).unwrap();
        assert_eq!(text(&fast), text(&slow), "{config:?}");
        let stats = fast.smmu.stats();
        assert!(stats.translated > 500 && (config.tlb == 0 || stats.tlb_hits > 200), "{stats:?}");
    }
}

/// One fetch at a time.
fn steps(lab: &mut Lab, t: &Transaction) -> Progress {
    let mut progress = lab.smmu.begin(t);
    while let Progress::Walking(id) = progress {
        progress = lab.smmu.step(id, &lab.ram);
    }
    progress
}
