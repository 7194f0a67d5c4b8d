//! Random ITS commands and MSIs against a naive model that keeps maps where the ITS keeps tables in memory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::lpis::{CONFIG, PENDING};
use super::*;

const CPUS: u64 = 3;
const DEVICES: u64 = 2;
const LPIS: std::ops::Range<u64> = 8191..8195;

#[derive(Clone, Debug, Default)]
struct Model {
    /// Number of EventIDs of a mapped device.
    devices: BTreeMap<u64, u64>,
    events: BTreeMap<(u64, u64), (u64, u64)>,
    collections: BTreeMap<u64, u64>,
    pending: BTreeSet<(u64, u64)>,
    /// Configuration bytes as each PE last saw them, and in memory.
    seen: BTreeMap<(u64, u64), u8>,
    memory: BTreeMap<u64, u8>,
}

#[derive(Clone, Debug)]
enum Op {
    Mapd(u64, u64),
    Mapc(u64, u64, bool),
    Mapti(u64, u64, u64, u64),
    Movi(u64, u64, u64),
    Movall(u64, u64),
    Event(u8, u64, u64),
    Invall(u64),
    Msi(u64, u64),
    Configure(u64, u8),
    Ack(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let device = 0..DEVICES;
    let event = 0..5u64;
    let icid = 0..4u64;
    let cpu = 0..CPUS + 1;
    prop_oneof![
        1 => (device.clone(), 1..4u64).prop_map(|(d, bits)| Op::Mapd(d, bits)),
        1 => (icid.clone(), cpu.clone(), proptest::bool::weighted(0.8)).prop_map(|(i, c, v)| Op::Mapc(i, c, v)),
        4 => (device.clone(), event.clone(), LPIS, icid.clone()).prop_map(|(d, e, l, i)| Op::Mapti(d, e, l, i)),
        2 => (device.clone(), event.clone(), icid.clone()).prop_map(|(d, e, i)| Op::Movi(d, e, i)),
        1 => (cpu.clone(), cpu).prop_map(|(a, b)| Op::Movall(a, b)),
        4 => (proptest::sample::select(vec![0x03u8, 0x04, 0x0c, 0x0f]), device.clone(), event.clone())
            .prop_map(|(k, d, e)| Op::Event(k, d, e)),
        2 => icid.prop_map(Op::Invall),
        6 => (device, event).prop_map(|(d, e)| Op::Msi(d, e)),
        4 => (LPIS, any::<u8>()).prop_map(|(l, c)| Op::Configure(l, c)),
        3 => (0..CPUS).prop_map(Op::Ack),
    ]
}

impl Model {
    fn new() -> Self {
        Self { collections: (0..CPUS).map(|n| (n, n)).collect(), ..Self::default() }
    }

    /// LPI and PE of an event.
    fn translate(&self, device: u64, event: u64) -> Option<(u64, u64)> {
        self.devices.get(&device).filter(|&&events| event < events)?;
        let &(lpi, icid) = self.events.get(&(device, event))?;
        Some((lpi, *self.collections.get(&icid)?))
    }

    fn in_memory(&self, lpi: u64) -> u8 {
        self.memory.get(&lpi).copied().unwrap_or(0xa1)
    }

    fn pend(&mut self, cpu: u64, lpi: u64) {
        let byte = self.in_memory(lpi);
        if self.pending.insert((cpu, lpi)) {
            self.seen.entry((cpu, lpi)).or_insert(byte);
        }
    }

    fn invalidate(&mut self, cpu: u64, lpi: u64) {
        self.seen.remove(&(cpu, lpi));
        if self.pending.contains(&(cpu, lpi)) {
            self.seen.insert((cpu, lpi), self.in_memory(lpi));
        }
    }

    fn best(&self, cpu: u64) -> Option<u64> {
        let ready = self.pending.iter().filter(|p| p.0 == cpu);
        let ready = ready.map(|&(cpu, lpi)| (self.seen[&(cpu, lpi)], lpi)).filter(|(byte, _)| byte & 1 != 0);
        ready.map(|(byte, lpi)| (byte & 0xf8, lpi)).min().filter(|&(p, _)| p < 0xf8).map(|(_, lpi)| lpi)
    }
}

/// Applies an operation to both; panics where they disagree about its validity.
fn apply(op: &Op, bench: &mut Bench, model: &mut Model) {
    match *op {
        Op::Mapd(device, bits) => {
            // The tables of a device that is mapped anew are zeroed by software.
            bench.ram.write(lpis::ITT + device * 0x1000, &[0; 64]);
            model.events.retain(|&(d, _), _| d != device);
            assert!(bench.mapd(device, bits));
            model.devices.insert(device, 1 << bits);
        }
        Op::Mapc(icid, cpu, valid) => {
            let ok = bench.command([0x09, 0, u64::from(valid) << 63 | cpu << 16 | icid, 0]);
            assert_eq!(ok, !valid || cpu < CPUS);
            if !valid {
                model.collections.remove(&icid);
            } else if cpu < CPUS {
                model.collections.insert(icid, cpu);
            }
        }
        Op::Mapti(device, event, lpi, icid) => {
            let valid = lpi >= 8192 && model.devices.get(&device).is_some_and(|&events| event < events);
            assert_eq!(bench.mapti(device, event, lpi, icid), valid);
            if valid {
                model.events.insert((device, event), (lpi, icid));
            }
        }
        Op::Movi(device, event, icid) => {
            let to = model.collections.get(&icid).copied();
            let route = model.translate(device, event).zip(to);
            assert_eq!(bench.command([device << 32 | 0x01, event, icid, 0]), route.is_some());
            if let Some(((lpi, from), to)) = route {
                model.events.insert((device, event), (lpi, icid));
                if from != to && model.pending.remove(&(from, lpi)) {
                    model.pend(to, lpi);
                }
            }
        }
        Op::Movall(from, to) => {
            let valid = from < CPUS && to < CPUS;
            assert_eq!(bench.command([0x0e, 0, from << 16, to << 16]) || from == to, valid || from == to);
            if valid && from != to {
                let moved: Vec<_> = model.pending.iter().copied().filter(|p| p.0 == from).collect();
                for (_, lpi) in moved {
                    model.pending.remove(&(from, lpi));
                    model.pend(to, lpi);
                }
            }
        }
        Op::Event(kind, device, event) => {
            let target = model.translate(device, event);
            assert_eq!(bench.command([device << 32 | u64::from(kind), event, 0, 0]), target.is_some());
            if let Some((lpi, cpu)) = target {
                match kind {
                    0x03 => model.pend(cpu, lpi),
                    0x0c => model.invalidate(cpu, lpi),
                    _ => {
                        model.pending.remove(&(cpu, lpi));
                        if kind == 0x0f {
                            model.events.remove(&(device, event));
                        }
                    }
                }
            }
        }
        Op::Invall(icid) => {
            let cpu = model.collections.get(&icid).copied();
            assert_eq!(bench.command([0x0d, 0, icid, 0]), cpu.is_some());
            if let Some(cpu) = cpu {
                for lpi in LPIS {
                    model.invalidate(cpu, lpi);
                }
            }
        }
        Op::Msi(device, event) => {
            bench.msi(device as u32, event as u32);
            if let Some((lpi, cpu)) = model.translate(device, event) {
                model.pend(cpu, lpi);
            }
        }
        Op::Configure(lpi, byte) => {
            if lpi >= 8192 {
                bench.ram.write(CONFIG + lpi - 8192, &[byte]);
                model.memory.insert(lpi, byte);
            }
        }
        Op::Ack(cpu) => {
            let expected = model.best(cpu);
            let intid = bench.ack(cpu as usize);
            assert_eq!(u64::from(intid), expected.unwrap_or(SPURIOUS.into()));
            if let Some(lpi) = expected {
                model.pending.remove(&(cpu, lpi));
                bench.eoi(cpu as usize, intid);
            }
        }
    }
}

/// Turns LPIs off, so that the redistributors write their pending tables, and compares those.
fn check_pending_tables(bench: &mut Bench, model: &Model) {
    for cpu in 0..CPUS {
        bench.gic.gicr_write(cpu * 0x2_0000, 4, 0);
        let mut bytes = [0; 8];
        assert!(bench.ram.read(PENDING + cpu * 0x1_0000 + 1024, &mut bytes));
        let expected =
            model.pending.iter().filter(|p| p.0 == cpu).fold(0u64, |bits, p| bits | 1 << (p.1 - 8192));
        assert_eq!(u64::from_le_bytes(bytes), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn agrees_with_the_naive_model(ops in proptest::collection::vec(op(), 1..120)) {
        let mut bench = Bench::with_its(CPUS as u32);
        let mut model = Model::new();
        for device in 0..DEVICES {
            apply(&Op::Mapd(device, 3), &mut bench, &mut model);
            apply(&Op::Mapti(device, device, 8192 + device, device), &mut bench, &mut model);
        }
        for op in &ops {
            apply(op, &mut bench, &mut model);
            for cpu in 0..CPUS {
                prop_assert_eq!(bench.irq(cpu as usize), model.best(cpu).is_some());
            }
        }
        check_pending_tables(&mut bench, &model);
    }
}
