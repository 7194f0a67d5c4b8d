//! Rows of SIMD and FP.

use super::Row;

pub(super) static ROWS: &[Row] = &[];
