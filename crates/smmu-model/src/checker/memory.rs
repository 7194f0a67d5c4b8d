//! The pages that the checker looks at: tables, STEs, CDs and the command queue; and who wrote each word last.

use std::collections::BTreeMap;

use pgtable::Granule;

use super::index::Map;
use super::site::Site;

/// Bytes of a watched page.
pub(super) const PAGE: u64 = 4096;

/// Memory, and who may access it, for somebody who looks on.
pub trait Pages: Send {
    /// Stores to the 4 KiB page at this address are to be told from now on.
    fn watch(&mut self, page: u64);
    /// No more.
    fn unwatch(&mut self, page: u64);
    /// The 64-bit word at an aligned address, if there is memory.
    fn read(&self, pa: u64) -> Option<u64>;
    /// Whether the device of a StreamID may make requests now, as a PCI function does with Bus Master Enable; `None` if
    /// that is not known.
    fn may_request(&self, sid: u32) -> Option<bool> {
        let _ = sid;
        None
    }
}

/// A page that is a table, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) level: i8,
    pub(super) granule: Granule,
    pub(super) pa52: bool,
}

/// Words of a watched page.
const WORDS: usize = PAGE as usize / 8;

fn word_of(pa: u64) -> usize {
    (pa & (PAGE - 1)) as usize / 8
}

/// Last writer of each word, if that was seen.
#[derive(Debug, Default)]
struct Writers {
    /// By word: 0, or one more than its place in `sites`.
    places: Option<Box<[u16; WORDS]>>,
    sites: Vec<Site>,
}

#[derive(Debug, Default)]
struct Page {
    /// Reasons to watch it.
    holds: u32,
    /// Of these, those that are STEs, CDs, level 1 descriptors, or what was a level 2 table.
    configuration: u32,
    /// Of these, those that are a command queue.
    queues: u32,
    writers: Writers,
    table: Option<Table>,
    /// Where table descriptors in it lead.
    links: BTreeMap<u16, (u64, Table)>,
}

/// What is in a watched page, or was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    /// A command queue.
    pub(super) queue: bool,
    /// STEs, CDs or level 1 descriptors.
    pub(super) configuration: bool,
    /// Translation tables.
    pub(super) tables: bool,
}

/// All of them.
pub(super) struct Memory {
    access: Box<dyn Pages>,
    pages: Map<u64, Page>,
}

impl Memory {
    pub(super) fn new(access: Box<dyn Pages>) -> Self {
        Memory { access, pages: Map::default() }
    }

    fn page(&self, pa: u64) -> Option<&Page> {
        self.pages.get(&(pa & !(PAGE - 1)))
    }

    fn page_mut(&mut self, pa: u64) -> Option<&mut Page> {
        self.pages.get_mut(&(pa & !(PAGE - 1)))
    }

    /// One more reason to watch the page that holds `pa`.
    pub(super) fn hold(&mut self, pa: u64) {
        let page = pa & !(PAGE - 1);
        let entry = self.pages.entry(page).or_default();
        if entry.holds == 0 {
            self.access.watch(page);
        }
        entry.holds += 1;
    }

    /// One more reason, which is not a table of descriptors and not a queue.
    pub(super) fn hold_configuration(&mut self, pa: u64) {
        self.hold(pa);
        if let Some(page) = self.page_mut(pa) {
            page.configuration += 1;
        }
    }

    /// One such reason less.
    pub(super) fn release_configuration(&mut self, pa: u64) {
        if let Some(page) = self.page_mut(pa) {
            page.configuration = page.configuration.saturating_sub(1);
        }
        self.release(pa);
    }

    /// One more reason, which is a command queue.
    pub(super) fn hold_queue(&mut self, pa: u64) {
        self.hold(pa);
        if let Some(page) = self.page_mut(pa) {
            page.queues += 1;
        }
    }

    /// One such reason less.
    pub(super) fn release_queue(&mut self, pa: u64) {
        if let Some(page) = self.page_mut(pa) {
            page.queues = page.queues.saturating_sub(1);
        }
        self.release(pa);
    }

    /// One reason less. What only tables in an unwatched page led to is not watched either.
    pub(super) fn release(&mut self, pa: u64) {
        let mut page = pa & !(PAGE - 1);
        let mut less = Vec::new();
        loop {
            if let Some(entry) = self.pages.get_mut(&page) {
                entry.holds = entry.holds.saturating_sub(1);
                if entry.holds == 0
                    && let Some(entry) = self.pages.remove(&page)
                {
                    self.access.unwatch(page);
                    less.extend(
                        entry.links.into_values().flat_map(|(to, table)| pages_of(to, table.granule)),
                    );
                }
            }
            match less.pop() {
                Some(next) => page = next,
                None => return,
            }
        }
    }

    /// The word at `pa`.
    pub(super) fn read(&self, pa: u64) -> Option<u64> {
        self.access.read(pa & !7)
    }

    /// As [`Pages::may_request`].
    pub(super) fn may_request(&self, sid: u32) -> Option<bool> {
        self.access.may_request(sid)
    }

    /// What is in the page of `pa`, if that is watched.
    pub(super) fn content(&self, pa: u64) -> Option<Content> {
        let page = self.page(pa)?;
        Some(Content {
            queue: page.queues != 0,
            configuration: page.configuration != 0,
            tables: page.holds > page.configuration + page.queues || page.table.is_some(),
        })
    }

    /// Whether the page is known to be a table, and which.
    pub(super) fn table(&self, pa: u64) -> Option<Table> {
        self.page(pa)?.table
    }

    /// Notes that a watched page is a table.
    pub(super) fn is_table(&mut self, pa: u64, table: Table) {
        if let Some(page) = self.page_mut(pa) {
            page.table = Some(table);
        }
    }

    /// Who wrote the word at `pa` last, if that was seen.
    pub(super) fn writer(&self, pa: u64) -> Option<Site> {
        let writers = &self.page(pa)?.writers;
        let place = writers.places.as_ref()?[word_of(pa)];
        writers.sites.get(usize::from(place).checked_sub(1)?).copied()
    }

    /// Notes a writer.
    pub(super) fn wrote(&mut self, pa: u64, site: &Site) {
        let Some(page) = self.page_mut(pa) else { return };
        let Writers { places, sites } = &mut page.writers;
        let place = &mut places.get_or_insert_with(|| Box::new([0; WORDS]))[word_of(pa)];
        match usize::from(*place).checked_sub(1).and_then(|place| sites.get_mut(place)) {
            Some(known) => *known = *site,
            None => {
                sites.push(*site);
                *place = sites.len() as u16;
            }
        }
    }

    /// Notes that the descriptor at `at` leads to a table, or to none.
    pub(super) fn link(&mut self, at: u64, to: Option<(u64, Table)>) {
        let word = word_of(at) as u16;
        let Some(page) = self.page(at) else { return };
        if page.links.is_empty() && to.is_none() {
            return;
        }
        let old = page.links.get(&word).copied();
        if old == to {
            return;
        }
        if let Some((child, table)) = to {
            for page in pages_of(child, table.granule) {
                self.hold(page);
                self.is_table(page, table);
            }
        }
        match (self.page_mut(at), to) {
            (Some(page), Some(to)) => _ = page.links.insert(word, to),
            (Some(page), None) => _ = page.links.remove(&word),
            (None, _) => {}
        }
        if let Some((child, table)) = old {
            for page in pages_of(child, table.granule) {
                self.release(page);
            }
        }
    }
}

fn pages_of(table: u64, granule: Granule) -> impl Iterator<Item = u64> {
    let base = table & !(PAGE - 1);
    (0..granule.bytes()).step_by(PAGE as usize).map(move |offset| base + offset)
}
