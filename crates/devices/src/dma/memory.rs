//! vm-memory's view of a port, and the SMMU's view of memory.

use std::iter::FusedIterator;

use guest_ram::{GuestRam, Mem, MemBitmap, Reader, WatchBitmap};
use smmu_model::Abort;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, Permissions, VolatileSlice,
};

use super::transfer::Place;
use super::{DmaError, DmaPort};

/// Physical memory as the SMMU's own accesses see it: RAM, and nothing else.
#[derive(Clone, Copy, Debug)]
pub struct PhysMem<'a>(&'a GuestRam);

impl<'a> PhysMem<'a> {
    /// The SMMU's view of `ram`.
    pub fn new(ram: &'a GuestRam) -> Self {
        Self(ram)
    }
}

impl smmu_model::Memory for PhysMem<'_> {
    fn read(&self, pa: u64, data: &mut [u8]) -> Result<(), Abort> {
        if self.0.read_by(Reader::Smmu, pa, data) { Ok(()) } else { Err(Abort) }
    }

    #[inline]
    fn read_u64(&self, pa: u64) -> Result<u64, Abort> {
        self.0.read_u64_by(Reader::Smmu, pa).ok_or(Abort)
    }

    fn write(&self, pa: u64, data: &[u8]) -> Result<(), Abort> {
        if self.0.write(pa, data) { Ok(()) } else { Err(Abort) }
    }

    fn compare_exchange_u64(&self, pa: u64, old: u64, new: u64) -> Result<u64, Abort> {
        // One thread steps the machine, so nothing comes between the load and the store.
        let mut held = [0; 8];
        self.read(pa, &mut held)?;
        let held = u64::from_le_bytes(held);
        if held == old {
            self.write(pa, &new.to_le_bytes())?;
        }
        Ok(held)
    }
}

/// Ring bookkeeping: every access is translated page by page, when it is made, and the walk runs to completion.
///
/// A slice is good for the access that asked for it and must not be kept: it is the translation of that moment.
impl GuestMemory for DmaPort {
    type PhysicalMemory = Mem;
    type Bitmap = WatchBitmap;

    /// Whether an access could be made as far as that can be said without making it: asking the SMMU would record
    /// events for accesses that no device made. A range that wraps round is refused.
    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        let fits = count == 0 || addr.0.checked_add(count as u64 - 1).is_some();
        fits && (self.smmu().is_some() || self.0.fabric.ram.offset(addr.0, count as u64).is_some())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, MemBitmap<'a>>, GuestMemoryError> {
        if count > 0 && addr.0.checked_add(count as u64 - 1).is_none() {
            self.refused(DmaError::Wraps);
            return Err(GuestMemoryError::GuestAddressOverflow);
        }
        Ok(Slices { port: self, iova: addr.0, left: count, write: access.has_write() })
    }
}

struct Slices<'a> {
    port: &'a DmaPort,
    iova: u64,
    left: usize,
    write: bool,
}

impl<'a> Slices<'a> {
    fn translate(&mut self) -> Result<VolatileSlice<'a, MemBitmap<'a>>, DmaError> {
        let fabric = &self.port.0.fabric;
        let (ram, pa, bytes) = match self.port.translate_now(self.iova, self.write)? {
            Place::Memory { pa, bytes } => (&fabric.ram, pa, bytes),
            Place::Nowhere => (fabric.discard().ok_or(DmaError::External)?, 0, guest_ram::PAGE_SIZE as u64),
        };
        let len = bytes.min(self.left as u64) as usize;
        let slice = match ram.offset(pa, len as u64) {
            Some(_) => ram.mem().get_slice(GuestAddress(pa), len).map_err(|_| DmaError::External),
            None => Err(DmaError::External),
        };
        let slice = slice.map_err(|e| self.port.refused(e))?;
        if !self.write {
            ram.watch().note_read(pa - ram.base(), len, Reader::Device);
        }
        self.left -= len;
        self.iova = self.iova.wrapping_add(len as u64);
        Ok(slice)
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a, MemBitmap<'a>>, GuestMemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let iova = self.iova;
        let slice = self.translate();
        if slice.is_err() {
            self.left = 0;
        }
        Some(slice.map_err(|_| GuestMemoryError::InvalidGuestAddress(GuestAddress(iova))))
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, MemBitmap<'a>> for Slices<'a> {}

#[cfg(test)]
mod tests {
    use super::super::{Fabric, ItsInbox};
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn physical_accesses_reach_ram_and_nothing_else() {
        let ram = GuestRam::new(0x4000_0000, 0x10000).unwrap();
        let port = Fabric::new(ram.clone(), None, ItsInbox::default()).port(8);
        assert!(port.write_obj(1u32, GuestAddress(0x4000_0000)).is_err(), "revoked");
        port.set_enabled(true);
        port.write_obj(0x1234_5678u32, GuestAddress(0x4000_0ffe)).unwrap();
        assert_eq!(port.read_obj::<u32>(GuestAddress(0x4000_0ffe)).unwrap(), 0x1234_5678);
        assert!(port.read_obj::<u64>(GuestAddress(0x4000_fffc)).is_err());
        assert!(port.read_obj::<u64>(GuestAddress(u64::MAX - 3)).is_err());
        assert!(port.read_obj::<u64>(GuestAddress(0)).is_err());
        assert!(port.load::<u16>(GuestAddress(0x4000_0001), std::sync::atomic::Ordering::Relaxed).is_err());
        assert!(!port.check_range(GuestAddress(u64::MAX), 2, Permissions::Read));
        assert!(port.check_range(GuestAddress(0x4000_0000), 0x10000, Permissions::Write));
        assert_eq!(port.stats().aborts, 4);
    }

    #[test]
    fn a_confined_port_reaches_its_range_and_the_doorbell() {
        let ram = GuestRam::new(0x4000_0000, 0x10000).unwrap();
        let fabric = Fabric::new(ram.clone(), None, ItsInbox::default());
        let port = fabric.port(8);
        port.set_enabled(true);
        port.confine(0x4000_2000..=0x4000_3fff);
        port.confine(0..=u64::MAX);
        port.write_obj(7u32, GuestAddress(0x4000_2000)).unwrap();
        for outside in [0x4000_1ffe, 0x4000_3ffe, 0x4000_4000, 0x1_4000_2000] {
            assert!(port.write_obj(9u32, GuestAddress(outside)).is_err(), "{outside:#x}");
        }
        let mut before = [1; 4];
        assert!(ram.read(0x4000_1ffc, &mut before) && ram.read(0x4000_4000, &mut before));
        assert_eq!(before, [0; 4]);
        let mut transfer = port.begin(0x4000_3000, 0x2000, true).unwrap();
        let data = [5; 0x2000];
        assert_eq!(port.poll(&mut transfer), Ok(crate::dma::Poll::Ready));
        assert_eq!(port.beat_write(&mut transfer, &data), Ok(0x1000));
        assert_eq!(port.poll(&mut transfer), Err(DmaError::OutOfReach));
        let mut message = port.begin(fabric.doorbell, 4, true).unwrap();
        port.poll(&mut message).unwrap();
        assert_eq!(port.beat_write(&mut message, &[1, 0, 0, 0]), Ok(4));
        assert_eq!((port.stats().msis, port.stats().aborts), (1, 5));
    }
}
