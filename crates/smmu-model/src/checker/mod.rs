//! The checker: says what the guest did wrong with its SMMU, and where (docs/checker.md).
//!
//! It watches an [`Smmu`](crate::Smmu) as an [`Observer`], and is told of the guest's stores to the pages that it asks
//! for. From these it keeps what an implementation with caches of any size could still hold, and reports when that turns
//! into a mistake. It changes nothing.

mod answers;
mod atc;
mod commands;
mod dma;
mod index;
mod judge;
mod level1;
mod memory;
mod queue;
mod report;
mod resume;
mod scope;
mod site;
mod streams;
mod tables;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

pub use memory::Pages;
pub use report::{Kind, Report, Reports};
pub use site::{CALLERS, Role, Site};

use self::answers::Answers;
use self::atc::Atcs;
use self::dma::Dma;
use self::level1::Level1s;
use self::memory::Memory;
use self::queue::Commands;
use self::streams::Streams;
use self::tables::{Tables, Watch};
use crate::ats::{AtsAnswer, AtsRequest};
use crate::config::Config;
use crate::observer::{Descriptor, Level1, Observer};
use crate::pri::PageRequest;
use crate::queue::Queue;
use crate::spec::command::{Cerror, Command};
use crate::spec::event::Event;
use crate::transaction::{Transaction, Translation, TxnId};

/// How patient the checker is, in nanoseconds of virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long after a change of an STE or CD, or of a translation of a stream whose faults stall, a device may go on
    /// with the old one before the missing invalidation is a mistake.
    pub invalidation: u64,
    /// How long a stall, a page request or an overflow may wait for its answer.
    pub answer: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { invalidation: 100_000_000, answer: 2_000_000_000 }
    }
}

/// The checker. Copies of the handle are the same checker: one is the SMMU's observer, another is told of stores.
#[derive(Clone)]
pub struct Checker(Arc<Shared>);

struct Shared {
    /// Virtual time. It goes on far more often than anything happens.
    now: AtomicU64,
    /// When to look for answers again.
    next_look: AtomicU64,
    state: Mutex<State>,
}

struct State {
    config: Config,
    patience: Patience,
    /// Virtual time of what is happening.
    now: u64,
    /// Counts everything that happens, for what was before what.
    seq: u64,
    memory: Memory,
    tables: Tables,
    level1s: Level1s,
    streams: Streams,
    commands: Commands,
    dma: Dma,
    answers: Answers,
    atcs: Atcs,
    smmuen: bool,
    cr0: u32,
    reports: Reports,
}

impl Checker {
    /// A checker of an SMMU of this configuration, which must be out of reset.
    #[must_use]
    pub fn new(config: &Config, patience: Patience, pages: Box<dyn Pages>) -> Self {
        let state = State {
            config: config.clone(),
            patience,
            now: 0,
            seq: 0,
            memory: Memory::new(pages),
            tables: Tables::default(),
            level1s: Level1s::default(),
            streams: Streams::default(),
            commands: Commands::new(Queue::default(), config),
            dma: Dma::default(),
            answers: Answers::default(),
            atcs: Atcs::default(),
            smmuen: false,
            cr0: 0,
            reports: Reports::default(),
        };
        let (now, next_look) = (AtomicU64::new(0), AtomicU64::new(0));
        Checker(Arc::new(Shared { now, next_look, state: Mutex::new(state) }))
    }

    #[inline]
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock().unwrap_or_else(|e| e.into_inner());
        state.now = self.0.now.load(Ordering::Relaxed);
        state
    }

    /// Virtual time goes on. To be called before whatever happens at that time.
    #[inline]
    pub fn set_time(&self, now: u64) {
        self.0.now.store(now, Ordering::Relaxed);
        if now >= self.0.next_look.load(Ordering::Relaxed) {
            self.look_for_answers(now);
        }
    }

    #[cold]
    fn look_for_answers(&self, now: u64) {
        let mut state = self.state();
        let patience = state.patience.answer;
        self.0.next_look.store(now + patience / 16, Ordering::Relaxed);
        state.look_for_answers(patience);
    }

    /// A vCPU is about to store the low `size` bytes of `value` at `pa`, in a watched page.
    pub fn cpu_store(&self, site: &Site, pa: u64, size: u8, value: u128) {
        self.0.now.store(site.time, Ordering::Relaxed);
        let mut state = self.state();
        if size == 8 && pa & 7 == 0 {
            if let Some(old) = state.memory.read(pa) {
                state.store(pa, old, value as u64, site);
            }
            return;
        }
        let last = pa + u64::from(size.max(1)) - 1;
        // Words that change at once may be seen one after the other all the same.
        for at in (pa & !7..=last).step_by(8) {
            let Some(old) = state.memory.read(at) else { continue };
            let mut new = old.to_le_bytes();
            for (n, byte) in new.iter_mut().enumerate() {
                let offset = (at + n as u64).wrapping_sub(pa);
                if offset < u64::from(size) {
                    *byte = (value >> (8 * offset)) as u8;
                }
            }
            state.store(at, old, u64::from_le_bytes(new), site);
        }
    }

    /// A device has written `len` bytes at `pa`, in a watched page.
    pub fn device_store(&self, pa: u64, len: u64) {
        let mut state = self.state();
        let site = Site::device(state.now);
        let last = pa.saturating_add(len.max(1) - 1);
        for at in (pa & !7..=last).step_by(8).take(1 << 16) {
            if let Some(new) = state.memory.read(at) {
                state.store(at, !new, new, &site);
            }
        }
    }

    /// The run ends: what is still open is judged by what it would have needed by now.
    pub fn finish(&self) {
        let mut state = self.state();
        let patience = state.patience.invalidation;
        state.look_for_answers(patience);
    }

    /// What was found since the last call, oldest first.
    #[must_use]
    pub fn take_reports(&self) -> Vec<Report> {
        self.state().reports.take()
    }

    /// Whether [`Checker::take_reports`] has something.
    #[must_use]
    pub fn has_reports(&self) -> bool {
        !self.state().reports.is_empty()
    }

    /// How many reports were left out because there were many of their kind.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state().reports.dropped()
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Reports something, once: `key` tells what it is about.
    fn report(&mut self, key: (u64, u64), report: Report) {
        if self.reports.wants(report.kind, key) {
            self.reports.add(key, report);
        }
    }

    /// Watches what the tables' entries want watched.
    #[inline]
    fn watch(&mut self) {
        if self.tables.watches.is_empty() {
            return;
        }
        for watch in self.tables.watches.drain(..) {
            match watch {
                Watch::Hold(at) => self.memory.hold(at),
                Watch::Release(at) => self.memory.release(at),
            }
        }
    }

    /// The word at `at` becomes `new`.
    fn store(&mut self, at: u64, old: u64, new: u64, site: &Site) {
        let Some(content) = self.memory.content(at) else { return };
        let seq = self.tick();
        if content.queue && site.cpu.is_some() && old != new {
            self.command_store(at, site);
        }
        if content.configuration {
            self.level1_store(at, new, seq, site);
            self.structure_store(at, new, seq, site);
        }
        if content.tables {
            self.table_store(at, new, seq, site);
        }
        self.settle_atcs(at, new, seq, site);
        self.memory.wrote(at, site);
        self.watch();
    }
}

impl Observer for Checker {
    fn command(&mut self, command: &Command) {
        self.state().command(command);
    }

    fn fetched(&mut self, at: u64) {
        self.state().commands.at = at;
    }

    fn command_error(&mut self, command: &Command, error: Cerror) {
        self.state().command_error(command, error);
    }

    fn register(&mut self, offset: u64, value: u32) {
        self.state().register(offset, value);
    }

    fn level1(&mut self, what: Level1, at: u64, word: u64) {
        self.state().level1_fetched(what, at, word);
    }

    fn ste(&mut self, sid: u32, at: u64, words: &[u64; 8]) {
        self.state().structure(streams::What::Ste(sid), at, words);
    }

    fn cd(&mut self, sid: u32, cd: u32, at: u64, words: &[u64; 8]) {
        self.state().structure(streams::What::Cd(sid, cd), at, words);
    }

    fn descriptor(&mut self, descriptor: &Descriptor) {
        self.state().descriptor(descriptor);
    }

    fn updated(&mut self, at: u64, value: u64) {
        let mut state = self.state();
        let (seq, site) = (state.tick(), Site::device(state.now));
        state.table_store(at, value, seq, &site);
    }

    fn ats_translation(&mut self, request: &AtsRequest, answer: &AtsAnswer) {
        self.state().answered(request, answer);
    }

    fn latched_translated(&mut self, _: TxnId, t: &Transaction, _: &Translation) {
        self.state().translated(t);
    }

    fn page_requested(&mut self, request: &PageRequest) {
        self.state().page_requested(request);
    }

    fn latched(&mut self, id: TxnId, t: &Transaction, translation: &Translation) {
        self.state().latched(id, t, translation);
    }

    fn passed(&mut self, t: &Transaction) {
        self.state().passed(t);
    }

    fn completed(&mut self, id: TxnId) {
        self.state().dma.over(id);
    }

    fn faulted(&mut self, event: &Event) {
        self.state().faulted(event);
    }

    fn event(&mut self, event: &Event) {
        self.state().recorded(event);
    }
}
