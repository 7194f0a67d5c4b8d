//! Which code a vCPU is in, for people: addresses by the frame records that AAPCS64 (6.4.6) chains from X29.

use guest_ram::GuestRam;

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

/// A page whose translation is known: a stack's records are mostly in one.
struct Page {
    va: u64,
    pa: u64,
}

impl Page {
    /// The word at `va` as `core` sees it, unless it is in the page.
    fn peek(&mut self, core: &Core, ram: &GuestRam, va: u64) -> Option<u64> {
        (va & 7 == 0).then_some(())?;
        if va & !OFFSET != self.va {
            let pa = mmu::peek_data(core, ram, va)?;
            *self = Page { va: va & !OFFSET, pa: pa & !OFFSET };
        }
        mmu::peek_physical(ram, self.pa | va & OFFSET)
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
        let mut stack = Page { va: 1, pa: 0 };
        for caller in &mut trace.callers {
            let next = stack.peek(self, ram, record);
            let (Some(next), Some(lr)) = (next, stack.peek(self, ram, record.wrapping_add(8))) else { break };
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
