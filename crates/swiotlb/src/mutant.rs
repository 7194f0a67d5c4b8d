//! The code, wrong in one place, so that the loom tests can show that they would notice. Only in builds with
//! `--cfg loom`; in all others [`is`] is constantly false.

/// One ordering weakened, one fence left out, or one step moved; see [`crate::ordering`] and `docs/swiotlb.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A new pool list is stored with `Relaxed`.
    PublishRelaxed,
    /// A pool list is loaded with `Relaxed`.
    SnapshotRelaxed,
    /// No release fence at the end of a mapping.
    NoMapFence,
    /// No acquire fence at the start of a lookup.
    NoLookupFence,
    /// The device's flag is set after the fence.
    FlagAfterFence,
    /// The record is written after the fence.
    RecordAfterFence,
    /// What was replaced is destroyed at once and not after a grace period.
    NoGrace,
    /// The record is removed after the slots are free.
    RecordAfterFree,
    /// The bytes are copied out after the slots are free.
    CopyAfterFree,
    /// An idle pool is removed though mappings may still begin in it.
    NoClose,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 10] = [
        Mutant::PublishRelaxed,
        Mutant::SnapshotRelaxed,
        Mutant::NoMapFence,
        Mutant::NoLookupFence,
        Mutant::FlagAfterFence,
        Mutant::RecordAfterFence,
        Mutant::NoGrace,
        Mutant::RecordAfterFree,
        Mutant::CopyAfterFree,
        Mutant::NoClose,
    ];

    /// Makes this the code that the calling thread runs; loom runs all threads of a model on it.
    #[cfg(loom)]
    pub fn choose(self) {
        CHOSEN.set(Some(self));
    }
}

#[cfg(loom)]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Whether the code is to be wrong in this way.
#[cfg(loom)]
pub(crate) fn is(mutant: Mutant) -> bool {
    CHOSEN.get() == Some(mutant)
}

/// Never.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}
