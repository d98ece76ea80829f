//! What the outputs of a policy network mean: a distribution over actions.

use steadfast_envs::{ActMode, Rng, Space};

use crate::AgentError;
use crate::nn::categorical::{self, CategoricalWork};
use crate::nn::{gaussian, squashed, squared_l2};

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
        /// Lower limits of actions, `[width]`.
        low: Vec<f32>,
        /// Upper limits of actions, `[width]`.
        high: Vec<f32>,
    },
}

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
}

impl PolicyHead {
    /// The head for an action space. `squashed` matters for boxes only.
    ///
    /// # Errors
    /// [`AgentError::Config`] if a squashed policy meets an unbounded box.
    pub fn new(space: &Space, squashed: bool, initial_log_std: f32) -> Result<Self, AgentError> {
        match space {
            Space::Discrete { n } => Ok(Self::Categorical { n: *n }),
            Space::Box { low, high } if squashed => {
                if low.iter().chain(high).any(|v| !v.is_finite()) {
                    return Err(AgentError::Config {
                        field: "continuous_policy".into(),
                        expected: "\"gaussian\": the action space is unbounded".to_string(),
                        got: "\"squashed_gaussian\"".to_string(),
                    });
                }
                Ok(Self::Squashed { log_std: vec![initial_log_std; low.len()], low: low.clone(), high: high.clone() })
            }
            Space::Box { low, .. } => Ok(Self::Gaussian { log_std: vec![initial_log_std; low.len()] }),
        }
    }

    /// Network outputs per row, and numbers per continuous action.
    pub fn width(&self) -> usize {
        match self {
            Self::Categorical { n } => *n,
            Self::Gaussian { log_std } | Self::Squashed { log_std, .. } => log_std.len(),
        }
    }

    /// Logarithms of the deviations; empty for categorical policies.
    pub fn log_std(&self) -> &[f32] {
        match self {
            Self::Categorical { .. } => &[],
            Self::Gaussian { log_std } | Self::Squashed { log_std, .. } => log_std,
        }
    }

    /// The same, to be trained.
    pub fn log_std_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Categorical { .. } => &mut [],
            Self::Gaussian { log_std } | Self::Squashed { log_std, .. } => log_std,
        }
    }

    /// Chooses the index of one row.
    ///
    /// # Panics
    /// If the actions are continuous.
    pub fn choose_index(&self, outputs: &[f32], row: usize, mode: ActMode, rng: &mut Rng) -> u32 {
        let Self::Categorical { n } = self else { panic!("a continuous head chooses vectors") };
        let logits = &outputs[row * n..(row + 1) * n];
        match mode {
            ActMode::Sample => categorical::sample(logits, rng).0,
            ActMode::Greedy => categorical::greedy(logits).0,
        }
    }

    /// Chooses the action vector of one row.
    ///
    /// # Panics
    /// If the actions are discrete.
    pub fn choose_vector(&self, outputs: &[f32], row: usize, mode: ActMode, rng: &mut Rng, action: &mut [f32]) {
        let width = self.width();
        let mean = &outputs[row * width..(row + 1) * width];
        match (self, mode) {
            (Self::Categorical { .. }, _) => panic!("a discrete head chooses indices"),
            (Self::Gaussian { log_std }, ActMode::Sample) => gaussian::sample(mean, log_std, rng, action),
            (Self::Gaussian { .. }, ActMode::Greedy) => action.copy_from_slice(mean),
            (Self::Squashed { log_std, low, high }, ActMode::Sample) => squashed::sample(mean, log_std, low, high, rng, action),
            (Self::Squashed { low, high, .. }, ActMode::Greedy) => squashed::mode(mean, low, high, action),
        }
    }

    /// Log-probabilities of the chosen actions and entropies, into `out`.
    pub fn evaluate(&self, outputs: &[f32], rows: usize, chosen: ActionRows<'_>, out: &mut Evaluation) {
        out.log_prob.resize(rows, 0.0);
        out.entropy.resize(rows, 0.0);
        let Evaluation { log_prob, entropy, categorical } = out;
        match self {
            Self::Categorical { n } => categorical::evaluate(outputs, rows, *n, chosen.indices, log_prob, entropy, categorical),
            Self::Gaussian { log_std } => gaussian::evaluate(outputs, log_std, rows, chosen.vectors, log_prob, entropy),
            Self::Squashed { log_std, low, high } => squashed::evaluate(outputs, log_std, low, high, rows, chosen.vectors, log_prob, entropy),
        }
    }

    /// Adds the gradient of `Σ d_log_prob · log_prob + d_entropy · entropy` to `d_outputs` and `d_log_std`.
    pub fn backward(
        &self,
        outputs: &[f32],
        chosen: ActionRows<'_>,
        evaluation: &Evaluation,
        d_log_prob: &[f32],
        d_entropy: &[f32],
        d_outputs: &mut [f32],
        d_log_std: &mut [f32],
    ) {
        match self {
            Self::Categorical { .. } => categorical::backward(&evaluation.categorical, chosen.indices, d_log_prob, d_entropy, d_outputs),
            Self::Gaussian { log_std } => {
                gaussian::backward(outputs, log_std, d_log_prob.len(), chosen.vectors, d_log_prob, d_entropy, d_outputs, d_log_std);
            }
            Self::Squashed { log_std, low, high } => {
                squashed::backward(outputs, log_std, low, high, d_log_prob.len(), chosen.vectors, d_log_prob, d_entropy, d_outputs, d_log_std);
            }
        }
    }

    /// Distance of `perturbed` from `clean` outputs per row, into `value`; adds the gradient of `weight · Σ value`.
    ///
    /// Deviations do not depend on the observation, so both distributions share them; squashing does not change the
    /// divergence, because it is one and the same invertible map for both.
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
                gaussian::kl_shared_std(perturbed, clean, log_std, rows, value, weight, d_perturbed, d_clean, d_log_std);
            }
        }
    }
}
