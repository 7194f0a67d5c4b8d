//! Packed queues: against a driver that counts without wrapping round, and with drivers that do everything wrong.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::dma::{Scatter, Segment};
use crate::virtio::Rng;
use crate::virtio::queue::Areas;

const ALL: u64 = !feature::EVENT_IDX;

/// An address that a queue alone has its ring at, and its driver and device areas.
const RING: u64 = RAM + 0x1000;
const DRIVER: u64 = RAM + 0x100;
const DEVICE: u64 = RAM + 0x200;
const TABLE: u64 = RAM + 0x2008;

/// How the driver wants to be told.
#[derive(Clone, Copy, Debug)]
enum Event {
    Always,
    Never,
    /// When the descriptor so far behind the next used one is used.
    At(u16),
}

#[derive(Clone, Debug)]
enum Op {
    /// Lengths of the readable and writable segments, and whether they are in a table.
    Offer(Vec<u32>, Vec<u32>, bool),
    Pop,
    /// So many are taken, and put back.
    PopAndPutBack(usize),
    /// The oldest, second oldest … that is taken is used, with so many bytes written.
    Push(usize, u32),
    Event(Event),
    /// The device continues from its saved state.
    Snapshot,
}

fn op() -> impl Strategy<Value = Op> {
    let lens = |most| prop::collection::vec(0..0x2_0000u32, 0..most);
    prop_oneof![
        4 => (lens(4), lens(4), any::<bool>()).prop_map(|(r, w, table)| Op::Offer(r, w, table)),
        4 => Just(Op::Pop),
        1 => (1..4usize).prop_map(Op::PopAndPutBack),
        4 => (0..4usize, prop_oneof![Just(0), any::<u32>()]).prop_map(|(n, written)| Op::Push(n, written)),
        1 => prop_oneof![
            Just(Event::Always),
            Just(Event::Never),
            (0..20u16).prop_map(Event::At),
        ].prop_map(Op::Event),
        1 => Just(Op::Snapshot),
    ]
}

/// A request as the driver remembers it.
#[derive(Clone, Debug)]
struct Sent {
    id: u16,
    slots: u64,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

/// A driver whose positions never wrap: the ring's index and wrap counter follow from them.
struct Driver {
    ram: GuestRam,
    port: DmaPort,
    queue: Virtqueue,
    features: u64,
    size: u64,
    /// Positions of the next descriptor to make available, to be taken, and to be used.
    next: u64,
    used: u64,
    ids: u16,
    offered: VecDeque<Sent>,
    taken: VecDeque<(Sent, Head)>,
    event: Event,
    event_at: u64,
}

impl Driver {
    fn new(size: u16, features: u64) -> Self {
        let ram = GuestRam::new(RAM, RAM_SIZE).unwrap();
        let port = Fabric::new(ram.clone(), None, ItsInbox::default()).port(8);
        port.set_enabled(true);
        let mut queue = Virtqueue::new(64);
        queue.areas = Areas { size, desc: RING, driver: DRIVER, device: DEVICE };
        assert!(queue.enable(features));
        Self {
            ram,
            port,
            queue,
            features,
            size: size.into(),
            next: 0,
            used: 0,
            ids: 0,
            offered: VecDeque::new(),
            taken: VecDeque::new(),
            event: Event::Always,
            event_at: 0,
        }
    }

    fn wrap(&self, position: u64) -> bool {
        (position / self.size).is_multiple_of(2)
    }

    fn at(&self, position: u64) -> u64 {
        RING + position % self.size * 16
    }

    /// Offset and wrap counter as the event structures hold them.
    fn place(&self, position: u64) -> u16 {
        (position % self.size) as u16 | u16::from(self.wrap(position)) << 15
    }

    fn put(&self, at: u64, segment: Segment, id: u16, flags: u16) {
        self.ram.write(at, &segment.iova.to_le_bytes());
        self.ram.write(at + 8, &segment.len.to_le_bytes());
        self.ram.write(at + 12, &id.to_le_bytes());
        self.ram.write(at + 14, &flags.to_le_bytes());
    }

    fn ring(&self) -> Vec<u8> {
        let mut bytes = vec![0; 16 * self.size as usize];
        assert!(self.ram.read(RING, &mut bytes));
        bytes
    }

    fn offer(&mut self, readable: &[u32], writable: &[u32], table: bool) {
        let in_use = self.next - self.used;
        let segments = |lens: &[u32], base: u64| -> Vec<Segment> {
            let place = |(i, &len): (usize, &u32)| Segment { iova: base + (i as u64) * 0x10_0000, len };
            lens.iter().enumerate().map(place).collect()
        };
        let (readable, writable) = (segments(readable, self.next << 24), segments(writable, !0 << 32));
        let all: Vec<_> =
            readable.iter().map(|s| (*s, 0)).chain(writable.iter().map(|s| (*s, WRITE))).collect();
        let slots = if table { 1 } else { all.len() as u64 };
        if all.is_empty() || in_use + slots > self.size {
            return;
        }
        self.ids = self.ids.wrapping_mul(31).wrapping_add(7);
        let id = self.ids;
        let mark = |driver: &Self, position| if driver.wrap(position) { AVAIL } else { USED };
        if table {
            // One table: it is read when its request is taken, so others must not be there before that.
            if !self.offered.is_empty() {
                return;
            }
            for (i, (segment, flags)) in all.iter().enumerate() {
                // Identifiers and all other flags mean nothing here.
                self.put(TABLE + 16 * i as u64, *segment, !id, flags | !(WRITE | USED));
            }
            let table = Segment { iova: TABLE, len: 16 * all.len() as u32 };
            self.put(self.at(self.next), table, id, INDIRECT | WRITE | mark(self, self.next));
        } else {
            for (i, (segment, flags)) in all.iter().enumerate() {
                let position = self.next + i as u64;
                let last = i + 1 == all.len();
                let flags = flags | if last { 0 } else { NEXT } | mark(self, position);
                self.put(self.at(position), *segment, if last { id } else { !id }, flags);
            }
        }
        self.next += slots;
        self.offered.push_back(Sent { id, slots, readable, writable });
    }

    /// The device takes one: what the driver offered first and it has not taken.
    fn pop(&mut self) -> Option<(Sent, Head)> {
        let before = self.ring();
        let chain = self.queue.pop(&self.port).unwrap();
        assert_eq!(self.ring(), before, "looking changes nothing");
        let Some(sent) = self.offered.pop_front() else {
            assert_eq!(chain, None);
            let mut word = [0; 4];
            self.ram.read(DEVICE, &mut word);
            let asked = [u16::from_le_bytes([word[0], word[1]]), u16::from_le_bytes([word[2], word[3]])];
            let expected =
                if self.features & feature::EVENT_IDX != 0 { [self.place(self.next), 2] } else { [0, 0] };
            assert_eq!(asked, expected, "a notification is asked for");
            return None;
        };
        let list = |segments: &[Segment]| {
            let mut scatter = Scatter::default();
            segments.iter().for_each(|&s| scatter.push(s));
            scatter
        };
        let chain = chain.expect("what is available is found");
        assert_eq!((chain.head.id, u64::from(chain.head.slots)), (sent.id, sent.slots));
        assert_eq!((chain.readable, chain.writable), (list(&sent.readable), list(&sent.writable)));
        Some((sent, chain.head))
    }

    fn push(&mut self, n: usize, written: u32) {
        let Some((sent, head)) = self.taken.remove(n) else { return };
        let mut expected = self.ring();
        let at = (self.at(self.used) - RING) as usize;
        let used = if self.wrap(self.used) { AVAIL | USED } else { 0 };
        let flags = used | if written > 0 { WRITE } else { 0 };
        expected[at + 8..at + 12].copy_from_slice(&written.to_le_bytes());
        expected[at + 12..at + 14].copy_from_slice(&sent.id.to_le_bytes());
        expected[at + 14..at + 16].copy_from_slice(&flags.to_le_bytes());
        let told = self.queue.push(&self.port, head, written).unwrap();
        assert_eq!(self.ring(), expected, "one descriptor is written used, and nothing else");
        let mut passed = self.used..self.used + sent.slots;
        let wanted = match self.event {
            Event::Never => false,
            // A place is an index and one bit: it comes round again every other time.
            Event::At(_) if self.features & feature::EVENT_IDX != 0 => {
                passed.any(|p| p % (2 * self.size) == self.event_at % (2 * self.size))
            }
            _ => true,
        };
        assert_eq!(told, wanted, "at {} for {:?} {}", self.used, self.event, self.event_at);
        self.used += sent.slots;
    }

    fn set_event(&mut self, event: Event) {
        (self.event, self.event_at) = (event, self.used);
        let (place, flags) = match event {
            Event::Always => (0xffff, 0),
            Event::Never => (0xffff, 1),
            Event::At(n) => {
                self.event_at = self.used + u64::from(n) % self.size;
                (self.place(self.event_at), 2)
            }
        };
        // The other flags are reserved.
        self.ram.write(DRIVER, &u32::to_le_bytes(u32::from(place) | (flags | 0xfffc) << 16));
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Offer(readable, writable, table) => self.offer(readable, writable, *table),
            Op::Pop => {
                let taken = self.pop();
                self.taken.extend(taken);
            }
            Op::PopAndPutBack(n) => {
                let taken: Vec<_> = (0..*n).map_while(|_| self.pop()).collect();
                for (sent, head) in taken.into_iter().rev() {
                    self.queue.put_back(head);
                    self.offered.push_front(sent);
                }
            }
            Op::Push(n, written) => self.push(*n, *written),
            Op::Event(event) => self.set_event(*event),
            Op::Snapshot => {
                let saved = self.queue.save();
                self.queue = Virtqueue::new(64);
                self.queue.restore(&saved).unwrap();
                assert_eq!(self.queue.save(), saved);
                assert!(Virtqueue::new(32).restore(&saved).is_ok() == (self.size <= 32));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_driver_that_does_not_wrap_agrees(
        size in 1u16..=40,
        event_idx in any::<bool>(),
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let features = feature::RING_PACKED | feature::INDIRECT_DESC
            | if event_idx { feature::EVENT_IDX } else { 0 };
        let mut driver = Driver::new(size, features);
        ops.iter().for_each(|op| driver.apply(op));
    }
}

fn disk() -> Blk {
    Blk::new(Box::new(MemoryBackend { data: vec![7; 64 * 512], ..MemoryBackend::default() }))
}

/// A fresh bench of each device, with packed rings.
fn devices() -> [fn() -> Bench; 4] {
    [
        || Bench::packed(disk()),
        || Bench::packed(Console::new()),
        || Bench::packed(Net::new([2, 0, 0, 0, 0, 1])),
        || Bench::packed(Rng::new(1)),
    ]
}

/// A read of a sector.
fn offer_read(b: &mut Bench) {
    let (head, data) = (b.page(0), b.page(8));
    b.write(head, &[0; 16]);
    b.chain(0, 0, &[(head, 16, false), (data, 512, true), (data + 0x800, 1, true)]);
    b.offer(0, 0);
}

#[test]
fn is_offered_where_it_is_asked_for() {
    for (mut b, expected) in [(Bench::new(disk()), 0), (Bench::packed(disk()), feature::RING_PACKED)] {
        assert_eq!(b.start(ALL) & feature::RING_PACKED, expected);
        offer_read(&mut b);
        b.kick(0);
        b.run();
        assert_eq!(b.take_used(0), Some((0, 513)));
        // A driver that does not know packed rings gets split ones.
        b.start(ALL & !feature::RING_PACKED);
        offer_read(&mut b);
        b.write(b.ring(0, 2), &[0; 4]);
        b.kick(0);
        b.run();
        assert_eq!(b.take_used(0), Some((0, 513)));
    }
}

#[test]
fn every_device_works_many_times_round_the_ring() {
    for features in [ALL, u64::MAX] {
        let mut b = Bench::packed(disk());
        b.start(features);
        for _ in 0..300 {
            offer_read(&mut b);
            b.kick(0);
            b.run();
            assert_eq!(b.take_used(0), Some((0, 513)));
        }
        assert_eq!(b.read(b.page(8), 512), [7; 512]);
        let mut b = Bench::packed(Console::new());
        b.start(features);
        for n in 0..600u32 {
            b.write(b.page(0), &n.to_le_bytes());
            assert_eq!(b.request(1, &[(b.page(0), 2, false), (b.page(0) + 2, 2, false)]), Some((0, 0)));
            assert_eq!(b.host.with_device(SLOT, Console::take_output), Some(n.to_le_bytes().to_vec()));
        }
        let mut b = Bench::packed(Rng::new(5));
        b.start(features);
        for _ in 0..30 {
            assert_eq!(b.request(0, &[(b.page(0), 64, true)]), Some((0, 64)));
        }
    }
}

#[test]
fn a_frame_waits_for_all_its_buffers_and_takes_them() {
    let mut b = Bench::packed(Net::new([2, 0, 0, 0, 0, 1]));
    b.start(ALL);
    for _ in 0..100 {
        let (now, frame) = (b.now, (0..200).collect::<Vec<u8>>());
        b.host.with_device(SLOT, |n: &mut Net| n.receive(now, &frame));
        // Two buffers are not enough: they are put back. The second has two descriptors.
        for (head, list) in [
            (3, vec![(b.page(0), 100, true)]),
            (1, vec![(b.page(1), 40, true), (b.page(2), 10, true)]),
            (2, vec![(b.page(3), 100, true)]),
        ] {
            b.run();
            assert_eq!(b.take_used(0), None);
            b.chain(0, head, &list);
            b.offer(0, head);
            b.kick(0);
        }
        b.run();
        assert_eq!(
            [b.take_used(0), b.take_used(0), b.take_used(0)],
            [Some((3, 100)), Some((1, 50)), Some((2, 62))]
        );
        assert_eq!(b.read(b.page(0) + 12, 88), frame[..88]);
        assert_eq!(b.read(b.page(3), 62), frame[138..]);
    }
}

#[test]
fn bus_mastering_or_the_device_can_go_at_any_step() {
    for (stop, reset) in (0..12).flat_map(|stop| [(stop, false), (stop, true)]) {
        let mut b = Bench::packed(disk());
        b.start(ALL);
        offer_read(&mut b);
        b.kick(0);
        for _ in 0..stop {
            b.now = b.now.max(b.host.next_step().unwrap());
            b.host.step(b.now);
        }
        if reset {
            b.start(ALL);
            offer_read(&mut b);
            b.kick(0);
        } else {
            b.host.config_write(0, ECAM + 4, 2, u64::from(COMMAND_MEMORY));
            assert_eq!(b.host.next_step(), None);
            b.host.config_write(0, ECAM + 4, 2, u64::from(COMMAND_MEMORY | COMMAND_MASTER));
        }
        b.run();
        assert_eq!(b.take_used(0), Some((0, 513)));
        assert_eq!(b.take_used(0), None);
    }
}

#[test]
fn one_queue_can_be_reset() {
    let mut b = Bench::packed(disk());
    b.start(ALL);
    for _ in 0..2 {
        offer_read(&mut b);
        b.kick(0);
        b.set(0x16, 2, 0);
        b.set(0x3a, 2, 1);
        b.run();
        assert_eq!((b.get(0x3a, 2), b.get(0x1c, 2)), (0, 0));
        b.set_up_queue(0);
        offer_read(&mut b);
        b.kick(0);
        b.run();
        assert_eq!(b.take_used(0), Some((0, 513)), "it begins at the start of the ring again");
    }
}

#[test]
fn queues_keep_to_their_rules() {
    let mut b = Bench::packed(disk());
    b.enable_function();
    b.negotiate(ALL);
    b.set(0x16, 2, 0);
    for bad in [0, 257, 0xffff] {
        b.set(0x18, 2, bad);
        assert_eq!(b.get(0x18, 2), 256);
    }
    // Sizes need not be powers of two (virtio 1.3 §2.8.10.1).
    b.set(0x18, 2, 5);
    assert_eq!(b.get(0x18, 2), 5);
    b.sizes[0] = 5;
    b.set_up_queue(0);
    b.set(0x14, 1, 15);
    for _ in 0..20 {
        offer_read(&mut b);
        b.kick(0);
        b.run();
        assert_eq!(b.take_used(0), Some((0, 513)));
    }
    for (area, misaligned) in [(0, 8), (1, 2), (2, 2)] {
        b.negotiate(ALL);
        for i in 0..3 {
            b.set(0x20 + 8 * i, 8, b.ring(0, i) + if i == area { misaligned } else { 0 });
        }
        b.set(0x1c, 2, 1);
        assert_eq!((b.get(0x1c, 2), b.status() & 64), (0, 64), "area {area}");
    }
}

/// Lets `break_it` write to the ring of each device's last queue: the device must need a reset, say so, and work after
/// one.
fn breaks(features: u64, break_it: impl Fn(&mut Bench, usize)) {
    for bench in devices() {
        let mut b = bench();
        let q = b.sizes.len() - 1;
        b.start(features);
        break_it(&mut b, q);
        b.kick(q);
        b.run();
        assert_eq!(b.status() & 64, 64, "needs a reset");
        assert_eq!(b.interrupts(), [0x100]);
        b.kick(q);
        assert_eq!(b.run(), 0);
        b.start(features);
        assert_eq!(b.status(), 15);
    }
}

#[test]
fn broken_lists_stop_the_device() {
    let put = |b: &mut Bench, q, index, address, len, flags| {
        b.descriptor(b.ring(q, 0), index, address, len, index, flags);
    };
    // Round the whole ring.
    breaks(ALL, |b, q| {
        (0..b.sizes[q]).for_each(|i| put(b, q, i, b.page(0), 1, NEXT | WRITE | AVAIL));
    });
    // On into what is not available, or was in another round.
    for mark in [0, USED, AVAIL | USED] {
        breaks(ALL, |b, q| {
            put(b, q, 0, b.page(0), 16, NEXT | AVAIL);
            put(b, q, 1, b.page(1), 16, WRITE | mark);
        });
    }
    // A readable one behind a writable one.
    breaks(ALL, |b, q| {
        put(b, q, 0, b.page(0), 16, NEXT | WRITE | AVAIL);
        put(b, q, 1, b.page(1), 16, AVAIL);
    });
    // Tables within a list, and without the feature.
    breaks(ALL, |b, q| put(b, q, 0, b.page(0), 16, NEXT | INDIRECT | AVAIL));
    breaks(ALL, |b, q| {
        put(b, q, 0, b.page(0), 16, NEXT | AVAIL);
        put(b, q, 1, b.page(0), 16, INDIRECT | AVAIL);
    });
    breaks(ALL & !feature::INDIRECT_DESC, |b, q| put(b, q, 0, b.page(0), 16, INDIRECT | AVAIL));
    // Tables of no size, of half a descriptor, too long, and where no memory is.
    for (address, len) in [
        (RAM, 0),
        (RAM, 24),
        (RAM, u32::MAX - 15),
        (RAM, 1025 * 16),
        (0, 16),
        (RAM + RAM_SIZE - 8, 16),
        (u64::MAX - 15, 32),
        (u64::MAX, 16),
    ] {
        breaks(ALL, |b, q| put(b, q, 0, address, len, INDIRECT | AVAIL));
    }
}

#[test]
fn rings_where_no_memory_is() {
    for (area, address) in (0..3).flat_map(|a| [0u64, RAM + RAM_SIZE, !0xf_ffff].map(|at| (a, at))) {
        for bench in devices() {
            let mut b = bench();
            b.enable_function();
            b.negotiate(u64::MAX);
            let q = b.sizes.len() - 1;
            b.set_up_queue(q);
            b.set(0x3a, 2, 1);
            b.run();
            b.set(0x16, 2, q as u64);
            b.set(0x1a, 2, 1);
            for i in 0..3 {
                b.set(0x20 + 8 * i, 8, if i == area { address } else { b.ring(q, i) });
            }
            b.set(0x1c, 2, 1);
            b.set(0x14, 1, 15);
            b.chain(q, 0, &[(b.page(0), 16, q == 0), (b.page(0), 1, q == 0)]);
            b.offer(q, 0);
            b.kick(q);
            b.run();
            assert_eq!(b.status() & 64, 64, "area {area} at {address:#x}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn nonsense_comes_to_rest(
        ring in prop::collection::vec(any::<(u64, u16, u16, u16)>(), 16),
        table in prop::collection::vec(any::<(u64, u16, u16, u16)>(), 4),
        marked in prop::collection::vec(any::<bool>(), 16),
        features in any::<u64>(),
    ) {
        for bench in devices() {
            let mut b = bench();
            b.start(features | feature::REQUIRED | feature::RING_PACKED);
            for q in 0..b.sizes.len() {
                for (i, &(address, len, id, flags)) in table.iter().enumerate() {
                    b.descriptor(b.page(0), i as u16, b.page(address % 64), len.into(), id, flags);
                }
                for (i, &(address, len, id, flags)) in ring.iter().enumerate() {
                    let near = b.page(address % 8);
                    let mark = if marked[i] { AVAIL } else { flags & (AVAIL | USED) };
                    let flags = flags & 7 | mark;
                    b.descriptor(b.ring(q, 0), i as u16, near, len.into(), id, flags);
                }
                b.kick(q);
                let now = b.now;
                b.host.with_device(SLOT, |c: &mut Console| c.push_input(now, &[1; 100]));
                b.host.with_device(SLOT, |n: &mut Net| n.receive(now, &[1; 100]));
                b.run();
            }
            b.start(features | feature::REQUIRED);
            assert_eq!(b.status(), 15);
        }
    }
}
