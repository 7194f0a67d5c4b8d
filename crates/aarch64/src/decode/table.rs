//! The table of encodings and its index.

use std::sync::LazyLock;

use super::{branch_system, fp_simd, integer, loads_stores};
use crate::config::Features;
use crate::core::Op;

/// One encoding.
pub(crate) struct Row {
    /// Name in Arm's machine-readable specification.
    pub(crate) name: &'static str,
    mask: u32,
    value: u32,
    /// Makes the op; `None` when field values make the word UNDEFINED.
    pub(crate) build: fn(u32, &Features) -> Option<Op>,
}

impl Row {
    /// A row from its bits, most significant first: `0` and `1` are fixed, letters are fields, spaces are nothing.
    pub(crate) const fn new(
        name: &'static str,
        pattern: &'static str,
        build: fn(u32, &Features) -> Option<Op>,
    ) -> Self {
        let text = pattern.as_bytes();
        let (mut mask, mut value, mut count, mut i) = (0u32, 0u32, 0, 0);
        while i < text.len() {
            let c = text[i];
            if c != b' ' {
                mask = mask << 1 | (c == b'0' || c == b'1') as u32;
                value = value << 1 | (c == b'1') as u32;
                count += 1;
            }
            i += 1;
        }
        assert!(count == 32, "a pattern is 32 bits");
        Self { name, mask, value, build }
    }
}

/// Bits `hi..=lo` of a word.
pub(crate) const fn bits(word: u32, hi: u32, lo: u32) -> u32 {
    (word >> lo) & (u32::MAX >> (31 - (hi - lo)))
}

/// Bit `at` of a word.
pub(crate) const fn bit(word: u32, at: u32) -> bool {
    word >> at & 1 != 0
}

/// Bits `hi..=lo` of a word, sign-extended.
pub(crate) const fn signed(word: u32, hi: u32, lo: u32) -> i64 {
    ((word << (31 - hi)) as i32 >> (31 - hi + lo)) as i64
}

/// The part of a word that the index is addressed by: bits 31 to 21.
const INDEX_SHIFT: u32 = 21;

struct Index {
    /// Where the candidates of each index value begin in `rows`; one more than there are values.
    start: Vec<u32>,
    rows: Vec<&'static Row>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut all: Vec<&'static Row> = integer::ROWS
        .iter()
        .chain(branch_system::ROWS)
        .chain(loads_stores::ROWS)
        .chain(fp_simd::rows())
        .collect();
    // The row that fixes more bits is the more special one.
    all.sort_by_key(|row| std::cmp::Reverse(row.mask.count_ones()));
    let (mut start, mut rows) = (Vec::new(), Vec::new());
    for key in 0..1u32 << (32 - INDEX_SHIFT) {
        start.push(rows.len() as u32);
        let word = key << INDEX_SHIFT;
        let fixed = u32::MAX << INDEX_SHIFT;
        rows.extend(all.iter().filter(|row| (word ^ row.value) & row.mask & fixed == 0));
    }
    start.push(rows.len() as u32);
    Index { start, rows }
});

/// The encoding of a word.
pub(crate) fn find(word: u32) -> Option<&'static Row> {
    let index = &*INDEX;
    let key = (word >> INDEX_SHIFT) as usize;
    let range = index.start[key] as usize..index.start[key + 1] as usize;
    index.rows[range].iter().find(|row| (word ^ row.value) & row.mask == 0).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_gives_mask_and_value() {
        let row = Row::new("x", "s 0 1 100010 h iiiiiiiiiiii nnnnn ddddd", |_, _| None);
        assert_eq!((row.mask, row.value), (0x7f80_0000, 0x3100_0000));
    }

    #[test]
    fn fields() {
        assert_eq!(bits(0xf000_0001, 31, 28), 0xf);
        assert_eq!(bits(0xdead_beef, 31, 0), 0xdead_beef);
        assert_eq!(signed(0x0000_8000, 15, 12), -8);
        assert_eq!(signed(0x0000_7000, 15, 12), 7);
        assert!(bit(0x8000_0000, 31));
    }
}
