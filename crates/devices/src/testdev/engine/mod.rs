//! Arm's SMMUv3TestEngine as a PCI function: frames of registers, each of which can run a command of its own.
//!
//! BAR 0 has pairs of 64 KiB pages of 512 frames: the user halves in the first page, the privileged halves in the
//! second. BAR 2 is MSI-X. A frame runs from the write of its cmd until cmd reads HALTED or ERROR; each running frame is
//! a lane, so that a scheduler may let them overtake each other at every fetch and every beat.

mod attributes;
mod frame;
mod job;
mod random;
mod work;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use self::frame::{FRAME_SIZE, Frame, state};
use self::job::{Command, End, Job};
use super::Timing;
use crate::agent::Time;
use crate::dma::{DmaPort, Stats};
use crate::pci::{Bar, CAP_MSIX, ConfigSpace, FunctionState, Ids, Msix, PciFunction, Sent, StateError};

/// Frames of a pair of pages.
pub const FRAMES_PER_PAIR: u32 = (PAGE / FRAME_SIZE) as u32;

const PAGE: u64 = 0x1_0000;
const FRAME_BAR: usize = 0;
const MSIX_BAR: usize = 2;

/// Lane of the interrupt messages; frame N's is N + 1.
const LANE_MSIX: usize = 0;

/// An SMMUv3TestEngine.
pub struct Engine {
    config: ConfigSpace,
    msix_at: u16,
    msix: Msix,
    port: DmaPort,
    timing: Timing,
    frame_count: u32,
    state: Frames,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Frames {
    /// Frames that were written to.
    frames: BTreeMap<u32, Frame>,
    /// What the running ones do.
    jobs: BTreeMap<u32, Job>,
    /// Frames that ended, and whose message is still to be sent: vector and frame.
    unsent: BTreeSet<(u16, u32)>,
}

/// Its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineState {
    config: ConfigSpace,
    msix: Msix,
    stats: Stats,
    frames: Frames,
}

/// Half of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    User,
    Privileged,
}

impl Engine {
    /// An engine with `pairs` pairs of pages (1 to 64; a power of two), that reaches memory through `port`.
    pub fn new(port: DmaPort, pairs: u32, timing: Timing) -> Self {
        let pairs = pairs.clamp(1, 64).next_power_of_two();
        let mut config = ConfigSpace::new(Ids {
            vendor: 0x13b5,
            device: 0xff80,
            revision: 0,
            class: 0xff_0000,
            subsystem_vendor: 0x13b5,
            subsystem: 0xff80,
        });
        config.add_bar(FRAME_BAR, Bar::Memory64(2 * PAGE * u64::from(pairs)));
        config.add_bar(MSIX_BAR, Bar::Memory64(Msix::WINDOW));
        config.add_express();
        config.add_pasid(20);
        let msix = Msix::new(Msix::MAX_VECTORS);
        let (body, writable) = msix.capability(MSIX_BAR as u8);
        let msix_at = u16::from(config.add_capability(CAP_MSIX, &body, &writable));
        port.set_enabled(false);
        let frame_count = pairs * FRAMES_PER_PAIR;
        Self { config, msix_at, msix, port, timing, frame_count, state: Frames::default() }
    }

    /// The frame, its half, and the register that an access is to. One that leaves its frame is to none.
    fn target(&self, offset: u64, size: u8) -> Option<(u32, Half, u64)> {
        let half = if (offset / PAGE).is_multiple_of(2) { Half::User } else { Half::Privileged };
        let in_pair = (offset % PAGE / FRAME_SIZE) as u32;
        let frame = u32::try_from(offset / (2 * PAGE)).ok()?.checked_mul(FRAMES_PER_PAIR)? + in_pair;
        let register = offset % FRAME_SIZE;
        let fits = frame < self.frame_count && register + u64::from(size) <= FRAME_SIZE;
        fits.then_some((frame, half, register))
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        let Some((index, half, register)) = self.target(offset, size) else {
            return u64::from(state::NO_FRAME);
        };
        let untouched = Frame::default();
        let frame = self.state.frames.get(&index).unwrap_or(&untouched);
        match half {
            Half::User => frame.read_user(register, size),
            Half::Privileged => frame.read_privileged(register, size),
        }
    }

    fn write(&mut self, at: Time, offset: u64, size: u8, value: u64) {
        let Some((index, half, register)) = self.target(offset, size) else { return };
        if self.state.jobs.contains_key(&index) {
            return;
        }
        let frame = self.state.frames.entry(index).or_default();
        match half {
            Half::User => {
                if let Some(cmd) = frame.write_user(register, size, value) {
                    self.command(at, index, cmd);
                }
            }
            Half::Privileged => frame.write_privileged(register, size, value),
        }
    }

    /// cmd was written.
    fn command(&mut self, at: Time, index: u32, cmd: u32) {
        let Some(frame) = self.state.frames.get_mut(&index) else { return };
        let (vectors, start) = (self.msix.vectors(), at + self.timing.start);
        let job = Command::from_cmd(cmd).and_then(|c| frame.prepare(c, vectors, &self.timing, start));
        match (cmd, job) {
            (_, Some(job)) => {
                frame.set_state(cmd);
                frame.set_counts(0, 0);
                self.state.unsent.retain(|&(_, of)| of != index);
                self.state.jobs.insert(index, job);
            }
            (state::NO_FRAME | state::HALTED, _) => frame.set_state(state::HALTED),
            (state::ERROR, _) => frame.set_state(state::ERROR),
            _ => frame.set_state(state::MISCONFIGURED),
        }
    }

    fn step_frame(&mut self, index: u32, now: Time) {
        if !self.port.enabled() {
            return;
        }
        let Some(job) = self.state.jobs.get_mut(&index) else { return };
        let end = job.step(&self.port, &self.timing, now);
        let Some(frame) = self.state.frames.get_mut(&index) else { return };
        frame.set_counts(job.launched, job.returned);
        let Some(end) = end else { return };
        self.state.jobs.remove(&index);
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
        match frame.vector() {
            None => {}
            Some(vector) if self.msix.enabled() => {
                self.state.unsent.insert((vector, index));
                self.msix.trigger(vector, now);
            }
            Some(_) => frame.set_msi_aborted(),
        }
    }

    fn step_messages(&mut self, now: Time) {
        let Some(sent) = self.msix.step(&self.port, now) else { return };
        let (Sent::Written(vector) | Sent::Refused(vector)) = sent;
        let Frames { frames, unsent, .. } = &mut self.state;
        unsent.retain(|&(of, index)| {
            if of == vector
                && sent == Sent::Refused(vector)
                && let Some(frame) = frames.get_mut(&index)
            {
                frame.set_msi_aborted();
            }
            of != vector
        });
    }

    fn suspend(&mut self) {
        self.state.jobs.values_mut().for_each(|job| job.suspend(&self.port));
        self.msix.suspend(&self.port);
    }
}

impl PciFunction for Engine {
    fn config_read(&mut self, _at: Time, offset: u16, size: u8) -> u32 {
        self.config.read(offset, size)
    }

    fn config_write(&mut self, at: Time, offset: u16, size: u8, value: u32) {
        let control = self.config.read(self.msix_at + 2, 2);
        if self.config.write(offset, size, value).reset {
            self.reset(at);
            return;
        }
        let new_control = self.config.read(self.msix_at + 2, 2);
        if new_control != control {
            self.msix.set_control(new_control as u16, at);
            if !self.msix.enabled() {
                self.state.unsent.clear();
            }
        }
        let master = self.config.may_master();
        self.port.set_enabled(master);
        if !master {
            self.suspend();
        }
    }

    fn window(&self, bar: usize) -> Option<(u64, u64)> {
        self.config.window(bar)
    }

    fn bar_read(&mut self, _at: Time, bar: usize, offset: u64, size: u8) -> u64 {
        match bar {
            FRAME_BAR => self.read(offset, size),
            MSIX_BAR => self.msix.read(offset, size),
            _ => 0,
        }
    }

    fn bar_write(&mut self, at: Time, bar: usize, offset: u64, size: u8, value: u64) {
        match bar {
            FRAME_BAR => self.write(at, offset, size, value),
            MSIX_BAR => self.msix.write(offset, size, value, at),
            _ => {}
        }
    }

    fn lanes(&self) -> usize {
        1 + self.frame_count as usize
    }

    fn next_step(&self, lane: usize) -> Option<Time> {
        if lane == LANE_MSIX {
            return self.msix.next_step(&self.port);
        }
        let index = u32::try_from(lane - 1).ok()?;
        self.state.jobs.get(&index).filter(|_| self.port.enabled()).map(|job| job.due)
    }

    fn next_lane(&self) -> Option<(Time, usize)> {
        let running = self.state.jobs.iter().filter(|_| self.port.enabled());
        let frames = running.map(|(&index, job)| (job.due, index as usize + 1));
        let messages = self.msix.next_step(&self.port).map(|at| (at, LANE_MSIX));
        frames.chain(messages).min()
    }

    fn step(&mut self, lane: usize, now: Time) {
        match lane {
            LANE_MSIX => self.step_messages(now),
            _ => self.step_frame((lane - 1) as u32, now),
        }
    }

    fn reset(&mut self, _now: Time) {
        self.suspend();
        self.state = Frames::default();
        self.msix.reset(&self.port);
        self.config.reset();
        self.port.set_enabled(false);
    }

    fn port(&self) -> Option<&DmaPort> {
        Some(&self.port)
    }

    fn save(&self) -> FunctionState {
        FunctionState::Engine(Box::new(EngineState {
            config: self.config.clone(),
            msix: self.msix.clone(),
            stats: self.port.stats(),
            frames: self.state.clone(),
        }))
    }

    fn restore(&mut self, state: FunctionState) -> Result<(), StateError> {
        let FunctionState::Engine(state) = state else { return Err(StateError) };
        let known = |index: &u32| *index < self.frame_count;
        let frames = &state.frames;
        let fits = state.config.same_shape(&self.config)
            && state.msix.same_shape(&self.msix)
            && frames.frames.keys().all(known)
            && frames.jobs.keys().all(|index| frames.frames.contains_key(index));
        if !fits {
            return Err(StateError);
        }
        (self.config, self.msix, self.state) = (state.config, state.msix, state.frames);
        self.port.restore_stats(&state.stats);
        self.port.set_enabled(self.config.may_master());
        Ok(())
    }

    fn device_mut(&mut self) -> &mut dyn Any {
        self
    }
}
