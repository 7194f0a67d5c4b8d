//! Transactions under way, and which of them CMD_SYNC has to wait for.

use pgtable::{Leaf, Walk};
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::stream::Stream;
use crate::atos::AtosLookup;
use crate::cache::Mapping;
use crate::pri::PageRequest;
use crate::transaction::{Transaction, Translation, TxnId};

/// What kind of request is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Origin {
    /// An ordinary transaction.
    Untranslated,
    /// An ATS Translation Request.
    AtsRequest {
        /// NW.
        no_write: bool,
        /// Execute Requested.
        execute: bool,
    },
    /// A transaction with an address that ATS gave.
    Translated,
    /// CMD_PREFETCH_CONFIG, or with `address` CMD_PREFETCH_ADDR: fills caches, and fails silently.
    Prefetch {
        /// Translations, too.
        address: bool,
    },
    /// An address translation operation: a lookup that software asked for.
    Atos(AtosLookup),
    /// A page request whose STE says how it is responded to.
    PageRequest(PageRequest),
}

/// What a stage 2 translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// The fetch of a level 1 CD table descriptor.
    L1Cd,
    /// The fetch of a CD.
    Cd,
    /// The fetch of a stage 1 descriptor.
    Stage1(Walk),
    /// The update of a stage 1 descriptor's access flag or dirty state.
    Update(Leaf),
    /// The update of a stage 1 table descriptor's access flag.
    Table(Walk),
    /// The output of stage 1, which is this.
    Output(Mapping),
    /// The transaction itself; there is no stage 1.
    Input,
}

/// The fetch that a transaction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fetch {
    /// None yet: the transaction begins anew.
    Start,
    /// Level 1 stream table descriptor.
    L1Std,
    /// STE.
    Ste,
    /// Level 1 CD table descriptor.
    L1Cd,
    /// CD.
    Cd,
    /// Stage 1 descriptor.
    Stage1(Walk),
    /// Stage 2 descriptor, for the translation of [`Txn::ipa`].
    Stage2(Walk, Purpose),
    /// Not a fetch: the atomic update of a stage 1 table descriptor, which is the one of this walk.
    Table1(Walk),
    /// The same of stage 2.
    Table2(Walk, Purpose),
    /// The atomic update of a stage 1 descriptor.
    Update1(Leaf),
    /// The atomic update of a stage 2 descriptor.
    Update2(Leaf, Purpose),
}

/// A transaction that is not translated yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Txn {
    /// The transaction; once the stream is known, with its overrides.
    pub(crate) t: Transaction,
    /// As it arrived: a stalled one begins anew with this.
    pub(crate) incoming: Transaction,
    pub(crate) origin: Origin,
    /// A Translation Request for the output of stage 1.
    pub(crate) split: bool,
    pub(crate) fetch: Fetch,
    /// Physical address of the fetch.
    pub(crate) at: u64,
    /// The table descriptors, of stage 1 and 2, whose access flags are to be set.
    pub(crate) tables: [u64; 2],
    /// What is fetched so far of a 64-byte structure.
    pub(crate) words: [u64; 8],
    pub(crate) have: u8,
    /// It is tried again although it stalls: it has been recorded, and is not again.
    pub(crate) retried: bool,
    /// The tag of a stalled transaction whose record stands for this one, too.
    pub(crate) behind: Option<u16>,
    /// Misses that have been counted, by the bit of their event.
    pub(crate) missed: u8,
    pub(crate) stream: Stream,
    pub(crate) context: Context,
    /// The CD's index.
    pub(crate) cd: u32,
    /// Input of the stage 2 walk.
    pub(crate) ipa: u64,
    /// Invalidation count when it began. If there was one since, its finds are not cached.
    pub(crate) epoch: u64,
}

/// Where a slot's transaction is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum State {
    /// Nothing here.
    Free,
    /// Being translated.
    Walking(Box<Txn>),
    /// Translated; its data is under way.
    Latched(Translation),
    /// Stalled; the tag is the slot's number.
    Stalled(Box<Txn>),
    /// Its device gave up a stalled transaction of this StreamID; its tag, the slot's number, is still taken.
    Abandoned(u32),
    /// Terminated while it stalled, with an abort or not; its owner does not know yet.
    Dead { abort: bool },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Slot {
    generation: u32,
    /// Invalidation count when it began, or was resumed.
    epoch: u64,
    /// It uses the enabled SMMU, not the global bypass.
    enabled: bool,
    /// StreamID of a transaction that stalled and was tried again since: its tag, the slot's number, is still to be
    /// answered.
    owed: Option<u32>,
    state: State,
}

impl Slot {
    /// Fills a slot whose state owns nothing: there is nothing to drop.
    #[inline]
    fn put(&mut self, state: State) {
        debug_assert!(!matches!(self.state, State::Walking(_) | State::Stalled(_)));
        std::mem::forget(std::mem::replace(&mut self.state, state));
    }
}

/// All transactions. Their number is bounded by how many the devices have outstanding.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Txns {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Txns {
    /// Takes a slot for a transaction.
    #[inline]
    pub(crate) fn add(&mut self, epoch: u64, enabled: bool, state: State) -> TxnId {
        if let Some(n) = self.free.pop() {
            let slot = &mut self.slots[n as usize];
            (slot.epoch, slot.enabled) = (epoch, enabled);
            slot.put(state);
            return TxnId { slot: n, generation: slot.generation };
        }
        self.slots.push(Slot { generation: 0, epoch, enabled, owed: None, state });
        TxnId { slot: (self.slots.len() - 1) as u32, generation: 0 }
    }

    /// The state of a transaction that still exists.
    pub(crate) fn get(&mut self, id: TxnId) -> Option<&mut State> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        Some(&mut slot.state)
    }

    /// A transaction that was taken out of its slot walks on.
    #[inline]
    pub(crate) fn put_back(&mut self, id: TxnId, txn: Box<Txn>) {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation);
        if let Some(slot) = slot {
            slot.put(State::Walking(txn));
        }
    }

    /// A resumed transaction is as new.
    pub(crate) fn renew(&mut self, id: TxnId, epoch: u64) {
        if let Some(slot) = self.slots.get_mut(id.slot as usize) {
            slot.epoch = epoch;
        }
    }

    /// Ends a transaction.
    #[inline]
    pub(crate) fn remove(&mut self, id: TxnId) {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation);
        let Some(slot) = slot else { return };
        slot.generation = slot.generation.wrapping_add(1);
        match (&slot.state, slot.owed) {
            (State::Latched(_), None) => {
                slot.put(State::Free);
                self.free.push(id.slot);
            }
            _ => self.remove_other(id.slot),
        }
    }

    /// Empties the slot of a transaction that is not translated, or whose tag is still to be answered.
    #[inline(never)]
    fn remove_other(&mut self, n: u32) {
        let Some(slot) = self.slots.get_mut(n as usize) else { return };
        let owed = match &slot.state {
            // Nobody knows the tag of one behind another.
            State::Stalled(txn) => txn.behind.is_none().then_some(txn.t.sid),
            _ => slot.owed,
        };
        slot.owed = None;
        match owed {
            Some(sid) => slot.state = State::Abandoned(sid),
            None => {
                slot.state = State::Free;
                self.free.push(n);
            }
        }
    }

    /// Whether a transaction is under way that began before invalidation `epoch` and may still use what it removed.
    /// A stalled one holds nothing.
    pub(crate) fn any_before(&self, epoch: u64) -> bool {
        self.slots.iter().any(|slot| {
            slot.enabled && slot.epoch < epoch && matches!(slot.state, State::Walking(_) | State::Latched(_))
        })
    }

    /// Whether the enabled SMMU's transactions are not all done.
    pub(crate) fn any_enabled(&self) -> bool {
        let over = |state: &State| matches!(state, State::Free | State::Abandoned(_) | State::Dead { .. });
        self.slots.iter().any(|slot| slot.enabled && !over(&slot.state))
    }

    /// Stalled transactions, also those that their device gave up or that were tried again: of a StreamID if one is given,
    /// with a tag if one is.
    pub(crate) fn stalled(&self, sid: Option<u32>, tag: Option<u16>) -> Vec<TxnId> {
        self.those(|n, slot| {
            let of = match (&slot.state, slot.owed) {
                (State::Stalled(txn), _) if txn.behind.is_some() && tag.is_some() => return false,
                (State::Stalled(txn), _) => txn.t.sid,
                (State::Abandoned(of), _) => *of,
                (_, Some(of)) => of,
                _ => return false,
            };
            sid.is_none_or(|sid| sid == of) && tag.is_none_or(|tag| n == usize::from(tag))
        })
    }

    /// Stalled transactions for which the record with this tag stands as well.
    pub(crate) fn behind(&self, tag: u16) -> Vec<TxnId> {
        self.those(|_, slot| matches!(&slot.state, State::Stalled(txn) if txn.behind == Some(tag)))
    }

    /// The tag of a stalled transaction whose record can stand for this one's (section 3.12.2.1): of the same stream,
    /// SubstreamID, page, privilege, kind.
    pub(crate) fn leader(&self, txn: &Txn) -> Option<u16> {
        let of =
            |t: &Transaction| (t.sid, t.ssid, t.address >> 12, t.privileged, t.instruction, t.kind.is_read());
        let same = |slot: &Slot| matches!(&slot.state, State::Stalled(other) if other.behind.is_none() && of(&other.t) == of(&txn.t));
        self.slots.iter().position(same).and_then(|n| u16::try_from(n).ok())
    }

    /// A stalled transaction is tried again before anybody answers.
    pub(crate) fn owe(&mut self, id: TxnId, sid: u32) {
        if let Some(slot) = self.slots.get_mut(id.slot as usize) {
            slot.owed = Some(sid);
        }
    }

    /// Its record is answered.
    pub(crate) fn answered(&mut self, id: TxnId) {
        if let Some(slot) = self.slots.get_mut(id.slot as usize) {
            slot.owed = None;
        }
    }

    fn those(&self, which: impl Fn(usize, &Slot) -> bool) -> Vec<TxnId> {
        let slots = self.slots.iter().enumerate().filter(|(n, slot)| which(*n, slot));
        slots.map(|(n, slot)| TxnId { slot: n as u32, generation: slot.generation }).collect()
    }
}
