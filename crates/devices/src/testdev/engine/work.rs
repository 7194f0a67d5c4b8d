//! The order in which a frame's range is worked through.

use serde::{Deserialize, Serialize};

use super::random;

/// Bytes at consecutive addresses that one transaction reads, or one writes. Never over a 4 KiB boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) at: u64,
    pub(super) len: u16,
}

/// What a range is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Unit {
    /// Bytes, in pieces of at most `burst`; pieces are multiples of `align`, as are both ends of the range.
    Bytes { align: u16, burst: u16 },
    /// 64-bit elements, the first at `base`, and each `stride` after the one before.
    Elements { base: u64, stride: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Order {
    Up,
    Down,
    /// From the front or from the back, as the generator says.
    Random(u64),
}

/// What is left of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Work {
    unit: Unit,
    order: Order,
    /// First and last of what is left: addresses of bytes, or numbers of elements. `None` when all is done.
    left: Option<(u64, u64)>,
}

impl Work {
    /// All of `first..=last`, in the order that `seed` asks for.
    pub(super) fn new(unit: Unit, first: u64, last: u64, seed: u32) -> Self {
        let order = match seed {
            0 => Order::Up,
            u32::MAX => Order::Down,
            _ => Order::Random(random::seeded(seed)),
        };
        Self { unit, order, left: (first <= last).then_some((first, last)) }
    }

    /// Whether it is made of elements, not of bytes.
    pub(super) fn has_elements(&self) -> bool {
        matches!(self.unit, Unit::Elements { .. })
    }

    /// Bytes that come right after the piece that was taken last, as long as that is known.
    pub(super) fn ahead(&self) -> u64 {
        match (self.unit, self.order, self.left) {
            (Unit::Bytes { .. }, Order::Up, Some((first, last))) => (last - first).saturating_add(1),
            _ => 0,
        }
    }

    /// Takes the next piece.
    pub(super) fn take(&mut self) -> Option<Piece> {
        let (first, last) = self.left?;
        let (up, drawn) = match &mut self.order {
            Order::Up => (true, None),
            Order::Down => (false, None),
            Order::Random(state) => (random::next(state) & 1 != 0, Some(random::next(state))),
        };
        let (start, end, piece) = match self.unit {
            Unit::Bytes { align, burst } => {
                let align = u64::from(align.max(1));
                let most = (u64::from(burst) / align).max(1);
                let size = align * drawn.map_or(most, |n| 1 + u64::from(n) % most);
                let (start, end) = if up {
                    (first, last.min(first | 0xfff).min(first.saturating_add(size - 1)))
                } else {
                    (first.max(last & !0xfff).max(last.saturating_sub(size - 1)), last)
                };
                (start, end, Piece { at: start, len: (end - start + 1) as u16 })
            }
            Unit::Elements { base, stride } => {
                let n = if up { first } else { last };
                (n, n, Piece { at: base.wrapping_add(n.wrapping_mul(stride)), len: 8 })
            }
        };
        self.left = match (start == first, end == last) {
            (true, true) => None,
            (true, false) => Some((end + 1, last)),
            _ => Some((first, start - 1)),
        };
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(unit: Unit, first: u64, last: u64, seed: u32) -> Vec<(u64, u16)> {
        let mut work = Work::new(unit, first, last, seed);
        std::iter::from_fn(|| work.take()).map(|p| (p.at, p.len)).collect()
    }

    #[test]
    fn up_and_down() {
        let bytes = Unit::Bytes { align: 1, burst: 16 };
        assert_eq!(pieces(bytes, 0xff8, 0x1013, 0), [(0xff8, 8), (0x1000, 16), (0x1010, 4)]);
        assert_eq!(pieces(bytes, 0xff8, 0x1013, u32::MAX), [(0x1004, 16), (0x1000, 4), (0xff8, 8)]);
        let mut work = Work::new(bytes, 0xff8, 0x1013, 0);
        let ahead: Vec<u64> = std::iter::from_fn(|| work.take().map(|_| work.ahead())).collect();
        assert_eq!(ahead, [20, 4, 0]);
        assert_eq!(pieces(bytes, u64::MAX, u64::MAX, 0), [(u64::MAX, 1)]);
        assert_eq!(pieces(bytes, 0, 0, u32::MAX), [(0, 1)]);
        let elements = Unit::Elements { base: 0x100, stride: 0x40 };
        assert_eq!(pieces(elements, 0, 2, 0), [(0x100, 8), (0x140, 8), (0x180, 8)]);
        assert_eq!(pieces(elements, 0, 2, u32::MAX), [(0x180, 8), (0x140, 8), (0x100, 8)]);
    }

    #[test]
    fn a_random_order_covers_everything_once() {
        for seed in 1..200 {
            let (align, burst) = if seed % 2 == 0 { (8, 64) } else { (1, 64) };
            let mut seen = pieces(Unit::Bytes { align, burst }, 0xf00, 0x22ff, seed);
            assert!(seen.iter().all(|&(at, n)| n > 0 && n <= 64 && at % u64::from(align) == 0));
            assert!(seen.iter().all(|&(at, n)| at / 4096 == (at + u64::from(n) - 1) / 4096));
            assert!(!seen.is_sorted());
            seen.sort_unstable();
            assert_eq!(seen[0].0, 0xf00);
            assert!(seen.windows(2).all(|w| w[0].0 + u64::from(w[0].1) == w[1].0));
            assert_eq!(seen.last().map(|&(at, n)| at + u64::from(n)), Some(0x2300));
        }
    }
}
