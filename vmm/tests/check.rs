//! `--check`: mistakes of bare-metal guests are named, with the code that made them; their twins without the mistake, and
//! Debian's kernels, are silent.

mod common;

use std::process::{Command, Output};

use common::a64::Program;
use common::smmu::{self, CMDQ, IOVA, LEAF, MARK, PAGE, RW, SMMU};
use common::{long, skip, smmulab, stderr, stdout};
use serde_json::Value;
use tempfile::TempDir;

/// Another page.
const OTHER: u64 = 0x4191_0000;

/// A guest being written, and where its functions are.
struct Guest {
    p: Program,
    prod: u64,
    functions: Vec<(String, usize)>,
}

impl Guest {
    /// An SMMU that is on, and a page that is mapped, by a function `guest_map`.
    fn new() -> Self {
        let mut p = Program::new();
        // A stack.
        p.li(0, 0x41f0_0000).op(0x9100_001f);
        let mut g = Guest { p, prod: 0, functions: Vec::new() };
        smmu::set_up(&mut g.p);
        // Another page, so that the table is known when the one in question is mapped.
        g.function("guest_setup", |g| _ = g.p.poke(8, LEAF + 8, OTHER | RW));
        g.dma(IOVA + 0x1000);
        g.function("guest_map", |g| _ = g.p.poke(8, LEAF, PAGE | RW));
        g.dma(IOVA);
        g
    }

    /// Code in a function of its own, which is called here.
    fn function(&mut self, name: &str, body: impl FnOnce(&mut Self)) {
        let over = format!("over {name}");
        self.p.bl(name).b(&over).label(name);
        self.functions.push((name.into(), self.p.len()));
        // stp x29, x30, [sp, #-16]!; mov x29, sp
        self.p.op(0xa9bf_7bfd).op(0x9100_03fd);
        body(self);
        // ldp x29, x30, [sp], #16
        self.p.op(0xa8c1_7bfd).ret().label(&over);
    }

    /// A command, and a wait until it is consumed.
    fn command(&mut self, command: [u64; 2]) {
        let at = CMDQ + 16 * self.prod;
        self.prod += 1;
        self.p.poke(8, at, command[0]).poke(8, at + 8, command[1]).poke(4, SMMU + 0x98, self.prod);
        let again = format!("command {}", self.prod);
        self.p
            .label(&again)
            .li(16, SMMU + 0x9c)
            .load(4, 17, 16)
            .subi(17, 17, self.prod as u32)
            .cbnz(17, &again);
    }

    /// The engine sums the 64 bytes at `address`, whatever comes of it.
    fn dma(&mut self, address: u64) {
        let name = format!("dma {}", self.p.len());
        smmu::dma(&mut self.p, &name, address);
    }

    /// Runs it with the checker, and answers its output and its reports.
    fn run(self, check: &str, args: &[&str]) -> (Output, Vec<Value>) {
        let dir = TempDir::new().unwrap();
        self.save(&dir);
        checked(&dir, check, &[&MACHINE[..], &["--kernel", &path(&dir, "Image")], args].concat())
    }

    /// Writes it and where its functions are to files.
    fn save(mut self, dir: &TempDir) {
        self.p.power_off();
        // The image is loaded at the start of RAM.
        let map = self.functions.iter().map(|(name, at)| format!("{:016x} T {name}\n", 0x4000_0000 + at));
        std::fs::write(path(dir, "System.map"), map.collect::<String>()).unwrap();
        std::fs::write(path(dir, "Image"), self.p.image()).unwrap();
    }

    /// Some time passes.
    fn pause(&mut self, name: &str) {
        self.p.li(0, 500_000).label(name).subi(0, 0, 1).cbnz(0, name);
    }

    /// The page is unmapped, with a flush or without, and its address is used again.
    fn reuse(&mut self, wrong: bool) {
        self.function("guest_unmap", |g| _ = g.p.poke(8, LEAF, 0));
        if !wrong {
            self.command(tlbi(7));
            self.command(SYNC);
        }
        self.function("guest_remap", |g| _ = g.p.poke(8, LEAF, OTHER | RW));
    }
}

/// The machine that the guests are written for.
const MACHINE: [&str; 6] = ["--mem", "64M", "--device", "platform-engine", "--smmu", "preset=full"];

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_string()
}

/// A checked run of a guest whose functions are known, and its reports.
fn checked(dir: &TempDir, check: &str, args: &[&str]) -> (Output, Vec<Value>) {
    let output = smmulab()
        .args(["run", "--time-limit", "9s", "--symbols", &path(dir, "System.map")])
        .args(["--check", check, "--check-json", &path(dir, "reports")])
        .args(args)
        .output()
        .unwrap();
    let reports = std::fs::read_to_string(path(dir, "reports")).unwrap_or_default();
    let reports = reports.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output, reports)
}

/// A guest with a mistake of this kind, and one without. Answers the text of the report, and the report.
fn planted(kind: &str, build: impl Fn(&mut Guest, bool)) -> (String, Value) {
    let run = |wrong| {
        let mut g = Guest::new();
        build(&mut g, wrong);
        g.run("report", &[])
    };
    let (output, reports) = run(false);
    assert_eq!((output.status.code(), reports.len()), (Some(0), 0), "{}", stderr(&output));
    let (output, mut reports) = run(true);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(123), "{said}");
    assert_eq!(reports.len(), 1, "{said}");
    assert_eq!(reports[0]["kind"], kind, "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("smmulab: check: ")).count(), 1, "{said}");
    println!("{said}");
    (said, reports.remove(0))
}

/// The code of a role, innermost first.
fn code<'a>(report: &'a Value, role: &str) -> &'a str {
    let sites = report["sites"].as_array().unwrap();
    let site =
        sites.iter().find(|site| site["role"] == role).unwrap_or_else(|| panic!("no {role}: {report:#}"));
    site["code"][0].as_str().unwrap()
}

fn tlbi(asid: u64) -> [u64; 2] {
    [0x12 | asid << 48, IOVA | 1]
}

const SYNC: [u64; 2] = [0x46, 0];

#[test]
fn an_iova_is_reused_after_a_tlbi_of_another_asid() {
    let (said, report) = planted("iova-reuse", |g, wrong| {
        g.function("guest_unmap", |g| _ = g.p.poke(8, LEAF, 0));
        g.function("guest_flush", |g| {
            g.command(tlbi(if wrong { 8 } else { 7 }));
            g.command(SYNC);
        });
        g.function("guest_remap", |g| _ = g.p.poke(8, LEAF, OTHER | RW));
        g.dma(IOVA);
    });
    assert_eq!(
        (&report["sid"], &report["asid"], &report["iova"]),
        (&0x1_0000.into(), &7.into(), &IOVA.into())
    );
    for (role, function) in [
        ("map", "guest_map+"),
        ("unmap", "guest_unmap+"),
        ("invalidation", "guest_flush+"),
        ("reuse", "guest_remap+"),
    ] {
        assert!(code(&report, role).starts_with(function), "{said}");
    }
    assert!(report["missing"].as_str().unwrap().ends_with("names another ASID"), "{said}");
    assert!(said.contains("guest_unmap+0x"), "{said}");
}

#[test]
fn dma_after_the_unmap() {
    let (said, report) = planted("dma-after-unmap", |g, wrong| {
        g.function("guest_unmap", |g| _ = g.p.poke(8, LEAF, 0));
        g.command(tlbi(7));
        g.command(SYNC);
        g.dma(if wrong { IOVA } else { IOVA + 0x1000 });
    });
    assert!(code(&report, "unmap").starts_with("guest_unmap+"), "{said}");
    assert!(code(&report, "map").starts_with("guest_map+"), "{said}");
}

#[test]
fn a_page_is_changed_without_a_break() {
    let (said, report) = planted("break-before-make", |g, wrong| {
        if !wrong {
            g.p.poke(8, LEAF, 0);
            g.command(tlbi(7));
            g.command(SYNC);
        }
        g.function("guest_change", |g| _ = g.p.poke(8, LEAF, OTHER | RW));
        g.command(tlbi(7));
        g.command(SYNC);
    });
    assert!(code(&report, "unmap").starts_with("guest_change+"), "{said}");
}

#[test]
fn a_command_is_illegal() {
    let (said, report) = planted("command-illegal", |g, wrong| {
        g.function("guest_command", |g| {
            let at = CMDQ + 16 * g.prod;
            g.prod += 1;
            g.p.poke(8, at, if wrong { 0x7f } else { 0x46 }).poke(4, SMMU + 0x98, g.prod);
        });
        // Long enough for it to be consumed.
        g.p.li(0, 1000).label("wait").subi(0, 0, 1).cbnz(0, "wait");
    });
    assert!(code(&report, "invalidation").starts_with("guest_command+"), "{said}");
}

#[test]
fn the_first_report_ends_the_run() {
    let mut g = Guest::new();
    g.function("guest_change", |g| _ = g.p.poke(8, LEAF, OTHER | RW));
    g.p.label("for ever").b("for ever");
    let (output, reports) = g.run("abort", &[]);
    assert_eq!(
        (output.status.code(), reports.len()),
        (Some(123), 1),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
}

#[test]
fn a_run_from_a_snapshot_is_checked() {
    for wrong in [false, true] {
        let dir = TempDir::new().unwrap();
        let mut g = Guest::new();
        g.pause("pause");
        g.reuse(wrong);
        g.dma(IOVA);
        g.save(&dir);
        let snapshot = path(&dir, "snapshot");
        let image = ["--kernel", &path(&dir, "Image")];
        let saved = ["--snapshot", &snapshot, "--snapshot-at", "500us"];
        let (output, _) = checked(&dir, "off", &[&MACHINE[..], &image, &saved].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let (output, reports) = checked(&dir, "report", &["--from", &snapshot]);
        let said = stderr(&output);
        assert_eq!(reports.len(), usize::from(wrong), "{said}");
        if wrong {
            assert_eq!((output.status.code(), &reports[0]["kind"]), (Some(123), &"iova-reuse".into()));
            assert!(code(&reports[0], "unmap").starts_with("guest_unmap+"), "{said}");
            assert!(code(&reports[0], "reuse").starts_with("guest_remap+"), "{said}");
        }
    }
}

#[test]
fn every_schedule_is_checked() {
    for wrong in [false, true] {
        let dir = TempDir::new().unwrap();
        let mut g = Guest::new();
        g.p.poke(4, MARK, 1);
        g.reuse(wrong);
        g.p.poke(4, MARK, 3);
        g.save(&dir);
        let image = path(&dir, "Image");
        let run = [&MACHINE[..], &["--kernel", &image, "--check", "report"]].concat();
        let scenario = format!(
            "about = 'An address is used again'\nlimit = '10ms'\nrun = {run:?}\nsymbols = {:?}\n",
            path(&dir, "System.map")
        );
        std::fs::write(path(&dir, "reuse.toml"), scenario).unwrap();
        let output = smmulab()
            .args(["race", &path(&dir, "reuse.toml"), "--runs", "3", "--out", &path(&dir, "races")])
            .output()
            .unwrap();
        let said = stdout(&output) + &stderr(&output);
        assert_eq!(output.status.code(), Some(i32::from(wrong)), "{said}");
        assert_eq!(said.contains("checker: iova-reuse"), wrong, "{said}");
        assert_eq!(said.contains("guest_unmap+"), wrong, "{said}");
    }
}

#[test]
fn a_module_cannot_name_the_guests_code() {
    let dir = TempDir::new().unwrap();
    Guest::new().save(&dir);
    // An ELF header of a relocatable file for this machine's guests, without sections.
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    (elf[16], elf[18], elf[20], elf[52], elf[58]) = (1, 183, 1, 64, 64);
    for (file, error) in [(elf, "or a module"), (b"no map".to_vec(), "no System.map and no vmlinux")] {
        std::fs::write(path(&dir, "System.map"), file).unwrap();
        let (output, _) = checked(&dir, "report", &["--kernel", &path(&dir, "Image")]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(error), "{}", stderr(&output));
    }
}

#[test]
fn checking_changes_nothing() {
    let run = |check: &str| {
        let mut g = Guest::new();
        g.function("guest_unmap", |g| _ = g.p.poke(8, LEAF, 0));
        g.function("guest_remap", |g| _ = g.p.poke(8, LEAF, OTHER | RW));
        g.dma(IOVA);
        let dir = TempDir::new().unwrap();
        let stats = dir.path().join("stats");
        g.run(check, &["--stats", stats.to_str().unwrap()]);
        let mut stats: Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
        stats.as_object_mut().unwrap().remove("host");
        stats
    };
    assert_eq!(run("report"), run("off"));
}

fn skipped() -> bool {
    let skipped = !long() || cfg!(debug_assertions);
    if skipped {
        println!("SKIPPED: guest boots take a while: SMMULAB_LONG=1 runs them, in a release build");
    }
    skipped
}

/// Debian's kernels under load: disk, network, a disk that comes and leaves in order, drivers that let go of their devices
/// and are unloaded.
const LOAD: &str = "
    wait() { n=0; until eval \"$1\"; do sleep 0.1; n=$((n+1)); [ $n -lt 100 ] || { echo no $1; exit 1; }; done; }
    set -e
    traffic() {
        dd if=/dev/vda of=/dev/null bs=64k iflag=direct; dd if=/dev/zero of=/dev/vda bs=4k count=32 oflag=direct
    }
    wait '[ -e /dev/vdb ]'; dd if=/dev/vdb of=/dev/null bs=64k iflag=direct 2>/dev/null
    traffic 2>/dev/null
    gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')
    ping -c 3 -s 1400 $gateway > /dev/null || true
    disk=$(basename $(readlink -f /sys/block/vda/device/..))
    for i in 1 2; do
        echo $disk > /sys/bus/pci/drivers/virtio-pci/unbind; echo $disk > /sys/bus/pci/drivers/virtio-pci/bind
        wait '[ -e /dev/vda ]'; traffic 2>/dev/null
    done
    for m in virtio_net virtio_blk; do if grep -q ^$m /proc/modules; then modprobe -r $m; modprobe $m; fi; done
    wait '[ -e /dev/vda ]'; traffic 2>/dev/null
    wait '[ ! -e /dev/vdb ]'; echo done";

#[test]
fn nothing_is_wrong_with_debian() {
    if skipped() {
        return;
    }
    if Command::new("passt").arg("--version").output().is_err() {
        return skip("no passt (Debian package passt)");
    }
    let dir = TempDir::new().unwrap();
    let disk = |name: &str, size: usize| {
        common::random_file(&dir.path().join(name), size, 1).unwrap();
        path(&dir, name)
    };
    let (disk, plugged) = (disk("disk", 4 << 20), format!("0:1:disk={},ro", disk("plugged", 1 << 20)));
    for image in ["debian-6.1", "debian-6.12", "debian-newest"] {
        for mode in ["iommu.strict=1", "iommu.strict=0"] {
            let output = smmulab()
                .args(["run", "--image", image, "--cpus", "2", "--append", mode, "--check", "abort"])
                .args(["--smmu", "preset=full,keep-all=on", "--disk", &disk, "--net", "--time-limit", "60s"])
                .args(["--root-port", "internal", "--plug", &plugged, "--unplug", "3s:1"])
                .args(["--exec", LOAD])
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(0), "{image} {mode}: {}", stderr(&output));
            assert!(stdout(&output).ends_with("done\n"), "{image} {mode}: {}", stdout(&output));
        }
    }
}
