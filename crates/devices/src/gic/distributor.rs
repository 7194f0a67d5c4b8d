//! GICD_*: the distributor's registers (IHI 0069 12.8, 12.9), affinity routing, one security state.

use serde::{Deserialize, Serialize};

use super::access::{half, merge, part};
use super::bank::{Bank, BankReg};
use super::ids;
use super::lpi::ID_BITS;

const CTLR: u64 = 0x0;
const TYPER: u64 = 0x4;
const IIDR: u64 = 0x8;
const IROUTER: std::ops::Range<u64> = 0x6100..0x8000;
/// GICD_CTLR.DS and ARE: read as one, ignore writes.
const CTLR_FIXED: u64 = 1 << 6 | 1 << 4;
const ROUTER_ALL: u64 = 0xff_80ff_ffff;
/// GICD_IROUTER.Interrupt_Routing_Mode: any participating PE.
const ROUTER_IRM: u64 = 1 << 31;

/// Where an SPI goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the PE with this affinity (Aff3 in bits 31:24 … Aff0 in 7:0).
    To(u32),
    /// To one of the PEs that participate.
    Any,
}

/// State of the distributor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Distributor {
    /// GICD_CTLR.EnableGrp0, EnableGrp1.
    pub(crate) enable: [bool; 2],
    /// SPIs 32 to 63, 64 to 95, and so on.
    pub(crate) banks: Vec<Bank>,
    routes: Vec<u64>,
    /// Whether GICD_TYPER advertises LPIs.
    lpis: bool,
}

impl Distributor {
    /// With `spis` (rounded up to a whole bank) SPIs.
    pub(crate) fn new(spis: u32, lpis: bool) -> Self {
        let banks = spis.div_ceil(32).clamp(1, 31) as usize;
        Self { enable: [false; 2], banks: vec![Bank::default(); banks], routes: vec![0; banks * 32], lpis }
    }

    /// One past the last SPI. The INTIDs 1020 to 1023 are special and never SPIs.
    pub(crate) fn end(&self) -> u32 {
        (32 * (self.banks.len() as u32 + 1)).min(1020)
    }

    /// The bank and bit of an SPI.
    pub(crate) fn spi(&mut self, intid: u32) -> Option<(&mut Bank, u32)> {
        if !(32..self.end()).contains(&intid) {
            return None;
        }
        self.banks.get_mut(intid as usize / 32 - 1).map(|bank| (bank, intid % 32))
    }

    /// Where the SPI `intid` goes (GICD_IROUTER).
    pub(crate) fn route(&self, intid: u32) -> Route {
        let word = (intid as usize).checked_sub(32).and_then(|n| self.routes.get(n)).copied().unwrap_or(0);
        if word & ROUTER_IRM != 0 {
            Route::Any
        } else {
            Route::To((word & 0xff_ffff) as u32 | ((word >> 32) as u32 & 0xff) << 24)
        }
    }

    fn typer(&self) -> u64 {
        // A3V, IDbits, LPIS, ITLinesNumber. CPUNumber is zero: affinity routing is always on.
        let id_bits = if self.lpis { ID_BITS } else { 9 };
        1 << 24 | u64::from(id_bits) << 19 | u64::from(self.lpis) << 17 | self.banks.len() as u64
    }

    /// Reads a register.
    pub(crate) fn read(&self, offset: u64, size: u8) -> u64 {
        if let Some((index, reg)) = BankReg::decode(offset, size) {
            // Bank 0 is RAZ/WI: SGIs and PPIs live in the redistributors.
            let bank = index.checked_sub(1).and_then(|n| self.banks.get(n));
            return bank.map_or(0, |bank| bank.read(reg, size).into());
        }
        if IROUTER.contains(&offset) {
            return router(offset, size)
                .map_or(0, |(index, shift)| part(self.routes.get(index).copied().unwrap_or(0), size, shift));
        }
        if size != 4 {
            return 0;
        }
        match offset {
            CTLR => CTLR_FIXED | u64::from(self.enable[1]) << 1 | u64::from(self.enable[0]),
            TYPER => self.typer(),
            IIDR => ids::IIDR,
            _ => ids::component(offset, ids::GICD),
        }
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, offset: u64, size: u8, value: u64) {
        let end = self.end();
        if let Some((index, reg)) = BankReg::decode(offset, size) {
            if let Some(bank) = index.checked_sub(1).and_then(|n| self.banks.get_mut(n)) {
                bank.write(reg, size, value as u32);
                // The last four INTIDs of the last possible bank are the special ones.
                if end == 1020 && index == 31 {
                    bank.enabled &= !0 >> 4;
                }
            }
        } else if IROUTER.contains(&offset) {
            if let Some((index, shift)) = router(offset, size)
                && let Some(word) = self.routes.get_mut(index)
            {
                *word = merge(*word, size, shift, value) & ROUTER_ALL;
            }
        } else if offset == CTLR && size == 4 {
            self.enable = [value & 1 != 0, value & 2 != 0];
        }
    }
}

/// Index of the SPI, and bit offset of the access, of an access to GICD_IROUTER.
fn router(offset: u64, size: u8) -> Option<(usize, u32)> {
    let (register, shift) = half(offset, size)?;
    Some(((register - IROUTER.start) as usize / 8, shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifies_itself() {
        let d = Distributor::new(256, true);
        assert_eq!(d.read(TYPER, 4), 0x017a_0008);
        assert_eq!(d.read(CTLR, 4), 0x50);
        assert_eq!(d.read(0xffe8, 4) >> 4, 3, "PIDR2.ArchRev");
        assert_eq!(d.end(), 288);
    }

    #[test]
    fn special_intids_are_never_enabled() {
        let mut d = Distributor::new(5000, false);
        assert_eq!((d.end(), d.read(TYPER, 4) & 0x1f), (1020, 31));
        d.write(0x100 + 4 * 31, 4, 0xffff_ffff);
        assert_eq!(d.read(0x100 + 4 * 31, 4), 0x0fff_ffff);
        assert!(d.spi(1019).is_some() && d.spi(1020).is_none());
    }

    #[test]
    fn routes_take_both_widths() {
        let mut d = Distributor::new(64, false);
        d.write(0x6000 + 8 * 33, 8, u64::MAX);
        assert_eq!(d.read(0x6000 + 8 * 33, 8), ROUTER_ALL);
        assert_eq!(d.route(33), Route::Any);
        d.write(0x6000 + 8 * 33, 4, 0x0003);
        d.write(0x6004 + 8 * 33, 4, 0x102);
        assert_eq!(d.route(33), Route::To(0x0200_0003));
        d.write(0x6001 + 8 * 33, 8, 0);
        assert_eq!(d.route(33), Route::To(0x0200_0003));
        assert_eq!(d.read(0x6000, 8), 0, "no routes for private interrupts");
    }

    #[test]
    fn private_interrupts_are_not_here() {
        let mut d = Distributor::new(32, false);
        d.write(0x100, 4, u64::from(u32::MAX));
        d.write(0x104, 4, 5);
        d.write(0x108, 4, 5);
        assert_eq!((d.read(0x100, 4), d.read(0x104, 4), d.read(0x108, 4)), (0, 5, 0));
        d.write(0x184, 4, 1);
        assert_eq!(d.read(0x104, 4), 4);
    }
}
