//! Decoded instructions, a page of code at a time.

use guest_ram::{GuestRam, PAGE_SIZE};

use crate::config::Features;
use crate::core::Op;
use crate::decode::decode;
use crate::exec;

/// Instructions in a page.
pub(crate) const WORDS: usize = PAGE_SIZE / 4;

/// How many decoded pages are kept: about 34 KiB each.
const PAGES: usize = 1536;

/// The instructions of one physical page, decoded when they are first reached.
pub(crate) struct Page {
    /// How many ops from here on are decoded and follow each other, 0 when this one is not decoded.
    pub(crate) straight: [u16; WORDS],
    /// The ops.
    pub(crate) ops: [Op; WORDS],
}

impl Page {
    /// Nothing decoded. Not for inlining: the page is on the stack for a moment, which whoever calls this should not pay
    /// for when it does not.
    #[cold]
    #[inline(never)]
    fn new() -> Box<Self> {
        Box::new(Self { straight: [0; WORDS], ops: [Op::new(exec::undefined, 0); WORDS] })
    }

    /// Decodes from word `at` up to the next unconditional branch, to what is decoded already, or to the end of the
    /// page. Answers how many ops follow each other from `at`.
    #[cold]
    pub(crate) fn decode(&mut self, at: usize, ram: &GuestRam, page: usize, features: &Features) -> usize {
        let mut line = Line { number: 0, bytes: [0; LINE] };
        let base = ram.base() + (page * PAGE_SIZE) as u64;
        let (mut end, mut after) = (at, 0);
        while end < WORDS {
            if self.straight[end] != 0 {
                after = self.straight[end] as usize;
                break;
            }
            let word = line.word(ram, base, end);
            self.ops[end] = decode(word, features);
            end += 1;
            if exec::ends_straight(word) {
                break;
            }
        }
        for (n, straight) in self.straight[at..end].iter_mut().rev().enumerate() {
            *straight = (n + 1 + after) as u16;
        }
        self.straight[at] as usize
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
    /// The decoded pages and which page of RAM each is of.
    pages: Vec<(usize, Option<Box<Page>>)>,
    /// Slot to be replaced next once all are in use.
    next: usize,
    /// Page of RAM that an engine has taken out, executing from it.
    running: Option<usize>,
    /// That page was written to since.
    stale: bool,
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

    /// Takes the decoded page out, for as long as it executes.
    pub(crate) fn take(&mut self, page: usize) -> Box<Page> {
        self.running = Some(page);
        self.stale = false;
        match self.slot[page] {
            0 => Page::new(),
            slot => self.pages[slot as usize - 1].1.take().unwrap_or_else(Page::new),
        }
    }

    /// Puts it back, or drops it when it was written to meanwhile.
    pub(crate) fn put(&mut self, page: usize, code: Box<Page>) {
        self.running = None;
        if self.stale {
            return;
        }
        let slot = match self.slot[page] {
            0 => self.new_slot(page),
            slot => slot as usize - 1,
        };
        self.pages[slot].1 = Some(code);
    }

    #[cold]
    fn new_slot(&mut self, page: usize) -> usize {
        let slot = if self.pages.len() < PAGES {
            self.pages.push((page, None));
            self.pages.len() - 1
        } else {
            let slot = self.next;
            self.next = (slot + 1) % PAGES;
            self.slot[self.pages[slot].0] = 0;
            self.pages[slot].0 = page;
            slot
        };
        self.slot[page] = slot as u32 + 1;
        slot
    }

    /// The pages that are decoded.
    pub(crate) fn all_pages(&self) -> Vec<usize> {
        self.pages.iter().map(|(page, _)| *page).collect()
    }

    /// Forgets what was decoded from a page. `true` when it is the one that executes.
    pub(crate) fn forget(&mut self, page: usize) -> bool {
        if let Some(slot @ 1..) = self.slot.get(page).copied() {
            self.pages[slot as usize - 1].1 = None;
        }
        let running = self.running == Some(page);
        self.stale |= running;
        running
    }
}
