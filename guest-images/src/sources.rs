//! Reads the host's apt sources to learn where its Debian mirror is (sources.list(5)).
//!
//! Both forms are understood: one-line `.list` files and deb822 `.sources` files. Only the addresses are taken; suites,
//! components and keys are this crate's own choice.

use crate::error::{Error, Result};
use std::fs;
use std::path::Path;

/// One address of one suite that the host's apt uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The archive's base address, without a trailing slash.
    pub(crate) uri: String,
    /// Suite or codename, such as `bookworm-security`.
    pub(crate) suite: String,
    /// Whether the host has told apt not to mind an expired Release file, as snapshots need.
    pub(crate) ignore_expiry: bool,
}

/// Where Debian's two archives are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirrors {
    /// The main archive.
    pub(crate) main: String,
    /// The security archive. It is a guess when the host's sources name only the main one.
    pub(crate) security: String,
    /// See [`Source::ignore_expiry`].
    pub(crate) ignore_expiry: bool,
}

/// The suites that mark an address as a Debian archive, not that of some other project.
const DEBIAN_SUITES: [&str; 12] = [
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "unstable",
    "testing",
    "stable",
    "oldstable",
    "oldoldstable",
];

/// Reads every source under `/etc/apt`-like directory `etc`.
pub(crate) fn read(etc: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut files = vec![etc.join("sources.list")];
    if let Ok(directory) = fs::read_dir(etc.join("sources.list.d")) {
        let mut more: Vec<_> = directory.flatten().map(|e| e.path()).collect();
        more.sort();
        files.extend(more);
    }
    for file in files {
        let extension = file.extension().and_then(|e| e.to_str()).unwrap_or("");
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match extension {
            "list" => sources.extend(parse_list(&text)),
            "sources" => sources.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    sources
}

/// Parses one-line sources: `deb [option=value …] uri suite component…`.
pub(crate) fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.strip_prefix(char::is_whitespace)?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let ignore_expiry = options.split_whitespace().any(|o| {
        o.split_once('=').is_some_and(|(k, v)| k.eq_ignore_ascii_case("check-valid-until") && is_no(v))
    });
    source(uri, suite, ignore_expiry)
}

/// Parses deb822 stanzas. Fields may go on over several lines; comment lines may stand anywhere.
pub(crate) fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in lines.chain([""]) {
        if line.trim().is_empty() {
            sources.extend(stanza_sources(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.push((name.trim().to_ascii_lowercase(), value.trim().to_string()));
        }
    }
    sources
}

fn stanza_sources(stanza: &[(String, String)]) -> Vec<Source> {
    let field = |name: &str| stanza.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
    if is_no(field("enabled")) || !field("types").split_whitespace().any(|t| t == "deb") {
        return Vec::new();
    }
    let ignore_expiry = is_no(field("check-valid-until"));
    let mut sources = Vec::new();
    for uri in field("uris").split_whitespace() {
        for suite in field("suites").split_whitespace() {
            sources.extend(source(uri, suite, ignore_expiry));
        }
    }
    sources
}

fn source(uri: &str, suite: &str, ignore_expiry: bool) -> Option<Source> {
    // A CD has no arm64 packages; quotes and spaces could not be written into our own sources file.
    let usable = uri.contains(':') && !uri.starts_with("cdrom:") && !uri.contains(['"', '[', ']']);
    usable.then(|| Source {
        uri: uri.trim_end_matches('/').to_string(),
        suite: suite.trim_end_matches('/').to_string(),
        ignore_expiry,
    })
}

fn is_no(value: &str) -> bool {
    ["no", "false", "without", "off", "disable", "0"].iter().any(|n| value.eq_ignore_ascii_case(n))
}

impl Source {
    /// The suite without what follows the release's name: `bookworm-security` and `bookworm/updates` are bookworm.
    fn release(&self) -> &str {
        self.suite.split(['-', '/']).next().unwrap_or("")
    }

    fn is_debian(&self) -> bool {
        DEBIAN_SUITES.contains(&self.release()) && self.uri.contains("debian")
    }

    fn is_security(&self) -> bool {
        self.suite.ends_with("-security")
            || self.suite.ends_with("/updates")
            || self.uri.contains("debian-security")
    }
}

/// Picks the addresses of Debian's archives out of the host's sources.
pub(crate) fn mirrors(sources: &[Source]) -> Result<Mirrors> {
    let debian: Vec<&Source> = sources.iter().filter(|s| s.is_debian()).collect();
    let main = debian.iter().find(|s| !s.is_security()).ok_or(Error::NoMirror)?;
    let security =
        debian.iter().find(|s| s.is_security()).map_or_else(|| security_beside(&main.uri), |s| s.uri.clone());
    Ok(Mirrors { main: main.uri.clone(), security, ignore_expiry: debian.iter().any(|s| s.ignore_expiry) })
}

/// Mirrors keep the security archive beside the main one: `…/debian` and `…/debian-security`, snapshots included.
fn security_beside(main: &str) -> String {
    match main.rfind("/debian") {
        Some(at) => {
            let (head, tail) = main.split_at(at + "/debian".len());
            format!("{head}-security{tail}")
        }
        None => main.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str, suite: &str) -> Source {
        Source { uri: uri.into(), suite: suite.into(), ignore_expiry: false }
    }

    #[test]
    fn one_line_sources() {
        let text = "# deb http://old.example/debian bookworm main\n\
                    deb http://m.example/debian/ bookworm main contrib # comment\n\
                    deb-src http://m.example/debian bookworm main\n\
                    deb [ arch=amd64 check-valid-until=no ] https://s.example/debian-security bookworm-security main\n\
                    deb cdrom:[Debian]/ bookworm main\n\
                    debfoo http://x.example/debian sid main\n\
                    deb http://short.example/debian\n\n";
        let mut security = source("https://s.example/debian-security", "bookworm-security");
        security.ignore_expiry = true;
        assert_eq!(parse_list(text), [source("http://m.example/debian", "bookworm"), security]);
    }

    #[test]
    fn deb822_sources() {
        let text = "Types: deb deb-src\n# comment: yes\nURIs: http://a.example/debian\n http://b.example/debian/\n\
                    Suites: trixie trixie-updates\nComponents: main\nSigned-By:\n -----BEGIN PGP\n .\n abc\n\n\
                    types: deb-src\nuris: http://c.example/debian\nsuites: trixie\n\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://d.example/debian\nSuites: sid\n\n\
                    Types: deb\nURIs: http://e.example/debian\nSuites: sid\nCheck-Valid-Until: no\n";
        let mut last = source("http://e.example/debian", "sid");
        last.ignore_expiry = true;
        assert_eq!(
            parse_deb822(text),
            [
                source("http://a.example/debian", "trixie"),
                source("http://a.example/debian", "trixie-updates"),
                source("http://b.example/debian", "trixie"),
                source("http://b.example/debian", "trixie-updates"),
                last,
            ]
        );
    }

    #[test]
    fn other_projects_are_not_debian() {
        let other = [
            source("https://node.example/node_20.x", "nodistro"),
            source("http://x.example/ubuntu", "noble"),
        ];
        assert!(matches!(mirrors(&other), Err(Error::NoMirror)));
        let tool = source("https://download.example/linux/ubuntu", "bookworm");
        let debian = source("http://m.example/debian", "bookworm");
        assert_eq!(mirrors(&[tool, debian]).unwrap().main, "http://m.example/debian");
    }

    #[test]
    fn the_security_archive_is_the_hosts_or_beside_the_main_one() {
        let main = source("http://m.example/debian", "bookworm");
        let named = source("http://sec.example/debian-security", "bookworm-security");
        assert_eq!(mirrors(&[named.clone(), main.clone()]).unwrap().security, named.uri);
        assert_eq!(mirrors(&[main]).unwrap().security, "http://m.example/debian-security");
        let snapshot = source("http://s.example/archive/debian/20250520T000000Z", "bookworm");
        assert_eq!(
            mirrors(&[snapshot]).unwrap().security,
            "http://s.example/archive/debian-security/20250520T000000Z"
        );
    }

    #[test]
    fn files_of_both_kinds_are_read_and_others_are_not() {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("sources.list.d")).unwrap();
        let write = |name: &str, text: &str| fs::write(etc.path().join(name), text).unwrap();
        write("sources.list", "deb http://a.example/debian sid main\n");
        write("sources.list.d/b.sources", "Types: deb\nURIs: http://b.example/debian\nSuites: sid\n");
        write("sources.list.d/c.list.disabled", "deb http://c.example/debian sid main\n");
        let uris: Vec<String> = read(etc.path()).into_iter().map(|s| s.uri).collect();
        assert_eq!(uris, ["http://a.example/debian", "http://b.example/debian"]);
        assert!(read(&etc.path().join("absent")).is_empty());
    }
}
