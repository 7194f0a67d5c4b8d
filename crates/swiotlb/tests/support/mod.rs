//! What the tests share: memory for originals and pools, a provider, and the rules of a mapping, said naively.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use swiotlb::{Attributes, IO_TLB_SEGSIZE, IO_TLB_SIZE, Memory, PAGE_SIZE, PoolMemory, Provider};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Memory with originals from address `start` on.
pub fn originals(start: u64, bytes: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(start), bytes)]).unwrap()
}

pub fn read(memory: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    memory.read_slice(&mut data, GuestAddress(address)).unwrap();
    data
}

/// The bytes of a pool.
pub fn peek(memory: &impl Memory, address: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    memory.slice((address - memory.start()) as usize, len).read_slice(&mut data, 0).unwrap();
    data
}

pub fn poke(memory: &impl Memory, address: u64, data: &[u8]) {
    memory.slice((address - memory.start()) as usize, data.len()).write_slice(data, 0).unwrap();
}

/// Hands out addresses from `next` on, never twice, each range followed by a hole.
#[derive(Clone)]
pub struct Addresses(pub Arc<AtomicU64>);

impl Addresses {
    pub fn from(start: u64) -> Self {
        Addresses(Arc::new(AtomicU64::new(start)))
    }
}

impl Provider<PoolMemory> for Addresses {
    fn allocate(&self, bytes: usize, align: u64, limit: u64) -> Option<PoolMemory> {
        let place = |next: u64| next.next_multiple_of(align);
        let start = place(
            self.0.fetch_update(Relaxed, Relaxed, |next| Some(place(next) + bytes as u64 + 4096)).ok()?,
        );
        (start + bytes as u64 - 1 <= limit).then(|| PoolMemory::anonymous(start, bytes).unwrap())
    }
}

/// What a mapping takes: `(bytes before the buffer, slots)`.
pub fn taken(original: u64, size: usize, a: &Attributes) -> (usize, usize) {
    let granule = a.alloc_align_mask.max(IO_TLB_SIZE as u64 - 1);
    let before = (original & a.min_align_mask & granule) as usize;
    let unit = (a.alloc_align_mask + 1) as usize;
    let padded = (before + size).div_ceil(unit) * unit;
    (before, padded.div_ceil(IO_TLB_SIZE))
}

/// Whether a mapping may start with the slot at `first` of a pool that starts at `start`, by the rules of alignment.
pub fn may_start(start: u64, first: usize, original: u64, size: usize, a: &Attributes) -> bool {
    let (before, slots) = taken(original, size, a);
    let last = first + slots - 1;
    let from = start + (first * IO_TLB_SIZE) as u64;
    let to = start + (last * IO_TLB_SIZE + IO_TLB_SIZE - 1) as u64;
    let address = from + before as u64;
    let page = a.alloc_align_mask == 0 && a.min_align_mask == 0 && before + size >= PAGE_SIZE;
    first / IO_TLB_SEGSIZE == last / IO_TLB_SEGSIZE
        && from.is_multiple_of(a.alloc_align_mask + 1)
        && (address ^ original) & a.min_align_mask == 0
        && (!page || from.is_multiple_of(PAGE_SIZE as u64))
        && (a.boundary_mask == u64::MAX || from / (a.boundary_mask + 1) == to / (a.boundary_mask + 1))
        && to <= a.limit
}
