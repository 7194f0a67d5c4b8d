//! What a scenario does in the default order: the points at which holding somebody may matter.
//!
//! A loop that waits is most of what a vCPU executes and the least of what is worth stopping in, so vCPUs are surveyed by
//! place in the code, not by time: a few occurrences of each instruction that is executed at all.

use std::collections::BTreeMap;

use crate::schedule::Place;

/// Occurrences kept of one instruction.
const KEPT: usize = 4;
/// Instructions that are looked at one by one; a longer scenario is surveyed up to here.
const LIMIT: u64 = 20_000_000;

/// A survey under way. Numbers are instructions since the scenario began.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    accesses: BTreeMap<usize, Vec<u64>>,
    places: BTreeMap<(usize, u64), Seen>,
    seen: u64,
}

/// One instruction of the guest.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    seen: u64,
    kept: [u64; KEPT],
}

impl Survey {
    /// Whether instructions are still looked at one by one.
    pub(crate) fn in_detail(&self) -> bool {
        self.seen < LIMIT
    }

    /// A vCPU is about to execute the instruction at `pc`, its number `at`.
    pub(crate) fn executed(&mut self, cpu: usize, pc: u64, at: u64) {
        if !self.in_detail() {
            return;
        }
        self.seen += 1;
        let place = self.places.entry((cpu, pc)).or_default();
        // Reservoir sampling, with a hash for the dice: each occurrence is kept with the same chance.
        let dice =
            (place.seen.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ pc).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16;
        let slot = if place.seen < KEPT as u64 { place.seen } else { dice % (place.seen + 1) };
        if let Some(kept) = place.kept.get_mut(slot as usize) {
            *kept = at;
        }
        place.seen += 1;
    }

    /// A vCPU's instruction with this number reached for a device.
    pub(crate) fn accessed(&mut self, cpu: usize, at: u64) {
        self.accesses.entry(cpu).or_default().push(at);
    }

    /// The instructions at which each vCPU reached for a device.
    pub fn accesses(&self) -> BTreeMap<usize, Vec<u64>> {
        self.accesses.clone()
    }

    /// Occurrences of each instruction that a vCPU executed.
    pub fn places(&self) -> BTreeMap<usize, Vec<Place>> {
        let mut places: BTreeMap<usize, Vec<Place>> = BTreeMap::new();
        for (&(cpu, pc), place) in &self.places {
            places
                .entry(cpu)
                .or_default()
                .extend(place.kept.iter().take(place.seen as usize).map(|&at| Place { pc, at }));
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_counts_no_more_than_what_is_executed_once() {
        let mut survey = Survey::default();
        survey.executed(0, 0x100, 0);
        (1..10_000).for_each(|at| survey.executed(0, 0x104 + at % 2 * 4, at));
        let places = &survey.places()[&0];
        assert_eq!(places.len(), 1 + 2 * KEPT);
        assert_eq!(places[0], Place { pc: 0x100, at: 0 });
        assert!(places.iter().any(|place| place.at > 1000), "late occurrences too: {places:?}");
    }
}
