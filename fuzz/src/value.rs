//! Numbers that mean something to a device more often than random ones do.

use arbitrary::Arbitrary;

/// Where the targets put RAM, and how much of it.
pub const RAM: u64 = 0x4000_0000;
/// Bytes of RAM.
pub const RAM_SIZE: u64 = 0x40_0000;

/// A number for a register, a field or a pointer.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Value {
    /// Small.
    Small(u8),
    /// One bit.
    Bit(u8),
    /// All bits from one on.
    Above(u8),
    /// An address in RAM (or just behind it) and what goes into its low bits.
    Ram(u16, u8),
    /// Near the end of the address space.
    High(u16),
    /// A 32-bit number.
    Word(u32),
    /// Any.
    Any(u64),
}

impl Value {
    /// The number.
    pub fn get(self) -> u64 {
        match self {
            Value::Small(n) => n.into(),
            Value::Bit(n) => 1 << (n & 63),
            Value::Above(n) => u64::MAX << (n & 63),
            Value::Ram(page, low) => {
                RAM + u64::from(page) % (RAM_SIZE / 0x1000 + 2) * 0x1000 + u64::from(low)
            }
            Value::High(n) => u64::MAX - u64::from(n),
            Value::Word(n) => n.into(),
            Value::Any(n) => n,
        }
    }
}

/// Bytes of an access; mostly one that a CPU can make.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Size {
    /// A byte.
    B1,
    /// Two.
    B2,
    /// Four.
    B4,
    /// Eight.
    B8,
    /// Four, once more: most registers have that.
    W,
    /// Anything.
    Odd(u8),
}

impl Size {
    /// The number of bytes.
    pub fn get(self) -> u8 {
        match self {
            Size::B1 => 1,
            Size::B2 => 2,
            Size::B4 | Size::W => 4,
            Size::B8 => 8,
            Size::Odd(n) => n,
        }
    }

    /// `offset` as an access of this size has it: aligned, unless the size is odd.
    pub fn align(self, offset: u64) -> u64 {
        match self {
            Size::Odd(_) => offset,
            _ => offset & !(u64::from(self.get()) - 1),
        }
    }
}
