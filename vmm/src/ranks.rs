//! An order by priorities: whoever can do something and has the highest rank does it, and everybody else stands still.
//!
//! That is the scheduler of probabilistic concurrency testing (Burckhardt and others, ASPLOS 2010). As with a script, what it
//! did remains as holds, which give the same run without it.

use std::collections::{BTreeMap, BTreeSet};

use devices::Time;

use crate::actor::Actor;

/// Ranks, and where they change. Who has none is never held up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranks {
    of: BTreeMap<Actor, u64>,
    /// By actor: before which of its instructions or steps, and the rank from there on; the earliest last.
    changes: BTreeMap<Actor, Vec<(u64, u64)>>,
    /// Nobody waits longer for others than this, in nanoseconds: they may be waiting for it in a loop.
    longest: u64,
    /// The next rank above all.
    top: u64,
    /// The highest rank of an agent that has a step to do, now or later.
    expected: u64,
    /// Since when vCPUs wait that could run.
    waiting: BTreeMap<usize, Time>,
    /// Those that are to stand still now, since somebody of a higher rank can run or has something to do.
    below: BTreeSet<usize>,
    /// Those that have stood still since they got to where they are.
    stood: BTreeSet<usize>,
}

impl Ranks {
    /// `order` from the lowest on; at each of `changes` (who, and before which instruction or step) somebody falls below all of
    /// them, the first below the second and so on.
    pub fn new(order: &[Actor], changes: &[(Actor, u64)], longest: u64) -> Self {
        let first = changes.len() as u64;
        let of = order.iter().zip(first..).map(|(&who, rank)| (who, rank)).collect();
        let mut by: BTreeMap<Actor, Vec<(u64, u64)>> = BTreeMap::new();
        for (&(who, at), rank) in changes.iter().zip(0..) {
            by.entry(who).or_default().push((at, rank));
        }
        by.values_mut().for_each(|list| list.sort_unstable_by(|a, b| b.cmp(a)));
        let top = first + order.len() as u64;
        Self { of, changes: by, longest, top, ..Self::default() }
    }

    /// The rank of an actor that has got so far.
    pub(crate) fn of(&mut self, who: Actor, progress: u64) -> u64 {
        if let Some(list) = self.changes.get_mut(&who) {
            while let Some((_, rank)) = list.pop_if(|&mut (at, _)| at <= progress) {
                self.of.insert(who, rank);
            }
        }
        self.of.get(&who).copied().unwrap_or(u64::MAX)
    }

    /// These agents, which have got so far, have a step to do: vCPUs of lower ranks leave them the time for it.
    pub(crate) fn expect(&mut self, agents: impl Iterator<Item = (Actor, u64)>) {
        let ranks = agents.map(|(who, step)| self.of(who, step));
        self.expected = ranks.filter(|&rank| rank < u64::MAX).max().unwrap_or(0);
    }

    /// Finds out who is to stand still at `now`: of vCPUs, how far each has got and whether it can run.
    pub(crate) fn compare(&mut self, now: Time, cpus: &[(u64, bool)]) {
        for (cpu, &(_, able)) in cpus.iter().enumerate() {
            self.waits(cpu, able, now);
        }
        let ranks: Vec<u64> =
            cpus.iter().enumerate().map(|(cpu, &(at, _))| self.of(Actor::Cpu(cpu), at)).collect();
        let able = ranks.iter().zip(cpus).filter(|(_, (_, able))| *able).map(|(&rank, _)| rank);
        let highest = able.max().unwrap_or(0).max(self.expected);
        self.below = (0..cpus.len()).filter(|&cpu| ranks[cpu] < highest).collect();
    }

    /// Whether a vCPU is to stand still. That it did is remembered.
    pub(crate) fn stands(&mut self, cpu: usize) -> bool {
        let stands = self.below.contains(&cpu);
        if stands {
            self.stood.insert(cpu);
        }
        stands
    }

    /// Whether a vCPU that need not stand still did so up to now.
    pub(crate) fn goes_on(&mut self, cpu: usize) -> bool {
        self.stood.remove(&cpu)
    }

    /// How many instructions a vCPU that has got so far may run before its rank changes. One that is to stand still and wakes up
    /// executes one: a hold is at an instruction that is reached.
    pub(crate) fn left(&self, cpu: usize, progress: u64) -> u64 {
        if self.below.contains(&cpu) {
            return 1;
        }
        let next = self.changes.get(&Actor::Cpu(cpu)).and_then(|list| list.last());
        next.map_or(u64::MAX, |&(at, _)| at.saturating_sub(progress))
    }

    /// When somebody who waits since then has waited long enough.
    pub(crate) fn patience(&self, since: Time) -> Time {
        since.saturating_add(self.longest)
    }

    /// Where ranks are still to change.
    #[cfg(test)]
    pub(crate) fn changes(&self) -> Vec<(Actor, u64)> {
        self.changes.iter().flat_map(|(&who, list)| list.iter().map(move |&(at, _)| (who, at))).collect()
    }

    /// Takes note of whether a vCPU can run at `now`. One that has waited long enough comes above all others.
    fn waits(&mut self, cpu: usize, able: bool, now: Time) {
        if !able {
            self.waiting.remove(&cpu);
            return;
        }
        let since = *self.waiting.entry(cpu).or_insert(now);
        if self.patience(since) <= now {
            self.waiting.insert(cpu, now);
            self.of.insert(Actor::Cpu(cpu), self.top);
            self.top += 1;
        }
    }

    /// A vCPU runs.
    pub(crate) fn ran(&mut self, cpu: usize) {
        self.waiting.remove(&cpu);
    }

    /// When vCPUs will have waited long enough.
    pub(crate) fn ends(&self) -> impl Iterator<Item = Time> {
        self.waiting.values().map(|&since| self.patience(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_change_where_they_are_told_to() {
        let [a, b, its] = [Actor::Cpu(0), Actor::Cpu(1), Actor::Its];
        let mut ranks = Ranks::new(&[b, its, a], &[(a, 100), (b, 7), (a, 50)], 9);
        assert!(ranks.of(b, 0) < ranks.of(its, 0) && ranks.of(its, 0) < ranks.of(a, 49));
        assert_eq!((ranks.left(0, 20), ranks.left(2, 20)), (30, u64::MAX));
        assert!(ranks.of(a, 50) < ranks.of(b, 6), "it fell below all that have not");
        assert!(ranks.of(b, 7) < ranks.of(a, 99), "the second below the third");
        assert!(ranks.of(a, 100) < ranks.of(b, 8), "the first below all");
        ranks.expect([(its, 0), (Actor::Uart, 0)].into_iter());
        let of_its = ranks.of(its, 0);
        assert_eq!(ranks.expected, of_its, "the UART has none");
        ranks.expect([].into_iter());
        assert_eq!(ranks.expected, 0);
        ranks.waits(1, true, 100);
        ranks.waits(1, true, 108);
        assert_eq!(ranks.ends().collect::<Vec<_>>(), [109]);
        assert!(ranks.of(b, 9) < ranks.of(its, 9));
        ranks.waits(1, true, 109);
        assert!(ranks.of(b, 9) > ranks.of(its, 9), "it has waited long enough");
        ranks.ran(1);
        ranks.waits(0, false, 110);
        assert_eq!(ranks.ends().count(), 0);
        ranks.compare(200, &[(110, true), (9, true)]);
        assert!(ranks.stands(0) && !ranks.stands(1) && ranks.left(0, 110) == 1);
        ranks.compare(201, &[(110, true), (9, false)]);
        assert!(!ranks.stands(0) && ranks.goes_on(0) && !ranks.goes_on(0) && !ranks.goes_on(1));
        assert_eq!(ranks.of(Actor::Uart, 0), u64::MAX, "who has no rank waits for nobody");
        assert_eq!(ranks.patience(4), 13);
    }
}
