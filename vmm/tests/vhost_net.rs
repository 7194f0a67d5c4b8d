//! Networks that another process serves by vhost-user: backends of our own that echo, die and lie.

mod common;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::vhost_user::{Given, listen};
use vm_memory::Bytes;
use vmm::edge::{VhostNet, Wire};

const PATIENCE: Duration = Duration::from_secs(60);

const RX: usize = 0;
const TX: usize = 1;
const HEADER: usize = 12;
const F_MAC: u64 = 1 << 5;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// What our backend does with frames that it is to send back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// It does.
    Echo,
    /// It hangs up when it has been given the tenth, with others on their way.
    Die,
    /// It wrote more than there is room for.
    Long,
    /// It wrote less than the header.
    Short,
    /// It wants a checksum made, which was not negotiated.
    Offload,
    /// It gives back a buffer that it was not given.
    Stranger,
    /// It gives back a buffer twice.
    Twice,
    /// Its used ring for frames that come runs ahead.
    Ahead,
    /// It gives back a frame that it was not given.
    StrangerSent,
    /// It gives back a frame twice.
    TwiceSent,
}

/// Serves one connection.
fn serve(stream: &UnixStream, way: Way) {
    let Some(given) = Given::accept(stream, F_MAC, Some(&MAC), 2) else { return };
    let all = given.all();
    let mut frames = 0;
    while !given.over() {
        std::thread::sleep(Duration::from_millis(1));
        while let Some((sent, buffers)) = given.next(TX) {
            frames += 1;
            if way == Way::Die && frames == 10 {
                return;
            }
            assert!(buffers.len() == 1 && !buffers[0].write, "one buffer, to be read");
            let mut packet = vec![0; buffers[0].len];
            all.read_slice(&mut packet, buffers[0].at).unwrap();
            assert_eq!(packet[..HEADER], [0; HEADER]);
            let sent = u32::from(sent);
            match way {
                Way::StrangerSent => given.put(TX, sent + 1, 0),
                Way::TwiceSent => (0..2).for_each(|_| given.put(TX, sent, 0)),
                // Some backends say here how much they read.
                _ => given.put(TX, sent, packet.len() as u32),
            }
            let Some((head, buffers)) = given.next(RX) else { continue };
            assert!(buffers.len() == 1 && buffers[0].write && buffers[0].len >= packet.len());
            if way == Way::Offload {
                packet[0] = 1;
            }
            // num_buffers
            packet[10] = 1;
            all.write_slice(&packet, buffers[0].at).unwrap();
            let (head, len) = (u32::from(head), packet.len() as u32);
            match way {
                Way::Long => given.put(RX, head, u32::MAX),
                Way::Short => given.put(RX, head, HEADER as u32),
                Way::Stranger => given.put(RX, head + 1000, len),
                Way::Twice => (0..2).for_each(|_| given.put(RX, head, len)),
                Way::Ahead => given.run_ahead(RX, 1000),
                _ => given.put(RX, head, len),
            }
            given.call(RX);
        }
    }
}

fn backend(way: Way, dir: &Path) -> PathBuf {
    let socket = dir.join("socket");
    // The one that died comes back as one that works.
    let first = std::cell::Cell::new(true);
    listen(&socket, move |stream| serve(stream, if first.replace(false) { way } else { Way::Echo }));
    socket
}

fn frame(n: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + n * 7) as u8).collect()
}

/// What comes until there are `count` frames, or the time is up.
fn frames(net: &mut VhostNet, count: usize, patience: Duration) -> Vec<Vec<u8>> {
    let (start, mut all) = (Instant::now(), Vec::new());
    while all.len() < count && start.elapsed() < patience {
        net.flush();
        all.extend(std::iter::from_fn(|| net.receive()));
        std::thread::sleep(Duration::from_millis(1));
    }
    all
}

/// Waits until nothing is on its way out.
fn settle(net: &mut VhostNet) {
    let start = Instant::now();
    while net.slots_used() > 0 {
        net.flush();
        let _ = net.receive();
        assert!(start.elapsed() < PATIENCE, "{} slots are lost", net.slots_used());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_of_every_length_go_through_the_pool_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut net = VhostNet::connect(&backend(Way::Echo, dir.path())).unwrap();
    assert_eq!(net.mac(), Some(MAC));
    for (n, len) in [1, 60, 1514, 4096 - HEADER, 9000, 65550].into_iter().enumerate() {
        net.send(&frame(n, len));
        let back = frames(&mut net, 1, PATIENCE);
        assert!(back == [frame(n, len)], "{len} bytes");
    }
    // Too long for anybody.
    net.send(&frame(0, 65551));
    // More than the process has at a time.
    (0..500).for_each(|n| net.send(&frame(n, 1000)));
    let back = frames(&mut net, 1, PATIENCE);
    assert!(back[0] == frame(0, 1000));
    settle(&mut net);
}

#[test]
fn a_network_whose_process_dies_in_mid_flight_goes_on_with_the_next_and_loses_no_slot() {
    let dir = tempfile::tempdir().unwrap();
    let mut net = VhostNet::connect(&backend(Way::Die, dir.path())).unwrap();
    (0..50).for_each(|n| net.send(&frame(n, 1514)));
    // Nine at most are answered; then nobody is there for a moment, and frames are lost.
    let start = Instant::now();
    let mut back = Vec::new();
    while !back.contains(&frame(999, 1514)) {
        assert!(start.elapsed() < PATIENCE, "the link did not recover");
        net.send(&frame(999, 1514));
        back.extend(frames(&mut net, 1, Duration::from_millis(50)));
    }
    assert!(back.iter().filter(|f| **f != frame(999, 1514)).count() <= 9);
    settle(&mut net);
}

#[test]
fn a_network_process_that_lies_brings_nothing_and_loses_no_slot() {
    for way in [
        Way::Long,
        Way::Short,
        Way::Offload,
        Way::Stranger,
        Way::Twice,
        Way::Ahead,
        Way::StrangerSent,
        Way::TwiceSent,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut net = VhostNet::connect(&backend(way, dir.path())).unwrap();
        let mut back = Vec::new();
        for n in 0..40 {
            net.send(&frame(n, 100));
            back.extend(frames(&mut net, 1, Duration::from_millis(5)));
        }
        let whole = (0..40).map(|n| frame(n, 100)).collect::<Vec<_>>();
        assert!(back.iter().all(|f| whole.contains(f)), "{way:?}: what comes is what was sent");
        match way {
            // The first one comes before the lie is seen, and so may those of the same moment.
            Way::Twice | Way::StrangerSent | Way::TwiceSent => assert!(back.len() < 40, "{way:?}"),
            _ => assert!(back.is_empty(), "{way:?}"),
        }
        assert_eq!(net.slots_used(), 0, "{way:?}: no slot is lost");
        // It is given up, and not asked again: the next one would have worked.
        net.send(&frame(0, 100));
        assert!(frames(&mut net, 1, Duration::from_millis(150)).is_empty(), "{way:?}");
    }
}

#[test]
fn what_is_no_network_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(VhostNet::connect(&dir.path().join("nobody")).is_err());
    let socket = dir.path().join("closed");
    listen(&socket, |_| {});
    assert!(VhostNet::connect(&socket).is_err());
}
