//! What the SMMU remembers: decoded STEs and CDs, and translations. Only commands and replacement empty a cache.

mod sets;
mod tlb;

pub(crate) use sets::Sets;
pub(crate) use tlb::{Asid, Mapping, Regime, Scope, Tlb, World};
