//! VMSAv8-64 translation tables (DDI 0487, chapter D8): one walker for the CPU and for the SMMU.
//!
//! A walk is a state machine. It asks for one descriptor at a time and does no memory access of its own, so the user
//! decides when, from where and with which attributes a descriptor is fetched:
//!
//! ```
//! use pgtable::{Fault, FaultKind, Leaf, Stage1, Step, Walk};
//!
//! fn translate(cfg: &Stage1, va: u64, fetch: impl Fn(u64) -> Option<u64>) -> Result<Leaf, Fault> {
//!     let mut step = Walk::stage1(cfg, va);
//!     loop {
//!         match step {
//!             Step::Fetch(walk) => match fetch(walk.address()) {
//!                 Some(descriptor) => step = walk.next(descriptor),
//!                 None => return Err(Fault::new(FaultKind::External, walk.level())),
//!             },
//!             Step::Done(leaf) => return Ok(leaf),
//!             Step::Fault(fault) => return Err(fault),
//!         }
//!     }
//! }
//! ```
//!
//! Which of two table bases an address belongs to, and whether it is canonical, is [`Ranges::select`]'s; permissions are
//! [`Leaf::check`]'s. Nothing here allocates on a walk, and no descriptor or register value panics.

#![forbid(unsafe_code)]

mod builder;
mod config;
pub mod descriptor;
mod dump;
mod fault;
mod granule;
mod ladder;
mod leaf;
mod nested;
mod walk;

pub use builder::{BuildError, Builder, TableMemory};
pub use config::{Half, Ranges, Stage1, Stage2, output_bits, table_base};
pub use dump::{Dump, Style};
pub use fault::{Fault, FaultKind};
pub use granule::Granule;
pub use ladder::{Ladder, Plain, Rung};
pub use leaf::{Access, Controls, Leaf, Permissions, TableAttrs};
pub use nested::{Class, Nested, NestedFault, NestedStep, NestedWalk, Stage1Done};
pub use walk::{Step, Walk};
