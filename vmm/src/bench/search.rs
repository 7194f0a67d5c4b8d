//! `smmulab bench search`: how many schedules, and how long, it takes to find each scenario's failure, by policy and seed, and for
//! how many its correct twin is silent.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::cli::{SearchBenchArgs, status};
use crate::race::filter::Filter;
use crate::race::interrupt::Interrupt;
use crate::race::policy::{Choice, Policy};
use crate::race::scenario::Scenario;
use crate::race::search::{Explorer, Limits, search};
use crate::say::{outln, say};

/// A twin has to be silent for so many times the schedules that the worst seed needed.
const TWIN: u64 = 10;
/// What the correct twin's name ends in.
const CORRECT: &str = "-correct";

/// What is searched, and how: equal ones have equal results, but for the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Job {
    /// The scenario's name.
    scenario: String,
    /// Hash of its file.
    file: String,
    choice: Choice,
    /// Schedules at most.
    runs: u64,
    /// Nanoseconds of the host's time at most.
    time: u64,
}

/// One search, and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    job: Job,
    /// Schedules that were run; the last one failed if there is a failure.
    ran: u64,
    seconds: f64,
    failure: Option<String>,
    /// Holds after shrinking.
    holds: Option<usize>,
}

impl Cell {
    /// As people read it.
    fn text(&self) -> String {
        match self.failure {
            Some(_) => format!("{} ({:.1} s)", self.ran, self.seconds),
            None => format!("none in {} ({:.0} s)", self.ran, self.seconds),
        }
    }
}

/// A scenario file.
struct Source {
    name: String,
    /// Hash of its text.
    file: String,
    scenario: Scenario,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let scenario = Scenario::open(path)?;
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { name, file: format!("{:016x}", xxh3_64(&text)), scenario })
    }

    fn explorer(&self) -> Result<Explorer> {
        let mut explorer = Explorer::new(&self.scenario, self.scenario.prepare(|_| {})?)?;
        explorer.only(&self.scenario.filter(Filter::default()))?;
        Ok(explorer)
    }
}

/// The results so far, in memory and in a file.
struct Results {
    cells: Vec<Cell>,
    file: Option<File>,
}

impl Results {
    /// Those of an earlier call, if there was one.
    fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self { cells: Vec::new(), file: None }) };
        let cannot = || format!("cannot use {}", path.display());
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).with_context(cannot)?;
        let cell = |line: std::io::Result<String>| -> Result<Cell> { Ok(serde_json::from_str(&line?)?) };
        let cells = BufReader::new(&file).lines().map(cell).collect::<Result<_>>().with_context(cannot)?;
        Ok(Self { cells, file: Some(file) })
    }

    fn find(&self, job: &Job) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.job == *job)
    }

    fn add(&mut self, cell: Cell) -> Result<()> {
        if let Some(file) = &mut self.file {
            let line = serde_json::to_string(&cell)? + "\n";
            file.write_all(line.as_bytes()).context("cannot write the results")?;
        }
        self.cells.push(cell);
        Ok(())
    }
}

/// A bench under way.
struct Bench<'a> {
    args: &'a SearchBenchArgs,
    results: Results,
    interrupt: Interrupt,
}

/// The signal that ended the bench early.
struct Signal(u8);

impl Bench<'_> {
    fn job(&self, source: &Source, policy: Policy, seed: u64) -> Job {
        // The others have no depth.
        let depth = if matches!(policy, Policy::Pct | Policy::Few) { self.args.depth } else { 0 };
        let choice = Choice { policy, depth, seed };
        let (scenario, file) = (source.name.clone(), source.file.clone());
        Job { scenario, file, choice, runs: self.args.runs, time: self.args.time.0 }
    }

    /// Does what is not done yet of a scenario's jobs.
    fn work(&mut self, source: &Source, jobs: Vec<Job>) -> Result<Result<(), Signal>> {
        let mut explorer = None;
        for job in jobs {
            if self.results.find(&job).is_some() {
                continue;
            }
            let explorer = match &mut explorer {
                Some(explorer) => explorer,
                none => none.insert(source.explorer()?),
            };
            let limits =
                Limits { runs: job.runs, time: Some(job.time), jobs: self.args.jobs, keep_going: false };
            let start = Instant::now();
            let found = search(explorer, limits, job.choice, &self.interrupt)?;
            let seconds = start.elapsed().as_secs_f64();
            if let Some(signal) = found.signal() {
                return Ok(Err(Signal(signal)));
            }
            let mut cell = Cell { job, ran: found.runs(), seconds, failure: None, holds: None };
            if let Some((_, holds, failure)) = found.first() {
                let small = explorer.shrink(holds, failure, &self.interrupt);
                cell.failure = Some(failure.text.clone());
                cell.holds = Some(small.len());
                if let Some(dir) = &self.args.records {
                    let (record, _) = explorer.record(&source.scenario, small)?;
                    let Job { scenario, choice, .. } = &cell.job;
                    let name = format!("{scenario}-{}-{}.json", choice.policy.name(), choice.seed);
                    let path = dir.join(name);
                    std::fs::write(&path, record.text()?)
                        .with_context(|| format!("cannot write {}", path.display()))?;
                }
            }
            let Choice { policy, seed, .. } = cell.job.choice;
            outln!("{}, {}, seed {seed}: {}", source.name, policy.name(), cell.text());
            if found.passed_over() > 0 {
                outln!("  passed over, since their holds do not fail: {}", found.passed_over());
            }
            self.results.add(cell)?;
        }
        Ok(Ok(()))
    }

    /// The searches of one policy for a scenario's failure that have been done.
    fn searches(&self, source: &Source, policy: Policy) -> Vec<&Cell> {
        let seeds = self.args.seeds.iter();
        seeds.filter_map(|&seed| self.results.find(&self.job(source, policy, seed))).collect()
    }

    /// For how many schedules the twin has to be silent under a policy: none if that finds nothing.
    fn silence(&self, source: &Source, policy: Policy) -> Option<u64> {
        let found = self.searches(source, policy).into_iter().filter(|cell| cell.failure.is_some());
        found.map(|cell| TWIN * cell.ran).max()
    }

    fn twin_job(&self, source: &Source, twin: &Source, policy: Policy) -> Option<Job> {
        let runs = self.silence(source, policy)?;
        let seed = self.args.seeds.first().copied().unwrap_or_default();
        Some(Job { runs, time: self.args.twin_time.0, ..self.job(twin, policy, seed) })
    }

    fn scenario(&mut self, source: &Source, twin: Option<&Source>) -> Result<Result<(), Signal>> {
        let policies = self.args.policies.iter();
        let all = policies.flat_map(|&policy| self.args.seeds.iter().map(move |&seed| (policy, seed)));
        let jobs = all.map(|(policy, seed)| self.job(source, policy, seed)).collect();
        if let Err(signal) = self.work(source, jobs)? {
            return Ok(Err(signal));
        }
        let Some(twin) = twin else { return Ok(Ok(())) };
        let policies = self.args.policies.iter();
        let jobs = policies.filter_map(|&policy| self.twin_job(source, twin, policy)).collect();
        self.work(twin, jobs)
    }

    /// The table's rows of one scenario.
    fn rows(&self, source: &Source, twin: Option<&Source>, out: &mut String) {
        for &policy in &self.args.policies {
            let cells = self.searches(source, policy);
            if cells.is_empty() {
                continue;
            }
            let found: Vec<String> = self
                .args
                .seeds
                .iter()
                .map(|&seed| self.results.find(&self.job(source, policy, seed)))
                .map(|cell| cell.map_or("not run".into(), Cell::text))
                .collect();
            let holds = cells.iter().filter_map(|cell| cell.holds);
            let shrunk = match (holds.clone().min(), holds.max()) {
                (Some(least), Some(most)) if least == most => format!("{most}"),
                (Some(least), Some(most)) => format!("{least} to {most}"),
                _ => "–".into(),
            };
            let silent = match twin.map(|twin| self.twin_job(source, twin, policy)) {
                None => "has none".into(),
                Some(None) => "–".into(),
                Some(Some(job)) => match self.results.find(&job) {
                    None => "not run".into(),
                    Some(Cell { failure: Some(_), ran, .. }) => format!("**no: fails at {ran}**"),
                    Some(&Cell { ran, .. }) if ran == job.runs => ran.to_string(),
                    Some(&Cell { ran, .. }) if policy == Policy::Fixed => format!("{ran}, there is no other"),
                    Some(&Cell { ran, .. }) => format!("{ran}, then time was over; {} are wanted", job.runs),
                },
            };
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {shrunk} | {silent} |",
                source.name,
                policy.name(),
                found.join(" | ")
            );
        }
    }

    fn table(&self, sources: &[(Source, Option<Source>)]) -> String {
        let args = self.args;
        let mut out = format!(
            "Schedules until found (and seconds of search). At most {} schedules and {} s for each seed, {} s for the twin, which\n\
             is to be silent for {TWIN} times the schedules of the worst seed, under the same policy; pct and few with `--depth {}`.\n\n",
            args.runs,
            args.time.0 / 1_000_000_000,
            args.twin_time.0 / 1_000_000_000,
            args.depth
        );
        let seeds: Vec<String> = args.seeds.iter().map(|seed| format!("Seed {seed}")).collect();
        let _ = writeln!(
            out,
            "| Scenario | Policy | {} | Shrunk to, holds | Twin silent for |",
            seeds.join(" | ")
        );
        let _ = writeln!(out, "|---|---|{}---|---|", "---|".repeat(seeds.len()));
        for (source, twin) in sources {
            self.rows(source, twin.as_ref(), &mut out);
        }
        out
    }
}

/// The scenarios that are given, with their twins, which lie beside them; twins that are given are passed over.
fn sources(paths: &[PathBuf]) -> Result<Vec<(Source, Option<Source>)>> {
    let mut all = Vec::new();
    for path in paths {
        let source = Source::open(path)?;
        if source.name.ends_with(CORRECT) {
            continue;
        }
        let twin = path.with_file_name(format!("{}{CORRECT}.toml", source.name));
        all.push((source, twin.exists().then(|| Source::open(&twin)).transpose()?));
    }
    Ok(all)
}

/// Carries out the bench; the result is the exit status.
///
/// # Errors
/// One line for the user.
pub fn run(args: &SearchBenchArgs) -> Result<u8> {
    ensure!(!args.policies.contains(&Policy::Script), "--policies: a script is no search");
    let sources = sources(&args.scenarios)?;
    let kept = args.out.as_ref().map(|path| path.with_extension("jsonl"));
    let results = Results::open(kept.as_deref())?;
    if let Some(dir) = &args.records {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let interrupt = Interrupt::watch().context("cannot watch for signals")?;
    let mut bench = Bench { args, results, interrupt };
    let mut code = 0;
    for (source, twin) in &sources {
        match bench.scenario(source, twin.as_ref()) {
            Ok(Ok(())) => {}
            Ok(Err(Signal(signal))) => {
                code = status::SIGNAL + signal;
                break;
            }
            // The others can be had all the same.
            Err(error) => {
                say(format_args!("{}: {error:#}", source.name));
                code = status::USAGE;
            }
        }
        if let Some(path) = &args.out {
            std::fs::write(path, bench.table(&sources))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let table = bench.table(&sources);
    match &args.out {
        Some(path) => {
            std::fs::write(path, table).with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => outln!("\n{}", table.trim_end()),
    }
    Ok(code)
}
