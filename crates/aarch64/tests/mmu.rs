//! Translation as a guest sees it: aborts with their exact syndromes, TLB maintenance, and ASIDs. Bare-metal code runs
//! on both engines, which must agree in everything.

mod bare;

use aarch64::Features;
use bare::*;
use dynasmrt::dynasm;
use pgtable::descriptor as d;
use pgtable::{Builder, Granule, Stage1};

/// MAIR: 0 normal write-back, 1 Device-nGnRnE, 2 normal non-cacheable.
const MAIR: u64 = 0x44_00_ff;
const DEVICE_MEMORY: u64 = d::attr_index(1);
/// SCTLR_EL1 with M, C, I, and its RES1 bits; EL0 may use the cache and DC ZVA instructions.
const SCTLR: u64 = 0x30d0_0800 | 1 << 26 | 1 << 15 | 1 << 14 | 1 << 12 | 1 << 2 | 1;
const SCTLR_A: u64 = 1 << 1;
const SCTLR_WXN: u64 = 1 << 19;

/// Kernel data, and what everybody may read and execute.
const KERNEL: u64 = d::AF | d::SH_INNER | d::XN | d::PXN;
const USER: u64 = KERNEL | d::AP_USER;
const TEXT: u64 = d::AF | d::SH_INNER | d::AP_USER | d::AP_READ_ONLY;

const LDR: u64 = CODE + 0x1000;
const STR: u64 = CODE + 0x1010;
const BR: u64 = CODE + 0x1020;
const DC_ZVA: u64 = CODE + 0x1030;
const DC_CVAC: u64 = CODE + 0x1040;
const DC_IVAC: u64 = CODE + 0x1050;
const IC_IVAU: u64 = CODE + 0x1060;
const LDP: u64 = CODE + 0x1070;
const LDXR: u64 = CODE + 0x1080;
const LDTR: u64 = CODE + 0x1090;
const STTR: u64 = CODE + 0x10a0;
const STR_POST: u64 = CODE + 0x10b0;
const LDAR: u64 = CODE + 0x10c0;
const LDR_W: u64 = CODE + 0x10d0;

/// A machine with tables for TTBR0 (48 bits) and TTBR1 (39 bits) that map code and vectors to themselves, and a
/// routine for each kind of access to the address in X1.
struct World<'a> {
    m: &'a mut Machine,
    mem: Ram,
    low: Builder,
    high: Builder,
    space: Space,
}

impl<'a> World<'a> {
    fn new(m: &'a mut Machine) -> Self {
        Self::with(m, Granule::G4K)
    }

    fn with(m: &'a mut Machine, granule: Granule) -> Self {
        let mut mem = Ram(m.ram.clone());
        let mut cfg = Stage1 { granule, tsz: 16, oas: 44, ..Stage1::default() };
        let mut low = Builder::stage1(&mut cfg, &mut mem, 0x4100_0000..0x4180_0000).unwrap();
        let ttbr0 = cfg.ttb;
        let mut cfg = Stage1 { tsz: 25, upper: true, ..cfg };
        let high = Builder::stage1(&mut cfg, &mut mem, 0x4180_0000..0x4200_0000).unwrap();
        low.coarsest = 3;
        low.map(&mut mem, VECTORS, VECTORS, 0x1_0000, d::AF | d::SH_INNER | d::AP_READ_ONLY).unwrap();
        low.map(&mut mem, CODE, CODE, 0x1_0000, TEXT).unwrap();
        let (tg0, tg1) = match granule {
            Granule::G4K => (0, 2),
            Granule::G16K => (2, 1),
            Granule::G64K => (1, 3),
        };
        // T0SZ 16, T1SZ 25, both inner shareable and write-back, IPS 44 bits.
        let tcr = 16 | 25 << 16 | 0x3500_3500 | tg0 << 14 | tg1 << 30 | 4 << 32;
        let space = Space { ttbr0, ttbr1: cfg.ttb, tcr, mair: MAIR, sctlr: SCTLR };
        for (at, code) in routines() {
            m.code(at, code);
        }
        Self { m, mem, low, high, space }
    }

    fn map(&mut self, va: u64, pa: u64, attrs: u64) {
        let page = if self.space.tcr >> 14 & 3 == 0 { 0x1000 } else { 0x1_0000 };
        let tables = if va >> 55 & 1 == 1 { &mut self.high } else { &mut self.low };
        tables.map(&mut self.mem, va, pa, page, attrs).unwrap();
    }

    fn set(&mut self, level: i8, va: u64, descriptor: u64) {
        let tables = if va >> 55 & 1 == 1 { &mut self.high } else { &mut self.low };
        tables.set(&mut self.mem, level, va, descriptor).unwrap();
    }

    fn on(&mut self) {
        let space = self.space;
        self.m.set_translation(0, &space);
    }

    /// Has the routine at `how` access `va` at EL1; `None` if that works.
    #[track_caller]
    fn kernel(&mut self, how: u64, va: u64) -> Option<Trap> {
        self.m.set_x(0, 1, va);
        self.m.cluster.core_mut(0).pstate.sp_sel = true;
        self.m.jump(0, how);
        match self.m.until_hvc(0) {
            1 => None,
            _ => Some(self.trap()),
        }
    }

    /// As [`World::kernel`], at EL0. The routines' HVC is UNDEFINED there.
    #[track_caller]
    fn user(&mut self, how: u64, va: u64) -> Option<Trap> {
        self.m.set_x(0, 1, va);
        self.m.enter_user(0, how);
        self.m.until_hvc(0);
        let trap = self.trap();
        assert_eq!(trap.vector, 0x400);
        (trap.esr != UNDEFINED).then_some(trap)
    }

    fn trap(&self) -> Trap {
        let core = self.m.cluster.core(0);
        let vector = (core.pc - 4 - VECTORS) as u16;
        let sys = &core.sys;
        Trap { vector, esr: sys.esr[1], far: sys.far[1], elr: sys.elr[1], spsr: sys.spsr[1] }
    }

    #[track_caller]
    fn kernel_faults(&mut self, how: u64, va: u64, esr: u64) {
        let elr = if how == BR { va } else { how };
        let want = Trap { vector: 0x200, esr, far: va, elr, spsr: 0x3c5 };
        assert_eq!(self.kernel(how, va), Some(want), "\n want esr {esr:#x}, at {va:#x}");
    }

    #[track_caller]
    fn user_faults(&mut self, how: u64, va: u64, esr: u64) {
        let elr = if how == BR { va } else { how };
        let want = Trap { vector: 0x400, esr, far: va, elr, spsr: 0 };
        assert_eq!(self.user(how, va), Some(want), "\n want esr {esr:#x}, at {va:#x}");
    }

    #[track_caller]
    fn kernel_ok(&mut self, how: u64, va: u64) {
        assert_eq!(self.kernel(how, va), None, "at {va:#x}");
    }

    #[track_caller]
    fn user_ok(&mut self, how: u64, va: u64) {
        assert_eq!(self.user(how, va), None, "at {va:#x}");
    }
}

type Routine = (u64, fn(&mut Asm));

/// Each is one access to [X1], at its first instruction, and HVC #1.
fn routines() -> Vec<Routine> {
    vec![
        (LDR, |ops| dynasm!(ops; .arch aarch64; ldr x0, [x1]; hvc 1)),
        (STR, |ops| dynasm!(ops; .arch aarch64; str x0, [x1]; hvc 1)),
        (BR, |ops| dynasm!(ops; .arch aarch64; br x1)),
        (DC_ZVA, |ops| dynasm!(ops; .arch aarch64; dc zva, x1; hvc 1)),
        (DC_CVAC, |ops| dynasm!(ops; .arch aarch64; dc cvac, x1; hvc 1)),
        (DC_IVAC, |ops| dynasm!(ops; .arch aarch64; dc ivac, x1; hvc 1)),
        (IC_IVAU, |ops| dynasm!(ops; .arch aarch64; ic ivau, x1; hvc 1)),
        (LDP, |ops| dynasm!(ops; .arch aarch64; ldp x2, x3, [x1]; hvc 1)),
        (LDXR, |ops| dynasm!(ops; .arch aarch64; ldxr x0, [x1]; hvc 1)),
        (LDTR, |ops| dynasm!(ops; .arch aarch64; ldtr x0, [x1]; hvc 1)),
        (STTR, |ops| dynasm!(ops; .arch aarch64; sttr x0, [x1]; hvc 1)),
        (STR_POST, |ops| dynasm!(ops; .arch aarch64; str x0, [x1], 8; hvc 1)),
        (LDAR, |ops| dynasm!(ops; .arch aarch64; ldar x0, [x1]; hvc 1)),
        (LDR_W, |ops| dynasm!(ops; .arch aarch64; ldr w0, [x1]; hvc 1)),
    ]
}

const UNDEFINED: u64 = 1 << 25;
const WRITE: u64 = 1 << 6;
const CM: u64 = 1 << 8;

/// Syndrome of a Data Abort: from EL1, from EL0; of an Instruction Abort.
const fn data(dfsc: u64) -> u64 {
    0x25 << 26 | 1 << 25 | dfsc
}
const fn user_data(dfsc: u64) -> u64 {
    0x24 << 26 | 1 << 25 | dfsc
}
const fn fetch(ifsc: u64) -> u64 {
    0x21 << 26 | 1 << 25 | ifsc
}
const fn user_fetch(ifsc: u64) -> u64 {
    0x20 << 26 | 1 << 25 | ifsc
}

const TRANSLATION: u64 = 0b000100;
const ACCESS_FLAG: u64 = 0b001000;
const PERMISSION: u64 = 0b001100;
const EXTERNAL: u64 = 0b010000;
const EXTERNAL_WALK: u64 = 0b010100;
const ALIGNMENT: u64 = 0b100001;

fn base() -> Features {
    Features::default()
}

#[test]
fn translation_faults_at_every_level() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        w.map(DATA, DATA, USER);
        w.on();
        w.kernel_ok(LDR, DATA + 8);
        // One address for each level at which the walk ends.
        for (level, va) in [(0, 0x80_0000_0000), (1, 0x1_0000_0000), (2, 0x7000_0000), (3, DATA + 0x1238)] {
            w.kernel_faults(LDR, va, data(TRANSLATION | level));
            w.kernel_faults(STR, va, data(TRANSLATION | level | WRITE));
            w.kernel_faults(BR, va, fetch(TRANSLATION | level));
            w.user_faults(LDR, va, user_data(TRANSLATION | level));
            w.user_faults(STR, va, user_data(TRANSLATION | level | WRITE));
            w.user_faults(BR, va, user_fetch(TRANSLATION | level));
            // Maintenance by address says CM and counts as a write.
            w.kernel_faults(DC_CVAC, va, data(TRANSLATION | level | WRITE | CM));
            w.kernel_faults(DC_IVAC, va, data(TRANSLATION | level | WRITE | CM));
            w.kernel_faults(IC_IVAU, va, data(TRANSLATION | level | WRITE | CM));
            w.user_faults(DC_CVAC, va, user_data(TRANSLATION | level | WRITE | CM));
            // DC ZVA is a store.
            w.kernel_faults(DC_ZVA, va, data(TRANSLATION | level | WRITE));
            w.user_faults(DC_ZVA, va, user_data(TRANSLATION | level | WRITE));
        }
        // A reserved descriptor at level 3, and a block at level 0.
        w.set(3, DATA + 0x2000, DATA | d::AF | d::VALID);
        w.kernel_faults(LDR, DATA + 0x2000, data(TRANSLATION | 3));
        w.set(0, 0x100_0000_0000, d::AF | d::VALID);
        w.kernel_faults(LDR, 0x100_0000_0000, data(TRANSLATION));
    });
}

#[test]
fn addresses_out_of_range() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        w.map(0xffff_ff80_0000_0000, DATA, KERNEL);
        w.map(0, DATA, KERNEL);
        w.on();
        w.kernel_ok(LDR, 0xffff_ff80_0000_0ff8);
        w.kernel_ok(STR, 0);
        for va in [0xffff_ff7f_ffff_fff8, 0x0001_0000_0000_0000, 0x8000_0000_0000_0000, 0x0080_0000_0000_0000]
        {
            w.kernel_faults(LDR, va, data(TRANSLATION));
            w.kernel_faults(BR, va, fetch(TRANSLATION));
        }
        w.kernel_faults(LDR, 0xffff_ff80_0000_1000, data(TRANSLATION | 3));
        // EPD1.
        w.space.tcr |= 1 << 23;
        w.on();
        w.kernel_faults(LDR, 0xffff_ff80_4000_0000, data(TRANSLATION));
    });
}

#[test]
fn tagged_addresses() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        w.map(0xffff_ff80_0000_0000, DATA, KERNEL);
        w.map(DATA, DATA, KERNEL);
        w.space.tcr |= 1 << 37; // TBI0
        w.on();
        w.m.poke(DATA + 8, 0x1234);
        for tag in [0, 0x5a, 0xff, 0x80] {
            w.m.set_x(0, 0, 0);
            w.kernel_ok(LDR, tag << 56 | (DATA + 8));
            assert_eq!(w.m.x(0, 0), 0x1234);
        }
        // FAR keeps the tag. TTBR1's range has no TBI.
        w.kernel_faults(LDR, 0x5a00_0000_7000_0000, data(TRANSLATION | 2));
        w.kernel_faults(LDR, 0x5aff_ff80_0000_0000, data(TRANSLATION));
        w.space.tcr |= 1 << 38; // TBI1
        w.on();
        w.kernel_ok(LDR, 0x5aff_ff80_0000_0008);
        assert_eq!(w.m.x(0, 0), 0x1234);
        // A branch drops the tag.
        w.kernel_ok(BR, 0x5a << 56 | (LDR + 4));
    });
}

#[test]
fn access_flag_and_permission_faults_at_every_level() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        // Blocks of 1 GiB and 2 MiB, and a page, that lie over RAM.
        let places: [(i8, u64); 3] = [(1, 0x1_4000_0000), (2, 0x2_4020_0000), (3, 0x3_4020_0000)];
        let leaf = |level: i8, attrs: u64| {
            let pa = if level == 1 { RAM } else { DATA };
            pa | attrs | if level == 3 { 3 } else { 1 }
        };
        w.on();
        for (level, va) in places {
            let bits = level as u64;
            // Nothing that faults is cached, so no invalidation is needed from one to the next of these.
            w.set(level, va, leaf(level, USER & !d::AF));
            w.kernel_faults(LDR, va, data(ACCESS_FLAG | bits));
            w.user_faults(STR, va, user_data(ACCESS_FLAG | bits | WRITE));
            w.kernel_faults(BR, va, fetch(ACCESS_FLAG | bits));
            // Address size comes before Access flag, and that before permission.
            w.set(level, va, leaf(level, USER & !d::AF) | 1 << 44);
            w.kernel_faults(LDR, va, data(bits));
            w.kernel_faults(STR, va, data(bits | WRITE));
            w.user_faults(BR, va, user_fetch(bits));

            w.set(level, va, leaf(level, KERNEL));
            w.user_faults(LDR, va, user_data(PERMISSION | bits));
            w.user_faults(STR, va, user_data(PERMISSION | bits | WRITE));
            w.kernel_faults(LDTR, va, data(PERMISSION | bits));
            w.kernel_faults(STTR, va, data(PERMISSION | bits | WRITE));
            w.kernel_faults(BR, va, fetch(PERMISSION | bits));
            w.user_faults(BR, va, user_fetch(PERMISSION | bits));
            w.user_faults(DC_CVAC, va, user_data(PERMISSION | bits | WRITE | CM));
            w.kernel_ok(LDR, va);
            w.kernel_ok(STR, va);
        }
    });
}

#[test]
fn read_only_and_execute_never() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        m_hvc(w.m, DATA + 0x40);
        let va = |n: u64| 0x5000_0000 + n * 0x1000;
        let attrs = [
            d::AF | d::AP_READ_ONLY,                      // kernel r-x, user --x
            d::AF | d::AP_READ_ONLY | d::AP_USER | d::XN, // kernel r-x, user r--
            d::AF | d::AP_USER,                           // kernel rw-, user rwx
            d::AF | d::PXN,                               // kernel rw-, user --x
            d::AF | d::XN,                                // kernel rwx
        ];
        for (n, attrs) in attrs.into_iter().enumerate() {
            w.map(va(n as u64), DATA, attrs);
        }
        w.on();
        let text = 0x40;
        w.kernel_faults(STR, va(0), data(PERMISSION | 3 | WRITE));
        w.kernel_ok(LDR, va(0));
        w.kernel_ok(BR, va(0) + text);
        w.user_faults(LDR, va(0), user_data(PERMISSION | 3));
        w.user_ok(BR, va(0) + text);
        w.user_ok(LDR, va(1));
        w.kernel_ok(LDTR, va(1));
        w.kernel_faults(STTR, va(1), data(PERMISSION | 3 | WRITE));
        w.user_faults(STR, va(1), user_data(PERMISSION | 3 | WRITE));
        w.user_faults(BR, va(1), user_fetch(PERMISSION | 3));
        w.user_ok(STR, va(2));
        w.kernel_ok(STTR, va(2));
        w.user_ok(BR, va(2) + text);
        // What EL0 can write EL1 never executes.
        w.kernel_faults(BR, va(2), fetch(PERMISSION | 3));
        w.kernel_faults(BR, va(3), fetch(PERMISSION | 3));
        w.user_ok(BR, va(3) + text);
        w.kernel_ok(BR, va(4) + text);
        w.user_faults(BR, va(4), user_fetch(PERMISSION | 3));
        // DC IVAC needs write permission, and DC CVAC read permission, for which EL1 always has it.
        w.kernel_faults(DC_IVAC, va(0), data(PERMISSION | 3 | WRITE | CM));
        w.kernel_ok(DC_CVAC, va(0));
        // A failed store writes nothing back.
        w.kernel_faults(STR_POST, va(0), data(PERMISSION | 3 | WRITE));
        assert_eq!(w.m.x(0, 1), va(0));
        // WXN: what is writable is not executable.
        w.space.sctlr |= SCTLR_WXN;
        w.on();
        tlbi_all(&mut w);
        w.kernel_faults(BR, va(4), fetch(PERMISSION | 3));
        w.user_faults(BR, va(2), user_fetch(PERMISSION | 3));
        w.kernel_ok(BR, va(0) + text);
        w.user_ok(BR, va(3) + text);
    });
}

/// A lone HVC #1, in data, for branches.
fn m_hvc(m: &mut Machine, pa: u64) {
    m.code(pa, |ops| dynasm!(ops; .arch aarch64; hvc 1));
}

/// Runs TLBI VMALLE1; DSB; ISB.
fn tlbi_all(w: &mut World<'_>) {
    w.m.code(CODE, |ops| dynasm!(ops; .arch aarch64; tlbi vmalle1; dsb sy; isb; hvc 2));
    w.m.jump(0, CODE);
    w.m.expect_hvc(0, 2);
}

#[test]
fn hierarchical_permissions() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        for n in 0..4 {
            w.map(0x80_0000_0000 * (n + 1), DATA, d::AF | d::AP_USER | d::PXN);
        }
        let restrict = |w: &mut World<'_>, level, n: u64, bits| {
            w.low.restrict(&mut w.mem, level, 0x80_0000_0000 * n, bits).unwrap();
        };
        restrict(&mut w, 0, 1, d::AP_TABLE_READ_ONLY);
        restrict(&mut w, 1, 2, d::AP_TABLE_NO_USER);
        restrict(&mut w, 2, 3, d::XN_TABLE);
        w.on();
        w.kernel_faults(STR, 0x80_0000_0000, data(PERMISSION | 3 | WRITE));
        w.user_ok(LDR, 0x80_0000_0000);
        w.user_faults(LDR, 0x100_0000_0000, user_data(PERMISSION | 3));
        w.kernel_ok(STR, 0x100_0000_0000);
        w.user_faults(BR, 0x180_0000_0000, user_fetch(PERMISSION | 3));
        w.user_ok(STR, 0x180_0000_0000);
        w.user_ok(STR, 0x200_0000_0000);
    });
}

#[test]
fn address_size_and_external_aborts() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        // Tables beyond 44 bits, and tables where nothing is.
        let beyond = 1 << 45 | 3;
        let nowhere = 0x10_0000_0000 | 3;
        w.set(0, 0x80_0000_0000, beyond);
        w.set(1, 0x100_0000_0000, beyond);
        w.set(2, 0x180_0000_0000, beyond);
        w.set(0, 0x200_0000_0000, nowhere);
        w.set(1, 0x280_0000_0000, nowhere);
        w.set(2, 0x300_0000_0000, nowhere);
        // A page where nothing is, and the device.
        w.map(0x5000_0000, 0x10_0000_0000, d::AF);
        w.map(0x5000_1000, DEVICE, KERNEL | DEVICE_MEMORY);
        w.on();
        for n in 0..3 {
            let va = 0x80_0000_0000 * (n + 1) + 0x10;
            w.kernel_faults(LDR, va, data(n));
            w.kernel_faults(STR, va, data(n | WRITE));
            w.kernel_faults(BR, va, fetch(n));
            // The abort is the next level's: that is where the fetch was for.
            let va = 0x80_0000_0000 * (n + 4) + 0x10;
            w.kernel_faults(LDR, va, data(EXTERNAL_WALK | (n + 1)));
            w.user_faults(STR, va, user_data(EXTERNAL_WALK | (n + 1) | WRITE));
            w.kernel_faults(BR, va, fetch(EXTERNAL_WALK | (n + 1)));
        }
        w.kernel_faults(LDR, 0x5000_0008, data(EXTERNAL));
        w.kernel_faults(STR, 0x5000_0008, data(EXTERNAL | WRITE));
        w.kernel_faults(BR, 0x5000_0008, fetch(EXTERNAL));
        w.kernel_ok(LDR, 0x5000_1018);
        assert_eq!(w.m.x(0, 0), 0x18);
        w.kernel_ok(STR, 0x5000_1020);
        assert_eq!(w.m.board.accesses.len(), 2);
        assert_eq!(w.m.board.accesses[1].2, 0x20);
    });
}

#[test]
fn table_base_beyond_the_output_size() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        // The base of TTBR1 only, so that code goes on.
        w.space.ttbr1 = 1 << 45;
        w.on();
        w.kernel_faults(LDR, 0xffff_ff80_0000_0000, data(0));
        // The same base is in range for IPS = 48 bits, but this machine has only 44.
        w.space.tcr |= 5 << 32;
        w.on();
        w.kernel_faults(STR, 0xffff_ff80_0000_0000, data(WRITE));
        // With IPS = 32 bits the tables at 0x4180_0000 are in range.
        w.space.ttbr1 = 0x4180_0000;
        w.space.tcr &= !(7 << 32);
        w.map(0xffff_ff80_0000_0000, 1 << 32, KERNEL);
        w.on();
        w.kernel_faults(LDR, 0xffff_ff80_0000_0000, data(3));
    });
}

#[test]
fn alignment_faults() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        w.map(0x5000_0000, DATA, USER);
        w.map(0x5000_1000, DATA + 0x1000, USER);
        w.map(0x5000_2000, DATA, USER | DEVICE_MEMORY);
        w.on();
        let va = 0x5000_0000;
        w.kernel_ok(LDR, va + 1);
        w.kernel_ok(STR, va + 0xffc);
        w.kernel_faults(LDXR, va + 4, data(ALIGNMENT));
        w.kernel_faults(LDAR, va + 4, data(ALIGNMENT));
        w.user_faults(LDAR, va + 4, user_data(ALIGNMENT));
        // Device memory, and its alignment fault comes with permission: see the priorities in D8.16.
        w.kernel_faults(LDR, va + 0x2004, data(ALIGNMENT));
        w.kernel_faults(STR, va + 0x2004, data(ALIGNMENT | WRITE));
        w.kernel_ok(LDR_W, va + 0x2004);
        w.kernel_ok(LDP, va + 0x2008);
        w.kernel_faults(LDP, va + 0x200c, data(ALIGNMENT));
        // DC ZVA is not for Device memory.
        w.kernel_faults(DC_ZVA, va + 0x2000, data(ALIGNMENT | WRITE));
        // An access to an address that is misaligned and not mapped: the alignment of its type is checked first,
        // that of Device memory only once there is a translation.
        w.kernel_faults(LDXR, va + 0x8001, data(ALIGNMENT));
        w.kernel_faults(LDR, va + 0x8001, data(TRANSLATION | 3));
        w.space.sctlr |= SCTLR_A;
        w.on();
        w.kernel_faults(LDR, va + 4, data(ALIGNMENT));
        w.kernel_faults(LDP, va + 4, data(ALIGNMENT));
        w.kernel_ok(LDR_W, va + 4);
        w.kernel_faults(LDR, va + 0x8001, data(ALIGNMENT));
        w.user_faults(STR, va + 4, user_data(ALIGNMENT | WRITE));
        // Branches.
        let pc_alignment = 0x22 << 26 | 1 << 25;
        w.kernel_faults(BR, va + 2, pc_alignment);
    });
}

#[test]
fn accesses_across_pages() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        let va = 0x5000_0000;
        // Two pages that are not next to each other in memory, then a hole; and a read-only page behind a writable.
        w.map(va, DATA + 0x3000, KERNEL);
        w.map(va + 0x1000, DATA, KERNEL);
        w.map(va + 0x4000, DATA + 0x4000, KERNEL);
        w.map(va + 0x5000, DATA + 0x5000, KERNEL | d::AP_READ_ONLY);
        w.on();
        w.m.set_x(0, 0, 0x8877_6655_4433_2211);
        w.kernel_ok(STR, va + 0xffb);
        assert_eq!(w.m.peek(DATA + 0x3ff8) >> 24, 0x55_4433_2211);
        assert_eq!(w.m.peek(DATA), 0x88_7766);
        w.m.set_x(0, 0, 0);
        w.kernel_ok(LDR, va + 0xffb);
        assert_eq!(w.m.x(0, 0), 0x8877_6655_4433_2211);
        // FAR is the first byte that faults, and no byte has been stored before it. ELR is the instruction.
        let crossing = |w: &mut World<'_>, how, at, far, esr| {
            let want = Trap { vector: 0x200, esr, far, elr: how, spsr: 0x3c5 };
            assert_eq!(w.kernel(how, at), Some(want));
        };
        crossing(&mut w, LDR, va + 0x1ffc, va + 0x2000, data(TRANSLATION | 3));
        crossing(&mut w, STR, va + 0x1ffd, va + 0x2000, data(TRANSLATION | 3 | WRITE));
        assert_eq!(w.m.peek(DATA + 0xff8), 0);
        crossing(&mut w, STR, va + 0x4fff, va + 0x5000, data(PERMISSION | 3 | WRITE));
        crossing(&mut w, LDR, va - 1, va - 1, data(TRANSLATION | 2));
    });
}

#[test]
fn other_granules() {
    for (granule, va, l2) in
        [(Granule::G16K, 0x5000_0000, 0x5200_0000), (Granule::G64K, 0x5000_0000u64, 0x6000_0000u64)]
    {
        on_both(1, base(), |m| {
            let mut w = World::with(m, granule);
            w.map(va, DATA, KERNEL);
            w.map(0xffff_ff80_0000_0000, DATA, USER);
            w.map(0xffff_ff80_0001_0000, DATA, KERNEL & !d::AF);
            w.on();
            w.m.poke(DATA + 0x7ff8, 77);
            w.kernel_ok(LDR, va + 0x7ff8);
            assert_eq!(w.m.x(0, 0), 77);
            w.user_ok(LDR, 0xffff_ff80_0000_7ff8);
            assert_eq!(w.m.x(0, 0), 77);
            w.user_faults(LDR, va, user_data(PERMISSION | 3));
            w.kernel_faults(LDR, va + 0x1_0000, data(TRANSLATION | 3));
            w.kernel_faults(LDR, l2, data(TRANSLATION | 2));
            w.kernel_faults(STR, 0xffff_ff80_0001_0008, data(ACCESS_FLAG | 3 | WRITE));
        });
    }
}

#[test]
fn contiguous_pages() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        w.low.contiguous = true;
        w.low.map(&mut w.mem, 0x5001_0000, DATA, 0x1_0000, KERNEL).unwrap();
        w.on();
        for page in 0..16 {
            w.m.poke(DATA + page * 0x1000, page);
            w.kernel_ok(LDR, 0x5001_0000 + page * 0x1000);
            assert_eq!(w.m.x(0, 0), page);
        }
    });
}

#[test]
fn mmu_off() {
    on_both(1, base(), |m| {
        let mut w = World::new(m);
        // Data is Device-nGnRnE, so alignment is always checked; instructions may be anywhere in the output range.
        w.kernel_ok(LDR, DATA);
        w.kernel_faults(LDR, DATA + 4, data(ALIGNMENT));
        w.kernel_faults(DC_ZVA, DATA, data(ALIGNMENT | WRITE));
        w.kernel_ok(LDR, DEVICE + 8);
        assert_eq!(w.m.x(0, 0), 8);
        w.kernel_faults(LDR, 0x10_0000_0000, data(EXTERNAL));
        w.kernel_faults(BR, 0x10_0000_0000, fetch(EXTERNAL));
        // An address beyond the physical range is an address size fault at level 0.
        w.kernel_faults(LDR, 1 << 44, data(0));
        w.kernel_faults(STR, !7, data(WRITE));
        w.kernel_faults(BR, 1 << 44, fetch(0));
        // On, and off again: translations from before are not used.
        w.map(DATA, DATA + 0x1000, KERNEL);
        w.m.poke(DATA, 1);
        w.m.poke(DATA + 0x1000, 2);
        w.on();
        w.kernel_ok(LDR, DATA);
        assert_eq!(w.m.x(0, 0), 2);
        w.space.sctlr &= !1;
        w.on();
        w.kernel_ok(LDR, DATA);
        assert_eq!(w.m.x(0, 0), 1);
        w.space.sctlr |= 1;
        w.on();
        w.kernel_ok(LDR, DATA);
        assert_eq!(w.m.x(0, 0), 2);
    });
}
