//! A command that runs: one transaction at a time, one step at a time.

use serde::{Deserialize, Serialize};

use super::random;
use super::work::{Piece, Work};
use crate::agent::Time;
use crate::dma::{Attributes, DmaError, DmaPort, Poll, Transfer};
use crate::testdev::Timing;

/// The commands that do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Command {
    /// Copies the range to udata\[0\].
    Memcpy,
    /// Fills the range with random bytes.
    Rand48,
    /// Sums the range's 64-bit words into udata\[1\].
    Sum64,
}

impl Command {
    /// From cmd.
    pub(super) fn from_cmd(cmd: u32) -> Option<Self> {
        match cmd {
            2 => Some(Command::Memcpy),
            3 => Some(Command::Rand48),
            4 => Some(Command::Sum64),
            _ => None,
        }
    }

    pub(super) fn reads(self) -> bool {
        self != Command::Rand48
    }

    pub(super) fn writes(self) -> bool {
        self != Command::Sum64
    }
}

/// What a frame asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) command: Command,
    pub(super) source: Attributes,
    pub(super) destination: Attributes,
    /// The address that goes to `target` in a copy; where the random bytes begin.
    pub(super) origin: u64,
    pub(super) target: u64,
    pub(super) seed: u32,
    /// Pause before each piece, in ns.
    pub(super) rate: Time,
}

/// A running command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    plan: Plan,
    work: Work,
    phase: Phase,
    /// The piece in hand, its bytes, and how many of them are moved in this phase.
    piece: Piece,
    data: Vec<u8>,
    sum: u64,
    /// Transactions begun and ended.
    pub(super) launched: u32,
    pub(super) returned: u32,
    /// When the next step is due.
    pub(super) due: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// The next piece is to be taken.
    Take,
    Read(Transfer),
    Write(Transfer),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All done; the sum, if it was one.
    Done(Option<u64>),
    /// A transaction to this address was refused.
    Failed(u64),
}

/// What a step of a transfer did.
enum Progress {
    Poll(Poll),
    Beat,
}

impl Job {
    /// A command whose first step is due at `due`.
    pub(super) fn new(plan: Plan, work: Work, due: Time) -> Self {
        Self {
            plan,
            work,
            phase: Phase::Take,
            piece: Piece::default(),
            data: Vec::new(),
            sum: 0,
            launched: 0,
            returned: 0,
            due,
        }
    }

    /// Gives up the SMMU transaction in progress; the next step begins it anew.
    pub(super) fn suspend(&mut self, port: &DmaPort) {
        if let Phase::Read(transfer) | Phase::Write(transfer) = &mut self.phase {
            port.cancel(transfer);
        }
    }

    /// One step: a fetch, a translation or a beat. Answers how the command ended, once it has.
    pub(super) fn step(&mut self, port: &DmaPort, timing: &Timing, now: Time) -> Option<End> {
        if self.phase == Phase::Take {
            let Some(piece) = self.work.take() else {
                return Some(End::Done((self.plan.command == Command::Sum64).then_some(self.sum)));
            };
            self.piece = piece;
            self.data.resize(usize::from(piece.len), 0);
            if self.plan.command == Command::Rand48 {
                self.fill();
            }
            let begun = if self.plan.command.reads() { self.read(port) } else { self.write(port) };
            if let Err(address) = begun {
                return Some(End::Failed(address));
            }
        }
        let (address, left, progress) = match &mut self.phase {
            Phase::Take => return None,
            Phase::Read(transfer) => {
                let done = self.data.len().saturating_sub(transfer.left() as usize);
                let address = transfer.iova();
                let progress = advance(port, transfer, |transfer| {
                    port.beat_read(transfer, self.data.get_mut(done..).unwrap_or_default())
                });
                (address, transfer.left(), progress)
            }
            Phase::Write(transfer) => {
                let done = self.data.len().saturating_sub(transfer.left() as usize);
                let address = transfer.iova();
                let progress = advance(port, transfer, |transfer| {
                    port.beat_write(transfer, self.data.get(done..).unwrap_or_default())
                });
                (address, transfer.left(), progress)
            }
        };
        match progress {
            Ok(Progress::Poll(Poll::Stalled)) => self.due = now + timing.retry,
            Ok(Progress::Poll(Poll::Walking(fetch))) => self.due = now + timing.translate + fetch,
            Ok(Progress::Poll(Poll::Ready)) => self.due = now + timing.translate,
            Ok(Progress::Beat) => {
                self.due = now + timing.beat;
                self.returned = self.returned.wrapping_add(1);
                if left > 0 {
                    // The rest is a transaction of its own.
                    self.launched = self.launched.wrapping_add(1);
                } else if let Err(address) = self.moved(port) {
                    return Some(End::Failed(address));
                }
            }
            Err(_) => {
                self.returned = self.returned.wrapping_add(1);
                return Some(End::Failed(address));
            }
        }
        None
    }

    /// All of the piece is read or written.
    fn moved(&mut self, port: &DmaPort) -> Result<(), u64> {
        let read = matches!(self.phase, Phase::Read(_));
        if read && self.plan.command == Command::Memcpy {
            return self.write(port);
        }
        if read {
            let words = self.data.chunks_exact(8).filter_map(|word| word.try_into().ok());
            self.sum = words.fold(self.sum, |sum, word| sum.wrapping_add(u64::from_le_bytes(word)));
        }
        self.phase = Phase::Take;
        self.due += self.plan.rate;
        Ok(())
    }

    fn read(&mut self, port: &DmaPort) -> Result<(), u64> {
        let Piece { at, len } = self.piece;
        let begun = port.begin_as(at, u64::from(len), false, self.plan.source);
        self.phase = Phase::Read(begun.map_err(|_| at)?.followed_by(self.work.ahead()));
        self.launched = self.launched.wrapping_add(1);
        Ok(())
    }

    fn write(&mut self, port: &DmaPort) -> Result<(), u64> {
        let Piece { at, len } = self.piece;
        let at = match self.plan.command {
            Command::Memcpy => self.plan.target.wrapping_add(at.wrapping_sub(self.plan.origin)),
            _ => at,
        };
        let begun = port.begin_as(at, u64::from(len), true, self.plan.destination);
        self.phase = Phase::Write(begun.map_err(|_| at)?.followed_by(self.work.ahead()));
        self.launched = self.launched.wrapping_add(1);
        Ok(())
    }

    /// The piece's random bytes. Elements are each seeded by their own address, a range by where it and its pages begin.
    fn fill(&mut self) {
        let Piece { at, .. } = self.piece;
        let begin = if self.work.has_elements() { at } else { self.plan.origin };
        random::fill(self.plan.seed, begin, at, &mut self.data);
    }
}

/// A step of a transfer.
fn advance(
    port: &DmaPort,
    transfer: &mut Transfer,
    beat: impl FnOnce(&mut Transfer) -> Result<usize, DmaError>,
) -> Result<Progress, DmaError> {
    if transfer.ready() {
        beat(transfer).map(|_| Progress::Beat)
    } else {
        port.poll(transfer).map(Progress::Poll)
    }
}
