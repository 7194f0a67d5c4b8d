//! What a scenario does in the default order: the points at which holding somebody may matter.
//!
//! A loop that waits is most of what a vCPU executes and the least of what is worth stopping in, so vCPUs are surveyed by
//! place in the code, not by time: a few occurrences of each instruction that is executed at all.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::schedule::Place;

/// Occurrences kept of one instruction.
const KEPT: usize = 4;
/// Instructions that are looked at one by one; a longer scenario is surveyed up to here.
const LIMIT: u64 = 20_000_000;
/// Accesses to devices that are kept.
const DEVICE_MAX: usize = 1 << 16;

/// Why holding a vCPU before an instruction may matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It reaches for a device.
    Device,
    /// It changes an SMMU's table.
    Table,
    /// It reaches for a queue of an SMMU.
    Queue,
    /// It reaches for memory that a device reaches for too.
    Dma,
    /// It reaches for memory that another vCPU changes, or changes what another reads.
    Shared,
    /// An exclusive or an atomic access.
    Exclusive,
    /// A barrier (DMB, DSB), or an ordered access (LDAR, STLR).
    Barrier,
    /// The vCPU takes an interrupt.
    Interrupt,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Device,
        Self::Table,
        Self::Queue,
        Self::Dma,
        Self::Shared,
        Self::Exclusive,
        Self::Barrier,
        Self::Interrupt,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Table => "table",
            Self::Queue => "queue",
            Self::Dma => "dma",
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
            Self::Barrier => "barrier",
            Self::Interrupt => "interrupt",
        }
    }

    /// What an instruction is by itself.
    pub fn of(word: u32) -> Option<Self> {
        // DDI 0487 C4.1: "Barriers", "Load/store exclusive" and its kin, "Atomic memory operations".
        let barrier = matches!(word & 0xffff_f0ff, 0xd503_309f | 0xd503_30bf);
        let exclusive_class = word & 0x3f00_0000 == 0x0800_0000;
        let ordered = exclusive_class && word & 1 << 23 != 0 && word & 1 << 21 == 0;
        let atomic = word & 0x3f20_0c00 == 0x3820_0000;
        match () {
            () if barrier || ordered => Some(Self::Barrier),
            () if exclusive_class || atomic => Some(Self::Exclusive),
            () => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("it is none of {}", all()))
    }
}

/// A point at which holding a vCPU may matter: before one of its instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The vCPU.
    #[serde(rename = "c")]
    pub cpu: usize,
    /// The instruction's number among the vCPU's since the schedule began.
    #[serde(rename = "n")]
    pub at: u64,
    /// Why it may matter.
    #[serde(rename = "k")]
    pub kind: Kind,
    /// The instruction's address, if it is known.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub pc: Option<u64>,
    /// What it reaches for, by physical address.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub address: Option<u64>,
    /// Whose registers these are, or who else reaches for that memory.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub with: Option<Actor>,
}

/// A survey under way. Numbers are instructions since the scenario began.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Accesses to devices, all of them.
    devices: Vec<Point>,
    /// Some of each vCPU, instruction and kind of what else matters.
    others: BTreeMap<(usize, u64, Kind), Kept<Point>>,
    places: BTreeMap<(usize, u64), Code>,
    seen: u64,
}

/// One instruction of the guest.
#[derive(Clone, Debug, Default)]
struct Code {
    kind: Option<Kind>,
    kept: Kept<u64>,
}

/// Some occurrences of something.
#[derive(Clone, Debug)]
struct Kept<T> {
    seen: u64,
    kept: Vec<T>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { seen: 0, kept: Vec::new() }
    }
}

impl<T> Kept<T> {
    /// Reservoir sampling, with a hash for the dice: each occurrence is kept with the same chance.
    fn add(&mut self, salt: u64, value: T) {
        let dice =
            (self.seen.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16;
        self.seen += 1;
        if self.kept.len() < KEPT {
            self.kept.push(value);
        } else if let Some(kept) = self.kept.get_mut((dice % self.seen) as usize) {
            *kept = value;
        }
    }
}

impl Survey {
    /// Whether instructions are still looked at one by one.
    pub(crate) fn in_detail(&self) -> bool {
        self.seen < LIMIT
    }

    /// A vCPU is about to execute the instruction at `pc`, its number `at`; `word` fetches it.
    pub(crate) fn executed(&mut self, cpu: usize, pc: u64, at: u64, word: impl FnOnce() -> Option<u32>) {
        if !self.in_detail() {
            return;
        }
        self.seen += 1;
        let place = self.places.entry((cpu, pc)).or_default();
        if place.kept.seen == 0 {
            place.kind = word().and_then(Kind::of);
        }
        place.kept.add(pc, at);
        if let Some(kind) = place.kind {
            self.reached(Point { cpu, at, kind, pc: Some(pc), address: None, with: None });
        }
    }

    /// A point was reached.
    pub(crate) fn reached(&mut self, point: Point) {
        if point.kind == Kind::Device {
            if self.devices.len() < DEVICE_MAX {
                self.devices.push(point);
            }
            return;
        }
        let pc = point.pc.unwrap_or(0);
        self.others.entry((point.cpu, pc, point.kind)).or_default().add(pc, point);
    }

    /// The points, by kind, vCPU and number.
    pub fn points(&self) -> Vec<Point> {
        let mut points = self.devices.clone();
        points.extend(self.others.values().flat_map(|kept| &kept.kept));
        points.sort_unstable_by_key(|point| (point.kind, point.cpu, point.at));
        points
    }

    /// Occurrences of each instruction that a vCPU executed.
    pub fn places(&self) -> BTreeMap<usize, Vec<Place>> {
        let mut places: BTreeMap<usize, Vec<Place>> = BTreeMap::new();
        for (&(cpu, pc), place) in &self.places {
            let kept = place.kept.kept.iter().map(|&at| Place { pc, at });
            places.entry(cpu).or_default().extend(kept);
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
        survey.executed(0, 0x100, 0, || None);
        (1..10_000).for_each(|at| survey.executed(0, 0x104 + at % 2 * 4, at, || Some(0xd503_3bbf)));
        let places = &survey.places()[&0];
        assert_eq!(places.len(), 1 + 2 * KEPT);
        assert_eq!(places[0], Place { pc: 0x100, at: 0 });
        assert!(places.iter().any(|place| place.at > 1000), "late occurrences too: {places:?}");
        let points = survey.points();
        assert_eq!(points.len(), 2 * KEPT, "each is a barrier");
        assert!(points.iter().all(|point| point.kind == Kind::Barrier));
    }

    #[test]
    fn instructions_that_order_are_known() {
        let exclusive = [
            0xc85f_7c20, // ldxr x0, [x1]
            0xc802_fc20, // stlxr w2, x0, [x1]
            0x885f_fc20, // ldaxr w0, [x1]
            0xc8e2_fc20, // casal x2, x0, [x1]
            0xb822_0020, // ldadd w2, w0, [x1]
            0xf8e2_8020, // swpal x2, x0, [x1]
        ];
        let barrier = [
            0xd503_3bbf, // dmb ish
            0xd503_3f9f, // dsb sy
            0xc8df_fc20, // ldar x0, [x1]
            0xc89f_fc20, // stlr x0, [x1]
        ];
        let none = [
            0xd503_3fdf, // isb
            0xf940_0020, // ldr x0, [x1]
            0xf862_6820, // ldr x0, [x1, x2]
            0xd503_201f, // nop
            0x3c22_0820, // a vector access
        ];
        assert!(exclusive.iter().all(|&word| Kind::of(word) == Some(Kind::Exclusive)));
        assert!(barrier.iter().all(|&word| Kind::of(word) == Some(Kind::Barrier)));
        assert!(none.iter().all(|&word| Kind::of(word).is_none()));
    }

    #[test]
    fn names_of_kinds_are_read_back() {
        assert!(Kind::ALL.into_iter().all(|kind| kind.name().parse() == Ok(kind)));
        assert!("mmio".parse::<Kind>().unwrap_err().contains("barrier"));
    }
}
