//! The SMMU's own agents on the machine's clock: command consumer, event writer, MSIs and wired interrupts.

use std::sync::{Arc, Mutex, MutexGuard};

use devices::Time;
use devices::dma::PhysMem;
use guest_ram::GuestRam;
use serde::{Deserialize, Serialize};
use smmu_model::{Msi, Smmu};

/// How long each kind of step takes, in nanoseconds of virtual time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// From PROD's write, or the last command, to the next command's effect.
    pub command: u64,
    /// One event record.
    pub event: u64,
    /// One MSI write.
    pub msi: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { command: 100, event: 100, msi: 50 }
    }
}

/// What one step asks of the rest of the machine.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// Nothing outside the SMMU and memory.
    None,
    /// An MSI write to a physical address.
    Msi(Msi),
}

/// The SMMU and when its agents step next.
pub struct SmmuAgents {
    smmu: Arc<Mutex<Smmu>>,
    ram: GuestRam,
    latency: Latency,
    due: Due,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Due {
    command: Option<Time>,
    event: Option<Time>,
    msi: Option<Time>,
}

fn schedule(due: &mut Option<Time>, pending: bool, at: Time) {
    *due = pending.then(|| due.unwrap_or(at));
}

impl SmmuAgents {
    /// Agents of `smmu`, whose accesses go to `ram`.
    pub fn new(smmu: Arc<Mutex<Smmu>>, ram: GuestRam, latency: Latency) -> Self {
        Self { smmu, ram, latency, due: Due::default() }
    }

    /// The model.
    pub fn smmu(&self) -> MutexGuard<'_, Smmu> {
        self.smmu.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Earliest step, given that anything that became pending did so at `now`.
    pub fn next_step(&mut self, now: Time) -> Option<Time> {
        let (command, event, msi) = {
            let smmu = self.smmu();
            (smmu.command_pending(), smmu.event_pending(), smmu.msi_pending())
        };
        schedule(&mut self.due.command, command, now + self.latency.command);
        schedule(&mut self.due.event, event, now + self.latency.event);
        schedule(&mut self.due.msi, msi, now + self.latency.msi);
        [self.due.command, self.due.event, self.due.msi].into_iter().flatten().min()
    }

    /// Does the one step that is due first: MSIs before events before commands.
    pub fn step(&mut self, now: Time) -> Effect {
        let is_due = |due: Option<Time>| due.is_some_and(|t| t <= now);
        let mut smmu = self.smmu.lock().unwrap_or_else(|e| e.into_inner());
        if is_due(self.due.msi) {
            self.due.msi = None;
            return smmu.take_msi().map_or(Effect::None, Effect::Msi);
        }
        if is_due(self.due.event) {
            self.due.event = None;
            smmu.step_event(&PhysMem::new(&self.ram));
        } else if is_due(self.due.command) {
            self.due.command = None;
            smmu.step_command(&PhysMem::new(&self.ram));
        }
        Effect::None
    }

    /// When each agent is due, for the state hash.
    pub fn state(&self) -> impl Serialize + use<> {
        self.due
    }
}
