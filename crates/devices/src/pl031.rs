//! The PL031 real-time clock (Arm DDI 0224): a counter of seconds, with a match interrupt.
//!
//! It counts virtual seconds from a base that is an option, so that a run is repeatable.

use serde::{Deserialize, Serialize};

use crate::agent::{Agent, Time};
use crate::bus::MmioDevice;

const DR: u64 = 0x00;
const MR: u64 = 0x04;
const LR: u64 = 0x08;
const CR: u64 = 0x0c;
const IMSC: u64 = 0x10;
const RIS: u64 = 0x14;
const MIS: u64 = 0x18;
const ICR: u64 = 0x1c;
/// RTCPeriphID0-3 and RTCPCellID0-3, from 0xfe0.
const ID: [u8; 8] = [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const SECOND: Time = 1_000_000_000;

/// State of a PL031.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pl031 {
    /// Counter value at power-on, modulo 2^32.
    base: u32,
    load: u32,
    match_value: u32,
    /// RTCIMSC bit 0.
    enabled: bool,
    /// RTCRIS bit 0.
    raised: bool,
    /// When the counter next equals the match register.
    due: Option<Time>,
}

impl Pl031 {
    /// A clock that shows `epoch` seconds (since 1970) at power-on.
    pub fn new(epoch: u32) -> Self {
        let mut clock =
            Self { base: epoch, load: 0, match_value: 0, enabled: false, raised: false, due: None };
        clock.schedule(0);
        clock
    }

    /// Level of the interrupt output.
    pub fn irq(&self) -> bool {
        self.raised && self.enabled
    }

    fn seconds(&self, at: Time) -> u32 {
        self.base.wrapping_add((at / SECOND) as u32)
    }

    /// Finds the next tick at which the counter becomes equal to the match register.
    fn schedule(&mut self, now: Time) {
        let left = match self.match_value.wrapping_sub(self.seconds(now)) {
            0 => 1 << 32,
            left => u64::from(left),
        };
        self.due = (now / SECOND).checked_add(left).and_then(|second| second.checked_mul(SECOND));
    }

    /// Raises the interrupt for a match that has passed. Masked matches are found out here, when somebody looks: they
    /// need no step.
    fn catch_up(&mut self, now: Time) {
        if self.due.is_some_and(|due| due <= now) {
            self.raised = true;
            self.schedule(now);
        }
    }

    /// The counter was set or the match register written: they may be equal now.
    fn compare(&mut self, now: Time) {
        self.raised |= self.seconds(now) == self.match_value;
        self.schedule(now);
    }
}

impl MmioDevice for Pl031 {
    fn read(&mut self, at: Time, offset: u64, size: u8) -> u64 {
        self.catch_up(at);
        let value = match offset & !3 {
            DR => self.seconds(at),
            MR => self.match_value,
            LR => self.load,
            CR => 1,
            IMSC => self.enabled.into(),
            RIS => self.raised.into(),
            MIS => self.irq().into(),
            id @ 0xfe0..0x1000 => ID.get((id - 0xfe0) as usize / 4).copied().unwrap_or(0).into(),
            _ => 0,
        };
        u64::from(value) >> (8 * (offset & 3)) & crate::bus::size_mask(size.min(4))
    }

    fn write(&mut self, at: Time, offset: u64, _size: u8, value: u64) {
        self.catch_up(at);
        match offset {
            MR => {
                self.match_value = value as u32;
                self.compare(at);
            }
            LR => {
                self.load = value as u32;
                self.base = self.load.wrapping_sub((at / SECOND) as u32);
                self.compare(at);
            }
            IMSC => self.enabled = value & 1 != 0,
            ICR if value & 1 != 0 => self.raised = false,
            // RTCCR: the counter cannot be stopped once started, and it is started at reset.
            _ => {}
        }
    }
}

/// The match.
impl Agent for Pl031 {
    fn next_step(&self) -> Option<Time> {
        self.due.filter(|_| self.enabled && !self.raised)
    }

    fn step(&mut self, now: Time) {
        self.catch_up(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_its_base_and_from_what_is_loaded() {
        let mut clock = Pl031::new(1_700_000_000);
        assert_eq!(clock.read(5 * SECOND + 3, DR, 4), 1_700_000_005);
        clock.write(5 * SECOND, LR, 4, 100);
        assert_eq!((clock.read(5 * SECOND, DR, 4), clock.read(9 * SECOND, DR, 4)), (100, 104));
        assert_eq!(clock.read(0, LR, 4), 100);
    }

    #[test]
    fn matches_exactly_on_the_second() {
        let mut clock = Pl031::new(1000);
        clock.write(SECOND / 2, MR, 4, 1003);
        clock.write(0, IMSC, 4, 1);
        assert_eq!(clock.next_step(), Some(3 * SECOND));
        clock.step(3 * SECOND - 1);
        assert!(!clock.irq());
        clock.step(3 * SECOND);
        assert!(clock.irq());
        assert_eq!((clock.read(0, RIS, 4), clock.read(0, MIS, 4)), (1, 1));
        clock.write(0, IMSC, 4, 0);
        assert!(!clock.irq());
        clock.write(4 * SECOND, ICR, 4, 1);
        assert_eq!(clock.read(0, RIS, 4), 0);
    }

    #[test]
    fn a_match_in_the_past_waits_for_the_counter_to_wrap() {
        let mut clock = Pl031::new(10);
        clock.write(0, MR, 4, 9);
        assert_eq!(clock.next_step(), None, "masked");
        clock.write(0, IMSC, 4, 1);
        assert_eq!(clock.next_step(), Some(((1 << 32) - 1) * SECOND));
        clock.write(u64::MAX, MR, 4, 9);
        assert_eq!(clock.due, None, "beyond the end of time");
    }

    #[test]
    fn says_what_it_is() {
        let mut clock = Pl031::new(0);
        let id: Vec<u64> = (0..8).map(|n| clock.read(0, 0xfe0 + 4 * n, 4)).collect();
        assert_eq!(id, [0x31, 0x10, 0x14, 0, 0xd, 0xf0, 5, 0xb1]);
    }
}
