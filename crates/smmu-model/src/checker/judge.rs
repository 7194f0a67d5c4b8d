//! Where a change of memory becomes a mistake.

use pgtable::descriptor::{self as d, Kind as Is};

use super::State;
use super::answers::Time;
use super::memory::Table;
use super::report::{Kind, Report};
use super::scope::{Coverage, covers, describe, wanted};
use super::site::{Role, Site};
use super::streams::{What, holds};
use super::tables::{Cause, Change, Death, Entry, Regime, compare, output};
use crate::cache::World;
use crate::observer::Descriptor;

impl State {
    /// A walk fetched a descriptor.
    pub(super) fn descriptor(&mut self, f: &Descriptor) {
        let table = Table { level: f.level, granule: f.granule, pa52: f.pa52 };
        if self.tables.known(f).is_some() {
            return;
        }
        let map = self.memory.writer(f.at);
        let Some(id) = self.tables.add(f, self.seq, map) else {
            return self.link(f.at, f.value, table);
        };
        self.watch();
        self.link(f.at, f.value, table);
        self.memory.is_table(f.at, table);
        let Some(e) = self.tables.get(id).filter(|e| e.leaf && e.dead.is_none()) else { return };
        // The address may have had another translation, by another table, that is still held.
        let old = self.tables.leaves(e.regime, e.granule, f.input).find(|(_, old)| {
            let offset = |e: &Entry| e.output() | f.input & ((1 << e.shift) - 1) & !0xfff;
            let other = old.at != e.at && old.dead.is_some() && !self.tables.is_cut_off(old);
            other && offset(old) != offset(e)
        });
        if let Some((_, old)) = old {
            let (old, map) = (old.clone(), e.map);
            self.reused(&old, map);
        }
    }

    /// Watches the table that a descriptor leads to.
    fn link(&mut self, at: u64, value: u64, table: Table) {
        let Table { level, granule, pa52 } = table;
        let to = match d::kind(value, granule, level, pa52) {
            Is::Table if level < 3 => {
                Some((output(value, false, granule, level, pa52), Table { level: level + 1, ..table }))
            }
            _ => None,
        };
        self.memory.link(at, to);
    }

    /// A word of a page that may be a table changes.
    pub(super) fn table_store(&mut self, at: u64, new: u64, seq: u64, site: &Site) {
        self.abandoned_table(at, new, site);
        let mut from = 0;
        while let Some(id) = self.tables.at_word(at, from) {
            from = id + 1;
            let Some(e) = self.tables.get(id) else { continue };
            let change = compare(e, new);
            match (e.dead.map(|death| death.cause), change) {
                (None, Change::None | Change::Extended) => self.tables.refresh(id, new, *site),
                (None, Change::Restricted | Change::Invalid) => self.kill(id, seq, new, site),
                (None, Change::Size | Change::Other) => {
                    if change == Change::Other || self.config.bbml == 0 {
                        let e = e.clone();
                        self.not_broken(&e, new, site);
                    }
                    self.kill(id, seq, new, site);
                }
                // It is back, with as much permitted as before.
                (Some(_), Change::None | Change::Extended) => {
                    if self.tables.reachable(e) {
                        self.tables.refresh(id, new, *site);
                        self.tables.revive(id);
                    }
                }
                // Or with less, as mprotect does it: the same page, still to be invalidated.
                (Some(_), Change::Invalid | Change::Restricted) => self.kill(id, seq, new, site),
                (Some(cause), Change::Size | Change::Other) => {
                    if matches!(cause, Cause::Changed(_)) && self.tables.reachable(e) {
                        let e = e.clone();
                        self.reused(&e, Some(*site));
                    }
                    self.kill(id, seq, new, site);
                }
            }
        }
        if let Some(table) = self.memory.table(at) {
            self.link(at, new, table);
            self.in_flight(at, new, table, site);
        }
    }

    fn kill(&mut self, id: u64, seq: u64, new: u64, site: &Site) {
        self.tables.kill(id, Death { seq, site: *site, cause: Cause::Changed(new) });
    }

    /// What every report about a cached descriptor says, with the command that is missing.
    pub(super) fn about(&self, kind: Kind, e: &Entry, what: String) -> Report {
        let mut report = Report::new(kind, self.now, what).stream(e.sid, Some(e.cd));
        (report.world, report.vmid) = (Some(e.regime.world), Some(e.regime.vmid));
        if e.regime.world != World::NsEl1Stage2 {
            report.asid = Some(e.regime.asid);
        } else {
            report.ssid = None;
        }
        (report.iova, report.level) = (Some(e.first), Some(e.level));
        report = report.site(Role::Map, e.map);
        if let Some(death) = e.dead {
            report = report.site(Role::Unmap, Some(death.site));
            let (missing, command) = self.missing(e, death);
            report.missing = Some(missing);
            report = report.site(Role::Invalidation, command);
        }
        report
    }

    /// Which command is missing for a dead entry, or what is wrong with the one that came.
    fn missing(&self, e: &Entry, death: Death) -> (String, Option<Site>) {
        let want = wanted(e, &self.config);
        let mut early = None;
        for logged in self.commands.recent() {
            let c = &logged.command;
            let name = || describe(c, &self.config);
            match covers(c, e, &self.config, self.streams.e2h()) {
                Coverage::Whole if logged.seq > death.seq => {
                    return (
                        format!("CMD_SYNC: {} was consumed, but none has completed since", name()),
                        logged.site,
                    );
                }
                Coverage::Whole if early.is_none() && logged.seq > e.born => {
                    early = Some((
                        format!("{want} and CMD_SYNC: {} came before the change", name()),
                        logged.site,
                    ));
                }
                Coverage::Short(gap) if logged.seq > death.seq => {
                    return (format!("{want} and CMD_SYNC: {} {}", name(), gap.why()), logged.site);
                }
                _ => {}
            }
        }
        early.unwrap_or_else(|| (format!("{want} and CMD_SYNC"), None))
    }

    /// A valid descriptor became another valid one.
    fn not_broken(&mut self, e: &Entry, new: u64, site: &Site) {
        let what = format!(
            "the level {} descriptor of {:#x} was changed from {:#x} to {new:#x} without being invalid in between",
            e.level, e.first, e.value
        );
        let mut report = self.about(Kind::BreakBeforeMake, e, what).site(Role::Unmap, Some(*site));
        report.time = site.time;
        report.missing =
            Some(format!("an invalid descriptor, {} and CMD_SYNC first", wanted(e, &self.config)));
        self.report((e.at, site.pc), report);
    }

    /// An address has a new translation, and the old one is still held.
    fn reused(&mut self, old: &Entry, site: Option<Site>) {
        let Some(death) = old.dead else { return };
        let what = format!(
            "{:#x} got a new level {} descriptor, but the one that was removed at {} may still be cached",
            old.first,
            old.level,
            Time(death.site.time)
        );
        let mut report = self.about(Kind::IovaReuse, old, what).site(Role::Reuse, site);
        report.time = site.map_or(self.now, |site| site.time);
        self.report((old.at, death.seq), report);
    }

    /// A table that nothing leads to any more is written, but may still be walked.
    fn abandoned_table(&mut self, at: u64, new: u64, site: &Site) {
        if new == 0 {
            return;
        }
        let found = self.tables.dead_table_to(at).cloned();
        let stale = self.tables.cut_off_in(at).map(|e| (e.sid, e.cd));
        if let Some(e) = found {
            let unlinked = e.dead.map_or(0, |death| death.site.time);
            let what = format!(
                "the table at {:#x} was taken out at {} and is written as something else, but may still be walked",
                at & !0xfff,
                Time(unlinked)
            );
            let mut report = self.about(Kind::TableReuse, &e, what).site(Role::Reuse, Some(*site));
            report.time = site.time;
            self.report((at & !0xfff, unlinked), report);
        } else if let Some((sid, cd)) = stale {
            for what in [What::Ste(sid), What::Cd(sid, cd)] {
                let all: Vec<u64> = self.streams.named(what).map(|(at, _)| at).collect();
                for at in all {
                    self.report_structure(what, at, Some(site));
                }
            }
        }
    }

    /// A new leaf leads to memory that a device still reaches by an old one.
    fn in_flight(&mut self, at: u64, new: u64, table: Table, site: &Site) {
        let Table { level, granule, pa52 } = table;
        if d::kind(new, granule, level, pa52) != Is::Leaf {
            return;
        }
        let to = output(new, true, granule, level, pa52);
        let users = self.dma.users().filter_map(|(id, t)| Some((id, t, self.tables.get(id)?)));
        let gone = |e: &Entry| e.dead.is_some_and(|death| death.cause != Cause::Root);
        let old = users.filter(|(_, _, e)| gone(e) && e.leaf && e.output() == to && e.at != at);
        let Some((t, e)) = old.min_by_key(|(id, ..)| *id).map(|(_, t, e)| (*t, e.clone())) else { return };
        let what = format!(
            "memory at {to:#x} is mapped again while a device still {} it at {:#x}, where it was unmapped",
            if t.kind.is_read() { "reads" } else { "writes" },
            t.address
        );
        let mut report = self.about(Kind::DmaInFlight, &e, what).site(Role::Reuse, Some(*site));
        report.time = site.time;
        self.report((e.at, site.time), report);
    }

    /// An STE or CD was fetched.
    pub(super) fn structure(&mut self, what: What, at: u64, words: &[u64; 8]) {
        let seq = self.tick();
        if self.streams.fetched(what, at, words, seq, &self.config) {
            self.memory.hold_configuration(at);
        }
        let site = Site::device(self.now);
        self.settle_roots(what, at, &site);
        self.shared_tag(what, at);
    }

    /// A word of a page that may hold STEs or CDs changes.
    pub(super) fn structure_store(&mut self, at: u64, new: u64, seq: u64, site: &Site) {
        for what in self.streams.at(at) {
            let Some(s) = self.streams.get_mut(what, at) else { continue };
            let before = s.writer();
            self.streams.wrote(what, at, new, seq, *site, &self.config);
            self.settle_roots(what, at, site);
            let base = at & !63;
            if let What::Cd(sid, cd) = what
                && !self.streams.points_at(sid, cd, base, false, &self.config)
            {
                // The STE leads elsewhere now, but an old one may be held that leads here.
                let all: Vec<u64> = self.streams.named(What::Ste(sid)).map(|(at, _)| at).collect();
                all.into_iter().for_each(|at| self.report_structure(What::Ste(sid), at, Some(site)));
                continue;
            }
            if !self.smmuen || !self.streams.torn(what, base, &self.config) {
                continue;
            }
            // An SMMU may read it at any time, but nobody sees what it read unless the device makes a request before the
            // invalidation: one that cannot, as it is about to be removed, or that is quiet by all that is known, may yet.
            let lately = site.time.saturating_sub(self.patience.invalidation);
            let sid = what.sid();
            if self.memory.may_request(sid).unwrap_or_else(|| self.dma.is_used(sid, lately)) {
                self.report_torn(what, base, before, site);
            } else if let Some(s) = self.streams.get_mut(what, at) {
                s.torn = Some((before, *site));
            }
        }
    }

    /// A request meets what may have been seen torn.
    pub(super) fn used_torn(&mut self, sid: u32, cd: u32) {
        if !self.streams.changed {
            return;
        }
        for what in [What::Ste(sid), What::Cd(sid, cd)] {
            let torn: Vec<_> =
                self.streams.named(what).filter_map(|(at, s)| s.torn.map(|torn| (at, torn))).collect();
            for (at, (before, site)) in torn {
                self.report_torn(what, at, before, &site);
            }
        }
    }

    fn report_torn(&mut self, what: What, base: u64, before: Option<Site>, site: &Site) {
        let (kind, name) = match what {
            What::Ste(_) => (Kind::TornSte, "STE"),
            What::Cd(..) => (Kind::TornCd, "CD"),
        };
        let text = format!(
            "the {name} at {base:#x} is valid while several of its doublewords change: an SMMU that reads them in any order \
             can see one that never was"
        );
        let mut report = Report::new(kind, site.time, text)
            .stream(what.sid(), what.cd())
            .site(Role::Map, before)
            .site(Role::Unmap, Some(*site));
        report.missing = Some(format!("V=0 first, or {} between the changes", configuration(what)));
        self.report((base, site.pc & !0xfff), report);
    }

    /// An old STE or CD may still be held: that is a mistake now.
    pub(super) fn report_structure(&mut self, what: What, at: u64, reuse: Option<&Site>) {
        let Some(stale) = self.streams.stale(what, at, &self.config) else { return };
        let (kind, name) = match what {
            What::Ste(_) => (Kind::StaleSte, "STE"),
            What::Cd(..) => (Kind::StaleCd, "CD"),
        };
        let then = match reuse {
            None => "a device still uses its stream",
            Some(_) => "what it led to is written as something else",
        };
        let text = format!(
            "the {name} at {at:#x} was changed at {} and never invalidated, and {then}",
            Time(stale.change.time)
        );
        let mut report = Report::new(kind, reuse.map_or(self.now, |s| s.time), text)
            .stream(what.sid(), what.cd())
            .site(Role::Map, stale.map)
            .site(Role::Unmap, Some(stale.change))
            .site(Role::Reuse, reuse.copied());
        report.missing = Some(format!("{} and CMD_SYNC", configuration(what)));
        if let Some(s) = self.streams.get_mut(what, at) {
            s.reported = true;
        }
        self.report((at, stale.seq), report);
    }

    /// What an STE or CD leads to lives and dies with it.
    fn settle_roots(&mut self, what: What, at: u64, site: &Site) {
        let seq = self.seq;
        let mut regimes: Vec<Regime> = Vec::new();
        let mut concerned = vec![(what, at & !63)];
        if let What::Ste(sid) = what {
            // An STE may cut off its CDs.
            concerned.extend(self.streams.cds_of(sid));
        }
        for (what, at) in concerned {
            regimes
                .extend(self.streams.roots_of(what, at, &self.config).into_iter().map(|(regime, _)| regime));
        }
        regimes.sort_unstable();
        regimes.dedup();
        for root in regimes.into_iter().flat_map(|regime| self.tables.roots(regime)).collect::<Vec<_>>() {
            let alive = self.streams.leads_to(root.0, root.1, &self.config);
            for id in self.tables.under(root) {
                let dead = self.tables.get(id).and_then(|e| e.dead);
                match (alive, dead) {
                    (false, None) => {
                        self.tables.kill(id, Death { seq, site: *site, cause: Cause::Root });
                    }
                    (true, Some(Death { cause: Cause::Root, .. })) => self.tables.revive(id),
                    _ => {}
                }
            }
        }
    }

    /// A context takes over the tag of tables whose translations may still be held.
    fn shared_tag(&mut self, what: What, at: u64) {
        let now = self.streams.current_roots(what, at, &self.config);
        let Some(&(regime, _)) = now.first() else { return };
        for (of, page) in self.tables.roots(regime) {
            if now.iter().any(|&(_, table)| holds(table, page)) {
                continue;
            }
            let Some(e) = self.tables.under((of, page)).first().and_then(|&id| self.tables.get(id)).cloned()
            else {
                continue;
            };
            let tag = match regime.world {
                World::NsEl1Stage2 => format!("VMID {}", regime.vmid),
                _ => format!("ASID {}", regime.asid),
            };
            let text = format!(
                "{tag} has other tables now, but translations of those at {page:#x} may still be cached under it"
            );
            let writer = self.memory.writer(at);
            let mut report = self.about(Kind::TagReuse, &e, text).site(Role::Reuse, writer);
            (report.sid, report.ssid) = (Some(what.sid()), what.cd());
            report.missing = Some(match regime.world {
                World::NsEl1Stage2 => format!("CMD_TLBI_S12_VMALL(VMID={}) and CMD_SYNC", regime.vmid),
                World::NsEl1 => {
                    format!("CMD_TLBI_NH_ASID(VMID={}, ASID={}) and CMD_SYNC", regime.vmid, regime.asid)
                }
                World::El2 => "CMD_TLBI_EL2_ALL and CMD_SYNC".into(),
                World::El2E2h => format!("CMD_TLBI_EL2_ASID(ASID={}) and CMD_SYNC", regime.asid),
            });
            self.report((page, u64::from(regime.asid) << 16 | u64::from(regime.vmid)), report);
        }
    }
}

/// The command that invalidates an STE or CD.
fn configuration(what: What) -> String {
    match what {
        What::Ste(sid) => format!("CMD_CFGI_STE(StreamID={sid:#x})"),
        What::Cd(sid, cd) => format!("CMD_CFGI_CD(StreamID={sid:#x}, SubstreamID={cd})"),
    }
}
