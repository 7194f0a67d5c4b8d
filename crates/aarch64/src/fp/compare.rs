//! Comparison, minimum and maximum, sign manipulation.

use super::unpack::{Class, Parts, pick_nan, sign_bit, unpack};
use super::{Env, Format, IOC};
use std::cmp::Ordering;

/// `FPAbs`.
#[inline]
pub const fn abs<F: Format>(a: u64) -> u64 {
    a & !F::SIGN
}

/// `FPNeg`.
#[inline]
pub const fn neg<F: Format>(a: u64) -> u64 {
    a ^ F::SIGN
}

/// The order of two values; `None` when either is a NaN, which raises IOC if it signals or if `signal` asks for it.
#[inline]
fn order<F: Format>(a: u64, b: u64, signal: bool, env: &mut Env) -> Option<Ordering> {
    let (a, b) = (unpack::<F>(a, env), unpack::<F>(b, env));
    if a.nan() || b.nan() {
        if signal || a.signalling() || b.signalling() {
            env.raise(IOC);
        }
        return None;
    }
    Some(key::<F>(&a).cmp(&key::<F>(&b)))
}

/// A number that orders as the value does. Both zeros have the same one.
#[inline]
fn key<F: Format>(a: &Parts) -> i64 {
    let magnitude = (a.bits & !F::SIGN) as i64;
    if a.sign { -magnitude } else { magnitude }
}

/// `FPCompare`: NZCV in bits 31:28. `signal` makes quiet NaNs invalid too (FCMPE).
pub fn compare<F: Format>(a: u64, b: u64, signal: bool, env: &mut Env) -> u32 {
    match order::<F>(a, b, signal, env) {
        None => 0b0011 << 28,
        Some(Ordering::Equal) => 0b0110 << 28,
        Some(Ordering::Less) => 0b1000 << 28,
        Some(Ordering::Greater) => 0b0010 << 28,
    }
}

/// `FPCompareEQ`.
pub fn compare_eq<F: Format>(a: u64, b: u64, env: &mut Env) -> bool {
    order::<F>(a, b, false, env) == Some(Ordering::Equal)
}

/// `FPCompareGE`.
pub fn compare_ge<F: Format>(a: u64, b: u64, env: &mut Env) -> bool {
    matches!(order::<F>(a, b, true, env), Some(Ordering::Equal | Ordering::Greater))
}

/// `FPCompareGT`.
pub fn compare_gt<F: Format>(a: u64, b: u64, env: &mut Env) -> bool {
    order::<F>(a, b, true, env) == Some(Ordering::Greater)
}

/// `FPMax`.
pub fn max<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    extreme::<F>(a, b, true, env)
}

/// `FPMin`.
pub fn min<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    extreme::<F>(a, b, false, env)
}

/// `FPMaxNum`: a number wins over a quiet NaN.
pub fn max_num<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = replace_quiet::<F>(a, b, F::SIGN | F::INF, env);
    extreme::<F>(a, b, true, env)
}

/// `FPMinNum`: a number wins over a quiet NaN.
pub fn min_num<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = replace_quiet::<F>(a, b, F::INF, env);
    extreme::<F>(a, b, false, env)
}

/// Puts `with` in the place of the only quiet NaN.
fn replace_quiet<F: Format>(a: u64, b: u64, with: u64, env: &mut Env) -> (u64, u64) {
    let quiet_a = unpack::<F>(a, env).class == Class::Quiet;
    let quiet_b = unpack::<F>(b, env).class == Class::Quiet;
    match (quiet_a, quiet_b) {
        (true, false) => (with, b),
        (false, true) => (a, with),
        _ => (a, b),
    }
}

fn extreme<F: Format>(a: u64, b: u64, larger: bool, env: &mut Env) -> u64 {
    let (a, b) = (unpack::<F>(a, env), unpack::<F>(b, env));
    if let Some(nan) = pick_nan::<F>(&[&a, &b], env) {
        return nan;
    }
    if a.zero() && b.zero() {
        // Minus zero counts as smaller.
        return sign_bit::<F>(if larger { a.sign && b.sign } else { a.sign || b.sign });
    }
    if (key::<F>(&a) > key::<F>(&b)) == larger { a.bits } else { b.bits }
}
