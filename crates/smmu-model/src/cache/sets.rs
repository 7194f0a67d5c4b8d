//! A set-associative cache with least-recently-used replacement. Deterministic: its content is a function of the calls.

use serde::{Deserialize, Serialize};

/// Entries of one set.
const WAYS: usize = 4;

/// What entries are found by.
pub(crate) trait Key: Copy + Default + Eq {
    /// Spreads keys over the sets; the upper bits count.
    fn hash(&self) -> u64;
}

/// What is looked at to find an entry; the values are elsewhere, so that a set's tags are close together.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Tag<K> {
    key: K,
    /// When the entry was last used; 0 for no entry.
    stamp: u64,
}

/// The cache. Without entries it remembers nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sets<K, V> {
    tags: Vec<Tag<K>>,
    values: Vec<V>,
    /// log2 of the number of sets.
    bits: u32,
    clock: u64,
    used: usize,
}

impl<K: Key, V: Copy + Default> Sets<K, V> {
    /// At least `entries` entries, or none for 0.
    pub(crate) fn new(entries: u32) -> Self {
        let bits = (entries as usize).div_ceil(WAYS).max(1).next_power_of_two().trailing_zeros();
        let len = if entries == 0 { 0 } else { WAYS << bits };
        Sets {
            tags: vec![Tag { key: K::default(), stamp: 0 }; len],
            values: vec![V::default(); len],
            bits,
            clock: 0,
            used: 0,
        }
    }

    /// The first entry of the key's set.
    #[inline]
    fn set(&self, key: &K) -> usize {
        // The multiplier is 2^64 divided by the golden ratio: neighbouring keys fall into different sets.
        let hash = key.hash().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 1 >> (63 - self.bits)) as usize * WAYS
    }

    /// Where the key's entry is.
    #[inline]
    pub(crate) fn find(&self, key: &K) -> Option<usize> {
        let first = self.set(key);
        let ways = self.tags.get(first..first + WAYS)?;
        ways.iter().position(|tag| tag.key == *key && tag.stamp != 0).map(|way| first + way)
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Whether nothing can ever be in it.
    pub(crate) fn is_disabled(&self) -> bool {
        self.tags.is_empty()
    }

    /// Finds an entry and leaves its age alone.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        self.find(key).map(|n| &self.values[n])
    }

    /// Finds an entry and marks it as used.
    #[inline]
    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        let n = self.find(key)?;
        Some(self.at(n))
    }

    /// The entry that [`Sets::find`] found, which counts as a use.
    #[inline]
    pub(crate) fn at(&mut self, n: usize) -> &V {
        self.clock += 1;
        self.tags[n].stamp = self.clock;
        &self.values[n]
    }

    /// Puts an entry in, and gives what had to go: the older one of the same key, or the least recently used.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        if self.is_disabled() {
            return None;
        }
        let first = self.set(&key);
        // An entry that is not there has stamp 0 and is the oldest of all.
        let oldest = (first..first + WAYS).min_by_key(|&n| self.tags[n].stamp).unwrap_or(first);
        let n = self.find(&key).unwrap_or(oldest);
        self.clock += 1;
        let old = std::mem::replace(&mut self.tags[n], Tag { key, stamp: self.clock });
        let old_value = std::mem::replace(&mut self.values[n], value);
        if old.stamp == 0 {
            self.used += 1;
            return None;
        }
        Some((old.key, old_value))
    }

    /// Removes one entry.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let n = self.find(key)?;
        self.tags[n].stamp = 0;
        self.used -= 1;
        Some(self.values[n])
    }

    /// Removes every entry that `drop` says; `drop` sees each of them once.
    pub(crate) fn remove_if(&mut self, mut drop: impl FnMut(&K, &V) -> bool) {
        if self.used == 0 {
            return;
        }
        for (tag, value) in self.tags.iter_mut().zip(&self.values) {
            if tag.stamp != 0 && drop(&tag.key, value) {
                tag.stamp = 0;
                self.used -= 1;
            }
        }
    }

    /// Every entry, in the order of the sets.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let entries = self.tags.iter().zip(&self.values).filter(|(tag, _)| tag.stamp != 0);
        entries.map(|(tag, value)| (&tag.key, value))
    }
}

impl Key for u64 {
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
        let mut cache = Sets::<u64, u32>::new(4);
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
        let mut cache = Sets::<u64, u32>::new(0);
        assert_eq!(cache.insert(1, 1), None);
        assert_eq!(cache.get(&1), None);
        assert_eq!(cache.remove(&1), None);
        assert!(cache.is_empty());
    }

    #[test]
    fn consecutive_keys_fill_most_of_it() {
        let mut cache = Sets::<u64, u32>::new(1024);
        for n in 0..1024u64 {
            cache.insert(n, 0);
        }
        assert!(cache.iter().count() > 900);
    }
}
