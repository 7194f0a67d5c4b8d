//! The interrupt controller: registers of all its parts, ITS commands, LPIs and MSIs.

use arbitrary::Arbitrary;
use devices::dma::{ItsInbox, Message};
use devices::gic::{Config, Gic};
use guest_ram::GuestRam;

use crate::value::{RAM, RAM_SIZE, Size, Value};

const QUEUE: u64 = RAM;
const QUEUE_SIZE: u64 = 0x1000;
const DEVICES: u64 = RAM + 0x1_0000;
const COLLECTIONS: u64 = RAM + 0x2_0000;
const ITT: u64 = RAM + 0x3_0000;
const CONFIG: u64 = RAM + 0x4_0000;
const PENDING: u64 = RAM + 0x10_0000;
const VALID: u64 = 1 << 63;
/// Commands in the largest queue, 256 pages.
const MOST_COMMANDS: usize = 256 * 128;

/// An ITS command.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Command {
    /// MAPD: device, bits, valid.
    Mapd(u8, u8, bool),
    /// MAPC: collection, PE, valid.
    Mapc(u8, u8, bool),
    /// MAPTI or MAPI: device, event, LPI, collection.
    Mapti(u8, u8, u8, u8, bool),
    /// Anything else about an event: opcode, device, event, collection.
    Event(u8, u8, u8, u8),
    /// MOVALL and the like: opcode, from, to.
    Pes(u8, u8, u8),
    /// An opcode with any fields.
    Fields(u8, Value, Value, Value),
    /// Any.
    Raw([u64; 4]),
}

impl Command {
    fn words(self) -> [u64; 4] {
        let device = |n: u8| u64::from(n & 7) << 32;
        match self {
            Command::Mapd(d, bits, valid) => {
                let at = ITT + u64::from(d & 7) * 0x1000;
                [device(d) | 0x08, u64::from(bits & 31), u64::from(valid) << 63 | at, 0]
            }
            Command::Mapc(c, pe, valid) => {
                [0x09, 0, u64::from(valid) << 63 | u64::from(pe & 7) << 16 | u64::from(c & 7), 0]
            }
            Command::Mapti(d, event, lpi, c, with_lpi) => {
                let (op, event, lpi) = (if with_lpi { 0x0a } else { 0x0b }, u64::from(event), u64::from(lpi));
                [device(d) | op, (8192 + lpi) << 32 | event, u64::from(c & 7), 0]
            }
            Command::Event(op, d, event, c) => {
                [device(d) | u64::from(op & 15), u64::from(event), u64::from(c & 7), 0]
            }
            Command::Pes(op, from, to) => {
                [u64::from(op & 15), 0, u64::from(from & 7) << 16, u64::from(to & 7) << 16]
            }
            Command::Fields(op, a, b, c) => [a.get() & !0xff | u64::from(op & 15), b.get(), c.get(), a.get()],
            Command::Raw(words) => words,
        }
    }
}

/// Something that happens.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Op {
    /// An access to the distributor.
    Gicd(u16, Size, Value),
    /// An access to a redistributor: PE, offset in its two frames.
    Gicr(u8, u32, Size, Value),
    /// A register of a redistributor that LPIs depend on.
    Lpis(u8, u8, Size, Value),
    /// An access to the ITS.
    Gits(u32, Size, Value),
    /// A low register of the ITS.
    Its(u8, Size, Value),
    /// Any offset, in any of the three.
    Far(u8, Value, Size, Value),
    /// A system register.
    Icc(u8, u16, Value),
    /// A system register of op0=3, CRn=12 by CRm and op2.
    Interface(u8, u8, Value),
    /// A PE acknowledges and ends an interrupt.
    Service(u8),
    /// A wire.
    Wire(u8, u8, bool),
    /// A device's message.
    Msi(u8, u8),
    /// A message of any device.
    AnyMsi(u32, u32),
    /// Memory changes.
    Memory(Value, Value),
    /// LPIs' configuration bytes: first, value.
    Configure(u8, u8),
    /// A command.
    Command(Command),
    /// The ITS does this many steps.
    Steps(u8),
    /// The state is saved and restored.
    Snapshot,
}

/// A run.
#[derive(Clone, Debug, Arbitrary)]
pub struct Input {
    cpus: u8,
    spis: u16,
    its: bool,
    started: bool,
    ops: Vec<Op>,
}

struct Bench {
    gic: Gic,
    ram: GuestRam,
    inbox: ItsInbox,
    cpus: u64,
}

impl Bench {
    fn new(input: &Input) -> Self {
        let ram = GuestRam::new(RAM, RAM_SIZE).expect("the host has a little memory");
        let inbox = ItsInbox::default();
        // Large ones take time and differ little.
        let cpus = 1 + u32::from(if input.cpus > 0xf0 { input.cpus & 15 } else { input.cpus & 3 });
        let spis = u32::from(if input.spis > 0xf000 { input.spis % 1100 } else { input.spis % 97 });
        let config = Config { cpus, spis, its: input.its };
        Bench { gic: Gic::new(config, ram.clone(), inbox.clone()), ram, inbox, cpus: cpus.into() }
    }

    /// What Linux does before its first interrupt.
    fn start(&mut self) {
        self.gic.gicd_write(0, 4, 0x13);
        for bank in 1..4 {
            self.gic.gicd_write(0x80 + 4 * bank, 4, 0xffff_ffff);
            self.gic.gicd_write(0x100 + 4 * bank, 4, 0xffff_ffff);
        }
        self.ram.write(CONFIG, &[0xa1; 512]);
        for cpu in 0..self.cpus {
            let frame = cpu * 0x2_0000;
            self.gic.gicr_write(frame + 0x14, 4, 0);
            self.gic.gicr_write(frame + 0x1_0080, 4, 0xffff_ffff);
            self.gic.gicr_write(frame + 0x1_0100, 4, 0xffff_ffff);
            self.gic.gicr_write(frame + 0x70, 8, CONFIG | 13);
            self.gic.gicr_write(frame + 0x78, 8, PENDING + cpu * 0x1_0000);
            self.gic.gicr_write(frame, 4, 1);
            for (register, value) in [(key(4, 6, 0), 0xff), (key(12, 12, 6), 1), (key(12, 12, 7), 1)] {
                self.gic.icc_write(cpu as usize, register, value);
            }
        }
        self.gic.gits_write(0x100, 8, VALID | DEVICES);
        self.gic.gits_write(0x108, 8, VALID | COLLECTIONS);
        self.gic.gits_write(0x80, 8, VALID | QUEUE);
        self.gic.gits_write(0, 4, 1);
        for cpu in 0..self.cpus.min(8) as u8 {
            self.command(Command::Mapc(cpu, cpu, true).words());
        }
        self.command(Command::Mapd(1, 4, true).words());
        for event in 0..4 {
            self.command(Command::Mapti(1, event, event, event, true).words());
        }
    }

    fn command(&mut self, words: [u64; 4]) {
        let at = self.gic.gits_read(0x88, 8) & (QUEUE_SIZE - 1) & !31;
        for (n, word) in words.iter().enumerate() {
            self.ram.write(QUEUE + at + 8 * n as u64, &word.to_le_bytes());
        }
        self.gic.gits_write(0x88, 8, (at + 32) % QUEUE_SIZE);
        self.steps(4);
    }

    fn steps(&mut self, most: usize) -> bool {
        for _ in 0..most {
            if !self.gic.command_pending() {
                break;
            }
            self.gic.step_command();
        }
        self.gic.step_msi();
        self.gic.command_pending()
    }

    fn apply(&mut self, op: Op) {
        let gic = &mut self.gic;
        // One more than there are.
        let frame = |cpu: u8| u64::from(cpu) % (self.cpus + 1) * 0x2_0000;
        let cpu = |n: u8| usize::from(n) % (self.cpus as usize + 1);
        match op {
            Op::Gicd(offset, size, value) => {
                let offset = size.align(offset.into());
                gic.gicd_write(offset, size.get(), value.get());
                gic.gicd_read(offset, size.get());
            }
            Op::Gicr(n, offset, size, value) => {
                let offset = frame(n) + size.align(u64::from(offset) % 0x2_0000);
                gic.gicr_write(offset, size.get(), value.get());
                gic.gicr_read(offset, size.get());
            }
            Op::Lpis(n, offset, size, value) => {
                let offset = frame(n) + size.align(offset.into());
                gic.gicr_write(offset, size.get(), value.get());
                gic.gicr_read(offset, size.get());
            }
            Op::Gits(offset, size, value) => {
                let offset = size.align(offset.into());
                gic.gits_write(offset, size.get(), value.get());
                gic.gits_read(offset, size.get());
            }
            Op::Its(offset, size, value) => {
                let offset = size.align(u64::from(offset) * 2);
                gic.gits_write(offset, size.get(), value.get());
                gic.gits_read(offset, size.get());
            }
            Op::Far(which, offset, size, value) => {
                let (offset, size, value) = (offset.get(), size.get(), value.get());
                match which % 3 {
                    0 => {
                        gic.gicd_write(offset, size, value);
                        gic.gicd_read(offset, size);
                    }
                    1 => {
                        gic.gicr_write(offset, size, value);
                        gic.gicr_read(offset, size);
                    }
                    _ => {
                        gic.gits_write(offset, size, value);
                        gic.gits_read(offset, size);
                    }
                }
            }
            Op::Icc(n, register, value) => {
                gic.icc_write(cpu(n), register, value.get());
                gic.icc_read(cpu(n), register);
            }
            Op::Interface(n, register, value) => {
                let register = key(12, u16::from(register >> 3 & 15), u16::from(register & 7));
                gic.icc_write(cpu(n), register, value.get());
                gic.icc_read(cpu(n), register);
            }
            Op::Service(n) => {
                if let Some(intid) = gic.icc_read(cpu(n), key(12, 12, 0)) {
                    gic.icc_write(cpu(n), key(12, 12, 1), intid);
                }
            }
            Op::Wire(n, intid, level) => {
                gic.set_spi(intid.into(), level);
                gic.set_ppi(cpu(n), (intid & 63).into(), level);
            }
            Op::Msi(device, event) => {
                self.inbox.post(Message { device_id: (device & 7).into(), event_id: event.into() });
            }
            Op::AnyMsi(device_id, event_id) => {
                self.inbox.post(Message { device_id, event_id });
            }
            Op::Memory(at, value) => {
                self.ram.write(at.get(), &value.get().to_le_bytes());
            }
            Op::Configure(first, value) => {
                self.ram.write(CONFIG + u64::from(first), &[value; 8]);
            }
            Op::Command(command) => self.command(command.words()),
            Op::Steps(n) => {
                self.steps(n.into());
            }
            Op::Snapshot => {
                let saved = gic.save();
                assert_eq!(gic.restore(saved.clone()), Ok(()));
                assert!(gic.save() == saved, "restoring gives what was saved");
            }
        }
    }
}

/// The key of a system register with op0=3, op1=0: the encoding without those.
fn key(crn: u16, crm: u16, op2: u16) -> u16 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

/// Runs it.
pub fn run(input: Input) {
    let mut bench = Bench::new(&input);
    if input.started {
        bench.start();
    }
    for op in input.ops.into_iter().take(128) {
        bench.apply(op);
    }
    assert!(!bench.steps(MOST_COMMANDS + 1), "the ITS comes to rest");
    for _ in 0..=ItsInbox::CAPACITY {
        bench.gic.step_msi();
    }
    assert!(!bench.gic.msi_pending());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first message arrives: otherwise the target would look at refusals only.
    #[test]
    fn prepared_interrupts_arrive() {
        let input = Input { cpus: 1, spis: 64, its: true, started: true, ops: Vec::new() };
        let mut bench = Bench::new(&input);
        bench.start();
        bench.apply(Op::Msi(1, 1));
        bench.steps(1);
        assert_eq!(bench.gic.icc_read(1, key(12, 12, 0)), Some(8193));
        assert_eq!(bench.gic.its_command_errors(), 0);
    }
}
