//! R3M: derived numbers, agreement of its three forms, and the properties that define it.

use proptest::prelude::*;
use steadfast_envs::SeedTree;
use steadfast_reward::{LossConfig, LossValue, MarginLoss, R3mConfig, RobustLogistic};

const LAMBDAS: [f64; 10] = [0.05, 0.1, 0.2, 0.3, 0.5, 0.65, 0.75, 0.85, 0.9, 0.99];

fn r3m(lambda: f64) -> RobustLogistic {
    RobustLogistic::new(&R3mConfig { lambda }).expect("a valid lambda")
}

fn cross_entropy(d: f32) -> LossValue {
    MarginLoss::CrossEntropy.evaluate(d)
}

/// −ln σ(d) in double precision.
fn logistic(d: f64) -> f64 {
    (-d).max(0.0) + (-d.abs()).exp().ln_1p()
}

fn sigmoid(d: f64) -> f64 {
    1.0 / (1.0 + (-d).exp())
}

/// The unprofiled loss of one pair.
fn joint(d: f64, delta: f64, lambda: f64) -> f64 {
    logistic(d + delta) + lambda * delta.abs()
}

fn threshold(lambda: f64) -> f64 {
    (1.0 / lambda - 1.0).ln()
}

/// The loss with the best outlier put in, in double precision.
fn profiled(d: f64, lambda: f64) -> f64 {
    joint(d, (threshold(lambda) - d).max(0.0), lambda)
}

#[test]
fn golden_table() {
    // d, λ, c, δ, −ln σ(d + δ), loss, weight.
    for (d, lambda, c, delta, shifted, value, weight) in [
        (-3.0, 0.10, 2.197225, 5.197225, 0.105361, 0.625083, 0.100000),
        (1.0, 0.10, 2.197225, 1.197225, 0.105361, 0.225083, 0.100000),
        (3.0, 0.10, 2.197225, 0.0, 0.048587, 0.048587, 0.047426),
        (-1.0, 0.50, 0.0, 1.0, std::f32::consts::LN_2.into(), 1.193147, 0.5),
        (1.0, 0.50, 0.0, 0.0, 0.313262, 0.313262, 0.268941),
        (-3.0, 0.75, -1.098612, 1.901388, 1.386294, 2.812335, 0.75),
        (-1.0, 0.75, -1.098612, 0.0, 1.313262, 1.313262, 0.731059),
        (-3.0, 0.85, -1.734601, 1.265399, 1.897120, 2.972709, 0.85),
    ] {
        let loss = r3m(lambda);
        let got = loss.evaluate(d);
        let close = |got: f32, expected: f64| assert!((f64::from(got) - expected).abs() < 1.5e-6, "d {d}, λ {lambda}: {got}, {expected}");
        close(loss.threshold(), c);
        close(loss.outlier(d), delta);
        close(cross_entropy(d + loss.outlier(d)).value, shifted);
        close(got.value, value);
        close(-got.slope, weight);
    }
    for (lambda, c) in [(0.65, -0.619039), (0.8, -1.386294), (0.9, -2.197225), (0.3, 0.847298), (0.2, 1.386294)] {
        assert!((f64::from(r3m(lambda).threshold()) - c).abs() < 1e-6);
    }
}

#[test]
fn three_forms_of_the_gradient_agree() {
    for lambda in LAMBDAS {
        let loss = r3m(lambda);
        for i in -3000..=3000 {
            let d = i as f32 * 0.01;
            let exact = f64::from(d);
            // Two steps, the outlier held constant: the slope of the logistic at the shifted margin.
            let delta = (threshold(lambda) - exact).max(0.0);
            let two_steps = -sigmoid(-(exact + delta));
            // Through the profiled loss, by central differences in double precision.
            let h = 1e-5;
            let through = (profiled(exact + h, lambda) - profiled(exact - h, lambda)) / (2.0 * h);
            // The weight written by hand.
            let by_hand = -sigmoid(-exact).min(lambda);
            let got = f64::from(loss.evaluate(d).slope);
            for (form, expected) in [("two steps", two_steps), ("profiled", through), ("by hand", by_hand)] {
                assert!((got - expected).abs() < 1e-6, "λ {lambda}, d {d}, {form}: {got}, {expected}");
            }
            assert!((two_steps - by_hand).abs() < 1e-12);
            assert!((f64::from(loss.evaluate(d).value) - profiled(exact, lambda)).abs() < 1e-6 * profiled(exact, lambda).max(1e-12));
        }
    }
}

#[test]
fn closed_form_is_the_brute_force_minimum() {
    for lambda in LAMBDAS {
        let loss = r3m(lambda);
        for d in [-30.0_f32, -7.3, -2.0, -0.4, 0.0, 0.9, 2.5, 6.0, 30.0] {
            // A grid over both signs, then golden-section search in the best cell: the function is convex.
            let objective = |delta: f64| joint(f64::from(d), delta, lambda);
            let best = (-5000..=5000).map(|i| f64::from(i) * 0.01).min_by(|a, b| objective(*a).total_cmp(&objective(*b))).unwrap();
            let (mut low, mut high) = (best - 0.01, best + 0.01);
            for _ in 0..200 {
                let (a, b) = (low + 0.381_966 * (high - low), low + 0.618_034 * (high - low));
                if objective(a) < objective(b) { high = b } else { low = a }
            }
            let delta = 0.5 * (low + high);
            assert!((f64::from(loss.outlier(d)) - delta).abs() < 2e-5, "λ {lambda}, d {d}: {} against {delta}", loss.outlier(d));
            assert!((f64::from(loss.evaluate(d).value) - objective(delta)).abs() < 1e-6 * objective(delta).max(1.0));
        }
    }
}

#[test]
fn lambda_from_one_on_is_cross_entropy_bit_for_bit() {
    for lambda in [1.0, 1.5, 1e6] {
        let loss = r3m(lambda);
        assert_eq!(loss.threshold(), f32::NEG_INFINITY);
        for d in (-40_000..=40_000).map(|i| i as f32 * 0.01).chain([1e4, -1e4, f32::INFINITY, f32::NEG_INFINITY]) {
            assert_eq!(loss.evaluate(d), cross_entropy(d));
            assert_eq!(loss.outlier(d), 0.0);
        }
    }
}

#[test]
fn first_step_of_dpo_is_not_clipped_above_one_half() {
    let (value, slope) = (std::f32::consts::LN_2, -0.5);
    for lambda in [0.51, 0.65, 0.75, 0.9] {
        let got = r3m(lambda).evaluate(0.0);
        assert_eq!((got, r3m(lambda).outlier(0.0)), (cross_entropy(0.0), 0.0));
        assert_eq!((got.value, got.slope), (value, slope));
    }
    // Below, the gradient is DPO's times 2λ.
    for lambda in [0.1, 0.3, 0.49] {
        let (got, whole) = (r3m(lambda).evaluate(0.0).slope, cross_entropy(0.0).slope);
        assert!((f64::from(got) - 2.0 * lambda * f64::from(whole)).abs() < 1e-7);
    }
}

#[test]
fn extremes_and_nan() {
    for lambda in LAMBDAS {
        let loss = r3m(lambda);
        for d in [1e4_f32, -1e4, 3e38, f32::MIN_POSITIVE, 0.0] {
            let got = loss.evaluate(d);
            assert!(got.value.is_finite() && got.slope.is_finite() && loss.outlier(d).is_finite());
        }
        assert_eq!(loss.evaluate(-1e4).slope, -(lambda as f32));
        assert_eq!(loss.evaluate(f32::NEG_INFINITY).slope, -(lambda as f32));
        assert_eq!(loss.evaluate(f32::INFINITY), LossValue { value: 0.0, slope: 0.0 });
        // An outlier value that hides a broken margin would pass for an inlier.
        assert!(loss.outlier(f32::NAN).is_nan() && loss.evaluate(f32::NAN).value.is_nan());
    }
    for lambda in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(RobustLogistic::new(&R3mConfig { lambda }).is_err());
    }
}

proptest! {
    #[test]
    fn outlier_and_its_threshold(lambda in 0.01_f64..0.99, d in -50.0_f32..50.0, e in -50.0_f32..50.0) {
        let loss = r3m(lambda);
        let (c, delta) = (loss.threshold(), loss.outlier(d));
        prop_assert!(delta >= 0.0);
        prop_assert_eq!(delta > 0.0, d < c);
        prop_assert!((d + delta - d.max(c)).abs() <= 1e-5);
        // Not increasing, and of slope −1 or 0.
        let (low, high) = (d.min(e), d.max(e));
        let fall = loss.outlier(low) - loss.outlier(high);
        prop_assert!((-1e-6..=high - low + 1e-5).contains(&fall));
    }

    #[test]
    fn loss_is_convex_and_smooth_and_below_cross_entropy(lambda in 0.01_f64..0.99, d in -30.0_f32..30.0, e in -30.0_f32..30.0) {
        let loss = r3m(lambda);
        let (c, at) = (loss.threshold(), loss.evaluate(d));
        let whole = cross_entropy(d);
        prop_assert!(at.value <= whole.value * (1.0 + 1e-6) && at.value >= 0.0);
        if d >= c {
            prop_assert_eq!(at, whole);
        } else if c - d > 0.02 {
            prop_assert!(at.value < whole.value);
        }
        prop_assert!(at.slope <= 0.0 && -at.slope <= lambda as f32 * (1.0 + 1e-6));
        // Convex: slopes do not fall, and every tangent lies below.
        let other = loss.evaluate(e);
        prop_assert!((other.slope - at.slope) * (e - d) >= -1e-6);
        prop_assert!(other.value >= at.value + at.slope * (e - d) - 2e-5 * (1.0 + (e - d).abs()));
        // Once differentiable where the two parts meet.
        let (left, right) = (loss.evaluate(c - 1e-4), loss.evaluate(c + 1e-4));
        prop_assert!((left.value - right.value).abs() < 3e-4 && (left.slope - right.slope).abs() < 1e-4);
    }

    #[test]
    fn loss_grows_with_lambda(a in 0.01_f64..1.2, b in 0.01_f64..1.2, d in -30.0_f32..30.0) {
        let (low, high) = (r3m(a.min(b)).evaluate(d).value, r3m(a.max(b)).evaluate(d).value);
        prop_assert!(low <= high * (1.0 + 2e-6) + 1e-7);
    }

    #[test]
    fn small_lambda_approaches_the_negative_margin(d in -20.0_f32..8.0, e in -20.0_f32..8.0) {
        // ρ / λ + const → −d: differences of the loss are those of the margin.
        let lambda = 1e-4;
        let (at, other) = (r3m(lambda).evaluate(d), r3m(lambda).evaluate(e));
        let difference = (f64::from(at.value) - f64::from(other.value)) / lambda;
        prop_assert!((difference - f64::from(e - d)).abs() < 1e-4);
    }

    #[test]
    fn swapped_pairs_carry_the_negative_margin(lambda in 0.02_f64..0.98, d in -20.0_f32..20.0) {
        let loss = r3m(lambda);
        let (one, other) = (loss.outlier(d), loss.outlier(-d));
        prop_assert!((other - (loss.threshold() + d).max(0.0)).abs() < 1e-5);
        if lambda > 0.5 {
            prop_assert!(one == 0.0 || other == 0.0, "at most one orientation is an outlier");
        }
    }

    #[test]
    fn scaled_rewards_move_the_threshold(lambda in 0.02_f64..0.98, scale in 0.1_f32..10.0, d in -5.0_f32..5.0) {
        let loss = r3m(lambda);
        let limit = loss.threshold() / scale;
        prop_assume!((d - limit).abs() > 1e-4);
        prop_assert_eq!(loss.outlier(scale * d) > 0.0, d < limit);
    }
}

/// A linear reward of four features on pairs with labels of Bradley and Terry's model, some flipped.
fn linear_problem(n: usize) -> Vec<[f64; 4]> {
    let mut rng = SeedTree::new(11).child("linear").rng();
    let truth = [1.5, -1.0, 0.5, 0.8];
    let mut pairs: Vec<[f64; 4]> = (0..n)
        .map(|i| {
            let x: [f64; 4] = [(); 4].map(|()| rng.normal());
            let d: f64 = x.iter().zip(truth).map(|(x, w)| x * w).sum();
            let keeps = (rng.unit() < sigmoid(d)) != (i % 12 == 0);
            if keeps { x } else { x.map(|v| -v) }
        })
        .collect();
    rng.shuffle(&mut pairs);
    pairs
}

fn dot(x: &[f64; 4], w: &[f64; 4]) -> f64 {
    x.iter().zip(w).map(|(x, w)| x * w).sum()
}

/// Mean of the profiled loss, in double precision.
fn objective(pairs: &[[f64; 4]], w: &[f64; 4], lambda: f64) -> f64 {
    pairs.iter().map(|x| if lambda >= 1.0 { logistic(dot(x, w)) } else { profiled(dot(x, w), lambda) }).sum::<f64>() / pairs.len() as f64
}

/// Gradient descent along the mean of the slopes that the loss gives.
fn descend(pairs: &[[f64; 4]], loss: &MarginLoss, steps: usize) -> [f64; 4] {
    let (mut w, mut out) = ([0.0; 4], vec![LossValue::default(); pairs.len()]);
    let equal = vec![false; pairs.len()];
    for _ in 0..steps {
        let margins: Vec<f32> = pairs.iter().map(|x| dot(x, &w) as f32).collect();
        loss.batch(&margins, &equal, &mut out);
        for j in 0..4 {
            w[j] -= 2.0 * pairs.iter().zip(&out).map(|(x, v)| f64::from(v.slope) * x[j]).sum::<f64>() / pairs.len() as f64;
        }
    }
    w
}

/// Alternates between the outliers and gradient steps of the shifted loss, without ever using the profiled form.
fn alternate(pairs: &[[f64; 4]], lambda: f64, rounds: usize) -> ([f64; 4], Vec<f64>) {
    let (mut w, mut delta) = ([0.0; 4], vec![0.0; pairs.len()]);
    for _ in 0..rounds {
        for _ in 0..5 {
            let mut gradient = [0.0; 4];
            for (x, delta) in pairs.iter().zip(&delta) {
                let slope = -sigmoid(-(dot(x, &w) + delta));
                (0..4).for_each(|j| gradient[j] += slope * x[j] / pairs.len() as f64);
            }
            (0..4).for_each(|j| w[j] -= 2.0 * gradient[j]);
        }
        for (x, delta) in pairs.iter().zip(&mut delta) {
            *delta = (threshold(lambda) - dot(x, &w)).max(0.0);
        }
    }
    (w, delta)
}

#[test]
fn profiled_and_joint_minimisation_reach_the_same_objective() {
    let pairs = linear_problem(300);
    for lambda in [0.3, 0.5, 0.75, 0.9] {
        let loss = LossConfig::R3m(R3mConfig { lambda }).build().unwrap();
        let w = descend(&pairs, &loss, 3000);
        let (v, delta) = alternate(&pairs, lambda, 3000);
        let joint_value = pairs.iter().zip(&delta).map(|(x, &delta)| joint(dot(x, &v), delta, lambda)).sum::<f64>() / 300.0;
        assert!((objective(&pairs, &w, lambda) - joint_value).abs() < 1e-9, "λ {lambda}");
        assert!((0..4).all(|j| (w[j] - v[j]).abs() < 1e-4), "λ {lambda}: {w:?} against {v:?}");
        // A minimum: no step along an axis does better.
        for j in 0..4 {
            for step in [-1e-2, 1e-2] {
                let mut near = w;
                near[j] += step;
                assert!(objective(&pairs, &near, lambda) > objective(&pairs, &w, lambda));
            }
        }
    }
}

#[test]
fn data_given_twice_has_the_same_minimiser() {
    let pairs = linear_problem(200);
    let twice = [pairs.clone(), pairs.clone()].concat();
    for lambda in [0.3, 0.75, 1.0] {
        let loss = LossConfig::R3m(R3mConfig { lambda }).build().unwrap();
        let (once, again) = (descend(&pairs, &loss, 2000), descend(&twice, &loss, 2000));
        assert!((0..4).all(|j| (once[j] - again[j]).abs() < 1e-6), "λ {lambda}: {once:?}, {again:?}");
        assert!(objective(&pairs, &once, lambda) < objective(&pairs, &[0.0; 4], lambda));
    }
}
