//! Sections 3.12.2, 4.6 and 5.5: the stall model.

use smmu_model::spec::registers::{self as r, cr0};
use smmu_model::{AccessKind, Config, Progress, StallModel, Transaction, TxnId};

use crate::lab::*;

const STALL: u64 = 1 << 31;
const RETRY: u64 = 1 << 12;
const ABORT: u64 = 1 << 13;

fn lab() -> (Lab, pgtable::Builder) {
    let config = Config { stall: StallModel::Both, term_razwi: true, ..linux() };
    let (mut lab, tables) = Lab::stage1(config);
    lab.context(0, CdFields { word0: cd(16, 0, 1) | 1 << 44, ..CdFields::default() });
    (lab, tables)
}

/// Begins a transaction that stalls, and gives it with its tag.
fn stalls(lab: &mut Lab, address: u64) -> (TxnId, u64) {
    let mut progress = lab.smmu.begin(&Transaction::new(SID, address, AccessKind::Write));
    while let Progress::Walking(id) = progress {
        progress = lab.smmu.step(id, &lab.ram);
    }
    let Progress::Stalled(id) = progress else { panic!("{progress:?}") };
    let event = lab.event();
    assert_eq!((code(event), event[1] & STALL, event[2]), (0x10, STALL, address));
    (id, event[1] & 0xffff)
}

fn resume(tag: u64, action: u64) -> [u64; 2] {
    [0x44 | action | u64::from(SID) << 32, tag]
}

/// 4.6.1: Retry translates anew.
#[test]
fn retry() {
    let (mut lab, mut tables) = lab();
    let (id, tag) = stalls(&mut lab, 0x1000);
    assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Stalled(id));
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    lab.command(resume(tag, RETRY));
    let mut progress = lab.smmu.step(id, &lab.ram);
    while let Progress::Walking(id) = progress {
        progress = lab.smmu.step(id, &lab.ram);
    }
    assert!(matches!(progress, Progress::Latched(_, t) if t.pa == 0x8000_1000));
    lab.smmu.complete(id);
    assert_eq!(lab.smmu.stats().stalled, 1);
}

/// A retry that fails stalls again.
#[test]
fn retry_without_change() {
    let (mut lab, _) = lab();
    let (id, tag) = stalls(&mut lab, 0x1000);
    lab.command(resume(tag, RETRY));
    let mut progress = lab.smmu.step(id, &lab.ram);
    while let Progress::Walking(id) = progress {
        progress = lab.smmu.step(id, &lab.ram);
    }
    assert_eq!(progress, Progress::Stalled(id));
    assert_eq!(code(lab.event()), 0x10);
}

/// 4.6.1: Abort, and termination as RAZ/WI.
#[test]
fn termination() {
    let (mut lab, _) = lab();
    let (id, tag) = stalls(&mut lab, 0x1000);
    lab.command(resume(tag, ABORT));
    assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Aborted);
    let (id, tag) = stalls(&mut lab, 0x1000);
    lab.command(resume(tag ^ 1, 0));
    assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Stalled(id), "another's tag");
    lab.command(resume(tag, 0));
    assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Discarded);
    lab.command(resume(tag, 0));
}

/// 4.6.2: STALL_TERM ends all of a stream's.
#[test]
fn stall_term() {
    let (mut lab, _) = lab();
    let ids = [0x1000, 0x2000, 0x3000].map(|address| stalls(&mut lab, address).0);
    lab.command([0x45 | u64::from(SID) << 32, 0]);
    for id in ids {
        assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Aborted);
    }
}

/// 3.12.2: SMMUEN going to 0 ends them all.
#[test]
fn disabling() {
    let (mut lab, _) = lab();
    let (id, _) = stalls(&mut lab, 0x1000);
    lab.w32(r::CR0, cr0::CMDQEN);
    assert_eq!(lab.r32(r::CR0ACK), cr0::CMDQEN);
    assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Aborted);
}

/// 4.7.3: a stalled transaction holds no translation: CMD_SYNC does not wait for it.
#[test]
fn sync_does_not_wait() {
    let (mut lab, _) = lab();
    let (id, _) = stalls(&mut lab, 0x1000);
    lab.command(NSNH_ALL);
    assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Stalled(id));
    lab.smmu.complete(id);
    assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Aborted, "given up by its device");
}

/// 3.12.2: a tag is not used again before its CMD_RESUME, even if the device gave its transaction up.
#[test]
fn tags_are_kept() {
    let (mut lab, _) = lab();
    let (id, tag) = stalls(&mut lab, 0x1000);
    lab.smmu.complete(id);
    let (other, other_tag) = stalls(&mut lab, 0x2000);
    assert_ne!(tag, other_tag);
    lab.command(resume(tag, ABORT));
    assert_eq!(lab.smmu.step(other, &lab.ram), Progress::Stalled(other));
    let (_, again) = stalls(&mut lab, 0x3000);
    assert_eq!(again, tag, "now it may");
}

/// 7.2: the record of a stalled transaction is never lost.
#[test]
fn records_wait_for_room() {
    let (mut lab, _) = lab();
    let size = 1u64 << LOG2_EVENTQ;
    for n in 0..size {
        lab.dma(Transaction::new(255, n, AccessKind::Read));
    }
    while lab.smmu.event_pending() {
        lab.smmu.step_event(&lab.ram);
    }
    let mut progress = lab.smmu.begin(&Transaction::new(SID, 0x1000, AccessKind::Write));
    while let Progress::Walking(id) = progress {
        progress = lab.smmu.step(id, &lab.ram);
    }
    assert!(!lab.smmu.event_pending(), "no room");
    lab.dma(Transaction::new(255, 0, AccessKind::Read));
    assert!(lab.smmu.event_pending());
    lab.smmu.step_event(&lab.ram);
    assert_eq!(lab.r32(r::EVENTQ_PROD) & r::OVERFLOW, r::OVERFLOW, "the other one is lost");
    assert_eq!(lab.events().len() as u64, size);
    assert_eq!(lab.event()[1] & STALL, STALL);
}

/// 5.2 and 5.4: where stall may be asked for.
#[test]
fn stall_fields() {
    let forced = Config { stall: StallModel::Forced, ..linux() };
    let both = Config { stall: StallModel::Both, ..linux() };
    let s = cd(16, 0, 1) | 1 << 44;
    let [w0, w1, ..] = ste_stage1(CDS);
    let cases = [
        ("forced, S=0", &forced, cd(16, 0, 1), w1, 0x0a),
        ("S=1 with S1STALLD", &both, s, w1 | 1 << 27, 0x0a),
        ("S1STALLD where stall is forced", &forced, s, w1 | 1 << 27, 0x04),
        ("S=0 with S1STALLD", &both, cd(16, 0, 1), w1 | 1 << 27, 0x10),
    ];
    for (what, config, word0, w1, expected) in cases {
        let (mut lab, _) = Lab::stage1(config.clone());
        lab.context(0, CdFields { word0, ..CdFields::default() });
        lab.ste(SID, [w0, w1, 0, 0]);
        assert_eq!(lab.read(0), End::Abort, "{what}");
        assert_eq!(code(lab.event()), expected, "{what}");
    }
}

/// A transaction up to where it waits for software.
fn poll(lab: &mut Lab, mut progress: Progress) -> Progress {
    while let Progress::Walking(id) = progress {
        progress = lab.smmu.step(id, &lab.ram);
    }
    progress
}

fn begin(lab: &mut Lab, t: Transaction) -> TxnId {
    let progress = lab.smmu.begin(&t);
    let Progress::Stalled(id) = poll(lab, progress) else { panic!("not stalled") };
    id
}

fn suppressing() -> (Lab, pgtable::Builder) {
    let config =
        Config { stall: StallModel::Both, term_razwi: true, stall_suppress: true, ssidsize: 4, ..linux() };
    let (mut lab, tables) = Lab::stage1(config);
    lab.context(0, CdFields { word0: cd(16, 0, 1) | 1 << 44, ..CdFields::default() });
    (lab, tables)
}

/// 3.12.2.1: one record for all that stall for the same page, privilege, kind of access and SubstreamID.
#[test]
fn duplicates_are_suppressed() {
    let (mut lab, _) = suppressing();
    let t = Transaction::new(SID, 0x1000, AccessKind::Write);
    begin(&mut lab, t);
    assert_eq!(lab.events().len(), 1);
    begin(&mut lab, Transaction { address: 0x1ff8, ..t });
    assert!(lab.events().is_empty(), "the same page");
    let others = [
        Transaction { address: 0x2000, ..t },
        Transaction { privileged: true, ..t },
        Transaction { kind: AccessKind::Read, ..t },
        Transaction { kind: AccessKind::Read, instruction: true, ..t },
    ];
    for other in others {
        begin(&mut lab, other);
        assert_eq!(lab.events().len(), 1, "{other:?}");
    }
    let (mut lab, _) = self::lab();
    for _ in 0..2 {
        begin(&mut lab, t);
        assert_eq!(lab.events().len(), 1, "without the option each has its own");
    }
}

/// 3.12.2.1: CMD_RESUME of the one that was recorded has all the others tried again, even if it terminates that one;
/// nobody knows the tags of the others.
#[test]
fn suppressed_stalls_are_tried_again() {
    for action in [RETRY, ABORT] {
        let (mut lab, mut tables) = suppressing();
        let (first, tag) = stalls(&mut lab, 0x1000);
        let t = Transaction::new(SID, 0x1008, AccessKind::Write);
        let (second, third) = (begin(&mut lab, t), begin(&mut lab, t));
        for other in (0..8).filter(|&other| other != tag) {
            lab.command(resume(other, ABORT));
        }
        assert_eq!(lab.smmu.step(second, &lab.ram), Progress::Stalled(second));
        assert!(lab.events().is_empty());
        lab.command(resume(tag, action));
        let progress = lab.smmu.step(first, &lab.ram);
        let again = poll(&mut lab, progress);
        assert_eq!(again == Progress::Aborted, action == ABORT, "{again:?}");
        let progress = lab.smmu.step(second, &lab.ram);
        assert_eq!(poll(&mut lab, progress), Progress::Stalled(second));
        // The first of those that stall again is recorded.
        let event = lab.event();
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        let progress = lab.smmu.step(third, &lab.ram);
        assert!(matches!(poll(&mut lab, progress), Progress::Latched(_, t) if t.pa == 0x8000_1008));
        lab.command(resume(event[1] & 0xffff, RETRY));
        for id in [first, second] {
            let progress = lab.smmu.step(id, &lab.ram);
            let end = poll(&mut lab, progress);
            assert_eq!(matches!(end, Progress::Latched(..)), action == RETRY || id == second, "{end:?}");
        }
    }
}

/// 4.6.2, 6.3.9.6: STALL_TERM and SMMUEN=0 end suppressed ones, too.
#[test]
fn suppressed_stalls_are_terminated() {
    for disable in [false, true] {
        let (mut lab, _) = suppressing();
        let (first, _) = stalls(&mut lab, 0x1000);
        let second = begin(&mut lab, Transaction::new(SID, 0x1000, AccessKind::Write));
        match disable {
            true => lab.w32(r::CR0, cr0::CMDQEN),
            false => lab.command([0x45 | u64::from(SID) << 32, 0]),
        }
        for id in [first, second] {
            assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Aborted);
        }
        assert_eq!(lab.r32(r::CR0ACK) & cr0::SMMUEN == 0, disable);
    }
}

fn retrying() -> (Lab, pgtable::Builder) {
    let config = Config { stall: StallModel::Both, term_razwi: true, stall_retry: true, ..linux() };
    let (mut lab, tables) = Lab::stage1(config);
    lab.context(0, CdFields { word0: cd(16, 0, 1) | 1 << 44, ..CdFields::default() });
    (lab, tables)
}

/// 3.12.2.2: a stalled transaction may be tried again before software answers; that is not recorded again.
#[test]
fn early_retry() {
    let (mut lab, mut tables) = retrying();
    let (id, tag) = stalls(&mut lab, 0x1000);
    for _ in 0..2 {
        let progress = lab.smmu.step(id, &lab.ram);
        assert_eq!(poll(&mut lab, progress), Progress::Stalled(id));
        assert!(lab.events().is_empty());
    }
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    let progress = lab.smmu.step(id, &lab.ram);
    assert!(matches!(poll(&mut lab, progress), Progress::Latched(_, t) if t.pa == 0x8000_1000));
    // Terminating it now is too late: it is on its way.
    lab.command(resume(tag, ABORT));
    assert!(matches!(lab.smmu.step(id, &lab.ram), Progress::Latched(..)));
    lab.smmu.complete(id);
    assert_eq!(lab.smmu.stats().stalled, 1);
}

/// 3.12.2.2: the tag of one that has gone on is not used again before software answers.
#[test]
fn early_retry_keeps_the_tag() {
    let (mut lab, mut tables) = retrying();
    let (id, tag) = stalls(&mut lab, 0x1000);
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    let progress = lab.smmu.step(id, &lab.ram);
    let Progress::Latched(id, _) = poll(&mut lab, progress) else { panic!("not translated") };
    lab.smmu.complete(id);
    let (other, another) = stalls(&mut lab, 0x2000);
    assert_ne!(another, tag);
    lab.command(resume(tag, ABORT));
    assert_ne!(lab.smmu.step(other, &lab.ram), Progress::Aborted, "that is another's answer");
    lab.command([0x45 | u64::from(SID) << 32, 0]);
    assert_eq!(lab.smmu.step(other, &lab.ram), Progress::Aborted);
    assert_eq!(stalls(&mut lab, 0x3000).1.min(tag), tag.min(another), "the tags are free again");
}

/// 3.12.2.2: one that is tried again under a configuration that does not stall ends by it, without a record.
#[test]
fn early_retry_of_changed_configuration() {
    let (mut lab, _) = retrying();
    let (id, tag) = stalls(&mut lab, 0x1000);
    lab.context(0, CdFields::default());
    lab.command(cfgi_cd(SID, 0));
    let progress = lab.smmu.step(id, &lab.ram);
    assert_eq!(poll(&mut lab, progress), Progress::Aborted);
    assert!(lab.events().is_empty());
    lab.command(resume(tag, RETRY));
}

/// 4.6.1: CMD_RESUME of one that is just being tried again: with Retry it is as new, and recorded again; else it ends.
#[test]
fn early_retry_and_resume() {
    for action in [RETRY, ABORT] {
        let (mut lab, _) = retrying();
        let (id, tag) = stalls(&mut lab, 0x1000);
        let progress = lab.smmu.step(id, &lab.ram);
        assert_eq!(progress, Progress::Walking(id));
        lab.command(resume(tag, action));
        let progress = lab.smmu.step(id, &lab.ram);
        let end = poll(&mut lab, progress);
        match action {
            RETRY => {
                assert_eq!(end, Progress::Stalled(id));
                assert_eq!(lab.events().len(), 1);
            }
            _ => assert_eq!(end, Progress::Aborted),
        }
    }
    assert!(Config { stall_retry: true, ..linux() }.validate().is_err(), "without stalls there is none");
}

/// 4.6.1 and 4.6.2: CMD_RESUME and CMD_STALL_TERM concern the stream that they name, whatever the tag.
#[test]
fn of_another_stream() {
    let (mut lab, _) = lab();
    lab.ste(SID + 1, ste_stage1(CDS));
    let (id, tag) = stalls(&mut lab, 0x1000);
    let [w0, w1] = resume(tag, ABORT);
    lab.command([w0 + (1 << 32), w1]);
    lab.command([0x45 | u64::from(SID + 1) << 32, 0]);
    assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Stalled(id));
    let other = begin(&mut lab, Transaction::new(SID + 1, 0x1000, AccessKind::Write));
    lab.command([0x45 | u64::from(SID) << 32, 0]);
    assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Aborted);
    assert_eq!(lab.smmu.step(other, &lab.ram), Progress::Stalled(other));
}

/// 7.2: while the event queue is off, or an abort is not acknowledged, records of stalled transactions wait, and come later.
#[test]
fn records_wait_for_the_queue() {
    for abort in [false, true] {
        let (mut lab, _) = lab();
        let on = lab.r32(r::CR0);
        match abort {
            false => lab.w32(r::CR0, on & !cr0::EVENTQEN),
            true => lab.ram.holes.push(EVENTQ..EVENTQ + 0x1000),
        }
        let id = begin(&mut lab, Transaction::new(SID, 0x1000, AccessKind::Write));
        assert!(lab.events().is_empty());
        assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Stalled(id));
        lab.ram.holes.clear();
        assert!(!lab.smmu.event_pending());
        lab.w32(r::CR0, on);
        lab.w32(r::GERRORN, if abort { r::gerror::EVENTQ_ABT_ERR } else { 0 });
        let event = lab.event();
        lab.command(resume(event[1] & 0xffff, ABORT));
        assert_eq!(lab.smmu.step(id, &lab.ram), Progress::Aborted);
    }
}

/// 6.3.6 and 3.12.2: no more than STALL_MAX transactions stall at a time; more of them are terminated, and recorded so.
#[test]
fn the_most_that_stall() {
    let (mut lab, _) = lab();
    let most = lab.r32(r::IDR5) >> 16;
    for n in 0..most {
        begin(&mut lab, Transaction::new(SID, u64::from(n) << 12, AccessKind::Write));
        assert_eq!(lab.event()[1] & STALL, STALL, "{n}");
    }
    let t = Transaction::new(SID, 0x1000, AccessKind::Write);
    let progress = lab.smmu.begin(&t);
    assert_eq!(poll(&mut lab, progress), Progress::Aborted);
    assert_eq!(lab.event()[1] & STALL, 0);
    lab.command(resume(0, ABORT));
    lab.command([0x45 | u64::from(SID) << 32, 0]);
}
