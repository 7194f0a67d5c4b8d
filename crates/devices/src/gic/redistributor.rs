//! GICR_*: a PE's redistributor: RD_base and SGI_base frames (IHI 0069 12.10, 12.11).

use guest_ram::GuestRam;
use serde::{Deserialize, Serialize};

use super::access::{half, merge, part};
use super::bank::{Bank, BankReg};
use super::cpu_interface::{CpuInterface, Pending};
use super::ids;
use super::lpi::Lpis;

/// Bytes of one redistributor: RD_base and SGI_base, 64 KiB each.
pub(crate) const FRAME: u64 = 0x2_0000;
const SGI_BASE: u64 = 0x1_0000;

const CTLR: u64 = 0x0;
const IIDR: u64 = 0x4;
const TYPER: u64 = 0x8;
const WAKER: u64 = 0x14;
const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;

const CTLR_ENABLE_LPIS: u64 = 1;
/// Clearing EnableLPIs is supported.
const CTLR_CES: u64 = 1 << 1;
const CTLR_DPG0: u64 = 1 << 24;
const CTLR_DPG1NS: u64 = 1 << 25;
const WAKER_PROCESSOR_SLEEP: u64 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u64 = 1 << 2;

/// What the GIC has for one PE: redistributor and CPU interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pe {
    /// Index of the PE, which is also its affinity and its Processor_Number.
    index: u32,
    /// Whether this is the last redistributor of the region.
    last: bool,
    /// Whether there are physical LPIs.
    has_lpis: bool,
    /// SGIs 0 to 15 and PPIs 16 to 31.
    pub(crate) local: Bank,
    /// LPIs.
    pub(crate) lpis: Lpis,
    /// ICC_* registers.
    pub(crate) icc: CpuInterface,
    /// GICR_WAKER.ProcessorSleep.
    pub(crate) sleep: bool,
    /// GICR_CTLR.DPG0, DPG1NS: not to be chosen for 1-of-N interrupts of the group.
    pub(crate) no_1_of_n: [bool; 2],
    /// Derived: the highest-priority pending interrupt.
    pub(crate) best: Option<Pending>,
    /// Derived: level of IRQ and FIQ.
    pub(crate) lines: (bool, bool),
}

impl Pe {
    /// The PE `index` of `count`.
    pub(crate) fn new(index: u32, count: u32, has_lpis: bool) -> Self {
        Self {
            index,
            last: index + 1 == count,
            has_lpis,
            local: Bank { edge: 0xffff, fixed: 0xffff, ..Bank::default() },
            lpis: Lpis::default(),
            icc: CpuInterface::default(),
            sleep: true,
            no_1_of_n: [false; 2],
            best: None,
            lines: (false, false),
        }
    }

    /// Whether a 1-of-N interrupt of `group` may be given to this PE.
    pub(crate) fn takes_1_of_n(&self, group: usize) -> bool {
        !self.sleep && self.icc.enable[group & 1] && !self.no_1_of_n[group & 1]
    }

    /// GICR_TYPER: Affinity_Value, Processor_Number, DPGS, Last, PLPIS; CommonLPIAff 0 (all share one table).
    fn typer(&self) -> u64 {
        u64::from(self.index) << 32
            | u64::from(self.index) << 8
            | 1 << 5
            | u64::from(self.last) << 4
            | u64::from(self.has_lpis)
    }

    fn ctlr(&self) -> u64 {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        bit(self.has_lpis, CTLR_CES)
            | bit(self.lpis.enabled(), CTLR_ENABLE_LPIS)
            | bit(self.no_1_of_n[0], CTLR_DPG0)
            | bit(self.no_1_of_n[1], CTLR_DPG1NS)
    }

    /// Reads a register; `offset` from RD_base.
    pub(crate) fn read(&self, offset: u64, size: u8) -> u64 {
        if offset >= SGI_BASE {
            return match BankReg::decode(offset - SGI_BASE, size) {
                Some((0, reg)) => self.local.read(reg, size).into(),
                _ => 0,
            };
        }
        if let Some((register, shift)) = half(offset, size) {
            let value = match register {
                TYPER => Some(self.typer()),
                PROPBASER if self.has_lpis => Some(self.lpis.propbaser()),
                PENDBASER if self.has_lpis => Some(self.lpis.pendbaser()),
                _ => None,
            };
            if let Some(value) = value {
                return part(value, size, shift);
            }
        }
        if size != 4 {
            return 0;
        }
        match offset {
            CTLR => self.ctlr(),
            IIDR => ids::IIDR,
            WAKER if self.sleep => WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP,
            _ => ids::component(offset, ids::GICR),
        }
    }

    /// Writes a register; `offset` from RD_base.
    pub(crate) fn write(&mut self, ram: &GuestRam, offset: u64, size: u8, value: u64) {
        if offset >= SGI_BASE {
            if let Some((0, reg)) = BankReg::decode(offset - SGI_BASE, size) {
                self.local.write(reg, size, value as u32);
            }
            return;
        }
        match (offset, size) {
            (CTLR, 4) => {
                self.no_1_of_n = [value & CTLR_DPG0 != 0, value & CTLR_DPG1NS != 0];
                self.lpis.set_enabled(ram, self.has_lpis && value & CTLR_ENABLE_LPIS != 0);
            }
            (WAKER, 4) => self.sleep = value & WAKER_PROCESSOR_SLEEP != 0,
            _ => {
                if let Some((register, shift)) = half(offset, size).filter(|_| self.has_lpis) {
                    let merge = |old| merge(old, size, shift, value);
                    match register {
                        PROPBASER => self.lpis.set_propbaser(merge(self.lpis.propbaser())),
                        PENDBASER => self.lpis.set_pendbaser(merge(self.lpis.pendbaser())),
                        _ => {}
                    }
                }
            }
        }
    }
}
