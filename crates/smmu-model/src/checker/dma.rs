//! What devices do: transactions in use, under way, passed by, and refused.

use std::sync::Arc;

use pgtable::Granule;

use super::State;
use super::answers::Time;
use super::index::Map;
use super::report::{Kind, Report};
use super::site::Role;
use super::streams::What;
use super::tables::{Cause, Entry, Regime};
use crate::cache::World;
use crate::spec::event::{Access, Event, EventKind, Place};
use crate::transaction::{Transaction, Translation, TxnId};
use crate::translate::{Context, Path, Stream};

/// A transaction that has its translation and is not over.
#[derive(Clone, Debug)]
struct UnderWay {
    t: Transaction,
    /// The leaves that it uses: rarely more than one.
    leaf: Option<u64>,
    others: Vec<u64>,
}

impl UnderWay {
    fn uses(&mut self, leaf: u64) {
        match self.leaf {
            None => self.leaf = Some(leaf),
            Some(_) => self.others.push(leaf),
        }
    }

    fn leaves(&self) -> impl Iterator<Item = u64> {
        self.leaf.into_iter().chain(self.others.iter().copied())
    }
}

/// Streams whose routes are kept.
const ROUTES: usize = 64;
/// Addresses whose leaves are.
const RECENT: usize = 64;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Dma {
    /// In the order in which they came; few at a time.
    under_way: Vec<(TxnId, UnderWay)>,
    /// When a stream was used last.
    used: Map<u32, u64>,
    /// What transactions went by last, by the low bits of what they come from.
    routes: Vec<Option<Arc<Route>>>,
    /// The leaves that they used, by the low bits of the page's number; they may have gone since.
    recent: Vec<u64>,
}

impl Dma {
    pub(super) fn over(&mut self, id: TxnId) {
        if let Some(place) = self.under_way.iter().rposition(|(own, _)| *own == id) {
            self.under_way.remove(place);
        }
    }

    /// Whether a stream was used since `time`.
    pub(super) fn is_used(&self, sid: u32, time: u64) -> bool {
        self.used.get(&sid).is_some_and(|&used| used >= time)
    }

    /// The leaves that transactions under way use.
    pub(super) fn users(&self) -> impl Iterator<Item = (u64, &Transaction)> {
        self.under_way.iter().flat_map(|(_, u)| u.leaves().map(|leaf| (leaf, &u.t)))
    }
}

/// What memory says that the transactions of a stream and SubstreamID go by.
#[derive(Debug, Default)]
pub(super) struct Route {
    sid: u32,
    cd: u32,
    /// [`Streams::generation`] when it was looked up.
    generation: u64,
    stream: Option<Stream>,
    contexts: Vec<Context>,
}

impl Route {
    /// The regime and granule of each stage that translates a transaction.
    pub(super) fn stages(&self, t: &Transaction) -> impl Iterator<Item = (Regime, Granule)> {
        let stage1 = self.stream.as_ref().filter(|stream| {
            let without = stream.dss == 1 && t.ssid.is_none() && stream.cds.max != 0;
            stream.path.has_stage1() && !without
        });
        let stage2 = self.stream.as_ref().filter(|stream| stage1.is_none() && stream.path.has_stage2());
        let address = t.address;
        let contexts = stage1.into_iter().flat_map(move |stream| {
            self.contexts.iter().map(move |context| {
                let regime = Regime { world: stream.world, vmid: stream.vmid, asid: context.asid };
                let table = if context.is_upper(address) { &context.upper } else { &context.lower };
                (regime, table.granule)
            })
        });
        contexts.chain(stage2.map(|stream| {
            let regime = Regime { world: World::NsEl1Stage2, vmid: stream.vmid, asid: 0 };
            (regime, stream.stage2.tables.granule)
        }))
    }

    /// Faults of these transactions are part of their stream's protocol: they stall, or it asks for pages by PRI.
    fn recovers(&self) -> bool {
        let Some(stream) = &self.stream else { return false };
        stream.path.has_stage2() && stream.stage2.stall || self.contexts.iter().any(|context| context.stall)
    }

    fn is_nested(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.path == Path::Nested)
    }
}

impl State {
    /// What a transaction goes by.
    pub(super) fn route(&mut self, t: &Transaction) -> Arc<Route> {
        let (sid, cd, generation) = (t.sid, t.ssid.unwrap_or(0), self.streams.generation);
        if self.dma.routes.is_empty() {
            self.dma.routes.resize(ROUTES, None);
        }
        let place = &mut self.dma.routes[(sid ^ cd << 3) as usize % ROUTES];
        if let Some(known) = place
            && (known.sid, known.cd, known.generation) == (sid, cd, generation)
        {
            return Arc::clone(known);
        }
        let stream = self.streams.stream(sid);
        let contexts = self.streams.contexts(sid, cd).copied().collect();
        Arc::clone(place.insert(Arc::new(Route { sid, cd, generation, stream, contexts })))
    }

    /// A transaction goes on with a translation.
    pub(super) fn latched(&mut self, id: TxnId, t: &Transaction, translation: &Translation) {
        match self.dma.used.get_mut(&t.sid) {
            Some(used) => *used = self.now,
            None => _ = self.dma.used.insert(t.sid, self.now),
        }
        self.used_torn(t.sid, t.ssid.unwrap_or(0));
        self.late_structures(t);
        self.late_level1(t.sid, t.ssid.unwrap_or(0));
        let route = self.route(t);
        let mut under_way = UnderWay { t: *t, leaf: None, others: Vec::new() };
        let mut gone = Vec::new();
        let input = ((t.address << 8) as i64 >> 8) as u64;
        let nested = route.is_nested();
        self.dma.recent.resize(RECENT, u64::MAX);
        route.stages(t).for_each(|(regime, granule)| {
            let any = nested && regime.world != World::NsEl1Stage2;
            let gives = |e: &Entry| any || e.output() | input & ((1 << e.shift) - 1) == translation.pa;
            let recent = &mut self.dma.recent[(input >> 12) as usize % RECENT];
            if let Some(e) = self.tables.get(*recent)
                && (e.leaf, e.dead.is_none(), e.regime, e.granule) == (true, true, regime, granule)
                && input >> e.shift == e.first >> e.shift
                && gives(e)
            {
                return under_way.uses(*recent);
            }
            let mut dead = None;
            let mut live = None;
            self.tables.each_leaf(regime, granule, input, |id, e| {
                let first = if e.dead.is_some() { &mut dead } else { &mut live };
                if first.is_none() && gives(e) {
                    *first = Some(id);
                }
            });
            match (live, dead) {
                (Some(live), _) => {
                    *recent = live;
                    under_way.uses(live);
                }
                (None, Some(dead)) => {
                    under_way.uses(dead);
                    gone.push(dead);
                }
                (None, None) => {}
            }
        });
        gone.into_iter().for_each(|dead| self.used_dead(dead, t, route.recovers()));
        self.dma.over(id);
        self.dma.under_way.push((id, under_way));
    }

    /// A device goes on with a translation that memory does not have any more.
    fn used_dead(&mut self, id: u64, t: &Transaction, recovers: bool) {
        let Some(e) = self.tables.get(id).cloned() else { return };
        let Some(death) = e.dead else { return };
        let age = self.now.saturating_sub(death.site.time);
        let restricted = matches!(death.cause, Cause::Changed(value) if value & 1 != 0);
        if self.tables.is_cut_off(&e) || age < self.patience.invalidation && (restricted || recovers) {
            // Until the invalidation, the guest has to expect this.
            return;
        }
        let kind = if restricted || recovers { Kind::StaleTranslation } else { Kind::DmaAfterUnmap };
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
        if !self.streams.changed {
            return;
        }
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
        for (regime, granule) in self.route(t).stages(t) {
            let elsewhere = |e: &Entry| e.output() | t.address & ((1 << e.shift) - 1) != t.address;
            let other = self.tables.leaves(regime, granule, t.address).find(|(_, e)| elsewhere(e));
            let Some(e) = other.map(|(_, e)| e.clone()) else { continue };
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
        self.used_torn(event.sid, event.ssid.unwrap_or(0));
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
        let verb = if access.read { "reads" } else { "writes" };
        let t = Transaction {
            ssid: event.ssid,
            ..Transaction::new(event.sid, access.address, crate::AccessKind::Read)
        };
        let route = self.route(&t);
        // With CD.R=0 the guest does not want to hear of faults: it expects them, as after the end of a process whose
        // memory a device still uses.
        if !place.s2 && route.contexts.iter().any(|context| !context.record) {
            return;
        }
        let (regime, granule) = match route.stages(&t).next() {
            Some(stage) if !place.s2 || stage.0.world == World::NsEl1Stage2 => stage,
            _ => (Regime::default(), Granule::G4K),
        };
        let input = ((access.address << 8) as i64 >> 8) as u64;
        let gone = self.tables.gone(regime, input);
        let dead = |(_, e): (u64, &Entry)| e.dead.map(|death| (e.map, death.site));
        let held = self.tables.leaves(regime, granule, input).find_map(dead);
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
        if regime != Regime::default() || granule != Granule::G4K {
            (report.world, report.vmid, report.asid) =
                (Some(regime.world), Some(regime.vmid), Some(regime.asid));
        }
        if translation && let Some((map, unmap)) = gone {
            report = report.site(Role::Map, map).site(Role::Unmap, Some(unmap));
        }
        self.report((u64::from(event.sid), access.address & !0xfff), report);
    }
}
