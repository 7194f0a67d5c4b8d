//! Rows of this group.

use super::Row;

pub(super) static ROWS: &[Row] = &[];
