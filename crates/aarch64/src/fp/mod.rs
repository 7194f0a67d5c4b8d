//! Arm floating point in integers only: pure functions of operands and FPCR, giving a result and FPSR flags.
//!
//! Values are raw bits in the low end of a `u64`. A [`Format`] says how to read them. The rules are the pseudocode
//! functions of DDI 0487 J1.3 (`shared/functions/float`), whose names the comments give.

mod arith;
mod compare;
mod convert;
mod estimate;
mod fused;
mod round;
mod unpack;

pub use arith::{add, div, mul, mulx, sqrt, sub};
pub use compare::{abs, compare, compare_eq, compare_ge, compare_gt, max, max_num, min, min_num, neg};
pub use convert::{convert, convert_odd, from_fixed, round_to_integral, to_fixed};
pub use estimate::{recip_estimate, recip_exponent, rsqrt_estimate, unsigned_recip, unsigned_rsqrt};
pub use fused::{mul_add, recip_step, rsqrt_step};

/// FPSR.IOC: invalid operation.
pub const IOC: u32 = 1 << 0;
/// FPSR.DZC: division by zero.
pub const DZC: u32 = 1 << 1;
/// FPSR.OFC: overflow.
pub const OFC: u32 = 1 << 2;
/// FPSR.UFC: underflow.
pub const UFC: u32 = 1 << 3;
/// FPSR.IXC: inexact.
pub const IXC: u32 = 1 << 4;
/// FPSR.IDC: input denormal flushed.
pub const IDC: u32 = 1 << 7;
/// FPSR.QC: an Advanced SIMD integer operation saturated.
pub const QC: u32 = 1 << 27;

/// FPCR.FZ: flush denormals to zero.
pub const FPCR_FZ: u32 = 1 << 24;
/// FPCR.DN: every NaN result is the default NaN.
pub const FPCR_DN: u32 = 1 << 25;
/// FPCR.AHP: alternative half precision.
pub const FPCR_AHP: u32 = 1 << 26;

/// A rounding direction. The first four have the encoding of FPCR.RMode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    TieEven,
    /// Towards plus infinity.
    Up,
    /// Towards minus infinity.
    Down,
    /// Towards zero.
    Zero,
    /// To nearest, ties away from zero.
    TieAway,
    /// To odd: an inexact result gets its lowest bit set (FCVTXN).
    Odd,
}

/// What an operation reads from FPCR and what it adds to FPSR.
#[derive(Clone, Copy, Debug)]
pub struct Env {
    /// FPCR.
    pub fpcr: u32,
    /// Flags raised so far, to be ORed into FPSR.
    pub flags: u32,
}

impl Env {
    /// An environment with no flag raised.
    #[inline]
    pub const fn new(fpcr: u32) -> Self {
        Self { fpcr, flags: 0 }
    }

    /// The rounding direction of FPCR.RMode.
    #[inline]
    pub const fn rounding(&self) -> Round {
        match (self.fpcr >> 22) & 3 {
            0 => Round::TieEven,
            1 => Round::Up,
            2 => Round::Down,
            _ => Round::Zero,
        }
    }

    /// Whether denormals of this format flush to zero. FPCR.FZ does not apply to half precision.
    #[inline]
    const fn flushes<F: Format>(&self) -> bool {
        self.fpcr & FPCR_FZ != 0 && F::SIZE != 16
    }

    #[inline]
    const fn default_nan(&self) -> bool {
        self.fpcr & FPCR_DN != 0
    }

    #[inline]
    const fn alternative_half(&self) -> bool {
        self.fpcr & FPCR_AHP != 0
    }

    #[inline]
    const fn raise(&mut self, flags: u32) {
        self.flags |= flags;
    }
}

/// A binary interchange format of IEEE 754.
pub trait Format {
    /// Bits in all.
    const SIZE: u32;
    /// Bits of the fraction field.
    const FRAC: u32;
    /// Bits of the exponent field.
    const EXP: u32 = Self::SIZE - 1 - Self::FRAC;
    /// The exponent field of infinities and NaNs.
    const EXP_MAX: i32 = (1 << Self::EXP) - 1;
    /// Exponent bias.
    const BIAS: i32 = Self::EXP_MAX >> 1;
    /// Exponent of the smallest normal number.
    const EXP_MIN: i32 = 1 - Self::BIAS;
    /// The sign bit.
    const SIGN: u64 = 1 << (Self::SIZE - 1);
    /// The fraction field.
    const FRAC_MASK: u64 = (1 << Self::FRAC) - 1;
    /// The bit that tells a quiet NaN from a signalling one.
    const QUIET: u64 = 1 << (Self::FRAC - 1);
    /// Plus infinity.
    const INF: u64 = (Self::EXP_MAX as u64) << Self::FRAC;
    /// The default NaN.
    const DEFAULT_NAN: u64 = Self::INF | Self::QUIET;
    /// The largest finite number.
    const MAX: u64 = Self::INF - 1;
    /// 2.0
    const TWO: u64 = (Self::BIAS as u64 + 1) << Self::FRAC;
}

/// Half precision: conversions only, before FEAT_FP16.
#[derive(Clone, Copy, Debug)]
pub struct Half;
/// Single precision.
#[derive(Clone, Copy, Debug)]
pub struct Single;
/// Double precision.
#[derive(Clone, Copy, Debug)]
pub struct Double;

impl Format for Half {
    const SIZE: u32 = 16;
    const FRAC: u32 = 10;
}
impl Format for Single {
    const SIZE: u32 = 32;
    const FRAC: u32 = 23;
}
impl Format for Double {
    const SIZE: u32 = 64;
    const FRAC: u32 = 52;
}
