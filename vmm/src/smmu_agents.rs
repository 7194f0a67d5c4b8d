//! The SMMU's own agents on the machine's clock: command consumer, event writer, MSIs and wired interrupts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use devices::Time;
use devices::agent::earliest;
use devices::dma::{Fabric, PhysMem};
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
    /// One fetch of a lookup by ATOS.
    pub lookup: u64,
    /// An ATS Invalidate Request, or a PRG response, on its way to the function.
    pub message: u64,
    /// How long a function has to confirm an invalidation.
    pub atc_timeout: u64,
}

impl Latency {
    /// What the SMMU's options say.
    pub fn of(config: &smmu_model::Config) -> Self {
        let [command, event, msi] = [config.lat_cmd, config.lat_event, config.lat_msi].map(Time::from);
        let atc_timeout = crate::ats::Ats::default().timeout;
        let lookup = command + Time::from(config.lat_walk);
        Self { command, event, msi, pri: event, lookup, message: 200, atc_timeout }
    }
}

/// How long an MSI waits for an ITS that takes no more, in ns.
const RETRY_NS: Time = 1000;

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
    /// The performance monitors interrupt, by a wire, an MSI or both.
    Pmu {
        /// An edge on the wire.
        wired: bool,
        /// The MSI.
        msi: Option<Msi>,
    },
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
    /// The performance monitors' interrupt.
    pmu: Option<Time>,
    /// When a counter of time overflows.
    overflow: Option<Time>,
    atos: Option<Time>,
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

    /// Whether the requester of a StreamID is behind this SMMU.
    pub fn has(&self, sid: u32, fabric: &Fabric) -> bool {
        fabric.smmu(sid).is_some_and(|smmu| Arc::ptr_eq(smmu, &self.smmu))
    }

    /// Earliest step, given that anything that became pending did so at `now`.
    pub fn next_step(&mut self, now: Time) -> Option<Time> {
        let Self { smmu, due, latency, .. } = self;
        let mut smmu = smmu.lock().unwrap_or_else(|e| e.into_inner());
        schedule(&mut due.command, smmu.command_pending(), now + latency.command);
        schedule(&mut due.event, smmu.event_pending(), now + latency.event);
        schedule(&mut due.msi, smmu.msi_pending(), now + latency.msi);
        schedule(&mut due.pri, smmu.pri_pending(), now + latency.pri);
        schedule(&mut due.atos, smmu.atos_pending(), now + latency.lookup);
        schedule(&mut due.atc, smmu.atc_invalidation_pending(), now + latency.message);
        schedule(&mut due.response, smmu.page_response_pending(), now + latency.message);
        due.deadlines.retain(|&(id, _)| smmu.atc_invalidations_outstanding().any(|other| other == id));
        let pmcg = smmu.pmcg().map(|pmcg| (pmcg.irq_pending(), pmcg.next_overflow()));
        let (interrupts, overflow) = pmcg.unwrap_or_default();
        schedule(&mut due.pmu, interrupts, now + latency.msi);
        due.overflow = overflow;
        drop(smmu);
        self.due().map(|(_, at)| at).min()
    }

    /// The agents that have a step to do, and when, as [`SmmuAgents::next_step`] found it.
    pub fn due(&self) -> impl Iterator<Item = (SmmuAgent, Time)> + use<> {
        let Due { command, event, msi, pri, atc, response, pmu, overflow, atos, .. } = self.due;
        let deadline = self.due.deadlines.front().map(|&(_, at)| at);
        [
            (SmmuAgent::Msi, msi),
            (SmmuAgent::Event, event),
            (SmmuAgent::Command, command),
            (SmmuAgent::Pri, pri),
            (SmmuAgent::Atc, earliest(atc, deadline)),
            (SmmuAgent::Response, response),
            (SmmuAgent::Pmu, earliest(pmu, overflow)),
            (SmmuAgent::Atos, atos),
        ]
        .into_iter()
        .filter_map(|(agent, at)| Some((agent, at?)))
    }

    /// The agent that steps next; of several at one time MSIs before events before commands.
    pub fn first_due(&self) -> Option<SmmuAgent> {
        self.due().min_by_key(|&(agent, at)| (at, agent)).map(|(agent, _)| agent)
    }

    /// Whether an agent's step at `now` sends something that has to be taken.
    pub fn sends(&self, agent: SmmuAgent, now: Time) -> bool {
        match agent {
            SmmuAgent::Msi => true,
            SmmuAgent::Pmu => self.due.pmu.is_some_and(|at| at <= now),
            _ => false,
        }
    }

    /// Nobody can take what an agent sends at `now`: it is tried again later.
    pub fn hold(&mut self, agent: SmmuAgent, now: Time) {
        let due = if agent == SmmuAgent::Pmu { &mut self.due.pmu } else { &mut self.due.msi };
        *due = Some(now + RETRY_NS);
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
            SmmuAgent::Atos => {
                self.due.atos = None;
                smmu.step_atos(&PhysMem::new(&self.ram));
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
            SmmuAgent::Pmu => {
                let Some(pmcg) = smmu.pmcg() else { return Effect::None };
                pmcg.advance(now);
                if self.due.pmu.is_some_and(|at| at <= now) {
                    self.due.pmu = None;
                    return Effect::Pmu { wired: pmcg.take_wired(), msi: pmcg.take_msi() };
                }
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
