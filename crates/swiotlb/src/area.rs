//! An area: some segments of a pool, with a lock of their own.

use crate::segment::{Need, low};
use crate::state::{AreaState, StateError};
use crate::sync::{Mutex, MutexGuard, lock};
use crate::{IO_TLB_SEGSIZE, IO_TLB_SIZE};

/// Areas are a pair of cache lines apart, or threads in different ones would still slow each other down.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Area {
    state: Mutex<State>,
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct State {
    /// Slots in use.
    pub used: usize,
    /// As long as `used` is at most this, the pool's high-water mark cannot rise; see [`crate::Swiotlb`].
    pub allowance: usize,
    /// No mapping may begin here any more: the pool is being removed.
    pub closed: bool,
    /// The segment in which the last mapping was found, where the search begins.
    index: usize,
    segments: Box<[Free]>,
}

/// Which slots of a segment are free: a bit each, in two halves, since most mappings need only one, and one register.
type Free = [u64; 2];

/// Slots in half a segment.
const HALF: usize = IO_TLB_SEGSIZE / 2;

/// Both halves.
fn whole(free: Free) -> u128 {
    u128::from(free[0]) | u128::from(free[1]) << HALF
}

fn halves(free: u128) -> Free {
    [free as u64, (free >> HALF) as u64]
}

impl Area {
    /// An area of `slots` free slots.
    pub(crate) fn new(slots: usize) -> Self {
        Area { state: Mutex::new(State::new(slots)) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn new(slots: usize) -> Self {
        let segments =
            (0..slots.div_ceil(IO_TLB_SEGSIZE)).map(|n| halves(low(slots - n * IO_TLB_SEGSIZE))).collect();
        State { used: 0, allowance: 0, closed: false, index: 0, segments }
    }

    /// Takes the slots that `need` asks for from this area, whose first slot is at address `start`. The number of the
    /// first one within the area.
    #[inline(always)]
    pub(crate) fn take(&mut self, start: u64, need: &Need) -> Option<usize> {
        if self.closed {
            return None;
        }
        match self.take_from(self.index, start, need) {
            None => self.take_further(start, *need),
            taken => taken,
        }
    }

    /// In segment `index`.
    #[inline(always)]
    fn take_from(&mut self, index: usize, start: u64, need: &Need) -> Option<usize> {
        let segment = self.segments.get_mut(index)?;
        let base = start + (index * IO_TLB_SEGSIZE * IO_TLB_SIZE) as u64;
        let first = if let Some((first, run)) = need.find_low(segment[0], base) {
            segment[0] &= !run;
            first
        } else {
            let (first, run) = need.find(whole(*segment), base)?;
            *segment = halves(whole(*segment) & !run);
            first
        };
        self.used += need.slots;
        Some(index * IO_TLB_SEGSIZE + first)
    }

    /// In the segments after the one where the search began, and then in those before it.
    #[cold]
    #[inline(never)]
    fn take_further(&mut self, start: u64, need: Need) -> Option<usize> {
        let count = self.segments.len();
        for index in (self.index + 1..count).chain(0..self.index) {
            if let Some(slot) = self.take_from(index, start, &need) {
                self.index = index;
                return Some(slot);
            }
        }
        None
    }

    /// Gives back `slots` slots from `first` on.
    #[inline]
    pub(crate) fn give(&mut self, first: usize, slots: usize) {
        debug_assert_eq!(self.free_of(first, slots), 0, "free slots are given back");
        let segment = &mut self.segments[first / IO_TLB_SEGSIZE];
        let within = first % IO_TLB_SEGSIZE;
        if within % HALF + slots <= HALF {
            let freed = (u64::MAX >> (HALF - slots)) << (within % HALF);
            segment[within / HALF] |= freed;
        } else {
            *segment = halves(whole(*segment) | low(slots) << within);
        }
        self.used -= slots;
    }

    /// As plain data. Which slots are free follows from the mappings.
    pub(crate) fn save(&self) -> AreaState {
        AreaState { allowance: self.allowance, closed: self.closed, index: self.index }
    }

    /// Takes over a state, with all slots of an area of `slots` free; mappings take theirs with [`State::mark`].
    pub(crate) fn restore(&mut self, slots: usize, state: &AreaState) -> Result<(), StateError> {
        *self = State::new(slots);
        if state.index >= self.segments.len() {
            return Err(StateError);
        }
        (self.allowance, self.closed, self.index) = (state.allowance, state.closed, state.index);
        Ok(())
    }

    /// Takes `slots` slots from `first` on, which must be free and in one segment.
    pub(crate) fn mark(&mut self, first: usize, slots: usize) -> Result<(), StateError> {
        let within = first % IO_TLB_SEGSIZE;
        let segment = self.segments.get_mut(first / IO_TLB_SEGSIZE).ok_or(StateError)?;
        let taken = low(slots) << within;
        if slots == 0 || within + slots > IO_TLB_SEGSIZE || !whole(*segment) & taken != 0 {
            return Err(StateError);
        }
        *segment = halves(whole(*segment) & !taken);
        self.used += slots;
        Ok(())
    }

    /// Those of the `slots` slots from `first` on that are free.
    fn free_of(&self, first: usize, slots: usize) -> u128 {
        whole(self.segments[first / IO_TLB_SEGSIZE]) & low(slots) << (first % IO_TLB_SEGSIZE)
    }

    /// Slots that are free.
    pub(crate) fn free(&self) -> usize {
        self.segments.iter().map(|free| whole(*free).count_ones() as usize).sum()
    }
}
