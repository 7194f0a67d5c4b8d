//! The pools that devices share, their growth, and the counts.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::area::Area;
use crate::memory::{Memory, Provider};
use crate::mutant::{self, Mutant};
use crate::pool::{Kind, Pool};
use crate::rcu::{self, Rcu};
use crate::segment::Need;
use crate::state::{StateError, SwiotlbState};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, lock};
use crate::{Error, IO_TLB_SHIFT, IO_TLB_SIZE};

/// How a [`Swiotlb`] may grow beyond its default pool (`CONFIG_SWIOTLB_DYNAMIC`).
pub struct Growth<M> {
    /// Gives the memory.
    pub provider: Box<dyn Provider<M>>,
    /// Slots of each pool that is added.
    pub pool_slots: usize,
    /// Slots of all added pools at most.
    pub max_slots: usize,
    /// Slots of all transient pools at most, those included whose grace period is not over.
    pub max_transient: usize,
    /// No byte of an added pool is above this address.
    pub limit: u64,
}

/// Slots that live in pools that come and go; shared with these, which may outlive the [`Swiotlb`] by a grace period.
#[derive(Debug)]
pub(crate) struct Counts {
    grown: AtomicUsize,
    transient: AtomicUsize,
    transient_used: AtomicUsize,
}

impl Counts {
    /// Forgets the slots of a pool whose memory is being given back.
    pub(crate) fn remove(&self, kind: Kind, slots: usize) {
        if let Some(count) = self.of(kind) {
            count.fetch_sub(slots, Relaxed);
        }
    }

    fn of(&self, kind: Kind) -> Option<&AtomicUsize> {
        match kind {
            Kind::Default => None,
            Kind::Grown => Some(&self.grown),
            Kind::Transient => Some(&self.transient),
        }
    }

    #[inline]
    pub(crate) fn transient_used(&self, kind: Kind, slots: usize, more: bool) {
        match (kind, more) {
            (Kind::Transient, true) => drop(self.transient_used.fetch_add(slots, Relaxed)),
            (Kind::Transient, false) => drop(self.transient_used.fetch_sub(slots, Relaxed)),
            _ => {}
        }
    }
}

/// What `/sys/kernel/debug/swiotlb` shows, and a little more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Slots in the default and the added pools (`io_tlb_nslabs`).
    pub slots: usize,
    /// Slots in use, padding and transient pools included (`io_tlb_used`).
    pub used: usize,
    /// The most there have been in use at a time (`io_tlb_used_hiwater`). Exact, unless other mappings came or went while
    /// one set it: then it may be too high by what those had.
    pub used_hiwater: usize,
    /// Slots in transient pools (`io_tlb_transient_nslabs`), those included whose memory waits for its grace period.
    pub transient_slots: usize,
    /// Pools, the default one included, transient ones not.
    pub pools: usize,
    /// Mappings refused for want of free slots.
    pub failures: u64,
}

/// Pools sorted by address.
#[derive(Debug)]
pub(crate) struct PoolList<M> {
    pools: Vec<Arc<Pool<M>>>,
    /// loom does not see plain memory; it sees whether this has been published with the list.
    #[cfg(loom)]
    whole: AtomicBool,
}

impl<M: Memory> PoolList<M> {
    pub(crate) fn new(pools: Vec<Arc<Pool<M>>>) -> Self {
        #[cfg(loom)]
        {
            let whole = AtomicBool::new(false);
            whole.store(true, Relaxed);
            PoolList { pools, whole }
        }
        #[cfg(not(loom))]
        PoolList { pools }
    }

    #[inline]
    pub(crate) fn pools(&self) -> &[Arc<Pool<M>>] {
        #[cfg(loom)]
        assert!(self.whole.load(Relaxed), "a list is read before it has been written");
        &self.pools
    }

    /// The pool that `address` is in.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<&Arc<Pool<M>>> {
        let pools = self.pools();
        let after = pools.partition_point(|pool| pool.start() <= address);
        pools[..after].last().filter(|pool| pool.contains(address))
    }

    pub(crate) fn with(&self, pool: Arc<Pool<M>>) -> Self {
        let mut pools = self.pools().to_vec();
        let at = pools.partition_point(|other| other.start() < pool.start());
        pools.insert(at, pool);
        PoolList::new(pools)
    }

    /// The list without the pool that starts at `start`.
    pub(crate) fn without(&self, start: u64) -> Self {
        PoolList::new(self.pools().iter().filter(|pool| pool.start() != start).cloned().collect())
    }
}

/// A bounce pool that devices share, or that one has to itself (`io_tlb_mem`).
///
/// The high-water mark is kept without a counter that all threads write to: each area has an *allowance*, the sum of all
/// never exceeds the mark, and only a mapping that takes its area beyond it looks at the other areas.
pub struct Swiotlb<M> {
    default: Pool<M>,
    added: Rcu<PoolList<M>>,
    growth: Option<Growth<M>>,
    areas: usize,
    /// A mapping did not fit: somebody should call [`Swiotlb::grow`].
    wants_growth: AtomicBool,
    /// `Some`: only one device may use it, and whether there is one yet.
    restricted: Option<AtomicBool>,
    counts: Arc<Counts>,
    used_hiwater: Mutex<usize>,
    failures: AtomicU64,
}

impl<M> std::fmt::Debug for Swiotlb<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swiotlb").finish_non_exhaustive()
    }
}

impl<M: Memory> Swiotlb<M> {
    /// A bounce pool in `memory` with as many locks as `areas` (rounded down to a power of two, and to what there are
    /// segments for): best one for every thread that maps.
    ///
    /// # Errors
    /// [`Error::Memory`]: memory that is empty, unaligned, or wraps round.
    pub fn new(memory: M, areas: usize, growth: Option<Growth<M>>) -> Result<Arc<Self>, Error> {
        Self::build(memory, areas, growth, None)
    }

    /// A pool that one [`crate::Device`] has to itself (`restricted-dma-pool`); it never grows.
    ///
    /// # Errors
    /// As [`Swiotlb::new`].
    pub fn restricted(memory: M, areas: usize) -> Result<Arc<Self>, Error> {
        Self::build(memory, areas, None, Some(AtomicBool::new(false)))
    }

    fn build(
        memory: M,
        areas: usize,
        growth: Option<Growth<M>>,
        restricted: Option<AtomicBool>,
    ) -> Result<Arc<Self>, Error> {
        let counts = Arc::new(Counts {
            grown: AtomicUsize::new(0),
            transient: AtomicUsize::new(0),
            transient_used: AtomicUsize::new(0),
        });
        Ok(Arc::new(Swiotlb {
            default: Pool::new(memory, areas, Kind::Default, counts.clone())?,
            added: Rcu::new(PoolList::new(Vec::new())),
            growth,
            areas,
            wants_growth: AtomicBool::new(false),
            restricted,
            counts,
            used_hiwater: Mutex::new(0),
            failures: AtomicU64::new(0),
        }))
    }

    /// The pool there has been from the start.
    pub fn default_pool(&self) -> &Pool<M> {
        &self.default
    }

    /// Whether only one device may use the pool.
    pub fn is_restricted(&self) -> bool {
        self.restricted.is_some()
    }

    /// A device begins to use the pool.
    pub(crate) fn attach(&self) -> Result<(), Error> {
        match &self.restricted {
            Some(taken) if taken.swap(true, Relaxed) => Err(Error::Restricted),
            _ => Ok(()),
        }
    }

    /// A device is gone.
    pub(crate) fn detach(&self) {
        if let Some(taken) = &self.restricted {
            taken.store(false, Relaxed);
        }
    }

    /// Lets `f` see the pool that `address` is in. `Some(Err(f))`: it may be a transient one.
    #[inline]
    pub(crate) fn find<R, F: FnOnce(&Pool<M>) -> R>(&self, address: u64, f: F) -> Option<Result<R, F>> {
        if self.default.contains(address) {
            return Some(Ok(f(&self.default)));
        }
        self.growth.as_ref()?;
        Some(self.added.read(|list| match list.find(address) {
            Some(pool) => Ok(f(pool)),
            None => Err(f),
        }))
    }

    /// Takes slots in the default pool.
    #[inline(always)]
    pub(crate) fn take(&self, need: &Need) -> Option<usize> {
        match self.default.take_own(need) {
            Some(taken) => Some(self.note_taken(taken)),
            None => self.take_beside(*need),
        }
    }

    /// In any area of the default pool.
    #[cold]
    #[inline(never)]
    fn take_beside(&self, need: Need) -> Option<usize> {
        self.default.take(&need).map(|taken| self.note_taken(taken))
    }

    /// What a pool says that was taken: the first slot's number, once the area is within its allowance.
    #[inline(always)]
    fn note_taken(&self, (slot, area, over): (usize, &Area, bool)) -> usize {
        if over {
            self.raise_hiwater(Some(area));
        }
        slot
    }

    /// Takes slots in an added pool, and lets `f` use them.
    pub(crate) fn take_added<R>(&self, need: &Need, f: impl FnOnce(&Pool<M>, usize) -> R) -> Option<R> {
        self.growth.as_ref()?;
        self.added.read(|list| {
            let (pool, taken) = list.pools().iter().find_map(|pool| Some((pool, pool.take(need)?)))?;
            Some(f(pool, self.note_taken(taken)))
        })
    }

    /// Makes a pool for one mapping, and asks for growth. Its slots are taken; the caller puts it where it is found.
    pub(crate) fn transient(&self, need: &Need) -> Option<(Arc<Pool<M>>, usize)> {
        let growth = self.growth.as_ref()?;
        self.wants_growth.store(true, Relaxed);
        let (slots, align) = need.own_pool()?;
        let bytes = slots.checked_mul(IO_TLB_SIZE)?;
        let pool = self.allocate(growth, Kind::Transient, bytes, align, need.limit.min(growth.limit))?;
        let (slot, ..) = pool.take(need)?;
        self.counts.transient_used(Kind::Transient, need.slots, true);
        self.raise_hiwater(None);
        Some((Arc::new(pool), slot))
    }

    fn allocate(
        &self,
        growth: &Growth<M>,
        kind: Kind,
        bytes: usize,
        align: u64,
        limit: u64,
    ) -> Option<Pool<M>> {
        let (most, areas) = match kind {
            Kind::Transient => (growth.max_transient, 1),
            _ => (growth.max_slots, self.areas),
        };
        let count = self.counts.of(kind)?;
        // Counted first, so that the limit holds with any number of threads.
        let slots = bytes >> IO_TLB_SHIFT;
        let more = |now: usize| now.checked_add(slots).filter(|&then| then <= most);
        count.fetch_update(Relaxed, Relaxed, more).ok()?;
        let pool = growth
            .provider
            .allocate(bytes, align, limit)
            .filter(|memory| memory.len() >> IO_TLB_SHIFT == slots)
            .and_then(|memory| Pool::new(memory, areas, kind, self.counts.clone()).ok());
        if pool.is_none() {
            self.counts.remove(kind, slots);
        }
        pool.filter(|pool| pool.end() - 1 <= limit)
    }

    /// Whether a mapping has not fitted since this was last asked: time to call [`Swiotlb::grow`].
    pub fn take_growth_request(&self) -> bool {
        self.wants_growth.swap(false, Relaxed)
    }

    /// Adds a pool (`swiotlb_dyn_alloc`, which the kernel runs in a worker), and says which addresses it has. Mappings may
    /// go on meanwhile.
    ///
    /// # Errors
    /// [`Error::CannotGrow`]: the limit is reached, or there is no memory.
    pub fn grow(&self) -> Result<std::ops::Range<u64>, Error> {
        let growth = self.growth.as_ref().ok_or(Error::CannotGrow)?;
        let bytes = growth.pool_slots << IO_TLB_SHIFT;
        let align = crate::PAGE_SIZE as u64;
        let pool = self.allocate(growth, Kind::Grown, bytes, align, growth.limit).ok_or(Error::CannotGrow)?;
        let range = pool.start()..pool.end();
        self.added.update(|list| (list.with(Arc::new(pool)), ()));
        Ok(range)
    }

    /// Removes the added pools in which nothing is mapped, and says how many. Their memory is given back after a grace
    /// period.
    pub fn shrink(&self) -> usize {
        let removed = self.added.update(|list| {
            let (mut gone, mut kept) = (Vec::new(), Vec::new());
            for pool in list.pools() {
                (if close(pool) { &mut gone } else { &mut kept }).push(pool.clone());
            }
            (PoolList::new(kept), gone.len())
        });
        rcu::reclaim();
        removed
    }

    /// Gives back the memory of removed pools that nobody can be using any more. Needed only if it must not wait for the
    /// next removal: one made while another thread looked something up leaves its memory to somebody later.
    pub fn reclaim(&self) {
        rcu::reclaim();
    }

    /// After a mapping took `area` (or, without one, a transient pool) beyond its allowance.
    #[cold]
    fn raise_hiwater(&self, area: Option<&Area>) {
        let mut hiwater = lock(&self.used_hiwater);
        let mut used = self.counts.transient_used.load(Relaxed);
        self.for_each_pool(|pool| {
            for area in pool.areas() {
                let mut state = area.lock();
                state.allowance = state.used;
                used += state.used;
            }
        });
        if used > *hiwater {
            *hiwater = used;
        } else if let Some(area) = area {
            area.lock().allowance += *hiwater - used;
        }
    }

    /// All of it as plain data. Nobody may be using it meanwhile, and there must be no transient pool.
    pub fn save(&self) -> SwiotlbState {
        let mut pools = Vec::new();
        self.for_each_pool(|pool| pools.push(pool.save()));
        SwiotlbState {
            pools,
            used_hiwater: *lock(&self.used_hiwater),
            failures: self.failures.load(Relaxed),
            wants_growth: self.wants_growth.load(Relaxed),
        }
    }

    /// Takes over a state in place of what is mapped. Added pools are made anew, where the saved ones were.
    ///
    /// # Errors
    /// [`StateError`]: the state is of another pool, contradicts itself, or the provider has not the memory for it. What
    /// is mapped then is not defined.
    pub fn restore(&self, state: &SwiotlbState) -> Result<(), StateError> {
        let (default, added) = state.pools.split_first().ok_or(StateError)?;
        self.default.restore(default)?;
        if self.growth.is_some() {
            self.added.update(|_| (PoolList::new(Vec::new()), ()));
            rcu::reclaim();
        }
        for saved in added {
            let growth = self.growth.as_ref().filter(|g| g.pool_slots == saved.slots).ok_or(StateError)?;
            let memory =
                growth.provider.allocate_at(saved.start, saved.slots << IO_TLB_SHIFT).ok_or(StateError)?;
            self.counts.grown.fetch_add(saved.slots, Relaxed);
            let pool = Pool::new(memory, self.areas, Kind::Grown, self.counts.clone()).map_err(|_| {
                self.counts.remove(Kind::Grown, saved.slots);
                StateError
            })?;
            pool.restore(saved)?;
            self.added.update(|list| (list.with(Arc::new(pool)), ()));
        }
        *lock(&self.used_hiwater) = state.used_hiwater;
        self.failures.store(state.failures, Relaxed);
        self.wants_growth.store(state.wants_growth, Relaxed);
        Ok(())
    }

    fn for_each_pool(&self, mut f: impl FnMut(&Pool<M>)) {
        f(&self.default);
        if self.growth.is_some() {
            self.added.read(|list| list.pools().iter().for_each(|pool| f(pool)));
        }
    }

    #[cold]
    pub(crate) fn full(&self, need: &Need) -> Error {
        self.failures.fetch_add(1, Relaxed);
        let Stats { slots: total, used, .. } = self.stats();
        Error::Full { slots: need.slots, used, total }
    }

    /// The counts as they are. With mappings going on, they are of slightly different moments.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            used: self.counts.transient_used.load(Relaxed),
            used_hiwater: *lock(&self.used_hiwater),
            transient_slots: self.counts.transient.load(Relaxed),
            failures: self.failures.load(Relaxed),
            ..Stats::default()
        };
        self.for_each_pool(|pool| {
            stats.pools += 1;
            stats.slots += pool.slots();
            stats.used += pool.areas().iter().map(|area| area.lock().used).sum::<usize>();
        });
        stats
    }

    /// Free slots, counted one by one: with [`Stats::used`] of the default and added pools they must be all there are.
    pub fn count_free(&self) -> usize {
        let mut free = 0;
        self.for_each_pool(|pool| free += pool.free());
        free
    }
}

/// Sees to it that no mapping begins in `pool` any more, unless there is one.
fn close<M: Memory>(pool: &Pool<M>) -> bool {
    if mutant::is(Mutant::NoClose) {
        return pool.areas().iter().all(|area| area.lock().used == 0);
    }
    let mut states: Vec<_> = pool.areas().iter().map(Area::lock).collect();
    let idle = states.iter().all(|state| state.used == 0);
    if idle {
        states.iter_mut().for_each(|state| state.closed = true);
    }
    idle
}
