//! Somebody who watches what belongs to a bounced device, and never interferes: an ownership checker.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::agent::Time;
use crate::dma::{DmaPort, Scatter};
use crate::virtio::Head;

/// A request that a device has just taken off its ring. From then until it is given back its buffers are the device's.
#[derive(Debug)]
pub struct Taken<'a> {
    /// virtio's number of the device's kind.
    pub kind: u16,
    /// Its queue.
    pub queue: usize,
    /// What names it in its queue.
    pub head: Head,
    /// Device addresses of what the driver wrote last, in the ring, to make it available.
    pub announced: Range<u64>,
    /// The buffers that the device reads, in guest memory.
    pub readable: &'a Scatter,
    /// Those that it writes.
    pub writable: &'a Scatter,
}

/// Bytes of a buffer that are copied to or from the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// What names the request in its queue.
    pub head: Head,
    /// Device address of the first.
    pub iova: u64,
    /// How many.
    pub len: u64,
    /// To guest memory, not from it.
    pub out: bool,
}

/// Is told what becomes of the requests of bounced devices. The port tells which device it is.
pub trait Onlooker: std::fmt::Debug + Send + Sync {
    /// The driver enabled a queue: it makes requests available by writing to these device addresses.
    fn enabled(&self, port: &DmaPort, queue: usize, ring: Range<u64>);

    /// The device took a request.
    fn taken(&self, port: &DmaPort, now: Time, request: &Taken<'_>);

    /// A beat between a buffer and the pool.
    fn copied(&self, port: &DmaPort, now: Time, copied: &Copied);

    /// A request is about to be given back: in the used ring, or as one that the device did not take after all.
    fn given_back(&self, port: &DmaPort, queue: usize, head: Head);

    /// A queue, or the whole device, has no requests any more.
    fn reset(&self, port: &DmaPort, queue: Option<usize>);
}

/// Where the onlooker of a pool sits, if there is one.
pub(super) type Seat = Arc<OnceLock<Arc<dyn Onlooker>>>;

impl DmaPort {
    /// Who watches this device's buffers, if it is bounced and somebody does.
    #[inline]
    pub(crate) fn onlooker(&self) -> Option<&dyn Onlooker> {
        self.bounce()?.onlooker()
    }
}
