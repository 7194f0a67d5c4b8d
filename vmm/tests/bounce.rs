//! Bounced devices in whole guests: what comes and goes is the same as without a pool, whatever the rings, the SMMU and
//! the guest's own swiotlb do. It takes minutes; SMMULAB_LONG=1 runs it.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use common::bridge::{self, Fault};
use common::{long, random_file, skip, smmulab, stderr, stdout};
use sha2::{Digest, Sha256};
use vmm::edge::Passt;

const IMAGE: &str = "debian-6.12";

fn skipped() -> bool {
    if !long() || cfg!(debug_assertions) {
        println!("SKIPPED: guest boots take minutes: SMMULAB_LONG=1 runs them, in a release build");
        return true;
    }
    let output = smmulab().args(["image", "fetch", IMAGE]).output().unwrap();
    if !output.status.success() {
        skip(&format!("no guest image {IMAGE}: {}", stderr(&output)));
        return true;
    }
    false
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Serves `content` to one HTTP request; the port, and what to wait for.
fn serve(content: Vec<u8>) -> (u16, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        let header = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", content.len());
        stream.write_all(header.as_bytes()).unwrap();
        stream.write_all(&content).unwrap();
    });
    (port, server)
}

fn figures(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// One guest: copies disk to disk, reads the copy back, and fetches a file. Checks that all of it arrives, and that no slot
/// is left in use.
fn transfer(source: &Path, mib: u64, options: &[&str], net: bool) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let (copy, stats) = (dir.path().join("copy"), dir.path().join("stats"));
    std::fs::File::create(&copy).unwrap().set_len(mib << 20).unwrap();
    let mut script = "dd if=/dev/vda of=/dev/vdb bs=1M 2>/dev/null && sync && \
                      echo 3 > /proc/sys/vm/drop_caches && sha256sum /dev/vdb && \
                      dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c"
        .to_owned();
    let content = std::fs::read(source).unwrap();
    let mut server = None;
    if net {
        let (port, thread) = serve(content[..4 << 20].to_vec());
        server = Some(thread);
        script += &format!(
            " && gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p') && \
             wget -q -O /tmp/file http://$gateway:{port}/ && sha256sum /tmp/file"
        );
    }
    let output = smmulab()
        .args(["run", "--image", IMAGE, "--time-limit", "900s", "--exec", &script])
        .args(options)
        .args(if net { &["--net"][..] } else { &[] })
        .args(["--stats", stats.to_str().unwrap()])
        .args(["--disk", &format!("{},ro", source.display()), "--disk", copy.to_str().unwrap()])
        .output()
        .unwrap();
    let text = stdout(&output);
    assert!(output.status.success(), "{options:?}: {}\n{text}\n{}", output.status, stderr(&output));
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[0], hash(&content), "{options:?}: read back");
    assert_eq!(hash(&std::fs::read(&copy).unwrap()), hash(&content), "{options:?}: on the disk");
    assert_eq!(words[2], "256", "{options:?}: entropy");
    if let Some(server) = server {
        assert_eq!(words[3], hash(&content[..4 << 20]), "{options:?}: over the network");
        server.join().unwrap();
    }
    let stats = figures(&stats);
    for pool in stats["bounce"].as_array().unwrap() {
        assert_eq!(pool["used"], 0, "{options:?}: {pool}");
        for (name, device) in pool["devices"].as_object().unwrap() {
            assert_eq!((&device["used"], &device["failures"]), (&0.into(), &0.into()), "{options:?} {name}");
            assert!(device["mappings"].as_u64().unwrap() > 0, "{options:?}: {name} was not bounced");
        }
    }
    stats
}

#[test]
fn a_bounced_machine_gives_the_same_disk_and_network_in_every_combination() {
    if skipped() {
        return;
    }
    let net = Command::new("passt").arg("--version").output().is_ok();
    if !net {
        skip("no network: no passt (Debian package passt)");
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    random_file(&source, 256 << 20, 11).unwrap();
    // A guest that could do without has 1 MiB of bounce buffers, which its own disk requests do not fit into.
    for bounce in ["off", "all"] {
        for rings in ["split", "packed"] {
            for smmu in ["on", "off"] {
                for append in ["swiotlb=noforce", "swiotlb=65536,force"] {
                    let options = ["--bounce", bounce, "--virtio", rings, "--smmu", smmu, "--append", append];
                    let stats = transfer(&source, 256, &options, net);
                    let pools = stats["bounce"].as_array().unwrap().len();
                    assert_eq!(pools, usize::from(bounce == "all"), "{options:?}");
                }
            }
        }
    }
}

#[test]
fn small_growing_and_restricted_pools_serve_a_guest() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    random_file(&source, 32 << 20, 12).unwrap();
    transfer(&source, 32, &["--bounce", "all,size=2M"], false);
    let stats = transfer(&source, 32, &["--bounce", "all,size=1M,dynamic=32M"], false);
    assert!(stats["bounce"][0]["pools"].as_u64().unwrap() > 1, "{stats}");
    let options = ["--bounce", "disk1,size=8M,restricted=on", "--bounce", "rng"];
    let stats = transfer(&source, 32, &options, false);
    let names: Vec<_> = stats["bounce"].as_array().unwrap().iter().map(|pool| pool["name"].clone()).collect();
    assert_eq!(names, ["disk1", "shared"]);
}

#[test]
fn a_bounced_run_is_the_same_every_time_and_goes_on_from_a_snapshot() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    random_file(&disk, 16 << 20, 13).unwrap();
    let disk = format!("{},ro", disk.display());
    let snapshot = dir.path().join("snapshot");
    let run = |name: &str, more: &[&str]| {
        let path = dir.path().join(name);
        let output = smmulab().arg("run").args(more).arg("--stats").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let mut stats = figures(&path);
        stats.as_object_mut().unwrap().remove("host");
        stats
    };
    let whole = ["--image", IMAGE, "--bounce", "all", "--disk", &disk, "--exec", "sha256sum /dev/vda"];
    let first = run("first", &whole);
    assert_eq!(first, run("again", &whole));
    // In the middle of reading the disk, with requests in the pool.
    let at = format!("{}ns", first["virtual_ns"].as_u64().unwrap() * 9 / 10);
    let keep = ["--snapshot", snapshot.to_str().unwrap(), "--snapshot-at", &at];
    assert_eq!(first, run("kept", &[&whole[..], &keep].concat()));
    let rest = run("rest", &["--from", snapshot.to_str().unwrap()]);
    for key in ["state_hash", "virtual_ns", "instructions", "bounce"] {
        assert_eq!(first[key], rest[key], "{key}");
    }
}

/// A process that ends when this is dropped.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// QEMU's storage daemon with one disk; ends when dropped.
struct Daemon(#[allow(dead_code, reason = "it is there to be dropped")] Process);

impl Daemon {
    fn start(disk: &Path, socket: &Path) -> Option<Self> {
        let _ = std::fs::remove_file(socket);
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &format!("driver=file,node-name=d0,filename={}", disk.display())]);
        let address = format!("addr.type=unix,addr.path={}", socket.display());
        command.args(["--export", &format!("vhost-user-blk,id=e0,node-name=d0,writable=on,{address}")]);
        let daemon = match command.stdin(Stdio::null()).spawn() {
            Ok(child) => Self(Process(child)),
            Err(e) => {
                skip(&format!("no qemu-storage-daemon (Debian package qemu-system-common): {e}"));
                return None;
            }
        };
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(daemon)
    }
}

#[test]
fn a_guest_does_not_notice_that_the_process_behind_its_disk_was_killed_and_can_be_played_again() {
    use std::os::unix::fs::MetadataExt;
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (source, copy, socket) = (path("source"), path("copy"), path("socket"));
    random_file(&source, 64 << 20, 17).unwrap();
    std::fs::File::create(&copy).unwrap().set_len(64 << 20).unwrap();
    let Some(mut daemon) = Daemon::start(&copy, &socket) else { return };
    let run = |way: &str| {
        let mut command = smmulab();
        command
            .args(["run", "--image", IMAGE, "--bounce", "all", "--time-limit", "900s", way])
            .arg(path("recording"))
            .arg("--stats")
            .arg(path(way))
            .args(["--disk", &format!("{},ro", source.display()), "--vhost-user-blk"])
            .arg(&socket)
            .args([
                "--exec",
                "dd if=/dev/vda of=/dev/vdb bs=1M 2>/dev/null && sync && \
                              echo 3 > /proc/sys/vm/drop_caches && sha256sum /dev/vdb",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let live = run("--record");
    // In the middle of the copy.
    while std::fs::metadata(&copy).unwrap().blocks() < 16 << 11 {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(daemon);
    daemon = Daemon::start(&copy, &socket).unwrap();
    let live = live.wait_with_output().unwrap();
    drop(daemon);
    let expected = hash(&std::fs::read(&source).unwrap());
    assert!(stdout(&live).starts_with(&expected), "{}\n{}", stdout(&live), stderr(&live));
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&source).unwrap(), "what is on the disk");
    assert!(stderr(&live).contains("the backend is gone"), "it was not killed in time: {}", stderr(&live));
    // Nobody serves the disk now: what the process answered is in the recording.
    let played = run("--play").wait_with_output().unwrap();
    assert_eq!(stdout(&played), stdout(&live));
    let strip = |way: &str| {
        let mut stats = figures(&path(way));
        stats.as_object_mut().unwrap().remove("host");
        stats
    };
    assert_eq!(strip("--record"), strip("--play"));
}

/// Bytes that go each way over the network.
const MOVED: usize = 4 << 20;

/// One guest on a network that a backend of ours serves: it fetches a file and sends it back. Its standard output and error,
/// whether both files were whole, and the backend's frames.
fn over_a_served_network(
    options: &[&str],
    fault: Fault,
) -> Option<(String, String, [bool; 2], Arc<bridge::Frames>)> {
    let passt = match Passt::start() {
        Ok(passt) => passt,
        Err(e) => {
            skip(&format!("no network: {e}"));
            return None;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let (socket, stats) = (dir.path().join("socket"), dir.path().join("stats"));
    random_file(&dir.path().join("file"), MOVED, 31).unwrap();
    let content = std::fs::read(dir.path().join("file")).unwrap();
    let (down, _) = serve(content.clone());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let up = listener.local_addr().unwrap().port();
    let (sender, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    let frames = bridge::serve(&socket, passt, fault);
    // Without an answer a job ends by itself: nobody is there who could.
    let script = format!(
        "cat /sys/class/net/eth0/address; gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); \
         wget -q -T 10 -O /tmp/file http://$gateway:{down}/ && sha256sum /tmp/file && nc $gateway {up} < /tmp/file || echo failed"
    );
    let output = smmulab()
        .args(["run", "--image", IMAGE, "--time-limit", "300s", "--exec", &script, "--vhost-user-net"])
        .arg(&socket)
        .args(options)
        .arg("--stats")
        .arg(&stats)
        .output()
        .unwrap();
    assert!(output.status.success(), "{options:?}: {}\n{}", output.status, stderr(&output));
    for pool in figures(&stats)["bounce"].as_array().unwrap() {
        assert_eq!(pool["used"], 0, "{options:?}: {pool}");
        let net = &pool["devices"]["net"];
        assert_eq!((&net["used"], &net["failures"]), (&0.into(), &0.into()), "{options:?}: {pool}");
        assert!(net["mappings"].as_u64().unwrap() > 100, "{options:?}: {pool}");
    }
    let text = stdout(&output);
    assert!(text.starts_with("02:00:00:00:00:07\n"), "the backend's address: {text}");
    let came = text.contains(&hash(&content));
    let went = came && received.recv_timeout(Duration::from_secs(60)).is_ok_and(|bytes| bytes == content);
    Some((text, stderr(&output), [came, went], frames))
}

#[test]
fn a_guest_uses_a_network_that_another_process_serves_bounced_or_not() {
    if skipped() {
        return;
    }
    for options in [["--bounce", "off", "--virtio", "split"], ["--bounce", "all", "--virtio", "packed"]] {
        let Some((text, log, whole, frames)) = over_a_served_network(&options, Fault::None) else { return };
        assert_eq!(whole, [true, true], "{options:?}: {text}\n{log}");
        // Frames of a full size, and little that is sent twice.
        let least = (MOVED / 1460) as u64;
        for count in [&frames.to_guest, &frames.from_guest] {
            let count = count.load(Relaxed);
            assert!((least..3 * least).contains(&count), "{options:?}: {count} frames for {least}");
        }
    }
}

#[test]
fn a_guest_gets_over_a_network_process_that_dies_or_lies() {
    if skipped() {
        return;
    }
    for (fault, bounce, said, goes_on) in [
        (Fault::HangsUp, "all", "the backend is gone", true),
        (Fault::Lengths, "off", "the backend gives a frame of 4294967295 bytes", true),
        (Fault::Stranger, "all", "it returned what it was not given", false),
    ] {
        let Some((text, log, whole, _)) = over_a_served_network(&["--bounce", bounce], fault) else { return };
        assert_eq!(whole, [goes_on; 2], "{fault:?}: {text}\n{log}");
        assert_eq!(text.contains("failed"), !goes_on, "{fault:?}: {text}");
        assert!(log.contains(said), "{fault:?}: {log}");
    }
}

/// Loads the disk's driver and waits until there is `/dev/vda`.
const DISK_COMES: &str =
    "modprobe virtio_blk; n=0; until [ -e /dev/vda ] || [ $n -gt 200 ]; do sleep 0.1; n=$((n+1)); done";

#[test]
fn a_disk_that_is_plugged_in_is_bounced_and_leaves_no_slot_when_it_goes() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    random_file(&disk, 16 << 20, 23).unwrap();
    let expected = hash(&std::fs::read(&disk).unwrap());
    let plug = format!("disk={},ro", disk.display());
    let run = |what: &[&str], script: &str| {
        let stats = dir.path().join("stats");
        let command = ["run", "--image", IMAGE, "--root-port", "internal", "--exec", script];
        let output = smmulab().args(command).args(what).arg("--stats").arg(&stats).output().unwrap();
        let pool = figures(&stats)["bounce"][0].clone();
        assert_eq!(pool["used"], 0, "{what:?}: {pool}");
        let device = &pool["devices"]["plug0"];
        assert_eq!((&device["used"], &device["failures"]), (&0.into(), &0.into()), "{what:?}: {pool}");
        (output, device["bytes_out"].as_u64().unwrap())
    };
    // Linux lets go of a disk 5 s after the button, and of one that is torn out at once. It is read from shortly before until
    // it fails, or for ever.
    let read = "dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null";
    let read = |from: u32| {
        format!(
            "{DISK_COMES}; sha256sum /dev/vda; until [ $(cut -d' ' -f1 /proc/uptime | tr -d .) -ge {from}0 ]; do sleep 0.05; done; \
             while {read}; do :; done; ls /dev/vda 2>/dev/null; true"
        )
    };
    let orders = [("all", "2s", "9s", 137), ("plug0,restricted=on", "0", "2s", 67)];
    for (bounce, plug_at, unplug_at, from) in orders {
        let (plug, unplug) = (format!("{plug_at}:1:{plug}"), format!("{unplug_at}:1"));
        let what = ["--bounce", bounce, "--plug", &plug, "--unplug", &unplug, "--time-limit", "200s"];
        let (output, bytes) = run(&what, &read(from));
        assert!(output.status.success(), "{}\n{}", output.status, stderr(&output));
        assert_eq!(stdout(&output), format!("{expected}  /dev/vda\n"), "{bounce}");
        assert!(bytes > 17 << 20, "{bytes}: it was not read when it went");
    }
    // Linux then waits for ever for the reset of a disk that is gone.
    let what = ["--bounce", "all", "--plug", &format!("0:1:{plug}"), "--unplug", "3s:1:surprise"];
    let (output, bytes) = run(&[&what[..], &["--time-limit", "4s"]].concat(), &read(27));
    assert_eq!(output.status.code(), Some(124), "{}", stderr(&output));
    assert!(bytes > 17 << 20, "{bytes}: it was not read when it went");
}

#[test]
fn bounced_devices_with_ats_copy_by_their_own_translations() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    random_file(&source, 16 << 20, 29).unwrap();
    for ats in ["on", "entries=4,replacement=random,confirm=5us"] {
        let stats = transfer(&source, 16, &["--bounce", "all", "--smmu", "preset=full", "--ats", ats], false);
        let smmu = &stats["smmu"];
        for what in ["ats_requests", "ats_translated", "atc_invalidations"] {
            assert!(smmu[what].as_u64().unwrap() > 100, "{what}: {smmu}");
        }
    }
}
