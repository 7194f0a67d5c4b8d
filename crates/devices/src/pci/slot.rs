//! A hot-plug slot at the end of a link (PCI Express 4.0 §6.7): who is in it, whether it has power and the link is up,
//! and what happened since software last looked.

use serde::{Deserialize, Serialize};

use crate::agent::Time;

/// From power to an active link, in ns.
const TRAINING_NS: Time = 1_000_000;

/// Bits of Slot Status that stay until software clears them; others (power fault, latch, command completed) never come. Slot Control has the enables of their interrupts at the same
/// bits, but for LINK's.
pub(super) mod event {
    /// The attention button was pressed.
    pub(in super::super) const BUTTON: u16 = 1 << 0;
    /// Presence changed.
    pub(in super::super) const PRESENCE: u16 = 1 << 3;
    /// The data link layer's state changed.
    pub(in super::super) const LINK: u16 = 1 << 8;
}

/// Slot Control: interrupt enable of [`event::LINK`].
const LINK_ENABLE: u16 = 1 << 12;
/// Slot Control: hot-plug interrupt enable.
const INTERRUPT_ENABLE: u16 = 1 << 5;
/// Slot Control: the power controller is off.
pub(super) const POWER_OFF: u16 = 1 << 10;
/// Slot Control: what software can change. Commands are carried out at once and do not report completion.
pub(super) const CONTROL_WRITABLE: u16 =
    event::BUTTON | 1 << 1 | event::PRESENCE | INTERRUPT_ENABLE | 0x3c0 | POWER_OFF | LINK_ENABLE;
/// Slot Capabilities: attention button, power controller, both indicators, surprise removal, hot-plug, no command completed.
pub(super) const CAPABILITIES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 18;
/// Slot Status: somebody is in the slot.
const PRESENT: u16 = 1 << 6;

/// What software has set that the slot depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Slot Control.
    pub(super) control: u16,
    /// The link is held down: secondary bus reset, or link disable.
    pub(super) held: bool,
}

/// A slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HotPlugSlot {
    present: bool,
    link: bool,
    /// When training is done.
    trained: Option<Time>,
    /// Events that software has not cleared.
    events: u16,
    /// Whether the interrupt condition held.
    interrupt: bool,
    /// Who is in the slot may be taken out once it has no power.
    leaving: bool,
    /// Who was in the slot is out: the host bridge has to take note.
    gone: bool,
    /// The link went down: what was behind it has lost its state.
    reset: bool,
}

impl HotPlugSlot {
    /// Somebody is in the slot at power-on.
    pub(super) fn occupied() -> Self {
        Self { present: true, link: true, ..Self::default() }
    }

    /// Whether somebody is in the slot.
    pub(super) fn present(&self) -> bool {
        self.present
    }

    /// Whether requests get through, either way.
    pub(super) fn link(&self) -> bool {
        self.link
    }

    /// Slot Status.
    pub(super) fn status(&self) -> u16 {
        self.events | if self.present { PRESENT } else { 0 }
    }

    /// Somebody comes into the slot, and whoever brought it presses the button: where there is one, Linux waits for it.
    pub(super) fn plug(&mut self) {
        self.present = true;
        self.leaving = false;
        self.events |= event::PRESENCE | event::BUTTON;
    }

    /// Who is in the slot is taken out at once.
    pub(super) fn tear_out(&mut self) {
        if self.present {
            (self.present, self.leaving, self.gone) = (false, false, true);
            self.events |= event::PRESENCE;
        }
    }

    /// The attention button is pressed: who is in the slot leaves when software has taken its power.
    pub(super) fn press_button(&mut self) {
        if self.present {
            self.leaving = true;
            self.events |= event::BUTTON;
        }
    }

    /// Software clears events.
    pub(super) fn clear(&mut self, events: u16) {
        self.events &= !events;
    }

    /// Brings all up to date with `settings`. Answers whether the interrupt condition arose.
    pub(super) fn settle(&mut self, settings: Settings, now: Time) -> bool {
        let powered = settings.control & POWER_OFF == 0;
        if !powered && self.leaving {
            self.tear_out();
        }
        let up = self.present && powered && !settings.held;
        match (up, self.link) {
            (true, false) => self.trained = Some(self.trained.unwrap_or(now + TRAINING_NS)),
            (false, true) => {
                (self.link, self.reset) = (false, true);
                self.events |= event::LINK;
            }
            _ => {}
        }
        if !up {
            self.trained = None;
        }
        let Settings { control, .. } = settings;
        let link = if control & LINK_ENABLE != 0 { event::LINK } else { 0 };
        let enabled = control & (event::BUTTON | event::PRESENCE) | link;
        let wanted = self.events & enabled != 0 && control & INTERRUPT_ENABLE != 0;
        let arose = wanted && !self.interrupt;
        self.interrupt = wanted;
        arose
    }

    /// When training is done.
    pub(super) fn next_step(&self) -> Option<Time> {
        self.trained
    }

    /// The link is up.
    pub(super) fn step(&mut self) {
        if self.trained.take().is_some() {
            self.link = true;
            self.events |= event::LINK;
        }
    }

    /// Whether the link went down since the last call.
    pub(super) fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.reset)
    }

    /// Whether who was in the slot was taken out since the last call.
    pub(super) fn take_gone(&mut self) -> bool {
        std::mem::take(&mut self.gone)
    }

    /// The root port is reset: who is in the slot stays there.
    pub(super) fn reset(&mut self) {
        let Self { present, gone, reset, .. } = *self;
        *self = Self { present, link: present, gone, reset, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Settings =
        Settings { control: event::BUTTON | event::PRESENCE | LINK_ENABLE | INTERRUPT_ENABLE, held: false };
    const OFF: Settings = Settings { control: ON.control | POWER_OFF, held: false };

    fn train(slot: &mut HotPlugSlot) {
        let at = slot.next_step().unwrap();
        slot.step();
        slot.settle(ON, at);
    }

    #[test]
    fn a_device_that_comes_is_seen_and_gets_a_link_when_it_gets_power() {
        let mut slot = HotPlugSlot::default();
        assert!(!slot.settle(OFF, 0));
        slot.plug();
        assert!(slot.settle(OFF, 5), "presence interrupts");
        assert_eq!((slot.status(), slot.link()), (event::PRESENCE | event::BUTTON | PRESENT, false));
        slot.clear(event::PRESENCE | event::BUTTON);
        assert!(!slot.settle(OFF, 5));
        assert_eq!(slot.next_step(), None, "no power");
        slot.settle(ON, 10);
        assert_eq!(slot.next_step(), Some(10 + TRAINING_NS));
        slot.step();
        assert!(slot.settle(ON, 10 + TRAINING_NS));
        assert_eq!((slot.status(), slot.link()), (event::LINK | PRESENT, true));
        assert!(!slot.settle(ON, 0), "once");
    }

    #[test]
    fn an_orderly_removal_waits_for_software() {
        let mut slot = HotPlugSlot::occupied();
        slot.press_button();
        assert!(slot.settle(ON, 0));
        assert_eq!((slot.status(), slot.take_gone()), (event::BUTTON | PRESENT, false));
        slot.clear(event::BUTTON);
        assert!(!slot.settle(ON, 0));
        slot.settle(OFF, 0);
        assert_eq!((slot.status(), slot.link()), (event::PRESENCE | event::LINK, false));
        assert!(slot.take_gone() && slot.take_reset() && !slot.take_gone());
        // Power alone takes nobody out.
        let mut slot = HotPlugSlot::occupied();
        slot.settle(OFF, 0);
        assert!(slot.present() && slot.take_reset() && !slot.take_gone());
        slot.settle(ON, 0);
        train(&mut slot);
        assert!(slot.link());
    }

    #[test]
    fn a_surprise_takes_the_link_at_once() {
        let mut slot = HotPlugSlot::occupied();
        slot.tear_out();
        assert!(slot.settle(ON, 0));
        assert_eq!((slot.status(), slot.link()), (event::PRESENCE | event::LINK, false));
        assert!(slot.take_gone() && slot.take_reset());
        slot.tear_out();
        slot.press_button();
        assert!(!slot.take_gone(), "nobody is there");
    }

    #[test]
    fn a_bus_reset_brings_the_link_down_and_up() {
        let mut slot = HotPlugSlot::occupied();
        slot.settle(Settings { held: true, ..ON }, 0);
        assert!(!slot.link() && slot.take_reset());
        slot.settle(ON, 100);
        // Held again before training is done: it begins anew.
        slot.settle(Settings { held: true, ..ON }, 200);
        assert_eq!(slot.next_step(), None);
        slot.settle(ON, 300);
        assert_eq!(slot.next_step(), Some(300 + TRAINING_NS));
    }

    #[test]
    fn all_causes_must_be_cleared_before_another_interrupt() {
        let mut slot = HotPlugSlot::occupied();
        slot.tear_out();
        assert!(slot.settle(ON, 0));
        slot.clear(event::PRESENCE);
        slot.plug();
        assert!(!slot.settle(OFF, 0), "the link event is still there");
        slot.clear(u16::MAX);
        assert!(!slot.settle(OFF, 0));
        slot.tear_out();
        assert!(slot.settle(OFF, 0));
    }
}
