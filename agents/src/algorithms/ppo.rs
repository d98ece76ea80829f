//! Proximal policy optimisation for one agent or a team.
//!
//! Per sample (one agent at one time) with ratio `ρ = π(a|o) / π_old(a|o)` and advantage `A`:
//!
//! ```text
//! loss = − mean min( ρ A, clip(ρ, 1 ± clip_range) A )
//!        + value_coefficient · mean (V − R)²
//!        − entropy_coefficient · mean entropy
//!        + weight · mean penalty                         (if a regulariser is configured)
//! ```
//!
//! Advantages are generalised advantage estimates ([`crate::returns`]). With `critic = "local"` each agent's critic sees
//! what the agent sees (IPPO); with `critic = "central"` it sees the environment's global state (MAPPO).
//!
//! Sources: Schulman et al. 2017 (arXiv 1707.06347); Yu et al. 2022, "The Surprising Effectiveness of PPO in Cooperative
//! Multi-Agent Games" (arXiv 2103.01955); de Witt et al. 2020 (arXiv 2011.09533) for IPPO.
//!
//! Departures: observation statistics are updated after the passes over a rollout, so that the ratio is exactly 1 on the
//! first pass; with value clipping the larger of the clipped and the unclipped error counts, as in the original
//! implementation (Stable-Baselines3 uses the clipped one alone); the value loss carries no factor 1/2.
//!
//! Logged: `train/policy_loss`, `train/value_loss`, `train/entropy`, `train/approx_kl` (mean of `ρ − 1 − ln ρ`),
//! `train/clip_fraction`, `train/explained_variance` (of returns by values, before the update),
//! `train/gradient_norm` (before clipping), `train/learning_rate`, `train/epochs` (fewer than configured if `target_kl`
//! stopped them), `train/action_std` (continuous actions), and the regulariser's own.
//!
//! The file is long because it is read from top to bottom: settings, networks, acting, update.

use rayon::join;
use serde::{Deserialize, Serialize};
use steadfast_envs::{
    ActMode, ActionBatch, ActionsMut, EnvError, EnvSpec, ObservationBatch, Policy, Rng, RolloutBatch, SeedTree, SnapshotReader,
    SnapshotWriter,
};

use crate::AgentError;
use crate::head::{ActionRows, Evaluation, PolicyHead};
use crate::learner::{Array, Learner, Metrics, StateDict};
use crate::nn::{
    Activation, Adam, AdamConfig, AdamState, Mlp, ReturnScale, RunningNorm, RunningNormState, Trace, Workspace, clip_scale, exp_in_place,
    squared_norm,
};
use crate::regularizers::attack::{ObservationAttack, ObservationAttackConfig};
use crate::regularizers::bound::{Bracket, bracket};
use crate::regularizers::lipschitz::Scale;
use crate::regularizers::spectral::UpperBound;
use crate::regularizers::value_attack::ValueAttack;
use crate::regularizers::{Observed, PenaltyGradients, Regularizer, RegularizerConfig};
use crate::returns::{Trajectories, generalized_advantages};

/// Which agents use the same networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// One policy and one critic for all agents, who must have equal spaces.
    All,
    /// One policy and one critic per group of agents.
    Group,
    /// Each agent has its own.
    None,
}

/// What the critic sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Critic {
    /// The agent's own observation (IPPO, and single-agent PPO).
    Local,
    /// The environment's global state (MAPPO).
    Central,
}

/// Where advantages are brought to mean 0 and deviation 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageNormalization {
    /// Nowhere.
    None,
    /// In each minibatch.
    Minibatch,
    /// Over the whole rollout.
    Batch,
}

/// How the learning rate changes during the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls linearly to 0 at the last step.
    Linear,
}

/// How rewards are scaled before they are learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardScaling {
    /// Not at all.
    None,
    /// Divided by the running deviation of the discounted return.
    ReturnStd,
}

/// Which reward an agent of a team learns from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardSharing {
    /// Its own.
    Individual,
    /// The mean over the agents of its group in the environment, such as all adversaries.
    TeamMean,
}

/// The distribution of continuous actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContinuousPolicy {
    /// Gaussian with a learned deviation per coordinate; the environment gets the action clamped to its box.
    Gaussian,
    /// Gaussian passed through tanh and stretched to the box.
    SquashedGaussian,
}

/// Settings of PPO. The defaults are those of Stable-Baselines3 2.9 (`PPO("MlpPolicy")`), which follow Schulman et al.
/// 2017 (arXiv 1707.06347) and its later implementations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PpoConfig {
    /// Discount per step, 0 to 1.
    pub discount: f64,
    /// Decay of generalised advantage estimation, 0 to 1.
    pub gae_lambda: f64,
    /// Steps per slot in one rollout, 1 to 10,000,000.
    pub rollout_steps: usize,
    /// Times each rollout is passed over, at least 1.
    pub epochs: usize,
    /// Samples (one agent at one time) per gradient step, at least 1.
    pub minibatch_size: usize,
    /// Adam's learning rate for policies, above 0.
    pub learning_rate: f64,
    /// Adam's learning rate for critics, above 0; the policies' if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critic_learning_rate: Option<f64>,
    /// How the learning rates change: `constant` or `linear`.
    pub learning_rate_schedule: Schedule,
    /// Adam's epsilon, above 0.
    pub adam_epsilon: f64,
    /// The probability ratio is clipped to 1 ± this, above 0.
    pub clip_range: f64,
    /// Value predictions may move by this much per rollout, above 0; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_clip_range: Option<f64>,
    /// Weight of the entropy bonus, at least 0.
    pub entropy_coefficient: f64,
    /// Weight of the value loss, at least 0.
    pub value_coefficient: f64,
    /// Largest norm of the gradient of policy and critic together, above 0.
    pub max_gradient_norm: f64,
    /// Stop the passes over a rollout when the approximate KL divergence exceeds 1.5 × this, above 0; never if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_kl: Option<f64>,
    /// Where advantages are normalised: `none`, `minibatch` or `batch`.
    pub advantage_normalization: AdvantageNormalization,
    /// Whether observations are normalised by their running mean and deviation.
    pub normalize_observations: bool,
    /// How rewards are scaled: `none` or `return_std`.
    pub reward_scaling: RewardScaling,
    /// Which reward an agent learns from: `individual` or `team_mean`.
    pub reward_sharing: RewardSharing,
    /// What the critic sees: `local` (IPPO) or `central` (MAPPO).
    pub critic: Critic,
    /// Which agents use the same networks: `all`, `group` or `none`.
    pub sharing: Sharing,
    /// Whether a one-hot agent index is appended to the inputs of shared networks.
    pub agent_index: bool,
    /// Widths of the policy's hidden layers, 1 to 8192 each, at most 16.
    pub policy_hidden: Vec<usize>,
    /// Widths of the critic's hidden layers, 1 to 8192 each, at most 16.
    pub critic_hidden: Vec<usize>,
    /// Activation of the hidden layers: `tanh`, `relu` or `leaky_relu`.
    pub activation: Activation,
    /// Distribution of continuous actions: `gaussian` or `squashed_gaussian`.
    pub continuous_policy: ContinuousPolicy,
    /// Initial logarithm of the deviation of continuous actions.
    pub initial_log_std: f64,
}

impl Default for PpoConfig {
    fn default() -> Self {
        Self {
            discount: 0.99,
            gae_lambda: 0.95,
            rollout_steps: 2048,
            epochs: 10,
            minibatch_size: 64,
            learning_rate: 3e-4,
            critic_learning_rate: None,
            learning_rate_schedule: Schedule::Constant,
            adam_epsilon: 1e-5,
            clip_range: 0.2,
            value_clip_range: None,
            entropy_coefficient: 0.0,
            value_coefficient: 0.5,
            max_gradient_norm: 0.5,
            target_kl: None,
            advantage_normalization: AdvantageNormalization::Minibatch,
            normalize_observations: false,
            reward_scaling: RewardScaling::None,
            reward_sharing: RewardSharing::Individual,
            critic: Critic::Local,
            sharing: Sharing::Group,
            agent_index: false,
            policy_hidden: vec![64, 64],
            critic_hidden: vec![64, 64],
            activation: Activation::Tanh,
            continuous_policy: ContinuousPolicy::Gaussian,
            initial_log_std: 0.0,
        }
    }
}

impl PpoConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let fail =
            |field: &str, expected: &str, got: String| Err(AgentError::Config { field: field.into(), expected: expected.to_string(), got });
        let positive = |field: &'static str, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { fail(field, "a finite number above 0", value.to_string()) }
        };
        let not_negative = |field: &'static str, value: f64| {
            if value.is_finite() && value >= 0.0 { Ok(()) } else { fail(field, "a finite number of at least 0", value.to_string()) }
        };
        for (field, value) in [("discount", self.discount), ("gae_lambda", self.gae_lambda)] {
            if !(0.0..=1.0).contains(&value) {
                return fail(field, "between 0 and 1", value.to_string());
            }
        }
        for (field, value) in [("rollout_steps", self.rollout_steps), ("epochs", self.epochs), ("minibatch_size", self.minibatch_size)] {
            if value == 0 {
                return fail(field, "at least 1", value.to_string());
            }
        }
        if self.rollout_steps > MAX_ROLLOUT_STEPS {
            return fail("rollout_steps", &format!("at most {MAX_ROLLOUT_STEPS}"), self.rollout_steps.to_string());
        }
        positive("learning_rate", self.learning_rate)?;
        positive("adam_epsilon", self.adam_epsilon)?;
        positive("clip_range", self.clip_range)?;
        positive("max_gradient_norm", self.max_gradient_norm)?;
        for (field, value) in [
            ("critic_learning_rate", self.critic_learning_rate),
            ("value_clip_range", self.value_clip_range),
            ("target_kl", self.target_kl),
        ] {
            if let Some(value) = value {
                positive(field, value)?;
            }
        }
        not_negative("entropy_coefficient", self.entropy_coefficient)?;
        not_negative("value_coefficient", self.value_coefficient)?;
        if !self.initial_log_std.is_finite() || self.initial_log_std.abs() > 20.0 {
            return fail("initial_log_std", "between -20 and 20", self.initial_log_std.to_string());
        }
        for (field, widths) in [("policy_hidden", &self.policy_hidden), ("critic_hidden", &self.critic_hidden)] {
            if let Some(width) = widths.iter().find(|w| !(1..=MAX_WIDTH).contains(*w)) {
                return fail(field, &format!("widths between 1 and {MAX_WIDTH}"), width.to_string());
            }
            if widths.len() > MAX_LAYERS {
                return fail(field, &format!("at most {MAX_LAYERS} widths"), widths.len().to_string());
            }
        }
        Ok(())
    }
}

/// Longest rollout, in steps per slot.
const MAX_ROLLOUT_STEPS: usize = 10_000_000;
/// Widest hidden layer.
const MAX_WIDTH: usize = 8192;
/// Most hidden layers.
const MAX_LAYERS: usize = 16;
/// Normalised observations are clamped to this many deviations.
const OBSERVATION_CLIP: f32 = 10.0;
/// Scaled rewards are clamped to this size.
const REWARD_CLIP: f32 = 10.0;
/// Samples on which the Lipschitz constant is bounded.
const PROBE_ROWS: usize = 256;
/// Minibatches of fewer rows are not worth a second thread.
const MIN_PARALLEL_ROWS: usize = 256;

/// The policy network of a group and what trains it.
struct PolicySide {
    net: Mlp,
    head: PolicyHead,
    adam: Adam,
    log_std_adam: Adam,
    regularizer: Option<Box<dyn Regularizer>>,
    upper_bound: UpperBound,
    /// Size of one unit of perturbation in each observed feature, in network input units.
    unit: Vec<f32>,
    trace: Trace,
    evaluation: Evaluation,
    ratio: Vec<f32>,
    d_log_prob: Vec<f32>,
    d_entropy: Vec<f32>,
    d_output: Vec<f32>,
    gradient: Vec<f32>,
    log_std_gradient: Vec<f32>,
    plain_gradient: Vec<f32>,
}

/// The critic of a group and what trains it.
struct CriticSide {
    net: Mlp,
    adam: Adam,
    trace: Trace,
    d_output: Vec<f32>,
    gradient: Vec<f32>,
}

/// One minibatch, gathered from the rollout.
#[derive(Default)]
struct Minibatch {
    rows: usize,
    inputs: Vec<f32>,
    /// Empty if the critic sees what the policy sees.
    critic_inputs: Vec<f32>,
    indices: Vec<u32>,
    vectors: Vec<f32>,
    log_probs: Vec<f32>,
    advantages: Vec<f32>,
    returns: Vec<f32>,
    values: Vec<f32>,
}

/// The rollout as one group sees it; samples are `[time, slot, agent of the group]`.
#[derive(Default)]
struct Rollout {
    /// `[time + 1, slot, agent, input]`.
    inputs: Vec<f32>,
    /// `[end, agent, input]`.
    final_inputs: Vec<f32>,
    indices: Vec<u32>,
    vectors: Vec<f32>,
    log_probs: Vec<f32>,
    rewards: Vec<f32>,
    values: Vec<f32>,
    final_values: Vec<f32>,
    advantages: Vec<f32>,
    returns: Vec<f32>,
    order: Vec<u32>,
    critic_rows: Vec<f32>,
}

/// Agents that share their networks.
struct Group {
    name: String,
    agents: Vec<usize>,
    observation: usize,
    index: usize,
    norm: RunningNorm,
    policy: PolicySide,
    critic: CriticSide,
    rollout: Rollout,
    minibatch: Minibatch,
    act_inputs: Vec<f32>,
    act_outputs: Vec<f32>,
    act_indices: Vec<u32>,
    act_vectors: Vec<f32>,
    act_evaluation: Evaluation,
    workspace: Workspace,
    attack: Option<ObservationAttack>,
    value_attack: Option<ValueAttack>,
    /// One environment unit of each observed feature in network input units.
    attack_unit: Vec<f32>,
}

/// Sums over the minibatches of an update.
#[derive(Default, Clone, Copy)]
struct Sums {
    minibatches: f64,
    policy_loss: f64,
    value_loss: f64,
    entropy: f64,
    approx_kl: f64,
    clip_fraction: f64,
    gradient_norm: f64,
    penalties: f64,
    penalty: f64,
    relative_norm: f64,
    gradient_ratios: f64,
    gradient_ratio: f64,
    interaction_shares: f64,
    interaction_share: f64,
    epochs: f64,
}

/// Results of one minibatch on the policy side.
#[derive(Default, Clone, Copy)]
struct PolicyPass {
    loss: f64,
    entropy: f64,
    approx_kl: f64,
    clip_fraction: f64,
    penalty: Option<crate::regularizers::Penalty>,
    gradient_ratio: Option<f64>,
    interaction_share: Option<f64>,
}

/// PPO over all agents of an environment.
pub struct Ppo {
    config: PpoConfig,
    action_width: usize,
    /// Agents of each of the environment's own groups.
    teams: Vec<Vec<usize>>,
    groups: Vec<Group>,
    state_norm: RunningNorm,
    states: Vec<f32>,
    final_states: Vec<f32>,
    rewards: Vec<f32>,
    ended: Vec<bool>,
    return_scale: ReturnScale,
    rng: Rng,
    updates: u64,
    /// The last lower and upper bound of the Lipschitz constant, which are not measured in every update.
    lipschitz: Option<[f64; 2]>,
    metrics: Metrics,
}

impl Ppo {
    /// Builds networks for the agents of `spec`, to be trained from `n_slots` environments.
    ///
    /// # Errors
    /// [`AgentError::Config`] if a setting is out of its range or does not fit the environment.
    pub fn new(
        config: &PpoConfig,
        regularizer: Option<&RegularizerConfig>,
        spec: &EnvSpec,
        n_slots: usize,
        seeds: SeedTree,
    ) -> Result<Self, AgentError> {
        config.validate()?;
        if config.critic == Critic::Central && spec.state_dim == 0 {
            return Err(AgentError::Config {
                field: "critic".into(),
                expected: format!("\"local\": `{}` has no global state", spec.name),
                got: "\"central\"".to_string(),
            });
        }
        // Samples are numbered with 32 bits.
        let samples = config.rollout_steps as u128 * n_slots as u128 * spec.n_agents() as u128;
        if samples > u128::from(u32::MAX) {
            return Err(AgentError::Config {
                field: "rollout_steps".into(),
                expected: format!("so small that steps × slots × agents stay below 2^32 ({n_slots} slots, {} agents)", spec.n_agents()),
                got: config.rollout_steps.to_string(),
            });
        }
        let mut groups = Vec::new();
        for (i, (name, agents)) in groups_of(config.sharing, spec)?.into_iter().enumerate() {
            groups.push(Group::new(config, regularizer, spec, name, agents, seeds.child("group").index(i as u64))?);
        }
        let states = if config.critic == Critic::Central { spec.state_dim } else { 0 };
        Ok(Self {
            config: config.clone(),
            teams: groups_of(Sharing::Group, spec)?.into_iter().map(|(_, agents)| agents).collect(),
            action_width: if spec.has_discrete_actions() { 0 } else { spec.action_width() },
            groups,
            state_norm: RunningNorm::new(states),
            states: Vec::new(),
            final_states: Vec::new(),
            rewards: Vec::new(),
            ended: Vec::new(),
            return_scale: ReturnScale::new(n_slots * spec.n_agents(), config.discount as f32),
            rng: seeds.child("minibatches").rng(),
            updates: 0,
            lipschitz: None,
            metrics: Metrics::default(),
        })
    }
}

/// Names and members of the groups of agents that share networks.
fn groups_of(sharing: Sharing, spec: &EnvSpec) -> Result<Vec<(String, Vec<usize>)>, AgentError> {
    let first = &spec.agents[0];
    match sharing {
        Sharing::None => Ok(spec.agents.iter().enumerate().map(|(i, a)| (a.name.clone(), vec![i])).collect()),
        Sharing::All => match spec.agents.iter().find(|a| a.observation != first.observation || a.action != first.action) {
            None => Ok(vec![("all".to_string(), (0..spec.n_agents()).collect())]),
            Some(other) => Err(AgentError::Config {
                field: "sharing".into(),
                expected: format!("\"group\" or \"none\": `{}` and `{}` have different spaces", first.name, other.name),
                got: "\"all\"".to_string(),
            }),
        },
        Sharing::Group => {
            let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
            for (i, agent) in spec.agents.iter().enumerate() {
                match groups.iter_mut().find(|(name, _)| *name == agent.group) {
                    Some((_, members)) => members.push(i),
                    None => groups.push((agent.group.clone(), vec![i])),
                }
            }
            Ok(groups)
        }
    }
}

impl Group {
    fn new(
        config: &PpoConfig,
        regularizer: Option<&RegularizerConfig>,
        spec: &EnvSpec,
        name: String,
        agents: Vec<usize>,
        seeds: SeedTree,
    ) -> Result<Self, AgentError> {
        let agent = &spec.agents[agents[0]];
        let observation = agent.observation.width();
        let index = if config.agent_index && agents.len() > 1 { agents.len() } else { 0 };
        let head =
            PolicyHead::new(&agent.action, config.continuous_policy == ContinuousPolicy::SquashedGaussian, config.initial_log_std as f32)?;
        let critic_input = match config.critic {
            Critic::Local => observation,
            Critic::Central => spec.state_dim,
        } + index;
        // Gains of Andrychowicz et al. 2021 (arXiv 2006.05990) and of the common implementations: a nearly uniform first
        // policy, a critic of unit scale.
        let hidden_gain = 2f32.sqrt();
        let policy = Mlp::new(
            observation + index,
            &config.policy_hidden,
            head.width(),
            config.activation,
            hidden_gain,
            0.01,
            &mut seeds.child("policy").rng(),
        )?;
        let critic =
            Mlp::new(critic_input, &config.critic_hidden, 1, config.activation, hidden_gain, 1.0, &mut seeds.child("critic").rng())?;
        let adam = AdamConfig { epsilon: config.adam_epsilon as f32, ..AdamConfig::default() };
        let n_log_std = head.log_std().len();
        Ok(Self {
            name,
            observation,
            index,
            norm: RunningNorm::new(observation),
            policy: PolicySide {
                adam: Adam::new(policy.n_parameters(), adam),
                log_std_adam: Adam::new(n_log_std, adam),
                gradient: vec![0.0; policy.n_parameters()],
                plain_gradient: vec![0.0; policy.n_parameters()],
                log_std_gradient: vec![0.0; n_log_std],
                net: policy,
                head,
                regularizer: regularizer.map(|r| r.build(seeds.child("regularizer").rng())),
                upper_bound: UpperBound::default(),
                unit: vec![1.0; observation],
                trace: Trace::default(),
                evaluation: Evaluation::default(),
                ratio: Vec::new(),
                d_log_prob: Vec::new(),
                d_entropy: Vec::new(),
                d_output: Vec::new(),
            },
            critic: CriticSide {
                adam: Adam::new(critic.n_parameters(), adam),
                gradient: vec![0.0; critic.n_parameters()],
                net: critic,
                trace: Trace::default(),
                d_output: Vec::new(),
            },
            agents,
            rollout: Rollout::default(),
            minibatch: Minibatch::default(),
            act_inputs: Vec::new(),
            act_outputs: Vec::new(),
            act_indices: Vec::new(),
            act_vectors: Vec::new(),
            act_evaluation: Evaluation::default(),
            workspace: Workspace::default(),
            attack: None,
            value_attack: None,
            attack_unit: Vec::new(),
        })
    }

    fn input(&self) -> usize {
        self.observation + self.index
    }

    /// One environment unit of each observed feature in network input units.
    fn observation_unit(&self, normalize: bool) -> Vec<f32> {
        self.norm.std().iter().map(|std| if normalize { std.recip() } else { 1.0 }).collect()
    }

    /// Appends network inputs for observations `[row, all agents, width]` to `out`.
    fn gather_inputs(&self, observations: &[f32], n_agents: usize, width: usize, normalize: bool, out: &mut Vec<f32>) {
        out.clear();
        for row in observations.chunks_exact(n_agents * width) {
            for (member, &agent) in self.agents.iter().enumerate() {
                let observation = &row[agent * width..agent * width + self.observation];
                let start = out.len();
                out.extend_from_slice(observation);
                if normalize {
                    self.norm.normalize(observation, &mut out[start..], OBSERVATION_CLIP);
                }
                if self.index > 0 {
                    out.extend((0..self.index).map(|i| if i == member { 1.0 } else { 0.0 }));
                }
            }
        }
    }
}

impl Policy for Ppo {
    fn reset(&mut self, _slot: usize) {}

    fn act(
        &mut self,
        observations: &ObservationBatch<'_>,
        rngs: &mut [Rng],
        mode: ActMode,
        out: &mut ActionBatch<'_>,
    ) -> steadfast_envs::Result<()> {
        let normalize = self.config.normalize_observations;
        let (n_agents, action_width) = (observations.n_agents, self.action_width);
        for group in &mut self.groups {
            let members = group.agents.len();
            let rows = observations.n_slots * members;
            let mut inputs = std::mem::take(&mut group.act_inputs);
            group.gather_inputs(observations.observations, n_agents, observations.width, normalize, &mut inputs);
            group.act_outputs.resize(rows * group.policy.net.output(), 0.0);
            group.policy.net.forward(&inputs, rows, &mut group.act_outputs, &mut group.workspace);
            let observed = Observed {
                rows,
                inputs: &inputs,
                unit: &group.attack_unit,
                limit: normalize.then_some(OBSERVATION_CLIP),
                outputs: &group.act_outputs,
                head: &group.policy.head,
            };
            let moved = match (&mut group.attack, &mut group.value_attack) {
                (Some(attack), _) => Some(attack.perturb(&group.policy.net, &observed)),
                (None, Some(attack)) => Some(attack.perturb(&group.critic.net, &observed)),
                (None, None) => None,
            };
            if let Some(moved) = moved {
                group.policy.net.forward(moved, rows, &mut group.act_outputs, &mut group.workspace);
            }
            group.act_inputs = inputs;
            if let Some(bad) = group.act_outputs.iter().find(|v| !v.is_finite()) {
                return Err(EnvError::Policy(format!("output of the policy network of `{}` is {bad}", group.name)));
            }
            let head = &group.policy.head;
            let rng_of = |row: usize| row / members;
            match &mut out.actions {
                ActionsMut::Discrete(_) => {
                    group.act_indices.resize(rows, 0);
                    let log_probs = &mut group.act_evaluation.log_prob;
                    log_probs.resize(rows, 0.0);
                    for row in 0..rows {
                        let rng = &mut rngs[rng_of(row)];
                        (group.act_indices[row], log_probs[row]) = head.choose_index(&group.act_outputs, row, mode, rng);
                    }
                }
                ActionsMut::Continuous(_) => {
                    let width = head.width();
                    group.act_vectors.resize(rows * width, 0.0);
                    for (row, action) in group.act_vectors.chunks_exact_mut(width).enumerate() {
                        head.choose_vector(&group.act_outputs, row, mode, &mut rngs[rng_of(row)], action, &mut group.act_evaluation);
                    }
                    // The same evaluation as in the update, so that the ratio starts at exactly 1.
                    let chosen = ActionRows { indices: &[], vectors: &group.act_vectors };
                    head.evaluate(&group.act_outputs, rows, chosen, &mut group.act_evaluation);
                }
                ActionsMut::Tokens(_) => return Err(EnvError::Policy("this policy does not write texts".to_string())),
            }
            for row in 0..rows {
                let place = row / members * n_agents + group.agents[row % members];
                out.log_probs[place] = group.act_evaluation.log_prob[row];
                match &mut out.actions {
                    ActionsMut::Discrete(actions) => actions[place] = group.act_indices[row],
                    ActionsMut::Continuous(actions) => {
                        let width = head.width();
                        let action = &mut actions[place * action_width..(place + 1) * action_width];
                        action[..width].copy_from_slice(&group.act_vectors[row * width..(row + 1) * width]);
                        action[width..].fill(0.0);
                    }
                    ActionsMut::Tokens(_) => {}
                }
            }
        }
        Ok(())
    }
}

impl Learner for Ppo {
    fn policy(&mut self) -> &mut dyn Policy {
        self
    }

    fn rollout_steps(&self) -> usize {
        self.config.rollout_steps
    }

    fn uses_state(&self) -> bool {
        self.config.critic == Critic::Central
    }

    fn update(&mut self, batch: &RolloutBatch, progress: f64) -> Result<&Metrics, AgentError> {
        self.updates += 1;
        self.metrics.clear();
        self.prepare_rewards(batch);
        self.prepare_states(batch);
        let remaining = match self.config.learning_rate_schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - progress).max(0.0),
        };
        let mut sums = Sums::default();
        let (mut explained, mut lipschitz, mut action_std) = (0.0, None::<[f64; 2]>, None::<f64>);
        let normalize = self.config.normalize_observations;
        for g in 0..self.groups.len() {
            self.prepare_group(g, batch);
            let group = &mut self.groups[g];
            explained += explained_variance(&group.rollout.values, &group.rollout.returns);
            self.update_group(g, progress, remaining, &mut sums)?;
            let group = &mut self.groups[g];
            let log_std = group.policy.head.log_std();
            if !log_std.is_empty() {
                let mean = log_std.iter().map(|v| f64::from(*v).exp()).sum::<f64>() / log_std.len() as f64;
                action_std = Some(action_std.unwrap_or(0.0) + mean);
            }
            if let Some(bounds) = group.probe(self.updates, normalize) {
                let other = lipschitz.unwrap_or(bounds);
                lipschitz = Some([other[0].max(bounds[0]), other[1].max(bounds[1])]);
            }
        }
        self.lipschitz = lipschitz.or(self.lipschitz);
        self.update_statistics(batch);
        self.check_parameters()?;
        let (n, groups) = (sums.minibatches.max(1.0), self.groups.len() as f64);
        let metrics = &mut self.metrics;
        metrics.push("train/policy_loss", sums.policy_loss / n);
        metrics.push("train/value_loss", sums.value_loss / n);
        metrics.push("train/entropy", sums.entropy / n);
        metrics.push("train/approx_kl", sums.approx_kl / n);
        metrics.push("train/clip_fraction", sums.clip_fraction / n);
        metrics.push("train/explained_variance", explained / groups);
        metrics.push("train/gradient_norm", sums.gradient_norm / n);
        metrics.push("train/learning_rate", self.config.learning_rate * remaining);
        metrics.push("train/epochs", sums.epochs / groups);
        if let Some(std) = action_std {
            metrics.push("train/action_std", std / groups);
        }
        if let Some(regularizer) = &self.groups[0].policy.regularizer {
            metrics.push("ernie/weight", regularizer.weight(progress));
            if sums.penalties > 0.0 {
                metrics.push("ernie/penalty", sums.penalty / sums.penalties);
                metrics.push("ernie/perturbation_over_radius", sums.relative_norm / sums.penalties);
            }
            if sums.gradient_ratios > 0.0 {
                metrics.push("ernie/gradient_ratio", sums.gradient_ratio / sums.gradient_ratios);
            }
            if sums.interaction_shares > 0.0 {
                metrics.push("ernie/interaction_share", sums.interaction_share / sums.interaction_shares);
            }
            if let Some([lower, upper]) = self.lipschitz {
                metrics.push("ernie/lipschitz_lower_bound", lower);
                metrics.push("ernie/lipschitz_upper_bound", upper);
            }
        }
        Ok(&self.metrics)
    }

    fn set_attack(&mut self, attack: Option<(&ObservationAttackConfig, SeedTree)>) -> bool {
        let normalize = self.config.normalize_observations;
        for (i, group) in self.groups.iter_mut().enumerate() {
            group.attack = attack.map(|(config, seeds)| ObservationAttack::new(config, seeds.index(i as u64).rng()));
            group.attack_unit = group.observation_unit(normalize);
        }
        true
    }

    fn set_value_attack(&mut self, attack: Option<(&ObservationAttackConfig, SeedTree)>) -> bool {
        // A critic of the global state does not see what the attacker changes.
        if self.config.critic == Critic::Central {
            return false;
        }
        let normalize = self.config.normalize_observations;
        for (i, group) in self.groups.iter_mut().enumerate() {
            group.value_attack = attack.map(|(config, seeds)| ValueAttack::new(config, seeds.index(i as u64).rng()));
            group.attack_unit = group.observation_unit(normalize);
        }
        true
    }

    fn lipschitz_bracket(&mut self, observations: &ObservationBatch<'_>, radius: f64, seeds: SeedTree) -> Option<Bracket> {
        let normalize = self.config.normalize_observations;
        let mut widest = Bracket::default();
        for (i, group) in self.groups.iter_mut().enumerate() {
            let (rows, unit) = (observations.n_slots * group.agents.len(), group.observation_unit(normalize));
            let mut inputs = std::mem::take(&mut group.act_inputs);
            group.gather_inputs(observations.observations, observations.n_agents, observations.width, normalize, &mut inputs);
            group.act_outputs.resize(rows * group.policy.net.output(), 0.0);
            group.policy.net.forward(&inputs, rows, &mut group.act_outputs, &mut group.workspace);
            let limit = normalize.then_some(OBSERVATION_CLIP);
            let observed = Observed { rows, inputs: &inputs, unit: &unit, limit, outputs: &group.act_outputs, head: &group.policy.head };
            widest = widest.max(bracket(&group.policy.net, &observed, radius, seeds.index(i as u64).rng()));
            group.act_inputs = inputs;
        }
        Some(widest)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::default();
        for group in &self.groups {
            let name = &group.name;
            for tensor in group.policy.net.tensors() {
                state.put_f32(format!("{name}.policy.{}", tensor.name), &tensor.shape, &tensor.data);
            }
            for tensor in group.critic.net.tensors() {
                state.put_f32(format!("{name}.critic.{}", tensor.name), &tensor.shape, &tensor.data);
            }
            let log_std = group.policy.head.log_std();
            state.put_f32(format!("{name}.policy.log_std"), &[log_std.len()], log_std);
            for (part, adam) in
                [("policy", &group.policy.adam), ("policy.log_std", &group.policy.log_std_adam), ("critic", &group.critic.adam)]
            {
                let AdamState { n_steps, mean, square } = adam.state();
                state.put_f32(format!("{name}.{part}.adam.mean"), &[mean.len()], mean);
                state.put_f32(format!("{name}.{part}.adam.square"), &[square.len()], square);
                state.put_u64(format!("{name}.{part}.adam.steps"), &[n_steps]);
            }
            put_norm(&mut state, &format!("{name}.observation"), &group.norm.state());
            if let Some(regularizer) = &group.policy.regularizer {
                regularizer.save(&format!("{name}.regularizer."), &mut state);
            }
        }
        put_norm(&mut state, "state", &self.state_norm.state());
        let (returns, statistics) = self.return_scale.state();
        state.put_f32("return_scale.returns", &[returns.len()], returns);
        put_norm(&mut state, "return_scale", &statistics);
        let mut words = SnapshotWriter::default();
        self.rng.snapshot(&mut words);
        state.put_u64("minibatches.rng", &words.into_words());
        let bounds: Vec<f64> = self.lipschitz.into_iter().flatten().collect();
        state.put_f64("lipschitz_bounds", &[bounds.len()], &bounds);
        state.put_u64("updates", &[self.updates]);
        state
    }

    fn load_state(&mut self, state: &StateDict) -> Result<(), AgentError> {
        for group in &mut self.groups {
            let name = group.name.clone();
            let tensor = |part: &str, tensor: &str| match state.arrays.get(&format!("{name}.{part}.{tensor}")) {
                Some(Array::F32(shape, data)) => Some((shape.clone(), data.clone())),
                _ => None,
            };
            group.policy.net.load_tensors(&|t| tensor("policy", t))?;
            group.critic.net.load_tensors(&|t| tensor("critic", t))?;
            let n_log_std = group.policy.head.log_std().len();
            group.policy.head.log_std_mut().copy_from_slice(state.f32(&format!("{name}.policy.log_std"), n_log_std)?);
            for (part, adam) in
                [("policy", &mut group.policy.adam), ("policy.log_std", &mut group.policy.log_std_adam), ("critic", &mut group.critic.adam)]
            {
                let n = adam.state().mean.len();
                let mean = state.f32(&format!("{name}.{part}.adam.mean"), n)?;
                let square = state.f32(&format!("{name}.{part}.adam.square"), n)?;
                let n_steps = state.counter(&format!("{name}.{part}.adam.steps"))?;
                adam.load_state(AdamState { n_steps, mean, square })?;
            }
            let features = group.norm.features();
            group.norm.load_state(&norm_state(state, &format!("{name}.observation"), features)?)?;
            if let Some(regularizer) = &mut group.policy.regularizer {
                regularizer.load(&format!("{name}.regularizer."), state)?;
            }
        }
        self.state_norm.load_state(&norm_state(state, "state", self.state_norm.features())?)?;
        let n = self.return_scale.state().0.len();
        self.return_scale.load_state(state.f32("return_scale.returns", n)?, &norm_state(state, "return_scale", 1)?)?;
        let mut words = SnapshotReader::new("minibatch order", state.u64("minibatches.rng")?);
        self.rng = Rng::restore(&mut words)?;
        words.finish()?;
        self.lipschitz = match state.f64("lipschitz_bounds", 0) {
            Ok(_) => None,
            // Checkpoints from before the upper bound do not have it; it is measured again soon.
            Err(_) if !state.arrays.contains_key("lipschitz_bounds") => None,
            Err(_) => {
                let bounds = state.f64("lipschitz_bounds", 2)?;
                Some([bounds[0], bounds[1]])
            }
        };
        self.updates = state.counter("updates")?;
        Ok(())
    }
}

fn put_norm(state: &mut StateDict, name: &str, norm: &RunningNormState) {
    state.put_f64(format!("{name}.mean"), &[norm.mean.len()], &norm.mean);
    state.put_f64(format!("{name}.variance"), &[norm.var.len()], &norm.var);
    state.put_f64(format!("{name}.count"), &[1], &[norm.count]);
}

fn norm_state(state: &StateDict, name: &str, features: usize) -> Result<RunningNormState, AgentError> {
    Ok(RunningNormState {
        mean: state.f64(&format!("{name}.mean"), features)?.to_vec(),
        var: state.f64(&format!("{name}.variance"), features)?.to_vec(),
        count: state.f64(&format!("{name}.count"), 1)?[0],
    })
}

/// Share of the variance of returns that values explain; 0 if returns do not vary.
fn explained_variance(values: &[f32], returns: &[f32]) -> f64 {
    let n = returns.len().max(1) as f64;
    let mean = |f: &dyn Fn(usize) -> f64| (0..returns.len()).map(f).sum::<f64>() / n;
    let variance = |f: &dyn Fn(usize) -> f64| {
        let m = mean(f);
        mean(&|i| (f(i) - m).powi(2))
    };
    let total = variance(&|i| f64::from(returns[i]));
    if total == 0.0 { 0.0 } else { 1.0 - variance(&|i| f64::from(returns[i]) - f64::from(values[i])) / total }
}

impl Ppo {
    /// Rewards as they are learned from, `[time, slot, agent]`.
    fn prepare_rewards(&mut self, batch: &RolloutBatch) {
        self.rewards.clear();
        self.rewards.extend_from_slice(&batch.rewards);
        if self.config.reward_sharing == RewardSharing::TeamMean {
            for rewards in self.rewards.chunks_exact_mut(batch.n_agents) {
                for team in &self.teams {
                    let mean = team.iter().map(|&agent| rewards[agent]).sum::<f32>() / team.len() as f32;
                    team.iter().for_each(|&agent| rewards[agent] = mean);
                }
            }
        }
        if self.config.reward_scaling == RewardScaling::ReturnStd {
            let row = batch.n_slots * batch.n_agents;
            for (time, rewards) in self.rewards.chunks_exact(row).enumerate() {
                self.ended.clear();
                for slot in time * batch.n_slots..(time + 1) * batch.n_slots {
                    let ended = batch.terminated[slot] || batch.truncated[slot];
                    self.ended.extend((0..batch.n_agents).map(|_| ended));
                }
                self.return_scale.update(rewards, &self.ended);
            }
            self.return_scale.normalize(&mut self.rewards, REWARD_CLIP);
        }
    }

    /// Global states as critics see them.
    fn prepare_states(&mut self, batch: &RolloutBatch) {
        if self.config.critic == Critic::Local {
            return;
        }
        for (out, source) in [(&mut self.states, &batch.states), (&mut self.final_states, &batch.final_states)] {
            out.clear();
            out.extend_from_slice(source);
            if self.config.normalize_observations {
                self.state_norm.normalize(source, out, OBSERVATION_CLIP);
            }
        }
    }

    /// Inputs, values and advantages of one group.
    fn prepare_group(&mut self, g: usize, batch: &RolloutBatch) {
        let normalize = self.config.normalize_observations;
        let state_dim = self.state_norm.features();
        let group = &mut self.groups[g];
        let mut rollout = std::mem::take(&mut group.rollout);
        let (agents, width) = (batch.n_agents, batch.observation_width);
        group.gather_inputs(&batch.observations, agents, width, normalize, &mut rollout.inputs);
        group.gather_inputs(&batch.final_observations, agents, width, normalize, &mut rollout.final_inputs);
        let members = group.agents.len();
        let head = group.policy.head.width();
        rollout.indices.clear();
        rollout.vectors.clear();
        rollout.log_probs.clear();
        rollout.rewards.clear();
        for row in 0..batch.n_steps * batch.n_slots {
            for &agent in &group.agents {
                let place = row * agents + agent;
                rollout.log_probs.push(batch.log_probs[place]);
                rollout.rewards.push(self.rewards[place]);
                if batch.action_width == 0 {
                    rollout.indices.push(batch.discrete_actions[place]);
                } else {
                    let start = place * batch.action_width;
                    rollout.vectors.extend_from_slice(&batch.continuous_actions[start..start + head]);
                }
            }
        }
        group.values_into(&self.states, state_dim, &rollout.inputs, &mut rollout.critic_rows, &mut rollout.values);
        group.values_into(&self.final_states, state_dim, &rollout.final_inputs, &mut rollout.critic_rows, &mut rollout.final_values);
        let samples = batch.n_steps * batch.n_slots * members;
        rollout.advantages.resize(samples, 0.0);
        rollout.returns.resize(samples, 0.0);
        let input = Trajectories {
            n_steps: batch.n_steps,
            n_slots: batch.n_slots,
            n_agents: members,
            rewards: &rollout.rewards,
            values: &rollout.values,
            terminated: &batch.terminated,
            truncated: &batch.truncated,
            ends: &batch.ends,
            final_values: &rollout.final_values,
        };
        generalized_advantages(&input, self.config.discount, self.config.gae_lambda, &mut rollout.advantages, &mut rollout.returns);
        if self.config.advantage_normalization == AdvantageNormalization::Batch {
            standardize(&mut rollout.advantages);
        }
        if group.policy.regularizer.is_some() {
            group.perturbation_units(normalize);
        }
        group.rollout = rollout;
    }

    fn update_group(&mut self, g: usize, progress: f64, remaining: f64, sums: &mut Sums) -> Result<(), AgentError> {
        let config = &self.config;
        let policy_rate = (config.learning_rate * remaining) as f32;
        let critic_rate = (config.critic_learning_rate.unwrap_or(config.learning_rate) * remaining) as f32;
        let group = &mut self.groups[g];
        let samples = group.rollout.advantages.len();
        group.rollout.order.clear();
        group.rollout.order.extend(0..samples as u32);
        let weight = group.policy.regularizer.as_ref().map_or(0.0, |r| r.weight(progress));
        let mut is_first = true;
        'epochs: for _ in 0..config.epochs {
            self.rng.shuffle(&mut group.rollout.order);
            sums.epochs += 1.0;
            for start in (0..samples).step_by(config.minibatch_size) {
                let end = (start + config.minibatch_size).min(samples);
                group.gather_minibatch(start..end, &self.states, self.state_norm.features(), config.critic);
                if config.advantage_normalization == AdvantageNormalization::Minibatch {
                    standardize(&mut group.minibatch.advantages);
                }
                let (policy, critic, minibatch) = (&mut group.policy, &mut group.critic, &group.minibatch);
                let measure = std::mem::take(&mut is_first);
                let (pass, value_loss) = if minibatch.rows >= MIN_PARALLEL_ROWS && rayon::current_num_threads() > 1 {
                    join(|| policy.pass(minibatch, config, weight, measure), || critic.pass(minibatch, config))
                } else {
                    (policy.pass(minibatch, config, weight, measure), critic.pass(minibatch, config))
                };
                let pass = pass?;
                let norm =
                    (squared_norm(&policy.gradient) + squared_norm(&policy.log_std_gradient) + squared_norm(&critic.gradient)).sqrt();
                let penalty = pass.penalty.map_or(0.0, |p| p.value);
                for (tensor, value) in [
                    ("policy loss", pass.loss),
                    ("value loss", value_loss),
                    ("divergence from the collecting policy", pass.approx_kl),
                    ("entropy", pass.entropy),
                    ("penalty", penalty),
                    ("gradient norm", norm),
                ] {
                    if !value.is_finite() {
                        return Err(AgentError::NonFinite {
                            tensor: format!("{tensor} of `{}`", group.name),
                            value: value as f32,
                            update: self.updates,
                            position: 0,
                        });
                    }
                }
                sums.add(&pass, value_loss, norm);
                if config.target_kl.is_some_and(|target| pass.approx_kl > 1.5 * target) {
                    break 'epochs;
                }
                let scale = clip_scale(norm, config.max_gradient_norm as f32);
                policy.adam.step(policy.net.parameters_mut(), &policy.gradient, policy_rate, scale);
                if let Some(regularizer) = &mut policy.regularizer {
                    regularizer.constrain(&mut policy.net);
                }
                policy.log_std_adam.step(policy.head.log_std_mut(), &policy.log_std_gradient, policy_rate, scale);
                critic.adam.step(critic.net.parameters_mut(), &critic.gradient, critic_rate, scale);
            }
        }
        Ok(())
    }

    /// Takes the rollout into the running statistics of observations and states.
    fn update_statistics(&mut self, batch: &RolloutBatch) {
        let row = batch.n_agents * batch.observation_width;
        let steps = &batch.observations[..batch.n_steps * batch.n_slots * row];
        for group in &mut self.groups {
            let tracks = group.policy.regularizer.as_ref().is_some_and(|r| r.scale() == Scale::RunningStd);
            if !self.config.normalize_observations && !tracks {
                continue;
            }
            // The action room is free between collections and holds the group's raw observations here.
            let mut rows = std::mem::take(&mut group.act_inputs);
            rows.clear();
            for all in steps.chunks_exact(row) {
                for &agent in &group.agents {
                    rows.extend_from_slice(&all[agent * batch.observation_width..agent * batch.observation_width + group.observation]);
                }
            }
            group.norm.update(&rows);
            group.act_inputs = rows;
        }
        if self.config.normalize_observations && self.config.critic == Critic::Central {
            self.state_norm.update(&batch.states[..batch.n_steps * batch.n_slots * batch.state_dim]);
        }
    }

    fn check_parameters(&self) -> Result<(), AgentError> {
        for group in &self.groups {
            let parts = [
                ("policy weights", group.policy.net.parameters()),
                ("critic weights", group.critic.net.parameters()),
                ("log_std", group.policy.head.log_std()),
            ];
            for (part, values) in parts {
                if let Some(position) = values.iter().position(|v| !v.is_finite()) {
                    let tensor = format!("{part} of `{}`", group.name);
                    return Err(AgentError::NonFinite { tensor, value: values[position], update: self.updates, position });
                }
            }
        }
        Ok(())
    }
}

impl Group {
    /// Values of all rows: of the policy's inputs if `states` is empty, else of the states, one per agent of the group.
    fn values_into(&mut self, states: &[f32], state_dim: usize, inputs: &[f32], room: &mut Vec<f32>, out: &mut Vec<f32>) {
        let rows = inputs.len() / self.input();
        out.resize(rows, 0.0);
        if state_dim == 0 {
            self.critic.net.forward(inputs, rows, out, &mut self.workspace);
            return;
        }
        let members = self.agents.len();
        if self.index == 0 {
            // All members share the value: compute it once and spread it, from the back so that nothing is overwritten.
            let n = rows / members;
            self.critic.net.forward(states, n, &mut out[..n], &mut self.workspace);
            for row in (0..rows).rev() {
                out[row] = out[row / members];
            }
            return;
        }
        room.clear();
        for row in 0..rows {
            self.push_critic_row(states, state_dim, row, room);
        }
        self.critic.net.forward(room, rows, out, &mut self.workspace);
    }

    fn push_critic_row(&self, states: &[f32], state_dim: usize, row: usize, out: &mut Vec<f32>) {
        let members = self.agents.len();
        let place = row / members;
        out.extend_from_slice(&states[place * state_dim..(place + 1) * state_dim]);
        out.extend((0..self.index).map(|i| if i == row % members { 1.0 } else { 0.0 }));
    }

    fn gather_minibatch(&mut self, range: std::ops::Range<usize>, states: &[f32], state_dim: usize, critic: Critic) {
        let mut minibatch = std::mem::take(&mut self.minibatch);
        let rollout = &self.rollout;
        let (input, width) = (self.input(), self.policy.head.width());
        minibatch.rows = range.len();
        for list in [
            &mut minibatch.inputs,
            &mut minibatch.critic_inputs,
            &mut minibatch.vectors,
            &mut minibatch.log_probs,
            &mut minibatch.advantages,
            &mut minibatch.returns,
            &mut minibatch.values,
        ] {
            list.clear();
        }
        minibatch.indices.clear();
        for &sample in &rollout.order[range] {
            let sample = sample as usize;
            minibatch.inputs.extend_from_slice(&rollout.inputs[sample * input..(sample + 1) * input]);
            if rollout.vectors.is_empty() {
                minibatch.indices.push(rollout.indices[sample]);
            } else {
                minibatch.vectors.extend_from_slice(&rollout.vectors[sample * width..(sample + 1) * width]);
            }
            minibatch.log_probs.push(rollout.log_probs[sample]);
            minibatch.advantages.push(rollout.advantages[sample]);
            minibatch.returns.push(rollout.returns[sample]);
            minibatch.values.push(rollout.values[sample]);
            if critic == Critic::Central {
                self.push_critic_row(states, state_dim, sample, &mut minibatch.critic_inputs);
            }
        }
        self.minibatch = minibatch;
    }

    /// Size of one unit of perturbation, in network input units.
    fn perturbation_units(&mut self, normalized: bool) {
        let Some(regularizer) = &self.policy.regularizer else { return };
        for (i, unit) in self.policy.unit.iter_mut().enumerate() {
            // The divisor of normalisation is 1 for a feature that never varied; its own deviation is 0.
            let (divisor, deviation) = (self.norm.std()[i], self.norm.var()[i].sqrt() as f32);
            *unit = match regularizer.scale() {
                Scale::Absolute => 1.0,
                Scale::RunningStd => deviation,
            };
            if normalized {
                *unit /= divisor;
            }
        }
    }

    /// A lower bound of the policy's Lipschitz constant on samples from all over the rollout and an upper bound anywhere, if
    /// they are due.
    fn probe(&mut self, update: u64, normalized: bool) -> Option<[f64; 2]> {
        let side = &mut self.policy;
        let regularizer = side.regularizer.as_mut()?;
        let every = regularizer.probe_every() as u64;
        if every == 0 || !(update - 1).is_multiple_of(every) {
            return None;
        }
        let width = side.net.input();
        let samples = self.rollout.advantages.len();
        let stride = samples.div_ceil(PROBE_ROWS);
        let inputs = &mut self.act_inputs;
        inputs.clear();
        for sample in (0..samples).step_by(stride) {
            inputs.extend_from_slice(&self.rollout.inputs[sample * width..(sample + 1) * width]);
        }
        let rows = inputs.len() / width;
        side.net.forward_train(inputs, rows, &mut side.trace);
        let limit = normalized.then_some(OBSERVATION_CLIP);
        let observed = Observed { rows, inputs, unit: &side.unit, limit, outputs: side.trace.output(), head: &side.head };
        let lower = regularizer.lipschitz_lower_bound(&side.net, &observed);
        Some([lower, side.upper_bound.of(&side.net, &side.unit)])
    }
}

impl PolicySide {
    /// Loss and gradient of one minibatch; the gradient is left in `gradient` and `log_std_gradient`.
    fn pass(&mut self, minibatch: &Minibatch, config: &PpoConfig, weight: f64, measure: bool) -> Result<PolicyPass, AgentError> {
        let rows = minibatch.rows;
        let (clip, scale) = (config.clip_range as f32, 1.0 / rows as f32);
        self.net.forward_train(&minibatch.inputs, rows, &mut self.trace);
        let chosen = ActionRows { indices: &minibatch.indices, vectors: &minibatch.vectors };
        self.head.evaluate(self.trace.output(), rows, chosen, &mut self.evaluation);
        self.d_log_prob.resize(rows, 0.0);
        self.d_entropy.resize(rows, 0.0);
        self.d_entropy.fill(-(config.entropy_coefficient as f32) * scale);
        let mut pass = PolicyPass::default();
        self.ratio.clear();
        self.ratio.extend(self.evaluation.log_prob.iter().zip(&minibatch.log_probs).map(|(new, old)| new - old));
        exp_in_place(&mut self.ratio);
        for row in 0..rows {
            let log_ratio = self.evaluation.log_prob[row] - minibatch.log_probs[row];
            let ratio = self.ratio[row];
            let (loss, derivative) = clipped_loss(ratio, minibatch.advantages[row], clip);
            pass.loss += f64::from(loss);
            self.d_log_prob[row] = derivative * scale;
            pass.entropy += f64::from(self.evaluation.entropy[row]);
            pass.approx_kl += f64::from(ratio - 1.0 - log_ratio);
            pass.clip_fraction += f64::from(u8::from((ratio - 1.0).abs() > clip));
        }
        let n = rows as f64;
        pass.loss /= n;
        pass.entropy /= n;
        pass.approx_kl /= n;
        pass.clip_fraction /= n;
        self.d_output.resize(rows * self.net.output(), 0.0);
        self.d_output.fill(0.0);
        self.gradient.fill(0.0);
        self.log_std_gradient.fill(0.0);
        self.head.backward(chosen, &mut self.evaluation, &self.d_log_prob, &self.d_entropy, &mut self.d_output, &mut self.log_std_gradient);
        if weight > 0.0
            && let Some(regularizer) = &mut self.regularizer
        {
            if measure {
                self.plain_gradient.fill(0.0);
                self.net.backward(&mut self.trace, &self.d_output, Some(&mut self.plain_gradient), None);
            }
            let observed = Observed {
                rows,
                inputs: &minibatch.inputs,
                unit: &self.unit,
                limit: config.normalize_observations.then_some(OBSERVATION_CLIP),
                outputs: self.trace.output(),
                head: &self.head,
            };
            let mut gradients =
                PenaltyGradients { outputs: &mut self.d_output, weights: &mut self.gradient, log_std: &mut self.log_std_gradient };
            pass.penalty = Some(regularizer.penalty(&self.net, &observed, weight, &mut gradients)?);
        }
        self.net.backward(&mut self.trace, &self.d_output, Some(&mut self.gradient), None);
        if measure && pass.penalty.is_some() {
            let plain = squared_norm(&self.plain_gradient).sqrt();
            self.plain_gradient.iter_mut().zip(&self.gradient).for_each(|(p, g)| *p = g - *p);
            let penalty = squared_norm(&self.plain_gradient).sqrt();
            pass.gradient_ratio = (plain > 0.0).then(|| penalty / plain);
            if let Some(interaction) = self.regularizer.as_ref().and_then(|r| r.interaction()) {
                self.plain_gradient.copy_from_slice(interaction.weights);
                self.net.backward(&mut self.trace, interaction.outputs, Some(&mut self.plain_gradient), None);
                let answered = f64::from(interaction.factor) * squared_norm(&self.plain_gradient).sqrt();
                pass.interaction_share = (penalty > 0.0).then(|| answered / penalty);
            }
        }
        Ok(pass)
    }
}

impl CriticSide {
    /// Value loss of one minibatch; the gradient is left in `gradient`.
    fn pass(&mut self, minibatch: &Minibatch, config: &PpoConfig) -> f64 {
        let rows = minibatch.rows;
        let inputs = if minibatch.critic_inputs.is_empty() { &minibatch.inputs } else { &minibatch.critic_inputs };
        self.net.forward_train(inputs, rows, &mut self.trace);
        self.d_output.resize(rows, 0.0);
        let scale = config.value_coefficient as f32 / rows as f32;
        let mut loss = 0.0;
        for (row, &value) in self.trace.output().iter().enumerate() {
            let range = config.value_clip_range.map(|r| r as f32);
            let (squared, derivative) = value_loss(value, minibatch.values[row], minibatch.returns[row], range);
            loss += f64::from(squared);
            self.d_output[row] = scale * derivative;
        }
        self.gradient.fill(0.0);
        self.net.backward(&mut self.trace, &self.d_output, Some(&mut self.gradient), None);
        loss / rows as f64
    }
}

/// The clipped surrogate loss of one sample and its derivative with respect to the log-probability.
fn clipped_loss(ratio: f32, advantage: f32, clip: f32) -> (f32, f32) {
    let plain = ratio * advantage;
    let clipped = ratio.clamp(1.0 - clip, 1.0 + clip) * advantage;
    // The clipped branch is constant in the ratio wherever it is the smaller one.
    if plain <= clipped { (-plain, -plain) } else { (-clipped, 0.0) }
}

/// The squared error of one value and its derivative; with a `range` the larger of the errors with and without the value
/// held within that range of its `old` estimate.
fn value_loss(value: f32, old: f32, target: f32, range: Option<f32>) -> (f32, f32) {
    let error = value - target;
    if let Some(range) = range {
        let clipped = old + (value - old).clamp(-range, range) - target;
        if clipped * clipped > error * error {
            // Inside the range both errors are the same number up to rounding, outside the clipped one is constant.
            let derivative = if (value - old).abs() < range { 2.0 * clipped } else { 0.0 };
            return (clipped * clipped, derivative);
        }
    }
    (error * error, 2.0 * error)
}

impl Sums {
    fn add(&mut self, pass: &PolicyPass, value_loss: f64, gradient_norm: f64) {
        self.minibatches += 1.0;
        self.policy_loss += pass.loss;
        self.value_loss += value_loss;
        self.entropy += pass.entropy;
        self.approx_kl += pass.approx_kl;
        self.clip_fraction += pass.clip_fraction;
        self.gradient_norm += gradient_norm;
        if let Some(penalty) = &pass.penalty {
            self.penalties += 1.0;
            self.penalty += penalty.value;
            self.relative_norm += penalty.relative_norm;
        }
        if let Some(ratio) = pass.gradient_ratio {
            self.gradient_ratios += 1.0;
            self.gradient_ratio += ratio;
        }
        if let Some(share) = pass.interaction_share {
            self.interaction_shares += 1.0;
            self.interaction_share += share;
        }
    }
}

/// Brings values to mean 0 and (unbiased) deviation 1; a single value is left alone.
fn standardize(values: &mut [f32]) {
    if values.len() < 2 {
        return;
    }
    let n = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / (n - 1.0);
    // 1e-8 as in the common implementations; it only matters for constant advantages.
    let factor = 1.0 / (variance.sqrt() + 1e-8);
    values.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) * factor) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipped_loss_has_its_four_branches() {
        // Inside the range, and outside on the side that is not clipped: the plain product.
        assert_eq!(clipped_loss(1.1, 2.0, 0.2), (-2.2, -2.2));
        assert_eq!(clipped_loss(0.5, 2.0, 0.2), (-1.0, -1.0));
        assert_eq!(clipped_loss(1.5, -2.0, 0.2), (3.0, 3.0));
        // Outside on the side where going further must not pay.
        assert_eq!(clipped_loss(1.5, 2.0, 0.2), (-2.4, 0.0));
        assert_eq!(clipped_loss(0.5, -2.0, 0.2), (1.6, 0.0));
    }

    #[test]
    fn value_loss_takes_the_larger_error() {
        assert_eq!(value_loss(3.0, 0.0, 1.0, None), (4.0, 4.0));
        // 3 is held at 0.5: error 0.5 is smaller than 2, so the plain error counts.
        assert_eq!(value_loss(3.0, 0.0, 1.0, Some(0.5)), (4.0, 4.0));
        // 3 is held at 0.5 and the target is 3.5: the clipped error 3 counts, and moving the value changes nothing.
        assert_eq!(value_loss(3.0, 0.0, 3.5, Some(0.5)), (9.0, 0.0));
    }

    #[test]
    fn derivatives_match_central_differences() {
        let h = 1e-3_f32;
        for (ratio, advantage) in [(1.05, 1.5), (0.7, 1.5), (1.4, 1.5), (0.7, -0.8), (1.4, -0.8)] {
            let at = |d: f32| clipped_loss(ratio * d.exp(), advantage, 0.2).0;
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            assert!((numeric - clipped_loss(ratio, advantage, 0.2).1).abs() < 2e-3, "{ratio} {advantage}");
        }
        for (value, old, target) in [(1.0, 0.9, 2.0), (1.5, 0.9, 2.0), (1.5, 0.9, 0.0), (0.2, 0.9, -1.0)] {
            let at = |d: f32| value_loss(value + d, old, target, Some(0.2)).0;
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            assert!((numeric - value_loss(value, old, target, Some(0.2)).1).abs() < 5e-3, "{value} {old} {target}");
        }
    }

    #[test]
    fn standardized_values_have_mean_zero_and_deviation_one() {
        let mut values = [1.0, 2.0, 4.0, 9.0];
        standardize(&mut values);
        let mean = values.iter().sum::<f32>() / 4.0;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 3.0;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5);
        let mut single = [3.0];
        standardize(&mut single);
        assert_eq!(single, [3.0]);
    }
}
