//! Who may be held and where: the part of a scenario that a search looks at.

use std::str::FromStr;

use anyhow::{Result, ensure};

use crate::actor::Actor;
use crate::schedule::Progress;
use crate::survey::{Kind, Point};
use crate::symbols::Symbols;

/// What the command line asks for; nothing means everybody, everywhere, for any reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Actors, or the beginnings of their names up to a dot: `cpu1`, `pci.04`, `smmu`.
    pub who: Vec<String>,
    /// Functions in which vCPUs are held, and nowhere else; `*` at the end stands for anything.
    pub within: Vec<String>,
    /// Why vCPUs are held, and for nothing else.
    pub points: Vec<Kind>,
    /// What they reach for there.
    pub touching: Vec<Target>,
}

/// Something that a vCPU may reach for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Physical addresses, the last one included.
    Range(u64, u64),
    /// The registers of an actor, or memory that it reaches for too; or the beginning of its name up to a dot.
    Device(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        if !text.starts_with("0x") {
            return Ok(Self::Device(text.into()));
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
        range.map(|(first, last)| Self::Range(first, last)).ok_or_else(|| "it is no 0xFIRST-0xLAST".into())
    }
}

impl Filter {
    /// Leaves in `progress` what the filter takes.
    ///
    /// # Errors
    /// When nothing is left to hold anybody at.
    pub fn apply(&self, progress: &mut Progress, symbols: &Symbols) -> Result<()> {
        if !self.who.is_empty() {
            progress.of.retain(|who, _| self.takes(*who));
            progress.points.retain(|point| self.takes(Actor::Cpu(point.cpu)));
            progress.places.retain(|cpu, _| self.takes(Actor::Cpu(*cpu)));
        }
        let here = |pc: u64| symbols.at(pc).is_some_and(|(name, _)| self.covers(name));
        if !self.within.is_empty() {
            progress.points.retain(|point| point.pc.is_some_and(here));
            for places in progress.places.values_mut() {
                places.retain(|place| here(place.pc));
            }
            progress.places.retain(|_, places| !places.is_empty());
        }
        if !self.points.is_empty() {
            progress.points.retain(|point| self.points.contains(&point.kind));
        }
        if !self.touching.is_empty() {
            progress.points.retain(|point| self.touching.iter().any(|target| target.is_of(point)));
        }
        if !self.points.is_empty() || !self.touching.is_empty() {
            progress.places.clear();
        }
        if !(self.within.is_empty() && self.points.is_empty() && self.touching.is_empty()) {
            // Not at any instruction.
            progress.of.retain(|who, _| !matches!(who, Actor::Cpu(_)));
        }
        let left = progress.of.values().any(|&n| n > 0)
            || !progress.places.is_empty()
            || !progress.points.is_empty();
        ensure!(
            left,
            "--who, --within, --points and --touching leave nothing to hold: the scenario never goes there"
        );
        Ok(())
    }

    fn takes(&self, who: Actor) -> bool {
        self.who.iter().any(|name| who.is_called(name))
    }

    fn covers(&self, name: &str) -> bool {
        // A module's function has its module's name behind it.
        let name = name.split(' ').next().unwrap_or(name);
        self.within.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        })
    }
}

impl Target {
    fn is_of(&self, point: &Point) -> bool {
        match self {
            Self::Range(first, last) => point.address.is_some_and(|at| (first..=last).contains(&&at)),
            Self::Device(name) => point.with.is_some_and(|who| who.is_called(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Place;

    fn all() -> Progress {
        let point = |cpu, at, kind, pc, address, with| Point { cpu, at, kind, pc: Some(pc), address, with };
        Progress {
            of: [(Actor::Cpu(0), 9), (Actor::Cpu(1), 9), (Actor::Its, 2)].into(),
            points: vec![
                point(0, 1, Kind::Device, 0x1004, Some(0x900_0000), Some(Actor::Uart)),
                point(1, 2, Kind::Dma, 0x2004, Some(0x4000_1000), Some(Actor::Engine(0, 3))),
                point(1, 3, Kind::Barrier, 0x1008, None, None),
            ],
            places: [(0, vec![Place { pc: 0x1004, at: 3 }, Place { pc: 0x2004, at: 4 }])].into(),
            ns: 9,
        }
    }

    fn left(filter: &Filter) -> Result<Progress> {
        let symbols = Symbols::parse("1000 T arm_smmu_map\n2000 T schedule\n");
        let mut progress = all();
        filter.apply(&mut progress, &symbols).map(|()| progress)
    }

    #[test]
    fn what_is_left_is_what_was_asked_for() {
        let filter = |who: &[&str], within: &[&str]| {
            let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
            left(&Filter { who: own(who), within: own(within), ..Filter::default() })
        };
        assert_eq!(filter(&[], &[]).unwrap(), all());
        let one = filter(&["cpu1", "its"], &[]).unwrap();
        assert_eq!(one.of.keys().copied().collect::<Vec<_>>(), [Actor::Its, Actor::Cpu(1)]);
        assert!(one.places.is_empty() && one.points.len() == 2);
        let map = filter(&[], &["arm_smmu_*"]).unwrap();
        assert_eq!(map.places[&0], [Place { pc: 0x1004, at: 3 }]);
        assert_eq!(map.points.iter().map(|point| point.at).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(map.of.len(), 1);
        assert!(filter(&["cpu7"], &[]).is_err());
        assert!(filter(&["cpu0"], &["no_such"]).is_err());
    }

    #[test]
    fn points_are_left_by_kind_and_by_what_they_touch() {
        let points = |filter: &Filter| {
            let left = left(filter).unwrap();
            assert!(left.places.is_empty() && left.of.len() == 1);
            left.points.iter().map(|point| point.at).collect::<Vec<_>>()
        };
        let kinds = |kinds: &[Kind]| Filter { points: kinds.to_vec(), ..Filter::default() };
        assert_eq!(points(&kinds(&[Kind::Dma, Kind::Barrier])), [2, 3]);
        let touching = |text: &str| Filter { touching: vec![text.parse().unwrap()], ..Filter::default() };
        assert_eq!(points(&touching("engine.0")), [2]);
        assert_eq!(points(&touching("uart")), [1]);
        assert_eq!(points(&touching("0x40000000-0x4fffffff")), [2]);
        assert_eq!(points(&touching("0x9000000")), [1]);
        assert!("0x2-0x1".parse::<Target>().is_err() && "0xg".parse::<Target>().is_err());
        let nobody = Filter { who: vec!["cpu0".into()], ..touching("engine.0") };
        assert!(left(&nobody).is_err());
    }
}
