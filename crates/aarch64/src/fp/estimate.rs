//! Reciprocal and reciprocal square root estimates.

use super::round::overflow;
use super::unpack::{Class, invalid, quiet, sign_bit, unpack};
use super::{DZC, Env, Format, IXC, OFC, UFC};

/// `RecipEstimate`: of a number in [256, 512), a 9-bit estimate.
const fn recip_table(a: u32) -> u32 {
    let a = a * 2 + 1;
    (0x80000 / a).div_ceil(2)
}

/// `RecipSqrtEstimate`: of a number in [128, 512), a 9-bit estimate.
fn rsqrt_table(a: u32) -> u32 {
    let a = if a < 256 { a * 2 + 1 } else { ((a >> 1) * 2 + 1) * 2 };
    // The largest b with a * b^2 < 2^28; it is in [512, 1024).
    let (mut low, mut high) = (512u32, 1024u32);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if u64::from(a) * u64::from(middle * middle) < 1 << 28 {
            low = middle;
        } else {
            high = middle;
        }
    }
    low.div_ceil(2)
}

/// `FPRecipEstimate`.
pub fn recip_estimate<F: Format>(a: u64, env: &mut Env) -> u64 {
    let a = unpack::<F>(a, env);
    let sign = sign_bit::<F>(a.sign);
    match a.class {
        Class::Quiet | Class::Signalling => return quiet::<F>(&a, env),
        Class::Infinity => return sign,
        Class::Zero => {
            env.raise(DZC);
            return sign | F::INF;
        }
        Class::Number => {}
    }
    // The reciprocal of the smallest quarter of the denormals does not fit.
    if a.exp < F::EXP_MIN - 2 {
        env.raise(OFC | IXC);
        return overflow::<F>(a.sign, env.rounding());
    }
    if a.exp >= F::BIAS - 1 && env.flushes::<F>() {
        env.raise(UFC);
        return sign;
    }
    let estimate = u64::from(recip_table((a.sig >> 55) as u32));
    // The estimate is in [1, 2) in units of 2^-8, with the exponent below; it is exact in any format.
    let exp = -1 - a.exp;
    let frac = (estimate & 0xff) << (F::FRAC - 8);
    let field = exp + F::BIAS;
    match field {
        1.. => sign | ((field as u64) << F::FRAC) | frac,
        0 => sign | (1 << (F::FRAC - 1)) | (frac >> 1),
        _ => sign | (1 << (F::FRAC - 2)) | (frac >> 2),
    }
}

/// `FPRSqrtEstimate`.
pub fn rsqrt_estimate<F: Format>(a: u64, env: &mut Env) -> u64 {
    let a = unpack::<F>(a, env);
    match a.class {
        Class::Quiet | Class::Signalling => return quiet::<F>(&a, env),
        Class::Zero => {
            env.raise(DZC);
            return sign_bit::<F>(a.sign) | F::INF;
        }
        _ if a.sign => return invalid::<F>(env),
        Class::Infinity => return 0,
        Class::Number => {}
    }
    // An even exponent leaves [1, 4), of which nine bits count.
    let scaled = if a.exp & 1 != 0 { a.sig >> 55 } else { a.sig >> 56 };
    let estimate = u64::from(rsqrt_table(scaled as u32));
    let field = ((3 * F::BIAS - 1) - (a.exp + F::BIAS)) >> 1;
    ((field as u64) << F::FRAC) | ((estimate & 0xff) << (F::FRAC - 8))
}

/// `FPRecpX`: the reciprocal exponent.
pub fn recip_exponent<F: Format>(a: u64, env: &mut Env) -> u64 {
    let a = unpack::<F>(a, env);
    if a.nan() {
        return quiet::<F>(&a, env);
    }
    let field = (a.bits >> F::FRAC) & F::EXP_MAX as u64;
    let field = if field == 0 { F::EXP_MAX as u64 - 1 } else { field ^ F::EXP_MAX as u64 };
    sign_bit::<F>(a.sign) | (field << F::FRAC)
}

/// `UnsignedRecipEstimate`.
pub fn unsigned_recip(a: u32) -> u32 {
    if a >> 31 == 0 { u32::MAX } else { recip_table(a >> 23) << 23 }
}

/// `UnsignedRSqrtEstimate`.
pub fn unsigned_rsqrt(a: u32) -> u32 {
    if a >> 30 == 0 { u32::MAX } else { rsqrt_table(a >> 23) << 23 }
}

#[cfg(test)]
mod tests {
    use super::super::{Double, Single};
    use super::*;

    #[test]
    fn tables_match_the_architecture_at_their_ends() {
        assert_eq!(recip_table(256), 511);
        assert_eq!(recip_table(511), 256);
        assert_eq!(rsqrt_table(128), 511);
        assert_eq!(rsqrt_table(511), 256);
    }

    #[test]
    fn estimates_of_two_halve() {
        let mut env = Env::new(0);
        assert_eq!(recip_estimate::<Single>(0x4000_0000, &mut env), 0x3eff_8000);
        assert_eq!(recip_estimate::<Double>(0x4000_0000_0000_0000, &mut env), 0x3fdf_f000_0000_0000);
        assert_eq!(rsqrt_estimate::<Single>(0x4080_0000, &mut env), 0x3eff_8000);
        assert_eq!(env.flags, 0);
    }
}
