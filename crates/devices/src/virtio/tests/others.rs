//! Console, entropy and network.

use super::*;

const ALL: u64 = !feature::EVENT_IDX;
const MRG_RXBUF: u64 = 1 << 15;

#[test]
pub(super) fn the_console_carries_bytes_both_ways() {
    let mut b = Bench::new(Console::new());
    b.start(ALL);
    let page = b.page(0);
    b.write(page, b"hello, host");
    assert_eq!(b.request(1, &[(page, 5, false), (page + 5, 6, false)]), Some((0, 0)));
    assert_eq!(b.host.with_device(SLOT, Console::take_output), Some(b"hello, host".to_vec()));
    assert_eq!(b.interrupts(), [0x102]);
    // Input before there is a buffer waits for one.
    let now = b.now;
    assert_eq!(b.host.with_device(SLOT, |c: &mut Console| c.push_input(now, b"hello, guest")), Some(12));
    b.run();
    assert_eq!(b.request(0, &[(page, 8, true)]), Some((0, 8)));
    assert_eq!(b.read(page, 8), b"hello, g");
    b.chain(0, 0, &[(page, 8, true)]);
    b.offer(0, 0);
    b.kick(0);
    b.run();
    assert_eq!(b.take_used(0), Some((0, 4)));
    assert_eq!(b.read(page, 4), b"uest");
    assert_eq!(b.interrupts(), [0x101, 0x101]);
}

#[test]
pub(super) fn the_console_does_not_hoard() {
    let mut b = Bench::new(Console::new());
    b.start(ALL);
    let page = b.page(0);
    for _ in 0..40 {
        b.chain(1, 0, &[(page, 4096, false)]);
        b.offer(1, 0);
    }
    b.kick(1);
    b.run();
    assert_eq!(b.host.with_device(SLOT, Console::take_output).unwrap().len(), 64 << 10);
    b.run();
    b.host.with_device(SLOT, Console::take_output);
    b.run();
    assert_eq!(std::iter::from_fn(|| b.take_used(1)).count(), 40);
    assert!(b.host.with_device(SLOT, |c: &mut Console| c.push_input(0, &[0; 1 << 20])).unwrap() <= 64 << 10);
}

#[test]
pub(super) fn entropy_follows_from_the_seed() {
    let draw = |seed| {
        let mut b = Bench::new(Rng::new(seed));
        b.start(ALL);
        let page = b.page(0);
        assert_eq!(b.request(0, &[(page, 100, true), (page + 0x1000, 33, true)]), Some((0, 133)));
        [b.read(page, 100), b.read(page + 0x1000, 33)].concat()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert!(draw(1).iter().any(|&b| b != 0));
    let mut b = Bench::new(Rng::new(1));
    b.start(ALL);
    assert_eq!(
        b.request(0, &[(b.page(0), 0x10_0000, true)]),
        Some((0, 4096)),
        "no more than a page at a time"
    );
}

fn receive(b: &mut Bench, frame: &[u8]) -> bool {
    let now = b.now;
    b.host.with_device(SLOT, |n: &mut Net| n.receive(now, frame)).unwrap()
}

#[test]
pub(super) fn frames_go_out_without_their_header() {
    let mut b = Bench::new(Net::new([2, 0, 0, 0, 0, 1]));
    b.start(ALL);
    assert_eq!(b.get(0x2000, 8), 0x0001_0100_0000_0002, "address and link status");
    let page = b.page(0);
    let frame: Vec<u8> = (0..1500).map(|i| i as u8).collect();
    b.write(page + 12, &frame);
    assert_eq!(
        b.request(1, &[(page, 12, false), (page + 12, 1000, false), (page + 1012, 500, false)]),
        Some((0, 0))
    );
    assert_eq!(b.request(1, &[(page, 12, false)]), Some((0, 0)), "an empty frame is not sent");
    assert_eq!(b.host.with_device(SLOT, Net::take_sent), Some(vec![frame]));
}

#[test]
pub(super) fn frames_come_in_whole_or_spread_over_buffers() {
    let frame: Vec<u8> = (0..3000).map(|i| (i * 7) as u8).collect();
    let mut b = Bench::new(Net::new([2, 0, 0, 0, 0, 1]));
    b.start(ALL & !MRG_RXBUF);
    let page = b.page(0);
    b.chain(0, 0, &[(page, 12, true), (page + 12, 0x1ff4, true)]);
    b.offer(0, 0);
    b.kick(0);
    b.run();
    assert!(receive(&mut b, &frame));
    b.run();
    assert_eq!(b.take_used(0), Some((0, 3012)));
    assert_eq!(b.read(page, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(b.read(page + 12, 3000), frame);

    let mut b = Bench::new(Net::new([2, 0, 0, 0, 0, 1]));
    b.start(ALL);
    b.run();
    assert!(receive(&mut b, &frame));
    for i in 0..2 {
        b.chain(0, i, &[(b.page(u64::from(i)), 1024, true)]);
        b.offer(0, i);
    }
    b.kick(0);
    b.run();
    assert_eq!(b.take_used(0), None, "two buffers are too few");
    b.chain(0, 2, &[(b.page(2), 1024, true)]);
    b.offer(0, 2);
    b.kick(0);
    b.run();
    let used: Vec<_> = std::iter::from_fn(|| b.take_used(0)).collect();
    assert_eq!(used, [(0, 1024), (1, 1024), (2, 964)]);
    assert_eq!(b.read(page + 10, 2), [3, 0]);
    let back = [b.read(page + 12, 1012), b.read(b.page(1), 1024), b.read(b.page(2), 964)].concat();
    assert_eq!(back, frame);
    assert_eq!(b.interrupts(), [0x101]);
}

#[test]
pub(super) fn frames_that_do_not_fit_are_dropped() {
    let mut b = Bench::new(Net::new([2, 0, 0, 0, 0, 1]));
    b.start(ALL & !MRG_RXBUF);
    b.run();
    assert!(!receive(&mut b, &vec![0; MAX_FRAME + 1]));
    assert!(receive(&mut b, &[1; 600]));
    assert!(receive(&mut b, &[2; 60]));
    assert_eq!(b.request(0, &[(b.page(0), 100, true)]), Some((0, 72)));
    assert_eq!(b.read(b.page(0) + 12, 60), [2; 60]);
    while receive(&mut b, &[3; 60]) {}
    assert_eq!(b.host.with_device(SLOT, |n: &mut Net| (n.room(), n.dropped())), Some((0, 3)));
}
