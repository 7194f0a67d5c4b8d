//! A bare-metal machine for tests: RAM, one register device, private interrupts wired straight to the vCPUs, and code
//! assembled in place.
//!
//! Each slot of the vector table is `HVC #(0x1000 + offset); ERET`, so that an exception ends the run with its
//! syndrome in the system registers, and running on returns from it.

#![allow(dead_code, reason = "each test binary uses its part")]

use aarch64::sys::timer::VIRTUAL_INTID;
use aarch64::{
    At, BusFault, Cluster, Config, EngineKind, Exit, Features, IrqLines, Platform, Ran, SysKey, Traced,
};
use dynasmrt::aarch64::Aarch64Relocation;
use dynasmrt::{DynasmApi, VecAssembler, dynasm};
use guest_ram::GuestRam;
use pgtable::TableMemory;

pub(crate) type Asm = VecAssembler<Aarch64Relocation>;

pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const RAM_SIZE: u64 = 64 << 20;
/// Where the vector table is.
pub(crate) const VECTORS: u64 = 0x4001_0000;
/// Where tests put code.
pub(crate) const CODE: u64 = 0x4010_0000;
/// Where tests put data.
pub(crate) const DATA: u64 = 0x4020_0000;
/// Where translation tables are built.
pub(crate) const TABLES: std::ops::Range<u64> = 0x4100_0000..0x4200_0000;
/// The device: 4 KiB of registers, each reading as its offset.
pub(crate) const DEVICE: u64 = 0x0900_0000;

/// Operands of MRS and MSR for dynasm: the encoding without its top bit.
const fn reg(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    (op0 & 1) << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}
pub(crate) const SCTLR_EL1: u32 = reg(3, 0, 1, 0, 0);
pub(crate) const CPACR_EL1: u32 = reg(3, 0, 1, 0, 2);
pub(crate) const TTBR0_EL1: u32 = reg(3, 0, 2, 0, 0);
pub(crate) const TTBR1_EL1: u32 = reg(3, 0, 2, 0, 1);
pub(crate) const TCR_EL1: u32 = reg(3, 0, 2, 0, 2);
pub(crate) const SPSR_EL1: u32 = reg(3, 0, 4, 0, 0);
pub(crate) const ELR_EL1: u32 = reg(3, 0, 4, 0, 1);
pub(crate) const PAR_EL1: u32 = reg(3, 0, 7, 4, 0);
pub(crate) const MAIR_EL1: u32 = reg(3, 0, 10, 2, 0);
pub(crate) const VBAR_EL1: u32 = reg(3, 0, 12, 0, 0);
pub(crate) const CNTVCT_EL0: u32 = reg(3, 3, 14, 0, 2);
pub(crate) const CNTV_TVAL_EL0: u32 = reg(3, 3, 14, 3, 0);
pub(crate) const CNTV_CTL_EL0: u32 = reg(3, 3, 14, 3, 1);
pub(crate) const CNTV_CVAL_EL0: u32 = reg(3, 3, 14, 3, 2);

/// HVC numbers from here on are exceptions, with the vector's offset added.
const VECTOR: u16 = 0x1000;

/// What is not a vCPU.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Interrupt inputs by vCPU, besides the virtual timer's IRQ.
    pub(crate) lines: Vec<IrqLines>,
    /// The virtual timer's output by vCPU.
    pub(crate) timers: Vec<bool>,
    /// Every change of a private interrupt: time, vCPU, INTID, level.
    pub(crate) ppis: Vec<(u64, usize, u32, bool)>,
    /// Every device access: time, vCPU, offset, size, value written.
    pub(crate) accesses: Vec<(u64, usize, u64, u8, Option<u64>)>,
    /// End the run after the next platform call.
    pub(crate) yield_wanted: bool,
    /// Every access to a traced page.
    pub(crate) traced: Vec<Seen>,
    /// Pages to trace when the next access to a device or traced page comes, with flags.
    pub(crate) trace_next: Option<(GuestRam, u64, u8)>,
}

/// An access to a traced page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) now: u64,
    pub(crate) cpu: usize,
    pub(crate) pa: u64,
    pub(crate) size: u8,
    pub(crate) value: Option<u128>,
    pub(crate) trace: aarch64::Backtrace,
}

impl PartialEq for Board {
    fn eq(&self, other: &Self) -> bool {
        let seen = |b: &Self| (b.lines.clone(), b.timers.clone(), b.yield_wanted);
        seen(self) == seen(other)
            && (&self.ppis, &self.accesses, &self.traced) == (&other.ppis, &other.accesses, &other.traced)
    }
}

impl Board {
    fn begin_tracing(&mut self) {
        if let Some((ram, pa, flags)) = self.trace_next.take() {
            ram.watch().trace(((pa - RAM) >> 12) as usize, flags);
        }
    }
}

impl Platform for Board {
    fn mmio_read(&mut self, at: At, pa: u64, size: u8) -> Result<u64, BusFault> {
        let offset = pa.wrapping_sub(DEVICE);
        if offset >= 0x1000 {
            return Err(BusFault);
        }
        self.accesses.push((at.now, at.cpu, offset, size, None));
        Ok(offset)
    }
    fn mmio_write(&mut self, at: At, pa: u64, size: u8, value: u64) -> Result<(), BusFault> {
        let offset = pa.wrapping_sub(DEVICE);
        if offset >= 0x1000 {
            return Err(BusFault);
        }
        self.accesses.push((at.now, at.cpu, offset, size, Some(value)));
        self.begin_tracing();
        Ok(())
    }
    fn icc_read(&mut self, _: At, _: SysKey) -> Option<u64> {
        None
    }
    fn icc_write(&mut self, _: At, _: SysKey, _: u64) -> Option<()> {
        None
    }
    fn irq(&self, cpu: usize) -> IrqLines {
        let IrqLines { irq, fiq } = self.lines[cpu];
        IrqLines { irq: irq || self.timers[cpu], fiq }
    }
    fn set_ppi(&mut self, at: At, intid: u32, level: bool) {
        self.ppis.push((at.now, at.cpu, intid, level));
        if intid == VIRTUAL_INTID {
            self.timers[at.cpu] = level;
        }
    }
    fn take_yield(&mut self) -> bool {
        std::mem::take(&mut self.yield_wanted)
    }
    fn traced(&mut self, access: &Traced<'_>) {
        let &Traced { core, pa, size, value, .. } = access;
        let (At { cpu, now }, trace) = (core.at(), core.backtrace(access.ram));
        self.traced.push(Seen { now, cpu, pa, size, value, trace });
        self.begin_tracing();
    }
}

/// An exception that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trap {
    /// Offset of the vector.
    pub(crate) vector: u16,
    pub(crate) esr: u64,
    pub(crate) far: u64,
    pub(crate) elr: u64,
    pub(crate) spsr: u64,
}

/// The machine.
pub(crate) struct Machine {
    pub(crate) cluster: Cluster,
    pub(crate) board: Board,
    pub(crate) ram: GuestRam,
    pub(crate) now: u64,
}

/// Assembles code that runs at `base`.
pub(crate) fn assemble(base: u64, code: impl FnOnce(&mut Asm)) -> Vec<u8> {
    let mut ops = Asm::new(base as usize);
    code(&mut ops);
    ops.finalize().expect("labels resolve")
}

impl Machine {
    pub(crate) fn new(engine: EngineKind, cpus: usize, features: Features) -> Self {
        Self::with_ram(engine, cpus, features, RAM_SIZE)
    }

    pub(crate) fn with_ram(engine: EngineKind, cpus: usize, features: Features, size: u64) -> Self {
        let ram = GuestRam::new(RAM, size).expect("RAM");
        let config = Config { cpus, engine, features };
        let board =
            Board { lines: vec![IrqLines::default(); cpus], timers: vec![false; cpus], ..Board::default() };
        let mut machine = Self { cluster: Cluster::new(&config, ram.clone()), board, ram, now: 0 };
        for slot in 0..16 {
            let offset = slot * 0x80;
            machine.code(VECTORS + offset, |ops| {
                dynasm!(ops; .arch aarch64; hvc u32::from(VECTOR) + offset as u32; eret);
            });
        }
        for cpu in 0..cpus {
            machine.cluster.reset(cpu, CODE, 0);
            machine.cluster.core_mut(cpu).sys.vbar[1] = VECTORS;
        }
        machine
    }

    /// Puts code at a physical address.
    pub(crate) fn code(&mut self, pa: u64, code: impl FnOnce(&mut Asm)) {
        assert!(self.ram.write(pa, &assemble(pa, code)));
    }

    pub(crate) fn peek(&self, pa: u64) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.ram.read(pa, &mut bytes));
        u64::from_le_bytes(bytes)
    }

    /// Writes as a device does.
    pub(crate) fn poke(&mut self, pa: u64, value: u64) {
        assert!(self.ram.write(pa, &value.to_le_bytes()));
    }

    pub(crate) fn x(&self, cpu: usize, n: usize) -> u64 {
        self.cluster.core(cpu).r[n]
    }

    pub(crate) fn set_x(&mut self, cpu: usize, n: usize, value: u64) {
        self.cluster.core_mut(cpu).r[n] = value;
    }

    /// Continues at `pc`.
    pub(crate) fn jump(&mut self, cpu: usize, pc: u64) {
        self.cluster.core_mut(cpu).set_pc(pc);
    }

    /// One run; time goes on by what it retired.
    pub(crate) fn run(&mut self, cpu: usize, budget: u64) -> Ran {
        let ran = self.cluster.run(cpu, &mut self.board, self.now, budget);
        assert!(ran.retired <= budget);
        self.now += ran.retired;
        ran
    }

    /// One turn of a scheduler that lets a waiting vCPU go on at once.
    pub(crate) fn turn(&mut self, cpu: usize, quantum: u64) -> Ran {
        let budget = quantum.min(self.before_deadline(cpu).max(1));
        self.run(cpu, budget)
    }

    /// Runs, stopping at timer deadlines as a scheduler does, to the next HVC, with `quantum` instructions a run.
    pub(crate) fn until_hvc_by(&mut self, cpu: usize, quantum: u64) -> u16 {
        let end = self.now + 1_000_000;
        while self.now < end {
            let budget = quantum.min(self.before_deadline(cpu));
            match self.run(cpu, budget).exit {
                Exit::Hvc(n) => return n,
                Exit::Budget | Exit::Yield => {}
                exit => panic!("{exit:?} at {:#x}", self.cluster.core(cpu).pc),
            }
        }
        panic!("no HVC; at {:#x}", self.cluster.core(cpu).pc);
    }

    /// Lets a vCPU's timers act, and answers how many instructions it may run before they do again.
    pub(crate) fn before_deadline(&mut self, cpu: usize) -> u64 {
        self.cluster.update_timers(cpu, &mut self.board, self.now);
        self.cluster.timer_deadline(cpu, self.now).map_or(u64::MAX, |at| at - self.now)
    }

    pub(crate) fn until_hvc(&mut self, cpu: usize) -> u16 {
        self.until_hvc_by(cpu, 1000)
    }

    /// Runs to an HVC of the test's own.
    #[track_caller]
    pub(crate) fn expect_hvc(&mut self, cpu: usize, n: u16) {
        let got = self.until_hvc(cpu);
        assert_eq!(got, n, "{:x?}", self.last_trap(cpu, got));
    }

    fn last_trap(&self, cpu: usize, hvc: u16) -> Option<Trap> {
        let sys = &self.cluster.core(cpu).sys;
        let trap = Trap {
            vector: hvc.wrapping_sub(VECTOR),
            esr: sys.esr[1],
            far: sys.far[1],
            elr: sys.elr[1],
            spsr: sys.spsr[1],
        };
        (hvc >= VECTOR).then_some(trap)
    }

    /// Runs to the next exception.
    #[track_caller]
    pub(crate) fn expect_trap(&mut self, cpu: usize) -> Trap {
        let hvc = self.until_hvc(cpu);
        self.last_trap(cpu, hvc).unwrap_or_else(|| panic!("HVC {hvc:#x} rather than an exception"))
    }

    /// Drops to EL0 at `pc` (by guest code, as a kernel does).
    pub(crate) fn enter_user(&mut self, cpu: usize, pc: u64) {
        let sys = &mut self.cluster.core_mut(cpu).sys;
        (sys.elr[1], sys.spsr[1]) = (pc, 0);
        self.jump(cpu, VECTORS + 4);
        assert_eq!(self.run(cpu, 1).exit, Exit::Budget);
    }

    /// Sets the translation registers and SCTLR_EL1 with guest code at [`CODE`], which must be mapped to itself.
    pub(crate) fn set_translation(&mut self, cpu: usize, space: &Space) {
        self.code(CODE, |ops| {
            dynasm!(ops; .arch aarch64
                ; msr TTBR0_EL1, x0
                ; msr TTBR1_EL1, x1
                ; msr TCR_EL1, x2
                ; msr MAIR_EL1, x3
                ; isb
                ; msr SCTLR_EL1, x4
                ; isb
                ; hvc 0xff
            );
        });
        let values = [space.ttbr0, space.ttbr1, space.tcr, space.mair, space.sctlr];
        for (n, value) in values.into_iter().enumerate() {
            self.set_x(cpu, n, value);
        }
        self.jump(cpu, CODE);
        self.expect_hvc(cpu, 0xff);
    }
}

/// The translation registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    pub(crate) ttbr0: u64,
    pub(crate) ttbr1: u64,
    pub(crate) tcr: u64,
    pub(crate) mair: u64,
    pub(crate) sctlr: u64,
}

/// Guest RAM as the table builder wants it.
pub(crate) struct Ram(pub(crate) GuestRam);

impl TableMemory for Ram {
    fn read(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.0.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }
    fn write(&mut self, address: u64, descriptor: u64) -> Option<()> {
        self.0.write(address, &descriptor.to_le_bytes()).then_some(())
    }
}

/// Runs a test on all engines, and demands that all state is equal at the end.
pub(crate) fn on_both(cpus: usize, features: Features, test: impl Fn(&mut Machine)) {
    let [step, others @ ..] = EngineKind::ALL.map(|engine| {
        let mut machine = Machine::new(engine, cpus, features);
        test(&mut machine);
        machine
    });
    for other in others {
        same(cpus, &step, &other);
    }
}

/// Demands that two machines are equal.
fn same(cpus: usize, step: &Machine, block: &Machine) {
    assert_eq!(step.now, block.now, "virtual time");
    assert_eq!(step.board, block.board);
    for cpu in 0..cpus {
        let (step, block) = (step.cluster.core(cpu), block.cluster.core(cpu));
        assert_eq!(step.retired(), block.retired());
        assert_eq!(step.now(), block.now());
        assert_eq!(
            (step.pc, &step.r, &step.sys, step.monitor),
            (block.pc, &block.r, &block.sys, block.monitor)
        );
        // The TLB included.
        assert!(step.mmu == block.mmu, "TLBs differ");
    }
    let pages = |machine: &Machine| {
        let mut pages = Vec::new();
        machine.ram.for_each_nonzero_page(|at, page| pages.push((at, page.to_vec())));
        pages
    };
    assert!(pages(step) == pages(block), "RAM differs");
}
