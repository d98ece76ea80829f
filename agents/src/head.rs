//! What the outputs of a policy network mean: a distribution over actions.

use steadfast_envs::{ActMode, Rng, Space};

use crate::AgentError;
use crate::nn::categorical::{self, CategoricalWork};
use crate::nn::distance::squared_l2;
use crate::nn::gaussian::{self, GaussianWork, KlGradients};
use crate::nn::squashed_gaussian::{self, ActionBox, SquashedWork};

/// How far apart two outputs of a policy are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Divergence of the perturbed distribution from the clean one.
    Kl,
    /// Squared Euclidean distance of the network outputs (logits or means).
    L2,
}

/// The distribution that a policy network's outputs stand for, `[rows, width]`.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicyHead {
    /// Outputs are logits of `n` choices.
    Categorical {
        /// Number of choices.
        n: usize,
    },
    /// Outputs are means of independent normals, whose deviations do not depend on the observation.
    Gaussian {
        /// Logarithms of the deviations, `[width]`; parameters of the policy.
        log_std: Vec<f32>,
    },
    /// As `Gaussian`, then through tanh and stretched to the box.
    Squashed {
        /// Logarithms of the deviations before tanh, `[width]`.
        log_std: Vec<f32>,
        /// The box of actions.
        bounds: ActionBox,
    },
    /// Outputs are the values of `n` choices, of which the greatest is taken.
    Values {
        /// Number of choices.
        n: usize,
    },
    /// Outputs pass through tanh and are stretched to the box.
    Deterministic {
        /// The box of actions.
        bounds: ActionBox,
    },
}

const NO_DISTRIBUTION: &str = "values and deterministic actions are no distribution; learners refuse such settings";

/// The chosen actions of some rows: indices `[rows]` or vectors `[rows, width]`, the other one empty.
#[derive(Debug, Clone, Copy)]
pub struct ActionRows<'a> {
    /// `[rows]`.
    pub indices: &'a [u32],
    /// `[rows, width]`.
    pub vectors: &'a [f32],
}

/// Log-probabilities and entropies of some rows, and what their gradients need.
#[derive(Debug, Default)]
pub struct Evaluation {
    /// `[rows]`.
    pub log_prob: Vec<f32>,
    /// `[rows]`.
    pub entropy: Vec<f32>,
    categorical: CategoricalWork,
    gaussian: GaussianWork,
    squashed: SquashedWork,
    pre: Vec<f32>,
    d_log_prob: Vec<f32>,
    d_action: Vec<f32>,
}

impl PolicyHead {
    /// The head for an action space. `squashed` matters for boxes only.
    ///
    /// # Errors
    /// [`AgentError::Config`] if a squashed policy meets an unbounded box, or if actions are texts.
    pub fn new(space: &Space, squashed: bool, initial_log_std: f32) -> Result<Self, AgentError> {
        match space {
            Space::Discrete { n } => Ok(Self::Categorical { n: *n }),
            Space::Box { low, high } if squashed => {
                Ok(Self::Squashed { log_std: vec![initial_log_std; low.len()], bounds: ActionBox::new(low, high)? })
            }
            Space::Box { low, .. } => Ok(Self::Gaussian { log_std: vec![initial_log_std; low.len()] }),
            Space::Tokens { .. } => Err(AgentError::Config {
                field: "agent".to_string(),
                expected: "a learner of language models (`rloo`, `grpo`, `text_ppo`) for worlds of text".to_string(),
                got: format!("one for indices and vectors, with actions {space}"),
            }),
        }
    }

    /// Network outputs per row, and numbers per continuous action.
    pub fn width(&self) -> usize {
        match self {
            Self::Categorical { n } | Self::Values { n } => *n,
            Self::Gaussian { log_std } | Self::Squashed { log_std, .. } => log_std.len(),
            Self::Deterministic { bounds } => bounds.len(),
        }
    }

    /// How far apart two outputs are, where nothing else is asked for.
    pub fn natural_distance(&self) -> Distance {
        if self.has_distribution() { Distance::Kl } else { Distance::L2 }
    }

    /// Whether outputs stand for a distribution over actions.
    pub fn has_distribution(&self) -> bool {
        !matches!(self, Self::Values { .. } | Self::Deterministic { .. })
    }

    /// Logarithms of the deviations; empty if there are none.
    pub fn log_std(&self) -> &[f32] {
        match self {
            Self::Categorical { .. } | Self::Values { .. } | Self::Deterministic { .. } => &[],
            Self::Gaussian { log_std } | Self::Squashed { log_std, .. } => log_std,
        }
    }

    /// The same, to be trained.
    pub fn log_std_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Categorical { .. } | Self::Values { .. } | Self::Deterministic { .. } => &mut [],
            Self::Gaussian { log_std } | Self::Squashed { log_std, .. } => log_std,
        }
    }

    /// Chooses the index of one row; returns it with its log-probability, which has the bits of
    /// [`PolicyHead::evaluate`].
    ///
    /// # Panics
    /// If the head is no distribution over indices.
    pub fn choose_index(&self, outputs: &[f32], row: usize, mode: ActMode, rng: &mut Rng) -> (u32, f32) {
        let Self::Categorical { n } = self else { panic!("this head draws no indices") };
        let logits = &outputs[row * n..(row + 1) * n];
        match mode {
            ActMode::Sample => categorical::sample(logits, rng),
            ActMode::Greedy => categorical::greedy(logits),
        }
    }

    /// Chooses the action vector of one row. `room` is overwritten.
    ///
    /// # Panics
    /// If the head is no distribution over vectors.
    pub fn choose_vector(&self, outputs: &[f32], row: usize, mode: ActMode, rng: &mut Rng, action: &mut [f32], room: &mut Evaluation) {
        let width = self.width();
        let mean = &outputs[row * width..(row + 1) * width];
        match self {
            Self::Categorical { .. } | Self::Values { .. } | Self::Deterministic { .. } => panic!("this head draws no vectors"),
            Self::Gaussian { log_std } => match mode {
                ActMode::Sample => gaussian::sample(mean, log_std, rng, action),
                ActMode::Greedy => gaussian::greedy(mean, log_std, action),
            },
            Self::Squashed { log_std, bounds } => {
                room.pre.resize(width, 0.0);
                let (pre, work) = (&mut room.pre[..width], &mut room.squashed);
                match mode {
                    ActMode::Sample => squashed_gaussian::sample(mean, log_std, bounds, rng, pre, action, work),
                    ActMode::Greedy => squashed_gaussian::greedy(mean, log_std, bounds, pre, action, work),
                }
            }
        };
    }

    /// Log-probabilities of the chosen actions and entropies, into `out`. The entropy of a squashed policy is its
    /// one-sample estimate, the negative log-probability.
    ///
    /// # Panics
    /// If the head stands for no distribution.
    pub fn evaluate(&self, outputs: &[f32], rows: usize, chosen: ActionRows<'_>, out: &mut Evaluation) {
        out.log_prob.resize(rows, 0.0);
        out.entropy.resize(rows, 0.0);
        match self {
            Self::Categorical { n } => {
                categorical::evaluate(outputs, rows, *n, chosen.indices, &mut out.log_prob, &mut out.entropy, &mut out.categorical);
            }
            Self::Gaussian { log_std } => {
                gaussian::evaluate(outputs, log_std, rows, chosen.vectors, &mut out.log_prob, &mut out.entropy, &mut out.gaussian);
            }
            Self::Squashed { log_std, bounds } => {
                out.pre.resize(rows * bounds.len(), 0.0);
                squashed_gaussian::inverse(bounds, chosen.vectors, &mut out.pre);
                squashed_gaussian::evaluate(outputs, log_std, bounds, rows, &out.pre, &mut out.log_prob, &mut out.squashed);
                out.entropy.iter_mut().zip(&out.log_prob).for_each(|(e, l)| *e = -l);
            }
            Self::Values { .. } | Self::Deterministic { .. } => panic!("{NO_DISTRIBUTION}"),
        }
    }

    /// Adds the gradient of `Σ d_log_prob · log_prob + d_entropy · entropy` of the last [`PolicyHead::evaluate`] to
    /// `d_outputs` and `d_log_std`.
    ///
    /// # Panics
    /// If the head stands for no distribution.
    pub fn backward(
        &self,
        chosen: ActionRows<'_>,
        evaluation: &mut Evaluation,
        d_log_prob: &[f32],
        d_entropy: &[f32],
        d_outputs: &mut [f32],
        d_log_std: &mut [f32],
    ) {
        match self {
            Self::Categorical { .. } => categorical::backward(&evaluation.categorical, chosen.indices, d_log_prob, d_entropy, d_outputs),
            Self::Gaussian { .. } => gaussian::backward(&evaluation.gaussian, d_log_prob, d_entropy, d_outputs, d_log_std),
            Self::Squashed { bounds, .. } => {
                squashed_gaussian::backward(&evaluation.squashed, d_log_prob, d_outputs, d_log_std);
                // The entropy estimate follows its sample: with the action held fixed its gradient would be 0 on average.
                evaluation.d_log_prob.clear();
                evaluation.d_log_prob.extend(d_entropy.iter().map(|e| -e));
                evaluation.d_action.clear();
                evaluation.d_action.resize(d_outputs.len(), 0.0);
                squashed_gaussian::backward_reparameterized(
                    &evaluation.squashed,
                    bounds,
                    &evaluation.d_log_prob,
                    &evaluation.d_action,
                    d_outputs,
                    d_log_std,
                );
            }
            Self::Values { .. } | Self::Deterministic { .. } => panic!("{NO_DISTRIBUTION}"),
        }
    }

    /// How the derivatives of the distance of each row, as [`PolicyHead::divergence`] has them, change when the perturbed outputs move
    /// along `change` `[rows, output]`.
    ///
    /// # Panics
    /// As [`PolicyHead::divergence`].
    pub fn divergence_tangent(
        &self,
        distance: Distance,
        perturbed: &[f32],
        clean: &[f32],
        change: &[f32],
        rows: usize,
        out: &mut DivergenceTangent,
    ) {
        let width = self.width();
        for room in [&mut out.d_perturbed, &mut out.d_perturbed_change, &mut out.d_clean_change] {
            room.resize(rows * width, 0.0);
        }
        out.d_log_std_change.clear();
        out.d_log_std_change.resize(self.log_std().len(), 0.0);
        let DivergenceTangent { d_perturbed, d_perturbed_change, d_clean_change, d_log_std_change } = out;
        match (distance, self) {
            (Distance::Kl, Self::Categorical { n }) => {
                categorical::kl_tangent(perturbed, clean, change, rows, *n, d_perturbed, d_perturbed_change, d_clean_change);
            }
            (Distance::Kl, Self::Values { .. } | Self::Deterministic { .. }) => panic!("{NO_DISTRIBUTION}"),
            // Both are Σ precision/2 (perturbed - clean)² but for a constant.
            _ => {
                let has_deviations = distance == Distance::Kl;
                for column in 0..width {
                    let precision = if has_deviations { (-2.0 * self.log_std()[column]).exp() } else { 2.0 };
                    let mut sum = 0.0;
                    for i in (column..rows * width).step_by(width) {
                        let difference = perturbed[i] - clean[i];
                        d_perturbed[i] = precision * difference;
                        d_perturbed_change[i] = precision * change[i];
                        d_clean_change[i] = -precision * change[i];
                        sum += difference * change[i];
                    }
                    if has_deviations {
                        d_log_std_change[column] = -2.0 * precision * sum;
                    }
                }
            }
        }
    }

    /// Distance of `perturbed` from `clean` outputs per row, into `value`; adds the gradient of `weight · Σ value`.
    ///
    /// Deviations do not depend on the observation, so both distributions share them; squashing does not change the
    /// divergence, because it is one and the same invertible map for both.
    ///
    /// # Panics
    /// If a divergence is asked for and the head stands for no distribution.
    pub fn divergence(
        &self,
        distance: Distance,
        perturbed: &[f32],
        clean: &[f32],
        rows: usize,
        weight: f32,
        value: &mut [f32],
        d_perturbed: Option<&mut [f32]>,
        d_clean: Option<&mut [f32]>,
        d_log_std: Option<&mut [f32]>,
    ) {
        match (distance, self) {
            (Distance::L2, _) => squared_l2(perturbed, clean, rows, self.width(), value, weight, d_perturbed, d_clean),
            (Distance::Kl, Self::Categorical { n }) => categorical::kl(perturbed, clean, rows, *n, value, weight, d_perturbed, d_clean),
            (Distance::Kl, Self::Gaussian { log_std } | Self::Squashed { log_std, .. }) => {
                // The derivative with respect to the shared deviation is the sum of those of its two roles.
                let gradients = KlGradients { mean_p: d_perturbed, log_std_p: None, mean_q: d_clean, log_std_q: None };
                gaussian::kl(perturbed, log_std, clean, log_std, rows, value, weight, gradients);
                if let Some(d_log_std) = d_log_std {
                    shared_std_gradient(perturbed, clean, log_std, weight, d_log_std);
                }
            }
            (Distance::Kl, Self::Values { .. } | Self::Deterministic { .. }) => panic!("{NO_DISTRIBUTION}"),
        }
    }
}

/// What [`PolicyHead::divergence_tangent`] finds, each `[rows, output]` but the last.
#[derive(Debug, Default, Clone)]
pub struct DivergenceTangent {
    /// Derivatives of the distances with respect to the perturbed outputs.
    pub d_perturbed: Vec<f32>,
    /// Their changes.
    pub d_perturbed_change: Vec<f32>,
    /// Changes of the derivatives with respect to the clean outputs.
    pub d_clean_change: Vec<f32>,
    /// The change of the derivative of the sum of the distances with respect to the logarithms of the deviations.
    pub d_log_std_change: Vec<f32>,
}

/// Adds the derivative of `weight Σ ½ ((m′ᵢ − mᵢ) / σ)²` with respect to `ln σ`.
fn shared_std_gradient(perturbed: &[f32], clean: &[f32], log_std: &[f32], weight: f32, d_log_std: &mut [f32]) {
    let width = log_std.len();
    for (p, q) in perturbed.chunks_exact(width).zip(clean.chunks_exact(width)) {
        for ((d, l), (a, b)) in d_log_std.iter_mut().zip(log_std).zip(p.iter().zip(q)) {
            let z = (a - b) * (-l).exp();
            *d -= weight * z * z;
        }
    }
}

#[cfg(test)]
mod tests {
    use steadfast_envs::Rng;

    use super::*;

    #[test]
    fn divergence_tangents_match_central_differences() {
        let mut rng = Rng::from_seed(4);
        let rows = 21;
        let log_std = vec![-0.5, 0.3, 0.0];
        let bounds = ActionBox::new(&[-1.0; 3], &[1.0; 3]).unwrap();
        let heads = [
            (PolicyHead::Categorical { n: 3 }, Distance::Kl),
            (PolicyHead::Categorical { n: 3 }, Distance::L2),
            (PolicyHead::Gaussian { log_std: log_std.clone() }, Distance::Kl),
            (PolicyHead::Squashed { log_std, bounds }, Distance::Kl),
            (PolicyHead::Values { n: 3 }, Distance::L2),
        ];
        for (head, distance) in heads {
            let mut noise = || (0..3 * rows).map(|_| rng.normal_f32()).collect::<Vec<f32>>();
            let (perturbed, clean, change) = (noise(), noise(), noise());
            let mut found = DivergenceTangent::default();
            head.divergence_tangent(distance, &perturbed, &clean, &change, rows, &mut found);
            // The first-order gradients a little further and a little back.
            let h = 3e-3;
            let at = |sign: f32| {
                let moved: Vec<f32> = perturbed.iter().zip(&change).map(|(p, c)| p + sign * h * c).collect();
                let (mut value, mut d_p, mut d_q) = (vec![0.0; rows], vec![0.0; 3 * rows], vec![0.0; 3 * rows]);
                let mut d_std = vec![0.0; head.log_std().len()];
                head.divergence(distance, &moved, &clean, rows, 1.0, &mut value, Some(&mut d_p), Some(&mut d_q), Some(&mut d_std));
                (d_p, d_q, d_std)
            };
            let ((up_p, up_q, up_std), (down_p, down_q, down_std)) = (at(1.0), at(-1.0));
            for (found, up, down) in [
                (&found.d_perturbed_change, up_p, down_p),
                (&found.d_clean_change, up_q, down_q),
                (&found.d_log_std_change, up_std, down_std),
            ] {
                assert_eq!(found.len(), up.len());
                for (f, (u, d)) in found.iter().zip(up.iter().zip(&down)) {
                    let expected = (u - d) / (2.0 * h);
                    assert!((f - expected).abs() < 2e-3 * expected.abs().max(1.0), "{head:?} {distance:?}: {f} {expected}");
                }
            }
            let exact = at(0.0).0;
            assert!(found.d_perturbed.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-6 * b.abs().max(1.0)), "{head:?} {distance:?}");
        }
    }
}
