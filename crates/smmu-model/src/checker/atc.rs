//! What the ATCs of devices may still hold: every translation that ATS gave them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use pgtable::descriptor as d;

use super::State;
use super::answers::Time;
use super::report::{Kind, Report};
use super::site::{Role, Site};
use super::tables::{Changes, Regime, output};
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
    /// The address that was asked for.
    input: u64,
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

/// StreamID, PASID, log2 of the size, first address.
type Key = (u32, Option<u32>, u8, u64);

impl Held {
    /// Whether a descriptor in the place of this one's leads to another page or block.
    fn is_another(&self, new: u64) -> bool {
        let &Held { granule, level, pa52, descriptor: old, .. } = self;
        let output = |value| output(value, true, granule, level, pa52);
        d::kind(new, granule, level, pa52) == d::Kind::Leaf && output(new) != output(old)
    }
}

const FIRST: Key = (0, None, 0, 0);
const LAST: Key = (u32::MAX, Some(u32::MAX), u8::MAX, u64::MAX);

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Atcs {
    held: BTreeMap<Key, Held>,
    /// By where their descriptors are.
    by_word: BTreeSet<(u64, Key)>,
    /// By StreamID, size and output.
    by_output: BTreeSet<(u32, u8, u64, Key)>,
    /// How many are dead.
    dead: usize,
}

/// Whose PASIDs are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pasid {
    Only(Option<u32>),
    /// Any, but with one.
    All,
}

impl Atcs {
    /// Puts one in. Answers where the descriptors of those are that had to go for it.
    fn insert(&mut self, key: Key, held: Held) -> [Option<u64>; 2] {
        let same = self.remove(key);
        let full = self.held.len() >= MAX_ENTRIES;
        let first = self.held.keys().next().copied().filter(|_| full);
        let first = first.and_then(|first| self.remove(first));
        self.by_word.insert((held.at, key));
        self.by_output.insert((key.0, key.2, held.output, key));
        self.held.insert(key, held);
        [same, first]
    }

    /// Takes one out. Answers where its descriptor is.
    fn remove(&mut self, key: Key) -> Option<u64> {
        let held = self.held.remove(&key)?;
        self.dead -= usize::from(held.dead.is_some());
        self.by_word.remove(&(held.at, key));
        self.by_output.remove(&(key.0, key.2, held.output, key));
        Some(held.at)
    }

    /// Those whose descriptor is at `word`.
    fn at(&self, word: u64) -> impl Iterator<Item = Key> {
        self.by_word.range((word, FIRST)..=(word, LAST)).map(|&(_, key)| key)
    }

    /// What overlaps the addresses up to and including `to`, by address.
    fn overlapping(&self, sid: u32, pasid: Pasid, from: u64, to: u64) -> Vec<Key> {
        let ssid = match pasid {
            Pasid::Only(ssid) => ssid,
            Pasid::All => Some(0),
        };
        let mut keys = Vec::new();
        let mut next = Bound::Included((sid, ssid, 0, 0));
        while let Some((&(of, ssid, size, _), _)) = self.held.range((next, Bound::Unbounded)).next() {
            if of != sid || !matches!(pasid, Pasid::All) && pasid != Pasid::Only(ssid) {
                break;
            }
            let first = from >> size << size;
            keys.extend(
                self.held.range((sid, ssid, size, first)..=(sid, ssid, size, to)).map(|(&key, _)| key),
            );
            next = Bound::Excluded((sid, ssid, size, u64::MAX));
        }
        keys.sort_unstable_by_key(|&(_, ssid, size, first)| (ssid, first, size));
        keys
    }

    /// What an ATC_INV is for.
    fn covered(&self, c: &Command) -> Vec<Key> {
        let shift = 12 + c.size().min(52);
        let span = 1u64.checked_shl(shift).map_or(u64::MAX, |span| span - 1);
        let first = c.address() & !span;
        let pasid = match (c.ssv(), c.global()) {
            (false, _) => Pasid::Only(None),
            (true, false) => Pasid::Only(Some(c.ssid())),
            (true, true) => Pasid::All,
        };
        self.overlapping(c.sid(), pasid, first, first | span)
    }

    /// What gave a device this address.
    fn giving(&self, sid: u32, address: u64) -> impl Iterator<Item = (Key, &Held)> {
        let mut next = Bound::Included((sid, 0, 0, FIRST));
        let sizes = std::iter::from_fn(move || {
            let &(of, size, ..) = self.by_output.range((next, Bound::Unbounded)).next()?;
            next = Bound::Excluded((sid, size, u64::MAX, LAST));
            (of == sid).then_some(size)
        });
        let of_size = move |size| {
            let first = address.saturating_sub((1u64 << size) - 1);
            let keys = self.by_output.range((sid, size, first, FIRST)..=(sid, size, address, LAST));
            keys.filter_map(|&(.., key)| Some((key, self.held.get(&key)?)))
        };
        sizes.flat_map(of_size)
    }
}

impl State {
    /// A Translation Request was answered.
    pub(super) fn answered(&mut self, request: &AtsRequest, answer: &AtsAnswer) {
        let AtsAnswer::Success(given) = answer else { return };
        if !given.grants() || given.size > 52 {
            return;
        }
        let first = request.address >> given.size << given.size;
        let t = Transaction {
            ssid: request.ssid,
            ..Transaction::new(request.sid, request.address, crate::AccessKind::Read)
        };
        // The device uses the address again: with what it has, or with this?
        let last = first | ((1u64 << given.size) - 1);
        let overlapping = self.atcs.overlapping(request.sid, Pasid::Only(request.ssid), first, last);
        let mut old = overlapping.into_iter().filter_map(|key| Some((key, *self.atcs.held.get(&key)?)));
        let other = |(k, h): &(Key, Held)| {
            h.dead.is_some() && h.output.wrapping_sub(k.3) != given.address.wrapping_sub(first)
        };
        if let Some((key, held)) = old.find(other) {
            self.report_atc(key, held, "and the address has another translation now", None);
        }
        let Some((regime, granule)) = self.route(&t).stages(&t).next() else { return };
        let live = self.tables.leaves(regime, granule, request.address).find(|(_, e)| e.dead.is_none());
        let Some((_, e)) = live else { return };
        let held = Held {
            regime,
            granule,
            input: request.address,
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
        // One that is dead and not reported stays a mistake by its own.
        let gone = self.atcs.insert((request.sid, request.ssid, given.size, first), held);
        gone.into_iter().flatten().for_each(|at| self.memory.release(at));
        self.tables.tell_changes(true);
    }

    /// A word of a table changed: what devices hold may have died, and what had died may get another meaning.
    pub(super) fn settle_atcs(&mut self, at: u64, new: u64, seq: u64, site: &Site) {
        if self.atcs.held.is_empty() {
            return;
        }
        let dead = self.atcs.at(at).filter_map(|key| Some((key, *self.atcs.held.get(&key)?)));
        let reused = dead.filter(|(_, held)| held.dead.is_some() && held.is_another(new)).last();
        let keys: Vec<Key> = match self.tables.take_changes() {
            Changes::None => Vec::new(),
            Changes::At(words) => words.iter().flat_map(|&word| self.atcs.at(word)).collect(),
            Changes::Many => self.atcs.held.keys().copied().collect(),
        };
        for key in keys {
            let Some(held) = self.atcs.held.get_mut(&key) else { continue };
            let mut leaves = self.tables.leaves(held.regime, held.granule, held.input);
            let alive = leaves.any(|(_, e)| e.at == held.at && e.dead.is_none());
            match (alive, held.dead) {
                (false, None) => {
                    held.dead = Some((seq, *site));
                    self.atcs.dead += 1;
                }
                (true, Some(_)) => {
                    (held.dead, held.early) = (None, None);
                    self.atcs.dead -= 1;
                }
                _ => {}
            }
        }
        if let Some((key, held)) = reused {
            self.report_atc(key, held, "and the address has another translation now", Some(*site));
        }
    }

    /// ATC_INV is consumed: whether it comes too early for what it covers.
    pub(super) fn atc_inv_consumed(&mut self, c: &Command, site: Option<Site>) {
        for key in self.atcs.covered(c) {
            let Some(held) = self.atcs.held.get_mut(&key) else { continue };
            // The SMMU may still give the device the old translation again.
            let mut leaves = self.tables.leaves(held.regime, held.granule, held.input);
            let again = leaves.any(|(_, e)| e.at == held.at && e.dead.is_some());
            held.early = (held.dead.is_some() && again).then_some(site);
        }
    }

    /// A CMD_SYNC behind an ATC_INV has completed.
    pub(super) fn atc_inv_completed(&mut self, c: &Command, seq: u64) {
        for key in self.atcs.covered(c) {
            let gone = |held: &Held| held.early.is_none() && held.dead.is_none_or(|(died, _)| died < seq);
            if self.atcs.held.get(&key).is_some_and(gone)
                && let Some(at) = self.atcs.remove(key)
            {
                self.memory.release(at);
            }
        }
        self.tables.tell_changes(!self.atcs.held.is_empty());
    }

    /// A Translated transaction goes on.
    pub(super) fn translated(&mut self, t: &Transaction) {
        if self.atcs.dead == 0 {
            return;
        }
        if self.atcs.giving(t.sid, t.address).any(|(_, held)| held.dead.is_none()) {
            return;
        }
        let late = |held: &Held| {
            held.dead
                .is_some_and(|(_, site)| self.now.saturating_sub(site.time) >= self.patience.invalidation)
        };
        let using = self.atcs.giving(t.sid, t.address).filter(|(_, held)| late(held));
        if let Some((key, held)) = using.min_by_key(|&((_, ssid, size, first), _)| (ssid, first, size)) {
            let held = *held;
            self.report_atc(key, held, "and the device still uses it", None);
        }
    }

    fn report_atc(&mut self, key: Key, held: Held, then: &str, reuse: Option<Site>) {
        let Some((seq, change)) = held.dead else { return };
        let (sid, ssid, size, first) = key;
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
