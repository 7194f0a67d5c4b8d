//! A tree to build modules for one of Debian's kernels: its header packages, with the programs in them made to run here.
//!
//! Debian builds those programs for arm64, and for a newer C library than this host may have. So that suite's C library
//! comes along, and on other hosts each program becomes a script that runs it in qemu-user.

use crate::apt::{self, Apt, Package};
use crate::cross;
use crate::error::{Error, Result, at};
use crate::progress::Progress;
use crate::store::{Image, Store};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs arm64 programs; not needed on arm64.
const QEMU: (&str, &str) = ("qemu-aarch64", "qemu-user");

/// An ELF file of 64 bits, little-endian, and at 18 its machine: EM_AARCH64.
const ELF: ([u8; 6], u8) = ([0x7f, b'E', b'L', b'F', 2, 1], 183);

impl Store {
    /// Fetches the headers of `image`'s kernel below `work`, and gives the tree for `make -C`.
    pub(crate) fn headers(&self, image: &Image, work: &Path, progress: Progress) -> Result<PathBuf> {
        if !cfg!(target_arch = "aarch64") {
            cross::check(&[QEMU])?;
        }
        let series = image.name.series;
        let root = work.join("root");
        {
            let _apt_lock = self.lock(series.suites().0)?;
            let apt = Apt::open(&self.apt_root(series), series)?;
            apt.update(&progress)?;
            let main = apt.packages(&[format!("linux-headers-{}", image.release)])?;
            unpack(&apt, &main, work, &root, progress)?;
            let others = apt.packages(&needed(&apt.depends(&main[0].name)?))?;
            unpack(&apt, &others, work, &root, progress)?;
        }
        // The loader's path is /lib/…, wherever the package has it.
        let lib = root.join("lib");
        if !lib.exists() {
            symlink("usr/lib", &lib).map_err(at(&lib))?;
        }
        let tree = root.join("usr/src").join(format!("linux-headers-{}", image.release));
        relocate(&tree.join("Makefile"), &root)?;
        if !cfg!(target_arch = "aarch64") {
            wrap(&root.join("usr/lib"), &root)?;
        }
        Ok(tree)
    }
}

fn unpack(apt: &Apt, packages: &[Package], work: &Path, root: &Path, progress: Progress) -> Result<()> {
    for file in apt.download(packages, work, &progress)? {
        let mut dpkg = Command::new("dpkg-deb");
        dpkg.arg("-x").arg(&file).arg(root);
        apt::output(dpkg, "dpkg-deb -x")?;
        fs::remove_file(&file).map_err(at(&file))?;
    }
    Ok(())
}

/// Of what the headers depend on, the parts of the tree, and the C library that its programs use.
fn needed(depends: &[String]) -> Vec<String> {
    let part = |name: &&String| name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-");
    depends.iter().filter(part).cloned().chain(["libc6".to_string()]).collect()
}

/// The Makefile includes another by its path in an installed system.
fn relocate(makefile: &Path, root: &Path) -> Result<()> {
    let text = fs::read_to_string(makefile).map_err(at(makefile))?;
    let root = root.to_str().ok_or_else(|| Error::Format("the cache directory's path is no text".into()))?;
    fs::write(makefile, text.replace("/usr/src/", &format!("{root}/usr/src/"))).map_err(at(makefile))
}

/// Replaces every arm64 program in the `linux-kbuild` directories of `lib` by a script that runs it.
fn wrap(lib: &Path, root: &Path) -> Result<()> {
    for entry in fs::read_dir(lib).map_err(at(lib))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("linux-kbuild-") {
            wrap_below(&entry.path(), root)?;
        }
    }
    Ok(())
}

fn wrap_below(directory: &Path, root: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(at(directory))?.flatten() {
        let (path, kind) = (entry.path(), entry.file_type().map_err(at(directory))?);
        if kind.is_dir() {
            wrap_below(&path, root)?;
        } else if kind.is_file() && is_program(&path)? {
            let program = PathBuf::from(format!("{}.arm64", path.display()));
            fs::rename(&path, &program).map_err(at(&path))?;
            // Programs look for others beside them by the name that they were called by.
            let quoted = |p: &Path| format!("'{}'", p.display().to_string().replace('\'', r"'\''"));
            let script = format!(
                "#!/bin/sh\nexec {} -0 {} -L {} {} \"$@\"\n",
                QEMU.0,
                quoted(&path),
                quoted(root),
                quoted(&program)
            );
            fs::write(&path, script).map_err(at(&path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// Whether a file is an arm64 program.
fn is_program(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    fs::File::open(path).map_err(at(path))?.take(20).read_to_end(&mut start).map_err(at(path))?;
    Ok(start.starts_with(&ELF.0) && start.get(18) == Some(&ELF.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_parts_of_the_tree_are_fetched() {
        let depends = ["gcc-14", "linux-headers-6.12-common", "linux-image-6.12-arm64", "linux-kbuild-6.12"];
        let names = needed(&depends.map(String::from));
        assert_eq!(names, ["linux-headers-6.12-common", "linux-kbuild-6.12", "libc6"]);
    }

    #[test]
    fn programs_become_scripts_and_scripts_stay() {
        let directory = tempfile::tempdir().unwrap();
        let scripts = directory.path().join("linux-kbuild-1/scripts");
        fs::create_dir_all(&scripts).unwrap();
        let mut elf = ELF.0.to_vec();
        elf.resize(64, 0);
        elf[18] = ELF.1;
        fs::write(scripts.join("modpost"), &elf).unwrap();
        fs::write(scripts.join("other.sh"), "#!/bin/sh\n").unwrap();
        wrap(directory.path(), Path::new("/root")).unwrap();
        assert_eq!(fs::read(scripts.join("modpost.arm64")).unwrap(), elf);
        let script = fs::read_to_string(scripts.join("modpost")).unwrap();
        assert!(script.starts_with("#!/bin/sh\nexec qemu-aarch64 -0 '"), "{script}");
        assert!(script.ends_with("scripts/modpost.arm64' \"$@\"\n"), "{script}");
        assert_eq!(fs::read_to_string(scripts.join("other.sh")).unwrap(), "#!/bin/sh\n");
    }

    #[test]
    fn the_makefile_finds_the_common_one() {
        let directory = tempfile::tempdir().unwrap();
        let makefile = directory.path().join("Makefile");
        fs::write(&makefile, "include /usr/src/linux-headers-1-common/Makefile\n").unwrap();
        relocate(&makefile, Path::new("/r")).unwrap();
        assert_eq!(
            fs::read_to_string(&makefile).unwrap(),
            "include /r/usr/src/linux-headers-1-common/Makefile\n"
        );
    }
}
