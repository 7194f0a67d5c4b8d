//! Random traffic against a naive model: one plain struct an interrupt, everything worked out from scratch each time.

use proptest::prelude::*;

use super::*;

const CPUS: usize = 2;
/// A few of each kind: SGIs, PPIs and SPIs in both banks.
const SGIS: [u32; 2] = [0, 9];
const PPIS: [u32; 2] = [16, 27];
const SPIS: [u32; 4] = [32, 45, 64, 95];
const ANY: u64 = 1 << 31;

#[derive(Clone, Debug, Default)]
struct Interrupt {
    enabled: bool,
    latched: bool,
    line: bool,
    active: bool,
    edge: bool,
    group: usize,
    priority: u8,
    route: u64,
}

impl Interrupt {
    fn pending(&self) -> bool {
        self.latched || (!self.edge && self.line)
    }
}

#[derive(Clone, Debug, Default)]
struct Cpu {
    private: std::collections::BTreeMap<u32, Interrupt>,
    pmr: u8,
    bpr: [u8; 2],
    enable: [bool; 2],
    cbpr: bool,
    eoi_mode: bool,
    asleep: bool,
    /// Group and group priority of what was acknowledged and not yet ended, the most urgent last.
    stack: Vec<(usize, u8)>,
}

impl Cpu {
    fn group_priority(&self, group: usize, priority: u8) -> u8 {
        // Table 4-8 of IHI 0069 counts the subpriority bits.
        let subpriority_bits = match (group, self.cbpr) {
            (1, false) => self.bpr[1],
            _ => self.bpr[0] + 1,
        };
        let size = 1u32 << subpriority_bits;
        (u32::from(priority) / size * size) as u8
    }

    fn running(&self) -> u8 {
        self.stack.last().map_or(0xff, |&(_, priority)| priority)
    }
}

#[derive(Clone, Debug)]
struct Model {
    cpus: Vec<Cpu>,
    shared: std::collections::BTreeMap<u32, Interrupt>,
    enable: [bool; 2],
}

impl Model {
    fn new() -> Self {
        let of = |edge| Interrupt { group: 1, priority: 0xa0, edge, ..Interrupt::default() };
        let private = SGIS.map(|n| (n, of(true))).into_iter().chain(PPIS.map(|n| (n, of(false)))).collect();
        let cpu = Cpu { private, pmr: 0xf8, bpr: [2, 3], enable: [true; 2], ..Cpu::default() };
        Self {
            cpus: vec![cpu; CPUS],
            shared: SPIS.map(|n| (n, of(false))).into_iter().collect(),
            enable: [true; 2],
        }
    }

    fn get(&mut self, cpu: usize, intid: u32) -> &mut Interrupt {
        if intid < 32 {
            self.cpus[cpu].private.get_mut(&intid).unwrap()
        } else {
            self.shared.get_mut(&intid).unwrap()
        }
    }

    fn goes_to(&self, interrupt: &Interrupt, cpu: usize) -> bool {
        if interrupt.route == ANY {
            let takes = |cpu: &Cpu| !cpu.asleep && cpu.enable[interrupt.group];
            self.cpus.iter().position(takes) == Some(cpu)
        } else {
            interrupt.route == cpu as u64
        }
    }

    /// Every deliverable interrupt, sorted; the first wins.
    fn best(&self, cpu: usize) -> Option<(u8, u32, usize)> {
        let own = &self.cpus[cpu];
        let mut all: Vec<_> = own
            .private
            .iter()
            .chain(self.shared.iter().filter(|(_, i)| self.goes_to(i, cpu)))
            .filter(|(_, i)| i.enabled && i.pending() && !i.active)
            .filter(|(_, i)| !own.asleep && own.enable[i.group] && self.enable[i.group])
            .map(|(&intid, i)| (i.priority, intid, i.group))
            .collect();
        all.sort_unstable();
        all.first().copied()
    }

    fn signalled(&self, cpu: usize) -> Option<(u8, u32, usize)> {
        let own = &self.cpus[cpu];
        self.best(cpu).filter(|&(priority, _, group)| {
            priority < own.pmr && own.group_priority(group, priority) < own.running()
        })
    }

    fn ack(&mut self, cpu: usize, group: usize) -> u32 {
        let Some((priority, intid, _)) = self.signalled(cpu).filter(|s| s.2 == group) else {
            return SPURIOUS;
        };
        let group_priority = self.cpus[cpu].group_priority(group, priority);
        self.cpus[cpu].stack.push((group, group_priority));
        let interrupt = self.get(cpu, intid);
        interrupt.active = true;
        interrupt.latched = false;
        intid
    }

    fn end(&mut self, cpu: usize, group: usize, intid: u32) {
        if self.cpus[cpu].stack.last().is_some_and(|top| top.0 == group) {
            self.cpus[cpu].stack.pop();
            if !self.cpus[cpu].eoi_mode {
                self.get(cpu, intid).active = false;
            }
        }
    }

    fn line(&mut self, cpu: usize, intid: u32, level: bool) {
        let interrupt = self.get(cpu, intid);
        interrupt.latched |= interrupt.edge && level && !interrupt.line;
        interrupt.line = level;
    }
}

#[derive(Clone, Debug)]
enum Op {
    Line(usize, u32, bool),
    Enable(usize, u32, bool),
    Pend(usize, u32, bool),
    Active(usize, u32, bool),
    Priority(usize, u32, u8),
    Group(usize, u32, usize),
    Edge(u32, bool),
    Route(u32, u64),
    Sgi(usize, u32, usize, u8),
    Ack(usize, usize),
    End(usize, usize, u32),
    EndLast(usize),
    Deactivate(usize, u32),
    Mask(usize, u8),
    Point(usize, usize, u8),
    Control(usize, bool, bool),
    Open(usize, usize, bool),
    Distributor(bool, bool),
    Sleep(usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let cpu = 0..CPUS;
    let intid = proptest::sample::select([&SGIS[..], &PPIS, &SPIS].concat());
    let wired = proptest::sample::select([&PPIS[..], &SPIS].concat());
    let spi = proptest::sample::select(SPIS.to_vec());
    let route = proptest::sample::select(vec![0, 1, ANY]);
    let on = any::<bool>;
    let mostly = || proptest::bool::weighted(0.9);
    let group = 0..2usize;
    prop_oneof![
        8 => (cpu.clone(), wired, on()).prop_map(|(c, i, l)| Op::Line(c, i, l)),
        6 => (cpu.clone(), intid.clone(), mostly()).prop_map(|(c, i, l)| Op::Enable(c, i, l)),
        4 => (cpu.clone(), intid.clone(), on()).prop_map(|(c, i, l)| Op::Pend(c, i, l)),
        1 => (cpu.clone(), intid.clone(), on()).prop_map(|(c, i, l)| Op::Active(c, i, l)),
        5 => (cpu.clone(), intid.clone(), any::<u8>()).prop_map(|(c, i, p)| Op::Priority(c, i, p)),
        2 => (cpu.clone(), intid.clone(), group.clone()).prop_map(|(c, i, g)| Op::Group(c, i, g)),
        1 => (spi.clone(), on()).prop_map(|(i, e)| Op::Edge(i, e)),
        2 => (spi, route).prop_map(|(i, r)| Op::Route(i, r)),
        2 => (cpu.clone(), proptest::sample::select(SGIS.to_vec()), group.clone(), 0..4u8)
            .prop_map(|(c, i, g, t)| Op::Sgi(c, i, g, t)),
        10 => (cpu.clone(), group.clone()).prop_map(|(c, g)| Op::Ack(c, g)),
        2 => (cpu.clone(), group.clone(), intid.clone()).prop_map(|(c, g, i)| Op::End(c, g, i)),
        6 => cpu.clone().prop_map(Op::EndLast),
        2 => (cpu.clone(), intid).prop_map(|(c, i)| Op::Deactivate(c, i)),
        1 => (cpu.clone(), any::<u8>()).prop_map(|(c, p)| Op::Mask(c, p | 0xc0)),
        1 => (cpu.clone(), group.clone(), 0..8u8).prop_map(|(c, g, p)| Op::Point(c, g, p)),
        1 => (cpu.clone(), on(), on()).prop_map(|(c, e, b)| Op::Control(c, e, b)),
        1 => (cpu.clone(), group, mostly()).prop_map(|(c, g, e)| Op::Open(c, g, e)),
        1 => (mostly(), mostly()).prop_map(|(a, b)| Op::Distributor(a, b)),
        1 => (cpu, proptest::bool::weighted(0.2)).prop_map(|(c, s)| Op::Sleep(c, s)),
    ]
}

/// Applies an operation to both; panics where they differ.
fn apply(op: &Op, bench: &mut Bench, model: &mut Model, taken: &mut [Vec<u32>; CPUS]) {
    match *op {
        Op::Line(cpu, intid, level) => {
            model.line(cpu, intid, level);
            if intid < 32 {
                bench.gic.set_ppi(cpu, intid, level);
            } else {
                bench.gic.set_spi(intid, level);
            }
        }
        Op::Enable(cpu, intid, on) => {
            model.get(cpu, intid).enabled = on;
            bench.bit(cpu, if on { 0x100 } else { 0x180 }, intid);
        }
        Op::Pend(cpu, intid, on) => {
            model.get(cpu, intid).latched = on;
            bench.bit(cpu, if on { 0x200 } else { 0x280 }, intid);
        }
        Op::Active(cpu, intid, on) => {
            model.get(cpu, intid).active = on;
            bench.bit(cpu, if on { 0x300 } else { 0x380 }, intid);
        }
        Op::Priority(cpu, intid, priority) => {
            model.get(cpu, intid).priority = priority / 8 * 8;
            bench.priority(cpu, intid, priority);
        }
        Op::Group(cpu, intid, group) => {
            model.get(cpu, intid).group = group;
            let bank = u64::from(intid / 32);
            let (bit, sgi) = (1 << (intid % 32), cpu as u64 * 0x2_0000 + 0x1_0080);
            let old =
                if bank == 0 { bench.gic.gicr_read(sgi, 4) } else { bench.gic.gicd_read(0x80 + 4 * bank, 4) };
            let new = if group == 1 { old | bit } else { old & !bit };
            if bank == 0 {
                bench.gic.gicr_write(sgi, 4, new);
            } else {
                bench.gic.gicd_write(0x80 + 4 * bank, 4, new);
            }
        }
        Op::Edge(intid, edge) => {
            model.get(0, intid).edge = edge;
            let (offset, bit) = (0xc00 + 4 * u64::from(intid / 16), 2 << (2 * (intid % 16)));
            let old = bench.gic.gicd_read(offset, 4);
            bench.gic.gicd_write(offset, 4, if edge { old | bit } else { old & !bit });
        }
        Op::Route(intid, route) => {
            model.get(0, intid).route = route;
            bench.route(intid, route);
        }
        Op::Sgi(cpu, intid, group, targets) => {
            for target in (0..CPUS).filter(|t| targets >> t & 1 != 0) {
                let sgi = model.get(target, intid);
                sgi.latched |= sgi.group == group;
            }
            bench.write(cpu, SGIR[group], u64::from(intid) << 24 | u64::from(targets));
        }
        Op::Ack(cpu, group) => {
            let expected = model.ack(cpu, group);
            assert_eq!(bench.read(cpu, IAR[group]), expected);
            if expected != SPURIOUS {
                taken[cpu].push(expected);
            }
        }
        Op::End(cpu, group, intid) => end(bench, model, cpu, group, intid),
        Op::EndLast(cpu) => {
            if let (Some(intid), Some(&(group, _))) = (taken[cpu].pop(), model.cpus[cpu].stack.last()) {
                end(bench, model, cpu, group, intid);
            }
        }
        Op::Deactivate(cpu, intid) => {
            if model.cpus[cpu].eoi_mode {
                model.get(cpu, intid).active = false;
            }
            bench.write(cpu, DIR, intid.into());
        }
        Op::Mask(cpu, mask) => {
            model.cpus[cpu].pmr = mask / 8 * 8;
            bench.write(cpu, PMR, mask.into());
        }
        Op::Point(cpu, group, point) => {
            let own = &mut model.cpus[cpu];
            if group == 0 {
                own.bpr[0] = point.max(2);
            } else if !own.cbpr {
                own.bpr[1] = point.max(3);
            }
            bench.write(cpu, BPR[group], point.into());
        }
        Op::Control(cpu, eoi_mode, cbpr) => {
            (model.cpus[cpu].eoi_mode, model.cpus[cpu].cbpr) = (eoi_mode, cbpr);
            bench.write(cpu, CTLR, u64::from(eoi_mode) << 1 | u64::from(cbpr));
        }
        Op::Open(cpu, group, on) => {
            model.cpus[cpu].enable[group] = on;
            bench.write(cpu, IGRPEN[group], on.into());
        }
        Op::Distributor(group0, group1) => {
            model.enable = [group0, group1];
            bench.gic.gicd_write(0, 4, u64::from(group0) | u64::from(group1) << 1);
        }
        Op::Sleep(cpu, asleep) => {
            model.cpus[cpu].asleep = asleep;
            bench.gic.gicr_write(cpu as u64 * 0x2_0000 + 0x14, 4, if asleep { 2 } else { 0 });
        }
    }
}

fn end(bench: &mut Bench, model: &mut Model, cpu: usize, group: usize, intid: u32) {
    model.end(cpu, group, intid);
    bench.write(cpu, EOIR[group], intid.into());
}

fn check(bench: &mut Bench, model: &Model) {
    for cpu in 0..CPUS {
        let signalled = model.signalled(cpu).map(|(_, _, group)| group);
        assert_eq!(bench.gic.irq(cpu), (signalled == Some(1), signalled == Some(0)));
        assert_eq!(bench.read(cpu, RPR), u32::from(model.cpus[cpu].running()));
        for (group, register) in HPPIR.into_iter().enumerate() {
            let best = model.best(cpu).filter(|best| best.2 == group).map_or(SPURIOUS, |best| best.1);
            assert_eq!(bench.read(cpu, register), best);
        }
    }
    for (&intid, interrupt) in &model.shared {
        let bit = |bench: &mut Bench, register: u64| {
            bench.gic.gicd_read(register + 4 * u64::from(intid / 32), 4) >> (intid % 32) & 1 != 0
        };
        assert_eq!(bit(bench, 0x200), interrupt.pending(), "pending of {intid}");
        assert_eq!(bit(bench, 0x300), interrupt.active, "active of {intid}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn agrees_with_the_naive_model(ops in proptest::collection::vec(op(), 1..150)) {
        let mut bench = Bench::new(CPUS as u32);
        let mut model = Model::new();
        let mut taken = [Vec::new(), Vec::new()];
        for op in &ops {
            apply(op, &mut bench, &mut model, &mut taken);
            check(&mut bench, &model);
        }
    }
}
