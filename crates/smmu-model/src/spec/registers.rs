//! Register offsets and fields (chapter 6).
#![allow(missing_docs)]

pub const IDR0: u64 = 0x00;
pub const IDR1: u64 = 0x04;
pub const IDR2: u64 = 0x08;
pub const IDR3: u64 = 0x0c;
pub const IDR4: u64 = 0x10;
pub const IDR5: u64 = 0x14;
pub const IIDR: u64 = 0x18;
pub const AIDR: u64 = 0x1c;
pub const CR0: u64 = 0x20;
pub const CR0ACK: u64 = 0x24;
pub const CR1: u64 = 0x28;
pub const CR2: u64 = 0x2c;
pub const STATUSR: u64 = 0x40;
pub const GBPA: u64 = 0x44;
pub const AGBPA: u64 = 0x48;
pub const IRQ_CTRL: u64 = 0x50;
pub const IRQ_CTRLACK: u64 = 0x54;
pub const GERROR: u64 = 0x60;
pub const GERRORN: u64 = 0x64;
pub const GERROR_IRQ_CFG0: u64 = 0x68;
pub const GERROR_IRQ_CFG1: u64 = 0x70;
pub const GERROR_IRQ_CFG2: u64 = 0x74;
pub const STRTAB_BASE: u64 = 0x80;
pub const STRTAB_BASE_CFG: u64 = 0x88;
pub const CMDQ_BASE: u64 = 0x90;
pub const CMDQ_PROD: u64 = 0x98;
pub const CMDQ_CONS: u64 = 0x9c;
pub const IDR6: u64 = 0x190;
pub const GATOS_CTRL: u64 = 0x100;
pub const GATOS_SID: u64 = 0x108;
pub const GATOS_ADDR: u64 = 0x110;
pub const GATOS_PAR: u64 = 0x118;
pub const VATOS_SEL: u64 = 0x180;
pub const CMDQ_CONTROL_PAGE_BASE0: u64 = 0x4000;
pub const CMDQ_CONTROL_PAGE_CFG0: u64 = 0x4008;
pub const CMDQ_CONTROL_PAGE_STATUS0: u64 = 0x400c;
pub const EVENTQ_BASE: u64 = 0xa0;
pub const EVENTQ_IRQ_CFG0: u64 = 0xb0;
pub const EVENTQ_IRQ_CFG1: u64 = 0xb8;
pub const EVENTQ_IRQ_CFG2: u64 = 0xbc;
pub const PRIQ_BASE: u64 = 0xc0;
pub const PRIQ_IRQ_CFG0: u64 = 0xd0;
pub const PRIQ_IRQ_CFG1: u64 = 0xd8;
pub const PRIQ_IRQ_CFG2: u64 = 0xdc;
/// CoreSight identification block, up to the end of the first 4 KiB.
pub const ID_BLOCK: u64 = 0xfd0;

/// Page 1 begins here; the indices of the event and PRI queues live in it.
pub const PAGE1: u64 = 0x1_0000;
pub const EVENTQ_PROD: u64 = PAGE1 + 0xa8;
pub const EVENTQ_CONS: u64 = PAGE1 + 0xac;
pub const PRIQ_PROD: u64 = PAGE1 + 0xc8;
pub const PRIQ_CONS: u64 = PAGE1 + 0xcc;
/// End of the register map: two pages of 64 KiB.
pub const WINDOW: u64 = 0x2_0000;
/// The enhanced command queues' control page, behind it.
pub const ECMDQ_PAGE: u64 = WINDOW;
/// End of that.
pub const ECMDQ_END: u64 = 0x3_0000;
/// The page of the virtual address translation operations, whether or not there are enhanced command queues.
pub const VATOS_PAGE: u64 = ECMDQ_END;
pub const VATOS_CTRL: u64 = VATOS_PAGE + 0xa00;
pub const VATOS_SID: u64 = VATOS_PAGE + 0xa08;
pub const VATOS_ADDR: u64 = VATOS_PAGE + 0xa10;
pub const VATOS_PAR: u64 = VATOS_PAGE + 0xa18;
/// End of that.
pub const VATOS_END: u64 = 0x4_0000;

/// CR0 and CR0ACK.
pub mod cr0 {
    pub const SMMUEN: u32 = 1 << 0;
    pub const PRIQEN: u32 = 1 << 1;
    pub const EVENTQEN: u32 = 1 << 2;
    pub const CMDQEN: u32 = 1 << 3;
    pub const ATSCHK: u32 = 1 << 4;
    pub const VMW: u32 = 7 << 6;
}

/// CR1: how tables and queues are accessed.
pub mod cr1 {
    pub const QUEUE: u32 = 0x3f;
    pub const TABLE: u32 = 0x3f << 6;
}

/// CR2.
pub mod cr2 {
    pub const E2H: u32 = 1 << 0;
    pub const RECINVSID: u32 = 1 << 1;
    pub const PTM: u32 = 1 << 2;
    pub const REC_CFG_ATS: u32 = 1 << 3;
}

/// GBPA: what happens while SMMUEN is 0.
pub mod gbpa {
    pub const MEMATTR: u32 = 0xf;
    pub const MTCFG: u32 = 1 << 4;
    pub const ALLOCCFG: u32 = 0xf << 8;
    pub const SHCFG: u32 = 3 << 12;
    pub const PRIVCFG: u32 = 3 << 16;
    pub const INSTCFG: u32 = 3 << 18;
    pub const ABORT: u32 = 1 << 20;
    pub const UPDATE: u32 = 1 << 31;
    /// All that software can change.
    pub const FIELDS: u32 = MEMATTR | MTCFG | ALLOCCFG | SHCFG | PRIVCFG | INSTCFG | ABORT;
    /// SHCFG = use incoming.
    pub const SHCFG_INCOMING: u32 = 1 << 12;
}

/// IRQ_CTRL and IRQ_CTRLACK.
pub mod irq_ctrl {
    pub const GERROR: u32 = 1 << 0;
    pub const PRIQ: u32 = 1 << 1;
    pub const EVENTQ: u32 = 1 << 2;
}

/// GERROR and GERRORN: an error is active while its bits differ.
pub mod gerror {
    pub const CMDQ_ERR: u32 = 1 << 0;
    pub const EVENTQ_ABT_ERR: u32 = 1 << 2;
    pub const PRIQ_ABT_ERR: u32 = 1 << 3;
    pub const MSI_CMDQ_ABT_ERR: u32 = 1 << 4;
    pub const MSI_EVENTQ_ABT_ERR: u32 = 1 << 5;
    pub const MSI_PRIQ_ABT_ERR: u32 = 1 << 6;
    pub const MSI_GERROR_ABT_ERR: u32 = 1 << 7;
    pub const SFM_ERR: u32 = 1 << 8;
    pub const CMDQP_ERR: u32 = 1 << 9;
}

/// PRIQ_IRQ_CFG2.LO: the PRI queue interrupts for the last request of a group, not when it becomes non-empty.
pub const PRIQ_LAST_ONLY: u32 = 1 << 31;

/// OVFLG and OVACKFLG of an output queue's PROD and CONS.
pub const OVERFLOW: u32 = 1 << 31;
