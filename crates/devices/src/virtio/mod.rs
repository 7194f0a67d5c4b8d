//! Virtio 1.3 over PCI: the modern transport, virtqueues of both layouts, and the devices.

mod backend;
mod blk;
mod blk_request;
mod console;
mod job;
mod net;
mod packed;
mod queue;
mod registers;
mod rng;
mod split;
mod transport;

pub use backend::{BlockBackend, FileBackend, MemoryBackend, Operation, RemoteBackend, SECTOR, Submission};
pub use blk::{Blk, BlkState};
pub use console::{Console, ConsoleState};
pub use net::{MAX_FRAME, Net, NetState};
pub use queue::{Chain, Head, NO_VECTOR, QueueError, Virtqueue, VirtqueueState};
pub use rng::{Rng, RngState};
pub use transport::{VirtioPci, VirtioState};

use serde::{Deserialize, Serialize};

use crate::agent::Time;
use crate::bounce::{Memory, Taken};
use crate::dma::DmaPort;
use crate::pci::{Msix, StateError};

/// Feature bits that the transport itself offers (virtio 1.3 §6).
pub mod feature {
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notification suppression by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
    /// Device addresses pass the IOMMU.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// Packed virtqueues. Offered where a machine wants it: see `VirtioPci::offering`.
    pub const RING_PACKED: u64 = 1 << 34;
    /// Single queues can be reset.
    pub const RING_RESET: u64 = 1 << 40;
    /// What every device here offers.
    pub const COMMON: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | ACCESS_PLATFORM | RING_RESET;
    /// What a driver must accept: there is no other way to drive these devices.
    pub const REQUIRED: u64 = VERSION_1 | ACCESS_PLATFORM;
}

/// How long a device takes for what it does, in ns of virtual time, and how much it moves at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// From a notification to the first look at the ring.
    pub notify: Time,
    /// From taking one request off the ring to taking the next, and from there to its first access.
    pub fetch: Time,
    /// A translation, or one fetch of its walk.
    pub translate: Time,
    /// A data beat.
    pub beat: Time,
    /// Largest data beat, in bytes. A beat never crosses a 4 KiB boundary either.
    pub max_beat: u32,
    /// What stands behind the device: a disk's medium, a network's wire.
    pub media: Time,
    /// Until a stalled translation is looked at again.
    pub retry: Time,
    /// A bounced device's: until slots are looked for again, the first time; then twice as long, and so on.
    pub slots: Time,
    /// How long a request waits for slots before it fails.
    pub patience: Time,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            notify: 500,
            fetch: 100,
            translate: 20,
            beat: 200,
            max_beat: 4096,
            media: 2000,
            retry: 1000,
            slots: 10_000,
            patience: 20_000_000,
        }
    }
}

/// What a device sees of its transport during a step.
pub struct Io<'a> {
    /// The device's way to memory.
    pub port: &'a DmaPort,
    /// Its queues.
    pub queues: &'a mut [Virtqueue],
    /// Features that the driver accepted.
    pub features: u64,
    /// Latencies.
    pub timing: &'a Timing,
    /// Virtual time of the step.
    pub now: Time,
    kind: u16,
    msix: &'a mut Msix,
    isr: &'a mut u8,
    fault: &'a mut bool,
}

impl Io<'_> {
    /// Takes the next request off a queue. An unusable ring or chain makes the device need a
    /// reset, and is answered with `None` like an empty ring.
    pub fn pop(&mut self, queue: usize) -> Option<Chain> {
        let q = self.queues.get_mut(queue)?;
        match q.pop(self.port) {
            Ok(chain) => {
                if let (Some(chain), Some(onlooker)) = (&chain, self.port.onlooker()) {
                    let Chain { head, readable, writable, .. } = chain;
                    let (kind, announced) = (self.kind, q.announced(*head));
                    let taken = Taken { kind, queue, head: *head, announced, readable, writable };
                    onlooker.taken(self.port, self.now, &taken);
                }
                chain
            }
            Err(e) => {
                self.fail(&e);
                None
            }
        }
    }

    /// What the buffers of a mapped request are in.
    pub fn buffers(&self) -> Memory<'_> {
        self.port.buffers()
    }

    /// Puts the request that the last [`Io::pop`] gave back, so that it is the next one again.
    pub fn put_back(&mut self, queue: usize, head: Head) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.put_back(head);
        }
        if let Some(onlooker) = self.port.onlooker() {
            onlooker.given_back(self.port, queue, head);
        }
    }

    /// Returns a request to the driver: `written` bytes of it were filled. Interrupts if the driver wants that.
    pub fn used(&mut self, queue: usize, head: Head, written: u32) {
        let Some(q) = self.queues.get_mut(queue) else { return };
        if let Some(onlooker) = self.port.onlooker() {
            onlooker.given_back(self.port, queue, head);
        }
        match q.push(self.port, head, written) {
            Ok(true) => {
                *self.isr |= 1;
                self.msix.trigger(q.vector, self.now);
            }
            Ok(false) => {}
            Err(e) => self.fail(&e),
        }
    }

    /// The driver did what it must not: the device stops until it is reset (virtio 1.3 §2.1.2).
    pub fn fail(&mut self, why: &dyn std::fmt::Display) {
        log::warn!("virtio device {:#06x}: {why}; it needs a reset", self.port.requester().sid);
        *self.fault = true;
    }

    /// Whether [`Io::fail`] was called.
    pub fn failed(&self) -> bool {
        *self.fault
    }
}

/// A virtio device behind the PCI transport. Its registers are the transport's; what it does is steps.
///
/// The transport calls [`VirtioDevice::step`] only while the driver is ready, bus mastering is on and the device does
/// not need a reset.
pub trait VirtioDevice: Send + 'static {
    /// Device ID (virtio 1.3 §5).
    fn device_id(&self) -> u16;

    /// PCI class code.
    fn class(&self) -> u32;

    /// Feature bits of the device type that are offered.
    fn features(&self) -> u64;

    /// Largest sizes of the queues.
    fn queue_sizes(&self) -> &[u16];

    /// The device-specific configuration.
    fn config(&self) -> Vec<u8>;

    /// The driver made buffers available in a queue (or may have).
    fn notify(&mut self, queue: usize, at: Time);

    /// When the device's next step is due.
    fn next_step(&self) -> Option<Time>;

    /// Does one step.
    fn step(&mut self, io: &mut Io<'_>);

    /// Gives up the SMMU transactions in progress; they begin anew in later steps.
    fn suspend(&mut self, port: &DmaPort);

    /// Forgets everything about a queue: its requests will not be returned.
    fn reset_queue(&mut self, queue: usize, port: &DmaPort);

    /// Returns to the state after power-on, but for input from the host that was not yet delivered.
    fn reset(&mut self, port: &DmaPort);

    /// The device's state.
    fn save(&self) -> DeviceState;

    /// Takes over a state.
    ///
    /// # Errors
    /// When it is another device's.
    fn restore(&mut self, state: DeviceState) -> Result<(), StateError>;
}

/// The state of any virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[allow(clippy::large_enum_variant, reason = "a machine has a few of them, and only while it is saved")]
pub enum DeviceState {
    Blk(BlkState),
    Console(ConsoleState),
    Net(NetState),
    Rng(RngState),
}

#[cfg(test)]
mod tests;
