//! Nested walks against the same oracle, put together from its two stages.

use pgtable::{Class, NestedFault, NestedStep, NestedWalk};

use super::*;

/// Why a nested translation ends: stage 1's fault, or stage 2's with the address and whether it was a table's.
type NestedEnd = Result<(Mapped, Mapped), (u8, FaultKind, i32, Option<(u64, bool)>)>;

/// Stage 1 in memory that stage 2 translates. The loop above has no way to fail from within a fetch, so the failure is
/// noted, and the descriptor then read ends the walk.
fn nested_translate(
    regime: &Regime,
    s2: &Stage2,
    xnx: bool,
    ptw: bool,
    va: u64,
    mem: &dyn Fn(u64) -> u64,
) -> NestedEnd {
    let failed = std::cell::Cell::new(None);
    let through = |ipa: u64| {
        let fault = match s2_translate(s2, xnx, ipa, mem) {
            Ok(m) if !m.allowed[0] || (ptw && m.attributes < 4) => (FaultKind::Permission, m.level),
            Ok(m) => return mem(m.pa),
            Err(fault) => fault,
        };
        failed.set(Some((2, fault.0, fault.1, Some((ipa, true)))));
        0
    };
    let stage1 = s1_translate(regime, va, &through);
    if let Some(failure) = failed.get() {
        return Err(failure);
    }
    let stage1 = stage1.map_err(|(kind, level)| (1, kind, level, None))?;
    let ipa = stage1.pa;
    match s2_translate(s2, xnx, ipa, mem) {
        Ok(stage2) => Ok((stage1, stage2)),
        Err((kind, level)) => Err((2, kind, level, Some((ipa, false)))),
    }
}

fn run_nested(mut step: NestedStep, controls: &Controls, mem: &dyn Fn(u64) -> u64) -> NestedEnd {
    // Five levels, each with five of stage 2, then five for the output; and the stop after stage 1.
    for _ in 0..=36 {
        step = match step {
            NestedStep::Fetch(walk) => walk.next(mem(walk.address())),
            NestedStep::Stage1(done) => done.output(),
            NestedStep::Done(n) => {
                let both = (observe(Ok(n.stage1), controls), observe(Ok(n.stage2), controls));
                return Ok((both.0.expect("a leaf"), both.1.expect("a leaf")));
            }
            NestedStep::Fault(NestedFault::Stage1(f)) => return Err((1, f.kind, i32::from(f.level), None)),
            NestedStep::Fault(NestedFault::Stage2 { fault: f, ipa, class }) => {
                return Err((2, f.kind, i32::from(f.level), Some((ipa, class == Class::Table))));
            }
        };
    }
    panic!("the walk does not end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(4096)))]

    #[test]
    fn nested_agrees(
        lower in stage1(),
        s2 in stage2(),
        controls in controls(),
        ptw: bool,
        inputs in prop::collection::vec(input(), 8),
        seed: u64,
    ) {
        let ranges = Ranges { t0sz: lower.tsz, t1sz: lower.tsz, single: lower.single, ..Ranges::default() };
        let regime = Regime { ranges, lower, upper: lower, controls };
        // Random stage 2 tables rarely map two walks in a row: mostly valid, mostly readable ones do.
        let random = memory(seed, lower.oas.min(s2.oas).min(40));
        let mem = |at: u64| random(at) | if at >> 6 & 3 != 0 { 0x441 } else { 0 };
        for raw in inputs {
            let va = raw & u64::MAX >> lower.tsz;
            let want = nested_translate(&regime, &s2, controls.xnx, ptw, va, &mem);
            let got = match ranges.select(va) {
                Ok(_) => run_nested(NestedWalk::start(&lower, &s2, ptw, va), &controls, &mem),
                Err(f) => Err((1, f.kind, i32::from(f.level), None)),
            };
            prop_assert_eq!(got, want, "va {:#x}", va);
        }
    }
}

#[test]
fn random_tables_reach_every_outcome() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..4000u64 {
        let lower = Stage1 { tsz: 25, ttb: 0x8000_0000, oas: 40, ..Stage1::default() };
        let s2 = Stage2 { tsz: 24, sl0: 1, ttb: 0x9000_0000, oas: 40, ..Stage2::default() };
        let ranges = Ranges { t0sz: 25, ..Ranges::default() };
        let regime = Regime { ranges, lower, upper: lower, controls: Controls::default() };
        let random = memory(seed, 32);
        let mem = |at: u64| random(at) | 0x441;
        seen.insert(match nested_translate(&regime, &s2, false, false, seed << 12, &mem) {
            Ok(_) => (0, false),
            Err((stage, _, _, at)) => (stage, at.is_some_and(|(_, table)| table)),
        });
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(0, false), (1, false), (2, false), (2, true)]);
}
