//! One block request on its way (virtio 1.3 §5.2.6): header, data, status, used ring. Each arrow is a step.

use serde::{Deserialize, Serialize};

use super::backend::{BlockBackend, Operation, SECTOR};
use super::{Chain, Io};
use crate::agent::Time;
use crate::bounce::{MapError, Step};
use crate::dma::{DmaError, DmaPort, Moved};

/// VIRTIO_BLK_F_FLUSH.
pub(super) const F_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_DISCARD.
pub(super) const F_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;

/// Sectors that one discard or write-zeroes request may name.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 16;
/// Ranges of one such request.
pub(super) const MAX_ZERO_RANGES: u32 = 1;

const HEADER: usize = 16;
const RANGE: u64 = 16;
const ID_LEN: usize = 20;

/// Data that a request holds at a time; longer ones go through several times.
const CHUNK: u64 = 128 << 10;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// A request and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// When its next step is due.
    due: Time,
    /// The operation that has to end first.
    away: Option<u64>,
    /// How it ended: with what was read, or not at all.
    answer: Option<Option<Vec<u8>>>,
    chain: Chain,
    stage: Stage,
    header: [u8; HEADER],
    /// Bytes of the header or of `data` that have been moved.
    filled: usize,
    /// The chunk in progress.
    pub(super) data: Vec<u8>,
    /// Bytes of the request's data before that chunk, and in all.
    position: u64,
    len: u64,
    status: u8,
    /// Bytes written from the start of the writable buffers without a gap.
    written: u64,
    /// Nothing of the request is left but where its status goes.
    cut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    /// Is mapped in the bounce pool, if there is one.
    Map,
    /// Reads the header.
    Header,
    /// Reads a chunk of data from guest memory.
    Load,
    /// The medium.
    Media,
    /// Writes a chunk of data to guest memory.
    Store,
    /// Writes the status byte.
    Status,
    /// Is unmapped.
    Unmap,
    /// Returns the buffers.
    Used,
}

/// What [`Request::step`] leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There are more steps.
    More,
    /// The request is over.
    Done,
}

impl Request {
    /// A request just taken off the ring; `data` lends its storage. `None` if the chain cannot be one: there is no room
    /// for a header or for a status.
    pub(super) fn new(chain: Chain, data: Vec<u8>, due: Time) -> Option<Self> {
        if chain.readable.total() < HEADER as u64 || chain.writable.total() < 1 {
            return None;
        }
        Some(Self {
            due,
            away: None,
            answer: None,
            chain,
            stage: Stage::Map,
            header: [0; HEADER],
            filled: 0,
            data,
            position: 0,
            len: 0,
            status: S_OK,
            written: 0,
            cut: false,
        })
    }

    /// When its next step is due; `None` while the backend has it.
    pub(super) fn due(&self) -> Option<Time> {
        self.away.is_none().then_some(self.due)
    }

    /// Whether it waits for the operation with this token.
    pub(super) fn awaits(&self, token: u64) -> bool {
        self.away == Some(token)
    }

    /// The operation has ended.
    pub(super) fn answer(&mut self, at: Time, result: Option<Vec<u8>>) {
        self.away = None;
        self.answer = Some(result);
        self.due = at;
    }

    fn kind(&self) -> u32 {
        u32::from_le_bytes([self.header[0], self.header[1], self.header[2], self.header[3]])
    }

    fn sector(&self) -> u64 {
        let mut sector = [0; 8];
        sector.copy_from_slice(&self.header[8..16]);
        u64::from_le_bytes(sector)
    }

    /// Does one step.
    pub(super) fn step(
        &mut self,
        io: &mut Io<'_>,
        backend: &mut dyn BlockBackend,
        token: &mut u64,
        id: &str,
    ) -> Outcome {
        let max = io.timing.beat_len();
        if self.stage == Stage::Map {
            match self.chain.map(io.port, io.now, io.timing, u64::MAX) {
                Ok(Step::Ready) if self.cut => self.enter(Stage::Status, io),
                Ok(Step::Ready) => self.stage = Stage::Header,
                Ok(Step::Later(due)) => {
                    self.due = due;
                    return Outcome::More;
                }
                Err(e) => {
                    self.unmappable(e, io);
                    return Outcome::More;
                }
            }
        }
        match self.stage {
            Stage::Map => {}
            Stage::Header => {
                let moved = self.chain.readable.step_read(io.buffers(), &mut self.header[self.filled..], max);
                match moved {
                    Ok(moved) => {
                        self.moved(io, moved);
                        if self.filled == HEADER {
                            self.filled = 0;
                            let stage = self.decode(io.features, backend, id);
                            self.enter(stage, io);
                        }
                    }
                    Err(e) => io.fail(&e),
                }
            }
            Stage::Load => {
                match self.chain.readable.step_read(io.buffers(), &mut self.data[self.filled..], max) {
                    Ok(moved) => {
                        self.moved(io, moved);
                        if self.filled == self.data.len() {
                            self.enter(Stage::Media, io);
                        }
                    }
                    Err(e) => self.cannot_move(&e, io),
                }
            }
            Stage::Media => self.media(io, backend, token),
            Stage::Store => {
                match self.chain.writable.step_write(io.buffers(), &self.data[self.filled..], max) {
                    Ok(moved) => {
                        self.moved(io, moved);
                        self.written = self.chain.writable.done();
                        if self.filled == self.data.len() {
                            self.position += self.data.len() as u64;
                            let more = self.position < self.len;
                            self.enter(if more { Stage::Media } else { Stage::Status }, io);
                        }
                    }
                    Err(e) => self.cannot_move(&e, io),
                }
            }
            Stage::Status => match self.chain.writable.step_write(io.buffers(), &[self.status], max) {
                Ok(Moved::Beat(_)) => {
                    if self.written == self.chain.writable.done() - 1 && !self.cut {
                        self.written += 1;
                    }
                    self.enter(if self.chain.bounced() { Stage::Unmap } else { Stage::Used }, io);
                }
                Ok(moved) => self.moved(io, moved),
                Err(e) => io.fail(&e),
            },
            Stage::Unmap => match self.chain.unmap(io.port, io.now, io.timing) {
                Ok(Step::Later(due)) => self.due = due,
                Ok(Step::Ready) => self.enter(Stage::Used, io),
                // The driver is told of data that cannot be written, if it can be told.
                Err(e) if self.status != S_IOERR && self.chain.copied() < self.written => {
                    warn(&e, io);
                    self.written = self.chain.copied();
                    self.status = S_IOERR;
                    if !self.chain.amend(io.port, S_IOERR) {
                        io.fail(&DmaError::External);
                    }
                    self.due = io.now + io.timing.translate;
                }
                Err(e) => io.fail(&e),
            },
            Stage::Used => {
                // Chains are shorter than 2^32 bytes.
                io.used(0, self.chain.head, self.written as u32);
                return Outcome::Done;
            }
        }
        Outcome::More
    }

    /// The request cannot be brought into the pool. If it can be told so, the driver is: by its status.
    fn unmappable(&mut self, error: MapError, io: &mut Io<'_>) {
        let no_header = matches!(error, MapError::Dma { at, .. } if at < HEADER as u64);
        if no_header || self.cut || !self.chain.keep_last_byte() {
            return io.fail(&error);
        }
        // Want of slots has its line already.
        if matches!(error, MapError::Dma { .. }) {
            warn(&error, io);
        }
        self.cut = true;
        self.status = S_IOERR;
        self.due = io.now + io.timing.translate;
    }

    /// Data cannot be read from, or written to, the driver's buffers.
    fn cannot_move(&mut self, error: &DmaError, io: &mut Io<'_>) {
        warn(error, io);
        self.finish(S_IOERR, io);
    }

    fn moved(&mut self, io: &Io<'_>, moved: Moved) {
        if let Moved::Beat(n) = moved {
            self.filled += n;
        }
        self.due = io.now + io.timing.after(moved);
    }

    /// Looks at the header. What is wrong with the request itself is an error for the driver, not for the device.
    fn decode(&mut self, features: u64, backend: &dyn BlockBackend, id: &str) -> Stage {
        let room = self.chain.writable.total() - 1;
        let given = self.chain.readable.total() - HEADER as u64;
        let has = |bit: u64| features & bit != 0;
        match self.kind() {
            T_IN => {
                self.len = room;
                self.checked(self.len, backend, Stage::Media)
            }
            T_OUT if !backend.read_only() => {
                self.len = given;
                self.checked(self.len, backend, Stage::Load)
            }
            T_FLUSH => Stage::Media,
            T_GET_ID => {
                self.data.clear();
                self.data.extend(id.bytes().chain(std::iter::repeat(0)).take(ID_LEN.min(room as usize)));
                self.len = self.data.len() as u64;
                if self.len == 0 { Stage::Status } else { Stage::Store }
            }
            kind @ (T_DISCARD | T_WRITE_ZEROES)
                if !backend.read_only()
                    && has(if kind == T_DISCARD { F_DISCARD } else { F_WRITE_ZEROES }) =>
            {
                self.len = given;
                if given == 0 || !given.is_multiple_of(RANGE) || given > RANGE * u64::from(MAX_ZERO_RANGES) {
                    self.status = S_IOERR;
                    return Stage::Status;
                }
                Stage::Load
            }
            T_OUT | T_DISCARD | T_WRITE_ZEROES if backend.read_only() => {
                self.status = S_IOERR;
                Stage::Status
            }
            _ => {
                self.status = S_UNSUPP;
                Stage::Status
            }
        }
    }

    /// `next` if `len` bytes at the request's sector lie on the disk.
    fn checked(&mut self, len: u64, backend: &dyn BlockBackend, next: Stage) -> Stage {
        if !len.is_multiple_of(SECTOR) || !on_disk(self.sector(), len, backend) {
            self.status = S_IOERR;
            return Stage::Status;
        }
        if len == 0 { Stage::Status } else { next }
    }

    /// Goes over to a stage and says when it is due.
    fn enter(&mut self, stage: Stage, io: &Io<'_>) {
        self.stage = stage;
        self.filled = 0;
        self.due = io.now
            + match stage {
                Stage::Media => io.timing.media,
                Stage::Used => io.timing.fetch,
                _ => io.timing.translate,
            };
        match stage {
            Stage::Load => {
                let n = (self.len - self.position).min(CHUNK);
                self.data.resize(n as usize, 0);
            }
            Stage::Status => {
                let gap = self.chain.writable.left() - 1;
                if gap > 0 {
                    self.chain.writable.skip(io.port, gap);
                }
            }
            _ => {}
        }
    }

    /// Gives up with a status.
    fn finish(&mut self, status: u8, io: &Io<'_>) {
        self.status = status;
        self.enter(Stage::Status, io);
    }

    /// The medium's part of the request: at once, or begun now and ended when the answer is there.
    fn media(&mut self, io: &Io<'_>, backend: &mut dyn BlockBackend, token: &mut u64) {
        if let Some(result) = self.answer.take() {
            return self.answered(result, io);
        }
        let left = (self.len - self.position).min(CHUNK) as usize;
        let offset = self.sector().wrapping_mul(SECTOR).wrapping_add(self.position);
        let last = self.position + self.data.len() as u64 == self.len;
        let operation = match self.kind() {
            T_IN => Some(Operation::Read { offset, len: left }),
            T_OUT => Some(Operation::Write {
                offset,
                data: std::mem::take(&mut self.data),
                through: last && io.features & F_FLUSH == 0,
            }),
            T_FLUSH => Some(Operation::Flush),
            _ => None,
        };
        if let Some(operation) = operation {
            match backend.submit(*token, operation) {
                None => {
                    self.away = Some(*token);
                    *token += 1;
                    return;
                }
                Some(Operation::Write { data, .. }) => self.data = data,
                Some(_) => {}
            }
        }
        self.media_at_once(io, backend);
    }

    /// What the backend answered.
    fn answered(&mut self, result: Option<Vec<u8>>, io: &Io<'_>) {
        let Some(data) = result else { return self.finish(S_IOERR, io) };
        match self.kind() {
            T_IN if data.len() as u64 == (self.len - self.position).min(CHUNK) => {
                self.data = data;
                self.enter(Stage::Store, io);
            }
            T_IN => self.finish(S_IOERR, io),
            T_OUT => {
                self.position += (self.len - self.position).min(CHUNK);
                self.enter(if self.position == self.len { Stage::Status } else { Stage::Load }, io);
            }
            _ => self.enter(Stage::Status, io),
        }
    }

    fn media_at_once(&mut self, io: &Io<'_>, backend: &mut dyn BlockBackend) {
        // In range: `checked` has seen it.
        let offset = self.sector().wrapping_mul(SECTOR).wrapping_add(self.position);
        let (result, next) = match self.kind() {
            T_IN => {
                let n = (self.len - self.position).min(CHUNK);
                self.data.resize(n as usize, 0);
                (backend.read_at(offset, &mut self.data), Stage::Store)
            }
            T_OUT => {
                let result = backend.write_at(offset, &self.data);
                self.position += self.data.len() as u64;
                let last = self.position == self.len;
                // Without the feature the driver cannot ask for it: every write is durable.
                let through = last && io.features & F_FLUSH == 0;
                let result = result.and_then(|()| if through { backend.flush() } else { Ok(()) });
                (result, if last { Stage::Status } else { Stage::Load })
            }
            T_FLUSH => (backend.flush(), Stage::Status),
            kind => {
                let status = zero_ranges(&self.data, kind == T_DISCARD, backend);
                return self.finish(status, io);
            }
        };
        match result {
            Ok(()) => self.enter(next, io),
            Err(e) => {
                log::error!("disk {:#06x}: request at byte {offset:#x}: {e}", io.port.requester().sid);
                self.finish(S_IOERR, io);
            }
        }
    }

    /// Gives up the SMMU transaction in progress.
    pub(super) fn suspend(&mut self, port: &DmaPort) {
        self.chain.suspend(port);
    }

    /// Gives up the request.
    pub(super) fn discard(&mut self, port: &DmaPort) {
        self.chain.discard(port);
    }

    /// Whether the saved positions make sense together.
    pub(super) fn plausible(&self) -> bool {
        self.filled
            <= if matches!(self.stage, Stage::Map | Stage::Header) { HEADER } else { self.data.len().max(1) }
            && self.position <= self.len
            && self.data.len() as u64 <= CHUNK
    }
}

/// Says that a request fails since the driver's buffers cannot be used.
fn warn(why: &impl std::fmt::Display, io: &Io<'_>) {
    log::warn!("disk {:#06x}: a request fails: {why}", io.port.requester().sid);
}

fn on_disk(sector: u64, len: u64, backend: &dyn BlockBackend) -> bool {
    sector.checked_mul(SECTOR).and_then(|at| at.checked_add(len)).is_some_and(|end| end <= backend.size())
}

/// Discards or zeroes the ranges in `data`. Both make zeroes: what a discarded sector reads is then the same in each
/// run.
fn zero_ranges(data: &[u8], discard: bool, backend: &mut dyn BlockBackend) -> u8 {
    for range in data.chunks_exact(RANGE as usize) {
        let word = |at: usize| u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]]);
        let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
        let (sectors, flags) = (word(8), word(12));
        // The unmap flag is for write-zeroes only, and the others are reserved.
        if flags & !u32::from(!discard) != 0 {
            return S_UNSUPP;
        }
        let len = u64::from(sectors) * SECTOR;
        if sectors > MAX_ZERO_SECTORS || !on_disk(sector, len, backend) {
            return S_IOERR;
        }
        if let Err(e) = backend.zero(sector * SECTOR, len) {
            log::error!("disk: zeroing {len} bytes at sector {sector}: {e}");
            return S_IOERR;
        }
    }
    S_OK
}
