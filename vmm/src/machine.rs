//! The whole machine: vCPUs and board, and the scheduler that gives each its turn.

use std::collections::BTreeSet;

use aarch64::{Cluster, Exit};
use devices::agent::earliest;
use devices::lab::{Lab, Mark};
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::cover::Cover;
use crate::happened::{Chronicle, Event};
use crate::psci::{self, Call, code};
use crate::schedule::{Hold, Progress, Schedule};
use crate::script::Look;
use crate::sharing::{Places, Reached, Sharing, Use};
use crate::survey::{Kind, Point};
use crate::touch::{self, Witness};

/// Why [`Machine::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest powered off (PSCI SYSTEM_OFF).
    PowerOff,
    /// The guest asked for a reset (PSCI SYSTEM_RESET).
    Reset,
    /// Virtual time reached the limit that the caller gave.
    Until,
    /// Every vCPU waits and nothing inside the machine will ever wake one; input from outside might.
    Idle,
    /// Every vCPU waits until this virtual time, at which something inside the machine happens.
    Sleep(u64),
    /// The guest marked a point of a scenario at the lab device, with its code.
    Marked(Mark, u32),
}

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Activity {
    Running,
    /// In WFI, or CPU_SUSPEND: until an interrupt is pending.
    Interrupt,
    /// In WFE: until an event or an interrupt.
    Event,
    Off,
}

/// A machine that can run.
pub struct Machine {
    /// The vCPUs.
    pub cluster: Cluster,
    /// All else.
    pub board: Board,
    activity: Vec<Activity>,
    /// Virtual time, nanoseconds since power-on.
    now: u64,
    /// Instructions that a vCPU runs before the next one's turn.
    quantum: u64,
    /// Whose turn it is.
    turn: usize,
    /// Instructions left of that turn.
    left: u64,
    /// Whether to come back with [`Stop::Sleep`] instead of skipping idle time.
    pub real_time_idle: bool,
    /// Where the run departs from the default order, if it does.
    schedule: Option<Schedule>,
}

/// Who is doing what and whose turn it is: the machine's own state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turns {
    activity: Vec<Activity>,
    now: u64,
    turn: usize,
    left: u64,
}

impl Machine {
    /// A machine in which all vCPUs are off.
    pub fn new(cluster: Cluster, board: Board, quantum: u64) -> Self {
        let activity = vec![Activity::Off; cluster.cpus()];
        let real_time_idle = false;
        Self {
            cluster,
            board,
            activity,
            now: 0,
            quantum,
            turn: 0,
            left: quantum,
            real_time_idle,
            schedule: None,
        }
    }

    /// Turns the first vCPU on: it starts at `entry` with `x0`.
    pub fn power_on(&mut self, entry: u64, x0: u64) {
        self.cluster.reset(0, entry, x0);
        self.activity[0] = Activity::Running;
    }

    /// Virtual time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Instructions retired by all vCPUs.
    pub fn retired(&self) -> u64 {
        (0..self.activity.len()).map(|i| self.cluster.core(i).retired()).sum()
    }

    /// Lets idle time pass up to `time`, when input from outside came at that moment.
    pub fn sleep_until(&mut self, time: u64) {
        self.now = self.now.max(time);
    }

    /// The scheduler's own state.
    pub fn turns(&self) -> Turns {
        let Self { now, turn, left, .. } = *self;
        Turns { activity: self.activity.clone(), now, turn, left }
    }

    /// Goes on from such a state. `false`, and nothing done, when it is of a machine with other vCPUs.
    pub fn restore_turns(&mut self, turns: Turns) -> bool {
        let fits = turns.activity.len() == self.activity.len() && turns.turn < self.activity.len();
        if fits {
            Turns { activity: self.activity, now: self.now, turn: self.turn, left: self.left } = turns;
        }
        fits
    }

    fn retired_by_cpu(&self) -> Vec<u64> {
        (0..self.activity.len()).map(|i| self.cluster.core(i).retired()).collect()
    }

    /// Departs from the default order from now on, where `holds` say so.
    pub fn follow(&mut self, holds: &[Hold]) {
        self.schedule = Some(Schedule::new(holds, self.now, self.retired_by_cpu()));
        self.board.note_accesses(false);
    }

    /// As [`Machine::follow`], and finds out which memory several actors touch.
    pub fn survey_memory(&mut self, holds: &[Hold]) {
        self.follow(holds);
        touch::trace(&self.board.ram, touch::all(&self.board.ram));
        self.board.witness = Some(Box::new(Witness::Sharing(Sharing::default())));
    }

    /// As [`Machine::follow`] without a hold, and notes where holding somebody may matter: among others at accesses to
    /// these places. Covers the `watched` pages.
    pub fn survey(&mut self, places: &Places, watched: &[usize]) {
        self.follow(&[]);
        if let Some(schedule) = &mut self.schedule {
            schedule.keep_survey();
        }
        self.board.note_accesses(true);
        touch::trace(&self.board.ram, places.0.keys().copied());
        self.board.witness = Some(Box::new(Witness::Reached(Reached::new(places.clone(), watched))));
    }

    /// Notes from now on in which order conflicting accesses to these pages come, by number in RAM.
    pub fn cover(&mut self, pages: &[usize]) {
        touch::trace(&self.board.ram, pages.iter().copied());
        self.board.witness = Some(Box::new(Witness::Cover(Cover::default())));
    }

    /// Tells from now on what happens, among others in these pages that hold tables, by number in RAM.
    pub fn chronicle(&mut self, tables: BTreeSet<usize>) {
        touch::trace(&self.board.ram, touch::all(&self.board.ram));
        self.board.witness = Some(Box::new(Witness::Chronicle(Chronicle::new(tables))));
    }

    /// What happened since [`Machine::chronicle`].
    pub fn happened(&self) -> &[Event] {
        match self.board.witness.as_deref() {
            Some(Witness::Chronicle(chronicle)) => &chronicle.events,
            _ => &[],
        }
    }

    /// What [`Machine::survey_memory`] found.
    pub fn places(&self) -> Places {
        match self.board.witness.as_deref() {
            Some(Witness::Sharing(sharing)) => sharing.places(),
            _ => Places::default(),
        }
    }

    /// The behaviours that a run showed that is surveyed or covered.
    pub fn behaviours(&self) -> BTreeSet<u64> {
        match self.board.witness.as_deref() {
            Some(Witness::Cover(cover)) => cover.behaviours().clone(),
            Some(Witness::Reached(reached)) => reached.cover.behaviours().clone(),
            _ => BTreeSet::new(),
        }
    }

    /// Follows a schedule from where it is, as when a state is restored.
    pub fn resume(&mut self, schedule: Option<Schedule>) {
        self.schedule = schedule;
    }

    /// The schedule that the machine follows.
    pub fn schedule(&mut self) -> Option<&mut Schedule> {
        self.schedule.as_mut()
    }

    /// How far everybody got since [`Machine::follow`].
    pub fn progress(&self) -> Option<Progress> {
        Some(self.schedule.as_ref()?.progress(self.now, &self.retired_by_cpu()))
    }

    /// What a vCPU is doing, in words.
    pub fn activity(&self, cpu: usize) -> &'static str {
        match self.activity.get(cpu) {
            Some(Activity::Running) => "runs",
            Some(Activity::Interrupt) => "waits for an interrupt",
            Some(Activity::Event) => "waits for an event",
            Some(Activity::Off) | None => "is off",
        }
    }

    /// Runs until something stops it, at the latest at virtual time `until`. In how many pieces a run is done makes no
    /// difference to anything.
    ///
    /// The default order: all agents' steps that are due, in order of their times; then the vCPU whose turn it is,
    /// up to the end of its quantum, the next agent's step or the next timer, whichever is first.
    pub fn run(&mut self, until: u64) -> Stop {
        let stop = self.run_unsettled(until);
        self.cluster.settle(self.now);
        stop
    }

    fn run_unsettled(&mut self, until: u64) -> Stop {
        loop {
            if self.now >= until {
                return Stop::Until;
            }
            let agents = self.step_agents();
            if self.board.take_event() {
                self.cluster.send_event();
            }
            let wake = self.update_timers();
            self.consult_script();
            let picked = self.pick();
            let release = self.schedule.as_ref().and_then(|s| s.release(self.now));
            let next = earliest(earliest(wake, agents), release);
            let Some(cpu) = picked else {
                match next {
                    Some(time) if self.real_time_idle && time > self.now => return Stop::Sleep(time),
                    Some(time) => self.now = time.clamp(self.now, until),
                    None => return Stop::Idle,
                }
                continue;
            };
            let end = next.unwrap_or(u64::MAX).min(until).max(self.now + 1);
            let retired = self.cluster.core(cpu).retired();
            let pc = self.cluster.core(cpu).pc;
            let to_hold = self.stretch(cpu, pc, retired);
            let budget = self.left.min(end - self.now).min(to_hold);
            self.board.begin_slice(self.now + budget);
            let ran = match self.schedule.as_ref().and_then(|schedule| schedule.looks_at(cpu, retired)) {
                Some(pc) => self.cluster.run_to(cpu, &mut self.board, self.now, budget, pc),
                None => self.cluster.run(cpu, &mut self.board, self.now, budget),
            };
            self.now += ran.retired;
            if let Some(schedule) = &mut self.schedule {
                let began = self.now - ran.retired;
                schedule.ran(cpu, began, retired, ran.retired, pc);
                if schedule.surveys() {
                    self.note_points(cpu, pc, retired, ran.retired);
                }
            }
            self.left = self.left.saturating_sub(ran.retired);
            match ran.exit {
                Exit::Budget | Exit::Yield => {}
                Exit::Wfi => self.wait(cpu, Activity::Interrupt),
                Exit::Wfe => self.wait(cpu, Activity::Event),
                Exit::Hvc(_) => {
                    if let Some(stop) = self.psci(cpu) {
                        return stop;
                    }
                }
            }
            if let Some((mark, code)) = self.board.lab.as_mut().and_then(Lab::take_mark) {
                return Stop::Marked(mark, code);
            }
        }
    }

    /// How many instructions a vCPU may run at once, for all that the schedule wants to know or to hold.
    fn stretch(&mut self, cpu: usize, pc: u64, retired: u64) -> u64 {
        let Some(schedule) = &mut self.schedule else { return u64::MAX };
        let (core, ram) = (self.cluster.core(cpu), &self.board.ram);
        let word = || {
            let mut bytes = [0; 4];
            let there = core.physical(ram, pc).is_some_and(|pa| ram.read(pa, &mut bytes));
            there.then(|| u32::from_le_bytes(bytes))
        };
        schedule.left(cpu, retired).min(schedule.stretch(cpu, pc, retired, word))
    }

    /// Takes note of what a vCPU reached for in `count` instructions, of which the first was at `pc`, its number `retired`.
    fn note_points(&mut self, cpu: usize, pc: u64, retired: u64, count: u64) {
        let Some(schedule) = &mut self.schedule else { return };
        let began = self.now - count;
        let alone = (count <= 1).then_some(pc);
        let mut reached = |time: u64, kind, address, with| {
            schedule.reached(Point { cpu, at: retired + (time - began), kind, pc: alone, address, with });
        };
        for (time, pa) in self.board.take_accesses() {
            reached(time, Kind::Device, Some(pa), self.board.registers_of(pa));
        }
        if let Some(Witness::Reached(places)) = self.board.witness.as_deref_mut() {
            for reach in places.new.drain(..) {
                let kind = match reach.place.used {
                    Use::Table => Kind::Table,
                    Use::Queue => Kind::Queue,
                    Use::Dma => Kind::Dma,
                    Use::Cpus => Kind::Shared,
                };
                reached(reach.time, kind, Some(self.board.ram.base() + reach.offset), reach.place.with);
            }
        }
        // An interrupt that was taken before the instruction: the vCPU is within an IRQ or FIQ vector (DDI 0487 D1.3.1.1).
        let core = self.cluster.core(cpu);
        let vector = core.pc.wrapping_sub(core.sys.vbar[1]) & !0x7f;
        if matches!(vector, 0x80 | 0x100 | 0x280 | 0x300 | 0x480 | 0x500) && core.sys.elr[1] == pc {
            reached(began, Kind::Interrupt, None, None);
        }
    }

    /// Does all agents' steps that are due; when the next one is.
    fn step_agents(&mut self) -> Option<u64> {
        let now = self.now;
        let able = self.able();
        let Some(schedule) = &mut self.schedule else {
            while self.board.step(now) {}
            return self.board.next_step(now);
        };
        let above = schedule.highest(&able);
        loop {
            let agents = self.board.agents(now);
            schedule.expect(&agents);
            let agents = agents.into_iter();
            let (at, who) = agents.map(|(who, due)| (schedule.delayed(who, due, now, above), who)).min()?;
            if at > now {
                return (at < u64::MAX).then_some(at);
            }
            self.board.step_agent(who, now);
            schedule.stepped(who, now);
        }
    }

    /// Lets the script, if there is one, look at where everybody is.
    fn consult_script(&mut self) {
        let Some(schedule) = self.schedule.as_mut().filter(|s| s.script().is_some()) else { return };
        let look = |cpu| {
            let core = self.cluster.core(cpu);
            let at = schedule.since_begin(cpu, core.retired());
            Look { pc: core.pc, lr: core.r[30], sp: core.r[usize::from(aarch64::core::SP)], at }
        };
        let looks: Vec<Look> = (0..self.activity.len()).map(look).collect();
        schedule.consult(self.now, &looks);
    }

    fn wait(&mut self, cpu: usize, activity: Activity) {
        self.activity[cpu] = activity;
        self.left = 0;
    }

    /// Brings every vCPU's timer outputs up to date; the earliest time at which one changes.
    fn update_timers(&mut self) -> Option<u64> {
        let mut first = None;
        for cpu in 0..self.activity.len() {
            if self.activity[cpu] == Activity::Off {
                continue;
            }
            self.cluster.update_timers(cpu, &mut self.board, self.now);
            first = earliest(first, self.cluster.timer_deadline(cpu, self.now));
        }
        first
    }

    fn runnable(&mut self, cpu: usize) -> bool {
        if let Some(schedule) = &mut self.schedule
            && self.activity[cpu] == Activity::Running
            && let core = self.cluster.core(cpu)
            && !schedule.may_run(cpu, core.pc, core.retired(), self.now)
        {
            return false;
        }
        let woken = match self.activity[cpu] {
            Activity::Running => return true,
            Activity::Off => false,
            Activity::Interrupt => self.cluster.wfi_wake(cpu, &self.board),
            Activity::Event => self.cluster.take_event(cpu) || self.cluster.wfi_wake(cpu, &self.board),
        };
        if woken {
            self.activity[cpu] = Activity::Running;
        }
        woken
    }

    /// What each vCPU has retired, and whether it can run; nothing when nobody wants to know since there are no ranks.
    fn able(&self) -> Vec<(u64, bool)> {
        if !self.schedule.as_ref().is_some_and(Schedule::has_ranks) {
            return Vec::new();
        }
        let able = |cpu| match self.activity[cpu] {
            Activity::Running => true,
            Activity::Off => false,
            Activity::Interrupt => self.cluster.wfi_wake(cpu, &self.board),
            Activity::Event => self.cluster.has_event(cpu) || self.cluster.wfi_wake(cpu, &self.board),
        };
        (0..self.activity.len()).map(|cpu| (self.cluster.core(cpu).retired(), able(cpu))).collect()
    }

    /// The vCPU to run: the one whose turn it is while its quantum lasts, else the next in order that can run.
    fn pick(&mut self) -> Option<usize> {
        if self.schedule.as_ref().is_some_and(Schedule::has_ranks) {
            let able = self.able();
            if let Some(schedule) = &mut self.schedule {
                schedule.compare(self.now, &able);
            }
        }
        if self.left > 0 && self.runnable(self.turn) {
            return Some(self.turn);
        }
        let cpus = self.activity.len();
        let turn = self.turn;
        let next = (1..=cpus).map(|i| (turn + i) % cpus).find(|&cpu| self.runnable(cpu))?;
        self.turn = next;
        self.left = self.quantum;
        Some(next)
    }

    fn psci(&mut self, cpu: usize) -> Option<Stop> {
        let x = std::array::from_fn(|i| self.cluster.core(cpu).r[i]);
        let cpus = self.activity.len();
        let result = match Call::decode(x) {
            Call::Version => code::VERSION_1_1,
            Call::SmcccVersion => code::SMCCC_1_1,
            Call::MigrateInfoType => code::NO_TRUSTED_OS,
            Call::Features(function) => Call::features(function),
            Call::ArchFeatures(function) => Call::arch_features(function),
            Call::SystemOff => return Some(Stop::PowerOff),
            Call::SystemReset => return Some(Stop::Reset),
            Call::Off => {
                self.activity[cpu] = Activity::Off;
                self.left = 0;
                return None;
            }
            Call::On { target, entry, context } => match psci::target_index(target, cpus) {
                None => code::INVALID_PARAMETERS,
                Some(other) if self.activity[other] != Activity::Off => code::ALREADY_ON,
                Some(_) if self.board.ram.offset(entry, 4).is_none() => code::INVALID_ADDRESS,
                Some(other) => {
                    self.cluster.reset(other, entry, context);
                    self.activity[other] = Activity::Running;
                    code::SUCCESS
                }
            },
            Call::AffinityInfo { target, level } => match psci::target_index(target, cpus) {
                Some(other) if level == 0 => {
                    if self.activity[other] == Activity::Off {
                        code::AFFINITY_OFF
                    } else {
                        code::AFFINITY_ON
                    }
                }
                _ => code::INVALID_PARAMETERS,
            },
            // A power-down request may be treated as standby (DEN 0022 §5.4.5), which keeps the vCPU's state.
            Call::Suspend => {
                self.wait(cpu, Activity::Interrupt);
                code::SUCCESS
            }
            Call::Unknown => code::NOT_SUPPORTED,
        };
        self.cluster.core_mut(cpu).r[0] = result;
        None
    }
}
