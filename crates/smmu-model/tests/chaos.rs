//! A guest and its devices do anything at all, and the SMMU neither panics, hangs nor grows.

#[path = "common/cases.rs"]
mod cases;

use std::cell::RefCell;
use std::collections::BTreeMap;

use cases::cases;
use proptest::prelude::*;
use smmu_model::spec::registers as r;
use smmu_model::{
    Abort, AccessKind, AtsAnswer, AtsProgress, AtsRequest, Config, MemAttrs, Memory, PageRequest, Progress,
    Replace, Shareability, Smmu, StallModel, Transaction, Translation, TxnId, Unaligned,
};

/// 64 KiB of guest memory from 0, of which queues, tables and structures are all made; more than that aborts.
const RAM: u64 = 0x1_0000;

#[derive(Default)]
struct Ram(RefCell<BTreeMap<u64, u64>>);

impl Ram {
    fn word(&self, at: u64) -> u64 {
        self.0.borrow().get(&(at & !7)).copied().unwrap_or(0)
    }
}

impl Memory for Ram {
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort> {
        if pa >= RAM {
            return Err(Abort);
        }
        assert_eq!(pa % data.len() as u64, 0, "every access is naturally aligned");
        for (n, byte) in data.iter_mut().enumerate() {
            let at = pa + n as u64;
            *byte = (self.word(at) >> (8 * (at & 7))) as u8;
        }
        Ok(())
    }

    fn write(&self, pa: u64, data: &[u8]) -> Result<(), Abort> {
        assert_eq!(pa % data.len() as u64, 0, "every access is naturally aligned");
        let words = data.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        if pa >= RAM {
            return Err(Abort);
        }
        for (n, word) in words.enumerate() {
            self.0.borrow_mut().insert(pa + 8 * n as u64, word);
        }
        Ok(())
    }

    fn compare_exchange_u64(&self, pa: u64, old: u64, new: u64) -> Result<u64, Abort> {
        assert_eq!(pa % 8, 0, "every access is naturally aligned");
        if pa >= RAM {
            return Err(Abort);
        }
        let held = self.word(pa);
        if held == old {
            self.0.borrow_mut().insert(pa, new);
        }
        Ok(held)
    }
}

#[derive(Clone, Debug)]
enum Act {
    Register(u64, u8, u64),
    Memory(u64, u64),
    Command(u64, u64),
    Begin(Transaction),
    Step(usize),
    Complete(usize),
    Consume,
    Record,
    Interrupt,
    Snapshot,
    /// A Translation Request with NW; one fetch of one.
    Ask(Transaction, bool),
    AskStep(usize),
    Translated(Transaction),
    /// A page request with PRGIndex and flags.
    Page(Transaction, u16, u8),
    Pri,
    /// One fetch of a lookup by ATOS.
    Lookup,
    /// An invalidation and a response go out, and the device confirms or does not.
    Messages(bool),
}

/// A word as a guest writes it: small, one of structures' usual bits, or anything.
fn word() -> impl Strategy<Value = u64> {
    let address = (0..RAM / 64).prop_map(|n| n * 64);
    prop_oneof![
        Just(0u64),
        any::<u64>(),
        (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a & b),
        // Descriptors, STEs, CDs: an address with flags.
        (address.clone(), 0..16u64).prop_map(|(a, f)| a | f),
        (address.clone(), any::<u64>()).prop_map(|(a, f)| a | f & 0xfff0_0000_0000_0fff | 0x403),
        (0..64u64, 0..64u64, any::<u16>()).prop_map(|(t0, t1, asid)| {
            t0 | 1 << 31 | t1 << 16 | 5 << 32 | 1 << 41 | 1 << 46 | u64::from(asid) << 48
        }),
        (16..40u64).prop_map(|t0| t0 | 3 << 30 | 5 << 32 | 1 << 41 | 3 << 45 | 1 << 48),
        (address, 4..8u64, 0..12u64).prop_map(|(a, config, max)| 1 | config << 1 | a | max << 59),
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    let known = [
        r::CR0,
        r::CR1,
        r::CR2,
        r::GBPA,
        r::IRQ_CTRL,
        r::GERRORN,
        r::STRTAB_BASE,
        r::STRTAB_BASE_CFG,
        r::CMDQ_BASE,
        r::CMDQ_PROD,
        r::CMDQ_CONS,
        r::EVENTQ_BASE,
        r::EVENTQ_PROD,
        r::EVENTQ_CONS,
        r::EVENTQ_IRQ_CFG0,
        r::GATOS_CTRL,
        r::GATOS_SID,
        r::GATOS_ADDR,
        r::VATOS_CTRL,
        r::VATOS_SID,
        r::VATOS_ADDR,
        r::VATOS_SEL,
        r::GERROR_IRQ_CFG0,
        r::ECMDQ_PAGE,
        r::ECMDQ_PAGE + 8,
        r::ECMDQ_PAGE + 0xc,
        r::ECMDQ_PAGE + 0x8000,
        r::ECMDQ_PAGE + 0x8008,
        r::PRIQ_BASE,
        r::PRIQ_PROD,
        r::PRIQ_CONS,
        r::PRIQ_IRQ_CFG0,
    ];
    prop_oneof![4 => proptest::sample::select(known.to_vec()), 1 => 0..0x3_0010u64, 1 => any::<u64>()]
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let kind = prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write), Just(AccessKind::Atomic)];
    let address = prop_oneof![0..0x20_0000u64, any::<u64>(), any::<u32>().prop_map(|n| !u64::from(n))];
    (
        prop_oneof![0..8u32, any::<u32>()],
        proptest::option::of(0..1u32 << 20),
        address,
        kind,
        any::<(bool, bool)>(),
    )
        .prop_map(|(sid, ssid, address, kind, (privileged, instruction))| Transaction {
            sid,
            ssid: ssid.map(|n: u32| n >> (n & 31).min(20)),
            address,
            kind,
            privileged,
            instruction,
            attrs: MemAttrs { mair: 0xff, shareability: Shareability::Inner },
        })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => (offset(), prop_oneof![Just(4u8), Just(8), any::<u8>()], word()).prop_map(|(o, s, v)| Act::Register(o, s, v)),
        4 => (0..RAM / 8, word()).prop_map(|(n, w)| Act::Memory(n * 8, w)),
        3 => (any::<u64>(), word()).prop_map(|(a, b)| Act::Command(a, b)),
        3 => (proptest::sample::select(smmu_model::spec::command::Opcode::ALL), any::<u64>(), any::<u64>())
            .prop_map(|(op, a, b)| Act::Command(op as u64 | a & !0x4ff, b)),
        6 => transaction().prop_map(Act::Begin),
        12 => any::<usize>().prop_map(Act::Step),
        3 => any::<usize>().prop_map(Act::Complete),
        8 => Just(Act::Consume),
        4 => Just(Act::Record),
        2 => Just(Act::Interrupt),
        1 => Just(Act::Snapshot),
        3 => (transaction(), any::<bool>()).prop_map(|(t, no_write)| Act::Ask(t, no_write)),
        6 => any::<usize>().prop_map(Act::AskStep),
        2 => transaction().prop_map(Act::Translated),
        2 => (transaction(), any::<u16>(), any::<u8>()).prop_map(|(t, group, flags)| Act::Page(t, group, flags)),
        3 => Just(Act::Pri),
        3 => Just(Act::Lookup),
        2 => any::<bool>().prop_map(Act::Messages),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    let stall = prop_oneof![Just(StallModel::Both), Just(StallModel::None), Just(StallModel::Forced)];
    (any::<[bool; 12]>(), stall, 0..3u32, proptest::sample::select(vec![32u8, 36, 44, 48, 52])).prop_map(
        |(flags, stall, size, oas)| {
            let [s1p, asid16, vmid16, razwi, hyp, sev, msi, ril, contiguous, split_fetch, xnx, page0_alias] =
                flags;
            Config {
                s1p,
                s2p: !s1p || xnx,
                asid16,
                vmid16,
                stall,
                term_razwi: razwi,
                hyp,
                sev,
                msi,
                ril,
                contiguous,
                split_fetch,
                page0_alias,
                xnx,
                oas,
                vax52: oas == 52,
                ssidsize: if s1p { 20 } else { 0 },
                cd2l: s1p,
                httu: size as u8 + u8::from(hyp),
                tlb: size * 8,
                s2_cache: size * 4,
                walk_cache: size * 4,
                l1std_cache: size,
                l1cd_cache: size,
                replace: if sev { Replace::Random } else { Replace::Lru },
                keep_all: msi,
                combined: !xnx || hyp,
                cache_invalid: ril,
                ecmdq: if msi { 2 } else { 0 },
                vmw: (!s1p || xnx) && sev,
                pmcg: if hyp { 3 } else { 0 },
                merge: sev,
                prefetch: ril,
                tlb_conflict: contiguous,
                bbml: u8::from(split_fetch),
                strict_commands: asid16 && vmid16,
                wires: !sev,
                ste_cache: size * 2,
                cd_cache: size * 2,
                event_fifo: 4,
                ats: sev,
                ats_split: sev && s1p && xnx,
                atsrecerr: sev && hyp,
                pri: sev,
                pps: sev && razwi,
                atos: true,
                vatos: s1p && xnx,
                ds: sev && oas == 52,
                stall_suppress: stall != StallModel::None && hyp,
                stall_retry: stall != StallModel::None && xnx,
                wide_addresses: asid16,
                ste_truncate: asid16 && hyp,
                cd_ipa_check: hyp,
                tlbi_unaligned: if hyp { Unaligned::Block } else { Unaligned::Nothing },
                ..Config::linux()
            }
        },
    )
}

/// A machine that is set up half-way sensibly, so that acts get somewhere.
fn machine(config: Config) -> (Smmu, Ram) {
    let mut smmu = Smmu::new(config);
    smmu.mmio_write(r::CMDQ_BASE, 8, 0x4000 | 5);
    smmu.mmio_write(r::EVENTQ_BASE, 8, 0x5000 | 3);
    smmu.mmio_write(r::STRTAB_BASE, 8, 0x6000);
    smmu.mmio_write(r::STRTAB_BASE_CFG, 4, 3);
    smmu.mmio_write(r::CR2, 4, 2);
    smmu.mmio_write(r::PRIQ_BASE, 8, 0x5800 | 2);
    smmu.mmio_write(r::IRQ_CTRL, 4, 7);
    smmu.mmio_write(r::CR0, 4, 0x1f);
    let ram = Ram::default();
    for sid in 0..8u64 {
        let at = 0x6000 + sid * 64;
        let words = [
            1 | (4 + (sid & 3)) << 1 | 0x7000 | (sid & 4) << 57,
            2 | 1 << 44 | (1 + (sid & 3) / 3) << 28,
            24 << 32 | 1 << 38 | 0xc << 48,
            0x8000,
        ];
        for (n, word) in words.into_iter().enumerate() {
            ram.0.borrow_mut().insert(at + 8 * n as u64, word);
        }
    }
    for cd in 0..8u64 {
        let word0 = 25 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | (4 + (cd & 1)) << 44 | 1 << 46 | cd << 48;
        ram.0.borrow_mut().insert(0x7000 + cd * 64, word0);
        ram.0.borrow_mut().insert(0x7008 + cd * 64, 0x8000 + (cd & 3) * 0x1000);
    }
    for n in 0..64u64 {
        ram.0.borrow_mut().insert(0x8000 + n * 8, (0x8000 + (n & 7) * 0x1000) | 0x7c3);
    }
    (smmu, ram)
}

fn check(t: &Transaction, translation: &Translation, config: &Config) {
    assert!(translation.bytes > 0, "{t:?}");
    assert!(
        translation.pa.checked_add(translation.bytes).is_some_and(|end| end <= 1 << config.oas),
        "{translation:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(96), ..ProptestConfig::default() })]

    #[test]
    fn anything_goes(config in config(), acts in proptest::collection::vec(act(), 1..300)) {
        let (mut smmu, ram) = machine(config.clone());
        let mut txns: Vec<(TxnId, Transaction)> = Vec::new();
        let mut requests: Vec<TxnId> = Vec::new();
        let put = |txns: &mut Vec<(TxnId, Transaction)>, at: Option<usize>, t: Transaction, progress| {
            let id = match progress {
                Progress::Latched(id, translation) => {
                    check(&t, &translation, &config);
                    Some(id)
                }
                Progress::Walking(id) | Progress::Stalled(id) => Some(id),
                Progress::Aborted | Progress::Discarded => None,
            };
            match (at, id) {
                (None, Some(id)) => txns.push((id, t)),
                (Some(n), None) => { txns.swap_remove(n); }
                _ => {}
            }
        };
        for act in acts {
            match act {
                Act::Register(offset, size, value) => {
                    smmu.mmio_write(offset, size, value);
                    smmu.mmio_read(offset, size);
                }
                Act::Memory(at, word) => { ram.0.borrow_mut().insert(at, word); }
                Act::Command(a, b) => {
                    let prod = smmu.mmio_read(r::CMDQ_PROD, 4).unwrap();
                    ram.0.borrow_mut().insert(0x4000 + (prod & 31) * 16, a);
                    ram.0.borrow_mut().insert(0x4008 + (prod & 31) * 16, b);
                    smmu.mmio_write(r::CMDQ_PROD, 4, prod + 1);
                }
                Act::Begin(t) if txns.len() < 16 => {
                    let progress = smmu.begin(&t);
                    put(&mut txns, None, t, progress);
                }
                Act::Begin(_) => {}
                Act::Step(n) if !txns.is_empty() => {
                    let n = n % txns.len();
                    let (id, t) = txns[n];
                    let progress = smmu.step(id, &ram);
                    put(&mut txns, Some(n), t, progress);
                }
                Act::Complete(n) if !txns.is_empty() => {
                    let (id, _) = txns.swap_remove(n % txns.len());
                    smmu.complete(id);
                }
                Act::Step(_) | Act::Complete(_) => {}
                Act::Consume => {
                    smmu.step_command(&ram);
                    // An error is acknowledged: there is more to come.
                    let gerror = smmu.mmio_read(r::GERROR, 4).unwrap();
                    smmu.mmio_write(r::GERRORN, 4, gerror);
                }
                Act::Record => smmu.step_event(&ram),
                Act::Interrupt => {
                    smmu.take_wired();
                    if let Some(msi) = smmu.take_msi() {
                        prop_assert!(msi.address >> config.oas == 0 && msi.address & 3 == 0);
                        smmu.msi_aborted(&msi);
                    }
                }
                Act::Ask(t, no_write) if requests.len() < 8 => {
                    let Transaction { sid, ssid, address, privileged, instruction: execute, .. } = t;
                    let request = AtsRequest { sid, ssid, address, no_write, execute, privileged };
                    if let AtsProgress::Walking(id) = smmu.ats_request(&request) {
                        requests.push(id);
                    }
                }
                Act::AskStep(n) if !requests.is_empty() => {
                    let n = n % requests.len();
                    if let AtsProgress::Answered(answer) = smmu.ats_step(requests[n], &ram) {
                        requests.swap_remove(n);
                        if let AtsAnswer::Success(t) = answer {
                            let bytes = 1u64 << t.size;
                            prop_assert!(t.address % bytes == 0 && t.address + bytes <= 1 << config.oas, "{t:?}");
                        }
                    }
                }
                Act::Translated(t) if txns.len() < 16 => {
                    let progress = smmu.begin_translated(&t);
                    put(&mut txns, None, t, progress);
                }
                Act::Ask(..) | Act::AskStep(_) | Act::Translated(_) => {}
                Act::Page(t, prg_index, flags) => smmu.page_request(&PageRequest {
                    sid: t.sid,
                    ssid: t.ssid,
                    address: t.address,
                    prg_index,
                    last: flags & 1 != 0,
                    read: flags & 2 != 0,
                    write: flags & 4 != 0,
                    execute: t.instruction,
                    privileged: t.privileged,
                }),
                Act::Pri => smmu.step_pri(&ram),
                Act::Lookup => smmu.step_atos(&ram),
                Act::Messages(confirmed) => {
                    smmu.take_page_response();
                    match smmu.take_atc_invalidation() {
                        Some(taken) if confirmed => smmu.atc_invalidation_done(taken.id),
                        Some(taken) => smmu.atc_invalidation_timed_out(taken.id),
                        None => {}
                    }
                }
                Act::Snapshot => {
                    let text = serde_json::to_string(&smmu).unwrap();
                    smmu = serde_json::from_str(&text).unwrap();
                }
            }
        }
        for id in requests {
            let mut steps = 0;
            while let AtsProgress::Walking(_) = smmu.ats_step(id, &ram) {
                steps += 1;
                prop_assert!(steps < 200, "a walk without end: {id:?}");
            }
        }
        for steps in 0.. {
            if !smmu.atos_pending() {
                break;
            }
            smmu.step_atos(&ram);
            prop_assert!(steps < 500, "lookups without end");
        }
        for steps in 0.. {
            smmu.take_page_response();
            if !smmu.pri_pending() {
                break;
            }
            smmu.step_pri(&ram);
            prop_assert!(steps < 20_000, "page requests without end");
        }
        // Every walk ends, whatever the tables say.
        for (id, _) in txns {
            let mut steps = 0;
            while let Progress::Walking(id) = smmu.step(id, &ram) {
                steps += 1;
                prop_assert!(steps < 200, "a walk without end: {id:?}");
            }
            smmu.complete(id);
        }
    }
}
