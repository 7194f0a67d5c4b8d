//! A list of segments, moved one step at a time.

use serde::{Deserialize, Serialize};

use super::{DmaError, DmaPort, Poll, Transfer};
use crate::agent::Time;
use crate::bounce::Memory;

/// Consecutive device addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub len: u32,
}

/// A cursor over a list of segments, all read or all written by the device. Each step of it is one step of the design:
/// a translation, a fetch of its walk, or a data beat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scatter {
    segments: Vec<Segment>,
    /// The segment whose transfer begins next, and how much of it a skip has passed over.
    index: usize,
    offset: u32,
    done: u64,
    total: u64,
    current: Option<Transfer>,
    /// What was skipped: from and to.
    gaps: Vec<(u64, u64)>,
}

/// What a step of a [`Scatter`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// A beat of that many bytes.
    Beat(usize),
    /// A translation was latched, or a fetch made.
    Translated(Time),
    /// The SMMU stalls the transaction; try again later.
    Stalled,
    /// There is nothing left to move.
    End,
}

impl Scatter {
    /// Forgets the segments and the position, but keeps the storage. The transfer in progress must have been
    /// cancelled.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.index = 0;
        self.offset = 0;
        self.done = 0;
        self.total = 0;
        self.current = None;
        self.gaps.clear();
    }

    /// Appends a segment.
    pub fn push(&mut self, segment: Segment) {
        self.total += u64::from(segment.len);
        self.segments.push(segment);
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The segments.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    /// The ranges of bytes that were moved, not skipped.
    pub fn written(&self) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        let mut from = 0;
        for &(start, end) in self.gaps.iter().chain(&[(self.done, self.done)]) {
            if from < start {
                ranges.push((from, start));
            }
            from = end;
        }
        ranges
    }

    /// Bytes of all segments.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes moved or skipped.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Bytes left.
    pub fn left(&self) -> u64 {
        self.total.saturating_sub(self.done)
    }

    /// One step of moving from memory into the front of `data`; at most `max_beat` bytes in a beat.
    ///
    /// # Errors
    /// When the access is refused. The cursor does not move, and trying again is a new access.
    pub fn step_read<'a>(
        &mut self,
        memory: impl Into<Memory<'a>>,
        data: &mut [u8],
        max_beat: usize,
    ) -> Result<Moved, DmaError> {
        let n = data.len().min(max_beat);
        let Some(data) = data.get_mut(..n) else { return Ok(Moved::End) };
        match memory.into() {
            Memory::Guest(port) => {
                self.step(port, false, data.is_empty(), |port, transfer| port.beat_read(transfer, data))
            }
            Memory::Pool(pool) => self.step_pool(data.len(), |address, n| match data.get_mut(..n) {
                Some(part) => pool.read(address, part),
                None => Err(DmaError::Wraps),
            }),
        }
    }

    /// One step of moving from the front of `data` to memory; at most `max_beat` bytes in a beat.
    ///
    /// # Errors
    /// As [`Scatter::step_read`].
    pub fn step_write<'a>(
        &mut self,
        memory: impl Into<Memory<'a>>,
        data: &[u8],
        max_beat: usize,
    ) -> Result<Moved, DmaError> {
        let n = data.len().min(max_beat);
        let Some(data) = data.get(..n) else { return Ok(Moved::End) };
        match memory.into() {
            Memory::Guest(port) => {
                self.step(port, true, data.is_empty(), |port, transfer| port.beat_write(transfer, data))
            }
            Memory::Pool(pool) => self.step_pool(data.len(), |address, n| match data.get(..n) {
                Some(part) => pool.write(address, part),
                None => Err(DmaError::Wraps),
            }),
        }
    }

    /// One step in a pool: there is nothing to translate.
    fn step_pool(
        &mut self,
        room: usize,
        access: impl FnOnce(u64, usize) -> Result<(), DmaError>,
    ) -> Result<Moved, DmaError> {
        while let Some(segment) = self.segments.get(self.index) {
            let n = (segment.len.saturating_sub(self.offset) as usize).min(room);
            if n > 0 {
                access(segment.iova.wrapping_add(u64::from(self.offset)), n)?;
                self.offset += n as u32;
                self.done += n as u64;
                return Ok(Moved::Beat(n));
            }
            if room == 0 {
                break;
            }
            self.index += 1;
            self.offset = 0;
        }
        Ok(Moved::End)
    }

    fn step(
        &mut self,
        port: &DmaPort,
        write: bool,
        nothing: bool,
        beat: impl FnOnce(&DmaPort, &mut Transfer) -> Result<usize, DmaError>,
    ) -> Result<Moved, DmaError> {
        if nothing {
            return Ok(Moved::End);
        }
        loop {
            if let Some(transfer) = &mut self.current
                && transfer.left() > 0
            {
                if transfer.ready() {
                    let n = beat(port, transfer)?;
                    self.done += n as u64;
                    return Ok(Moved::Beat(n));
                }
                return Ok(match port.poll(transfer)? {
                    Poll::Ready => Moved::Translated(0),
                    Poll::Walking(fetch) => Moved::Translated(fetch),
                    Poll::Stalled => Moved::Stalled,
                });
            }
            let Some(segment) = self.segments.get(self.index) else { return Ok(Moved::End) };
            let iova = segment.iova.wrapping_add(u64::from(self.offset));
            if iova < segment.iova {
                return Err(DmaError::Wraps);
            }
            self.current =
                Some(port.begin(iova, u64::from(segment.len.saturating_sub(self.offset)), write)?);
            self.index += 1;
            self.offset = 0;
        }
    }

    /// Moves the cursor forward without an access. The transaction in progress is given up.
    pub fn skip(&mut self, port: &DmaPort, bytes: u64) {
        self.cancel(port);
        self.current = None;
        let bytes = bytes.min(self.left());
        if bytes > 0 {
            self.gaps.push((self.done, self.done + bytes));
        }
        self.done += bytes;
        let mut start = 0;
        for (index, segment) in self.segments.iter().enumerate() {
            let end = start + u64::from(segment.len);
            if self.done < end {
                (self.index, self.offset) = (index, (self.done - start) as u32);
                return;
            }
            start = end;
        }
        (self.index, self.offset) = (self.segments.len(), 0);
    }

    /// Gives up the transaction in progress; the next step begins it anew where it was.
    pub fn cancel(&mut self, port: &DmaPort) {
        if let Some(transfer) = &mut self.current {
            port.cancel(transfer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Fabric, ItsInbox};
    use super::*;
    use guest_ram::GuestRam;

    fn port() -> (GuestRam, DmaPort) {
        let ram = GuestRam::new(0x4000_0000, 0x10000).unwrap();
        let port = Fabric::new(ram.clone(), None, ItsInbox::default()).port(8);
        port.set_enabled(true);
        (ram, port)
    }

    fn scatter(segments: &[(u64, u32)]) -> Scatter {
        let mut scatter = Scatter::default();
        segments.iter().for_each(|&(iova, len)| scatter.push(Segment { iova, len }));
        scatter
    }

    #[test]
    fn beats_keep_to_pages_segments_and_the_beat_size() {
        let (ram, port) = port();
        let bytes: Vec<u8> = (0..0x2000u32).map(|i| (i * 7) as u8).collect();
        ram.write(0x4000_0f00, &bytes);
        let mut s = scatter(&[(0x4000_0f00, 0x180), (0, 0), (0x4000_1080, 0x100)]);
        let mut data = [0u8; 0x280];
        let (mut filled, mut beats) = (0, Vec::new());
        loop {
            match s.step_read(&port, &mut data[filled..], 0xc0).unwrap() {
                Moved::Beat(n) => {
                    filled += n;
                    beats.push(n);
                }
                Moved::Translated(_) => {}
                other => break assert_eq!(other, Moved::End),
            }
        }
        assert_eq!(beats, [0xc0, 0x40, 0x80, 0xc0, 0x40]);
        assert_eq!(data, bytes[..0x280]);
        assert_eq!((s.done(), s.left()), (0x280, 0));
    }

    #[test]
    fn skipping_lands_inside_a_segment() {
        let (ram, port) = port();
        let mut s = scatter(&[(0x4000_0000, 16), (0x4000_1000, 16), (0x4000_2000, 16)]);
        s.skip(&port, 20);
        s.skip(&port, 3);
        assert_eq!(s.step_write(&port, &[7; 4], 64).unwrap(), Moved::Translated(0));
        assert_eq!(s.step_write(&port, &[7; 4], 64).unwrap(), Moved::Beat(4));
        let mut back = [0; 16];
        ram.read(0x4000_1000, &mut back);
        assert_eq!(back, [0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7, 0, 0, 0, 0, 0]);
        s.skip(&port, 1000);
        assert_eq!(s.step_write(&port, &[7; 4], 64).unwrap(), Moved::End);
    }

    #[test]
    fn bad_segments_are_errors() {
        let (_ram, port) = port();
        assert_eq!(scatter(&[(u64::MAX, 2)]).step_write(&port, &[0; 2], 64), Err(DmaError::Wraps));
        let mut s = scatter(&[(0x1000, 2)]);
        assert_eq!(s.step_write(&port, &[0; 2], 64), Ok(Moved::Translated(0)));
        assert_eq!(s.step_write(&port, &[0; 2], 64), Err(DmaError::External));
        port.set_enabled(false);
        assert_eq!(s.step_write(&port, &[0; 2], 64), Err(DmaError::Revoked));
    }
}
