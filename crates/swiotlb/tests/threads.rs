//! Several threads on one pool: map, sync, hand on with relaxed accesses, unmap what others mapped, grow and shrink
//! meanwhile. Every slot has one owner at a time, every byte arrives, and at the end no slot is missing.
//! `SMMULAB_LONG=1` runs millions of operations.

#![cfg(not(loom))]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use support::{Addresses, originals, peek, poke, taken};
use swiotlb::{Attributes, Device, Direction, Error, Growth, IO_TLB_SIZE, Memory, PoolMemory, Swiotlb};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const THREADS: usize = 4;
/// Each mapping has an original of its own, this long at most.
const LONGEST: usize = if cfg!(miri) { 6000 } else { 40_000 };
const BUFFERS: usize = 24;

/// Which slots are taken, by address; locked only for a moment, after a mapping begins and before it ends.
#[derive(Default)]
struct Owners(Mutex<BTreeMap<u64, u64>>);

impl Owners {
    fn take(&self, from: u64, slots: usize) {
        let mut owners = self.0.lock().unwrap();
        let to = from + (slots * IO_TLB_SIZE) as u64;
        let before = owners.range(..to).next_back();
        assert!(before.is_none_or(|(_, end)| *end <= from), "two mappings have one slot");
        owners.insert(from, to);
    }

    fn give(&self, from: u64) {
        assert!(self.0.lock().unwrap().remove(&from).is_some());
    }
}

/// A mapping on its way from one thread to another. The address is stored last and loaded first, both relaxed; what else
/// the receiver needs, it looks up.
#[derive(Default)]
struct Mailbox {
    address: AtomicU64,
}

struct Shared {
    memory: GuestMemoryMmap,
    devices: [Device<PoolMemory>; 2],
    owners: Owners,
    mailboxes: [Mailbox; THREADS],
    operations: AtomicUsize,
    refused: AtomicUsize,
    sent: AtomicUsize,
}

/// Whether all of `bytes` are `byte`.
fn all(bytes: &[u8], byte: u8) -> bool {
    bytes == vec![byte; bytes.len()]
}

/// Original buffers: each at a multiple of 64 KiB, its length and its bytes known from its number.
fn buffer(index: usize, odd: u64) -> u64 {
    0x4000_0000 + ((index as u64) << 16) + odd
}

#[derive(Clone, Copy)]
struct Mapping {
    /// The number of the original.
    index: usize,
    device: usize,
    address: u64,
    original: u64,
    size: usize,
    before: usize,
}

impl Shared {
    fn map(&self, rng: &mut Xoshiro256PlusPlus, cpu: usize, index: usize) -> Option<Mapping> {
        let size = match rng.random_range(0..8) {
            0..5 => rng.random_range(1..4096),
            5 | 6 => 4096,
            _ => rng.random_range(4096..LONGEST),
        };
        let original = buffer(index, rng.random_range(0..0x4000));
        let attributes = Attributes {
            cpu,
            min_align_mask: [0, 0xfff][rng.random_range(0..2)],
            alloc_align_mask: [0, 0, 0xfff, 0x3fff][rng.random_range(0..4)],
            ..Attributes::default()
        };
        let device = rng.random_range(0..2);
        let stamp = (index as u8).wrapping_mul(31);
        self.memory.write_slice(&vec![stamp; size], GuestAddress(original)).unwrap();
        let address = match self.devices[device].map(&self.memory, original, size, &attributes) {
            Ok(address) => address,
            Err(Error::Full { .. }) => {
                self.refused.fetch_add(1, Relaxed);
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let (before, slots) = taken(original, size, &attributes);
        let from = address - before as u64;
        self.owners.take(from, slots);
        self.devices[device]
            .find_pool(address, |pool| {
                let bytes = peek(pool.memory(), from, slots * IO_TLB_SIZE);
                assert!(all(&bytes[before..before + size], stamp));
                assert!(all(&bytes[..before], 0) && all(&bytes[before + size..], 0));
            })
            .expect("what has just been mapped");
        Some(Mapping { index, device, address, original, size, before })
    }

    /// The device writes, and the mapping ends.
    fn unmap(&self, rng: &mut Xoshiro256PlusPlus, mapping: Mapping) {
        let Mapping { device, address, original, size, before, .. } = mapping;
        let device = &self.devices[device];
        assert_eq!(device.original_address(address), Some(original));
        let stamp: u8 = rng.random();
        device.find_pool(address, |pool| poke(pool.memory(), address, &vec![stamp; size])).expect("a pool");
        let part = rng.random_range(0..size);
        device.sync_for_cpu(&self.memory, address + part as u64, size - part, Direction::FromDevice).unwrap();
        assert_eq!(self.memory.read_obj::<u8>(GuestAddress(original + part as u64)).unwrap(), stamp);
        self.owners.give(address - before as u64);
        device.unmap(&self.memory, address, size, Direction::Bidirectional, &Attributes::default()).unwrap();
        let mut data = vec![0; size];
        self.memory.read_slice(&mut data, GuestAddress(original)).unwrap();
        assert!(all(&data, stamp));
    }

    /// What one thread does; `posted` are mappings it can describe to others by address.
    fn work(&self, thread: usize, steps: usize, posted: &Mutex<BTreeMap<u64, Mapping>>) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(thread as u64);
        let mut live: Vec<Mapping> = Vec::new();
        let mut idle: Vec<usize> = (thread * BUFFERS..(thread + 1) * BUFFERS).collect();
        for step in 0..steps {
            self.operations.fetch_add(1, Relaxed);
            if step % 8 == 0 {
                // On few CPUs a thread would otherwise do most of its work before the next one begins.
                std::thread::yield_now();
            }
            // Somebody else's mapping, received without any ordering.
            let received = self.mailboxes[thread].address.swap(0, Relaxed);
            if received != 0 {
                let both =
                    [&self.devices[0], &self.devices[1]].map(|device| device.is_bounce_buffer(received));
                assert!(both[0] || both[1], "a received address is not found");
                let mapping = posted.lock().unwrap().remove(&received).expect("posted before it was sent");
                self.unmap(&mut rng, mapping);
                idle.push(mapping.index);
            }
            match rng.random_range(0..10) {
                0..5 => {
                    if let Some(index) = idle.pop() {
                        match self.map(&mut rng, thread, index) {
                            Some(mapping) => live.push(mapping),
                            None => idle.push(index),
                        }
                    }
                }
                5..9 => {
                    if !live.is_empty() {
                        let mapping = live.swap_remove(rng.random_range(0..live.len()));
                        self.unmap(&mut rng, mapping);
                        idle.push(mapping.index);
                    }
                }
                _ => {
                    // The mapping, and its original, are the receiver's from now on.
                    let to = &self.mailboxes[(thread + 1) % THREADS];
                    if live.len() > 2 && to.address.load(Relaxed) == 0 {
                        self.sent.fetch_add(1, Relaxed);
                        let mapping = live.pop().expect("there are more than two");
                        posted.lock().unwrap().insert(mapping.address, mapping);
                        to.address.store(mapping.address, Relaxed);
                    }
                }
            }
        }
        live.into_iter().for_each(|mapping| self.unmap(&mut rng, mapping));
    }
}

fn run(steps: usize, growth: Option<Growth<PoolMemory>>) {
    let growing = growth.is_some();
    let tlb =
        Swiotlb::new(PoolMemory::anonymous(0x10_0000, 512 * IO_TLB_SIZE).unwrap(), THREADS, growth).unwrap();
    let device = || Device::new(&tlb).unwrap();
    let shared = Shared {
        memory: originals(0x4000_0000, (THREADS * BUFFERS) << 16),
        devices: [device(), device()],
        owners: Owners::default(),
        mailboxes: Default::default(),
        operations: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
        sent: AtomicUsize::new(0),
    };
    let posted = Mutex::new(BTreeMap::new());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (shared, posted) = (&shared, &posted);
                scope.spawn(move || shared.work(thread, steps, posted))
            })
            .collect();
        scope.spawn(|| {
            while growing && !done.load(Relaxed) {
                let _ = tlb.take_growth_request().then(|| tlb.grow());
                std::thread::yield_now();
                tlb.shrink();
            }
        });
        let failed =
            workers.into_iter().map(|worker| worker.join().is_err()).filter(|failed| *failed).count();
        done.store(true, Relaxed);
        assert_eq!(failed, 0, "threads failed");
    });
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(99);
    std::mem::take(&mut *posted.lock().unwrap())
        .into_values()
        .for_each(|mapping| shared.unmap(&mut rng, mapping));
    tlb.shrink();
    // The other tests' reads may have to end first.
    while tlb.stats().transient_slots != 0 {
        tlb.reclaim();
    }
    let stats = tlb.stats();
    let [operations, sent] = [&shared.operations, &shared.sent].map(|count| count.load(Relaxed));
    println!("{operations} operations, {sent} mappings handed on, {stats:?}");
    assert!(cfg!(miri) || sent >= THREADS);
    assert_eq!(stats.failures, shared.refused.load(Relaxed) as u64);
    assert_eq!((stats.used, stats.pools, stats.slots, stats.transient_slots), (0, 1, 512, 0));
    assert_eq!(tlb.count_free(), 512, "a slot is lost");
    assert!(stats.used_hiwater > 0);
}

fn steps() -> usize {
    match std::env::var_os("SMMULAB_LONG") {
        _ if cfg!(miri) => 40,
        Some(_) => 250_000,
        None => 5_000,
    }
}

#[test]
fn threads_share_one_pool() {
    run(steps(), None);
}

#[test]
fn threads_share_pools_that_come_and_go() {
    run(
        steps(),
        Some(Growth {
            provider: Box::new(Addresses::from(0x1_0000_0000)),
            pool_slots: 128,
            max_slots: 512,
            max_transient: 1 << 20,
            limit: u64::MAX,
        }),
    );
}

/// Memory that is given out again as soon as it comes back: the provider of seed 000.
#[test]
fn memory_of_a_pool_comes_back_once_and_can_be_a_pool_again() {
    struct Counted(PoolMemory, Arc<AtomicUsize>);
    impl Memory for Counted {
        type B = ();
        fn start(&self) -> u64 {
            self.0.start()
        }
        fn len(&self) -> usize {
            self.0.len()
        }
        fn slice(&self, offset: usize, len: usize) -> vm_memory::VolatileSlice<'_, ()> {
            self.0.slice(offset, len)
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Relaxed);
        }
    }
    struct Counting(Arc<AtomicUsize>);
    impl swiotlb::Provider<Counted> for Counting {
        fn allocate(&self, bytes: usize, _: u64, _: u64) -> Option<Counted> {
            // Always the same address: only right if the last one's memory has come back.
            assert_eq!(self.0.fetch_add(1, Relaxed), 0, "the memory is still in use");
            Some(Counted(PoolMemory::anonymous(0x100_0000, bytes).unwrap(), self.0.clone()))
        }
    }
    let out = Arc::new(AtomicUsize::new(0));
    let growth = Growth {
        provider: Box::new(Counting(out.clone())),
        pool_slots: 2,
        max_slots: 0,
        max_transient: 128,
        limit: u64::MAX,
    };
    let unused = Arc::new(AtomicUsize::new(1));
    let default = Counted(PoolMemory::anonymous(0, IO_TLB_SIZE).unwrap(), unused);
    let tlb = Swiotlb::new(default, 1, Some(growth)).unwrap();
    let device = Device::new(&tlb).unwrap();
    let memory = originals(0, 1 << 16);
    for round in 0..if cfg!(miri) { 4 } else { 1000 } {
        let address = device.map(&memory, 0, 4096, &Attributes::default()).unwrap();
        assert_eq!((address, out.load(Relaxed)), (0x100_0000, 1), "round {round}");
        assert_eq!(tlb.stats().transient_slots, 2);
        device.unmap(&memory, address, 4096, Direction::ToDevice, &Attributes::default()).unwrap();
        // Other tests of this process look things up too: their reads may be what is waited for.
        while out.load(Relaxed) != 0 {
            tlb.reclaim();
        }
        assert!(!device.is_bounce_buffer(address));
    }
    assert!(tlb.take_growth_request() && !tlb.take_growth_request());
}

#[test]
fn a_restricted_pool_is_one_devices() {
    let tlb = Swiotlb::restricted(PoolMemory::anonymous(0, 1 << 20).unwrap(), 1).unwrap();
    let device = Device::new(&tlb).unwrap();
    assert!(matches!(Device::new(&tlb), Err(Error::Restricted)));
    assert!(tlb.grow().is_err());
    drop(device);
    assert!(Device::new(&tlb).is_ok());
}
