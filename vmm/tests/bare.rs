//! The whole program with guests of a few dozen instructions: no kernel, no image, seconds.

mod common;

use std::fs::File;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use common::a64::{NE, Program, XZR};
use common::{UART, smmulab, stderr, stdout};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::{Pid, write};
use serde_json::Value;
use tempfile::TempDir;
use vmm::assemble::assemble;
use vmm::load::Boot;
use vmm::machine::Stop;
use vmm::options::MachineOptions;
use vmm::stats::state_hash;

/// PSCI functions.
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;
const SYSTEM_RESET: u64 = 0x8400_0009;

/// A guest and where its files are.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new(program: Program) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("Image"), program.image()).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_string()
    }

    fn run_with(&self, args: &[&str], stdin: Stdio) -> Output {
        smmulab()
            .args(["run", "--mem", "64M", "--kernel", &self.path("Image")])
            .args(args)
            .stdin(stdin)
            .output()
            .unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, Stdio::null())
    }

    /// A run that has to power off, and its figures.
    fn measured(&self, args: &[&str], stdin: Stdio) -> (Vec<u8>, Value) {
        let stats = self.path("stats");
        let output = self.run_with(&[args, &["--stats", &stats, "--time-limit", "2s"]].concat(), stdin);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}{}", stdout(&output), stderr(&output));
        (output.stdout, figures(Path::new(&stats)))
    }

    /// Runs it twice and by the other engine, all with the same result.
    fn repeatable(&self, args: &[&str], stdin: impl Fn() -> Stdio) -> (Vec<u8>, Value) {
        let first = self.measured(args, stdin());
        assert_eq!(first, self.measured(args, stdin()), "the same run twice");
        let reference = self.measured(&[args, &["--engine", "step"]].concat(), stdin());
        assert_eq!(first, reference, "the reference engine");
        first
    }
}

/// What of the statistics must not depend on the host.
fn figures(path: &Path) -> Value {
    let mut stats: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    stats.as_object_mut().unwrap().remove("host").unwrap();
    stats
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_guest_prints_and_powers_off() {
    let mut p = Program::new();
    p.print("hello, world\n").power_off();
    let bench = Bench::new(p);
    let (out, stats) = bench.repeatable(&[], Stdio::null);
    assert_eq!(text(&out), "hello, world\n");
    assert_eq!(stats["console_bytes"][0], 13);
    // The header's branch, li of the address (2), li and store a byte, li of the function (2), and the call.
    assert_eq!(stats["instructions"], 1 + 2 + 2 * 13 + 2 + 1);
    assert_eq!(stats["virtual_ns"], stats["instructions"]);
    let other = bench.measured(&["--smmu", "off"], Stdio::null()).1;
    assert_eq!(other["console_hash"], stats["console_hash"]);
    assert_ne!(other["state_hash"], stats["state_hash"]);
    assert!(other["smmu"].is_null() && stats["smmu"].is_object());
}

#[test]
fn every_end_has_its_status() {
    let status = |p: Program, args: &[&str]| {
        let bench = Bench::new(p);
        let stats = bench.path("stats");
        let output = bench.run(&[args, &["--stats", &stats]].concat());
        (output.status.code().unwrap(), stderr(&output), figures(Path::new(&stats)))
    };
    let mut p = Program::new();
    p.psci(SYSTEM_RESET, &[]);
    let (code, said, _) = status(p, &[]);
    assert_eq!((code, said.lines().count()), (125, 1), "{said}");
    assert!(said.contains("reset"), "{said}");

    let mut p = Program::new();
    p.label("again").wfi().b("again");
    let (code, said, _) = status(p, &[]);
    assert_eq!((code, said.lines().count()), (125, 1), "{said}");
    assert!(said.contains("hangs"), "{said}");

    let mut p = Program::new();
    p.psci(CPU_OFF, &[]);
    assert_eq!(status(p, &[]).0, 125, "nobody is left");

    let mut p = Program::new();
    p.label("again").b("again");
    let (code, said, stats) = status(p, &["--time-limit", "1234567ns"]);
    assert_eq!((code, said.lines().count()), (124, 1), "{said}");
    assert_eq!((&stats["virtual_ns"], &stats["instructions"]), (&1_234_567.into(), &1_234_567.into()));

    let mut p = Program::new();
    p.power_off();
    let (code, said, _) = status(p, &["--exec", "true", "--initrd", "/dev/null"]);
    assert_eq!((code, said.lines().count()), (125, 1), "{said}");
    assert!(said.contains("before CMD had ended"), "{said}");
}

#[test]
fn unmapped_addresses_abort_as_the_manual_says() {
    const ESR: u32 = 0xd538_5200;
    const FAR: u32 = 0xd538_6000;
    // What is done at x9, and the syndrome: EC, IL, and a synchronous external abort (DFSC 0x10), with WnR for stores.
    const LOAD: u32 = 0xb940_012a; // ldr w10, [x9]
    const STORE: u32 = 0xf900_012a; // str x10, [x9]
    const JUMP: u32 = 0xd61f_0120; // br x9
    let cases: [(u64, u32, u64); 7] = [
        (0, LOAD, 0x9600_0010),
        (0x0902_0000, LOAD, 0x9600_0010),
        (0x0a00_0200, STORE, 0x9600_0050),
        (0x4400_0000, STORE, 0x9600_0050), // behind the 64 MiB of RAM
        (0xfff_ffff_fff8, STORE, 0x9600_0050),
        (0x0902_0000, JUMP, 0x8600_0010),
        // Beyond the 44 bits of a physical address: an address size fault, level 0.
        (1 << 44, LOAD, 0x9600_0000),
    ];
    let mut p = Program::new();
    p.adr(0, "vectors").op(0xd518_c000); // msr vbar_el1, x0
    for (i, &(address, instruction, _)) in cases.iter().enumerate() {
        let behind = format!("behind {i}");
        p.li(9, address).adr(8, &behind).op(instruction).label(&behind);
    }
    p.power_off().hex_routine().align(2048).label("vectors").align(512);
    // Synchronous exception of this level with its own stack pointer: entry 4 of 16.
    while !p.at("vectors", 0x200) {
        p.op(0xd503_201f);
    }
    p.op(ESR).bl("hex").op(FAR).bl("hex").op(0xd518_4028).op(0xd69f_03e0); // msr elr_el1, x8; eret
    let (out, _) = Bench::new(p).repeatable(&[], Stdio::null);
    let expected: String = cases.iter().map(|(at, _, esr)| format!("{esr:016x}\n{at:016x}\n")).collect();
    assert_eq!(text(&out), expected);
}

/// Puts into x22 the next pseudo-random number from the state in x21.
fn random(p: &mut Program) {
    p.li(23, 6_364_136_223_846_793_005).li(24, 1_442_695_040_888_963_407).madd(21, 21, 23, 24);
    p.lsri(22, 21, 13);
}

/// Accesses of every width at random offsets with random values, all over a device.
fn hammer(p: &mut Program, name: &str, base: u64, size: u64, rounds: u64) {
    p.li(20, rounds).label(name);
    for bytes in [4, 8, 4, 1, 4, 2] {
        random(p);
        p.li(25, (size - 1) & !7).and(22, 22, 25).li(25, base).add(25, 25, 22);
        random(p);
        p.store(bytes, 22, 25).load(bytes, 22, 25);
    }
    // The address of something in RAM, but not of this program, valid if it is a table's.
    random(p);
    p.li(25, (size - 1) & !7).and(25, 22, 25).li(26, base).add(25, 25, 26);
    random(p);
    p.li(26, 0x003f_f000).and(22, 22, 26).li(26, 0x8000_0000_4100_0001).add(22, 22, 26).store(8, 22, 25);
    p.subi(20, 20, 1).cbnz(20, name);
}

/// A guest whose two vCPUs write nonsense into every register.
fn nonsense(rounds: u64) -> Program {
    let mut p = Program::new();
    p.li(21, 0x1234_5678_9abc_def1);
    p.li(1, 1).adr(2, "both").li(0, CPU_ON).hvc().label("both");
    let windows = [
        ("distributor", 0x0800_0000, 0x1_0000),
        ("ITS", 0x0808_0000, 0x2_0000),
        ("redistributors", 0x080a_0000, 0x8_0000),
        ("clock", 0x0901_0000, 0x1000),
        ("SMMU page 0", 0x0905_0000, 0x200),
        ("SMMU", 0x0905_0000, 0x2_0000),
        ("bus 0", 0x40_1000_0000, 0x10_0000),
        ("command registers", 0x40_1000_8000, 0x10),
        ("disk", 0x40_1002_0000, 0x100),
        ("memory window", 0x1000_0000, 0x1_0000),
        ("64-bit window", 0x80_0000_0000, 0x1_0000),
        ("SMMU again", 0x0905_0000, 0x200),
    ];
    for (name, base, size) in windows {
        hammer(&mut p, name, base, size, rounds);
    }
    // The other CPU sleeps for ever; this one ends the run.
    p.op(0xd538_00a0).li(1, 0xff).and(0, 0, 1).cbnz(0, "sleep").print("alive\n").power_off();
    p.label("sleep").psci(CPU_OFF, &[]);
    p
}

#[test]
fn nonsense_in_every_register_has_an_answer() {
    let bench = Bench::new(nonsense(300));
    let disk = bench.path("disk");
    for smmu in ["on", "preset=full"] {
        std::fs::write(&disk, vec![0x5a; 1 << 20]).unwrap();
        let read_only = format!("{disk},ro");
        let args = ["--cpus", "2", "--smmu", smmu, "--disk", &read_only];
        let (out, stats) = bench.repeatable(&args, Stdio::null);
        assert_eq!(text(&out), "alive\n", "{smmu}");
        assert_eq!(stats["instructions_by_cpu"].as_array().unwrap().len(), 2);
    }
}

/// Where the host looks at a machine, and how often, changes nothing in it.
#[test]
fn a_run_in_pieces_is_the_same_run() {
    let bench = Bench::new(nonsense(10));
    let boot = Boot { kernel: bench.path("Image").into(), initrd: vec![], append: String::new() };
    let options = MachineOptions { cpus: 2, ram: 64 << 20, ..MachineOptions::default() };
    let run = |piece: u64| {
        let mut machine = assemble(&options, &boot).unwrap();
        let stop = loop {
            match machine.run(machine.now().saturating_add(piece)) {
                Stop::Until => assert!(machine.now() < 1_000_000_000, "it never ends"),
                stop => break stop,
            }
        };
        assert_eq!((stop, machine.board.uart.take_output()), (Stop::PowerOff, b"alive\n".to_vec()));
        (machine.now(), machine.retired(), state_hash(&machine).unwrap())
    };
    let whole = run(u64::MAX);
    for piece in [1, 7, 1000, 19_999, 2_000_000] {
        assert_eq!(run(piece), whole, "in pieces of {piece} ns");
    }
}

#[test]
fn two_vcpus_take_turns_and_can_be_turned_off_and_on() {
    let mut p = Program::new();
    let answer = |p: &mut Program| {
        p.bl("hex");
    };
    // The entry point goes into x2 at run time.
    let on = |p: &mut Program, target: u64, context: u64| {
        p.li(1, target).adr(2, "second").li(3, context).li(0, CPU_ON).hvc();
    };
    on(&mut p, 2, 0);
    answer(&mut p); // INVALID_PARAMETERS
    p.li(1, 1).li(2, 0x1000).li(0, CPU_ON).hvc();
    answer(&mut p); // INVALID_ADDRESS
    for round in 0..2 {
        on(&mut p, 1, u64::from(b'x') + round);
        answer(&mut p); // SUCCESS
        on(&mut p, 1, 0);
        answer(&mut p); // ALREADY_ON
        let (print, wait) = (format!("print {round}"), format!("wait {round}"));
        p.li(5, 60).label(&print).print("o").subi(5, 5, 1).cbnz(5, &print);
        p.label(&wait).psci(AFFINITY_INFO, &[1, 0]).cbz(0, &wait);
        p.print("\n");
        answer(&mut p); // OFF
    }
    p.psci(0x8400_0000, &[]);
    answer(&mut p);
    p.psci(0xc400_0005, &[]);
    answer(&mut p); // MIGRATE: NOT_SUPPORTED
    p.power_off();
    p.label("second").li(5, 400).li(16, UART);
    p.label("dot").store(1, 0, 16).subi(5, 5, 1).cbnz(5, "dot").psci(CPU_OFF, &[]);
    p.hex_routine();
    let bench = Bench::new(p);

    let run = |quantum: &str| {
        let (out, stats) = bench.repeatable(&["--cpus", "2", "--quantum", quantum], Stdio::null);
        (text(&out).to_string(), stats)
    };
    let (fine, stats) = run("50");
    let lines: Vec<&str> =
        fine.lines().filter(|line| line.len() == 16 && !line.contains(['o', 'x', 'y'])).collect();
    let hex = |n: i64| format!("{n:016x}");
    assert_eq!(lines[..2], [hex(-2), hex(-9)], "{fine}");
    assert_eq!(lines[lines.len() - 3..], [hex(1), hex(0x1_0001), hex(-1)], "{fine}");
    for letter in ['x', 'y'] {
        assert_eq!(fine.matches(letter).count(), 400, "{fine}");
    }
    assert_eq!(fine.matches('o').count(), 120);
    assert!(fine.contains("ox") && fine.contains("xo"), "they take turns: {fine}");
    let by_cpu = stats["instructions_by_cpu"].as_array().unwrap();
    assert_eq!(
        by_cpu[0].as_u64().unwrap() + by_cpu[1].as_u64().unwrap(),
        stats["virtual_ns"].as_u64().unwrap()
    );
    let (coarse, _) = run("100000");
    assert_eq!(coarse.matches('x').count(), 400);
    assert_ne!(fine, coarse, "another quantum is another order");
}

#[test]
fn idle_time_is_skipped_up_to_the_exact_timer() {
    let mut p = Program::new();
    // GICD: affinity routing and group 1; the redistributor awake, the virtual timer's PPI 27 enabled in group 1.
    p.poke(4, 0x0800_0000, 0x12).poke(4, 0x080a_0014, 0);
    p.poke(4, 0x080b_0080, u64::from(u32::MAX)).poke(4, 0x080b_0100, 1 << 27);
    p.li(0, 0xf0).op(0xd518_4600).li(0, 1).op(0xd518_cce0); // ICC_PMR_EL1, ICC_IGRPEN1_EL1
    p.li(0, 62_500_000).op(0xd51b_e340).li(0, 1).op(0xd51b_e320); // CNTV_CVAL_EL0: 1 s; CNTV_CTL_EL0
    p.wfi().op(0xd53b_e040).bl("hex"); // CNTVCT_EL0
    p.op(0xd538_cc00).bl("hex").power_off().hex_routine(); // ICC_IAR1_EL1
    let (out, stats) = Bench::new(p).repeatable(&[], Stdio::null);
    assert_eq!(text(&out), format!("{:016x}\n{:016x}\n", 62_500_000, 27));
    let (ns, instructions) = (stats["virtual_ns"].as_u64().unwrap(), stats["instructions"].as_u64().unwrap());
    assert!((1_000_000_000..1_000_001_000).contains(&ns), "{ns}");
    assert!(instructions < 1000, "{instructions}");
}

/// Echoes what comes in on the UART up to a `q`.
fn echo() -> Program {
    let mut p = Program::new();
    p.li(4, UART).addi(5, 4, 0x18).li(6, 1 << 4);
    p.label("wait").load(4, 0, 5).and(0, 0, 6).cbnz(0, "wait");
    p.load(4, 0, 4).cmpi(0, u32::from(b'q'));
    p.op(0x5400_0000 | 4 << 5).store(1, 0, 4).b("wait").op(0xd503_201f); // b.eq over the three
    p.power_off();
    p
}

#[test]
fn input_from_a_file_is_part_of_the_run() {
    let bench = Bench::new(echo());
    // More than any buffer on the way holds.
    let mut typed: Vec<u8> = (0..300_000u32).map(|i| b"abcdefghijkl\n"[i as usize % 13]).collect();
    typed.push(b'q');
    std::fs::write(bench.path("typed"), &typed).unwrap();
    let (out, _) = bench.repeatable(&[], || File::open(bench.path("typed")).unwrap().into());
    assert!(out == typed[..300_000], "{} bytes came back", out.len());
}

#[test]
fn live_input_can_be_recorded_and_played() {
    let bench = Bench::new(echo());
    let (recording, stats) = (bench.path("recording"), bench.path("stats"));
    let mut child = smmulab()
        .args(["run", "--mem", "64M", "--kernel", &bench.path("Image"), "--record", &recording])
        .args(["--stats", &stats])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for part in ["first ", "second ", "third", "q"] {
        std::io::Write::write_all(&mut stdin, part.as_bytes()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "first second third"));
    let live = figures(Path::new(&stats));
    let (out, played) = bench.repeatable(&["--play", &recording], Stdio::null);
    assert_eq!(text(&out), "first second third");
    assert_eq!(live, played);
}

#[test]
fn leaving_is_part_of_a_recording() {
    let bench = Bench::new(echo());
    let (recording, stats) = (bench.path("recording"), bench.path("stats"));
    let leave = |extra: &[&str], stdin: Stdio| {
        let output = bench.run_with(&[extra, &["--stats", &stats, "--time-limit", "10s"]].concat(), stdin);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        (stdout(&output), figures(Path::new(&stats)))
    };
    std::fs::write(bench.path("typed"), b"abc\x01x").unwrap();
    let typed = File::open(bench.path("typed")).unwrap();
    let live = leave(&["--record", &recording], typed.into());
    assert_eq!(live, leave(&["--play", &recording], Stdio::null()));
}

/// A guest that sleeps until input comes.
#[test]
fn input_from_a_file_wakes_a_guest_that_waits_for_it() {
    let mut p = Program::new();
    p.poke(4, 0x0800_0000, 0x12).poke(4, 0x080a_0014, 0).poke(4, 0x0800_0084, u64::from(u32::MAX));
    p.poke(4, 0x0800_0104, 1 << 1).poke(8, 0x0800_6108, 0); // SPI 1 enabled, routed to PE 0
    p.li(0, 0xf0).op(0xd518_4600).li(0, 1).op(0xd518_cce0); // ICC_PMR_EL1, ICC_IGRPEN1_EL1
    p.poke(4, UART + 0x38, 1 << 4).wfi(); // UARTIMSC: receive
    p.li(4, UART).load(4, 0, 4).store(1, 0, 4).power_off();
    let bench = Bench::new(p);
    std::fs::write(bench.path("typed"), b"!").unwrap();
    let (out, _) = bench.repeatable(&[], || File::open(bench.path("typed")).unwrap().into());
    assert_eq!(text(&out), "!");
}

/// A guest that never looks at its UART, on a terminal.
struct OnTerminal {
    _bench: Bench,
    terminal: nix::pty::OpenptyResult,
    before: Termios,
    child: std::process::Child,
}

impl OnTerminal {
    fn new() -> Self {
        let mut p = Program::new();
        p.label("for ever").b("for ever");
        let bench = Bench::new(p);
        let terminal = nix::pty::openpty(None, None).unwrap();
        let before = tcgetattr(&terminal.slave).unwrap();
        let child = smmulab()
            .args(["run", "--mem", "64M", "--kernel", &bench.path("Image")])
            .stdin(Stdio::from(terminal.slave.try_clone().unwrap()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { _bench: bench, terminal, before, child };
        // Watching for signals begins right after raw mode does.
        while this.attributes().local_flags == this.before.local_flags {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        this
    }

    fn attributes(&self) -> Termios {
        tcgetattr(&self.terminal.slave).unwrap()
    }

    /// Waits for the end; the terminal has to be as it was.
    fn ended(mut self) -> std::process::ExitStatus {
        let status = self.child.wait().unwrap();
        assert_eq!(self.attributes(), self.before, "{status}");
        status
    }
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        let run = OnTerminal::new();
        kill(Pid::from_raw(run.child.id() as i32), signal).unwrap();
        assert_eq!(run.ended().code(), Some(128 + signal as i32));
    }
}

#[test]
fn ctrl_a_x_leaves_a_guest_that_takes_no_input() {
    let run = OnTerminal::new();
    // More than the UART's queue and all on the way to it hold.
    for _ in 0..200 {
        assert_eq!(write(&run.terminal.master, &[b'k'; 1000]), Ok(1000));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(write(&run.terminal.master, b"\x01x"), Ok(2));
    assert_eq!(run.ended().code(), Some(0));
}

#[test]
fn a_flood_of_output_arrives_whole() {
    let mut p = Program::new();
    p.li(5, 1_000_000).li(16, UART).li(17, u64::from(b'.'));
    p.label("more").store(1, 17, 16).subi(5, 5, 1).cmpi(5, 0).b_cond(NE, "more").mov(0, XZR).power_off();
    let (out, stats) = Bench::new(p).measured(&[], Stdio::null());
    assert!(out.len() == 1_000_000 && out.iter().all(|&b| b == b'.'));
    assert_eq!(stats["console_bytes"][0], 1_000_000);
}

#[test]
fn output_that_cannot_be_written_is_one_clear_line() {
    let mut p = Program::new();
    p.print("text\n").power_off();
    let bench = Bench::new(p);
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for args in
        [&["--stats", "/dev/full"][..], &["--kernel-log", "/dev/full"], &["--stats", "/nonexistent/stats"]]
    {
        let output = bench.run(args);
        assert_eq!(
            (output.status.code(), stderr(&output).lines().count()),
            (Some(2), 1),
            "{}",
            stderr(&output)
        );
        assert!(stderr(&output).contains("cannot write"), "{}", stderr(&output));
    }
    let kernel = bench.path("Image");
    let run = |stdout: Stdio, stderr: Stdio| {
        smmulab()
            .args(["run", "--mem", "64M", "--kernel", &kernel])
            .stdout(stdout)
            .stderr(stderr)
            .output()
            .unwrap()
    };
    let output = run(full().into(), Stdio::piped());
    assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(2), 1), "{}", stderr(&output));
    // With nobody left to tell, the status still says it.
    assert_eq!(run(full().into(), full().into()).status.code(), Some(2));
    let missing = smmulab().args(["run", "--kernel", "/nonexistent"]).stderr(full()).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    let list = smmulab()
        .args(["image", "list"])
        .env("XDG_CACHE_HOME", bench.dir.path())
        .stdout(full())
        .output()
        .unwrap();
    assert_eq!((list.status.code(), stderr(&list).lines().count()), (Some(2), 1), "{}", stderr(&list));
}

#[test]
fn disks_that_cannot_be_are_refused_and_odd_ones_are_not() {
    let mut p = Program::new();
    p.power_off();
    let bench = Bench::new(p);
    let (empty, odd) = (bench.path("empty"), bench.path("odd"));
    std::fs::write(&empty, []).unwrap();
    std::fs::write(&odd, [1; 777]).unwrap();
    let directory = format!("{},ro", bench.dir.path().display());
    for (disks, why) in [
        (vec![empty.as_str()], "empty"),
        (vec![directory.as_str()], "neither"),
        (vec!["/dev/null"], "neither"),
        (vec![&odd, &odd], "in use"),
    ] {
        let args: Vec<&str> = disks.iter().flat_map(|disk| ["--disk", disk]).collect();
        let output = bench.run(&args);
        assert_eq!(
            (output.status.code(), stderr(&output).lines().count()),
            (Some(2), 1),
            "{}",
            stderr(&output)
        );
        assert!(stderr(&output).contains(why) && stderr(&output).contains("disk"), "{}", stderr(&output));
    }
    let shared = format!("{odd},ro");
    assert_eq!(bench.run(&["--disk", &shared, "--disk", &shared]).status.code(), Some(0));
    assert_eq!(bench.run(&["--disk", &odd]).status.code(), Some(0));
    assert_eq!(std::fs::read(&odd).unwrap(), [1; 777]);
}
