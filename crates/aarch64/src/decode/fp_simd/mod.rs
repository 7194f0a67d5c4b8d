//! Rows of SIMD and FP: all of Armv8.0. Half-precision arithmetic, the rounding doubling multiply-accumulates, dot
//! products, complex numbers and cryptography came later or are options, so they are UNDEFINED.

mod build;
mod float;
mod memory;
mod scalar;
mod vector;

use super::Row;

/// All of them.
pub(super) fn rows() -> impl Iterator<Item = &'static Row> {
    [float::ROWS, vector::ROWS, scalar::ROWS, memory::ROWS].into_iter().flatten()
}
