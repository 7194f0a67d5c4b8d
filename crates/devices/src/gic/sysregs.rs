//! Accesses to the ICC_* system registers, and what they do to interrupts (IHI 0069 4.1, 4.7, 12.2).

use super::Gic;
use super::cpu_interface::SPURIOUS;
use super::lpi::FIRST_LPI;

/// A register by its encoding: op0 in bits 15:14, op1 13:11, CRn 10:7, CRm 6:3, op2 2:0. All are op0 = 3, op1 = 0.
const fn key(crn: u16, crm: u16, op2: u16) -> u16 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

const PMR: u16 = key(4, 6, 0);
const IAR0: u16 = key(12, 8, 0);
const EOIR0: u16 = key(12, 8, 1);
const HPPIR0: u16 = key(12, 8, 2);
const BPR0: u16 = key(12, 8, 3);
const AP0R0: u16 = key(12, 8, 4);
const AP1R0: u16 = key(12, 9, 0);
const DIR: u16 = key(12, 11, 1);
const RPR: u16 = key(12, 11, 3);
const SGI1R: u16 = key(12, 11, 5);
const ASGI1R: u16 = key(12, 11, 6);
const SGI0R: u16 = key(12, 11, 7);
const IAR1: u16 = key(12, 12, 0);
const EOIR1: u16 = key(12, 12, 1);
const HPPIR1: u16 = key(12, 12, 2);
const BPR1: u16 = key(12, 12, 3);
const CTLR: u16 = key(12, 12, 4);
const SRE: u16 = key(12, 12, 5);
const IGRPEN0: u16 = key(12, 12, 6);
const IGRPEN1: u16 = key(12, 12, 7);

/// ICC_SRE_EL1: system registers only; no bypass.
const SRE_FIXED: u64 = 7;

impl Gic {
    /// Reads an ICC_*_EL1 register, given by its encoding. `None`: UNDEFINED (no such register, or write-only).
    pub fn icc_read(&mut self, cpu: usize, register: u16) -> Option<u64> {
        let icc = &self.state.pes.get(cpu)?.icc;
        Some(match register {
            IAR0 => self.acknowledge(cpu, 0).into(),
            IAR1 => self.acknowledge(cpu, 1).into(),
            HPPIR0 => self.highest_pending(cpu, 0).into(),
            HPPIR1 => self.highest_pending(cpu, 1).into(),
            PMR => icc.pmr.into(),
            RPR => icc.running_priority().into(),
            BPR0 => icc.read_bpr(0).into(),
            BPR1 => icc.read_bpr(1).into(),
            AP0R0 => icc.ap[0].into(),
            AP1R0 => icc.ap[1].into(),
            CTLR => icc.ctlr(),
            SRE => SRE_FIXED,
            IGRPEN0 => icc.enable[0].into(),
            IGRPEN1 => icc.enable[1].into(),
            _ => return None,
        })
    }

    /// Writes an ICC_*_EL1 register. `None`: UNDEFINED (no such register, or read-only).
    pub fn icc_write(&mut self, cpu: usize, register: u16, value: u64) -> Option<()> {
        let icc = &mut self.state.pes.get_mut(cpu)?.icc;
        match register {
            EOIR0 => self.end(cpu, 0, value as u32 & 0xff_ffff),
            EOIR1 => self.end(cpu, 1, value as u32 & 0xff_ffff),
            DIR => {
                // With EOImode 0 a write is CONSTRAINED UNPREDICTABLE, and here ignored.
                if icc.eoi_mode {
                    self.deactivate(cpu, value as u32 & 0xff_ffff);
                }
            }
            SGI0R | ASGI1R => self.generate_sgi(cpu, 0, value),
            SGI1R => self.generate_sgi(cpu, 1, value),
            PMR => icc.set_pmr(value),
            BPR0 => icc.set_bpr(0, value),
            BPR1 => icc.set_bpr(1, value),
            AP0R0 => icc.ap[0] = value as u32,
            AP1R0 => icc.ap[1] = value as u32,
            CTLR => icc.set_ctlr(value),
            SRE => {}
            IGRPEN0 | IGRPEN1 => {
                icc.enable[(register == IGRPEN1) as usize] = value & 1 != 0;
                // 1-of-N interrupts may move.
                self.refresh_all();
                return Some(());
            }
            _ => return None,
        }
        self.refresh(cpu);
        Some(())
    }

    /// ICC_HPPIR<n>_EL1: the highest-priority pending interrupt, if it is of the group; masks do not matter.
    fn highest_pending(&self, cpu: usize, group: usize) -> u32 {
        let best = self.state.pes.get(cpu).and_then(|pe| pe.best);
        best.filter(|best| best.group == group).map_or(SPURIOUS, |best| best.intid)
    }

    /// ICC_IAR<n>_EL1.
    fn acknowledge(&mut self, cpu: usize, group: usize) -> u32 {
        let Some(pe) = self.state.pes.get_mut(cpu) else { return SPURIOUS };
        let Some(best) = pe.best.filter(|best| best.group == group && pe.icc.signals(best)) else {
            return SPURIOUS;
        };
        pe.icc.raise(&best);
        if best.intid < 32 {
            pe.local.activate(best.intid);
        } else if best.intid >= FIRST_LPI {
            pe.lpis.clear(best.intid);
        } else if let Some((bank, n)) = self.state.distributor.spi(best.intid) {
            bank.activate(n);
        }
        self.refresh(cpu);
        best.intid
    }

    /// ICC_EOIR<n>_EL1: priority drop, and deactivation unless EOImode says that DIR does it.
    fn end(&mut self, cpu: usize, group: usize, intid: u32) {
        let known = intid < self.state.distributor.end() || (FIRST_LPI..1 << 16).contains(&intid);
        let Some(pe) = self.state.pes.get_mut(cpu).filter(|_| known) else { return };
        if pe.icc.drop_priority(group) && !pe.icc.eoi_mode {
            self.deactivate(cpu, intid);
        }
    }

    /// Clears the active state; LPIs have none.
    fn deactivate(&mut self, cpu: usize, intid: u32) {
        if intid < 32 {
            if let Some(pe) = self.state.pes.get_mut(cpu) {
                pe.local.active &= !(1 << intid);
            }
        } else if let Some((bank, n)) = self.state.distributor.spi(intid) {
            bank.active &= !(1 << n);
            self.refresh_spi(intid);
        }
    }

    /// ICC_SGI<n>R_EL1, ICC_ASGI1R_EL1: pends an SGI on PEs where it is of `group`.
    fn generate_sgi(&mut self, cpu: usize, group: usize, value: u64) {
        let intid = (value >> 24 & 0xf) as u32;
        let all_others = value >> 40 & 1 != 0;
        let cluster = value >> 48 & 0xff != 0 || value >> 32 & 0xff != 0 || value >> 16 & 0xff != 0;
        // RSS is 0: a range selector other than zero is CONSTRAINED UNPREDICTABLE, and here selects no PE.
        let range = value >> 44 & 0xf != 0;
        for target in 0..self.state.pes.len() {
            let chosen =
                if all_others { target != cpu } else { !cluster && !range && value >> target & 1 != 0 };
            if let Some(pe) = self.state.pes.get_mut(target).filter(|_| chosen)
                && pe.local.group_of(intid) == group
            {
                pe.local.latched |= 1 << intid;
                self.refresh(target);
            }
        }
    }
}
