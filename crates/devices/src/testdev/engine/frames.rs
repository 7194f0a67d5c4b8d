//! All frames of an engine: their register pages, and the commands that run. How the end of a command is reported, and
//! what lies around the frames, is the business of whoever has them: a PCI function or a platform device.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::frame::{FRAME_SIZE, Frame, state};
use super::job::{Command, End, Job};
use crate::agent::Time;
use crate::dma::DmaPort;
use crate::testdev::Timing;

/// Bytes of a page of halves of frames.
pub(super) const PAGE: u64 = 0x1_0000;

/// Frames of a pair of pages.
pub const FRAMES_PER_PAIR: u32 = (PAGE / FRAME_SIZE) as u32;

/// Half of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    User,
    Privileged,
}

/// The frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frames {
    count: u32,
    /// Messages or wires that a frame may name.
    vectors: u16,
    /// Frames that were written to.
    frames: BTreeMap<u32, Frame>,
    /// What the running ones do.
    jobs: BTreeMap<u32, Job>,
}

/// What a write to a frame did, for whoever has to send its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// A command began in this frame.
    Started(u32),
    /// Nothing of the kind.
    Stored,
}

/// A frame ended its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) frame: u32,
    /// What to report it by, if it is to be reported.
    pub(super) vector: Option<u16>,
}

impl Frames {
    /// `pairs` pairs of pages (1 to 64; a power of two).
    pub(super) fn new(pairs: u32, vectors: u16) -> Self {
        let pairs = pairs.clamp(1, 64).next_power_of_two();
        Self { count: pairs * FRAMES_PER_PAIR, vectors, frames: BTreeMap::new(), jobs: BTreeMap::new() }
    }

    /// Number of frames.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of all pages.
    pub(super) fn window(&self) -> u64 {
        u64::from(self.count) * 2 * FRAME_SIZE
    }

    /// Whether a saved state is one of frames like these.
    pub(super) fn same_shape(&self, other: &Self) -> bool {
        (self.count, self.vectors) == (other.count, other.vectors)
            && other.frames.keys().all(|&index| index < self.count)
            && other.jobs.keys().all(|index| other.frames.contains_key(index))
    }

    /// All frames as after reset.
    pub(super) fn reset(&mut self) {
        self.frames.clear();
        self.jobs.clear();
    }

    /// The frame, its half, and the register that an access is to. One that leaves its frame is to none.
    fn target(&self, offset: u64, size: u8) -> Option<(u32, Half, u64)> {
        let half = if (offset / PAGE).is_multiple_of(2) { Half::User } else { Half::Privileged };
        let in_pair = (offset % PAGE / FRAME_SIZE) as u32;
        let frame = u32::try_from(offset / (2 * PAGE)).ok()?.checked_mul(FRAMES_PER_PAIR)? + in_pair;
        let register = offset % FRAME_SIZE;
        let fits = frame < self.count && register + u64::from(size) <= FRAME_SIZE;
        fits.then_some((frame, half, register))
    }

    pub(super) fn read(&self, offset: u64, size: u8) -> u64 {
        let Some((index, half, register)) = self.target(offset, size) else {
            return u64::from(state::NO_FRAME);
        };
        let untouched = Frame::default();
        let frame = self.frames.get(&index).unwrap_or(&untouched);
        match half {
            Half::User => frame.read_user(register, size),
            Half::Privileged => frame.read_privileged(register, size),
        }
    }

    /// A write at `at`; what it starts begins `timing.start` later.
    pub(super) fn write(&mut self, timing: &Timing, at: Time, offset: u64, size: u8, value: u64) -> Written {
        let Some((index, half, register)) = self.target(offset, size) else { return Written::Stored };
        if self.jobs.contains_key(&index) {
            return Written::Stored;
        }
        let frame = self.frames.entry(index).or_default();
        match half {
            Half::User => match frame.write_user(register, size, value) {
                Some(cmd) => self.command(timing, at, index, cmd),
                None => Written::Stored,
            },
            Half::Privileged => {
                frame.write_privileged(register, size, value);
                Written::Stored
            }
        }
    }

    /// cmd was written.
    fn command(&mut self, timing: &Timing, at: Time, index: u32, cmd: u32) -> Written {
        let Some(frame) = self.frames.get_mut(&index) else { return Written::Stored };
        let start = at + timing.start;
        let job = Command::from_cmd(cmd).and_then(|c| frame.prepare(c, self.vectors, timing, start));
        match (cmd, job) {
            (_, Some(job)) => {
                frame.set_state(cmd);
                frame.set_counts(0, 0);
                self.jobs.insert(index, job);
                return Written::Started(index);
            }
            (state::NO_FRAME | state::HALTED, _) => frame.set_state(state::HALTED),
            (state::ERROR, _) => frame.set_state(state::ERROR),
            _ => frame.set_state(state::MISCONFIGURED),
        }
        Written::Stored
    }

    /// When the next step of a frame is due.
    pub(super) fn next_step(&self, index: u32) -> Option<Time> {
        self.jobs.get(&index).map(|job| job.due)
    }

    /// The running frames, and when each steps next.
    pub(super) fn running(&self) -> impl Iterator<Item = (Time, u32)> {
        self.jobs.iter().map(|(&index, job)| (job.due, index))
    }

    /// One step of a running frame.
    pub(super) fn step(&mut self, index: u32, port: &DmaPort, timing: &Timing, now: Time) -> Option<Ended> {
        let job = self.jobs.get_mut(&index)?;
        let end = job.step(port, timing, now);
        let frame = self.frames.get_mut(&index)?;
        frame.set_counts(job.launched, job.returned);
        let end = end?;
        self.jobs.remove(&index);
        match end {
            End::Done(sum) => {
                if let Some(sum) = sum {
                    frame.set_udata(1, sum);
                }
                frame.set_state(state::HALTED);
            }
            End::Failed(address) => {
                frame.set_udata(2, address);
                frame.set_state(state::ERROR);
            }
        }
        Some(Ended { frame: index, vector: frame.vector() })
    }

    /// Sets a frame's uctrl.MSI_ABORTED.
    pub(super) fn set_msi_aborted(&mut self, index: u32) {
        if let Some(frame) = self.frames.get_mut(&index) {
            frame.set_msi_aborted();
        }
    }

    /// Gives up all SMMU transactions in progress; the next steps begin them anew.
    pub(super) fn suspend(&mut self, port: &DmaPort) {
        self.jobs.values_mut().for_each(|job| job.suspend(port));
    }
}
