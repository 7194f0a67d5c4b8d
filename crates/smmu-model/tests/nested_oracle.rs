//! Random stage 2 and nested translations against an oracle that reads memory and has no caches: every granule of either
//! stage, every size and first level, concatenated tables, blocks, 48 and 52 bits with and without DS, random attributes,
//! and damage. `SMMULAB_ORACLE_CASES` asks for more than the default.

#[path = "common/cases.rs"]
mod cases;
#[path = "conformance/lab.rs"]
#[allow(dead_code)]
mod lab;

use cases::cases;
use lab::{CDS, CdFields, End, Lab, Ram, S2_TABLES, SID, TABLES, cd};
use proptest::prelude::*;
use smmu_model::spec::registers as r;
use smmu_model::{AccessKind, Config, MemAttrs, Shareability, Transaction};

/// One stage: its geometry, and what its configuration says.
#[derive(Clone, Copy, Debug)]
struct Stage {
    second: bool,
    /// log2 of the page.
    page: u32,
    tsz: u32,
    first: i32,
    ds: bool,
    /// Effective output size in bits.
    out: u32,
    root: u64,
    /// CD.SH0 or S2SH0.
    sh: u64,
    affd: bool,
}

/// A leaf, and the tables' attributes on the way to it.
#[derive(Clone, Copy, Debug)]
struct Found {
    output: u64,
    descriptor: u64,
    tables: u64,
}

/// An event's number, the class of stage 2's work, and the IPA.
type Fault = (u64, Option<u64>, u64);

const CLASS_CD: u64 = 0;
const CLASS_TT: u64 = 1;
const CLASS_IN: u64 = 2;

impl Stage {
    fn bits(&self) -> u32 {
        64 - self.tsz
    }

    /// Address bits below what an entry of a level translates.
    fn shift(&self, level: i32) -> u32 {
        self.page + (self.page - 3) * (3 - level) as u32
    }

    /// Descriptors have 52 bits of address.
    fn wide(&self) -> bool {
        if self.page == 16 { self.out == 52 } else { self.ds }
    }

    fn may_be_block(&self, level: i32) -> bool {
        match self.page {
            12 => level == 1 || level == 2 || level == 0 && self.wide(),
            _ => level == 2 || level == 1 && self.wide(),
        }
    }

    fn index(&self, level: i32, input: u64) -> u64 {
        let top = if level == self.first { self.bits() } else { self.shift(level) + self.page - 3 };
        (input & ((1 << top) - 1)) >> self.shift(level)
    }

    fn encode(&self, address: u64) -> u64 {
        let low = address & ((1 << 48) - 1);
        match (self.wide(), self.page) {
            (false, _) => low,
            (true, 16) => low | (address >> 48 & 15) << 12,
            (true, _) => address & ((1 << 50) - 1) | (address >> 50 & 3) << 8,
        }
    }

    fn decode(&self, descriptor: u64, from: u32) -> u64 {
        let low = descriptor & ((1 << 48) - 1) >> from << from;
        match (self.wide(), self.page) {
            (false, _) => low,
            (true, 16) => low | (descriptor >> 12 & 15) << 48,
            (true, _) => low | descriptor & 3 << 48 | (descriptor >> 8 & 3) << 50,
        }
    }

    /// Writes a descriptor for `input` at `level`, and tables down to it where there are none, at `next` and on.
    fn map(&self, ram: &Ram, next: &mut u64, input: u64, level: i32, descriptor: u64, table_attrs: u64) {
        let mut table = self.root;
        for above in self.first..level {
            let at = table + self.index(above, input) * 8;
            if ram.word(at) == 0 {
                ram.set(at, self.encode(*next) | table_attrs | 3);
                *next += 0x1_0000;
            }
            if ram.word(at) & 3 != 3 {
                return;
            }
            table = self.decode(ram.word(at), self.page);
        }
        ram.set(table + self.index(level, input) * 8, descriptor);
    }

    /// The walk, as the manual tells it.
    fn walk(&self, input: u64, read: &dyn Fn(u64) -> Result<u64, Fault>) -> Result<Found, Fault> {
        let fault = |code| Err((code, self.second.then_some(CLASS_IN), if self.second { input } else { 0 }));
        if input >> self.bits() != 0 {
            return fault(0x10);
        }
        let (mut table, mut tables) = (self.root, 0);
        for level in self.first..=3 {
            let descriptor = read(table + self.index(level, input) * 8)?;
            let is_table = descriptor & 3 == 3 && level < 3;
            if is_table {
                table = self.decode(descriptor, self.page);
                if table >> self.out != 0 {
                    return fault(0x11);
                }
                tables |= descriptor;
                continue;
            }
            let is_leaf = descriptor & 3 == if level == 3 { 3 } else { 1 };
            if !is_leaf || level < 3 && !self.may_be_block(level) {
                return fault(0x10);
            }
            let base = self.decode(descriptor, self.shift(level));
            if base >> self.out != 0 {
                return fault(0x11);
            }
            if descriptor >> 10 & 1 == 0 && !self.affd {
                return fault(0x12);
            }
            let output = base | input & ((1 << self.shift(level)) - 1);
            return Ok(Found { output, descriptor, tables });
        }
        unreachable!("level 3 has no tables");
    }

    /// Shareability of a leaf's Normal memory.
    fn sh(&self, descriptor: u64) -> u64 {
        if self.ds && self.page != 16 { self.sh } else { descriptor >> 8 & 3 }
    }
}

#[derive(Clone, Debug)]
struct Case {
    first: Option<Stage>,
    second: Stage,
    input: u64,
    ipa: u64,
    /// Levels of the leaves, and their attributes; what the tables of stage 1 say.
    levels: [i32; 2],
    leaves: [u64; 2],
    tables: u64,
    output: u64,
    /// Flips a bit of a descriptor on the way: of which stage, at which level, which bit.
    damage: Option<(bool, i32, u32)>,
    kind: AccessKind,
    privileged: bool,
    instruction: bool,
    ptw: bool,
    combined: bool,
}

/// A stage with a size and a first level that are legal.
fn stage(second: bool) -> impl Strategy<Value = Stage> {
    let page = prop_oneof![Just(12u32), Just(14), Just(16)];
    (page, 12..33u32, any::<[bool; 2]>(), 0..3usize, 0..4u64, 0..8i32).prop_map(
        move |(page, tsz, [ds, affd], out, sh, choice)| {
            let ds = ds && page != 16;
            let out = [48, 52, 52][out];
            let wide = if page == 16 { !second || out == 52 } else { ds };
            let tsz = if wide { tsz } else { tsz.max(16) };
            let mut stage = Stage {
                second,
                page,
                tsz,
                first: 0,
                ds,
                out,
                root: if second { S2_TABLES } else { TABLES },
                sh: [0, 2, 3, 2][sh as usize],
                affd,
            };
            let bits = stage.bits();
            let full = 4 - (bits - page).div_ceil(page - 3) as i32;
            // With at most 16 concatenated tables, stage 2 may begin a level below.
            let below = second && full < 3 && bits <= stage.shift(full + 1) + page + 1;
            // 4 KiB has level 3 as the first one only with small tables.
            // Without DS, 16 KiB does not begin at level 0.
            let must = second && page == 14 && full == 0 && !ds;
            stage.first =
                if must || below && choice < 4 && (page != 12 || full < 2) { full + 1 } else { full };
            stage
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let kind = prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write), Just(AccessKind::Atomic)];
    // Any bit, or more often one that matters: valid, table, readable, access flag.
    let bit = prop_oneof![0..52u32, proptest::sample::select(vec![0u32, 1, 6, 10])];
    let damage = proptest::option::weighted(0.3, (any::<bool>(), -1..4i32, bit));
    let numbers = (any::<u64>(), any::<u64>(), any::<[u64; 2]>(), any::<u64>(), any::<u64>());
    let depth = (0..5i32, 0..5i32);
    (
        proptest::option::weighted(0.7, stage(false)),
        stage(true),
        numbers,
        depth,
        damage,
        kind,
        any::<[bool; 6]>(),
    )
        .prop_map(|(first, second, numbers, depth, damage, kind, flags)| {
            let (input, ipa, leaves, tables, output) = numbers;
            let [privileged, instruction, ptw, combined, wild, plain] = flags;
            let level = |stage: &Stage, depth: i32| {
                let level = (stage.first + depth).min(3);
                if level == 3 || stage.may_be_block(level) { level } else { 3 }
            };
            // Away from where tables and CDs are.
            let ipa = (ipa & ((1 << second.bits()) - 1)) | 1 << (second.bits() - 1);
            // Some IPAs stage 2 does not have.
            let ipa = if wild && depth.0 == 4 { ipa << 1 } else { ipa };
            // Mostly what permits something.
            let leaves = if plain { leaves } else { [leaves[0] | 1 << 10, leaves[1] | 1 << 10 | 3 << 6] };
            Case {
                levels: [first.map_or(3, |first| level(&first, depth.0)), level(&second, depth.1)],
                input: first.map_or(ipa, |first| input & ((1 << first.bits()) - 1)),
                first,
                second,
                ipa,
                leaves,
                tables,
                output,
                damage,
                kind,
                privileged,
                instruction: instruction && kind == AccessKind::Read,
                ptw,
                combined,
            }
        })
}

const MAIR: u64 = 0xff44_0c08_04bb_00f4;
/// Stage 2: readable, writable, accessed, write-back.
const PLAIN2: u64 = 1 << 10 | 3 << 6 | 15 << 2;

impl Case {
    fn write(&self, ram: &Ram) {
        let mut next = S2_TABLES + 0x40_0000;
        let second = &self.second;
        let mut plain = |from: u64, bytes: u64| {
            for at in (from..from + bytes).step_by(1 << second.page) {
                second.map(ram, &mut next, at, 3, second.encode(at) | PLAIN2 | 3, 0);
            }
        };
        let mut ipa = self.input;
        if let Some(first) = &self.first {
            plain(CDS, 0x1_0000);
            plain(TABLES, 0x1_0000);
            plain(TABLES + 0x40_0000, 0x5_0000);
            let shift = first.shift(self.levels[0]);
            let base = (self.ipa & ((1 << if first.wide() { 52 } else { 48 }) - 1)) >> shift << shift;
            // AttrIndx, AP, SH, AF, nG; PXN, UXN.
            let ds = if first.ds { 3 << 8 } else { 0 };
            let attrs = self.leaves[0] & (0x3ff << 2 | 3 << 53) & !(1 << 5 | ds);
            let leaf = first.encode(base) | attrs | if self.levels[0] == 3 { 3 } else { 1 };
            let mut tables = TABLES + 0x40_0000;
            // APTable and XNTable of some.
            let attrs = if self.tables & 7 == 0 { self.tables & 0xf << 59 } else { 0 };
            first.map(ram, &mut tables, self.input, self.levels[0], leaf, attrs);
            ipa = base | self.input & ((1 << shift) - 1);
        }
        if ipa >> (second.bits() - 1) == 1 {
            let shift = second.shift(self.levels[1]);
            let base = (self.output & ((1 << if second.wide() { 52 } else { 48 }) - 1)) >> shift << shift;
            let ds = if second.ds { 3 << 8 } else { 0 };
            let attrs = self.leaves[1] & (0x1ff << 2 | 3 << 53) & !ds;
            let leaf = second.encode(base) | attrs | if self.levels[1] == 3 { 3 } else { 1 };
            second.map(ram, &mut next, ipa, self.levels[1], leaf, 0);
        }
        if let Some((of_second, level, bit)) = self.damage
            && let Some(stage) = if of_second { Some(*second) } else { self.first }
            && (stage.first..=3).contains(&level)
        {
            let input = match (of_second, self.first.is_some(), self.tables >> 3 & 3) {
                (false, ..) => self.input,
                (true, true, 0) => TABLES,
                (true, true, 1) => CDS,
                _ => ipa,
            };
            let mut table = stage.root;
            for above in stage.first..level {
                let descriptor = ram.word(table + stage.index(above, input) * 8);
                if descriptor & 3 != 3 {
                    return;
                }
                table = stage.decode(descriptor, stage.page);
            }
            let at = table + stage.index(level, input) * 8;
            ram.set(at, ram.word(at) ^ 1 << bit);
        }
    }

    /// Whether stage 2 permits reads, writes, fetches; XN has two bits.
    fn may2(&self, descriptor: u64) -> [bool; 3] {
        let execute = matches!((descriptor >> 53 & 3, self.privileged), (0, _) | (1, false) | (3, true));
        [descriptor >> 6 & 1 == 1, descriptor >> 7 & 1 == 1, execute]
    }

    /// The same of stage 1.
    fn may1(&self, found: &Found) -> [bool; 3] {
        let (leaf, tables) = (found.descriptor, found.tables);
        let user = leaf >> 6 & 1 == 1 && tables >> 61 & 1 == 0;
        let write = leaf >> 7 & 1 == 0 && tables >> 62 & 1 == 0;
        let uxn = (leaf >> 54 | tables >> 60) & 1 == 1;
        let pxn = (leaf >> 53 | tables >> 59) & 1 == 1;
        match self.privileged {
            true => [true, write, !(pxn || user && write)],
            false => [user, user && write, !uxn],
        }
    }

    fn permitted(&self, [read, write, execute]: [bool; 3]) -> bool {
        match self.kind {
            AccessKind::Read if self.instruction => execute,
            AccessKind::Read => read,
            AccessKind::Write => write,
            AccessKind::Atomic => read && write,
        }
    }

    /// Where it goes, and with what: the address, whether it is Device, and the shareability.
    fn expected(&self, ram: &Ram) -> Result<(u64, bool, Shareability), Fault> {
        let second = |ipa: u64| self.second.walk(ipa, &|at| Ok(ram.word(at)));
        // A fetch of stage 1's: read by stage 2, and not of Device memory with S2PTW.
        let fetch = |ipa: u64, class: u64| match second(ipa) {
            Ok(found) => {
                let device = found.descriptor >> 4 & 3 == 0 || found.descriptor >> 2 & 3 == 0;
                match found.descriptor >> 6 & 1 == 1 && !(self.ptw && device) {
                    true => Ok(found.output),
                    false => Err((0x13, Some(class), ipa)),
                }
            }
            Err((code, _, _)) => Err((code, Some(class), ipa)),
        };
        if self.first.is_none() && self.input >> 52 != 0 {
            return Err((0x11, None, 0));
        }
        let mut ipa = self.input;
        // What comes in is write-back and inner shareable.
        let (mut mair, mut sh1) = (0xff, 3);
        if let Some(first) = &self.first {
            if fetch(CDS, CLASS_CD)? != CDS {
                // Nothing is there, so V is 0.
                return Err((0x0a, None, 0));
            }
            let found = first.walk(self.input, &|at| Ok(ram.word(fetch(at, CLASS_TT)?)))?;
            if !self.permitted(self.may1(&found)) {
                return Err((0x13, None, 0));
            }
            ipa = found.output;
            mair = MAIR >> (8 * (found.descriptor >> 2 & 7)) & 0xff;
            sh1 = first.sh(found.descriptor);
        }
        let found = second(ipa)?;
        if !self.permitted(self.may2(found.descriptor)) {
            return Err((0x13, Some(CLASS_IN), ipa));
        }
        let memattr = found.descriptor >> 2 & 15;
        let device = mair & 0xf0 == 0 || memattr < 4 || memattr & 3 == 0;
        // Neither inner nor outer cacheable, once the less cacheable of both stages is taken.
        let outer = mair >> 4 == 4 || memattr >> 2 == 1;
        let inner = mair & 15 == 4 || memattr & 3 == 1;
        let sh2 = self.second.sh(found.descriptor);
        let shareability = match (sh1, sh2) {
            _ if device || outer && inner => Shareability::Outer,
            (2, _) | (_, 2) => Shareability::Outer,
            (3, _) | (_, 3) => Shareability::Inner,
            _ => Shareability::NonShareable,
        };
        Ok((found.output, device, shareability))
    }

    fn lab(&self) -> Lab {
        let mut lab = Lab::new(Config { combined: self.combined, mteperm: false, ..Config::full() });
        self.write(&lab.ram);
        let bit = |on: bool, n: u32| u64::from(on) << n;
        let ps = |stage: &Stage| if stage.out == 52 { 6 } else { 5 };
        if let Some(first) = &self.first {
            let tg0 = [0, 2, 1][(first.page - 12) as usize / 2];
            let word0 = cd(first.tsz.into(), tg0, 1) & !(7 << 32) | ps(first) << 32 | first.sh << 12;
            let word2 = bit(first.ds, 58);
            lab.context(
                0,
                CdFields { word0: word0 | bit(first.affd, 35), word2, mair: MAIR, ..CdFields::default() },
            );
        }
        let second = &self.second;
        let tg = [0, 2, 1][(second.page - 12) as usize / 2];
        let sl0 = match (second.page, second.first) {
            (12, -1) => 4,
            (12, level) => 2 - level,
            (_, level) => 3 - level,
        } as u64;
        let word2 = 7
            | u64::from(second.tsz) << 32
            | (sl0 & 3) << 38
            | second.sh << 44
            | tg << 46
            | ps(second) << 48
            | 1 << 51
            | bit(second.affd, 53)
            | bit(self.ptw, 54)
            | 1 << 58;
        let config = if self.first.is_some() { 7 | CDS >> 1 } else { 6 };
        let word3 = S2_TABLES | (sl0 >> 2) << 2 | bit(second.ds, 3);
        lab.ste(SID, [1 | config << 1, 1 << 44, word2, word3]);
        lab
    }

    fn check(&self) {
        let mut lab = self.lab();
        let expected = self.expected(&lab.ram);
        let t = Transaction {
            kind: self.kind,
            privileged: self.privileged,
            instruction: self.instruction,
            attrs: MemAttrs::WRITE_BACK,
            ..Transaction::new(SID, self.input, AccessKind::Read)
        };
        // Once by a walk, and once by what it left in the caches.
        for turn in 0..2 {
            match (lab.translate(t), expected) {
                (Ok((id, to)), Ok((pa, device, shareability))) => {
                    lab.smmu.complete(id);
                    let found = (to.pa, to.attrs.is_device(), to.attrs.shareability);
                    assert_eq!(found, (pa, device, shareability), "turn {turn}");
                }
                (Err(End::Abort), Err((code, class, ipa))) => {
                    let event = lab.event();
                    let s2 = event[1] >> 39 & 1 == 1;
                    let found = (event[0] & 0xff, s2.then_some(event[1] >> 40 & 3), event[3]);
                    assert_eq!(found, (code, class, ipa & !0xfff), "turn {turn}");
                }
                (found, expected) => panic!("{found:x?}, not {expected:x?}"),
            }
        }
        if self.kind != AccessKind::Atomic {
            self.check_lookup(&mut lab, expected);
        }
    }

    /// ATOS says the same of the page.
    fn check_lookup(&self, lab: &mut Lab, expected: Result<(u64, bool, Shareability), Fault>) {
        let flag = |on: bool, n: u32| u64::from(on) << n;
        let stages = if self.first.is_some() { 3 } else { 2 };
        let read = self.kind == AccessKind::Read;
        let flags = flag(self.privileged, 9) | flag(read, 8) | flag(self.instruction, 7);
        lab.w64(r::GATOS_SID, SID.into());
        lab.w64(r::GATOS_ADDR, self.input & !0xfff | stages << 10 | flags);
        lab.w32(r::GATOS_CTRL, 1);
        while lab.smmu.atos_pending() {
            lab.smmu.step_atos(&lab.ram);
        }
        let par = lab.smmu.mmio_read(r::GATOS_PAR, 8).unwrap();
        let address = par & ((1 << 56) - 1) & !0xfff;
        match expected {
            Ok((pa, device, shareability)) => {
                let size = if par >> 11 & 1 == 1 { 2 << address.trailing_zeros() } else { 0x1000u64 };
                let base = if size > 0x1000 { address & (address - 1) } else { address };
                assert_eq!(base | self.input & (size - 1), pa, "PAR {par:#x}");
                assert_eq!((par & 1, par >> 60 == 0), (0, device), "PAR {par:#x}");
                // Of stage 2 alone, what comes in does not count.
                let sh = Shareability::from_sh((par >> 8 & 3) as u8);
                assert!(stages == 2 || sh == shareability, "PAR {par:#x}");
            }
            Err((code, class, ipa)) => {
                let (reason, faddr) = match class {
                    None => (0, 0),
                    Some(_) if stages == 2 => (3, 0),
                    Some(class) => (class + 1, ipa & !0xfff),
                };
                assert_eq!(par, faddr | code << 4 | reason << 1 | 1);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(600), ..ProptestConfig::default() })]

    #[test]
    fn both_stages_do_what_the_tables_say(case in case()) {
        case.check();
    }
}

/// The cases come to every end that there is.
#[test]
fn every_outcome_is_reached() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..4000 {
        let case = case().new_tree(&mut runner).unwrap().current();
        let lab = case.lab();
        seen.insert(match case.expected(&lab.ram) {
            Ok(_) => (0, None),
            Err((code, class, _)) => (code, class),
        });
    }
    for code in [0, 0x0a, 0x10, 0x11, 0x12, 0x13] {
        assert!(seen.contains(&(code, None)), "{code:#x} {seen:x?}");
    }
    for class in [CLASS_CD, CLASS_TT, CLASS_IN] {
        for code in [0x10, 0x12, 0x13] {
            assert!(seen.contains(&(code, Some(class))), "{code:#x} {class}: {seen:x?}");
        }
    }
    assert!(seen.contains(&(0x11, Some(CLASS_IN))), "{seen:x?}");
}
