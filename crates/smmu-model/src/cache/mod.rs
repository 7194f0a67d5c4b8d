//! What the SMMU remembers: decoded STEs and CDs, and translations, tables. Only commands and replacement empty a cache.

mod answers;
mod recent;
mod sets;
mod tlb;
mod walks;

pub(crate) use answers::{Answers, access, who};
pub(crate) use recent::{Invalidation, Recent};
pub(crate) use sets::{Sets, Shape};
pub use tlb::World;
pub(crate) use tlb::{Asid, Mapping, Regime, Scope, Tlb};
pub(crate) use walks::{Table, Walks};
