//! Guest boots, the last word: stock Debian kernels behind the SMMU. They take minutes; SMMULAB_LONG=1 runs them.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{long, random_file, skip, smmulab, stderr, stdout};
use sha2::{Digest, Sha256};

const KERNELS: [&str; 3] = ["debian-6.1", "debian-6.12", "debian-newest"];

/// How the guest uses the SMMU.
const MODES: [&str; 3] = ["iommu.strict=1", "iommu.strict=0", "iommu.passthrough=1"];

/// What every boot has to pass (guest-images/checks): the SMMU driver probed without a warning, every PCI device is in
/// an IOMMU group of the right kind, MSIs arrive through the ITS, all CPUs get on.
const CHECKS: [&str; 7] = ["smmu-log", "iommu-groups", "interrupts", "cpus", "rng", "disk-write", "rebind"];

fn skipped() -> bool {
    if !long() || cfg!(debug_assertions) {
        println!("SKIPPED: guest boots take minutes: SMMULAB_LONG=1 runs them, in a release build");
        return true;
    }
    for image in KERNELS {
        let output = smmulab().args(["image", "fetch", image]).output().unwrap();
        if !output.status.success() {
            skip(&format!("no guest image {image}: {}", stderr(&output)));
            return true;
        }
    }
    false
}

fn ok(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}\n--- stdout\n{}\n--- kernel log\n{}",
        output.status,
        stdout(output),
        stderr(output)
            .lines()
            .rev()
            .take(60)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join("\n")
    );
    stdout(output)
}

fn matrix(image: &str) {
    let checks = guest_images::run_checks(&CHECKS, "").unwrap();
    for cpus in ["1", "2", "4"] {
        for mode in MODES {
            let dir = tempfile::tempdir().unwrap();
            let disk = dir.path().join("disk");
            random_file(&disk, 12 << 20, 7).unwrap();
            let output = smmulab()
                .args(["run", "--image", image, "--cpus", cpus, "--append", mode, "--exec", &checks])
                .args(["--time-limit", "120s", "--disk"])
                .arg(&disk)
                .output()
                .unwrap();
            let text = ok(&output);
            assert!(text.contains(&sha256(&disk)), "{image} {cpus} {mode}: {text}");
            for check in CHECKS {
                assert!(text.contains(&format!("ok {check}\n")), "{image} {cpus} {mode}: {text}");
            }
        }
    }
}

#[test]
fn linux_6_1_boots_in_every_mode() {
    if !skipped() {
        matrix("debian-6.1");
    }
}

#[test]
fn linux_6_12_boots_in_every_mode() {
    if !skipped() {
        matrix("debian-6.12");
    }
}

#[test]
fn the_newest_linux_boots_in_every_mode() {
    if !skipped() {
        matrix("debian-newest");
    }
}

fn sha256(path: &Path) -> String {
    let mut hash = Sha256::new();
    hash.update(std::fs::read(path).unwrap());
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn a_disk_reads_and_writes_back_what_the_host_has() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    random_file(&disk, 256 << 20, 42).unwrap();
    for (image, layout) in KERNELS.into_iter().flat_map(|image| [(image, "split"), (image, "packed")]) {
        let before = sha256(&disk);
        let script = "cut -c35 /sys/bus/virtio/devices/virtio*/features && sha256sum /dev/vda && dd if=/dev/vda of=/tmp/head bs=1M count=8 2>/dev/null && \
             dd if=/tmp/head of=/dev/vda bs=1M seek=100 conv=notrunc 2>/dev/null && sync && \
             echo 3 > /proc/sys/vm/drop_caches && sha256sum /dev/vda";
        let output = smmulab()
            .args(["run", "--image", image, "--cpus", "2", "--virtio", layout, "--exec", script, "--disk"])
            .arg(&disk)
            .output()
            .unwrap();
        let text = ok(&output);
        let mut words = text.split_whitespace();
        // VIRTIO_F_RING_PACKED of console, entropy and disk.
        let packed = if layout == "packed" { "1" } else { "0" };
        assert!((0..3).all(|_| words.next() == Some(packed)), "{image} {layout}: {text}");
        let hashes: Vec<&str> = words.step_by(2).collect();
        assert_eq!(hashes, [before, sha256(&disk)], "{image} {layout}: before and after the write");
        let content = std::fs::read(&disk).unwrap();
        let arrived = content[..8 << 20] == content[100 << 20..108 << 20];
        assert!(arrived, "{image} {layout}: the write did not arrive");
    }
}

#[test]
fn a_download_over_virtio_net_arrives_intact_and_can_be_played_again() {
    if skipped() {
        return;
    }
    if Command::new("passt").arg("--version").output().is_err() {
        return skip("no passt (Debian package passt)");
    }
    ["split", "packed"].into_iter().for_each(download);
}

fn download(layout: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    random_file(&file, 4 << 20, 3).unwrap();
    let content = std::fs::read(&file).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        let header = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", content.len());
        stream.write_all(header.as_bytes()).unwrap();
        stream.write_all(&content).unwrap();
    });
    let script = format!(
        "gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); \
         wget -q -O /tmp/file http://$gateway:{port}/ && sha256sum /tmp/file"
    );
    let run = |way: &str| {
        let stats = dir.path().join(way);
        let output = smmulab()
            .args(["run", "--net", "--virtio", layout, "--time-limit", "300s", "--exec", &script, way])
            .arg(dir.path().join("recording"))
            .arg("--stats")
            .arg(&stats)
            .output()
            .unwrap();
        (ok(&output), stderr(&output), figures(&stats))
    };
    let live = run("--record");
    server.join().unwrap();
    assert!(live.0.starts_with(&sha256(&file)), "{}", live.0);
    // Without the server: what came over the network is in the recording.
    let played = run("--play");
    assert_eq!(live, played);
}

/// What of `--stats` must not depend on the host.
fn figures(path: &Path) -> serde_json::Value {
    let mut stats: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    stats.as_object_mut().unwrap().remove("host");
    stats
}

#[test]
fn a_run_is_the_same_to_the_bit_on_a_busy_host_and_by_either_engine() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    random_file(&disk, 4 << 20, 9).unwrap();
    let run = |mut program: Command, name: &str, engine: &str| {
        let stats = dir.path().join(name);
        let output = program
            .args(["run", "--cpus", "2", "--engine", engine, "--exec", "md5sum /dev/vda; dmesg"])
            .args(["--stats", stats.to_str().unwrap(), "--disk"])
            .arg(format!("{},ro", disk.display()))
            .output()
            .unwrap();
        (ok(&output), stderr(&output), figures(&stats))
    };
    let first = run(smmulab(), "first", "block");
    let busy = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while busy.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let again = run(smmulab(), "again", "block");
        let reference = run(smmulab(), "reference", "step");
        let debug = debug_build().map(|program| run(program, "debug", "block"));
        busy.store(false, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(first.2, again.2, "the same run twice");
        assert_eq!((&first.0, &first.1), (&again.0, &again.1));
        assert_eq!(first.2, reference.2, "the reference engine");
        assert_eq!((&first.0, &first.1), (&reference.0, &reference.1));
        match debug {
            Some(debug) => {
                assert_eq!(first.2, debug.2, "a debug build");
                assert_eq!((&first.0, &first.1), (&debug.0, &debug.1));
            }
            None => skip("no debug build beside the release build (cargo build makes it)"),
        }
    });
}

/// The debug build of the program, if there is one beside the release build.
fn debug_build() -> Option<Command> {
    let release = Path::new(env!("CARGO_BIN_EXE_smmulab"));
    let path = release.parent()?.parent()?.join("debug").join("smmulab");
    let mut command = path.exists().then(|| Command::new(path))?;
    command.stdin(Stdio::null());
    Some(command)
}

#[test]
fn the_status_of_the_command_is_ours() {
    if skipped() {
        return;
    }
    let output = smmulab().args(["run", "--exec", "echo hello; exit 7"]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert_eq!(stdout(&output), "hello\n");
    let output = smmulab().args(["run", "--exec", "sleep 1000", "--time-limit", "30s"]).output().unwrap();
    assert_eq!(output.status.code(), Some(124));
    let output = smmulab().args(["run", "--exec", "poweroff -f"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
}

/// Reads a disk, writes it, and says how the guest's bounce pools fared: `before` with the slots in use at first, then
/// each file of debugfs with what it says.
const BOUNCED: &str = "mount -t debugfs none /sys/kernel/debug 2>/dev/null; cd /sys/kernel/debug && \
     echo before $(cat swiotlb/io_tlb_used) && sha256sum /dev/vda && \
     dd if=/dev/vda of=/tmp/head bs=1M count=4 2>/dev/null && \
     dd if=/tmp/head of=/dev/vda bs=1M seek=10 conv=notrunc 2>/dev/null && sync && \
     echo 3 > /proc/sys/vm/drop_caches && sha256sum /dev/vda && \
     find . -maxdepth 2 -name 'io_tlb_*' | while read f; do echo $f $(cat $f); done";

/// Runs [`BOUNCED`]; the guest's counters, and the emulator's for the disk.
fn bounced(options: &[&str]) -> (std::collections::BTreeMap<String, u64>, serde_json::Value) {
    let dir = tempfile::tempdir().unwrap();
    let (disk, stats) = (dir.path().join("disk"), dir.path().join("stats"));
    random_file(&disk, 24 << 20, 11).unwrap();
    let before = sha256(&disk);
    let output = smmulab()
        .args(["run", "--exec", BOUNCED, "--stats", stats.to_str().unwrap()])
        .args(options)
        .arg("--disk")
        .arg(&disk)
        .output()
        .unwrap();
    let text = ok(&output);
    let (hashes, counters): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| l.ends_with("/dev/vda"));
    let hashes: Vec<&str> = hashes.iter().filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(hashes, [before, sha256(&disk)], "{options:?}: before and after the write");
    let counter = |line: &&str| {
        let (name, value) = line.trim_start_matches("./").split_once(' ')?;
        Some((name.to_string(), value.parse().ok()?))
    };
    let counters = counters.iter().filter_map(counter).collect();
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
    let dma = stats["dma"]["00:04.0"].clone();
    assert!(dma["bytes_written"].as_u64() >= Some(48 << 20), "{dma}");
    assert_eq!(dma["aborts"], 0, "{options:?}: the device reaches all that it is told to");
    (counters, dma)
}

#[test]
fn linux_bounces_what_32_address_bits_do_not_reach() {
    if skipped() {
        return;
    }
    for image in KERNELS {
        let options = ["--image", image, "--mem", "6G", "--dma-bits", "32"];
        let (counters, _) = bounced(&[&options[..], &["--smmu", "off"]].concat());
        // The console's buffers for input stay mapped.
        assert_eq!(counters["swiotlb/io_tlb_used"], counters["before"], "{image}: {counters:?}");
        assert!(counters["swiotlb/io_tlb_nslabs"] > 0, "{image}: {counters:?}");
        // Since 6.4 the kernel says how many slots it had in use.
        if image != "debian-6.1" {
            assert!(counters["swiotlb/io_tlb_used_hiwater"] > counters["before"], "{image}: {counters:?}");
        }
        // With an SMMU nothing needs bouncing: IOVAs are low.
        let (counters, _) = bounced(&options);
        let most = counters.get("swiotlb/io_tlb_used_hiwater").copied();
        assert_eq!((counters["before"], most.unwrap_or(0)), (0, 0), "{image}: {counters:?}");
    }
}

#[test]
fn a_restricted_device_stays_in_its_pool() {
    if skipped() {
        return;
    }
    if !smmulab().args(["image", "fetch", "lab"]).output().unwrap().status.success() {
        return skip("no lab kernel (smmulab image build lab)");
    }
    let options = ["--image", "lab", "--smmu", "off", "--restricted-dma", "disk0,8M"];
    let (counters, _) = bounced(&options);
    let pool: Vec<_> = counters.iter().filter(|(name, _)| name.starts_with("restricted-dma-pool@")).collect();
    let counter = |what: &str| pool.iter().find(|(name, _)| name.ends_with(what)).map(|(_, value)| **value);
    assert_eq!(counter("io_tlb_nslabs"), Some(4096), "{counters:?}");
    // The rings stay in the pool; all that was mapped for data is given back. The machine aborts what the device does
    // outside of it, and aborted nothing: all its bytes went through slots of this pool, and none of the other's.
    assert!((1..64).contains(&counter("/io_tlb_used").unwrap()), "{counters:?}");
    assert!((64..=4096).contains(&counter("/io_tlb_used_hiwater").unwrap()), "{counters:?}");
    assert_eq!((counters["before"], counters["swiotlb/io_tlb_used_hiwater"]), (0, 0), "{counters:?}");
}

/// CONFIG_SWIOTLB_DYNAMIC: 1 MiB is not enough for this disk's requests.
#[test]
fn a_small_pool_of_the_guests_own_grows() {
    if skipped() {
        return;
    }
    if !smmulab().args(["image", "fetch", "lab"]).output().unwrap().status.success() {
        return skip("no lab kernel (smmulab image build lab)");
    }
    let options = ["--image", "lab", "--smmu", "off", "--append", "swiotlb=512,force"];
    let (counters, dma) = bounced(&options);
    assert!(counters["swiotlb/io_tlb_nslabs"] > 512, "{counters:?}");
    // What the emulator saw of the disk was in slots of 2 KiB, the most of them at a time as the guest says; those of
    // pools that were made for one request are gone by now.
    let most = counters["swiotlb/io_tlb_used_hiwater"];
    assert!(most > 512, "{counters:?}");
    assert_eq!(counters["swiotlb/io_tlb_transient_nslabs"], 0, "{counters:?}");
    assert!(dma["bytes_written"].as_u64().unwrap() > most * 2048, "{counters:?} {dma}");
}

#[test]
fn besides_guest_ram_a_run_takes_less_than_100_mb() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (disk, path) = (dir.path().join("disk"), dir.path().join("stats"));
    random_file(&disk, 64 << 20, 5).unwrap();
    let output = smmulab()
        .args([
            "run",
            "--cpus",
            "4",
            "--exec",
            "sha256sum /dev/vda",
            "--stats",
            path.to_str().unwrap(),
            "--disk",
        ])
        .arg(&disk)
        .output()
        .unwrap();
    ok(&output);
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let kib = |name: &str| stats["host"][name].as_u64().unwrap();
    assert!(kib("guest_ram_kib") < 1 << 20, "the host tells which pages were touched");
    let besides = kib("peak_rss_kib") - kib("guest_ram_kib");
    assert!(besides < 100_000_000 / 1024, "{besides} KiB besides {} KiB of guest RAM", kib("guest_ram_kib"));
}

#[test]
fn untouched_ram_costs_nothing() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let peak = |mem: &str| {
        let stats = dir.path().join(mem);
        let output = smmulab()
            .args(["run", "--mem", mem, "--exec", "true", "--stats", stats.to_str().unwrap()])
            .output()
            .unwrap();
        ok(&output);
        let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
        stats["host"]["peak_rss_kib"].as_u64().unwrap()
    };
    let (small, large) = (peak("1G"), peak("8G"));
    // The guest itself touches its memory map (1.6 % of RAM: 64 bytes a 4 KiB page) and a little more.
    assert!(large < small + 250 * 1024, "{small} KiB with 1 GiB, {large} KiB with 8 GiB");
}

/// A disk behind ATS, with every feature of the SMMU: Linux enables ATS, the translation caches are used and invalidated,
/// what is read is what the host has, and the checker has nothing to say. A device that confirms no invalidation is reported by the
/// SMMU.
#[test]
fn a_disk_behind_ats() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (disk, stats) = (dir.path().join("disk"), dir.path().join("stats"));
    random_file(&disk, 16 << 20, 5).unwrap();
    let run = |image: &str, ats: &str, options: &[&str], mode: &str, script: &str| {
        smmulab()
            .args(["run", "--image", image, "--ats", ats, "--append", mode])
            .args(options)
            .args(["--exec", script, "--stats"])
            .arg(&stats)
            .arg("--disk")
            .arg(&disk)
            .output()
            .unwrap()
    };
    let smmu = || {
        let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
        ["ats_requests", "ats_translated", "atc_invalidations", "atc_timeouts"]
            .map(|key| stats["smmu"][key].as_u64().unwrap())
    };
    for image in ["debian-6.12", "debian-newest"] {
        for (ats, mode) in [
            ("on", "iommu.strict=1"),
            ("entries=unlimited", "iommu.strict=0"),
            ("entries=0", "iommu.strict=1"),
        ] {
            let options = ["--smmu", "preset=full,keep-all=on", "--check", "abort", "--time-limit", "120s"];
            let text = ok(&run(image, ats, &options, mode, "sha256sum /dev/vda"));
            assert!(text.contains(&sha256(&disk)), "{image} {ats} {mode}: {text}");
            let [requests, translated, invalidations, timeouts] = smmu();
            assert!(requests > 0 && translated >= requests / 2, "{image} {ats} {mode}: {:?}", smmu());
            assert!(invalidations > 0 && timeouts == 0, "{image} {ats} {mode}: {:?}", smmu());
        }
    }
    // The kernel goes on without an end, from one time-out to the next.
    let options = ["--smmu", "preset=full", "--time-limit", "6s"];
    let read = "dd if=/dev/vda of=/dev/null count=1";
    let late = run("debian-newest", "confirm=never,timeout=10ms", &options, "quiet", read);
    assert!(stderr(&late).contains("ATC invalidate timeout") || smmu()[3] > 0, "{}", stderr(&late));
}

/// A disk behind an external-facing port, read before and after the kernel is told not to trust it. Each time: the requests
/// that the disk has done, and the slots of the kernel's bounce pool that were in use at most.
const UNTRUSTED: &str = "mount -t debugfs none /sys/kernel/debug 2>/dev/null; pool=/sys/kernel/debug/swiotlb
     work() { dd if=/dev/vda bs=4k count=100 iflag=direct 2>/dev/null | sha256sum
       echo $(cut -c 1-9 /sys/block/vda/stat) $(cat $pool/io_tlb_used $pool/io_tlb_used_hiwater); }
     work; cd /sys/bus/pci/drivers/virtio-pci; echo 0000:01:00.0 > unbind
     insmod /smmulab/smmulab_engine.ko untrust=1; echo 0000:01:00.0 > bind; work";

#[test]
fn linux_bounces_parts_of_pages_for_what_is_behind_an_external_port() {
    if skipped() {
        return;
    }
    for image in ["debian-6.12", "lab"] {
        let tools = smmulab().args(["image", "tools", image]).output().unwrap();
        if !tools.status.success() {
            return skip(&format!("no tools for {image}: {}", stderr(&tools)));
        }
        bounces_parts_of_pages(image);
    }
}

fn bounces_parts_of_pages(image: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (disk, log, stats) = (dir.path().join("disk"), dir.path().join("log"), dir.path().join("stats"));
    random_file(&disk, 4 << 20, 31).unwrap();
    let head = Sha256::digest(&std::fs::read(&disk).unwrap()[..400 << 10]);
    let head: String = head.iter().map(|b| format!("{b:02x}")).collect();
    let plug = format!("0:1:disk={},ro", disk.display());
    let run = |port: &str, window: &str| {
        let output = smmulab()
            .args(["run", "--image", image, "--tools", "--append", "swiotlb=force", "--exec", UNTRUSTED])
            .args(["--root-port", port, "--plug", &plug, "--count-dma", window])
            .args(["--kernel-log", log.to_str().unwrap(), "--stats", stats.to_str().unwrap()])
            .output()
            .unwrap();
        let text = ok(&output);
        let lines: Vec<&str> = text.lines().collect();
        let [first, before, second, after] = lines[..] else { panic!("{text}") };
        assert!(first.starts_with(&head) && second.starts_with(&head), "{text}");
        let numbers = |line: &str| line.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<u64>>();
        let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
        let counted = stats["counted_dma"]["01:00.0"].clone();
        let log = std::fs::read_to_string(&log).unwrap();
        (numbers(before), numbers(after), [counted[0].as_u64().unwrap(), counted[1].as_u64().unwrap()], log)
    };
    // Where the kernel has its pool is what it says in its log, and the same in each run.
    let (.., log) = run("internal", "0x0-0x1");
    let pool = log.lines().find_map(|l| l.split_once("software IO TLB: mapped [mem ")?.1.split_once(']'));
    let (pool, _) = pool.unwrap_or_else(|| panic!("no pool: {log}"));
    let (before, after, counted, _) = run("internal", pool);
    assert_eq!((before[1..].to_vec(), after[1..].to_vec(), counted), (vec![0, 0], vec![0, 0], [0, 0]));
    let (before, after, [read, written], log) = run("external", pool);
    assert!(log.contains("is behind an external-facing port: not trusted"), "{log}");
    assert_eq!(before[1..], [0, 0], "it was trusted at first");
    // A request has a header of 16 bytes and a status of one: parts of pages, a slot each. Its data are whole pages.
    let requests = after[0];
    assert!(requests >= 100 && after[1] == 0 && after[2] >= 2, "{after:?}");
    assert_eq!([read, written], [16 * requests, requests], "the pool's DMA, as the machine saw it");
}
