//! Raising interrupts and global errors (sections 3.18 and 7.5).

use crate::irq::{IrqSource, Msi, Wired};
use crate::registers::IrqConfig;
use crate::smmu::Smmu;
use crate::spec::registers::{gerror, irq_ctrl};
use crate::transaction::{MemAttrs, Shareability};
use crate::translate::mair_of_memattr;

/// The attributes of an MSI: MemAttr in bits 3:0 and SH in 5:4.
pub(crate) fn attrs(memattr: u8, sh: u8) -> MemAttrs {
    MemAttrs { mair: mair_of_memattr(memattr), shareability: Shareability::from_sh(sh) }.normalised()
}

impl Smmu {
    /// Raises the interrupt of a source, if IRQ_CTRL enables it: its wire, and its MSI unless the address is 0. An MSI
    /// that has not gone out yet stands for this one, too.
    pub(crate) fn raise(&mut self, source: IrqSource) {
        let (enable, irq) = match source {
            IrqSource::EventQ => (irq_ctrl::EVENTQ, self.regs.eventq_irq),
            IrqSource::Gerror => (irq_ctrl::GERROR, self.regs.gerror_irq),
            IrqSource::PriQ => (irq_ctrl::PRIQ, self.regs.priq_irq),
            IrqSource::CmdSync | IrqSource::Pmcg => return,
        };
        if self.regs.irq_ctrl & enable == 0 {
            return;
        }
        let IrqConfig { address, data, attrs: a } = irq;
        match source {
            _ if !self.has_wire(address) => {}
            IrqSource::EventQ => self.wired.eventq = true,
            IrqSource::PriQ => self.wired.priq = true,
            _ => self.wired.gerror = true,
        }
        if self.config.msi && address != 0 && !self.msis.iter().any(|msi| msi.source == source) {
            let address = address & self.oas_mask();
            self.msis.push_back(Msi { address, data, attrs: attrs(a as u8 & 15, (a >> 4) as u8), source });
        }
    }

    /// CMD_SYNC with CS=SIG_IRQ completes.
    pub(crate) fn signal_sync(&mut self, address: u64, data: u32, memattr: u8, sh: u8) {
        self.wired.cmdq_sync |= self.has_wire(address);
        if self.config.msi && address != 0 {
            let address = address & self.oas_mask();
            self.msis.push_back(Msi { address, data, attrs: attrs(memattr, sh), source: IrqSource::CmdSync });
        }
    }

    /// Whether a source with this MSI address raises its wire as well.
    fn has_wire(&self, address: u64) -> bool {
        self.config.wires || !self.config.msi || address == 0
    }

    /// Addresses of MSIs are truncated to OAS (section 3.4.3).
    fn oas_mask(&self) -> u64 {
        (1 << self.config.oas) - 1
    }

    /// Whether a CMD_SYNC's MSI is still under way.
    pub(crate) fn sync_msi_pending(&self) -> bool {
        self.msis.iter().any(|msi| msi.source == IrqSource::CmdSync)
    }

    /// A global error becomes active, if it is not already.
    pub(crate) fn raise_gerror(&mut self, error: u32) {
        if !self.regs.gerror_active(error) {
            self.regs.gerror ^= error;
            self.raise(IrqSource::Gerror);
        }
    }

    /// IRQ_CTRLACK: a source whose MSI is still under way is not off yet.
    pub(crate) fn irq_ctrlack(&self) -> u32 {
        self.msis.iter().fold(self.regs.irq_ctrl, |ack, msi| match msi.source {
            IrqSource::EventQ => ack | irq_ctrl::EVENTQ,
            IrqSource::Gerror => ack | irq_ctrl::GERROR,
            IrqSource::PriQ => ack | irq_ctrl::PRIQ,
            IrqSource::CmdSync | IrqSource::Pmcg => ack,
        })
    }

    /// Whether [`Smmu::take_msi`] has one.
    #[must_use]
    pub fn msi_pending(&self) -> bool {
        !self.msis.is_empty()
    }

    /// Takes the next MSI; whoever takes it writes it.
    pub fn take_msi(&mut self) -> Option<Msi> {
        let msi = self.msis.pop_front()?;
        self.stats.msis += 1;
        Some(msi)
    }

    /// The write of an MSI got an abort (section 3.18.1.1).
    pub fn msi_aborted(&mut self, msi: &Msi) {
        self.raise_gerror(match msi.source {
            IrqSource::CmdSync => gerror::MSI_CMDQ_ABT_ERR,
            IrqSource::EventQ => gerror::MSI_EVENTQ_ABT_ERR,
            IrqSource::PriQ => gerror::MSI_PRIQ_ABT_ERR,
            IrqSource::Pmcg => {
                self.pmcg.iter_mut().for_each(crate::pmcg::Pmcg::msi_aborted);
                return;
            }
            IrqSource::Gerror => gerror::MSI_GERROR_ABT_ERR,
        });
    }

    /// Whether [`Smmu::take_wired`] has anything.
    #[must_use]
    pub fn wired_pending(&self) -> bool {
        self.wired.any()
    }

    /// Takes the interrupt edges since the last call.
    pub fn take_wired(&mut self) -> Wired {
        std::mem::take(&mut self.wired)
    }
}
