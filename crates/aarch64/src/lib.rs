//! An AArch64 software CPU: Armv8.0-A at EL0 and EL1, to the letter of DDI 0487, repeatable to the bit.

pub mod core;
pub mod platform;
