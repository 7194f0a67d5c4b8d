//! What an SMMU may hold, as a list, and what an access may do with that: with caches that forget nothing and take the
//! deepest and smallest there is, one thing; else any of several.

use smmu_model::Config;

use crate::lab::{CDS, Ram};
use crate::tables::{Kind, Stage};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum World {
    El1,
    Stage2,
    El2,
    El2E2h,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Regime {
    pub(crate) world: World,
    pub(crate) vmid: u64,
    pub(crate) asid: u64,
}

/// A translation, or a table that one step of a walk led to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Held {
    pub(crate) regime: Regime,
    pub(crate) global: bool,
    pub(crate) is_table: bool,
    /// The first address, log2 of the bytes that it is used for, and of those that it goes with.
    pub(crate) first: u64,
    pub(crate) shift: u32,
    pub(crate) span: u32,
    /// log2 of the page, and the level of the leaf or table.
    pub(crate) page: u32,
    pub(crate) level: i32,
    /// What `first` becomes, or where the table is.
    pub(crate) output: u64,
    /// Whether writes are permitted, and whether stage 1 alone permits them.
    pub(crate) write: bool,
    pub(crate) first_permits: bool,
}

impl Held {
    pub(crate) fn overlaps(&self, from: u64, to: u64) -> bool {
        let first = self.first >> self.span << self.span;
        from <= first + ((1 << self.span) - 1) && first <= to
    }

    fn is_for(&self, address: u64) -> bool {
        address >> self.shift == self.first >> self.shift
    }

    /// What takes the place of each other.
    fn is_same(&self, other: &Held) -> bool {
        let key = |held: &Held| {
            let asid = if held.global { 0 } else { held.regime.asid };
            let regime = Regime { asid, ..held.regime };
            (regime, held.global, held.is_table, held.first, held.shift, held.is_table.then_some(held.level))
        };
        key(self) == key(other)
    }
}

/// An event's number; of stage 2, the class and the IPA.
pub(crate) type Fault = (u64, Option<(u64, u64)>);

const CLASS_CD: u64 = 0;
const CLASS_TT: u64 = 1;
const CLASS_IN: u64 = 2;

/// One address space of stage 1.
pub(crate) struct Context {
    pub(crate) stage: Stage,
    pub(crate) regime: Regime,
    pub(crate) vm: Option<usize>,
}

pub(crate) struct Vm {
    pub(crate) stage: Stage,
    pub(crate) vmid: u64,
}

/// Where a stream's accesses go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Path {
    Stage1(usize),
    Stage2(usize),
}

pub(crate) struct Oracle {
    pub(crate) contexts: Vec<Context>,
    pub(crate) vms: Vec<Vm>,
    pub(crate) held: Vec<Held>,
    /// Nothing is forgotten, and all is predictable.
    pub(crate) exact: bool,
    pub(crate) combined: bool,
    pub(crate) contiguous: bool,
    /// Streams whose CD is, or may be, cached.
    pub(crate) known: Vec<usize>,
}

impl Oracle {
    pub(crate) fn forget(&mut self, command: &crate::commands::Tlbi, e2h: bool, config: &Config) {
        self.held.retain(|held| !command.drops(held, e2h, config));
    }

    fn keep(&mut self, held: Held) {
        let exact = self.exact;
        self.held.retain(|other| *other != held && !(exact && other.is_same(&held)));
        self.held.push(held);
    }

    /// The best one, or all.
    fn choose<T>(&self, mut options: Vec<T>) -> Vec<T> {
        if self.exact {
            options.truncate(1);
        }
        options
    }

    /// Tables that a walk may begin at: the deepest first, and last the root.
    fn starts(&self, regime: Regime, stage: &Stage, input: u64) -> Vec<(i32, u64)> {
        let tables =
            self.held.iter().filter(|held| held.is_table && held.regime == regime && held.is_for(input));
        let mut starts: Vec<_> = tables.map(|held| (held.level, held.output)).collect();
        starts.sort_by_key(|&(level, _)| -level);
        starts.push((stage.first, stage.root));
        self.choose(starts)
    }

    /// Translations of an address: those of its own ASID first, the smallest first.
    fn leaves(&self, regime: Regime, input: u64) -> Vec<Held> {
        let fits = |held: &&Held| {
            let regime = Regime { asid: if held.global { held.regime.asid } else { regime.asid }, ..regime };
            !held.is_table && held.regime == regime && held.is_for(input)
        };
        let mut leaves: Vec<_> = self.held.iter().filter(fits).copied().collect();
        leaves.sort_by_key(|held| (held.global, held.shift));
        leaves
    }

    /// Everything that an access may come to.
    pub(crate) fn access(
        &mut self,
        ram: &Ram,
        stream: usize,
        path: Path,
        address: u64,
        write: bool,
    ) -> Vec<Result<u64, Fault>> {
        match path {
            Path::Stage2(vm) => {
                let ends = self.second(ram, vm, address, CLASS_IN, write);
                ends.into_iter().map(|end| end.map(|held| held.output)).collect()
            }
            Path::Stage1(context) => {
                let mut ends = Vec::new();
                if let Some(vm) = self.contexts[context].vm
                    && !(self.exact && self.known.contains(&stream))
                {
                    let cd = CDS + context as u64 * 64;
                    let found = self.second(ram, vm, cd, CLASS_CD, false);
                    if found.iter().any(|found| found.is_ok()) {
                        self.known.push(stream);
                    }
                    ends.extend(found.into_iter().filter_map(|found| found.err().map(Err)));
                    if !self.known.contains(&stream) {
                        return ends;
                    }
                }
                ends.extend(self.first(ram, context, address, write));
                ends
            }
        }
    }

    fn first(&mut self, ram: &Ram, context: usize, address: u64, write: bool) -> Vec<Result<u64, Fault>> {
        let Context { regime, vm, .. } = self.contexts[context];
        let mut ends = Vec::new();
        let hits = self.leaves(regime, address);
        let hits = self.choose(hits);
        let mut decided = false;
        for hit in hits {
            decided = !write || hit.write || !hit.first_permits;
            match vm {
                _ if write && !hit.first_permits => ends.push(Err((0x13, None))),
                _ if !decided => {}
                Some(vm) if !self.combined => ends.extend(self.output(ram, vm, hit, address, write)),
                _ => ends.push(Ok(hit.output + (address - hit.first))),
            }
        }
        if self.exact && decided {
            return ends;
        }
        let starts = self.starts(regime, &self.contexts[context].stage, address);
        for (level, table) in starts {
            ends.extend(self.first_from(ram, context, level, table, address, write));
        }
        ends
    }

    /// A walk of stage 1 from one table on.
    fn first_from(
        &mut self,
        ram: &Ram,
        context: usize,
        level: i32,
        table: u64,
        address: u64,
        write: bool,
    ) -> Vec<Result<u64, Fault>> {
        let Context { regime, vm, ref stage } = self.contexts[context];
        let (page, contiguous) = (stage.page, self.contiguous);
        let at = table + stage.index(level, address) * 8;
        let places = match vm {
            None => vec![Ok(at)],
            Some(vm) => {
                let places = self.second(ram, vm, at, CLASS_TT, false);
                places.into_iter().map(|place| place.map(|held| held.output)).collect()
            }
        };
        let mut ends = Vec::new();
        let mut seen = Vec::new();
        for place in places {
            if seen.contains(&place) {
                continue;
            }
            seen.push(place);
            let descriptor = match place {
                Ok(at) => ram.word(at),
                Err(fault) => {
                    ends.push(Err(fault));
                    continue;
                }
            };
            let stage = &self.contexts[context].stage;
            let common = Held {
                regime,
                global: false,
                is_table: true,
                first: address >> stage.shift(level) << stage.shift(level),
                shift: stage.shift(level),
                span: stage.shift(level),
                page,
                level: level + 1,
                output: 0,
                write: true,
                first_permits: true,
            };
            match stage.kind(level, address, descriptor, contiguous) {
                Kind::Invalid => ends.push(Err((0x10, None))),
                Kind::Table(next) => {
                    self.keep(Held { output: next, ..common });
                    ends.extend(self.first_from(ram, context, level + 1, next, address, write));
                }
                Kind::Leaf { output, span, .. } => {
                    let can_write = descriptor >> 7 & 1 == 0;
                    let first = address >> span << span;
                    let leaf = Held {
                        global: descriptor >> 11 & 1 == 0 && regime.world != World::El2,
                        is_table: false,
                        first,
                        shift: span,
                        span,
                        level,
                        output: output - (address - first),
                        write: can_write,
                        first_permits: can_write,
                        ..common
                    };
                    match vm {
                        _ if write && !can_write => ends.push(Err((0x13, None))),
                        None => {
                            self.keep(leaf);
                            ends.push(Ok(output));
                        }
                        Some(vm) => {
                            if !self.combined {
                                self.keep(leaf);
                            }
                            ends.extend(self.output(ram, vm, leaf, address, write));
                        }
                    }
                }
            }
        }
        ends
    }

    /// Stage 2 of what stage 1 says.
    fn output(
        &mut self,
        ram: &Ram,
        vm: usize,
        leaf: Held,
        address: u64,
        write: bool,
    ) -> Vec<Result<u64, Fault>> {
        let ipa = leaf.output + (address - leaf.first);
        let mut ends = Vec::new();
        for end in self.second(ram, vm, ipa, CLASS_IN, write) {
            if let Ok(second) = end
                && self.combined
            {
                let shift = leaf.shift.min(second.shift);
                let first = address >> shift << shift;
                let output = second.output - (address - first);
                self.keep(Held { first, shift, output, write: leaf.write && second.write, ..leaf });
            }
            ends.push(end.map(|held| held.output));
        }
        ends
    }

    /// What stage 2 may make of an IPA: as `output`, its address.
    fn second(
        &mut self,
        ram: &Ram,
        vm: usize,
        ipa: u64,
        class: u64,
        write: bool,
    ) -> Vec<Result<Held, Fault>> {
        let regime = Regime { world: World::Stage2, vmid: self.vms[vm].vmid, asid: 0 };
        let permit = |held: Held| match write && !held.write {
            true => Err((0x13, Some((class, ipa)))),
            false => Ok(Held { output: held.output + (ipa - held.first), ..held }),
        };
        let hits = self.leaves(regime, ipa);
        let mut ends: Vec<_> = self.choose(hits).into_iter().map(permit).collect();
        if self.exact && !ends.is_empty() {
            return ends;
        }
        let stage = &self.vms[vm].stage;
        if ipa >> stage.bits() != 0 {
            ends.push(Err((0x10, Some((class, ipa)))));
            return ends;
        }
        for (mut level, mut table) in self.starts(regime, stage, ipa) {
            loop {
                let stage = &self.vms[vm].stage;
                let descriptor = ram.word(table + stage.index(level, ipa) * 8);
                let shift = stage.shift(level);
                let common = Held {
                    regime,
                    global: false,
                    is_table: true,
                    first: ipa >> shift << shift,
                    shift,
                    span: shift,
                    page: stage.page,
                    level: level + 1,
                    output: 0,
                    write: true,
                    first_permits: true,
                };
                match stage.kind(level, ipa, descriptor, self.contiguous) {
                    Kind::Invalid => ends.push(Err((0x10, Some((class, ipa))))),
                    Kind::Table(next) => {
                        self.keep(Held { output: next, ..common });
                        (level, table) = (level + 1, next);
                        continue;
                    }
                    Kind::Leaf { output, span, .. } => {
                        let first = ipa >> span << span;
                        let leaf = Held {
                            is_table: false,
                            first,
                            shift: span,
                            span,
                            level,
                            output: output - (ipa - first),
                            write: descriptor >> 7 & 1 == 1,
                            ..common
                        };
                        self.keep(leaf);
                        ends.push(permit(leaf));
                    }
                }
                break;
            }
        }
        ends
    }
}
