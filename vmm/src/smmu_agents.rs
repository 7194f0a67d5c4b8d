//! The SMMU's own agents on the machine's clock: command consumer, event writer, MSIs and wired interrupts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use devices::Time;
use devices::agent::earliest;
use devices::dma::PhysMem;
use guest_ram::GuestRam;
use serde::{Deserialize, Serialize};
use smmu_model::{AtcInvalidation, Msi, PageResponse, Smmu};

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
    /// One page request written or responded to.
    pub pri: u64,
    /// An ATS Invalidate Request, or a PRG response, on its way to the function.
    pub message: u64,
    /// How long a function has to confirm an invalidation.
    pub atc_timeout: u64,
}

impl Default for Latency {
    fn default() -> Self {
        let atc_timeout = crate::ats::Ats::default().timeout;
        Self { command: 100, event: 100, msi: 50, pri: 100, message: 200, atc_timeout }
    }
}

/// What one step asks of the rest of the machine.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// Nothing outside the SMMU and memory.
    None,
    /// An MSI write to a physical address.
    Msi(Msi),
    /// An ATS Invalidate Request for the function that has its StreamID.
    Invalidate(AtcInvalidation),
    /// A PRG response for the function that has its StreamID.
    Response(PageResponse),
}

/// The SMMU and when its agents step next.
pub struct SmmuAgents {
    smmu: Arc<Mutex<Smmu>>,
    ram: GuestRam,
    latency: Latency,
    due: Due,
}

/// When each agent steps next.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Due {
    command: Option<Time>,
    event: Option<Time>,
    msi: Option<Time>,
    pri: Option<Time>,
    atc: Option<Time>,
    response: Option<Time>,
    /// Invalidations that functions have to confirm, and until when.
    deadlines: VecDeque<(u64, Time)>,
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
        let Self { smmu, due, latency, .. } = self;
        let smmu = smmu.lock().unwrap_or_else(|e| e.into_inner());
        schedule(&mut due.command, smmu.command_pending(), now + latency.command);
        schedule(&mut due.event, smmu.event_pending(), now + latency.event);
        schedule(&mut due.msi, smmu.msi_pending(), now + latency.msi);
        schedule(&mut due.pri, smmu.pri_pending(), now + latency.pri);
        schedule(&mut due.atc, smmu.atc_invalidation_pending(), now + latency.message);
        schedule(&mut due.response, smmu.page_response_pending(), now + latency.message);
        due.deadlines.retain(|&(id, _)| smmu.atc_invalidations_outstanding().any(|other| other == id));
        drop(smmu);
        self.due().map(|(_, at)| at).min()
    }

    /// The agents that have a step to do, and when, as [`SmmuAgents::next_step`] found it.
    pub fn due(&self) -> impl Iterator<Item = (SmmuAgent, Time)> + use<> {
        let Due { command, event, msi, pri, atc, response, .. } = self.due;
        let deadline = self.due.deadlines.front().map(|&(_, at)| at);
        [
            (SmmuAgent::Msi, msi),
            (SmmuAgent::Event, event),
            (SmmuAgent::Command, command),
            (SmmuAgent::Pri, pri),
            (SmmuAgent::Atc, earliest(atc, deadline)),
            (SmmuAgent::Response, response),
        ]
        .into_iter()
        .filter_map(|(agent, at)| Some((agent, at?)))
    }

    /// Does the one step that is due first: MSIs before events before commands.
    pub fn step(&mut self, now: Time) -> Effect {
        let first = self.due().find(|&(_, at)| at <= now);
        first.map_or(Effect::None, |(agent, _)| self.step_agent(agent, now))
    }

    /// Does one agent's step.
    pub fn step_agent(&mut self, agent: SmmuAgent, now: Time) -> Effect {
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
            SmmuAgent::Pri => {
                self.due.pri = None;
                smmu.step_pri(&PhysMem::new(&self.ram));
            }
            SmmuAgent::Atc => {
                if let Some(&(id, _)) = self.due.deadlines.front().filter(|&&(_, at)| at <= now) {
                    self.due.deadlines.pop_front();
                    smmu.atc_invalidation_timed_out(id);
                    return Effect::None;
                }
                self.due.atc = None;
                let Some(invalidation) = smmu.take_atc_invalidation() else { return Effect::None };
                // All have the same time, so the first to go is the first to be late.
                self.due.deadlines.push_back((invalidation.id, now + self.latency.atc_timeout));
                return Effect::Invalidate(invalidation);
            }
            SmmuAgent::Response => {
                self.due.response = None;
                return smmu.take_page_response().map_or(Effect::None, Effect::Response);
            }
        }
        Effect::None
    }

    /// The model, and when each agent is due.
    pub fn save(&self) -> (Smmu, Due) {
        (self.smmu().clone(), self.due.clone())
    }

    /// Goes on from a state that [`SmmuAgents::save`] gave.
    pub fn restore(&mut self, (model, due): (Smmu, Due)) {
        self.smmu().restore(model);
        self.due = due;
    }
}
