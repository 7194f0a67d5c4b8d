//! `smmulab image build lab`: a small kernel with IOMMU debugging, from Debian's own source package.

use crate::apt::{self, Apt};
use crate::cross::{self, Log};
use crate::error::{Error, Result, at};
use crate::fetch::stage_busybox;
use crate::name::{Name, Series, compare_versions};
use crate::progress::Progress;
use crate::store::{self, Image, Store};
use crate::{deb, hash};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What `make allnoconfig` starts from.
const FRAGMENT: &str = include_str!("../lab/lab.config");

/// Our changes to the source, in their order. All that they change is off until the kernel's command line says otherwise.
const PATCHES: [(&str, &str); 1] = [("mutants.patch", include_str!("../lab/patches/mutants.patch"))];

/// Debian's packages with sources start with this, then comes the version; their tarballs have the same name.
const SOURCE: &str = "linux-source-";

/// The tarball while we work on it.
const TARBALL: &str = "source.tar.xz";

/// The programs that the build runs besides the compiler, each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 9] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("xz", "xz-utils"),
    ("tar", "tar"),
    ("patch", "patch"),
];

/// What a tree to build modules and programs against has of the whole one, besides every directory called `include`.
const FOR_MODULES: [&str; 9] = [
    "Makefile",
    "Kbuild",
    "Kconfig",
    ".config",
    "Module.symvers",
    "scripts",
    "include",
    "usr/include",
    "arch/arm64/Makefile",
];

impl Store {
    /// The lab kernel: from the cache, or else built, which takes some minutes. `refresh` builds anew.
    pub fn build_lab(&self, refresh: bool, progress: Progress) -> Result<Image> {
        let name = Name { series: Series::Lab, flavour: crate::name::FLAVOURS[0].to_string() };
        if let Some(image) = self.cached(&name).filter(|_| !refresh) {
            return Ok(image);
        }
        let _lock = self.lock(&name.file_name())?;
        if let Some(image) = self.reuse(&name).filter(|_| !refresh) {
            return Ok(image);
        }
        cross::check(&PROGRAMS)?;
        let staging = self.staging()?;
        let (work, staged) = (staging.path(), staging.path().join("image"));
        let packages = {
            let _apt_lock = self.lock(name.series.suites().0)?;
            let apt = Apt::open(&self.apt_root(name.series), name.series)?;
            apt.update(&progress)?;
            let newest = newest(&apt.names(SOURCE)?).ok_or_else(|| Error::NoPackage(SOURCE.to_string()))?;
            let (tarball, target) = (format!("{newest}.tar.xz"), work.join(TARBALL));
            let source = apt.packages(&[newest])?;
            let busybox = stage_busybox(&apt, work, &staged, progress)?;
            for file in apt.download(&source, work, &progress)? {
                deb::extract(&file, |path| path.ends_with(&tarball).then(|| target.clone()))?;
                fs::remove_file(&file).map_err(at(&file))?;
            }
            // The first package's version names the image.
            source.into_iter().chain([busybox]).collect::<Vec<_>>()
        };
        let tree = unpack(work, progress)?;
        patch(&tree)?;
        let log = self.images().join("lab.log");
        let build = Build { tree: &tree, log: Log::new(&log, progress)? };
        let release = build.run()?;
        build.keep(&staged)?;
        log::info!("built {release} with {}", cross::COMPILER);
        self.publish(&staged, &name, &release, packages)
    }
}

/// The source package with the highest version.
fn newest(packages: &[String]) -> Option<String> {
    let versions = packages.iter().filter_map(|name| name.strip_prefix(SOURCE));
    let newest = versions
        .filter(|v| v.starts_with(|c: char| c.is_ascii_digit()))
        .max_by(|a, b| compare_versions(a, b));
    newest.map(|version| format!("{SOURCE}{version}"))
}

/// Unpacks the source in `work` and gives its directory.
fn unpack(work: &Path, progress: Progress) -> Result<PathBuf> {
    let spinner = progress.spinner("unpacking the kernel's source");
    let tarball = work.join(TARBALL);
    let tree = work.join("source");
    fs::create_dir_all(&tree).map_err(at(&tree))?;
    let mut tar = Command::new("tar");
    tar.arg("-xJf").arg(&tarball).args(["--strip-components=1", "-C"]).arg(&tree);
    apt::output(tar, "tar")?;
    fs::remove_file(&tarball).map_err(at(&tarball))?;
    spinner.finish_and_clear();
    Ok(tree)
}

/// Applies our patches to the source.
fn patch(tree: &Path) -> Result<()> {
    for (name, text) in PATCHES {
        let file = tree.join(name);
        fs::write(&file, text).map_err(at(&file))?;
        let mut patch = Command::new("patch");
        patch.current_dir(tree).args(["--strip=1", "--forward", "--batch", "--input", name]);
        apt::output(patch, "patch")?;
    }
    Ok(())
}

/// One build of the kernel.
struct Build<'a> {
    tree: &'a Path,
    log: Log<'a>,
}

impl Build<'_> {
    /// Configures and builds; gives the kernel's release.
    fn run(&self) -> Result<String> {
        let fragment = self.tree.join("smmulab.config");
        fs::write(&fragment, FRAGMENT).map_err(at(&fragment))?;
        let mut configure = self.make(&["allnoconfig"]);
        configure.env("KCONFIG_ALLCONFIG", &fragment);
        self.log.run(configure, "configuring the lab kernel")?;
        let config = self.tree.join(".config");
        let refused = refused(FRAGMENT, &fs::read_to_string(&config).map_err(at(&config))?);
        if !refused.is_empty() {
            let message = format!("this kernel's configuration refuses {}", refused.join(", "));
            return Err(Error::Format(message));
        }
        let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
        let jobs = format!("-j{jobs}");
        self.log.run(self.make(&[&jobs, "Image", "modules", "headers"]), "building the lab kernel")?;
        let mut release = self.make(&["-s", "kernelrelease"]);
        release.stdout(Stdio::piped());
        Ok(apt::output(release, "make kernelrelease")?.trim().to_string())
    }

    fn make(&self, arguments: &[&str]) -> Command {
        let mut make = cross::make(self.tree);
        make.args(arguments);
        make
    }

    /// Copies into `staged` what is kept of the build.
    fn keep(&self, staged: &Path) -> Result<()> {
        for (from, to) in [
            ("arch/arm64/boot/Image", store::KERNEL),
            ("System.map", store::SYSTEM_MAP),
            (".config", store::CONFIG),
            ("vmlinux", store::VMLINUX),
        ] {
            let from = self.tree.join(from);
            fs::copy(&from, staged.join(to)).map_err(at(&from))?;
        }
        let build = staged.join(store::BUILD);
        fs::create_dir_all(&build).map_err(at(&build))?;
        // tar copies trees with their links and times, which make looks at.
        let pack = format!(
            "{{ printf '%s\\n' {}; find arch/arm64 -type d -name include; }} | \
             tar -cf - --exclude='*.o' --exclude='.*.cmd' -T - | tar -xf - -C \"$1\"",
            FOR_MODULES.join(" ")
        );
        let mut shell = Command::new("sh");
        shell.current_dir(self.tree).args(["-ec", &pack, "sh"]).arg(&build);
        apt::output(shell, "tar").map(|_| ())
    }
}

/// The options of a fragment that a configuration has not, or not with that value.
fn refused<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let wanted = fragment.lines().filter(|l| l.starts_with("CONFIG_"));
    wanted.filter(|w| !config.lines().any(|l| l == *w)).filter_map(|w| w.split('=').next()).collect()
}

/// Changes when a cached lab kernel must be built anew.
pub(crate) fn selection() -> String {
    let texts: Vec<&str> = [FRAGMENT].into_iter().chain(PATCHES.map(|(_, text)| text)).collect();
    hash::of_bytes(texts.concat().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_options_are_named() {
        let fragment = "# comment\nCONFIG_A=y\nCONFIG_B=\"x\"\nCONFIG_C=y\n";
        assert_eq!(refused(fragment, "CONFIG_A=y\nCONFIG_B=\"x\"\n# CONFIG_C is not set\n"), ["CONFIG_C"]);
        assert!(refused(fragment, "CONFIG_C=y\nCONFIG_B=\"x\"\nCONFIG_A=y\n").is_empty());
    }

    #[test]
    fn every_patch_file_is_built_in_and_has_only_whole_hunks() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/patches");
        let there: Vec<_> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(there, PATCHES.map(|(name, _)| name));
        for (name, text) in PATCHES {
            let (mut old, mut new) = (0, 0);
            for line in text.lines() {
                if let Some(header) = line.strip_prefix("@@ -") {
                    assert_eq!((old, new), (0, 0), "{name}: a hunk before {line} is too short");
                    let mut parts = header.split(' ').map(|part| match part.split_once(',') {
                        Some((_, count)) => count.parse().unwrap(),
                        None => 1,
                    });
                    (old, new) = (parts.next().unwrap(), parts.next().unwrap());
                } else if old + new > 0 {
                    old -= i64::from(!line.starts_with('+'));
                    new -= i64::from(!line.starts_with('-'));
                }
            }
            assert_eq!((old, new), (0, 0), "{name}: the last hunk is too short");
        }
    }

    #[test]
    fn no_option_is_named_twice() {
        let mut names: Vec<_> =
            FRAGMENT.lines().filter(|l| l.starts_with("CONFIG_")).map(|l| l.split('=').next()).collect();
        let count = names.len();
        assert!(count > 70);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn the_newest_source_is_taken() {
        let names =
            ["linux-source", "linux-source-6.9", "linux-source-6.12", "linux-source-7.2"].map(String::from);
        assert_eq!(newest(&names).as_deref(), Some("linux-source-7.2"));
        assert_eq!(newest(&names[..3]).as_deref(), Some("linux-source-6.12"));
        assert_eq!(newest(&names[..1]), None);
    }
}
