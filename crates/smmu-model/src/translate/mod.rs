//! A transaction's way through the SMMU (section 3.3): stream, context, stage 1, stage 2, one fetch a step.
//!
//! Every function here does what can be done without memory and ends in an [`Outcome`]: a fetch to wait for, or the end.

mod at_once;
mod attrs;
mod context;
mod fault;
mod known;
mod mapping;
mod peek;
mod route;
mod stages;
mod stream;
mod tables;
mod txn;

pub(crate) use attrs::mair_of_memattr;
pub(crate) use context::Context;
pub use peek::LookOnly;
pub(crate) use route::Routes;
pub(crate) use stream::{Eats, Overrides, Path, Stream};
pub(crate) use tables::{l1std_range, leads_to};
pub(crate) use txn::{Origin, State, Txn, Txns};

use pgtable::Permissions;

use self::at_once::Rest;
use self::route::Known;
use self::txn::Fetch;
use crate::ats::{AtsAnswer, AtsTranslation};
use crate::cache::Mapping;
use crate::memory::Memory;
use crate::pmcg::PmuEvent;
use crate::smmu::Smmu;
use crate::spec::event::EventKind;
use crate::spec::registers::gbpa;
use crate::transaction::{AccessKind, MemAttrs, Progress, Transaction, Translation, TxnId};

/// What came of a transaction as far as it could go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// It waits for its fetch.
    Fetch,
    /// It is translated.
    Latch(Translation),
    /// It is terminated with an abort.
    Abort,
    /// It is terminated as RAZ/WI.
    Discard,
    /// It stalls; the tag of the transaction whose record stands for it.
    Stall(Option<u16>),
    /// It is a Translation Request, and answered.
    Answer(AtsAnswer),
    /// It is an address translation operation; PAR.
    Par(u64),
    /// It is a page request, and responded to; STE.PPAR.
    Respond { with_pasid: bool },
}

impl Outcome {
    /// The answer to a Translation Request that would fault.
    pub(crate) const NO_ACCESS: Outcome = Outcome::Answer(AtsAnswer::Success(AtsTranslation {
        address: 0,
        size: 12,
        read: false,
        write: false,
        execute: false,
        privileged: false,
    }));
}

impl Smmu {
    /// A transaction arrives. No memory is accessed: what the caches do not have is fetched by [`Smmu::step`].
    #[inline]
    pub fn begin(&mut self, t: &Transaction) -> Progress {
        self.stats.transactions += 1;
        self.tally(PmuEvent::Transaction, t.sid);
        if self.regs.smmuen()
            && let Some(translation) = self.hit(t)
        {
            return self.latch_hit(t, translation);
        }
        self.begin_without_answer(t)
    }

    #[inline(never)]
    fn begin_without_answer(&mut self, t: &Transaction) -> Progress {
        if !self.regs.smmuen() {
            return self.global_bypass(t);
        }
        let known = self.known(t);
        if let Some(known) = &known
            && known.half.is_some()
            && let Some(entry) = self.look_up(known)
            && let Some(translation) = self.found(t, known, entry)
        {
            return self.latch_hit(t, translation);
        }
        let id = self.txns.add(self.recent.epoch(), true, State::Free);
        let mut txn = Box::new(Txn::new(t, Origin::Untranslated, self.recent.epoch()));
        let outcome = self.start_with(id, &mut txn, known);
        self.settle(id, txn, outcome)
    }

    /// [`Smmu::begin`], and [`Smmu::step`] until it no longer walks: for a transaction that nothing comes between. Gives
    /// the number of steps, too.
    #[inline]
    pub fn translate<M: Memory + ?Sized>(&mut self, t: &Transaction, mem: &M) -> (Progress, u64) {
        self.stats.transactions += 1;
        self.tally(PmuEvent::Transaction, t.sid);
        if self.regs.smmuen()
            && let Some(translation) = self.hit(t)
        {
            return (self.latch_hit(t, translation), 0);
        }
        self.translate_without_answer(t, mem)
    }

    #[inline(never)]
    fn translate_without_answer<M: Memory + ?Sized>(&mut self, t: &Transaction, mem: &M) -> (Progress, u64) {
        if !self.regs.smmuen() {
            return (self.global_bypass(t), 0);
        }
        let Some(known) = self.known(t) else { return self.translate_by_steps(t, mem, None) };
        if known.half.is_some()
            && let Some(entry) = self.look_up(&known)
        {
            return match self.found(t, &known, entry) {
                Some(translation) => (self.latch_hit(t, translation), 0),
                None => self.translate_by_steps(t, mem, Some(known)),
            };
        }
        // Whoever watches sees each step.
        if self.observer.0.is_none()
            && let Some(half) = known.half
        {
            let mut steps = 0;
            return match self.walk_at_once(t, &known, half, mem, &mut steps) {
                Ok(translation) => (self.latch_walked(translation), steps),
                Err(rest) => self.finish_at_once(t, mem, known, *rest, steps),
            };
        }
        self.translate_by_steps(t, mem, Some(known))
    }

    /// The steps go on from where a walk in a row came to.
    #[inline(never)]
    fn finish_at_once<M: Memory + ?Sized>(
        &mut self,
        t: &Transaction,
        mem: &M,
        known: Known,
        rest: Rest,
        steps: u64,
    ) -> (Progress, u64) {
        self.finish_by_steps(t, mem, steps, |smmu, id, txn| smmu.go_on(id, txn, &known, rest))
    }

    /// A walk in a row has translated.
    #[inline(always)]
    fn latch_walked(&mut self, translation: Translation) -> Progress {
        let id = self.txns.add(self.recent.epoch(), true, State::Latched(translation));
        Progress::Latched(id, translation)
    }

    /// All steps.
    #[inline(never)]
    fn translate_by_steps<M: Memory + ?Sized>(
        &mut self,
        t: &Transaction,
        mem: &M,
        known: Option<Known>,
    ) -> (Progress, u64) {
        self.finish_by_steps(t, mem, 0, |smmu, id, txn| smmu.start_with(id, txn, known))
    }

    /// Begins with `begin`, and goes on to the end.
    fn finish_by_steps<M: Memory + ?Sized>(
        &mut self,
        t: &Transaction,
        mem: &M,
        mut steps: u64,
        begin: impl FnOnce(&mut Self, TxnId, &mut Txn) -> Outcome,
    ) -> (Progress, u64) {
        let id = self.txns.add(self.recent.epoch(), true, State::Free);
        let mut txn = Txn::new(t, Origin::Untranslated, self.recent.epoch());
        let mut outcome = begin(self, id, &mut txn);
        while let Outcome::Fetch = outcome {
            outcome = self.fetches::<M, true>(id, &mut txn, mem, &mut steps);
        }
        let progress = match outcome {
            Outcome::Latch(translation) => self.latch(id, &txn, translation),
            outcome => self.settle(id, Box::new(txn), outcome),
        };
        (progress, steps)
    }

    /// The caches knew all about a transaction.
    #[inline(always)]
    fn latch_hit(&mut self, t: &Transaction, translation: Translation) -> Progress {
        self.stats.tlb_hits += 1;
        self.stats.translated += 1;
        let id = self.txns.add(self.recent.epoch(), true, State::Latched(translation));
        if self.observer.0.is_some() {
            self.tell_latched(id, t, translation);
        }
        Progress::Latched(id, translation)
    }

    #[inline(never)]
    fn tell_latched(&mut self, id: TxnId, t: &Transaction, translation: Translation) {
        self.observer.tell(|o| o.latched(id, t, &translation));
    }

    /// Takes a transaction one fetch further. One that is not known (any more) is aborted.
    pub fn step(&mut self, id: TxnId, mem: &dyn Memory) -> Progress {
        let Some(state) = self.txns.get(id) else { return Progress::Aborted };
        match state {
            State::Walking(_) => {
                let State::Walking(mut txn) = std::mem::replace(state, State::Free) else {
                    return Progress::Aborted;
                };
                match self.fetch(id, &mut txn, mem) {
                    Outcome::Fetch => {
                        self.txns.put_back(id, txn);
                        Progress::Walking(id)
                    }
                    outcome => self.settle(id, txn, outcome),
                }
            }
            State::Latched(translation) => Progress::Latched(id, *translation),
            State::Stalled(txn) if self.config.stall_retry && txn.behind.is_none() => {
                let txn = txn.anew(self.recent.epoch());
                self.retry_early(id, txn)
            }
            State::Stalled(..) => Progress::Stalled(id),
            &mut State::Dead { abort } => {
                self.txns.remove(id);
                if abort { Progress::Aborted } else { Progress::Discarded }
            }
            State::Free | State::Abandoned(_) => Progress::Aborted,
        }
    }

    /// A stalled transaction is tried again though nobody has asked for that (section 3.12.2.2).
    fn retry_early(&mut self, id: TxnId, mut txn: Box<Txn>) -> Progress {
        txn.retried = true;
        self.txns.owe(id, txn.incoming.sid);
        self.txns.renew(id, txn.epoch);
        if let Some(state) = self.txns.get(id) {
            *state = State::Free;
        }
        let outcome = self.start(id, &mut txn);
        self.settle(id, txn, outcome)
    }

    /// The transaction's data has moved; or its device gives it up, at whatever point it is.
    #[inline]
    pub fn complete(&mut self, id: TxnId) {
        self.txns.remove(id);
        self.observer.tell(|o| o.completed(id));
        self.settle_disable();
    }

    /// Puts a transaction where its outcome says.
    pub(crate) fn settle(&mut self, id: TxnId, txn: Box<Txn>, outcome: Outcome) -> Progress {
        let (state, progress) = match outcome {
            Outcome::Fetch => (State::Walking(txn), Progress::Walking(id)),
            Outcome::Latch(translation) => return self.latch(id, &txn, translation),
            Outcome::Stall(behind) => {
                let mut txn = txn;
                txn.behind = behind;
                self.stats.stalled += u64::from(!txn.retried);
                (State::Stalled(txn), Progress::Stalled(id))
            }
            Outcome::Abort
            | Outcome::Discard
            | Outcome::Answer(_)
            | Outcome::Par(_)
            | Outcome::Respond { .. } => {
                self.stats.terminated += u64::from(!matches!(txn.origin, Origin::Prefetch { .. }));
                self.complete(id);
                return if matches!(outcome, Outcome::Discard) {
                    Progress::Discarded
                } else {
                    Progress::Aborted
                };
            }
        };
        if let Some(slot) = self.txns.get(id) {
            *slot = state;
        }
        progress
    }

    /// A transaction is translated.
    fn latch(&mut self, id: TxnId, txn: &Txn, translation: Translation) -> Progress {
        self.observer.tell(|o| match txn.origin {
            Origin::Translated => o.latched_translated(id, &txn.incoming, &translation),
            Origin::Prefetch { .. } => {}
            _ => o.latched(id, &txn.incoming, &translation),
        });
        if let Some(slot) = self.txns.get(id) {
            *slot = State::Latched(translation);
        }
        Progress::Latched(id, translation)
    }

    /// A prefetch begins (section 4.2). It is stepped and ended as a transaction is.
    pub(crate) fn begin_prefetch(&mut self, t: &Transaction, address: bool) -> Progress {
        let id = self.txns.add(self.recent.epoch(), true, State::Free);
        let mut txn = Box::new(Txn::new(t, Origin::Prefetch { address }, self.recent.epoch()));
        let outcome = self.start(id, &mut txn);
        self.settle(id, txn, outcome)
    }

    /// SMMUEN is 0: GBPA decides (section 3.11).
    fn global_bypass(&mut self, t: &Transaction) -> Progress {
        let attributes = self.regs.gbpa;
        // An address wider than OAS cannot go anywhere; without an enabled SMMU there is no event for it (section 3.4).
        if attributes & gbpa::ABORT != 0 || t.address >> self.config.oas != 0 {
            self.stats.terminated += 1;
            return Progress::Aborted;
        }
        self.stats.bypassed += 1;
        self.observer.tell(|o| o.passed(t));
        let overrides = Overrides {
            privcfg: (attributes >> 16 & 3) as u8,
            instcfg: (attributes >> 18 & 3) as u8,
            shcfg: (attributes >> 12 & 3) as u8,
            memattr: (attributes & gbpa::MTCFG != 0).then_some((attributes & gbpa::MEMATTR) as u8),
        };
        let translation = self.untranslated(t, &overrides);
        let id = self.txns.add(self.recent.epoch(), false, State::Latched(translation));
        Progress::Latched(id, translation)
    }

    /// The transaction finds something not cached, for the first time of this kind or not.
    pub(crate) fn miss(&mut self, txn: &mut Txn, event: PmuEvent) {
        if txn.missed >> event as u8 & 1 == 0 {
            txn.missed |= 1 << event as u8;
            self.tally(event, txn.incoming.sid);
        }
    }

    /// The input address, as far as physical addresses go.
    fn untranslated(&self, t: &Transaction, overrides: &Overrides) -> Translation {
        let bytes = (1 << self.config.oas) - t.address;
        Translation { pa: t.address, bytes, attrs: overrides.attrs(t.attrs) }
    }

    /// Begins with what is known of the configuration.
    fn start_with(&mut self, id: TxnId, txn: &mut Txn, known: Option<Known>) -> Outcome {
        let Some(known) = known else { return self.start(id, txn) };
        self.configure(txn, &known);
        self.stage1(id, txn)
    }

    /// Begins, or begins anew: the stream comes first.
    pub(crate) fn start(&mut self, id: TxnId, txn: &mut Txn) -> Outcome {
        if let Some(outcome) = self.bad_atos_request(txn) {
            return outcome;
        }
        match self.streams.get(&u64::from(txn.incoming.sid)) {
            Some(stream) => {
                let stream = *stream;
                self.with_stream(id, txn, stream)
            }
            None => self.find_stream(txn),
        }
    }

    /// The stream is known: where to now?
    fn with_stream(&mut self, id: TxnId, txn: &mut Txn, stream: Stream) -> Outcome {
        txn.stream = stream;
        txn.t = stream.overrides.access(&txn.incoming);
        if stream.path == Path::Invalid {
            return self.config_fault(txn, EventKind::BadSte);
        }
        match txn.origin {
            Origin::Untranslated | Origin::Prefetch { .. } if stream.aborts() => return Outcome::Abort,
            Origin::Untranslated | Origin::Prefetch { .. } => {}
            Origin::AtsRequest { .. } => {
                if let Some(outcome) = self.check_ats_request(txn) {
                    return outcome;
                }
            }
            Origin::Translated => {
                return match self.check_translated(txn) {
                    Some(outcome) => outcome,
                    // What it has is the output of stage 1.
                    None => self.without_stage1(id, txn),
                };
            }
            Origin::Atos(lookup) => {
                // Overrides are for transactions.
                txn.t = txn.incoming;
                if let Some(outcome) = self.check_atos(txn, lookup) {
                    return outcome;
                }
                if !lookup.has_stage1() {
                    return self.without_stage1(id, txn);
                }
            }
            Origin::PageRequest(_) => return Outcome::Respond { with_pasid: stream.ppar },
        }
        match stream.substream(txn.t.ssid) {
            Ok((cd, true)) => {
                txn.cd = cd;
                self.find_context(id, txn)
            }
            Ok((_, false)) if txn.origin == Origin::Prefetch { address: false } => Outcome::Abort,
            Ok((_, false)) => self.without_stage1(id, txn),
            Err(SubstreamFault::Bad) => self.config_fault(txn, EventKind::BadSubstreamId),
            Err(SubstreamFault::Disabled) => self.config_fault(txn, EventKind::StreamDisabled),
        }
    }

    /// Bypass, or stage 2 alone.
    fn without_stage1(&mut self, id: TxnId, txn: &mut Txn) -> Outcome {
        if txn.t.address >> self.config.oas != 0 {
            return self.input_size_fault(txn);
        }
        if txn.ends_at_stage1() {
            return self.atos_identity(txn);
        }
        if txn.stream.path.has_stage2() {
            // With S1DSS, a nested stream gets here too.
            return self.stage2(id, txn, txn.t.address, txn::Purpose::Input);
        }
        if txn.is_ats_request() {
            return self.ats_identity();
        }
        self.stats.bypassed += 1;
        Outcome::Latch(self.untranslated(&txn.t, &txn.stream.overrides))
    }
}

/// Why a transaction's SubstreamID, or its lack, is refused.
enum SubstreamFault {
    /// C_BAD_SUBSTREAMID.
    Bad,
    /// F_STREAM_DISABLED.
    Disabled,
}

impl Stream {
    /// Index of the CD for a transaction, and whether stage 1 applies at all (STE.S1CDMax, S1DSS; section 3.9).
    #[inline]
    fn substream(&self, ssid: Option<u32>) -> Result<(u32, bool), SubstreamFault> {
        const DSS_TERMINATE: u8 = 0;
        const DSS_BYPASS: u8 = 1;
        const DSS_CD0: u8 = 2;
        match ssid {
            Some(_) if !self.path.has_stage1() => Err(SubstreamFault::Bad),
            Some(ssid) if self.cds.max == 0 || ssid >> self.cds.max != 0 => Err(SubstreamFault::Bad),
            Some(0) if self.dss == DSS_CD0 => Err(SubstreamFault::Disabled),
            Some(ssid) => Ok((ssid, true)),
            None if !self.path.has_stage1() => Ok((0, false)),
            None if self.cds.max == 0 => Ok((0, true)),
            None if self.dss == DSS_TERMINATE => Err(SubstreamFault::Disabled),
            None => Ok((0, self.dss != DSS_BYPASS)),
        }
    }
}

impl Txn {
    /// A stalled transaction, as if it had just arrived.
    pub(crate) fn anew(&self, epoch: u64) -> Box<Self> {
        Box::new(Txn::new(&self.incoming, self.origin, epoch))
    }

    pub(crate) fn new(t: &Transaction, origin: Origin, epoch: u64) -> Self {
        Txn {
            t: *t,
            incoming: *t,
            origin,
            split: false,
            fetch: Fetch::Start,
            at: 0,
            tables: [0; 2],
            words: [0; 8],
            have: 0,
            retried: false,
            behind: None,
            missed: 0,
            stream: Stream::default(),
            context: Context::default(),
            cd: 0,
            ipa: 0,
            epoch,
        }
    }
}

/// Key of a CD in its cache.
pub(crate) fn context_key(sid: u32, cd: u32) -> u64 {
    u64::from(sid) << 32 | u64::from(cd)
}

/// What the IOTLB goes by: with TBI, addresses that differ in the top byte are one.
fn without_top_byte(address: u64) -> u64 {
    ((address << 8) as i64 >> 8) as u64
}

/// The permissions that a transaction needs.
#[inline]
pub(crate) fn wanted(t: &Transaction) -> Permissions {
    let (read, write, execute) = match t.privileged {
        true => (Permissions::PRIV_READ, Permissions::PRIV_WRITE, Permissions::PRIV_EXEC),
        false => (Permissions::USER_READ, Permissions::USER_WRITE, Permissions::USER_EXEC),
    };
    match t.kind {
        AccessKind::Read if t.instruction => execute,
        AccessKind::Read => read,
        AccessKind::Write => write,
        AccessKind::Atomic => read | write,
    }
}

/// Where `input` goes under a mapping.
#[inline]
fn translation(mapping: &Mapping, input: u64) -> Translation {
    to(mapping.output, mapping.shift, mapping.attrs, input)
}

/// Where `input` goes if it is translated to `output`, with 2 to the power of `shift` bytes.
#[inline]
fn to(output: u64, shift: u8, attrs: MemAttrs, input: u64) -> Translation {
    let size = 1u64 << (shift & 63);
    let offset = input & (size - 1);
    Translation { pa: output | offset, bytes: size - offset, attrs }
}
