//! Enhanced command queues (sections 3.5.6 and 6.2.5): a page of queues, each with its own enable, indices and errors.

use serde::{Deserialize, Serialize};

use crate::commands::Sync;
use crate::queue::{BASE_FIELDS, Queue};
use crate::registers::{half, set_half};
use crate::spec::command::Cerror;

/// ECMDQ_PROD.EN and ECMDQ_CONS.ENACK.
const EN: u32 = 1 << 31;
/// ECMDQ_PROD.ERRACK and ECMDQ_CONS.ERR.
const ERR: u32 = 1 << 23;
/// ECMDQ_CONS.ERR_REASON.
const ERR_REASON: u32 = 7 << 24;
/// Index and wrap.
const INDEX: u32 = 0xf_ffff;
/// log2 of the page's bytes.
const PAGE_SHIFT: u32 = 16;

/// One queue. Its registers are those of CMDQ, with the flags above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ecmdq {
    pub(crate) queue: Queue,
    /// What the CMD_SYNC at its head waits for.
    pub(crate) sync: Option<Sync>,
}

impl Ecmdq {
    pub(crate) fn is_enabled(&self) -> bool {
        self.queue.prod & self.queue.cons & EN != 0
    }

    /// Whether it is enabled and no error waits to be acknowledged.
    pub(crate) fn is_running(&self) -> bool {
        self.is_enabled() && (self.queue.prod ^ self.queue.cons) & ERR == 0
    }

    /// The command at CONS is in error: the queue stops until ERRACK follows.
    pub(crate) fn fail(&mut self, error: Cerror) {
        let cons = &mut self.queue.cons;
        *cons = (*cons & !ERR_REASON | (error as u32) << 24) ^ ERR;
    }

    fn read(&self, offset: u64) -> u32 {
        match offset {
            0x0 | 0x4 => half(self.queue.base, offset == 4),
            0x8 => self.queue.prod,
            0xc => self.queue.cons,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            0x0 | 0x4 if !self.is_enabled() => {
                set_half(&mut self.queue.base, offset == 4, value, BASE_FIELDS);
            }
            0x8 => {
                self.queue.prod = value & (EN | ERR | INDEX);
                // The enable takes effect at once; a CMD_SYNC that waits has not been consumed.
                self.queue.cons = self.queue.cons & !EN | value & EN;
                if value & EN == 0 {
                    self.sync = None;
                }
            }
            0xc if !self.is_enabled() => self.queue.cons = value & (ERR_REASON | ERR | INDEX),
            _ => {}
        }
    }
}

/// Which queue, and which of its bytes, an offset in the page of `queues` is: they are spaced evenly.
fn locate(queues: usize, offset: u64) -> (usize, u64) {
    let stride = PAGE_SHIFT - queues.max(1).trailing_zeros();
    ((offset >> stride) as usize, offset & ((1 << stride) - 1))
}

/// Reads a word of the control page.
pub(crate) fn read(queues: &[Ecmdq], offset: u64) -> u32 {
    let (n, at) = locate(queues.len(), offset);
    queues.get(n).map_or(0, |queue| queue.read(at))
}

/// Writes a word of the control page.
pub(crate) fn write(queues: &mut [Ecmdq], offset: u64, value: u32) {
    let (n, at) = locate(queues.len(), offset);
    if let Some(queue) = queues.get_mut(n) {
        queue.write(at, value);
    }
}
