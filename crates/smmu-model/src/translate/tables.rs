//! The stream table and the CD tables: where an STE and a CD are, and what is fetched of them (sections 3.3.1 to 3.3.3).

use pgtable::Leaf;

use super::context::Context;
use super::stream::{Path, Stream};
use super::txn::{Fetch, Purpose, Txn};
use super::{Outcome, context_key};
use crate::memory::{Abort, Memory};
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

    /// The STE is not cached: find it.
    pub(super) fn find_stream(&mut self, txn: &mut Txn) -> Outcome {
        let table = self.stream_table();
        let sid = txn.incoming.sid;
        if u64::from(sid) >> table.log2 != 0 {
            return self.config_fault(txn, EventKind::BadStreamId);
        }
        match table.split {
            Some(split) => txn.wait(Fetch::L1Std, table.base + (u64::from(sid >> split) << L1STD_SHIFT)),
            None => txn.wait(Fetch::Ste, table.base + (u64::from(sid) << STE_SHIFT)),
        }
    }

    /// A level 1 stream table descriptor has come.
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
        txn.wait(Fetch::Ste, base + (u64::from(index) << STE_SHIFT))
    }

    /// The STE has come.
    fn ste(&mut self, id: TxnId, txn: &mut Txn) -> Outcome {
        self.observer.tell(|o| o.ste(txn.incoming.sid, txn.at, &txn.words));
        let e2h = self.regs.cr2 & cr2::E2H != 0;
        match Stream::decode(&Ste(txn.words), &self.config, e2h) {
            Ok(stream) => {
                if txn.epoch == self.epoch {
                    self.streams.insert(u64::from(txn.incoming.sid), stream);
                }
                self.with_stream(id, txn, stream)
            }
            Err(_) => self.config_fault(txn, EventKind::BadSte),
        }
    }

    /// The stream has stage 1: find the CD.
    pub(super) fn find_context(&mut self, id: TxnId, txn: &mut Txn) -> Outcome {
        if let Some(context) = self.contexts.get(&context_key(txn.t.sid, txn.cd)) {
            txn.context = *context;
            return self.stage1(id, txn);
        }
        let table = txn.stream.cds;
        let cd = u64::from(txn.cd);
        match table.split {
            Some(split) => self.cd_fetch(id, txn, table.base + (cd >> split << L1CD_SHIFT), Purpose::L1Cd),
            None => self.cd_fetch(id, txn, table.base + (cd << CD_SHIFT), Purpose::Cd),
        }
    }

    /// CDs and their tables are in IPA space if there is a stage 2.
    fn cd_fetch(&mut self, id: TxnId, txn: &mut Txn, address: u64, purpose: Purpose) -> Outcome {
        if txn.stream.path == Path::Nested {
            return self.stage2(id, txn, address, purpose);
        }
        txn.wait(if purpose == Purpose::Cd { Fetch::Cd } else { Fetch::L1Cd }, address)
    }

    /// A level 1 CD table descriptor has come.
    fn l1cd(&mut self, id: TxnId, txn: &mut Txn, l1cd: L1Cd) -> Outcome {
        // Section 3.4.3. An IPA is left to stage 2.
        let out_of_range = txn.stream.path != Path::Nested && l1cd.l2ptr() >> self.config.oas != 0;
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
        match Context::decode(&Cd(txn.words), &txn.stream, &self.config) {
            Ok(context) => {
                if txn.epoch == self.epoch {
                    self.contexts.insert(context_key(txn.t.sid, txn.cd), context);
                }
                txn.context = context;
                self.stage1(id, txn)
            }
            Err(_) => self.config_fault(txn, EventKind::BadCd),
        }
    }

    /// Does the fetch that a transaction waits for, and goes on from there.
    pub(crate) fn fetch(&mut self, id: TxnId, txn: &mut Txn, mem: &dyn Memory) -> Outcome {
        match txn.fetch {
            Fetch::Start => self.start(id, txn),
            Fetch::L1Std => {
                self.stats.l1std_fetches += 1;
                match read_u64(mem, txn.at) {
                    Ok(word) => self.l1std(txn, L1Std(word)),
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
                match read_u64(mem, txn.at) {
                    Ok(word) => self.l1cd(id, txn, L1Cd(word)),
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
            Fetch::Stage1(walk) => {
                self.stats.s1_fetches += 1;
                match read_u64(mem, txn.at) {
                    Ok(descriptor) => {
                        self.observer.tell(|o| o.descriptor(&txn.first_stage(walk.level(), descriptor)));
                        self.stage1_descriptor(id, txn, walk.next(descriptor))
                    }
                    Err(Abort) => self.walk_abort(txn, Class::Ttd, false),
                }
            }
            Fetch::Update1(leaf) => {
                match self.update(txn, mem, &leaf, txn.dirties(leaf.permissions(&txn.context.controls))) {
                    Ok(Some(leaf)) => self.stage1_leaf(id, txn, leaf),
                    // Somebody changed the descriptor: look again.
                    Ok(None) => self.stage1(id, txn),
                    Err(Abort) => self.walk_abort(txn, Class::Ttd, false),
                }
            }
            Fetch::Update2(leaf, purpose) => {
                match self.update(txn, mem, &leaf, purpose.writes(txn, self.stage2_permissions(&leaf))) {
                    Ok(Some(leaf)) => self.stage2_leaf(id, txn, leaf, purpose),
                    Ok(None) => self.stage2(id, txn, txn.ipa, purpose),
                    Err(Abort) => self.walk_abort(txn, purpose.class(), true),
                }
            }
            Fetch::Stage2(walk, purpose) => {
                self.stats.s2_fetches += 1;
                match read_u64(mem, txn.at) {
                    Ok(descriptor) => {
                        self.observer.tell(|o| o.descriptor(&txn.second_stage(walk.level(), descriptor)));
                        self.stage2_descriptor(id, txn, walk.next(descriptor), purpose)
                    }
                    Err(Abort) => self.walk_abort(txn, purpose.class(), true),
                }
            }
        }
    }

    /// Sets the access flag, and for a write the dirty state, of the descriptor at `txn.at` (section 3.13). `None`: it is
    /// not what it was any more.
    fn update(
        &mut self,
        txn: &Txn,
        mem: &dyn Memory,
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
    fn structure(&self, txn: &mut Txn, mem: &dyn Memory) -> Result<bool, Abort> {
        if self.config.split_fetch {
            let n = usize::from(txn.have) % txn.words.len();
            txn.words[n] = read_u64(mem, txn.at + 8 * n as u64)?;
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

impl Txn {
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
            Purpose::Stage1(_) | Purpose::Update(_) => Class::Ttd,
            Purpose::Output(_) | Purpose::Input => Class::Input,
        }
    }
}

fn read_u64(mem: &dyn Memory, pa: u64) -> Result<u64, Abort> {
    let mut bytes = [0; 8];
    mem.read(pa, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
