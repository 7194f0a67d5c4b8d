//! Disks that another process serves by vhost-user.
//!
//! The process is given a bounce pool of a disk's own, and nothing else: its memory is a memfd, and in it are the shadow
//! virtqueue and what is mapped of each operation while the process has it (header, data, status). What it answers is
//! taken out of the pool when it says that it is done, and is input to the machine from then on; what it writes later
//! is not looked at. It may die at any time: when it is there again, it is asked again for all that it has not answered.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use devices::pci::Slot;
use devices::virtio::{Operation, SECTOR, Submission};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use swiotlb::{Attributes, Device, Direction, Fault, Memory, Original, PoolMemory, Swiotlb};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The pool's address, as the process sees it, and its length: all that a disk works on at the same time fits.
const POOL_AT: u64 = 1 << 40;
const POOL: usize = 4 << 20;

/// Descriptors of the shadow virtqueue: header, data and status of each operation in flight.
const QUEUE: u16 = 64;
const EACH: u16 = 3;
const FLIGHTS: usize = (QUEUE / EACH) as usize;
/// Where in their page the available ring and the used ring are, behind the descriptors.
const AVAIL: u64 = 1024;
const USED: u64 = 2048;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_PROTOCOL: u64 = 1 << 30;
const F_VERSION_1: u64 = 1 << 32;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;

/// How long the process may take for an answer during the handshake.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before looking again for a process that is gone.
const PAUSE: Duration = Duration::from_millis(100);

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
    socket: PathBuf,
    slot: Slot,
    identity: Identity,
    memfd: File,
    pool: Device<PoolMemory>,
    /// The page with the shadow virtqueue.
    rings: u64,
    kick: EventFd,
    call: EventFd,
    /// While there is a process. The stream is the frontend's, to see whether it is still open.
    link: Option<(Frontend, UnixStream)>,
    look_at: Instant,
    avail: u16,
    used: u16,
    flights: Vec<Option<Flight>>,
    waiting: VecDeque<Submission>,
    /// It did what it must not, and is not asked again.
    broken: bool,
    answers: Vec<Answer>,
}

impl VhostDisk {
    /// Connects to the process that listens on `socket`, for the disk in `slot`.
    ///
    /// # Errors
    /// When nobody listens, or it is not a virtio-blk backend.
    pub fn connect(socket: &Path, slot: Slot) -> Result<Self> {
        let memfd = memfd_create(c"smmulab-pool", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let memfd = File::from(memfd);
        memfd.set_len(POOL as u64)?;
        // A process that made it shorter would end us.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals))?;
        let region = MmapRegion::from_file(FileOffset::new(memfd.try_clone()?, 0), POOL)?;
        let pool = Device::new(&Swiotlb::restricted(PoolMemory::new(POOL_AT, region), 1)?)?;
        let rings = pool.alloc(4096, &Attributes::default())?;
        let mut this = Self {
            socket: socket.into(),
            slot,
            identity: Identity { sectors: 0, read_only: false },
            memfd,
            pool,
            rings,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            link: None,
            look_at: Instant::now(),
            avail: 0,
            used: 0,
            flights: (0..FLIGHTS).map(|_| None).collect(),
            waiting: VecDeque::new(),
            broken: false,
            answers: Vec::new(),
        };
        let (link, identity) =
            this.handshake().with_context(|| format!("--vhost-user-blk {}", socket.display()))?;
        (this.link, this.identity) = (Some(link), identity);
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
        self.pool.tlb().stats().used.saturating_sub(2)
    }

    /// Features, memory and the queue, as vhost-user has them.
    fn handshake(&self) -> Result<((Frontend, UnixStream), Identity)> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut link = Frontend::from_stream(stream.try_clone()?, 1);
        link.set_owner()?;
        let offered = link.get_features()?;
        let needed = F_PROTOCOL | F_VERSION_1;
        ensure!(offered & needed == needed, "it offers neither protocol features nor virtio 1");
        let config = VhostUserProtocolFeatures::CONFIG;
        ensure!(link.get_protocol_features()?.contains(config), "it does not tell its configuration");
        link.set_protocol_features(config)?;
        link.set_features(offered & (needed | F_RO | F_BLK_SIZE | F_FLUSH))?;
        let (_, bytes) = link.get_config(0, 8, VhostUserConfigFlags::WRITABLE, &[0; 8])?;
        let Ok(capacity) = <[u8; 8]>::try_from(bytes.as_slice()) else {
            bail!("its configuration is too short for a disk's")
        };
        let identity = Identity { sectors: u64::from_le_bytes(capacity), read_only: offered & F_RO != 0 };
        ensure!(identity.sectors > 0, "its disk is empty");
        link.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: POOL_AT,
            memory_size: POOL as u64,
            // Addresses of rings are to be given in this space. It need not be a real one.
            userspace_addr: POOL_AT,
            mmap_offset: 0,
            mmap_handle: self.memfd.as_raw_fd(),
        }])?;
        link.set_vring_num(0, QUEUE)?;
        link.set_vring_base(0, 0)?;
        link.set_vring_addr(
            0,
            &VringConfigData {
                queue_max_size: QUEUE,
                queue_size: QUEUE,
                flags: 0,
                desc_table_addr: self.rings,
                used_ring_addr: self.rings + USED,
                avail_ring_addr: self.rings + AVAIL,
                log_addr: None,
            },
        )?;
        link.set_vring_call(0, &self.call)?;
        link.set_vring_kick(0, &self.kick)?;
        link.set_vring_enable(0, true)?;
        Ok(((link, stream), identity))
    }

    /// Takes what the machine wants done.
    pub fn submit(&mut self, submissions: Vec<Submission>) {
        self.waiting.extend(submissions);
        self.launch_waiting();
    }

    /// What has ended since the last call.
    pub fn poll(&mut self) -> Vec<Answer> {
        let _ = self.call.read();
        if let Some((_, stream)) = &self.link {
            let gone = hung_up(stream);
            // Also what it answered before it went.
            self.harvest();
            if gone && self.link.take().is_some() {
                log::error!("{}: the backend is gone; waiting for it to come back", self.socket.display());
            }
        }
        if self.link.is_none() && !self.broken && self.look_at <= Instant::now() {
            self.look_at = Instant::now() + PAUSE;
            self.come_back();
        }
        self.launch_waiting();
        std::mem::take(&mut self.answers)
    }

    /// Connects anew, and asks again for all that was not answered.
    fn come_back(&mut self) {
        let fresh = [0; 4096];
        let _ = self.put(self.rings, &fresh);
        (self.avail, self.used) = (0, 0);
        match self.handshake() {
            Ok((link, identity)) if identity == self.identity => {
                log::warn!("{}: the backend is back", self.socket.display());
                self.link = Some(link);
            }
            Ok(_) => return self.break_off("it came back with another disk"),
            Err(e) => return log::debug!("{}: {e:#}", self.socket.display()),
        }
        let mut order: Vec<_> =
            (0..FLIGHTS).filter_map(|n| Some((self.flights[n].as_ref()?.submission.token, n))).collect();
        order.sort_unstable();
        for (_, index) in order {
            self.launch(index);
        }
    }

    fn launch_waiting(&mut self) {
        while self.broken
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
            if self.link.is_some() {
                self.launch(index);
            }
        }
    }

    /// Finds places in the pool. Gives the submission back when there are none.
    fn map(&self, submission: Submission) -> Result<Flight, Submission> {
        let attributes = Attributes::default();
        let mut taken = Vec::new();
        let mut take = |len: usize| {
            let address = self.pool.map(&Zeroes, 0, len, &attributes).ok()?;
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
                taken.iter().for_each(|&(address, len)| self.unmap(address, len));
                Err(submission)
            }
        }
    }

    fn unmap(&self, address: u64, len: usize) {
        let attributes = Attributes { skip_cpu_sync: true, ..Attributes::default() };
        if let Err(e) = self.pool.unmap(&Zeroes, address, len, Direction::Bidirectional, &attributes) {
            log::error!("{}: {e}", self.socket.display());
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
        let first = index as u16 * EACH;
        let mut descriptors = vec![(flight.header, 16, 0)];
        if let Some((address, len)) = flight.data {
            descriptors.push((address, len, if kind == T_IN { WRITE } else { 0 }));
        }
        descriptors.push((flight.status, 1, WRITE));
        let last = descriptors.len() - 1;
        let written = (|| {
            self.put(flight.header, &header)?;
            self.put(flight.status, &[0xff])?;
            if let (Operation::Write { data, .. }, Some((address, _))) =
                (&flight.submission.operation, flight.data)
            {
                self.put(address, data)?;
            }
            for (n, (address, len, flags)) in descriptors.iter().enumerate() {
                let (at, next) = (first + n as u16, if n < last { NEXT } else { 0 });
                let mut descriptor = [0; 16];
                descriptor[..8].copy_from_slice(&address.to_le_bytes());
                descriptor[8..12].copy_from_slice(&(*len as u32).to_le_bytes());
                descriptor[12..14].copy_from_slice(&(flags | next).to_le_bytes());
                descriptor[14..].copy_from_slice(&(at + 1).to_le_bytes());
                self.put(self.rings + u64::from(at) * 16, &descriptor)?;
            }
            let entry = self.rings + AVAIL + 4 + u64::from(self.avail % QUEUE) * 2;
            self.put(entry, &first.to_le_bytes())?;
            self.with(self.rings + AVAIL + 2, 2, |s| {
                s.store(self.avail.wrapping_add(1).to_le(), 0, Release).ok()
            })
        })();
        if written.is_none() {
            return log::error!("{}: the pool cannot be written", self.socket.display());
        }
        self.avail = self.avail.wrapping_add(1);
        let _ = self.kick.write(1);
    }

    /// Takes what is in the used ring.
    fn harvest(&mut self) {
        while !self.broken {
            let at = self.rings + USED;
            let index =
                self.with(at + 2, 2, |s| s.load::<u16>(0, Acquire).ok()).map_or(self.used, u16::from_le);
            let more = index.wrapping_sub(self.used);
            if more == 0 {
                return;
            }
            if usize::from(more) > self.flights.iter().flatten().count() {
                return self.break_off("it returned more than it was given");
            }
            let mut element = [0; 8];
            self.get(at + 4 + u64::from(self.used % QUEUE) * 8, &mut element);
            self.used = self.used.wrapping_add(1);
            let [a, b, c, d, e, f, g, h] = element;
            let (id, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
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
        self.get(flight.status, &mut status);
        let mut data = match (&flight.submission.operation, flight.data) {
            (Operation::Read { .. }, Some((address, len))) => {
                let mut data = vec![0; len];
                self.get(address, &mut data);
                Some(data)
            }
            _ => Some(Vec::new()),
        };
        let total = data.as_ref().map_or(0, Vec::len) as u32 + 1;
        let short = len < total && matches!(flight.submission.operation, Operation::Read { .. });
        if status != [0] {
            data = None;
        } else if len > total || short {
            log::error!("{}: the backend says that it wrote {len} bytes of {total}", self.socket.display());
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
        self.unmap(flight.header, 16);
        self.unmap(flight.status, 1);
        if let Some((address, len)) = flight.data {
            self.unmap(address, len);
        }
    }

    /// The process is not to be trusted any more: all that it has fails, and all that follows.
    fn break_off(&mut self, why: &str) {
        log::error!("{}: the backend is given up: {why}", self.socket.display());
        self.link = None;
        self.broken = true;
        for index in 0..FLIGHTS {
            if let Some(flight) = self.flights[index].take() {
                self.release(&flight);
                self.answers.push(Answer { token: flight.submission.token, data: None });
            }
        }
        self.launch_waiting();
    }

    fn with<R>(
        &self,
        address: u64,
        len: usize,
        f: impl FnOnce(VolatileSlice<'_, ()>) -> Option<R>,
    ) -> Option<R> {
        self.pool
            .find_pool(address, |pool| {
                let inside = pool.end() - address >= len as u64;
                inside.then(|| f(pool.memory().slice((address - pool.start()) as usize, len))).flatten()
            })
            .flatten()
    }

    fn put(&self, address: u64, data: &[u8]) -> Option<()> {
        self.with(address, data.len(), |slice| {
            slice.copy_from(data);
            Some(())
        })
    }

    fn get(&self, address: u64, data: &mut [u8]) {
        self.with(address, data.len(), |slice| Some(slice.copy_to(data)));
    }
}

impl AsRawFd for VhostDisk {
    /// What becomes readable when the process has done something.
    fn as_raw_fd(&self) -> RawFd {
        self.call.as_raw_fd()
    }
}

fn hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    let closed = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(|r| r.intersects(closed))
}

/// The original of memory that is filled after it was mapped.
struct Zeroes;

impl Original for Zeroes {
    fn read<B: BitmapSlice>(&self, _: u64, to: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        to.write_slice(&vec![0; to.len()], 0).map_err(|_| Fault { address: 0 })
    }

    fn write<B: BitmapSlice>(&self, address: u64, _: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        Err(Fault { address })
    }
}
