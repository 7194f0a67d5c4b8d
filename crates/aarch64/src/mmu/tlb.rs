//! The TLB: cached translations (architectural state), and keys for the fast path (derived from them).
//!
//! Translations are cached 4 KiB at a time, direct-mapped, in one array for each *view*: what one privilege level may do
//! with data or code. A [`Cached`] translation stays until an invalidation or another page replaces it. A fast key
//! exists only where the access needs nothing but a copy: plain RAM that is permitted and not watched.
//!
//! An ASID is known by its *slot*, a small number handed out when the ASID is first used. TLBI by ASID retires the
//! slot, so that everything tagged with it is dead at once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::host::Fast;

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

/// Index of the entry for `va`.
pub(super) fn index(view: View, va: u64) -> usize {
    view as usize + (va >> 12) as usize % ENTRIES
}

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
    /// A translation of the upper half that is bound to an ASID has been cached since then. Only then are fast keys of
    /// that half tagged: where all of it is global, as in a kernel without page-table isolation, its keys outlive a
    /// change of ASID.
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

    /// The cached translation of `va`.
    pub(super) fn find(&self, view: View, va: u64) -> Option<Cached> {
        let e = self.entries.get(index(view, va))?;
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
        if !f.global && va >> 55 & 1 != 0 && !self.upper_bound {
            self.upper_bound = true;
            fast.drop_all();
            fast.set_slot(self.slot, true);
        }
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
        let at = index(view, va);
        fast.drop_at(at);
        self.entries[at] = entry;
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
        fast.set_slot(slot, self.upper_bound);
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
        fast.set_slot(self.slot, self.upper_bound);
        fast.ready = true;
    }

    /// TLBI VMALLE1.
    pub(super) fn invalidate_all(&mut self, fast: &mut Fast) {
        self.entries.fill(Cached::default());
        fast.drop_all();
        self.blocks.clear();
        self.huge = false;
        self.upper_bound = false;
        fast.set_slot(self.slot, false);
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
                self.invalidate_entry(fast, index(view, first + (piece << 12)), va, slot);
            }
        }
    }

    fn invalidate_entry(&mut self, fast: &mut Fast, index: usize, va: u64, slot: Option<u16>) {
        let e = &mut self.entries[index];
        let named = slot.is_none_or(|slot| e.flags & GLOBAL != 0 || e.slot == slot);
        if e.flags & VALID != 0 && named && e.covers(va) {
            *e = Cached::default();
            fast.drop_at(index);
        }
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
