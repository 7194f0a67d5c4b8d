//! A request on its way into the pool and back, one step at a time.

use serde::{Deserialize, Serialize};
use swiotlb::IO_TLB_SIZE;

use super::{Bounce, Copied, MAX_PIECE};
use crate::agent::Time;
use crate::dma::{DmaError, DmaPort, Poll, Scatter, Segment, Transfer};
use crate::virtio::{Chain, Head, Timing};

/// What [`Chain::map`] and [`Chain::unmap`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is nothing more to do; nothing was done in this call.
    Ready,
    /// A step was done; the next is due then.
    Later(Time),
}

/// Why a request cannot be mapped. It has no slots then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// It needs more slots than the pool can have.
    #[error("a request of {bytes} bytes is larger than the bounce pool")]
    TooLarge {
        /// Bytes of the request.
        bytes: u64,
    },
    /// It has waited long enough for slots.
    #[error("the bounce pool stays full")]
    Full,
    /// What the device is to read cannot be read.
    #[error("{error}, {at} bytes into the request")]
    Dma {
        /// What happened.
        error: DmaError,
        /// Bytes that were copied before that.
        at: u64,
    },
}

/// What of a buffer has one mapping in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    /// Device address.
    pub(super) original: u64,
    /// Address in the pool.
    pub(super) address: u64,
    /// Bytes, at most [`MAX_PIECE`].
    pub(super) size: u32,
}

impl Piece {
    pub(super) fn slots(&self) -> usize {
        (self.size as usize).div_ceil(IO_TLB_SIZE)
    }
}

/// Bytes of a piece that are to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    piece: usize,
    from: u32,
    to: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    /// Needs slots; how long it waits between two looks, and how long it has.
    Slots { pause: Time, waited: Time },
    /// Is copied in.
    In,
    /// Is in the pool.
    Held,
    /// Is copied out.
    Out,
    /// Has no slots any more.
    Gone,
}

/// The mappings of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    stage: Stage,
    /// What the device reads, then what it writes.
    pieces: Vec<Piece>,
    /// How many of them the device reads.
    readable: usize,
    /// What is to be copied, how much of that has been, and the part in progress.
    parts: Vec<Part>,
    next: usize,
    transfer: Option<Transfer>,
    copied: u64,
}

/// Cuts segments into pieces, for at most `most` bytes. `Err`: so many bytes on, a segment wraps.
fn cut(scatter: &Scatter, mut most: u64, pieces: &mut Vec<Piece>) -> Result<(), u64> {
    let mut before = 0;
    for segment in scatter.iter() {
        let len = u64::from(segment.len).min(most);
        most -= len;
        if len > 0 && segment.iova.checked_add(len - 1).is_none() {
            return Err(before);
        }
        before += len;
        let mut at = 0;
        while at < len {
            let size = (len - at).min(u64::from(MAX_PIECE)) as u32;
            pieces.push(Piece { original: segment.iova + at, address: 0, size });
            at += u64::from(size);
        }
    }
    Ok(())
}

/// Slots that the first `most` bytes would take.
fn slots(scatter: &Scatter, mut most: u64) -> u64 {
    let mut slots = 0;
    for segment in scatter.iter() {
        let len = u64::from(segment.len).min(most);
        most -= len;
        slots += len.div_ceil(IO_TLB_SIZE as u64);
    }
    slots
}

fn in_pool(pieces: &[Piece]) -> Scatter {
    let mut scatter = Scatter::default();
    pieces.iter().for_each(|p| scatter.push(Segment { iova: p.address, len: p.size }));
    scatter
}

impl Mapping {
    /// What a chain needs.
    fn plan(chain: &Chain, bounce: &Bounce, most: u64, timing: &Timing) -> Result<Self, MapError> {
        // Before anything is allocated whose size the guest chooses.
        let need = slots(&chain.readable, u64::MAX) + slots(&chain.writable, most);
        if need > bounce.stats().most_slots as u64 {
            let bytes = chain.readable.total() + chain.writable.total().min(most);
            return Err(MapError::TooLarge { bytes });
        }
        let mut pieces = Vec::new();
        let wraps = |at| MapError::Dma { error: DmaError::Wraps, at };
        cut(&chain.readable, u64::MAX, &mut pieces).map_err(wraps)?;
        let readable = pieces.len();
        cut(&chain.writable, most, &mut pieces).map_err(|at| wraps(chain.readable.total() + at))?;
        if !bounce.could_hold(&pieces) {
            return Err(MapError::TooLarge { bytes: chain.readable.total() + chain.writable.total() });
        }
        let stage = Stage::Slots { pause: timing.slots, waited: 0 };
        Ok(Self { stage, pieces, readable, parts: Vec::new(), next: 0, transfer: None, copied: 0 })
    }

    /// Gives up the SMMU transaction in progress.
    fn cancel(&mut self, port: &DmaPort) {
        if let Some(transfer) = &mut self.transfer {
            port.cancel(transfer);
        }
    }

    /// Gives back the slots.
    fn release(&mut self, port: &DmaPort, bounce: &Bounce) {
        self.cancel(port);
        self.transfer = None;
        if matches!(self.stage, Stage::In | Stage::Held | Stage::Out) {
            bounce.give_all(&self.pieces);
        }
        self.stage = Stage::Gone;
    }

    /// Looks for slots.
    fn find_slots(&mut self, bounce: &Bounce, now: Time, timing: &Timing) -> Result<Step, MapError> {
        let Stage::Slots { pause, waited } = self.stage else { return Ok(Step::Ready) };
        if bounce.take(&mut self.pieces) {
            let whole = |(piece, p): (usize, &Piece)| Part { piece, from: 0, to: p.size };
            self.parts = self.pieces[..self.readable].iter().enumerate().map(whole).collect();
            self.stage = if self.parts.is_empty() { Stage::Held } else { Stage::In };
            return Ok(Step::Later(now + timing.translate));
        }
        if bounce.grow() {
            return Ok(Step::Later(now + timing.slots));
        }
        if waited >= timing.patience {
            return Err(MapError::Full);
        }
        if waited == 0 {
            bounce.counters().waits += 1;
        }
        // Less and less often, so that waiting costs little.
        self.stage = Stage::Slots { pause: pause.saturating_mul(2).max(1), waited: waited + pause.max(1) };
        Ok(Step::Later(now + pause.max(1)))
    }

    /// One step of copying `parts`; `None` when all are copied.
    fn copy(
        &mut self,
        head: Head,
        out: bool,
        port: &DmaPort,
        bounce: &Bounce,
        now: Time,
        timing: &Timing,
    ) -> Result<Option<Time>, DmaError> {
        loop {
            let Some(part) = self.parts.get(self.next) else { return Ok(None) };
            let Some(piece) = self.pieces.get(part.piece) else { return Ok(None) };
            let len = u64::from(part.to.saturating_sub(part.from));
            let transfer = match &mut self.transfer {
                Some(transfer) => transfer,
                none => none.insert(port.begin(piece.original + u64::from(part.from), len, out)?),
            };
            if transfer.left() == 0 {
                self.transfer = None;
                self.next += 1;
                continue;
            }
            if !transfer.ready() {
                return Ok(Some(match port.poll(transfer)? {
                    Poll::Ready => timing.translate,
                    Poll::Walking(fetch) => timing.translate + fetch,
                    Poll::Stalled => timing.retry,
                }));
            }
            let mut bytes = [0; 4096];
            let address = piece.address + (transfer.iova() - piece.original);
            let n = transfer.next_beat(bytes.len().min(timing.beat_len()));
            let data = &mut bytes[..n];
            let copied = Copied { head, iova: transfer.iova(), len: n as u64, out };
            if out {
                bounce.bounce_out(address, data)?;
                port.beat_write(transfer, data)?;
            } else {
                port.beat_read(transfer, data)?;
                bounce.bounce_in(address, data)?;
            }
            self.copied += n as u64;
            if let Some(onlooker) = bounce.onlooker() {
                onlooker.copied(port, now, &copied);
            }
            return Ok(Some(timing.beat));
        }
    }

    /// The parts of what the device writes that `ranges` cover.
    fn cover(&self, ranges: &[(u64, u64)]) -> Vec<Part> {
        let mut parts = Vec::new();
        for &(from, to) in ranges {
            let mut start = 0;
            for (piece, p) in self.pieces.iter().enumerate().skip(self.readable) {
                let end = start + u64::from(p.size);
                let (a, b) = (from.max(start), to.min(end));
                if a < b {
                    parts.push(Part { piece, from: (a - start) as u32, to: (b - start) as u32 });
                }
                start = end;
            }
        }
        parts
    }
}

impl Chain {
    /// Does one step towards having the request where the device may work on it: with a bounced port, in the pool; of
    /// what the device writes, the first `most` bytes. With any other port it is always there.
    ///
    /// # Errors
    /// When it cannot be had there. The buffers are then as they were when the request was taken.
    pub fn map(&mut self, port: &DmaPort, now: Time, timing: &Timing, most: u64) -> Result<Step, MapError> {
        let Some(bounce) = port.bounce() else { return Ok(Step::Ready) };
        if self.mapping.is_none() {
            let mapping =
                Mapping::plan(self, bounce, most, timing).inspect_err(|e| refused(e, bounce, port))?;
            self.mapping = Some(Box::new(mapping));
        }
        let Some(mapping) = &mut self.mapping else { return Ok(Step::Ready) };
        let step = match mapping.stage {
            Stage::Slots { .. } => mapping.find_slots(bounce, now, timing),
            Stage::In => match mapping.copy(self.head, false, port, bounce, now, timing) {
                Ok(Some(time)) => Ok(Step::Later(now + time)),
                Ok(None) => {
                    mapping.stage = Stage::Held;
                    Ok(Step::Ready)
                }
                Err(error) => Err(MapError::Dma { error, at: mapping.copied }),
            },
            Stage::Held | Stage::Out | Stage::Gone => return Ok(Step::Ready),
        };
        if let Err(e) = &step {
            mapping.release(port, bounce);
            self.mapping = None;
            refused(e, bounce, port);
        } else if mapping.stage == Stage::Held {
            self.readable = in_pool(&mapping.pieces[..mapping.readable]);
            self.writable = in_pool(&mapping.pieces[mapping.readable..]);
        }
        step
    }

    /// Does one step towards having in guest memory what the device wrote, and no slots.
    ///
    /// # Errors
    /// When guest memory cannot be written. What was copied before is there, and [`Chain::amend`] may try a last word.
    pub fn unmap(&mut self, port: &DmaPort, now: Time, timing: &Timing) -> Result<Step, DmaError> {
        let (Some(bounce), Some(mapping)) = (port.bounce(), &mut self.mapping) else {
            return Ok(Step::Ready);
        };
        match mapping.stage {
            Stage::Held => {
                mapping.parts = mapping.cover(&self.writable.written());
                (mapping.next, mapping.copied, mapping.stage) = (0, 0, Stage::Out);
                Ok(Step::Later(now + timing.translate))
            }
            Stage::Out => match mapping.copy(self.head, true, port, bounce, now, timing)? {
                Some(time) => Ok(Step::Later(now + time)),
                None => {
                    mapping.release(port, bounce);
                    Ok(Step::Later(now + timing.fetch))
                }
            },
            Stage::Slots { .. } | Stage::In | Stage::Gone => Ok(Step::Ready),
        }
    }

    /// After a failed [`Chain::unmap`]: makes `byte` the last one that the device wrote, and lets the next steps copy out
    /// nothing else. `false` when there is no such byte.
    pub fn amend(&mut self, port: &DmaPort, byte: u8) -> bool {
        let (Some(bounce), Some(mapping)) = (port.bounce(), &mut self.mapping) else { return false };
        let Some(last) = mapping.pieces[mapping.readable..].last().copied() else { return false };
        mapping.cancel(port);
        mapping.transfer = None;
        let at = u64::from(last.size) - 1;
        let piece = mapping.pieces.len() - 1;
        mapping.parts = vec![Part { piece, from: at as u32, to: last.size }];
        (mapping.next, mapping.stage) = (0, Stage::Out);
        bounce.write(last.address + at, &[byte]).is_ok()
    }

    /// Leaves nothing of the request but the last byte that the device may write. `false` when there is none. The
    /// request must not be mapped.
    pub fn keep_last_byte(&mut self) -> bool {
        let Some(last) = self.writable.iter().filter(|s| s.len > 0).last().copied() else { return false };
        let Some(iova) = last.iova.checked_add(u64::from(last.len) - 1) else { return false };
        self.readable = Scatter::default();
        self.writable = Scatter::default();
        self.writable.push(Segment { iova, len: 1 });
        true
    }

    /// Bytes that have been copied out so far.
    pub fn copied(&self) -> u64 {
        self.mapping.as_ref().map_or(0, |m| m.copied)
    }

    /// Whether it is in a pool.
    pub fn bounced(&self) -> bool {
        self.mapping.is_some()
    }

    /// Gives up the SMMU transaction in progress; it begins anew in later steps.
    pub fn suspend(&mut self, port: &DmaPort) {
        if let Some(mapping) = &mut self.mapping {
            return mapping.cancel(port);
        }
        self.readable.cancel(port);
        self.writable.cancel(port);
    }

    /// Gives up the request: it will not be returned.
    pub fn discard(&mut self, port: &DmaPort) {
        self.suspend(port);
        if let (Some(bounce), Some(mapping)) = (port.bounce(), &mut self.mapping) {
            mapping.release(port, bounce);
        }
    }
}

/// Notes that a request has no place in the pool.
fn refused(error: &MapError, bounce: &Bounce, port: &DmaPort) {
    if matches!(error, MapError::TooLarge { .. } | MapError::Full) {
        bounce.counters().failures += 1;
        log::error!("bounced device {:#06x}: {error}", port.requester().sid);
    }
}
