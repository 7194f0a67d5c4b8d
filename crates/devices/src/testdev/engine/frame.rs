//! A frame: 128 bytes that its user owns and 128 that somebody more privileged owns, and the rules for both.

use serde::{Deserialize, Serialize};

use super::job::{Command, Job, Plan};
use super::work::{Unit, Work};
use super::{Timing, attributes};
use crate::agent::Time;
use crate::dma::Attributes;

/// Bytes of either half.
pub(super) const FRAME_SIZE: u64 = 128;

/// Values of cmd beside the commands.
pub(super) mod state {
    /// Reads as this where there is no frame; as a command, the same as HALTED.
    pub(in super::super) const NO_FRAME: u32 = 0;
    pub(in super::super) const HALTED: u32 = 1;
    pub(in super::super) const MISCONFIGURED: u32 = u32::MAX - 1;
    pub(in super::super) const ERROR: u32 = u32::MAX;
}

/// Offsets in the user half.
mod user {
    pub(super) const CMD: u64 = 0x00;
    pub(super) const UCTRL: u64 = 0x04;
    pub(super) const LAUNCHED: u64 = 0x08;
    pub(super) const RETURNED: u64 = 0x0c;
    pub(super) const MSI_ADDRESS: u64 = 0x10;
    pub(super) const MSI_DATA: u64 = 0x18;
    pub(super) const ATTRIBUTES: u64 = 0x20;
    pub(super) const SEED: u64 = 0x24;
    pub(super) const BEGIN: u64 = 0x28;
    pub(super) const END_INCL: u64 = 0x30;
    pub(super) const STRIDE: u64 = 0x38;
    pub(super) const UDATA: u64 = 0x40;
}

/// Offsets in the privileged half.
mod privileged {
    pub(super) const PCTRL: u64 = 0x00;
    pub(super) const PORT_INDEX: u64 = 0x04;
    pub(super) const SUBSTREAM_ID: u64 = 0x0c;
}

/// uctrl: an MSI was refused.
const MSI_ABORTED: u64 = 1 << 0;
/// pctrl: the frame is non-secure. Only a secure access could clear it.
const SSD_NS: u64 = 1 << 0;
/// pctrl: ATS_ENABLE and PRI_ENABLE, which do nothing.
const PCTRL_WRITABLE: u64 = 3 << 8;
/// substreamid: transactions carry none.
const NO_SUBSTREAM: u32 = u32::MAX;

/// 128 bytes of registers, little-endian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Half([u64; 16]);

impl Half {
    fn byte(&self, at: u64) -> u8 {
        let word = self.0.get((at / 8) as usize).copied().unwrap_or(0);
        (word >> (at % 8 * 8)) as u8
    }

    fn set_byte(&mut self, at: u64, byte: u8) {
        if let Some(word) = self.0.get_mut((at / 8) as usize) {
            let shift = at % 8 * 8;
            *word = *word & !(0xff << shift) | u64::from(byte) << shift;
        }
    }

    fn get(&self, at: u64, size: u8) -> u64 {
        (0..u64::from(size.min(8))).fold(0, |value, i| value | u64::from(self.byte(at + i)) << (8 * i))
    }

    fn set(&mut self, at: u64, size: u8, value: u64) {
        (0..u64::from(size.min(8))).for_each(|i| self.set_byte(at + i, (value >> (8 * i)) as u8));
    }
}

/// A frame's registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frame {
    user: Half,
    privileged: Half,
}

impl Default for Frame {
    fn default() -> Self {
        let mut frame = Self { user: Half([0; 16]), privileged: Half([0; 16]) };
        frame.set_state(state::HALTED);
        frame.privileged.set(privileged::PCTRL, 4, SSD_NS);
        frame.privileged.set(privileged::SUBSTREAM_ID, 4, u64::from(NO_SUBSTREAM));
        frame
    }
}

impl Frame {
    /// Sets cmd, as the engine does.
    pub(super) fn set_state(&mut self, state: u32) {
        self.user.set(user::CMD, 4, u64::from(state));
    }

    /// Sets the counts of transactions.
    pub(super) fn set_counts(&mut self, launched: u32, returned: u32) {
        self.user.set(user::LAUNCHED, 4, u64::from(launched));
        self.user.set(user::RETURNED, 4, u64::from(returned));
    }

    /// Sets one of udata.
    pub(super) fn set_udata(&mut self, index: u64, value: u64) {
        self.user.set(user::UDATA + 8 * index, 8, value);
    }

    /// Sets uctrl.MSI_ABORTED.
    pub(super) fn set_msi_aborted(&mut self) {
        let uctrl = self.user.get(user::UCTRL, 4);
        self.user.set(user::UCTRL, 4, uctrl | MSI_ABORTED);
    }

    /// The vector that the end of a command is reported by, if it is reported.
    pub(super) fn vector(&self) -> Option<u16> {
        (self.user.get(user::MSI_ADDRESS, 8) == 1).then_some(self.user.get(user::MSI_DATA, 4) as u16)
    }

    /// Reads within the user half.
    pub(super) fn read_user(&self, at: u64, size: u8) -> u64 {
        self.user.get(at, size)
    }

    /// Reads within the privileged half.
    pub(super) fn read_privileged(&self, at: u64, size: u8) -> u64 {
        self.privileged.get(at, size)
    }

    /// Writes within the privileged half of a frame that is not running.
    pub(super) fn write_privileged(&mut self, at: u64, size: u8, value: u64) {
        self.privileged.set(at, size, value);
        let pctrl = self.privileged.get(privileged::PCTRL, 4);
        self.privileged.set(privileged::PCTRL, 4, pctrl & PCTRL_WRITABLE | SSD_NS);
    }

    /// Writes within the user half of a frame that is not running. Answers cmd's new value if the write was one to it,
    /// which only an access of its own is, or of the doubleword that it begins.
    pub(super) fn write_user(&mut self, at: u64, size: u8, value: u64) -> Option<u32> {
        for i in 0..u64::from(size.min(8)) {
            // cmd has a way of its own, and the counts are the engine's.
            if !matches!(at + i, 0..4 | user::LAUNCHED..user::MSI_ADDRESS) {
                self.user.set_byte(at + i, (value >> (8 * i)) as u8);
            }
        }
        (at == user::CMD && size >= 4).then_some(value as u32)
    }

    /// What the command would do; `None` if the frame does not make sense.
    pub(super) fn prepare(&self, command: Command, vectors: u16, timing: &Timing, now: Time) -> Option<Job> {
        let begin = self.user.get(user::BEGIN, 8);
        let end = self.user.get(user::END_INCL, 8);
        let stride = self.user.get(user::STRIDE, 8);
        let seed = self.user.get(user::SEED, 4) as u32;
        let valid = begin <= end
            && (begin & !7, end | 7) != (0, u64::MAX)
            && (stride == 1 || stride != 0 && stride.is_multiple_of(8))
            && (command != Command::Sum64 || begin & 7 == 0 && end & 7 == 7)
            && self.msi_is_valid(vectors)
            && self.privileged.get(privileged::PORT_INDEX, 4) == 0;
        if !valid {
            return None;
        }
        let (source, destination) = self.attributes(command)?;
        let burst = timing.burst.clamp(8, 4096) & !7;
        let target = self.user.get(user::UDATA, 8);
        let (work, origin, target, last) = if stride == 1 {
            let align = if command == Command::Sum64 { 8 } else { 1 };
            (Work::new(Unit::Bytes { align, burst }, begin, end, seed), begin, target, end)
        } else {
            let base = begin & !7;
            let n = ((end & !7) - base) / stride;
            let work = Work::new(Unit::Elements { base, stride }, 0, n, seed);
            (work, base, target & !7, base + n * stride + 7)
        };
        if command == Command::Memcpy {
            target.checked_add(last - origin)?;
        }
        let rate = self.user.get(user::UCTRL, 4) >> 16;
        Some(Job::new(Plan { command, source, destination, origin, target, seed, rate }, work, now))
    }

    /// As a PCI function the engine sends MSI-X messages: an address of 1 means to send one, 0 not to.
    fn msi_is_valid(&self, vectors: u16) -> bool {
        match self.user.get(user::MSI_ADDRESS, 8) {
            0 => true,
            1 => self.user.get(user::MSI_DATA, 4) < u64::from(vectors),
            _ => false,
        }
    }

    /// Attributes of what is read and of what is written; a halfword that the command does not use may be anything.
    fn attributes(&self, command: Command) -> Option<(Attributes, Attributes)> {
        let ssid = match self.privileged.get(privileged::SUBSTREAM_ID, 4) as u32 {
            NO_SUBSTREAM => None,
            ssid if ssid >> 20 == 0 => Some(ssid),
            _ => return None,
        };
        let both = self.user.get(user::ATTRIBUTES, 4);
        let decode = |used: bool, half: u64| match used {
            true => attributes::decode(half as u16, ssid),
            false => Some(Attributes { ssid, ..Attributes::default() }),
        };
        Some((decode(command.reads(), both)?, decode(command.writes(), both >> 16)?))
    }
}
