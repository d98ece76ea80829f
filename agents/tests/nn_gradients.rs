//! Gradients of the network and of closed-form losses against dfdx's automatic differentiation.
#![allow(clippy::unwrap_used, missing_docs)]

use dfdx::prelude::*;
use steadfast_agents::head::{ActionRows, Evaluation, PolicyHead};
use steadfast_agents::nn::categorical::{self, CategoricalWork};
use steadfast_agents::nn::gaussian::{self, GaussianWork, KlGradients};
use steadfast_agents::nn::squashed_gaussian::{self, ActionBox};
use steadfast_agents::nn::{Activation, Mlp, MlpNode, NamedTensor, Rows, Trace as MlpTrace, distance};
use steadfast_envs::{Rng, Space};

type Matrix = Tensor<(usize, usize), f32, Cpu>;
type Vector = Tensor<(usize,), f32, Cpu>;

fn noise(n: usize, scale: f32, rng: &mut Rng) -> Vec<f32> {
    (0..n).map(|_| scale * rng.normal_f32()).collect()
}

fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (at, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what}[{at}]: {a}, dfdx {b}");
    }
}

/// Our network as dfdx's own operations, one by one.
struct Composed {
    weights: Vec<Matrix>,
    biases: Vec<Vector>,
}

impl Composed {
    fn new(net: &Mlp, device: &Cpu) -> Self {
        let mut this = Self { weights: Vec::new(), biases: Vec::new() };
        for NamedTensor { shape, data, .. } in net.tensors() {
            match shape[..] {
                [o, i] => this.weights.push(device.tensor_from_vec(data, (o, i))),
                _ => this.biases.push(device.tensor_from_vec(data, (shape[0],))),
            }
        }
        this
    }

    fn forward<T: Tape<f32, Cpu>>(&self, x: Rows<T>, activation: Activation) -> Rows<T> {
        let mut h = x;
        for (i, (w, b)) in self.weights.iter().zip(&self.biases).enumerate() {
            let rows = h.shape().0;
            let z = h.matmul(w.retaped::<T>().permute::<(usize, usize), Axes2<1, 0>>());
            h = z + b.retaped::<T>().broadcast_like::<(usize, usize), Axis<0>>(&(rows, w.shape().0));
            if i + 1 < self.weights.len() {
                h = match activation {
                    Activation::Tanh => h.tanh(),
                    Activation::Relu => h.relu(),
                    Activation::LeakyRelu | Activation::Identity => h,
                };
            }
        }
        h
    }
}

/// Weight, bias and input gradients of `mean(out²)`.
#[test]
fn network_gradients_equal_those_of_composed_operations() {
    let device = Cpu::default();
    for (activation, rows) in [(Activation::Tanh, 37), (Activation::Tanh, 256), (Activation::Relu, 64), (Activation::Identity, 5)] {
        let mut rng = Rng::from_seed(rows as u64);
        let net = Mlp::new(18, &[64, 64], 5, activation, 1.4, 1.0, &mut rng).unwrap();
        let x = noise(rows * 18, 1.0, &mut rng);
        let composed = Composed::new(&net, &device);
        let input = device.tensor_from_vec(x.clone(), (rows, 18));
        let out = composed.forward(input.leaky_trace(), activation);
        let expected_out = out.as_vec();
        let gradients = out.square().mean::<Rank0, _>().backward();

        let mut trace = MlpTrace::default();
        net.forward_train(&x, rows, &mut trace);
        assert_close("out", trace.output(), &expected_out, 5e-6);
        let d_out: Vec<f32> = trace.output().iter().map(|y| 2.0 * y / (rows * 5) as f32).collect();
        let (mut gradient, mut d_input) = (vec![0.0; net.n_parameters()], vec![0.0; x.len()]);
        net.backward(&mut trace, &d_out, Some(&mut gradient), Some(&mut d_input));
        // The gradient has the layout of the parameters: read it through a copy of the network.
        let mut as_net = net.clone();
        as_net.parameters_mut().copy_from_slice(&gradient);
        for (i, pair) in as_net.tensors().chunks_exact(2).enumerate() {
            assert_close(&pair[0].name, &pair[0].data, &gradients.get(&composed.weights[i]).as_vec(), 1e-6);
            assert_close(&pair[1].name, &pair[1].data, &gradients.get(&composed.biases[i]).as_vec(), 1e-6);
        }
        assert_close("input", &d_input, &gradients.get(&input).as_vec(), 1e-6);

        // The same through the node on dfdx's tape.
        let node = MlpNode::new(&net, &device);
        let out = node.forward_with_input_gradient(&net, input.leaky_trace()).unwrap();
        let gradients = out.square().mean::<Rank0, _>().backward();
        assert_close("node", &node.gradient(&gradients), &gradient, 1e-6);
        assert_close("node input", &gradients.get(&input).as_vec(), &d_input, 1e-6);
    }
}

type Traced<S> = Tensor<S, f32, Cpu, OwnedTape<f32, Cpu>>;

/// The negative clipped surrogate's mean in dfdx operations.
fn clipped_loss(log_prob: Traced<(usize,)>, old: &Vector, advantage: &Vector) -> Traced<Rank0> {
    let ratio = (log_prob - old.clone()).exp();
    let plain = ratio.retaped::<OwnedTape<f32, Cpu>>() * advantage.clone();
    let clipped = ratio.clamp(0.8, 1.2) * advantage.clone();
    clipped.minimum(plain).mean::<Rank0, _>().negate()
}

/// Derivative of the mean clipped surrogate with respect to each log-probability.
fn clipped_derivative(log_prob: &[f32], old: &[f32], advantage: &[f32]) -> Vec<f32> {
    let scale = 1.0 / log_prob.len() as f32;
    let each = log_prob.iter().zip(old).zip(advantage);
    each.map(|((l, old), a)| {
        let ratio = (l - old).exp();
        let is_clipped = if *a > 0.0 { ratio > 1.2 } else { ratio < 0.8 };
        if is_clipped { 0.0 } else { -scale * a * ratio }
    })
    .collect()
}

#[test]
fn clipped_loss_of_a_categorical_equals_composed_operations() {
    let device = Cpu::default();
    let mut rng = Rng::from_seed(1);
    let (rows, n) = (500, 5);
    let logits = noise(rows * n, 1.0, &mut rng);
    let actions: Vec<u32> = (0..rows).map(|_| rng.below(n) as u32).collect();
    let advantage = noise(rows, 1.0, &mut rng);
    let (mut log_prob, mut entropy) = (vec![0.0; rows], vec![0.0; rows]);
    let mut work = CategoricalWork::default();
    categorical::evaluate(&logits, rows, n, &actions, &mut log_prob, &mut entropy, &mut work);
    let old: Vec<f32> = log_prob.iter().map(|l| l + 0.3 * rng.normal_f32()).collect();
    let d_log_prob = clipped_derivative(&log_prob, &old, &advantage);
    assert!(d_log_prob.contains(&0.0) && d_log_prob.iter().any(|d| *d != 0.0));
    let d_entropy = vec![-0.01 / rows as f32; rows];
    let mut d_logits = vec![0.0; rows * n];
    categorical::backward(&work, &actions, &d_log_prob, &d_entropy, &mut d_logits);

    let tensor: Matrix = device.tensor_from_vec(logits, (rows, n));
    let l = tensor.leaky_trace().log_softmax::<Axis<1>>();
    let index = device.tensor_from_vec(actions.iter().map(|a| *a as usize).collect::<Vec<usize>>(), (rows,));
    let chosen: Traced<(usize,)> = l.retaped::<OwnedTape<f32, Cpu>>().select(index);
    assert_close("log_prob", &log_prob, &chosen.as_vec(), 1e-6);
    let negative_entropy = (l.retaped::<OwnedTape<f32, Cpu>>().exp() * l).sum::<(usize,), Axis<1>>();
    assert_close("entropy", &entropy, &negative_entropy.as_vec().iter().map(|h| -h).collect::<Vec<_>>(), 1e-6);
    let (old, advantage) = (device.tensor_from_vec(old, (rows,)), device.tensor_from_vec(advantage, (rows,)));
    let loss = negative_entropy.mean::<Rank0, _>() * 0.01 + clipped_loss(chosen, &old, &advantage);
    assert_close("d_logits", &d_logits, &loss.backward().get(&tensor).as_vec(), 1e-8);
}

#[test]
fn clipped_loss_of_a_gaussian_equals_composed_operations() {
    let device = Cpu::default();
    let mut rng = Rng::from_seed(2);
    let (rows, d) = (300, 6);
    let (mean, log_std) = (noise(rows * d, 0.5, &mut rng), noise(d, 0.3, &mut rng));
    let (actions, advantage) = (noise(rows * d, 1.0, &mut rng), noise(rows, 1.0, &mut rng));
    let (mut log_prob, mut entropy) = (vec![0.0; rows], vec![0.0; rows]);
    let mut work = GaussianWork::default();
    gaussian::evaluate(&mean, &log_std, rows, &actions, &mut log_prob, &mut entropy, &mut work);
    let old: Vec<f32> = log_prob.iter().map(|l| l + 0.3 * rng.normal_f32()).collect();
    let d_log_prob = clipped_derivative(&log_prob, &old, &advantage);
    let (mut d_mean, mut d_log_std) = (vec![0.0; rows * d], vec![0.0; d]);
    gaussian::backward(&work, &d_log_prob, &vec![-0.01 / rows as f32; rows], &mut d_mean, &mut d_log_std);

    let (mean, log_std): (Matrix, Vector) = (device.tensor_from_vec(mean, (rows, d)), device.tensor_from_vec(log_std, (d,)));
    let actions: Matrix = device.tensor_from_vec(actions, (rows, d));
    let inverse = log_std.leaky_trace().negate().exp().broadcast_like::<(usize, usize), Axis<0>>(&(rows, d));
    let z = (mean.leaky_trace() - actions) * inverse;
    let spread = log_std.leaky_trace().broadcast_like::<(usize, usize), Axis<0>>(&(rows, d));
    let half_log_tau = 0.5 * std::f32::consts::TAU.ln();
    let l = (z.square() * 0.5 + spread + half_log_tau).sum::<(usize,), Axis<1>>().negate();
    assert_close("log_prob", &log_prob, &l.as_vec(), 1e-5);
    let h = (log_std.leaky_trace() + (half_log_tau + 0.5)).sum::<Rank0, _>();
    assert_close("entropy", &entropy[..1], &h.as_vec(), 1e-5);
    let (old, advantage) = (device.tensor_from_vec(old, (rows,)), device.tensor_from_vec(advantage, (rows,)));
    let gradients = (clipped_loss(l, &old, &advantage) - h * 0.01).backward();
    // The ratio carries the rounding of log-probabilities of size ten; per-sample gradients are of size 1 / rows.
    assert_close("d_mean", &d_mean, &gradients.get(&mean).as_vec(), 3e-7);
    assert_close("d_log_std", &d_log_std, &gradients.get(&log_std).as_vec(), 3e-6);
}

#[test]
fn clipped_loss_of_a_squashed_gaussian_equals_composed_operations() {
    let device = Cpu::default();
    let mut rng = Rng::from_seed(4);
    let (rows, d) = (200, 3);
    let (low, high) = (-2.0_f32, 4.0_f32);
    let mut head = PolicyHead::new(&Space::interval(d, low, high), true, 0.0).expect("a bounded box");
    let (mean, log_std) = (noise(rows * d, 0.5, &mut rng), noise(d, 0.3, &mut rng));
    head.log_std_mut().copy_from_slice(&log_std);
    let bounds = ActionBox::new(&vec![low; d], &vec![high; d]).expect("low below high");
    let actions: Vec<f32> = (0..rows * d).map(|_| low + (high - low) * (0.1 + 0.8 * rng.unit_f32())).collect();
    let mut pre = vec![0.0; rows * d];
    squashed_gaussian::inverse(&bounds, &actions, &mut pre);
    let advantage = noise(rows, 1.0, &mut rng);
    let mut evaluation = Evaluation::default();
    let chosen = ActionRows { indices: &[], vectors: &actions };
    head.evaluate(&mean, rows, chosen, &mut evaluation);
    let log_prob = evaluation.log_prob.clone();
    let old: Vec<f32> = log_prob.iter().map(|l| l + 0.3 * rng.normal_f32()).collect();
    let d_log_prob = clipped_derivative(&log_prob, &old, &advantage);
    let bonus = 0.02;
    let d_entropy = vec![-bonus / rows as f32; rows];
    let (mut d_mean, mut d_log_std) = (vec![0.0; rows * d], vec![0.0; d]);
    head.backward(chosen, &mut evaluation, &d_log_prob, &d_entropy, &mut d_mean, &mut d_log_std);

    // The drawn normals, as constants: the entropy estimate moves with its sample along them.
    let normals: Vec<f32> = (0..rows * d).map(|i| (pre[i] - mean[i]) / log_std[i % d].exp()).collect();
    let (mean, log_std): (Matrix, Vector) = (device.tensor_from_vec(mean, (rows, d)), device.tensor_from_vec(log_std, (d,)));
    let (pre, normals): (Matrix, Matrix) = (device.tensor_from_vec(pre, (rows, d)), device.tensor_from_vec(normals, (rows, d)));
    let half_log_tau = 0.5 * std::f32::consts::TAU.ln();
    let log_scale = (0.5 * (high - low)).ln();
    let ln_2 = std::f32::consts::LN_2;
    let over_rows = || log_std.leaky_trace().broadcast_like::<(usize, usize), Axis<0>>(&(rows, d));
    // ln scale + 2 (ln 2 − u − ln(1 + e^(−2u))), the logarithm of the stretch of the map at u.
    let stretch = (pre.clone() * 2.0 + ((pre.clone() * -2.0).exp() + 1.0).ln() * 2.0) * -1.0 + (2.0 * ln_2 + log_scale);
    let inverse = log_std.leaky_trace().negate().exp().broadcast_like::<(usize, usize), Axis<0>>(&(rows, d));
    let z = (mean.leaky_trace() - pre) * inverse;
    let l = (z.square() * 0.5 + over_rows() + half_log_tau + stretch).sum::<(usize,), Axis<1>>().negate();
    assert_close("log_prob", &log_prob, &l.as_vec(), 1e-4);
    let (old, advantage) = (device.tensor_from_vec(old, (rows,)), device.tensor_from_vec(advantage, (rows,)));
    let clipped = clipped_loss(l, &old, &advantage);
    // −log π of the moving sample u = mean + σ ε; its first term ½ ε² is constant.
    let u = over_rows().exp() * normals + mean.clone();
    let u2 = u.with_empty_tape() * -2.0;
    let moving_stretch = u * -2.0 + (u2.exp() + 1.0).ln() * -2.0 + (2.0 * ln_2 + log_scale);
    let entropy = (over_rows() + moving_stretch).sum::<Rank0, _>();
    let gradients = (clipped - entropy * (bonus / rows as f32)).backward();
    assert_close("d_log_std", &d_log_std, &gradients.get(&log_std).as_vec(), 1e-5);
    assert_close("d_mean", &d_mean, &gradients.get(&mean).as_vec(), 1e-6);
}

#[test]
fn distances_equal_composed_operations() {
    let device = Cpu::default();
    let mut rng = Rng::from_seed(3);
    let (rows, n) = (70, 5);
    let (p, q) = (noise(rows * n, 1.0, &mut rng), noise(rows * n, 1.0, &mut rng));
    let weight = 1.0 / rows as f32;
    let (tp, tq): (Matrix, Matrix) = (device.tensor_from_vec(p.clone(), (rows, n)), device.tensor_from_vec(q.clone(), (rows, n)));

    let (mut value, mut d_p, mut d_q) = (vec![0.0; rows], vec![0.0; rows * n], vec![0.0; rows * n]);
    categorical::kl(&p, &q, rows, n, &mut value, weight, Some(&mut d_p), Some(&mut d_q));
    let (lp, lq) = (tp.leaky_trace().log_softmax::<Axis<1>>(), tq.leaky_trace().log_softmax::<Axis<1>>());
    let each = (lp.retaped::<OwnedTape<f32, Cpu>>().exp() * (lp - lq)).sum::<(usize,), Axis<1>>();
    assert_close("kl", &value, &each.as_vec(), 2e-6);
    let gradients = each.mean::<Rank0, _>().backward();
    assert_close("kl d_p", &d_p, &gradients.get(&tp).as_vec(), 1e-7);
    assert_close("kl d_q", &d_q, &gradients.get(&tq).as_vec(), 1e-7);

    let (mut d_p, mut d_q) = (vec![0.0; rows * n], vec![0.0; rows * n]);
    distance::squared_l2(&p, &q, rows, n, &mut value, weight, Some(&mut d_p), Some(&mut d_q));
    let each = (tp.leaky_trace() - tq.leaky_trace()).square().sum::<(usize,), Axis<1>>();
    assert_close("squared l2", &value, &each.as_vec(), 1e-5);
    let gradients = each.mean::<Rank0, _>().backward();
    assert_close("squared l2 d_p", &d_p, &gradients.get(&tp).as_vec(), 1e-6);
    assert_close("squared l2 d_q", &d_q, &gradients.get(&tq).as_vec(), 1e-6);

    let (sp, sq) = (noise(n, 0.3, &mut rng), noise(n, 0.3, &mut rng));
    let (mut dm, mut dsp, mut dsq) = (vec![0.0; rows * n], vec![0.0; n], vec![0.0; n]);
    let into = KlGradients { mean_p: Some(&mut dm), log_std_p: Some(&mut dsp), mean_q: None, log_std_q: Some(&mut dsq) };
    gaussian::kl(&p, &sp, &q, &sq, rows, &mut value, weight, into);
    let (tsp, tsq): (Vector, Vector) = (device.tensor_from_vec(sp, (n,)), device.tensor_from_vec(sq, (n,)));
    let wide = |t: &Vector| t.leaky_trace().broadcast_like::<(usize, usize), Axis<0>>(&(rows, n));
    let square = (tp.leaky_trace() - tq.clone()).square() + (wide(&tsp) * 2.0).exp();
    let each = (wide(&tsq) - wide(&tsp) + square * (wide(&tsq) * -2.0).exp() * 0.5 - 0.5).sum::<(usize,), Axis<1>>();
    assert_close("gaussian kl", &value, &each.as_vec(), 1e-5);
    let gradients = each.mean::<Rank0, _>().backward();
    assert_close("gaussian kl d_mean", &dm, &gradients.get(&tp).as_vec(), 1e-6);
    assert_close("gaussian kl d_log_std_p", &dsp, &gradients.get(&tsp).as_vec(), 5e-6);
    assert_close("gaussian kl d_log_std_q", &dsq, &gradients.get(&tsq).as_vec(), 5e-6);
}
