//! A decoder's forward pass over plain arrays in `f64`, written for reading: one position after the other, no cache.

use steadfast_agents::llm::model::{
    Activation, DecoderConfig, DenseLinear, DenseNorm, DenseWeights, NormKind, Positions, rope_frequencies,
};

fn linear(weights: &DenseLinear, input: &[f64]) -> Vec<f64> {
    let rows = weights.weight.chunks_exact(input.len());
    rows.enumerate()
        .map(|(row, values)| {
            let product: f64 = values.iter().zip(input).map(|(w, x)| f64::from(*w) * x).sum();
            product + weights.bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]))
        })
        .collect()
}

fn rms_norm(scale: &[f32], eps: f64, input: &[f64]) -> Vec<f64> {
    let mean_square = input.iter().map(|x| x * x).sum::<f64>() / input.len() as f64;
    input.iter().zip(scale).map(|(x, w)| x / (mean_square + eps).sqrt() * f64::from(*w)).collect()
}

fn norm(config: &DecoderConfig, weights: &DenseNorm, input: &[f64]) -> Vec<f64> {
    if config.norm == NormKind::Rms {
        return rms_norm(&weights.weight, config.norm_eps, input);
    }
    let mean = input.iter().sum::<f64>() / input.len() as f64;
    let centred: Vec<f64> = input.iter().map(|x| x - mean).collect();
    let scaled = rms_norm(&weights.weight, config.norm_eps, &centred);
    scaled.iter().zip(weights.bias.as_ref().expect("layer norms have a shift")).map(|(x, b)| x + f64::from(*b)).collect()
}

/// The error function by its series (small arguments) or continued fraction, to about 1e-14.
fn erf(x: f64) -> f64 {
    if x.abs() < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let y = x.abs();
    let fraction = (1..80).rev().fold(0.0, |tail, n| n as f64 / 2.0 / (y + tail));
    (1.0 - (-y * y).exp() / std::f64::consts::PI.sqrt() / (y + fraction)).copysign(x)
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Activation::Relu => x.max(0.0),
    }
}

fn rotate(config: &DecoderConfig, head: &mut [f64], position: usize) {
    let Positions::Rope(rope) = config.positions else { return };
    let (frequencies, factor) = rope_frequencies(&rope, config.max_positions);
    let half = rope.rotary_dim / 2;
    for (pair, frequency) in frequencies.iter().enumerate() {
        let angle = position as f64 * f64::from(*frequency);
        let (sin, cos) = (angle.sin() * f64::from(factor), angle.cos() * f64::from(factor));
        let (a, b) = (head[pair], head[pair + half]);
        head[pair] = a * cos - b * sin;
        head[pair + half] = b * cos + a * sin;
    }
}

/// Final hidden states, `[position][hidden]`.
pub fn hidden_states(config: &DecoderConfig, weights: &DenseWeights, tokens: &[u32]) -> Vec<Vec<f64>> {
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    let row = |table: &[f32], index: usize| -> Vec<f64> { table[index * hidden..][..hidden].iter().map(|x| f64::from(*x)).collect() };
    let mut states: Vec<Vec<f64>> = tokens.iter().map(|token| row(&weights.embedding, *token as usize)).collect();
    if let Some(positions) = &weights.positions {
        for (position, state) in states.iter_mut().enumerate() {
            for (x, p) in state.iter_mut().zip(row(positions, position)) {
                *x += p;
            }
        }
    }
    for (layer, span) in weights.layers.iter().zip(&config.spans) {
        let per_head = |linear: Vec<f64>, head_norm: &Option<Vec<f32>>, position: Option<usize>| -> Vec<Vec<f64>> {
            let heads = linear.chunks_exact(head_dim).map(|head| {
                let mut head = head_norm.as_ref().map_or_else(|| head.to_vec(), |scale| rms_norm(scale, config.norm_eps, head));
                if let Some(position) = position {
                    rotate(config, &mut head, position);
                }
                head
            });
            heads.collect()
        };
        let normed: Vec<Vec<f64>> = states.iter().map(|state| norm(config, &layer.attention_norm, state)).collect();
        let queries: Vec<_> = normed.iter().enumerate().map(|(i, x)| per_head(linear(&layer.q, x), &layer.q_norm, Some(i))).collect();
        let keys: Vec<_> = normed.iter().enumerate().map(|(i, x)| per_head(linear(&layer.k, x), &layer.k_norm, Some(i))).collect();
        let values: Vec<_> = normed.iter().map(|x| per_head(linear(&layer.v, x), &None, None)).collect();
        for query in 0..states.len() {
            let mut attended = Vec::new();
            for head in 0..config.n_heads {
                let key_head = head * config.n_kv_heads / config.n_heads;
                let range = span.first_key(query)..query + 1;
                let scores = range.clone().map(|key| {
                    let product: f64 = queries[query][head].iter().zip(&keys[key][key_head]).map(|(a, b)| a * b).sum();
                    (product / (head_dim as f64).sqrt()).exp()
                });
                let scores: Vec<f64> = scores.collect();
                let total: f64 = scores.iter().sum();
                for coordinate in 0..head_dim {
                    attended.push(range.clone().zip(&scores).map(|(key, s)| s / total * values[key][key_head][coordinate]).sum());
                }
            }
            let attention = linear(&layer.o, &attended);
            let mut middle = states[query].clone();
            for (x, a) in middle.iter_mut().zip(&attention) {
                *x += a;
            }
            let mlp_input = if config.parallel_residual { &states[query] } else { &middle };
            let mlp_input = norm(config, &layer.mlp_norm, mlp_input);
            let up = linear(&layer.up, &mlp_input);
            let inner: Vec<f64> = match &layer.gate {
                Some(gate) => linear(gate, &mlp_input).iter().zip(up).map(|(g, u)| activate(config.activation, *g) * u).collect(),
                None => up.into_iter().map(|u| activate(config.activation, u)).collect(),
            };
            for (x, d) in middle.iter_mut().zip(linear(&layer.down, &inner)) {
                *x += d;
            }
            states[query] = middle;
        }
    }
    states.iter().map(|state| norm(config, &weights.final_norm, state)).collect()
}

/// Logits, `[position][vocab]`.
pub fn logits(config: &DecoderConfig, weights: &DenseWeights, tokens: &[u32]) -> Vec<Vec<f64>> {
    let head = DenseLinear { weight: weights.head.clone().unwrap_or_else(|| weights.embedding.clone()), bias: None };
    hidden_states(config, weights, tokens).iter().map(|state| linear(&head, state)).collect()
}
