//! All vCPUs, and the turn each takes.

use guest_ram::{GuestRam, PAGE_SIZE};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::core::{Core, Ctx, Reservation};
use crate::engine;
use crate::platform::Platform;
use crate::shared::{Broadcast, Exit, Shared};
use crate::sys::timer;

/// When more pages than this became watched at once, all fast ways are given up, instead of those to each page.
const MANY_PAGES: usize = 256;

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Instructions executed; each took one nanosecond.
    pub retired: u64,
    /// Why it ended.
    pub exit: Exit,
}

/// One vCPU and what the cluster remembers of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Slot {
    core: Core,
    /// Its last run ended in a WFE: the timer's event stream matters.
    in_wfe: bool,
}

/// The state of all vCPUs, to save, restore, compare or hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State(Vec<Slot>);

/// All vCPUs of a machine.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
    state: State,
    shared: Shared,
}

impl Cluster {
    /// Builds the vCPUs in their reset state.
    pub fn new(config: &Config, ram: GuestRam) -> Self {
        let slot = |index| Slot { core: Core::new(index, config), in_wfe: false };
        let state = State((0..config.cpus).map(slot).collect());
        Self { config: config.clone(), state, shared: Shared::new(ram, config.features, config.cpus) }
    }

    /// How many vCPUs there are.
    pub fn cpus(&self) -> usize {
        self.state.0.len()
    }

    /// A vCPU's state.
    ///
    /// # Panics
    /// When there is no such vCPU, here and below.
    pub fn core(&self, cpu: usize) -> &Core {
        &self.state.0[cpu].core
    }

    /// A vCPU's state, to change. `pc` is changed by [`Core::set_pc`].
    pub fn core_mut(&mut self, cpu: usize) -> &mut Core {
        &mut self.state.0[cpu].core
    }

    /// The state of all vCPUs. Decoded instructions are not part of it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Goes on from a state that a cluster of the same configuration gave. RAM has to be what it was then.
    pub fn restore(&mut self, state: State) {
        self.shared.forget_all_code();
        self.state = state;
        self.watch_reservations();
    }

    /// Puts a vCPU into its reset state, at EL1 with everything masked and the MMU off, to begin at `entry` with
    /// `x0`. Its count of instructions goes on.
    pub fn reset(&mut self, cpu: usize, entry: u64, x0: u64) {
        let slot = &mut self.state.0[cpu];
        let retired = slot.core.retired();
        slot.core = Core::new(cpu, &self.config);
        slot.core.set_pc(entry);
        slot.core.retired_base = retired;
        slot.core.r[0] = x0;
        slot.in_wfe = false;
    }

    /// Runs vCPU `cpu` from virtual time `now` (in nanoseconds) for at most `budget` instructions.
    pub fn run(&mut self, cpu: usize, platform: &mut dyn Platform, now: u64, budget: u64) -> Ran {
        let engine = self.config.engine;
        self.run_by(cpu, platform, now, |core, ctx| engine::run(core, ctx, engine, budget))
    }

    /// As [`Cluster::run`], and ends with [`Exit::Yield`] before the instruction at `pc`, unless that is the first one. In how
    /// many pieces a vCPU runs makes no difference to it.
    pub fn run_to(&mut self, cpu: usize, platform: &mut dyn Platform, now: u64, budget: u64, pc: u64) -> Ran {
        self.run_by(cpu, platform, now, |core, ctx| engine::run_to(core, ctx, budget, pc))
    }

    fn run_by(
        &mut self,
        cpu: usize,
        platform: &mut dyn Platform,
        now: u64,
        run: impl FnOnce(&mut Core, &mut Ctx<'_>) -> Exit,
    ) -> Ran {
        self.enter(cpu);
        let slot = &mut self.state.0[cpu];
        let core = &mut slot.core;
        let before = core.retired();
        core.time_base = (before, now);
        let mut ctx = Ctx::new(platform, &mut self.shared);
        let exit = run(core, &mut ctx);
        core.set_pc(core.pc);
        slot.in_wfe = exit == Exit::Wfe;
        let retired = core.retired().wrapping_sub(before);
        self.leave(cpu);
        Ran { retired, exit }
    }

    /// Makes what the others and the devices did visible to the vCPU about to run, and its stores to the others'
    /// reservations noticed.
    fn enter(&mut self, cpu: usize) {
        self.device_writes();
        self.shared.monitors[cpu] = None;
        self.shared.newly_traced();
        self.drop_keys(None);
    }

    /// Hands on what the vCPU that ran did to the others.
    fn leave(&mut self, cpu: usize) {
        self.drop_keys(Some(cpu));
        for message in std::mem::take(&mut self.shared.broadcast) {
            for (_, slot) in self.state.0.iter_mut().enumerate().filter(|(index, _)| *index != cpu) {
                match message {
                    Broadcast::Tlbi(op, operand) => slot.core.mmu.broadcast_tlbi(&slot.core.sys, op, operand),
                    Broadcast::Event => slot.core.event = true,
                }
            }
        }
        self.break_reservations(Some(cpu));
        self.watch_reservations();
    }

    /// Watches the pages of all open reservations, and no others. While a vCPU runs its own is among them: its stores
    /// there only take the longer way.
    fn watch_reservations(&mut self) {
        let slots = self.state.0.iter();
        let pages =
            slots.filter_map(|slot| slot.core.monitor.and_then(|m| self.shared.page_of(&m))).collect();
        self.shared.watch_monitors(pages);
        self.drop_keys(None);
    }

    /// Lets the devices' writes since the last time take effect on decoded instructions and reservations.
    fn device_writes(&mut self) {
        for (monitor, slot) in self.shared.monitors.iter_mut().zip(&self.state.0) {
            *monitor = slot.core.monitor;
        }
        if self.shared.ram.watch().has_hits() {
            self.shared.device_writes();
            self.break_reservations(None);
        }
    }

    /// Clears the reservations that stores broke, each of which is an event for its vCPU. The vCPU `except` has its
    /// own in its core.
    fn break_reservations(&mut self, except: Option<usize>) {
        for (index, slot) in self.state.0.iter_mut().enumerate() {
            if Some(index) == except {
                continue;
            }
            if slot.core.monitor.is_some() && self.shared.monitors[index].is_none() {
                slot.core.monitor = None;
                slot.core.event = true;
            }
        }
    }

    /// Pages that became watched must not be accessed the fast way by anyone.
    fn drop_keys(&mut self, except: Option<usize>) {
        let pages = std::mem::take(&mut self.shared.watched);
        if pages.len() > MANY_PAGES {
            self.state.0.iter_mut().for_each(|slot| slot.core.mmu.drop_all_keys());
            return;
        }
        for page in pages {
            let pa = self.shared.ram.base() + (page * PAGE_SIZE) as u64;
            let flags = self.shared.ram.watch().flags(page);
            for (index, slot) in self.state.0.iter_mut().enumerate() {
                if Some(index) != except {
                    slot.core.mmu.drop_keys(pa, flags);
                }
            }
        }
    }

    /// Earliest virtual time, in nanoseconds, at which a vCPU's timer does something by itself. A run must not go
    /// past it without [`Cluster::update_timers`].
    pub fn timer_deadline(&mut self, cpu: usize, now: u64) -> Option<u64> {
        let slot = &mut self.state.0[cpu];
        slot.core.time_base = (slot.core.retired(), now);
        timer::timer_deadline(&slot.core, slot.in_wfe)
    }

    /// Gives the platform the levels of a vCPU's timer interrupts as they are at `now`.
    pub fn update_timers(&mut self, cpu: usize, platform: &mut dyn Platform, now: u64) {
        let core = &mut self.state.0[cpu].core;
        core.time_base = (core.retired(), now);
        let mut ctx = Ctx::new(platform, &mut self.shared);
        timer::update_timers(core, &mut ctx);
        self.shared.exit = None;
    }

    /// Brings what the vCPUs keep for the way to now up to `now`, so that the state does not tell how the runs that led
    /// here were cut.
    pub fn settle(&mut self, now: u64) {
        for slot in &mut self.state.0 {
            slot.core.time_base = (slot.core.retired(), now);
            timer::sync_events(&mut slot.core);
        }
    }

    /// Whether a vCPU that waits in a WFI has to wake up: an interrupt is pending, masked or not.
    pub fn wfi_wake(&self, cpu: usize, platform: &dyn Platform) -> bool {
        let lines = platform.irq(cpu);
        lines.irq || lines.fiq
    }

    /// Whether a vCPU's event register is set.
    pub fn has_event(&self, cpu: usize) -> bool {
        self.state.0[cpu].core.event
    }

    /// Takes the event that a vCPU waits for in a WFE, if it came.
    pub fn take_event(&mut self, cpu: usize) -> bool {
        self.device_writes();
        let slot = &mut self.state.0[cpu];
        slot.in_wfe &= !slot.core.event;
        std::mem::take(&mut slot.core.event)
    }

    /// An event for every vCPU, from outside: what the SMMU's CMD_SYNC with SEV sends.
    pub fn send_event(&mut self) {
        for slot in &mut self.state.0 {
            slot.core.event = true;
        }
    }
}

impl Shared {
    /// The page of RAM, by index, that a reservation is in.
    fn page_of(&self, reservation: &Reservation) -> Option<usize> {
        self.ram.offset(reservation.granule, 1).map(|offset| offset as usize / PAGE_SIZE)
    }
}
