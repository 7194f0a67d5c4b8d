//! The only place where guest RAM is reached through host pointers.
#![allow(unsafe_code)]

use guest_ram::GuestRam;

/// A value that one access transfers, little-endian in memory.
pub trait Prim: Copy + Default + 'static {
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

/// How an entry of the fast TLB reaches memory: what to add to a virtual address of the page to get the host's.
/// Only [`Addend::new`] makes one, from a page that is wholly RAM.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Addend(u64);

impl Addend {
    /// For the page at `va` whose 4 KiB at physical address `pa` must all be RAM.
    pub(super) fn new(ram: &GuestRam, va: u64, pa: u64) -> Option<Self> {
        let offset = ram.offset(pa & !0xfff, 0x1000)?;
        Some(Self((ram.host() as u64).wrapping_add(offset).wrapping_sub(va & !0xfff)))
    }

    /// Loads from `va`.
    ///
    /// # Safety
    /// `va` to `va + T::SIZE` is within the page that the addend was made for, and the RAM it was made from is alive.
    #[inline(always)]
    pub(super) unsafe fn load<T: Prim>(self, va: u64) -> T {
        // SAFETY: the caller's promise makes this an address in the mapping of guest RAM. Any bytes are a valid T.
        // Guest code runs on this thread alone; a host thread never writes guest RAM while the machine runs.
        unsafe { (self.0.wrapping_add(va) as *const T).read_unaligned() }
    }

    /// Stores to `va`.
    ///
    /// # Safety
    /// As [`Addend::load`]; and the page is not watched.
    #[inline(always)]
    pub(super) unsafe fn store<T: Prim>(self, va: u64, value: T) {
        // SAFETY: as in `load`.
        unsafe { (self.0.wrapping_add(va) as *mut T).write_unaligned(value) }
    }
}

/// Loads from RAM by physical address; `None` when any byte is not RAM.
#[inline]
pub(super) fn read<T: Prim>(ram: &GuestRam, pa: u64) -> Option<T> {
    let offset = ram.offset(pa, T::SIZE)?;
    // SAFETY: `offset` checked that all of the bytes are in the mapping; see `Addend::load` for the rest.
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
