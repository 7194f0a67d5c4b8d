//! Sections 3.5, 4.1 to 4.7 and 7.1: the command queue.

use smmu_model::spec::command::Opcode;
use smmu_model::spec::registers::{self as r, cr0, gerror};
use smmu_model::{AccessKind, Config, StallModel, Transaction};

use crate::lab::*;

/// 3.5.1 and 6.3.9: commands are consumed one a step, in order, with SMMUEN=0 as well, and not with CMDQEN=0.
#[test]
fn consumption() {
    let mut lab = Lab::new(linux());
    lab.w32(r::CR0, cr0::CMDQEN);
    for n in 1..=3 {
        lab.push(CFGI_ALL);
        assert_eq!(lab.r32(r::CMDQ_CONS), 0, "{n}: nothing happens in the write to PROD");
    }
    for n in 1..=3 {
        assert!(lab.smmu.command_pending());
        lab.smmu.step_command(&lab.ram);
        assert_eq!(lab.r32(r::CMDQ_CONS), n);
    }
    assert!(!lab.smmu.command_pending());
    lab.w32(r::CR0, 0);
    lab.push(SYNC);
    assert!(!lab.smmu.command_pending());
    lab.smmu.step_command(&lab.ram);
    assert_eq!(lab.r32(r::CMDQ_CONS), 3);
}

/// 3.5.1: the queue wraps.
#[test]
fn wrap() {
    let mut lab = Lab::new(linux());
    for _ in 0..5 << LOG2_CMDQ {
        lab.command(CFGI_ALL);
    }
    assert_eq!(lab.smmu.stats().commands[&Opcode::CfgiSteRange], 5 << LOG2_CMDQ);
    assert_eq!(lab.smmu.stats().commands[&Opcode::Sync], 5 << LOG2_CMDQ);
}

/// 7.1: a command that is not legal stops the queue at itself; an acknowledged error lets it go on from there.
#[test]
fn illegal_commands() {
    let illegal: [(&str, [u64; 2]); 17] = [
        ("opcode 0", [0, 0]),
        ("opcode 0xff", [0xff, 0]),
        ("SSec=1", [0x03 | 1 << 10, 0]),
        ("CFGI_ALL with SSec=1", [0x04 | 1 << 10, 31]),
        ("TLBI_EL2_ALL without HYP", [0x20, 0]),
        ("TLBI_EL2_ASID without HYP", [0x21, 0]),
        ("TLBI_EL2_VA without HYP", [0x22, 0]),
        ("TLBI_EL2_VAA without HYP", [0x23, 0]),
        ("TLBI_EL3_ALL", [0x18, 0]),
        ("TLBI_S12_VMALL without S2P", [0x28, 0]),
        ("TLBI_S2_IPA without S2P", [0x2a, 0]),
        ("ATC_INV without ATS", [0x40, 0]),
        ("PRI_RESP without PRI", [0x41, 0]),
        ("RESUME without stall", [0x44, 0]),
        ("STALL_TERM without stall", [0x45, 0]),
        ("CMD_SYNC with CS reserved", [0x46 | 3 << 12, 0]),
        ("a range of nothing", [0x12, 1 << 10]),
    ];
    for (what, command) in
        illegal.into_iter().chain([("a 16 KiB range of nothing", [0x13, 2 << 10 | 1 << 8])])
    {
        let mut lab = Lab::new(Config { s2p: false, ..linux() });
        lab.push(CFGI_ALL);
        lab.push(command);
        lab.push(SYNC);
        lab.run_commands();
        assert_eq!(lab.r32(r::CMDQ_CONS), 1 << 24 | 1, "{what}: CERROR_ILL");
        assert_eq!(lab.r32(r::GERROR), gerror::CMDQ_ERR, "{what}");
        assert!(!lab.smmu.command_pending(), "{what}");
        // As Linux does: the command becomes a CMD_SYNC, and the error is acknowledged.
        lab.ram.set(CMDQ + 16, SYNC[0]);
        lab.w32(r::GERRORN, gerror::CMDQ_ERR);
        lab.run_commands();
        assert!(lab.idle(), "{what}");
        assert_eq!(lab.r32(r::GERROR), gerror::CMDQ_ERR, "toggled once");
    }
}

/// 4.3 and following: with the feature the command is legal.
#[test]
fn features_make_commands_legal() {
    let full = Config { hyp: true, stall: StallModel::Both, ..linux() };
    for opcode in [0x20, 0x21, 0x22, 0x23, 0x28, 0x2a, 0x44, 0x45] {
        let mut lab = Lab::new(full.clone());
        lab.command([opcode, 0]);
        assert_eq!(lab.r32(r::GERROR), 0, "{opcode:#x}");
    }
    let mut lab = Lab::new(Config { s1p: false, ..linux() });
    lab.push([0x12, 0]);
    lab.run_commands();
    assert_eq!(lab.r32(r::GERROR), gerror::CMDQ_ERR, "TLBI_NH_VA without S1P");
}

/// 7.1: a command that can not be fetched.
#[test]
fn fetch_abort() {
    let mut lab = Lab::new(linux());
    lab.ram.holes.push(CMDQ..CMDQ + 16);
    lab.push(SYNC);
    lab.run_commands();
    assert_eq!(lab.r32(r::CMDQ_CONS), 2 << 24, "CERROR_ABT");
    lab.ram.holes.clear();
    lab.w32(r::GERRORN, gerror::CMDQ_ERR);
    lab.run_commands();
    assert!(lab.idle());
}

/// 4.2: prefetches are legal and have no effect that software sees.
#[test]
fn prefetch() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    lab.command([0x01 | u64::from(SID) << 32, 0]);
    lab.command([0x02 | u64::from(SID) << 32, 0x1000]);
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
}

/// 4.7.3: CMD_SYNC waits for the data of transactions that a removed translation let through, and for no others.
#[test]
fn sync_waits_for_old_transactions() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x2000, RW);
    let write = |address| Transaction::new(SID, address, AccessKind::Write);
    let (old, _) = lab.translate(write(0x1000)).unwrap();
    lab.push(SYNC);
    lab.run_commands();
    assert!(lab.idle(), "nothing was invalidated: nothing to wait for");
    lab.push(tlbi_va(1, 0x1000));
    lab.push(SYNC);
    lab.run_commands();
    assert!(!lab.idle());
    assert!(!lab.smmu.command_pending(), "waiting is no work");
    let (new, _) = lab.translate(write(0x2000)).unwrap();
    assert!(!lab.smmu.command_pending());
    lab.smmu.complete(old);
    assert!(lab.smmu.command_pending());
    lab.run_commands();
    assert!(lab.idle(), "the new transaction is none of its business");
    lab.smmu.complete(new);
}

/// 4.7.3: the same for configuration.
#[test]
fn sync_after_cfgi_waits_too() {
    let mut lab = Lab::new(linux());
    lab.ste(SID, STE_BYPASS);
    let (old, _) = lab.translate(Transaction::new(SID, 0x1000, AccessKind::Write)).unwrap();
    lab.push(cfgi_ste(SID));
    lab.push(SYNC);
    lab.run_commands();
    assert!(!lab.idle());
    lab.smmu.complete(old);
    lab.run_commands();
    assert!(lab.idle());
}

/// A CMD_SYNC that waits does not hang with the queue's restart.
#[test]
fn disabling_a_waiting_queue() {
    let mut lab = Lab::new(linux());
    lab.ste(SID, STE_BYPASS);
    let (old, _) = lab.translate(Transaction::new(SID, 0x1000, AccessKind::Write)).unwrap();
    lab.push(cfgi_ste(SID));
    lab.push(SYNC);
    lab.run_commands();
    lab.w32(r::CR0, cr0::SMMUEN);
    assert_eq!(lab.r32(r::CR0ACK), cr0::SMMUEN);
    assert_eq!(lab.r32(r::CMDQ_CONS), 1);
    lab.w32(r::CR0, cr0::SMMUEN | cr0::CMDQEN);
    lab.smmu.complete(old);
    lab.run_commands();
    assert!(lab.idle());
}

/// 3.5.1: indices that make no sense do not hang anything: each step consumes at most one command.
#[test]
fn nonsense_indices() {
    let mut lab = Lab::new(linux());
    lab.w32(r::CMDQ_PROD, 0xffff_ffff);
    for _ in 0..300 {
        lab.smmu.step_command(&lab.ram);
    }
    assert_eq!(lab.r32(r::GERROR), gerror::CMDQ_ERR, "the queue is full of zeros");
}

/// 4.1.1 and 4.1.2: of all 256 opcodes, those that a Non-secure SMMU with every feature knows are commands; the others,
/// of the Secure state, of EL3, of a DPT, of MPAM or of nobody, are illegal, each for itself.
#[test]
fn every_opcode() {
    let full = Config { hyp: true, ats: true, pri: true, stall: StallModel::Both, ..linux() };
    let known = [
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23, 0x28, 0x2a, 0x30,
        0x40, 0x41, 0x44, 0x45, 0x46,
    ];
    let mut lab = Lab::new(full);
    for opcode in 0..=0xff {
        let gerror = lab.r32(r::GERROR);
        let at = CMDQ + u64::from(lab.r32(r::CMDQ_CONS) & ((1 << LOG2_CMDQ) - 1)) * 16;
        lab.push([opcode, 0]);
        lab.run_commands();
        while let Some(invalidation) = lab.smmu.take_atc_invalidation() {
            lab.smmu.atc_invalidation_done(invalidation.id);
        }
        assert_eq!(lab.idle(), known.contains(&opcode), "{opcode:#x}");
        if !lab.idle() {
            assert_eq!(lab.r32(r::CMDQ_CONS) >> 24, 1, "{opcode:#x}: CERROR_ILL");
            assert_eq!(lab.r32(r::GERROR), gerror ^ gerror::CMDQ_ERR, "{opcode:#x}");
            lab.ram.set(at, SYNC[0]);
            lab.w32(r::GERRORN, gerror ^ gerror::CMDQ_ERR);
            lab.run_commands();
            assert!(lab.idle(), "{opcode:#x}");
        }
    }
}

/// 3.5.1 and 6.3.28: software may begin with any index, the same in PROD and CONS, with the wrap bit set or not.
#[test]
fn any_first_index() {
    for index in [5, 63, 64 + 7, 127] {
        let mut lab = Lab::new(linux());
        lab.w32(r::CR0, cr0::SMMUEN);
        lab.w32(r::CMDQ_PROD, index);
        lab.w32(r::CMDQ_CONS, index);
        lab.w32(r::CR0, cr0::SMMUEN | cr0::CMDQEN);
        assert!(!lab.smmu.command_pending(), "empty");
        lab.ram.set(CMDQ + u64::from(index & 63) * 16, SYNC[0]);
        lab.w32(r::CMDQ_PROD, (index + 1) & 127);
        lab.run_commands();
        assert_eq!(lab.r32(r::CMDQ_CONS), (index + 1) & 127);
        assert_eq!(lab.r32(r::GERROR), 0);
    }
}
