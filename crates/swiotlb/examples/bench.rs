//! What bouncing costs: map+unmap beside the two bare copies, two threads beside one, and the lookup for a device that
//! was never bounced. `cargo run --release -p swiotlb --example bench`
//!
//! Each figure is the best of many short rounds, so that other load on the machine shows as little as may be.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use swiotlb::{Attributes, Device, Direction, Growth, PoolMemory, Provider, Swiotlb};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Original buffers that a thread goes through in turn.
const BUFFERS: usize = 16;
const ROUNDS: usize = 60;

/// ns for one call of what `make` makes for each thread: of the best round, all threads at once.
fn time<F: FnMut(usize)>(threads: usize, calls: usize, make: impl Fn(usize) -> F + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let (barrier, make) = (&barrier, &make);
    let rounds: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut call = make(thread);
                    let mut round = || {
                        barrier.wait();
                        let start = Instant::now();
                        (0..calls).for_each(&mut call);
                        start.elapsed().as_nanos() as f64 / calls as f64
                    };
                    (0..ROUNDS).map(|_| round()).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("the round ran")).collect()
    });
    let slowest = |round: usize| rounds.iter().map(|thread| thread[round]).fold(0.0, f64::max);
    (0..ROUNDS).map(slowest).fold(f64::MAX, f64::min)
}

fn main() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 64 << 20)]).expect("memory");
    let tlb =
        Swiotlb::new(PoolMemory::anonymous(1 << 32, 64 << 20).expect("memory"), 4, None).expect("a pool");
    let device = Device::new(&tlb).expect("not restricted");

    println!("size     threads   bare copies   map+unmap   ratio");
    for size in [4096, 65536] {
        let calls = (8 << 20) / size;
        let mut one = [0.0; 2];
        for threads in [1, 2] {
            let bare = time(threads, calls, |_| {
                let mut originals = vec![1u8; BUFFERS * size];
                let mut slot = vec![2u8; size];
                move |n| {
                    let original = &mut originals[n % BUFFERS * size..][..size];
                    slot.copy_from_slice(black_box(original));
                    original.copy_from_slice(black_box(&slot));
                }
            });
            let bounced = time(threads, calls, |thread| {
                let attributes = Attributes { cpu: thread, ..Attributes::default() };
                let base = (thread * BUFFERS * size) as u64;
                let (device, memory) = (&device, &memory);
                move |n| {
                    let original = base + (n % BUFFERS * size) as u64;
                    let address = device.map(memory, original, size, &attributes).expect("room");
                    let address = black_box(address);
                    device
                        .unmap(memory, address, size, Direction::Bidirectional, &attributes)
                        .expect("mapped");
                }
            });
            println!("{size:<8} {threads:<9} {bare:>8.1} ns {bounced:>9.1} ns {:>7.2}", bounced / bare);
            if threads == 1 {
                one = [bare, bounced];
            } else {
                let speedup = [2.0 * one[0] / bare, 2.0 * one[1] / bounced];
                println!(
                    "{size:<8} 2 beside 1: copies {:.2} times, map+unmap {:.2} times",
                    speedup[0], speedup[1]
                );
            }
        }
    }

    let growth = Growth {
        provider: Box::new(Addresses(AtomicU64::new(2 << 32))),
        pool_slots: 512,
        max_slots: 8 * 512,
        max_transient: 0,
        limit: u64::MAX,
    };
    let growing = Swiotlb::new(PoolMemory::anonymous(1 << 32, 1 << 20).expect("memory"), 1, Some(growth))
        .expect("a pool");
    for _ in 0..8 {
        growing.grow().expect("memory");
    }
    let [never, used] = [(); 2].map(|()| Device::new(&growing).expect("not restricted"));
    used.map(&memory, 0, 1, &Attributes::default()).expect("room");
    let lookup = |name: &str, device: &Device<PoolMemory>, address: u64| {
        let call = |n| _ = black_box(device.is_bounce_buffer(address + n as u64 % 8));
        let ns = time(1, 1_000_000, |_| call);
        println!("lookup {name:<44} {ns:.2} ns");
    };
    let empty = time(1, 1_000_000, |_| |n| _ = black_box(n % 8 == 9));
    println!("lookup {:<44} {empty:.2} ns", "(the loop around it)");
    lookup("by a device that was never bounced", &never, 0x1234_5678);
    lookup("by one that was: in the default pool", &used, (1 << 32) + 4096);
    lookup("by one that was: in the last of 8 added pools", &used, (2 << 32) + (7 << 20));
    lookup("by one that was: in none of 9 pools", &used, 0x1234_5678);
}

/// Hands out the addresses from this one on.
struct Addresses(AtomicU64);

impl Provider<PoolMemory> for Addresses {
    fn allocate(&self, bytes: usize, _: u64, _: u64) -> Option<PoolMemory> {
        PoolMemory::anonymous(self.0.fetch_add(bytes as u64, Relaxed), bytes).ok()
    }
}
