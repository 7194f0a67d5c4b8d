//! The entropy device (virtio 1.3 §5.4). Its bytes are a function of the machine's seed.

use serde::{Deserialize, Serialize};

use super::job::{Carried, Lane};
use super::{DeviceState, Io, VirtioDevice};
use crate::agent::Time;
use crate::bounce::MapError;
use crate::dma::{DmaPort, Moved};
use crate::pci::StateError;

/// Bytes a request gets at most; the device may always give fewer than asked for.
const MAX_BYTES: u64 = 4096;

/// An entropy device.
pub struct Rng {
    state: RngState,
}

/// Its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    generator: u64,
    lane: Lane,
    /// What the request in progress gets, and how much of it is delivered.
    bytes: Vec<u8>,
    done: usize,
}

impl Rng {
    /// A device whose bytes follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: RngState { generator: seed, lane: Lane::default(), bytes: Vec::new(), done: 0 } }
    }
}

impl RngState {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next_word(&mut self) -> u64 {
        self.generator = self.generator.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.generator;
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn draw(&mut self, len: usize) {
        self.bytes.clear();
        self.done = 0;
        while self.bytes.len() < len {
            let word = self.next_word().to_le_bytes();
            let n = (len - self.bytes.len()).min(8);
            self.bytes.extend_from_slice(&word[..n]);
        }
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u16 {
        4
    }

    fn class(&self) -> u32 {
        0x00_ff00
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn notify(&mut self, _queue: usize, at: Time) {
        self.state.lane.wake(at);
    }

    fn next_step(&self) -> Option<Time> {
        self.state.lane.due
    }

    fn step(&mut self, io: &mut Io<'_>) {
        let s = &mut self.state;
        if s.lane.job.is_none() {
            let Some(chain) = io.pop(0) else {
                s.lane.due = None;
                return;
            };
            let len = chain.writable.total().min(MAX_BYTES) as usize;
            s.draw(len);
            s.lane.job = Some(chain);
            s.lane.due = Some(io.now + io.timing.fetch);
            return;
        }
        match s.lane.carry(io, 0, s.bytes.len() as u64) {
            Carried::Work => {}
            Carried::Step => return,
            // There is no answer without bytes (virtio 1.3 §5.4.6.2), so it has to wait.
            Carried::NoRoom(e @ MapError::TooLarge { .. }) => return io.fail(&e),
            Carried::NoRoom(_) => {
                s.lane.due = Some(io.now + io.timing.patience);
                return;
            }
        }
        let Some(job) = &mut s.lane.job else { return };
        let rest = s.bytes.get(s.done..).unwrap_or(&[]);
        match job.writable.step_write(io.buffers(), rest, io.timing.beat_len()) {
            Ok(Moved::End) => {
                let written = s.done as u32;
                s.lane.finish(io, 0, written);
            }
            Ok(moved) => {
                if let Moved::Beat(n) = moved {
                    s.done += n;
                }
                s.lane.due = Some(io.now + io.timing.after(moved));
            }
            Err(e) => io.fail(&e),
        }
    }

    fn suspend(&mut self, port: &DmaPort) {
        self.state.lane.suspend(port);
    }

    fn reset_queue(&mut self, _queue: usize, port: &DmaPort) {
        self.state.lane.reset(port);
    }

    fn reset(&mut self, port: &DmaPort) {
        self.state.lane.reset(port);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng(self.state.clone())
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), StateError> {
        let DeviceState::Rng(state) = state else { return Err(StateError) };
        self.state = state;
        Ok(())
    }
}
