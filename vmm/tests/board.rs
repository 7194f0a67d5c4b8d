//! The board without vCPUs: whoever writes these tests is the vCPU.

use aarch64::platform::{At, Platform};
use devices::dma::{ItsInbox, Message};
use vmm::assemble::build;
use vmm::layout as at;
use vmm::machine::Machine;
use vmm::options::{MachineOptions, PlacedSmmu};
use vmm::plug::RootPortKind;
use vmm::state::MachineState;

const RAM: u64 = 0x4000_0000;

struct Bench {
    machine: Machine,
    now: u64,
}

impl Bench {
    fn new(first: &str, more: &[&str]) -> Self {
        let placed = |text: &str| text.parse::<PlacedSmmu>().unwrap();
        let options = MachineOptions {
            ram: 64 << 20,
            smmu: placed(first).smmu,
            more_smmus: more.iter().map(|text| placed(text)).collect(),
            ..MachineOptions::default()
        };
        options.check().unwrap();
        Self { machine: build(&options).unwrap(), now: 0 }
    }

    fn read(&mut self, pa: u64) -> u64 {
        let at = At { cpu: 0, now: self.now };
        self.machine.board.mmio_read(at, pa, 4).unwrap()
    }

    fn write(&mut self, pa: u64, value: u64) {
        let at = At { cpu: 0, now: self.now };
        self.machine.board.mmio_write(at, pa, 4, value).unwrap();
    }

    fn write64(&mut self, pa: u64, value: u64) {
        let at = At { cpu: 0, now: self.now };
        self.machine.board.mmio_write(at, pa, 8, value).unwrap();
    }

    /// Lets everything step up to `end`. Answers how many steps that were.
    fn run(&mut self, end: u64) -> usize {
        let mut steps = 0;
        while let Some(next) = self.machine.board.next_step(self.now).filter(|&next| next <= end) {
            self.now = self.now.max(next);
            assert!(self.machine.board.step(self.now));
            steps += 1;
        }
        self.now = self.now.max(end);
        steps
    }

    /// Makes an SPI edge-triggered.
    fn edge(&mut self, spi: u32) {
        let intid = u64::from(spi + 32);
        let register = at::GICD.base + 0xc00 + intid / 16 * 4;
        let old = self.read(register);
        self.write(register, old | 2 << (intid % 16 * 2));
    }

    fn pending(&mut self, spi: u32) -> bool {
        let intid = u64::from(spi + 32);
        self.read(at::GICD.base + 0x200 + intid / 32 * 4) >> (intid % 32) & 1 == 1
    }
}

#[test]
fn each_smmu_has_registers_and_wires_of_its_own() {
    const CMDQ_BASE: u64 = 0x90;
    let mut b = Bench::new("sidsize=16", &["sidsize=20,st2l=on", "sidsize=24,st2l=on"]);
    let sidsizes = [0, 1, 2].map(|n| b.read(at::smmu(n).base + 4) & 0x3f);
    assert_eq!(sidsizes, [16, 20, 24]);
    assert!(b.machine.board.mmio_read(At { cpu: 0, now: 0 }, at::smmu(3).base, 4).is_err());
    // A command queue outside memory: CERROR_ABT, and GERROR's wire of that SMMU.
    for n in 0..3 {
        b.edge(at::smmu_spi(n) + 3);
    }
    let base = at::smmu(1).base;
    b.write(base + 0x50, 1);
    b.write64(base + CMDQ_BASE, 0x1000 | 4);
    b.write(base + 0x20, 1 << 3);
    b.write(base + 0x98, 1);
    b.run(10_000);
    assert_eq!(b.read(base + 0x60) & 1, 1, "GERROR.CMDQ_ERR");
    assert_eq!([0, 1, 2].map(|n| b.pending(at::smmu_spi(n) + 3)), [false, true, false]);
}

#[test]
fn performance_monitors_count_time_and_interrupt() {
    let mut b = Bench::new("pmcg=4,msi=off", &["pmcg=2,pmcg_bits=32"]);
    let base = at::PMCGS.part(1, 0x2_0000).base;
    assert_eq!(b.read(base + 0xe00) & 0x3f, 1, "two counters");
    b.edge(at::PMCG_SPI + 1);
    b.write(base + 0x1_0000, u32::MAX as u64 - 1000);
    b.write(base + 0xc00, 1);
    b.write(base + 0xc40, 1);
    b.write(base + 0xe50, 1);
    b.now = 500;
    b.write(base + 0xe04, 1);
    b.run(1000);
    assert!(!b.pending(at::PMCG_SPI + 1));
    assert_eq!(b.read(base + 0x1_0000), u64::from(u32::MAX) - 500);
    assert!(b.run(2000) > 0);
    assert!(b.pending(at::PMCG_SPI + 1) && !b.pending(at::PMCG_SPI));
    assert_eq!(b.read(base + 0x1_0c80), 1, "OVS");
    assert_eq!(b.run(1_000_000), 0, "once");
    // An SMMU without monitors has nothing there.
    assert!(b.machine.board.mmio_read(At { cpu: 0, now: 0 }, at::PMCGS.part(2, 0x2_0000).base, 4).is_err());
}

#[test]
fn an_its_with_much_to_do_takes_its_time() {
    const ITS: u64 = at::ITS.base;
    const COMMANDS: u64 = 0x1_0000 / 32 - 1;
    let mut b = Bench::new("on", &[]);
    for n in 0..COMMANDS {
        // INVALL
        b.machine.board.ram.write(RAM + n * 32, &0x0du64.to_le_bytes());
    }
    b.write64(ITS + 0x80, 1 << 63 | RAM | 0xf);
    b.write(ITS, 1);
    b.write64(ITS + 0x88, COMMANDS * 32);
    assert_eq!(b.run(0), 0, "nothing happens inside the write");
    assert_eq!(b.run(1000), 10);
    let all = b.run(1_000_000) + 10;
    assert_eq!((all as u64, b.read(ITS + 0x90)), (COMMANDS, COMMANDS * 32));
}

#[test]
fn an_smmus_message_waits_for_an_its_that_is_full() {
    let mut b = Bench::new("on", &[]);
    // An ITS that is busy with commands takes no messages.
    b.write64(at::ITS.base + 0x80, 1 << 63 | RAM | 0xf);
    b.write(at::ITS.base, 1);
    b.write64(at::ITS.base + 0x88, 0x8000);
    let inbox = b.machine.board.inbox.clone();
    let message = Message { device_id: 8, event_id: 0 };
    while inbox.post(message) {}
    // GERROR's MSI to the doorbell, for a command queue outside memory.
    let base = at::smmu(0).base;
    b.write64(base + 0x68, at::GITS_TRANSLATER);
    b.write(base + 0x70, 0x55);
    b.write(base + 0x50, 1);
    b.write64(base + 0x90, 0x1000 | 4);
    b.write(base + 0x20, 1 << 3);
    b.write(base + 0x98, 1);
    b.run(50_000);
    assert!(inbox.is_full());
    b.run(110_000);
    let ours =
        |inbox: &ItsInbox| inbox.save().contains(&Message { device_id: at::SMMU_DEVICE_ID, event_id: 0x55 });
    assert!(ours(&inbox), "sent when there was room");
    assert_eq!(b.read(base + 0x60) & 1 << 4, 0, "and not lost");
}

#[test]
fn a_snapshot_knows_who_is_plugged_in() {
    let options = MachineOptions {
        ram: 64 << 20,
        root_ports: vec![RootPortKind::Internal; 2],
        plugs: ["0:1:engine", "2000ns:1:rng", "1000ns:2:testdev"].map(|text| text.parse().unwrap()).to_vec(),
        unplugs: vec!["1000ns:1:surprise".parse().unwrap()],
        ..MachineOptions::default()
    };
    let occupants = |machine: &Machine| {
        let behind = machine.board.pci.functions().filter(|(slot, _)| slot.root_port().is_some());
        behind.map(|(slot, _)| slot.root_port().unwrap().device_number()).collect::<Vec<_>>()
    };
    let mut seen = Vec::new();
    for end in [0, 999, 1000, 2000, 5_000_000] {
        let mut b = Bench { machine: build(&options).unwrap(), now: 0 };
        b.run(end);
        let state = serde_json::to_vec(&MachineState::save(&b.machine)).unwrap();
        let mut other = Bench { machine: build(&options).unwrap(), now: b.now };
        let restored: MachineState = serde_json::from_slice(&state).unwrap();
        restored.restore(&mut other.machine).unwrap();
        assert_eq!(occupants(&other.machine), occupants(&b.machine));
        seen.push(occupants(&b.machine));
        assert!(serde_json::to_vec(&MachineState::save(&other.machine)).unwrap() == state, "at {end}");
        let futures = [&mut b, &mut other].map(|b| {
            b.run(9_000_000);
            serde_json::to_vec(&MachineState::save(&b.machine)).unwrap()
        });
        assert!(futures[0] == futures[1], "from {end} on");
    }
    assert_eq!(seen, [vec![4], vec![4], vec![5], vec![4, 5], vec![4, 5]]);
}
