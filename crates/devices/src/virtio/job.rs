//! What the simple devices share: one request of a queue at a time.

use serde::{Deserialize, Serialize};

use super::{Chain, Timing};
use crate::agent::Time;
use crate::dma::{DmaPort, Moved};

/// A queue's own schedule: when the device looks at it or goes on with its request next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lane {
    /// When the next step is due; `None` until a notification or other input.
    pub(super) due: Option<Time>,
    /// The request in progress.
    pub(super) job: Option<Chain>,
}

impl Lane {
    /// Something arrived at `at`: unless it is busy, the lane has a step to do then.
    pub(super) fn wake(&mut self, at: Time) {
        if self.due.is_none() {
            self.due = Some(at);
        }
    }

    /// Gives up the SMMU transactions in progress.
    pub(super) fn suspend(&mut self, port: &DmaPort) {
        if let Some(job) = &mut self.job {
            job.readable.cancel(port);
            job.writable.cancel(port);
        }
    }

    /// Forgets the request.
    pub(super) fn reset(&mut self, port: &DmaPort) {
        self.suspend(port);
        *self = Self::default();
    }
}

impl Timing {
    /// How long after `moved` the next step is due.
    pub(super) fn after(&self, moved: Moved) -> Time {
        match moved {
            Moved::Beat(_) => self.beat,
            Moved::Translated => self.translate,
            Moved::Stalled => self.retry,
            Moved::End => 0,
        }
    }

    /// Largest beat as a length.
    pub(super) fn beat_len(&self) -> usize {
        self.max_beat.max(1) as usize
    }
}
