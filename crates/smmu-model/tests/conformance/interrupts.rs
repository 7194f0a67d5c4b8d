//! Sections 3.18 and 4.7.3: interrupts, MSIs, the event of CMD_SYNC.

use smmu_model::spec::registers::{self as r, cr0, gerror, irq_ctrl};
use smmu_model::{AccessKind, Config, IrqSource, Shareability, Transaction, Wired};

use crate::lab::*;

fn event(lab: &mut Lab) {
    lab.dma(Transaction::new(255, 0, AccessKind::Read));
    lab.smmu.step_event(&lab.ram);
}

/// 3.18: the event queue interrupts when it becomes non-empty.
#[test]
fn wired_event_queue() {
    let mut lab = Lab::new(linux());
    event(&mut lab);
    assert_eq!(lab.smmu.take_wired(), Wired { eventq: true, ..Wired::default() });
    event(&mut lab);
    assert!(!lab.smmu.take_wired().any(), "it was not empty");
    lab.events();
    event(&mut lab);
    assert!(lab.smmu.take_wired().eventq);
}

/// 6.3.15: IRQ_CTRL turns sources off.
#[test]
fn disabled_sources() {
    let mut lab = Lab::new(linux());
    lab.w32(r::IRQ_CTRL, 0);
    assert_eq!(lab.r32(r::IRQ_CTRLACK), 0);
    event(&mut lab);
    lab.push([0, 0]);
    lab.run_commands();
    assert_eq!(lab.r32(r::GERROR), gerror::CMDQ_ERR);
    assert!(!lab.smmu.take_wired().any() && !lab.smmu.msi_pending());
}

fn with_msis() -> Lab {
    let mut lab = Lab::new(linux());
    lab.w32(r::IRQ_CTRL, 0);
    lab.w64(r::EVENTQ_IRQ_CFG0, 0x0808_0040);
    lab.w32(r::EVENTQ_IRQ_CFG1, 0x1234);
    lab.w32(r::EVENTQ_IRQ_CFG2, 1);
    lab.w64(r::GERROR_IRQ_CFG0, 0x0809_0040);
    lab.w32(r::GERROR_IRQ_CFG1, 0x5678);
    lab.w32(r::GERROR_IRQ_CFG2, 0x35);
    lab.w32(r::IRQ_CTRL, irq_ctrl::EVENTQ | irq_ctrl::GERROR);
    lab
}

/// 3.18.1 and 3.18.2: MSIs beside the wires, with the attributes of CFG2.
#[test]
fn msis() {
    let mut lab = with_msis();
    event(&mut lab);
    lab.push([0, 0]);
    lab.run_commands();
    let both = Wired { eventq: true, gerror: true, ..Wired::default() };
    assert_eq!(lab.smmu.take_wired(), both, "the wires are not affected");
    let msis = lab.msis();
    assert_eq!(msis.len(), 2);
    assert_eq!((msis[0].address, msis[0].data, msis[0].source), (0x0808_0040, 0x1234, IrqSource::EventQ));
    assert_eq!((msis[0].attrs.mair, msis[0].attrs.shareability), (0x04, Shareability::Outer), "Device-nGnRE");
    assert_eq!((msis[1].address, msis[1].data, msis[1].source), (0x0809_0040, 0x5678, IrqSource::Gerror));
    assert_eq!((msis[1].attrs.mair, msis[1].attrs.shareability), (0x44, Shareability::Outer));
    assert_eq!(lab.smmu.stats().msis, 2);
}

/// 6.3.16: IRQ_CTRLACK says that a source is off when its MSIs are out.
#[test]
fn disabling_waits_for_msis() {
    let mut lab = with_msis();
    event(&mut lab);
    lab.w32(r::IRQ_CTRL, 0);
    assert_eq!(lab.r32(r::IRQ_CTRLACK), irq_ctrl::EVENTQ);
    lab.w32(r::EVENTQ_IRQ_CFG1, 7);
    assert_eq!(lab.r32(r::EVENTQ_IRQ_CFG1), 0x1234, "still in use");
    lab.msis();
    assert_eq!(lab.r32(r::IRQ_CTRLACK), 0);
}

/// 7.5: an MSI whose write aborts is a global error.
#[test]
fn msi_aborts() {
    let mut lab = with_msis();
    event(&mut lab);
    let msi = lab.msis()[0];
    lab.smmu.msi_aborted(&msi);
    assert_eq!(lab.r32(r::GERROR), gerror::MSI_EVENTQ_ABT_ERR);
    assert_eq!(lab.msis()[0].source, IrqSource::Gerror);
    lab.smmu.msi_aborted(&msi);
    assert_eq!(lab.r32(r::GERROR), gerror::MSI_EVENTQ_ABT_ERR, "active already");
    assert!(!lab.smmu.msi_pending());
}

/// 6.3.19: GERROR interrupts at each error that becomes active, and only then.
#[test]
fn wired_gerror() {
    let mut lab = Lab::new(linux());
    lab.push([0, 0]);
    lab.run_commands();
    assert!(lab.smmu.take_wired().gerror);
    lab.w32(r::GERRORN, gerror::CMDQ_ERR);
    assert!(!lab.smmu.take_wired().any());
    lab.run_commands();
    assert_eq!(lab.r32(r::GERROR), 0, "toggled back: active again");
    assert!(lab.smmu.take_wired().gerror);
}

/// 4.7.3: CMD_SYNC with CS=SIG_NONE, SIG_SEV, SIG_IRQ by wire and by MSI. CONS passes it in the same step; the MSI goes
/// out in one of its own.
#[test]
fn sync_signals() {
    let mut lab = Lab::new(linux());
    lab.command(SYNC);
    assert!(!lab.smmu.wired_pending() && !lab.smmu.msi_pending());
    lab.command([0x46 | 2 << 12, 0]);
    assert!(lab.smmu.take_wired().sev);
    lab.command([0x46 | 1 << 12, 0]);
    assert!(lab.smmu.take_wired().cmdq_sync);
    // As Linux polls: write 0 over the command itself, inner shareable, write-back.
    lab.push([0x46 | 1 << 12 | 3 << 22 | 0xf << 24, CMDQ + 0x40]);
    lab.run_commands();
    assert!(lab.idle());
    let msis = lab.msis();
    assert_eq!(msis.len(), 1);
    assert!(lab.smmu.take_wired().cmdq_sync, "the wire, too");
    assert_eq!((msis[0].address, msis[0].data, msis[0].source), (CMDQ + 0x40, 0, IrqSource::CmdSync));
    assert_eq!((msis[0].attrs.mair, msis[0].attrs.shareability), (0xff, Shareability::Inner));
}

/// 6.3.1: without SEV and MSI there are no such signals.
#[test]
fn signals_need_their_features() {
    let mut lab = Lab::new(Config { sev: false, msi: false, ..linux() });
    lab.command([0x46 | 2 << 12, 0]);
    assert!(!lab.smmu.take_wired().any());
    lab.command([0x46 | 1 << 12, CMDQ]);
    assert!(lab.smmu.take_wired().cmdq_sync);
    lab.w32(r::IRQ_CTRL, 0);
    lab.w64(r::EVENTQ_IRQ_CFG0, 0x1000);
    assert_eq!(lab.smmu.mmio_read(r::EVENTQ_IRQ_CFG0, 8), Some(0), "RES0");
}

/// 3.18.1: a CMD_SYNC completes after the MSI of the one before is out.
#[test]
fn sync_waits_for_the_last_msi() {
    let mut lab = Lab::new(linux());
    lab.w32(r::CR0, cr0::CMDQEN);
    for _ in 0..3 {
        lab.push([0x46 | 1 << 12, 0x1000]);
    }
    for n in 1..=3 {
        lab.run_commands();
        assert_eq!(lab.r32(r::CMDQ_CONS), n);
        assert_eq!(lab.msis().len(), 1);
    }
}

/// 4.7.3: records of transactions that are over are visible before a CMD_SYNC completes, or lost.
#[test]
fn sync_waits_for_records() {
    let mut lab = Lab::new(linux());
    for _ in 0..2 {
        lab.dma(Transaction::new(255, 0, AccessKind::Read));
    }
    lab.push(SYNC);
    lab.smmu.step_command(&lab.ram);
    assert!(!lab.idle() && !lab.smmu.command_pending());
    lab.smmu.step_event(&lab.ram);
    lab.dma(Transaction::new(255, 0, AccessKind::Read));
    assert!(!lab.smmu.command_pending());
    lab.smmu.step_event(&lab.ram);
    assert!(lab.smmu.command_pending(), "the third came later");
    lab.smmu.step_command(&lab.ram);
    assert!(lab.idle());
    // A queue that can not be written.
    lab.ram.holes.push(EVENTQ..EVENTQ + 0x1000);
    lab.dma(Transaction::new(255, 0, AccessKind::Read));
    lab.smmu.step_event(&lab.ram);
    lab.command(SYNC);
    lab.ram.holes.clear();
    lab.w32(r::GERRORN, gerror::EVENTQ_ABT_ERR);
    assert_eq!(lab.events().len(), 2, "what was lost does not turn up again");
}

/// 4.1.2: with SEV, whoever waits for room in the command queue is woken.
#[test]
fn room_in_the_queue_wakes() {
    let mut lab = Lab::new(linux());
    lab.push(CFGI_ALL);
    lab.smmu.step_command(&lab.ram);
    assert!(!lab.smmu.wired_pending());
    for _ in 0..1 << LOG2_CMDQ {
        lab.push(CFGI_ALL);
    }
    lab.smmu.step_command(&lab.ram);
    assert!(lab.smmu.take_wired().sev);
    lab.smmu.step_command(&lab.ram);
    assert!(!lab.smmu.wired_pending());
}
