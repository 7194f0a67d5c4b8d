//! A bounce pool with the structure and words of Linux's swiotlb, for any VMM.
//!
//! A [`Swiotlb`] (the kernel's `io_tlb_mem`) is memory that a device may reach, cut into slots of
//! [`IO_TLB_SIZE`] bytes. A [`Device`] *maps* a buffer: slots are taken, the buffer is copied in, and the device is
//! given the address in the pool. Until it is *unmapped*, which copies out and gives the slots back, the two copies
//! are brought together by *syncs*.
//!
//! | here | what it is | in the kernel |
//! |---|---|---|
//! | [`Swiotlb`] | default pool, grown pools, counts | `io_tlb_mem` |
//! | [`Device`] | what a device needs of its own: the flag, transient pools | `dev->dma_io_tlb_*` |
//! | [`Pool`] | one contiguous range of slots | `io_tlb_pool` |
//! | area | a part of a pool with a lock of its own | `io_tlb_area` |
//! | segment | [`IO_TLB_SEGSIZE`] slots; no mapping crosses one | `IO_TLB_SEGSIZE` |
//! | slot | [`IO_TLB_SIZE`] bytes | `io_tlb_slot` |
//!
//! Two threads may map, sync and unmap at the same time, and hand the addresses to one another by any means at all.
//! `docs/swiotlb.md` says why that works and how it is checked.

#![deny(unsafe_code)]

mod area;
mod attributes;
mod device;
mod memory;
#[cfg_attr(not(loom), expect(dead_code, unreachable_pub, reason = "the mutants are for loom"))]
mod mutant;
mod ordering;
mod pool;
#[cfg(not(loom))]
mod rcu;
#[cfg(loom)]
#[path = "rcu_model.rs"]
mod rcu;
mod segment;
mod slot;
mod state;
mod swiotlb;
mod sync;

pub use attributes::{Attributes, Direction, Error};
pub use device::Device;
pub use memory::{Fault, Memory, Original, Plain, PoolMemory, Provider};
#[cfg(loom)]
pub use mutant::Mutant;
pub use pool::Pool;
pub use state::{AreaState, MappingState, PoolState, StateError, SwiotlbState};
pub use swiotlb::{Growth, Stats, Swiotlb};

/// log2 of [`IO_TLB_SIZE`].
pub const IO_TLB_SHIFT: u32 = 11;
/// Bytes in a slot.
pub const IO_TLB_SIZE: usize = 1 << IO_TLB_SHIFT;
/// Slots in a segment: the longest run of slots that one mapping can have.
pub const IO_TLB_SEGSIZE: usize = 128;
/// Buffers of a page and more are aligned to a page unless another alignment is asked for.
pub const PAGE_SIZE: usize = 4096;
