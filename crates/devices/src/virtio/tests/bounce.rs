//! Bounced devices. What holds of direct ones holds of them; and what does not, on purpose.

use super::*;
use crate::bounce::{BounceStats, PoolStats};

const ALL: u64 = !feature::EVENT_IDX;

const POOL: PoolConfig = PoolConfig { start: 1 << 40, bytes: 1 << 20, dynamic: 0, restricted: false };

/// Runs a test with bounced devices.
fn bounced(config: PoolConfig, test: fn()) {
    BOUNCED.set(Some(config));
    test();
}

/// The tests of direct devices, again.
#[test]
fn a_bounced_disk_is_a_disk() {
    for test in [
        blk::reads_over_pages_and_odd_segments,
        blk::a_read_larger_than_a_chunk,
        blk::writes_and_flushes,
        blk::header_data_and_status_may_share_descriptors,
        blk::errors_of_a_request_are_the_drivers_to_see,
        blk::read_only_and_broken_disks,
        blk::discard_and_write_zeroes,
        blk::forty_requests_at_once_with_event_indices_and_indirect_tables,
        blk::the_rings_wrap_and_interrupts_can_be_suppressed,
        blk::a_saved_state_has_the_same_future,
    ] {
        bounced(POOL, test);
    }
}

#[test]
fn other_bounced_devices_do_what_they_do() {
    for test in [
        others::the_console_carries_bytes_both_ways,
        others::the_console_does_not_hoard,
        others::entropy_follows_from_the_seed,
        others::frames_go_out_without_their_header,
        others::frames_come_in_whole_or_spread_over_buffers,
        others::frames_that_do_not_fit_are_dropped,
    ] {
        bounced(POOL, test);
    }
}

#[test]
fn bounced_devices_are_translated() {
    for test in [
        smmu::rings_data_and_interrupts_are_translated,
        smmu::every_device_works_through_it,
        smmu::what_is_not_mapped_is_an_error_of_the_request_or_the_device,
        smmu::no_transaction_outlives_a_reset_or_the_loss_of_bus_mastering,
        smmu::a_device_waits_while_a_fault_stalls,
    ] {
        bounced(POOL, test);
    }
}

#[test]
fn bounced_devices_can_be_stopped_and_reset_at_any_step() {
    for test in [
        transport::nothing_moves_before_the_driver_is_ready_or_without_bus_mastering,
        transport::bus_mastering_can_be_taken_away_at_any_step,
        transport::a_reset_takes_effect_later_and_at_any_step,
        transport::one_queue_can_be_reset,
        transport::a_function_reset_forgets_everything,
    ] {
        bounced(POOL, test);
    }
}

#[test]
fn drivers_that_do_everything_wrong_do_not_hurt_the_pool() {
    for config in [POOL, PoolConfig { bytes: 8 << 10, ..POOL }] {
        for test in [
            hostile::chains_without_an_end,
            hostile::addresses_and_lengths_from_nowhere,
            hostile::rings_with_nonsense_in_them,
            hostile::a_broken_chain_stops_the_device,
            hostile::rings_where_no_memory_is,
        ] {
            bounced(config, test);
        }
    }
}

fn disk() -> Blk {
    Blk::new(Box::new(MemoryBackend { data: vec![7; 2048 * 512], ..MemoryBackend::default() }))
}

fn bench(config: PoolConfig) -> Bench {
    BOUNCED.set(Some(config));
    let mut b = Bench::new(disk());
    b.start(ALL);
    b.run();
    b
}

fn counts(b: &Bench) -> (PoolStats, BounceStats) {
    let (_, function) = b.host.functions().find(|(slot, _)| *slot == SLOT).unwrap();
    (b.pool.as_ref().unwrap().stats(), function.port().unwrap().bounce().unwrap().stats())
}

fn step(b: &mut Bench) {
    b.now = b.now.max(b.host.next_step().unwrap());
    b.host.step(b.now);
}

/// Offers a request for `len` bytes at page 8: a read, or a write.
fn offer(b: &mut Bench, kind: u32, len: u32) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    b.write(b.page(0), &header);
    b.write(b.page(1), &[0xff]);
    b.chain(0, 0, &[(b.page(0), 16, false), (b.page(8), len, kind == 0), (b.page(1), 1, true)]);
    b.offer(0, 0);
    b.kick(0);
}

#[test]
fn the_driver_sees_what_a_device_without_coherence_shows() {
    // A read: nothing of it is in memory before the request is unmapped, then all of it is.
    let mut b = bench(POOL);
    offer(&mut b, 0, 0x1000);
    let mut most = 0;
    while counts(&b).1.bytes_out == 0 {
        assert_eq!(b.read(b.page(8), 0x1000), [0; 0x1000]);
        most = most.max(counts(&b).0.used);
        step(&mut b);
    }
    assert_eq!(most, 4, "the header, two slots of data, the status");
    assert_eq!(b.read(b.page(8), 0x1000), [7; 0x1000]);
    b.run();
    assert_eq!(b.take_used(0), Some((0, 0x1001)));
    // A write: what the driver writes after the request was mapped does not reach the disk.
    b.write(b.page(8), &[1; 0x1000]);
    offer(&mut b, 1, 0x1000);
    let before = counts(&b).1.bytes_in;
    while counts(&b).1.bytes_in < before + 16 + 0x1000 {
        step(&mut b);
    }
    b.write(b.page(8), &[2; 0x1000]);
    b.run();
    assert_eq!(b.take_used(0), Some((0, 1)));
    offer(&mut b, 0, 0x1000);
    b.run();
    assert_eq!(b.read(b.page(8), 0x1000), [1; 0x1000]);
    let (pool, device) = counts(&b);
    assert_eq!((pool.used, device.used, device.used_hiwater), (0, 0, 4));
    assert_eq!((device.bytes_in, device.bytes_out), (3 * 16 + 0x1000, 2 * 0x1000 + 3));
}

#[test]
fn what_the_device_does_not_write_is_not_copied_out() {
    let mut b = bench(POOL);
    b.write(b.page(8), &[9; 0x1000]);
    // The disk ends before the request does: it has a status, and no data.
    let mut header = [0; 16];
    header[8..].copy_from_slice(&2048u64.to_le_bytes());
    b.write(b.page(0), &header);
    let used = b.request(0, &[(b.page(0), 16, false), (b.page(8), 0x1000, true), (b.page(1), 1, true)]);
    assert_eq!(used, Some((0, 0)));
    assert_eq!((b.read(b.page(1), 1), b.read(b.page(8), 0x1000)), (vec![1], vec![9; 0x1000]));
    assert_eq!(counts(&b).0.used, 0);
}

#[test]
fn a_request_larger_than_the_pool_fails_as_virtio_has_it() {
    let mut b = bench(PoolConfig { bytes: 64 << 10, ..POOL });
    for kind in [0, 1] {
        offer(&mut b, kind, 64 << 10);
        b.run();
        assert_eq!(b.take_used(0), Some((0, 0)));
        assert_eq!(b.read(b.page(1), 1), [1], "VIRTIO_BLK_S_IOERR");
        offer(&mut b, kind, 60 << 10);
        b.run();
        assert_eq!(b.read(b.page(1), 1), [0], "one that fits goes on");
        b.take_used(0);
    }
    let (pool, device) = counts(&b);
    assert_eq!((pool.used, device.used, device.failures), (0, 0, 2));
    assert_eq!(b.status(), 15);
}

thread_local! {
    /// What the device has logged in this test.
    static LOGGED: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Keeps the lines of each test.
struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// What the driver sees of a request that cannot be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    /// VIRTIO_BLK_S_IOERR.
    Error,
    /// DEVICE_NEEDS_RESET.
    NeedsReset,
}

#[test]
fn what_cannot_be_is_an_error_to_the_driver_and_a_line_in_the_log_and_costs_no_slot() {
    let _ = log::set_logger(&Lines);
    log::set_max_level(log::LevelFilter::Warn);
    let held = |b: &Bench| {
        let other = b.pool.as_ref().unwrap().bounce().unwrap();
        let memory = vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(vm_memory::GuestAddress(0), 4096)]);
        let memory = memory.unwrap();
        let map = |_| other.device().map(&memory, 0, 2048, &swiotlb::Attributes::default()).unwrap();
        (0..6).map(map).for_each(drop);
    };
    type Offer<'a> = &'a dyn Fn(&mut Bench);
    // A header, and data that the device writes or reads somewhere outside memory.
    let outside = |b: &mut Bench, kind: u8, at: u64| {
        b.write(b.page(0), &[0; 16]);
        b.write(b.page(0), &[kind]);
        b.chain(0, 0, &[(b.page(0), 16, false), (at, 512, kind == 0), (b.page(1), 1, true)]);
        b.offer(0, 0);
        b.kick(0);
    };
    let cases: [(&str, usize, Offer<'_>, Seen, &str); 7] = [
        ("too large", 0, &|b| offer(b, 0, 64 << 10), Seen::Error, "is larger than the bounce pool"),
        (
            "exhausted",
            6,
            &|b| {
                held(b);
                offer(b, 1, 8192);
            },
            Seen::Error,
            "the bounce pool stays full",
        ),
        (
            "a loop",
            0,
            &|b| {
                b.descriptor(b.ring(0, 0), 0, b.page(0), 16, NEXT, 1);
                b.descriptor(b.ring(0, 0), 1, b.page(8), 512, NEXT, 0);
                b.offer(0, 0);
                b.kick(0);
            },
            Seen::NeedsReset,
            "needs a reset",
        ),
        (
            "a header outside memory",
            0,
            &|b| {
                let outside = RAM + RAM_SIZE;
                b.chain(0, 0, &[(outside, 16, false), (b.page(8), 512, true), (b.page(1), 1, true)]);
                b.offer(0, 0);
                b.kick(0);
            },
            Seen::NeedsReset,
            "needs a reset",
        ),
        (
            "a write from outside memory",
            0,
            &|b| outside(b, 1, RAM + RAM_SIZE),
            Seen::Error,
            "a request fails: no memory at the physical address",
        ),
        (
            "a read to outside memory",
            0,
            &|b| outside(b, 0, RAM + RAM_SIZE),
            Seen::Error,
            "a request fails: no memory at the physical address",
        ),
        (
            "a write from the end of the address space",
            0,
            &|b| outside(b, 1, u64::MAX - 100),
            Seen::Error,
            "a request fails: address range wraps",
        ),
    ];
    for (what, held, offer, seen, line) in cases {
        let mut b = bench(PoolConfig { bytes: 16 << 10, ..POOL });
        LOGGED.take();
        offer(&mut b);
        b.run();
        match seen {
            Seen::Error => assert_eq!((b.read(b.page(1), 1)[0], b.status()), (1, 15), "{what}"),
            Seen::NeedsReset => assert_eq!(b.status() & 64, 64, "{what}"),
        }
        let lines = LOGGED.take();
        assert!(lines.len() == 1 && lines[0].contains(line), "{what}: {lines:?}");
        // With a reset, if it needs one, all is as before.
        b.start(ALL);
        let (pool, device) = counts(&b);
        assert_eq!((pool.used, device.used), (held, 0), "{what}");
    }
}

/// Eight disk reads of 40 KiB at once, all of which succeed.
fn eight_reads(b: &mut Bench) {
    b.write(b.page(0), &[0; 16]);
    for n in 0..8 {
        let page = b.page(u64::from(n) * 16 + 16);
        b.chain(
            0,
            n * 3,
            &[(b.page(0), 16, false), (page, 40 << 10, true), (b.page(1) + u64::from(n), 1, true)],
        );
        b.offer(0, n * 3);
    }
    b.kick(0);
    b.run();
    assert_eq!(b.read(b.page(1), 8), [0; 8]);
}

#[test]
fn requests_wait_for_slots() {
    let mut b = bench(PoolConfig { bytes: 64 << 10, ..POOL });
    eight_reads(&mut b);
    let (pool, device) = counts(&b);
    assert!(device.waits > 0 && device.failures == 0, "{device:?}");
    assert_eq!((pool.used, pool.used_hiwater, b.read16(b.ring(0, 2) + 2)), (0, 22, 8));
}

#[test]
fn a_pool_that_stays_full_is_an_error_in_the_end() {
    // Another device holds all but two slots.
    let mut b = bench(PoolConfig { bytes: 16 << 10, ..POOL });
    let other = b.pool.as_ref().unwrap().bounce().unwrap();
    let attributes = swiotlb::Attributes::default();
    for _ in 0..6 {
        let memory = vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(vm_memory::GuestAddress(0), 4096)]);
        other.device().map(&memory.unwrap(), 0, 2048, &attributes).unwrap();
    }
    offer(&mut b, 0, 4096);
    b.run();
    assert_eq!(b.read(b.page(1), 1), [1], "VIRTIO_BLK_S_IOERR");
    let (pool, device) = counts(&b);
    assert_eq!((pool.used, device.used, device.waits, device.failures), (6, 0, 1, 1));
    // Without room even for a status, the device needs a reset.
    let memory =
        vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(vm_memory::GuestAddress(0), 4096)]).unwrap();
    for _ in 0..2 {
        other.device().map(&memory, 0, 2048, &attributes).unwrap();
    }
    offer(&mut b, 0, 4096);
    b.run();
    assert_eq!(b.status() & 64, 64);
}

#[test]
fn a_dynamic_pool_grows_up_to_its_limit() {
    let mut b = bench(PoolConfig { bytes: 64 << 10, dynamic: 128 << 10, ..POOL });
    eight_reads(&mut b);
    let (pool, _) = counts(&b);
    assert_eq!((pool.pools, pool.slots, pool.used), (3, 96, 0));
    // It is the same after it has been saved.
    let saved = b.pool.as_ref().unwrap().save();
    let other = Pool::new(&PoolConfig { bytes: 64 << 10, dynamic: 128 << 10, ..POOL }).unwrap();
    other.restore(&saved).unwrap();
    assert_eq!(other.save(), saved);
    assert!(Pool::new(&POOL).unwrap().restore(&saved).is_err());
}

#[test]
fn a_reset_or_removal_at_any_step_returns_all_slots() {
    for (what, stops) in [(0u8, 0..40), (1, 0..40), (2, 0..40), (3, 0..40)] {
        for stop in stops {
            let mut b = bench(POOL);
            let (_, function) = b.host.functions().find(|(slot, _)| *slot == SLOT).unwrap();
            let watch = function.port().unwrap().bounce().unwrap().shared_counters();
            offer(&mut b, 0, 0x4000);
            for _ in 0..stop {
                if b.host.next_step().is_some() {
                    step(&mut b);
                }
            }
            match what {
                0 => b.set(0x14, 1, 0),
                1 => {
                    b.set(0x16, 2, 0);
                    b.set(0x3a, 2, 1);
                }
                2 => b.host.reset(b.now),
                // It is taken out, and another device is in its place.
                _ => b.host.add(SLOT, |port| Box::new(VirtioPci::new(port, disk(), Timing::default()))),
            }
            b.run();
            let pool = b.pool.as_ref().unwrap().stats();
            assert_eq!((pool.used, watch.get().used), (0, 0), "reset {what} after {stop} steps");
        }
    }
}

#[test]
fn a_restricted_pool_is_one_devices_own() {
    let pool = Pool::new(&PoolConfig { restricted: true, ..POOL }).unwrap();
    let first = pool.bounce().unwrap();
    assert!(pool.bounce().is_err());
    drop(first);
    assert!(pool.bounce().is_ok());
}
