//! Which schedules are tried: each is drawn from the search's seed and its own number alone.

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::ranks::Ranks;
use crate::schedule::{Hold, Progress};
use crate::survey::{Kind, Point};

/// How schedules are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The default order, always
    Fixed,
    /// Up to eight holds anywhere, each of any length
    Random,
    /// As random at first, then changes of the schedules that showed new orders of conflicting accesses
    Guided,
    /// As few holds as the depth says, each until everybody else is done
    Few,
    /// Probabilistic concurrency testing: by priorities, of which one less than the depth changes
    Pct,
    /// The order that the scenario's script says
    Script,
    /// Every single hold at a decision point or an agent's step, then every pair of them
    Bounded,
}

impl Policy {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }
}

/// The most holds of a random schedule.
const RANDOM_HOLDS: u64 = 8;
/// The shortest hold, in nanoseconds.
const SHORTEST: u64 = 100;
/// How far from a device access a hold near it may be, in instructions.
const NEAR: u64 = 64;
/// What was found by the schedules of the last so many numbers takes no part in a choice: they may still be running.
pub const LAG: u64 = 16;
/// Of so many schedules that bring something new, the ones with the most are changed further.
const CORPUS: usize = 64;

/// A search's choice of schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// How.
    pub policy: Policy,
    /// Depth of bugs that `pct` and `few` look for: one more than the changes of ranks, and than the holds.
    pub depth: u32,
    /// Seeds all of them.
    pub seed: u64,
}

/// A schedule that showed something new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lead {
    /// Its number.
    pub number: u64,
    /// Its holds.
    pub holds: Vec<Hold>,
    /// How many behaviours no schedule before it had shown.
    pub new: usize,
}

impl Choice {
    fn dice(&self, number: u64) -> Xoshiro256PlusPlus {
        Xoshiro256PlusPlus::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// By which priorities `pct` runs schedule `number`; `None` under the other policies.
    ///
    /// All actors begin in any order, each of which is as likely. Then there is one change less than the depth, each at one of
    /// the steps that the survey knows of, which are as likely too: before or behind a decision point, or before a step of an
    /// agent. A bug of depth d among n actors and k such steps is found with a probability of at least 1/(n k^(d-1)), as far as
    /// the survey is complete and nobody waits in a loop.
    pub fn ranks(&self, number: u64, progress: &Progress) -> Option<Ranks> {
        if self.policy != Policy::Pct {
            return None;
        }
        let mut rng = self.dice(number);
        let cpus = progress.points.iter().map(|point| point.cpu).chain(progress.places.keys().copied());
        let mut order: BTreeSet<Actor> = cpus.map(Actor::Cpu).collect();
        order.extend(progress.of.keys());
        let mut order: Vec<Actor> = order.into_iter().collect();
        order.shuffle(&mut rng);
        // A point may be there for several reasons.
        let points: BTreeSet<(usize, u64)> =
            progress.points.iter().map(|point| (point.cpu, point.at)).collect();
        let points: Vec<(usize, u64)> = points.into_iter().collect();
        let agents = || progress.of.iter().filter(|(who, _)| !matches!(who, Actor::Cpu(_)));
        let steps: u64 = agents().map(|(_, n)| n).sum();
        let changes = (1..self.depth.max(2)).filter_map(|_| {
            let index = pick(&mut rng, points.len() as u64 + steps)?;
            match points.get(index as usize) {
                Some(&(cpu, at)) => Some((Actor::Cpu(cpu), at + u64::from(rng.random_bool(0.5)))),
                None => {
                    let mut index = index - points.len() as u64;
                    agents().find_map(|(&who, &n)| {
                        let here = (index < n).then_some((who, index));
                        index = index.saturating_sub(n);
                        here
                    })
                }
            }
        });
        let changes: Vec<_> = changes.collect();
        Some(Ranks::new(&order, &changes, progress.ns.max(2 * SHORTEST)))
    }

    /// Schedule `number` of a scenario that, in the default order, makes this progress, when the schedules before it showed
    /// this. `None`: there are no more.
    ///
    /// Leads of the last [`LAG`] numbers are passed over, so that the choice does not depend on how many run at a time.
    pub fn draw(&self, number: u64, progress: &Progress, leads: &[Lead]) -> Option<Vec<Hold>> {
        let mut rng = self.dice(number);
        let longest = progress.ns.max(2 * SHORTEST);
        match self.policy {
            // A script is no choice.
            Policy::Script => None,
            Policy::Fixed => (number == 0).then(Vec::new),
            Policy::Random => random(&mut rng, progress, longest),
            Policy::Guided => {
                let old = &leads[..leads.partition_point(|lead| lead.number + LAG <= number)];
                match best(&mut rng, old) {
                    Some(lead) if rng.random_bool(0.6) => changed(&mut rng, lead, progress, longest),
                    _ => random(&mut rng, progress, longest),
                }
            }
            Policy::Few => {
                let mut holds = Vec::new();
                // Who goes first: any vCPU may begin last.
                let cpus: Vec<Actor> =
                    progress.of.keys().copied().filter(|a| matches!(a, Actor::Cpu(_))).collect();
                if cpus.len() > 1 && rng.random_bool(0.5) {
                    let who = cpus[rng.random_range(0..cpus.len())];
                    holds.push(Hold { who, at: 0, ns: longest });
                }
                for _ in 1..self.depth.max(2) {
                    let (who, at) = point(&mut rng, progress)?;
                    holds.push(Hold { who, at, ns: longest });
                }
                Some(holds)
            }
            // It has no holds before it has run: see `Choice::ranks`.
            Policy::Pct => Some(Vec::new()),
            Policy::Bounded => bounded(number, progress, longest),
        }
    }
}

/// Up to eight holds anywhere.
fn random(rng: &mut impl Rng, progress: &Progress, longest: u64) -> Option<Vec<Hold>> {
    let count = rng.random_range(1..=RANDOM_HOLDS);
    (0..count).map(|_| hold(rng, progress, longest)).collect()
}

fn hold(rng: &mut impl Rng, progress: &Progress, longest: u64) -> Option<Hold> {
    let (who, at) = point(rng, progress)?;
    Some(Hold { who, at, ns: log_uniform(rng, SHORTEST, longest) })
}

/// One of the leads with the most news, the more the likelier; of as many, the newer ones.
fn best<'a>(rng: &mut impl Rng, leads: &'a [Lead]) -> Option<&'a Lead> {
    let mut order: Vec<&Lead> = leads.iter().collect();
    order.sort_by_key(|lead| std::cmp::Reverse((lead.new, lead.number)));
    order.truncate(CORPUS);
    let weight = |lead: &Lead| 1 + (lead.new as u64).min(16);
    let mut at = pick(rng, order.iter().map(|lead| weight(lead)).sum())?;
    order.into_iter().find(|lead| {
        let here = at < weight(lead);
        at = at.saturating_sub(weight(lead));
        here
    })
}

/// A lead with one to three changes: a hold more, one less, one that is longer or shorter or somewhere near.
fn changed(rng: &mut impl Rng, lead: &Lead, progress: &Progress, longest: u64) -> Option<Vec<Hold>> {
    let mut holds = lead.holds.clone();
    for _ in 0..rng.random_range(1..=3) {
        let index = pick(rng, holds.len() as u64).map(|index| index as usize);
        match (rng.random_range(0..10), index) {
            (0..2, Some(index)) if holds.len() > 1 => drop(holds.remove(index)),
            (2..4, Some(index)) => holds[index].ns = log_uniform(rng, SHORTEST, longest),
            (4..6, Some(index)) => holds[index].at = near(rng, holds[index].at),
            (6..7, Some(index)) => holds[index] = hold(rng, progress, longest)?,
            (_, Some(index)) if holds.len() as u64 >= RANDOM_HOLDS => {
                holds[index] = hold(rng, progress, longest)?;
            }
            _ => holds.push(hold(rng, progress, longest)?),
        }
    }
    Some(holds)
}

/// A number between two, whose logarithm is evenly distributed.
fn log_uniform(rng: &mut impl Rng, low: u64, high: u64) -> u64 {
    let octave = rng.random_range(low.ilog2()..=high.ilog2());
    rng.random_range(1u64 << octave..=(1u64 << octave) * 2 - 1).clamp(low, high)
}

/// A point to hold somebody at. Of twelve, three are near a vCPU's access to a device, three a step of an agent, three another
/// decision point, all kinds of which are as likely, two a place in the code, each as likely as any other however often it is
/// executed, and one is any instruction; where one kind is missing, any instruction stands in.
fn point(rng: &mut impl Rng, progress: &Progress) -> Option<(Actor, u64)> {
    let place = |rng: &mut _| one_of(rng, &progress.places).map(|(cpu, place)| (Actor::Cpu(cpu), place.at));
    let agent = |rng: &mut _| any(rng, progress, |who| !matches!(who, Actor::Cpu(_)));
    let found = match rng.random_range(0..12) {
        0..3 => {
            let device = one_point(rng, of_kind(&progress.points, Kind::Device));
            device.map(|point| (Actor::Cpu(point.cpu), near(rng, point.at)))
        }
        3..6 => agent(rng),
        6..9 => {
            let kinds: Vec<_> = Kind::ALL[1..].iter().map(|&kind| of_kind(&progress.points, kind)).collect();
            let kinds: Vec<_> = kinds.into_iter().filter(|points| !points.is_empty()).collect();
            let kind = pick(rng, kinds.len() as u64).and_then(|index| kinds.get(index as usize).copied());
            kind.and_then(|points| around_one(rng, points))
        }
        9..11 => place(rng),
        _ => None,
    };
    found
        .or_else(|| any(rng, progress, |who| matches!(who, Actor::Cpu(_))))
        .or_else(|| place(rng))
        .or_else(|| around_one(rng, &progress.points))
        .or_else(|| agent(rng))
}

/// The points of one kind, which are together.
fn of_kind(points: &[Point], kind: Kind) -> &[Point] {
    let first = points.partition_point(|point| point.kind < kind);
    let end = points.partition_point(|point| point.kind <= kind);
    &points[first..end]
}

fn one_point(rng: &mut impl Rng, points: &[Point]) -> Option<Point> {
    pick(rng, points.len() as u64).and_then(|index| points.get(index as usize).copied())
}

/// Before one of the points, or right behind it.
fn around_one(rng: &mut impl Rng, points: &[Point]) -> Option<(Actor, u64)> {
    let point = one_point(rng, points)?;
    Some((Actor::Cpu(point.cpu), point.at + u64::from(rng.random_bool(0.5))))
}

/// One of all vCPUs' places.
fn one_of<T: Copy>(rng: &mut impl Rng, places: &BTreeMap<usize, Vec<T>>) -> Option<(usize, T)> {
    let mut index = pick(rng, places.values().map(|list| list.len() as u64).sum())?;
    places.iter().find_map(|(&cpu, list)| {
        let here = list.get(index as usize);
        index = index.saturating_sub(list.len() as u64);
        here.map(|&at| (cpu, at))
    })
}

/// Any step or instruction of the actors that `which` takes.
fn any(rng: &mut impl Rng, progress: &Progress, which: impl Fn(&Actor) -> bool) -> Option<(Actor, u64)> {
    let group = || progress.of.iter().filter(|(who, _)| which(who));
    let mut at = pick(rng, group().map(|(_, n)| n).sum())?;
    group().find_map(|(&who, &n)| {
        let here = (at < n).then_some((who, at));
        at = at.saturating_sub(n);
        here
    })
}

fn pick(rng: &mut impl Rng, total: u64) -> Option<u64> {
    (total > 0).then(|| rng.random_range(0..total))
}

/// Somewhere near an instruction: behind it or before it, and the nearer the likelier.
fn near(rng: &mut impl Rng, at: u64) -> u64 {
    let distance = log_uniform(rng, 1, NEAR);
    if rng.random_bool(0.7) { at + distance } else { (at + 1).saturating_sub(distance) }
}

/// Single holds first, then pairs: before and behind each access to a device, before each step of an agent, before and
/// behind all other decision points.
fn bounded(number: u64, progress: &Progress, longest: u64) -> Option<Vec<Hold>> {
    let mut points = Vec::new();
    let mut seen = BTreeSet::new();
    let (devices, others) =
        progress.points.split_at(progress.points.partition_point(|point| point.kind == Kind::Device));
    let around = |point: &Point| [(Actor::Cpu(point.cpu), point.at), (Actor::Cpu(point.cpu), point.at + 1)];
    points.extend(devices.iter().flat_map(around));
    for (&who, &steps) in progress.of.iter().filter(|(who, _)| !matches!(who, Actor::Cpu(_))) {
        points.extend((0..steps).map(|at| (who, at)));
    }
    points.extend(others.iter().flat_map(around));
    points.retain(|&point| seen.insert(point));
    let n = points.len() as u64;
    let hold = |i: u64| Hold { who: points[i as usize].0, at: points[i as usize].1, ns: longest };
    if number < n {
        return Some(vec![hold(number)]);
    }
    let pair = number - n;
    (n > 0 && pair < n * n).then(|| vec![hold(pair / n), hold(pair % n)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Place;

    fn device(cpu: usize, at: u64) -> Point {
        Point { cpu, at, kind: Kind::Device, pc: None, address: None, with: None }
    }

    fn progress() -> Progress {
        let of = [(Actor::Cpu(0), 1000), (Actor::Cpu(1), 500), (Actor::Its, 3)].into();
        Progress {
            of,
            points: vec![device(0, 10), device(0, 900), Point { kind: Kind::Dma, ..device(1, 77) }],
            places: [(1, vec![Place { pc: 4, at: 3 }])].into(),
            ns: 2000,
        }
    }

    fn lead(number: u64, new: usize) -> Lead {
        Lead { number, holds: vec![Hold { who: Actor::Its, at: number, ns: 777 }], new }
    }

    #[test]
    fn schedules_depend_on_seed_and_number_alone_and_stay_within_the_scenario() {
        for policy in [Policy::Random, Policy::Few, Policy::Guided] {
            let choice = Choice { policy, depth: 3, seed: 7 };
            let all: Vec<_> = (0..200).map(|n| choice.draw(n, &progress(), &[]).unwrap()).collect();
            assert_eq!(all, (0..200).map(|n| choice.draw(n, &progress(), &[]).unwrap()).collect::<Vec<_>>());
            let other = Choice { seed: 8, ..choice };
            assert_ne!(all[0], other.draw(0, &progress(), &[]).unwrap());
            for hold in all.iter().flatten() {
                assert!(
                    hold.at < progress().of[&hold.who] + NEAR && (SHORTEST..=2000).contains(&hold.ns),
                    "{hold:?}"
                );
            }
            for who in [Actor::Cpu(0), Actor::Cpu(1), Actor::Its] {
                assert!(all.iter().flatten().any(|hold| hold.who == who), "{who} is never held");
            }
            assert!(all.iter().flatten().any(|hold| hold.at == 77), "before the data");
            assert!(all.iter().flatten().any(|hold| hold.at == 78), "and behind them");
        }
    }

    #[test]
    fn priorities_are_drawn_for_all_and_change_at_any_step_that_is_known() {
        let choice = |seed| Choice { policy: Policy::Pct, depth: 2, seed };
        let mut firsts = BTreeSet::new();
        let mut changes = BTreeSet::new();
        for number in 0..300 {
            let mut ranks = choice(1).ranks(number, &progress()).unwrap();
            assert_eq!(Some(&ranks), choice(1).ranks(number, &progress()).as_ref());
            let all = [Actor::Cpu(0), Actor::Cpu(1), Actor::Its];
            changes.extend(ranks.changes());
            firsts.insert(all.iter().copied().min_by_key(|&who| ranks.of(who, 0)));
        }
        assert_eq!(firsts.len(), 3, "anybody begins last");
        let cpu = |cpu, at| [(Actor::Cpu(cpu), at), (Actor::Cpu(cpu), at + 1)];
        let mut known: BTreeSet<_> = [cpu(0, 10), cpu(0, 900), cpu(1, 77)].into_iter().flatten().collect();
        known.extend((0..3).map(|step| (Actor::Its, step)));
        assert_eq!(changes, known);
        assert_ne!(choice(1).ranks(0, &progress()), choice(2).ranks(0, &progress()));
        assert_eq!(Choice { policy: Policy::Random, ..choice(1) }.ranks(0, &progress()), None);
    }

    #[test]
    fn leads_are_changed_and_those_that_may_not_be_known_yet_are_not_looked_at() {
        let choice = Choice { policy: Policy::Guided, depth: 2, seed: 1 };
        let leads = [lead(1, 5), lead(40, 1)];
        let draw = |n, leads: &[Lead]| choice.draw(n, &progress(), leads).unwrap();
        let of_lead = |holds: &Vec<Hold>| holds.iter().any(|hold| hold.ns == 777);
        for n in 0..17 {
            assert_eq!(draw(n, &leads), draw(n, &[]), "{n}");
        }
        for n in 17..56 {
            assert_eq!(draw(n, &leads), draw(n, &leads[..1]), "{n}");
        }
        let from_lead = (56..256).filter(|&n| of_lead(&draw(n, &leads))).count();
        assert!((30..140).contains(&from_lead), "a good part of them: {from_lead}");
        let all = (56..256).map(|n| draw(n, &leads)).collect::<Vec<_>>();
        assert!(all.iter().all(|holds| (1..=RANDOM_HOLDS).contains(&(holds.len() as u64))));
    }

    #[test]
    fn bounded_goes_through_all_points_and_all_pairs_once() {
        let choice = Choice { policy: Policy::Bounded, depth: 2, seed: 0 };
        let all: Vec<_> = (0..).map_while(|n| choice.draw(n, &progress(), &[])).collect();
        let points = 4 + 3 + 2;
        assert_eq!(all.len(), points + points * points);
        assert!(all[..points].iter().all(|holds| holds.len() == 1));
        assert_eq!((all[0][0].at, all[points - 1][0].at), (10, 78), "devices come first");
    }
}
