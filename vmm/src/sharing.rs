//! Which memory more than one actor touches: there, and only there, an order of accesses can matter.

use std::collections::{BTreeMap, BTreeSet};

use guest_ram::PAGE_SIZE;
use serde::{Deserialize, Serialize};

use crate::actor::{Actor, SmmuAgent};
use crate::cover::Cover;
use crate::touch::{By, GRANULE, GRANULES, Numbers, Touch};

/// Accesses that are looked at; a longer scenario is looked at up to here.
const LIMIT: u64 = 20_000_000;

/// What a place in memory is to the race lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// An SMMU's tables: translations, stream table, context descriptors.
    Table,
    /// An SMMU's queue.
    Queue,
    /// A device's data or rings.
    Dma,
    /// Several vCPUs', and nobody else's.
    Cpus,
}

/// A place that several actors touch, at least one of which changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What it is.
    #[serde(rename = "u")]
    pub used: Use,
    /// One that touches it and is no vCPU.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub with: Option<Actor>,
}

/// The places of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// How many accesses to the page there were.
    pub touches: u64,
    /// Its places, by granule.
    pub places: BTreeMap<u16, Place>,
}

/// All places, by page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places(pub BTreeMap<usize, Page>);

impl Places {
    /// The place that a granule of RAM, by number, is.
    pub fn at(&self, granule: u64) -> Option<Place> {
        let (page, inside) = (granule / GRANULES as u64, granule % GRANULES as u64);
        self.0.get(&(page as usize))?.places.get(&(inside as u16)).copied()
    }

    /// The pages that hold tables of an SMMU.
    pub fn tables(&self) -> BTreeSet<usize> {
        let table = |page: &&usize| self.0[*page].places.values().any(|place| place.used == Use::Table);
        self.0.keys().filter(table).copied().collect()
    }

    /// The pages that are worth being watched in every run: all that devices and SMMUs touch, then those with the fewest
    /// accesses, until there are `most` of them.
    pub fn watched(&self, most: u64) -> Vec<usize> {
        let only_cpus = |page: &Page| page.places.values().all(|place| place.used == Use::Cpus);
        let mut pages: Vec<(bool, u64, usize)> =
            self.0.iter().map(|(&number, page)| (only_cpus(page), page.touches, number)).collect();
        pages.sort_unstable();
        let mut sum = 0;
        pages.retain(|&(only_cpus, touches, _)| {
            sum += touches;
            !only_cpus || sum <= most
        });
        let mut numbers: Vec<usize> = pages.into_iter().map(|(.., number)| number).collect();
        numbers.sort_unstable();
        numbers
    }
}

const WRITTEN: u8 = 1;
const SHARED: u8 = 2;
const TABLE: u8 = 4;
const QUEUE: u8 = 8;
const DMA: u8 = 16;

/// What is known of a granule.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// Who touched it first, by number from 1.
    first: u8,
    /// Who is no vCPU and touched it.
    with: u8,
    flags: u8,
}

struct Seen {
    touches: u64,
    cells: Box<[Cell; GRANULES]>,
}

/// Looks who touches what.
#[derive(Default)]
pub struct Sharing {
    pages: BTreeMap<usize, Seen>,
    numbers: Numbers,
    seen: u64,
}

impl Sharing {
    /// Whether enough was seen.
    pub fn is_full(&self) -> bool {
        self.seen >= LIMIT
    }

    /// Takes note of an access.
    pub fn touch(&mut self, touch: &Touch) {
        if self.is_full() {
            return;
        }
        self.seen += 1;
        let number = self.numbers.of(touch.who);
        let flag = match (touch.by, touch.who) {
            (By::Code(_), _) => 0,
            (_, Actor::Smmu(_, SmmuAgent::Command | SmmuAgent::Event | SmmuAgent::Pri)) => QUEUE,
            (By::Fetch, _) => TABLE,
            (By::Data, _) => DMA,
        };
        for granule in touch.granules() {
            let page = (granule * GRANULE) as usize / PAGE_SIZE;
            let seen = self
                .pages
                .entry(page)
                .or_insert_with(|| Seen { touches: 0, cells: Box::new([Cell::default(); GRANULES]) });
            seen.touches += 1;
            let cell = &mut seen.cells[granule as usize % GRANULES];
            if cell.first == 0 {
                cell.first = number;
            } else if cell.first != number {
                cell.flags |= SHARED;
            }
            if flag != 0 {
                cell.with = number;
            }
            cell.flags |= flag | if touch.write { WRITTEN } else { 0 };
        }
    }

    /// What was found.
    pub fn places(&self) -> Places {
        let page = |(&number, seen): (&usize, &Seen)| {
            // A store to any descriptor of a table may matter to a walk.
            let table = seen.cells.iter().any(|cell| cell.flags & TABLE != 0);
            let matters = |cell: &Cell| cell.flags & WRITTEN != 0 && (cell.flags & SHARED != 0 || table);
            let place = |cell: &Cell| Place {
                used: match cell.flags {
                    flags if flags & QUEUE != 0 => Use::Queue,
                    _ if table => Use::Table,
                    flags if flags & DMA != 0 => Use::Dma,
                    _ => Use::Cpus,
                },
                with: self.numbers.actor(cell.with),
            };
            let cells = seen.cells.iter().enumerate().filter(|(_, cell)| matters(cell));
            let places: BTreeMap<u16, Place> =
                cells.map(|(index, cell)| (index as u16, place(cell))).collect();
            (!places.is_empty()).then_some((number, Page { touches: seen.touches, places }))
        };
        Places(self.pages.iter().filter_map(page).collect())
    }
}

/// Accesses of vCPUs to places that several touch, and what was covered meanwhile.
pub struct Reached {
    places: Places,
    watched: BTreeSet<usize>,
    /// Those since the last look.
    pub new: Vec<Reach>,
    /// The orders of accesses to the watched pages.
    pub cover: Cover,
}

/// An access of a vCPU to such a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// When.
    pub time: u64,
    /// Offset in RAM.
    pub offset: u64,
    /// What memory it is.
    pub place: Place,
}

impl Reached {
    /// Looks at these places, and covers the `watched` pages.
    pub fn new(places: Places, watched: &[usize]) -> Self {
        let watched = watched.iter().copied().collect();
        Self { places, watched, new: Vec::new(), cover: Cover::default() }
    }

    /// Takes note of an access.
    pub fn touch(&mut self, touch: &Touch) {
        if self.watched.contains(&(touch.offset as usize / PAGE_SIZE)) {
            self.cover.touch(touch);
        }
        if !matches!(touch.who, Actor::Cpu(_)) {
            return;
        }
        let place = touch.granules().find_map(|granule| self.places.at(granule));
        // Who merely reads a table does not change what a walk finds.
        if let Some(place) = place.filter(|place| touch.write || place.used != Use::Table) {
            self.new.push(Reach { time: touch.time, offset: touch.offset, place });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(who: Actor, by: By, offset: u64, write: bool) -> Touch {
        Touch { who, by, offset, len: 8, write, time: 0 }
    }

    #[test]
    fn what_several_touch_and_one_changes_is_found_with_its_use() {
        let mut sharing = Sharing::default();
        let (code, engine) = (By::Code(0), Actor::Engine(0, 0));
        let command = Actor::Smmu(0, SmmuAgent::Command);
        // Only one vCPU; two that only read; two of which one writes.
        sharing.touch(&touch(Actor::Cpu(0), code, 0x1000, true));
        for cpu in [0, 1] {
            sharing.touch(&touch(Actor::Cpu(cpu), code, 0x1008, false));
            sharing.touch(&touch(Actor::Cpu(cpu), code, 0x1010, cpu == 1));
        }
        // A walk reads one descriptor; the vCPU writes that and another of the table.
        sharing.touch(&touch(engine, By::Fetch, 0x2000, false));
        sharing.touch(&touch(Actor::Cpu(0), code, 0x2000, true));
        sharing.touch(&touch(Actor::Cpu(0), code, 0x2800, true));
        // A buffer, and the command queue.
        sharing.touch(&touch(engine, By::Data, 0x3000, true));
        sharing.touch(&touch(Actor::Cpu(0), code, 0x3000, false));
        sharing.touch(&touch(Actor::Cpu(1), code, 0x4000, true));
        sharing.touch(&touch(command, By::Fetch, 0x4000, false));
        let places = sharing.places();
        let at = |offset: u64| places.at(offset / GRANULE).map(|place| (place.used, place.with));
        assert_eq!((at(0x1000), at(0x1008), at(0x1010)), (None, None, Some((Use::Cpus, None))));
        assert_eq!(at(0x2000), Some((Use::Table, Some(engine))));
        assert_eq!(at(0x2800), Some((Use::Table, None)));
        assert_eq!(at(0x3000), Some((Use::Dma, Some(engine))));
        assert_eq!(at(0x4000), Some((Use::Queue, Some(command))));
        assert_eq!(places.watched(0), [2, 3, 4], "what is only vCPUs' is watched where it costs little");
        assert_eq!(places.watched(1000).len(), 4);

        let mut reached = Reached::new(places, &[]);
        reached.touch(&touch(Actor::Cpu(0), code, 0x2800, true));
        reached.touch(&touch(Actor::Cpu(0), code, 0x2800, false));
        reached.touch(&touch(engine, By::Data, 0x3000, true));
        reached.touch(&touch(Actor::Cpu(0), code, 0x1000, true));
        assert_eq!(reached.new.iter().map(|reach| reach.offset).collect::<Vec<_>>(), [0x2800]);
    }
}
