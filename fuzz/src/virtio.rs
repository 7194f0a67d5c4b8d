//! A virtio function on a bus, its driver, and everything that driver can get wrong.

use std::sync::{Arc, Mutex, MutexGuard};

use arbitrary::Arbitrary;
use devices::dma::{Fabric, ItsInbox};
use devices::pci::{COMMAND_MASTER, COMMAND_MEMORY, PciHost, Slot, reg};
use devices::virtio::{Timing, VirtioDevice, VirtioPci, feature};
use devices::{Agent, Time};
use guest_ram::GuestRam;
use smmu_model::Smmu;
use smmu_model::spec::registers as r;

use crate::smmu::{self, Command, Iova, Kind, Shape};
use crate::value::{RAM, RAM_SIZE, Size, Value};

/// Where the function is.
pub const SLOT: Slot = Slot(1 << 3);
const ECAM: u64 = (SLOT.0 as u64) << 12;
const MSIX: u64 = 0x1000_0000;
const REGISTERS: u64 = 0x80_0000_0000;
/// Rings: three areas of a page for each queue.
const RINGS: u64 = RAM + 0x1_0000;
/// Tables of indirect descriptors.
const INDIRECT: u64 = RAM + 0x8_0000;
/// Data of the requests that are sane to begin with.
const DATA: u64 = RAM + 0x10_0000;
/// Where a message goes that is not for the ITS.
const MESSAGE: u64 = RAM + 0x11_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;
/// Marks of the descriptors of a packed ring, and the feature.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const RING_PACKED: u64 = feature::RING_PACKED;

/// Steps that a run lets the function do after each operation, and at the end.
const STEPS: usize = 256;
const LAST_STEPS: usize = 4000;
/// Steps that may pass at one time: one for each request in flight, each message and each reset.
const AT_ONCE: usize = 1024;

/// What is between the function and memory.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Behind {
    /// Nothing.
    Direct,
    /// An SMMU with this kind of stream.
    Smmu(Shape, Kind),
    /// The same, with CD or STE such that faults stall where that is possible.
    Stalling(Shape, Kind),
}

/// Bytes of a descriptor.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Len {
    /// Few.
    Small(u8),
    /// Up to 64 KiB.
    Medium(u16),
    /// Whole sectors.
    Sectors(u8),
    /// Any.
    Any(u32),
}

impl Len {
    fn get(self) -> u32 {
        match self {
            Len::Small(n) => n.into(),
            Len::Medium(n) => n.into(),
            Len::Sectors(n) => u32::from(n & 31) * 512,
            Len::Any(n) => n,
        }
    }
}

/// A piece of a request.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Piece {
    at: Iova,
    len: Len,
    writable: bool,
}

/// Registers of the common configuration, by name.
const COMMON: [u64; 21] = [
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x12, 0x14, 0x15, 0x16, 0x18, 0x1a, 0x1c, 0x1e, 0x20, 0x24, 0x28, 0x2c,
    0x30, 0x34, 0x38, 0x3a,
];

/// Something that happens.
#[derive(Clone, Debug, Arbitrary)]
pub enum Op {
    /// A request: queue, type and sector of a header for block devices, and up to six pieces of data.
    Request(u8, u8, Value, [Option<Piece>; 6], bool),
    /// A descriptor: queue, whether in an indirect table, index, address, length, flags, next.
    Descriptor(u8, bool, u8, Iova, Len, u8, u8),
    /// A chain becomes available: queue, head.
    Offer(u8, u16),
    /// A word of the rings: queue, area, offset, value.
    Ring(u8, u8, u16, u16),
    /// A notification.
    Kick(u8),
    /// The function does steps.
    Steps(u8),
    /// One agent of the bus does a step, whether it is its turn or not.
    Agent(u8),
    /// A named register of the common configuration is written, then read.
    Common(u8, Size, Value),
    /// Any register in the BAR.
    Register(u16, Size, Value),
    /// The MSI-X table.
    Msix(u16, Size, Value),
    /// Configuration space.
    Config(u8, Size, Value),
    /// Bus mastering and memory decoding.
    Command(u8),
    /// The window in configuration space: BAR, offset, length, data.
    Window(u8, u16, u8, u32),
    /// A queue is reset, and set up again if so wanted.
    ResetQueue(u8, bool),
    /// The device is reset and set up again, with these features.
    Restart(u64),
    /// Power-on reset of the bus, and set up again.
    Reset,
    /// Memory changes.
    Memory(Value, Value),
    /// A command of the SMMU.
    Smmu(Command),
    /// A register of the SMMU.
    SmmuRegister(u16, Value),
    /// A translation descriptor flips a bit or is gone.
    Unmap(u16, Option<u8>),
    /// The host gives input of this length.
    Input(u16),
    /// The host takes output.
    Output,
    /// The state is saved and restored.
    Snapshot,
}

/// A run.
#[derive(Clone, Debug, Arbitrary)]
pub struct Input {
    behind: Behind,
    two_level: bool,
    started: bool,
    features: u64,
    max_beat: Option<u16>,
    ops: Vec<Op>,
}

/// What a device has on the host's side.
pub trait Host {
    /// Gives it input.
    fn input(&self, _host: &mut PciHost, _now: Time, _len: usize) {}
    /// Takes its output.
    fn output(&self, _host: &mut PciHost) {}
}

/// A bus with one function, and its driver. Addresses are the same for the CPU and, at first, for the device.
struct Bench {
    ram: GuestRam,
    host: PciHost,
    smmu: Option<Arc<Mutex<Smmu>>>,
    descriptors: &'static [u64],
    inbox: ItsInbox,
    now: Time,
    sizes: Vec<u16>,
    avail: Vec<u16>,
    /// Whether the driver accepted packed rings; what it offers, in all, is counted in descriptors then.
    packed: bool,
    features: u64,
    at_once: usize,
}

impl Bench {
    fn new(device: impl VirtioDevice, input: &Input) -> Self {
        let ram = GuestRam::new(RAM, RAM_SIZE).expect("the host has a little memory");
        let (smmu, descriptors) = match input.behind {
            Behind::Direct => (None, &[][..]),
            Behind::Smmu(shape, kind) => behind(&ram, shape, kind, false, input.two_level),
            Behind::Stalling(shape, kind) => behind(&ram, shape, kind, true, input.two_level),
        };
        let inbox = ItsInbox::default();
        let mut host = PciHost::new(Fabric::new(ram.clone(), smmu.clone(), inbox.clone()));
        let sizes = device.queue_sizes().to_vec();
        let mut timing = Timing::default();
        if let Some(n) = input.max_beat {
            timing.max_beat = n.into();
        }
        host.add(SLOT, |port| Box::new(VirtioPci::new(port, device, timing).offering(RING_PACKED)));
        let avail = vec![0; sizes.len()];
        let features = input.features;
        let packed = false;
        Bench { ram, host, smmu, descriptors, inbox, now: 0, sizes, avail, packed, features, at_once: 0 }
    }

    fn smmu(&self) -> Option<MutexGuard<'_, Smmu>> {
        self.smmu.as_ref().map(|smmu| smmu.lock().expect("nobody panicked"))
    }

    fn set(&mut self, offset: u64, size: u8, value: u64) {
        self.host.mmio_write(self.now, REGISTERS + offset, size, value);
    }

    fn get(&mut self, offset: u64, size: u8) -> u64 {
        self.host.mmio_read(self.now, REGISTERS + offset, size)
    }

    fn config(&mut self, offset: u64, size: u8, value: u64) {
        self.host.config_write(self.now, ECAM + offset, size, value);
    }

    fn capability(&mut self, id: u64, kind: Option<u64>) -> Option<u64> {
        let mut at = self.host.config_read(self.now, ECAM + 0x34, 1);
        for _ in 0..48 {
            let found = self.host.config_read(self.now, ECAM + at, 1);
            if found == id && kind.is_none_or(|k| self.host.config_read(self.now, ECAM + at + 3, 1) == k) {
                return Some(at);
            }
            at = self.host.config_read(self.now, ECAM + at + 1, 1);
        }
        None
    }

    /// Everything a driver does before its first request.
    fn start(&mut self) {
        self.config(0x14, 4, MSIX);
        self.config(0x20, 4, REGISTERS & 0xffff_ffff);
        self.config(0x24, 4, REGISTERS >> 32);
        self.config(reg::COMMAND.into(), 2, (COMMAND_MEMORY | COMMAND_MASTER).into());
        if let Some(msix) = self.capability(0x11, None) {
            self.config(msix + 2, 2, 0x8000);
        }
        for vector in 0..self.sizes.len() as u64 + 1 {
            let entry = MSIX + vector * 16;
            // One vector of them writes to memory.
            let to = if vector == 1 { MESSAGE } else { devices::dma::GITS_TRANSLATER };
            self.host.mmio_write(self.now, entry, 8, to);
            self.host.mmio_write(self.now, entry + 8, 8, 0x100 + vector);
        }
        self.set(0x14, 1, 0);
        self.steps(8);
        self.set(0x14, 1, 3);
        for half in 0..2 {
            self.set(0x00, 4, half);
            let offered = self.get(0x04, 4);
            self.set(0x08, 4, half);
            // VERSION_1 and ACCESS_PLATFORM have to be accepted.
            let required = if half == 1 { 3 } else { 0 };
            let accepted = offered & (self.features >> (32 * half) & 0xffff_ffff | required);
            self.set(0x0c, 4, accepted);
            self.packed = half == 1 && accepted & RING_PACKED >> 32 != 0;
        }
        self.set(0x14, 1, 3 | 8);
        self.set(0x10, 2, 0);
        (0..self.sizes.len()).for_each(|q| self.start_queue(q));
        self.set(0x14, 1, 15);
    }

    fn start_queue(&mut self, q: usize) {
        self.set(0x16, 2, q as u64);
        self.set(0x1a, 2, q as u64 + 1);
        for area in 0..3 {
            self.set(0x20 + 8 * area, 8, ring(q, area));
        }
        for area in 1..3 {
            self.ram.write(ring(q, area), &[0; 4]);
        }
        if self.packed {
            self.ram.write(ring(q, 0), &[0; 0x1000]);
        }
        self.set(0x1c, 2, 1);
        self.avail[q] = 0;
    }

    fn descriptor(&self, table: u64, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.ram.write(table + 16 * u64::from(index), &bytes);
    }

    fn offer(&mut self, q: usize, head: u16) {
        if self.packed {
            return self.mark(q, head);
        }
        let slot = u64::from(self.avail[q] % self.sizes[q]);
        self.avail[q] = self.avail[q].wrapping_add(1);
        self.ram.write(ring(q, 1) + 4 + slot * 2, &head.to_le_bytes());
        self.ram.write(ring(q, 1) + 2, &self.avail[q].to_le_bytes());
    }

    /// Where the packed ring goes on: index, and the flags of a descriptor that is available there.
    fn place(&self, q: usize) -> (u16, u16) {
        let (n, size) = (self.avail[q], self.sizes[q]);
        (n % size, if n / size % 2 == 0 { AVAIL } else { USED })
    }

    /// Makes whatever is next in a packed ring available, with this Buffer ID.
    fn mark(&mut self, q: usize, id: u16) {
        let (index, mark) = self.place(q);
        let at = ring(q, 0) + 16 * u64::from(index) + 12;
        let mut flags = [0; 2];
        self.ram.read(at + 2, &mut flags);
        let flags = u16::from_le_bytes(flags) & !(AVAIL | USED) | mark;
        self.ram.write(at, &id.to_le_bytes());
        self.ram.write(at + 2, &flags.to_le_bytes());
        self.avail[q] = self.avail[q].wrapping_add(1);
    }

    /// A descriptor becomes available in a packed ring.
    fn append(&mut self, q: usize, at: u64, len: u32, flags: u16) {
        let (index, mark) = self.place(q);
        self.descriptor(ring(q, 0), index, at, len, index, flags | mark);
        self.avail[q] = self.avail[q].wrapping_add(1);
    }

    fn kick(&mut self, q: usize) {
        self.set(0x3000 + 4 * q as u64, 2, q as u64);
    }

    /// A block request's header, the pieces, and a status byte, in the queue's table or one beside it.
    fn request(&mut self, q: usize, kind: u8, sector: u64, pieces: &[Option<Piece>], indirect: bool) {
        let mut header = [0; 16];
        header[0] = kind;
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.ram.write(DATA, &header);
        let mut all = vec![(DATA, 16, false)];
        all.extend(pieces.iter().flatten().map(|p| (p.at.get(), p.len.get(), p.writable)));
        all.push((DATA + 16, 1, true));
        // Readable ones come first.
        all.sort_by_key(|piece| piece.2);
        if self.packed {
            if indirect {
                for (n, &(at, len, writable)) in all.iter().enumerate() {
                    self.descriptor(INDIRECT, n as u16, at, len, 0, if writable { WRITE } else { 0 });
                }
                self.append(q, INDIRECT, 16 * all.len() as u32, INDIRECT_FLAG);
            } else {
                for (n, &(at, len, writable)) in all.iter().enumerate() {
                    let next = if n + 1 < all.len() { NEXT } else { 0 };
                    self.append(q, at, len, if writable { WRITE } else { 0 } | next);
                }
            }
            return self.kick(q);
        }
        let slot = self.avail[q] % self.sizes[q];
        let (table, first) = if indirect { (INDIRECT, 0) } else { (ring(q, 0), slot) };
        let index = |n: usize| if indirect { n as u16 } else { (first + n as u16) % self.sizes[q] };
        for (n, &(at, len, writable)) in all.iter().enumerate() {
            let next = if n + 1 < all.len() { NEXT } else { 0 };
            self.descriptor(table, index(n), at, len, if writable { WRITE } else { 0 } | next, index(n + 1));
        }
        if indirect {
            self.descriptor(ring(q, 0), slot, INDIRECT, 16 * all.len() as u32, INDIRECT_FLAG, 0);
        }
        self.offer(q, slot);
        self.kick(q);
    }

    /// At most so many steps of the bus and as many of the SMMU's agents. Whether there is more to do.
    fn steps(&mut self, most: usize) -> bool {
        for _ in 0..most {
            if let Some(mut smmu) = self.smmu() {
                smmu::agents(&mut smmu, &self.ram);
            }
            let Some(at) = self.host.next_step() else { return false };
            self.at_once = if at > self.now { 0 } else { self.at_once + 1 };
            assert!(self.at_once <= AT_ONCE, "time stands still");
            self.now = self.now.max(at);
            self.host.step(self.now);
            if self.inbox.is_full() {
                while self.inbox.take().is_some() {}
            }
        }
        true
    }

    /// Without bus mastering all comes to rest, and nothing is left behind in the SMMU.
    fn finish(mut self) {
        self.steps(LAST_STEPS);
        self.config(reg::COMMAND.into(), 2, COMMAND_MEMORY.into());
        // Resets that were asked for are still due.
        self.at_once = 0;
        assert!(!self.steps(AT_ONCE), "the function goes on without its port");
        if let Some(mut smmu) = self.smmu() {
            smmu.mmio_write(r::CR0, 4, 0);
            assert_eq!(smmu.mmio_read(r::CR0ACK, 4), Some(0), "no transaction outlives bus mastering");
        }
        self.host.reset(self.now);
        assert_eq!(self.host.next_step(), None, "a function after reset is idle");
    }

    fn apply(&mut self, op: &Op, outside: &impl Host) {
        let queues = self.sizes.len();
        let queue = |n: u8| usize::from(n) % queues;
        match op {
            Op::Request(q, kind, sector, pieces, indirect) => {
                self.request(queue(*q), *kind, sector.get(), pieces, *indirect);
            }
            Op::Descriptor(q, indirect, index, at, len, flags, next) => {
                let table = if *indirect { INDIRECT } else { ring(queue(*q), 0) };
                self.descriptor(table, (*index).into(), at.get(), len.get(), (*flags).into(), (*next).into());
            }
            Op::Offer(q, head) => self.offer(queue(*q), *head),
            Op::Ring(q, area, offset, value) => {
                let at = ring(queue(*q), u64::from(area % 3)) + u64::from(offset & 0x7ff) * 2;
                self.ram.write(at, &value.to_le_bytes());
            }
            Op::Kick(q) => self.kick(queue(*q)),
            Op::Steps(n) => {
                self.steps((*n).into());
            }
            Op::Agent(n) => {
                let agents: Vec<_> = self.host.agents().collect();
                if let Some(&(slot, lane, at)) = agents.get(usize::from(*n) % agents.len().max(1)) {
                    self.now = self.now.max(at);
                    self.host.step_agent(slot, lane, self.now);
                }
            }
            Op::Common(n, size, value) => {
                let offset = COMMON[usize::from(*n) % COMMON.len()];
                self.set(offset, size.get(), value.get());
                self.get(offset, size.get());
            }
            Op::Register(offset, size, value) => {
                let offset = size.align(u64::from(*offset) % 0x4008);
                self.get(offset, size.get());
                self.set(offset, size.get(), value.get());
            }
            Op::Msix(offset, size, value) => {
                let at = MSIX + size.align(u64::from(*offset) % 0x1008);
                self.host.mmio_write(self.now, at, size.get(), value.get());
                self.host.mmio_read(self.now, at, size.get());
            }
            Op::Config(offset, size, value) => {
                let offset = size.align((*offset).into());
                self.config(offset, size.get(), value.get());
                self.host.config_read(self.now, ECAM + offset, size.get());
            }
            Op::Command(bits) => self.config(reg::COMMAND.into(), 2, (*bits).into()),
            Op::Window(bar, offset, len, data) => self.window(*bar, *offset, *len, *data),
            Op::ResetQueue(q, again) => {
                self.set(0x16, 2, queue(*q) as u64);
                self.set(0x3a, 2, 1);
                if *again {
                    self.steps(16);
                    self.start_queue(queue(*q));
                }
            }
            Op::Restart(features) => {
                self.features = *features;
                self.start();
            }
            Op::Reset => {
                self.host.reset(self.now);
                assert_eq!(self.host.next_step(), None, "a function after reset is idle");
                self.start();
            }
            Op::Memory(at, value) => {
                self.ram.write(at.get(), &value.get().to_le_bytes());
            }
            Op::Smmu(command) => self.command(command.words()),
            Op::SmmuRegister(word, value) => {
                if let Some(mut smmu) = self.smmu() {
                    smmu.mmio_write(u64::from(*word) * 4, 4, value.get());
                }
            }
            Op::Unmap(n, bit) => self.unmap(*n, *bit),
            Op::Input(len) => outside.input(&mut self.host, self.now, (*len).into()),
            Op::Output => outside.output(&mut self.host),
            Op::Snapshot => {
                let saved = self.host.save();
                assert_eq!(self.host.restore(saved.clone()), Ok(()));
                assert!(self.host.save() == saved, "restoring gives what was saved");
            }
        }
    }

    fn window(&mut self, bar: u8, offset: u16, len: u8, data: u32) {
        let Some(at) = self.capability(0x09, Some(5)) else { return };
        self.config(at + 4, 1, (bar & 7).into());
        self.config(at + 8, 4, offset.into());
        self.config(at + 12, 4, (len & 7).into());
        self.config(at + 16, 4, data.into());
        self.host.config_read(self.now, ECAM + at + 16, 4);
    }

    fn command(&mut self, words: [u64; 2]) {
        let Some(mut smmu) = self.smmu() else { return };
        let prod = smmu.mmio_read(r::CMDQ_PROD, 4).unwrap_or(0);
        let log2 = smmu::LOG2_CMDQ.min(smmu.config().cmdqs.into());
        let at = smmu::CMDQ + (prod & ((1 << log2) - 1)) * 16;
        self.ram.write(at, &words[0].to_le_bytes());
        self.ram.write(at + 8, &words[1].to_le_bytes());
        smmu.mmio_write(r::CMDQ_PROD, 4, (prod + 1) & ((2 << log2) - 1));
    }

    fn unmap(&mut self, n: u16, bit: Option<u8>) {
        let Some(&at) = self.descriptors.get(usize::from(n) % self.descriptors.len().max(1)) else { return };
        let mut bytes = [0; 8];
        self.ram.read(at, &mut bytes);
        let word = bit.map_or(0, |bit| u64::from_le_bytes(bytes) ^ 1 << (bit & 63));
        self.ram.write(at, &word.to_le_bytes());
    }
}

/// Address of an area of a queue: descriptors, available ring, used ring.
fn ring(q: usize, area: u64) -> u64 {
    RINGS + (q as u64 * 4 + area) * 0x1000
}

type Translated = (Option<Arc<Mutex<Smmu>>>, &'static [u64]);

fn behind(ram: &GuestRam, shape: Shape, kind: Kind, stall: bool, two_level: bool) -> Translated {
    let mut smmu = Smmu::new(shape.config());
    let descriptors = smmu::prepare(&mut smmu, ram, two_level, |_| kind);
    if stall {
        // Odd CDs are those that stall.
        let mut cd = [0; 64];
        ram.read(smmu::CDS + 64, &mut cd);
        ram.write(smmu::CDS, &cd);
    }
    (Some(Arc::new(Mutex::new(smmu))), descriptors)
}

/// Runs it with a device.
pub fn run(device: impl VirtioDevice, outside: impl Host, input: &Input) {
    let mut bench = Bench::new(device, input);
    if input.started {
        bench.start();
    }
    for op in input.ops.iter().take(128) {
        bench.apply(op, &outside);
        bench.at_once = 0;
        if !matches!(op, Op::Steps(_) | Op::Agent(_)) {
            bench.steps(if input.ops.len() > 32 { 16 } else { STEPS });
            bench.at_once = 0;
        }
    }
    outside.output(&mut bench.host);
    bench.finish();
}

#[cfg(test)]
mod tests {
    use arbitrary::Unstructured;
    use devices::virtio::Rng;

    use super::*;

    /// The first request is answered, whatever is in between: otherwise the targets would look at refusals only.
    #[test]
    fn prepared_devices_work() {
        let shape = Shape::arbitrary(&mut Unstructured::new(&[])).expect("no bytes are zeroes");
        let kinds =
            [Kind::Stage1, Kind::Substreams, Kind::Bypass, Kind::Stage2, Kind::Nested, Kind::TwoLevel];
        let smmus = kinds.iter().flat_map(|&k| [Behind::Smmu(shape, k), Behind::Stalling(shape, k)]);
        for (behind, features) in
            smmus.chain([Behind::Direct]).flat_map(|b| [(b, u64::MAX), (b, !RING_PACKED)])
        {
            let input =
                Input { behind, two_level: true, started: true, features, max_beat: None, ops: Vec::new() };
            let mut bench = Bench::new(Rng::new(1), &input);
            bench.start();
            assert_eq!(bench.get(0x14, 1), 15, "{behind:?}");
            for indirect in [false, true] {
                let piece = Piece { at: Iova::Mapped(0x140, 0), len: Len::Small(16), writable: true };
                bench.request(0, 0, 0, &[Some(piece)], indirect);
                bench.steps(STEPS);
            }
            assert_eq!(bench.packed, features & RING_PACKED != 0);
            let mut used = [0; 2];
            if bench.packed {
                // The first request filled three of eight descriptors, the second one.
                for slot in [0, 3] {
                    let mut flags = [0; 2];
                    bench.ram.read(ring(0, 0) + 16 * slot + 14, &mut flags);
                    used[0] += u8::from(u16::from_le_bytes(flags) == AVAIL | USED | WRITE);
                }
            } else {
                bench.ram.read(ring(0, 2) + 2, &mut used);
            }
            let mut message = [0; 4];
            bench.ram.read(MESSAGE, &mut message);
            assert_eq!((used, u32::from_le_bytes(message)), ([2, 0], 0x101), "{behind:?}");
            bench.finish();
        }
    }
}
