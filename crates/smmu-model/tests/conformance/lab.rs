//! A bench for one SMMU: memory, a small driver, and a device.

#![allow(unreachable_pub)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use pgtable::{Builder, Granule, Stage1, Stage2, descriptor as d};
use smmu_model::spec::registers as r;
use smmu_model::{Abort, AccessKind, Config, Memory, Msi, Progress, Smmu, Transaction, Translation, TxnId};

/// Where things are. Everything else is free.
pub const CMDQ: u64 = 0x1000_0000;
pub const EVENTQ: u64 = 0x1010_0000;
pub const STRTAB: u64 = 0x1020_0000;
pub const CDS: u64 = 0x1030_0000;
pub const TABLES: u64 = 0x1100_0000;
pub const S2_TABLES: u64 = 0x1200_0000;
/// The stream that most tests use.
pub const SID: u32 = 0x18;
/// A leaf that privileged and unprivileged data may read and write, for one ASID, write-back by MAIR field 0.
pub const RW: u64 = d::AF | d::SH_INNER | d::AP_USER | d::NG;
/// The same, read-only.
pub const RO: u64 = RW | d::AP_READ_ONLY;
/// A stage 2 leaf, readable and writable, write-back.
pub const S2_RW: u64 = d::AF | d::SH_INNER | d::S2AP_READ | d::S2AP_WRITE | 0xf << 2;

/// Memory in 8-byte words, with holes that abort.
#[derive(Default)]
pub struct Ram {
    words: RefCell<BTreeMap<u64, u64>>,
    pub holes: Vec<Range<u64>>,
    /// Addresses of reads, in order.
    pub reads: RefCell<Vec<u64>>,
}

impl Ram {
    fn check(&self, pa: u64) -> Result<(), Abort> {
        if pa >> 52 != 0 || self.holes.iter().any(|hole| hole.contains(&pa)) { Err(Abort) } else { Ok(()) }
    }

    pub fn word(&self, pa: u64) -> u64 {
        self.words.borrow().get(&(pa & !7)).copied().unwrap_or(0)
    }

    pub fn set(&self, pa: u64, word: u64) {
        self.words.borrow_mut().insert(pa & !7, word);
    }
}

impl Memory for Ram {
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort> {
        self.check(pa)?;
        self.reads.borrow_mut().push(pa);
        for (n, byte) in data.iter_mut().enumerate() {
            let at = pa + n as u64;
            *byte = (self.word(at) >> (8 * (at & 7))) as u8;
        }
        Ok(())
    }

    fn write(&self, pa: u64, data: &[u8]) -> Result<(), Abort> {
        self.check(pa)?;
        for (n, byte) in data.iter().enumerate() {
            let at = pa + n as u64;
            let shift = 8 * (at & 7);
            self.set(at, self.word(at) & !(0xff << shift) | u64::from(*byte) << shift);
        }
        Ok(())
    }

    fn compare_exchange_u64(&self, pa: u64, old: u64, new: u64) -> Result<u64, Abort> {
        self.check(pa)?;
        let held = self.word(pa);
        if held == old {
            self.set(pa, new);
        }
        Ok(held)
    }
}

/// `Ram` as the builder of tables wants it.
pub struct Words<'a>(pub &'a Ram);

impl pgtable::TableMemory for Words<'_> {
    fn read(&self, address: u64) -> Option<u64> {
        Some(self.0.word(address))
    }

    fn write(&mut self, address: u64, descriptor: u64) -> Option<()> {
        self.0.set(address, descriptor);
        Some(())
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    To(u64),
    Abort,
    RazWi,
}

/// Fields of a CD, as tests like to change them.
#[derive(Clone, Copy)]
pub struct CdFields {
    pub word0: u64,
    pub word1: u64,
    pub word2: u64,
    pub mair: u64,
}

impl Default for CdFields {
    /// 48-bit TTB0 with 4 KiB pages, no TTB1, 48-bit output, ASID 1, A and R set.
    fn default() -> Self {
        CdFields { word0: cd(16, 0, 1), word1: TABLES, word2: 0, mair: 0x0044_04ff }
    }
}

/// Word 0 of a CD with TTB0 only.
pub fn cd(t0sz: u64, tg0: u64, asid: u64) -> u64 {
    t0sz | tg0 << 6 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | asid << 48
}

pub struct Lab {
    pub smmu: Smmu,
    pub ram: Ram,
    prod: u32,
    /// The EVENTQ index that the driver has read up to.
    pub events_read: u32,
    /// Whether the whole state is compared where there are two ways to it: for small caches.
    pub compares: bool,
}

/// The default without a walk cache, so that fetches can be counted.
pub fn linux() -> Config {
    Config { walk_cache: 0, ..Config::linux() }
}

pub const LOG2_CMDQ: u64 = 6;
pub const LOG2_EVENTQ: u64 = 4;

impl Lab {
    /// An SMMU out of reset with queues, a linear stream table of 256 entries and everything enabled.
    pub fn new(config: Config) -> Self {
        let mut lab = Lab::reset(config);
        lab.w64(r::CMDQ_BASE, CMDQ | LOG2_CMDQ);
        lab.w64(r::EVENTQ_BASE, EVENTQ | LOG2_EVENTQ);
        lab.w64(r::STRTAB_BASE, STRTAB);
        lab.w32(r::STRTAB_BASE_CFG, 8);
        lab.w32(r::CR2, r::cr2::RECINVSID);
        lab.w32(r::IRQ_CTRL, r::irq_ctrl::EVENTQ | r::irq_ctrl::GERROR);
        lab.w32(r::CR0, r::cr0::SMMUEN | r::cr0::CMDQEN | r::cr0::EVENTQEN);
        lab
    }

    /// Out of reset, and no more.
    pub fn reset(config: Config) -> Self {
        Lab { smmu: Smmu::new(config), ram: Ram::default(), prod: 0, events_read: 0, compares: false }
    }

    /// With stream `SID` in stage 1, and its tables.
    pub fn stage1(config: Config) -> (Self, Builder) {
        let mut lab = Lab::new(config);
        let tables = lab.tables(Granule::G4K, 16, TABLES);
        lab.context(0, CdFields::default());
        lab.ste(SID, ste_stage1(CDS));
        (lab, tables)
    }

    pub fn tables(&mut self, granule: Granule, tsz: u8, at: u64) -> Builder {
        let mut cfg = Stage1 { granule, tsz, oas: 48, ..Stage1::default() };
        Builder::stage1(&mut cfg, &mut Words(&self.ram), at..at + 0x40_0000).unwrap()
    }

    pub fn tables2(&mut self, cfg: &mut Stage2) -> Builder {
        Builder::stage2(cfg, &mut Words(&self.ram), S2_TABLES..S2_TABLES + 0x40_0000).unwrap()
    }

    pub fn map(&mut self, tables: &mut Builder, va: u64, pa: u64, len: u64, attrs: u64) {
        tables.map(&mut Words(&self.ram), va, pa, len, attrs).unwrap();
    }

    /// Clears the leaf of `va` at `level`.
    pub fn unmap(&mut self, tables: &mut Builder, level: i8, va: u64) {
        tables.set(&mut Words(&self.ram), level, va, 0).unwrap();
    }

    pub fn w32(&mut self, offset: u64, value: u32) {
        self.smmu.mmio_write(offset, 4, value.into());
    }

    pub fn w64(&mut self, offset: u64, value: u64) {
        self.smmu.mmio_write(offset, 8, value);
    }

    pub fn r32(&mut self, offset: u64) -> u32 {
        self.smmu.mmio_read(offset, 4).unwrap() as u32
    }

    pub fn ste(&mut self, sid: u32, words: [u64; 4]) {
        for (n, word) in words.into_iter().enumerate() {
            self.ram.set(STRTAB + u64::from(sid) * 64 + n as u64 * 8, word);
        }
    }

    /// CD number `n` of the table at `CDS`.
    pub fn context(&mut self, n: u64, cd: CdFields) {
        self.context_at(CDS + n * 64, cd);
    }

    pub fn context_at(&mut self, at: u64, cd: CdFields) {
        for (n, word) in [cd.word0, cd.word1, cd.word2, cd.mair].into_iter().enumerate() {
            self.ram.set(at + n as u64 * 8, word);
        }
    }

    /// Puts a command into the queue and tells the SMMU; nothing is consumed.
    pub fn push(&mut self, command: [u64; 2]) {
        let at = CMDQ + u64::from(self.prod & ((1 << LOG2_CMDQ) - 1)) * 16;
        self.ram.set(at, command[0]);
        self.ram.set(at + 8, command[1]);
        self.prod = (self.prod + 1) & ((2 << LOG2_CMDQ) - 1);
        self.w32(r::CMDQ_PROD, self.prod);
    }

    /// Puts a command and a CMD_SYNC into the queue and lets the SMMU consume them.
    pub fn command(&mut self, command: [u64; 2]) {
        self.push(command);
        self.push(SYNC);
        self.run_commands();
        assert!(self.idle(), "commands were not consumed: CONS {:#x}", self.r32(r::CMDQ_CONS));
    }

    /// Lets the SMMU consume commands, and write event records where a CMD_SYNC waits for them.
    pub fn run_commands(&mut self) {
        for _ in 0..1000 {
            if self.smmu.command_pending() {
                self.smmu.step_command(&self.ram);
            } else if !self.idle() && self.smmu.event_pending() {
                self.smmu.step_event(&self.ram);
            } else {
                break;
            }
        }
    }

    /// Whether all commands are consumed.
    pub fn idle(&mut self) -> bool {
        self.r32(r::CMDQ_CONS) & 0xf_ffff == self.prod
    }

    /// A transaction to its end, data included.
    pub fn dma(&mut self, t: Transaction) -> End {
        match self.translate(t) {
            Ok((id, translation)) => {
                self.smmu.complete(id);
                End::To(translation.pa)
            }
            Err(end) => end,
        }
    }

    pub fn read(&mut self, address: u64) -> End {
        self.dma(Transaction::new(SID, address, AccessKind::Read))
    }

    pub fn write(&mut self, address: u64) -> End {
        self.dma(Transaction::new(SID, address, AccessKind::Write))
    }

    /// A transaction up to its data, step by step. All in a row, it does the same.
    pub fn translate(&mut self, t: Transaction) -> Result<(TxnId, Translation), End> {
        let mut twin = self.smmu.clone();
        let over = Over { ram: &self.ram, written: RefCell::default(), reads: RefCell::default() };
        let (at_once, some) = twin.translate(&t, &over);
        let (at_once, more) = walk(&mut twin, at_once, &over);
        let Over { written, reads, .. } = over;
        let before = self.ram.reads.borrow().len();
        let begun = self.smmu.begin(&t);
        let (progress, steps) = walk(&mut self.smmu, begun, &self.ram);
        assert_eq!((at_once, some + more), (progress, steps), "{t:x?}");
        assert_eq!(reads.borrow()[..], self.ram.reads.borrow()[before..], "{t:x?}");
        assert!(written.borrow().iter().all(|(&at, &word)| self.ram.word(at) == word), "{t:x?}");
        assert_eq!(twin.stats(), self.smmu.stats(), "{t:x?}");
        if self.compares {
            let state = |smmu: &Smmu| serde_json::to_string(smmu).unwrap();
            assert!(state(&twin) == state(&self.smmu), "{t:x?}");
        }
        match progress {
            Progress::Latched(id, translation) => Ok((id, translation)),
            Progress::Aborted => Err(End::Abort),
            Progress::Discarded => Err(End::RazWi),
            Progress::Stalled(_) => panic!("stalled"),
            Progress::Walking(_) => panic!("the walk does not end"),
        }
    }

    /// Lets the SMMU write its records, and reads them as a driver does.
    pub fn events(&mut self) -> Vec<[u64; 4]> {
        while self.smmu.event_pending() {
            self.smmu.step_event(&self.ram);
        }
        let mut records = Vec::new();
        let prod = self.r32(r::EVENTQ_PROD);
        while self.events_read != prod & 0xf_ffff {
            let at = EVENTQ + u64::from(self.events_read & ((1 << LOG2_EVENTQ) - 1)) * 32;
            records.push([0, 8, 16, 24].map(|n| self.ram.word(at + n)));
            self.events_read = (self.events_read + 1) & ((2 << LOG2_EVENTQ) - 1);
        }
        self.w32(r::EVENTQ_CONS, self.events_read | prod & r::OVERFLOW);
        records
    }

    /// The only event there is.
    pub fn event(&mut self) -> [u64; 4] {
        let events = self.events();
        assert_eq!(events.len(), 1, "{events:x?}");
        events[0]
    }

    pub fn msis(&mut self) -> Vec<Msi> {
        std::iter::from_fn(|| self.smmu.take_msi()).collect()
    }

    /// How many reads of memory `f` makes the SMMU do.
    pub fn fetches<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> (usize, T) {
        self.ram.reads.borrow_mut().clear();
        let result = f(self);
        (self.ram.reads.borrow().len(), result)
    }
}

/// Steps a transaction as long as it walks, and counts the steps.
fn walk(smmu: &mut Smmu, mut progress: Progress, ram: &dyn Memory) -> (Progress, u64) {
    let mut steps = 0;
    while let Progress::Walking(id) = progress
        && steps < 200
    {
        progress = smmu.step(id, ram);
        steps += 1;
    }
    (progress, steps)
}

/// Memory that what is written does not reach.
struct Over<'a> {
    ram: &'a Ram,
    written: RefCell<BTreeMap<u64, u64>>,
    reads: RefCell<Vec<u64>>,
}

impl Memory for Over<'_> {
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort> {
        self.ram.check(pa)?;
        self.reads.borrow_mut().push(pa);
        for (n, byte) in data.iter_mut().enumerate() {
            let at = pa + n as u64;
            let word = self.written.borrow().get(&(at & !7)).copied().unwrap_or_else(|| self.ram.word(at));
            *byte = (word >> (8 * (at & 7))) as u8;
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), Abort> {
        Err(Abort)
    }

    fn compare_exchange_u64(&self, pa: u64, old: u64, new: u64) -> Result<u64, Abort> {
        self.ram.check(pa)?;
        let held = self.written.borrow().get(&pa).copied().unwrap_or_else(|| self.ram.word(pa));
        if held == old {
            self.written.borrow_mut().insert(pa, new);
        }
        Ok(held)
    }
}

/// A stage 1 STE with one CD.
pub fn ste_stage1(cd: u64) -> [u64; 4] {
    [1 | 5 << 1 | cd, 1 << 44, 0, 0]
}

pub const STE_BYPASS: [u64; 4] = [1 | 4 << 1, 1 << 44, 0, 0];
pub const STE_ABORT: [u64; 4] = [1, 0, 0, 0];
pub const SYNC: [u64; 2] = [0x46, 0];
pub const CFGI_ALL: [u64; 2] = [0x04, 31];
pub const NSNH_ALL: [u64; 2] = [0x30, 0];

pub fn cfgi_ste(sid: u32) -> [u64; 2] {
    [0x03 | u64::from(sid) << 32, 1]
}

pub fn cfgi_cd(sid: u32, ssid: u64) -> [u64; 2] {
    [0x05 | ssid << 12 | u64::from(sid) << 32, 1]
}

pub fn tlbi_va(asid: u64, va: u64) -> [u64; 2] {
    [0x12 | asid << 48, va & !0xfff | 1]
}

/// A record's number.
pub fn code(event: [u64; 4]) -> u64 {
    event[0] & 0xff
}
