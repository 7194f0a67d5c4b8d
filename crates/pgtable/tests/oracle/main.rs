//! The walker against a naive oracle: one loop over memory in the manner of the pseudocode in DDI 0487, written from
//! the manual's tables and sharing no code with the crate. Only the configuration types are common.

mod nested;

use pgtable::{Access, Controls, Fault, FaultKind, Granule, Half, Leaf, Ranges, Stage1, Stage2, Step, Walk};
use proptest::prelude::*;

/// `SMMULAB_ORACLE_CASES`, for a long run; else what suits the fast suite.
fn cases(fast: u32) -> u32 {
    match std::env::var("SMMULAB_ORACLE_CASES") {
        Ok(text) => text.parse().expect("SMMULAB_ORACLE_CASES is a number"),
        Err(_) => fast,
    }
}

/// Bits `hi:lo` of `x`.
fn bits(x: u64, hi: u32, lo: u32) -> u64 {
    (x >> lo) & (((1u128 << (hi - lo + 1)) - 1) as u64)
}

/// Everything that an access to a mapped address can observe.
#[derive(Debug, PartialEq, Eq)]
struct Mapped {
    pa: u64,
    level: i32,
    size: u64,
    contiguous: bool,
    shareability: u64,
    attributes: u64,
    not_global: bool,
    non_secure: bool,
    set_access_flag: bool,
    set_dirty: bool,
    /// Privileged read, write, execute; then unprivileged.
    allowed: [bool; 6],
}

type Outcome = Result<Mapped, (FaultKind, i32)>;

/// The parts of a configuration that both stages have.
struct Params {
    granule: Granule,
    iasize: u32,
    startlevel: i32,
    baseaddress: u64,
    oasize: u32,
    wide: bool,
    hpd: bool,
    af_by_hardware: bool,
    dirty_by_hardware: bool,
    af_ignored: bool,
    sh: u64,
}

/// IA bits that index a table at `level` (the figures of D8.2.4 to D8.2.6).
fn index_field(granule: Granule, level: i32) -> (u32, u32) {
    match (granule, level) {
        (Granule::G4K, -1) => (51, 48),
        (Granule::G4K, 0) => (47, 39),
        (Granule::G4K, 1) => (38, 30),
        (Granule::G4K, 2) => (29, 21),
        (Granule::G4K, 3) => (20, 12),
        (Granule::G16K, 0) => (51, 47),
        (Granule::G16K, 1) => (46, 36),
        (Granule::G16K, 2) => (35, 25),
        (Granule::G16K, 3) => (24, 14),
        (Granule::G64K, 1) => (51, 42),
        (Granule::G64K, 2) => (41, 29),
        (Granule::G64K, 3) => (28, 16),
        _ => panic!("no such level"),
    }
}

/// The table of initial lookup levels at stage 1 (D8.2.7).
fn s1_start_level(granule: Granule, tsz: u32) -> i32 {
    match (granule, tsz) {
        (Granule::G4K, 12..=15) => -1,
        (Granule::G4K, 16..=24) => 0,
        (Granule::G4K, 25..=33) => 1,
        (Granule::G4K, 34..=42) => 2,
        (Granule::G4K, 43..=48) => 3,
        (Granule::G16K, 12..=16) => 0,
        (Granule::G16K, 17..=27) => 1,
        (Granule::G16K, 28..=38) => 2,
        (Granule::G16K, 39..=48) => 3,
        (Granule::G64K, 12..=21) => 1,
        (Granule::G64K, 22..=34) => 2,
        (Granule::G64K, 35..=47) => 3,
        _ => panic!("no such size"),
    }
}

fn tsz_out_of_range(granule: Granule, tsz: u32, wide: bool, small: bool) -> bool {
    let largest = match (small, granule) {
        (false, _) => 39,
        (true, Granule::G64K) => 47,
        (true, _) => 48,
    };
    tsz > largest || tsz < if wide { 12 } else { 16 }
}

/// Physical or intermediate address held in `descriptor`, down to bit `lsb`.
fn address_field(descriptor: u64, granule: Granule, lsb: u32, wide: bool) -> u64 {
    let mut address = bits(descriptor, 47, lsb) << lsb;
    if wide {
        if granule == Granule::G64K {
            address |= bits(descriptor, 15, 12) << 48;
        } else {
            address |= bits(descriptor, 49, 48) << 48;
            address |= bits(descriptor, 9, 8) << 50;
        }
    }
    address
}

fn oa_out_of_range(p: &Params, address: u64) -> bool {
    p.oasize < 52 && bits(address, 51, p.oasize) != 0
}

/// The walk that both stages share, to a leaf: (descriptor, level, OR of table descriptors' bits 63:59, base).
fn lookup(p: &Params, ia: u64, mem: &dyn Fn(u64) -> u64) -> Result<(u64, i32, u64, u64), (FaultKind, i32)> {
    let mut level = p.startlevel;
    let first_low = index_field(p.granule, level).1;
    let table_bytes = 8u64 << (p.iasize - first_low);
    let mut base = p.baseaddress - p.baseaddress % table_bytes;
    if oa_out_of_range(p, base) {
        return Err((FaultKind::AddressSize, 0));
    }
    let mut tables = 0;
    loop {
        let (high, low) = index_field(p.granule, level);
        let index = if level == p.startlevel { bits(ia, p.iasize - 1, low) } else { bits(ia, high, low) };
        let descriptor = mem(base + index * 8);
        if bits(descriptor, 0, 0) == 0 {
            return Err((FaultKind::Translation, level));
        }
        let table = bits(descriptor, 1, 1) == 1 && level != 3;
        if table {
            let page = index_field(p.granule, 3).1;
            let next = address_field(descriptor, p.granule, page, p.wide);
            if oa_out_of_range(p, next) {
                return Err((FaultKind::AddressSize, level));
            }
            tables |= bits(descriptor, 63, 59) & if p.hpd { 0b10000 } else { 0b11111 };
            base = next;
            level += 1;
            continue;
        }
        if level == 3 && bits(descriptor, 1, 1) == 0 {
            return Err((FaultKind::Translation, 3));
        }
        let block_supported = match (p.granule, level) {
            (_, 3) | (Granule::G4K, 1) | (_, 2) => true,
            (Granule::G4K, 0) | (Granule::G16K, 1) | (Granule::G64K, 1) => p.wide,
            _ => false,
        };
        if !block_supported {
            return Err((FaultKind::Translation, level));
        }
        let out = address_field(descriptor, p.granule, low, p.wide);
        if oa_out_of_range(p, out) {
            return Err((FaultKind::AddressSize, level));
        }
        if bits(descriptor, 10, 10) == 0 && !p.af_by_hardware && !p.af_ignored {
            return Err((FaultKind::AccessFlag, level));
        }
        return Ok((descriptor, level, tables, out));
    }
}

fn mapped(p: &Params, ia: u64, leaf: (u64, i32, u64, u64)) -> Mapped {
    let (descriptor, level, _, base) = leaf;
    let low = index_field(p.granule, level).1;
    let entries = match (p.granule, level) {
        (Granule::G4K, 1..=3) => 16,
        (Granule::G16K, 3) => 128,
        (Granule::G16K, 2) | (Granule::G64K, 2 | 3) => 32,
        _ => 0,
    };
    let fits = u128::from(entries as u64) << low <= 1u128 << p.iasize;
    Mapped {
        pa: base + bits(ia, low - 1, 0),
        level,
        size: 1 << low,
        contiguous: bits(descriptor, 52, 52) == 1 && entries != 0 && fits,
        shareability: if p.wide && p.granule != Granule::G64K { p.sh } else { bits(descriptor, 9, 8) },
        attributes: 0,
        not_global: false,
        non_secure: false,
        set_access_flag: p.af_by_hardware && bits(descriptor, 10, 10) == 0,
        set_dirty: false,
        allowed: [false; 6],
    }
}

struct Regime {
    ranges: Ranges,
    lower: Stage1,
    upper: Stage1,
    controls: Controls,
}

fn s1_translate(regime: &Regime, va: u64, mem: &dyn Fn(u64) -> u64) -> Outcome {
    let two = !regime.ranges.single;
    let upper = two && bits(va, 55, 55) == 1;
    let (cfg, tsz, tbi, epd) = if upper {
        (&regime.upper, regime.ranges.t1sz, regime.ranges.tbi1, regime.ranges.epd1)
    } else {
        (&regime.lower, regime.ranges.t0sz, regime.ranges.tbi0, regime.ranges.epd0)
    };
    let tsz = u32::from(tsz);
    let iasize = 64 - tsz;
    let wide_input = if cfg.granule == Granule::G64K { cfg.lva } else { cfg.pa52 };
    // Bits 63:56 count unless ignored; all from the input size up to there must equal bit 55, or zero.
    let top = if tbi { 55 } else { 63 };
    for bit in iasize..=top {
        if (bits(va, bit, bit) == 1) != upper {
            return Err((FaultKind::Translation, 0));
        }
    }
    if epd || tsz_out_of_range(cfg.granule, tsz, wide_input, cfg.ttst) {
        return Err((FaultKind::Translation, 0));
    }
    let p = Params {
        granule: cfg.granule,
        iasize,
        startlevel: s1_start_level(cfg.granule, tsz),
        baseaddress: cfg.ttb,
        oasize: u32::from(cfg.oas),
        wide: cfg.pa52,
        hpd: cfg.hpd,
        af_by_hardware: cfg.ha,
        dirty_by_hardware: cfg.ha && cfg.hd,
        af_ignored: cfg.affd,
        sh: u64::from(cfg.sh),
    };
    let ia = bits(va, iasize - 1, 0);
    let leaf = lookup(&p, ia, mem)?;
    let mut result = mapped(&p, ia, leaf);
    let (descriptor, _, tables, _) = leaf;

    let mut ap = bits(descriptor, 7, 6);
    let clean = p.dirty_by_hardware && bits(descriptor, 51, 51) == 1 && ap & 0b10 != 0;
    if clean {
        ap &= 0b01;
        result.set_dirty = true;
    }
    let (mut pxn, mut uxn) = (bits(descriptor, 53, 53), bits(descriptor, 54, 54));
    let aptable = bits(tables, 3, 2);
    pxn |= bits(tables, 0, 0);
    uxn |= bits(tables, 1, 1);
    result.attributes = bits(descriptor, 4, 2);
    result.non_secure = bits(descriptor, 5, 5) | bits(tables, 4, 4) == 1;
    let c = &regime.controls;
    if cfg.single {
        let (r, mut w, mut x) = (true, ap & 0b10 == 0, uxn == 0);
        if aptable & 0b10 != 0 {
            w = false;
        }
        if c.wxn && w {
            x = false;
        }
        result.allowed = [r, w, x, r, w, x];
        return Ok(result);
    }
    result.not_global = bits(descriptor, 11, 11) == 1;
    let (mut pr, mut pw, mut ur, mut uw) = match ap {
        0b00 => (true, true, false, false),
        0b01 => (true, true, true, true),
        0b10 => (true, false, false, false),
        _ => (true, false, true, false),
    };
    match aptable {
        0b00 => {}
        0b01 => (ur, uw) = (false, false),
        0b10 => (pw, uw) = (false, false),
        _ => (pw, ur, uw) = (false, false, false),
    }
    let (mut px, mut ux) = (pxn == 0, uxn == 0);
    if uw {
        px = false;
    }
    let pan = c.pan && (ur || c.epan && ux);
    if c.wxn {
        px = px && !pw;
        ux = ux && !uw;
    }
    if pan {
        (pr, pw) = (false, false);
    }
    result.allowed = [pr, pw, px, ur, uw, ux];
    Ok(result)
}

fn s2_translate(cfg: &Stage2, xnx: bool, ipa: u64, mem: &dyn Fn(u64) -> u64) -> Outcome {
    let fault = Err((FaultKind::Translation, 0));
    let tsz = u32::from(cfg.tsz);
    if tsz_out_of_range(cfg.granule, tsz, cfg.pa52, cfg.ttst) {
        return fault;
    }
    let startlevel = match (cfg.granule, cfg.sl0) {
        (Granule::G4K, 0b000) => 2,
        (Granule::G4K, 0b001) => 1,
        (Granule::G4K, 0b010) => 0,
        (Granule::G4K, 0b011) if cfg.ttst => 3,
        (Granule::G4K, 0b100) if cfg.pa52 => -1,
        (Granule::G16K, 0b00) => 3,
        (Granule::G16K, 0b01) => 2,
        (Granule::G16K, 0b10) => 1,
        (Granule::G16K, 0b11) if cfg.pa52 => 0,
        (Granule::G64K, 0b00) => 3,
        (Granule::G64K, 0b01) => 2,
        (Granule::G64K, 0b10) => 1,
        _ => return fault,
    };
    // S2InconsistentSL: at least one bit from the first table, at most 16 concatenated.
    let iasize = 64 - tsz;
    let granulebits = index_field(cfg.granule, 3).1;
    let stride = granulebits - 3;
    let smallest = (3 - startlevel) as u32 * stride + granulebits + 1;
    let largest = smallest + (stride - 1) + 4;
    if iasize < smallest || iasize > largest || bits(ipa, 63, iasize) != 0 {
        return fault;
    }
    let p = Params {
        granule: cfg.granule,
        iasize,
        startlevel,
        baseaddress: cfg.ttb,
        oasize: u32::from(cfg.oas),
        wide: cfg.pa52,
        hpd: true,
        af_by_hardware: cfg.ha,
        dirty_by_hardware: cfg.ha && cfg.hd,
        af_ignored: cfg.affd,
        sh: u64::from(cfg.sh),
    };
    let leaf = lookup(&p, ipa, mem)?;
    let mut result = mapped(&p, ipa, leaf);
    let descriptor = leaf.0;
    result.attributes = bits(descriptor, 5, 2);
    let (r, mut w) = (bits(descriptor, 6, 6) == 1, bits(descriptor, 7, 7) == 1);
    if p.dirty_by_hardware && bits(descriptor, 51, 51) == 1 && !w {
        w = true;
        result.set_dirty = true;
    }
    let (px, ux) = match (bits(descriptor, 54, 53), xnx) {
        (0b00, _) | (0b01, false) => (true, true),
        (0b01, true) => (false, true),
        (0b11, true) => (true, false),
        _ => (false, false),
    };
    result.allowed = [r, w, px, r, w, ux];
    Ok(result)
}

/// Runs the crate's walk to its end. No walk takes more than five fetches.
fn run(mut step: Step, mem: &dyn Fn(u64) -> u64) -> Result<Leaf, Fault> {
    for _ in 0..=5 {
        match step {
            Step::Fetch(walk) => {
                assert_eq!(walk.address() % 8, 0);
                step = walk.next(mem(walk.address()));
            }
            Step::Done(leaf) => return Ok(leaf),
            Step::Fault(fault) => return Err(fault),
        }
    }
    panic!("the walk does not end");
}

fn observe(result: Result<Leaf, Fault>, controls: &Controls) -> Outcome {
    let leaf = result.map_err(|f| (f.kind, i32::from(f.level)))?;
    let mut allowed = [false; 6];
    for (i, allowed) in allowed.iter_mut().enumerate() {
        let access = Access { write: i % 3 == 1, instruction: i % 3 == 2, privileged: i < 3 };
        *allowed = leaf.check(&access, controls).is_ok();
    }
    Ok(Mapped {
        pa: leaf.pa,
        level: i32::from(leaf.level),
        size: leaf.size,
        contiguous: leaf.contiguous,
        shareability: u64::from(leaf.shareability()),
        attributes: u64::from(if leaf.is_stage2() { leaf.mem_attr() } else { leaf.attr_index() }),
        not_global: leaf.ng(),
        non_secure: !leaf.is_stage2() && leaf.ns(),
        set_access_flag: leaf.needs_af(),
        set_dirty: leaf.needs_dirty(),
        allowed,
    })
}

/// Endless memory whose content is a function of the address: descriptors that are mostly valid, mostly tables above
/// the last level, with mostly small addresses.
fn memory(seed: u64, oas: u8) -> impl Fn(u64) -> u64 {
    move |address| {
        let mut state = seed ^ address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = || {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        };
        let mut descriptor = random();
        let dice = random();
        if dice & 0xf != 0 {
            descriptor |= 1;
        }
        if dice >> 4 & 3 != 0 {
            descriptor |= 2;
        }
        if dice >> 6 & 7 != 0 {
            // Addresses below the output size, wherever the format keeps their bits.
            descriptor &= !(0x0003_ffff_ffff_0000 & (u64::MAX << oas.min(48)));
            if dice >> 9 & 1 != 0 {
                descriptor &= !0x0003_0000_0000_f300;
            }
        }
        if dice >> 10 & 3 != 0 {
            descriptor |= 1 << 10;
        }
        if dice >> 12 & 3 != 0 {
            descriptor &= !(0x1f << 59);
        }
        descriptor
    }
}

fn granule() -> impl Strategy<Value = Granule> {
    prop_oneof![Just(Granule::G4K), Just(Granule::G16K), Just(Granule::G64K)]
}

fn oas() -> impl Strategy<Value = u8> {
    prop_oneof![Just(32), Just(36), Just(40), Just(42), Just(44), Just(48), Just(52)]
}

/// Table bases: mostly within any output size.
fn ttb() -> impl Strategy<Value = u64> {
    prop_oneof![9 => 0..1u64 << 32, 1 => 0..1u64 << 52].prop_map(|a| a & !0xf)
}

fn tsz() -> impl Strategy<Value = u8> {
    prop_oneof![20 => 12u8..=48, 1 => 0u8..=63]
}

fn stage1() -> impl Strategy<Value = Stage1> {
    (granule(), tsz(), ttb(), oas(), any::<[bool; 8]>(), 0u8..4).prop_map(
        |(granule, tsz, ttb, oas, b, sh)| {
            let [hpd, ha, hd, affd, single, pa52, lva, ttst] = b;
            Stage1 { granule, tsz, ttb, oas, upper: false, hpd, ha, hd, affd, single, pa52, lva, ttst, sh }
        },
    )
}

fn stage2() -> impl Strategy<Value = Stage2> {
    (granule(), tsz(), 0u8..8, ttb(), oas(), any::<[bool; 5]>(), 0u8..4, any::<bool>()).prop_map(
        |(granule, tsz, sl0, ttb, oas, [ha, hd, affd, pa52, ttst], sh, agree)| {
            let mut cfg = Stage2 { granule, tsz, sl0, ttb, oas, ha, hd, affd, pa52, ttst, sh };
            if agree {
                // Mostly test walks, not refusals: take an encoding that suits the size, if there is one.
                cfg.sl0 = (0..5).find(|&sl0| Stage2 { sl0, ..cfg }.start_level().is_some()).unwrap_or(sl0);
            }
            cfg
        },
    )
}

/// Raw input: anything, canonical for some size, or with a tag in the top byte.
fn input() -> impl Strategy<Value = u64> {
    (any::<u64>(), 16u32..52, any::<bool>(), any::<bool>()).prop_map(|(raw, width, upper, tagged)| {
        let low = raw & ((1 << width) - 1);
        let address = if upper { low | u64::MAX << width } else { low };
        if tagged { address ^ (raw & 0xff << 56) } else { address }
    })
}

fn controls() -> impl Strategy<Value = Controls> {
    any::<[bool; 4]>().prop_map(|[wxn, pan, epan, xnx]| Controls { wxn, pan, epan, xnx })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(4096)))]

    #[test]
    fn stage1_agrees(
        (lower, upper) in (stage1(), stage1()),
        controls in controls(),
        [tbi0, tbi1] in any::<[bool; 2]>(),
        epd in 0u8..16,
        inputs in prop::collection::vec(input(), 8),
        seed: u64,
    ) {
        let upper = Stage1 { upper: true, single: lower.single, ..upper };
        let ranges = Ranges {
            t0sz: lower.tsz, t1sz: upper.tsz, tbi0, tbi1,
            epd0: epd == 0, epd1: epd == 1, single: lower.single,
        };
        let regime = Regime { ranges, lower, upper, controls };
        let mem = memory(seed, lower.oas);
        for va in inputs {
            let want = s1_translate(&regime, va, &mem);
            let got = ranges.select(va).and_then(|half| {
                run(Walk::stage1(if half == Half::Upper { &upper } else { &lower }, va), &mem)
            });
            prop_assert_eq!(observe(got, &controls), want, "va {:#x}", va);
        }
    }

    #[test]
    fn stage2_agrees(
        cfg in stage2(),
        controls in controls(),
        inputs in prop::collection::vec(input(), 8),
        seed: u64,
    ) {
        let mem = memory(seed, cfg.oas);
        for raw in inputs {
            for ipa in [raw, raw & u64::MAX >> cfg.tsz] {
                let want = s2_translate(&cfg, controls.xnx, ipa, &mem);
                let got = run(Walk::stage2(&cfg, ipa), &mem);
                prop_assert_eq!(observe(got, &controls), want, "ipa {:#x}", ipa);
            }
        }
    }
}

/// The comparison means something only if it reaches every outcome.
#[test]
fn random_tables_reach_every_outcome() {
    let mut seen = std::collections::BTreeMap::new();
    let mut mapped_at = std::collections::BTreeSet::new();
    for seed in 0..4000u64 {
        let granule = [Granule::G4K, Granule::G16K, Granule::G64K][seed as usize % 3];
        let cfg = Stage1 {
            granule,
            tsz: 16 + (seed / 3 % 24) as u8,
            ttb: 0x8000_0000,
            oas: 40,
            ..Stage1::default()
        };
        let ranges = Ranges { t0sz: cfg.tsz, ..Ranges::default() };
        let regime = Regime { ranges, lower: cfg, upper: cfg, controls: Controls::default() };
        match s1_translate(&regime, seed << 12 & u64::MAX >> cfg.tsz, &memory(seed, 40)) {
            Ok(m) => drop(mapped_at.insert((granule, m.level))),
            Err(fault) => *seen.entry(fault).or_insert(0) += 1,
        }
    }
    for level in 0..=3 {
        for kind in [FaultKind::Translation, FaultKind::AddressSize] {
            assert!(seen.contains_key(&(kind, level)), "no {kind:?} fault at level {level}");
        }
    }
    for level in 1..=3 {
        assert!(seen.contains_key(&(FaultKind::AccessFlag, level)), "no Access flag fault at level {level}");
        assert!(mapped_at.contains(&(Granule::G4K, level)), "no 4 KiB leaf at level {level}");
    }
    assert!(mapped_at.contains(&(Granule::G16K, 2)) && mapped_at.contains(&(Granule::G64K, 3)));
}
