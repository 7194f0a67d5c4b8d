//! Drivers that do everything wrong.

use super::*;

const ALL: u64 = !feature::EVENT_IDX;

/// A fresh bench of each device.
fn devices() -> [fn() -> Bench; 4] {
    fn disk() -> MemoryBackend {
        MemoryBackend { data: vec![7; 64 * 512], ..MemoryBackend::default() }
    }
    [
        || Bench::new(Blk::new(Box::new(disk()))),
        || Bench::new(Console::new()),
        || Bench::new(Net::new([2, 0, 0, 0, 0, 1])),
        || Bench::new(Rng::new(1)),
    ]
}

/// Runs `offer` against every queue of every device: each has to come to rest.
fn each(features: u64, offer: impl Fn(&mut Bench, usize)) {
    for bench in devices() {
        for q in 0..bench().sizes.len() {
            let mut b = bench();
            b.start(features);
            offer(&mut b, q);
            let now = b.now;
            b.host.with_device(SLOT, |c: &mut Console| c.push_input(now, &[1; 100]));
            b.host.with_device(SLOT, |n: &mut Net| n.receive(now, &[1; 100]));
            b.kick(q);
            b.run();
            // A reset makes it usable again.
            b.start(features);
            assert_eq!(b.status(), 15);
            assert_eq!(b.pool.as_ref().map_or(0, |pool| pool.stats().used), 0, "no slot is lost");
        }
    }
}

#[test]
pub(super) fn chains_without_an_end() {
    for flags in [NEXT, NEXT | WRITE, INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE | NEXT, 0xffff] {
        each(ALL, |b, q| {
            // A loop of one, of two, out of the table, and a table that contains itself.
            let ring = b.ring(q, 0);
            b.descriptor(ring, 0, b.page(0), 16, flags, 0);
            b.descriptor(ring, 1, ring, 32, flags, 2);
            b.descriptor(ring, 2, ring, 0x10_0000, flags, 1);
            b.descriptor(ring, 3, b.page(0), 1, flags, 0xffff);
            (0..4).for_each(|head| b.offer(q, head));
        });
    }
}

#[test]
pub(super) fn addresses_and_lengths_from_nowhere() {
    for (address, len) in [
        (0, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 15, 32),
        (RAM + RAM_SIZE - 8, 16),
        (RAM, u32::MAX),
        (RAM + 0x10_0000, 0),
        (GITS_TRANSLATER, 4),
        (GITS_TRANSLATER - 4, 64),
    ] {
        for flags in [0, WRITE, INDIRECT] {
            each(ALL, |b, q| {
                b.descriptor(b.ring(q, 0), 0, address, len, flags, 0);
                b.descriptor(b.ring(q, 0), 1, b.page(0), 16, NEXT, 2);
                b.descriptor(b.ring(q, 0), 2, address, len, NEXT | WRITE, 3);
                b.descriptor(b.ring(q, 0), 3, b.page(1), 1, WRITE, 0);
                b.offer(q, 0);
                b.offer(q, 1);
            });
        }
    }
}

#[test]
pub(super) fn rings_with_nonsense_in_them() {
    for index in [300, 0x8000, 0xffff] {
        each(u64::MAX, |b, q| b.write(b.ring(q, 1) + 2, &u16::to_le_bytes(index)));
        each(u64::MAX, |b, q| {
            b.write(b.ring(q, 1) + 4, &u16::to_le_bytes(index));
            b.write(b.ring(q, 1) + 2, &1u16.to_le_bytes());
        });
    }
}

#[test]
pub(super) fn a_broken_chain_stops_the_device() {
    for bench in devices() {
        let mut b = bench();
        // The last queue of each device is one that it takes requests from without other input.
        let q = b.sizes.len() - 1;
        b.start(ALL);
        // A readable descriptor after a writable one.
        b.chain(q, 0, &[(b.page(0), 16, false), (b.page(1), 16, true), (b.page(2), 16, false)]);
        b.offer(q, 0);
        b.kick(q);
        b.run();
        assert_eq!(b.status() & 64, 64, "needs a reset");
        assert_eq!(b.interrupts(), [0x100], "a configuration change says so");
        b.offer(q, 0);
        b.kick(q);
        assert_eq!(b.run(), 0, "and nothing happens until then");
    }
}

#[test]
pub(super) fn rings_where_no_memory_is() {
    for address in [0u64, 0x1000, RAM + RAM_SIZE, !0xfff, !0xf_ffff] {
        for area in 0..3 {
            for bench in devices() {
                let mut b = bench();
                b.enable_function();
                b.negotiate(ALL);
                for q in 0..b.sizes.len() {
                    b.set(0x16, 2, q as u64);
                    for i in 0..3 {
                        let good = b.ring(q, i);
                        b.set(0x20 + 8 * i, 8, if i == area { address } else { good });
                    }
                    b.set(0x1c, 2, 1);
                    b.chain(q, 0, &[(b.page(0), 16, true)]);
                    b.offer(q, 0);
                }
                b.set(0x14, 1, 15);
                b.run();
            }
        }
    }
}

/// A register access that a guest might make.
fn poke(b: &mut Bench, offset: u64, size: u8, value: u64) {
    b.set(offset, size, value);
    b.get(offset, size);
    for _ in 0..50 {
        let Some(at) = b.host.next_step() else { break };
        b.now = b.now.max(at);
        b.host.step(b.now);
    }
}

mod random {
    use super::*;
    use proptest::prelude::*;

    fn size() -> impl Strategy<Value = u8> {
        prop::sample::select(vec![1u8, 2, 4, 8])
    }

    /// Mostly addresses and values that get somewhere.
    fn value() -> impl Strategy<Value = u64> {
        prop_oneof![
            0u64..20,
            (0u64..0x400).prop_map(|n| RAM + n * 0x1000),
            any::<u64>(),
            prop::sample::select(vec![15, 0xffff, 0x100, 1 << 31, u64::MAX]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn registers(accesses in prop::collection::vec((0u64..0x3020, size(), value()), 1..100), ready in any::<bool>()) {
            for bench in devices() {
                let mut b = bench();
                if ready { b.start(u64::MAX); } else { b.enable_function(); }
                for &(offset, size, value) in &accesses {
                    let offset = if value % 3 == 0 { offset % 0x40 } else { offset };
                    poke(&mut b, offset / u64::from(size) * u64::from(size), size, value);
                }
            }
        }

        #[test]
        fn configuration_space(accesses in prop::collection::vec((0u64..0x110, size(), value()), 1..100)) {
            for bench in devices() {
                let mut b = bench();
                b.start(u64::MAX);
                for &(offset, size, value) in &accesses {
                    b.host.config_write(0, ECAM + offset, size, value);
                    b.host.config_read(0, ECAM + offset, size);
                    b.host.mmio_read(0, REGISTERS + offset, size);
                    b.host.mmio_write(0, MSIX_BASE + offset, size, value);
                }
                for _ in 0..100 {
                    let Some(at) = b.host.next_step() else { break };
                    b.now = b.now.max(at);
                    b.host.step(b.now);
                }
            }
        }

        #[test]
        fn queue_memory(
            descriptors in prop::collection::vec((value(), any::<u16>(), 0u16..8, 0u16..12), 8),
            indirect in prop::collection::vec((value(), any::<u16>(), 0u16..8, 0u16..12), 8),
            heads in prop::collection::vec(0u16..10, 1..8),
            data in prop::collection::vec(any::<u8>(), 64),
            features in any::<u64>(),
        ) {
            for bench in devices() {
                let mut b = bench();
                b.start(features | feature::REQUIRED);
                for page in 0..0x400u64 {
                    if page % 64 == 0 { b.write(RAM + page * 0x1000, &data); }
                }
                for q in 0..b.sizes.len() {
                    for (table, content) in [(b.ring(q, 0), &descriptors), (b.page(0), &indirect)] {
                        for (i, &(address, len, flags, next)) in content.iter().enumerate() {
                            b.descriptor(table, i as u16, address, len.into(), flags, next);
                        }
                    }
                    for &head in &heads { b.offer(q, head % b.sizes[q]); }
                    b.kick(q);
                    let now = b.now;
                    b.host.with_device(SLOT, |c: &mut Console| c.push_input(now, &data));
                    b.host.with_device(SLOT, |n: &mut Net| n.receive(now, &data));
                    b.run();
                    b.host.with_device(SLOT, Console::take_output);
                    b.host.with_device(SLOT, Net::take_sent);
                }
                b.run();
            }
        }
    }
}
