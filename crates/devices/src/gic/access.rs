//! Accesses to 64-bit registers, whole or by halves (IHI 0069 12.1.3).

/// For an access to a 64-bit register: the register's offset and the bit at which the access begins. `None` for widths
/// and alignments that such registers do not have.
pub(crate) fn half(offset: u64, size: u8) -> Option<(u64, u32)> {
    match (size, offset & 7) {
        (8 | 4, 0) => Some((offset, 0)),
        (4, 4) => Some((offset & !7, 32)),
        _ => None,
    }
}

/// What a read of `size` bytes at bit `shift` sees of a register.
pub(crate) fn part(register: u64, size: u8, shift: u32) -> u64 {
    if size == 8 { register } else { register >> shift & 0xffff_ffff }
}

/// A register after a write of `size` bytes at bit `shift`.
pub(crate) fn merge(register: u64, size: u8, shift: u32, value: u64) -> u64 {
    if size == 8 { value } else { register & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift }
}
