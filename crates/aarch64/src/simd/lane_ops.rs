//! What one lane of an integer instruction computes.

use super::{ones, saturate, saturate_small, signed, splat};

/// A lane operation with two sources and the old destination.
pub(crate) trait Lane {
    /// The new lane, of which the low `B` bits count. `d` is the destination's old value; `q` is set on saturation.
    /// With all sources zero no operation saturates: instructions on part of a vector rely on it.
    fn f<const B: u32>(d: u64, a: u64, b: u64, q: &mut bool) -> u64;

    /// All lanes at once, where there is a quick way that sets no flag.
    #[inline(always)]
    fn whole<const B: u32>(_a: u128, _b: u128) -> Option<u128> {
        None
    }
}

macro_rules! lanes {
    ($($name:ident |$d:pat_param, $a:ident, $b:pat_param, $q:pat_param| $body:expr
        $(, whole |$x:ident, $y:pat_param| $whole:expr)?;)*) => {$(
        pub(crate) struct $name;
        impl Lane for $name {
            #[inline(always)]
            fn f<const B: u32>($d: u64, $a: u64, $b: u64, $q: &mut bool) -> u64 {
                $body
            }
            $(
                #[inline(always)]
                fn whole<const B: u32>($x: u128, $y: u128) -> Option<u128> {
                    Some($whole)
                }
            )?
        }
    )*};
}

/// The top bits of all lanes.
#[inline(always)]
const fn tops<const B: u32>() -> u128 {
    splat(1 << (B - 1), B)
}

/// All ones in the lanes that are zero.
#[inline(always)]
const fn zeros<const B: u32>(v: u128) -> u128 {
    let rest = !tops::<B>();
    // The top bit of a lane stays clear only when all its bits are.
    let nonzero = ((v & rest) + rest) | v;
    let zero = (!nonzero & tops::<B>()) >> (B - 1);
    // Each one becomes a lane of ones: its product with the mask, done by a subtraction that borrows nowhere.
    (zero << (B - 1)) | ((zero << (B - 1)) - zero)
}

/// All ones when true.
#[inline(always)]
fn mask(yes: bool) -> u64 {
    u64::from(yes).wrapping_neg()
}

#[inline(always)]
fn s<const B: u32>(a: u64) -> i64 {
    signed(a, B)
}

/// As wide as any sum, difference or doubled product needs.
#[inline(always)]
fn sw<const B: u32>(a: u64) -> i128 {
    i128::from(signed(a, B))
}

/// A saturated sum or difference of signed lanes, in the narrower arithmetic where that is enough.
#[inline(always)]
fn clamp_signed<const B: u32>(
    a: i64,
    b: i64,
    narrow: impl Fn(i64, i64) -> i64,
    wide: impl Fn(i128, i128) -> i128,
    q: &mut bool,
) -> u64 {
    if B < 64 {
        saturate_small(narrow(a, b), B, false, q)
    } else {
        saturate(wide(a.into(), b.into()), B, false, q)
    }
}

/// As [`clamp_signed`], of unsigned lanes.
#[inline(always)]
fn clamp_unsigned<const B: u32>(
    a: u64,
    b: u64,
    narrow: impl Fn(i64, i64) -> i64,
    wide: impl Fn(i128, i128) -> i128,
    q: &mut bool,
) -> u64 {
    if B < 64 {
        saturate_small(narrow(a as i64, b as i64), B, true, q)
    } else {
        saturate(wide(a.into(), b.into()), B, true, q)
    }
}

/// A shift by the signed low byte of `by`: left when positive, right when negative.
#[inline(always)]
fn shift<const B: u32>(a: i128, by: u64, rounding: bool) -> i128 {
    match signed(by & 0xff, 8) {
        // Beyond the lane: only saturation can see it, and it needs just the sign and that it is too large.
        n if n >= i64::from(B) => {
            if a == 0 {
                0
            } else {
                a.signum() << 100
            }
        }
        n if n >= 0 => a << n,
        n => shift_right(a, n.unsigned_abs().min(100) as u32, rounding),
    }
}

/// A right shift by 1 to 100.
#[inline(always)]
pub(super) fn shift_right(a: i128, by: u32, rounding: bool) -> i128 {
    (a + if rounding { 1 << (by - 1) } else { 0 }) >> by
}

/// Carry-less product.
#[inline(always)]
pub(super) fn polynomial(a: u64, b: u64) -> u64 {
    (0..8).fold(0, |p, i| if b >> i & 1 != 0 { p ^ (a << i) } else { p })
}

lanes! {
    Add |_, a, b, _| a.wrapping_add(b),
        whole |a, b| ((a & !tops::<B>()) + (b & !tops::<B>())) ^ ((a ^ b) & tops::<B>());
    Sub |_, a, b, _| a.wrapping_sub(b),
        whole |a, b| ((a | tops::<B>()) - (b & !tops::<B>())) ^ ((a ^ !b) & tops::<B>());
    Mul |_, a, b, _| a.wrapping_mul(b);
    Mla |d, a, b, _| d.wrapping_add(a.wrapping_mul(b));
    Mls |d, a, b, _| d.wrapping_sub(a.wrapping_mul(b));
    Pmul |_, a, b, _| polynomial(a, b);
    Shadd |_, a, b, _| ((s::<B>(a) + s::<B>(b)) >> 1) as u64;
    Uhadd |_, a, b, _| (a + b) >> 1;
    Srhadd |_, a, b, _| ((s::<B>(a) + s::<B>(b) + 1) >> 1) as u64;
    Urhadd |_, a, b, _| (a + b + 1) >> 1;
    Shsub |_, a, b, _| ((s::<B>(a) - s::<B>(b)) >> 1) as u64;
    Uhsub |_, a, b, _| ((a as i64 - b as i64) >> 1) as u64;
    Sqadd |_, a, b, q| clamp_signed::<B>(s::<B>(a), s::<B>(b), |x, y| x + y, |x, y| x + y, q);
    Uqadd |_, a, b, q| clamp_unsigned::<B>(a, b, |x, y| x + y, |x, y| x + y, q);
    Sqsub |_, a, b, q| clamp_signed::<B>(s::<B>(a), s::<B>(b), |x, y| x - y, |x, y| x - y, q);
    Uqsub |_, a, b, q| clamp_unsigned::<B>(a, b, |x, y| x - y, |x, y| x - y, q);
    Cmgt |_, a, b, _| mask(s::<B>(a) > s::<B>(b));
    Cmge |_, a, b, _| mask(s::<B>(a) >= s::<B>(b));
    Cmhi |_, a, b, _| mask(a > b);
    Cmhs |_, a, b, _| mask(a >= b);
    Cmeq |_, a, b, _| mask(a == b), whole |a, b| zeros::<B>(a ^ b);
    Cmtst |_, a, b, _| mask(a & b != 0), whole |a, b| !zeros::<B>(a & b);
    Smax |_, a, b, _| s::<B>(a).max(s::<B>(b)) as u64;
    Umax |_, a, b, _| a.max(b);
    Smin |_, a, b, _| s::<B>(a).min(s::<B>(b)) as u64;
    Umin |_, a, b, _| a.min(b);
    Sabd |_, a, b, _| s::<B>(a).abs_diff(s::<B>(b));
    Uabd |_, a, b, _| a.abs_diff(b);
    Saba |d, a, b, _| d.wrapping_add(s::<B>(a).abs_diff(s::<B>(b)));
    Uaba |d, a, b, _| d.wrapping_add(a.abs_diff(b));
    Sqdmulh |_, a, b, q| saturate_small((s::<B>(a) * s::<B>(b)) >> (B - 1), B, false, q);
    Sqrdmulh |_, a, b, q| saturate_small((s::<B>(a) * s::<B>(b) + (1 << (B - 2))) >> (B - 1), B, false, q);
    Sshl |_, a, b, _| shift::<B>(sw::<B>(a), b, false) as u64;
    Ushl |_, a, b, _| shift::<B>(i128::from(a), b, false) as u64;
    Srshl |_, a, b, _| shift::<B>(sw::<B>(a), b, true) as u64;
    Urshl |_, a, b, _| shift::<B>(i128::from(a), b, true) as u64;
    Sqshl |_, a, b, q| saturate(shift::<B>(sw::<B>(a), b, false), B, false, q);
    Uqshl |_, a, b, q| saturate(shift::<B>(i128::from(a), b, false), B, true, q);
    Sqrshl |_, a, b, q| saturate(shift::<B>(sw::<B>(a), b, true), B, false, q);
    Uqrshl |_, a, b, q| saturate(shift::<B>(i128::from(a), b, true), B, true, q);

    // One source, with the second unused.
    Abs |_, a, _, _| s::<B>(a).unsigned_abs();
    Neg |_, a, _, _| a.wrapping_neg();
    Sqabs |_, a, _, q| saturate(sw::<B>(a).abs(), B, false, q);
    Sqneg |_, a, _, q| saturate(-sw::<B>(a), B, false, q);
    Suqadd |d, a, _, q| saturate(i128::from(a) + sw::<B>(d), B, false, q);
    Usqadd |d, a, _, q| saturate(sw::<B>(a) + i128::from(d), B, true, q);
    Clz |_, a, _, _| u64::from(a.leading_zeros() - (64 - B));
    Cls |_, a, _, _| {
        let differ = (a ^ (a >> 1)) & ones(B - 1);
        u64::from(differ.leading_zeros() - (64 - B) - 1)
    };
    Cnt |_, a, _, _| u64::from((a as u8).count_ones());
    Rbit |_, a, _, _| a.reverse_bits() >> (64 - B);
    CmgtZero |_, a, _, _| mask(s::<B>(a) > 0);
    CmgeZero |_, a, _, _| mask(s::<B>(a) >= 0);
    CmeqZero |_, a, _, _| mask(a == 0), whole |a, _| zeros::<B>(a);
    CmleZero |_, a, _, _| mask(s::<B>(a) <= 0);
    CmltZero |_, a, _, _| mask(s::<B>(a) < 0);

    // By an immediate: `b` is the shift.
    Sshr |_, a, b, _| (s::<B>(a) >> b.min(63)) as u64;
    Ushr |_, a, b, _| a.checked_shr(b as u32).unwrap_or(0);
    Srshr |_, a, b, _| shift_right(sw::<B>(a), b as u32, true) as u64;
    Urshr |_, a, b, _| shift_right(i128::from(a), b as u32, true) as u64;
    Ssra |d, a, b, _| d.wrapping_add((s::<B>(a) >> b.min(63)) as u64);
    Usra |d, a, b, _| d.wrapping_add(a.checked_shr(b as u32).unwrap_or(0));
    Srsra |d, a, b, _| d.wrapping_add(shift_right(sw::<B>(a), b as u32, true) as u64);
    Ursra |d, a, b, _| d.wrapping_add(shift_right(i128::from(a), b as u32, true) as u64);
    Shl |_, a, b, _| a << b;
    Sli |d, a, b, _| (a << b) | (d & !(u64::MAX << b));
    Sri |d, a, b, _| shift_right(i128::from(a), b as u32, false) as u64 | (d & !((u128::from(ones(B)) >> b) as u64));
    Sqshlu |_, a, b, q| saturate(sw::<B>(a) << b, B, true, q);
}

#[cfg(test)]
mod tests {
    use super::super::{lane, map};
    use super::*;

    fn agree<T: Lane, const B: u32>(a: u128, b: u128) {
        let each = map::<B>(0, a, b, |d, a, b| T::f::<B>(d, a, b, &mut false));
        assert_eq!(T::whole::<B>(a, b), Some(each), "{a:#x} {b:#x} by {B}");
    }

    fn all_sizes<T: Lane>() {
        let edges = [0, 1, 0x7f, 0x80, 0x81, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000];
        let mut mixed = 0x0123_4567_89ab_cdef_8080_7f7f_00ff_ff00u128;
        for x in edges {
            for y in edges {
                mixed = mixed.rotate_left(9) ^ u128::from(x);
                for (a, b) in [
                    (splat(x, 32), splat(y, 16)),
                    (splat(x, 64) ^ lane(0, 64, y), mixed),
                    (mixed, mixed ^ lane(1, 32, y)),
                ] {
                    agree::<T, 8>(a, b);
                    agree::<T, 16>(a, b);
                    agree::<T, 32>(a, b);
                    agree::<T, 64>(a, b);
                }
            }
        }
    }

    #[test]
    fn whole_vectors_are_their_lanes() {
        all_sizes::<Add>();
        all_sizes::<Sub>();
        all_sizes::<Cmeq>();
        all_sizes::<Cmtst>();
        all_sizes::<CmeqZero>();
    }
}
