//! What a caller can ask for, and what can go wrong.

use crate::{Fault, IO_TLB_SEGSIZE, IO_TLB_SIZE};

/// Who writes to a mapped buffer (`enum dma_data_direction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The device only reads.
    ToDevice,
    /// The device only writes.
    FromDevice,
    /// Both.
    Bidirectional,
}

impl Direction {
    /// Whether the device may read what the CPU wrote.
    pub fn to_device(self) -> bool {
        self != Direction::FromDevice
    }

    /// Whether the CPU may read what the device wrote.
    pub fn from_device(self) -> bool {
        self != Direction::ToDevice
    }
}

/// What a device, or one mapping for it, requires of the address it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Address bits that the bounce address shares with the original (`dma_get_min_align_mask`); 2ⁿ-1.
    pub min_align_mask: u64,
    /// Start and end of the slots taken are aligned to this: nothing else is in the granule (an IOMMU page, say) that the
    /// buffer is in. 2ⁿ-1.
    pub alloc_align_mask: u64,
    /// The mapping does not cross a multiple of this plus one (`dma_get_seg_boundary`); 2ⁿ-1.
    pub boundary_mask: u64,
    /// The highest address that the device can reach.
    pub limit: u64,
    /// Who maps: the area to try first is this modulo the number of areas, as with the kernel's `smp_processor_id`.
    /// Threads that give different numbers do not meet on a lock.
    pub cpu: usize,
    /// On unmap, do not copy out (`DMA_ATTR_SKIP_CPU_SYNC`).
    pub skip_cpu_sync: bool,
}

impl Default for Attributes {
    fn default() -> Self {
        Attributes {
            min_align_mask: 0,
            alloc_align_mask: 0,
            boundary_mask: u64::MAX,
            limit: u64::MAX,
            cpu: 0,
            skip_cpu_sync: false,
        }
    }
}

impl Attributes {
    /// The longest buffer that can be mapped with these attributes whatever its address (`swiotlb_max_mapping_size`).
    pub fn max_mapping_size(&self) -> usize {
        let granule = self.alloc_align_mask.max(IO_TLB_SIZE as u64 - 1);
        let before = (self.min_align_mask & granule) as usize;
        (IO_TLB_SEGSIZE * IO_TLB_SIZE).saturating_sub(before)
    }
}

/// Why a call did nothing, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A mapping of no bytes, or one with its padding longer than a segment.
    #[error("{size} bytes cannot be mapped")]
    Size {
        /// What was asked for.
        size: usize,
    },
    /// A mask that is not 2ⁿ-1.
    #[error("an alignment or boundary mask is not one less than a power of two")]
    Mask,
    /// No run of free slots fits.
    #[error("no {slots} slots in a row are free and aligned as required ({used} of {total} slots are used)")]
    Full {
        /// Slots asked for.
        slots: usize,
        /// Slots in use.
        used: usize,
        /// Slots there are.
        total: usize,
    },
    /// The address is not (or no longer) the one of a mapping.
    #[error("nothing is mapped at {address:#x}")]
    NotMapped {
        /// The address given.
        address: u64,
    },
    /// A sync or unmap goes beyond the mapping's end.
    #[error("{size} bytes from {address:#x} go beyond the mapping")]
    Range {
        /// The address given.
        address: u64,
        /// The bytes asked for.
        size: usize,
    },
    /// The pool is restricted to another device.
    #[error("the pool is restricted to another device")]
    Restricted,
    /// Pool memory that is unaligned, empty, or wraps round.
    #[error("{bytes:#x} bytes at {start:#x} cannot be a pool")]
    Memory {
        /// First address.
        start: u64,
        /// Length.
        bytes: usize,
    },
    /// Growing is not configured, or the limit has been reached, or the provider has no memory.
    #[error("the pool cannot grow")]
    CannotGrow,
    /// The original buffer cannot be read or written. On an unmap the slots have been given back all the same.
    #[error(transparent)]
    Fault(#[from] Fault),
}
