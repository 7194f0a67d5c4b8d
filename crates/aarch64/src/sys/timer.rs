//! The generic timer (DDI 0487 D12): the counters, the EL1 physical and virtual timers, and the event stream.
//!
//! The counter runs at 62.5 MHz, one tick every 16 ns of virtual time; CNTVOFF is 0, so that both counters agree.

use serde::{Deserialize, Serialize};

use crate::core::{Core, Ctx};

/// CNTFRQ_EL0 after reset, in Hz.
pub const FREQUENCY: u64 = 62_500_000;
/// Nanoseconds a tick.
pub const TICK: u64 = 16;
/// INTID of the virtual timer's interrupt.
pub const VIRTUAL_INTID: u32 = 27;
/// INTID of the EL1 physical timer's interrupt.
pub const PHYSICAL_INTID: u32 = 30;

const ENABLE: u64 = 1;
const IMASK: u64 = 2;
const ISTATUS: u64 = 4;

/// One comparator: CNTP_* or CNTV_*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparator {
    /// CTL.ENABLE and CTL.IMASK.
    ctl: u64,
    /// CVAL.
    pub cval: u64,
    /// The interrupt output as the platform knows it; nothing is known after reset.
    output: Option<bool>,
}

impl Comparator {
    fn condition(&self, count: u64) -> bool {
        count >= self.cval
    }

    /// CTL, whose ISTATUS is UNKNOWN (here 0) while the timer is disabled.
    pub fn ctl(&self, count: u64) -> u64 {
        let met = self.ctl & ENABLE != 0 && self.condition(count);
        self.ctl | if met { ISTATUS } else { 0 }
    }

    /// Writes CTL.
    pub fn set_ctl(&mut self, value: u64) {
        self.ctl = value & (ENABLE | IMASK);
    }

    /// TVAL: how far off the condition is.
    pub fn tval(&self, count: u64) -> u64 {
        self.cval.wrapping_sub(count) & 0xffff_ffff
    }

    /// Writes TVAL, a signed 32-bit distance from now.
    pub fn set_tval(&mut self, count: u64, value: u64) {
        self.cval = count.wrapping_add(value as u32 as i32 as u64);
    }

    fn level(&self, count: u64) -> bool {
        self.ctl & (ENABLE | IMASK) == ENABLE && self.condition(count)
    }

    /// Nanoseconds at which the output goes high by itself.
    fn deadline(&self, count: u64) -> Option<u64> {
        if self.ctl & (ENABLE | IMASK) != ENABLE || self.condition(count) {
            return None;
        }
        self.cval.checked_mul(TICK)
    }
}

/// The timer registers of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// CNTFRQ_EL0. It has no effect on the counter.
    pub frequency: u64,
    /// CNTKCTL_EL1.
    pub cntkctl: u64,
    /// CNTP_*.
    pub physical: Comparator,
    /// CNTV_*.
    pub virtual_: Comparator,
    /// Count up to which the event stream has been looked at.
    events_seen: u64,
}

impl Default for Timer {
    fn default() -> Self {
        Self {
            frequency: FREQUENCY,
            cntkctl: 0,
            physical: Comparator::default(),
            virtual_: Comparator::default(),
            events_seen: 0,
        }
    }
}

impl Timer {
    /// The first count after `from` at which the event stream makes an event. `None` while it is off.
    fn next_event(&self, from: u64) -> Option<u64> {
        if self.cntkctl >> 2 & 1 == 0 {
            return None;
        }
        let (bit, falling) = (self.cntkctl >> 4 & 15, self.cntkctl >> 3 & 1 != 0);
        // The trigger bit rises half a period after a multiple of the period, and falls at each multiple.
        let (half, period) = (1u64 << bit, 2u64 << bit);
        let phase = if falling { 0 } else { half };
        match from.checked_sub(phase) {
            Some(since) => (since / period + 1).checked_mul(period)?.checked_add(phase),
            None => Some(phase),
        }
    }
}

/// CNTPCT_EL0, and CNTVCT_EL0, at `now` nanoseconds.
pub fn count(now: u64) -> u64 {
    now / TICK
}

/// Makes the event register hold the events that the event stream made up to now. To be called before the event
/// register is looked at.
pub fn sync_events(core: &mut Core) {
    let count = count(core.now());
    let seen = core.sys.timer.events_seen.min(count);
    if core.sys.timer.next_event(seen).is_some_and(|at| at <= count) {
        core.event = true;
    }
    core.sys.timer.events_seen = count;
}

/// Writes CNTKCTL_EL1.
pub(super) fn set_cntkctl(core: &mut Core, value: u64) {
    sync_events(core);
    core.sys.timer.cntkctl = value & 0x3ff;
}

/// Earliest virtual time in nanoseconds, later than now, at which an interrupt output changes by itself or, when
/// `waiting` for an event, the event stream makes one. A run must not go past it without [`update_timers`].
pub fn timer_deadline(core: &Core, waiting: bool) -> Option<u64> {
    let timer = &core.sys.timer;
    let count = count(core.now());
    let event = if waiting { timer.next_event(count).and_then(|at| at.checked_mul(TICK)) } else { None };
    [timer.physical.deadline(count), timer.virtual_.deadline(count), event].into_iter().flatten().min()
}

/// Gives the platform the present level of both interrupt outputs, where it changed, and collects events.
pub fn update_timers(core: &mut Core, ctx: &mut Ctx<'_>) {
    sync_events(core);
    let at = core.at();
    let count = count(at.now);
    let timer = &mut core.sys.timer;
    let mut changed = false;
    for (comparator, intid) in [(&mut timer.physical, PHYSICAL_INTID), (&mut timer.virtual_, VIRTUAL_INTID)] {
        let level = comparator.level(count);
        if Some(level) != comparator.output {
            comparator.output = Some(level);
            ctx.platform.set_ppi(at, intid, level);
            changed = true;
        }
    }
    if changed {
        ctx.after_platform();
    }
}
