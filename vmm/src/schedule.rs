//! A schedule: where a run departs from the default order.
//!
//! The default order of [`crate::machine::Machine::run`] is one of the many that hardware could show. Any other differs from it
//! by somebody being slower somewhere, so a schedule is a list of [`Hold`]s: a vCPU that stands still for a while at one of
//! its instructions, or an agent whose step comes late. A hold is tied to its actor's own progress, not to the clock:
//! taking one out of a schedule leaves the others where they were, which is what shrinking needs.

use std::collections::BTreeMap;

use devices::Time;
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::ranks::Ranks;
use crate::script::{Look, Script, Step};
use crate::survey::{Point, Survey};

/// Somebody is slower than usual, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Who.
    pub who: Actor,
    /// Its progress since the schedule began: before the instruction (vCPU) or the step (agent) of this number, from 0.
    pub at: u64,
    /// For how long, in nanoseconds of virtual time: a vCPU from the moment it got there, an agent from the moment the step
    /// is due.
    pub ns: u64,
}

/// A schedule that a machine follows.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// Holds that are still to come, by actor; the earliest last.
    coming: BTreeMap<Actor, Vec<(u64, u64)>>,
    /// Steps that each agent has done since the beginning.
    steps: BTreeMap<Actor, u64>,
    /// Instructions that each vCPU had retired at the beginning.
    origin: Vec<u64>,
    /// Until when each vCPU stands still.
    held: Vec<Time>,
    /// Virtual time of the beginning.
    begin: Time,
    /// The holds that have begun, in order.
    begun: Vec<Begun>,
    /// Hash of the order of turns, and who took the last one.
    order: u64,
    last: Option<Actor>,
    /// What each actor did, when that is wanted.
    log: Option<Vec<Done>>,
    /// The record tells every jump.
    detailed: bool,
    /// The points at which holding somebody may matter, when they are looked for.
    survey: Option<Survey>,
    /// When each vCPU got to where it is.
    arrived: Vec<Time>,
    /// The order that is said by hand, if one is.
    script: Option<Script>,
    /// The order by priorities, if there is one.
    ranks: Option<Ranks>,
    /// Steps of agents that the script or a rank holds: since when each was due.
    overdue: BTreeMap<Actor, Time>,
}

/// A hold that took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The hold.
    pub hold: Hold,
    /// When it began, in nanoseconds of virtual time.
    pub time: Time,
    /// The instruction that a vCPU stands before.
    pub pc: Option<u64>,
}

/// A step that an agent did, or a stretch that a vCPU ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Who.
    pub who: Actor,
    /// When it began, in nanoseconds of virtual time.
    pub at: Time,
    /// Its progress before: instructions or steps since the schedule began.
    pub from: u64,
    /// How much it did: instructions, or one step.
    pub count: u64,
    /// Where a vCPU began; in a detailed record all of it is straight from there.
    pub pc: Option<u64>,
}

/// One occurrence of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its address.
    pub pc: u64,
    /// Its number among the vCPU's instructions since the schedule began.
    pub at: u64,
}

/// What an actor did in all since the beginning, by which schedules are drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Instructions or steps of each actor.
    pub of: BTreeMap<Actor, u64>,
    /// Where holding a vCPU may matter, by kind, if that was surveyed.
    pub points: Vec<Point>,
    /// Occurrences of each instruction that each vCPU executed, if that was surveyed.
    pub places: BTreeMap<usize, Vec<Place>>,
    /// Virtual nanoseconds since the beginning.
    pub ns: u64,
}

impl Schedule {
    /// A schedule that begins now: at virtual time `now`, with what each vCPU has retired so far. Of several holds of one
    /// actor at one point, the longest counts.
    pub fn new(holds: &[Hold], now: Time, retired: Vec<u64>) -> Self {
        let mut coming: BTreeMap<Actor, Vec<(u64, u64)>> = BTreeMap::new();
        for hold in holds {
            coming.entry(hold.who).or_default().push((hold.at, hold.ns));
        }
        for list in coming.values_mut() {
            list.sort_unstable_by(|a, b| b.cmp(a));
            // The longest of several comes first among equals here.
            list.dedup_by_key(|(at, _)| *at);
        }
        let held = vec![0; retired.len()];
        let arrived = vec![now; retired.len()];
        Self {
            coming,
            steps: BTreeMap::new(),
            origin: retired,
            held,
            begin: now,
            begun: Vec::new(),
            order: 0,
            last: None,
            log: None,
            detailed: false,
            survey: None,
            arrived,
            script: None,
            ranks: None,
            overdue: BTreeMap::new(),
        }
    }

    /// Keeps a record of everything that is done from now on, every jump of a vCPU included. That is slow.
    pub fn keep_log(&mut self) {
        self.log = Some(Vec::new());
        self.detailed = true;
    }

    /// Looks for points at which holding somebody may matter.
    pub fn keep_survey(&mut self) {
        self.survey = Some(Survey::default());
    }

    /// Follows a script from here on.
    pub fn keep_to(&mut self, steps: Vec<Step>) {
        self.script = Some(Script::new(steps, self.begin));
    }

    /// Goes by these priorities from here on.
    pub fn keep_ranks(&mut self, ranks: Ranks) {
        self.ranks = Some(ranks);
    }

    /// Whether it goes by priorities.
    pub(crate) fn has_ranks(&self) -> bool {
        self.ranks.is_some()
    }

    /// Compares the ranks of vCPUs, given what each has retired and whether it can run, and of agents that have something to do.
    pub(crate) fn compare(&mut self, now: Time, cpus: &[(u64, bool)]) {
        let Some(ranks) = &mut self.ranks else { return };
        let cpus: Vec<_> =
            cpus.iter().zip(&self.origin).map(|(&(all, able), from)| (all - from, able)).collect();
        ranks.compare(now, &cpus);
    }

    /// A vCPU's progress.
    pub(crate) fn since_begin(&self, cpu: usize, retired: u64) -> u64 {
        retired - self.origin[cpu]
    }

    /// The script.
    pub fn script(&self) -> Option<&Script> {
        self.script.as_ref()
    }

    /// Lets the script go on if what it waits for has happened.
    pub(crate) fn consult(&mut self, now: Time, cpus: &[Look]) {
        let Some(script) = &mut self.script else { return };
        let mut progress = self.steps.clone();
        progress.extend(cpus.iter().enumerate().map(|(cpu, look)| (Actor::Cpu(cpu), look.at)));
        loop {
            let held: Vec<bool> = (0..cpus.len()).map(|cpu| script.holds(Actor::Cpu(cpu))).collect();
            if !script.advance(now, cpus, &progress) {
                return;
            }
            for (cpu, look) in cpus.iter().enumerate() {
                let who = Actor::Cpu(cpu);
                if held[cpu] && !script.holds(who) {
                    let time = self.arrived[cpu];
                    let hold = Hold { who, at: look.at, ns: now - time };
                    self.begun.push(Begun { hold, time, pc: Some(look.pc) });
                }
            }
            let released = self.overdue.extract_if(.., |who, _| !script.holds(*who));
            for (who, time) in released {
                let at = self.steps.get(&who).copied().unwrap_or(0);
                self.begun.push(Begun { hold: Hold { who, at, ns: now - time }, time, pc: None });
            }
        }
    }

    /// Whether points are looked for.
    pub(crate) fn surveys(&self) -> bool {
        self.survey.is_some()
    }

    /// A point was reached; its number counts from power-on.
    pub(crate) fn reached(&mut self, point: Point) {
        if let Some(survey) = &mut self.survey {
            survey.reached(Point { at: point.at - self.origin[point.cpu], ..point });
        }
    }

    /// The holds that have begun so far.
    pub fn begun(&self) -> &[Begun] {
        &self.begun
    }

    /// Hash of the order in which actors took turns, however long each was.
    pub fn order(&self) -> u64 {
        self.order
    }

    fn turn(&mut self, who: Actor) {
        if self.last != Some(who) || !matches!(who, Actor::Cpu(_)) {
            self.order = (self.order.rotate_left(5) ^ who.code()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.last = Some(who);
        }
    }

    /// The record so far.
    pub fn log(&self) -> &[Done] {
        self.log.as_deref().unwrap_or_default()
    }

    /// How far everybody got, given virtual time and what each vCPU has retired.
    pub fn progress(&self, now: Time, retired: &[u64]) -> Progress {
        let mut of = self.steps.clone();
        let (points, places) = self.survey.as_ref().map(|s| (s.points(), s.places())).unwrap_or_default();
        for (cpu, (all, before)) in retired.iter().zip(&self.origin).enumerate() {
            of.insert(Actor::Cpu(cpu), all - before);
        }
        Progress { of, points, places, ns: now - self.begin }
    }

    /// Takes note of when agents will do a step.
    pub(crate) fn expect(&mut self, agents: &[(Actor, Time)]) {
        let Some(ranks) = &mut self.ranks else { return };
        let steps = &self.steps;
        let coming = agents.iter().filter(|(_, due)| *due < Time::MAX);
        ranks.expect(coming.map(|(who, _)| (*who, steps.get(who).copied().unwrap_or(0))));
    }

    /// The highest rank of a vCPU that can run; `None` when there are no ranks or none can.
    pub(crate) fn highest(&mut self, cpus: &[(u64, bool)]) -> Option<u64> {
        let ranks = self.ranks.as_mut()?;
        let able = cpus.iter().enumerate().filter(|(_, (_, able))| *able);
        able.map(|(cpu, (retired, _))| ranks.of(Actor::Cpu(cpu), retired - self.origin[cpu])).max()
    }

    /// When an agent's step that is due at `due` happens, given that a vCPU of rank `above` can run at `now`.
    pub(crate) fn delayed(&mut self, who: Actor, due: Time, now: Time, above: Option<u64>) -> Time {
        if let Some(ranks) = &mut self.ranks {
            let step = self.steps.get(&who).copied().unwrap_or(0);
            if due > now || above.is_none_or(|above| ranks.of(who, step) >= above) {
                return due;
            }
            return ranks.patience(*self.overdue.entry(who).or_insert(due));
        }
        if self.script.as_ref().is_some_and(|script| script.holds(who)) {
            self.overdue.entry(who).or_insert(due);
            return Time::MAX;
        }
        let step = self.steps.get(&who).copied().unwrap_or(0);
        match self.coming.get(&who).and_then(|list| list.last()) {
            Some(&(at, ns)) if at == step => due.saturating_add(ns),
            _ => due,
        }
    }

    /// An agent did a step.
    pub(crate) fn stepped(&mut self, who: Actor, now: Time) {
        self.turn(who);
        let steps = self.steps.entry(who).or_default();
        let from = *steps;
        *steps += 1;
        if self.ranks.is_some()
            && let Some(time) = self.overdue.remove(&who).filter(|&time| time < now)
        {
            self.begun.push(Begun { hold: Hold { who, at: from, ns: now - time }, time, pc: None });
        }
        if let Some(list) = self.coming.get_mut(&who) {
            while let Some((at, ns)) = list.pop_if(|&mut (at, _)| at <= from) {
                self.begun.push(Begun { hold: Hold { who, at, ns }, time: now.saturating_sub(ns), pc: None });
            }
        }
        if let Some(log) = &mut self.log {
            log.push(Done { who, at: now, from, count: 1, pc: None });
        }
    }

    /// Whether a vCPU that has retired so many instructions may run at `now`. A hold that begins here begins.
    pub(crate) fn may_run(&mut self, cpu: usize, pc: u64, retired: u64, now: Time) -> bool {
        let progress = retired - self.origin[cpu];
        let who = Actor::Cpu(cpu);
        if self.script.as_ref().is_some_and(|script| script.holds(who)) {
            return false;
        }
        let arrived = self.arrived[cpu];
        if let Some(ranks) = &mut self.ranks {
            if ranks.stands(cpu) {
                return false;
            }
            if ranks.goes_on(cpu) {
                let hold = Hold { who, at: progress, ns: now - arrived };
                self.begun.push(Begun { hold, time: arrived, pc: Some(pc) });
            }
        }
        if let Some(list) = self.coming.get_mut(&who) {
            while let Some((at, ns)) = list.pop_if(|&mut (at, _)| at <= progress) {
                self.held[cpu] = self.held[cpu].max(arrived.saturating_add(ns));
                self.begun.push(Begun { hold: Hold { who, at, ns }, time: arrived, pc: Some(pc) });
            }
        }
        self.held[cpu] <= now
    }

    /// Until when a vCPU's last hold lasts, if it had one.
    pub fn held_until(&self, cpu: usize) -> Option<Time> {
        self.held.get(cpu).copied().filter(|&until| until > 0)
    }

    /// Instructions that a vCPU has left to its next hold.
    pub(crate) fn left(&self, cpu: usize, retired: u64) -> u64 {
        let next = self.coming.get(&Actor::Cpu(cpu)).and_then(|list| list.last());
        let progress = retired - self.origin[cpu];
        let change = self.ranks.as_ref().map_or(u64::MAX, |ranks| ranks.left(cpu, progress));
        next.map_or(u64::MAX, |&(at, _)| at.saturating_sub(progress)).min(change)
    }

    /// How many instructions may run at once from here; the next one is at `pc`, and `word` fetches it.
    pub(crate) fn stretch(
        &mut self,
        cpu: usize,
        pc: u64,
        retired: u64,
        word: impl FnOnce() -> Option<u32>,
    ) -> u64 {
        if self.detailed {
            return 1;
        }
        if let Some(script) = &self.script {
            return script.patience(cpu, retired - self.origin[cpu]).0;
        }
        let Some(survey) = self.survey.as_mut().filter(|survey| survey.in_detail()) else { return u64::MAX };
        survey.executed(cpu, pc, retired - self.origin[cpu], word);
        1
    }

    /// The address at which a vCPU has to be looked at.
    pub(crate) fn looks_at(&self, cpu: usize, retired: u64) -> Option<u64> {
        self.script.as_ref()?.patience(cpu, retired - self.origin[cpu]).1
    }

    /// A vCPU ran from virtual time `now`, at so many retired instructions, for `count` of them.
    pub(crate) fn ran(&mut self, cpu: usize, now: Time, retired: u64, count: u64, pc: u64) {
        self.turn(Actor::Cpu(cpu));
        if let Some(ranks) = &mut self.ranks {
            ranks.ran(cpu);
        }
        self.arrived[cpu] = now + count;
        let Some(log) = &mut self.log else { return };
        let done =
            Done { who: Actor::Cpu(cpu), at: now, from: retired - self.origin[cpu], count, pc: Some(pc) };
        match log.last_mut() {
            Some(last)
                if last.who == done.who
                    && last.at + last.count == now
                    && last.pc.is_some_and(|start| start.wrapping_add(4 * last.count) == pc) =>
            {
                last.count += count;
            }
            _ => log.push(done),
        }
    }

    /// The first moment after `now` at which a vCPU's hold ends.
    pub(crate) fn release(&self, now: Time) -> Option<Time> {
        let script = self.script.as_ref().and_then(Script::ends);
        let waits = self.ranks.iter().flat_map(Ranks::ends);
        self.held.iter().copied().chain(script).chain(waits).filter(|&t| t > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Actor = Actor::Cpu(0);

    #[test]
    fn a_vcpu_stands_still_at_its_instruction_for_so_long() {
        let holds = [Hold { who: CPU, at: 10, ns: 500 }, Hold { who: CPU, at: 10, ns: 70 }];
        let mut s = Schedule::new(&holds, 1000, vec![100]);
        assert!(s.may_run(0, 0, 100, 1000));
        assert_eq!(s.left(0, 100), 10);
        s.ran(0, 1000, 100, 10, 0x18);
        assert!(!s.may_run(0, 0x40, 110, 1010));
        assert_eq!(s.release(1010), Some(1510));
        assert!(!s.may_run(0, 0x40, 110, 1509));
        assert!(s.may_run(0, 0x40, 110, 1510));
        let begun: Vec<_> = s.begun().iter().map(|b| (b.hold.ns, b.time, b.pc)).collect();
        assert_eq!(begun, [(500, 1010, Some(0x40))]);
        assert_eq!((s.left(0, 110), s.release(1510)), (u64::MAX, None));
    }

    #[test]
    fn only_the_step_with_the_number_is_late() {
        let mut s = Schedule::new(&[Hold { who: Actor::Its, at: 1, ns: 9 }], 0, vec![]);
        let mut times = Vec::new();
        for due in [10, 20, 30] {
            times.push(s.delayed(Actor::Its, due, due, None));
            s.stepped(Actor::Its, due);
        }
        assert_eq!(times, [10, 29, 30]);
        assert_eq!(s.progress(40, &[]).of[&Actor::Its], 3);
    }
}
