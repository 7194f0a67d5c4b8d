//! `smmulab bench swiotlb`: what bouncing costs. map+unmap beside the two bare copies, two threads beside one, the lookup
//! for a device that was never bounced, and a guest's disk bounced beside direct.
//!
//! Of the small figures each is the best of many short rounds, so that other load on the machine shows as little as may be.

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use swiotlb::{Attributes, Device, Direction, Growth, Memory, PoolMemory, Provider, Swiotlb};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::boot::{direct_reads, median};
use crate::cli::SwiotlbBenchArgs;
use crate::say::outln;

/// Original buffers that a thread goes through in turn.
const BUFFERS: usize = 16;
/// Bytes of the pool and of the memory with the originals.
const POOL: usize = 64 << 20;
/// Bytes of the guest's disk.
const DISK: u64 = 64 << 20;

/// Runs the benchmark and prints its table.
///
/// # Errors
/// When the host has not the memory, or a guest does not do its job.
pub fn run(args: &SwiotlbBenchArgs) -> Result<()> {
    ensure!(args.rounds > 0, "--rounds takes at least 1");
    outln!("{:48} {:>10} {:>10} {:>7}  aim", "best round", "bare", "bounced", "ratio");
    mappings(args.rounds as usize)?;
    lookups(args.rounds as usize)?;
    if args.reads > 0 {
        disk(args)?;
    }
    Ok(())
}

/// ns for one call of what `make` makes for each thread: of the best round, all threads at once.
fn time<F: FnMut(usize)>(
    rounds: usize,
    threads: usize,
    calls: usize,
    make: impl Fn(usize) -> F + Sync,
) -> f64 {
    let barrier = Barrier::new(threads);
    let (barrier, make) = (&barrier, &make);
    let times: Vec<Vec<f64>> = std::thread::scope(|scope| {
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
                    (0..rounds).map(|_| round()).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let slowest = |round: usize| times.iter().filter_map(|t| t.get(round).copied()).fold(0.0, f64::max);
    (0..rounds).map(slowest).fold(f64::MAX, f64::min)
}

/// The pool's address: behind the originals.
const POOL_AT: u64 = 1 << 32;

fn pool(bytes: usize, areas: usize, growth: Option<Growth<PoolMemory>>) -> Result<Arc<Swiotlb<PoolMemory>>> {
    let memory = PoolMemory::anonymous(POOL_AT, bytes).context("no memory for a pool")?;
    Ok(Swiotlb::new(memory, areas, growth)?)
}

/// Where a thread's buffer for a call is: on pages of its own, as a guest's are.
fn original(thread: usize, call: usize, size: usize) -> GuestAddress {
    GuestAddress(((thread * BUFFERS + call % BUFFERS) * size) as u64)
}

fn mappings(rounds: usize) -> Result<()> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), POOL)]).context("no memory")?;
    let tlb = pool(POOL, 4, None)?;
    let device = Device::new(&tlb)?;
    for (name, size) in [("4 KiB", 4096), ("64 KiB", 65536)] {
        let calls = (8 << 20) / size;
        // The same bytes between the same places, which are found beforehand: what is left is the copying.
        let copies = |threads| {
            time(rounds, threads, calls, |thread| {
                let originals: Vec<_> = (0..BUFFERS)
                    .filter_map(|n| memory.get_slice(original(thread, n, size), size).ok())
                    .collect();
                let attributes = Attributes { cpu: thread, ..Attributes::default() };
                let at = device.map(&memory, 0, size, &attributes).unwrap_or(POOL_AT);
                let slot = tlb.default_pool().memory().slice((at - POOL_AT) as usize, size);
                let _ = device.unmap(&memory, at, size, Direction::ToDevice, &attributes);
                move |n| {
                    let original = &originals[n % BUFFERS];
                    original.copy_to_volatile_slice(slot);
                    slot.copy_to_volatile_slice(*original);
                }
            })
        };
        let bounced = |threads| {
            time(rounds, threads, calls, |thread| {
                let attributes = Attributes { cpu: thread, ..Attributes::default() };
                let (device, memory) = (&device, &memory);
                move |n| {
                    let GuestAddress(original) = original(thread, n, size);
                    let Ok(address) = device.map(memory, original, size, &attributes) else { return };
                    let direction = Direction::Bidirectional;
                    let _ = device.unmap(memory, black_box(address), size, direction, &attributes);
                }
            })
        };
        let [one, two] = [1, 2].map(|threads| (copies(threads), bounced(threads)));
        let ratio = one.1 / one.0;
        outln!(
            "{:48} {:>7.0} ns {:>7.0} ns {ratio:>7.2}  1.3 at most",
            format!("map+unmap, {name}"),
            one.0,
            one.1
        );
        let speedup = (2.0 * one.0 / two.0, 2.0 * one.1 / two.1);
        let label = format!("two threads beside one, {name}");
        outln!("{label:48} {:>8.2} x {:>8.2} x {:>7}  1.8 x at least", speedup.0, speedup.1, "");
    }
    ensure!(tlb.stats().failures == 0, "the pool was full");
    Ok(())
}

fn lookups(rounds: usize) -> Result<()> {
    const CALLS: usize = 1_000_000;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096)]).context("no memory")?;
    let growth = Growth {
        provider: Box::new(Addresses(AtomicU64::new(2 * POOL_AT))),
        pool_slots: 512,
        max_slots: 8 * 512,
        max_transient: 0,
        limit: u64::MAX,
    };
    let growing = pool(1 << 20, 1, Some(growth))?;
    for _ in 0..8 {
        growing.grow()?;
    }
    let (never, used) = (Device::new(&growing)?, Device::new(&growing)?);
    used.map(&memory, 0, 1, &Attributes::default())?;
    let empty = time(rounds, 1, CALLS, |_| |n| _ = black_box(n % 8 == 9));
    let lookup = |name: &str, device: &Device<PoolMemory>, address: u64, aim: &str| {
        let ns =
            time(rounds, 1, CALLS, |_| |n| _ = black_box(device.is_bounce_buffer(address + n as u64 % 8)));
        outln!("{:48} {empty:>7.2} ns {ns:>7.2} ns {:>7}  {aim}", format!("lookup, {name}"), "");
    };
    lookup("a device never bounced (bare: the loop)", &never, 0x1234_5678, "under 2 ns");
    lookup("a bounced one, in the default pool", &used, POOL_AT + 4096, "");
    lookup("a bounced one, in the last of 8 added pools", &used, 2 * POOL_AT + (7 << 20), "");
    lookup("a bounced one, in none of 9 pools", &used, 0x1234_5678, "");
    Ok(())
}

/// Hands out the addresses from this one on.
struct Addresses(AtomicU64);

impl Provider<PoolMemory> for Addresses {
    fn allocate(&self, bytes: usize, _: u64, _: u64) -> Option<PoolMemory> {
        PoolMemory::anonymous(self.0.fetch_add(bytes as u64, Relaxed), bytes).ok()
    }
}

/// Direct 4 KiB reads of a guest, a second.
fn disk(args: &SwiotlbBenchArgs) -> Result<()> {
    guest_images::fetch(&args.image, guest_images::Progress::auto())?;
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk");
    File::create(&disk).and_then(|file| file.set_len(DISK)).context("cannot make a disk")?;
    // What comes once, whatever the number of reads, is in both and so in neither's difference.
    let few = direct_reads(args.reads.div_ceil(4));
    let many = direct_reads(args.reads + args.reads.div_ceil(4));
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..args.guest_rounds.max(1) {
        for (bounce, rates) in ["off", "all"].into_iter().zip(&mut rates) {
            let [few, many] = [guest(args, &disk, bounce, &few)?, guest(args, &disk, bounce, &many)?];
            rates.push(f64::from(args.reads) / many.saturating_sub(few).as_secs_f64().max(1e-3));
        }
    }
    let [direct, bounced] = rates.map(median);
    let label = "a guest's direct 4 KiB reads a second, median";
    outln!("{label:48} {direct:>10.0} {bounced:>10.0} {:>7.2}", bounced / direct);
    Ok(())
}

fn guest(args: &SwiotlbBenchArgs, disk: &Path, bounce: &str, job: &str) -> Result<Duration> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["run", "--image", &args.image, "--exec", job, "--bounce", bounce])
        .args(["--kernel-log", "/dev/null", "--disk"])
        .arg(disk)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    super::boot::timed(command)
}
