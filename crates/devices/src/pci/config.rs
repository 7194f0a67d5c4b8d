//! Type 0 configuration space: header, base addresses, capabilities (PCI Local Bus 3.0 §6, PCI Express 4.0 §7).

use serde::{Deserialize, Serialize};

/// Register offsets of the type 0 header.
pub mod reg {
    /// Command.
    pub const COMMAND: u16 = 0x04;
    /// Status.
    pub const STATUS: u16 = 0x06;
    /// First base address register.
    pub const BAR0: u16 = 0x10;
    /// Capabilities pointer.
    pub const CAPABILITIES: u16 = 0x34;
}

/// Memory space enable.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Bus master enable.
pub const COMMAND_MASTER: u16 = 1 << 2;

// Parity error response, SERR# enable and interrupt disable can be set too, and do nothing.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | COMMAND_MASTER | 1 << 6 | 1 << 8 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const CAP_POWER: u8 = 0x01;
const CAP_EXPRESS: u8 = 0x10;

const SPACE: usize = 256;
const FIRST_CAPABILITY: u8 = 0x40;

const EXTENDED_SPACE: usize = 4096;
const FIRST_EXTENDED: u16 = 0x100;
const EXT_CAP_PASID: u16 = 0x001b;
/// Device Capabilities 2, from the start of the PCI Express capability.
const DEVICE_CAPABILITIES_2: u16 = 0x24;
/// One end-to-end TLP prefix is supported.
const END_END_TLP_PREFIX: u32 = 1 << 21 | 1 << 22;

/// Speed and width of a link, in Link Capabilities and Link Status alike.
pub(super) const LINK_2_5GT_X1: u32 = 1 | 1 << 4;

/// What identifies a function to a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class, subclass and programming interface: `0xccsspp`.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// What a base address register maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bar {
    /// Memory below 4 GiB, of that many bytes (a power of two, at least 16).
    Memory32(u32),
    /// Prefetchable memory anywhere, of that many bytes. Takes the next register as well.
    Memory64(u64),
}

/// The state of a function's configuration space. Extended space (from 0x100) reads zero if it has no capabilities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpace {
    data: Vec<u8>,
    /// Bits that software can change.
    writable: Vec<u8>,
    bars: [Option<Bar>; 6],
    end: u8,
    last: u8,
    extended_end: u16,
    extended_last: u16,
    express: Option<u8>,
    power: Option<u8>,
}

impl ConfigSpace {
    /// A header without base addresses or capabilities.
    pub fn new(ids: Ids) -> Self {
        let mut this = Self {
            data: vec![0; SPACE],
            writable: vec![0; SPACE],
            bars: [None; 6],
            end: FIRST_CAPABILITY,
            last: 0,
            extended_end: FIRST_EXTENDED,
            extended_last: 0,
            express: None,
            power: None,
        };
        this.set16(0x00, ids.vendor);
        this.set16(0x02, ids.device);
        this.set32(0x08, ids.class << 8 | u32::from(ids.revision));
        this.set16(0x2c, ids.subsystem_vendor);
        this.set16(0x2e, ids.subsystem);
        this.allow16(reg::COMMAND, COMMAND_WRITABLE);
        // Cache line size and interrupt line are the software's to use. No INTx: the pin register stays zero.
        this.writable[0x0c] = 0xff;
        this.writable[0x3c] = 0xff;
        this
    }

    /// A type 1 header, that of a bridge, without base addresses, I/O window or capabilities; the window of
    /// prefetchable memory has 64 bits.
    pub(super) fn bridge(ids: Ids) -> Self {
        let mut this = Self::new(Ids { subsystem_vendor: 0, subsystem: 0, ..ids });
        this.data[0x0e] = 1;
        // Primary, secondary and subordinate bus.
        this.writable[0x18..0x1b].fill(0xff);
        for at in [0x20, 0x22, 0x24, 0x26] {
            this.allow16(at, 0xfff0);
        }
        this.set16(0x24, 1);
        this.set16(0x26, 1);
        this.allow32(0x28, u32::MAX);
        this.allow32(0x2c, u32::MAX);
        // Bridge Control: parity, SERR#, secondary bus reset.
        this.allow16(0x3e, 0x0043);
        this
    }

    /// Adds a base address register. Indices are the device's own: a mistake in one is a panic at start-up.
    pub fn add_bar(&mut self, index: usize, bar: Bar) {
        let at = reg::BAR0 + 4 * index as u16;
        self.bars[index] = Some(bar);
        match bar {
            Bar::Memory32(size) => self.allow32(at, !(size - 1)),
            Bar::Memory64(size) => {
                assert!(index < 5, "a 64-bit BAR takes two registers");
                self.set32(at, 0b1100);
                self.allow32(at, !(size - 1) as u32);
                self.allow32(at + 4, (!(size - 1) >> 32) as u32);
            }
        }
    }

    /// Appends a capability: `body` follows the two bytes of ID and pointer, `writable` says which of its bits software
    /// can change (missing bytes: none). Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.end;
        let link = if self.last == 0 { reg::CAPABILITIES as usize } else { usize::from(self.last) + 1 };
        self.data[link] = at;
        let start = usize::from(at);
        self.data[start] = id;
        self.data[start + 2..start + 2 + body.len()].copy_from_slice(body);
        self.writable[start + 2..start + 2 + writable.len()].copy_from_slice(writable);
        self.last = at;
        self.end = (start + 2 + body.len()).next_multiple_of(4) as u8;
        self.set16(reg::STATUS, STATUS_CAPABILITIES);
        at
    }

    /// Appends the PCI Express capability of a root complex integrated endpoint with function-level reset, and the
    /// power management capability.
    pub fn add_express(&mut self) {
        let mut body = [0u8; 0x3a];
        // Version 2, device/port type 9: root complex integrated endpoint.
        body[0..2].copy_from_slice(&0x0092u16.to_le_bytes());
        // Role-based error reporting, function-level reset, 128-byte payloads.
        body[2..6].copy_from_slice(&(1u32 << 15 | 1 << 28).to_le_bytes());
        let mut writable = [0u8; 8];
        // Device control: everything but extended tags, phantom functions, aux power and the reset bit.
        writable[6..8].copy_from_slice(&0x78ffu16.to_le_bytes());
        self.express = Some(self.add_capability(CAP_EXPRESS, &body, &writable));
        // Version 3; D0 and D3hot; no soft reset on the way back.
        self.power = Some(self.add_capability(CAP_POWER, &[0x03, 0, 0x08, 0, 0, 0], &[0, 0, 0x03, 0]));
    }

    /// Appends the PCI Express capability of a root port with a slot, and the power management capability: `link` and
    /// `slot` are Link and Slot Capabilities, `slot_control` the bits of Slot Control that software can change. Answers the
    /// PCI Express capability's offset.
    pub(super) fn add_root_port(&mut self, link: u32, slot: u32, slot_control: u16) -> u16 {
        let mut body = [0u8; 0x3a];
        // Version 2, device/port type 4: root port; a slot is implemented.
        body[0..2].copy_from_slice(&0x0142u16.to_le_bytes());
        body[2..6].copy_from_slice(&(1u32 << 15).to_le_bytes());
        body[0x0a..0x0e].copy_from_slice(&link.to_le_bytes());
        body[0x12..0x16].copy_from_slice(&slot.to_le_bytes());
        let mut writable = [0u8; 0x1e];
        writable[6..8].copy_from_slice(&0x78ffu16.to_le_bytes());
        // Link Control: ASPM, RCB, link disable, common clock, extended synch.
        writable[0x0e..0x10].copy_from_slice(&0x00dbu16.to_le_bytes());
        writable[0x16..0x18].copy_from_slice(&slot_control.to_le_bytes());
        // Root Control: system errors on errors, PME interrupt. No PME ever comes.
        writable[0x1a..0x1c].copy_from_slice(&0x000fu16.to_le_bytes());
        let at = self.add_capability(CAP_EXPRESS, &body, &writable);
        // No initiation of a function-level reset: what would be that bit is reserved in a bridge.
        self.power = Some(self.add_capability(CAP_POWER, &[0x03, 0, 0x08, 0, 0, 0], &[0, 0, 0x03, 0]));
        u16::from(at)
    }

    /// Makes an integrated endpoint one at the far end of a link: 2.5 GT/s, one lane.
    pub fn put_behind_link(&mut self) {
        if let Some(express) = self.express.map(u16::from) {
            let capabilities = self.read(express + 2, 2) as u16;
            self.set16(express + 2, capabilities & !0xf0);
            self.set32(express + 0x0c, LINK_2_5GT_X1);
            self.set16(express + 0x12, LINK_2_5GT_X1 as u16);
        }
    }

    /// Appends an extended capability: `body` follows the header, `writable` says which of its bits software can change.
    pub fn add_extended_capability(&mut self, id: u16, version: u8, body: &[u8], writable: &[u8]) -> u16 {
        self.data.resize(EXTENDED_SPACE, 0);
        self.writable.resize(EXTENDED_SPACE, 0);
        let at = self.extended_end;
        if self.extended_last != 0 {
            let header = self.read(self.extended_last, 4);
            self.set32(self.extended_last, header | u32::from(at) << 20);
        }
        self.set32(at, u32::from(id) | u32::from(version) << 16);
        let start = usize::from(at) + 4;
        self.data[start..start + body.len()].copy_from_slice(body);
        self.writable[start..start + writable.len()].copy_from_slice(writable);
        self.extended_last = at;
        self.extended_end = (start + body.len()).next_multiple_of(4) as u16;
        at
    }

    /// Appends the PASID extended capability, for PASIDs of `width` bits, execute permission and privileged mode. The
    /// PCI Express capability must be there: it says that requests have prefixes.
    pub fn add_pasid(&mut self, width: u8) {
        if let Some(express) = self.express {
            let at = u16::from(express) + DEVICE_CAPABILITIES_2;
            let capabilities = self.read(at, 4);
            self.set32(at, capabilities | END_END_TLP_PREFIX);
        }
        let capability = 0b110 | u16::from(width & 0x1f) << 8;
        let body = [capability.to_le_bytes(), [0; 2]].concat();
        self.add_extended_capability(EXT_CAP_PASID, 1, &body, &[0, 0, 0b111, 0]);
    }

    /// Reads 1, 2 or 4 bytes. Any offset and size is safe; what lies outside reads zero.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        (0..u16::from(size.min(4))).fold(0, |value, i| {
            let byte = self.data.get(usize::from(offset.saturating_add(i))).copied().unwrap_or(0);
            value | u32::from(byte) << (8 * i)
        })
    }

    /// Writes 1, 2 or 4 bytes; read-only bits keep their value. Returns what the write asked of the function.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) -> Effect {
        let mut effect = Effect::default();
        for i in 0..u16::from(size.min(4)) {
            let at = usize::from(offset.saturating_add(i));
            let byte = (value >> (8 * i)) as u8;
            if let (Some(data), Some(&writable)) = (self.data.get_mut(at), self.writable.get(at)) {
                *data = *data & !writable | byte & writable;
            }
            // Initiate Function Level Reset is bit 15 of Device Control.
            if let Some(express) = self.express
                && at == usize::from(express) + 9
            {
                effect.reset |= byte & 0x80 != 0;
            }
        }
        effect
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.read(reg::COMMAND, 2) as u16
    }

    /// Whether the function is in D0. In any other state it answers configuration requests only.
    pub fn powered(&self) -> bool {
        self.power.is_none_or(|at| self.read(u16::from(at) + 4, 1) & 3 == 0)
    }

    /// Whether the function may make requests.
    pub fn may_master(&self) -> bool {
        self.command() & COMMAND_MASTER != 0 && self.powered()
    }

    /// Where a base address register maps its memory now: address and size. `None` when it is not decoded.
    pub fn window(&self, index: usize) -> Option<(u64, u64)> {
        if self.command() & COMMAND_MEMORY == 0 || !self.powered() {
            return None;
        }
        let at = reg::BAR0 + 4 * index as u16;
        match *self.bars.get(index)? {
            Some(Bar::Memory32(size)) => Some((u64::from(self.read(at, 4) & !0xf), u64::from(size))),
            Some(Bar::Memory64(size)) => {
                let base = u64::from(self.read(at, 4) & !0xf) | u64::from(self.read(at + 4, 4)) << 32;
                Some((base, size))
            }
            None => None,
        }
    }

    /// Whether the other space has the same fixed content: it is a state of the same function.
    pub fn same_shape(&self, other: &Self) -> bool {
        self.data.len() == self.writable.len()
            && self.writable == other.writable
            && (self.bars, self.end, self.last) == (other.bars, other.end, other.last)
            && (self.extended_end, self.extended_last) == (other.extended_end, other.extended_last)
            && (self.express, self.power) == (other.express, other.power)
            && (self.data.iter().zip(&other.data).zip(&self.writable)).all(|((a, b), w)| (a ^ b) & !w == 0)
    }

    /// Returns to the state after power-on: every writable bit of the header and the capabilities is cleared.
    pub fn reset(&mut self) {
        for (data, writable) in self.data.iter_mut().zip(&self.writable) {
            *data &= !writable;
        }
    }

    pub(super) fn set16(&mut self, at: u16, value: u16) {
        let at = usize::from(at);
        self.data[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set32(&mut self, at: u16, value: u32) {
        let at = usize::from(at);
        self.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn allow16(&mut self, at: u16, mask: u16) {
        let at = usize::from(at);
        self.writable[at..at + 2].copy_from_slice(&mask.to_le_bytes());
    }

    fn allow32(&mut self, at: u16, mask: u32) {
        let at = usize::from(at);
        self.writable[at..at + 4].copy_from_slice(&mask.to_le_bytes());
    }
}

/// What a configuration write asks of a function beyond the bits it changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Function-level reset.
    pub reset: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Ids {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        space.add_bar(1, Bar::Memory32(0x1000));
        space.add_bar(4, Bar::Memory64(0x4000));
        space.add_express();
        space
    }

    #[test]
    fn identifies_itself_and_keeps_its_ids() {
        let mut space = space();
        space.write(0, 4, u32::MAX);
        assert_eq!(space.read(0, 4), 0x1042_1af4);
        assert_eq!(space.read(8, 4), 0x0100_0001);
        assert_eq!(space.read(0x2c, 4), 0x1100_1af4);
        assert_eq!(space.read(0x3d, 1), 0, "no INTx pin");
        assert_eq!(space.read(0xfff, 4), 0);
    }

    #[test]
    fn bars_answer_the_sizing_protocol_and_move() {
        let mut space = space();
        for at in (0x10..0x28).step_by(4) {
            space.write(at, 4, u32::MAX);
        }
        let sizes: Vec<u32> = (0x10..0x28).step_by(4).map(|at| space.read(at, 4)).collect();
        assert_eq!(sizes, [0, 0xffff_f000, 0, 0, 0xffff_c00c, 0xffff_ffff]);
        space.write(0x14, 4, 0x1000_1234);
        space.write(0x20, 4, 0x0000_8000);
        space.write(0x24, 4, 0x80);
        assert_eq!(space.window(1), None, "memory space is off");
        space.write(reg::COMMAND, 2, u32::from(COMMAND_MEMORY));
        assert_eq!(space.window(1), Some((0x1000_1000, 0x1000)));
        assert_eq!(space.window(4), Some((0x80_0000_8000, 0x4000)));
        assert_eq!(space.window(0), None);
        space.write(0x14, 4, 0x2000_0000);
        assert_eq!(space.window(1), Some((0x2000_0000, 0x1000)));
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        space.add_capability(0x09, &[1, 2, 3], &[]);
        assert_eq!(space.read(reg::STATUS, 2) & 0x10, 0x10);
        let (mut at, mut ids) = (space.read(reg::CAPABILITIES, 1) as u16, Vec::new());
        while at != 0 {
            ids.push(space.read(at, 1));
            at = space.read(at + 1, 1) as u16;
        }
        assert_eq!(ids, [0x10, 0x01, 0x09]);
    }

    #[test]
    fn extended_capabilities_form_a_list() {
        let mut space = space();
        assert_eq!(space.read(0x100, 4), 0);
        space.add_pasid(20);
        space.add_extended_capability(0x000f, 1, &[0; 4], &[]);
        assert_eq!(space.read(0x100, 4), 0x1081_001b);
        assert_eq!(space.read(0x104, 4), 0x1406);
        assert_eq!(space.read(0x108, 4), 0x0001_000f);
        space.write(0x104, 4, u32::MAX);
        assert_eq!(space.read(0x104, 4), 0x7_1406);
        let express = u16::from(space.express.unwrap());
        assert_eq!(space.read(express + 0x24, 4), 0x60_0000);
        assert!(space.same_shape(&space.clone()));
        space.reset();
        assert_eq!(space.read(0x104, 4), 0x1406);
        assert_eq!(space.read(0xffc, 4), 0);
        assert_eq!(space.read(0xffff, 4), 0);
    }

    #[test]
    fn power_state_and_function_reset() {
        let mut space = space();
        space.write(reg::COMMAND, 2, 0xffff);
        assert_eq!(space.command(), COMMAND_WRITABLE);
        assert!(space.may_master());
        let power = u16::from(space.power.unwrap());
        space.write(power + 4, 2, 3);
        assert!(!space.may_master());
        assert_eq!(space.window(1), None);
        space.write(power + 4, 2, 0);
        let express = u16::from(space.express.unwrap());
        assert!(!space.write(express + 8, 2, 0x0010).reset);
        assert!(space.write(express + 8, 2, 0x8010).reset);
        assert_eq!(space.read(express + 8, 2), 0x0010, "the reset bit reads zero");
        space.reset();
        assert_eq!((space.command(), space.read(express + 8, 2)), (0, 0));
        assert_eq!(space.read(0x20, 4), 0xc);
    }
}
