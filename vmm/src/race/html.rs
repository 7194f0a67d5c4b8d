//! A failing schedule as a page of its own, with its timeline drawn: nothing in it comes from elsewhere.

use std::fmt::Write;

use super::record::Record;
use super::report::time;
use super::timeline::{Span, Timeline};
use crate::actor::Actor;

/// Width of the drawing, in its own units, and of the names at its left.
const WIDTH: f64 = 1200.0;
const NAMES: f64 = 130.0;
const ROW: f64 = 34.0;
/// What is narrower is drawn together with its neighbours.
const NARROW: f64 = 0.6;

/// The page.
pub fn page(record: &Record, line: &Timeline) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>\n\
         body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222 }}\n\
         h1 {{ font-size: 1.4em }} .failed {{ color: #b00020; font-weight: 600 }} li {{ margin: .4em 0 }}\n\
         svg {{ width: 100%; height: auto; border: 1px solid #ddd }}\n\
         code {{ background: #f0f0f0; padding: .1em .3em }}\n\
         </style></head><body>\n<h1>{title}</h1>\n<p class=\"failed\">Failed: {failure}</p>\n\
         <p>{} after the beginning, {} instructions.</p>\n",
        time(record.verdict.ns),
        record.verdict.instructions,
        title = escape(&record.scenario.about),
        failure = escape(record.failed()),
    );
    if let Some(failure) = record.verdict.failure.as_ref().filter(|failure| !failure.detail.is_empty()) {
        let _ = writeln!(out, "<pre>{}</pre>", escape(&failure.detail));
    }
    match record.story.is_empty() {
        true => out.push_str("<p>It fails in the default order: nobody has to be slower than usual.</p>\n"),
        false => {
            out.push_str("<ol>\n");
            record.story.iter().for_each(|hold| {
                let _ = writeln!(out, "<li>{}</li>", escape(hold));
            });
            out.push_str("</ol>\n");
        }
    }
    out.push_str(&drawing(record, line));
    let _ = write!(
        out,
        "<p>Bars are functions of a vCPU, strokes are steps of an agent, red is standing still; the pointer names them.</p>\n\
         <p>State at the end: <code>{}</code></p>\n</body></html>\n",
        record.end
    );
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The part of virtual time that is drawn: from a little before the first hold to the end.
fn window(line: &Timeline) -> (u64, u64) {
    let spans = || line.tracks.values().flatten();
    let end = spans().map(|span| span.from + span.ns).max().unwrap_or(0);
    let begin = spans().map(|span| span.from).min().unwrap_or(0);
    let first = line.holds.iter().map(|begun| begun.time).min().unwrap_or(begin);
    let before = (end.saturating_sub(first) / 8).max(200);
    (first.saturating_sub(before).max(begin), end.max(begin + 1))
}

/// The timeline as an SVG picture, with nothing from elsewhere in it.
pub fn drawing(record: &Record, line: &Timeline) -> String {
    let mut out = String::new();
    let (from, to) = window(line);
    let scale = (WIDTH - NAMES) / (to - from).max(1) as f64;
    let x = |t: u64| NAMES + t.saturating_sub(from).min(to - from) as f64 * scale;
    // An actor that does nothing in the window needs no row.
    let seen = |track: &Vec<Span>| track.iter().any(|span| span.from + span.ns >= from && span.from <= to);
    let rows: Vec<_> = line.tracks.iter().filter(|(_, track)| seen(track)).collect();
    let height = ROW * rows.len() as f64 + 40.0;
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n\
         <title>Timeline</title>\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fafafa\"/>"
    );
    for (row, (who, track)) in rows.iter().enumerate() {
        let y = row as f64 * ROW + 6.0;
        let _ = writeln!(out, "<text x=\"6\" y=\"{:.0}\">{who}</text>", y + 17.0);
        for (start, end, name) in merged(track, from, to, scale) {
            let color = if matches!(who, Actor::Cpu(_)) { color(&name) } else { "#1a5fb4".into() };
            let width = ((end - start) as f64 * scale).max(1.2);
            let _ = writeln!(
                out,
                "<rect x=\"{:.2}\" y=\"{y:.0}\" width=\"{width:.2}\" height=\"24\" fill=\"{color}\"><title>{} at {}</title></rect>",
                x(start),
                escape(&name),
                time(start.saturating_sub(from)),
            );
            label(&mut out, x(start), y + 16.0, width, &name);
        }
        for begun in record.begun.iter().filter(|begun| begun.hold.who == **who) {
            let (start, end) = (x(begun.time), x(begun.time + begun.hold.ns));
            let _ = writeln!(
                out,
                "<rect x=\"{start:.2}\" y=\"{:.0}\" width=\"{:.2}\" height=\"30\" fill=\"#e01b24\" fill-opacity=\".25\" stroke=\"#e01b24\"><title>stands still for {}</title></rect>",
                y - 3.0,
                (end - start).max(2.0),
                time(begun.hold.ns)
            );
            label(
                &mut out,
                start,
                y + 16.0,
                end - start,
                &format!("stands still for {}", time(begun.hold.ns)),
            );
        }
    }
    let y = height - 12.0;
    for tick in 0..=6 {
        let t = from + (to - from) * tick / 6;
        let anchor = if tick == 6 { "end" } else { "middle" };
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\" fill=\"#666\">{}</text>",
            x(t),
            time(t - from)
        );
    }
    out.push_str("</svg>\n");
    out
}

/// A name within a bar, where there is room for it.
fn label(out: &mut String, x: f64, y: f64, width: f64, name: &str) {
    if width > 7.0 * name.chars().count() as f64 + 8.0 {
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{y:.0}\">{}</text>", x + 4.0, escape(name));
    }
}

/// What of a track lies in the window, narrow neighbours together.
fn merged(track: &[Span], from: u64, to: u64, scale: f64) -> Vec<(u64, u64, String)> {
    let mut all: Vec<(u64, u64, String)> = Vec::new();
    for span in track.iter().filter(|span| span.from + span.ns >= from && span.from <= to) {
        let (start, end) = (span.from.max(from), (span.from + span.ns).min(to));
        let narrow = |a: u64, b: u64| (b - a) as f64 * scale < NARROW;
        match all.last_mut() {
            Some(last) if narrow(start, end) && narrow(last.1, start) && narrow(last.0, end) => {
                last.1 = end;
                if !last.2.ends_with('…') {
                    last.2.push_str(", …");
                }
            }
            _ => all.push((start, end, span.what.clone())),
        }
    }
    all
}

/// A quiet colour of its own for each name.
fn color(name: &str) -> String {
    let hash = name.bytes().fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    format!("hsl({}, 45%, 68%)", hash % 360)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_neighbours_are_drawn_together_and_nothing_lies_outside() {
        let spans: Vec<Span> = (0..10_000).map(|i| Span { from: i, ns: 1, what: format!("f{i}") }).collect();
        let all = merged(&spans, 100, 9000, 0.01);
        assert!(all.len() < 400, "{}", all.len());
        assert!(all.iter().all(|(a, b, _)| *a >= 100 && *b <= 9000 && a <= b));
    }
}
