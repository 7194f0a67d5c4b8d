//! What the vCPUs share: RAM, decoded pages, exclusive reservations, broadcasts, and why a run ends.

use guest_ram::{CODE, GuestRam, MONITOR, PAGE_SIZE, STORES};
use serde::{Deserialize, Serialize};

use crate::config::Features;
use crate::core::{Core, Reservation};
use crate::engine::CodeCache;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// The budget is spent.
    Budget,
    /// The platform asked for it, or a timer was reprogrammed: ask for the deadlines again.
    Yield,
    /// WFI with nothing pending: wait until [`Cluster::wfi_wake`](crate::Cluster::wfi_wake).
    Wfi,
    /// WFE with the event register clear: wait until [`Cluster::take_event`](crate::Cluster::take_event), or for what
    /// wakes WFI.
    Wfe,
    /// HVC from EL1, with its immediate. `pc` is behind it; PSCI's arguments and result are in X0 to X3.
    Hvc(u16),
}

/// What an instruction does to the other vCPUs. It reaches them when the run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Broadcast {
    /// TLBI …IS, as the system instruction and its operand.
    Tlbi(crate::platform::SysKey, u64),
    /// SEV.
    Event,
}

/// What all vCPUs share.
#[derive(Debug)]
pub struct Shared {
    /// Guest memory.
    pub ram: GuestRam,
    /// Architecture options.
    pub features: Features,
    /// Why the run ends after this instruction, if it does.
    pub exit: Option<Exit>,
    /// What the running vCPU did to the others, oldest first.
    pub broadcast: Vec<Broadcast>,
    /// Decoded instructions.
    pub(crate) code: CodeCache,
    /// Open reservations of the vCPUs that do not run, by index. The running one's is in [`Core::monitor`].
    pub(crate) monitors: Vec<Option<Reservation>>,
    /// Pages (by index in RAM) that became watched: keys for them must go from every vCPU's TLB.
    pub(crate) watched: Vec<usize>,
    /// Pages that are watched for a reservation.
    reserved: Vec<usize>,
}

impl Shared {
    pub(crate) fn new(ram: GuestRam, features: Features, cpus: usize) -> Self {
        let pages = (ram.size() as usize).div_ceil(PAGE_SIZE);
        Self {
            ram,
            features,
            exit: None,
            broadcast: Vec::new(),
            code: CodeCache::new(pages),
            monitors: vec![None; cpus],
            watched: Vec::new(),
            reserved: Vec::new(),
        }
    }

    /// A store by the running vCPU to `len` bytes of RAM at `pa`, of which a page is watched: decoded instructions
    /// there are forgotten and the other vCPUs' reservations broken. To be called before the store is done, and
    /// followed by [`Ctx::end_block`](crate::core::Ctx::end_block) when it answers `true`: instructions that may be
    /// about to execute were overwritten.
    pub fn watched_store(&mut self, pa: u64, len: u64) -> bool {
        let Some(offset) = self.ram.offset(pa, len) else { return false };
        let (first, last) = (offset as usize / PAGE_SIZE, (offset + len.max(1) - 1) as usize / PAGE_SIZE);
        let mut code = false;
        for page in first..=last {
            let flags = self.ram.watch().flags(page);
            if flags & CODE != 0 {
                code |= self.code_written(page);
            }
            if flags & MONITOR != 0 {
                self.monitor_written(pa, len);
            }
        }
        code
    }

    /// Forgets what was decoded from a page. The flag goes too, so that data in a page that once held code is
    /// fast again.
    fn code_written(&mut self, page: usize) -> bool {
        self.ram.watch().clear(page, CODE);
        self.code.forget(page)
    }

    /// Breaks the reservations of the other vCPUs that overlap a store.
    fn monitor_written(&mut self, pa: u64, len: u64) {
        for monitor in &mut self.monitors {
            if monitor.is_some_and(|m| m.overlaps(pa, len)) {
                *monitor = None;
            }
        }
    }

    /// What devices wrote since the last time.
    pub(crate) fn device_writes(&mut self) {
        for hit in self.ram.watch().clone().take_hits() {
            self.watched_store(self.ram.base() + hit.offset, u64::from(hit.len));
        }
    }

    /// Forgets all decoded instructions.
    pub(crate) fn forget_all_code(&mut self) {
        for page in self.code.all_pages() {
            self.code_written(page);
        }
    }

    /// Watches `pages` for reservations, and no others.
    pub(crate) fn watch_monitors(&mut self, pages: Vec<usize>) {
        for page in self.reserved.iter().filter(|page| !pages.contains(page)) {
            self.ram.watch().clear(*page, MONITOR);
        }
        for &page in &pages {
            if self.ram.watch().flags(page) & STORES == 0 {
                self.watched.push(page);
            }
            self.ram.watch().set(page, MONITOR);
        }
        self.reserved = pages;
    }

    /// Before `core` executes from the RAM page at index `page`: stores to it must be noticed from now on.
    #[inline]
    pub(crate) fn watch_code(&mut self, core: &mut Core, page: usize) {
        if self.ram.watch().flags(page) & CODE == 0 {
            self.watch_page(core, page, CODE);
        }
    }

    /// Sets a watch flag and drops the write keys that would bypass it.
    #[cold]
    pub(crate) fn watch_page(&mut self, core: &mut Core, page: usize, flag: u8) {
        let before = self.ram.watch().flags(page);
        self.ram.watch().set(page, flag);
        if before & STORES == 0 {
            core.mmu.drop_keys(self.ram.base() + (page * PAGE_SIZE) as u64, flag);
            self.watched.push(page);
        }
    }

    /// Takes note of the pages that became traced since the last time.
    pub(crate) fn newly_traced(&mut self) {
        if self.ram.watch().has_fresh() {
            self.watched.extend(self.ram.watch().take_fresh());
        }
    }

    /// The same while `core` runs: something outside began to trace pages when it was called.
    #[inline]
    pub(crate) fn traced_meanwhile(&mut self, core: &mut Core) {
        if self.ram.watch().has_fresh() {
            let first = self.watched.len();
            self.newly_traced();
            for &page in &self.watched[first..] {
                let pa = self.ram.base() + (page * PAGE_SIZE) as u64;
                core.mmu.drop_keys(pa, self.ram.watch().flags(page));
            }
        }
    }
}
