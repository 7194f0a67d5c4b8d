//! What was invalidated lately: whether a walk that an invalidation overtook may leave its finds behind.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::tlb::Scope;

/// Invalidations that are remembered. A walk that more of them overtook leaves nothing behind.
const KEPT: usize = 32;

/// One invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Invalidation {
    /// STEs of these StreamIDs, and all that hangs on them; with their level 1 descriptors or without.
    Streams { first: u32, last: u32, level1: bool },
    /// The CDs of a stream: one, or all; with level 1 descriptors or without.
    Contexts { sid: u32, cd: Option<u32>, level1: bool },
    /// Translations; and tables, unless only leaves.
    Tlb { scope: Scope, leaf: bool },
}

/// The latest invalidations. They are counted, and the count is the epoch that a transaction begins in.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Recent {
    epoch: u64,
    /// Only where a retention policy asks for them.
    kept: VecDeque<Invalidation>,
}

impl Recent {
    /// How many there have been.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// One more. It is remembered only if `keep` says so.
    pub(crate) fn add(&mut self, invalidation: Invalidation, keep: bool) {
        self.epoch += 1;
        if keep {
            if self.kept.len() == KEPT {
                self.kept.pop_front();
            }
            self.kept.push_back(invalidation);
        }
    }

    /// Whether what a transaction of `epoch` found may be cached: nothing was invalidated since, or nothing that
    /// `covers` it.
    pub(crate) fn spares(&self, epoch: u64, covers: impl Fn(&Invalidation) -> bool) -> bool {
        let since = (self.epoch - epoch) as usize;
        since <= self.kept.len() && !self.kept.iter().rev().take(since).any(covers) || since == 0
    }
}
