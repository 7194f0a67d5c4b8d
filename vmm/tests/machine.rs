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
        assert!(text.contains("smmu3.0x0000000009050000: 0000:00:01.0 0000:00:02.0\n"), "{image}: {text}");
        assert!(text.contains("smmu3.0x000000000c100000: 0000:00:04.0\n"), "{image}: {text}");
        let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
        let translated = |smmu: &serde_json::Value| smmu["translated"].as_u64().unwrap();
        assert!(translated(&stats["smmu"]) > 0 && translated(&stats["more_smmus"][0]) > 256, "{stats}");
    }
}

/// Waits for a PCI device to come or go.
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
    let (plug, file) = (format!("3s:1:disk={},ro", disk.display()), std::fs::read(&disk).unwrap());
    for image in KERNELS {
        let args =
            ["--root-port", "internal", "--root-port", "internal", "--plug", &plug, "--unplug", "12s:1"];
        let script = format!(
            "{WAIT}; wait '[ -e /dev/vda ]' || exit 1; sha256sum /dev/vda; \
             d=$(readlink -f /sys/block/vda/device/../..); d=$(basename $d); echo device $d; \
             ls /sys/bus/pci/devices/$d/iommu_group/devices; \
             wait '[ ! -e /dev/vda ]' || exit 2; wait \"[ ! -e /sys/bus/pci/devices/$d ]\" || exit 3; \
             cat /sys/bus/pci/slots/1/power; echo end"
        );
        let text = run(image, &args, &script);
        let sum = sha256(&file);
        assert!(text.starts_with(&sum), "{image}: {text}");
        let device = text.lines().find_map(|l| l.strip_prefix("device ")).unwrap().to_string();
        assert!(!device.starts_with("0000:00:"), "{image}: {text}");
        let group: Vec<&str> = text.lines().filter(|l| *l == device).collect();
        assert_eq!(group.len(), 1, "{image}, the group is the device's alone: {text}");
        assert!(text.ends_with("0\nend\n"), "{image}: {text}");
    }
}

#[test]
fn a_surprise_removal_with_dma_running_leaves_the_guest_alive() {
    if skipped(&KERNELS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    random_file(&disk, 64 << 20, 13).unwrap();
    let disk = format!("0:1:disk={},ro", disk.display());
    for image in KERNELS {
        let args =
            ["--root-port", "internal", "--plug", &disk, "--unplug", "4s:1:surprise", "--plug", "20s:1:rng"];
        let script = format!(
            "{WAIT}; (while dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done) & \
             wait '[ ! -e /dev/vda ]' || exit 1; wait '[ $(ls /sys/bus/virtio/devices | wc -l) = 2 ]' || exit 2; \
             echo gone; wait '[ $(ls /sys/bus/virtio/devices | wc -l) = 3 ]' || exit 3; echo back"
        );
        assert_eq!(run(image, &args, &script), "gone\nback\n", "{image}");
    }
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
        let text = run("debian-6.12", &args, "sleep 9; dmesg");
        let mut stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
        stats.as_object_mut().unwrap().remove("host");
        (text, stats)
    };
    let (first, again) = (figures("first"), figures("again"));
    assert_eq!(first, again);
    assert!(first.0.contains("Slot(1): Card present") || first.0.contains("pciehp"), "{}", first.0);
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
