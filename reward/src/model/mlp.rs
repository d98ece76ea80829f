//! Reward networks for segments of control tasks.
//!
//! The reward of a step is a perceptron's output, that of a segment the sum of its steps',
//!
//! ```text
//! r(z) = Σₜ discountᵗ · r(sₜ, aₜ)        t = 1 for the segment's first step
//! ```
//!
//! An ensemble's reward is the mean of its members'. Each member has its own initial weights; all see the same batches and
//! each follows the loss of its own margins.
//!
//! Sources: the sum is that of Bukharin et al. 2024 (arXiv 2406.15568), the bounded output and the ensemble are those of
//! PEBBLE and B-Pref (Lee et al. 2021, arXiv 2111.03026). Optimiser: Adam with ε = 1e-8.

use serde::{Deserialize, Serialize};
use steadfast_agents::nn::{Activation, Adam, AdamConfig, AdamState, Mlp, Trace, Workspace, clip_scale, squared_norm};
use steadfast_agents::{AgentError, Array, StateDict};
use steadfast_envs::SeedTree;

use super::segment_input::{ActionKind, Encoder, SegmentSpec};
use super::{BatchLoss, RewardModel};
use crate::error::{Result, RewardError, require};
use crate::margin::LossValue;
use crate::preference::{Segment, SegmentPair};

/// Gain of the output layer: small, so that no pair has a large margin before training.
const OUTPUT_GAIN: f32 = 0.1;
/// Adam's ε. Gradients of preference losses are small once most pairs are fitted; a larger ε would slow the rest down.
const ADAM_EPSILON: f32 = 1e-8;
/// Widest hidden layer, and most of them.
const MAX_WIDTH: usize = 8192;
const MAX_LAYERS: usize = 16;

/// What the reward of a step may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardInputs {
    /// The observation before the step and the action.
    ObservationAction,
    /// The observation alone.
    Observation,
}

/// Settings of [`MlpReward`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MlpRewardConfig {
    /// Widths of the hidden layers, 1 to 8192 each, at most 16. None makes the reward linear.
    pub hidden: Vec<usize>,
    /// Activation of the hidden layers: `tanh`, `relu`, `leaky_relu` or `identity` (none: the reward stays linear).
    pub activation: Activation,
    /// Number of networks whose mean is the reward, 1 to 64.
    pub ensemble: usize,
    /// What the reward depends on: `observation_action` or `observation`.
    pub inputs: RewardInputs,
    /// Whether inputs are normalised by their mean and deviation over the training segments.
    pub normalize_inputs: bool,
    /// Whether rewards are limited to -1 to 1 by a tanh.
    pub bounded_output: bool,
    /// Discount per step within a segment, above 0 and at most 1.
    pub discount: f64,
    /// Decoupled weight decay, at least 0.
    pub weight_decay: f64,
    /// Largest norm of a network's gradient, above 0; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_gradient_norm: Option<f64>,
}

impl Default for MlpRewardConfig {
    fn default() -> Self {
        Self {
            hidden: vec![64, 64],
            activation: Activation::Relu,
            ensemble: 1,
            inputs: RewardInputs::ObservationAction,
            normalize_inputs: true,
            bounded_output: false,
            discount: 1.0,
            weight_decay: 0.0,
            max_gradient_norm: None,
        }
    }
}

impl MlpRewardConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`RewardError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        if let Some(width) = self.hidden.iter().find(|w| !(1..=MAX_WIDTH).contains(*w)) {
            require(false, "hidden", &format!("widths between 1 and {MAX_WIDTH}"), width)?;
        }
        require(self.hidden.len() <= MAX_LAYERS, "hidden", &format!("at most {MAX_LAYERS} widths"), self.hidden.len())?;
        require((1..=64).contains(&self.ensemble), "ensemble", "between 1 and 64", self.ensemble)?;
        require(self.discount > 0.0 && self.discount <= 1.0, "discount", "above 0 and at most 1", self.discount)?;
        let decay = self.weight_decay;
        require(decay >= 0.0 && decay.is_finite(), "weight_decay", "a finite number of at least 0", decay)?;
        if let Some(norm) = self.max_gradient_norm {
            require(norm > 0.0 && norm.is_finite(), "max_gradient_norm", "a finite number above 0", norm)?;
        }
        Ok(())
    }
}

/// One network of the ensemble.
#[derive(Debug, Clone)]
struct Member {
    net: Mlp,
    adam: Adam,
}

/// Memory of the computations; grows when needed, then stays.
#[derive(Debug, Clone, Default)]
struct Work {
    /// `[row, feature]`: the steps of all segments, one segment after the other.
    rows: Vec<f32>,
    /// Steps of each segment.
    lengths: Vec<usize>,
    /// `[row]`: rewards of one member.
    rewards: Vec<f32>,
    /// `[segment]`, over the members.
    returns: Vec<f64>,
    margins: Vec<f32>,
    losses: Vec<LossValue>,
    /// `[row]`: derivatives of the mean loss by the outputs.
    d_output: Vec<f32>,
    gradient: Vec<f32>,
    trace: Trace,
    forward: Workspace,
}

/// A reward network, or an ensemble of them, over segments.
#[derive(Debug, Clone)]
pub struct MlpReward {
    config: MlpRewardConfig,
    encoder: Encoder,
    members: Vec<Member>,
    n_steps: u64,
    work: Work,
}

impl MlpReward {
    /// An untrained model for steps of the shape `spec`; member `k` draws its weights from a branch of `seeds`.
    ///
    /// # Errors
    /// [`RewardError::Config`] if a setting is out of its range; [`RewardError::Data`] if a step has no features.
    pub fn new(config: &MlpRewardConfig, spec: SegmentSpec, seeds: SeedTree) -> Result<Self> {
        config.validate()?;
        let uses_actions = config.inputs == RewardInputs::ObservationAction;
        let encoder = Encoder::new(spec, uses_actions, config.normalize_inputs);
        if encoder.width() == 0 || matches!(spec.action, ActionKind::Discrete { n: 0 }) {
            return Err(RewardError::Data("a reward model needs steps of at least one number and one action".to_string()));
        }
        let members = members(config, encoder.width(), seeds.seed())?;
        Ok(Self { config: config.clone(), encoder, members, n_steps: 0, work: Work::default() })
    }

    /// The shape of the steps that the model takes.
    pub fn spec(&self) -> SegmentSpec {
        self.encoder.spec()
    }

    /// Rewards of steps, one for each element of `out`: the mean over the ensemble. `observations` and `actions` are laid
    /// out as in a [`Segment`].
    ///
    /// # Errors
    /// [`RewardError::Data`] if an array has another length than its shape needs, or an index is none.
    pub fn rewards(&mut self, observations: &[f32], actions: &[f32], out: &mut [f32]) -> Result<()> {
        self.encode_steps(observations, actions, out.len())?;
        out.fill(0.0);
        let Self { members, work, config, .. } = self;
        let share = 1.0 / members.len() as f32;
        for member in members {
            member.rewards(config.bounded_output, work);
            out.iter_mut().zip(&work.rewards).for_each(|(sum, reward)| *sum += share * reward);
        }
        Ok(())
    }

    /// The segment's reward: the discounted sum over its steps.
    ///
    /// # Errors
    /// [`RewardError::Data`] if the segment does not fit the model.
    pub fn segment_reward(&mut self, segment: &Segment) -> Result<f64> {
        self.spec().check(segment).map_err(RewardError::Data)?;
        self.encode(std::iter::once(segment));
        self.segment_rewards();
        Ok(self.work.returns[0])
    }

    fn encode_steps(&mut self, observations: &[f32], actions: &[f32], steps: usize) -> Result<()> {
        self.spec().check_shape(steps, observations, actions).map_err(RewardError::Data)?;
        self.work.rows.clear();
        self.encoder.append(observations, actions, steps, &mut self.work.rows);
        Ok(())
    }

    /// The rows of all segments.
    fn encode<'a>(&mut self, segments: impl Iterator<Item = &'a Segment>) {
        self.work.rows.clear();
        self.work.lengths.clear();
        for segment in segments {
            self.encoder.append(&segment.observations, &segment.actions, segment.steps, &mut self.work.rows);
            self.work.lengths.push(segment.steps);
        }
    }

    /// The chosen segments, then the rejected ones.
    fn encode_pairs(&mut self, pairs: &[&SegmentPair]) -> Result<()> {
        let spec = self.spec();
        for (index, pair) in pairs.iter().enumerate() {
            for (which, segment) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
                // The numbers themselves are checked once, before fitting; the shapes must fit here or rows get mixed up.
                spec.check_shape(segment.steps, &segment.observations, &segment.actions)
                    .map_err(|reason| RewardError::Data(format!("pair {index} of the batch: {which} segment: {reason}")))?;
            }
        }
        self.encode(pairs.iter().map(|p| &p.chosen).chain(pairs.iter().map(|p| &p.rejected)));
        Ok(())
    }

    /// Mean over the ensemble of the rewards of the encoded segments, into `work.returns`.
    fn segment_rewards(&mut self) {
        let Self { members, work, config, .. } = self;
        let share = 1.0 / members.len() as f64;
        work.returns.clear();
        work.returns.resize(work.lengths.len(), 0.0);
        for member in members {
            member.rewards(config.bounded_output, work);
            let mut first = 0;
            for (total, &steps) in work.returns.iter_mut().zip(&work.lengths) {
                *total += share * discounted_sum(&work.rewards[first..first + steps], config.discount);
                first += steps;
            }
        }
    }
}

impl Member {
    /// Rewards of the encoded rows.
    fn rewards(&self, is_bounded: bool, work: &mut Work) {
        let rows = work.rows.len() / self.net.input();
        work.rewards.resize(rows, 0.0);
        self.net.forward(&work.rows, rows, &mut work.rewards, &mut work.forward);
        if is_bounded {
            work.rewards.iter_mut().for_each(|r| *r = r.tanh());
        }
    }
}

fn members(config: &MlpRewardConfig, width: usize, seed: u64) -> Result<Vec<Member>, AgentError> {
    let gain = match config.activation {
        Activation::Tanh => 5.0 / 3.0,
        Activation::Relu | Activation::LeakyRelu => std::f32::consts::SQRT_2,
        Activation::Identity => 1.0,
    };
    let adam = AdamConfig { epsilon: ADAM_EPSILON, weight_decay: config.weight_decay as f32, ..AdamConfig::default() };
    (0..config.ensemble as u64)
        .map(|index| {
            let mut rng = SeedTree::new(seed).child("member").index(index).rng();
            let net = Mlp::new(width, &config.hidden, 1, config.activation, gain, OUTPUT_GAIN, &mut rng)?;
            let adam = Adam::new(net.n_parameters(), adam);
            Ok(Member { net, adam })
        })
        .collect()
}

/// `Σ discountᵗ rₜ` with t = 1 for the first.
fn discounted_sum(rewards: &[f32], discount: f64) -> f64 {
    let mut weight = 1.0;
    rewards
        .iter()
        .map(|&reward| {
            weight *= discount;
            weight * f64::from(reward)
        })
        .sum()
}

impl RewardModel<SegmentPair> for MlpReward {
    fn check(&self, pair: &SegmentPair) -> Result<(), String> {
        self.spec().check_pair(pair)
    }

    /// Takes the scales of inputs from the steps of all pairs: a segment counts as often as it occurs.
    fn prepare(&mut self, pairs: &[&SegmentPair]) -> Result<()> {
        self.encoder.fit_scales(pairs.iter().flat_map(|p| [&p.chosen, &p.rejected]));
        Ok(())
    }

    fn margins(&mut self, pairs: &[&SegmentPair], out: &mut [f32]) -> Result<()> {
        assert_eq!(pairs.len(), out.len(), "margins of other pairs");
        self.encode_pairs(pairs)?;
        self.segment_rewards();
        let (chosen, rejected) = self.work.returns.split_at(pairs.len());
        out.iter_mut().zip(chosen.iter().zip(rejected)).for_each(|(d, (c, r))| *d = (c - r) as f32);
        Ok(())
    }

    fn step(&mut self, pairs: &[&SegmentPair], loss: &mut BatchLoss<'_>, learning_rate: f32) -> Result<()> {
        self.encode_pairs(pairs)?;
        self.n_steps += 1;
        let Self { config, members, work, .. } = self;
        let Work { rows, lengths, rewards, returns, margins, losses, d_output, gradient, trace, .. } = work;
        let n = pairs.len();
        for (index, member) in members.iter_mut().enumerate() {
            let n_rows = rows.len() / member.net.input();
            member.net.forward_train(rows, n_rows, trace);
            rewards.clear();
            rewards.extend_from_slice(trace.output());
            if config.bounded_output {
                rewards.iter_mut().for_each(|r| *r = r.tanh());
            }
            returns.clear();
            let mut first = 0;
            for &steps in &*lengths {
                returns.push(discounted_sum(&rewards[first..first + steps], config.discount));
                first += steps;
            }
            margins.clear();
            margins.extend((0..n).map(|i| (returns[i] - returns[n + i]) as f32));
            losses.clear();
            losses.resize(n, LossValue::default());
            loss(margins, losses);

            d_output.clear();
            for (segment, &steps) in lengths.iter().enumerate() {
                let slope = f64::from(losses[segment % n].slope) / n as f64;
                let mut weight = if segment < n { slope } else { -slope };
                for _ in 0..steps {
                    weight *= config.discount;
                    d_output.push(weight as f32);
                }
            }
            if config.bounded_output {
                d_output.iter_mut().zip(&*rewards).for_each(|(d, r)| *d *= 1.0 - r * r);
            }
            gradient.clear();
            gradient.resize(member.net.n_parameters(), 0.0);
            member.net.backward(trace, d_output, Some(gradient), None);
            let norm = squared_norm(gradient).sqrt();
            if !norm.is_finite() {
                let position = gradient.iter().position(|g| !g.is_finite()).unwrap_or(0);
                let tensor = format!("reward gradient of member {index}");
                return Err(AgentError::NonFinite { tensor, value: gradient[position], update: self.n_steps, position }.into());
            }
            let scale = config.max_gradient_norm.map_or(1.0, |max| clip_scale(norm, max as f32));
            member.adam.step(member.net.parameters_mut(), gradient, learning_rate, scale);
        }
        Ok(())
    }

    fn reset(&mut self, seed: u64) {
        self.members = members(&self.config, self.encoder.width(), seed).expect("the same widths as before");
        self.encoder.reset();
        self.n_steps = 0;
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::default();
        for (index, member) in self.members.iter().enumerate() {
            for tensor in member.net.tensors() {
                state.put_f32(format!("members.{index}.{}", tensor.name), &tensor.shape, &tensor.data);
            }
            let AdamState { n_steps, mean, square } = member.adam.state();
            state.put_f32(format!("members.{index}.adam.mean"), &[mean.len()], mean);
            state.put_f32(format!("members.{index}.adam.square"), &[square.len()], square);
            state.put_u64(format!("members.{index}.adam.steps"), &[n_steps]);
        }
        state.put_u64("steps", &[self.n_steps]);
        self.encoder.save(&mut state);
        state
    }

    fn load_state(&mut self, state: &StateDict) -> Result<()> {
        for (index, member) in self.members.iter_mut().enumerate() {
            member.net.load_tensors(&|tensor| match state.arrays.get(&format!("members.{index}.{tensor}")) {
                Some(Array::F32(shape, data)) => Some((shape.clone(), data.clone())),
                _ => None,
            })?;
            let n = member.net.n_parameters();
            let mean = state.f32(&format!("members.{index}.adam.mean"), n)?;
            let square = state.f32(&format!("members.{index}.adam.square"), n)?;
            let n_steps = state.counter(&format!("members.{index}.adam.steps"))?;
            member.adam.load_state(AdamState { n_steps, mean, square })?;
        }
        self.n_steps = state.counter("steps")?;
        self.encoder.load(state)?;
        Ok(())
    }
}
