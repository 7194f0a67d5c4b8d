//! What kind of CPU to build.

use serde::{Deserialize, Serialize};

/// Which engine executes instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineKind {
    /// Fetch, decode and execute one instruction at a time: the reference.
    Step,
    /// Decoded instructions are kept, a page at a time.
    #[default]
    Block,
}

/// Optional parts of the architecture. Each shows in the ID registers when on and is UNDEFINED when off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// FEAT_CRC32.
    pub crc32: bool,
    /// FEAT_LSE: the atomic memory operations.
    pub lse: bool,
    /// FEAT_PAN: privileged access never.
    pub pan: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self { crc32: true, lse: false, pan: false }
    }
}

/// A cluster of equal vCPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// How many vCPUs, 1 to 16.
    pub cpus: usize,
    /// Which engine runs them.
    pub engine: EngineKind,
    /// Optional architecture.
    pub features: Features,
}

impl Default for Config {
    fn default() -> Self {
        Self { cpus: 1, engine: EngineKind::default(), features: Features::default() }
    }
}
