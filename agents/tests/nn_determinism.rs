//! The same bits for every set of vector instructions, every batch size and every split of a batch.
#![allow(clippy::unwrap_used, missing_docs)]

use steadfast_agents::nn::categorical::{self, CategoricalWork};
use steadfast_agents::nn::{
    Activation, Adam, AdamConfig, Isa, Mlp, Trace, Workspace, clip_scale, exp_in_place, isa, set_isa, squared_norm,
};
use steadfast_envs::Rng;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Fifty policy-gradient steps with clipping and Adam; the bits of the parameters.
fn train(hidden: &[usize], activation: Activation) -> Vec<u32> {
    let mut rng = Rng::from_seed(7);
    let (rows, input, n) = (83, 18, 5);
    let mut net = Mlp::new(input, hidden, n, activation, 1.4, 0.5, &mut rng).unwrap();
    let mut adam = Adam::new(net.n_parameters(), AdamConfig::default());
    let (mut trace, mut work) = (Trace::default(), CategoricalWork::default());
    let mut gradient = vec![0.0; net.n_parameters()];
    let (mut log_prob, mut entropy, mut d_logits) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows * n]);
    let mut d_input = vec![0.0; rows * input];
    let start = bits(net.parameters());
    for _ in 0..50 {
        let mut x: Vec<f32> = (0..rows * input).map(|_| rng.normal_f32()).collect();
        // An adversary's step on the input, so that its gradient takes part too.
        net.forward_train(&x, rows, &mut trace);
        net.backward(&mut trace, &vec![1.0; rows * n], None, Some(&mut d_input));
        x.iter_mut().zip(&d_input).for_each(|(x, d)| *x += 0.1 * d);
        net.forward_train(&x, rows, &mut trace);
        let actions: Vec<u32> = trace.output().chunks(n).map(|row| categorical::sample(row, &mut rng).0).collect();
        categorical::evaluate(trace.output(), rows, n, &actions, &mut log_prob, &mut entropy, &mut work);
        let mut d_log_prob: Vec<f32> = log_prob.iter().zip(&x).map(|(l, x)| l * x).collect();
        exp_in_place(&mut d_log_prob);
        d_logits.fill(0.0);
        categorical::backward(&work, &actions, &d_log_prob, &vec![0.1; rows], &mut d_logits);
        gradient.fill(0.0);
        net.backward(&mut trace, &d_logits, Some(&mut gradient), None);
        let scale = clip_scale(squared_norm(&gradient).sqrt(), 0.5);
        adam.step(net.parameters_mut(), &gradient, 1e-2, scale);
    }
    let end = bits(net.parameters());
    assert_ne!(start, end);
    assert!(net.parameters().iter().all(|v| v.is_finite()));
    end
}

#[test]
fn fifty_training_steps_have_the_same_bits_on_all_instructions() {
    for (hidden, activation) in
        [(&[64, 64][..], Activation::Tanh), (&[37][..], Activation::Relu), (&[20, 50, 9][..], Activation::LeakyRelu)]
    {
        let mut first = None;
        for choice in Isa::ALL.into_iter().filter(|i| i.is_available()) {
            assert!(set_isa(Some(choice)));
            assert_eq!(isa(), choice);
            let end = train(hidden, activation);
            assert!(*first.get_or_insert_with(|| end.clone()) == end, "{choice:?} differs from {:?}", Isa::Portable);
        }
        set_isa(None);
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let mut rng = Rng::from_seed(8);
    let net = Mlp::new(18, &[64, 64], 5, Activation::Tanh, 1.4, 1.0, &mut rng).unwrap();
    let x: Vec<f32> = (0..257 * 18).map(|_| rng.normal_f32()).collect();
    for choice in Isa::ALL.into_iter().filter(|i| i.is_available()) {
        assert!(set_isa(Some(choice)));
        let mut work = Workspace::default();
        let mut alone = vec![0.0; 257 * 5];
        for (x, out) in x.chunks(18).zip(alone.chunks_mut(5)) {
            net.forward(x, 1, out, &mut work);
        }
        for rows in [2, 7, 16, 95, 96, 97, 128, 257] {
            let mut out = vec![0.0; rows * 5];
            net.forward(&x[..rows * 18], rows, &mut out, &mut work);
            assert_eq!(bits(&out), bits(&alone[..rows * 5]), "{rows} rows on {choice:?}");
        }
    }
    set_isa(None);
}

#[test]
fn padding_stays_zero_through_training() {
    let mut rng = Rng::from_seed(9);
    let mut net = Mlp::new(3, &[7, 5], 2, Activation::Tanh, 1.4, 1.0, &mut rng).unwrap();
    let config = AdamConfig { weight_decay: 0.1, ..AdamConfig::default() };
    let mut adam = Adam::new(net.n_parameters(), config);
    let mut trace = Trace::default();
    // Reads of memory left over from another, wider network must not leak into this one.
    let wide = Mlp::new(40, &[70, 70], 30, Activation::Identity, 1e20, 1.0, &mut rng).unwrap();
    wide.forward_train(&vec![1e10; 40 * 20], 20, &mut trace);
    for _ in 0..10 {
        let x: Vec<f32> = (0..19 * 3).map(|_| rng.normal_f32()).collect();
        net.forward_train(&x, 19, &mut trace);
        let mut gradient = vec![0.0; net.n_parameters()];
        net.backward(&mut trace, &[1.0; 19 * 2], Some(&mut gradient), None);
        adam.step(net.parameters_mut(), &gradient, 1e-2, 1.0);
    }
    assert!(net.parameters().iter().all(|v| v.is_finite()));
    let n_non_zero = net.parameters().iter().filter(|v| **v != 0.0).count();
    assert_eq!(n_non_zero, net.n_weights());
}

#[test]
fn an_unavailable_set_is_refused() {
    for choice in Isa::ALL {
        assert_eq!(set_isa(Some(choice)), choice.is_available());
    }
    assert!(set_isa(None));
}
