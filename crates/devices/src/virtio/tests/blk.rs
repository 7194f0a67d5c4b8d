//! The block device.

use super::*;

const EVENT_IDX: u64 = feature::EVENT_IDX;
const ALL: u64 = !EVENT_IDX;

fn disk(sectors: usize) -> MemoryBackend {
    let data = (0..sectors * 512).map(|i| (i / 512 * 31 + i) as u8).collect();
    MemoryBackend { data, ..MemoryBackend::default() }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[0..4].copy_from_slice(&kind.to_le_bytes());
    header[8..16].copy_from_slice(&sector.to_le_bytes());
    header
}

/// One request with its data in `data`; returns the status and the length in the used ring.
fn submit(b: &mut Bench, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
    let (head, status) = (b.page(0), b.page(1));
    b.write(head, &header(kind, sector));
    b.write(status, &[0xff]);
    let mut chain = vec![(head, 16, false)];
    chain.extend_from_slice(data);
    chain.push((status, 1, true));
    let (index, len) = b.request(0, &chain).expect("the request is used");
    assert_eq!(index, 0);
    (b.read(status, 1)[0], len)
}

#[test]
pub(super) fn reads_over_pages_and_odd_segments() {
    let content = disk(64).data;
    let mut b = Bench::new(Blk::new(Box::new(disk(64))));
    b.start(ALL);
    let data = b.page(8);
    let segments = [(data + 0xf01, 0x205, true), (data + 0x3000, 0x1, true), (data + 0x5000, 0x1dfa, true)];
    assert_eq!(submit(&mut b, 0, 3, &segments), (0, 0x2001));
    let mut back = b.read(data + 0xf01, 0x205);
    back.extend(b.read(data + 0x3000, 1));
    back.extend(b.read(data + 0x5000, 0x1dfa));
    assert_eq!(back, content[3 * 512..][..0x2000]);
    assert_eq!(b.interrupts(), [0x101]);
    assert_eq!(b.get(0x1000, 1), 1, "ISR");
    assert_eq!(b.get(0x1000, 1), 0, "reading clears it");
}

#[test]
pub(super) fn a_read_larger_than_a_chunk() {
    let content = disk(1024).data;
    let mut b = Bench::new(Blk::new(Box::new(disk(1024))));
    b.start(ALL);
    let data = b.page(8);
    assert_eq!(submit(&mut b, 0, 0, &[(data, 512 << 10, true)]), (0, (512 << 10) + 1));
    assert_eq!(b.read(data, 512 << 10), content);
}

#[test]
pub(super) fn writes_and_flushes() {
    let mut b = Bench::new(Blk::new(Box::new(disk(1024))));
    b.start(ALL);
    let data = b.page(8);
    let bytes: Vec<u8> = (0..400 * 512).map(|i| (i * 3 + i / 256) as u8).collect();
    b.write(data, &bytes);
    assert_eq!(
        submit(&mut b, 1, 5, &[(data, 300 * 512, false), (data + 300 * 512, 100 * 512, false)]),
        (0, 1)
    );
    assert_eq!(submit(&mut b, 4, 0, &[]), (0, 1));
    assert_eq!(submit(&mut b, 0, 5, &[(data + 0x4_0000, 400 * 512, true)]), (0, 400 * 512 + 1));
    assert_eq!(b.read(data + 0x4_0000, bytes.len()), bytes);
}

#[test]
pub(super) fn header_data_and_status_may_share_descriptors() {
    let mut b = Bench::new(Blk::new(Box::new(disk(8))));
    b.start(ALL);
    // Header and data in one readable buffer split at odd places, then a read whose status follows its data.
    let page = b.page(8);
    b.write(page, &header(1, 2));
    b.write(page + 16, &[0xa5; 512]);
    assert_eq!(
        b.request(0, &[(page, 7, false), (page + 7, 521, false), (page + 0x800, 1, true)]),
        Some((0, 1))
    );
    assert_eq!(b.read(page + 0x800, 1), [0]);
    b.write(page, &header(0, 2));
    assert_eq!(b.request(0, &[(page, 16, false), (page + 0x800, 513, true)]), Some((0, 513)));
    assert_eq!(b.read(page + 0x800, 513), [&[0xa5; 512][..], &[0]].concat());
}

#[test]
pub(super) fn errors_of_a_request_are_the_drivers_to_see() {
    let mut b = Bench::new(Blk::new(Box::new(disk(8))).with_id("serial"));
    b.start(ALL);
    let data = b.page(8);
    assert_eq!(submit(&mut b, 0, 8, &[(data, 512, true)]).0, 1, "past the end");
    assert_eq!(submit(&mut b, 0, u64::MAX, &[(data, 512, true)]).0, 1);
    assert_eq!(submit(&mut b, 0, u64::MAX / 512, &[(data, 1024, true)]).0, 1);
    assert_eq!(submit(&mut b, 0, 0, &[(data, 100, true)]), (1, 0), "not a sector; nothing before the status");
    assert_eq!(submit(&mut b, 77, 0, &[]).0, 2, "unknown");
    assert_eq!(submit(&mut b, 0, 0, &[(0x10, 512, true)]).0, 1, "no memory there");
    assert_eq!(submit(&mut b, 1, 0, &[(u64::MAX - 100, 512, false)]).0, 1, "wraps");
    assert_eq!(submit(&mut b, 8, 0, &[(data, 20, true)]), (0, 21));
    assert_eq!(b.read(data, 8), *b"serial\0\0");
    assert_eq!(submit(&mut b, 0, 7, &[(data, 512, true)]), (0, 513), "it still works");
    assert_eq!(b.status(), 15);
}

#[test]
pub(super) fn read_only_and_broken_disks() {
    let mut b = Bench::new(Blk::new(Box::new(MemoryBackend { read_only: true, ..disk(8) })));
    assert_ne!(b.start(ALL) & 1 << 5, 0, "VIRTIO_BLK_F_RO");
    let data = b.page(8);
    for kind in [1, 11, 13] {
        assert_eq!(submit(&mut b, kind, 0, &[(data, 512, false)]).0, 1);
    }
    assert_eq!(submit(&mut b, 0, 0, &[(data, 512, true)]).0, 0);
    let mut b = Bench::new(Blk::new(Box::new(MemoryBackend { broken: true, ..disk(8) })));
    b.start(ALL);
    assert_eq!(submit(&mut b, 0, 0, &[(data, 512, true)]).0, 1);
    assert_eq!(submit(&mut b, 1, 0, &[(data, 512, false)]).0, 1);
    assert_eq!(submit(&mut b, 4, 0, &[]).0, 1);
    assert_eq!(b.status(), 15);
}

#[test]
pub(super) fn discard_and_write_zeroes() {
    let mut b = Bench::new(Blk::new(Box::new(disk(64))));
    b.start(ALL);
    let data = b.page(8);
    let range = |sector: u64, n: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &n.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    b.write(data, &range(8, 4, 0));
    assert_eq!(submit(&mut b, 11, 0, &[(data, 16, false)]).0, 0);
    b.write(data, &range(16, 4, 1));
    assert_eq!(submit(&mut b, 13, 0, &[(data, 16, false)]).0, 0);
    assert_eq!(submit(&mut b, 11, 0, &[(data, 16, false)]).0, 2, "discard has no unmap flag");
    b.write(data, &range(63, 2, 0));
    assert_eq!(submit(&mut b, 13, 0, &[(data, 16, false)]).0, 1);
    assert_eq!(submit(&mut b, 13, 0, &[(data, 15, false)]).0, 1);
    assert_eq!(submit(&mut b, 0, 7, &[(data, 14 * 512, true)]).0, 0);
    let back = b.read(data, 14 * 512);
    let zero: Vec<bool> = back.chunks(512).map(|s| s.iter().all(|&b| b == 0)).collect();
    let expected = [0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0].map(|z| z == 1);
    assert_eq!(zero, expected);
}

#[test]
pub(super) fn forty_requests_at_once_with_event_indices_and_indirect_tables() {
    let content = disk(64).data;
    let mut b = Bench::new(Blk::new(Box::new(disk(64))));
    assert_ne!(b.start(u64::MAX) & EVENT_IDX, 0);
    let tables = b.page(200);
    for i in 0..40u64 {
        let (page, table) = (b.page(10 + i), tables + i * 48);
        b.write(page, &header(0, i));
        b.descriptor(table, 0, page, 16, NEXT, 1);
        b.descriptor(table, 1, page + 512, 512, NEXT | WRITE, 2);
        b.descriptor(table, 2, page + 16, 1, WRITE, 0);
        b.descriptor(b.ring(0, 0), i as u16, table, 48, INDIRECT, 0);
        b.offer(0, i as u16);
    }
    // The driver wants to hear when all are done.
    b.write(b.ring(0, 1) + 4 + 256 * 2, &39u16.to_le_bytes());
    b.kick(0);
    b.run();
    let mut heads: Vec<u32> =
        std::iter::from_fn(|| b.take_used(0)).inspect(|u| assert_eq!(u.1, 513)).map(|u| u.0).collect();
    heads.sort_unstable();
    assert_eq!(heads, (0..40).collect::<Vec<_>>());
    for i in 0..40 {
        assert_eq!(b.read(b.page(10 + i) + 512, 512), content[i as usize * 512..][..512]);
    }
    assert_eq!(b.interrupts(), [0x101], "one interrupt for all");
    assert_eq!(b.read16(b.ring(0, 2) + 4 + 256 * 8), 40, "avail_event asks for the next");
}

#[test]
pub(super) fn the_rings_wrap_and_interrupts_can_be_suppressed() {
    let mut b = Bench::new(Blk::new(Box::new(disk(8))));
    b.start(ALL);
    b.write(b.ring(0, 1), &1u16.to_le_bytes());
    let data = b.page(8);
    for _ in 0..600 {
        assert_eq!(submit(&mut b, 0, 1, &[(data, 512, true)]), (0, 513));
    }
    assert!(b.interrupts().is_empty());
}

#[test]
pub(super) fn nothing_completes_inside_the_notification_and_beats_are_steps() {
    let mut b = Bench::new(Blk::new(Box::new(disk(64))));
    b.start(ALL);
    b.run();
    let (head, data, status) = (b.page(0), b.page(8), b.page(1));
    b.write(head, &header(0, 0));
    b.chain(0, 0, &[(head, 16, false), (data, 0x4000, true), (status, 1, true)]);
    b.offer(0, 0);
    let before = b.now;
    b.kick(0);
    assert!(b.host.next_step().unwrap() > before);
    // Look, header, medium, four data beats, status, used ring; a translation before each beat; two steps for the
    // interrupt, and the last look at the ring.
    assert_eq!(b.run(), 1 + 2 + 1 + 8 + 2 + 1 + 2 + 1);
}

#[test]
pub(super) fn a_saved_state_has_the_same_future() {
    let start = |b: &mut Bench| {
        b.start(ALL);
        let page = b.page(0);
        b.write(page, &header(0, 2));
        b.chain(0, 0, &[(page, 16, false), (b.page(8), 0x5000, true), (b.page(1), 1, true)]);
        b.offer(0, 0);
        b.kick(0);
    };
    let mut whole = Bench::new(Blk::new(Box::new(disk(64))));
    start(&mut whole);
    whole.run();
    for stop in 0..if whole.pool.is_some() { 34 } else { 20 } {
        let mut first = Bench::new(Blk::new(Box::new(disk(64))));
        start(&mut first);
        for _ in 0..stop {
            first.now = first.now.max(first.host.next_step().unwrap_or(0));
            first.host.step(first.now);
        }
        let saved = serde_json::to_string(&first.host.save()).unwrap();
        let mut second = Bench::new(Blk::new(Box::new(disk(64))));
        second.host.restore(serde_json::from_str(&saved).unwrap()).unwrap();
        if let (Some(first), Some(second)) = (&first.pool, &second.pool) {
            let saved = serde_json::to_string(&first.save()).unwrap();
            second.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
        }
        second.now = first.now;
        first.ram.for_each_nonzero_page(|offset, page| assert!(second.ram.write(RAM + offset, page)));
        second.inbox.restore(&first.inbox.save());
        second.run();
        assert_eq!(second.now, whole.now);
        assert_eq!(second.host.save(), whole.host.save());
        assert_eq!(second.pool.as_ref().map(Pool::save), whole.pool.as_ref().map(Pool::save));
        assert_eq!(second.read(b_page8(&second), 0x5000), whole.read(b_page8(&whole), 0x5000));
        assert_eq!(second.interrupts(), [0x101]);
    }
}

fn b_page8(b: &Bench) -> u64 {
    b.page(8)
}
