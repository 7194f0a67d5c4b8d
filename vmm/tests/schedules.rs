//! Schedules and snapshots, with guests of a few dozen instructions.

mod common;

use std::path::PathBuf;

use common::a64::Program;
use tempfile::TempDir;
use vmm::actor::Actor;
use vmm::assemble::assemble;
use vmm::load::Boot;
use vmm::machine::{Machine, Stop};
use vmm::options::MachineOptions;
use vmm::schedule::Hold;
use vmm::snapshot;
use vmm::stats::state_hash;

const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;
const CPU_OFF: u64 = 0x8400_0002;

/// Two vCPUs that each print 40 letters, `a` and `b`, and then end.
fn letters() -> Program {
    let mut p = Program::new();
    p.li(1, 1).adr(2, "second").li(3, 0).li(0, CPU_ON).hvc();
    p.li(5, 40).label("print").print("a").subi(5, 5, 1).cbnz(5, "print");
    p.label("wait").psci(AFFINITY_INFO, &[1, 0]).cbz(0, "wait").power_off();
    p.label("second").li(5, 40).label("second print").print("b").subi(5, 5, 1).cbnz(5, "second print");
    p.psci(CPU_OFF, &[]);
    p
}

struct Lab {
    dir: TempDir,
    options: MachineOptions,
}

impl Lab {
    fn new(program: Program) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("Image"), program.image()).unwrap();
        let options = MachineOptions { cpus: 2, ram: 64 << 20, quantum: 50, ..MachineOptions::default() };
        Self { dir, options }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn machine(&self) -> Machine {
        let boot = Boot { kernel: self.path("Image"), initrd: vec![], append: String::new() };
        assemble(&self.options, &boot).unwrap()
    }
}

/// Runs to the end: what was printed, and the state's hash.
fn finish(machine: &mut Machine) -> (String, String) {
    assert_eq!(machine.run(1_000_000_000), Stop::PowerOff);
    let text = String::from_utf8(machine.board.uart.take_output()).unwrap();
    (text, state_hash(machine).unwrap())
}

#[test]
fn a_schedule_without_holds_is_the_default_order() {
    let lab = Lab::new(letters());
    let plain = finish(&mut lab.machine());
    let mut machine = lab.machine();
    machine.follow(&[]);
    assert_eq!(finish(&mut machine), plain);
    assert!(plain.0.contains("ab") && plain.0.contains("ba"), "they take turns: {}", plain.0);
    let progress = machine.progress().unwrap();
    assert_eq!(progress.of[&Actor::Cpu(0)] + progress.of[&Actor::Cpu(1)], machine.retired());
}

#[test]
fn a_held_vcpu_lets_the_other_one_finish() {
    let lab = Lab::new(letters());
    let run = |holds: &[Hold]| {
        let mut machine = lab.machine();
        machine.follow(holds);
        finish(&mut machine)
    };
    let long = 1_000_000;
    let (second_first, _) = run(&[Hold { who: Actor::Cpu(0), at: 20, ns: long }]);
    assert!(second_first.starts_with('a') && second_first.ends_with('a'), "{second_first}");
    assert!(second_first.contains(&"b".repeat(40)), "{second_first}");
    let (first_first, hash) = run(&[Hold { who: Actor::Cpu(1), at: 0, ns: long }]);
    assert_eq!(first_first, "a".repeat(40) + &"b".repeat(40));
    assert_eq!(
        run(&[Hold { who: Actor::Cpu(1), at: 0, ns: long }]),
        (first_first, hash),
        "the same schedule again"
    );
}

#[test]
fn a_snapshot_has_the_same_future() {
    let lab = Lab::new(letters());
    let mut machine = lab.machine();
    assert_eq!(machine.run(300), Stop::Until);
    let before = String::from_utf8(machine.board.uart.take_output()).unwrap();
    assert!(before.contains('a') && before.len() < 80, "{before}");
    let file = lab.path("snapshot");
    snapshot::save(&machine, &lab.options, false, &file).unwrap();
    let mut copy = snapshot::load(&file).unwrap().machine;
    assert_eq!(state_hash(&copy).unwrap(), state_hash(&machine).unwrap());
    assert_eq!(finish(&mut copy), finish(&mut machine));
}

#[test]
fn damaged_snapshots_are_refused_and_nothing_is_overwritten() {
    let lab = Lab::new(letters());
    let mut machine = lab.machine();
    machine.run(300);
    let file = lab.path("snapshot");
    snapshot::save(&machine, &lab.options, false, &file).unwrap();
    let good = std::fs::read(&file).unwrap();
    let error = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let error = snapshot::load(&file).err().map(|e| format!("{e:#}")).unwrap();
        assert!(error.contains("snapshot") && !error.contains('\n'), "{error}");
        error
    };
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= to;
        bytes
    };
    assert!(error(&changed(0, 1)).contains("not a snapshot"));
    assert!(error(&changed(8, 0x40)).contains(&format!("version {}", good[8] ^ 0x40)));
    assert!(error(&changed(19, 0xff)).contains("damaged"));
    assert!(error(&changed(good.len() - 20, 1)).contains("checksum"));
    assert!(error(&good[..good.len() - 1]).contains("cut short"));
    assert!(error(&[&good[..], b"x"].concat()).contains("damaged"));
    assert!(error(b"").contains("cut short"));

    let mut options = lab.options.clone();
    options.disks.push("disk".parse().unwrap());
    std::fs::write(&file, b"precious").unwrap();
    assert!(snapshot::save(&machine, &options, false, &file).unwrap_err().to_string().contains("FILE,ro"));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}
