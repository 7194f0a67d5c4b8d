//! LPIs of one redistributor: the configuration and pending tables in guest memory, and what is cached of them
//! (IHI 0069 5.1, 5.2).
//!
//! While LPIs are enabled the pending state lives here; the pending table is read when EnableLPIs becomes 1 (unless
//! PTZ says that it is zero) and written when it becomes 0. Configuration bytes are cached when an LPI becomes pending
//! and stay cached until INV, INVALL or replacement, as hardware does.

use std::collections::{BTreeMap, BTreeSet};

use guest_ram::GuestRam;
use serde::{Deserialize, Serialize};

use super::bank::PRIORITY_MASK;

/// First LPI INTID.
pub(crate) const FIRST_LPI: u32 = 8192;
/// GICD_TYPER.IDbits: INTIDs have this many bits, plus one.
pub(crate) const ID_BITS: u32 = 15;
/// Cached configuration bytes; when full, all are replaced.
const CONFIG_CACHE: usize = 1024;

const PROPBASER_RW: u64 = 0x070f_ffff_ffff_ff9f;
const PENDBASER_RW: u64 = 0x070f_ffff_ffff_0f80;
const PTZ: u64 = 1 << 62;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// LPI state of one redistributor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lpis {
    enabled: bool,
    propbaser: u64,
    pendbaser: u64,
    /// GICR_PENDBASER.PTZ as last written.
    pending_table_zero: bool,
    /// Pending LPIs with the configuration byte that they were last evaluated with.
    pending: BTreeMap<u32, u8>,
    /// The enabled ones of those, most urgent first.
    ready: BTreeSet<(u8, u32)>,
    config: BTreeMap<u32, u8>,
}

fn priority(config: u8) -> u8 {
    config & PRIORITY_MASK
}

impl Lpis {
    /// GICR_CTLR.EnableLPIs.
    pub(crate) fn enabled(&self) -> bool {
        self.enabled
    }

    /// GICR_PROPBASER.
    pub(crate) fn propbaser(&self) -> u64 {
        self.propbaser
    }

    /// GICR_PENDBASER; PTZ reads as zero.
    pub(crate) fn pendbaser(&self) -> u64 {
        self.pendbaser
    }

    /// Writes GICR_PROPBASER. With LPIs enabled this is UNPREDICTABLE, and ignored.
    pub(crate) fn set_propbaser(&mut self, value: u64) {
        if !self.enabled {
            self.propbaser = value & PROPBASER_RW;
            self.config.clear();
        }
    }

    /// Writes GICR_PENDBASER; likewise.
    pub(crate) fn set_pendbaser(&mut self, value: u64) {
        if !self.enabled {
            self.pendbaser = value & PENDBASER_RW;
            self.pending_table_zero = value & PTZ != 0;
        }
    }

    /// The most urgent pending and enabled LPI: priority and INTID.
    #[inline]
    pub(crate) fn best(&self) -> Option<(u8, u32)> {
        self.ready.first().copied()
    }

    /// Whether an LPI is pending.
    pub(crate) fn is_pending(&self, intid: u32) -> bool {
        self.pending.contains_key(&intid)
    }

    /// One past the last INTID that the tables have room for.
    fn limit(&self) -> u32 {
        2 << (self.propbaser as u32 & 0x1f).min(ID_BITS)
    }

    /// Sets EnableLPIs.
    pub(crate) fn set_enabled(&mut self, ram: &GuestRam, on: bool) {
        if on && !self.enabled {
            self.enabled = true;
            if !self.pending_table_zero {
                self.load(ram);
            }
        } else if !on && self.enabled {
            self.store(ram);
            self.enabled = false;
            self.pending_table_zero = false;
            self.pending.clear();
            self.ready.clear();
            self.config.clear();
        }
    }

    fn pending_table(&self) -> u64 {
        self.pendbaser & ADDRESS & !0xffff
    }

    fn load(&mut self, ram: &GuestRam) {
        let mut block = [0u8; 512];
        for first in (FIRST_LPI..self.limit()).step_by(8 * block.len()) {
            if !ram.read(self.pending_table() + u64::from(first / 8), &mut block) {
                continue;
            }
            for (byte, &bits) in block.iter().enumerate() {
                for bit in (0..8).filter(|bit| bits >> bit & 1 != 0) {
                    self.pend(ram, first + 8 * byte as u32 + bit);
                }
            }
        }
    }

    fn store(&self, ram: &GuestRam) {
        for first in (FIRST_LPI..self.limit()).step_by(8 * 512) {
            let mut block = [0u8; 512];
            for (&intid, _) in self.pending.range(first..first + 8 * 512) {
                let n = (intid - first) as usize;
                block[n / 8] |= 1 << (n % 8);
            }
            ram.write(self.pending_table() + u64::from(first / 8), &block);
        }
    }

    /// The configuration byte, from the cache or the table. What is not in RAM counts as disabled.
    fn configuration(&mut self, ram: &GuestRam, intid: u32) -> u8 {
        if let Some(&byte) = self.config.get(&intid) {
            return byte;
        }
        let mut byte = [0];
        if !ram.read((self.propbaser & ADDRESS) + u64::from(intid - FIRST_LPI), &mut byte) {
            byte = [0];
        }
        if self.config.len() >= CONFIG_CACHE {
            self.config.clear();
        }
        self.config.insert(intid, byte[0]);
        byte[0]
    }

    /// Makes an LPI pending. Ignored while LPIs are disabled, and for an INTID outside the tables.
    pub(crate) fn pend(&mut self, ram: &GuestRam, intid: u32) {
        if !self.enabled || !(FIRST_LPI..self.limit()).contains(&intid) || self.is_pending(intid) {
            return;
        }
        let config = self.configuration(ram, intid);
        self.pending.insert(intid, config);
        if config & 1 != 0 {
            self.ready.insert((priority(config), intid));
        }
    }

    /// Makes an LPI not pending: acknowledged, cleared or moved away. Whether it was pending.
    pub(crate) fn clear(&mut self, intid: u32) -> bool {
        let Some(config) = self.pending.remove(&intid) else { return false };
        self.ready.remove(&(priority(config), intid));
        true
    }

    /// Drops the cached configuration of one LPI; a pending one is evaluated again.
    pub(crate) fn invalidate(&mut self, ram: &GuestRam, intid: u32) {
        self.config.remove(&intid);
        if self.clear(intid) {
            self.pend(ram, intid);
        }
    }

    /// Drops all cached configuration.
    pub(crate) fn invalidate_all(&mut self, ram: &GuestRam) {
        self.config.clear();
        self.ready.clear();
        for (intid, _) in std::mem::take(&mut self.pending) {
            self.pend(ram, intid);
        }
    }

    /// Takes every pending LPI away, in INTID order (MOVALL).
    pub(crate) fn take_all(&mut self) -> Vec<u32> {
        self.ready.clear();
        std::mem::take(&mut self.pending).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: u64 = 0x4000_0000;
    const PENDING: u64 = 0x4002_0000;

    fn set_up(ptz: bool) -> (GuestRam, Lpis) {
        let ram = GuestRam::new(0x4000_0000, 0x10_0000).unwrap();
        let mut lpis = Lpis::default();
        lpis.set_propbaser(CONFIG | 15);
        lpis.set_pendbaser(PENDING | if ptz { PTZ } else { 0 });
        (ram, lpis)
    }

    #[test]
    fn configuration_is_cached_until_invalidated() {
        let (ram, mut lpis) = set_up(true);
        lpis.set_enabled(&ram, true);
        ram.write(CONFIG + 1, &[0xa1]);
        lpis.pend(&ram, 8193);
        assert_eq!(lpis.best(), Some((0xa0, 8193)));
        ram.write(CONFIG + 1, &[0x40]);
        assert!(lpis.clear(8193));
        lpis.pend(&ram, 8193);
        assert_eq!(lpis.best(), Some((0xa0, 8193)), "no INV yet");
        lpis.invalidate(&ram, 8193);
        assert_eq!(lpis.best(), None, "now disabled, but");
        assert!(lpis.is_pending(8193));
        ram.write(CONFIG + 1, &[0x31]);
        lpis.invalidate_all(&ram);
        assert_eq!(lpis.best(), Some((0x30, 8193)));
    }

    #[test]
    fn pending_table_is_read_and_written() {
        let (ram, mut lpis) = set_up(false);
        ram.write(CONFIG, &[1; 0x4000]);
        ram.write(PENDING + 1024, &[0b101]);
        lpis.set_enabled(&ram, true);
        assert_eq!(lpis.best(), Some((0, 8192)));
        assert!(lpis.is_pending(8194) && !lpis.is_pending(8193));
        lpis.pend(&ram, 65535);
        lpis.pend(&ram, 65536);
        lpis.pend(&ram, 8191);
        lpis.clear(8192);
        lpis.set_enabled(&ram, false);
        let mut bytes = [0; 2];
        ram.read(PENDING + 1024, &mut bytes[..1]);
        ram.read(PENDING + 8191, &mut bytes[1..]);
        assert_eq!(bytes, [0b100, 0x80]);
        assert_eq!(lpis.best(), None);
    }

    #[test]
    fn ptz_skips_the_table() {
        let (ram, mut lpis) = set_up(true);
        ram.write(PENDING + 1024, &[0xff]);
        lpis.set_enabled(&ram, true);
        assert!(!lpis.is_pending(8192));
        lpis.set_propbaser(0);
        assert_eq!(lpis.propbaser(), CONFIG | 15, "ignored while enabled");
    }

    #[test]
    fn tables_outside_ram_are_harmless() {
        let ram = GuestRam::new(0x4000_0000, 0x1000).unwrap();
        let mut lpis = Lpis::default();
        lpis.set_propbaser(u64::MAX);
        lpis.set_pendbaser(!PTZ);
        lpis.set_enabled(&ram, true);
        lpis.pend(&ram, 8192);
        assert_eq!(lpis.best(), None);
        lpis.set_enabled(&ram, false);
    }

    #[test]
    fn the_cache_is_bounded() {
        let (ram, mut lpis) = set_up(true);
        lpis.set_enabled(&ram, true);
        for intid in 8192..65536 {
            lpis.pend(&ram, intid);
        }
        assert!(lpis.config.len() <= CONFIG_CACHE);
        assert_eq!(lpis.take_all().len(), 65536 - 8192);
        assert!(lpis.take_all().is_empty());
    }
}
