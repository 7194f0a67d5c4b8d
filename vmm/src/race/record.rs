//! A failing schedule in a file: all that is needed to see it again.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::scenario::Scenario;
use super::trial::Verdict;
use crate::schedule::{Begun, Hold};

/// Version of the format.
const FORMAT: u32 = 1;
/// What the files beside a record end in.
pub const REPORTS: [&str; 3] = ["md", "svg", "html"];

/// A failing schedule and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of the format.
    pub format: u32,
    /// Version of the program: another one may run a guest in another way.
    pub smmulab: String,
    /// The scenario.
    pub scenario: Scenario,
    /// Hash of the machine's state where the scenario begins, which depends on the guest's images and all options.
    pub begin: String,
    /// The schedule.
    pub holds: Vec<Hold>,
    /// The holds as they took effect.
    pub begun: Vec<Begun>,
    /// What came of it.
    pub verdict: Verdict,
    /// Hash of the machine's state at the end.
    pub end: String,
    /// The holds in words.
    pub story: Vec<String>,
}

impl Record {
    /// A record of this program.
    pub fn new(
        scenario: Scenario,
        begin: String,
        holds: Vec<Hold>,
        replayed: Replayed,
        story: Vec<String>,
    ) -> Self {
        let Replayed { verdict, begun, end } = replayed;
        let smmulab = env!("CARGO_PKG_VERSION").into();
        Self { format: FORMAT, smmulab, scenario, begin, holds, begun, verdict, end, story }
    }

    /// What failed, in one line.
    pub fn failed(&self) -> &str {
        self.verdict.failure.as_ref().map_or("nothing failed", |failure| failure.text.as_str())
    }

    /// Writes it to a new file in `dir`: `race-1.json`, or the first number of which there is no report either.
    ///
    /// # Errors
    /// When the directory or the file cannot be made.
    pub fn keep(&self, dir: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
        for number in 1.. {
            let path = dir.join(format!("race-{number}.json"));
            let cannot = || format!("cannot write {}", path.display());
            if REPORTS.iter().any(|extension| path.with_extension(extension).exists()) {
                continue;
            }
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    file.write_all(&self.text()?).with_context(cannot)?;
                    return Ok(path);
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(cannot),
            }
        }
        unreachable!("there is always a number that is free")
    }

    /// What its file says.
    ///
    /// # Errors
    /// Never: it is plain data.
    pub fn text(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads one.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is of another version: one line that says which.
    pub fn open(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let cannot = || format!("{} is no schedule that this program can replay", path.display());
        #[derive(Deserialize)]
        struct Version {
            format: u32,
            smmulab: String,
        }
        let version: Version = serde_json::from_str(&text).with_context(cannot)?;
        ensure!(
            version.format == FORMAT && version.smmulab == env!("CARGO_PKG_VERSION"),
            "{} is of smmulab {}, format {}; this is {}, format {FORMAT}",
            path.display(),
            version.smmulab,
            version.format,
            env!("CARGO_PKG_VERSION")
        );
        serde_json::from_str(&text).with_context(cannot)
    }
}

/// What a schedule did when it was run with care.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replayed {
    /// What came of it.
    pub verdict: Verdict,
    /// Its holds as they took effect.
    pub begun: Vec<Begun>,
    /// Hash of the machine's state at the end.
    pub end: String,
}
