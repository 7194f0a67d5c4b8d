//! What is tagged by stream world, VMID, ASID and address (section 3.17): the IOTLB and the cache of stage 2 have
//! translations of every page and block size; the walk caches are next door.

use pgtable::{Granule, Permissions};
use serde::{Deserialize, Serialize};

use super::sets::{Key, Sets, Shape};
use crate::transaction::MemAttrs;

/// The StreamWorld that a translation belongs to, and its stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum World {
    /// Non-secure EL1: stage 1, or stage 1 with its stage 2 folded in.
    #[default]
    NsEl1,
    /// Non-secure EL1: stage 2 alone, from IPA to PA.
    NsEl1Stage2,
    /// EL2 without ASIDs.
    El2,
    /// EL2 with E2H: has ASIDs.
    El2E2h,
}

/// Whose translation is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Regime {
    pub(crate) world: World,
    pub(crate) vmid: u16,
    pub(crate) asid: u16,
    /// CD.ASET: global translations are for contexts of the same set only (section 3.17.1).
    pub(crate) aset: bool,
}

/// One translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mapping {
    /// Output address of the first byte.
    pub(crate) output: u64,
    /// log2 of the bytes it covers.
    pub(crate) shift: u8,
    /// log2 of the bytes of the stage 1 leaf: more than `shift` where a smaller stage 2 page cut it. An invalidation of
    /// any address of the leaf removes all its pieces.
    pub(crate) span: u8,
    /// Granule of the (first) stage's tables.
    pub(crate) granule: Granule,
    /// Level of the leaf.
    pub(crate) level: i8,
    /// For every ASID.
    pub(crate) global: bool,
    /// nT: not to be cached.
    pub(crate) uncached: bool,
    /// What may be done without another look at the tables.
    pub(crate) permissions: Permissions,
    /// What might be permitted by a walk: stage 1's permissions if stage 2's are combined with them, and what a clean
    /// page permits once it is marked dirty. The rest is refused without a walk.
    pub(crate) possible: Permissions,
    /// Attributes of the result; of a stage 2 entry, what stage 2 alone says.
    pub(crate) attrs: MemAttrs,
    /// MemAttr of a stage 2 entry whose stream has S2FWB.
    pub(crate) fwb: Option<u8>,
}

/// What a cache that is tagged like this holds.
pub(crate) trait Entry: Copy + Default {
    /// log2 of the bytes that a look-up finds it for.
    fn shift(&self) -> u8;
    /// log2 of the bytes that an invalidation removes it for; at least `shift`.
    fn span(&self) -> u8;
    /// Granule of its tables.
    fn granule(&self) -> Granule;
    /// Level of the leaf.
    fn level(&self) -> i8;
    /// For every ASID of its set.
    fn global(&self) -> bool;

    /// Whether it is smaller than what it comes from.
    fn is_piece(&self) -> bool {
        self.span() > self.shift()
    }
}

impl Entry for Mapping {
    #[inline]
    fn shift(&self) -> u8 {
        self.shift & 63
    }

    fn span(&self) -> u8 {
        self.span & 63
    }

    fn granule(&self) -> Granule {
        self.granule
    }

    fn level(&self) -> i8 {
        self.level
    }

    fn global(&self) -> bool {
        self.global
    }
}

/// Page number, and everything else that must agree, packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TlbKey {
    page: u64,
    tag: u64,
}

impl TlbKey {
    /// Global entries are kept under ASID 0, a bit of their own and ASET.
    #[inline]
    fn new(regime: Regime, global: bool, shift: u8, input: u64) -> Self {
        let asid = if global { 0 } else { regime.asid };
        let tag = u64::from(asid)
            | u64::from(regime.vmid) << 16
            | u64::from(shift) << 32
            | (regime.world as u64) << 40
            | u64::from(global) << 48
            | u64::from(global && regime.aset) << 49;
        TlbKey { page: input >> shift, tag }
    }

    fn asid(&self) -> u16 {
        self.tag as u16
    }

    fn vmid(&self) -> u16 {
        (self.tag >> 16) as u16
    }

    fn shift(&self) -> u32 {
        (self.tag >> 32) as u32 & 63
    }

    fn world(&self) -> u8 {
        (self.tag >> 40) as u8
    }

    fn global(&self) -> bool {
        self.tag >> 48 & 1 == 1
    }
}

impl Key for TlbKey {
    const NONE: TlbKey = TlbKey { page: u64::MAX, tag: u64::MAX };

    #[inline]
    fn hash(&self) -> u64 {
        self.page ^ self.tag.wrapping_mul(0xd6e8_feb8_6659_fd93)
    }
}

/// Which ASIDs an invalidation concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Asid {
    /// All, and global translations.
    Any,
    /// One, and not global ones: TLBI_*_ASID.
    Only(u16),
    /// One, and global ones: TLBI_*_VA.
    OrGlobal(u16),
}

/// What an invalidation has to remove; everything given must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    /// One bit for each [`World`].
    pub(crate) worlds: u8,
    pub(crate) vmid: Option<u16>,
    /// CR0.VMW: low bits of the VMID that need not agree (section 3.17.6).
    pub(crate) wild: u8,
    pub(crate) asid: Asid,
    /// First and last byte.
    pub(crate) range: Option<(u64, u64)>,
    /// The granule that a range command names.
    pub(crate) granule: Option<Granule>,
    /// The level that TTL names.
    pub(crate) level: Option<i8>,
}

impl Scope {
    /// All of these worlds.
    pub(crate) fn worlds(worlds: &[World]) -> Self {
        let worlds = worlds.iter().fold(0, |bits, &world| bits | 1 << world as u8);
        Scope { worlds, vmid: None, wild: 0, asid: Asid::Any, range: None, granule: None, level: None }
    }

    fn covers(&self, key: &TlbKey, entry: &impl Entry) -> bool {
        let span = (1 << entry.span()) - 1;
        let first = key.page << key.shift() & !span;
        let last = first | span;
        self.worlds >> (key.world() & 7) & 1 == 1
            && self.vmid.is_none_or(|vmid| (vmid ^ key.vmid()) >> (self.wild & 15) == 0)
            && match self.asid {
                Asid::Any => true,
                Asid::Only(asid) => !key.global() && key.asid() == asid,
                Asid::OrGlobal(asid) => key.global() || key.asid() == asid,
            }
            && self.range.is_none_or(|(from, to)| from <= last && first <= to)
            && self.granule.is_none_or(|granule| granule == entry.granule())
            && self.level.is_none_or(|level| level == entry.level())
    }
}

/// How many entries there are of each size: a look-up probes only sizes that exist.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Sizes {
    mask: u64,
    count: Vec<u32>,
}

impl Sizes {
    fn new() -> Self {
        Sizes { mask: 0, count: vec![0; 64] }
    }

    fn add(&mut self, shift: u32) {
        self.count[shift as usize & 63] += 1;
        self.mask |= 1 << (shift & 63);
    }

    fn remove(&mut self, shift: u32) {
        let count = &mut self.count[shift as usize & 63];
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.mask &= !(1 << (shift & 63));
        }
    }
}

/// The cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tagged<V> {
    sets: Sets<TlbKey, V>,
    /// Sizes of entries of one ASID, and of global ones.
    sizes: [Sizes; 2],
    /// Entries that are smaller than their stage 1 leaf.
    pieces: u32,
    /// Goes up when a new entry may answer in the place of another.
    #[serde(skip)]
    hidden: u64,
}

/// The IOTLB, or the cache of stage 2.
pub(crate) type Tlb = Tagged<Mapping>;

/// Above this many probes an invalidation looks at every entry instead.
const PROBES: u64 = 256;

impl<V: Entry> Tagged<V> {
    pub(crate) fn new(shape: Shape) -> Self {
        Tagged { sets: Sets::new(shape), sizes: [Sizes::new(), Sizes::new()], pieces: 0, hidden: 0 }
    }

    /// Whether nothing can ever be in it.
    #[inline]
    pub(crate) fn is_disabled(&self) -> bool {
        self.sets.is_disabled()
    }

    /// While this does not change, [`Tagged::lookup`] answers with the same entry as before.
    #[inline]
    pub(crate) fn changes(&self) -> u64 {
        self.sets.changes() + self.hidden
    }

    /// The smallest entry for `input`, one of its ASID before a global one.
    #[inline]
    pub(crate) fn get(&mut self, regime: Regime, input: u64) -> Option<&V> {
        let at = self.lookup(regime, input)?;
        self.sets.touch(at);
        Some(self.sets.at(at))
    }

    /// Where [`Tagged::get`] finds its entry.
    #[inline]
    pub(crate) fn lookup(&self, regime: Regime, input: u64) -> Option<usize> {
        self.find(regime, false, input).or_else(|| self.find(regime, true, input))
    }

    /// The entry that [`Tagged::lookup`] found.
    #[inline]
    pub(crate) fn at(&self, n: usize) -> &V {
        self.sets.at(n)
    }

    /// Marks the entry that [`Tagged::lookup`] found as used.
    #[inline]
    pub(crate) fn touch(&mut self, n: usize) {
        self.sets.touch(n);
    }

    /// Whether entries that do not agree in `what` answer for `input`: a TLB conflict (section 3.20).
    pub(crate) fn conflicts<T: PartialEq>(&self, regime: Regime, input: u64, what: impl Fn(&V) -> T) -> bool {
        let mut first = None;
        for global in [false, true] {
            let sizes = self.sizes[usize::from(global)].mask;
            for shift in (0..64u8).filter(|n| sizes >> n & 1 == 1) {
                if let Some(entry) = self.sets.peek(&TlbKey::new(regime, global, shift, input)) {
                    let found = (global, what(entry));
                    if *first.get_or_insert_with(|| (global, what(entry))) != found {
                        return true;
                    }
                }
            }
        }
        false
    }

    #[inline]
    fn find(&self, regime: Regime, global: bool, input: u64) -> Option<usize> {
        match self.sizes[usize::from(global)].mask {
            0 => None,
            sizes => self.find_of(sizes, regime, global, input),
        }
    }

    /// The smallest entry of these sizes.
    fn find_of(&self, mut sizes: u64, regime: Regime, global: bool, input: u64) -> Option<usize> {
        while sizes != 0 {
            let shift = sizes.trailing_zeros() as u8;
            let found = self.sets.find(&TlbKey::new(regime, global, shift, input));
            if found.is_some() {
                return found;
            }
            sizes &= sizes - 1;
        }
        None
    }

    /// Adds an entry for `input`. Says whether another one had to go.
    pub(crate) fn insert(&mut self, regime: Regime, input: u64, entry: V) -> bool {
        if self.sets.is_disabled() {
            return false;
        }
        let key = TlbKey::new(regime, entry.global(), entry.shift(), input);
        self.hidden += u64::from(self.comes_before_others(&key));
        let old = self.sets.insert(key, entry);
        self.sizes[usize::from(entry.global())].add(key.shift());
        self.pieces += u32::from(entry.is_piece());
        match old {
            Some((old, gone)) => {
                self.sizes[usize::from(old.global())].remove(old.shift());
                self.pieces -= u32::from(gone.is_piece());
                old != key
            }
            None => false,
        }
    }

    /// Whether a look-up finds an entry of this key before others that there are.
    fn comes_before_others(&self, key: &TlbKey) -> bool {
        let larger = !1 << key.shift();
        let [own, global] = self.sizes.each_ref().map(|sizes| sizes.mask);
        if key.global() { global & larger != 0 } else { own & larger | global != 0 }
    }

    /// Whether an invalidation would remove such an entry.
    pub(crate) fn is_covered(scope: &Scope, regime: Regime, input: u64, entry: &V) -> bool {
        scope.covers(&TlbKey::new(regime, entry.global(), entry.shift(), input), entry)
    }

    /// Removes everything in `scope`, and says how many entries that were.
    pub(crate) fn invalidate(&mut self, scope: &Scope) -> u64 {
        if self.sets.is_empty() {
            return 0;
        }
        self.invalidate_by_page(scope).unwrap_or_else(|| self.invalidate_by_scan(scope))
    }

    /// For a few pages of one ASID in one world: looks where they must be.
    fn invalidate_by_page(&mut self, scope: &Scope) -> Option<u64> {
        let (from, to) = scope.range?;
        let asid = match scope.asid {
            Asid::OrGlobal(asid) | Asid::Only(asid) => asid,
            Asid::Any => return None,
        };
        if !scope.worlds.is_power_of_two() || self.pieces != 0 || scope.wild != 0 {
            return None;
        }
        let vmid = scope.vmid?;
        let sizes = self.sizes.each_ref().map(|sizes| sizes.mask);
        let pages = |shift: u32| (to >> shift) - (from >> shift) + 1;
        let probes = (0..64).filter(|n| (sizes[0] | sizes[1]) >> n & 1 == 1).map(pages);
        if probes.fold(0u64, u64::saturating_add) > PROBES {
            return None;
        }
        let mut removed = 0;
        for (global, aset) in [(false, false), (true, false), (true, true)] {
            for shift in (0..64u32).filter(|n| sizes[usize::from(global)] >> n & 1 == 1) {
                for page in from >> shift..=to >> shift {
                    let world = scope.worlds.trailing_zeros() as u64;
                    let regime = Regime { world: World::NsEl1, vmid, asid, aset };
                    let mut key = TlbKey::new(regime, global, shift as u8, 0);
                    key.page = page;
                    key.tag |= world << 40;
                    let sets = &mut self.sets;
                    if sets.peek(&key).is_some_and(|entry| scope.covers(&key, entry)) {
                        sets.remove(&key);
                        self.sizes[usize::from(global)].remove(shift);
                        removed += 1;
                    }
                }
            }
        }
        Some(removed)
    }

    fn invalidate_by_scan(&mut self, scope: &Scope) -> u64 {
        let mut removed = 0;
        let (sizes, pieces) = (&mut self.sizes, &mut self.pieces);
        self.sets.remove_if(|key, entry| {
            let drop = scope.covers(key, entry);
            if drop {
                sizes[usize::from(key.global())].remove(key.shift());
                *pieces -= u32::from(entry.is_piece());
                removed += 1;
            }
            drop
        });
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: Regime = Regime { world: World::NsEl1, vmid: 0, asid: 7, aset: false };

    fn mapping(output: u64, shift: u8, level: i8, global: bool) -> Mapping {
        Mapping {
            output,
            shift,
            span: shift,
            granule: Granule::G4K,
            level,
            global,
            uncached: false,
            permissions: Permissions::all(),
            possible: Permissions::all(),
            attrs: MemAttrs::WRITE_BACK,
            fwb: None,
        }
    }

    fn va(asid: Asid, from: u64, to: u64) -> Scope {
        Scope { vmid: Some(0), asid, range: Some((from, to)), ..Scope::worlds(&[World::NsEl1]) }
    }

    #[test]
    fn finds_pages_blocks_and_globals() {
        let mut tlb = Tlb::new(Shape::lru(64));
        tlb.insert(R, 0x1234, mapping(0x8000_0000, 12, 3, false));
        tlb.insert(R, 0x40_0000, mapping(0x9000_0000, 21, 2, false));
        tlb.insert(R, 0x8000_0000, mapping(0xa000_0000, 30, 1, true));
        assert_eq!(tlb.get(R, 0x1fff).map(|m| m.output), Some(0x8000_0000));
        assert_eq!(tlb.get(R, 0x5f_ffff).map(|m| m.output), Some(0x9000_0000));
        assert_eq!(tlb.get(R, 0x60_0000), None);
        let other = Regime { asid: 8, ..R };
        assert_eq!(tlb.get(other, 0x1234), None);
        assert_eq!(tlb.get(other, 0xbfff_ffff).map(|m| m.output), Some(0xa000_0000));
        assert_eq!(tlb.get(Regime { vmid: 1, ..R }, 0x8000_0000), None);
        assert_eq!(tlb.get(Regime { aset: true, ..R }, 0x8000_0000), None);
        assert!(tlb.get(Regime { aset: true, ..R }, 0x1234).is_some(), "not global: the set does not matter");
    }

    #[test]
    fn invalidates_exactly_its_scope() {
        let fill = || {
            let mut tlb = Tlb::new(Shape::lru(64));
            tlb.insert(R, 0x1000, mapping(1 << 12, 12, 3, false));
            tlb.insert(R, 0x2000, mapping(2 << 12, 12, 3, true));
            tlb.insert(R, 0x20_0000, mapping(3 << 21, 21, 2, false));
            tlb.insert(Regime { asid: 8, ..R }, 0x1000, mapping(4 << 12, 12, 3, false));
            tlb.insert(Regime { aset: true, ..R }, 0x2000, mapping(5 << 12, 12, 3, true));
            tlb
        };
        let left = |scope: &Scope| {
            let mut tlb = fill();
            let n = tlb.invalidate(scope);
            let mut scanned = fill();
            assert_eq!(scanned.invalidate_by_scan(scope), n, "both ways agree on {scope:?}");
            let left: Vec<_> = tlb.sets.iter().map(|(_, m)| m.output).collect();
            assert_eq!(left, scanned.sets.iter().map(|(_, m)| m.output).collect::<Vec<_>>());
            left.len()
        };
        assert_eq!(left(&Scope::worlds(&[World::NsEl1])), 0);
        assert_eq!(left(&Scope::worlds(&[World::El2])), 5);
        assert_eq!(left(&va(Asid::OrGlobal(7), 0x1000, 0x2fff)), 2);
        assert_eq!(left(&va(Asid::Only(7), 0, u64::MAX)), 3);
        assert_eq!(left(&va(Asid::Any, 0x1000, 0x1fff)), 3);
        assert_eq!(left(&va(Asid::OrGlobal(7), 0x2f_f000, 0x2f_ffff)), 4, "any page of a block removes it");
        let level3 =
            Scope { level: Some(3), granule: Some(Granule::G4K), ..va(Asid::OrGlobal(7), 0, 0x3f_ffff) };
        assert_eq!(left(&level3), 2);
        assert_eq!(left(&Scope { granule: Some(Granule::G64K), ..level3 }), 5);
    }

    #[test]
    fn sizes_are_counted() {
        let mut tlb = Tlb::new(Shape::lru(4));
        for n in 0..100 {
            tlb.insert(R, n << 12, mapping(n << 12, 12, 3, false));
        }
        assert_eq!(tlb.sizes[0].count[12] as usize, tlb.sets.iter().count());
        tlb.invalidate(&Scope::worlds(&[World::NsEl1]));
        assert_eq!(tlb.sizes[0].mask, 0);
    }
}
