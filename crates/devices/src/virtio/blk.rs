//! The block device (virtio 1.3 §5.2).

use serde::{Deserialize, Serialize};

use super::backend::{BlockBackend, SECTOR, Submission};
use super::blk_request::{
    F_DISCARD, F_FLUSH, F_WRITE_ZEROES, MAX_ZERO_RANGES, MAX_ZERO_SECTORS, Outcome, Request,
};
use super::{DeviceState, Io, VirtioDevice};
use crate::agent::{Time, earliest};
use crate::dma::DmaPort;
use crate::pci::StateError;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;

const QUEUE_SIZE: u16 = 256;

/// Requests that are worked on at the same time.
const IN_FLIGHT: usize = 16;

/// A disk.
pub struct Blk {
    backend: Box<dyn BlockBackend>,
    /// What GET_ID answers: up to 20 bytes.
    id: String,
    state: BlkState,
    /// Storage of finished requests, for new ones.
    spare: Vec<Vec<u8>>,
}

/// Its state, without the content of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// When to look for the next request; `None` until a notification, or until a request is finished.
    look: Option<Time>,
    /// There may be more in the ring than is worked on.
    more: bool,
    /// In the order in which they were taken off the ring.
    requests: Vec<Request>,
    /// Names the next operation that ends later.
    token: u64,
}

impl Blk {
    /// A disk on `backend`, without a serial number.
    pub fn new(backend: Box<dyn BlockBackend>) -> Self {
        Self { backend, id: String::new(), state: BlkState::default(), spare: Vec::new() }
    }

    /// The same with a serial number, of which the guest sees 20 bytes.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self }
    }

    /// The disk's storage.
    pub fn backend(&self) -> &dyn BlockBackend {
        self.backend.as_ref()
    }

    /// What the backend was asked to do since the last call and has not done at once.
    pub fn take_submitted(&mut self) -> Vec<Submission> {
        self.backend.take_submitted()
    }

    /// An operation has ended at virtual time `at`: with what was read, or `None` if it failed. An answer to an operation
    /// that nobody waits for any more, since there was a reset, is ignored.
    pub fn complete(&mut self, at: Time, token: u64, result: Option<Vec<u8>>) {
        if let Some(request) = self.state.requests.iter_mut().find(|r| r.awaits(token)) {
            request.answer(at, result);
        }
    }

    fn take(&mut self, io: &mut Io<'_>) {
        let s = &mut self.state;
        s.look = None;
        if s.requests.len() >= IN_FLIGHT {
            s.more = true;
            return;
        }
        let Some(chain) = io.pop(0) else { return };
        s.look = Some(io.now + io.timing.fetch);
        let data = self.spare.pop().unwrap_or_default();
        match Request::new(chain, data, io.now + io.timing.fetch) {
            Some(request) => s.requests.push(request),
            None => io.fail(&"block request without header or status"),
        }
    }
}

impl VirtioDevice for Blk {
    fn device_id(&self) -> u16 {
        2
    }

    fn class(&self) -> u32 {
        0x01_0000
    }

    fn features(&self) -> u64 {
        let always = F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
        let zero = if self.backend.can_zero() { F_DISCARD | F_WRITE_ZEROES } else { 0 };
        always | if self.backend.read_only() { F_RO } else { zero }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.backend.size() / SECTOR).to_le_bytes());
        // A request of full length and its header and status fill the queue.
        put(12, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(34, &1u16.to_le_bytes());
        for at in [36, 48] {
            put(at, &MAX_ZERO_SECTORS.to_le_bytes());
            put(at + 4, &MAX_ZERO_RANGES.to_le_bytes());
        }
        // Discard alignment in sectors; write-zeroes may unmap.
        put(44, &8u32.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn notify(&mut self, _queue: usize, at: Time) {
        if self.state.look.is_none() {
            self.state.look = Some(at);
        }
    }

    fn next_step(&self) -> Option<Time> {
        earliest(self.state.look, self.state.requests.iter().filter_map(Request::due).min())
    }

    fn step(&mut self, io: &mut Io<'_>) {
        // The earliest is next; of several, the look at the ring, then the oldest request.
        let due = |(i, r): (usize, &Request)| Some((r.due()?, i));
        let request = self.state.requests.iter().enumerate().filter_map(due).min();
        if let Some(look) = self.state.look
            && request.is_none_or(|(due, _)| look <= due)
        {
            return self.take(io);
        }
        let Some((_, index)) = request else { return };
        let backend = self.backend.as_mut();
        let token = &mut self.state.token;
        if self.state.requests[index].step(io, backend, token, &self.id) == Outcome::Done {
            let done = self.state.requests.remove(index);
            self.spare.push(done.data);
            if std::mem::take(&mut self.state.more) {
                self.state.look = Some(io.now + io.timing.fetch);
            }
        }
    }

    fn suspend(&mut self, port: &DmaPort) {
        self.state.requests.iter_mut().for_each(|r| r.suspend(port));
    }

    fn reset_queue(&mut self, _queue: usize, port: &DmaPort) {
        self.reset(port);
    }

    fn reset(&mut self, port: &DmaPort) {
        self.state.requests.iter_mut().for_each(|r| r.discard(port));
        self.spare.extend(self.state.requests.drain(..).map(|r| r.data));
        self.spare.truncate(IN_FLIGHT);
        // Not the tokens: what was begun before may end later.
        self.state = BlkState { token: self.state.token, ..BlkState::default() };
    }

    fn save(&self) -> DeviceState {
        DeviceState::Blk(self.state.clone())
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Blk(s)
                if s.requests.len() <= IN_FLIGHT && s.requests.iter().all(Request::plausible) =>
            {
                self.state = s;
                Ok(())
            }
            _ => Err(StateError),
        }
    }
}
