//! The SMMU as a whole.

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::irq::{Msi, Wired};
use crate::memory::Memory;
use crate::stats::Stats;
use crate::transaction::{Progress, Transaction, Translation, TxnId};

/// One SMMUv3.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Smmu {
    pub(crate) config: Config,
    pub(crate) stats: Stats,
}

impl Smmu {
    /// An SMMU as it comes out of reset.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Smmu { config, stats: Stats::default() }
    }

    /// The implementation.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Counters since power-on.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Reads a register. `offset` is from the start of page 0; `size` in bytes. `None`: there is no access of this kind
    /// (not 4 or 8 bytes, unaligned, outside); the bus answers it as RAZ.
    pub fn mmio_read(&mut self, offset: u64, size: u8) -> Option<u64> {
        let _ = (offset, size);
        Some(0)
    }

    /// Writes a register; what [`Smmu::mmio_read`] answers with `None` is ignored here.
    pub fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        let _ = (offset, size, value);
    }

    /// Whether [`Smmu::step_command`] has something to do. A CMD_SYNC that waits for transactions is nothing to do.
    #[must_use]
    pub fn command_pending(&self) -> bool {
        false
    }

    /// Consumes one command.
    pub fn step_command(&mut self, mem: &dyn Memory) {
        let _ = mem;
    }

    /// Whether [`Smmu::step_event`] has a record to write.
    #[must_use]
    pub fn event_pending(&self) -> bool {
        false
    }

    /// Writes one event record to the event queue.
    pub fn step_event(&mut self, mem: &dyn Memory) {
        let _ = mem;
    }

    /// Whether [`Smmu::take_msi`] has one.
    #[must_use]
    pub fn msi_pending(&self) -> bool {
        false
    }

    /// Takes the next MSI; whoever takes it writes it.
    pub fn take_msi(&mut self) -> Option<Msi> {
        None
    }

    /// The write of an MSI got an abort.
    pub fn msi_aborted(&mut self, msi: &Msi) {
        let _ = msi;
    }

    /// Takes the interrupt edges since the last call.
    pub fn take_wired(&mut self) -> Wired {
        Wired::default()
    }

    /// A transaction arrives. No memory is accessed.
    pub fn begin(&mut self, t: &Transaction) -> Progress {
        let attrs = t.attrs;
        Progress::Latched(
            TxnId { slot: 0, generation: 0 },
            Translation { pa: t.address, bytes: u64::MAX - t.address, attrs },
        )
    }

    /// Takes a transaction one fetch further. A transaction that is not known (any more) is aborted.
    pub fn step(&mut self, id: TxnId, mem: &dyn Memory) -> Progress {
        let _ = (id, mem);
        Progress::Aborted
    }

    /// The transaction's data has moved; or the device gives it up, at whatever point it is.
    pub fn complete(&mut self, id: TxnId) {
        let _ = id;
    }
}
