//! A private apt root: arm64 packages on any Debian host, without root and without touching the system's apt.
//!
//! apt reads the host's own configuration first (a proxy may be set there), then ours, which puts every file it writes
//! below one directory of the cache. The mirror is the host's; signatures are checked against Debian's archive keyring.

use crate::error::{Error, Result, at};
use crate::name::Series;
use crate::progress::Progress;
use crate::sources::{self, Mirrors};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The programs that come with Debian and nothing else.
const TOOLS: [&str; 3] = ["apt-get", "apt-cache", "dpkg-deb"];

/// Where Debian's archive keyring may be.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// One version of one package, as the archive's signed index describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The suite that it was found in.
    pub suite: String,
    /// SHA-256 of the `.deb`, in hexadecimal.
    pub sha256: String,
    /// Size of the `.deb` in bytes.
    pub size: u64,
}

/// A private apt root for the suites of one series.
#[derive(Debug)]
pub(crate) struct Apt {
    directory: PathBuf,
}

/// The programs among `tools` that are not on the path.
pub(crate) fn missing<'a>(tools: &[&'a str]) -> Vec<&'a str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |tool: &&&str| !std::env::split_paths(&path).any(|d| d.join(tool).is_file());
    tools.iter().filter(there).copied().collect()
}

impl Apt {
    /// Sets up a root below `directory` for the suites of `series`.
    ///
    /// # Errors
    /// The host is not a Debian, or has no Debian mirror or no keyring.
    pub(crate) fn open(directory: &Path, series: Series) -> Result<Self> {
        let absent = missing(&TOOLS);
        if !absent.is_empty() {
            return Err(Error::NoDebianTools(absent.into_iter().map(String::from).collect()));
        }
        let mirrors = sources::mirrors(&sources::read(Path::new("/etc/apt")))?;
        let keyring = KEYRINGS.iter().find(|k| Path::new(k).is_file()).ok_or(Error::NoKeyring)?;
        let directory = std::path::absolute(directory).map_err(at(directory))?;
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        let apt = Self { directory };
        apt.write("apt.conf", &apt.configuration())?;
        apt.write("first.conf", &format!("Dir::Etc::main \"{}\";\n", apt.path("apt.conf")))?;
        apt.write("sources.list", &source_lines(&mirrors, keyring, series, true))?;
        apt.write("main-only.list", &source_lines(&mirrors, keyring, series, false))?;
        Ok(apt)
    }

    /// Fetches the package lists.
    ///
    /// A mirror without a security archive does: its kernels are merely older.
    pub(crate) fn update(&self, progress: &Progress) -> Result<()> {
        let bar = progress.percent("package lists");
        let update = |list: &str| {
            let mut apt = self.command("apt-get");
            let list = self.path(list);
            apt.args([
                "-qq",
                "-oAPT::Update::Error-Mode=any",
                &format!("-oDir::Etc::sourcelist={list}"),
                "update",
            ]);
            run(apt, "apt-get update", |percent| bar.set_position(percent))
        };
        if let Err(error) = update("sources.list") {
            log::warn!("{error}; trying without the security archive");
            // The first error says more about the cause than a second one would.
            update("main-only.list").map_err(|_| error)?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// All package names that start with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut cache = self.command("apt-cache");
        cache.args(["pkgnames", prefix]);
        Ok(output(cache, "apt-cache pkgnames")?.lines().map(String::from).collect())
    }

    /// What the archive says of the newest version of each package.
    pub(crate) fn packages(&self, names: &[String]) -> Result<Vec<Package>> {
        names.iter().map(|n| self.package(n)).collect()
    }

    fn package(&self, name: &str) -> Result<Package> {
        let mut cache = self.command("apt-cache");
        cache.args(["--no-all-versions", "show", name]);
        let show = output(cache, "apt-cache show").map_err(|_| Error::NoPackage(name.to_string()))?;
        let field = |key: &str| field(&show, key).ok_or_else(|| Error::NoPackage(name.to_string()));
        let version = field("Version")?;
        let mut cache = self.command("apt-cache");
        cache.args(["madison", name]);
        let suite = suite_of(&output(cache, "apt-cache madison")?, version).unwrap_or_default();
        Ok(Package {
            name: name.to_string(),
            version: version.to_string(),
            suite,
            sha256: field("SHA256")?.to_string(),
            size: field("Size")?.parse().unwrap_or(0),
        })
    }

    /// The packages that the newest version of `name` depends on; of alternatives the first, without versions.
    pub(crate) fn depends(&self, name: &str) -> Result<Vec<String>> {
        let mut cache = self.command("apt-cache");
        cache.args(["--no-all-versions", "show", name]);
        let show = output(cache, "apt-cache show").map_err(|_| Error::NoPackage(name.to_string()))?;
        Ok(first_alternatives(field(&show, "Depends").unwrap_or_default()))
    }

    /// Downloads packages into `directory`, verified, and gives their files in the same order.
    pub(crate) fn download(
        &self,
        packages: &[Package],
        directory: &Path,
        progress: &Progress,
    ) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for package in packages {
            let bar =
                progress.percent(&format!("{} ({} MB)", package.name, package.size.div_ceil(1_000_000)));
            // A directory each: the file's name is apt's business.
            let into = directory.join(&package.name);
            fs::create_dir_all(&into).map_err(at(&into))?;
            let mut apt = self.command("apt-get");
            apt.current_dir(&into).args([
                "-qq",
                "download",
                &format!("{}={}", package.name, package.version),
            ]);
            run(apt, &format!("apt-get download {}", package.name), |percent| bar.set_position(percent))?;
            let file = fs::read_dir(&into)
                .map_err(at(&into))?
                .flatten()
                .map(|e| e.path())
                .find(|p| p.extension().is_some_and(|e| e == "deb"))
                .ok_or_else(|| Error::NoPackage(package.name.clone()))?;
            if crate::hash::of_file(&file)? != package.sha256 {
                return Err(Error::Corrupt(file));
            }
            bar.finish_and_clear();
            files.push(file);
        }
        Ok(files)
    }

    fn configuration(&self) -> String {
        let own = "/etc/apt/apt.conf";
        let host = if Path::new(own).is_file() { format!("#include \"{own}\";\n") } else { String::new() };
        let path = |p: &str| self.path(p);
        format!(
            // The host's hooks are for the host: they would clean the system's cache, or ask services about it.
            "{host}#clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n#clear APT::Update::Post-Invoke-Stats;\n\
             #clear DPkg::Pre-Invoke;\n#clear DPkg::Post-Invoke;\n#clear APT::Architectures;\n\
             APT::Architecture \"arm64\";\nAPT::Architectures {{ \"arm64\"; }};\n\
             APT::Sandbox::User \"root\";\nAPT::Get::List-Cleanup \"true\";\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
             Acquire::AllowInsecureRepositories \"false\";\nAPT::Get::AllowUnauthenticated \"false\";\n\
             Dir::State \"{}\";\nDir::State::Lists \"{}\";\nDir::State::status \"/dev/null\";\n\
             Dir::Cache \"{}\";\nDir::Cache::archives \"archives/\";\n\
             Dir::Cache::pkgcache \"pkgcache.bin\";\nDir::Cache::srcpkgcache \"srcpkgcache.bin\";\n\
             Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n\
             Dir::Log \"{}\";\n",
            path("state"),
            path("lists"),
            path("cache"),
            path("sources.list"),
            path("log"),
        )
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command.env("APT_CONFIG", self.path("first.conf")).env("LC_ALL", "C").env_remove("LANGUAGE");
        command.stdin(Stdio::null());
        command
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, text).map_err(at(&path))
    }
}

/// Our own sources file. `target=Packages` leaves out the indexes that desktop programs want.
fn source_lines(mirrors: &Mirrors, keyring: &str, series: Series, with_security: bool) -> String {
    let (main, security) = series.suites();
    let expiry = if mirrors.ignore_expiry { " check-valid-until=no" } else { "" };
    let line = |uri: &str, suite: &str| {
        format!("deb [arch=arm64 signed-by={keyring} target=Packages{expiry}] {uri} {suite} main\n")
    };
    let mut lines = line(&mirrors.main, main);
    if let Some(security) = security.filter(|_| with_security) {
        lines.push_str(&line(&mirrors.security, security));
    }
    lines
}

/// The first value of a field in apt's output.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// The package names in a Depends field (deb-control(5)).
fn first_alternatives(depends: &str) -> Vec<String> {
    let names =
        depends.split(',').filter_map(|d| d.split(['|', '(', ' ', ':']).find(|part| !part.is_empty()));
    names.map(String::from).collect()
}

/// The suite in the line of `apt-cache madison` for `version`: `name | version | URI suite/component arch Packages`.
fn suite_of(madison: &str, version: &str) -> Option<String> {
    madison.lines().find_map(|line| {
        let mut columns = line.split('|').map(str::trim);
        let (_, found, origin) = (columns.next()?, columns.next()?, columns.next()?);
        let suite = origin.split_whitespace().nth(1)?.rsplit_once('/')?.0;
        (found == version).then(|| suite.to_string())
    })
}

/// Runs apt with its status lines on standard output: `dlstatus:COUNT:PERCENT:TEXT`.
fn run(mut command: Command, name: &str, mut percent: impl FnMut(u64)) -> Result<()> {
    let failed = |message: String| Error::Tool { tool: name.to_string(), message };
    command.arg("-oAPT::Status-Fd=1").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let mut errors = child.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = errors.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    for line in BufReader::new(child.stdout.take().expect("piped")).lines().map_while(|l| l.ok()) {
        let status = line.strip_prefix("dlstatus:").and_then(|l| l.split(':').nth(1));
        if let Some(value) = status.and_then(|p| p.parse::<f64>().ok()) {
            percent(value.clamp(0.0, 100.0) as u64);
        }
    }
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    let errors = errors.join().unwrap_or_default();
    if status.success() { Ok(()) } else { Err(failed(last_error(&errors))) }
}

/// Runs a program and gives what it prints.
pub(crate) fn output(mut command: Command, name: &str) -> Result<String> {
    let failed = |message: String| Error::Tool { tool: name.to_string(), message };
    let output = command.output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failed(last_error(&String::from_utf8_lossy(&output.stderr))))
    }
}

/// The line that says why: apt's first error line names the cause, later ones the consequences.
pub(crate) fn last_error(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|l| !l.is_empty());
    let cause = lines().find(|l| l.starts_with("E:")).or_else(|| lines().next_back());
    cause.map_or("no error message", |l| l.trim_start_matches("E:").trim()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read() {
        let depends =
            "gcc-14, linux-headers-1-common (= 1-2), linux-image-1 (= 1) | linux-image-1-unsigned, libc6:any";
        assert_eq!(
            first_alternatives(depends),
            ["gcc-14", "linux-headers-1-common", "linux-image-1", "libc6"]
        );
        assert!(first_alternatives("").is_empty());
    }

    #[test]
    fn our_sources_are_the_hosts_mirror_with_our_suites() {
        let mirrors = Mirrors {
            main: "http://m.example/debian".into(),
            security: "http://m.example/debian-security".into(),
            ignore_expiry: true,
        };
        let lines = source_lines(&mirrors, "/k.gpg", Series::V6_1, true);
        assert_eq!(
            lines,
            "deb [arch=arm64 signed-by=/k.gpg target=Packages check-valid-until=no] http://m.example/debian bookworm main\n\
             deb [arch=arm64 signed-by=/k.gpg target=Packages check-valid-until=no] http://m.example/debian-security bookworm-security main\n"
        );
        assert_eq!(source_lines(&mirrors, "/k.gpg", Series::V6_1, false).lines().count(), 1);
        assert_eq!(source_lines(&mirrors, "/k.gpg", Series::Newest, true).lines().count(), 1);
    }

    #[test]
    fn apts_output_is_understood() {
        let show = "Package: busybox-static\nVersion: 1:1.37.0-6\nSize: 847552\nSHA256: ab\nDescription: Version: no\n";
        assert_eq!(field(show, "Version"), Some("1:1.37.0-6"));
        assert_eq!(field(show, "MD5sum"), None);
        let madison = "linux | 6.12.9-1 | http://m.example/debian-security trixie-security/main arm64 Packages\n\
                       linux | 6.12.8-1 | http://m.example/debian trixie/main arm64 Packages\n";
        assert_eq!(suite_of(madison, "6.12.8-1").as_deref(), Some("trixie"));
        assert_eq!(suite_of(madison, "6.12.9-1").as_deref(), Some("trixie-security"));
        assert_eq!(suite_of(madison, "7"), None);
        assert_eq!(last_error("W: hm\nE: no network\nE: Some files failed\n"), "no network");
        assert_eq!(last_error(""), "no error message");
    }

    #[test]
    fn absent_programs_are_named() {
        assert_eq!(missing(&["sh", "no-such-program-here"]), ["no-such-program-here"]);
    }
}
