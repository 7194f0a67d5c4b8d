//! The Arm SMMUv3 (IHI 0070): registers, stream and context descriptors, queues, translation and real caches.
//!
//! The model knows nothing of CPUs, PCI or a machine. What hardware may do at the same time as something else is a step
//! of its own here, and the caller decides which step comes next:
//!
//! - [`Smmu::mmio_read`], [`Smmu::mmio_write`]: a CPU's access to a register;
//! - [`Smmu::begin`], [`Smmu::step`], [`Smmu::complete`]: a device's transaction, one fetch a step, and the end of its
//!   data; or [`Smmu::translate`], all its fetches at once;
//! - [`Smmu::step_command`]: one command is consumed;
//! - [`Smmu::step_event`]: one event record is written;
//! - [`Smmu::take_msi`], [`Smmu::take_wired`]: interrupts go out;
//! - [`Smmu::ats_request`], [`Smmu::ats_step`], [`Smmu::begin_translated`]: PCIe ATS, from a device with a translation
//!   cache of its own; [`Smmu::take_atc_invalidation`], [`Smmu::atc_invalidation_done`]: what that cache has to forget;
//! - [`Smmu::step_atos`]: one fetch of a lookup that software asked for through registers;
//! - [`Smmu::page_request`], [`Smmu::step_pri`], [`Smmu::take_page_response`]: PCIe PRI.
//!
//! Nothing a guest writes to registers, tables or queues panics, loops or grows the model.

#![forbid(unsafe_code)]

mod atos;
mod ats;
mod cache;
pub mod checker;
mod commands;
mod config;
mod ecmdq;
mod events;
mod interrupts;
mod irq;
mod memory;
mod observer;
pub mod pmcg;
mod pri;
mod queue;
mod registers;
mod smmu;
pub mod spec;
mod stats;
mod transaction;
mod translate;

pub use ats::{AtcInvalidation, AtsAnswer, AtsProgress, AtsRequest, AtsTranslation};
pub use cache::World;
pub use config::{Config, ConfigError, KEYS, Replace, StallModel, Unaligned};
pub use irq::{IrqSource, Msi, Wired};
pub use memory::{Abort, Memory};
pub use observer::{Descriptor, Level1, Observer};
pub use pmcg::{Pmcg, PmuEvent};
pub use pri::{PageRequest, PageResponse, ResponseCode};
pub use smmu::Smmu;
pub use stats::Stats;
pub use transaction::{AccessKind, MemAttrs, Progress, Shareability, Transaction, Translation, TxnId};
pub use translate::LookOnly;

/// Transactions that may stall at a time: IDR5.STALL_MAX.
pub(crate) const STALL_MAX: u16 = 1024;
