//! The ITS's tables in guest memory (IHI 0069 5.2, 12.12.1). The formats of the entries are ours; all have 8 bytes.

use guest_ram::GuestRam;
use serde::{Deserialize, Serialize};

/// Bytes of a table entry of every kind.
pub(crate) const ENTRY_BYTES: u64 = 8;
/// GITS_BASER.Type of the device table.
pub(crate) const DEVICES: u64 = 1;
/// GITS_BASER.Type of the collection table.
pub(crate) const COLLECTIONS: u64 = 4;

const VALID: u64 = 1 << 63;
const INDIRECT: u64 = 1 << 62;
const TYPE: u32 = 56;
const ENTRY_SIZE: u32 = 48;
/// Page_Size, in bits 9:8: 64 KiB.
const PAGE_64K: u64 = 2;
/// All but Type and Entry_Size, which are read-only.
const BASER_RW: u64 = 0xf8e0_ffff_ffff_ffff;
/// Level-1 entry of an indirect table: Physical_Address.
const LEVEL1_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Device table entry: ITT address (a multiple of 256 bytes) and number of EventID bits, minus one.
const ITT_ADDRESS: u64 = 0x000f_ffff_ffff_ff00;

/// Reads a little-endian doubleword of RAM.
pub(crate) fn load(ram: &GuestRam, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    ram.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
}

/// Writes a little-endian doubleword to RAM; whether it is RAM.
pub(crate) fn store(ram: &GuestRam, address: u64, value: u64) -> bool {
    ram.write(address, &value.to_le_bytes())
}

/// A GITS_BASER register and the table that it describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Baser {
    value: u64,
}

impl Baser {
    /// A register of the given Type.
    pub(crate) fn new(kind: u64) -> Self {
        // Page_Size is UNKNOWN after reset; guests written for `virt` expect 64 KiB there.
        Self { value: kind << TYPE | (ENTRY_BYTES - 1) << ENTRY_SIZE | PAGE_64K << 8 }
    }

    /// The register as it reads.
    pub(crate) fn register(&self) -> u64 {
        self.value
    }

    /// Writes the register. The reserved page size 3 is taken as 64 KiB and reads back as that.
    pub(crate) fn set_register(&mut self, value: u64) {
        let value = if value >> 8 & 3 == 3 { value & !(1 << 8) } else { value };
        self.value = self.value & !BASER_RW | value & BASER_RW;
    }

    fn page(&self) -> u64 {
        match self.value >> 8 & 3 {
            0 => 0x1000,
            1 => 0x4000,
            _ => 0x1_0000,
        }
    }

    fn base(&self) -> u64 {
        let low = self.value & 0x0000_ffff_ffff_f000;
        // With 64 KiB pages, bits 15:12 are address bits 51:48.
        if self.page() == 0x1_0000 {
            low & !0xffff | (low >> 12 & 0xf) << 48
        } else {
            low & !(self.page() - 1)
        }
    }

    /// Address of the entry of `id`; `None` when the table has no room or no level-2 page for it.
    pub(crate) fn entry(&self, ram: &GuestRam, id: u32) -> Option<u64> {
        if self.value & VALID == 0 {
            return None;
        }
        let size = ((self.value & 0xff) + 1) * self.page();
        if self.value & INDIRECT == 0 {
            let offset = u64::from(id) * ENTRY_BYTES;
            return (offset < size).then_some(self.base() + offset);
        }
        let per_page = self.page() / ENTRY_BYTES;
        let offset = u64::from(id) / per_page * ENTRY_BYTES;
        if offset >= size {
            return None;
        }
        let level1 = load(ram, self.base() + offset).filter(|entry| entry & VALID != 0)?;
        Some((level1 & LEVEL1_ADDRESS & !(self.page() - 1)) + u64::from(id) % per_page * ENTRY_BYTES)
    }
}

/// A device table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Address of the interrupt translation table.
    pub(crate) itt: u64,
    /// EventIDs are below this.
    pub(crate) events: u64,
}

impl Device {
    /// What MAPD maps: `itt` from its ITT_addr, `size` the number of EventID bits minus one.
    pub(crate) fn pack(itt: u64, size: u64) -> u64 {
        VALID | itt & ITT_ADDRESS | size & 0x1f
    }

    /// From the entry in memory; `None` when it is not valid.
    pub(crate) fn unpack(entry: u64) -> Option<Self> {
        (entry & VALID != 0).then_some(Self { itt: entry & ITT_ADDRESS, events: 2 << (entry & 0x1f) })
    }

    /// Address of the ITT entry of `event`; `None` beyond the table.
    pub(crate) fn entry(&self, event: u32) -> Option<u64> {
        (u64::from(event) < self.events).then_some(self.itt + u64::from(event) * ENTRY_BYTES)
    }
}

/// An interrupt translation entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Physical LPI.
    pub(crate) intid: u32,
    /// Collection.
    pub(crate) icid: u16,
}

impl Event {
    /// As it is kept in memory.
    pub(crate) fn pack(self) -> u64 {
        VALID | u64::from(self.intid) << 16 | u64::from(self.icid)
    }

    /// From the entry in memory; `None` when it is not valid.
    pub(crate) fn unpack(entry: u64) -> Option<Self> {
        (entry & VALID != 0).then_some(Self { intid: (entry >> 16) as u32, icid: entry as u16 })
    }
}

/// A collection table entry: the number of the PE.
pub(crate) fn pack_collection(cpu: u32) -> u64 {
    VALID | u64::from(cpu)
}

/// From the entry in memory; `None` when it is not valid.
pub(crate) fn unpack_collection(entry: u64) -> Option<usize> {
    (entry & VALID != 0).then_some((entry & 0xffff) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_and_indirect_tables() {
        let ram = GuestRam::new(0x4000_0000, 0x10_0000).unwrap();
        let mut baser = Baser::new(DEVICES);
        baser.set_register(VALID | 0x4001_0000);
        assert_eq!(baser.entry(&ram, 511), Some(0x4001_0000 + 8 * 511));
        assert_eq!(baser.entry(&ram, 512), None);
        baser.set_register(VALID | INDIRECT | 0x4001_0000);
        assert_eq!(baser.entry(&ram, 600), None, "no level-2 page");
        store(&ram, 0x4001_0008, VALID | 0x4002_0000);
        assert_eq!(baser.entry(&ram, 600), Some(0x4002_0000 + 8 * 88));
        assert_eq!(baser.entry(&ram, u32::MAX), None);
    }

    #[test]
    fn type_and_entry_size_are_read_only() {
        let mut baser = Baser::new(COLLECTIONS);
        baser.set_register(u64::MAX);
        assert_eq!(baser.register() >> TYPE & 7, COLLECTIONS);
        assert_eq!(baser.register() >> ENTRY_SIZE & 0x1f, 7);
        assert_eq!(baser.register() >> 8 & 3, 2);
        assert_eq!(baser.base(), 0x000f_ffff_ffff_0000);
    }

    #[test]
    fn entries_unpack_to_what_was_packed() {
        let device = Device::unpack(Device::pack(0x4000_1200, 4)).unwrap();
        assert_eq!(device, Device { itt: 0x4000_1200, events: 32 });
        assert_eq!((device.entry(31), device.entry(32)), (Some(0x4000_12f8), None));
        let event = Event { intid: 8200, icid: 7 };
        assert_eq!(Event::unpack(event.pack()), Some(event));
        assert_eq!(Event::unpack(0), None);
        assert_eq!(unpack_collection(pack_collection(3)), Some(3));
    }
}
