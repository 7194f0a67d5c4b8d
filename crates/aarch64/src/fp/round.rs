//! Putting results together (`FPRound`).

use super::unpack::sign_bit;
use super::{Env, Format, IOC, IXC, OFC, Round, UFC};

/// Shifts right, keeping in the lowest bit whether anything was lost.
#[inline]
pub(super) fn shift_jam(value: u64, by: u32) -> u64 {
    match by {
        0 => value,
        1..=63 => (value >> by) | u64::from(value << (64 - by) != 0),
        _ => u64::from(value != 0),
    }
}

/// [`shift_jam`] on 128 bits.
#[inline]
pub(super) fn shift_jam_wide(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..=127 => (value >> by) | u128::from(value << (128 - by) != 0),
        _ => u128::from(value != 0),
    }
}

/// Whether a magnitude is to be incremented, given its lowest kept bit and what was cut off as a fraction of it,
/// scaled so that `half` is one half.
#[inline]
pub(super) fn rounds_up(mode: Round, sign: bool, odd: bool, rest: u64, half: u64) -> bool {
    match mode {
        Round::TieEven => rest > half || (rest == half && odd),
        Round::TieAway => rest >= half,
        Round::Up => rest != 0 && !sign,
        Round::Down => rest != 0 && sign,
        Round::Zero | Round::Odd => false,
    }
}

/// Whether an overflow gives infinity rather than the largest finite number.
#[inline]
pub(super) fn overflows_to_infinity(mode: Round, sign: bool) -> bool {
    match mode {
        Round::TieEven | Round::TieAway => true,
        Round::Up => !sign,
        Round::Down => sign,
        Round::Zero | Round::Odd => false,
    }
}

/// `FPRound`: the value of `F` nearest to `sig / 2^63 * 2^exp`, where bit 63 of `sig` is set and its lowest bit also
/// stands for anything smaller.
#[inline]
pub(super) fn round<F: Format>(sign: bool, exp: i32, sig: u64, mode: Round, env: &mut Env) -> u64 {
    round_as::<F>(sign, exp, sig, mode, false, env)
}

/// [`round`], where `alternative` means half precision without infinities.
#[inline]
pub(super) fn round_as<F: Format>(
    sign: bool,
    exp: i32,
    sig: u64,
    mode: Round,
    alternative: bool,
    env: &mut Env,
) -> u64 {
    debug_assert!(sig >> 63 == 1);
    let cut = 63 - F::FRAC;
    let tiny = exp < F::EXP_MIN;
    let (field, sig) = if tiny {
        // Arm looks for underflow before rounding, and flushing happens before rounding too.
        if env.flushes::<F>() {
            env.raise(UFC);
            return sign_bit::<F>(sign);
        }
        (0, shift_jam(sig, (F::EXP_MIN - exp) as u32))
    } else {
        (exp - F::EXP_MIN, sig)
    };
    let mut kept = sig >> cut;
    let rest = sig & ((1 << cut) - 1);
    if tiny && rest != 0 {
        env.raise(UFC);
    }
    if mode == Round::Odd && rest != 0 {
        kept |= 1;
    } else if rounds_up(mode, sign, kept & 1 != 0, rest, 1 << (cut - 1)) {
        kept += 1;
    }
    // A normal number's leading bit adds one to the exponent field, and so does a carry out of the fraction.
    let limit = if alternative { F::EXP_MAX + 1 } else { F::EXP_MAX };
    let field = field + (kept >> F::FRAC) as i32;
    if field >= limit {
        if alternative {
            env.raise(IOC);
            return sign_bit::<F>(sign) | (F::SIGN - 1);
        }
        env.raise(OFC | IXC);
        return overflow::<F>(sign, mode);
    }
    if rest != 0 {
        env.raise(IXC);
    }
    sign_bit::<F>(sign) | ((field as u64) << F::FRAC) | (kept & F::FRAC_MASK)
}

/// What an overflow gives.
#[inline]
pub(super) fn overflow<F: Format>(sign: bool, mode: Round) -> u64 {
    sign_bit::<F>(sign) | if overflows_to_infinity(mode, sign) { F::INF } else { F::MAX }
}
