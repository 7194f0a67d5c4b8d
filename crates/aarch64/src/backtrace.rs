//! Which code a vCPU is in, for people: addresses by the frame records that AAPCS64 (6.4.6) chains from X29.

use std::sync::atomic::{AtomicU64, Ordering};

use guest_ram::{GuestRam, PAGE_SIZE};

use crate::core::Core;
use crate::mmu;

/// Frame records that are followed.
const FRAMES: usize = 8;
/// The part of an address that the smallest granule does not translate.
const OFFSET: u64 = 0xfff;

/// Where a vCPU is and how it got there, as far as frame records tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backtrace {
    /// The instruction being executed.
    pub pc: u64,
    /// X30: the caller of a function that keeps no frame record; stale in one that does.
    pub lr: u64,
    /// Return addresses of the frame records, innermost first; 0 behind the last.
    pub callers: [u64; FRAMES],
}

/// The page that a stack's records are mostly in.
struct Page<'a> {
    va: u64,
    words: Option<&'a [AtomicU64; PAGE_SIZE / 8]>,
}

impl<'a> Page<'a> {
    /// The word at `va`, which is aligned, as `core` sees it.
    #[inline(always)]
    fn word(&mut self, core: &Core, ram: &'a GuestRam, va: u64) -> Option<u64> {
        if va & !OFFSET != self.va {
            self.turn_to(core, ram, va);
        }
        let word = &self.words?[(va & OFFSET) as usize / 8];
        Some(u64::from_le(word.load(Ordering::Relaxed)))
    }

    #[cold]
    fn turn_to(&mut self, core: &Core, ram: &'a GuestRam, va: u64) {
        self.va = va & !OFFSET;
        self.words = mmu::peek_data(core, ram, va).and_then(|pa| ram.page(pa & !OFFSET));
    }
}

impl Core {
    /// The physical address of `va` by the present tables, for who looks on: nothing changes.
    #[must_use]
    pub fn physical(&self, ram: &GuestRam, va: u64) -> Option<u64> {
        mmu::peek_address(self, ram, va)
    }

    /// Follows the frame records from X29. Reads memory as the vCPU sees it, and changes nothing.
    #[must_use]
    pub fn backtrace(&self, ram: &GuestRam) -> Backtrace {
        let mut trace = Backtrace { pc: self.pc, lr: self.r[30], callers: [0; FRAMES] };
        let mut record = self.r[29];
        let mut stack = Page { va: 1, words: None };
        for caller in &mut trace.callers {
            if record & 7 != 0 {
                break;
            }
            let next = stack.word(self, ram, record);
            let (Some(next), Some(lr)) = (next, stack.word(self, ram, record.wrapping_add(8))) else { break };
            *caller = lr;
            // Records lie behind each other on one stack; another stack's may lie anywhere.
            if lr == 0 || next == record {
                break;
            }
            record = next;
        }
        trace
    }
}
