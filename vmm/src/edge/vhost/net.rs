//! A network. What the process has is buffers for frames that come, which it always has, and the frames that go, until it
//! has returned them. When it dies these are lost, as frames are; the next one gets fresh buffers.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result};
use devices::virtio::MAX_FRAME;

use super::link::Backend;
use super::memory::Shared;
use super::ring::{Buffer, QUEUE, Ring, Used};
use crate::edge::Wire;

/// Bytes of the pool: the receive buffers take a good quarter of it.
const POOL: usize = 8 << 20;

/// The header before each frame (virtio 1.3 §5.1.6): flags, gso_type, lengths and offsets, num_buffers. No offload and no
/// merging is negotiated, so all of it is zero but perhaps num_buffers.
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;

/// Buffers for frames that come, each as long as the longest frame.
const RECEIVE: usize = 32;
const RECEIVE_LEN: usize = HEADER + MAX_FRAME;
/// Frames that go which the process has at a time.
const FLIGHTS: usize = QUEUE as usize;
/// Bytes of frames that may wait for that; more are dropped, as a full link would.
const MAX_WAITING: usize = 4 << 20;
/// After so many frames that are not ones the process is given up.
const MAX_LIES: u32 = 16;

const F_MAC: u64 = 1 << 5;

/// A network that a process serves.
pub struct VhostNet {
    backend: Backend,
    memory: Shared,
    rx: Ring,
    tx: Ring,
    mac: Option<[u8; 6]>,
    /// Addresses of the receive buffers, and whether the process has them.
    buffers: Vec<(u64, bool)>,
    /// Frames that the process has: address and length of each.
    flights: Vec<Option<(u64, usize)>>,
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    lies: u32,
}

impl VhostNet {
    /// Connects to the process that listens on `socket`.
    ///
    /// # Errors
    /// When nobody listens, or it is not a virtio-net backend.
    pub fn connect(socket: &Path) -> Result<Self> {
        let mut memory = Shared::new(POOL)?;
        let mut this = Self {
            backend: Backend::new(socket)?,
            rx: Ring::new(&mut memory)?,
            tx: Ring::new(&mut memory)?,
            memory,
            mac: None,
            buffers: Vec::new(),
            flights: vec![None; FLIGHTS],
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            lies: 0,
        };
        let begin = |this: &mut Self| {
            this.mac = this.handshake()?;
            this.give_buffers()
        };
        begin(&mut this).with_context(|| format!("--vhost-user-net {}", socket.display()))?;
        Ok(this)
    }

    /// The guest's Ethernet address, if the process says one.
    pub fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }

    /// Slots of the pool that frames on their way out have.
    pub fn slots_used(&self) -> usize {
        self.memory.slots_used() - self.buffers.len() * RECEIVE_LEN.div_ceil(swiotlb::IO_TLB_SIZE)
    }

    fn handshake(&mut self) -> Result<Option<[u8; 6]>> {
        self.backend.connect(&self.memory, &[&self.rx, &self.tx], F_MAC, |mut offer| {
            if offer.tells && offer.features & F_MAC != 0 { offer.config() } else { Ok(None) }
        })
    }

    /// Gives a process that is new its receive buffers.
    fn give_buffers(&mut self) -> Result<()> {
        for _ in 0..RECEIVE {
            let address = self.memory.take(RECEIVE_LEN).context("the pool is too small")?;
            self.buffers.push((address, false));
        }
        (0..RECEIVE).try_for_each(|index| self.give(index))
    }

    fn give(&mut self, index: usize) -> Result<()> {
        let Some((address, given)) = self.buffers.get_mut(index) else { return Ok(()) };
        *given = true;
        let buffer = Buffer { address: *address, len: RECEIVE_LEN, written: true };
        self.rx.make_available(&self.memory, index as u16, &[buffer])
    }

    /// Gives the process the buffers again that it has returned. Only when all of them have been looked at, so that one
    /// that it returns twice is seen.
    fn give_back(&mut self) {
        for index in 0..self.buffers.len() {
            if !self.buffers[index].1
                && let Err(e) = self.give(index)
            {
                return self.break_off(&e.to_string());
            }
        }
    }

    /// Takes everything from a process that is gone.
    fn take_all(&mut self) {
        for (address, _) in self.buffers.drain(..) {
            self.memory.give(address, RECEIVE_LEN);
        }
        for (address, len) in self.flights.iter_mut().filter_map(Option::take) {
            self.memory.give(address, len);
        }
        self.waiting.clear();
        self.waiting_bytes = 0;
    }

    fn come_back(&mut self) {
        self.rx.reset(&self.memory);
        self.tx.reset(&self.memory);
        match self.handshake() {
            Ok(mac) if mac == self.mac => {
                log::warn!("{}: the backend is back", self.backend.name());
                if let Err(e) = self.give_buffers() {
                    self.break_off(&e.to_string());
                }
            }
            Ok(_) => self.break_off("it came back with another address"),
            Err(e) => log::debug!("{}: {e:#}", self.backend.name()),
        }
    }

    fn break_off(&mut self, why: &str) {
        self.backend.break_off(why);
        self.take_all();
    }

    /// Takes back the frames that the process has sent.
    fn reap(&mut self) {
        loop {
            let given = self.flights.iter().flatten().count();
            // How much it wrote to what it only reads is not of interest: backends differ.
            let id = match self.tx.take_used(&self.memory, given) {
                Ok(Some(used)) => used.id,
                Ok(None) => return,
                Err(why) => return self.break_off(why),
            };
            match self.flights.get_mut(id as usize).and_then(Option::take) {
                Some((address, len)) => self.memory.give(address, len),
                None => return self.break_off("it returned what it was not given"),
            }
        }
    }

    /// Makes frames that wait available to the process.
    fn launch(&mut self) {
        while let Some(index) = self.flights.iter().position(Option::is_none)
            && let Some(frame) = self.waiting.front()
        {
            let len = HEADER + frame.len();
            let Some(address) = self.memory.take(len) else { return };
            let written =
                self.memory.put(address + HEADER as u64, frame).context("the pool cannot be written");
            self.waiting_bytes -= frame.len();
            self.waiting.pop_front();
            self.flights[index] = Some((address, len));
            let buffer = Buffer { address, len, written: false };
            let available = |()| self.tx.make_available(&self.memory, index as u16, &[buffer]);
            if let Err(e) = written.and_then(available) {
                log::error!("{}: {e}", self.backend.name());
            }
        }
    }

    /// The frame in a receive buffer that the process has returned, saying that it wrote `len` bytes.
    fn frame(&self, address: u64, len: usize) -> Result<Vec<u8>, String> {
        if len <= HEADER || len > RECEIVE_LEN {
            return Err(format!("a frame of {len} bytes, header included, in a buffer of {RECEIVE_LEN}"));
        }
        let mut packet = vec![0; len];
        self.memory.get(address, &mut packet);
        let frame = packet.split_off(HEADER);
        let buffers = u16::from_le_bytes([packet[NUM_BUFFERS], packet[NUM_BUFFERS + 1]]);
        if packet[..NUM_BUFFERS].iter().any(|&byte| byte != 0) || buffers > 1 {
            return Err("a frame that needs an offload that was not negotiated".into());
        }
        Ok(frame)
    }

    /// A frame that is none is lost.
    fn lie(&mut self, what: &str) {
        log::error!("{}: the backend gives {what}", self.backend.name());
        self.lies += 1;
        if self.lies >= MAX_LIES {
            self.break_off("it does not give frames");
        }
    }
}

impl Wire for VhostNet {
    fn send(&mut self, frame: &[u8]) {
        if !self.backend.there() || frame.len() > MAX_FRAME || self.waiting_bytes + frame.len() > MAX_WAITING
        {
            return;
        }
        self.waiting_bytes += frame.len();
        self.waiting.push_back(frame.to_vec());
        self.reap();
        self.launch();
    }

    fn flush(&mut self) {
        let _ = self.backend.call.read();
        if self.backend.hung_up() {
            self.backend.part();
            self.take_all();
        }
        if self.backend.due() {
            self.come_back();
        }
        if self.backend.there() {
            self.reap();
            self.launch();
        }
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        while self.backend.there() {
            let given = self.buffers.iter().filter(|(_, given)| *given).count();
            let Used { id, len } = match self.rx.take_used(&self.memory, given) {
                Ok(Some(used)) => used,
                Ok(None) => {
                    self.give_back();
                    return None;
                }
                Err(why) => {
                    self.break_off(why);
                    return None;
                }
            };
            let Some((address, given @ true)) = self.buffers.get_mut(id as usize) else {
                self.break_off("it returned what it was not given");
                return None;
            };
            *given = false;
            let address = *address;
            match self.frame(address, len as usize) {
                Ok(frame) => return Some(frame),
                Err(what) => self.lie(&what),
            }
        }
        None
    }
}

impl AsRawFd for VhostNet {
    /// What becomes readable when the process has done something.
    fn as_raw_fd(&self) -> RawFd {
        self.backend.call.as_raw_fd()
    }
}
