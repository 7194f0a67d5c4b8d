//! What a run showed of a scenario's behaviours: in which orders conflicting accesses came.
//!
//! Two accesses of different actors to the same bytes conflict if one of them writes. Each time such a pair comes one behind the
//! other, that it came in this order is one behaviour: this code, or this agent, before that one. A lock taken by the other vCPU
//! first, a descriptor that a walk read before it was changed, data that a beat fetched too early: each is a pair
//! that runs in the default order never show.

use std::collections::{BTreeMap, BTreeSet};

use crate::touch::{By, Numbers, Touch};

/// Readers since the last write of which a granule keeps track.
const READERS: usize = 3;

/// An access as a behaviour names it. 0 is none.
type Site = u32;

/// Who accessed, and from where.
#[derive(Clone, Copy, Debug, Default)]
struct Access {
    who: u8,
    site: Site,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    writer: Access,
    readers: [Access; READERS],
}

/// The orders that a run has shown so far.
#[derive(Default)]
pub struct Cover {
    /// What was touched, by granule of RAM.
    cells: BTreeMap<u64, Cell>,
    numbers: Numbers,
    pairs: BTreeSet<u64>,
}

/// Spreads a number's bits.
fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (value ^ value >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

impl Cover {
    /// All behaviours that it showed, as hashes, in order.
    pub fn behaviours(&self) -> &BTreeSet<u64> {
        &self.pairs
    }

    /// Takes note of an access.
    pub fn touch(&mut self, touch: &Touch) {
        let who = self.numbers.of(touch.who);
        let code = match (touch.by, touch.who) {
            // Which vCPU executes it makes no other behaviour.
            (By::Code(pc), _) => pc << 3,
            (By::Data, who) => who.code() << 3 | 1,
            (By::Fetch, who) => who.code() << 3 | 2,
        };
        let site = (mix(code << 1 | u64::from(touch.write)) >> 32) as Site | 1;
        let access = Access { who, site };
        for granule in touch.granules() {
            let cell = self.cells.entry(granule).or_default();
            let mut before = |earlier: Access| {
                if earlier.who != 0 && earlier.who != who {
                    self.pairs.insert(mix(u64::from(earlier.site) << 32 | u64::from(site)));
                }
            };
            before(cell.writer);
            if touch.write {
                cell.readers.into_iter().for_each(before);
                *cell = Cell { writer: access, ..Cell::default() };
            } else {
                let same = cell.readers.iter().position(|known| known.who == who || known.who == 0);
                cell.readers[same.unwrap_or(READERS - 1)] = access;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actor::Actor;

    fn run(touches: &[(usize, u64, bool)]) -> BTreeSet<u64> {
        let mut cover = Cover::default();
        for &(cpu, pc, write) in touches {
            let (who, by) = (Actor::Cpu(cpu), By::Code(pc));
            cover.touch(&Touch { who, by, offset: 0x1000, len: 4, write, time: 0 });
        }
        cover.behaviours().clone()
    }

    #[test]
    fn another_order_is_another_behaviour_and_the_same_is_not() {
        let there = run(&[(0, 0x10, true), (1, 0x20, false)]);
        let back = run(&[(1, 0x20, false), (0, 0x10, true)]);
        assert_eq!((there.len(), back.len()), (1, 1));
        assert_ne!(there, back);
        assert_eq!(run(&[(1, 0x10, true), (0, 0x20, false)]), there, "whichever vCPU does it");
        assert!(run(&[(0, 0x10, true), (0, 0x20, false)]).is_empty(), "no conflict with oneself");
        assert!(run(&[(0, 0x10, false), (1, 0x20, false)]).is_empty(), "nor among readers");
        assert_eq!(run(&[(0, 1, false), (1, 2, false), (2, 3, true)]).len(), 2, "both read before it");
    }

    #[test]
    fn a_beat_overlaps_what_lies_in_it() {
        let mut cover = Cover::default();
        let engine = Actor::Engine(0, 0);
        let touch = |who, by, offset, len, write| Touch { who, by, offset, len, write, time: 0 };
        cover.touch(&touch(engine, By::Data, 0x1000, 0x1000, false));
        cover.touch(&touch(Actor::Cpu(0), By::Code(4), 0x1ff8, 1, true));
        assert_eq!(cover.behaviours().len(), 1);
        cover.touch(&touch(Actor::Cpu(0), By::Code(4), 0x2000, 8, true));
        assert_eq!(cover.behaviours().len(), 1);
    }
}
