//! Somebody who watches and never interferes: statistics, tests, a checker.

use pgtable::Granule;

use crate::ats::{AtcInvalidation, AtsAnswer, AtsRequest};
use crate::cache::World;
use crate::pri::PageRequest;
use crate::spec::command::{Cerror, Command};
use crate::spec::event::Event;
use crate::transaction::{Transaction, Translation, TxnId};

/// A descriptor that a walk fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Physical address of the descriptor.
    pub at: u64,
    /// What was read.
    pub value: u64,
    /// Level of its table.
    pub level: i8,
    /// Its table is where the walk begins.
    pub first: bool,
    /// The granule of its table.
    pub granule: Granule,
    /// 52-bit output addresses are in use.
    pub pa52: bool,
    /// VA, or IPA at stage 2.
    pub input: u64,
    /// StreamID that the walk was for.
    pub sid: u32,
    /// Index of the CD.
    pub cd: u32,
    /// StreamWorld and stage.
    pub world: World,
    /// The VMID by which it is tagged.
    pub vmid: u16,
    /// The ASID by which it is tagged; 0 at stage 2.
    pub asid: u16,
}

/// Names a level 1 descriptor by the first StreamID or SubstreamID that it is for, and log2 of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level1 {
    /// Of a stream table.
    Stream {
        /// First StreamID.
        first: u32,
        /// STRTAB_BASE_CFG.SPLIT.
        split: u32,
    },
    /// Of the CD table of a stream.
    Cd {
        /// StreamID.
        sid: u32,
        /// First SubstreamID.
        first: u32,
        /// log2 of the CDs that a level 2 table has.
        split: u32,
    },
}

/// Is told what the SMMU does. Every method does nothing unless implemented.
pub trait Observer: Send {
    /// A command was consumed.
    fn command(&mut self, command: &Command) {
        let _ = command;
    }

    /// A command was read at this address; [`Observer::command`], [`Observer::command_error`] or nothing (a CMD_SYNC that
    /// has to wait) follows.
    fn fetched(&mut self, at: u64) {
        let _ = at;
    }

    /// A command stopped the queue.
    fn command_error(&mut self, command: &Command, error: Cerror) {
        let _ = (command, error);
    }

    /// A word of a register was written, and reads as `value` now.
    fn register(&mut self, offset: u64, value: u32) {
        let _ = (offset, value);
    }

    /// A level 1 descriptor of the stream table or of a CD table was fetched.
    fn level1(&mut self, what: Level1, at: u64, word: u64) {
        let _ = (what, at, word);
    }

    /// An STE was fetched.
    fn ste(&mut self, sid: u32, at: u64, words: &[u64; 8]) {
        let _ = (sid, at, words);
    }

    /// A CD was fetched; `cd` is its index.
    fn cd(&mut self, sid: u32, cd: u32, at: u64, words: &[u64; 8]) {
        let _ = (sid, cd, at, words);
    }

    /// A walk fetched a descriptor.
    fn descriptor(&mut self, descriptor: &Descriptor) {
        let _ = descriptor;
    }

    /// Hardware changed a descriptor's access flag or dirty state.
    fn updated(&mut self, at: u64, value: u64) {
        let _ = (at, value);
    }

    /// A transaction goes on with this translation until [`Observer::completed`].
    fn latched(&mut self, id: TxnId, t: &Transaction, translation: &Translation) {
        let _ = (id, t, translation);
    }

    /// A transaction passes while SMMUEN is 0.
    fn passed(&mut self, t: &Transaction) {
        let _ = t;
    }

    /// A transaction is over, with its data or without.
    fn completed(&mut self, id: TxnId) {
        let _ = id;
    }

    /// A transaction stalls or is terminated for this, whether or not it is recorded.
    fn faulted(&mut self, event: &Event) {
        let _ = event;
    }

    /// A page request that wants a response was written to the PRI queue.
    fn page_requested(&mut self, request: &PageRequest) {
        let _ = request;
    }

    /// An event record was written to the queue.
    fn event(&mut self, event: &Event) {
        let _ = event;
    }

    /// A Translated transaction goes on until [`Observer::completed`]; its address is what ATS answered.
    fn latched_translated(&mut self, id: TxnId, t: &Transaction, translation: &Translation) {
        let _ = (id, t, translation);
    }

    /// A Translation Request was answered: the device may cache that from now on.
    fn ats_translation(&mut self, request: &AtsRequest, answer: &AtsAnswer) {
        let _ = (request, answer);
    }

    /// An ATC_INV was consumed; its invalidation is outstanding.
    fn atc_inv(&mut self, invalidation: &AtcInvalidation) {
        let _ = invalidation;
    }

    /// The device confirmed an invalidation: it has forgotten, and uses no longer, what that was for.
    fn atc_inv_completed(&mut self, invalidation: &AtcInvalidation) {
        let _ = invalidation;
    }

    /// The device did not confirm an invalidation in time.
    fn atc_inv_timed_out(&mut self, invalidation: &AtcInvalidation) {
        let _ = invalidation;
    }
}

/// Where an observer sits. It is no part of the SMMU's state: a copy or a snapshot has none.
#[derive(Default)]
pub(crate) struct Seat(pub(crate) Option<Box<dyn Observer>>);

impl Clone for Seat {
    fn clone(&self) -> Self {
        Seat(None)
    }
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Seat(taken)" } else { "Seat(empty)" })
    }
}

impl Seat {
    /// Tells whoever watches.
    #[inline]
    pub(crate) fn tell(&mut self, what: impl FnOnce(&mut dyn Observer)) {
        if let Some(observer) = &mut self.0 {
            what(observer.as_mut());
        }
    }

    pub(crate) fn command(&mut self, command: &Command) {
        if let Some(observer) = &mut self.0 {
            observer.command(command);
        }
    }

    pub(crate) fn event(&mut self, event: &Event) {
        if let Some(observer) = &mut self.0 {
            observer.event(event);
        }
    }
}
