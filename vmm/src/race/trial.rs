//! One schedule, run to its end, and what came of it.

use devices::lab::Mark;
use guest_images::ExitTrailer;
use serde::{Deserialize, Serialize};

use super::scenario::Scenario;
use crate::machine::{Machine, Stop};
use crate::run;
use crate::symbols::Symbols;

/// What a Linux kernel prints when something is wrong with it.
const COMPLAINTS: [&str; 14] = [
    "BUG:",
    "Oops",
    "WARNING:",
    "KASAN:",
    "KCSAN:",
    "UBSAN:",
    "DMA-API:",
    "INFO: possible",
    "INFO: task",
    "INFO: rcu",
    "Internal error",
    "Kernel panic",
    "Unable to handle",
    "refcount_t:",
];
/// How much virtual time passes between two looks at the console.
const SLICE: u64 = 200_000;

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The guest said so at the lab device.
    Mark,
    /// The command's exit status is not zero.
    Status,
    /// A text on the console.
    Console,
    /// The guest asked for a reset.
    Reset,
    /// Every vCPU waits and nothing will wake one.
    Hang,
    /// The limit of virtual time passed: a hang, or a livelock.
    Limit,
    /// The checker says that the guest used its SMMU wrongly.
    Checker,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    /// One line for people. Failures of one kind with the same line are the same failure.
    pub text: String,
    /// More about it, in lines.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Failure {
    fn new(kind: Kind, text: &str) -> Self {
        Self { kind, text: text.into(), detail: String::new() }
    }

    /// Whether it is another case of a failure.
    pub fn same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.text == other.text
    }
}

/// How a schedule went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What failed, if anything did.
    pub failure: Option<Failure>,
    /// Virtual nanoseconds since the beginning.
    pub ns: u64,
    /// Instructions since the beginning.
    pub instructions: u64,
    /// Hash of the order in which actors took turns.
    pub order: u64,
}

/// When a schedule has failed.
#[derive(Clone, Debug)]
pub struct Judge {
    limit: u64,
    fail_on: Vec<String>,
    exec: bool,
    symbols: Symbols,
}

impl Judge {
    /// The scenario's.
    ///
    /// # Errors
    /// When its limit is no time.
    pub fn new(scenario: &Scenario, exec: bool, symbols: Symbols) -> anyhow::Result<Self> {
        let own = COMPLAINTS.iter().map(ToString::to_string);
        Ok(Self {
            limit: scenario.limit()?,
            fail_on: own.chain(scenario.fail_on.clone()).collect(),
            exec,
            symbols,
        })
    }

    /// Runs a machine that follows a schedule from its beginning to its end.
    pub fn run(&self, machine: &mut Machine) -> Verdict {
        let (begin, retired) = (machine.now(), machine.retired());
        let failure = self.drive(machine, begin + self.limit);
        Verdict {
            failure,
            ns: machine.now() - begin,
            instructions: machine.retired() - retired,
            order: machine.schedule().map_or(0, |s| s.order()),
        }
    }

    fn drive(&self, machine: &mut Machine, end: u64) -> Option<Failure> {
        let fail = |kind, text: &str| Some(Failure::new(kind, text));
        let mut console = Vec::new();
        let mut trailer = ExitTrailer::new();
        loop {
            // Not from the last stop on: how often it stopped must not matter.
            let until = (machine.now() - machine.now() % SLICE + SLICE).min(end);
            let stop = machine.run(until);
            console.extend(run::take_console(machine));
            trailer.feed(&run::take_virtio_console(machine));
            if let Some(failure) = self.complaint(&mut console).or_else(|| self.report(machine)) {
                return Some(failure);
            }
            return match stop {
                Stop::Marked(Mark::Pass | Mark::End, _) => None,
                Stop::Marked(Mark::Fail, code) => {
                    fail(Kind::Mark, &format!("the guest marked a failure, code {code}"))
                }
                Stop::Marked(..) => continue,
                Stop::Until if machine.now() < end => continue,
                Stop::Until | Stop::Sleep(_) => fail(Kind::Limit, "the limit of virtual time passed"),
                Stop::Idle => fail(Kind::Hang, "every vCPU waits and nothing will wake one"),
                Stop::Reset => fail(Kind::Reset, "the guest asked for a reset"),
                Stop::PowerOff => match trailer.finish().1 {
                    Some(0) => None,
                    Some(status) => fail(Kind::Status, &format!("the command ended with status {status}")),
                    None if self.exec => {
                        fail(Kind::Status, "the guest powered off before its command had ended")
                    }
                    None => None,
                },
            };
        }
    }

    /// The first thing that a checker has to say.
    fn report(&self, machine: &Machine) -> Option<Failure> {
        let checkers = &machine.board.checkers;
        let (smmu, report) = checkers.take_reports().into_iter().next()?;
        let of = report.sid.map_or_else(String::new, |sid| format!(", StreamID {sid:#x}"));
        let detail = checkers.text(smmu, &report, &self.symbols);
        let text = format!("checker: {}{of}", report.kind.name());
        Some(Failure { detail, ..Failure::new(Kind::Checker, &text) })
    }

    /// Looks through the whole lines of the console, and leaves what is not a line yet.
    fn complaint(&self, console: &mut Vec<u8>) -> Option<Failure> {
        let end = console.iter().rposition(|&b| b == b'\n')? + 1;
        let lines: Vec<u8> = console.drain(..end).collect();
        let text = String::from_utf8_lossy(&lines);
        let bad = text.lines().find(|line| self.fail_on.iter().any(|what| line.contains(what.as_str())))?;
        // The kernel's time stamp is another in every schedule.
        let line = bad.trim();
        let line =
            line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(line, |(_, rest)| rest);
        Some(Failure::new(Kind::Console, line))
    }
}
