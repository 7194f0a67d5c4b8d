//! What the ATCs of devices may still hold: every translation that ATS gave them.

use std::collections::BTreeMap;

use pgtable::descriptor as d;

use super::State;
use super::answers::Time;
use super::report::{Kind, Report};
use super::site::{Role, Site};
use super::tables::{Regime, output};
use crate::ats::{AtsAnswer, AtsRequest};
use crate::spec::command::Command;
use crate::transaction::Transaction;

/// More than this are not kept: the first go.
const MAX_ENTRIES: usize = 1 << 16;

/// A translation in a device.
#[derive(Clone, Copy, Debug)]
struct Held {
    regime: Regime,
    granule: pgtable::Granule,
    output: u64,
    /// Where its descriptor is, and what that said.
    at: u64,
    descriptor: u64,
    pa52: bool,
    level: i8,
    map: Option<Site>,
    /// When memory ceased to say so.
    dead: Option<(u64, Site)>,
    /// An ATC_INV that came before the TLBI was complete.
    early: Option<Option<Site>>,
}

/// StreamID, PASID, first address, log2 of the size.
type Key = (u32, Option<u32>, u64, u8);

impl Held {
    /// Whether a descriptor in the place of this one's leads to another page or block.
    fn is_another(&self, new: u64) -> bool {
        let &Held { granule, level, pa52, descriptor: old, .. } = self;
        let output = |value| output(value, true, granule, level, pa52);
        d::kind(new, granule, level, pa52) == d::Kind::Leaf && output(new) != output(old)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Atcs {
    held: BTreeMap<Key, Held>,
}

/// The bytes of an entry.
fn overlaps(&(_, _, first, size): &Key, from: u64, to: u64) -> bool {
    from <= first | ((1u64 << size) - 1) && first <= to
}

impl State {
    /// A Translation Request was answered.
    pub(super) fn answered(&mut self, request: &AtsRequest, answer: &AtsAnswer) {
        let AtsAnswer::Success(given) = answer else { return };
        if !given.grants() || given.size > 52 {
            return;
        }
        let first = request.address >> given.size << given.size;
        let key = (request.sid, request.ssid, first, given.size);
        let t = Transaction {
            ssid: request.ssid,
            ..Transaction::new(request.sid, request.address, crate::AccessKind::Read)
        };
        // The device uses the address again: with what it has, or with this?
        let last = first | ((1u64 << given.size) - 1);
        let old = self.atcs.held.iter().find(|(k, h)| {
            k.0 == key.0
                && k.1 == key.1
                && overlaps(k, first, last)
                && h.dead.is_some()
                && h.output.wrapping_sub(k.2) != given.address.wrapping_sub(first)
        });
        if let Some((&k, &h)) = old {
            self.report_atc(k, h, "and the address has another translation now", None);
        }
        let Some((regime, granule)) = self.route(&t).stages(&t).next() else { return };
        let mut leaves = self.tables.leaves(regime, granule, request.address);
        let Some((_, e)) = leaves.find(|(_, e)| e.dead.is_none()) else { return };
        let held = Held {
            regime,
            granule,
            output: given.address,
            at: e.at,
            descriptor: e.value,
            pa52: e.pa52,
            level: e.level,
            map: e.map,
            dead: None,
            early: None,
        };
        // Its descriptor is looked at for as long as the device may use it, longer than what the SMMU holds.
        self.memory.hold(held.at);
        let first = if self.atcs.held.len() >= MAX_ENTRIES { self.atcs.held.pop_first() } else { None };
        // One that is dead and not reported stays a mistake by its own.
        let before = self.atcs.held.insert(key, held);
        for gone in first.map(|(_, held)| held).into_iter().chain(before) {
            self.memory.release(gone.at);
        }
    }

    /// A word of a table changed: what devices hold may have died, and what had died may get another meaning.
    pub(super) fn settle_atcs(&mut self, at: u64, new: u64, seq: u64, site: &Site) {
        if self.atcs.held.is_empty() {
            return;
        }
        let tables = &self.tables;
        let mut reused = None;
        for (key, held) in &mut self.atcs.held {
            if held.at == at && held.dead.is_some() && held.is_another(new) {
                reused = Some((*key, *held));
            }
            let mut leaves = tables.leaves(held.regime, held.granule, key.2);
            let alive = leaves.any(|(_, e)| e.at == held.at && e.dead.is_none());
            match (alive, held.dead) {
                (false, None) => held.dead = Some((seq, *site)),
                (true, Some(_)) => (held.dead, held.early) = (None, None),
                _ => {}
            }
        }
        if let Some((key, held)) = reused {
            self.report_atc(key, held, "and the address has another translation now", Some(*site));
        }
    }

    /// ATC_INV is consumed: whether it comes too early for what it covers.
    pub(super) fn atc_inv_consumed(&mut self, c: &Command, site: Option<Site>) {
        let tables = &self.tables;
        for (key, held) in self.atcs.held.iter_mut().filter(|(key, _)| atc_covers(c, key)) {
            // The SMMU may still give the device the old translation again.
            let mut leaves = tables.leaves(held.regime, held.granule, key.2);
            let again = leaves.any(|(_, e)| e.at == held.at && e.dead.is_some());
            held.early = (held.dead.is_some() && again).then_some(site);
        }
    }

    /// A CMD_SYNC behind an ATC_INV has completed.
    pub(super) fn atc_inv_completed(&mut self, c: &Command, seq: u64) {
        let memory = &mut self.memory;
        self.atcs.held.retain(|key, held| {
            let gone =
                atc_covers(c, key) && held.early.is_none() && held.dead.is_none_or(|(died, _)| died < seq);
            if gone {
                memory.release(held.at);
            }
            !gone
        });
    }

    /// A Translated transaction goes on.
    pub(super) fn translated(&mut self, t: &Transaction) {
        let gives = |key: &Key, h: &Held| key.0 == t.sid && t.address.wrapping_sub(h.output) >> key.3 == 0;
        let mut using = self.atcs.held.iter().filter(|(key, h)| gives(key, h));
        if self.atcs.held.iter().any(|(key, h)| gives(key, h) && h.dead.is_none()) {
            return;
        }
        let late = |h: &Held| {
            h.dead.is_some_and(|(_, site)| self.now.saturating_sub(site.time) >= self.patience.invalidation)
        };
        if let Some((&key, &held)) = using.find(|(_, h)| late(h)) {
            self.report_atc(key, held, "and the device still uses it", None);
        }
    }

    fn report_atc(&mut self, key: Key, held: Held, then: &str, reuse: Option<Site>) {
        let Some((seq, change)) = held.dead else { return };
        let (sid, ssid, first, size) = key;
        let kind = if held.early.is_some() { Kind::AtcEarly } else { Kind::AtcMissing };
        let what = format!(
            "the device's ATC may still hold the translation of {first:#x} that was taken away at {}, {then}",
            Time(change.time)
        );
        let mut report = Report::new(kind, self.now, what)
            .stream(sid, ssid)
            .site(Role::Map, held.map)
            .site(Role::Unmap, Some(change))
            .site(Role::Invalidation, held.early.flatten())
            .site(Role::Reuse, reuse);
        (report.world, report.vmid, report.asid) =
            (Some(held.regime.world), Some(held.regime.vmid), Some(held.regime.asid));
        (report.iova, report.level) = (Some(first), Some(held.level));
        let pages = size.saturating_sub(12);
        let want = format!("CMD_ATC_INV(StreamID={sid:#x}, Address={first:#x}, Size={pages}) and CMD_SYNC");
        report.missing = Some(match kind {
            Kind::AtcEarly => format!("{want} once the TLBI had completed: the one that came was too early"),
            _ => want,
        });
        self.report((first, seq), report);
    }
}

/// Whether an ATC_INV is for an entry.
fn atc_covers(c: &Command, key: &Key) -> bool {
    let shift = 12 + c.size().min(52);
    let span = 1u64.checked_shl(shift).map_or(u64::MAX, |span| span - 1);
    let first = c.address() & !span;
    let pasid = match (c.ssv(), key.1) {
        (false, None) => true,
        (true, Some(ssid)) => c.global() || c.ssid() == ssid,
        _ => false,
    };
    c.sid() == key.0 && pasid && overlaps(key, first, first | span)
}
