//! What devices do: transactions in use, under way, passed by, and refused.

use std::collections::BTreeMap;

use super::State;
use super::answers::Time;
use super::report::{Kind, Report};
use super::site::Role;
use super::streams::What;
use super::tables::{Cause, Entry, Regime};
use crate::cache::World;
use crate::spec::event::{Access, Event, EventKind, Place};
use crate::transaction::{Transaction, Translation, TxnId};
use crate::translate::Path;

/// A transaction that has its translation and is not over.
#[derive(Clone, Debug)]
struct UnderWay {
    t: Transaction,
    /// The leaves that it uses.
    leaves: Vec<u64>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Dma {
    under_way: BTreeMap<TxnId, UnderWay>,
    /// When a stream was used last.
    used: BTreeMap<u32, u64>,
}

impl Dma {
    pub(super) fn over(&mut self, id: TxnId) {
        self.under_way.remove(&id);
    }

    /// Whether a stream was used since `time`.
    pub(super) fn is_used(&self, sid: u32, time: u64) -> bool {
        self.used.get(&sid).is_some_and(|&used| used >= time)
    }

    /// Whether a transaction under way uses a leaf.
    pub(super) fn user_of(&self, leaf: u64) -> Option<Transaction> {
        self.under_way.values().find(|u| u.leaves.contains(&leaf)).map(|u| u.t)
    }
}

impl State {
    /// The regime, granule and input of each stage that translates a transaction.
    pub(super) fn stages(&self, t: &Transaction) -> Vec<(Regime, pgtable::Granule)> {
        let Some(stream) = self.streams.stream(t.sid) else { return Vec::new() };
        let mut stages = Vec::new();
        let without = stream.dss == 1 && t.ssid.is_none() && stream.cds.max != 0;
        if stream.path.has_stage1() && !without {
            let cd = t.ssid.unwrap_or(0);
            for context in self.streams.contexts(t.sid, cd) {
                let regime = Regime { world: stream.world, vmid: stream.vmid, asid: context.asid };
                let table = if context.is_upper(t.address) { &context.upper } else { &context.lower };
                stages.push((regime, table.granule));
            }
        } else if stream.path.has_stage2() {
            let regime = Regime { world: World::NsEl1Stage2, vmid: stream.vmid, asid: 0 };
            stages.push((regime, stream.stage2.tables.granule));
        }
        stages
    }

    /// Faults of this transaction's stream are part of its protocol: they stall, or it asks for pages by PRI.
    fn recovers(&self, t: &Transaction) -> bool {
        let Some(stream) = self.streams.stream(t.sid) else { return false };
        let cd = t.ssid.unwrap_or(0);
        stream.path.has_stage2() && stream.stage2.stall
            || self.streams.contexts(t.sid, cd).any(|context| context.stall)
    }

    /// A transaction goes on with a translation.
    pub(super) fn latched(&mut self, id: TxnId, t: &Transaction, translation: &Translation) {
        self.dma.used.insert(t.sid, self.now);
        self.late_structures(t);
        self.late_level1(t.sid, t.ssid.unwrap_or(0));
        let mut leaves = Vec::new();
        for (regime, granule) in self.stages(t) {
            let input = ((t.address << 8) as i64 >> 8) as u64;
            let found = self.tables.leaves(regime, granule, input);
            let nested = self.streams.stream(t.sid).is_some_and(|s| s.path == Path::Nested);
            let gives = |e: &Entry| {
                nested && regime.world != World::NsEl1Stage2
                    || e.output() | input & ((1 << e.shift) - 1) == translation.pa
            };
            let of = |dead: bool| {
                found
                    .iter()
                    .copied()
                    .find(|&id| self.tables.get(id).is_some_and(|e| e.dead.is_some() == dead && gives(e)))
            };
            match (of(false), of(true)) {
                (Some(live), _) => leaves.push(live),
                (None, Some(dead)) => {
                    leaves.push(dead);
                    self.used_dead(dead, t);
                }
                (None, None) => {}
            }
        }
        self.dma.under_way.insert(id, UnderWay { t: *t, leaves });
    }

    /// A device goes on with a translation that memory does not have any more.
    fn used_dead(&mut self, id: u64, t: &Transaction) {
        let Some(e) = self.tables.get(id).cloned() else { return };
        let Some(death) = e.dead else { return };
        let age = self.now.saturating_sub(death.site.time);
        let restricted = matches!(death.cause, Cause::Changed(value) if value & 1 != 0);
        if self.tables.is_cut_off(&e) || age < self.patience.invalidation && (restricted || self.recovers(t))
        {
            // Until the invalidation, the guest has to expect this.
            return;
        }
        let kind = if restricted || self.recovers(t) { Kind::StaleTranslation } else { Kind::DmaAfterUnmap };
        let what = match kind {
            Kind::StaleTranslation => format!(
                "a device still uses the translation of {:#x} that was changed at {}: it was never invalidated",
                t.address,
                Time(death.site.time)
            ),
            _ => format!(
                "a device {} {:#x}, which was unmapped at {}, through a translation that is still cached",
                if t.kind.is_read() { "reads" } else { "writes" },
                t.address,
                Time(death.site.time)
            ),
        };
        let report = self.about(kind, &e, what);
        self.report((e.at, death.seq), report);
    }

    /// A device goes by an STE or CD that was changed long ago.
    fn late_structures(&mut self, t: &Transaction) {
        for what in [What::Ste(t.sid), What::Cd(t.sid, t.ssid.unwrap_or(0))] {
            let stale: Vec<u64> = self
                .streams
                .named(what)
                .filter(|(_, s)| s.is_changed() && !s.reported)
                .map(|(at, _)| at)
                .collect();
            for at in stale {
                let Some(stale) = self.streams.stale(what, at, &self.config) else { continue };
                if self.now.saturating_sub(stale.change.time) >= self.patience.invalidation {
                    self.report_structure(what, at, None);
                }
            }
        }
    }

    /// A transaction passes while SMMUEN is 0.
    pub(super) fn passed(&mut self, t: &Transaction) {
        for (regime, granule) in self.stages(t) {
            let ids = self.tables.leaves(regime, granule, t.address);
            let other = ids.into_iter().find_map(|id| {
                let e = self.tables.get(id)?;
                (e.output() | t.address & ((1 << e.shift) - 1) != t.address).then(|| e.clone())
            });
            let Some(e) = other else { continue };
            let what = format!(
                "a device {} {:#x} past the disabled SMMU: the address is an IOVA, and was mapped to {:#x}",
                if t.kind.is_read() { "reads" } else { "writes" },
                t.address,
                e.output()
            );
            let report = self.about(Kind::DmaBypass, &e, what);
            self.report((e.at, 0), report);
        }
    }

    /// A transaction stalls or is terminated.
    pub(super) fn faulted(&mut self, event: &Event) {
        let (access, place, translation): (&Access, &Place, bool) = match &event.kind {
            EventKind::Translation(access, place) => (access, place, true),
            EventKind::AccessFlag(access, place) | EventKind::Permission(access, place) => {
                (access, place, false)
            }
            _ => return,
        };
        // One that stalls will be answered.
        if event.stall.is_some() {
            return;
        }
        // With CD.R=0 the guest does not want to hear of faults: it expects them, as after the end of a process whose
        // memory a device still uses.
        let silent = self.streams.contexts(event.sid, event.ssid.unwrap_or(0)).any(|context| !context.record);
        if !place.s2 && silent {
            return;
        }
        let verb = if access.read { "reads" } else { "writes" };
        let t = Transaction {
            ssid: event.ssid,
            ..Transaction::new(event.sid, access.address, crate::AccessKind::Read)
        };
        let (regime, granule) = match self.stages(&t).first() {
            Some(&stage) if !place.s2 || stage.0.world == World::NsEl1Stage2 => stage,
            _ => (Regime::default(), pgtable::Granule::G4K),
        };
        let input = ((access.address << 8) as i64 >> 8) as u64;
        let gone = self.tables.gone(regime, input);
        let held = self.tables.leaves(regime, granule, input).into_iter().find_map(|id| {
            let e = self.tables.get(id)?;
            e.dead.map(|death| (e.map, death.site))
        });
        let gone = held.or(gone.map(|gone| (gone.map, gone.unmap)));
        let (kind, what) = match (translation, gone) {
            (true, Some((_, unmap))) => (
                Kind::DmaAfterUnmap,
                format!("a device {verb} {:#x}, which was unmapped at {}", access.address, Time(unmap.time)),
            ),
            (true, None) => (
                Kind::DmaUnmapped,
                format!("a device {verb} {:#x}, where the SMMU never saw a mapping", access.address),
            ),
            (false, _) => (
                Kind::DmaForbidden,
                format!("a device {verb} {:#x}, which its mapping does not permit", access.address),
            ),
        };
        let mut report = Report::new(kind, self.now, what).stream(event.sid, event.ssid);
        report.iova = Some(access.address);
        if regime != Regime::default() || granule != pgtable::Granule::G4K {
            (report.world, report.vmid, report.asid) =
                (Some(regime.world), Some(regime.vmid), Some(regime.asid));
        }
        if translation && let Some((map, unmap)) = gone {
            report = report.site(Role::Map, map).site(Role::Unmap, Some(unmap));
        }
        self.report((u64::from(event.sid), access.address & !0xfff), report);
    }
}
