//! Tests of the MMU with page tables built by hand.

use super::*;
use crate::config::Features;
use crate::exception::set_level;
use crate::testing::attr::*;
use crate::testing::{self, RAM, Rig};

const LOW: u64 = 0x0000_1234_5678_9000;
const HIGH: u64 = 0xffff_8000_0001_2000;
const PAGE: u64 = RAM + 0x1_0000;

fn get<T: Prim>(rig: &mut Rig, va: u64, kind: AccessKind) -> Result<T, Fault> {
    let (core, mut ctx) = rig.parts();
    load(core, &mut ctx, va, kind)
}

fn put<T: Prim>(rig: &mut Rig, va: u64, value: T) -> Result<(), Fault> {
    let (core, mut ctx) = rig.parts();
    store(core, &mut ctx, va, value, AccessKind::Normal)
}

fn read(rig: &mut Rig, va: u64) -> Result<u64, Fault> {
    get(rig, va, AccessKind::Normal)
}

/// The last exception: ESR_EL1 and FAR_EL1.
fn fault(rig: &Rig) -> (u64, u64) {
    (rig.core.sys.esr[1], rig.core.sys.far[1])
}

/// ESR_EL1 of a Data Abort taken from EL1.
fn abort(dfsc: u64, write: bool) -> u64 {
    0x25 << 26 | 1 << 25 | u64::from(write) << 6 | dfsc
}

/// Back to where a fault was taken from: these tests are about many of them.
fn back(rig: &mut Rig, el: u8) {
    set_level(&mut rig.core, el, el != 0);
}

fn tlbi(rig: &mut Rig, op2: u16, operand: u64) {
    assert_eq!(rig.system(0, 8, 7, op2, operand), crate::core::Flow::Sync);
}

#[test]
fn loads_and_stores_of_every_size() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL);
    for round in 0..2 {
        put(&mut rig, LOW + 0x10, 0x0011_2233_4455_6677_8899_aabb_ccdd_eeffu128).unwrap();
        assert_eq!(read(&mut rig, LOW + 0x10), Ok(0x8899_aabb_ccdd_eeff), "round {round}");
        assert_eq!(get(&mut rig, LOW + 0x11, AccessKind::Normal), Ok(0xeeu8));
        assert_eq!(get(&mut rig, LOW + 0x13, AccessKind::Normal), Ok(0xbbccu16));
        assert_eq!(get(&mut rig, LOW + 0x15, AccessKind::Normal), Ok(0x7788_99aau32));
        assert_eq!(
            get(&mut rig, LOW + 0x10, AccessKind::Normal),
            Ok(0x0011_2233_4455_6677_8899_aabb_ccdd_eeffu128)
        );
    }
}

#[test]
fn translation_faults_report_level_and_address() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL);
    for (va, level) in [(LOW + 0x1000, 3), (LOW + (1 << 21), 2), (LOW + (1 << 30), 1), (LOW + (1 << 39), 0)] {
        assert_eq!(read(&mut rig, va | 5), Err(Fault));
        assert_eq!(fault(&rig), (abort(4 + level, false), va | 5));
        assert_eq!(put(&mut rig, va | 5, 0u8), Err(Fault));
        assert_eq!(fault(&rig), (abort(4 + level, true), va | 5));
    }
    // Not canonical, and disabled walks.
    assert_eq!(read(&mut rig, 0x0100_0000_0000_0000), Err(Fault));
    assert_eq!(fault(&rig), (abort(4, false), 0x0100_0000_0000_0000));
    let tcr = rig.get("TCR_EL1").unwrap();
    rig.set("TCR_EL1", tcr | 1 << 7);
    assert_eq!(read(&mut rig, LOW), Err(Fault));
    assert_eq!(fault(&rig), (abort(4, false), LOW));
}

#[test]
fn the_exception_is_entered() {
    let mut rig = Rig::with_mmu();
    rig.core.set_pc(0x1000);
    rig.core.nzcv = 0x6000_0000;
    rig.core.pstate.daif = 0x80;
    rig.core.r[usize::from(crate::core::SP)] = 0x111;
    rig.core.sys.sp[0] = 0x222;
    assert_eq!(read(&mut rig, LOW), Err(Fault));
    assert_eq!(rig.core.pc, 0xffff_0000_0000_0200);
    assert_eq!((rig.core.sys.elr[1], rig.core.sys.spsr[1]), (0x1000, 0x6000_0085));
    assert_eq!(rig.core.pstate.daif, 0x3c0);
    // From EL1 with SP_EL0, and from EL0.
    set_level(&mut rig.core, 1, false);
    assert_eq!(rig.core.r[usize::from(crate::core::SP)], 0x222);
    assert_eq!(read(&mut rig, LOW), Err(Fault));
    assert_eq!((rig.core.pc, rig.core.sys.spsr[1]), (0xffff_0000_0000_0000, 0x6000_03c4));
    assert_eq!(rig.core.r[usize::from(crate::core::SP)], 0x111);
    set_level(&mut rig.core, 0, false);
    assert_eq!(read(&mut rig, LOW), Err(Fault));
    assert_eq!((rig.core.pc, rig.core.sys.spsr[1]), (0xffff_0000_0000_0400, 0x6000_03c0));
    assert_eq!(rig.core.sys.esr[1], 0x24 << 26 | 1 << 25 | 4);
}

#[test]
fn permissions() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL | READ_ONLY);
    rig.map(LOW + 0x1000, PAGE, KERNEL | USER);
    rig.map(LOW + 0x2000, PAGE, KERNEL & !AF);
    assert!(read(&mut rig, LOW).is_ok());
    assert_eq!(put(&mut rig, LOW + 8, 0u64), Err(Fault));
    assert_eq!(fault(&rig), (abort(0xf, true), LOW + 8));
    assert_eq!(get::<u8>(&mut rig, LOW, AccessKind::Unpriv), Err(Fault));
    assert_eq!(fault(&rig), (abort(0xf, false), LOW));
    assert!(get::<u8>(&mut rig, LOW + 0x1000, AccessKind::Unpriv).is_ok());
    assert_eq!(read(&mut rig, LOW + 0x2000), Err(Fault));
    assert_eq!(fault(&rig), (abort(0xb, false), LOW + 0x2000));
    back(&mut rig, 0);
    assert!(put(&mut rig, LOW + 0x1000, 1u32).is_ok());
    assert_eq!(read(&mut rig, LOW), Err(Fault));
    assert_eq!(fault(&rig), (0x24 << 26 | 1 << 25 | 0xf, LOW));
    // What EL1 cached is of no use to EL0, and a widened permission needs no invalidation.
    back(&mut rig, 1);
    assert!(read(&mut rig, LOW).is_ok());
    rig.map(LOW, PAGE, KERNEL);
    assert!(put(&mut rig, LOW, 0u64).is_ok());
}

#[test]
fn pan_covers_what_el0_can_reach() {
    let mut rig = Rig::with_mmu_and(Features { pan: true, ..Features::default() });
    rig.map(LOW, PAGE, KERNEL | USER);
    rig.map(HIGH, PAGE, KERNEL);
    assert!(read(&mut rig, LOW).is_ok());
    rig.set("PAN", 1 << 22);
    assert_eq!(rig.get("PAN"), Ok(1 << 22));
    assert!(get::<u64>(&mut rig, LOW, AccessKind::Unpriv).is_ok());
    assert!(read(&mut rig, HIGH).is_ok());
    assert_eq!(read(&mut rig, LOW), Err(Fault));
    assert_eq!(fault(&rig).0, abort(0xf, false));
    assert_ne!(rig.core.sys.spsr[1] & 1 << 22, 0);
    // SPAN is 0: exceptions set PAN.
    rig.set("PAN", 0);
    assert_eq!(read(&mut rig, LOW + 0x1000), Err(Fault));
    assert!(rig.core.pstate.pan);
}

#[test]
fn stale_translations_stay_until_invalidated() {
    let mut rig = Rig::with_mmu();
    for (op2, operand, hit) in [
        (0, 0, true),
        (1, 7 << 48 | LOW >> 12, true),
        (1, 8 << 48 | LOW >> 12, false),
        (1, 7 << 48 | (LOW + 0x1000) >> 12, false),
        (2, 7 << 48, true),
        (2, 8 << 48, false),
        (3, LOW >> 12, true),
        (5, 7 << 48 | LOW >> 12, true),
        (5, 8 << 48 | LOW >> 12, false),
        (7, 8 << 48 | LOW >> 12, true),
    ] {
        tlbi(&mut rig, 0, 0);
        let ttbr = rig.core.sys.ttbr0_el1 & 0xffff_ffff_ffff;
        rig.set("TTBR0_EL1", ttbr | 7 << 48);
        rig.map(LOW, PAGE, KERNEL | NG);
        rig.write64(PAGE, 0xabc);
        assert_eq!(read(&mut rig, LOW), Ok(0xabc));
        rig.unmap(LOW);
        assert_eq!(read(&mut rig, LOW), Ok(0xabc), "fast");
        rig.core.mmu.fast.drop_all();
        assert_eq!(read(&mut rig, LOW), Ok(0xabc), "slow");
        tlbi(&mut rig, op2, operand);
        assert_eq!(read(&mut rig, LOW).is_err(), hit, "TLBI {op2} {operand:#x}");
        back(&mut rig, 1);
    }
}

#[test]
fn address_spaces_are_kept_apart() {
    let mut rig = Rig::with_mmu();
    let (a, b) = (rig.table() | 1 << 48, rig.table() | 2 << 48);
    rig.write64(PAGE, 1);
    rig.write64(PAGE + 0x1000, 2);
    rig.set("TTBR0_EL1", a);
    rig.map(LOW, PAGE, KERNEL | NG);
    rig.set("TTBR0_EL1", b);
    rig.map(LOW, PAGE + 0x1000, KERNEL | NG);
    rig.map(HIGH, PAGE, KERNEL);
    rig.map(HIGH + 0x40_3000, PAGE, KERNEL | NG);
    for _ in 0..3 {
        for (ttbr, value) in [(a, 1), (b, 2)] {
            rig.set("TTBR0_EL1", ttbr);
            assert_eq!(read(&mut rig, LOW), Ok(value));
            assert_eq!(read(&mut rig, HIGH), Ok(1));
        }
    }
    // A global translation serves every ASID, one that is bound to an ASID only that.
    rig.set("TTBR0_EL1", a);
    assert!(read(&mut rig, HIGH + 0x40_3000).is_ok());
    rig.unmap(HIGH);
    rig.unmap(HIGH + 0x40_3000);
    assert!(read(&mut rig, HIGH + 0x40_3000).is_ok());
    rig.set("TTBR0_EL1", b);
    assert_eq!(read(&mut rig, HIGH), Ok(1));
    assert!(read(&mut rig, HIGH + 0x40_3000).is_err());
    // Invalidation of ASID 1 leaves ASID 2 and what is global.
    rig.unmap(LOW);
    tlbi(&mut rig, 2, 1 << 48);
    assert_eq!(read(&mut rig, LOW), Ok(2));
    assert_eq!(read(&mut rig, HIGH), Ok(1));
    tlbi(&mut rig, 2, 2 << 48);
    assert_eq!(read(&mut rig, HIGH), Ok(1));
    assert!(read(&mut rig, LOW).is_err());
    // TLBI VAE1 reaches a global translation whatever its ASID.
    tlbi(&mut rig, 1, 99 << 48 | HIGH << 8 >> 20);
    assert!(read(&mut rig, HIGH).is_err());
}

#[test]
fn more_address_spaces_than_slots() {
    let mut rig = Rig::with_mmu();
    let root = rig.core.sys.ttbr0_el1;
    rig.map(LOW, PAGE, KERNEL | NG);
    for asid in 0..3000u64 {
        rig.set("TTBR0_EL1", root | (asid % 1500) << 48);
        assert!(read(&mut rig, LOW).is_ok());
    }
    rig.unmap(LOW);
    assert!(read(&mut rig, LOW).is_ok());
    rig.set("TTBR0_EL1", root | 0xffff << 48);
    assert!(read(&mut rig, LOW).is_err());
}

#[test]
fn eight_bit_asids() {
    let mut rig = Rig::with_mmu();
    let tcr = rig.get("TCR_EL1").unwrap();
    rig.set("TCR_EL1", tcr & !(1 << 36));
    let root = rig.core.sys.ttbr0_el1;
    rig.set("TTBR0_EL1", root | 0x0105 << 48);
    rig.map(LOW, PAGE, KERNEL | NG);
    assert!(read(&mut rig, LOW).is_ok());
    rig.unmap(LOW);
    rig.set("TTBR0_EL1", root | 0x0205 << 48);
    assert!(read(&mut rig, LOW).is_ok());
    tlbi(&mut rig, 2, 0x0305 << 48);
    assert!(read(&mut rig, LOW).is_err());
}

#[test]
fn blocks_go_as_a_whole() {
    for (level, size) in [(2, 1u64 << 21), (1, 1 << 30)] {
        let mut rig = Rig::with_mmu();
        let va = HIGH & !(size - 1);
        let root = rig.core.sys.ttbr1_el1;
        rig.describe(root, va, level, RAM & !(size - 1) | KERNEL | 1);
        let inside = |offset: u64| va + (RAM & (size - 1)) + offset;
        rig.write64(RAM + 0x5008, 55);
        assert_eq!(read(&mut rig, inside(0x5008)), Ok(55));
        assert!(read(&mut rig, inside(0x1_9000)).is_ok());
        rig.describe(root, va, level, 0);
        tlbi(&mut rig, 3, inside(0x3000) << 8 >> 20);
        assert!(read(&mut rig, inside(0x5008)).is_err());
        assert_eq!(fault(&rig).0, abort(4 + u64::from(level), false));
        assert!(read(&mut rig, inside(0x1_9000)).is_err());
    }
}

#[test]
fn larger_granules() {
    for (tg0, bits) in [(1u64, 16u32), (2, 14)] {
        let mut rig = Rig::with_mmu();
        let tcr = rig.get("TCR_EL1").unwrap();
        // 36 bits of input: two levels with 16 and with 64 KiB.
        rig.set("TCR_EL1", tcr & !0xc03f | tg0 << 14 | 28);
        let (top, bottom) = (RAM + 0x60_0000, RAM + 0x68_0000);
        rig.set("TTBR0_EL1", top);
        let va = 5u64 << bits;
        rig.write64(top, bottom | 3);
        rig.write64(bottom + 5 * 8, (RAM + 0x10_0000) | KERNEL | 3);
        rig.write64(RAM + 0x10_3008, 77);
        assert_eq!(read(&mut rig, va + 0x3008), Ok(77), "{bits}");
        assert!(read(&mut rig, va).is_ok());
        assert!(read(&mut rig, va + (1 << bits)).is_err());
        assert_eq!(fault(&rig).0, abort(7, false));
        rig.write64(bottom + 5 * 8, 0);
        assert!(read(&mut rig, va + 0x3008).is_ok());
        tlbi(&mut rig, 3, va >> 12);
        assert!(read(&mut rig, va + 0x3008).is_err());
        assert!(read(&mut rig, va).is_err());
    }
}

#[test]
fn accesses_across_pages() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL);
    rig.map(LOW + 0x1000, PAGE + 0x4000, KERNEL);
    let edge = LOW + 0xffd;
    put(&mut rig, edge, 0x1122_3344_5566_7788u64).unwrap();
    assert_eq!(read(&mut rig, edge), Ok(0x1122_3344_5566_7788));
    assert_eq!(rig.read64(PAGE + 0xff8) >> 40, 0x66_7788);
    assert_eq!(rig.read64(PAGE + 0x4000), 0x11_2233_4455);
    // Nothing is stored unless all can be, and the address is that of the first byte that faults.
    rig.map(LOW + 0x1000, PAGE + 0x4000, KERNEL | READ_ONLY);
    tlbi(&mut rig, 0, 0);
    assert_eq!(put(&mut rig, edge, 0u64), Err(Fault));
    assert_eq!(fault(&rig), (abort(0xf, true), LOW + 0x1000));
    assert_eq!(read(&mut rig, edge), Ok(0x1122_3344_5566_7788));
    assert_eq!(read(&mut rig, LOW - 1), Err(Fault));
    assert_eq!(fault(&rig), (abort(7, false), LOW - 1));
    assert_eq!(get::<u64>(&mut rig, edge, AccessKind::Ordered), Err(Fault));
    assert_eq!(fault(&rig), (abort(0x21, false), edge));
}

#[test]
fn alignment() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL);
    assert!(read(&mut rig, LOW + 1).is_ok());
    for kind in [AccessKind::Ordered, AccessKind::Exclusive, AccessKind::Atomic] {
        assert_eq!(get::<u32>(&mut rig, LOW + 2, kind), Err(Fault));
        assert_eq!(fault(&rig), (abort(0x21, false), LOW + 2));
        assert!(get::<u16>(&mut rig, LOW + 2, kind).is_ok());
    }
    let sctlr = rig.get("SCTLR_EL1").unwrap();
    rig.set("SCTLR_EL1", sctlr | sctlr::A);
    assert_eq!(read(&mut rig, LOW + 1), Err(Fault));
    assert_eq!(fault(&rig), (abort(0x21, false), LOW + 1));
    assert!(read(&mut rig, LOW + 8).is_ok());
    assert_eq!(read(&mut rig, LOW + 9), Err(Fault));
}

#[test]
fn devices() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, testing::DEVICE, KERNEL | DEVICE);
    rig.map(LOW + 0x1000, 0x0a00_0000, KERNEL | DEVICE);
    rig.map(LOW + 0x2000, testing::DEVICE, KERNEL);
    put(&mut rig, LOW + 4, 0xdead_beefu32).unwrap();
    put(&mut rig, LOW + 0x10, 1u128 << 64 | 2).unwrap();
    assert_eq!(
        rig.board.writes,
        [
            (testing::DEVICE + 4, 4, 0xdead_beef),
            (testing::DEVICE + 0x10, 8, 2),
            (testing::DEVICE + 0x18, 8, 1)
        ]
    );
    assert_eq!(get(&mut rig, LOW + 3, AccessKind::Normal), Ok(3u8));
    assert_eq!(rig.board.reads, [(testing::DEVICE + 3, 1)]);
    assert_eq!(get::<u32>(&mut rig, LOW + 2, AccessKind::Normal), Err(Fault));
    assert_eq!(fault(&rig), (abort(0x21, false), LOW + 2));
    assert_eq!(put(&mut rig, LOW + 0x1008, 0u32), Err(Fault));
    assert_eq!(fault(&rig), (abort(0x10, true), LOW + 0x1008));
    assert_eq!(get::<u32>(&mut rig, LOW, AccessKind::Exclusive), Err(Fault));
    assert_eq!(fault(&rig), (abort(0x35, false), LOW));
    // Normal memory that is not RAM: unaligned accesses come byte by byte.
    rig.board.reads.clear();
    assert!(get::<u16>(&mut rig, LOW + 0x2001, AccessKind::Normal).is_ok());
    assert_eq!(rig.board.reads, [(testing::DEVICE + 1, 1), (testing::DEVICE + 2, 1)]);
    // An Alignment fault for the memory type comes before a Permission fault.
    rig.map(LOW + 0x4000, PAGE, KERNEL | DEVICE | READ_ONLY);
    assert_eq!(put(&mut rig, LOW + 0x4001, 0u32), Err(Fault));
    assert_eq!(fault(&rig).0, abort(0x21, true));
    assert_eq!(put(&mut rig, LOW + 0x4004, 0u32), Err(Fault));
    assert_eq!(fault(&rig).0, abort(0xf, true));
    // RAM as Device memory must be aligned, too.
    rig.map(LOW + 0x3000, PAGE, KERNEL | DEVICE);
    assert!(read(&mut rig, LOW + 0x3008).is_ok());
    assert_eq!(read(&mut rig, LOW + 0x3001), Err(Fault));
    assert_eq!(fault(&rig).0, abort(0x21, false));
}

#[test]
fn the_mmu_off() {
    let mut rig = Rig::new(Features::default());
    put(&mut rig, PAGE, 9u64).unwrap();
    assert_eq!(read(&mut rig, PAGE), Ok(9));
    assert_eq!(read(&mut rig, PAGE + 1), Err(Fault));
    assert_eq!(fault(&rig), (abort(0x21, false), PAGE + 1));
    assert_eq!(read(&mut rig, 1 << 44), Err(Fault));
    assert_eq!(fault(&rig), (abort(0, false), 1 << 44));
    let (core, mut ctx) = rig.parts();
    core.set_pc(RAM + 0x18);
    assert_eq!(fetch(core, &mut ctx), Ok(RAM + 0x18));
}

#[test]
fn fetches() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL & !UXN | USER | READ_ONLY | PXN);
    rig.map(HIGH, PAGE, KERNEL);
    rig.map(HIGH + 0x1000, 0x0a00_0000, KERNEL);
    let mut go = |el: u8, pc: u64| {
        back(&mut rig, el);
        rig.core.set_pc(pc);
        let (core, mut ctx) = rig.parts();
        let result = fetch(core, &mut ctx);
        (result, rig.core.sys.esr[1], rig.core.sys.far[1])
    };
    for _ in 0..2 {
        assert_eq!(go(1, HIGH + 0x24).0, Ok(PAGE + 0x24));
        assert_eq!(go(0, LOW + 0x24).0, Ok(PAGE + 0x24));
        assert_eq!(go(1, LOW + 0x24), (Err(Fault), 0x21 << 26 | 1 << 25 | 0xf, LOW + 0x24));
        assert_eq!(go(0, HIGH + 0x24), (Err(Fault), 0x20 << 26 | 1 << 25 | 0xf, HIGH + 0x24));
        assert_eq!(go(1, HIGH + 0x26), (Err(Fault), 0x22 << 26 | 1 << 25, HIGH + 0x26));
        assert_eq!(go(1, HIGH + 0x1000), (Err(Fault), 0x21 << 26 | 1 << 25 | 0x10, HIGH + 0x1000));
        assert_eq!(go(1, HIGH + 0x2000), (Err(Fault), 0x21 << 26 | 1 << 25 | 7, HIGH + 0x2000));
    }
    rig.core.pstate.il = true;
    rig.core.set_pc(HIGH);
    let (core, mut ctx) = rig.parts();
    assert_eq!(fetch(core, &mut ctx), Err(Fault));
    assert_eq!(rig.core.sys.esr[1], 0x0e << 26 | 1 << 25);
    assert_ne!(rig.core.sys.spsr[1] & 1 << 20, 0);
}

#[test]
fn writable_is_not_executable_with_wxn() {
    let mut rig = Rig::with_mmu();
    rig.map(HIGH, PAGE, KERNEL);
    rig.core.set_pc(HIGH);
    let (core, mut ctx) = rig.parts();
    assert!(fetch(core, &mut ctx).is_ok());
    let sctlr = rig.get("SCTLR_EL1").unwrap();
    rig.set("SCTLR_EL1", sctlr | sctlr::WXN);
    let (core, mut ctx) = rig.parts();
    assert!(fetch(core, &mut ctx).is_err());
}

#[test]
fn walks_that_leave_memory_abort() {
    let mut rig = Rig::with_mmu();
    let root = rig.core.sys.ttbr0_el1;
    rig.describe(root, LOW, 1, 0x10_0000_0000 | 3);
    assert_eq!(read(&mut rig, LOW), Err(Fault));
    assert_eq!(fault(&rig), (abort(0x16, false), LOW));
    rig.describe(root, LOW, 1, 0x1000_0000_0000 | 3);
    assert_eq!(read(&mut rig, LOW), Err(Fault));
    assert_eq!(fault(&rig), (abort(1, false), LOW));
}

#[test]
fn tagged_addresses() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL | NG);
    rig.write64(PAGE, 5);
    for tag in [0x12u64 << 56, 0x92 << 56] {
        assert_eq!(read(&mut rig, LOW | tag), Err(Fault));
        assert_eq!(fault(&rig), (abort(4, false), LOW | tag));
    }
    let tcr = rig.get("TCR_EL1").unwrap();
    rig.set("TCR_EL1", tcr | 1 << 37);
    for tag in [0x12u64 << 56, 0x92 << 56] {
        assert_eq!(read(&mut rig, LOW | tag), Ok(5));
        assert_eq!(rig.core.mmu.branch_target(LOW | tag), LOW);
        assert_eq!(rig.core.mmu.branch_target(HIGH ^ tag), HIGH ^ tag);
        rig.unmap(LOW);
        assert_eq!(read(&mut rig, LOW | tag), Ok(5));
        tlbi(&mut rig, 1, LOW >> 12);
        assert_eq!(read(&mut rig, LOW | tag), Err(Fault));
        rig.map(LOW, PAGE, KERNEL | NG);
    }
    // A tag with bit 63 set must not make the entry global.
    assert_eq!(read(&mut rig, LOW | 0x92 << 56), Ok(5));
    let root = rig.table();
    rig.set("TTBR0_EL1", root | 3 << 48);
    assert_eq!(read(&mut rig, LOW | 0x92 << 56), Err(Fault));
}

#[test]
fn watched_pages_take_the_slow_path() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL);
    put(&mut rig, LOW, 1u64).unwrap();
    let page = ((PAGE - RAM) >> 12) as usize;
    rig.shared.ram.watch().set(page, guest_ram::CODE);
    rig.core.mmu.drop_keys(PAGE, guest_ram::CODE);
    assert_eq!(read(&mut rig, LOW), Ok(1));
    put(&mut rig, LOW, 2u64).unwrap();
    assert_eq!(rig.shared.ram.watch().flags(page), 0, "the code there was forgotten");
    assert_eq!(rig.read64(PAGE), 2);
}

#[test]
fn address_translation_instructions() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL | USER | READ_ONLY);
    rig.map(LOW + 0x1000, testing::DEVICE, KERNEL | DEVICE);
    let mut at = |op2: u16, va: u64| {
        rig.system(0, 7, 8, op2, va);
        rig.get("PAR_EL1").unwrap()
    };
    let normal = 0xff << 56 | PAGE | 1 << 11 | 1 << 9 | 3 << 7;
    assert_eq!(at(0, LOW + 0x123), normal);
    assert_eq!(at(2, LOW), normal);
    assert_eq!(at(1, LOW), 1 << 11 | 0xf << 1 | 1);
    assert_eq!(at(3, LOW), 1 << 11 | 0xf << 1 | 1);
    assert_eq!(at(0, LOW + 0x1000), 0x04 << 56 | testing::DEVICE | 1 << 11 | 1 << 9 | 2 << 7);
    assert_eq!(at(2, LOW + 0x1000), 1 << 11 | 0xf << 1 | 1);
    assert_eq!(at(0, LOW + (1 << 30)), 1 << 11 | 5 << 1 | 1);
    let sctlr = rig.get("SCTLR_EL1").unwrap();
    rig.set("SCTLR_EL1", sctlr & !sctlr::C);
    rig.system(0, 7, 8, 0, LOW);
    assert_eq!(rig.get("PAR_EL1"), Ok(0x44 << 56 | PAGE | 1 << 11 | 1 << 9 | 2 << 7));
    let root = rig.core.sys.ttbr0_el1;
    rig.describe(root, LOW, 0, 0x10_0000_0000 | 3);
    rig.core.set_pc(0x40);
    tlbi(&mut rig, 0, 0);
    assert_eq!(rig.system(0, 7, 8, 0, LOW), crate::core::Flow::Fault);
    assert_eq!(fault(&rig), (0x25 << 26 | 1 << 25 | 1 << 8 | 1 << 6 | 0x15, LOW));
}

#[test]
fn zeroing_and_maintenance() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL);
    rig.map(LOW + 0x1000, PAGE, KERNEL | READ_ONLY);
    rig.map(LOW + 0x2000, PAGE, KERNEL | DEVICE);
    for i in 0..10 {
        rig.write64(PAGE + 0x40 + i * 8, !0);
    }
    rig.system(3, 7, 4, 1, LOW + 0x4f);
    assert_eq!(rig.read64(PAGE + 0x78), 0);
    assert_eq!(rig.read64(PAGE + 0x80), !0);
    rig.system(3, 7, 4, 1, LOW + 0x1008);
    assert_eq!(fault(&rig), (abort(0xf, true), LOW + 0x1008));
    rig.system(3, 7, 4, 1, LOW + 0x2008);
    assert_eq!(fault(&rig), (abort(0x21, true), LOW + 0x2008));
    assert_eq!(rig.system(3, 7, 11, 1, LOW + 0x1000), crate::core::Flow::Next);
    assert_eq!(rig.system(0, 7, 6, 1, LOW + 0x1000), crate::core::Flow::Fault);
    assert_eq!(fault(&rig).0, abort(0xf, true) | 1 << 8);
    assert_eq!(rig.system(3, 7, 5, 1, LOW + 0x5000), crate::core::Flow::Fault);
    assert_eq!(fault(&rig), (abort(0x7, true) | 1 << 8, LOW + 0x5000));
}

#[test]
fn big_endian_data() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL | USER);
    rig.map(LOW + 0x1000, PAGE + 0x1000, KERNEL | USER);
    put(&mut rig, LOW, 0x1122_3344u32).unwrap();
    let sctlr = rig.get("SCTLR_EL1").unwrap();
    rig.set("SCTLR_EL1", sctlr | sctlr::E0E);
    assert_eq!(get(&mut rig, LOW, AccessKind::Normal), Ok(0x1122_3344u32));
    back(&mut rig, 0);
    assert_eq!(get(&mut rig, LOW, AccessKind::Normal), Ok(0x4433_2211u32));
    put(&mut rig, LOW + 0xffe, 0x0102_0304u32).unwrap();
    assert_eq!(get(&mut rig, LOW + 0xffe, AccessKind::Normal), Ok(0x0102u16));
    assert_eq!(get(&mut rig, LOW + 0x1000, AccessKind::Normal), Ok(0x03u8));
}

#[test]
fn a_restored_mmu_has_the_same_future() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL | NG);
    rig.write64(PAGE, 3);
    assert_eq!(read(&mut rig, LOW), Ok(3));
    rig.unmap(LOW);
    let mut other = rig.core.mmu.clone();
    other.fast = Fast::default();
    assert!(other == rig.core.mmu);
    rig.core.mmu = other;
    assert_eq!(read(&mut rig, LOW), Ok(3));
    assert_eq!(read(&mut rig, LOW), Ok(3));
    rig.core.set_pc(0);
    assert!(read(&mut rig, 0).is_err(), "an empty fast array matches nothing");
}

#[test]
fn exclusives_and_atomics_name_physical_addresses() {
    let mut rig = Rig::with_mmu();
    rig.map(LOW, PAGE, KERNEL | READ_ONLY);
    let (core, mut ctx) = rig.parts();
    assert_eq!(physical(core, &mut ctx, LOW + 8, 8, false), Ok(PAGE + 8));
    assert!(physical(core, &mut ctx, LOW + 8, 16, false).is_err());
    assert_eq!(fault(&rig), (abort(0x21, false), LOW + 8));
    let (core, mut ctx) = rig.parts();
    assert!(physical(core, &mut ctx, LOW + 8, 8, true).is_err());
    assert_eq!(fault(&rig), (abort(0xf, true), LOW + 8));
    let (core, mut ctx) = rig.parts();
    assert!(physical_update(core, &mut ctx, LOW + 0x1000, 8).is_err());
    assert_eq!(fault(&rig), (abort(0x7, false), LOW + 0x1000));
    let (core, mut ctx) = rig.parts();
    assert!(physical_update(core, &mut ctx, LOW, 8).is_err());
    assert_eq!(fault(&rig), (abort(0xf, true), LOW));
}
