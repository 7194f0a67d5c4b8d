//! A failing schedule in words.

use std::fmt::Write;

use super::record::Record;
use crate::actor::Actor;
use crate::schedule::Begun;

/// The report as text for a terminal.
pub fn text(record: &Record) -> String {
    let mut out = String::new();
    let failure = record.verdict.failure.as_ref();
    let what = failure.map_or("nothing failed", |failure| failure.text.as_str());
    let _ = writeln!(out, "{}\n\nFailed: {what}", record.scenario.about);
    let _ = writeln!(
        out,
        "{} after the beginning, {} instructions; state {}",
        time(record.verdict.ns),
        record.verdict.instructions,
        record.end
    );
    if record.begun.is_empty() {
        out.push_str("It fails in the default order: nobody has to be slower than usual.\n");
    } else {
        out.push_str("It needs:\n");
    }
    for (number, begun) in record.begun.iter().enumerate() {
        let _ = writeln!(out, "  {}. {}", number + 1, hold(begun));
    }
    out
}

/// A hold in words.
fn hold(begun: &Begun) -> String {
    let Begun { hold, pc, .. } = begun;
    match (hold.who, pc) {
        (Actor::Cpu(cpu), Some(pc)) => format!(
            "vCPU {cpu} stands still for {} before the instruction at {pc:#x} (its {}th since the beginning)",
            time(hold.ns),
            hold.at
        ),
        (who, _) => format!("step {} of {who} comes {} late", hold.at, time(hold.ns)),
    }
}

/// Virtual time for people.
pub fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}
