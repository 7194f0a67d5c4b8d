//! The walk of a transaction that nothing comes between, all fetches in a row. It does what the steps would do one by one
//! as long as all is well; at the first thing that is not, it says how far it came, and the steps go on from there.

use pgtable::{Ladder, Permissions, Rung, Step, Walk};

use super::mapping::stage2_permissions;
use super::route::{Form, Known, Route, SECOND, Way};
use super::stream::{Path, Stream};
use super::txn::{Purpose, Txn};
use super::{Context, Outcome, translation};
use crate::cache::{Mapping, Regime, Sets, Table, Tlb, Walks};
use crate::config::Config;
use crate::memory::{Abort, Memory};
use crate::pmcg::PmuEvent;
use crate::smmu::Smmu;
use crate::spec::event::Class;
use crate::stats::Stats;
use crate::transaction::{Transaction, Translation, TxnId};

/// Where a walk in a row comes to something for the steps.
pub(super) enum Rest {
    /// Stage 1 begins in some other way.
    Begin1(Step),
    /// The descriptor of stage 1 that was fetched, from where.
    Fetched1(Walk, u64, Result<u64, Abort>),
    /// Stage 2 does not begin with this address, or begins in some other way.
    Begin2(u64, Step, Purpose),
    /// The descriptor of stage 2 that was fetched for this address.
    Fetched2(u64, Walk, Result<u64, Abort>, Purpose),
    /// What stage 2's cache has for this address.
    Done2(u64, Mapping, Purpose),
}

/// The parts of the SMMU that a walk needs.
struct Row<'a, M: ?Sized> {
    mem: &'a M,
    facts: Facts<'a>,
    walks: &'a mut Walks,
    ipas: &'a mut Tlb,
    stats: &'a mut Stats,
    /// Tables are cached, and stage 2.
    keeps: bool,
    caches: bool,
}

/// What a walk goes by.
#[derive(Clone, Copy)]
struct Facts<'a> {
    config: &'a Config,
    streams: &'a Sets<u64, Stream>,
    contexts: &'a Sets<u64, Context>,
    route: &'a Route,
    form: &'a Form,
    /// What the transaction needs, and whether it writes.
    needs: Permissions,
    writes: bool,
}

/// An address for stage 2.
#[derive(Clone, Copy)]
struct Ask {
    ipa: u64,
    /// What it has to permit, and whether it is for a write.
    needs: Permissions,
    writes: bool,
    /// It must not be Device memory.
    wary: bool,
}

/// A descriptor that was fetched, and from where.
type Fetched = (Rung, u64, Result<u64, Abort>);

/// What one of the stages says.
type Walked<T> = Result<T, Box<Rest>>;

/// Caches the table that a walk is about to read. Nothing was invalidated since the transaction began.
#[inline(never)]
fn keep(walks: &mut Walks, regime: Regime, input: u64, ladder: &Ladder, rung: Rung) {
    walks.insert(regime, input, Table::new(ladder.walk(&rung, input), ladder.granule()));
}

impl Smmu {
    /// Counts a walk of so many fetches for the performance monitors.
    fn tally_walk(&mut self, sid: u32, fetches: u64) {
        self.tally(PmuEvent::TlbMiss, sid);
        (0..fetches).for_each(|_| self.tally(PmuEvent::TableWalk, sid));
    }

    /// Walks for a transaction whose STE and CD are known, and that missed the IOTLB in this half. Counts the fetches.
    #[inline(always)]
    pub(super) fn walk_at_once<M: Memory + ?Sized>(
        &mut self,
        incoming: &Transaction,
        known: &Known,
        half: usize,
        mem: &M,
        steps: &mut u64,
    ) -> Walked<Translation> {
        let (route, form) = self.routes.at(known.route);
        let mut row = Row {
            mem,
            facts: Facts {
                config: &self.config,
                streams: &self.streams,
                contexts: &self.contexts,
                route,
                form,
                needs: known.needs,
                writes: !incoming.kind.is_read(),
            },
            keeps: !self.walks.is_disabled(),
            caches: !self.ipas.is_disabled(),
            walks: &mut self.walks,
            ipas: &mut self.ipas,
            stats: &mut self.stats,
        };
        let regime = route.regime(form);
        let fetches = |stats: &Stats| stats.s1_fetches + stats.s2_fetches;
        let before = fetches(row.stats);
        let walked = row.both(regime, half, known.input);
        *steps = fetches(row.stats) - before;
        if self.pmcg.is_some() {
            self.tally_walk(incoming.sid, *steps);
        }
        let mapping = walked?;
        // Nothing was invalidated meanwhile.
        if !mapping.uncached && !self.tlb.is_disabled() && self.tlb.insert(regime, known.input, mapping) {
            self.stats.tlb_evictions += 1;
        }
        self.stats.translated += 1;
        Ok(translation(&mapping, incoming.address))
    }

    /// Goes on by steps.
    #[inline(never)]
    pub(super) fn go_on(&mut self, id: TxnId, txn: &mut Txn, known: &Known, rest: Rest) -> Outcome {
        self.configure(txn, known);
        txn.missed |= 1 << PmuEvent::TlbMiss as u8;
        match rest {
            Rest::Begin1(step) => self.stage1_step(id, txn, step),
            Rest::Fetched1(walk, at, fetched) => {
                txn.at = at;
                // The address as stage 2 was given it.
                txn.ipa = if txn.stream.path == Path::Nested { walk.address() } else { 0 };
                match fetched {
                    Ok(descriptor) => {
                        self.stage1_descriptor(id, txn, walk, descriptor, walk.next(descriptor))
                    }
                    Err(Abort) => self.walk_abort(txn, Class::Ttd, false),
                }
            }
            Rest::Begin2(ipa, step, purpose) => {
                txn.ipa = ipa;
                self.stage2_step(id, txn, step, purpose)
            }
            Rest::Fetched2(ipa, walk, fetched, purpose) => {
                (txn.ipa, txn.at) = (ipa, walk.address());
                match fetched {
                    Ok(descriptor) => {
                        self.stage2_descriptor(id, txn, walk, descriptor, walk.next(descriptor), purpose)
                    }
                    Err(Abort) => self.walk_abort(txn, purpose.class(), true),
                }
            }
            Rest::Done2(ipa, mapping, purpose) => {
                txn.ipa = ipa;
                self.stage2_done(id, txn, mapping, purpose)
            }
        }
    }
}

impl<M: Memory + ?Sized> Row<'_, M> {
    /// All of the stages there are.
    #[inline(always)]
    fn both(&mut self, regime: Regime, half: usize, input: u64) -> Walked<Mapping> {
        let Facts { route, form, needs, writes, .. } = self.facts;
        let way = route.way(form, half);
        if !form.nested {
            return self.first(regime, &way, input, Self::alone);
        }
        let first = self.first(regime, &way, input, Self::through_stage2)?;
        let ipa = translation(&first, input).pa;
        let ask = Ask { ipa, needs, writes, wary: false };
        self.second(
            ask,
            || Purpose::Output(first),
            |second| first.through(second, translation(second, ipa).pa),
        )
    }

    /// Stage 1; `down` goes on with a walk to the first descriptor that is no table.
    #[inline(always)]
    fn first(
        &mut self,
        regime: Regime,
        way: &Way,
        input: u64,
        down: impl FnOnce(&mut Self, Regime, &Ladder, Rung, u64) -> Walked<Fetched>,
    ) -> Walked<Mapping> {
        self.stats.tlb_misses += 1;
        let ladder = &way.stage.ladder;
        let mut begun = ladder.begin(way.base, input);
        if self.keeps
            && let Some(walk) = self.walks.get(regime, input)
        {
            self.stats.walk_hits += 1;
            match ladder.rung(&walk) {
                Some(rung) => begun = rung,
                None => return Err(Box::new(Rest::Begin1(Step::Fetch(walk)))),
            }
        }
        let (rung, at, fetched) = down(self, regime, ladder, begun, input)?;
        if let Ok(descriptor) = fetched
            && let Some(plain) = ladder.plain(&rung, descriptor)
            && way.stage.permissions(descriptor).contains(self.facts.needs)
        {
            return Ok(way.stage.mapping(&plain, descriptor));
        }
        let facts = self.facts;
        facts.first_special(ladder.walk(&rung, input), at, fetched)
    }

    /// Down tables from `rung` to the first descriptor that is none.
    #[inline(always)]
    fn down(&mut self, regime: Regime, ladder: &Ladder, rung: &mut Rung, input: u64) -> Result<u64, Abort> {
        let (mem, walks) = (self.mem, &mut *self.walks);
        let fetch = |at| mem.read_u64(at);
        match self.keeps {
            false => ladder.descend(rung, input, fetch, |_| {}),
            true => ladder.descend(rung, input, fetch, |rung| keep(walks, regime, input, ladder, *rung)),
        }
    }

    /// Down the tables of stage 1 where there is no other.
    #[inline(always)]
    fn alone(&mut self, regime: Regime, ladder: &Ladder, mut rung: Rung, input: u64) -> Walked<Fetched> {
        let begun = rung;
        let fetched = self.down(regime, ladder, &mut rung, input);
        self.stats.s1_fetches += begun.to(&rung);
        Ok((rung, rung.address(), fetched))
    }

    /// Down the tables of stage 1, each through stage 2.
    #[inline(always)]
    fn through_stage2(
        &mut self,
        regime: Regime,
        ladder: &Ladder,
        mut rung: Rung,
        input: u64,
    ) -> Walked<Fetched> {
        let wary = self.facts.form.ptw;
        loop {
            let ipa = rung.address();
            let ask = Ask { ipa, needs: Permissions::PRIV_READ, writes: false, wary };
            let purpose = || Purpose::Stage1(ladder.walk(&rung, input));
            let at = self.second(ask, purpose, |second| translation(second, ipa).pa)?;
            self.stats.s1_fetches += 1;
            let fetched = self.mem.read_u64(at);
            let Ok(descriptor) = fetched else { return Ok((rung, at, fetched)) };
            let Some(below) = ladder.below(&rung, descriptor, input) else {
                return Ok((rung, at, fetched));
            };
            rung = below;
            if self.keeps {
                keep(self.walks, regime, input, ladder, rung);
            }
        }
    }

    /// Stage 2 of one address: what `of` makes of it.
    #[inline(always)]
    fn second<T>(
        &mut self,
        ask: Ask,
        purpose: impl Fn() -> Purpose,
        of: impl Fn(&Mapping) -> T,
    ) -> Walked<T> {
        let Ask { ipa, needs, wary, .. } = ask;
        let facts = self.facts;
        let regime = facts.route.stage2_regime();
        if self.caches
            && let Some(mapping) = self.ipas.get(regime, ipa)
            && (mapping.permissions.contains(needs) || !mapping.possible.contains(needs))
        {
            self.stats.s2_hits += 1;
            return match mapping.permissions.contains(needs) && !(wary && mapping.attrs.is_device()) {
                true => Ok(of(mapping)),
                false => Err(Box::new(Rest::Done2(ipa, *mapping, purpose()))),
            };
        }
        self.stats.s2_misses += 1;
        let way = facts.route.way(facts.form, SECOND);
        let ladder = &way.stage.ladder;
        let mut begun = ladder.begin(way.base, ipa);
        let walk = if self.keeps { self.walks.get(regime, ipa) } else { None };
        if let Some(walk) = walk {
            self.stats.walk_hits += 1;
            match ladder.rung(&walk) {
                Some(rung) => begun = rung,
                None => return Err(Box::new(Rest::Begin2(ipa, Step::Fetch(walk), purpose()))),
            }
        } else if ladder.is_beyond(ipa) {
            let step = Walk::stage2(&facts.stream().stage2.tables, ipa);
            return Err(Box::new(Rest::Begin2(ipa, step, purpose())));
        }
        let mut rung = begun;
        let fetched = self.down(regime, ladder, &mut rung, ipa);
        self.stats.s2_fetches += begun.to(&rung);
        if let Ok(descriptor) = fetched
            && let Some(plain) = ladder.plain(&rung, descriptor)
            && way.stage.permissions(descriptor).contains(needs)
            && !(wary && way.stage.attrs(descriptor).is_device())
        {
            let mapping = way.stage.mapping(&plain, descriptor);
            if self.caches {
                self.ipas.insert(regime, ipa, mapping);
            }
            return Ok(of(&mapping));
        }
        let walk = ladder.walk(&rung, ipa);
        match facts.second_special(ask, walk, fetched) {
            Some(mapping) => {
                if self.caches && !mapping.uncached {
                    self.ipas.insert(regime, ipa, mapping);
                }
                Ok(of(&mapping))
            }
            None => Err(Box::new(Rest::Fetched2(ipa, walk, fetched, purpose()))),
        }
    }
}

impl Facts<'_> {
    fn stream(&self) -> &Stream {
        self.streams.at(self.route.stream as usize)
    }

    /// The end of stage 1, whatever it is.
    #[inline(never)]
    fn first_special(&self, walk: Walk, at: u64, fetched: Result<u64, Abort>) -> Walked<Mapping> {
        if let Ok(descriptor) = fetched
            && let Some(leaf) = walk.leaf(descriptor)
        {
            let context = self.contexts.at(self.route.context as usize);
            let possible = leaf.permissions(&context.controls);
            // Hardware has nothing to update.
            if possible.contains(self.needs) && leaf.updated(self.writes) == descriptor {
                return Ok(Mapping::stage1(&leaf, possible, context, self.stream().world, self.config));
            }
        }
        Err(Box::new(Rest::Fetched1(walk, at, fetched)))
    }

    /// The end of stage 2, whatever it is, if there is nothing to be done.
    #[inline(never)]
    fn second_special(&self, ask: Ask, walk: Walk, fetched: Result<u64, Abort>) -> Option<Mapping> {
        let descriptor = fetched.ok()?;
        let leaf = walk.leaf(descriptor)?;
        let possible = stage2_permissions(&leaf, self.config);
        // Hardware has nothing to update.
        if !possible.contains(ask.needs) || leaf.updated(ask.writes) != descriptor {
            return None;
        }
        let mapping = Mapping::stage2(&leaf, possible, &self.stream().stage2, self.config);
        (!(ask.wary && mapping.attrs.is_device())).then_some(mapping)
    }
}
