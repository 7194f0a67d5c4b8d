//! What an STE and a CD make of a transaction, worked out once: where its walk begins and what it goes by.
//!
//! This is no cache of the SMMU. A route says what the cached STE and CD say, and which entries those are; it is no part of
//! a snapshot, and a guest can not tell whether it is there. It counts only as long as no STE or CD is replaced, removed or
//! moved. What routes have in common is kept once, so that each of them is one line of the host's memory.

use pgtable::{Ladder, Leaf, Permissions, Plain, Stage1, Step, Walk};

use super::context::Context;
use super::mapping::stage2_permissions;
use super::stream::{Path, Stream};
use super::wanted;
use crate::cache::{Mapping, Regime, World, access, who};
use crate::config::Config;
use crate::transaction::{AccessKind, MemAttrs, Shareability, Transaction};

/// Lines that the first route makes, and the most.
const FEWEST: usize = 1 << 6;
const MOST: usize = 1 << 17;
/// The most forms.
const FORMS: usize = 64;

/// The stages of a walk: stage 1 by TTB0 and TTB1, and stage 2.
const UPPER: usize = 1;
pub(super) const SECOND: usize = 2;

/// One stage: how its tables and its leaves are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) ladder: Ladder,
    /// What a leaf permits, by bits 54, 53, 7 and 6 of its descriptor.
    permissions: [Permissions; 16],
    /// The memory type, by bits 5:2.
    types: [u8; 16],
    /// Leaves without nG are for every ASID.
    global: bool,
    fwb: bool,
}

impl Stage {
    /// The stage whose walk of address 0 is `walk`; `what` says what a leaf permits, and of what type it is.
    fn new(walk: &Walk, marked: bool, what: impl Fn(&Leaf) -> (Permissions, MemAttrs)) -> Self {
        use pgtable::descriptor as d;
        let ladder = Ladder::new(walk, marked);
        let page = |bits: u64| {
            let leaf = ladder.walk(&ladder.last(), 0).leaf(d::VALID | d::TABLE | d::AF | bits);
            leaf.map_or_else(Default::default, |leaf| what(&leaf))
        };
        Stage {
            ladder,
            permissions: std::array::from_fn(|n| page((n as u64 & 3) << 6 | (n as u64 >> 2) << 53).0),
            types: std::array::from_fn(|n| page((n as u64) << 2).1.mair),
            global: false,
            fwb: false,
        }
    }

    /// What a descriptor permits that is nothing special (see [`Ladder::plain`]).
    #[inline(always)]
    pub(super) fn permissions(&self, descriptor: u64) -> Permissions {
        self.permissions[(descriptor >> 6 & 3 | descriptor >> 51 & 12) as usize]
    }

    /// The attributes that such a descriptor gives.
    #[inline(always)]
    pub(super) fn attrs(&self, descriptor: u64) -> MemAttrs {
        let mair = self.types[(descriptor >> 2 & 15) as usize];
        let shareability = Shareability::from_sh((descriptor >> 8) as u8);
        MemAttrs { mair, shareability }.normalised()
    }

    /// All that it says.
    #[inline(always)]
    pub(super) fn mapping(&self, plain: &Plain, descriptor: u64) -> Mapping {
        use pgtable::descriptor::NG;
        let permissions = self.permissions(descriptor);
        Mapping {
            output: plain.output,
            shift: plain.shift,
            span: plain.shift,
            granule: self.ladder.granule(),
            level: plain.level,
            global: self.global && descriptor & NG == 0,
            uncached: false,
            permissions,
            possible: permissions,
            attrs: self.attrs(descriptor),
            fwb: if self.fwb { Some((descriptor >> 2 & 15) as u8) } else { None },
        }
    }
}

/// What an STE and a CD say, but for what names their translations and tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    world: World,
    aset: bool,
    pub(super) nested: bool,
    /// There is no TTB1.
    single: bool,
    /// S2PTW.
    pub(super) ptw: bool,
    /// E0PD0 and E0PD1.
    e0pd: [bool; 2],
    /// What each kind of access needs.
    needs: [Permissions; 16],
    /// Address bits that are all clear in TTB0's half, all set in TTB1's.
    above: [u64; 2],
    /// Those that are not there, or whose walks do not begin, are not used.
    stages: [Stage; 3],
    begins: [bool; 3],
}

impl Form {
    /// What a transaction needs, and its half, if a walk can begin there.
    #[inline]
    pub(super) fn sort(&self, t: &Transaction) -> (Permissions, Option<usize>) {
        let needs = self.needs[access(t) as usize & 15];
        let half = if t.address >> 55 & 1 == 1 && !self.single { UPPER } else { 0 };
        let above = self.above[half];
        let canonical = t.address & above == if half == UPPER { above } else { 0 };
        let allowed = canonical && !(self.e0pd[half] && (needs & PRIVILEGED).is_empty());
        (needs, (allowed && self.begins[half]).then_some(half))
    }
}

/// One route.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Route {
    /// StreamID and SubstreamID.
    whom: u64,
    /// The count of changes when it was made.
    when: u64,
    /// The first tables.
    bases: [u64; 3],
    /// Where the STE and the CD are cached.
    pub(super) stream: u32,
    pub(super) context: u32,
    /// The CD's index.
    pub(super) cd: u32,
    vmid: u16,
    asid: u16,
    form: u16,
}

const NONE: Route = Route {
    whom: u64::MAX,
    when: u64::MAX,
    bases: [0; 3],
    stream: 0,
    context: 0,
    cd: 0,
    vmid: 0,
    asid: 0,
    form: 0,
};

/// A transaction on its route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Which one.
    pub(super) route: usize,
    /// What it needs.
    pub(super) needs: Permissions,
    /// What the IOTLB goes by.
    pub(super) input: u64,
    /// Its half, if a walk can begin there.
    pub(super) half: Option<usize>,
}

impl Route {
    pub(super) fn regime(&self, form: &Form) -> Regime {
        Regime { world: form.world, vmid: self.vmid, asid: self.asid, aset: form.aset }
    }

    pub(super) fn stage2_regime(&self) -> Regime {
        Regime { world: World::NsEl1Stage2, vmid: self.vmid, ..Regime::default() }
    }

    /// One of its stages: stage 1 by TTB0 or TTB1, or [`SECOND`].
    #[inline]
    pub(super) fn way<'a>(&self, form: &'a Form, stage: usize) -> Way<'a> {
        Way { stage: &form.stages[stage], base: self.bases[stage] }
    }
}

/// A stage as a walk needs it.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) stage: &'a Stage,
    /// Its first table.
    pub(super) base: u64,
}

/// All routes. That of a transaction is in one place, where another may stand in its way.
#[derive(Default)]
pub(crate) struct Routes {
    lines: Vec<Route>,
    forms: Vec<Form>,
    /// 64, without log2 of the number of lines.
    shift: u32,
    /// Since there are as many lines as there are: lines that were put to use, and routes that had to go, still good.
    used: usize,
    displaced: usize,
}

impl Routes {
    #[inline]
    fn place(&self, whom: u64) -> usize {
        (whom.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (self.shift & 63)) as usize
    }

    /// The route of a transaction, if it still is one.
    #[inline]
    pub(super) fn find(&self, t: &Transaction, when: u64) -> Option<usize> {
        let whom = who(t);
        let n = self.place(whom);
        let route = self.lines.get(n)?;
        (route.whom == whom && route.when == when).then_some(n)
    }

    /// The route that was found.
    #[inline]
    pub(super) fn at(&self, n: usize) -> (&Route, &Form) {
        let route = &self.lines[n];
        (route, &self.forms[usize::from(route.form)])
    }

    /// Makes the route of a transaction of an STE and a CD. `None`: it is not for this way.
    pub(super) fn add(
        &mut self,
        t: &Transaction,
        when: u64,
        cd: u32,
        (stream_at, stream): (usize, &Stream),
        (context_at, context): (usize, &Context),
        config: &Config,
    ) -> Option<usize> {
        let nested = stream.path == Path::Nested;
        let fits = t.ssid.is_none_or(|ssid| ssid >> 20 == 0);
        if context.bad || nested && !config.combined || config.tlb_conflict || !fits {
            return None;
        }
        let (form, bases) = Form::new(stream, context, config)?;
        let form = match self.forms.iter().position(|other| *other == form) {
            Some(n) => n,
            None => {
                if self.forms.len() == FORMS {
                    *self = Routes::default();
                }
                self.forms.push(form);
                self.forms.len() - 1
            }
        };
        let route = Route {
            whom: who(t),
            when,
            bases,
            stream: stream_at as u32,
            context: context_at as u32,
            cd,
            vmid: stream.vmid,
            asid: context.asid,
            form: form as u16,
        };
        if self.lines.is_empty() {
            self.resize(FEWEST);
        }
        // Where few lines are used, some that share one are no reason to have more.
        let crowded = self.displaced > self.lines.len() / 16 && self.used > self.lines.len() / 16;
        if crowded && self.lines.len() < MOST {
            for old in self.resize(self.lines.len() * 2) {
                if old.when == when {
                    self.put(old);
                }
            }
            self.displaced = 0;
        }
        Some(self.put(route))
    }

    fn put(&mut self, route: Route) -> usize {
        let n = self.place(route.whom);
        let old = std::mem::replace(&mut self.lines[n], route);
        self.used += usize::from(old.when == NONE.when);
        self.displaced += usize::from(old.when == route.when && old.whom != route.whom);
        n
    }

    /// As many empty lines, a power of two. Gives what there was.
    fn resize(&mut self, lines: usize) -> Vec<Route> {
        (self.used, self.displaced, self.shift) = (0, 0, 64 - lines.trailing_zeros());
        std::mem::replace(&mut self.lines, vec![NONE; lines])
    }
}

const PRIVILEGED: Permissions =
    Permissions::PRIV_READ.union(Permissions::PRIV_WRITE).union(Permissions::PRIV_EXEC);

impl Form {
    /// A form, and where the first tables are. `None`: nothing begins.
    fn new(stream: &Stream, context: &Context, config: &Config) -> Option<(Self, [u64; 3])> {
        let begin = |step: Step| match step {
            Step::Fetch(walk) => Some(walk),
            _ => None,
        };
        let first = |disabled: bool, table: &Stage1| {
            let walk = begin(Walk::stage1(table, 0)).filter(|_| !disabled)?;
            let stage = Stage::new(&walk, context.haft, |leaf| {
                (leaf.permissions(&context.controls), MemAttrs::stage1(leaf, context.mair))
            });
            Some((Stage { global: stream.world != World::El2, ..stage }, walk.address()))
        };
        let ranges = &context.ranges;
        let second = || {
            let stage2 = &stream.stage2;
            let walk = begin(Walk::stage2(&stage2.tables, 0)).filter(|_| stream.path == Path::Nested)?;
            let stage = Stage::new(&walk, stage2.haft, |leaf| {
                (stage2_permissions(leaf, config), MemAttrs::stage2(leaf, stage2.fwb, config.mteperm))
            });
            Some((Stage { fwb: stage2.fwb, ..stage }, walk.address()))
        };
        let stages = [
            first(ranges.epd0, &context.lower),
            first(ranges.epd1 || ranges.single, &context.upper),
            second(),
        ];
        let some = stages.iter().flatten().next()?.0;
        let nested = stream.path == Path::Nested;
        if nested && stages[SECOND].is_none() {
            return None;
        }
        let above = |tsz: u8, tbi: bool| {
            u64::MAX.checked_shl(64u32.saturating_sub(tsz.into())).unwrap_or(0)
                & if tbi { u64::MAX >> 8 } else { u64::MAX }
        };
        let form = Form {
            world: stream.world,
            aset: context.aset,
            nested,
            single: ranges.single,
            ptw: stream.stage2.ptw,
            e0pd: context.e0pd,
            needs: std::array::from_fn(|n| {
                let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Atomic][(n >> 2).min(2)];
                let t = Transaction::new(0, 0, kind);
                wanted(&stream.overrides.access(&Transaction {
                    privileged: n & 2 != 0,
                    instruction: n & 1 != 0,
                    ..t
                }))
            }),
            above: [above(ranges.t0sz, ranges.tbi0), above(ranges.t1sz, ranges.tbi1)],
            begins: stages.map(|stage| stage.is_some()),
            stages: stages.map(|stage| stage.map_or(some, |(stage, _)| stage)),
        };
        Some((form, stages.map(|stage| stage.map_or(0, |(_, base)| base))))
    }
}

/// A copy begins without.
impl Clone for Routes {
    fn clone(&self) -> Self {
        Routes::default()
    }
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Routes({} lines, {} forms)", self.lines.len(), self.forms.len())
    }
}

#[cfg(test)]
mod tests {
    use pgtable::{Half, Ranges};

    use super::*;

    fn context(ranges: Ranges, e0pd: [bool; 2]) -> Context {
        let table = |tsz| Stage1 { tsz, oas: 44, ttb: 0x1000_0000, ..Stage1::default() };
        let (lower, upper) = (table(ranges.t0sz), table(ranges.t1sz));
        Context { ranges, lower, upper, e0pd, ..Context::default() }
    }

    fn add(routes: &mut Routes, t: &Transaction, when: u64, context: &Context) -> Option<usize> {
        let stream = Stream { path: Path::Stage1, ..Stream::default() };
        routes.add(t, when, 0, (t.sid as usize, &stream), (1, context), &Config::linux())
    }

    #[test]
    fn halves_are_those_of_the_context() {
        let bits = |n: u32| n.is_power_of_two() || n.count_ones() == 2;
        let addresses: Vec<u64> = [0u64, u64::MAX]
            .into_iter()
            .flat_map(|all| (0..64).map(move |bit| all ^ 1 << bit).chain((0..64).map(move |bit| all << bit)))
            .collect();
        for n in (0..64u32).filter(|&n| bits(n) || n == 0) {
            let [tbi0, tbi1, epd0, epd1, single, user] = [0, 1, 2, 3, 4, 5].map(|bit| n >> bit & 1 == 1);
            for (t0sz, t1sz) in [(16, 16), (16, 25), (39, 16), (28, 34)] {
                let ranges = Ranges { t0sz, t1sz, tbi0, tbi1, epd0, epd1: epd1 || single, single };
                let context = context(ranges, [user, epd0]);
                for (i, &address) in addresses.iter().enumerate() {
                    let t = Transaction {
                        privileged: i % 3 == 0,
                        ..Transaction::new(5, address, AccessKind::Write)
                    };
                    let mut routes = Routes::default();
                    let expected = context.select(&t).ok().map(|half| usize::from(half == Half::Upper));
                    let found = match add(&mut routes, &t, 0, &context) {
                        Some(n) => routes.at(n).1.sort(&t).1,
                        None => None,
                    };
                    assert_eq!(found, expected, "{ranges:?} {t:?}");
                }
            }
        }
    }

    #[test]
    fn a_route_is_for_one_and_for_as_long_as_nothing_changes() {
        let mut routes = Routes::default();
        let t = Transaction::new(5, 0, AccessKind::Read);
        let context = context(Ranges { t0sz: 16, t1sz: 16, ..Ranges::default() }, [false; 2]);
        assert!(routes.find(&t, 0).is_none());
        add(&mut routes, &t, 7, &context);
        assert!(routes.find(&t, 7).is_some() && routes.find(&t, 8).is_none());
        for other in [Transaction { sid: 4, ..t }, t.with_ssid(0)] {
            assert!(routes.find(&other, 7).is_none());
        }
        let odd = Transaction { sid: u32::MAX, ..t }.with_ssid(u32::MAX);
        assert!(add(&mut routes, &odd, 7, &context).is_none() && routes.find(&odd, 0).is_none());
        assert!(add(&mut routes, &t, 7, &Context { bad: true, ..context }).is_none());
    }

    #[test]
    fn it_grows_to_hold_what_is_used_and_no_further() {
        let mut routes = Routes::default();
        let context =
            |n: u64| Context { mair: n, ..context(Ranges { t0sz: 16, ..Ranges::default() }, [false; 2]) };
        let all = |n: u32| (0..n).map(|sid| Transaction::new(sid, 0, AccessKind::Read));
        for t in all(1 << 17) {
            add(&mut routes, &t, 0, &context(7));
        }
        assert_eq!((routes.lines.len(), routes.forms.len()), (MOST, 1));
        let mut routes = Routes::default();
        for t in (0..20).flat_map(|_| all(4096)) {
            if routes.find(&t, 0).is_none() {
                add(&mut routes, &t, 0, &context(7));
            }
        }
        let found = all(4096).filter(|t| routes.find(t, 0).is_some()).count();
        assert!(found > 4000 && routes.lines.len() < 1 << 17, "{found} in {}", routes.lines.len());
        // Each of a form of its own: those that there is no room for are forgotten with their routes.
        for t in all(1000) {
            let n = add(&mut routes, &t, 0, &context(t.sid.into())).unwrap();
            assert_eq!(routes.at(n).1.stages[0].types[0], t.sid as u8);
            assert!(routes.forms.len() <= FORMS);
        }
    }
}
