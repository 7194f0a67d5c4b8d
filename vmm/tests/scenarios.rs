//! The scenarios of guest-images/scenarios, on the lab kernel: the wrong ones are found, their correct twins are silent.
//!
//! With SMMULAB_LONG=1 and a release build; without the lab image they are skipped, and fail under CI=true.

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;

use common::{smmulab, stderr, stdout};

fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/scenarios")
}

/// Whether there is a lab kernel to run them on.
fn ready() -> bool {
    if std::env::var_os("SMMULAB_LONG").is_none() || cfg!(debug_assertions) {
        println!("SKIPPED: scenarios take minutes: SMMULAB_LONG=1 runs them, in a release build");
        return false;
    }
    let list = smmulab().args(["image", "list"]).output().unwrap();
    let cached =
        stdout(&list).lines().any(|line| line.starts_with("lab ") && !line.trim_end().ends_with(" -"));
    if !cached {
        println!("SKIPPED: there is no lab kernel: smmulab image build lab");
        assert!(std::env::var_os("CI").is_none(), "under CI=true it has to be there");
    }
    cached
}

fn race(name: &str, out: &Path, args: &[&str]) -> Output {
    let file = scenarios().join(format!("{name}.toml"));
    smmulab().arg("race").arg(file).arg("--out").arg(out).args(args).output().unwrap()
}

/// The scenario fails: its first line says after how many schedules.
fn fails(name: &str, out: &Path, args: &[&str]) {
    let found = race(name, out, args);
    assert_eq!(found.status.code(), Some(1), "{name} {args:?}: {}{}", stdout(&found), stderr(&found));
    println!("{name} {args:?}: {}", stdout(&found).lines().next().unwrap_or_default());
}

/// The failure of this number was shrunk to `most` decisions, and replays as often as is said.
fn replays(name: &str, out: &Path, number: usize, most: usize, times: &str) {
    let file = out.join(format!("race-{number}.json"));
    let again = smmulab().arg("replay").arg(&file).args(["--times", times]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{name}: {}", stderr(&again));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(record["holds"].as_array().unwrap().len() <= most, "{name}: {}", record["holds"]);
}

/// The correct twin does not fail.
fn twin_silent(name: &str, out: &Path, args: &[&str]) {
    let twin = format!("{name}-correct");
    let silent = race(&twin, out, args);
    assert_eq!(silent.status.code(), Some(0), "{twin} {args:?}: {}{}", stdout(&silent), stderr(&silent));
}

/// Found at random from one seed within so many schedules; the twin is silent for as many.
fn found_once_and_twin_silent(name: &str, within: u64) {
    searched_once(name, &["--policy", "random"], within);
}

/// The same, of a search of some kind.
fn searched_once(name: &str, search: &[&str], within: u64) {
    let dir = tempfile::tempdir().unwrap();
    let runs = within.to_string();
    let search = [search, &["--seed", "1", "--runs", &runs]].concat();
    fails(name, dir.path(), &search);
    replays(name, dir.path(), 1, 5, "3");
    twin_silent(name, dir.path(), &search);
}

/// Found from three seeds within so many schedules; the twin is silent for ten times as many.
fn found_and_twin_silent(name: &str, policy: &str, within: u64) {
    let dir = tempfile::tempdir().unwrap();
    for (number, seed) in (1..).zip(["1", "2", "3"]) {
        fails(name, dir.path(), &["--policy", policy, "--seed", seed, "--runs", &within.to_string()]);
        replays(name, dir.path(), number, 5, "5");
    }
    twin_silent(name, dir.path(), &["--policy", policy, "--runs", &(10 * within).to_string()]);
}

/// The order that the scenario's script says fails, and replays without the script; the twin's own script ends well.
fn scripted_and_twin_silent(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    fails(name, dir.path(), &["--policy", "script"]);
    replays(name, dir.path(), 1, 2, "2");
    twin_silent(name, dir.path(), &["--policy", "script"]);
}

#[test]
fn a_doorbell_before_its_data() {
    if ready() {
        found_and_twin_silent("early-doorbell", "random", 100);
    }
}

/// Driver bugs, and callers of the IOMMU API that share addresses without a lock.
#[test]
fn what_two_cpus_or_a_cpu_and_the_engine_do_at_the_same_time() {
    if ready() {
        found_once_and_twin_silent("early-refill", 60);
        found_once_and_twin_silent("early-done", 100);
        found_once_and_twin_silent("early-free", 60);
        found_once_and_twin_silent("block-race", 150);
        found_once_and_twin_silent("walk-race", 200);
    }
}

/// Mistakes of the kernel itself, which its command line turns on.
#[test]
fn mutants_of_the_lab_kernel() {
    if ready() {
        found_once_and_twin_silent("swiotlb-late-flag", 100);
        found_once_and_twin_silent("swiotlb-late-pool", 50);
        found_once_and_twin_silent("blind-install", 60);
    }
}

/// Mutants that it takes one or two exact places to see: seed 003, the shape of seed 002, seed 001's pools, and a table that
/// is freed while it may be walked.
#[test]
fn mutants_that_need_exact_places() {
    if ready() {
        searched_once("sva-late-dev", &["--policy", "few", "--depth", "3"], 500);
        found_once_and_twin_silent("streams-unlocked", 60);
        found_once_and_twin_silent("swiotlb-early-free", 60);
        found_once_and_twin_silent("table-early-free", 60);
    }
}

/// Seed 003 as its mail tells it.
#[test]
fn an_order_that_is_said_by_hand() {
    if ready() {
        scripted_and_twin_silent("sva-late-dev");
    }
}

#[test]
fn invalidations_that_are_missing_or_too_narrow() {
    if ready() {
        found_and_twin_silent("unmap-without-sync", "fixed", 1);
        found_and_twin_silent("narrow-flush", "fixed", 1);
        found_and_twin_silent("unmap-in-flight", "fixed", 1);
    }
}

/// Seed 004: two vCPUs may make the same table, and one of the two is thrown away. That is correct.
#[test]
fn a_lost_race_for_a_table_is_no_failure() {
    if ready() {
        let dir = tempfile::tempdir().unwrap();
        let silent = race("domain-race", dir.path(), &["--runs", "300"]);
        assert_eq!(silent.status.code(), Some(0), "{}{}", stdout(&silent), stderr(&silent));
    }
}
