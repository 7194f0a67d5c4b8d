//! Guest RAM: one contiguous range of guest-physical memory, mapped lazily, whose pages can be watched.
//!
//! Devices reach it through vm-memory ([`GuestRam::mem`]); every such write passes the [`Watch`]. The CPU, for
//! speed, uses plain host pointers ([`GuestRam::host`]) and is bound to respect the watch flags itself.

mod touched;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::WithBitmapSlice;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};

use touched::Touched;

pub use watch::{CODE, Hit, LOADS, MONITOR, PAGE_SIZE, Reader, STORES, Tracer, Watch, WatchBitmap};

/// The vm-memory type behind [`GuestRam`].
pub type Mem = GuestMemoryMmap<WatchBitmap>;
/// The bitmap slice that a [`Mem`] hands out with each `VolatileSlice`.
pub type MemBitmap<'a> = <WatchBitmap as WithBitmapSlice<'a>>::S;

/// Why RAM could not be made.
#[derive(Debug)]
pub struct Error(String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Guest RAM. Cloning gives another handle on the same memory.
#[derive(Clone, Debug)]
pub struct GuestRam {
    mem: Mem,
    watch: Arc<Watch>,
    base: u64,
    size: u64,
    host: *mut u8,
}

// SAFETY: `host` points into the mapping that `mem` keeps alive; access through it is the caller's unsafe business.
unsafe impl Send for GuestRam {}
// SAFETY: as above; the handle itself has no interior mutability.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// Maps `size` bytes (a multiple of [`PAGE_SIZE`]) at guest-physical `base`. Nothing is touched.
    ///
    /// # Errors
    /// When the host refuses the mapping or the size is not a whole number of pages.
    pub fn new(base: u64, size: u64) -> Result<Self, Error> {
        if size == 0 || !size.is_multiple_of(PAGE_SIZE as u64) || base.checked_add(size).is_none() {
            return Err(Error(format!("RAM size {size:#x} is not a positive multiple of {PAGE_SIZE}")));
        }
        // MmapRegion::new maps private, anonymous and MAP_NORESERVE memory.
        let region = MmapRegion::<WatchBitmap>::new(size as usize)
            .map_err(|e| Error(format!("cannot map {size:#x} bytes of RAM: {e}")))?;
        let watch = region.bitmap().watch().clone();
        let host = region.as_ptr();
        let region = vm_memory::GuestRegionMmap::new(region, GuestAddress(base))
            .ok_or_else(|| Error("RAM does not fit the address space".into()))?;
        let mem = Mem::from_regions(vec![region]).map_err(|e| Error(format!("cannot map RAM: {e}")))?;
        Ok(Self { mem, watch, base, size, host })
    }

    /// The vm-memory view; writes through it are seen by the watch.
    pub fn mem(&self) -> &Mem {
        &self.mem
    }

    /// The watch flags and hit log.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Guest-physical address of the first byte.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Host address of the first byte. Valid for [`GuestRam::size`] bytes while any handle lives. Whoever writes
    /// through it must keep to the watch flags: a write to a watched page goes to the owner of the flag first.
    #[inline]
    pub fn host(&self) -> *mut u8 {
        self.host
    }

    /// Offset of `pa` from the start of RAM when all of `pa..pa + len` is RAM.
    #[inline]
    pub fn offset(&self, pa: u64, len: u64) -> Option<u64> {
        let offset = pa.wrapping_sub(self.base);
        (offset < self.size && len <= self.size - offset).then_some(offset)
    }

    /// Reads bytes at a guest-physical address; `false` (and nothing read) when any of them is not RAM.
    pub fn read(&self, pa: u64, data: &mut [u8]) -> bool {
        self.offset(pa, data.len() as u64).is_some() && self.mem.read_slice(data, GuestAddress(pa)).is_ok()
    }

    /// As [`GuestRam::read`], by somebody whose reads are traced.
    #[inline]
    pub fn read_by(&self, by: Reader, pa: u64, data: &mut [u8]) -> bool {
        self.read(pa, data) && {
            self.watch.note_read(pa - self.base, data.len(), by);
            true
        }
    }

    /// The 8 little-endian bytes at an aligned address; otherwise as [`GuestRam::read_by`].
    #[inline]
    pub fn read_u64_by(&self, by: Reader, pa: u64) -> Option<u64> {
        let word = self.read_u64(pa)?;
        self.watch.note_read(pa - self.base, 8, by);
        Some(word)
    }

    /// The 8 little-endian bytes at an aligned address.
    #[inline]
    pub fn read_u64(&self, pa: u64) -> Option<u64> {
        let offset = self.offset(pa, 8).filter(|offset| offset % 8 == 0)?;
        // SAFETY: all 8 bytes are in the mapping, which `mem` keeps alive, and as it begins with a page they are aligned.
        // What else is there is written with atomic accesses or by the vCPUs, on this thread.
        let word = unsafe { AtomicU64::from_ptr(self.host.add(offset as usize).cast()) };
        Some(u64::from_le(word.load(Ordering::Relaxed)))
    }

    /// The 64-bit words of the page at an address, each little-endian.
    #[inline]
    pub fn page(&self, pa: u64) -> Option<&[AtomicU64; PAGE_SIZE / 8]> {
        let offset = self.offset(pa, PAGE_SIZE as u64).filter(|offset| offset % PAGE_SIZE as u64 == 0)?;
        // SAFETY: the whole page is in the mapping, which `self` keeps alive, and is aligned; as in `read_u64`.
        Some(unsafe { &*self.host.add(offset as usize).cast() })
    }

    /// Writes bytes at a guest-physical address; `false` (and nothing written) when any of them is not RAM.
    pub fn write(&self, pa: u64, data: &[u8]) -> bool {
        self.offset(pa, data.len() as u64).is_some() && self.mem.write_slice(data, GuestAddress(pa)).is_ok()
    }

    /// Bytes of pages that were ever touched, as far as the host tells; otherwise all.
    pub fn touched(&self) -> u64 {
        let mut touched = Touched::new();
        let first = self.host as usize / PAGE_SIZE;
        let pages = (0..self.size as usize / PAGE_SIZE).filter(|page| touched.page(first + page));
        (pages.count() * PAGE_SIZE) as u64
    }

    /// Calls `f` with the page offset and content of every page that is not all zeroes, in ascending order. A page
    /// the guest never touched and one it filled with zeroes are the same to `f`, so a hash over these is a
    /// function of the content alone.
    pub fn for_each_nonzero_page(&self, mut f: impl FnMut(u64, &[u8])) {
        let mut page = [0u8; PAGE_SIZE];
        let mut touched = Touched::new();
        let first = self.host as usize / PAGE_SIZE;
        for offset in (0..self.size).step_by(PAGE_SIZE) {
            if touched.page(first + offset as usize / PAGE_SIZE)
                && self.mem.read_slice(&mut page, GuestAddress(self.base + offset)).is_ok()
                && page != [0; PAGE_SIZE]
            {
                f(offset, &page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_refuses_what_is_not_ram() {
        let ram = GuestRam::new(0x4000_0000, 0x10000).unwrap();
        assert!(ram.write(0x4000_0ffe, &[1, 2, 3, 4]));
        let mut back = [0; 4];
        assert!(ram.read(0x4000_0ffe, &mut back));
        assert_eq!(back, [1, 2, 3, 4]);
        assert!(!ram.write(0x4000_fffe, &[0; 4]));
        assert!(!ram.read(0x3fff_ffff, &mut back));
        assert!(!ram.read(u64::MAX, &mut back));
        let word = |pa| ram.read_u64_by(Reader::Smmu, pa);
        assert_eq!([0x4000_0ff8, 0x4000_1000].map(word), [Some(0x0201 << 48), Some(0x0403)]);
        assert_eq!([0x4001_0000, 0x3fff_fff8, u64::MAX - 7].map(word), [None; 3]);
    }

    #[test]
    fn nonzero_pages_come_in_order() {
        let ram = GuestRam::new(0, 0x10000).unwrap();
        ram.write(0x5008, &[7]);
        ram.write(0x2000, &[9]);
        ram.write(0x8000, &[0; 64]);
        let mut seen = Vec::new();
        ram.for_each_nonzero_page(|offset, page| seen.push((offset, page[8])));
        assert_eq!(seen, [(0x2000, 0), (0x5000, 7)]);
    }

    #[test]
    fn a_large_untouched_ram_is_looked_through_at_once() {
        let ram = GuestRam::new(0x4000_0000, 64 << 30).unwrap();
        let far = 0x4000_0000 + (63 << 30);
        ram.write(far, &[3]);
        let mut read = [0];
        ram.read(0x8000_0000, &mut read);
        let mut seen = Vec::new();
        ram.for_each_nonzero_page(|offset, page| seen.push((offset, page[0])));
        assert_eq!(seen, [(63 << 30, 3)]);
    }

    #[test]
    fn bad_sizes_are_refused() {
        assert!(GuestRam::new(0, 0).is_err());
        assert!(GuestRam::new(0, 100).is_err());
        assert!(GuestRam::new(u64::MAX - 0xfff, 0x10000).is_err());
    }
}
