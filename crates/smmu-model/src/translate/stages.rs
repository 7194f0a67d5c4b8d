//! Stage 1 and stage 2: IOTLB, walks, and what they make together (section 3.4).

use pgtable::descriptor::AF;
use pgtable::{FaultKind, Half, Leaf, Permissions, Stage1, Step, Walk};

use super::mapping::stage2_permissions;
use super::stream::Path;
use super::txn::{Fetch, Origin, Purpose, Txn};
use super::{Outcome, translation, without_top_byte};
use crate::cache::{Invalidation, Mapping, Regime, Table, Tlb, Walks};
use crate::observer::Descriptor;
use crate::pmcg::PmuEvent;
use crate::smmu::Smmu;
use crate::spec::event::{Class, Place};
use crate::transaction::TxnId;

impl Smmu {
    /// The context is known: look the address up, or begin the walk.
    pub(super) fn stage1(&mut self, id: TxnId, txn: &mut Txn) -> Outcome {
        let half = match txn.context.select(&txn.t) {
            Ok(half) => half,
            Err(fault) => return self.stage1_fault(id, txn, fault.kind),
        };
        let input = without_top_byte(txn.t.address);
        if self.has_conflict(&self.tlb, txn.regime(), input) {
            return self.tlb_conflict(txn, false);
        }
        // Combined entries do not have the IPA that a split Translation Request is for.
        if (!txn.split || self.is_by_stage(txn))
            && let Some(&mapping) = self.tlb.get(txn.regime(), input)
        {
            match txn.decided(mapping.permissions, mapping.possible) {
                Some(true) => {
                    self.stats.tlb_hits += 1;
                    if self.is_by_stage(txn) {
                        return self.second(id, txn, mapping);
                    }
                    return self.translated_by(txn, &mapping);
                }
                Some(false) => {
                    self.stats.tlb_hits += 1;
                    return self.stage1_fault(id, txn, FaultKind::Permission);
                }
                // Stage 2 refuses, and the entry does not know the IPA for the record; or the page is still clean.
                None => {}
            }
        }
        self.stats.tlb_misses += 1;
        self.miss(txn, PmuEvent::TlbMiss);
        let table = match half {
            Half::Lower => &txn.context.lower,
            Half::Upper => &txn.context.upper,
        };
        let step = match self.walks.get(txn.regime(), input) {
            Some(walk) => {
                self.stats.walk_hits += 1;
                Step::Fetch(walk)
            }
            None => Walk::stage1(table, input),
        };
        self.stage1_step(id, txn, step)
    }

    /// One step of the stage 1 walk.
    pub(super) fn stage1_step(&mut self, id: TxnId, txn: &mut Txn, step: Step) -> Outcome {
        let nested = txn.stream.path == Path::Nested;
        match step {
            Step::Fetch(walk) if nested => self.stage2(id, txn, walk.address(), Purpose::Stage1(walk)),
            Step::Fetch(walk) => txn.wait(Fetch::Stage1(walk), walk.address()),
            Step::Fault(fault) => self.stage1_fault(id, txn, fault.kind),
            Step::Done(leaf) => self.stage1_leaf(id, txn, leaf),
        }
    }

    /// The end of the stage 1 walk; again when the leaf has been updated.
    pub(super) fn stage1_leaf(&mut self, id: TxnId, txn: &mut Txn, leaf: Leaf) -> Outcome {
        let nested = txn.stream.path == Path::Nested;
        let possible = leaf.permissions(&txn.context.controls);
        let nothing = txn.is_ats_request() && !txn.granted(possible).any();
        if nothing || !possible.contains(txn.needed()) {
            return self.stage1_fault(id, txn, FaultKind::Permission);
        }
        if !txn.inhibits() && leaf.updated(txn.dirties(possible)) != leaf.descriptor {
            return match nested {
                true => self.stage2(id, txn, leaf.at, Purpose::Update(leaf)),
                false => txn.wait(Fetch::Update1(leaf), leaf.at),
            };
        }
        let mapping = Mapping::stage1(&leaf, possible, &txn.context, txn.stream.world, &self.config);
        if !nested {
            return self.translated(txn, mapping);
        }
        if self.is_by_stage(txn) {
            self.fill(txn, mapping);
        }
        self.second(id, txn, mapping)
    }

    /// Whether the IOTLB has the transaction's stages apart.
    fn is_by_stage(&self, txn: &Txn) -> bool {
        !self.config.combined && txn.stream.path == Path::Nested
    }

    /// Stage 1 of two is done.
    fn second(&mut self, id: TxnId, txn: &mut Txn, first: Mapping) -> Outcome {
        if txn.ends_at_stage1() {
            return self.atos_result(&first);
        }
        let ipa = translation(&first, txn.t.address).pa;
        self.stage2(id, txn, ipa, Purpose::Output(first))
    }

    /// Stage 1, or both stages, are done.
    fn translated(&mut self, txn: &mut Txn, mapping: Mapping) -> Outcome {
        self.fill(txn, mapping);
        self.translated_by(txn, &mapping)
    }

    /// What a mapping that has or permits everything makes of the transaction.
    fn translated_by(&mut self, txn: &Txn, mapping: &Mapping) -> Outcome {
        self.stats.translated += 1;
        match txn.origin {
            Origin::AtsRequest { .. } => self.ats_answer(txn, mapping),
            Origin::Atos(_) => self.atos_result(mapping),
            _ => Outcome::Latch(translation(mapping, txn.t.address)),
        }
    }

    /// Caches a translation of the transaction's address.
    fn fill(&mut self, txn: &Txn, mapping: Mapping) {
        if self.tlb.is_disabled() {
            return;
        }
        let (regime, input) = (txn.regime(), without_top_byte(txn.t.address));
        if self.may_fill(txn, regime, input, &mapping) && self.tlb.insert(regime, input, mapping) {
            self.stats.tlb_evictions += 1;
        }
    }

    /// Whether a translation may be cached: not if an invalidation that came after the transaction began would have
    /// removed it, for the walk may have used what is no more.
    fn may_fill(&self, txn: &Txn, regime: Regime, input: u64, mapping: &Mapping) -> bool {
        !mapping.uncached
            && self.recent.spares(txn.epoch, |i| match i {
                Invalidation::Tlb { scope, .. } => Tlb::is_covered(scope, regime, input, mapping),
                _ => false,
            })
    }

    /// Whether entries of a cache do not agree about an address. With BBML 1, a change of the Contiguous bit is no
    /// conflict (section 3.21.1.2).
    #[inline]
    fn has_conflict(&self, tlb: &Tlb, regime: Regime, input: u64) -> bool {
        self.config.tlb_conflict
            && match self.config.bbml {
                0 => tlb.conflicts(regime, input, |entry| entry.span),
                _ => tlb.conflicts(regime, input, |entry| entry.level),
            }
    }

    /// Remembers the table that a stage 1 walk is about to read.
    #[inline]
    pub(super) fn keep_stage1_table(&mut self, txn: &Txn, walk: Walk) {
        if !self.walks.is_disabled() {
            let table = Table::new(walk, txn.stage1_table().granule);
            self.keep_table(txn, txn.regime(), without_top_byte(txn.t.address), table);
        }
    }

    /// The same of stage 2.
    #[inline]
    pub(super) fn keep_stage2_table(&mut self, txn: &Txn, walk: Walk) {
        if !self.walks.is_disabled() {
            let table = Table::new(walk, txn.stream.stage2.tables.granule);
            self.keep_table(txn, txn.stream.stage2_regime(), txn.ipa, table);
        }
    }

    /// Caches a table, unless an invalidation that came after the transaction began would have removed it.
    fn keep_table(&mut self, txn: &Txn, regime: Regime, input: u64, table: Table) {
        let exact = self.config.keep_all;
        let spared = self.recent.spares(txn.epoch, |i| match i {
            Invalidation::Tlb { scope, leaf: false } => {
                Walks::is_covered(scope, exact, regime, input, &table)
            }
            _ => false,
        });
        if spared {
            self.walks.insert(regime, input, table);
        }
    }

    /// Translates `ipa` by stage 2.
    pub(super) fn stage2(&mut self, id: TxnId, txn: &mut Txn, ipa: u64, purpose: Purpose) -> Outcome {
        txn.ipa = ipa;
        if self.has_conflict(&self.ipas, txn.stream.stage2_regime(), ipa) {
            return self.tlb_conflict(txn, true);
        }
        // If not decided, the page is still clean.
        if let Some(&mapping) = self.ipas.get(txn.stream.stage2_regime(), ipa)
            && purpose.decided(txn, &mapping)
        {
            self.stats.s2_hits += 1;
            if matches!(purpose, Purpose::Input) {
                self.stats.tlb_hits += 1;
            }
            return self.stage2_done(id, txn, mapping, purpose);
        }
        self.stats.s2_misses += 1;
        if matches!(purpose, Purpose::Input) {
            self.stats.tlb_misses += 1;
            self.miss(txn, PmuEvent::TlbMiss);
        }
        let step = match self.walks.get(txn.stream.stage2_regime(), ipa) {
            Some(walk) => {
                self.stats.walk_hits += 1;
                Step::Fetch(walk)
            }
            None => Walk::stage2(&txn.stream.stage2.tables, ipa),
        };
        self.stage2_step(id, txn, step, purpose)
    }

    /// A stage 1 descriptor has come.
    pub(super) fn stage1_descriptor(
        &mut self,
        id: TxnId,
        txn: &mut Txn,
        walk: Walk,
        descriptor: u64,
        step: Step,
    ) -> Outcome {
        if let Step::Fetch(next) = step {
            let clear = txn.context.haft && descriptor & AF == 0;
            if clear && !txn.inhibits() {
                txn.tables[0] = descriptor;
                return match txn.stream.path == Path::Nested {
                    true => self.stage2(id, txn, walk.address(), Purpose::Table(walk)),
                    false => txn.wait(Fetch::Table1(walk), walk.address()),
                };
            }
            if !clear {
                self.keep_stage1_table(txn, next);
            }
        }
        self.stage1_step(id, txn, step)
    }

    /// A stage 2 descriptor has come.
    pub(super) fn stage2_descriptor(
        &mut self,
        id: TxnId,
        txn: &mut Txn,
        walk: Walk,
        descriptor: u64,
        step: Step,
        purpose: Purpose,
    ) -> Outcome {
        if let Step::Fetch(next) = step {
            let clear = txn.stream.stage2.haft && descriptor & AF == 0;
            if clear && !txn.inhibits() {
                txn.tables[1] = descriptor;
                return txn.wait(Fetch::Table2(walk, purpose), walk.address());
            }
            if !clear {
                self.keep_stage2_table(txn, next);
            }
        }
        self.stage2_step(id, txn, step, purpose)
    }

    /// One step of a stage 2 walk.
    pub(super) fn stage2_step(&mut self, id: TxnId, txn: &mut Txn, step: Step, purpose: Purpose) -> Outcome {
        match step {
            Step::Fetch(walk) => txn.wait(Fetch::Stage2(walk, purpose), walk.address()),
            Step::Fault(fault) => self.stage2_fault(id, txn, fault.kind, &purpose),
            Step::Done(leaf) => self.stage2_leaf(id, txn, leaf, purpose),
        }
    }

    /// The end of a stage 2 walk; again when the leaf has been updated.
    pub(super) fn stage2_leaf(&mut self, id: TxnId, txn: &mut Txn, leaf: Leaf, purpose: Purpose) -> Outcome {
        let possible = stage2_permissions(&leaf, &self.config);
        let permitted = possible.contains(purpose.needs(txn));
        let updated = leaf.updated(purpose.writes(txn, possible));
        if permitted && !txn.inhibits() && updated != leaf.descriptor {
            return txn.wait(Fetch::Update2(leaf, purpose), leaf.at);
        }
        let mapping = Mapping::stage2(&leaf, possible, &txn.stream.stage2, &self.config);
        let (regime, ipa) = (txn.stream.stage2_regime(), txn.ipa);
        if !self.ipas.is_disabled() && self.may_fill(txn, regime, ipa, &mapping) {
            self.ipas.insert(regime, ipa, mapping);
        }
        self.stage2_done(id, txn, mapping, purpose)
    }

    /// Stage 2 has an answer for `txn.ipa`.
    pub(super) fn stage2_done(
        &mut self,
        id: TxnId,
        txn: &mut Txn,
        mapping: Mapping,
        purpose: Purpose,
    ) -> Outcome {
        let output = translation(&mapping, txn.ipa);
        let for_itself = matches!(purpose, Purpose::Output(_) | Purpose::Input);
        let device = !for_itself && txn.stream.stage2.ptw && mapping.attrs.is_device();
        if device || !mapping.permitted(txn).contains(purpose.needs(txn)) {
            return self.stage2_fault(id, txn, FaultKind::Permission, &purpose);
        }
        match purpose {
            Purpose::L1Cd => txn.wait(Fetch::L1Cd, output.pa),
            Purpose::Cd => txn.wait(Fetch::Cd, output.pa),
            Purpose::Stage1(walk) => txn.wait(Fetch::Stage1(walk), output.pa),
            Purpose::Update(leaf) => txn.wait(Fetch::Update1(leaf), output.pa),
            Purpose::Table(walk) => txn.wait(Fetch::Table1(walk), output.pa),
            Purpose::Input if txn.is_ats_request() => {
                self.stats.translated += 1;
                // Split: what would be stage 1's output is the address itself (section 13.6.5).
                let output = txn.ipa >> mapping.shift << mapping.shift;
                let mapping = if txn.split { Mapping { output, ..mapping } } else { mapping };
                self.ats_answer(txn, &mapping)
            }
            Purpose::Input if txn.atos().is_some() => self.atos_result(&mapping),
            Purpose::Input => {
                self.stats.translated += 1;
                let attrs = mapping.over(txn.stream.overrides.attrs(txn.t.attrs));
                Outcome::Latch(crate::Translation { attrs, ..output })
            }
            Purpose::Output(first) => {
                let combined = first.through(&mapping, output.pa);
                let outcome = match self.is_by_stage(txn) {
                    true => self.translated_by(txn, &combined),
                    false => self.translated(txn, combined),
                };
                match txn.split {
                    true => {
                        let output = txn.ipa >> combined.shift << combined.shift;
                        self.ats_answer(txn, &Mapping { output, ..combined })
                    }
                    false => outcome,
                }
            }
        }
    }

    /// A stage 1 fault of the transaction's own address.
    fn stage1_fault(&mut self, id: TxnId, txn: &Txn, kind: FaultKind) -> Outcome {
        self.translation_fault(
            id,
            txn,
            kind,
            Place { class: Class::Input, s2: false, ipa: 0, tt_read: false },
        )
    }

    fn stage2_fault(&mut self, id: TxnId, txn: &Txn, kind: FaultKind, purpose: &Purpose) -> Outcome {
        let tt_read = !matches!(purpose, Purpose::Update(_) | Purpose::Table(_));
        let place = Place { class: purpose.class(), s2: true, ipa: txn.ipa, tt_read };
        self.translation_fault(id, txn, kind, place)
    }
}

impl Purpose {
    /// The permissions that stage 2 has to give.
    fn needs(&self, txn: &Txn) -> Permissions {
        match self {
            Purpose::L1Cd | Purpose::Cd | Purpose::Stage1(_) => Permissions::PRIV_READ,
            Purpose::Update(_) | Purpose::Table(_) => Permissions::PRIV_READ | Permissions::PRIV_WRITE,
            Purpose::Output(_) | Purpose::Input => txn.needed(),
        }
    }

    /// Whether `mapping` decides, or the tables have to be looked at.
    fn decided(&self, txn: &Txn, mapping: &Mapping) -> bool {
        let all = Permissions::all();
        let stage1 = match self {
            Purpose::Output(first) => first.possible,
            Purpose::Input => all,
            _ => {
                let needed = self.needs(txn);
                return mapping.permissions.contains(needed) || !mapping.possible.contains(needed);
            }
        };
        let stage1 = if txn.is_ats_request() { stage1 } else { all };
        txn.decided(mapping.permissions & stage1, mapping.possible & stage1).is_some()
    }

    /// Whether it makes the page dirty, which permits `possible`.
    pub(super) fn writes(&self, txn: &Txn, possible: Permissions) -> bool {
        match self {
            Purpose::L1Cd | Purpose::Cd | Purpose::Stage1(_) => false,
            Purpose::Update(_) | Purpose::Table(_) => true,
            Purpose::Output(first) => txn.dirties(possible & first.possible),
            Purpose::Input => txn.dirties(possible),
        }
    }
}

impl Txn {
    pub(super) fn regime(&self) -> Regime {
        self.stream.regime(&self.context)
    }

    /// The table base that the address belongs to.
    fn stage1_table(&self) -> &Stage1 {
        if self.context.is_upper(self.t.address) { &self.context.upper } else { &self.context.lower }
    }

    /// The descriptor of stage 1 that was fetched, for who watches.
    pub(super) fn first_stage(&self, level: i8, value: u64) -> Descriptor {
        let (table, Regime { world, vmid, asid, .. }) = (self.stage1_table(), self.regime());
        Descriptor {
            at: self.at,
            value,
            level,
            first: table.start_level() == Some(level),
            granule: table.granule,
            pa52: table.pa52,
            input: without_top_byte(self.t.address),
            sid: self.t.sid,
            cd: self.cd,
            world,
            vmid,
            asid,
        }
    }

    /// The same of stage 2.
    pub(super) fn second_stage(&self, level: i8, value: u64) -> Descriptor {
        let (table, Regime { world, vmid, asid, .. }) =
            (&self.stream.stage2.tables, self.stream.stage2_regime());
        Descriptor {
            first: table.start_level() == Some(level),
            granule: table.granule,
            pa52: table.pa52,
            input: self.ipa,
            world,
            vmid,
            asid,
            ..self.first_stage(level, value)
        }
    }
}
