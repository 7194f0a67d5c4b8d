//! Thirty-two interrupts: a PE's SGIs and PPIs, or one word of SPIs.
//!
//! The distributor and the SGI frame of a redistributor lay the same registers out at the same offsets, one bit, two
//! bits or one byte an interrupt, so both are made of banks.

use serde::{Deserialize, Serialize};

/// Priority bits that are implemented: five, 32 levels (IHI 0069 4.8).
pub(crate) const PRIORITY_MASK: u8 = 0xf8;

/// State of 32 interrupts; bit `n` of each word is interrupt `n` of the bank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bank {
    /// Group 1 (otherwise Group 0).
    pub(crate) group: u32,
    /// Enabled for forwarding.
    pub(crate) enabled: u32,
    /// Latched pending: an edge was seen, or software wrote ISPENDR.
    pub(crate) latched: u32,
    /// Level of the input wires.
    pub(crate) line: u32,
    /// Active.
    pub(crate) active: u32,
    /// Edge-triggered (otherwise level-sensitive).
    pub(crate) edge: u32,
    /// Interrupts whose trigger cannot be programmed (SGIs).
    pub(crate) fixed: u32,
    /// Priority of each.
    pub(crate) priority: [u8; 32],
}

impl Bank {
    /// Pending: latched, or the level of a level-sensitive wire (4.1.3).
    #[inline]
    pub(crate) fn pending(&self) -> u32 {
        self.latched | (self.line & !self.edge)
    }

    /// What could be delivered if its group is open: pending, enabled, not active.
    #[inline]
    pub(crate) fn candidates(&self) -> u32 {
        self.pending() & self.enabled & !self.active
    }

    /// Drives the wire of interrupt `n`; whether its level changed.
    pub(crate) fn set_line(&mut self, n: u32, level: bool) -> bool {
        let bit = 1 << (n & 31);
        if (self.line & bit != 0) == level {
            return false;
        }
        self.line ^= bit;
        if level {
            self.latched |= bit & self.edge;
        }
        true
    }

    /// Acknowledges interrupt `n`: active, and no longer latched. A level that stays high keeps it pending as well.
    pub(crate) fn activate(&mut self, n: u32) {
        let bit = 1 << (n & 31);
        self.active |= bit;
        self.latched &= !bit;
    }

    /// Group of interrupt `n`.
    pub(crate) fn group_of(&self, n: u32) -> usize {
        (self.group >> (n & 31) & 1) as usize
    }

    fn config(&self, half: u32) -> u32 {
        let bits = self.edge >> (16 * half);
        (0..16).filter(|n| bits >> n & 1 != 0).fold(0, |word, n| word | 2 << (2 * n))
    }

    fn set_config(&mut self, half: u32, word: u32) {
        let bits = (0..16).filter(|n| word >> (2 * n + 1) & 1 != 0).fold(0u32, |bits, n| bits | 1 << n);
        let half_mask = (0xffff << (16 * half)) & !self.fixed;
        self.edge = (self.edge & !half_mask) | ((bits << (16 * half)) & half_mask);
    }
}

/// A register of a bank, by the offset it has in both frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BankReg {
    /// IGROUPR.
    Group,
    /// ISENABLER, ICENABLER: the write sets, or clears.
    Enable(bool),
    /// ISPENDR, ICPENDR.
    Pending(bool),
    /// ISACTIVER, ICACTIVER.
    Active(bool),
    /// IPRIORITYR: the first of `size` (1 or 4) bytes.
    Priority(usize),
    /// ICFGR: half of the bank.
    Config(u32),
}

impl BankReg {
    /// Finds the bank and the register at `offset`; `None` for offsets that are not such a register and widths that
    /// it does not have (12.1.3: those are RAZ/WI here).
    pub(crate) fn decode(offset: u64, size: u8) -> Option<(usize, Self)> {
        if (0x400..0x800).contains(&offset) {
            let at = (offset - 0x400) as usize;
            let aligned = size == 1 || (size == 4 && at.is_multiple_of(4));
            return aligned.then_some((at / 32, Self::Priority(at % 32)));
        }
        if size != 4 || offset & 3 != 0 {
            return None;
        }
        let index = (offset & 0x7f) as usize / 4;
        Some(match offset {
            0x080..0x100 => (index, Self::Group),
            0x100..0x180 => (index, Self::Enable(true)),
            0x180..0x200 => (index, Self::Enable(false)),
            0x200..0x280 => (index, Self::Pending(true)),
            0x280..0x300 => (index, Self::Pending(false)),
            0x300..0x380 => (index, Self::Active(true)),
            0x380..0x400 => (index, Self::Active(false)),
            0xc00..0xd00 => {
                let word = (offset - 0xc00) as usize / 4;
                (word / 2, Self::Config((word & 1) as u32))
            }
            _ => return None,
        })
    }
}

impl Bank {
    /// Reads a register of this bank.
    pub(crate) fn read(&self, reg: BankReg, size: u8) -> u32 {
        match reg {
            BankReg::Group => self.group,
            BankReg::Enable(_) => self.enabled,
            BankReg::Pending(_) => self.pending(),
            BankReg::Active(_) => self.active,
            BankReg::Priority(at) => self
                .priority
                .iter()
                .skip(at)
                .take(size.into())
                .rev()
                .fold(0, |word, &p| word << 8 | u32::from(p)),
            BankReg::Config(half) => self.config(half),
        }
    }

    /// Writes a register of this bank.
    pub(crate) fn write(&mut self, reg: BankReg, size: u8, value: u32) {
        let put = |word: &mut u32, set: bool| if set { *word |= value } else { *word &= !value };
        match reg {
            BankReg::Group => self.group = value,
            BankReg::Enable(set) => put(&mut self.enabled, set),
            BankReg::Pending(set) => put(&mut self.latched, set),
            BankReg::Active(set) => put(&mut self.active, set),
            BankReg::Priority(at) => {
                for (p, byte) in self.priority.iter_mut().skip(at).take(size.into()).zip(value.to_le_bytes())
                {
                    *p = byte & PRIORITY_MASK;
                }
            }
            BankReg::Config(half) => self.set_config(half, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_and_edge_pend_differently() {
        let mut bank = Bank { edge: 2, ..Bank::default() };
        assert!(bank.set_line(0, true) && bank.set_line(1, true));
        assert_eq!(bank.pending(), 3);
        bank.set_line(0, false);
        bank.set_line(1, false);
        assert_eq!(bank.pending(), 2, "a level goes away, an edge stays");
        bank.write(BankReg::Pending(true), 4, 1);
        assert_eq!(bank.pending(), 3, "ISPENDR latches a level-sensitive interrupt");
        bank.activate(0);
        assert_eq!((bank.pending(), bank.active), (2, 1));
    }

    #[test]
    fn clearing_a_level_that_is_high_does_nothing() {
        let mut bank = Bank::default();
        bank.set_line(5, true);
        bank.write(BankReg::Pending(false), 4, 1 << 5);
        assert_eq!(bank.pending(), 1 << 5);
    }

    #[test]
    fn config_and_priority_read_back() {
        let mut bank = Bank { fixed: 1, edge: 1, ..Bank::default() };
        bank.write(BankReg::Config(0), 4, 0x5555_555d);
        assert_eq!(bank.read(BankReg::Config(0), 4), 0xa, "bit 0 is fixed, even bits are reserved");
        bank.write(BankReg::Config(1), 4, u32::MAX);
        assert_eq!(bank.edge, 0xffff_0003);
        bank.write(BankReg::Priority(4), 4, 0x1234_56ff);
        assert_eq!(bank.read(BankReg::Priority(4), 4), 0x1030_50f8);
        bank.write(BankReg::Priority(5), 1, 0x80);
        assert_eq!(bank.read(BankReg::Priority(5), 1), 0x80);
        assert_eq!(BankReg::decode(0x402, 4), None);
        assert_eq!(BankReg::decode(0x104, 8), None);
    }
}
