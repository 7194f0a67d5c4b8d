//! The block device.

use arbitrary::Arbitrary;
use devices::virtio::{Blk, MemoryBackend};

use crate::virtio::{self, Host};

/// A run.
#[derive(Clone, Debug, Arbitrary)]
pub struct Input {
    sectors: u8,
    read_only: bool,
    broken: bool,
    run: virtio::Input,
}

struct Disk;
impl Host for Disk {}

/// Runs it.
pub fn run(input: Input) {
    let backend = MemoryBackend {
        data: vec![7; usize::from(input.sectors) * 512],
        read_only: input.read_only,
        broken: input.broken,
    };
    virtio::run(Blk::new(Box::new(backend)), Disk, &input.run);
}
