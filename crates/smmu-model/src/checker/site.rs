//! Who did something, and when.

use serde::{Deserialize, Serialize};

/// Return addresses that a [`Site`] has.
pub const CALLERS: usize = 8;

/// A moment in the guest: which code of which vCPU, or a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Virtual time, nanoseconds.
    pub time: u64,
    /// The vCPU; `None` for a device or the SMMU itself.
    pub cpu: Option<u32>,
    /// The instruction.
    pub pc: u64,
    /// The link register: the caller of a function without a frame record, else stale.
    pub lr: u64,
    /// Return addresses of the frame records, innermost first; 0 behind the last.
    pub callers: [u64; CALLERS],
}

impl Site {
    /// Something that a device, or the SMMU, did.
    #[must_use]
    pub fn device(time: u64) -> Self {
        Site { time, ..Site::default() }
    }
}

/// What a [`Site`] has to do with a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Wrote the descriptor, STE or CD as it was used.
    Map,
    /// Changed or removed it.
    Unmap,
    /// Put a command into the queue.
    Invalidation,
    /// Used the memory or the address for something else.
    Reuse,
    /// Made a request available to a device.
    Submit,
    /// Took the request.
    Take,
    /// Copied what the device reads.
    CopyIn,
    /// Copied what the device wrote.
    CopyOut,
    /// Accessed its buffer.
    Access,
}
