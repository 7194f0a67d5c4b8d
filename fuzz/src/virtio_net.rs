//! The network device, with frames from the host.

use devices::Time;
use devices::pci::PciHost;
use devices::virtio::{MAX_FRAME, Net};

use crate::virtio::{self, Host, SLOT};

pub use crate::virtio::Input;

/// Bytes of sent frames that the device may hold: a mebibyte, and the frame that crossed it.
const MOST_SENT: usize = (1 << 20) + MAX_FRAME;

struct Wire;

impl Host for Wire {
    fn input(&self, host: &mut PciHost, now: Time, len: usize) {
        host.with_device(SLOT, |net: &mut Net| {
            let room = net.room() > 0 && (1..=MAX_FRAME).contains(&len);
            assert_eq!(net.receive(now, &vec![0x5a; len]), room);
        });
    }

    fn output(&self, host: &mut PciHost) {
        let frames = host.with_device(SLOT, Net::take_sent).unwrap_or_default();
        assert!(frames.iter().all(|frame| (1..=MAX_FRAME).contains(&frame.len())));
        assert!(frames.iter().map(Vec::len).sum::<usize>() <= MOST_SENT);
    }
}

/// Runs it.
pub fn run(input: Input) {
    virtio::run(Net::new([2, 0, 0, 0, 0, 1]), Wire, &input);
}
