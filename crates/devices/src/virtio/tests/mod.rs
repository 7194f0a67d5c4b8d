//! The devices as a driver sees them: through configuration space, registers and rings in guest memory.

mod blk;
mod bounce;
mod hostile;
mod others;
mod packed;
mod smmu;
mod transport;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use guest_ram::GuestRam;
use smmu_model::Smmu;

use super::*;
use crate::agent::Agent;
use crate::bounce::{Pool, PoolConfig};
use crate::dma::{Fabric, GITS_TRANSLATER, ItsInbox};
use crate::pci::{COMMAND_MASTER, COMMAND_MEMORY, PciHost, Slot, reg};

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 0x40_0000;
const MSIX_BASE: u64 = 0x1000_0000;
const REGISTERS: u64 = 0x80_0000_0000;
const SLOT: Slot = Slot(1 << 3);
const ECAM: u64 = (SLOT.0 as u64) << 12;

/// Where the rings of queue `q` are: descriptors, available ring, used ring, a page each.
const RINGS: u64 = 0x1_0000;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

thread_local! {
    /// Whether the devices of this test are bounced, and by what pool.
    static BOUNCED: std::cell::Cell<Option<PoolConfig>> = const { std::cell::Cell::new(None) };
}

/// Address, length, and whether the device writes, of each descriptor.
type List = Vec<(u64, u32, bool)>;

/// A machine with one device, and its driver. The driver's addresses are device addresses; `offset` is what the SMMU's
/// tables add to them, or the start of RAM.
struct Bench {
    ram: GuestRam,
    host: PciHost,
    /// A bounced device's pool.
    pool: Option<Pool>,
    inbox: ItsInbox,
    now: Time,
    /// Physical address of device address 0.
    offset: u64,
    /// Device address of the start of RAM.
    base: u64,
    sizes: Vec<u16>,
    avail: Vec<u16>,
    used: Vec<u16>,
    /// Whether the driver uses packed rings, and the lists that it has put together for them.
    packed: bool,
    lists: BTreeMap<(usize, u16), List>,
}

impl Bench {
    fn new(device: impl VirtioDevice) -> Self {
        Self::behind(device, None, 0)
    }

    /// A device that offers packed rings.
    fn packed(device: impl VirtioDevice) -> Self {
        Self::behind(device, None, feature::RING_PACKED)
    }

    fn behind(device: impl VirtioDevice, smmu: Option<Arc<Mutex<Smmu>>>, extra: u64) -> Self {
        let ram = GuestRam::new(RAM, RAM_SIZE).unwrap();
        let inbox = ItsInbox::default();
        let mut host = PciHost::new(Fabric::new(ram.clone(), smmu, inbox.clone()));
        let sizes = device.queue_sizes().to_vec();
        let pool = BOUNCED.get().map(|config| Pool::new(&config).unwrap());
        host.add(SLOT, |port| {
            if let Some(pool) = &pool {
                port.set_bounce(pool.bounce().unwrap());
            }
            Box::new(VirtioPci::new(port, device, Timing::default()).offering(extra))
        });
        let (avail, used) = (vec![0; sizes.len()], vec![0; sizes.len()]);
        let (packed, lists) = (false, BTreeMap::new());
        Self { ram, host, pool, inbox, now: 0, offset: 0, base: RAM, sizes, avail, used, packed, lists }
    }

    /// Bus, BARs, MSI-X.
    fn enable_function(&mut self) {
        self.host.config_write(0, ECAM + 0x14, 4, MSIX_BASE);
        self.host.config_write(0, ECAM + 0x20, 4, REGISTERS & 0xffff_ffff);
        self.host.config_write(0, ECAM + 0x24, 4, REGISTERS >> 32);
        let command = u64::from(COMMAND_MEMORY | COMMAND_MASTER);
        self.host.config_write(0, ECAM + u64::from(reg::COMMAND), 2, command);
        let msix = self.capability(0x11, None);
        self.host.config_write(0, ECAM + msix + 2, 2, 0x8000);
        for vector in 0..self.sizes.len() as u64 + 1 {
            let entry = MSIX_BASE + vector * 16;
            self.host.mmio_write(0, entry, 8, GITS_TRANSLATER);
            self.host.mmio_write(0, entry + 8, 4, 0x100 + vector);
            self.host.mmio_write(0, entry + 12, 4, 0);
        }
    }

    /// Offset of a capability; of a vendor one by its type.
    fn capability(&mut self, id: u64, kind: Option<u64>) -> u64 {
        let mut at = self.host.config_read(0, ECAM + 0x34, 1);
        while at != 0 {
            let found = self.host.config_read(0, ECAM + at, 1);
            if found == id && kind.is_none_or(|k| self.host.config_read(0, ECAM + at + 3, 1) == k) {
                return at;
            }
            at = self.host.config_read(0, ECAM + at + 1, 1);
        }
        panic!("no capability {id:#x} {kind:?}");
    }

    fn get(&mut self, offset: u64, size: u8) -> u64 {
        self.host.mmio_read(self.now, REGISTERS + offset, size)
    }

    fn set(&mut self, offset: u64, size: u8, value: u64) {
        self.host.mmio_write(self.now, REGISTERS + offset, size, value);
    }

    fn status(&mut self) -> u64 {
        self.get(0x14, 1)
    }

    /// Resets, negotiates all of `features` that is offered, and returns that.
    fn negotiate(&mut self, features: u64) -> u64 {
        self.set(0x14, 1, 0);
        self.run();
        assert_eq!(self.status(), 0);
        self.set(0x14, 1, 3);
        let mut offered = 0;
        for half in 0..2 {
            self.set(0x00, 4, half);
            offered |= self.get(0x04, 4) << (32 * half);
        }
        let accepted = offered & features;
        self.packed = accepted & feature::RING_PACKED != 0;
        for half in 0..2 {
            self.set(0x08, 4, half);
            self.set(0x0c, 4, accepted >> (32 * half) & 0xffff_ffff);
        }
        self.set(0x14, 1, 3 | 8);
        accepted
    }

    fn set_up_queue(&mut self, index: usize) {
        if self.packed {
            // Whoever sets up a packed ring clears it (virtio 1.3 §2.8.13).
            for area in 0..3 {
                self.write(self.ring(index, area), &[0; 0x1000]);
            }
        }
        self.set(0x16, 2, index as u64);
        self.set(0x1a, 2, index as u64 + 1);
        for (i, register) in [0x20, 0x28, 0x30].into_iter().enumerate() {
            let address = self.ring(index, i as u64);
            self.set(register, 4, address & 0xffff_ffff);
            self.set(register + 4, 4, address >> 32);
        }
        self.set(0x1c, 2, 1);
        assert_eq!(self.get(0x1c, 2), 1);
        (self.avail[index], self.used[index]) = (0, 0);
    }

    /// Everything a driver does before its first request.
    fn start(&mut self, features: u64) -> u64 {
        self.enable_function();
        let accepted = self.negotiate(features);
        assert_eq!(self.status(), 11, "features accepted");
        self.set(0x10, 2, 0);
        (0..self.sizes.len()).for_each(|i| self.set_up_queue(i));
        self.set(0x14, 1, 15);
        accepted
    }

    /// Device address of one of queue `q`'s three areas.
    fn ring(&self, q: usize, area: u64) -> u64 {
        self.base + RINGS + (q as u64 * 4 + area) * 0x1000
    }

    /// Device address of a data page.
    fn page(&self, n: u64) -> u64 {
        self.base + 0x10_0000 + n * 0x1000
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        assert!(self.ram.write(address.wrapping_add(self.offset), bytes));
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert!(self.ram.read(address.wrapping_add(self.offset), &mut bytes));
        bytes
    }

    fn read16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address, 2).try_into().unwrap())
    }

    fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = table + u64::from(index) * 16;
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// Puts a chain at descriptor `head` and following: (address, length, writable).
    fn chain(&mut self, q: usize, head: u16, buffers: &[(u64, u32, bool)]) {
        if self.packed {
            self.lists.insert((q, head), buffers.to_vec());
            return;
        }
        for (i, &(address, len, writable)) in buffers.iter().enumerate() {
            let index = head + i as u16;
            let last = i + 1 == buffers.len();
            let flags = if writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(self.ring(q, 0), index, address, len, flags, index + 1);
        }
    }

    /// Makes the chain at `head` available, without a notification.
    fn offer(&mut self, q: usize, head: u16) {
        if self.packed {
            return self.offer_packed(q, head);
        }
        let slot = self.avail[q] % self.sizes[q];
        self.write(self.ring(q, 1) + 4 + u64::from(slot) * 2, &head.to_le_bytes());
        self.avail[q] = self.avail[q].wrapping_add(1);
        self.write(self.ring(q, 1) + 2, &self.avail[q].to_le_bytes());
    }

    /// Where a counter of descriptors is in the packed ring: index, and the flags of one that is available there.
    fn place(&self, q: usize, position: u16) -> (u16, u16) {
        let size = self.sizes[q];
        (position % size, if (position / size).is_multiple_of(2) { AVAIL } else { USED })
    }

    fn offer_packed(&mut self, q: usize, id: u16) {
        let list = self.lists.get(&(q, id)).cloned().unwrap_or_default();
        for (i, &(address, len, writable)) in list.iter().enumerate() {
            let (index, mark) = self.place(q, self.avail[q]);
            let flags = if writable { WRITE } else { 0 } | if i + 1 == list.len() { 0 } else { NEXT };
            self.descriptor(self.ring(q, 0), index, address, len, id, flags | mark);
            self.avail[q] = self.avail[q].wrapping_add(1);
        }
    }

    fn take_used_packed(&mut self, q: usize) -> Option<(u32, u32)> {
        let (index, mark) = self.place(q, self.used[q]);
        let at = self.ring(q, 0) + u64::from(index) * 16 + 8;
        let used = if mark == AVAIL { AVAIL | USED } else { 0 };
        let flags = self.read16(at + 6);
        if flags & (AVAIL | USED) != used {
            return None;
        }
        let (id, len) = (self.read16(at + 4), u32::from_le_bytes(self.read(at, 4).try_into().unwrap()));
        assert_eq!(flags & !(AVAIL | USED), if len > 0 { WRITE } else { 0 });
        let slots = self.lists.get(&(q, id)).expect("the driver knows the id").len();
        self.used[q] = self.used[q].wrapping_add(slots as u16);
        Some((id.into(), len))
    }

    fn kick(&mut self, q: usize) {
        self.set(0x3000 + 4 * q as u64, 2, q as u64);
    }

    /// Runs all agents until they are idle; returns how many steps that took.
    fn run(&mut self) -> usize {
        let mut steps = 0;
        while let Some(at) = self.host.next_step() {
            self.now = self.now.max(at);
            self.host.step(self.now);
            steps += 1;
            assert!(steps < 1_000_000, "the device never rests");
        }
        steps
    }

    /// The next element of the used ring: head and length.
    fn take_used(&mut self, q: usize) -> Option<(u32, u32)> {
        if self.packed {
            return self.take_used_packed(q);
        }
        let ring = self.ring(q, 2);
        if self.read16(ring + 2) == self.used[q] {
            return None;
        }
        let element = self.read(ring + 4 + u64::from(self.used[q] % self.sizes[q]) * 8, 8);
        self.used[q] = self.used[q].wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }

    /// EventIDs of the messages that arrived.
    fn interrupts(&mut self) -> Vec<u32> {
        std::iter::from_fn(|| self.inbox.take())
            .inspect(|m| assert_eq!(m.device_id, u32::from(SLOT.0)))
            .map(|m| m.event_id)
            .collect()
    }

    /// Offers a chain, notifies, runs, and returns what came back.
    fn request(&mut self, q: usize, buffers: &[(u64, u32, bool)]) -> Option<(u32, u32)> {
        self.chain(q, 0, buffers);
        self.offer(q, 0);
        self.kick(q);
        self.run();
        self.take_used(q)
    }
}
