//! Sections 3.3.4, 3.17 and 5.2: StreamWorlds of EL2.

use smmu_model::spec::registers::{self as r, cr0, cr2};
use smmu_model::{AccessKind, Config, Transaction};

use crate::lab::*;

/// STRW = EL2.
const EL2: u64 = 2 << 30;

fn lab(e2h: bool) -> (Lab, pgtable::Builder) {
    let (mut lab, tables) = Lab::stage1(Config { hyp: true, ..linux() });
    if e2h {
        lab.w32(r::CR0, 0);
        lab.w32(r::CR2, cr2::E2H | cr2::RECINVSID);
        lab.w32(r::CR0, cr0::SMMUEN | cr0::CMDQEN | cr0::EVENTQEN);
    }
    let [w0, w1, ..] = ste_stage1(CDS);
    lab.ste(SID, [w0, w1 | EL2, 0, 0]);
    (lab, tables)
}

/// EL2: one range, one privilege level, no ASIDs.
#[test]
fn el2() {
    let (mut lab, mut tables) = lab(false);
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW & !pgtable::descriptor::AP_USER);
    assert_eq!(lab.write(0x1000), End::To(0x8000_1000), "no unprivileged accesses to forbid");
    assert_eq!(lab.read(0xffff_0000_0000_0000), End::Abort);
    // EPD1=0 and nonsense for TTB1: not looked at.
    lab.context(0, CdFields { word0: cd(16, 0, 3) & !(1 << 30) | 63 << 16, ..CdFields::default() });
    lab.command(cfgi_cd(SID, 0));
    assert_eq!(
        lab.fetches(|lab| lab.write(0x1000)),
        (1, End::To(0x8000_1000)),
        "another ASID is no other entry"
    );
}

/// EL2-E2H: two ranges, privileges and ASIDs.
#[test]
fn el2_e2h() {
    let (mut lab, mut tables) = lab(true);
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW & !pgtable::descriptor::AP_USER);
    assert_eq!(lab.write(0x1000), End::Abort);
    let t = Transaction { privileged: true, ..Transaction::new(SID, 0x1000, AccessKind::Write) };
    assert_eq!(lab.dma(t), End::To(0x8000_1000));
    lab.context(0, CdFields { word0: cd(16, 0, 3), ..CdFields::default() });
    lab.command(cfgi_cd(SID, 0));
    assert_eq!(lab.fetches(|lab| lab.dma(t)).0, 5);
}

/// 4.4.2: TLBI_EL2_* and TLBI_NH_* keep to their world.
#[test]
fn invalidation() {
    let commands: [(&str, [u64; 2], bool, bool); 10] = [
        ("EL2_ALL", [0x20, 0], false, false),
        ("EL2_ASID", [0x21 | 1 << 48, 0], true, false),
        ("EL2_ASID of another", [0x21 | 2 << 48, 0], true, true),
        ("EL2_VA", [0x22 | 1 << 48, 0x1000], false, false),
        ("EL2_VA of another ASID", [0x22 | 2 << 48, 0x1000], false, true),
        ("EL2_VA of another address", [0x22 | 1 << 48, 0x2000], true, true),
        ("EL2_VAA", [0x23, 0x1000], false, false),
        ("NH_ALL", [0x10, 0], true, true),
        ("NH_VAA", [0x13, 0x1000], true, true),
        ("NSNH_ALL", NSNH_ALL, true, true),
    ];
    for (what, command, stays, stays_with_e2h) in commands {
        for (e2h, stays) in [(false, stays), (true, stays_with_e2h)] {
            let (mut lab, mut tables) = lab(e2h);
            lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
            lab.read(0x1000);
            lab.command(command);
            assert_eq!(lab.fetches(|lab| lab.read(0x1000)).0 == 0, stays, "{what}, E2H {e2h}");
        }
    }
}

/// Without HYP, CR2.E2H is RES0, and STRW is, too; with it odd values of STRW are bad.
#[test]
fn el2_needs_hyp() {
    let mut lab = Lab::reset(linux());
    lab.w32(r::CR2, cr2::E2H);
    assert_eq!(lab.r32(r::CR2), 0);
    let [w0, w1, ..] = ste_stage1(CDS);
    for strw in 1..=3 {
        let (mut lab, mut tables) = Lab::stage1(linux());
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW & !pgtable::descriptor::AP_USER);
        lab.ste(SID, [w0, w1 | strw << 30, 0, 0]);
        assert_eq!(lab.read(0x1000), End::Abort, "as NS-EL1: unprivileged");
        assert_eq!(code(lab.event()), 0x13);
    }
    for strw in [1, 3] {
        let (mut lab, _) = lab_with(strw);
        assert_eq!(lab.read(0x1000), End::Abort);
        assert_eq!(code(lab.event()), 0x04);
    }
}

fn lab_with(strw: u64) -> (Lab, pgtable::Builder) {
    let (mut lab, tables) = Lab::stage1(Config { hyp: true, ..linux() });
    let [w0, w1, ..] = ste_stage1(CDS);
    lab.ste(SID, [w0, w1 | strw << 30, 0, 0]);
    (lab, tables)
}
