//! Which pages of a mapping were ever touched, by the kernel's account (Documentation/admin-guide/mm/pagemap.rst).
//!
//! Reading a page that was not would give it page tables, and takes a fault each: for most of a large RAM that is the
//! only cost it ever has.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::PAGE_SIZE;

/// Bytes of an entry of the page map.
const ENTRY: usize = 8;
/// Pages asked about at once.
const CHUNK: usize = 1 << 15;
/// In the last byte of an entry: the page is present, or swapped out.
const PRESENT_OR_SWAPPED: u8 = 0xc0;

/// The account of this process.
pub(crate) struct Touched {
    map: Option<File>,
    /// Entries from the page `first` on.
    entries: Vec<u8>,
    first: usize,
}

impl Touched {
    /// The kernel's account, or none: then every page may have been touched.
    pub(crate) fn new() -> Self {
        let mut this = Self { map: None, entries: Vec::new(), first: 0 };
        // Elsewhere the host's pages may have another size.
        if cfg!(target_arch = "x86_64") {
            this.map = File::open("/proc/self/pagemap").ok();
        }
        // Not every sandbox tells the truth; this page has just been touched.
        let witness = Box::new([1u8; 2 * PAGE_SIZE]);
        if !this.page(witness.as_ptr() as usize / PAGE_SIZE + 1) {
            this.map = None;
        }
        this
    }

    /// Whether the page of this number (its host address by the page size) may have been touched.
    pub(crate) fn page(&mut self, page: usize) -> bool {
        let Some(map) = &self.map else { return true };
        if page < self.first || page >= self.first + self.entries.len() / ENTRY {
            self.first = page;
            self.entries.resize(CHUNK * ENTRY, 0);
            let read = map.read_at(&mut self.entries, (page * ENTRY) as u64).unwrap_or(0);
            self.entries.truncate(read);
        }
        // What cannot be read may have been touched.
        self.entries
            .get((page - self.first) * ENTRY + ENTRY - 1)
            .is_none_or(|byte| byte & PRESENT_OR_SWAPPED != 0)
    }
}
