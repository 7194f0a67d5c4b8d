//! Sections 3.3.1, 5.1 and 5.2: stream tables and STEs.

use smmu_model::spec::registers as r;
use smmu_model::{AccessKind, Config, Shareability, Transaction};

use crate::lab::*;

const STREAMID: u64 = (SID as u64) << 32;

/// 5.2: Config.
#[test]
fn bypass_and_abort() {
    let mut lab = Lab::new(linux());
    lab.ste(SID, STE_BYPASS);
    assert_eq!(lab.read(0x1234_5678), End::To(0x1234_5678));
    lab.ste(SID + 1, STE_ABORT);
    assert_eq!(lab.dma(Transaction::new(SID + 1, 0, AccessKind::Read)), End::Abort);
    assert!(lab.events().is_empty(), "abort by configuration records nothing");
}

/// 3.4: a bypassed address wider than OAS is an F_ADDR_SIZE.
#[test]
fn bypass_beyond_oas() {
    let mut lab = Lab::new(linux());
    lab.ste(SID, STE_BYPASS);
    assert_eq!(lab.write(1 << 44), End::Abort);
    assert_eq!(lab.event(), [0x11 | STREAMID, 2 << 40, 1 << 44, 0]);
}

/// 7.3.3: StreamIDs outside the table, recorded with CR2.RECINVSID only.
#[test]
fn bad_streamid() {
    let mut lab = Lab::new(linux());
    let t = Transaction::new(256, 0, AccessKind::Read);
    assert_eq!(lab.dma(t), End::Abort);
    assert_eq!(lab.event(), [0x02 | 256 << 32, 0, 0, 0]);
    lab.w32(r::CR0, 0);
    lab.w32(r::CR2, 0);
    lab.w32(r::CR0, r::cr0::SMMUEN | r::cr0::EVENTQEN);
    assert_eq!(lab.dma(t), End::Abort);
    assert!(lab.events().is_empty());
}

/// 7.3.5: what makes an STE bad.
#[test]
fn bad_ste() {
    let bad: [(&str, [u64; 4]); 5] = [
        ("V=0", [0; 4]),
        ("stage 2 without S2P", [1 | 6 << 1, 0, 1 << 51, 0]),
        ("nested without S2P", [1 | 7 << 1 | CDS, 0, 1 << 51, 0]),
        ("S1STALLD without stall", [1 | 5 << 1 | CDS, 1 << 27, 0, 0]),
        ("S1ContextPtr beyond OAS", [1 | 5 << 1 | 1 << 44, 0, 0, 0]),
    ];
    for (what, ste) in bad {
        let (mut lab, _) = Lab::stage1(Config { s2p: false, ..linux() });
        lab.ste(SID, ste);
        assert_eq!(lab.read(0), End::Abort, "{what}");
        assert_eq!(lab.event(), [0x04 | STREAMID, 0, 0, 0], "{what}");
    }
}

/// 7.3.4: an external abort on the fetch of an STE.
#[test]
fn ste_fetch_abort() {
    let mut lab = Lab::new(linux());
    lab.ram.holes.push(STRTAB..STRTAB + 0x4000);
    assert_eq!(lab.read(0), End::Abort);
    assert_eq!(lab.event(), [0x03 | STREAMID, 0, 0, STRTAB + u64::from(SID) * 64]);
}

fn two_level(lab: &mut Lab, log2: u32, split: u32) {
    lab.w32(r::CR0, 0);
    lab.w32(r::STRTAB_BASE_CFG, 1 << 16 | split << 6 | log2);
    lab.w32(r::CR0, r::cr0::SMMUEN | r::cr0::CMDQEN | r::cr0::EVENTQEN);
}

/// 3.3.1.2: two-level tables at every SPLIT; reserved SPLITs behave as 6.
#[test]
fn two_level_tables() {
    for (field, split) in [(6u32, 6u32), (8, 8), (10, 10), (7, 6), (0, 6)] {
        let mut lab = Lab::new(linux());
        two_level(&mut lab, 16, field);
        let sid = 0x1234u32;
        let l2 = 0x1400_0000;
        lab.ram.set(STRTAB + u64::from(sid >> split) * 8, l2 | (u64::from(split) + 1));
        let at = l2 + u64::from(sid & ((1 << split) - 1)) * 64;
        lab.ram.set(at, STE_BYPASS[0]);
        let (n, end) = lab.fetches(|lab| lab.dma(Transaction::new(sid, 0x5000, AccessKind::Read)));
        assert_eq!((n, end), (2, End::To(0x5000)), "SPLIT {split}");
        assert_eq!(*lab.ram.reads.borrow(), [STRTAB + u64::from(sid >> split) * 8, at]);
    }
}

/// 5.1: no level 2 table, one that is too short, one that is too long.
#[test]
fn spans() {
    let mut lab = Lab::new(linux());
    two_level(&mut lab, 16, 8);
    let t = Transaction::new(0x1204, 0, AccessKind::Read);
    for (span, code) in [(0, 0x02), (2, 0x02), (3, 0x04), (9, 0x04), (10, 0x02), (31, 0x02)] {
        lab.ram.set(STRTAB + 0x12 * 8, 0x1400_0000 | span);
        lab.command(CFGI_ALL);
        let mut t = t;
        t.sid = if span == 2 { 0x1202 } else { 0x1203 };
        assert_eq!(lab.dma(t), End::Abort);
        assert_eq!(lab.event()[0], code | u64::from(t.sid) << 32, "Span {span}");
    }
}

/// 6.3.24: a linear table of LOG2SIZE 0 has one STE; LOG2SIZE above SIDSIZE is SIDSIZE.
#[test]
fn table_sizes() {
    let mut lab = Lab::new(Config { sidsize: 4, ..linux() });
    lab.ste(15, STE_BYPASS);
    assert_eq!(lab.dma(Transaction::new(15, 0, AccessKind::Read)), End::To(0));
    assert_eq!(lab.dma(Transaction::new(16, 0, AccessKind::Read)), End::Abort);
    assert_eq!(lab.event(), [0x02 | 16 << 32, 0, 0, 0]);
    lab.w32(r::CR0, 0);
    lab.w32(r::STRTAB_BASE_CFG, 0);
    lab.w32(r::CR0, r::cr0::SMMUEN | r::cr0::EVENTQEN);
    assert_eq!(lab.dma(Transaction::new(1, 0, AccessKind::Read)), End::Abort);
    assert_eq!(lab.event(), [0x02 | 1 << 32, 0, 0, 0]);
}

/// 6.3.24: the table is aligned to its size as written, whatever SIDSIZE is.
#[test]
fn table_alignment() {
    for (log2, at) in [(8, 0x110), (9, 0x10)] {
        let mut lab = Lab::new(Config { sidsize: 8, ..linux() });
        lab.w32(r::CR0, 0);
        // 64 bytes times 0x100 entries beyond the alignment of 2^9 entries.
        lab.w64(r::STRTAB_BASE, STRTAB + 0x4000);
        lab.w32(r::STRTAB_BASE_CFG, log2);
        lab.w32(r::CR0, r::cr0::SMMUEN | r::cr0::EVENTQEN);
        lab.ste(at, STE_BYPASS);
        let read = lab.dma(Transaction::new(0x10, 0x7000, AccessKind::Read));
        assert_eq!(read, End::To(0x7000), "LOG2SIZE {log2}");
    }
}

/// 13.1.2 and 5.2: SHCFG, MTCFG and MemAttr override what comes in, where stage 1 does not.
#[test]
fn attribute_overrides() {
    let mut lab = Lab::new(linux());
    lab.ste(SID, [STE_BYPASS[0], 1 << 36 | 10 << 32 | 2 << 44, 0, 0]);
    let (_, t) = lab.translate(Transaction::new(SID, 0, AccessKind::Read)).unwrap();
    assert_eq!((t.attrs.mair, t.attrs.shareability), (0xbb, Shareability::Outer), "write-through, outer");
}

/// 5.2: PRIVCFG and INSTCFG change what is checked and what is recorded.
#[test]
fn privilege_and_instruction_overrides() {
    let (mut lab, mut tables) = Lab::stage1(linux());
    // Privileged only, never executable by privileged code.
    let attrs = (RW & !pgtable::descriptor::AP_USER) | pgtable::descriptor::PXN;
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, attrs);
    assert_eq!(lab.read(0x1000), End::Abort);
    assert_eq!(lab.event()[1], 2 << 40 | 1 << 35, "unprivileged data read");
    let [w0, w1, ..] = ste_stage1(CDS);
    lab.ste(SID, [w0, w1 | 3 << 48, 0, 0]);
    lab.command(cfgi_ste(SID));
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000));
    lab.ste(SID, [w0, w1 | 3 << 48 | 3 << 50, 0, 0]);
    lab.command(cfgi_ste(SID));
    assert_eq!(lab.read(0x1000), End::Abort);
    assert_eq!(lab.event()[1], 2 << 40 | 1 << 35 | 1 << 34 | 1 << 33, "privileged instruction read");
    assert_eq!(lab.write(0x1000), End::To(0x8000_1000), "writes are data");
}

/// 3.21.3: STEs can be fetched in 8-byte units, each a step.
#[test]
fn split_fetches() {
    let mut lab = Lab::new(Config { split_fetch: true, ..linux() });
    lab.ste(SID, STE_BYPASS);
    let (n, end) = lab.fetches(|lab| lab.read(0x77));
    assert_eq!((n, end), (8, End::To(0x77)));
}

/// 5.2: fields that STE.Config makes irrelevant are IGNORED, whatever is in them.
#[test]
fn irrelevant_fields_are_ignored() {
    let nonsense = [!0 << 4, 0x0bff_ffff, u64::MAX, u64::MAX];
    let mut lab = Lab::new(linux());
    lab.ste(SID, [1 | nonsense[0], u64::MAX, u64::MAX, u64::MAX]);
    assert_eq!(lab.read(0x1000), End::Abort);
    assert!(lab.events().is_empty(), "Config=0b000 is no error");
    // The VMID counts without stage 2 as well, and has 16 bits here.
    lab.ste(SID, [1 | 4 << 1 | nonsense[0], 1 << 44, nonsense[2], nonsense[3]]);
    lab.command(cfgi_ste(SID));
    assert_eq!(lab.read(0x1000), End::To(0x1000), "bypass has neither CDs nor tables");
    let (mut lab, mut tables) = Lab::stage1(linux());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    let [w0, w1, ..] = ste_stage1(CDS);
    lab.ste(SID, [w0, w1, nonsense[2], nonsense[3]]);
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000), "stage 1 alone has no stage 2 fields");
}
