//! All vCPUs and the turn each takes.

use guest_ram::{GuestRam, MONITOR, PAGE_SIZE};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::core::{Core, Ctx, Reservation};
use crate::engine;
use crate::platform::Platform;
use crate::shared::{Broadcast, Exit, Shared};

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Instructions executed; each took one nanosecond.
    pub retired: u64,
    /// Why it ended.
    pub exit: Exit,
}

/// The state of one vCPU as the cluster keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Slot {
    core: Core,
    /// Powered on, for PSCI: the scheduler does not run it otherwise.
    on: bool,
    /// What the others broadcast since it ran last.
    inbox: Vec<Broadcast>,
}

/// All vCPUs of a machine.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
    slots: Vec<Slot>,
    shared: Shared,
}

impl Cluster {
    /// Builds the vCPUs, in their reset state and off.
    pub fn new(config: &Config, ram: GuestRam) -> Self {
        let cpus = config.cpus;
        let slots = (0..cpus)
            .map(|index| Slot { core: Core::new(index, config), on: false, inbox: Vec::new() })
            .collect();
        Self { config: config.clone(), slots, shared: Shared::new(ram, config.features, cpus) }
    }

    /// How many vCPUs there are.
    pub fn cpus(&self) -> usize {
        self.slots.len()
    }

    /// A vCPU's state.
    ///
    /// # Panics
    /// When there is no such vCPU.
    pub fn core(&self, cpu: usize) -> &Core {
        &self.slots[cpu].core
    }

    /// A vCPU's state, to change. `pc` is changed by [`Core::set_pc`].
    ///
    /// # Panics
    /// When there is no such vCPU.
    pub fn core_mut(&mut self, cpu: usize) -> &mut Core {
        &mut self.slots[cpu].core
    }

    /// Whether a vCPU is powered on.
    pub fn is_on(&self, cpu: usize) -> bool {
        self.slots.get(cpu).is_some_and(|slot| slot.on)
    }

    /// Powers a vCPU on or off; its state stays.
    pub fn set_on(&mut self, cpu: usize, on: bool) {
        if let Some(slot) = self.slots.get_mut(cpu) {
            slot.on = on;
        }
    }

    /// Puts a vCPU into its reset state, at EL1 with everything masked and the MMU off, to begin at `entry` with
    /// `x0`. Its count of instructions goes on.
    pub fn reset(&mut self, cpu: usize, entry: u64, x0: u64) {
        if let Some(slot) = self.slots.get_mut(cpu) {
            let retired = slot.core.retired();
            slot.core = Core::new(cpu, &self.config);
            slot.core.retired_base = retired;
            slot.core.set_pc(entry);
            slot.core.retired_base = retired;
            slot.core.r[0] = x0;
            slot.inbox.clear();
        }
    }

    /// Runs vCPU `cpu` from virtual time `now` (in nanoseconds) for at most `budget` instructions.
    ///
    /// # Panics
    /// When there is no such vCPU.
    pub fn run(&mut self, cpu: usize, platform: &mut dyn Platform, now: u64, budget: u64) -> Ran {
        self.enter(cpu);
        let core = &mut self.slots[cpu].core;
        let before = core.retired();
        core.time_base = (before, now);
        let mut ctx = Ctx { platform, shared: &mut self.shared, end: 0 };
        let exit = engine::run(core, &mut ctx, self.config.engine, budget);
        core.in_wfe = exit == Exit::Wfe;
        let retired = core.retired().wrapping_sub(before);
        self.leave(cpu);
        Ran { retired, exit }
    }

    /// Makes everything that the others and the devices did visible to the vCPU about to run.
    fn enter(&mut self, cpu: usize) {
        for (monitor, slot) in self.shared.monitors.iter_mut().zip(&self.slots) {
            *monitor = slot.core.monitor;
        }
        self.shared.device_writes();
        let slot = &mut self.slots[cpu];
        if slot.core.monitor.is_some() && self.shared.monitors[cpu].take().is_none() {
            slot.core.monitor = None;
            slot.core.event = true;
        }
        for message in std::mem::take(&mut slot.inbox) {
            match message {
                Broadcast::Tlbi(key, operand) => slot.core.mmu.broadcast_tlbi(key, operand),
                Broadcast::Event => slot.core.event = true,
            }
        }
        // A store by this vCPU must notice the others' reservations.
        for index in 0..self.shared.monitors.len() {
            if let Some(Reservation { granule, .. }) = self.shared.monitors[index]
                && let Some(offset) = self.shared.ram.offset(granule, 1)
            {
                self.shared.watch_page(&mut slot.core, offset as usize / PAGE_SIZE, MONITOR);
            }
        }
        if std::mem::take(&mut slot.core.in_wfe) {
            slot.core.event = false;
        }
    }

    /// Hands on what the vCPU that ran did to the others.
    fn leave(&mut self, cpu: usize) {
        let messages = std::mem::take(&mut self.shared.broadcast);
        let watched = std::mem::take(&mut self.shared.watched);
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(index, _)| *index != cpu) {
            slot.inbox.extend_from_slice(&messages);
            for &page in &watched {
                slot.core.mmu.drop_write_keys(self.shared.ram.base() + (page * PAGE_SIZE) as u64);
            }
            if let Some(Reservation { granule, .. }) = slot.core.monitor
                && let Some(offset) = self.shared.ram.offset(granule, 1)
            {
                self.shared.ram.watch().clear(offset as usize / PAGE_SIZE, MONITOR);
            }
            if slot.core.monitor.is_some() && self.shared.monitors[index].is_none() {
                slot.core.monitor = None;
                slot.core.event = true;
            }
        }
    }
}
