//! What R3M promises for linear rewards, as statistics over fixed seeds.
//!
//! Pairs have standard normal features x ∈ R¹⁰ and true margins w*·x; labels are drawn from Bradley and Terry's model, then
//! the pairs whose true margins are largest get the wrong label. Every loss is minimised to its minimum.

use steadfast_envs::SeedTree;
use steadfast_reward::metrics::detect;
use steadfast_reward::{Detection, LossConfig, LossValue, MarginLoss, R3mConfig};

const WIDTH: usize = 10;
const SIZES: [usize; 4] = [250, 1000, 4000, 16_000];
const SEEDS: u64 = 8;

type Features = [f64; WIDTH];

/// Pairs in the order of their labels.
struct Problem {
    truth: Features,
    pairs: Vec<Features>,
    flipped: Vec<bool>,
}

fn dot(x: &Features, w: &Features) -> f64 {
    x.iter().zip(w).map(|(x, w)| x * w).sum()
}

fn norm(x: &Features) -> f64 {
    dot(x, x).sqrt()
}

/// `n` pairs with a true weight of the given norm, `n_flips` of them wrong. The others are labelled by Bradley and Terry's
/// model, or by the truth if `is_deterministic`.
fn problem(n: usize, n_flips: usize, truth_norm: f64, is_deterministic: bool, seed: u64) -> Problem {
    let seed = SeedTree::new(seed).child("consistency").index(n as u64);
    let mut rng = seed.child("truth").rng();
    let direction: Features = [(); WIDTH].map(|()| rng.normal());
    let truth = direction.map(|v| truth_norm * v / norm(&direction));
    let mut rng = seed.child("features").rng();
    let mut pairs: Vec<Features> = (0..n).map(|_| [(); WIDTH].map(|()| rng.normal())).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| dot(&pairs[b], &truth).abs().total_cmp(&dot(&pairs[a], &truth).abs()));
    let mut flipped = vec![false; n];
    order[..n_flips].iter().for_each(|&i| flipped[i] = true);
    let mut rng = seed.child("labels").rng();
    for (x, &flipped) in pairs.iter_mut().zip(&flipped) {
        let margin = dot(x, &truth);
        let (draw, chance) = (rng.unit(), 1.0 / (1.0 + (-margin.abs()).exp()));
        let is_right = !flipped && (is_deterministic || draw < chance);
        if (margin > 0.0) != is_right {
            *x = x.map(|v| -v);
        }
    }
    Problem { truth, pairs, flipped }
}

/// Solves `matrix · x = right` for a positive definite matrix by elimination.
fn solve(mut matrix: [Features; WIDTH], mut right: Features) -> Features {
    for i in 0..WIDTH {
        for row in i + 1..WIDTH {
            let factor = matrix[row][i] / matrix[i][i];
            for column in i..WIDTH {
                matrix[row][column] -= factor * matrix[i][column];
            }
            right[row] -= factor * right[i];
        }
    }
    for i in (0..WIDTH).rev() {
        let rest: f64 = (i + 1..WIDTH).map(|j| matrix[i][j] * right[j]).sum();
        right[i] = (right[i] - rest) / matrix[i][i];
    }
    right
}

struct Fit {
    weights: Features,
    margins: Vec<f32>,
    deltas: Vec<f32>,
}

/// The loss for λ; cross-entropy from 1 on.
fn r3m(lambda: f64) -> MarginLoss {
    LossConfig::R3m(R3mConfig { lambda }).build().expect("a valid lambda")
}

/// Minimises the mean loss by steps along a bound of its curvature, which is at most XᵀX / 4n: every step descends.
fn fit(problem: &Problem, loss: &MarginLoss) -> Fit {
    let n = problem.pairs.len();
    let mut bound = [[0.0; WIDTH]; WIDTH];
    for x in &problem.pairs {
        for i in 0..WIDTH {
            for j in 0..WIDTH {
                bound[i][j] += 0.25 * x[i] * x[j] / n as f64;
            }
        }
    }
    let (equal, mut values) = (vec![false; n], vec![LossValue::default(); n]);
    let mut weights = [0.0; WIDTH];
    for _ in 0..5000 {
        let margins: Vec<f32> = problem.pairs.iter().map(|x| dot(x, &weights) as f32).collect();
        loss.batch(&margins, &equal, &mut values);
        let mut gradient = [0.0; WIDTH];
        for (x, value) in problem.pairs.iter().zip(&values) {
            (0..WIDTH).for_each(|j| gradient[j] += f64::from(value.slope) * x[j] / n as f64);
        }
        if gradient.iter().all(|g| g.abs() < 1e-6) {
            let deltas = margins.iter().map(|&d| loss.outlier(d)).collect();
            return Fit { weights, margins, deltas };
        }
        let step = solve(bound, gradient);
        (0..WIDTH).for_each(|j| weights[j] -= step[j]);
    }
    panic!("no minimum within 5000 steps");
}

/// Distance from the truth relative to its norm, and the cosine of the angle between them.
fn error(problem: &Problem, fit: &Fit) -> (f64, f64) {
    let (w, v) = (&problem.truth, &fit.weights);
    let difference: Features = std::array::from_fn(|j| v[j] - w[j]);
    (norm(&difference) / norm(w), dot(v, w) / (norm(v) * norm(w)))
}

fn detection(problem: &Problem, fit: &Fit) -> Detection {
    detect(&fit.margins, &fit.deltas, &problem.flipped).expect("some labels are wrong, others are not")
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn root(n: usize) -> usize {
    (n as f64).sqrt() as usize
}

#[test]
fn errors_vanish_with_root_n_flips_and_r3m_is_ahead_of_cross_entropy() {
    let lambdas = [1.0, 0.9, 0.75];
    let mut curves: Vec<Vec<f64>> = Vec::new();
    for n in SIZES {
        let mut errors = [const { Vec::new() }; 3];
        for seed in 0..SEEDS {
            let problem = problem(n, root(n), 2.0, false, seed);
            let relative = lambdas.map(|lambda| error(&problem, &fit(&problem, &r3m(lambda))).0);
            // Paired: the same pairs, the same wrong labels. At the smallest n no margin reaches the threshold of λ = 0.9.
            assert!(relative[2] < relative[0] && relative[1] <= relative[0], "n {n}, seed {seed}: {relative:?}");
            errors.iter_mut().zip(relative).for_each(|(e, r)| e.push(r));
        }
        curves.push(errors.iter().map(|e| mean(e)).collect());
        println!("n {n:5}: relative error of cross-entropy, λ = 0.9, 0.75: {:.3?}", curves[curves.len() - 1]);
    }
    for k in 0..3 {
        assert!(curves.windows(2).all(|w| w[1][k] < w[0][k]), "λ {}: {curves:?}", lambdas[k]);
    }
    assert!(curves[3][2] < 0.5 * curves[1][2], "λ = 0.75 from n = 1000 to 16000: {curves:?}");
}

#[test]
fn errors_stay_with_a_fixed_share_of_flips_while_the_direction_converges() {
    let mut curves = Vec::new();
    for n in SIZES {
        let mut columns = [const { Vec::new() }; 6];
        for seed in 0..SEEDS {
            let problem = problem(n, n / 10, 2.0, false, seed);
            for (k, lambda) in [1.0, 0.75, 0.5].into_iter().enumerate() {
                let (relative, cosine) = error(&problem, &fit(&problem, &r3m(lambda)));
                columns[k].push(relative);
                columns[3 + k].push(1.0 - cosine);
            }
        }
        curves.push(columns.map(|c| mean(&c)));
        println!("n {n:5}: relative error, 1 − cosine of cross-entropy, λ = 0.75, 0.5: {:.4?}", curves[curves.len() - 1]);
    }
    let (small, large) = (curves[1], curves[3]);
    for k in 0..3 {
        assert!(large[k] > 0.4 && large[k] > 0.85 * small[k], "the error is not one of sampling: {curves:?}");
        assert!(large[3 + k] < 0.02 && large[3 + k] < 0.25 * small[3 + k], "the direction is: {curves:?}");
    }
    assert!(large[2] < large[0] && large[5] < large[3], "λ = 0.5 is ahead in both");
}

#[test]
fn outliers_are_found_but_not_alone() {
    let mut curves = Vec::new();
    for n in SIZES {
        let mut columns = [const { Vec::new() }; 4];
        for seed in 0..SEEDS {
            let problem = problem(n, root(n), 2.0, false, seed);
            let found = detection(&problem, &fit(&problem, &r3m(0.75)));
            columns[0].push(found.recall);
            columns[1].push(found.precision.unwrap_or(0.0));
            columns[2].push(found.auroc);
            columns[3].push(found.average_precision);
        }
        curves.push(columns.map(|c| mean(&c)));
        println!("n {n:5}, λ = 0.75: recall, precision, auroc, average precision {:.3?}", curves[curves.len() - 1]);
    }
    assert!(curves[1..].iter().all(|c| c[0] > 0.995), "recall: {curves:?}");
    assert!(curves.windows(2).all(|w| w[1][1] < w[0][1]) && curves[3][1] < 0.2, "precision falls: {curves:?}");
    assert!(curves.iter().all(|c| c[2] > 0.97) && curves[3][2] > 0.999 && curves[3][3] > 0.8, "as a ranking they stand out: {curves:?}");
}

#[test]
fn lambda_that_grows_with_n_restores_precision_where_margins_reach_its_threshold() {
    let mut curves = Vec::new();
    for n in [4000, 16_000] {
        let lambda = 1.0 - root(n) as f64 / (10.0 * n as f64);
        let mut columns = [const { Vec::new() }; 4];
        for seed in 0..SEEDS {
            // Margins of standard deviation 4 reach the threshold −7.1 that λ has at n = 16000; those of 2 do not.
            for (k, truth_norm) in [4.0, 2.0].into_iter().enumerate() {
                let problem = problem(n, root(n), truth_norm, false, seed);
                let found = detection(&problem, &fit(&problem, &r3m(lambda)));
                columns[2 * k].push(found.recall);
                columns[2 * k + 1].push(found.precision.unwrap_or(f64::NAN));
            }
        }
        curves.push(columns.map(|c| mean(&c)));
        println!("n {n:5}, λ = {lambda:.5}: recall and precision for norms 4 and 2: {:.3?}", curves[curves.len() - 1]);
    }
    assert!(curves[1][0] > 0.95 && curves[1][1] > 0.97, "{curves:?}");
    assert!(curves[0][1] > 0.97 && curves[0][0] < curves[1][0], "{curves:?}");
    assert!(curves[1][2] < 0.1, "out of reach nothing is found: {curves:?}");
}

#[test]
fn deterministic_labels_leave_only_outliers_below_the_threshold() {
    for lambda in [0.6, 0.75, 0.9] {
        let mut curves = Vec::new();
        for n in [1000, 4000] {
            let mut columns = [const { Vec::new() }; 2];
            for seed in 0..SEEDS {
                let problem = problem(n, root(n), 2.0, true, seed);
                let found = detection(&problem, &fit(&problem, &r3m(lambda)));
                columns[0].push(found.recall);
                columns[1].push(found.precision.unwrap_or(0.0));
            }
            curves.push(columns.map(|c| mean(&c)));
            println!("n {n:5}, λ = {lambda}: recall, precision {:.3?}", curves[curves.len() - 1]);
        }
        assert!(curves.iter().all(|c| c[0] > 0.97), "λ {lambda}: {curves:?}");
        assert!(curves[1][1] > 0.98, "λ {lambda}: {curves:?}");
    }
}
