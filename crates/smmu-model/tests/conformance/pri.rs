//! Chapter 8 and section 4.5.2: page requests, their queue, and the responses.

use smmu_model::spec::event::PageHint;
use smmu_model::spec::registers::{self as r, cr0, cr2, gerror, irq_ctrl};
use smmu_model::{Config, IrqSource, PageRequest, PageResponse, ResponseCode, Shareability};

use crate::ats::config;
use crate::lab::*;

const PRIQ: u64 = 0x1018_0000;
const LOG2_PRIQ: u64 = 2;
const PPAR: u64 = 1 << 18;
const STREAMID: u64 = (SID as u64) << 32;

fn request(prg_index: u16, last: bool) -> PageRequest {
    PageRequest {
        sid: SID,
        ssid: Some(5),
        address: 0x1234_5000 + u64::from(prg_index) * 0x1000,
        prg_index,
        last,
        read: true,
        write: false,
        execute: false,
        privileged: false,
    }
}

fn response(ssid: Option<u32>, prg_index: u16, code: ResponseCode) -> PageResponse {
    PageResponse { sid: SID, ssid, prg_index, code }
}

/// A queue of four entries, enabled.
fn lab_with(config: Config) -> Lab {
    let mut lab = Lab::stage1(config).0;
    lab.w64(r::PRIQ_BASE, PRIQ | LOG2_PRIQ);
    lab.w32(r::IRQ_CTRL, irq_ctrl::PRIQ | irq_ctrl::EVENTQ | irq_ctrl::GERROR);
    set(&mut lab, cr0::PRIQEN, 0);
    lab
}

fn lab() -> Lab {
    lab_with(config())
}

fn set(lab: &mut Lab, on: u32, off: u32) {
    let cr0 = lab.r32(r::CR0);
    lab.w32(r::CR0, cr0 & !off | on);
}

fn ask(lab: &mut Lab, request: PageRequest) {
    lab.smmu.page_request(&request);
    run(lab);
}

fn run(lab: &mut Lab) {
    for _ in 0..100 {
        if !lab.smmu.pri_pending() {
            return;
        }
        lab.smmu.step_pri(&lab.ram);
    }
    panic!("it does not end");
}

fn responses(lab: &mut Lab) -> Vec<PageResponse> {
    std::iter::from_fn(|| lab.smmu.take_page_response()).collect()
}

fn queued(lab: &mut Lab) -> u32 {
    (lab.r32(r::PRIQ_PROD) & 0xf_ffff).wrapping_sub(lab.r32(r::PRIQ_CONS) & 0xf_ffff) & 7
}

/// 6.3: IDR0.PRI, IDR1.PRIQS, IDR3.PPS; without PRI its registers are RES0.
#[test]
fn id_registers() {
    let mut lab = Lab::reset(Config { pps: true, priqs: 9, ..config() });
    assert_eq!(lab.r32(r::IDR0) >> 16 & 1, 1);
    assert_eq!(lab.r32(r::IDR1) >> 11 & 0x1f, 9);
    assert_eq!(lab.r32(r::IDR3) >> 3 & 1, 1);
    lab.w64(r::PRIQ_BASE, PRIQ | 2);
    assert_eq!(lab.r32(r::PRIQ_BASE), PRIQ as u32 | 2);
    lab.w32(r::PRIQ_PROD, 1);
    lab.w32(r::CR0, cr0::PRIQEN);
    lab.w32(r::PRIQ_PROD, 3);
    lab.w64(r::PRIQ_BASE, 0);
    assert_eq!((lab.r32(r::PRIQ_PROD), lab.r32(r::PRIQ_BASE)), (1, PRIQ as u32 | 2), "guarded by PRIQEN");
    assert_eq!(lab.r32(r::CR0ACK), cr0::PRIQEN, "whatever SMMUEN is");
    lab.w32(r::CR1, 0x3f);
    assert_eq!(lab.r32(r::CR1), 0, "the queue attributes are guarded by PRIQEN, too");
    let mut lab = Lab::reset(Config { pri: false, ..config() });
    assert_eq!((lab.r32(r::IDR0) >> 16 & 1, lab.r32(r::IDR1) >> 11 & 0x1f), (0, 0));
    lab.w64(r::PRIQ_BASE, PRIQ | 2);
    lab.w32(r::PRIQ_CONS, 1);
    lab.w32(r::CR0, cr0::PRIQEN);
    lab.w32(r::IRQ_CTRL, irq_ctrl::PRIQ);
    for offset in [r::PRIQ_BASE, r::PRIQ_CONS, r::CR0, r::IRQ_CTRL] {
        assert_eq!(lab.r32(offset), 0, "{offset:#x}");
    }
}

/// Chapter 8: a request becomes a record of 16 bytes, in a step of its own.
#[test]
fn a_record() {
    let mut lab = lab();
    lab.smmu.page_request(&PageRequest { write: true, privileged: true, execute: true, ..request(3, true) });
    assert_eq!(queued(&mut lab), 0, "nothing happens on arrival");
    run(&mut lab);
    assert_eq!(queued(&mut lab), 1);
    let word = 0xfc << 56 | 5 << 32 | u64::from(SID);
    assert_eq!([lab.ram.word(PRIQ), lab.ram.word(PRIQ + 8)], [word, 0x1234_8003]);
    // Without a PASID there are no X and Priv.
    ask(&mut lab, PageRequest { ssid: None, privileged: true, execute: true, ..request(4, false) });
    assert_eq!(lab.ram.word(PRIQ + 16), 0x10 << 56 | u64::from(SID));
    assert_eq!(responses(&mut lab), [], "that is for software to do");
    assert_eq!(lab.smmu.stats().page_requests, 2);
}

/// 3.18 and 6.3.38: the interrupt comes when the queue becomes non-empty, or, with LO, for the last request of a group.
#[test]
fn interrupts() {
    let mut lab = lab();
    ask(&mut lab, request(0, false));
    assert!(lab.smmu.take_wired().priq);
    ask(&mut lab, request(0, true));
    assert!(!lab.smmu.take_wired().any(), "it was not empty");
    lab.w32(r::PRIQ_CONS, 2);
    ask(&mut lab, request(1, true));
    assert!(lab.smmu.take_wired().priq);
    lab.w32(r::IRQ_CTRL, 0);
    lab.w64(r::PRIQ_IRQ_CFG0, 0x0808_0040);
    lab.w32(r::PRIQ_IRQ_CFG1, 77);
    lab.w32(r::PRIQ_IRQ_CFG2, r::PRIQ_LAST_ONLY | 1);
    lab.w32(r::IRQ_CTRL, irq_ctrl::PRIQ);
    lab.w32(r::PRIQ_IRQ_CFG1, 78);
    assert_eq!(lab.r32(r::PRIQ_IRQ_CFG1), 77, "guarded while it is enabled");
    lab.w32(r::PRIQ_CONS, 3);
    ask(&mut lab, request(2, false));
    assert!(!lab.smmu.take_wired().any(), "LO");
    ask(&mut lab, request(2, true));
    assert!(lab.smmu.take_wired().priq);
    let msis = lab.msis();
    assert_eq!(msis.len(), 1);
    assert_eq!((msis[0].address, msis[0].data, msis[0].source), (0x0808_0040, 77, IrqSource::PriQ));
    assert_eq!((msis[0].attrs.mair, msis[0].attrs.shareability), (0x04, Shareability::Outer));
    lab.smmu.msi_aborted(&msis[0]);
    assert_eq!(lab.r32(r::GERROR), gerror::MSI_PRIQ_ABT_ERR);
}

/// 6.3.16: IRQ_CTRLACK says that the source is off when its MSI is out.
#[test]
fn disabling_waits_for_the_msi() {
    let mut lab = lab();
    lab.w32(r::IRQ_CTRL, 0);
    lab.w64(r::PRIQ_IRQ_CFG0, 0x0808_0040);
    lab.w32(r::IRQ_CTRL, irq_ctrl::PRIQ);
    ask(&mut lab, request(0, true));
    lab.w32(r::IRQ_CTRL, 0);
    assert_eq!(lab.r32(r::IRQ_CTRLACK), irq_ctrl::PRIQ);
    lab.msis();
    assert_eq!(lab.r32(r::IRQ_CTRLACK), 0);
}

/// 4.5.2: the three responses; the fourth is illegal, and so is the command without PRI; with SMMUEN=0 it is ignored.
#[test]
fn responses_of_software() {
    let mut lab = lab();
    let codes = [ResponseCode::ResponseFailure, ResponseCode::InvalidRequest, ResponseCode::Success];
    for (resp, code) in (0u64..).zip(codes) {
        lab.command([0x41 | 1 << 11 | 9 << 12 | STREAMID, 0x155 | resp << 12]);
        assert_eq!(responses(&mut lab), [response(Some(9), 0x155, code)]);
    }
    lab.command([0x41 | 9 << 12 | STREAMID, 1 | 2 << 12]);
    assert_eq!(responses(&mut lab), [response(None, 1, ResponseCode::Success)], "SSV is 0");
    set(&mut lab, 0, cr0::SMMUEN);
    lab.command([0x41 | STREAMID, 2 << 12]);
    assert_eq!(responses(&mut lab), []);
    for (config, resp) in [(config(), 3), (Config { pri: false, ..config() }, 2)] {
        let mut lab = Lab::new(config);
        lab.push([0x41 | STREAMID, resp << 12]);
        lab.run_commands();
        assert_eq!(lab.r32(r::CMDQ_CONS) >> 24, 1, "CERROR_ILL");
    }
}

/// 8.2: with PRIQEN or SMMUEN 0 the SMMU responds itself, with Response Failure and without a PASID, to the last of a group.
#[test]
fn disabled() {
    for off in [cr0::PRIQEN, cr0::SMMUEN] {
        let mut lab = lab();
        set(&mut lab, 0, off);
        ask(&mut lab, request(7, false));
        assert_eq!(responses(&mut lab), []);
        ask(&mut lab, request(7, true));
        assert_eq!(responses(&mut lab), [response(None, 7, ResponseCode::ResponseFailure)]);
        assert_eq!(queued(&mut lab), 0);
        assert_eq!(lab.smmu.stats().page_auto_responses, 1);
    }
}

/// Chapter 8: a Stop Marker is a record like others, and gets no response of the SMMU's; without a PASID it is a request.
#[test]
fn stop_markers() {
    let mut lab = lab();
    let marker = PageRequest { read: false, ..request(0, true) };
    ask(&mut lab, marker);
    assert_eq!(lab.ram.word(PRIQ) >> 60, 0xc);
    set(&mut lab, 0, cr0::PRIQEN);
    ask(&mut lab, marker);
    assert_eq!(responses(&mut lab), []);
    ask(&mut lab, PageRequest { ssid: None, ..marker });
    assert_eq!(responses(&mut lab), [response(None, 0, ResponseCode::ResponseFailure)]);
}

/// 8.1: a full queue overflows. Nothing more is written until software acknowledges, even if there is room; the last of a
/// group is answered with Success.
#[test]
fn overflow() {
    let mut lab = lab();
    for n in 0..4 {
        ask(&mut lab, PageRequest { ssid: None, ..request(n, true) });
    }
    assert_eq!((queued(&mut lab), lab.r32(r::PRIQ_PROD)), (4, 4));
    ask(&mut lab, PageRequest { ssid: None, ..request(4, false) });
    assert_eq!(lab.r32(r::PRIQ_PROD), r::OVERFLOW | 4);
    assert_eq!(responses(&mut lab), []);
    ask(&mut lab, PageRequest { ssid: None, ..request(4, true) });
    assert_eq!(responses(&mut lab), [response(None, 4, ResponseCode::Success)]);
    lab.w32(r::PRIQ_CONS, 4);
    ask(&mut lab, PageRequest { ssid: None, ..request(5, true) });
    assert_eq!(queued(&mut lab), 0, "there is room, but the overflow is not acknowledged");
    assert_eq!(responses(&mut lab), [response(None, 5, ResponseCode::Success)]);
    assert_eq!(lab.r32(r::PRIQ_PROD), r::OVERFLOW | 4, "the flag toggles once");
    lab.w32(r::PRIQ_CONS, r::OVERFLOW | 4);
    ask(&mut lab, PageRequest { ssid: None, ..request(6, true) });
    assert_eq!((queued(&mut lab), responses(&mut lab)), (1, vec![]));
}

/// A lab whose queue has overflown.
fn overflown(config: Config) -> Lab {
    let mut lab = lab_with(config);
    for n in 0..5 {
        ask(&mut lab, request(n, false));
    }
    lab
}

/// 8.1: the PASID of an automatic response is for STE.PPAR to say, whose STE is fetched in steps; with IDR3.PPS it is
/// always there.
#[test]
fn pasids_of_automatic_responses() {
    for (pps, ppar, ssid) in [(false, 0, None), (false, PPAR, Some(5)), (true, 0, Some(5))] {
        let mut lab = overflown(Config { pps, ..config() });
        let [w0, w1, ..] = ste_stage1(CDS);
        lab.ste(SID, [w0, w1 | ppar, 0, 0]);
        lab.smmu.page_request(&request(9, true));
        lab.smmu.step_pri(&lab.ram);
        assert_eq!(lab.smmu.pri_pending(), !pps, "an STE to fetch");
        run(&mut lab);
        assert_eq!(responses(&mut lab), [response(ssid, 9, ResponseCode::Success)]);
        ask(&mut lab, PageRequest { ssid: None, ..request(9, true) });
        assert_eq!(responses(&mut lab), [response(None, 9, ResponseCode::Success)], "it had none");
    }
}

/// 8.1: without a valid STE the response is Response Failure without a PASID; events only with CR2.REC_CFG_ATS.
#[test]
fn no_ste_for_an_automatic_response() {
    for recorded in [false, true] {
        let mut lab = overflown(Config { atsrecerr: true, ..config() });
        set(&mut lab, 0, cr0::SMMUEN);
        lab.w32(r::CR2, cr2::RECINVSID | if recorded { cr2::REC_CFG_ATS } else { 0 });
        set(&mut lab, cr0::SMMUEN, 0);
        lab.ste(SID, [0; 4]);
        ask(&mut lab, request(9, true));
        assert_eq!(responses(&mut lab), [response(None, 9, ResponseCode::ResponseFailure)]);
        let events: Vec<u64> = lab.events().into_iter().map(code).collect();
        assert_eq!(events, if recorded { vec![4] } else { vec![] });
        ask(&mut lab, PageRequest { sid: 256, ..request(9, true) });
        assert_eq!(responses(&mut lab)[0].code, ResponseCode::ResponseFailure);
        assert_eq!(lab.events().len(), usize::from(recorded));
    }
}

/// 8.2: a queue that cannot be written raises PRIQ_ABT_ERR; its request and those until it is acknowledged fail.
#[test]
fn abort() {
    let mut lab = lab();
    lab.ram.holes.push(PRIQ..PRIQ + 0x1000);
    ask(&mut lab, request(0, true));
    assert_eq!(lab.r32(r::GERROR), gerror::PRIQ_ABT_ERR);
    assert_eq!(responses(&mut lab), [response(None, 0, ResponseCode::ResponseFailure)]);
    lab.ram.holes.clear();
    ask(&mut lab, request(1, true));
    assert_eq!(responses(&mut lab), [response(None, 1, ResponseCode::ResponseFailure)]);
    assert_eq!(queued(&mut lab), 0);
    lab.w32(r::GERRORN, gerror::PRIQ_ABT_ERR);
    ask(&mut lab, request(2, true));
    assert_eq!((queued(&mut lab), responses(&mut lab)), (1, vec![]));
}

/// A queue of any size wraps.
#[test]
fn wraps() {
    let mut lab = lab();
    for n in 0..20u32 {
        ask(&mut lab, request(n as u16, true));
        assert_eq!(lab.ram.word(PRIQ + u64::from(n % 4) * 16 + 8) & 0x1ff, u64::from(n));
        lab.w32(r::PRIQ_CONS, (n + 1) & 7);
    }
    assert_eq!(lab.r32(r::PRIQ_PROD), 20 & 7);
}

/// 7.3.19: E_PAGE_REQUEST, a hint that is no part of PRI.
#[test]
fn page_hint() {
    let mut lab = lab();
    let hint = PageHint { address: 0x1234_5678, span: 3, rights: [true, false, false, true, true, false] };
    lab.smmu.page_hint(SID, Some(5), hint);
    let rights = 1 << 39 | 1 << 36 | 1 << 35;
    assert_eq!(lab.event(), [0x24 | 1 << 11 | 5 << 12 | STREAMID, rights | 3 << 44, 0x1234_5000, 0]);
}
