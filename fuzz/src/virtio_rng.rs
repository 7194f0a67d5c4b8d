//! The entropy device.

use arbitrary::Arbitrary;
use devices::virtio::Rng;

use crate::virtio::{self, Host};

/// A run.
#[derive(Clone, Debug, Arbitrary)]
pub struct Input {
    seed: u8,
    run: virtio::Input,
}

struct Nobody;
impl Host for Nobody {}

/// Runs it.
pub fn run(input: Input) {
    virtio::run(Rng::new(input.seed.into()), Nobody, &input.run);
}
