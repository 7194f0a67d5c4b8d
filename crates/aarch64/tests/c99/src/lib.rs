//! The types of C99's `<stdint.h>` that softfloat-sys names, as x86-64 Linux has them.

#![allow(non_camel_case_types)]

/// `int_fast32_t`
pub type int_fast32_t = i64;
/// `int_fast64_t`
pub type int_fast64_t = i64;
/// `uint_fast8_t`
pub type uint_fast8_t = u8;
/// `uint_fast32_t`
pub type uint_fast32_t = u64;
/// `uint_fast64_t`
pub type uint_fast64_t = u64;
