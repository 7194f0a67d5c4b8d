//! Per-page watch flags, the log of device writes that hit a watched page, and tracing: whoever wants to know of every
//! access to a page marks it, and is told of those of the vCPUs and of devices alike.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// Size of a watched page in bytes.
pub const PAGE_SIZE: usize = 4096;

/// The page holds instructions that a CPU has decoded.
pub const CODE: u8 = 1;
/// The page holds the address of an open exclusive reservation.
pub const MONITOR: u8 = 2;
/// Flags for which a vCPU's stores must be noticed.
pub const STORES: u8 = CODE | MONITOR | 0b0101_0100;
/// Flags for which a vCPU's loads must be noticed.
pub const LOADS: u8 = 0b1010_1000;

/// Somebody who traces accesses to pages. Each has flags of its own, so that one may stop while another goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracer(u8);

impl Tracer {
    /// The checker of the SMMU.
    pub const CHECKER: Tracer = Tracer(2);
    /// Whoever watches bounce buffers.
    pub const POOL: Tracer = Tracer(4);
    /// The race lab.
    pub const RACE: Tracer = Tracer(6);

    /// The flag of a page whose stores it wants to see.
    #[must_use]
    pub const fn stores(self) -> u8 {
        1 << self.0
    }

    /// The flag of a page whose loads it wants to see.
    #[must_use]
    pub const fn loads(self) -> u8 {
        2 << self.0
    }
}

/// A write that touched a watched page: offset in RAM and length, both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Offset of the first byte from the start of RAM.
    pub offset: u64,
    /// Bytes written.
    pub len: u32,
}

/// Who reads memory beside the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A device: data, or the bookkeeping of a ring.
    Device,
    /// An SMMU: a step of a walk, a structure of its configuration, a command.
    Smmu,
}

/// One byte of flags a page, shared by all who write to RAM.
#[derive(Debug, Default)]
pub struct Watch {
    flags: Box<[AtomicU8]>,
    any_hit: AtomicBool,
    hits: Mutex<Vec<Hit>>,
    any_fresh: AtomicBool,
    /// Pages that became traced, for which the vCPUs may still have a fast way.
    fresh: Mutex<Vec<usize>>,
    any_traced: AtomicBool,
    /// Writes by devices to traced pages.
    traced: Mutex<Vec<Hit>>,
    any_read: AtomicBool,
    /// Reads of traced pages by devices and SMMUs.
    reads: Mutex<Vec<(Hit, Reader)>>,
}

impl Watch {
    fn new(len: usize) -> Self {
        // Zeroed memory comes straight from the allocator, so that unwatched RAM costs nothing.
        let zeroes = vec![0u8; len.div_ceil(PAGE_SIZE)].into_boxed_slice();
        // SAFETY: AtomicU8 has the size, alignment and bit validity of u8, and the box is the only owner.
        let flags = unsafe { Box::from_raw(Box::into_raw(zeroes) as *mut [AtomicU8]) };
        Self { flags, ..Self::default() }
    }

    /// Flags of the page at index `page`; zero past the end of RAM.
    #[inline]
    pub fn flags(&self, page: usize) -> u8 {
        self.flags.get(page).map_or(0, |f| f.load(Ordering::Relaxed))
    }

    /// Sets `bits` on a page.
    pub fn set(&self, page: usize, bits: u8) {
        if let Some(f) = self.flags.get(page) {
            f.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// Clears `bits` on a page.
    pub fn clear(&self, page: usize, bits: u8) {
        if let Some(f) = self.flags.get(page) {
            f.fetch_and(!bits, Ordering::Relaxed);
        }
    }

    /// Traces a page: `bits` are flags of a [`Tracer`].
    pub fn trace(&self, page: usize, bits: u8) {
        if let Some(flags) = self.flags.get(page)
            && flags.fetch_or(bits, Ordering::Relaxed) & bits != bits
        {
            lock(&self.fresh).push(page);
            self.any_fresh.store(true, Ordering::Relaxed);
        }
    }

    /// Whether pages became traced since the last [`Watch::take_fresh`].
    #[inline]
    pub fn has_fresh(&self) -> bool {
        self.any_fresh.load(Ordering::Relaxed)
    }

    /// Pages that became traced, by index. The vCPUs must give up their fast way to them.
    pub fn take_fresh(&self) -> Vec<usize> {
        self.any_fresh.store(false, Ordering::Relaxed);
        std::mem::take(&mut *lock(&self.fresh))
    }

    /// Whether a device wrote to a traced page since the last [`Watch::take_traced`].
    #[inline]
    pub fn has_traced(&self) -> bool {
        self.any_traced.load(Ordering::Relaxed)
    }

    /// What devices wrote to traced pages, oldest first.
    pub fn take_traced(&self) -> Vec<Hit> {
        self.any_traced.store(false, Ordering::Relaxed);
        std::mem::take(&mut *lock(&self.traced))
    }

    /// Notes a read that is no vCPU's, if its page is traced for loads. It lies in one page, or its first page counts.
    #[inline]
    pub fn note_read(&self, offset: u64, len: usize, by: Reader) {
        if self.flags(offset as usize / PAGE_SIZE) & LOADS != 0 && len != 0 {
            lock(&self.reads).push((Hit { offset, len: len as u32 }, by));
            self.any_read.store(true, Ordering::Relaxed);
        }
    }

    /// The noted reads since the last time, oldest first.
    pub fn take_reads(&self) -> Vec<(Hit, Reader)> {
        if !self.any_read.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        std::mem::take(&mut *lock(&self.reads))
    }

    /// Forgets them.
    #[inline]
    pub fn drop_reads(&self) {
        if self.any_read.load(Ordering::Relaxed) {
            self.take_reads();
        }
    }

    /// Whether a hit was logged since the last [`Watch::take_hits`].
    #[inline]
    pub fn has_hits(&self) -> bool {
        self.any_hit.load(Ordering::Relaxed)
    }

    /// The logged hits, oldest first.
    pub fn take_hits(&self) -> Vec<Hit> {
        self.any_hit.store(false, Ordering::Relaxed);
        std::mem::take(&mut *lock(&self.hits))
    }

    fn record(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let (first, last) = (offset / PAGE_SIZE, (offset + len - 1) / PAGE_SIZE);
        let flags = (first..=last).fold(0, |flags, page| flags | self.flags(page));
        let hit = Hit { offset: offset as u64, len: len as u32 };
        if flags & (CODE | MONITOR) != 0 {
            let mut hits = lock(&self.hits);
            if hits.last() != Some(&hit) {
                hits.push(hit);
            }
            self.any_hit.store(true, Ordering::Relaxed);
        }
        if flags & STORES & !(CODE | MONITOR) != 0 {
            lock(&self.traced).push(hit);
            self.any_traced.store(true, Ordering::Relaxed);
        }
    }
}

fn lock<T>(list: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    list.lock().unwrap_or_else(|e| e.into_inner())
}

/// The [`Bitmap`] through which every vm-memory write reaches the [`Watch`].
#[derive(Clone, Debug, Default)]
pub struct WatchBitmap {
    watch: Arc<Watch>,
    base: usize,
}

impl WatchBitmap {
    /// The flags behind this bitmap.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }
}

impl WithBitmapSlice<'_> for WatchBitmap {
    type S = WatchBitmap;
}

impl BitmapSlice for WatchBitmap {}

impl Bitmap for WatchBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.watch.record(self.base + offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.watch.flags((self.base + offset) / PAGE_SIZE) != 0
    }

    fn slice_at(&self, offset: usize) -> WatchBitmap {
        WatchBitmap { watch: self.watch.clone(), base: self.base + offset }
    }
}

impl NewBitmap for WatchBitmap {
    fn with_len(len: usize) -> Self {
        Self { watch: Arc::new(Watch::new(len)), base: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_to_watched_pages_are_logged() {
        let bitmap = WatchBitmap::with_len(4 * PAGE_SIZE);
        bitmap.mark_dirty(0, 4 * PAGE_SIZE);
        assert!(!bitmap.watch().has_hits());
        bitmap.watch().set(2, CODE);
        bitmap.slice_at(PAGE_SIZE).mark_dirty(PAGE_SIZE - 1, 2);
        assert!(bitmap.watch().has_hits());
        assert_eq!(bitmap.watch().take_hits(), [Hit { offset: 2 * PAGE_SIZE as u64 - 1, len: 2 }]);
        assert!(!bitmap.watch().has_hits());
    }

    #[test]
    fn tracers_do_not_disturb_each_other() {
        let bitmap = WatchBitmap::with_len(4 * PAGE_SIZE);
        let watch = bitmap.watch();
        let (a, b) = (Tracer::CHECKER, Tracer::POOL);
        watch.trace(1, a.stores());
        watch.trace(1, b.stores() | b.loads());
        watch.trace(1, a.stores());
        assert_eq!(watch.take_fresh(), [1, 1], "once for each new flag");
        watch.clear(1, b.stores() | b.loads());
        assert_eq!(watch.flags(1), a.stores());
        bitmap.mark_dirty(PAGE_SIZE, 8);
        bitmap.mark_dirty(2 * PAGE_SIZE, 8);
        let offset = PAGE_SIZE as u64 + 8;
        watch.note_read(offset, 16, Reader::Device);
        assert_eq!(watch.take_reads(), [], "nobody wants to know");
        watch.trace(1, Tracer::RACE.loads());
        watch.note_read(offset, 16, Reader::Smmu);
        watch.note_read(2 * offset, 16, Reader::Device);
        assert_eq!(watch.take_reads(), [(Hit { offset, len: 16 }, Reader::Smmu)]);
        assert!(!watch.has_hits(), "tracing is nothing to the vCPUs");
        assert_eq!(watch.take_traced(), [Hit { offset: PAGE_SIZE as u64, len: 8 }]);
        assert!(!watch.has_traced());
        assert_eq!((STORES, LOADS), (0b0101_0111, 0b1010_1000));
        assert_eq!((a.stores() | b.stores()) & STORES, a.stores() | b.stores());
        assert_eq!((a.loads() | b.loads()) & LOADS, a.loads() | b.loads());
    }
}
