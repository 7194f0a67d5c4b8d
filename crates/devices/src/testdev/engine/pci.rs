//! The engine as a PCI function: BAR 0 has the frames, BAR 2 is MSI-X.

use std::any::Any;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Timing;
use super::frames::{Frames, Written};
use crate::agent::Time;
use crate::dma::{AtsState, DmaPort, Stats};
use crate::pci::{
    AtsCapabilities, AtsOptions, Bar, CAP_MSIX, ConfigSpace, FunctionState, Ids, Msix, PciFunction, Sent,
    StateError,
};

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
    frames: Frames,
    /// Frames that ended, and whose message is still to be sent: vector and frame.
    unsent: BTreeSet<(u16, u32)>,
    ats: Option<AtsCapabilities>,
}

/// Its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineState {
    config: ConfigSpace,
    msix: Msix,
    stats: Stats,
    frames: Frames,
    unsent: BTreeSet<(u16, u32)>,
    ats: Option<AtsState>,
}

impl Engine {
    /// An engine with `pairs` pairs of pages (1 to 64; a power of two), that reaches memory through `port`.
    pub fn new(port: DmaPort, pairs: u32, timing: Timing) -> Self {
        let frames = Frames::new(pairs, Msix::MAX_VECTORS);
        let mut config = ConfigSpace::new(Ids {
            vendor: 0x13b5,
            device: 0xff80,
            revision: 0,
            class: 0xff_0000,
            subsystem_vendor: 0x13b5,
            subsystem: 0xff80,
        });
        config.add_bar(FRAME_BAR, Bar::Memory64(frames.window()));
        config.add_bar(MSIX_BAR, Bar::Memory64(Msix::WINDOW));
        config.add_express();
        config.add_pasid(20);
        let msix = Msix::new(Msix::MAX_VECTORS);
        let (body, writable) = msix.capability(MSIX_BAR as u8);
        let msix_at = u16::from(config.add_capability(CAP_MSIX, &body, &writable));
        port.set_enabled(false);
        Self { config, msix_at, msix, port, timing, frames, unsent: BTreeSet::new(), ats: None }
    }

    /// The same with ATS, which software may enable.
    #[must_use]
    pub fn with_ats(mut self, options: &AtsOptions) -> Self {
        self.ats = Some(AtsCapabilities::add(&mut self.config, &self.port, options));
        self
    }

    /// The lanes that have a step to do, in order, and when.
    fn due(&self) -> impl Iterator<Item = (Time, usize)> {
        let messages = self.msix.next_step(&self.port).map(|at| (at, LANE_MSIX));
        let running = self.frames.running().filter(|_| self.port.enabled());
        let frames = running.map(|(at, index)| (at, index as usize + 1));
        let cache = self.port.atc_next_step().map(|at| (at, self.lane_atc()));
        messages.into_iter().chain(frames).chain(cache)
    }

    /// Lane of the translation cache's invalidations: the last.
    fn lane_atc(&self) -> usize {
        1 + self.frames.count() as usize
    }

    fn step_frame(&mut self, index: u32, now: Time) {
        if !self.port.enabled() {
            return;
        }
        let Some(ended) = self.frames.step(index, &self.port, &self.timing, now) else { return };
        match ended.vector {
            None => {}
            Some(vector) if self.msix.enabled() => {
                self.unsent.insert((vector, index));
                self.msix.trigger(vector, now);
            }
            Some(_) => self.frames.set_msi_aborted(index),
        }
    }

    fn step_messages(&mut self, now: Time) {
        let Some(sent) = self.msix.step(&self.port, now) else { return };
        let (Sent::Written(vector) | Sent::Refused(vector)) = sent;
        let Self { frames, unsent, .. } = self;
        unsent.retain(|&(of, index)| {
            if of == vector && sent == Sent::Refused(vector) {
                frames.set_msi_aborted(index);
            }
            of != vector
        });
    }
}

impl PciFunction for Engine {
    fn config_read(&mut self, _at: Time, offset: u16, size: u8) -> u32 {
        match &self.ats {
            Some(ats) => ats.read(&self.config, &self.port, offset, size),
            None => self.config.read(offset, size),
        }
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
                self.unsent.clear();
            }
        }
        let master = self.config.may_master();
        self.port.set_enabled(master);
        if !master {
            self.suspend();
        }
        if let Some(ats) = &self.ats {
            ats.written(&self.config, &self.port, offset, size, value);
        }
    }

    fn window(&self, bar: usize) -> Option<(u64, u64)> {
        self.config.window(bar)
    }

    fn bar_read(&mut self, _at: Time, bar: usize, offset: u64, size: u8) -> u64 {
        match bar {
            FRAME_BAR => self.frames.read(offset, size),
            MSIX_BAR => self.msix.read(offset, size),
            _ => 0,
        }
    }

    fn bar_write(&mut self, at: Time, bar: usize, offset: u64, size: u8, value: u64) {
        match bar {
            FRAME_BAR => {
                let written = self.frames.write(&self.timing, at, offset, size, value);
                if let Written::Started(index) = written {
                    self.unsent.retain(|&(_, of)| of != index);
                }
            }
            MSIX_BAR => self.msix.write(offset, size, value, at),
            _ => {}
        }
    }

    fn lanes(&self) -> usize {
        1 + self.frames.count() as usize + usize::from(self.ats.is_some())
    }

    fn next_step(&self, lane: usize) -> Option<Time> {
        if lane == LANE_MSIX {
            return self.msix.next_step(&self.port);
        }
        if lane == self.lane_atc() {
            return self.port.atc_next_step();
        }
        let index = u32::try_from(lane - 1).ok()?;
        self.frames.next_step(index).filter(|_| self.port.enabled())
    }

    fn lanes_due(&self) -> Vec<(Time, usize)> {
        self.due().collect()
    }

    fn next_lane(&self) -> Option<(Time, usize)> {
        self.due().min()
    }

    fn step(&mut self, lane: usize, now: Time) {
        match lane {
            LANE_MSIX => self.step_messages(now),
            _ if lane == self.lane_atc() => self.port.atc_step(now),
            _ => self.step_frame((lane - 1) as u32, now),
        }
    }

    fn reset(&mut self, _now: Time) {
        self.suspend();
        self.frames.reset();
        self.unsent.clear();
        self.msix.reset(&self.port);
        self.config.reset();
        self.port.set_enabled(false);
        self.port.reset_ats();
    }

    fn put_behind_link(&mut self) {
        self.config.put_behind_link();
    }

    fn suspend(&mut self) {
        self.frames.suspend(&self.port);
        self.msix.suspend(&self.port);
    }

    fn port(&self) -> Option<&DmaPort> {
        Some(&self.port)
    }

    fn save(&self) -> FunctionState {
        FunctionState::Engine(Box::new(EngineState {
            config: self.config.clone(),
            msix: self.msix.clone(),
            stats: self.port.stats(),
            frames: self.frames.clone(),
            unsent: self.unsent.clone(),
            ats: self.port.save_ats(),
        }))
    }

    fn restore(&mut self, state: FunctionState) -> Result<(), StateError> {
        let FunctionState::Engine(state) = state else { return Err(StateError) };
        let fits = state.config.same_shape(&self.config)
            && state.msix.same_shape(&self.msix)
            && self.frames.same_shape(&state.frames)
            && self.port.restore_ats(state.ats);
        if !fits {
            return Err(StateError);
        }
        (self.config, self.msix) = (state.config, state.msix);
        (self.frames, self.unsent) = (state.frames, state.unsent);
        self.port.restore_stats(&state.stats);
        self.port.set_enabled(self.config.may_master());
        Ok(())
    }

    fn device_mut(&mut self) -> &mut dyn Any {
        self
    }
}
