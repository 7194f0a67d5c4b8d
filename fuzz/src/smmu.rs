//! An SMMU as a driver sets it up, with streams of every kind, and the parties that act on it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use devices::dma::{GITS_TRANSLATER, PhysMem};
use guest_ram::GuestRam;
use pgtable::{Builder, Stage1, Stage2, descriptor as d};
use smmu_model::spec::command::Opcode;
use smmu_model::spec::registers as r;
use smmu_model::{
    AccessKind, Config, MemAttrs, Progress, Replace, Shareability, Smmu, StallModel, Transaction,
    Translation, TxnId, Unaligned,
};

use crate::value::{RAM, RAM_SIZE, Value};

/// The command queue and the log2 of its entries.
pub const CMDQ: u64 = RAM + 0x20_0000;
/// log2 of the command queue's entries.
pub const LOG2_CMDQ: u64 = 6;
/// The event queue.
pub const EVENTQ: u64 = RAM + 0x20_4000;
/// log2 of the event queue's entries.
pub const LOG2_EVENTQ: u64 = 4;
/// The stream table of 64 STEs.
pub const STRTAB: u64 = RAM + 0x20_8000;
/// Level 1 stream table descriptors, for two levels.
pub const STRTAB_L1: u64 = RAM + 0x20_c000;
/// The CDs.
pub const CDS: u64 = RAM + 0x21_0000;
/// Level 1 CD table descriptors.
pub const CDS_L1: u64 = RAM + 0x21_4000;
const TABLES: u64 = RAM + 0x24_0000;
const TABLES2: u64 = RAM + 0x30_0000;
/// Devices may use the memory below this, through the tables or directly.
pub const FREE: u64 = 0x20_0000;
/// Streams in the table.
pub const STREAMS: u32 = 64;

/// Most fetches that one translation can take: stream and context tables in 8-byte pieces and with two levels, each
/// address of the latter two through stage 2, two stages of five levels, and an update of every descriptor.
const MAX_WALK: usize = 256;
/// Transactions that the devices have outstanding.
const MAX_TXNS: usize = 32;

/// An implementation, made of bits, so that all of them are valid. Bits of the first word and byte are what differs from
/// a large one; most of those that leave little to find count only if the last byte is 0 modulo 4.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Shape(u32, u8, u8);

impl Shape {
    /// The configuration. Zero is one with everything that leads far.
    pub fn config(self) -> Config {
        const HARMLESS: u32 = 0x7f7a_a27e;
        let bits = if self.2 & 3 == 0 { self.0 } else { self.0 & HARMLESS };
        let bit = |n: u32| bits >> n & 1 == 1;
        let of = |n: u32, from: [u32; 4]| from[(bits >> n & 3) as usize];
        let (s1p, gran64k) = (!bit(23), !bit(22));
        let s2p = !bit(0) || !s1p;
        let base = if self.1 & 128 == 0 { Config::full() } else { Config::linux() };
        let config = Config {
            s1p,
            s2p,
            cohacc: !bit(1),
            asid16: !bit(2),
            vmid16: !bit(3),
            stall: [StallModel::Both, StallModel::None, StallModel::Forced, StallModel::Both]
                [(bits >> 4 & 3) as usize],
            term_razwi: !bit(6),
            st2l: true,
            cd2l: s1p && !bit(7),
            hyp: !bit(8),
            sev: !bit(9),
            msi: !bit(10),
            sidsize: of(11, [32, 16, 6, 0]) as u8,
            ssidsize: if s1p && !bit(7) { of(13, [20, 7, 4, 1]) as u8 } else { 0 },
            cmdqs: of(15, [8, 6, 1, 0]) as u8,
            eventqs: of(17, [8, 4, 1, 0]) as u8,
            had: !bit(19),
            xnx: s2p && !bit(20),
            ril: !bit(21),
            gran64k,
            oas: [44, 48, 52, 32, 36, 40, 42, 44][usize::from(self.1 & 7)],
            vax52: gran64k && self.1 & 8 != 0,
            gran4k: true,
            gran16k: self.1 & 16 == 0,
            tlb: of(24, [64, 1, 0, 8]),
            s2_cache: of(24, [Config::UNLIMITED, 1, 0, 8]),
            l1std_cache: of(26, [8, 1, 0, 4]),
            l1cd_cache: of(26, [Config::UNLIMITED, 1, 0, 4]),
            replace: if self.2 & 64 == 0 { Replace::Lru } else { Replace::Random },
            keep_all: self.2 & 32 != 0,
            combined: self.2 & 128 == 0,
            cache_invalid: self.2 & 16 != 0,
            ecmdq: if self.1 & 128 == 0 && !bit(1) && !bit(10) { 4 } else { 0 },
            vmw: s2p && self.2 & 1 == 0,
            pmcg: if self.1 & 64 == 0 { 4 } else { 0 },
            merge: self.2 & 64 != 0,
            prefetch: self.2 & 128 != 0,
            tlb_conflict: self.2 & 2 != 0,
            bbml: u8::from(self.2 & 4 != 0),
            strict_commands: self.2 & 8 != 0,
            wires: self.2 & 32 == 0,
            ste_cache: of(26, [16, 1, 0, 2]),
            cd_cache: of(26, [16, 1, 0, 2]),
            event_fifo: of(28, [8, 1, 64, 2]),
            contiguous: self.1 & 32 == 0,
            split_fetch: bit(30),
            gbpa_abort: bit(31),
            page0_alias: self.1 & 64 != 0,
            httu: [3, 1, 0, 2][usize::from(self.2 >> 2 & 3)],
            mteperm: base.mteperm && s2p,
            vatos: base.vatos && s1p && s2p,
            ds: base.ds && gran64k && self.1 & 8 != 0,
            stall_suppress: bits >> 4 & 3 != 1 && self.2 & 1 != 0,
            stall_retry: bits >> 4 & 3 != 1 && self.2 & 8 != 0,
            wide_addresses: self.2 & 16 == 0,
            ste_truncate: self.2 & 2 != 0,
            cd_ipa_check: self.2 & 4 != 0,
            tlbi_unaligned: [Unaligned::Granule, Unaligned::Block, Unaligned::Nothing, Unaligned::Granule]
                [usize::from(self.2 >> 5 & 3)],
            fwb: s2p && self.2 & 16 == 0,
            stt: self.2 & 32 == 0,
            e0pd: self.2 & 64 == 0,
            ats_split: base.ats_split && s1p && s2p,
            ..base
        };
        let config = if config.oas == 52 && !gran64k { Config { oas: 48, ..config } } else { config };
        assert_eq!(config.validate(), Ok(()));
        config
    }
}

/// What a stream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub enum Kind {
    /// Stage 1 with one CD.
    Stage1,
    /// Stage 1 with 16 CDs in a row.
    Substreams,
    /// Bypass.
    Bypass,
    /// Stage 2.
    Stage2,
    /// Both stages.
    Nested,
    /// Abort.
    Abort,
    /// V=0.
    Invalid,
    /// Stage 1 with CDs in two levels.
    TwoLevel,
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::Stage1,
        Kind::Substreams,
        Kind::Bypass,
        Kind::Stage2,
        Kind::Nested,
        Kind::Abort,
        Kind::Invalid,
        Kind::TwoLevel,
    ];

    /// A stream's kind, where nothing else says it.
    pub fn of(sid: u32) -> Self {
        Self::ALL[(sid & 7) as usize]
    }
}

fn put(ram: &GuestRam, at: u64, words: &[u64]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert!(ram.write(at, &bytes));
}

/// Fills the tables and programs the registers. `two_level` is for the stream table. Returns the addresses of the
/// translation descriptors that mean something.
pub fn prepare(
    smmu: &mut Smmu,
    ram: &GuestRam,
    two_level: bool,
    kind: impl Fn(u32) -> Kind,
) -> &'static [u64] {
    let image = image();
    for (at, page) in &image.pages {
        assert!(ram.write(*at, page));
    }
    let (ttb, ttb2) = image.roots;
    let (stall, httu) = (smmu.config().stall, smmu.config().httu);
    let mut cds = Vec::new();
    for n in 0..128u64 {
        let s = stall == StallModel::Forced || stall == StallModel::Both && n % 2 == 1;
        // Odd ones have an upper half, too, with the same tables.
        let upper = if n % 2 == 1 { 16 << 16 | 2 << 22 } else { 1 << 30 };
        // Every other pair has its access flags and dirty state managed: HA and HD.
        let managed = if n & 2 == 0 { 0 } else { u64::from(httu > 0) << 43 | u64::from(httu > 1) << 42 };
        let word0 =
            managed | 16 | upper | 1 << 31 | 5 << 32 | 1 << 41 | u64::from(s) << 44 | 3 << 45 | (n + 1) << 48;
        cds.extend([word0, ttb, ttb, 0x0044_04ff, 0, 0, 0, 0]);
    }
    put(ram, CDS, &cds);
    put(ram, CDS_L1, &[CDS | 1, (CDS + 0x1000) | 1, 0]);
    let mut stes = Vec::new();
    for sid in 0..STREAMS {
        let s2s = u64::from(stall == StallModel::Forced || stall == StallModel::Both && sid & 8 != 0);
        let managed = if sid & 16 == 0 { 0 } else { u64::from(httu > 0) << 56 | u64::from(httu > 1) << 55 };
        let stage2 = managed | 5 | 32 << 32 | 1 << 38 | 5 << 48 | 1 << 51 | s2s << 57 | 1 << 58;
        let cd = CDS + u64::from(sid & 1) * 64;
        let mut ste = match kind(sid) {
            Kind::Stage1 => [1 | 5 << 1 | cd, 1 << 44, 0, 0],
            Kind::Substreams => [1 | 5 << 1 | CDS | 4 << 59, 1 | 1 << 44, 0, 0],
            Kind::Bypass => [1 | 4 << 1, 1 << 44, 0, 0],
            Kind::Stage2 => [1 | 6 << 1, 1 << 44, stage2, ttb2],
            Kind::Nested => [1 | 7 << 1 | cd, 1 << 44, stage2, ttb2],
            Kind::Abort => [1, 0, 0, 0],
            Kind::Invalid => [0; 4],
            Kind::TwoLevel => [1 | 5 << 1 | 1 << 4 | CDS_L1 | 7 << 59, 2 | 1 << 44, 0, 0],
        };
        if sid >= 32 && smmu.config().hyp {
            // StreamWorld EL2.
            ste[1] |= 2 << 30;
        }
        stes.extend(ste);
        stes.extend([0; 4]);
    }
    put(ram, STRTAB, &stes);
    put(ram, STRTAB_L1, &[STRTAB | 7, 0, STRTAB | 1, u64::MAX]);
    let (base, cfg) = if two_level { (STRTAB_L1, 1 << 16 | 6 << 6 | 8) } else { (STRTAB, 6) };
    smmu.mmio_write(r::STRTAB_BASE, 8, base);
    smmu.mmio_write(r::STRTAB_BASE_CFG, 4, cfg);
    smmu.mmio_write(r::CMDQ_BASE, 8, CMDQ | LOG2_CMDQ);
    smmu.mmio_write(r::EVENTQ_BASE, 8, EVENTQ | LOG2_EVENTQ);
    smmu.mmio_write(r::CR2, 4, (r::cr2::RECINVSID | r::cr2::PTM).into());
    smmu.mmio_write(r::EVENTQ_IRQ_CFG0, 8, RAM + 0x1f_f000);
    smmu.mmio_write(r::GERROR_IRQ_CFG0, 8, 0x0808_0000);
    smmu.mmio_write(r::IRQ_CTRL, 4, (r::irq_ctrl::EVENTQ | r::irq_ctrl::GERROR).into());
    smmu.mmio_write(r::CR0, 4, (r::cr0::SMMUEN | r::cr0::CMDQEN | r::cr0::EVENTQEN).into());
    &image.descriptors
}

/// The tables that all runs begin with.
struct Image {
    /// Roots of stage 1 and stage 2.
    roots: (u64, u64),
    /// Addresses of the descriptors.
    descriptors: Vec<u64>,
    /// Pages and where they are.
    pages: Vec<(u64, [u8; 0x1000])>,
}

/// The tables, built once a process: a run has to be short.
fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(build_tables)
}

/// Identity mappings of RAM and of the ITS's page: a block, pages, and a contiguous span of pages.
fn build_tables() -> Image {
    const EXPECT: &str = "the pools are large enough and the ranges aligned";
    let mut memory = BTreeMap::new();
    let page = d::AF | d::SH_INNER | d::AP_USER | d::NG;
    let doorbell = GITS_TRANSLATER & !0xfff;
    let mut stage1 = Stage1 { tsz: 16, oas: 48, ..Stage1::default() };
    let mut tables = Builder::stage1(&mut stage1, &mut memory, TABLES..TABLES2).expect(EXPECT);
    let mut map = |at, len, attrs, contiguous| {
        tables.contiguous = contiguous;
        tables.map(&mut memory, at, at, len, attrs).expect(EXPECT);
    };
    map(RAM, FREE, page, false);
    map(RAM + FREE, 0x1_0000, page | d::AP_READ_ONLY, true);
    map(RAM + FREE + 0x1_0000, 0x2000, page & !d::NG, false);
    // For hardware to manage.
    map(RAM + FREE + 0x1_2000, 0x2000, page & !d::AF, false);
    map(RAM + FREE + 0x1_4000, 0x2000, page | d::DBM | d::AP_READ_ONLY, false);
    map(doorbell, 0x1000, page, false);
    let page2 = d::AF | d::SH_INNER | d::S2AP_READ | d::S2AP_WRITE | 0xf << 2;
    let mut stage2 = Stage2 { tsz: 32, sl0: 1, oas: 48, ..Stage2::default() };
    let mut tables = Builder::stage2(&mut stage2, &mut memory, TABLES2..RAM + RAM_SIZE).expect(EXPECT);
    tables.map(&mut memory, RAM, RAM, FREE, page2).expect(EXPECT);
    tables.coarsest = 3;
    tables.map(&mut memory, RAM + FREE, RAM + FREE, RAM_SIZE - FREE, page2).expect(EXPECT);
    tables.map(&mut memory, doorbell, doorbell, 0x1000, page2).expect(EXPECT);
    let mut pages: Vec<(u64, [u8; 0x1000])> = Vec::new();
    for (&at, word) in &memory {
        let page = at & !0xfff;
        if pages.last().is_none_or(|last| last.0 != page) {
            pages.push((page, [0; 0x1000]));
        }
        if let Some((_, bytes)) = pages.last_mut() {
            let offset = (at - page) as usize;
            bytes[offset..offset + 8].copy_from_slice(&u64::to_le_bytes(*word));
        }
    }
    Image { roots: (stage1.ttb, stage2.ttb), descriptors: memory.into_keys().collect(), pages }
}

/// An address that a device uses.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Iova {
    /// Mapped, at first, or just behind.
    Mapped(u16, u8),
    /// The same in the upper half.
    Upper(u16, u8),
    /// GITS_TRANSLATER.
    Doorbell,
    /// Any.
    Any(Value),
}

impl Iova {
    /// The address.
    pub fn get(self) -> u64 {
        match self {
            Iova::Mapped(page, low) => RAM + u64::from(page) % 0x218 * 0x1000 + u64::from(low) * 16,
            Iova::Upper(page, low) => 0xffff_0000_0000_0000 | Iova::Mapped(page, low).get(),
            Iova::Doorbell => GITS_TRANSLATER,
            Iova::Any(value) => value.get(),
        }
    }
}

/// A transaction of a device.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Dma {
    sid: u8,
    ssid: Option<u8>,
    address: Iova,
    flags: u8,
    wide: bool,
}

impl Dma {
    fn transaction(self) -> Transaction {
        // Mostly streams that there are.
        let sid = if self.wide { u32::from(self.sid) << 3 } else { u32::from(self.sid) % STREAMS };
        let kind = match self.flags & 3 {
            0 | 1 => AccessKind::Read,
            2 => AccessKind::Write,
            _ => AccessKind::Atomic,
        };
        Transaction {
            sid,
            ssid: self.ssid.map(|n| if self.wide { u32::from(n) << 13 } else { n.into() }),
            address: self.address.get(),
            kind,
            privileged: self.flags & 4 != 0,
            instruction: kind == AccessKind::Read && self.flags & 8 != 0,
            attrs: MemAttrs {
                mair: [0xff, 0x44, 0x04, 0x00][usize::from(self.flags >> 4 & 3)],
                shareability: Shareability::from_sh(self.flags >> 6),
            },
        }
    }
}

/// A command.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Command {
    /// One of configuration: opcode, StreamID, SubstreamID, range.
    Cfgi(u8, u8, u8, u8),
    /// One of translations: opcode; ASID, VMID; NUM, SCALE; TG, TTL and Leaf; address.
    Tlbi(u8, u8, u8, u8, u8, u8, Iova),
    /// CMD_RESUME: StreamID, tag, flags.
    Resume(u8, u8, u8),
    /// CMD_STALL_TERM.
    StallTerm(u8),
    /// CMD_SYNC: signal, address, data.
    Sync(u8, Value, u32),
    /// Known opcode, any fields.
    Fields(u8, u64, u64),
    /// Any.
    Raw(u64, u64),
}

impl Command {
    /// The words in the queue.
    pub fn words(self) -> [u64; 2] {
        let opcode = |n: u8| Opcode::ALL[usize::from(n) % Opcode::ALL.len()] as u64;
        let sid = |n: u8| (u64::from(n) % u64::from(STREAMS)) << 32;
        match self {
            Command::Cfgi(op, s, ssid, range) => {
                let op = [3, 4, 5, 6][usize::from(op & 3)];
                [op | 1 << 11 | u64::from(ssid) << 12 | sid(s), u64::from(range & 31)]
            }
            Command::Tlbi(op, asid, vmid, num, scale, rest, address) => {
                let op = [0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23, 0x28, 0x2a, 0x30, 0x12]
                    [usize::from(op % 12)];
                let ids = u64::from(vmid % 8) << 32 | u64::from(asid % 20) << 48;
                let range = u64::from(num & 31) << 12 | u64::from(scale & 31) << 20;
                [op | range | ids, address.get() & !0xfff | u64::from(rest & 15) << 8 | u64::from(rest >> 7)]
            }
            Command::Resume(s, tag, flags) => {
                [0x44 | u64::from(flags & 3) << 12 | sid(s), u64::from(tag % 40)]
            }
            Command::StallTerm(s) => [0x45 | sid(s), 0],
            Command::Sync(cs, address, data) => {
                let address = address.get() & 0x000f_ffff_ffff_fffc;
                [0x46 | u64::from(cs & 3) << 12 | u64::from(data) << 32, address]
            }
            Command::Fields(op, a, b) => [opcode(op) | a & !0xff, b],
            Command::Raw(a, b) => [a, b],
        }
    }
}

/// An SMMU, its memory, and the devices' transactions.
pub struct Rig {
    /// The SMMU.
    pub smmu: Smmu,
    /// Memory.
    pub ram: GuestRam,
    /// Addresses of descriptors that mean something.
    pub descriptors: &'static [u64],
    txns: Vec<TxnId>,
}

impl Rig {
    /// Out of reset.
    pub fn new(shape: Shape) -> Self {
        let ram = GuestRam::new(RAM, RAM_SIZE).expect("the host has a little memory");
        Rig { smmu: Smmu::new(shape.config()), ram, descriptors: &[], txns: Vec::new() }
    }

    /// With tables and queues, and enabled.
    pub fn prepared(shape: Shape, two_level: bool) -> Self {
        let mut rig = Rig::new(shape);
        rig.descriptors = prepare(&mut rig.smmu, &rig.ram, two_level, Kind::of);
        rig
    }

    /// A transaction begins. Whether it goes on from here.
    pub fn begin(&mut self, dma: Dma) -> bool {
        if self.txns.len() == MAX_TXNS {
            self.complete(0);
        }
        let progress = self.smmu.begin(&dma.transaction());
        self.note(progress, None);
        !matches!(progress, Progress::Aborted | Progress::Discarded)
    }

    /// A transaction goes on.
    pub fn step(&mut self, n: usize) -> bool {
        if self.txns.is_empty() {
            return false;
        }
        let n = n % self.txns.len();
        let progress = self.smmu.step(self.txns[n], &PhysMem::new(&self.ram));
        self.note(progress, Some(n));
        matches!(progress, Progress::Walking(_))
    }

    /// A transaction ends, or is given up.
    pub fn complete(&mut self, n: usize) {
        if !self.txns.is_empty() {
            let id = self.txns.remove(n % self.txns.len());
            self.smmu.complete(id);
        }
    }

    /// A transaction from begin to end, unless it stalls.
    pub fn dma(&mut self, dma: Dma) {
        if !self.begin(dma) {
            return;
        }
        let left = self.txns.len();
        self.walk(left - 1);
        if self.txns.len() == left {
            let progress = self.smmu.step(self.txns[left - 1], &PhysMem::new(&self.ram));
            // Stalled ones stay for CMD_RESUME.
            if !matches!(progress, Progress::Stalled(_)) {
                self.complete(left - 1);
            }
        }
    }

    /// A transaction goes on until it does not walk any more.
    fn walk(&mut self, n: usize) {
        let mut fetches = 0;
        while self.step(n) {
            fetches += 1;
            assert!(fetches <= MAX_WALK, "a walk does not end");
        }
    }

    fn note(&mut self, progress: Progress, n: Option<usize>) {
        if let Progress::Latched(_, translation) = progress {
            check(&translation, self.smmu.config());
        }
        match (progress, n) {
            (Progress::Walking(id) | Progress::Stalled(id) | Progress::Latched(id, _), None) => {
                self.txns.push(id)
            }
            (Progress::Walking(id) | Progress::Stalled(id) | Progress::Latched(id, _), Some(n)) => {
                assert_eq!(self.txns[n], id, "a transaction keeps its name");
            }
            (Progress::Aborted | Progress::Discarded, None) => {}
            (Progress::Aborted | Progress::Discarded, Some(n)) => {
                self.txns.remove(n);
            }
        }
    }

    /// Puts a command where PROD points, as far as the queue is where it was put, and moves PROD.
    pub fn push(&mut self, words: [u64; 2]) {
        let prod = self.smmu.mmio_read(r::CMDQ_PROD, 4).unwrap_or(0);
        let log2 = LOG2_CMDQ.min(self.smmu.config().cmdqs.into());
        put(&self.ram, CMDQ + (prod & ((1 << log2) - 1)) * 16, &words);
        self.smmu.mmio_write(r::CMDQ_PROD, 4, (prod + 1) & ((2 << log2) - 1));
    }

    /// A step of each agent that has one.
    pub fn agents(&mut self) -> bool {
        let smmu = &mut self.smmu;
        let busy =
            smmu.command_pending() || smmu.event_pending() || smmu.msi_pending() || smmu.wired_pending();
        let busy = busy || smmu.atos_pending();
        agents(smmu, &self.ram);
        busy
    }

    /// The agents come to rest, walks end, and the SMMU can be disabled.
    pub fn finish(mut self) {
        self.rest();
        let mut n = 0;
        while n < self.txns.len() {
            let left = self.txns.len();
            self.walk(n);
            n += usize::from(self.txns.len() == left);
        }
        self.rest();
        while !self.txns.is_empty() {
            self.complete(0);
        }
        self.smmu.mmio_write(r::CR0, 4, 0);
        assert_eq!(self.smmu.mmio_read(r::CR0ACK, 4), Some(0), "nothing uses the SMMU");
        self.rest();
        assert!(!self.smmu.command_pending() && !self.smmu.event_pending());
    }

    fn rest(&mut self) {
        let config = self.smmu.config();
        let bound = (2usize << config.cmdqs) + config.event_fifo as usize + 4 * MAX_TXNS + 64 + 2 * MAX_WALK;
        let mut steps = 0;
        while self.agents() {
            steps += 1;
            assert!(steps <= bound, "the agents do not come to rest");
        }
    }
}

/// A step of each of the SMMU's agents that has one.
pub fn agents(smmu: &mut Smmu, ram: &GuestRam) {
    if let Some(msi) = smmu.take_msi()
        && !ram.write(msi.address, &msi.data.to_le_bytes())
    {
        smmu.msi_aborted(&msi);
    }
    smmu.take_wired();
    smmu.step_event(&PhysMem::new(ram));
    smmu.step_atos(&PhysMem::new(ram));
    smmu.step_command(&PhysMem::new(ram));
}

/// What comes out is a physical address, and more than none of it.
fn check(t: &Translation, config: &Config) {
    assert!(t.bytes > 0, "{t:x?}");
    assert!(t.pa.checked_add(t.bytes - 1).is_some_and(|last| last >> config.oas == 0), "{t:x?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is prepared works: otherwise the targets would look at refusals only.
    #[test]
    fn prepared_streams_translate() {
        for two_level in [false, true] {
            for sid in 0..16 {
                let mut rig = Rig::prepared(Shape(0, 0, 0), two_level);
                rig.dma(Dma { sid, ssid: None, address: Iova::Mapped(5, 1), flags: 2, wide: false });
                let stats = rig.smmu.stats();
                let expected = match Kind::of(sid.into()) {
                    Kind::Abort | Kind::Invalid => (0, 0, 1),
                    // No SubstreamID: S1DSS is bypass.
                    Kind::Bypass | Kind::Substreams => (0, 1, 0),
                    Kind::Stage1 | Kind::Stage2 | Kind::Nested | Kind::TwoLevel => (1, 0, 0),
                };
                assert_eq!((stats.translated, stats.bypassed, stats.terminated), expected, "stream {sid}");
                rig.push(Command::Sync(1, Value::Ram(0, 0), 7).words());
                rig.finish();
            }
        }
    }

    #[test]
    fn odd_streams_stall_and_resume() {
        let mut rig = Rig::prepared(Shape(0, 0, 0), false);
        let dma = Dma { sid: 9, ssid: Some(3), address: Iova::Mapped(0x217, 0), flags: 2, wide: false };
        rig.dma(dma);
        assert_eq!(rig.smmu.stats().stalled, 1);
        rig.rest();
        assert_eq!(rig.smmu.mmio_read(r::EVENTQ_PROD, 4), Some(1), "the fault is in the queue");
        rig.push(Command::Resume(9, 0, 0).words());
        rig.rest();
        assert!(!rig.step(0), "terminated");
        assert!(rig.txns.is_empty());
        rig.finish();
    }
}
