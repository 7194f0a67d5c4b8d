//! PCIe ATS: Translation Requests of devices that cache translations themselves, and the Translated transactions that
//! follow (sections 3.9 and 13.6).
//!
//! A request is translated like a transaction, one fetch a step, and is over with its answer. What it answers grants
//! access until the device's cache has forgotten it: see [`invalidate`].

mod grant;
mod invalidate;

pub use invalidate::AtcInvalidation;
pub(crate) use invalidate::{EVERYTHING, Invalidations};

use serde::{Deserialize, Serialize};

use crate::cache::Mapping;
use crate::memory::Memory;
use crate::pmcg::PmuEvent;
use crate::smmu::Smmu;
use crate::spec::event::EventKind;
use crate::spec::registers::cr0;
use crate::transaction::{AccessKind, MemAttrs, Progress, Transaction, TxnId};
use crate::translate::{Eats, Origin, Outcome, State, Stream, Txn};

/// A Translation Request for the smallest translation unit at `address`. It always asks to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtsRequest {
    /// StreamID.
    pub sid: u32,
    /// PASID.
    pub ssid: Option<u32>,
    /// Untranslated address.
    pub address: u64,
    /// NW: the device does not intend to write.
    pub no_write: bool,
    /// Execute Requested; only with a PASID.
    pub execute: bool,
    /// Privileged Mode Requested; only with a PASID.
    pub privileged: bool,
}

/// A Translation Completion Data Entry. Its U, N and Global bits are always 0 (sections 3.9.1, 13.6.2 and 13.6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtsTranslation {
    /// Translated address of the first byte of the range.
    pub address: u64,
    /// log2 of the bytes of the range, which is aligned to its size and has the requested address in it.
    pub size: u8,
    /// R.
    pub read: bool,
    /// W.
    pub write: bool,
    /// Execute Permitted.
    pub execute: bool,
    /// Privileged Mode Access: as the request said.
    pub privileged: bool,
}

impl AtsTranslation {
    /// Whether it grants anything at all.
    #[must_use]
    pub fn grants(&self) -> bool {
        self.read || self.write || self.execute
    }
}

/// A Translation Completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AtsAnswer {
    /// Success, which includes a translation that grants nothing: that is how faults are answered.
    Success(AtsTranslation),
    /// UR: ATS is off for this device.
    UnsupportedRequest,
    /// CA: the configuration is at fault.
    CompleterAbort,
}

/// How far a Translation Request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AtsProgress {
    /// Something has yet to be fetched: call [`Smmu::ats_step`], or [`Smmu::complete`] to give up.
    Walking(TxnId),
    /// The answer; the request is over.
    Answered(AtsAnswer),
}

impl Smmu {
    /// A Translation Request arrives. No memory is accessed: what the caches do not have is fetched by
    /// [`Smmu::ats_step`].
    pub fn ats_request(&mut self, request: &AtsRequest) -> AtsProgress {
        self.stats.ats_requests += 1;
        self.tally(PmuEvent::Transaction, request.sid);
        self.tally(PmuEvent::AtsRequest, request.sid);
        // Without a PASID there are no Execute and Privileged bits (section 13.7).
        let with_pasid = request.ssid.is_some();
        let (execute, privileged) = (request.execute && with_pasid, request.privileged && with_pasid);
        let t = Transaction {
            ssid: request.ssid,
            privileged,
            ..Transaction::new(request.sid, request.address, AccessKind::Read)
        };
        let origin = Origin::AtsRequest { no_write: request.no_write, execute };
        let mut txn = Box::new(Txn::new(&t, origin, self.recent.epoch()));
        if !self.regs.smmuen() || !self.config.ats {
            let outcome = self.bad_ats_request(&txn);
            return self.settle_ats(None, txn, outcome);
        }
        let id = self.txns.add(self.recent.epoch(), true, State::Free);
        let outcome = self.start(id, &mut txn);
        self.settle_ats(Some(id), txn, outcome)
    }

    /// Takes a Translation Request one fetch further. One that is not known (any more) is answered with CA.
    pub fn ats_step(&mut self, id: TxnId, mem: &dyn Memory) -> AtsProgress {
        let aborted = AtsProgress::Answered(AtsAnswer::CompleterAbort);
        let Some(state) = self.txns.get(id) else { return aborted };
        if !matches!(state, State::Walking(txn) if txn.is_ats_request()) {
            return aborted;
        }
        let State::Walking(mut txn) = std::mem::replace(state, State::Free) else { return aborted };
        let outcome = self.fetch(id, &mut txn, mem);
        self.settle_ats(Some(id), txn, outcome)
    }

    /// Puts a request where its outcome says.
    fn settle_ats(&mut self, id: Option<TxnId>, txn: Box<Txn>, outcome: Outcome) -> AtsProgress {
        let answer = match (id, outcome) {
            (Some(id), Outcome::Fetch) => {
                if let Some(slot) = self.txns.get(id) {
                    *slot = State::Walking(txn);
                }
                return AtsProgress::Walking(id);
            }
            // Priv is the request's, whatever else is answered (section 13.7).
            (_, Outcome::Answer(AtsAnswer::Success(t))) => {
                AtsAnswer::Success(AtsTranslation { privileged: txn.incoming.privileged, ..t })
            }
            (_, Outcome::Answer(answer)) => answer,
            _ => AtsAnswer::CompleterAbort,
        };
        if let Some(id) = id {
            self.complete(id);
        }
        self.observer.tell(|o| o.ats_translation(&txn.ats_request(), &answer));
        AtsProgress::Answered(answer)
    }

    /// A Translated transaction arrives: its address is what a Translation Request was answered with. As with
    /// [`Smmu::begin`], `Latched` must be followed by [`Smmu::complete`]. A PASID is not looked at (IDR3.PASIDTT is 0).
    pub fn begin_translated(&mut self, t: &Transaction) -> Progress {
        self.stats.transactions += 1;
        self.stats.ats_translated += 1;
        self.tally(PmuEvent::Transaction, t.sid);
        self.tally(PmuEvent::AtsTranslated, t.sid);
        // Without a PASID it is unprivileged data (section 13.7); its attributes are the ones that PCIe always has.
        let t = Transaction {
            ssid: None,
            privileged: false,
            instruction: false,
            attrs: MemAttrs::WRITE_BACK,
            ..*t
        };
        let mut txn = Box::new(Txn::new(&t, Origin::Translated, self.recent.epoch()));
        let id = self.txns.add(self.recent.epoch(), true, State::Free);
        let outcome = if !self.regs.smmuen() || !self.config.ats {
            self.translation_forbidden(&txn)
        } else if self.regs.cr0 & cr0::ATSCHK == 0 {
            self.pass_translated(&txn)
        } else {
            self.start(id, &mut txn)
        };
        self.settle(id, txn, outcome)
    }

    /// STE.EATS as it counts: with ATSCHK=0, split-stage ATS is off (section 5.2).
    fn effective_eats(&self, stream: &Stream) -> Eats {
        match stream.eats {
            Eats::Split if self.regs.cr0 & cr0::ATSCHK == 0 => Eats::Off,
            eats => eats,
        }
    }

    /// The stream of a Translation Request is known: whether it goes on. Answers what ends it.
    pub(crate) fn check_ats_request(&mut self, txn: &mut Txn) -> Option<Outcome> {
        if txn.stream.aborts() {
            return Some(Outcome::Answer(AtsAnswer::UnsupportedRequest));
        }
        match self.effective_eats(&txn.stream) {
            Eats::Off => Some(self.bad_ats_request(txn)),
            Eats::Full => None,
            Eats::Split => {
                txn.split = true;
                None
            }
        }
    }

    /// ATS is off for this request: UR, and a record that says so (section 3.9.1.2).
    fn bad_ats_request(&mut self, txn: &Txn) -> Outcome {
        self.record(txn.event(EventKind::BadAtsRequest(txn.ats_request()), None));
        Outcome::Answer(AtsAnswer::UnsupportedRequest)
    }

    /// The stream of a Translated transaction is known: whether stage 2 has to translate it. Answers what ends it.
    pub(crate) fn check_translated(&mut self, txn: &Txn) -> Option<Outcome> {
        if txn.stream.aborts() {
            return Some(Outcome::Abort);
        }
        match self.effective_eats(&txn.stream) {
            Eats::Off => Some(self.translation_forbidden(txn)),
            Eats::Full => Some(self.pass_translated(txn)),
            Eats::Split => None,
        }
    }

    /// Translated transactions are not allowed here (section 3.9.1.3).
    fn translation_forbidden(&mut self, txn: &Txn) -> Outcome {
        self.record(txn.event(EventKind::TranslationForbidden(txn.access()), None));
        Outcome::Abort
    }

    /// The address is physical. One wider than OAS is aborted, and nothing recorded (section 3.9.1.1).
    fn pass_translated(&mut self, txn: &Txn) -> Outcome {
        let address = txn.t.address;
        if address >> self.config.oas != 0 {
            return Outcome::Abort;
        }
        self.stats.bypassed += 1;
        let bytes = (1 << self.config.oas) - address;
        Outcome::Latch(crate::Translation { pa: address, bytes, attrs: txn.t.attrs })
    }

    /// The answer of a translation: what of the requested rights it grants, for the whole of its range.
    pub(crate) fn ats_answer(&self, txn: &Txn, mapping: &Mapping) -> Outcome {
        let grant = txn.granted(mapping.permissions);
        if !grant.any() {
            return Outcome::NO_ACCESS;
        }
        Outcome::Answer(AtsAnswer::Success(AtsTranslation {
            address: mapping.output,
            size: mapping.shift,
            read: grant.read,
            write: grant.write,
            execute: grant.execute,
            privileged: false,
        }))
    }

    /// The answer where stage 1 is skipped and there is no stage 2: everything, as it is (section 13.6.4).
    pub(crate) fn ats_identity(&self) -> Outcome {
        Outcome::Answer(AtsAnswer::Success(AtsTranslation {
            address: 0,
            size: self.config.oas,
            read: true,
            write: true,
            execute: false,
            privileged: false,
        }))
    }
}

impl Txn {
    /// Whether this is a Translation Request.
    pub(crate) fn is_ats_request(&self) -> bool {
        matches!(self.origin, Origin::AtsRequest { .. })
    }

    fn ats_request(&self) -> AtsRequest {
        let (no_write, execute) = match self.origin {
            Origin::AtsRequest { no_write, execute } => (no_write, execute),
            _ => (true, false),
        };
        let Transaction { sid, ssid, address, privileged, .. } = self.incoming;
        AtsRequest { sid, ssid, address, no_write, execute, privileged }
    }
}
