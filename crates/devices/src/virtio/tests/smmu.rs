//! Devices behind an SMMU that translates: stage 1 with 4 KiB pages, as Linux sets it up.

use pgtable::descriptor as d;
use pgtable::{Builder, Stage1, TableMemory};
use smmu_model::{Config, StallModel};

use super::*;
use crate::dma::{Moved, Scatter, Segment};

const ALL: u64 = !feature::EVENT_IDX & !feature::RING_PACKED;
const PACKED: u64 = !feature::EVENT_IDX;

/// Device address of the start of RAM.
const IOVA: u64 = 0x12_3450_0000_0000 & 0xffff_ffff_ffff;
const STREAM_TABLE: u64 = RAM + 0x20_0000;
const CD: u64 = RAM + 0x20_2000;
const TABLES: std::ops::Range<u64> = RAM + 0x21_0000..RAM + 0x24_0000;
/// The driver maps everything below this offset in RAM.
const MAPPED: u64 = 0x20_0000;

const PAGE_ATTRS: u64 = d::AF | d::AP_USER | d::SH_INNER | d::XN | d::attr_index(3);

const CR0: u64 = 0x20;
const CR0ACK: u64 = 0x24;

struct Tables(GuestRam);

impl TableMemory for Tables {
    fn read(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.0.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    fn write(&mut self, address: u64, descriptor: u64) -> Option<()> {
        self.0.write(address, &descriptor.to_le_bytes()).then_some(())
    }
}

/// A bench whose RAM the device sees at [`IOVA`]; `stall` makes faults stall.
struct Translated {
    bench: Bench,
    smmu: Arc<Mutex<Smmu>>,
    builder: Builder,
}

impl Translated {
    fn new(device: impl VirtioDevice, stall: bool) -> Self {
        let stalls = if stall { StallModel::Both } else { StallModel::None };
        // `outstanding` takes back what it wrote to CR0 while the SMMU still waits.
        Self::behind(device, stall, Config { stall: stalls, aidr: 1, cr0_last: true, ..Config::linux() })
    }

    fn behind(device: impl VirtioDevice, stall: bool, config: Config) -> Self {
        let smmu = Arc::new(Mutex::new(Smmu::new(config)));
        let mut bench = Bench::behind(device, Some(smmu.clone()), feature::RING_PACKED);
        (bench.base, bench.offset) = (IOVA, RAM.wrapping_sub(IOVA));
        let mut tables = Tables(bench.ram.clone());
        let mut stage1 = Stage1 { tsz: 16, oas: 48, ..Stage1::default() };
        let mut builder = Builder::stage1(&mut stage1, &mut tables, TABLES).unwrap();
        builder.coarsest = 3;
        builder.map(&mut tables, IOVA, RAM, MAPPED, PAGE_ATTRS).unwrap();
        let doorbell = GITS_TRANSLATER & !0xfff;
        builder.map(&mut tables, doorbell, doorbell, 0x1000, PAGE_ATTRS & !d::SH_INNER).unwrap();
        let cd = 16 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | u64::from(stall) << 44 | 7 << 45 | 1 << 48;
        let write = |at: u64, value: u64| assert!(bench.ram.write(at, &value.to_le_bytes()));
        write(CD, cd);
        write(CD + 8, stage1.ttb);
        write(CD + 24, 0xff04_0044);
        let ste = STREAM_TABLE + u64::from(SLOT.0) * 64;
        write(ste, 1 | 5 << 1 | CD);
        write(ste + 8, 1 << 44);
        {
            let mut smmu = smmu.lock().unwrap();
            smmu.mmio_write(0x80, 8, STREAM_TABLE);
            smmu.mmio_write(0x88, 4, 6);
            smmu.mmio_write(CR0, 4, 1);
            assert_eq!(smmu.mmio_read(CR0ACK, 4), Some(1));
        }
        Self { bench, smmu, builder }
    }

    fn disk(stall: bool) -> Self {
        let data = (0..64 * 512).map(|i| (i / 512 * 31 + i) as u8).collect();
        Self::new(Blk::new(Box::new(MemoryBackend { data, ..MemoryBackend::default() })), stall)
    }

    fn map(&mut self, iova: u64, pa: u64) {
        self.builder.map(&mut Tables(self.bench.ram.clone()), iova, pa, 0x1000, PAGE_ATTRS).unwrap();
    }

    /// A read of 16 sectors into `data`.
    fn offer_read(&mut self, data: u64) {
        let b = &mut self.bench;
        let (head, status) = (b.page(0), b.page(1));
        b.write(head, &[0; 16]);
        b.write(status, &[0xff]);
        b.chain(0, 0, &[(head, 16, false), (data, 0x2000, true), (status, 1, true)]);
        b.offer(0, 0);
        b.kick(0);
    }

    fn step(&mut self) -> bool {
        let Some(at) = self.bench.host.next_step() else { return false };
        self.bench.now = self.bench.now.max(at);
        self.bench.host.step(self.bench.now);
        true
    }

    /// Whether the SMMU still waits for a transaction: it can be disabled only when it does not.
    fn outstanding(&self) -> bool {
        let mut smmu = self.smmu.lock().unwrap();
        smmu.mmio_write(CR0, 4, 0);
        smmu.mmio_read(CR0ACK, 4) != Some(0)
    }
}

#[test]
pub(super) fn rings_data_and_interrupts_are_translated() {
    [ALL, PACKED].into_iter().for_each(translated);
}

fn translated(features: u64) {
    let mut t = Translated::disk(false);
    t.bench.start(features);
    // Two pages that are neighbours for the device and not in memory.
    t.map(IOVA + 0x100_0000, RAM + 0x18_0000);
    t.map(IOVA + 0x100_1000, RAM + 0x14_0000);
    t.offer_read(IOVA + 0x100_0000);
    t.bench.run();
    assert_eq!(t.bench.take_used(0), Some((0, 0x2001)));
    assert_eq!(t.bench.interrupts(), [0x101]);
    let expected: Vec<u8> = (0..0x2000).map(|i| (i / 512 * 31 + i) as u8).collect();
    assert_eq!(t.bench.read(IOVA + 0x18_0000, 0x1000), expected[..0x1000]);
    assert_eq!(t.bench.read(IOVA + 0x14_0000, 0x1000), expected[0x1000..]);
    let stats = t.bench.host.functions().find(|f| f.0 == SLOT).unwrap().1.port().unwrap().stats();
    assert_eq!((stats.aborts, stats.msis), (0, 1));
    assert!(stats.fetches > 4 && stats.beats >= 5, "{stats:?}");
    assert!(!t.outstanding());
}

#[test]
pub(super) fn every_device_works_through_it() {
    let mut t = Translated::new(Console::new(), false);
    t.bench.start(ALL);
    t.bench.write(IOVA + 0x10_0000, b"abc");
    assert_eq!(t.bench.request(1, &[(IOVA + 0x10_0000, 3, false)]), Some((0, 0)));
    assert_eq!(t.bench.host.with_device(SLOT, Console::take_output), Some(b"abc".to_vec()));
    let mut t = Translated::new(Rng::new(5), false);
    t.bench.start(ALL);
    assert_eq!(t.bench.request(0, &[(IOVA + 0x10_0000, 64, true)]), Some((0, 64)));
    let mut t = Translated::new(Net::new([2, 0, 0, 0, 0, 1]), false);
    t.bench.start(ALL);
    t.bench.host.with_device(SLOT, |n: &mut Net| n.receive(0, &[9; 60]));
    assert_eq!(t.bench.request(0, &[(IOVA + 0x10_0000, 1526, true)]), Some((0, 72)));
    assert_eq!(t.bench.read(IOVA + 0x10_0000 + 12, 60), [9; 60]);
}

#[test]
pub(super) fn what_is_not_mapped_is_an_error_of_the_request_or_the_device() {
    [ALL, PACKED].into_iter().for_each(not_mapped);
}

fn not_mapped(features: u64) {
    let mut t = Translated::disk(false);
    t.bench.start(features);
    // Physical addresses mean nothing to it.
    t.offer_read(RAM + 0x10_0000);
    t.bench.run();
    assert!(t.bench.take_used(0).is_some());
    assert_eq!(t.bench.read(t.bench.page(1), 1), [1], "VIRTIO_BLK_S_IOERR");
    assert_eq!(t.bench.status(), 15);
    // A page is mapped and the next is not: the first beat happens.
    t.map(IOVA + 0x100_0000, RAM + 0x18_0000);
    t.offer_read(IOVA + 0x100_0000);
    t.bench.run();
    assert_eq!(t.bench.take_used(0), Some((0, 0x1000)));
    assert_eq!(t.bench.read(t.bench.page(1), 1), [1]);
    assert_ne!(t.bench.read(IOVA + 0x18_0000, 512), [0; 512]);
    // Rings out of reach.
    t.bench.negotiate(features);
    t.bench.set(0x16, 2, 0);
    for register in [0x20, 0x28, 0x30] {
        t.bench.set(register, 8, RAM + 0x1000);
    }
    t.bench.set(0x1c, 2, 1);
    t.bench.set(0x14, 1, 15);
    t.bench.run();
    assert_eq!(t.bench.status() & 64, 64);
    assert!(!t.outstanding());
}

#[test]
pub(super) fn no_transaction_outlives_a_reset_or_the_loss_of_bus_mastering() {
    for (stop, how) in (0..40).flat_map(|stop| (0..6).map(move |how| (stop, how))) {
        let mut t = Translated::disk(false);
        t.bench.start(if how < 3 { ALL } else { PACKED });
        t.offer_read(IOVA + 0x10_8000);
        for _ in 0..stop {
            t.step();
        }
        match how % 3 {
            0 => t.bench.host.config_write(0, ECAM + 4, 2, u64::from(COMMAND_MEMORY)),
            1 => t.bench.host.reset(0),
            _ => {
                // The second write finds the reset done.
                t.bench.set(0x14, 1, 0);
                t.bench.set(0x14, 1, 1);
                while t.step() {}
            }
        }
        assert!(!t.outstanding(), "stopped at {stop} by {how}");
    }
}

#[test]
fn each_fetch_takes_as_long_as_the_smmu_says() {
    let config = Config { lat_walk: 7, ..Config::linux() };
    let t = Translated::behind(Rng::new(5), false, config);
    let port = t.bench.host.fabric().port(SLOT.requester_id(0));
    port.set_enabled(true);
    let mut scatter = Scatter::default();
    scatter.push(Segment { iova: IOVA + 0x10_0000, len: 8 });
    let mut waits = Vec::new();
    while let Moved::Translated(fetch) = scatter.step_write(&port, &[1; 4], 4096).unwrap() {
        waits.push(fetch);
    }
    // STE, CD, four levels; the last fetch comes with the translation.
    assert_eq!(waits, [7, 7, 7, 7, 7, 7, 0]);
}

#[test]
pub(super) fn a_latched_translation_is_used_whatever_becomes_of_the_tables() {
    let mut t = Translated::disk(false);
    let port = t.bench.host.fabric().port(SLOT.requester_id(0));
    port.set_enabled(true);
    let mut scatter = Scatter::default();
    scatter.push(Segment { iova: IOVA + 0x10_0000, len: 8 });
    let mut steps = 0;
    while scatter.step_write(&port, &[1; 4], 4096).unwrap() == Moved::Translated(0) {
        steps += 1;
        if steps == 1 {
            assert!(t.outstanding(), "the walk is under way");
            t.smmu.lock().unwrap().mmio_write(CR0, 4, 1);
        }
    }
    // STE, CD, four levels, and the latch with the last of them.
    assert!(steps >= 6, "{steps} steps");
    assert_eq!(scatter.step_write(&port, &[2; 4], 4096), Ok(Moved::Translated(0)));
    t.map(IOVA + 0x10_0000, RAM + 0x11_0000);
    assert_eq!(scatter.step_write(&port, &[2; 4], 4096), Ok(Moved::Beat(4)));
    assert_eq!(t.bench.read(IOVA + 0x10_0000, 8), [1, 1, 1, 1, 2, 2, 2, 2]);
    assert!(!t.outstanding());
}

#[test]
pub(super) fn a_device_waits_while_a_fault_stalls() {
    let mut t = Translated::disk(true);
    t.bench.start(ALL);
    t.offer_read(IOVA + 0x100_0000);
    (0..100).for_each(|_| assert!(t.step(), "it asks again and again"));
    assert_eq!(t.bench.take_used(0), None);
    t.bench.set(0x14, 1, 0);
    t.bench.set(0x14, 1, 1);
    assert!(!t.step());
    assert!(!t.outstanding());
    // Bookkeeping cannot wait.
    let port = t.bench.host.fabric().port(SLOT.requester_id(0));
    port.set_enabled(true);
    t.smmu.lock().unwrap().mmio_write(CR0, 4, 1);
    assert!(vm_memory::Bytes::read_obj::<u32>(&port, vm_memory::GuestAddress(0x1000)).is_err());
    assert!(!t.outstanding());
    assert_eq!(port.stats().aborts, 1);
}
