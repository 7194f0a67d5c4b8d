//! Chapter 10: what the SMMU counts.

use smmu_model::{AccessKind, AtsProgress, AtsRequest, Config, PmuEvent, Progress, Transaction, pmcg};

use crate::lab::*;

const EVTYPER: u64 = 0x400;
const SMR: u64 = 0xa00;
const CNTENSET: u64 = 0xc00;
const CR: u64 = 0xe04;

fn count(lab: &mut Lab, n: u64) -> u64 {
    lab.smmu.pmcg().unwrap().mmio_read(pmcg::PAGE1 + n * 8, 8).unwrap()
}

/// 10.3: each event, for all streams and for one.
#[test]
fn events() {
    use PmuEvent::{ConfigAccess, ConfigMiss, TableWalk, TlbMiss, Transaction as Any};
    let (mut lab, mut tables) = Lab::stage1(Config { pmcg: 6, ..linux() });
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x2000, RW);
    lab.ste(SID + 1, STE_BYPASS);
    let p = lab.smmu.pmcg().unwrap();
    for (n, event) in (0..).zip([Any, TlbMiss, ConfigMiss, TableWalk, ConfigAccess]) {
        p.mmio_write(EVTYPER + n * 4, 4, 1 << 29 | event as u64);
        p.mmio_write(SMR + n * 4, 4, 0xffff_ffff);
    }
    p.mmio_write(EVTYPER + 5 * 4, 4, ConfigAccess as u64);
    p.mmio_write(SMR + 5 * 4, 4, u64::from(SID) + 1);
    p.mmio_write(CNTENSET, 8, 0x3f);
    p.mmio_write(CR, 4, 1);
    lab.read(0x1000);
    lab.read(0x1000);
    lab.read(0x2000);
    lab.dma(Transaction::new(SID + 1, 0x1000, AccessKind::Read));
    let counts: Vec<u64> = (0..6).map(|n| count(&mut lab, n)).collect();
    assert_eq!(counts, [4, 2, 2, 8, 3, 1]);
}

/// Without `pmcg` there is none.
#[test]
fn optional() {
    assert!(Lab::new(linux()).smmu.pmcg().is_none());
}

/// 10.5.2.1: CFGR has the number of counters and their size; there are capture, MSIs and counters in a page of their own.
#[test]
fn discovery() {
    for (counters, bits, msi) in [(6, 64, true), (1, 32, true), (8, 40, false)] {
        let mut lab = Lab::new(Config { pmcg: counters, pmcg_bits: bits, msi, ..linux() });
        let cfgr = lab.smmu.pmcg().unwrap().mmio_read(0xe00, 4).unwrap();
        assert_eq!((cfgr & 0x3f, cfgr >> 8 & 0x3f), (u64::from(counters) - 1, u64::from(bits) - 1));
        assert_eq!((cfgr >> 20 & 1, cfgr >> 21 & 1, cfgr >> 22 & 1), (1, msi.into(), 1));
    }
}

/// 10.4: a counter counts for one StreamID, or with FILTER_SID_SPAN for those that agree above the lowest zero of SMR.
#[test]
fn stream_filters() {
    let mut lab = Lab::new(Config { pmcg: 3, ..linux() });
    for sid in 0x10..0x20 {
        lab.ste(sid, STE_BYPASS);
    }
    let p = lab.smmu.pmcg().unwrap();
    for (n, (span, smr)) in (0..).zip([(0, 0x13), (1 << 29, 0x13), (1 << 29, 0x12)]) {
        p.mmio_write(EVTYPER + n * 4, 4, span | PmuEvent::Transaction as u64);
        p.mmio_write(SMR + n * 4, 4, smr);
    }
    p.mmio_write(CNTENSET, 8, 7);
    p.mmio_write(CR, 4, 1);
    for sid in 0x10..0x20 {
        lab.dma(Transaction::new(sid, 0x1000, AccessKind::Read));
    }
    assert_eq!([0, 1, 2].map(|n| count(&mut lab, n)), [1, 8, 2]);
}

/// 10.2.1 and 10.5: a counter that overflows sets its bit, captures all counters with OVFCAP, and interrupts; an MSI that
/// aborts is told by IRQ_STATUS, and is no error of the SMMU's.
#[test]
fn overflow_and_capture() {
    let mut lab = Lab::new(Config { pmcg: 2, pmcg_bits: 32, ..linux() });
    lab.ste(SID, STE_BYPASS);
    let p = lab.smmu.pmcg().unwrap();
    for n in 0..2 {
        p.mmio_write(EVTYPER + n * 4, 4, 1 << 31 | 1 << 29 | PmuEvent::Transaction as u64);
        p.mmio_write(SMR + n * 4, 4, 0xffff_ffff);
    }
    p.mmio_write(pmcg::PAGE1, 4, 0xffff_fffe);
    p.mmio_write(0xe58, 8, 0x0808_0040);
    p.mmio_write(0xe60, 4, 0x77);
    p.mmio_write(0xc40, 8, 1);
    p.mmio_write(0xe50, 4, 1);
    p.mmio_write(CNTENSET, 8, 3);
    p.mmio_write(CR, 4, 1);
    for n in 0..3 {
        assert_eq!(lab.smmu.pmcg().unwrap().irq_pending(), n == 2);
        lab.read(0x1000);
    }
    let p = lab.smmu.pmcg().unwrap();
    let read = |p: &smmu_model::Pmcg, at: u64| p.mmio_read(pmcg::PAGE1 + at, 4).unwrap();
    assert_eq!((read(p, 0), read(p, 4), read(p, 0xcc0)), (1, 3, 1), "two counters, OVSSET");
    assert_eq!((read(p, 0x600), read(p, 0x604)), (0, 2), "as they were when it overflowed");
    p.mmio_write(pmcg::PAGE1 + 0xd88, 4, 1);
    assert_eq!((read(p, 0x600), read(p, 0x604)), (1, 3), "CAPR captures at once");
    p.mmio_write(pmcg::PAGE1 + 0xc80, 4, 1);
    assert_eq!(read(p, 0xcc0), 0, "OVSCLR");
    let msi = p.take_msi().unwrap();
    assert!(p.take_wired());
    assert_eq!((msi.address, msi.data, msi.source), (0x0808_0040, 0x77, smmu_model::IrqSource::Pmcg));
    lab.smmu.msi_aborted(&msi);
    assert_eq!(lab.smmu.pmcg().unwrap().mmio_read(0xe68, 4), Some(1));
    assert_eq!(lab.r32(smmu_model::spec::registers::GERROR), 0);
}

/// 10.3: with ATS, Translation Requests and Translated transactions have events of their own, and are transactions, too.
#[test]
fn ats_events() {
    let mut lab = Lab::new(Config { pmcg: 3, ats: true, ..linux() });
    assert_eq!(lab.smmu.pmcg().unwrap().mmio_read(0xe20, 4), Some(0xff), "CEID");
    for (n, event) in (0..).zip([PmuEvent::Transaction, PmuEvent::AtsRequest, PmuEvent::AtsTranslated]) {
        let p = lab.smmu.pmcg().unwrap();
        p.mmio_write(EVTYPER + n * 4, 4, 1 << 29 | event as u64);
        p.mmio_write(SMR + n * 4, 4, 0xffff_ffff);
    }
    let p = lab.smmu.pmcg().unwrap();
    p.mmio_write(CNTENSET, 8, 7);
    p.mmio_write(CR, 4, 1);
    let request = AtsRequest {
        sid: SID,
        ssid: None,
        address: 0x1000,
        no_write: false,
        execute: false,
        privileged: false,
    };
    let mut progress = lab.smmu.ats_request(&request);
    while let AtsProgress::Walking(id) = progress {
        progress = lab.smmu.ats_step(id, &lab.ram);
    }
    for _ in 0..2 {
        let progress = lab.smmu.begin_translated(&Transaction::new(SID, 0x1000, AccessKind::Read));
        let Progress::Latched(id, _) = progress else { panic!("{progress:?}") };
        lab.smmu.complete(id);
    }
    assert_eq!([0, 1, 2].map(|n| count(&mut lab, n)), [3, 1, 2]);
}
