//! Any sequence of operations, against an allocator too simple to be wrong: one entry a slot.
//!
//! A mapping overlaps none, is aligned as asked, has the original's bytes and zeroes beside them; it fails only when the
//! rules leave no place; syncs move what they are asked to and nothing else; no slot is lost; the counts are right.
//! `SMMULAB_LONG=1` runs millions of operations.

#![cfg(not(loom))]

mod support;

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use support::{Addresses, may_start, originals, peek, poke, read, taken};
use swiotlb::{
    Attributes, Device, Direction, Error, Growth, IO_TLB_SEGSIZE, IO_TLB_SIZE, PoolMemory, Swiotlb,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const ORIGINALS: u64 = 0x4000_0000;
const ORIGINAL_BYTES: usize = if cfg!(miri) { 1 << 14 } else { 1 << 20 };
const GROWN_SLOTS: usize = 160;

/// What is in the originals at first, and parts of which the device writes.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut noise = vec![0; ORIGINAL_BYTES + 1000];
    Xoshiro256PlusPlus::seed_from_u64(0).fill(&mut noise[..]);
    noise
});

fn zeroes(bytes: &[u8]) -> bool {
    bytes == vec![0; bytes.len()]
}

/// A pool as the model sees it.
struct Slots {
    start: u64,
    /// Which mapping has each.
    owner: Vec<Option<u64>>,
}

struct Live {
    id: u64,
    address: u64,
    original: u64,
    size: usize,
    direction: Direction,
    first: usize,
    slots: usize,
    pool: u64,
}

struct Machine {
    rng: Xoshiro256PlusPlus,
    memory: GuestMemoryMmap,
    tlb: Arc<Swiotlb<PoolMemory>>,
    device: Device<PoolMemory>,
    pools: Vec<Slots>,
    /// The limit on these.
    transient_slots: usize,
    live: Vec<Live>,
    next: u64,
    used: usize,
    hiwater: usize,
    failures: u64,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let slots = [1, 3, 100, 128, 129, 300, 512, 700][rng.random_range(0..8)];
        let areas = rng.random_range(1..6);
        let growing = rng.random_bool(0.5);
        let transient_slots = if growing && rng.random_bool(0.5) { 400 } else { 0 };
        let growth = growing.then(|| Growth {
            provider: Box::new(Addresses::from(0x1000_0000)),
            pool_slots: GROWN_SLOTS,
            max_slots: 3 * GROWN_SLOTS,
            max_transient: transient_slots,
            limit: u64::MAX,
        });
        // Aligned to a slot only, or to more.
        let start = 0x80_0000 + 2048 * [0, 1, 2, 5, 64][rng.random_range(0..5)];
        let tlb =
            Swiotlb::new(PoolMemory::anonymous(start, slots * IO_TLB_SIZE).unwrap(), areas, growth).unwrap();
        let memory = originals(ORIGINALS, ORIGINAL_BYTES);
        memory.write_slice(&NOISE[..ORIGINAL_BYTES], GuestAddress(ORIGINALS)).unwrap();
        Machine {
            rng,
            memory,
            device: Device::new(&tlb).unwrap(),
            tlb,
            pools: vec![Slots { start, owner: vec![None; slots] }],
            transient_slots,
            live: Vec::new(),
            next: 0,
            used: 0,
            hiwater: 0,
            failures: 0,
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..45 => self.map(),
            45..80 => self.unmap(),
            80..90 => self.sync(),
            90..94 => self.wrong(),
            94..96 => self.alloc(),
            96..98 => self.grow(),
            _ => self.shrink(),
        }
    }

    fn attributes(&mut self) -> Attributes {
        let rng = &mut self.rng;
        let mut mask = |weights: &[u64]| weights[rng.random_range(0..weights.len())];
        let attributes = Attributes {
            min_align_mask: mask(&[0, 0, 0, 0x1ff, 0xfff, 0xfff, 0xffff, 0x1f_ffff]),
            alloc_align_mask: mask(&[0, 0, 0, 0, 0x3ff, 0xfff, 0x3fff, 0x1_ffff]),
            boundary_mask: mask(&[u64::MAX, u64::MAX, u64::MAX, 0x3_ffff, 0xffff, 0xfff]),
            limit: mask(&[u64::MAX, u64::MAX, u64::MAX, 0x7f_ffff, 0x80_ffff]),
            ..Attributes::default()
        };
        Attributes {
            cpu: self.rng.random_range(0..8),
            skip_cpu_sync: self.rng.random_bool(0.1),
            ..attributes
        }
    }

    fn size(&mut self) -> usize {
        let most = IO_TLB_SEGSIZE * IO_TLB_SIZE;
        if cfg!(miri) {
            return self.rng.random_range(1..6000);
        }
        match self.rng.random_range(0..10) {
            0..4 => self.rng.random_range(1..4096),
            4..6 => 4096,
            6..8 => self.rng.random_range(4096..40_000),
            8 => self.rng.random_range(40_000..=most),
            _ => most + self.rng.random_range(0..2) * self.rng.random_range(0..100_000),
        }
    }

    /// A place that the model sees for the mapping.
    fn place(&self, original: u64, size: usize, attributes: &Attributes) -> Option<(u64, usize)> {
        let (_, slots) = taken(original, size, attributes);
        self.pools.iter().find_map(|pool| {
            let last = pool.start + (pool.owner.len() * IO_TLB_SIZE) as u64 - 1;
            if last > attributes.limit {
                return None;
            }
            let free = |first: &usize| {
                may_start(pool.start, *first, original, size, attributes)
                    && pool.owner[*first..first + slots].iter().all(Option::is_none)
            };
            Some((pool.start, (0..(pool.owner.len() + 1).saturating_sub(slots)).find(free)?))
        })
    }

    fn map(&mut self) {
        let attributes = self.attributes();
        let size = self.size();
        let offset = self.rng.random_range(0..ORIGINAL_BYTES.saturating_sub(size).max(1)) as u64;
        let offset = if self.rng.random_bool(0.02) { ORIGINAL_BYTES as u64 - 1 } else { offset };
        let original = ORIGINALS + if self.rng.random_bool(0.3) { offset & !0xfff } else { offset };
        let inside = (original - ORIGINALS) as usize + size <= ORIGINAL_BYTES;
        let (before, slots) = taken(original, size, &attributes);
        let impossible =
            slots > IO_TLB_SEGSIZE || (slots * IO_TLB_SIZE - 1) as u64 > attributes.boundary_mask;
        // Before the mapping: the memory of a removed pool is given back by whichever thread ends the grace period, which
        // may be one of another test, between the mapping and a later look.
        let transient = self.tlb.stats().transient_slots;
        match self.device.map(&self.memory, original, size, &attributes) {
            Ok(address) => {
                assert!(inside && !impossible);
                let data = read(&self.memory, original, size);
                let (pool, first) = self.take(address - before as u64, slots);
                if let Some(pool) = self.pools.iter().find(|slots| slots.start == pool) {
                    assert!(may_start(pool.start, first, original, size, &attributes), "{attributes:x?}");
                }
                assert_eq!((address ^ original) & attributes.min_align_mask, 0);
                self.device
                    .find_pool(address, |found| {
                        let from = address - before as u64;
                        let bytes = peek(found.memory(), from, slots * IO_TLB_SIZE);
                        assert!(zeroes(&bytes[..before]), "pre-padding shows something");
                        assert_eq!(bytes[before..before + size], data[..], "the copy is wrong");
                        assert!(zeroes(&bytes[before + size..]), "post-padding shows something");
                    })
                    .expect("the pool is found");
                let direction = [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional]
                    [self.rng.random_range(0..3)];
                self.live.push(Live {
                    id: self.next,
                    address,
                    original,
                    size,
                    direction,
                    first,
                    slots,
                    pool,
                });
            }
            Err(Error::Size { .. }) => assert!(impossible || size > IO_TLB_SEGSIZE * IO_TLB_SIZE),
            Err(Error::Fault(_)) => {
                assert!(!inside);
                // The slots were in use for a moment.
                self.hiwater = self.tlb.stats().used_hiwater;
            }
            Err(Error::Full { used, .. }) => {
                assert_eq!(used, self.used);
                assert_eq!(self.place(original, size, &attributes), None, "there was a place");
                // Nor would a transient pool have done, were it placed as well as possible.
                let granule = attributes.alloc_align_mask | (IO_TLB_SIZE as u64 - 1);
                let first = (original & attributes.min_align_mask & !granule) as usize / IO_TLB_SIZE;
                let fits = may_start(0, first, original, size, &attributes) && attributes.limit == u64::MAX;
                assert!(!fits || transient + first + slots > self.transient_slots);
                self.failures += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The model takes the slots from `from` on: the pool's start, and the first slot's number.
    fn take(&mut self, from: u64, slots: usize) -> (u64, usize) {
        self.next += 1;
        self.used += slots;
        self.hiwater = self.hiwater.max(self.used);
        let found = self.device.find_pool(from, |pool| (pool.start(), pool.is_transient())).expect("a pool");
        let first = ((from - found.0) / IO_TLB_SIZE as u64) as usize;
        assert_eq!((from - found.0) % IO_TLB_SIZE as u64, 0);
        if !found.1 {
            let pool =
                self.pools.iter_mut().find(|pool| pool.start == found.0).expect("a pool the model knows");
            for owner in &mut pool.owner[first..first + slots] {
                assert_eq!(*owner, None, "two mappings have one slot");
                *owner = Some(self.next);
            }
        }
        (found.0, first)
    }

    fn give(&mut self, live: &Live) {
        self.used -= live.slots;
        if let Some(pool) = self.pools.iter_mut().find(|pool| pool.start == live.pool) {
            for owner in &mut pool.owner[live.first..live.first + live.slots] {
                assert_eq!(owner.take(), Some(live.id));
            }
        }
    }

    /// The original of a mapping, with bytes on both sides, and where it starts.
    fn around(&self, live: &Live) -> (u64, Vec<u8>) {
        let start = live.original.saturating_sub(64).max(ORIGINALS);
        let end = (live.original + live.size as u64 + 64).min(ORIGINALS + ORIGINAL_BYTES as u64);
        (start, read(&self.memory, start, (end - start) as usize))
    }

    /// Writes noise to `len` bytes of the pool, as the device would.
    fn device_writes(&mut self, address: u64, len: usize) -> Vec<u8> {
        let from = self.rng.random_range(0..=NOISE.len() - len);
        let data = NOISE[from..from + len].to_vec();
        self.device.find_pool(address, |pool| poke(pool.memory(), address, &data)).expect("a pool");
        data
    }

    fn unmap(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let live = self.live.swap_remove(self.rng.random_range(0..self.live.len()));
        let written = self.device_writes(live.address, live.size);
        let (start, mut expected) = self.around(&live);
        let size = if self.rng.random_bool(0.2) { self.rng.random_range(0..=live.size) } else { live.size };
        let attributes = Attributes { skip_cpu_sync: self.rng.random_bool(0.1), ..Attributes::default() };
        self.device.unmap(&self.memory, live.address, size, live.direction, &attributes).unwrap();
        if live.direction.from_device() && !attributes.skip_cpu_sync {
            let at = (live.original - start) as usize;
            expected[at..at + size].copy_from_slice(&written[..size]);
        }
        assert!(self.around(&live).1 == expected, "unmap copied something else");
        self.give(&live);
        assert_eq!(self.device.original_address(live.address), None);
    }

    fn sync(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.live.len());
        let live = self.live.swap_remove(index);
        let from = self.rng.random_range(0..live.size);
        let len = self.rng.random_range(0..=live.size - from);
        let address = live.address + from as u64;
        assert_eq!(self.device.original_address(address), Some(live.original + from as u64));
        let written = self.device_writes(live.address, live.size);
        let (start, mut expected) = self.around(&live);
        let at = (live.original - start) as usize;
        if self.rng.random_bool(0.5) {
            self.device.sync_for_cpu(&self.memory, address, len, live.direction).unwrap();
            if live.direction.from_device() {
                expected[at + from..at + from + len].copy_from_slice(&written[from..from + len]);
            }
            assert!(self.around(&live).1 == expected, "sync_for_cpu copied something else");
        } else {
            self.device.sync_for_device(&self.memory, address, len, live.direction).unwrap();
            let mut there = written;
            if live.direction.to_device() {
                there[from..from + len].copy_from_slice(&expected[at + from..at + from + len]);
            }
            let bytes =
                self.device.find_pool(address, |pool| peek(pool.memory(), live.address, live.size)).unwrap();
            assert!(bytes == there, "sync_for_device copied something else");
        }
        self.live.push(live);
    }

    /// What must be refused, and change nothing.
    fn wrong(&mut self) {
        let device = &self.device;
        let good = Attributes::default();
        assert!(!device.is_bounce_buffer(ORIGINALS));
        let none = |address| Err(Error::NotMapped { address });
        assert_eq!(device.unmap(&self.memory, ORIGINALS, 1, Direction::FromDevice, &good), none(ORIGINALS));
        assert_eq!(device.map(&self.memory, ORIGINALS, 0, &good), Err(Error::Size { size: 0 }));
        let bad = Attributes { min_align_mask: 0x1001, ..good };
        assert_eq!(device.map(&self.memory, ORIGINALS, 1, &bad), Err(Error::Mask));
        if let Some(live) = self.live.first() {
            let (address, size, way) = (live.address, live.size, live.direction);
            let range = Err(Error::Range { address, size: size + 1 });
            assert_eq!(device.unmap(&self.memory, address, size + 1, way, &good), range);
            assert_eq!(device.sync_for_cpu(&self.memory, address, size + 1, way), range);
            assert_eq!(device.sync_for_device(&self.memory, address, size + 1, way), range);
            let inside = address + size as u64 - 1;
            if size > 1 {
                assert_eq!(device.unmap(&self.memory, inside, 1, way, &good), none(inside));
            }
            let after = address + size as u64;
            if self.live.iter().all(|other| other.address != after) {
                assert_eq!(device.unmap(&self.memory, after, 1, way, &good), none(after));
                assert_eq!(device.sync_for_cpu(&self.memory, after, 1, way), none(after));
            }
        }
    }

    fn alloc(&mut self) {
        let size = self.rng.random_range(1..20_000);
        if let Ok(address) = self.device.alloc(size, &Attributes::default()) {
            assert_eq!(address % 4096, 0);
            let bytes = self.device.find_pool(address, |pool| peek(pool.memory(), address, size)).unwrap();
            assert!(zeroes(&bytes));
            let slots = size.next_multiple_of(4096) / IO_TLB_SIZE;
            self.hiwater = self.hiwater.max(self.used + slots);
            self.device_writes(address, size);
            self.device.sync_for_cpu(&self.memory, address, size, Direction::Bidirectional).unwrap();
            self.device.free(address).unwrap();
            assert_eq!(self.device.free(address), Err(Error::NotMapped { address }));
        } else {
            self.failures += 1;
        }
    }

    fn grow(&mut self) {
        let before = self.tlb.stats();
        if let Ok(range) = self.tlb.grow() {
            self.pools.push(Slots { start: range.start, owner: vec![None; GROWN_SLOTS] });
            assert_eq!(self.tlb.stats().slots, before.slots + GROWN_SLOTS);
        }
    }

    fn shrink(&mut self) {
        let idle = |pool: &Slots| pool.owner.iter().all(Option::is_none);
        let default = self.pools[0].start;
        let before = self.pools.len();
        self.pools.retain(|pool| pool.start == default || !idle(pool));
        assert_eq!(self.tlb.shrink(), before - self.pools.len());
    }

    fn check(&self) {
        let stats = self.tlb.stats();
        assert_eq!(
            (stats.used, stats.used_hiwater, stats.failures),
            (self.used, self.hiwater, self.failures)
        );
        let owned: usize = self.pools.iter().map(|pool| pool.owner.iter().flatten().count()).sum();
        assert_eq!(self.tlb.count_free(), stats.slots - owned, "a slot is lost");
        assert_eq!(stats.pools, self.pools.len());
    }

    fn run(mut self, steps: usize) {
        for step in 0..steps {
            self.step();
            if step % 16 == 0 {
                self.check();
            }
        }
        while !self.live.is_empty() {
            self.unmap();
        }
        self.check();
        assert_eq!(self.used, 0);
        self.shrink();
        assert_eq!(self.tlb.stats().pools, 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 60 }) })]

    #[test]
    fn any_operations_agree_with_the_naive_allocator(seed: u64, steps in 1usize..if cfg!(miri) { 20 } else { 600 }) {
        Machine::new(seed).run(steps);
    }
}

#[test]
fn many_operations_agree_with_the_naive_allocator() {
    let (seeds, steps) = match std::env::var_os("SMMULAB_LONG") {
        _ if cfg!(miri) => (1, 20),
        Some(_) => (400, 10_000),
        None => (8, 2_000),
    };
    for seed in 0..seeds {
        Machine::new(seed).run(steps);
    }
}
