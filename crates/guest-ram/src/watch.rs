//! Per-page watch flags, and the log of device writes that hit a watched page.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// Size of a watched page in bytes.
pub const PAGE_SIZE: usize = 4096;

/// The page holds instructions that a CPU has decoded.
pub const CODE: u8 = 1;
/// The page holds the address of an open exclusive reservation.
pub const MONITOR: u8 = 2;

/// A write that touched a watched page: offset in RAM and length, both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Offset of the first byte from the start of RAM.
    pub offset: u64,
    /// Bytes written.
    pub len: u32,
}

/// One byte of flags a page, shared by all who write to RAM.
#[derive(Debug, Default)]
pub struct Watch {
    flags: Box<[AtomicU8]>,
    any_hit: AtomicBool,
    hits: Mutex<Vec<Hit>>,
}

impl Watch {
    fn new(len: usize) -> Self {
        // Zeroed memory comes straight from the allocator, so that unwatched RAM costs nothing.
        let zeroes = vec![0u8; len.div_ceil(PAGE_SIZE)].into_boxed_slice();
        // SAFETY: AtomicU8 has the size, alignment and bit validity of u8, and the box is the only owner.
        let flags = unsafe { Box::from_raw(Box::into_raw(zeroes) as *mut [AtomicU8]) };
        Self { flags, any_hit: AtomicBool::new(false), hits: Mutex::new(Vec::new()) }
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

    /// Whether a hit was logged since the last [`Watch::take_hits`].
    #[inline]
    pub fn has_hits(&self) -> bool {
        self.any_hit.load(Ordering::Relaxed)
    }

    /// The logged hits, oldest first.
    pub fn take_hits(&self) -> Vec<Hit> {
        self.any_hit.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.hits.lock().unwrap_or_else(|e| e.into_inner()))
    }

    fn record(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let (first, last) = (offset / PAGE_SIZE, (offset + len - 1) / PAGE_SIZE);
        if (first..=last).any(|p| self.flags(p) != 0) {
            let hit = Hit { offset: offset as u64, len: len as u32 };
            let mut hits = self.hits.lock().unwrap_or_else(|e| e.into_inner());
            if hits.last() != Some(&hit) {
                hits.push(hit);
            }
            self.any_hit.store(true, Ordering::Relaxed);
        }
    }
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
}
