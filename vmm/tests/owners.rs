//! `--check` on bounced devices: a CPU that touches a buffer while a device has it is named, to the byte, with the code that
//! made the request; a neighbour's bytes, and buffers that are given back, are nobody's business.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Output;

use common::a64::Program;
use common::{smmulab, stderr};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const ECAM: u64 = 0x40_1000_0000;
const DESC: u64 = 0x4180_0000;
const AVAIL: u64 = 0x4180_1000;
const USED: u64 = 0x4180_2000;
const DATA: u64 = 0x4181_0000;
/// The buffer, which begins and ends in the middle of a word.
const BUFFER: u64 = DATA + 3;
const LEN: u64 = 61;

/// A device on bus 0 whose registers are in the memory window.
#[derive(Clone, Copy)]
struct Device {
    slot: u64,
    queue: u64,
    /// The device writes what is in the queue.
    writes: bool,
}

/// The console's transmit queue, and the entropy device's only one.
const CONSOLE: Device = Device { slot: 1, queue: 1, writes: false };
const RNG: Device = Device { slot: 2, queue: 0, writes: true };

impl Device {
    fn registers(self) -> u64 {
        0x1000_0000 + self.slot * 0x1_0000
    }
}

struct Guest {
    p: Program,
    device: Device,
    packed: bool,
}

impl Guest {
    /// A driver that has made its queue.
    fn new(device: Device, packed: bool) -> Self {
        let mut p = Program::new();
        let (config, bar) = (ECAM + (device.slot << 15), device.registers());
        p.poke(4, config + 0x20, bar).poke(4, config + 0x24, 0).poke(4, config + 4, 6);
        p.poke(1, bar + 0x14, 3).poke(4, bar + 8, 1).poke(4, bar + 0xc, if packed { 7 } else { 3 });
        p.poke(1, bar + 0x14, 11).poke(2, bar + 0x16, device.queue).poke(2, bar + 0x18, 4);
        p.poke(8, bar + 0x20, DESC).poke(8, bar + 0x28, AVAIL).poke(8, bar + 0x30, USED);
        p.poke(2, bar + 0x1c, 1).poke(1, bar + 0x14, 15);
        Self { p, device, packed }
    }

    /// Makes the buffer available, does `meanwhile` again and again until it is used, and then `after`.
    fn request(&mut self, meanwhile: impl FnOnce(&mut Program), after: impl FnOnce(&mut Program)) {
        let (flags, at) = (if self.device.writes { 2 } else { 0 }, if self.packed { 48 } else { 32 });
        self.request_of(BUFFER, LEN | flags << at, meanwhile, after);
    }

    /// The same with another first descriptor: an address, and the word behind it.
    fn request_of(
        &mut self,
        address: u64,
        rest: u64,
        meanwhile: impl FnOnce(&mut Program),
        after: impl FnOnce(&mut Program),
    ) {
        let p = &mut self.p;
        p.poke(8, DESC, address).poke(8, DESC + 8, rest).label("guest_submit");
        if self.packed {
            // Flag AVAIL, in the first round.
            p.poke(2, DESC + 14, rest >> 48 | 1 << 7);
        } else {
            p.poke(2, AVAIL + 4, 0).poke(2, AVAIL + 2, 1);
        }
        // Long enough for the device to have it, and too short for it to be given back.
        p.poke(4, self.device.registers() + 0x3000 + 4 * self.device.queue, 0);
        p.li(0, 250).label("delay").subi(0, 0, 1).cbnz(0, "delay").label("guest_race");
        meanwhile(p);
        p.label("guest_wait");
        if self.packed {
            // Flag USED.
            p.li(16, DESC + 14).load(2, 17, 16).lsri(17, 17, 15);
        } else {
            p.li(16, USED + 2).load(2, 17, 16);
        }
        p.cbz(17, "guest_wait").label("guest_after");
        after(p);
    }

    fn run(self, args: &[&str]) -> (Output, Vec<Value>) {
        self.run_with("report", args)
    }

    fn run_with(mut self, check: &str, args: &[&str]) -> (Output, Vec<Value>) {
        self.p.power_off();
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
        std::fs::write(path("System.map"), self.p.system_map()).unwrap();
        std::fs::write(path("Image"), self.p.image()).unwrap();
        let output = smmulab()
            .args(["run", "--mem", "64M", "--kernel", &path("Image"), "--time-limit", "9s"])
            .args(["--virtio", if self.packed { "packed" } else { "split" }])
            .args(["--symbols", &path("System.map"), "--check", check, "--check-json", &path("reports")])
            .args(args)
            .output()
            .unwrap();
        let reports = std::fs::read_to_string(path("reports")).unwrap_or_default();
        (output, reports.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }
}

fn store(bytes: u32, at: u64) -> impl Fn(&mut Program) + Copy {
    move |p| _ = p.poke(bytes, at, 0x5a)
}

fn load(bytes: u32, at: u64) -> impl Fn(&mut Program) + Copy {
    move |p| _ = p.li(16, at).load(bytes, 17, 16)
}

/// What is around the buffer, in its line and its page, and may be touched at any time.
fn neighbours(p: &mut Program) {
    for at in [DATA, DATA + 2, BUFFER + LEN, DATA + 0x800] {
        store(1, at)(p);
        load(1, at)(p);
    }
    store(8, BUFFER + LEN)(p);
    load(8, DATA - 8)(p);
}

/// A guest that does this while the device has the buffer, and its report; its twin, which does it afterwards and touches
/// the neighbours meanwhile, is silent.
fn planted(device: Device, packed: bool, args: &[&str], wrong: impl Fn(&mut Program) + Copy) -> Value {
    let mut g = Guest::new(device, packed);
    g.request(neighbours, |p| {
        wrong(p);
        neighbours(p);
    });
    let (output, reports) = g.run(args);
    assert_eq!((output.status.code(), reports.len()), (Some(0), 0), "{}", stderr(&output));
    let mut g = Guest::new(device, packed);
    g.request(wrong, neighbours);
    let (output, mut reports) = g.run(args);
    let said = stderr(&output);
    assert_eq!((output.status.code(), reports.len()), (Some(123), 1), "{said}");
    println!("{said}");
    let report = reports.remove(0);
    let sites = report["sites"].as_array().unwrap();
    let of = |role: &str| {
        sites.iter().find(|site| site["role"] == role).unwrap_or_else(|| panic!("no {role}: {said}"))
    };
    let code = |role: &str| of(role)["code"][0].as_str().unwrap().to_owned();
    assert!(code("submit").starts_with("guest_submit+"), "{said}");
    assert!(code("access").starts_with("guest_race"), "{said}");
    let time = |role: &str| of(role)["time"].as_u64().unwrap();
    assert!(time("submit") < time("take") && time("take") < time("access"), "{said}");
    assert_eq!(
        (&report["sid"], &report["queue"]),
        (&(device.slot << 3).into(), &device.queue.into()),
        "{said}"
    );
    report
}

fn what(report: &Value) -> (&str, u64, u64) {
    let number = |name: &str| report[name].as_u64().unwrap();
    (report["kind"].as_str().unwrap(), number("iova") - BUFFER, number("bytes"))
}

const BOUNCE: &[&str] = &["--bounce", "all,size=64K"];

#[test]
fn the_cpu_writes_what_a_device_reads() {
    for packed in [false, true] {
        let last = planted(CONSOLE, packed, BOUNCE, store(1, BUFFER + LEN - 1));
        assert_eq!(what(&last), ("buffer-written", LEN - 1, 1));
        // A word of which the first three bytes are somebody else's.
        let first = planted(CONSOLE, packed, BOUNCE, store(8, DATA));
        assert_eq!(what(&first), ("buffer-written", 0, 5));
    }
}

#[test]
fn what_is_written_after_the_copy_does_not_reach_the_device() {
    let report = planted(CONSOLE, false, BOUNCE, |p| {
        if p.at("guest_race", 0) {
            p.li(0, 200).label("guest_race, later").subi(0, 0, 1).cbnz(0, "guest_race, later");
        }
        store(8, DATA + 8)(p);
    });
    assert_eq!(what(&report), ("buffer-written", 5, 8));
    assert!(report["what"].as_str().unwrap().ends_with("and does not see this"), "{report:#}");
    let roles: Vec<_> = report["sites"].as_array().unwrap().iter().map(|site| &site["role"]).collect();
    assert_eq!(roles, ["submit", "take", "copy-in", "access"]);
}

#[test]
fn the_cpu_writes_what_a_device_writes() {
    let report = planted(RNG, false, BOUNCE, store(4, DATA + 0x20));
    assert_eq!(what(&report), ("buffer-written", 0x1d, 4));
}

#[test]
fn the_cpu_reads_what_a_device_has_yet_to_write() {
    for packed in [false, true] {
        let report = planted(RNG, packed, BOUNCE, load(8, DATA + 0x38));
        assert_eq!(what(&report), ("buffer-read", 0x35, 8));
    }
}

#[test]
fn buffers_are_watched_without_an_smmu_as_well() {
    let report = planted(RNG, false, &["--bounce", "rng,size=64K", "--smmu", "off"], load(1, BUFFER));
    assert_eq!(what(&report), ("buffer-read", 0, 1));
}

#[test]
fn what_a_device_reads_may_be_read_and_only_bounced_devices_are_watched() {
    let mut g = Guest::new(CONSOLE, false);
    g.request(load(8, DATA + 8), |_| {});
    assert_eq!(g.run(BOUNCE).1, [] as [Value; 0]);
    let mut g = Guest::new(CONSOLE, false);
    g.request(store(8, DATA + 8), |_| {});
    assert_eq!(g.run(&["--bounce", "rng"]).1, [] as [Value; 0]);
}

#[test]
fn what_goes_to_a_disk_may_change_on_the_way_unless_that_is_asked_for() {
    const DISK: Device = Device { slot: 4, queue: 0, writes: false };
    const HEADER: u64 = DATA + 0x400;
    let dir = TempDir::new().unwrap();
    let disk = dir.path().join("disk");
    std::fs::write(&disk, [0; 4096]).unwrap();
    let run = |at: u64, more: &[&str]| {
        let mut g = Guest::new(DISK, false);
        // A header that says write, a sector of data, and a status byte.
        g.p.poke(4, HEADER, 1).poke(8, HEADER + 8, 0);
        g.p.poke(8, DESC + 16, DATA).poke(8, DESC + 24, 512 | 1 << 32 | 2 << 48);
        g.p.poke(8, DESC + 32, DATA + 0x500).poke(8, DESC + 40, 1 | 2 << 32);
        g.request_of(HEADER, 16 | 1 << 32 | 1 << 48, store(4, at), |_| {});
        let args = ["--bounce", "disk0,size=64K", "--disk", disk.to_str().unwrap()];
        let (output, reports) = g.run(&[&args[..], more].concat());
        let of = |report: &Value| (report["iova"].as_u64().unwrap(), report["bytes"].as_u64().unwrap());
        assert_eq!(
            output.status.code(),
            Some(if reports.is_empty() { 0 } else { 123 }),
            "{}",
            stderr(&output)
        );
        reports.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(run(DATA + 8, &[]), []);
    assert_eq!(run(DATA + 8, &["--check-rewrites"]), [(DATA + 8, 4)]);
    assert_eq!(run(HEADER + 8, &[]), [(HEADER + 8, 4)]);
    assert_eq!(run(DATA + 0x500, &[]), [(DATA + 0x500, 1)]);
    assert_eq!(run(DATA + 0x504, &["--check-rewrites"]), []);
}

#[test]
fn a_reset_gives_everything_back() {
    let mut g = Guest::new(RNG, false);
    let status = RNG.registers() + 0x14;
    g.request(
        |p| {
            p.poke(1, status, 0).label("reset").li(16, status).load(1, 17, 16).cbnz(17, "reset");
            store(8, DATA + 8)(p);
            load(8, DATA + 16)(p);
            p.b("guest_after");
        },
        |_| {},
    );
    let (output, reports) = g.run(BOUNCE);
    assert_eq!((output.status.code(), reports.len()), (Some(0), 0), "{}", stderr(&output));
}

#[test]
fn watching_changes_nothing() {
    let run = |check: &str| {
        let mut g = Guest::new(RNG, false);
        g.request(load(8, DATA + 8), store(8, DATA));
        let dir = TempDir::new().unwrap();
        let stats = dir.path().join("stats");
        g.run_with(check, &["--bounce", "all,size=64K", "--stats", stats.to_str().unwrap()]);
        let mut stats: Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
        stats.as_object_mut().unwrap().remove("host");
        stats
    };
    assert_eq!(run("report"), run("off"));
}

/// A driver that gives the device four microseconds in place of a look at the used ring.
#[test]
fn the_race_lab_finds_a_driver_that_does_not_wait_for_its_device() {
    /// The lab device's MARK register, and two of its marks.
    const MARK: u64 = 0x0c00_0008;
    const BEGIN: u64 = 1;
    const PASS: u64 = 3;
    let mut g = Guest::new(RNG, false);
    let p = &mut g.p;
    p.poke(8, DESC, BUFFER).poke(8, DESC + 8, LEN | 2 << 32).poke(4, MARK, BEGIN);
    p.poke(2, AVAIL + 4, 0).poke(2, AVAIL + 2, 1).poke(4, RNG.registers() + 0x3000, 0);
    p.li(0, 2000).label("delay").subi(0, 0, 1).cbnz(0, "delay");
    load(8, DATA + 8)(p);
    p.poke(4, MARK, PASS).label("stay").b("stay");
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    std::fs::write(path("Image"), g.p.image()).unwrap();
    let scenario = format!(
        "about = 'A driver that does not wait'\nlimit = '1ms'\nrun = ['--kernel', '{}', '--mem', '64M', '--bounce', \
         'rng,size=64K', '--check', 'report']\n",
        path("Image")
    );
    std::fs::write(path("impatient.toml"), scenario).unwrap();
    let race = |args: &[&str]| {
        let output =
            smmulab().args(["race", &path("impatient.toml"), "--out", &path("races")]).args(args).output();
        let output = output.unwrap();
        (output.status.code(), common::stdout(&output) + &stderr(&output))
    };
    let (code, said) = race(&["--policy", "fixed"]);
    assert_eq!(code, Some(0), "the default order hides it: {said}");
    let (code, said) = race(&["--runs", "300", "--seed", "1"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("checker: buffer-read, StreamID 0x10"), "{said}");
}

/// What a guest does with disks, network and entropy; pages are rewritten while the disk has them.
const WORK: &str = "dd if=/dev/vda of=/dev/vdb bs=1M 2>/dev/null && sync && echo 3 > /proc/sys/vm/drop_caches && \
     sha256sum /dev/vdb | cut -c 1-64 && dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c && \
     (for i in $(seq 30); do dd if=/dev/zero of=/dev/vdb bs=512 count=64 conv=notrunc 2>/dev/null; done &
      for i in $(seq 60); do dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=notrunc,fsync 2>/dev/null; done; wait)";

#[test]
fn clean_kernels_leave_the_buffers_of_devices_alone() {
    if !common::long() || cfg!(debug_assertions) {
        println!("SKIPPED: guest boots take minutes: SMMULAB_LONG=1 runs them, in a release build");
        return;
    }
    let net = std::process::Command::new("passt").arg("--version").output().is_ok();
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    common::random_file(&path("source"), 16 << 20, 23).unwrap();
    let source = std::fs::read(path("source")).unwrap();
    let hash: String = Sha256::digest(&source).iter().map(|b| format!("{b:02x}")).collect();
    for image in ["debian-6.1", "debian-6.12", "debian-newest"] {
        for rings in ["split", "packed"] {
            std::fs::File::create(path("copy")).unwrap().set_len(16 << 20).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut work = WORK.to_owned();
            if net {
                let port = listener.local_addr().unwrap().port();
                let content = source[..1 << 20].to_vec();
                std::thread::spawn(move || {
                    let (mut stream, _) = listener.accept().unwrap();
                    let _ = stream.read(&mut [0; 1024]).unwrap();
                    let header = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", content.len());
                    let _ = stream.write_all(&[header.as_bytes(), &content].concat());
                });
                work += &format!(
                    " && gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p') && \
                     wget -q -O - http://$gateway:{port}/ | wc -c"
                );
            }
            let output = smmulab()
                .args(["run", "--image", image, "--cpus", "2", "--virtio", rings, "--bounce", "all"])
                .args(["--check", "abort", "--time-limit", "900s", "--exec", &work])
                .args(if net { &["--net"][..] } else { &[] })
                .args(["--disk", &format!("{},ro", path("source").display())])
                .arg("--disk")
                .arg(path("copy"))
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(0), "{image} {rings}: {}", stderr(&output));
            let said = common::stdout(&output);
            let expected = [hash.as_str(), "256", "1048576"];
            assert_eq!(
                said.split_whitespace().collect::<Vec<_>>(),
                expected[..2 + usize::from(net)],
                "{image} {rings}"
            );
        }
    }
}
