//! `replay --until POINT`: a place in a recorded run, and where everybody is there.

use std::fmt::Write;

use anyhow::{Result, anyhow, bail};
use devices::lab::Mark;

use super::report::time;
use super::steps;
use crate::actor::Actor;
use crate::gdb::{Stepped, Timeless};
use crate::machine::Stop;
use crate::script::{Look, Since, Until};
use crate::symbols::Symbols;

/// A place in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// What a script can wait for.
    Script(Until),
    /// Any vCPU is about to execute the instruction at an address.
    Code(u64),
    /// This many holds have begun.
    Decision(usize),
    /// The guest writes a mark; this one, if one is given.
    Mark(Option<Mark>),
}

impl Point {
    /// Understands what the command line says.
    ///
    /// # Errors
    /// When it is no point, or names an unknown symbol.
    pub fn parse(text: &str, symbols: &Symbols) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let number = |text: &str| text.parse::<usize>().ok().filter(|&n| n > 0);
        let mark = |name: &str| {
            let all = [Mark::End, Mark::Pass, Mark::Fail, Mark::Snapshot];
            all.into_iter().find(|mark| format!("{mark:?}").to_lowercase() == name)
        };
        let point = match words[..] {
            ["decision", n] => number(n).map(Self::Decision),
            ["mark"] => Some(Self::Mark(None)),
            ["mark", name] => mark(name).map(|mark| Self::Mark(Some(mark))),
            _ => match steps::until(text, symbols) {
                Ok(until) => Some(Self::Script(until)),
                Err(_) if words.len() == 1 => Some(Self::Code(steps::address(text, symbols)?)),
                Err(e) => return Err(e),
            },
        };
        point.ok_or_else(|| {
            anyhow!("`{text}` is none of `decision N` (from 1), `mark [end|pass|fail|snapshot]`, a time, SYMBOL[+0xOFFSET], or \
                     what a script waits for")
        })
    }
}

/// Goes on with a run that stands at its beginning, up to a point of it.
///
/// # Errors
/// When the run ends before.
pub fn go(run: &mut Timeless, point: Point) -> Result<()> {
    let begin = run.machine.now();
    let mut since = Since::new(begin);
    loop {
        let there = match point {
            Point::Script(Until::Passes(ns)) => run.machine.now() - begin >= ns,
            Point::Script(until) => {
                let (looks, progress) = (looks(run), run.machine.progress().unwrap_or_default());
                since.over(until, run.machine.now(), &looks, &progress.of)
            }
            Point::Code(pc) => {
                // Whoever did not move stood there before.
                let core = run.machine.cluster.core(run.cpu());
                core.pc == pc && run.position() > 0
            }
            Point::Decision(n) => run.machine.schedule().is_some_and(|s| s.begun().len() >= n),
            Point::Mark(mark) => run.marked().is_some_and(|seen| mark.is_none_or(|mark| mark == seen)),
        };
        if there {
            return Ok(());
        }
        if let Stepped::Over(stop) = run.step() {
            // The last mark is where the run ends.
            if let (Point::Mark(wanted), Stop::Marked(mark, _)) = (point, stop)
                && wanted.is_none_or(|wanted| wanted == mark)
            {
                return Ok(());
            }
            let passed = time(run.machine.now() - begin);
            bail!("the run ends {passed} after its beginning, before it gets there");
        }
    }
}

fn looks(run: &Timeless) -> Vec<Look> {
    let cluster = &run.machine.cluster;
    let look = |cpu| {
        let core = cluster.core(cpu);
        let sp = core.r[usize::from(aarch64::core::SP)];
        Look { pc: core.pc, lr: core.r[30], sp, at: core.retired() }
    };
    (0..cluster.cpus()).map(look).collect()
}

/// Where everybody is, in lines.
pub fn describe(run: &mut Timeless, begin: u64, symbols: &Symbols) -> String {
    let (position, machine) = (run.position(), &mut run.machine);
    let now = machine.now();
    let mut out = String::new();
    let _ = writeln!(out, "{} after the beginning, {position} instructions:", time(now - begin));
    let progress = machine.progress().unwrap_or_default();
    for cpu in 0..machine.cluster.cpus() {
        let pc = machine.cluster.core(cpu).pc;
        let done = progress.of.get(&Actor::Cpu(cpu)).copied().unwrap_or(0);
        let held =
            machine.schedule().and_then(|schedule| schedule.held_until(cpu)).filter(|&until| until > now);
        let doing = match held {
            Some(until) => format!("stands still for {} more", time(until - now)),
            None => machine.activity(cpu).into(),
        };
        let _ = writeln!(
            out,
            "  {:<18} before {}, its instruction {done}; {doing}",
            format!("cpu{cpu}"),
            symbols.name(pc)
        );
    }
    let due = machine.board.agents(now);
    let mut agents: Vec<Actor> = progress.of.keys().copied().chain(due.iter().map(|&(who, _)| who)).collect();
    agents.retain(|who| !matches!(who, Actor::Cpu(_)));
    agents.sort_unstable();
    agents.dedup();
    for who in agents {
        let done = progress.of.get(&who).copied().unwrap_or(0);
        let next = match due.iter().find(|(actor, _)| *actor == who) {
            Some(&(_, at)) if at <= now => "the next is due".into(),
            Some(&(_, at)) => format!("the next in {}", time(at - now)),
            None => "nothing to do".to_string(),
        };
        let _ = writeln!(out, "  {:<18} {done} steps done; {next}", who.to_string());
    }
    out
}

/// Goes to a point that the command line names.
///
/// # Errors
/// When it is none, or the run never gets there.
pub fn find(run: &mut Timeless, text: &str, symbols: &Symbols) -> Result<()> {
    let point = Point::parse(text, symbols).map_err(|e| anyhow!("--until: {e:#}"))?;
    go(run, point).map_err(|e| anyhow!("--until {text}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_understood() {
        let symbols = Symbols::parse("1000 T one\n2000 T two\n");
        let parse = |text: &str| Point::parse(text, &symbols);
        assert_eq!(parse("decision 2").unwrap(), Point::Decision(2));
        assert_eq!(parse("mark").unwrap(), Point::Mark(None));
        assert_eq!(parse("mark fail").unwrap(), Point::Mark(Some(Mark::Fail)));
        assert_eq!(parse("3us").unwrap(), Point::Script(Until::Passes(3000)));
        assert_eq!(parse("two+0x10").unwrap(), Point::Code(0x2010));
        assert_eq!(parse("0x44").unwrap(), Point::Code(0x44));
        let reaches = Until::Reaches { cpu: 1, pc: 0x1000, times: 2 };
        assert_eq!(parse("cpu1 at one times 2").unwrap(), Point::Script(reaches));
        for bad in ["decision 0", "decision", "mark begin", "three", "its goes home", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
