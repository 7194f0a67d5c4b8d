//! Who may be held and where: the part of a scenario that a search looks at.

use anyhow::{Result, ensure};

use crate::actor::Actor;
use crate::schedule::Progress;
use crate::symbols::Symbols;

/// What the command line asks for; nothing means everybody and everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Actors, or the beginnings of their names up to a dot: `cpu1`, `pci.04`, `smmu`.
    pub who: Vec<String>,
    /// Functions in which vCPUs are held, and nowhere else; `*` at the end stands for anything.
    pub within: Vec<String>,
}

impl Filter {
    /// Leaves in `progress` what the filter takes.
    ///
    /// # Errors
    /// When nothing is left to hold anybody at.
    pub fn apply(&self, progress: &mut Progress, symbols: &Symbols) -> Result<()> {
        if !self.who.is_empty() {
            progress.of.retain(|who, _| self.takes(*who));
            progress.accesses.retain(|cpu, _| self.takes(Actor::Cpu(*cpu)));
            progress.places.retain(|cpu, _| self.takes(Actor::Cpu(*cpu)));
        }
        if !self.within.is_empty() {
            progress.accesses.clear();
            progress.of.retain(|who, _| !matches!(who, Actor::Cpu(_)));
            for places in progress.places.values_mut() {
                places.retain(|place| symbols.at(place.pc).is_some_and(|(name, _)| self.covers(name)));
            }
            progress.places.retain(|_, places| !places.is_empty());
        }
        let left = progress.of.values().any(|&n| n > 0) || !progress.places.is_empty();
        ensure!(left, "--who and --within leave nothing to hold: the scenario never goes there");
        Ok(())
    }

    fn takes(&self, who: Actor) -> bool {
        let name = who.to_string();
        self.who.iter().any(|part| {
            name.strip_prefix(part.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Place;

    #[test]
    fn what_is_left_is_what_was_asked_for() {
        let symbols = Symbols::parse("1000 T arm_smmu_map\n2000 T schedule\n");
        let all = || Progress {
            of: [(Actor::Cpu(0), 9), (Actor::Cpu(1), 9), (Actor::Its, 2)].into(),
            accesses: [(0, vec![1]), (1, vec![2])].into(),
            places: [(0, vec![Place { pc: 0x1004, at: 3 }, Place { pc: 0x2004, at: 4 }])].into(),
            ns: 9,
        };
        let filter = |who: &[&str], within: &[&str]| {
            let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
            let mut progress = all();
            Filter { who: own(who), within: own(within) }.apply(&mut progress, &symbols).map(|()| progress)
        };
        assert_eq!(filter(&[], &[]).unwrap(), all());
        let one = filter(&["cpu1", "its"], &[]).unwrap();
        assert_eq!(one.of.keys().copied().collect::<Vec<_>>(), [Actor::Its, Actor::Cpu(1)]);
        assert!(one.places.is_empty() && one.accesses.len() == 1);
        let map = filter(&[], &["arm_smmu_*"]).unwrap();
        assert_eq!(map.places[&0], [Place { pc: 0x1004, at: 3 }]);
        assert!(map.accesses.is_empty() && map.of.len() == 1);
        assert!(filter(&["cpu7"], &[]).is_err());
        assert!(filter(&["cpu0"], &["no_such"]).is_err());
    }
}
