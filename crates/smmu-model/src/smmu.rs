//! The SMMU as a whole: its state, and what register writes set off.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::ats::Invalidations;
use crate::cache::{Answers, Recent, Sets, Shape, Tlb, Walks};
use crate::commands::{Prefetch, Sync};
use crate::config::Config;
use crate::events::Fifo;
use crate::irq::{Msi, Wired};
use crate::observer::{Observer, Seat};
use crate::pmcg::{Pmcg, PmuEvent};
use crate::pri::Pri;
use crate::registers::Registers;
use crate::spec::cd::L1Cd;
use crate::spec::registers::{self as r, cr0};
use crate::spec::ste::L1Std;
use crate::stats::Stats;
use crate::transaction::TxnId;
use crate::translate::{Context, Routes, Stream, Txns};

/// One SMMUv3.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Smmu {
    pub(crate) config: Config,
    pub(crate) regs: Registers,
    /// STEs by StreamID.
    pub(crate) streams: Sets<u64, Stream>,
    /// CDs by StreamID and index.
    pub(crate) contexts: Sets<u64, Context>,
    /// Level 1 stream table descriptors and CD table descriptors, by what of the index they stand for.
    pub(crate) l1stds: Sets<u64, L1Std>,
    pub(crate) l1cds: Sets<u64, L1Cd>,
    pub(crate) tlb: Tlb,
    /// Stage 2 translations.
    pub(crate) ipas: Tlb,
    /// Tables that walks went through.
    pub(crate) walks: Walks,
    /// What the caches above answered lately.
    #[serde(skip)]
    pub(crate) answers: Answers,
    /// What STEs and CDs made of transactions lately.
    #[serde(skip)]
    pub(crate) routes: Routes,
    pub(crate) txns: Txns,
    /// Counts invalidations: a transaction that began before one may use what it removed.
    pub(crate) recent: Recent,
    /// What the CMD_SYNC at the head of the queue waits for.
    pub(crate) sync: Option<Sync>,
    /// The walk of a prefetch command, and the queue that it is of.
    pub(crate) prefetch: Option<Prefetch>,
    /// The command queue that the last command was consumed of.
    pub(crate) turn: u32,
    pub(crate) events: Fifo,
    /// Events that ever were in the FIFO.
    pub(crate) events_recorded: u64,
    pub(crate) invalidations: Invalidations,
    pub(crate) pri: Pri,
    /// The lookups of GATOS and VATOS that are under way.
    pub(crate) lookups: [Option<TxnId>; 2],
    /// The group that stepped last.
    pub(crate) atos_turn: bool,
    pub(crate) msis: VecDeque<Msi>,
    pub(crate) wired: Wired,
    pub(crate) stats: Stats,
    /// Performance monitors.
    pub(crate) pmcg: Option<Pmcg>,
    #[serde(skip)]
    pub(crate) observer: Seat,
}

impl Smmu {
    /// An SMMU as it comes out of reset.
    ///
    /// # Panics
    /// If `config` is not valid ([`Config::validate`]).
    #[must_use]
    pub fn new(config: Config) -> Self {
        if let Err(error) = config.validate() {
            panic!("{error}");
        }
        let shape = |entries| Shape::new(&config, entries);
        Smmu {
            regs: Registers::reset(&config),
            streams: Sets::new(shape(config.ste_cache)),
            contexts: Sets::new(shape(config.cd_cache)),
            l1stds: Sets::new(shape(config.l1std_cache)),
            l1cds: Sets::new(shape(config.l1cd_cache)),
            tlb: Tlb::new(shape(config.tlb).up_to(1 << 20)),
            ipas: Tlb::new(shape(config.s2_cache).up_to(1 << 20)),
            walks: Walks::new(shape(config.walk_cache)),
            answers: Answers::default(),
            routes: Routes::default(),
            txns: Txns::default(),
            recent: Recent::default(),
            sync: None,
            prefetch: None,
            turn: 0,
            events: Fifo::new(),
            events_recorded: 0,
            invalidations: Invalidations::default(),
            pri: Pri::default(),
            lookups: [None; 2],
            atos_turn: false,
            msis: VecDeque::new(),
            wired: Wired::default(),
            stats: Stats::default(),
            pmcg: config.pmcg_shape().map(Pmcg::new),
            observer: Seat::default(),
            config,
        }
    }

    /// The implementation.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Counters since power-on.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The performance monitors, if the configuration has any (`pmcg`).
    pub fn pmcg(&mut self) -> Option<&mut Pmcg> {
        self.pmcg.as_mut()
    }

    /// Counts something for the performance monitors.
    #[inline]
    pub(crate) fn tally(&mut self, event: PmuEvent, sid: u32) {
        if let Some(pmcg) = &mut self.pmcg {
            pmcg.count(event, sid);
        }
    }

    /// Whether SMMUEN is set.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.regs.smmuen()
    }

    /// Goes on from a saved state. Whoever watches goes on watching.
    pub fn restore(&mut self, state: Smmu) {
        let observer = std::mem::take(&mut self.observer);
        *self = Smmu { observer, ..state };
    }

    /// Lets somebody watch. A copy of the SMMU, or one restored, is not watched.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.observer = Seat(Some(observer));
    }

    /// Bytes of the register pages, from page 0 on.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.config.window()
    }

    /// Reads a register. `offset` is from the start of page 0; `size` in bytes. `None`: there is no access of this kind
    /// (not 4 or 8 bytes, unaligned, outside the window); the bus answers it as RAZ.
    pub fn mmio_read(&mut self, offset: u64, size: u8) -> Option<u64> {
        let word = |smmu: &Self, offset| u64::from(smmu.regs.read(&smmu.config, offset, smmu.irq_ctrlack()));
        match size {
            4 if is_word(offset, self.window()) => Some(word(self, offset)),
            8 if is_double(offset, self.window()) => Some(word(self, offset) | word(self, offset + 4) << 32),
            _ => None,
        }
    }

    /// Writes a register; what [`Smmu::mmio_read`] answers with `None` is ignored here.
    pub fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        match size {
            4 if is_word(offset, self.window()) => self.write_word(offset, value as u32),
            8 if is_double(offset, self.window()) => {
                self.write_word(offset, value as u32);
                self.write_word(offset + 4, (value >> 32) as u32);
            }
            _ => {}
        }
    }

    fn write_word(&mut self, offset: u64, value: u32) {
        let ack = self.irq_ctrlack();
        self.regs.write(&self.config, offset, value, ack);
        if offset == r::CR0 {
            self.acknowledge();
        }
        self.begin_atos();
        if let Some(queue) = self.prefetching()
            && !self.regs.ecmdqs.get(queue.wrapping_sub(1)).is_none_or(|ecmdq| ecmdq.is_enabled())
        {
            self.drop_prefetch(queue);
        }
        let now = self.regs.read(&self.config, offset, ack);
        self.observer.tell(|o| o.register(offset, now));
    }

    /// CR0 was written: enables and queue disables are done at once; SMMUEN is off only once its transactions are done
    /// (section 6.3.9.6).
    fn acknowledge(&mut self) {
        let (cr0, ack) = (self.regs.cr0, self.regs.cr0ack);
        if ack & !cr0 & cr0::EVENTQEN != 0 {
            self.drop_events();
        }
        if ack & !cr0 & cr0::CMDQEN != 0 {
            // A CMD_SYNC that waits has not been consumed: it begins again when the queue is enabled.
            self.sync = None;
            self.drop_prefetch(0);
        }
        if ack & !cr0 & cr0::SMMUEN != 0 {
            // Stalled transactions are terminated (section 3.12.2).
            for id in self.txns.stalled(None, None) {
                self.terminate(id, true);
            }
        }
        self.regs.cr0ack = cr0 | ack & cr0::SMMUEN;
        self.settle_disable();
    }

    /// Completes SMMUEN going to 0 when nothing uses it any more.
    #[inline]
    pub(crate) fn settle_disable(&mut self) {
        if self.regs.cr0ack & !self.regs.cr0 & cr0::SMMUEN != 0 {
            self.disable_if_idle();
        }
    }

    #[inline(never)]
    fn disable_if_idle(&mut self) {
        if !self.txns.any_enabled() {
            self.regs.cr0ack &= !cr0::SMMUEN;
        }
    }
}

fn is_word(offset: u64, window: u64) -> bool {
    offset & 3 == 0 && offset < window
}

fn is_double(offset: u64, window: u64) -> bool {
    offset & 7 == 0 && offset < window
}
