//! The stream table and the CD tables: where an STE and a CD are, and what is fetched of them (sections 3.3.1 to 3.3.3).

use pgtable::Leaf;
use pgtable::descriptor::AF;

use super::context::Context;
use super::mapping::stage2_permissions;
use super::stream::{Path, Stream};
use super::txn::{Fetch, Origin, Purpose, Txn};
use super::{Outcome, context_key};
use crate::cache::Invalidation;
use crate::memory::{Abort, Memory};
use crate::observer::Level1;
use crate::pmcg::PmuEvent;
use crate::smmu::Smmu;
use crate::spec::cd::{CD_SHIFT, Cd, L1CD_SHIFT, L1Cd};
use crate::spec::event::{Class, EventKind};
use crate::spec::registers::cr2;
use crate::spec::ste::{L1STD_SHIFT, L1Std, STE_SHIFT, Ste};
use crate::spec::{align, keep};
use crate::transaction::TxnId;

/// STRTAB_BASE_CFG.
struct StreamTable {
    base: u64,
    log2: u32,
    /// SPLIT, for a two-level table.
    split: Option<u32>,
}

impl Smmu {
    fn stream_table(&self) -> StreamTable {
        let cfg = self.regs.strtab_base_cfg;
        // The table is aligned to the size that is written, of which SIDSIZE may leave a part unused (section 6.3.24).
        let written = cfg & 0x3f;
        let log2 = written.min(u32::from(self.config.sidsize));
        // Reserved values of SPLIT behave as 6, of FMT as a linear table.
        let split = (self.config.st2l && cfg >> 16 & 3 == 1).then_some(match cfg >> 6 & 0x1f {
            8 => 8,
            10 => 10,
            _ => 6,
        });
        let size = match split {
            Some(split) => (written.saturating_sub(split) + L1STD_SHIFT).max(6),
            None => written + STE_SHIFT,
        };
        StreamTable { base: align(keep(self.regs.strtab_base, 51, 6), size), log2, split }
    }

    /// Address of the stream table, log2 of its StreamIDs, and SPLIT of a two-level one.
    pub(crate) fn stream_table_shape(&self) -> (u64, u32, Option<u32>) {
        let StreamTable { base, log2, split } = self.stream_table();
        (base, log2, split)
    }

    /// The STE is not cached: find it.
    pub(super) fn find_stream(&mut self, txn: &mut Txn) -> Outcome {
        let table = self.stream_table();
        let sid = txn.incoming.sid;
        if u64::from(sid) >> table.log2 != 0 {
            return self.config_fault(txn, EventKind::BadStreamId);
        }
        self.miss(txn, PmuEvent::ConfigMiss);
        let Some(split) = table.split else {
            let at = table.base + (u64::from(sid) << STE_SHIFT);
            return self.wait_for_ste(txn, Fetch::Ste, at);
        };
        match self.l1stds.get(&l1std_key(sid, split)) {
            Some(&l1std) => self.l1std(txn, l1std),
            None => {
                let at = table.base + (u64::from(sid >> split) << L1STD_SHIFT);
                self.wait_for_ste(txn, Fetch::L1Std, at)
            }
        }
    }

    /// Waits for an STE or what leads to it. An address beyond OAS is truncated, or an error (section 3.4.3).
    fn wait_for_ste(&mut self, txn: &mut Txn, fetch: Fetch, at: u64) -> Outcome {
        if at >> self.config.oas == 0 {
            return txn.wait(fetch, at);
        }
        match self.config.ste_truncate {
            true => txn.wait(fetch, at & ((1 << self.config.oas) - 1)),
            false => self.config_fault(txn, EventKind::SteFetch(at)),
        }
    }

    /// A level 1 stream table descriptor has come from memory.
    fn l1std_fetched(&mut self, txn: &mut Txn, l1std: L1Std) -> Outcome {
        let split = self.stream_table().split.unwrap_or(6);
        let sid = txn.incoming.sid;
        self.observer.tell(|o| {
            o.level1(Level1::Stream { first: sid >> split << split, split }, txn.at, l1std.0);
        });
        let valid = (1..=split + 1).contains(&l1std.span());
        let covers = |i: &Invalidation| matches!(*i, Invalidation::Streams { first, last, level1: true } if first >> split <= sid >> split && sid >> split <= last >> split);
        if (valid || self.config.cache_invalid) && self.recent.spares(txn.epoch, covers) {
            self.l1stds.insert(l1std_key(sid, split), l1std);
        }
        self.l1std(txn, l1std)
    }

    /// The level 1 stream table descriptor is known.
    fn l1std(&mut self, txn: &mut Txn, l1std: L1Std) -> Outcome {
        let split = self.stream_table().split.unwrap_or(6);
        let sid = txn.incoming.sid;
        let index = sid & ((1 << split) - 1);
        // No table, a reserved Span, one wider than SPLIT, or an STE beyond its end.
        let Some(log2) = l1std.span().checked_sub(1).filter(|&log2| log2 <= split && index >> log2 == 0)
        else {
            return self.config_fault(txn, EventKind::BadStreamId);
        };
        let base = align(keep(l1std.l2ptr(), 51, 6), log2 + STE_SHIFT);
        self.wait_for_ste(txn, Fetch::Ste, base + (u64::from(index) << STE_SHIFT))
    }

    /// The STE has come.
    fn ste(&mut self, id: TxnId, txn: &mut Txn) -> Outcome {
        self.observer.tell(|o| o.ste(txn.incoming.sid, txn.at, &txn.words));
        let e2h = self.regs.cr2 & cr2::E2H != 0;
        let stream = Stream::decode(&Ste(txn.words), &self.config, e2h)
            .unwrap_or(Stream { path: Path::Invalid, ..Stream::default() });
        let sid = txn.incoming.sid;
        let covers = |i: &Invalidation| matches!(*i, Invalidation::Streams { first, last, .. } if (first..=last).contains(&sid));
        if (stream.path != Path::Invalid || self.config.cache_invalid)
            && self.recent.spares(txn.epoch, covers)
        {
            self.streams.insert(u64::from(sid), stream);
        }
        self.with_stream(id, txn, stream)
    }

    /// The stream has stage 1: find the CD.
    pub(super) fn find_context(&mut self, id: TxnId, txn: &mut Txn) -> Outcome {
        if let Some(context) = self.contexts.get(&context_key(txn.t.sid, txn.cd)) {
            let context = *context;
            return self.with_context(id, txn, context);
        }
        self.miss(txn, PmuEvent::ConfigMiss);
        let table = txn.stream.cds;
        let cd = u64::from(txn.cd);
        let Some(split) = table.split else {
            return self.cd_fetch(id, txn, table.base + (cd << CD_SHIFT), Purpose::Cd);
        };
        match self.l1cds.get(&l1cd_key(txn.t.sid, txn.cd, split)) {
            Some(&l1cd) => self.l1cd(id, txn, l1cd),
            None => self.cd_fetch(id, txn, table.base + (cd >> split << L1CD_SHIFT), Purpose::L1Cd),
        }
    }

    /// The context is known.
    pub(super) fn with_context(&mut self, id: TxnId, txn: &mut Txn, context: Context) -> Outcome {
        txn.context = context;
        match txn.origin {
            _ if context.bad => self.config_fault(txn, EventKind::BadCd),
            // CMD_PREFETCH_CONFIG has what it wanted.
            Origin::Prefetch { address: false } => Outcome::Abort,
            _ => self.stage1(id, txn),
        }
    }

    /// CDs and their tables are in IPA space if there is a stage 2.
    fn cd_fetch(&mut self, id: TxnId, txn: &mut Txn, address: u64, purpose: Purpose) -> Outcome {
        if txn.stream.path == Path::Nested {
            return self.stage2(id, txn, address, purpose);
        }
        // S1ContextPtr itself is in range, or it would not be here (section 3.4.3).
        if address >> self.config.oas != 0 {
            return self.config_fault(txn, EventKind::BadSte);
        }
        txn.wait(if purpose == Purpose::Cd { Fetch::Cd } else { Fetch::L1Cd }, address)
    }

    /// A level 1 CD table descriptor has come from memory.
    fn l1cd_fetched(&mut self, id: TxnId, txn: &mut Txn, l1cd: L1Cd) -> Outcome {
        let split = txn.stream.cds.split.unwrap_or(6);
        let (sid, first) = (txn.t.sid, txn.cd >> split << split);
        self.observer.tell(|o| o.level1(Level1::Cd { sid, first, split: split.into() }, txn.at, l1cd.0));
        if (l1cd.v() || self.config.cache_invalid)
            && self.recent.spares(txn.epoch, |i| txn.loses_context(i, split, true))
        {
            self.l1cds.insert(l1cd_key(txn.t.sid, txn.cd, split), l1cd);
        }
        self.l1cd(id, txn, l1cd)
    }

    /// The level 1 CD table descriptor is known.
    fn l1cd(&mut self, id: TxnId, txn: &mut Txn, l1cd: L1Cd) -> Outcome {
        // Section 3.4.3. An IPA is left to stage 2.
        let left = txn.stream.path == Path::Nested && !self.config.cd_ipa_check;
        let out_of_range = !left && l1cd.l2ptr() >> self.config.oas != 0;
        if !l1cd.v() || out_of_range {
            return self.config_fault(txn, EventKind::BadSubstreamId);
        }
        let split = u32::from(txn.stream.cds.split.unwrap_or(6));
        let index = txn.cd & ((1 << split) - 1);
        let address = keep(l1cd.l2ptr(), 51, 12) + (u64::from(index) << CD_SHIFT);
        self.cd_fetch(id, txn, address, Purpose::Cd)
    }

    /// The CD has come.
    fn cd(&mut self, id: TxnId, txn: &mut Txn) -> Outcome {
        self.observer.tell(|o| o.cd(txn.t.sid, txn.cd, txn.at, &txn.words));
        let context = Context::decode(&Cd(txn.words), &txn.stream, &self.config)
            .unwrap_or(Context { bad: true, ..Context::default() });
        if (!context.bad || self.config.cache_invalid)
            && self.recent.spares(txn.epoch, |i| txn.loses_context(i, 0, false))
        {
            self.contexts.insert(context_key(txn.t.sid, txn.cd), context);
        }
        self.with_context(id, txn, context)
    }

    /// Does the fetch that a transaction waits for, and goes on from there to the next.
    pub(crate) fn fetch(&mut self, id: TxnId, txn: &mut Txn, mem: &dyn Memory) -> Outcome {
        self.fetches::<_, false>(id, txn, mem, &mut 0)
    }

    /// The same; with `ON`, it may do further fetches. Counts them.
    pub(super) fn fetches<M: Memory + ?Sized, const ON: bool>(
        &mut self,
        id: TxnId,
        txn: &mut Txn,
        mem: &M,
        steps: &mut u64,
    ) -> Outcome {
        *steps += 1;
        match txn.fetch {
            Fetch::Start => {}
            Fetch::L1Std | Fetch::Ste | Fetch::L1Cd | Fetch::Cd => {
                self.tally(PmuEvent::ConfigAccess, txn.incoming.sid);
            }
            _ => self.tally(PmuEvent::TableWalk, txn.incoming.sid),
        }
        match txn.fetch {
            Fetch::Start => self.start(id, txn),
            Fetch::L1Std => {
                self.stats.l1std_fetches += 1;
                match mem.read_u64(txn.at) {
                    Ok(word) => self.l1std_fetched(txn, L1Std(word)),
                    Err(Abort) => self.config_fault(txn, EventKind::SteFetch(txn.at)),
                }
            }
            Fetch::Ste => match self.structure(txn, mem) {
                Ok(false) => Outcome::Fetch,
                Ok(true) => {
                    self.stats.ste_fetches += 1;
                    self.ste(id, txn)
                }
                Err(Abort) => self.config_fault(txn, EventKind::SteFetch(txn.at)),
            },
            Fetch::L1Cd => {
                self.stats.l1cd_fetches += 1;
                match mem.read_u64(txn.at) {
                    Ok(word) => self.l1cd_fetched(id, txn, L1Cd(word)),
                    Err(Abort) => self.config_fault(txn, EventKind::CdFetch(txn.at)),
                }
            }
            Fetch::Cd => match self.structure(txn, mem) {
                Ok(false) => Outcome::Fetch,
                Ok(true) => {
                    self.stats.cd_fetches += 1;
                    self.cd(id, txn)
                }
                Err(Abort) => self.config_fault(txn, EventKind::CdFetch(txn.at)),
            },
            Fetch::Stage1(_) => loop {
                self.stats.s1_fetches += 1;
                let Ok(descriptor) = mem.read_u64(txn.at) else {
                    return self.walk_abort(txn, Class::Ttd, false);
                };
                if let Fetch::Stage1(walk) = &txn.fetch {
                    self.observer.tell(|o| o.descriptor(&txn.first_stage(walk.level(), descriptor)));
                }
                // A table's access flag that is to be set is a step of its own.
                let marked = descriptor & AF != 0 || !txn.context.haft;
                let alone = txn.stream.path != Path::Nested;
                // In place: the record is large.
                let Fetch::Stage1(walk) = &mut txn.fetch else { return Outcome::Fetch };
                if !(alone && marked && walk.descend(descriptor)) {
                    let walk = *walk;
                    return self.stage1_descriptor(id, txn, walk, descriptor, walk.next(descriptor));
                }
                let walk = *walk;
                self.keep_stage1_table(txn, walk);
                txn.at = walk.address();
                if !ON {
                    return Outcome::Fetch;
                }
                *steps += 1;
                self.tally(PmuEvent::TableWalk, txn.incoming.sid);
            },
            Fetch::Table1(walk) => match self.mark_table(txn, mem, txn.tables[0]) {
                Ok(Some(descriptor)) => {
                    self.stage1_descriptor(id, txn, walk, descriptor, walk.next(descriptor))
                }
                Ok(None) => self.stage1(id, txn),
                Err(Abort) => self.walk_abort(txn, Class::Ttd, false),
            },
            Fetch::Table2(walk, purpose) => match self.mark_table(txn, mem, txn.tables[1]) {
                Ok(Some(descriptor)) => {
                    self.stage2_descriptor(id, txn, walk, descriptor, walk.next(descriptor), purpose)
                }
                Ok(None) => self.stage2(id, txn, txn.ipa, purpose),
                Err(Abort) => self.walk_abort(txn, purpose.class(), true),
            },
            Fetch::Update1(leaf) => {
                match self.update(txn, mem, &leaf, txn.dirties(leaf.permissions(&txn.context.controls))) {
                    Ok(Some(leaf)) => self.stage1_leaf(id, txn, leaf),
                    // Somebody changed the descriptor: look again.
                    Ok(None) => self.stage1(id, txn),
                    Err(Abort) => self.walk_abort(txn, Class::Ttd, false),
                }
            }
            Fetch::Update2(leaf, purpose) => {
                match self.update(
                    txn,
                    mem,
                    &leaf,
                    purpose.writes(txn, stage2_permissions(&leaf, &self.config)),
                ) {
                    Ok(Some(leaf)) => self.stage2_leaf(id, txn, leaf, purpose),
                    Ok(None) => self.stage2(id, txn, txn.ipa, purpose),
                    Err(Abort) => self.walk_abort(txn, purpose.class(), true),
                }
            }
            Fetch::Stage2(..) => loop {
                self.stats.s2_fetches += 1;
                let Fetch::Stage2(walk, purpose) = &txn.fetch else { return Outcome::Fetch };
                let Ok(descriptor) = mem.read_u64(txn.at) else {
                    return self.walk_abort(txn, purpose.class(), true);
                };
                self.observer.tell(|o| o.descriptor(&txn.second_stage(walk.level(), descriptor)));
                let marked = descriptor & AF != 0 || !txn.stream.stage2.haft;
                let Fetch::Stage2(walk, purpose) = &mut txn.fetch else { return Outcome::Fetch };
                if !(marked && walk.descend(descriptor)) {
                    let (walk, purpose) = (*walk, *purpose);
                    return self.stage2_descriptor(id, txn, walk, descriptor, walk.next(descriptor), purpose);
                }
                let walk = *walk;
                self.keep_stage2_table(txn, walk);
                txn.at = walk.address();
                if !ON {
                    return Outcome::Fetch;
                }
                *steps += 1;
                self.tally(PmuEvent::TableWalk, txn.incoming.sid);
            },
        }
    }

    /// Sets the access flag of the table descriptor at `txn.at` (section 3.13.6). `None`: it is not what it was any more.
    fn mark_table<M: Memory + ?Sized>(
        &mut self,
        txn: &Txn,
        mem: &M,
        descriptor: u64,
    ) -> Result<Option<u64>, Abort> {
        let marked = descriptor | AF;
        if mem.compare_exchange_u64(txn.at, descriptor, marked)? != descriptor {
            return Ok(None);
        }
        self.observer.tell(|o| o.updated(txn.at, marked));
        self.stats.af_updates += 1;
        Ok(Some(marked))
    }

    /// Sets the access flag, and for a write the dirty state, of the descriptor at `txn.at` (section 3.13). `None`: it is
    /// not what it was any more.
    fn update<M: Memory + ?Sized>(
        &mut self,
        txn: &Txn,
        mem: &M,
        leaf: &Leaf,
        write: bool,
    ) -> Result<Option<Leaf>, Abort> {
        let descriptor = leaf.updated(write);
        if mem.compare_exchange_u64(txn.at, leaf.descriptor, descriptor)? != leaf.descriptor {
            return Ok(None);
        }
        self.observer.tell(|o| o.updated(txn.at, descriptor));
        self.stats.af_updates += u64::from(leaf.needs_af());
        self.stats.dirty_updates += u64::from(write && leaf.needs_dirty());
        let mut leaf = *leaf;
        leaf.descriptor = descriptor;
        Ok(Some(leaf))
    }

    /// Reads a 64-byte structure, at once or one 8-byte unit a step. Says whether it is complete.
    fn structure<M: Memory + ?Sized>(&self, txn: &mut Txn, mem: &M) -> Result<bool, Abort> {
        if self.config.split_fetch {
            let n = usize::from(txn.have) % txn.words.len();
            txn.words[n] = mem.read_u64(txn.at + 8 * n as u64)?;
            txn.have = n as u8 + 1;
            return Ok(usize::from(txn.have) == txn.words.len());
        }
        let mut bytes = [0; 64];
        mem.read(txn.at, &mut bytes)?;
        for (word, bytes) in txn.words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        Ok(true)
    }
}

/// What the cache of level 1 stream table descriptors goes by.
fn l1std_key(sid: u32, split: u32) -> u64 {
    u64::from(split) << 32 | u64::from(sid >> split)
}

/// The StreamIDs of such a key.
pub(crate) fn l1std_range(key: u64) -> (u32, u32) {
    let split = (key >> 32) as u32 & 31;
    let first = (key as u32) << split;
    (first, first | ((1 << split) - 1))
}

/// What the cache of level 1 CD table descriptors goes by.
pub(crate) fn l1cd_key(sid: u32, cd: u32, split: u8) -> u64 {
    u64::from(sid) << 32 | u64::from(split & 31) << 24 | u64::from(cd >> (split & 31))
}

/// Whether such a key is of the descriptor that leads to a stream's CD; to any, without an index.
pub(crate) fn leads_to(key: u64, sid: u32, cd: Option<u32>) -> bool {
    let split = (key >> 24) as u32 & 31;
    key >> 32 == u64::from(sid) && cd.is_none_or(|cd| u64::from(cd >> split) == key & 0xff_ffff)
}

impl Txn {
    /// Whether an invalidation removes the transaction's CD, or with `level1` the descriptor that leads to it.
    fn loses_context(&self, invalidation: &Invalidation, split: u8, level1: bool) -> bool {
        match *invalidation {
            Invalidation::Streams { first, last, .. } => (first..=last).contains(&self.t.sid),
            Invalidation::Contexts { sid, cd, level1: also } => {
                sid == self.t.sid
                    && cd.is_none_or(|cd| cd >> (split & 31) == self.cd >> (split & 31))
                    && (also || !level1)
            }
            Invalidation::Tlb { .. } => false,
        }
    }

    /// The next fetch.
    pub(super) fn wait(&mut self, fetch: Fetch, at: u64) -> Outcome {
        (self.fetch, self.at, self.have) = (fetch, at, 0);
        Outcome::Fetch
    }
}

impl Purpose {
    /// CLASS of a fault of this stage 2 translation.
    pub(super) fn class(&self) -> Class {
        match self {
            Purpose::L1Cd | Purpose::Cd => Class::Cd,
            Purpose::Stage1(_) | Purpose::Update(_) | Purpose::Table(_) => Class::Ttd,
            Purpose::Output(_) | Purpose::Input => Class::Input,
        }
    }
}
