//! A set-associative cache with least-recently-used replacement. Deterministic: its content is a function of the calls.

use serde::{Deserialize, Serialize};

/// Entries of one set.
const WAYS: usize = 4;

/// What entries are found by.
pub(crate) trait Key: Copy + Eq {
    /// Spreads keys over the sets; the upper bits count.
    fn hash(&self) -> u64;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Slot<K, V> {
    /// When it was last used; never 0.
    stamp: u64,
    key: K,
    value: V,
}

/// The cache. Without entries it remembers nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sets<K, V> {
    slots: Vec<Option<Slot<K, V>>>,
    /// log2 of the number of sets.
    bits: u32,
    clock: u64,
    used: usize,
}

impl<K: Key, V> Sets<K, V> {
    /// At least `entries` entries, or none for 0.
    pub(crate) fn new(entries: u32) -> Self {
        let bits = (entries as usize).div_ceil(WAYS).max(1).next_power_of_two().trailing_zeros();
        let len = if entries == 0 { 0 } else { WAYS << bits };
        Sets { slots: (0..len).map(|_| None).collect(), bits, clock: 0, used: 0 }
    }

    /// The first slot of the key's set.
    #[inline]
    fn set(&self, key: &K) -> usize {
        // The multiplier is 2^64 divided by the golden ratio: neighbouring keys fall into different sets.
        let hash = key.hash().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let set = if self.bits == 0 { 0 } else { (hash >> (64 - self.bits)) as usize };
        set * WAYS
    }

    #[inline]
    fn ways(&mut self, key: &K) -> &mut [Option<Slot<K, V>>] {
        let first = self.set(key);
        self.slots.get_mut(first..first + WAYS).unwrap_or_default()
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Whether nothing can ever be in it.
    pub(crate) fn is_disabled(&self) -> bool {
        self.slots.is_empty()
    }

    /// Finds an entry and leaves its age alone.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        let first = self.set(key);
        let ways = self.slots.get(first..first + WAYS)?;
        ways.iter().flatten().find(|slot| slot.key == *key).map(|slot| &slot.value)
    }

    /// Finds an entry and marks it as used.
    #[inline]
    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        self.clock += 1;
        let clock = self.clock;
        let slot = self.ways(key).iter_mut().flatten().find(|slot| slot.key == *key)?;
        slot.stamp = clock;
        Some(&slot.value)
    }

    /// Puts an entry in, and gives what had to go: the older one of the same key, or the least recently used.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        self.clock += 1;
        let stamp = self.clock;
        let ways = self.ways(&key);
        let same = ways.iter().position(|way| way.as_ref().is_some_and(|slot| slot.key == key));
        let free = || ways.iter().position(Option::is_none);
        let oldest = || (0..ways.len()).min_by_key(|&n| ways[n].as_ref().map_or(0, |slot| slot.stamp));
        let way = same.or_else(free).or_else(oldest)?;
        let old = ways[way].replace(Slot { stamp, key, value });
        if old.is_none() {
            self.used += 1;
        }
        old.map(|slot| (slot.key, slot.value))
    }

    /// Removes one entry.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let way = self.ways(key).iter_mut().find(|way| way.as_ref().is_some_and(|slot| slot.key == *key))?;
        let slot = way.take()?;
        self.used -= 1;
        Some(slot.value)
    }

    /// Removes every entry that `drop` says; `drop` sees each of them once.
    pub(crate) fn remove_if(&mut self, mut drop: impl FnMut(&K, &V) -> bool) {
        if self.used == 0 {
            return;
        }
        for way in &mut self.slots {
            if way.as_ref().is_some_and(|slot| drop(&slot.key, &slot.value)) {
                *way = None;
                self.used -= 1;
            }
        }
    }

    /// Every entry, in the order of the slots.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.slots.iter().flatten().map(|slot| (&slot.key, &slot.value))
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
