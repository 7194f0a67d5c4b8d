//! A failing schedule in words.

use std::fmt::Write;

use super::record::Record;

/// The report as text for a terminal.
pub fn text(record: &Record) -> String {
    let mut out = String::new();
    let failure = record.verdict.failure.as_ref();
    let what = record.failed();
    let _ = writeln!(out, "{}\n\nFailed: {what}", record.scenario.about);
    let _ = writeln!(
        out,
        "{} after the beginning, {} instructions; state {}",
        time(record.verdict.ns),
        record.verdict.instructions,
        record.end
    );
    out.push_str(failure.map_or("", |failure| failure.detail.as_str()));
    if record.begun.is_empty() {
        out.push_str("It fails in the default order: nobody has to be slower than usual.\n");
    } else {
        out.push_str("It needs:\n");
    }
    for (number, hold) in record.story.iter().enumerate() {
        let _ = writeln!(out, "  {}. {hold}", number + 1);
    }
    out
}

/// The report as Markdown, to paste into a mail or an issue. `file` is the record's.
pub fn markdown(record: &Record, file: &str) -> String {
    let mut out = String::new();
    let failure = record.verdict.failure.as_ref();
    let what = record.failed();
    let _ = writeln!(out, "## {}\n\n**Failed:** `{what}`\n", record.scenario.about);
    let _ = writeln!(
        out,
        "{} after the scenario's beginning, {} instructions.\n",
        time(record.verdict.ns),
        record.verdict.instructions
    );
    if let Some(failure) = failure.filter(|failure| !failure.detail.is_empty()) {
        let _ = writeln!(out, "```\n{}```\n", failure.detail);
    }
    if record.story.is_empty() {
        out.push_str("It fails in the default order.\n");
    }
    for (number, hold) in record.story.iter().enumerate() {
        let _ = writeln!(out, "{}. {hold}", number + 1);
    }
    let options = record.scenario.run.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    let _ = writeln!(out, "\nGuest: `smmulab run {options}`\n\nAgain, to the bit: `smmulab replay {file}`");
    let _ = writeln!(out, "(smmulab {}, state at the end `{}`)", record.smmulab, record.end);
    out
}

/// A word as a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
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
