//! Root ports and what is behind them, as software sees them: configuration space, windows, interrupts, DMA.

mod hostile;
mod hotplug;

use guest_ram::GuestRam;

use super::*;
use crate::agent::Agent;
use crate::dma::{Fabric, GITS_TRANSLATER, ItsInbox, Message};
use crate::testdev::{self, Engine};

const RAM: u64 = 0x4000_0000;
const PORT: Slot = Slot(3 << 3);
const OTHER: Slot = Slot(4 << 3);
/// Where the test software puts the port's windows, and the engine's BARs in the second.
const MEM: u64 = 0x1000_0000;
const PREF: u64 = 0x80_0000_0000;

/// Offsets in the PCI Express capability.
const LINK_CONTROL: u64 = 0x10;
const LINK_STATUS: u64 = 0x12;
const SLOT_CONTROL: u64 = 0x18;
const SLOT_STATUS: u64 = 0x1a;

/// Everything in Slot Control that software enables, with power on; and off.
const ENABLE: u64 = 0x1029;
const POWER_OFF: u64 = 0x0400;

struct Bench {
    host: PciHost,
    inbox: ItsInbox,
    ram: GuestRam,
    now: Time,
}

/// Bus, device and function of an access.
type Function = (u64, u64, u64);

const PORT_FUNCTION: Function = (0, 3, 0);

fn engine(port: DmaPort) -> Box<dyn PciFunction> {
    Box::new(Engine::new(port, 1, testdev::Timing::default()))
}

impl Bench {
    /// Two root ports with empty slots; the first is set up by software, with bus 5 behind it.
    fn new() -> Self {
        let ram = GuestRam::new(RAM, 0x10_0000).unwrap();
        let inbox = ItsInbox::default();
        let mut host = PciHost::new(Fabric::new(ram.clone(), None, inbox.clone()));
        host.add_root_port(PORT, 1);
        host.add_root_port(OTHER, 2);
        let mut bench = Self { host, inbox, ram, now: 0 };
        bench.set_up(PORT_FUNCTION, 5);
        bench
    }

    fn read(&mut self, (bus, device, function): Function, at: u64, size: u8) -> u64 {
        self.host.config_read(self.now, bus << 20 | device << 15 | function << 12 | at, size)
    }

    fn write(&mut self, (bus, device, function): Function, at: u64, size: u8, value: u64) {
        self.host.config_write(self.now, bus << 20 | device << 15 | function << 12 | at, size, value);
    }

    fn capability(&mut self, function: Function, id: u64) -> u64 {
        let mut at = self.read(function, 0x34, 1);
        while at != 0 && self.read(function, at, 1) != id {
            at = self.read(function, at + 1, 1);
        }
        assert_ne!(at, 0, "no capability {id:#x}");
        at
    }

    /// A register of a port's PCI Express capability.
    fn express(&mut self, register: u64) -> u64 {
        let at = self.capability(PORT_FUNCTION, 0x10) + register;
        self.read(PORT_FUNCTION, at, 2)
    }

    fn set_express(&mut self, register: u64, value: u64) {
        let at = self.capability(PORT_FUNCTION, 0x10) + register;
        self.write(PORT_FUNCTION, at, 2, value);
    }

    /// Bus numbers, windows, MSI and bus mastering of a root port.
    fn set_up(&mut self, port: Function, bus: u64) {
        self.write(port, 0x18, 4, bus << 16 | bus << 8);
        self.write(port, 0x20, 4, MEM >> 16 | MEM);
        self.write(port, 0x24, 4, (PREF >> 16 & 0xfff0) | (PREF & 0xffff_0000) | 0x10 << 16);
        self.write(port, 0x28, 4, PREF >> 32);
        self.write(port, 0x2c, 4, PREF >> 32);
        let msi = self.capability(port, 0x05);
        self.write(port, msi + 4, 4, GITS_TRANSLATER);
        self.write(port, msi + 8, 4, 0);
        self.write(port, msi + 12, 2, 0x77);
        self.write(port, msi + 2, 2, 1);
        self.write(port, 4, 2, 6);
    }

    /// BARs, memory space and bus mastering of the engine.
    fn set_up_engine(&mut self, function: Function) {
        for (at, address) in [(0x10, PREF), (0x18, PREF + 0x10_0000)] {
            self.write(function, at, 4, address & 0xffff_ffff);
            self.write(function, at + 4, 4, address >> 32);
        }
        self.write(function, 4, 2, 6);
    }

    /// Fills `len` bytes at `begin` by the engine's frame 0.
    fn launch(&mut self, begin: u64, len: u64) {
        for (at, size, value) in
            [(0x28, 8, begin), (0x30, 8, begin + len - 1), (0x38, 8, 1), (0x20, 4, 0x42ff_42ff), (0, 4, 3)]
        {
            self.host.mmio_write(self.now, PREF + at, size, value);
        }
    }

    fn state(&mut self) -> u64 {
        self.host.mmio_read(self.now, PREF, 4)
    }

    fn run(&mut self) {
        while let Some(at) = self.host.next_step() {
            self.now = self.now.max(at);
            self.host.step(self.now);
        }
    }

    fn messages(&mut self) -> Vec<(u32, u32)> {
        self.run();
        let of = |Message { device_id, event_id }| (device_id, event_id);
        std::iter::from_fn(|| self.inbox.take()).map(of).collect()
    }

    /// What software does when a device comes: power, and the causes cleared.
    fn enable_slot(&mut self) {
        self.set_express(SLOT_CONTROL, ENABLE);
        self.run();
        self.set_express(SLOT_STATUS, 0xffff);
    }
}
