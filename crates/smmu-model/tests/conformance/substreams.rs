//! Section 3.9 and 5.3: SubstreamIDs, CD tables of one and two levels, S1DSS.

use smmu_model::{AccessKind, Config, Transaction};

use crate::lab::*;

const STREAMID: u64 = (SID as u64) << 32;
const DSS_BYPASS: u64 = 1;
const DSS_CD0: u64 = 2;

fn config() -> Config {
    Config { ssidsize: 20, cd2l: true, ..linux() }
}

/// SSV and the SubstreamID in word 0 of a record.
fn ssid(n: u64) -> u64 {
    1 << 11 | n << 12 | STREAMID
}

/// A stream with 2^max CDs, where CD n has ASID n + 1 and maps 0x1000 to 0x8000_0000 + n pages.
fn lab(max: u64, fmt: u64, dss: u64) -> Lab {
    let mut lab = Lab::new(config());
    let at = |n: u64| match fmt {
        0 => CDS + n * 64,
        1 => 0x1400_0000 + (n >> 6) * 0x1000 + (n & 0x3f) * 64,
        _ => 0x1400_0000 + (n >> 10) * 0x1_0000 + (n & 0x3ff) * 64,
    };
    for n in [0, 1, 3, 5, (1 << max) - 1] {
        let mut tables = lab.tables(pgtable::Granule::G4K, 16, TABLES + (n & 0xff) * 0x10_0000);
        lab.map(&mut tables, 0x1000, 0x8000_0000 + (n << 12), 0x1000, RW);
        let cd = CdFields { word0: cd(16, 0, n + 1), word1: tables.root(), ..CdFields::default() };
        lab.context_at(at(n), cd);
        match fmt {
            0 => {}
            1 => lab.ram.set(CDS + (n >> 6) * 8, at(n) & !0xfff | 1),
            _ => lab.ram.set(CDS + (n >> 10) * 8, at(n) & !0xffff | 1),
        }
    }
    lab.ste(SID, [1 | 5 << 1 | fmt << 4 | CDS | max << 59, dss | 1 << 44, 0, 0]);
    lab
}

fn read(ssid: Option<u32>) -> Transaction {
    Transaction { ssid, ..Transaction::new(SID, 0x1000, AccessKind::Read) }
}

/// 5.3: linear, 4 KiB and 64 KiB leaf tables.
#[test]
fn cd_tables() {
    for (fmt, max) in [(0, 8), (1, 12), (2, 14), (0, 1)] {
        let mut lab = lab(max, fmt, DSS_CD0);
        for n in [1, (1 << max) - 1] {
            assert_eq!(
                lab.dma(read(Some(n))),
                End::To(0x8000_0000 + (u64::from(n) << 12)),
                "S1Fmt {fmt}, {n}"
            );
        }
        assert_eq!(lab.fetches(|lab| lab.dma(read(Some(1)))).0, 0);
        assert_eq!(
            lab.smmu.stats().l1cd_fetches,
            if fmt == 0 {
                0
            } else if max == 1 {
                1
            } else {
                2
            }
        );
    }
}

/// 5.2: S1DSS: without a SubstreamID a transaction is terminated, bypasses stage 1, or uses CD 0.
#[test]
fn default_substream() {
    let mut terminate = lab(8, 0, 0);
    assert_eq!(terminate.dma(read(None)), End::Abort);
    assert_eq!(terminate.event(), [0x06 | STREAMID, 0, 0, 0], "F_STREAM_DISABLED");
    assert_eq!(terminate.dma(read(Some(0))), End::To(0x8000_0000), "SubstreamID 0 is one as others");
    let mut bypass = lab(8, 0, DSS_BYPASS);
    assert_eq!(bypass.dma(read(None)), End::To(0x1000));
    assert_eq!(bypass.dma(read(None)), End::To(0x1000));
    assert_eq!(bypass.dma(read(Some(3))), End::To(0x8000_3000));
    let mut cd0 = lab(8, 0, DSS_CD0);
    assert_eq!(cd0.dma(read(None)), End::To(0x8000_0000));
    assert_eq!(cd0.dma(read(Some(0))), End::Abort);
    assert_eq!(cd0.event(), [0x06 | STREAMID, 0, 0, 0], "0 is taken");
    cd0.ste(SID, [1 | 5 << 1 | CDS | 8 << 59, 3, 0, 0]);
    cd0.command(cfgi_ste(SID));
    assert_eq!(cd0.dma(read(None)), End::Abort);
    assert_eq!(code(cd0.event()), 0x06, "the reserved S1DSS terminates");
}

/// A C_BAD_SUBSTREAMID: its SubstreamID needs no SSV.
fn bad(n: u64) -> [u64; 4] {
    [0x08 | n << 12 | STREAMID, 0, 0, 0]
}

/// 7.3.9: SubstreamIDs out of range, and where there is no stage 1.
#[test]
fn bad_substreamid() {
    let mut lab = lab(4, 0, DSS_CD0);
    assert_eq!(lab.dma(read(Some(16))), End::Abort);
    assert_eq!(lab.event(), bad(16));
    lab.ste(SID, STE_BYPASS);
    lab.command(cfgi_ste(SID));
    assert_eq!(lab.dma(read(Some(1))), End::Abort);
    assert_eq!(lab.event(), bad(1));
    lab.ste(SID, ste_stage1(CDS));
    lab.command(cfgi_ste(SID));
    assert_eq!(lab.dma(read(Some(0))), End::Abort, "S1CDMax 0: no SubstreamIDs");
    assert_eq!(lab.event(), bad(0));
}

/// 5.3: an invalid level 1 descriptor; an invalid CD behind a valid one.
#[test]
fn holes_in_cd_tables() {
    let mut lab = lab(12, 1, DSS_CD0);
    assert_eq!(lab.dma(read(Some(64))), End::Abort);
    assert_eq!(lab.event(), bad(64));
    assert_eq!(lab.dma(read(Some(2))), End::Abort);
    assert_eq!(lab.event(), [0x0a | ssid(2), 0, 0, 0]);
    // 3.4.3: a level 2 table beyond OAS.
    lab.ram.set(CDS + 16, 1 << 44 | 1);
    assert_eq!(lab.dma(read(Some(128))), End::Abort);
    assert_eq!(lab.event(), bad(128));
    lab.ram.holes.push(CDS..CDS + 8);
    lab.command(CFGI_ALL);
    assert_eq!(lab.dma(read(Some(2))), End::Abort);
    assert_eq!(lab.event(), [0x09 | ssid(2), 0, 0, CDS]);
}

/// 5.2: what SSIDSIZE and CD2L do not allow.
#[test]
fn bad_stes() {
    let ste = |fmt: u64, max: u64| [1 | 5 << 1 | fmt << 4 | CDS | max << 59, DSS_CD0 | 1 << 44, 0, 0];
    let smaller = Config { ssidsize: 8, cd2l: false, ..config() };
    for (config, ste) in [(&smaller, ste(0, 9)), (&smaller, ste(1, 4)), (&smaller, ste(3, 4))] {
        let mut lab = Lab::new(config.clone());
        lab.ste(SID, ste);
        assert_eq!(lab.dma(read(None)), End::Abort);
        assert_eq!(code(lab.event()), 0x04);
    }
}

/// 4.3.3: CFGI_CD removes one substream's CD, CFGI_CD_ALL all of the stream.
#[test]
fn invalidation() {
    let mut lab = lab(8, 0, DSS_CD0);
    let all = [None, Some(1), Some(3)];
    let fetches = |lab: &mut Lab| all.map(|n| lab.fetches(|lab| lab.dma(read(n))).0);
    fetches(&mut lab);
    assert_eq!(fetches(&mut lab), [0, 0, 0]);
    lab.command(cfgi_cd(SID, 3));
    assert_eq!(fetches(&mut lab), [0, 0, 1]);
    lab.command([0x06 | STREAMID, 0]);
    assert_eq!(fetches(&mut lab), [1, 1, 1]);
}

/// 7.3: records carry the SubstreamID of their transaction.
#[test]
fn records_carry_it() {
    let mut lab = lab(8, 0, DSS_CD0);
    assert_eq!(lab.dma(Transaction { address: 0x5000, ..read(Some(5)) }), End::Abort);
    assert_eq!(lab.event(), [0x10 | ssid(5), 2 << 40 | 1 << 35, 0x5000, 0]);
}
