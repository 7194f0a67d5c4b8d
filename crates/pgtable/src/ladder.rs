//! The way down through tables at little cost: what is the same at every level, and for every walk of one configuration,
//! is worked out once. It ends where [`Walk::next`] would not find another table, and what it does is no different.

use crate::descriptor as d;
use crate::granule::{Granule, LAST};
use crate::leaf::TableAttrs;
use crate::walk::{Rules, Walk};

/// How to get down from the first table of a configuration, wherever that table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// Bits of a descriptor that say whether it names a table of the next level, and what they are then.
    check: u64,
    table: u64,
    /// Bits of a page's descriptor that say whether it is nothing special, and what they are then.
    check_page: u64,
    page: u64,
    /// Address bits of a descriptor: those in their place, and, of 52-bit addresses, those that belong further up.
    mask: u64,
    high: u64,
    /// Bits of an entry's offset in a table.
    entries: u64,
    /// Bits of tables' descriptors that impose something on a leaf.
    imposes: u64,
    /// Bits above the input.
    above: u64,
    rules: Rules,
    /// Of the first table: its level, and log2 of the bytes that its entries cover.
    level: i8,
    shift: u8,
    stride: u8,
    input_bits: u8,
    /// How much further up.
    up: u8,
    /// The first table is that of [`Walk::stage1`] or [`Walk::stage2`].
    first: bool,
}

/// The descriptor that a walk has come to.
#[derive(Clone, Copy, Debug)]
pub struct Rung {
    address: u64,
    /// Bits 63:59: of the descriptors of the tables above.
    tables: u64,
    level: i8,
    /// log2 of the bytes that the descriptor covers.
    shift: u8,
}

/// A page or block that is nothing special: see [`Ladder::plain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Output address of the first byte.
    pub output: u64,
    /// log2 of its bytes.
    pub shift: u8,
    /// Level of its descriptor.
    pub level: i8,
}

impl Rung {
    /// Address of the descriptor.
    #[inline]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How many descriptors there are from this one to one below it, both counted.
    #[inline]
    pub const fn to(&self, below: &Rung) -> u64 {
        (below.level - self.level + 1) as u64
    }
}

/// nT of a block.
const BLOCK_NT: u64 = 1 << 16;

impl Ladder {
    /// For walks that begin as `walk`. `marked`: a table descriptor without the Access flag is for [`Walk::next`] as well
    /// (HAFT).
    #[inline]
    pub const fn new(walk: &Walk, marked: bool) -> Self {
        let rules = *walk.rules();
        let Rules { granule, pa52, oas, .. } = rules;
        let beyond = if oas < 52 { (1 << 52) - (1 << oas) } else { 0 };
        let beyond = d::encode_address(beyond, granule, pa52);
        let table = d::VALID | d::TABLE | if marked { d::AF } else { 0 };
        let dirty = if rules.hd { d::DBM } else { 0 };
        let page = d::VALID | d::TABLE | d::AF;
        Self {
            check: table | beyond,
            table,
            check_page: page | beyond | d::CONTIGUOUS | dirty,
            page,
            mask: d::address(u64::MAX, granule, granule.bits(), pa52)
                & d::encode_address(u64::MAX, granule, pa52),
            high: if !pa52 {
                0
            } else if matches!(granule, Granule::G64K) {
                0xf << 48
            } else {
                3 << 50
            },
            up: if matches!(granule, Granule::G64K) { 36 } else { 42 },
            entries: ((1 << granule.stride()) - 1) << 3,
            imposes: if rules.stage2 || rules.hpd { 0 } else { 0xf << 59 },
            above: if walk.input_bits() < 64 { u64::MAX << walk.input_bits() } else { 0 },
            rules,
            level: walk.level(),
            shift: granule.shift(walk.level()),
            stride: granule.stride(),
            input_bits: walk.input_bits(),
            first: walk.is_first(),
        }
    }

    /// The descriptor to begin with, in the first table at `base`. Bits above the input size are not looked at.
    #[inline]
    pub const fn begin(&self, base: u64, input: u64) -> Rung {
        let address = base | (input & !self.above) >> (self.shift & 63) << 3;
        Rung { address, tables: 0, level: self.level, shift: self.shift }
    }

    /// Whether `input` is wider than the input size.
    #[inline]
    pub const fn is_beyond(&self, input: u64) -> bool {
        input & self.above != 0
    }

    /// The descriptor that another walk waits for. `None`: it does not go by the same configuration, or it is in a first
    /// table.
    #[inline]
    pub fn rung(&self, walk: &Walk) -> Option<Rung> {
        let same = *walk.rules() == self.rules && walk.input_bits() == self.input_bits;
        if !same || walk.level() <= self.level || walk.is_first() {
            return None;
        }
        let shift = self.rules.granule.shift(walk.level());
        Some(Rung { address: walk.address(), tables: walk.tables().bits() << 59, level: walk.level(), shift })
    }

    /// The granule of its tables.
    #[inline]
    pub const fn granule(&self) -> Granule {
        self.rules.granule
    }

    /// Some descriptor of the last level.
    pub const fn last(&self) -> Rung {
        Rung { address: 0, tables: 0, level: LAST, shift: self.rules.granule.bits() }
    }

    /// The descriptor below one that names a table. `None`: it does not, or is for [`Walk::next`].
    #[inline(always)]
    pub const fn below(&self, rung: &Rung, descriptor: u64, input: u64) -> Option<Rung> {
        if descriptor & self.check != self.table || rung.level == LAST {
            return None;
        }
        let shift = rung.shift.wrapping_sub(self.stride);
        Some(Rung {
            address: self.output(descriptor) | input >> (shift.wrapping_sub(3) & 63) & self.entries,
            tables: rung.tables | descriptor,
            level: rung.level + 1,
            shift,
        })
    }

    /// Takes `rung` down to a descriptor that `fetch` does not give, or that is no table; tells `passed` of each
    /// descriptor below a table.
    #[inline(always)]
    pub fn descend<E>(
        &self,
        rung: &mut Rung,
        input: u64,
        mut fetch: impl FnMut(u64) -> Result<u64, E>,
        mut passed: impl FnMut(&Rung),
    ) -> Result<u64, E> {
        let mut now = *rung;
        let end = loop {
            let fetched = fetch(now.address);
            let Ok(descriptor) = fetched else { break fetched };
            match self.below(&now, descriptor, input) {
                Some(next) => now = next,
                None => break Ok(descriptor),
            }
            passed(&now);
        };
        *rung = now;
        end
    }

    /// The page or block that a descriptor is, if it is nothing special: valid, with its Access flag, not contiguous,
    /// without nT, not for hardware to mark dirty, its address as wide as the output size at most, and its tables impose
    /// nothing.
    #[inline(always)]
    pub const fn plain(&self, rung: &Rung, descriptor: u64) -> Option<Plain> {
        let Rung { level, shift, .. } = *rung;
        if self.high != 0 || rung.tables & self.imposes != 0 {
            return None;
        }
        let plain = match level == LAST {
            true => descriptor & self.check_page == self.page,
            false => {
                descriptor & (self.check_page | BLOCK_NT) == self.page & !d::TABLE
                    && self.rules.granule.allows_block(level, false)
            }
        };
        if !plain {
            return None;
        }
        Some(Plain { output: descriptor & self.mask & u64::MAX << (shift & 63), shift, level })
    }

    /// The walk that waits for a descriptor on the way.
    #[inline]
    pub const fn walk(&self, rung: &Rung, input: u64) -> Walk {
        let table = TableAttrs::of(rung.tables);
        let table = match (self.rules.stage2, self.rules.hpd) {
            (true, _) => TableAttrs::NONE,
            (false, true) => table.only_ns(),
            (false, false) => table,
        };
        let first = self.first && rung.level == self.level;
        Walk::waiting(
            rung.address,
            input & !self.above,
            rung.level,
            self.input_bits,
            first,
            table,
            self.rules,
        )
    }

    #[inline(always)]
    const fn output(&self, descriptor: u64) -> u64 {
        let address = descriptor & self.mask;
        if self.high == 0 { address } else { address | descriptor << (self.up & 63) & self.high }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Stage1, Stage2, Step};

    /// A generator that is good enough for descriptors.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state.rotate_left(32)
    }

    #[test]
    fn it_ends_where_the_steps_do() {
        let mut state = 7;
        let (mut ends, mut passed_any) = ([0; 7], 0);
        for n in 0..40_000u32 {
            let granule = [Granule::G4K, Granule::G16K, Granule::G64K][n as usize % 3];
            let (pa52, oas) = [(false, 40), (false, 44), (false, 48), (true, 48), (true, 52)][n as usize % 5];
            let (marked, hpd) = (n & 64 != 0, n & 128 != 0);
            let stage2 = n & 256 != 0;
            let input = random(&mut state) & ((1 << 40) - 1);
            let begin = |input| match stage2 {
                true => {
                    let cfg =
                        Stage2 { granule, tsz: 24, sl0: 1, oas, pa52, ttb: 1 << 30, ..Stage2::default() };
                    Walk::stage2(&cfg, input)
                }
                false => {
                    let cfg = Stage1 { granule, tsz: 24, oas, pa52, hpd, ttb: 1 << 30, ..Stage1::default() };
                    Walk::stage1(&cfg, input)
                }
            };
            let (Step::Fetch(mut walk), Step::Fetch(zero)) = (begin(input), begin(0)) else { continue };
            let descriptors: Vec<u64> = (0..4)
                .map(|_| {
                    let word = random(&mut state);
                    let high = if random(&mut state) & 3 == 0 { 0 } else { 0xffff << 32 | 0xf300 };
                    word & !high | if random(&mut state) & 7 == 0 { 0 } else { 3 }
                })
                .collect();
            let ladder = Ladder::new(&zero, marked);
            assert!(!ladder.is_beyond(input) && ladder.is_beyond(1 << 40), "{n}");
            let start = ladder.begin(zero.address(), input);
            let (mut given, mut passed) = (descriptors.iter(), Vec::new());
            let mut rung = start;
            let last = ladder.descend(
                &mut rung,
                input,
                |_| given.next().copied().ok_or(()),
                |rung| passed.push(ladder.walk(rung, input)),
            );
            let mut expected = Vec::new();
            let mut end = Err(());
            for &descriptor in &descriptors {
                end = Ok(descriptor);
                let unmarked = marked && descriptor & d::AF == 0;
                if unmarked || !walk.descend(descriptor) {
                    break;
                }
                expected.push(walk);
                end = Err(());
            }
            assert_eq!((&passed, ladder.walk(&rung, input), last), (&expected, walk, end), "{n}");
            ends[expected.len()] += 1;
            passed_any += expected.len();
            for walk in &passed {
                let rung = ladder.rung(walk).unwrap();
                assert_eq!(
                    (ladder.walk(&rung, input), rung.shift),
                    (*walk, granule.shift(walk.level())),
                    "{n}"
                );
            }
            assert!(ladder.rung(&zero).is_none() && Ladder::new(&walk, marked).rung(&walk).is_none(), "{n}");
            if let Some(plain) = ladder.plain(&rung, last.unwrap_or(0)) {
                let leaf = walk.leaf(last.unwrap()).unwrap();
                let Plain { output, shift, level } = plain;
                assert_eq!(
                    (output | input & ((1 << shift) - 1), 1 << shift, level),
                    (leaf.pa, leaf.size, leaf.level)
                );
                assert!(!leaf.contiguous && !pa52 && leaf.table.bits() & 0xf == 0, "{n}");
                assert_eq!([leaf.updated(true), leaf.updated(false)], [leaf.descriptor; 2], "{n}");
                ends[if level == LAST { 5 } else { 6 }] += 1;
            }
        }
        assert!(
            ends[..3].iter().all(|&n| n > 100) && ends[5] > 20 && ends[6] > 20 && passed_any > 1000,
            "{ends:?}"
        );
    }
}
