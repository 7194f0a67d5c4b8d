//! The way of an access through ATS: cache, Translation Request, page request, Translated transaction.

use smmu_model::{AtsAnswer, AtsProgress, AtsRequest, PageRequest};

use super::atc::Denied;
use super::ats::{Found, Paged};
use super::port::count;
use super::transfer::{Stage, Way};
use super::{Attributes, DmaError, DmaPort, PhysMem, Poll, Transfer};

/// Page requests that one group has at most.
const GROUP: u64 = 4;
const PAGE: u64 = 4096;

impl DmaPort {
    /// Whether the next step of the transfer is one of ATS.
    pub(super) fn ats_goes_on(&self, transfer: &Transfer) -> bool {
        match transfer.stage {
            Stage::Idle => self.ats_on() && transfer.way == Way::Ats,
            Stage::Requesting { .. } | Stage::Translated { .. } | Stage::Paging(_) => true,
            Stage::Walking(_) | Stage::Stalled(_) | Stage::Latched { .. } | Stage::Discarded => false,
        }
    }

    /// One step of ATS: a look into the cache and what follows from it, one fetch of a Translation Request's walk, or a
    /// look whether page requests are answered.
    pub(super) fn poll_ats(&self, transfer: &mut Transfer) -> Result<Poll, DmaError> {
        if !self.ats_on() {
            // It was switched off meanwhile: begin anew without.
            self.cancel(transfer);
            return Ok(Poll::Walking(0));
        }
        let request = self.ats_request(transfer.iova, transfer.write, transfer.attributes);
        match transfer.stage {
            Stage::Idle => match self.with_ats(|ats| ats.look_up(&request)).flatten() {
                Some(Found::At { address, bytes, user }) => {
                    transfer.holding = Some(user);
                    self.begin_translated(transfer, address, bytes)
                }
                _ => {
                    count(&self.0.counters.transactions, 1);
                    let generation = self.count_request();
                    let Some(mut smmu) = self.lock_smmu() else { return Ok(Poll::Walking(0)) };
                    let progress = smmu.ats_request(&request);
                    drop(smmu);
                    self.requested(transfer, &request, progress, generation)
                }
            },
            Stage::Requesting { id, generation } => {
                count(&self.0.counters.fetches, 1);
                let Some(mut smmu) = self.lock_smmu() else { return Ok(Poll::Walking(0)) };
                let progress = smmu.ats_step(id, &PhysMem::new(&self.0.fabric.ram));
                drop(smmu);
                self.requested(transfer, &request, progress, generation)
            }
            Stage::Translated { address, bytes } => self.begin_translated(transfer, address, bytes),
            Stage::Paging(group) => match self.with_ats(|ats| ats.paged(group)) {
                Some(Paged::Waiting) => Ok(Poll::Stalled),
                Some(Paged::Refused) => {
                    transfer.stage = Stage::Idle;
                    Err(self.refused(DmaError::Aborted))
                }
                Some(Paged::Retry) | None => {
                    transfer.stage = Stage::Idle;
                    Ok(Poll::Walking(0))
                }
            },
            _ => Ok(Poll::Ready),
        }
    }

    /// A Translation Request goes on, or is answered.
    fn requested(
        &self,
        transfer: &mut Transfer,
        request: &AtsRequest,
        progress: AtsProgress,
        generation: u64,
    ) -> Result<Poll, DmaError> {
        let answer = match progress {
            AtsProgress::Walking(id) => {
                transfer.stage = Stage::Requesting { id, generation };
                return Ok(Poll::Walking(self.fetch_time()));
            }
            AtsProgress::Answered(answer) => answer,
        };
        transfer.stage = Stage::Idle;
        match answer {
            AtsAnswer::Success(translation) => {
                let found = self.with_ats(|ats| {
                    // What an invalidation overtook is neither kept nor used (PCIe 4.0 §10.3.1): ask again.
                    (ats.generation() == generation).then(|| ats.answered(request, &translation))
                });
                match found.flatten() {
                    None => Ok(Poll::Walking(0)),
                    Some(Found::At { address, bytes, user }) => {
                        transfer.holding = Some(user);
                        transfer.stage = Stage::Translated { address, bytes };
                        Ok(Poll::Walking(0))
                    }
                    Some(Found::Denied) => self.denied(transfer, request),
                }
            }
            AtsAnswer::UnsupportedRequest => {
                transfer.way = Way::Fallback;
                Ok(Poll::Walking(0))
            }
            AtsAnswer::CompleterAbort => Err(self.refused(DmaError::Aborted)),
        }
    }

    /// The translation does not let the access happen: ask for the page, or do without ATS, or give up.
    fn denied(&self, transfer: &mut Transfer, request: &AtsRequest) -> Result<Poll, DmaError> {
        match self.with_ats(|ats| (ats.page_credit(), ats.denied())) {
            Some((Some(credit), _)) => {
                let first = transfer.iova & !(PAGE - 1);
                let wanted = transfer.left.saturating_add(transfer.ahead);
                let last = transfer.iova.saturating_add(wanted.saturating_sub(1));
                let pages = ((last - first) / PAGE + 1).min(GROUP).min(credit.into());
                if pages > 0
                    && let Some(group) = self.with_ats(|ats| ats.page(pages as u32)).flatten()
                {
                    self.request_pages(request, group, first, pages);
                    transfer.stage = Stage::Paging(group);
                }
                Ok(Poll::Stalled)
            }
            Some((None, Denied::Untranslated)) => {
                transfer.way = Way::Fallback;
                Ok(Poll::Walking(0))
            }
            _ => Err(self.refused(DmaError::Aborted)),
        }
    }

    /// Sends the requests of a group.
    fn request_pages(&self, request: &AtsRequest, group: u16, first: u64, pages: u64) {
        let Some(mut smmu) = self.lock_smmu() else { return };
        for page in 0..pages {
            smmu.page_request(&PageRequest {
                sid: request.sid,
                ssid: request.ssid,
                address: first.saturating_add(page * PAGE),
                prg_index: group,
                last: page + 1 == pages,
                read: request.no_write,
                write: !request.no_write,
                execute: request.execute,
                privileged: request.privileged,
            });
        }
    }

    /// Begins the Translated transaction.
    fn begin_translated(&self, transfer: &mut Transfer, address: u64, bytes: u64) -> Result<Poll, DmaError> {
        count(&self.0.counters.transactions, 1);
        // The access ends where the translation of the cache does.
        transfer.bound = bytes;
        let t = self.transaction(address, transfer.write, transfer.attributes);
        let Some(mut smmu) = self.lock_smmu() else { return Ok(Poll::Walking(0)) };
        let progress = smmu.begin_translated(&t);
        drop(smmu);
        self.progressed(transfer, progress)
    }

    /// A bookkeeping access: the translated address and its bytes, or `None` where it goes untranslated. Nothing else
    /// happens between this and the access.
    pub(super) fn ats_now(&self, iova: u64, write: bool) -> Result<Option<(u64, u64)>, DmaError> {
        let request = self.ats_request(iova, write, self.attributes());
        let found = match self.with_ats(|ats| ats.look_up(&request)).flatten() {
            Some(found) => found,
            None => {
                self.count_request();
                let Some(mut smmu) = self.lock_smmu() else { return Ok(None) };
                let mut progress = smmu.ats_request(&request);
                let answer = loop {
                    match progress {
                        AtsProgress::Answered(answer) => break answer,
                        // Every walk ends: levels and stages are finite.
                        AtsProgress::Walking(id) => {
                            count(&self.0.counters.fetches, 1);
                            progress = smmu.ats_step(id, &PhysMem::new(&self.0.fabric.ram));
                        }
                    }
                };
                drop(smmu);
                match answer {
                    AtsAnswer::Success(t) => {
                        self.with_ats(|ats| ats.answered(&request, &t)).unwrap_or(Found::Denied)
                    }
                    AtsAnswer::UnsupportedRequest => return Ok(None),
                    AtsAnswer::CompleterAbort => return Err(self.refused(DmaError::Aborted)),
                }
            }
        };
        match found {
            Found::At { address, bytes, user } => {
                self.with_ats(|ats| ats.release(user));
                Ok(Some((address, bytes)))
            }
            Found::Denied if self.with_ats(|ats| ats.denied()) == Some(Denied::Abort) => {
                Err(self.refused(DmaError::Aborted))
            }
            Found::Denied => Ok(None),
        }
    }

    /// The Translation Request for an access.
    fn ats_request(&self, address: u64, write: bool, with: Attributes) -> AtsRequest {
        let Attributes { ssid, privileged, instruction, .. } = with;
        let with_pasid = ssid.is_some();
        AtsRequest {
            sid: self.requester().sid,
            ssid,
            address,
            no_write: !write,
            execute: instruction && !write && with_pasid,
            privileged: privileged && with_pasid,
        }
    }

    /// Counts a Translation Request, and answers how many invalidations came before it.
    fn count_request(&self) -> u64 {
        let count = self.with_ats(|ats| {
            ats.count_request();
            ats.generation()
        });
        count.unwrap_or(0)
    }

    /// The transfer uses no translation of the cache any more.
    pub(super) fn let_go(&self, transfer: &mut Transfer) {
        transfer.bound = u64::MAX;
        if let Some(user) = transfer.holding.take() {
            self.with_ats(|ats| ats.release(user));
        }
    }

    pub(super) fn abandon_page(&self, group: u16) {
        self.with_ats(|ats| ats.abandon(group));
    }
}
