//! Devices whose only purpose is to make DMA that a test chose: they have the registers of devices that other
//! emulators have, so that tests and drivers written for those run here.
//!
//! - [`IommuTestdev`]: QEMU's `iommu-testdev`, one write and a look at what arrived;
//! - [`Engine`]: Arm's SMMUv3TestEngine, hundreds of frames that copy, fill and sum memory at the same time,
//!   as a PCI function or, [`PlatformEngine`], as a device of the device tree whose transactions may stall.

mod engine;
mod iommu_testdev;

pub use engine::{Engine, EngineState, FRAMES_PER_PAIR, PlatformEngine, PlatformEngineState};
pub use iommu_testdev::{IommuTestdev, IommuTestdevState};

use serde::{Deserialize, Serialize};

use crate::agent::Time;

/// How long a test device takes for what it does, in ns of virtual time, and how much it moves at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// From the register access that starts it to the first transaction.
    pub start: Time,
    /// A translation, or one fetch of its walk.
    pub translate: Time,
    /// A data beat.
    pub beat: Time,
    /// Until a stalled translation is looked at again.
    pub retry: Time,
    /// Bytes of the engine's largest transaction: at least 8, at most 4096.
    pub burst: u16,
}

impl Default for Timing {
    fn default() -> Self {
        Self { start: 100, translate: 20, beat: 50, retry: 1000, burst: 256 }
    }
}

#[cfg(test)]
mod tests;
