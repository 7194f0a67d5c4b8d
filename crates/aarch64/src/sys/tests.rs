//! Tests of system-register access and the timer.

use super::*;
use crate::core::Flow;
use crate::exception::set_level;
use crate::platform::{IrqLines, SysKey};
use crate::testing::Rig;

fn esr(rig: &Rig) -> u64 {
    rig.core.sys.esr[1]
}

/// ESR_EL1 of an UNDEFINED instruction.
const UNDEFINED: u64 = 1 << 25;

/// ESR_EL1 of a trapped access with X0.
fn trapped(key: SysKey, read: bool) -> u64 {
    let k = u64::from(key.0);
    let iss =
        (k >> 14) << 20 | (k & 7) << 17 | (k >> 11 & 7) << 14 | (k >> 7 & 15) << 10 | (k >> 3 & 15) << 1;
    0x18 << 26 | 1 << 25 | iss | u64::from(read)
}

fn key(name: &str) -> SysKey {
    TABLE.iter().find(|row| row.name == name).unwrap().key
}

fn at_el0(rig: &mut Rig) {
    set_level(&mut rig.core, 0, false);
}

fn rig() -> Rig {
    Rig::new(Features::default())
}

#[test]
fn encodings_are_unique() {
    for (i, a) in TABLE.iter().enumerate() {
        assert!(a.key.0 >> 15 == 1, "{}", a.name);
        assert!(TABLE[i + 1..].iter().all(|b| a.key != b.key && a.name != b.name), "{}", a.name);
    }
}

#[test]
fn every_register_keeps_to_its_mask() {
    let mut rig = rig();
    rig.set("CPACR_EL1", 3 << 20);
    for row in TABLE {
        let before = (rig.core.sys.clone(), rig.core.pstate);
        let flow = rig.set(row.name, u64::MAX);
        if matches!(row.dir, table::Dir::R) {
            assert_eq!((flow, esr(&rig)), (Flow::Fault, UNDEFINED), "{}", row.name);
        } else if row.name != "PAN" {
            assert_ne!(flow, Flow::Fault, "{}", row.name);
        }
        (rig.core.sys, rig.core.pstate) = before;
    }
    assert_eq!(rig.set("SCTLR_EL1", 0), Flow::Sync);
    assert_eq!(rig.get("SCTLR_EL1"), Ok(0x30d0_0980));
    rig.set("SCTLR_EL1", u64::MAX);
    assert_eq!(rig.get("SCTLR_EL1"), Ok(0x37dd_db9f));
    rig.set("SCTLR_EL1", 0);
    for (name, kept) in [
        ("TCR_EL1", 0x77_ffff_ffbf),
        ("TTBR0_EL1", !1),
        ("VBAR_EL1", !0x7ff),
        ("CPACR_EL1", 3 << 20),
        ("SPSR_EL1", 0xf030_03df),
        ("ESR_EL1", 0xffff_ffff),
        ("CNTKCTL_EL1", 0x3ff),
        ("FPCR", 0x07c0_0000),
        ("FPSR", 0x0800_009f),
        ("CONTEXTIDR_EL1", 0xffff_ffff),
        ("TPIDR_EL0", u64::MAX),
        ("ACTLR_EL1", 0),
    ] {
        rig.set(name, u64::MAX);
        assert_eq!(rig.get(name), Ok(kept), "{name}");
    }
}

#[test]
fn identification() {
    let mut rig = Rig::new(Features { crc32: true, lse: true, pan: true });
    let id = |rig: &mut Rig, crm, op2| rig.get_key(SysKey::new(3, 0, 0, crm, op2));
    assert_eq!(id(&mut rig, 4, 0), Ok(0x1100_0000_0100_0011));
    assert_eq!(id(&mut rig, 5, 0), Ok(0x10_1006));
    assert_eq!(id(&mut rig, 6, 0), Ok(0x21_0000));
    assert_eq!(id(&mut rig, 7, 0), Ok(0x10_0124));
    assert_eq!(id(&mut rig, 7, 1), Ok(0x10_0000));
    for (crm, op2) in [(1, 0), (2, 7), (3, 3), (4, 4), (7, 2), (7, 7), (5, 1), (6, 2)] {
        assert_eq!(id(&mut rig, crm, op2), Ok(0));
    }
    assert_eq!(id(&mut rig, 8, 0), Err(Flow::Fault));
    assert_eq!(rig.get("MIDR_EL1"), Ok(0x000f_5a30));
    assert_eq!(rig.get("MPIDR_EL1"), Ok(0x8000_0000));
    assert_eq!(rig.get("CTR_EL0"), Ok(0x8444_c004));
    assert_eq!(id::mpidr(17), 0x8000_0101);
    // ID registers are UNDEFINED at EL0, where Linux emulates them.
    at_el0(&mut rig);
    assert_eq!(id(&mut rig, 4, 0), Err(Flow::Fault));
    assert_eq!(esr(&rig), UNDEFINED);
}

#[test]
fn the_unknown_is_undefined() {
    let mut rig = rig();
    // PMCR_EL0, ID of EL2, EL3's SCR, RAS, PMUSERENR.
    for key in [(3, 3, 9, 12, 0), (3, 4, 1, 0, 0), (3, 6, 1, 1, 0), (3, 0, 5, 3, 0), (3, 3, 9, 14, 0)] {
        let (op0, op1, crn, crm, op2) = key;
        assert_eq!(rig.get_key(SysKey::new(op0, op1, crn, crm, op2)), Err(Flow::Fault));
        assert_eq!(esr(&rig), UNDEFINED);
    }
    assert_eq!(rig.get("PAN"), Err(Flow::Fault), "PAN is off");
    assert_eq!(rig.system(0, 7, 9, 0, 0), Flow::Fault, "AT S1E1RP");
    assert_eq!(rig.system(4, 8, 7, 4, 0), Flow::Fault, "TLBI ALLE1");
    assert_eq!(rig.get("OSLAR_EL1"), Err(Flow::Fault), "write only");
}

#[test]
fn what_el0_may_do() {
    for (name, write, enable) in [
        ("CTR_EL0", false, ("SCTLR_EL1", sctlr::UCT)),
        ("DAIF", false, ("SCTLR_EL1", sctlr::UMA)),
        ("DAIF", true, ("SCTLR_EL1", sctlr::UMA)),
        ("CNTPCT_EL0", false, ("CNTKCTL_EL1", 1)),
        ("CNTVCT_EL0", false, ("CNTKCTL_EL1", 2)),
        ("CNTFRQ_EL0", false, ("CNTKCTL_EL1", 1)),
        ("CNTFRQ_EL0", false, ("CNTKCTL_EL1", 2)),
        ("CNTV_CTL_EL0", true, ("CNTKCTL_EL1", 1 << 8)),
        ("CNTP_CVAL_EL0", false, ("CNTKCTL_EL1", 1 << 9)),
    ] {
        for on in [false, true] {
            let mut rig = rig();
            rig.set(enable.0, if on { enable.1 } else { 0 });
            at_el0(&mut rig);
            let fault = if write { rig.set(name, 0) == Flow::Fault } else { rig.get(name).is_err() };
            assert_eq!(fault, !on, "{name}");
            if fault {
                assert_eq!(esr(&rig), trapped(key(name), !write), "{name}");
            }
        }
    }
    for (name, read, write) in [
        ("TPIDR_EL0", true, true),
        ("TPIDRRO_EL0", true, false),
        ("TPIDR_EL1", false, false),
        ("CNTFRQ_EL0", false, false),
        ("SP_EL0", false, false),
        ("NZCV", true, true),
        ("DCZID_EL0", true, false),
        ("MDCCSR_EL0", true, false),
        ("CurrentEL", false, false),
    ] {
        let mut rig = rig();
        rig.set("CNTKCTL_EL1", 0);
        at_el0(&mut rig);
        if name != "CNTFRQ_EL0" {
            assert_eq!(rig.get(name).is_ok(), read, "{name}");
        }
        at_el0(&mut rig);
        assert_eq!(rig.set(name, 0) != Flow::Fault, write, "{name}");
        assert!(write || esr(&rig) == UNDEFINED, "{name}");
    }
}

#[test]
fn maintenance_at_el0() {
    // DC CVAU, DC CIVAC, IC IVAU, DC ZVA with their SCTLR_EL1 bits.
    for (crm, op2, enable) in
        [(11, 1, sctlr::UCI), (14, 1, sctlr::UCI), (5, 1, sctlr::UCI), (4, 1, sctlr::DZE)]
    {
        let mut rig = rig();
        at_el0(&mut rig);
        assert_eq!(rig.system(3, 7, crm, op2, crate::testing::RAM), Flow::Fault);
        assert_eq!(esr(&rig), trapped(SysKey::new(1, 3, 7, crm, op2), false));
        rig.set("SCTLR_EL1", enable);
        at_el0(&mut rig);
        let flow = rig.system(3, 7, crm, op2, crate::testing::RAM);
        // DC ZVA still is an Alignment fault: with the MMU off all memory is Device.
        assert_eq!(flow == Flow::Next, crm != 4);
    }
    let mut rig = rig();
    at_el0(&mut rig);
    assert_eq!(rig.system(0, 7, 5, 0, 0), Flow::Fault);
    assert_eq!(esr(&rig), UNDEFINED);
    assert_eq!(rig.get("DCZID_EL0"), Ok(4));
    at_el0(&mut rig);
    assert_eq!(rig.get("DCZID_EL0"), Ok(0x14));
}

#[test]
fn floating_point_traps() {
    for (fpen, el, allowed) in
        [(0, 1, false), (1, 1, true), (1, 0, false), (2, 1, false), (3, 0, true), (3, 1, true), (2, 0, false)]
    {
        let mut rig = rig();
        rig.set("CPACR_EL1", fpen << 20);
        set_level(&mut rig.core, el, el == 1);
        assert_eq!(rig.get("FPCR").is_ok(), allowed, "{fpen} EL{el}");
        assert!(allowed || esr(&rig) == 0x1fe0_0000);
    }
}

#[test]
fn waiting_at_el0() {
    let mut rig = rig();
    at_el0(&mut rig);
    let (core, mut ctx) = rig.parts();
    assert!(wfx_allowed(core, &mut ctx, true).is_err());
    assert_eq!(esr(&rig), 0x07e0_0001);
    rig.set("SCTLR_EL1", sctlr::N_TWE);
    at_el0(&mut rig);
    let (core, mut ctx) = rig.parts();
    assert!(wfx_allowed(core, &mut ctx, true).is_ok());
    assert!(wfx_allowed(core, &mut ctx, false).is_err());
    assert_eq!(esr(&rig), 0x07e0_0000);
}

#[test]
fn stack_pointers_are_banked() {
    let mut rig = rig();
    let sp = usize::from(crate::core::SP);
    rig.core.r[sp] = 0x1000;
    rig.set("SP_EL0", 0x2000);
    rig.set("SPSel", 0);
    assert_eq!((rig.core.r[sp], rig.get("SPSel")), (0x2000, Ok(0)));
    assert_eq!(rig.get("SP_EL0"), Err(Flow::Fault), "selected");
    set_level(&mut rig.core, 1, true);
    assert_eq!(rig.core.r[sp], 0x1000);
    assert_eq!(rig.get("SP_EL0"), Ok(0x2000));
}

#[test]
fn pstate_by_immediate() {
    let mut rig = rig();
    let mut go = |word: u32| {
        let (core, mut ctx) = rig.parts();
        let flow = msr_immediate(core, &crate::core::Op::new(crate::exec::undefined, word), &mut ctx);
        (flow, rig.core.pstate.daif, rig.core.pstate.sp_sel, rig.core.sys.esr[1])
    };
    assert_eq!(go(0xd503_42ff), (Flow::Sync, 0x340, true, 0), "MSR DAIFClr, #2");
    assert_eq!(go(0xd503_42df), (Flow::Next, 0x3c0, true, 0), "MSR DAIFSet, #2");
    assert_eq!(go(0xd500_40bf), (Flow::Next, 0x3c0, false, 0), "MSR SPSel, #0");
    assert_eq!(go(0xd500_419f).0, Flow::Fault, "MSR PAN, #1");
    at_el0(&mut rig);
    let (core, mut ctx) = rig.parts();
    let op = crate::core::Op::new(crate::exec::undefined, 0xd503_42ff);
    assert_eq!(msr_immediate(core, &op, &mut ctx), Flow::Fault);
    assert_eq!(esr(&rig), 0x18 << 26 | 1 << 25 | 7 << 17 | 3 << 14 | 4 << 10 | 31 << 5 | 2 << 1);
}

#[test]
fn gic_registers_are_the_platforms() {
    let mut rig = rig();
    let pmr = SysKey::new(3, 0, 4, 6, 0);
    assert_eq!(rig.get_key(pmr), Ok(0xf0));
    assert_eq!(rig.get_key(SysKey::new(3, 0, 12, 12, 3)), Err(Flow::Fault), "the platform refuses");
    at_el0(&mut rig);
    assert_eq!(rig.get_key(pmr), Err(Flow::Fault));
    rig.board.lines = IrqLines { irq: true, fiq: false };
    assert_eq!(rig.get("ISR_EL1"), Ok(0x80));
}

#[test]
fn debug_registers() {
    let mut rig = rig();
    assert_eq!(rig.get("OSLSR_EL1"), Ok(0xa));
    rig.set("OSLAR_EL1", 0);
    assert_eq!(rig.get("OSLSR_EL1"), Ok(0x8));
    rig.set("DBGBVR1_EL1", 0x1237);
    assert_eq!(rig.get("DBGBVR1_EL1"), Ok(0x1234));
    assert_eq!(rig.get_key(SysKey::new(2, 0, 0, 2, 4)), Err(Flow::Fault), "there are two");
    rig.set("DBGCLAIMSET_EL1", 0x105);
    rig.set("DBGCLAIMCLR_EL1", 1);
    assert_eq!(rig.get("DBGCLAIMCLR_EL1"), Ok(4));
}

fn pass(rig: &mut Rig, now: u64) {
    rig.core.time_base = (rig.core.retired(), now);
    let (core, mut ctx) = rig.parts();
    timer::update_timers(core, &mut ctx);
}

#[test]
fn timers_fire_on_the_exact_tick() {
    let mut rig = rig();
    pass(&mut rig, 0);
    rig.board.ppis.clear();
    rig.set("CNTV_CVAL_EL0", 100);
    assert_eq!(timer::timer_deadline(&rig.core, false), None);
    assert_eq!(rig.get("CNTV_CTL_EL0"), Ok(0));
    rig.set("CNTV_CTL_EL0", 1);
    assert_eq!(timer::timer_deadline(&rig.core, false), Some(1600));
    pass(&mut rig, 1599);
    assert!(rig.board.ppis.is_empty());
    assert_eq!(rig.get("CNTV_TVAL_EL0"), Ok(1));
    pass(&mut rig, 1600);
    assert_eq!(rig.board.ppis, [(1600, 27, true)]);
    assert_eq!(rig.get("CNTV_CTL_EL0"), Ok(5));
    assert_eq!(timer::timer_deadline(&rig.core, false), None);
    rig.set("CNTV_CTL_EL0", 3);
    assert_eq!(rig.board.ppis[1..], [(1600, 27, false)]);
    assert_eq!(rig.get("CNTV_CTL_EL0"), Ok(7));
    // The physical timer by TVAL, in the past and in the future.
    rig.set("CNTP_TVAL_EL0", 0xffff_ffff);
    rig.set("CNTP_CTL_EL0", 1);
    assert_eq!(rig.board.ppis[2..], [(1600, 30, true)]);
    assert_eq!(rig.get("CNTP_TVAL_EL0"), Ok(0xffff_ffff));
    rig.set("CNTP_TVAL_EL0", 10);
    assert_eq!(rig.board.ppis[3..], [(1600, 30, false)]);
    assert_eq!(rig.get("CNTP_CVAL_EL0"), Ok(110));
    assert_eq!(timer::timer_deadline(&rig.core, false), Some(1760));
    // Too far to ever happen.
    rig.set("CNTP_CVAL_EL0", u64::MAX);
    assert_eq!(timer::timer_deadline(&rig.core, false), None);
}

#[test]
fn the_event_stream() {
    let mut rig = rig();
    // An event at each rise of bit 2 of the counter: at 4, 12, 20 …
    rig.set("CNTKCTL_EL1", 1 << 2 | 2 << 4);
    assert_eq!(timer::timer_deadline(&rig.core, false), None);
    assert_eq!(timer::timer_deadline(&rig.core, true), Some(4 * 16));
    pass(&mut rig, 4 * 16 - 1);
    assert!(!rig.core.event);
    pass(&mut rig, 4 * 16);
    assert!(std::mem::take(&mut rig.core.event));
    assert_eq!(timer::timer_deadline(&rig.core, true), Some(12 * 16));
    pass(&mut rig, 11 * 16);
    assert!(!rig.core.event);
    pass(&mut rig, 40 * 16);
    assert!(std::mem::take(&mut rig.core.event));
    // At each fall: 48, 56 …
    rig.set("CNTKCTL_EL1", 1 << 2 | 2 << 4 | 1 << 3);
    assert_eq!(timer::timer_deadline(&rig.core, true), Some(48 * 16));
}

#[test]
fn exception_returns() {
    use crate::exception::eret;
    let mut rig = rig();
    let sp = usize::from(crate::core::SP);
    rig.core.r[sp] = 0x111;
    rig.set("SP_EL0", 0x222);
    rig.set("ELR_EL1", 0x4000);
    rig.set("SPSR_EL1", 0xa000_0040);
    let (core, mut ctx) = rig.parts();
    eret(core, &mut ctx).unwrap();
    assert_eq!((rig.core.pstate.el, rig.core.pc, rig.core.nzcv), (0, 0x4000, 0xa000_0000));
    assert_eq!((rig.core.pstate.daif, rig.core.r[sp], rig.core.event), (0x40, 0x222, true));
    // ERET is UNDEFINED at EL0.
    let (core, mut ctx) = rig.parts();
    assert!(eret(core, &mut ctx).is_err());
    assert_eq!((rig.core.pstate.el, rig.core.r[sp], esr(&rig)), (1, 0x111, UNDEFINED));
    // AArch32, EL0 with a handler stack, EL2, EL3, reserved: illegal. Flags and masks are restored all the same.
    for mode in [0x10, 0x01, 0x08, 0x09, 0x0d, 0x06, 0x07] {
        rig.core.pstate.il = false;
        rig.set("SPSR_EL1", 0x5000_0080 | mode);
        rig.set("ELR_EL1", 0x5000);
        let (core, mut ctx) = rig.parts();
        eret(core, &mut ctx).unwrap();
        let p = rig.core.pstate;
        assert_eq!((p.il, p.el, p.sp_sel, p.daif, rig.core.pc), (true, 1, true, 0x80, 0x5000), "{mode:#x}");
        assert_eq!(rig.core.nzcv, 0x5000_0000);
    }
    // IL in SPSR comes back as it is.
    rig.set("SPSR_EL1", 1 << 20 | 4);
    let (core, mut ctx) = rig.parts();
    eret(core, &mut ctx).unwrap();
    assert!(rig.core.pstate.il && !rig.core.pstate.sp_sel && rig.core.pstate.el == 1);
}

#[test]
fn interrupts_by_mask() {
    use crate::exception::take_pending_interrupt;
    let mut rig = rig();
    rig.core.set_pc(0x100);
    rig.board.lines = IrqLines { irq: true, fiq: true };
    for (mask, vector) in [(0x3c0, None), (0x340, Some(0x280)), (0x380, Some(0x300)), (0, Some(0x300))] {
        rig.core.set_pc(0x100);
        rig.core.pstate.daif = mask;
        let (core, mut ctx) = rig.parts();
        assert_eq!(take_pending_interrupt(core, &mut ctx), vector.is_some());
        assert_eq!(rig.core.pc, vector.unwrap_or(0x100));
        assert!(vector.is_none() || rig.core.sys.elr[1] == 0x100);
    }
}

#[test]
fn software_step() {
    use crate::config::EngineKind;
    for engine in EngineKind::ALL {
        let mut rig = rig();
        let base = crate::testing::RAM;
        // NOP, SVC #7, NOP; the vectors are past them.
        for (i, word) in [0xd503_201fu32, 0xd400_00e1, 0xd503_201f].into_iter().enumerate() {
            assert!(rig.shared.ram.write(base + 4 * i as u64, &word.to_le_bytes()));
        }
        rig.set("VBAR_EL1", base + 0x1000);
        rig.set("OSLAR_EL1", 0);
        rig.set("MDSCR_EL1", 1);
        let mut step = |pc: u64, budget: u64| {
            rig.core.sys.elr[1] = pc;
            rig.core.sys.spsr[1] = 1 << 21;
            let (core, mut ctx) = rig.parts();
            crate::exception::eret(core, &mut ctx).unwrap();
            core.set_pc(core.pc);
            crate::engine::run(core, &mut ctx, engine, budget);
            let sys = &rig.core.sys;
            (rig.core.pc, sys.elr[1], sys.esr[1], sys.spsr[1] >> 21 & 1)
        };
        // One instruction, then the exception instead of the next one, with PSTATE.SS clear.
        let stepped = 0x32 << 26 | 1 << 25 | 1 << 24 | 0x22;
        assert_eq!(step(base, 2), (base + 0x1400, base + 4, stepped, 0), "{engine:?}");
        // SVC counts as executed: the exception is its own, and the saved state has no step left.
        let svc = 0x15 << 26 | 1 << 25 | 7;
        assert_eq!(step(base + 4, 1), (base + 0x1400, base + 8, svc, 0), "{engine:?}");
        // An instruction that faults has not been stepped: it will be, after the handler's return.
        let abort = 0x20 << 26 | 1 << 25 | 0x10;
        assert_eq!(step(0x1000, 1), (base + 0x1400, 0x1000, abort, 1), "{engine:?}");
    }
}

#[test]
fn nothing_that_a_guest_writes_panics() {
    use crate::mmu::{self, AccessKind};
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut rig = Rig::with_mmu_and(Features { crc32: true, lse: true, pan: true });
    for i in 0..100_000 {
        // Values with few bits set, few bits clear, addresses, and anything.
        let value = match rng.next_u32() % 5 {
            0 => rng.next_u64() & rng.next_u64() & rng.next_u64(),
            1 => rng.next_u64() | rng.next_u64() | rng.next_u64(),
            2 => crate::testing::RAM + (rng.next_u64() & 0x7f_ffff),
            3 => rng.next_u64() << 48,
            _ => rng.next_u64(),
        };
        let row = &TABLE[rng.next_u32() as usize % TABLE.len()];
        match rng.next_u32() % 8 {
            0 | 1 => {
                let _ = rig.set(row.name, value);
            }
            2 => {
                let _ = rig.get(row.name);
            }
            3 => {
                let _ = rig.system(0, 8, [3, 7][i % 2], (value % 8) as u16, value);
            }
            4 => {
                let _ = rig.system([0, 3][i % 2], 7, (value % 16) as u16, (value >> 4) as u16 % 8, value);
            }
            5 => {
                let now = rig.core.now().saturating_add(value >> 32);
                pass(&mut rig, now);
                let _ = timer::timer_deadline(&rig.core, i % 2 == 0);
            }
            kind => {
                let (core, mut ctx) = rig.parts();
                let kind = if kind == 6 { AccessKind::Normal } else { AccessKind::Unpriv };
                let _ = mmu::load::<u128>(core, &mut ctx, value, kind);
                let _ = mmu::store(core, &mut ctx, value, value, kind);
                core.pc = value;
                let _ = mmu::fetch(core, &mut ctx);
                let _ = crate::exception::eret(core, &mut ctx);
            }
        }
        if rng.next_u32() % 4 == 0 {
            set_level(&mut rig.core, 1, true);
        }
    }
}

#[test]
fn breakpoints() {
    use crate::config::EngineKind;
    for engine in EngineKind::ALL {
        let mut rig = rig();
        let base = crate::testing::RAM;
        for i in 0..8 {
            assert!(rig.shared.ram.write(base + 4 * i, &0xd503_201fu32.to_le_bytes()));
        }
        rig.set("VBAR_EL1", base + 0x1000);
        rig.set("OSLAR_EL1", 0);
        rig.set("DBGBVR0_EL1", base + 12);
        // PMC, and what that means at EL0 and EL1 with KDE set or clear, D masked or not.
        for (pmc, el, kde, masked, hit) in [
            (2, 0, false, true, true),
            (1, 0, false, true, false),
            (3, 1, true, false, true),
            (1, 1, true, true, false),
            (1, 1, false, false, false),
            (2, 1, true, false, false),
        ] {
            rig.set("DBGBCR0_EL1", 0xf << 5 | pmc << 1 | 1);
            rig.set("MDSCR_EL1", debug::MDE | u64::from(kde) << 13);
            rig.core.pstate.daif = if masked { 0x3c0 } else { 0x1c0 };
            set_level(&mut rig.core, el, el == 1);
            rig.core.set_pc(base);
            let (core, mut ctx) = rig.parts();
            crate::engine::run(core, &mut ctx, engine, if hit { 4 } else { 6 });
            if hit {
                let vector = if el == 0 { 0x1400 } else { 0x1200 };
                assert_eq!((rig.core.pc, rig.core.sys.elr[1]), (base + vector, base + 12));
                assert_eq!(esr(&rig), (0x30 + u64::from(el)) << 26 | 1 << 25 | 0x22);
            } else {
                assert_eq!(rig.core.pc, base + 24, "{pmc} EL{el}");
            }
            set_level(&mut rig.core, 1, true);
        }
        // Unmasking is enough for the next instruction to be looked at.
        rig.set("DBGBCR0_EL1", 0xf << 5 | 1 << 1 | 1);
        rig.set("MDSCR_EL1", debug::MDE | 1 << 13);
        assert!(rig.shared.ram.write(base + 8, &0xd503_48ffu32.to_le_bytes()));
        rig.shared.device_writes();
        rig.core.pstate.daif = 0x3c0;
        rig.core.set_pc(base);
        let (core, mut ctx) = rig.parts();
        crate::engine::run(core, &mut ctx, engine, 4);
        assert_eq!((rig.core.pc, rig.core.sys.elr[1]), (base + 0x1200, base + 12), "{engine:?}");
        assert!(rig.shared.ram.write(base + 8, &0xd503_201fu32.to_le_bytes()));
        rig.shared.device_writes();
        // Linked to a context, which has to be the current one.
        rig.set("DBGBVR1_EL1", 77 << 2);
        rig.set("DBGBCR1_EL1", 3 << 20 | 0xf << 5 | 3 << 1 | 1);
        rig.set("DBGBCR0_EL1", 1 << 20 | 1 << 16 | 0xf << 5 | 3 << 1 | 1);
        for (context, hit) in [(77 << 2, true), (5, false)] {
            rig.set("CONTEXTIDR_EL1", context);
            set_level(&mut rig.core, 0, false);
            rig.core.set_pc(base + 8);
            let (core, mut ctx) = rig.parts();
            crate::engine::run(core, &mut ctx, engine, 2);
            assert_eq!(rig.core.pc == base + 0x1400, hit);
            set_level(&mut rig.core, 1, true);
        }
    }
}

#[test]
fn watchpoints() {
    use crate::mmu::{self, AccessKind};
    use crate::testing::attr;
    let va = 0x1000_0000;
    let mut rig = Rig::with_mmu();
    rig.map(va, crate::testing::RAM + 0x1_0000, attr::KERNEL | attr::USER);
    rig.set("OSLAR_EL1", 0);
    let load = |rig: &mut Rig, at: u64, kind| {
        let (core, mut ctx) = rig.parts();
        mmu::load::<u32>(core, &mut ctx, at, kind).is_err()
    };
    let store = |rig: &mut Rig, at: u64| {
        let (core, mut ctx) = rig.parts();
        mmu::store(core, &mut ctx, at, 0u32, AccessKind::Normal).is_err()
    };
    assert!(
        !load(&mut rig, va + 8, AccessKind::Normal) && !store(&mut rig, va + 8),
        "keys for the fast path"
    );
    // Bytes 4 and 5 of the doubleword at 8: stores from EL1.
    rig.set("DBGWVR0_EL1", va + 8);
    rig.set("DBGWCR0_EL1", 0x30 << 5 | 2 << 3 | 1 << 1 | 1);
    rig.set("MDSCR_EL1", debug::MDE | 1 << 13);
    let enable = |rig: &mut Rig| rig.core.pstate.daif = 0x1c0;
    enable(&mut rig);
    assert!(!load(&mut rig, va + 12, AccessKind::Normal));
    assert!(!store(&mut rig, va + 8) && !store(&mut rig, va + 14));
    for (at, far) in [(va + 12, va + 12), (va + 10, va + 12), (va + 13, va + 13)] {
        assert!(store(&mut rig, at));
        assert_eq!((esr(&rig), rig.core.sys.far[1]), (0x35 << 26 | 1 << 25 | 1 << 6 | 0x22, far));
        enable(&mut rig);
    }
    // An MMU fault comes first.
    assert!(store(&mut rig, va - 4));
    assert_eq!(esr(&rig) >> 26, 0x25);
    enable(&mut rig);
    // Loads of EL0, in a region of 16 bytes: LDTR counts.
    rig.set("DBGWVR0_EL1", va + 16);
    rig.set("DBGWCR0_EL1", 4 << 24 | 0xff << 5 | 1 << 3 | 2 << 1 | 1);
    assert!(!load(&mut rig, va + 20, AccessKind::Normal) && !store(&mut rig, va + 20));
    assert!(load(&mut rig, va + 28, AccessKind::Unpriv));
    assert_eq!((esr(&rig), rig.core.sys.far[1]), (0x35 << 26 | 1 << 25 | 0x22, va + 28));
    // Masked.
    assert!(!load(&mut rig, va + 28, AccessKind::Unpriv));
    rig.set("MDSCR_EL1", 0);
    enable(&mut rig);
    assert!(!load(&mut rig, va + 28, AccessKind::Unpriv));
}
