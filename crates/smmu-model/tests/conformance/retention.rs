//! Sections 4.3 and 4.4 as one table: every command against every kind of cached entry. With `keep_all` what a command
//! need not remove stays, and nothing else does. Behaviour shows it: the structure or descriptor that an entry was made of
//! has been changed in memory, and a transaction that needs that entry sees the change or does not.

use pgtable::{Builder, Granule, Stage2, descriptor as d};
use smmu_model::{AccessKind, Config, Transaction};

use crate::lab::*;

/// Kinds of cached entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Level 1 stream table descriptor.
    L1Std,
    Ste,
    /// Level 1 CD table descriptor.
    L1Cd,
    Cd,
    /// Stage 1: a page of ASID 1 and VMID 7, a block, a global page, a page of ASID 2.
    Page,
    Block,
    Global,
    OtherAsid,
    /// The level 2 and level 3 tables on the way to the page.
    Table2,
    Table3,
    /// Both stages: a page of ASID 1 and VMID 8, changed at stage 1, and changed at stage 2. The latter shows only when the
    /// stage 2 entry has gone as well as the combined one.
    Nested1,
    Nested2,
    /// Stage 2: a page and its level 3 table of VMID 7.
    Ipa,
    IpaTable,
    /// EL2, or EL2-E2H with ASID 1: a page, a global one, and their level 3 table.
    El2Page,
    El2Global,
    El2Table,
}

use Kind::{
    Block, Cd, El2Global, El2Page, El2Table, Global, Ipa, IpaTable, L1Cd, L1Std, Nested1, Nested2, OtherAsid,
    Page, Ste, Table2, Table3,
};

const KINDS: [Kind; 17] = [
    L1Std, Ste, L1Cd, Cd, Page, Block, Global, OtherAsid, Table2, Table3, Nested1, Nested2, Ipa, IpaTable,
    El2Page, El2Global, El2Table,
];
/// All that NS-EL1 stage 1 has for VMID 7.
const VM7: &[Kind] = &[Page, Block, Global, OtherAsid, Table2, Table3];

/// The second level of the stream table, and another one.
const STES: u64 = 0x1400_0000;
const STES_NEW: u64 = 0x1401_0000;
/// The same for CDs.
const L1CDS: u64 = 0x1402_0000;
const CDS_NEW: u64 = 0x1403_0000;
/// A zeroed table that takes the place of another.
const TABLE_NEW: u64 = 0x1404_0000;
const NESTED_CD: u64 = 0x1405_0000;
const EL2_CD: u64 = 0x1405_1000;
const EL2_TABLES: u64 = TABLES + 0x40_0000;
const NESTED_TABLES: u64 = TABLES + 0x80_0000;
const S2_NESTED: u64 = S2_TABLES + 0x40_0000;

/// Streams: of stage 1 with SubstreamIDs, stage 2, both, EL2; and one that no transaction came from yet.
const S1: u32 = 0x18;
const S2: u32 = 0x20;
const NESTED: u32 = 0x21;
const EL2: u32 = 0x22;
const FRESH: u32 = 0x30;

struct Bench {
    lab: Lab,
    s1: Builder,
    s2: Builder,
    nested1: Builder,
    nested2: Builder,
    el2: Builder,
}

/// A setting: how nested translations are cached, whether EL2 has E2H, and whether everything is kept.
#[derive(Clone, Copy, Debug)]
struct Setting {
    combined: bool,
    e2h: bool,
    keep_all: bool,
}

fn at(sid: u32, ssid: Option<u32>, address: u64) -> Transaction {
    Transaction { ssid, ..Transaction::new(sid, address, AccessKind::Read) }
}

impl Bench {
    /// Everything is cached that a [`Kind`] names.
    fn new(setting: Setting) -> Self {
        let mut config =
            Config::parse(if setting.keep_all { "preset=full,keep-all=on" } else { "preset=full" }).unwrap();
        config.combined = setting.combined;
        let mut lab = Lab::new(config);
        let r = smmu_model::spec::registers::CR0;
        let cr0 = lab.r32(r);
        lab.w32(r, 0);
        lab.w32(smmu_model::spec::registers::STRTAB_BASE_CFG, 1 << 16 | 6 << 6 | 8);
        lab.w32(smmu_model::spec::registers::CR2, u32::from(setting.e2h));
        lab.w32(r, cr0);
        lab.ram.set(STRTAB, STES | 7);

        let s1 = lab.tables(Granule::G4K, 16, TABLES);
        let el2 = lab.tables(Granule::G4K, 16, EL2_TABLES);
        let nested1 = lab.tables(Granule::G4K, 16, NESTED_TABLES);
        let stage2 = |lab: &mut Lab, at: u64| {
            let mut cfg = Stage2 { granule: Granule::G4K, tsz: 25, sl0: 1, oas: 44, ..Stage2::default() };
            Builder::stage2(&mut cfg, &mut Words(&lab.ram), at..at + 0x40_0000).unwrap()
        };
        let s2 = stage2(&mut lab, S2_TABLES);
        let nested2 = stage2(&mut lab, S2_NESTED);
        let mut b = Bench { lab, s1, s2, nested1, nested2, el2 };

        let lab = &mut b.lab;
        lab.map(&mut b.s1, 0x1000, 0x8000_1000, 0x1000, RW);
        lab.map(&mut b.s1, 0x2000, 0x8000_2000, 0x1000, RW);
        lab.map(&mut b.s1, 0x8000, 0x8000_8000, 0x1000, RW);
        lab.map(&mut b.s1, 0x20_0000, 0x8020_0000, 0x1000, RW & !d::NG);
        lab.map(&mut b.s1, 0x40_0000, 0x8040_0000, 0x20_0000, RW);
        lab.map(&mut b.s1, 0x60_0000, 0x8060_0000, 0x20_0000, RW);
        lab.map(&mut b.el2, 0x1000, 0x8000_1000, 0x2000, RW);
        lab.map(&mut b.el2, 0x20_0000, 0x8020_0000, 0x1000, RW & !d::NG);
        lab.map(&mut b.nested1, 0x1000, 0x4000_1000, 0x1000, RW);
        lab.map(&mut b.s2, 0x4000_1000, 0x5000_1000, 0x2000, S2_RW);
        lab.map(&mut b.nested2, 0x4000_1000, 0x5000_1000, 0x1000, S2_RW);
        lab.map(&mut b.nested2, 0x1400_0000, 0x1400_0000, 0x20_0000, S2_RW);
        lab.map(&mut b.nested2, NESTED_TABLES, NESTED_TABLES, 0x40_0000, S2_RW);

        let of =
            |root: u64, asid: u64| CdFields { word0: cd(16, 0, asid), word1: root, ..CdFields::default() };
        let (s1, el2, nested1) = (b.s1.root(), b.el2.root(), b.nested1.root());
        lab.ram.set(L1CDS, CDS | 1);
        lab.context_at(CDS + 64, of(s1, 1));
        lab.context_at(CDS + 2 * 64, of(s1, 2));
        lab.context_at(CDS + 3 * 64, of(s1, 3));
        lab.context_at(NESTED_CD, of(nested1, 1));
        lab.context_at(EL2_CD, of(el2, 1));
        let ste = |lab: &mut Lab, sid: u32, words: [u64; 4]| {
            for (n, word) in words.into_iter().enumerate() {
                lab.ram.set(STES + u64::from(sid) * 64 + n as u64 * 8, word);
            }
        };
        let stage2 = |vmid: u64| vmid | 25 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
        ste(lab, S1, [1 | 5 << 1 | 1 << 4 | L1CDS | 8 << 59, 1 << 44, 7, 0]);
        ste(lab, S2, [1 | 6 << 1, 1 << 44, stage2(7), b.s2.root()]);
        ste(lab, NESTED, [1 | 7 << 1 | NESTED_CD, 1 << 44, stage2(8), b.nested2.root()]);
        ste(lab, EL2, [1 | 5 << 1 | EL2_CD, 2 << 30 | 1 << 44, 0, 0]);
        ste(lab, FRESH, STE_BYPASS);

        for t in [
            at(S1, Some(1), 0x1000),
            at(S1, Some(1), 0x40_0000),
            at(S1, Some(1), 0x20_0000),
            at(S1, Some(2), 0x8000),
            at(S2, None, 0x4000_1000),
            at(NESTED, None, 0x1000),
            at(EL2, None, 0x1000),
            at(EL2, None, 0x20_0000),
        ] {
            assert!(matches!(b.lab.dma(t), End::To(_)), "{t:x?}");
        }
        b
    }

    /// Changes what a kind of entry was made of.
    fn change(&mut self, kind: Kind) {
        let ram = &self.lab.ram;
        let clear = |tables: &mut Builder, level: i8, address: u64, value: u64| {
            let at = tables.entry(&mut Words(ram), level, address).unwrap();
            ram.set(at, value);
        };
        match kind {
            L1Std => ram.set(STRTAB, STES_NEW | 7),
            Ste => ram.set(STES + u64::from(S1) * 64, 1),
            L1Cd => ram.set(L1CDS, CDS_NEW | 1),
            Cd => ram.set(CDS + 64, 0),
            Page => clear(&mut self.s1, 3, 0x1000, 0),
            Block => clear(&mut self.s1, 2, 0x40_0000, 0),
            Global => clear(&mut self.s1, 3, 0x20_0000, 0),
            OtherAsid => clear(&mut self.s1, 3, 0x8000, 0),
            Table2 => clear(&mut self.s1, 1, 0, TABLE_NEW | 3),
            Table3 => clear(&mut self.s1, 2, 0, TABLE_NEW | 3),
            Nested1 => clear(&mut self.nested1, 3, 0x1000, 0),
            Nested2 => clear(&mut self.nested2, 3, 0x4000_1000, 0),
            Ipa => clear(&mut self.s2, 3, 0x4000_1000, 0),
            IpaTable => clear(&mut self.s2, 2, 0x4000_1000, TABLE_NEW | 3),
            El2Page => clear(&mut self.el2, 3, 0x1000, 0),
            El2Global => clear(&mut self.el2, 3, 0x20_0000, 0),
            El2Table => clear(&mut self.el2, 2, 0, TABLE_NEW | 3),
        }
    }

    /// Whether a transaction that needs the entry, and nothing else of what could be cached below it, sees the change.
    fn sees(&mut self, kind: Kind) -> bool {
        let t = match kind {
            L1Std => at(FRESH, None, 0x1000),
            Ste | Cd | Page => at(S1, Some(1), 0x1000),
            L1Cd => at(S1, Some(3), 0x1000),
            Block => at(S1, Some(1), 0x40_1000),
            Global => at(S1, Some(1), 0x20_0000),
            OtherAsid => at(S1, Some(2), 0x8000),
            Table2 => at(S1, Some(1), 0x60_0000),
            Table3 => at(S1, Some(1), 0x2000),
            Nested1 | Nested2 => at(NESTED, None, 0x1000),
            Ipa => at(S2, None, 0x4000_1000),
            IpaTable => at(S2, None, 0x4000_2000),
            El2Page => at(EL2, None, 0x1000),
            El2Global => at(EL2, None, 0x20_0000),
            El2Table => at(EL2, None, 0x2000),
        };
        !matches!(self.lab.dma(t), End::To(_))
    }
}

/// A command, its words, and the kinds of entries that it has to remove.
type Row<'a> = (&'a str, [u64; 2], &'a [&'a [Kind]]);

/// Checks the rows of the table: a command, and what it has to remove.
fn check(setting: Setting, kinds: &[Kind], rows: &[Row]) {
    for (name, command, gone) in rows {
        for &kind in kinds {
            let mut bench = Bench::new(setting);
            bench.change(kind);
            bench.lab.command(*command);
            let has_to = gone.iter().any(|kinds| kinds.contains(&kind));
            let seen = bench.sees(kind);
            if setting.keep_all {
                assert_eq!(seen, has_to, "{name}: {kind:?}, {setting:?}");
            } else {
                assert!(seen || !has_to, "{name} leaves {kind:?}, {setting:?}");
            }
        }
    }
}

const ASID: u64 = 1 << 48;
const VMID7: u64 = 7 << 32;
const VMID8: u64 = 8 << 32;
/// TG for 4 KiB, and TTL.
const TG: u64 = 1 << 10;
const TTL1: u64 = 1 << 8;
const TTL2: u64 = 2 << 8;
const TTL3: u64 = 3 << 8;
/// 32 * 2^10 pages: 128 MiB.
const WIDE: u64 = 31 << 12 | 10 << 20;

fn sid(sid: u32) -> u64 {
    u64::from(sid) << 32
}

const fn none() -> &'static [&'static [Kind]] {
    &[]
}

/// The table, with nested translations in one entry and no E2H.
fn rows() -> Vec<Row<'static>> {
    const CONFIG: &[Kind] = &[L1Std, Ste, L1Cd, Cd];
    const STREAM: &[Kind] = &[Ste, L1Cd, Cd];
    const NESTED_BOTH: &[Kind] = &[Nested1, Nested2];
    vec![
        ("PREFETCH_CONFIG", [0x01 | sid(S1), 0], none()),
        ("PREFETCH_ADDR", [0x02 | sid(S1), 0x1000], none()),
        ("CFGI_STE", [0x03 | sid(S1), 0], &[CONFIG]),
        ("CFGI_STE, leaf", [0x03 | sid(S1), 1], &[STREAM]),
        ("CFGI_STE of another of the level 1 descriptor", [0x03 | sid(S1 ^ 1), 0], &[&[L1Std]]),
        ("CFGI_STE of another", [0x03 | sid(S1 ^ 0x40), 0], none()),
        ("CFGI_STE_RANGE", [0x04 | sid(S1 ^ 3), 1], &[CONFIG]),
        ("CFGI_STE_RANGE beside", [0x04 | sid(S1 ^ 4), 1], &[&[L1Std]]),
        ("CFGI_STE_RANGE elsewhere", [0x04 | sid(S1 ^ 0x100), 6], none()),
        ("CFGI_ALL", CFGI_ALL, &[CONFIG]),
        ("CFGI_CD", [0x05 | sid(S1) | 1 << 12, 0], &[&[L1Cd, Cd]]),
        ("CFGI_CD, leaf", [0x05 | sid(S1) | 1 << 12, 1], &[&[Cd]]),
        ("CFGI_CD of another of the level 1 descriptor", [0x05 | sid(S1) | 9 << 12, 0], &[&[L1Cd]]),
        ("CFGI_CD of another", [0x05 | sid(S1) | 65 << 12, 0], none()),
        ("CFGI_CD of another stream", [0x05 | sid(S2) | 1 << 12, 0], none()),
        ("CFGI_CD_ALL", [0x06 | sid(S1), 0], &[&[L1Cd, Cd]]),
        ("CFGI_CD_ALL of another stream", [0x06 | sid(S2), 0], none()),
        ("NH_ALL", [0x10 | VMID7, 0], &[VM7]),
        ("NH_ALL, VMID 8", [0x10 | VMID8, 0], &[&[Nested1]]),
        ("NH_ASID", [0x11 | VMID7 | ASID, 0], &[&[Page, Block, Table2, Table3]]),
        ("NH_ASID 2", [0x11 | VMID7 | 2 << 48, 0], &[&[OtherAsid]]),
        ("NH_ASID, VMID 8", [0x11 | VMID8 | ASID, 0], &[&[Nested1]]),
        ("NH_VA", [0x12 | VMID7 | ASID, 0x1000], &[&[Page, Table2, Table3]]),
        ("NH_VA, leaf", [0x12 | VMID7 | ASID, 0x1001], &[&[Page]]),
        ("NH_VA, VMID 8, leaf", [0x12 | VMID8 | ASID, 0x1001], &[&[Nested1]]),
        ("NH_VA in the block", [0x12 | VMID7 | ASID, 0x5f_f000], &[&[Block, Table2]]),
        ("NH_VA of the global page, leaf", [0x12 | VMID7 | 9 << 48, 0x20_0001], &[&[Global]]),
        ("NH_VA elsewhere", [0x12 | VMID7 | ASID, 1 << 40], none()),
        ("NH_VA of another ASID", [0x12 | VMID7 | 3 << 48, 0x1000], none()),
        ("NH_VA of another VMID", [0x12 | 6 << 32 | ASID, 0x1000], none()),
        ("NH_VA, 1 page, TTL 3", [0x12 | VMID7 | ASID, 0x1000 | TG | TTL3], &[&[Page, Table2, Table3]]),
        ("NH_VA, 1 page, TTL 3, leaf", [0x12 | VMID7 | ASID, 0x1001 | TG | TTL3], &[&[Page]]),
        ("NH_VA, 128 MiB", [0x12 | VMID7 | ASID | WIDE, TG], &[&[Page, Block, Global, Table2, Table3]]),
        ("NH_VA, 128 MiB, leaf", [0x12 | VMID7 | ASID | WIDE, 1 | TG], &[&[Page, Block, Global]]),
        ("NH_VA, 128 MiB, TTL 2", [0x12 | VMID7 | ASID | WIDE, TG | TTL2], &[&[Block, Table2]]),
        ("NH_VA, 128 MiB, TTL 1", [0x12 | VMID7 | ASID | WIDE, TG | TTL1], none()),
        (
            "NH_VA, 128 MiB, TTL 3",
            [0x12 | VMID7 | ASID | WIDE, TG | TTL3],
            &[&[Page, Global, Table2, Table3]],
        ),
        ("NH_VA, 64 KiB tables", [0x12 | VMID7 | ASID | WIDE, 3 << 10], none()),
        ("NH_VAA", [0x13 | VMID7, 0x1000], &[&[Page, Table2, Table3]]),
        ("NH_VAA, leaf", [0x13 | VMID7, 0x8001], &[&[OtherAsid]]),
        ("NH_VAA, 128 MiB", [0x13 | VMID7 | WIDE, TG], &[VM7]),
        ("NH_VAA, 128 MiB, leaf", [0x13 | VMID7 | WIDE, 1 | TG], &[&[Page, Block, Global, OtherAsid]]),
        ("EL2_ALL", [0x20, 0], &[&[El2Page, El2Global, El2Table]]),
        ("S12_VMALL", [0x28 | VMID7, 0], &[VM7, &[Ipa, IpaTable]]),
        ("S12_VMALL, VMID 8", [0x28 | VMID8, 0], &[NESTED_BOTH]),
        ("S2_IPA", [0x2a | VMID7, 0x4000_1000], &[&[Ipa, IpaTable]]),
        ("S2_IPA, leaf", [0x2a | VMID7, 0x4000_1001], &[&[Ipa]]),
        ("S2_IPA elsewhere", [0x2a | VMID7, 0x4020_0000], none()),
        ("S2_IPA, 128 MiB, TTL 3", [0x2a | VMID7 | WIDE, 0x4000_0000 | TG | TTL3], &[&[Ipa, IpaTable]]),
        ("S2_IPA, 128 MiB, TTL 2", [0x2a | VMID7 | WIDE, 0x4000_0000 | TG | TTL2], none()),
        // The combined entry is one of stage 1 (section 16.2.1).
        ("S2_IPA, VMID 8", [0x2a | VMID8, 0x4000_1000], none()),
        ("NSNH_ALL", NSNH_ALL, &[VM7, NESTED_BOTH, &[Ipa, IpaTable]]),
        ("RESUME", [0x44 | sid(S1), 0], none()),
        ("STALL_TERM", [0x45 | sid(S1), 0], none()),
        ("SYNC", SYNC, none()),
    ]
}

#[test]
fn every_command_removes_what_it_has_to_and_no_more() {
    check(Setting { combined: true, e2h: false, keep_all: true }, &KINDS, &rows());
}

/// Otherwise more may go, and never less.
#[test]
fn every_command_removes_what_it_has_to() {
    check(Setting { combined: true, e2h: false, keep_all: false }, &KINDS, &rows());
}

/// 16.2: with the stages apart, stage 2's command is enough for what changed there, and stage 1's for what changed there.
#[test]
fn stages_apart() {
    let rows: &[Row] = &[
        ("NH_VA", [0x12 | VMID8 | ASID, 0x1000], &[&[Nested1]]),
        ("NH_VA, leaf", [0x12 | VMID8 | ASID, 0x1001], &[&[Nested1]]),
        ("NH_VAA", [0x13 | VMID8, 0x1000], &[&[Nested1]]),
        ("NH_ASID", [0x11 | VMID8 | ASID, 0], &[&[Nested1]]),
        ("NH_ALL", [0x10 | VMID8, 0], &[&[Nested1]]),
        ("S2_IPA", [0x2a | VMID8, 0x4000_1000], &[&[Nested2]]),
        ("S2_IPA, leaf", [0x2a | VMID8, 0x4000_1001], &[&[Nested2]]),
        ("S2_IPA, VMID 7", [0x2a | VMID7, 0x4000_1000], none()),
        ("S12_VMALL", [0x28 | VMID8, 0], &[&[Nested1, Nested2]]),
        ("NSNH_ALL", NSNH_ALL, &[&[Nested1, Nested2]]),
        ("CFGI_ALL", CFGI_ALL, none()),
    ];
    for keep_all in [true, false] {
        check(Setting { combined: false, e2h: false, keep_all }, &[Nested1, Nested2], rows);
    }
}

/// 4.4.2.7 to 4.4.2.10: EL2 without ASIDs, and EL2-E2H with them.
#[test]
fn el2() {
    const KINDS: &[Kind] = &[El2Page, El2Global, El2Table, Page, Ipa];
    const ALL: &[Kind] = &[El2Page, El2Global, El2Table];
    for keep_all in [true, false] {
        let el2: &[Row] = &[
            ("EL2_ALL", [0x20, 0], &[ALL]),
            ("EL2_ASID", [0x21 | ASID, 0], none()),
            ("EL2_VA", [0x22 | 5 << 48, 0x1000], &[&[El2Page, El2Table]]),
            ("EL2_VA, leaf", [0x22, 0x1001], &[&[El2Page]]),
            ("EL2_VAA, leaf", [0x23, 0x20_0001], &[&[El2Global]]),
            ("EL2_VAA, 128 MiB", [0x23 | WIDE, TG], &[ALL]),
            ("NH_VA", [0x12 | ASID, 0x1000], none()),
            ("NSNH_ALL", NSNH_ALL, &[&[Page, Ipa]]),
        ];
        check(Setting { combined: true, e2h: false, keep_all }, KINDS, el2);
        let e2h: &[Row] = &[
            ("EL2_ALL", [0x20, 0], &[ALL]),
            ("EL2_ASID", [0x21 | ASID, 0], &[&[El2Page, El2Table]]),
            ("EL2_ASID 2", [0x21 | 2 << 48, 0], none()),
            ("EL2_VA", [0x22 | ASID, 0x1000], &[&[El2Page, El2Table]]),
            ("EL2_VA of another ASID", [0x22 | 2 << 48, 0x1000], none()),
            ("EL2_VA of the global page, leaf", [0x22 | 2 << 48, 0x20_0001], &[&[El2Global]]),
            ("EL2_VAA", [0x23, 0x1000], &[&[El2Page, El2Table]]),
            ("EL2_VAA, 128 MiB, TTL 3, leaf", [0x23 | WIDE, 1 | TG | TTL3], &[&[El2Page, El2Global]]),
            ("NSNH_ALL", NSNH_ALL, &[&[Page, Ipa]]),
        ];
        check(Setting { combined: true, e2h: true, keep_all }, KINDS, e2h);
    }
}

/// 6.3.9: what is cached outlives the SMMU's being off.
#[test]
fn caches_survive_smmuen() {
    use smmu_model::spec::registers::CR0;
    for kind in KINDS {
        let mut bench = Bench::new(Setting { combined: true, e2h: false, keep_all: true });
        let cr0 = bench.lab.r32(CR0);
        bench.lab.w32(CR0, cr0 & !1);
        bench.lab.w32(CR0, cr0);
        bench.change(kind);
        assert!(!bench.sees(kind), "{kind:?}");
    }
}

/// 4.4: an ID that no entry can have removes nothing, where IDs have 8 bits or there is no stage 2.
#[test]
fn ids_beyond_those_implemented() {
    for (options, command) in [
        ("keep-all=on,asid16=off", [0x12 | 0x101 << 48, 0x1000]),
        ("keep-all=on,vmid16=off", [0x12 | 0x100 << 32 | ASID, 0x1000]),
        ("keep-all=on,s2p=off", [0x12 | 1 << 32 | ASID, 0x1000]),
    ] {
        for (command, stays) in [(command, true), ([0x12 | ASID, 0x1000], false)] {
            let (mut lab, mut tables) = Lab::stage1(Config::parse(options).unwrap());
            lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
            lab.read(0x1000);
            lab.unmap(&mut tables, 3, 0x1000);
            lab.command(command);
            assert_eq!(lab.read(0x1000) == End::To(0x8000_1000), stays, "{options}");
        }
    }
}

/// A walk that an unrelated invalidation overtakes leaves its finds behind; one that a related one overtakes does not.
#[test]
fn overtaken_walks() {
    for (command, kept) in [(tlbi_va(1, 0x9000), true), (tlbi_va(1, 0x1000), false), (NSNH_ALL, false)] {
        let (mut lab, mut tables) = Lab::stage1(Config::parse("keep-all=on").unwrap());
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        let t = Transaction::new(SID, 0x1000, AccessKind::Read);
        let mut progress = lab.smmu.begin(&t);
        for n in 0.. {
            let smmu_model::Progress::Walking(id) = progress else { break };
            if n == 5 {
                lab.push(command);
                lab.run_commands();
            }
            progress = lab.smmu.step(id, &lab.ram);
        }
        lab.unmap(&mut tables, 3, 0x1000);
        assert_eq!(lab.read(0x1000) == End::To(0x8000_1000), kept, "{command:x?}");
    }
}

/// 3.21.3: what is not valid may be cached, too.
#[test]
fn invalid_structures() {
    for cache_invalid in [false, true] {
        let (mut lab, mut tables) = Lab::stage1(Config { cache_invalid, ..linux() });
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        let valid = ste_stage1(CDS);
        lab.ste(SID, [0; 4]);
        assert_eq!(lab.read(0x1000), End::Abort);
        assert_eq!(code(lab.event()), 0x04);
        lab.ste(SID, valid);
        assert_eq!(lab.read(0x1000) == End::Abort, cache_invalid, "STE");
        assert_eq!(lab.events().len(), usize::from(cache_invalid));
        lab.command(cfgi_ste(SID));
        lab.context(0, CdFields { word0: 0, ..CdFields::default() });
        lab.command(cfgi_cd(SID, 0));
        assert_eq!(lab.read(0x1000), End::Abort);
        lab.context(0, CdFields::default());
        assert_eq!(lab.read(0x1000) == End::Abort, cache_invalid, "CD");
        lab.command(cfgi_cd(SID, 0));
        assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
    }
}
