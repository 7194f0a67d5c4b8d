//! Prints what a translation costs: an IOTLB hit and a four-level walk, for one and for many streams.
//!
//! `cargo run --profile quick -p smmu-model --example translate [TRANSACTIONS [CASE]]`

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use pgtable::{Builder, Stage1, descriptor as d};
use smmu_model::spec::registers as r;
use smmu_model::{Abort, AccessKind, Config, Memory, Progress, Smmu, Transaction};

const STRTAB: u64 = 0x100_0000;
const CDS: u64 = 0x200_0000;
const TABLES: u64 = 0x300_0000;

static AT_ONCE: AtomicBool = AtomicBool::new(false);
/// 64 MiB of RAM from 0.
struct Ram(Vec<u8>);

impl Memory for Ram {
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort> {
        let pa = usize::try_from(pa).map_err(|_| Abort)?;
        data.copy_from_slice(self.0.get(pa..pa + data.len()).ok_or(Abort)?);
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
    fn set(&mut self, pa: u64, word: u64) {
        let pa = pa as usize;
        self.0[pa..pa + 8].copy_from_slice(&word.to_le_bytes());
    }
}

fn translate(smmu: &mut Smmu, ram: &Ram, t: &Transaction) -> u64 {
    let mut progress = if AT_ONCE.load(Relaxed) { smmu.translate(t, ram).0 } else { smmu.begin(t) };
    loop {
        match progress {
            Progress::Walking(id) => progress = smmu.step(id, ram),
            Progress::Latched(id, translation) => {
                smmu.complete(id);
                return translation.pa;
            }
            other => panic!("{other:?}"),
        }
    }
}

fn measure(streams: u32, pages: u64, tlb: u32) -> (f64, f64) {
    let mut ram = Ram(vec![0; 64 << 20]);
    let mut cfg = Stage1 { tsz: 16, oas: 44, ..Stage1::default() };
    let mut words = BTreeMap::new();
    let mut tables = Builder::stage1(&mut cfg, &mut words, TABLES..TABLES + 0x100_0000).unwrap();
    let attrs = d::AF | d::SH_INNER | d::AP_USER | d::NG;
    tables.map(&mut words, 0x1_0000_0000, 0x8000_0000, pages << 12, attrs).unwrap();
    for (at, word) in words {
        ram.set(at, word);
    }
    for sid in 0..streams {
        let cd = CDS + u64::from(sid) * 64;
        let word0 = 16 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 3 << 45 | u64::from(sid & 0xffff) << 48;
        ram.set(cd, word0);
        ram.set(cd + 8, TABLES);
        ram.set(cd + 24, 0xff);
        ram.set(STRTAB + u64::from(sid) * 64, 1 | 5 << 1 | cd);
    }
    let config = match tlb {
        Config::UNLIMITED => Config { tlb, ste_cache: tlb, cd_cache: tlb, ..Config::linux() },
        _ => Config { tlb, ste_cache: 4 * streams, cd_cache: 4 * streams, ..Config::linux() },
    };
    let mut smmu = Smmu::new(config);
    smmu.mmio_write(r::STRTAB_BASE, 8, STRTAB);
    smmu.mmio_write(r::STRTAB_BASE_CFG, 4, 16);
    smmu.mmio_write(r::CR0, 4, 1);
    let n: u64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(200_000);
    let transactions: Vec<_> = (0..4096u64)
        .map(|n| {
            let sid = (n * 7 % u64::from(streams)) as u32;
            Transaction::new(sid, 0x1_0000_0000 + ((n * 13 % pages) << 12), AccessKind::Read)
        })
        .collect();
    for t in &transactions {
        translate(&mut smmu, &ram, t);
    }
    let misses = smmu.stats().tlb_misses;
    const ROUNDS: u64 = 10;
    let round = |smmu: &mut Smmu| {
        let start = Instant::now();
        let mut sum = 0;
        for i in 0..n {
            sum ^= translate(smmu, &ram, &transactions[(i & 4095) as usize]);
        }
        std::hint::black_box(sum);
        start.elapsed().as_nanos() as f64 / n as f64
    };
    // The best round: others share the machine.
    let best = (0..ROUNDS).map(|_| round(&mut smmu)).fold(f64::INFINITY, f64::min);
    (best, (smmu.stats().tlb_misses - misses) as f64 / (n * ROUNDS) as f64)
}

fn main() {
    let only: Option<usize> = std::env::args().nth(2).and_then(|n| n.parse().ok());
    let cases = [
        ("hit, 1 stream, 16 pages", 1, 16, 4096),
        ("hit, 64 streams, 64 pages each", 64, 64, 65536),
        ("hit, 4096 streams", 4096, 64, 1 << 18),
        ("hit, 1 stream, 65536 pages", 1, 65536, 1 << 18),
        ("hit, unlimited, 16 pages", 1, 16, Config::UNLIMITED),
        ("hit, unlimited, 65536 pages", 1, 65536, Config::UNLIMITED),
        ("hit, unlimited, 4096 streams", 4096, 64, Config::UNLIMITED),
        ("walk, 1 stream", 1, 256, 0),
        ("walk at once, 1 stream", 1, 256, 0),
    ];
    for (_, (what, streams, pages, tlb)) in
        cases.into_iter().enumerate().filter(|(n, _)| only.is_none_or(|only| *n == only))
    {
        AT_ONCE.store(what.contains("once"), Relaxed);
        let (ns, missed) = measure(streams, pages, tlb);
        println!("{what:32} {ns:6.1} ns, {:.1} % missed", missed * 100.0);
    }
}
