//! The TLB: cached translations (architectural state), and keys for the fast path (derived from them).
//!
//! Translations are cached 4 KiB at a time, direct-mapped, in one array for each *view*: what one privilege level may do
//! with data or code. A [`Cached`] translation stays until an invalidation or another page replaces it. A fast key
//! exists only where the access needs nothing but a copy: plain RAM that is permitted and not watched.
//!
//! An ASID is known by its *slot*, a small number handed out when the ASID is first used. TLBI by ASID retires the
//! slot, so that everything tagged with it is dead at once.

use std::collections::{BTreeMap, BTreeSet};

use guest_ram::GuestRam;
use serde::{Deserialize, Serialize};

use super::host::Addend;

/// Entries of one view.
pub(super) const ENTRIES: usize = 1024;

/// Whose permissions an access has, and of what kind. The value is the first entry of its array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum View {
    /// Data at EL0, and LDTR and STTR at EL1.
    UserData = 0,
    /// Data at EL1.
    KernelData = ENTRIES,
    /// Data at EL1 with PSTATE.PAN set.
    KernelPanData = 2 * ENTRIES,
    /// Instructions at EL0.
    UserCode = 3 * ENTRIES,
    /// Instructions at EL1.
    KernelCode = 4 * ENTRIES,
}

impl View {
    pub(super) const ALL: [View; 5] =
        [View::UserData, View::KernelData, View::KernelPanData, View::UserCode, View::KernelCode];

    pub(super) fn is_code(self) -> bool {
        matches!(self, View::UserCode | View::KernelCode)
    }

    pub(super) fn privileged(self) -> bool {
        !matches!(self, View::UserData | View::UserCode)
    }
}

const ALL_ENTRIES: usize = 5 * ENTRIES;
/// Size of the fast arrays, a power of two so that an index needs a mask only.
const FAST: usize = 8 * ENTRIES;

/// [`Cached::flags`]: the entry holds a translation.
const VALID: u8 = 1;
/// Not bound to an ASID.
const GLOBAL: u8 = 2;
/// Reads (of instructions, in a code view) are permitted.
const READ: u8 = 4;
/// Writes are permitted.
const WRITE: u8 = 8;

/// A cached translation of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cached {
    /// Virtual page with whatever tag its top byte has.
    va: u64,
    /// Physical page.
    pub(super) pa: u64,
    slot: u16,
    flags: u8,
    /// log2 of the size of the block or page that the descriptor maps.
    size: u8,
    /// The byte of MAIR_EL1.
    pub(super) attr: u8,
    /// SH.
    pub(super) sh: u8,
}

impl Cached {
    /// Whether `write` or read access is permitted.
    pub(super) fn permits(&self, write: bool) -> bool {
        self.flags & if write { WRITE } else { READ } != 0
    }

    /// Whether the memory type is Device.
    pub(super) fn is_device(&self) -> bool {
        is_device(self.attr)
    }

    /// Whether a TLBI by `va` (bits 55:12) covers it.
    fn covers(&self, va: u64) -> bool {
        (self.va ^ va) << 8 >> 8 >> self.size == 0
    }
}

/// Whether a byte of MAIR_EL1 means Device memory.
pub(super) fn is_device(attr: u8) -> bool {
    attr & 0xf0 == 0
}

/// What a walk found, to be cached for one view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filling {
    pub(super) pa: u64,
    pub(super) global: bool,
    pub(super) read: bool,
    pub(super) write: bool,
    /// log2 of the size that the descriptor maps.
    pub(super) size: u8,
    pub(super) attr: u8,
    pub(super) sh: u8,
}

/// A TLBI by address.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByAddress {
    /// Address bits 55:12.
    pub(super) va: u64,
    /// The ASID, or `None` for all of them.
    pub(super) asid: Option<u16>,
}

/// Everything cached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Tlb {
    #[serde(with = "sparse")]
    entries: Vec<Cached>,
    /// Slots by ASID; never 0.
    slots: BTreeMap<u16, u16>,
    last_slot: u16,
    /// Slot of the current ASID.
    slot: u16,
    /// Where blocks of 2 MiB have been cached since the last full invalidation, by `va >> 21`.
    blocks: BTreeSet<u64>,
    /// A larger block has been cached since then.
    huge: bool,
    /// An entry of the upper half that is bound to an ASID has been cached since then.
    upper_bound: bool,
}

/// How many slots there are: as many as fit into a key next to the page number.
const SLOTS: u16 = 1023;
/// How many 2 MiB blocks are remembered before everything is invalidated instead.
const MAX_BLOCKS: usize = 8192;

impl Tlb {
    pub(super) fn new() -> Self {
        Self {
            entries: vec![Cached::default(); ALL_ENTRIES],
            slots: BTreeMap::new(),
            last_slot: 0,
            slot: 0,
            blocks: BTreeSet::new(),
            huge: false,
            upper_bound: false,
        }
    }

    /// Index of the entry for `va`.
    fn index(view: View, va: u64) -> usize {
        view as usize + (va >> 12) as usize % ENTRIES
    }

    /// The cached translation of `va`.
    pub(super) fn find(&self, view: View, va: u64) -> Option<Cached> {
        let e = self.entries.get(Self::index(view, va))?;
        let hit =
            e.flags & VALID != 0 && e.va == va & !0xfff && (e.flags & GLOBAL != 0 || e.slot == self.slot);
        hit.then_some(*e)
    }

    /// Caches a translation in place of whatever was there.
    pub(super) fn fill(&mut self, fast: &mut Fast, view: View, va: u64, f: Filling) -> Cached {
        if f.size > 21 {
            self.huge = true;
        } else if f.size == 21 {
            if self.blocks.len() >= MAX_BLOCKS {
                self.invalidate_all(fast);
            }
            self.blocks.insert(va << 8 >> 29);
        }
        self.upper_bound |= !f.global && va >> 55 & 1 != 0;
        let flag = |on: bool, flag: u8| if on { flag } else { 0 };
        let entry = Cached {
            va: va & !0xfff,
            pa: f.pa & !0xfff,
            slot: self.slot,
            flags: VALID | flag(f.global, GLOBAL) | flag(f.read, READ) | flag(f.write, WRITE),
            size: f.size,
            attr: f.attr,
            sh: f.sh,
        };
        let index = Self::index(view, va);
        fast.drop(index);
        self.entries[index] = entry;
        entry
    }

    /// Makes `asid` current.
    pub(super) fn select(&mut self, fast: &mut Fast, asid: u16) {
        let slot = match self.slots.get(&asid) {
            Some(&slot) => slot,
            None => self.new_slot(fast, asid),
        };
        if slot == self.slot {
            return;
        }
        self.slot = slot;
        fast.tag = u64::from(slot) << 2;
        if self.upper_bound {
            for (index, e) in self.entries.iter().enumerate() {
                if e.flags & GLOBAL == 0 && e.va >> 55 & 1 != 0 {
                    fast.drop(index);
                }
            }
        }
    }

    fn new_slot(&mut self, fast: &mut Fast, asid: u16) -> u16 {
        if self.last_slot == SLOTS {
            self.invalidate_all(fast);
            self.slots.clear();
            self.last_slot = 0;
        }
        self.last_slot += 1;
        self.slots.insert(asid, self.last_slot);
        self.last_slot
    }

    /// Tags the fast path again after a restore.
    pub(super) fn refresh(&self, fast: &mut Fast) {
        fast.tag = if self.slot == 0 { UNASSIGNED } else { u64::from(self.slot) << 2 };
    }

    /// TLBI VMALLE1.
    pub(super) fn invalidate_all(&mut self, fast: &mut Fast) {
        self.entries.fill(Cached::default());
        fast.drop_all();
        self.blocks.clear();
        self.huge = false;
        self.upper_bound = false;
    }

    /// TLBI ASIDE1: everything that is bound to `asid`. `current` is the ASID in use.
    pub(super) fn invalidate_asid(&mut self, fast: &mut Fast, asid: u16, current: u16) {
        // What is tagged with the old slot is never found again.
        if self.slots.remove(&asid).is_some() && asid == current {
            self.select(fast, asid);
        }
    }

    /// TLBI VAE1 and VAAE1, and those for the last level only: intermediate levels are not cached.
    pub(super) fn invalidate_address(&mut self, fast: &mut Fast, by: ByAddress, page_bits: u8) {
        let slot = match by.asid {
            None => None,
            // An ASID without a slot has nothing but global entries to its name.
            Some(asid) => Some(self.slots.get(&asid).copied().unwrap_or(0)),
        };
        let va = by.va << 8 >> 8;
        if self.huge || self.blocks.contains(&(va >> 21)) {
            for index in 0..ALL_ENTRIES {
                self.invalidate_entry(fast, index, va, slot);
            }
            return;
        }
        // A page is cached in pieces of 4 KiB.
        let first = va >> page_bits << page_bits;
        for piece in 0..1u64 << (page_bits - 12) {
            for view in View::ALL {
                self.invalidate_entry(fast, Self::index(view, first + (piece << 12)), va, slot);
            }
        }
    }

    fn invalidate_entry(&mut self, fast: &mut Fast, index: usize, va: u64, slot: Option<u16>) {
        let e = &mut self.entries[index];
        let named = slot.is_none_or(|slot| e.flags & GLOBAL != 0 || e.slot == slot);
        if e.flags & VALID != 0 && named && e.covers(va) {
            *e = Cached::default();
            fast.drop(index);
        }
    }
}

/// One entry of the fast arrays. A key is the virtual page with the tag of the ASID in bits 11:2; 0 never matches.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
pub(super) struct FastEntry {
    /// Matches for reads, or fetches in a code view.
    pub(super) read: u64,
    /// Matches for writes.
    pub(super) write: u64,
    /// From virtual to host address.
    pub(super) addend: Addend,
    /// Physical page.
    pub(super) pa: u64,
}

/// [`Fast::tag`] before an ASID is known: matches nothing in the lower half.
const UNASSIGNED: u64 = 2;

/// The fast path's view of the TLB. It holds host addresses, so it is no part of a snapshot: the slow path fills it
/// again from what is cached.
#[derive(Clone, Debug)]
pub(super) struct Fast {
    pub(super) entries: Box<[FastEntry; FAST]>,
    /// What keys of the lower half are tagged with.
    pub(super) tag: u64,
    /// First entry of the present data view.
    pub(super) data: usize,
    /// First entry of the data view of unprivileged loads and stores.
    pub(super) unprivileged: usize,
    /// First entry of the present code view.
    pub(super) code: usize,
    /// [`Fast::data`] and the others are right.
    pub(super) ready: bool,
}

impl Default for Fast {
    fn default() -> Self {
        let entries = vec![FastEntry::default(); FAST].into_boxed_slice();
        // The length is right by construction.
        let entries = entries.try_into().unwrap_or_else(|_| unreachable!());
        Self {
            entries,
            tag: UNASSIGNED,
            data: 0,
            unprivileged: 0,
            code: View::UserCode as usize,
            ready: false,
        }
    }
}

impl Fast {
    /// The entry that `va` may be in, in the view that begins at `view`.
    #[inline(always)]
    pub(super) fn entry(&self, view: usize, va: u64) -> &FastEntry {
        &self.entries[(view + (va >> 12) as usize % ENTRIES) % FAST]
    }

    /// What the key of an entry that serves `va` looks like: upper-half keys have no tag.
    #[inline(always)]
    pub(super) fn key(&self, va: u64, low: u64) -> u64 {
        va & !0xfff | low | self.tag & !((va as i64 >> 63) as u64)
    }

    fn drop(&mut self, index: usize) {
        let e = &mut self.entries[index];
        (e.read, e.write) = (0, 0);
    }

    /// Forgets all keys, and nothing that is cached.
    pub(super) fn drop_all(&mut self) {
        self.entries.fill(FastEntry::default());
    }

    /// Forgets the write keys of the page at physical address `pa`.
    pub(super) fn drop_write_keys(&mut self, pa: u64) {
        let pa = pa & !0xfff;
        for e in &mut self.entries[..View::UserCode as usize] {
            if e.pa == pa {
                e.write = 0;
            }
        }
    }

    /// Gives a cached translation its keys, when the fast path may serve it. `writable` is whether the page is not
    /// watched.
    pub(super) fn fill(&mut self, ram: &GuestRam, view: View, va: u64, e: &Cached, writable: bool) {
        // The tag rule looks at bit 63 alone: tagged addresses whose half it does not tell stay slow.
        if (va >> 63 ^ va >> 55) & 1 != 0 || self.tag == UNASSIGNED || (e.is_device() && !view.is_code()) {
            return;
        }
        let Some(addend) = Addend::new(ram, va, e.pa) else { return };
        let key = self.key(va, 0);
        self.entries[Tlb::index(view, va)] = FastEntry {
            read: if e.permits(false) { key } else { 0 },
            write: if e.permits(true) && writable { key } else { 0 },
            addend,
            pa: e.pa,
        };
    }
}

/// The valid entries only, each with its index.
mod sparse {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{ALL_ENTRIES, Cached};

    pub(super) fn serialize<S: Serializer>(entries: &[Cached], s: S) -> Result<S::Ok, S::Error> {
        let valid: Vec<(usize, Cached)> =
            entries.iter().copied().enumerate().filter(|(_, e)| *e != Cached::default()).collect();
        valid.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Cached>, D::Error> {
        let mut entries = vec![Cached::default(); ALL_ENTRIES];
        for (index, entry) in Vec::<(usize, Cached)>::deserialize(d)? {
            *entries.get_mut(index).ok_or_else(|| D::Error::custom("TLB index out of range"))? = entry;
        }
        Ok(entries)
    }
}
