//! Chapter 9: address translation operations.

use pgtable::{Builder, Granule, Stage2, descriptor as d};
use smmu_model::spec::registers as r;
use smmu_model::{AccessKind, Config, Progress, StallModel, Transaction};

use crate::lab::*;

/// ADDR.TYPE: stage 1, stage 2, both.
const S1: u64 = 1 << 10;
const S2: u64 = 2 << 10;
const S12: u64 = 3 << 10;
const PRIVILEGED: u64 = 1 << 9;
const READ: u64 = 1 << 8;
const INSTRUCTION: u64 = 1 << 7;
const HTTUI: u64 = 1 << 6;
const SSID_VALID: u64 = 1 << 52;
const INV_REQ: u64 = 0xff;
const INV_STAGE: u64 = 0xfe;
/// What stage 2 adds to an IPA in these tests.
const SHIFT: u64 = 0x1_0000_0000;
const VMID: u64 = 7;
const HA: u64 = 1 << 43;
const HD: u64 = 1 << 42;

fn config() -> Config {
    Config { atos: true, vatos: true, ..linux() }
}

/// Starts a lookup in the group whose CTRL is at `ctrl`.
fn run(lab: &mut Lab, ctrl: u64, sid: u64, addr: u64) {
    lab.w64(ctrl + 8, sid);
    lab.w64(ctrl + 0x10, addr);
    lab.w32(ctrl, 1);
}

fn par(lab: &mut Lab, ctrl: u64) -> u64 {
    assert_eq!(lab.r32(ctrl), 0, "RUN");
    lab.smmu.mmio_read(ctrl + 0x18, 8).unwrap()
}

/// A lookup to its end. Answers PAR.
fn ask_at(lab: &mut Lab, ctrl: u64, sid: u64, addr: u64) -> u64 {
    run(lab, ctrl, sid, addr);
    for _ in 0..200 {
        if !lab.smmu.atos_pending() {
            return par(lab, ctrl);
        }
        assert_eq!(lab.r32(ctrl), 1, "RUN stays until PAR is there");
        lab.smmu.step_atos(&lab.ram);
    }
    panic!("the lookup does not end");
}

fn ask(lab: &mut Lab, addr: u64) -> u64 {
    ask_at(lab, r::GATOS_CTRL, SID.into(), addr)
}

/// PAR of a fault: FAULTCODE, REASON, FADDR.
fn fault(code: u64, reason: u64, faddr: u64) -> u64 {
    faddr | code << 4 | reason << 1 | 1
}

/// PAR of a page of 4 KiB in write-back, inner shareable memory.
fn page(pa: u64) -> u64 {
    0xff << 56 | pa | 3 << 8
}

/// 40-bit IPA from level 1 with 4 KiB pages.
fn tables2(lab: &mut Lab) -> Builder {
    let mut cfg = Stage2 { granule: Granule::G4K, tsz: 24, sl0: 1, oas: 44, ..Stage2::default() };
    let mut tables = lab.tables2(&mut cfg);
    tables.coarsest = 3;
    tables
}

/// An STE with that stage 2: S2PS 44 bits, AA64, R.
fn ste(config: u64, word0: u64, word1: u64) -> [u64; 4] {
    let word2 = VMID | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
    [1 | config << 1 | word0, 1 << 44 | word1, word2, S2_TABLES]
}

/// Both stages: one page at VA 0x1000, IPA 0x5000_0000.
fn nested(config: Config) -> (Lab, Builder, Builder) {
    let mut lab = Lab::new(config);
    let mut first = lab.tables(Granule::G4K, 16, TABLES);
    lab.context(0, CdFields::default());
    lab.map(&mut first, 0x1000, 0x5000_0000, 0x1000, RW);
    let mut second = tables2(&mut lab);
    lab.map(&mut second, CDS, CDS, 0x1000, S2_RW);
    lab.map(&mut second, TABLES, TABLES, 0x8000, S2_RW);
    lab.map(&mut second, 0x5000_0000, 0x5000_0000 + SHIFT, 0x1000, S2_RW);
    lab.ste(SID, ste(7, CDS, 0));
    (lab, first, second)
}

/// 6.3.1, 6.3.3: IDR0.ATOS, VATOS and IDR2.BA_VATOS say what there is; what is not there is RES0.
#[test]
fn discovery() {
    let mut lab = Lab::new(config());
    assert_eq!(lab.r32(r::IDR0) & (1 << 15 | 1 << 20), 1 << 15 | 1 << 20);
    assert_eq!(0x2_0000 + (u64::from(lab.r32(r::IDR2)) << 16), r::VATOS_PAGE);
    for (atos, vatos) in [(true, false), (false, false)] {
        let mut lab = Lab::new(Config { atos, vatos, ..linux() });
        assert_eq!(lab.r32(r::IDR0) >> 15 & 1, u32::from(atos));
        assert_eq!((lab.r32(r::IDR0) >> 20 & 1, lab.r32(r::IDR2)), (0, 0));
        lab.w32(r::VATOS_SEL, 7);
        assert_eq!(lab.r32(r::VATOS_SEL), 0);
        assert_eq!(lab.smmu.mmio_read(r::VATOS_CTRL, 4), None, "no such page");
        lab.w64(r::GATOS_SID, 1);
        lab.w32(r::GATOS_CTRL, 1);
        assert_eq!((lab.r32(r::GATOS_SID), lab.r32(r::GATOS_CTRL)), if atos { (1, 1) } else { (0, 0) });
    }
    assert!(Config { vatos: true, ..linux() }.validate().is_err(), "VATOS needs ATOS");
}

/// 6.3.38, 6.3.39, 6.3.44: fields that are not implemented are RES0.
#[test]
fn register_fields() {
    let mut lab = Lab::new(Config { ssidsize: 8, sidsize: 16, vmid16: false, ..config() });
    for base in [r::GATOS_CTRL, r::VATOS_CTRL] {
        lab.w64(base + 8, u64::MAX);
        lab.w64(base + 0x10, u64::MAX);
        lab.w64(base + 0x18, u64::MAX);
        let read = |lab: &mut Lab, offset| lab.smmu.mmio_read(base + offset, 8).unwrap();
        assert_eq!(read(&mut lab, 8), SSID_VALID | 0xff << 32 | 0xffff);
        assert_eq!(read(&mut lab, 0x10), !0x3f);
        assert_eq!(read(&mut lab, 0x18), 0, "PAR is read-only");
    }
    lab.w32(r::VATOS_SEL, u32::MAX);
    assert_eq!(lab.r32(r::VATOS_SEL), 0xff);
    let mut lab = Lab::new(config());
    lab.w64(r::GATOS_SID, u64::MAX);
    assert_eq!(lab.smmu.mmio_read(r::GATOS_SID, 8), Some(0xffff), "no SubstreamIDs");
}

/// 6.3.40: the address, its size, and the attributes of the tables.
#[test]
fn results_of_stage_1() {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    lab.map(&mut tables, 0x2000, 0x8000_2000, 0x1000, RW | d::attr_index(1));
    lab.map(&mut tables, 0x20_0000, 0x8020_0000, 0x20_0000, RW);
    lab.map(&mut tables, 0x4000_0000, 0xc000_0000, 0x4000_0000, RW | d::attr_index(2));
    assert_eq!(ask(&mut lab, 0x1000 | S1 | READ), page(0x8000_1000));
    assert_eq!(ask(&mut lab, 0x2000 | S1), 0x04 << 56 | 0x8000_2000 | 2 << 8, "Device is outer shareable");
    let block = |attr: u64, pa: u64, size: u64| attr << 56 | pa | 1 << 11 | size >> 1;
    assert_eq!(ask(&mut lab, 0x2f_f000 | S1), block(0xff, 0x8020_0000, 0x20_0000) | 3 << 8);
    assert_eq!(ask(&mut lab, 0x7fff_f000 | S1), block(0x44, 0xc000_0000, 0x4000_0000) | 2 << 8);
    assert!(lab.events().is_empty());
}

/// 9: stage 1, stage 2 or both of a nested configuration; attributes are those of the stages asked for.
#[test]
fn stages_of_a_nested_stream() {
    for combined in [true, false] {
        let (mut lab, mut first, _) = nested(Config { combined, ..config() });
        lab.map(&mut first, 0x2000, 0x5000_0000, 0x1000, RW | d::attr_index(1));
        for _ in 0..2 {
            assert_eq!(ask(&mut lab, 0x1000 | S1 | READ), page(0x5000_0000));
            assert_eq!(ask(&mut lab, 0x5000_0000 | S2), page(0x5000_0000 + SHIFT));
            assert_eq!(ask(&mut lab, 0x1000 | S12), page(0x5000_0000 + SHIFT));
            assert_eq!(ask(&mut lab, 0x2000 | S12), 0x04 << 56 | (0x5000_0000 + SHIFT) | 2 << 8);
        }
    }
}

/// 9, 13.7: access properties come from ATOS_ADDR; INSTCFG, PRIVCFG, MTCFG and SHCFG are for transactions.
#[test]
fn overrides_do_not_count() {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RO & !d::AP_USER);
    // Unprivileged, instructions, Device-nGnRnE.
    lab.ste(SID, [1 | 5 << 1 | CDS, 2 << 48 | 3 << 50 | 1 << 36, 0, 0]);
    assert_eq!(ask(&mut lab, 0x1000 | S1 | READ | PRIVILEGED), page(0x8000_1000));
    assert_eq!(ask(&mut lab, 0x1000 | S1 | READ), fault(0x13, 0, 0), "unprivileged");
    assert_eq!(ask(&mut lab, 0x1000 | S1 | PRIVILEGED), fault(0x13, 0, 0), "a write");
    lab.map(&mut tables, 0x2000, 0x8000_2000, 0x1000, RW | d::XN);
    let execute = 0x2000 | S1 | INSTRUCTION;
    assert_eq!(ask(&mut lab, execute | READ), fault(0x13, 0, 0));
    assert_eq!(ask(&mut lab, execute), page(0x8000_2000), "InD of a write is ignored");
}

/// 9: neither A, R, S nor S2R, S2S have an effect: there is no record, and nothing stalls.
#[test]
fn never_stalls_or_records() {
    let (mut lab, _) = Lab::stage1(Config { stall: StallModel::Both, term_razwi: true, ..config() });
    for flags in [0, 1 << 44 | 1 << 45, 1 << 46] {
        lab.context(0, CdFields { word0: cd(16, 0, 1) & !(7 << 44) | flags, ..CdFields::default() });
        lab.command(cfgi_cd(SID, 0));
        assert_eq!(ask(&mut lab, 0x1000 | S1), fault(0x10, 0, 0));
    }
    assert_eq!((lab.smmu.stats().stalled, lab.events().len()), (0, 0));
}

/// 9.1.3: INV_REQ says that the request is none, before any structure is looked at.
#[test]
fn invalid_requests() {
    let ask_with = |config: Config, ssid: u64, addr: u64| {
        let mut lab = Lab::new(config);
        lab.fetches(|lab| ask_at(lab, r::GATOS_CTRL, u64::from(SID) | ssid, addr))
    };
    let invalid = (0, fault(INV_REQ, 0, 0));
    assert_eq!(ask_with(config(), 0, 0x1000), invalid, "TYPE 0");
    let without = |s1p, s2p| Config { s1p, s2p, vatos: false, ..config() };
    for addr in [S1, S12] {
        assert_eq!(ask_with(without(false, true), 0, addr), invalid, "no stage 1");
    }
    for addr in [S2, S12] {
        assert_eq!(ask_with(without(true, false), 0, addr), invalid, "no stage 2");
    }
    let substreams = Config { ssidsize: 8, ..config() };
    assert_eq!(ask_with(substreams, SSID_VALID, S2), invalid, "stage 2 has no SubstreamIDs");
}

/// 9.1.3: INV_STAGE says that the stream is not configured for it; it comes before faults of the SubstreamID and the CD.
#[test]
fn stages_not_configured() {
    let config = Config { ssidsize: 8, ..config() };
    let mut lab = Lab::new(config);
    tables2(&mut lab);
    let stage2 = ste(6, 0, 0);
    let streams = [
        (STE_ABORT, [S1, S2, S12].to_vec()),
        (STE_BYPASS, [S1, S2, S12].to_vec()),
        (ste_stage1(CDS), [S2, S12].to_vec()),
        (stage2, [S1, S12].to_vec()),
    ];
    for (ste, types) in streams {
        lab.ste(SID, ste);
        lab.command(cfgi_ste(SID));
        for addr in types {
            assert_eq!(ask(&mut lab, addr), fault(INV_STAGE, 0, 0), "{ste:x?} {addr:#x}");
        }
    }
    lab.ste(SID, stage2);
    lab.command(cfgi_ste(SID));
    let with_ssid = ask_at(&mut lab, r::GATOS_CTRL, u64::from(SID) | SSID_VALID, S1);
    assert_eq!(with_ssid, fault(INV_STAGE, 0, 0));
}

/// 9.1.5: errors of the configuration have the codes of their events; of a stage 2 lookup, REASON is IN (9.1.4).
#[test]
fn configuration_errors() {
    let config = Config { ssidsize: 8, ..config() };
    let mut lab = Lab::new(config);
    let substreams = |dss: u64| [1 | 5 << 1 | CDS | 3 << 59, dss | 1 << 44, 0, 0];
    let sid = u64::from(SID);
    assert_eq!(ask_at(&mut lab, r::GATOS_CTRL, 0x100, S1), fault(0x02, 0, 0), "C_BAD_STREAMID");
    assert_eq!(ask_at(&mut lab, r::GATOS_CTRL, 0x100, S2), fault(0x02, 3, 0));
    assert_eq!(ask(&mut lab, S1), fault(0x04, 0, 0), "C_BAD_STE");
    lab.ste(SID, substreams(0));
    assert_eq!(ask(&mut lab, S1), fault(0x06, 0, 0), "F_STREAM_DISABLED");
    assert_eq!(ask_at(&mut lab, r::GATOS_CTRL, sid | SSID_VALID | 8 << 32, S1), fault(0x08, 0, 0));
    assert_eq!(
        ask_at(&mut lab, r::GATOS_CTRL, sid | SSID_VALID | 1 << 32, S1),
        fault(0x0a, 0, 0),
        "C_BAD_CD"
    );
    lab.ram.holes.push(CDS + 64..CDS + 128);
    assert_eq!(
        ask_at(&mut lab, r::GATOS_CTRL, sid | SSID_VALID | 1 << 32, S1),
        fault(0x09, 0, 0),
        "F_CD_FETCH"
    );
    lab.ste(SID, substreams(2));
    lab.command(cfgi_ste(SID));
    assert_eq!(ask_at(&mut lab, r::GATOS_CTRL, sid | SSID_VALID, S1), fault(0x06, 0, 0), "SubstreamID 0");
    lab.ram.holes.push(STRTAB + 64 * 9..STRTAB + 64 * 10);
    assert_eq!(ask_at(&mut lab, r::GATOS_CTRL, 9, S1), fault(0x03, 0, 0), "F_STE_FETCH");
    assert!(lab.events().is_empty());
}

/// 9.1.5: faults of stage 1 alone.
#[test]
fn stage_1_faults() {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW & !d::AF);
    lab.map(&mut tables, 0x2000, 0x8000_2000, 0x1000, RO);
    lab.map(&mut tables, 0x3000, 1 << 46, 0x1000, RW);
    lab.map(&mut tables, 0x4000_0000, 0x8000_2000, 0x1000, RW);
    let hole = tables.entry(&mut Words(&lab.ram), 3, 0x4000_0000).unwrap();
    lab.ram.holes.push(hole..hole + 8);
    let cases =
        [(0, 0x10), (1 << 50, 0x10), (0x1000, 0x12), (0x2000, 0x13), (0x3000, 0x11), (0x4000_0000, 0x0b)];
    for (address, code) in cases {
        assert_eq!(ask(&mut lab, address | S1), fault(code, 0, 0), "{address:#x}");
    }
}

/// 3.21.1, 9.1.5: F_TLB_CONFLICT.
#[test]
fn tlb_conflict() {
    let (mut lab, mut tables) = Lab::stage1(Config { tlb_conflict: true, ..config() });
    lab.map(&mut tables, 0x20_0000, 0x8020_0000, 0x2000, RW);
    lab.read(0x20_0000);
    let at = tables.entry(&mut Words(&lab.ram), 2, 0x20_0000).unwrap();
    lab.ram.set(at, 0x8020_0000 | RW | d::VALID);
    lab.read(0x20_1000);
    assert_eq!(ask(&mut lab, 0x20_0000 | S1), fault(0x20, 0, 0));
}

/// 9.1.4: faults of stage 2, by what was fetched; their address is told only to who asks for both stages.
#[test]
fn stage_2_faults() {
    let (mut lab, mut first, mut second) = nested(config());
    let forget = |lab: &mut Lab| {
        lab.command(CFGI_ALL);
        lab.command(NSNH_ALL);
    };
    let leaf = first.entry(&mut Words(&lab.ram), 3, 0x1000).unwrap();
    lab.map(&mut first, 0x3000, 0x6000_0000, 0x1000, RW);
    // The IPA: nothing is there.
    assert_eq!(ask(&mut lab, 0x3000 | S12), fault(0x10, 3, 0x6000_0000));
    assert_eq!(ask(&mut lab, 0x3000 | S1), page(0x6000_0000), "not further translated");
    assert_eq!(ask(&mut lab, 0x6000_0000 | S2), fault(0x10, 3, 0));
    lab.map(&mut second, 0x6000_0000, 0x6000_0000, 0x1000, S2_RW & !d::S2AP_WRITE);
    assert_eq!(ask(&mut lab, 0x3000 | S12), fault(0x13, 3, 0x6000_0000));
    assert_eq!(ask(&mut lab, 0x6000_0000 | S2), fault(0x13, 3, 0));
    // The input is too wide: of stage 1, though that is bypassed.
    assert_eq!(ask(&mut lab, 1 << 44 | S2), fault(0x11, 0, 0));
    // A table.
    forget(&mut lab);
    lab.unmap(&mut second, 3, leaf & !0xfff);
    assert_eq!(ask(&mut lab, 0x1000 | S12), fault(0x10, 2, leaf & !0xfff));
    assert_eq!(ask(&mut lab, 0x1000 | S1), fault(0x0b, 0, 0), "as if the fetch had been aborted");
    // The CD.
    forget(&mut lab);
    lab.unmap(&mut second, 3, CDS);
    assert_eq!(ask(&mut lab, 0x1000 | S12), fault(0x10, 1, CDS));
    assert_eq!(ask(&mut lab, 0x1000 | S1), fault(0x09, 0, 0));
    // Aborted fetches of stage 2 descriptors have no address.
    let at = second.entry(&mut Words(&lab.ram), 3, CDS).unwrap();
    lab.ram.holes.push(at..at + 8);
    forget(&mut lab);
    assert_eq!(ask(&mut lab, 0x1000 | S12), fault(0x0b, 1, 0));
    assert_eq!(ask(&mut lab, 0x1000 | S1), fault(0x09, 0, 0));
    assert_eq!(ask(&mut lab, CDS | S2), fault(0x0b, 3, 0));
}

/// 9.1.3: S1DSS bypasses stage 1: the address itself, or what stage 2 makes of it; it does not cause INV_STAGE.
#[test]
fn stage_1_bypassed_by_s1dss() {
    let (mut lab, _, _) = nested(Config { ssidsize: 8, ..config() });
    lab.ste(SID, ste(7, CDS | 3 << 59, 1));
    assert_eq!(ask(&mut lab, 0x1234_5000 | S1), page(0x1234_5000));
    assert_eq!(ask(&mut lab, 1 << 44 | S1), fault(0x11, 0, 0));
    assert_eq!(ask(&mut lab, 0x5000_0000 | S12), page(0x5000_0000 + SHIFT));
    assert_eq!(ask(&mut lab, 0x7000_0000 | S12), fault(0x10, 3, 0x7000_0000));
}

/// 9.1.1, 6.3.37: RUN can be set with SMMUEN only; while it is set, nothing of the group can be written.
#[test]
fn the_run_flag() {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    let cr0 = lab.r32(r::CR0);
    lab.w32(r::CR0, 0);
    lab.w32(r::GATOS_CTRL, 1);
    assert_eq!((lab.r32(r::GATOS_CTRL), lab.smmu.atos_pending()), (0, false));
    lab.w32(r::CR0, cr0);
    run(&mut lab, r::GATOS_CTRL, SID.into(), 0x1000 | S1);
    lab.smmu.step_atos(&lab.ram);
    for (offset, value) in [(r::GATOS_SID, 1), (r::GATOS_ADDR, 0x5400), (r::GATOS_CTRL, 0)] {
        let before = lab.r32(offset);
        lab.w32(offset, value);
        assert_eq!(lab.r32(offset), before);
    }
    while lab.smmu.atos_pending() {
        lab.smmu.step_atos(&lab.ram);
    }
    assert_eq!(par(&mut lab, r::GATOS_CTRL), page(0x8000_1000));
}

/// 6.3.37: SMMUEN=0 is acknowledged when the lookup is done, and that clears RUN. Here it ends as it would have.
#[test]
fn disabling_waits_for_lookups() {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    run(&mut lab, r::GATOS_CTRL, SID.into(), 0x1000 | S1);
    lab.w32(r::CR0, 0);
    assert_eq!(lab.r32(r::CR0ACK), r::cr0::SMMUEN);
    lab.w32(r::VATOS_CTRL, 1);
    assert_eq!(lab.r32(r::VATOS_CTRL), 0, "not once SMMUEN has been written to 0");
    while lab.smmu.atos_pending() {
        assert_eq!(lab.r32(r::CR0ACK), r::cr0::SMMUEN);
        lab.smmu.step_atos(&lab.ram);
    }
    assert_eq!(lab.r32(r::CR0ACK), 0);
    assert_eq!(par(&mut lab, r::GATOS_CTRL), page(0x8000_1000));
}

/// 9: an invalidation and a lookup are to each other as an invalidation and a transaction.
#[test]
fn invalidations_wait_for_lookups() {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    run(&mut lab, r::GATOS_CTRL, SID.into(), 0x1000 | S1);
    lab.smmu.step_atos(&lab.ram);
    lab.push(tlbi_va(1, 0x1000));
    lab.push(SYNC);
    lab.run_commands();
    assert!(!lab.idle(), "the lookup may use the old translation");
    while lab.smmu.atos_pending() {
        lab.smmu.step_atos(&lab.ram);
    }
    lab.run_commands();
    assert!(lab.idle());
}

/// 9: lookups use the caches, and fill them.
#[test]
fn lookups_use_the_caches() {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    assert_eq!(lab.fetches(|lab| ask(lab, 0x1000 | S1)), (1 + 1 + 4, page(0x8000_1000)));
    assert_eq!(lab.fetches(|lab| ask(lab, 0x1000 | S1)), (0, page(0x8000_1000)));
    assert_eq!(lab.fetches(|lab| lab.read(0x1000)), (0, End::To(0x8000_1000)));
}

/// 9: with HTTUI=0 flags are updated as for a transaction; with HTTUI=1 they stay, and count as if they were set.
#[test]
fn flag_updates() {
    let clean = RO & !d::AF | d::DBM;
    for inhibit in [false, true] {
        let (mut lab, mut tables) = Lab::stage1(Config { httu: 2, ..config() });
        lab.context(0, CdFields { word0: cd(16, 0, 1) | HA | HD, ..CdFields::default() });
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, clean);
        let at = tables.entry(&mut Words(&lab.ram), 3, 0x1000).unwrap();
        let flags = |lab: &Lab| (lab.ram.word(at) & d::AF != 0, lab.ram.word(at) & d::AP_READ_ONLY == 0);
        let httui = if inhibit { HTTUI } else { 0 };
        for (rnw, dirty) in [(READ, false), (0, true)] {
            assert_eq!(ask(&mut lab, 0x1000 | S1 | rnw | httui), page(0x8000_1000));
            assert_eq!(flags(&lab), if inhibit { (false, false) } else { (true, dirty) });
        }
        assert_eq!(lab.write(0x1000), End::To(0x8000_1000));
        assert_eq!(flags(&lab), (true, true), "the lookup left no entry behind that says so already");
    }
    // Read-only without DBM is read-only.
    let (mut lab, mut tables) = Lab::stage1(Config { httu: 2, ..config() });
    lab.context(0, CdFields { word0: cd(16, 0, 1) | HA | HD, ..CdFields::default() });
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, clean & !d::DBM);
    assert_eq!(ask(&mut lab, 0x1000 | S1 | HTTUI), fault(0x13, 0, 0));
}

/// 9: a stage 1 lookup does not make the page behind the IPA dirty; with HTTUI=1 nothing of stage 2 is updated either.
#[test]
fn flag_updates_of_nested_streams() {
    let dbm2 = S2_RW & !d::S2AP_WRITE & !d::AF | d::DBM;
    for (addr, accessed, table_dirty, dirty) in [
        (S1, false, true, false),
        (S12, true, true, true),
        (S12 | READ, true, true, false),
        (S1 | HTTUI, false, false, false),
        (S12 | HTTUI, false, false, false),
    ] {
        let (mut lab, mut first, mut second) = nested(Config { httu: 2, ..config() });
        lab.context(0, CdFields { word0: cd(16, 0, 1) | HA | HD, ..CdFields::default() });
        let leaf = first.entry(&mut Words(&lab.ram), 3, 0x1000).unwrap();
        lab.ram.set(leaf, lab.ram.word(leaf) & !d::AF);
        for at in [leaf & !0xfff, 0x5000_0000] {
            let to = if at == 0x5000_0000 { at + SHIFT } else { at };
            lab.unmap(&mut second, 3, at);
            lab.map(&mut second, at, to, 0x1000, dbm2);
        }
        let [w0, w1, w2, w3] = ste(7, CDS, 0);
        lab.ste(SID, [w0, w1, w2 | 3 << 55, w3]);
        let target = if addr & S2 == 0 { 0x5000_0000 } else { 0x5000_0000 + SHIFT };
        assert_eq!(ask(&mut lab, 0x1000 | addr), page(target), "{addr:#x}");
        let mut is = |ipa| {
            let at = second.entry(&mut Words(&lab.ram), 3, ipa).unwrap();
            (lab.ram.word(at) & d::AF != 0, lab.ram.word(at) & d::S2AP_WRITE != 0)
        };
        assert_eq!(is(0x5000_0000), (accessed, dirty), "{addr:#x}");
        assert_eq!(is(leaf & !0xfff).1, table_dirty, "{addr:#x}: the access flag is written there");
    }
}

/// 9.1.6: a virtual machine learns of stage 1 of streams with its own VMID, and of nothing else.
#[test]
fn the_virtual_interface() {
    let (mut lab, _, _) = nested(config());
    let vatos = |lab: &mut Lab, addr| ask_at(lab, r::VATOS_CTRL, SID.into(), addr);
    assert_eq!(vatos(&mut lab, 0x1000 | S1), fault(0x04, 0, 0), "VATOS_SEL is another VMID");
    lab.w32(r::VATOS_SEL, VMID as u32);
    assert_eq!(vatos(&mut lab, 0x1000 | S1), page(0x5000_0000));
    for addr in [S2, S12, 0] {
        assert_eq!(vatos(&mut lab, addr), fault(INV_REQ, 0, 0));
    }
    let streams = [(STE_BYPASS, 0x04), (STE_ABORT, 0x04), ([0; 4], 0x04), (ste(6, 0, 0), INV_STAGE)];
    for (ste, code) in streams {
        lab.ste(SID, ste);
        lab.command(cfgi_ste(SID));
        assert_eq!(vatos(&mut lab, 0x1000 | S1), fault(code, 0, 0), "{ste:x?}");
    }
    // Stage 1 alone: S2VMID counts all the same, but not in EL2.
    let (mut lab, mut tables) = Lab::stage1(Config { hyp: true, ..config() });
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    for (world, vmid, result) in
        [(0, 3, page(0x8000_1000)), (0, 4, fault(4, 0, 0)), (2 << 30, 0, fault(4, 0, 0))]
    {
        let [w0, w1, ..] = ste_stage1(CDS);
        lab.ste(SID, [w0, w1 | world, 3, 0]);
        lab.command(cfgi_ste(SID));
        lab.w32(r::VATOS_SEL, vmid);
        assert_eq!(vatos(&mut lab, 0x1000 | S1), result);
    }
}

/// 9: the groups look up independently, and at the same time; transactions go on beside them.
#[test]
fn groups_are_independent() {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    run(&mut lab, r::GATOS_CTRL, SID.into(), 0x1000 | S1);
    run(&mut lab, r::VATOS_CTRL, SID.into(), 0x9000 | S1);
    lab.w32(r::VATOS_SEL, 5);
    assert_eq!(lab.r32(r::VATOS_SEL), 0, "guarded by RUN");
    let begun = lab.smmu.begin(&Transaction::new(SID, 0x1000, AccessKind::Read));
    assert!(matches!(begun, Progress::Walking(_)));
    let mut steps = 0;
    while lab.smmu.atos_pending() {
        lab.smmu.step_atos(&lab.ram);
        steps += 1;
    }
    assert!(steps > 8, "one fetch a step");
    assert_eq!(par(&mut lab, r::GATOS_CTRL), page(0x8000_1000));
    assert_eq!(par(&mut lab, r::VATOS_CTRL), fault(0x10, 0, 0));
    assert_eq!(lab.dma(Transaction::new(SID, 0x1000, AccessKind::Read)), End::To(0x8000_1000));
}

/// A saved SMMU goes on with its lookups.
#[test]
fn lookups_are_saved() {
    let (mut lab, mut tables) = Lab::stage1(config());
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    run(&mut lab, r::GATOS_CTRL, SID.into(), 0x1000 | S1);
    lab.smmu.step_atos(&lab.ram);
    let saved = serde_json::to_string(&lab.smmu).unwrap();
    lab.smmu.restore(serde_json::from_str(&saved).unwrap());
    while lab.smmu.atos_pending() {
        lab.smmu.step_atos(&lab.ram);
    }
    assert_eq!(par(&mut lab, r::GATOS_CTRL), page(0x8000_1000));
}
