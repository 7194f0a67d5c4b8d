//! Pools as plain data: a restored one holds what the saved one held, and goes on as it would have.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use swiotlb::{Attributes, Device, Direction, Growth, PoolMemory, Provider, Swiotlb, SwiotlbState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const START: u64 = 1 << 40;

struct Addresses(AtomicU64);

impl Provider<PoolMemory> for Addresses {
    fn allocate(&self, bytes: usize, _: u64, _: u64) -> Option<PoolMemory> {
        PoolMemory::anonymous(self.0.fetch_add(bytes as u64, Relaxed), bytes).ok()
    }

    fn allocate_at(&self, start: u64, bytes: usize) -> Option<PoolMemory> {
        self.0.store(start + bytes as u64, Relaxed);
        PoolMemory::anonymous(start, bytes).ok()
    }
}

fn pool() -> Arc<Swiotlb<PoolMemory>> {
    let growth = Growth {
        provider: Box::new(Addresses(AtomicU64::new(2 * START))),
        pool_slots: 160,
        max_slots: 1600,
        max_transient: 0,
        limit: u64::MAX,
    };
    Swiotlb::new(PoolMemory::anonymous(START, 300 << 11).unwrap(), 2, Some(growth)).unwrap()
}

fn memory() -> GuestMemoryMmap<()> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let bytes: Vec<u8> = (0..1 << 20).map(|i| (i * 7 + i / 256) as u8).collect();
    memory.write_slice(&bytes, GuestAddress(0)).unwrap();
    memory
}

/// The same operations for a pool and its successor: addresses given, whatever they are.
fn go_on(
    device: &Device<PoolMemory>,
    memory: &GuestMemoryMmap<()>,
    mapped: &mut Vec<(u64, usize)>,
) -> Vec<u64> {
    let attributes = Attributes { min_align_mask: 0xfff, ..Attributes::default() };
    let mut given = Vec::new();
    for n in 0..60u64 {
        let size = 1 + (n as usize * 3001) % 40_000;
        match device.map(memory, n * 1234, size, &attributes) {
            Ok(address) => {
                given.push(address);
                mapped.push((address, size));
            }
            Err(_) => _ = device.tlb().grow(),
        }
        if n % 3 == 0 {
            let (address, size) = mapped.remove(n as usize % mapped.len());
            device.unmap(memory, address, size, Direction::Bidirectional, &attributes).unwrap();
        }
    }
    given
}

#[test]
fn a_restored_pool_goes_on_like_the_saved_one() {
    let (first, memory) = (pool(), memory());
    let device = Device::new(&first).unwrap();
    let mut mapped = Vec::new();
    go_on(&device, &memory, &mut mapped);
    let ring = device.alloc(8192, &Attributes::default()).unwrap();
    let saved = first.save();
    assert!(saved.pools.len() > 1, "it has grown");
    let text = serde_json::to_string(&saved).unwrap();
    let saved: SwiotlbState = serde_json::from_str(&text).unwrap();

    let second = pool();
    // What was mapped in it before is forgotten.
    let other = Device::new(&second).unwrap();
    other.map(&memory, 0, 5000, &Attributes::default()).unwrap();
    second.restore(&saved).unwrap();
    other.restore_uses_io_tlb(true);
    assert_eq!(second.save(), saved);
    assert_eq!(second.stats(), first.stats());
    assert_eq!(second.count_free(), first.count_free());
    let mut others = mapped.clone();
    assert_eq!(go_on(&device, &memory, &mut mapped), go_on(&other, &memory, &mut others));
    for (device, mapped) in [(&device, mapped), (&other, others)] {
        device.free(ring).unwrap();
        for (address, size) in mapped {
            device.unmap(&memory, address, size, Direction::ToDevice, &Attributes::default()).unwrap();
        }
        assert_eq!(device.tlb().stats().used, 0);
    }
    assert_eq!(first.save(), second.save());
}

#[test]
fn states_that_contradict_themselves_are_refused() {
    let (first, memory) = (pool(), memory());
    let device = Device::new(&first).unwrap();
    device.map(&memory, 100, 5000, &Attributes::default()).unwrap();
    let good = first.save();
    let mapping = good.pools[0].mappings[0].clone();
    let bad: [fn(&mut SwiotlbState); 9] = [
        |s| s.pools.clear(),
        |s| s.pools[0].start += 2048,
        |s| s.pools[0].slots -= 1,
        |s| s.pools[0].areas[0].index = 99,
        |s| s.pools[0].mappings[0].slot = 1 << 40,
        |s| s.pools[0].mappings[0].pad_slots = 1000,
        |s| s.pools[0].mappings[0].slots = 1000,
        |s| s.pools[0].mappings[0].offset = 2047,
        |s| s.pools[0].mappings[0].bytes.clear(),
    ];
    for (n, spoil) in bad.into_iter().enumerate() {
        let mut state = good.clone();
        spoil(&mut state);
        assert!(pool().restore(&state).is_err(), "{n}");
    }
    let mut twice = good.clone();
    twice.pools[0].mappings.push(mapping);
    assert!(pool().restore(&twice).is_err());
    assert!(pool().restore(&good).is_ok());
}
