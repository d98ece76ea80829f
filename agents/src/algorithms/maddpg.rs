//! Multi-agent deep deterministic policy gradients: an actor per agent, a critic per agent that knows all observations and actions.
//!
//! ```text
//! critic loss = mean ( Qᵢ(o, a) − ( Σ γᵏ rᵢ + γⁿ Q'ᵢ(o', a') ) )²          a'ⱼ = μ'ⱼ(o'ⱼ)
//! actor loss  = − mean Qᵢ(o, a with aᵢ = μᵢ(oᵢ)) + logit_penalty · mean outputs²
//! ```
//!
//! with target networks `Q'`, `μ'`; parameters are shared as configured. Continuous actions are `tanh` of the actor's outputs,
//! stretched to the box, and explored with normal noise. Discrete actions are drawn from the softmax of the outputs; in the actor's
//! loss the draw is relaxed (Gumbel-softmax), its value the drawn action and its derivative that of the softmax.
//!
//! With `minimax` the other agents' actions, in the critic's target and in the actor's loss, are moved by a step against `Qᵢ` (M3DDPG).
//!
//! Sources: Lowe et al. 2017 (arXiv 1706.02275) and its authors' settings; Lillicrap et al. 2016 (arXiv 1509.02971) for the exploration
//! of continuous actions (here uncorrelated); Jang et al. 2017 (arXiv 1611.01144) for Gumbel-softmax; Li et al. 2019, "Robust Multi-Agent
//! Reinforcement Learning via Minimax Deep Deterministic Policy Gradient" (AAAI), for `minimax`. Departures: the relaxed action has the value of
//! the drawn one (straight-through), because critics learn from drawn actions; memory is a tenth of the authors' million steps unless
//! configured.
//!
//! Regularisers act on actors: with the divergence of the softmax for discrete actions, with the squared distance of outputs before `tanh`
//! for continuous ones. The action regulariser ([`crate::regularizers::action`]) acts on critics, over the actions of the other agents.
//!
//! Logged: `train/critic_loss`, `train/actor_loss` (without penalties), `train/value` (mean of `Qᵢ`), `train/td_error`,
//! `train/gradient_norm` (of critics and of actors before clipping, their mean), `train/learning_rate`, `train/replay` (steps in memory), and
//! the regularisers' own. Before the first gradient step only the steps in memory.
//!
//! The file is long because it is read from top to bottom: settings, networks, minibatches, losses, acting, saving. What the critics see lies
//! in `maddpg/layout.rs`.

use serde::{Deserialize, Serialize};
use steadfast_envs::{
    ActMode, ActionBatch, ActionsMut, EnvError, EnvSpec, ObservationBatch, ObservationBatchMut, Policy, Rng, RolloutBatch, SeedTree, Space,
};

use crate::AgentError;
use crate::acting::{Acting, Actor, ValueSource};
use crate::explore::greedy;
use crate::head::PolicyHead;
use crate::learner::{Learner, Metrics};
use crate::nn::squashed_gaussian::ActionBox;
use crate::nn::{Activation, Adam, AdamConfig, Mlp, RewardScale, Trace, Workspace, clip_scale, exp_in_place, squared_norm};
use crate::ranges::Ranges;
use crate::regularizers::RegularizerConfig;
use crate::regularizers::action::{ActionAttack, ActionRegularizerConfig, ActionSums};
use crate::regularizers::adversary::{AdversarialTrainingConfig, Adversary};
use crate::regularizers::attack::ObservationAttackConfig;
use crate::regularizers::bound::{Bracket, bracket_of};
use crate::regularizers::smoothing::{Backward, Smoothing, SmoothingSums, backward, observe, weight_of, widen};
use crate::regularizers::value_attack::ChoiceValues;
use crate::replay::{PREFIX, Replay, ReplayConfig, Transitions};
use crate::returns::{REWARD_CLIP, RewardScaling};
use crate::schedule::Schedule;
use crate::state_dict::StateDict;
use crate::target::TargetConfig;
use crate::team::{RewardSharing, SharedInput, Sharing, groups_of, share_rewards, teams_of};

mod action_value;
mod layout;

use action_value::JointObservation;
use layout::Layout;

/// How far the other agents' actions are moved against an agent's value: M3DDPG.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MinimaxConfig {
    /// Length of the step for agents of other groups, at least 0; discrete actions count as one-hot vectors, boxes as from -1 to 1.
    pub opponents: f64,
    /// Length of the step for agents of the same group, at least 0.
    pub teammates: f64,
}

impl Default for MinimaxConfig {
    /// Those of the method's authors.
    fn default() -> Self {
        Self { opponents: 1e-3, teammates: 1e-5 }
    }
}

/// Settings of MADDPG. The defaults are those of its authors where both have them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaddpgConfig {
    /// Discount per step, 0 to 1.
    pub discount: f64,
    /// Steps per slot between updates, 1 to 1,000,000.
    pub rollout_steps: usize,
    /// Gradient steps per update, at least 1.
    pub gradient_steps: usize,
    /// The memory of past transitions.
    pub replay: ReplayConfig,
    /// How target networks follow.
    pub target: TargetConfig,
    /// Adam's learning rate for actors, above 0.
    pub learning_rate: f64,
    /// Adam's learning rate for critics, above 0; the actors' if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critic_learning_rate: Option<f64>,
    /// How the learning rates change during the run: `constant` or `linear`.
    pub learning_rate_schedule: Schedule,
    /// Adam's epsilon, above 0.
    pub adam_epsilon: f64,
    /// Largest norm of the gradient of an actor or a critic, above 0.
    pub max_gradient_norm: f64,
    /// Weight of the mean squared outputs of actors, at least 0.
    pub logit_penalty: f64,
    /// Temperature of the relaxed draw of discrete actions, above 0.
    pub temperature: f64,
    /// Deviation of the noise on continuous actions, in half widths of the box, at least 0.
    pub exploration_noise: f64,
    /// Steps against an agent's value that its own learning assumes of the others (M3DDPG); none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimax: Option<MinimaxConfig>,
    /// Whether observations are normalised by their running mean and deviation.
    pub normalize_observations: bool,
    /// How rewards are scaled: `none`, `return_std` or `standardize`.
    pub reward_scaling: RewardScaling,
    /// Which reward an agent learns from: `individual` or `team_mean`.
    pub reward_sharing: RewardSharing,
    /// Which agents use the same networks: `all`, `group` or `none`.
    pub sharing: Sharing,
    /// Whether a one-hot agent index is appended to the inputs of shared networks.
    pub agent_index: bool,
    /// Widths of the actor's hidden layers, 1 to 8192 each, at most 16.
    pub policy_hidden: Vec<usize>,
    /// Widths of the critic's hidden layers, 1 to 8192 each, at most 16.
    pub critic_hidden: Vec<usize>,
    /// Activation of the hidden layers: `tanh`, `relu` or `leaky_relu`.
    pub activation: Activation,
}

impl Default for MaddpgConfig {
    fn default() -> Self {
        Self {
            discount: 0.95,
            rollout_steps: 100,
            gradient_steps: 1,
            replay: ReplayConfig { capacity: 100_000, learning_starts: 25_600, batch_size: 1024, ..ReplayConfig::default() },
            target: TargetConfig { every: 1, share: 0.01 },
            learning_rate: 1e-2,
            critic_learning_rate: None,
            learning_rate_schedule: Schedule::Constant,
            adam_epsilon: 1e-8,
            max_gradient_norm: 0.5,
            logit_penalty: 1e-3,
            temperature: 1.0,
            exploration_noise: 0.1,
            minimax: None,
            normalize_observations: false,
            reward_scaling: RewardScaling::None,
            reward_sharing: RewardSharing::Individual,
            sharing: Sharing::None,
            agent_index: true,
            policy_hidden: vec![64, 64],
            critic_hidden: vec![64, 64],
            activation: Activation::Relu,
        }
    }
}

impl MaddpgConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        let mut ranges = Ranges::default();
        ranges.fraction("discount", self.discount);
        ranges.count("rollout_steps", self.rollout_steps, 1_000_000);
        ranges.count("gradient_steps", self.gradient_steps, usize::MAX);
        ranges.positive("learning_rate", self.learning_rate);
        ranges.positive_if_given("critic_learning_rate", self.critic_learning_rate);
        ranges.positive("adam_epsilon", self.adam_epsilon);
        ranges.positive("max_gradient_norm", self.max_gradient_norm);
        ranges.not_negative("logit_penalty", self.logit_penalty);
        ranges.positive("temperature", self.temperature);
        ranges.not_negative("exploration_noise", self.exploration_noise);
        if let Some(minimax) = &self.minimax {
            ranges.not_negative("minimax.opponents", minimax.opponents);
            ranges.not_negative("minimax.teammates", minimax.teammates);
        }
        ranges.widths("policy_hidden", &self.policy_hidden);
        ranges.widths("critic_hidden", &self.critic_hidden);
        ranges.finish()?;
        self.replay.validate()?;
        self.target.validate()
    }
}

/// A network with its target and what trains it.
struct Side {
    net: Mlp,
    target: Mlp,
    adam: Adam,
    trace: Trace,
    d_output: Vec<f32>,
    gradient: Vec<f32>,
}

impl Side {
    fn new(net: Mlp, adam: AdamConfig) -> Self {
        Self {
            target: net.clone(),
            adam: Adam::new(net.n_parameters(), adam),
            gradient: vec![0.0; net.n_parameters()],
            net,
            trace: Trace::default(),
            d_output: Vec::new(),
        }
    }

    /// A clipped step of the optimiser; returns the norm before clipping.
    fn step(&mut self, rate: f32, max_norm: f64) -> f64 {
        let norm = squared_norm(&self.gradient).sqrt();
        self.adam.step(self.net.parameters_mut(), &self.gradient, rate, clip_scale(norm, max_norm as f32));
        norm
    }
}

/// Agents that share their networks.
struct Group {
    name: String,
    input: SharedInput,
    head: PolicyHead,
    actor: Side,
    critic: Side,
    smoothing: Option<Smoothing>,
    /// `[row, member, input]`.
    inputs: Vec<f32>,
    next_inputs: Vec<f32>,
    outputs: Vec<f32>,
    workspace: Workspace,
    acting: Acting,
}

/// A minibatch as the critics see it.
#[derive(Default)]
struct Minibatch {
    rows: usize,
    /// `[row, all observations]`.
    observations: Vec<f32>,
    next_observations: Vec<f32>,
    /// `[row, all actions]`: one-hot, or scaled to -1..1.
    actions: Vec<f32>,
    next_actions: Vec<f32>,
    /// `[row, agent]`: indices of discrete actions.
    chosen: Vec<u32>,
    rewards: Vec<f32>,
}

/// Sums over the gradient steps of an update.
#[derive(Default)]
struct Sums {
    steps: f64,
    passes: f64,
    critic_loss: f64,
    actor_loss: f64,
    value: f64,
    td_error: f64,
    gradient_norm: f64,
    smoothing: SmoothingSums,
    action: ActionSums,
}

/// MADDPG over all agents of an environment.
pub struct Maddpg {
    config: MaddpgConfig,
    action_regularizer: Option<ActionRegularizerConfig>,
    n_agents: usize,
    observation_width: usize,
    action_width: usize,
    layout: Layout,
    teams: Vec<Vec<usize>>,
    groups: Vec<Group>,
    reward_scale: RewardScale,
    replay: Replay,
    transitions: Transitions,
    minibatch: Minibatch,
    room: Room,
    joint: JointObservation,
    rng: Rng,
    updates: u64,
    steps: u64,
    lipschitz: Option<[f64; 2]>,
    adversary: Option<Adversary>,
    metrics: Metrics,
}

/// Memory that is kept from step to step.
#[derive(Default)]
struct Room {
    rows: Vec<f32>,
    d_rows: Vec<f32>,
    values: Vec<f32>,
    trace: Trace,
    workspace: Workspace,
    probabilities: Vec<f32>,
    attack: ActionAttack,
}

impl Maddpg {
    /// Builds networks for the agents of `spec`, to be trained from `n_slots` environments.
    ///
    /// # Errors
    /// [`AgentError::Config`] if a setting is out of its range or does not fit the environment.
    pub fn new(
        config: &MaddpgConfig,
        regularizer: Option<&RegularizerConfig>,
        action_regularizer: Option<&ActionRegularizerConfig>,
        spec: &EnvSpec,
        n_slots: usize,
        seeds: SeedTree,
    ) -> Result<Self, AgentError> {
        config.validate()?;
        let shared = groups_of(config.sharing, spec)?;
        let teams: Vec<Vec<usize>> = teams_of(spec).into_iter().map(|(_, agents)| agents).collect();
        let layout = Layout::new(spec, &shared, &teams)?;
        if let Some(regularizer) = action_regularizer {
            // Of the other agents of each agent, those of the one with the fewest actions have the most neighbours.
            let mut choices = layout.widths.clone();
            choices.sort_unstable();
            if layout.is_discrete {
                regularizer.fits(&choices[1..])?;
            }
        }
        for (field, is_present) in [("action_regularizer", action_regularizer.is_some()), ("minimax", config.minimax.is_some())] {
            if is_present && spec.n_agents() == 1 {
                let expected = "absent: there are no other agents".to_string();
                return Err(AgentError::Config { field: field.to_string(), expected, got: "present".to_string() });
            }
        }
        let mut groups = Vec::new();
        for (i, (name, agents)) in shared.into_iter().enumerate() {
            groups.push(Group::new(config, regularizer, spec, &layout, name, agents, &seeds.child("group").index(i as u64))?);
        }
        Ok(Self {
            action_regularizer: action_regularizer.cloned(),
            n_agents: spec.n_agents(),
            observation_width: spec.observation_width(),
            action_width: if layout.is_discrete { 0 } else { spec.action_width() },
            layout,
            teams,
            groups,
            reward_scale: config.reward_scaling.scale(n_slots * spec.n_agents(), config.discount),
            replay: Replay::new(spec, n_slots, &config.replay, false)?,
            transitions: Transitions::default(),
            minibatch: Minibatch::default(),
            room: Room::default(),
            joint: JointObservation::default(),
            rng: seeds.child("minibatches").rng(),
            updates: 0,
            steps: 0,
            lipschitz: None,
            adversary: None,
            metrics: Metrics::default(),
            config: config.clone(),
        })
    }

    /// One gradient step of all networks from a fresh minibatch.
    fn step(&mut self, progress: f64, remaining: f64, sums: &mut Sums) -> Result<(), AgentError> {
        self.steps += 1;
        self.draw();
        self.choose_next();
        for g in 0..self.groups.len() {
            self.learn_values(g, progress, sums);
            self.learn_policy(g, progress, sums)?;
            let config = &self.config;
            let rate = config.learning_rate * remaining;
            let critic_rate = config.critic_learning_rate.unwrap_or(config.learning_rate) * remaining;
            let group = &mut self.groups[g];
            let norms =
                group.critic.step(critic_rate as f32, config.max_gradient_norm) + group.actor.step(rate as f32, config.max_gradient_norm);
            if !norms.is_finite() {
                let tensor = format!("gradient norm of `{}`", group.name);
                return Err(AgentError::NonFinite { tensor, value: norms as f32, update: self.updates, position: 0 });
            }
            sums.gradient_norm += 0.5 * norms;
            if let Some(smoothing) = &mut group.smoothing {
                smoothing.constrain(&mut group.actor.net);
            }
        }
        for group in &mut self.groups {
            for side in [&mut group.actor, &mut group.critic] {
                self.config.target.follow(self.steps, &side.net, &mut side.target);
            }
        }
        sums.steps += 1.0;
        Ok(())
    }

    /// Draws the minibatch and brings it into the form that the critics see.
    fn draw(&mut self) {
        let (config, batch, layout) = (&self.config, &mut self.transitions, &self.layout);
        self.replay.sample(&config.replay, config.discount as f32, &mut self.rng, batch);
        let m = &mut self.minibatch;
        m.rows = batch.rows;
        m.rewards.clear();
        m.rewards.extend_from_slice(&batch.rewards);
        if config.reward_sharing == RewardSharing::TeamMean {
            share_rewards(self.teams.iter().map(Vec::as_slice), self.n_agents, &mut m.rewards);
        }
        if config.reward_scaling != RewardScaling::None {
            self.reward_scale.normalize_sums(&mut m.rewards, &batch.weights, config.replay.n_step as f32 * REWARD_CLIP);
        }
        for observations in [&mut m.observations, &mut m.next_observations] {
            observations.resize(batch.rows * layout.observation, 0.0);
        }
        for group in &mut self.groups {
            for (from, inputs, joint) in [
                (&batch.observations, &mut group.inputs, &mut m.observations),
                (&batch.next_observations, &mut group.next_inputs, &mut m.next_observations),
            ] {
                group.input.gather(from, self.n_agents, self.observation_width, inputs);
                layout.join_observations(&group.input, inputs, joint);
            }
        }
        m.actions.clear();
        m.actions.resize(batch.rows * layout.action, 0.0);
        m.next_actions.resize(batch.rows * layout.action, 0.0);
        m.chosen.clear();
        m.chosen.extend_from_slice(&batch.discrete_actions);
        for row in 0..batch.rows {
            for agent in 0..self.n_agents {
                let to = &mut m.actions[row * layout.action + layout.actions[agent]..][..layout.widths[agent]];
                let place = row * self.n_agents + agent;
                if layout.is_discrete {
                    to[batch.discrete_actions[place] as usize] = 1.0;
                } else {
                    to.copy_from_slice(&batch.continuous_actions[place * self.action_width..][..to.len()]);
                    let (group, _) = layout.membership[agent];
                    if let PolicyHead::Deterministic { bounds } = &self.groups[group].head {
                        bounds.shrink(to);
                    }
                }
            }
        }
    }

    /// The target actors' actions at the end of the way.
    fn choose_next(&mut self) {
        let (layout, m, temperature) = (&self.layout, &mut self.minibatch, self.config.temperature as f32);
        for group in &mut self.groups {
            let (members, n) = (group.input.members(), group.head.width());
            let samples = m.rows * members;
            group.outputs.resize(samples * n, 0.0);
            group.actor.target.forward(&group.next_inputs, samples, &mut group.outputs, &mut group.workspace);
            act_softly(&group.head, temperature, &mut group.outputs, &mut self.room.probabilities, &mut self.rng);
            for (i, action) in group.outputs.chunks_exact(n).enumerate() {
                let agent = group.input.agents[i % members];
                let to = i / members * layout.action + layout.actions[agent];
                m.next_actions[to..to + n].copy_from_slice(action);
            }
        }
    }

    /// The critic's loss and gradient.
    fn learn_values(&mut self, g: usize, progress: f64, sums: &mut Sums) {
        let (layout, m, room) = (&self.layout, &self.minibatch, &mut self.room);
        let group = &mut self.groups[g];
        let members = group.input.members();
        let samples = m.rows * members;
        layout.critic_rows(&group.input, &m.next_observations, &m.next_actions, &mut room.rows);
        if let Some(minimax) = &self.config.minimax {
            layout.oppose(&group.input, &group.critic.target, minimax, samples, room);
        }
        room.values.resize(samples, 0.0);
        group.critic.target.forward(&room.rows, samples, &mut room.values, &mut room.workspace);
        let targets: Vec<f32> = (0..samples)
            .map(|i| {
                let (row, agent) = (i / members, group.input.agents[i % members]);
                m.rewards[row * self.n_agents + agent] + self.transitions.bootstrap[row] * room.values[i]
            })
            .collect();
        layout.critic_rows(&group.input, &m.observations, &m.actions, &mut room.rows);
        let critic = &mut group.critic;
        critic.net.forward_train(&room.rows, samples, &mut critic.trace);
        critic.d_output.clear();
        let (mut square, mut absolute, mut total) = (0.0, 0.0, 0.0);
        for (value, target) in critic.trace.output().iter().zip(&targets) {
            let error = value - target;
            square += f64::from(error * error);
            absolute += f64::from(error.abs());
            total += f64::from(*value);
            critic.d_output.push(2.0 * error / samples as f32);
        }
        sums.passes += 1.0;
        sums.critic_loss += square / samples as f64;
        sums.td_error += absolute / samples as f64;
        sums.value += total / samples as f64;
        critic.gradient.fill(0.0);
        if let Some(config) = &self.action_regularizer
            && config.weight(progress) > 0.0
        {
            let values = critic.trace.output().to_vec();
            for member in 0..members {
                let clean: Vec<f32> = values.iter().skip(member).step_by(members).copied().collect();
                layout.resist(&group.input, critic, m, member, config, config.weight(progress) / members as f64, &clean, room, sums);
            }
        }
        critic.net.backward(&mut critic.trace, &critic.d_output, Some(&mut critic.gradient), None);
    }

    /// The actor's loss and gradient.
    fn learn_policy(&mut self, g: usize, progress: f64, sums: &mut Sums) -> Result<(), AgentError> {
        let (layout, m, room) = (&self.layout, &self.minibatch, &mut self.room);
        let group = &mut self.groups[g];
        let (members, n) = (group.input.members(), group.head.width());
        let samples = m.rows * members;
        let temperature = self.config.temperature as f32;
        group.actor.net.forward_train(&group.inputs, samples, &mut group.actor.trace);
        group.outputs.clear();
        group.outputs.extend_from_slice(group.actor.trace.output());
        act_softly(&group.head, temperature, &mut group.outputs, &mut room.probabilities, &mut self.rng);
        layout.critic_rows(&group.input, &m.observations, &m.actions, &mut room.rows);
        let width = group.critic.net.input();
        for (i, action) in group.outputs.chunks_exact(n).enumerate() {
            let agent = group.input.agents[i % members];
            let to = i * width + layout.observation + layout.actions[agent];
            room.rows[to..to + n].copy_from_slice(action);
        }
        if let Some(minimax) = &self.config.minimax {
            layout.oppose(&group.input, &group.critic.net, minimax, samples, room);
        }
        group.critic.net.forward_train(&room.rows, samples, &mut room.trace);
        sums.actor_loss -= room.trace.output().iter().map(|v| f64::from(*v)).sum::<f64>() / samples as f64;
        room.d_rows.resize(samples * width, 0.0);
        room.values.clear();
        room.values.resize(samples, -1.0 / samples as f32);
        group.critic.net.backward(&mut room.trace, &room.values, None, Some(&mut room.d_rows));
        let actor = &mut group.actor;
        actor.d_output.resize(samples * n, 0.0);
        let penalty = 2.0 * self.config.logit_penalty as f32 / (samples * n) as f32;
        for (i, d_output) in actor.d_output.chunks_exact_mut(n).enumerate() {
            let agent = group.input.agents[i % members];
            let d_action = &room.d_rows[i * width + layout.observation + layout.actions[agent]..][..n];
            let (action, output) = (&group.outputs[i * n..(i + 1) * n], &actor.trace.output()[i * n..(i + 1) * n]);
            if layout.is_discrete {
                let p = &room.probabilities[i * n..(i + 1) * n];
                let mean: f32 = p.iter().zip(d_action).map(|(p, d)| p * d).sum();
                d_output.iter_mut().zip(p.iter().zip(d_action)).for_each(|(out, (p, d))| *out = p * (d - mean) / temperature);
            } else {
                d_output.iter_mut().zip(action.iter().zip(d_action)).for_each(|(out, (a, d))| *out = d * (1.0 - a * a));
            }
            d_output.iter_mut().zip(output).for_each(|(d, output)| *d += penalty * output);
        }
        actor.gradient.fill(0.0);
        let weight = weight_of(group.smoothing.as_ref(), progress);
        let pass = Backward {
            net: &actor.net,
            trace: &mut actor.trace,
            head: &group.head,
            inputs: &group.inputs,
            members,
            limit: group.input.limit(),
            d_output: &mut actor.d_output,
            gradient: &mut actor.gradient,
            log_std_gradient: &mut [],
        };
        backward(group.smoothing.as_mut(), pass, weight, sums.steps == 0.0, &mut sums.smoothing)?;
        Ok(())
    }

    /// Takes a rollout into the running statistics.
    fn observe(&mut self, batch: &RolloutBatch) {
        for group in &mut self.groups {
            observe(&mut group.input, group.smoothing.as_ref(), batch, &mut group.inputs);
            if let Some(smoothing) = &mut group.smoothing {
                smoothing.measure_units(&group.input);
            }
        }
        if self.config.reward_scaling != RewardScaling::None {
            let rewards = &mut self.minibatch.rewards;
            rewards.clear();
            rewards.extend_from_slice(&batch.rewards);
            if self.config.reward_sharing == RewardSharing::TeamMean {
                share_rewards(self.teams.iter().map(Vec::as_slice), batch.n_agents, rewards);
            }
            self.reward_scale.observe(rewards, batch);
        }
    }

    fn check_parameters(&self) -> Result<(), AgentError> {
        for group in &self.groups {
            for (part, side) in [("actor", &group.actor), ("critic", &group.critic)] {
                if let Some(position) = side.net.parameters().iter().position(|v| !v.is_finite()) {
                    let tensor = format!("{part} weights of `{}`", group.name);
                    return Err(AgentError::NonFinite { tensor, value: side.net.parameters()[position], update: self.updates, position });
                }
            }
        }
        Ok(())
    }
}

/// Turns the outputs of an actor into actions, in place: one-hot draws, whose relaxed form is left in `probabilities`, or numbers
/// between -1 and 1.
fn act_softly(head: &PolicyHead, temperature: f32, outputs: &mut [f32], probabilities: &mut Vec<f32>, rng: &mut Rng) {
    let PolicyHead::Categorical { n } = head else {
        outputs.iter_mut().for_each(|v| *v = v.tanh());
        return;
    };
    probabilities.clear();
    for row in outputs.chunks_exact_mut(*n) {
        let begin = probabilities.len();
        // Adding Gumbel noise and taking the greatest is a draw from the softmax.
        probabilities.extend(row.iter().map(|logit| (logit + rng.gumbel_f32()) / temperature));
        let noisy = &mut probabilities[begin..];
        let best = greedy(noisy);
        let most = noisy[best];
        noisy.iter_mut().for_each(|v| *v -= most);
        row.fill(0.0);
        row[best] = 1.0;
    }
    exp_in_place(probabilities);
    for row in probabilities.chunks_exact_mut(*n) {
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|p| *p /= sum);
    }
}

impl Group {
    fn new(
        config: &MaddpgConfig,
        regularizer: Option<&RegularizerConfig>,
        spec: &EnvSpec,
        layout: &Layout,
        name: String,
        agents: Vec<usize>,
        seeds: &SeedTree,
    ) -> Result<Self, AgentError> {
        let head = match &spec.agents[agents[0]].action {
            Space::Box { low, high } => PolicyHead::Deterministic { bounds: ActionBox::new(low, high)? },
            other => PolicyHead::new(other, false, 0.0)?,
        };
        let input = SharedInput::new(spec, agents, config.agent_index, config.normalize_observations);
        let gain = 2f32.sqrt();
        let (mut first, mut second) = (seeds.child("actor").rng(), seeds.child("critic").rng());
        let actor = Mlp::new(input.width(), &config.policy_hidden, head.width(), config.activation, gain, 0.01, &mut first)?;
        let joint = layout.observation + layout.action + input.index;
        let critic = Mlp::new(joint, &config.critic_hidden, 1, config.activation, gain, 1.0, &mut second)?;
        let smoothing = regularizer.map(|r| Smoothing::new(r, &head, seeds.child("regularizer").rng())).transpose()?;
        let adam = AdamConfig { epsilon: config.adam_epsilon as f32, ..AdamConfig::default() };
        Ok(Self {
            name,
            input,
            head,
            actor: Side::new(actor, adam),
            critic: Side::new(critic, adam),
            smoothing,
            inputs: Vec::new(),
            next_inputs: Vec::new(),
            outputs: Vec::new(),
            workspace: Workspace::default(),
            acting: Acting::default(),
        })
    }
}

impl Policy for Maddpg {
    fn reset(&mut self, _slot: usize) {}

    fn disturb(&mut self, observations: &mut ObservationBatchMut<'_>, rngs: &mut [Rng]) -> steadfast_envs::Result<()> {
        if let Some(adversary) = &mut self.adversary {
            for group in &self.groups {
                adversary.disturb(&group.actor.net, &group.head, &group.input, observations, rngs);
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
        let noise = self.config.exploration_noise as f32;
        let attacks_value = self.groups.iter().any(|group| group.acting.attacks_value());
        if attacks_value {
            self.joint.observe(&self.groups, &self.layout, observations);
        }
        for group in &mut self.groups {
            let (members, n) = (group.input.members(), group.head.width());
            let Group { name, actor, critic, head, input, acting, .. } = group;
            let (net, layout) = (&actor.net, &self.layout);
            let outputs = if attacks_value {
                self.joint.prepare(layout, input, head, &critic.net);
                if layout.is_discrete {
                    let mut values = ChoiceValues { values: self.joint.choices(), n };
                    acting.outputs(Actor { name, net, head, input, value: ValueSource::Action(&mut values) }, observations)?
                } else {
                    let mut values = self.joint.controls(layout, input, &critic.net);
                    acting.outputs(Actor { name, net, head, input, value: ValueSource::Action(&mut values) }, observations)?
                }
            } else {
                acting.outputs(Actor { name, net, head, input, value: ValueSource::None }, observations)?
            };
            for row in 0..observations.n_slots * members {
                let place = row / members * observations.n_agents + input.agents[row % members];
                let rng = &mut rngs[row / members];
                match (&mut out.actions, &*head) {
                    (ActionsMut::Discrete(actions), head) => {
                        (actions[place], out.log_probs[place]) = head.choose_index(outputs, row, mode, rng);
                    }
                    (ActionsMut::Continuous(actions), PolicyHead::Deterministic { bounds }) => {
                        let action = &mut actions[place * self.action_width..(place + 1) * self.action_width];
                        action.fill(0.0);
                        for (a, output) in action.iter_mut().zip(&outputs[row * n..(row + 1) * n]) {
                            *a = output.tanh();
                            if mode == ActMode::Sample {
                                *a = (*a + noise * rng.normal_f32()).clamp(-1.0, 1.0);
                            }
                        }
                        bounds.stretch(&mut action[..n]);
                        // A deterministic choice, explored with noise that learning does not look at.
                        out.log_probs[place] = 0.0;
                    }
                    _ => return Err(EnvError::Policy("this policy does not write texts".to_string())),
                }
            }
        }
        Ok(())
    }
}

impl Learner for Maddpg {
    fn policy(&mut self) -> &mut dyn Policy {
        self
    }

    fn rollout_steps(&self) -> usize {
        self.config.rollout_steps
    }

    fn uses_state(&self) -> bool {
        false
    }

    fn update(&mut self, batch: &RolloutBatch, progress: f64) -> Result<&Metrics, AgentError> {
        self.updates += 1;
        self.metrics.clear();
        if let Some(adversary) = &mut self.adversary {
            adversary.progress = progress;
        }
        self.observe(batch);
        self.replay.extend(batch);
        let remaining = self.config.learning_rate_schedule.remaining(progress);
        let mut sums = Sums::default();
        if self.replay.len() >= self.config.replay.learning_starts.max(1) {
            for _ in 0..self.config.gradient_steps {
                self.step(progress, remaining, &mut sums)?;
            }
            self.check_parameters()?;
            let mut lipschitz = None::<[f64; 2]>;
            for group in &mut self.groups {
                let Some(smoothing) = &mut group.smoothing else { continue };
                let (side, limit) = (&mut group.actor, group.input.limit());
                let bounds = smoothing.probe(self.updates, &side.net, &mut side.trace, &group.head, &group.inputs, limit);
                widen(&mut lipschitz, bounds);
            }
            self.lipschitz = lipschitz.or(self.lipschitz);
        }
        let metrics = &mut self.metrics;
        if sums.steps > 0.0 {
            let n = sums.passes;
            metrics.push("train/critic_loss", sums.critic_loss / n);
            metrics.push("train/actor_loss", sums.actor_loss / n);
            metrics.push("train/value", sums.value / n);
            metrics.push("train/td_error", sums.td_error / n);
            metrics.push("train/gradient_norm", sums.gradient_norm / n);
            metrics.push("train/learning_rate", self.config.learning_rate * remaining);
            if let Some(smoothing) = &self.groups[0].smoothing {
                sums.smoothing.log(smoothing.regularizer().weight(progress), self.lipschitz, metrics);
            }
            if let Some(config) = &self.action_regularizer {
                sums.action.log(config.weight(progress), metrics);
            }
        }
        metrics.push("train/replay", self.replay.len() as f64);
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
        for (i, group) in self.groups.iter_mut().enumerate() {
            group.acting.set_value_attack(attack.map(|(config, seeds)| (config, seeds.index(i as u64))));
        }
        true
    }

    fn lipschitz_bracket(&mut self, observations: &ObservationBatch<'_>, radius: f64, seeds: SeedTree) -> Option<Bracket> {
        let of = |(i, group): (usize, &Group)| {
            bracket_of(&group.actor.net, &group.head, &group.input, observations, radius, seeds.index(i as u64).rng())
        };
        Some(self.groups.iter().enumerate().map(of).fold(Bracket::default(), Bracket::max))
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::default();
        for group in &self.groups {
            let name = &group.name;
            for (part, side) in [("actor", &group.actor), ("critic", &group.critic)] {
                state.put_net(&format!("{name}.{part}"), &side.net);
                state.put_net(&format!("{name}.target_{part}"), &side.target);
                state.put_adam(&format!("{name}.{part}"), &side.adam);
            }
            state.put_norm(&format!("{name}.observation"), &group.input.norm.state());
            if let Some(smoothing) = &group.smoothing {
                smoothing.save(&format!("{name}.regularizer."), &mut state);
            }
        }
        state.put_reward_scale("return_scale", &self.reward_scale);
        self.replay.save(PREFIX, &mut state);
        state.put_rng("minibatches.rng", &self.rng);
        state.put_bounds("lipschitz_bounds", self.lipschitz);
        if let Some(adversary) = &self.adversary {
            adversary.save(&mut state);
        }
        state.put_u64("updates", &[self.updates]);
        state.put_u64("steps", &[self.steps]);
        state
    }

    fn load_state(&mut self, state: &StateDict) -> Result<(), AgentError> {
        self.load_policy(state)?;
        self.replay.load(PREFIX, state)
    }

    fn load_policy(&mut self, state: &StateDict) -> Result<(), AgentError> {
        for group in &mut self.groups {
            let name = group.name.clone();
            for (part, side) in [("actor", &mut group.actor), ("critic", &mut group.critic)] {
                state.load_net(&format!("{name}.{part}"), &mut side.net)?;
                state.load_net(&format!("{name}.target_{part}"), &mut side.target)?;
                state.load_adam(&format!("{name}.{part}"), &mut side.adam)?;
            }
            state.load_norm(&format!("{name}.observation"), &mut group.input.norm)?;
            if let Some(smoothing) = &mut group.smoothing {
                smoothing.load(&format!("{name}.regularizer."), state)?;
            }
        }
        state.load_reward_scale("return_scale", &mut self.reward_scale)?;
        self.rng = state.rng("minibatches.rng")?;
        self.lipschitz = state.bounds("lipschitz_bounds")?;
        if let Some(adversary) = &mut self.adversary {
            adversary.load(state)?;
        }
        self.updates = state.counter("updates")?;
        self.steps = state.counter("steps")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
