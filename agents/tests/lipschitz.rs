//! The Lipschitz penalty against closed forms, finite differences and its own promises.

use steadfast_agents::RegularizerConfig;
use steadfast_agents::head::{Distance, PolicyHead};
use steadfast_agents::nn::{Activation, Mlp, Trace, Workspace};
use steadfast_agents::regularizers::attack::{ObservationAttack, ObservationAttackConfig};
use steadfast_agents::regularizers::lipschitz::{
    Direction, GaussianConfig, Gradient, GradientPenaltyConfig, LipschitzConfig, LipschitzRegularizer, Norm, Scope,
};
use steadfast_agents::regularizers::{Observed, Penalty, PenaltyGradients, Regularizer};
use steadfast_envs::{Rng, SeedTree};

/// Gradients and value of a penalty on a batch.
struct Outcome {
    penalty: Penalty,
    /// Total derivative with respect to the weights: through the perturbed and the clean outputs.
    weights: Vec<f32>,
    log_std: Vec<f32>,
}

fn evaluate(config: &RegularizerConfig, net: &Mlp, head: &PolicyHead, inputs: &[f32], unit: &[f32], seed: u64) -> Outcome {
    let rows = inputs.len() / net.input();
    let mut trace = Trace::default();
    net.forward_train(inputs, rows, &mut trace);
    let outputs = trace.output().to_vec();
    let observed = Observed { rows, members: 1, inputs, unit, limit: None, outputs: &outputs, head };
    let mut d_outputs = vec![0.0; outputs.len()];
    let mut weights = vec![0.0; net.n_parameters()];
    let mut log_std = vec![0.0; head.log_std().len()];
    let mut regularizer = config.build(Rng::from_seed(seed));
    let mut gradients = PenaltyGradients { outputs: &mut d_outputs, weights: &mut weights, log_std: &mut log_std };
    let penalty = regularizer.penalty(net, &observed, 1.0, &mut gradients).expect("the test's own network");
    net.backward(&mut trace, &d_outputs, Some(&mut weights), None);
    Outcome { penalty, weights, log_std }
}

/// A linear map `[outputs, inputs]` as a network without hidden layers.
fn linear(rows: &[&[f32]]) -> Mlp {
    let (output, input) = (rows.len(), rows[0].len());
    let mut net = Mlp::new(input, &[], output, Activation::Tanh, 1.0, 1.0, &mut SeedTree::new(0).rng()).expect("the test's own network");
    let flat: Vec<f32> = rows.concat();
    net.load_tensors(&|name| match name {
        "layers.0.weight" => Some((vec![output, input], flat.clone())),
        "layers.0.bias" => Some((vec![output], vec![0.25; output])),
        _ => None,
    })
    .expect("the test's own network");
    net
}

fn random_net(output_gain: f32) -> Mlp {
    Mlp::new(6, &[32, 32], 4, Activation::Tanh, 1.5, output_gain, &mut SeedTree::new(5).rng()).expect("the test's own network")
}

fn random_inputs(n: usize) -> Vec<f32> {
    let mut rng = Rng::from_seed(3);
    (0..n).map(|_| rng.normal_f32()).collect()
}

fn adversarial(radius: f64, steps: usize, norm: Norm, distance: Distance) -> RegularizerConfig {
    RegularizerConfig::Lipschitz(LipschitzConfig { radius, steps, norm, distance: Some(distance), ..Default::default() })
}

/// Largest eigenvalue of a symmetric matrix by power iteration.
fn top_eigenvalue(matrix: &[Vec<f64>]) -> f64 {
    let n = matrix.len();
    let mut v: Vec<f64> = (0..n).map(|i| 1.0 + 0.1 * i as f64).collect();
    let mut value = 0.0;
    for _ in 0..2000 {
        let next: Vec<f64> = (0..n).map(|i| (0..n).map(|j| matrix[i][j] * v[j]).sum()).collect();
        value = next.iter().map(|x| x * x).sum::<f64>().sqrt();
        v = next.iter().map(|x| x / value).collect();
    }
    value
}

const WEIGHTS: [&[f32]; 2] = [&[2.0, -1.0, 0.5], &[0.5, 1.0, 0.25]];

/// `Wᵀ M W` for the two-row test matrix.
fn sandwich(middle: [[f64; 2]; 2]) -> Vec<Vec<f64>> {
    let w = |o: usize, i: usize| f64::from(WEIGHTS[o][i]);
    (0..3).map(|i| (0..3).map(|j| (0..2).map(|a| (0..2).map(|b| w(a, i) * middle[a][b] * w(b, j)).sum::<f64>()).sum()).collect()).collect()
}

#[test]
fn ascent_on_a_linear_map_finds_the_top_singular_value() {
    let net = linear(&WEIGHTS);
    let head = PolicyHead::Categorical { n: 2 };
    let expected = 0.3_f64.powi(2) * top_eigenvalue(&sandwich([[1.0, 0.0], [0.0, 1.0]]));
    let config = LipschitzConfig { radius: 0.3, steps: 50, step_size: Some(0.3), distance: Some(Distance::L2), ..Default::default() };
    let outcome = evaluate(&RegularizerConfig::Lipschitz(config), &net, &head, &random_inputs(30), &[1.0; 3], 1);
    assert!((outcome.penalty.value / expected - 1.0).abs() < 1e-4, "{} {expected}", outcome.penalty.value);
}

#[test]
fn one_sign_step_solves_a_single_linear_output() {
    let net = linear(&[&[2.0, -1.0, 0.5]]);
    let head = PolicyHead::Gaussian { log_std: vec![0.0] };
    let outcome = evaluate(&adversarial(0.2, 1, Norm::Linf, Distance::L2), &net, &head, &random_inputs(12), &[1.0; 3], 1);
    let expected = (0.2_f64 * 3.5).powi(2);
    assert!((outcome.penalty.value / expected - 1.0).abs() < 1e-3);
    // With deviation 1 the divergence is half the squared distance.
    let kl = evaluate(&adversarial(0.2, 1, Norm::Linf, Distance::Kl), &net, &head, &random_inputs(12), &[1.0; 3], 1);
    assert!((kl.penalty.value / (0.5 * expected) - 1.0).abs() < 1e-3);
}

#[test]
fn divergence_of_a_small_ball_is_half_the_fisher_form() {
    let net = linear(&WEIGHTS);
    let head = PolicyHead::Categorical { n: 2 };
    let input = [0.3, -0.2, 0.1];
    let logit = |o: usize| -> f64 { (0..3).map(|i| f64::from(WEIGHTS[o][i] * input[i])).sum() };
    let p = 1.0 / (1.0 + (logit(1) - logit(0)).exp());
    let fisher = [[p * (1.0 - p), -p * (1.0 - p)], [-p * (1.0 - p), p * (1.0 - p)]];
    let radius = 0.02;
    let expected = 0.5 * radius * radius * top_eigenvalue(&sandwich(fisher));
    let outcome = evaluate(&adversarial(radius, 50, Norm::L2, Distance::Kl), &net, &head, &input, &[1.0; 3], 1);
    assert!((outcome.penalty.value / expected - 1.0).abs() < 0.03, "{} {expected}", outcome.penalty.value);
}

#[test]
fn gradients_match_central_differences() {
    let inputs = random_inputs(6 * 6);
    let unit = [1.0, 0.5, 2.0, 1.0, 1.0];
    for head in [PolicyHead::Categorical { n: 4 }, PolicyHead::Gaussian { log_std: vec![-0.3, 0.1, 0.2, 0.0] }] {
        for distance in [Distance::Kl, Distance::L2] {
            // A drawn perturbation does not depend on the weights, so the whole derivative is what the penalty reports.
            let gaussian = GaussianConfig { radius: 0.8, distance: Some(distance), gradient: Gradient::Detached, ..Default::default() };
            let config = RegularizerConfig::Gaussian(gaussian);
            let net = random_net(1.0);
            let outcome = evaluate(&config, &net, &head, &inputs, &unit, 7);
            let at = |index: usize, h: f32| {
                let mut other = net.clone();
                other.parameters_mut()[index] += h;
                evaluate(&config, &other, &head, &inputs, &unit, 7).penalty.value
            };
            let largest = outcome.weights.iter().fold(0.0_f32, |m, g| m.max(g.abs()));
            let mut checked = 0;
            for index in (0..net.n_parameters()).step_by(37).filter(|&i| net.parameters()[i] != 0.0) {
                let h = 5e-3;
                let numeric = (at(index, h) - at(index, -h)) / f64::from(2.0 * h);
                let error = (numeric - f64::from(outcome.weights[index])).abs();
                assert!(error < 0.01 * f64::from(largest) + 1e-5, "{head:?} {distance:?} {index}: {numeric} {}", outcome.weights[index]);
                checked += 1;
            }
            assert!(checked > 20);
            if let (PolicyHead::Gaussian { log_std }, Distance::Kl) = (&head, distance) {
                let at = |h: f32| {
                    let mut moved = log_std.clone();
                    moved[1] += h;
                    evaluate(&config, &net, &PolicyHead::Gaussian { log_std: moved }, &inputs, &unit, 7).penalty.value
                };
                let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((numeric - f64::from(outcome.log_std[1])).abs() < 0.01 * numeric.abs() + 1e-5);
            }
        }
    }
}

/// Relative error of the reported derivative against central differences of the whole penalty, ascent included.
fn error_against_differences(config: &RegularizerConfig, net: &Mlp, head: &PolicyHead, inputs: &[f32], unit: &[f32]) -> f64 {
    let found = evaluate(config, net, head, inputs, unit, 7).weights;
    let (mut error, mut size) = (0.0, 0.0);
    for index in (0..net.n_parameters()).step_by(7).filter(|&i| net.parameters()[i] != 0.0) {
        let at = |h: f32| {
            let mut other = net.clone();
            other.parameters_mut()[index] += h;
            evaluate(config, &other, head, inputs, unit, 7).penalty.value
        };
        let numeric = (at(4e-3) - at(-4e-3)) / 8e-3;
        error += (numeric - f64::from(found[index])).powi(2);
        size += numeric.powi(2);
    }
    (error / size).sqrt()
}

#[test]
fn the_stackelberg_gradient_is_the_derivative_of_the_attacked_penalty() {
    let (net, inputs, unit) = (random_net(1.0), random_inputs(6 * 6), [1.0, 0.5, 2.0, 1.0, 1.0]);
    let with = |gradient, norm, direction, steps, distance| {
        // Free steps begin where the distance is large enough for differences in single precision.
        let (initial_std, step_size, radius) = if direction == Direction::Raw { (0.3, Some(0.5), 2.0) } else { (0.02, None, 0.3) };
        let direction = Some(direction);
        let config = LipschitzConfig {
            gradient,
            norm,
            direction,
            steps,
            step_size,
            distance: Some(distance),
            initial_std,
            radius,
            ..Default::default()
        };
        config.validate().expect("the test's own settings");
        RegularizerConfig::Lipschitz(config)
    };
    let gaussian = PolicyHead::Gaussian { log_std: vec![-0.3, 0.1, 0.2, 0.0] };
    for (head, distance) in
        [(&PolicyHead::Categorical { n: 4 }, Distance::Kl), (&PolicyHead::Categorical { n: 4 }, Distance::L2), (&gaussian, Distance::Kl)]
    {
        for (norm, direction, steps) in [
            (Norm::L2, Direction::Normalized, 1),
            (Norm::L2, Direction::Normalized, 3),
            (Norm::L2, Direction::Raw, 2),
            (Norm::Linf, Direction::Normalized, 1),
        ] {
            let error = |gradient| error_against_differences(&with(gradient, norm, direction, steps, distance), &net, head, &inputs, &unit);
            let (total, partial) = (error(Gradient::Stackelberg), error(Gradient::Detached));
            assert!(total < 0.02, "{head:?} {distance:?} {norm:?} {direction:?} {steps}: {total}");
            assert!(partial > 2.0 * total, "{head:?} {distance:?} {norm:?} {direction:?} {steps}: {partial} {total}");
        }
    }
}

#[test]
fn deviations_get_their_part_of_the_stackelberg_gradient() {
    let (net, inputs) = (random_net(1.0), random_inputs(6 * 6));
    let log_std = [-0.3, 0.1, 0.2, 0.0];
    let value = |log_std: Vec<f32>| {
        let config = LipschitzConfig { gradient: Gradient::Stackelberg, radius: 0.3, initial_std: 0.02, ..Default::default() };
        evaluate(&RegularizerConfig::Lipschitz(config), &net, &PolicyHead::Gaussian { log_std }, &inputs, &[1.0; 6], 7)
    };
    let found = value(log_std.to_vec()).log_std;
    for i in 0..4 {
        let at = |h: f32| {
            let mut moved = log_std.to_vec();
            moved[i] += h;
            value(moved).penalty.value
        };
        let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((numeric - f64::from(found[i])).abs() < 0.01 * numeric.abs() + 1e-5, "{i}: {numeric} {}", found[i]);
    }
}

#[test]
fn no_weight_on_the_interaction_is_the_detached_penalty() {
    let (net, head, inputs) = (random_net(1.0), PolicyHead::Categorical { n: 4 }, random_inputs(6 * 8));
    let with = |gradient, interaction_weight| {
        let config = LipschitzConfig { gradient, interaction_weight, radius: 0.3, steps: 2, ..Default::default() };
        evaluate(&RegularizerConfig::Lipschitz(config), &net, &head, &inputs, &[1.0; 6], 3).weights
    };
    let (detached, total) = (with(Gradient::Detached, 1.0), with(Gradient::Stackelberg, 1.0));
    assert_eq!(with(Gradient::Stackelberg, 0.0), detached);
    // The weight scales the difference of the two gradients.
    for ((d, t), half) in detached.iter().zip(&total).zip(with(Gradient::Stackelberg, 0.5)) {
        assert!((half - 0.5 * (d + t)).abs() < 1e-6 * (1.0 + d.abs() + t.abs()));
    }
    assert_ne!(detached, total);
}

#[test]
fn what_has_no_derivative_is_refused() {
    let sign = LipschitzConfig { gradient: Gradient::Stackelberg, norm: Norm::Linf, ..Default::default() };
    assert!(sign.validate().unwrap_err().to_string().contains("direction"));
    let drawn = GaussianConfig { gradient: Gradient::Stackelberg, ..Default::default() };
    assert!(drawn.validate().unwrap_err().to_string().contains("gradient"));
    let negative = LipschitzConfig { interaction_weight: -1.0, ..Default::default() };
    assert!(negative.validate().unwrap_err().to_string().contains("interaction_weight"));
}

#[test]
fn perturbations_stay_in_their_ball_and_off_the_index() {
    let head = PolicyHead::Categorical { n: 4 };
    let inputs = random_inputs(6 * 50);
    for norm in [Norm::L2, Norm::Linf] {
        for steps in [0, 1, 3, 10] {
            let outcome = evaluate(&adversarial(0.1, steps, norm, Distance::Kl), &random_net(1.0), &head, &inputs, &[1.0; 6], 1);
            assert!(outcome.penalty.relative_norm <= 1.0 + 1e-6, "{norm:?} {steps}");
            assert!(steps == 0 || outcome.penalty.relative_norm > 0.95, "{norm:?} {steps}: {}", outcome.penalty.relative_norm);
        }
    }
    // Only the last feature, which is not perturbable, reaches the output.
    let blind = linear(&[&[0.0, 0.0, 3.0], &[0.0, 0.0, -3.0]]);
    let outcome =
        evaluate(&adversarial(0.5, 5, Norm::L2, Distance::L2), &blind, &PolicyHead::Categorical { n: 2 }, &random_inputs(9), &[1.0; 2], 1);
    assert_eq!(outcome.penalty.value, 0.0);
}

#[test]
fn units_stretch_the_ball() {
    let net = linear(&[&[1.0, 1.0]]);
    let head = PolicyHead::Gaussian { log_std: vec![0.0] };
    let value = |unit: [f32; 2]| evaluate(&adversarial(0.1, 1, Norm::Linf, Distance::L2), &net, &head, &[0.0, 0.0], &unit, 1).penalty.value;
    assert!((value([1.0, 1.0]) / 0.2_f64.powi(2) - 1.0).abs() < 1e-3);
    assert!((value([3.0, 1.0]) / 0.4_f64.powi(2) - 1.0).abs() < 1e-3);
    assert!((value([0.0, 1.0]) / 0.1_f64.powi(2) - 1.0).abs() < 1e-3);
}

#[test]
fn attacks_beat_noise_and_grow_with_steps_and_radius() {
    let head = PolicyHead::Categorical { n: 4 };
    let (net, inputs) = (random_net(3.0), random_inputs(6 * 200));
    let value = |config: &RegularizerConfig| evaluate(config, &net, &head, &inputs, &[1.0; 6], 1).penalty.value;
    let drawn = value(&RegularizerConfig::Gaussian(GaussianConfig { radius: 0.2, ..Default::default() }));
    let one = value(&adversarial(0.2, 1, Norm::L2, Distance::Kl));
    let twenty = value(&adversarial(0.2, 20, Norm::L2, Distance::Kl));
    assert!(one > 2.0 * drawn, "{one} {drawn}");
    assert!(twenty >= one, "{twenty} {one}");
    let mut last = 0.0;
    for radius in [0.0, 0.05, 0.1, 0.2, 0.4] {
        let v = value(&adversarial(radius, 20, Norm::L2, Distance::Kl));
        assert!(v >= last);
        last = v;
    }
}

#[test]
fn duplicating_the_batch_changes_nothing() {
    let (net, head, inputs) = (random_net(1.0), PolicyHead::Categorical { n: 4 }, random_inputs(6 * 64));
    let twice = [inputs.clone(), inputs.clone()].concat();
    let config = adversarial(0.1, 30, Norm::L2, Distance::Kl);
    let (a, b) = (evaluate(&config, &net, &head, &inputs, &[1.0; 6], 1), evaluate(&config, &net, &head, &twice, &[1.0; 6], 2));
    assert!((a.penalty.value / b.penalty.value - 1.0).abs() < 0.02);
    let (dot, aa, bb) = a.weights.iter().zip(&b.weights).fold((0.0, 0.0, 0.0), |(d, x, y), (p, q)| (d + p * q, x + p * p, y + q * q));
    assert!(dot / (aa * bb).sqrt() > 0.99 && (aa / bb - 1.0_f32).abs() < 0.1);
}

#[test]
fn target_clean_leaves_the_clean_output_alone() {
    let (net, head, inputs) = (random_net(1.0), PolicyHead::Categorical { n: 4 }, random_inputs(6 * 8));
    let rows = 8;
    let mut trace = Trace::default();
    net.forward_train(&inputs, rows, &mut trace);
    for (gradient, touched) in [(Gradient::Detached, true), (Gradient::TargetClean, false)] {
        let config = RegularizerConfig::Lipschitz(LipschitzConfig { gradient, radius: 0.3, ..Default::default() });
        let observed = Observed { rows, members: 1, inputs: &inputs, unit: &[1.0; 6], limit: None, outputs: trace.output(), head: &head };
        let (mut outputs, mut weights) = (vec![0.0; rows * 4], vec![0.0; net.n_parameters()]);
        let mut gradients = PenaltyGradients { outputs: &mut outputs, weights: &mut weights, log_std: &mut [] };
        config.build(Rng::from_seed(1)).penalty(&net, &observed, 1.0, &mut gradients).unwrap();
        assert_eq!(outputs.iter().any(|g| *g != 0.0), touched);
        assert!(weights.iter().any(|g| *g != 0.0));
    }
}

#[test]
fn target_clean_does_not_reward_noisy_actions() {
    let (net, inputs) = (random_net(1.0), random_inputs(6 * 8));
    let head = PolicyHead::Gaussian { log_std: vec![-0.5; 4] };
    let log_std = |gradient: Gradient| {
        let config = RegularizerConfig::Gaussian(GaussianConfig { gradient, radius: 0.5, ..Default::default() });
        evaluate(&config, &net, &head, &inputs, &[1.0; 6], 2).log_std
    };
    assert_eq!(log_std(Gradient::TargetClean), [0.0; 4]);
    assert!(log_std(Gradient::Detached).iter().all(|g| *g < 0.0));
}

#[test]
fn attacks_stay_where_the_network_clamps() {
    let net = linear(&[&[1.0, 1.0]]);
    let head = PolicyHead::Gaussian { log_std: vec![0.0] };
    let mut trace = Trace::default();
    net.forward_train(&[0.0, 0.0], 1, &mut trace);
    let value = |limit: Option<f32>| {
        let observed = Observed { rows: 1, members: 1, inputs: &[0.0, 0.0], unit: &[1.0; 2], limit, outputs: trace.output(), head: &head };
        let (mut outputs, mut weights, mut log_std) = ([0.0], vec![0.0; net.n_parameters()], [0.0]);
        let mut gradients = PenaltyGradients { outputs: &mut outputs, weights: &mut weights, log_std: &mut log_std };
        let mut regularizer = adversarial(0.5, 1, Norm::Linf, Distance::L2).build(Rng::from_seed(1));
        regularizer.penalty(&net, &observed, 1.0, &mut gradients).unwrap().value
    };
    assert!((value(None) - 1.0).abs() < 1e-3);
    assert!((value(Some(0.1)) - 0.04).abs() < 1e-4);
}

#[test]
fn the_bound_reaches_the_constant_of_a_linear_map() {
    let net = linear(&WEIGHTS);
    let head = PolicyHead::Categorical { n: 2 };
    let inputs = random_inputs(60);
    let mut trace = Trace::default();
    net.forward_train(&inputs, 20, &mut trace);
    let observed = Observed { rows: 20, members: 1, inputs: &inputs, unit: &[1.0; 3], limit: None, outputs: trace.output(), head: &head };
    let constant = top_eigenvalue(&sandwich([[1.0, 0.0], [0.0, 1.0]])).sqrt();
    let bound = adversarial(0.3, 1, Norm::Linf, Distance::Kl).build(Rng::from_seed(1)).lipschitz_lower_bound(&net, &observed);
    assert!(bound <= constant * (1.0 + 1e-4) && bound > 0.999 * constant, "{bound} {constant}");
}

#[test]
fn the_gradient_penalty_is_the_squared_norm_of_the_jacobian() {
    let net = linear(&WEIGHTS);
    let head = PolicyHead::Categorical { n: 2 };
    let config = RegularizerConfig::GradientPenalty(GradientPenaltyConfig::default());
    let value = |unit: &[f32]| evaluate(&config, &net, &head, &random_inputs(3 * 20_000), unit, 1).penalty.value;
    let expected: f32 = WEIGHTS.iter().flat_map(|row| row.iter()).map(|w| w * w).sum();
    assert!((value(&[1.0; 3]) / f64::from(expected) - 1.0).abs() < 0.03, "{} {expected}", value(&[1.0; 3]));
    // In the units of the features.
    let expected = WEIGHTS.iter().map(|row| 4.0 * row[0] * row[0]).sum::<f32>();
    assert!((value(&[2.0, 0.0, 0.0]) / f64::from(expected) - 1.0).abs() < 0.05, "{} {expected}", value(&[2.0, 0.0, 0.0]));
    let (net, inputs, unit) = (random_net(1.0), random_inputs(6 * 6), [1.0, 0.5, 2.0, 1.0, 1.0]);
    let error = error_against_differences(&config, &net, &PolicyHead::Categorical { n: 4 }, &inputs, &unit);
    assert!(error < 0.02, "{error}");
}

#[test]
fn an_attacker_stays_in_the_ball_and_restarts_do_not_hurt_him() {
    let (net, head, inputs, rows) = (random_net(3.0), PolicyHead::Categorical { n: 4 }, random_inputs(6 * 100), 100);
    let unit = [1.0, 0.5, 2.0, 1.0, 1.0];
    let mut trace = Trace::default();
    net.forward_train(&inputs, rows, &mut trace);
    let observed = Observed { rows, members: 1, inputs: &inputs, unit: &unit, limit: None, outputs: trace.output(), head: &head };
    let distance = |moved: &[f32]| {
        let (mut out, mut value) = (vec![0.0; rows * 4], vec![0.0; rows]);
        net.forward(moved, rows, &mut out, &mut Workspace::default());
        head.divergence(Distance::Kl, &out, trace.output(), rows, 1.0, &mut value, None, None, None);
        value
    };
    let mean = |value: &[f32]| value.iter().sum::<f32>() / rows as f32;
    for norm in [Norm::L2, Norm::Linf] {
        let attack = |steps, restarts| {
            let config = ObservationAttackConfig { radius: 0.3, norm, steps, restarts };
            ObservationAttack::new(&config, Rng::from_seed(5)).perturb(&net, &observed).to_vec()
        };
        let (one, several) = (attack(10, 1), attack(10, 4));
        for (moved, clean) in several.chunks(6).zip(inputs.chunks(6)) {
            let steps: Vec<f32> = (0..5).map(|i| (moved[i] - clean[i]) / unit[i]).collect();
            let size = match norm {
                Norm::L2 => steps.iter().map(|s| s * s).sum::<f32>().sqrt(),
                Norm::Linf => steps.iter().fold(0.0_f32, |m, s| m.max(s.abs())),
            };
            assert!(size <= 0.3 * (1.0 + 1e-5), "{size}");
            assert_eq!(moved[5], clean[5], "what is behind the observation is left alone");
        }
        // The first start is the same, and the best of all ends counts, row by row.
        assert!(distance(&one).iter().zip(distance(&several)).all(|(a, b)| b >= *a));
        assert!(mean(&distance(&several)) >= mean(&distance(&attack(1, 1))), "{norm:?}");
        let drawn = RegularizerConfig::Gaussian(GaussianConfig { radius: 0.3, norm, ..Default::default() });
        // A clamped draw of deviation 1 lies near a corner of the cube already.
        let factor = if norm == Norm::L2 { 2.0 } else { 1.2 };
        let random = evaluate(&drawn, &net, &head, &inputs, &unit, 1).penalty.value;
        assert!(f64::from(mean(&distance(&one))) > factor * random, "{norm:?}: {} {random}", mean(&distance(&one)));
    }
    let none = ObservationAttackConfig { radius: 0.0, ..Default::default() };
    assert_eq!(ObservationAttack::new(&none, Rng::from_seed(5)).perturb(&net, &observed), inputs);
    assert!(ObservationAttackConfig { restarts: 0, ..none }.validate().unwrap_err().to_string().contains("restarts"));
}

#[test]
fn warm_up_grows_linearly() {
    let config = RegularizerConfig::Lipschitz(LipschitzConfig { weight: 2.0, warmup_fraction: 0.5, ..Default::default() });
    let regularizer = config.build(Rng::from_seed(1));
    assert_eq!([0.0, 0.125, 0.25, 0.5, 1.0].map(|p| regularizer.weight(p)), [0.0, 0.5, 1.0, 2.0, 2.0]);
}

/// Perturbations that scopes allow, in network inputs: 4 moments of 3 agents with 6 features.
fn perturbed(scope: Scope, scope_agents: usize, norm: Norm, steps: usize) -> Vec<Vec<f32>> {
    let (net, head, inputs) = (random_net(1.5), PolicyHead::Categorical { n: 4 }, random_inputs(6 * 12));
    let rows = 12;
    let mut trace = Trace::default();
    net.forward_train(&inputs, rows, &mut trace);
    let observed = Observed { rows, members: 3, inputs: &inputs, unit: &[1.0; 6], limit: None, outputs: trace.output(), head: &head };
    let config = LipschitzConfig { radius: 0.3, scope, scope_agents, norm, steps, ..Default::default() };
    let mut regularizer = LipschitzRegularizer::adversarial(&config, Rng::from_seed(4));
    let (mut outputs, mut weights) = (vec![0.0; rows * 4], vec![0.0; net.n_parameters()]);
    let mut gradients = PenaltyGradients { outputs: &mut outputs, weights: &mut weights, log_std: &mut [] };
    let penalty = regularizer.penalty(&net, &observed, 1.0, &mut gradients).expect("a penalty");
    assert!(penalty.value > 0.0 && (0.05..1.0 + 1e-5).contains(&penalty.relative_norm), "{penalty:?}");
    // What a regulariser of the same seed finds first.
    let mut same = LipschitzRegularizer::adversarial(&config, Rng::from_seed(4));
    same.offsets(&net, &observed).chunks_exact(6).map(<[f32]>::to_vec).collect()
}

#[test]
fn many_rows_are_the_sum_of_few() {
    let net = random_net(1.5);
    let gaussian = PolicyHead::Gaussian { log_std: vec![-0.3, 0.1, 0.2, 0.0] };
    let categorical = PolicyHead::Categorical { n: 4 };
    let settings = [
        (LipschitzConfig { gradient: Gradient::Stackelberg, steps: 2, radius: 0.3, ..Default::default() }, 1),
        (LipschitzConfig { scope: Scope::Joint, radius: 0.3, ..Default::default() }, 3),
        (LipschitzConfig { scope: Scope::KOfN, radius: 0.3, ..Default::default() }, 5),
    ];
    for ((config, members), head) in settings.iter().flat_map(|s| [(s, &gaussian), (s, &categorical)]) {
        let rows = 480;
        let inputs = random_inputs(6 * rows);
        let mut trace = Trace::default();
        net.forward_train(&inputs, rows, &mut trace);
        // All at once, or in parts which the penalty's own do not follow.
        let penalty = |parts: &[usize]| {
            let mut regularizer = LipschitzRegularizer::adversarial(config, Rng::from_seed(4));
            let (mut outputs, mut weights, mut log_std) =
                (vec![0.0; rows * 4], vec![0.0; net.n_parameters()], vec![0.0; head.log_std().len()]);
            let (mut value, mut length, mut first) = (0.0, 0.0, 0);
            for &n in parts {
                let observed = Observed {
                    rows: n,
                    members: *members,
                    inputs: &inputs[6 * first..6 * (first + n)],
                    unit: &[1.0; 6],
                    limit: None,
                    outputs: &trace.output()[4 * first..4 * (first + n)],
                    head,
                };
                let outputs = &mut outputs[4 * first..4 * (first + n)];
                let mut gradients = PenaltyGradients { outputs, weights: &mut weights, log_std: &mut log_std };
                let share = n as f64 / rows as f64;
                let part = regularizer.penalty(&net, &observed, 100.0 * share, &mut gradients).expect("a penalty");
                (value, length, first) = (value + share * part.value, length + share * part.relative_norm, first + n);
            }
            (value, length, [outputs, weights, log_std])
        };
        let (value, length, gradients) = penalty(&[rows]);
        let (sum, mean, sums) = penalty(&[60, 150, 30, 240]);
        assert!(value > 0.0 && (value / sum - 1.0).abs() < 1e-5 && (length / mean - 1.0).abs() < 1e-5, "{config:?}: {value} {sum}");
        for (all, summed) in gradients.iter().zip(&sums) {
            let size = summed.iter().fold(0.0_f32, |size, v| size.max(v.abs()));
            assert!(size > 0.0 || all.is_empty(), "{config:?}");
            for (i, (a, b)) in all.iter().zip(summed).enumerate() {
                assert!((a - b).abs() < 1e-4 * size, "{config:?} {head:?} {i}: {a} {b}");
            }
        }
    }
}

#[test]
fn every_scope_keeps_its_budget() {
    let length = |u: &[f32]| u.iter().map(|v| v * v).sum::<f32>().sqrt();
    for steps in [1, 4] {
        let independent = perturbed(Scope::Independent, 1, Norm::L2, steps);
        assert!(independent.iter().all(|u| (length(u) - 0.3).abs() < 1e-3));
        for moment in perturbed(Scope::Joint, 1, Norm::L2, steps).chunks(3) {
            let whole = length(&moment.concat());
            assert!((whole - 0.3).abs() < 1e-3, "{whole}");
        }
        for moment in perturbed(Scope::Shared, 1, Norm::Linf, steps).chunks(3) {
            assert!(moment.iter().all(|u| u.iter().zip(&moment[0]).all(|(a, b)| (a - b).abs() < 1e-6)));
            assert!(moment[0].iter().any(|v| *v != 0.0) && moment[0].iter().all(|v| v.abs() < 0.3 + 1e-5));
        }
        for k in [1, 2] {
            for (moment, free) in perturbed(Scope::KOfN, k, Norm::L2, steps).chunks(3).zip(independent.chunks(3)) {
                let moved: Vec<usize> = (0..3).filter(|&i| length(&moment[i]) > 0.0).collect();
                assert_eq!(moved.len(), k);
                // Those that are moved are moved as if each were alone.
                assert!(moved.iter().all(|&i| moment[i].iter().zip(&free[i]).all(|(a, b)| (a - b).abs() < 1e-4)));
            }
        }
    }
}

#[test]
fn a_wider_scope_finds_no_smaller_change() {
    let (net, head, inputs) = (random_net(1.5), PolicyHead::Categorical { n: 4 }, random_inputs(6 * 30));
    let mut trace = Trace::default();
    net.forward_train(&inputs, 30, &mut trace);
    let observed = Observed { rows: 30, members: 3, inputs: &inputs, unit: &[1.0; 6], limit: None, outputs: trace.output(), head: &head };
    let value = |scope, scope_agents| {
        let config = LipschitzConfig { radius: 0.3, steps: 20, scope, scope_agents, ..Default::default() };
        let (mut outputs, mut weights) = (vec![0.0; 120], vec![0.0; net.n_parameters()]);
        let mut gradients = PenaltyGradients { outputs: &mut outputs, weights: &mut weights, log_std: &mut [] };
        let regularizer = RegularizerConfig::Lipschitz(config);
        regularizer.build(Rng::from_seed(4)).penalty(&net, &observed, 1.0, &mut gradients).unwrap().value
    };
    let independent = value(Scope::Independent, 1);
    assert!(value(Scope::Joint, 1) < independent && value(Scope::Shared, 1) < independent);
    assert!(value(Scope::KOfN, 1) < value(Scope::KOfN, 2) && value(Scope::KOfN, 2) < independent);
    // One agent with the whole budget is one of the joint adversary's choices.
    assert!(value(Scope::KOfN, 1) <= 1.02 * value(Scope::Joint, 1));
    assert!((value(Scope::KOfN, 3) / independent - 1.0).abs() < 1e-6);
}
