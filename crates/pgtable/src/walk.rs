//! The walk itself: one descriptor a step (DDI 0487, D8.2).

use serde::{Deserialize, Serialize};

use crate::config::{Stage1, Stage2};
use crate::descriptor::{self as d, Kind};
use crate::fault::{Fault, FaultKind};
use crate::granule::Granule;
use crate::leaf::{Leaf, TableAttrs};

/// What of a configuration outlives the start of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rules {
    pub(crate) granule: Granule,
    pub(crate) oas: u8,
    pub(crate) sh: u8,
    pub(crate) stage2: bool,
    pub(crate) pa52: bool,
    pub(crate) single: bool,
    pub(crate) hpd: bool,
    pub(crate) ha: bool,
    pub(crate) hd: bool,
    pub(crate) affd: bool,
}

impl Rules {
    /// Whether `address` is wider than the output size.
    #[inline]
    const fn too_wide(&self, address: u64) -> bool {
        // Addresses have 52 bits at most.
        address >> (self.oas & 63) != 0
    }
}

/// A walk that waits for a descriptor. Plain data: it may be kept, copied and stored in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    address: u64,
    input: u64,
    level: i8,
    input_bits: u8,
    /// The descriptor is in the first table.
    first: bool,
    table: TableAttrs,
    rules: Rules,
}

/// What a walk wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Fetch the 8-byte, little-endian descriptor at [`Walk::address`] and call [`Walk::next`] with it.
    Fetch(Walk),
    /// The walk is complete.
    Done(Leaf),
    /// The walk failed.
    Fault(Fault),
}

impl Step {
    #[inline]
    const fn fault(kind: FaultKind, level: i8) -> Self {
        Self::Fault(Fault { kind, level })
    }
}

impl Walk {
    /// Begins the stage 1 walk of `va`, which [`Ranges::select`](crate::Ranges::select) found to belong to `cfg`: bits
    /// above the input size are not looked at.
    #[inline]
    pub fn stage1(cfg: &Stage1, va: u64) -> Step {
        let Some(level) = cfg.start_level() else { return Step::fault(FaultKind::Translation, 0) };
        let rules = Rules {
            granule: cfg.granule,
            oas: cfg.oas,
            sh: cfg.sh,
            stage2: false,
            pa52: cfg.pa52,
            single: cfg.single,
            hpd: cfg.hpd,
            ha: cfg.ha,
            hd: cfg.ha && cfg.hd,
            affd: cfg.affd,
        };
        let bits = 64 - cfg.tsz;
        Self::begin(rules, level, bits, cfg.ttb, va & (u64::MAX >> cfg.tsz))
    }

    /// Begins the stage 2 walk of `ipa`.
    #[inline]
    pub fn stage2(cfg: &Stage2, ipa: u64) -> Step {
        let Some(level) = cfg.start_level() else { return Step::fault(FaultKind::Translation, 0) };
        let bits = 64 - cfg.tsz;
        if ipa >> bits != 0 {
            return Step::fault(FaultKind::Translation, 0);
        }
        let rules = Rules {
            granule: cfg.granule,
            oas: cfg.oas,
            sh: cfg.sh,
            stage2: true,
            pa52: cfg.pa52,
            single: false,
            hpd: true,
            ha: cfg.ha,
            hd: cfg.ha && cfg.hd,
            affd: cfg.affd,
        };
        Self::begin(rules, level, bits, cfg.ttb, ipa)
    }

    #[inline]
    fn begin(rules: Rules, level: i8, input_bits: u8, ttb: u64, input: u64) -> Step {
        let shift = rules.granule.shift(level);
        // The first table has as many entries as the input needs, fewer or (concatenated, stage 2) more than a
        // granule holds, and is aligned to its size.
        let align = input_bits - shift + 3;
        let base = ttb & (u64::MAX << align);
        if rules.too_wide(base) {
            return Step::fault(FaultKind::AddressSize, 0);
        }
        let address = base | (input >> shift) << 3;
        Step::Fetch(Self {
            address,
            input,
            level,
            input_bits,
            first: true,
            table: TableAttrs::default(),
            rules,
        })
    }

    /// Physical (stage 1 under stage 2: intermediate physical) address of the descriptor to fetch; 8-byte aligned.
    #[inline]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Lookup level of that descriptor: -1 to 3.
    #[inline]
    pub const fn level(&self) -> i8 {
        self.level
    }

    /// The input address, without the bits above the input size.
    #[inline]
    pub const fn input(&self) -> u64 {
        self.input
    }

    /// Whether this is a stage 2 walk.
    #[inline]
    pub const fn is_stage2(&self) -> bool {
        self.rules.stage2
    }

    /// NSTable of a level above: this and the following descriptors are in Non-secure memory.
    #[inline]
    pub const fn ns_table(&self) -> bool {
        self.table.ns()
    }

    /// How many entries the table has that this descriptor is in.
    pub(crate) const fn table_entries(&self) -> u64 {
        let full = self.rules.granule.shift(self.level) + self.rules.granule.stride();
        // Only the first table can be of another size: the input is wider than a full one resolves (concatenation,
        // which ends at 16 tables), or narrower.
        let top = if self.first { self.input_bits } else { full };
        1 << (top - self.rules.granule.shift(self.level))
    }

    /// The same walk at entry `index` of the table whose entry 0 it is at.
    pub(crate) const fn entry_in_table(&self, index: u64) -> Self {
        let shift = self.rules.granule.shift(self.level);
        Self { address: self.address + index * 8, input: self.input + (index << shift), ..*self }
    }

    /// The walk of another input through the same table, for walk caches. Right only below the first level, and for an
    /// input that the tables above lead to this one: equal in all bits above those that this level resolves.
    #[inline]
    pub const fn through(&self, input: u64) -> Self {
        let granule = self.rules.granule;
        let input = input & (u64::MAX >> (64 - self.input_bits));
        let index = input >> granule.shift(self.level) & ((1 << granule.stride()) - 1);
        Self { address: self.address & !(granule.bytes() - 1) | index << 3, input, ..*self }
    }

    /// What it goes by, and the number of bits of its input.
    #[inline]
    pub(crate) const fn rules(&self) -> &Rules {
        &self.rules
    }

    #[inline]
    pub(crate) const fn input_bits(&self) -> u8 {
        self.input_bits
    }

    /// Whether the descriptor is in the first table.
    #[inline]
    pub(crate) const fn is_first(&self) -> bool {
        self.first
    }

    /// What the tables above impose.
    #[inline]
    pub(crate) const fn tables(&self) -> TableAttrs {
        self.table
    }

    /// A walk that has come somewhere.
    #[inline]
    pub(crate) const fn waiting(
        address: u64,
        input: u64,
        level: i8,
        input_bits: u8,
        first: bool,
        table: TableAttrs,
        rules: Rules,
    ) -> Self {
        Self { address, input, level, input_bits, first, table, rules }
    }

    /// Goes on with the descriptor that [`Walk::address`] asked for.
    #[inline]
    pub fn next(&self, descriptor: u64) -> Step {
        let Rules { granule, pa52, .. } = self.rules;
        match d::kind(descriptor, granule, self.level, pa52) {
            Kind::Invalid => Step::fault(FaultKind::Translation, self.level),
            Kind::Table => {
                let mut next = *self;
                match next.descend(descriptor) {
                    true => Step::Fetch(next),
                    false => Step::fault(FaultKind::AddressSize, self.level),
                }
            }
            Kind::Leaf => match self.finish(descriptor) {
                Ok(leaf) => Step::Done(leaf),
                Err(kind) => Step::fault(kind, self.level),
            },
        }
    }

    /// The leaf that a descriptor is. `None`: it is none, or [`Walk::next`] knows what is wrong.
    #[inline(always)]
    pub fn leaf(&self, descriptor: u64) -> Option<Leaf> {
        let Rules { granule, pa52, .. } = self.rules;
        match d::kind(descriptor, granule, self.level, pa52) {
            Kind::Leaf => self.finish(descriptor).ok(),
            _ => None,
        }
    }

    /// Goes on, in place, with a descriptor that names another table. Anything else changes nothing and gives `false`:
    /// [`Walk::next`] knows what it is.
    #[inline]
    pub const fn descend(&mut self, descriptor: u64) -> bool {
        let Rules { granule, pa52, .. } = self.rules;
        let base = d::address(descriptor, granule, granule.bits(), pa52);
        if !d::is_table(descriptor, self.level) || self.rules.too_wide(base) {
            return false;
        }
        if !self.rules.stage2 {
            let attrs = TableAttrs::of(descriptor);
            self.table = self.table.and(if self.rules.hpd { attrs.only_ns() } else { attrs });
        }
        // kind() gives tables above level 3 only.
        self.level += 1;
        let index = self.input >> granule.shift(self.level) & ((1 << granule.stride()) - 1);
        self.address = base | index << 3;
        self.first = false;
        true
    }

    #[inline(always)]
    fn finish(&self, descriptor: u64) -> Result<Leaf, FaultKind> {
        let Rules { granule, pa52, ha, affd, .. } = self.rules;
        let shift = granule.shift(self.level);
        let base = d::address(descriptor, granule, shift, pa52);
        if self.rules.too_wide(base) {
            return Err(FaultKind::AddressSize);
        }
        if descriptor & d::AF == 0 && !ha && !affd {
            return Err(FaultKind::AccessFlag);
        }
        let size = 1u64 << shift;
        // A span larger than the input range is CONSTRAINED UNPREDICTABLE: here the bit is then ignored.
        let contiguous = descriptor & d::CONTIGUOUS != 0
            && granule.contiguous_bits(self.level).is_some_and(|bits| shift + bits <= self.input_bits);
        Ok(Leaf {
            pa: base | self.input & (size - 1),
            size,
            descriptor,
            at: self.address,
            level: self.level,
            contiguous,
            table: self.table,
            rules: self.rules,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_input_through_the_same_table() {
        let cfg = Stage1 { tsz: 16, oas: 48, ttb: 0x1000, ..Stage1::default() };
        let begin = |va| match Walk::stage1(&cfg, va) {
            Step::Fetch(walk) => walk,
            other => panic!("{other:?}"),
        };
        let table = |at: u64| at | d::VALID | d::TABLE;
        let down = |walk: Walk, at| match walk.next(table(at)) {
            Step::Fetch(walk) => walk,
            other => panic!("{other:?}"),
        };
        let (a, b) = (0xffff_1234_5678_9abc, 0xffff_1234_4aaa_a000);
        let walk = |va| down(down(begin(va), 0x8000_2000), 0x8000_3000);
        assert_eq!(walk(a).through(b), walk(b));
        assert_eq!(walk(a).through(a), walk(a));
    }
}
