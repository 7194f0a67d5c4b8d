//! LPIs from MAPD to EOIR, as a driver sets them up.

use super::*;

pub(super) const QUEUE: u64 = RAM;
const DEVICES: u64 = RAM + 0x1_0000;
const COLLECTIONS: u64 = RAM + 0x2_0000;
pub(super) const ITT: u64 = RAM + 0x3_0000;
pub(super) const CONFIG: u64 = RAM + 0x4_0000;
pub(super) const PENDING: u64 = RAM + 0x10_0000;
const VALID: u64 = 1 << 63;

/// Bytes of the command queue.
pub(super) const QUEUE_SIZE: u64 = 0x1000;

impl Bench {
    /// With the ITS on, LPIs on, every LPI enabled at priority 0xa0, and collection n on PE n.
    pub(super) fn with_its(cpus: u32) -> Self {
        let mut bench = Self::new(cpus);
        bench.ram.write(CONFIG, &[0xa1; 0x1_0000 - 8192]);
        for cpu in 0..u64::from(cpus) {
            let frame = cpu * 0x2_0000;
            bench.gic.gicr_write(frame + 0x70, 8, CONFIG | 15);
            bench.gic.gicr_write(frame + 0x78, 8, PENDING + cpu * 0x1_0000);
            bench.gic.gicr_write(frame, 4, 1);
        }
        bench.gic.gits_write(0x100, 8, VALID | DEVICES);
        bench.gic.gits_write(0x108, 8, VALID | COLLECTIONS);
        bench.gic.gits_write(0x80, 8, VALID | QUEUE);
        bench.gic.gits_write(0, 4, 1);
        for cpu in 0..u64::from(cpus) {
            bench.command([0x09, 0, VALID | cpu << 16 | cpu, 0]);
        }
        bench
    }

    /// Puts a command into the queue and lets the ITS process it; whether it was without an error.
    pub(super) fn command(&mut self, words: [u64; 4]) -> bool {
        let errors = self.gic.its_command_errors();
        let at = self.gic.gits_read(0x88, 8);
        for (n, word) in words.iter().enumerate() {
            self.ram.write(QUEUE + at + 8 * n as u64, &word.to_le_bytes());
        }
        let next = (at + 32) % QUEUE_SIZE;
        self.gic.gits_write(0x88, 8, next);
        while self.gic.command_pending() {
            self.gic.step_command();
        }
        assert_eq!(self.gic.gits_read(0x90, 8), next, "CREADR reached CWRITER");
        self.gic.its_command_errors() == errors
    }

    pub(super) fn mapd(&mut self, device: u64, bits: u64) -> bool {
        self.command([device << 32 | 0x08, bits - 1, VALID | (ITT + device * 0x1000), 0])
    }

    pub(super) fn mapti(&mut self, device: u64, event: u64, intid: u64, icid: u64) -> bool {
        self.command([device << 32 | 0x0a, intid << 32 | event, icid, 0])
    }
}

#[test]
fn an_msi_becomes_an_interrupt() {
    let mut bench = Bench::with_its(2);
    assert!(bench.mapd(8, 5) && bench.mapti(8, 3, 8200, 1));
    bench.inbox.post(Message { device_id: 8, event_id: 3 });
    assert!(!bench.irq(1), "translation is a step of its own");
    assert!(bench.gic.msi_pending());
    bench.gic.step_msi();
    assert_eq!((bench.irq(0), bench.irq(1)), (false, true));
    assert_eq!(bench.ack(1), 8200);
    assert_eq!(bench.read(1, RPR), 0xa0);
    bench.msi(8, 3);
    assert!(!bench.irq(1), "no preemption by its own priority");
    bench.eoi(1, 8200);
    assert_eq!(bench.ack(1), 8200, "LPIs have no active state");
    bench.eoi(1, 8200);
    assert_eq!(bench.ack(1), SPURIOUS);
}

#[test]
fn the_most_urgent_comes_first() {
    let mut bench = Bench::with_its(1);
    bench.ram.write(CONFIG + 2, &[0x41]);
    bench.mapd(0, 4);
    for event in 0..3 {
        assert!(bench.mapti(0, event, 8192 + event, 0));
        bench.msi(0, event as u32);
    }
    bench.enable(0, 40);
    bench.priority(0, 40, 0x60);
    bench.pend(0, 40);
    let mut order = Vec::new();
    for _ in 0..4 {
        let intid = bench.ack(0);
        bench.eoi(0, intid);
        order.push(intid);
    }
    assert_eq!(order, [8194, 40, 8192, 8193]);
}

#[test]
fn msis_without_a_mapping_are_ignored() {
    let mut bench = Bench::with_its(1);
    bench.mapd(8, 2);
    bench.mapti(8, 0, 8192, 0);
    for (device, event) in [(9, 0), (8, 1), (8, 4), (8, u32::MAX), (u32::MAX, 0), (0x1_0008, 0)] {
        bench.msi(device, event);
        assert!(!bench.irq(0));
    }
    bench.gic.gits_write(0, 4, 0);
    assert_eq!(bench.gic.gits_read(0, 4), 1 << 31, "quiescent");
    bench.msi(8, 0);
    assert!(!bench.irq(0));
    bench.gic.gits_write(0, 4, 1);
    bench.msi(8, 0);
    assert!(bench.irq(0));
}

#[test]
fn configuration_needs_inv() {
    let mut bench = Bench::with_its(1);
    bench.mapd(8, 2);
    bench.mapti(8, 0, 8192, 0);
    bench.msi(8, 0);
    bench.ram.write(CONFIG, &[0xa0]);
    assert!(bench.irq(0), "still the cached byte");
    assert!(bench.command([8 << 32 | 0x0c, 0, 0, 0]));
    assert!(!bench.irq(0));
    bench.ram.write(CONFIG, &[0xa1]);
    assert!(bench.command([0x0d, 0, 0, 0]));
    assert!(bench.irq(0));
}

#[test]
fn int_clear_and_discard() {
    let mut bench = Bench::with_its(1);
    bench.mapd(8, 2);
    assert!(!bench.command([8 << 32 | 0x0b, 3, 0, 0]), "MAPI of an EventID that is no LPI");
    bench.mapti(8, 3, 8192, 0);
    assert!(bench.command([8 << 32 | 0x03, 3, 0, 0]));
    assert!(bench.irq(0));
    assert!(bench.command([8 << 32 | 0x04, 3, 0, 0]));
    assert!(!bench.irq(0));
    bench.msi(8, 3);
    assert!(bench.command([8 << 32 | 0x0f, 3, 0, 0]));
    assert!(!bench.irq(0), "DISCARD takes the pending state with it");
    assert!(!bench.command([8 << 32 | 0x03, 3, 0, 0]), "INT of what is not mapped");
}

#[test]
fn movi_and_movall_take_the_pending_state_along() {
    let mut bench = Bench::with_its(3);
    bench.mapd(8, 2);
    bench.mapti(8, 0, 8192, 0);
    bench.mapti(8, 1, 8193, 0);
    bench.msi(8, 0);
    bench.msi(8, 1);
    assert!(bench.command([8 << 32 | 0x01, 0, 1, 0]));
    assert_eq!([0, 1, 2].map(|cpu| bench.irq(cpu)), [true, true, false]);
    assert_eq!(bench.ack(1), 8192);
    assert!(bench.command([0x0e, 0, 0, 2 << 16]));
    assert_eq!([0, 1, 2].map(|cpu| bench.irq(cpu)), [false, false, true]);
    assert_eq!(bench.ack(2), 8193);
    bench.msi(8, 1);
    assert!(bench.irq(0), "the mapping did not move");
}

#[test]
fn wrong_commands_are_skipped() {
    let mut bench = Bench::with_its(1);
    for words in [
        [0, 0, 0, 0],
        [0xff, u64::MAX, u64::MAX, u64::MAX],
        [0x1_0000 << 32 | 0x08, 0, VALID | ITT, 0],
        [600 << 32 | 0x08, 0, VALID | ITT, 0],
        [8 << 32 | 0x08, 16, VALID | ITT, 0],
        [0x09, 0, VALID | 1 << 16, 0],
        [0x09, 0, VALID | 600, 0],
        [0x0d, 0, 5, 0],
        [0x05, 0, 7 << 16, 0],
        [8 << 32 | 0x0a, 8192 << 32, 0, 0],
        [0x0e, 0, 0, 9 << 16],
    ] {
        assert!(!bench.command(words), "{words:x?}");
    }
    assert_eq!(bench.gic.gits_read(0x90, 8) & 1, 0, "never stalled");
    bench.mapd(8, 2);
    assert!(!bench.mapti(8, 0, 100, 0) && !bench.mapti(8, 0, 65536, 0) && !bench.mapti(8, 4, 8192, 0));
    assert!(bench.mapti(8, 0, 8192, 0) && bench.command([0x05, 0, 0, 0]));
}

#[test]
fn a_write_pointer_beyond_the_queue_stops_it() {
    let mut bench = Bench::with_its(1);
    bench.gic.gits_write(0x88, 8, QUEUE_SIZE);
    assert!(!bench.gic.command_pending());
    bench.gic.gits_write(0x88, 8, 0);
    assert!(bench.gic.command_pending(), "the rest of the queue, once round");
}

#[test]
fn the_pending_table_survives_a_hand_over() {
    let mut bench = Bench::with_its(1);
    bench.mapd(8, 2);
    bench.mapti(8, 0, 8195, 0);
    bench.msi(8, 0);
    bench.gic.gicr_write(0, 4, 0);
    assert!(!bench.irq(0));
    bench.msi(8, 0);
    let mut byte = [0];
    bench.ram.read(PENDING + 1024, &mut byte);
    assert_eq!(byte, [8]);
    bench.gic.gicr_write(0, 4, 1);
    assert_eq!(bench.ack(0), 8195);
}

#[test]
fn its_registers_read_as_hardware_says() {
    let mut bench = Bench::reset(1);
    assert_eq!(bench.gic.gits_read(8, 8), 16 << 13 | 15 << 8 | 7 << 4 | 1);
    assert_eq!(bench.gic.gits_read(0xffe8, 4), 0x3b);
    bench.gic.gits_write(0x100, 8, u64::MAX);
    assert_eq!(bench.gic.gits_read(0x100, 8) >> 48 & 0x71f, 0x107);
    bench.gic.gits_write(0x10c, 4, 0xffff_ffff);
    assert_eq!(bench.gic.gits_read(0x108, 8), 0xfce7_ffff_0000_0200);
    assert_eq!(bench.gic.gits_read(0x110, 8), 0, "two tables");
    bench.gic.gits_write(0x80, 8, u64::MAX);
    assert_eq!(bench.gic.gits_read(0x80, 8), 0xb8ef_ffff_ffff_fcff);
    bench.gic.gits_write(0x88, 8, u64::MAX);
    assert_eq!(bench.gic.gits_read(0x88, 8), 0xf_ffe0);
    bench.gic.gits_write(0x1_0040, 4, 0);
    assert_eq!(bench.gic.gits_read(0x1_0040, 4), 0);
}
