//! `smmulab image build lab`: a small kernel with IOMMU debugging, from Debian's own source package.

use crate::apt::{self, Apt};
use crate::error::{Error, Result, at};
use crate::fetch::stage_busybox;
use crate::name::{Name, Series};
use crate::progress::Progress;
use crate::store::{self, Image, Store};
use crate::{deb, hash};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What `make allnoconfig` starts from.
const FRAGMENT: &str = include_str!("../lab/lab.config");

/// Debian's package with the source; its tarball has the same name.
const SOURCE: &str = "linux-source-6.12";

/// The tarball while we work on it.
const TARBALL: &str = "source.tar.xz";

/// The programs that the build runs, each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 8] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("xz", "xz-utils"),
    ("tar", "tar"),
];

/// What a tree to build modules against has of the whole one, besides every directory called `include`.
const FOR_MODULES: [&str; 8] = [
    "Makefile",
    "Kbuild",
    "Kconfig",
    ".config",
    "Module.symvers",
    "scripts",
    "include",
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
        let (arch_prefix, compiler) = cross();
        check_tools(compiler)?;
        let staging = self.staging()?;
        let (work, staged) = (staging.path(), staging.path().join("image"));
        let packages = {
            let _apt_lock = self.lock(name.series.suites().0)?;
            let apt = Apt::open(&self.apt_root(name.series), name.series)?;
            apt.update(&progress)?;
            let source = apt.packages(&[SOURCE.to_string()])?;
            let busybox = stage_busybox(&apt, work, &staged, progress)?;
            let (tarball, target) = (format!("{SOURCE}.tar.xz"), work.join(TARBALL));
            for file in apt.download(&source, work, &progress)? {
                deb::extract(&file, |path| path.ends_with(&tarball).then(|| target.clone()))?;
                fs::remove_file(&file).map_err(at(&file))?;
            }
            // The first package's version names the image.
            source.into_iter().chain([busybox]).collect::<Vec<_>>()
        };
        let tree = unpack(work, progress)?;
        let log = self.images().join("lab.log");
        let build = Build { tree: &tree, prefix: arch_prefix, log: &log, progress };
        let release = build.run()?;
        build.keep(&staged)?;
        log::info!("built {release} with {compiler}");
        self.publish(&staged, &name, &release, packages)
    }
}

/// The prefix of the arm64 compiler's programs on this host, and the compiler.
fn cross() -> (&'static str, &'static str) {
    if cfg!(target_arch = "aarch64") { ("", "gcc") } else { ("aarch64-linux-gnu-", "aarch64-linux-gnu-gcc") }
}

/// Names the Debian packages to install if programs are missing.
fn check_tools(compiler: &str) -> Result<()> {
    let mut needed: Vec<(&str, &str)> = PROGRAMS.to_vec();
    needed.push((compiler, if compiler == "gcc" { "gcc" } else { "gcc-aarch64-linux-gnu" }));
    let programs: Vec<&str> = needed.iter().map(|(program, _)| *program).collect();
    let absent = apt::missing(&programs);
    let mut packages: Vec<&str> =
        needed.iter().filter(|(program, _)| absent.contains(program)).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() { Ok(()) } else { Err(Error::BuildNeeds(packages.join(" "))) }
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

/// One build of the kernel.
struct Build<'a> {
    tree: &'a Path,
    /// `CROSS_COMPILE`.
    prefix: &'a str,
    log: &'a Path,
    progress: Progress,
}

impl Build<'_> {
    /// Configures and builds; gives the kernel's release.
    fn run(&self) -> Result<String> {
        File::create(self.log).map_err(at(self.log))?;
        let fragment = self.tree.join("smmulab.config");
        fs::write(&fragment, FRAGMENT).map_err(at(&fragment))?;
        let mut configure = self.make(&["allnoconfig"]);
        configure.env("KCONFIG_ALLCONFIG", &fragment);
        self.logged(configure, "configuring the lab kernel")?;
        let config = self.tree.join(".config");
        let refused = refused(FRAGMENT, &fs::read_to_string(&config).map_err(at(&config))?);
        if !refused.is_empty() {
            let message = format!("this kernel's configuration refuses {}", refused.join(", "));
            return Err(Error::Format(message));
        }
        let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
        let jobs = format!("-j{jobs}");
        self.logged(self.make(&[&jobs, "Image", "modules"]), "building the lab kernel")?;
        let mut release = self.make(&["-s", "kernelrelease"]);
        release.stdout(Stdio::piped());
        Ok(apt::output(release, "make kernelrelease")?.trim().to_string())
    }

    fn make(&self, arguments: &[&str]) -> Command {
        let mut make = Command::new("make");
        make.current_dir(self.tree)
            .args(["ARCH=arm64", &format!("CROSS_COMPILE={}", self.prefix)])
            .args(arguments)
            // The same source gives the same kernel.
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KBUILD_BUILD_USER", "smmulab")
            .env("KBUILD_BUILD_HOST", "smmulab")
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        make
    }

    /// Runs a command with its output in the log.
    fn logged(&self, mut command: Command, what: &str) -> Result<()> {
        let failed = |message: String| Error::Tool { tool: what.to_string(), message };
        let spinner = self.progress.spinner(what);
        let mut log = File::options().append(true).open(self.log).map_err(at(self.log))?;
        let errors = log.try_clone().map_err(at(self.log))?;
        let mut child =
            command.stdout(Stdio::piped()).stderr(errors).spawn().map_err(|e| failed(e.to_string()))?;
        for line in BufReader::new(child.stdout.take().expect("piped")).lines().map_while(|l| l.ok()) {
            writeln!(log, "{line}").map_err(at(self.log))?;
            spinner.set_message(format!("{what}: {}", line.trim()));
        }
        let status = child.wait().map_err(|e| failed(e.to_string()))?;
        spinner.finish_and_clear();
        if status.success() { Ok(()) } else { Err(failed(format!("see {}", self.log.display()))) }
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
    hash::of_bytes(FRAGMENT.as_bytes())
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
    fn missing_tools_are_asked_for_by_package() {
        let message = check_tools("no-such-compiler").unwrap_err().to_string();
        assert!(message.ends_with("gcc-aarch64-linux-gnu"), "{message}");
    }
}
