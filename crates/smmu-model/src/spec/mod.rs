//! The formats that software sees, as IHI 0070 lays them out: one file for each structure, no behaviour.

/// Accessors of bit fields, by 64-bit word and bits of it; and of single bits.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $word:literal [$hi:literal:$lo:literal];)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(&self) -> u64 { bits(self.0[$word], $hi, $lo) })*
    };
}

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident: $word:literal [$bit:literal];)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(&self) -> bool { bit(self.0[$word], $bit) })*
    };
}

pub mod cd;
pub mod command;
pub mod event;
pub mod pri;
pub mod registers;
pub mod ste;

/// Bits `hi` down to `lo` of `value`.
pub(crate) fn bits(value: u64, hi: u32, lo: u32) -> u64 {
    (value >> lo) & (u64::MAX >> (63 - (hi - lo)))
}

/// Bit `n` of `value`.
pub(crate) fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 == 1
}

/// `value` with only bits `hi` down to `lo` left in place: addresses in descriptors.
pub(crate) fn keep(value: u64, hi: u32, lo: u32) -> u64 {
    bits(value, hi, lo) << lo
}

/// `value` with its `n` low bits cleared; tables are aligned to their size.
pub(crate) fn align(value: u64, n: u32) -> u64 {
    if n >= 64 { 0 } else { value >> n << n }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        assert_eq!(bits(u64::MAX, 63, 0), u64::MAX);
        assert_eq!(bits(0xab00, 15, 8), 0xab);
        assert_eq!(keep(0xabcd, 15, 8), 0xab00);
        assert_eq!(align(0xabcd, 8), 0xab00);
        assert_eq!(align(1, 64), 0);
        assert!(bit(1 << 63, 63) && !bit(1 << 63, 62));
    }
}
