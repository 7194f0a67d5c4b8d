//! `smmulab replay`: one recorded schedule again, and whether it went as recorded.

use anyhow::{Result, ensure};

use super::fork::Child;
use super::record::{Record, Replayed};
use super::report;
use super::scenario::Prepared;
use super::trial::Judge;
use crate::cli::{ReplayArgs, status};
use crate::machine::Machine;
use crate::say::say;
use crate::schedule::Hold;
use crate::stats::state_hash;

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

/// Carries out `smmulab replay`; the result is the exit status.
///
/// # Errors
/// One line for the user.
pub fn run(args: &ReplayArgs) -> Result<u8> {
    let record = Record::open(&args.file)?;
    let Prepared { mut machine, exec } = record.scenario.prepare(|_| {})?;
    ensure!(
        state_hash(&machine)? == record.begin,
        "the guest of {} is not the one that it was recorded with: its images, or an option, are others",
        args.file.display()
    );
    let judge = Judge::new(&record.scenario, exec)?;
    for time in 1..=args.times {
        let again: Replayed = Child::start(|| carefully(&mut machine, &judge, &record.holds).ok())?
            .join::<Option<Replayed>>()?
            .ok_or_else(|| anyhow::anyhow!("the machine's state cannot be hashed"))?;
        if again.verdict != record.verdict || again.end != record.end || again.begun != record.begun {
            say(format!("time {time}: the run went another way than the recorded one"));
            return Ok(status::DIVERGED);
        }
    }
    print!("{}", report::text(&record));
    if args.times > 1 {
        println!("The same, to the bit, {} times.", args.times);
    }
    Ok(status::FAILED)
}
