//! The CPU interface: the ICC_* system registers of one PE (IHI 0069 12.2), one security state, no EL3.

use serde::{Deserialize, Serialize};

use super::bank::PRIORITY_MASK;

/// Least binary point of Group 0 with five priority bits; Group 1 has one more (4.8.4).
const MIN_BPR0: u8 = 2;
/// Priority when nothing is active.
const IDLE: u8 = 0xff;
/// INTID that says "no interrupt".
pub(crate) const SPURIOUS: u32 = 1023;

/// An interrupt that a PE could take: the highest-priority pending one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    /// INTID.
    pub(crate) intid: u32,
    /// Priority; lower is more urgent.
    pub(crate) priority: u8,
    /// 0 or 1.
    pub(crate) group: usize,
}

/// State of one PE's CPU interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CpuInterface {
    /// ICC_PMR_EL1.
    pub(crate) pmr: u8,
    /// ICC_BPR0_EL1, ICC_BPR1_EL1.
    pub(crate) bpr: [u8; 2],
    /// ICC_AP0R0_EL1, ICC_AP1R0_EL1: bit n is preemption level n.
    pub(crate) ap: [u32; 2],
    /// ICC_IGRPEN0_EL1, ICC_IGRPEN1_EL1.
    pub(crate) enable: [bool; 2],
    /// ICC_CTLR_EL1.EOImode: EOIR only drops the priority, DIR deactivates.
    pub(crate) eoi_mode: bool,
    /// ICC_CTLR_EL1.CBPR: BPR0 serves both groups.
    pub(crate) cbpr: bool,
}

impl Default for CpuInterface {
    fn default() -> Self {
        Self {
            pmr: 0,
            bpr: [MIN_BPR0, MIN_BPR0 + 1],
            ap: [0; 2],
            enable: [false; 2],
            eoi_mode: false,
            cbpr: false,
        }
    }
}

impl CpuInterface {
    /// ICC_CTLR_EL1: A3V, IDbits = 0 (16 bits), PRIbits = 4 (five bits), no RSS, no SEIs.
    pub(crate) fn ctlr(&self) -> u64 {
        1 << 15 | 4 << 8 | u64::from(self.eoi_mode) << 1 | u64::from(self.cbpr)
    }

    /// Writes ICC_CTLR_EL1. PMHE is RAZ/WI.
    pub(crate) fn set_ctlr(&mut self, value: u64) {
        self.cbpr = value & 1 != 0;
        self.eoi_mode = value & 2 != 0;
    }

    /// Writes ICC_PMR_EL1.
    pub(crate) fn set_pmr(&mut self, value: u64) {
        self.pmr = value as u8 & PRIORITY_MASK;
    }

    /// ICC_BPR<n>_EL1 as it reads.
    pub(crate) fn read_bpr(&self, group: usize) -> u8 {
        if group == 1 && self.cbpr { (self.bpr[0] + 1).min(7) } else { self.bpr[group & 1] }
    }

    /// Writes ICC_BPR<n>_EL1: less than the least value sets the least value.
    pub(crate) fn set_bpr(&mut self, group: usize, value: u64) {
        if group == 1 && self.cbpr {
            return;
        }
        self.bpr[group & 1] = (value as u8 & 7).max(MIN_BPR0 + (group & 1) as u8);
    }

    /// Group priority: the bits of `priority` that count for preemption (4.8.4).
    fn group_priority(&self, group: usize, priority: u8) -> u8 {
        let point = if group == 0 || self.cbpr { self.bpr[0] } else { self.bpr[1] - 1 };
        priority & (0xff00u16 >> (7 - point.min(7))) as u8
    }

    /// ICC_RPR_EL1: the highest active group priority; 0xff when idle.
    pub(crate) fn running_priority(&self) -> u8 {
        match (self.ap[0] | self.ap[1]).trailing_zeros() {
            32 => IDLE,
            level => (level << 3) as u8,
        }
    }

    /// Whether `pending` is signalled to the PE: above the mask, and preempting whatever is active.
    pub(crate) fn signals(&self, pending: &Pending) -> bool {
        pending.priority < self.pmr
            && self.group_priority(pending.group, pending.priority) < self.running_priority()
    }

    /// Records the priority of an acknowledged interrupt as active.
    pub(crate) fn raise(&mut self, pending: &Pending) {
        let level = self.group_priority(pending.group, pending.priority) >> 3;
        self.ap[pending.group & 1] |= 1 << level;
    }

    /// Priority drop for an EOI of `group`: the running priority's bit goes, if it is of that group. An EOI of the
    /// wrong group is CONSTRAINED UNPREDICTABLE, and here ignored; whether something was dropped.
    pub(crate) fn drop_priority(&mut self, group: usize) -> bool {
        let (own, other) = (self.ap[group & 1], self.ap[group & 1 ^ 1]);
        if own == 0 || other.trailing_zeros() < own.trailing_zeros() {
            return false;
        }
        self.ap[group & 1] = own & (own - 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(priority: u8, group: usize) -> Pending {
        Pending { intid: 40, priority, group }
    }

    #[test]
    fn preemption_needs_a_higher_group_priority() {
        let mut cpu = CpuInterface { pmr: 0xf8, ..CpuInterface::default() };
        assert!(cpu.signals(&pending(0xf0, 1)) && !cpu.signals(&pending(0xf8, 1)), "PMR masks its own level");
        cpu.raise(&pending(0x88, 1));
        assert_eq!(cpu.running_priority(), 0x88);
        assert!(cpu.signals(&pending(0x80, 1)) && !cpu.signals(&pending(0x88, 1)));
        cpu.set_bpr(1, 5);
        assert!(
            cpu.signals(&pending(0x80, 1)),
            "0x80 beats the running 0x88 whatever the bits of 0x80 below 7:5"
        );
        cpu.ap[1] = 1 << (0x80 >> 3);
        assert!(!cpu.signals(&pending(0x80, 1)) && cpu.signals(&pending(0x78, 1)));
        cpu.set_bpr(1, 7);
        cpu.ap = [0, 0];
        cpu.raise(&pending(0x70, 1));
        assert_eq!(cpu.running_priority(), 0, "one group bit: bit 7");
    }

    #[test]
    fn binary_points_have_least_values() {
        let mut cpu = CpuInterface::default();
        cpu.set_bpr(0, 0);
        cpu.set_bpr(1, 0);
        assert_eq!(cpu.bpr, [2, 3]);
        cpu.set_bpr(0, 7);
        cpu.set_ctlr(1);
        cpu.set_bpr(1, 4);
        assert_eq!((cpu.read_bpr(1), cpu.bpr[1]), (7, 3), "CBPR: reads BPR0 + 1 saturated, ignores writes");
        assert_eq!(cpu.group_priority(1, 0xf8), 0, "BPR0 = 7 has no group bits");
    }

    #[test]
    fn a_drop_of_the_wrong_group_is_ignored() {
        let mut cpu = CpuInterface { pmr: 0xff, ..CpuInterface::default() };
        cpu.raise(&pending(0x80, 1));
        cpu.raise(&pending(0x40, 0));
        assert!(!cpu.drop_priority(1));
        assert!(cpu.drop_priority(0) && cpu.drop_priority(1) && !cpu.drop_priority(1));
        assert_eq!(cpu.running_priority(), 0xff);
    }
}
