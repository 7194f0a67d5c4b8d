//! What a fault does: an event record, and the transaction terminated or stalled (section 3.12).

use pgtable::FaultKind;

use super::Outcome;
use super::txn::{Origin, Txn};
use crate::ats::AtsAnswer;
use crate::smmu::Smmu;
use crate::spec::event::{Access, Class, Event, EventCode, EventKind, Place};
use crate::spec::registers::cr2;
use crate::transaction::TxnId;

impl Smmu {
    /// A fault of the configuration: always terminated with an abort, and recorded.
    pub(super) fn config_fault(&mut self, txn: &Txn, kind: EventKind) -> Outcome {
        if txn.is_prefetch() {
            return Outcome::Abort;
        }
        if let Some(lookup) = txn.atos() {
            return lookup.error(kind.code());
        }
        // What ATS and PRI run into is recorded only with CR2.REC_CFG_ATS (sections 3.9.1.2, 3.9.1.3 and 8.1).
        let ats = txn.origin != Origin::Untranslated;
        // CR2.RECINVSID (section 6.3.12). Translated transactions do not go by it.
        let bad_stream_ids = self.regs.cr2 & cr2::RECINVSID != 0 || txn.origin == Origin::Translated;
        if (bad_stream_ids || kind != EventKind::BadStreamId) && (!ats || self.records_ats()) {
            // Before there is an STE, nothing forbids to merge.
            let early = matches!(kind, EventKind::BadStreamId | EventKind::SteFetch(_) | EventKind::BadSte);
            self.record_of(txn, kind, early || txn.stream.mev);
        }
        txn.aborted()
    }

    /// Records an event of a transaction that does not stall, or merges it. What has been recorded once, because it
    /// stalled, is not recorded again (section 3.12.2.2).
    fn record_of(&mut self, txn: &Txn, kind: EventKind, merge: bool) {
        if !txn.retried {
            self.record_merging(txn.event(kind, None), merge);
        }
    }

    /// CR2.REC_CFG_ATS.
    fn records_ats(&self) -> bool {
        self.regs.cr2 & cr2::REC_CFG_ATS != 0
    }

    /// An input address that no stage translates and that is wider than OAS (section 3.4).
    pub(super) fn input_size_fault(&mut self, txn: &Txn) -> Outcome {
        if txn.is_prefetch() {
            return Outcome::Abort;
        }
        if let Some(lookup) = txn.atos() {
            return lookup.fault(EventCode::FAddrSize, None, 0);
        }
        if txn.is_ats_request() {
            return Outcome::NO_ACCESS;
        }
        let place = Place { class: Class::Input, s2: false, ipa: 0, tt_read: false };
        self.record_of(txn, EventKind::AddressSize(txn.access(), place), txn.stream.mev);
        Outcome::Abort
    }

    /// A descriptor could not be fetched: terminated and recorded, whatever the CD or STE says.
    pub(super) fn walk_abort(&mut self, txn: &Txn, class: Class, s2: bool) -> Outcome {
        if txn.is_prefetch() {
            return Outcome::Abort;
        }
        if let Some(lookup) = txn.atos() {
            return lookup.fault(EventCode::FWalkEabt, s2.then_some(class), 0);
        }
        let place = Place { class, s2, ipa: txn.ipa, tt_read: true };
        if !txn.is_ats_request() || self.records_ats() {
            let kind = EventKind::WalkExternalAbort(txn.access(), place, txn.at);
            self.record_of(txn, kind, txn.stream.mev);
        }
        txn.aborted()
    }

    /// Several entries answer, and do not agree: terminated and recorded, whatever the CD or STE says (section 3.12).
    pub(super) fn tlb_conflict(&mut self, txn: &Txn, s2: bool) -> Outcome {
        if txn.is_prefetch() {
            return Outcome::Abort;
        }
        if let Some(lookup) = txn.atos() {
            return lookup.error(EventCode::FTlbConflict);
        }
        if !txn.is_ats_request() || self.records_ats() {
            let place = Place { class: Class::Input, s2, ipa: txn.ipa, tt_read: false };
            self.record_of(txn, EventKind::TlbConflict(txn.access(), place), txn.stream.mev);
        }
        txn.aborted()
    }

    /// A fault of a translation: the CD's A, R and S or the STE's S2R and S2S decide (sections 5.5 and 3.12).
    pub(super) fn translation_fault(
        &mut self,
        id: TxnId,
        txn: &Txn,
        kind: FaultKind,
        place: Place,
    ) -> Outcome {
        if txn.is_prefetch() {
            return Outcome::Abort;
        }
        if txn.is_ats_request() {
            return Outcome::NO_ACCESS;
        }
        let access = txn.access();
        let kind = match kind {
            FaultKind::Translation => EventKind::Translation(access, place),
            FaultKind::AddressSize => EventKind::AddressSize(access, place),
            FaultKind::AccessFlag => EventKind::AccessFlag(access, place),
            FaultKind::Permission => EventKind::Permission(access, place),
            FaultKind::External => EventKind::WalkExternalAbort(access, place, txn.at),
        };
        if let Some(lookup) = txn.atos() {
            return lookup.fault(kind.code(), place.s2.then_some(place.class), place.ipa);
        }
        let (record, stall, abort) = if place.s2 {
            (txn.stream.stage2.record, txn.stream.stage2.stall, true)
        } else {
            (txn.context.record, txn.context.stall, txn.context.abort)
        };
        if stall && id.slot < u32::from(crate::STALL_MAX) {
            let tag = id.slot as u16;
            self.observer.tell(|o| o.faulted(&txn.event(kind, Some(tag))));
            let suppress = self.config.stall_suppress && !txn.retried;
            let behind = if suppress { self.txns.leader(txn) } else { None };
            if behind.is_none() && !txn.retried {
                self.record(txn.event(kind, Some(tag)));
            }
            return Outcome::Stall(behind);
        }
        self.observer.tell(|o| o.faulted(&txn.event(kind, None)));
        if record {
            self.record_of(txn, kind, txn.stream.mev);
        }
        if abort { Outcome::Abort } else { Outcome::Discard }
    }
}

impl Txn {
    fn is_prefetch(&self) -> bool {
        matches!(self.origin, Origin::Prefetch { .. })
    }

    /// How it ends when it cannot go on.
    fn aborted(&self) -> Outcome {
        if self.is_ats_request() { Outcome::Answer(AtsAnswer::CompleterAbort) } else { Outcome::Abort }
    }

    pub(crate) fn event(&self, kind: EventKind, stall: Option<u16>) -> Event {
        Event { sid: self.incoming.sid, ssid: self.incoming.ssid, stall, kind }
    }

    /// The transaction as a record shows it: with the stream's overrides, and the address as it came.
    pub(crate) fn access(&self) -> Access {
        Access {
            address: self.incoming.address,
            read: self.t.kind.is_read(),
            instruction: self.t.instruction,
            privileged: self.t.privileged,
        }
    }
}
