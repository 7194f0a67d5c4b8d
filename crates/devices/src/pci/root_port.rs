//! A PCI Express root port with a hot-plug slot: a bridge from bus 0 to one link.

use std::any::Any;

use serde::{Deserialize, Serialize};

use super::config::LINK_2_5GT_X1;
use super::msi::Msi;
use super::slot::{self, HotPlugSlot, Settings};
use super::{COMMAND_MEMORY, ConfigSpace, FunctionState, Ids, PciFunction, StateError};
use crate::agent::Time;
use crate::bus::size_mask;
use crate::dma::{DmaPort, Stats};

const EXT_CAP_ACS: u16 = 0x000d;

/// Offsets in the PCI Express capability.
const LINK_CONTROL: u16 = 0x10;
const LINK_STATUS: u16 = 0x12;
const SLOT_CONTROL: u16 = 0x18;
const SLOT_STATUS: u16 = 0x1a;
/// Link Capabilities: the port reports when the data link layer is active.
const LINK_REPORTS: u32 = 1 << 20;
/// Link Status: it is.
const LINK_ACTIVE: u16 = 1 << 13;
/// Link Control.
const LINK_DISABLE: u32 = 1 << 4;
/// Bridge Control, and its secondary bus reset.
const BRIDGE_CONTROL: u16 = 0x3e;
const BUS_RESET: u32 = 1 << 6;

const LANE_SLOT: usize = 0;
const LANE_MSI: usize = 1;

/// A root port.
pub struct RootPort {
    config: ConfigSpace,
    express: u16,
    msi: Msi,
    port: DmaPort,
    slot: HotPlugSlot,
}

/// Its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPortState {
    config: ConfigSpace,
    msi: Msi,
    stats: Stats,
    slot: HotPlugSlot,
}

impl RootPort {
    /// A root port with an empty slot of this physical number (to 8191), that sends its interrupts through `port`.
    pub fn new(port: DmaPort, number: u16) -> Self {
        let mut config = ConfigSpace::bridge(Ids {
            vendor: 0x1b36,
            device: 0x000c,
            revision: 0,
            class: 0x06_0400,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        let link = LINK_2_5GT_X1 | LINK_REPORTS | u32::from(number & 0xff) << 24;
        let slot = slot::CAPABILITIES | u32::from(number & 0x1fff) << 19;
        let express = config.add_root_port(link, slot, slot::CONTROL_WRITABLE);
        let msi = Msi::new(&mut config);
        // Access control that software cannot switch off: requests from behind the port go to memory and nowhere else, and
        // their requester ID is the function's own. A capability without enables says that to Linux, also where the device
        // tree makes it ask for enables only after it has found the ports (before 6.18).
        config.add_extended_capability(EXT_CAP_ACS, 1, &[0; 4], &[]);
        port.set_enabled(false);
        let mut this = Self { config, express, msi, port, slot: HotPlugSlot::default() };
        this.power_on();
        this
    }

    /// Whether somebody is in the slot.
    pub fn occupied(&self) -> bool {
        self.slot.present()
    }

    /// Somebody is in the slot at power-on.
    pub(super) fn plug_cold(&mut self) {
        self.slot = HotPlugSlot::occupied();
        self.power_on();
    }

    /// Nobody is in the slot at power-on.
    pub(super) fn empty_cold(&mut self) {
        self.slot = HotPlugSlot::default();
        self.power_on();
    }

    /// Somebody comes into the slot.
    pub(super) fn plug(&mut self, now: Time) {
        self.slot.plug();
        self.settle(now);
    }

    /// Who is in the slot is taken out at once, or when software has been asked and agreed.
    pub(super) fn unplug(&mut self, surprise: bool, now: Time) {
        if surprise {
            self.slot.tear_out()
        } else {
            self.slot.press_button()
        }
        self.settle(now);
    }

    /// Whether the link went down since the last call.
    pub(super) fn take_reset(&mut self) -> bool {
        self.slot.take_reset()
    }

    /// Whether who was in the slot was taken out since the last call.
    pub(super) fn take_gone(&mut self) -> bool {
        self.slot.take_gone()
    }

    /// The bus behind the port, if requests to it get through. Bus 0 is in front of every port.
    pub(super) fn bus(&self) -> Option<u8> {
        let secondary = self.config.read(0x19, 1) as u8;
        (secondary != 0 && self.slot.link() && self.config.powered()).then_some(secondary)
    }

    /// Whether requests from behind the port get through.
    pub(super) fn forwards(&self) -> bool {
        self.slot.link() && self.config.may_master()
    }

    /// What is forwarded to the bus behind the port: first and last address of each window.
    pub(super) fn windows(&self) -> [Option<(u64, u64)>; 2] {
        if self.config.command() & COMMAND_MEMORY == 0 || !self.config.powered() || !self.slot.link() {
            return [None; 2];
        }
        let field = |at, size| u64::from(self.config.read(at, size));
        let window = |base: u64, limit: u64| (base <= limit).then_some((base, limit));
        let megabytes = |at| (field(at, 2) & 0xfff0) << 16;
        [
            window(megabytes(0x20), megabytes(0x22) | 0xf_ffff),
            window(megabytes(0x24) | field(0x28, 4) << 32, megabytes(0x26) | 0xf_ffff | field(0x2c, 4) << 32),
        ]
    }

    /// Slot Control after power-on: an empty slot has no power.
    fn power_on(&mut self) {
        let control = if self.slot.present() { 0 } else { slot::POWER_OFF };
        self.config.set16(self.express + SLOT_CONTROL, control);
        self.show();
    }

    /// Follows what changed in the slot or its registers.
    fn settle(&mut self, now: Time) {
        let control = self.config.read(self.express + SLOT_CONTROL, 2) as u16;
        let held = self.config.read(self.express + LINK_CONTROL, 2) & LINK_DISABLE != 0
            || self.config.read(BRIDGE_CONTROL, 2) & BUS_RESET != 0;
        if self.slot.settle(Settings { control, held }, now) {
            self.msi.trigger(now);
        }
        self.show();
    }

    /// Puts the slot's state into the registers.
    fn show(&mut self) {
        let link = LINK_2_5GT_X1 as u16 | LINK_ACTIVE;
        self.config.set16(self.express + LINK_STATUS, if self.slot.link() { link } else { 0 });
        self.config.set16(self.express + SLOT_STATUS, self.slot.status());
    }
}

impl PciFunction for RootPort {
    fn config_read(&mut self, _at: Time, offset: u16, size: u8) -> u32 {
        self.config.read(offset, size)
    }

    fn config_write(&mut self, at: Time, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
        // Slot Status: writing ones clears.
        let status = self.express + SLOT_STATUS;
        let written = (0..u16::from(size.min(4)))
            .filter_map(|i| offset.checked_add(i)?.checked_sub(status).filter(|&n| n < 2).map(|n| (i, n)));
        let ones = written.fold(0, |ones, (i, n)| ones | (value >> (8 * i) & 0xff) << (8 * n));
        self.slot.clear(ones as u16);
        self.msi.configured(&self.config, at);
        let master = self.config.may_master();
        self.port.set_enabled(master);
        if !master {
            self.suspend();
        }
        self.settle(at);
    }

    fn window(&self, _bar: usize) -> Option<(u64, u64)> {
        None
    }

    fn bar_read(&mut self, _at: Time, _bar: usize, _offset: u64, size: u8) -> u64 {
        size_mask(size)
    }

    fn bar_write(&mut self, _at: Time, _bar: usize, _offset: u64, _size: u8, _value: u64) {}

    fn lanes(&self) -> usize {
        2
    }

    fn next_step(&self, lane: usize) -> Option<Time> {
        match lane {
            LANE_SLOT => self.slot.next_step(),
            _ => self.msi.next_step(&self.port),
        }
    }

    fn step(&mut self, lane: usize, now: Time) {
        if lane == LANE_MSI {
            self.msi.step(&self.port, now);
            return;
        }
        self.slot.step();
        self.settle(now);
    }

    fn suspend(&mut self) {
        self.msi.suspend(&self.port);
    }

    fn reset(&mut self, _now: Time) {
        self.msi.reset(&self.port);
        self.config.reset();
        self.port.set_enabled(false);
        self.slot.reset();
        self.power_on();
    }

    fn port(&self) -> Option<&DmaPort> {
        Some(&self.port)
    }

    fn root_port(&mut self) -> Option<&mut RootPort> {
        Some(self)
    }

    fn save(&self) -> FunctionState {
        FunctionState::RootPort(Box::new(RootPortState {
            config: self.config.clone(),
            msi: self.msi.clone(),
            stats: self.port.stats(),
            slot: self.slot.clone(),
        }))
    }

    fn restore(&mut self, state: FunctionState) -> Result<(), StateError> {
        let FunctionState::RootPort(state) = state else { return Err(StateError) };
        // The registers that show the slot's state are read-only, and part of the shape: they are worked out anew.
        let slot = std::mem::replace(&mut self.slot, state.slot.clone());
        self.show();
        if !state.config.same_shape(&self.config) || !state.msi.same_shape(&self.msi) {
            self.slot = slot;
            self.show();
            return Err(StateError);
        }
        (self.config, self.msi) = (state.config, state.msi);
        self.port.restore_stats(&state.stats);
        self.port.set_enabled(self.config.may_master());
        Ok(())
    }

    fn device_mut(&mut self) -> &mut dyn Any {
        self
    }
}
