//! Tables that walks went through, a cache for each level: a walk begins at the deepest one that is known.

use pgtable::{Granule, Walk};
use serde::{Deserialize, Serialize};

use super::sets::Shape;
use super::tlb::{Entry, Regime, Scope, Tagged};

/// A table below the first level: a walk that is about to read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// `None` only where there is no entry.
    pub(crate) walk: Option<Walk>,
    /// log2 of the bytes that the table covers.
    pub(crate) shift: u8,
    pub(crate) granule: Granule,
}

impl Table {
    /// The table that `walk` is about to read.
    pub(crate) fn new(walk: Walk, granule: Granule) -> Self {
        Table { walk: Some(walk), shift: granule.shift(walk.level()) + granule.stride(), granule }
    }
}

impl Entry for Table {
    fn shift(&self) -> u8 {
        self.shift & 63
    }

    fn span(&self) -> u8 {
        self.shift & 63
    }

    fn granule(&self) -> Granule {
        self.granule
    }

    /// Tables are not leaves: TTL does not concern them.
    fn level(&self) -> i8 {
        i8::MIN
    }

    fn global(&self) -> bool {
        false
    }
}

/// The walk caches, by the level of the table: 0 to 3. Those of level -1 are first levels, which no descriptor names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Walks {
    levels: [Tagged<Table>; 4],
}

fn index(level: i8) -> usize {
    (level & 3) as usize
}

impl Walks {
    /// As many entries for each level.
    pub(crate) fn new(shape: Shape) -> Self {
        Walks { levels: [(); 4].map(|()| Tagged::new(shape)) }
    }

    /// Whether nothing can ever be in them.
    #[inline]
    pub(crate) fn is_disabled(&self) -> bool {
        self.levels[0].is_disabled()
    }

    /// The walk of `input` at the deepest table that is known.
    pub(crate) fn get(&mut self, regime: Regime, input: u64) -> Option<Walk> {
        if self.is_disabled() {
            return None;
        }
        let walk = self.levels.iter_mut().rev().find_map(|level| level.get(regime, input)?.walk)?;
        Some(walk.through(input))
    }

    /// Remembers the table that `walk` is about to read.
    pub(crate) fn insert(&mut self, regime: Regime, input: u64, table: Table) {
        if let Some(walk) = table.walk {
            self.levels[index(walk.level())].insert(regime, input, table);
        }
    }

    /// Whether [`Walks::invalidate`] would remove such an entry.
    pub(crate) fn is_covered(scope: &Scope, exact: bool, regime: Regime, input: u64, table: &Table) -> bool {
        let level = table.walk.map_or(0, |walk| walk.level());
        Self::reaches(scope, exact, level)
            && Tagged::is_covered(&Scope { level: None, ..*scope }, regime, input, table)
    }

    /// Removes what `scope` covers. TTL names the level of the leaf, so the tables that led to it are those up to that
    /// level (section 4.4.1.1); only with `exact` are the others kept.
    pub(crate) fn invalidate(&mut self, scope: &Scope, exact: bool) -> u64 {
        let tables = Scope { level: None, ..*scope };
        let levels = self.levels.iter_mut().zip(0i8..).filter(|(_, n)| Self::reaches(scope, exact, *n));
        levels.map(|(level, _)| level.invalidate(&tables)).sum()
    }

    fn reaches(scope: &Scope, exact: bool, level: i8) -> bool {
        !exact || scope.level.is_none_or(|ttl| level <= ttl)
    }
}
