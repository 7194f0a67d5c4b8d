//! A [`Swiotlb`](crate::Swiotlb) as plain data: what is mapped, and what decides where the next mapping goes.

use serde::{Deserialize, Serialize};

/// A saved state does not belong to the pool it is given to, or contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved state is not one of this bounce pool")]
pub struct StateError;

/// All of it. Transient pools are not: [`Swiotlb::save`](crate::Swiotlb::save) is for a time when there are none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwiotlbState {
    /// The default pool, then the added ones by address.
    pub pools: Vec<PoolState>,
    /// The most slots in use at a time.
    pub used_hiwater: usize,
    /// Mappings refused for want of free slots.
    pub failures: u64,
    /// A mapping did not fit and nobody has asked since.
    pub wants_growth: bool,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolState {
    /// The address of its first byte.
    pub start: u64,
    /// How many slots it has.
    pub slots: usize,
    /// Its areas, in order.
    pub areas: Vec<AreaState>,
    /// Its mappings, by address.
    pub mappings: Vec<MappingState>,
}

/// One area.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaState {
    /// Slots that it may use before the high-water mark is looked at.
    pub allowance: usize,
    /// No mapping may begin in it.
    pub closed: bool,
    /// The segment in which the last mapping was found.
    pub index: usize,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingState {
    /// The number of the slot that its address is in.
    pub slot: usize,
    /// Where in that slot the address is.
    pub offset: usize,
    /// How many of its slots come before that slot.
    pub pad_slots: usize,
    /// How many slots it has.
    pub slots: usize,
    /// The original's address; `None` for memory that was allocated.
    pub original: Option<u64>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}
