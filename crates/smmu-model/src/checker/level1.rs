//! Level 1 descriptors of stream tables and CD tables that an SMMU read and may still hold.
//!
//! One that was valid and is changed may be held until a CFGI command that reaches level 1 (Leaf=0, or of a range) and
//! a CMD_SYNC. It is one aligned doubleword, so it cannot be torn.

use std::collections::BTreeMap;

use super::State;
use super::answers::Time;
use super::memory::PAGE;
use super::report::{Kind, Report};
use super::scope::describe;
use super::site::{Role, Site};
use crate::config::Config;
use crate::observer::Level1;
use crate::spec::cd::{CD_SHIFT, L1Cd};
use crate::spec::command::{Command, Opcode};
use crate::spec::ste::{L1Std, STE_SHIFT};

/// More than this are not kept: the first go.
const MAX_ENTRIES: usize = 4096;

/// The table that a descriptor leads to: its address and log2 of its entries.
type Target = Option<(u64, u32)>;

/// What a descriptor means, by what it is.
fn target(what: Level1, word: u64) -> Target {
    match what {
        Level1::Stream { split, .. } => {
            let l1std = L1Std(word);
            let log2 = l1std.span().checked_sub(1).filter(|&log2| log2 <= split)?;
            Some((l1std.l2ptr() >> (log2 + STE_SHIFT) << (log2 + STE_SHIFT), log2))
        }
        Level1::Cd { split, .. } => L1Cd(word).v().then(|| (L1Cd(word).l2ptr(), split)),
    }
}

/// What a descriptor was before it was changed.
#[derive(Clone, Copy, Debug)]
struct Old {
    target: Target,
    seq: u64,
    map: Option<Site>,
    change: Site,
    reported: bool,
}

/// One descriptor that was read.
#[derive(Clone, Copy, Debug)]
struct Held {
    born: u64,
    map: Option<Site>,
    now: Target,
    old: Option<Old>,
}

/// All of them, by what they are for and their address.
#[derive(Debug, Default)]
pub(super) struct Level1s {
    held: BTreeMap<(Level1, u64), Held>,
    /// How many of them have been changed.
    changed: usize,
}

/// The pages of a table.
fn pages(target: Target) -> impl Iterator<Item = u64> {
    let (first, bytes) = target.map_or((0, 0), |(first, log2)| (first, 1 << (log2 + STE_SHIFT)));
    (first & !(PAGE - 1)..first + bytes).step_by(PAGE as usize)
}

// STEs and CDs have the same size.
const _: () = assert!(STE_SHIFT == CD_SHIFT);

impl Level1 {
    /// Whether it leads to the STE or the CD of a transaction.
    fn leads_to(self, sid: u32, cd: u32) -> bool {
        match self {
            Level1::Stream { first, split } => sid >> split == first >> split,
            Level1::Cd { sid: of, first, split } => sid == of && cd >> split == first >> split,
        }
    }

    /// Whether a CFGI command removes it; and whether it would, if it did not leave level 1 alone.
    fn removed_by(self, c: &Command, config: &Config) -> (bool, bool) {
        let about = match (self, c.opcode()) {
            (Level1::Stream { .. }, Some(Opcode::CfgiSte)) => self.leads_to(c.sid(), 0),
            (Level1::Stream { first, split }, Some(Opcode::CfgiSteRange)) => {
                let span = u32::MAX >> (31 - c.range());
                let (from, to) = (c.sid() & !span, c.sid() | span);
                from >> split <= first >> split && first >> split <= to >> split
            }
            // Whatever was found through an STE goes with it (section 4.3.1).
            (Level1::Cd { sid, .. }, Some(Opcode::CfgiSte)) => return (sid == c.sid(), false),
            (Level1::Cd { sid, .. }, Some(Opcode::CfgiSteRange)) => {
                let span = u32::MAX >> (31 - c.range());
                sid | span == c.sid() | span
            }
            (Level1::Cd { .. }, Some(Opcode::CfgiCd)) => {
                self.leads_to(c.sid(), if config.ssidsize == 0 { 0 } else { c.ssid() })
            }
            (Level1::Cd { sid, .. }, Some(Opcode::CfgiCdAll)) => sid == c.sid(),
            _ => false,
        };
        let leaf = matches!(c.opcode(), Some(Opcode::CfgiSte | Opcode::CfgiCd)) && c.leaf();
        (about && !leaf, about && leaf)
    }
}

impl State {
    /// A level 1 descriptor was read.
    pub(super) fn level1_fetched(&mut self, what: Level1, at: u64, word: u64) {
        let (born, now) = (self.tick(), target(what, word));
        if self.level1s.held.contains_key(&(what, at)) {
            return;
        }
        // Nothing is held of one that is not valid: Linux makes them valid without a command, too.
        if now.is_none() {
            return;
        }
        if self.level1s.held.len() >= MAX_ENTRIES
            && let Some(&(what, at)) = self.level1s.held.keys().next()
        {
            self.forget_level1(what, at);
        }
        let map = self.memory.writer(at);
        self.level1s.held.insert((what, at), Held { born, map, now, old: None });
        self.memory.hold_configuration(at);
    }

    fn forget_level1(&mut self, what: Level1, at: u64) {
        let Some(held) = self.level1s.held.remove(&(what, at)) else { return };
        self.memory.release_configuration(at);
        if let Some(old) = held.old {
            self.level1s.changed -= 1;
            pages(old.target).for_each(|page| self.memory.release_configuration(page));
        }
    }

    /// A word changes that may be such a descriptor, or in a table that one led to.
    pub(super) fn level1_store(&mut self, at: u64, new: u64, seq: u64, site: &Site) {
        if self.level1s.held.is_empty() {
            return;
        }
        let here: Vec<Level1> =
            self.level1s.held.keys().filter(|(_, own)| *own == at).map(|&(what, _)| what).collect();
        for what in here {
            self.level1_changed(what, at, new, seq, site);
        }
        if self.level1s.changed == 0 || new == 0 {
            return;
        }
        let in_old = |held: &Held| {
            let (first, log2) = held.old?.target?;
            (at.wrapping_sub(first) >> (log2 + STE_SHIFT) == 0).then_some(())
        };
        let reused: Vec<(Level1, u64)> = self
            .level1s
            .held
            .iter()
            .filter(|(_, held)| in_old(held).is_some())
            .map(|(&key, _)| key)
            .collect();
        for (what, at) in reused {
            self.report_level1(what, at, Some(site));
        }
    }

    fn level1_changed(&mut self, what: Level1, at: u64, new: u64, seq: u64, site: &Site) {
        let Some(held) = self.level1s.held.get_mut(&(what, at)) else { return };
        let now = target(what, new);
        if now == held.now {
            return;
        }
        let before = std::mem::replace(&mut held.now, now);
        match held.old {
            // It is what it was.
            Some(old) if old.target == now => {
                held.old = None;
                self.level1s.changed -= 1;
                pages(old.target).for_each(|page| self.memory.release_configuration(page));
            }
            Some(_) => {}
            None => {
                held.old = Some(Old { target: before, seq, map: held.map, change: *site, reported: false });
                self.level1s.changed += 1;
                pages(before).for_each(|page| self.memory.hold_configuration(page));
            }
        }
        held.map = Some(*site);
    }

    /// A CFGI that was consumed at `seq` has completed.
    pub(super) fn level1_invalidated(&mut self, c: &Command, seq: u64) {
        let removed = |(what, _): &(Level1, u64), held: &Held| {
            what.removed_by(c, &self.config).0 && held.born < seq && held.old.is_none_or(|old| old.seq < seq)
        };
        let gone: Vec<(Level1, u64)> =
            self.level1s.held.iter().filter(|(key, held)| removed(key, held)).map(|(&key, _)| key).collect();
        gone.into_iter().for_each(|(what, at)| self.forget_level1(what, at));
    }

    /// A device's transaction may go by a descriptor that was changed long ago.
    pub(super) fn late_level1(&mut self, sid: u32, cd: u32) {
        if self.level1s.changed == 0 {
            return;
        }
        let (now, patience) = (self.now, self.patience.invalidation);
        let late = |held: &Held| {
            held.old.is_some_and(|old| !old.reported && now.saturating_sub(old.change.time) >= patience)
        };
        let stale: Vec<(Level1, u64)> = self
            .level1s
            .held
            .iter()
            .filter(|((what, _), held)| what.leads_to(sid, cd) && late(held))
            .map(|(&key, _)| key)
            .collect();
        stale.into_iter().for_each(|(what, at)| self.report_level1(what, at, None));
    }

    /// An old level 1 descriptor may still be held: that is a mistake now.
    fn report_level1(&mut self, what: Level1, at: u64, reuse: Option<&Site>) {
        let Some(held) = self.level1s.held.get_mut(&(what, at)) else { return };
        let Some(old) = &mut held.old else { return };
        old.reported = true;
        let old = *old;
        let then = match reuse {
            None => "a device still uses a stream that it led to",
            Some(_) => "the table that it led to is written as something else",
        };
        let (kind, of, want, sid, cd) = match what {
            Level1::Stream { first, split } => (
                Kind::StaleL1Std,
                format!("of StreamIDs {first:#x} to {:#x}", first | ((1 << split) - 1)),
                format!("CMD_CFGI_STE(StreamID={first:#x}, Leaf=0)"),
                first,
                None,
            ),
            Level1::Cd { sid, first, split } => (
                Kind::StaleL1Cd,
                format!("of SubstreamIDs {first:#x} to {:#x}", first | ((1 << split) - 1)),
                format!("CMD_CFGI_CD(StreamID={sid:#x}, SubstreamID={first}, Leaf=0)"),
                sid,
                Some(first),
            ),
        };
        let text = format!(
            "the level 1 descriptor at {at:#x} {of} was changed at {} and never invalidated, and {then}",
            Time(old.change.time)
        );
        let narrow = self
            .commands
            .recent()
            .find(|logged| logged.seq > old.seq && what.removed_by(&logged.command, &self.config).1);
        let mut missing = format!("{want} and CMD_SYNC");
        if let Some(logged) = narrow {
            missing += &format!(
                ": {} has Leaf=1, which leaves level 1 descriptors cached",
                describe(&logged.command, &self.config)
            );
        }
        let site = narrow.and_then(|logged| logged.site);
        let mut report = Report::new(kind, reuse.map_or(self.now, |site| site.time), text)
            .stream(sid, cd)
            .site(Role::Map, old.map)
            .site(Role::Unmap, Some(old.change))
            .site(Role::Invalidation, site)
            .site(Role::Reuse, reuse.copied());
        report.missing = Some(missing);
        self.report((at, old.seq), report);
    }
}
