//! Machines other than the plain one, with stock kernels: several SMMUs, devices in the device tree, hot plug,
//! performance monitors. SMMULAB_LONG=1 runs them.

mod common;

use common::{long, random_file, skip, smmulab, stderr, stdout};
use sha2::{Digest, Sha256};

const KERNELS: [&str; 3] = ["debian-6.1", "debian-6.12", "debian-newest"];

fn skipped(images: &[&str]) -> bool {
    if !long() || cfg!(debug_assertions) {
        println!("SKIPPED: guest boots take minutes: SMMULAB_LONG=1 runs them, in a release build");
        return true;
    }
    for image in images {
        let output = smmulab().args(["image", "fetch", image]).output().unwrap();
        if !output.status.success() {
            skip(&format!("no guest image {image}: {}", stderr(&output)));
            return true;
        }
    }
    false
}

/// Runs `script` in a guest that has to end well, and answers what it printed.
fn run(image: &str, args: &[&str], script: &str) -> String {
    let output = smmulab()
        .args(["run", "--image", image, "--time-limit", "200s", "--exec", script])
        .args(args)
        .output()
        .unwrap();
    let log = stderr(&output);
    let last: Vec<&str> = log.lines().rev().take(40).collect();
    let (out, last) = (stdout(&output), last.into_iter().rev().collect::<Vec<_>>().join("\n"));
    assert!(output.status.success(), "{image} {args:?}: {}\n{out}\n{last}", output.status);
    for bad in ["event 0x", "CMD_SYNC timeout", "GERROR", "BUG:", "WARNING:"] {
        assert!(!log.contains(bad), "{image} {args:?}: {bad}\n{log}");
    }
    out
}

#[test]
fn requester_ids_are_split_between_two_smmus() {
    if skipped(&KERNELS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    random_file(&disk, 1 << 20, 11).unwrap();
    let disk = format!("{},ro", disk.display());
    for image in KERNELS {
        // The disk, device 4, is behind the second.
        let args = ["--smmu", "on", "--smmu", "preset=full,pci=0x20-0x27", "--disk", &disk];
        let stats = dir.path().join("stats");
        let args = [&args[..], &["--stats", stats.to_str().unwrap()]].concat();
        let script =
            "for s in /sys/class/iommu/*; do echo $(basename $s): $(ls $s/devices); done; sha256sum /dev/vda";
        let text = run(image, &args, script);
        assert!(text.contains("0000:00:01.0 0000:00:02.0\nsmmu3.0x000000000c100000"), "{image}: {text}");
        assert!(text.contains("smmu3.0x000000000c100000: 0000:00:04.0\n"), "{image}: {text}");
        let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
        let translated = |smmu: &serde_json::Value| smmu["translated"].as_u64().unwrap();
        assert!(translated(&stats["smmu"]) > 0 && translated(&stats["more_smmus"][0]) > 256, "{stats}");
    }
}

/// Waits until something is so.
const WAIT: &str =
    "wait() { n=0; until eval \"$1\"; do sleep 0.2; n=$((n+1)); [ $n -lt 200 ] || return 1; done; }";

#[test]
fn a_disk_comes_and_leaves_in_order() {
    if skipped(&KERNELS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    random_file(&disk, 1 << 20, 12).unwrap();
    let plug = format!("3s:1:disk={},ro", disk.display());
    let sum = sha256(&std::fs::read(&disk).unwrap());
    for image in KERNELS {
        let args =
            ["--root-port", "internal", "--root-port", "internal", "--plug", &plug, "--unplug", "12s:1"];
        let script = format!(
            "modprobe virtio_blk; {WAIT}; wait '[ -e /dev/vda ]' || exit 1; sha256sum /dev/vda; \
             d=$(basename $(readlink -f /sys/block/vda/device/..)); echo device $d; \
             ls /sys/bus/pci/devices/$d/iommu_group/devices; \
             wait '[ ! -e /dev/vda ]' || exit 2; wait \"[ ! -e /sys/bus/pci/devices/$d ]\" || exit 3; \
             wait '[ $(cat /sys/bus/pci/slots/1/adapter) = 0 ]' || exit 4; cat /sys/bus/pci/slots/1/power"
        );
        let text = run(image, &args, &script);
        // The first port's bus, a group of its own, and a slot without power at the end.
        let expected = format!("{sum}  /dev/vda\ndevice 0000:01:00.0\n0000:01:00.0\n0\n");
        assert_eq!(text, expected, "{image}");
    }
}

#[test]
fn a_slot_is_used_again_after_a_surprise() {
    if skipped(&KERNELS) {
        return;
    }
    // Not a virtio device: their drivers in Linux wait for ever for a reset of one that is gone.
    let args = ["--root-port", "internal", "--plug", "0:1:engine", "--unplug", "4s:1:surprise"];
    let args = [&args[..], &["--plug", "10s:1:rng"]].concat();
    let script = format!(
        "{WAIT}; d=/sys/bus/pci/devices/0000:01:00.0; cat $d/device; wait '[ ! -e $d ]' || exit 1; echo gone; \
         wait '[ -e $d ]' || exit 2; cat $d/device; wait '[ $(ls /sys/bus/virtio/devices | wc -l) = 3 ]' || exit 3"
    );
    for image in KERNELS {
        assert_eq!(run(image, &args, &script), "0xff80\ngone\n0x1044\n", "{image}");
    }
}

#[test]
fn the_lab_kernel_finds_the_performance_monitors() {
    if skipped(&["lab"]) {
        return;
    }
    let script = "cat /sys/bus/event_source/devices/smmuv3_pmcg_d800/events/transaction; grep smmuv3-pmu /proc/interrupts";
    let text = run("lab", &["--smmu", "preset=full"], script);
    assert!(text.starts_with("event=0x01\n") && text.contains("d800000.pmu"), "{text}");
}

#[test]
fn a_run_with_plugging_is_the_same_twice() {
    if skipped(&["debian-6.12"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let figures = |name: &str| {
        let stats = dir.path().join(name);
        let args =
            ["--root-port", "internal", "--plug", "2s:1:engine", "--unplug", "6s:1:surprise", "--stats"];
        let args = [&args[..], &[stats.to_str().unwrap()]].concat();
        let text = run("debian-6.12", &args, "sleep 9; dmesg | grep pciehp");
        let mut stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
        stats.as_object_mut().unwrap().remove("host");
        (text, stats)
    };
    let (first, again) = (figures("first"), figures("again"));
    assert_eq!(first, again);
    assert!(first.0.contains("Slot(1): Card present"), "{}", first.0);
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
