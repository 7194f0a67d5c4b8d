//! What the fuzz targets do with their input, apart from libFuzzer: each module has an `Input`, made from bytes by
//! `arbitrary`, and a `run`, which panics when something is found. `tests/corpus.rs` runs the kept inputs through the
//! same functions under plain `cargo test`.
//!
//! Every run begins with a configuration as a sane driver makes it, because random bytes do not get that far, and then
//! does anything. `docs/fuzzing.md` says what is checked.
#![forbid(unsafe_code)]

pub mod gic_its;
pub mod pci_config;
pub mod pgtable_walk;
pub mod smmu;
pub mod smmu_queues;
pub mod smmu_registers;
pub mod value;
pub mod virtio;
pub mod virtio_blk;
pub mod virtio_console;
pub mod virtio_net;
pub mod virtio_rng;
