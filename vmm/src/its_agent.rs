//! The ITS on the machine's clock: each command and each MSI takes time.

use devices::Time;
use devices::gic::Gic;
use serde::{Deserialize, Serialize};

/// From a command's or an MSI's arrival, or the one before it, to its effect, in ns.
const STEP_NS: Time = 100;

/// When the ITS steps next.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ItsAgent {
    due: Option<Time>,
}

impl ItsAgent {
    /// The next step, given that what became pending did so at `now`.
    pub fn next_step(&mut self, gic: &Gic, now: Time) -> Option<Time> {
        let pending = gic.command_pending() || gic.msi_pending();
        self.due = pending.then(|| self.due.unwrap_or(now + STEP_NS));
        self.due
    }

    /// Does the step that is due: commands before MSIs.
    pub fn step(&mut self, gic: &mut Gic) {
        self.due = None;
        if gic.command_pending() {
            gic.step_command();
        } else {
            gic.step_msi();
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::dma::{ItsInbox, Message};
    use devices::gic::Config;
    use guest_ram::GuestRam;

    use super::*;

    #[test]
    fn each_message_takes_its_time() {
        let inbox = ItsInbox::default();
        let ram = GuestRam::new(0x4000_0000, 0x10000).unwrap();
        let mut gic = Gic::new(Config { cpus: 1, spis: 32, its: true }, ram, inbox.clone());
        let mut its = ItsAgent::default();
        assert_eq!(its.next_step(&gic, 5), None);
        for event_id in 0..2 {
            inbox.post(Message { device_id: 8, event_id });
        }
        assert_eq!(its.next_step(&gic, 10), Some(10 + STEP_NS));
        assert_eq!(its.next_step(&gic, 50), Some(10 + STEP_NS), "it became pending before");
        its.step(&mut gic);
        assert_eq!(its.next_step(&gic, 10 + STEP_NS), Some(10 + 2 * STEP_NS));
        its.step(&mut gic);
        assert_eq!(its.next_step(&gic, 500), None);
    }
}
