//! A device that is bounced: map, unmap, sync, and whether an address is a bounce buffer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::memory::{Fault, Memory, Original};
use crate::mutant::{self, Mutant};
use crate::ordering::{lookup_fence, map_fence};
use crate::pool::{Found, Pool, Way};
use crate::rcu::{self, Rcu};
use crate::segment::Need;
use crate::swiotlb::PoolList;
use crate::sync::AtomicBool;
use crate::{Attributes, Direction, Error, Swiotlb};

/// What one device has of a [`Swiotlb`]: the flag that it has ever used it, and its transient pools.
pub struct Device<M: Memory> {
    tlb: Arc<Swiotlb<M>>,
    /// Whether the device has ever had a bounce buffer (`dma_uses_io_tlb`). Never cleared.
    uses_io_tlb: AtomicBool,
    /// Pools of one mapping each (`dma_io_tlb_pools`).
    transient: Rcu<PoolList<M>>,
}

impl<M: Memory> std::fmt::Debug for Device<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("uses_io_tlb", &self.uses_io_tlb).finish_non_exhaustive()
    }
}

impl<M: Memory> Drop for Device<M> {
    fn drop(&mut self) {
        self.tlb.detach();
    }
}

impl<M: Memory> Device<M> {
    /// A device that uses `tlb`.
    ///
    /// # Errors
    /// [`Error::Restricted`]: another device has the pool to itself.
    pub fn new(tlb: &Arc<Swiotlb<M>>) -> Result<Self, Error> {
        tlb.attach()?;
        Ok(Device {
            tlb: tlb.clone(),
            uses_io_tlb: AtomicBool::new(false),
            transient: Rcu::new(PoolList::new(Vec::new())),
        })
    }

    /// The pools that the device uses.
    pub fn tlb(&self) -> &Arc<Swiotlb<M>> {
        &self.tlb
    }

    /// Gives the device a copy of the `size` bytes of `original` at `address`, and says where
    /// (`swiotlb_tbl_map_single`). The copy is made whatever the direction: what the device does not write must come
    /// back as it was. What else is in the slots is zeroed.
    ///
    /// # Errors
    /// [`Error::Size`] and [`Error::Mask`]: no pool can do it; [`Error::Full`]: none can now; [`Error::Fault`]: the
    /// original cannot be read. Nothing is then mapped.
    #[inline]
    pub fn map<O: Original + ?Sized>(
        &self,
        original: &O,
        address: u64,
        size: usize,
        attributes: &Attributes,
    ) -> Result<u64, Error> {
        self.map_slots(original, Some(address), size, attributes)
    }

    /// Gives the device `size` bytes of its own, zeroed and aligned to a page or `attributes.alloc_align_mask`
    /// (`swiotlb_alloc`): for a ring in the pool. Ends with [`Device::free`].
    ///
    /// # Errors
    /// As [`Device::map`].
    pub fn alloc(&self, size: usize, attributes: &Attributes) -> Result<u64, Error> {
        let page = crate::PAGE_SIZE as u64 - 1;
        let attributes = Attributes { alloc_align_mask: attributes.alloc_align_mask | page, ..*attributes };
        self.map_slots(&Nothing, None, size, &attributes)
    }

    /// Ends what [`Device::alloc`] gave.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    pub fn free(&self, tlb_address: u64) -> Result<(), Error> {
        self.end(tlb_address, 0, |_, _| Ok(()))
    }

    #[inline]
    fn map_slots<O: Original + ?Sized>(
        &self,
        original: &O,
        address: Option<u64>,
        size: usize,
        attributes: &Attributes,
    ) -> Result<u64, Error> {
        let need = Need::new(address, size, attributes)?;
        let begin = |pool: &Pool<M>, first: usize| {
            let found = pool.place(first, &need, address, size);
            if let Err(error) = pool.fill(&found, original) {
                pool.give(first, need.slots);
                return Err(error);
            }
            if mutant::is(Mutant::RecordAfterFence) {
                self.set_flag();
                map_fence();
            }
            pool.record(&found);
            Ok(found.address)
        };
        let mapped = match self.tlb.take(&need, begin) {
            Some(mapped) => mapped?,
            None => {
                let (pool, first) = self.tlb.transient(&need).ok_or_else(|| self.tlb.full(&need))?;
                let mapped = begin(&pool, first)?;
                self.transient.update(|list| (list.with(pool), ()));
                mapped
            }
        };
        if mutant::is(Mutant::FlagAfterFence) {
            map_fence();
        }
        self.set_flag();
        if !mutant::is(Mutant::FlagAfterFence) && !mutant::is(Mutant::RecordAfterFence) {
            map_fence();
        }
        Ok(mapped)
    }

    #[inline]
    fn set_flag(&self) {
        // Read first: after the first mapping the line stays shared by all CPUs. That the flag was seen set is ordered by
        // the fence just as setting it would be.
        if !self.uses_io_tlb.load(Relaxed) {
            self.uses_io_tlb.store(true, Relaxed);
        }
    }

    /// Ends the mapping at `tlb_address`: copies the first `size` bytes out if the device could write, and gives the slots
    /// back (`swiotlb_tbl_unmap_single`).
    ///
    /// # Errors
    /// [`Error::NotMapped`], [`Error::Range`]: nothing has changed. [`Error::Fault`]: the original cannot be written; the
    /// mapping has ended all the same.
    #[inline]
    pub fn unmap<O: Original + ?Sized>(
        &self,
        original: &O,
        tlb_address: u64,
        size: usize,
        direction: Direction,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        let copy = direction.from_device() && !attributes.skip_cpu_sync;
        self.end(tlb_address, size, |pool, found| match copy {
            true => pool.bounce(found, tlb_address, size, Way::Out, original),
            false => Ok(()),
        })
    }

    /// Ends the mapping of at least `size` bytes at `tlb_address` after `last` has done what is to be done with it.
    #[inline]
    fn end(
        &self,
        tlb_address: u64,
        size: usize,
        last: impl Fn(&Pool<M>, &Found) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // Written from inside: results in results cost more to hand on than all of this.
        let mut result = Err(Error::NotMapped { address: tlb_address });
        let mut transient = None;
        let end = |pool: &Pool<M>| {
            let Some(found) = pool.find(tlb_address).filter(|found| found.address == tlb_address) else {
                return;
            };
            if !found.has(tlb_address, size) {
                result = Err(Error::Range { address: tlb_address, size });
                return;
            }
            let copied = if mutant::is(Mutant::CopyAfterFree) { Ok(()) } else { last(pool, &found) };
            if !pool.release(&found) {
                return;
            }
            result = if mutant::is(Mutant::CopyAfterFree) { last(pool, &found) } else { copied };
            transient = pool.is_transient().then(|| pool.start());
        };
        let _ = self.search(tlb_address, end);
        if let Some(start) = transient {
            self.transient.update(|list| (list.without(start), ()));
            rcu::reclaim();
        }
        result
    }

    /// The device is about to look: copies `size` bytes from `tlb_address` on, any part of a mapping, from the original
    /// (`swiotlb_sync_single_for_device`). Nothing to do for a buffer that the device only writes.
    ///
    /// # Errors
    /// [`Error::NotMapped`], [`Error::Range`], [`Error::Fault`].
    pub fn sync_for_device<O: Original + ?Sized>(
        &self,
        original: &O,
        tlb_address: u64,
        size: usize,
        direction: Direction,
    ) -> Result<(), Error> {
        self.sync(original, tlb_address, size, Way::In, direction.to_device())
    }

    /// The CPU is about to look: copies `size` bytes from `tlb_address` on, any part of a mapping, to the original
    /// (`swiotlb_sync_single_for_cpu`). Nothing to do for a buffer that the device only reads.
    ///
    /// # Errors
    /// [`Error::NotMapped`], [`Error::Range`], [`Error::Fault`].
    pub fn sync_for_cpu<O: Original + ?Sized>(
        &self,
        original: &O,
        tlb_address: u64,
        size: usize,
        direction: Direction,
    ) -> Result<(), Error> {
        self.sync(original, tlb_address, size, Way::Out, direction.from_device())
    }

    fn sync<O: Original + ?Sized>(
        &self,
        original: &O,
        tlb_address: u64,
        size: usize,
        way: Way,
        copy: bool,
    ) -> Result<(), Error> {
        self.search(tlb_address, |pool| {
            let found = pool.find(tlb_address).ok_or(Error::NotMapped { address: tlb_address })?;
            if !found.has(tlb_address, size) {
                return Err(Error::Range { address: tlb_address, size });
            }
            if copy { pool.bounce(&found, tlb_address, size, way, original) } else { Ok(()) }
        })
        .ok_or(Error::NotMapped { address: tlb_address })?
    }

    /// Whether `address` is in a pool that the device uses (`is_swiotlb_buffer`). For a device that has never been
    /// bounced: one relaxed load and a branch, after a fence that x86 has no instruction for.
    #[inline]
    pub fn is_bounce_buffer(&self, address: u64) -> bool {
        lookup_fence();
        self.uses_io_tlb.load(Relaxed) && self.is_in_a_pool(address)
    }

    /// Apart, so that the above stays short enough to be compiled into its caller.
    #[inline(never)]
    fn is_in_a_pool(&self, address: u64) -> bool {
        self.search_pools(address, |_| ()).is_some()
    }

    /// Lets `f` see the pool that `address` is in (`swiotlb_find_pool`), which lasts at least until `f` returns.
    #[inline]
    pub fn find_pool<R>(&self, address: u64, f: impl FnOnce(&Pool<M>) -> R) -> Option<R> {
        self.search(address, f)
    }

    /// The original of the byte at `tlb_address`; `None` where nothing is mapped.
    pub fn original_address(&self, tlb_address: u64) -> Option<u64> {
        self.search(tlb_address, |pool| {
            let found = pool.find(tlb_address)?;
            Some(found.record.original?.wrapping_add(tlb_address - found.address))
        })?
    }

    /// Whether the device has ever had a bounce buffer.
    pub fn uses_io_tlb(&self) -> bool {
        self.uses_io_tlb.load(Relaxed)
    }

    /// Sets or clears that, when a saved state is taken over. Nobody may be using the device.
    pub fn restore_uses_io_tlb(&self, uses: bool) {
        self.uses_io_tlb.store(uses, Relaxed);
    }

    /// The start of everything that is given an address.
    #[inline(always)]
    fn search<R>(&self, address: u64, f: impl FnOnce(&Pool<M>) -> R) -> Option<R> {
        lookup_fence();
        if self.uses_io_tlb.load(Relaxed) { self.search_pools(address, f) } else { None }
    }

    #[inline]
    fn search_pools<R>(&self, address: u64, f: impl FnOnce(&Pool<M>) -> R) -> Option<R> {
        match self.tlb.find(address, f)? {
            Ok(result) => Some(result),
            Err(f) => self.transient.read(|list| list.find(address).map(|pool| f(pool))),
        }
    }
}

/// The original of slots that have none.
struct Nothing;

impl Original for Nothing {
    fn read<B: vm_memory::bitmap::BitmapSlice>(
        &self,
        address: u64,
        _: &vm_memory::VolatileSlice<'_, B>,
    ) -> Result<(), Fault> {
        Err(Fault { address })
    }

    fn write<B: vm_memory::bitmap::BitmapSlice>(
        &self,
        address: u64,
        _: &vm_memory::VolatileSlice<'_, B>,
    ) -> Result<(), Fault> {
        Err(Fault { address })
    }
}
