//! A run as a trace that Perfetto (ui.perfetto.dev) shows, in the JSON of its Trace Event Format: a track for each actor, and for
//! command queue, walks, DMA and interrupts; arrows from an unmap to its invalidation, its CMD_SYNC, and the beat that raced.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::timeline::Timeline;
use crate::happened::{Event, What, unmaps};

/// Tracks of what happens, by number, behind those of actors.
const TRACKS: [&str; 5] = ["command queue", "walks", "DMA", "interrupts", "tables"];
const FIRST: usize = 1000;
/// How long something is drawn that takes no time: an arrow needs something to hold on to.
const INSTANT: u64 = 1;

/// The track that something is on.
fn track(what: &What) -> usize {
    FIRST
        + match what {
            What::Command { .. } | What::Record { .. } => 0,
            What::Descriptor { .. } | What::Structure { .. } => 1,
            What::Beat { .. } => 2,
            What::Interrupt { .. } => 3,
            What::Store { .. } => 4,
        }
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

/// Writes the trace.
///
/// # Errors
/// Those of `out`.
pub fn write(line: &Timeline, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
    write!(out, "{}", json!({"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "smmulab"}}))?;
    let mut put = |event: Value| write!(out, ",\n{event}");
    for (tid, (who, track)) in line.tracks.iter().enumerate() {
        put(named(tid, &who.to_string()))?;
        for span in track {
            put(match span.ns {
                0 => {
                    json!({"ph": "i", "s": "t", "pid": 1, "tid": tid, "ts": micros(span.from), "name": span.what})
                }
                ns => {
                    json!({"ph": "X", "pid": 1, "tid": tid, "ts": micros(span.from), "dur": micros(ns), "name": span.what})
                }
            })?;
        }
        for begun in line.holds.iter().filter(|begun| begun.hold.who == *who) {
            put(json!({
                "ph": "X", "pid": 1, "tid": tid, "ts": micros(begun.time), "dur": micros(begun.hold.ns),
                "name": "stands still", "cname": "terrible",
            }))?;
        }
    }
    for (index, name) in TRACKS.iter().enumerate() {
        let tid = FIRST + index;
        if line.events.iter().any(|event| track(&event.what) == tid) {
            put(named(tid, name))?;
        }
    }
    for event in &line.events {
        put(json!({
            "ph": "X", "pid": 1, "tid": track(&event.what), "ts": micros(event.at), "dur": micros(INSTANT),
            "name": event.what.name(), "args": {"who": event.who.to_string()},
        }))?;
    }
    for (id, unmap) in unmaps(&line.events).into_iter().enumerate() {
        let stops = [Some(unmap.store), unmap.invalidation, unmap.sync];
        arrows(
            &mut put,
            &format!("unmap {id}"),
            "unmap to sync",
            &stops.into_iter().flatten().collect::<Vec<_>>(),
        )?;
        if let Some(raced) = unmap.raced {
            arrows(&mut put, &format!("race {id}"), "the DMA that raced", &[unmap.store, raced])?;
        }
    }
    writeln!(out, "\n]}}")
}

/// An arrow through all of these: it starts at the first, steps at those between, finishes at the last.
fn arrows(
    put: &mut impl FnMut(Value) -> io::Result<()>,
    id: &str,
    name: &str,
    stops: &[&Event],
) -> io::Result<()> {
    if stops.len() < 2 {
        return Ok(());
    }
    for (index, stop) in stops.iter().enumerate() {
        let phase = match index {
            0 => "s",
            _ if index + 1 == stops.len() => "f",
            _ => "t",
        };
        put(json!({
            "ph": phase, "bp": "e", "cat": "flow", "id": id, "name": name,
            "pid": 1, "tid": track(&stop.what), "ts": micros(stop.at),
        }))?;
    }
    Ok(())
}

fn named(tid: usize, name: &str) -> Value {
    json!({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actor::{Actor, SmmuAgent};

    /// What Perfetto asks of the format: each arrow holds on to something that is drawn, and goes forwards in time.
    #[test]
    fn arrows_begin_and_end_at_something() {
        let queue = Actor::Smmu(0, SmmuAgent::Command);
        let engine = Actor::Engine(0, 0);
        let event = |at, who, what| Event { who, at, what };
        let command = |opcode: u8| What::Command { opcode, words: [opcode.into(), 0] };
        let line = Timeline {
            events: vec![
                event(20, Actor::Cpu(1), What::Store { at: 0x4000_0000, old: 0x4800_0f43, new: 0 }),
                event(30, engine, What::Beat { at: 0x4800_0000, len: 64, write: true }),
                event(40, queue, command(0x12)),
                event(50, queue, command(0x46)),
                event(60, Actor::Cpu(1), What::Interrupt { intid: 33 }),
            ],
            ..Timeline::default()
        };
        let mut text = Vec::new();
        write(&line, &mut text).unwrap();
        let trace: Value = serde_json::from_slice(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let of = |phase: &str| events.iter().filter(|event| event["ph"] == phase).collect::<Vec<_>>();
        assert_eq!((of("s").len(), of("t").len(), of("f").len()), (2, 1, 2));
        for arrow in of("s").into_iter().chain(of("t")).chain(of("f")) {
            let holds = |slice: &&Value| slice["tid"] == arrow["tid"] && slice["ts"] == arrow["ts"];
            assert!(of("X").iter().any(holds), "{arrow}");
            let last = of("f").into_iter().find(|end| end["id"] == arrow["id"]).unwrap();
            assert!(arrow["ts"].as_f64() <= last["ts"].as_f64());
        }
        let tracks: Vec<_> = of("M").iter().filter_map(|event| event["args"]["name"].as_str()).collect();
        assert_eq!(tracks, ["smmulab", "command queue", "DMA", "interrupts", "tables"]);
        assert_eq!(of("X").iter().filter(|event| event["name"] == "INTID 33").count(), 1);
    }
}
