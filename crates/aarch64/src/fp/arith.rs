//! Addition, multiplication, division, square root.

use super::round::{round, shift_jam};
use super::unpack::{Class, Parts, invalid, pick_nan, quiet, sign_bit, unpack};
use super::{DZC, Env, Format, Round};

/// `FPAdd`.
#[inline]
pub fn add<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = (unpack::<F>(a, env), unpack::<F>(b, env));
    sum::<F>(a, b, b.sign, env)
}

/// `FPSub`.
#[inline]
pub fn sub<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = (unpack::<F>(a, env), unpack::<F>(b, env));
    sum::<F>(a, b, !b.sign, env)
}

/// The sum of `a` and `b`, whose sign is `sign_b`.
fn sum<F: Format>(a: Parts, b: Parts, sign_b: bool, env: &mut Env) -> u64 {
    if let Some(nan) = pick_nan::<F>(&[&a, &b], env) {
        return nan;
    }
    match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) if a.sign != sign_b => return invalid::<F>(env),
        (Class::Infinity, _) => return sign_bit::<F>(a.sign) | F::INF,
        (_, Class::Infinity) => return sign_bit::<F>(sign_b) | F::INF,
        (Class::Zero, Class::Zero) => {
            return sign_bit::<F>(if a.sign == sign_b { a.sign } else { zero_sign(env) });
        }
        (Class::Zero, _) => return round::<F>(sign_b, b.exp, b.sig, env.rounding(), env),
        (_, Class::Zero) => return round::<F>(a.sign, a.exp, a.sig, env.rounding(), env),
        _ => {}
    }
    // The larger magnitude first. At least ten bits below a significand are free: enough for an exact difference when
    // the exponents are close, and for a sticky bit when they are not.
    let a_first = (a.exp, a.sig) >= (b.exp, b.sig);
    let (big, small, sign) = if a_first { (&a, &b, a.sign) } else { (&b, &a, sign_b) };
    let high = big.sig >> 1;
    let low = shift_jam(small.sig >> 1, (big.exp - small.exp) as u32);
    let sig = if a.sign == sign_b { high + low } else { high - low };
    if sig == 0 {
        return sign_bit::<F>(zero_sign(env));
    }
    let shift = sig.leading_zeros();
    round::<F>(sign, big.exp + 1 - shift as i32, sig << shift, env.rounding(), env)
}

/// The sign of a zero that is the exact sum of two different numbers.
#[inline]
pub(super) fn zero_sign(env: &Env) -> bool {
    env.rounding() == Round::Down
}

/// `FPMul`.
#[inline]
pub fn mul<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    product::<F, false>(a, b, env)
}

/// `FPMulX`: zero times infinity is two.
#[inline]
pub fn mulx<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    product::<F, true>(a, b, env)
}

fn product<F: Format, const EXTENDED: bool>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = (unpack::<F>(a, env), unpack::<F>(b, env));
    if let Some(nan) = pick_nan::<F>(&[&a, &b], env) {
        return nan;
    }
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => {
            if EXTENDED {
                sign_bit::<F>(sign) | F::TWO
            } else {
                invalid::<F>(env)
            }
        }
        (Class::Infinity, _) | (_, Class::Infinity) => sign_bit::<F>(sign) | F::INF,
        (Class::Zero, _) | (_, Class::Zero) => sign_bit::<F>(sign),
        _ => {
            let wide = u128::from(a.sig) * u128::from(b.sig);
            let mut sig = (wide >> 64) as u64 | u64::from(wide as u64 != 0);
            let mut exp = a.exp + b.exp + 1;
            if sig >> 63 == 0 {
                // More than ten bits are cut off later: of what is below, only being zero or not matters.
                sig <<= 1;
                exp -= 1;
            }
            round::<F>(sign, exp, sig, env.rounding(), env)
        }
    }
}

/// `FPDiv`.
pub fn div<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = (unpack::<F>(a, env), unpack::<F>(b, env));
    if let Some(nan) = pick_nan::<F>(&[&a, &b], env) {
        return nan;
    }
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => invalid::<F>(env),
        (Class::Infinity, _) => sign_bit::<F>(sign) | F::INF,
        (_, Class::Zero) => {
            env.raise(DZC);
            sign_bit::<F>(sign) | F::INF
        }
        (Class::Zero, _) | (_, Class::Infinity) => sign_bit::<F>(sign),
        _ => {
            let (quotient, inexact) = divide::<F>(a.sig, b.sig);
            let shift = quotient.leading_zeros();
            let sig = (quotient << shift) | u64::from(inexact);
            round::<F>(sign, a.exp - b.exp - shift as i32, sig, env.rounding(), env)
        }
    }
}

/// `a / b` scaled so that bit 62 or 63 leads (one is `2^63`), and whether there is a remainder.
#[inline]
fn divide<F: Format>(a: u64, b: u64) -> (u64, bool) {
    if F::SIZE <= 32 {
        // Single precision: a quotient of 32 bits or so is plenty, and 64-bit division is quick.
        let (a, b) = ((a >> 40) << 31, b >> 40);
        ((a / b) << 32, a % b != 0)
    } else {
        let (a, b) = (u128::from(a) << 63, u128::from(b));
        ((a / b) as u64, a % b != 0)
    }
}

/// `FPSqrt`.
pub fn sqrt<F: Format>(a: u64, env: &mut Env) -> u64 {
    let a = unpack::<F>(a, env);
    match a.class {
        Class::Quiet | Class::Signalling => quiet::<F>(&a, env),
        Class::Zero => sign_bit::<F>(a.sign),
        _ if a.sign => invalid::<F>(env),
        Class::Infinity => F::INF,
        Class::Number => {
            // An even exponent: the radicand is in [1, 4), as a fixed-point number with 62 bits of fraction.
            let odd = a.exp & 1 != 0;
            let mut radicand = if odd { a.sig } else { a.sig >> 1 };
            // Digit by digit; the first bit found is the integer one.
            let digits = F::FRAC + 3;
            let (mut root, mut rest) = (0u64, 0u64);
            for _ in 0..digits {
                rest = (rest << 2) | (radicand >> 62);
                radicand <<= 2;
                let trial = (root << 2) | 1;
                root <<= 1;
                if rest >= trial {
                    rest -= trial;
                    root |= 1;
                }
            }
            // Bits of the radicand that were never reached are zeros: 2 * digits > FRAC + 2.
            let sig = (root << (64 - digits)) | u64::from(rest != 0);
            round::<F>(false, a.exp >> 1, sig, env.rounding(), env)
        }
    }
}
