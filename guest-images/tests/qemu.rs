//! The images, their init and the checks, proved on QEMU's `virt` machine, which ours must look like to a guest.
//!
//! The image comes from the user's cache, or from Debian's mirror on the first run.

use guest_images::{Error, ExitTrailer, Image, Progress, fetch, job_cpio, run_checks};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const QEMU: &str = "qemu-system-aarch64";

/// Says that a test cannot run here; under CI that is a failure.
fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
    println!("SKIPPED: {why}");
}

/// The image, and QEMU to boot it, or the reason why the test is skipped.
fn image(name: &str) -> Option<Image> {
    if Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_err() {
        skip(&format!("{QEMU} is not installed"));
        return None;
    }
    match fetch(name, Progress::Quiet) {
        Ok(image) => Some(image),
        Err(error @ (Error::Tool { .. } | Error::NoDebianTools(_) | Error::NoMirror | Error::NoKeyring)) => {
            skip(&format!("no image: {error}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Boots an image behind QEMU's SMMU, with a disk, to run `command`; gives its output, its status and the kernel log.
fn run(image: &Image, command: &str, disk: &Path, work: &Path) -> (Vec<u8>, Option<i32>, String) {
    let initrd = work.join("initrd");
    fs::write(&initrd, [fs::read(&image.initrd).unwrap(), job_cpio(command)].concat()).unwrap();
    let (uart, port) = (work.join("uart"), work.join("hvc0"));
    let behind = "iommu_platform=on,disable-legacy=on,romfile=";
    let status = Command::new("timeout")
        .args(["300", QEMU, "-M", "virt,gic-version=3,iommu=smmuv3", "-cpu", "cortex-a57", "-m", "512"])
        .args(["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", "console=ttyAMA0 iommu.strict=1"])
        .args(["-serial", &format!("file:{}", uart.display())])
        .args(["-device", &format!("virtio-serial-pci,max_ports=1,{behind}")])
        .args([
            "-chardev",
            &format!("file,id=port,path={}", port.display()),
            "-device",
            "virtconsole,chardev=port",
        ])
        .args(["-drive", &format!("if=none,id=disk,format=raw,file={}", disk.display())])
        .args(["-device", &format!("virtio-blk-pci,drive=disk,{behind}")])
        .args(["-device", &format!("virtio-rng-pci,{behind}")])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    let log = String::from_utf8_lossy(&fs::read(&uart).unwrap()).into_owned();
    assert!(status.success(), "{status}: {log}");
    let mut trailer = ExitTrailer::new();
    let output = trailer.feed(&fs::read(&port).unwrap());
    (output, trailer.status(), log)
}

#[test]
fn a_job_runs_and_its_output_and_status_come_back() {
    let Some(image) = image(guest_images::DEFAULT) else { return };
    let work = tempfile::tempdir().unwrap();
    let disk = work.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    // Every byte value must come through the console unchanged; quotes must survive on the way in.
    let command = "uname -r; echo 'a \"b\"' >&2; i=0; while [ $i -lt 256 ]; do printf \"\\\\$(printf %03o $i)\"; \
                   i=$((i + 1)); done; cat; exit 37";
    let (output, status, log) = run(&image, command, &disk, work.path());
    let mut expected = format!("{}\na \"b\"\n", image.release).into_bytes();
    expected.extend(0..=255u8);
    assert_eq!(output, expected, "{log}");
    assert_eq!(status, Some(37));
    assert!(log.contains("reboot: Power down"), "{log}");
}

#[test]
fn the_checks_hold_on_qemu() {
    let Some(image) = image(guest_images::DEFAULT) else { return };
    let work = tempfile::tempdir().unwrap();
    let disk = work.path().join("disk");
    let data: Vec<u8> = (0..16u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&disk, data).unwrap();
    let names = [
        "iommu-groups",
        "smmu-log",
        "interrupts",
        "cpus",
        "disk-hash",
        "disk-write",
        "rebind",
        "rng",
        "direct-reads",
    ];
    let (output, status, log) = run(&image, &run_checks(&names, "COUNT=100").unwrap(), &disk, work.path());
    let text = String::from_utf8_lossy(&output);
    assert_eq!(status, Some(0), "{text}\n{log}");
    for name in names {
        assert!(text.contains(&format!("ok {name}\n")), "{text}");
    }
    let hash = Command::new("sha256sum").arg(&disk).output().unwrap().stdout;
    let hash = String::from_utf8_lossy(&hash[..64]).into_owned();
    assert!(text.contains(&format!("{hash}\nok disk-write\n")), "{text}");
}
