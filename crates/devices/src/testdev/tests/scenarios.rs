//! One write by the `iommu-testdev` for each way through the SMMU, and its negative twins: what the device sees, and
//! the record that the SMMU leaves.

use super::iommu_testdev::{NS, SUCCESS, TX_FAIL};
use super::*;

const IOVA: u64 = 0x80_8060_4567;
const VA: u64 = IOVA & !0xfff;
const GPA: u64 = DATA + (IOVA & 0xfff);
const SID: Slot = TESTDEV;
/// Extensions of ATTRS.
const PRIVILEGED: u64 = 1 << 8;
const SSV: u64 = 1 << 9;

/// A write is made and arrives; no record.
fn passes(lab: &mut Lab, attrs: u64) {
    lab.put(GPA, &[0; 4]);
    assert_eq!(lab.dma(IOVA, GPA, 4, attrs), SUCCESS);
    assert_eq!(lab.get(GPA, 4), 0x1234_5678u32.to_le_bytes());
    assert_eq!(lab.events(), [[0; 4]; 0]);
}

/// A write is refused, nothing arrives, and there is this one record.
fn fails(lab: &mut Lab, attrs: u64, record: [u64; 4]) {
    lab.put(GPA, &[0; 4]);
    assert_eq!(lab.dma(IOVA, GPA, 4, attrs), TX_FAIL);
    assert_eq!(lab.get(GPA, 4), [0; 4]);
    assert_eq!(lab.events(), [record], "{record:x?}");
    assert!(!lab.outstanding());
}

fn stage1(attrs: u64) -> Lab {
    let (lab, mut tables) = Lab::stage1(Config::linux(), SID);
    lab.map(&mut tables, VA, DATA, 0x1000, attrs);
    lab
}

#[test]
fn stage_1() {
    passes(&mut stage1(RW), NS);
    passes(&mut stage1(RW), NS | PRIVILEGED);
}

#[test]
fn stage_1_unmapped() {
    let (mut lab, _) = Lab::stage1(Config::linux(), SID);
    fails(&mut lab, NS, [record(event::F_TRANSLATION, SID), event::CLASS_IN, IOVA, 0]);
}

#[test]
fn stage_1_unmapped_after_use() {
    let (mut lab, mut tables) = Lab::stage1(Config::linux(), SID);
    lab.map(&mut tables, VA, DATA, 0x1000, RW);
    passes(&mut lab, NS);
    tables.set(&mut lab.words(), 3, VA, 0).unwrap();
    // CMD_TLBI_NH_VA for ASID 1.
    lab.command([0x12 | 1 << 48, VA | 1]);
    fails(&mut lab, NS, [record(event::F_TRANSLATION, SID), event::CLASS_IN, IOVA, 0]);
}

#[test]
fn stage_1_read_only() {
    let mut lab = stage1(RW | d::AP_READ_ONLY);
    fails(&mut lab, NS, [record(event::F_PERMISSION, SID), event::CLASS_IN, IOVA, 0]);
}

#[test]
fn stage_1_privileged_only() {
    let mut lab = stage1(RW & !d::AP_USER);
    passes(&mut lab, NS | PRIVILEGED);
    fails(&mut lab, NS, [record(event::F_PERMISSION, SID), event::CLASS_IN, IOVA, 0]);
    let mut lab = stage1(RW | d::AP_READ_ONLY);
    fails(
        &mut lab,
        NS | PRIVILEGED,
        [record(event::F_PERMISSION, SID), event::CLASS_IN | event::PNU, IOVA, 0],
    );
}

#[test]
fn stage_1_access_flag() {
    let mut lab = stage1(RW & !d::AF);
    fails(&mut lab, NS, [record(event::F_ACCESS, SID), event::CLASS_IN, IOVA, 0]);
}

#[test]
fn stage_1_address_size() {
    // The leaf's address has more bits than the output: IPS is 44 bits, or 32.
    let (mut lab, mut tables) = Lab::stage1(Config::linux(), SID);
    lab.map(&mut tables, VA, 1 << 44, 0x1000, RW);
    fails(&mut lab, NS, [record(event::F_ADDR_SIZE, SID), event::CLASS_IN, IOVA, 0]);
    let (mut lab, mut tables) = Lab::stage1(Config::linux(), SID);
    lab.put64(CDS, &[cd0(1) & !(7 << 32)]);
    lab.map(&mut tables, VA, 1 << 32, 0x1000, RW);
    fails(&mut lab, NS, [record(event::F_ADDR_SIZE, SID), event::CLASS_IN, IOVA, 0]);
    // An input address beyond T0SZ is a translation fault.
    let mut lab = stage1(RW);
    assert_eq!(lab.dma(IOVA | 1 << 48, GPA, 4, NS), TX_FAIL);
    assert_eq!(lab.events(), [[record(event::F_TRANSLATION, SID), event::CLASS_IN, IOVA | 1 << 48, 0]]);
}

#[test]
fn stage_1_bad_descriptors() {
    let mut lab = stage1(RW);
    lab.put64(CDS, &[cd0(1) & !(1 << 31)]);
    fails(&mut lab, NS, [record(event::C_BAD_CD, SID), 0, 0, 0]);
    let mut lab = stage1(RW);
    lab.ste(SID, [5 << 1 | CDS, 1 << 44, 0, 0]);
    fails(&mut lab, NS, [record(event::C_BAD_STE, SID), 0, 0, 0]);
}

/// A stream with `1 << max` CDs, of which the first three are good, in `config`.
fn substreams(max: u64) -> Lab {
    let lab = Lab::translated(Config { ssidsize: 20, ..Config::linux() });
    for n in 0..3 {
        let mut tables = lab.context(n);
        lab.map(&mut tables, VA, DATA + n * 0x1000, 0x1000, RW);
    }
    // S1DSS: without a SubstreamID, CD 0.
    lab.ste(SID, [1 | 5 << 1 | CDS | max << 59, 2 | 1 << 44, 0, 0]);
    lab
}

#[test]
fn each_substream_has_its_own_tables() {
    let mut lab = substreams(3);
    passes(&mut lab, NS);
    for n in 1..3 {
        let gpa = GPA + n * 0x1000;
        assert_eq!(lab.dma(IOVA, gpa, 4, NS | SSV | n << 12), SUCCESS);
        assert_eq!(lab.get(gpa, 4), 0x1234_5678u32.to_le_bytes());
    }
    assert_eq!(lab.events(), [[0; 4]; 0]);
}

#[test]
fn wrong_substreams() {
    let mut lab = substreams(3);
    // Out of range; in range with a CD that is not valid; not a SubstreamID at all for a stream without any.
    fails(&mut lab, NS | SSV | 8 << 12, [event::C_BAD_SUBSTREAMID | 8 << 12 | record(0, SID), 0, 0, 0]);
    let mut lab = substreams(3);
    fails(&mut lab, NS | SSV | 5 << 12, [record_of(event::C_BAD_CD, SID, 5), 0, 0, 0]);
    let mut lab = substreams(0);
    fails(&mut lab, NS | SSV | 1 << 12, [event::C_BAD_SUBSTREAMID | 1 << 12 | record(0, SID), 0, 0, 0]);
    // The right one, and not mapped there.
    let mut lab = substreams(3);
    assert_eq!(lab.dma(IOVA + 0x1000, GPA, 4, NS | SSV | 2 << 12), TX_FAIL);
    let at = IOVA + 0x1000;
    assert_eq!(lab.events(), [[record_of(event::F_TRANSLATION, SID, 2), event::CLASS_IN, at, 0]]);
}

/// Stage 2 alone: IPA 0x80_8060_4567 is at GPA.
fn stage2(attrs: u64, pa: u64) -> Lab {
    let lab = Lab::translated(Config::linux());
    let mut tables = lab.stage2();
    lab.map(&mut tables, VA, pa, 0x1000, attrs);
    lab.ste(SID, [1 | 6 << 1, 1 << 44, STE_S2, tables.root()]);
    lab
}

#[test]
fn stage_2() {
    passes(&mut stage2(S2_RW, DATA), NS);
}

#[test]
fn stage_2_faults() {
    let at = event::CLASS_IN | event::S2;
    let mut lab = stage2(0, DATA);
    fails(&mut lab, NS, [record(event::F_ACCESS, SID), at, IOVA, VA]);
    let mut lab = stage2(S2_RW & !d::S2AP_WRITE, DATA);
    fails(&mut lab, NS, [record(event::F_PERMISSION, SID), at, IOVA, VA]);
    let mut lab = stage2(S2_RW, 1 << 44);
    fails(&mut lab, NS, [record(event::F_ADDR_SIZE, SID), at, IOVA, VA]);
    let mut lab = stage2(S2_RW, DATA);
    let far = IOVA + 0x1000;
    assert_eq!(lab.dma(far, GPA, 4, NS), TX_FAIL);
    assert_eq!(lab.events(), [[record(event::F_TRANSLATION, SID), at, far, far & !0xfff]]);
}

/// Where stage 1 puts the page, in front of stage 2.
const IPA: u64 = 0x12_3456_7000;

/// Both stages; the CD and the stage 1 tables are at the same IPA as PA.
fn nested(attrs: u64) -> (Lab, Builder, Builder) {
    let lab = Lab::translated(Config::linux());
    let (mut first, mut second) = (lab.context(0), lab.stage2());
    lab.map(&mut first, VA, IPA, 0x1000, RW);
    lab.map(&mut second, CDS, CDS, 0x1000, S2_RW & !d::S2AP_WRITE);
    lab.map(&mut second, TABLES, TABLES, 0x4_0000, S2_RW & !d::S2AP_WRITE);
    lab.map(&mut second, IPA, DATA, 0x1000, attrs);
    lab.ste(SID, [1 | 7 << 1 | CDS, 1 << 44, STE_S2, second.root()]);
    (lab, first, second)
}

#[test]
fn nested_stages() {
    passes(&mut nested(S2_RW).0, NS);
}

#[test]
fn nested_stage_1_faults() {
    let (mut lab, mut first, _) = nested(S2_RW);
    first.set(&mut lab.words(), 3, VA, 0).unwrap();
    fails(&mut lab, NS, [record(event::F_TRANSLATION, SID), event::CLASS_IN, IOVA, 0]);
}

#[test]
fn nested_stage_2_faults() {
    let at = event::CLASS_IN | event::S2;
    fails(&mut nested(S2_RW & !d::AF).0, NS, [record(event::F_ACCESS, SID), at, IOVA, IPA]);
    fails(&mut nested(S2_RW & !d::S2AP_WRITE).0, NS, [record(event::F_PERMISSION, SID), at, IOVA, IPA]);
    let (mut lab, _, mut second) = nested(S2_RW);
    second.set(&mut lab.words(), 3, IPA, 0).unwrap();
    fails(&mut lab, NS, [record(event::F_TRANSLATION, SID), at, IOVA, IPA]);
    // The fetch of the CD, and of a stage 1 descriptor: the access that is refused is the walk's, a read.
    let (mut lab, _, mut second) = nested(S2_RW);
    second.set(&mut lab.words(), 3, CDS, 0).unwrap();
    let at = event::CLASS_CD | event::S2;
    fails(&mut lab, NS, [record(event::F_TRANSLATION, SID), at, IOVA, CDS]);
    let (mut lab, first, mut second) = nested(S2_RW);
    second.set(&mut lab.words(), 3, first.root(), 0).unwrap();
    let at = event::CLASS_TT | event::S2;
    fails(&mut lab, NS, [record(event::F_TRANSLATION, SID), at, IOVA, first.root()]);
}

#[test]
fn bypass_and_abort_of_a_stream() {
    let mut lab = Lab::translated(Config::linux());
    lab.ste(SID, [1 | 4 << 1, 1 << 44, 0, 0]);
    assert_eq!(lab.dma(GPA, GPA, 4, NS), SUCCESS);
    let mut lab = Lab::translated(Config::linux());
    lab.ste(SID, [1, 0, 0, 0]);
    assert_eq!(lab.dma(GPA, GPA, 4, NS), TX_FAIL);
    assert_eq!(lab.events(), [[0; 4]; 0], "Config 0b000 says nothing");
}

#[test]
fn a_write_stops_at_the_first_page_that_is_not_there() {
    let mut lab = stage1(RW);
    lab.put(DATA, &[0; 0x1000]);
    assert_eq!(lab.dma(VA + 0xffc, DATA + 0xffc, 8, NS), TX_FAIL);
    assert_eq!(lab.get(DATA + 0xffc, 4), 0x1234_5678u32.to_le_bytes(), "the first page was written");
    assert_eq!(lab.events(), [[record(event::F_TRANSLATION, SID), event::CLASS_IN, VA + 0x1000, 0]]);
}

#[test]
fn a_fault_that_stalls_is_resolved_and_resumed() {
    let config = Config { stall: smmu_model::StallModel::Both, ..Config::linux() };
    let (mut lab, mut tables) = Lab::stage1(config, SID);
    // CD.S.
    lab.put64(CDS, &[cd0(1) | 1 << 44]);
    lab.arm(IOVA, GPA, 4, NS);
    lab.itd(0x00);
    (0..100).for_each(|_| assert!(lab.step(), "it asks again and again"));
    let events = lab.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0][0], record(event::F_TRANSLATION, SID));
    assert_eq!(events[0][1] & !0xffff, event::CLASS_IN | event::STALL);
    lab.map(&mut tables, VA, DATA, 0x1000, RW);
    // CMD_RESUME with Retry.
    lab.command([0x44 | 1 << 12 | u64::from(SID.0) << 32, events[0][1] & 0xffff]);
    lab.run();
    assert_eq!(lab.itd(0x10), SUCCESS);
    assert_eq!(lab.get(GPA, 4), 0x1234_5678u32.to_le_bytes());
}
