//! What the simple devices share: one request of a queue at a time.

use serde::{Deserialize, Serialize};

use super::{Chain, Io, Timing};
use crate::agent::Time;
use crate::bounce::{MapError, Step};
use crate::dma::{DmaPort, Moved};

/// A queue's own schedule: when the device looks at it or goes on with its request next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lane {
    /// When the next step is due; `None` until a notification or other input.
    pub(super) due: Option<Time>,
    /// The request in progress.
    pub(super) job: Option<Chain>,
    /// The work on it is done; so many bytes of it were filled.
    written: Option<u32>,
}

/// What [`Lane::carry`] leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// The work on the request.
    Work,
    /// Nothing: a step was done.
    Step,
    /// To do without the request's buffers: there is no room in the pool for them. There may be later, or never.
    NoRoom(MapError),
}

impl Lane {
    /// Something arrived at `at`: unless it is busy, the lane has a step to do then.
    pub(super) fn wake(&mut self, at: Time) {
        if self.due.is_none() {
            self.due = Some(at);
        }
    }

    /// Does the step that brings the request in progress to where it is worked on, or from there back to the driver, if
    /// that is what is next. `most`: as for [`Chain::map`].
    pub(super) fn carry(&mut self, io: &mut Io<'_>, queue: usize, most: u64) -> Carried {
        let Some(job) = &mut self.job else { return Carried::Step };
        let Some(written) = self.written else {
            return match job.map(io.port, io.now, io.timing, most) {
                Ok(Step::Ready) => Carried::Work,
                Ok(Step::Later(due)) => {
                    self.due = Some(due);
                    Carried::Step
                }
                Err(MapError::Dma { error, .. }) => {
                    io.fail(&error);
                    Carried::Step
                }
                Err(e) => Carried::NoRoom(e),
            };
        };
        match job.unmap(io.port, io.now, io.timing) {
            Ok(Step::Ready) => {
                let head = job.head;
                self.job = None;
                self.written = None;
                self.due = Some(io.now + io.timing.fetch);
                io.used(queue, head, written);
            }
            Ok(Step::Later(due)) => self.due = Some(due),
            Err(e) => io.fail(&e),
        }
        Carried::Step
    }

    /// The work is done: `written` bytes of the request were filled. Begins to return it.
    pub(super) fn finish(&mut self, io: &mut Io<'_>, queue: usize, written: u32) {
        self.written = Some(written);
        self.carry(io, queue, 0);
    }

    /// Gives up the SMMU transactions in progress.
    pub(super) fn suspend(&mut self, port: &DmaPort) {
        if let Some(job) = &mut self.job {
            job.suspend(port);
        }
    }

    /// Forgets the request.
    pub(super) fn reset(&mut self, port: &DmaPort) {
        if let Some(job) = &mut self.job {
            job.discard(port);
        }
        *self = Self::default();
    }
}

impl Timing {
    /// How long after `moved` the next step is due.
    pub(super) fn after(&self, moved: Moved) -> Time {
        match moved {
            Moved::Beat(_) => self.beat,
            Moved::Translated(fetch) => self.translate + fetch,
            Moved::Stalled => self.retry,
            Moved::End => 0,
        }
    }

    /// Largest beat as a length.
    pub(crate) fn beat_len(&self) -> usize {
        self.max_beat.max(1) as usize
    }
}
