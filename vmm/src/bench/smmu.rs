//! `smmulab bench smmu`: what a translation costs: an IOTLB hit, a walk of four levels, a nested walk, with the checker and
//! without.
//!
//! Beside each stands its floor: as many dependent loads from the same memory, in the same order, as the SMMU made. A hit
//! fetches nothing; its floor is one load from a table with 64 bytes for each cached translation.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::time::{ClockId, clock_gettime};
use pgtable::{Builder, Stage1, Stage2, descriptor as d};
use smmu_model::checker::{Checker, Pages, Patience};
use smmu_model::spec::registers as r;
use smmu_model::{Abort, AccessKind, Config, Memory, Progress, Smmu, Transaction};

use super::instructions;
use crate::cli::SmmuBenchArgs;
use crate::say::outln;

const RAM: usize = 128 << 20;
const STRTAB: u64 = 0x100_0000;
const CDS: u64 = 0x180_0000;
const TABLES2: std::ops::Range<u64> = 0x280_0000..0x380_0000;
const TABLES: std::ops::Range<u64> = 0x400_0000..0x800_0000;
/// Where the devices' addresses begin, and what they are translated to.
const VA: u64 = 0x1_0000_0000;
const OUTPUT: u64 = 0x8000_0000;
/// The most streams and cached translations.
const MOST: u64 = 1 << 16;
/// The best of so many rounds counts: others may share the host's caches.
const ROUNDS: u32 = 5;

/// RAM from address 0.
struct Ram(Vec<u8>);

impl Ram {
    fn set(&mut self, pa: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            let at = pa as usize + 8 * i;
            self.0[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    }

    #[inline]
    fn word(&self, pa: usize) -> Option<u64> {
        let bytes = self.0.get(pa..pa.checked_add(8)?)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    }
}

impl Memory for Ram {
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort> {
        let at = usize::try_from(pa).map_err(|_| Abort)?;
        data.copy_from_slice(self.0.get(at..at.saturating_add(data.len())).ok_or(Abort)?);
        Ok(())
    }

    #[inline]
    fn read_u64(&self, pa: u64) -> Result<u64, Abort> {
        self.word(pa as usize).ok_or(Abort)
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), Abort> {
        Err(Abort)
    }

    fn compare_exchange_u64(&self, _: u64, _: u64, _: u64) -> Result<u64, Abort> {
        Err(Abort)
    }
}

/// The RAM, and a note of what is read.
struct Noted<'a> {
    ram: &'a Ram,
    reads: RefCell<Vec<u32>>,
}

impl Memory for Noted<'_> {
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort> {
        self.reads.borrow_mut().push(pa as u32);
        self.ram.read(pa, data)
    }

    fn write(&self, pa: u64, data: &[u8]) -> Result<(), Abort> {
        self.ram.write(pa, data)
    }

    fn compare_exchange_u64(&self, pa: u64, old: u64, new: u64) -> Result<u64, Abort> {
        self.ram.compare_exchange_u64(pa, old, new)
    }
}

/// The RAM, for the checker. Nobody stores to it.
struct Looked(Arc<Ram>);

impl Pages for Looked {
    fn watch(&mut self, _: u64) {}

    fn unwatch(&mut self, _: u64) {}

    fn read(&self, pa: u64) -> Option<u64> {
        self.0.word(pa as usize)
    }
}

/// What happens to a transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    Hit,
    /// All fetches in one call, as for a device's bookkeeping.
    Walk,
    /// A call for each fetch, as for a device's data: anything may happen in between.
    Steps,
    Nested,
}

/// One line of the table: `streams` streams, which use `entries` translations in all. Both are powers of two.
#[derive(Clone, Copy)]
struct Case {
    path: Path,
    streams: u64,
    entries: u64,
    /// log2 of the distance between the pages of a stream.
    apart: u32,
}

/// Pages next to each other: tables that fit the host's caches.
const NEXT: u32 = 12;
/// Pages a gibibyte apart, each with two tables of its own.
const FAR: u32 = 30;

impl Case {
    fn name(&self) -> String {
        let path = match self.path {
            Path::Hit => "IOTLB hit",
            Path::Walk => "4-level walk",
            Path::Steps => "4-level walk in steps",
            Path::Nested => "nested walk, 4 by 4 levels",
        };
        let apart = if self.apart == FAR { " 1 GiB apart" } else { "" };
        format!("{path}, {} streams, {} entries{apart}", self.streams, self.entries)
    }

    /// The `i`-th transaction: all translations in turn, in an order that no prefetcher follows.
    #[inline]
    fn transaction(&self, i: u64) -> Transaction {
        let n = i.wrapping_mul(40_503) & (self.entries - 1);
        let (sid, page) = (n & (self.streams - 1), n >> self.streams.trailing_zeros());
        Transaction::new(sid as u32, VA + (page << self.apart), AccessKind::Read)
    }

    /// Where the `i`-th transaction goes.
    fn output(&self, i: u64) -> u64 {
        OUTPUT + ((self.transaction(i).address - VA) >> self.apart << NEXT)
    }
}

/// What translations cost, each.
struct Cost {
    nanoseconds: f64,
    instructions: Option<f64>,
}

/// What a line shows.
struct Figures {
    plain: Cost,
    checked: Cost,
    floor: f64,
    fetches: f64,
}

/// How much is measured.
#[derive(Clone, Copy)]
struct Effort {
    translations: u64,
    counted: u64,
}

struct Rig {
    ram: Arc<Ram>,
    smmu: Smmu,
    case: Case,
}

/// Tables for all streams, which share them.
fn tables(case: Case) -> Result<Ram> {
    let Case { path, streams, entries, apart } = case;
    let mut ram = Ram(vec![0; RAM]);
    let mut words = BTreeMap::new();
    let mut stage1 = Stage1 { tsz: 16, oas: 44, ..Stage1::default() };
    let mut builder = Builder::stage1(&mut stage1, &mut words, TABLES)?;
    builder.coarsest = 3;
    let pages = entries / streams;
    let attrs = d::AF | d::SH_INNER | d::AP_USER | d::NG;
    for page in 0..pages {
        builder.map(&mut words, VA + (page << apart), OUTPUT + (page << NEXT), 1 << NEXT, attrs)?;
    }
    let mut stage2 = Stage2 { tsz: 20, sl0: 2, oas: 44, ..Stage2::default() };
    if path == Path::Nested {
        let mut builder = Builder::stage2(&mut stage2, &mut words, TABLES2)?;
        builder.coarsest = 3;
        let attrs = d::AF | d::SH_INNER | d::S2AP_READ | d::S2AP_WRITE | d::mem_attr(0xf);
        builder.map(&mut words, 0, 0, RAM as u64, attrs)?;
        builder.map(&mut words, OUTPUT, OUTPUT, pages << NEXT, attrs)?;
    }
    for (at, word) in words {
        ram.set(at, &[word]);
    }
    let stage2_word = 20 << 32 | 2 << 38 | 1 << 40 | 1 << 42 | 3 << 44 | 4 << 48 | 1 << 51 | 1 << 58;
    for sid in 0..streams {
        let cd = CDS + sid * 64;
        ram.set(cd, &[16 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 3 << 45 | sid << 48, stage1.ttb, 0, 0xff]);
        let ste = match path {
            Path::Nested => [1 | 7 << 1 | cd, 1 << 44, stage2_word, stage2.ttb],
            _ => [1 | 5 << 1 | cd, 1 << 44, 0, 0],
        };
        ram.set(STRTAB + sid * 64, &ste);
    }
    Ok(ram)
}

impl Rig {
    /// An SMMU whose caches hold everything, or no translation; looked at by the checker or not.
    fn new(case: Case, ram: &Arc<Ram>, checked: bool) -> Self {
        let all = Config::UNLIMITED;
        let (tlb, walks) = if case.path == Path::Hit { (all, all) } else { (0, 0) };
        let config = Config {
            sidsize: 16,
            tlb,
            s2_cache: walks,
            walk_cache: walks,
            ste_cache: all,
            cd_cache: all,
            ..Config::linux()
        };
        let mut smmu = Smmu::new(config.clone());
        if checked {
            let pages = Box::new(Looked(ram.clone()));
            smmu.observe(Box::new(Checker::new(&config, Patience::default(), pages)));
        }
        smmu.mmio_write(r::STRTAB_BASE, 8, STRTAB);
        smmu.mmio_write(r::STRTAB_BASE_CFG, 4, 16);
        smmu.mmio_write(r::CR0, 4, 1);
        Self { ram: ram.clone(), smmu, case }
    }

    fn translate(smmu: &mut Smmu, case: Case, mem: &impl Memory, i: u64) -> Result<u64> {
        let t = case.transaction(i);
        let mut progress = match case.path {
            Path::Steps => smmu.begin(&t),
            _ => smmu.translate(&t, mem).0,
        };
        while let Progress::Walking(id) = progress {
            progress = smmu.step(id, mem);
        }
        match progress {
            Progress::Latched(id, translation) => {
                smmu.complete(id);
                Ok(translation.pa)
            }
            other => bail!("{}: a translation ended as {other:?}", case.name()),
        }
    }

    /// Has everything cached that may be.
    fn warm(&mut self) -> Result<()> {
        let Self { ram, smmu, case } = self;
        for i in 0..case.entries {
            let (pa, expected) = (Self::translate(smmu, *case, &**ram, i)?, case.output(i));
            ensure!(pa == expected, "{}: {pa:#x} is not {expected:#x}", case.name());
        }
        Ok(())
    }

    /// The addresses of what `n` translations read.
    fn reads(&mut self, n: u64) -> Result<Vec<u32>> {
        let noted = Noted { ram: &self.ram, reads: RefCell::new(Vec::new()) };
        for i in 0..n {
            Self::translate(&mut self.smmu, self.case, &noted, i)?;
        }
        Ok(noted.reads.into_inner())
    }

    fn cost(&mut self, effort: Effort) -> Result<Cost> {
        let Self { ram, smmu, case } = self;
        let nanoseconds = best(effort.translations, |i| Self::translate(smmu, *case, &**ram, i))?;
        let counted = (effort.counted > 0)
            .then(|| {
                instructions::count(|| {
                    for i in 0..effort.counted {
                        std::hint::black_box(Self::translate(smmu, *case, &**ram, i).unwrap_or(0));
                    }
                })
            })
            .flatten();
        let instructions = counted.map(|count| count as f64 / effort.counted as f64);
        Ok(Cost { nanoseconds, instructions })
    }
}

/// How long this thread has had a processor: others may share the host.
fn processor_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

/// Nanoseconds for each of `n` calls of `f`, at best.
fn best(n: u64, mut f: impl FnMut(u64) -> Result<u64>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = processor_time()?;
        let mut sum = 0u64;
        for i in 0..n {
            sum = sum.wrapping_add(f(i)?);
        }
        std::hint::black_box(sum);
        best = best.min((processor_time()? - start).as_nanos() as f64 / n as f64);
    }
    Ok(best)
}

/// Nanoseconds for the loads of one translation, each of which waits for the one before. `each`: how many that is.
fn floor(case: Case, ram: &Ram, reads: &[u32], n: u64, each: f64) -> Result<f64> {
    // Nobody but the reader knows that this is 0.
    let zero = std::hint::black_box(0u64);
    let mut last = 0;
    if reads.is_empty() {
        // Written, so that it is memory of its own and not the page of zeros that the host has for all.
        let table = vec![1u64; 8 * case.entries as usize];
        let mask = table.len() - 1;
        return best(n, |i| {
            let at = (i.wrapping_mul(40_503).wrapping_mul(8) + (last & zero)) as usize;
            last = table[at & mask];
            Ok(last)
        });
    }
    let one = best(reads.len() as u64, |i| {
        last = ram.word(reads[i as usize] as usize + (last & zero) as usize).unwrap_or(0);
        Ok(last)
    })?;
    Ok(one * each)
}

fn measure(case: Case, effort: Effort) -> Result<Figures> {
    let ram = Arc::new(tables(case)?);
    let mut rig = Rig::new(case, &ram, false);
    rig.warm()?;
    let n = effort.translations.min(MOST);
    let reads = rig.reads(n)?;
    let fetches = reads.len() as f64 / n as f64;
    let plain = rig.cost(effort)?;
    let floor = floor(case, &ram, &reads, effort.translations, fetches)?;
    drop(rig);
    let mut rig = Rig::new(case, &ram, true);
    rig.warm()?;
    // It takes longer, and does not vary as much.
    let checked = rig.cost(Effort { translations: effort.translations.div_ceil(32), ..effort })?;
    Ok(Figures { plain, checked, floor, fetches })
}

/// Runs the benchmark and prints its table.
///
/// # Errors
/// When the SMMU translates wrongly.
pub fn run(args: &SmmuBenchArgs) -> Result<()> {
    ensure!(args.translations > 0, "--translations takes at least 1");
    let effort = Effort { translations: args.translations, counted: args.counted };
    let sizes = [(1, 1), (1, 64), (1, 4096), (1, MOST), (64, 64), (64, MOST), (4096, MOST), (MOST, MOST)];
    let cases = [Path::Hit, Path::Walk, Path::Steps, Path::Nested].into_iter().flat_map(|path| {
        let near = sizes.map(|(streams, entries)| Case { path, streams, entries, apart: NEXT });
        near.into_iter().chain([Case { path, streams: 1, entries: 4096, apart: FAR }])
    });
    outln!(
        "{:60} {:>8} {:>8} {:>6} {:>12} {:>9} {:>8}",
        "a translation",
        "ns",
        "floor",
        "ratio",
        "instructions",
        "checker:",
        ""
    );
    outln!(
        "{:60} {:>8} {:>8} {:>6} {:>12} {:>9} {:>12} {:>8}",
        "",
        "",
        "ns",
        "",
        "",
        "ns",
        "instructions",
        "fetches"
    );
    let mut counts = true;
    for case in cases.filter(|case| args.only.as_ref().is_none_or(|only| case.name().contains(only))) {
        let f = measure(case, effort)?;
        counts &= f.plain.instructions.is_some();
        let shown = |cost: &Cost| cost.instructions.map_or("-".into(), |count| format!("{count:.0}"));
        outln!(
            "{:60} {:>8.1} {:>8.1} {:>6.1} {:>12} {:>9.1} {:>12} {:>8.1}",
            case.name(),
            f.plain.nanoseconds,
            f.floor,
            f.plain.nanoseconds / f.floor,
            shown(&f.plain),
            f.checked.nanoseconds,
            shown(&f.checked),
            f.fetches,
        );
    }
    if args.counted > 0 && !counts {
        outln!("SKIPPED: the host does not let us trace a child, so no instructions are counted");
    }
    Ok(())
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn each_path_fetches_what_it_should() {
        let effort = Effort { translations: 200, counted: 1 };
        let fetches =
            |(path, apart)| measure(Case { path, streams: 4, entries: 64, apart }, effort).map(|f| f.fetches);
        let paths = [
            (Path::Hit, NEXT),
            (Path::Walk, NEXT),
            (Path::Steps, FAR),
            (Path::Nested, NEXT),
            (Path::Nested, FAR),
        ];
        let all: Result<Vec<f64>> = paths.into_iter().map(fetches).collect();
        // Each of four stage 1 descriptors, and the output, through four of stage 2.
        let expected = vec![0.0, 4.0, 4.0, 24.0, 24.0];
        assert_eq!(all.map_err(|e| format!("{e:#}")), Ok(expected));
    }

    #[test]
    fn transactions_use_each_entry() {
        let case = Case { path: Path::Hit, streams: 64, entries: MOST, apart: NEXT };
        let all: std::collections::BTreeSet<_> =
            (0..MOST).map(|i| (case.transaction(i).sid, case.transaction(i).address)).collect();
        assert_eq!(all.len() as u64, MOST);
    }
}
