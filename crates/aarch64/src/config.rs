//! What kind of CPU to build.

use serde::{Deserialize, Serialize};

/// Which engine executes instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineKind {
    /// Fetch, decode and execute one instruction at a time: the reference.
    Step,
    /// Decoded instructions are kept, a page at a time.
    Block,
    /// Host code is made of decoded pages that were entered `after` times. Where the host cannot do that, as `Block`.
    Native {
        /// 0 makes code of all that executes.
        after: u32,
    },
}

impl EngineKind {
    /// Each engine once, the native one making code at once and after a while: for tests that they agree.
    pub const ALL: [EngineKind; 4] = [
        EngineKind::Step,
        EngineKind::Block,
        EngineKind::Native { after: 0 },
        EngineKind::Native { after: 3 },
    ];
}

impl Default for EngineKind {
    fn default() -> Self {
        EngineKind::Native { after: 12 }
    }
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
