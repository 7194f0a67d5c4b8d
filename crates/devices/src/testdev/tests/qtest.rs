//! The three scenarios of QEMU's iommu-smmuv3-test, with its addresses, descriptors and register writes: what runs
//! there must run here.

use super::iommu_testdev::{NS, SUCCESS};
use super::*;

const IOVA: u64 = 0x80_8060_4567;
/// One tree of tables serves both stages.
const ROOT: u64 = RAM + 0xe4d_0000;
const NEXT: [u64; 3] = [RAM + 0xe4d_1000, RAM + 0xe4d_2000, RAM + 0xe4d_3000];
const PAGE: u64 = RAM + 0xecb_a000;
const STREAMS: u64 = RAM + 0xe17_9000;
const CONTEXT: u64 = STREAMS - 0x40;
/// Attribute bits of table descriptors, of stage 1 leaves and stage 2 leaves of tables, and of the last stage 2 leaf.
const TABLE_BITS: u64 = 0x8000_0000_0000_0003;
const LEAF_BITS: u64 = 0x0400_0000_0000_0763;
const LAST_BITS: u64 = 0x0400_0000_0000_07e3;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Stage1,
    Stage2,
    Nested,
}

fn descriptor_at(level: usize, address: u64) -> u64 {
    let table = if level == 0 { ROOT } else { NEXT[level - 1] };
    table + (address >> (39 - 9 * level) & 0x1ff) * 8
}

/// Maps `address` to the leaf `leaf`.
fn walk(lab: &Lab, address: u64, leaf: u64) {
    for (level, next) in NEXT.into_iter().enumerate() {
        lab.put64(descriptor_at(level, address), &[next | TABLE_BITS]);
    }
    lab.put64(descriptor_at(3, address), &[leaf]);
}

fn build(lab: &Lab, mode: Mode) {
    let config = match mode {
        Mode::Stage1 => 5,
        Mode::Stage2 => 6,
        Mode::Nested => 7,
    };
    let stage2 = 0x14 << 32 | 2 << 38 | 5 << 48 | 1 << 51;
    let ste = [1 | config << 1 | CONTEXT, 0, stage2, ROOT];
    lab.put64(STREAMS + u64::from(TESTDEV.0) * 64, &ste);
    if mode != Mode::Stage2 {
        let flags = 0x10 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46;
        lab.put64(CONTEXT, &[flags | 0x1e20 << 48, ROOT | 1, 1, 0]);
    }
    let leaf = PAGE | if mode == Mode::Stage2 { LAST_BITS } else { LEAF_BITS };
    walk(lab, IOVA, leaf);
    for level in 0..4 {
        let table = descriptor_at(level, IOVA);
        walk(lab, table, table & !0xfff | LEAF_BITS);
    }
    walk(lab, PAGE, PAGE | LAST_BITS);
    if mode == Mode::Nested {
        walk(lab, CONTEXT, CONTEXT & !0xfff | LEAF_BITS);
    }
}

fn program(lab: &Lab) {
    lab.smmu32(r::GBPA, 1 << 31);
    lab.smmu32(r::CR0, 0);
    lab.smmu32(r::CR1, 0x0d75);
    lab.smmu64(r::CMDQ_BASE, 0x4e16_b000 | 10);
    lab.smmu32(r::CMDQ_CONS, 0);
    lab.smmu32(r::CMDQ_PROD, 0);
    lab.smmu64(r::EVENTQ_BASE, 0x4e17_0000 | 10);
    lab.smmu32(r::EVENTQ_PROD, 0);
    lab.smmu32(r::EVENTQ_CONS, 0);
    lab.smmu32(r::STRTAB_BASE_CFG, 5);
    lab.smmu64(r::STRTAB_BASE, STREAMS);
    lab.smmu32(r::CR0, 0xd);
}

fn scenario(config: Config, mode: Mode) {
    let mut lab = Lab::with(Some(config));
    let gpa = PAGE + (IOVA & 0xfff);
    lab.put(gpa, &[0; 4]);
    build(&lab, mode);
    program(&lab);
    assert_eq!(lab.dma(IOVA, gpa, 4, NS), SUCCESS);
    assert_eq!(lab.get(gpa, 4), 0x1234_5678u32.to_le_bytes());
    assert!(!lab.smmu().event_pending());
    // The same request finds nothing where nothing is mapped.
    assert_ne!(lab.dma(IOVA + 0x1000, gpa, 4, NS), SUCCESS);
    // A stage 1 fault is recorded: CD.R is set. S2R is not.
    assert_eq!(lab.smmu().event_pending(), mode != Mode::Stage2);
}

#[test]
fn ns_s1_only() {
    scenario(Config::linux(), Mode::Stage1);
    scenario(Config::qemu(), Mode::Stage1);
    scenario(Config::full(), Mode::Stage1);
}

#[test]
fn ns_s2_only() {
    scenario(Config::linux(), Mode::Stage2);
    scenario(Config::full(), Mode::Stage2);
}

#[test]
fn ns_nested() {
    scenario(Config::linux(), Mode::Nested);
    scenario(Config::full(), Mode::Nested);
}
