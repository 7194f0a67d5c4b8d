//! Random changes of tables and random TLBI commands, right ones and wrong ones, against a list of what an SMMU may still
//! hold: every granule, size and first level, blocks and contiguous spans, stage 1, stage 2, nested, EL2 and EL2-E2H, by
//! address and by range with TG and TTL. Caches that forget nothing do exactly what the list says; others do one of the
//! things that it allows. `SMMULAB_ORACLE_CASES` asks for more than the default.

#[path = "../common/cases.rs"]
mod cases;
mod commands;
mod held;
#[path = "../conformance/lab.rs"]
#[allow(dead_code)]
mod lab;
mod ops;
mod tables;

use cases::cases;
use commands::{Operation, Range, Tlbi};
use held::{Context, Oracle, Path, Regime, Vm, World};
use lab::{CDS, CFGI_ALL, CdFields, End, Lab, RW, S2_RW, SID, SYNC, cd, cfgi_cd, cfgi_ste};
use ops::{Op, Shot, What, config, op, stages};
use pgtable::descriptor as d;
use proptest::prelude::*;
use smmu_model::spec::registers as r;
use smmu_model::{AccessKind, Config, Progress, Transaction, TxnId};
use tables::{CONTIGUOUS, Stage, Unit};

/// Of stage 1: 0 and 1 share a VMID, 2 and 3 are in VM 0, 4 is of EL2.
const CONTEXTS: usize = 5;
/// Those, and the two VMs.
const SPACES: usize = CONTEXTS + 2;
const VMIDS: [u64; 3] = [5, 7, 8];
/// Each context's stream, and one for each VM.
const STREAMS: usize = SPACES;

/// An access that is under way.
#[derive(Clone, Copy)]
struct Pending {
    id: TxnId,
    stream: usize,
    address: u64,
}

struct Bench {
    lab: Lab,
    config: Config,
    e2h: bool,
    oracle: Oracle,
    paths: [Path; STREAMS],
    pending: Vec<Pending>,
    /// Each leaf has an output of its own.
    outputs: u64,
    /// Where the next table is that maps what stage 1 needs.
    identities: [u64; 2],
}

impl Bench {
    fn new(config: Config, e2h: bool, stages: [Stage; SPACES]) -> Self {
        let mut lab = Lab::new(config.clone());
        if e2h {
            let cr0 = lab.r32(r::CR0);
            lab.w32(r::CR0, 0);
            lab.w32(r::CR2, 3);
            lab.w32(r::CR0, cr0);
        }
        let el2 = if e2h { World::El2E2h } else { World::El2 };
        let regime = |world, vmid, asid| Regime { world, vmid, asid };
        let owners = [
            (regime(World::El1, VMIDS[0], 1), None),
            (regime(World::El1, VMIDS[0], 2), None),
            (regime(World::El1, VMIDS[1], 1), Some(0)),
            (regime(World::El1, VMIDS[1], 2), Some(0)),
            (regime(el2, 0, if e2h { 1 } else { 0 }), None),
        ];
        let mut stages = stages.into_iter();
        let contexts = owners.into_iter().zip(&mut stages).enumerate().map(|(n, ((regime, vm), stage))| {
            let upper = stage.upper && regime.world != World::El2;
            Context { stage: Stage { root: 0x2000_0000 + n as u64 * 0x40_0000, upper, ..stage }, regime, vm }
        });
        let contexts: Vec<_> = contexts.collect();
        let vms = stages.zip(&VMIDS[1..]).enumerate().map(|(n, (stage, &vmid))| Vm {
            stage: Stage { root: 0x4000_0000 + n as u64 * 0x100_0000, ..stage },
            vmid,
        });
        let Config { tlb, s2_cache, walk_cache, ste_cache, cd_cache, .. } = config;
        let sizes = [tlb, s2_cache, walk_cache, ste_cache, cd_cache];
        let oracle = Oracle {
            contexts,
            vms: vms.collect(),
            held: Vec::new(),
            exact: config.keep_all && sizes.iter().all(|&size| size == Config::UNLIMITED),
            combined: config.combined,
            contiguous: config.contiguous,
            known: Vec::new(),
        };
        let paths = std::array::from_fn(|n| match n.checked_sub(CONTEXTS) {
            None => Path::Stage1(n),
            Some(vm) => Path::Stage2(vm),
        });
        let identities = [0x4080_0000, 0x4180_0000];
        let mut bench =
            Bench { lab, config, e2h, oracle, paths, pending: Vec::new(), outputs: 0, identities };
        bench.identity(CDS, 0x1000);
        for n in 0..CONTEXTS {
            bench.write_cd(n);
        }
        for n in 0..STREAMS {
            bench.write_ste(n);
        }
        bench
    }

    /// VM 0 has this where it is.
    fn identity(&mut self, from: u64, bytes: u64) {
        let stage = &mut self.oracle.vms[0].stage;
        stage.identity(&self.lab.ram, from..from + bytes, S2_RW, &mut self.identities[0]);
    }

    fn write_cd(&mut self, n: usize) {
        let Context { stage, regime, vm } = &self.oracle.contexts[n];
        let granule = (stage.page - 12) as usize / 2;
        let half = match stage.upper {
            false => u64::from(stage.tsz) | [0, 2, 1][granule] << 6 | 1 << 30,
            true => u64::from(stage.tsz) << 16 | [2, 1, 3][granule] << 22 | 1 << 14,
        };
        let ips = if stage.out == 52 { 6 } else { 5 } << 32;
        let word0 = cd(0, 0, regime.asid) & !(1 << 30 | 7 << 32) | half | ips;
        let (root, ds) = (stage.root, u64::from(stage.ds) << 58);
        let fields = CdFields { word0, word1: root, word2: root | ds, ..CdFields::default() };
        if vm.is_some() {
            // All tables that there will be.
            self.identity(root, 0x30_0000);
        }
        self.lab.context(n as u64, fields);
    }

    fn write_ste(&mut self, n: usize) {
        let second = |vm: usize| {
            let Vm { stage, vmid } = &self.oracle.vms[vm];
            let tg = [0, 2, 1][(stage.page - 12) as usize / 2];
            let sl0 = match (stage.page, stage.first) {
                (12, -1) => 4,
                (12, level) => 2 - level,
                (_, level) => 3 - level,
            } as u64;
            let ps = if stage.out == 52 { 6 } else { 5 };
            let sizes = u64::from(stage.tsz) << 32 | (sl0 & 3) << 38 | tg << 46 | ps << 48;
            (vmid | sizes | 1 << 51 | 1 << 58, stage.root | (sl0 >> 2) << 2 | u64::from(stage.ds) << 3)
        };
        let words = match self.paths[n] {
            Path::Stage2(vm) => {
                let (word2, word3) = second(vm);
                [1 | 6 << 1, 1 << 44, word2, word3]
            }
            Path::Stage1(n) => {
                let Context { regime, vm, .. } = &self.oracle.contexts[n];
                let cd = CDS + n as u64 * 64;
                let (word2, word3) = vm.map_or((regime.vmid, 0), second);
                let world = if matches!(regime.world, World::El2 | World::El2E2h) { 2 << 30 } else { 0 };
                [1 | cd | if vm.is_some() { 7 } else { 5 } << 1, 1 << 44 | world, word2, word3]
            }
        };
        self.lab.ste(SID + n as u32, words);
    }

    fn space(&mut self, space: usize) -> &mut Stage {
        match space.checked_sub(CONTEXTS) {
            None => &mut self.oracle.contexts[space].stage,
            Some(vm) => &mut self.oracle.vms[vm].stage,
        }
    }

    /// What those under way may have found so far, or find without a change.
    fn look_around(&mut self) {
        for Pending { stream, address, .. } in self.pending.clone() {
            self.oracle.access(&self.lab.ram, stream, self.paths[stream], address, false);
        }
    }

    fn commands(&mut self, commands: &[[u64; 2]]) {
        for command in commands {
            self.lab.push(*command);
            self.lab.run_commands();
        }
        self.lab.push(SYNC);
        self.lab.run_commands();
        if !self.lab.idle() {
            self.look_around();
            for Pending { id, .. } in std::mem::take(&mut self.pending) {
                while let Progress::Walking(_) = self.lab.smmu.step(id, &self.lab.ram) {}
                self.lab.smmu.complete(id);
            }
            self.lab.run_commands();
        }
        self.lab.events();
        self.lab.run_commands();
        assert!(self.lab.idle());
    }

    /// Where a leaf leads: somewhere of its own; of a VM's stage 1, to where its stage 2 may have something.
    fn output(&mut self, space: usize, unit: Unit, contiguous: bool, to: (u8, u8)) -> u64 {
        let stage = self.space(space);
        let shift = if contiguous { stage.span(unit.level) } else { stage.shift(unit.level) };
        let nested = self.oracle.contexts.get(space).and_then(|context| context.vm);
        match nested {
            Some(vm) => self.oracle.vms[vm].stage.unit(to).base >> shift << shift,
            None => {
                self.outputs += 1;
                1 << 47 | (self.outputs << shift) & ((1 << 47) - 1)
            }
        }
    }

    /// Before an entry is written. A table is used again only when nobody can be in it.
    fn make_way(&mut self, space: usize, unit: Unit, table: bool) {
        let new = table || !self.space_ref(space).has_tables(&self.lab.ram, unit);
        if new && !self.pending.is_empty() {
            self.look_around();
            for Pending { id, .. } in std::mem::take(&mut self.pending) {
                self.lab.smmu.complete(id);
            }
        }
        self.look_around();
    }

    fn write(&mut self, space: usize, unit: Unit, what: What) {
        self.make_way(space, unit, matches!(what, What::Table));
        match what {
            What::Nothing => {
                let (stage, ram) = (Self::stage(&mut self.oracle, space), &self.lab.ram);
                stage.write_nothing(ram, unit);
            }
            What::Table => {
                let (stage, ram) = (Self::stage(&mut self.oracle, space), &self.lab.ram);
                stage.write_table(ram, unit);
            }
            What::Leaf { read_only, global, contiguous, to } => {
                let second = space >= CONTEXTS;
                let stage = self.space(space);
                let contiguous = contiguous && stage.span(unit.level) > stage.shift(unit.level);
                let output = self.output(space, unit, contiguous, to);
                let attrs = match second {
                    false => RW | u64::from(read_only) << 7 & d::AP_READ_ONLY,
                    true => S2_RW & !(u64::from(read_only) * d::S2AP_WRITE),
                };
                let (stage, ram) = (Self::stage(&mut self.oracle, space), &self.lab.ram);
                let attrs = if global && !second { attrs & !d::NG } else { attrs };
                stage.write_leaf(ram, unit, output, attrs | if contiguous { CONTIGUOUS } else { 0 });
            }
        }
    }

    fn stage(oracle: &mut Oracle, space: usize) -> &mut Stage {
        match space.checked_sub(CONTEXTS) {
            None => &mut oracle.contexts[space].stage,
            Some(vm) => &mut oracle.vms[vm].stage,
        }
    }

    fn space_ref(&self, space: usize) -> &Stage {
        match space.checked_sub(CONTEXTS) {
            None => &self.oracle.contexts[space].stage,
            Some(vm) => &self.oracle.vms[vm].stage,
        }
    }

    /// Makes stage 1 of a stream lead to what stage 2 has at `second`, by a page, and says from where.
    fn lead(&mut self, stream: usize, second: Unit) -> u64 {
        let stage = self.space(stream);
        let (page, room) = (1u64 << stage.page, stage.bits().min(30));
        let base = stage.anchor() + (second.base & ((1 << room) - 1)) / page * page;
        let unit = Unit { base, level: 3 };
        self.make_way(stream, unit, false);
        let stage = Self::stage(&mut self.oracle, stream);
        stage.write_leaf(&self.lab.ram, unit, second.base / page * page, RW);
        base + second.base % page
    }

    fn tlbi(&self, space: usize, unit: Unit, shot: &Shot) -> Tlbi {
        use Operation::{
            El2All, El2Asid, El2Va, El2Vaa, NhAll, NhAsid, NhVa, NhVaa, NsnhAll, S2Ipa, S12Vmall,
        };
        let (vmid, asid, operations) = match space.checked_sub(CONTEXTS) {
            Some(vm) => (self.oracle.vms[vm].vmid, 0, [S2Ipa, S2Ipa, S2Ipa, S2Ipa, S12Vmall, NhAll, NsnhAll]),
            None => {
                let Regime { world, vmid, asid } = self.oracle.contexts[space].regime;
                let el2 = matches!(world, World::El2 | World::El2E2h);
                let all = [
                    [NhVa, NhVa, NhVa, NhVaa, NhAsid, NhAll, S12Vmall],
                    [El2Va, El2Va, El2Va, El2Vaa, El2Asid, El2All, NsnhAll],
                ];
                (vmid, asid, all[usize::from(el2)])
            }
        };
        let stage = self.space_ref(space);
        let offset = shot.offset & ((1 << stage.shift(unit.level)) - 1);
        let level = unit.level as u64 & 3;
        let mut range = shot.ranged.then(|| {
            let unit_bits =
                if shot.offset >> 59 & 1 == 1 { stage.shift(unit.level) } else { stage.span(unit.level) };
            let granules = unit_bits.min(stage.page + 31) - stage.page;
            let split = u32::from(shot.split).min(5).min(granules);
            let num = ((1i64 << split) - 1 + i64::from(shot.more)).clamp(0, 31) as u64;
            let ttl = match shot.ttl {
                0..4 => level,
                4 | 5 => 0,
                other => 1 + (level + u64::from(other)) % 3,
            };
            let tg = [1, 2, 3][(stage.page - 12) as usize / 2];
            let tg = if shot.wrong == 1 { tg % 3 + 1 } else { tg };
            Range { tg, scale: (granules - split).into(), num, ttl }
        });
        if let Some(range) = &mut range
            && (range.scale, range.num) == (0, 0)
            && (range.ttl == 0 || range.ttl == 1 && range.tg == 2 && !self.config.ds)
        {
            // Reserved.
            range.num = 1;
        }
        Tlbi {
            operation: operations[shot.operation as usize % operations.len()],
            vmid: if shot.wrong == 2 { VMIDS[(shot.offset >> 60) as usize % 3] } else { vmid },
            asid: if shot.wrong == 3 { shot.offset >> 60 & 3 } else { asid },
            leaf: shot.leaf,
            address: unit.base + if shot.split.is_multiple_of(3) { offset & !0xfff } else { 0 },
            range,
        }
    }

    /// A command, and a CMD_SYNC.
    fn forget(&mut self, command: &Tlbi) {
        self.look_around();
        self.oracle.forget(command, self.e2h, &self.config);
        self.commands(&[command.encode()]);
    }

    fn address(&self, stream: usize, unit: (u8, u8), offset: u64) -> u64 {
        let stage = self.space_ref(stream);
        let Unit { base, level } = stage.unit(unit);
        base + (offset & ((1 << stage.shift(level)) - 1))
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Write(space, unit, what, shot) => {
                let unit = self.space(space).unit(unit);
                self.write(space, unit, what);
                if let Some(shot) = shot {
                    let command = self.tlbi(space, unit, &shot);
                    self.forget(&command);
                }
            }
            Op::Forget(space, unit, shot) => {
                let unit = self.space(space).unit(unit);
                let command = self.tlbi(space, unit, &shot);
                self.forget(&command);
            }
            Op::Access { stream, unit, offset, write } => {
                let address = self.address(stream, unit, offset);
                self.access(stream, address, write);
            }
            Op::Begin { stream, unit, .. } if self.oracle.exact => {
                let address = self.address(stream, unit, 0);
                self.access(stream, address, false);
            }
            Op::Begin { stream, unit, steps } => {
                let address = self.address(stream, unit, 0);
                self.begin(stream, address, steps);
            }
            Op::Round { stream, of_vm, unit, other, near, steps, leaf, what, shot } => {
                let space = match self.oracle.contexts.get(stream) {
                    Some(Context { vm: Some(vm), .. }) if of_vm => CONTEXTS + vm,
                    _ => stream,
                };
                let stage = self.space(space);
                let changed = [stage.unit(unit), stage.near(unit, near).unwrap_or(stage.unit(other))];
                let addresses = match space == stream {
                    true => changed.map(|unit| unit.base),
                    // The same of both stages, as far as that goes.
                    false => changed.map(|second| self.lead(stream, second)),
                };
                for unit in changed {
                    self.write(space, unit, leaf);
                }
                match steps {
                    ..20 if !self.oracle.exact => self.begin(stream, addresses[0], steps),
                    _ => self.access(stream, addresses[0], false),
                }
                self.access(stream, addresses[1], false);
                for unit in changed {
                    self.write(space, unit, what);
                }
                let command = self.tlbi(space, changed[0], &shot);
                self.forget(&command);
                for address in addresses {
                    self.access(stream, address, false);
                }
            }
            Op::Blink { second, page, unit, shot } => {
                let (stream, vm) = (2 + usize::from(second), CONTEXTS);
                let address = self.address(stream, unit, 0);
                let page = match page {
                    0 => CDS,
                    _ => self.oracle.contexts[stream].stage.place(page.into()),
                };
                self.look_around();
                Self::stage(&mut self.oracle, vm).blink(&self.lab.ram, page);
                if let Some(shot) = shot {
                    let command = self.tlbi(vm, Unit { base: page, level: 3 }, &shot);
                    self.forget(&command);
                }
                self.access(stream, address, false);
                self.look_around();
                Self::stage(&mut self.oracle, vm).blink(&self.lab.ram, page);
            }
            Op::Configuration(stream, how) => {
                self.look_around();
                let sid = SID + stream as u32;
                let command = match how {
                    0 => cfgi_ste(sid),
                    1 => cfgi_cd(sid, 0),
                    _ => CFGI_ALL,
                };
                self.oracle.known.retain(|&known| how != 2 && known != stream);
                self.commands(&[command]);
            }
        }
    }

    /// An access that is left under way after some steps.
    fn begin(&mut self, stream: usize, address: u64, steps: u8) {
        let t = Transaction::new(SID + stream as u32, address, AccessKind::Read);
        let mut progress = self.lab.smmu.begin(&t);
        for _ in 0..steps {
            if let Progress::Walking(id) = progress {
                progress = self.lab.smmu.step(id, &self.lab.ram);
            }
        }
        self.oracle.access(&self.lab.ram, stream, self.paths[stream], address, false);
        if let Progress::Walking(id) | Progress::Latched(id, _) = progress {
            self.pending.push(Pending { id, stream, address });
        }
        self.lab.events();
    }

    fn access(&mut self, stream: usize, address: u64, write: bool) {
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        let t = Transaction::new(SID + stream as u32, address, kind);
        let expected = self.oracle.access(&self.lab.ram, stream, self.paths[stream], address, write);
        let end = self.lab.dma(t);
        let events = self.lab.events();
        let found = match (end, events.as_slice()) {
            (End::To(pa), []) => Ok(pa),
            (End::Abort, [event]) => {
                assert_eq!((event[2], event[0] >> 32), (address, u64::from(t.sid)));
                let second = event[1] >> 39 & 1 == 1;
                Err((event[0] & 0xff, second.then_some((event[1] >> 40 & 3, event[3]))))
            }
            other => panic!("{other:x?}"),
        };
        let page = |fault: held::Fault| (fault.0, fault.1.map(|(class, ipa)| (class, ipa & !0xfff)));
        let expected: Vec<_> = expected.into_iter().map(|end| end.map_err(page)).collect();
        assert!(
            expected.contains(&found),
            "stream {stream}, {t:x?}: {found:x?}, and not one of {expected:x?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(100), max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn caches_hold_what_they_may_and_no_more(
        (config, stages) in config().prop_flat_map(|config| (Just(config.clone()), stages(config.ds))),
        e2h in any::<bool>(),
        ops in proptest::collection::vec(op(), 1..150),
    ) {
        let mut bench = Bench::new(config, e2h, stages);
        for op in &ops {
            bench.run(op);
        }
    }
}
