//! Sections 3.17, 4.4 and VMSAv8-64: what is remembered of tables above the leaf.

use pgtable::{Builder, Granule, Stage2, descriptor as d};
use smmu_model::{AccessKind, Config, Transaction};

use crate::lab::*;

fn config() -> Config {
    Config { walk_cache: 64, ..linux() }
}

fn lab() -> (Lab, Builder) {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x3000, RW);
    lab.map(&mut tables, 0x20_0000, 0x8020_0000, 0x1000, RW);
    lab.map(&mut tables, 1 << 30, 0x9000_0000, 0x1000, RW);
    lab.read(0x1000);
    (lab, tables)
}

/// A walk begins at the deepest table that is known.
#[test]
fn walks_are_short() {
    let (mut lab, _) = lab();
    assert_eq!(lab.fetches(|lab| lab.read(0x2000)), (1, End::To(0x8000_2000)), "the same level 3 table");
    assert_eq!(lab.fetches(|lab| lab.read(0x20_0000)), (2, End::To(0x8020_0000)), "the same level 2 table");
    assert_eq!(lab.fetches(|lab| lab.read(1 << 30)), (3, End::To(0x9000_0000)), "the same level 1 table");
    assert_eq!(lab.fetches(|lab| lab.read(0x20_1000)), (1, End::Abort), "a fault is found there, too");
    assert_eq!(lab.smmu.stats().walk_hits, 4);
}

/// 4.4: by address, Leaf=1 leaves tables, Leaf=0 and all other commands do not. With TTL, tables above that level go.
#[test]
fn leaf() {
    let kept = 1;
    let commands: [(&str, [u64; 2], usize); 13] = [
        ("NH_VA, leaf", [0x12 | 1 << 48, 0x1001], kept),
        ("NH_VA", [0x12 | 1 << 48, 0x1000], 4),
        // Tables of levels 1 and 2 go, but not what 4 MiB does not need.
        ("NH_VA beyond the level 3 table", [0x12 | 1 << 48, 0x40_0000], kept),
        ("NH_VA of another ASID", [0x12 | 2 << 48, 0x1000], kept),
        ("NH_VA elsewhere", [0x12 | 1 << 48, 1 << 40], kept),
        ("NH_VAA, leaf", [0x13, 0x1001], kept),
        ("NH_VAA", [0x13, 0x1000], 4),
        ("NH_VA with TTL", [0x12 | 1 << 48, 0x1000 | 1 << 10 | 3 << 8], 4),
        ("a range of another granule", [0x12 | 1 << 48 | 1 << 12, 3 << 10], kept),
        ("NH_ASID", [0x11 | 1 << 48, 0], 4),
        ("NH_ASID of another", [0x11 | 2 << 48, 0], kept),
        ("NH_ALL", [0x10, 0], 4),
        ("NSNH_ALL", NSNH_ALL, 4),
    ];
    for (what, command, fetches) in commands {
        let (mut lab, _) = lab();
        lab.command(command);
        assert_eq!(lab.fetches(|lab| lab.read(0x2000)).0, fetches, "{what}");
    }
}

/// A freed table that was not invalidated is still used: what a driver that says Leaf=1 gets.
#[test]
fn stale_tables() {
    let (mut lab, mut tables) = lab();
    let at = tables.entry(&mut Words(&lab.ram), 2, 0x1000).unwrap();
    lab.ram.set(at, 0);
    lab.command([0x12 | 1 << 48, 0x1001]);
    assert_eq!(lab.read(0x2000), End::To(0x8000_2000), "through the old table");
    lab.command([0x12 | 1 << 48, 0x1000]);
    assert_eq!(lab.read(0x3000), End::Abort);
}

/// The new table is used after the invalidation.
#[test]
fn replaced_tables() {
    let (mut lab, mut tables) = lab();
    let at = tables.entry(&mut Words(&lab.ram), 2, 0x1000).unwrap();
    lab.ram.set(at, 0x8400_0000 & !0x1f_ffff | RW | d::VALID);
    lab.command([0x12 | 1 << 48, 0x1000]);
    assert_eq!(lab.read(0x1008), End::To(0x8400_1008));
}

/// A walk that an invalidation overtakes leaves no table behind.
#[test]
fn overtaken_walks() {
    let (mut lab, mut tables) = lab();
    lab.command(NSNH_ALL);
    let t = Transaction::new(SID, 0x1000, AccessKind::Read);
    let mut progress = lab.smmu.begin(&t);
    for n in 0..4 {
        let smmu_model::Progress::Walking(id) = progress else { panic!("{progress:?}") };
        if n == 2 {
            let at = tables.entry(&mut Words(&lab.ram), 2, 0x1000).unwrap();
            lab.ram.set(at, 0);
            lab.push([0x12 | 1 << 48, 0x1000]);
            lab.run_commands();
            lab.ram.set(at, 0xdead_0003);
        }
        progress = lab.smmu.step(id, &lab.ram);
    }
    assert_eq!(progress, smmu_model::Progress::Aborted, "its table is full of zeros");
    let at = tables.entry(&mut Words(&lab.ram), 2, 0x1000).unwrap();
    lab.ram.set(at, 0);
    lab.ram.reads.borrow_mut().clear();
    assert_eq!(lab.read(0x2000), End::Abort);
    assert_eq!(lab.ram.reads.borrow().len(), 3, "from the first level on");
}

/// Every granule; upper addresses; hierarchical permissions stay with the table.
#[test]
fn granules() {
    for (granule, tg1) in [(Granule::G4K, 2), (Granule::G16K, 1), (Granule::G64K, 3)] {
        let mut lab = Lab::new(config());
        let mut tables = lab.tables(granule, 16, TABLES);
        let word0 = cd(16, 0, 1) & !(1 << 30) | 1 << 14 | 16 << 16 | tg1 << 22;
        lab.context(0, CdFields { word0, word1: 0, word2: tables.root(), ..CdFields::default() });
        lab.ste(SID, ste_stage1(CDS));
        let (va, page) = (0xffff_1234_4000_0000, granule.bytes());
        lab.map(&mut tables, va, 0x8000_0000, 4 * page, RW);
        tables.restrict(&mut Words(&lab.ram), 1, va, d::AP_TABLE_READ_ONLY).unwrap();
        assert_eq!(lab.read(va), End::To(0x8000_0000));
        assert_eq!(lab.fetches(|lab| lab.read(va + page)), (1, End::To(0x8000_0000 + page)), "{granule:?}");
        assert_eq!(lab.write(va + 2 * page), End::Abort, "{granule:?}: read-only by the level 1 table");
        assert_eq!(code(lab.event()), 0x13);
    }
}

/// Stage 2 has its tables remembered by VMID; TLBI_S2_IPA with Leaf=0 and TLBI_S12_VMALL forget them.
#[test]
fn stage2() {
    let commands: [(&str, [u64; 2], usize); 5] = [
        ("S2_IPA, leaf", [0x2a | 7 << 32, 0x4000_1001], 1),
        ("S2_IPA", [0x2a | 7 << 32, 0x4000_1000], 3),
        ("S2_IPA of another VMID", [0x2a | 6 << 32, 0x4000_1000], 1),
        ("S12_VMALL", [0x28 | 7 << 32, 0], 3),
        ("NH_ALL", [0x10 | 7 << 32, 0], 1),
    ];
    for (what, command, fetches) in commands {
        let mut lab = Lab::new(config());
        let mut cfg = Stage2 { granule: Granule::G4K, tsz: 25, sl0: 1, oas: 44, ..Stage2::default() };
        let mut tables = lab.tables2(&mut cfg);
        lab.map(&mut tables, 0x4000_1000, 0x5000_1000, 0x3000, S2_RW);
        lab.ste(SID, [1 | 6 << 1, 1 << 44, 7 | 25 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58, S2_TABLES]);
        lab.read(0x4000_1000);
        lab.command(command);
        assert_eq!(lab.fetches(|lab| lab.read(0x4000_2000)), (fetches, End::To(0x5000_2000)), "{what}");
    }
}
