//! `smmulab race`: many schedules of one scenario, several at a time, until one fails.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::filter::Filter;
use super::fork::Child;
use super::interrupt::Interrupt;
use super::policy::{Choice, LAG, Lead, Policy};
use super::record::{REPORTS, Record, Replayed};
use super::replay::{carefully, in_detail};
use super::scenario::{Prepared, Scenario};
use super::shrink::shrink;
use super::timeline::Timeline;
use super::trial::{Failure, Judge, Verdict};
use super::{html, report, steps, story};
use crate::cli::{RaceArgs, status};
use crate::machine::Machine;
use crate::ranks::Ranks;
use crate::say::{out, outln};
use crate::schedule::{Begun, Hold, Progress};
use crate::sharing::Places;
use crate::stats::state_hash;
use crate::symbols::Symbols;

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Schedules to run at most.
    pub runs: u64,
    /// Nanoseconds of the host's time after which no further one begins.
    pub time: Option<u64>,
    /// Schedules to run at the same time, instead of as many as the host has CPUs.
    pub jobs: Option<usize>,
    /// Go on after the first failure.
    pub keep_going: bool,
}

/// What a search has found so far.
#[derive(Debug, Default)]
pub struct Found {
    runs: u64,
    instructions: u64,
    /// Orders of conflicting accesses that were seen.
    behaviours: BTreeSet<u64>,
    /// The schedules that showed new ones, in order.
    leads: Vec<Lead>,
    /// The signal that ended the search early.
    signal: Option<u8>,
    /// Schedules by priorities that failed, and not by their holds.
    passed_over: u64,
    /// The first schedule of each failure.
    failures: Vec<(u64, Vec<Hold>, Failure)>,
}

/// What a schedule that was run tells the search.
#[derive(Debug, Serialize, Deserialize)]
struct Ran {
    verdict: Verdict,
    /// Behaviours that it showed and that were not known when it began.
    new: BTreeSet<u64>,
    /// What it did, as holds, if it went by priorities.
    holds: Option<Vec<Hold>>,
}

impl Found {
    /// Schedules that were run.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// Distinct orders of conflicting accesses that were seen.
    pub fn behaviours(&self) -> usize {
        self.behaviours.len()
    }

    /// The first schedule that failed: its number (from 0), its holds, and how.
    pub fn first(&self) -> Option<&(u64, Vec<Hold>, Failure)> {
        self.failures.first()
    }

    /// Schedules by priorities that failed, and not by the holds that they left.
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }

    /// The signal that ended the search early.
    pub fn signal(&self) -> Option<u8> {
        self.signal
    }

    fn note(&mut self, number: u64, holds: Vec<Hold>, ran: Ran) {
        let Ran { verdict, new, holds: own } = ran;
        let holds = own.unwrap_or(holds);
        self.runs += 1;
        self.instructions += verdict.instructions;
        let before = self.behaviours.len();
        self.behaviours.extend(new);
        let new = self.behaviours.len() - before;
        if let Some(failure) = verdict.failure
            && !self.failures.iter().any(|(.., known)| known.same(&failure))
        {
            self.failures.push((number, holds.clone(), failure));
        }
        if new > 0 {
            self.leads.push(Lead { number, holds, new });
        }
    }
}

/// How much a search does to a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It is only run.
    Run,
    /// Holds are looked for.
    Follow,
    /// And the order of conflicting accesses is recorded.
    Cover,
}

/// A scenario that is ready to be explored.
pub struct Explorer {
    machine: Machine,
    judge: Judge,
    symbols: Symbols,
    /// What everybody does in the default order.
    pub progress: Progress,
    /// What came of the default order.
    pub plain: Verdict,
    /// The pages on which the search looks at the order of accesses.
    watched: Vec<usize>,
    /// The orders that the default order shows.
    known: BTreeSet<u64>,
}

/// Of so many instructions, one may be an access to memory that is watched, beside that of devices; and so many more.
const WATCHED_SHARE: u64 = 1024;
const WATCHED_ALWAYS: u64 = 2048;

impl Explorer {
    /// Runs the default order twice, to know what there is to choose from.
    ///
    /// # Errors
    /// When the host cannot run it.
    pub fn new(scenario: &Scenario, prepared: Prepared) -> Result<Self> {
        let mut explorer = Self::unsurveyed(scenario, prepared)?;
        explorer.survey()?;
        Ok(explorer)
    }

    /// One that knows of nothing to choose from: enough for an order that is said by hand.
    fn unsurveyed(scenario: &Scenario, prepared: Prepared) -> Result<Self> {
        let symbols = prepared.symbols(scenario)?;
        let Prepared { machine, exec, .. } = prepared;
        let judge = Judge::new(scenario, exec, symbols.clone())?;
        let (progress, plain) = (Progress::default(), Verdict::default());
        Ok(Self { machine, judge, symbols, progress, plain, watched: Vec::new(), known: BTreeSet::new() })
    }

    fn survey(&mut self) -> Result<()> {
        let Self { machine, judge, .. } = self;
        let memory = Child::start(|| {
            machine.survey_memory(&[]);
            let verdict = judge.run(machine);
            (verdict.instructions, machine.places())
        })?;
        let (instructions, places) = memory.join::<(u64, Places)>()?;
        let watched = places.watched(instructions / WATCHED_SHARE + WATCHED_ALWAYS);
        let survey = Child::start(|| {
            machine.survey(&places, &watched);
            let verdict = judge.run(machine);
            (verdict, machine.progress(), machine.behaviours())
        })?;
        let (plain, progress, known) = survey.join::<(Verdict, Option<Progress>, BTreeSet<u64>)>()?;
        self.progress = progress.unwrap_or_default();
        (self.plain, self.watched, self.known) = (plain, watched, known);
        Ok(())
    }

    /// Looks only at what the filter takes.
    ///
    /// # Errors
    /// When that is nothing.
    pub fn only(&mut self, filter: &Filter) -> Result<()> {
        filter.apply(&mut self.progress, &self.symbols)
    }

    /// Starts one schedule.
    ///
    /// # Errors
    /// When the host has no room for it.
    pub fn start(&mut self, holds: &[Hold]) -> Result<Child> {
        Child::start(|| {
            self.machine.follow(holds);
            self.judge.run(&mut self.machine)
        })
    }

    /// Starts one schedule that tells the behaviours which are not `known`.
    fn start_covered(
        &mut self,
        holds: &[Hold],
        ranks: Option<Ranks>,
        known: &BTreeSet<u64>,
    ) -> Result<Child> {
        Child::start(|| {
            self.machine.follow(holds);
            let ranked = ranks.is_some();
            if let (Some(schedule), Some(ranks)) = (self.machine.schedule(), ranks) {
                schedule.keep_ranks(ranks);
            }
            self.machine.cover(&self.watched);
            let verdict = self.judge.run(&mut self.machine);
            let new = self.machine.behaviours().difference(known).copied().collect();
            let begun = self.machine.schedule().map(|schedule| schedule.begun()).unwrap_or_default();
            let holds = ranked.then(|| begun.iter().map(|begun| begun.hold).collect());
            Ran { verdict, new, holds }
        })
    }

    /// How much of the host's CPU the default order takes, with so much of what a search does to a schedule.
    ///
    /// # Errors
    /// When the host has no room for it.
    pub fn timed(&mut self, work: Work) -> Result<Duration> {
        let child = Child::start(|| {
            if work != Work::Run {
                self.machine.follow(&[]);
            }
            if work == Work::Cover {
                self.machine.cover(&self.watched);
            }
            let start = cpu_time();
            self.judge.run(&mut self.machine);
            cpu_time().saturating_sub(start)
        })?;
        child.join()
    }

    /// The fewest and shortest of `holds` that fail in the same way; as they are from the moment a signal comes.
    pub fn shrink(&mut self, holds: &[Hold], failure: &Failure, interrupt: &Interrupt) -> Vec<Hold> {
        let mut hurry = false;
        shrink(holds, |holds| {
            hurry |= interrupt.received().is_some();
            !hurry && self.fails_with(holds, failure)
        })
    }

    /// What went by priorities has to fail by its holds as well, or nobody could see it again: it is passed over.
    fn make_sure(&mut self, ran: &mut Ran, found: &mut Found) {
        let Some(holds) = &ran.holds else { return };
        if ran.verdict.failure.as_ref().is_some_and(|failure| !self.fails_with(holds, failure)) {
            ran.verdict.failure = None;
            found.passed_over += 1;
        }
    }

    fn fails_with(&mut self, holds: &[Hold], failure: &Failure) -> bool {
        let verdict = self.start(holds).and_then(Child::join::<Verdict>);
        verdict.is_ok_and(|verdict| verdict.failure.is_some_and(|own| own.same(failure)))
    }

    /// Runs a failing schedule with care, and again with all that is done in it.
    ///
    /// # Errors
    /// When the host has no room for a process.
    pub fn record(&mut self, scenario: &Scenario, holds: Vec<Hold>) -> Result<(Record, Timeline)> {
        let begin = state_hash(&self.machine)?;
        let child = Child::start(|| carefully(&mut self.machine, &self.judge, &holds).ok())?;
        let replayed =
            child.join::<Option<Replayed>>()?.ok_or_else(|| anyhow!("the state cannot be hashed"))?;
        let detail = Child::start(|| {
            let line = in_detail(&mut self.machine, &self.judge, &holds, &self.symbols);
            (story::tell(&line, &self.symbols), line)
        })?;
        let (story, line) = detail.join::<(Vec<String>, Timeline)>()?;
        Ok((Record::new(scenario.clone(), begin, holds, replayed, story), line))
    }
}

/// Carries out `smmulab race`; the result is the exit status.
///
/// # Errors
/// One line for the user.
pub fn run(args: &RaceArgs) -> Result<u8> {
    let scenario = Scenario::open(&args.scenario)?;
    let prepared = scenario.prepare(|output| {
        if args.verbose {
            eprint!("{}", String::from_utf8_lossy(output));
        }
    })?;
    if args.policy == Policy::Script {
        return run_script(&scenario, &mut Explorer::unsurveyed(&scenario, prepared)?, args);
    }
    let mut explorer = Explorer::new(&scenario, prepared)?;
    explorer.only(&scenario.filter(Filter {
        who: args.who.clone(),
        within: args.within.clone(),
        points: args.points.clone(),
        touching: args.touching.clone(),
    }))?;
    let choice = Choice { policy: args.policy, depth: args.depth, seed: args.seed };
    let start = Instant::now();
    let limits = Limits {
        runs: args.runs,
        time: args.time.map(|span| span.0),
        jobs: args.jobs,
        keep_going: args.keep_going,
    };
    // It outlives the search: what was found is still to be shrunk and kept.
    let interrupt = Interrupt::watch().context("cannot watch for signals")?;
    let found = search(&mut explorer, limits, choice, &interrupt)?;
    let seconds = start.elapsed().as_secs_f64();
    outln!(
        "{} schedules ({:?}, seed {}) in {seconds:.1} s: {:.0} a second, {} behaviours, {}",
        found.runs,
        args.policy,
        args.seed,
        found.runs as f64 / seconds.max(1e-3),
        found.behaviours(),
        match found.failures.len() {
            0 => "none failed".to_string(),
            1 => "1 failure".to_string(),
            n => format!("{n} failures"),
        }
    );
    if found.passed_over > 0 {
        outln!(
            "Passed over: {} that failed by priorities, and not by the holds that they left.",
            found.passed_over
        );
    }
    if found.signal.is_some() {
        outln!("Ended early, by a signal.");
    }
    for (number, holds, failure) in &found.failures {
        let small = explorer.shrink(holds, failure, &interrupt);
        outln!("\nSchedule {number}, shrunk from {} to {} holds:", holds.len(), small.len());
        let (record, line) = explorer.record(&scenario, small)?;
        keep(&record, &line, args)?;
    }
    let interrupted = found.signal.map_or(0, |signal| 128 + signal);
    Ok(if found.failures.is_empty() { interrupted } else { status::FAILED })
}

/// Keeps a failing schedule with its reports, and says so.
fn keep(record: &Record, line: &Timeline, args: &RaceArgs) -> Result<()> {
    let path = record.keep(&args.out)?;
    let reports = [
        report::markdown(record, &path.display().to_string()),
        html::drawing(record, line),
        html::page(record, line),
    ];
    for (extension, text) in REPORTS.into_iter().zip(reports) {
        let path = path.with_extension(extension);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    out(report::text(record));
    outln!("Again: smmulab replay {}", path.display());
    outln!("Report: {}, and .md and .svg to paste", path.with_extension("html").display());
    Ok(())
}

/// Runs the order that the scenario's script says.
fn run_script(scenario: &Scenario, explorer: &mut Explorer, args: &RaceArgs) -> Result<u8> {
    ensure!(!scenario.script.is_empty(), "{} has no script", args.scenario.display());
    let steps = steps::steps(&scenario.script, &explorer.symbols)?;
    let child = Child::start(|| {
        explorer.machine.follow(&[]);
        if let Some(schedule) = explorer.machine.schedule() {
            schedule.keep_to(steps);
        }
        let verdict = explorer.judge.run(&mut explorer.machine);
        let schedule = explorer.machine.schedule();
        let begun = schedule.as_ref().map(|s| s.begun().to_vec()).unwrap_or_default();
        (verdict, begun, schedule.and_then(|s| s.script()?.step()))
    })?;
    let (verdict, begun, left) = child.join::<(Verdict, Vec<Begun>, Option<usize>)>()?;
    if let Some(step) = left {
        bail!("what step {step} of the script waits for never happened");
    }
    if verdict.failure.is_none() {
        outln!("The script ran to its end, and nothing failed.");
        return Ok(0);
    }
    let holds = begun.iter().map(|begun| begun.hold).collect();
    let (record, line) = explorer.record(scenario, holds)?;
    ensure!(
        record.verdict == verdict,
        "the script's holds do not give the script's run: this is a bug of smmulab"
    );
    keep(&record, &line, args)?;
    Ok(status::FAILED)
}

/// Runs schedules until one fails, or there are no more, or the time is over. Which ones count does not depend on how
/// many ran at a time: verdicts are taken in the order of their numbers.
///
/// # Errors
/// When the host has no room for a process, or one dies.
pub fn search(explorer: &mut Explorer, args: Limits, choice: Choice, interrupt: &Interrupt) -> Result<Found> {
    let jobs =
        args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let bar = ProgressBar::new(args.runs).with_style(
        ProgressStyle::with_template("{pos}/{len} schedules, {per_sec}, {msg} {wide_bar} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let start = Instant::now();
    let mut found = Found { behaviours: explorer.known.clone(), ..Found::default() };
    let mut running: Vec<Running> = Vec::new();
    let mut waiting: BTreeMap<u64, (Vec<Hold>, Ran)> = BTreeMap::new();
    let (mut next, mut taken, mut more) = (0, 0, true);
    while taken < args.runs {
        more &= args.time.is_none_or(|limit| start.elapsed().as_nanos() < u128::from(limit));
        // What a choice may build upon has to be known before it is made.
        while more && running.len() < jobs && next < args.runs.min(taken + LAG) {
            let Some(holds) = choice.draw(next, &explorer.progress, &found.leads) else {
                more = false;
                break;
            };
            let ranks = choice.ranks(next, &explorer.progress);
            let child = explorer.start_covered(&holds, ranks, &found.behaviours)?;
            running.push(Running { number: next, holds, child });
            next += 1;
        }
        if running.is_empty() {
            break;
        }
        let ended = ready(&running, interrupt)?;
        if let Some(signal) = interrupt.received() {
            found.signal = Some(signal);
            break;
        }
        for index in ended {
            let Running { number, holds, child } = running.swap_remove(index);
            waiting.insert(number, (holds, child.join()?));
        }
        while let Some((holds, mut ran)) = waiting.remove(&taken) {
            explorer.make_sure(&mut ran, &mut found);
            found.note(taken, holds, ran);
            taken += 1;
            bar.inc(1);
            bar.set_message(format!("{} behaviours, {} failures", found.behaviours(), found.failures.len()));
            if !args.keep_going && !found.failures.is_empty() {
                bar.finish_and_clear();
                return Ok(found);
            }
        }
    }
    bar.finish_and_clear();
    Ok(found)
}

/// How long this process has run on a CPU, whatever else the host does.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// A schedule that runs.
struct Running {
    number: u64,
    holds: Vec<Hold>,
    child: Child,
}

/// Which of the running schedules have ended, the last first.
fn ready(running: &[Running], interrupt: &Interrupt) -> Result<Vec<usize>> {
    let mut fds: Vec<PollFd<'_>> =
        running.iter().map(|running| PollFd::new(running.child.fd(), PollFlags::POLLIN)).collect();
    fds.push(PollFd::new(interrupt.fd(), PollFlags::POLLIN));
    poll(&mut fds, PollTimeout::NONE).context("cannot wait for a process")?;
    Ok((0..running.len()).rev().filter(|&i| fds[i].any().unwrap_or(false)).collect())
}
