//! The registers' state: what reads give, and which writes are taken when (chapter 6).

use serde::{Deserialize, Serialize};

use crate::atos::{self, AtosGroup};
use crate::config::{Config, StallModel};
use crate::ecmdq::{self, Ecmdq};
use crate::queue::{BASE_FIELDS, Queue};
use crate::spec::registers::{self as r, cr0, cr1, cr2, gbpa, irq_ctrl};

/// Address, data and attributes of an MSI: `*_IRQ_CFG0` to `CFG2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IrqConfig {
    pub(crate) address: u64,
    pub(crate) data: u32,
    pub(crate) attrs: u32,
}

/// Every register that holds state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registers {
    pub(crate) cr0: u32,
    pub(crate) cr0ack: u32,
    pub(crate) cr1: u32,
    pub(crate) cr2: u32,
    pub(crate) gbpa: u32,
    pub(crate) irq_ctrl: u32,
    pub(crate) gerror: u32,
    pub(crate) gerrorn: u32,
    pub(crate) gerror_irq: IrqConfig,
    pub(crate) strtab_base: u64,
    pub(crate) strtab_base_cfg: u32,
    pub(crate) cmdq: Queue,
    pub(crate) ecmdqs: Vec<Ecmdq>,
    pub(crate) eventq: Queue,
    pub(crate) eventq_irq: IrqConfig,
    pub(crate) priq: Queue,
    pub(crate) priq_irq: IrqConfig,
    /// GATOS and VATOS.
    pub(crate) atos: [AtosGroup; 2],
    pub(crate) vatos_sel: u16,
}

/// STRTAB_BASE: RA at 62 and the address.
const STRTAB_FIELDS: u64 = 1 << 62 | 0x00ff_ffff_ffff_ffc0;
/// STRTAB_BASE_CFG: FMT, SPLIT, LOG2SIZE.
const STRTAB_CFG_FIELDS: u32 = 3 << 16 | 0x1f << 6 | 0x3f;
/// An MSI's address: 55:2.
const MSI_ADDRESS: u64 = 0x00ff_ffff_ffff_fffc;
/// Errors that exist: CMDQ, EVENTQ, PRIQ, and the MSI aborts.
const GERROR_FIELDS: u32 = r::gerror::CMDQ_ERR
    | r::gerror::CMDQP_ERR
    | r::gerror::EVENTQ_ABT_ERR
    | r::gerror::PRIQ_ABT_ERR
    | r::gerror::MSI_CMDQ_ABT_ERR
    | r::gerror::MSI_EVENTQ_ABT_ERR
    | r::gerror::MSI_PRIQ_ABT_ERR
    | r::gerror::MSI_GERROR_ABT_ERR;

/// The fields of CR0.
fn cr0_fields(config: &Config) -> u32 {
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    let features = bit(config.ats, cr0::ATSCHK) | bit(config.pri, cr0::PRIQEN) | bit(config.vmw, cr0::VMW);
    cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN | features
}

/// Writes the low or high half of a 64-bit register.
pub(crate) fn set_half(register: &mut u64, high: bool, value: u32, fields: u64) {
    let shift = if high { 32 } else { 0 };
    *register = (*register & !(0xffff_ffff << shift) | u64::from(value) << shift) & fields;
}

pub(crate) fn half(register: u64, high: bool) -> u32 {
    if high { (register >> 32) as u32 } else { register as u32 }
}

impl Registers {
    pub(crate) fn reset(config: &Config) -> Self {
        Registers {
            ecmdqs: vec![Ecmdq::default(); config.ecmdq.into()],
            gbpa: gbpa::SHCFG_INCOMING | if config.gbpa_abort { gbpa::ABORT } else { 0 },
            ..Registers::default()
        }
    }

    /// Reads one word. `irq_ctrlack` depends on MSIs still under way.
    pub(crate) fn read(&self, config: &Config, offset: u64, irq_ctrlack: u32) -> u32 {
        if let Some(value) = identification(config, offset) {
            return value;
        }
        let alias = config.page0_alias;
        match offset {
            r::CR0 => self.cr0,
            r::CR0ACK => self.cr0ack,
            r::CR1 => self.cr1,
            r::CR2 => self.cr2,
            r::GBPA => self.gbpa,
            r::IRQ_CTRL => self.irq_ctrl,
            r::IRQ_CTRLACK => irq_ctrlack,
            r::GERROR => self.gerror,
            r::GERRORN => self.gerrorn,
            r::STRTAB_BASE | 0x84 => half(self.strtab_base, offset & 4 != 0),
            r::STRTAB_BASE_CFG => self.strtab_base_cfg,
            r::CMDQ_BASE | 0x94 => half(self.cmdq.base, offset & 4 != 0),
            r::CMDQ_PROD => self.cmdq.prod,
            r::CMDQ_CONS => self.cmdq.cons,
            r::ECMDQ_PAGE..r::ECMDQ_END => ecmdq::read(&self.ecmdqs, offset - r::ECMDQ_PAGE),
            r::EVENTQ_BASE | 0xa4 => half(self.eventq.base, offset & 4 != 0),
            r::EVENTQ_PROD => self.eventq.prod,
            r::EVENTQ_CONS => self.eventq.cons,
            0xa8 if alias => self.eventq.prod,
            0xac if alias => self.eventq.cons,
            r::PRIQ_BASE | 0xc4 => half(self.priq.base, offset & 4 != 0),
            r::PRIQ_PROD => self.priq.prod,
            r::PRIQ_CONS => self.priq.cons,
            0xc8 if alias => self.priq.prod,
            0xcc if alias => self.priq.cons,
            r::GATOS_CTRL..=0x11f => self.atos[atos::GATOS].read(offset - r::GATOS_CTRL),
            r::VATOS_SEL => self.vatos_sel.into(),
            r::VATOS_CTRL..=0x3_0a1f => self.atos[atos::VATOS].read(offset - r::VATOS_CTRL),
            r::GERROR_IRQ_CFG0..=0x77 => read_irq(&self.gerror_irq, offset - r::GERROR_IRQ_CFG0),
            r::EVENTQ_IRQ_CFG0..=0xbf => read_irq(&self.eventq_irq, offset - r::EVENTQ_IRQ_CFG0),
            r::PRIQ_IRQ_CFG0..=0xdf => read_irq(&self.priq_irq, offset - r::PRIQ_IRQ_CFG0),
            _ => 0,
        }
    }

    /// Writes one word of a register that has no effect beyond its own state. CR0, GBPA and the queue indices that agents
    /// look at are plain state, too: agents look when they step.
    pub(crate) fn write(&mut self, config: &Config, offset: u64, value: u32, irq_ctrlack: u32) {
        let high = offset & 4 != 0;
        let enabled = self.cr0 | self.cr0ack;
        let smmu_off = enabled & cr0::SMMUEN == 0;
        let cmdq_off = enabled & cr0::CMDQEN == 0;
        let ecmdqs_off = self.ecmdqs.iter().all(|queue| !queue.is_enabled());
        let eventq_off = enabled & cr0::EVENTQEN == 0;
        let priq_off = enabled & cr0::PRIQEN == 0;
        let irqs = self.irq_ctrl | irq_ctrlack;
        let alias = config.page0_alias;
        match offset {
            r::CR0 => {
                // Up to SMMUv3.1, what is written during an update may count.
                let busy = if config.cr0_last { 0 } else { self.cr0 ^ self.cr0ack };
                self.cr0 = self.cr0 & busy | value & cr0_fields(config) & !busy;
            }
            r::CR1 => {
                // Each half is guarded by what uses it (section 6.3.11).
                let fields = if smmu_off { cr1::TABLE } else { 0 }
                    | if cmdq_off && ecmdqs_off && eventq_off && priq_off { cr1::QUEUE } else { 0 };
                self.cr1 = self.cr1 & !fields | value & fields;
            }
            r::CR2 if smmu_off => {
                let e2h = if config.hyp { cr2::E2H } else { 0 };
                // PTM is RES0 without BTM.
                let rec_cfg_ats = if config.atsrecerr { cr2::REC_CFG_ATS } else { 0 };
                self.cr2 = value & (e2h | cr2::RECINVSID | rec_cfg_ats);
            }
            // Without UPDATE a write is ignored; with it, it takes effect at once here, so UPDATE reads as 0.
            r::GBPA if value & gbpa::UPDATE != 0 => self.gbpa = value & gbpa::FIELDS,
            r::IRQ_CTRL => {
                let priq = if config.pri { irq_ctrl::PRIQ } else { 0 };
                self.irq_ctrl = value & (irq_ctrl::GERROR | irq_ctrl::EVENTQ | priq);
            }
            r::GERRORN => self.gerrorn = value & GERROR_FIELDS,
            r::STRTAB_BASE | 0x84 if smmu_off => set_half(&mut self.strtab_base, high, value, STRTAB_FIELDS),
            r::STRTAB_BASE_CFG if smmu_off => self.strtab_base_cfg = value & STRTAB_CFG_FIELDS,
            r::CMDQ_BASE | 0x94 if cmdq_off => set_half(&mut self.cmdq.base, high, value, BASE_FIELDS),
            r::CMDQ_PROD => self.cmdq.prod = value & 0xf_ffff,
            r::ECMDQ_PAGE..r::ECMDQ_END => ecmdq::write(&mut self.ecmdqs, offset - r::ECMDQ_PAGE, value),
            r::CMDQ_CONS if cmdq_off => self.cmdq.cons = value & 0x7f0f_ffff,
            r::EVENTQ_BASE | 0xa4 if eventq_off => set_half(&mut self.eventq.base, high, value, BASE_FIELDS),
            r::EVENTQ_PROD if eventq_off => self.eventq.prod = value & 0x800f_ffff,
            r::EVENTQ_CONS => self.eventq.cons = value & 0x800f_ffff,
            0xa8 if alias && eventq_off => self.eventq.prod = value & 0x800f_ffff,
            0xac if alias => self.eventq.cons = value & 0x800f_ffff,
            r::PRIQ_BASE | 0xc4 if config.pri && priq_off => {
                set_half(&mut self.priq.base, high, value, BASE_FIELDS)
            }
            r::PRIQ_PROD if config.pri && priq_off => self.priq.prod = value & 0x800f_ffff,
            r::PRIQ_CONS if config.pri => self.priq.cons = value & 0x800f_ffff,
            0xc8 if alias && config.pri && priq_off => self.priq.prod = value & 0x800f_ffff,
            0xcc if alias && config.pri => self.priq.cons = value & 0x800f_ffff,
            r::GATOS_CTRL..=0x11f if config.atos => {
                self.atos[atos::GATOS].write(config, offset - r::GATOS_CTRL, value, self.smmuen());
            }
            r::VATOS_CTRL..=0x3_0a1f if config.vatos => {
                self.atos[atos::VATOS].write(config, offset - r::VATOS_CTRL, value, self.smmuen());
            }
            r::VATOS_SEL if config.vatos && !self.atos[atos::VATOS].run => {
                self.vatos_sel = value as u16 & if config.vmid16 { 0xffff } else { 0xff };
            }
            r::GERROR_IRQ_CFG0..=0x77 if config.msi && irqs & irq_ctrl::GERROR == 0 => {
                write_irq(&mut self.gerror_irq, offset - r::GERROR_IRQ_CFG0, value);
            }
            r::EVENTQ_IRQ_CFG0..=0xbf if config.msi && irqs & irq_ctrl::EVENTQ == 0 => {
                write_irq(&mut self.eventq_irq, offset - r::EVENTQ_IRQ_CFG0, value);
            }
            r::PRIQ_IRQ_CFG0..=0xdf if config.pri && irqs & irq_ctrl::PRIQ == 0 => {
                if config.msi {
                    write_irq(&mut self.priq_irq, offset - r::PRIQ_IRQ_CFG0, value);
                }
                // LO is there without MSIs, too.
                if offset == r::PRIQ_IRQ_CFG2 {
                    self.priq_irq.attrs = self.priq_irq.attrs & 0x3f | value & r::PRIQ_LAST_ONLY;
                }
            }
            _ => {}
        }
        if !config.wide_addresses {
            self.narrow(config.stored());
        }
    }

    /// Keeps no bits of addresses beyond OAS (section 6.3).
    fn narrow(&mut self, stored: u64) {
        let ecmdqs = self.ecmdqs.iter_mut().map(|ecmdq| &mut ecmdq.queue);
        let queues = ecmdqs.chain([&mut self.cmdq, &mut self.eventq, &mut self.priq]);
        queues.for_each(|queue| queue.base &= stored);
        let irqs = [&mut self.gerror_irq, &mut self.eventq_irq, &mut self.priq_irq];
        irqs.into_iter().for_each(|irq| irq.address &= stored);
        self.strtab_base &= stored;
    }

    /// CR0.VMW: low bits of a VMID that invalidations ignore; reserved values are as 0.
    pub(crate) fn vmw(&self) -> u8 {
        match self.cr0 >> 6 & 7 {
            bits @ 1..=4 => bits as u8,
            _ => 0,
        }
    }

    pub(crate) fn smmuen(&self) -> bool {
        self.cr0 & cr0::SMMUEN != 0
    }

    /// Whether a global error is active: not yet acknowledged.
    pub(crate) fn gerror_active(&self, error: u32) -> bool {
        (self.gerror ^ self.gerrorn) & error != 0
    }
}

pub(crate) fn read_irq(irq: &IrqConfig, offset: u64) -> u32 {
    match offset {
        0 => half(irq.address, false),
        4 => half(irq.address, true),
        8 => irq.data,
        _ => irq.attrs,
    }
}

pub(crate) fn write_irq(irq: &mut IrqConfig, offset: u64, value: u32) {
    match offset {
        0 | 4 => set_half(&mut irq.address, offset == 4, value, MSI_ADDRESS),
        8 => irq.data = value,
        _ => irq.attrs = value & 0x3f,
    }
}

/// The read-only registers.
fn identification(c: &Config, offset: u64) -> Option<u32> {
    let bit = |on: bool, n: u32| u32::from(on) << n;
    let field = |value: u8, n: u32| u32::from(value) << n;
    Some(match offset {
        r::IDR0 => {
            let stall = match c.stall {
                StallModel::Both => 0,
                StallModel::None => 1,
                StallModel::Forced => 2,
            };
            const TTF_AARCH64: u32 = 2 << 2;
            const TTENDIAN_LITTLE: u32 = 2 << 21;
            bit(c.s2p, 0)
                | bit(c.s1p, 1)
                | TTF_AARCH64
                | bit(c.cohacc, 4)
                | field(c.httu, 6)
                | bit(c.hyp, 9)
                | bit(c.vmw && c.s2p, 17)
                | bit(c.ats, 10)
                | bit(c.ats && c.s1p && c.s2p && !c.ats_split, 11)
                | bit(c.asid16, 12)
                | bit(c.msi, 13)
                | bit(c.sev, 14)
                | bit(c.atos, 15)
                | bit(c.vatos, 20)
                | bit(c.pri, 16)
                | bit(c.vmid16 && c.s2p, 18)
                | bit(c.cd2l, 19)
                | TTENDIAN_LITTLE
                | bit(c.atsrecerr, 23)
                | stall << 24
                | bit(!c.term_razwi, 26)
                | bit(c.st2l, 27)
        }
        r::IDR1 => {
            const ATTR_PERMS_OVR: u32 = 1 << 26;
            const ATTR_TYPES_OVR: u32 = 1 << 27;
            field(c.sidsize, 0)
                | field(c.ssidsize, 6)
                | field(if c.pri { c.priqs } else { 0 }, 11)
                | field(c.eventqs, 16)
                | field(c.cmdqs, 21)
                | ATTR_PERMS_OVR
                | ATTR_TYPES_OVR
                | bit(c.ecmdq != 0, 31)
        }
        r::IDR3 => {
            bit(c.had, 2)
                | bit(c.pri && c.pps, 3)
                | bit(c.xnx, 4)
                | bit(c.fwb, 8)
                | bit(c.stt, 9)
                | bit(c.ril, 10)
                | field(c.bbml, 11)
                | bit(c.e0pd, 13)
                | bit(c.mteperm, 22)
        }
        r::IDR5 => {
            let oas = match c.oas {
                32 => 0,
                36 => 1,
                40 => 2,
                42 => 3,
                44 => 4,
                48 => 5,
                _ => 6,
            };
            let stall_max = if c.stall == StallModel::None { 0 } else { crate::STALL_MAX };
            oas | bit(c.gran4k, 4)
                | bit(c.gran16k, 5)
                | bit(c.gran64k, 6)
                | bit(c.ds, 7)
                | bit(c.vax52, 10)
                | u32::from(stall_max) << 16
        }
        r::IDR6 if c.ecmdq != 0 => c.ecmdq.trailing_zeros() << 16,
        // An offset from page 0, CMDQGS of 64 KiB, and PRESET.
        r::CMDQ_CONTROL_PAGE_BASE0 if c.ecmdq != 0 => r::ECMDQ_PAGE as u32 | 1 << 1 | 1,
        r::CMDQ_CONTROL_PAGE_CFG0 | r::CMDQ_CONTROL_PAGE_STATUS0 if c.ecmdq != 0 => 1,
        r::IDR2 if c.vatos => ((r::VATOS_PAGE - r::WINDOW) >> 16) as u32,
        r::IDR2 | r::IDR4 => 0,
        r::IIDR => c.iidr,
        r::AIDR => u32::from(c.aidr),
        // PIDR4 to 7, PIDR0 to 3, CIDR0 to 3: a CoreSight component of class 0xf, without a part number.
        r::ID_BLOCK..=0xfff => match (offset - r::ID_BLOCK) >> 2 {
            8 => 0x0d,
            9 => 0xf0,
            10 => 0x05,
            11 => 0xb1,
            6 => 0x08,
            _ => 0,
        },
        _ => return None,
    })
}
