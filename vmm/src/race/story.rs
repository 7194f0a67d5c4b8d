//! Holds in words: who stood still, where, and what the others did meanwhile.

use super::report::time;
use super::timeline::Timeline;
use crate::actor::Actor;
use crate::schedule::Begun;
use crate::symbols::Symbols;

/// Functions that are named of one vCPU.
const NAMED: usize = 4;

/// One sentence or two for each hold, in the order in which they began.
pub fn tell(line: &Timeline, symbols: &Symbols) -> Vec<String> {
    line.holds.iter().map(|begun| hold(begun, line, symbols)).collect()
}

fn hold(begun: &Begun, line: &Timeline, symbols: &Symbols) -> String {
    let hold = begun.hold;
    let who = match (hold.who, begun.pc) {
        (Actor::Cpu(cpu), Some(pc)) => {
            format!("vCPU {cpu} stands still for {} before {}", time(hold.ns), symbols.name(pc))
        }
        (who, _) => format!("step {} of {who} comes {} late", hold.at, time(hold.ns)),
    };
    let meanwhile: Vec<String> = line.between(begun.time, hold.ns, hold.who).into_iter().map(did).collect();
    match meanwhile.is_empty() {
        true => format!("{who}; nobody else does anything meanwhile"),
        false => format!("{who}; meanwhile {}", meanwhile.join(", ")),
    }
}

fn did((who, amount, names): (Actor, u64, Vec<String>)) -> String {
    match who {
        Actor::Cpu(cpu) => {
            let more = if names.len() > NAMED { ", …" } else { "" };
            let names = names.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
            format!("vCPU {cpu} executes {amount} instructions ({names}{more})")
        }
        who if amount == 1 => format!("{who} does {}", names.concat()),
        who => format!("{who} does {amount} steps"),
    }
}
