//! Walks with any configuration over any descriptors.

use std::cell::Cell;

use arbitrary::Arbitrary;
use pgtable::{
    Access, Controls, Dump, Granule, Leaf, Nested, NestedStep, NestedWalk, Ranges, Stage1, Stage2, Step,
    Style, Walk, table_base,
};

use crate::value::Value;

/// A descriptor.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Descriptor {
    /// A table at a page, with hierarchical attributes.
    Table(u16, u8),
    /// A page or block at a page, with low and high attributes.
    Leaf(u16, u16, u16),
    /// Any.
    Any(Value),
}

impl Descriptor {
    fn get(self) -> u64 {
        match self {
            Descriptor::Table(page, attrs) => 3 | u64::from(page) << 16 | u64::from(attrs) << 56,
            // Bit 1 tells pages from blocks.
            Descriptor::Leaf(page, low, high) => {
                1 | u64::from(page) << 30 | u64::from(low & 0xfff) | u64::from(high) << 48
            }
            Descriptor::Any(value) => value.get(),
        }
    }
}

/// A table base, of either stage.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Table {
    granule: u8,
    tsz: u8,
    sane: bool,
    ttb: Value,
    oas: u8,
    flags: u16,
    sl0: u8,
}

impl Table {
    fn granule(&self) -> Granule {
        [Granule::G4K, Granule::G16K, Granule::G64K][usize::from(self.granule) % 3]
    }

    fn tsz(&self) -> u8 {
        if self.sane { 12 + self.tsz % 37 } else { self.tsz }
    }

    /// Hardware has none but these.
    fn oas(&self) -> u8 {
        [32, 36, 40, 42, 44, 48, 52, 48][usize::from(self.oas & 7)]
    }

    fn flag(&self, n: u32) -> bool {
        self.flags >> n & 1 == 1
    }

    fn stage1(&self) -> Stage1 {
        Stage1 {
            granule: self.granule(),
            tsz: self.tsz(),
            ttb: table_base(self.ttb.get(), self.flag(6)),
            oas: self.oas(),
            upper: self.flag(0),
            hpd: self.flag(1),
            ha: self.flag(2),
            hd: self.flag(3),
            affd: self.flag(4),
            single: self.flag(5),
            pa52: self.flag(6),
            lva: self.flag(7),
            ttst: self.flag(8),
            sh: (self.flags >> 9) as u8 & 3,
        }
    }

    fn stage2(&self) -> Stage2 {
        Stage2 {
            granule: self.granule(),
            tsz: self.tsz(),
            sl0: if self.sane { self.sl0 % 5 } else { self.sl0 },
            ttb: table_base(self.ttb.get(), self.flag(6)),
            oas: self.oas(),
            ha: self.flag(2),
            hd: self.flag(3),
            affd: self.flag(4),
            pa52: self.flag(6),
            ttst: self.flag(8),
            sh: (self.flags >> 9) as u8 & 3,
        }
    }
}

/// A run.
#[derive(Clone, Debug, Arbitrary)]
pub struct Input {
    table1: Table,
    table2: Table,
    address: Value,
    /// Descriptors in the order in which they are fetched; after the last, the first is next.
    descriptors: Vec<Descriptor>,
    t1sz: u8,
    flags: u8,
    access: u8,
}

/// Levels -1 to 3.
const MOST: usize = 5;

/// Runs it.
pub fn run(input: Input) {
    let (stage1, stage2, address) = (input.table1.stage1(), input.table2.stage2(), input.address.get());
    let next = Cell::new(0);
    let descriptor = || {
        let n = next.replace(next.get() + 1);
        input.descriptors.get(n % input.descriptors.len().max(1)).map_or(0, |d| d.get())
    };
    ranges(&input, address);
    walk(Walk::stage1(&stage1, address), &input, stage1.pa52, stage1.oas, &descriptor);
    walk(Walk::stage2(&stage2, address), &input, stage2.pa52, stage2.oas, &descriptor);
    let _ = stage2.fits(stage1.oas);
    nested(NestedWalk::start(&stage1, &stage2, input.flags & 1 != 0, address), &input, &descriptor);
    for style in [Style::Tree, Style::Ranges] {
        let dump = Dump { style, max_lines: 40, max_fetches: 1000 };
        // Tables that do not change while they are printed.
        let fetch = |at: u64| {
            let n = (at >> 3 ^ at >> 12) as usize % (input.descriptors.len() + 1);
            input.descriptors.get(n).map(|d| d.get())
        };
        let mut text = String::new();
        dump.stage1(&mut text, &stage1, &fetch).expect("a string takes anything");
        dump.stage2(&mut text, &stage2, &fetch).expect("a string takes anything");
        assert!(text.lines().count() <= 2 * 45, "{text}");
    }
}

fn ranges(input: &Input, address: u64) {
    let flag = |n: u32| input.flags >> n & 1 == 1;
    let ranges = Ranges {
        t0sz: input.table1.tsz(),
        t1sz: input.t1sz,
        tbi0: flag(1),
        tbi1: flag(2),
        epd0: flag(3),
        epd1: flag(4),
        single: flag(5),
    };
    let _ = ranges.select(address);
}

fn walk(mut step: Step, input: &Input, pa52: bool, oas: u8, descriptor: &dyn Fn() -> u64) {
    let mut level = None;
    for _ in 0..=MOST {
        step = match step {
            Step::Fetch(walk) => {
                assert!(level.is_none_or(|level| walk.level() == level + 1), "each fetch is one level down");
                level = Some(walk.level());
                assert!((-1..=3).contains(&walk.level()) && walk.address() & 7 == 0);
                assert!(walk.address() >> oas.min(if pa52 { 52 } else { 48 }) == 0, "{walk:x?}");
                walk.next(descriptor())
            }
            Step::Done(leaf) => {
                // A block may be larger than the output size; then only its base is checked (DDI 0487, D8.2.1).
                let base = leaf.pa & !(leaf.size - 1);
                assert!(base >> oas.min(if pa52 { 52 } else { 48 }) == 0, "{leaf:x?}");
                return check(&leaf, input);
            }
            Step::Fault(fault) => {
                assert!((-1..=3).contains(&fault.level), "{fault:?}");
                return;
            }
        };
    }
    panic!("a walk has five fetches at most");
}

fn nested(mut step: NestedStep, input: &Input, descriptor: &dyn Fn() -> u64) {
    for _ in 0..=(MOST + 1) * (MOST + 1) {
        step = match step {
            NestedStep::Fetch(walk) => {
                let (stage, level) = walk.stage_and_level();
                assert!(matches!(stage, 1 | 2) && (-1..=3).contains(&level));
                assert_eq!(walk.table_leaf().is_some(), stage == 1);
                let _ = walk.external();
                let _ = walk.address();
                walk.next(descriptor())
            }
            NestedStep::Stage1(done) => {
                check(&done.leaf, input);
                done.output()
            }
            NestedStep::Done(both) => {
                let Nested { stage1, stage2 } = both;
                assert_eq!(both.size(), stage1.size.min(stage2.size));
                return check(&stage2, input);
            }
            NestedStep::Fault(_) => return,
        };
    }
    panic!("a nested walk does not end");
}

fn check(leaf: &Leaf, input: &Input) {
    let flag = |n: u32| input.access >> n & 1 == 1;
    assert!(leaf.size.is_power_of_two() && leaf.span().is_multiple_of(leaf.size) && leaf.at & 7 == 0);
    let access = Access { write: flag(0), instruction: flag(1), privileged: flag(2) };
    let controls = Controls { wxn: flag(3), pan: flag(4), epan: flag(5), xnx: flag(6) };
    assert_eq!(leaf.check(&access, &controls).is_ok(), leaf.permissions(&controls).allow(&access));
    let _ = (leaf.attr_index(), leaf.mem_attr(), leaf.shareability(), leaf.ap(), leaf.xn(), leaf.pxn());
    let _ = (leaf.needs_af(), leaf.needs_dirty(), leaf.updated(flag(0)), leaf.table);
}
