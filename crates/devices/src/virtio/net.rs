//! The network device (virtio 1.3 §5.1): one pair of queues, no offloads.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::job::{Carried, Lane};
use super::{Chain, DeviceState, Io, VirtioDevice};
use crate::agent::{Time, earliest};
use crate::bounce::{MapError, Step};
use crate::dma::{DmaPort, Moved};
use crate::pci::StateError;

const F_MAC: u64 = 1 << 5;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;

const LINK_UP: u16 = 1;

const RX: usize = 0;
const TX: usize = 1;

/// struct virtio_net_hdr, with num_buffers.
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;

/// Largest frame either way, in bytes.
pub const MAX_FRAME: usize = 65550;
/// Frames from the host that wait for the driver; more are dropped.
const MAX_WAITING: usize = 256;
/// Bytes of sent frames that may wait for the host.
const MAX_SENT: usize = 1 << 20;
/// Buffers that one received frame may take.
const MAX_BUFFERS: usize = 64;

const PAGE: usize = 4096;

/// A network device.
pub struct Net {
    mac: [u8; 6],
    state: NetState,
}

/// Its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    waiting: VecDeque<Vec<u8>>,
    rx_due: Option<Time>,
    rx: Option<Delivery>,
    tx: Lane,
    frame: Vec<u8>,
    sent: Vec<Vec<u8>>,
    sent_bytes: usize,
    dropped: u64,
}

/// A frame on its way into the driver's buffers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Delivery {
    /// Header and frame.
    packet: Vec<u8>,
    done: usize,
    buffers: Vec<Chain>,
    current: usize,
    /// How many buffers are back in guest memory.
    returned: usize,
}

impl Net {
    /// A device with an address.
    pub fn new(mac: [u8; 6]) -> Self {
        Self { mac, state: NetState::default() }
    }

    /// How many more frames there is room for.
    pub fn room(&self) -> usize {
        MAX_WAITING.saturating_sub(self.state.waiting.len())
    }

    /// Takes the frames that the guest has sent, oldest first. The device stops sending while too much waits here.
    pub fn take_sent(&mut self) -> Vec<Vec<u8>> {
        self.state.sent_bytes = 0;
        std::mem::take(&mut self.state.sent)
    }

    /// A frame, without its checksum sequence, arrives at virtual time `at`. `false`: it was dropped, being too long or
    /// one too many.
    pub fn receive(&mut self, at: Time, frame: &[u8]) -> bool {
        let s = &mut self.state;
        if frame.is_empty() || frame.len() > MAX_FRAME || s.waiting.len() >= MAX_WAITING {
            s.dropped += 1;
            return false;
        }
        s.waiting.push_back(frame.to_vec());
        if s.rx_due.is_none() {
            s.rx_due = Some(at);
        }
        true
    }

    /// Frames in either direction that did not fit.
    pub fn dropped(&self) -> u64 {
        self.state.dropped
    }

    /// Finds buffers for the next frame.
    fn prepare(&mut self, io: &mut Io<'_>) {
        let s = &mut self.state;
        s.rx_due = None;
        let Some(frame) = s.waiting.front() else { return };
        let needed = (HEADER + frame.len()) as u64;
        let most = if io.features & F_MRG_RXBUF != 0 { MAX_BUFFERS } else { 1 };
        let (mut buffers, mut room) = (Vec::new(), 0);
        while room < needed && buffers.len() < most {
            let Some(chain) = io.pop(RX) else {
                // The driver will make more available, and notify.
                buffers.iter().rev().for_each(|b: &Chain| io.put_back(RX, b.head));
                return;
            };
            room += chain.writable.total();
            buffers.push(chain);
        }
        s.rx_due = Some(io.now + io.timing.fetch);
        let Some(frame) = s.waiting.pop_front() else { return };
        if room < needed {
            // It would not fit the next ones either.
            buffers.iter().rev().for_each(|b: &Chain| io.put_back(RX, b.head));
            s.dropped += 1;
            return;
        }
        let mut packet = vec![0; HEADER];
        packet[NUM_BUFFERS..HEADER].copy_from_slice(&(buffers.len() as u16).to_le_bytes());
        packet.extend_from_slice(&frame);
        s.rx = Some(Delivery { packet, done: 0, buffers, current: 0, returned: 0 });
    }

    fn deliver(&mut self, io: &mut Io<'_>) {
        let s = &mut self.state;
        let Some(rx) = &mut s.rx else { return self.prepare(io) };
        let rest = rx.packet.get(rx.done..).unwrap_or(&[]);
        let Some(buffer) = rx.buffers.get_mut(rx.current).filter(|_| !rest.is_empty()) else {
            let last = rx.returned + 1 >= rx.buffers.len();
            if let Some(buffer) = rx.buffers.get_mut(rx.returned) {
                match buffer.unmap(io.port, io.now, io.timing) {
                    Ok(Step::Later(due)) => {
                        s.rx_due = Some(due);
                        return;
                    }
                    Ok(Step::Ready) if !last && buffer.bounced() => {
                        rx.returned += 1;
                        s.rx_due = Some(io.now + io.timing.translate);
                        return;
                    }
                    Ok(Step::Ready) => {}
                    Err(e) => return io.fail(&e),
                }
            }
            for buffer in &rx.buffers {
                io.used(RX, buffer.head, buffer.writable.done() as u32);
            }
            s.rx = None;
            s.rx_due = Some(io.now + io.timing.fetch);
            return;
        };
        match buffer.map(io.port, io.now, io.timing, rest.len() as u64) {
            Ok(Step::Ready) => {}
            Ok(Step::Later(due)) => {
                s.rx_due = Some(due);
                return;
            }
            Err(MapError::Dma { error, .. }) => return io.fail(&error),
            // There is no room in the pool: the frame is lost, as frames are, and the buffers are for the next one.
            Err(_) => {
                rx.buffers.iter_mut().for_each(|b| b.discard(io.port));
                rx.buffers.iter().rev().for_each(|b| io.put_back(RX, b.head));
                s.dropped += 1;
                s.rx = None;
                s.rx_due = Some(io.now + io.timing.fetch);
                return;
            }
        }
        match buffer.writable.step_write(io.buffers(), rest, io.timing.beat_len()) {
            Ok(moved) => {
                match moved {
                    Moved::Beat(n) => rx.done += n,
                    Moved::End => rx.current += 1,
                    _ => {}
                }
                s.rx_due = Some(io.now + io.timing.after(moved));
            }
            Err(e) => io.fail(&e),
        }
    }

    fn transmit(&mut self, io: &mut Io<'_>) {
        let s = &mut self.state;
        if s.tx.job.is_none() {
            s.frame.clear();
            s.tx.job = io.pop(TX);
            s.tx.due = s.tx.job.is_some().then(|| io.now + io.timing.fetch);
            return;
        }
        match s.tx.carry(io, TX, 0) {
            Carried::Work => {}
            Carried::Step => return,
            // There is no room in the pool: the frame is lost, as frames are.
            Carried::NoRoom(_) => {
                s.dropped += 1;
                return s.tx.finish(io, TX, 0);
            }
        }
        let Some(job) = &mut s.tx.job else { return };
        let mut bytes = [0; PAGE];
        match job.readable.step_read(io.buffers(), &mut bytes, io.timing.beat_len()) {
            Ok(Moved::End) => {
                match s.frame.get(HEADER..) {
                    Some(frame) if !frame.is_empty() && frame.len() <= MAX_FRAME => {
                        s.sent_bytes += frame.len();
                        s.sent.push(frame.to_vec());
                    }
                    _ => s.dropped += 1,
                }
                s.tx.finish(io, TX, 0);
            }
            Ok(moved) => {
                if let Moved::Beat(n) = moved {
                    // One byte more than fits marks a frame that is too long.
                    let room = (HEADER + MAX_FRAME + 1).saturating_sub(s.frame.len());
                    s.frame.extend_from_slice(&bytes[..n.min(room)]);
                }
                s.tx.due = Some(io.now + io.timing.after(moved));
            }
            Err(e) => io.fail(&e),
        }
    }

    fn tx_due(&self) -> Option<Time> {
        if self.state.sent_bytes < MAX_SENT { self.state.tx.due } else { None }
    }

    fn cancel_rx(&mut self, port: &DmaPort) {
        if let Some(rx) = &mut self.state.rx {
            rx.buffers.iter_mut().for_each(|b| b.suspend(port));
        }
    }

    /// Forgets the buffers; the frame in them is lost, as frames are.
    fn reset_rx(&mut self, port: &DmaPort) {
        if let Some(rx) = &mut self.state.rx {
            rx.buffers.iter_mut().for_each(|b| b.discard(port));
        }
        self.state.rx = None;
        self.state.rx_due = None;
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u16 {
        1
    }

    fn class(&self) -> u32 {
        0x02_0000
    }

    fn features(&self) -> u64 {
        F_MAC | F_STATUS | F_MRG_RXBUF
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256]
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        config.extend_from_slice(&LINK_UP.to_le_bytes());
        config
    }

    fn notify(&mut self, queue: usize, at: Time) {
        match queue {
            RX if self.state.rx_due.is_none() => self.state.rx_due = Some(at),
            RX => {}
            _ => self.state.tx.wake(at),
        }
    }

    fn next_step(&self) -> Option<Time> {
        earliest(self.state.rx_due, self.tx_due())
    }

    fn step(&mut self, io: &mut Io<'_>) {
        match (self.state.rx_due, self.tx_due()) {
            (Some(rx), tx) if tx.is_none_or(|tx| rx <= tx) => self.deliver(io),
            (_, Some(_)) => self.transmit(io),
            _ => {}
        }
    }

    fn suspend(&mut self, port: &DmaPort) {
        self.cancel_rx(port);
        self.state.tx.suspend(port);
    }

    fn reset_queue(&mut self, queue: usize, port: &DmaPort) {
        match queue {
            RX => self.reset_rx(port),
            _ => self.state.tx.reset(port),
        }
    }

    fn reset(&mut self, port: &DmaPort) {
        self.reset_rx(port);
        self.state.tx.reset(port);
        self.state.frame.clear();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(self.state.clone())
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), StateError> {
        let DeviceState::Net(state) = state else { return Err(StateError) };
        self.state = state;
        Ok(())
    }
}
