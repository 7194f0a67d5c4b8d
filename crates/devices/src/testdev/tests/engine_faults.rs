//! The engine behind an SMMU: attributes, substreams, errors and what the SMMU records of them.

use super::engine::*;
use super::*;

const VA: u64 = 0x12_3456_7000;
const SID: Slot = ENGINE;
const INSTRUCTION: u64 = 1 << 10;
const PRIVILEGED: u64 = 1 << 8;

fn lab(attrs: u64) -> (Lab, Builder) {
    let (lab, mut tables) = Lab::stage1(Config::linux(), SID);
    lab.map(&mut tables, VA, DATA, 0x2000, attrs);
    (lab, tables)
}

#[test]
fn commands_and_messages_are_translated() {
    let (mut lab, mut tables) = lab(RW);
    // Neighbours for the device and not in memory.
    lab.map(&mut tables, VA + 0x2000, DATA + 0x9000, 0x1000, RW);
    lab.map(&mut tables, VA + 0x3000, DATA + 0x7000, 0x1000, RW);
    lab.put(DATA, &bytes(0x2000));
    let order = Order { target: VA + 0x2000, vector: Some(9), ..Order::new(VA, 0x2000) };
    assert_eq!(lab.go(MEMCPY, order), HALTED);
    assert_eq!(lab.get(DATA + 0x9000, 0x1000), bytes(0x2000)[..0x1000]);
    assert_eq!(lab.get(DATA + 0x7000, 0x1000), bytes(0x2000)[0x1000..]);
    assert_eq!(lab.interrupts(), [0x109]);
    assert_eq!(lab.events(), [[0; 4]; 0]);
    assert!(!lab.outstanding());
}

#[test]
fn an_abort_stops_the_frame_and_tells_the_address() {
    let (mut lab, mut tables) = lab(RW);
    let gone = VA + 0x2000;
    let fault = |access| [record(event::F_TRANSLATION, SID), event::CLASS_IN | access, gone, 0];
    let order = Order { vector: Some(3), ..Order::new(VA + 0x1000, 0x3000) };
    assert_eq!(lab.go(RAND48, order), ERROR);
    assert_eq!(lab.udata(0, 2), gone);
    assert_eq!(lab.events(), [fault(0)]);
    assert_eq!((lab.frame_get(0, 8, 4), lab.frame_get(0, 12, 4)), (17, 17));
    assert_ne!(lab.get64(DATA + 0x1ff8), 0, "what was moved stays moved");
    assert_eq!(lab.interrupts(), [0x103]);
    assert_eq!(lab.go(SUM64, order), ERROR);
    assert_eq!((lab.udata(0, 1), lab.udata(0, 2)), (0, gone));
    assert_eq!(lab.events(), [fault(event::READ)]);
    // A copy: the read is fine, the write is not. Backwards it begins with the last.
    let order = Order { target: VA + 0x1f80, ..Order::new(VA, 0x100) };
    assert_eq!(lab.go(MEMCPY, order), ERROR);
    assert_eq!(lab.udata(0, 2), gone);
    assert_eq!(lab.events(), [fault(0)]);
    assert_eq!((lab.frame_get(0, 8, 4), lab.frame_get(0, 12, 4)), (3, 3));
    assert_eq!(lab.go(RAND48, Order { seed: 0xffff_ffff, ..Order::new(VA, 0x3000) }), ERROR);
    assert_eq!(lab.udata(0, 2), VA + 0x2f00);
    assert_eq!(lab.events().len(), 1);
    // It can be used again at once.
    lab.map(&mut tables, gone, DATA + 0x8000, 0x1000, RW);
    assert_eq!(lab.go(RAND48, Order::new(VA, 0x3000)), HALTED);
    assert!(!lab.outstanding());
}

#[test]
fn a_message_that_the_smmu_refuses() {
    let (mut lab, mut tables) = lab(RW);
    tables.set(&mut lab.words(), 3, GITS_TRANSLATER, 0).unwrap();
    assert_eq!(lab.go(RAND48, Order { vector: Some(2), ..Order::new(VA, 8) }), HALTED);
    assert_eq!(lab.frame_get(0, 4, 4), 1, "uctrl.MSI_ABORTED");
    assert_eq!(lab.interrupts(), [0; 0]);
    let denied = [record(event::F_TRANSLATION, SID), event::CLASS_IN, GITS_TRANSLATER, 0];
    assert_eq!(lab.events(), [denied]);
    lab.map(&mut tables, GITS_TRANSLATER & !0xfff, GITS_TRANSLATER & !0xfff, 0x1000, RW);
    assert_eq!(lab.go(RAND48, Order { vector: Some(2), ..Order::new(VA, 8) }), HALTED);
    assert_eq!((lab.frame_get(0, 4, 4), lab.interrupts()), (0, vec![0x102]));
}

#[test]
fn faults_of_each_kind() {
    let one = |attrs: u64, pa: u64, command: u64, code: u64, access: u64| {
        let (mut lab, mut tables) = Lab::stage1(Config::linux(), SID);
        lab.map(&mut tables, VA, pa, 0x1000, attrs);
        let order = Order { target: VA, ..Order::new(VA, 8) };
        assert_eq!(lab.go(command, order), ERROR);
        assert_eq!(lab.udata(0, 2), VA);
        assert_eq!(lab.events(), [[record(code, SID), event::CLASS_IN | access, VA, 0]]);
    };
    one(RW | d::AP_READ_ONLY, DATA, RAND48, event::F_PERMISSION, 0);
    one(RW | d::AP_READ_ONLY, DATA, MEMCPY, event::F_PERMISSION, 0);
    one(RW & !d::AF, DATA, SUM64, event::F_ACCESS, event::READ);
    one(RW, 1 << 44, SUM64, event::F_ADDR_SIZE, event::READ);
    one(RW & !d::AP_USER, DATA, SUM64, event::F_PERMISSION, event::READ);
    // Translated to where no memory is: an abort, and nothing of the SMMU's.
    let (mut lab, mut tables) = Lab::stage1(Config::linux(), SID);
    lab.map(&mut tables, VA, 0x1_0000_0000, 0x1000, RW);
    assert_eq!(lab.go(SUM64, Order::new(VA, 8)), ERROR);
    assert_eq!((lab.udata(0, 2), lab.events().len()), (VA, 0));
}

#[test]
fn source_and_destination_have_attributes_of_their_own() {
    // Privileged-only memory: the source halfword counts for reads, the destination's for writes.
    let (mut lab, _) = lab(RW & !d::AP_USER);
    let order = |privileged| Order { attributes: WRITE_BACK | privileged, target: VA, ..Order::new(VA, 8) };
    let denied = |access| [record(event::F_PERMISSION, SID), event::CLASS_IN | access, VA, 0];
    assert_eq!(lab.go(MEMCPY, order(PRIVILEGED | PRIVILEGED << 16)), HALTED);
    assert_eq!(lab.events(), [[0; 4]; 0]);
    assert_eq!(lab.go(MEMCPY, order(PRIVILEGED)), ERROR);
    assert_eq!(lab.events(), [denied(0)]);
    assert_eq!(lab.go(MEMCPY, order(PRIVILEGED << 16)), ERROR);
    assert_eq!(lab.events(), [denied(event::READ)]);
    assert_eq!(lab.go(RAND48, order(PRIVILEGED << 16)), HALTED);
    assert_eq!(lab.go(SUM64, order(PRIVILEGED)), HALTED);
}

#[test]
fn instruction_fetches() {
    // Not executable by anybody: data may be read, instructions may not.
    let (mut lab, _) = lab(RW | d::XN | d::PXN);
    // Every STE here leaves the incoming attribute as it is.
    let order = |bits| Order { attributes: WRITE_BACK | bits, ..Order::new(VA, 8) };
    assert_eq!(lab.go(SUM64, order(0)), HALTED);
    assert_eq!(lab.go(SUM64, order(INSTRUCTION)), ERROR);
    let access = event::CLASS_IN | event::READ | event::IND;
    assert_eq!(lab.events(), [[record(event::F_PERMISSION, SID), access, VA, 0]]);
    assert_eq!(lab.go(SUM64, order(INSTRUCTION | PRIVILEGED)), ERROR);
    assert_eq!(lab.events(), [[record(event::F_PERMISSION, SID), access | event::PNU, VA, 0]]);
    // Writes are data whatever they say.
    assert_eq!(lab.go(RAND48, order(INSTRUCTION << 16)), HALTED);
    assert_eq!(lab.events(), [[0; 4]; 0]);
}

/// A stream with 8 CDs, of which the first three are good; each has a page of its own at VA.
fn substreams() -> Lab {
    let mut lab = Lab::translated(Config { ssidsize: 20, ..Config::linux() });
    for n in 0..3 {
        let mut tables = lab.context(n);
        lab.map(&mut tables, VA, DATA + n * 0x1000, 0x1000, RW);
        let doorbell = GITS_TRANSLATER & !0xfff;
        if n == 0 {
            lab.map(&mut tables, doorbell, doorbell, 0x1000, RW);
        }
    }
    lab.ste(SID, [1 | 5 << 1 | CDS | 3 << 59, 2 | 1 << 44, 0, 0]);
    lab.events();
    lab
}

#[test]
fn frames_with_different_substreams() {
    let mut lab = substreams();
    for n in 0..3 {
        let ssid = if n == 0 { 0xffff_ffff } else { n };
        lab.prepare(n, Order { ssid, vector: Some(n), seed: n, ..Order::new(VA, 0x1000) });
        lab.launch(n, RAND48);
    }
    lab.run();
    assert_eq!([0, 1, 2].map(|n| lab.cmd(n)), [HALTED; 3]);
    let pages = [0, 1, 2].map(|n| lab.get(DATA + n * 0x1000, 16));
    assert!(pages[0] != pages[1] && pages[1] != pages[2] && pages[0] != [0; 16]);
    // Messages have no PASID: they went through CD 0.
    let mut messages = lab.interrupts();
    messages.sort_unstable();
    assert_eq!(messages, [0x100, 0x101, 0x102]);
    assert_eq!(lab.events(), [[0; 4]; 0]);
}

#[test]
fn wrong_substreams() {
    let mut lab = substreams();
    assert_eq!(lab.go(RAND48, Order { ssid: 8, ..Order::new(VA, 8) }), ERROR);
    assert_eq!(lab.events(), [[record(event::C_BAD_SUBSTREAMID, SID) | 8 << 12, 0, 0, 0]]);
    assert_eq!(lab.go(RAND48, Order { ssid: 4, ..Order::new(VA, 8) }), ERROR);
    assert_eq!(lab.events(), [[record_of(event::C_BAD_CD, SID, 4), 0, 0, 0]]);
    assert_eq!(lab.go(SUM64, Order { ssid: 1, ..Order::new(VA + 0x1000, 8) }), ERROR);
    let access = event::CLASS_IN | event::READ;
    assert_eq!(lab.events(), [[record_of(event::F_TRANSLATION, SID, 1), access, VA + 0x1000, 0]]);
    assert!(!lab.outstanding());
}

#[test]
fn nested_and_stage_2() {
    let mut lab = Lab::translated(Config::linux());
    let mut tables = lab.stage2();
    lab.map(&mut tables, VA, DATA, 0x1000, S2_RW);
    lab.map(&mut tables, VA + 0x1000, DATA + 0x1000, 0x1000, S2_RW & !d::S2AP_WRITE);
    lab.ste(SID, [1 | 6 << 1, 1 << 44, STE_S2, tables.root()]);
    let order = Order { target: VA, ..Order::new(VA + 0x1000, 0x1000) };
    assert_eq!(lab.go(MEMCPY, order), HALTED);
    assert_eq!(lab.go(MEMCPY, Order { target: VA + 0x1000, ..Order::new(VA, 0x100) }), ERROR);
    assert_eq!(lab.udata(0, 2), VA + 0x1000);
    let at = event::CLASS_IN | event::S2;
    assert_eq!(lab.events(), [[record(event::F_PERMISSION, SID), at, VA + 0x1000, VA + 0x1000]]);
}

#[test]
fn a_stall_holds_up_one_frame() {
    let config = Config { stall: smmu_model::StallModel::Both, ..Config::linux() };
    let (mut lab, mut tables) = Lab::stage1(config, SID);
    lab.put64(CDS, &[cd0(1) | 1 << 44]);
    lab.map(&mut tables, VA, DATA, 0x1000, RW);
    for n in 0..2 {
        lab.prepare(n, Order { vector: Some(n), ..Order::new(VA + n * 0x1000, 0x800) });
        lab.launch(n, RAND48);
    }
    (0..200).for_each(|_| assert!(lab.step()));
    assert_eq!((lab.cmd(0), lab.cmd(1)), (HALTED, RAND48));
    assert_eq!(lab.interrupts(), [0x100]);
    let events = lab.events();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0][0], events[0][2]), (record(event::F_TRANSLATION, SID), VA + 0x1000));
    assert_eq!(events[0][1] & event::STALL, event::STALL);
    lab.map(&mut tables, VA + 0x1000, DATA + 0x1000, 0x1000, RW);
    lab.command([0x44 | 1 << 12 | u64::from(SID.0) << 32, events[0][1] & 0xffff]);
    lab.run();
    assert_eq!((lab.cmd(1), lab.interrupts()), (HALTED, vec![0x101]));
    assert_ne!(lab.get64(DATA + 0x17f8), 0);
    assert!(!lab.outstanding());
}

#[test]
fn a_latched_translation_is_used_whatever_becomes_of_the_tables() {
    let (mut lab, mut tables) = lab(RW);
    lab.prepare(0, Order { seed: 5, ..Order::new(VA, 8) });
    lab.launch(0, RAND48);
    // Up to the latch: the next step is the beat.
    let latched = |lab: &Lab| lab.smmu().stats().translated > 0;
    while !latched(&lab) {
        assert!(lab.step());
    }
    tables.set(&mut lab.words(), 3, VA, 0).unwrap();
    assert_eq!(lab.get64(DATA), 0);
    lab.run();
    assert_eq!(lab.cmd(0), HALTED);
    assert_ne!(lab.get64(DATA), 0);
}

#[test]
fn memory_attributes_reach_the_smmu() {
    use smmu_model::{MemAttrs, Shareability};
    // A stream in bypass that uses the incoming attributes: they come out of the SMMU as they went in.
    for (half, mair, shareability) in [
        (0x42ff, 0xff, Shareability::Inner),
        (0x02ee, 0xbb, Shareability::NonShareable),
        (0x8233, 0x44, Shareability::Outer),
        (0x0210, 0x04, Shareability::Outer),
    ] {
        for (command, bits) in [(SUM64, half | 0x8233 << 16), (RAND48, half << 16 | 0x8233)] {
            let mut lab = Lab::translated(Config::linux());
            lab.ste(SID, [1 | 4 << 1, 1 << 44, 0, 0]);
            lab.prepare(0, Order { attributes: bits, ..Order::new(DATA, 8) });
            lab.launch(0, command);
            let latched = |lab: &Lab| {
                let smmu = serde_json::to_value(&*lab.smmu()).unwrap();
                let translation = &smmu["txns"]["slots"][0]["state"]["Latched"];
                serde_json::from_value::<MemAttrs>(translation["attrs"].clone()).ok()
            };
            while latched(&lab).is_none() {
                assert!(lab.step());
            }
            assert_eq!(latched(&lab), Some(MemAttrs { mair, shareability }), "halfword {half:#x}");
            lab.run();
            assert_eq!(lab.cmd(0), HALTED);
        }
    }
}
