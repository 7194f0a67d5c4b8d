//! Random tables, configurations and accesses against an oracle of a page: stage 1 of every granule, size and world, with
//! hierarchical permissions, hardware update and attributes, with 44 to 52 bits of output, with DS and without. `SMMULAB_ORACLE_CASES` asks for more than the default.

#[path = "common/cases.rs"]
mod cases;
#[path = "conformance/lab.rs"]
#[allow(dead_code)]
mod lab;

use cases::cases;
use lab::{CDS, CdFields, End, Lab, SID, TABLES, cd};
use proptest::prelude::*;
use smmu_model::spec::registers as r;
use smmu_model::{AccessKind, Config, Shareability, Transaction};

/// The StreamWorld.
#[derive(Clone, Copy, Debug, PartialEq)]
enum World {
    El1,
    El2,
    El2E2h,
}

#[derive(Clone, Debug)]
struct Case {
    world: World,
    /// log2 of the page, and the TG0 and TG1 that say so.
    page: u32,
    tg: (u64, u64),
    tsz: u32,
    upper: bool,
    /// DS, and the bits of output.
    ds: bool,
    oas: u32,
    /// SH0 and SH1.
    sh: u64,
    ssid: Option<u32>,
    /// HA, HD, AFFD, WXN, PAN, HAD, HAFT.
    flags: [bool; 7],
    /// Random bits of the table descriptors' upper attributes, of the leaf's attributes, of the address.
    tables: [u64; 5],
    leaf: u64,
    address: u64,
    /// How deep the leaf is, from the first level on; what is wrong, and where.
    depth: i32,
    broken: Option<(i32, bool)>,
    kind: AccessKind,
    privileged: bool,
    instruction: bool,
}

const MAIR: u64 = 0xff44_0c08_04bb_00f4;

/// What becomes of it: the address and attributes, or the number of the event.
type Answer = Result<(u64, u8, Shareability), u64>;

fn case() -> impl Strategy<Value = Case> {
    let world = prop_oneof![4 => Just(World::El1), 1 => Just(World::El2), 1 => Just(World::El2E2h)];
    let granule = prop_oneof![Just((12, (0, 2))), Just((14, (2, 1))), Just((16, (1, 3)))];
    let kind = prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write), Just(AccessKind::Atomic)];
    let bits = any::<[u64; 5]>();
    let size = (12..40u32, any::<bool>(), 0..3usize, 0..3usize);
    let place = (size, any::<bool>(), proptest::option::of(1..8u32), any::<[bool; 7]>());
    let what = (
        bits,
        any::<u64>(),
        any::<u64>(),
        0..5i32,
        proptest::option::weighted(0.2, (-1..4i32, any::<bool>())),
    );
    (world, granule, place, what, (kind, any::<[bool; 2]>())).prop_map(
        |(world, (page, tg), (size, upper, ssid, flags), what, (kind, [privileged, instruction]))| {
            let (tables, leaf, address, depth, broken) = what;
            let (tsz, ds, oas, sh) = size;
            let (ds, oas) = (ds && page != 16, [44, 48, 52][oas]);
            let broken = broken.map(|(level, address)| (level, address && oas == 44));
            Case {
                world,
                page,
                tg,
                tsz: if ds || page == 16 { tsz } else { tsz.max(16) },
                ds,
                oas,
                sh: [0, 2, 3][sh],
                upper: upper && world != World::El2,
                ssid,
                flags,
                tables,
                leaf,
                address,
                depth,
                broken,
                kind,
                privileged,
                instruction: instruction && kind == AccessKind::Read,
            }
        },
    )
}

impl Case {
    fn bits(&self) -> u32 {
        64 - self.tsz
    }

    /// Address bits below what one entry of a level translates; level 3 is a page.
    fn shift(&self, level: i32) -> u32 {
        self.page + (self.page - 3) * (3 - level) as u32
    }

    fn first_level(&self) -> i32 {
        4 - (self.bits() - self.page).div_ceil(self.page - 3) as i32
    }

    /// Descriptors have 52 bits of address.
    fn wide(&self) -> bool {
        self.ds || self.page == 16 && self.oas == 52
    }

    /// The level of the leaf: a page, or a block where blocks may be.
    fn leaf_level(&self) -> i32 {
        let blocks = if self.page == 12 { 1 } else { 2 } - i32::from(self.wide());
        (self.first_level() + self.depth).max(blocks).clamp(self.first_level(), 3)
    }

    fn virtual_address(&self) -> u64 {
        let low = self.address & ((1 << self.bits()) - 1);
        if self.upper { low | !((1 << self.bits()) - 1) } else { low }
    }

    /// The output address, with random bits above the leaf's size.
    fn output(&self) -> u64 {
        let bits = if self.wide() && self.oas != 44 { 52 } else { self.oas.min(48) };
        let shift = self.shift(self.leaf_level());
        ((self.leaf ^ self.address << 7) & ((1 << bits) - 1)) >> shift << shift
    }

    /// Writes the tables. Answers where the leaf is.
    fn write(&self, lab: &mut Lab) -> u64 {
        let index = |level: i32| {
            let top =
                if level == self.first_level() { self.bits() } else { self.shift(level) + self.page - 3 };
            (self.virtual_address() & ((1 << top) - 1)) >> self.shift(level)
        };
        let mut table = TABLES;
        for level in self.first_level()..=self.leaf_level() {
            let at = table + index(level) * 8;
            let next = TABLES + (level + 2) as u64 * 0x10_0000;
            let is_leaf = level == self.leaf_level();
            let mut descriptor = if is_leaf {
                // AttrIndx, AP, SH, AF, nG; DBM, PXN, UXN.
                let sh = if self.ds { 3 << 8 } else { 0 };
                let attrs = self.leaf & (0x3ff << 2 | 1 << 51 | 3 << 53) & !(1 << 5 | sh);
                let bits = if level == 3 { 3 } else { 1 };
                let pa = self.output();
                let address = match (self.ds, self.page) {
                    (true, _) => pa & ((1 << 50) - 1) | pa >> 50 << 8,
                    (false, 16) => pa & ((1 << 48) - 1) | pa >> 48 << 12,
                    (false, _) => pa,
                };
                address | attrs | bits
            } else {
                // Bit 10 is the table's access flag; without HAFT it means nothing.
                next | 3 | self.tables[(level + 1) as usize] & (0xf << 59 | 1 << 10)
            };
            if let Some((broken, address)) = self.broken
                && broken == level
            {
                descriptor = if address { descriptor | 1 << 46 } else { descriptor & !1 };
            }
            lab.ram.set(at, descriptor);
            if is_leaf || descriptor & 1 == 0 {
                return at;
            }
            table = next;
        }
        unreachable!("the last level has a leaf");
    }

    /// What the architecture says.
    fn expected(&self) -> Answer {
        let [ha, hd, affd, wxn, pan, had, _] = self.flags;
        let single = self.world == World::El2;
        let (mut no_user, mut read_only, mut uxn, mut pxn) = (false, false, false, false);
        for level in self.first_level()..=self.leaf_level() {
            if let Some((broken, address)) = self.broken
                && broken == level
            {
                return Err(if address { 0x11 } else { 0x10 });
            }
            if level < self.leaf_level() && !had {
                let bits = self.tables[(level + 1) as usize];
                pxn |= bits >> 59 & 1 == 1;
                uxn |= bits >> 60 & 1 == 1;
                no_user |= bits >> 61 & 1 == 1;
                read_only |= bits >> 62 & 1 == 1;
            }
        }
        if self.output() >> self.oas != 0 {
            return Err(0x11);
        }
        let leaf = |bit: u32| self.leaf >> bit & 1 == 1;
        if !leaf(10) && !ha && !affd {
            return Err(0x12);
        }
        let clean = leaf(7) && leaf(51) && ha && hd;
        let write = !read_only && (!leaf(7) || clean);
        let user = leaf(6) && !no_user;
        let (uxn, pxn) = (uxn || leaf(54), pxn || leaf(53));
        let shut = pan && user && !single;
        #[allow(clippy::nonminimal_bool, reason = "one term for each reason why not")]
        let can = |kind: AccessKind| match (single, self.privileged) {
            _ if self.instruction => match (single, self.privileged) {
                (true, _) => !uxn && !(wxn && write),
                (false, true) => !pxn && !(user && write) && !(wxn && write),
                (false, false) => !uxn && !(wxn && user && write),
            },
            (true, _) => kind == AccessKind::Read || write,
            (false, true) => !shut && (kind == AccessKind::Read || write),
            (false, false) => user && (kind == AccessKind::Read || write),
        };
        if !can(self.kind) {
            return Err(0x13);
        }
        let offset = (1u64 << self.shift(self.leaf_level())) - 1;
        let mair = (MAIR >> (8 * (self.leaf >> 2 & 7))) as u8;
        let outer = mair & 0xf0 == 0 || mair == 0x44;
        let sh = if self.ds { self.sh } else { self.leaf >> 8 & 3 };
        let sh = if outer { Shareability::Outer } else { Shareability::from_sh(sh as u8) };
        Ok((self.output() | self.virtual_address() & offset, mair, sh))
    }

    fn check(&self) {
        let mut lab = Lab::new(Config::full());
        if self.world == World::El2E2h {
            let cr0 = lab.r32(r::CR0);
            lab.w32(r::CR0, 0);
            lab.w32(r::CR2, 3);
            lab.w32(r::CR0, cr0);
        }
        let at = self.write(&mut lab);
        let [ha, hd, affd, wxn, pan, had, haft] = self.flags;
        let bit = |on: bool, n: u32| u64::from(on) << n;
        let half = match self.upper {
            false => u64::from(self.tsz) | self.tg.0 << 6 | self.sh << 12 | 1 << 30 | bit(affd, 35),
            true => u64::from(self.tsz) << 16 | self.tg.1 << 22 | self.sh << 28 | 1 << 14 | bit(affd, 35),
        };
        let ips = u64::from((self.oas - 44) / 4 + 4) << 32;
        let word0 = cd(0, 0, 1) & !(1 << 30 | 7 << 32)
            | ips
            | half
            | bit(wxn, 36)
            | bit(pan, 40)
            | bit(ha && hd, 42)
            | bit(ha, 43);
        let ttb = TABLES | bit(had, 1);
        let (word1, word2) = (ttb | bit(ha && haft, 3), ttb | bit(self.ds, 58));
        let fields = CdFields { word0, word1, word2, mair: MAIR };
        lab.context(self.ssid.unwrap_or(0).into(), fields);
        let world = if self.world == World::El1 { 0 } else { 2 << 30 };
        lab.ste(SID, [1 | 5 << 1 | CDS | 3 << 59, 2 | 1 << 44 | world, 0, 0]);
        let t = Transaction {
            kind: self.kind,
            ssid: self.ssid,
            privileged: self.privileged,
            instruction: self.instruction,
            ..Transaction::new(SID, self.virtual_address(), AccessKind::Read)
        };
        // Once by a walk, and once by what it left in the caches.
        for _ in 0..2 {
            let found: Answer = match lab.translate(t) {
                Ok((id, to)) => {
                    lab.smmu.complete(id);
                    Ok((to.pa, to.attrs.mair, to.attrs.shareability))
                }
                Err(End::Abort) => Err(lab.event()[0] & 0xff),
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(found, self.expected());
        }
        if self.expected().is_ok() {
            let now = lab.ram.word(at);
            assert_eq!(now >> 10 & 1 == 1, self.leaf >> 10 & 1 == 1 || ha, "access flag");
            let clean = self.leaf >> 7 & 1 == 1;
            assert_eq!(now >> 7 & 1 == 1, clean && self.kind == AccessKind::Read, "read-only, or clean");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(400), ..ProptestConfig::default() })]

    #[test]
    fn stage_1_does_what_the_tables_say(case in case()) {
        case.check();
    }
}
