//! The test devices as bare-metal software sees them: configuration space, BARs, and an SMMU that the test sets up in
//! memory and registers.

mod ats;
mod engine;
mod engine_faults;
mod hostile;
mod iommu_testdev;
mod platform;
mod qtest;
mod scenarios;
mod snapshots;

use std::sync::{Arc, Mutex, MutexGuard};

use guest_ram::GuestRam;
use pgtable::{Builder, Stage1, Stage2, TableMemory, descriptor as d};
use smmu_model::spec::registers as r;
use smmu_model::{Config, Smmu};

use super::*;
use crate::agent::Agent;
use crate::dma::{Fabric, GITS_TRANSLATER, ItsInbox, PhysMem};
use crate::pci::{COMMAND_MASTER, COMMAND_MEMORY, PciHost, Slot, reg};

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 0x1000_0000;

const TESTDEV: Slot = Slot(1 << 3);
const ENGINE: Slot = Slot(2 << 3);
const TESTDEV_BAR: u64 = 0x1000_0000;
const FRAMES: u64 = 0x80_0000_0000;
const MSIX: u64 = 0x80_0010_0000;

/// Structures in memory.
const CMDQ: u64 = RAM + 0x10_0000;
const EVENTQ: u64 = RAM + 0x11_0000;
const STRTAB: u64 = RAM + 0x12_0000;
const CDS: u64 = RAM + 0x13_0000;
const TABLES: u64 = RAM + 0x20_0000;
const S2_TABLES: u64 = RAM + 0x40_0000;
/// Memory for data, from here on.
const DATA: u64 = RAM + 0x100_0000;

/// A leaf that privileged and unprivileged data may read and write.
const RW: u64 = d::AF | d::SH_INNER | d::AP_USER | d::NG;
/// A stage 2 leaf, readable and writable, write-back.
const S2_RW: u64 = d::AF | d::SH_INNER | d::S2AP_READ | d::S2AP_WRITE | 0xf << 2;

/// Event numbers and fields of event records (IHI 0070 §7.3).
mod event {
    pub(super) const C_BAD_STE: u64 = 0x04;
    pub(super) const C_BAD_SUBSTREAMID: u64 = 0x08;
    pub(super) const C_BAD_CD: u64 = 0x0a;
    pub(super) const F_TRANSLATION: u64 = 0x10;
    pub(super) const F_ADDR_SIZE: u64 = 0x11;
    pub(super) const F_ACCESS: u64 = 0x12;
    pub(super) const F_PERMISSION: u64 = 0x13;
    pub(super) const PNU: u64 = 1 << 33;
    pub(super) const IND: u64 = 1 << 34;
    pub(super) const READ: u64 = 1 << 35;
    pub(super) const S2: u64 = 1 << 39;
    pub(super) const CLASS_CD: u64 = 0;
    pub(super) const CLASS_TT: u64 = 1 << 40;
    pub(super) const CLASS_IN: u64 = 2 << 40;
    pub(super) const STALL: u64 = 1 << 31;
}

/// Word 0 of a record without a SubstreamID.
fn record(code: u64, slot: Slot) -> u64 {
    code | u64::from(slot.0) << 32
}

/// Word 0 of a record with one.
fn record_of(code: u64, slot: Slot, ssid: u64) -> u64 {
    record(code, slot) | 1 << 11 | ssid << 12
}

struct Words(GuestRam);

impl TableMemory for Words {
    fn read(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.0.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    fn write(&mut self, address: u64, descriptor: u64) -> Option<()> {
        self.0.write(address, &descriptor.to_le_bytes()).then_some(())
    }
}

/// Word 0 of a CD: 48-bit TTB0 with 4 KiB pages, no TTB1, 44-bit output, A and R set.
fn cd0(asid: u64) -> u64 {
    16 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | asid << 48
}

/// Word 2 of an STE with stage 2: 44-bit IPAs, 4 KiB pages from level 0, S2R set.
const STE_S2: u64 = 1 | 20 << 32 | 2 << 38 | 4 << 48 | 1 << 51 | 1 << 58;

/// A machine with both devices, and the software that drives them.
struct Lab {
    ram: GuestRam,
    smmu: Option<Arc<Mutex<Smmu>>>,
    host: PciHost,
    inbox: ItsInbox,
    now: Time,
    events_read: u32,
}

impl Lab {
    /// Without an SMMU: device addresses are physical.
    fn physical() -> Self {
        Self::with(None)
    }

    /// With an SMMU that has its queues and a stream table, and is on.
    fn translated(config: Config) -> Self {
        let lab = Self::with(Some(config));
        lab.smmu64(r::CMDQ_BASE, CMDQ | 6);
        lab.smmu64(r::EVENTQ_BASE, EVENTQ | 6);
        lab.smmu64(r::STRTAB_BASE, STRTAB);
        lab.smmu64(r::STRTAB_BASE_CFG, 5);
        lab.smmu32(r::CR0, r::cr0::SMMUEN | r::cr0::CMDQEN | r::cr0::EVENTQEN);
        lab
    }

    fn with(config: Option<Config>) -> Self {
        let ram = GuestRam::new(RAM, RAM_SIZE).unwrap();
        let inbox = ItsInbox::default();
        let smmu = config.map(|config| Arc::new(Mutex::new(Smmu::new(config))));
        let mut host = PciHost::new(Fabric::new(ram.clone(), smmu.clone(), inbox.clone()));
        let inspector = host.fabric().inspector();
        host.add(TESTDEV, |port| Box::new(IommuTestdev::new(port, inspector, Timing::default())));
        host.add(ENGINE, |port| Box::new(Engine::new(port, 1, Timing::default())));
        let mut lab = Self { ram, smmu, host, inbox, now: 0, events_read: 0 };
        lab.enable();
        lab
    }

    /// BARs, memory space and bus mastering of both; MSI-X of the engine, all vectors to the ITS and unmasked.
    fn enable(&mut self) {
        self.config32(TESTDEV, 0x10, TESTDEV_BAR as u32);
        for (at, address) in [(0x10, FRAMES), (0x18, MSIX)] {
            self.config32(ENGINE, at, address as u32);
            self.config32(ENGINE, at + 4, (address >> 32) as u32);
        }
        self.set_command(TESTDEV, COMMAND_MEMORY | COMMAND_MASTER);
        self.set_command(ENGINE, COMMAND_MEMORY | COMMAND_MASTER);
        let msix = self.capability(ENGINE, 0x11);
        self.config32(ENGINE, msix, 0x8000_0000);
        for vector in 0..128 {
            self.write(MSIX + vector * 16, 8, GITS_TRANSLATER);
            self.write(MSIX + vector * 16 + 8, 4, 0x100 + vector);
            self.write(MSIX + vector * 16 + 12, 4, 0);
        }
    }

    fn set_command(&mut self, slot: Slot, command: u16) {
        let at = u64::from(slot.0) << 12 | u64::from(reg::COMMAND);
        self.host.config_write(self.now, at, 2, u64::from(command));
    }

    fn config32(&mut self, slot: Slot, at: u64, value: u32) {
        self.host.config_write(self.now, u64::from(slot.0) << 12 | at, 4, u64::from(value));
    }

    fn config_read(&mut self, slot: Slot, at: u64, size: u8) -> u64 {
        self.host.config_read(self.now, u64::from(slot.0) << 12 | at, size)
    }

    fn capability(&mut self, slot: Slot, id: u64) -> u64 {
        let mut at = self.config_read(slot, 0x34, 1);
        while at != 0 && self.config_read(slot, at, 1) != id {
            at = self.config_read(slot, at + 1, 1);
        }
        assert_ne!(at, 0, "no capability {id:#x}");
        at
    }

    fn write(&mut self, pa: u64, size: u8, value: u64) {
        self.host.mmio_write(self.now, pa, size, value);
    }

    fn read(&mut self, pa: u64, size: u8) -> u64 {
        self.host.mmio_read(self.now, pa, size)
    }

    /// Runs the devices until they are idle, and answers how many steps that took.
    fn run(&mut self) -> usize {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 1_000_000, "the devices never rest");
        }
        steps
    }

    fn step(&mut self) -> bool {
        let Some(at) = self.host.next_step() else { return false };
        self.now = self.now.max(at);
        self.host.step(self.now);
        true
    }

    fn put(&self, pa: u64, bytes: &[u8]) {
        assert!(self.ram.write(pa, bytes));
    }

    fn get(&self, pa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert!(self.ram.read(pa, &mut bytes));
        bytes
    }

    fn put64(&self, pa: u64, words: &[u64]) {
        words.iter().enumerate().for_each(|(n, word)| self.put(pa + 8 * n as u64, &word.to_le_bytes()));
    }

    fn get64(&self, pa: u64) -> u64 {
        u64::from_le_bytes(self.get(pa, 8).try_into().unwrap())
    }

    fn smmu(&self) -> MutexGuard<'_, Smmu> {
        self.smmu.as_ref().unwrap().lock().unwrap()
    }

    fn smmu32(&self, offset: u64, value: u32) {
        self.smmu().mmio_write(offset, 4, u64::from(value));
    }

    fn smmu64(&self, offset: u64, value: u64) {
        self.smmu().mmio_write(offset, 8, value);
    }

    fn ste(&self, slot: Slot, words: [u64; 4]) {
        self.put64(STRTAB + u64::from(slot.0) * 64, &words);
    }

    /// CD number `n`, with tables of its own.
    fn context(&self, n: u64) -> Builder {
        let at = TABLES + n * 0x4_0000;
        let mut cfg = Stage1 { tsz: 16, oas: 44, ..Stage1::default() };
        let mut tables = Builder::stage1(&mut cfg, &mut self.words(), at..at + 0x4_0000).unwrap();
        tables.coarsest = 3;
        self.put64(CDS + n * 64, &[cd0(n + 1), cfg.ttb, 0, 0xff]);
        tables
    }

    fn stage2(&self) -> Builder {
        let mut cfg = Stage2 { tsz: 20, sl0: 2, oas: 44, ..Stage2::default() };
        let pool = S2_TABLES..S2_TABLES + 0x10_0000;
        let mut tables = Builder::stage2(&mut cfg, &mut self.words(), pool).unwrap();
        tables.coarsest = 3;
        tables
    }

    fn words(&self) -> Words {
        Words(self.ram.clone())
    }

    fn map(&self, tables: &mut Builder, va: u64, pa: u64, len: u64, attrs: u64) {
        tables.map(&mut self.words(), va, pa, len, attrs).unwrap();
    }

    /// One function in stage 1 with the context 0, where the ITS is mapped.
    fn stage1(config: Config, slot: Slot) -> (Self, Builder) {
        let lab = Self::translated(config);
        let mut tables = lab.context(0);
        let doorbell = GITS_TRANSLATER & !0xfff;
        lab.map(&mut tables, doorbell, doorbell, 0x1000, RW);
        lab.ste(slot, [1 | 5 << 1 | CDS, 1 << 44, 0, 0]);
        (lab, tables)
    }

    /// The records that the SMMU has, as its driver reads them.
    fn events(&mut self) -> Vec<[u64; 4]> {
        while self.smmu().event_pending() {
            self.smmu().step_event(&PhysMem::new(&self.ram));
        }
        let prod = self.smmu().mmio_read(r::EVENTQ_PROD, 4).unwrap() as u32 & !r::OVERFLOW;
        let mut records = Vec::new();
        while self.events_read != prod {
            let at = EVENTQ + u64::from(self.events_read % 64) * 32;
            records.push([0, 8, 16, 24].map(|n| self.get64(at + n)));
            self.events_read = (self.events_read + 1) % 128;
        }
        self.smmu32(r::EVENTQ_CONS, self.events_read);
        records
    }

    /// Gives the SMMU a command and a CMD_SYNC, and lets it consume them.
    fn command(&self, command: [u64; 2]) {
        let prod = self.smmu().mmio_read(r::CMDQ_PROD, 4).unwrap();
        self.put64(CMDQ + prod % 64 * 16, &command);
        self.put64(CMDQ + (prod + 1) % 64 * 16, &[0x46, 0]);
        self.smmu32(r::CMDQ_PROD, ((prod + 2) % 128) as u32);
        while self.smmu().command_pending() {
            self.smmu().step_command(&PhysMem::new(&self.ram));
        }
    }

    /// EventIDs of the engine's messages.
    fn interrupts(&self) -> Vec<u32> {
        let messages = std::iter::from_fn(|| self.inbox.take());
        messages.inspect(|m| assert_eq!(m.device_id, u32::from(ENGINE.0))).map(|m| m.event_id).collect()
    }

    /// Whether the SMMU still waits for a transaction: it can be disabled only when it does not.
    fn outstanding(&self) -> bool {
        self.smmu32(r::CR0, 0);
        self.smmu().mmio_read(r::CR0ACK, 4) != Some(0)
    }
}
