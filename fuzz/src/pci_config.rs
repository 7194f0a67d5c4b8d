//! The host bridge with four functions: configuration space, BARs that move and overlap, resets.

use arbitrary::Arbitrary;
use devices::Agent;
use devices::dma::{Fabric, ItsInbox};
use devices::pci::{PciHost, Slot};
use devices::virtio::{Blk, Console, MemoryBackend, Net, Rng, Timing, VirtioPci};
use guest_ram::GuestRam;

use crate::value::{RAM, RAM_SIZE, Size, Value};

/// Functions behind the bridge, from slot 1 on.
const FUNCTIONS: u8 = 4;
/// Where BARs are put, so that some meet.
const PLACES: u64 = 0x1000;

/// Something that happens.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Op {
    /// A register of a function that exists.
    Config(u8, u8, Size, Value),
    /// Any offset in the ECAM.
    Ecam(Value, Size, Value),
    /// All of a BAR register, then its size is read back: function, register, place.
    Bar(u8, u8, u8),
    /// Memory decoding and bus mastering.
    Command(u8, u8),
    /// An access near where BARs are: place, offset.
    Memory(u8, u16, Size, Value),
    /// An access anywhere.
    Anywhere(Value, Size, Value),
    /// Steps.
    Steps(u8),
    /// Power-on reset.
    Reset,
    /// The state is saved and restored.
    Snapshot,
}

/// A run.
#[derive(Clone, Debug, Arbitrary)]
pub struct Input {
    ops: Vec<Op>,
}

fn place(n: u8) -> u64 {
    match n & 1 {
        0 => 0x1000_0000 + u64::from(n >> 1) * PLACES,
        _ => 0x80_0000_0000 + u64::from(n >> 1) * PLACES,
    }
}

/// Runs it.
pub fn run(input: Input) {
    let ram = GuestRam::new(RAM, RAM_SIZE).expect("the host has a little memory");
    let inbox = ItsInbox::default();
    let mut host = PciHost::new(Fabric::new(ram, None, inbox.clone()));
    let disk = MemoryBackend { data: vec![0; 4096], ..MemoryBackend::default() };
    let timing = Timing::default();
    host.add(Slot::device(1), |port| Box::new(VirtioPci::new(port, Blk::new(Box::new(disk)), timing)));
    host.add(Slot::device(2), |port| Box::new(VirtioPci::new(port, Net::new([2, 0, 0, 0, 0, 1]), timing)));
    host.add(Slot::device(3), |port| Box::new(VirtioPci::new(port, Console::new(), timing)));
    host.add(Slot::device(4), |port| Box::new(VirtioPci::new(port, Rng::new(1), timing)));
    let ids: Vec<_> = (0..=FUNCTIONS).map(|n| host.config_read(0, ecam(n), 4)).collect();
    let mut now = 0;
    for op in input.ops.into_iter().take(256) {
        match op {
            Op::Config(function, offset, size, value) => {
                let at = ecam(function) + size.align(offset.into());
                host.config_write(now, at, size.get(), value.get());
                host.config_read(now, at, size.get());
            }
            Op::Ecam(at, size, value) => {
                host.config_write(now, at.get(), size.get(), value.get());
                host.config_read(now, at.get(), size.get());
            }
            Op::Bar(function, bar, to) => {
                let at = ecam(function) + 0x10 + 4 * u64::from(bar % 6);
                host.config_write(now, at, 4, u64::from(u32::MAX));
                host.config_read(now, at, 4);
                // Odd registers have the upper half of a 64-bit BAR.
                let to = place(to);
                host.config_write(now, at, 4, if bar % 6 == 5 { to >> 32 } else { to & 0xffff_ffff });
            }
            Op::Command(function, bits) => host.config_write(now, ecam(function) + 4, 2, bits.into()),
            Op::Memory(n, offset, size, value) => {
                let at = place(n) + size.align(u64::from(offset) & 0x4fff);
                host.mmio_write(now, at, size.get(), value.get());
                host.mmio_read(now, at, size.get());
            }
            Op::Anywhere(at, size, value) => {
                host.mmio_write(now, at.get(), size.get(), value.get());
                host.mmio_read(now, at.get(), size.get());
            }
            Op::Steps(n) => {
                for _ in 0..n {
                    let Some(at) = host.next_step() else { break };
                    now = now.max(at);
                    host.step(now);
                    inbox.take();
                }
            }
            Op::Reset => {
                host.reset(now);
                assert_eq!(host.next_step(), None, "a function after reset is idle");
            }
            Op::Snapshot => {
                let saved = host.save();
                assert_eq!(host.restore(saved.clone()), Ok(()));
                assert!(host.save() == saved, "restoring gives what was saved");
            }
        }
    }
    let ids_now: Vec<_> = (0..=FUNCTIONS).map(|n| host.config_read(now, ecam(n), 4)).collect();
    assert_eq!(ids, ids_now, "what identifies a function cannot be written");
}

/// Where a function's registers are; 0 is the bridge.
fn ecam(function: u8) -> u64 {
    u64::from(function % (FUNCTIONS + 1)) << 15
}
