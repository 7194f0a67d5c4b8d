//! Every descriptor that an SMMU read and may still hold: its own word, the tables that led to it, and whether memory
//! still says the same.
//!
//! An entry is *dead* once memory does not say any more what it says, or once no table leads to it any more. What is
//! dead has to be invalidated before its address, its tag or its table page get another meaning. What is alive may be
//! read again at any time, so an invalidation does not remove it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pgtable::Granule;
use pgtable::descriptor::{self as d, Kind};

use super::index::{Index, Map, Slab};
use super::site::Site;
use crate::cache::World;
use crate::observer::Descriptor;

/// What a translation is tagged with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Regime {
    pub(super) world: World,
    pub(super) vmid: u16,
    pub(super) asid: u16,
}

impl Regime {
    /// Itself, in a word.
    fn key(self) -> u64 {
        (self.world as u64) << 32 | u64::from(self.vmid) << 16 | u64::from(self.asid)
    }
}

/// Why an entry is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its word was changed to this.
    Changed(u64),
    /// A table that led to it is dead.
    Parent,
    /// No CD or STE leads to its tables any more.
    Root,
}

/// When and by whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death {
    pub(super) seq: u64,
    pub(super) site: Site,
    pub(super) cause: Cause,
}

/// What led to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// The first table of a walk, which this page is a part of.
    Root(u64),
    /// A table descriptor.
    Entry(u64),
    /// Something that is forgotten.
    Lost,
}

/// One descriptor that was read.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) at: u64,
    pub(super) value: u64,
    pub(super) level: i8,
    pub(super) granule: Granule,
    pub(super) pa52: bool,
    pub(super) regime: Regime,
    pub(super) global: bool,
    /// First address and log2 of the bytes that it is for.
    pub(super) first: u64,
    pub(super) shift: u8,
    pub(super) leaf: bool,
    pub(super) parent: Parent,
    children: BTreeSet<u64>,
    pub(super) sid: u32,
    pub(super) cd: u32,
    /// When it was read.
    pub(super) born: u64,
    pub(super) map: Option<Site>,
    pub(super) dead: Option<Death>,
}

impl Entry {
    /// The pages of the table that it leads to.
    fn table_pages(&self) -> impl Iterator<Item = u64> + use<> {
        let (table, bytes) = (self.output(), if self.leaf { 0 } else { self.granule.bytes() });
        (0..bytes).step_by(4096).map(move |offset| table + offset)
    }

    /// Where a leaf leads for its first address, or the table that it points to.
    pub(super) fn output(&self) -> u64 {
        output(self.value, self.leaf, self.granule, self.level, self.pa52)
    }
}

/// The address in a descriptor.
pub(super) fn output(value: u64, leaf: bool, granule: Granule, level: i8, pa52: bool) -> u64 {
    let low = if leaf { granule.shift(level) } else { granule.bits() };
    d::address(value, granule, low, pa52)
}

/// How a new value of a descriptor relates to the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing that matters.
    None,
    /// More is permitted: a cached entry at worst faults.
    Extended,
    /// Less is permitted.
    Restricted,
    /// It is invalid now.
    Invalid,
    /// Only the Contiguous bit, or the size of what is mapped.
    Size,
    /// Another address or other attributes.
    Other,
}

/// Compares two values of a descriptor of which the first is valid.
pub(super) fn compare(e: &Entry, new: u64) -> Change {
    let old = e.value;
    if old == new {
        return Change::None;
    }
    let kind = d::kind(new, e.granule, e.level, e.pa52);
    if kind == Kind::Invalid {
        return Change::Invalid;
    }
    if (kind == Kind::Leaf) != e.leaf {
        return Change::Size;
    }
    let address = |value| output(value, e.leaf, e.granule, e.level, e.pa52);
    if address(old) != address(new) {
        return Change::Other;
    }
    let gains = |bits: u64| new & !old & bits != 0;
    let loses = |bits: u64| old & !new & bits != 0;
    if !e.leaf {
        // Bits 63:59 restrict what is below.
        let limits = 0x1f << 59;
        return match (gains(limits), loses(limits)) {
            (true, _) => Change::Restricted,
            (false, true) => Change::Extended,
            (false, false) => Change::None,
        };
    }
    let stage2 = e.regime.world == World::NsEl1Stage2;
    let attributes = d::SH_INNER | if stage2 { 0xf << 2 } else { 7 << 2 | d::NG | d::NS };
    if (old ^ new) & attributes != 0 {
        return Change::Other;
    }
    if (old ^ new) & d::CONTIGUOUS != 0 {
        return Change::Size;
    }
    let (permit, forbid) = match stage2 {
        true => (d::AF | d::S2AP_READ | d::S2AP_WRITE, d::XN | d::PXN),
        false => (d::AF | d::AP_USER, d::AP_READ_ONLY | d::XN | d::PXN),
    };
    match (gains(forbid) || loses(permit), gains(permit) || loses(forbid)) {
        (true, _) => Change::Restricted,
        (false, true) => Change::Extended,
        (false, false) => Change::None,
    }
}

/// How many translations that are gone are remembered for reports.
const MAX_GONE: usize = 4096;

/// A translation that was properly taken away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    pub(super) map: Option<Site>,
    pub(super) unmap: Site,
}

/// What is to be watched, or not any more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Watch {
    Hold(u64),
    Release(u64),
}

/// Where leaves became dead or alive.
#[derive(Debug, Default)]
pub(super) enum Changes {
    #[default]
    None,
    /// At these descriptors.
    At(Vec<u64>),
    /// At more than are kept.
    Many,
}

/// As many are kept.
const MAX_CHANGES: usize = 4096;

impl Changes {
    fn add(&mut self, word: u64) {
        match self {
            Changes::None => *self = Changes::At(vec![word]),
            Changes::At(words) if words.len() < MAX_CHANGES => words.push(word),
            Changes::At(_) => *self = Changes::Many,
            Changes::Many => {}
        }
    }
}

/// A regime, and an address with the level in the bits that the smallest page does not translate.
type Input = (u64, u64);

fn input_key(regime: Regime, level: i8, first: u64) -> Input {
    (regime.key(), first & !0xfff | u64::from(level as u8))
}

/// All entries. More than a [`Slab`] holds are not kept: the oldest go.
#[derive(Debug, Default)]
pub(super) struct Tables {
    entries: Slab<Entry>,
    by_word: Index<u64>,
    by_input: Index<Input>,
    /// How many leaves there are of each level.
    leaves: [u32; 4],
    dead: BTreeSet<u64>,
    /// Table descriptors that were changed and may still be held, by where they lead.
    taken_out: BTreeSet<(u64, u64)>,
    /// What is dead though its own word never changed, by address.
    cut_off: BTreeSet<(u64, u64)>,
    roots: BTreeMap<(Regime, u64), BTreeSet<u64>>,
    gone: Map<Input, Gone>,
    /// The oldest first.
    went: VecDeque<Input>,
    /// What somebody wants to know, if so.
    changes: Option<Changes>,
    /// Room for what is being removed.
    going: Vec<u64>,
    /// Pages to watch, for whoever does.
    pub(super) watches: Vec<Watch>,
}

impl Tables {
    pub(super) fn get(&self, id: u64) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// The first entry whose descriptor is at `at`, of those whose id is `from` or later.
    pub(super) fn at_word(&self, at: u64, from: u64) -> Option<u64> {
        self.by_word.from(&at, from)
    }

    /// Entries whose descriptors are in the page of `at` and that nothing leads to any more.
    pub(super) fn cut_off_in(&self, at: u64) -> Option<&Entry> {
        if self.cut_off.is_empty() {
            return None;
        }
        let page = at & !0xfff;
        let (_, id) = self.cut_off.range((page, 0)..(page + 0x1000, 0)).next()?;
        self.entries.get(*id)
    }

    /// Entries of a regime for an address at a level.
    fn at_input(&self, regime: Regime, level: i8, first: u64) -> impl Iterator<Item = (u64, &Entry)> {
        let ids = self.by_input.of(input_key(regime, level, first));
        ids.filter_map(|id| Some((id, self.entries.get(id)?)))
    }

    /// Leaves of a regime that translate `input`, of whatever size.
    pub(super) fn leaves(
        &self,
        regime: Regime,
        granule: Granule,
        input: u64,
    ) -> impl Iterator<Item = (u64, &Entry)> {
        let levels = (0..=3).filter(|&level| self.leaves[level as usize] != 0);
        let at_level = move |level| {
            let shift = granule.shift(level);
            self.at_input(regime, level, input >> shift << shift)
        };
        levels.flat_map(at_level).filter(|(_, e)| e.leaf)
    }

    /// Calls `f` with what [`Tables::leaves`] gives.
    #[inline]
    pub(super) fn each_leaf(
        &self,
        regime: Regime,
        granule: Granule,
        input: u64,
        mut f: impl FnMut(u64, &Entry),
    ) {
        for level in (0..=3).filter(|&level| self.leaves[level as usize] != 0) {
            let shift = granule.shift(level);
            self.by_input.each(input_key(regime, level, input >> shift << shift), |id| {
                if let Some(e) = self.entries.get(id).filter(|e| e.leaf) {
                    f(id, e);
                }
            });
        }
    }

    /// Whether [`Tables::take_changes`] is to have any from now on.
    pub(super) fn tell_changes(&mut self, tell: bool) {
        if tell != self.changes.is_some() {
            self.changes = tell.then(Changes::default);
        }
    }

    /// Where leaves became dead or alive since the last time.
    #[inline]
    pub(super) fn take_changes(&mut self) -> Changes {
        self.changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn changed(&mut self, leaf: bool, word: u64) {
        if leaf && let Some(changes) = &mut self.changes {
            changes.add(word);
        }
    }

    /// Removes what is dead and `covered` by an invalidation.
    pub(super) fn remove_dead(&mut self, covered: impl Fn(&Entry) -> bool) {
        let mut gone = std::mem::take(&mut self.going);
        gone.extend(self.dead.iter().filter(|&&id| self.entries.get(id).is_some_and(&covered)));
        gone.drain(..).for_each(|id| self.remove(id));
        self.going = gone;
    }

    /// Roots of a regime that lead to something.
    pub(super) fn roots(&self, regime: Regime) -> Vec<(Regime, u64)> {
        self.roots.range((regime, 0)..=(regime, u64::MAX)).map(|(&root, _)| root).collect()
    }

    /// What is under a root.
    pub(super) fn under(&self, root: (Regime, u64)) -> Vec<u64> {
        self.roots.get(&root).into_iter().flatten().copied().collect()
    }

    /// What became of the translation of an address.
    pub(super) fn gone(&self, regime: Regime, input: u64) -> Option<Gone> {
        self.gone.get(&(regime.key(), input & !0xfff)).copied()
    }

    /// The entry for a descriptor that was read, if there is a live one that says the same.
    pub(super) fn known(&self, f: &Descriptor) -> Option<u64> {
        let shift = f.granule.shift(f.level);
        let regime = Regime { world: f.world, vmid: f.vmid, asid: f.asid };
        let mut same = self.at_input(regime, f.level, f.input >> shift << shift);
        let live = |e: &Entry| e.at == f.at && e.dead.is_none() && compare(e, f.value) == Change::None;
        same.find(|(_, e)| live(e)).map(|(id, _)| id)
    }

    /// A valid descriptor was read.
    pub(super) fn add(&mut self, f: &Descriptor, born: u64, map: Option<Site>) -> Option<u64> {
        let leaf = match d::kind(f.value, f.granule, f.level, f.pa52) {
            Kind::Invalid => return None,
            Kind::Leaf => true,
            Kind::Table => false,
        };
        if self.entries.is_full()
            && let Some(oldest) = self.entries.oldest()
        {
            self.remove(oldest);
        }
        let regime = Regime { world: f.world, vmid: f.vmid, asid: f.asid };
        let shift = f.granule.shift(f.level);
        let parent = if f.first { Parent::Root(f.at & !0xfff) } else { self.parent(f, regime) };
        let id = self.entries.next();
        let mut dead = None;
        match parent {
            Parent::Root(page) => {
                self.roots.entry((regime, page)).or_default().insert(id);
            }
            Parent::Entry(of) => {
                if let Some(of) = self.entries.get_mut(of) {
                    of.children.insert(id);
                    dead = of.dead.map(|death| Death { cause: Cause::Parent, ..death });
                }
            }
            Parent::Lost => {}
        }
        let stage1 = f.world != World::NsEl1Stage2;
        let entry = Entry {
            at: f.at,
            value: f.value,
            level: f.level,
            granule: f.granule,
            pa52: f.pa52,
            regime,
            global: leaf && stage1 && f.value & d::NG == 0 && f.world != World::El2,
            first: f.input >> shift << shift,
            shift,
            leaf,
            parent,
            children: BTreeSet::new(),
            sid: f.sid,
            cd: f.cd,
            born,
            map,
            dead,
        };
        self.watches.push(Watch::Hold(f.at));
        self.watches.extend(entry.table_pages().map(Watch::Hold));
        self.by_word.insert(f.at, id);
        self.by_input.insert(input_key(regime, f.level, entry.first), id);
        if leaf && let Some(leaves) = self.leaves.get_mut(f.level as usize) {
            *leaves += 1;
        }
        if dead.is_some() {
            self.dead.insert(id);
            self.cut_off.insert((f.at, id));
        }
        self.entries.insert(entry);
        self.changed(leaf, f.at);
        Some(id)
    }

    /// The table descriptor that led to a fetch: a live one if there is one.
    fn parent(&self, f: &Descriptor, regime: Regime) -> Parent {
        let level = f.level - 1;
        let shift = f.granule.shift(level);
        let candidates = self
            .at_input(regime, level, f.input >> shift << shift)
            .filter(|(_, e)| !e.leaf && f.at.wrapping_sub(e.output()) < e.granule.bytes());
        let best = candidates.min_by_key(|(_, e)| e.dead.is_some());
        best.map_or(Parent::Lost, |(id, _)| Parent::Entry(id))
    }

    /// Memory still says what an entry says, but with this value.
    pub(super) fn refresh(&mut self, id: u64, value: u64, site: Site) {
        if let Some(e) = self.entries.get_mut(id) {
            e.value = value;
            e.map = Some(site);
        }
    }

    /// An entry and everything it leads to is dead.
    pub(super) fn kill(&mut self, id: u64, death: Death) {
        let mut next = Vec::new();
        self.kill_one(id, death, &mut next);
        let below = Death { cause: Cause::Parent, ..death };
        while let Some(id) = next.pop() {
            self.kill_one(id, below, &mut next);
        }
    }

    /// An entry is dead. Adds what it leads to to `below`, unless that is dead for longer.
    fn kill_one(&mut self, id: u64, death: Death, below: &mut Vec<u64>) {
        let Some(e) = self.entries.get_mut(id) else { return };
        let own = matches!(death.cause, Cause::Changed(_));
        if own && !e.leaf {
            self.taken_out.insert((e.output(), id));
        }
        if let Some(old) = &mut e.dead {
            // Dead for longer, but now for a reason of its own as well.
            if own {
                old.cause = death.cause;
                self.cut_off.remove(&(e.at, id));
            }
            return;
        }
        e.dead = Some(death);
        self.dead.insert(id);
        if !own {
            self.cut_off.insert((e.at, id));
        }
        if !e.children.is_empty() {
            below.extend(&e.children);
        }
        let (leaf, at) = (e.leaf, e.at);
        self.changed(leaf, at);
    }

    /// Memory says again what an entry says; so what it leads to is alive as well, unless changed itself.
    pub(super) fn revive(&mut self, id: u64) {
        let mut next = vec![(id, true)];
        while let Some((id, first)) = next.pop() {
            let Some(e) = self.entries.get_mut(id) else { continue };
            let own = matches!(e.dead, Some(Death { cause: Cause::Changed(_), .. }));
            if e.dead.is_none() || (own && !first) {
                continue;
            }
            e.dead = None;
            self.dead.remove(&id);
            self.cut_off.remove(&(e.at, id));
            self.taken_out.remove(&(e.output(), id));
            next.extend(e.children.iter().map(|&child| (child, false)));
            let (leaf, at) = (e.leaf, e.at);
            self.changed(leaf, at);
        }
    }

    /// Whether what led to an entry is alive.
    pub(super) fn reachable(&self, e: &Entry) -> bool {
        match e.parent {
            Parent::Root(_) => !matches!(e.dead, Some(Death { cause: Cause::Root, .. })),
            Parent::Entry(of) => self.entries.get(of).is_some_and(|of| of.dead.is_none()),
            Parent::Lost => false,
        }
    }

    /// Whether it is dead because no CD or STE leads to its tables.
    pub(super) fn is_cut_off(&self, e: &Entry) -> bool {
        let mut e = e;
        // A walk has at most five levels.
        for _ in 0..8 {
            if matches!(e.dead, Some(Death { cause: Cause::Root, .. })) {
                return true;
            }
            let Parent::Entry(of) = e.parent else { return false };
            let Some(of) = self.entries.get(of) else { return false };
            e = of;
        }
        false
    }

    /// A table descriptor that was changed, may still be held, and leads to the table that the page of `at` is in.
    pub(super) fn dead_table_to(&self, at: u64) -> Option<&Entry> {
        if self.taken_out.is_empty() {
            return None;
        }
        let first = (at & !0xfff).saturating_sub(Granule::G64K.bytes());
        let ids = self.taken_out.range((first, 0)..=(at & !0xfff, u64::MAX));
        let mut entries = ids.filter_map(|&(_, id)| self.entries.get(id));
        entries.find(|e| at - e.output() < e.granule.bytes())
    }

    /// An entry is invalidated: nobody holds it any more.
    pub(super) fn remove(&mut self, id: u64) {
        let Some(e) = self.entries.remove(id) else { return };
        self.changed(e.leaf, e.at);
        self.by_word.remove(e.at, id);
        self.by_input.remove(input_key(e.regime, e.level, e.first), id);
        if e.leaf
            && let Some(leaves) = self.leaves.get_mut(e.level as usize)
        {
            *leaves -= 1;
        }
        if e.dead.is_some() {
            self.dead.remove(&id);
            if !self.cut_off.is_empty() {
                self.cut_off.remove(&(e.at, id));
            }
            if !self.taken_out.is_empty() {
                self.taken_out.remove(&(e.output(), id));
            }
        }
        match e.parent {
            Parent::Root(page) => {
                let key = (e.regime, page);
                if let Some(ids) = self.roots.get_mut(&key) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.roots.remove(&key);
                    }
                }
            }
            Parent::Entry(of) => {
                if let Some(of) = self.entries.get_mut(of) {
                    of.children.remove(&id);
                }
            }
            Parent::Lost => {}
        }
        self.watches.extend(e.table_pages().map(Watch::Release));
        if let Some(death) = e.dead
            && e.leaf
        {
            let input = (e.regime.key(), e.first);
            if self.gone.insert(input, Gone { map: e.map, unmap: death.site }).is_none() {
                self.went.push_back(input);
            }
            if self.went.len() > MAX_GONE
                && let Some(input) = self.went.pop_front()
            {
                self.gone.remove(&input);
            }
        }
        self.watches.push(Watch::Release(e.at));
    }
}
