//! Sections 3.9, 4.5.1 and 13.6: ATS. Translation Requests, Translated transactions, invalidation of devices' caches.

use std::sync::{Arc, Mutex};

use pgtable::{Builder, Granule, Stage2, descriptor as d};
use smmu_model::spec::registers::{self as r, cr0, cr2, gerror};
use smmu_model::{
    AccessKind, AtcInvalidation, AtsAnswer, AtsProgress, AtsRequest, AtsTranslation, Config, Observer,
    Progress, StallModel, Transaction,
};

use crate::lab::*;

const STREAMID: u64 = (SID as u64) << 32;
const EATS_FULL: u64 = 1 << 28;
const EATS_SPLIT: u64 = 2 << 28;
const UR: AtsAnswer = AtsAnswer::UnsupportedRequest;
const CA: AtsAnswer = AtsAnswer::CompleterAbort;
const PA: u64 = 0x8000_1000;

pub(crate) fn config() -> Config {
    Config { ats: true, ats_split: true, pri: true, ssidsize: 20, httu: 2, ..linux() }
}

/// A request for a write without a PASID.
fn treq(address: u64) -> AtsRequest {
    AtsRequest { sid: SID, ssid: None, address, no_write: false, execute: false, privileged: false }
}

fn read_only(address: u64) -> AtsRequest {
    AtsRequest { no_write: true, ..treq(address) }
}

/// A Translation Request to its end.
fn ask(lab: &mut Lab, request: AtsRequest) -> AtsAnswer {
    let mut progress = lab.smmu.ats_request(&request);
    for _ in 0..200 {
        match progress {
            AtsProgress::Walking(id) => progress = lab.smmu.ats_step(id, &lab.ram),
            AtsProgress::Answered(answer) => return answer,
        }
    }
    panic!("the walk does not end");
}

/// R, W, Exe and Priv of a successful answer.
fn rights(answer: AtsAnswer) -> [bool; 4] {
    let AtsAnswer::Success(t) = answer else { panic!("{answer:?}") };
    [t.read, t.write, t.execute, t.privileged]
}

fn success(address: u64, size: u8, [read, write]: [bool; 2]) -> AtsAnswer {
    let (execute, privileged) = (false, false);
    AtsAnswer::Success(AtsTranslation { address, size, read, write, execute, privileged })
}

fn no_access(answer: AtsAnswer) -> bool {
    matches!(answer, AtsAnswer::Success(t) if !t.grants())
}

/// A Translated transaction to its end.
fn translated(lab: &mut Lab, address: u64, kind: AccessKind) -> End {
    let mut progress = lab.smmu.begin_translated(&Transaction::new(SID, address, kind));
    loop {
        match progress {
            Progress::Walking(id) => progress = lab.smmu.step(id, &lab.ram),
            Progress::Latched(id, t) => {
                lab.smmu.complete(id);
                return End::To(t.pa);
            }
            Progress::Aborted => return End::Abort,
            other => panic!("{other:?}"),
        }
    }
}

fn set(lab: &mut Lab, on: u32, off: u32) {
    let cr0 = lab.r32(r::CR0);
    lab.w32(r::CR0, cr0 & !off | on);
}

fn ste(lab: &mut Lab, words: [u64; 4]) {
    lab.ste(SID, words);
    lab.command(cfgi_ste(SID));
}

/// Stage 1 with Full ATS, one page at 0x1000, and ATSCHK set.
fn stage1() -> (Lab, Builder) {
    let (mut lab, mut tables) = Lab::stage1(config());
    set(&mut lab, cr0::ATSCHK, 0);
    let [w0, w1, ..] = ste_stage1(CDS);
    lab.ste(SID, [w0, w1 | EATS_FULL, 0, 0]);
    lab.map(&mut tables, 0x1000, PA, 0x1000, RW);
    (lab, tables)
}

/// What stage 2 adds to an IPA in these tests.
const SHIFT: u64 = 0x1_0000_0000;

/// Both stages with EATS as given; 0x1000 goes to IPA 0x4000_1000 and on to that plus `SHIFT`.
fn nested(eats: u64) -> (Lab, Builder, Builder) {
    let mut lab = Lab::new(config());
    set(&mut lab, cr0::ATSCHK, 0);
    let mut stage1 = lab.tables(Granule::G4K, 16, TABLES);
    lab.context(0, CdFields::default());
    let mut cfg = Stage2 { granule: Granule::G4K, tsz: 24, sl0: 1, oas: 44, ..Stage2::default() };
    let mut stage2 = lab.tables2(&mut cfg);
    lab.map(&mut stage2, TABLES, TABLES, 0x40_0000, S2_RW);
    lab.map(&mut stage2, CDS, CDS, 0x1000, S2_RW);
    lab.map(&mut stage1, 0x1000, 0x4000_1000, 0x1000, RW);
    lab.map(&mut stage2, 0x4000_1000, 0x4000_1000 + SHIFT, 0x1000, S2_RW);
    let s2 = 7 | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
    lab.ste(SID, [1 | 7 << 1 | CDS, 1 << 44 | eats, s2, S2_TABLES]);
    (lab, stage1, stage2)
}

/// 6.3.1: IDR0.ATS, NS1ATS and ATSRECERR; without ATS, CR0.ATSCHK and CR2.REC_CFG_ATS are RES0.
#[test]
fn id_registers() {
    let idr0 = |config: Config| Lab::reset(config).r32(r::IDR0) & (3 << 10 | 1 << 23);
    assert_eq!(idr0(linux()), 0);
    assert_eq!(idr0(config()), 1 << 10);
    assert_eq!(idr0(Config { ats_split: false, ..config() }), 3 << 10);
    assert_eq!(idr0(Config { s2p: false, ats_split: false, ..config() }), 1 << 10, "NS1ATS is RES0");
    assert_eq!(idr0(Config { atsrecerr: true, ..config() }), 1 << 10 | 1 << 23);
    for (config, there) in [(linux(), false), (Config { atsrecerr: true, ..config() }, true)] {
        let mut lab = Lab::reset(config);
        lab.w32(r::CR2, cr2::REC_CFG_ATS);
        lab.w32(r::CR0, cr0::ATSCHK);
        assert_eq!(lab.r32(r::CR2) != 0, there);
        assert_eq!((lab.r32(r::CR0) != 0, lab.r32(r::CR0ACK) != 0), (there, there));
    }
}

/// 3.9.1: the answer has the translated address, the size and what is granted; the walk takes steps and fills the caches.
#[test]
fn a_translation() {
    let (mut lab, mut tables) = stage1();
    lab.map(&mut tables, 0x20_0000, 0x9020_0000, 0x20_0000, RW);
    let (n, answer) = lab.fetches(|lab| ask(lab, treq(0x1234)));
    assert_eq!((n, answer), (6, success(PA, 12, [true, true])), "STE, CD and 4 levels");
    let (n, answer) = lab.fetches(|lab| ask(lab, treq(0x1fff)));
    assert_eq!((n, answer), (0, success(PA, 12, [true, true])), "from the IOTLB");
    assert_eq!(ask(&mut lab, treq(0x33_4567)), success(0x9020_0000, 21, [true, true]), "a block");
    assert_eq!(lab.read(0x1000), End::To(PA));
    assert_eq!(lab.smmu.stats().ats_requests, 3);
}

/// 3.9.1.2: faults of the translation are answered with Success and no rights, and nothing is recorded, nothing stalls.
#[test]
fn faults_are_no_access() {
    let (mut lab, mut tables) = stage1();
    lab.map(&mut tables, 0x2000, 0x2_0000_0000_0000 - 0x1000, 0x1000, RW);
    lab.map(&mut tables, 0x3000, PA, 0x1000, RW & !d::AF);
    lab.map(&mut tables, 0x4000, PA, 0x1000, RW & !d::AP_USER);
    for address in [0x5000, 0x2000, 0x3000, 0x4000, 1 << 50] {
        assert!(no_access(ask(&mut lab, treq(address))), "{address:#x}");
    }
    assert_eq!(lab.events(), [[0; 4]; 0]);
    let config = Config { stall: StallModel::Both, ..config() };
    let (mut lab, _) = Lab::stage1(config);
    lab.context(0, CdFields { word0: cd(16, 0, 1) | 1 << 44, ..CdFields::default() });
    let [w0, w1, ..] = ste_stage1(CDS);
    lab.ste(SID, [w0, w1 | EATS_FULL, 0, 0]);
    assert!(no_access(ask(&mut lab, treq(0x5000))), "S is no matter to ATS");
    assert_eq!(lab.events(), [[0; 4]; 0]);
}

/// 3.9.1.2 and 7.3.6: where ATS is off, the answer is UR, and F_BAD_ATS_TREQ says so; an STE that aborts is silent.
#[test]
fn where_ats_is_off() {
    let (mut lab, _) = stage1();
    let [w0, w1, ..] = ste_stage1(CDS);
    let rights = |w: u64| 1 << 39 | w << 38 | 1 << 44;
    for (words, recorded) in [
        ([w0, w1, 0, 0], true),
        ([w0, w1 | 3 << 28, 0, 0], true),
        ([STE_BYPASS[0], STE_BYPASS[1] | EATS_FULL, 0, 0], true),
        ([STE_ABORT[0], EATS_FULL, 0, 0], false),
    ] {
        ste(&mut lab, words);
        assert_eq!(ask(&mut lab, treq(0x1234)), UR);
        match recorded {
            true => assert_eq!(lab.event(), [5 | STREAMID, rights(1), 0x1000, 0]),
            false => assert_eq!(lab.events(), [[0; 4]; 0]),
        }
    }
    ste(&mut lab, [w0, w1 | EATS_FULL, 0, 0]);
    set(&mut lab, 0, cr0::SMMUEN);
    let request = AtsRequest { ssid: Some(5), execute: true, privileged: true, ..read_only(0x1234) };
    assert_eq!(ask(&mut lab, request), UR, "SMMUEN is 0");
    assert_eq!(lab.event(), [5 | 1 << 11 | 5 << 12 | STREAMID, rights(0) | 1 << 37 | 1 << 36, 0x1000, 0]);
}

/// 3.9.1.2: errors of the configuration are answered with CA, and recorded only with CR2.REC_CFG_ATS.
#[test]
fn errors_of_the_configuration() {
    for recorded in [false, true] {
        let (mut lab, _) = Lab::stage1(Config { atsrecerr: true, ..config() });
        set(&mut lab, 0, cr0::SMMUEN);
        lab.w32(r::CR2, cr2::RECINVSID | if recorded { cr2::REC_CFG_ATS } else { 0 });
        set(&mut lab, cr0::SMMUEN, 0);
        let [w0, w1, ..] = ste_stage1(CDS);
        let full = w1 | EATS_FULL;
        let is_ca = |lab: &mut Lab, request: AtsRequest, number: u64| {
            assert_eq!(ask(lab, request), CA, "{number:#x}");
            let events: Vec<u64> = lab.events().into_iter().map(code).collect();
            assert_eq!(events, if recorded { vec![number] } else { vec![] });
        };
        is_ca(&mut lab, AtsRequest { sid: 256, ..treq(0) }, 2);
        ste(&mut lab, [0; 4]);
        is_ca(&mut lab, treq(0), 4);
        lab.ram.holes.push(STRTAB..STRTAB + 0x4000);
        is_ca(&mut lab, treq(0), 3);
        lab.ram.holes.clear();
        ste(&mut lab, [w0, full, 0, 0]);
        is_ca(&mut lab, AtsRequest { ssid: Some(1), ..treq(0) }, 8);
        lab.ram.holes.push(TABLES..TABLES + 0x1000);
        is_ca(&mut lab, treq(0), 0xb);
        lab.ram.holes.clear();
        lab.ram.holes.push(CDS..CDS + 64);
        lab.command(cfgi_ste(SID));
        is_ca(&mut lab, treq(0), 9);
        lab.ram.holes.clear();
        ste(&mut lab, [w0 | 4 << 59, full, 0, 0]);
        is_ca(&mut lab, treq(0), 6);
        lab.context(0, CdFields { word0: 0, ..CdFields::default() });
        ste(&mut lab, [w0, full, 0, 0]);
        is_ca(&mut lab, treq(0), 0xa);
    }
}

/// 5.2: where EATS may be what.
#[test]
fn legality_of_eats() {
    const S2S: u64 = 1 << 57;
    let s2 = 7 | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
    for (path, eats, s2s, split, legal) in [
        (5, EATS_SPLIT, 0, true, false),
        (6, EATS_SPLIT, 0, true, false),
        (7, EATS_SPLIT, 0, false, false),
        (7, EATS_SPLIT, S2S, true, false),
        (7, EATS_SPLIT, 0, true, true),
        (6, EATS_FULL, S2S, true, false),
        (7, EATS_FULL, S2S, true, false),
        (5, EATS_FULL, S2S, true, true),
        (6, EATS_FULL, 0, true, true),
        (7, 0, S2S, true, true),
        (7, 3 << 28, S2S, true, true),
    ] {
        let mut lab = Lab::new(Config { stall: StallModel::Both, ats_split: split, ..config() });
        lab.ste(SID, [1 | path << 1 | CDS, 1 << 44 | eats, s2 | s2s, S2_TABLES]);
        let mut progress = lab.smmu.begin(&Transaction::new(SID, 0, AccessKind::Read));
        while let Progress::Walking(id) = progress {
            progress = lab.smmu.step(id, &lab.ram);
        }
        let bad = lab.events().iter().any(|event| code(*event) == 4);
        assert_eq!(!bad, legal, "Config {path}, EATS {}, S2S {}, split {split}", eats >> 28, s2s != 0);
    }
}

/// 13.7: what is granted of what the tables permit, by NW, Exe and Priv, and by STE.PRIVCFG and INSTCFG.
#[test]
fn rights_granted() {
    let (mut lab, _) = stage1();
    let mut tables = lab.tables(Granule::G4K, 16, TABLES + 0x20_0000);
    let cd = CdFields { word0: cd(16, 0, 2), word1: tables.root(), ..CdFields::default() };
    lab.context(1, cd);
    let (user_ro, user_rw) = (RO, RW);
    let private = RW & !d::AP_USER;
    lab.map(&mut tables, 0x1000, PA, 0x1000, user_ro | d::XN);
    lab.map(&mut tables, 0x2000, PA, 0x1000, user_rw | d::XN);
    lab.map(&mut tables, 0x3000, PA, 0x1000, user_ro);
    lab.map(&mut tables, 0x4000, PA, 0x1000, private);
    let [w0, w1, ..] = ste_stage1(CDS);
    let stream = |lab: &mut Lab, overrides: u64| ste(lab, [w0 | 4 << 59, w1 | EATS_FULL | overrides, 0, 0]);
    stream(&mut lab, 0);
    let ask = |lab: &mut Lab, address, no_write, execute, privileged| {
        let request = AtsRequest { sid: SID, ssid: Some(1), address, no_write, execute, privileged };
        rights(ask(lab, request))
    };
    assert_eq!(ask(&mut lab, 0x1000, false, false, false), [true, false, false, false]);
    assert_eq!(ask(&mut lab, 0x1000, true, true, false), [true, false, false, false], "not executable");
    assert_eq!(ask(&mut lab, 0x2000, false, false, false), [true, true, false, false]);
    assert_eq!(ask(&mut lab, 0x3000, true, true, false), [true, false, true, false]);
    assert_eq!(ask(&mut lab, 0x3000, true, false, false), [true, false, false, false], "not asked for");
    assert_eq!(ask(&mut lab, 0x4000, false, false, true), [true, true, false, true]);
    assert_eq!(ask(&mut lab, 0x4000, false, false, false), [false, false, false, false]);
    // PRIVCFG counts for the rights; Priv is as it was asked for.
    stream(&mut lab, 3 << 48);
    assert_eq!(ask(&mut lab, 0x4000, false, false, false), [true, true, false, false]);
    stream(&mut lab, 2 << 48);
    assert_eq!(ask(&mut lab, 0x4000, false, false, true), [false, false, false, true]);
    // INSTCFG: data takes R for X, instruction takes X for R.
    stream(&mut lab, 2 << 50);
    assert_eq!(ask(&mut lab, 0x1000, true, true, false), [true, false, true, false]);
    stream(&mut lab, 3 << 50);
    assert_eq!(ask(&mut lab, 0x2000, false, true, false), [false, true, false, false]);
}

/// 3.13.7.1: a request marks the page accessed, and with NW=0 dirty, before it is answered; with NW=1 it stays clean.
#[test]
fn hardware_update() {
    let (mut lab, mut tables) = stage1();
    lab.context(0, CdFields { word0: cd(16, 0, 1) | 3 << 42, ..CdFields::default() });
    lab.map(&mut tables, 0x2000, PA, 0x1000, RO & !d::AF | d::DBM);
    lab.map(&mut tables, 0x3000, PA, 0x1000, (RO | d::DBM) & !d::AF & !d::AP_USER);
    let at = tables.entry(&mut Words(&lab.ram), 3, 0x2000).unwrap();
    let state = |lab: &Lab, at| (lab.ram.word(at) & d::AF != 0, lab.ram.word(at) & d::AP_READ_ONLY == 0);
    assert_eq!(ask(&mut lab, read_only(0x2000)), success(PA, 12, [true, false]));
    assert_eq!(state(&lab, at), (true, false));
    assert_eq!(ask(&mut lab, treq(0x2000)), success(PA, 12, [true, true]));
    assert_eq!(state(&lab, at), (true, true));
    assert_eq!(ask(&mut lab, read_only(0x2000)), success(PA, 12, [true, true]), "dirty already (13.7)");
    // Not for whoever may not write.
    let at = tables.entry(&mut Words(&lab.ram), 3, 0x3000).unwrap();
    assert!(no_access(ask(&mut lab, treq(0x3000))));
    assert_eq!(state(&lab, at), (false, false));
    // Without HD a clean page cannot be had for writing.
    lab.context(0, CdFields { word0: cd(16, 0, 1) | 1 << 43, ..CdFields::default() });
    lab.command(CFGI_ALL);
    lab.command(NSNH_ALL);
    lab.map(&mut tables, 0x4000, PA, 0x1000, RO & !d::AF | d::DBM);
    assert_eq!(ask(&mut lab, treq(0x4000)), success(PA, 12, [true, false]));
}

/// 3.9.1.3: Translated transactions with ATSCHK=0 pass unlooked at; with ATSCHK=1, EATS decides.
#[test]
fn translated_transactions() {
    let (mut lab, _) = stage1();
    assert_eq!(translated(&mut lab, PA, AccessKind::Write), End::To(PA));
    assert_eq!(translated(&mut lab, 1 << 44, AccessKind::Read), End::Abort, "wider than OAS, and silent");
    assert_eq!(lab.events(), [[0; 4]; 0]);
    let [w0, w1, ..] = ste_stage1(CDS);
    let read = 1 << 35;
    for (words, forbidden) in [
        ([w0, w1, 0, 0], true),
        ([STE_BYPASS[0], STE_BYPASS[1] | EATS_FULL, 0, 0], true),
        ([STE_ABORT[0], EATS_FULL, 0, 0], false),
        ([0; 4], false),
    ] {
        ste(&mut lab, words);
        assert_eq!(translated(&mut lab, PA, AccessKind::Read), End::Abort);
        match forbidden {
            true => assert_eq!(lab.event(), [7 | STREAMID, read, PA, 0]),
            false => assert_eq!(lab.events(), [[0; 4]; 0]),
        }
    }
    set(&mut lab, 0, cr0::ATSCHK);
    let (n, end) = lab.fetches(|lab| translated(lab, PA, AccessKind::Read));
    assert_eq!((n, end), (0, End::To(PA)), "no STE is looked at");
    set(&mut lab, 0, cr0::SMMUEN);
    assert_eq!(translated(&mut lab, PA, AccessKind::Write), End::Abort);
    assert_eq!(lab.event(), [7 | STREAMID, 0, PA, 0], "SMMUEN is 0");
}

/// 3.9.1 with both stages: Full ATS answers with the output of both, with the rights of both and the smaller size.
#[test]
fn both_stages() {
    let (mut lab, mut stage1, mut stage2) = nested(EATS_FULL);
    lab.map(&mut stage1, 0x20_0000, 0x4020_0000, 0x20_0000, RW);
    lab.map(&mut stage2, 0x4020_0000, 0x4020_0000 + SHIFT, 0x1000, S2_RW & !d::S2AP_WRITE);
    for _ in 0..2 {
        assert_eq!(ask(&mut lab, treq(0x1000)), success(0x4000_1000 + SHIFT, 12, [true, true]));
        assert_eq!(ask(&mut lab, treq(0x20_0123)), success(0x4020_0000 + SHIFT, 12, [true, false]));
        assert!(no_access(ask(&mut lab, treq(0x20_1000))), "stage 2 has nothing there");
    }
    assert_eq!(translated(&mut lab, 0x4000_1000 + SHIFT, AccessKind::Write), End::To(0x4000_1000 + SHIFT));
    assert_eq!(lab.events(), [[0; 4]; 0]);
}

/// 3.9.1.2: what stage 1 grants nothing of is not translated by stage 2.
#[test]
fn stage_2_is_left_alone_without_rights() {
    let (mut lab, mut stage1, _) = nested(EATS_FULL);
    lab.map(&mut stage1, 0x2000, 0x4000_2000, 0x1000, RW & !d::AP_USER);
    ask(&mut lab, treq(0x1000));
    let (_, answer) = lab.fetches(|lab| ask(lab, treq(0x2000)));
    assert!(no_access(answer));
    let leaf = stage1.entry(&mut Words(&lab.ram), 3, 0x2000).unwrap();
    assert_eq!(lab.ram.reads.borrow().last(), Some(&leaf), "the last fetch is stage 1's leaf");
}

/// 13.6.3: split-stage ATS answers with the IPA and the rights of both stages; stage 2 translates Translated
/// transactions, and its faults are recorded.
#[test]
fn split_stage() {
    let (mut lab, mut stage1, mut stage2) = nested(EATS_SPLIT);
    lab.map(&mut stage1, 0x2000, 0x4000_2000, 0x1000, RW);
    lab.map(&mut stage2, 0x4000_2000, 0x4000_2000 + SHIFT, 0x1000, S2_RW & !d::S2AP_WRITE);
    assert_eq!(lab.read(0x1000), End::To(0x4000_1000 + SHIFT), "an ordinary one, which fills the IOTLB");
    for _ in 0..2 {
        assert_eq!(ask(&mut lab, treq(0x1000)), success(0x4000_1000, 12, [true, true]));
        assert_eq!(ask(&mut lab, treq(0x2000)), success(0x4000_2000, 12, [true, false]));
    }
    assert_eq!(translated(&mut lab, 0x4000_1000, AccessKind::Write), End::To(0x4000_1000 + SHIFT));
    assert_eq!(translated(&mut lab, 0x4000_2000, AccessKind::Write), End::Abort);
    assert_eq!(code(lab.event()), 0x13);
    assert_eq!(translated(&mut lab, 0x4000_3000, AccessKind::Read), End::Abort);
    assert_eq!(code(lab.event()), 0x10);
    // It needs ATSCHK (5.2).
    set(&mut lab, 0, cr0::ATSCHK);
    assert_eq!(ask(&mut lab, treq(0x1000)), UR);
    assert_eq!(code(lab.event()), 5);
}

/// 13.6.4 and 13.6.5: without a PASID, S1DSS=bypass answers with the address itself, or with what stage 2 makes of it.
#[test]
fn skipping_stage_1() {
    let (mut lab, _) = stage1();
    let [w0, w1, ..] = ste_stage1(CDS);
    ste(&mut lab, [w0 | 4 << 59, w1 | EATS_FULL | 1, 0, 0]);
    assert_eq!(ask(&mut lab, read_only(0x1234_5678)), success(0, 44, [true, true]), "everything, as it is");
    assert!(no_access(ask(&mut lab, treq(1 << 44))), "beyond IAS");
    for (eats, address) in [(EATS_FULL, 0x4000_1000 + SHIFT), (EATS_SPLIT, 0x4000_1000)] {
        let (mut lab, ..) = nested(0);
        let s2 = 7 | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
        lab.ste(SID, [1 | 7 << 1 | CDS | 4 << 59, 1 << 44 | eats | 1, s2, S2_TABLES]);
        assert_eq!(ask(&mut lab, treq(0x4000_1000)), success(address, 12, [true, true]));
        assert!(no_access(ask(&mut lab, treq(0x4000_9000))));
    }
    assert_eq!(lab.events(), [[0; 4]; 0]);
}

/// 4.5.1: the command's fields are the request's.
#[test]
fn atc_inv_fields() {
    let (mut lab, _) = stage1();
    let mut request = |w0: u64, w1: u64| {
        lab.push([0x40 | STREAMID | w0, w1]);
        lab.run_commands();
        let taken = lab.smmu.take_atc_invalidation().expect("one went out");
        lab.smmu.atc_invalidation_done(taken.id);
        let AtcInvalidation { sid, ssid, global, address, last, .. } = taken;
        assert_eq!(sid, SID);
        (ssid, global, address, last)
    };
    assert_eq!(request(0, 0x1234_5000), (None, false, 0x1234_5000, 0x1234_5fff));
    assert_eq!(
        request(1 << 9 | 7 << 12, 0x1234_5004),
        (None, false, 0x1234_0000, 0x1234_ffff),
        "aligned to its size"
    );
    assert_eq!(request(1 << 11 | 7 << 12, 52), (Some(7), false, 0, u64::MAX));
    assert_eq!(request(1 << 11 | 1 << 9 | 7 << 12, 51), (Some(7), true, 0, u64::MAX >> 1));
    let mut lab = Lab::new(Config { ssidsize: 0, ..config() });
    lab.push([0x40 | STREAMID | 1 << 11 | 7 << 12, 0]);
    lab.run_commands();
    assert_eq!(lab.smmu.take_atc_invalidation().unwrap().ssid, None, "without SubstreamIDs SSV is 0");
}

/// 4.5.1 and 4.1.2: illegal without IDR0.ATS or with a Size beyond 52; ignored with SMMUEN=0.
#[test]
fn atc_inv_legality() {
    for (config, command) in [(linux(), [0x40, 0]), (config(), [0x40, 53]), (config(), [0x40 | 1 << 10, 0])] {
        let mut lab = Lab::new(config);
        lab.push(command);
        lab.run_commands();
        assert_eq!(lab.r32(r::GERROR), gerror::CMDQ_ERR);
        assert_eq!(lab.r32(r::CMDQ_CONS) >> 24, 1, "CERROR_ILL");
    }
    let (mut lab, _) = stage1();
    set(&mut lab, 0, cr0::SMMUEN);
    lab.command([0x40 | STREAMID, 52]);
    assert!(!lab.smmu.atc_invalidation_pending());
}

/// 4.5.1 and 4.7.3: ATC_INV is consumed at once; the CMD_SYNC after it waits for the device.
#[test]
fn sync_waits_for_the_device() {
    let (mut lab, _) = stage1();
    lab.push([0x40 | STREAMID, 52]);
    lab.push([0x40 | STREAMID, 0x1000]);
    lab.push(SYNC);
    lab.run_commands();
    assert_eq!(lab.r32(r::CMDQ_CONS), 2);
    let (a, b) = (lab.smmu.take_atc_invalidation().unwrap(), lab.smmu.take_atc_invalidation().unwrap());
    assert!(!lab.smmu.atc_invalidation_pending() && !lab.smmu.command_pending());
    lab.smmu.atc_invalidation_done(b.id);
    assert!(!lab.smmu.command_pending());
    lab.smmu.atc_invalidation_done(a.id);
    lab.run_commands();
    assert!(lab.idle());
    assert_eq!(lab.smmu.stats().atc_invalidations, 2);
}

/// A device that never confirms: at most 32 wait, and the queue with them.
#[test]
fn outstanding_invalidations_are_bounded() {
    let (mut lab, _) = stage1();
    for _ in 0..40 {
        lab.push([0x40 | STREAMID, 52]);
    }
    lab.run_commands();
    assert_eq!(lab.r32(r::CMDQ_CONS), 32);
    while let Some(taken) = lab.smmu.take_atc_invalidation() {
        lab.smmu.atc_invalidation_done(taken.id);
        lab.run_commands();
    }
    assert!(lab.idle());
}

/// 3.9.1.4 and 7.1: a time-out stops the queue at the CMD_SYNC with CERROR_ATC_INV_SYNC, once.
#[test]
fn timeout() {
    let (mut lab, _) = stage1();
    lab.push([0x40 | STREAMID, 52]);
    lab.push([0x40 | STREAMID, 0x1000]);
    lab.push(SYNC);
    lab.run_commands();
    let (a, b) = (lab.smmu.take_atc_invalidation().unwrap(), lab.smmu.take_atc_invalidation().unwrap());
    lab.smmu.atc_invalidation_timed_out(a.id);
    lab.run_commands();
    assert_eq!(lab.r32(r::GERROR), 0, "the other one is still awaited");
    lab.smmu.atc_invalidation_done(b.id);
    lab.run_commands();
    assert_eq!(lab.r32(r::GERROR), gerror::CMDQ_ERR);
    assert_eq!(lab.r32(r::CMDQ_CONS), 3 << 24 | 2, "at the CMD_SYNC");
    lab.w32(r::GERRORN, gerror::CMDQ_ERR);
    lab.run_commands();
    assert!(lab.idle(), "the same CMD_SYNC completes now");
    lab.command([0x03 | STREAMID, 0]);
    assert_eq!(lab.smmu.stats().atc_timeouts, 1);
    lab.smmu.atc_invalidation_done(a.id);
}

/// 3.9.1 and 4.7.3: a Translation Request under way may answer with what a TLBI removed; a CMD_SYNC waits for it. So
/// does one for a Translated transaction and its STE.
#[test]
fn sync_waits_for_requests_under_way() {
    let (mut lab, _) = stage1();
    let AtsProgress::Walking(id) = lab.smmu.ats_request(&treq(0x1000)) else { panic!() };
    lab.push(tlbi_va(1, 0x1000));
    lab.push(SYNC);
    lab.run_commands();
    assert!(!lab.idle());
    let mut progress = AtsProgress::Walking(id);
    while let AtsProgress::Walking(id) = progress {
        progress = lab.smmu.ats_step(id, &lab.ram);
    }
    lab.run_commands();
    assert!(lab.idle());
    let (n, _) = lab.fetches(|lab| ask(lab, treq(0x1000)));
    assert!(n > 0, "what was under way is not cached");
    let Progress::Latched(id, _) = lab.smmu.begin_translated(&Transaction::new(SID, PA, AccessKind::Read))
    else {
        panic!()
    };
    lab.push(cfgi_ste(SID));
    lab.push(SYNC);
    lab.run_commands();
    assert!(!lab.idle());
    lab.smmu.complete(id);
    lab.run_commands();
    assert!(lab.idle());
}

#[derive(Default)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Observer for Log {
    fn ats_translation(&mut self, _: &AtsRequest, _: &AtsAnswer) {
        self.0.lock().unwrap().push("translation");
    }

    fn atc_inv(&mut self, _: &AtcInvalidation) {
        self.0.lock().unwrap().push("inv");
    }

    fn atc_inv_completed(&mut self, _: &AtcInvalidation) {
        self.0.lock().unwrap().push("completed");
    }

    fn atc_inv_timed_out(&mut self, _: &AtcInvalidation) {
        self.0.lock().unwrap().push("timed out");
    }
}

/// Whoever watches is told when a device may begin to cache, and when it has stopped.
#[test]
fn observer() {
    let (mut lab, _) = stage1();
    let log = Log::default();
    let seen = log.0.clone();
    lab.smmu.observe(Box::new(log));
    ask(&mut lab, treq(0x1000));
    lab.push([0x40 | STREAMID, 52]);
    lab.push([0x40 | STREAMID, 52]);
    lab.run_commands();
    let (a, b) = (lab.smmu.take_atc_invalidation().unwrap(), lab.smmu.take_atc_invalidation().unwrap());
    lab.smmu.atc_invalidation_done(a.id);
    lab.smmu.atc_invalidation_timed_out(b.id);
    assert_eq!(*seen.lock().unwrap(), ["translation", "inv", "inv", "completed", "timed out"]);
}
