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

/// Found from one seed within so many schedules, shrunk, and replayed; the twin is silent for as many.
fn found_once_and_twin_silent(name: &str, within: u64) {
    let dir = tempfile::tempdir().unwrap();
    let runs = within.to_string();
    let found = race(name, dir.path(), &["--policy", "random", "--seed", "1", "--runs", &runs]);
    assert_eq!(found.status.code(), Some(1), "{name}: {}{}", stdout(&found), stderr(&found));
    println!("{name}: {}", stdout(&found).lines().next().unwrap_or_default());
    let file = dir.path().join("race-1.json");
    let again = smmulab().arg("replay").arg(&file).args(["--times", "3"]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{name}: {}", stderr(&again));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(record["holds"].as_array().unwrap().len() <= 5, "{name}: {}", record["holds"]);
    let twin = format!("{name}-correct");
    let silent = race(&twin, dir.path(), &["--policy", "random", "--runs", &runs]);
    assert_eq!(silent.status.code(), Some(0), "{twin}: {}{}", stdout(&silent), stderr(&silent));
}

/// Found from three seeds within so many schedules, shrunk, and replayed; the twin is silent for as many more.
fn found_and_twin_silent(name: &str, policy: &str, within: u64) {
    let dir = tempfile::tempdir().unwrap();
    for seed in ["1", "2", "3"] {
        let runs = within.to_string();
        let found = race(name, dir.path(), &["--policy", policy, "--seed", seed, "--runs", &runs]);
        assert_eq!(found.status.code(), Some(1), "{name}, seed {seed}: {}{}", stdout(&found), stderr(&found));
        println!("{name}, {policy}, seed {seed}: {}", stdout(&found).lines().next().unwrap_or_default());
    }
    for number in 1..=3 {
        let file = dir.path().join(format!("race-{number}.json"));
        let again = smmulab().arg("replay").arg(&file).args(["--times", "5"]).output().unwrap();
        assert_eq!(again.status.code(), Some(1), "{name}: {}", stderr(&again));
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert!(record["holds"].as_array().unwrap().len() <= 5, "{name}: {}", record["holds"]);
    }
    let twin = format!("{name}-correct");
    let silent = race(&twin, dir.path(), &["--policy", policy, "--runs", &(10 * within).to_string()]);
    assert_eq!(silent.status.code(), Some(0), "{twin}: {}{}", stdout(&silent), stderr(&silent));
}

/// The order that the scenario's script says fails, and replays without the script; the twin's own script ends well, and
/// so do some random schedules of it.
fn scripted_and_twin_silent(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let found = race(name, dir.path(), &["--policy", "script"]);
    assert_eq!(found.status.code(), Some(1), "{name}: {}{}", stdout(&found), stderr(&found));
    println!("{name}: {}", stdout(&found).lines().nth(2).unwrap_or_default());
    let file = dir.path().join("race-1.json");
    let again = smmulab().arg("replay").arg(&file).args(["--times", "2"]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{name}: {}", stderr(&again));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(record["holds"].as_array().unwrap().len() <= 2, "{name}: {}", record["holds"]);
    let twin = format!("{name}-correct");
    for args in [&["--policy", "script"][..], &["--policy", "random", "--runs", "10"]] {
        let silent = race(&twin, dir.path(), args);
        assert_eq!(silent.status.code(), Some(0), "{twin}: {}{}", stdout(&silent), stderr(&silent));
    }
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
        found_once_and_twin_silent("early-done", 200);
        found_once_and_twin_silent("early-free", 60);
        found_once_and_twin_silent("block-race", 400);
        found_once_and_twin_silent("walk-race", 400);
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

/// Seed 003, the shape of seed 002, and seed 001's pools: two exact places each, which a script names.
#[test]
fn mutants_whose_order_is_said_by_hand() {
    if ready() {
        scripted_and_twin_silent("sva-late-dev");
        scripted_and_twin_silent("streams-unlocked");
        scripted_and_twin_silent("swiotlb-early-free");
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
