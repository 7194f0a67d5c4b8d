//! The memory that a process is given: a bounce pool in a sealed memfd.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::Result;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use swiotlb::{
    Attributes, Device, Direction, Fault, IO_TLB_SIZE, Memory, Original, PAGE_SIZE, PoolMemory, Swiotlb,
};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileSlice};

/// The pool's address, as the process sees it.
const POOL_AT: u64 = 1 << 40;

/// A pool that a process sees.
pub(super) struct Shared {
    memfd: File,
    bytes: usize,
    pool: Device<PoolMemory>,
    /// Slots of the pages, which stay.
    fixed: usize,
}

impl Shared {
    /// A pool of so many bytes.
    pub(super) fn new(bytes: usize) -> Result<Self> {
        let memfd = memfd_create(c"smmulab-pool", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let memfd = File::from(memfd);
        memfd.set_len(bytes as u64)?;
        // A process that made it shorter would end us.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals))?;
        let region = MmapRegion::from_file(FileOffset::new(memfd.try_clone()?, 0), bytes)?;
        let pool = Device::new(&Swiotlb::restricted(PoolMemory::new(POOL_AT, region), 1)?)?;
        Ok(Self { memfd, bytes, pool, fixed: 0 })
    }

    /// What the process is told of it.
    pub(super) fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: POOL_AT,
            memory_size: self.bytes as u64,
            // Addresses of rings are to be given in this space. It need not be a real one.
            userspace_addr: POOL_AT,
            mmap_offset: 0,
            mmap_handle: self.memfd.as_raw_fd(),
        }
    }

    /// A page for a virtqueue, for good.
    pub(super) fn page(&mut self) -> Result<u64> {
        self.fixed += PAGE_SIZE / IO_TLB_SIZE;
        Ok(self.pool.alloc(PAGE_SIZE, &Attributes::default())?)
    }

    /// A place for `len` bytes, which are zero. `None`: there is none now.
    pub(super) fn take(&self, len: usize) -> Option<u64> {
        self.pool.map(&Zeroes, 0, len, &Attributes::default()).ok()
    }

    /// Gives such a place back.
    pub(super) fn give(&self, address: u64, len: usize) {
        let attributes = Attributes { skip_cpu_sync: true, ..Attributes::default() };
        if let Err(e) = self.pool.unmap(&Zeroes, address, len, Direction::Bidirectional, &attributes) {
            log::error!("the pool of a vhost-user device: {e}");
        }
    }

    /// Slots in use beside the pages.
    pub(super) fn slots_used(&self) -> usize {
        self.pool.tlb().stats().used.saturating_sub(self.fixed)
    }

    /// Lets `f` see `len` bytes; `None` when they are not in the pool.
    pub(super) fn with<R>(
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

    /// Writes.
    pub(super) fn put(&self, address: u64, data: &[u8]) -> Option<()> {
        self.with(address, data.len(), |slice| {
            slice.copy_from(data);
            Some(())
        })
    }

    /// Reads.
    pub(super) fn get(&self, address: u64, data: &mut [u8]) {
        self.with(address, data.len(), |slice| Some(slice.copy_to(data)));
    }
}

/// The original of memory that is filled after it was mapped.
struct Zeroes;

impl Original for Zeroes {
    type Place<'a> = ();

    fn find(&self, _: u64, _: usize) {}

    fn read<B: BitmapSlice>(&self, (): (), _: u64, to: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        to.write_slice(&vec![0; to.len()], 0).map_err(|_| Fault { address: 0 })
    }

    fn write<B: BitmapSlice>(&self, address: u64, _: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        Err(Fault { address })
    }
}
