//! What a memory-mapped device looks like to the bus.

use crate::agent::Time;

/// A device with registers. `offset` is within the device's window, `size` is 1, 2, 4 or 8 bytes, values are
/// little-endian and right-aligned. The time is the virtual time of the access.
///
/// A guest may send any offset and size: an implementation answers an access that its manual does not define as the
/// manual says for reserved space (usually RAZ/WI) and never panics.
pub trait MmioDevice {
    /// Reads `size` bytes at `offset`.
    fn read(&mut self, at: Time, offset: u64, size: u8) -> u64;

    /// Writes the low `size` bytes of `value` at `offset`. Nothing that the write starts completes inside it.
    fn write(&mut self, at: Time, offset: u64, size: u8, value: u64);
}

/// The bits of a value of `size` bytes; all of them for sizes of 8 and more.
#[inline]
pub fn size_mask(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1u64 << (size * 8)) - 1 }
}
