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

/// Somebody is slower than usual, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Who.
    pub who: Actor,
    /// Its progress since the schedule began: before the instruction (vCPU) or the step (agent) of this number, from 0.
    pub at: u64,
    /// For how long, in nanoseconds of virtual time: a vCPU from the moment it gets there, an agent from the moment the step
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
    /// What each actor did, when that is wanted.
    log: Option<Vec<Done>>,
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
}

/// What an actor did in all since the beginning, by which schedules are drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Instructions or steps of each actor.
    pub of: BTreeMap<Actor, u64>,
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
        Self { coming, steps: BTreeMap::new(), origin: retired, held, begin: now, log: None }
    }

    /// Keeps a record of everything that is done from now on.
    pub fn keep_log(&mut self) {
        self.log = Some(Vec::new());
    }

    /// The record so far.
    pub fn log(&self) -> &[Done] {
        self.log.as_deref().unwrap_or_default()
    }

    /// How far everybody got, given virtual time and what each vCPU has retired.
    pub fn progress(&self, now: Time, retired: &[u64]) -> Progress {
        let mut of = self.steps.clone();
        for (cpu, (all, before)) in retired.iter().zip(&self.origin).enumerate() {
            of.insert(Actor::Cpu(cpu), all - before);
        }
        Progress { of, ns: now - self.begin }
    }

    /// When an agent's step that is due at `due` happens.
    pub(crate) fn delayed(&self, who: Actor, due: Time) -> Time {
        let step = self.steps.get(&who).copied().unwrap_or(0);
        match self.coming.get(&who).and_then(|list| list.last()) {
            Some(&(at, ns)) if at == step => due.saturating_add(ns),
            _ => due,
        }
    }

    /// An agent did a step.
    pub(crate) fn stepped(&mut self, who: Actor, now: Time) {
        let steps = self.steps.entry(who).or_default();
        let from = *steps;
        *steps += 1;
        if let Some(list) = self.coming.get_mut(&who) {
            while list.last().is_some_and(|&(at, _)| at <= from) {
                list.pop();
            }
        }
        if let Some(log) = &mut self.log {
            log.push(Done { who, at: now, from, count: 1 });
        }
    }

    /// Whether a vCPU that has retired so many instructions may run at `now`. A hold that begins here begins.
    pub(crate) fn may_run(&mut self, cpu: usize, retired: u64, now: Time) -> bool {
        let progress = retired - self.origin[cpu];
        if let Some(list) = self.coming.get_mut(&Actor::Cpu(cpu)) {
            while let Some(&(at, ns)) = list.last()
                && at <= progress
            {
                self.held[cpu] = self.held[cpu].max(now.saturating_add(ns));
                list.pop();
            }
        }
        self.held[cpu] <= now
    }

    /// Instructions that a vCPU has left to its next hold.
    pub(crate) fn left(&self, cpu: usize, retired: u64) -> u64 {
        let next = self.coming.get(&Actor::Cpu(cpu)).and_then(|list| list.last());
        next.map_or(u64::MAX, |&(at, _)| at.saturating_sub(retired - self.origin[cpu]))
    }

    /// A vCPU ran from virtual time `now`, at so many retired instructions, for `count` of them.
    pub(crate) fn ran(&mut self, cpu: usize, now: Time, retired: u64, count: u64) {
        if let Some(log) = &mut self.log {
            log.push(Done { who: Actor::Cpu(cpu), at: now, from: retired - self.origin[cpu], count });
        }
    }

    /// The first moment after `now` at which a vCPU's hold ends.
    pub(crate) fn release(&self, now: Time) -> Option<Time> {
        self.held.iter().copied().filter(|&t| t > now).min()
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
        assert!(s.may_run(0, 100, 1000));
        assert_eq!(s.left(0, 100), 10);
        assert!(!s.may_run(0, 110, 1010));
        assert_eq!(s.release(1010), Some(1510));
        assert!(!s.may_run(0, 110, 1509));
        assert!(s.may_run(0, 110, 1510));
        assert_eq!((s.left(0, 110), s.release(1510)), (u64::MAX, None));
    }

    #[test]
    fn only_the_step_with_the_number_is_late() {
        let mut s = Schedule::new(&[Hold { who: Actor::Its, at: 1, ns: 9 }], 0, vec![]);
        let mut times = Vec::new();
        for due in [10, 20, 30] {
            times.push(s.delayed(Actor::Its, due));
            s.stepped(Actor::Its, due);
        }
        assert_eq!(times, [10, 29, 30]);
        assert_eq!(s.progress(40, &[]).of[&Actor::Its], 3);
    }
}
