//! What waits for an answer of the guest: stalls, page requests, overflows.

use std::collections::BTreeMap;

use super::State;
use super::report::{Kind, Report};
use crate::spec::event::Event;
use crate::spec::registers::{self as r, OVERFLOW};

/// Since when something waits, and whether that was said.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: u64,
    said: bool,
}

/// Everything that waits.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// By StreamID and tag.
    stalls: BTreeMap<(u32, u16), Waiting>,
    /// OVFLG and OVACKFLG of the event queue.
    eventq: [u32; 2],
    overflow: Option<Waiting>,
}

impl Answers {
    /// CMD_RESUME, or CMD_STALL_TERM without a tag.
    pub(super) fn resumed(&mut self, sid: u32, tag: Option<u16>) {
        self.stalls.retain(|&(s, t), _| s != sid || tag.is_some_and(|tag| tag != t));
    }

    /// SMMUEN went to 0: nothing stalls any more.
    pub(super) fn disabled(&mut self) {
        self.stalls.clear();
    }
}

impl State {
    /// An event record was written.
    pub(super) fn recorded(&mut self, event: &Event) {
        if let Some(tag) = event.stall {
            self.answers.stalls.insert((event.sid, tag), Waiting { since: self.now, said: false });
        }
    }

    /// The indices of the event queue.
    pub(super) fn output_queue(&mut self, offset: u64, value: u32) {
        let n = usize::from(offset == r::EVENTQ_CONS);
        self.answers.eventq[n] = value & OVERFLOW;
        let [prod, cons] = self.answers.eventq;
        match (prod == cons, self.answers.overflow) {
            (true, _) => self.answers.overflow = None,
            (false, None) => self.answers.overflow = Some(Waiting { since: self.now, said: false }),
            (false, Some(_)) => {}
        }
    }

    /// Reports what has waited for longer than `patience`.
    pub(super) fn look_for_answers(&mut self, patience: u64) {
        let now = self.now;
        let late = |w: &Waiting| !w.said && now.saturating_sub(w.since) >= patience;
        let mut found = Vec::new();
        for (&(sid, tag), w) in self.answers.stalls.iter_mut().filter(|(_, w)| late(w)) {
            w.said = true;
            let what = format!(
                "a transaction of StreamID {sid:#x} has stalled with tag {tag} since {}, and nobody answers",
                Time(w.since)
            );
            let mut report = Report::new(Kind::StallUnanswered, now, what).stream(sid, None);
            report.missing = Some(format!("CMD_RESUME(StreamID={sid:#x}, STAG={tag})"));
            found.push(((u64::from(sid) << 16 | u64::from(tag), w.since), report));
        }
        if let Some(w) = self.answers.overflow.as_mut().filter(|w| late(w)) {
            w.said = true;
            let what = format!("the event queue overflowed at {}, which nobody acknowledges", Time(w.since));
            let mut report = Report::new(Kind::OverflowUnacknowledged, now, what);
            report.missing = Some("EVENTQ_CONS.OVACKFLG = EVENTQ_PROD.OVFLG".into());
            found.push(((0, w.since), report));
        }
        for (key, report) in found {
            self.report(key, report);
        }
    }
}

/// Nanoseconds, as people read them.
pub(super) struct Time(pub(super) u64);

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:09} s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}
