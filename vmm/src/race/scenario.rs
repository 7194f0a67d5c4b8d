//! What is explored: a guest that marks where it begins, and what counts as failing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use devices::lab::Mark;
use serde::{Deserialize, Serialize};
use smmu_model::checker::Patience;

use super::filter::Filter;
use super::steps::Line;
use crate::cli::{Cli, Command, RunArgs};
use crate::machine::{Machine, Stop};
use crate::options::{MachineOptions, Span};
use crate::survey::Kind;
use crate::symbols::Symbols;
use crate::{check, run};

/// How much virtual time a guest has to get to where its scenario begins.
const BOOT_LIMIT: u64 = 600_000_000_000;

/// A scenario, as a TOML file says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// One line for people.
    pub about: String,
    /// The guest and its machine: the options of `smmulab run`. The lab device is always there.
    pub run: Vec<String>,
    /// Virtual time from the beginning after which a schedule counts as hanging.
    #[serde(default = "default_limit")]
    pub limit: String,
    /// Texts on the console that are failures, beside the kernel's own complaints.
    #[serde(default)]
    pub fail_on: Vec<String>,
    /// Who is held, unless the command line says so; nothing means everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub who: Vec<String>,
    /// Functions in which vCPUs are held, unless the command line says so; nothing means everywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<String>,
    /// Kinds of decision points at which vCPUs are held, unless the command line says so; nothing means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<Kind>,
    /// An order said by hand, for `--policy script`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub script: Vec<Line>,
    /// The guest's System.map, a copy of its /proc/kallsyms, or its vmlinux, instead of the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbols: Option<PathBuf>,
}

fn default_limit() -> String {
    "1s".into()
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// When the file cannot be read or is no scenario: one line that says where and why.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the scenario {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no scenario", path.display()))
    }

    /// Reads a scenario from its text.
    ///
    /// # Errors
    /// As [`Scenario::open`].
    pub fn parse(text: &str) -> Result<Self> {
        let scenario: Self = toml::from_str(text).map_err(|e| one_line(&e, text))?;
        scenario.limit()?;
        scenario.run_args()?;
        Ok(scenario)
    }

    /// Virtual nanoseconds after which a schedule hangs.
    ///
    /// # Errors
    /// When the text is no time.
    pub fn limit(&self) -> Result<u64> {
        let span: Span = self.limit.parse().map_err(|e| anyhow::anyhow!("limit: {e}"))?;
        ensure!(span.0 > 0, "limit: a scenario needs some time");
        Ok(span.0)
    }

    /// What a search of it looks at, unless `given` says so.
    pub fn filter(&self, given: Filter) -> Filter {
        fn or<T: Clone>(given: Vec<T>, own: &[T]) -> Vec<T> {
            if given.is_empty() { own.to_vec() } else { given }
        }
        Filter {
            who: or(given.who, &self.who),
            within: or(given.within, &self.within),
            points: or(given.points, &self.points),
            touching: given.touching,
        }
    }

    /// Names for the kernel's code: the scenario's own, or the image's.
    fn symbols(&self) -> Result<Symbols> {
        if let Some(path) = &self.symbols {
            return Symbols::open(path);
        }
        let guest = self.run_args()?.guest;
        if guest.kernel.is_some() {
            return Ok(Symbols::default());
        }
        let image = guest_images::fetch(&guest.image, guest_images::Progress::auto())?;
        // Debian's kernels have one that says nothing.
        Ok(image.system_map.and_then(|path| Symbols::open(&path).ok()).unwrap_or_default())
    }

    /// What its machine is built from.
    ///
    /// # Errors
    /// As [`Scenario::parse`].
    pub fn options(&self) -> Result<MachineOptions> {
        Ok(run::plan(&self.run_args()?)?.0)
    }

    fn run_args(&self) -> Result<RunArgs> {
        let words = ["smmulab", "run", "--lab"].into_iter().chain(self.run.iter().map(String::as_str));
        let cli = Cli::try_parse_from(words).map_err(|e| {
            let text = e.to_string();
            let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            anyhow::anyhow!("run: {line}")
        })?;
        let Command::Run(args) = cli.command else { bail!("run: these are not options of `smmulab run`") };
        ensure!(!args.guest.net, "run: --net brings input from outside, which no schedule repeats");
        if let Some(disk) = args.guest.disk.iter().find(|disk| !disk.read_only) {
            bail!("run: schedules would share the disk {}: give it as FILE,ro", disk.path.display());
        }
        ensure!(args.from.is_none() && args.snapshot.is_none(), "run: a scenario begins with a boot");
        ensure!(
            args.guest.vhost_user_blk.is_empty() && args.guest.vhost_user_net.is_none(),
            "run: a scenario has no devices that other processes serve"
        );
        Ok(*args)
    }

    /// Boots the guest, up to where the scenario begins. `console` is given what it prints.
    ///
    /// # Errors
    /// When the guest cannot be booted or never says that the scenario begins: one line for the user.
    pub fn prepare(&self, mut console: impl FnMut(&[u8])) -> Result<Prepared> {
        let args = self.run_args()?;
        let (options, boot) = run::plan(&args)?;
        let mut machine = crate::assemble::assemble(&options, &boot)?;
        if args.check != check::Mode::Off {
            ensure!(
                !check::attach(&mut machine, Patience::default(), args.check_rewrites).is_empty(),
                "run: --check needs an SMMU or --bounce"
            );
        }
        let (mut text, mut job) = (Vec::new(), Vec::new());
        let why = loop {
            let stop = machine.run((machine.now() + 2_000_000).min(BOOT_LIMIT));
            let output = run::take_console(&mut machine);
            console(&output);
            text.extend(output);
            job.extend(run::take_virtio_console(&mut machine));
            match stop {
                Stop::Marked(Mark::Begin, _) => {
                    // What was wrong before is not the scenario's.
                    drop(machine.board.checkers.take_reports());
                    let said = String::from_utf8_lossy(&job).into_owned();
                    return Ok(Prepared { machine, exec: args.exec.is_some(), said });
                }
                Stop::Until if machine.now() < BOOT_LIMIT => {}
                Stop::Marked(..) => {}
                Stop::Until | Stop::Sleep(_) => break "ten minutes passed",
                Stop::PowerOff => break "it powered off",
                Stop::Reset => break "it asked for a reset",
                Stop::Idle => break "it hangs",
            }
        };
        let text = String::from_utf8_lossy(&text);
        let last = text.trim_end().lines().next_back().unwrap_or("nothing");
        bail!("the guest never said that its scenario begins: {why}; the last that it printed was: {last}");
    }
}

/// A guest that stands where its scenario begins.
pub struct Prepared {
    /// The machine.
    pub machine: Machine,
    /// Whether it runs a command whose exit status counts.
    pub exec: bool,
    /// What the command has printed.
    said: String,
}

impl Prepared {
    /// Names for the guest's code, where it runs.
    ///
    /// # Errors
    /// When the scenario names a file that cannot be used.
    pub fn symbols(&self, scenario: &Scenario) -> Result<Symbols> {
        let mut symbols = scenario.symbols()?;
        symbols.learn(&self.machine);
        symbols.add_modules(&self.said);
        Ok(symbols)
    }
}

/// An error of TOML in one line: where, what, and the line it is in.
fn one_line(error: &toml::de::Error, text: &str) -> anyhow::Error {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
    anyhow::anyhow!("line {line}: {}", error.message().lines().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named_with_their_line() {
        let error = |text: &str| format!("{:#}", Scenario::parse(text).unwrap_err());
        assert!(error("about = 'x'\nrun = ['--cpus', '2']\nlimits = '1s'").contains("line 3"));
        assert!(error("about = 'x'\nrun = 5").contains("line 2"));
        assert!(error("about = 'x'").contains("run"));
        assert!(error("about = 'x'\nrun = ['--cpu', '2']").contains("--cpu"));
        assert!(error("about = 'x'\nrun = []\nlimit = 'soon'").contains("limit"));
        assert!(error("about = 'x'\nrun = ['--net']").contains("--net"));
        assert!(Scenario::parse("about = 'x'\nrun = ['--cpus', '2']\nfail-on = ['oh no']").is_ok());
    }
}
