//! Random mappings, unmappings and reconfigurations by a correct driver, against a naive model without caches: after
//! the invalidation that the architecture asks for, in any of its forms, every access does what the tables say now.

#[path = "common/cases.rs"]
mod cases;
#[path = "conformance/lab.rs"]
#[allow(dead_code)]
mod lab;

use std::collections::BTreeMap;

use cases::cases;
use lab::{
    CDS, CFGI_ALL, CdFields, End, Lab, NSNH_ALL, RW, S2_RW, S2_TABLES, SID, SYNC, TABLES, Words, cd, cfgi_cd,
    cfgi_ste,
};
use pgtable::{Builder, Granule, Stage2, descriptor as d};
use proptest::prelude::*;
use smmu_model::{AccessKind, Config, Progress, Replace, Transaction, TxnId};

/// Stage 1 contexts 0 and 1 stand alone, 2 and 3 are in VM 0, 4 is in VM 1.
const CONTEXTS: usize = 5;
const VMS: usize = 2;
const STREAMS: u32 = 8;
const POOL: u64 = 0x40_0000;
/// Where stage 2 puts what the devices use, and where that comes from.
const IPA: u64 = 0x2_0000_0000;

fn vm(context: usize) -> Option<usize> {
    [None, None, Some(0), Some(0), Some(1)][context]
}

fn vmid(vm: Option<usize>) -> u64 {
    vm.map_or(0, |vm| vm as u64 + 1)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Path {
    Bypass,
    Stage1(usize),
    Stage2(usize),
}

/// One mapping unit: a page, a contiguous run of 16 pages, or a 2 MiB block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Page(u64),
    Run(u64),
    Block(u64),
    /// A page where block 0 could be: a table takes its place.
    Small(u64),
}

impl Unit {
    fn shift(self) -> u32 {
        match self {
            Unit::Page(_) | Unit::Small(_) => 12,
            Unit::Run(_) => 16,
            Unit::Block(_) => 21,
        }
    }

    fn base(self) -> u64 {
        match self {
            Unit::Page(n) => n << 12,
            Unit::Run(n) => 0x100_0000 + (n << 16),
            Unit::Block(n) => 0x200_0000 + (n << 21),
            Unit::Small(n) => 0x200_0000 + (n << 12),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Leaf {
    output: u64,
    read: bool,
    write: bool,
    user: bool,
    execute: bool,
}

#[derive(Clone, Copy, Debug)]
struct Wish {
    kind: AccessKind,
    privileged: bool,
    instruction: bool,
}

type Space = BTreeMap<Unit, Leaf>;

#[derive(Clone, Debug)]
enum Op {
    Map1(usize, Unit, Leaf),
    Unmap1(usize, Unit, u8),
    Map2(usize, Unit, Leaf),
    Unmap2(usize, Unit, u8),
    Retarget(u32, Path, u8),
    NewAsid(usize, u8),
    Access(u32, Unit, u64, Wish),
    Begin(u32, Unit, u8),
    /// An access that is `steps` under way while the driver takes away what it uses; then another one.
    Race {
        stream: u32,
        unit: Unit,
        offset: u64,
        steps: u8,
        what: u8,
        how: u8,
    },
}

/// Few of them, so that things meet.
fn unit() -> impl Strategy<Value = Unit> {
    prop_oneof![
        4 => (0..4u64).prop_map(Unit::Page),
        1 => Just(Unit::Run(0)),
        2 => (0..2u64).prop_map(Unit::Block),
        2 => (0..2u64).prop_map(Unit::Small),
    ]
}

/// What can not be mapped together with a unit.
fn rivals(unit: Unit) -> Vec<Unit> {
    match unit {
        Unit::Small(_) => vec![Unit::Block(0)],
        Unit::Block(0) => vec![Unit::Small(0), Unit::Small(1)],
        _ => vec![],
    }
}

fn leaf() -> impl Strategy<Value = Leaf> {
    // Outputs of stage 1 are where stage 2 has, or may have, something: pages, a run, blocks.
    let output =
        proptest::sample::select(vec![0, Unit::Run(0).base(), Unit::Block(0).base(), Unit::Block(1).base()]);
    (output, any::<[bool; 4]>(), 0..4u8).prop_map(|(output, [read, write, user, execute], most)| Leaf {
        output,
        read: read || most > 0,
        write: write || most > 0,
        user: user || most > 0,
        execute: execute || most > 0,
    })
}

fn path() -> impl Strategy<Value = Path> {
    prop_oneof![Just(Path::Bypass), (0..CONTEXTS).prop_map(Path::Stage1), (0..VMS).prop_map(Path::Stage2)]
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write), Just(AccessKind::Atomic)];
    let wish = (kind, any::<bool>(), any::<bool>()).prop_map(|(kind, privileged, instruction)| Wish {
        kind,
        privileged,
        instruction: instruction && kind == AccessKind::Read,
    });
    prop_oneof![
        4 => (0..CONTEXTS, unit(), leaf()).prop_map(|(c, u, l)| Op::Map1(c, u, l)),
        3 => (0..CONTEXTS, unit(), any::<u8>()).prop_map(|(c, u, how)| Op::Unmap1(c, u, how)),
        3 => (0..VMS, unit(), leaf()).prop_map(|(v, u, l)| Op::Map2(v, u, l)),
        1 => (0..VMS, unit(), any::<u8>()).prop_map(|(v, u, how)| Op::Unmap2(v, u, how)),
        1 => (0..STREAMS, path(), any::<u8>()).prop_map(|(s, p, how)| Op::Retarget(s, p, how)),
        1 => (0..CONTEXTS, any::<u8>()).prop_map(|(c, how)| Op::NewAsid(c, how)),
        16 => (0..STREAMS, unit(), prop_oneof![0..0x4000u64, any::<u64>()], wish).prop_map(|(s, u, o, w)| Op::Access(s, u, o, w)),
        8 => (0..STREAMS, unit(), 0..0x4000u64, 0..20u8, 0..5u8, any::<u8>()).prop_map(
            |(stream, unit, offset, steps, what, how)| Op::Race { stream, unit, offset, steps, what, how }
        ),
        2 => (0..STREAMS, unit(), 0..20u8).prop_map(|(s, u, steps)| Op::Begin(s, u, steps)),
    ]
}

struct World {
    lab: Lab,
    stage1: Vec<Builder>,
    stage2: Vec<Builder>,
    spaces: Vec<Space>,
    vms: Vec<Space>,
    paths: Vec<Path>,
    asids: Vec<u64>,
    next_asid: u64,
    pending: Vec<TxnId>,
}

impl World {
    fn new(config: Config) -> Self {
        let sizes = [config.tlb, config.s2_cache, config.walk_cache, config.ste_cache];
        let small = !config.keep_all && sizes.iter().all(|&size| size <= 16);
        let mut lab = Lab::new(config);
        lab.compares = small;
        let stage1 = (0..CONTEXTS as u64).map(|n| lab.tables(Granule::G4K, 16, TABLES + n * POOL)).collect();
        let stage2 = (0..VMS as u64)
            .map(|n| {
                let mut cfg = Stage2 { granule: Granule::G4K, tsz: 24, sl0: 1, oas: 44, ..Stage2::default() };
                let at = S2_TABLES + 0x400_0000 + n * POOL;
                let mut tables = Builder::stage2(&mut cfg, &mut Words(&lab.ram), at..at + POOL).unwrap();
                // The VM's CDs and stage 1 tables.
                lab.map(&mut tables, CDS, CDS, 0x1000, S2_RW);
                lab.map(&mut tables, TABLES, TABLES, CONTEXTS as u64 * POOL, S2_RW);
                tables
            })
            .collect();
        let mut world = World {
            lab,
            stage1,
            stage2,
            spaces: vec![Space::new(); CONTEXTS],
            vms: vec![Space::new(); VMS],
            paths: Vec::new(),
            asids: (1..=CONTEXTS as u64).collect(),
            next_asid: 100,
            pending: Vec::new(),
        };
        for context in 0..CONTEXTS {
            world.write_cd(context);
        }
        for n in 0..STREAMS as usize {
            let path = match n {
                0..CONTEXTS => Path::Stage1(n),
                5 | 6 => Path::Stage2(n - 5),
                _ => Path::Bypass,
            };
            world.paths.push(path);
            world.write_ste(n as u32);
        }
        for vm in 0..VMS {
            for (n, unit) in (0..4).map(Unit::Page).chain([Unit::Run(0), Unit::Block(0)]).enumerate() {
                let output = (n as u64) << 22;
                world.run(&Op::Map2(
                    vm,
                    unit,
                    Leaf { output, read: true, write: true, user: true, execute: true },
                ));
            }
        }
        world
    }

    fn write_cd(&mut self, context: usize) {
        let word1 = self.stage1[context].root();
        let cd = CdFields { word0: cd(16, 0, self.asids[context]), word1, ..CdFields::default() };
        self.lab.context(context as u64, cd);
    }

    fn write_ste(&mut self, stream: u32) {
        let s2 = |vm: usize| {
            let word2 = vmid(Some(vm)) | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
            (word2, self.stage2[vm].root())
        };
        let (word0, (word2, word3)) = match self.paths[stream as usize] {
            Path::Bypass => (1 | 4 << 1, (0, 0)),
            Path::Stage2(vm) => (1 | 6 << 1, s2(vm)),
            Path::Stage1(context) => {
                let cd = CDS + context as u64 * 64;
                match vm(context) {
                    None => (1 | 5 << 1 | cd, (0, 0)),
                    Some(vm) => (1 | 7 << 1 | cd, s2(vm)),
                }
            }
        };
        self.lab.ste(SID + stream, [word0, 1 << 44, word2, word3]);
    }

    /// Commands and a CMD_SYNC, with the devices doing their part.
    fn commands(&mut self, commands: &[[u64; 2]]) {
        for command in commands {
            self.lab.push(*command);
            self.lab.run_commands();
        }
        self.lab.push(SYNC);
        self.lab.run_commands();
        if !self.lab.idle() {
            for id in std::mem::take(&mut self.pending) {
                while let Progress::Walking(id) = self.lab.smmu.step(id, &self.lab.ram) {
                    let _ = id;
                }
                self.lab.smmu.complete(id);
            }
            self.lab.run_commands();
        }
        // What those faulted with is old news.
        self.lab.events();
        self.lab.run_commands();
        assert!(self.lab.idle());
    }

    /// One of the ways to invalidate a stage 1 unit.
    fn tlbi1(&self, context: usize, unit: Unit, how: u8) -> Vec<[u64; 2]> {
        let (vmid, asid) = (vmid(vm(context)) << 32, self.asids[context] << 48);
        let pages = 1u64 << (unit.shift() - 12);
        let base = unit.base();
        let ttl = if matches!(unit, Unit::Block(_)) { 2 << 8 } else { 3 << 8 };
        match how % 9 {
            // Each page of a contiguous run has to be named: nothing says that it is cached as one.
            0 | 1 | 7 if matches!(unit, Unit::Run(_)) => {
                (0..pages).map(|n| [0x12 | vmid | asid, (base + (n << 12)) | 1]).collect()
            }
            0 => vec![[0x12 | vmid | asid, (base + (u64::from(how) << 12 & ((pages << 12) - 1))) | 1]],
            1 => vec![[0x13 | vmid, base]],
            2 => vec![[0x11 | vmid | asid, 0]],
            3 => vec![[0x10 | vmid, 0]],
            4 => vec![NSNH_ALL],
            // All pages of the unit: (pages - 1 + 1) * 2^0, or * 2^SCALE.
            5 if pages <= 32 => vec![[0x12 | vmid | asid | (pages - 1) << 12, base | ttl | 1 << 10]],
            5 | 6 => vec![[0x13 | vmid | 15 << 12 | 5 << 20, base | 1 << 10]],
            7 => vec![[0x12 | vmid | asid, base | ttl | 1 << 10 | 1]],
            _ => vec![[0x28 | vmid, 0]],
        }
    }

    /// One of the ways to invalidate a stage 2 unit, and what was combined with it.
    fn tlbi2(&self, vm: usize, unit: Unit, how: u8) -> Vec<[u64; 2]> {
        let vmid = vmid(Some(vm)) << 32;
        let base = IPA + unit.base();
        let pages = if matches!(unit, Unit::Run(_)) { 16 } else { 1 };
        match how % 4 {
            0 => {
                (0..pages).map(|n| [0x2a | vmid, (base + (n << 12)) | 1]).chain([[0x10 | vmid, 0]]).collect()
            }
            1 => vec![[0x2a | vmid | 31 << 12 | 4 << 20, base | 1 << 10], [0x10 | vmid, 0]],
            2 => vec![[0x28 | vmid, 0]],
            _ => vec![NSNH_ALL],
        }
    }

    fn set(&mut self, tables: (bool, usize), unit: Unit, base: u64, output: Option<(u64, u64)>) {
        let builder = if tables.0 { &mut self.stage2[tables.1] } else { &mut self.stage1[tables.1] };
        let memory = &mut Words(&self.lab.ram);
        let level = if matches!(unit, Unit::Block(_)) { 2 } else { 3 };
        let count = if matches!(unit, Unit::Run(_)) { 16 } else { 1 };
        let hint = if count == 16 { d::CONTIGUOUS } else { 0 };
        for n in 0..count {
            match output {
                Some((output, attrs)) => {
                    builder
                        .map_one(memory, level, base + (n << 12), output + (n << 12), attrs | hint)
                        .unwrap();
                }
                None => {
                    builder.set(memory, level, base + (n << 12), 0).unwrap();
                }
            }
        }
    }

    fn unmap1(&mut self, context: usize, unit: Unit, how: u8) {
        if self.spaces[context].remove(&unit).is_some() {
            self.set((false, context), unit, unit.base(), None);
            let commands = self.tlbi1(context, unit, how);
            self.commands(&commands);
        }
    }

    /// Takes what is in the way of a unit: leaves, and the table that a block replaces.
    fn make_room(&mut self, tables: (bool, usize), unit: Unit, how: u8) {
        for rival in rivals(unit) {
            match tables {
                (false, context) => self.unmap1(context, rival, how),
                (true, vm) => self.unmap2(vm, rival, how),
            }
        }
        if unit == Unit::Block(0) {
            let base = if tables.0 { IPA + unit.base() } else { unit.base() };
            self.set(tables, unit, base, None);
            let commands = match tables {
                (false, context) => {
                    let (vmid, asid) = (vmid(vm(context)) << 32, self.asids[context] << 48);
                    match how % 4 {
                        0 => vec![[0x12 | vmid | asid, base]],
                        1 => vec![[0x13 | vmid | 31 << 12 | 4 << 20, base | 1 << 10]],
                        2 => vec![[0x12 | vmid | asid, base | 3 << 8 | 1 << 10]],
                        _ => vec![[0x11 | vmid | asid, 0]],
                    }
                }
                (true, vm) => {
                    let vmid = vmid(Some(vm)) << 32;
                    match how % 3 {
                        0 => vec![[0x2a | vmid, base]],
                        1 => vec![[0x2a | vmid | 3 << 12 | 7 << 20, base | 1 << 10]],
                        _ => vec![[0x28 | vmid, 0]],
                    }
                }
            };
            self.commands(&commands);
        }
    }

    fn unmap2(&mut self, vm: usize, unit: Unit, how: u8) {
        if self.vms[vm].remove(&unit).is_some() {
            self.set((true, vm), unit, IPA + unit.base(), None);
            let commands = self.tlbi2(vm, unit, how);
            self.commands(&commands);
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Map1(context, unit, leaf) => {
                let how = (leaf.output >> 20) as u8 ^ (unit.base() >> 12) as u8;
                self.unmap1(context, unit, how);
                self.make_room((false, context), unit, how);
                let leaf = Leaf { output: IPA + leaf.output, read: true, ..leaf };
                let bit = |on: bool, bits: u64| if on { bits } else { 0 };
                let attrs = RW & !d::AP_USER
                    | bit(leaf.user, d::AP_USER)
                    | bit(!leaf.write, d::AP_READ_ONLY)
                    | bit(!leaf.execute, d::XN | d::PXN);
                self.set((false, context), unit, unit.base(), Some((leaf.output, attrs)));
                self.spaces[context].insert(unit, leaf);
            }
            Op::Unmap1(context, unit, how) => self.unmap1(context, unit, how),
            Op::Map2(vm, unit, leaf) => {
                let how = (leaf.output >> 20) as u8 ^ (unit.base() >> 12) as u8;
                self.unmap2(vm, unit, how);
                self.make_room((true, vm), unit, how);
                let leaf = Leaf { output: leaf.output + 0x3_0000_0000, ..leaf };
                let bit = |on: bool, bits: u64| if on { bits } else { 0 };
                let attrs = S2_RW & !(d::S2AP_READ | d::S2AP_WRITE)
                    | bit(leaf.read, d::S2AP_READ)
                    | bit(leaf.write, d::S2AP_WRITE)
                    | bit(!leaf.execute, d::XN);
                self.set((true, vm), unit, IPA + unit.base(), Some((leaf.output, attrs)));
                self.vms[vm].insert(unit, leaf);
            }
            Op::Unmap2(vm, unit, how) => self.unmap2(vm, unit, how),
            Op::Retarget(stream, path, how) => {
                self.paths[stream as usize] = path;
                // Not valid in between: whoever fetches it word by word would see a mixture, and cache what tables of one
                // STE say under the VMID of another (3.21.3.1).
                self.lab.ste(SID + stream, [0; 4]);
                self.commands(&[cfgi_ste(SID + stream)]);
                self.write_ste(stream);
                let command = match how % 3 {
                    0 => cfgi_ste(SID + stream),
                    1 => [0x04 | u64::from(SID + stream) << 32, u64::from(how % 31)],
                    _ => CFGI_ALL,
                };
                self.commands(&[command]);
            }
            Op::NewAsid(context, how) => {
                let old = std::mem::replace(&mut self.asids[context], self.next_asid);
                self.next_asid += 1;
                self.write_cd(context);
                let commands: Vec<_> = match how % 3 {
                    0 => (0..STREAMS).map(|n| cfgi_cd(SID + n, 0)).collect(),
                    1 => (0..STREAMS).map(|n| [0x06 | u64::from(SID + n) << 32, 0]).collect(),
                    _ => vec![CFGI_ALL],
                };
                self.commands(&commands);
                self.commands(&[[0x11 | vmid(vm(context)) << 32 | old << 48, 0]]);
            }
            Op::Access(stream, unit, offset, wish) => self.access(stream, unit, offset, wish),
            Op::Begin(stream, unit, steps) => self.begin(stream, unit, 0, steps),
            Op::Race { stream, unit, offset, steps, what, how } => {
                let wish = Wish { kind: AccessKind::Read, privileged: true, instruction: false };
                self.begin(stream, unit, offset, steps);
                match (self.paths[stream as usize], what) {
                    (Path::Stage1(context), 0 | 1) => self.unmap1(context, unit, how),
                    (Path::Stage1(context), 2) => {
                        let page = Unit::Page(offset >> 12);
                        if let (Some(vm), Some(leaf)) = (vm(context), self.spaces[context].get(&unit)) {
                            let to = leaf.output - IPA;
                            let units = [
                                page,
                                Unit::Run(0),
                                Unit::Block(0),
                                Unit::Block(1),
                                Unit::Small(offset >> 12),
                            ];
                            let unit = units.into_iter().find(|unit| unit.base() == to).unwrap_or(page);
                            self.unmap2(vm, unit, how);
                        }
                    }
                    (Path::Stage2(vm), 0..3) => self.unmap2(vm, unit, how),
                    (Path::Stage1(context), 3) => self.run(&Op::NewAsid(context, how)),
                    _ => self.run(&Op::Retarget(stream, Path::Stage1(how as usize % CONTEXTS), how)),
                }
                self.access(stream, unit, offset, wish);
            }
        }
    }

    /// A transaction that is not followed to its end yet.
    fn begin(&mut self, stream: u32, unit: Unit, offset: u64, steps: u8) {
        let mut progress = self.lab.smmu.begin(&self.transaction(stream, unit, offset));
        for _ in 0..steps {
            if let Progress::Walking(id) = progress {
                progress = self.lab.smmu.step(id, &self.lab.ram);
            }
        }
        if let Progress::Walking(id) | Progress::Latched(id, _) = progress {
            self.pending.push(id);
        }
        self.lab.events();
    }

    fn transaction(&self, stream: u32, unit: Unit, offset: u64) -> Transaction {
        let offset = offset & ((1 << unit.shift()) - 1);
        let base = if matches!(self.paths[stream as usize], Path::Stage2(_)) { IPA } else { 0 };
        Transaction::new(SID + stream, base + unit.base() + offset, AccessKind::Read)
    }

    fn access(&mut self, stream: u32, unit: Unit, offset: u64, wish: Wish) {
        let Wish { kind, privileged, instruction } = wish;
        let t = Transaction { kind, privileged, instruction, ..self.transaction(stream, unit, offset) };
        let expected = self.oracle(stream, &t, wish);
        let end = self.lab.dma(t);
        let events = self.lab.events();
        let found = match (end, events.as_slice()) {
            (End::To(pa), []) => Ok(pa),
            (End::Abort, [event]) => {
                assert_eq!(event[2], t.address);
                assert_eq!(event[0] >> 32, u64::from(t.sid));
                let s2 = event[1] >> 39 & 1 == 1;
                Err((event[0] & 0xff, s2.then_some(event[3])))
            }
            other => panic!("{other:x?}"),
        };
        assert_eq!(found, expected, "{:?} {t:x?}", self.paths[stream as usize]);
    }

    /// The output address, or the number of the event and, at stage 2, the IPA.
    fn oracle(&self, stream: u32, t: &Transaction, wish: Wish) -> Result<u64, (u64, Option<u64>)> {
        let find = |space: &Space, address: u64| {
            let hit = |(unit, _): &(&Unit, &Leaf)| address >> unit.shift() == unit.base() >> unit.shift();
            space.iter().find(hit).map(|(unit, leaf)| (*leaf, leaf.output + (address - unit.base())))
        };
        let stage2 = |vm: usize, ipa: u64| {
            let fault = |code| (code, Some(ipa & !0xfff));
            let (leaf, pa) = find(&self.vms[vm], ipa.wrapping_sub(IPA)).ok_or(fault(0x10))?;
            let allowed = match wish.kind {
                AccessKind::Read if wish.instruction => leaf.execute,
                AccessKind::Read => leaf.read,
                AccessKind::Write => leaf.write,
                AccessKind::Atomic => leaf.read && leaf.write,
            };
            if allowed { Ok(pa) } else { Err(fault(0x13)) }
        };
        match self.paths[stream as usize] {
            Path::Bypass => Ok(t.address),
            Path::Stage2(vm) => stage2(vm, t.address),
            Path::Stage1(context) => {
                let (leaf, ipa) = find(&self.spaces[context], t.address).ok_or((0x10, None))?;
                let user = leaf.user;
                let allowed = match wish.kind {
                    _ if wish.instruction => leaf.execute && !(wish.privileged && user && leaf.write),
                    AccessKind::Read => wish.privileged || user,
                    AccessKind::Write | AccessKind::Atomic => leaf.write && (wish.privileged || user),
                };
                match vm(context) {
                    _ if !allowed => Err((0x13, None)),
                    None => Ok(ipa),
                    Some(vm) => stage2(vm, ipa),
                }
            }
        }
    }
}

fn config() -> impl Strategy<Value = Config> {
    let sizes = || proptest::sample::select(vec![0u32, 4, 16, 4096, Config::UNLIMITED]);
    (sizes(), sizes(), sizes(), sizes(), any::<[bool; 6]>(), any::<u64>()).prop_map(
        |(tlb, s2, walks, cache, [contiguous, split_fetch, xnx, combined, keep_all, random], seed)| Config {
            tlb,
            s2_cache: s2,
            walk_cache: walks,
            ste_cache: cache,
            cd_cache: cache,
            replace: if random { Replace::Random } else { Replace::Lru },
            seed,
            keep_all,
            combined,
            cache_invalid: keep_all,
            contiguous,
            split_fetch,
            xnx,
            ..Config::linux()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(48), max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_correct_driver_never_sees_old_translations(
        config in config(),
        ops in proptest::collection::vec(op(), 1..250),
    ) {
        let mut world = World::new(config);
        for op in &ops {
            world.run(op);
        }
    }
}
