//! `smmulab bench smmu`: what a translation costs: an IOTLB hit, a walk of four levels, a nested walk.
//!
//! Beside each stands its floor: as many dependent loads from the same memory, in the same order, as the SMMU made. A hit
//! fetches nothing; its floor is one load from a table with 64 bytes for each cached translation.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use pgtable::{Builder, Stage1, Stage2, descriptor as d};
use smmu_model::spec::registers as r;
use smmu_model::{Abort, AccessKind, Config, Memory, Progress, Smmu, Transaction};

use super::counter::Counter;
use crate::cli::SmmuBenchArgs;

const RAM: usize = 64 << 20;
const STRTAB: u64 = 0x100_0000;
const CDS: u64 = 0x180_0000;
const TABLES: std::ops::Range<u64> = 0x200_0000..0x280_0000;
const TABLES2: std::ops::Range<u64> = 0x280_0000..0x380_0000;
/// Where the devices' addresses begin, and what they are translated to.
const VA: u64 = 0x1_0000_0000;
const OUTPUT: u64 = 0x8000_0000;
/// The most streams and cached translations.
const MOST: u64 = 1 << 16;

/// RAM from address 0, which can take note of what is read.
struct Ram {
    bytes: Vec<u8>,
    reads: RefCell<Option<Vec<u32>>>,
}

impl Memory for Ram {
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort> {
        let at = usize::try_from(pa).map_err(|_| Abort)?;
        data.copy_from_slice(self.bytes.get(at..at.saturating_add(data.len())).ok_or(Abort)?);
        if let Some(reads) = &mut *self.reads.borrow_mut() {
            reads.push(pa as u32);
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), Abort> {
        Err(Abort)
    }

    fn compare_exchange_u64(&self, _: u64, _: u64, _: u64) -> Result<u64, Abort> {
        Err(Abort)
    }
}

impl Ram {
    fn set(&mut self, pa: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            let at = pa as usize + 8 * i;
            self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn word(&self, pa: usize) -> u64 {
        self.bytes.get(pa..pa + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
    }
}

/// What happens to a transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    Hit,
    Walk,
    Nested,
}

/// One line of the table: `streams` streams, which use `entries` translations in all.
#[derive(Clone, Copy)]
struct Case {
    path: Path,
    streams: u64,
    entries: u64,
}

impl Case {
    fn name(&self) -> String {
        let path = match self.path {
            Path::Hit => "IOTLB hit",
            Path::Walk => "4-level walk",
            Path::Nested => "nested walk, 4 by 4 levels",
        };
        format!("{path}, {} streams, {} entries", self.streams, self.entries)
    }

    /// The `i`-th transaction: all translations in turn, in an order that no prefetcher follows.
    fn transaction(&self, i: u64) -> Transaction {
        let n = i.wrapping_mul(40_503) % self.entries;
        let (sid, page) = (n % self.streams, n / self.streams);
        Transaction::new(sid as u32, VA + (page << 12), AccessKind::Read)
    }
}

/// What a line shows.
struct Figures {
    nanoseconds: f64,
    instructions: Option<f64>,
    floor: f64,
    fetches: f64,
}

struct Rig {
    ram: Ram,
    smmu: Smmu,
    case: Case,
}

impl Rig {
    /// Tables for all streams, which share them, and an SMMU whose caches hold everything, or no translation.
    fn new(case: Case) -> Result<Self> {
        let Case { path, streams, entries } = case;
        let mut ram = Ram { bytes: vec![0; RAM], reads: RefCell::new(None) };
        let mut words = BTreeMap::new();
        let mut stage1 = Stage1 { tsz: 16, oas: 44, ..Stage1::default() };
        let mut builder = Builder::stage1(&mut stage1, &mut words, TABLES)?;
        builder.coarsest = 3;
        let pages = entries / streams;
        let attrs = d::AF | d::SH_INNER | d::AP_USER | d::NG;
        builder.map(&mut words, VA, OUTPUT, pages << 12, attrs)?;
        let mut stage2 = Stage2 { tsz: 20, sl0: 2, oas: 44, ..Stage2::default() };
        if path == Path::Nested {
            let mut builder = Builder::stage2(&mut stage2, &mut words, TABLES2)?;
            builder.coarsest = 3;
            let attrs = d::AF | d::SH_INNER | d::S2AP_READ | d::S2AP_WRITE | d::mem_attr(0xf);
            builder.map(&mut words, 0, 0, RAM as u64, attrs)?;
            builder.map(&mut words, OUTPUT, OUTPUT, pages << 12, attrs)?;
        }
        for (at, word) in words {
            ram.set(at, &[word]);
        }
        let stage2_word = 20 << 32 | 2 << 38 | 1 << 40 | 1 << 42 | 3 << 44 | 4 << 48 | 1 << 51 | 1 << 58;
        for sid in 0..streams {
            let cd = CDS + sid * 64;
            ram.set(
                cd,
                &[16 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 3 << 45 | sid << 48, stage1.ttb, 0, 0xff],
            );
            let ste = match path {
                Path::Nested => [1 | 7 << 1 | cd, 1 << 44, stage2_word, stage2.ttb],
                _ => [1 | 5 << 1 | cd, 1 << 44, 0, 0],
            };
            ram.set(STRTAB + sid * 64, &ste);
        }
        let all = Config::UNLIMITED;
        let (tlb, walks) = if path == Path::Hit { (all, all) } else { (0, 0) };
        let config = Config {
            sidsize: 16,
            tlb,
            s2_cache: walks,
            walk_cache: walks,
            ste_cache: all,
            cd_cache: all,
            ..Config::linux()
        };
        let mut smmu = Smmu::new(config);
        smmu.mmio_write(r::STRTAB_BASE, 8, STRTAB);
        smmu.mmio_write(r::STRTAB_BASE_CFG, 4, 16);
        smmu.mmio_write(r::CR0, 4, 1);
        Ok(Self { ram, smmu, case })
    }

    fn translate(&mut self, i: u64) -> Result<u64> {
        let mut progress = self.smmu.begin(&self.case.transaction(i));
        loop {
            match progress {
                Progress::Walking(id) => progress = self.smmu.step(id, &self.ram),
                Progress::Latched(id, translation) => {
                    self.smmu.complete(id);
                    return Ok(translation.pa);
                }
                other => bail!("{}: a translation ended as {other:?}", self.case.name()),
            }
        }
    }

    /// Nanoseconds for each of `n` calls of `f`, at best: others may share the host.
    fn best(n: u64, mut f: impl FnMut(u64) -> Result<u64>) -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let mut sum = 0u64;
            for i in 0..n {
                sum = sum.wrapping_add(f(i)?);
            }
            std::hint::black_box(sum);
            best = best.min(start.elapsed().as_nanos() as f64 / n as f64);
        }
        Ok(best)
    }

    fn measure(&mut self, n: u64) -> Result<Figures> {
        let entries = self.case.entries;
        for i in 0..entries {
            let pa = self.translate(i)?;
            let expected = self.case.transaction(i).address - VA + OUTPUT;
            ensure!(pa == expected, "{}: {pa:#x} is not {expected:#x}", self.case.name());
        }
        *self.ram.reads.borrow_mut() = Some(Vec::new());
        for i in 0..n.min(MOST) {
            self.translate(i)?;
        }
        let reads = self.ram.reads.borrow_mut().take().unwrap_or_default();
        let each = reads.len() as f64 / n.min(MOST) as f64;
        let nanoseconds = Self::best(n, |i| self.translate(i))?;
        let instructions = match Counter::new() {
            Some(mut counter) => {
                let begin = counter.read();
                for i in 0..n {
                    std::hint::black_box(self.translate(i)?);
                }
                Some((counter.read() - begin) as f64 / n as f64)
            }
            None => None,
        };
        Ok(Figures { nanoseconds, instructions, floor: self.floor(&reads, n, each)?, fetches: each })
    }

    /// Nanoseconds for the loads of one translation, each of which waits for the one before.
    fn floor(&self, reads: &[u32], n: u64, each: f64) -> Result<f64> {
        // Nobody but the reader knows that this is 0.
        let zero = std::hint::black_box(0u64);
        let mut last = 0;
        if reads.is_empty() {
            let table = vec![0u64; 8 * self.case.entries as usize];
            let mask = table.len() - 1;
            return Self::best(n, |i| {
                let at = (i.wrapping_mul(40_503) % self.case.entries * 8 + (last & zero)) as usize;
                last = table[at & mask];
                Ok(last)
            });
        }
        let one = Self::best(reads.len() as u64, |i| {
            last = self.ram.word(reads[i as usize] as usize + (last & zero) as usize);
            Ok(last)
        })?;
        Ok(one * each)
    }
}

const ROUNDS: u32 = 5;

/// Runs the benchmark and prints its table.
///
/// # Errors
/// When the SMMU translates wrongly.
pub fn run(args: &SmmuBenchArgs) -> Result<()> {
    ensure!(args.translations > 0, "--translations takes at least 1");
    let sizes = [(1, 1), (1, 64), (1, 4096), (1, MOST), (64, 64), (64, MOST), (4096, MOST), (MOST, MOST)];
    println!(
        "{:56} {:>9} {:>13} {:>8} {:>9} {:>6}",
        "a translation", "ns", "instructions", "fetches", "floor, ns", "ratio"
    );
    for path in [Path::Hit, Path::Walk, Path::Nested] {
        for (streams, entries) in sizes {
            let mut rig = Rig::new(Case { path, streams, entries })?;
            let f = rig.measure(args.translations)?;
            let instructions = f.instructions.map_or("-".into(), |count| format!("{count:.0}"));
            let ratio = f.nanoseconds / f.floor;
            println!(
                "{:56} {:>9.1} {instructions:>13} {:>8.1} {:>9.1} {ratio:>6.1}",
                rig.case.name(),
                f.nanoseconds,
                f.fetches,
                f.floor
            );
        }
    }
    if Counter::new().is_none() {
        println!("SKIPPED: the host does not count instructions for us");
    }
    Ok(())
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn each_path_fetches_what_it_should() {
        let fetches =
            |path| Rig::new(Case { path, streams: 4, entries: 64 })?.measure(200).map(|f| f.fetches);
        let all: Result<Vec<f64>> = [Path::Hit, Path::Walk, Path::Nested].into_iter().map(fetches).collect();
        // Each of four stage 1 descriptors, and the output, through four of stage 2.
        assert_eq!(all.map_err(|e| anyhow::anyhow!("{e}")).ok(), Some(vec![0.0, 4.0, 24.0]));
    }

    #[test]
    fn transactions_use_each_entry() {
        let case = Case { path: Path::Hit, streams: 64, entries: MOST };
        let all: std::collections::BTreeSet<_> =
            (0..MOST).map(|i| (case.transaction(i).sid, case.transaction(i).address)).collect();
        assert_eq!(all.len() as u64, MOST);
    }
}
