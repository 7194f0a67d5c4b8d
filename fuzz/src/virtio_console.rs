//! The console, with somebody who types.

use devices::Time;
use devices::pci::PciHost;
use devices::virtio::Console;

use crate::virtio::{self, Host, SLOT};

pub use crate::virtio::Input;

/// Bytes of output that the device may hold: 64 KiB, and the beat that crossed them.
const MOST: usize = (64 << 10) + 4096;

struct Terminal;

impl Host for Terminal {
    fn input(&self, host: &mut PciHost, now: Time, len: usize) {
        host.with_device(SLOT, |console: &mut Console| console.push_input(now, &vec![b'x'; len]));
    }

    fn output(&self, host: &mut PciHost) {
        let output = host.with_device(SLOT, Console::take_output).unwrap_or_default();
        assert!(output.len() <= MOST);
    }
}

/// Runs it.
pub fn run(input: Input) {
    virtio::run(Console::new(), Terminal, &input);
}
