//! Sections 3.4, 5.2 and 5.4, IDR5.DS: 52-bit addresses with the 4 and 16 KiB granules.

use pgtable::{Builder, Granule, Stage1, Stage2, descriptor as d};
use smmu_model::spec::registers as r;
use smmu_model::{AccessKind, Config, Shareability, Transaction};

use crate::lab::*;

/// Leaves have address bits where SH was.
const RW: u64 = crate::lab::RW & !d::SH_INNER;
const S2_RW: u64 = crate::lab::S2_RW & !d::SH_INNER;
/// CD.DS, in word 2.
const DS: u64 = 1 << 58;
/// CD.SH0 inner shareable.
const SH0: u64 = 3 << 12;
const VMID: u64 = 7;

fn config() -> Config {
    Config { ds: true, vax52: true, oas: 52, ..linux() }
}

/// IPS or PS of 52 bits.
fn cd52(t0sz: u64, tg0: u64) -> CdFields {
    let word0 = cd(t0sz, tg0, 1) & !(7 << 32) | 6 << 32 | SH0;
    CdFields { word0, word2: DS, ..CdFields::default() }
}

fn stage1(config: Config, granule: Granule, t0sz: u8) -> (Lab, Builder) {
    let mut lab = Lab::new(config);
    let mut cfg = Stage1 { granule, tsz: t0sz, oas: 52, pa52: true, ..Stage1::default() };
    let tables = Builder::stage1(&mut cfg, &mut Words(&lab.ram), TABLES..TABLES + 0x40_0000).unwrap();
    let tg0 = if granule == Granule::G4K { 0 } else { 2 };
    lab.context(0, cd52(t0sz.into(), tg0));
    lab.ste(SID, ste_stage1(CDS));
    (lab, tables)
}

/// 6.3.6: IDR5.DS, which needs 52-bit addresses and a granule that it is for; without it CD.DS and STE.S2DS are RES0.
#[test]
fn discovery() {
    assert_eq!(Lab::new(config()).r32(r::IDR5) & 0x4ff, 1 << 10 | 1 << 7 | 7 << 4 | 6);
    assert_eq!(Lab::new(linux()).r32(r::IDR5) >> 7 & 1, 0);
    assert!(Config { vax52: false, ..config() }.validate().is_err());
    assert!(Config { gran4k: false, gran16k: false, ..config() }.validate().is_err());
    assert!(Config { gran64k: false, ..config() }.validate().is_ok(), "52 bits without 64 KiB");
    let (mut lab, _) = stage1(Config { ds: false, ..config() }, Granule::G4K, 12);
    assert_eq!(lab.read(0), End::Abort);
    assert_eq!(code(lab.event()), 0x0a, "T0SZ is out of range");
}

/// 5.4: T0SZ down to 12: 4 KiB begins at level -1, 16 KiB at level 0; the output has 52 bits; SH is the CD's.
#[test]
fn stage_1() {
    let (va, pa) = (0xf_1234_5678_8000, 0xe_9876_5432_0000);
    for (granule, fetches) in [(Granule::G4K, 5), (Granule::G16K, 4)] {
        let (mut lab, mut tables) = stage1(config(), granule, 12);
        lab.map(&mut tables, va, pa, granule.bytes(), RW);
        let t = Transaction::new(SID, va + 0x123, AccessKind::Write);
        let (n, translated) = lab.fetches(|lab| lab.translate(t));
        let (id, to) = translated.unwrap();
        lab.smmu.complete(id);
        assert_eq!((n, to.pa, to.attrs.shareability), (2 + fetches, pa + 0x123, Shareability::Inner));
        assert_eq!(lab.fetches(|lab| lab.dma(t)).0, 0);
        assert_eq!(lab.read(va + granule.bytes()), End::Abort);
        assert_eq!(code(lab.event()), 0x10);
    }
}

/// 5.4: T0SZ below 12, or below 16 with DS=0, is C_BAD_CD; TTB1 has 52 bits as well.
#[test]
fn input_sizes() {
    for (t0sz, ds, event) in [(11, DS, 0x0a), (12, DS, 0x10), (15, DS, 0x10), (15, 0, 0x0a), (16, 0, 0x10)] {
        let mut lab = Lab::new(config());
        lab.context(0, CdFields { word2: ds, ..cd52(t0sz, 0) });
        lab.ste(SID, ste_stage1(CDS));
        assert_eq!(lab.read(0x1000), End::Abort);
        assert_eq!(code(lab.event()), event, "T0SZ {t0sz}");
    }
    let (mut lab, mut tables) = stage1(config(), Granule::G4K, 12);
    let upper = 12 << 16 | 2 << 22 | 1 << 14 | 3 << 28;
    let word0 = cd(16, 0, 1) & !(7 << 32 | 1 << 30) | 6 << 32 | upper;
    lab.context(0, CdFields { word0, word2: TABLES | DS, ..CdFields::default() });
    lab.map(&mut tables, 0x8_0000_0000_1000, 0x5000, 0x1000, RW);
    assert_eq!(lab.read(0xfff8_0000_0000_1008), End::To(0x5008));
}

/// DDI 0487 D8.3.1: DS makes blocks of 512 GiB at level 0 (4 KiB) and of 64 GiB at level 1 (16 KiB).
#[test]
fn large_blocks() {
    for (granule, level, size) in [(Granule::G4K, 0, 1 << 39), (Granule::G16K, 1, 1 << 36)] {
        let (mut lab, mut tables) = stage1(config(), granule, 12);
        let (va, pa) = (0x9_0000_0000_0000, 0xc_0000_0000_0000);
        tables.map_one(&mut Words(&lab.ram), level, va, pa, RW).unwrap();
        assert_eq!(lab.read(va + size - 8), End::To(pa + size - 8));
        assert_eq!(lab.fetches(|lab| lab.read(va)), (0, End::To(pa)));
        // The same descriptor without DS is none.
        let (mut lab, _) = stage1(config(), granule, 16);
        let tg0 = if granule == Granule::G4K { 0 } else { 2 };
        lab.context(0, CdFields { word2: 0, ..cd52(if level == 0 { 16 } else { 28 - 11 }, tg0) });
        lab.ram.set(TABLES, 0x8_0000_0000 | RW | d::VALID);
        lab.read(0);
        assert_eq!(code(lab.event()), 0x10);
    }
}

/// 5.4: an output beyond IPS is F_ADDR_SIZE, a TTB beyond it C_BAD_CD; without DS a TTB above 48 bits is, too.
#[test]
fn output_sizes() {
    let (mut lab, mut tables) = stage1(config(), Granule::G4K, 16);
    lab.map(&mut tables, 0x1000, 1 << 50, 0x1000, RW);
    lab.map(&mut tables, 0x2000, 1 << 48, 0x1000, RW);
    assert_eq!((lab.read(0x1000), lab.read(0x2000)), (End::To(1 << 50), End::To(1 << 48)));
    let cd48 = cd52(16, 0).word0 & !(7 << 32) | 5 << 32;
    lab.context(0, CdFields { word0: cd48, ..cd52(16, 0) });
    lab.command(cfgi_cd(SID, 0));
    lab.command(NSNH_ALL);
    for address in [0x1000, 0x2000] {
        assert_eq!(lab.read(address), End::Abort);
        assert_eq!(code(lab.event()), 0x11, "F_ADDR_SIZE");
    }
    for (word0, ds, event) in [(cd52(16, 0).word0, DS, 0x0b), (cd48, DS, 0x0a), (cd52(16, 0).word0, 0, 0x0a)]
    {
        lab.ram.holes.push(1 << 50..(1 << 50) + 0x1000);
        lab.context(0, CdFields { word0, word1: 1 << 50, word2: ds, ..CdFields::default() });
        lab.command(cfgi_cd(SID, 0));
        assert_eq!(lab.read(0x1000), End::Abort);
        assert_eq!(code(lab.event()), event);
    }
}

/// 5.4: with 52 bits of output, bits 5:0 of TTB are 0, however small the table.
#[test]
fn table_alignment() {
    let (mut lab, mut tables) = stage1(Config { stt: true, ..config() }, Granule::G4K, 33);
    // Two entries at level 1.
    lab.map(&mut tables, 0x1000, 0x5000, 0x1000, RW);
    lab.context(0, CdFields { word1: TABLES | 0x30, ..cd52(33, 0) });
    assert_eq!(lab.read(0x1000), End::To(0x5000));
}

/// An STE with stage 2: S2PS 52 bits, AA64, R.
fn ste(config: u64, cd: u64, t0sz: u64, sl0: u64, tg: u64, ds: bool) -> [u64; 4] {
    let word2 = VMID | t0sz << 32 | (sl0 & 3) << 38 | 2 << 44 | tg << 46 | 6 << 48 | 1 << 51 | 1 << 58;
    [1 | config << 1 | cd, 1 << 44, word2, S2_TABLES | (sl0 >> 2) << 2 | u64::from(ds) << 3]
}

fn stage2(lab: &Lab, granule: Granule, tsz: u8, sl0: u8) -> Builder {
    let mut cfg = Stage2 { granule, tsz, sl0, oas: 52, pa52: true, ..Stage2::default() };
    Builder::stage2(&mut cfg, &mut Words(&lab.ram), S2_TABLES..S2_TABLES + 0x40_0000).unwrap()
}

/// 5.2: S2DS: 52 bits of IPA, from level -1 (S2SL0_2) or level 0; S2SH0 has the shareability.
#[test]
fn stage_2() {
    let (ipa, pa) = (0xf_1234_5678_8000, 0xe_9876_5432_0000);
    for (granule, tg, sl0, fetches) in [(Granule::G4K, 0, 4, 5), (Granule::G16K, 2, 3, 4)] {
        let mut lab = Lab::new(config());
        let mut tables = stage2(&lab, granule, 12, sl0);
        lab.map(&mut tables, ipa, pa, granule.bytes(), S2_RW);
        lab.ste(SID, ste(6, 0, 12, sl0.into(), tg, true));
        let t = Transaction::new(SID, ipa + 0x123, AccessKind::Write);
        let (n, translated) = lab.fetches(|lab| lab.translate(t));
        let (_, to) = translated.unwrap();
        assert_eq!((n, to.pa, to.attrs.shareability), (1 + fetches, pa + 0x123, Shareability::Outer));
    }
}

/// 5.2: S2T0SZ, S2SL0_2, S2SL0 and S2TG have to agree with each other, and with IAS.
#[test]
fn stage_2_legality() {
    // T0SZ, SL0, TG, S2DS, whether that is legal.
    let cases = [
        (12, 4, 0, true, true),
        (12, 4, 0, false, false),
        (12, 2, 0, true, true),
        (16, 2, 0, false, true),
        // Without S2DS, S2SL0_2 does not count.
        (24, 5, 0, false, true),
        (24, 5, 0, true, false),
        (20, 4, 0, true, false),
        (12, 3, 2, true, true),
        (12, 3, 2, false, false),
        (16, 7, 2, true, true),
        (15, 2, 0, false, false),
    ];
    for (t0sz, sl0, tg, ds, legal) in cases {
        let mut lab = Lab::new(config());
        lab.ste(SID, ste(6, 0, t0sz, sl0, tg, ds));
        assert_eq!(lab.read(0), End::Abort);
        let event = code(lab.event());
        assert_eq!(event == 0x10, legal, "T0SZ {t0sz} SL0 {sl0} TG {tg} DS {ds}: {event:#x}");
    }
    let mut lab = Lab::new(Config { oas: 48, ..config() });
    lab.ste(SID, ste(6, 0, 12, 4, 0, true));
    assert_eq!(lab.read(0), End::Abort);
    assert_eq!(code(lab.event()), 0x04, "IAS is 48 bits");
    let mut lab = Lab::new(Config { ds: false, ..config() });
    lab.ste(SID, ste(6, 0, 12, 4, 0, true));
    assert_eq!(lab.read(0), End::Abort);
    assert_eq!(code(lab.event()), 0x04, "S2DS and S2SL0_2 are RES0 without IDR5.DS");
}

/// Both stages with 52 bits, and tables beyond 48 bits of IPA.
#[test]
fn nested() {
    const IPA_TABLES: u64 = 0x7_0000_0000_0000;
    let mut lab = Lab::new(config());
    let mut cfg = Stage1 { tsz: 12, oas: 52, pa52: true, ..Stage1::default() };
    // The tables are built where they are, and name each other by IPA.
    let mut first = Builder::stage1(&mut cfg, &mut Words(&lab.ram), TABLES..TABLES + 0x10_0000).unwrap();
    let (va, ipa, pa) = (0xf_0000_0000_1000, 0xa_0000_0000_2000, 0xb_0000_0000_3000);
    lab.map(&mut first, va, ipa, 0x1000, RW);
    let mut second = stage2(&lab, Granule::G4K, 12, 4);
    lab.map(&mut second, TABLES, TABLES, 0x10_0000, S2_RW);
    lab.map(&mut second, IPA_TABLES, TABLES, 0x1000, S2_RW);
    lab.map(&mut second, CDS, CDS, 0x1000, S2_RW);
    lab.map(&mut second, ipa, pa, 0x1000, S2_RW);
    lab.context(0, CdFields { word1: IPA_TABLES, ..cd52(12, 0) });
    lab.ste(SID, ste(7, CDS, 12, 4, 0, true));
    assert_eq!(lab.read(va + 8), End::To(pa + 8));
    assert_eq!(lab.fetches(|lab| lab.write(va + 8)), (0, End::To(pa + 8)));
    assert_eq!(lab.read(va + 0x1000), End::Abort);
    let event = lab.event();
    assert_eq!((code(event), event[2]), (0x10, va + 0x1000));
    lab.unmap(&mut second, 3, ipa);
    lab.command(NSNH_ALL);
    assert_eq!(lab.read(va), End::Abort);
    assert_eq!(lab.event()[3], ipa, "all 52 bits of the IPA are reported");
}

/// Tables of level 0, below a first one of level -1, are cached as others are.
#[test]
fn walk_caches() {
    let (mut lab, mut tables) = stage1(Config { walk_cache: 16, ..config() }, Granule::G4K, 12);
    lab.map(&mut tables, 0xf_0000_0000_0000, 0x5000, 0x1000, RW);
    lab.map(&mut tables, 0xf_0080_0000_0000, 0x6000, 0x1000, RW);
    lab.read(0xf_0000_0000_0000);
    assert_eq!(lab.fetches(|lab| lab.read(0xf_0080_0000_0000)), (4, End::To(0x6000)));
}

/// 4.4.1.1: with DS, TTL 1 is a level of the 16 KiB granule, and SCALE has 6 bits; without, they are not.
#[test]
fn invalidation() {
    let tlbi = |scale: u64, ttl: u64, va: u64| [0x12 | scale << 20 | 1 << 48, va | 2 << 10 | ttl << 8];
    let (va, pa) = (0x9_0000_0000_0000, 0xc_0000_0000_0000);
    for (command, gone) in [
        (tlbi(0, 1, va), true),
        (tlbi(0, 2, va), false),
        (tlbi(34, 0, 0x8_0000_0000_0000), false),
        // 2^35 granules of 2^14 bytes reach it.
        (tlbi(35, 1, 0x8_0000_0000_0000), true),
        (tlbi(63, 0, 0), true),
    ] {
        let (mut lab, mut tables) = stage1(config(), Granule::G16K, 12);
        tables.map_one(&mut Words(&lab.ram), 1, va, pa, RW).unwrap();
        assert_eq!(lab.read(va), End::To(pa));
        lab.command(command);
        assert_eq!(lab.fetches(|lab| lab.read(va)).0 != 0, gone, "{command:x?}");
    }
    let mut lab = Lab::new(linux());
    lab.push(tlbi(0, 1, 0));
    lab.run_commands();
    assert_eq!(lab.r32(r::CMDQ_CONS) >> 24, 1, "CERROR_ILL: TTL is as 0, so NUM, SCALE and TTL all are");
    // Bit 25 is not SCALE's: a range of one granule.
    let mut lab = Lab::new(Config { strict_commands: false, ..linux() });
    lab.push(tlbi(32, 0, 0));
    lab.run_commands();
    assert_eq!(lab.r32(r::CMDQ_CONS) >> 24, 1, "SCALE is 0");
}

/// 4.4.1.1: there is no TTL for level 0: a block there goes without one.
#[test]
fn invalidation_of_level_0() {
    for (ttl, scale, gone) in [(0, 1, true), (1, 0, false)] {
        let (mut lab, mut tables) = stage1(config(), Granule::G4K, 12);
        tables.map_one(&mut Words(&lab.ram), 0, 0, 0, RW).unwrap();
        lab.read(0x1000);
        lab.command([0x12 | scale << 20 | 1 << 48, 1 << 10 | ttl << 8]);
        assert_eq!(lab.fetches(|lab| lab.read(0x1000)).0 != 0, gone);
    }
}
