//! A device that is bounced: map, unmap, sync, and whether an address is a bounce buffer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::memory::{Fault, Memory, Original};
use crate::mutant::{self, Mutant};
use crate::ordering::{lookup_fence, map_fence};
use crate::pool::{Pool, Way};
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
        self.end::<Nothing>(tlb_address, 0, None)
    }

    #[inline(always)]
    fn map_slots<O: Original + ?Sized>(
        &self,
        original: &O,
        address: Option<u64>,
        size: usize,
        attributes: &Attributes,
    ) -> Result<u64, Error> {
        match Need::plain(size, attributes) {
            Some(need) => self.map_need(need, original, address, size),
            None => self.map_masked(original, address, size, attributes),
        }
    }

    /// A mapping that has masks. Apart, so that one that has none is short.
    #[inline(never)]
    fn map_masked<O: Original + ?Sized>(
        &self,
        original: &O,
        address: Option<u64>,
        size: usize,
        attributes: &Attributes,
    ) -> Result<u64, Error> {
        self.map_need(Need::new(address, size, attributes)?, original, address, size)
    }

    #[inline(always)]
    fn map_need<O: Original + ?Sized>(
        &self,
        need: Need,
        original: &O,
        address: Option<u64>,
        size: usize,
    ) -> Result<u64, Error> {
        let place = original.find(address.unwrap_or_default(), size);
        let mapped = match self.tlb.take(&need) {
            Some(first) => {
                self.begin(self.tlb.default_pool(), first, &need, (original, place), address, size)?
            }
            None => self.map_elsewhere(need, original, address, size)?,
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

    /// A mapping in slots of `pool` that have been taken; its address.
    #[inline(always)]
    fn begin<'a, O: Original + ?Sized>(
        &self,
        pool: &Pool<M>,
        first: usize,
        need: &Need,
        (original, place): (&'a O, O::Place<'a>),
        address: Option<u64>,
        size: usize,
    ) -> Result<u64, Error> {
        let found = pool.place(first, need, address, size);
        if let Err(error) = pool.fill(&found, original, place) {
            pool.give(first, need.slots);
            return Err(error.into());
        }
        if mutant::is(Mutant::RecordAfterFence) {
            self.set_flag();
            map_fence();
        }
        pool.record(&found);
        Ok(found.address)
    }

    /// A mapping that does not fit into the default pool. Apart, so that one that does is short.
    #[cold]
    #[inline(never)]
    fn map_elsewhere<O: Original + ?Sized>(
        &self,
        need: Need,
        original: &O,
        address: Option<u64>,
        size: usize,
    ) -> Result<u64, Error> {
        let begin = |pool: &Pool<M>, first| {
            let place = original.find(address.unwrap_or_default(), size);
            self.begin(pool, first, &need, (original, place), address, size)
        };
        if let Some(mapped) = self.tlb.take_added(&need, begin) {
            return mapped;
        }
        let (pool, first) = self.tlb.transient(&need).ok_or_else(|| self.tlb.full(&need))?;
        let mapped = begin(&pool, first)?;
        self.transient.update(|list| (list.with(pool), ()));
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
        self.end(tlb_address, size, copy.then_some(original))
    }

    /// Ends the mapping of at least `size` bytes at `tlb_address`, and copies these out, if there is where to.
    #[inline(always)]
    fn end<O: Original + ?Sized>(
        &self,
        tlb_address: u64,
        size: usize,
        original: Option<&O>,
    ) -> Result<(), Error> {
        lookup_fence();
        if !self.uses_io_tlb.load(Relaxed) {
            return Err(Error::NotMapped { address: tlb_address });
        }
        let pool = self.tlb.default_pool();
        match pool.contains(tlb_address) {
            true => end_in(pool, tlb_address, size, original),
            false => self.end_elsewhere(tlb_address, size, original),
        }
    }

    /// Ends a mapping that is not in the default pool. Apart, as [`Self::map_elsewhere`] is.
    #[cold]
    #[inline(never)]
    fn end_elsewhere<O: Original + ?Sized>(
        &self,
        tlb_address: u64,
        size: usize,
        original: Option<&O>,
    ) -> Result<(), Error> {
        let ended = self.search_pools(tlb_address, |pool| {
            let ended = end_in(pool, tlb_address, size, original);
            // Its slots are given back even if nothing could be copied out.
            let gone = matches!(ended, Ok(()) | Err(Error::Fault(_)));
            (ended, (gone && pool.is_transient()).then(|| pool.start()))
        });
        let (ended, transient) = ended.ok_or(Error::NotMapped { address: tlb_address })?;
        if let Some(start) = transient {
            self.transient.update(|list| (list.without(start), ()));
            rcu::reclaim();
        }
        ended
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
            if copy {
                pool.bounce(&found, tlb_address, size, way, original)?;
            }
            Ok(())
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
            Some(found.record.original()?.wrapping_add(tlb_address - found.address))
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

/// Ends the mapping of at least `size` bytes at `tlb_address`, in `pool`, and copies these out, if there is where to.
#[inline(always)]
fn end_in<M: Memory, O: Original + ?Sized>(
    pool: &Pool<M>,
    tlb_address: u64,
    size: usize,
    original: Option<&O>,
) -> Result<(), Error> {
    let Some(found) = pool.at(tlb_address) else {
        return Err(Error::NotMapped { address: tlb_address });
    };
    if !found.has(tlb_address, size) {
        return Err(Error::Range { address: tlb_address, size });
    }
    let copy = || match original {
        Some(original) => pool.bounce(&found, tlb_address, size, Way::Out, original),
        None => Ok(()),
    };
    let copied = if mutant::is(Mutant::CopyAfterFree) { Ok(()) } else { copy() };
    if !pool.release(&found) {
        return Err(Error::NotMapped { address: tlb_address });
    }
    Ok(if mutant::is(Mutant::CopyAfterFree) { copy() } else { copied }?)
}

/// The original of slots that have none.
struct Nothing;

impl Original for Nothing {
    type Place<'a> = ();

    fn find(&self, _: u64, _: usize) {}

    fn read<B: vm_memory::bitmap::BitmapSlice>(
        &self,
        (): (),
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
