//! PCIe PRI: page requests of devices go to the PRI queue, and the responses back (section 3.9 and chapter 8).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::irq::IrqSource;
use crate::memory::Memory;
use crate::queue::Geometry;
use crate::smmu::Smmu;
use crate::spec::command::Command;
use crate::spec::event::{Event, EventKind, PageHint};
use crate::spec::pri::PRI_SHIFT;
use crate::spec::registers::{OVERFLOW, PRIQ_LAST_ONLY, PRIQ_PROD, cr0, gerror};
use crate::transaction::{AccessKind, Transaction, TxnId};
use crate::translate::{Origin, Outcome, State, Txn};

/// Page requests that wait for their turn; as many as PRGIndex can tell apart.
const FIFO: usize = 512;
/// Responses that wait for their turn; with more, commands are not consumed.
const RESPONSES: usize = 256;

/// A page request message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRequest {
    /// StreamID.
    pub sid: u32,
    /// PASID.
    pub ssid: Option<u32>,
    /// Page address.
    pub address: u64,
    /// PRGIndex: its group, 9 bits.
    pub prg_index: u16,
    /// Last of its group.
    pub last: bool,
    /// Wants to read.
    pub read: bool,
    /// Wants to write.
    pub write: bool,
    /// Wants to execute; only with a PASID.
    pub execute: bool,
    /// Is privileged; only with a PASID.
    pub privileged: bool,
}

impl PageRequest {
    /// A Stop Marker delimits the requests of a PASID and gets no response.
    #[must_use]
    pub fn is_stop_marker(&self) -> bool {
        self.ssid.is_some() && self.last && !self.read && !self.write
    }

    /// Whether somebody has to respond to it.
    fn wants_response(&self) -> bool {
        self.last && !self.is_stop_marker()
    }
}

/// How a page request group ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResponseCode {
    /// Success: ask for the translation again.
    Success,
    /// Invalid Request: a page of the group cannot be had.
    InvalidRequest,
    /// Response Failure: no more requests, please.
    ResponseFailure,
}

/// A PRG response message, on its way to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageResponse {
    /// StreamID of the device.
    pub sid: u32,
    /// PASID.
    pub ssid: Option<u32>,
    /// PRGIndex.
    pub prg_index: u16,
    /// How it ended.
    pub code: ResponseCode,
}

/// What there is of PRI beside the registers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pri {
    /// Requests that have not been looked at.
    requests: VecDeque<PageRequest>,
    /// The request whose STE is being fetched for its automatic response.
    walking: Option<TxnId>,
    responses: VecDeque<PageResponse>,
}

impl Pri {
    /// Whether there is no room for another response.
    pub(crate) fn full(&self) -> bool {
        self.responses.len() >= RESPONSES
    }
}

impl Smmu {
    fn priq(&self) -> Geometry {
        self.regs.priq.geometry(self.config.priqs, self.config.oas, PRI_SHIFT)
    }

    /// A page request arrives. Nothing is done with it yet.
    pub fn page_request(&mut self, request: &PageRequest) {
        self.stats.page_requests += 1;
        // Devices have as many outstanding as software allows them; whoever sends more than that is told to stop.
        if self.pri.requests.len() < FIFO {
            self.pri.requests.push_back(*request);
        } else {
            self.respond_by_itself(request, None, ResponseCode::ResponseFailure);
        }
    }

    /// A device announces that it will use these pages soon, outside of PRI: an event, if there is room for it (section
    /// 7.3.19).
    pub fn page_hint(&mut self, sid: u32, ssid: Option<u32>, hint: PageHint) {
        if self.regs.smmuen() {
            self.record(Event { sid, ssid, stall: None, kind: EventKind::PageHint(hint) });
        }
    }

    /// Whether [`Smmu::step_pri`] has a page request to write or to respond to.
    #[must_use]
    pub fn pri_pending(&self) -> bool {
        self.pri.walking.is_some() || !self.pri.requests.is_empty() && !self.pri.full()
    }

    /// Writes one page request to the PRI queue, or does one step of responding to it.
    pub fn step_pri(&mut self, mem: &dyn Memory) {
        if let Some(id) = self.pri.walking {
            self.step_response(id, mem);
            return;
        }
        if !self.pri_pending() {
            return;
        }
        let Some(request) = self.pri.requests.pop_front() else { return };
        let enabled = self.regs.smmuen() && self.regs.cr0 & cr0::PRIQEN != 0;
        if !enabled || self.regs.gerror_active(gerror::PRIQ_ABT_ERR) {
            self.respond_by_itself(&request, None, ResponseCode::ResponseFailure);
            return;
        }
        let geometry = self.priq();
        let overflown = (self.regs.priq.prod ^ self.regs.priq.cons) & OVERFLOW != 0;
        if overflown || self.regs.priq.is_full(geometry) {
            self.priq_overflow();
            self.respond_to_overflow(&request);
            return;
        }
        let mut bytes = [0; 16];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(request.record()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        if mem.write(geometry.entry(self.regs.priq.prod), &bytes).is_err() {
            self.raise_gerror(gerror::PRIQ_ABT_ERR);
            self.respond_by_itself(&request, None, ResponseCode::ResponseFailure);
            return;
        }
        let was_empty = self.regs.priq.is_empty(geometry);
        self.regs.priq.advance_prod(geometry);
        if request.wants_response() {
            self.observer.tell(|o| o.page_requested(&request));
        }
        let last_only = self.regs.priq_irq.attrs & PRIQ_LAST_ONLY != 0;
        if if last_only { request.last } else { was_empty } {
            self.raise(IrqSource::PriQ);
        }
    }

    /// A request was lost because there is no room. Until software acknowledges that, no request is written
    /// (section 8.1).
    fn priq_overflow(&mut self) {
        let queue = &mut self.regs.priq;
        if (queue.prod ^ queue.cons) & OVERFLOW == 0 {
            queue.prod ^= OVERFLOW;
            let prod = queue.prod;
            self.observer.tell(|o| o.register(PRIQ_PROD, prod));
        }
    }

    /// The SMMU responds in software's place (section 8.2).
    fn respond_by_itself(&mut self, request: &PageRequest, ssid: Option<u32>, code: ResponseCode) {
        if request.wants_response() {
            self.stats.page_auto_responses += 1;
            let PageRequest { sid, prg_index, .. } = *request;
            self.pri.responses.push_back(PageResponse { sid, ssid, prg_index, code });
        }
    }

    /// The response to a request that met a full queue. Whether it has the request's PASID is for STE.PPAR to say
    /// (section 8.1).
    fn respond_to_overflow(&mut self, request: &PageRequest) {
        let Some(ssid) = request.ssid.filter(|_| self.config.ssidsize > 0 && request.wants_response()) else {
            return self.respond_by_itself(request, None, ResponseCode::Success);
        };
        if self.config.pps {
            return self.respond_by_itself(request, Some(ssid), ResponseCode::Success);
        }
        let t = Transaction::new(request.sid, request.address, AccessKind::Read).with_ssid(ssid);
        let mut txn = Box::new(Txn::new(&t, Origin::PageRequest(*request), self.recent.epoch()));
        let id = self.txns.add(self.recent.epoch(), true, State::Free);
        let outcome = self.start(id, &mut txn);
        self.settle_response(id, txn, request, outcome);
    }

    /// One fetch of the STE of a request.
    fn step_response(&mut self, id: TxnId, mem: &dyn Memory) {
        self.pri.walking = None;
        let Some(state) = self.txns.get(id) else { return };
        let State::Walking(mut txn) = std::mem::replace(state, State::Free) else { return };
        let Origin::PageRequest(request) = txn.origin else { return };
        let outcome = self.fetch(id, &mut txn, mem);
        self.settle_response(id, txn, &request, outcome);
    }

    fn settle_response(&mut self, id: TxnId, txn: Box<Txn>, request: &PageRequest, outcome: Outcome) {
        match outcome {
            Outcome::Fetch => {
                if let Some(slot) = self.txns.get(id) {
                    *slot = State::Walking(txn);
                }
                self.pri.walking = Some(id);
                return;
            }
            Outcome::Respond { with_pasid } => {
                let ssid = request.ssid.filter(|_| with_pasid);
                self.respond_by_itself(request, ssid, ResponseCode::Success);
            }
            _ => self.respond_by_itself(request, None, ResponseCode::ResponseFailure),
        }
        self.complete(id);
    }

    /// PRI_RESP is consumed. With SMMUEN=0 it is ignored.
    pub(crate) fn pri_resp(&mut self, command: &Command) {
        if !self.regs.smmuen() {
            return;
        }
        let code = match command.response() {
            0 => ResponseCode::ResponseFailure,
            1 => ResponseCode::InvalidRequest,
            _ => ResponseCode::Success,
        };
        let ssid = (command.ssv() && self.config.ssidsize > 0).then(|| command.ssid());
        let (sid, prg_index) = (command.sid(), command.prg_index());
        self.pri.responses.push_back(PageResponse { sid, ssid, prg_index, code });
    }

    /// Whether [`Smmu::take_page_response`] has one.
    #[must_use]
    pub fn page_response_pending(&self) -> bool {
        !self.pri.responses.is_empty()
    }

    /// Takes the next PRG response; whoever takes it brings it to the device.
    pub fn take_page_response(&mut self) -> Option<PageResponse> {
        let response = self.pri.responses.pop_front()?;
        self.stats.page_responses += 1;
        Some(response)
    }
}
