//! The lab kernel with the guest module and test programs: what drivers, processes and virtual machine monitors do with
//! an SMMU, with data, faults and counters checked. SMMULAB_LONG=1 runs them.

#[path = "lab/ats.rs"]
mod ats;
mod common;

use std::collections::BTreeMap;
use std::process::Command;

use common::{long, skip, smmulab, stderr, stdout};
use serde_json::Value;

/// The SMMU with everything, and caches that never drop what they need not.
const ALL: &str = "preset=full,keep-all=on";

/// The checker, which ends a run at the first mistake.
const CHECKED: [&str; 2] = ["--check", "abort"];

/// ATS in devices, with translations that stay until they are invalidated.
const ATS: [&str; 2] = ["--ats", "entries=unlimited,retention=keep-all"];

/// The guest module's tests without those that want a fault.
const CORRECT: &str = "TESTS='copy size=65536 frames=4\ncopy size=4096 loops=20\ncoherent size=8192\n\
     sync size=8192 loops=5\nsg size=65536 frames=2\nmsi loops=10\nstress threads=3 loops=5 size=16384\n\
     domain loops=2 correct\ndomain-race threads=4 loops=20\npasid loops=2 correct'";

fn skipped() -> bool {
    if !long() || cfg!(debug_assertions) {
        println!("SKIPPED: guest boots take minutes: SMMULAB_LONG=1 runs them, in a release build");
        return true;
    }
    let list = smmulab().args(["image", "list"]).output().unwrap();
    let cached = |line: &str| line.starts_with("lab ") && !line.trim_end().ends_with(" -");
    if !stdout(&list).lines().any(cached) {
        skip("the lab kernel is not built: `smmulab image build lab` takes some minutes");
        return true;
    }
    false
}

/// What a run said, and its counters.
struct Run {
    output: String,
    log: String,
    smmu: Value,
    /// What ATS did in each function that has it.
    ats: Value,
}

impl Run {
    fn count(&self, of: &str) -> u64 {
        self.smmu.pointer(&format!("/{of}")).and_then(Value::as_u64).unwrap_or(0)
    }

    /// What ATS did in the PCI engine, the last function of the machine.
    fn engine(&self, of: &str) -> u64 {
        let last = self.ats.as_object().and_then(|functions| functions.values().next_back());
        last.and_then(|engine| engine[of].as_u64()).unwrap_or(0)
    }

    /// With ATS the engine's accesses go by its translation cache, whose entries commands remove; without, there are no commands
    /// for caches.
    fn engine_uses_its_cache(&self, ats: bool) {
        for of in ["requests", "hits", "invalidations", "removed"] {
            assert_eq!(self.engine(of) > 0, ats, "{of}: {}", self.ats);
        }
        assert_eq!(self.count("commands/ATC_INV") > 0, ats, "{:?}", self.smmu);
        assert_eq!(self.count("atc_timeouts"), 0);
    }

    /// All event records by name.
    fn events(&self) -> BTreeMap<String, u64> {
        serde_json::from_value(self.smmu["events"].clone()).unwrap()
    }
}

/// Runs checks on the lab kernel; they have to pass, and the kernel has nothing to complain of.
fn run(checks: &[&str], settings: &str, options: &[&str]) -> Run {
    let run = run_whatever_the_kernel_says(checks, settings, options);
    for bad in ["WARNING:", "BUG:", "Oops", "CMD_SYNC timeout"] {
        assert!(!run.log.contains(bad), "{checks:?} {options:?}: {bad}\n{}", run.log);
    }
    run
}

fn run_whatever_the_kernel_says(checks: &[&str], settings: &str, options: &[&str]) -> Run {
    let command = guest_images::run_checks(checks, settings).unwrap();
    guest(&command, &[&["--smmu", ALL], options].concat())
}

/// A guest that runs a shell command.
fn command(exec: &str, options: &[&str]) -> Command {
    let image = if options.contains(&"--image") { &[][..] } else { &["--image", "lab"] };
    let mut command = smmulab();
    command.args(["run", "--tools", "--time-limit", "120s", "--exec", exec]).args([image, options].concat());
    command
}

/// Runs a command, which has to succeed.
fn guest(exec: &str, options: &[&str]) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let stats = dir.path().join("stats");
    let output = command(exec, options).arg("--stats").arg(&stats).output().unwrap();
    let (text, log) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{exec} {options:?}: {}\n{text}\n{log}", output.status);
    let stats: Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
    Run { output: text, log, smmu: stats["smmu"].clone(), ats: stats["ats"].clone() }
}

#[test]
fn dma_domains_pasids_and_interrupts_on_both_kinds_of_engine() {
    if skipped() {
        return;
    }
    for cpus in ["1", "4"] {
        let run =
            run(&["engine"], "", &["--cpus", cpus, "--device", "engine", "--device", "platform-engine"]);
        assert!(run.output.contains("32 pages in 1 ranges"), "{}", run.output);
        // On each engine: one of `fault`, two of `domain`, three of `pasid`, of which the last has no CD any more.
        let refused = run.output.matches("refused at").count() as u64;
        assert_eq!(refused, 12, "{}", run.output);
        assert_eq!(run.count("events/C_BAD_CD"), 2, "{:?}", run.events());
        assert_eq!(run.events().values().sum::<u64>(), refused, "{:?}", run.events());
        assert_eq!(run.count("command_errors"), 0);
    }
}

#[test]
fn the_checker_has_nothing_to_say_of_dma_domains_pasids_and_interrupts() {
    if skipped() {
        return;
    }
    for ats in [&[][..], &ATS] {
        let machine = ["--cpus", "2", "--device", "engine", "--device", "platform-engine"];
        let run = run(&["engine"], CORRECT, &[&machine[..], &CHECKED, ats].concat());
        assert_eq!(run.events(), BTreeMap::new());
        run.engine_uses_its_cache(!ats.is_empty());
    }
}

/// How many copies, one after the other, took as long as all rounds of mapping and unmapping: fewer than rounds, if the device was
/// at work all the time.
fn copies_beside(line: &str, rounds: &str) -> Option<u64> {
    line.strip_prefix(rounds)?.split_whitespace().next()?.parse().ok()
}

#[test]
fn the_checker_has_nothing_to_say_of_vfio_iommufd_and_nesting() {
    if skipped() {
        return;
    }
    for ats in [&[][..], &ATS] {
        let run =
            run(&["passthrough"], "HOW=correct", &[&["--device", "engine"][..], &CHECKED, ats].concat());
        let beside: Vec<u64> =
            run.output.lines().filter_map(|line| copies_beside(line, "20 rounds, ")).collect();
        assert!(beside.len() == 2 && beside.iter().all(|&copies| copies < 20), "DMA goes on: {}", run.output);
        assert!(run.output.contains("nested: done"), "{}", run.output);
        assert_eq!(run.events(), BTreeMap::new());
        run.engine_uses_its_cache(!ats.is_empty());
    }
}

#[test]
fn processes_share_their_memory_with_an_engine_that_stalls() {
    if skipped() {
        return;
    }
    for cpus in ["1", "2"] {
        let options = [&["--cpus", cpus, "--device", "platform-engine"][..], &CHECKED].concat();
        let run = run(&["sva"], "", &options);
        let stalled = run.count("stalled");
        assert!(stalled > 100, "{:?}", run.smmu);
        assert_eq!(run.count("commands/RESUME"), stalled, "every stall is answered, once");
        let faults = run.count("events/F_TRANSLATION") + run.count("events/F_PERMISSION");
        assert!(faults >= stalled, "{:?}", run.smmu);
        assert_eq!(run.events().values().sum::<u64>(), faults, "{:?}", run.events());
        assert!(run.count("events/F_PERMISSION") > 0, "copies over the zero page");
    }
}

#[test]
fn programs_map_and_unmap_under_dma_by_vfio_and_iommufd() {
    if skipped() {
        return;
    }
    let run = run(&["passthrough"], "PROGRAMS='vfio iommufd' ROUNDS=60", &["--device", "engine"]);
    assert_eq!(run.output.matches("60 rounds").count(), 2, "{}", run.output);
    let events = BTreeMap::from([("F_TRANSLATION".to_string(), 2)]);
    assert_eq!(run.events(), events, "after the unmap, and at no other time");
}

#[test]
fn a_program_has_a_virtual_smmu_with_its_own_stage_1() {
    if skipped() {
        return;
    }
    let run = run(&["passthrough"], "PROGRAMS=nested", &["--device", "engine"]);
    assert!(run.output.contains("event 0x10 of stream 77 at 1235f000"), "{}", run.output);
    assert!(run.count("s1_fetches") > 0 && run.count("s2_fetches") > 0, "{:?}", run.smmu);
    assert_eq!(run.count("events/F_TRANSLATION"), 2, "of stage 1, then of stage 2");
    assert_eq!(run.events().values().sum::<u64>(), 2, "{:?}", run.events());
}

#[test]
fn the_map_benchmark_runs_with_one_two_and_four_threads() {
    if skipped() {
        return;
    }
    for threads in ["1", "2", "4"] {
        let settings = format!("THREADS={threads}");
        let run = run(
            &["map-benchmark"],
            &settings,
            &[&["--device", "engine", "--cpus", threads, "--append", "dma_debug=off"][..], &CHECKED].concat(),
        );
        assert!(run.output.contains(&format!("{threads} threads, 1 pages: map ")), "{}", run.output);
        let invalidations = run.count("commands/TLBI_NH_VA");
        assert!(invalidations > 1000, "{:?}", run.smmu);
        assert!(run.count("commands/SYNC") >= invalidations / 64, "{:?}", run.smmu);
        assert_eq!(run.events(), BTreeMap::new());
        println!("{}", run.output.lines().next().unwrap_or_default());
    }
}

/// vmm/tests/guest/pmu.c for the guest, compressed and as text; nothing without a compiler.
fn pmu_program() -> Option<String> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/pmu.c");
    let dir = tempfile::tempdir().unwrap();
    let script = "aarch64-linux-gnu-gcc -Os -Wall -Wextra -Werror -static -nostdlib -ffreestanding -fno-stack-protector \
         -fno-pic -no-pie -Wl,--build-id=none -Wl,-z,max-page-size=4096 -o $1/pmu $0 && gzip -9nc $1/pmu | base64 -w0";
    let built = Command::new("sh").args(["-c", script, source]).arg(dir.path()).output().unwrap();
    (built.status.success() && !built.stdout.is_empty()).then(|| stdout(&built))
}

/// perf in the guest, by Linux's driver for the PMCG, counts the engine's work as the emulator does: what a run with the work has
/// more than one without.
#[test]
fn perf_counts_what_the_smmu_counts() {
    if skipped() {
        return;
    }
    let Some(program) = pmu_program() else { return skip("there is no aarch64-linux-gnu-gcc") };
    let work = "exec 3<>/dev/smmulab0; echo \"copy size=65536 frames=4\" >&3; cat <&3 >/dev/null";
    let counted = |work: &str, stream: &str| {
        let command = format!(
            "echo {program} | base64 -d | gunzip >/tmp/pmu && chmod +x /tmp/pmu || exit 1\n\
             insmod /smmulab/smmulab_engine.ko || exit 1\n\
             cd /sys/bus/event_source/devices/smmuv3_pmcg_* || exit 1\n\
             /tmp/pmu $(cat type) $(cat cpumask) {stream} '{work}'"
        );
        let run = guest(&command, &["--smmu", "preset=full,pmcg=4", "--device", "platform-engine"]);
        let counts: Vec<u64> = run.output.split_whitespace().map(|count| count.parse().unwrap()).collect();
        (counts, ["transactions", "tlb_misses", "s1_fetches"].map(|of| run.count(of)))
    };
    let (nothing, before) = counted("true", "-");
    assert_eq!(nothing, [0, 0, 0]);
    let (all, after) = counted(work, "-");
    let more: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert!(all == more && all[0] >= 500 && all[1] > 0, "perf: {all:?}; the emulator: {more:?}");
    assert_eq!(counted(work, "65536").0, all, "all are of the engine's stream");
    assert_eq!(counted(work, "7").0, nothing, "none are of another's");
}

#[test]
fn mistakes_do_harm_and_their_twins_do_none() {
    if skipped() {
        return;
    }
    let first = run(&["mistakes"], "", &["--device", "engine", "--append", "dma_debug=off"]);
    assert!(first.count("events/F_TRANSLATION") >= 2, "{:?}", first.events());
    // Bounce buffers show what was not synced.
    run(
        &["mistakes"],
        "MISTAKES='early-read data\nnarrow-sync data'",
        &["--device", "engine", "--append", "iommu.passthrough=1 swiotlb=force"],
    );
}

#[test]
fn reports_name_the_code_of_kernels_and_modules() {
    if skipped() {
        return;
    }
    // The lab kernel has a System.map; of Debian's, only the running kernel knows its names. The newest hides while a process
    // runs, and 6.1 has no name for its list of modules.
    for image in ["lab", "debian-6.1", "debian-6.12", "debian-newest"] {
        let tools = smmulab().args(["image", "tools", image]).output().unwrap();
        if !tools.status.success() {
            return skip(&format!("no tools for {image}: {}", stderr(&tools)));
        }
        let script = "insmod /smmulab/smmulab_engine.ko && exec 3<>/dev/smmulab0 && echo narrow-flush >&3";
        let output = smmulab()
            .args(["run", "--image", image, "--tools", "--device", "engine", "--time-limit", "60s"])
            .args(["--check", "report", "--exec", script])
            .output()
            .unwrap();
        let log = stderr(&output);
        assert_eq!(output.status.code(), Some(123), "{image}: {log}");
        let line =
            |role: &str| log.lines().find(|line| line.trim_start().starts_with(role)).unwrap_or_default();
        for (role, name) in [
            ("unmap:", "lab_narrow_flush [smmulab_engine]+0x"),
            ("invalidation:", "arm_smmu_cmdq_issue_cmdlist+0x"),
            ("reuse:", "lab_iommu_map [smmulab_engine]+0x"),
        ] {
            assert!(line(role).contains(name), "{image} {role} {name}: {log}");
        }
    }
}

#[test]
fn the_kernels_own_checks_name_who_freed_memory_under_dma() {
    if skipped() {
        return;
    }
    let oracle =
        ["--device", "engine", "--append", "debug_pagealloc=on iommu.debug_pagealloc=1 dma_debug=off"];
    // The second frees all of a buffer of two pages.
    for (mistake, function, pages) in
        [("stale-page", "lab_stale_page", 1), ("free-before-unmap", "lab_free_before_unmap", 2)]
    {
        let settings = format!("MISTAKES='{mistake} nothing'");
        let run = run_whatever_the_kernel_says(&["mistakes"], &settings, &oracle);
        assert_eq!(
            run.log.matches("iommu: Detected page leak!").count(),
            pages,
            "the twin is silent\n{}",
            run.log
        );
        assert!(run.log.contains(&format!("{function}+")), "{}", run.log);
    }
}

#[test]
fn the_module_works_on_debians_kernels() {
    if skipped() {
        return;
    }
    for image in ["debian-6.1", "debian-6.12", "debian-newest"] {
        let fetched = smmulab().args(["image", "tools", image]).output().unwrap();
        if !fetched.status.success() {
            return skip(&format!("no tools for {image}: {}", stderr(&fetched)));
        }
        let tests = "TESTS='copy size=65536 frames=4\ncoherent size=8192\nsync size=8192 loops=5\nmsi loops=10\n\
                     domain loops=2\ndomain-race threads=4 loops=10'";
        run(&["engine"], tests, &["--image", image, "--device", "engine", "--cpus", "2"]);
        let vfio = run(&["passthrough"], "PROGRAMS=vfio", &["--image", image, "--device", "engine"]);
        assert!(vfio.output.contains("20 rounds"), "{}", vfio.output);
    }
}
