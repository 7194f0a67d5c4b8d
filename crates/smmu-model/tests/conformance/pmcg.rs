//! Chapter 10: what the SMMU counts.

use smmu_model::{AccessKind, Config, PmuEvent, Transaction, pmcg};

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
