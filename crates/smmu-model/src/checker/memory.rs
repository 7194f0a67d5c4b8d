//! The pages that the checker looks at: tables, STEs, CDs and the command queue; and who wrote each word last.

use std::collections::BTreeMap;

use pgtable::Granule;

use super::site::Site;

/// Bytes of a watched page.
pub(super) const PAGE: u64 = 4096;

/// Memory, for somebody who looks on.
pub trait Pages: Send {
    /// Stores to the 4 KiB page at this address are to be told from now on.
    fn watch(&mut self, page: u64);
    /// No more.
    fn unwatch(&mut self, page: u64);
    /// The 64-bit word at an aligned address, if there is memory.
    fn read(&self, pa: u64) -> Option<u64>;
}

/// A page that is a table, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) level: i8,
    pub(super) granule: Granule,
    pub(super) pa52: bool,
}

#[derive(Debug, Default)]
struct Page {
    /// Reasons to watch it.
    holds: u32,
    /// Last writer of each word, by index.
    writers: BTreeMap<u16, Site>,
    table: Option<Table>,
}

/// All of them.
pub(super) struct Memory {
    access: Box<dyn Pages>,
    pages: BTreeMap<u64, Page>,
    /// Where table descriptors in watched tables lead, by their address.
    links: BTreeMap<u64, (u64, Table)>,
}

impl Memory {
    pub(super) fn new(access: Box<dyn Pages>) -> Self {
        Memory { access, pages: BTreeMap::new(), links: BTreeMap::new() }
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

    /// One reason less. What only tables in an unwatched page led to is not watched either.
    pub(super) fn release(&mut self, pa: u64) {
        let mut less = vec![pa & !(PAGE - 1)];
        while let Some(page) = less.pop() {
            let Some(entry) = self.pages.get_mut(&page) else { continue };
            entry.holds = entry.holds.saturating_sub(1);
            if entry.holds != 0 {
                continue;
            }
            self.pages.remove(&page);
            self.access.unwatch(page);
            let inside: Vec<u64> = self.links.range(page..page + PAGE).map(|(&at, _)| at).collect();
            for at in inside {
                if let Some((child, table)) = self.links.remove(&at) {
                    less.extend(pages_of(child, table.granule));
                }
            }
        }
    }

    /// The word at `pa`.
    pub(super) fn read(&self, pa: u64) -> Option<u64> {
        self.access.read(pa & !7)
    }

    pub(super) fn is_watched(&self, pa: u64) -> bool {
        self.pages.contains_key(&(pa & !(PAGE - 1)))
    }

    /// Whether the page is known to be a table, and which.
    pub(super) fn table(&self, pa: u64) -> Option<Table> {
        self.pages.get(&(pa & !(PAGE - 1)))?.table
    }

    /// Notes that a watched page is a table.
    pub(super) fn is_table(&mut self, pa: u64, table: Table) {
        if let Some(page) = self.pages.get_mut(&(pa & !(PAGE - 1))) {
            page.table = Some(table);
        }
    }

    /// Who wrote the word at `pa` last, if that was seen.
    pub(super) fn writer(&self, pa: u64) -> Option<Site> {
        self.pages.get(&(pa & !(PAGE - 1)))?.writers.get(&(((pa & (PAGE - 1)) >> 3) as u16)).copied()
    }

    /// Notes a writer.
    pub(super) fn wrote(&mut self, pa: u64, site: Site) {
        if let Some(page) = self.pages.get_mut(&(pa & !(PAGE - 1))) {
            page.writers.insert(((pa & (PAGE - 1)) >> 3) as u16, site);
        }
    }

    /// Notes that the descriptor at `at` leads to a table, or to none.
    pub(super) fn link(&mut self, at: u64, to: Option<(u64, Table)>) {
        let old = self.links.get(&at).copied();
        if old == to {
            return;
        }
        if let Some((child, table)) = to {
            for page in pages_of(child, table.granule) {
                self.hold(page);
                if let Some(page) = self.pages.get_mut(&page) {
                    page.table = Some(table);
                }
            }
            self.links.insert(at, (child, table));
        } else {
            self.links.remove(&at);
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
