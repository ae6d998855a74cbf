//! Compiles plain f32 loops to vector code for each instruction set (auto-vectorization).
//!
//! Used for ops on activations, whose results may differ between machines by rounding. Dot products of stored blocks
//! are in `matmul`, written over `Isa`. Everything is inlined into an [`AutovecKernel`], which [`run`] compiles per
//! instruction set. Next: `elementwise`.

use crate::simd::{Isa, Kernel, SimdLevel};

/// A computation in plain loops. `run` and all it calls must be `#[inline(always)]`.
pub trait AutovecKernel {
    type Output;
    /// Computes it; `FMA`: a multiply-add is one instruction.
    fn run<const FMA: bool>(self) -> Self::Output;
}

struct WithFma<L, const FMA: bool>(L);

impl<L: AutovecKernel, const FMA: bool> Kernel for WithFma<L, FMA> {
    type Output = L::Output;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> L::Output {
        self.0.run::<FMA>()
    }
}

/// Runs the loops compiled for this level.
#[inline]
pub fn run<L: AutovecKernel>(level: SimdLevel, loops: L) -> L::Output {
    // Without the instruction a fused multiply-add is a call into libm.
    if matches!(level, SimdLevel::Scalar(_)) && cfg!(target_arch = "x86_64") {
        level.run(WithFma::<L, false>(loops))
    } else {
        level.run(WithFma::<L, true>(loops))
    }
}

/// a * b + c
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// sum_i a_i b_i, in 32 partial sums.
#[inline(always)]
pub fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 32];
    let (a, a_rest) = a.as_chunks::<32>();
    let (b, b_rest) = b.as_chunks::<32>();
    for (a, b) in a.iter().zip(b) {
        for l in 0..32 {
            sums[l] = fma::<FMA>(a[l], b[l], sums[l]);
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum = fma::<FMA>(*a, *b, *sum);
    }
    let mut sixteen = [0.0; 16];
    for l in 0..16 {
        sixteen[l] = sums[l] + sums[l + 16];
    }
    let mut four = [0.0; 4];
    for l in 0..4 {
        four[l] = (sixteen[l] + sixteen[l + 4]) + (sixteen[l + 8] + sixteen[l + 12]);
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The largest of `x` and `least`, in eight lanes to break the dependency chain.
#[inline(always)]
pub fn largest<const N: usize>(x: &[f32; N], least: f32) -> f32 {
    let mut most = [least; 8];
    for eight in x.as_chunks::<8>().0 {
        for l in 0..8 {
            most[l] = if eight[l] > most[l] { eight[l] } else { most[l] };
        }
    }
    most.into_iter().fold(least, f32::max)
}

/// sum_i x_i, in eight partial sums.
#[inline(always)]
pub fn sum<const N: usize>(x: &[f32; N]) -> f32 {
    let mut sums = [0.0; 8];
    for eight in x.as_chunks::<8>().0 {
        for l in 0..8 {
            sums[l] += eight[l];
        }
    }
    let four: [f32; 4] = std::array::from_fn(|l| sums[l] + sums[l + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Adds a multiple of a row: y += a x.
#[inline(always)]
pub fn axpy<const FMA: bool>(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma::<FMA>(a, *x, *y);
    }
}

/// e^x to 2 units in the last place; 0 below -87.3 (where f32 has no full precision), infinity above 88.3.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low bits
    let n = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let whole = n - ROUND;
    // ln 2 in two parts, the first exact in products with |n| < 256.
    let r = fma::<FMA>(whole, -0.693_359_4, x);
    let r = fma::<FMA>(whole, 2.121_944_4e-4, r);
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = fma::<FMA>(p, r, c);
    }
    let power = f32::from_bits(n.to_bits().wrapping_add(127) << 23);
    let y = p * power;
    let y = if x < -87.3 { 0.0 } else { y };
    if x > 88.3 { f32::INFINITY } else { y }
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// ln(1 + e^x) for any x, to relative precision.
#[inline(always)]
pub fn softplus<const FMA: bool>(x: f32) -> f32 {
    let y = exp::<FMA>(-x.abs()); // 0..=1
    // ln(1 + y) = 2 atanh(s), s = y / (2 + y) <= 1/3
    let s = y / (2.0 + y);
    let z = s * s;
    let mut p = 1.0 / 15.0;
    for c in [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 0.2, 1.0 / 3.0, 1.0] {
        p = fma::<FMA>(p, z, c);
    }
    let tail = 2.0 * s * p;
    if x > 0.0 { x + tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Map<'a>(&'a [f32], fn(f64) -> f64, usize);

    impl AutovecKernel for Map<'_> {
        type Output = f64;

        /// The largest relative error of function number `self.2`.
        #[inline(always)]
        fn run<const FMA: bool>(self) -> f64 {
            let f = [exp::<FMA>, sigmoid::<FMA>, softplus::<FMA>][self.2];
            let error = |&x: &f32| (f(x) as f64 / (self.1)(x as f64) - 1.0).abs();
            self.0.iter().map(error).fold(0.0, f64::max)
        }
    }

    fn check(which: usize, exact: fn(f64) -> f64, range: std::ops::Range<f32>) {
        let steps = 200_000;
        let x: Vec<f32> =
            (0..steps).map(|i| range.start + (range.end - range.start) * i as f32 / steps as f32).collect();
        for level in SimdLevel::available() {
            let error = run(level, Map(&x, exact, which));
            assert!(error < 3e-7, "function {which}, {}: {error:e}", level.name());
        }
    }

    #[test]
    fn functions_are_precise() {
        check(0, f64::exp, -87.0..88.0);
        check(1, |x| 1.0 / (1.0 + (-x).exp()), -86.0..88.0);
        check(2, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), -86.0..200.0);
    }

    #[test]
    fn extremes() {
        assert_eq!(
            [exp::<false>(f32::NEG_INFINITY), exp::<false>(-1e30), exp::<false>(0.0)],
            [0.0, 0.0, 1.0]
        );
        assert_eq!([exp::<false>(f32::INFINITY), exp::<false>(1e30)], [f32::INFINITY; 2]);
        assert!(exp::<false>(f32::NAN).is_nan() && softplus::<false>(f32::NAN).is_nan());
        assert_eq!([sigmoid::<false>(-1e9), sigmoid::<false>(1e9)], [0.0, 1.0]);
        assert_eq!([softplus::<false>(-1e9), softplus::<false>(1e9)], [0.0, 1e9]);
    }

    #[test]
    fn sums_of_odd_lengths() {
        struct Dot<'a>(&'a [f32]);
        impl AutovecKernel for Dot<'_> {
            type Output = f32;
            #[inline(always)]
            fn run<const FMA: bool>(self) -> f32 {
                dot::<FMA>(self.0, self.0)
            }
        }
        for n in [0, 1, 7, 16, 63, 200] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let exact = (0..n).map(|i| i * i).sum::<i32>() as f32;
            SimdLevel::available().into_iter().for_each(|level| assert_eq!(run(level, Dot(&x)), exact));
        }
    }
}
