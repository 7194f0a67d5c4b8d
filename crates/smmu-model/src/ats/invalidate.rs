//! ATC_INV: invalidations that devices have yet to confirm (sections 3.9.1.4 and 4.5.1).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::smmu::Smmu;
use crate::spec::align;
use crate::spec::command::Command;

/// Size of ATC_INV for the whole address space.
pub(crate) const EVERYTHING: u32 = 52;

/// ATS Invalidate Requests that wait for their completion at a time: as many as PCIe has tags for a device.
const MAX_OUTSTANDING: usize = 32;

/// An ATS Invalidate Request, on its way to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtcInvalidation {
    /// Names it; no two are alike.
    pub id: u64,
    /// StreamID of the device.
    pub sid: u32,
    /// The PASID that it is for. Without one, it is for what was requested without one.
    pub ssid: Option<u32>,
    /// Global Invalidate: with a PASID, it is for every PASID.
    pub global: bool,
    /// First address, aligned to the size.
    pub address: u64,
    /// Last address.
    pub last: u64,
}

/// One that is not confirmed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Outstanding {
    request: AtcInvalidation,
    /// It went out.
    sent: bool,
    /// The command queue that it came from.
    queue: u32,
}

/// The requests, and whose were never confirmed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Invalidations {
    /// Made so far.
    made: u64,
    /// Not confirmed, by their names.
    outstanding: BTreeMap<u64, Outstanding>,
    /// Queues of which one timed out, and no CMD_SYNC has said so yet.
    failed: BTreeSet<u32>,
}

impl Invalidations {
    /// Whether a CMD_SYNC has to wait.
    pub(crate) fn pending(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// Whether another one has to wait.
    pub(crate) fn full(&self) -> bool {
        self.outstanding.len() >= MAX_OUTSTANDING
    }

    /// Whether one of a queue failed since the last call.
    pub(crate) fn take_failure(&mut self, queue: usize) -> bool {
        self.failed.remove(&(queue as u32))
    }
}

impl Smmu {
    /// ATC_INV is consumed. With SMMUEN=0 it is ignored.
    pub(crate) fn atc_inv(&mut self, queue: usize, command: &Command) {
        if !self.regs.smmuen() {
            return;
        }
        let with_pasid = command.ssv() && self.config.ssidsize > 0;
        let shift = 12 + command.size().min(EVERYTHING);
        let address = align(command.address(), shift);
        let span = 1u64.checked_shl(shift).map_or(u64::MAX, |span| span - 1);
        let request = AtcInvalidation {
            id: self.invalidations.made,
            sid: command.sid(),
            ssid: with_pasid.then(|| command.ssid()),
            global: with_pasid && command.global(),
            address,
            last: address | span,
        };
        self.invalidations.made += 1;
        let outstanding = Outstanding { request, sent: false, queue: queue as u32 };
        self.invalidations.outstanding.insert(request.id, outstanding);
        self.stats.atc_invalidations += 1;
        self.observer.tell(|o| o.atc_inv(&request));
    }

    /// Whether [`Smmu::take_atc_invalidation`] has one.
    #[must_use]
    pub fn atc_invalidation_pending(&self) -> bool {
        self.invalidations.outstanding.values().any(|one| !one.sent)
    }

    /// Takes the next ATS Invalidate Request; whoever takes it brings it to the device.
    pub fn take_atc_invalidation(&mut self) -> Option<AtcInvalidation> {
        let next = self.invalidations.outstanding.values_mut().find(|one| !one.sent)?;
        next.sent = true;
        Some(next.request)
    }

    /// The device has confirmed an invalidation, or has answered that it does not do ATS (UR), which is no error either
    /// (section 3.9.1.5). One that is not outstanding is ignored.
    pub fn atc_invalidation_done(&mut self, id: u64) {
        if let Some(Outstanding { request, .. }) = self.invalidations.outstanding.remove(&id) {
            self.observer.tell(|o| o.atc_inv_completed(&request));
        }
    }

    /// The device has not confirmed an invalidation in time: the next CMD_SYNC of the queue that it came from fails with
    /// CERROR_ATC_INV_SYNC.
    pub fn atc_invalidation_timed_out(&mut self, id: u64) {
        if let Some(Outstanding { request, queue, .. }) = self.invalidations.outstanding.remove(&id) {
            self.invalidations.failed.insert(queue);
            self.stats.atc_timeouts += 1;
            self.observer.tell(|o| o.atc_inv_timed_out(&request));
        }
    }

    /// Invalidations that went out and are not confirmed, oldest first.
    pub fn atc_invalidations_outstanding(&self) -> impl Iterator<Item = u64> + '_ {
        self.invalidations.outstanding.iter().filter(|(_, one)| one.sent).map(|(&id, _)| id)
    }
}
