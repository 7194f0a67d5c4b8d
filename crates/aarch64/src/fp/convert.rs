//! Conversions between formats, to and from fixed point, and rounding to an integral value.

use super::round::{round, round_as, rounds_up, shift_jam};
use super::unpack::{Class, quiet, sign_bit, unpack, unpack_as};
use super::{Env, Format, IOC, IXC, Round};

/// `FPConvert`: from format `S` to format `D`, rounding as FPCR says.
pub fn convert<S: Format, D: Format>(a: u64, env: &mut Env) -> u64 {
    convert_as::<S, D>(a, env.rounding(), env)
}

/// `FPConvert` with rounding to odd (FCVTXN).
pub fn convert_odd<S: Format, D: Format>(a: u64, env: &mut Env) -> u64 {
    convert_as::<S, D>(a, Round::Odd, env)
}

fn convert_as<S: Format, D: Format>(a: u64, mode: Round, env: &mut Env) -> u64 {
    let from_alternative = S::SIZE == 16 && env.alternative_half();
    let to_alternative = D::SIZE == 16 && env.alternative_half();
    let a = unpack_as::<S>(a, env, from_alternative);
    let sign = sign_bit::<D>(a.sign);
    match a.class {
        Class::Quiet | Class::Signalling if to_alternative => {
            env.raise(IOC);
            sign
        }
        Class::Quiet | Class::Signalling => {
            let nan = quiet::<S>(&a, env);
            if env.default_nan() {
                return D::DEFAULT_NAN;
            }
            // `FPConvertNaN`: the top of the payload survives.
            let frac = nan & S::FRAC_MASK;
            let frac =
                if S::FRAC > D::FRAC { frac >> (S::FRAC - D::FRAC) } else { frac << (D::FRAC - S::FRAC) };
            sign | D::INF | frac
        }
        Class::Infinity if to_alternative => {
            env.raise(IOC);
            sign | (D::SIGN - 1)
        }
        Class::Infinity => sign | D::INF,
        Class::Zero => sign,
        Class::Number => round_as::<D>(a.sign, a.exp, a.sig, mode, to_alternative, env),
    }
}

/// `FPRoundInt`: the integral value that `mode` picks. `exact` raises IXC when it differs (FRINTX).
pub fn round_to_integral<F: Format>(a: u64, mode: Round, exact: bool, env: &mut Env) -> u64 {
    let a = unpack::<F>(a, env);
    match a.class {
        Class::Quiet | Class::Signalling => return quiet::<F>(&a, env),
        Class::Infinity | Class::Zero => return a.bits,
        Class::Number => {}
    }
    if a.exp >= F::FRAC as i32 {
        return a.bits;
    }
    let (integer, inexact) = round_magnitude(a.sign, a.exp, a.sig, mode);
    if inexact && exact {
        env.raise(IXC);
    }
    if integer == 0 {
        return sign_bit::<F>(a.sign);
    }
    let shift = integer.leading_zeros();
    round::<F>(a.sign, 63 - shift as i32, integer << shift, Round::Zero, env)
}

/// Rounds `sig / 2^63 * 2^exp` to an integer, and says whether that changed it. `exp` must be less than 64.
fn round_magnitude(sign: bool, exp: i32, sig: u64, mode: Round) -> (u64, bool) {
    // The fraction in the top bits of a word; a value below one half is all sticky bit.
    let (integer, rest) = match exp {
        63 => (sig, 0),
        0..63 => (sig >> (63 - exp), sig << (exp + 1)),
        _ => (0, shift_jam(sig, exp.saturating_add(1).unsigned_abs().min(64))),
    };
    let up = rounds_up(mode, sign, integer & 1 != 0, rest, 1 << 63);
    // The integer has room for the carry whenever there is a fraction.
    (integer + u64::from(up), rest != 0)
}

/// `FPToFixed`: to an integer of `size` bits (32 or 64) with `fraction` bits after the point, saturating.
pub fn to_fixed<F: Format>(
    a: u64,
    size: u32,
    fraction: u32,
    unsigned: bool,
    mode: Round,
    env: &mut Env,
) -> u64 {
    let a = unpack::<F>(a, env);
    let mask = u64::MAX >> (64 - size);
    // The largest magnitudes that fit.
    let limit = match (unsigned, a.sign) {
        (true, false) => mask,
        (true, true) => 0,
        (false, false) => mask >> 1,
        (false, true) => (mask >> 1) + 1,
    };
    let signed = |magnitude: u64| if a.sign { magnitude.wrapping_neg() } else { magnitude } & mask;
    match a.class {
        Class::Quiet | Class::Signalling => {
            env.raise(IOC);
            return 0;
        }
        Class::Zero => return 0,
        Class::Infinity => {
            env.raise(IOC);
            return signed(limit);
        }
        Class::Number => {}
    }
    let exp = a.exp + fraction as i32;
    if exp > 63 {
        env.raise(IOC);
        return signed(limit);
    }
    let (magnitude, inexact) = round_magnitude(a.sign, exp, a.sig, mode);
    if magnitude > limit {
        env.raise(IOC);
        return signed(limit);
    }
    if inexact {
        env.raise(IXC);
    }
    signed(magnitude)
}

/// `FixedToFP`: from an integer of `size` bits (16, 32 or 64) with `fraction` bits after the point.
pub fn from_fixed<F: Format>(a: u64, size: u32, fraction: u32, unsigned: bool, env: &mut Env) -> u64 {
    let drop = 64 - size;
    let (sign, magnitude) = if unsigned {
        (false, (a << drop) >> drop)
    } else {
        let value = ((a << drop) as i64) >> drop;
        (value < 0, value.unsigned_abs())
    };
    if magnitude == 0 {
        return 0;
    }
    let shift = magnitude.leading_zeros();
    let exp = 63 - shift as i32 - fraction as i32;
    round::<F>(sign, exp, magnitude << shift, env.rounding(), env)
}
