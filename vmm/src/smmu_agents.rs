//! The SMMU's own agents on the machine's clock: command consumer, event writer, MSIs and wired interrupts.

use std::sync::{Arc, Mutex, MutexGuard};

use devices::Time;
use devices::dma::PhysMem;
use guest_ram::GuestRam;
use serde::{Deserialize, Serialize};
use smmu_model::{Msi, Smmu};

use crate::actor::SmmuAgent;

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

/// When each agent steps next.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Due {
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

    /// The agents that have a step to do, and when, as [`SmmuAgents::next_step`] found it.
    pub fn due(&self) -> impl Iterator<Item = (SmmuAgent, Time)> + use<> {
        let Due { command, event, msi } = self.due;
        [(SmmuAgent::Msi, msi), (SmmuAgent::Event, event), (SmmuAgent::Command, command)]
            .into_iter()
            .filter_map(|(agent, at)| Some((agent, at?)))
    }

    /// Does the one step that is due first: MSIs before events before commands.
    pub fn step(&mut self, now: Time) -> Effect {
        let first = self.due().find(|&(_, at)| at <= now);
        first.map_or(Effect::None, |(agent, _)| self.step_agent(agent))
    }

    /// Does one agent's step.
    pub fn step_agent(&mut self, agent: SmmuAgent) -> Effect {
        let mut smmu = self.smmu.lock().unwrap_or_else(|e| e.into_inner());
        match agent {
            SmmuAgent::Msi => {
                self.due.msi = None;
                return smmu.take_msi().map_or(Effect::None, Effect::Msi);
            }
            SmmuAgent::Event => {
                self.due.event = None;
                smmu.step_event(&PhysMem::new(&self.ram));
            }
            SmmuAgent::Command => {
                self.due.command = None;
                smmu.step_command(&PhysMem::new(&self.ram));
            }
        }
        Effect::None
    }

    /// The model, and when each agent is due.
    pub fn save(&self) -> (Smmu, Due) {
        (self.smmu().clone(), self.due)
    }

    /// Goes on from a state that [`SmmuAgents::save`] gave.
    pub fn restore(&mut self, (model, due): (Smmu, Due)) {
        self.smmu().restore(model);
        self.due = due;
    }
}
