//! An SMMU that is set up well, and whose tables and queues then change under it.

use arbitrary::Arbitrary;
use smmu_model::spec::registers as r;

use crate::smmu::{CDS, CDS_L1, Command, Dma, EVENTQ, Rig, STREAMS, STRTAB, STRTAB_L1, Shape};
use crate::value::Value;

/// What becomes of a word in memory.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Change {
    /// A bit flips.
    Flip(u8),
    /// Bits of a field are replaced: lowest bit, width, value.
    Field(u8, u8, u32),
    /// All of it is replaced.
    Set(Value),
    /// It points at another structure of the same kind, with these low bits.
    Point(u8, u8),
}

/// A word of a structure.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Word {
    /// Of an STE: StreamID, word.
    Ste(u8, u8),
    /// A level 1 stream table descriptor.
    L1Std(u8),
    /// Of a CD: number, word.
    Cd(u8, u8),
    /// A level 1 CD table descriptor.
    L1Cd(u8),
    /// A translation descriptor.
    Descriptor(u16),
    /// Of the event queue.
    Event(u8),
}

/// Something that happens.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Op {
    /// A structure changes.
    Change(Word, Change),
    /// A command is queued.
    Command(Command),
    /// CMDQ_PROD moves by itself.
    Prod(u16),
    /// The driver reads its events, up to this index.
    Cons(u16),
    /// ... all of them, and acknowledges an overflow.
    Events,
    /// GERRORN follows GERROR.
    Acknowledge,
    /// CR0.
    Enable(u8),
    /// GBPA, with UPDATE.
    Bypass(u32),
    /// A transaction begins.
    Begin(Dma),
    /// A transaction does this many steps.
    Step(u8, u8),
    /// A transaction ends.
    Complete(u8),
    /// A transaction from begin to end.
    Dma(Dma),
    /// The agents do this many steps.
    Agents(u8),
}

/// A run.
#[derive(Clone, Debug, Arbitrary)]
pub struct Input {
    shape: Shape,
    two_level: bool,
    ops: Vec<Op>,
}

fn change(rig: &Rig, word: Word, change: Change) {
    let at = match word {
        Word::Ste(sid, n) => STRTAB + u64::from(sid) % u64::from(STREAMS) * 64 + u64::from(n & 7) * 8,
        Word::L1Std(n) => STRTAB_L1 + u64::from(n & 7) * 8,
        Word::Cd(n, word) => CDS + u64::from(n & 127) * 64 + u64::from(word & 7) * 8,
        Word::L1Cd(n) => CDS_L1 + u64::from(n & 7) * 8,
        Word::Descriptor(n) => rig.descriptors[usize::from(n) % rig.descriptors.len()],
        Word::Event(n) => EVENTQ + u64::from(n) * 8,
    };
    let mut bytes = [0; 8];
    assert!(rig.ram.read(at, &mut bytes));
    let old = u64::from_le_bytes(bytes);
    let new = match change {
        Change::Flip(n) => old ^ 1 << (n & 63),
        Change::Field(low, width, value) => {
            let mask = ((1u64 << (width & 31)) - 1) << (low & 63);
            old & !mask | u64::from(value) << (low & 63) & mask
        }
        Change::Set(value) => value.get(),
        Change::Point(to, low) => {
            let target = match word {
                Word::Ste(..) => CDS + u64::from(to & 127) * 64,
                Word::L1Std(_) => STRTAB + u64::from(to & 63) * 64,
                Word::Cd(..) | Word::Descriptor(_) => {
                    rig.descriptors[usize::from(to) % rig.descriptors.len()] & !0xfff
                }
                Word::L1Cd(_) => CDS + u64::from(to & 127) * 64,
                Word::Event(_) => EVENTQ,
            };
            old & 0xfff0_0000_0000_0000 | target | u64::from(low)
        }
    };
    assert!(rig.ram.write(at, &new.to_le_bytes()));
}

/// Runs it.
pub fn run(input: Input) {
    let mut rig = Rig::prepared(input.shape, input.two_level);
    for op in input.ops.into_iter().take(256) {
        match op {
            Op::Change(word, how) => change(&rig, word, how),
            Op::Command(command) => rig.push(command.words()),
            Op::Prod(prod) => rig.smmu.mmio_write(r::CMDQ_PROD, 4, prod.into()),
            Op::Cons(cons) => rig.smmu.mmio_write(r::EVENTQ_CONS, 4, cons.into()),
            Op::Events => {
                let prod = rig.smmu.mmio_read(r::EVENTQ_PROD, 4).unwrap_or(0);
                rig.smmu.mmio_write(r::EVENTQ_CONS, 4, prod);
            }
            Op::Acknowledge => {
                let active = rig.smmu.mmio_read(r::GERROR, 4).unwrap_or(0);
                rig.smmu.mmio_write(r::GERRORN, 4, active);
            }
            Op::Enable(value) => rig.smmu.mmio_write(r::CR0, 4, value.into()),
            Op::Bypass(value) => {
                rig.smmu.mmio_write(r::GBPA, 4, u64::from(value) | u64::from(r::gbpa::UPDATE));
            }
            Op::Begin(dma) => {
                rig.begin(dma);
            }
            Op::Step(n, times) => (0..times & 31).for_each(|_| {
                rig.step(n.into());
            }),
            Op::Complete(n) => rig.complete(n.into()),
            Op::Dma(dma) => rig.dma(dma),
            Op::Agents(n) => (0..n & 31).for_each(|_| {
                rig.agents();
            }),
        }
    }
    rig.finish();
}
