//! Chapter 6: each feature of the ID registers can be turned off, and nothing else changes with it; what is off is RES0,
//! IGNORED or ILLEGAL.

use pgtable::{Granule, Stage2, descriptor as d};
use smmu_model::spec::registers as r;
use smmu_model::{AccessKind, Config, StallModel, Transaction};

use crate::lab::*;

const IDRS: [u64; 9] = [r::IDR0, r::IDR1, r::IDR2, r::IDR3, r::IDR4, r::IDR5, r::IIDR, r::AIDR, r::IDR6];

fn idrs(options: &str) -> [u32; 9] {
    let mut lab = Lab::reset(Config::parse(options).unwrap());
    IDRS.map(|offset| lab.r32(offset))
}

/// 6.3.1 to 6.3.8, 6.3.45: what the largest implementation says, field by field.
#[test]
fn everything_is_on() {
    let [idr0, idr1, idr2, idr3, idr4, idr5, _, aidr, idr6] = idrs("preset=full");
    // S1P, S2P, TTF 2, COHACC, HTTU 3, HYP, ATS, ASID16, MSI, SEV, ATOS, PRI, VMW, VMID16, CD2L, VATOS, TTENDIAN 2,
    // ATSRECERR, STALL_MODEL 0, TERM_MODEL 0, ST_LEVEL 1. Not BTM, DORMHINT, NS1ATS.
    assert_eq!(idr0, 0x08df_f6db, "{idr0:#x}");
    // SIDSIZE 24, SSIDSIZE 20, PRIQS, EVENTQS and CMDQS 19, ATTR_PERMS_OVR, ATTR_TYPES_OVR, ECMDQ.
    assert_eq!(idr1, 24 | 20 << 6 | 19 << 11 | 19 << 16 | 19 << 21 | 3 << 26 | 1 << 31);
    // HAD, XNX, FWB, STT, RIL, E0PD, MTEPERM.
    assert_eq!(idr3, 1 << 2 | 1 << 4 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 22);
    // 52 bits, three granules, DS, VAX, STALL_MAX.
    assert_eq!(idr5, 6 | 7 << 4 | 1 << 7 | 1 << 10 | 1024 << 16);
    assert_eq!((idr2, idr4, aidr, idr6), (1, 0, 4, 4 << 16));
}

/// 6.3.1 to 6.3.6: turning one feature off clears its field, and those that depend on it. Nothing else changes.
#[test]
fn each_can_be_off() {
    let full = idrs("preset=full");
    // The option, and the bits of IDR0, IDR1, IDR3 and IDR5 that change.
    let cases: [(&str, u32, u32, u32, u32); 26] = [
        ("cohacc=off,ecmdq=0", 1 << 4, 1 << 31, 0, 0),
        ("asid16=off", 1 << 12, 0, 0, 0),
        ("vmid16=off", 1 << 18, 0, 0, 0),
        ("stall=none", 1 << 24, 0, 0, 1024 << 16),
        ("stall=forced", 1 << 25, 0, 0, 0),
        ("term-razwi=off", 1 << 26, 0, 0, 0),
        ("st2l=off,sidsize=16", 1 << 27, 8, 0, 0),
        ("cd2l=off", 1 << 19, 0, 0, 0),
        ("httu=0", 3 << 6, 0, 0, 0),
        ("httu=2", 1 << 6, 0, 0, 0),
        ("hyp=off", 1 << 9, 0, 0, 0),
        ("vmw=off", 1 << 17, 0, 0, 0),
        ("atos=off,vatos=off", 1 << 15 | 1 << 20, 0, 0, 0),
        ("ats_split=off", 1 << 11, 0, 0, 0),
        ("atsrecerr=off", 1 << 23, 0, 0, 0),
        ("pri=off", 1 << 16, 19 << 11, 0, 0),
        ("sev=off", 1 << 14, 0, 0, 0),
        ("msi=off,ecmdq=0", 1 << 13, 1 << 31, 0, 0),
        ("had=off", 0, 0, 1 << 2, 0),
        ("xnx=off,fwb=off", 0, 0, 1 << 4 | 1 << 8, 0),
        ("stt=off,e0pd=off", 0, 0, 1 << 9 | 1 << 13, 0),
        ("mteperm=off", 0, 0, 1 << 22, 0),
        ("ril=off", 0, 0, 1 << 10, 0),
        ("gran4k=off,gran16k=off,ds=off", 0, 0, 0, 3 << 4 | 1 << 7),
        ("gran64k=off", 0, 0, 0, 1 << 6),
        ("ds=off,vax52=off", 0, 0, 0, 1 << 7 | 1 << 10),
    ];
    for (options, idr0, idr1, idr3, idr5) in cases {
        let now = idrs(&format!("preset=full,{options}"));
        let changed: Vec<u32> = full.iter().zip(now).map(|(a, b)| a ^ b).collect();
        assert_eq!([changed[0], changed[1], changed[3], changed[5]], [idr0, idr1, idr3, idr5], "{options}");
    }
    let stages = idrs("preset=full,s2p=off,xnx=off,fwb=off,mteperm=off,vmw=off,vatos=off,ats_split=off");
    assert_eq!((full[0] ^ stages[0]) & 3, 1, "S2P");
    assert_eq!(stages[0] >> 18 & 1, 0, "VMID16 is RES0 without stage 2");
    for oas in [32, 36, 40, 42, 44, 48] {
        let encoded = [(32, 0), (36, 1), (40, 2), (42, 3), (44, 4), (48, 5)];
        let idr5 = idrs(&format!("preset=full,oas={oas}"))[5];
        assert!(encoded.contains(&(oas, idr5 & 7)), "{oas}");
    }
}

/// 5.2, 5.4: identifiers wider than implemented are ILLEGAL.
#[test]
fn narrow_identifiers() {
    for (asid16, vmid16, event) in [(true, true, None), (false, true, Some(0x0a)), (true, false, Some(0x04))]
    {
        let (mut lab, mut tables) = Lab::stage1(Config { asid16, vmid16, ..linux() });
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        lab.context(0, CdFields { word0: cd(16, 0, 0x100), ..CdFields::default() });
        let [w0, w1, ..] = ste_stage1(CDS);
        lab.ste(SID, [w0, w1, 0x100, 0]);
        assert_eq!(lab.read(0x1000) == End::Abort, event.is_some());
        assert_eq!(lab.events().first().map(|&event| code(event)), event);
    }
}

/// 5.2: stages, fault models and table formats that are not there are ILLEGAL in STEs and CDs.
#[test]
fn illegal_without_the_feature() {
    let stage2 = [1 | 6 << 1, 1 << 44, 7 | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51, S2_TABLES];
    let s1 = ste_stage1(CDS);
    let with = |word0: u64, word1: u64| [s1[0] | word0, s1[1] | word1, 0, 0];
    let cases = [
        ("s2p=off,vmw=off", stage2, 0, 0x04),
        ("s1p=off,ssidsize=0,cd2l=off", s1, 0, 0x04),
        ("ssidsize=4,cd2l=off", with(1 << 4 | 3 << 59, 2), 0, 0x04),
        ("ssidsize=2", with(3 << 59, 2), 0, 0x04),
        ("stall=none", with(0, 1 << 27), 0, 0x04),
        ("stall=none", s1, 1 << 44, 0x0a),
        ("stall=forced", s1, 0, 0x0a),
        ("term-razwi=off", s1, 1 << 46, 0x0a),
        ("httu=0", s1, 1 << 43, 0x0a),
        ("hyp=on", with(0, 1 << 30), 0, 0x04),
    ];
    for (options, ste, flip, event) in cases {
        let mut lab = Lab::new(Config::parse(options).unwrap());
        lab.context(0, CdFields { word0: cd(16, 0, 1) ^ flip, ..CdFields::default() });
        lab.ste(SID, ste);
        assert_eq!(lab.read(0x1000), End::Abort, "{options}");
        assert_eq!(code(lab.event()), event, "{options}");
    }
}

/// 5.2, 5.4, 6.3: fields of features that are not there are IGNORED: HAD, E0PD, FWB, XNX, STRW, FMT, EATS.
#[test]
fn ignored_without_the_feature() {
    let (mut lab, mut tables) = Lab::stage1(Config { had: false, e0pd: false, ..linux() });
    lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
    tables.restrict(&mut Words(&lab.ram), 1, 0x1000, d::AP_TABLE_READ_ONLY).unwrap();
    lab.context(0, CdFields { word1: TABLES | 6, ..CdFields::default() });
    let [w0, w1, ..] = ste_stage1(CDS);
    // STRW, EATS.
    lab.ste(SID, [w0, w1 | 1 << 30 | 2 << 28, 0, 0]);
    assert_eq!(lab.read(0x1000), End::To(0x8000_1000), "E0PD0, STRW, EATS");
    assert_eq!(lab.write(0x1000), End::Abort, "APTable counts");
    assert_eq!(code(lab.event()), 0x13);
    // A linear stream table, whatever FMT says.
    let mut lab = Lab::new(Config { st2l: false, ..linux() });
    lab.ste(SID, STE_BYPASS);
    let cr0 = lab.r32(r::CR0);
    lab.w32(r::CR0, 0);
    lab.w32(r::STRTAB_BASE_CFG, 8 | 1 << 16 | 6 << 6);
    lab.w32(r::CR0, cr0);
    assert_eq!(lab.read(0x1000), End::To(0x1000));
}

/// 3.23.1: MemAttr 0b0100 of stage 2 is write-back with MTEPERM, and reserved (a Device type here) without.
#[test]
fn mteperm() {
    for (mteperm, mair) in [(true, 0xff), (false, 0x00)] {
        let mut lab = Lab::new(Config { mteperm, ..linux() });
        let mut cfg = Stage2 { granule: Granule::G4K, tsz: 24, sl0: 1, oas: 44, ..Stage2::default() };
        let mut tables = lab.tables2(&mut cfg);
        let word2 = 7 | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
        lab.ste(SID, [1 | 6 << 1, 1 << 44, word2, S2_TABLES]);
        lab.map(&mut tables, 0x1000, 0x1000, 0x1000, S2_RW & !(15 << 2) | d::mem_attr(4));
        let (_, to) = lab.translate(Transaction::new(SID, 0x1000, AccessKind::Read)).unwrap();
        assert_eq!(to.attrs.mair, mair);
    }
    assert!(Config { mteperm: true, s2p: false, ..linux() }.validate().is_err());
}

/// 6.3.26, 6.3.29: queues of every size up to the largest one; a larger LOG2SIZE is as the largest.
#[test]
fn queues_of_every_size() {
    for log2 in 0..=19u64 {
        let mut lab = Lab::reset(Config { cmdqs: 19, eventqs: 19, ..linux() });
        lab.w64(r::CMDQ_BASE, 0x2000_0000 | log2);
        lab.w64(r::EVENTQ_BASE, 0x3000_0000 | log2);
        lab.w64(r::STRTAB_BASE, STRTAB);
        lab.w32(r::STRTAB_BASE_CFG, 8);
        // Both at their last entry, so that they wrap.
        let (last, wrapped) = ((1u32 << log2) - 1, 1u32 << log2);
        for offset in [r::CMDQ_PROD, r::CMDQ_CONS, r::EVENTQ_PROD, r::EVENTQ_CONS] {
            lab.w32(offset, last);
        }
        lab.w32(r::CR0, r::cr0::SMMUEN | r::cr0::CMDQEN | r::cr0::EVENTQEN);
        lab.ram.set(0x2000_0000 + u64::from(last) * 16, SYNC[0]);
        lab.w32(r::CMDQ_PROD, wrapped);
        lab.smmu.step_command(&lab.ram);
        assert_eq!(lab.r32(r::CMDQ_CONS), wrapped, "LOG2SIZE {log2}");
        assert!(!lab.smmu.command_pending());
        lab.dma(Transaction::new(255, 0, AccessKind::Read));
        lab.smmu.step_event(&lab.ram);
        assert_eq!(lab.r32(r::EVENTQ_PROD), wrapped);
        assert_eq!(lab.ram.word(0x3000_0000 + u64::from(last) * 32) & 0xff, 0x04);
    }
    let mut lab = Lab::reset(Config { cmdqs: 2, ..linux() });
    lab.w64(r::CMDQ_BASE, 0x2000_0000 | 31);
    lab.w32(r::CR0, r::cr0::CMDQEN);
    lab.ram.set(0x2000_0000, SYNC[0]);
    lab.w32(r::CMDQ_PROD, 1);
    lab.smmu.step_command(&lab.ram);
    assert_eq!(lab.r32(r::CMDQ_CONS), 1);
}

/// 3.12, 6.3.1: with STALL_MODEL forced, a CD that stalls is the only legal one, and stalls.
#[test]
fn forced_stalls() {
    let (mut lab, _) = Lab::stage1(Config { stall: StallModel::Forced, ..linux() });
    lab.context(0, CdFields { word0: cd(16, 0, 1) | 1 << 44, ..CdFields::default() });
    let mut progress = lab.smmu.begin(&Transaction::new(SID, 0x1000, AccessKind::Read));
    while let smmu_model::Progress::Walking(id) = progress {
        progress = lab.smmu.step(id, &lab.ram);
    }
    assert!(matches!(progress, smmu_model::Progress::Stalled(_)));
}
