//! PCI Express: configuration space, MSI-X and the host bridge.

mod ats;
mod config;
mod host;
mod msi;
mod msix;
mod root_port;
mod slot;

pub(crate) use ats::AtsCapabilities;
pub use ats::AtsOptions;
pub use config::{Bar, COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace, Effect, Ids, reg};
pub use host::{HostBridge, PciHost, PciHostState, Slot, layout};
pub use msix::{CAP_MSIX, Msix, Sent};
pub use root_port::{RootPort, RootPortState};

use std::any::Any;

use serde::{Deserialize, Serialize};

use crate::agent::Time;
use crate::dma::DmaPort;
use crate::testdev::{EngineState, IommuTestdevState};
use crate::virtio::VirtioState;

/// A PCI function. Its agents are its lanes: what may happen at the same time as the rest of the function (the device's
/// own work, the sending of interrupt messages) has a lane of its own.
pub trait PciFunction: Send {
    /// Reads configuration space: an offset in 0..4096, and 1, 2 or 4 bytes.
    fn config_read(&mut self, at: Time, offset: u16, size: u8) -> u32;

    /// Writes configuration space.
    fn config_write(&mut self, at: Time, offset: u16, size: u8, value: u32);

    /// Where base address register `bar` maps its memory now: address and size.
    fn window(&self, bar: usize) -> Option<(u64, u64)>;

    /// Reads a register of BAR `bar`.
    fn bar_read(&mut self, at: Time, bar: usize, offset: u64, size: u8) -> u64;

    /// Writes a register of BAR `bar`.
    fn bar_write(&mut self, at: Time, bar: usize, offset: u64, size: u8, value: u64);

    /// Number of lanes.
    fn lanes(&self) -> usize {
        0
    }

    /// When the next step of a lane is due; `None` while it is idle.
    fn next_step(&self, _lane: usize) -> Option<Time> {
        None
    }

    /// The lanes that have a step to do, in order, and when. A function with many lanes, few of which are ever busy, answers
    /// this without asking each.
    fn lanes_due(&self) -> Vec<(Time, usize)> {
        (0..self.lanes()).filter_map(|lane| Some((self.next_step(lane)?, lane))).collect()
    }

    /// The lane whose step is due first, and when; the lower of two at the same time. The same goes for this.
    fn next_lane(&self) -> Option<(Time, usize)> {
        (0..self.lanes()).filter_map(|lane| Some((self.next_step(lane)?, lane))).min()
    }

    /// Does one step of a lane.
    fn step(&mut self, _lane: usize, _now: Time) {}

    /// Gives up the transactions in progress, because requests are no longer forwarded or are another requester's. What
    /// they were for begins anew once the port is granted.
    fn suspend(&mut self) {}

    /// The function is at the far end of a link, not integrated in the root complex.
    fn put_behind_link(&mut self) {}

    /// The function as a root port, if it is one.
    fn root_port(&mut self) -> Option<&mut RootPort> {
        None
    }

    /// Returns to the state after power-on.
    fn reset(&mut self, now: Time);

    /// The function's port, if it can make requests.
    fn port(&self) -> Option<&DmaPort> {
        None
    }

    /// All state, as plain data.
    fn save(&self) -> FunctionState;

    /// Takes over a state that [`PciFunction::save`] of the same kind of function gave.
    ///
    /// # Errors
    /// When the state is of another kind of function or not consistent. The function is then as after reset.
    fn restore(&mut self, state: FunctionState) -> Result<(), StateError>;

    /// The device behind the function, for whoever feeds it input from the host.
    fn device_mut(&mut self) -> &mut dyn Any;
}

/// The state of any PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FunctionState {
    /// A function that is configuration space only.
    Plain(ConfigSpace),
    /// A root port.
    RootPort(Box<RootPortState>),
    /// A virtio device.
    Virtio(Box<VirtioState>),
    /// An `iommu-testdev`.
    IommuTestdev(Box<IommuTestdevState>),
    /// An SMMUv3TestEngine.
    Engine(Box<EngineState>),
}

/// A saved state does not belong to the device it is given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved state is not one of this device")]
pub struct StateError;

#[cfg(test)]
mod tests;
