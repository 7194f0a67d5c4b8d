//! The way down through tables at little cost: what is the same at every level is worked out once. It ends where
//! [`Walk::next`] would not find another table, and what it does is no different.

use crate::descriptor as d;
use crate::granule::LAST;
use crate::leaf::TableAttrs;
use crate::walk::{Rules, Walk};

/// A table to begin with, and how to get down from it.
#[derive(Clone, Copy, Debug)]
pub struct Ladder {
    top: Walk,
    /// Bits of a descriptor that say whether it names a table of the next level, and what they are then.
    check: u64,
    table: u64,
    /// Address bits of a descriptor that are beyond the output size.
    beyond: u64,
    /// Address bits of a descriptor, where they are in their place.
    mask: u64,
    /// log2 of the bytes that an entry of the first table covers, and of the entries of a table.
    shift: u8,
    stride: u8,
    pa52: bool,
}

/// The descriptor that a walk has come to: where it is, at what level, and bits 63:59 of the tables above.
#[derive(Clone, Copy, Debug)]
pub struct Rung {
    address: u64,
    level: i8,
    attrs: u8,
}

impl Rung {
    /// Address of the descriptor.
    #[inline]
    pub const fn address(&self) -> u64 {
        self.address
    }
}

impl Ladder {
    /// Down from the descriptor that `walk` waits for. `marked`: a table descriptor without the Access flag is for
    /// [`Walk::next`] as well (HAFT).
    #[inline]
    pub const fn new(walk: &Walk, marked: bool) -> Self {
        let Rules { granule, pa52, oas, .. } = *walk.rules();
        let beyond = if oas < 52 { (1 << 52) - (1 << oas) } else { 0 };
        let beyond = d::encode_address(beyond, granule, pa52);
        let table = d::VALID | d::TABLE | if marked { d::AF } else { 0 };
        Self {
            top: *walk,
            check: table | beyond,
            table,
            beyond,
            mask: d::address(u64::MAX, granule, granule.bits(), false),
            shift: granule.shift(walk.level()),
            stride: granule.stride(),
            pa52,
        }
    }

    /// The descriptor to begin with.
    #[inline]
    pub const fn top(&self) -> Rung {
        Rung { address: self.top.address(), level: self.top.level(), attrs: 0 }
    }

    /// The descriptor to begin with for another input, where this was made of the walk of input 0 from its first table.
    /// `None` if the input is too wide.
    #[inline]
    pub const fn of_input(&self, input: u64) -> Option<Rung> {
        if input >> self.top.input_bits() != 0 {
            return None;
        }
        Some(Rung { address: self.top.address() | input >> (self.shift & 63) << 3, ..self.top() })
    }

    /// Goes on from `rung` to a descriptor that `fetch` does not give, or that is no table; tells `passed` of each
    /// descriptor below a table.
    #[inline(always)]
    pub fn descend<E>(
        &self,
        mut rung: Rung,
        input: u64,
        mut fetch: impl FnMut(u64) -> Result<u64, E>,
        mut passed: impl FnMut(&Rung),
    ) -> (Rung, Result<u64, E>) {
        let mut shift = self.shift;
        loop {
            let fetched = fetch(rung.address);
            let descriptor = match fetched {
                Ok(descriptor) if descriptor & self.check == self.table && rung.level != LAST => descriptor,
                _ => return (rung, fetched),
            };
            shift = shift.wrapping_sub(self.stride);
            let index = input >> (shift & 63) & ((1 << self.stride) - 1);
            rung = Rung {
                address: self.output(descriptor) | index << 3,
                level: rung.level + 1,
                attrs: rung.attrs | (descriptor >> 59) as u8,
            };
            passed(&rung);
        }
    }

    /// Output address of a page that is nothing special: valid, not contiguous, with its Access flag and all of `bits`.
    #[inline]
    pub const fn page(&self, rung: &Rung, descriptor: u64, input: u64, bits: u64) -> Option<u64> {
        let page = d::VALID | d::TABLE | d::AF | bits;
        if rung.level != LAST || descriptor & (page | d::CONTIGUOUS | self.beyond) != page {
            return None;
        }
        let offset = input & (self.top.rules().granule.bytes() - 1);
        Some(self.output(descriptor) | offset)
    }

    /// The walk that waits for a descriptor on the way.
    #[inline]
    pub fn walk(&self, rung: &Rung, input: u64) -> Walk {
        self.top.below(rung.address, input, rung.level, TableAttrs::of(u64::from(rung.attrs) << 59))
    }

    #[inline]
    const fn output(&self, descriptor: u64) -> u64 {
        let granule = self.top.rules().granule;
        if self.pa52 { d::address(descriptor, granule, granule.bits(), true) } else { descriptor & self.mask }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Granule, Stage1, Stage2, Step};

    /// A generator that is good enough for descriptors.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state.rotate_left(32)
    }

    #[test]
    fn it_ends_where_the_steps_do() {
        let mut state = 7;
        let (mut ends, mut passed_any) = ([0; 6], 0);
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
            let start = ladder.of_input(input).unwrap();
            let (mut given, mut passed) = (descriptors.iter(), Vec::new());
            let (rung, last) = ladder.descend(
                start,
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
            if let Some(pa) = ladder.page(&rung, last.unwrap_or(0), input, d::AP_USER) {
                let leaf = walk.leaf(last.unwrap()).unwrap();
                assert_eq!((pa, leaf.contiguous, leaf.size), (leaf.pa, false, granule.bytes()), "{n}");
                ends[5] += 1;
            }
        }
        assert!(ends[..3].iter().all(|&n| n > 100) && ends[5] > 20 && passed_any > 1000, "{ends:?}");
    }
}
