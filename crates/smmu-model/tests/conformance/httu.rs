//! Section 3.13: hardware update of access flag and dirty state.

use pgtable::{Builder, Granule, Stage2, descriptor as d};
use smmu_model::{AccessKind, Config, Progress, Transaction};

use crate::lab::*;

const HA: u64 = 1 << 43;
const HD: u64 = 1 << 42;
/// Writable by intent, clean, not accessed.
const CLEAN: u64 = RO & !d::AF | d::DBM;
const DBM2: u64 = S2_RW & !d::S2AP_WRITE & !d::AF | d::DBM;
const VMID: u64 = 7;

fn config() -> Config {
    Config { httu: 2, ..linux() }
}

/// Stage 1 with HA and HD as given, one page at 0x1000, and the address of its descriptor.
fn stage1(flags: u64, attrs: u64) -> (Lab, u64) {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.context(0, CdFields { word0: cd(16, 0, 1) | flags, ..CdFields::default() });
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, attrs);
    let at = tables.entry(&mut Words(&lab.ram), 3, 0x1000).unwrap();
    (lab, at)
}

fn is(lab: &Lab, at: u64) -> (bool, bool) {
    let descriptor = lab.ram.word(at);
    (descriptor & d::AF != 0, descriptor & d::AP_READ_ONLY == 0)
}

/// 5.4: HA and HD are legal as far as IDR0.HTTU goes.
#[test]
fn legality() {
    for (httu, flags, legal) in
        [(0, HA, false), (1, HA, true), (1, HA | HD, false), (2, HA | HD, true), (2, HD, true)]
    {
        let (mut lab, mut tables) = Lab::stage1(Config { httu, ..linux() });
        lab.context(0, CdFields { word0: cd(16, 0, 1) | flags, ..CdFields::default() });
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        assert_eq!(lab.read(0x1000) != End::Abort, legal, "HTTU {httu}");
    }
}

/// 3.13.2: HA sets AF instead of a fault, in a step of its own; a read leaves a page clean.
#[test]
fn access_flag() {
    let (mut lab, at) = stage1(HA | HD, CLEAN);
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
    assert_eq!(is(&lab, at), (true, false));
    let (n, _) = lab.fetches(|lab| lab.read(0x1000));
    assert_eq!(n, 0);
    let (mut lab, at) = stage1(0, CLEAN);
    assert_eq!(lab.read(0x1000), End::Abort, "HA is off");
    assert_eq!(code(lab.event()), 0x12);
    assert_eq!(is(&lab, at), (false, false));
}

/// 3.13.3: a write marks a clean page dirty, once; so does a write after a read has been cached.
#[test]
fn dirty_state() {
    for read_first in [false, true] {
        let (mut lab, at) = stage1(HA | HD, CLEAN);
        if read_first {
            assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
        }
        assert_eq!(lab.write(0x1000), End::To(0x8000_1000));
        assert_eq!(is(&lab, at), (true, true), "read first: {read_first}");
        assert_eq!(lab.fetches(|lab| lab.write(0x1000)).0, 0);
        assert_eq!(lab.smmu.stats().dirty_updates, 1);
    }
}

/// 3.17: software that cleans a page without a TLBI loses the next write's mark.
#[test]
fn stale_dirty_state() {
    let (mut lab, at) = stage1(HA | HD, CLEAN);
    lab.write(0x1000);
    lab.ram.set(at, lab.ram.word(at) | d::AP_READ_ONLY);
    assert_eq!(lab.write(0x1000), End::To(0x8000_1000));
    assert_eq!(is(&lab, at), (true, false), "lost");
    lab.command(tlbi_va(1, 0x1000));
    lab.write(0x1000);
    assert_eq!(is(&lab, at), (true, true));
}

/// 3.13.3: without HD, or without DBM, or under a read-only table, a clean page is a read-only one.
#[test]
fn genuinely_read_only() {
    for (flags, attrs) in [(HA, CLEAN), (HD, CLEAN | d::AF), (HA | HD, CLEAN & !d::DBM)] {
        let (mut lab, at) = stage1(flags, attrs);
        assert_eq!(lab.write(0x1000), End::Abort);
        assert_eq!(code(lab.event()), 0x13);
        assert!(!is(&lab, at).1);
    }
}

/// The update is atomic: if the descriptor has changed in the meantime, the walk begins anew.
#[test]
fn races() {
    let (mut lab, at) = stage1(HA | HD, CLEAN);
    let mut progress = lab.smmu.begin(&Transaction::new(SID, 0x1000, AccessKind::Write));
    for _ in 0..6 {
        let Progress::Walking(id) = progress else { panic!("{progress:?}") };
        progress = lab.smmu.step(id, &lab.ram);
    }
    assert_eq!(is(&lab, at), (false, false), "fetched, not updated");
    lab.ram.set(at, 0);
    while let Progress::Walking(id) = progress {
        progress = lab.smmu.step(id, &lab.ram);
    }
    assert_eq!(progress, Progress::Aborted);
    assert_eq!(lab.ram.word(at), 0, "no update of a descriptor that is not there any more");
    assert_eq!(code(lab.event()), 0x10);
}

/// 7.3.12: an abort on the update.
#[test]
fn update_abort() {
    let (mut lab, at) = stage1(HA, CLEAN);
    let mut progress = lab.smmu.begin(&Transaction::new(SID, 0x1000, AccessKind::Read));
    for _ in 0..6 {
        let Progress::Walking(id) = progress else { panic!("{progress:?}") };
        progress = lab.smmu.step(id, &lab.ram);
    }
    lab.ram.holes.push(at..at + 8);
    let Progress::Walking(id) = progress else { panic!("{progress:?}") };
    assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Aborted);
    let event = lab.event();
    assert_eq!((code(event), event[3]), (0x0b, at));
}

/// Stage 2 tables: pages of 4 KiB, S2HA and S2HD.
fn stage2(lab: &mut Lab) -> Builder {
    let mut cfg = Stage2 { granule: Granule::G4K, tsz: 24, sl0: 1, oas: 44, ..Stage2::default() };
    let mut tables = lab.tables2(&mut cfg);
    tables.coarsest = 3;
    tables
}

fn ste(config: u64, cd: u64) -> [u64; 4] {
    let flags = 4 << 48 | 1 << 51 | 3 << 55 | 1 << 58;
    [1 | config << 1 | cd, 1 << 44, VMID | 24 << 32 | 1 << 38 | flags, S2_TABLES]
}

fn is2(lab: &Lab, at: u64) -> (bool, bool) {
    let descriptor = lab.ram.word(at);
    (descriptor & d::AF != 0, descriptor & d::S2AP_WRITE != 0)
}

/// The same at stage 2 alone.
#[test]
fn stage2_alone() {
    let mut lab = Lab::new(config());
    let mut tables = stage2(&mut lab);
    lab.map(&mut tables, 0x1000, 0x9000, 0x1000, DBM2);
    let at = tables.entry(&mut Words(&lab.ram), 3, 0x1000).unwrap();
    lab.ste(SID, ste(6, 0));
    assert_eq!(lab.read(0x1000), End::To(0x9000));
    assert_eq!(is2(&lab, at), (true, false));
    assert_eq!(lab.write(0x1000), End::To(0x9000));
    assert_eq!(is2(&lab, at), (true, true));
    assert_eq!(lab.fetches(|lab| lab.write(0x1000)).0, 0);
}

/// 3.13.5: nested: the CD's page is accessed, not dirty; the page of an updated stage 1 descriptor is dirty; the data's
/// page is as the access is.
#[test]
fn nested() {
    let mut lab = Lab::new(config());
    let mut first = lab.tables(Granule::G4K, 16, TABLES);
    lab.context(0, CdFields { word0: cd(16, 0, 1) | HA | HD, ..CdFields::default() });
    lab.map(&mut first, 0x1000, 0x5000_0000, 0x1000, CLEAN);
    let at1 = first.entry(&mut Words(&lab.ram), 3, 0x1000).unwrap();
    let mut second = stage2(&mut lab);
    lab.map(&mut second, CDS, CDS, 0x1000, DBM2);
    lab.map(&mut second, TABLES, TABLES, 0x8000, DBM2);
    lab.map(&mut second, 0x5000_0000, 0x6000_0000, 0x1000, DBM2);
    let mut at2 = |ipa| second.entry(&mut Words(&lab.ram), 3, ipa).unwrap();
    let (cd_page, root, leaf_table, page) = (at2(CDS), at2(TABLES), at2(at1), at2(0x5000_0000));
    lab.ste(SID, ste(7, CDS));
    assert_eq!(lab.read(0x1000), End::To(0x6000_0000));
    assert_eq!(is(&lab, at1), (true, false));
    assert_eq!(is2(&lab, cd_page), (true, false));
    assert_eq!(is2(&lab, root), (true, false));
    assert_eq!(is2(&lab, leaf_table), (true, true), "AF was written there");
    assert_eq!(is2(&lab, page), (true, false));
    assert_eq!(lab.write(0x1000), End::To(0x6000_0000));
    assert_eq!(is(&lab, at1), (true, true));
    assert_eq!(is2(&lab, page), (true, true));
    assert_eq!(lab.fetches(|lab| lab.write(0x1000)).0, 0);
}

/// 7.3.16: a stage 1 update that stage 2 does not let write: CLASS=TT, TTRnW=0.
#[test]
fn refused_update() {
    let mut lab = Lab::new(config());
    let mut first = lab.tables(Granule::G4K, 16, TABLES);
    lab.context(0, CdFields { word0: cd(16, 0, 1) | HA, ..CdFields::default() });
    lab.map(&mut first, 0x1000, 0x5000_0000, 0x1000, CLEAN);
    let at1 = first.entry(&mut Words(&lab.ram), 3, 0x1000).unwrap();
    let mut second = stage2(&mut lab);
    lab.map(&mut second, CDS, CDS, 0x1000, S2_RW);
    lab.map(&mut second, TABLES, TABLES, 0x8000, S2_RW & !d::S2AP_WRITE);
    lab.ste(SID, ste(7, CDS));
    assert_eq!(lab.read(0x1000), End::Abort);
    let s2_tt_read = 1 << 39 | 1 << 40 | 1 << 35;
    assert_eq!(lab.event(), [0x13 | u64::from(SID) << 32, s2_tt_read, 0x1000, at1 & !0xfff]);
    assert_eq!(is(&lab, at1), (false, false));
}

/// 3.13.6, 5.4: HAFT needs HA where there is HAFT, and is RES0 where there is none.
#[test]
fn table_flags_legality() {
    for (httu, word0, legal) in [(3, 0, false), (3, HA, true), (2, 0, true)] {
        let (mut lab, mut tables) = Lab::stage1(Config { httu, ..linux() });
        let word1 = TABLES | 1 << 3;
        lab.context(0, CdFields { word0: cd(16, 0, 1) | word0, word1, ..CdFields::default() });
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        assert_eq!(lab.read(0x1000) != End::Abort, legal, "HTTU {httu}");
        assert_eq!(lab.smmu.mmio_read(0, 4).unwrap() >> 6 & 3, u64::from(httu), "IDR0.HTTU");
        let mut lab = Lab::new(Config { httu, ..linux() });
        let mut tables = stage2(&mut lab);
        lab.map(&mut tables, 0x1000, 0x1000, 0x1000, S2_RW);
        let [w0, w1, w2, w3] = ste(6, 0);
        let s2ha = if word0 == 0 { 0 } else { 1 << 56 };
        lab.ste(SID, [w0, w1, w2 & !(3 << 55) | s2ha | 1 << 59, w3]);
        assert_eq!(lab.read(0x1000) != End::Abort, legal, "HTTU {httu}");
    }
}

/// 3.13.6: with HAFT, the tables on the way are marked as well, each in a step of its own, and once.
#[test]
fn table_flags() {
    for haft in [true, false] {
        let (mut lab, mut tables) = Lab::stage1(Config { httu: 3, walk_cache: 16, ..linux() });
        let word1 = TABLES | u64::from(haft) << 3;
        lab.context(0, CdFields { word0: cd(16, 0, 1) | HA, word1, ..CdFields::default() });
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW & !d::AF);
        lab.map(&mut tables, 0x2000, 0x8000_2000, 0x1000, RW);
        let mut at = |level| tables.entry(&mut Words(&lab.ram), level, 0x1000).unwrap();
        let entries = [at(0), at(1), at(2), at(3)];
        assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
        let marked = entries.map(|at| lab.ram.word(at) & d::AF != 0);
        assert_eq!(marked, [haft, haft, haft, true]);
        assert_eq!(lab.smmu.stats().af_updates, if haft { 4 } else { 1 });
        assert_eq!(lab.fetches(|lab| lab.read(0x2000)), (1, End::To(0x8000_2000)), "the tables are cached");
    }
}

/// Stage 1 with access flags in tables, too (CD.HAFT).
fn haft(lab: &mut Lab) {
    let word1 = TABLES | 1 << 3;
    lab.context(0, CdFields { word0: cd(16, 0, 1) | HA, word1, ..CdFields::default() });
}

/// For nested translation: such a stage 1 with one page, and its tables.
fn nested_stage1() -> (Lab, Builder) {
    let mut lab = Lab::new(Config { httu: 3, ..config() });
    let mut first = lab.tables(Granule::G4K, 16, TABLES);
    haft(&mut lab);
    lab.map(&mut first, 0x1000, 0x5000_0000, 0x1000, RW);
    (lab, first)
}

/// 3.13.6: a table that changes before it is marked is looked at again; an abort of the update is F_WALK_EABT.
#[test]
fn table_flag_races() {
    for abort in [false, true] {
        let (mut lab, mut tables) = Lab::stage1(Config { httu: 3, ..linux() });
        haft(&mut lab);
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        let at = tables.entry(&mut Words(&lab.ram), 0, 0x1000).unwrap();
        let mut progress = lab.smmu.begin(&Transaction::new(SID, 0x1000, AccessKind::Read));
        for _ in 0..3 {
            let Progress::Walking(id) = progress else { panic!("{progress:?}") };
            progress = lab.smmu.step(id, &lab.ram);
        }
        assert_eq!(lab.ram.word(at) & d::AF, 0, "fetched, not updated");
        if abort {
            lab.ram.holes.push(at..at + 8);
        } else {
            lab.ram.set(at, 0);
        }
        while let Progress::Walking(id) = progress {
            progress = lab.smmu.step(id, &lab.ram);
        }
        assert_eq!(progress, Progress::Aborted);
        let event = lab.event();
        let place = if abort { at } else { 0 };
        assert_eq!((code(event), event[3]), (if abort { 0x0b } else { 0x10 }, place));
    }
}

/// 3.13.6: nested: marking a stage 1 table writes the page that it is in; stage 2's own tables are marked with S2HAFT.
#[test]
fn nested_table_flags() {
    let (mut lab, mut first) = nested_stage1();
    let root = first.entry(&mut Words(&lab.ram), 0, 0x1000).unwrap();
    let mut second = stage2(&mut lab);
    lab.map(&mut second, CDS, CDS, 0x1000, DBM2);
    lab.map(&mut second, TABLES, TABLES, 0x8000, DBM2);
    lab.map(&mut second, 0x5000_0000, 0x6000_0000, 0x1000, DBM2);
    let at2 =
        |second: &mut Builder, lab: &Lab, level, ipa| second.entry(&mut Words(&lab.ram), level, ipa).unwrap();
    let [w0, w1, w2, w3] = ste(7, CDS);
    lab.ste(SID, [w0, w1, w2 | 1 << 59, w3]);
    assert_eq!(lab.read(0x1000), End::To(0x6000_0000));
    assert_ne!(lab.ram.word(root) & d::AF, 0);
    let page = at2(&mut second, &lab, 3, root);
    assert_eq!(is2(&lab, page), (true, true), "the root table was written to");
    let data = at2(&mut second, &lab, 3, 0x5000_0000);
    assert_eq!(is2(&lab, data), (true, false));
    for level in [1, 2] {
        let table = at2(&mut second, &lab, level, 0x5000_0000);
        assert_ne!(lab.ram.word(table) & d::AF, 0, "stage 2 level {level}");
    }
}

/// 7.3.16: a stage 1 table that stage 2 does not let be marked: CLASS=TT, TTRnW=0.
#[test]
fn refused_table_flag() {
    let (mut lab, _) = nested_stage1();
    let mut second = stage2(&mut lab);
    lab.map(&mut second, CDS, CDS, 0x1000, S2_RW);
    lab.map(&mut second, TABLES, TABLES, 0x8000, S2_RW & !d::S2AP_WRITE);
    lab.ste(SID, ste(7, CDS));
    assert_eq!(lab.read(0x1000), End::Abort);
    let s2_tt_read = 1 << 39 | 1 << 40 | 1 << 35;
    assert_eq!(lab.event(), [0x13 | u64::from(SID) << 32, s2_tt_read, 0x1000, TABLES]);
}

/// 9: a lookup with HTTUI leaves the tables as they are; 3.13.6: what is not marked is not cached.
#[test]
fn lookups_leave_tables_unmarked() {
    let (mut lab, mut tables) = Lab::stage1(Config { httu: 3, atos: true, walk_cache: 16, ..linux() });
    haft(&mut lab);
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    let at = tables.entry(&mut Words(&lab.ram), 0, 0x1000).unwrap();
    lab.w64(0x108, SID.into());
    lab.w64(0x110, 0x1000 | 1 << 10 | 1 << 8 | 1 << 6);
    lab.w32(0x100, 1);
    while lab.smmu.atos_pending() {
        lab.smmu.step_atos(&lab.ram);
    }
    assert_eq!(lab.smmu.mmio_read(0x118, 8).unwrap() & 1, 0, "no fault");
    assert_eq!(lab.ram.word(at) & d::AF, 0);
    lab.map(&mut tables, 0x3000, 0x8000_3000, 0x1000, RW);
    lab.read(0x3000);
    assert_ne!(lab.ram.word(at) & d::AF, 0);
}
