//! Chapter 6: registers.

use smmu_model::spec::registers as r;
use smmu_model::{AccessKind, Config, Progress, Transaction};

use crate::lab::*;

/// 6.3.1 to 6.3.8: the default implementation is one that Linux drives.
#[test]
fn identification_of_the_linux_preset() {
    let mut lab = Lab::reset(linux());
    let idr0 = lab.r32(r::IDR0);
    assert_eq!(idr0 & 3, 0b11, "S1P and S2P");
    assert_eq!(idr0 >> 2 & 3, 0b10, "TTF: AArch64");
    assert_eq!(idr0 >> 4 & 1, 1, "COHACC");
    assert_eq!(idr0 >> 12 & 7, 0b111, "ASID16, MSI, SEV");
    assert_eq!(idr0 >> 21 & 3, 0b10, "TTENDIAN: little");
    assert_eq!(idr0 >> 24 & 3, 0b01, "STALL_MODEL: no stall");
    assert_eq!(idr0 >> 26 & 1, 1, "TERM_MODEL: abort only");
    assert_eq!(idr0 >> 27 & 3, 0b01, "ST_LEVEL: two levels");
    assert_eq!(
        idr0 & (1 << 5 | 3 << 6 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 19),
        0,
        "BTM HTTU HYP ATS PRI CD2L"
    );
    let idr1 = lab.r32(r::IDR1);
    assert_eq!((idr1 & 0x3f, idr1 >> 6 & 0x1f), (16, 0), "SIDSIZE, SSIDSIZE");
    assert_eq!(
        (idr1 >> 21 & 0x1f, idr1 >> 16 & 0x1f, idr1 >> 11 & 0x1f),
        (16, 16, 0),
        "CMDQS, EVENTQS, PRIQS"
    );
    assert_eq!(idr1 >> 28, 0, "no presets");
    assert_eq!(lab.r32(r::IDR3), 1 << 2 | 1 << 10, "HAD, RIL");
    assert_eq!(lab.r32(r::IDR0) >> 18 & 1, 1, "VMID16");
    assert_eq!(lab.r32(r::IDR5), 0x74, "4, 16 and 64 KiB, 44 bits");
    assert_eq!(lab.r32(r::AIDR), 2);
}

/// 6.3.1: what QEMU's model says of itself.
#[test]
fn identification_of_the_qemu_preset() {
    let mut lab = Lab::reset(Config::qemu());
    assert_eq!(lab.r32(r::IDR0) & 3, 0b10, "S1P, not S2P");
    assert_eq!(lab.r32(r::IDR0) & 1 << 13 | lab.r32(r::IDR0) & 1 << 14, 0, "no MSI, no SEV");
    assert_eq!(lab.r32(r::IDR1) & 0x03ff_ffff, 19 << 21 | 19 << 16 | 16);
    assert_eq!(lab.r32(r::IDR3), 1 << 2 | 1 << 10 | 2 << 11, "HAD, RIL, BBML 2");
}

/// 6.2: registers of 64 bits can be accessed as one or as two words; other accesses are RAZ/WI.
#[test]
fn access_sizes() {
    let mut lab = Lab::reset(linux());
    lab.w32(r::STRTAB_BASE, 0x1234_5680);
    lab.w32(r::STRTAB_BASE + 4, 0x0000_0056);
    assert_eq!(lab.smmu.mmio_read(r::STRTAB_BASE, 8), Some(0x56_1234_5680));
    for (offset, size) in [(0, 1), (0, 2), (2, 4), (4, 8), (0, 0), (0, 16), (r::WINDOW, 4), (u64::MAX - 7, 8)]
    {
        assert_eq!(lab.smmu.mmio_read(offset, size), None);
        lab.smmu.mmio_write(offset, size, u64::MAX);
    }
    assert_eq!(lab.smmu.mmio_read(r::WINDOW - 8, 8), Some(0));
}

/// 6.3.9: CR0ACK follows CR0, in implemented bits only.
#[test]
fn cr0_is_acknowledged() {
    let mut lab = Lab::reset(linux());
    assert_eq!(lab.r32(r::CR0ACK), 0);
    lab.w32(r::CR0, u32::MAX);
    assert_eq!(lab.r32(r::CR0), 0b1101, "CMDQEN, EVENTQEN, SMMUEN");
    assert_eq!(lab.r32(r::CR0ACK), 0b1101);
    lab.w32(r::CR0, 0);
    assert_eq!(lab.r32(r::CR0ACK), 0);
}

/// 6.3.9.6: SMMUEN=0 is acknowledged when the transactions that use it are done.
#[test]
fn disabling_waits_for_transactions() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    let (id, _) = lab.translate(Transaction::new(SID, 0x1000, AccessKind::Write)).unwrap();
    lab.w32(r::CR0, r::cr0::CMDQEN);
    assert_eq!(lab.r32(r::CR0ACK), r::cr0::CMDQEN | r::cr0::SMMUEN);
    lab.w32(r::STRTAB_BASE_CFG, 3);
    assert_eq!(lab.r32(r::STRTAB_BASE_CFG), 8, "still in use");
    assert_eq!(lab.dma(Transaction::new(SID, 0x1000, AccessKind::Write)), End::To(0x1000), "new ones bypass");
    lab.smmu.complete(id);
    assert_eq!(lab.r32(r::CR0ACK), r::cr0::CMDQEN);
    lab.w32(r::STRTAB_BASE_CFG, 3);
    assert_eq!(lab.r32(r::STRTAB_BASE_CFG), 3);
}

/// 6.3.11 and following: what is in use can not be changed.
#[test]
fn writes_are_ignored_while_enabled() {
    let mut lab = Lab::new(linux());
    let guarded = [
        (r::CR1, 0),
        (r::CR2, r::cr2::RECINVSID),
        (r::STRTAB_BASE, STRTAB as u32),
        (r::STRTAB_BASE_CFG, 8),
        (r::CMDQ_BASE, (CMDQ | LOG2_CMDQ) as u32),
        (r::CMDQ_CONS, 0),
        (r::EVENTQ_BASE, (EVENTQ | LOG2_EVENTQ) as u32),
        (r::EVENTQ_PROD, 0),
        (r::EVENTQ_IRQ_CFG0, 0),
        (r::GERROR_IRQ_CFG1, 0),
    ];
    for (offset, value) in guarded {
        lab.w32(offset, !value);
        assert_eq!(lab.r32(offset), value, "{offset:#x}");
    }
    lab.w32(r::CR0, 0);
    lab.w32(r::IRQ_CTRL, 0);
    for (offset, value) in guarded {
        lab.w32(offset, !value);
        assert_ne!(lab.r32(offset), value, "{offset:#x}");
    }
}

/// 6.3.13: GBPA takes a write with UPDATE only, and UPDATE reads as 0 when it is done.
#[test]
fn gbpa_update() {
    let mut lab = Lab::reset(linux());
    assert_eq!(lab.r32(r::GBPA), r::gbpa::SHCFG_INCOMING);
    lab.w32(r::GBPA, r::gbpa::ABORT);
    assert_eq!(lab.r32(r::GBPA), r::gbpa::SHCFG_INCOMING);
    lab.w32(r::GBPA, r::gbpa::UPDATE | r::gbpa::ABORT);
    assert_eq!(lab.r32(r::GBPA), r::gbpa::ABORT);
}

/// 3.11: with SMMUEN=0 GBPA lets transactions through or aborts them, without events.
#[test]
fn global_bypass_and_abort() {
    let mut lab = Lab::reset(linux());
    assert_eq!(lab.read(0x8765_4321), End::To(0x8765_4321));
    assert_eq!(lab.read(1 << 44), End::Abort, "beyond OAS");
    lab.w32(r::GBPA, r::gbpa::UPDATE | r::gbpa::MTCFG | 5 | 2 << 12);
    let Progress::Latched(id, t) = lab.smmu.begin(&Transaction::new(1, 0x1000, AccessKind::Read)) else {
        panic!("not bypassed")
    };
    assert_eq!((t.pa, t.bytes, t.attrs.mair), (0x1000, (1 << 44) - 0x1000, 0x44));
    lab.smmu.complete(id);
    lab.w32(r::GBPA, r::gbpa::UPDATE | r::gbpa::ABORT);
    assert_eq!(lab.read(0x1000), End::Abort);
    assert!(!lab.smmu.event_pending());
    assert_eq!(lab.smmu.stats().bypassed, 2);
}

/// 6.2: a knob makes the event queue's indices answer in page 0 as well.
#[test]
fn page_0_alias() {
    let mut lab = Lab::new(linux());
    lab.w32(r::EVENTQ_CONS, 5);
    assert_eq!(lab.r32(0xac), 0);
    let mut lab = Lab::new(Config::qemu());
    lab.w32(0xac, 5);
    assert_eq!(lab.r32(r::EVENTQ_CONS), 5);
}

/// 6.3.11: each half of CR1 is guarded by what uses it: the tables' by SMMUEN, the queues' by all of the queues.
#[test]
fn halves_of_cr1() {
    let mut lab = Lab::reset(linux());
    lab.w32(r::CR1, u32::MAX);
    assert_eq!(lab.r32(r::CR1), r::cr1::TABLE | r::cr1::QUEUE, "and no more");
    lab.w32(r::CR0, r::cr0::SMMUEN);
    lab.w32(r::CR1, 0);
    assert_eq!(lab.r32(r::CR1), r::cr1::TABLE);
    lab.w32(r::CR0, r::cr0::EVENTQEN);
    lab.w32(r::CR1, r::cr1::QUEUE);
    assert_eq!(lab.r32(r::CR1), 0);
}

/// 6.3.24, 6.3.26, 6.3.29: the bases keep their address and the allocation hint, RA or WA, and no other bit.
#[test]
fn bases() {
    let mut lab = Lab::reset(linux());
    let address = 0x00ff_ffff_ffff_ffff;
    for (offset, fields) in [
        (r::STRTAB_BASE, 1 << 62 | address & !0x3f),
        (r::CMDQ_BASE, 1 << 62 | address),
        (r::EVENTQ_BASE, 1 << 62 | address),
    ] {
        lab.w64(offset, u64::MAX);
        assert_eq!(lab.smmu.mmio_read(offset, 8), Some(fields), "{offset:#x}");
    }
    lab.w32(r::STRTAB_BASE_CFG, u32::MAX);
    assert_eq!(lab.r32(r::STRTAB_BASE_CFG), 3 << 16 | 0x7ff, "FMT, SPLIT, LOG2SIZE");
}

/// 6.3.14, 6.3.12 and 6.1: without DORMHINT STATUSR is RES0; so are AGBPA, the Secure registers to a Non-secure access,
/// and what is none.
#[test]
fn what_is_not_there_is_res0() {
    let mut lab = Lab::reset(linux());
    let secure = (0x8000..0x8200).step_by(4);
    for offset in [r::STATUSR, r::AGBPA, 0x4c, 0x78, 0xe0, 0x5_0ac & 0xfffc].into_iter().chain(secure) {
        lab.w32(offset, u32::MAX);
        assert_eq!(lab.r32(offset), 0, "{offset:#x}");
    }
    assert_eq!((lab.r32(r::CR0), lab.r32(r::IRQ_CTRL)), (0, 0), "S_CR0 and S_IRQ_CTRL are no aliases");
}

/// 6.3.75 and following: CIDR0 to CIDR3 say that it is a component of class 0xf; identification is read-only.
#[test]
fn identification_is_read_only() {
    let mut lab = Lab::reset(linux());
    assert_eq!([0xff0, 0xff4, 0xff8, 0xffc].map(|offset| lab.r32(offset)), [0x0d, 0xf0, 0x05, 0xb1]);
    let offsets = (0..0x20).step_by(4).chain((r::ID_BLOCK..0x1000).step_by(4));
    for offset in offsets {
        let before = lab.r32(offset);
        lab.w32(offset, !before);
        assert_eq!(lab.r32(offset), before, "{offset:#x}");
    }
}

/// 6.3.13: whether GBPA.ABORT is set out of reset is the implementation's; if it is, nothing passes before software says so.
#[test]
fn abort_out_of_reset() {
    let mut lab = Lab::reset(Config { gbpa_abort: true, ..linux() });
    assert_eq!(lab.r32(r::GBPA), r::gbpa::ABORT | r::gbpa::SHCFG_INCOMING);
    assert_eq!(lab.read(0x1000), End::Abort);
    lab.w32(r::GBPA, r::gbpa::UPDATE | r::gbpa::SHCFG_INCOMING);
    assert_eq!(lab.read(0x1000), End::To(0x1000));
    lab.w32(r::GBPA, u32::MAX);
    assert_eq!(lab.r32(r::GBPA), r::gbpa::FIELDS, "UPDATE reads as 0, RES0 bits are not kept");
}

/// 6.3.20: only bits of errors that exist are kept in GERRORN, and acknowledging one leaves the others active.
#[test]
fn acknowledgement_of_one_error() {
    let mut lab = Lab::new(linux());
    lab.ram.holes.push(EVENTQ..EVENTQ + 0x1000);
    lab.dma(Transaction::new(255, 0, AccessKind::Read));
    lab.smmu.step_event(&lab.ram);
    lab.push([0, 0]);
    lab.run_commands();
    let both = r::gerror::CMDQ_ERR | r::gerror::EVENTQ_ABT_ERR;
    assert_eq!(lab.r32(r::GERROR), both);
    lab.w32(r::GERRORN, r::gerror::EVENTQ_ABT_ERR);
    assert!(!lab.smmu.command_pending(), "the command queue still stands");
    lab.w32(r::GERRORN, both);
    assert!(lab.smmu.command_pending());
    lab.w32(r::GERRORN, u32::MAX);
    assert_eq!(lab.r32(r::GERRORN) & (r::gerror::SFM_ERR | 1 << 1 | !0x3ff), 0);
}
