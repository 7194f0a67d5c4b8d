//! What goes into the SMMU from a client device, and what comes out.

use serde::{Deserialize, Serialize};

/// What a transaction does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessKind {
    /// Reads.
    Read,
    /// Writes; MSIs are writes too.
    Write,
    /// Reads and writes in one: needs both permissions, and is reported as a write (section 3.22).
    Atomic,
}

impl AccessKind {
    /// The RnW bit of an event record.
    #[must_use]
    pub fn is_read(self) -> bool {
        matches!(self, AccessKind::Read)
    }
}

/// A transaction as it arrives from upstream (section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// StreamID.
    pub sid: u32,
    /// SubstreamID, if the transaction carries one.
    pub ssid: Option<u32>,
    /// Input address.
    pub address: u64,
    /// Read, write or both.
    pub kind: AccessKind,
    /// Privileged, not unprivileged.
    pub privileged: bool,
    /// An instruction fetch, not data. Only reads can be one.
    pub instruction: bool,
    /// Memory attributes that the device or its interconnect gave.
    pub attrs: MemAttrs,
}

impl Transaction {
    /// An unprivileged data access with write-back inner-shareable attributes and no SubstreamID, as PCIe sends.
    #[must_use]
    pub fn new(sid: u32, address: u64, kind: AccessKind) -> Self {
        Transaction {
            sid,
            ssid: None,
            address,
            kind,
            privileged: false,
            instruction: false,
            attrs: MemAttrs::WRITE_BACK,
        }
    }

    /// The same with a SubstreamID (PASID).
    #[must_use]
    pub fn with_ssid(self, ssid: u32) -> Self {
        Transaction { ssid: Some(ssid), ..self }
    }
}

/// Shareability, in the encoding of a descriptor's SH field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Shareability {
    /// Non-shareable.
    NonShareable = 0,
    /// Outer shareable.
    Outer = 2,
    /// Inner shareable.
    Inner = 3,
}

impl Shareability {
    /// From a descriptor's SH field; the reserved value 1 behaves as non-shareable.
    #[must_use]
    pub fn from_sh(sh: u8) -> Self {
        match sh & 3 {
            2 => Shareability::Outer,
            3 => Shareability::Inner,
            _ => Shareability::NonShareable,
        }
    }
}

/// Memory type, cacheability and shareability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemAttrs {
    /// Type and cacheability as one byte of MAIR encodes them: `0x00` Device-nGnRnE, `0x04` Device-nGnRE, `0x44`
    /// Normal non-cacheable, `0xff` Normal write-back, and so on.
    pub mair: u8,
    /// Shareability. Device and non-cacheable memory is outer shareable.
    pub shareability: Shareability,
}

impl Default for MemAttrs {
    fn default() -> Self {
        MemAttrs::WRITE_BACK
    }
}

impl MemAttrs {
    /// Normal, write-back, inner shareable: ordinary coherent DMA.
    pub const WRITE_BACK: MemAttrs = MemAttrs { mair: 0xff, shareability: Shareability::Inner };
    /// Device-nGnRE: how MSIs of the SMMU itself usually go.
    pub const DEVICE_NGNRE: MemAttrs = MemAttrs { mair: 0x04, shareability: Shareability::Outer };

    /// Whether this is a Device type, for which nothing may be gathered or speculated.
    #[must_use]
    pub fn is_device(self) -> bool {
        self.mair & 0xf0 == 0
    }
}

/// Names a transaction between [`Smmu::begin`](crate::Smmu::begin) and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TxnId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Where a transaction may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    /// Physical address for the transaction's input address.
    pub pa: u64,
    /// Bytes from `pa` on that the same translation covers; at least 1. A longer access is several transactions.
    pub bytes: u64,
    /// Attributes downstream.
    pub attrs: MemAttrs,
}

/// How far a transaction is.
///
/// `Latched` must be followed by [`Smmu::complete`](crate::Smmu::complete), once the data has moved: CMD_SYNC waits for
/// it. `Aborted` and `Discarded` are the end; their transaction is gone already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// A structure or descriptor has yet to be fetched: call [`Smmu::step`](crate::Smmu::step).
    Walking(TxnId),
    /// Translated: move the data, then call [`Smmu::complete`](crate::Smmu::complete).
    Latched(TxnId, Translation),
    /// Stalled on a fault; software will resume or terminate it. Ask again later with `step`.
    Stalled(TxnId),
    /// Terminated with an abort.
    Aborted,
    /// Terminated as RAZ/WI: a read gives zeros, a write goes nowhere, and the device sees no error.
    Discarded,
}
