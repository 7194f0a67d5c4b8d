//! Bounced devices: what stands behind a device sees a pool, and never guest memory.
//!
//! A port with a [`Bounce`] is a bounced device's. A request that the device takes off its ring is *mapped* first: it
//! gets slots in the pool (a step), and what the device is to read is copied in, translated by the SMMU as ever (a step
//! for each translation, fetch and beat). The device works on the copy. Then the request is *unmapped*: what the device
//! wrote is copied out (steps again), the slots are given back (a step), and the used ring tells the driver. So the
//! driver sees what it would see of a device without coherent access: nothing that it writes after the request was
//! taken, and nothing that the device writes before the request is returned.
//!
//! What a device only writes is not copied in, since its driver may have mapped it for writing only; its slots begin as
//! zeroes, and what the device did not write is not copied out.

mod mapping;
mod onlooker;
mod pool;

pub use mapping::{MapError, Mapping, Step};
pub use onlooker::{Copied, Onlooker, Taken};
pub use pool::{BounceStats, Pool, PoolConfig, PoolError, PoolStats};

pub use swiotlb::SwiotlbState;

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard};

use swiotlb::{
    Attributes, Direction, Error, Fault, IO_TLB_SEGSIZE, IO_TLB_SIZE, Original, PoolMemory, Swiotlb,
};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::dma::{DmaError, DmaPort};
use mapping::Piece;
use onlooker::Seat;

/// The longest piece of a buffer that one mapping can have.
const MAX_PIECE: u32 = (IO_TLB_SEGSIZE * IO_TLB_SIZE) as u32;

/// What the buffers of a request are in, as the device that works on it sees them.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    /// Guest memory: each access is a transaction.
    Guest(&'a DmaPort),
    /// A pool.
    Pool(&'a Bounce),
}

impl<'a> From<&'a DmaPort> for Memory<'a> {
    fn from(port: &'a DmaPort) -> Self {
        Memory::Guest(port)
    }
}

/// A device's share of a pool.
#[derive(Debug)]
pub struct Bounce {
    device: swiotlb::Device<PoolMemory>,
    stats: Counters,
    onlooker: Seat,
}

/// A device's counters, which may be read when the device is gone.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Mutex<BounceStats>>);

impl Counters {
    /// What they are.
    pub fn get(&self) -> BounceStats {
        *self.lock()
    }

    /// Sets them, when a snapshot is restored.
    pub fn set(&self, stats: &BounceStats) {
        *self.lock() = *stats;
    }

    fn lock(&self) -> MutexGuard<'_, BounceStats> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Bounce {
    /// The device's counters.
    pub fn stats(&self) -> BounceStats {
        self.stats.get()
    }

    /// The counters themselves.
    pub fn shared_counters(&self) -> Counters {
        self.stats.clone()
    }

    /// Sets the counters, when a snapshot is restored.
    pub fn restore_stats(&self, stats: &BounceStats) {
        self.stats.set(stats);
        self.device.restore_uses_io_tlb(stats.mappings > 0);
    }

    /// What the pool knows of the device.
    pub fn device(&self) -> &swiotlb::Device<PoolMemory> {
        &self.device
    }

    /// Who watches the device's buffers, if somebody does.
    #[inline]
    pub fn onlooker(&self) -> Option<&dyn Onlooker> {
        self.onlooker.get().map(|onlooker| &**onlooker)
    }

    /// The pools.
    pub fn tlb(&self) -> &Arc<Swiotlb<PoolMemory>> {
        self.device.tlb()
    }

    /// The address in guest memory whose copy is at `address` in the pool.
    pub fn original(&self, address: u64) -> Option<u64> {
        self.device.original_address(address)
    }

    /// Copies from the pool.
    ///
    /// # Errors
    /// When not all of it is in one pool.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), DmaError> {
        self.with(address, data.len(), |slice| slice.copy_to(data))
    }

    /// Copies to the pool.
    ///
    /// # Errors
    /// As [`Bounce::read`].
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), DmaError> {
        self.with(address, data.len(), |slice| {
            slice.copy_from(data);
            data.len()
        })
    }

    fn with(
        &self,
        address: u64,
        len: usize,
        access: impl FnOnce(VolatileSlice<'_, ()>) -> usize,
    ) -> Result<(), DmaError> {
        let moved = self.device.find_pool(address, |pool| {
            let inside = pool.end() - address >= len as u64;
            inside.then(|| {
                let offset = (address - pool.start()) as usize;
                access(swiotlb::Memory::slice(pool.memory(), offset, len))
            })
        });
        if moved.flatten() == Some(len) { Ok(()) } else { Err(DmaError::External) }
    }

    fn counters(&self) -> MutexGuard<'_, BounceStats> {
        self.stats.lock()
    }

    /// Takes slots for all of `pieces`, or for none. Says whether there were enough.
    fn take(&self, pieces: &mut [Piece]) -> bool {
        let need: usize = pieces.iter().map(Piece::slots).sum();
        let stats = self.tlb().stats();
        let mut taken = 0;
        if need <= stats.slots - stats.used.min(stats.slots) {
            for piece in pieces.iter_mut() {
                let attributes = Attributes::default();
                match self.device.map(&Zeroes, piece.original, piece.size as usize, &attributes) {
                    Ok(address) => piece.address = address,
                    Err(Error::Full { .. }) => break,
                    Err(e) => {
                        log::error!("bounce pool: {e}");
                        break;
                    }
                }
                taken += 1;
            }
        }
        if taken < pieces.len() {
            pieces[..taken].iter().for_each(|piece| self.give(piece));
            return false;
        }
        let mut counters = self.counters();
        counters.mappings += pieces.len() as u64;
        counters.used += need;
        counters.used_hiwater = counters.used_hiwater.max(counters.used);
        true
    }

    /// Whether `pieces` could have slots if nothing else had any.
    fn could_hold(&self, pieces: &[Piece]) -> bool {
        pieces.iter().map(Piece::slots).sum::<usize>() <= self.counters().most_slots
    }

    /// Adds a pool if it may, since there was no room.
    fn grow(&self) -> bool {
        self.tlb().grow().is_ok()
    }

    /// Gives back the slots of `pieces`.
    fn give_all(&self, pieces: &[Piece]) {
        pieces.iter().for_each(|piece| self.give(piece));
        let mut counters = self.counters();
        counters.used = counters.used.saturating_sub(pieces.iter().map(Piece::slots).sum());
    }

    fn give(&self, piece: &Piece) {
        let attributes = Attributes { skip_cpu_sync: true, ..Attributes::default() };
        let (size, direction) = (piece.size as usize, Direction::Bidirectional);
        if let Err(e) = self.device.unmap(&Zeroes, piece.address, size, direction, &attributes) {
            log::error!("bounce pool: {e}");
        }
    }

    /// A beat that has been read from guest memory: into the pool at `address`.
    fn bounce_in(&self, address: u64, data: &mut [u8]) -> Result<(), DmaError> {
        let len = data.len();
        self.counters().bytes_in += len as u64;
        self.device
            .sync_for_device(&Beat(RefCell::new(data)), address, len, Direction::ToDevice)
            .map_err(|_| DmaError::External)
    }

    /// A beat that is to be written to guest memory: from the pool at `address`.
    fn bounce_out(&self, address: u64, data: &mut [u8]) -> Result<(), DmaError> {
        let len = data.len();
        self.counters().bytes_out += len as u64;
        self.device
            .sync_for_cpu(&Beat(RefCell::new(data)), address, len, Direction::FromDevice)
            .map_err(|_| DmaError::External)
    }
}

/// The original of slots whose bytes come later, beat by beat.
struct Zeroes;

impl Original for Zeroes {
    type Place<'a> = ();

    fn find(&self, _: u64, _: usize) {}

    fn read<B: BitmapSlice>(&self, (): (), _: u64, to: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        const NOTHING: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < to.len() {
            let part = to.offset(done).map_err(|_| Fault { address: 0 })?;
            part.copy_from(&NOTHING[..NOTHING.len().min(part.len())]);
            done += NOTHING.len();
        }
        Ok(())
    }

    fn write<B: BitmapSlice>(&self, address: u64, _: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        Err(Fault { address })
    }
}

/// The bytes of one beat, which stand for the original's.
struct Beat<'a>(RefCell<&'a mut [u8]>);

impl Original for Beat<'_> {
    type Place<'a>
        = ()
    where
        Self: 'a;

    fn find(&self, _: u64, _: usize) {}

    fn read<B: BitmapSlice>(&self, (): (), _: u64, to: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        to.copy_from(&self.0.borrow());
        Ok(())
    }

    fn write<B: BitmapSlice>(&self, _: u64, from: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        from.copy_to(&mut self.0.borrow_mut());
        Ok(())
    }
}
