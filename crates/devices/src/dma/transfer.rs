//! Data accesses, one step at a time.

use serde::{Deserialize, Serialize};
use smmu_model::{Progress, TxnId};

use super::port::count;
use super::{Attributes, DmaError, DmaPort, PhysMem};
use crate::agent::Time;

/// Bursts do not cross this boundary, so that each lies within one translation granule of any size.
const BURST_BOUNDARY: u64 = 4096;

/// An access of a device to consecutive addresses. It moves in beats; each beat is a transaction of its own: it is
/// translated (a step, and one for every fetch of the walk), moved (a step), and then ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    pub(super) iova: u64,
    pub(super) left: u64,
    pub(super) write: bool,
    pub(super) attributes: Attributes,
    pub(super) stage: Stage,
    /// How ATS is used.
    pub(super) way: Way,
    /// The translation of the device's cache that is in use.
    pub(super) holding: Option<u64>,
    /// Bytes that that translation covers.
    pub(super) bound: u64,
    /// Bytes after it that the device will access next.
    pub(super) ahead: u64,
}

/// Whether an access uses ATS, where ATS is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    /// It does.
    Ats,
    /// It did, and was refused: this beat goes untranslated.
    Fallback,
    /// It never does.
    Untranslated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    Idle,
    /// A Translation Request; and the invalidations before it.
    Requesting {
        id: TxnId,
        generation: u64,
    },
    /// The translation is known, and the Translated transaction not begun.
    Translated {
        address: u64,
        bytes: u64,
    },
    /// A group of page requests with this index is outstanding.
    Paging(u16),
    Walking(TxnId),
    Stalled(TxnId),
    /// `id` is `None` when addresses are physical.
    Latched {
        id: Option<TxnId>,
        pa: u64,
        bytes: u64,
    },
    /// The SMMU terminated the transaction as RAZ/WI: the beat moves zeroes, or nothing.
    Discarded,
}

/// What [`DmaPort::poll`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// The translation is latched: the next step is the beat.
    Ready,
    /// The walk goes on: a fetch was done, or comes next. It takes so many nanoseconds, on top of the device's own step.
    Walking(Time),
    /// The SMMU holds the transaction until software answers (IHI 0070 §3.12.2). Poll again later.
    Stalled,
}

impl Transfer {
    /// Bytes still to move.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Address of the next byte to move.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Bytes that the next beat moves if there is room for so many; 0 when nothing is latched.
    pub fn next_beat(&self, room: usize) -> usize {
        match self.stage {
            Stage::Latched { bytes, .. } => self.beat_len(bytes, room) as usize,
            Stage::Discarded => self.beat_len(u64::MAX, room) as usize,
            _ => 0,
        }
    }

    fn beat_len(&self, latched: u64, room: usize) -> u64 {
        let burst = BURST_BOUNDARY - self.iova % BURST_BOUNDARY;
        burst.min(latched).min(self.bound).min(self.left).min(room as u64)
    }

    /// The same, without ATS whatever software enabled: interrupt messages.
    #[must_use]
    pub fn untranslated(self) -> Self {
        Self { way: Way::Untranslated, ..self }
    }

    /// The same, and the device will go on with so many bytes after it: page requests ask for their pages as well.
    #[must_use]
    pub fn followed_by(self, ahead: u64) -> Self {
        Self { ahead, ..self }
    }

    /// Whether a translation is latched, so that the next step is a beat.
    pub fn ready(&self) -> bool {
        matches!(self.stage, Stage::Latched { .. } | Stage::Discarded)
    }
}

impl DmaPort {
    /// Prepares an access of `len` bytes at `iova`. Nothing happens yet.
    ///
    /// # Errors
    /// [`DmaError::Wraps`] when the range runs over the end of the address space.
    pub fn begin(&self, iova: u64, len: u64, write: bool) -> Result<Transfer, DmaError> {
        self.begin_as(iova, len, write, self.attributes())
    }

    /// Prepares an access with attributes of its own; otherwise as [`DmaPort::begin`].
    ///
    /// # Errors
    /// As [`DmaPort::begin`].
    pub fn begin_as(
        &self,
        iova: u64,
        len: u64,
        write: bool,
        attributes: Attributes,
    ) -> Result<Transfer, DmaError> {
        if len > 0 && iova.checked_add(len - 1).is_none() {
            return Err(self.refused(DmaError::Wraps));
        }
        let (stage, way) = (Stage::Idle, Way::Ats);
        Ok(Transfer {
            iova,
            left: len,
            write,
            attributes,
            stage,
            way,
            holding: None,
            bound: u64::MAX,
            ahead: 0,
        })
    }

    /// Goes one step towards the translation of the next beat: at most one fetch.
    ///
    /// # Errors
    /// When the port is revoked or the SMMU terminates the transaction. The transfer is over then.
    pub fn poll(&self, transfer: &mut Transfer) -> Result<Poll, DmaError> {
        if !self.enabled() {
            self.cancel(transfer);
            return Err(self.refused(DmaError::Revoked));
        }
        // Once for a burst, which lies within a page as what is reachable does.
        let reach = match self.reachable(transfer.iova) {
            Ok(reach) => reach,
            Err(e) => {
                self.cancel(transfer);
                return Err(e);
            }
        };
        let counters = &self.0.counters;
        let Some(smmu) = self.smmu() else {
            if transfer.stage == Stage::Idle {
                count(&counters.transactions, 1);
            }
            transfer.stage = Stage::Latched { id: None, pa: transfer.iova, bytes: reach };
            return Ok(Poll::Ready);
        };
        if self.ats_goes_on(transfer) {
            return self.poll_ats(transfer);
        }
        let mut smmu = smmu.lock().unwrap_or_else(|e| e.into_inner());
        let progress = match transfer.stage {
            Stage::Latched { .. } | Stage::Discarded => return Ok(Poll::Ready),
            // Of ATS; that has been done.
            Stage::Requesting { .. } | Stage::Translated { .. } | Stage::Paging(_) => {
                return Ok(Poll::Walking(0));
            }
            Stage::Idle => {
                count(&counters.transactions, 1);
                smmu.begin(&self.transaction(transfer.iova, transfer.write, transfer.attributes))
            }
            Stage::Walking(id) | Stage::Stalled(id) => {
                count(&counters.fetches, 1);
                smmu.step(id, &PhysMem::new(&self.0.fabric.ram))
            }
        };
        drop(smmu);
        self.progressed(transfer, progress)
    }

    /// How long a fetch of the SMMU takes, on top of the device's own step.
    pub(super) fn fetch_time(&self) -> Time {
        self.smmu().map_or(0, |smmu| smmu.lock().unwrap_or_else(|e| e.into_inner()).config().lat_walk.into())
    }

    /// Puts a transfer where its transaction is.
    pub(super) fn progressed(&self, transfer: &mut Transfer, progress: Progress) -> Result<Poll, DmaError> {
        match progress {
            Progress::Walking(id) => {
                transfer.stage = Stage::Walking(id);
                Ok(Poll::Walking(self.fetch_time()))
            }
            Progress::Stalled(id) => {
                transfer.stage = Stage::Stalled(id);
                Ok(Poll::Stalled)
            }
            Progress::Latched(id, t) => {
                transfer.stage = Stage::Latched { id: Some(id), pa: t.pa, bytes: t.bytes };
                Ok(Poll::Ready)
            }
            Progress::Discarded => {
                transfer.stage = Stage::Discarded;
                Ok(Poll::Ready)
            }
            Progress::Aborted => {
                self.let_go(transfer);
                transfer.stage = Stage::Idle;
                Err(self.refused(DmaError::Aborted))
            }
        }
    }

    /// Moves one beat from memory into the front of `data` under the latched translation, and ends the transaction.
    /// Returns the bytes moved: at most `data.len()`, what is left, what the translation covers, and never over a
    /// 4 KiB boundary. Zero when nothing is latched.
    ///
    /// # Errors
    /// When the port is revoked or the physical address is not memory.
    pub fn beat_read(&self, transfer: &mut Transfer, data: &mut [u8]) -> Result<usize, DmaError> {
        self.beat(transfer, false, data.len(), |port, pa, n| match (data.get_mut(..n), pa) {
            (Some(part), Some(pa)) => port.load_physical(pa, part),
            (Some(part), None) => {
                part.fill(0);
                Ok(())
            }
            (None, _) => Err(DmaError::Wraps),
        })
    }

    /// Moves one beat from the front of `data` to memory; otherwise as [`DmaPort::beat_read`].
    ///
    /// # Errors
    /// When the port is revoked or the physical address is neither memory nor, for two or four bytes, the doorbell.
    pub fn beat_write(&self, transfer: &mut Transfer, data: &[u8]) -> Result<usize, DmaError> {
        self.beat(transfer, true, data.len(), |port, pa, n| match (data.get(..n), pa) {
            (Some(part), Some(pa)) => port.store_physical(pa, part),
            (Some(_), None) => Ok(()),
            (None, _) => Err(DmaError::Wraps),
        })
    }

    fn beat(
        &self,
        transfer: &mut Transfer,
        write: bool,
        room: usize,
        access: impl FnOnce(&Self, Option<u64>, usize) -> Result<(), DmaError>,
    ) -> Result<usize, DmaError> {
        let (id, pa, bytes) = match transfer.stage {
            Stage::Latched { id, pa, bytes } => (id, Some(pa), bytes),
            Stage::Discarded => (None, None, u64::MAX),
            _ => return Ok(0),
        };
        if !self.enabled() {
            self.cancel(transfer);
            return Err(self.refused(DmaError::Revoked));
        }
        let n = transfer.beat_len(bytes, room);
        let result = if n == 0 || write != transfer.write { Ok(()) } else { access(self, pa, n as usize) };
        self.end(id);
        self.let_go(transfer);
        transfer.stage = Stage::Idle;
        if transfer.way == Way::Fallback {
            transfer.way = Way::Ats;
        }
        result?;
        if write != transfer.write {
            return Ok(0);
        }
        count(&self.0.counters.beats, 1);
        transfer.iova = transfer.iova.wrapping_add(n);
        transfer.left -= n;
        Ok(n as usize)
    }

    /// Gives up the transaction in progress, if any, without moving data; the transfer can be polled again later and
    /// is then translated anew.
    pub fn cancel(&self, transfer: &mut Transfer) {
        match transfer.stage {
            Stage::Walking(id) | Stage::Stalled(id) | Stage::Requesting { id, .. } => self.end(Some(id)),
            Stage::Latched { id, .. } => self.end(id),
            Stage::Paging(group) => self.abandon_page(group),
            Stage::Idle | Stage::Discarded | Stage::Translated { .. } => {}
        }
        self.let_go(transfer);
        transfer.stage = Stage::Idle;
    }

    /// Tells the SMMU that a transaction is over: a CMD_SYNC may have waited for it.
    pub(super) fn end(&self, id: Option<TxnId>) {
        if let (Some(id), Some(smmu)) = (id, self.smmu()) {
            smmu.lock().unwrap_or_else(|e| e.into_inner()).complete(id);
        }
    }

    /// Translates the address of a bookkeeping access, its walk running to completion. The transaction has ended when
    /// this returns; the caller accesses memory in the same step.
    pub(super) fn translate_now(&self, iova: u64, write: bool) -> Result<Place, DmaError> {
        if !self.enabled() {
            return Err(self.refused(DmaError::Revoked));
        }
        let reach = self.reachable(iova)?;
        let counters = &self.0.counters;
        count(&counters.transactions, 1);
        let Some(smmu) = self.smmu() else { return Ok(Place::Memory { pa: iova, bytes: reach }) };
        let translated = if self.ats_on() { self.ats_now(iova, write)? } else { None };
        let mut smmu = smmu.lock().unwrap_or_else(|e| e.into_inner());
        let (mut progress, bound) = match translated {
            Some((address, bytes)) => {
                (smmu.begin_translated(&self.transaction(address, write, self.attributes())), bytes)
            }
            None => {
                let t = self.transaction(iova, write, self.attributes());
                let (progress, fetches) = smmu.translate(&t, &PhysMem::new(&self.0.fabric.ram));
                count(&counters.fetches, fetches);
                (progress, u64::MAX)
            }
        };
        loop {
            match progress {
                Progress::Latched(id, t) => {
                    smmu.complete(id);
                    return Ok(Place::Memory { pa: t.pa, bytes: t.bytes.min(bound).max(1).min(reach) });
                }
                Progress::Discarded => return Ok(Place::Nowhere),
                Progress::Aborted => return Err(self.refused(DmaError::Aborted)),
                Progress::Stalled(id) => {
                    smmu.complete(id);
                    return Err(self.refused(DmaError::Stalled));
                }
                // Every walk ends: levels and stages are finite.
                Progress::Walking(id) => {
                    count(&counters.fetches, 1);
                    progress = smmu.step(id, &PhysMem::new(&self.0.fabric.ram));
                }
            }
        }
    }
}

/// Where a bookkeeping access goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// `bytes` of physical memory from `pa`.
    Memory { pa: u64, bytes: u64 },
    /// RAZ/WI.
    Nowhere,
}
