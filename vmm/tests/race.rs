//! `smmulab race` and `replay`, whole, with guests of a few dozen instructions.

mod common;

use std::path::PathBuf;
use std::process::{Output, Stdio};

use common::a64::{NE, Program};
use common::rsp::Server;
use common::{smmulab, stderr, stdout};
use tempfile::TempDir;

const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;
const CPU_OFF: u64 = 0x8400_0002;
/// The lab device, and its MARK register.
const MARK: u64 = 0x0c00_0008;
const BEGIN: u64 = 1;
const PASS: u64 = 3;
const FAIL: u64 = 4;
/// A counter in RAM, far from the program.
const COUNTER: u64 = 0x4200_0000;
/// How often each vCPU adds one to it.
const ROUNDS: u64 = 20;

/// Two vCPUs add to one counter; the first then looks whether nothing was lost.
fn counter(atomic: bool) -> Program {
    let mut p = Program::new();
    let mark = |p: &mut Program, value: u64| {
        p.li(16, MARK).li(17, value).op(0xb900_0000 | 16 << 5 | 17); // str w17, [x16]
    };
    let add = |p: &mut Program, name: &str| {
        p.li(9, COUNTER).li(5, ROUNDS).label(name);
        if atomic {
            p.op(0xc85f_7c00 | 9 << 5 | 10); // ldxr x10, [x9]
            p.addi(10, 10, 1);
            p.op(0xc800_7c00 | 11 << 16 | 9 << 5 | 10); // stxr w11, x10, [x9]
            p.cbnz(11, name);
        } else {
            p.op(0xf940_0000 | 9 << 5 | 10); // ldr x10, [x9]
            p.addi(10, 10, 1);
            p.op(0xf900_0000 | 9 << 5 | 10); // str x10, [x9]
        }
        p.subi(5, 5, 1).cbnz(5, name);
    };
    p.label("main");
    mark(&mut p, BEGIN);
    p.li(1, 1).adr(2, "second").li(3, 0).li(0, CPU_ON).hvc();
    add(&mut p, "first adds");
    p.label("wait").psci(AFFINITY_INFO, &[1, 0]).cbz(0, "wait");
    p.li(9, COUNTER).op(0xf940_0000 | 9 << 5 | 10).cmpi(10, 2 * ROUNDS as u32).b_cond(NE, "lost");
    mark(&mut p, PASS);
    p.label("lost");
    mark(&mut p, FAIL);
    p.label("stay").b("stay");
    p.label("second");
    add(&mut p, "second adds");
    p.psci(CPU_OFF, &[]);
    p
}

/// The first vCPU sets three words for a moment, one behind the other, among stores that mean nothing; the second fails if it
/// sees the first, later the second, later the third of them set.
fn staircase() -> Program {
    let mut p = Program::new();
    let (words, decoys) = (COUNTER, 8);
    let at = |index: u64| words + 0x40 * index;
    p.label("main").poke(4, MARK, BEGIN);
    p.li(1, 1).adr(2, "second").li(3, 0).li(0, CPU_ON).hvc();
    for stair in 0..3 {
        for decoy in 0..decoys {
            p.poke(8, at(8 + decoy), stair);
        }
        p.poke(8, at(stair), 1).poke(8, at(stair), 0);
    }
    p.poke(8, at(3), 1);
    p.label("wait").psci(AFFINITY_INFO, &[1, 0]).cbz(0, "wait");
    p.poke(4, MARK, PASS).label("stay").b("stay");
    p.label("second");
    for stair in 0..3 {
        p.label(&format!("stair {stair}"));
        p.li(9, at(3)).load(8, 10, 9).cbnz(10, "over");
        for decoy in 0..decoys {
            p.li(9, at(8 + decoy)).load(8, 10, 9);
        }
        p.li(9, at(stair)).load(8, 10, 9).cbz(10, &format!("stair {stair}"));
    }
    p.poke(4, MARK, FAIL);
    p.label("over").psci(CPU_OFF, &[]);
    p
}

struct Lab(TempDir);

impl Lab {
    fn new(program: Program) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("Image");
        std::fs::write(&image, program.image()).unwrap();
        let scenario = format!(
            "about = 'Two vCPUs add to a counter'\nlimit = '1ms'\nrun = ['--kernel', '{}', '--mem', '64M', '--cpus', '2']\n",
            image.display()
        );
        std::fs::write(dir.path().join("counter.toml"), scenario).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn race_into(&self, dir: &str, args: &[&str]) -> Output {
        let (scenario, out) = (self.path("counter.toml"), self.path(dir));
        smmulab().arg("race").arg(scenario).arg("--out").arg(out).args(args).output().unwrap()
    }

    fn race(&self, args: &[&str]) -> Output {
        self.race_into("races", args)
    }

    fn replay(&self, args: &[&str]) -> Output {
        smmulab().arg("replay").arg(self.path("races/race-1.json")).args(args).output().unwrap()
    }
}

#[test]
fn a_lost_update_is_found_shrunk_and_replayed() {
    let lab = Lab::new(counter(false));
    assert_eq!(lab.race(&["--policy", "fixed"]).status.code(), Some(0), "the default order hides it");
    for policy in ["random", "few", "pct", "guided"] {
        for seed in ["1", "2", "3"] {
            let found = lab.race(&["--policy", policy, "--seed", seed, "--runs", "500"]);
            assert_eq!(found.status.code(), Some(1), "{policy}: {}{}", stdout(&found), stderr(&found));
            let text = stdout(&found);
            assert!(
                text.contains("the guest marked a failure")
                    && (text.contains("to 1 holds") || text.contains("to 2 holds"))
                    && text.contains("stands still")
                    && text.contains("meanwhile vCPU"),
                "{text}"
            );
        }
    }
    let page = std::fs::read_to_string(lab.path("races/race-1.html")).unwrap();
    assert!(page.contains("<svg") && page.contains(">cpu1</text>") && page.contains("stands still for"));
    assert!(std::fs::read_to_string(lab.path("races/race-1.md")).unwrap().contains("smmulab replay"));
    let one = lab.race_into("other", &["--seed", "1", "--jobs", "1", "--runs", "500"]);
    assert_eq!(one.status.code(), Some(1));
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    assert_eq!(
        read(lab.path("other/race-1.json")),
        read(lab.path("races/race-1.json")),
        "jobs change nothing"
    );

    let trace = lab.path("trace.json");
    let again = lab.replay(&["--times", "20", "--trace", trace.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    assert!(stdout(&again).contains("20 times"), "{}", stdout(&again));
    let trace: serde_json::Value = serde_json::from_str(&read(trace)).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|e| e["name"] == "stands still"), "the hold is in the trace");
    let tracks: Vec<_> =
        events.iter().filter(|e| e["name"] == "thread_name").map(|e| &e["args"]["name"]).collect();
    assert_eq!(tracks, ["cpu0", "cpu1"]);
}

/// Where the first vCPU loads the counter.
fn first_load() -> u64 {
    // The addresses are those of the program, behind its header.
    0x4000_0040 + 4 * counter(false).index_of(0xf940_0000 | 9 << 5 | 10) as u64
}

/// The first vCPU stops between its third load and its store, until something has happened.
fn script(lab: &Lab, until: &str) -> Output {
    let toml = std::fs::read_to_string(lab.path("counter.toml")).unwrap();
    let plain = toml.split("[[script]]").next().unwrap();
    let steps = format!(
        "[[script]]\nuntil = 'cpu0 at {:#x} times 3'\n[[script]]\nhold = ['cpu0']\nuntil = '{until}'\n",
        first_load() + 4
    );
    std::fs::write(lab.path("counter.toml"), plain.to_string() + &steps).unwrap();
    lab.race(&["--policy", "script"])
}

/// The first vCPU stops between its load and its store until the second one is done.
#[test]
fn a_script_says_the_order_by_hand() {
    let lab = Lab::new(counter(false));
    let script = |until: &str| script(&lab, until);
    let found = script("cpu1 does 100");
    assert_eq!(found.status.code(), Some(1), "{}{}", stdout(&found), stderr(&found));
    assert!(stdout(&found).contains("vCPU 0 stands still"), "{}", stdout(&found));
    assert_eq!(lab.replay(&["--times", "3"]).status.code(), Some(1));

    let never = script("cpu1 at 0x10");
    assert_eq!(never.status.code(), Some(2));
    assert!(stderr(&never).contains("step 2"), "{}", stderr(&never));
    let nonsense = script("tomorrow");
    assert_eq!(nonsense.status.code(), Some(2));
    assert!(stderr(&nonsense).contains("tomorrow"), "{}", stderr(&nonsense));
}

/// The report that the README shows comes from this program. `SMMULAB_BLESS=1` writes it anew.
#[test]
fn the_example_in_docs_is_what_a_run_gives() {
    let lab = Lab::new(counter(false));
    let toml = std::fs::read_to_string(lab.path("counter.toml")).unwrap();
    let toml = toml.replace(lab.path("Image").to_str().unwrap(), "Image");
    std::fs::write(lab.path("counter.toml"), toml + "symbols = 'System.map'\n").unwrap();
    std::fs::write(lab.path("System.map"), counter(false).system_map()).unwrap();
    let args = ["race", "counter.toml", "--seed", "1", "--runs", "500"];
    let found = smmulab().args(args).current_dir(lab.0.path()).output().unwrap();
    assert_eq!(found.status.code(), Some(1), "{}", stderr(&found));
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for extension in ["md", "svg"] {
        let made = std::fs::read_to_string(lab.path("races/race-1").with_extension(extension)).unwrap();
        let kept = docs.join("race-example").with_extension(extension);
        if std::env::var_os("SMMULAB_BLESS").is_some() {
            std::fs::write(&kept, &made).unwrap();
        }
        // The state's hash is another whenever a state has a field more.
        let body = |text: &str| {
            text.lines()
                .filter(|line| !line.contains("state at the end"))
                .map(String::from)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            body(&std::fs::read_to_string(&kept).unwrap()),
            body(&made),
            "SMMULAB_BLESS=1 writes it anew"
        );
    }
}

/// The table of how fast each policy finds a failure: as `race` finds it, kept as it comes, and not searched a second time.
#[test]
fn a_table_says_how_fast_each_policy_finds_what() {
    let lab = Lab::new(counter(false));
    let correct = Lab::new(counter(true));
    std::fs::copy(correct.path("counter.toml"), lab.path("counter-correct.toml")).unwrap();
    let bench = || {
        let mut command = smmulab();
        command.current_dir(lab.0.path()).args(["bench", "search", "counter.toml", "counter-correct.toml"]);
        command.args(["--policies", "fixed,random", "--seeds", "1,2", "--runs", "500"]);
        let output = command.args(["--out", "table.md", "--records", "found"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let rows = std::fs::read_to_string(lab.path("table.md")).unwrap();
        let rows: Vec<String> =
            rows.lines().filter(|line| line.contains("`counter`")).map(String::from).collect();
        (stdout(&output), rows)
    };
    let (said, rows) = bench();
    assert_eq!(said.lines().count(), 2 + 2 + 1, "two seeds of each policy, and the twin: {said}");
    assert_eq!(rows.len(), 2);
    assert!(rows[0].contains("| fixed | none in 1 (") && rows[0].ends_with("| – | – |"), "{}", rows[0]);
    let cells: Vec<&str> = rows[1].split('|').map(str::trim).collect();
    let schedules = |cell: &str| cell.split(' ').next().unwrap().parse::<u64>().unwrap();
    let (one, two) = (schedules(cells[3]), schedules(cells[4]));
    assert_eq!(schedules(cells[6]), 10 * one.max(two), "{}", rows[1]);
    let alone = lab.race(&["--seed", "1", "--runs", "500", "--jobs", "1"]);
    assert!(stdout(&alone).starts_with(&format!("{one} schedules")), "{}", stdout(&alone));

    let (again, same) = bench();
    assert_eq!((again.as_str(), same), ("", rows));
    let replay = |files: &[&str]| {
        smmulab().current_dir(lab.0.path()).args(["replay", "--times", "2"]).args(files).output().unwrap()
    };
    let both = ["found/counter-random-1.json", "found/counter-random-2.json"];
    let replayed = replay(&both);
    assert_eq!(replayed.status.code(), Some(1), "{}", stderr(&replayed));
    assert_eq!(
        stdout(&replayed).matches("The same, to the bit, 2 times").count(),
        2,
        "{}",
        stdout(&replayed)
    );
    let damaged = std::fs::read_to_string(lab.path(both[0])).unwrap().replace("\"end\": \"", "\"end\": \"0");
    std::fs::write(lab.path(both[0]), damaged).unwrap();
    let replayed = replay(&both);
    assert_eq!(replayed.status.code(), Some(3), "one went another way: {}", stdout(&replayed));
    assert!(stdout(&replayed).contains(both[1]), "the other is replayed all the same");
}

#[test]
fn its_correct_twin_stays_silent() {
    let lab = Lab::new(counter(true));
    for policy in ["random", "few", "pct", "bounded"] {
        let silent = lab.race(&["--policy", policy, "--runs", "200"]);
        assert_eq!(silent.status.code(), Some(0), "{policy}: {}{}", stdout(&silent), stderr(&silent));
    }
    assert!(!lab.path("races").exists(), "nothing is kept of what did not fail");
}

/// Behaviours are counted, and what a guided search does with them does not depend on how many schedules run at a time.
#[test]
fn a_guided_search_is_the_same_however_many_run_at_a_time() {
    let lab = Lab::new(counter(true));
    let search = |jobs: &str, policy: &str| {
        let args = ["--policy", policy, "--runs", "80", "--jobs", jobs];
        let output = lab.race(&args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = stdout(&output);
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.iter().position(|word| word.starts_with("behaviours")).unwrap();
        words[at - 1].parse::<u64>().unwrap()
    };
    let behaviours = search("1", "guided");
    assert_eq!(search("3", "guided"), behaviours);
    assert!(behaviours > search("1", "fixed"), "{behaviours}");
}

/// Each stair is a behaviour of its own: a search that builds upon what it saw gets there, one that only draws does not.
#[test]
fn a_guided_search_climbs() {
    let lab = Lab::new(staircase());
    let found = lab.race(&["--policy", "guided", "--seed", "3", "--runs", "2000"]);
    assert_eq!(found.status.code(), Some(1), "{}{}", stdout(&found), stderr(&found));
    assert!(stdout(&found).contains("to 3 holds"), "{}", stdout(&found));
}

/// Only at exclusives, only where the counter is.
#[test]
fn decision_points_are_chosen_by_kind_and_by_address() {
    let lab = Lab::new(counter(false));
    let found = lab.race(&["--points", "shared", "--touching", "0x42000000-0x42000007", "--runs", "500"]);
    assert_eq!(found.status.code(), Some(1), "{}{}", stdout(&found), stderr(&found));
    // The program has no exclusive, and no other device than the lab's.
    for nothing in [["--points", "exclusive"], ["--touching", "uart"]] {
        let none = lab.race(&nothing);
        assert_eq!(none.status.code(), Some(2));
        assert!(stderr(&none).contains("nothing to hold"), "{}", stderr(&none));
    }
    let lab = Lab::new(counter(true));
    let silent = lab.race(&["--points", "exclusive", "--runs", "50"]);
    assert_eq!(silent.status.code(), Some(0), "{}{}", stdout(&silent), stderr(&silent));
    let unknown = lab.race(&["--points", "often"]);
    assert!(unknown.status.code() == Some(2) && stderr(&unknown).contains("barrier"));
}

#[test]
fn a_replay_stops_where_it_is_told_to() {
    let lab = Lab::new(counter(false));
    assert_eq!(lab.race(&["--seed", "1"]).status.code(), Some(1));
    let until = |point: &str| {
        let output = lab.replay(&["--until", point]);
        assert_eq!(output.status.code(), Some(0), "{point}: {}", stderr(&output));
        stdout(&output)
    };
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(lab.path("races/race-1.json")).unwrap()).unwrap();
    let (who, at) = (&record["holds"][0]["who"], &record["holds"][0]["at"]);
    let decision = until("decision 1");
    let line = decision.lines().find(|line| line.trim_start().starts_with(who.as_str().unwrap())).unwrap();
    assert!(line.contains(&format!("instruction {at}; stands still")), "{decision}");
    let load = first_load();
    assert!(until(&format!("cpu0 at {load:#x} times 3")).contains(&format!("before {load:#x}")));
    assert!(until("cpu1 does 5").contains("its instruction 5"));
    assert!(until("100ns").starts_with("100 ns after the beginning"));
    assert!(until("mark fail").contains("cpu1"));
    for (bad, why) in [("cpu1 does 100000", "the run ends"), ("nowhere", "symbols"), ("decision 0", "from 1")]
    {
        let output = lab.replay(&["--until", bad]);
        assert_eq!(output.status.code(), Some(2), "{bad}");
        assert!(stderr(&output).contains(why) && stderr(&output).lines().count() == 1, "{}", stderr(&output));
    }
    let file = lab.path("snapshot");
    let saved = lab.replay(&["--until", "decision 1", "--snapshot", file.to_str().unwrap()]);
    assert_eq!(saved.status.code(), Some(0), "{}", stderr(&saved));
    let on = smmulab().args(["run", "--time-limit", "1ms", "--from"]).arg(&file).output().unwrap();
    assert_eq!(on.status.code(), Some(124), "{}", stderr(&on));
}

/// From the middle of the run on: watchpoints for reads, and memory as a device sees it.
#[test]
fn gdb_sees_who_reads_and_what_devices_see() {
    let lab = Lab::new(counter(false));
    assert_eq!(script(&lab, "cpu1 does 100").status.code(), Some(1));
    let load = first_load();
    let (_server, mut gdb) =
        Server::start(&lab.path("races/race-1.json"), &["--until", &format!("cpu0 at {load:#x}")]);
    gdb.ask("qSupported:swbreak+;multiprocess+");
    assert_eq!(gdb.pc(), load, "it begins where the replay stopped");
    assert_eq!(gdb.ask(&format!("Z3,{COUNTER:x},8")), "OK");
    let stop = gdb.ask("c");
    assert!(stop.contains(&format!("rwatch:{COUNTER:x}")), "{stop}");
    assert_eq!(gdb.pc(), load + 4);
    let text = gdb.monitor("where");
    assert!(text.contains("cpu0 read 8 bytes at physical address 0x42000000"), "{text}");
    assert_eq!(gdb.ask(&format!("z3,{COUNTER:x},8")), "OK");
    assert_eq!(gdb.ask(&format!("Z4,{COUNTER:x},8")), "OK");
    let stop = gdb.ask("c");
    assert!(stop.contains(&format!("awatch:{COUNTER:x}")), "{stop}");
    assert_eq!(gdb.pc(), load + 12, "the store");
    assert!(gdb.ask("bc").contains("awatch"), "backwards to the load");
    assert_eq!(gdb.pc(), load + 4);
    assert!(gdb.ask("c").contains("awatch"));
    // The SMMU is not enabled yet: what a device says is a physical address.
    let text = gdb.monitor("iova 8 0x42000000 8");
    assert!(text.contains("0x42000000: 01 00 00 00 00 00 00 00"), "{text}");
    assert!(gdb.monitor("iova 8").contains("which address"));
    assert!(gdb.monitor("help").contains("monitor iova STREAM"));
}

/// Forwards to the lost store, backwards to the load, and the counter's memory as a watchpoint.
#[test]
fn gdb_goes_both_ways() {
    let lab = Lab::new(counter(false));
    assert_eq!(script(&lab, "cpu1 does 100").status.code(), Some(1));
    let (_server, mut gdb) = Server::start(&lab.path("races/race-1.json"), &[]);
    let store = first_load() + 8;

    assert!(gdb.ask("qSupported:swbreak+;multiprocess+").contains("ReverseStep+"));
    assert_eq!(gdb.ask(&format!("Z0,{store:x},4")), "OK");
    assert!(gdb.ask("c").starts_with('T'), "it stops at the first store");
    assert_eq!(gdb.pc(), store);
    assert!(gdb.ask("s").starts_with('T'));
    assert_eq!(gdb.pc(), store + 4);
    let count = gdb.ask(&format!("m{COUNTER:x},8"));
    assert_eq!(count, "0100000000000000");
    assert!(gdb.ask("bs").starts_with('T'));
    assert_eq!((gdb.pc(), gdb.ask(&format!("m{COUNTER:x},8"))), (store, "0000000000000000".into()));
    // Twice forwards, once back: the first store again.
    assert!(gdb.ask("c").starts_with('T'));
    assert!(gdb.ask("c").starts_with('T'));
    assert!(gdb.ask("bc").starts_with('T'));
    assert!(gdb.ask("bc").starts_with('T'));
    assert_eq!((gdb.pc(), gdb.ask(&format!("m{COUNTER:x},8"))), (store, "0000000000000000".into()));
    assert!(gdb.ask("bc").contains("replaylog:begin"), "there is no stop before the first");

    assert_eq!(gdb.ask(&format!("z0,{store:x},4")), "OK");
    assert_eq!(gdb.ask(&format!("Z2,{COUNTER:x},8")), "OK");
    let stop = gdb.ask("c");
    assert!(stop.contains(&format!("watch:{COUNTER:x}")), "{stop}");
    assert_eq!(gdb.pc(), store + 4);
}

#[test]
fn a_damaged_scenario_is_one_clear_line_and_nothing_is_made() {
    let lab = Lab::new(counter(false));
    let file = lab.path("counter.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let error = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let output = lab.race(&[]);
        assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
        assert!(stderr(&output).contains("counter.toml") && !lab.path("races").exists());
        stderr(&output)
    };
    assert!(error(&good.as_bytes()[..good.len() - 3]).contains("line 3"));
    assert!(error(b"\xff\xfe\x00").contains("UTF-8"));
    assert!(error(b"").contains("missing field"));
    assert!(error(format!("{good}weather = 'fine'\n").as_bytes()).contains("weather"));
    assert!(
        error(format!("{good}symbols = 'none'\n").replace("about", "abuot").as_bytes()).contains("line 1")
    );
    std::fs::remove_file(&file).unwrap();
    let output = lab.race(&[]);
    assert!(output.status.code() == Some(2) && stderr(&output).contains("cannot read the scenario"));
}

#[test]
fn what_is_there_is_not_overwritten() {
    let lab = Lab::new(counter(false));
    let read = |name: &str| std::fs::read_to_string(lab.path(name)).unwrap();
    std::fs::create_dir(lab.path("races")).unwrap();
    std::fs::write(lab.path("races/race-1.html"), "precious").unwrap();
    assert_eq!(lab.race(&["--seed", "1"]).status.code(), Some(1));
    assert_eq!(lab.race(&["--seed", "1"]).status.code(), Some(1));
    assert_eq!(read("races/race-1.html"), "precious");
    assert!(!lab.path("races/race-1.json").exists() && lab.path("races/race-3.html").exists());
    assert_eq!(read("races/race-2.json"), read("races/race-3.json"));

    // A replay that fails leaves the trace that was there.
    let record = read("races/race-2.json");
    std::fs::write(lab.path("races/race-1.json"), record.replace("\"begin\": \"", "\"begin\": \"0")).unwrap();
    std::fs::write(lab.path("trace.json"), "precious").unwrap();
    let trace = lab.path("trace.json");
    let output = lab.replay(&["--trace", trace.to_str().unwrap()]);
    assert!(
        output.status.code() == Some(2) && stderr(&output).contains("not the one"),
        "{}",
        stderr(&output)
    );
    assert_eq!(read("trace.json"), "precious");
    assert_eq!(lab.replay(&["--trace", "/nowhere/trace.json"]).status.code(), Some(2));

    // Nor does a snapshot that cannot be used become one.
    let file = lab.path("snapshot");
    std::fs::write(&file, "precious").unwrap();
    let output = smmulab().args(["run", "--from"]).arg(&file).output().unwrap();
    assert!(
        output.status.code() == Some(2) && stderr(&output).contains("not a snapshot"),
        "{}",
        stderr(&output)
    );
    let args = ["--until", "never", "--snapshot", file.to_str().unwrap()];
    std::fs::write(lab.path("races/race-1.json"), record).unwrap();
    assert_eq!(lab.replay(&args).status.code(), Some(2));
    assert_eq!(read("snapshot"), "precious");
}

/// What was found before Ctrl-C is told, and no process is left behind.
#[test]
fn an_interrupted_search_tells_what_it_has() {
    let lab = Lab::new(counter(true));
    let (scenario, out) = (lab.path("counter.toml"), lab.path("races"));
    let search = smmulab()
        .arg("race")
        .arg(scenario)
        .arg("--out")
        .arg(out)
        .args(["--runs", "100000000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = search.id();
    // Its schedules are its children: once there is one, it is searching.
    let children = || std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let first = loop {
        let children = children();
        if let Some(child) = children.split_whitespace().next() {
            break child.to_string();
        }
    };
    std::thread::sleep(std::time::Duration::from_millis(300));
    let kill = std::process::Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
    assert!(kill.success());
    let output = search.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stdout(&output));
    assert!(
        stdout(&output).contains("none failed") && stdout(&output).contains("Ended early"),
        "{}",
        stdout(&output)
    );
    assert!(!PathBuf::from(format!("/proc/{first}")).exists());
}

#[test]
fn what_cannot_be_replayed_is_one_clear_line() {
    let lab = Lab::new(counter(false));
    assert_eq!(lab.race(&["--seed", "1"]).status.code(), Some(1));
    let file = lab.path("races/race-1.json");
    let good = std::fs::read_to_string(&file).unwrap();
    let error = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let output = lab.replay(&[]);
        assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
        stderr(&output)
    };
    assert!(error(&good[..good.len() / 2]).contains("race-1.json"));
    assert!(error(&good.replace("\"format\": 1", "\"format\": 9")).contains("format 9"));
    assert!(
        error(&good.replace("\"--cpus\",\n      \"2\"", "\"--cpus\",\n      \"3\"")).contains("not the one")
    );
    std::fs::write(&file, &good).unwrap();
    std::fs::write(lab.path("Image"), counter(true).image()).unwrap();
    assert!(error(&good).contains("not the one"));
}
