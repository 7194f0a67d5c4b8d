//! A guest that drives one SMMU, every store of which the checker is told of with a "program counter" of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use pgtable::{Builder, Stage1, Stage2, descriptor as d};
use smmu_model::checker::{Checker, Kind, Pages, Patience, Report, Site};
use smmu_model::spec::registers as r;
use smmu_model::{Abort, AccessKind, Config, Memory, Progress, Smmu, StallModel, Transaction, TxnId};
use smmu_model::{AtsAnswer, AtsProgress, AtsRequest};

pub(crate) const CMDQ: u64 = 0x1000_0000;
pub(crate) const EVENTQ: u64 = 0x1010_0000;
pub(crate) const PRIQ: u64 = 0x1018_0000;
pub(crate) const STRTAB: u64 = 0x1020_0000;
pub(crate) const CDS: u64 = 0x1030_0000;
pub(crate) const TABLES: u64 = 0x1100_0000;
pub(crate) const S2_TABLES: u64 = 0x1200_0000;
pub(crate) const SID: u32 = 0x18;
pub(crate) const IOVA: u64 = 0x1234_5000;
pub(crate) const PAGE: u64 = 0x8000_0000;
pub(crate) const RW: u64 = d::AF | d::SH_INNER | d::AP_USER | d::NG;
pub(crate) const S2_RW: u64 = d::AF | d::SH_INNER | d::S2AP_READ | d::S2AP_WRITE | 0xf << 2;
const LOG2_CMDQ: u32 = 6;

/// Memory that two can look at.
#[derive(Clone, Default)]
pub(crate) struct Ram {
    words: Arc<Mutex<BTreeMap<u64, u64>>>,
    watched: Arc<Mutex<BTreeSet<u64>>>,
    /// Whether devices may make requests, if that is known.
    requests: Arc<Mutex<Option<bool>>>,
}

impl Ram {
    pub(crate) fn word(&self, pa: u64) -> u64 {
        self.words.lock().unwrap().get(&(pa & !7)).copied().unwrap_or(0)
    }

    /// From now on it is known that devices may make requests, or may not.
    pub(crate) fn may_request(&self, may: bool) {
        *self.requests.lock().unwrap() = Some(may);
    }

    fn set(&self, pa: u64, word: u64) {
        self.words.lock().unwrap().insert(pa & !7, word);
    }
}

impl Pages for Ram {
    fn watch(&mut self, page: u64) {
        assert!(self.watched.lock().unwrap().insert(page), "watched twice");
    }

    fn unwatch(&mut self, page: u64) {
        assert!(self.watched.lock().unwrap().remove(&page), "was not watched");
    }

    fn read(&self, pa: u64) -> Option<u64> {
        Some(self.word(pa))
    }

    fn may_request(&self, _: u32) -> Option<bool> {
        *self.requests.lock().unwrap()
    }
}

impl Memory for Ram {
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort> {
        for (n, byte) in data.iter_mut().enumerate() {
            let at = pa + n as u64;
            *byte = (self.word(at) >> (8 * (at & 7))) as u8;
        }
        Ok(())
    }

    fn write(&self, pa: u64, data: &[u8]) -> Result<(), Abort> {
        for (n, byte) in data.iter().enumerate() {
            let at = pa + n as u64;
            let shift = 8 * (at & 7);
            self.set(at, self.word(at) & !(0xff << shift) | u64::from(*byte) << shift);
        }
        Ok(())
    }

    fn compare_exchange_u64(&self, pa: u64, old: u64, new: u64) -> Result<u64, Abort> {
        let held = self.word(pa);
        if held == old {
            self.set(pa, new);
        }
        Ok(held)
    }
}

/// The guest, its SMMU and a device.
pub(crate) struct Guest {
    pub(crate) smmu: Smmu,
    pub(crate) ram: Ram,
    pub(crate) checker: Checker,
    pub(crate) now: u64,
    /// What stores seem to come from.
    pub(crate) pc: u64,
    pub(crate) prod: u32,
    tables: Builder,
    tables2: Option<Builder>,
}

/// The builder's view of memory: its stores are the guest's.
struct Stores<'a>(&'a Ram, Vec<(u64, u64)>);

impl pgtable::TableMemory for Stores<'_> {
    fn read(&self, address: u64) -> Option<u64> {
        let new = self.1.iter().rev().find(|(at, _)| *at == address);
        Some(new.map_or_else(|| self.0.word(address), |&(_, value)| value))
    }

    fn write(&mut self, address: u64, descriptor: u64) -> Option<()> {
        self.1.push((address, descriptor));
        Some(())
    }
}

pub(crate) fn config() -> Config {
    Config { stall: StallModel::Both, ssidsize: 4, httu: 2, ..Config::full() }
}

pub(crate) fn cd(asid: u64, ttb: u64) -> [u64; 4] {
    [16 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | asid << 48, ttb, 0, 0x0044_04ff]
}

pub(crate) fn ste_stage1(cds: u64) -> [u64; 4] {
    [1 | 5 << 1 | cds, 1 << 44, 0, 0]
}

pub(crate) fn tlbi_va(asid: u64, va: u64, leaf: u64) -> [u64; 2] {
    [0x12 | asid << 48, va & !0xfff | leaf]
}

pub(crate) fn cfgi_ste() -> [u64; 2] {
    [0x03 | u64::from(SID) << 32, 1]
}

pub(crate) fn cfgi_cd() -> [u64; 2] {
    [0x05 | u64::from(SID) << 32, 1]
}

impl Guest {
    /// Stream `SID` in stage 1 with ASID 1; nothing is mapped.
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        let ram = Ram::default();
        let checker = Checker::new(&config, Patience::default(), Box::new(ram.clone()));
        let mut smmu = Smmu::new(config);
        smmu.observe(Box::new(checker.clone()));
        let mut stores = Stores(&ram, Vec::new());
        let mut cfg = Stage1 { tsz: 16, oas: 44, ..Stage1::default() };
        let tables = Builder::stage1(&mut cfg, &mut stores, TABLES..TABLES + 0x40_0000).unwrap();
        assert_eq!(cfg.ttb, TABLES);
        let mut guest =
            Guest { smmu, ram: ram.clone(), checker, now: 0, pc: 0x1000, prod: 0, tables, tables2: None };
        guest.ste(ste_stage1(CDS));
        guest.context(CDS, cd(1, TABLES));
        guest.w64(r::CMDQ_BASE, CMDQ | u64::from(LOG2_CMDQ));
        guest.w64(r::EVENTQ_BASE, EVENTQ | 4);
        guest.w64(r::STRTAB_BASE, STRTAB);
        guest.w32(r::STRTAB_BASE_CFG, 8);
        guest.w32(r::CR0, r::cr0::CMDQEN | r::cr0::EVENTQEN);
        guest.commands(&[[0x04, 31], [0x30, 0]]);
        guest.w32(r::CR0, r::cr0::SMMUEN | r::cr0::CMDQEN | r::cr0::EVENTQEN);
        guest
    }

    /// Another checker takes over, as after a snapshot: it knows what memory and the SMMU have, and no more.
    pub(crate) fn rejoin(&mut self) {
        self.ram = Ram { words: Arc::clone(&self.ram.words), ..Ram::default() };
        let config = self.smmu.config().clone();
        self.checker = Checker::new(&config, Patience::default(), Box::new(self.ram.clone()));
        self.checker.set_time(self.now);
        self.checker.resume(&self.smmu);
        self.smmu.observe(Box::new(self.checker.clone()));
    }

    /// Stream `SID` in stage 2 with VMID 3.
    pub(crate) fn stage2() -> Self {
        let mut guest = Guest::new();
        let mut cfg = Stage2 { tsz: 24, sl0: 1, oas: 44, ..Stage2::default() };
        let mut stores = Stores(&guest.ram, Vec::new());
        let tables = Builder::stage2(&mut cfg, &mut stores, S2_TABLES..S2_TABLES + 0x40_0000).unwrap();
        guest.tables2 = Some(tables);
        let word2 = 3 | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
        guest.ste([1 | 6 << 1, 1 << 44, word2, cfg.ttb]);
        guest.commands(&[cfgi_ste()]);
        guest
    }

    /// Time passes, and the checker knows.
    pub(crate) fn pass(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        self.checker.set_time(self.now);
    }

    pub(crate) fn site(&self) -> Site {
        Site { time: self.now, cpu: Some(0), pc: self.pc, ..Site::default() }
    }

    /// The code that follows is at `pc`.
    pub(crate) fn at(&mut self, pc: u64) -> &mut Self {
        self.pc = pc;
        self
    }

    /// An aligned 64-bit store.
    pub(crate) fn store(&mut self, pa: u64, value: u64) {
        self.pass(1);
        if self.ram.watched.lock().unwrap().contains(&(pa & !0xfff)) {
            self.checker.cpu_store(&self.site(), pa, 8, value.into());
        }
        self.ram.set(pa, value);
    }

    pub(crate) fn ste(&mut self, words: [u64; 4]) {
        for (n, word) in words.into_iter().enumerate() {
            self.store(STRTAB + u64::from(SID) * 64 + 8 * n as u64, word);
        }
    }

    pub(crate) fn context(&mut self, at: u64, words: [u64; 4]) {
        // V last.
        for n in [1, 2, 3, 0] {
            self.store(at + 8 * n as u64, words[n]);
        }
    }

    /// Maps with the stores in the order in which a driver makes them: tables first.
    pub(crate) fn map(&mut self, iova: u64, pa: u64, len: u64, attrs: u64) {
        let mut stores = Stores(&self.ram, Vec::new());
        let tables = self.tables2.as_mut().unwrap_or(&mut self.tables);
        tables.map(&mut stores, iova, pa, len, attrs).unwrap();
        for (at, value) in stores.1 {
            self.store(at, value);
        }
    }

    /// Where the descriptor of `iova` at `level` is.
    pub(crate) fn slot(&mut self, iova: u64, level: i8) -> u64 {
        let root = if self.tables2.is_some() { S2_TABLES } else { TABLES };
        let start = if self.tables2.is_some() { 1 } else { 0 };
        let mut table = root;
        for l in start..=level {
            let at = table + ((iova >> (39 - 9 * l as u32)) & 511) * 8;
            if l == level {
                return at;
            }
            table = self.ram.word(at) & 0xffff_ffff_f000;
        }
        unreachable!()
    }

    /// Clears the page descriptor of `iova`.
    pub(crate) fn clear(&mut self, iova: u64) {
        let at = self.slot(iova, 3);
        self.store(at, 0);
    }

    pub(crate) fn w32(&mut self, offset: u64, value: u32) {
        self.pass(1);
        self.smmu.mmio_write(offset, 4, value.into());
    }

    pub(crate) fn w64(&mut self, offset: u64, value: u64) {
        self.pass(1);
        self.smmu.mmio_write(offset, 8, value);
    }

    /// Puts a command into the queue.
    pub(crate) fn push(&mut self, command: [u64; 2]) {
        let at = CMDQ + u64::from(self.prod & ((1 << LOG2_CMDQ) - 1)) * 16;
        self.store(at, command[0]);
        self.store(at + 8, command[1]);
        self.prod = (self.prod + 1) & ((2 << LOG2_CMDQ) - 1);
        let prod = self.prod;
        self.w32(r::CMDQ_PROD, prod);
    }

    /// Lets the SMMU consume what it can.
    pub(crate) fn consume(&mut self) {
        while self.smmu.command_pending() {
            self.pass(100);
            self.smmu.step_command(&self.ram);
        }
    }

    /// Commands, without a CMD_SYNC.
    pub(crate) fn unsynchronised(&mut self, commands: &[[u64; 2]]) {
        commands.iter().for_each(|&command| self.push(command));
        self.consume();
    }

    /// Commands and a CMD_SYNC.
    pub(crate) fn commands(&mut self, commands: &[[u64; 2]]) {
        self.unsynchronised(commands);
        self.unsynchronised(&[[0x46, 0]]);
    }

    /// Begins a transaction of the device and takes it to where its data would move.
    pub(crate) fn begin(&mut self, t: Transaction) -> Option<TxnId> {
        self.pass(10);
        let mut progress = self.smmu.begin(&t);
        loop {
            match progress {
                Progress::Walking(id) => progress = self.smmu.step(id, &self.ram),
                Progress::Latched(id, _) => return Some(id),
                Progress::Stalled(_) | Progress::Aborted | Progress::Discarded => return None,
            }
        }
    }

    /// A whole transaction.
    pub(crate) fn dma(&mut self, kind: AccessKind, address: u64) -> bool {
        let id = self.begin(Transaction::new(SID, address, kind));
        id.inspect(|&id| self.smmu.complete(id)).is_some()
    }

    pub(crate) fn read(&mut self, address: u64) -> bool {
        self.dma(AccessKind::Read, address)
    }

    /// Records go out.
    pub(crate) fn events(&mut self) {
        while self.smmu.event_pending() {
            self.smmu.step_event(&self.ram);
        }
    }

    /// What the checker said, after all.
    pub(crate) fn reports(&mut self) -> Vec<Report> {
        self.checker.finish();
        self.checker.take_reports()
    }
}

/// Runs a guest with a mistake and its twin without: the first is reported as `kind`, once, and the second not at all.
pub(crate) fn planted(kind: Kind, run: impl Fn(&mut Guest, bool)) -> Report {
    planted_in(Guest::new, kind, run)
}

pub(crate) fn planted_in(new: impl Fn() -> Guest, kind: Kind, run: impl Fn(&mut Guest, bool)) -> Report {
    let mut right = new();
    run(&mut right, false);
    let said = right.reports();
    assert!(said.is_empty(), "the guest without the mistake: {said:#x?}");
    let mut wrong = new();
    run(&mut wrong, true);
    let mut said = wrong.reports();
    assert_eq!(said.iter().map(|r| r.kind).collect::<Vec<_>>(), [kind], "{said:#x?}");
    said.remove(0)
}

impl Guest {
    /// Stream `SID` in stage 1 with ATS, and a PRI queue.
    pub(crate) fn with_ats() -> Self {
        let mut guest = Guest::new();
        let mut ste = ste_stage1(CDS);
        ste[1] |= 1 << 28;
        guest.store(STRTAB + u64::from(SID) * 64 + 8, ste[1]);
        guest.commands(&[cfgi_ste()]);
        guest.w64(r::PRIQ_BASE, PRIQ | 4);
        let enables = r::cr0::SMMUEN | r::cr0::CMDQEN | r::cr0::EVENTQEN | r::cr0::PRIQEN | r::cr0::ATSCHK;
        guest.w32(r::CR0, enables);
        guest
    }

    /// A Translation Request of the device.
    pub(crate) fn ats(&mut self, address: u64) -> AtsAnswer {
        self.pass(10);
        let request =
            AtsRequest { sid: SID, ssid: None, address, no_write: false, execute: false, privileged: false };
        let mut progress = self.smmu.ats_request(&request);
        loop {
            match progress {
                AtsProgress::Walking(id) => progress = self.smmu.ats_step(id, &self.ram),
                AtsProgress::Answered(answer) => return answer,
            }
        }
    }

    /// A Translated transaction of the device.
    pub(crate) fn translated(&mut self, pa: u64) {
        self.pass(10);
        let mut progress = self.smmu.begin_translated(&Transaction::new(SID, pa, AccessKind::Read));
        loop {
            match progress {
                Progress::Walking(id) => progress = self.smmu.step(id, &self.ram),
                Progress::Latched(id, _) => return self.smmu.complete(id),
                _ => panic!("refused"),
            }
        }
    }

    /// ATC_INV and CMD_SYNC, which the device confirms.
    pub(crate) fn atc_inv(&mut self, address: u64) {
        self.push([0x40 | u64::from(SID) << 32, address]);
        self.push([0x46, 0]);
        self.consume();
        while let Some(invalidation) = self.smmu.take_atc_invalidation() {
            self.smmu.atc_invalidation_done(invalidation.id);
        }
        self.consume();
    }
}
