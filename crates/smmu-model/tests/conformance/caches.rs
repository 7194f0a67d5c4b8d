//! Sections 3.16, 3.17, 3.21 and 4.3, 4.4: what is remembered, and what each command makes forgotten.

use pgtable::{Granule, descriptor as d};
use smmu_model::{AccessKind, Config, Memory, Progress, Transaction};

use crate::lab::*;

/// 3.17: a changed descriptor is not seen before the TLBI.
#[test]
fn stale_translations_live_until_invalidated() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
    lab.unmap(&mut tables, 3, 0x1000);
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000), "stale");
    lab.command(tlbi_va(1, 0x1000));
    assert_eq!(lab.read(0x1000), End::Abort);
    assert_eq!(lab.smmu.stats().tlb_invalidated, 1);
}

/// 3.17: faults are not cached.
#[test]
fn nothing_is_remembered_of_a_fault() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    assert_eq!(lab.read(0x2000), End::Abort);
    lab.map(&mut tables, 0x2000, 0x8000_2000, 0x1000, RW);
    assert_eq!(lab.read(0x2000), End::To(0x8000_2000));
}

/// 3.21.3: a changed STE or CD is not seen before its CFGI.
#[test]
fn stale_configuration_lives_until_invalidated() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
    lab.ste(SID, STE_BYPASS);
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000), "stale STE");
    lab.command(cfgi_cd(SID, 0));
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000), "CFGI_CD leaves the STE");
    lab.command(cfgi_ste(SID + 1));
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000), "another stream's");
    lab.command(cfgi_ste(SID));
    assert_eq!(lab.read(0x1000), End::To(0x1000));
    lab.ste(SID, ste_stage1(CDS));
    lab.command(cfgi_ste(SID));
    let (n, _) = lab.fetches(|lab| lab.read(0x1000));
    assert_eq!(n, 2, "CFGI_STE forgot the CD as well, but no translation");
}

/// 4.3: what each CFGI removes.
#[test]
fn configuration_invalidation() {
    let commands: [(&str, [u64; 2], usize); 9] = [
        ("CFGI_STE", cfgi_ste(SID), 2),
        ("CFGI_STE of another", cfgi_ste(SID ^ 1), 0),
        ("CFGI_CD", cfgi_cd(SID, 0), 1),
        ("CFGI_CD of another", cfgi_cd(SID ^ 1, 0), 0),
        ("CFGI_CD_ALL", [0x06 | u64::from(SID) << 32, 0], 1),
        ("CFGI_ALL", CFGI_ALL, 2),
        ("CFGI_STE_RANGE, 2", [0x04 | u64::from(SID ^ 1) << 32, 0], 2),
        ("CFGI_STE_RANGE, the next 2", [0x04 | u64::from(SID ^ 2) << 32, 0], 0),
        ("CFGI_STE_RANGE, 32", [0x04 | u64::from(SID ^ 7) << 32, 4], 2),
    ];
    for (what, command, fetches) in commands {
        let (mut lab, mut tables) = Lab::stage1(linux());
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        lab.read(0x1000);
        lab.command(command);
        assert_eq!(lab.fetches(|lab| lab.read(0x1000)).0, fetches, "{what}");
    }
}

/// 4.4: what each TLBI removes of: a page and a 2 MiB block of ASID 1, a global page, a page of ASID 2.
#[test]
fn translation_invalidation() {
    /// Stream, address.
    const ENTRIES: [(u32, u64); 4] = [(SID, 0x1000), (SID, 0x40_0000), (SID, 0x20_0000), (SID + 1, 0x1000)];
    const ASID1: u64 = 1 << 48;
    const ASID2: u64 = 2 << 48;
    let commands: &[(&str, [u64; 2], [bool; 4])] = &[
        ("NSNH_ALL", NSNH_ALL, [false; 4]),
        ("NH_ALL", [0x10, 0], [false; 4]),
        ("NH_ASID", [0x11 | ASID1, 0], [false, false, true, true]),
        ("NH_ASID 2", [0x11 | ASID2, 0], [true, true, true, false]),
        ("NH_VA of the page", [0x12 | ASID1, 0x1001], [false, true, true, true]),
        ("NH_VA with leaf=0", [0x12 | ASID1, 0x1000], [false, true, true, true]),
        ("NH_VA within the block", [0x12 | ASID1, 0x5f_f001], [true, false, true, true]),
        ("NH_VA of the global page", [0x12 | ASID2, 0x20_0001], [true, true, false, true]),
        ("NH_VA of nothing", [0x12 | ASID1, 0x2001], [true; 4]),
        ("NH_VAA", [0x13, 0x1001], [false, true, true, false]),
        ("range of 4 KiB pages", [0x12 | ASID1 | 1 << 12, 1 << 10], [false, true, true, true]),
        // 32 * 2^5 pages of 4 KiB: 4 MiB.
        (
            "range from 2 MiB",
            [0x12 | ASID1 | 31 << 12 | 5 << 20, 0x20_0000 | 1 << 10],
            [true, false, false, true],
        ),
        ("range with TTL 3", [0x13 | 31 << 12 | 9 << 20, 1 << 10 | 3 << 8], [false, true, false, false]),
        ("range with TTL 2", [0x13 | 31 << 12 | 9 << 20, 1 << 10 | 2 << 8], [true, false, true, true]),
        ("single page with TTL 3", [0x12 | ASID1, 0x1000 | 1 << 10 | 3 << 8], [false, true, true, true]),
        ("single page, wrong TTL", [0x12 | ASID1, 0x1000 | 1 << 10 | 2 << 8], [true; 4]),
        ("range of another granule", [0x13 | 31 << 12 | 9 << 20, 3 << 10], [true; 4]),
        ("everything by range", [0x13 | 31 << 12 | 31 << 20, 1 << 10], [false; 4]),
    ];
    for (what, command, stay) in commands {
        let (mut lab, mut tables) = Lab::stage1(linux());
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        lab.map(&mut tables, 0x40_0000, 0x8040_0000, 0x20_0000, RW);
        lab.map(&mut tables, 0x20_0000, 0x8020_0000, 0x1000, RW & !d::NG);
        lab.context_at(CDS + 0x1000, CdFields { word0: cd(16, 0, 2), ..CdFields::default() });
        lab.ste(SID + 1, ste_stage1(CDS + 0x1000));
        let read = |sid, address| Transaction::new(sid, address, AccessKind::Read);
        for (sid, address) in ENTRIES {
            assert_ne!(lab.dma(read(sid, address)), End::Abort, "{what}");
        }
        lab.command(*command);
        let stayed = ENTRIES.map(|(sid, address)| lab.fetches(|lab| lab.dma(read(sid, address))).0 == 0);
        assert_eq!(stayed, *stay, "{what}");
    }
}

/// 4.4.1.1: without RIL the fields of a range are RES0.
#[test]
fn no_ranges_without_ril() {
    let (mut lab, mut tables) = Lab::stage1(Config { ril: false, ..linux() });
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x3000, RW);
    lab.read(0x1000);
    lab.read(0x3000);
    lab.command([0x12 | 1 << 48 | 31 << 12, 0x1000 | 1 << 10]);
    assert_eq!(lab.fetches(|lab| lab.read(0x3000)).0, 0);
    assert_ne!(lab.fetches(|lab| lab.read(0x1000)).0, 0);
}

/// Ranges count granules of TG from an address of that granule.
#[test]
fn ranges_of_64k() {
    let mut lab = Lab::new(linux());
    let mut tables = lab.tables(Granule::G64K, 16, TABLES);
    lab.context(0, CdFields { word0: cd(16, 1, 1), word1: tables.root(), ..CdFields::default() });
    lab.ste(SID, ste_stage1(CDS));
    lab.map(&mut tables, 0x1_0000, 0x8001_0000, 0x4_0000, RW);
    for n in 1..5 {
        lab.read(n << 16);
    }
    // Two granules from the second page.
    lab.command([0x12 | 1 << 48 | 1 << 12, 0x2_0000 | 3 << 10 | 3 << 8]);
    let gone: Vec<u64> = (1..5).filter(|n| lab.fetches(|lab| lab.read(n << 16)).0 != 0).collect();
    assert_eq!(gone, [2, 3]);
}

/// Global entries are for every ASID of the VMID.
#[test]
fn global_entries_are_shared() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW & !d::NG);
    lab.context_at(CDS + 0x1000, CdFields { word0: cd(16, 0, 2), ..CdFields::default() });
    lab.ste(SID + 1, ste_stage1(CDS + 0x1000));
    lab.read(0x1000);
    let other = Transaction::new(SID + 1, 0x1000, AccessKind::Read);
    assert_eq!(lab.fetches(|lab| lab.dma(other)).0, 2, "STE and CD only");
}

/// 3.17.1: global entries are shared within an ASID set only.
#[test]
fn global_entries_keep_to_their_set() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW & !d::NG);
    lab.context_at(CDS + 0x1000, CdFields { word0: cd(16, 0, 2) | 1 << 47, ..CdFields::default() });
    lab.ste(SID + 1, ste_stage1(CDS + 0x1000));
    lab.read(0x1000);
    let other = Transaction::new(SID + 1, 0x1000, AccessKind::Read);
    assert_eq!(lab.fetches(|lab| lab.dma(other)).0, 6);
    lab.command([0x12 | 7 << 48, 0x1000]);
    assert_eq!(lab.fetches(|lab| lab.dma(other)).0, 4, "removed whatever the set");
    assert_eq!(lab.fetches(|lab| lab.read(0x1000)).0, 4);
}

/// Two streams with one ASID share their translations.
#[test]
fn streams_share_an_asid() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    lab.ste(SID + 1, ste_stage1(CDS));
    lab.read(0x1000);
    let other = Transaction::new(SID + 1, 0x1000, AccessKind::Read);
    assert_eq!(lab.fetches(|lab| lab.dma(other)).0, 2);
}

/// 4.7.3: a walk that began before an invalidation leaves nothing behind.
#[test]
fn a_walk_across_an_invalidation_is_not_cached() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    let t = Transaction::new(SID, 0x1000, AccessKind::Read);
    let Progress::Walking(id) = lab.smmu.begin(&t) else { panic!("no walk") };
    let mut progress = Progress::Walking(id);
    for _ in 0..6 {
        if lab.ram.reads.borrow().len() == 5 {
            lab.push(tlbi_va(1, 0x1000));
            lab.push(SYNC);
            lab.run_commands();
            assert!(!lab.idle(), "the CMD_SYNC waits for the walk");
        }
        progress = lab.smmu.step(id, &lab.ram);
    }
    assert!(matches!(progress, Progress::Latched(_, t) if t.pa == 0x8000_1000));
    lab.smmu.complete(id);
    lab.run_commands();
    assert!(lab.idle());
    lab.unmap(&mut tables, 3, 0x1000);
    assert_eq!(lab.read(0x1000), End::Abort, "no entry came in after the invalidation");
}

/// Sizes: no cache at all, and a small one that replaces.
#[test]
fn cache_sizes() {
    let (mut lab, mut tables) = Lab::stage1(Config { tlb: 0, ste_cache: 0, cd_cache: 0, ..linux() });
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    for _ in 0..2 {
        assert_eq!(lab.fetches(|lab| lab.read(0x1000)).0, 6);
    }
    let (mut lab, mut tables) = Lab::stage1(Config { tlb: 4, ..linux() });
    lab.map(&mut tables, 0, 0x8000_0000, 0x10_0000, RW);
    for n in 0..256 {
        assert_eq!(lab.read(n << 12), End::To(0x8000_0000 + (n << 12)));
    }
    assert_eq!(lab.smmu.stats().tlb_evictions, 252);
}

/// Who only looks sees what memory says, whatever is cached, and changes nothing.
#[test]
fn peeking() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
    lab.unmap(&mut tables, 3, 0x1000);
    lab.map(&mut tables, 0x2000, 0x8000_2000, 0x1000, RW);
    let before = serde_json::to_string(&lab.smmu).unwrap();
    let peek = |lab: &Lab, address, kind| {
        lab.smmu.peek(&Transaction::new(SID, address, kind), |pa, data| lab.ram.read(pa, data).is_ok())
    };
    assert_eq!(peek(&lab, 0x1000, AccessKind::Read), None);
    let there = peek(&lab, 0x2008, AccessKind::Write).unwrap();
    assert_eq!((there.pa, there.bytes), (0x8000_2008, 0xff8));
    assert_eq!(serde_json::to_string(&lab.smmu).unwrap(), before);
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000), "still cached");
}

/// The state is plain data: an SMMU restored from a snapshot does what the original does.
#[test]
fn snapshots() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x2000, RW);
    lab.read(0x1000);
    let id = match lab.smmu.begin(&Transaction::new(SID, 0x2000, AccessKind::Read)) {
        Progress::Walking(id) => id,
        other => panic!("{other:?}"),
    };
    lab.push(NSNH_ALL);
    lab.read(0x7000);
    let saved = serde_json::to_string(&lab.smmu).unwrap();
    lab.smmu = serde_json::from_str(&saved).unwrap();
    assert_eq!(serde_json::to_string(&lab.smmu).unwrap(), saved);
    assert_eq!(lab.fetches(|lab| lab.read(0x1000)).0, 0);
    assert!(matches!(lab.smmu.step(id, &lab.ram), Progress::Walking(_)));
    lab.run_commands();
    assert!(lab.idle());
    assert_eq!(code(lab.event()), 0x10);
}
