//! Elementary functions over [`Lane`]s, with the same bits for every set of instructions.
//!
//! The coefficients are minimax fits made for this file (iteratively reweighted least squares in extended precision,
//! then rounded to `f32`); the tests below hold the errors.

use super::lane::{Lane, Vectorised, dispatch, isa};

/// Numerator of tanh in powers of x², beginning with x⁰.
const TANH_P: [f32; 5] = [1.0, 0.1345062, 0.0035789912, 2.2023229e-05, 1.542795e-08];
/// Denominator of tanh.
const TANH_Q: [f32; 5] = [1.0, 0.46783948, 0.026192235, 0.0003423649, 8.598771e-07];

/// Hyperbolic tangent: x P(x²) / Q(x²) on |x| <= 7.9, constant beyond. Absolute and relative error below 3e-7; NaN stays NaN.
#[inline(always)]
pub(crate) fn tanh<L: Lane>(x: L) -> L {
    let x = L::splat(-7.9).max(L::splat(7.9).min(x));
    let square = x.mul(x);
    let mut p = L::splat(TANH_P[4]);
    let mut q = L::splat(TANH_Q[4]);
    for i in (0..4).rev() {
        p = p.mul_add(square, L::splat(TANH_P[i]));
        q = q.mul_add(square, L::splat(TANH_Q[i]));
    }
    x.mul(p).div(q)
}

/// (e^r - 1 - r) / r² for |r| <= ln 2 / 2.
const EXP: [f32; 5] = [0.5, 0.16666518, 0.041666206, 0.008368953, 0.0013950602];
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Adding and subtracting this rounds to the nearest integer.
const ROUNDER: f32 = 12_582_912.0;
/// Below this the exponential is returned as zero.
const EXP_MIN: f32 = -87.3;
/// Arguments above this are lowered to it.
const EXP_MAX: f32 = 88.3;

/// Exponential with relative error below 2e-7. Zero below -87.3, about 2.2e38 above 88.3; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<L: Lane>(x: L) -> L {
    let bounded = L::splat(EXP_MIN).max(L::splat(EXP_MAX).min(x));
    let rounder = L::splat(ROUNDER);
    let n = bounded.mul_add(L::splat(std::f32::consts::LOG2_E), rounder).sub(rounder);
    let r = n.neg_mul_add(L::splat(LN_2_LOW), n.neg_mul_add(L::splat(LN_2_HIGH), bounded));
    let mut tail = L::splat(EXP[4]);
    for i in (0..4).rev() {
        tail = tail.mul_add(r, L::splat(EXP[i]));
    }
    let one = L::splat(1.0);
    let value = r.mul(r).mul_add(tail, r).add(one).mul(n.power_of_two());
    L::splat(EXP_MIN).select_greater(x, L::splat(0.0), value)
}

/// Replaces every element by its exponential (relative error below 2e-7, zero below -87.3, about 2.2e38 above 88.3), with
/// the same bits for every set of instructions and position: for importance ratios and standard deviations.
pub fn exp_in_place(values: &mut [f32]) {
    dispatch(isa(), ExpInPlace(values));
}

struct ExpInPlace<'a>(&'a mut [f32]);

impl Vectorised for ExpInPlace<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lane>(self) {
        let mut chunks = self.0.chunks_exact_mut(L::WIDTH);
        for chunk in &mut chunks {
            exp(L::read(chunk)).write(chunk);
        }
        let rest = chunks.into_remainder();
        if !rest.is_empty() {
            let mut lanes = [0.0_f32; 16];
            lanes[..rest.len()].copy_from_slice(rest);
            exp(L::read(&lanes)).write(&mut lanes);
            rest.copy_from_slice(&lanes[..rest.len()]);
        }
    }
}

/// (atanh(s) / s - 1) / s² in powers of s², for s² <= 0.0295.
const LN: [f32; 4] = [0.3333333, 0.20000173, 0.14268301, 0.11798166];

/// Natural logarithm of a positive normal number; absolute error below 1e-7 near one, relative error below 2e-7 elsewhere.
#[inline(always)]
pub(crate) fn ln<L: Lane>(x: L) -> L {
    let (m, e) = x.mantissa_exponent();
    let one = L::splat(1.0);
    let f = m.sub(one);
    // ln m = 2 atanh(s); s = f / (2 + f).
    let s = f.div(L::splat(2.0).add(f));
    let square = s.mul(s);
    let mut tail = L::splat(LN[3]);
    for i in (0..3).rev() {
        tail = tail.mul_add(square, L::splat(LN[i]));
    }
    let twice = s.add(s);
    let small = twice.mul(square).mul_add(tail, e.mul(L::splat(LN_2_LOW)));
    e.mul_add(L::splat(LN_2_HIGH), twice.add(small))
}

#[cfg(test)]
mod tests {
    use super::super::lane::{Isa, Vectorised, dispatch};
    use super::*;

    #[derive(Clone, Copy)]
    enum Function {
        Tanh,
        Exp,
        Ln,
    }

    struct Map<'a>(Function, &'a mut [f32]);

    impl Vectorised for Map<'_> {
        type Out = ();
        #[inline(always)]
        fn run<L: Lane>(self) {
            for chunk in self.1.chunks_exact_mut(L::WIDTH) {
                let x = L::read(chunk);
                let y = match self.0 {
                    Function::Tanh => tanh(x),
                    Function::Exp => exp(x),
                    Function::Ln => ln(x),
                };
                y.write(chunk);
            }
        }
    }

    fn grid(low: f32, high: f32, n: usize) -> Vec<f32> {
        (0..n).map(|i| low + (high - low) * i as f32 / (n - 1) as f32).collect()
    }

    /// Values by every available set of instructions; asserts that the bits agree.
    fn values(function: Function, x: &[f32]) -> Vec<f32> {
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let mut y = x.to_vec();
            dispatch(isa, Map(function, &mut y));
            if let Some(first) = &first {
                assert!(first.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())), "{isa:?}");
            }
            first.get_or_insert(y);
        }
        first.unwrap()
    }

    #[test]
    fn tanh_is_within_three_in_ten_million() {
        let mut x = grid(-12.0, 12.0, 1 << 20);
        x.extend(grid(-1e-3, 1e-3, 1 << 12));
        let y = values(Function::Tanh, &x);
        for (&x, &y) in x.iter().zip(&y) {
            let exact = f64::from(x).tanh();
            assert!((f64::from(y) - exact).abs() <= 3e-7, "tanh({x}) = {y}, not {exact}");
            assert!((f64::from(y) - exact).abs() <= 4e-7 * exact.abs(), "tanh({x}) = {y}, not {exact}");
        }
    }

    #[test]
    fn special_arguments_are_kept() {
        let mut x = vec![0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-30, -200.0, 200.0];
        x.extend_from_within(..);
        let tanh = values(Function::Tanh, &x);
        assert!(tanh[0] == 0.0 && tanh[1].is_nan() && (tanh[2] - 1.0).abs() < 3e-7 && (tanh[3] + 1.0).abs() < 3e-7);
        assert_eq!(tanh[5], 1e-30);
        let exp = values(Function::Exp, &x);
        assert!(exp[0] == 1.0 && exp[1].is_nan() && exp[2] > 1e38 && exp[3] == 0.0 && exp[6] == 0.0 && exp[7] > 1e38);
    }

    #[test]
    fn exp_and_ln_are_accurate() {
        let x = grid(-87.0, 88.0, 1 << 19);
        for (&x, &y) in x.iter().zip(&values(Function::Exp, &x)) {
            let exact = f64::from(x).exp();
            assert!((f64::from(y) / exact - 1.0).abs() < 2e-7, "exp({x}) = {y}, not {exact}");
        }
        let mut x = grid(1e-3, 64.0, 1 << 19);
        x.extend(grid(0.99, 1.01, 1 << 12));
        x.extend([1e-37, 1e-20, 1e20, 3e38, 1.0, 2.0, 0.5, 4.0].repeat(2));
        for (&x, &y) in x.iter().zip(&values(Function::Ln, &x)) {
            let exact = f64::from(x).ln();
            assert!((f64::from(y) - exact).abs() < 1e-7 * exact.abs().max(0.5) * 2.0, "ln({x}) = {y}, not {exact}");
        }
    }
}
