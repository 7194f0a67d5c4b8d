//! TLBI commands: how they are encoded, and what they oblige an SMMU to forget (section 4.4), said plainly.

use smmu_model::{Config, Unaligned};

use crate::held::{Held, Regime, World};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Operation {
    NhAll,
    NhAsid,
    NhVa,
    NhVaa,
    El2All,
    El2Asid,
    El2Va,
    El2Vaa,
    S12Vmall,
    S2Ipa,
    NsnhAll,
}

/// TG, SCALE, NUM, TTL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) tg: u64,
    pub(crate) scale: u64,
    pub(crate) num: u64,
    pub(crate) ttl: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tlbi {
    pub(crate) operation: Operation,
    pub(crate) vmid: u64,
    pub(crate) asid: u64,
    pub(crate) leaf: bool,
    pub(crate) address: u64,
    pub(crate) range: Option<Range>,
}

impl Tlbi {
    pub(crate) fn by_address(&self) -> bool {
        use Operation::{El2Va, El2Vaa, NhVa, NhVaa, S2Ipa};
        matches!(self.operation, NhVa | NhVaa | El2Va | El2Vaa | S2Ipa)
    }

    pub(crate) fn encode(&self) -> [u64; 2] {
        let opcode = match self.operation {
            Operation::NhAll => 0x10,
            Operation::NhAsid => 0x11,
            Operation::NhVa => 0x12,
            Operation::NhVaa => 0x13,
            Operation::El2All => 0x20,
            Operation::El2Asid => 0x21,
            Operation::El2Va => 0x22,
            Operation::El2Vaa => 0x23,
            Operation::S12Vmall => 0x28,
            Operation::S2Ipa => 0x2a,
            Operation::NsnhAll => 0x30,
        };
        let ids = opcode | self.vmid << 32 | self.asid << 48;
        if !self.by_address() {
            return [ids, 0];
        }
        let address = self.address & !0xfff | u64::from(self.leaf);
        match self.range {
            None => [ids, address],
            Some(Range { tg, scale, num, ttl }) => {
                [ids | num << 12 | scale << 20, address | ttl << 8 | tg << 10]
            }
        }
    }

    /// Whether an SMMU must not use the entry any more.
    pub(crate) fn drops(&self, held: &Held, e2h: bool, config: &Config) -> bool {
        let Regime { world, vmid, asid } = held.regime;
        let el2 = if e2h { World::El2E2h } else { World::El2 };
        let (vm, own) = (vmid == self.vmid, asid == self.asid);
        match self.operation {
            Operation::NhAll => world == World::El1 && vm,
            Operation::NhAsid => world == World::El1 && vm && own && !held.global,
            Operation::NhVa => {
                world == World::El1 && vm && (own || held.global) && self.reaches(held, config)
            }
            Operation::NhVaa => world == World::El1 && vm && self.reaches(held, config),
            Operation::S2Ipa => world == World::Stage2 && vm && self.reaches(held, config),
            Operation::S12Vmall => matches!(world, World::El1 | World::Stage2) && vm,
            Operation::NsnhAll => matches!(world, World::El1 | World::Stage2),
            Operation::El2All => matches!(world, World::El2 | World::El2E2h),
            Operation::El2Asid => world == World::El2E2h && own && !held.global,
            Operation::El2Va => world == el2 && (!e2h || own || held.global) && self.reaches(held, config),
            Operation::El2Vaa => world == el2 && self.reaches(held, config),
        }
    }

    /// Whether the addresses, TG, TTL and Leaf are those of the entry.
    fn reaches(&self, held: &Held, config: &Config) -> bool {
        if self.leaf && held.is_table {
            return false;
        }
        let Some(Range { tg, scale, num, ttl }) = self.range else {
            let page = self.address & !0xfff;
            return held.overlaps(page, page | 0xfff);
        };
        let bits = [0, 12, 14, 16][tg as usize];
        if held.page != bits {
            return false;
        }
        // Without DS, 16 KiB has no leaves of level 1, and the hint is none.
        let ttl = if ttl == 1 && bits == 14 && !config.ds { 0 } else { ttl as i32 };
        // The leaf of that level; the tables down to it.
        if ttl != 0 && if held.is_table { held.level > ttl } else { held.level != ttl } {
            return false;
        }
        let block = bits + if ttl == 0 { 0 } else { (3 - ttl as u32) * (bits - 3) };
        let first = match config.tlbi_unaligned {
            Unaligned::Granule => self.address >> bits << bits,
            Unaligned::Block => self.address >> block << block,
            Unaligned::Nothing if (self.address & !0xfff) >> block << block != self.address & !0xfff => {
                return false;
            }
            Unaligned::Nothing => self.address & !0xfff,
        };
        held.overlaps(first, first.saturating_add(((num + 1) << scale << bits) - 1))
    }
}
