//! Kernel modules: which ones a guest gets, what they need, and the index files that modprobe reads.
//!
//! Debian's packages carry no `modules.dep`; it is made when a kernel is installed. So names, dependencies and aliases
//! are read from each module's own `.modinfo` section.

use crate::error::{Error, Result, at};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules that guests get where the kernel has them as modules: drivers of the machine's devices, and what work
/// with disks and with the IOMMU interfaces needs. What they depend on comes along.
pub(crate) const WANTED: [&str; 42] = [
    // the machine's devices
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "virtio_balloon",
    "virtio_scsi",
    "virtio_iommu",
    "pci_host_generic",
    "rtc_pl031",
    "nvme",
    "e1000e",
    // networking
    "af_packet",
    "vsock",
    "vmw_vsock_virtio_transport",
    "9pnet_virtio",
    // file systems
    "9p",
    "virtiofs",
    "ext4",
    "vfat",
    "nls_cp437",
    "nls_iso8859_1",
    "nls_ascii",
    "isofs",
    "overlay",
    "squashfs",
    "loop",
    "sd_mod",
    // crypto that the above ask for by alias
    "crc32c_generic",
    "crc32c_cryptoapi",
    "libcrc32c",
    "crc32_generic",
    // device assignment in the guest
    "vfio",
    "vfio_pci",
    "vfio_iommu_type1",
    "vfio_platform",
    "iommufd",
    "pci_stub",
    // DMA tests
    "dmatest",
    "dma_map_benchmark",
    "iommu_test",
];

/// One module, unpacked.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    /// Name with underscores, as in `/proc/modules`.
    pub(crate) name: String,
    /// Path below `lib/modules/RELEASE`, ending in `.ko`.
    pub(crate) path: String,
    /// Names of the modules that must be there first.
    pub(crate) depends: Vec<String>,
    /// Patterns of the devices (and of other requests) that this module serves.
    pub(crate) aliases: Vec<String>,
    /// The file.
    pub(crate) data: Vec<u8>,
}

/// The canonical form of a module name: `-` and `_` are the same.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Splits a file name such as `virtio-rng.ko.xz` into the module's name and its compression.
fn module_file(path: &Path) -> Option<(String, &'static str)> {
    let file = path.file_name()?.to_str()?;
    for (end, compression) in [(".ko", ""), (".ko.xz", "xz"), (".ko.gz", "gz"), (".ko.zst", "zst")] {
        if let Some(name) = file.strip_suffix(end) {
            return Some((canonical(name), compression));
        }
    }
    None
}

/// Whether a file name is a module's.
pub(crate) fn is_module(path: &Path) -> bool {
    module_file(path).is_some()
}

/// Unpacks from the tree `root` (a `lib/modules/RELEASE`) the modules of `wanted` that are there, with all that they
/// depend on, in the order of their names.
pub(crate) fn select(root: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(root, &mut files)?;
    let mut chosen: BTreeMap<String, Module> = BTreeMap::new();
    let mut queue: Vec<String> = wanted.iter().map(|w| canonical(w)).collect();
    while let Some(name) = queue.pop() {
        if chosen.contains_key(&name) {
            continue;
        }
        let Some(file) = files.get(&name) else { continue };
        let module = load(root, file)?;
        queue.extend(module.depends.iter().cloned());
        chosen.insert(name, module);
    }
    for module in chosen.values() {
        if let Some(missing) = module.depends.iter().find(|d| !chosen.contains_key(*d)) {
            return Err(Error::Format(format!("module {} needs {missing}, which is not there", module.name)));
        }
    }
    Ok(chosen.into_values().collect())
}

fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let entry = entry.map_err(at(directory))?;
        let path = entry.path();
        if entry.file_type().map_err(at(&path))?.is_dir() {
            find(&path, files)?;
        } else if let Some((name, _)) = module_file(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// Reads and unpacks one module file below `root`.
pub(crate) fn load(root: &Path, file: &Path) -> Result<Module> {
    let bytes = fs::read(file).map_err(at(file))?;
    let (name, compression) =
        module_file(file).ok_or_else(|| Error::Format(format!("{} is no module", file.display())))?;
    let data = unpack(bytes, compression).map_err(|m| Error::Format(format!("{}: {m}", file.display())))?;
    let info = modinfo(&data)
        .ok_or_else(|| Error::Format(format!("{}: no ELF file with .modinfo", file.display())))?;
    let values = |key: &'static str| info.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.clone());
    let depends = values("depends").flat_map(|v| v.split(',').map(canonical).collect::<Vec<_>>());
    let relative = file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned();
    let path = relative.find(".ko").map_or(relative.clone(), |end| relative[..end + 3].to_string());
    Ok(Module {
        name,
        path,
        depends: depends.filter(|d| !d.is_empty()).collect(),
        aliases: values("alias").collect(),
        data,
    })
}

fn unpack(bytes: Vec<u8>, compression: &str) -> std::result::Result<Vec<u8>, String> {
    let mut data = Vec::new();
    match compression {
        "" => return Ok(bytes),
        "xz" => {
            lzma_rs::xz_decompress(&mut &bytes[..], &mut data).map_err(|e| format!("bad xz data: {e:?}"))?
        }
        "gz" => {
            std::io::copy(&mut flate2::read::MultiGzDecoder::new(&bytes[..]), &mut data)
                .map_err(|e| e.to_string())?;
        }
        other => return Err(format!("compression {other} is not supported")),
    }
    Ok(data)
}

/// The `key=value` strings of an ELF64 file's `.modinfo` section.
fn modinfo(elf: &[u8]) -> Option<Vec<(String, String)>> {
    let number = |at: usize, size: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(elf.get(at..at.checked_add(size)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    let slice = |at: u64, size: u64| -> Option<&[u8]> {
        elf.get(usize::try_from(at).ok()?..usize::try_from(at.checked_add(size)?).ok()?)
    };
    // ELF64, little-endian: e_shoff, e_shentsize, e_shnum, e_shstrndx.
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry) = (number(0x28, 8)?, number(0x3a, 2)?);
    let (count, names) = (number(0x3c, 2)?, number(0x3e, 2)?);
    // A section header: sh_name, and sh_offset and sh_size.
    let section = |index: u64| -> Option<(u64, &[u8])> {
        let at = usize::try_from(table.checked_add(index.checked_mul(entry)?)?).ok()?;
        Some((number(at, 4)?, slice(number(at.checked_add(0x18)?, 8)?, number(at.checked_add(0x20)?, 8)?)?))
    };
    let names = section(names)?.1;
    for index in 1..count {
        let Some((name, data)) = section(index) else { continue };
        let name = names.get(usize::try_from(name).ok()?..)?.split(|b| *b == 0).next()?;
        if name == b".modinfo" {
            let strings = data.split(|b| *b == 0).filter_map(|s| std::str::from_utf8(s).ok());
            return Some(
                strings.filter_map(|s| s.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect(),
            );
        }
    }
    None
}

/// `modules.dep` for these modules: each with everything it needs, nearest first, as depmod writes it.
pub(crate) fn dep_file(modules: &[Module]) -> String {
    let by_name: BTreeMap<&str, &Module> = modules.iter().map(|m| (m.name.as_str(), m)).collect();
    let mut text = String::new();
    for module in modules {
        let mut order = Vec::new();
        visit(module, &by_name, &mut BTreeSet::new(), &mut order);
        // `order` has each module behind what it needs and ends with the module itself.
        order.pop();
        let _ = write!(text, "{}:", module.path);
        for needed in order.iter().rev() {
            let _ = write!(text, " {needed}");
        }
        text.push('\n');
    }
    text
}

fn visit<'a>(
    module: &'a Module,
    by_name: &BTreeMap<&str, &'a Module>,
    seen: &mut BTreeSet<&'a str>,
    order: &mut Vec<&'a str>,
) {
    if seen.insert(&module.name) {
        for needed in &module.depends {
            if let Some(next) = by_name.get(needed.as_str()) {
                visit(next, by_name, seen, order);
            }
        }
        order.push(&module.path);
    }
}

/// `modules.alias` for these modules.
pub(crate) fn alias_file(modules: &[Module]) -> String {
    let lines = modules.iter().flat_map(|m| m.aliases.iter().map(move |a| format!("alias {a} {}\n", m.name)));
    lines.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A module file with the given `.modinfo` strings: just enough ELF for [`modinfo`].
    pub(crate) fn elf(strings: &[&str]) -> Vec<u8> {
        let info: Vec<u8> = strings.iter().flat_map(|s| s.bytes().chain([0])).collect();
        let names = b"\0.shstrtab\0.modinfo\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let names_at = file.len();
        file.extend_from_slice(names);
        let info_at = file.len();
        file.extend_from_slice(&info);
        let table = file.len();
        for (name, at, size) in [(0, 0, 0), (1, names_at, names.len()), (11, info_at, info.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&(name as u32).to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&header);
        }
        file[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        file[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
        file[0x3e..0x40].copy_from_slice(&1u16.to_le_bytes());
        file
    }

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, data: &[u8]| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        };
        put("kernel/net/failover.ko", &elf(&["name=failover", "depends="]));
        put("kernel/drivers/net_failover.ko", &elf(&["depends=failover"]));
        let mut packed = Vec::new();
        let plain = elf(&["alias=virtio:d00000001v*", "depends=net-failover"]);
        lzma_rs::xz_compress(&mut &plain[..], &mut packed).unwrap();
        put("kernel/drivers/virtio-net.ko.xz", &packed);
        put("kernel/sound/noise.ko", &elf(&["depends="]));
        put("modules.builtin", b"kernel/x.ko\n");
        root
    }

    #[test]
    fn modules_come_with_what_they_need() {
        let root = tree();
        let modules = select(root.path(), &["virtio_net", "absent"]).unwrap();
        let names: Vec<_> = modules.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_net"]);
        assert_eq!(modules[2].path, "kernel/drivers/virtio-net.ko");
        assert!(modules[2].data.starts_with(b"\x7fELF"));
        assert_eq!(
            dep_file(&modules),
            "kernel/net/failover.ko:\n\
             kernel/drivers/net_failover.ko: kernel/net/failover.ko\n\
             kernel/drivers/virtio-net.ko: kernel/drivers/net_failover.ko kernel/net/failover.ko\n"
        );
        assert_eq!(alias_file(&modules), "alias virtio:d00000001v* virtio_net\n");
    }

    #[test]
    fn a_missing_dependency_is_an_error() {
        let root = tree();
        fs::remove_file(root.path().join("kernel/net/failover.ko")).unwrap();
        let message = select(root.path(), &["virtio_net"]).unwrap_err().to_string();
        assert_eq!(message, "module net_failover needs failover, which is not there");
    }

    #[test]
    fn broken_elf_files_are_refused() {
        let whole = elf(&["depends="]);
        for end in 0..whole.len() {
            let _ = modinfo(&whole[..end]);
        }
        assert!(modinfo(b"not an ELF file, but as long as the header of one would be, and more").is_none());
        let mut wild = whole.clone();
        wild[0x28..0x30].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(modinfo(&wild).is_none());
        assert!(modinfo(&whole).is_some());
    }
}
