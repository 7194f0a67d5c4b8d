//! Sections 3.5.3, 7.2 and 7.4: the event queue.

use smmu_model::spec::event::EventCode;
use smmu_model::spec::registers::{self as r, cr0, gerror};
use smmu_model::{AccessKind, Config, Transaction};

use crate::lab::*;

fn faulty(lab: &mut Lab, n: u64) {
    for n in 0..n {
        lab.dma(Transaction::new(255, n << 12, AccessKind::Read));
    }
}

/// 7.2: each record is written in a step of its own, in order.
#[test]
fn records_are_steps() {
    let mut lab = Lab::new(linux());
    faulty(&mut lab, 3);
    for n in 0..3 {
        assert_eq!(lab.r32(r::EVENTQ_PROD), n);
        assert!(lab.smmu.event_pending());
        lab.smmu.step_event(&lab.ram);
    }
    assert!(!lab.smmu.event_pending());
    assert_eq!(lab.events().len(), 3);
    assert_eq!(lab.smmu.stats().events[&EventCode::CBadSte], 3);
}

/// 7.4: a full queue loses records and toggles OVFLG, once until OVACKFLG follows.
#[test]
fn overflow() {
    let mut lab = Lab::new(linux());
    let size = 1 << LOG2_EVENTQ;
    let write_all = |lab: &mut Lab| {
        while lab.smmu.event_pending() {
            lab.smmu.step_event(&lab.ram);
        }
    };
    faulty(&mut lab, size);
    write_all(&mut lab);
    assert_eq!(lab.r32(r::EVENTQ_PROD), 1 << LOG2_EVENTQ, "full, nothing lost");
    faulty(&mut lab, 2);
    write_all(&mut lab);
    assert_eq!(lab.r32(r::EVENTQ_PROD), r::OVERFLOW | 1 << LOG2_EVENTQ);
    assert_eq!(lab.smmu.stats().events_dropped, 2);
    assert_eq!(lab.r32(r::GERROR), 0, "an overflow is no global error");
    // Room again, not acknowledged: records go on, and a second overflow does not show.
    lab.w32(r::EVENTQ_CONS, 1);
    faulty(&mut lab, 2);
    write_all(&mut lab);
    assert_eq!(lab.r32(r::EVENTQ_PROD), r::OVERFLOW | 1 << LOG2_EVENTQ | 1);
    lab.w32(r::EVENTQ_CONS, r::OVERFLOW | 1);
    faulty(&mut lab, 1);
    write_all(&mut lab);
    assert_eq!(lab.r32(r::EVENTQ_PROD), 1 << LOG2_EVENTQ | 1, "acknowledged: it toggles again");
}

/// More events than the FIFO holds overflow, too.
#[test]
fn fifo_overflow() {
    let mut lab = Lab::new(Config { event_fifo: 4, ..linux() });
    faulty(&mut lab, 5);
    assert_eq!(lab.r32(r::EVENTQ_PROD), r::OVERFLOW);
    assert_eq!(lab.events().len(), 4);
}

/// 7.2: while the queue is disabled records are lost, without overflow.
#[test]
fn disabled() {
    let mut lab = Lab::new(linux());
    faulty(&mut lab, 1);
    lab.w32(r::CR0, cr0::SMMUEN);
    faulty(&mut lab, 1);
    lab.w32(r::CR0, cr0::SMMUEN | cr0::EVENTQEN);
    assert!(!lab.smmu.event_pending());
    assert_eq!(lab.r32(r::EVENTQ_PROD), 0);
    assert_eq!(lab.smmu.stats().events_dropped, 2);
}

/// 7.2.1: an abort on the write of a record is a global error, and no records are written until it is acknowledged.
#[test]
fn write_abort() {
    let mut lab = Lab::new(linux());
    lab.ram.holes.push(EVENTQ..EVENTQ + 0x1000);
    faulty(&mut lab, 1);
    lab.smmu.step_event(&lab.ram);
    assert_eq!(lab.r32(r::GERROR), gerror::EVENTQ_ABT_ERR);
    assert_eq!(lab.r32(r::EVENTQ_PROD), 0);
    lab.ram.holes.clear();
    faulty(&mut lab, 1);
    assert!(!lab.smmu.event_pending());
    lab.w32(r::GERRORN, gerror::EVENTQ_ABT_ERR);
    faulty(&mut lab, 1);
    assert_eq!(lab.events().len(), 1);
}

/// 3.5.1: the queue wraps, with the overflow flag out of the way.
#[test]
fn wrap() {
    let mut lab = Lab::new(linux());
    for _ in 0..5 << LOG2_EVENTQ {
        faulty(&mut lab, 1);
        assert_eq!(code(lab.event()), 0x04);
    }
}

/// 3.5.1 and 6.3.31: software may begin with any index, the same in PROD and CONS, with the wrap bit set or not.
#[test]
fn any_first_index() {
    for index in [3, 15, 16 + 9, 31] {
        let mut lab = Lab::new(linux());
        lab.w32(r::CR0, cr0::SMMUEN);
        lab.w32(r::EVENTQ_PROD, index);
        lab.w32(r::EVENTQ_CONS, index);
        lab.events_read = index;
        lab.w32(r::CR0, cr0::SMMUEN | cr0::EVENTQEN);
        for n in 0..1 << LOG2_EVENTQ {
            faulty(&mut lab, 1);
            lab.smmu.step_event(&lab.ram);
            assert_eq!(lab.r32(r::EVENTQ_PROD), (index + n + 1) & 31);
        }
        assert_eq!(lab.events().len(), 1 << LOG2_EVENTQ, "{index}");
    }
}
