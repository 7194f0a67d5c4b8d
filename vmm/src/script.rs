//! An order of steps said by hand: who stands still until what has happened, then who until what, and so on.
//!
//! While a script runs it finds out how long each hold lasts, so what remains of it is a list of [`crate::schedule::Hold`]s
//! like any other schedule's, which replays the same run without the script.

use std::collections::BTreeMap;

use devices::Time;

use crate::actor::Actor;

/// What ends a step of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// A vCPU is about to execute the instruction at an address, for the n-th time in this step (from 1).
    Reaches {
        /// Which vCPU.
        cpu: usize,
        /// The address.
        pc: u64,
        /// Which time counts.
        times: u64,
    },
    /// A vCPU enters the function at an address, and returns from it.
    Leaves {
        /// Which vCPU.
        cpu: usize,
        /// The function's address.
        pc: u64,
    },
    /// An actor has done so many steps or instructions more.
    Does {
        /// Who.
        who: Actor,
        /// How many.
        count: u64,
    },
    /// So much virtual time has passed.
    Passes(u64),
}

/// One step of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who stands still.
    pub hold: Vec<Actor>,
    /// Until what.
    pub until: Until,
}

/// A vCPU as a script looks at it, before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The instruction's address.
    pub pc: u64,
    /// X30, where it will return to.
    pub lr: u64,
    /// The stack pointer.
    pub sp: u64,
    /// How many instructions it has executed since the beginning.
    pub at: u64,
}

/// A script under way.
#[derive(Clone, Debug)]
pub struct Script {
    steps: Vec<Step>,
    current: usize,
    since: Since,
}

/// What has been seen since the current step began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Since {
    time: Time,
    progress: BTreeMap<Actor, u64>,
    /// How often the address was reached, and before which of the vCPU's instructions last.
    reached: (u64, Option<u64>),
    /// Return address and stack pointer of the function that is to be left.
    inside: Option<(u64, u64)>,
}

impl Script {
    /// A script that begins at virtual time `now`, before anybody has done anything.
    pub fn new(steps: Vec<Step>, now: Time) -> Self {
        Self { steps, current: 0, since: Since::new(now) }
    }

    /// Whom the current step holds.
    pub fn holds(&self, who: Actor) -> bool {
        self.steps.get(self.current).is_some_and(|step| step.hold.contains(&who))
    }

    /// The number of the step that goes on (from 1), unless all are over.
    pub fn step(&self) -> Option<usize> {
        (self.current < self.steps.len()).then_some(self.current + 1)
    }

    /// When the current step ends by itself.
    pub fn ends(&self) -> Option<Time> {
        match self.steps.get(self.current)?.until {
            Until::Passes(ns) => Some(self.since.time.saturating_add(ns)),
            _ => None,
        }
    }

    /// How many instructions a vCPU may run before the current step looks at it again, and at which address it has to look
    /// even before.
    pub fn patience(&self, cpu: usize, at: u64) -> (u64, Option<u64>) {
        match self.steps.get(self.current).map(|step| step.until) {
            Some(Until::Reaches { cpu: who, pc, .. }) if who == cpu => (u64::MAX, Some(pc)),
            Some(Until::Leaves { cpu: who, pc }) if who == cpu => {
                (u64::MAX, Some(self.since.inside.map_or(pc, |(back, _)| back)))
            }
            Some(Until::Does { who, count }) if who == Actor::Cpu(cpu) => {
                let done = at - self.since.progress.get(&who).copied().unwrap_or(0).min(at);
                (count.saturating_sub(done).max(1), None)
            }
            _ => (u64::MAX, None),
        }
    }

    /// Goes on to the next step if what the current one waits for has happened. Whether it did.
    pub fn advance(&mut self, now: Time, cpus: &[Look], progress: &BTreeMap<Actor, u64>) -> bool {
        let Some(step) = self.steps.get(self.current) else { return false };
        if !self.since.over(step.until, now, cpus, progress) {
            return false;
        }
        self.current += 1;
        self.since = Since { time: now, progress: progress.clone(), ..Since::default() };
        true
    }
}

impl Since {
    /// Nothing yet, at virtual time `time`.
    pub(crate) fn new(time: Time) -> Self {
        Self { time, ..Self::default() }
    }

    /// Whether what is waited for has happened.
    pub(crate) fn over(
        &mut self,
        until: Until,
        now: Time,
        cpus: &[Look],
        progress: &BTreeMap<Actor, u64>,
    ) -> bool {
        match until {
            Until::Passes(ns) => now >= self.time.saturating_add(ns),
            Until::Does { who, count } => {
                let so_far = |map: &BTreeMap<Actor, u64>| map.get(&who).copied().unwrap_or(0);
                so_far(progress) - so_far(&self.progress) >= count
            }
            Until::Reaches { cpu, pc, times } => {
                let Some(look) = cpus.get(cpu) else { return false };
                let (seen, last) = self.reached;
                if look.pc == pc && last != Some(look.at) {
                    self.reached = (seen + 1, Some(look.at));
                }
                self.reached.0 >= times
            }
            Until::Leaves { cpu, pc } => {
                let Some(look) = cpus.get(cpu) else { return false };
                if look.pc == pc && self.inside.is_none() {
                    self.inside = Some((look.lr, look.sp));
                }
                self.inside == Some((look.pc, look.sp))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Actor = Actor::Cpu(0);

    #[test]
    fn each_step_waits_for_its_own() {
        let steps = vec![
            Step { hold: vec![], until: Until::Reaches { cpu: 0, pc: 0x40, times: 2 } },
            Step { hold: vec![CPU], until: Until::Does { who: Actor::Its, count: 2 } },
            Step { hold: vec![Actor::Its], until: Until::Leaves { cpu: 0, pc: 0x80 } },
            Step { hold: vec![], until: Until::Passes(10) },
        ];
        let mut script = Script::new(steps, 0);
        let mut its = BTreeMap::new();
        let look = |pc, lr, sp, at| [Look { pc, lr, sp, at }];
        assert_eq!(
            (script.patience(0, 0), script.patience(1, 0)),
            ((u64::MAX, Some(0x40)), (u64::MAX, None))
        );
        assert!(!script.advance(1, &look(0x40, 0, 0, 1), &its));
        assert!(!script.advance(1, &look(0x40, 0, 0, 1), &its), "the same arrival counts once");
        assert!(script.advance(9, &look(0x40, 0, 0, 9), &its));
        assert!(script.holds(CPU));
        its.insert(Actor::Its, 1);
        assert!(!script.advance(9, &look(0x40, 0, 0, 9), &its));
        its.insert(Actor::Its, 2);
        assert!(script.advance(9, &look(0x40, 0, 0, 9), &its));
        assert!(!script.holds(CPU) && script.holds(Actor::Its));
        assert_eq!(script.patience(0, 9), (u64::MAX, Some(0x80)));
        assert!(!script.advance(10, &look(0x80, 0x44, 100, 10), &its));
        assert_eq!(script.patience(0, 10), (u64::MAX, Some(0x44)));
        assert!(!script.advance(11, &look(0x44, 0x44, 50, 11), &its), "a deeper call returns there too");
        assert!(script.advance(12, &look(0x44, 0x44, 100, 12), &its));
        assert_eq!((script.step(), script.ends()), (Some(4), Some(22)));
        assert!(script.advance(22, &look(0, 0, 0, 20), &its));
        assert_eq!(script.step(), None);
        assert_eq!(script.patience(0, 20), (u64::MAX, None), "there is nothing to look at any more");
    }

    #[test]
    fn instructions_that_are_counted_are_run_at_once() {
        let step = |count| Step { hold: vec![], until: Until::Does { who: CPU, count } };
        let mut script = Script::new(vec![step(5), step(100)], 0);
        let at = |at| ([Look { pc: 0, lr: 0, sp: 0, at }], BTreeMap::from([(CPU, at)]));
        assert_eq!(script.patience(0, 2), (3, None));
        let (look, progress) = at(5);
        assert!(script.advance(5, &look, &progress));
        assert_eq!(script.patience(0, 30), (75, None));
    }
}
