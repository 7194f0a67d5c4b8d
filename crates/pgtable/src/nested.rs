//! Two-stage translation: a stage 1 walk whose descriptor addresses and output are intermediate, and go through stage 2
//! (DDI 0487, D8.1.2; IHI 0070, 3.3.2). Still one descriptor a step.

use serde::{Deserialize, Serialize};

use crate::config::{Stage1, Stage2};
use crate::fault::{Fault, FaultKind};
use crate::leaf::{Access, Controls, Leaf};
use crate::walk::{Step, Walk};

/// What stage 2 was translating: the class of an SMMU event (IHI 0070, 7.3), or the CPU's S1PTW.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// The address of a stage 1 descriptor (SMMU: TTD).
    Table,
    /// The output of stage 1 (SMMU: IN).
    Output,
}

/// Which stage failed, and at what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NestedFault {
    /// Stage 1 failed.
    Stage1(Fault),
    /// Stage 2 failed on `ipa`.
    Stage2 {
        /// The fault.
        fault: Fault,
        /// The intermediate address that stage 2 was given.
        ipa: u64,
        /// What that address is.
        class: Class,
    },
}

/// What a nested walk wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NestedStep {
    /// Fetch the 8-byte descriptor at [`NestedWalk::address`] and call [`NestedWalk::next`] with it.
    Fetch(NestedWalk),
    /// Stage 1 is complete. Its permission faults come before anything of stage 2's, so check the leaf here, and then
    /// go on with [`Stage1Done::output`].
    Stage1(Stage1Done),
    /// Both stages are complete.
    Done(Nested),
    /// The walk failed.
    Fault(NestedFault),
}

/// The result of both stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nested {
    /// The stage 1 leaf; its `pa` is the intermediate address.
    pub stage1: Leaf,
    /// The stage 2 leaf; its `pa` is the output of the whole.
    pub stage2: Leaf,
}

impl Nested {
    /// Size of the largest aligned region around the input that this result translates: the smaller of the two leaves.
    pub const fn size(&self) -> u64 {
        if self.stage1.size < self.stage2.size { self.stage1.size } else { self.stage2.size }
    }
}

/// A finished stage 1 that waits to go through stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage1Done {
    /// The leaf.
    pub leaf: Leaf,
    stage2: Stage2,
}

impl Stage1Done {
    /// Begins the stage 2 walk of the output.
    pub fn output(&self) -> NestedStep {
        let common = Common { stage2: self.stage2, ptw: false };
        common.stage2_step(Purpose::Output(self.leaf), Walk::stage2(&self.stage2, self.leaf.pa))
    }
}

/// What a stage 2 walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Purpose {
    /// The descriptor that this stage 1 walk wants.
    Table(Walk),
    /// The output of stage 1.
    Output(Leaf),
}

impl Purpose {
    const fn ipa(&self) -> u64 {
        match self {
            Self::Table(walk) => walk.address(),
            Self::Output(leaf) => leaf.pa,
        }
    }

    const fn fault(&self, fault: Fault) -> NestedFault {
        let class = if matches!(self, Self::Output(_)) { Class::Output } else { Class::Table };
        NestedFault::Stage2 { fault, ipa: self.ipa(), class }
    }
}

/// Which descriptor is being fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// One of stage 2.
    Stage2(Purpose, Walk),
    /// One of stage 1, whose address stage 2 has translated: the leaf.
    Stage1(Walk, Leaf),
}

/// What stays the same throughout a nested walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Common {
    stage2: Stage2,
    ptw: bool,
}

/// A nested walk that waits for a descriptor. Plain data, as [`Walk`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NestedWalk {
    common: Common,
    phase: Phase,
}

impl NestedWalk {
    /// Begins the walk of `va`, which belongs to `stage1` (see [`Ranges::select`](crate::Ranges::select)). `ptw`: a
    /// stage 1 table in memory that stage 2 says is Device is a Permission fault (HCR_EL2.PTW, STE.S2PTW).
    pub fn start(stage1: &Stage1, stage2: &Stage2, ptw: bool, va: u64) -> NestedStep {
        Common { stage2: *stage2, ptw }.stage1_step(Walk::stage1(stage1, va))
    }

    /// Physical address of the descriptor to fetch.
    pub const fn address(&self) -> u64 {
        match &self.phase {
            Phase::Stage2(_, walk) => walk.address(),
            Phase::Stage1(_, leaf) => leaf.pa,
        }
    }

    /// The stage that the descriptor belongs to, 1 or 2, and its lookup level.
    pub const fn stage_and_level(&self) -> (u8, i8) {
        match &self.phase {
            Phase::Stage2(_, walk) => (2, walk.level()),
            Phase::Stage1(walk, _) => (1, walk.level()),
        }
    }

    /// The fault to report if the descriptor cannot be fetched.
    pub const fn external(&self) -> NestedFault {
        match &self.phase {
            Phase::Stage2(purpose, walk) => purpose.fault(Fault::new(FaultKind::External, walk.level())),
            Phase::Stage1(walk, _) => NestedFault::Stage1(Fault::new(FaultKind::External, walk.level())),
        }
    }

    /// While a stage 1 descriptor is fetched: the stage 2 leaf that its address went through, for the memory attributes
    /// of the fetch and for setting the leaf's Access flag (HTTU).
    pub const fn table_leaf(&self) -> Option<&Leaf> {
        match &self.phase {
            Phase::Stage1(_, leaf) => Some(leaf),
            Phase::Stage2(..) => None,
        }
    }

    /// Goes on with the descriptor that was asked for.
    pub fn next(&self, descriptor: u64) -> NestedStep {
        match self.phase {
            Phase::Stage1(walk, _) => self.common.stage1_step(walk.next(descriptor)),
            Phase::Stage2(purpose, walk) => self.common.stage2_step(purpose, walk.next(descriptor)),
        }
    }
}

impl Common {
    fn stage1_step(self, step: Step) -> NestedStep {
        match step {
            Step::Fetch(walk) => {
                self.stage2_step(Purpose::Table(walk), Walk::stage2(&self.stage2, walk.address()))
            }
            Step::Done(leaf) => NestedStep::Stage1(Stage1Done { leaf, stage2: self.stage2 }),
            Step::Fault(fault) => NestedStep::Fault(NestedFault::Stage1(fault)),
        }
    }

    fn stage2_step(self, purpose: Purpose, step: Step) -> NestedStep {
        let leaf = match step {
            Step::Fetch(walk) => {
                return NestedStep::Fetch(NestedWalk { common: self, phase: Phase::Stage2(purpose, walk) });
            }
            Step::Fault(fault) => return NestedStep::Fault(purpose.fault(fault)),
            Step::Done(leaf) => leaf,
        };
        let walk = match purpose {
            Purpose::Output(stage1) => return NestedStep::Done(Nested { stage1, stage2: leaf }),
            Purpose::Table(walk) => walk,
        };
        let read = Access { privileged: true, ..Access::default() };
        let device = leaf.mem_attr() & 0b1100 == 0;
        if leaf.check(&read, &Controls::default()).is_err() || self.ptw && device {
            return NestedStep::Fault(purpose.fault(Fault::new(FaultKind::Permission, leaf.level)));
        }
        NestedStep::Fetch(NestedWalk { common: self, phase: Phase::Stage1(walk, leaf) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Builder, TableMemory, descriptor as d};

    /// Stage 1 tables sit at IPA 0x8000_0000, which stage 2 puts 4 GiB higher.
    struct World {
        memory: BTreeMap<u64, u64>,
        stage1: Stage1,
        stage2: Stage2,
        tables1: Builder,
        tables2: Builder,
    }

    /// Intermediate memory as stage 1's builder sees it.
    struct Shifted<'a>(&'a mut BTreeMap<u64, u64>);

    impl TableMemory for Shifted<'_> {
        fn read(&self, address: u64) -> Option<u64> {
            self.0.read(address + (4 << 30))
        }
        fn write(&mut self, address: u64, descriptor: u64) -> Option<()> {
            self.0.write(address + (4 << 30), descriptor)
        }
    }

    const VA: u64 = 0x40_0000;
    const IPA: u64 = 0x3000_0000;
    const PA: u64 = 0x9_0000_0000;

    fn world() -> World {
        let mut memory = BTreeMap::new();
        let mut stage1 = Stage1 { tsz: 25, oas: 40, ..Stage1::default() };
        let mut stage2 = Stage2 { tsz: 24, sl0: 1, oas: 40, ..Stage2::default() };
        let mut tables1 =
            Builder::stage1(&mut stage1, &mut Shifted(&mut memory), 0x8000_0000..0x8010_0000).unwrap();
        let mut tables2 = Builder::stage2(&mut stage2, &mut memory, 0xc000_0000..0xc010_0000).unwrap();
        tables1.map(&mut Shifted(&mut memory), VA, IPA, 0x20_0000, d::AF).unwrap();
        let normal = d::AF | d::S2AP_READ | d::mem_attr(15);
        tables2.map(&mut memory, 0x8000_0000, 0x1_8000_0000, 0x20_0000, normal).unwrap();
        tables2.map(&mut memory, IPA, PA, 0x3000, normal | d::S2AP_WRITE).unwrap();
        World { memory, stage1, stage2, tables1, tables2 }
    }

    /// The result, and the stage and level of each fetch.
    fn run(w: &World, ptw: bool, va: u64) -> (Result<Nested, NestedFault>, Vec<(u8, i8)>) {
        let mut fetches = Vec::new();
        let mut step = NestedWalk::start(&w.stage1, &w.stage2, ptw, va);
        loop {
            step = match step {
                NestedStep::Fetch(walk) => {
                    fetches.push(walk.stage_and_level());
                    walk.next(w.memory.read(walk.address()).unwrap())
                }
                NestedStep::Stage1(done) => done.output(),
                NestedStep::Done(nested) => return (Ok(nested), fetches),
                NestedStep::Fault(fault) => return (Err(fault), fetches),
            }
        }
    }

    #[test]
    fn both_stages_a_fetch_at_a_time() {
        let (result, fetches) = run(&world(), true, VA + 0x2345);
        let nested = result.unwrap();
        assert_eq!((nested.stage1.pa, nested.stage1.level), (IPA + 0x2345, 2));
        assert_eq!((nested.stage2.pa, nested.stage2.level, nested.size()), (PA + 0x2345, 3, 0x1000));
        // Stage 1 starts at level 1 and ends in a block at level 2; its tables lie in a stage 2 block.
        assert_eq!(fetches, [(2, 1), (2, 2), (1, 1), (2, 1), (2, 2), (1, 2), (2, 1), (2, 2), (2, 3)]);
    }

    #[test]
    fn faults_name_stage_and_class() {
        let mut w = world();
        let stage2 =
            |kind, level, ipa, class| Err(NestedFault::Stage2 { fault: Fault::new(kind, level), ipa, class });
        let stage1 = |kind, level| Err(NestedFault::Stage1(Fault::new(kind, level)));
        assert_eq!(
            run(&w, false, VA + 0x3000).0,
            stage2(FaultKind::Translation, 3, IPA + 0x3000, Class::Output)
        );
        assert_eq!(run(&w, false, 0).0, stage1(FaultKind::Translation, 2));
        // A stage 1 table outside what stage 2 maps.
        let table = 0x1234_5000 | d::TABLE | d::VALID;
        w.tables1.set(&mut Shifted(&mut w.memory), 1, 0x4000_0000, table).unwrap();
        let at = 0x1234_5000 + 8;
        assert_eq!(run(&w, false, 0x4020_0000).0, stage2(FaultKind::Translation, 2, at, Class::Table));
        // Stage 1 tables in Device memory, and in memory that cannot be read.
        let at = 0x8000_0000;
        w.tables2.map_one(&mut w.memory, 2, at, 0x1_8000_0000, d::AF | d::S2AP_READ).unwrap();
        assert!(run(&w, false, VA).0.is_ok());
        assert_eq!(run(&w, true, VA).0, stage2(FaultKind::Permission, 2, at, Class::Table));
        w.tables2.map_one(&mut w.memory, 2, at, 0x1_8000_0000, d::AF | d::mem_attr(15)).unwrap();
        assert_eq!(run(&w, false, VA).0, stage2(FaultKind::Permission, 2, at, Class::Table));
    }

    #[test]
    fn aborted_fetches_are_attributed() {
        let w = world();
        let mut step = NestedWalk::start(&w.stage1, &w.stage2, false, VA);
        let mut seen = Vec::new();
        loop {
            step = match step {
                NestedStep::Fetch(walk) => {
                    seen.push(walk.external());
                    assert_eq!(walk.table_leaf().is_some(), walk.stage_and_level().0 == 1);
                    walk.next(w.memory.read(walk.address()).unwrap())
                }
                NestedStep::Stage1(done) => done.output(),
                NestedStep::Done(_) => break,
                NestedStep::Fault(fault) => panic!("{fault:?}"),
            }
        }
        let external = |level| Fault::new(FaultKind::External, level);
        assert_eq!(
            seen[0],
            NestedFault::Stage2 { fault: external(1), ipa: 0x8000_0000, class: Class::Table }
        );
        assert_eq!(seen[2], NestedFault::Stage1(external(1)));
        assert_eq!(seen[8], NestedFault::Stage2 { fault: external(3), ipa: IPA, class: Class::Output });
    }
}
