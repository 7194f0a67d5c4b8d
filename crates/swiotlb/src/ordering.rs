//! Every ordering that correctness across threads rests on, in one place and by name.
//!
//! The kernel hands addresses around in ways it cannot see ("presumably loaded by the device driver from an unspecified
//! private data structure"), so a relaxed store and a relaxed load must do as a hand-over. `map` and the lookup each
//! bring the fence that turns it into a synchronisation:
//!
//! ```text
//! grow                        map (CPU 1)                      any call with an address (CPU 2)
//! pool made                   list = pools.load  [snapshot]
//! pools.store [publish]       take slots, write the record
//!                             uses_io_tlb = true
//!                             [map_fence: release]
//!                             driver's relaxed store of addr   driver's relaxed load of addr
//!                                                              [lookup_fence: acquire]
//!                                                              uses_io_tlb? list = pools.load [snapshot], record
//! ```
//!
//! With `--cfg swiotlb_mutant="NAME"` the one named NAME is weakened, left out or moved; `.ci/loom` demands that the loom
//! tests then fail.

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use crate::sync::fence;

/// The store of a new pool list: whoever finds a pool in it finds it complete (the kernel's `rcu_assign_pointer`).
pub(crate) const PUBLISH: Ordering = if cfg!(swiotlb_mutant = "publish") { Relaxed } else { Release };

/// The load of a pool list; pairs with [`PUBLISH`] (the kernel's `rcu_dereference`).
pub(crate) const SNAPSHOT: Ordering = if cfg!(swiotlb_mutant = "snapshot") { Relaxed } else { Acquire };

/// The end of a mapping. Orders what was read to get it (the pool list: seed 001's second need) and what was written
/// (flag: its first; record) before the caller's store of the address. The kernel has `smp_mb()` here; a release fence
/// orders earlier loads and stores before later stores, which is all that is needed.
#[inline]
pub(crate) fn map_fence() {
    if !cfg!(swiotlb_mutant = "map_fence") {
        fence(Release);
    }
}

/// The start of every lookup. Orders the caller's load of the address before the flag, the list and the record (the
/// kernel's `smp_rmb()`). No instruction on x86, `dmb ishld` on arm64.
#[inline]
pub(crate) fn lookup_fence() {
    if !cfg!(swiotlb_mutant = "lookup_fence") {
        fence(Acquire);
    }
}

/// Mutant: the device's flag is set after [`map_fence`], not before it.
pub(crate) const FLAG_LATE: bool = cfg!(swiotlb_mutant = "flag_late");

/// Mutant: a mapping's record is written after [`map_fence`], not before it.
pub(crate) const RECORD_LATE: bool = cfg!(swiotlb_mutant = "record_late");

/// Mutant: an old list, and a pool that is only in it, is destroyed at once and not after a grace period (seed 000).
#[cfg_attr(not(loom), expect(dead_code, reason = "the mutants are for loom"))]
pub(crate) const NO_GRACE: bool = cfg!(swiotlb_mutant = "grace");

/// Mutant: a mapping's record is removed after its slots are free, and perhaps somebody else's.
pub(crate) const RECORD_STALE: bool = cfg!(swiotlb_mutant = "record_stale");

/// Mutant: a mapping's slots are free before their content has been copied out.
pub(crate) const COPY_LATE: bool = cfg!(swiotlb_mutant = "copy_late");

/// Mutant: a pool is removed without first making sure that no mapping can begin in it.
pub(crate) const NO_CLOSE: bool = cfg!(swiotlb_mutant = "close");
