//! A run as a trace that Perfetto (ui.perfetto.dev) shows: one track for each actor, in the JSON of its Trace Event Format.

use std::io::{self, Write};

use serde_json::json;

use super::timeline::Timeline;

/// Writes the trace.
///
/// # Errors
/// Those of `out`.
pub fn write(line: &Timeline, out: &mut impl Write) -> io::Result<()> {
    let micros = |ns: u64| ns as f64 / 1000.0;
    writeln!(out, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
    let name = json!({"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "smmulab"}});
    write!(out, "{name}")?;
    for (tid, (who, track)) in line.tracks.iter().enumerate() {
        let name = json!({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": who.to_string()}});
        write!(out, ",\n{name}")?;
        for span in track {
            let event = match span.ns {
                0 => {
                    json!({"ph": "i", "s": "t", "pid": 1, "tid": tid, "ts": micros(span.from), "name": span.what})
                }
                ns => {
                    json!({"ph": "X", "pid": 1, "tid": tid, "ts": micros(span.from), "dur": micros(ns), "name": span.what})
                }
            };
            write!(out, ",\n{event}")?;
        }
        for begun in line.holds.iter().filter(|begun| begun.hold.who == *who) {
            let event = json!({
                "ph": "X", "pid": 1, "tid": tid, "ts": micros(begun.time), "dur": micros(begun.hold.ns),
                "name": "stands still", "cname": "terrible",
            });
            write!(out, ",\n{event}")?;
        }
    }
    writeln!(out, "\n]}}")
}
