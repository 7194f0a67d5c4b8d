//! The ITS: translates (DeviceID, EventID) to an LPI of a redistributor (IHI 0069 5, 12.12, 12.13).
//!
//! The device table, the interrupt translation tables and the collection table are in guest memory, and only there;
//! nothing of them is cached, so the host's memory does not grow with what a guest maps. The command queue and arriving
//! MSIs are consumed one at a time, each by a step of its own.
//!
//! IMPLEMENTATION DEFINED choices: a command with an error is skipped (CREADR goes on, Stalled is never set, no SEI);
//! registers that must not be written while the ITS is enabled ignore such writes.

mod commands;
mod tables;

use guest_ram::GuestRam;
use serde::{Deserialize, Serialize};

use crate::dma::Message;

use super::access::{half, merge, part};
use super::ids;
use super::lpi::ID_BITS;
use super::redistributor::Pe;
use tables::Baser;

/// Bits of a DeviceID, minus one.
const DEVICE_BITS: u64 = 16;

const CTLR: u64 = 0x0;
const IIDR: u64 = 0x4;
const TYPER: u64 = 0x8;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: std::ops::Range<u64> = 0x100..0x140;

const VALID: u64 = 1 << 63;
const CTLR_ENABLED: u64 = 1;
const CTLR_QUIESCENT: u64 = 1 << 31;
const CBASER_RW: u64 = 0xb8ef_ffff_ffff_fcff;
const CBASER_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const QUEUE_OFFSET: u64 = 0xf_ffe0;
const COMMAND_BYTES: u64 = 32;

/// State of the ITS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Its {
    enabled: bool,
    cbaser: u64,
    cwriter: u64,
    creadr: u64,
    /// GITS_BASER0.
    devices: Baser,
    /// GITS_BASER1.
    collections: Baser,
    command_errors: u64,
}

impl Default for Its {
    fn default() -> Self {
        Self {
            enabled: false,
            cbaser: 0,
            cwriter: 0,
            creadr: 0,
            devices: Baser::new(tables::DEVICES),
            collections: Baser::new(tables::COLLECTIONS),
            command_errors: 0,
        }
    }
}

impl Its {
    /// GITS_TYPER: physical LPIs, ITT entries of 8 bytes, 16 bits each of EventID and ICID, 17 of DeviceID; PTA = 0 and no
    /// collections held in hardware.
    fn typer() -> u64 {
        DEVICE_BITS << 13 | u64::from(ID_BITS) << 8 | (tables::ENTRY_BYTES - 1) << 4 | 1
    }

    /// Reads a register of the control frame; the translation frame is write-only.
    pub(crate) fn read(&self, offset: u64, size: u8) -> u64 {
        if let Some((register, shift)) = half(offset, size) {
            let value = match register {
                TYPER => Some(Self::typer()),
                CBASER => Some(self.cbaser),
                CWRITER => Some(self.cwriter),
                CREADR => Some(self.creadr),
                _ if BASER.contains(&register) => Some(
                    self.baser_index(register).map_or(0, |collections| self.baser(collections).register()),
                ),
                _ => None,
            };
            if let Some(value) = value {
                return part(value, size, shift);
            }
        }
        match (offset, size) {
            (CTLR, 4) if self.enabled => CTLR_ENABLED,
            (CTLR, 4) => CTLR_QUIESCENT,
            (IIDR, 4) => ids::IIDR,
            (_, 4) => ids::component(offset, ids::GITS),
            _ => 0,
        }
    }

    /// Writes a register of the control frame.
    pub(crate) fn write(&mut self, offset: u64, size: u8, value: u64) {
        if (offset, size) == (CTLR, 4) {
            self.enabled = value & CTLR_ENABLED != 0;
            return;
        }
        let Some((register, shift)) = half(offset, size) else { return };
        let merge = |old| merge(old, size, shift, value);
        match register {
            CBASER if !self.enabled => {
                self.cbaser = merge(self.cbaser) & CBASER_RW;
                self.creadr = 0;
                self.cwriter = 0;
            }
            // Retry (bit 0) is for stalled queues, and this one never stalls.
            CWRITER => self.cwriter = merge(self.cwriter) & QUEUE_OFFSET,
            _ if BASER.contains(&register) && !self.enabled => {
                if let Some(collections) = self.baser_index(register) {
                    let merged = merge(self.baser(collections).register());
                    if collections { &mut self.collections } else { &mut self.devices }.set_register(merged);
                }
            }
            _ => {}
        }
    }

    /// Which of the two implemented BASERs: `false` for devices, `true` for collections.
    fn baser_index(&self, register: u64) -> Option<bool> {
        match (register - BASER.start) / 8 {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn baser(&self, collections: bool) -> &Baser {
        if collections { &self.collections } else { &self.devices }
    }

    /// Bytes of the command queue.
    fn queue_size(&self) -> u64 {
        ((self.cbaser & 0xff) + 1) * 4096
    }

    /// Whether a command waits. A CWRITER beyond the queue stops it: CREADR could never reach that.
    pub(crate) fn command_pending(&self) -> bool {
        self.enabled
            && self.cbaser & VALID != 0
            && self.creadr != self.cwriter
            && self.cwriter < self.queue_size()
    }

    /// Processes the command at CREADR and goes on to the next. One that has an error, or cannot be read, is counted
    /// and otherwise ignored.
    pub(crate) fn step_command(&mut self, pes: &mut [Pe], ram: &GuestRam) {
        if !self.command_pending() {
            return;
        }
        let mut bytes = [0; COMMAND_BYTES as usize];
        let read = ram.read((self.cbaser & CBASER_ADDRESS) + self.creadr, &mut bytes);
        let mut words = [0u64; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        let result =
            if read { self.execute(words, pes, ram) } else { Err(commands::CommandError::QueueUnreadable) };
        if let Err(error) = result {
            self.command_errors += 1;
            log::debug!("ITS command {:#04x} skipped: {error} ({words:x?})", words[0] & 0xff);
        }
        self.creadr = (self.creadr + COMMAND_BYTES) % self.queue_size();
    }

    /// Commands skipped so far.
    pub(crate) fn command_errors(&self) -> u64 {
        self.command_errors
    }

    /// Translates an MSI; the PE whose LPI may have become pending. Without a valid mapping, or with the ITS disabled,
    /// the MSI is ignored.
    pub(crate) fn msi(&self, msi: Message, pes: &mut [Pe], ram: &GuestRam) -> Option<usize> {
        if !self.enabled {
            return None;
        }
        match self.translate(msi.device_id, msi.event_id, pes.len(), ram) {
            Ok((intid, _, cpu)) => {
                pes.get_mut(cpu)?.lpis.pend(ram, intid);
                Some(cpu)
            }
            Err(error) => {
                log::debug!("MSI of device {:#x}, event {:#x} ignored: {error}", msi.device_id, msi.event_id);
                None
            }
        }
    }
}
