//! The console device with one port (virtio 1.3 §5.3).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::job::{Carried, Lane};
use super::{DeviceState, Io, VirtioDevice};
use crate::agent::{Time, earliest};
use crate::bounce::MapError;
use crate::dma::{DmaPort, Moved};
use crate::pci::StateError;

const RX: usize = 0;
const TX: usize = 1;

/// Bytes from the host that wait for the driver, and bytes from the driver that wait for the host.
const CAPACITY: usize = 64 << 10;

const PAGE: usize = 4096;

/// A console.
#[derive(Default)]
pub struct Console {
    state: ConsoleState,
}

/// Its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    input: VecDeque<u8>,
    output: Vec<u8>,
    rx: Lane,
    tx: Lane,
}

impl Console {
    /// A console nobody typed at yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the guest input at virtual time `at`. Returns how many bytes were taken.
    pub fn push_input(&mut self, at: Time, bytes: &[u8]) -> usize {
        let s = &mut self.state;
        let n = bytes.len().min(CAPACITY - s.input.len().min(CAPACITY));
        s.input.extend(&bytes[..n]);
        if n > 0 {
            s.rx.wake(at);
        }
        n
    }

    /// Takes what the guest has written. The device stops while too much waits here.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.state.output)
    }

    fn receive(&mut self, io: &mut Io<'_>) {
        let s = &mut self.state;
        if s.rx.job.is_none() {
            s.rx.due = None;
            if !s.input.is_empty()
                && let Some(chain) = io.pop(RX)
            {
                s.rx.job = Some(chain);
                s.rx.due = Some(io.now + io.timing.fetch);
            }
            return;
        }
        match s.rx.carry(io, RX, s.input.len() as u64) {
            Carried::Work => {}
            Carried::Step => return,
            Carried::NoRoom(e @ MapError::TooLarge { .. }) => return io.fail(&e),
            Carried::NoRoom(_) => {
                // The input can wait for room.
                s.rx.due = Some(io.now + io.timing.patience);
                return;
            }
        }
        let Some(job) = &mut s.rx.job else { return };
        let input = s.input.make_contiguous();
        match job.writable.step_write(io.buffers(), input, io.timing.beat_len()) {
            Ok(Moved::End) => {
                let written = job.writable.done() as u32;
                s.rx.finish(io, RX, written);
            }
            Ok(moved) => {
                if let Moved::Beat(n) = moved {
                    s.input.drain(..n);
                }
                s.rx.due = Some(io.now + io.timing.after(moved));
            }
            Err(e) => io.fail(&e),
        }
    }

    fn transmit(&mut self, io: &mut Io<'_>) {
        let s = &mut self.state;
        if s.tx.job.is_none() {
            s.tx.job = io.pop(TX);
            s.tx.due = s.tx.job.is_some().then(|| io.now + io.timing.fetch);
            return;
        }
        match s.tx.carry(io, TX, 0) {
            Carried::Work => {}
            Carried::Step => return,
            // What it says is lost.
            Carried::NoRoom(_) => return s.tx.finish(io, TX, 0),
        }
        let Some(job) = &mut s.tx.job else { return };
        let mut bytes = [0; PAGE];
        match job.readable.step_read(io.buffers(), &mut bytes, io.timing.beat_len()) {
            Ok(Moved::End) => s.tx.finish(io, TX, 0),
            Ok(moved) => {
                if let Moved::Beat(n) = moved {
                    s.output.extend_from_slice(&bytes[..n]);
                }
                s.tx.due = Some(io.now + io.timing.after(moved));
            }
            Err(e) => io.fail(&e),
        }
    }

    fn tx_due(&self) -> Option<Time> {
        if self.state.output.len() < CAPACITY { self.state.tx.due } else { None }
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u16 {
        3
    }

    fn class(&self) -> u32 {
        0x07_8000
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn config(&self) -> Vec<u8> {
        // cols, rows, max_nr_ports, emerg_wr: none of their features is offered.
        vec![0; 12]
    }

    fn notify(&mut self, queue: usize, at: Time) {
        match queue {
            RX => self.state.rx.wake(at),
            _ => self.state.tx.wake(at),
        }
    }

    fn next_step(&self) -> Option<Time> {
        earliest(self.state.rx.due, self.tx_due())
    }

    fn step(&mut self, io: &mut Io<'_>) {
        match (self.state.rx.due, self.tx_due()) {
            (Some(rx), tx) if tx.is_none_or(|tx| rx <= tx) => self.receive(io),
            (_, Some(_)) => self.transmit(io),
            _ => {}
        }
    }

    fn suspend(&mut self, port: &DmaPort) {
        self.state.rx.suspend(port);
        self.state.tx.suspend(port);
    }

    fn reset_queue(&mut self, queue: usize, port: &DmaPort) {
        match queue {
            RX => self.state.rx.reset(port),
            _ => self.state.tx.reset(port),
        }
    }

    fn reset(&mut self, port: &DmaPort) {
        self.state.rx.reset(port);
        self.state.tx.reset(port);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Console(self.state.clone())
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), StateError> {
        let DeviceState::Console(state) = state else { return Err(StateError) };
        self.state = state;
        Ok(())
    }
}
