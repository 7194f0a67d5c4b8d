//! What the SMMU remembers: decoded STEs and CDs, and translations, tables. Only commands and replacement empty a cache.

mod sets;
mod tlb;

pub(crate) use sets::Sets;
pub use tlb::World;
pub(crate) use tlb::{Asid, Mapping, Regime, Scope, Table, Tlb, Walks};
