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
    ActMode, ActionBatch, ActionsMut, EnvError, EnvSpec, ObservationBatch, ObservationBatchMut, Policy, Rng, RolloutBatch, SeedTree,
};

use crate::AgentError;
use crate::acting::{Acting, Actor, ValueSource};
use crate::head::{ActionRows, Evaluation, PolicyHead};
use crate::learner::{Learner, Metrics};
use crate::nn::{Activation, Adam, AdamConfig, Mlp, RewardScale, RunningNorm, Trace, Workspace, clip_scale, exp_in_place, squared_norm};
use crate::ranges::Ranges;
use crate::regularizers::RegularizerConfig;
use crate::regularizers::adversary::{AdversarialTrainingConfig, Adversary};
use crate::regularizers::attack::ObservationAttackConfig;
use crate::regularizers::bound::{Bracket, bracket_of};
use crate::regularizers::smoothing::{Backward, Smoothing, SmoothingSums, backward, observe, weight_of, widen};
use crate::returns::{REWARD_CLIP, RewardScaling, Trajectories, generalized_advantages};
use crate::schedule::Schedule;
use crate::state_dict::StateDict;
use crate::team::{OBSERVATION_CLIP, RewardSharing, SharedInput, Sharing, groups_of, share_rewards, teams_of};

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
    /// How rewards are scaled: `none`, `return_std` or `standardize`.
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
        let mut ranges = Ranges::default();
        ranges.fraction("discount", self.discount);
        ranges.fraction("gae_lambda", self.gae_lambda);
        ranges.count("rollout_steps", self.rollout_steps, MAX_ROLLOUT_STEPS);
        ranges.count("epochs", self.epochs, usize::MAX);
        ranges.count("minibatch_size", self.minibatch_size, usize::MAX);
        ranges.positive("learning_rate", self.learning_rate);
        ranges.positive("adam_epsilon", self.adam_epsilon);
        ranges.positive("clip_range", self.clip_range);
        ranges.positive("max_gradient_norm", self.max_gradient_norm);
        ranges.positive_if_given("critic_learning_rate", self.critic_learning_rate);
        ranges.positive_if_given("value_clip_range", self.value_clip_range);
        ranges.positive_if_given("target_kl", self.target_kl);
        ranges.not_negative("entropy_coefficient", self.entropy_coefficient);
        ranges.not_negative("value_coefficient", self.value_coefficient);
        ranges.between("initial_log_std", self.initial_log_std, -20.0, 20.0);
        ranges.widths("policy_hidden", &self.policy_hidden);
        ranges.widths("critic_hidden", &self.critic_hidden);
        ranges.finish()
    }
}

/// Longest rollout, in steps per slot.
const MAX_ROLLOUT_STEPS: usize = 10_000_000;
/// Minibatches of fewer rows are not worth a second thread.
const MIN_PARALLEL_ROWS: usize = 256;

/// The policy network of a group and what trains it.
struct PolicySide {
    net: Mlp,
    head: PolicyHead,
    adam: Adam,
    log_std_adam: Adam,
    smoothing: Option<Smoothing>,
    trace: Trace,
    evaluation: Evaluation,
    ratio: Vec<f32>,
    d_log_prob: Vec<f32>,
    d_entropy: Vec<f32>,
    d_output: Vec<f32>,
    gradient: Vec<f32>,
    log_std_gradient: Vec<f32>,
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
    /// Rows of one moment that stand together; 1 if samples are mixed.
    members: usize,
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
    input: SharedInput,
    policy: PolicySide,
    critic: CriticSide,
    rollout: Rollout,
    minibatch: Minibatch,
    acting: Acting,
    act_indices: Vec<u32>,
    act_vectors: Vec<f32>,
    act_evaluation: Evaluation,
    workspace: Workspace,
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
    smoothing: SmoothingSums,
    epochs: f64,
}

/// Results of one minibatch on the policy side.
#[derive(Default, Clone, Copy)]
struct PolicyPass {
    loss: f64,
    entropy: f64,
    approx_kl: f64,
    clip_fraction: f64,
    penalty: f64,
    smoothing: SmoothingSums,
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
    reward_scale: RewardScale,
    rng: Rng,
    updates: u64,
    /// The last lower and upper bound of the Lipschitz constant, which are not measured in every update.
    lipschitz: Option<[f64; 2]>,
    adversary: Option<Adversary>,
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
            teams: teams_of(spec).into_iter().map(|(_, agents)| agents).collect(),
            action_width: if spec.has_discrete_actions() { 0 } else { spec.action_width() },
            groups,
            state_norm: RunningNorm::new(states),
            states: Vec::new(),
            final_states: Vec::new(),
            rewards: Vec::new(),
            reward_scale: config.reward_scaling.scale(n_slots * spec.n_agents(), config.discount),
            rng: seeds.child("minibatches").rng(),
            updates: 0,
            lipschitz: None,
            adversary: None,
            metrics: Metrics::default(),
        })
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
        let input = SharedInput::new(spec, agents, config.agent_index, config.normalize_observations);
        let observation = input.observation;
        let head =
            PolicyHead::new(&agent.action, config.continuous_policy == ContinuousPolicy::SquashedGaussian, config.initial_log_std as f32)?;
        let critic_input = match config.critic {
            Critic::Local => observation,
            Critic::Central => spec.state_dim,
        } + input.index;
        // Gains of Andrychowicz et al. 2021 (arXiv 2006.05990) and of the common implementations: a nearly uniform first
        // policy, a critic of unit scale.
        let hidden_gain = 2f32.sqrt();
        let policy = Mlp::new(
            input.width(),
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
        let smoothing = regularizer.map(|r| Smoothing::new(r, &head, seeds.child("regularizer").rng())).transpose()?;
        Ok(Self {
            name,
            input,
            policy: PolicySide {
                adam: Adam::new(policy.n_parameters(), adam),
                log_std_adam: Adam::new(n_log_std, adam),
                gradient: vec![0.0; policy.n_parameters()],
                log_std_gradient: vec![0.0; n_log_std],
                net: policy,
                head,
                smoothing,
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
            rollout: Rollout::default(),
            minibatch: Minibatch::default(),
            acting: Acting::default(),
            act_indices: Vec::new(),
            act_vectors: Vec::new(),
            act_evaluation: Evaluation::default(),
            workspace: Workspace::default(),
        })
    }
}

impl Policy for Ppo {
    fn reset(&mut self, _slot: usize) {}

    fn disturb(&mut self, observations: &mut ObservationBatchMut<'_>, rngs: &mut [Rng]) -> steadfast_envs::Result<()> {
        if let Some(adversary) = &mut self.adversary {
            for group in &self.groups {
                adversary.disturb(&group.policy.net, &group.policy.head, &group.input, observations, rngs);
            }
        }
        Ok(())
    }

    fn act(
        &mut self,
        observations: &ObservationBatch<'_>,
        rngs: &mut [Rng],
        mode: ActMode,
        out: &mut ActionBatch<'_>,
    ) -> steadfast_envs::Result<()> {
        let (n_agents, action_width) = (observations.n_agents, self.action_width);
        for group in &mut self.groups {
            let members = group.input.members();
            let rows = observations.n_slots * members;
            let (name, head, input, critic) = (&group.name, &group.policy.head, &group.input, self.config.critic);
            let value = if critic == Critic::Local { ValueSource::State(&group.critic.net) } else { ValueSource::None };
            let outputs = group.acting.outputs(Actor { name, net: &group.policy.net, head, input, value }, observations)?;
            let rng_of = |row: usize| row / members;
            match &mut out.actions {
                ActionsMut::Discrete(_) => {
                    group.act_indices.resize(rows, 0);
                    let log_probs = &mut group.act_evaluation.log_prob;
                    log_probs.resize(rows, 0.0);
                    for row in 0..rows {
                        let rng = &mut rngs[rng_of(row)];
                        (group.act_indices[row], log_probs[row]) = head.choose_index(outputs, row, mode, rng);
                    }
                }
                ActionsMut::Continuous(_) => {
                    let width = head.width();
                    group.act_vectors.resize(rows * width, 0.0);
                    for (row, action) in group.act_vectors.chunks_exact_mut(width).enumerate() {
                        head.choose_vector(outputs, row, mode, &mut rngs[rng_of(row)], action, &mut group.act_evaluation);
                    }
                    // The same evaluation as in the update, so that the ratio starts at exactly 1.
                    let chosen = ActionRows { indices: &[], vectors: &group.act_vectors };
                    head.evaluate(outputs, rows, chosen, &mut group.act_evaluation);
                }
                ActionsMut::Tokens(_) => return Err(EnvError::Policy("this policy does not write texts".to_string())),
            }
            for row in 0..rows {
                let place = row / members * n_agents + input.agents[row % members];
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
        if let Some(adversary) = &mut self.adversary {
            adversary.progress = progress;
        }
        self.prepare_rewards(batch);
        self.prepare_states(batch);
        let remaining = self.config.learning_rate_schedule.remaining(progress);
        let mut sums = Sums::default();
        let (mut explained, mut lipschitz, mut action_std) = (0.0, None::<[f64; 2]>, None::<f64>);
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
            widen(&mut lipschitz, group.probe(self.updates));
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
        if let Some(smoothing) = &self.groups[0].policy.smoothing {
            sums.smoothing.log(smoothing.regularizer().weight(progress), self.lipschitz, metrics);
        }
        Ok(&self.metrics)
    }

    fn train_against(&mut self, adversary: &AdversarialTrainingConfig, seeds: SeedTree) -> bool {
        self.adversary = Some(Adversary::new(adversary, seeds.rng()));
        true
    }

    fn set_attack(&mut self, attack: Option<(&ObservationAttackConfig, SeedTree)>) -> bool {
        for (i, group) in self.groups.iter_mut().enumerate() {
            group.acting.set_attack(attack.map(|(config, seeds)| (config, seeds.index(i as u64))));
        }
        true
    }

    fn set_value_attack(&mut self, attack: Option<(&ObservationAttackConfig, SeedTree)>) -> bool {
        // A critic of the global state does not see what the attacker changes.
        if self.config.critic == Critic::Central {
            return false;
        }
        for (i, group) in self.groups.iter_mut().enumerate() {
            group.acting.set_value_attack(attack.map(|(config, seeds)| (config, seeds.index(i as u64))));
        }
        true
    }

    fn lipschitz_bracket(&mut self, observations: &ObservationBatch<'_>, radius: f64, seeds: SeedTree) -> Option<Bracket> {
        let of = |(i, group): (usize, &Group)| {
            bracket_of(&group.policy.net, &group.policy.head, &group.input, observations, radius, seeds.index(i as u64).rng())
        };
        Some(self.groups.iter().enumerate().map(of).fold(Bracket::default(), Bracket::max))
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::default();
        for group in &self.groups {
            let (name, policy) = (&group.name, &group.policy);
            state.put_net(&format!("{name}.policy"), &policy.net);
            state.put_net(&format!("{name}.critic"), &group.critic.net);
            let log_std = policy.head.log_std();
            state.put_f32(format!("{name}.policy.log_std"), &[log_std.len()], log_std);
            for (part, adam) in [("policy", &policy.adam), ("policy.log_std", &policy.log_std_adam), ("critic", &group.critic.adam)] {
                state.put_adam(&format!("{name}.{part}"), adam);
            }
            state.put_norm(&format!("{name}.observation"), &group.input.norm.state());
            if let Some(smoothing) = &policy.smoothing {
                smoothing.save(&format!("{name}.regularizer."), &mut state);
            }
        }
        state.put_norm("state", &self.state_norm.state());
        state.put_reward_scale("return_scale", &self.reward_scale);
        state.put_rng("minibatches.rng", &self.rng);
        state.put_bounds("lipschitz_bounds", self.lipschitz);
        if let Some(adversary) = &self.adversary {
            adversary.save(&mut state);
        }
        state.put_u64("updates", &[self.updates]);
        state
    }

    fn load_state(&mut self, state: &StateDict) -> Result<(), AgentError> {
        for group in &mut self.groups {
            let name = group.name.clone();
            state.load_net(&format!("{name}.policy"), &mut group.policy.net)?;
            state.load_net(&format!("{name}.critic"), &mut group.critic.net)?;
            let n_log_std = group.policy.head.log_std().len();
            group.policy.head.log_std_mut().copy_from_slice(state.f32(&format!("{name}.policy.log_std"), n_log_std)?);
            for (part, adam) in
                [("policy", &mut group.policy.adam), ("policy.log_std", &mut group.policy.log_std_adam), ("critic", &mut group.critic.adam)]
            {
                state.load_adam(&format!("{name}.{part}"), adam)?;
            }
            state.load_norm(&format!("{name}.observation"), &mut group.input.norm)?;
            if let Some(smoothing) = &mut group.policy.smoothing {
                smoothing.load(&format!("{name}.regularizer."), state)?;
            }
        }
        state.load_norm("state", &mut self.state_norm)?;
        state.load_reward_scale("return_scale", &mut self.reward_scale)?;
        self.rng = state.rng("minibatches.rng")?;
        self.lipschitz = state.bounds("lipschitz_bounds")?;
        if let Some(adversary) = &mut self.adversary {
            adversary.load(state)?;
        }
        self.updates = state.counter("updates")?;
        Ok(())
    }
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
            share_rewards(self.teams.iter().map(Vec::as_slice), batch.n_agents, &mut self.rewards);
        }
        if self.config.reward_scaling != RewardScaling::None {
            self.reward_scale.observe(&self.rewards, batch);
            self.reward_scale.normalize(&mut self.rewards, REWARD_CLIP);
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
        let state_dim = self.state_norm.features();
        let group = &mut self.groups[g];
        let mut rollout = std::mem::take(&mut group.rollout);
        let (agents, width) = (batch.n_agents, batch.observation_width);
        group.input.gather(&batch.observations, agents, width, &mut rollout.inputs);
        group.input.gather(&batch.final_observations, agents, width, &mut rollout.final_inputs);
        let members = group.input.members();
        let head = group.policy.head.width();
        rollout.indices.clear();
        rollout.vectors.clear();
        rollout.log_probs.clear();
        rollout.rewards.clear();
        for row in 0..batch.n_steps * batch.n_slots {
            for &agent in &group.input.agents {
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
        if let Some(smoothing) = &mut group.policy.smoothing {
            smoothing.measure_units(&group.input);
        }
        group.rollout = rollout;
    }

    fn update_group(&mut self, g: usize, progress: f64, remaining: f64, sums: &mut Sums) -> Result<(), AgentError> {
        let config = &self.config;
        let policy_rate = (config.learning_rate * remaining) as f32;
        let critic_rate = (config.critic_learning_rate.unwrap_or(config.learning_rate) * remaining) as f32;
        let group = &mut self.groups[g];
        let samples = group.rollout.advantages.len();
        // What is shuffled: samples, or moments with all agents of the group.
        let keeps_moments = group.policy.smoothing.as_ref().is_some_and(|s| s.regularizer().needs_moments());
        let members = if keeps_moments { group.input.members() } else { 1 };
        group.minibatch.members = members;
        group.rollout.order.clear();
        group.rollout.order.extend(0..(samples / members) as u32);
        let per_minibatch = (config.minibatch_size / members).max(1);
        let weight = weight_of(group.policy.smoothing.as_ref(), progress);
        let mut is_first = true;
        'epochs: for _ in 0..config.epochs {
            self.rng.shuffle(&mut group.rollout.order);
            sums.epochs += 1.0;
            for start in (0..samples / members).step_by(per_minibatch) {
                let end = (start + per_minibatch).min(samples / members);
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
                for (tensor, value) in [
                    ("policy loss", pass.loss),
                    ("value loss", value_loss),
                    ("divergence from the collecting policy", pass.approx_kl),
                    ("entropy", pass.entropy),
                    ("penalty", pass.penalty),
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
                if let Some(smoothing) = &mut policy.smoothing {
                    smoothing.constrain(&mut policy.net);
                }
                policy.log_std_adam.step(policy.head.log_std_mut(), &policy.log_std_gradient, policy_rate, scale);
                critic.adam.step(critic.net.parameters_mut(), &critic.gradient, critic_rate, scale);
            }
        }
        Ok(())
    }

    /// Takes the rollout into the running statistics of observations and states.
    fn update_statistics(&mut self, batch: &RolloutBatch) {
        for group in &mut self.groups {
            observe(&mut group.input, group.policy.smoothing.as_ref(), batch, &mut group.rollout.critic_rows);
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
        let rows = inputs.len() / self.input.width();
        out.resize(rows, 0.0);
        if state_dim == 0 {
            self.critic.net.forward(inputs, rows, out, &mut self.workspace);
            return;
        }
        let members = self.input.members();
        if self.input.index == 0 {
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
        let members = self.input.members();
        let place = row / members;
        out.extend_from_slice(&states[place * state_dim..(place + 1) * state_dim]);
        out.extend((0..self.input.index).map(|i| if i == row % members { 1.0 } else { 0.0 }));
    }

    fn gather_minibatch(&mut self, range: std::ops::Range<usize>, states: &[f32], state_dim: usize, critic: Critic) {
        let mut minibatch = std::mem::take(&mut self.minibatch);
        let rollout = &self.rollout;
        let (input, width) = (self.input.width(), self.policy.head.width());
        minibatch.rows = range.len() * minibatch.members;
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
        let members = minibatch.members;
        for sample in rollout.order[range].iter().flat_map(|&first| first as usize * members..(first as usize + 1) * members) {
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

    /// Bounds of the policy's Lipschitz constant on samples from all over the rollout, if they are due.
    fn probe(&mut self, update: u64) -> Option<[f64; 2]> {
        let side = &mut self.policy;
        let samples = self.rollout.advantages.len();
        let inputs = &self.rollout.inputs[..samples * side.net.input()];
        side.smoothing.as_mut()?.probe(update, &side.net, &mut side.trace, &side.head, inputs, self.input.limit())
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
        let backward_pass = Backward {
            net: &self.net,
            trace: &mut self.trace,
            head: &self.head,
            inputs: &minibatch.inputs,
            members: minibatch.members,
            limit: config.normalize_observations.then_some(OBSERVATION_CLIP),
            d_output: &mut self.d_output,
            gradient: &mut self.gradient,
            log_std_gradient: &mut self.log_std_gradient,
        };
        pass.penalty = backward(self.smoothing.as_mut(), backward_pass, weight, measure, &mut pass.smoothing)?;
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
        self.smoothing.add(&pass.smoothing);
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
