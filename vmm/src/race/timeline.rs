//! What everybody did and when, folded so that people can look at it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::happened::Event;
use crate::schedule::{Begun, Done};
use crate::symbols::Symbols;

/// Something that took some virtual time, or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// From when.
    pub from: u64,
    /// For how long.
    pub ns: u64,
    /// The function of a vCPU, the number of a step.
    pub what: String,
}

/// The tracks of a run, by actor, each in the order of time; and when they stood still.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// What each did.
    pub tracks: BTreeMap<Actor, Vec<Span>>,
    /// When each stood still.
    pub holds: Vec<Begun>,
    /// What else happened, if that was looked at.
    pub events: Vec<Event>,
}

impl Timeline {
    /// Folds a detailed record: what a vCPU executes is told by function.
    pub fn new(log: &[Done], begun: &[Begun], symbols: &Symbols) -> Self {
        let mut tracks: BTreeMap<Actor, Vec<Span>> = BTreeMap::new();
        for done in log {
            let track = tracks.entry(done.who).or_default();
            let Some(pc) = done.pc else {
                track.push(Span { from: done.at, ns: 0, what: format!("step {}", done.from) });
                continue;
            };
            let what =
                symbols.at(pc).map_or_else(|| format!("{:#x}", pc & !0xfff), |(name, _)| name.to_string());
            match track.last_mut() {
                Some(last) if last.what == what && last.from + last.ns == done.at => last.ns += done.count,
                _ => track.push(Span { from: done.at, ns: done.count, what }),
            }
        }
        Self { tracks, holds: begun.to_vec(), events: Vec::new() }
    }

    /// What each did from a moment on for some time: how many instructions or steps, and in which functions, the longest
    /// first.
    pub fn between(&self, from: u64, ns: u64, except: Actor) -> Vec<(Actor, u64, Vec<String>)> {
        let end = from.saturating_add(ns);
        let mut all = Vec::new();
        for (&who, track) in self.tracks.iter().filter(|(who, _)| **who != except) {
            let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
            let first = track.partition_point(|span| span.from + span.ns < from);
            for span in track[first..].iter().take_while(|span| span.from <= end) {
                let inside = (span.from + span.ns).min(end).saturating_sub(span.from.max(from));
                let amount = if matches!(who, Actor::Cpu(_)) { inside } else { 1 };
                *by_name.entry(&span.what).or_default() += amount;
            }
            let total = by_name.values().sum();
            let mut names: Vec<(&str, u64)> = by_name.into_iter().collect();
            names.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
            if total > 0 {
                all.push((who, total, names.into_iter().map(|(name, _)| name.to_string()).collect()));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_folded_and_counted() {
        let symbols = Symbols::parse("1000 T one\n2000 T two\n");
        let cpu = |at, pc, count| Done { who: Actor::Cpu(0), at, from: at, count, pc: Some(pc) };
        let step = |at| Done { who: Actor::Its, at, from: 0, count: 1, pc: None };
        let log = [cpu(0, 0x1000, 5), cpu(5, 0x1020, 5), step(10), cpu(10, 0x2000, 7), step(15)];
        let line = Timeline::new(&log, &[], &symbols);
        let spans: Vec<_> =
            line.tracks[&Actor::Cpu(0)].iter().map(|s| (s.from, s.ns, s.what.as_str())).collect();
        assert_eq!(spans, [(0, 10, "one"), (10, 7, "two")]);
        let all = line.between(8, 5, Actor::Cpu(1));
        assert_eq!(
            all,
            [(Actor::Its, 1, vec!["step 0".into()]), (Actor::Cpu(0), 5, vec!["two".into(), "one".into()])]
        );
    }
}
