//! The guest's tools: the module that drives the test engine and the test programs, built for an image's kernel and
//! packed into an archive that goes behind the initramfs.

use crate::cpio::Archive;
use crate::cross::{self, Log};
use crate::error::{Result, at};
use crate::hash;
use crate::progress::Progress;
use crate::store::{Image, Store, write_whole};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The module's files.
const MODULE: [(&str, &str); 14] = [
    ("Kbuild", include_str!("../modules/Kbuild")),
    ("engine.h", include_str!("../modules/engine.h")),
    ("smmulab.h", include_str!("../modules/smmulab.h")),
    ("lab.h", include_str!("../modules/lab.h")),
    ("main.c", include_str!("../modules/main.c")),
    ("frame.c", include_str!("../modules/frame.c")),
    ("commands.c", include_str!("../modules/commands.c")),
    ("dma.c", include_str!("../modules/dma.c")),
    ("domain.c", include_str!("../modules/domain.c")),
    ("sva.c", include_str!("../modules/sva.c")),
    ("mistakes.c", include_str!("../modules/mistakes.c")),
    ("races.c", include_str!("../modules/races.c")),
    ("tables.c", include_str!("../modules/tables.c")),
    ("untrusted.c", include_str!("../modules/untrusted.c")),
];

/// What the module's build makes.
const MODULE_FILE: &str = "smmulab_engine.ko";

/// The program's files that need no more than any C library's headers.
const PROGRAM: [(&str, &str); 5] = [
    ("labtest.h", include_str!("../programs/labtest.h")),
    ("main.c", include_str!("../programs/main.c")),
    ("engine.c", include_str!("../programs/engine.c")),
    ("sva.c", include_str!("../programs/sva.c")),
    ("vfio.c", include_str!("../programs/vfio.c")),
];

/// The program's files that need the lab kernel's own headers.
const NEWEST_INTERFACES: [(&str, &str); 3] = [
    ("iommufd.c", include_str!("../programs/iommufd.c")),
    ("nested.c", include_str!("../programs/nested.c")),
    ("mapbench.c", include_str!("../programs/mapbench.c")),
];

/// The test program's name.
const PROGRAM_FILE: &str = "labtest";

/// The programs that the build runs besides the compiler, each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 2] = [("make", "make"), ("gcc", "gcc")];

impl Store {
    /// An archive to append to `image`'s initramfs: `/smmulab/smmulab_engine.ko` and `/bin/labtest`. It is built on
    /// first use, which takes seconds, and for a Debian image needs its kernel's headers from the mirror.
    ///
    /// # Errors
    /// When programs to build with are missing, the build fails, or the mirror has no headers for this kernel any more.
    pub fn tools(&self, image: &Image, progress: Progress) -> Result<PathBuf> {
        let directory = image.kernel.parent().expect("an image's files have a directory");
        let archive = directory.join(format!("tools-{}.cpio", &sources_hash()[..8]));
        if archive.is_file() {
            return Ok(archive);
        }
        let _lock = self.lock(&format!("tools-{}", image.name.file_name()))?;
        if archive.is_file() {
            return Ok(archive);
        }
        cross::check(&PROGRAMS)?;
        let staging = self.staging()?;
        let work = staging.path();
        let log = self.images().join(format!("tools-{}.log", image.name.file_name()));
        let log = Log::new(&log, progress)?;
        let (module, program) = (work.join("modules"), work.join("programs"));
        write_files(&module, &MODULE)?;
        write_files(&program, &PROGRAM)?;
        let tree = match &image.build {
            Some(tree) => tree.clone(),
            None => self.headers(image, work, progress)?,
        };
        build_module(&tree, &module, image.build.is_none(), &log)?;
        build_program(&program, image.build.as_deref(), &log)?;
        let bytes = pack(&read(&module.join(MODULE_FILE))?, &read(&program.join(PROGRAM_FILE))?);
        write_whole(&archive, &bytes)?;
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("tools-") && entry.path() != archive {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(archive)
    }
}

/// Changes when archives must be built anew: with the sources, and with how they are built.
fn sources_hash() -> String {
    let files =
        MODULE.iter().chain(&PROGRAM).chain(&NEWEST_INTERFACES).chain(&[("", include_str!("tools.rs"))]);
    let all: Vec<String> = files.map(|(name, text)| format!("{name}\0{text}\0")).collect();
    hash::of_bytes(all.concat().as_bytes())
}

fn write_files(directory: &Path, files: &[(&str, &str)]) -> Result<()> {
    fs::create_dir_all(directory).map_err(at(directory))?;
    for (name, text) in files {
        let path = directory.join(name);
        fs::write(&path, text).map_err(at(&path))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(at(path))
}

fn build_module(tree: &Path, module: &Path, foreign: bool, log: &Log) -> Result<()> {
    let mut make = cross::make(tree);
    let mut source = OsString::from("M=");
    source.push(module);
    make.arg(source);
    if foreign {
        // Debian's kernels are made by another compiler: what only that one has is left out, and type data, which need
        // one more program.
        make.arg(format!("CC={}", cross::COMPILER));
        make.args(["CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=", "CONFIG_DEBUG_INFO_BTF_MODULES="]);
    }
    make.arg("modules");
    log.run(make, "building the guest module")?;
    // Debian's kernels have debugging information, ten times as large as the module.
    let mut strip = Command::new(format!("{}strip", cross::PREFIX));
    strip.arg("-g").arg(module.join(MODULE_FILE)).stdin(Stdio::null());
    log.run(strip, "stripping the guest module")
}

/// `tree` is the lab kernel's, if this is for that one.
fn build_program(directory: &Path, tree: Option<&Path>, log: &Log) -> Result<()> {
    let mut compiler = Command::new(cross::COMPILER);
    compiler.current_dir(directory).stdin(Stdio::null());
    compiler.args(["-Os", "-static", "-s", "-Wall", "-Wextra", "-o", PROGRAM_FILE]);
    let mut files: Vec<&(&str, &str)> = PROGRAM.iter().collect();
    if let Some(tree) = tree {
        write_files(directory, &NEWEST_INTERFACES)?;
        files.extend(&NEWEST_INTERFACES);
        compiler.arg("-isystem").arg(tree.join("usr/include"));
    }
    compiler.args(files.iter().map(|(name, _)| *name).filter(|name| name.ends_with(".c")));
    log.run(compiler, "building the test program")
}

fn pack(module: &[u8], program: &[u8]) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.directory("smmulab");
    archive.file(&format!("smmulab/{MODULE_FILE}"), 0o644, module);
    archive.file(&format!("bin/{PROGRAM_FILE}"), 0o755, program);
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_file_is_built_in() {
        let there = |directory: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
            let mut names: Vec<String> =
                fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let named = |files: &[(&str, &str)]| {
            let mut names: Vec<String> = files.iter().map(|(name, _)| name.to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(named(&MODULE), there("modules"));
        assert_eq!(named(&[&PROGRAM[..], &NEWEST_INTERFACES].concat()), there("programs"));
        for (name, _) in MODULE.iter().filter(|(name, _)| name.ends_with(".c")) {
            assert!(MODULE[0].1.contains(&name.replace(".c", ".o")), "{name} is not in Kbuild");
        }
    }

    #[test]
    fn the_archive_says_where_things_are() {
        let archive = pack(b"module", b"program");
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("smmulab/smmulab_engine.ko\0") && text.contains("bin/labtest\0"));
        assert_eq!(archive.len() % 512, 0);
    }
}
