//! Taking operands apart, and what happens to NaNs (`FPUnpack`, `FPProcessNaNs`).

use super::{Env, Format, IDC, IOC};

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Zero,
    /// Non-zero and finite, denormals included.
    Number,
    Infinity,
    Quiet,
    Signalling,
}

/// A value taken apart. A number is `sig / 2^63 * 2^exp`, with bit 63 of `sig` set; NaNs are kept in `bits`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) class: Class,
    pub(super) sign: bool,
    pub(super) exp: i32,
    pub(super) sig: u64,
    pub(super) bits: u64,
}

impl Parts {
    #[inline]
    pub(super) fn zero(&self) -> bool {
        self.class == Class::Zero
    }

    #[inline]
    pub(super) fn infinite(&self) -> bool {
        self.class == Class::Infinity
    }

    #[inline]
    pub(super) fn nan(&self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signalling)
    }

    #[inline]
    pub(super) fn signalling(&self) -> bool {
        self.class == Class::Signalling
    }
}

/// `FPUnpack`: flushes a denormal to zero and raises IDC when FZ says so.
#[inline]
pub(super) fn unpack<F: Format>(bits: u64, env: &mut Env) -> Parts {
    unpack_as::<F>(bits, env, false)
}

/// [`unpack`], where `alternative` makes a half-precision value one without infinities and NaNs.
#[inline]
pub(super) fn unpack_as<F: Format>(bits: u64, env: &mut Env, alternative: bool) -> Parts {
    let sign = bits & F::SIGN != 0;
    let field = ((bits >> F::FRAC) as i32) & F::EXP_MAX;
    let frac = bits & F::FRAC_MASK;
    let mut parts = Parts { class: Class::Number, sign, exp: 0, sig: 0, bits };
    if field == 0 {
        if frac == 0 {
            parts.class = Class::Zero;
        } else if env.flushes::<F>() {
            env.raise(IDC);
            parts.class = Class::Zero;
            parts.bits = bits & F::SIGN;
        } else {
            let shift = frac.leading_zeros();
            parts.sig = frac << shift;
            parts.exp = F::EXP_MIN + 63 - F::FRAC as i32 - shift as i32;
        }
    } else if field == F::EXP_MAX && !alternative {
        parts.class = if frac == 0 {
            Class::Infinity
        } else if frac & F::QUIET != 0 {
            Class::Quiet
        } else {
            Class::Signalling
        };
    } else {
        parts.sig = (1 << 63) | (frac << (63 - F::FRAC));
        parts.exp = field - F::BIAS;
    }
    parts
}

/// `FPProcessNaN`: the result for an operand that is a NaN.
#[inline]
pub(super) fn quiet<F: Format>(nan: &Parts, env: &mut Env) -> u64 {
    if nan.signalling() {
        env.raise(IOC);
    }
    if env.default_nan() { F::DEFAULT_NAN } else { nan.bits | F::QUIET }
}

/// `FPProcessNaNs` and `FPProcessNaNs3`: the first signalling NaN, or else the first quiet one, decides.
#[inline]
pub(super) fn pick_nan<F: Format>(operands: &[&Parts], env: &mut Env) -> Option<u64> {
    if !operands.iter().any(|p| p.nan()) {
        return None;
    }
    let signalling = operands.iter().find(|p| p.signalling());
    let chosen = signalling.or_else(|| operands.iter().find(|p| p.nan()));
    chosen.map(|p| quiet::<F>(p, env))
}

/// The default NaN, for an invalid operation.
#[inline]
pub(super) fn invalid<F: Format>(env: &mut Env) -> u64 {
    env.raise(IOC);
    F::DEFAULT_NAN
}

/// The sign bit of `F` when `sign`.
#[inline]
pub(super) fn sign_bit<F: Format>(sign: bool) -> u64 {
    if sign { F::SIGN } else { 0 }
}
