//! A shadow virtqueue: a split one (virtio 1.3 §2.7) in the memory that a process is given. Its descriptors are ours; the
//! guest's are never in it.

use std::sync::atomic::Ordering::{Acquire, Release};

use anyhow::{Context, Result};
use swiotlb::PAGE_SIZE;
use vhost::VringConfigData;
use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::Shared;

/// Descriptors.
pub(super) const QUEUE: u16 = 64;
/// Where in their page the available ring and the used ring are, behind the descriptors.
const AVAIL: u64 = 1024;
const USED: u64 = 2048;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A buffer of a chain.
pub(super) struct Buffer {
    pub(super) address: u64,
    pub(super) len: usize,
    /// The process writes to it; else it reads.
    pub(super) written: bool,
}

/// A virtqueue.
pub(super) struct Ring {
    at: u64,
    kick: EventFd,
    avail: u16,
    used: u16,
}

/// What a process returned.
pub(super) struct Used {
    /// The chain's first descriptor.
    pub(super) id: u32,
    /// How many bytes it says that it wrote.
    pub(super) len: u32,
}

impl Ring {
    /// A queue in `memory`.
    pub(super) fn new(memory: &mut Shared) -> Result<Self> {
        Ok(Self { at: memory.page()?, kick: EventFd::new(EFD_NONBLOCK)?, avail: 0, used: 0 })
    }

    /// What tells the process that there is something.
    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// What the process is told of it.
    pub(super) fn config(&self) -> VringConfigData {
        VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: 0,
            desc_table_addr: self.at,
            used_ring_addr: self.at + USED,
            avail_ring_addr: self.at + AVAIL,
            log_addr: None,
        }
    }

    /// Empties it, for another process.
    pub(super) fn reset(&mut self, memory: &Shared) {
        let _ = memory.put(self.at, &[0; PAGE_SIZE]);
        (self.avail, self.used) = (0, 0);
        let _ = self.kick.read();
    }

    /// Makes a chain available, with the descriptors from `first` on.
    ///
    /// # Errors
    /// When the queue is not in the pool, which it is.
    pub(super) fn make_available(&mut self, memory: &Shared, first: u16, chain: &[Buffer]) -> Result<()> {
        let last = chain.len().saturating_sub(1);
        (|| {
            for (n, buffer) in chain.iter().enumerate() {
                let (at, next) = (first + n as u16, if n < last { NEXT } else { 0 });
                let flags = next | if buffer.written { WRITE } else { 0 };
                let mut descriptor = [0; 16];
                descriptor[..8].copy_from_slice(&buffer.address.to_le_bytes());
                descriptor[8..12].copy_from_slice(&(buffer.len as u32).to_le_bytes());
                descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
                descriptor[14..].copy_from_slice(&(at + 1).to_le_bytes());
                memory.put(self.at + u64::from(at) * 16, &descriptor)?;
            }
            let entry = self.at + AVAIL + 4 + u64::from(self.avail % QUEUE) * 2;
            memory.put(entry, &first.to_le_bytes())?;
            self.avail = self.avail.wrapping_add(1);
            memory.with(self.at + AVAIL + 2, 2, |s| s.store(self.avail.to_le(), 0, Release).ok())
        })()
        .context("the pool cannot be written")?;
        let _ = self.kick.write(1);
        Ok(())
    }

    /// The next chain that the process has returned, of the `given` that it has.
    ///
    /// # Errors
    /// What it did that it must not.
    pub(super) fn take_used(&mut self, memory: &Shared, given: usize) -> Result<Option<Used>, &'static str> {
        let at = self.at + USED;
        let index =
            memory.with(at + 2, 2, |s| s.load::<u16>(0, Acquire).ok()).map_or(self.used, u16::from_le);
        let more = index.wrapping_sub(self.used);
        if more == 0 {
            return Ok(None);
        }
        if usize::from(more) > given {
            return Err("it returned more than it was given");
        }
        let mut element = [0; 8];
        memory.get(at + 4 + u64::from(self.used % QUEUE) * 8, &mut element);
        self.used = self.used.wrapping_add(1);
        let [a, b, c, d, e, f, g, h] = element;
        let (id, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        Ok(Some(Used { id, len }))
    }
}
