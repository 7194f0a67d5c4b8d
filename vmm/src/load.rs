//! Puts a kernel, an initramfs and the device tree into RAM by the arm64 boot protocol
//! (Documentation/arch/arm64/booting.rst).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use guest_ram::GuestRam;
use thiserror::Error;

use crate::fdt::Tree;
use crate::layout;

const MIB: u64 = 1 << 20;
/// The boot protocol wants the kernel's base aligned to this.
const KERNEL_ALIGN: u64 = 2 * MIB;
/// The boot protocol's limit on the device tree.
const FDT_MAX: u64 = 2 * MIB;
const IMAGE_MAGIC: &[u8; 4] = b"ARM\x64";

/// What to boot.
#[derive(Clone, Debug)]
pub struct Boot {
    /// An arm64 `Image`.
    pub kernel: PathBuf,
    /// Pieces of the initramfs, laid one behind the other as the kernel expects concatenated archives.
    pub initrd: Vec<Vec<u8>>,
    /// Kernel command line.
    pub append: String,
}

/// Where the boot vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Program counter.
    pub pc: u64,
    /// Address of the device tree, for x0.
    pub fdt: u64,
}

/// Why nothing could be booted. Each is the user's to mend and reads as one line.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file could not be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        error: std::io::Error,
    },
    /// Not an arm64 Image.
    #[error("{} is not an arm64 kernel Image{hint}", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What it seems to be instead.
        hint: &'static str,
    },
    /// The kernel is for big-endian mode.
    #[error("{} is a big-endian kernel, which this machine does not run", .0.display())]
    BigEndian(PathBuf),
    /// RAM is too small.
    #[error("{what} ({need} MiB) does not fit into {have} MiB of RAM: give more with --mem")]
    TooSmall {
        /// What does not fit.
        what: &'static str,
        /// MiB that would be needed.
        need: u64,
        /// MiB there are.
        have: u64,
    },
    /// The device tree cannot be written.
    #[error("cannot make the device tree: {0} (is there an odd character in --append?)")]
    Fdt(String),
}

struct Header {
    text_offset: u64,
    image_size: u64,
}

fn header(path: &Path, image: &[u8]) -> Result<Header, LoadError> {
    let field =
        |at: usize| image.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
    if image.get(56..60) != Some(IMAGE_MAGIC) {
        let hint = match image {
            [0x1f, 0x8b, ..] => " (it is gzip-compressed: gunzip it first)",
            [0x7f, b'E', b'L', b'F', ..] => {
                " (it is an ELF file: give arch/arm64/boot/Image instead of vmlinux)"
            }
            [b'M', b'Z', ..] => " (it is an EFI program: a compressed EFI kernel or another architecture's)",
            _ => "",
        };
        return Err(LoadError::NotAnImage { path: path.into(), hint });
    }
    let not_image = || LoadError::NotAnImage { path: path.into(), hint: " (its header is cut short)" };
    let text_offset = field(8).ok_or_else(not_image)?;
    let image_size = field(16).ok_or_else(not_image)?;
    let flags = field(24).ok_or_else(not_image)?;
    if flags & 1 != 0 {
        return Err(LoadError::BigEndian(path.into()));
    }
    // Kernels before 3.17 leave image_size zero and mean 0x80000.
    let text_offset = if image_size == 0 { 0x8_0000 } else { text_offset };
    Ok(Header { text_offset, image_size: image_size.max(image.len() as u64) })
}

/// The content of a file, or its beginning when that is more than `most` bytes: too much to boot, whatever follows.
fn read(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut content)?;
    Ok(content)
}

/// Loads `boot` into `ram` and returns where to start. The tree's `initrd` and `bootargs` come from `boot`.
///
/// # Errors
/// See [`LoadError`]; RAM may then be half written.
pub fn load(ram: &GuestRam, boot: &Boot, tree: Tree<'_>) -> Result<Entry, LoadError> {
    let image = read(&boot.kernel, ram.size())
        .map_err(|error| LoadError::Read { path: boot.kernel.clone(), error })?;
    let Header { text_offset, image_size } = header(&boot.kernel, &image)?;
    let too_small =
        |what, need: u64| LoadError::TooSmall { what, need: need.div_ceil(MIB), have: ram.size() / MIB };
    let kernel = ram.base().checked_add(text_offset).filter(|_| text_offset < ram.size());
    let kernel = kernel.ok_or_else(|| too_small("the kernel", text_offset))?;
    let kernel_end = kernel.saturating_add(image_size);
    if ram.offset(kernel, image_size).is_none() || !ram.write(kernel, &image) {
        return Err(too_small("the kernel", image_size));
    }

    let fdt_at = kernel_end.next_multiple_of(KERNEL_ALIGN);
    let initrd_at = fdt_at + FDT_MAX;
    let mut initrd_end = initrd_at;
    for piece in &boot.initrd {
        if !ram.write(initrd_end, piece) {
            let need = initrd_end - ram.base() + piece.len() as u64;
            return Err(too_small("the kernel with its initramfs", need));
        }
        // The kernel skips zero padding between archives, which have to start on a multiple of four.
        initrd_end = (initrd_end + piece.len() as u64).next_multiple_of(4);
    }
    let low = tree.pools.iter().map(|pool| pool.place.base).min().unwrap_or(u64::MAX);
    if initrd_end > low {
        return Err(too_small("what is to boot, below the restricted pools", initrd_end - ram.base()));
    }
    let initrd = (!boot.initrd.is_empty()).then_some((initrd_at, initrd_end));
    let blob =
        Tree { initrd, bootargs: &boot.append, ..tree }.write().map_err(|e| LoadError::Fdt(e.to_string()))?;
    if blob.len() as u64 > FDT_MAX || !ram.write(fdt_at, &blob) {
        return Err(too_small("the device tree", fdt_at - ram.base() + FDT_MAX));
    }
    debug_assert_eq!(ram.base(), layout::RAM_BASE);
    Ok(Entry { pc: kernel, fdt: fdt_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(len: usize) -> Vec<u8> {
        let mut image = vec![0; len];
        image[16..24].copy_from_slice(&(len as u64).to_le_bytes());
        image[56..60].copy_from_slice(IMAGE_MAGIC);
        image
    }

    fn tree() -> Tree<'static> {
        Tree { cpus: 1, ram: 16 * MIB, ..Tree::default() }
    }

    fn boot(content: &[u8], initrd: Vec<Vec<u8>>, ram: u64) -> Result<Entry, LoadError> {
        let dir = std::env::temp_dir().join(format!("smmulab-load-{}-{}", std::process::id(), content.len()));
        std::fs::write(&dir, content).unwrap();
        let ram = GuestRam::new(layout::RAM_BASE, ram).unwrap();
        let result = load(&ram, &Boot { kernel: dir.clone(), initrd, append: String::new() }, tree());
        std::fs::remove_file(dir).unwrap();
        result
    }

    #[test]
    fn an_image_is_placed_with_its_tree_behind_it() {
        let entry = boot(&image(4096), vec![vec![1; 10], vec![2; 3]], 16 * MIB).unwrap();
        assert_eq!(entry, Entry { pc: layout::RAM_BASE, fdt: layout::RAM_BASE + 2 * MIB });
    }

    #[test]
    fn wrong_files_are_named_for_what_they_are() {
        let error = |content: &[u8]| boot(content, vec![], 16 * MIB).unwrap_err().to_string();
        assert!(error(b"\x1f\x8babc").contains("gzip"));
        assert!(error(b"\x7fELFabcd").contains("vmlinux"));
        assert!(error(b"hello, world").contains("not an arm64 kernel"));
        assert!(
            boot(&image(4098), vec![vec![0; 15 << 20]], 16 * MIB).unwrap_err().to_string().contains("--mem")
        );
        assert!(boot(&image(5 << 20), vec![], 2 * MIB).unwrap_err().to_string().contains("--mem"));
    }
}
