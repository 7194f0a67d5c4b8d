//! What one lane of an FP instruction computes.

use super::ones;
use crate::fp::{self, Env, Format, Round};

/// Two sources and the old destination.
pub(crate) trait Float3 {
    /// The new lane.
    fn f<F: Format>(d: u64, a: u64, b: u64, env: &mut Env) -> u64;
}

/// One source, and the instruction's immediate.
pub(crate) trait Float1 {
    /// The new lane.
    fn f<F: Format>(a: u64, imm: u64, env: &mut Env) -> u64;
}

macro_rules! float3 {
    ($($name:ident |$d:pat_param, $a:ident, $b:ident, $env:ident| $body:expr;)*) => {$(
        pub(crate) struct $name;
        impl Float3 for $name {
            #[inline(always)]
            fn f<F: Format>($d: u64, $a: u64, $b: u64, $env: &mut Env) -> u64 {
                $body
            }
        }
    )*};
}

macro_rules! float1 {
    ($($name:ident |$a:ident, $env:ident| $body:expr;)*) => {$(
        pub(crate) struct $name;
        impl Float1 for $name {
            #[inline(always)]
            fn f<F: Format>($a: u64, _imm: u64, $env: &mut Env) -> u64 {
                $body
            }
        }
    )*};
}

/// All ones when true.
#[inline(always)]
fn mask<F: Format>(yes: bool) -> u64 {
    if yes { ones(F::SIZE) } else { 0 }
}

float3! {
    Add |_, a, b, env| fp::add::<F>(a, b, env);
    Sub |_, a, b, env| fp::sub::<F>(a, b, env);
    Mul |_, a, b, env| fp::mul::<F>(a, b, env);
    Nmul |_, a, b, env| fp::neg::<F>(fp::mul::<F>(a, b, env));
    Mulx |_, a, b, env| fp::mulx::<F>(a, b, env);
    Div |_, a, b, env| fp::div::<F>(a, b, env);
    Max |_, a, b, env| fp::max::<F>(a, b, env);
    Min |_, a, b, env| fp::min::<F>(a, b, env);
    MaxNum |_, a, b, env| fp::max_num::<F>(a, b, env);
    MinNum |_, a, b, env| fp::min_num::<F>(a, b, env);
    Mla |d, a, b, env| fp::mul_add::<F>(d, a, b, env);
    Mls |d, a, b, env| fp::mul_add::<F>(d, fp::neg::<F>(a), b, env);
    Abd |_, a, b, env| fp::abs::<F>(fp::sub::<F>(a, b, env));
    RecipStep |_, a, b, env| fp::recip_step::<F>(a, b, env);
    RsqrtStep |_, a, b, env| fp::rsqrt_step::<F>(a, b, env);
    Cmeq |_, a, b, env| mask::<F>(fp::compare_eq::<F>(a, b, env));
    Cmge |_, a, b, env| mask::<F>(fp::compare_ge::<F>(a, b, env));
    Cmgt |_, a, b, env| mask::<F>(fp::compare_gt::<F>(a, b, env));
    Acge |_, a, b, env| mask::<F>(fp::compare_ge::<F>(fp::abs::<F>(a), fp::abs::<F>(b), env));
    Acgt |_, a, b, env| mask::<F>(fp::compare_gt::<F>(fp::abs::<F>(a), fp::abs::<F>(b), env));
}

float1! {
    Abs |a, _env| fp::abs::<F>(a);
    Neg |a, _env| fp::neg::<F>(a);
    Sqrt |a, env| fp::sqrt::<F>(a, env);
    RecipEstimate |a, env| fp::recip_estimate::<F>(a, env);
    RsqrtEstimate |a, env| fp::rsqrt_estimate::<F>(a, env);
    RecipExponent |a, env| fp::recip_exponent::<F>(a, env);
    CmgtZero |a, env| mask::<F>(fp::compare_gt::<F>(a, 0, env));
    CmgeZero |a, env| mask::<F>(fp::compare_ge::<F>(a, 0, env));
    CmeqZero |a, env| mask::<F>(fp::compare_eq::<F>(a, 0, env));
    CmleZero |a, env| mask::<F>(fp::compare_ge::<F>(0, a, env));
    CmltZero |a, env| mask::<F>(fp::compare_gt::<F>(0, a, env));
}

/// Rounding directions as constants; `CURRENT` is FPCR's.
pub(crate) mod mode {
    pub(crate) const NEAREST: u8 = 0;
    pub(crate) const PLUS: u8 = 1;
    pub(crate) const MINUS: u8 = 2;
    pub(crate) const ZERO: u8 = 3;
    pub(crate) const AWAY: u8 = 4;
    pub(crate) const CURRENT: u8 = 5;
}

/// The rounding direction that a constant of [`mode`] means.
#[inline(always)]
pub(super) fn rounding<const MODE: u8>(env: &Env) -> Round {
    match MODE {
        mode::NEAREST => Round::TieEven,
        mode::PLUS => Round::Up,
        mode::MINUS => Round::Down,
        mode::ZERO => Round::Zero,
        mode::AWAY => Round::TieAway,
        _ => env.rounding(),
    }
}

/// FRINT*.
pub(crate) struct Integral<const MODE: u8, const EXACT: bool>;
impl<const MODE: u8, const EXACT: bool> Float1 for Integral<MODE, EXACT> {
    #[inline(always)]
    fn f<F: Format>(a: u64, _imm: u64, env: &mut Env) -> u64 {
        fp::round_to_integral::<F>(a, rounding::<MODE>(env), EXACT, env)
    }
}

/// FCVT* to an integer of the lane's size, with `imm` bits after the point.
pub(crate) struct ToFixed<const MODE: u8, const UNSIGNED: bool>;
impl<const MODE: u8, const UNSIGNED: bool> Float1 for ToFixed<MODE, UNSIGNED> {
    #[inline(always)]
    fn f<F: Format>(a: u64, imm: u64, env: &mut Env) -> u64 {
        fp::to_fixed::<F>(a, F::SIZE, imm as u32, UNSIGNED, rounding::<MODE>(env), env)
    }
}

/// SCVTF and UCVTF from an integer of the lane's size, with `imm` bits after the point.
pub(crate) struct FromFixed<const UNSIGNED: bool>;
impl<const UNSIGNED: bool> Float1 for FromFixed<UNSIGNED> {
    #[inline(always)]
    fn f<F: Format>(a: u64, imm: u64, env: &mut Env) -> u64 {
        fp::from_fixed::<F>(a, F::SIZE, imm as u32, UNSIGNED, env)
    }
}
