//! Packs the initramfs: busybox, `/init`, and the modules.

use crate::cpio::Archive;
use crate::modules::{self, Module};
use std::collections::BTreeSet;

/// PID 1.
const INIT: &str = include_str!("../init/init");
/// What udhcpc runs when it has a lease.
const UDHCPC: &str = include_str!("../init/udhcpc.sh");

/// Everything an initramfs is made of, but for what is built into this crate.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    /// The kernel's release, as `uname -r` prints it.
    pub(crate) release: &'a str,
    /// A static arm64 busybox.
    pub(crate) busybox: &'a [u8],
    /// The modules, unpacked.
    pub(crate) modules: &'a [Module],
}

/// What of this crate goes into every initramfs; when it changes, cached ones are packed again.
pub(crate) fn recipe() -> Vec<u8> {
    [INIT, UDHCPC].concat().into_bytes()
}

/// Packs an initramfs. It is not compressed: a guest on a software CPU copies faster than it unpacks.
pub(crate) fn pack(contents: &Contents) -> Vec<u8> {
    let mut archive = Archive::new();
    for directory in ["bin", "dev", "etc", "lib", "lib/modules", "mnt", "proc", "root", "sbin", "sys", "tmp"]
    {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    archive.character_device("dev/null", 1, 3);
    archive.file("bin/busybox", 0o755, contents.busybox);
    archive.symlink("bin/sh", "busybox");
    // The kernel asks for modules by this path.
    archive.symlink("sbin/modprobe", "../bin/busybox");
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("etc/udhcpc.sh", 0o755, UDHCPC.as_bytes());
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\n");

    let base = format!("lib/modules/{}", contents.release);
    let mut made = BTreeSet::from(["lib/modules".to_string()]);
    parents(&mut archive, &mut made, &format!("{base}/modules.dep"));
    archive.file(&format!("{base}/modules.dep"), 0o644, modules::dep_file(contents.modules).as_bytes());
    archive.file(&format!("{base}/modules.alias"), 0o644, modules::alias_file(contents.modules).as_bytes());
    for module in contents.modules {
        let path = format!("{base}/{}", module.path);
        parents(&mut archive, &mut made, &path);
        archive.file(&path, 0o644, &module.data);
    }
    archive.finish()
}

/// Adds the directories above `path` that are not there yet.
fn parents(archive: &mut Archive, made: &mut BTreeSet<String>, path: &str) {
    for (slash, _) in path.match_indices('/') {
        let parent = &path[..slash];
        if parent.starts_with("lib/modules/") && made.insert(parent.to_string()) {
            archive.directory(parent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_repeatable_and_complete() {
        let module = Module {
            name: "virtio_blk".into(),
            path: "kernel/drivers/block/virtio_blk.ko".into(),
            depends: vec![],
            aliases: vec!["virtio:d00000002v*".into()],
            data: b"\x7fELF".to_vec(),
        };
        let contents = Contents { release: "6.12.1", busybox: b"busybox", modules: &[module] };
        let archive = pack(&contents);
        assert_eq!(archive, pack(&contents));
        let text = String::from_utf8_lossy(&archive);
        for part in [
            "lib/modules/6.12.1/kernel/drivers/block\0",
            "lib/modules/6.12.1/kernel/drivers/block/virtio_blk.ko\0",
            "lib/modules/6.12.1/modules.dep\0",
            "alias virtio:d00000002v* virtio_blk\n",
            "smmulab-exit",
            "sbin/modprobe\0",
        ] {
            assert!(text.contains(part), "{part}");
        }
    }
}
