//! An AArch64 software CPU: Armv8.0-A at EL0 and EL1, to the letter of DDI 0487, repeatable to the bit.
//!
//! A [`Cluster`] holds the vCPUs and runs one of them at a time. Three engines: the stepping one is the reference, the
//! block one keeps decoded instructions a page at a time, the native one makes host code of what executes often. They
//! agree to the bit.

mod backtrace;
mod cluster;
pub mod config;
pub mod core;
pub mod decode;
mod engine;
pub mod exception;
mod exec;
pub mod fp;
pub mod mmu;
pub mod platform;
pub mod shared;
pub mod simd;
pub mod sys;
#[cfg(test)]
mod testing;

pub use backtrace::Backtrace;
pub use cluster::{Cluster, Ran, State};
pub use config::{Config, EngineKind, Features};
pub use platform::{At, BusFault, IrqLines, Platform, SysKey, Traced};
pub use shared::Exit;
