//! Sections 3.4 and 5.2: stage 2, alone and under stage 1.

use pgtable::{Builder, Granule, Stage2, descriptor as d};
use smmu_model::{AccessKind, Config, Shareability, Transaction};

use crate::lab::*;

const STREAMID: u64 = (SID as u64) << 32;
const READ: u64 = 1 << 35;
const S2: u64 = 1 << 39;
const CLASS_CD: u64 = 0;
const CLASS_TT: u64 = 1 << 40;
const CLASS_IN: u64 = 2 << 40;
/// Only for an F_PERMISSION with CLASS=TT: the descriptor was read.
const TT_READ: u64 = 1 << 44;
/// What stage 2 adds to an IPA in these tests.
const SHIFT: u64 = 0x1_0000_0000;
const VMID: u64 = 7;

fn config() -> Config {
    linux()
}

/// 40-bit IPA from level 1 with 4 KiB pages.
fn tables(lab: &mut Lab) -> Builder {
    let mut cfg = Stage2 { granule: Granule::G4K, tsz: 24, sl0: 1, oas: 44, ..Stage2::default() };
    lab.tables2(&mut cfg)
}

/// Words 2 and 3 of an STE for those tables: S2PS 44 bits, AA64, R.
fn s2_words(vmid: u64) -> [u64; 2] {
    [vmid | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58, S2_TABLES]
}

fn ste(config: u64, word0: u64, vmid: u64) -> [u64; 4] {
    let [w2, w3] = s2_words(vmid);
    [1 | config << 1 | word0, 1 << 44, w2, w3]
}

fn stage2_only() -> (Lab, Builder) {
    let mut lab = Lab::new(config());
    let tables = tables(&mut lab);
    lab.ste(SID, ste(6, 0, VMID));
    (lab, tables)
}

/// Stage 1 tables, and the CD, at IPAs; stage 2 maps all that to where the test put it: IPA = PA.
fn nested() -> (Lab, Builder, Builder) {
    let mut lab = Lab::new(config());
    let stage1 = lab.tables(Granule::G4K, 16, TABLES);
    lab.context(0, CdFields::default());
    let mut stage2 = tables(&mut lab);
    lab.map(&mut stage2, TABLES, TABLES, 0x40_0000, S2_RW);
    lab.map(&mut stage2, CDS, CDS, 0x1000, S2_RW);
    lab.ste(SID, ste(7, CDS, VMID));
    (lab, stage1, stage2)
}

/// Config 0b110.
#[test]
fn alone() {
    let (mut lab, mut stage2) = stage2_only();
    lab.map(&mut stage2, 0x4000_1000, 0x4000_1000 + SHIFT, 0x1000, S2_RW);
    assert_eq!(lab.fetches(|lab| lab.read(0x4000_1234)), (4, End::To(0x4000_1234 + SHIFT)));
    assert_eq!(lab.fetches(|lab| lab.read(0x4000_1234)), (0, End::To(0x4000_1234 + SHIFT)));
    assert_eq!(lab.read(0x4000_2fff), End::Abort);
    assert_eq!(lab.event(), [0x10 | STREAMID, CLASS_IN | S2 | READ, 0x4000_2fff, 0x4000_2000]);
    assert_eq!(lab.read(1 << 40), End::Abort, "beyond T0SZ");
    assert_eq!(lab.event(), [0x10 | STREAMID, CLASS_IN | S2 | READ, 1 << 40, 1 << 40]);
    assert_eq!(lab.read(1 << 44), End::Abort, "beyond IAS, which is a stage 1 matter (3.4)");
    assert_eq!(lab.event(), [0x11 | STREAMID, CLASS_IN | READ, 1 << 44, 0]);
    let stats = lab.smmu.stats();
    assert_eq!((stats.translated, stats.tlb_hits, stats.tlb_misses), (2, 1, 3));
}

/// Permissions of stage 2; S2R=0 keeps faults out of the queue.
#[test]
fn permissions() {
    let (mut lab, mut stage2) = stage2_only();
    lab.map(&mut stage2, 0x1000, 0x1000, 0x1000, S2_RW & !d::S2AP_WRITE);
    for _ in 0..2 {
        assert_eq!(lab.write(0x1008), End::Abort);
        assert_eq!(lab.event(), [0x13 | STREAMID, CLASS_IN | S2, 0x1008, 0x1000]);
        assert_eq!(lab.read(0x1008), End::To(0x1008));
    }
    let [w0, w1, w2, w3] = ste(6, 0, VMID);
    lab.ste(SID, [w0, w1, w2 & !(1 << 58), w3]);
    lab.command(cfgi_ste(SID));
    assert_eq!(lab.write(0x1008), End::Abort);
    assert!(lab.events().is_empty());
}

/// Config 0b111: 4 levels of stage 1 behind stage 2, all cached as they come.
#[test]
fn two_stages() {
    let (mut lab, mut stage1, mut stage2) = nested();
    lab.map(&mut stage1, 0x12_3456_7000, 0x5000_0000, 0x1000, RW);
    lab.map(&mut stage2, 0x5000_0000, 0x5000_0000 + SHIFT, 0x1000, S2_RW);
    let t = Transaction::new(SID, 0x12_3456_7123, AccessKind::Write);
    // STE 1; CD: 3 and itself; tables (one 2 MiB block): 2 and 4 descriptors; the output: 3.
    assert_eq!(lab.fetches(|lab| lab.dma(t)), (1 + 3 + 1 + 2 + 4 + 3, End::To(0x5000_0123 + SHIFT)));
    assert_eq!(lab.fetches(|lab| lab.dma(t)), (0, End::To(0x5000_0123 + SHIFT)));
}

/// 7.3: stage 2 faults of a nested stream say what was accessed: a CD, a table, the output.
#[test]
fn classes() {
    let (mut lab, mut stage1, mut stage2) = nested();
    lab.map(&mut stage1, 0x1000, 0x5000_0000, 0x1000, RW);
    assert_eq!(lab.read(0x1010), End::Abort);
    assert_eq!(lab.event(), [0x10 | STREAMID, CLASS_IN | S2 | READ, 0x1010, 0x5000_0000]);
    lab.unmap(&mut stage2, 3, CDS);
    lab.command(CFGI_ALL);
    lab.command(NSNH_ALL);
    assert_eq!(lab.read(0x1010), End::Abort);
    assert_eq!(lab.event(), [0x10 | STREAMID, CLASS_CD | S2 | READ, 0x1010, CDS]);
    lab.map(&mut stage2, CDS, CDS, 0x1000, S2_RW);
    lab.unmap(&mut stage2, 2, TABLES);
    lab.unmap(&mut stage2, 2, TABLES + 0x20_0000);
    assert_eq!(lab.read(0x1010), End::Abort);
    assert_eq!(lab.event(), [0x10 | STREAMID, CLASS_TT | S2 | READ, 0x1010, TABLES]);
    // Tables that stage 2 does not let read.
    lab.map(&mut stage2, TABLES, TABLES, 0x20_0000, d::AF | d::S2AP_WRITE | 0xf << 2);
    assert_eq!(lab.read(0x1010), End::Abort);
    assert_eq!(lab.event(), [0x13 | STREAMID, TT_READ | CLASS_TT | S2 | READ, 0x1010, TABLES]);
}

/// 7.3.12: an external abort on a stage 2 descriptor, for a stage 1 descriptor.
#[test]
fn external_abort() {
    let (mut lab, _, _) = nested();
    lab.read(0);
    lab.events();
    lab.command([0x2a | VMID << 32, TABLES]);
    lab.ram.holes.push(S2_TABLES..S2_TABLES + 0x2000);
    assert_eq!(lab.read(0), End::Abort);
    let event = lab.event();
    assert_eq!(event[..3], [0x0b | STREAMID, CLASS_TT | S2 | READ, 0]);
    assert_eq!(event[3], S2_TABLES);
}

/// S2PTW: stage 1 tables in Device memory are refused.
#[test]
fn protected_table_walks() {
    let (mut lab, mut stage1, mut stage2) = nested();
    lab.map(&mut stage1, 0x1000, CDS, 0x1000, RW);
    lab.unmap(&mut stage2, 2, TABLES);
    lab.map(&mut stage2, TABLES, TABLES, 0x20_0000, S2_RW & !(0xf << 2) | 1 << 2);
    assert_eq!(lab.read(0x1000), End::To(CDS), "allowed without");
    let [w0, w1, w2, w3] = ste(7, CDS, VMID);
    lab.ste(SID, [w0, w1, w2 | 1 << 54, w3]);
    lab.command(CFGI_ALL);
    lab.command(NSNH_ALL);
    assert_eq!(lab.read(0x1000), End::Abort);
    assert_eq!(lab.event(), [0x13 | STREAMID, TT_READ | CLASS_TT | S2 | READ, 0x1000, TABLES]);
}

/// Both stages' permissions count, and the record says whose was missing, from a cached entry as well.
#[test]
fn combined_permissions() {
    let (mut lab, mut stage1, mut stage2) = nested();
    lab.map(&mut stage1, 0x1000, 0x5000_0000, 0x1000, RW);
    lab.map(&mut stage1, 0x2000, 0x5000_1000, 0x1000, RO);
    lab.map(&mut stage2, 0x5000_0000, 0x5000_0000, 0x1000, S2_RW & !d::S2AP_WRITE);
    lab.map(&mut stage2, 0x5000_1000, 0x5000_1000, 0x1000, S2_RW);
    for _ in 0..2 {
        assert_eq!(lab.write(0x1000), End::Abort);
        assert_eq!(lab.event(), [0x13 | STREAMID, CLASS_IN | S2, 0x1000, 0x5000_0000]);
        assert_eq!(lab.write(0x2000), End::Abort);
        assert_eq!(lab.event(), [0x13 | STREAMID, CLASS_IN, 0x2000, 0]);
        assert_eq!(lab.read(0x1000), End::To(0x5000_0000));
        assert_eq!(lab.read(0x2000), End::To(0x5000_1000));
    }
}

/// 13.1.5: the more restrictive memory type of the two stages.
#[test]
fn combined_attributes() {
    let (mut lab, mut stage1, mut stage2) = nested();
    lab.map(&mut stage1, 0x1000, 0x5000_0000, 0x1000, RW);
    let memattr = |n: u64| S2_RW & !(0xf << 2) & !(3 << 8) | n << 2;
    for (stage2_attr, mair, shareability) in [
        (memattr(0xf), 0xff, Shareability::Inner),
        (memattr(0x5), 0x44, Shareability::Outer),
        (memattr(0x1), 0x04, Shareability::Outer),
    ] {
        lab.map(&mut stage2, 0x5000_0000, 0x5000_0000, 0x1000, stage2_attr);
        lab.command(NSNH_ALL);
        let (id, t) = lab.translate(Transaction::new(SID, 0x1000, AccessKind::Read)).unwrap();
        lab.smmu.complete(id);
        assert_eq!((t.attrs.mair, t.attrs.shareability), (mair, shareability));
    }
}

/// 5.2 and DDI 0487, D8.6.6: S2FWB: stage 2 forces write-back, or passes on what stage 1 says; ignored without FWB.
#[test]
fn forced_write_back() {
    const WB: (u8, Shareability) = (0xff, Shareability::Inner);
    const NC: (u8, Shareability) = (0x44, Shareability::Outer);
    const DEVICE: (u8, Shareability) = (0x04, Shareability::Outer);
    // MemAttr; then the result over stage 1 write-back, Device-nGnRE, non-cacheable (MAIR fields 0, 1, 2).
    for (memattr, expected) in [
        (6, [WB, (0xff, Shareability::Outer), (0xff, Shareability::Outer)]),
        (7, [WB, DEVICE, NC]),
        (5, [NC, DEVICE, NC]),
        (1, [DEVICE, DEVICE, DEVICE]),
    ] {
        let mut lab = Lab::new(Config { fwb: true, ..config() });
        let mut stage1 = lab.tables(Granule::G4K, 16, TABLES);
        lab.context(0, CdFields::default());
        let mut stage2 = tables(&mut lab);
        lab.map(&mut stage2, TABLES, TABLES, 0x40_0000, S2_RW & !(0xf << 2) | 6 << 2);
        lab.map(&mut stage2, CDS, CDS, 0x1000, S2_RW & !(0xf << 2) | 6 << 2);
        lab.map(
            &mut stage2,
            0x5000_0000,
            0x5000_0000,
            0x1000,
            S2_RW & !(0xf << 2) & !(3 << 8) | memattr << 2,
        );
        let [w0, w1, w2, w3] = ste(7, CDS, VMID);
        lab.ste(SID, [w0, w1 | 1 << 25, w2, w3]);
        let got = [0, 1, 2].map(|index| {
            let va = 0x1000 * (u64::from(index) + 1);
            lab.map(&mut stage1, va, 0x5000_0000, 0x1000, RW | d::attr_index(index));
            let (id, t) = lab.translate(Transaction::new(SID, va, AccessKind::Read)).unwrap();
            lab.smmu.complete(id);
            (t.attrs.mair, t.attrs.shareability)
        });
        assert_eq!(got, expected, "MemAttr {memattr}");
    }
}

/// 4.4: what the commands for two stages remove: the combined entry, stage 2's of the output, both of another VMID.
#[test]
fn invalidation() {
    let commands: &[(&str, [u64; 2], usize)] = &[
        ("TLBI_NH_VA", [0x12 | VMID << 32 | 1 << 48, 0x1000], 4),
        ("TLBI_NH_VA of another VMID", [0x12 | 1 << 48, 0x1000], 0),
        ("TLBI_NH_ALL", [0x10 | VMID << 32, 0], 4),
        ("TLBI_S2_IPA leaves combined entries", [0x2a | VMID << 32, 0x5000_0000], 0),
        ("TLBI_S12_VMALL", [0x28 | VMID << 32, 0], 4 + 2 + 3),
        ("TLBI_S12_VMALL of another VMID", [0x28, 0], 0),
        ("TLBI_NSNH_ALL", NSNH_ALL, 4 + 2 + 3),
    ];
    for (what, command, fetches) in commands {
        let (mut lab, mut stage1, mut stage2) = nested();
        lab.map(&mut stage1, 0x1000, 0x5000_0000, 0x1000, RW);
        lab.map(&mut stage2, 0x5000_0000, 0x5000_0000, 0x1000, S2_RW);
        lab.read(0x1000);
        lab.command(*command);
        assert_eq!(lab.fetches(|lab| lab.read(0x1000)).0, *fetches, "{what}");
    }
    let (mut lab, mut stage1, mut stage2) = nested();
    lab.map(&mut stage1, 0x1000, 0x5000_0000, 0x1000, RW);
    lab.map(&mut stage2, 0x5000_0000, 0x5000_0000, 0x1000, S2_RW);
    lab.read(0x1000);
    lab.command([0x2a | VMID << 32, 0x5000_0000]);
    lab.command([0x10 | VMID << 32, 0]);
    assert_eq!(
        lab.fetches(|lab| lab.read(0x1000)).0,
        4 + 3,
        "TLBI_S2_IPA and NH_ALL: stage 2's entry of the output"
    );
}

/// A stage 1 block over smaller stage 2 pages: any of its addresses invalidates all the pieces.
#[test]
fn pieces_of_a_block() {
    let (mut lab, mut stage1, mut stage2) = nested();
    lab.map(&mut stage1, 0x40_0000, 0x5000_0000, 0x20_0000, RW);
    lab.map(&mut stage2, 0x5000_0000, 0x6000_0000, 0x1000, S2_RW);
    lab.map(&mut stage2, 0x5000_1000, 0x7000_0000, 0x1000, S2_RW);
    assert_eq!(lab.read(0x40_0010), End::To(0x6000_0010));
    assert_eq!(lab.read(0x40_1010), End::To(0x7000_0010));
    let t = Transaction::new(SID, 0x40_1010, AccessKind::Read);
    let (id, translation) = lab.translate(t).unwrap();
    lab.smmu.complete(id);
    assert_eq!(translation.bytes, 0xff0);
    lab.command([0x12 | VMID << 32 | 1 << 48, 0x5f_f000]);
    assert_ne!(lab.fetches(|lab| lab.read(0x40_0010)).0, 0);
    assert_ne!(lab.fetches(|lab| lab.read(0x40_1010)).0, 0);
}

/// 3.4: with S1DSS a nested stream's transactions without SubstreamID go through stage 2 alone.
#[test]
fn default_substream_of_a_nested_stream() {
    let mut lab = Lab::new(Config { ssidsize: 8, ..config() });
    let mut stage2 = tables(&mut lab);
    lab.map(&mut stage2, 0x1000, 0x9000, 0x1000, S2_RW);
    let [w0, w1, w2, w3] = ste(7, CDS | 4 << 59, VMID);
    lab.ste(SID, [w0, w1 | 1, w2, w3]);
    assert_eq!(lab.read(0x1010), End::To(0x9010));
}

/// 7.3.5: what makes stage 2 fields bad.
#[test]
fn bad_stes() {
    let [w0, w1, w2, w3] = ste(6, 0, VMID);
    let bad = [
        ("S2AA64=0", [w0, w1, w2 & !(1 << 51), w3]),
        ("S2ENDI", [w0, w1, w2 | 1 << 52, w3]),
        ("S2HA", [w0, w1, w2 | 1 << 56, w3]),
        ("S2HD", [w0, w1, w2 | 1 << 55, w3]),
        ("S2S without stall", [w0, w1, w2 | 1 << 57, w3]),
        ("S2TG reserved", [w0, w1, w2 | 3 << 46, w3]),
        ("S2T0SZ beyond OAS", [w0, w1, w2 & !(0x3f << 32) | 16 << 32, w3]),
        ("S2SL0 does not suit S2T0SZ", [w0, w1, w2 & !(3 << 38), w3]),
        ("S2TTB beyond OAS", [w0, w1, w2, 1 << 44]),
    ];
    for (what, ste) in bad {
        let (mut lab, _) = stage2_only();
        lab.ste(SID, ste);
        assert_eq!(lab.read(0), End::Abort, "{what}");
        assert_eq!(lab.event(), [0x04 | STREAMID, 0, 0, 0], "{what}");
    }
}

/// 5.2: XN of stage 2, with XNX by privilege.
#[test]
fn execute_never() {
    for (xnx, privileged) in [(false, End::Abort), (true, End::To(0x1000))] {
        let mut lab = Lab::new(Config { xnx, ..config() });
        let mut stage2 = tables(&mut lab);
        lab.ste(SID, ste(6, 0, VMID));
        lab.map(&mut stage2, 0x1000, 0x1000, 0x1000, S2_RW | d::XN | d::PXN);
        let fetch = Transaction { instruction: true, ..Transaction::new(SID, 0x1000, AccessKind::Read) };
        assert_eq!(lab.dma(fetch), End::Abort);
        assert_eq!(lab.dma(Transaction { privileged: true, ..fetch }), privileged, "xnx {xnx}");
    }
}

/// 5.2 and 7.3.15: S2AFFD turns stage 2's access flag faults off, of stage 1's tables as well; CD.AFFD does not.
#[test]
fn access_flag() {
    for (affd, s2affd) in [(false, false), (true, false), (false, true)] {
        let (mut lab, mut stage1, mut stage2) = nested();
        lab.map(&mut stage1, 0x1000, 0x5000_0000, 0x1000, RW);
        lab.map(&mut stage2, 0x5000_0000, 0x5000_0000 + SHIFT, 0x1000, S2_RW & !d::AF);
        let word0 = cd(16, 0, 1) | u64::from(affd) << 35;
        lab.context(0, CdFields { word0, ..CdFields::default() });
        let [w0, w1, w2, w3] = ste(7, CDS, VMID);
        lab.ste(SID, [w0, w1, w2 | u64::from(s2affd) << 53, w3]);
        match s2affd {
            true => assert_eq!(lab.read(0x1010), End::To(0x5000_0010 + SHIFT)),
            false => {
                assert_eq!(lab.read(0x1010), End::Abort);
                assert_eq!(lab.event(), [0x12 | STREAMID, CLASS_IN | S2 | READ, 0x1010, 0x5000_0000]);
            }
        }
    }
}

/// 5.2 and 7.3.14: outputs and tables beyond S2PS are address size faults of stage 2, however wide OAS is.
#[test]
fn output_size() {
    let (mut lab, mut stage2) = stage2_only();
    lab.map(&mut stage2, 0x1000, 1 << 40, 0x1000, S2_RW);
    lab.map(&mut stage2, 0x4000_0000, 0x4000_0000, 0x1000, S2_RW);
    let [w0, w1, w2, w3] = ste(6, 0, VMID);
    lab.ste(SID, [w0, w1, w2 & !(7 << 48) | 2 << 48, w3]);
    assert_eq!(lab.read(0x1000), End::Abort);
    assert_eq!(lab.event(), [0x11 | STREAMID, CLASS_IN | S2 | READ, 0x1000, 0x1000]);
    assert_eq!(lab.read(0x4000_0000), End::To(0x4000_0000));
    lab.command(NSNH_ALL);
    let at = stage2.entry(&mut Words(&lab.ram), 1, 0x4000_0000).unwrap();
    lab.ram.set(at, lab.ram.word(at) | 1 << 41);
    assert_eq!(lab.read(0x4000_0008), End::Abort);
    assert_eq!(lab.event(), [0x11 | STREAMID, CLASS_IN | S2 | READ, 0x4000_0008, 0x4000_0000]);
}
