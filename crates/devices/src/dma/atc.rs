//! An address translation cache (PCIe 4.0 §10.1): what a device keeps of the answers to its Translation Requests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use smmu_model::{AtcInvalidation, AtsRequest, AtsTranslation};

use crate::agent::Time;

/// Which entry goes when the cache is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replacement {
    /// The least recently used.
    Lru,
    /// One that a generator with this seed picks.
    Random(u64),
}

/// What an invalidation removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retention {
    /// What it names, and nothing else: as much stays as may stay.
    KeepAll,
    /// Everything of the PASIDs that it names, as simple devices do.
    Honest,
}

/// What a device does about a translation that does not let it do what it wants, when page requests are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Denied {
    /// It makes the access untranslated: the SMMU has its say, and records the fault.
    Untranslated,
    /// It gives up.
    Abort,
}

/// The translation cache of a device, and how it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AtcConfig {
    /// Entries; 0 for none: every access asks. `u32::MAX` is as good as unlimited.
    pub entries: u32,
    /// Replacement.
    pub replacement: Replacement,
    /// Retention.
    pub retention: Retention,
    /// Without access and without page requests.
    pub denied: Denied,
    /// From the arrival of an invalidation to its effect, in ns.
    pub invalidate: Time,
    /// From its effect, and the end of the last access that used what it removed, to its completion. `None`: the device
    /// never says that it is done.
    pub confirm: Option<Time>,
}

impl Default for AtcConfig {
    fn default() -> Self {
        Self {
            entries: 1024,
            replacement: Replacement::Lru,
            retention: Retention::KeepAll,
            denied: Denied::Untranslated,
            invalidate: 200,
            confirm: Some(200),
        }
    }
}

/// What an entry is found by. In this order the entries of one PASID and size lie by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Key {
    ssid: Option<u32>,
    privileged: bool,
    /// log2 of its bytes.
    size: u8,
    base: u64,
}

impl Key {
    fn last(&self) -> u64 {
        self.base | span(self.size)
    }
}

/// Bytes of a range, less one.
fn span(size: u8) -> u64 {
    1u64.checked_shl(size.into()).map_or(u64::MAX, |bytes| bytes - 1)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    translation: AtsTranslation,
    /// When it was last used, by a count of uses.
    stamp: u64,
}

/// The cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Atc {
    capacity: u32,
    replacement: Replacement,
    retention: Retention,
    #[serde(with = "pairs")]
    entries: BTreeMap<Key, Entry>,
    /// Keys by stamp: the first is the least recently used.
    by_age: BTreeMap<u64, Key>,
    /// Entries of each size.
    sizes: BTreeMap<u8, u32>,
    clock: u64,
}

impl Atc {
    pub(super) fn new(config: &AtcConfig) -> Self {
        Self {
            capacity: config.entries,
            replacement: config.replacement,
            retention: config.retention,
            entries: BTreeMap::new(),
            by_age: BTreeMap::new(),
            sizes: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The translated address for a request that the cache can answer, and the bytes from there on that go with it.
    pub(super) fn look_up(&mut self, request: &AtsRequest) -> Option<(u64, u64)> {
        let AtsRequest { ssid, privileged, address, .. } = *request;
        let mut sizes = self.sizes.keys();
        let key = sizes.find_map(|&size| {
            let key = Key { ssid, privileged, size, base: address & !span(size) };
            self.entries.contains_key(&key).then_some(key)
        })?;
        let entry = self.entries.get_mut(&key)?;
        if !permits(&entry.translation, request) {
            return None;
        }
        self.clock += 1;
        self.by_age.remove(&std::mem::replace(&mut entry.stamp, self.clock));
        self.by_age.insert(self.clock, key);
        Some(place(&entry.translation, address))
    }

    /// Keeps an answer.
    pub(super) fn insert(&mut self, request: &AtsRequest, translation: &AtsTranslation) {
        if self.capacity == 0 || !translation.grants() {
            return;
        }
        let AtsRequest { ssid, privileged, address, .. } = *request;
        let key = Key { ssid, privileged, size: translation.size, base: address & !span(translation.size) };
        self.remove(&key);
        while self.entries.len() >= self.capacity as usize {
            let Some(victim) = self.victim() else { break };
            self.remove(&victim);
        }
        self.clock += 1;
        self.entries.insert(key, Entry { translation: *translation, stamp: self.clock });
        self.by_age.insert(self.clock, key);
        *self.sizes.entry(key.size).or_default() += 1;
    }

    fn victim(&mut self) -> Option<Key> {
        let (oldest, _) = self.by_age.first_key_value()?;
        let from = match &mut self.replacement {
            Replacement::Lru => *oldest,
            Replacement::Random(state) => {
                // SplitMix64: a stamp between the oldest and now, and the entry that follows it.
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                oldest + (z ^ z >> 31) % (self.clock - oldest + 1)
            }
        };
        self.by_age.range(from..).next().or_else(|| self.by_age.first_key_value()).map(|(_, &key)| key)
    }

    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.by_age.remove(&entry.stamp);
        if let Some(count) = self.sizes.get_mut(&key.size) {
            *count -= 1;
            if *count == 0 {
                self.sizes.remove(&key.size);
            }
        }
    }

    /// Removes what an invalidation names, and says how many entries that were.
    pub(super) fn invalidate(&mut self, invalidation: &AtcInvalidation) -> usize {
        let doomed: Vec<Key> = if invalidation.global || self.retention == Retention::Honest {
            let named = |key: &Key| match self.retention {
                Retention::KeepAll => covers(invalidation, key.ssid, key.base, key.last()),
                Retention::Honest => concerns(invalidation, key.ssid),
            };
            self.entries.keys().filter(|key| named(key)).copied().collect()
        } else {
            let mut doomed = Vec::new();
            for (&size, privileged) in self.sizes.keys().flat_map(|size| [(size, false), (size, true)]) {
                let key = |base| Key { ssid: invalidation.ssid, privileged, size, base };
                let range = key(invalidation.address & !span(size))..=key(invalidation.last);
                doomed.extend(self.entries.range(range).map(|(key, _)| *key));
            }
            doomed
        };
        doomed.iter().for_each(|key| self.remove(key));
        doomed.len()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.by_age.clear();
        self.sizes.clear();
    }
}

/// Whether a translation lets the request have what it asks for.
pub(super) fn permits(translation: &AtsTranslation, request: &AtsRequest) -> bool {
    let AtsTranslation { read, write, execute, .. } = *translation;
    match (request.no_write, request.execute) {
        (false, _) => write,
        (true, true) => execute,
        (true, false) => read,
    }
}

/// Where `address` goes, and how many bytes from there on go with it.
pub(super) fn place(translation: &AtsTranslation, address: u64) -> (u64, u64) {
    let offset = address & span(translation.size);
    (translation.address | offset, (span(translation.size) - offset).saturating_add(1))
}

/// Whether an invalidation is about this PASID, or none.
fn concerns(invalidation: &AtcInvalidation, ssid: Option<u32>) -> bool {
    if invalidation.global { ssid.is_some() } else { ssid == invalidation.ssid }
}

/// Whether an invalidation is about anything in this range.
pub(super) fn covers(invalidation: &AtcInvalidation, ssid: Option<u32>, first: u64, last: u64) -> bool {
    concerns(invalidation, ssid) && first <= invalidation.last && invalidation.address <= last
}

/// Maps with keys that are no strings, as lists of pairs.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(ssid: Option<u32>, address: u64, no_write: bool) -> AtsRequest {
        AtsRequest { sid: 8, ssid, address, no_write, execute: false, privileged: false }
    }

    fn translation(address: u64, size: u8, write: bool) -> AtsTranslation {
        AtsTranslation { address, size, read: true, write, execute: false, privileged: false }
    }

    fn invalidation(ssid: Option<u32>, global: bool, address: u64, last: u64) -> AtcInvalidation {
        AtcInvalidation { id: 0, sid: 8, ssid, global, address, last }
    }

    fn filled(retention: Retention) -> Atc {
        let mut atc = Atc::new(&AtcConfig { retention, ..AtcConfig::default() });
        for (ssid, address, to, size) in
            [(None, 0x1000, 0xa000, 12), (Some(1), 0x1000, 0xb000, 12), (Some(2), 0x20_1000, 0x40_0000, 21)]
        {
            atc.insert(&request(ssid, address, true), &translation(to, size, false));
        }
        atc
    }

    #[test]
    fn finds_by_pasid_address_and_right() {
        let mut atc = filled(Retention::KeepAll);
        assert_eq!(atc.look_up(&request(None, 0x1234, true)), Some((0xa234, 0xdcc)));
        assert_eq!(atc.look_up(&request(Some(1), 0x1fff, true)), Some((0xbfff, 1)));
        assert_eq!(atc.look_up(&request(Some(2), 0x3f_ffff, true)), Some((0x5f_ffff, 1)));
        assert_eq!(atc.look_up(&request(Some(3), 0x1234, true)), None);
        assert_eq!(atc.look_up(&request(None, 0x2000, true)), None);
        assert_eq!(atc.look_up(&request(None, 0x1234, false)), None, "it may not write");
        atc.insert(&request(None, 0x1000, false), &translation(0xa000, 12, true));
        assert!(atc.look_up(&request(None, 0x1234, false)).is_some());
        assert_eq!(atc.len(), 3, "in place of the other");
    }

    #[test]
    fn invalidation_removes_what_it_names_and_no_more() {
        let cases = [
            (invalidation(None, false, 0x1000, 0x1fff), [false, true, true]),
            (invalidation(None, false, 0x2000, 0x2fff), [true, true, true]),
            (invalidation(Some(1), false, 0, u64::MAX), [true, false, true]),
            (invalidation(Some(2), false, 0x30_0000, 0x30_0fff), [true, true, false]),
            (invalidation(Some(7), true, 0, 0xffff), [true, false, true]),
            (invalidation(None, false, 0, u64::MAX), [false, true, true]),
        ];
        for (invalidation, left) in cases {
            let mut atc = filled(Retention::KeepAll);
            atc.invalidate(&invalidation);
            let found = [(None, 0x1000), (Some(1), 0x1000), (Some(2), 0x20_0000)]
                .map(|(ssid, address)| atc.look_up(&request(ssid, address, true)).is_some());
            assert_eq!(found, left, "{invalidation:?}");
            assert_eq!(atc.by_age.len(), atc.len());
        }
        let mut atc = filled(Retention::Honest);
        assert_eq!(atc.invalidate(&invalidation(Some(2), false, 0, 0xfff)), 1, "the whole PASID");
    }

    #[test]
    fn is_bounded() {
        for replacement in [Replacement::Lru, Replacement::Random(7)] {
            let mut atc = Atc::new(&AtcConfig { entries: 4, replacement, ..AtcConfig::default() });
            for page in 0..100u64 {
                atc.insert(&request(None, page << 12, true), &translation(page << 12, 12, false));
                atc.look_up(&request(None, 0, true));
                assert!(atc.len() <= 4 && atc.by_age.len() == atc.len());
            }
            if replacement == Replacement::Lru {
                assert!(atc.look_up(&request(None, 0, true)).is_some(), "used all the time");
                assert!(atc.look_up(&request(None, 99 << 12, true)).is_some());
                assert!(atc.look_up(&request(None, 90 << 12, true)).is_none());
            }
        }
        let mut none = Atc::new(&AtcConfig { entries: 0, ..AtcConfig::default() });
        none.insert(&request(None, 0, true), &translation(0, 12, false));
        assert_eq!(none.len(), 0);
    }
}
