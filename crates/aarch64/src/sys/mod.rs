//! System registers (placeholder).

use serde::{Deserialize, Serialize};

use crate::config::Config;

/// System registers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SysRegs {}

impl SysRegs {
    /// Reset values.
    pub fn new(_index: usize, _config: &Config) -> Self {
        Self {}
    }
}
