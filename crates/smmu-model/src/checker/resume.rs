//! A checker that joins a guest on its way: what memory has now counts as read.
//!
//! An SMMU may read ahead whatever is valid, so a change of any of it needs its invalidation. What was taken away before,
//! and may still be cached, is not known; nor is who wrote what.

use pgtable::descriptor::{self as d, Kind as Is};
use pgtable::{Granule, Step, Walk};

use super::queue::Commands;
use super::streams::What;
use super::tables::{Regime, output};
use super::{Checker, State};
use crate::cache::World;
use crate::observer::{Descriptor, Level1};
use crate::smmu::Smmu;
use crate::spec::cd::{CD_SHIFT, L1CD_SHIFT, L1Cd};
use crate::spec::registers as r;
use crate::spec::ste::{L1STD_SHIFT, L1Std, STE_SHIFT};
use crate::translate::{Path, Stream};

/// Doublewords that are read at most: a guest may describe any number of tables.
const READS: u32 = 1 << 18;

/// What is the same for all tables of one walk.
struct Tree {
    granule: Granule,
    pa52: bool,
    sid: u32,
    cd: u32,
    regime: Regime,
}

/// Reads memory as an SMMU would that reads everything.
struct Reader<'a> {
    state: &'a mut State,
    left: u32,
}

impl Checker {
    /// The guest is under way: takes what `smmu` has in its registers and what is in memory. To be called once, before
    /// anything else. In reset, there is nothing to take.
    pub fn resume(&self, smmu: &Smmu) {
        let mut state = self.state();
        let regs = &smmu.regs;
        state.streams.set_e2h(regs.cr2 & r::cr2::E2H != 0, &smmu.config);
        state.commands = Commands::new(regs.cmdq, &smmu.config);
        state.commands.stopped = regs.gerror != regs.gerrorn;
        state.cr0_written(regs.cr0);
        for (index, queue) in [&regs.eventq, &regs.priq].into_iter().enumerate() {
            state.output_queue(index, 0, queue.prod);
            state.output_queue(index, 1, queue.cons);
        }
        if state.smmuen {
            Reader { state: &mut state, left: READS }.streams(smmu);
        }
    }
}

impl Reader<'_> {
    fn word(&mut self, at: u64) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        self.state.memory.read(at)
    }

    /// The STE or CD at `at`, zeroes unless bit `valid` of it is set.
    fn structure(&mut self, at: u64, valid: u32) -> Option<[u64; 8]> {
        let mut words = [0; 8];
        let first = self.word(at)?;
        if first >> valid & 1 != 0 {
            words[0] = first;
            for (n, word) in words.iter_mut().enumerate().skip(1) {
                *word = self.word(at + 8 * n as u64)?;
            }
        }
        Some(words)
    }

    /// Every STE of the stream table.
    fn streams(&mut self, smmu: &Smmu) {
        let (base, log2, split) = smmu.stream_table_shape();
        let Some(split) = split else {
            return self.level2_streams(base, 0, 1 << log2);
        };
        for n in 0..1u64 << log2.saturating_sub(split) {
            let at = base + (n << L1STD_SHIFT);
            let Some(word) = self.word(at) else { return };
            let first = (n << split) as u32;
            self.state.level1_fetched(Level1::Stream { first, split }, at, word);
            let span = L1Std(word).span();
            if (1..=split + 1).contains(&span) {
                let shift = span - 1 + STE_SHIFT;
                self.level2_streams(L1Std(word).l2ptr() >> shift << shift, first, 1 << (span - 1));
            }
        }
    }

    fn level2_streams(&mut self, table: u64, first: u32, count: u64) {
        for n in 0..count {
            let at = table + (n << STE_SHIFT);
            let Some(words) = self.structure(at, 0) else { return };
            if words[0] == 0 {
                continue;
            }
            let sid = first | n as u32;
            self.state.structure(What::Ste(sid), at, &words);
            if let Some(stream) = self.state.streams.stream(sid) {
                self.stream(sid, &stream);
            }
        }
    }

    /// What an STE leads to. CDs behind stage 2 are left out: their addresses are IPAs.
    fn stream(&mut self, sid: u32, stream: &Stream) {
        if stream.path.has_stage2() {
            let t = &stream.stage2.tables;
            let regime = Regime { world: World::NsEl1Stage2, vmid: stream.vmid, asid: 0 };
            let tree = Tree { granule: t.granule, pa52: t.pa52, sid, cd: 0, regime };
            self.first_table(&tree, Walk::stage2(t, 0), 64 - t.tsz, 0);
        }
        if stream.path != Path::Stage1 {
            return;
        }
        let Some(split) = stream.cds.split.map(u32::from) else {
            return self.level2_contexts(sid, stream, stream.cds.base, 0, 1 << stream.cds.max);
        };
        for n in 0..1u64 << u32::from(stream.cds.max).saturating_sub(split) {
            let at = stream.cds.base + (n << L1CD_SHIFT);
            let Some(word) = self.word(at) else { return };
            let first = (n << split) as u32;
            self.state.level1_fetched(Level1::Cd { sid, first, split }, at, word);
            if L1Cd(word).v() {
                self.level2_contexts(sid, stream, L1Cd(word).l2ptr(), first, 1 << split);
            }
        }
    }

    fn level2_contexts(&mut self, sid: u32, stream: &Stream, table: u64, first: u32, count: u64) {
        for n in 0..count {
            let at = table + (n << CD_SHIFT);
            let Some(words) = self.structure(at, 31) else { return };
            if words[0] == 0 {
                continue;
            }
            let cd = first | n as u32;
            self.state.structure(What::Cd(sid, cd), at, &words);
            let contexts: Vec<_> = self.state.streams.contexts(sid, cd).copied().collect();
            for c in contexts {
                let regime = Regime { world: stream.world, vmid: stream.vmid, asid: c.asid };
                for (table, off) in [(&c.lower, c.ranges.epd0), (&c.upper, c.ranges.epd1)] {
                    if !off {
                        let tree = Tree { granule: table.granule, pa52: table.pa52, sid, cd, regime };
                        let high = if table.upper { !(u64::MAX >> table.tsz.min(63)) } else { 0 };
                        self.first_table(&tree, Walk::stage1(table, 0), 64 - table.tsz.min(63), high);
                    }
                }
            }
        }
    }

    fn first_table(&mut self, tree: &Tree, step: Step, bits: u8, high: u64) {
        if let Step::Fetch(walk) = step {
            let entries = 1u64.checked_shl(u32::from(bits.saturating_sub(tree.granule.shift(walk.level()))));
            self.table(tree, walk.address(), walk.level(), entries.unwrap_or(0), high, true);
        }
    }

    fn table(&mut self, tree: &Tree, table: u64, level: i8, entries: u64, input: u64, first: bool) {
        for n in 0..entries {
            let at = table + 8 * n;
            let Some(value) = self.word(at) else { return };
            let kind = d::kind(value, tree.granule, level, tree.pa52);
            if kind == Is::Invalid {
                continue;
            }
            let input = input | n << tree.granule.shift(level);
            let Regime { world, vmid, asid } = tree.regime;
            let Tree { granule, pa52, sid, cd, .. } = *tree;
            self.state.descriptor(&Descriptor {
                at,
                value,
                level,
                first,
                granule,
                pa52,
                input,
                sid,
                cd,
                world,
                vmid,
                asid,
            });
            if kind == Is::Table && level < 3 {
                let to = output(value, false, granule, level, pa52);
                self.table(tree, to, level + 1, granule.bytes() / 8, input, false);
            }
        }
    }
}
