//! Any register of the SMMU, at any time.

use arbitrary::Arbitrary;
use smmu_model::spec::registers as r;

use crate::smmu::{Command, Dma, Rig, Shape};
use crate::value::{Size, Value};

/// Registers by name: random offsets seldom find them.
const REGISTERS: [u64; 32] = [
    r::CR0,
    r::CR0ACK,
    r::CR1,
    r::CR2,
    r::STATUSR,
    r::GBPA,
    r::AGBPA,
    r::IRQ_CTRL,
    r::IRQ_CTRLACK,
    r::GERROR,
    r::GERRORN,
    r::GERROR_IRQ_CFG0,
    r::GERROR_IRQ_CFG0 + 4,
    r::GERROR_IRQ_CFG1,
    r::GERROR_IRQ_CFG2,
    r::STRTAB_BASE,
    r::STRTAB_BASE + 4,
    r::STRTAB_BASE_CFG,
    r::CMDQ_BASE,
    r::CMDQ_BASE + 4,
    r::CMDQ_PROD,
    r::CMDQ_CONS,
    r::EVENTQ_BASE,
    r::EVENTQ_BASE + 4,
    r::EVENTQ_IRQ_CFG0,
    r::EVENTQ_IRQ_CFG1,
    r::EVENTQ_IRQ_CFG2,
    r::EVENTQ_PROD,
    r::EVENTQ_CONS,
    0xa8,
    0xac,
    r::IDR0,
];

/// Where an access goes.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Register {
    /// One of the list.
    Named(u8),
    /// In the first 1 KiB.
    Low(u8),
    /// Anywhere.
    Any(u32),
    /// Far out.
    Far(Value),
}

impl Register {
    fn get(self) -> u64 {
        match self {
            Register::Named(n) => REGISTERS[usize::from(n) % REGISTERS.len()],
            Register::Low(n) => u64::from(n) * 4,
            Register::Any(n) => n.into(),
            Register::Far(n) => n.get(),
        }
    }
}

/// Something that happens.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Op {
    /// A register is written.
    Write(Register, Size, Value),
    /// A register is read.
    Read(Register, Size),
    /// CR0.
    Enable(u8),
    /// GERRORN follows GERROR.
    Acknowledge,
    /// The agents do this many steps.
    Agents(u8),
    /// A transaction begins.
    Begin(Dma),
    /// A transaction goes on.
    Step(u8),
    /// A transaction ends.
    Complete(u8),
    /// A command is queued.
    Command(Command),
    /// Memory changes.
    Memory(Value, Value),
}

/// A run.
#[derive(Clone, Debug, Arbitrary)]
pub struct Input {
    shape: Shape,
    prepared: bool,
    two_level: bool,
    ops: Vec<Op>,
}

/// Runs it.
pub fn run(input: Input) {
    let mut rig =
        if input.prepared { Rig::prepared(input.shape, input.two_level) } else { Rig::new(input.shape) };
    for op in input.ops.into_iter().take(256) {
        match op {
            Op::Write(register, size, value) => rig.smmu.mmio_write(register.get(), size.get(), value.get()),
            Op::Read(register, size) => {
                let value = rig.smmu.mmio_read(register.get(), size.get());
                assert!(size.get() != 4 || value.is_none_or(|value| value >> 32 == 0));
            }
            Op::Enable(value) => rig.smmu.mmio_write(r::CR0, 4, value.into()),
            Op::Acknowledge => {
                let active = rig.smmu.mmio_read(r::GERROR, 4).unwrap_or(0);
                rig.smmu.mmio_write(r::GERRORN, 4, active);
            }
            Op::Agents(n) => (0..n & 31).for_each(|_| {
                rig.agents();
            }),
            Op::Begin(dma) => {
                rig.begin(dma);
            }
            Op::Step(n) => {
                rig.step(n.into());
            }
            Op::Complete(n) => rig.complete(n.into()),
            Op::Command(command) => rig.push(command.words()),
            Op::Memory(at, value) => {
                rig.ram.write(at.get(), &value.get().to_le_bytes());
            }
        }
    }
    rig.finish();
}
