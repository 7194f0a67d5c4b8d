//! GICv3: distributor, redistributors, CPU interfaces and ITS (Arm IHI 0069), one security state.
//!
//! Everything that can change what a PE sees ends in [`Gic::refresh`], which finds the PE's highest-priority pending
//! interrupt again and leaves the levels of IRQ and FIQ where [`Gic::irq`] reads them at no cost.

mod access;
mod bank;
mod cpu_interface;
mod distributor;
mod ids;
mod its;
mod lpi;
mod redistributor;
mod sysregs;

use guest_ram::GuestRam;
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, Time};
use crate::dma::{ItsInbox, Message};

use bank::Bank;
use cpu_interface::Pending;
use distributor::{Distributor, Route};
use its::Its;
use redistributor::{FRAME, Pe};

/// Shape of a GIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// PEs, 1 to 16. PE n has affinity 0.0.0.n.
    pub cpus: u32,
    /// SPIs, rounded up to a multiple of 32: INTIDs 32 and up.
    pub spis: u32,
    /// Whether there are LPIs and an ITS.
    pub its: bool,
}

/// All state of a GIC, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GicState {
    config: Config,
    distributor: Distributor,
    pes: Vec<Pe>,
    its: Option<Its>,
    /// MSIs on their way; filled in when the state is saved.
    inbox: Vec<Message>,
}

/// The interrupt controller. Its tables are in RAM, which it reaches directly: it is not behind the SMMU.
#[derive(Debug)]
pub struct Gic {
    state: GicState,
    ram: GuestRam,
    inbox: ItsInbox,
}

/// Why a state cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved GIC has another shape: {saved:?}, not {own:?}")]
pub struct ShapeMismatch {
    saved: Config,
    own: Config,
}

impl Gic {
    /// A GIC after reset. `cpus` outside 1 to 16 is brought into that range. Writes of devices to GITS_TRANSLATER are
    /// taken from `inbox`.
    pub fn new(config: Config, ram: GuestRam, inbox: ItsInbox) -> Self {
        let config = Config { cpus: config.cpus.clamp(1, 16), ..config };
        let state = GicState {
            config,
            distributor: Distributor::new(config.spis, config.its),
            pes: (0..config.cpus).map(|n| Pe::new(n, config.cpus, config.its)).collect(),
            its: config.its.then(Its::default),
            inbox: Vec::new(),
        };
        Self { state, ram, inbox }
    }

    /// The state, for a snapshot.
    pub fn save(&self) -> GicState {
        GicState { inbox: self.inbox.save(), ..self.state.clone() }
    }

    /// Takes a state back, with the content of the inbox.
    ///
    /// # Errors
    /// [`ShapeMismatch`] when it is the state of a differently configured GIC.
    pub fn restore(&mut self, state: GicState) -> Result<(), ShapeMismatch> {
        if state.config != self.state.config {
            return Err(ShapeMismatch { saved: state.config, own: self.state.config });
        }
        self.inbox.restore(&state.inbox);
        self.state = GicState { inbox: Vec::new(), ..state };
        Ok(())
    }

    /// Level of a PE's IRQ and FIQ inputs.
    #[inline]
    pub fn irq(&self, cpu: usize) -> (bool, bool) {
        self.state.pes.get(cpu).map_or((false, false), |pe| pe.lines)
    }

    /// Drives the wire of a shared peripheral interrupt, INTID 32 and up.
    pub fn set_spi(&mut self, intid: u32, level: bool) {
        if self.state.distributor.spi(intid).is_some_and(|(bank, n)| bank.set_line(n, level)) {
            self.refresh_spi(intid);
        }
    }

    /// Drives the wire of a private peripheral interrupt, INTID 16 to 31.
    pub fn set_ppi(&mut self, cpu: usize, intid: u32, level: bool) {
        if !(16..32).contains(&intid) {
            return;
        }
        if self.state.pes.get_mut(cpu).is_some_and(|pe| pe.local.set_line(intid, level)) {
            self.refresh(cpu);
        }
    }

    /// Reads GICD_*; `offset` in the 64 KiB frame.
    pub fn gicd_read(&self, offset: u64, size: u8) -> u64 {
        self.state.distributor.read(offset, size)
    }

    /// Writes GICD_*.
    pub fn gicd_write(&mut self, offset: u64, size: u8, value: u64) {
        self.state.distributor.write(offset, size, value);
        self.refresh_all();
    }

    /// Reads GICR_*; `offset` in the region of all redistributors, 128 KiB each.
    pub fn gicr_read(&self, offset: u64, size: u8) -> u64 {
        let pe = self.state.pes.get((offset / FRAME) as usize);
        pe.map_or(0, |pe| pe.read(offset % FRAME, size))
    }

    /// Writes GICR_*.
    pub fn gicr_write(&mut self, offset: u64, size: u8, value: u64) {
        if let Some(pe) = self.state.pes.get_mut((offset / FRAME) as usize) {
            pe.write(&self.ram, offset % FRAME, size, value);
            // Sleeping and DPG bits move 1-of-N interrupts to other PEs.
            self.refresh_all();
        }
    }

    /// Reads GITS_*; `offset` in the 128 KiB of control and translation frame.
    pub fn gits_read(&self, offset: u64, size: u8) -> u64 {
        self.state.its.as_ref().map_or(0, |its| its.read(offset, size))
    }

    /// Writes GITS_*. A PE has no DeviceID, so its write to GITS_TRANSLATER is ignored: MSIs come by the inbox.
    pub fn gits_write(&mut self, offset: u64, size: u8, value: u64) {
        if let Some(its) = &mut self.state.its {
            its.write(offset, size, value);
        }
    }

    /// Whether the ITS has a command to process.
    #[inline]
    pub fn command_pending(&self) -> bool {
        self.state.its.as_ref().is_some_and(Its::command_pending)
    }

    /// Processes one ITS command.
    pub fn step_command(&mut self) {
        if let Some(its) = &mut self.state.its {
            its.step_command(&mut self.state.pes, &self.ram);
            self.refresh_all();
        }
    }

    /// Whether an MSI waits for translation.
    #[inline]
    pub fn msi_pending(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Takes one MSI, translates it and makes its LPI pending. Without an ITS it is lost.
    pub fn step_msi(&mut self) {
        let (Some(msi), Some(its)) = (self.inbox.take(), &self.state.its) else { return };
        if let Some(cpu) = its.msi(msi, &mut self.state.pes, &self.ram) {
            self.refresh(cpu);
        }
    }

    /// Number of ITS commands that were skipped because of an error, for diagnosis.
    pub fn its_command_errors(&self) -> u64 {
        self.state.its.as_ref().map_or(0, Its::command_errors)
    }

    /// The PE that an SPI of `group` goes to. 1-of-N interrupts go to the lowest-numbered PE that participates.
    fn target(&self, intid: u32, group: usize) -> Option<usize> {
        match self.state.distributor.route(intid) {
            Route::To(affinity) => Some(affinity as usize).filter(|&n| n < self.state.pes.len()),
            Route::Any => self.state.pes.iter().position(|pe| pe.takes_1_of_n(group)),
        }
    }

    fn refresh_all(&mut self) {
        for cpu in 0..self.state.pes.len() {
            self.refresh(cpu);
        }
    }

    /// Refreshes the PE that an SPI goes to.
    fn refresh_spi(&mut self, intid: u32) {
        let Some((bank, n)) = self.state.distributor.spi(intid) else { return };
        let group = bank.group_of(n);
        if let Some(cpu) = self.target(intid, group) {
            self.refresh(cpu);
        }
    }

    /// Finds a PE's highest-priority pending interrupt and the levels of its inputs again.
    fn refresh(&mut self, cpu: usize) {
        let best = self.find_best(cpu);
        if let Some(pe) = self.state.pes.get_mut(cpu) {
            let signalled = best.filter(|best| pe.icc.signals(best));
            pe.best = best;
            pe.lines = (signalled.is_some_and(|p| p.group == 1), signalled.is_some_and(|p| p.group == 0));
        }
    }

    /// The pending, enabled, not active interrupt of an open group with the highest priority; of equal ones, that with
    /// the lowest INTID (4.8: IMPLEMENTATION DEFINED).
    fn find_best(&self, cpu: usize) -> Option<Pending> {
        let pe = self.state.pes.get(cpu)?;
        let distributor = &self.state.distributor;
        let open = [0, 1].map(|g: usize| !pe.sleep && distributor.enable[g] && pe.icc.enable[g]);
        if open == [false; 2] {
            return None;
        }
        let mut best: Option<Pending> = None;
        let mut consider = |candidate: Pending| {
            if best.is_none_or(|best| candidate.priority < best.priority) {
                best = Some(candidate);
            }
        };
        for_each_candidate(&pe.local, 0, open, &mut consider);
        for (index, bank) in distributor.banks.iter().enumerate() {
            for_each_candidate(bank, 32 * (index as u32 + 1), open, &mut |candidate| {
                if self.target(candidate.intid, candidate.group) == Some(cpu) {
                    consider(candidate);
                }
            });
        }
        if let Some((priority, intid)) = pe.lpis.best().filter(|_| open[1]) {
            consider(Pending { intid, priority, group: 1 });
        }
        best
    }
}

/// Calls `f` for the candidates of a bank whose group is open.
fn for_each_candidate(bank: &Bank, base: u32, open: [bool; 2], f: &mut impl FnMut(Pending)) {
    let groups = if open[0] { !bank.group } else { 0 } | if open[1] { bank.group } else { 0 };
    let mut left = bank.candidates() & groups;
    while left != 0 {
        let n = left.trailing_zeros();
        left &= left - 1;
        let priority = bank.priority.get(n as usize).copied().unwrap_or(0);
        f(Pending { intid: base + n, priority, group: bank.group_of(n) });
    }
}

/// The ITS: commands first, then MSIs. A scheduler that wants to choose uses [`Gic::step_command`] and
/// [`Gic::step_msi`].
impl Agent for Gic {
    fn next_step(&self) -> Option<Time> {
        (self.command_pending() || self.msi_pending()).then_some(0)
    }

    fn step(&mut self, _now: Time) {
        if self.command_pending() {
            self.step_command();
        } else {
            self.step_msi();
        }
    }
}

#[cfg(test)]
mod tests;
