//! An area: some segments of a pool, with a lock of their own.

use crate::segment::{Need, low};
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
    /// Bit n of each: slot n is free.
    segments: Box<[u128]>,
}

impl Area {
    /// An area of `slots` free slots.
    pub(crate) fn new(slots: usize) -> Self {
        let segments = (0..slots.div_ceil(IO_TLB_SEGSIZE)).map(|n| low(slots - n * IO_TLB_SEGSIZE)).collect();
        Area { state: Mutex::new(State { used: 0, allowance: 0, closed: false, index: 0, segments }) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Takes the slots that `need` asks for from this area, whose first slot is at address `start`. The number of the
    /// first one within the area.
    #[inline]
    pub(crate) fn take(&mut self, start: u64, need: &Need) -> Option<usize> {
        if self.closed {
            return None;
        }
        let count = self.segments.len();
        for n in 0..count {
            let index = if self.index + n < count { self.index + n } else { self.index + n - count };
            let base = start + (index * IO_TLB_SEGSIZE * IO_TLB_SIZE) as u64;
            if let Some(first) = need.find(self.segments[index], base) {
                self.segments[index] &= !(low(need.slots) << first);
                self.index = index;
                self.used += need.slots;
                return Some(index * IO_TLB_SEGSIZE + first);
            }
        }
        None
    }

    /// Gives back `slots` slots from `first` on.
    #[inline]
    pub(crate) fn give(&mut self, first: usize, slots: usize) {
        let freed = low(slots) << (first % IO_TLB_SEGSIZE);
        let segment = &mut self.segments[first / IO_TLB_SEGSIZE];
        debug_assert_eq!(*segment & freed, 0, "free slots are given back");
        *segment |= freed;
        self.used -= slots;
    }

    /// Slots that are free.
    pub(crate) fn free(&self) -> usize {
        self.segments.iter().map(|free| free.count_ones() as usize).sum()
    }
}
