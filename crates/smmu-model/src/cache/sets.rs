//! A set-associative cache, or one that grows: deterministic, its content is a function of the calls.
//!
//! A limited cache keeps an entry in one of the [`WAYS`] of its key's set, and replaces one of them if there is no room.
//! An unlimited one uses the sets after it, too, and doubles before they are half full, up to [`Shape::up_to`] slots; only
//! then does it replace. A look-up reads at most [`REACH`] sets, whatever the guest put in.

use serde::{Deserialize, Serialize};

use crate::config::{Config, Replace};

/// Entries of one set.
const WAYS: usize = 4;
/// Sets that an entry of an unlimited cache may be in, from its own on.
const REACH: usize = 16;
/// Slots that an unlimited cache begins with.
const FLOOR: usize = 256;

/// What entries are found by.
pub(crate) trait Key: Copy + Eq {
    /// No entry has this key.
    const NONE: Self;

    /// Spreads keys over the sets; the upper bits count.
    fn hash(&self) -> u64;
}

/// Which of a set's entries was used after which: bit `4 * i + j` says that `i` was used after `j`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Ages(u16);

impl Ages {
    /// The entry is the last that was used.
    #[inline]
    fn used(&mut self, way: usize) {
        /// Of each entry: the bits that say what it was used after, and those that say what was used after it.
        const BITS: [(u16, u16); WAYS] =
            [(0x000f, 0x1111), (0x00f0, 0x2222), (0x0f00, 0x4444), (0xf000, 0x8888)];
        let (after, before) = BITS[way % WAYS];
        self.0 = (self.0 | after) & !before;
    }

    /// How many of the others were used before the entry.
    fn before(self, way: usize) -> u32 {
        (self.0 >> (way * WAYS) & 0xf).count_ones()
    }

    /// The entry of a full set that was not used for longest.
    fn oldest(self) -> usize {
        (0..WAYS).find(|&way| self.before(way) == 0).unwrap_or(0)
    }

    /// All, the oldest first.
    fn in_order(self) -> [usize; WAYS] {
        let mut ways = std::array::from_fn(|way| way);
        ways.sort_by_key(|&way| self.before(way));
        ways
    }
}

/// Sizes and replacement, as the configuration has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    entries: u32,
    random: Option<u64>,
    ceiling: usize,
}

impl Shape {
    /// `entries` of the configuration's caches; 0 for none, [`Config::UNLIMITED`].
    pub(crate) fn new(config: &Config, entries: u32) -> Self {
        let random = (config.replace == Replace::Random).then_some(config.seed);
        Shape { entries, random, ceiling: 1 << 18 }
    }

    /// Slots that an unlimited cache grows to, a power of two: a guest can not make it hold more.
    pub(crate) fn up_to(self, ceiling: usize) -> Self {
        Shape { ceiling, ..self }
    }

    /// Least recently used goes.
    #[cfg(test)]
    pub(crate) fn lru(entries: u32) -> Self {
        Shape { entries, random: None, ceiling: 1 << 18 }
    }
}

/// The cache. Without entries it remembers nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sets<K, V> {
    /// What is looked at to find an entry; the values are elsewhere, so that a set's keys are close together.
    keys: Vec<K>,
    values: Vec<V>,
    /// Of each set.
    ages: Vec<Ages>,
    /// Of an unlimited cache, for each set: entries whose way from their own set leads past it.
    passed: Vec<u32>,
    /// log2 of the number of sets.
    bits: u32,
    used: usize,
    /// State of the generator that says which entry goes; without, the least recently used.
    random: Option<u64>,
    /// Slots that it may grow to.
    ceiling: usize,
    /// Goes up when an entry is replaced, removed or moved: until then what [`Sets::find`] found is where it was.
    #[serde(skip)]
    changes: u64,
}

impl<K: Key, V: Copy + Default> Sets<K, V> {
    /// At least as many entries as `shape` says.
    pub(crate) fn new(shape: Shape) -> Self {
        let unlimited = shape.entries == Config::UNLIMITED;
        let entries = if unlimited { FLOOR } else { shape.entries as usize };
        let bits = entries.div_ceil(WAYS).max(1).next_power_of_two().trailing_zeros();
        let len = if entries == 0 { 0 } else { WAYS << bits };
        Sets {
            keys: vec![K::NONE; len],
            values: vec![V::default(); len],
            ages: vec![Ages::default(); len / WAYS],
            passed: vec![0; if unlimited { len / WAYS } else { 0 }],
            bits,
            used: 0,
            random: shape.random,
            ceiling: if unlimited { shape.ceiling } else { 0 },
            changes: 0,
        }
    }

    /// The first entry of the key's set.
    #[inline]
    fn set(&self, key: &K) -> usize {
        // The multiplier is 2^64 divided by the golden ratio: neighbouring keys fall into different sets.
        let hash = key.hash().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 1 >> (63 - self.bits)) as usize * WAYS
    }

    /// The first entry of the next set.
    #[inline]
    fn after(&self, first: usize) -> usize {
        (first + WAYS) & (self.keys.len() - 1)
    }

    /// Where the key's entry is.
    #[inline]
    pub(crate) fn find(&self, key: &K) -> Option<usize> {
        let mut first = self.set(key);
        for _ in 0..REACH {
            let ways = self.keys.get(first..first + WAYS)?;
            if let Some(way) = ways.iter().position(|other| other == key) {
                return Some(first + way);
            }
            // Nobody went past this set: it is nowhere else.
            if self.passed.get(first / WAYS).is_none_or(|&passed| passed == 0) {
                return None;
            }
            first = self.after(first);
        }
        None
    }

    /// Whether there is nothing in it.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Whether nothing can ever be in it.
    #[inline]
    pub(crate) fn is_disabled(&self) -> bool {
        self.keys.is_empty()
    }

    /// How often an entry was replaced, removed or moved.
    #[inline]
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Finds an entry and leaves its age alone.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        self.find(key).map(|n| &self.values[n])
    }

    /// Finds an entry and marks it as used.
    #[inline]
    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        let n = self.find(key)?;
        self.touch(n);
        Some(&self.values[n])
    }

    /// The entry that [`Sets::find`] found.
    #[inline]
    pub(crate) fn at(&self, n: usize) -> &V {
        &self.values[n]
    }

    /// Marks the entry that [`Sets::find`] found as used.
    #[inline]
    pub(crate) fn touch(&mut self, n: usize) {
        self.ages[n / WAYS].used(n % WAYS);
    }

    /// Puts an entry in, and gives what had to go: the older one of the same key, or another.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        if self.is_disabled() {
            return None;
        }
        if let Some(n) = self.find(&key) {
            self.touch(n);
            self.changes += 1;
            return Some((key, std::mem::replace(&mut self.values[n], value)));
        }
        while self.keys.len() < self.ceiling {
            if self.used * 2 < self.keys.len() && self.place(key, value).is_some() {
                return None;
            }
            self.grow();
        }
        if self.place(key, value).is_some() {
            return None;
        }
        let victim = self.victim(&key);
        let gone = (self.keys[victim], self.values[victim]);
        self.remove_at(victim);
        self.place(key, value);
        Some(gone)
    }

    /// Puts an entry where there is room for it, if there is.
    fn place(&mut self, key: K, value: V) -> Option<usize> {
        let home = self.set(&key);
        let mut first = home;
        for _ in 0..if self.passed.is_empty() { 1 } else { REACH } {
            if let Some(n) = (first..first + WAYS).find(|&n| self.keys[n] == K::NONE) {
                (self.keys[n], self.values[n]) = (key, value);
                self.touch(n);
                self.used += 1;
                self.for_each_passed(home, n, |passed| *passed += 1);
                return Some(n);
            }
            first = self.after(first);
        }
        None
    }

    /// Visits the counters of the sets between a key's own and the one it is in.
    fn for_each_passed(&mut self, home: usize, n: usize, visit: impl Fn(&mut u32)) {
        let mut first = home;
        while first != n / WAYS * WAYS {
            visit(&mut self.passed[first / WAYS]);
            first = self.after(first);
        }
    }

    /// Which entry of the full set of `key` goes.
    fn victim(&mut self, key: &K) -> usize {
        let first = self.set(key);
        match &mut self.random {
            None => first + self.ages[first / WAYS].oldest(),
            Some(state) => {
                // SplitMix64.
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                first + ((z ^ z >> 31) % WAYS as u64) as usize
            }
        }
    }

    /// Doubles the cache.
    fn grow(&mut self) {
        let len = self.keys.len() * 2;
        let keys = std::mem::replace(&mut self.keys, vec![K::NONE; len]);
        let values = std::mem::replace(&mut self.values, vec![V::default(); len]);
        let ages = std::mem::replace(&mut self.ages, vec![Ages::default(); len / WAYS]);
        self.passed = vec![0; len / WAYS];
        self.bits += 1;
        self.used = 0;
        self.changes += 1;
        for (first, ages) in (0..).step_by(WAYS).zip(ages) {
            // Those of one set that come to be in one set again keep their order.
            for n in ages.in_order().into_iter().map(|way| first + way).filter(|&n| keys[n] != K::NONE) {
                // With twice the room this fails only for keys made to collide: those are forgotten, as if replaced.
                self.place(keys[n], values[n]);
            }
        }
    }

    fn remove_at(&mut self, n: usize) {
        if !self.passed.is_empty() {
            let home = self.set(&self.keys[n]);
            self.for_each_passed(home, n, |passed| *passed -= 1);
        }
        self.keys[n] = K::NONE;
        self.used -= 1;
        self.changes += 1;
    }

    /// Removes one entry.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let n = self.find(key)?;
        self.remove_at(n);
        Some(self.values[n])
    }

    /// Removes every entry that `drop` says; `drop` sees each of them once.
    pub(crate) fn remove_if(&mut self, mut drop: impl FnMut(&K, &V) -> bool) {
        let mut left = self.used;
        for n in 0..self.keys.len() {
            if left == 0 {
                break;
            }
            if self.keys[n] != K::NONE {
                left -= 1;
                if drop(&self.keys[n], &self.values[n]) {
                    self.remove_at(n);
                }
            }
        }
    }

    /// Every entry, in the order of the sets.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.keys.iter().zip(&self.values).filter(|(key, _)| **key != K::NONE)
    }
}

/// StreamIDs, with an index of 24 bits or a few bits more above or below.
impl Key for u64 {
    const NONE: u64 = u64::MAX;

    #[inline]
    fn hash(&self) -> u64 {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_and_forgets_the_least_recently_used() {
        let mut cache = Sets::<u64, u32>::new(Shape::lru(4));
        for n in 0..4 {
            assert_eq!(cache.insert(n, n as u32), None);
        }
        assert_eq!(cache.get(&0), Some(&0));
        assert_eq!(cache.insert(9, 9), Some((1, 1)), "1 is the oldest: 0 was used since");
        assert_eq!(cache.insert(9, 10), Some((9, 9)), "the same key is replaced in place");
        assert_eq!(cache.remove(&9), Some(10));
        assert_eq!(cache.get(&9), None);
        cache.remove_if(|_, v| *v == 3);
        assert_eq!(cache.iter().count(), 2);
        assert!(!cache.is_empty());
    }

    #[test]
    fn no_entries_no_memory() {
        let mut cache = Sets::<u64, u32>::new(Shape::lru(0));
        assert_eq!(cache.insert(1, 1), None);
        assert_eq!(cache.get(&1), None);
        assert_eq!(cache.remove(&1), None);
        assert!(cache.is_empty());
    }

    #[test]
    fn consecutive_keys_fill_most_of_it() {
        let mut cache = Sets::<u64, u32>::new(Shape::lru(1024));
        for n in 0..1024u64 {
            cache.insert(n, 0);
        }
        assert!(cache.iter().count() > 900);
    }

    #[test]
    fn random_replacement_follows_its_seed() {
        let run = |seed| {
            let mut cache = Sets::<u64, u32>::new(Shape { random: Some(seed), ..Shape::lru(4) });
            (0..100).filter_map(|n| cache.insert(n, 0)).map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert_ne!(run(1), (0..96).collect::<Vec<_>>(), "not the oldest first");
    }

    #[test]
    fn unlimited_forgets_nothing() {
        let mut cache = Sets::<u64, u32>::new(Shape::lru(Config::UNLIMITED));
        let key = |n: u64| n.wrapping_mul(0x1234_5678_9abc_def1) >> 3;
        for n in 0..50_000 {
            assert_eq!(cache.insert(key(n), n as u32), None);
        }
        for n in (0..50_000).step_by(2) {
            assert_eq!(cache.remove(&key(n)), Some(n as u32));
        }
        cache.remove_if(|_, v| v % 4 == 1);
        for n in 0..50_000 {
            assert_eq!(cache.peek(&key(n)), (n % 4 == 3).then_some(&(n as u32)));
        }
        assert_eq!(cache.iter().count(), 12_500);
        cache.remove_if(|_, _| true);
        assert!(cache.is_empty() && cache.passed.iter().all(|&n| n == 0));
    }

    /// Every key in one set: what a guest that knows the hash could do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Same(u64);

    impl Key for Same {
        const NONE: Same = Same(u64::MAX);

        fn hash(&self) -> u64 {
            7
        }
    }

    #[test]
    fn colliding_keys_stay_within_reach_and_bounds() {
        let mut cache = Sets::<Same, ()>::new(Shape::lru(Config::UNLIMITED));
        for n in 0..200 {
            cache.insert(Same(n), ());
        }
        assert_eq!(cache.keys.len(), 1 << 18);
        assert_eq!(cache.iter().count(), REACH * WAYS);
        assert!(cache.peek(&Same(199)).is_some() && cache.peek(&Same(1000)).is_none());
    }
}
