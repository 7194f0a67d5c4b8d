//! The GIC as a guest programs it: through its registers alone.

mod interrupts;
mod its;
mod lpis;
mod model;
mod nonsense;

use guest_ram::GuestRam;

use super::{Config, Gic};
use crate::dma::{ItsInbox, Message};

pub(super) const RAM: u64 = 0x4000_0000;
pub(super) const RAM_SIZE: u64 = 0x40_0000;

const fn key(crm: u16, op2: u16) -> u16 {
    3 << 14 | 12 << 7 | crm << 3 | op2
}
pub(super) const PMR: u16 = 3 << 14 | 4 << 7 | 6 << 3;
pub(super) const IAR: [u16; 2] = [key(8, 0), key(12, 0)];
pub(super) const EOIR: [u16; 2] = [key(8, 1), key(12, 1)];
pub(super) const HPPIR: [u16; 2] = [key(8, 2), key(12, 2)];
pub(super) const BPR: [u16; 2] = [key(8, 3), key(12, 3)];
pub(super) const APR: [u16; 2] = [key(8, 4), key(9, 0)];
pub(super) const DIR: u16 = key(11, 1);
pub(super) const RPR: u16 = key(11, 3);
pub(super) const SGIR: [u16; 2] = [key(11, 7), key(11, 5)];
pub(super) const ASGI1R: u16 = key(11, 6);
pub(super) const CTLR: u16 = key(12, 4);
pub(super) const SRE: u16 = key(12, 5);
pub(super) const IGRPEN: [u16; 2] = [key(12, 6), key(12, 7)];

pub(super) const SPURIOUS: u32 = 1023;

/// A GIC, its RAM and the devices' way to the ITS.
pub(super) struct Bench {
    pub(super) gic: Gic,
    pub(super) ram: GuestRam,
    pub(super) inbox: ItsInbox,
}

impl Bench {
    /// As it comes out of reset.
    pub(super) fn reset(cpus: u32) -> Self {
        let ram = GuestRam::new(RAM, RAM_SIZE).unwrap();
        let inbox = ItsInbox::default();
        let config = Config { cpus, spis: 64, its: true };
        Self { gic: Gic::new(config, ram.clone(), inbox.clone()), ram, inbox }
    }

    /// With every PE awake, both groups on, no mask, and every interrupt of Group 1 at priority 0xa0: about what Linux
    /// does.
    pub(super) fn new(cpus: u32) -> Self {
        let mut bench = Self::reset(cpus);
        let gic = &mut bench.gic;
        gic.gicd_write(0, 4, 3);
        for bank in 1..3 {
            gic.gicd_write(0x80 + 4 * bank, 4, 0xffff_ffff);
            for word in 0..8 {
                gic.gicd_write(0x400 + 32 * bank + 4 * word, 4, 0xa0a0_a0a0);
            }
        }
        for cpu in 0..u64::from(cpus) {
            gic.gicr_write(cpu * 0x2_0000 + 0x14, 4, 0);
            let sgi = cpu * 0x2_0000 + 0x1_0000;
            gic.gicr_write(sgi + 0x80, 4, 0xffff_ffff);
            for word in 0..8 {
                gic.gicr_write(sgi + 0x400 + 4 * word, 4, 0xa0a0_a0a0);
            }
            for (register, value) in [(PMR, 0xff), (IGRPEN[0], 1), (IGRPEN[1], 1)] {
                gic.icc_write(cpu as usize, register, value).unwrap();
            }
        }
        bench
    }

    /// Writes a one-bit-an-interrupt register, of the distributor or of `cpu`'s redistributor.
    pub(super) fn bit(&mut self, cpu: usize, register: u64, intid: u32) {
        let (offset, bit) = (register + 4 * u64::from(intid / 32), 1 << (intid % 32));
        if intid < 32 {
            self.gic.gicr_write(cpu as u64 * 0x2_0000 + 0x1_0000 + offset, 4, bit);
        } else {
            self.gic.gicd_write(offset, 4, bit);
        }
    }

    pub(super) fn enable(&mut self, cpu: usize, intid: u32) {
        self.bit(cpu, 0x100, intid);
    }

    pub(super) fn pend(&mut self, cpu: usize, intid: u32) {
        self.bit(cpu, 0x200, intid);
    }

    pub(super) fn priority(&mut self, cpu: usize, intid: u32, priority: u8) {
        let offset = 0x400 + u64::from(intid);
        if intid < 32 {
            self.gic.gicr_write(cpu as u64 * 0x2_0000 + 0x1_0000 + offset, 1, priority.into());
        } else {
            self.gic.gicd_write(offset, 1, priority.into());
        }
    }

    pub(super) fn route(&mut self, intid: u32, value: u64) {
        self.gic.gicd_write(0x6000 + 8 * u64::from(intid), 8, value);
    }

    pub(super) fn read(&mut self, cpu: usize, register: u16) -> u32 {
        self.gic.icc_read(cpu, register).unwrap() as u32
    }

    pub(super) fn write(&mut self, cpu: usize, register: u16, value: u64) {
        self.gic.icc_write(cpu, register, value).unwrap();
    }

    /// Acknowledges a Group 1 interrupt.
    pub(super) fn ack(&mut self, cpu: usize) -> u32 {
        self.read(cpu, IAR[1])
    }

    /// Ends a Group 1 interrupt.
    pub(super) fn eoi(&mut self, cpu: usize, intid: u32) {
        self.write(cpu, EOIR[1], intid.into());
    }

    pub(super) fn irq(&self, cpu: usize) -> bool {
        self.gic.irq(cpu).0
    }

    /// A device writes GITS_TRANSLATER, and the ITS gets to it.
    pub(super) fn msi(&mut self, device_id: u32, event_id: u32) {
        assert!(self.inbox.post(Message { device_id, event_id }));
        while self.gic.msi_pending() {
            self.gic.step_msi();
        }
    }
}
