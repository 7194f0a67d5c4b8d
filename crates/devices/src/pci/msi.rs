//! MSI with one vector (PCI Local Bus 3.0 §6.8.1), for functions without a BAR for MSI-X.

use serde::{Deserialize, Serialize};

use super::msix::{CONTROL_ENABLE, Msix};
use super::{ConfigSpace, Sent};
use crate::agent::Time;
use crate::dma::DmaPort;

const CAP_MSI: u8 = 0x05;
/// MSI enable, in Message Control.
const ENABLE: u32 = 1;
/// The message address has 64 bits.
const ADDRESS_64: u16 = 1 << 7;

/// The MSI capability of a function. Its message goes out as one of an MSI-X table with one vector does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Msi {
    at: u16,
    message: Msix,
}

impl Msi {
    /// Adds the capability.
    pub(super) fn new(config: &mut ConfigSpace) -> Self {
        let mut body = [0; 12];
        body[0..2].copy_from_slice(&ADDRESS_64.to_le_bytes());
        // Multiple Message Enable can be set; only one vector is used whatever it says.
        let writable = [0x71, 0, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        Self { at: u16::from(config.add_capability(CAP_MSI, &body, &writable)), message: Msix::new(1) }
    }

    /// Configuration space was written.
    pub(super) fn configured(&mut self, config: &ConfigSpace, now: Time) {
        let enabled = config.read(self.at + 2, 2) & ENABLE != 0;
        if enabled != self.message.enabled() {
            self.message.set_control(if enabled { CONTROL_ENABLE } else { 0 }, now);
        }
        let address = u64::from(config.read(self.at + 4, 4)) | u64::from(config.read(self.at + 8, 4)) << 32;
        self.message.write(0, 8, address, now);
        self.message.write(8, 4, u64::from(config.read(self.at + 12, 2)), now);
        self.message.write(12, 4, 0, now);
    }

    /// The interrupt condition arose.
    pub(super) fn trigger(&mut self, now: Time) {
        self.message.trigger(0, now);
    }

    /// When the next step of sending is due.
    pub(super) fn next_step(&self, port: &DmaPort) -> Option<Time> {
        self.message.next_step(port)
    }

    /// One step of sending.
    pub(super) fn step(&mut self, port: &DmaPort, now: Time) -> Option<Sent> {
        self.message.step(port, now)
    }

    /// Gives up the transaction in progress.
    pub(super) fn suspend(&mut self, port: &DmaPort) {
        self.message.suspend(port);
    }

    /// Returns to the state after power-on.
    pub(super) fn reset(&mut self, port: &DmaPort) {
        self.message.reset(port);
    }

    /// Whether a saved state is one of the same function.
    pub(super) fn same_shape(&self, other: &Self) -> bool {
        self.at == other.at && self.message.same_shape(&other.message)
    }
}
