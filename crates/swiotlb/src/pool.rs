//! A pool: one range of memory, cut into areas, segments and slots.

use std::sync::Arc;

use crate::area::Area;
use crate::memory::{Fault, Memory, Original, zero};
use crate::mutant::{self, Mutant};
use crate::segment::Need;
use crate::slot::{Record, Slot};
use crate::state::{MappingState, PoolState, StateError};
use crate::swiotlb::Counts;
use crate::{Error, IO_TLB_SEGSIZE, IO_TLB_SHIFT, IO_TLB_SIZE};

/// What a pool is for; it is counted accordingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The one there has always been.
    Default,
    /// Added because the others were full.
    Grown,
    /// Made for one mapping.
    Transient,
}

/// One contiguous range of slots (`io_tlb_pool`).
#[derive(Debug)]
pub struct Pool<M> {
    start: u64,
    /// One past the last byte of the last slot.
    end: u64,
    memory: M,
    kind: Kind,
    /// Slots in each area but perhaps the last; a multiple of a segment.
    area_slots: usize,
    areas: Box<[Area]>,
    /// The area that each segment is in: a division for every mapping would cost more.
    area_of: Box<[u32]>,
    slots: Box<[Slot]>,
    counts: Arc<Counts>,
}

/// A mapping as its pool knows it: where it is, and its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// The slot that the address is in.
    pub slot: usize,
    /// The mapping's address.
    pub address: u64,
    pub record: Record,
}

impl<M: Memory> Pool<M> {
    /// Cuts `memory` into slots and these into at most `areas` areas. The slots have been counted; dropping the pool
    /// uncounts them.
    pub(crate) fn new(memory: M, areas: usize, kind: Kind, counts: Arc<Counts>) -> Result<Self, Error> {
        let (start, bytes) = (memory.start(), memory.len());
        let count = bytes >> IO_TLB_SHIFT;
        let end = start.checked_add(bytes as u64);
        let (Some(_), true) = (end, count > 0 && start.is_multiple_of(IO_TLB_SIZE as u64)) else {
            return Err(Error::Memory { start, bytes });
        };
        // A power of two, so that choosing one is cheap, and no more than there are segments.
        let segments = count.div_ceil(IO_TLB_SEGSIZE);
        let areas = areas.clamp(1, segments);
        let areas = if areas.is_power_of_two() { areas } else { areas.next_power_of_two() / 2 };
        let area_slots = segments.div_ceil(areas) * IO_TLB_SEGSIZE;
        Ok(Pool {
            start,
            end: start + (count << IO_TLB_SHIFT) as u64,
            memory,
            kind,
            area_slots,
            areas: (0..areas)
                .map(|n| Area::new(area_slots.min(count.saturating_sub(n * area_slots))))
                .collect(),
            area_of: (0..segments).map(|n| (n * IO_TLB_SEGSIZE / area_slots) as u32).collect(),
            slots: (0..count).map(|_| Slot::new()).collect(),
            counts,
        })
    }

    /// The address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The address after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The number of slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Whether the pool was made for one mapping, and goes with it.
    pub fn is_transient(&self) -> bool {
        self.kind == Kind::Transient
    }

    /// The memory that the slots are in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Whether `address` is in this pool.
    #[inline]
    pub fn contains(&self, address: u64) -> bool {
        address >= self.start && address < self.end
    }

    pub(crate) fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// Whether every slot is either free or counted as used; for tests.
    pub(crate) fn free(&self) -> usize {
        self.areas.iter().map(|area| area.lock().free()).sum()
    }

    /// Takes the slots that `need` asks for; the first one's number, the area they are in, and whether the area now
    /// uses more than its allowance.
    pub(crate) fn take(&self, need: &Need) -> Option<(usize, &Area, bool)> {
        (0..self.areas.len()).find_map(|n| self.take_in(need.cpu.wrapping_add(n), need))
    }

    /// As [`Self::take`], in the area that the caller has to itself, as a rule, and in which there is room, as a rule.
    #[inline(always)]
    pub(crate) fn take_own(&self, need: &Need) -> Option<(usize, &Area, bool)> {
        self.take_in(need.cpu, need)
    }

    #[inline(always)]
    fn take_in(&self, area: usize, need: &Need) -> Option<(usize, &Area, bool)> {
        if self.end - 1 > need.limit || need.slots > self.slots.len() {
            return None;
        }
        let index = area & (self.areas.len() - 1);
        let (area, first) = (&self.areas[index], index * self.area_slots);
        let mut state = area.lock();
        let slot = state.take(self.start + (first << IO_TLB_SHIFT) as u64, need)?;
        Some((first + slot, area, state.used > state.allowance))
    }

    /// Gives back slots that [`Self::take`] took and that never had a record.
    pub(crate) fn give(&self, first: usize, slots: usize) {
        let (area, within) = self.area_of(first);
        area.lock().give(within, slots);
        self.counts.transient_used(self.kind, slots, false);
    }

    /// The area that a slot is in, and its number there.
    #[inline]
    fn area_of(&self, slot: usize) -> (&Area, usize) {
        let index = self.area_of[slot / IO_TLB_SEGSIZE] as usize;
        (&self.areas[index], slot - index * self.area_slots)
    }

    /// The record, and the address, of a mapping that has the slots from `first` on.
    #[inline(always)]
    pub(crate) fn place(&self, first: usize, need: &Need, original: Option<u64>, size: usize) -> Found {
        let pad_slots = need.offset >> IO_TLB_SHIFT;
        let offset = need.offset & (IO_TLB_SIZE - 1);
        let slot = first + pad_slots;
        let address = self.start + (slot << IO_TLB_SHIFT) as u64 + offset as u64;
        Found { slot, address, record: Record::new(original, size, need.slots, pad_slots, offset) }
    }

    /// Makes the record findable.
    #[inline]
    pub(crate) fn record(&self, found: &Found) {
        self.slots[found.slot].store(found.record);
    }

    /// The mapping whose address is `address`.
    #[inline(always)]
    pub(crate) fn at(&self, address: u64) -> Option<Found> {
        let slot = ((address - self.start) >> IO_TLB_SHIFT) as usize;
        let record = self.slots[slot].load()?;
        let is = self.address(slot, record) == address;
        is.then_some(Found { slot, address, record })
    }

    /// The mapping that `address` is in, which must be one of its bytes.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<Found> {
        let within = ((address - self.start) >> IO_TLB_SHIFT) as usize;
        // Only the slot with the mapping's first byte has a record; no mapping crosses a segment.
        let segment = within & !(IO_TLB_SEGSIZE - 1);
        let (slot, record) =
            (segment..=within).rev().find_map(|slot| Some((slot, self.slots[slot].load()?)))?;
        let start = self.address(slot, record);
        let inside = address >= start && address - start < record.size() as u64;
        inside.then_some(Found { slot, address: start, record })
    }

    /// The address of the mapping that has this record.
    #[inline]
    fn address(&self, slot: usize, record: Record) -> u64 {
        self.start + (slot << IO_TLB_SHIFT) as u64 + record.offset() as u64
    }

    /// Takes the record away and gives the slots back. `false`: another caller has done this for the mapping, and nothing
    /// was changed.
    #[inline(always)]
    pub(crate) fn release(&self, found: &Found) -> bool {
        let first = found.slot - found.record.pad_slots();
        let (area, within) = self.area_of(first);
        let mut state = area.lock();
        if self.slots[found.slot].load() != Some(found.record) {
            return false;
        }
        if !mutant::is(Mutant::RecordAfterFree) {
            self.slots[found.slot].clear();
        }
        state.give(within, found.record.slots());
        drop(state);
        if mutant::is(Mutant::RecordAfterFree) {
            self.slots[found.slot].clear();
        }
        self.counts.transient_used(self.kind, found.record.slots(), false);
        true
    }

    /// Copies the original in, and zeroes what else is in the slots: the last user's bytes.
    #[inline(always)]
    pub(crate) fn fill<'a, O: Original + ?Sized>(
        &self,
        found: &Found,
        original: &'a O,
        place: O::Place<'a>,
    ) -> Result<(), Fault> {
        let record = found.record;
        let first = (found.slot - record.pad_slots()) << IO_TLB_SHIFT;
        let end = first + (record.slots() << IO_TLB_SHIFT);
        let start = first + record.before();
        let after = start + record.size();
        if first < start {
            zero(&self.memory.slice(first, start - first));
        }
        if after < end {
            zero(&self.memory.slice(after, end - after));
        }
        let slice = self.memory.slice(start, record.size());
        match record.original() {
            Some(address) => original.read(place, address, &slice),
            None => {
                zero(&slice);
                Ok(())
            }
        }
    }

    /// Copies `size` bytes from `address` on, which are within the mapping `found`, from or to the original (`swiotlb_bounce`).
    #[inline(always)]
    pub(crate) fn bounce<O: Original + ?Sized>(
        &self,
        found: &Found,
        address: u64,
        size: usize,
        way: Way,
        original: &O,
    ) -> Result<(), Fault> {
        let Some(start) = found.record.original() else { return Ok(()) };
        let start = start.wrapping_add(address - found.address);
        let slice = self.memory.slice((address - self.start) as usize, size);
        match way {
            Way::In => original.read(original.find(start, size), start, &slice),
            Way::Out => original.write(start, &slice),
        }
    }
}

impl<M: Memory> Pool<M> {
    /// As plain data.
    pub(crate) fn save(&self) -> PoolState {
        let mapping = |(slot, record): (usize, Record)| {
            let mut bytes = vec![0; record.size()];
            let at = (slot << IO_TLB_SHIFT) + record.offset();
            self.memory.slice(at, record.size()).copy_to(&mut bytes[..]);
            MappingState {
                slot,
                offset: record.offset(),
                pad_slots: record.pad_slots(),
                slots: record.slots(),
                original: record.original(),
                bytes,
            }
        };
        PoolState {
            start: self.start,
            slots: self.slots.len(),
            areas: self.areas.iter().map(|area| area.lock().save()).collect(),
            mappings: (0..)
                .zip(&self.slots)
                .filter_map(|(n, slot)| Some((n, slot.load()?)))
                .map(mapping)
                .collect(),
        }
    }

    /// Takes over a state in place of what was mapped. Nobody may be using the pool.
    pub(crate) fn restore(&self, state: &PoolState) -> Result<(), StateError> {
        let count = self.slots.len();
        if (state.start, state.slots, state.areas.len()) != (self.start, count, self.areas.len()) {
            return Err(StateError);
        }
        for (n, (area, saved)) in self.areas.iter().zip(&state.areas).enumerate() {
            area.lock().restore(self.area_slots.min(count.saturating_sub(n * self.area_slots)), saved)?;
        }
        self.slots.iter().for_each(Slot::clear);
        for mapping in &state.mappings {
            let MappingState { slot, offset, pad_slots, slots, original, ref bytes } = *mapping;
            let before = pad_slots.checked_mul(IO_TLB_SIZE).and_then(|pad| pad.checked_add(offset));
            let first = slot.checked_sub(pad_slots).ok_or(StateError)?;
            let fits = slots <= IO_TLB_SEGSIZE
                && first < count
                && pad_slots < slots
                && offset < IO_TLB_SIZE
                && !bytes.is_empty()
                && before
                    .and_then(|before| before.checked_add(bytes.len()))
                    .is_some_and(|end| end <= slots << IO_TLB_SHIFT);
            if !fits {
                return Err(StateError);
            }
            let (area, within) = self.area_of(first);
            area.lock().mark(within, slots)?;
            self.memory.slice((slot << IO_TLB_SHIFT) + offset, bytes.len()).copy_from(&bytes[..]);
            self.slots[slot].store(Record::new(original, bytes.len(), slots, pad_slots, offset));
        }
        Ok(())
    }
}

impl Found {
    /// Whether `size` bytes from `address`, one of the mapping's, are all within the mapping.
    #[inline]
    pub(crate) fn has(&self, address: u64, size: usize) -> bool {
        size as u64 <= self.record.size() as u64 - (address - self.address)
    }
}

/// Which way [`Pool::bounce`] copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Original to pool.
    In,
    /// Pool to original.
    Out,
}

impl<M> Drop for Pool<M> {
    fn drop(&mut self) {
        self.counts.remove(self.kind, self.slots.len());
    }
}
