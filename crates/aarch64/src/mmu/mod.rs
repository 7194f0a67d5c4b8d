//! Translation (placeholder).

use serde::{Deserialize, Serialize};

use crate::core::{Core, Ctx};
use crate::platform::SysKey;

/// Translation state. What is serialized and compared is what translations it holds, not the fast keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mmu {}

/// The exception has been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

impl Mmu {
    /// Empty.
    pub fn new() -> Self {
        Self {}
    }

    /// Stores to the RAM page at `pa` must take the slow path from now on.
    pub fn drop_write_keys(&mut self, _pa: u64) {}

    /// Another vCPU's TLBI.
    pub fn broadcast_tlbi(&mut self, _op: SysKey, _operand: u64) {}
}

/// Physical address, in RAM, to fetch `pc` from.
///
/// # Errors
/// The exception that was taken.
pub fn fetch(core: &mut Core, ctx: &mut Ctx<'_>) -> Result<u64, Fault> {
    ctx.shared.ram.offset(core.pc, 4).map(|_| core.pc).ok_or(Fault)
}
