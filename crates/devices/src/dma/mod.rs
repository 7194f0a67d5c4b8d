//! The only way from a device to memory (contract 4 of the design).
//!
//! A [`Fabric`] knows what is behind the devices: RAM, the SMMU if there is one, and the ITS's doorbell. It hands each
//! requester a [`DmaPort`], which has two faces: vm-memory's `GuestMemory`, for ring bookkeeping that may share a step,
//! and [`Transfer`]s for data, where the translation, each of its fetches and each beat are steps of their own.
//! [`Scatter`] walks a list of segments with transfers.

mod atc;
mod ats;
mod ats_transfer;
mod inbox;
mod memory;
mod port;
mod scatter;
mod transfer;

pub use atc::{AtcConfig, Denied, Replacement, Retention};
pub use ats::{AtsControl, AtsState, AtsStats, PriStatus};
pub use inbox::{ItsInbox, Message};
pub use memory::PhysMem;
pub use port::{Attributes, DmaPort, Fabric, Inspector, Requester, Stats};
pub use scatter::{Moved, Scatter, Segment};
pub use transfer::{Poll, Transfer};

/// GITS_TRANSLATER of the `virt` machine: the address whose writes are interrupts.
pub const GITS_TRANSLATER: u64 = 0x0809_0040;

/// Why an access did not happen. The device sees no more than real ones do: its request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// The port is revoked: bus mastering is off, or the function is gone.
    #[error("bus mastering is off")]
    Revoked,
    /// The SMMU terminated the transaction.
    #[error("aborted by the SMMU")]
    Aborted,
    /// The physical address is not memory.
    #[error("no memory at the physical address")]
    External,
    /// The device cannot put this address on the bus.
    #[error("an address out of the device's reach")]
    OutOfReach,
    /// The range runs over the end of the address space.
    #[error("address range wraps")]
    Wraps,
    /// The SMMU stalled a transaction of a device that cannot wait for it.
    #[error("stalled where a stall is not possible")]
    Stalled,
}
