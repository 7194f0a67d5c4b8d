//! Decoded instructions, a page of code at a time.

use guest_ram::{GuestRam, PAGE_SIZE};

use crate::config::Features;
use crate::core::Op;
use crate::decode::decode;
use crate::exec;
use crate::exec::chain::{self, Runs};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::native::{Native, NativePage};

/// Instructions in a page.
pub(crate) const WORDS: usize = PAGE_SIZE / 4;

/// How many decoded pages are kept: about 41 KiB each, and 4 KiB more where there is native code.
const PAGES: usize = 1280;

/// The instructions of one physical page, decoded when they are first reached.
pub(crate) struct Page {
    /// The ops. Those that are not decoded stop a chain before themselves.
    pub(crate) ops: [Op; WORDS],
    /// Which ones are decoded.
    pub(super) decoded: [bool; WORDS],
    /// How often the native engine found no code to run.
    pub(super) entered: u32,
    /// The code made of them.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub(super) native: Option<Box<NativePage>>,
}

/// How many tables of pages that went are kept before they are freed, after which every vCPU finds its tables anew.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const RETIRED: usize = 64;

impl Page {
    /// Nothing decoded. Not for inlining: the page is on the stack for a moment, which whoever calls this should not pay
    /// for when it does not.
    #[cold]
    #[inline(never)]
    fn new() -> Box<Self> {
        let undecoded = Runs { run: exec::undefined, chain: chain::undecoded, native: None };
        Box::new(Self {
            ops: [Op::with(undecoded, 0); WORDS],
            decoded: [false; WORDS],
            entered: 0,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            native: None,
        })
    }

    /// Decodes from word `at` up to the next unconditional branch, to what is decoded already, or to the end of the
    /// page.
    #[cold]
    pub(crate) fn decode(&mut self, at: usize, ram: &GuestRam, page: usize, features: &Features) {
        let mut line = Line { number: 0, bytes: [0; LINE] };
        let base = ram.base() + (page * PAGE_SIZE) as u64;
        for at in at..WORDS {
            if self.decoded[at] {
                break;
            }
            let word = line.word(ram, base, at);
            self.ops[at] = decode(word, features);
            self.decoded[at] = true;
            if exec::ends_straight(word) {
                break;
            }
        }
    }
}

/// Words of code read a few at a time: straight runs are short.
struct Line {
    /// Which words of the page these are, in lines, plus one.
    number: usize,
    bytes: [u8; LINE],
}

/// Bytes of a [`Line`].
const LINE: usize = 64;

impl Line {
    fn word(&mut self, ram: &GuestRam, base: u64, at: usize) -> u32 {
        let (number, offset) = (at * 4 / LINE + 1, at * 4 % LINE);
        if self.number != number {
            self.number = number;
            ram.read(base + ((number - 1) * LINE) as u64, &mut self.bytes);
        }
        let b = &self.bytes[offset..offset + 4];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }
}

/// Decoded pages of all of RAM. It is a cache: nothing a guest sees depends on what it holds.
pub(crate) struct CodeCache {
    /// By page of RAM: its slot, plus one.
    slot: Vec<u32>,
    /// The decoded pages.
    pages: Vec<Slot>,
    /// Slot to be replaced next once all are in use.
    next: usize,
    /// Slot whose page an engine has taken out, executing from it.
    running: Option<usize>,
    /// That page was written to since.
    stale: bool,
    /// Native code, once there is some.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    native: NativeCode,
    /// Tables of pages that are not there any more. The fast path of fetches may still lead to them.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    retired: Vec<Box<NativePage>>,
    /// How often such tables were freed.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    freed: u64,
}

/// Place for a decoded page.
struct Slot {
    /// Which page of RAM it is of.
    page: usize,
    /// What is decoded of it. While it is here, the page is watched.
    code: Option<Box<Page>>,
}

impl std::fmt::Debug for CodeCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CodeCache").field("pages", &self.pages.len()).finish_non_exhaustive()
    }
}

impl CodeCache {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            slot: vec![0; pages],
            pages: Vec::new(),
            next: 0,
            running: None,
            stale: false,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            native: NativeCode::Unused,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            retired: Vec::new(),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            freed: 0,
        }
    }

    /// Takes the decoded page out, for as long as it executes. `None`: there is none, see [`CodeCache::make`].
    #[inline]
    pub(crate) fn take(&mut self, page: usize) -> Option<Box<Page>> {
        let slot = (self.slot[page] as usize).wrapping_sub(1);
        let code = self.pages.get_mut(slot)?.code.take();
        self.running = Some(slot);
        self.stale = false;
        code
    }

    /// Finds a place for a page that has none, and gives an empty one as if taken out.
    #[cold]
    pub(crate) fn make(&mut self, page: usize) -> Box<Page> {
        let slot = match self.slot[page] {
            0 if self.pages.len() < PAGES => {
                self.pages.push(Slot { page, code: None });
                self.pages.len() - 1
            }
            0 => {
                let slot = self.next;
                self.next = (slot + 1) % PAGES;
                let evicted = std::mem::replace(&mut self.pages[slot], Slot { page, code: None });
                self.slot[evicted.page] = 0;
                self.retire(evicted.code);
                slot
            }
            slot => slot as usize - 1,
        };
        self.slot[page] = slot as u32 + 1;
        self.running = Some(slot);
        self.stale = false;
        Page::new()
    }

    /// Puts the page that executes back, or drops it when it was written to meanwhile.
    #[inline]
    pub(crate) fn put(&mut self, code: Box<Page>) {
        if let Some(slot) = self.running.take() {
            if self.stale {
                self.retire(Some(code));
            } else {
                self.pages[slot].code = Some(code);
            }
        }
    }

    /// The pages that are decoded.
    pub(crate) fn all_pages(&self) -> Vec<usize> {
        self.pages.iter().map(|slot| slot.page).collect()
    }

    /// Forgets what was decoded from a page. `true` when it is the one that executes.
    pub(crate) fn forget(&mut self, page: usize) -> bool {
        let slot = self.slot.get(page).map_or(0, |slot| *slot as usize).wrapping_sub(1);
        let Some(place) = self.pages.get_mut(slot) else { return false };
        let code = place.code.take();
        self.retire(code);
        let running = self.running == Some(slot);
        self.stale |= running;
        running
    }
}

/// Whether there is native code.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
enum NativeCode {
    /// It was not asked for yet.
    Unused,
    /// All of it.
    Here(Native),
    /// The host does not let a program make code.
    Impossible,
}

/// Without native code there are no tables.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
impl CodeCache {
    fn retire(&mut self, _: Option<Box<Page>>) {}
}

/// What the native engine does with decoded pages.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl CodeCache {
    /// The page of RAM with index `page`, when it is decoded and was entered at least `times`, and what to compile it with.
    pub(super) fn warm(&mut self, page: usize, times: u32) -> Option<(usize, &mut Page, &mut Native)> {
        let slot = (self.slot[page] as usize).wrapping_sub(1);
        let page = self.pages.get_mut(slot)?.code.as_deref_mut()?;
        if page.entered < times {
            return None;
        }
        if matches!(self.native, NativeCode::Unused) {
            self.native = Native::new().map_or(NativeCode::Impossible, NativeCode::Here);
        }
        match &mut self.native {
            NativeCode::Here(native) => Some((slot, page, native)),
            _ => None,
        }
    }

    /// The native code of a page that is about to execute.
    pub(super) fn execute(&mut self, page: usize) -> Option<&NativePage> {
        let slot = (self.slot[page] as usize).wrapping_sub(1);
        let page = self.pages.get(slot)?.code.as_deref()?.native.as_deref()?;
        self.running = Some(slot);
        Some(page)
    }

    /// No page executes native code any more.
    pub(super) fn done(&mut self) {
        self.running = None;
    }

    /// An op of the page in this slot, which executes native code.
    pub(super) fn op(&mut self, slot: usize, at: usize) -> Option<Op> {
        self.running = Some(slot);
        self.pages.get(slot)?.code.as_deref()?.ops.get(at).copied()
    }

    /// A page goes.
    fn retire(&mut self, page: Option<Box<Page>>) {
        self.retire_table(page.and_then(|page| page.native));
    }

    fn retire_table(&mut self, table: Option<Box<NativePage>>) {
        if let (Some(mut table), NativeCode::Here(native)) = (table, &self.native) {
            native.empty(&mut table);
            self.retired.push(table);
        }
    }

    /// Frees the tables that are not in use any more, when there are many. Not while native code runs.
    pub(super) fn free_tables(&mut self) {
        if self.retired.len() > RETIRED {
            self.retired.clear();
            self.freed += 1;
        }
    }

    /// How often tables were freed: addresses from before lead nowhere.
    pub(super) fn tables_freed(&self) -> u64 {
        self.freed
    }

    /// What native code is entered by.
    pub(super) fn native(&self) -> Option<&Native> {
        match &self.native {
            NativeCode::Here(native) => Some(native),
            _ => None,
        }
    }

    /// Forgets all native code.
    #[cold]
    pub(super) fn forget_native(&mut self) {
        for slot in 0..self.pages.len() {
            let table = self.pages[slot].code.as_mut().and_then(|page| page.native.take());
            self.retire_table(table);
        }
        if let NativeCode::Here(native) = &mut self.native {
            native.clear();
        }
    }
}
