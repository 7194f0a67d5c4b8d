//! Decoded instructions, a page of code at a time.

use guest_ram::{GuestRam, PAGE_SIZE};

use crate::config::Features;
use crate::core::Op;
use crate::decode::decode;
use crate::exec;
use crate::exec::chain::{self, Runs};

/// Instructions in a page.
pub(crate) const WORDS: usize = PAGE_SIZE / 4;

/// How many decoded pages are kept: about 34 KiB each.
const PAGES: usize = 1536;

/// The instructions of one physical page, decoded when they are first reached.
pub(crate) struct Page {
    /// The ops. Those that are not decoded stop a chain before themselves.
    pub(crate) ops: [Op; WORDS],
    /// Which ones are decoded.
    decoded: [bool; WORDS],
}

impl Page {
    /// Nothing decoded. Not for inlining: the page is on the stack for a moment, which whoever calls this should not pay
    /// for when it does not.
    #[cold]
    #[inline(never)]
    fn new() -> Box<Self> {
        let undecoded = Runs { run: exec::undefined, chain: chain::undecoded };
        Box::new(Self { ops: [Op::with(undecoded, 0); WORDS], decoded: [false; WORDS] })
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
        Self { slot: vec![0; pages], pages: Vec::new(), next: 0, running: None, stale: false }
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
        if let Some(slot) = self.running.take()
            && !self.stale
        {
            self.pages[slot].code = Some(code);
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
        place.code = None;
        let running = self.running == Some(slot);
        self.stale |= running;
        running
    }
}
