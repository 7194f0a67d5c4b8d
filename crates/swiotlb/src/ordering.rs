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
//! Under loom each can be weakened, left out or moved ([`crate::mutant`]), and a test then has to fail.

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use crate::mutant::{self, Mutant};
use crate::sync::fence;

/// The store of a new pool list: whoever finds a pool in it finds it complete (the kernel's `rcu_assign_pointer`).
#[inline(always)]
pub(crate) fn publish() -> Ordering {
    if mutant::is(Mutant::PublishRelaxed) { Relaxed } else { Release }
}

/// The load of a pool list; pairs with [`publish`] (the kernel's `rcu_dereference`).
#[inline(always)]
pub(crate) fn snapshot() -> Ordering {
    if mutant::is(Mutant::SnapshotRelaxed) { Relaxed } else { Acquire }
}

/// The end of a mapping. Orders what was read to get it (the pool list: seed 001's second need) and what was written
/// (flag: its first; record) before the caller's store of the address. The kernel has `smp_mb()` here; a release fence
/// orders earlier loads and stores before later stores, which is all that is needed.
#[inline]
pub(crate) fn map_fence() {
    if !mutant::is(Mutant::NoMapFence) {
        fence(Release);
    }
}

/// The start of every lookup. Orders the caller's load of the address before the flag, the list and the record (the
/// kernel's `smp_rmb()`). No instruction on x86, `dmb ishld` on arm64.
#[inline]
pub(crate) fn lookup_fence() {
    if !mutant::is(Mutant::NoLookupFence) {
        fence(Acquire);
    }
}
