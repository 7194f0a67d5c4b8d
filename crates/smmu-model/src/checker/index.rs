//! What the checker looks up with every store and transaction: by hash, and never in the order of a hash.

use std::collections::{BTreeSet, HashMap, VecDeque, hash_map};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

/// A map that nobody goes through, only looks into.
pub(super) type Map<K, V> = HashMap<K, V, Seed>;

/// What hashes begin with. A guest, which chooses many of the keys, cannot know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Seed(RandomState::new().hash_one(0u64))
    }
}

impl BuildHasher for Seed {
    type Hasher = Fold;

    #[inline]
    fn build_hasher(&self) -> Fold {
        Fold(self.0)
    }
}

/// Multiplies each word in, and folds the product's halves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Ids by a key, ascending. Nearly always there is one.
#[derive(Debug)]
enum Ids {
    One(u64),
    Many(BTreeSet<u64>),
}

/// Which entries a key leads to.
#[derive(Debug)]
pub(super) struct Index<K>(Map<K, Ids>);

impl<K> Default for Index<K> {
    fn default() -> Self {
        Index(Map::default())
    }
}

impl<K: Hash + Eq> Index<K> {
    /// The ids of a key, ascending.
    pub(super) fn of(&self, key: K) -> impl Iterator<Item = u64> + use<'_, K> {
        let (one, many) = match self.0.get(&key) {
            None => (None, None),
            Some(Ids::One(id)) => (Some(*id), None),
            Some(Ids::Many(ids)) => (None, Some(ids)),
        };
        one.into_iter().chain(many.into_iter().flatten().copied())
    }

    /// Calls `f` with the ids of a key, ascending.
    #[inline]
    pub(super) fn each(&self, key: K, mut f: impl FnMut(u64)) {
        match self.0.get(&key) {
            None => {}
            Some(Ids::One(id)) => f(*id),
            Some(Ids::Many(ids)) => ids.iter().for_each(|&id| f(id)),
        }
    }

    /// The first id of a key that is `from` or later.
    pub(super) fn from(&self, key: &K, from: u64) -> Option<u64> {
        match self.0.get(key)? {
            Ids::One(id) => Some(*id).filter(|&id| id >= from),
            Ids::Many(ids) => ids.range(from..).next().copied(),
        }
    }

    pub(super) fn insert(&mut self, key: K, id: u64) {
        match self.0.entry(key) {
            hash_map::Entry::Vacant(place) => _ = place.insert(Ids::One(id)),
            hash_map::Entry::Occupied(mut place) => match place.get_mut() {
                Ids::One(other) => {
                    let ids = BTreeSet::from([*other, id]);
                    place.insert(Ids::Many(ids));
                }
                Ids::Many(ids) => _ = ids.insert(id),
            },
        }
    }

    pub(super) fn remove(&mut self, key: K, id: u64) {
        let hash_map::Entry::Occupied(mut place) = self.0.entry(key) else { return };
        let empty = match place.get_mut() {
            Ids::One(own) => *own == id,
            Ids::Many(ids) => {
                ids.remove(&id);
                ids.is_empty()
            }
        };
        if empty {
            place.remove();
        }
    }
}

/// Bits of an id that are a place in a [`Slab`].
const PLACE: u32 = 20;

/// Things by id, of which there are at most [`MOST`]. Ids ascend in the order in which things came.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Option<(u64, T)>>,
    free: Vec<u32>,
    /// In the order in which they came, with some that are gone.
    order: VecDeque<u64>,
    came: u64,
}

/// As many places as there are.
pub(super) const MOST: usize = 1 << PLACE;

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { places: Vec::new(), free: Vec::new(), order: VecDeque::new(), came: 0 }
    }
}

fn place(id: u64) -> usize {
    id as usize & (MOST - 1)
}

impl<T> Slab<T> {
    #[inline]
    pub(super) fn get(&self, id: u64) -> Option<&T> {
        self.places.get(place(id))?.as_ref().filter(|(own, _)| *own == id).map(|(_, thing)| thing)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        self.places.get_mut(place(id))?.as_mut().filter(|(own, _)| *own == id).map(|(_, thing)| thing)
    }

    /// Whether nothing more can be put in.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.places.len() == MOST
    }

    /// What came first.
    pub(super) fn oldest(&mut self) -> Option<u64> {
        while self.order.front().is_some_and(|&id| self.get(id).is_none()) {
            self.order.pop_front();
        }
        self.order.front().copied()
    }

    /// The id that the next thing gets.
    pub(super) fn next(&self) -> u64 {
        let place = self.free.last().map_or(self.places.len() as u64, |&place| place.into());
        self.came << PLACE | place & (MOST as u64 - 1)
    }

    /// Puts something in, unless this is full.
    pub(super) fn insert(&mut self, thing: T) {
        if self.is_full() {
            return;
        }
        let id = self.next();
        self.came += 1;
        if self.free.pop().is_some() {
            self.places[place(id)] = Some((id, thing));
        } else {
            self.places.push(Some((id, thing)));
        }
        // What is gone is forgotten before there is more of it than of the rest.
        if self.order.len() >= 2 * self.places.len().max(64) {
            let places = &self.places;
            self.order.retain(|&id| places[place(id)].as_ref().is_some_and(|(own, _)| *own == id));
        }
        self.order.push_back(id);
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        self.get(id)?;
        let (_, thing) = self.places[place(id)].take()?;
        self.free.push(place(id) as u32);
        Some(thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_key_ascend() {
        let mut index = Index::default();
        for id in [5, 3, 9] {
            index.insert(7u64, id);
        }
        index.insert(8, 4);
        assert_eq!(index.of(7).collect::<Vec<_>>(), [3, 5, 9]);
        assert_eq!([0, 4, 6, 10].map(|from| index.from(&7, from)), [Some(3), Some(5), Some(9), None]);
        assert_eq!((index.from(&8, 4), index.from(&8, 5), index.from(&6, 0)), (Some(4), None, None));
        for id in [3, 9, 4, 5] {
            index.remove(7, id);
        }
        index.remove(6, 1);
        assert_eq!((index.of(7).count(), index.of(8).count()), (0, 1));
    }

    #[test]
    fn what_came_later_has_a_greater_id() {
        let mut slab = Slab::default();
        let mut last = None;
        let mut here: VecDeque<u64> = VecDeque::new();
        for n in 0..1000u64 {
            let id = slab.next();
            slab.insert(n);
            assert!(Some(id) > last);
            last = Some(id);
            here.push_back(id);
            if n % 3 != 0 {
                // From both ends.
                let gone = if n % 2 == 0 { here.pop_front() } else { here.pop_back() }.unwrap();
                assert!(slab.remove(gone).is_some() && slab.remove(gone).is_none());
                assert_eq!(slab.get(gone), None);
            }
            assert_eq!(slab.oldest(), here.front().copied());
        }
        assert!(slab.order.len() <= 2 * slab.places.len(), "nothing grows without bound");
        assert!(here.iter().all(|&id| slab.get(id).is_some()));
        assert!(!slab.is_full());
    }

    #[test]
    fn hashes_of_neighbours_are_apart() {
        let seed = Seed::default();
        let low: BTreeSet<u64> = (0..4096u64).map(|n| seed.hash_one(n << 12) & 0xffff).collect();
        let high: BTreeSet<u64> = (0..4096u64).map(|n| seed.hash_one(n << 12) >> 48).collect();
        assert!(low.len() > 3500 && high.len() > 3500, "{} {}", low.len(), high.len());
    }
}
