//! Section 3.4, 5.4 and VMSAv8-64: stage 1.

use pgtable::{Granule, descriptor as d};
use smmu_model::{AccessKind, Config, Shareability, Transaction};

use crate::lab::*;

const STREAMID: u64 = (SID as u64) << 32;
/// Word 1 of a record: CLASS=IN, RnW=1.
const READ: u64 = 2 << 40 | 1 << 35;
const WRITE: u64 = 2 << 40;

/// A walk from TTB0: STE, CD and one descriptor a level, each a step; then nothing.
#[test]
fn a_walk_and_a_hit() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x12_3456_7000, 0x8765_4000, 0x1000, RW);
    let t = Transaction::new(SID, 0x12_3456_7890, AccessKind::Read);
    let (n, translation) = lab.fetches(|lab| lab.translate(t).unwrap().1);
    assert_eq!(n, 6);
    assert_eq!((translation.pa, translation.bytes), (0x8765_4890, 0x770));
    assert_eq!((translation.attrs.mair, translation.attrs.shareability), (0xff, Shareability::Inner));
    let (n, end) = lab.fetches(|lab| lab.read(0x12_3456_7fff));
    assert_eq!((n, end), (0, End::To(0x8765_4fff)));
    let stats = lab.smmu.stats();
    assert_eq!((stats.ste_fetches, stats.cd_fetches, stats.s1_fetches), (1, 1, 4));
    assert_eq!((stats.transactions, stats.translated, stats.tlb_hits, stats.tlb_misses), (2, 2, 1, 1));
}

/// Every granule, with pages and blocks.
#[test]
fn granules() {
    for (granule, tg0, block) in [(Granule::G4K, 0, 21), (Granule::G16K, 2, 25), (Granule::G64K, 1, 29)] {
        let mut lab = Lab::new(linux());
        let mut tables = lab.tables(granule, 16, TABLES);
        lab.context(0, CdFields { word0: cd(16, tg0, 1), word1: tables.root(), ..CdFields::default() });
        lab.ste(SID, ste_stage1(CDS));
        let page = granule.bytes();
        lab.map(&mut tables, 3 * page, 0x8000_0000 + page, page, RW);
        lab.map(&mut tables, 1 << 40, 0x4000_0000, 1 << block, RW);
        assert_eq!(lab.read(3 * page + 5), End::To(0x8000_0000 + page + 5), "{granule:?}");
        let t = Transaction::new(SID, (1 << 40) + 0x1_2345, AccessKind::Write);
        let (id, translation) = lab.translate(t).unwrap();
        lab.smmu.complete(id);
        assert_eq!(translation.pa, 0x4001_2345, "{granule:?}");
        assert_eq!(translation.bytes, (1 << block) - 0x1_2345, "{granule:?}");
        let (n, _) = lab.fetches(|lab| lab.read((1 << 40) + (1 << block) - 1));
        assert_eq!(n, 0, "the block is one entry");
    }
}

/// 5.4: a granule that is not implemented is a C_BAD_CD.
#[test]
fn missing_granules() {
    let (mut lab, _) = Lab::stage1(Config { gran4k: false, ..linux() });
    assert_eq!(lab.read(0), End::Abort);
    assert_eq!(lab.event(), [0x0a | STREAMID, 0, 0, 0]);
}

/// TTB1 translates the upper range, with its own size and granule; EPD1 forbids it.
#[test]
fn upper_range() {
    let mut lab = Lab::new(linux());
    let mut tables = lab.tables(Granule::G64K, 22, TABLES);
    let word0 = cd(16, 0, 1) & !(1 << 30) | 1 << 14 | 22 << 16 | 3 << 22;
    lab.context(0, CdFields { word0, word1: 0, word2: tables.root(), ..CdFields::default() });
    lab.ste(SID, ste_stage1(CDS));
    let va = 0xffff_fffc_1234_0000;
    lab.map(&mut tables, va, 0x8000_0000, 0x1_0000, RW);
    assert_eq!(lab.read(va + 0x123), End::To(0x8000_0123));
    for bad in [0x1000, 0xffff_fbff_0000_0000, 0x00ff_fffc_1234_0000] {
        assert_eq!(lab.read(bad), End::Abort);
        assert_eq!(lab.event(), [0x10 | STREAMID, READ, bad, 0], "{bad:#x}");
    }
}

/// 5.4: TBI0: the top byte is ignored by the walk and the IOTLB, and recorded.
#[test]
fn top_byte_ignore() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    assert_eq!(lab.read(0xab00_0000_0000_1000), End::Abort);
    assert_eq!(lab.event()[2], 0xab00_0000_0000_1000);
    lab.context(0, CdFields { word0: cd(16, 0, 1) | 1 << 38, ..CdFields::default() });
    lab.command(cfgi_cd(SID, 0));
    assert_eq!(lab.read(0xab00_0000_0000_1000), End::To(0x8000_1000));
    let (n, end) = lab.fetches(|lab| lab.read(0xcd00_0000_0000_1008));
    assert_eq!((n, end), (0, End::To(0x8000_1008)), "one entry for all");
    assert_eq!(lab.read(0xab01_0000_0000_1000), End::Abort);
    lab.events();
    lab.command(tlbi_va(1, 0x5500_0000_0000_1000));
    assert_eq!(lab.fetches(|lab| lab.read(0x1000)).0, 4, "removed whatever the top byte");
}

/// 7.3.13: unmapped addresses, at any level.
#[test]
fn translation_faults() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    for address in [0x2000, 0x20_0000, 1 << 30, 1 << 39, 1 << 48, 1 << 63] {
        assert_eq!(lab.write(address | 0x10), End::Abort);
        assert_eq!(lab.event(), [0x10 | STREAMID, WRITE, address | 0x10, 0]);
    }
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
}

/// 7.3.14: table and output addresses wider than the output size.
#[test]
fn address_size_faults() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 1 << 44, 0x1000, RW);
    assert_eq!(lab.read(0x1000), End::Abort);
    assert_eq!(lab.event(), [0x11 | STREAMID, READ, 0x1000, 0]);
    // IPS: 40 bits.
    lab.map(&mut tables, 0x2000, 1 << 40, 0x1000, RW);
    assert_eq!(lab.read(0x2000), End::To(1 << 40));
    let word0 = cd(16, 0, 2) & !(7 << 32) | 2 << 32;
    lab.context(0, CdFields { word0, ..CdFields::default() });
    lab.command(cfgi_cd(SID, 0));
    assert_eq!(lab.read(0x2000), End::Abort);
    assert_eq!(code(lab.event()), 0x11);
}

/// 7.3.15: a clear access flag; AFFD turns the fault off.
#[test]
fn access_flag_faults() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW & !d::AF);
    assert_eq!(lab.read(0x1000), End::Abort);
    assert_eq!(lab.event(), [0x12 | STREAMID, READ, 0x1000, 0]);
    lab.context(0, CdFields { word0: cd(16, 0, 1) | 1 << 35, ..CdFields::default() });
    lab.command(cfgi_cd(SID, 0));
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
}

/// 7.3.16: permissions, on a miss and on a hit alike.
#[test]
fn permission_faults() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RO);
    for _ in 0..2 {
        assert_eq!(lab.write(0x1008), End::Abort);
        assert_eq!(lab.event(), [0x13 | STREAMID, WRITE, 0x1008, 0]);
        assert_eq!(lab.read(0x1008), End::To(0x8000_1008));
    }
    let atomic = Transaction::new(SID, 0x1000, AccessKind::Atomic);
    assert_eq!(lab.dma(atomic), End::Abort);
    assert_eq!(lab.event()[1], WRITE, "an atomic is recorded as a write");
    // PRIV: what Linux maps for unprivileged devices has AP[1] set; without it only privileged accesses work.
    lab.map(&mut tables, 0x2000, 0x8000_2000, 0x1000, RW & !d::AP_USER);
    assert_eq!(lab.read(0x2000), End::Abort);
    let privileged = Transaction { privileged: true, ..Transaction::new(SID, 0x2000, AccessKind::Write) };
    assert_eq!(lab.dma(privileged), End::To(0x8000_2000));
    // XN.
    lab.map(&mut tables, 0x3000, 0x8000_3000, 0x1000, RW | d::XN);
    let fetch = Transaction { instruction: true, ..Transaction::new(SID, 0x3000, AccessKind::Read) };
    assert_eq!(lab.dma(fetch), End::Abort);
    let codes: Vec<_> = lab.events().into_iter().map(|e| (code(e), e[1])).collect();
    assert_eq!(codes, [(0x13, READ), (0x13, READ | 1 << 34)]);
}

/// WXN, and PAN.
#[test]
fn wxn_and_pan() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    lab.context(0, CdFields { word0: cd(16, 0, 1) | 1 << 36 | 1 << 40, ..CdFields::default() });
    let data = Transaction::new(SID, 0x1000, AccessKind::Read);
    assert_eq!(lab.dma(data), End::To(0x8000_1000));
    assert_eq!(lab.dma(Transaction { instruction: true, ..data }), End::Abort, "WXN");
    assert_eq!(lab.dma(Transaction { privileged: true, ..data }), End::Abort, "PAN");
}

/// 5.4: E0PD: unprivileged accesses to one half are translation faults, whatever is cached.
#[test]
fn e0pd() {
    for (e0pd, end) in [(true, End::Abort), (false, End::To(0x8000_1000))] {
        let (mut lab, mut tables) = Lab::stage1(Config { e0pd, ..linux() });
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        lab.context(0, CdFields { word1: TABLES | 4, ..CdFields::default() });
        let privileged = Transaction { privileged: true, ..Transaction::new(SID, 0x1000, AccessKind::Read) };
        assert_eq!(lab.dma(privileged), End::To(0x8000_1000));
        assert_eq!(lab.read(0x1000), end);
        if e0pd {
            assert_eq!(lab.event(), [0x10 | STREAMID, READ, 0x1000, 0]);
        }
    }
}

/// 5.4: STT: small tables.
#[test]
fn small_tables() {
    for (stt, end) in [(true, End::To(0x8000_1000)), (false, End::Abort)] {
        let mut lab = Lab::new(Config { stt, ..linux() });
        let mut cfg = pgtable::Stage1 { tsz: 48, oas: 44, ttst: true, ..pgtable::Stage1::default() };
        let pool = TABLES..TABLES + 0x1000;
        let mut tables = pgtable::Builder::stage1(&mut cfg, &mut Words(&lab.ram), pool).unwrap();
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        lab.context(0, CdFields { word0: cd(48, 0, 1), ..CdFields::default() });
        lab.ste(SID, ste_stage1(CDS));
        assert_eq!(lab.read(0x1000), end);
        assert_eq!(lab.events().len(), usize::from(!stt));
    }
}

/// Hierarchical permissions of table descriptors, and HAD.
#[test]
fn hierarchical_attributes() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    tables.restrict(&mut Words(&lab.ram), 1, 0x1000, d::AP_TABLE_READ_ONLY).unwrap();
    assert_eq!(lab.write(0x1000), End::Abort);
    lab.context(0, CdFields { word1: TABLES | 2, ..CdFields::default() });
    lab.command(cfgi_cd(SID, 0));
    lab.command(tlbi_va(1, 0x1000));
    assert_eq!(lab.write(0x1000), End::To(0x8000_1000));
}

/// The Contiguous bit makes one entry of its pages, unless the knob is off.
#[test]
fn contiguous() {
    for (contiguous, fetches) in [(true, 0), (false, 4)] {
        let (mut lab, mut tables) = Lab::stage1(Config { contiguous, ..linux() });
        tables.contiguous = true;
        lab.map(&mut tables, 0x10_0000, 0x8000_0000, 0x1_0000, RW);
        assert_eq!(lab.read(0x10_0000), End::To(0x8000_0000));
        let (n, end) = lab.fetches(|lab| lab.read(0x10_f123));
        assert_eq!((n, end), (fetches, End::To(0x8000_f123)));
    }
}

/// MAIR: AttrIndx selects; Device and non-cacheable memory is outer shareable.
#[test]
fn memory_types() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    for (index, mair, shareability) in
        [(0, 0xff, Shareability::Inner), (1, 0x04, Shareability::Outer), (2, 0x44, Shareability::Outer)]
    {
        let va = 0x1000 * (u64::from(index) + 1);
        lab.map(&mut tables, va, 0x8000_0000, 0x1000, RW | d::attr_index(index));
        let (_, t) = lab.translate(Transaction::new(SID, va, AccessKind::Read)).unwrap();
        assert_eq!((t.attrs.mair, t.attrs.shareability), (mair, shareability));
    }
}

/// 7.3.12: an external abort on a descriptor fetch is recorded whatever CD.R says.
#[test]
fn walk_external_abort() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    lab.context(0, CdFields { word0: cd(16, 0, 1) & !(1 << 45), ..CdFields::default() });
    lab.ram.holes.push(TABLES..TABLES + 0x1000);
    assert_eq!(lab.read(0x1000), End::Abort);
    assert_eq!(lab.event(), [0x0b | STREAMID, 1 << 40 | 1 << 35, 0x1000, TABLES]);
}

/// 5.5: CD.R=0 keeps translation faults out of the queue.
#[test]
fn unrecorded_faults() {
    let (mut lab, _) = Lab::stage1(linux());
    lab.context(0, CdFields { word0: cd(16, 0, 1) & !(1 << 45), ..CdFields::default() });
    assert_eq!(lab.read(0x1000), End::Abort);
    assert!(lab.events().is_empty());
}

/// 5.5: CD.A=0 terminates as RAZ/WI where TERM_MODEL allows it, else it is a C_BAD_CD.
#[test]
fn raz_wi() {
    let word0 = cd(16, 0, 1) & !(1 << 46);
    let (mut lab, _) = Lab::stage1(Config { term_razwi: true, ..linux() });
    lab.context(0, CdFields { word0, ..CdFields::default() });
    assert_eq!(lab.read(0x1000), End::RazWi);
    assert_eq!(code(lab.event()), 0x10);
    let (mut lab, _) = Lab::stage1(linux());
    lab.context(0, CdFields { word0, ..CdFields::default() });
    assert_eq!(lab.read(0x1000), End::Abort);
    assert_eq!(code(lab.event()), 0x0a);
}

/// 7.3.11: what makes a CD bad.
#[test]
fn bad_cds() {
    let good = CdFields::default();
    let bad = [
        ("V=0", CdFields { word0: good.word0 & !(1 << 31), ..good }),
        ("AA64=0", CdFields { word0: good.word0 & !(1 << 41), ..good }),
        ("ENDI=1", CdFields { word0: good.word0 | 1 << 15, ..good }),
        ("HA without HTTU", CdFields { word0: good.word0 | 1 << 43, ..good }),
        ("HD without HTTU", CdFields { word0: good.word0 | 1 << 42, ..good }),
        ("S without stall", CdFields { word0: good.word0 | 1 << 44, ..good }),
        ("T0SZ 15", CdFields { word0: cd(15, 0, 1), ..good }),
        ("T0SZ 40", CdFields { word0: cd(40, 0, 1), ..good }),
        ("TG0 reserved", CdFields { word0: cd(16, 3, 1), ..good }),
        ("TTB0 beyond OAS", CdFields { word1: 1 << 44, ..good }),
        ("TTB0 beyond IPS", CdFields { word0: good.word0 & !(7 << 32), word1: 1 << 32, ..good }),
        ("TG1 reserved", CdFields { word0: good.word0 & !(1 << 30) | 16 << 16, ..good }),
    ];
    for (what, fields) in bad {
        let (mut lab, _) = Lab::stage1(linux());
        lab.context(0, fields);
        assert_eq!(lab.read(0), End::Abort, "{what}");
        assert_eq!(lab.event(), [0x0a | STREAMID, 0, 0, 0], "{what}");
    }
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0, 0x8000_0000, 0x1000, RW);
    lab.context(0, CdFields { word0: good.word0 | 3 << 16, word2: u64::MAX << 44, ..good });
    assert_eq!(lab.read(0), End::To(0x8000_0000), "with EPD1 the fields of TTB1 are ignored");
    let (mut lab, _) = Lab::stage1(linux());
    lab.context(0, CdFields { word0: good.word0 | 1 << 14 | 1 << 15, ..good });
    assert_eq!(lab.read(0), End::Abort);
    assert_eq!(code(lab.event()), 0x10, "without any walk, ENDI is ignored");
}

/// 7.3.10: an external abort on the fetch of a CD.
#[test]
fn cd_fetch_abort() {
    let (mut lab, _) = Lab::stage1(linux());
    lab.ram.holes.push(CDS..CDS + 64);
    assert_eq!(lab.read(0), End::Abort);
    assert_eq!(lab.event(), [0x09 | STREAMID, 0, 0, CDS]);
}

/// 52-bit output and input with 64 KiB.
#[test]
fn large_addresses() {
    let mut lab = Lab::new(Config { oas: 52, vax52: true, ..linux() });
    let mut cfg = pgtable::Stage1 {
        granule: Granule::G64K,
        tsz: 12,
        oas: 52,
        pa52: true,
        lva: true,
        ..pgtable::Stage1::default()
    };
    let mut tables =
        pgtable::Builder::stage1(&mut cfg, &mut Words(&lab.ram), TABLES..TABLES + 0x100_0000).unwrap();
    let word0 = cd(12, 1, 1) & !(7 << 32) | 6 << 32;
    lab.context(0, CdFields { word0, word1: tables.root(), ..CdFields::default() });
    lab.ste(SID, ste_stage1(CDS));
    let (va, pa) = (0x000f_1234_5678_0000, 0x000e_dcba_9876_0000);
    lab.map(&mut tables, va, pa, 0x1_0000, RW);
    assert_eq!(lab.read(va + 8), End::To(pa + 8));
    let mut lab = Lab::new(Config { oas: 52, ..linux() });
    lab.context(0, CdFields { word0, ..CdFields::default() });
    lab.ste(SID, ste_stage1(CDS));
    assert_eq!(lab.read(0), End::Abort, "T0SZ 12 needs VAX");
    assert_eq!(code(lab.event()), 0x0a);
}

/// 5.4: with both halves on, each has its table, size and granule, and its TBI, HAD and E0PD.
#[test]
fn the_upper_half_has_fields_of_its_own() {
    const TBI1: u64 = 1 << 39;
    const HAD1: u64 = 1 << 1;
    const E0PD1: u64 = 1 << 2;
    let upper = 0xffff_ff80_0000_4000;
    let tagged = upper & !(0xff << 56) | 0x12 << 56;
    let both = |t: &dyn Fn(&mut Lab, u64) -> End, word0: u64, word2: u64| {
        let mut lab = Lab::new(Config { e0pd: true, ..linux() });
        let mut low = lab.tables(Granule::G4K, 16, TABLES);
        let mut high = lab.tables(Granule::G16K, 25, S2_TABLES);
        lab.map(&mut low, 0x1000, 0x8000_1000, 0x1000, RW);
        lab.map(&mut high, upper, 0x9000_4000, 0x4000, RW);
        for (tables, address) in [(&mut low, 0x1000), (&mut high, upper)] {
            tables.restrict(&mut Words(&lab.ram), 2, address, d::AP_TABLE_READ_ONLY).unwrap();
        }
        let fields = cd(16, 0, 1) & !(1 << 30) | 25 << 16 | 1 << 22 | word0;
        let word2 = high.root() | word2;
        lab.context(0, CdFields { word0: fields, word2, ..CdFields::default() });
        lab.ste(SID, ste_stage1(CDS));
        [0x1000, upper, 0x12 << 56 | 0x1000, tagged].map(|address| t(&mut lab, address))
    };
    let (low, high, no) = (End::To(0x8000_1000), End::To(0x9000_4000), End::Abort);
    assert_eq!(both(&Lab::read, 0, 0), [low, high, no, no]);
    assert_eq!(both(&Lab::read, TBI1, 0), [low, high, no, high]);
    assert_eq!(both(&Lab::write, 0, 0), [no, no, no, no]);
    assert_eq!(both(&Lab::write, 0, HAD1), [no, high, no, no]);
    assert_eq!(both(&Lab::read, TBI1, E0PD1), [low, no, no, no]);
}
