//! The engine as a device of the device tree: frames at a fixed address, wires instead of messages, and an SMMU that may
//! stall what it does for as long as software likes. Nothing of the engine waits for a stalled frame but that frame.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Timing;
use super::frames::{Frames, Written};
use crate::agent::Time;
use crate::bus::MmioDevice;
use crate::dma::{DmaPort, Stats};
use crate::pci::StateError;

/// From the end of a command to the edge on its wire, in ns.
const WIRE_NS: Time = 20;

/// Lane of the interrupt wires; frame N's is N + 1.
const LANE_WIRES: usize = 0;

/// An SMMUv3TestEngine that is no PCI function: one pair of pages, and [`PlatformEngine::WIRES`] interrupt wires. A
/// frame's msidata says which wire gets an edge when it ends, where the PCI function's would be a vector.
pub struct PlatformEngine {
    port: DmaPort,
    timing: Timing,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    frames: Frames,
    /// Edges still to be signalled: when, and on which wire.
    edges: BTreeSet<(Time, u16)>,
}

/// Its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformEngineState {
    stats: Stats,
    state: State,
}

impl PlatformEngine {
    /// Interrupt wires.
    pub const WIRES: u16 = 4;
    /// Bytes of registers.
    pub const WINDOW: u64 = 0x2_0000;

    /// An engine that reaches memory through `port`. It has no bus-master enable: the port is granted.
    pub fn new(port: DmaPort, timing: Timing) -> Self {
        port.set_enabled(true);
        let state = State { frames: Frames::new(1, Self::WIRES), edges: BTreeSet::new() };
        Self { port, timing, state }
    }

    /// Its port.
    pub fn port(&self) -> &DmaPort {
        &self.port
    }

    /// Number of lanes.
    pub fn lanes(&self) -> usize {
        1 + self.state.frames.count() as usize
    }

    /// The lanes that have a step to do, and when.
    pub fn lanes_due(&self) -> impl Iterator<Item = (Time, usize)> {
        let frames = self.state.frames.running().map(|(at, index)| (at, index as usize + 1));
        frames.chain(self.lane_next_step(LANE_WIRES).map(|at| (at, LANE_WIRES)))
    }

    /// When the next step of a lane is due; `None` while it is idle.
    pub fn lane_next_step(&self, lane: usize) -> Option<Time> {
        match lane {
            LANE_WIRES => self.state.edges.first().map(|&(at, _)| at),
            _ => self.state.frames.next_step(u32::try_from(lane - 1).ok()?),
        }
    }

    /// The lane whose step is due first, and when; the lower of two at the same time.
    pub fn next_lane(&self) -> Option<(Time, usize)> {
        self.lanes_due().min()
    }

    /// Does one step of a lane. Answers the wire that gets an edge by it.
    pub fn step_lane(&mut self, lane: usize, now: Time) -> Option<u16> {
        if lane == LANE_WIRES {
            return self.state.edges.pop_first().map(|(_, wire)| wire);
        }
        let ended = self.state.frames.step((lane - 1) as u32, &self.port, &self.timing, now)?;
        if let Some(wire) = ended.vector {
            self.state.edges.insert((now + WIRE_NS, wire));
        }
        None
    }

    /// All state, as plain data.
    pub fn save(&self) -> PlatformEngineState {
        PlatformEngineState { stats: self.port.stats(), state: self.state.clone() }
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// When it is not consistent.
    pub fn restore(&mut self, saved: PlatformEngineState) -> Result<(), StateError> {
        let fits = self.state.frames.same_shape(&saved.state.frames)
            && saved.state.edges.iter().all(|&(_, wire)| wire < Self::WIRES);
        if !fits {
            return Err(StateError);
        }
        self.state = saved.state;
        self.port.restore_stats(&saved.stats);
        Ok(())
    }
}

impl MmioDevice for PlatformEngine {
    fn read(&mut self, _at: Time, offset: u64, size: u8) -> u64 {
        self.state.frames.read(offset, size)
    }

    fn write(&mut self, at: Time, offset: u64, size: u8, value: u64) {
        // A command that begins anew does not take back the edge of the one before: that is on its way.
        let _: Written = self.state.frames.write(&self.timing, at, offset, size, value);
    }
}
