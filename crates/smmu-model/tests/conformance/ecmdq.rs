//! Sections 3.5.6 and 6.2.5: enhanced command queues.

use smmu_model::spec::registers::{self as r, gerror};
use smmu_model::{AccessKind, Config, Transaction};

use crate::lab::*;

const EN: u32 = 1 << 31;
const ERR: u32 = 1 << 23;
const BASES: u64 = 0x1500_0000;

fn config() -> Config {
    Config { ecmdq: 4, ..linux() }
}

/// A register of queue `n` of four.
fn at(n: u64, offset: u64) -> u64 {
    r::ECMDQ_PAGE + n * 0x4000 + offset
}

/// An enabled queue of 16 entries.
fn enable(lab: &mut Lab, n: u64) {
    lab.w64(at(n, 0), (BASES + n * 0x1000) | 4);
    lab.w32(at(n, 8), EN);
    assert_eq!(lab.r32(at(n, 0xc)), EN, "ENACK");
}

fn put(lab: &mut Lab, n: u64, index: u64, command: [u64; 2]) {
    lab.ram.set(BASES + n * 0x1000 + index * 16, command[0]);
    lab.ram.set(BASES + n * 0x1000 + index * 16 + 8, command[1]);
}

/// 6.3.2, 6.3.45, 6.3.49 to 6.3.51: what says that they are there.
#[test]
fn discovery() {
    let mut lab = Lab::new(config());
    assert_eq!(lab.r32(r::IDR1) >> 31, 1);
    assert_eq!(lab.r32(r::IDR6), 2 << 16, "one page of 4");
    assert_eq!(lab.smmu.mmio_read(r::CMDQ_CONTROL_PAGE_BASE0, 8), Some(r::ECMDQ_PAGE | 3));
    assert_eq!((lab.r32(r::CMDQ_CONTROL_PAGE_CFG0), lab.r32(r::CMDQ_CONTROL_PAGE_STATUS0)), (1, 1));
    let mut lab = Lab::new(linux());
    assert_eq!((lab.r32(r::IDR1) >> 31, lab.r32(r::IDR6), lab.r32(0x4000)), (0, 0, 0));
    assert_eq!(lab.smmu.mmio_read(r::ECMDQ_PAGE, 4), None);
}

/// 3.5.6.1: queues are consumed in turns, each in its order, and CMDQ with them.
#[test]
fn queues_take_turns() {
    let mut lab = Lab::new(config());
    for n in [1, 3] {
        enable(&mut lab, n);
        for index in 0..3 {
            put(&mut lab, n, index, SYNC);
        }
        lab.w32(at(n, 8), EN | 3);
    }
    lab.push(SYNC);
    let mut order = Vec::new();
    for _ in 0..7 {
        let before = [1, 3].map(|n| lab.r32(at(n, 0xc)));
        lab.smmu.step_command(&lab.ram);
        let after = [1, 3].map(|n| lab.r32(at(n, 0xc)));
        order.push((0..2).find(|&n| before[n] != after[n]).map_or(0, |n| n * 2 + 1));
    }
    assert_eq!(order, [1, 3, 0, 1, 3, 1, 3]);
    assert!(lab.idle() && !lab.smmu.command_pending());
}

/// 3.5.6.1: a queue's commands work, and its CMD_SYNC waits while others go on.
#[test]
fn a_sync_holds_up_its_own_queue_only() {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    let (old, _) = lab.translate(Transaction::new(SID, 0x1000, AccessKind::Write)).unwrap();
    enable(&mut lab, 0);
    put(&mut lab, 0, 0, tlbi_va(1, 0x1000));
    put(&mut lab, 0, 1, SYNC);
    lab.w32(at(0, 8), EN | 2);
    lab.run_commands();
    assert_eq!(lab.r32(at(0, 0xc)), EN | 1, "waits");
    enable(&mut lab, 2);
    put(&mut lab, 2, 0, [0x11 | 9 << 48, 0]);
    lab.w32(at(2, 8), EN | 1);
    lab.run_commands();
    assert_eq!(lab.r32(at(2, 0xc)), EN | 1);
    lab.unmap(&mut tables, 3, 0x1000);
    assert_eq!(lab.read(0x1000), End::Abort, "the TLBI worked");
    lab.smmu.complete(old);
    lab.run_commands();
    assert_eq!(lab.r32(at(0, 0xc)), EN | 2);
}

/// 3.5.6.3: an error stops its queue alone until ERRACK follows ERR, whatever GERROR says.
#[test]
fn errors() {
    let mut lab = Lab::new(config());
    for n in 0..2 {
        enable(&mut lab, n);
        put(&mut lab, n, 0, [if n == 0 { 0xff } else { SYNC[0] }, 0]);
        lab.w32(at(n, 8), EN | 1);
    }
    lab.push(SYNC);
    lab.run_commands();
    assert_eq!(lab.r32(at(0, 0xc)), EN | 1 << 24 | ERR, "CERROR_ILL, RD at the command");
    assert_eq!(lab.r32(at(1, 0xc)), EN | 1);
    assert!(lab.idle());
    assert_eq!(lab.r32(r::GERROR), gerror::CMDQP_ERR);
    lab.w32(r::GERRORN, gerror::CMDQP_ERR);
    lab.run_commands();
    assert_eq!(lab.r32(at(0, 0xc)) & 0xf_ffff, 0, "GERRORN does not start it");
    put(&mut lab, 0, 0, SYNC);
    lab.w32(at(0, 8), EN | ERR | 1);
    lab.run_commands();
    assert_eq!(lab.r32(at(0, 0xc)) & (EN | ERR | 0xf_ffff), EN | ERR | 1);
    lab.ram.holes.push(BASES..BASES + 0x1000);
    lab.w32(at(0, 8), EN | ERR | 2);
    lab.run_commands();
    assert_eq!(lab.r32(at(0, 0xc)), EN | 2 << 24 | 1, "CERROR_ABT, and ERR toggles back");
    assert_eq!(lab.r32(r::GERROR), 0);
}

/// 6.3.107 to 6.3.109: base and CONS are guarded while the queue is enabled; disabled, it consumes nothing.
#[test]
fn guarded() {
    let mut lab = Lab::new(config());
    enable(&mut lab, 0);
    lab.w64(at(0, 0), 0);
    lab.w32(at(0, 0xc), 5);
    assert_eq!((lab.r32(at(0, 0)), lab.r32(at(0, 0xc))), (BASES as u32 | 4, EN));
    lab.w32(at(0, 8), 1);
    assert_eq!(lab.r32(at(0, 0xc)), 0, "ENACK follows");
    assert!(!lab.smmu.command_pending());
    lab.w32(at(0, 0xc), 5);
    assert_eq!(lab.r32(at(0, 0xc)), 5);
    let cr1 = lab.r32(r::CR1);
    enable(&mut lab, 1);
    lab.w32(r::CR0, 0);
    lab.w32(r::CR1, !cr1 & 0x3f);
    assert_eq!(lab.r32(r::CR1) & 0x3f, cr1 & 0x3f, "CR1.QUEUE_* is guarded, too");
}

/// 7.1 and 3.5.6.3: an ATC invalidation that is not confirmed stops the queue that it came from, at its next CMD_SYNC, with
/// CERROR_ATC_INV_SYNC; the CMD_SYNCs of other queues complete.
#[test]
fn time_outs_are_reported_where_they_belong() {
    let mut lab = Lab::new(Config { ats: true, ..config() });
    for n in 0..2 {
        enable(&mut lab, n);
        put(&mut lab, n, 0, [0x40 | u64::from(SID) << 32, n << 12]);
        put(&mut lab, n, 1, SYNC);
        lab.w32(at(n, 8), EN | 2);
    }
    lab.push(SYNC);
    lab.run_commands();
    let requests: Vec<_> = std::iter::from_fn(|| lab.smmu.take_atc_invalidation()).collect();
    assert_eq!(requests.len(), 2);
    for request in requests {
        match request.address {
            0 => lab.smmu.atc_invalidation_done(request.id),
            _ => lab.smmu.atc_invalidation_timed_out(request.id),
        }
    }
    lab.run_commands();
    assert!(lab.idle(), "CMDQ had none");
    assert_eq!(lab.r32(at(0, 0xc)), EN | 2, "confirmed");
    assert_eq!(lab.r32(at(1, 0xc)), EN | 3 << 24 | ERR | 1, "CERROR_ATC_INV_SYNC, at the CMD_SYNC");
    assert_eq!(lab.r32(r::GERROR), gerror::CMDQP_ERR);
    lab.w32(at(1, 8), EN | ERR | 2);
    lab.run_commands();
    assert_eq!(lab.r32(at(1, 0xc)) & 0xf_ffff, 2, "said once");
}

/// 3.5.6.1 and 4.7.3: a CMD_SYNC of an enhanced queue signals as any does; the queue wraps at its size.
#[test]
fn signals_and_wraps() {
    let mut lab = Lab::new(config());
    enable(&mut lab, 2);
    for n in 0..64u64 {
        put(&mut lab, 2, n % 16, [0x46 | 1 << 12 | n << 32, 0x1500_0040]);
        let prod = (n as u32 + 1) % 32;
        lab.w32(at(2, 8), EN | prod);
        lab.run_commands();
        assert_eq!(lab.r32(at(2, 0xc)), EN | prod, "{n}");
        let msis = lab.msis();
        assert_eq!(msis.len(), 1);
        assert_eq!((msis[0].address, msis[0].data), (0x1500_0040, n as u32));
    }
}
