//! `smmulab replay`: one recorded schedule again, and whether it went as recorded.

use std::fs::Permissions;
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

use super::fork::Child;
use super::record::{Record, Replayed};
use super::scenario::Prepared;
use super::timeline::Timeline;
use super::trial::Judge;
use super::{report, trace, until};
use crate::cli::{ReplayArgs, status};
use crate::gdb::{self, Timeless};
use crate::machine::Machine;
use crate::say::{out, outln, say};
use crate::schedule::Hold;
use crate::sharing::Places;
use crate::snapshot;
use crate::stats::state_hash;
use crate::symbols::Symbols;

/// Runs a schedule on a machine that stands where the scenario begins.
///
/// # Errors
/// Never for a machine whose state is plain data.
pub fn carefully(machine: &mut Machine, judge: &Judge, holds: &[Hold]) -> Result<Replayed> {
    machine.follow(holds);
    let verdict = judge.run(machine);
    let begun = machine.schedule().map(|s| s.begun().to_vec()).unwrap_or_default();
    Ok(Replayed { verdict, begun, end: state_hash(machine)? })
}

/// As [`in_detail`], and tells what happens to tables, queues and buffers.
///
/// # Errors
/// When the host has no room for a process.
fn in_all_detail(
    machine: &mut Machine,
    judge: &Judge,
    holds: &[Hold],
    symbols: &Symbols,
) -> Result<Timeline> {
    let places = Child::start(|| {
        machine.survey_memory(holds);
        judge.run(machine);
        machine.places()
    })?;
    machine.chronicle(places.join::<Places>()?.tables());
    let mut line = in_detail(machine, judge, holds, symbols);
    line.events = machine.happened().to_vec();
    Ok(line)
}

/// Runs a schedule once more and looks at everything that is done.
pub fn in_detail(machine: &mut Machine, judge: &Judge, holds: &[Hold], symbols: &Symbols) -> Timeline {
    machine.follow(holds);
    if let Some(schedule) = machine.schedule() {
        schedule.keep_log();
    }
    judge.run(machine);
    let schedule = machine.schedule();
    schedule.map(|s| Timeline::new(s.log(), s.begun(), symbols)).unwrap_or_default()
}

/// A new file next to `path`, which is to take its place.
fn beside(path: &Path) -> Result<NamedTempFile> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(dir);
    file.with_context(|| format!("cannot write {}", path.display()))
}

/// Carries out `smmulab replay`; the result is the exit status.
///
/// # Errors
/// One line for the user.
pub fn run(args: &ReplayArgs) -> Result<u8> {
    if let [file] = args.files.as_slice() {
        return one(args, file);
    }
    ensure!(
        args.trace.is_none() && args.until.is_none() && args.gdb.is_none(),
        "--trace, --until and --gdb take one FILE"
    );
    let mut worst = status::FAILED;
    for file in &args.files {
        let code = one(args, file).unwrap_or_else(|error| {
            say(format_args!("{}: {error:#}", file.display()));
            status::USAGE
        });
        worst = worst.max(code);
    }
    Ok(worst)
}

/// One file's replay.
fn one(args: &ReplayArgs, file: &Path) -> Result<u8> {
    let record = Record::open(file)?;
    // Before the work, so that a path that cannot be written is known before it is done. What is there is replaced when
    // the trace is complete.
    let trace = args.trace.as_deref().map(beside).transpose()?;
    let prepared = record.scenario.prepare(|_| {})?;
    let symbols = prepared.symbols(&record.scenario)?;
    let Prepared { mut machine, exec, .. } = prepared;
    ensure!(
        state_hash(&machine)? == record.begin,
        "the guest of {} is not the one that it was recorded with: its images, or an option, are others",
        file.display()
    );
    if args.until.is_some() || args.gdb.is_some() {
        // A checker looks forwards only.
        machine.board.checkers.stop();
        machine.follow(&record.holds);
        let begin = machine.now();
        let mut run = Timeless::new(machine);
        if let Some(point) = &args.until {
            until::find(&mut run, point, &symbols)?;
            out(until::describe(&mut run, begin, &symbols));
        }
        if let Some(path) = &args.snapshot {
            snapshot::save(&run.machine, &record.scenario.options()?, exec, path)?;
            outln!("Snapshot: {}; the holds that are still to come are not in it", path.display());
        }
        if let Some(address) = &args.gdb {
            gdb::serve(address, run)?;
        }
        return Ok(0);
    }
    let judge = Judge::new(&record.scenario, exec, symbols.clone())?;
    for time in 1..=args.times {
        let again: Replayed = Child::start(|| carefully(&mut machine, &judge, &record.holds).ok())?
            .join::<Option<Replayed>>()?
            .ok_or_else(|| anyhow::anyhow!("the machine's state cannot be hashed"))?;
        if again.verdict != record.verdict || again.end != record.end || again.begun != record.begun {
            let file = file.display();
            say(format!("{file}, time {time}: the run went another way than the recorded one"));
            return Ok(status::DIVERGED);
        }
    }
    if let (Some(path), Some(file)) = (&args.trace, trace) {
        let line = in_all_detail(&mut machine, &judge, &record.holds, &symbols)?;
        let mut out = BufWriter::new(file);
        let written =
            trace::write(&line, &mut out).and_then(|()| out.into_inner().map_err(|e| e.into_error()));
        let kept = written.and_then(|file| file.persist(path).map_err(|e| e.error));
        kept.with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.files.len() > 1 {
        outln!("{}: {}, {} holds, state {}", file.display(), record.failed(), record.holds.len(), record.end);
    } else {
        out(report::text(&record));
    }
    if args.times > 1 {
        outln!("The same, to the bit, {} times.", args.times);
    }
    Ok(status::FAILED)
}
