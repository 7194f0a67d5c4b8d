//! The FP core against Berkeley SoftFloat with Arm's NaN rules, over random and edge-biased operands.
//!
//! Twenty thousand cases an operation; `SMMULAB_LONG=1` makes it a million. SoftFloat has no flush-to-zero and no
//! default-NaN switch: the oracle here adds both around it. Its ARM-VFPv2 variant detects tininess before rounding.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs)]

use aarch64::fp::{self, Double, Env, Format, Half, Round, Single};
use softfloat_wrapper::{ExceptionFlags, F16, F32, F64, Float, RoundingMode};

const FZ: u32 = fp::FPCR_FZ;
const DN: u32 = fp::FPCR_DN;
const AHP: u32 = fp::FPCR_AHP;

/// SplitMix64: repeatable operands.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// An operand: any bits, an edge of the format, a moderate exponent, or few significant bits.
    fn operand<F: Format>(&mut self) -> u64 {
        let all = F::SIGN | (F::SIGN - 1);
        let sign = self.next() & F::SIGN;
        let frac = self.next() & F::FRAC_MASK;
        let sparse = match self.below(4) {
            0 => 0,
            1 => F::FRAC_MASK << self.below(u64::from(F::FRAC)),
            2 => F::FRAC_MASK >> self.below(u64::from(F::FRAC)),
            _ => 1 << self.below(u64::from(F::FRAC)),
        } & F::FRAC_MASK;
        let frac = if self.below(3) == 0 { sparse } else { frac };
        let max = F::EXP_MAX as u64;
        let bias = F::BIAS as u64;
        let field = match self.below(10) {
            0 => return self.next() & all,
            1 => return sign | [0, 1, F::FRAC_MASK, F::INF, F::MAX, F::DEFAULT_NAN][self.below(6) as usize],
            2 => return sign | F::INF | (frac & !F::QUIET) | 1,
            3 => 0,
            4 => self.below(3),
            5 => max - self.below(3),
            6 => bias - 70 % bias + self.below(140 % (2 * bias)),
            7 => bias / 2 + self.below(4),
            8 => bias + bias / 2 + self.below(4),
            _ => bias - 3 + self.below(6),
        };
        sign | ((field & max) << F::FRAC) | frac
    }

    fn fpcr(&mut self) -> u32 {
        let mode = (self.below(4) as u32) << 22;
        let fz = if self.below(3) == 0 { FZ } else { 0 };
        let dn = if self.below(3) == 0 { DN } else { 0 };
        mode | fz | dn
    }
}

/// A format as SoftFloat knows it.
trait Oracle: Format {
    type Soft: Float;
    fn soft(bits: u64) -> Self::Soft;
    fn bits(value: &Self::Soft) -> u64;
    fn down<S: Float>(value: &S, mode: RoundingMode) -> Self::Soft;
}

macro_rules! oracle {
    ($format:ty, $soft:ty, $bits:ty, $to:ident) => {
        impl Oracle for $format {
            type Soft = $soft;
            fn soft(bits: u64) -> $soft {
                <$soft>::from_bits(bits as $bits)
            }
            fn bits(value: &$soft) -> u64 {
                u64::from(value.to_bits())
            }
            fn down<S: Float>(value: &S, mode: RoundingMode) -> $soft {
                value.$to(mode)
            }
        }
    };
}
oracle!(Half, F16, u16, to_f16);
oracle!(Single, F32, u32, to_f32);
oracle!(Double, F64, u64, to_f64);

fn soft_mode(mode: Round) -> RoundingMode {
    match mode {
        Round::TieEven => RoundingMode::TiesToEven,
        Round::Up => RoundingMode::TowardPositive,
        Round::Down => RoundingMode::TowardNegative,
        Round::Zero => RoundingMode::TowardZero,
        Round::TieAway => RoundingMode::TiesToAway,
        Round::Odd => unreachable!("SoftFloat's interface does not offer it"),
    }
}

/// Runs SoftFloat and gives its result with its flags as FPSR has them.
fn run<T>(f: impl FnOnce() -> T) -> (T, u32) {
    ExceptionFlags::from_bits(0).set();
    let result = f();
    let mut flags = ExceptionFlags::default();
    flags.get();
    let bit = |on: bool, flag: u32| if on { flag } else { 0 };
    let fpsr = bit(flags.is_invalid(), fp::IOC)
        | bit(flags.is_infinite(), fp::DZC)
        | bit(flags.is_overflow(), fp::OFC)
        | bit(flags.is_underflow(), fp::UFC)
        | bit(flags.is_inexact(), fp::IXC);
    (result, fpsr)
}

fn is_nan<F: Format>(a: u64) -> bool {
    a & !F::SIGN > F::INF
}

fn is_snan<F: Format>(a: u64) -> bool {
    is_nan::<F>(a) && a & F::QUIET == 0
}

fn is_denormal<F: Format>(a: u64) -> bool {
    a & F::INF == 0 && a & F::FRAC_MASK != 0
}

/// Flushes an operand as FZ says.
fn flush<F: Format>(a: u64, fpcr: u32, flags: &mut u32) -> u64 {
    if fpcr & FZ != 0 && F::SIZE != 16 && is_denormal::<F>(a) {
        *flags |= fp::IDC;
        a & F::SIGN
    } else {
        a
    }
}

/// The oracle of an arithmetic operation: flushes operands, runs `f` on them, then flushes a result that is tiny
/// before rounding (which rounding towards zero shows) and applies DN.
fn arithmetic<F: Oracle, const N: usize>(
    operands: [u64; N],
    fpcr: u32,
    f: impl Fn([F::Soft; N], RoundingMode) -> F::Soft,
) -> (u64, u32) {
    let mut denormals = 0;
    let flushed = operands.map(|a| flush::<F>(a, fpcr, &mut denormals));
    let mode = soft_mode(Env::new(fpcr).rounding());
    let (result, flags) = run(|| F::bits(&f(flushed.map(F::soft), mode)));
    if fpcr & FZ != 0 {
        let (cut, lost) = run(|| F::bits(&f(flushed.map(F::soft), RoundingMode::TowardZero)));
        if cut & F::INF == 0 && (cut & F::FRAC_MASK != 0 || lost & fp::IXC != 0) {
            return (cut & F::SIGN, denormals | fp::UFC);
        }
    }
    (default_nan::<F>(result, fpcr), flags | denormals)
}

fn default_nan<F: Format>(result: u64, fpcr: u32) -> u64 {
    if fpcr & DN != 0 && is_nan::<F>(result) { F::DEFAULT_NAN } else { result }
}

fn cases() -> u64 {
    if std::env::var("SMMULAB_LONG").is_ok_and(|v| v == "1") { 1_000_000 } else { 20_000 }
}

/// Compares `ours` with `theirs` on many cases that `make` draws.
fn check<I: std::fmt::Debug + Copy>(
    name: &str,
    make: impl Fn(&mut Rng) -> I,
    ours: impl Fn(I, &mut Env) -> u64,
    theirs: impl Fn(I, u32) -> (u64, u32),
) {
    let mut rng = Rng(name.bytes().fold(0, |h: u64, b| h.wrapping_mul(31) + u64::from(b)));
    for _ in 0..cases() {
        let fpcr = rng.fpcr();
        let input = make(&mut rng);
        let mut env = Env::new(fpcr);
        let result = ours(input, &mut env);
        let (expected, flags) = theirs(input, fpcr);
        assert!(
            (result, env.flags) == (expected, flags),
            "{name} of {input:x?}, FPCR {fpcr:#x}: {result:#x} {:#x}, expected {expected:#x} {flags:#x}",
            env.flags
        );
    }
}

fn pair<F: Format>(rng: &mut Rng) -> [u64; 2] {
    let a = rng.operand::<F>();
    // Close numbers: cancellation and ties in comparisons.
    let b = match rng.below(8) {
        0 => a ^ F::SIGN,
        1 => (a ^ rng.below(4)) ^ (rng.next() & F::SIGN),
        _ => rng.operand::<F>(),
    };
    [a, b]
}

fn binary_operations<F: Oracle>(size: &str) {
    let name = |op| format!("{op}{size}");
    check(
        &name("add"),
        pair::<F>,
        |[a, b], env| fp::add::<F>(a, b, env),
        |i, fpcr| arithmetic::<F, 2>(i, fpcr, |[a, b], mode| a.add(b, mode)),
    );
    check(
        &name("sub"),
        pair::<F>,
        |[a, b], env| fp::sub::<F>(a, b, env),
        |i, fpcr| arithmetic::<F, 2>(i, fpcr, |[a, b], mode| a.sub(b, mode)),
    );
    check(
        &name("mul"),
        pair::<F>,
        |[a, b], env| fp::mul::<F>(a, b, env),
        |i, fpcr| arithmetic::<F, 2>(i, fpcr, |[a, b], mode| a.mul(b, mode)),
    );
    check(
        &name("div"),
        pair::<F>,
        |[a, b], env| fp::div::<F>(a, b, env),
        |i, fpcr| arithmetic::<F, 2>(i, fpcr, |[a, b], mode| a.div(b, mode)),
    );
    check(
        &name("sqrt"),
        |rng| [rng.operand::<F>()],
        |[a], env| fp::sqrt::<F>(a, env),
        |i, fpcr| arithmetic::<F, 1>(i, fpcr, |[a], mode| a.sqrt(mode)),
    );
    check(
        &name("mulx"),
        pair::<F>,
        |[a, b], env| fp::mulx::<F>(a, b, env),
        |i, fpcr| {
            let mut flags = 0;
            let [a, b] = i.map(|a| flush::<F>(a, fpcr, &mut flags) & !F::SIGN);
            if (a == 0 && b == F::INF) || (a == F::INF && b == 0) {
                return (F::TWO | ((i[0] ^ i[1]) & F::SIGN), flags);
            }
            arithmetic::<F, 2>(i, fpcr, |[a, b], mode| a.mul(b, mode))
        },
    );
}

/// Three operands; often the addend nearly cancels the product.
fn triple<F: Oracle>(rng: &mut Rng) -> [u64; 3] {
    let [a, b] = pair::<F>(rng);
    let c = if rng.below(3) == 0 {
        let product = F::bits(&F::soft(a).mul(F::soft(b), RoundingMode::TiesToEven));
        let near = product.wrapping_add(rng.below(5)).wrapping_sub(2) & (F::SIGN | (F::SIGN - 1));
        near ^ F::SIGN
    } else {
        rng.operand::<F>()
    };
    [c, a, b]
}

/// `c + a * b` by SoftFloat, whose order of NaNs is not that of FPMulAdd.
fn fused<F: Oracle>(operands: [u64; 3], fpcr: u32) -> (u64, u32) {
    if !operands.iter().any(|&a| is_nan::<F>(a)) {
        return arithmetic::<F, 3>(operands, fpcr, |[c, a, b], mode| a.fused_mul_add(b, c, mode));
    }
    let mut flags = 0;
    let [c, a, b] = operands.map(|a| flush::<F>(a, fpcr, &mut flags));
    let signalling = operands.iter().copied().find(|&a| is_snan::<F>(a));
    let quiet = operands.iter().copied().find(|&a| is_nan::<F>(a));
    if signalling.is_some() {
        flags |= fp::IOC;
    }
    let mut result = default_nan::<F>(signalling.or(quiet).unwrap_or(0) | F::QUIET, fpcr);
    let magnitudes = [a & !F::SIGN, b & !F::SIGN];
    if is_nan::<F>(c) && !is_snan::<F>(c) && magnitudes.contains(&0) && magnitudes.contains(&F::INF) {
        flags |= fp::IOC;
        result = F::DEFAULT_NAN;
    }
    (result, flags)
}

fn fused_operations<F: Oracle>(size: &str) {
    let name = |op| format!("{op}{size}");
    check(&name("mul_add"), triple::<F>, |[c, a, b], env| fp::mul_add::<F>(c, a, b, env), fused::<F>);
    check(
        &name("recip_step"),
        pair::<F>,
        |[a, b], env| fp::recip_step::<F>(a, b, env),
        |i, fpcr| step::<F>(i, F::TWO, F::TWO, fpcr),
    );
    // (3 - a * b) / 2 is 1.5 - a * (b / 2) where halving b is exact.
    let half = |b: u64| if b & F::INF == F::INF || b & !F::SIGN == 0 { b } else { b - (1 << F::FRAC) };
    let three_halves = (F::BIAS as u64) << F::FRAC | F::QUIET;
    check(
        &name("rsqrt_step"),
        |rng| loop {
            let [a, b] = pair::<F>(rng);
            if b & !F::SIGN == 0 || b & F::INF > 1 << F::FRAC {
                break [a, b];
            }
        },
        |[a, b], env| fp::rsqrt_step::<F>(a, b, env),
        |[a, b], fpcr| step::<F>([a, half(b)], three_halves, three_halves, fpcr),
    );
}

fn step<F: Oracle>([a, b]: [u64; 2], constant: u64, special: u64, fpcr: u32) -> (u64, u32) {
    let mut flags = 0;
    let [x, y] = [a, b].map(|a| flush::<F>(a, fpcr, &mut flags) & !F::SIGN);
    if (x == 0 && y == F::INF) || (x == F::INF && y == 0) {
        return (special, flags);
    }
    fused::<F>([constant, a ^ F::SIGN, b], fpcr)
}

fn comparisons<F: Oracle>(size: &str) {
    let name = |op| format!("{op}{size}");
    let flushed = |i: [u64; 2], fpcr, flags: &mut u32| i.map(|a| flush::<F>(a, fpcr, flags));
    for signal in [false, true] {
        check(
            &name(if signal { "cmpe" } else { "cmp" }),
            pair::<F>,
            |[a, b], env| u64::from(fp::compare::<F>(a, b, signal, env)),
            |i, fpcr| {
                let mut denormals = 0;
                let [a, b] = flushed(i, fpcr, &mut denormals).map(F::soft);
                let (equal, flags) = run(|| if signal { a.eq_signaling(&b) } else { a.eq(&b) });
                let less = a.lt_quiet(&b);
                let unordered = i.iter().any(|&a| is_nan::<F>(a));
                let nzcv = match (unordered, equal, less) {
                    (true, ..) => 3u64,
                    (_, true, _) => 6,
                    (_, _, true) => 8,
                    _ => 2,
                };
                (nzcv << 28, flags | denormals)
            },
        );
    }
    check(
        &name("cmeq"),
        pair::<F>,
        |[a, b], env| u64::from(fp::compare_eq::<F>(a, b, env)),
        |i, fpcr| {
            let mut denormals = 0;
            let [a, b] = flushed(i, fpcr, &mut denormals).map(F::soft);
            let (result, flags) = run(|| a.eq(&b));
            (u64::from(result), flags | denormals)
        },
    );
    check(
        &name("cmge"),
        pair::<F>,
        |[a, b], env| u64::from(fp::compare_ge::<F>(a, b, env)),
        |i, fpcr| {
            let mut denormals = 0;
            let [a, b] = flushed(i, fpcr, &mut denormals).map(F::soft);
            let (result, flags) = run(|| b.le(&a));
            (u64::from(result), flags | denormals)
        },
    );
    check(
        &name("cmgt"),
        pair::<F>,
        |[a, b], env| u64::from(fp::compare_gt::<F>(a, b, env)),
        |i, fpcr| {
            let mut denormals = 0;
            let [a, b] = flushed(i, fpcr, &mut denormals).map(F::soft);
            let (result, flags) = run(|| b.lt(&a));
            (u64::from(result), flags | denormals)
        },
    );
}

/// Minimum and maximum from SoftFloat's comparison and, for NaNs, its addition.
fn extreme<F: Oracle>(i: [u64; 2], larger: bool, number: bool, fpcr: u32) -> (u64, u32) {
    let mut flags = 0;
    let [a, b] = i.map(|a| flush::<F>(a, fpcr, &mut flags));
    if is_nan::<F>(a) || is_nan::<F>(b) {
        let quiet = |a| is_nan::<F>(a) && !is_snan::<F>(a);
        if number && quiet(a) && !is_nan::<F>(b) {
            return (b, flags);
        }
        if number && quiet(b) && !is_nan::<F>(a) {
            return (a, flags);
        }
        // A quiet NaN next to a signalling one counts as a number here.
        let (result, invalid) = run(|| F::bits(&F::soft(a).add(F::soft(b), RoundingMode::TiesToEven)));
        return (default_nan::<F>(result, fpcr), flags | invalid);
    }
    if (a | b) & !F::SIGN == 0 {
        return (if larger { a & b } else { a | b }, flags);
    }
    let less = F::soft(a).lt_quiet(F::soft(b));
    (if less == larger { b } else { a }, flags)
}

fn extremes<F: Oracle>(size: &str) {
    type Rule = fn(u64, u64, &mut Env) -> u64;
    let all: [(&str, Rule, bool, bool); 4] = [
        ("max", fp::max::<F>, true, false),
        ("min", fp::min::<F>, false, false),
        ("max_num", fp::max_num::<F>, true, true),
        ("min_num", fp::min_num::<F>, false, true),
    ];
    for (op, rule, larger, number) in all {
        check(
            &format!("{op}{size}"),
            pair::<F>,
            |[a, b], env| rule(a, b, env),
            |i, fpcr| extreme::<F>(i, larger, number, fpcr),
        );
    }
}

const MODES: [Round; 5] = [Round::TieEven, Round::Up, Round::Down, Round::Zero, Round::TieAway];

fn roundings<F: Oracle>(size: &str) {
    for mode in MODES {
        for exact in [false, true] {
            check(
                &format!("rint{size} {mode:?} {exact}"),
                |rng| rng.operand::<F>(),
                |a, env| fp::round_to_integral::<F>(a, mode, exact, env),
                |a, fpcr| {
                    let mut denormals = 0;
                    let a = flush::<F>(a, fpcr, &mut denormals);
                    let (result, flags) = run(|| F::bits(&F::soft(a).round_to_integral(soft_mode(mode))));
                    let inexact = exact && !is_nan::<F>(a) && result != a;
                    let result = default_nan::<F>(result, fpcr);
                    (result, (flags & !fp::IXC) | denormals | if inexact { fp::IXC } else { 0 })
                },
            );
        }
    }
}

/// A power of two as a double.
fn power(exp: i64) -> F64 {
    F64::from_bits(((1023 + exp) as u64) << 52)
}

fn to_integers<F: Oracle>(size: &str) {
    for mode in MODES {
        for (width, unsigned) in [(32, false), (32, true), (64, false), (64, true)] {
            check(
                &format!("to_fixed{size} {mode:?} {width} {unsigned}"),
                |rng| {
                    let fraction = if rng.below(2) == 0 { 0 } else { rng.below(width + 1) };
                    let a = rng.operand::<F>();
                    // Near the limits of the integer and around one half.
                    let field = (F::BIAS as u64) + rng.below(67) - 2;
                    let near = (a & !F::INF) | (field << F::FRAC);
                    (if rng.below(2) == 0 { near } else { a }, fraction)
                },
                |(a, f), env| fp::to_fixed::<F>(a, width as u32, f as u32, unsigned, mode, env),
                |(a, f), fpcr| {
                    let mut denormals = 0;
                    let a = F::soft(flush::<F>(a, fpcr, &mut denormals));
                    // Exact, or beyond any integer.
                    let scaled =
                        a.to_f64(RoundingMode::TiesToEven).mul(power(f as i64), RoundingMode::TiesToEven);
                    let mode = soft_mode(mode);
                    let (result, flags) = run(|| match (width, unsigned) {
                        (32, false) => u64::from(scaled.to_i32(mode, true) as u32),
                        (32, true) => u64::from(scaled.to_u32(mode, true)),
                        (_, false) => scaled.to_i64(mode, true) as u64,
                        (_, true) => scaled.to_u64(mode, true),
                    });
                    (result, flags | denormals)
                },
            );
        }
    }
}

fn from_integers<F: Oracle>(size: &str) {
    for (width, unsigned) in [(32, false), (32, true), (64, false), (64, true)] {
        check(
            &format!("from_fixed{size} {width} {unsigned}"),
            |rng| {
                let fraction = if rng.below(2) == 0 { 0 } else { rng.below(width + 1) };
                let a = match rng.below(4) {
                    0 => rng.next(),
                    1 => rng.next() >> rng.below(64),
                    2 => u64::MAX << rng.below(64),
                    _ => (1u64 << rng.below(64)).wrapping_add(rng.below(3)).wrapping_sub(1),
                };
                (a, fraction)
            },
            |(a, f), env| fp::from_fixed::<F>(a, width as u32, f as u32, unsigned, env),
            |(a, f), fpcr| {
                let mode = soft_mode(Env::new(fpcr).rounding());
                let (whole, flags) = run(|| match (width, unsigned) {
                    (32, false) => F::Soft::from_i32(a as i32, mode),
                    (32, true) => F::Soft::from_u32(a as u32, mode),
                    (_, false) => F::Soft::from_i64(a as i64, mode),
                    (_, true) => F::Soft::from_u64(a, mode),
                });
                let scale = F::down(&power(-(f as i64)), RoundingMode::TiesToEven);
                (F::bits(&whole.mul(scale, RoundingMode::TiesToEven)), flags)
            },
        );
    }
}

fn conversion<S: Oracle, D: Oracle>(name: &str) {
    check(
        name,
        |rng| rng.operand::<S>(),
        |a, env| fp::convert::<S, D>(a, env),
        |a, fpcr| {
            let mut denormals = 0;
            let a = S::soft(flush::<S>(a, fpcr, &mut denormals));
            let (result, flags) = run(|| D::bits(&D::down(&a, soft_mode(Env::new(fpcr).rounding()))));
            if fpcr & FZ != 0 && D::SIZE != 16 {
                let (cut, lost) = run(|| D::bits(&D::down(&a, RoundingMode::TowardZero)));
                if cut & D::INF == 0 && (cut & D::FRAC_MASK != 0 || lost & fp::IXC != 0) {
                    return (cut & D::SIGN, denormals | fp::UFC);
                }
            }
            (default_nan::<D>(result, fpcr), flags | denormals)
        },
    );
}

#[test]
fn single_arithmetic() {
    binary_operations::<Single>("32");
}

#[test]
fn double_arithmetic() {
    binary_operations::<Double>("64");
}

#[test]
fn multiply_add() {
    fused_operations::<Single>("32");
    fused_operations::<Double>("64");
}

#[test]
fn compare_and_select() {
    comparisons::<Single>("32");
    comparisons::<Double>("64");
    extremes::<Single>("32");
    extremes::<Double>("64");
}

#[test]
fn round_to_integral() {
    roundings::<Single>("32");
    roundings::<Double>("64");
}

#[test]
fn integers() {
    to_integers::<Single>("32");
    to_integers::<Double>("64");
    from_integers::<Single>("32");
    from_integers::<Double>("64");
}

#[test]
fn formats() {
    conversion::<Half, Single>("half to single");
    conversion::<Half, Double>("half to double");
    conversion::<Single, Half>("single to half");
    conversion::<Double, Half>("double to half");
    conversion::<Single, Double>("single to double");
    conversion::<Double, Single>("double to single");
}

/// FCVTXN: the result towards zero with its lowest bit set if inexact, which never overflows to infinity.
#[test]
fn round_to_odd() {
    check(
        "convert_odd",
        |rng| rng.operand::<Double>(),
        fp::convert_odd::<Double, Single>,
        |a, fpcr| {
            let mut denormals = 0;
            let a = Double::soft(flush::<Double>(a, fpcr, &mut denormals));
            let (cut, flags) = run(|| u64::from(a.to_f32(RoundingMode::TowardZero).to_bits()));
            let tiny = cut & Single::INF == 0 && (cut & Single::FRAC_MASK != 0 || flags & fp::IXC != 0);
            if fpcr & FZ != 0 && tiny {
                return (cut & Single::SIGN, denormals | fp::UFC);
            }
            let odd = u64::from(flags & fp::IXC != 0);
            (default_nan::<Single>(cut | odd, fpcr), flags | denormals)
        },
    );
}

/// Alternative half precision, where exponent 31 is a number: every value, both ways.
#[test]
fn alternative_half() {
    for bits in 0..=0xffffu64 {
        let mut env = Env::new(AHP);
        let wide = fp::convert::<Half, Double>(bits, &mut env);
        let (sign, field, frac) = (bits >> 15, (bits >> 10) & 31, bits & 0x3ff);
        let magnitude = if field == 0 {
            frac as f64 * 2f64.powi(-24)
        } else {
            (1024 + frac) as f64 * 2f64.powi(field as i32 - 25)
        };
        let value = if sign == 1 { -magnitude } else { magnitude };
        assert_eq!(wide, value.to_bits(), "{bits:#x}");
        assert_eq!(fp::convert::<Double, Half>(wide, &mut env), bits);
        let single = fp::convert::<Half, Single>(bits, &mut env);
        assert_eq!(fp::convert::<Single, Half>(single, &mut env), bits);
        assert_eq!(env.flags, 0);
    }
    let mut env = Env::new(AHP);
    // Too large, infinite and NaN: invalid.
    assert_eq!(fp::convert::<Double, Half>(131_072f64.to_bits(), &mut env), 0x7fff);
    assert_eq!((env.flags, env.flags & fp::IXC), (fp::IOC, 0));
    assert_eq!(fp::convert::<Double, Half>(f64::NEG_INFINITY.to_bits(), &mut env), 0xffff);
    assert_eq!(fp::convert::<Double, Half>((-f64::NAN).to_bits() | Double::SIGN, &mut env), 0x8000);
}

/// Estimates are within 2^-8 of the exact value, and specials are as the manual says.
#[test]
fn estimates() {
    let mut rng = Rng(1);
    for _ in 0..cases() {
        let a = f64::from_bits(rng.operand::<Double>());
        let mut env = Env::new(0);
        if a.is_normal() && a.abs() < 2f64.powi(1021) {
            let r = f64::from_bits(fp::recip_estimate::<Double>(a.to_bits(), &mut env));
            assert!((r * a - 1.0).abs() < 1.0 / 256.0, "{a:e} {r:e}");
        }
        if a.is_normal() && a > 0.0 {
            let r = f64::from_bits(fp::rsqrt_estimate::<Double>(a.to_bits(), &mut env));
            assert!((r * r * a - 1.0).abs() < 1.0 / 128.0, "{a:e} {r:e}");
        }
    }
    let one = |f: fn(u64, &mut Env) -> u64, a: f32, fpcr| {
        let mut env = Env::new(fpcr);
        (f(u64::from(a.to_bits()), &mut env), env.flags)
    };
    assert_eq!(one(fp::recip_estimate::<Single>, -0.0, 0), (0xff80_0000, fp::DZC));
    assert_eq!(one(fp::recip_estimate::<Single>, 1e-40, FZ), (0x7f80_0000, fp::DZC | fp::IDC));
    assert_eq!(one(fp::recip_estimate::<Single>, 1e-40, 3 << 22), (0x7f7f_ffff, fp::OFC | fp::IXC));
    assert_eq!(one(fp::recip_estimate::<Single>, -f32::MAX, FZ), (0x8000_0000, fp::UFC));
    assert_eq!(one(fp::rsqrt_estimate::<Single>, -1.0, 0), (0x7fc0_0000, fp::IOC));
    assert_eq!(one(fp::recip_exponent::<Single>, 1.0, 0), (0x4000_0000, 0));
}
