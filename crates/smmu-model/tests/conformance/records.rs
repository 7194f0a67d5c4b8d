//! Section 7.3: every event, and all of its record. Section 7.5: every global error.

use pgtable::{Builder, Granule, Stage2, descriptor as d};
use smmu_model::spec::event::PageHint;
use smmu_model::spec::registers::{self as r, gerror};
use smmu_model::{
    AccessKind, AtsProgress, AtsRequest, Config, IrqSource, Msi, Progress, StallModel, Transaction,
};

use crate::lab::*;

const STREAMID: u64 = (SID as u64) << 32;
const SSV: u64 = 1 << 11;
const SSID: u64 = 5;
const PRIVILEGED: u64 = 1 << 33;
const INSTRUCTION: u64 = 1 << 34;
const READ: u64 = 1 << 35;
const S2: u64 = 1 << 39;
const CLASS_TT: u64 = 1 << 40;
const CLASS_IN: u64 = 2 << 40;
const STALL: u64 = 1 << 31;

fn config() -> Config {
    Config { ssidsize: 8, ats: true, atsrecerr: true, stall: StallModel::Both, tlb_conflict: true, ..linux() }
}

/// A stream with 8 CDs at CDS, of which number 5 has tables at TABLES.
fn substreams() -> (Lab, Builder) {
    let mut lab = Lab::new(config());
    let tables = lab.tables(Granule::G4K, 16, TABLES);
    lab.context(SSID, CdFields::default());
    lab.ste(SID, [1 | 5 << 1 | CDS | 3 << 59, 1 << 44, 0, 0]);
    (lab, tables)
}

/// A privileged instruction fetch with a SubstreamID, and the bits that its records have for that.
fn fetch(address: u64) -> Transaction {
    let t = Transaction::new(SID, address, AccessKind::Read).with_ssid(SSID as u32);
    Transaction { privileged: true, instruction: true, ..t }
}

const FETCH: u64 = READ | INSTRUCTION | PRIVILEGED;
const SUBSTREAM: u64 = SSV | SSID << 12 | STREAMID;

fn record(lab: &mut Lab, t: Transaction) -> [u64; 4] {
    assert_eq!(lab.dma(t), End::Abort);
    lab.event()
}

/// 7.3.3 to 7.3.5, 7.3.7, 7.3.9 to 7.3.11: errors of the configuration.
#[test]
fn configuration_errors() {
    let (mut lab, _) = substreams();
    let wild = Transaction { sid: 0x100, ..fetch(0x1234) };
    assert_eq!(record(&mut lab, wild), [0x02 | SSV | SSID << 12 | 0x100 << 32, 0, 0, 0], "C_BAD_STREAMID");
    let none = Transaction { sid: SID + 1, ..fetch(0x1234) };
    let at = STRTAB + u64::from(SID + 1) * 64;
    assert_eq!(
        record(&mut lab, none),
        [0x04 | SSV | SSID << 12 | (STREAMID + (1 << 32)), 0, 0, 0],
        "C_BAD_STE"
    );
    lab.ram.holes.push(at..at + 64);
    let [w0, rest @ ..] = record(&mut lab, none);
    assert_eq!((w0 & 0xff, rest), (0x03, [0, 0, at]), "F_STE_FETCH");
    let plain = Transaction::new(SID, 0x1234, AccessKind::Read);
    assert_eq!(record(&mut lab, plain), [0x06 | STREAMID, 0, 0, 0], "F_STREAM_DISABLED");
    let beyond = plain.with_ssid(9);
    assert_eq!(
        record(&mut lab, beyond),
        [0x08 | 9 << 12 | STREAMID, 0, 0, 0],
        "C_BAD_SUBSTREAMID has no SSV"
    );
    let other = plain.with_ssid(6);
    assert_eq!(record(&mut lab, other), [0x0a | SSV | 6 << 12 | STREAMID, 0, 0, 0], "C_BAD_CD");
    lab.ram.holes.push(CDS + 6 * 64..CDS + 7 * 64);
    let fetched = [0x09 | SSV | 6 << 12 | STREAMID, 0, 0, CDS + 6 * 64];
    assert_eq!(record(&mut lab, other), fetched, "F_CD_FETCH");
}

/// 7.3.6, 7.3.8: what ATS does where it may not.
#[test]
fn ats_errors() {
    let (mut lab, _) = substreams();
    let enabled = lab.r32(r::CR0);
    lab.w32(r::CR0, enabled | r::cr0::ATSCHK);
    let mut progress = lab.smmu.begin_translated(&fetch(0x1234_5678));
    while let Progress::Walking(id) = progress {
        progress = lab.smmu.step(id, &lab.ram);
    }
    assert_eq!(progress, Progress::Aborted);
    assert_eq!(lab.event(), [0x07 | STREAMID, READ, 0x1234_5678, 0], "F_TRANSL_FORBIDDEN");
    let request = AtsRequest {
        sid: SID,
        ssid: Some(5),
        address: 0x1234_5678,
        no_write: false,
        execute: true,
        privileged: false,
    };
    let AtsProgress::Answered(_) = lab.smmu.ats_request(&request) else { panic!("the STE is cached") };
    let (read, write, execute) = (1 << 39, 1 << 38, 1 << 37);
    let word1 = read | write | execute | 1 << 44;
    assert_eq!(lab.event(), [0x05 | SUBSTREAM, word1, 0x1234_5000, 0], "F_BAD_ATS_TREQ");
}

/// 7.3.12 to 7.3.17: faults of stage 1.
#[test]
fn stage_1_faults() {
    let (mut lab, mut tables) = substreams();
    let pages = [(0x2000, RW & !d::AF), (0x3000, RW | d::XN | d::PXN)];
    for (va, attrs) in pages {
        lab.map(&mut tables, va, 0x8000_0000, 0x1000, attrs);
    }
    lab.map(&mut tables, 0x4000, 1 << 46, 0x1000, RW);
    for (va, code) in [(0x1234, 0x10), (0x2345, 0x12), (0x3456, 0x13), (0x4567, 0x11)] {
        let event = record(&mut lab, fetch(va));
        assert_eq!(event, [code | SUBSTREAM, FETCH | CLASS_IN, va, 0], "{code:#x}");
    }
    lab.map(&mut tables, 0x4000_0000, 0x8000_0000, 0x1000, RW);
    let at = tables.entry(&mut Words(&lab.ram), 2, 0x4000_0000).unwrap();
    lab.ram.holes.push(at..at + 8);
    let event = record(&mut lab, fetch(0x4000_0123));
    assert_eq!(event, [0x0b | SUBSTREAM, FETCH | CLASS_TT, 0x4000_0123, at], "F_WALK_EABT");
    // A page and then the block around it.
    lab.map(&mut tables, 0x20_0000, 0x8020_0000, 0x2000, RW);
    let read = Transaction { instruction: false, ..fetch(0x20_0000) };
    lab.dma(read);
    let at = tables.entry(&mut Words(&lab.ram), 2, 0x20_0000).unwrap();
    lab.ram.set(at, 0x8020_0000 | RW | d::VALID);
    lab.dma(Transaction { address: 0x20_1000, ..read });
    let event = record(&mut lab, read);
    assert_eq!(event, [0x20 | SUBSTREAM, READ | PRIVILEGED, 0x20_0000, 0], "F_TLB_CONFLICT");
}

/// 7.3: with Stall=1 the record has the tag of the transaction.
#[test]
fn stalls() {
    let (mut lab, _) = substreams();
    let word0 = CdFields::default().word0 | 1 << 44;
    lab.context(SSID, CdFields { word0, ..CdFields::default() });
    let mut progress = lab.smmu.begin(&fetch(0x1234));
    while let Progress::Walking(id) = progress {
        progress = lab.smmu.step(id, &lab.ram);
    }
    let Progress::Stalled(_) = progress else { panic!("{progress:?}") };
    let event = lab.event();
    let tag = event[1] & 0xffff;
    assert_eq!(event, [0x10 | SUBSTREAM, FETCH | CLASS_IN | STALL | tag, 0x1234, 0]);
}

/// 7.3.13 to 7.3.16: faults of stage 2 have S2 and the IPA; an external abort has its address instead.
#[test]
fn stage_2_faults() {
    let mut lab = Lab::new(config());
    let mut cfg = Stage2 { granule: Granule::G4K, tsz: 24, sl0: 1, oas: 44, ..Stage2::default() };
    let mut tables = lab.tables2(&mut cfg);
    let word2 = 7 | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
    lab.ste(SID, [1 | 6 << 1, 1 << 44, word2, S2_TABLES]);
    lab.map(&mut tables, 0x2000, 0x8000_0000, 0x1000, S2_RW & !d::AF);
    lab.map(&mut tables, 0x3000, 0x8000_0000, 0x1000, S2_RW & !d::S2AP_WRITE);
    lab.map(&mut tables, 0x4000, 1 << 46, 0x1000, S2_RW);
    let write = |address| Transaction::new(SID, address, AccessKind::Write);
    for (ipa, code) in [(0x1234, 0x10), (0x2345, 0x12), (0x3456, 0x13), (0x4567, 0x11)] {
        let event = record(&mut lab, write(ipa));
        assert_eq!(event, [code | STREAMID, S2 | CLASS_IN, ipa, ipa & !0xfff], "{code:#x}");
    }
    let at = tables.entry(&mut Words(&lab.ram), 3, 0x3000).unwrap();
    lab.ram.holes.push(at..at + 8);
    lab.command(NSNH_ALL);
    let event = record(&mut lab, write(0x3008));
    assert_eq!(event, [0x0b | STREAMID, S2 | CLASS_IN, 0x3008, at], "F_WALK_EABT");
}

/// 7.3.21: E_PAGE_REQUEST, which a device may send ahead.
#[test]
fn page_hints() {
    let (mut lab, _) = substreams();
    let rights = [true, false, true, false, true, true];
    lab.smmu.page_hint(SID, None, PageHint { address: 0xffff_0000_1234_5678, span: 7, rights });
    let word1 = 1 << 39 | 1 << 37 | 1 << 35 | 1 << 34 | 7 << 44;
    assert_eq!(lab.event(), [0x24 | STREAMID, word1, 0xffff_0000_1234_5000, 0]);
}

/// 7.5: MSIs that abort set the bit of their source; it is active until GERRORN follows, and again by the next error.
#[test]
fn global_errors_of_msis() {
    let sources = [
        (IrqSource::CmdSync, gerror::MSI_CMDQ_ABT_ERR),
        (IrqSource::EventQ, gerror::MSI_EVENTQ_ABT_ERR),
        (IrqSource::PriQ, gerror::MSI_PRIQ_ABT_ERR),
        (IrqSource::Gerror, gerror::MSI_GERROR_ABT_ERR),
    ];
    for (source, bit) in sources {
        let mut lab = Lab::new(Config { pri: true, ..config() });
        let msi = Msi { address: 0, data: 0, attrs: smmu_model::MemAttrs::DEVICE_NGNRE, source };
        lab.smmu.msi_aborted(&msi);
        lab.smmu.msi_aborted(&msi);
        assert_eq!(lab.r32(r::GERROR), bit, "{source:?}: once");
        assert!(lab.smmu.take_wired().gerror);
        lab.w32(r::GERRORN, bit);
        lab.smmu.msi_aborted(&msi);
        assert_eq!(lab.r32(r::GERROR), 0, "{source:?}: active again");
        assert!(lab.smmu.take_wired().gerror);
    }
}
