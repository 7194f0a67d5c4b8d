//! The fast path: keys derived from the TLB, and the only place where guest RAM is reached through host pointers.
#![allow(unsafe_code)]

use guest_ram::{GuestRam, LOADS, STORES};

use super::tlb::{Cached, ENTRIES, View, index};

mod sealed {
    /// Only plain integers may be loaded from arbitrary bytes.
    pub trait Sealed {}
}

/// A value that one access transfers, little-endian in memory.
pub trait Prim: sealed::Sealed + Copy + Default + 'static {
    /// Bytes.
    const SIZE: u64;
    /// Zero-extends to 128 bits.
    fn widen(self) -> u128;
    /// The low bits of `value`.
    fn narrow(value: u128) -> Self;
    /// The bytes in the opposite order.
    fn swapped(self) -> Self;
}

macro_rules! prim {
    ($($t:ty)*) => {$(
        impl sealed::Sealed for $t {}
        impl Prim for $t {
            const SIZE: u64 = size_of::<$t>() as u64;
            #[inline(always)]
            fn widen(self) -> u128 {
                self as u128
            }
            #[inline(always)]
            fn narrow(value: u128) -> Self {
                value as $t
            }
            #[inline(always)]
            fn swapped(self) -> Self {
                self.swap_bytes()
            }
        }
    )*};
}

prim!(u8 u16 u32 u64 u128);

/// Size of the array, a power of two so that an index needs a mask only.
const SIZE: usize = 8 * ENTRIES;

/// A page that the fast path serves. A key is the virtual page with the tag of the ASID in bits 11:2; 0 never matches.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
struct Entry {
    /// Matches for reads, or fetches in a code view.
    read: u64,
    /// Matches for writes.
    write: u64,
    /// What to add to a virtual address in the page to get the host's. In a code view: where generated code for the page
    /// has its table, or 0.
    addend: u64,
    /// Physical page.
    pa: u64,
}

/// What generated code knows of the fast path: where things are in a [`Fast`] and in an entry, in bytes, and how the
/// entry of an address is found.
pub(crate) mod layout {
    use std::mem::offset_of;

    use super::{ENTRIES, Entry, Fast};

    /// The tags, in [`Fast`].
    pub(in crate::mmu) const TAGS: usize = offset_of!(Fast, tags);
    /// The key for reads.
    pub(crate) const READ: usize = offset_of!(Entry, read);
    /// The key for writes.
    pub(crate) const WRITE: usize = offset_of!(Entry, write);
    /// What to add to an address. In a code view: where the page's table is, or 0.
    pub(crate) const ADDEND: usize = offset_of!(Entry, addend);
    /// Shifted right by this, the page number of an address counts bytes of entries.
    pub(crate) const SHIFT: u32 = 12 - size_of::<Entry>().trailing_zeros();
    /// Mask of what is left after the shift.
    pub(crate) const MASK: usize = (ENTRIES - 1) * size_of::<Entry>();
}

/// [`Fast::tags`] before an ASID is known: matches nothing.
const UNASSIGNED: u64 = 2;

/// The fast path's part of the TLB. It holds host addresses, so it is no part of a snapshot, and a copy is empty: the
/// slow path fills it again from what is cached.
#[derive(Debug)]
pub(super) struct Fast {
    entries: Box<[Entry; SIZE]>,
    /// The RAM that all entries point into, which this keeps alive.
    ram: Option<GuestRam>,
    /// What keys of the lower and of the upper half are tagged with.
    tags: [u64; 2],
    /// The present data view.
    pub(super) data: View,
    /// The data view of unprivileged loads and stores.
    pub(super) unprivileged: View,
    /// The present code view.
    pub(super) code: View,
    /// How often tables of generated code had been taken away when the entries were last rid of them.
    pub(super) tables: u64,
    /// The tag and the views are right.
    pub(super) ready: bool,
}

impl Default for Fast {
    fn default() -> Self {
        let entries = vec![Entry::default(); SIZE].into_boxed_slice();
        // The length is right by construction.
        let entries = entries.try_into().unwrap_or_else(|_| unreachable!());
        Self {
            entries,
            ram: None,
            tags: [UNASSIGNED; 2],
            data: View::UserData,
            unprivileged: View::UserData,
            code: View::UserCode,
            tables: 0,
            ready: false,
        }
    }
}

impl Clone for Fast {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Fast {
    /// The entry that `va` may be in.
    #[inline(always)]
    fn entry(&self, view: View, va: u64) -> &Entry {
        &self.entries[(view as usize + (va >> 12) as usize % ENTRIES) % SIZE]
    }

    /// The entries of the present data view, for generated code.
    pub(super) fn data_entries(&self) -> *const u8 {
        self.entries[self.data as usize..].as_ptr().cast()
    }

    /// The entries of the present code view, for generated code.
    pub(super) fn code_entries(&self) -> *const u8 {
        self.entries[self.code as usize..].as_ptr().cast()
    }

    /// Generated code for the page that `pc` is in has its table here. The fast path serves `pc`.
    pub(super) fn set_table(&mut self, pc: u64, table: usize) {
        self.entries[(self.code as usize + (pc >> 12) as usize % ENTRIES) % SIZE].addend = table as u64;
    }

    /// Forgets where tables are.
    pub(super) fn drop_tables(&mut self) {
        for e in &mut self.entries[View::UserCode as usize..] {
            e.addend = 0;
        }
    }

    /// The physical address that `va` is at, when the fast path serves aligned accesses there.
    #[inline(always)]
    pub(super) fn physical(&self, view: View, va: u64, write: bool) -> Option<u64> {
        let entry = self.entry(view, va);
        let key = if write { entry.write } else { entry.read };
        (key == self.key(va)).then_some(entry.pa | va & 0xfff)
    }

    /// The key of an entry that serves `va`.
    #[inline(always)]
    fn key(&self, va: u64) -> u64 {
        va & !0xfff | self.tags[(va >> 63) as usize]
    }

    /// Loads from `va`, when the fast path serves it.
    #[inline(always)]
    pub(super) fn load<T: Prim>(&self, view: View, va: u64) -> Option<T> {
        let entry = self.entry(view, va);
        if entry.read != self.key(va.wrapping_add(T::SIZE - 1)) {
            return None;
        }
        let host = entry.addend.wrapping_add(va) as *const T;
        // SAFETY: the key says that the last byte is in the entry's page. So is the first: the entry was chosen by the
        // first byte's page number, which `fill` took for the entry's own, and the next page chooses another one. The
        // page is wholly in the RAM that `self.ram` keeps mapped. Any bytes are a T, which is a plain integer. Guest
        // code is the only one to touch RAM while it runs, on this thread.
        Some(unsafe { host.read_unaligned() })
    }

    /// Stores to `va`, when the fast path serves it.
    #[inline(always)]
    pub(super) fn store<T: Prim>(&self, view: View, va: u64, value: T) -> bool {
        let entry = self.entry(view, va);
        if entry.write != self.key(va.wrapping_add(T::SIZE - 1)) {
            return false;
        }
        let host = entry.addend.wrapping_add(va) as *mut T;
        // SAFETY: as in `load`. The page is not watched, or it would have no write key.
        unsafe { host.write_unaligned(value) };
        true
    }

    /// The physical address of the instruction at `pc`, when the fast path serves it, which it does for aligned ones.
    #[inline(always)]
    pub(super) fn fetch(&self, pc: u64) -> Option<u64> {
        let entry = self.entry(self.code, pc);
        (entry.read == self.key(pc) | pc & 3).then_some(entry.pa | pc & 0xfff)
    }

    /// Tags keys with a slot, those of the upper half only if they are `bound` to it; 0 is none.
    pub(super) fn set_slot(&mut self, slot: u16, bound: bool) {
        let tag = if slot == 0 { UNASSIGNED } else { u64::from(slot) << 2 };
        self.tags = [tag, if bound { tag } else { 0 }];
    }

    /// Forgets the keys at an index.
    pub(super) fn drop_at(&mut self, index: usize) {
        let e = &mut self.entries[index];
        (e.read, e.write) = (0, 0);
    }

    /// Forgets all keys, and nothing that is cached.
    pub(super) fn drop_all(&mut self) {
        self.entries.fill(Entry::default());
    }

    /// Forgets the keys for data of the page at physical address `pa` that its watch `flags` forbid.
    pub(super) fn drop_keys(&mut self, pa: u64, flags: u8) {
        let pa = pa & !0xfff;
        for e in &mut self.entries[..View::UserCode as usize] {
            if e.pa == pa {
                e.write = if flags & STORES != 0 { 0 } else { e.write };
                e.read = if flags & LOADS != 0 { 0 } else { e.read };
            }
        }
    }

    /// Gives a cached translation its keys, when the fast path may serve it.
    pub(super) fn fill(&mut self, ram: &GuestRam, view: View, va: u64, e: &Cached) {
        // The tag's rule looks at bit 63 alone: addresses whose half it does not tell stay slow.
        if (va >> 63 ^ va >> 55) & 1 != 0 || self.tags[0] == UNASSIGNED || (e.is_device() && !view.is_code())
        {
            return;
        }
        let Some(offset) = ram.offset(e.pa, 0x1000) else { return };
        if self.ram.as_ref().is_none_or(|known| known.host() != ram.host()) {
            self.drop_all();
            self.ram = Some(ram.clone());
        }
        let key = self.key(va);
        let flags = ram.watch().flags((offset >> 12) as usize);
        let readable = e.permits(false) && (flags & LOADS == 0 || view.is_code());
        let writable = e.permits(true) && flags & STORES == 0;
        let host = (ram.host() as u64).wrapping_add(offset);
        self.entries[index(view, va)] = Entry {
            read: if readable { key } else { 0 },
            write: if writable { key } else { 0 },
            addend: if view.is_code() { 0 } else { host.wrapping_sub(va & !0xfff) },
            pa: e.pa,
        };
    }
}

/// Loads from RAM by physical address; `None` when any byte is not RAM.
#[inline]
pub(super) fn read<T: Prim>(ram: &GuestRam, pa: u64) -> Option<T> {
    let offset = ram.offset(pa, T::SIZE)?;
    // SAFETY: `offset` checked that all of the bytes are in the mapping; see `Fast::load` for the rest.
    Some(unsafe { ram.host().add(offset as usize).cast::<T>().read_unaligned() })
}

/// Stores to RAM by physical address; `None` when any byte is not RAM. The watch is the caller's business.
#[inline]
pub(super) fn write<T: Prim>(ram: &GuestRam, pa: u64, value: T) -> Option<()> {
    let offset = ram.offset(pa, T::SIZE)?;
    // SAFETY: as in `read`.
    unsafe { ram.host().add(offset as usize).cast::<T>().write_unaligned(value) };
    Some(())
}
