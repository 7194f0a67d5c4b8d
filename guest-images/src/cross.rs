//! Building programs for arm64: the compiler of this host, make, and a log of what they say.

use crate::apt;
use crate::error::{Error, Result, at};
use crate::progress::Progress;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// The prefix of the arm64 compiler's programs on this host (`CROSS_COMPILE`).
pub(crate) const PREFIX: &str = if cfg!(target_arch = "aarch64") { "" } else { "aarch64-linux-gnu-" };

/// The arm64 compiler of this host.
pub(crate) const COMPILER: &str = if cfg!(target_arch = "aarch64") { "gcc" } else { "aarch64-linux-gnu-gcc" };

/// The Debian package that has [`COMPILER`], and the one that has what programs are linked with.
const COMPILER_PACKAGES: &str = if cfg!(target_arch = "aarch64") {
    "gcc libc6-dev"
} else {
    "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
};

/// Checks that the compiler and `programs`, each with the Debian package that has it, are there.
///
/// # Errors
/// Names the packages to install.
pub(crate) fn check(programs: &[(&str, &str)]) -> Result<()> {
    let mut needed = programs.to_vec();
    needed.push((COMPILER, COMPILER_PACKAGES));
    let names: Vec<&str> = needed.iter().map(|(program, _)| *program).collect();
    let absent = apt::missing(&names);
    let mut packages: Vec<&str> =
        needed.iter().filter(|(program, _)| absent.contains(program)).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() { Ok(()) } else { Err(Error::BuildNeeds(packages.join(" "))) }
}

/// make in a kernel's tree.
pub(crate) fn make(tree: &Path) -> Command {
    let mut make = Command::new("make");
    make.current_dir(tree)
        .args(["ARCH=arm64", &format!("CROSS_COMPILE={PREFIX}")])
        // The same source gives the same kernel.
        .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
        .env("KBUILD_BUILD_USER", "smmulab")
        .env("KBUILD_BUILD_HOST", "smmulab")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    make
}

/// Where the output of a build's commands goes.
pub(crate) struct Log<'a> {
    path: &'a Path,
    progress: Progress,
}

impl<'a> Log<'a> {
    /// Empties the file.
    pub(crate) fn new(path: &'a Path, progress: Progress) -> Result<Self> {
        File::create(path).map_err(at(path))?;
        Ok(Self { path, progress })
    }

    /// Runs a command with its output in the log.
    pub(crate) fn run(&self, mut command: Command, what: &str) -> Result<()> {
        let failed = |message: String| Error::Tool { tool: what.to_string(), message };
        let spinner = self.progress.spinner(what);
        let mut log = File::options().append(true).open(self.path).map_err(at(self.path))?;
        let errors = log.try_clone().map_err(at(self.path))?;
        let mut child =
            command.stdout(Stdio::piped()).stderr(errors).spawn().map_err(|e| failed(e.to_string()))?;
        for line in BufReader::new(child.stdout.take().expect("piped")).lines().map_while(|l| l.ok()) {
            writeln!(log, "{line}").map_err(at(self.path))?;
            spinner.set_message(format!("{what}: {}", line.trim()));
        }
        let status = child.wait().map_err(|e| failed(e.to_string()))?;
        spinner.finish_and_clear();
        if status.success() { Ok(()) } else { Err(failed(format!("see {}", self.path.display()))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_are_asked_for_by_package() {
        let message = check(&[("no-such-program", "its-package")]).unwrap_err().to_string();
        assert!(message.contains("its-package"), "{message}");
    }

    #[test]
    fn what_a_command_says_is_in_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = Log::new(&path, Progress::Quiet).unwrap();
        let shell = |script: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]);
            shell
        };
        log.run(shell("echo out; echo err >&2"), "talking").unwrap();
        let error = log.run(shell("exit 3"), "failing").unwrap_err().to_string();
        assert!(error.contains("failing") && error.contains("log"), "{error}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("out\n") && text.contains("err\n"), "{text}");
    }
}
