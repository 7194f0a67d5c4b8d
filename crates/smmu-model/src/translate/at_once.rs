//! The walk of a transaction that nothing comes between, all fetches in a row. It does what the steps would do one by one
//! as long as all is well; at the first thing that is not, it says how far it came, and the steps go on from there.

use pgtable::descriptor::{AF, S2AP_READ};
use pgtable::{Granule, Half, Ladder, Leaf, Permissions, Step, Walk};

use super::context::Context;
use super::mapping::stage2_permissions;
use super::stream::{Path, Stream};
use super::txn::{Purpose, Txn};
use super::{Known, Outcome, translation, wanted, without_top_byte};
use crate::cache::{Mapping, Regime, Table, Tlb, Walks};
use crate::config::Config;
use crate::memory::{Abort, Memory};
use crate::pmcg::PmuEvent;
use crate::smmu::Smmu;
use crate::spec::event::Class;
use crate::stats::Stats;
use crate::transaction::{Transaction, Translation, TxnId};

/// Where a walk in a row comes to something for the steps.
pub(super) enum Rest {
    /// Stage 1 can not begin.
    Begin1(Step),
    /// The descriptor of stage 1 that was fetched, from where.
    Fetched1(Walk, u64, Result<u64, Abort>),
    /// Stage 2 can not begin with this address.
    Begin2(u64, Step, Purpose),
    /// The descriptor of stage 2 that was fetched for this address.
    Fetched2(u64, Walk, Result<u64, Abort>, Purpose),
    /// What stage 2's cache has for this address.
    Done2(u64, Mapping, Purpose),
}

/// The parts of the SMMU that a walk needs.
struct Row<'a, M: ?Sized> {
    mem: &'a M,
    config: &'a Config,
    stream: &'a Stream,
    context: &'a Context,
    walks: &'a mut Walks,
    ipas: &'a mut Tlb,
    stats: &'a mut Stats,
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

/// Whose tables a walk goes through, and whether they are cached.
#[derive(Clone, Copy)]
struct Place {
    regime: Regime,
    input: u64,
    granule: Granule,
    keep: bool,
}

impl Place {
    /// Caches the table that a walk is about to read. Nothing was invalidated since the transaction began.
    #[inline(never)]
    fn keep(&self, walks: &mut Walks, walk: Walk) {
        walks.insert(self.regime, self.input, Table::new(walk, self.granule));
    }
}

/// A walk, where its descriptor was fetched, and what that is.
type Fetched = (Walk, u64, Result<u64, Abort>);

/// What one of the stages says.
type Walked<T> = Result<T, Box<Rest>>;

impl Smmu {
    /// Walks for a transaction whose STE and CD are known, and that missed the IOTLB. Counts the fetches.
    #[inline]
    pub(super) fn walk_at_once<M: Memory + ?Sized>(
        &mut self,
        incoming: &Transaction,
        known: &Known,
        half: Half,
        mem: &M,
        steps: &mut u64,
    ) -> Walked<Translation> {
        let (stream, context) = (self.streams.at(known.stream), self.contexts.at(known.context));
        let t = stream.overrides.access(incoming);
        let mut row = Row {
            mem,
            config: &self.config,
            stream,
            context,
            walks: &mut self.walks,
            ipas: &mut self.ipas,
            stats: &mut self.stats,
            needs: wanted(&t),
            writes: !t.kind.is_read(),
        };
        let regime = stream.regime(context);
        let input = without_top_byte(t.address);
        let fetches = |stats: &Stats| stats.s1_fetches + stats.s2_fetches;
        let before = fetches(row.stats);
        let walked = row.both(regime, half, input);
        *steps = fetches(row.stats) - before;
        if self.pmcg.is_some() {
            self.tally(PmuEvent::TlbMiss, incoming.sid);
            (0..*steps).for_each(|_| self.tally(PmuEvent::TableWalk, incoming.sid));
        }
        let mapping = walked?;
        // Nothing was invalidated meanwhile.
        if !mapping.uncached && !self.tlb.is_disabled() && self.tlb.insert(regime, input, mapping) {
            self.stats.tlb_evictions += 1;
        }
        self.stats.translated += 1;
        Ok(translation(&mapping, t.address))
    }

    /// Goes on by steps.
    #[inline(never)]
    pub(super) fn go_on(&mut self, id: TxnId, txn: &mut Txn, known: &Known, rest: Rest) -> Outcome {
        txn.stream = *self.streams.at(known.stream);
        txn.context = *self.contexts.at(known.context);
        txn.t = txn.stream.overrides.access(&txn.incoming);
        txn.cd = known.cd;
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
    #[inline]
    fn both(&mut self, regime: Regime, half: Half, input: u64) -> Walked<Mapping> {
        if self.stream.path != Path::Nested {
            return self.first(regime, half, input, Self::alone);
        }
        let stage2 = &self.stream.stage2;
        let tables = match Walk::stage2(&stage2.tables, 0) {
            Step::Fetch(walk) => Some(Ladder::new(&walk, stage2.haft)),
            _ => None,
        };
        let tables = tables.as_ref();
        let first =
            self.first(regime, half, input, |row, walk, place| row.through_stage2(tables, walk, place))?;
        let ipa = translation(&first, input).pa;
        let ask = Ask { ipa, needs: self.needs, writes: self.writes, wary: false };
        let purpose = || Purpose::Output(first);
        let second =
            self.second(tables, ask, purpose, |_| None, |m| *m, |row, leaf, p| row.mapping2(leaf, p))?;
        Ok(first.through(&second, translation(&second, ipa).pa))
    }

    /// Stage 1; `down` goes on with a walk to the first descriptor that is no table.
    #[inline]
    fn first(
        &mut self,
        regime: Regime,
        half: Half,
        input: u64,
        down: impl FnOnce(&mut Self, Walk, Place) -> Walked<Fetched>,
    ) -> Walked<Mapping> {
        let context = self.context;
        let table = match half {
            Half::Lower => &context.lower,
            Half::Upper => &context.upper,
        };
        let place = Place { regime, input, granule: table.granule, keep: !self.walks.is_disabled() };
        self.stats.tlb_misses += 1;
        let known = if place.keep { self.walks.get(regime, input) } else { None };
        self.stats.walk_hits += u64::from(known.is_some());
        let begun = match known {
            Some(walk) => walk,
            None => match Walk::stage1(table, input) {
                Step::Fetch(walk) => walk,
                step => return Err(Box::new(Rest::Begin1(step))),
            },
        };
        let (walk, at, fetched) = down(self, begun, place)?;
        if let Ok(descriptor) = fetched
            && let Some(leaf) = walk.leaf(descriptor)
        {
            let possible = leaf.permissions(&context.controls);
            // Hardware has nothing to update.
            if possible.contains(self.needs) && leaf.updated(self.writes) == descriptor {
                return Ok(Mapping::stage1(&leaf, possible, context, self.stream.world, self.config));
            }
        }
        Err(Box::new(Rest::Fetched1(walk, at, fetched)))
    }

    /// Down the tables of stage 1 where there is no other.
    #[inline]
    fn alone(&mut self, walk: Walk, place: Place) -> Walked<Fetched> {
        let (mem, stats, walks) = (self.mem, &mut *self.stats, &mut *self.walks);
        let ladder = Ladder::new(&walk, self.context.haft);
        let fetch = |at| {
            stats.s1_fetches += 1;
            mem.read_u64(at)
        };
        let (rung, fetched) = ladder.descend(ladder.top(), walk.input(), fetch, |rung| {
            if place.keep {
                place.keep(walks, ladder.walk(rung, walk.input()));
            }
        });
        Ok((ladder.walk(&rung, walk.input()), rung.address(), fetched))
    }

    /// Down the tables of stage 1, each through stage 2.
    #[inline(never)]
    fn through_stage2(&mut self, tables: Option<&Ladder>, mut walk: Walk, place: Place) -> Walked<Fetched> {
        loop {
            let at = self.table(tables, &walk)?;
            self.stats.s1_fetches += 1;
            let fetched = self.mem.read_u64(at);
            let descriptor = fetched.unwrap_or(0);
            let marked = descriptor & AF != 0 || !self.context.haft;
            if !(marked && walk.descend(descriptor)) {
                return Ok((walk, at, fetched));
            }
            if place.keep {
                place.keep(self.walks, walk);
            }
        }
    }

    /// Where stage 2 puts the descriptor that a walk of stage 1 wants.
    #[inline(never)]
    fn table(&mut self, tables: Option<&Ladder>, walk: &Walk) -> Walked<u64> {
        let ipa = walk.address();
        let wary = self.stream.stage2.ptw;
        let ask = Ask { ipa, needs: Permissions::PRIV_READ, writes: false, wary };
        let place = |mapping: &Mapping| translation(mapping, ipa).pa;
        self.second(
            tables,
            ask,
            || Purpose::Stage1(*walk),
            Some,
            place,
            |row, leaf, possible| {
                if leaf.contiguous { place(&row.mapping2(leaf, possible)) } else { leaf.pa }
            },
        )
    }

    #[inline(never)]
    fn mapping2(&self, leaf: &Leaf, possible: Permissions) -> Mapping {
        Mapping::stage2(leaf, possible, &self.stream.stage2, self.config)
    }

    /// Stage 2 of one address. What is wanted is said by `page` of where a readable page that is nothing special puts it,
    /// if that is enough; by `cached` of a cached entry; by `walked` of a leaf and what it permits. `tables`: down from the
    /// walk of address 0.
    #[inline(always)]
    fn second<T>(
        &mut self,
        tables: Option<&Ladder>,
        ask: Ask,
        purpose: impl Fn() -> Purpose,
        page: impl FnOnce(u64) -> Option<T>,
        cached: impl FnOnce(&Mapping) -> T,
        walked: impl FnOnce(&Self, &Leaf, Permissions) -> T,
    ) -> Walked<T> {
        let Ask { ipa, needs, writes, wary } = ask;
        let stage2 = &self.stream.stage2;
        let regime = self.stream.stage2_regime();
        let caches = !self.ipas.is_disabled();
        let granule = stage2.tables.granule;
        let place = Place { regime, input: ipa, granule, keep: !self.walks.is_disabled() };
        if caches
            && let Some(&mapping) = self.ipas.get(regime, ipa)
            && (mapping.permissions.contains(needs) || !mapping.possible.contains(needs))
        {
            self.stats.s2_hits += 1;
            return match mapping.permissions.contains(needs) && !(wary && mapping.attrs.is_device()) {
                true => Ok(cached(&mapping)),
                false => Err(Box::new(Rest::Done2(ipa, mapping, purpose()))),
            };
        }
        self.stats.s2_misses += 1;
        let known = if place.keep { self.walks.get(regime, ipa) } else { None };
        self.stats.walk_hits += u64::from(known.is_some());
        let known = known.map(|walk| Ladder::new(&walk, stage2.haft));
        let begun = match &known {
            Some(ladder) => Some((ladder, ladder.top())),
            None => tables.and_then(|ladder| Some((ladder, ladder.of_input(ipa)?))),
        };
        let Some((ladder, top)) = begun else {
            return Err(Box::new(Rest::Begin2(ipa, Walk::stage2(&stage2.tables, ipa), purpose())));
        };
        let (mem, stats, walks) = (self.mem, &mut *self.stats, &mut *self.walks);
        let fetch = |at| {
            stats.s2_fetches += 1;
            mem.read_u64(at)
        };
        let (rung, fetched) = ladder.descend(top, ipa, fetch, |rung| {
            if place.keep {
                place.keep(walks, ladder.walk(rung, ipa));
            }
        });
        if let Ok(descriptor) = fetched
            && !caches
            && !wary
            && let Some(found) = ladder.page(&rung, descriptor, ipa, S2AP_READ).and_then(page)
        {
            return Ok(found);
        }
        let walk = ladder.walk(&rung, ipa);
        if let Ok(descriptor) = fetched
            && let Some(leaf) = walk.leaf(descriptor)
        {
            let possible = stage2_permissions(&leaf, self.config);
            // Hardware has nothing to update.
            if possible.contains(needs) && leaf.updated(writes) == descriptor {
                let mapping = (caches || wary).then(|| self.mapping2(&leaf, possible));
                if !(wary && mapping.is_some_and(|mapping| mapping.attrs.is_device())) {
                    if let Some(mapping) = mapping.filter(|mapping| caches && !mapping.uncached) {
                        self.ipas.insert(regime, ipa, mapping);
                    }
                    return Ok(walked(self, &leaf, possible));
                }
            }
        }
        Err(Box::new(Rest::Fetched2(ipa, walk, fetched, purpose())))
    }
}
