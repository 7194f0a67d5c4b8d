//! `smmulab replay`: one recorded schedule again, and whether it went as recorded.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::fork::Child;
use super::record::{Record, Replayed};
use super::scenario::Prepared;
use super::timeline::Timeline;
use super::trial::Judge;
use super::{report, trace};
use crate::cli::{ReplayArgs, status};
use crate::gdb::{self, Timeless};
use crate::machine::Machine;
use crate::say::say;
use crate::schedule::Hold;
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

/// Carries out `smmulab replay`; the result is the exit status.
///
/// # Errors
/// One line for the user.
pub fn run(args: &ReplayArgs) -> Result<u8> {
    let record = Record::open(&args.file)?;
    let create =
        |path: &PathBuf| File::create(path).with_context(|| format!("cannot write {}", path.display()));
    // Before the work, so that a path that cannot be written is known before it is done.
    let trace = args.trace.as_ref().map(create).transpose()?.map(BufWriter::new);
    let prepared = record.scenario.prepare(|_| {})?;
    let symbols = prepared.symbols(&record.scenario)?;
    let Prepared { mut machine, exec, .. } = prepared;
    ensure!(
        state_hash(&machine)? == record.begin,
        "the guest of {} is not the one that it was recorded with: its images, or an option, are others",
        args.file.display()
    );
    if let Some(address) = &args.gdb {
        // A checker looks forwards only.
        machine.board.checkers.clear();
        machine.follow(&record.holds);
        gdb::serve(address, Timeless::new(machine))?;
        return Ok(0);
    }
    let judge = Judge::new(&record.scenario, exec, symbols.clone())?;
    for time in 1..=args.times {
        let again: Replayed = Child::start(|| carefully(&mut machine, &judge, &record.holds).ok())?
            .join::<Option<Replayed>>()?
            .ok_or_else(|| anyhow::anyhow!("the machine's state cannot be hashed"))?;
        if again.verdict != record.verdict || again.end != record.end || again.begun != record.begun {
            say(format!("time {time}: the run went another way than the recorded one"));
            return Ok(status::DIVERGED);
        }
    }
    if let (Some(path), Some(mut file)) = (&args.trace, trace) {
        let line = in_detail(&mut machine, &judge, &record.holds, &symbols);
        trace::write(&line, &mut file)
            .and_then(|()| file.flush())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{}", report::text(&record));
    if args.times > 1 {
        println!("The same, to the bit, {} times.", args.times);
    }
    Ok(status::FAILED)
}
