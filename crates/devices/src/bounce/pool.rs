//! The pools of a machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};
use swiotlb::{Device, Growth, IO_TLB_SHIFT, IO_TLB_SIZE, PoolMemory, Provider, Swiotlb, SwiotlbState};

use super::onlooker::Seat;
use super::{Bounce, Counters, Onlooker};
use crate::pci::StateError;

/// What a pool is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// The address of its first byte, as bounced devices see it.
    pub start: u64,
    /// Its length in bytes, a multiple of a slot's.
    pub bytes: u64,
    /// How many bytes may be added when it is full.
    pub dynamic: u64,
    /// Whether one device has it to itself.
    pub restricted: bool,
}

/// Why there is no such pool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no bounce pool of {bytes:#x} bytes: {why}")]
pub struct PoolError {
    bytes: u64,
    why: String,
}

/// A bounce pool with memory of its own.
#[derive(Debug)]
pub struct Pool {
    tlb: Arc<Swiotlb<PoolMemory>>,
    /// Slots that it can have, growth included.
    most_slots: usize,
    onlooker: Seat,
}

/// A pool's counters. All but `used` only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStats {
    /// Slots there are.
    pub slots: usize,
    /// Slots in use.
    pub used: usize,
    /// The most there have been in use at a time.
    pub used_hiwater: usize,
    /// Pools: the first and the added ones.
    pub pools: usize,
    /// Mappings that found no room though there were enough free slots: no run of them fitted.
    pub failures: u64,
}

/// What a device did with its pool. All but `used` only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BounceStats {
    /// Buffers mapped.
    pub mappings: u64,
    /// Bytes copied from guest memory.
    pub bytes_in: u64,
    /// Bytes copied to guest memory.
    pub bytes_out: u64,
    /// Slots in use.
    pub used: usize,
    /// The most in use at a time.
    pub used_hiwater: usize,
    /// Times that a request had to wait for slots.
    pub waits: u64,
    /// Requests that failed for want of slots.
    pub failures: u64,
    /// Slots that the pool can have, growth included: no request can need more.
    pub(super) most_slots: usize,
}

impl Pool {
    /// A pool.
    ///
    /// # Errors
    /// When the host has not the memory, or the length is none.
    pub fn new(config: &PoolConfig) -> Result<Self, PoolError> {
        let error = |why: String| PoolError { bytes: config.bytes, why };
        let bytes = usize::try_from(config.bytes).map_err(|e| error(e.to_string()))?;
        let dynamic = usize::try_from(config.dynamic).map_err(|e| error(e.to_string()))?;
        let memory = PoolMemory::anonymous(config.start, bytes).map_err(|e| error(e.to_string()))?;
        // One area: one thread steps the machine.
        let (tlb, grown) = if config.restricted {
            (Swiotlb::restricted(memory, 1), 0)
        } else {
            let each = bytes.min(dynamic).max(IO_TLB_SIZE);
            let growth = (dynamic > 0).then(|| Growth {
                provider: Box::new(Addresses(AtomicU64::new(config.start + config.bytes)))
                    as Box<dyn Provider<_>>,
                pool_slots: each >> IO_TLB_SHIFT,
                max_slots: dynamic >> IO_TLB_SHIFT,
                // Transient pools' memory comes back at a time that other threads of the host have a say in.
                max_transient: 0,
                limit: u64::MAX,
            });
            let grown = if dynamic > 0 { dynamic / each * (each >> IO_TLB_SHIFT) } else { 0 };
            (Swiotlb::new(memory, 1, growth), grown)
        };
        let tlb = tlb.map_err(|e| error(e.to_string()))?;
        Ok(Self { tlb, most_slots: (bytes >> IO_TLB_SHIFT) + grown, onlooker: Seat::default() })
    }

    /// A device's share of it.
    ///
    /// # Errors
    /// When another device has it to itself.
    pub fn bounce(&self) -> Result<Bounce, swiotlb::Error> {
        let stats = BounceStats { most_slots: self.most_slots, ..BounceStats::default() };
        let counters = Counters::default();
        counters.set(&stats);
        let onlooker = Arc::clone(&self.onlooker);
        Ok(Bounce { device: Device::new(&self.tlb)?, stats: counters, onlooker })
    }

    /// Lets somebody watch the buffers of all devices that have a share of it, now or later. The first one stays.
    pub fn watch(&self, onlooker: Arc<dyn Onlooker>) {
        if self.onlooker.set(onlooker).is_err() {
            log::error!("a bounce pool is watched already");
        }
    }

    /// Its counters.
    pub fn stats(&self) -> PoolStats {
        let swiotlb::Stats { slots, used, used_hiwater, pools, failures, .. } = self.tlb.stats();
        PoolStats { slots, used, used_hiwater, pools, failures }
    }

    /// What is mapped, with its bytes, as plain data.
    pub fn save(&self) -> SwiotlbState {
        self.tlb.save()
    }

    /// Takes over a state, into a pool of the same size.
    ///
    /// # Errors
    /// When it is another pool's.
    pub fn restore(&self, state: &SwiotlbState) -> Result<(), StateError> {
        self.tlb.restore(state).map_err(|_| StateError)
    }
}

/// Memory for added pools, at addresses behind the last one's.
struct Addresses(AtomicU64);

impl Provider<PoolMemory> for Addresses {
    fn allocate(&self, bytes: usize, _align: u64, _limit: u64) -> Option<PoolMemory> {
        PoolMemory::anonymous(self.0.fetch_add(bytes as u64, Relaxed), bytes).ok()
    }

    fn allocate_at(&self, start: u64, bytes: usize) -> Option<PoolMemory> {
        // Saved pools come in the order of their addresses: the last one's end is where the next begins.
        self.0.store(start.checked_add(bytes as u64)?, Relaxed);
        PoolMemory::anonymous(start, bytes).ok()
    }
}
