//! Which schedules are tried: each is drawn from the search's seed and its own number alone.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::schedule::{Hold, Progress};

/// How schedules are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The default order, always
    Fixed,
    /// Up to eight holds anywhere, each of any length
    Random,
    /// Probabilistic concurrency testing: as few holds as the depth says, each until everybody else is done
    Pct,
    /// The order that the scenario's script says
    Script,
    /// Every single hold at a device access or an agent's step, then every pair of them
    Bounded,
}

/// The most holds of a random schedule.
const RANDOM_HOLDS: u64 = 8;
/// The shortest hold, in nanoseconds.
const SHORTEST: u64 = 100;
/// How far from a device access a hold near it may be, in instructions.
const NEAR: u64 = 64;

/// A search's choice of schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// How.
    pub policy: Policy,
    /// Depth of bugs that `pct` looks for: one more than the holds it makes.
    pub depth: u32,
    /// Seeds all of them.
    pub seed: u64,
}

impl Choice {
    /// Schedule `number` of a scenario that, in the default order, makes this progress. `None`: there are no more.
    pub fn draw(&self, number: u64, progress: &Progress) -> Option<Vec<Hold>> {
        let mut rng =
            Xoshiro256PlusPlus::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let longest = progress.ns.max(2 * SHORTEST);
        match self.policy {
            // A script is no choice.
            Policy::Script => None,
            Policy::Fixed => (number == 0).then(Vec::new),
            Policy::Random => {
                let count = rng.random_range(1..=RANDOM_HOLDS);
                let hold = |_| {
                    let (who, at) = point(&mut rng, progress)?;
                    Some(Hold { who, at, ns: log_uniform(&mut rng, SHORTEST, longest) })
                };
                (0..count).map(hold).collect()
            }
            Policy::Pct => {
                let mut holds = Vec::new();
                // Who goes first: any vCPU may begin with the lowest priority.
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
            Policy::Bounded => bounded(number, progress, longest),
        }
    }
}

/// A number between two, whose logarithm is evenly distributed.
fn log_uniform(rng: &mut impl Rng, low: u64, high: u64) -> u64 {
    let octave = rng.random_range(low.ilog2()..=high.ilog2());
    rng.random_range(1u64 << octave..=(1u64 << octave) * 2 - 1).clamp(low, high)
}

/// A point to hold somebody at. Of ten, four are near a vCPU's access to a device, three a step of an agent, two a place in the
/// code, each as likely as any other however often it is executed, and one is any instruction; where one kind is missing,
/// any instruction stands in.
fn point(rng: &mut impl Rng, progress: &Progress) -> Option<(Actor, u64)> {
    let place = |rng: &mut _| one_of(rng, &progress.places).map(|(cpu, place)| (Actor::Cpu(cpu), place.at));
    let agent = |rng: &mut _| any(rng, progress, |who| !matches!(who, Actor::Cpu(_)));
    let kind = rng.random_range(0..10);
    let found = match kind {
        0..4 => one_of(rng, &progress.accesses).map(|(cpu, at)| (Actor::Cpu(cpu), near(rng, at))),
        4..7 => agent(rng),
        7..9 => place(rng),
        _ => None,
    };
    found
        .or_else(|| any(rng, progress, |who| matches!(who, Actor::Cpu(_))))
        .or_else(|| place(rng))
        .or_else(|| agent(rng))
}

/// One of all vCPUs' points.
fn one_of<T: Copy>(rng: &mut impl Rng, points: &BTreeMap<usize, Vec<T>>) -> Option<(usize, T)> {
    let mut index = pick(rng, points.values().map(|list| list.len() as u64).sum())?;
    points.iter().find_map(|(&cpu, list)| {
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

/// Single holds first, then pairs: before and behind each device access, and before each step of an agent.
fn bounded(number: u64, progress: &Progress, longest: u64) -> Option<Vec<Hold>> {
    let mut points = Vec::new();
    for (cpu, accesses) in &progress.accesses {
        points.extend(accesses.iter().flat_map(|&at| [(Actor::Cpu(*cpu), at), (Actor::Cpu(*cpu), at + 1)]));
    }
    for (&who, &steps) in progress.of.iter().filter(|(who, _)| !matches!(who, Actor::Cpu(_))) {
        points.extend((0..steps).map(|at| (who, at)));
    }
    points.dedup();
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

    fn progress() -> Progress {
        let of = [(Actor::Cpu(0), 1000), (Actor::Cpu(1), 500), (Actor::Its, 3)].into();
        Progress {
            of,
            accesses: [(0, vec![10, 900])].into(),
            places: [(1, vec![Place { pc: 4, at: 3 }])].into(),
            ns: 2000,
        }
    }

    #[test]
    fn schedules_depend_on_seed_and_number_alone_and_stay_within_the_scenario() {
        for policy in [Policy::Random, Policy::Pct] {
            let choice = Choice { policy, depth: 3, seed: 7 };
            let all: Vec<_> = (0..200).map(|n| choice.draw(n, &progress()).unwrap()).collect();
            assert_eq!(all, (0..200).map(|n| choice.draw(n, &progress()).unwrap()).collect::<Vec<_>>());
            let other = Choice { seed: 8, ..choice };
            assert_ne!(all[0], other.draw(0, &progress()).unwrap());
            for hold in all.iter().flatten() {
                assert!(
                    hold.at < progress().of[&hold.who] + NEAR && (SHORTEST..=2000).contains(&hold.ns),
                    "{hold:?}"
                );
            }
            for who in [Actor::Cpu(0), Actor::Cpu(1), Actor::Its] {
                assert!(all.iter().flatten().any(|hold| hold.who == who), "{who} is never held");
            }
        }
    }

    #[test]
    fn bounded_goes_through_all_points_and_all_pairs_once() {
        let choice = Choice { policy: Policy::Bounded, depth: 2, seed: 0 };
        let all: Vec<_> = (0..).map_while(|n| choice.draw(n, &progress())).collect();
        let points = 4 + 3;
        assert_eq!(all.len(), points + points * points);
        assert!(all[..points].iter().all(|holds| holds.len() == 1));
    }
}
