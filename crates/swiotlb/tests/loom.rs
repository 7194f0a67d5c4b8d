//! What may happen between threads, all of it, as loom finds it; and the same with the
//! code made wrong in one place after the other, which these tests must notice. `.ci/loom` runs this.
//!
//! Threads hand addresses to one another with relaxed stores and loads: the least that a driver could do.

#![cfg(loom)]

use std::sync::{Arc, Mutex as Plain};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::thread;
use swiotlb::{
    Attributes, Device, Direction, Error, Fault, Growth, IO_TLB_SIZE, Memory, Mutant, Original, Provider,
    Swiotlb,
};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

const SLOT: u64 = IO_TLB_SIZE as u64;
const DEFAULT: u64 = 0x10_0000;
const FURTHER: u64 = 0x20_0000;

/// Runs `f` in every order that matters. loom leaves out orders that it takes for equivalent, and leaves out others with
/// a bound on preemptions than without (it then adds orders so that the bound hides nothing), so both are run.
fn model(f: impl Fn() + Sync + Send + 'static) {
    let f = Arc::new(f);
    for bound in [Some(2), Some(3), None] {
        let executions = Arc::new(Plain::new(0));
        let (count, f) = (executions.clone(), f.clone());
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = bound;
        builder.check(move || {
            *count.lock().unwrap() += 1;
            f();
        });
        println!("{} executions with at most {bound:?} preemptions", executions.lock().unwrap());
    }
}

/// Pool memory in which loom sees every access, slot by slot, and says where it was when it is given back.
struct Watched {
    start: u64,
    region: Arc<MmapRegion>,
    slots: Vec<UnsafeCell<()>>,
    /// The page allocator's free list: a relaxed store, as in seed 000.
    free_list: Option<Arc<AtomicU64>>,
}

// SAFETY: the cells hold nothing; loom reports unordered accesses to them, which is what they are for.
unsafe impl Sync for Watched {}
// SAFETY: as above.
unsafe impl Send for Watched {}

impl Watched {
    fn new(start: u64, slots: usize, free_list: Option<Arc<AtomicU64>>) -> Self {
        let region = Arc::new(MmapRegion::new(slots * IO_TLB_SIZE).unwrap());
        Watched { start, region, slots: (0..slots).map(|_| UnsafeCell::new(())).collect(), free_list }
    }
}

impl Memory for Watched {
    type B = ();

    fn start(&self) -> u64 {
        self.start
    }

    fn len(&self) -> usize {
        self.slots.len() * IO_TLB_SIZE
    }

    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_, ()> {
        for slot in &self.slots[offset / IO_TLB_SIZE..(offset + len).div_ceil(IO_TLB_SIZE)] {
            slot.with_mut(|_| ());
        }
        self.region.get_slice(offset, len).unwrap()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !std::thread::panicking()
            && let Some(free_list) = &self.free_list
        {
            // Not touched by anybody who does not know it yet, as far as loom can tell.
            self.slots.iter().for_each(|slot| slot.with_mut(|_| ()));
            free_list.store(self.start, Relaxed);
        }
    }
}

/// Gives one piece of memory after the other.
struct Supply(Plain<Vec<Watched>>);

impl Provider<Watched> for Supply {
    fn allocate(&self, bytes: usize, _: u64, _: u64) -> Option<Watched> {
        let mut supply = self.0.lock().unwrap();
        let at = supply.iter().position(|memory| memory.len() == bytes)?;
        Some(supply.remove(at))
    }
}

/// Originals: the bytes say which buffer they are of.
struct Buffers;

impl Original for Buffers {
    type Place<'a> = ();

    fn find(&self, _: u64, _: usize) {}

    fn read<B: BitmapSlice>(&self, (): (), _: u64, _: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        Ok(())
    }

    fn write<B: BitmapSlice>(&self, _: u64, _: &VolatileSlice<'_, B>) -> Result<(), Fault> {
        Ok(())
    }
}

/// A default pool of `slots` slots, and memory for growth.
fn tlb(slots: usize, grown: usize, transient: usize, supply: Vec<Watched>) -> Arc<Swiotlb<Watched>> {
    let growth = Growth {
        provider: Box::new(Supply(Plain::new(supply))),
        pool_slots: 1,
        max_slots: grown,
        max_transient: transient,
        limit: u64::MAX,
    };
    let growth = (grown + transient > 0).then_some(growth);
    Swiotlb::new(Watched::new(DEFAULT, slots, None), 1, growth).unwrap()
}

fn map(device: &Device<Watched>, original: u64) -> Result<u64, Error> {
    device.map(&Buffers, original, IO_TLB_SIZE, &Attributes::default())
}

fn unmap(device: &Device<Watched>, address: u64) -> Result<(), Error> {
    device.unmap(&Buffers, address, IO_TLB_SIZE, Direction::FromDevice, &Attributes::default())
}

/// Seed 001 for the default pool: the first mapping of a device, handed on.
#[test]
fn the_first_mapping_is_found_by_who_receives_it() {
    model(|| {
        let device = Arc::new(Device::new(&tlb(1, 0, 0, vec![])).unwrap());
        let shared = Arc::new(AtomicU64::new(0));
        let mapper = {
            let (device, shared) = (device.clone(), shared.clone());
            thread::spawn(move || shared.store(map(&device, 0x5000).unwrap(), Relaxed))
        };
        let address = shared.load(Relaxed);
        if address != 0 {
            assert!(device.is_bounce_buffer(address), "the address is not taken for a bounce buffer");
            assert_eq!(device.original_address(address + 7), Some(0x5007), "the record is not seen");
            unmap(&device, address).unwrap();
        }
        mapper.join().unwrap();
    });
}

/// Seed 001 as its litmus test has it: P0 adds a pool, P1 maps in it, P2 receives the address.
#[test]
fn a_mapping_in_a_new_pool_is_found_by_who_receives_it() {
    model(|| {
        let tlb = tlb(1, 1, 0, vec![Watched::new(FURTHER, 1, None)]);
        let other = Device::new(&tlb).unwrap();
        map(&other, 0x1000).unwrap();
        let device = Arc::new(Device::new(&tlb).unwrap());
        let shared = Arc::new(AtomicU64::new(0));
        let p0 = thread::spawn(move || assert_eq!(tlb.grow(), Ok(FURTHER..FURTHER + SLOT)));
        let p1 = {
            let (device, shared) = (device.clone(), shared.clone());
            thread::spawn(move || {
                if let Ok(address) = map(&device, 0x5000) {
                    shared.store(address, Relaxed);
                }
            })
        };
        let address = shared.load(Relaxed);
        if address != 0 {
            assert_eq!(address, FURTHER);
            assert!(device.is_bounce_buffer(address), "the address is not taken for a bounce buffer");
            assert_eq!(device.original_address(address), Some(0x5000), "the record is not seen");
        }
        p0.join().unwrap();
        p1.join().unwrap();
    });
}

/// The same for a transient pool.
#[test]
fn a_mapping_in_a_transient_pool_is_found_by_who_receives_it() {
    model(|| {
        let tlb = tlb(1, 0, 2, vec![Watched::new(FURTHER, 2, None)]);
        let device = Arc::new(Device::new(&tlb).unwrap());
        let shared = Arc::new(AtomicU64::new(0));
        let mapper = {
            let (device, shared) = (device.clone(), shared.clone());
            thread::spawn(move || {
                let mapped = device.map(&Buffers, 0x5000, 2 * IO_TLB_SIZE, &Attributes::default());
                shared.store(mapped.unwrap(), Relaxed);
            })
        };
        let address = shared.load(Relaxed);
        if address != 0 {
            assert_eq!(address, FURTHER);
            assert_eq!(device.original_address(address + SLOT), Some(0x5000 + SLOT));
            unmap(&device, address).unwrap();
        }
        mapper.join().unwrap();
    });
}

/// Somebody looks up another address while a pool is added: no half-written list is seen.
#[test]
fn a_lookup_beside_growth_sees_whole_lists() {
    model(|| {
        let tlb = tlb(1, 1, 0, vec![Watched::new(FURTHER, 1, None)]);
        let device = Device::new(&tlb).unwrap();
        map(&device, 0x1000).unwrap();
        let grower = {
            let tlb = tlb.clone();
            thread::spawn(move || assert_eq!(tlb.grow(), Ok(FURTHER..FURTHER + SLOT)))
        };
        device.find_pool(FURTHER, |pool| assert_eq!((pool.start(), pool.slots()), (FURTHER, 1)));
        assert_eq!(device.original_address(FURTHER), None);
        grower.join().unwrap();
    });
}

/// Seed 000: P0 unmaps and the pool's memory goes back to the page allocator; P1 is given it for something else.
#[test]
fn a_reused_address_is_not_taken_for_a_bounce_buffer() {
    model(|| {
        let free_list = Arc::new(AtomicU64::new(0));
        let tlb = tlb(1, 0, 2, vec![Watched::new(FURTHER, 2, Some(free_list.clone()))]);
        let device = Arc::new(Device::new(&tlb).unwrap());
        let address = device.map(&Buffers, 0x5000, 2 * IO_TLB_SIZE, &Attributes::default()).unwrap();
        assert_eq!(address, FURTHER);
        let p0 = {
            let device = device.clone();
            thread::spawn(move || unmap(&device, address).unwrap())
        };
        let reused = free_list.load(Relaxed);
        if reused != 0 {
            assert!(!device.is_bounce_buffer(reused), "a buffer is taken for a bounce buffer");
        }
        p0.join().unwrap();
        assert_eq!(free_list.load(Relaxed), FURTHER, "the memory has not been given back");
    });
}

/// Seed 000 with others about: the memory comes back while one thread searches the list for something else.
#[test]
fn a_reused_address_is_not_taken_for_a_bounce_buffer_beside_a_search() {
    model(|| {
        let free_list = Arc::new(AtomicU64::new(0));
        let (one, two) = (FURTHER, FURTHER + 0x10_0000);
        let supply = vec![Watched::new(one, 2, Some(free_list.clone())), Watched::new(two, 2, None)];
        let device = Arc::new(Device::new(&tlb(1, 0, 4, supply)).unwrap());
        for address in [one, two] {
            assert_eq!(device.map(&Buffers, 0x5000, 2 * IO_TLB_SIZE, &Attributes::default()), Ok(address));
        }
        let p0 = {
            let device = device.clone();
            thread::spawn(move || unmap(&device, one).unwrap())
        };
        let searcher = {
            let device = device.clone();
            thread::spawn(move || assert!(device.is_bounce_buffer(two)))
        };
        let reused = free_list.load(Relaxed);
        if reused != 0 {
            assert!(!device.is_bounce_buffer(reused), "a buffer is taken for a bounce buffer");
        }
        p0.join().unwrap();
        searcher.join().unwrap();
    });
}

/// A pool that somebody has just found stays until they have finished, though it is removed meanwhile.
#[test]
fn a_pool_outlives_who_found_it() {
    model(|| {
        let free_list = Arc::new(AtomicU64::new(0));
        let tlb = tlb(1, 1, 0, vec![Watched::new(FURTHER, 1, Some(free_list))]);
        let device = Device::new(&tlb).unwrap();
        map(&device, 0x1000).unwrap();
        tlb.grow().unwrap();
        let remover = {
            let tlb = tlb.clone();
            thread::spawn(move || assert_eq!(tlb.shrink(), 1))
        };
        device.find_pool(FURTHER, |pool| pool.memory().slots[0].with(|_| ()));
        remover.join().unwrap();
    });
}

/// A mapping beside the removal of the pool it would be in: it fails, or the pool stays.
#[test]
fn no_mapping_begins_in_a_pool_that_is_removed() {
    model(|| {
        let tlb = tlb(1, 1, 0, vec![Watched::new(FURTHER, 1, None)]);
        let device = Device::new(&tlb).unwrap();
        map(&device, 0x1000).unwrap();
        tlb.grow().unwrap();
        let remover = {
            let tlb = tlb.clone();
            thread::spawn(move || tlb.shrink())
        };
        let mapped = map(&device, 0x5000);
        let removed = remover.join().unwrap();
        match mapped {
            Ok(address) => {
                assert_eq!(removed, 0);
                assert_eq!(device.original_address(address), Some(0x5000));
                unmap(&device, address).unwrap();
            }
            Err(error) => assert!(matches!(error, Error::Full { .. }), "{error}"),
        }
    });
}

/// One thread unmaps while another maps: the slot's bytes and its record are one mapping's at a time.
#[test]
fn a_slot_has_one_owner() {
    model(|| {
        let device = Arc::new(Device::new(&tlb(1, 0, 0, vec![])).unwrap());
        let first = map(&device, 0x1000).unwrap();
        let unmapper = {
            let device = device.clone();
            thread::spawn(move || unmap(&device, first).unwrap())
        };
        let mapped = map(&device, 0x5000);
        unmapper.join().unwrap();
        match mapped {
            Ok(address) => {
                assert_eq!(device.original_address(address), Some(0x5000));
                unmap(&device, address).unwrap();
            }
            Err(error) => assert!(matches!(error, Error::Full { .. }), "{error}"),
        }
        let stats = device.tlb().stats();
        assert_eq!((stats.used, stats.used_hiwater), (0, 1));
    });
}

/// Two threads unmap the same mapping: one succeeds, the slots are given back once.
#[test]
fn a_mapping_ends_once() {
    model(|| {
        let device = Arc::new(Device::new(&tlb(2, 0, 0, vec![])).unwrap());
        let address = device.alloc(IO_TLB_SIZE, &Attributes::default()).unwrap();
        let other = {
            let device = device.clone();
            thread::spawn(move || device.free(address).is_ok())
        };
        let mine = device.free(address).is_ok();
        assert!(mine ^ other.join().unwrap());
        assert_eq!(device.tlb().count_free(), 2);
    });
}

/// Every mutant makes a test fail, and the one that was written with it in mind.
#[test]
fn every_mutant_is_found() {
    const SCENARIOS: &[(&str, fn())] = &[
        ("the_first_mapping_is_found_by_who_receives_it", the_first_mapping_is_found_by_who_receives_it),
        (
            "a_mapping_in_a_new_pool_is_found_by_who_receives_it",
            a_mapping_in_a_new_pool_is_found_by_who_receives_it,
        ),
        (
            "a_mapping_in_a_transient_pool_is_found_by_who_receives_it",
            a_mapping_in_a_transient_pool_is_found_by_who_receives_it,
        ),
        ("a_lookup_beside_growth_sees_whole_lists", a_lookup_beside_growth_sees_whole_lists),
        (
            "a_reused_address_is_not_taken_for_a_bounce_buffer",
            a_reused_address_is_not_taken_for_a_bounce_buffer,
        ),
        (
            "a_reused_address_is_not_taken_for_a_bounce_buffer_beside_a_search",
            a_reused_address_is_not_taken_for_a_bounce_buffer_beside_a_search,
        ),
        ("a_pool_outlives_who_found_it", a_pool_outlives_who_found_it),
        ("no_mapping_begins_in_a_pool_that_is_removed", no_mapping_begins_in_a_pool_that_is_removed),
        ("a_slot_has_one_owner", a_slot_has_one_owner),
        ("a_mapping_ends_once", a_mapping_ends_once),
    ];
    let mut missed = Vec::new();
    for mutant in Mutant::ALL {
        let expected = match mutant {
            Mutant::PublishRelaxed | Mutant::SnapshotRelaxed => "a_lookup_beside_growth_sees_whole_lists",
            Mutant::NoMapFence | Mutant::NoLookupFence => {
                "a_mapping_in_a_new_pool_is_found_by_who_receives_it"
            }
            Mutant::FlagAfterFence | Mutant::RecordAfterFence => {
                "the_first_mapping_is_found_by_who_receives_it"
            }
            Mutant::NoGrace => "a_reused_address_is_not_taken_for_a_bounce_buffer",
            Mutant::RecordAfterFree | Mutant::CopyAfterFree => "a_slot_has_one_owner",
            Mutant::NoClose => "no_mapping_begins_in_a_pool_that_is_removed",
        };
        let fails = |scenario: fn()| {
            let run = move || {
                mutant.choose();
                scenario();
            };
            std::thread::spawn(run).join().is_err()
        };
        let found: Vec<_> =
            SCENARIOS.iter().filter(|(_, scenario)| fails(*scenario)).map(|(name, _)| *name).collect();
        eprintln!("{mutant:?}: {}", found.join(", "));
        if !found.contains(&expected) {
            missed.push((mutant, expected));
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
