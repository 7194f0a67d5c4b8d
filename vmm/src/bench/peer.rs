//! QEMU as a peer: the same kernel, initramfs, disk and command line on its `virt` machine behind its SMMUv3.

use std::path::Path;
use std::process::{Command, Stdio};

/// The program.
pub(super) const QEMU: &str = "qemu-system-aarch64";

/// Whether it is installed, and which version.
pub(super) fn version() -> Option<String> {
    let output = Command::new(QEMU).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_string())
}

/// A run of the peer: until the guest powers off. The virtio console goes to `console`.
pub(super) fn command(kernel: &Path, initrd: &Path, disk: &Path, append: &str, console: &Path) -> Command {
    let mut qemu = Command::new(QEMU);
    qemu.args(["-M", "virt,gic-version=3,iommu=smmuv3", "-cpu", "cortex-a57", "-smp", "1", "-m", "1G"])
        .args(["-icount", "shift=0,sleep=off", "-nographic", "-nodefaults", "-nic", "none", "-no-reboot"])
        .args(["-serial", "null", "-monitor", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", append])
        .arg("-drive")
        .arg(format!("file={},format=raw,if=none,id=d0,cache=writeback", disk.display()))
        .args(["-device", "virtio-blk-pci,drive=d0,iommu_platform=on,disable-legacy=on,romfile="])
        .args(["-device", "virtio-rng-pci,iommu_platform=on,disable-legacy=on,romfile="])
        .args(["-device", "virtio-serial-pci,iommu_platform=on,disable-legacy=on,romfile="])
        .arg("-chardev")
        .arg(format!("file,id=c0,path={}", console.display()))
        .args(["-device", "virtconsole,chardev=c0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    qemu
}
