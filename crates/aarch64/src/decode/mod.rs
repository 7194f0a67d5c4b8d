//! Decoding: from an instruction word to a handler and its operands.
//!
//! Each file holds rows, one line an encoding: its name in Arm's machine-readable specification, its bits, and the
//! function that makes the [`Op`]. Letters in the bits are fields; only the ones and noughts select the row.

mod branch_system;
mod fp_simd;
mod integer;
mod loads_stores;
mod table;

pub(crate) use table::{Row, bit, bits, signed};

use crate::config::Features;
use crate::core::Op;
use crate::exec;

/// Decodes one word. What is not allocated, or not by these features, becomes an op that takes the Undefined
/// Instruction exception.
pub fn decode(word: u32, features: &Features) -> Op {
    table::find(word).and_then(|row| (row.build)(word, features)).unwrap_or(Op::new(exec::undefined, word))
}

/// The name of the encoding that a word is, in Arm's machine-readable specification; `None` when it is UNDEFINED.
pub fn name(word: u32, features: &Features) -> Option<&'static str> {
    table::find(word).and_then(|row| (row.build)(word, features).map(|_| row.name))
}
