//! The engine as a platform device: wires, PASIDs, and stalls that software answers.

use smmu_model::StallModel;

use super::engine::{ERROR, HALTED, MEMCPY, MISCONFIGURED, RAND48, WRITE_BACK};
use super::*;
use crate::bus::MmioDevice;
use crate::dma::Requester;

/// In the lab's stream table, where no function is.
const SID: Slot = Slot(0x1e);
const VA: u64 = 0x7000_0000;
/// A CD whose faults stall.
const STALLS: u64 = 1 << 44;
/// RESUME's answers.
const RETRY: u64 = 1 << 12;
const ABORT: u64 = 1 << 13;
const TERMINATE: u64 = 0;

struct Platform {
    lab: Lab,
    engine: PlatformEngine,
    now: Time,
    edges: Vec<u16>,
}

impl Platform {
    /// Two PASIDs, 1 and 2, with tables of their own, whose faults stall.
    fn new(a: u64) -> (Self, [Builder; 2]) {
        let config = Config { stall: StallModel::Both, term_razwi: true, ssidsize: 8, ..Config::linux() };
        let lab = Lab::translated(config);
        let tables = [lab.context(1), lab.context(2)];
        for n in [1, 2] {
            lab.put64(CDS + n * 64, &[cd0(n) & !(1 << 46) | a << 46 | STALLS]);
        }
        // Four CDs in a linear table; transactions without a SubstreamID are terminated.
        lab.ste(SID, [1 | 5 << 1 | CDS | 2 << 59, 1 << 44, 0, 0]);
        let fabric = lab.host.fabric().clone();
        let sid = u32::from(SID.0);
        let port = fabric.port_for(Requester { sid, ssid: None, device_id: sid });
        let engine = PlatformEngine::new(port, Timing::default());
        (Self { lab, engine, now: 0, edges: Vec::new() }, tables)
    }

    fn set(&mut self, n: u64, at: u64, size: u8, value: u64) {
        self.engine.write(self.now, n * 128 + at, size, value);
    }

    fn get(&mut self, n: u64, at: u64, size: u8) -> u64 {
        self.engine.read(self.now, n * 128 + at, size)
    }

    fn cmd(&mut self, n: u64) -> u64 {
        self.get(n, 0, 4)
    }

    /// A command of frame `n` over `len` bytes at `begin` of `pasid`, that reports its end on wire `n`.
    fn launch(&mut self, n: u64, command: u64, pasid: u64, begin: u64, len: u64, target: u64) {
        self.engine.write(self.now, 0x1_0000 + n * 128 + 0x0c, 4, pasid);
        self.set(n, 0x28, 8, begin);
        self.set(n, 0x30, 8, begin + len - 1);
        self.set(n, 0x38, 8, 1);
        self.set(n, 0x20, 4, WRITE_BACK);
        self.set(n, 0x40, 8, target);
        self.set(n, 0x10, 8, 1);
        self.set(n, 0x18, 4, n);
        self.set(n, 0, 4, command);
    }

    /// Lets the engine work until `end`.
    fn run(&mut self, end: Time) {
        while let Some((at, lane)) = self.engine.next_lane().filter(|&(at, _)| at <= end) {
            self.now = self.now.max(at);
            self.edges.extend(self.engine.step_lane(lane, self.now));
        }
        self.now = self.now.max(end);
    }

    /// Answers a stall as its event asks.
    fn resume(&self, event: &[u64; 4], answer: u64) {
        self.lab.command([0x44 | answer | u64::from(SID.0) << 32, event[1] & 0xffff]);
    }
}

#[test]
fn a_stalled_frame_waits_for_its_page_while_the_others_go_on() {
    let (mut p, [mut one, mut two]) = Platform::new(1);
    p.lab.map(&mut two, VA, DATA, 0x1000, RW);
    p.launch(1, RAND48, 1, VA, 0x800, 0);
    p.launch(2, RAND48, 2, VA, 0x800, 0);
    p.run(1_000_000);
    assert_eq!((p.cmd(1), p.cmd(2)), (RAND48, HALTED));
    assert_eq!(p.edges, [2]);
    let events = p.lab.events();
    assert_eq!(events.len(), 1, "once, however long it waits: {events:x?}");
    assert_eq!((events[0][0], events[0][2]), (record_of(event::F_TRANSLATION, SID, 1), VA));
    assert_eq!(events[0][1] & event::STALL, event::STALL);

    p.lab.map(&mut one, VA, DATA + 0x1000, 0x1000, RW);
    p.run(2_000_000);
    assert_eq!(p.cmd(1), RAND48, "a page alone is no answer");
    p.resume(&events[0], RETRY);
    p.run(3_000_000);
    assert_eq!((p.cmd(1), &p.edges[..]), (HALTED, &[2, 1][..]));
    assert_eq!(p.lab.get(DATA, 0x800), p.lab.get(DATA + 0x1000, 0x800), "the same bytes by both PASIDs");
    assert!(!p.lab.outstanding());
}

#[test]
fn a_stall_that_is_aborted_is_an_error_and_one_terminated_without_is_none() {
    // RESUME says how, and not the CD (IHI 0070 §4.6.1).
    for (a, answer, end) in
        [(1, ABORT, ERROR), (1, TERMINATE, HALTED), (0, ABORT, ERROR), (0, TERMINATE, HALTED)]
    {
        let (mut p, [mut one, _]) = Platform::new(a);
        p.lab.map(&mut one, VA, DATA, 0x1000, RW);
        p.lab.put(DATA, &[7; 16]);
        // The second half of the copy's target is missing.
        p.launch(0, MEMCPY, 1, VA, 16, VA + 0xff8);
        p.run(1_000_000);
        let events = p.lab.events();
        assert_eq!((p.cmd(0), events.len()), (MEMCPY, 1));
        p.resume(&events[0], answer);
        p.run(2_000_000);
        assert_eq!((p.cmd(0), &p.edges[..]), (end, &[0][..]), "A={a}, answer {answer:#x}");
        assert_eq!(p.lab.get(DATA + 0xff8, 8), [7; 8]);
        if end == ERROR {
            assert_eq!(p.get(0, 0x50, 8), VA + 0x1000, "the address that was refused");
        }
        assert!(!p.lab.outstanding());
    }
}

#[test]
fn a_retry_that_finds_no_page_stalls_again() {
    let (mut p, [mut one, _]) = Platform::new(1);
    p.launch(3, RAND48, 1, VA, 8, 0);
    for _ in 0..3 {
        p.run(p.now + 100_000);
        let events = p.lab.events();
        assert_eq!(events.len(), 1);
        p.resume(&events[0], RETRY);
    }
    p.run(p.now + 100_000);
    p.lab.map(&mut one, VA, DATA, 0x1000, RW);
    let events = p.lab.events();
    p.resume(&events[0], RETRY);
    p.run(p.now + 100_000);
    assert_eq!((p.cmd(3), &p.edges[..]), (HALTED, &[3][..]));
}

#[test]
fn there_are_four_wires() {
    let (mut p, _) = Platform::new(1);
    p.launch(4, RAND48, 1, VA, 8, 0);
    assert_eq!(p.cmd(4), MISCONFIGURED);
}

#[test]
fn a_saved_stall_goes_on_in_another_engine() {
    let (mut p, [mut one, _]) = Platform::new(1);
    p.launch(0, RAND48, 1, VA, 8, 0);
    p.run(100_000);
    let saved = serde_json::to_vec(&p.engine.save()).unwrap();
    let requester = p.engine.port().requester();
    p.engine = PlatformEngine::new(p.lab.host.fabric().port_for(requester), Timing::default());
    p.engine.restore(serde_json::from_slice(&saved).unwrap()).unwrap();
    p.lab.map(&mut one, VA, DATA, 0x1000, RW);
    let events = p.lab.events();
    p.resume(&events[0], RETRY);
    p.run(200_000);
    assert_eq!((p.cmd(0), &p.edges[..]), (HALTED, &[0][..]));
    assert!(!p.lab.outstanding());
}

#[test]
fn any_access_is_harmless() {
    let (mut p, _) = Platform::new(1);
    for offset in [0, 1, 4, 127, 0xffff, 0x1_0000, 0x1_ffff, 0x2_0000, u64::MAX] {
        for size in [0, 1, 2, 4, 8, 255] {
            p.engine.write(p.now, offset, size, u64::MAX);
            p.engine.write(p.now, offset, size, 3);
            p.engine.read(p.now, offset, size);
        }
    }
    p.run(100_000);
    assert_eq!(p.engine.lane_next_step(p.engine.lanes()), None);
}
