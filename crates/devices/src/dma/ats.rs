//! A device's end of PCIe ATS and PRI: what its port does when software has enabled them (PCIe 4.0 §10.3 and §10.4).
//!
//! An access that the translation cache does not know sends a Translation Request, whose walk takes steps of its own; what
//! comes of it is used by Translated transactions until it is invalidated. An invalidation takes effect in one step and is
//! confirmed in another, once no access under way uses what it removed.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use smmu_model::{AtcInvalidation, AtsRequest, AtsTranslation, PageResponse, ResponseCode};

use super::DmaPort;
use super::atc::{Atc, AtcConfig, Denied, covers, place};
use crate::agent::Time;

/// How long a device waits to look again whether an access has ended, in ns.
const AGAIN: Time = 100;
/// PRGIndex has 9 bits.
const GROUPS: u16 = 512;

/// What software enabled in configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtsControl {
    /// ATS: Translation Requests and Translated transactions.
    pub ats: bool,
    /// PRI: page requests. They need ATS as well.
    pub pri: bool,
    /// Page requests that may be outstanding.
    pub allocation: u32,
}

/// What there is to read in the PRI status register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriStatus {
    /// A response said Response Failure: no requests are made until this is cleared.
    pub failure: bool,
    /// A response had an index that is not in use.
    pub unexpected: bool,
}

/// What ATS did at a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtsStats {
    /// Accesses that the cache answered.
    pub hits: u64,
    /// Translation Requests.
    pub requests: u64,
    /// Invalidations that took effect.
    pub invalidations: u64,
    /// Entries that they removed.
    pub removed: u64,
    /// Page requests.
    pub page_requests: u64,
}

/// An access under way that uses a translation of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct User {
    ssid: Option<u32>,
    address: u64,
    /// Invalidations that had taken effect when it began.
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Invalidation {
    what: AtcInvalidation,
    /// Which one it was to take effect, once it has.
    applied: Option<u64>,
    /// Nothing uses what it removed, and only the confirmation is left.
    unused: bool,
    due: Time,
}

/// A group of page requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Group {
    /// Requests in it.
    requests: u32,
    response: Option<ResponseCode>,
    /// Whoever asked has given up.
    abandoned: bool,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtsState {
    config: AtcConfig,
    control: AtsControl,
    status: PriStatus,
    atc: Atc,
    /// Invalidations that have taken effect.
    generation: u64,
    next_user: u64,
    users: BTreeMap<u64, User>,
    invalidations: VecDeque<Invalidation>,
    groups: BTreeMap<u16, Group>,
    stats: AtsStats,
}

/// What the cache, or a Translation Completion, comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Go there: translated address, bytes, and the use to [`AtsState::release`].
    At { address: u64, bytes: u64, user: u64 },
    /// The access is not allowed.
    Denied,
}

/// What comes of a group of page requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paged {
    /// Not answered.
    Waiting,
    /// Ask again.
    Retry,
    /// It cannot be had.
    Refused,
}

impl AtsState {
    fn new(config: AtcConfig) -> Self {
        Self {
            config,
            control: AtsControl::default(),
            status: PriStatus::default(),
            atc: Atc::new(&config),
            generation: 0,
            next_user: 0,
            users: BTreeMap::new(),
            invalidations: VecDeque::new(),
            groups: BTreeMap::new(),
            stats: AtsStats::default(),
        }
    }

    pub(super) fn denied(&self) -> Denied {
        self.config.denied
    }

    /// Invalidations so far: what was asked for before one is not kept.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn count_request(&mut self) {
        self.stats.requests += 1;
    }

    /// Looks an access up.
    pub(super) fn look_up(&mut self, request: &AtsRequest) -> Option<Found> {
        let (address, bytes) = self.atc.look_up(request)?;
        self.stats.hits += 1;
        Some(self.hold(request, (address, bytes)))
    }

    /// A Translation Completion has come.
    pub(super) fn answered(&mut self, request: &AtsRequest, translation: &AtsTranslation) -> Found {
        self.atc.insert(request, translation);
        if !super::atc::permits(translation, request) {
            return Found::Denied;
        }
        self.hold(request, place(translation, request.address))
    }

    fn hold(&mut self, request: &AtsRequest, (address, bytes): (u64, u64)) -> Found {
        let user = self.next_user;
        self.next_user += 1;
        let AtsRequest { ssid, address: of, .. } = *request;
        self.users.insert(user, User { ssid, address: of, generation: self.generation });
        Found::At { address, bytes, user }
    }

    /// An access has ended.
    pub(super) fn release(&mut self, user: u64) {
        self.users.remove(&user);
    }

    /// Whether page requests can be made at all, and how many there is room for.
    pub(super) fn page_credit(&self) -> Option<u32> {
        if !self.control.pri || self.status.failure {
            return None;
        }
        let outstanding = self.groups.values().map(|group| group.requests).sum();
        Some(self.control.allocation.saturating_sub(outstanding))
    }

    /// Begins a group of page requests: its index.
    pub(super) fn page(&mut self, requests: u32) -> Option<u16> {
        let index = (0..GROUPS).find(|index| !self.groups.contains_key(index))?;
        self.groups.insert(index, Group { requests, response: None, abandoned: false });
        self.stats.page_requests += u64::from(requests);
        Some(index)
    }

    /// What came of a group. It is over with its answer.
    pub(super) fn paged(&mut self, index: u16) -> Paged {
        match self.groups.get(&index).map(|group| group.response) {
            Some(None) => Paged::Waiting,
            Some(Some(ResponseCode::Success)) => {
                self.groups.remove(&index);
                Paged::Retry
            }
            Some(Some(_)) => {
                self.groups.remove(&index);
                Paged::Refused
            }
            // PRI was reset meanwhile.
            None => Paged::Retry,
        }
    }

    /// Whoever asked for a group gives up; its index is in use until the response.
    pub(super) fn abandon(&mut self, index: u16) {
        match self.groups.get_mut(&index) {
            Some(group) if group.response.is_none() => group.abandoned = true,
            _ => {
                self.groups.remove(&index);
            }
        }
    }

    fn response(&mut self, response: &PageResponse) {
        if self.status.failure {
            // No response is expected any more, and those that come are ignored.
            return;
        }
        if response.code == ResponseCode::ResponseFailure {
            self.fail(response.prg_index);
            return;
        }
        match self.groups.get_mut(&response.prg_index) {
            Some(group) if group.response.is_none() => {
                if group.abandoned {
                    self.groups.remove(&response.prg_index);
                } else {
                    group.response = Some(response.code);
                }
            }
            _ => self.status.unexpected = true,
        }
    }

    /// Response Failure disables page requests (PCIe 4.0 §10.4.2.2): what comes for other groups is ignored from now on, so whoever
    /// waits for them has to give up as well.
    fn fail(&mut self, index: u16) {
        self.status.failure = true;
        self.status.unexpected |= !self.waits(index);
        for group in self.groups.values_mut() {
            group.response.get_or_insert(ResponseCode::ResponseFailure);
        }
        self.groups.retain(|_, group| !group.abandoned);
    }

    /// Whether a response to this group is expected.
    fn waits(&self, index: u16) -> bool {
        self.groups.get(&index).is_some_and(|group| group.response.is_none())
    }

    /// One step of the invalidation at the front; answers which one is to be confirmed.
    fn step(&mut self, now: Time) -> Option<u64> {
        let front = self.invalidations.front_mut()?;
        let Some(applied) = front.applied else {
            self.generation += 1;
            front.applied = Some(self.generation);
            front.due = now + AGAIN;
            let removed = self.atc.invalidate(&front.what);
            self.stats.invalidations += 1;
            self.stats.removed += removed as u64;
            return None;
        };
        if !front.unused {
            let what = front.what;
            let page = |user: &User| (user.address & !0xfff, user.address | 0xfff);
            let used = self.users.values().any(|user| {
                let (first, last) = page(user);
                user.generation < applied && covers(&what, user.ssid, first, last)
            });
            front.unused = !used;
            if used {
                front.due = now + AGAIN;
                return None;
            }
            match self.config.confirm {
                Some(0) => {}
                Some(delay) => {
                    front.due = now + delay;
                    return None;
                }
                None => {
                    self.invalidations.pop_front();
                    return None;
                }
            }
        }
        let done = self.invalidations.pop_front()?;
        if let Some(next) = self.invalidations.front_mut() {
            next.due = next.due.max(now);
        }
        Some(done.what.id)
    }
}

impl DmaPort {
    /// Gives the device behind the port a translation cache. It is used once software enables ATS.
    pub fn add_atc(&self, config: AtcConfig) {
        self.set_ats_state(Some(AtsState::new(config)));
    }

    /// Configuration space was written.
    pub fn set_ats(&self, control: AtsControl) {
        let dropped = self.with_ats(|ats| {
            let before = std::mem::replace(&mut ats.control, control);
            if control.pri && !before.pri {
                // Enabling page requests clears their status (PCIe 4.0 §10.5.2.2).
                ats.status = PriStatus::default();
            }
            if before.ats == control.ats {
                return VecDeque::new();
            }
            // The cache is empty whenever ATS is enabled (PCIe 4.0 §10.3.1). What comes while it is off is answered with
            // UR, and so is what has not been confirmed.
            ats.atc.clear();
            ats.generation += 1;
            std::mem::take(&mut ats.invalidations)
        });
        self.set_ats_on(control.ats);
        for invalidation in dropped.into_iter().flatten() {
            self.confirm(invalidation.what.id);
        }
    }

    /// An ATS Invalidate Request arrives. A device without ATS, or with ATS off, answers it with UR.
    pub fn atc_invalidation(&self, now: Time, what: &AtcInvalidation) {
        let taken = self.with_ats(|ats| {
            if ats.control.ats {
                let due = now + ats.config.invalidate;
                let invalidation = Invalidation { what: *what, applied: None, unused: false, due };
                ats.invalidations.push_back(invalidation);
            }
            ats.control.ats
        });
        if taken != Some(true) {
            self.confirm(what.id);
        }
    }

    /// A PRG response arrives.
    pub fn page_response(&self, response: &PageResponse) {
        self.with_ats(|ats| ats.response(response));
    }

    /// When the next step of an invalidation is due.
    pub fn atc_next_step(&self) -> Option<Time> {
        self.with_ats(|ats| ats.invalidations.front().map(|front| front.due)).flatten()
    }

    /// One step of an invalidation: it takes effect, or is confirmed.
    pub fn atc_step(&self, now: Time) {
        if let Some(id) = self.with_ats(|ats| ats.step(now)).flatten() {
            self.confirm(id);
        }
    }

    fn confirm(&self, id: u64) {
        if let Some(mut smmu) = self.lock_smmu() {
            smmu.atc_invalidation_done(id);
        }
    }

    /// The PRI status register.
    pub fn pri_status(&self) -> PriStatus {
        self.with_ats(|ats| ats.status).unwrap_or_default()
    }

    /// Software clears what is set here.
    pub fn clear_pri_status(&self, clear: PriStatus) {
        self.with_ats(|ats| {
            ats.status.failure &= !clear.failure;
            ats.status.unexpected &= !clear.unexpected;
        });
    }

    /// PRI is reset: no page request is outstanding any more, and whoever waits for one begins anew.
    pub fn reset_pri(&self) {
        self.with_ats(|ats| ats.groups.clear());
    }

    /// Whether page requests are outstanding.
    pub fn pages_outstanding(&self) -> bool {
        self.with_ats(|ats| !ats.groups.is_empty()).unwrap_or(false)
    }

    /// The device is reset: ATS and PRI are off, and as after power-on.
    pub fn reset_ats(&self) {
        self.set_ats(AtsControl::default());
        self.reset_pri();
        self.clear_pri_status(PriStatus { failure: true, unexpected: true });
    }

    /// What ATS did here, if there is a translation cache.
    pub fn ats_stats(&self) -> Option<AtsStats> {
        self.with_ats(|ats| ats.stats)
    }

    /// Entries of the translation cache.
    pub fn atc_entries(&self) -> usize {
        self.with_ats(|ats| ats.atc.len()).unwrap_or(0)
    }

    /// The state of ATS, for a snapshot.
    pub fn save_ats(&self) -> Option<AtsState> {
        self.with_ats(|ats| ats.clone())
    }

    /// Takes a saved state over. Answers whether it is one of a device like this.
    pub fn restore_ats(&self, state: Option<AtsState>) -> bool {
        let fits = self.with_ats(|ats| ats.config) == state.as_ref().map(|ats| ats.config);
        if fits {
            self.set_ats_on(state.as_ref().is_some_and(|ats| ats.control.ats));
            self.set_ats_state(state);
        }
        fits
    }
}
