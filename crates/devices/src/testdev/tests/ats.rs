//! The engine with ATS and page requests, as its driver and that of the SMMU see them.

use smmu_model::AtcInvalidation;

use super::engine::{ERROR, HALTED, MEMCPY, Order, RAND48, SUM64};
use super::*;
use crate::dma::{AtcConfig, AtsStats, Denied};
use crate::pci::AtsOptions;

const PRIQ: u64 = RAM + 0x14_0000;
const EATS_FULL: u64 = 1 << 28;
const CAP_ATS: u64 = 0x0f;
const CAP_PRI: u64 = 0x13;
/// The device addresses in use, and where they go.
const IOVA: u64 = 0x10_0000;

fn config() -> Config {
    Config { ats: true, pri: true, ssidsize: 20, ..Config::default() }
}

/// The engine in stage 1 with ATS on; IOVA, 16 KiB, goes to DATA.
fn lab(options: AtsOptions) -> (Lab, Builder) {
    let (mut lab, mut tables) = Lab::stage1(config(), ENGINE);
    lab.host.add(ENGINE, |port| Box::new(Engine::new(port, 1, Timing::default()).with_ats(&options)));
    lab.enable();
    lab.smmu64(r::PRIQ_BASE, PRIQ | 4);
    lab.smmu32(r::CR0, r::cr0::SMMUEN | r::cr0::CMDQEN | r::cr0::EVENTQEN | r::cr0::PRIQEN | r::cr0::ATSCHK);
    lab.ste(ENGINE, [1 | 5 << 1 | CDS, 1 << 44 | EATS_FULL, 0, 0]);
    lab.map(&mut tables, IOVA, DATA, 0x4000, RW);
    let ats = lab.extended(CAP_ATS);
    lab.config16(ats + 6, 1 << 15);
    (lab, tables)
}

/// No page requests.
fn plain() -> AtsOptions {
    AtsOptions { atc: AtcConfig::default(), pri: None }
}

fn with_pri() -> (Lab, Builder) {
    let (mut lab, tables) = lab(AtsOptions { pri: Some(8), ..plain() });
    let pri = lab.extended(CAP_PRI);
    lab.config32(ENGINE, pri + 12, 8);
    lab.config16(pri + 4, 1);
    (lab, tables)
}

impl Lab {
    fn extended(&mut self, id: u64) -> u64 {
        let mut at = 0x100;
        while at != 0 {
            let header = self.config_read(ENGINE, at, 4);
            if header & 0xffff == id {
                return at;
            }
            at = header >> 20;
        }
        panic!("no extended capability {id:#x}");
    }

    fn config16(&mut self, at: u64, value: u64) {
        self.host.config_write(self.now, u64::from(ENGINE.0) << 12 | at, 2, value);
    }

    fn ats_stats(&self) -> AtsStats {
        let functions = self.host.functions().find(|(slot, _)| *slot == ENGINE);
        functions.unwrap().1.port().unwrap().ats_stats().unwrap()
    }

    /// Sends an ATC_INV and takes what goes out.
    fn atc_inv(&mut self, first: u64, size: u64) -> AtcInvalidation {
        let prod = self.smmu().mmio_read(r::CMDQ_PROD, 4).unwrap();
        self.put64(CMDQ + prod % 64 * 16, &[0x40 | u64::from(ENGINE.0) << 32, first | size]);
        self.put64(CMDQ + (prod + 1) % 64 * 16, &[0x46, 0]);
        self.smmu32(r::CMDQ_PROD, ((prod + 2) % 128) as u32);
        self.consume();
        let taken = self.smmu().take_atc_invalidation();
        taken.expect("one went out")
    }

    fn consume(&mut self) {
        while self.smmu().command_pending() {
            self.smmu().step_command(&PhysMem::new(&self.ram));
        }
    }

    fn idle(&self) -> bool {
        let mut smmu = self.smmu();
        smmu.mmio_read(r::CMDQ_PROD, 4) == smmu.mmio_read(r::CMDQ_CONS, 4)
    }

    /// Steps until the SMMU has a page request, and gives all that are in the queue.
    fn page_requests(&mut self) -> Vec<[u64; 2]> {
        for _ in 0..1000 {
            if self.smmu().pri_pending() || !self.step() {
                break;
            }
        }
        while self.smmu().pri_pending() {
            self.smmu().step_pri(&PhysMem::new(&self.ram));
        }
        let prod = self.smmu().mmio_read(r::PRIQ_PROD, 4).unwrap();
        let cons = self.smmu().mmio_read(r::PRIQ_CONS, 4).unwrap();
        self.smmu32(r::PRIQ_CONS, prod as u32);
        (cons..prod).map(|n| [self.get64(PRIQ + n % 16 * 16), self.get64(PRIQ + n % 16 * 16 + 8)]).collect()
    }

    /// PRI_RESP, brought to the engine.
    fn respond(&mut self, group: u64, resp: u64) {
        self.command([0x41 | u64::from(ENGINE.0) << 32, group | resp << 12]);
        let response = self.smmu().take_page_response().unwrap();
        self.host.page_response(&response);
    }
}

/// What is copied arrives; the cache answers all but the first access of each page and right.
#[test]
fn a_copy_through_the_cache() {
    let (mut lab, _) = lab(plain());
    let data: Vec<u8> = (0..0x1000u32).map(|n| (n * 7) as u8).collect();
    lab.put(DATA, &data);
    let order = Order { target: IOVA + 0x2000, ..Order::new(IOVA, 0x1000) };
    assert_eq!(lab.go(MEMCPY, order), HALTED);
    assert_eq!(lab.get(DATA + 0x2000, 0x1000), data);
    let stats = lab.ats_stats();
    assert_eq!((stats.requests, stats.hits), (2, 30), "32 beats of 256 bytes");
    assert_eq!(lab.smmu().stats().ats_translated, 32);
    assert_eq!(lab.smmu().stats().ats_requests, 2);
    assert!(lab.events().is_empty() && !lab.outstanding());
}

/// A page that may only be read is asked for again by a write, and refused.
#[test]
fn rights_are_kept() {
    let options = AtsOptions { atc: AtcConfig { denied: Denied::Abort, ..AtcConfig::default() }, pri: None };
    let (mut lab, mut tables) = lab(options);
    lab.map(&mut tables, IOVA + 0x8000, DATA + 0x8000, 0x1000, RW | d::AP_READ_ONLY);
    assert_eq!(lab.go(SUM64, Order::new(IOVA + 0x8000, 64)), HALTED);
    assert_eq!(lab.go(RAND48, Order::new(IOVA + 0x8000, 64)), ERROR);
    assert!(lab.events().is_empty(), "ATS records nothing");
}

/// Without access, and without page requests, the access is made untranslated, and the SMMU records it.
#[test]
fn what_is_denied_goes_untranslated() {
    let (mut lab, _) = lab(plain());
    assert_eq!(lab.go(SUM64, Order::new(IOVA + 0x8000, 64)), ERROR);
    let events = lab.events();
    assert_eq!(
        (events.len(), events[0][0], events[0][2]),
        (1, record(event::F_TRANSLATION, ENGINE), IOVA + 0x8000)
    );
}

/// ATS enabled at the device but not in the STE: UR, and then untranslated.
#[test]
fn unsupported_requests_fall_back() {
    let (mut lab, _) = lab(plain());
    lab.ste(ENGINE, [1 | 5 << 1 | CDS, 1 << 44, 0, 0]);
    assert_eq!(lab.go(SUM64, Order::new(IOVA, 64)), HALTED);
    let events = lab.events();
    assert_eq!((events.len(), events[0][0] & 0xff), (1, 5), "F_BAD_ATS_TREQ");
    assert_eq!(lab.smmu().stats().ats_translated, 0);
}

/// The cache goes on using what software changed until it is told, and not after.
#[test]
fn a_stale_translation_lives_until_the_invalidation() {
    let (mut lab, mut tables) = lab(plain());
    lab.put64(DATA, &[1]);
    lab.put64(DATA + 0x1000, &[2]);
    let sum = |lab: &mut Lab| {
        assert_eq!(lab.go(SUM64, Order::new(IOVA, 8)), HALTED);
        lab.udata(0, 1)
    };
    assert_eq!(sum(&mut lab), 1);
    tables.set(&mut lab.words(), 3, IOVA, 0).unwrap();
    lab.map(&mut tables, IOVA, DATA + 0x1000, 0x1000, RW);
    lab.command([0x12 | 1 << 48, IOVA | 1]);
    assert_eq!(sum(&mut lab), 1, "the TLBI does not reach the device");
    let other = lab.atc_inv(IOVA + 0x1000, 0);
    lab.host.atc_invalidation(lab.now, &other);
    lab.run();
    assert_eq!(sum(&mut lab), 1, "that was another page");
    lab.consume();
    let invalidation = lab.atc_inv(IOVA, 0);
    assert!(!lab.idle(), "CMD_SYNC waits");
    lab.host.atc_invalidation(lab.now, &invalidation);
    lab.run();
    lab.consume();
    assert!(lab.idle());
    assert_eq!(sum(&mut lab), 2);
    assert_eq!((lab.ats_stats().invalidations, lab.ats_stats().removed), (2, 1));
}

/// An invalidation is confirmed only when the access that uses what it removed has ended, wherever that access is.
#[test]
fn an_invalidation_waits_for_the_access_under_way() {
    for steps in 1..=8 {
        let (mut lab, _) = lab(plain());
        assert_eq!(lab.go(SUM64, Order::new(IOVA, 8)), HALTED, "fills the cache");
        lab.prepare(0, Order::new(IOVA, 0x400));
        lab.launch(0, SUM64);
        (0..steps).for_each(|_| assert!(lab.step()));
        let invalidation = lab.atc_inv(IOVA, 0);
        lab.host.atc_invalidation(lab.now, &invalidation);
        let port = lab.host.functions().find(|(slot, _)| *slot == ENGINE).unwrap().1.port().unwrap().clone();
        // The engine stands still, and only its cache goes on.
        let lane = 513;
        for _ in 0..20 {
            let now = lab.now + 1000;
            lab.now = now;
            if port.atc_next_step().is_some() {
                lab.host.step_agent(ENGINE, lane, now);
            }
        }
        let held = lab.smmu().atc_invalidations_outstanding().count() == 1;
        assert_eq!(held, steps % 2 == 1, "step {steps}: a translation is latched, or a beat is done");
        lab.run();
        assert_eq!(lab.smmu().atc_invalidations_outstanding().count(), 0);
        assert_eq!(lab.cmd(0), HALTED);
    }
}

/// A device that never confirms; and one that has ATS off, or is reset, and answers UR.
#[test]
fn who_confirms_and_who_does_not() {
    let never = AtsOptions { atc: AtcConfig { confirm: None, ..AtcConfig::default() }, pri: None };
    let (mut lab, _) = lab(never);
    let invalidation = lab.atc_inv(IOVA, 0);
    lab.host.atc_invalidation(lab.now, &invalidation);
    lab.run();
    assert_eq!(lab.smmu().atc_invalidations_outstanding().count(), 1);
    lab.smmu().atc_invalidation_timed_out(invalidation.id);
    lab.consume();
    assert_eq!(lab.smmu().mmio_read(r::GERROR, 4), Some(1), "CMDQ_ERR");
    lab.smmu32(r::GERRORN, 1);
    lab.consume();
    let invalidation = lab.atc_inv(IOVA, 0);
    lab.host.atc_invalidation(lab.now, &invalidation);
    let ats = lab.extended(CAP_ATS);
    lab.config16(ats + 6, 0);
    assert_eq!(lab.smmu().atc_invalidations_outstanding().count(), 0, "ATS was disabled");
    lab.consume();
    let invalidation = lab.atc_inv(IOVA, 0);
    assert!(lab.host.atc_invalidation(lab.now, &invalidation));
    assert_eq!(lab.smmu().atc_invalidations_outstanding().count(), 0, "it is off");
}

/// A page that is not there is asked for, comes, and is used. The group has all pages that are left to write.
#[test]
fn a_page_request() {
    let (mut lab, mut tables) = with_pri();
    lab.prepare(0, Order::new(IOVA + 0x8ff8, 16));
    lab.launch(0, RAND48);
    let requests = lab.page_requests();
    let word = u64::from(ENGINE.0) | 1 << 61;
    assert_eq!(requests, [[word, IOVA + 0x8000], [word | 1 << 62, IOVA + 0x9000]], "{requests:x?}");
    let pri = lab.extended(CAP_PRI);
    assert_eq!(lab.config_read(ENGINE, pri + 6, 2) & 0x103, 0, "not stopped");
    lab.map(&mut tables, IOVA + 0x8000, DATA, 0x2000, RW);
    lab.respond(0, 2);
    lab.run();
    assert_eq!(lab.cmd(0), HALTED);
    assert!(lab.events().is_empty());
    assert_ne!(lab.get(DATA + 0xff8, 8), [0; 8]);
}

/// A group asks for the pages that come next as well, up to four; only the last request of it says so, and gets the response.
#[test]
fn a_group_of_page_requests() {
    let (mut lab, mut tables) = with_pri();
    lab.prepare(0, Order { target: IOVA, ..Order::new(IOVA + 0x8ff8, 0x2800) });
    lab.launch(0, MEMCPY);
    let requests = lab.page_requests();
    let word = u64::from(ENGINE.0) | 1 << 60;
    let expected = [(0x8000, 0), (0x9000, 0), (0xa000, 0), (0xb000, 1 << 62)];
    assert_eq!(requests, expected.map(|(page, last)| [word | last, IOVA + page]), "{requests:x?}");
    lab.map(&mut tables, IOVA + 0x8000, DATA, 0x4000, RW);
    lab.respond(0, 2);
    lab.run();
    assert_eq!((lab.cmd(0), lab.ats_stats().page_requests), (HALTED, 4));
    // No more than software allows, and none for what comes in another order.
    let pri = lab.extended(CAP_PRI);
    lab.config32(ENGINE, pri + 12, 2);
    for (seed, pages) in [(0, vec![0x1_8000, 0x1_9000]), (0xffff_ffff, vec![0x1_b000])] {
        lab.prepare(0, Order { seed, ..Order::new(IOVA + 0x1_8000, 0x4000) });
        lab.launch(0, SUM64);
        let addresses: Vec<u64> = lab.page_requests().iter().map(|record| record[1] - IOVA).collect();
        assert_eq!(addresses, pages);
        lab.respond(0, 1);
        lab.run();
        assert_eq!(lab.cmd(0), ERROR);
    }
}

/// PCIe 4.0 §10.4.2.2 and §10.5.2: Response Failure ends all groups, later responses are ignored, and enabling anew clears the
/// status.
#[test]
fn response_failure_is_for_all_groups() {
    let (mut lab, _) = with_pri();
    let pri = lab.extended(CAP_PRI);
    for frame in 0..2 {
        lab.prepare(frame, Order::new(IOVA + 0x8000 + frame * 0x1000, 8));
        lab.launch(frame, SUM64);
    }
    (0..40).for_each(|_| assert!(lab.step()));
    assert_eq!(lab.page_requests().iter().map(|record| record[1] & 0x1ff).collect::<Vec<_>>(), [0, 1]);
    lab.respond(1, 0);
    lab.run();
    assert_eq!((lab.cmd(0), lab.cmd(1)), (ERROR, ERROR));
    lab.respond(0, 2);
    assert_eq!(lab.config_read(ENGINE, pri + 6, 2) & 3, 1, "ignored, and not unexpected");
    lab.config16(pri + 4, 0);
    assert_eq!(lab.config_read(ENGINE, pri + 6, 2), 1 << 15 | 1 << 8 | 1, "stopped, and it failed");
    lab.config16(pri + 4, 1);
    assert_eq!(lab.config_read(ENGINE, pri + 6, 2), 1 << 15);
    lab.prepare(0, Order::new(IOVA + 0x8000, 8));
    lab.launch(0, SUM64);
    assert_eq!(lab.page_requests().len(), 1);
}

/// Invalid Request fails the access; Response Failure stops page requests until software clears it.
#[test]
fn refused_pages() {
    let (mut lab, _) = with_pri();
    let pri = lab.extended(CAP_PRI);
    for (resp, failed) in [(1, 0), (0, 1)] {
        lab.prepare(0, Order::new(IOVA + 0x8000, 8));
        lab.launch(0, SUM64);
        assert_eq!(lab.page_requests().len(), 1);
        lab.respond(0, resp);
        lab.run();
        assert_eq!(lab.cmd(0), ERROR);
        assert_eq!(lab.config_read(ENGINE, pri + 6, 2) & 3, failed);
        assert!(lab.events().is_empty());
    }
    assert_eq!(lab.go(SUM64, Order::new(IOVA + 0x8000, 8)), ERROR, "no requests now");
    assert_eq!(lab.events().len(), 1, "it went untranslated");
    lab.config16(pri + 6, 1);
    assert_eq!(lab.config_read(ENGINE, pri + 6, 2) & 3, 0);
    lab.prepare(0, Order::new(IOVA + 0x8000, 8));
    lab.launch(0, SUM64);
    assert_eq!(lab.page_requests().len(), 1);
    lab.respond(0, 1);
    lab.run();
    lab.respond(0, 1);
    assert_eq!(lab.config_read(ENGINE, pri + 6, 2) & 3, 2, "an unexpected index");
}

/// The capabilities as software finds them; what is read-only stays.
#[test]
fn capabilities() {
    let (mut lab, _) = with_pri();
    let (ats, pri) = (lab.extended(CAP_ATS), lab.extended(CAP_PRI));
    assert_eq!(lab.config_read(ENGINE, ats + 4, 4), 1 << 5 | 1 << 6 | 1 << 31);
    lab.config32(ENGINE, ats + 4, u32::MAX);
    assert_eq!(lab.config_read(ENGINE, ats + 4, 4), 1 << 5 | 1 << 6 | 0x801f << 16);
    assert_eq!(lab.config_read(ENGINE, pri + 8, 4), 8, "capacity");
    assert_eq!(lab.config_read(ENGINE, pri + 6, 2), 1 << 15, "PASID required, not stopped");
    lab.config16(pri + 4, 0);
    assert_eq!(lab.config_read(ENGINE, pri + 4, 4), 0x8100_0000, "stopped");
}

/// ATS is saved and restored with the engine, at any step.
#[test]
fn snapshots() {
    let run = |stop: usize| {
        let (mut lab, _) = lab(plain());
        lab.put(DATA, &[5; 0x1000]);
        lab.prepare(0, Order { target: IOVA + 0x2000, ..Order::new(IOVA, 0x400) });
        lab.launch(0, MEMCPY);
        for n in 0.. {
            if n == stop {
                let json = serde_json::to_string(&lab.host.save()).unwrap();
                lab.host.restore(serde_json::from_str(&json).unwrap()).unwrap();
            }
            if !lab.step() {
                break;
            }
        }
        assert_eq!(lab.get(DATA + 0x2000, 0x400), [5; 0x400]);
        (lab.now, lab.ats_stats())
    };
    let whole = run(usize::MAX);
    for stop in 0..20 {
        assert_eq!(run(stop), whole, "stopped before step {stop}");
    }
}
