//! How the SMMU interrupts: its own MSIs, wired edges and the CPU event (sections 3.18 and 4.7.3).

use serde::{Deserialize, Serialize};

use crate::transaction::MemAttrs;

/// Which of the SMMU's sources an interrupt is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IrqSource {
    /// A CMD_SYNC with CS=SIG_IRQ completed.
    CmdSync,
    /// The event queue became non-empty.
    EventQ,
    /// The PRI queue needs attention.
    PriQ,
    /// A global error became active.
    Gerror,
    /// A counter of the performance monitors overflowed.
    Pmcg,
}

/// A message-signalled interrupt: a 32-bit write that the SMMU makes itself. The address is physical, not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msi {
    /// Physical address, 4-byte aligned: an ITS's or other doorbell, or RAM.
    pub address: u64,
    /// What to write there.
    pub data: u32,
    /// With which attributes.
    pub attrs: MemAttrs,
    /// What caused it; [`Smmu::msi_aborted`](crate::Smmu::msi_aborted) wants to know.
    pub source: IrqSource,
}

/// Edges since they were last taken. A machine that wires a combined interrupt ORs the first four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wired {
    /// Event queue became non-empty.
    pub eventq: bool,
    /// PRI queue needs attention.
    pub priq: bool,
    /// CMD_SYNC completed.
    pub cmdq_sync: bool,
    /// A global error became active.
    pub gerror: bool,
    /// Not an interrupt: an event to every CPU, as from SEV, so that WFE returns.
    pub sev: bool,
}

impl Wired {
    /// Whether there is anything to deliver.
    #[must_use]
    pub fn any(self) -> bool {
        self != Wired::default()
    }
}
