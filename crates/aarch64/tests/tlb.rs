//! TLB maintenance: what is cached may be used until it is invalidated, and must not be afterwards.

mod bare;

use aarch64::Features;
use bare::*;
use dynasmrt::{DynasmApi, dynasm};
use pgtable::descriptor as d;
use pgtable::{Builder, Stage1};

const KERNEL: u64 = d::AF | d::SH_INNER | d::XN | d::PXN;
const TEXT: u64 = d::AF | d::SH_INNER | d::AP_USER | d::AP_READ_ONLY;
/// The page that tests look through.
const VA: u64 = 0x5000_0000;
const HIGH: u64 = 0xffff_ff80_1234_5000;
/// Routines, at fixed addresses: LDR X0, [X1]; and each TLBI with operand X2.
const LOAD: u64 = CODE + 0x1000;
const TLBI: u64 = CODE + 0x2000;
const SET_TTBR0: u64 = CODE + 0x3000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Vmalle1,
    Vae1,
    Aside1,
    Vaae1,
    Vale1,
    Vaale1,
    Vmalle1Is,
    Vae1Is,
    Aside1Is,
    Vaae1Is,
    Vale1Is,
    Vaale1Is,
}

use Op::*;

const ALL: [Op; 12] =
    [Vmalle1, Vae1, Aside1, Vaae1, Vale1, Vaale1, Vmalle1Is, Vae1Is, Aside1Is, Vaae1Is, Vale1Is, Vaale1Is];

fn tlbi(op: Op, ops: &mut Asm) {
    match op {
        Vmalle1 => dynasm!(ops; .arch aarch64; tlbi vmalle1),
        Vae1 => dynasm!(ops; .arch aarch64; tlbi vae1, x2),
        Aside1 => dynasm!(ops; .arch aarch64; tlbi aside1, x2),
        Vaae1 => dynasm!(ops; .arch aarch64; tlbi vaae1, x2),
        Vale1 => dynasm!(ops; .arch aarch64; tlbi vale1, x2),
        Vaale1 => dynasm!(ops; .arch aarch64; tlbi vaale1, x2),
        Vmalle1Is => dynasm!(ops; .arch aarch64; tlbi vmalle1is),
        Vae1Is => dynasm!(ops; .arch aarch64; tlbi vae1is, x2),
        Aside1Is => dynasm!(ops; .arch aarch64; tlbi aside1is, x2),
        Vaae1Is => dynasm!(ops; .arch aarch64; tlbi vaae1is, x2),
        Vale1Is => dynasm!(ops; .arch aarch64; tlbi vale1is, x2),
        Vaale1Is => dynasm!(ops; .arch aarch64; tlbi vaale1is, x2),
    }
}

/// Two pages of data, 1 and 2 in their first words; VA and HIGH can be mapped to either.
struct World<'a> {
    m: &'a mut Machine,
    mem: Ram,
    low: Builder,
    high: Builder,
    space: Space,
}

impl<'a> World<'a> {
    fn new(m: &'a mut Machine) -> Self {
        let mut mem = Ram(m.ram.clone());
        let mut cfg = Stage1 { tsz: 25, oas: 44, ..Stage1::default() };
        let mut low = Builder::stage1(&mut cfg, &mut mem, 0x4100_0000..0x4180_0000).unwrap();
        let ttbr0 = cfg.ttb;
        let high = Builder::stage1(&mut cfg, &mut mem, 0x4180_0000..0x4200_0000).unwrap();
        low.map(&mut mem, VECTORS, VECTORS, 0x1_0000, d::AF | d::SH_INNER | d::AP_READ_ONLY).unwrap();
        low.map(&mut mem, CODE, CODE, 0x1_0000, TEXT).unwrap();
        // ASIDs of 16 bits.
        let tcr = 25 | 25 << 16 | 0x3500_3500 | 2 << 30 | 4 << 32 | 1 << 36;
        let space = Space { ttbr0, ttbr1: cfg.ttb, tcr, mair: 0xff, sctlr: 0x30d0_1805 };
        m.code(LOAD, |ops| dynasm!(ops; .arch aarch64; ldr x0, [x1]; hvc 1));
        m.code(SET_TTBR0, |ops| dynasm!(ops; .arch aarch64; msr TTBR0_EL1, x2; isb; hvc 1));
        for (n, op) in ALL.into_iter().enumerate() {
            m.code(TLBI + n as u64 * 16, |ops| {
                tlbi(op, ops);
                dynasm!(ops; .arch aarch64; dsb sy; isb; hvc 1);
            });
        }
        for n in 0..4 {
            m.poke(DATA + n * 0x20_0000, n + 1);
            m.poke(DATA + n * 0x20_0000 + 0x1000, 0x100 + n);
        }
        let world = Self { m, mem, low, high, space };
        for cpu in 0..world.m.cluster.cpus() {
            world.m.set_translation(cpu, &space);
        }
        world
    }

    /// Maps a page to the page that holds `value`; 0 unmaps it. Nothing is invalidated.
    fn map(&mut self, va: u64, value: u64, attrs: u64) {
        let leaf = match value {
            0 => 0,
            n => (DATA + (n - 1) * 0x20_0000) | KERNEL | attrs | 3,
        };
        let tables = if va >> 63 == 1 { &mut self.high } else { &mut self.low };
        tables.set(&mut self.mem, 3, va, leaf).unwrap();
    }

    /// What vCPU `cpu` reads at `va`; 0 when it takes a Data Abort.
    #[track_caller]
    fn read(&mut self, cpu: usize, va: u64) -> u64 {
        self.m.set_x(cpu, 1, va);
        self.m.jump(cpu, LOAD);
        match self.m.until_hvc(cpu) {
            1 => self.m.x(cpu, 0),
            _ => {
                assert_eq!(self.m.cluster.core(cpu).sys.esr[1] >> 26, 0x25);
                0
            }
        }
    }

    fn call(&mut self, cpu: usize, at: u64, x2: u64) {
        self.m.set_x(cpu, 2, x2);
        self.m.jump(cpu, at);
        self.m.expect_hvc(cpu, 1);
    }

    fn tlbi(&mut self, cpu: usize, op: Op, asid: u64, va: u64) {
        let n = ALL.iter().position(|o| *o == op).unwrap() as u64;
        self.call(cpu, TLBI + n * 16, asid << 48 | va << 8 >> 20);
    }

    fn set_asid(&mut self, cpu: usize, asid: u64) {
        let ttbr = self.space.ttbr0 | asid << 48;
        self.call(cpu, SET_TTBR0, ttbr);
    }
}

#[test]
fn each_form_makes_a_change_visible() {
    on_both(1, Features::default(), |m| {
        let mut w = World::new(m);
        for asid in [0, 5, 0xfffe] {
            w.set_asid(0, asid);
            for (n, op) in ALL.into_iter().cycle().take(24).enumerate() {
                let (global, page) = (n < 12, [VA, HIGH][n % 2]);
                let ng = if global && !matches!(op, Aside1 | Aside1Is) { 0 } else { d::NG };
                w.map(page, 1, ng);
                w.tlbi(0, Vmalle1, 0, 0);
                assert_eq!(w.read(0, page), 1);
                w.map(page, 2, ng);
                assert_eq!(w.read(0, page), 1, "the TLB forgot by itself");
                w.tlbi(0, op, asid, page);
                assert_eq!(w.read(0, page), 2, "{op:?} ASID {asid:#x} nG {ng:#x} {page:#x}");
                // Unmapping and mapping again: what faults is never cached.
                w.map(page, 0, ng);
                w.tlbi(0, op, asid, page);
                assert_eq!(w.read(0, page), 0);
                w.map(page, 3, ng);
                assert_eq!(w.read(0, page), 3);
            }
        }
    });
}

#[test]
fn what_is_not_named_stays() {
    // The architecture would allow more to go; a TLB that flushes too much would hide a guest's missing TLBI.
    on_both(1, Features::default(), |m| {
        let mut w = World::new(m);
        w.set_asid(0, 5);
        w.map(VA, 1, d::NG);
        w.map(VA + 0x1000, 2, 0);
        assert_eq!((w.read(0, VA), w.read(0, VA + 0x1000)), (1, 2));
        w.map(VA, 3, d::NG);
        w.map(VA + 0x1000, 4, 0);
        for op in [Vae1, Vale1, Aside1, Vae1Is, Aside1Is] {
            w.tlbi(0, op, 6, VA);
        }
        w.tlbi(0, Vaae1, 0, VA + 0x2000);
        w.tlbi(0, Aside1, 5, 0);
        assert_eq!(w.read(0, VA + 0x1000), 2, "global entries have no ASID");
        assert_eq!(w.read(0, VA), 3);
        w.tlbi(0, Vae1, 77, VA + 0x1000);
        assert_eq!(w.read(0, VA + 0x1000), 4, "TLBI VAE1 of a global entry, whatever the ASID");
    });
}

#[test]
fn asids_keep_address_spaces_apart() {
    on_both(1, Features::default(), |m| {
        let mut w = World::new(m);
        // Tables of their own for each of three ASIDs, with the same page in each, and one that all see.
        let mut ttbr = [0; 3];
        let mut tables = Vec::new();
        for (n, ttbr) in ttbr.iter_mut().enumerate() {
            let start = 0x41c0_0000 + n as u64 * 0x10_0000;
            let mut cfg = Stage1 { tsz: 25, oas: 44, ..Stage1::default() };
            let mut low = Builder::stage1(&mut cfg, &mut w.mem, start..start + 0x10_0000).unwrap();
            low.map(&mut w.mem, VECTORS, VECTORS, 0x1_0000, d::AF | d::SH_INNER | d::AP_READ_ONLY).unwrap();
            low.map(&mut w.mem, CODE, CODE, 0x1_0000, TEXT).unwrap();
            low.map(&mut w.mem, VA, DATA + n as u64 * 0x20_0000, 0x1000, KERNEL | d::NG).unwrap();
            low.map(&mut w.mem, VA + 0x1000, DATA + 0x60_0000, 0x1000, KERNEL).unwrap();
            *ttbr = cfg.ttb | (n as u64 + 1) << 48;
            tables.push(low);
        }
        for n in [0, 1, 2, 1, 0, 2, 2, 0] {
            w.call(0, SET_TTBR0, ttbr[n]);
            assert_eq!((w.read(0, VA), w.read(0, VA + 0x1000)), (n as u64 + 1, 4));
        }
        // A global page of the upper half, and one that is not: TTBR1 stays, the ASID is TTBR0's.
        w.map(HIGH, 1, 0);
        w.map(HIGH + 0x1000, 2, d::NG);
        for &ttbr in &ttbr {
            w.call(0, SET_TTBR0, ttbr);
            assert_eq!((w.read(0, HIGH), w.read(0, HIGH + 0x1000)), (1, 2));
        }
        // Present under ASID 3: it sees what is cached, another walks.
        w.map(HIGH + 0x1000, 3, d::NG);
        assert_eq!(w.read(0, HIGH + 0x1000), 2);
        w.call(0, SET_TTBR0, ttbr[0]);
        assert_eq!(w.read(0, HIGH + 0x1000), 3);
    });
}

#[test]
fn more_asids_than_the_tlb_tells_apart() {
    on_both(1, Features::default(), |m| {
        let mut w = World::new(m);
        for asid in 0..3000 {
            w.set_asid(0, asid);
            let value = 1 + asid % 4;
            w.map(VA, value, d::NG);
            w.tlbi(0, if asid % 3 == 0 { Aside1 } else { Vale1 }, asid, VA);
            assert_eq!(w.read(0, VA), value);
        }
    });
}

#[test]
fn eight_bit_asids() {
    on_both(1, Features::default(), |m| {
        let mut w = World::new(m);
        w.space.tcr &= !(1 << 36);
        let space = w.space;
        w.m.set_translation(0, &space);
        w.set_asid(0, 0x105);
        w.map(VA, 1, d::NG);
        assert_eq!(w.read(0, VA), 1);
        w.map(VA, 2, d::NG);
        w.tlbi(0, Aside1, 0xff05, VA);
        assert_eq!(w.read(0, VA), 2, "only the low eight bits count");
    });
}

#[test]
fn the_asid_of_ttbr1() {
    on_both(1, Features::default(), |m| {
        let mut w = World::new(m);
        w.space.tcr |= 1 << 22; // A1
        w.space.ttbr1 |= 9 << 48;
        let space = w.space;
        w.m.set_translation(0, &space);
        w.set_asid(0, 3);
        w.map(VA, 1, d::NG);
        assert_eq!(w.read(0, VA), 1);
        w.map(VA, 2, d::NG);
        w.tlbi(0, Aside1, 3, VA);
        assert_eq!(w.read(0, VA), 1);
        w.tlbi(0, Aside1, 9, VA);
        assert_eq!(w.read(0, VA), 2);
    });
}

#[test]
fn any_address_in_a_block_names_all_of_it() {
    on_both(1, Features::default(), |m| {
        let mut w = World::new(m);
        // A 2 MiB block, looked at in many places, then replaced and invalidated by one address.
        let set = |w: &mut World<'_>, level, va, leaf: u64| {
            w.low.set(&mut w.mem, level, va, leaf).map(drop).unwrap()
        };
        for (level, va, size) in [(2, 0x6000_0000u64, 0x20_0000u64), (1, 0x10_0000_0000, 0x4000_0000)] {
            let (a, b) = if level == 2 { (DATA, DATA + 0x20_0000) } else { (RAM, RAM - 0x4000_0000) };
            set(&mut w, level, va, a | KERNEL | 1);
            let places = [0, 0x1000, size / 2, size - 0x1000].map(|offset| va + offset);
            let before = places.map(|va| w.read(0, va));
            set(&mut w, level, va, b | KERNEL | 1);
            assert_eq!(places.map(|va| w.read(0, va)), before);
            w.tlbi(0, Vale1Is, 0, va + 0x7000);
            let after = places.map(|va| w.read(0, va));
            match level {
                2 => assert_eq!((&before[..2], &after[..2]), (&[1, 0x100][..], &[2, 0x101][..])),
                // Nothing is below RAM.
                _ => assert_eq!(after, [0; 4]),
            }
        }
        // A block split into pages, and pages joined into a block.
        let va = 0x7000_0000;
        set(&mut w, 2, va, DATA | KERNEL | 1);
        assert_eq!((w.read(0, va), w.read(0, va + 0x1000)), (1, 0x100));
        set(&mut w, 2, va, 0);
        w.tlbi(0, Vae1Is, 0, va + 0x1f_f000);
        assert_eq!((w.read(0, va), w.read(0, va + 0x1000)), (0, 0));
        w.map(va, 3, 0);
        assert_eq!((w.read(0, va), w.read(0, va + 0x1000)), (3, 0));
    });
}

#[test]
fn inner_shareable_forms_reach_the_other_vcpu() {
    on_both(2, Features::default(), |m| {
        let mut w = World::new(m);
        for op in ALL {
            let everywhere = ALL.iter().position(|o| *o == op).unwrap() >= 6;
            let ng = if matches!(op, Aside1 | Aside1Is) { d::NG } else { 0 };
            for page in [VA, HIGH] {
                w.map(page, 1, ng);
                w.tlbi(0, Vmalle1Is, 0, 0);
                assert_eq!((w.read(0, page), w.read(1, page)), (1, 1));
                w.map(page, 2, ng);
                w.tlbi(0, op, 0, page);
                assert_eq!((w.read(0, page), w.read(1, page)), (2, if everywhere { 2 } else { 1 }), "{op:?}");
            }
        }
    });
}

#[test]
fn permissions_are_cached_and_invalidated() {
    on_both(1, Features::default(), |m| {
        let mut w = World::new(m);
        let store = CODE + 0x4000;
        w.m.code(store, |ops| dynasm!(ops; .arch aarch64; str x0, [x1]; hvc 1));
        w.map(VA, 1, d::AP_READ_ONLY);
        assert_eq!(w.read(0, VA), 1);
        w.m.set_x(0, 1, VA);
        w.m.jump(0, store);
        assert_eq!(w.m.expect_trap(0).esr, 0x9600_004f);
        // More permission needs no invalidation to be seen in the end: here at once.
        w.map(VA, 1, 0);
        w.m.jump(0, store);
        w.m.expect_hvc(0, 1);
        // Less does.
        w.map(VA, 1, d::AP_READ_ONLY);
        w.tlbi(0, Vale1, 0, VA);
        w.m.set_x(0, 1, VA);
        w.m.jump(0, store);
        assert_eq!(w.m.expect_trap(0).esr, 0x9600_004f);
    });
}

#[test]
fn address_translation_instructions() {
    on_both(1, Features::default(), |m| {
        let mut w = World::new(m);
        let at: [u64; 4] = [0, 1, 2, 3].map(|n| CODE + 0x5000 + n * 0x20);
        w.m.code(at[0], |ops| dynasm!(ops; .arch aarch64; at s1e1r, x1; isb; mrs x0, PAR_EL1; hvc 1));
        w.m.code(at[1], |ops| dynasm!(ops; .arch aarch64; at s1e1w, x1; isb; mrs x0, PAR_EL1; hvc 1));
        w.m.code(at[2], |ops| dynasm!(ops; .arch aarch64; at s1e0r, x1; isb; mrs x0, PAR_EL1; hvc 1));
        w.m.code(at[3], |ops| dynasm!(ops; .arch aarch64; at s1e0w, x1; isb; mrs x0, PAR_EL1; hvc 1));
        let par = |w: &mut World<'_>, n: usize, va: u64| {
            w.m.set_x(0, 1, va);
            w.m.jump(0, at[n]);
            w.m.expect_hvc(0, 1);
            // NS (bit 9) is UNKNOWN; bit 11 is RES1.
            let par = w.m.x(0, 0);
            assert_eq!(par >> 11 & 1, 1);
            par & !(1 << 9)
        };
        const RES1: u64 = 1 << 11;
        let good = |pa: u64| 0xff << 56 | pa | RES1 | 3 << 7;
        let bad = |status: u64| status << 1 | RES1 | 1;
        w.map(VA, 2, d::AP_READ_ONLY);
        w.map(VA + 0x1000, 3, d::AP_USER);
        let read_only = [good(DATA + 0x20_0000), bad(0x0f), bad(0x0f), bad(0x0f)];
        assert_eq!([0, 1, 2, 3].map(|n| par(&mut w, n, VA + 0x123)), read_only);
        assert_eq!([0, 1, 2, 3].map(|n| par(&mut w, n, VA + 0x1ff8)), [good(DATA + 0x40_0000); 4]);
        assert_eq!([0, 1, 2, 3].map(|n| par(&mut w, n, VA + 0x2000)), [bad(0x07); 4]);
        assert_eq!([0, 3].map(|n| par(&mut w, n, 1 << 50)), [bad(0x04); 2]);
        // An abort of the walk itself is taken.
        w.low.set(&mut w.mem, 1, 0x20_0000_0000, 0x10_0000_0003).unwrap();
        w.m.set_x(0, 1, 0x20_0000_0000);
        w.m.jump(0, at[0]);
        let trap = w.m.expect_trap(0);
        assert_eq!((trap.esr, trap.far), (0x9600_0156, 0x20_0000_0000));
    });
}
