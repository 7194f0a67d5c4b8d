//! Multiply-add with one rounding (`FPMulAdd`, `FPRecipStepFused`, `FPRSqrtStepFused`).

use super::arith::zero_sign;
use super::round::{round, shift_jam_wide};
use super::unpack::{Class, Parts, invalid, pick_nan, sign_bit, unpack};
use super::{Env, Format};

/// `FPMulAdd`: `addend + a * b`. Callers negate operands for the other three variants.
pub fn mul_add<F: Format>(addend: u64, a: u64, b: u64, env: &mut Env) -> u64 {
    let c = unpack::<F>(addend, env);
    let (a, b) = (unpack::<F>(a, env), unpack::<F>(b, env));
    let undefined = (a.infinite() && b.zero()) || (a.zero() && b.infinite());
    if let Some(nan) = pick_nan::<F>(&[&c, &a, &b], env) {
        // Zero times infinity plus a quiet NaN is invalid all the same.
        return if undefined && c.class == Class::Quiet { invalid::<F>(env) } else { nan };
    }
    let sign = a.sign != b.sign;
    let infinite = a.infinite() || b.infinite();
    if undefined || (c.infinite() && infinite && c.sign != sign) {
        return invalid::<F>(env);
    }
    if c.infinite() {
        return sign_bit::<F>(c.sign) | F::INF;
    }
    if infinite {
        return sign_bit::<F>(sign) | F::INF;
    }
    if c.zero() && (a.zero() || b.zero()) && c.sign == sign {
        return sign_bit::<F>(sign);
    }
    fuse::<F>(&c, &a, &b, 0, env)
}

/// `FPRecipStepFused`: `2 - a * b`.
pub fn recip_step<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    step::<F>(a, b, F::TWO, 0, env)
}

/// `FPRSqrtStepFused`: `(3 - a * b) / 2`.
pub fn rsqrt_step<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    step::<F>(a, b, F::TWO | F::QUIET, 1, env)
}

/// `(constant - a * b) / 2^halvings`, where zero times infinity is zero.
fn step<F: Format>(a: u64, b: u64, constant: u64, halvings: i32, env: &mut Env) -> u64 {
    // The negated operand is what a NaN result is made from.
    let (a, b) = (unpack::<F>(a ^ F::SIGN, env), unpack::<F>(b, env));
    if let Some(nan) = pick_nan::<F>(&[&a, &b], env) {
        return nan;
    }
    if (a.infinite() && b.zero()) || (a.zero() && b.infinite()) {
        // 2.0 or 1.5
        return constant - ((halvings as u64) << F::FRAC);
    }
    if a.infinite() || b.infinite() {
        return sign_bit::<F>(a.sign != b.sign) | F::INF;
    }
    let constant = unpack::<F>(constant, env);
    fuse::<F>(&constant, &a, &b, halvings, env)
}

/// `(c + a * b) / 2^halvings`, rounded once, of finite operands.
fn fuse<F: Format>(c: &Parts, a: &Parts, b: &Parts, halvings: i32, env: &mut Env) -> u64 {
    let sign = a.sign != b.sign;
    // Both terms as 128-bit significands with bit 127 set; zero has none.
    let mut product = (sign, 0i32, 0u128);
    if !a.zero() && !b.zero() {
        let wide = u128::from(a.sig) * u128::from(b.sig);
        let shift = wide.leading_zeros();
        product = (sign, a.exp + b.exp + 1 - shift as i32, wide << shift);
    }
    let addend = (c.sign, c.exp, u128::from(c.sig) << 64);
    let (sign, exp, sig) = match (product.2, addend.2) {
        (0, 0) => return sign_bit::<F>(zero_sign(env)),
        (_, 0) => product,
        (0, _) => addend,
        _ => {
            let swap = (addend.1, addend.2) > (product.1, product.2);
            let (big, small) = if swap { (addend, product) } else { (product, addend) };
            // A product has at most 106 significant bits, so twenty are free below it for an exact difference or a
            // sticky bit.
            let high = big.2 >> 1;
            let low = shift_jam_wide(small.2 >> 1, (big.1 - small.1) as u32);
            let sig = if big.0 == small.0 { high + low } else { high - low };
            if sig == 0 {
                return sign_bit::<F>(zero_sign(env));
            }
            let shift = sig.leading_zeros();
            (big.0, big.1 + 1 - shift as i32, sig << shift)
        }
    };
    let sig = (sig >> 64) as u64 | u64::from(sig as u64 != 0);
    round::<F>(sign, exp - halvings, sig, env.rounding(), env)
}
