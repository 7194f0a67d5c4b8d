//! A disk. What the process has of an operation is in the pool: header, data and status. When it dies, the next one is asked
//! again for all that it has not answered.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use devices::pci::Slot;
use devices::virtio::{Operation, SECTOR, Submission};

use super::link::Backend;
use super::memory::Shared;
use super::ring::{Buffer, QUEUE, Ring, Used};

/// Bytes of the pool: all that a disk works on at the same time fits.
const POOL: usize = 4 << 20;

/// Descriptors of an operation: header, data and status.
const EACH: u16 = 3;
const FLIGHTS: usize = (QUEUE / EACH) as usize;

const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;

/// What a process says of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its size.
    pub sectors: u64,
    /// Whether it can only be read.
    pub read_only: bool,
}

/// An operation that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which.
    pub token: u64,
    /// What was read; `None` if it failed.
    pub data: Option<Vec<u8>>,
}

/// An operation that the process has, and its mappings in the pool.
struct Flight {
    submission: Submission,
    header: u64,
    data: Option<(u64, usize)>,
    status: u64,
}

/// A disk that a process serves.
pub struct VhostDisk {
    backend: Backend,
    memory: Shared,
    ring: Ring,
    slot: Slot,
    identity: Identity,
    flights: Vec<Option<Flight>>,
    waiting: VecDeque<Submission>,
    answers: Vec<Answer>,
}

impl VhostDisk {
    /// Connects to the process that listens on `socket`, for the disk in `slot`.
    ///
    /// # Errors
    /// When nobody listens, or it is not a virtio-blk backend.
    pub fn connect(socket: &Path, slot: Slot) -> Result<Self> {
        let mut memory = Shared::new(POOL)?;
        let mut this = Self {
            backend: Backend::new(socket)?,
            ring: Ring::new(&mut memory)?,
            memory,
            slot,
            identity: Identity { sectors: 0, read_only: false },
            flights: (0..FLIGHTS).map(|_| None).collect(),
            waiting: VecDeque::new(),
            answers: Vec::new(),
        };
        this.identity = this.handshake().with_context(|| format!("--vhost-user-blk {}", socket.display()))?;
        Ok(this)
    }

    /// What the process says of its disk.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Where the disk is in the machine.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Slots of the pool that operations have.
    pub fn slots_used(&self) -> usize {
        self.memory.slots_used()
    }

    fn handshake(&mut self) -> Result<Identity> {
        self.backend.connect(&self.memory, &[&self.ring], F_RO | F_BLK_SIZE | F_FLUSH, |mut offer| {
            ensure!(offer.tells, "it does not tell its configuration");
            let Some(capacity) = offer.config()? else {
                bail!("its configuration is too short for a disk's")
            };
            let sectors = u64::from_le_bytes(capacity);
            ensure!(sectors > 0, "its disk is empty");
            Ok(Identity { sectors, read_only: offer.features & F_RO != 0 })
        })
    }

    /// Takes what the machine wants done.
    pub fn submit(&mut self, submissions: Vec<Submission>) {
        self.waiting.extend(submissions);
        self.launch_waiting();
    }

    /// What has ended since the last call.
    pub fn poll(&mut self) -> Vec<Answer> {
        let _ = self.backend.call.read();
        if self.backend.there() {
            let gone = self.backend.hung_up();
            // Also what it answered before it went.
            self.harvest();
            if gone {
                self.backend.part();
            }
        }
        if self.backend.due() {
            self.come_back();
        }
        self.launch_waiting();
        std::mem::take(&mut self.answers)
    }

    /// Connects anew, and asks again for all that was not answered.
    fn come_back(&mut self) {
        self.ring.reset(&self.memory);
        match self.handshake() {
            Ok(identity) if identity == self.identity => {
                log::warn!("{}: the backend is back", self.backend.name());
            }
            Ok(_) => return self.break_off("it came back with another disk"),
            Err(e) => return log::debug!("{}: {e:#}", self.backend.name()),
        }
        let mut order: Vec<_> =
            (0..FLIGHTS).filter_map(|n| Some((self.flights[n].as_ref()?.submission.token, n))).collect();
        order.sort_unstable();
        for (_, index) in order {
            self.launch(index);
        }
    }

    fn launch_waiting(&mut self) {
        while self.backend.broken()
            && let Some(submission) = self.waiting.pop_front()
        {
            self.answers.push(Answer { token: submission.token, data: None });
        }
        while let Some(index) = self.flights.iter().position(Option::is_none)
            && let Some(submission) = self.waiting.pop_front()
        {
            match self.map(submission) {
                Ok(flight) => self.flights[index] = Some(flight),
                Err(submission) => return self.waiting.push_front(submission),
            }
            if self.backend.there() {
                self.launch(index);
            }
        }
    }

    /// Finds places in the pool. Gives the submission back when there are none.
    fn map(&self, submission: Submission) -> Result<Flight, Submission> {
        let mut taken = Vec::new();
        let mut take = |len: usize| {
            let address = self.memory.take(len)?;
            taken.push((address, len));
            Some(address)
        };
        let places = (|| {
            let header = take(16)?;
            let data = match &submission.operation {
                Operation::Read { len, .. } => Some((take(*len)?, *len)),
                Operation::Write { data, .. } => Some((take(data.len())?, data.len())),
                Operation::Flush => None,
            };
            Some((header, data, take(1)?))
        })();
        match places {
            Some((header, data, status)) => Ok(Flight { submission, header, data, status }),
            None => {
                taken.iter().for_each(|&(address, len)| self.memory.give(address, len));
                Err(submission)
            }
        }
    }

    /// Writes an operation into the pool and makes it available.
    fn launch(&mut self, index: usize) {
        let Some(flight) = &self.flights[index] else { return };
        let (kind, offset) = match &flight.submission.operation {
            Operation::Read { offset, .. } => (T_IN, *offset),
            Operation::Write { offset, .. } => (T_OUT, *offset),
            Operation::Flush => (T_FLUSH, 0),
        };
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&(offset / SECTOR).to_le_bytes());
        let mut chain = vec![Buffer { address: flight.header, len: 16, written: false }];
        if let Some((address, len)) = flight.data {
            chain.push(Buffer { address, len, written: kind == T_IN });
        }
        chain.push(Buffer { address: flight.status, len: 1, written: true });
        let memory = &self.memory;
        let put = || {
            memory.put(flight.header, &header)?;
            memory.put(flight.status, &[0xff])?;
            match (&flight.submission.operation, flight.data) {
                (Operation::Write { data, .. }, Some((address, _))) => memory.put(address, data),
                _ => Some(()),
            }
        };
        let written = put().context("the pool cannot be written");
        let first = index as u16 * EACH;
        if let Err(e) = written.and_then(|()| self.ring.make_available(memory, first, &chain)) {
            log::error!("{}: {e}", self.backend.name());
        }
    }

    /// Takes what is in the used ring.
    fn harvest(&mut self) {
        while !self.backend.broken() {
            let given = self.flights.iter().flatten().count();
            let Used { id, len } = match self.ring.take_used(&self.memory, given) {
                Ok(Some(used)) => used,
                Ok(None) => return,
                Err(why) => return self.break_off(why),
            };
            let flight = id
                .is_multiple_of(u32::from(EACH))
                .then(|| self.flights.get_mut((id / u32::from(EACH)) as usize)?.take())
                .flatten();
            match flight {
                Some(flight) => self.finish(flight, len),
                None => return self.break_off("it returned what it was not given"),
            }
        }
    }

    /// The process has done an operation; it says that it wrote `len` bytes.
    fn finish(&mut self, flight: Flight, len: u32) {
        let mut status = [0xff];
        self.memory.get(flight.status, &mut status);
        let mut data = match (&flight.submission.operation, flight.data) {
            (Operation::Read { .. }, Some((address, len))) => {
                let mut data = vec![0; len];
                self.memory.get(address, &mut data);
                Some(data)
            }
            _ => Some(Vec::new()),
        };
        let total = data.as_ref().map_or(0, Vec::len) as u32 + 1;
        let short = len < total && matches!(flight.submission.operation, Operation::Read { .. });
        if status != [0] {
            data = None;
        } else if len > total || short {
            log::error!("{}: the backend says that it wrote {len} bytes of {total}", self.backend.name());
            data = None;
        }
        self.release(&flight);
        let token = flight.submission.token;
        match flight.submission.operation {
            Operation::Write { through: true, .. } if data.is_some() => {
                self.waiting.push_front(Submission { token, operation: Operation::Flush });
            }
            _ => self.answers.push(Answer { token, data }),
        }
    }

    fn release(&self, flight: &Flight) {
        self.memory.give(flight.header, 16);
        self.memory.give(flight.status, 1);
        if let Some((address, len)) = flight.data {
            self.memory.give(address, len);
        }
    }

    /// Gives the process up: all that it has fails, and all that follows.
    fn break_off(&mut self, why: &str) {
        self.backend.break_off(why);
        for index in 0..FLIGHTS {
            if let Some(flight) = self.flights[index].take() {
                self.release(&flight);
                self.answers.push(Answer { token: flight.submission.token, data: None });
            }
        }
        self.launch_waiting();
    }
}

impl AsRawFd for VhostDisk {
    /// What becomes readable when the process has done something.
    fn as_raw_fd(&self) -> RawFd {
        self.backend.call.as_raw_fd()
    }
}
