//! What waits for an answer of the guest: stalls, page requests, overflows.

use std::collections::BTreeMap;

use super::State;
use super::report::{Kind, Report};
use crate::pri::PageRequest;
use crate::spec::event::Event;
use crate::spec::registers::OVERFLOW;

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
    /// Page request groups by StreamID and PRGIndex.
    pages: BTreeMap<(u32, u16), Waiting>,
    /// OVFLG and OVACKFLG of the event queue and of the PRI queue.
    flags: [[u32; 2]; 2],
    overflow: [Option<Waiting>; 2],
}

impl Answers {
    /// CMD_RESUME, or CMD_STALL_TERM without a tag.
    pub(super) fn resumed(&mut self, sid: u32, tag: Option<u16>) {
        self.stalls.retain(|&(s, t), _| s != sid || tag.is_some_and(|tag| tag != t));
    }

    /// CMD_PRI_RESP.
    pub(super) fn responded(&mut self, sid: u32, prg_index: u16) {
        self.pages.remove(&(sid, prg_index));
    }

    /// SMMUEN went to 0: nothing stalls any more.
    pub(super) fn disabled(&mut self) {
        self.stalls.clear();
        self.pages.clear();
    }
}

impl State {
    /// An event record was written.
    pub(super) fn recorded(&mut self, event: &Event) {
        if let Some(tag) = event.stall {
            self.answers.stalls.insert((event.sid, tag), Waiting { since: self.now, said: false });
        }
    }

    /// A page request was written.
    pub(super) fn page_requested(&mut self, request: &PageRequest) {
        let waiting = Waiting { since: self.now, said: false };
        self.answers.pages.insert((request.sid, request.prg_index), waiting);
    }

    /// PROD (0) or CONS (1) of the event queue (0) or the PRI queue (1).
    pub(super) fn output_queue(&mut self, queue: usize, index: usize, value: u32) {
        self.answers.flags[queue][index] = value & OVERFLOW;
        let [prod, cons] = self.answers.flags[queue];
        let overflow = &mut self.answers.overflow[queue];
        match (prod == cons, &overflow) {
            (true, _) => *overflow = None,
            (false, None) => *overflow = Some(Waiting { since: self.now, said: false }),
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
        for (&(sid, prg), w) in self.answers.pages.iter_mut().filter(|(_, w)| late(w)) {
            w.said = true;
            let what = format!(
                "page request group {prg} of StreamID {sid:#x} has waited since {}, and nobody responds",
                Time(w.since)
            );
            let mut report = Report::new(Kind::PageRequestUnanswered, now, what).stream(sid, None);
            report.missing = Some(format!("CMD_PRI_RESP(StreamID={sid:#x}, PRGIndex={prg})"));
            found.push(((u64::from(sid) << 16 | u64::from(prg), w.since), report));
        }
        for (n, (name, queue)) in [("event", "EVENTQ"), ("PRI", "PRIQ")].into_iter().enumerate() {
            let Some(w) = self.answers.overflow[n].as_mut().filter(|w| late(w)) else { continue };
            w.said = true;
            let what = format!("the {name} queue overflowed at {}, which nobody acknowledges", Time(w.since));
            let mut report = Report::new(Kind::OverflowUnacknowledged, now, what);
            report.missing = Some(format!("{queue}_CONS.OVACKFLG = {queue}_PROD.OVFLG"));
            found.push(((n as u64, w.since), report));
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
