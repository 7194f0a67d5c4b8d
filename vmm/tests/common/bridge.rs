//! A network backend that a guest can use: what is between vhost-user's queues and passt.

use std::cell::{Cell, RefCell};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use vm_memory::Bytes;
use vmm::edge::{Passt, Wire};

use super::vhost_user::{Given, listen};

const RX: usize = 0;
const TX: usize = 1;
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;
const F_MAC: u64 = 1 << 5;
/// The address that it gives the guest.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// What is wrong with it, from the two hundredth frame on that comes for the guest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It hangs up, and is there again for the next connection.
    HangsUp,
    /// Of ten frames, one in a hundred, it says that they are longer than their buffer.
    Lengths,
    /// It gives back a buffer that it was not given.
    Stranger,
}

/// Frames that went through it.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    pub(crate) to_guest: AtomicU64,
    pub(crate) from_guest: AtomicU64,
}

/// Serves the network that `passt` gives at `socket`.
pub(crate) fn serve(socket: &Path, passt: Passt, fault: Fault) -> Arc<Frames> {
    let frames = Arc::new(Frames::default());
    let (counts, passt, first) = (frames.clone(), RefCell::new(passt), Cell::new(true));
    listen(socket, move |stream| {
        let fault = if first.replace(false) { fault } else { Fault::None };
        carry(stream, &mut passt.borrow_mut(), fault, &counts);
    });
    frames
}

/// One connection, until the other side or, if that is its fault, this one hangs up.
fn carry(stream: &UnixStream, passt: &mut Passt, fault: Fault, frames: &Frames) {
    let Some(given) = Given::accept(stream, F_MAC, Some(&MAC), 2) else { return };
    let all = given.all();
    let (mut buffer, mut come) = (None, 0);
    while !given.over() {
        let mut idle = true;
        while let Some((head, buffers)) = given.next(TX) {
            assert!(buffers.len() == 1 && !buffers[0].write, "one buffer, to be read");
            let mut packet = vec![0; buffers[0].len];
            all.read_slice(&mut packet, buffers[0].at).unwrap();
            assert_eq!(packet[..HEADER], [0; HEADER], "no offload was negotiated");
            passt.send(&packet[HEADER..]);
            frames.from_guest.fetch_add(1, Relaxed);
            given.put(TX, u32::from(head), 0);
            idle = false;
        }
        passt.flush();
        loop {
            buffer = buffer.or_else(|| given.next(RX));
            // Without a buffer frames wait in passt's socket.
            let Some(frame) = buffer.as_ref().and_then(|_| passt.receive()) else { break };
            let Some((head, buffers)) = buffer.take() else { break };
            assert!(buffers.len() == 1 && buffers[0].write && buffers[0].len >= HEADER + frame.len());
            let mut packet = vec![0; HEADER];
            packet[NUM_BUFFERS] = 1;
            packet.extend(frame);
            all.write_slice(&packet, buffers[0].at).unwrap();
            come += 1;
            let (head, len) = (u32::from(head), packet.len() as u32);
            match fault {
                Fault::HangsUp if come == 200 => return,
                Fault::Lengths if come % 100 == 0 && (2..12).contains(&(come / 100)) => {
                    given.put(RX, head, u32::MAX);
                }
                Fault::Stranger if come == 200 => given.put(RX, head + 1000, len),
                _ => given.put(RX, head, len),
            }
            frames.to_guest.fetch_add(1, Relaxed);
            idle = false;
        }
        if idle {
            std::thread::sleep(Duration::from_micros(200));
        } else {
            given.call(RX);
            given.call(TX);
        }
    }
}
