//! The transport: negotiation, resets, the ways to the registers.

use super::*;

const ALL: u64 = !feature::EVENT_IDX;

fn bench() -> Bench {
    let disk = MemoryBackend { data: vec![7; 8 * 512], ..MemoryBackend::default() };
    Bench::new(Blk::new(Box::new(disk)))
}

fn offer_read(b: &mut Bench) {
    let (head, data) = (b.page(0), b.page(8));
    b.write(head, &[0; 16]);
    b.chain(0, 0, &[(head, 16, false), (data, 512, true), (data + 0x800, 1, true)]);
    b.offer(0, 0);
}

#[test]
pub(super) fn is_found_where_a_driver_looks() {
    let mut b = bench();
    assert_eq!(b.host.config_read(0, ECAM, 4), 0x1042_1af4);
    assert_eq!(b.host.config_read(0, ECAM + 8, 4), 0x0100_0001);
    assert_eq!(b.host.config_read(0, 0, 4), 0x0008_1b36);
    assert_eq!(b.host.config_read(0, 2 << 15, 4), 0xffff_ffff, "empty slot");
    assert_eq!(b.host.config_read(0, 1 << 20, 2), 0xffff, "empty bus");
    assert_eq!(b.host.config_read(0, ECAM + 1, 2), 0xffff, "unaligned");
    assert_eq!(b.host.config_read(0, ECAM, 8), u64::MAX, "too wide");
    assert_eq!(b.host.config_read(0, u64::MAX, 1), 0xff);
    assert_eq!(b.host.mmio_read(0, REGISTERS, 4), 0xffff_ffff, "not decoded yet");
    b.enable_function();
    for (kind, offset) in [(1, 0), (2, 0x3000), (3, 0x1000), (4, 0x2000)] {
        let at = b.capability(9, Some(kind));
        assert_eq!(b.host.config_read(0, ECAM + at + 4, 1), 4, "BAR");
        assert_eq!(b.host.config_read(0, ECAM + at + 8, 4), offset);
    }
    assert_eq!(b.get(0x2000, 8), 8, "capacity in sectors");
    assert_eq!(b.get(0x12, 2), 1, "queues");
    // A moved BAR answers at its new place only.
    b.host.config_write(0, ECAM + 0x24, 4, 0x81);
    assert_eq!(b.host.mmio_read(0, REGISTERS + 0x12, 2), 0xffff);
    assert_eq!(b.host.mmio_read(0, REGISTERS + 0x1_0000_0000 + 0x12, 2), 1);
}

#[test]
pub(super) fn features_need_the_platform_bit_and_nothing_unknown() {
    let mut b = bench();
    b.enable_function();
    for features in [0, feature::VERSION_1, feature::ACCESS_PLATFORM] {
        b.negotiate(features);
        assert_eq!(b.status(), 3, "FEATURES_OK does not stick");
    }
    b.negotiate(ALL);
    assert_eq!(b.status(), 11);
    b.set(0x0c, 4, 0);
    b.set(0x08, 4, 1);
    assert_ne!(b.get(0x0c, 4), 0, "features are fixed now");
    b.set(0x14, 1, 1);
    assert_eq!(b.status(), 11, "only a reset clears bits");
    b.set(0x14, 1, 0);
    b.run();
    b.set(0x08, 4, 1);
    b.set(0x0c, 4, 0xffff_ffff);
    b.set(0x14, 1, 11);
    assert_eq!(b.status(), 3, "features that were not offered");
}

#[test]
pub(super) fn queues_keep_to_their_rules() {
    let mut b = bench();
    b.enable_function();
    b.negotiate(ALL);
    b.set(0x16, 2, 0);
    assert_eq!(b.get(0x18, 2), 256);
    for bad in [0, 3, 512, 0xffff] {
        b.set(0x18, 2, bad);
        assert_eq!(b.get(0x18, 2), 256);
    }
    b.set(0x18, 2, 16);
    b.set(0x1a, 2, 9);
    assert_eq!((b.get(0x18, 2), b.get(0x1a, 2)), (16, 0xffff), "no such vector");
    b.set(0x16, 2, 5);
    assert_eq!((b.get(0x18, 2), b.get(0x1c, 2)), (0, 0), "no such queue");
    b.set(0x1c, 2, 1);
    b.set(0x16, 2, 0);
    b.set(0x20, 8, 0x4000_0008);
    b.set(0x1c, 2, 1);
    assert_eq!(b.get(0x1c, 2), 0, "misaligned");
    assert_eq!(b.status() & 64, 64, "needs a reset");
    b.negotiate(ALL);
    b.set_up_queue(0);
    b.set(0x18, 2, 8);
    b.set(0x20, 4, 0);
    assert_eq!(b.get(0x18, 2), 256, "an enabled queue keeps its registers");
    assert_eq!(b.get(0x20, 8), b.ring(0, 0));
}

#[test]
pub(super) fn nothing_moves_before_the_driver_is_ready_or_without_bus_mastering() {
    let mut b = bench();
    b.enable_function();
    b.negotiate(ALL);
    b.set_up_queue(0);
    offer_read(&mut b);
    b.kick(0);
    assert_eq!(b.run(), 0);
    b.host.config_write(0, ECAM + 4, 2, u64::from(COMMAND_MEMORY));
    b.set(0x14, 1, 15);
    assert_eq!(b.run(), 0);
    b.host.config_write(0, ECAM + 4, 2, u64::from(COMMAND_MEMORY | COMMAND_MASTER));
    b.run();
    assert_eq!(b.take_used(0), Some((0, 513)));
}

#[test]
pub(super) fn bus_mastering_can_be_taken_away_at_any_step() {
    for stop in 0..12 {
        let mut b = bench();
        b.start(ALL);
        offer_read(&mut b);
        b.kick(0);
        for _ in 0..stop {
            b.now = b.now.max(b.host.next_step().unwrap());
            b.host.step(b.now);
        }
        b.host.config_write(0, ECAM + 4, 2, u64::from(COMMAND_MEMORY));
        assert_eq!(b.host.next_step(), None);
        b.host.config_write(0, ECAM + 4, 2, u64::from(COMMAND_MEMORY | COMMAND_MASTER));
        b.run();
        assert_eq!(b.take_used(0), Some((0, 513)));
        assert_eq!(b.read(b.page(8), 512), [7; 512]);
        assert_eq!(b.interrupts(), [0x101]);
    }
}

#[test]
pub(super) fn a_reset_takes_effect_later_and_at_any_step() {
    for stop in 0..12 {
        let mut b = bench();
        b.start(ALL);
        offer_read(&mut b);
        b.kick(0);
        for _ in 0..stop {
            b.now = b.now.max(b.host.next_step().unwrap());
            b.host.step(b.now);
        }
        b.set(0x14, 1, 0);
        assert_eq!(b.status(), 15, "not yet");
        b.run();
        assert_eq!(b.status(), 0);
        assert_eq!(b.get(0x1c, 2), 0);
        b.start(ALL);
        b.write(b.ring(0, 2) + 2, &[0, 0]);
        offer_read(&mut b);
        b.kick(0);
        b.run();
        assert_eq!(b.take_used(0), Some((0, 513)));
    }
}

#[test]
pub(super) fn a_driver_that_does_not_wait_for_the_reset_finds_it_done() {
    let mut b = bench();
    b.start(ALL);
    b.set(0x14, 1, 0);
    b.set(0x14, 1, 1);
    assert_eq!(b.status(), 1);
    assert_eq!(b.host.next_step(), None);
}

#[test]
pub(super) fn one_queue_can_be_reset() {
    let mut b = bench();
    b.start(ALL);
    b.run();
    offer_read(&mut b);
    b.kick(0);
    b.set(0x16, 2, 0);
    b.set(0x3a, 2, 1);
    assert_eq!(b.get(0x3a, 2), 1);
    b.run();
    assert_eq!((b.get(0x3a, 2), b.get(0x1c, 2)), (0, 0));
    assert_eq!(b.take_used(0), None);
    b.write(b.ring(0, 1) + 2, &[0, 0]);
    b.set_up_queue(0);
    offer_read(&mut b);
    b.kick(0);
    b.run();
    assert_eq!(b.take_used(0), Some((0, 513)));
}

#[test]
pub(super) fn registers_can_be_reached_through_configuration_space() {
    let mut b = bench();
    b.enable_function();
    let at = ECAM + b.capability(9, Some(5));
    let mut access = |offset: u64, size: u64, value: Option<u64>| {
        b.host.config_write(0, at + 4, 1, 4);
        b.host.config_write(0, at + 8, 4, offset);
        b.host.config_write(0, at + 12, 4, size);
        match value {
            Some(value) => {
                b.host.config_write(0, at + 16, size as u8, value);
                0
            }
            None => b.host.config_read(0, at + 16, if size == 3 { 4 } else { size as u8 }),
        }
    };
    access(0x14, 1, Some(3));
    assert_eq!(access(0x14, 1, None), 3);
    assert_eq!(access(0x2000, 4, None), 8);
    assert_eq!(access(0x2000, 3, None), 0, "bad size");
    assert_eq!(access(0x4000, 4, None), 0, "outside");
    assert_eq!(access(0x2001, 4, None), 0, "unaligned");
    access(0xffff_ffff, 0, None);
}

#[test]
pub(super) fn a_function_reset_forgets_everything() {
    let mut b = bench();
    b.start(ALL);
    offer_read(&mut b);
    b.kick(0);
    let express = b.capability(0x10, None);
    b.host.config_write(0, ECAM + express + 8, 2, 0x8000);
    assert_eq!(b.host.next_step(), None);
    assert_eq!(b.host.config_read(0, ECAM + 4, 2), 0);
    assert_eq!(b.host.mmio_read(0, REGISTERS + 0x14, 1), 0xff);
    b.start(ALL);
    offer_read(&mut b);
    b.kick(0);
    b.run();
    assert_eq!(b.take_used(0), Some((0, 513)));
}
