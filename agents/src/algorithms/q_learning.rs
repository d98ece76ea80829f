//! Deep Q-learning for one agent or a team: independent learners, VDN and QMIX.
//!
//! Each agent has a network of action values `Q(o, ·)`, with parameters shared as configured. A minibatch of joint transitions is drawn
//! from the replay memory, and
//!
//! ```text
//! loss = mean ( V(s, a) − ( Σ γᵏ rₖ + γⁿ V'(s', a') ) )²
//!        + weight · mean penalty                             (if a regulariser is configured)
//!        + weight · mean change of V by other actions        (if an action regulariser is configured)
//! ```
//!
//! falls, with `V'` of target networks and `a'` the greedy actions of the online networks (`double`) or of the target networks. What
//! `V` is, `mixer` says: with `independent` each agent's own value (IQL), with `sum` the sum over the team (VDN), with `monotonic` the mixing
//! network of QMIX ([`crate::nn::Mixer`]). Teams are the environment's groups; with a mixer a team learns from the mean of its
//! agents' rewards.
//!
//! Sources: Mnih et al. 2015 (Nature 518) for replay and target networks; van Hasselt et al. 2016 (arXiv 1509.06461) for double
//! Q-learning; Tampuu et al. 2017 (arXiv 1511.08779) for independent learners; Sunehag et al. 2018 (arXiv 1706.05296) for VDN; Rashid et
//! al. 2018 (arXiv 1803.11485) for QMIX. Departure: networks see one observation, not its history, and minibatches are transitions, not
//! episodes.
//!
//! Regularisers act on the individual networks, with the squared distance of action values unless another is configured; the action
//! regulariser ([`crate::regularizers::action`]) on the value of a team.
//!
//! Logged: `train/loss` (squared error), `train/td_error` (mean absolute error), `train/value` (mean of `V(s, a)`),
//! `train/gradient_norm` (before clipping), `train/learning_rate`, `train/exploration` (probability of a random action),
//! `train/replay` (steps in memory), and the regularisers' own. Before the first gradient step only the last two of them.
//!
//! The file is long because it is read from top to bottom: settings, networks, minibatches, losses, acting, saving.

use serde::{Deserialize, Serialize};
use steadfast_envs::{
    ActMode, ActionBatch, ActionsMut, EnvError, EnvSpec, ObservationBatch, ObservationBatchMut, Policy, Rng, RolloutBatch, SeedTree, Space,
};

use crate::AgentError;
use crate::acting::{Acting, Actor, ValueSource};
use crate::explore::{ExplorationConfig, greedy};
use crate::head::PolicyHead;
use crate::learner::{Learner, Metrics};
use crate::nn::{
    Activation, Adam, AdamConfig, Combined, Mixer, Mixing, Mlp, RewardScale, RunningNorm, Trace, Workspace, clip_scale, squared_norm,
};
use crate::ranges::Ranges;
use crate::regularizers::RegularizerConfig;
use crate::regularizers::action::{ActionAttack, ActionRegularizerConfig, ActionSums, JointValues};
use crate::regularizers::adversary::{AdversarialTrainingConfig, Adversary};
use crate::regularizers::attack::ObservationAttackConfig;
use crate::regularizers::bound::{Bracket, bracket_of};
use crate::regularizers::smoothing::{Backward, Smoothing, SmoothingSums, backward, observe, weight_of, widen};
use crate::replay::{PREFIX, Replay, ReplayConfig, Transitions};
use crate::returns::{REWARD_CLIP, RewardScaling};
use crate::schedule::Schedule;
use crate::state_dict::StateDict;
use crate::target::TargetConfig;
use crate::team::{OBSERVATION_CLIP, RewardSharing, SharedInput, Sharing, groups_of, share_rewards, teams_of};

/// How the values of a team's agents become the value that is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixerKind {
    /// Not at all: each agent learns its own (IQL).
    Independent,
    /// Their sum (VDN).
    Sum,
    /// A monotonic network whose weights depend on the global state (QMIX).
    Monotonic,
}

/// Settings of Q-learning. The defaults are those of EPyMARL's QMIX where both have them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QLearningConfig {
    /// How the agents' values are mixed: `independent` (IQL), `sum` (VDN) or `monotonic` (QMIX).
    pub mixer: MixerKind,
    /// Discount per step, 0 to 1.
    pub discount: f64,
    /// Steps per slot between updates, 1 to 1,000,000.
    pub rollout_steps: usize,
    /// Gradient steps per update, at least 1.
    pub gradient_steps: usize,
    /// The memory of past transitions.
    pub replay: ReplayConfig,
    /// How often actions are random.
    pub exploration: ExplorationConfig,
    /// Whether the online networks choose the actions whose values the target networks give.
    pub double: bool,
    /// How target networks follow.
    pub target: TargetConfig,
    /// Adam's learning rate, above 0.
    pub learning_rate: f64,
    /// How it changes during the run: `constant` or `linear`.
    pub learning_rate_schedule: Schedule,
    /// Adam's epsilon, above 0.
    pub adam_epsilon: f64,
    /// Largest norm of the gradient of all networks together, above 0.
    pub max_gradient_norm: f64,
    /// Whether observations and states are normalised by their running mean and deviation.
    pub normalize_observations: bool,
    /// How rewards are scaled: `none`, `return_std` or `standardize`.
    pub reward_scaling: RewardScaling,
    /// Which reward an agent learns from without a mixer: `individual` or `team_mean`. A mixer needs the team's.
    pub reward_sharing: RewardSharing,
    /// Which agents use the same networks: `all`, `group` or `none`.
    pub sharing: Sharing,
    /// Whether a one-hot agent index is appended to the inputs of shared networks.
    pub agent_index: bool,
    /// Widths of the hidden layers, 1 to 8192 each, at most 16.
    pub hidden: Vec<usize>,
    /// Activation of the hidden layers: `tanh`, `relu` or `leaky_relu`.
    pub activation: Activation,
    /// Hidden units of the mixing network, 1 to 8192.
    pub mixing_width: usize,
    /// Hidden units of the networks that give its weights, 1 to 8192.
    pub hypernetwork_hidden: usize,
}

impl Default for QLearningConfig {
    fn default() -> Self {
        Self {
            mixer: MixerKind::Independent,
            discount: 0.99,
            rollout_steps: 25,
            gradient_steps: 1,
            replay: ReplayConfig::default(),
            exploration: ExplorationConfig::default(),
            double: true,
            target: TargetConfig::default(),
            learning_rate: 5e-4,
            learning_rate_schedule: Schedule::Constant,
            adam_epsilon: 1e-8,
            max_gradient_norm: 10.0,
            normalize_observations: false,
            reward_scaling: RewardScaling::ReturnStd,
            reward_sharing: RewardSharing::TeamMean,
            sharing: Sharing::Group,
            agent_index: true,
            hidden: vec![64, 64],
            activation: Activation::Relu,
            mixing_width: 32,
            hypernetwork_hidden: 64,
        }
    }
}

impl QLearningConfig {
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
        ranges.positive("adam_epsilon", self.adam_epsilon);
        ranges.positive("max_gradient_norm", self.max_gradient_norm);
        ranges.count("mixing_width", self.mixing_width, 8192);
        ranges.count("hypernetwork_hidden", self.hypernetwork_hidden, 8192);
        ranges.widths("hidden", &self.hidden);
        ranges.finish()?;
        self.replay.validate()?;
        self.exploration.validate()?;
        self.target.validate()?;
        if self.mixer != MixerKind::Independent && self.reward_sharing == RewardSharing::Individual {
            return Err(AgentError::Config {
                field: "reward_sharing".into(),
                expected: "\"team_mean\" with a mixer, which learns the value of a team".into(),
                got: "\"individual\"".into(),
            });
        }
        Ok(())
    }
}

/// Agents that share their network.
struct Group {
    name: String,
    input: SharedInput,
    head: PolicyHead,
    net: Mlp,
    target: Mlp,
    adam: Adam,
    smoothing: Option<Smoothing>,
    trace: Trace,
    inputs: Vec<f32>,
    next_inputs: Vec<f32>,
    online_next: Vec<f32>,
    target_next: Vec<f32>,
    d_output: Vec<f32>,
    gradient: Vec<f32>,
    workspace: Workspace,
    acting: Acting,
}

/// QMIX's network of a team and what trains it.
struct MonotonicMixer {
    online: Mixer,
    target: Mixer,
    adams: [Adam; 4],
    gradients: [Vec<f32>; 4],
    mixing: Mixing,
    target_mixing: Mixing,
    combined: Combined,
    workspace: Workspace,
}

/// How a team's values are mixed.
enum TeamMixer {
    Sum,
    Monotonic(Box<MonotonicMixer>),
}

/// Agents that learn one value together; without a mixer they only share their reward.
struct Team {
    name: String,
    agents: Vec<usize>,
    /// Actions of each member.
    n_actions: usize,
    mixer: Option<TeamMixer>,
    /// `[row, member, action]`: values and the derivative of the loss.
    values: Vec<f32>,
    d_values: Vec<f32>,
    /// `[row, member]`: actions taken, their values, values at the end of the way.
    actions: Vec<u32>,
    taken: Vec<f32>,
    d_taken: Vec<f32>,
    next: Vec<f32>,
    /// `[row]`
    rewards: Vec<f32>,
    places: Vec<u32>,
    joint: Vec<f32>,
    d_joint: Vec<f32>,
    attack: ActionAttack,
}

/// Sums over the gradient steps of an update.
#[derive(Default)]
struct Sums {
    steps: f64,
    loss: f64,
    td_error: f64,
    value: f64,
    gradient_norm: f64,
    smoothing: SmoothingSums,
    action: ActionSums,
}

/// Q-learning over all agents of an environment.
pub struct QLearning {
    config: QLearningConfig,
    action_regularizer: Option<ActionRegularizerConfig>,
    n_agents: usize,
    observation_width: usize,
    groups: Vec<Group>,
    teams: Vec<Team>,
    /// Team and member of each agent.
    membership: Vec<(usize, usize)>,
    state_norm: RunningNorm,
    reward_scale: RewardScale,
    replay: Replay,
    transitions: Transitions,
    rewards: Vec<f32>,
    room: Vec<f32>,
    rng: Rng,
    exploration: f64,
    updates: u64,
    steps: u64,
    lipschitz: Option<[f64; 2]>,
    adversary: Option<Adversary>,
    metrics: Metrics,
}

impl QLearning {
    /// Builds networks for the agents of `spec`, to be trained from `n_slots` environments.
    ///
    /// # Errors
    /// [`AgentError::Config`] if a setting is out of its range or does not fit the environment.
    pub fn new(
        config: &QLearningConfig,
        regularizer: Option<&RegularizerConfig>,
        action_regularizer: Option<&ActionRegularizerConfig>,
        spec: &EnvSpec,
        n_slots: usize,
        seeds: SeedTree,
    ) -> Result<Self, AgentError> {
        config.validate()?;
        let misfit = |field: &str, expected: String, got: &str| AgentError::Config { field: field.into(), expected, got: got.into() };
        if config.mixer == MixerKind::Monotonic && spec.state_dim == 0 {
            let expected = format!("\"independent\" or \"sum\": `{}` has no global state", spec.name);
            return Err(misfit("mixer", expected, "\"monotonic\""));
        }
        if config.mixer == MixerKind::Independent && action_regularizer.is_some() {
            let expected = "absent without a mixer: an agent's own value does not depend on the others' actions".to_string();
            return Err(misfit("action_regularizer", expected, "present"));
        }
        let mut groups = Vec::new();
        for (i, (name, agents)) in groups_of(config.sharing, spec)?.into_iter().enumerate() {
            groups.push(Group::new(config, regularizer, spec, name, agents, &seeds.child("group").index(i as u64))?);
        }
        let mut teams = Vec::new();
        let mut membership = vec![(0, 0); spec.n_agents()];
        for (i, (name, agents)) in teams_of(spec).into_iter().enumerate() {
            agents.iter().enumerate().for_each(|(member, &agent)| membership[agent] = (i, member));
            let team = Team::new(config, spec, name, agents, &mut seeds.child("mixer").index(i as u64).rng())?;
            if let Some(config) = action_regularizer.filter(|_| team.agents.len() > 1) {
                config.fits(&vec![team.n_actions; team.agents.len()])?;
            }
            teams.push(team);
        }
        if action_regularizer.is_some_and(|config| teams.iter().all(|team| team.agents.len() <= config.agents)) {
            let expected = "fewer than the members of the largest team: of an agent alone its own actions would be levelled".to_string();
            let most = action_regularizer.map_or(0, |config| config.agents).to_string();
            return Err(misfit("action_regularizer.agents", expected, &most));
        }
        let with_state = config.mixer == MixerKind::Monotonic;
        Ok(Self {
            action_regularizer: action_regularizer.cloned(),
            n_agents: spec.n_agents(),
            observation_width: spec.observation_width(),
            groups,
            teams,
            membership,
            state_norm: RunningNorm::new(if with_state { spec.state_dim } else { 0 }),
            reward_scale: config.reward_scaling.scale(n_slots * spec.n_agents(), config.discount),
            replay: Replay::new(spec, n_slots, &config.replay, with_state)?,
            transitions: Transitions::default(),
            rewards: Vec::new(),
            room: Vec::new(),
            rng: seeds.child("minibatches").rng(),
            exploration: config.exploration.probability(0.0),
            updates: 0,
            steps: 0,
            lipschitz: None,
            adversary: None,
            metrics: Metrics::default(),
            config: config.clone(),
        })
    }

    /// One gradient step of all networks from a fresh minibatch.
    fn step(&mut self, progress: f64, rate: f32, sums: &mut Sums) -> Result<(), AgentError> {
        self.steps += 1;
        self.draw();
        self.evaluate();
        let rows = self.transitions.rows;
        let action_weight = self.action_regularizer.as_ref().map_or(0.0, |c| c.weight(progress));
        for team in &mut self.teams {
            team.learn(&self.transitions, &self.rewards, self.n_agents, sums);
            if let Some(config) = &self.action_regularizer
                && action_weight > 0.0
            {
                team.resist(config, action_weight, rows, &mut sums.action);
            }
            team.backward();
        }
        self.carry_back(progress, sums)?;
        let mut square = self.groups.iter().map(|g| squared_norm(&g.gradient)).sum::<f64>();
        for team in &self.teams {
            if let Some(TeamMixer::Monotonic(mixer)) = &team.mixer {
                square += mixer.gradients.iter().map(|g| squared_norm(g)).sum::<f64>();
            }
        }
        let norm = square.sqrt();
        if !norm.is_finite() {
            let tensor = "gradient norm of the action values".to_string();
            return Err(AgentError::NonFinite { tensor, value: norm as f32, update: self.updates, position: 0 });
        }
        sums.steps += 1.0;
        sums.gradient_norm += norm;
        let scale = clip_scale(norm, self.config.max_gradient_norm as f32);
        for group in &mut self.groups {
            group.adam.step(group.net.parameters_mut(), &group.gradient, rate, scale);
            if let Some(smoothing) = &mut group.smoothing {
                smoothing.constrain(&mut group.net);
            }
            self.config.target.follow(self.steps, &group.net, &mut group.target);
        }
        for team in &mut self.teams {
            let Some(TeamMixer::Monotonic(mixer)) = &mut team.mixer else { continue };
            for (((_, net), adam), gradient) in mixer.online.nets_mut().zip(&mut mixer.adams).zip(&mixer.gradients) {
                adam.step(net.parameters_mut(), gradient, rate, scale);
            }
            for ((_, online), (_, target)) in mixer.online.nets().zip(mixer.target.nets_mut()) {
                self.config.target.follow(self.steps, online, target);
            }
        }
        Ok(())
    }

    /// Draws the minibatch and brings rewards and states into the form that is learned from.
    fn draw(&mut self) {
        let (config, batch) = (&self.config, &mut self.transitions);
        self.replay.sample(&config.replay, config.discount as f32, &mut self.rng, batch);
        self.rewards.clear();
        self.rewards.extend_from_slice(&batch.rewards);
        if config.reward_sharing == RewardSharing::TeamMean {
            let teams = self.teams.iter().map(|team| team.agents.as_slice());
            share_rewards(teams, self.n_agents, &mut self.rewards);
        }
        if config.reward_scaling != RewardScaling::None {
            self.reward_scale.normalize_sums(&mut self.rewards, &batch.weights, config.replay.n_step as f32 * REWARD_CLIP);
        }
        if config.normalize_observations && self.state_norm.features() > 0 {
            for states in [&mut batch.states, &mut batch.next_states] {
                self.room.clear();
                self.room.extend_from_slice(states);
                self.state_norm.normalize(&self.room, states, OBSERVATION_CLIP);
            }
        }
    }

    /// Values of all actions now and of the chosen actions at the end of the way, sorted by teams.
    fn evaluate(&mut self) {
        let batch = &self.transitions;
        for team in &mut self.teams {
            team.prepare(batch.rows);
        }
        for group in &mut self.groups {
            group.evaluate(batch, self.n_agents, self.observation_width, self.config.double);
            let (members, n) = (group.input.members(), group.net.output());
            for row in 0..batch.rows {
                for (i, &agent) in group.input.agents.iter().enumerate() {
                    let (team, member) = self.membership[agent];
                    let team = &mut self.teams[team];
                    let (from, to) = ((row * members + i) * n, row * team.agents.len() + member);
                    team.values[to * n..(to + 1) * n].copy_from_slice(&group.trace.output()[from..from + n]);
                    let (online, target) = (&group.online_next, &group.target_next[from..from + n]);
                    let chooser = if self.config.double { &online[from..from + n] } else { target };
                    team.next[to] = target[greedy(chooser)];
                    let action = batch.discrete_actions[row * self.n_agents + agent];
                    team.actions[to] = action;
                    team.taken[to] = group.trace.output()[from + action as usize];
                }
            }
        }
    }

    /// Carries the derivatives of the teams' losses, and penalties, back through the networks.
    fn carry_back(&mut self, progress: f64, sums: &mut Sums) -> Result<(), AgentError> {
        for group in &mut self.groups {
            let (members, n) = (group.input.members(), group.net.output());
            let rows = self.transitions.rows * members;
            group.d_output.resize(rows * n, 0.0);
            for (i, d) in group.d_output.chunks_exact_mut(n).enumerate() {
                let (team, member) = self.membership[group.input.agents[i % members]];
                let team = &self.teams[team];
                let from = (i / members * team.agents.len() + member) * n;
                d.copy_from_slice(&team.d_values[from..from + n]);
            }
            group.gradient.fill(0.0);
            let weight = weight_of(group.smoothing.as_ref(), progress);
            let pass = Backward {
                net: &group.net,
                trace: &mut group.trace,
                head: &group.head,
                inputs: &group.inputs,
                members,
                limit: group.input.limit(),
                d_output: &mut group.d_output,
                gradient: &mut group.gradient,
                log_std_gradient: &mut [],
            };
            backward(group.smoothing.as_mut(), pass, weight, sums.steps == 0.0, &mut sums.smoothing)?;
        }
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
        if self.config.normalize_observations && self.state_norm.features() > 0 {
            self.state_norm.update(&batch.states[..batch.n_steps * batch.n_slots * batch.state_dim]);
        }
        if self.config.reward_scaling != RewardScaling::None {
            self.rewards.clear();
            self.rewards.extend_from_slice(&batch.rewards);
            if self.config.reward_sharing == RewardSharing::TeamMean {
                share_rewards(self.teams.iter().map(|team| team.agents.as_slice()), batch.n_agents, &mut self.rewards);
            }
            self.reward_scale.observe(&self.rewards, batch);
        }
    }

    fn check_parameters(&self) -> Result<(), AgentError> {
        let of_groups = self.groups.iter().map(|group| (&group.name, group.net.parameters()));
        let mixers = self.teams.iter().filter_map(|team| match &team.mixer {
            Some(TeamMixer::Monotonic(mixer)) => Some((&team.name, mixer)),
            _ => None,
        });
        let of_mixers = mixers.flat_map(|(name, mixer)| mixer.online.nets().map(move |(_, net)| (name, net.parameters())));
        for (name, values) in of_groups.chain(of_mixers) {
            if let Some(position) = values.iter().position(|v| !v.is_finite()) {
                let tensor = format!("action values of `{name}`");
                return Err(AgentError::NonFinite { tensor, value: values[position], update: self.updates, position });
            }
        }
        Ok(())
    }
}

impl Group {
    fn new(
        config: &QLearningConfig,
        regularizer: Option<&RegularizerConfig>,
        spec: &EnvSpec,
        name: String,
        agents: Vec<usize>,
        seeds: &SeedTree,
    ) -> Result<Self, AgentError> {
        let n = n_actions(spec, agents[0])?;
        let input = SharedInput::new(spec, agents, config.agent_index, config.normalize_observations);
        let mut rng = seeds.child("network").rng();
        // First values near 0: otherwise the greatest of them is taken for worth that nobody earned, and a mixing network can make it
        // grow faster than it is corrected (Pan et al. 2021, arXiv 2103.11883, found such explosions of QMIX in these worlds).
        let net = Mlp::new(input.width(), &config.hidden, n, config.activation, 2f32.sqrt(), 0.01, &mut rng)?;
        let head = PolicyHead::Values { n };
        let smoothing = regularizer.map(|r| Smoothing::new(r, &head, seeds.child("regularizer").rng())).transpose()?;
        let adam = AdamConfig { epsilon: config.adam_epsilon as f32, ..AdamConfig::default() };
        Ok(Self {
            name,
            input,
            head,
            target: net.clone(),
            adam: Adam::new(net.n_parameters(), adam),
            gradient: vec![0.0; net.n_parameters()],
            net,
            smoothing,
            trace: Trace::default(),
            inputs: Vec::new(),
            next_inputs: Vec::new(),
            online_next: Vec::new(),
            target_next: Vec::new(),
            d_output: Vec::new(),
            workspace: Workspace::default(),
            acting: Acting::default(),
        })
    }

    /// Values of all actions: of the online network now, of the target network, and with `double` of the online one, at the end.
    fn evaluate(&mut self, batch: &Transitions, n_agents: usize, width: usize, double: bool) {
        let rows = batch.rows * self.input.members();
        self.input.gather(&batch.observations, n_agents, width, &mut self.inputs);
        self.input.gather(&batch.next_observations, n_agents, width, &mut self.next_inputs);
        self.net.forward_train(&self.inputs, rows, &mut self.trace);
        self.target_next.resize(rows * self.net.output(), 0.0);
        self.target.forward(&self.next_inputs, rows, &mut self.target_next, &mut self.workspace);
        if double {
            self.online_next.resize(rows * self.net.output(), 0.0);
            self.net.forward(&self.next_inputs, rows, &mut self.online_next, &mut self.workspace);
        }
    }
}

/// Number of actions of an agent.
fn n_actions(spec: &EnvSpec, agent: usize) -> Result<usize, AgentError> {
    match &spec.agents[agent].action {
        Space::Discrete { n } => Ok(*n),
        other => Err(AgentError::Config {
            field: "agent".into(),
            expected: "a learner for such actions (`ppo`, `maddpg`): Q-learning needs a number of choices".into(),
            got: format!("`q_learning` with actions {other}"),
        }),
    }
}

impl Team {
    fn new(config: &QLearningConfig, spec: &EnvSpec, name: String, agents: Vec<usize>, rng: &mut Rng) -> Result<Self, AgentError> {
        let n_actions = n_actions(spec, agents[0])?;
        let mixer = match config.mixer {
            MixerKind::Independent => None,
            MixerKind::Sum => Some(TeamMixer::Sum),
            MixerKind::Monotonic => {
                let online = Mixer::new(agents.len(), spec.state_dim, config.mixing_width, config.hypernetwork_hidden, rng)?;
                let lengths: Vec<usize> = online.nets().map(|(_, net)| net.n_parameters()).collect();
                let adam = AdamConfig { epsilon: config.adam_epsilon as f32, ..AdamConfig::default() };
                Some(TeamMixer::Monotonic(Box::new(MonotonicMixer {
                    target: online.clone(),
                    online,
                    adams: std::array::from_fn(|i| Adam::new(lengths[i], adam)),
                    gradients: std::array::from_fn(|i| vec![0.0; lengths[i]]),
                    mixing: Mixing::default(),
                    target_mixing: Mixing::default(),
                    combined: Combined::default(),
                    workspace: Workspace::default(),
                })))
            }
        };
        Ok(Self {
            name,
            agents,
            n_actions,
            mixer,
            values: Vec::new(),
            d_values: Vec::new(),
            actions: Vec::new(),
            taken: Vec::new(),
            d_taken: Vec::new(),
            next: Vec::new(),
            rewards: Vec::new(),
            places: Vec::new(),
            joint: Vec::new(),
            d_joint: Vec::new(),
            attack: ActionAttack::default(),
        })
    }

    /// Makes room for `rows` joint transitions.
    fn prepare(&mut self, rows: usize) {
        let samples = rows * self.agents.len();
        self.values.resize(samples * self.n_actions, 0.0);
        self.actions.resize(samples, 0);
        self.taken.resize(samples, 0.0);
        self.next.resize(samples, 0.0);
        for derivatives in [&mut self.d_values, &mut self.d_taken] {
            derivatives.clear();
        }
        self.d_values.resize(samples * self.n_actions, 0.0);
        self.d_taken.resize(samples, 0.0);
    }

    /// The temporal-difference loss, its derivative left in `d_values`.
    fn learn(&mut self, batch: &Transitions, rewards: &[f32], n_agents: usize, sums: &mut Sums) {
        let (rows, members) = (batch.rows, self.agents.len());
        self.rewards.clear();
        self.rewards.extend((0..rows).flat_map(|row| self.agents.iter().map(move |agent| rewards[row * n_agents + agent])));
        self.places.clear();
        self.places.extend(0..rows as u32);
        let mut errors = Errors::default();
        match &mut self.mixer {
            None => {
                let scale = 2.0 / self.taken.len() as f32;
                for (i, value) in self.taken.iter().enumerate() {
                    let error = value - (self.rewards[i] + batch.bootstrap[i / members] * self.next[i]);
                    self.d_taken[i] = scale * error;
                    errors.add(error, *value);
                }
            }
            Some(mixer) => {
                if let TeamMixer::Monotonic(mixer) = mixer {
                    let MonotonicMixer { target, target_mixing, workspace, online, mixing, .. } = mixer.as_mut();
                    target.weigh(&batch.next_states, rows, target_mixing, workspace);
                    online.weigh_train(&batch.states, rows, mixing);
                }
                // Members have the same reward, the mean of the team's.
                let mut targets = Vec::new();
                mixer.combine(true, &self.places, &self.next, members, &mut targets);
                mixer.combine(false, &self.places, &self.taken, members, &mut self.joint);
                let scale = 2.0 / rows as f32;
                self.d_joint.clear();
                for row in 0..rows {
                    let error = self.joint[row] - (self.rewards[row * members] + batch.bootstrap[row] * targets[row]);
                    self.d_joint.push(scale * error);
                    errors.add(error, self.joint[row]);
                }
                mixer.add_gradient(&self.places, &self.taken, members, &self.d_joint, &mut self.d_taken);
            }
        }
        let n = errors.n;
        sums.loss += errors.square / n;
        sums.td_error += errors.absolute / n;
        sums.value += errors.value / n;
        for (i, &action) in self.actions.iter().enumerate() {
            self.d_values[i * self.n_actions + action as usize] += self.d_taken[i];
        }
    }

    /// Adds the penalty on the change of the team's value by other actions; nothing for a team of which all would act otherwise.
    fn resist(&mut self, config: &ActionRegularizerConfig, weight: f64, rows: usize, sums: &mut ActionSums) {
        let (members, n) = (self.agents.len(), self.n_actions);
        let Some(mixer) = self.mixer.as_mut().filter(|_| members > config.agents) else { return };
        let mut values = TeamValues { mixer, values: &self.values, members, n_actions: n, room: Vec::new() };
        self.attack.search(config, &mut values, &vec![n; members], &self.actions, &self.joint);
        sums.add(&self.actions, &self.attack.worst, &self.attack.change);
        // d (V − V')² = 2 (V − V') (dV − dV')
        let scale = 2.0 * (weight / rows as f64) as f32;
        for (actions, sign) in [(&self.actions, 1.0), (&self.attack.worst, -1.0)] {
            let q: Vec<f32> = actions.iter().enumerate().map(|(i, a)| self.values[i * n + *a as usize]).collect();
            self.d_joint.clear();
            self.d_joint.extend(self.attack.change.iter().map(|change| sign * scale * change));
            let mut room = Vec::new();
            mixer.combine(false, &self.places, &q, members, &mut room);
            self.d_taken.fill(0.0);
            mixer.add_gradient(&self.places, &q, members, &self.d_joint, &mut self.d_taken);
            for (i, &action) in actions.iter().enumerate() {
                self.d_values[i * n + action as usize] += self.d_taken[i];
            }
        }
    }

    /// Gradients of the mixing network.
    fn backward(&mut self) {
        if let Some(TeamMixer::Monotonic(mixer)) = &mut self.mixer {
            mixer.gradients.iter_mut().for_each(|g| g.fill(0.0));
            mixer.online.backward(&mut mixer.mixing, &mut mixer.gradients);
        }
    }
}

/// Sums of errors.
#[derive(Default)]
struct Errors {
    n: f64,
    square: f64,
    absolute: f64,
    value: f64,
}

impl Errors {
    fn add(&mut self, error: f32, value: f32) {
        let error = f64::from(error);
        self.n += 1.0;
        self.square += error * error;
        self.absolute += error.abs();
        self.value += f64::from(value);
    }
}

impl TeamMixer {
    /// Values of the team for agents' values `q` `[n, member]` at samples `places`, of the target mixer or the online one.
    fn combine(&mut self, is_target: bool, places: &[u32], q: &[f32], members: usize, out: &mut Vec<f32>) {
        out.clear();
        match self {
            Self::Sum => out.extend(q.chunks_exact(members).map(|q| q.iter().sum::<f32>())),
            Self::Monotonic(mixer) => {
                let (net, mixing) = if is_target { (&mixer.target, &mixer.target_mixing) } else { (&mixer.online, &mixer.mixing) };
                net.combine(mixing, places, q, &mut mixer.combined);
                out.extend_from_slice(&mixer.combined.values);
            }
        }
    }

    /// Adds the gradient of `Σ d_joint · value` of the online mixer's last [`TeamMixer::combine`] with these arguments.
    fn add_gradient(&mut self, places: &[u32], q: &[f32], members: usize, d_joint: &[f32], d_q: &mut [f32]) {
        match self {
            Self::Sum => d_q.chunks_exact_mut(members).zip(d_joint).for_each(|(d_q, d)| d_q.iter_mut().for_each(|d_q| *d_q += d)),
            Self::Monotonic(mixer) => mixer.online.add_gradient(&mut mixer.mixing, places, q, &mixer.combined, d_joint, d_q),
        }
    }
}

/// A team's value as a function of its members' actions.
struct TeamValues<'a> {
    mixer: &'a mut TeamMixer,
    /// `[row, member, action]`.
    values: &'a [f32],
    members: usize,
    n_actions: usize,
    room: Vec<f32>,
}

impl JointValues for TeamValues<'_> {
    fn values(&mut self, places: &[u32], actions: &[u32], out: &mut Vec<f32>) {
        let (members, n) = (self.members, self.n_actions);
        self.room.clear();
        for (&place, joint) in places.iter().zip(actions.chunks_exact(members)) {
            let of = |(member, action): (usize, &u32)| self.values[(place as usize * members + member) * n + *action as usize];
            self.room.extend(joint.iter().enumerate().map(of));
        }
        self.mixer.combine(false, places, &self.room, members, out);
    }

    fn changes(&mut self, actions: &[u32], out: &mut Vec<f32>) -> usize {
        let n = self.n_actions;
        let q: Vec<f32> = actions.iter().enumerate().map(|(i, a)| self.values[i * n + *a as usize]).collect();
        let slopes = match &mut *self.mixer {
            TeamMixer::Sum => vec![1.0; q.len()],
            TeamMixer::Monotonic(mixer) => mixer.online.slopes(&mixer.mixing, &q),
        };
        out.clear();
        for (i, slope) in slopes.iter().enumerate() {
            out.extend(self.values[i * n..(i + 1) * n].iter().map(|value| slope * (value - q[i])));
        }
        n
    }
}

impl Policy for QLearning {
    fn reset(&mut self, _slot: usize) {}

    fn disturb(&mut self, observations: &mut ObservationBatchMut<'_>, rngs: &mut [Rng]) -> steadfast_envs::Result<()> {
        if let Some(adversary) = &mut self.adversary {
            for group in &self.groups {
                adversary.disturb(&group.net, &group.head, &group.input, observations, rngs);
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
        let ActionsMut::Discrete(actions) = &mut out.actions else {
            return Err(EnvError::Policy("this policy chooses among numbered actions".to_string()));
        };
        let exploration = if mode == ActMode::Sample { self.exploration } else { 0.0 };
        for group in &mut self.groups {
            let (members, n) = (group.input.members(), group.net.output());
            let Group { name, net, head, input, acting, .. } = group;
            let outputs = acting.outputs(Actor { name, net, head, input, value: ValueSource::Outputs }, observations)?;
            for (row, values) in outputs.chunks_exact(n).enumerate() {
                let place = row / members * observations.n_agents + input.agents[row % members];
                let best = greedy(values);
                let mut action = best;
                if exploration > 0.0 {
                    let rng = &mut rngs[row / members];
                    if rng.unit() < exploration {
                        action = rng.below(n);
                    }
                }
                actions[place] = action as u32;
                let chosen = if action == best { 1.0 - exploration } else { 0.0 };
                out.log_probs[place] = (chosen + exploration / n as f64).ln() as f32;
            }
        }
        Ok(())
    }
}

impl Learner for QLearning {
    fn policy(&mut self) -> &mut dyn Policy {
        self
    }

    fn rollout_steps(&self) -> usize {
        self.config.rollout_steps
    }

    fn uses_state(&self) -> bool {
        self.config.mixer == MixerKind::Monotonic
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
        let rate = (self.config.learning_rate * remaining) as f32;
        let mut sums = Sums::default();
        if self.replay.len() >= self.config.replay.learning_starts.max(1) {
            for _ in 0..self.config.gradient_steps {
                self.step(progress, rate, &mut sums)?;
            }
            self.check_parameters()?;
            let mut lipschitz = None::<[f64; 2]>;
            for group in &mut self.groups {
                let Some(smoothing) = &mut group.smoothing else { continue };
                let (net, inputs, limit) = (&group.net, &group.inputs, group.input.limit());
                widen(&mut lipschitz, smoothing.probe(self.updates, net, &mut group.trace, &group.head, inputs, limit));
            }
            self.lipschitz = lipschitz.or(self.lipschitz);
        }
        self.exploration = self.config.exploration.probability(progress);
        let metrics = &mut self.metrics;
        if sums.steps > 0.0 {
            let n = sums.steps * self.teams.len() as f64;
            metrics.push("train/loss", sums.loss / n);
            metrics.push("train/td_error", sums.td_error / n);
            metrics.push("train/value", sums.value / n);
            metrics.push("train/gradient_norm", sums.gradient_norm / sums.steps);
            metrics.push("train/learning_rate", f64::from(rate));
            if let Some(smoothing) = &self.groups[0].smoothing {
                sums.smoothing.log(smoothing.regularizer().weight(progress), self.lipschitz, metrics);
            }
            if let Some(config) = &self.action_regularizer {
                sums.action.log(config.weight(progress), metrics);
            }
        }
        metrics.push("train/exploration", self.exploration);
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
        // A mixed value grows with each of the values that it mixes, so that every agent's own worst is the team's.
        for (i, group) in self.groups.iter_mut().enumerate() {
            group.acting.set_value_attack(attack.map(|(config, seeds)| (config, seeds.index(i as u64))));
        }
        true
    }

    fn lipschitz_bracket(&mut self, observations: &ObservationBatch<'_>, radius: f64, seeds: SeedTree) -> Option<Bracket> {
        let of = |(i, group): (usize, &Group)| {
            bracket_of(&group.net, &group.head, &group.input, observations, radius, seeds.index(i as u64).rng())
        };
        Some(self.groups.iter().enumerate().map(of).fold(Bracket::default(), Bracket::max))
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::default();
        for group in &self.groups {
            let name = &group.name;
            state.put_net(&format!("{name}.value"), &group.net);
            state.put_net(&format!("{name}.target"), &group.target);
            state.put_adam(&format!("{name}.value"), &group.adam);
            state.put_norm(&format!("{name}.observation"), &group.input.norm.state());
            if let Some(smoothing) = &group.smoothing {
                smoothing.save(&format!("{name}.regularizer."), &mut state);
            }
        }
        for team in &self.teams {
            let Some(TeamMixer::Monotonic(mixer)) = &team.mixer else { continue };
            let name = &team.name;
            for (((part, online), (_, target)), adam) in mixer.online.nets().zip(mixer.target.nets()).zip(&mixer.adams) {
                state.put_net(&format!("{name}.mixer.{part}"), online);
                state.put_net(&format!("{name}.target_mixer.{part}"), target);
                state.put_adam(&format!("{name}.mixer.{part}"), adam);
            }
        }
        state.put_norm("state", &self.state_norm.state());
        state.put_reward_scale("return_scale", &self.reward_scale);
        self.replay.save(PREFIX, &mut state);
        state.put_rng("minibatches.rng", &self.rng);
        state.put_bounds("lipschitz_bounds", self.lipschitz);
        state.put_f64("exploration", &[1], &[self.exploration]);
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
            state.load_net(&format!("{name}.value"), &mut group.net)?;
            state.load_net(&format!("{name}.target"), &mut group.target)?;
            state.load_adam(&format!("{name}.value"), &mut group.adam)?;
            state.load_norm(&format!("{name}.observation"), &mut group.input.norm)?;
            if let Some(smoothing) = &mut group.smoothing {
                smoothing.load(&format!("{name}.regularizer."), state)?;
            }
        }
        for team in &mut self.teams {
            let Some(TeamMixer::Monotonic(mixer)) = &mut team.mixer else { continue };
            let name = &team.name;
            let MonotonicMixer { online, target, adams, .. } = mixer.as_mut();
            for (((part, online), (_, target)), adam) in online.nets_mut().zip(target.nets_mut()).zip(adams) {
                state.load_net(&format!("{name}.mixer.{part}"), online)?;
                state.load_net(&format!("{name}.target_mixer.{part}"), target)?;
                state.load_adam(&format!("{name}.mixer.{part}"), adam)?;
            }
        }
        state.load_norm("state", &mut self.state_norm)?;
        state.load_reward_scale("return_scale", &mut self.reward_scale)?;
        self.rng = state.rng("minibatches.rng")?;
        self.lipschitz = state.bounds("lipschitz_bounds")?;
        self.exploration = state.f64("exploration", 1)?[0];
        if let Some(adversary) = &mut self.adversary {
            adversary.load(state)?;
        }
        self.updates = state.counter("updates")?;
        self.steps = state.counter("steps")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regularizers::action::ActionSearch;
    use steadfast_envs::testing::IdentityConfig;
    use steadfast_envs::{RolloutEngine, RolloutOptions, VectorEnv};

    /// A learner with some experience, whose steps change no parameter.
    fn frozen(config: &QLearningConfig, action: Option<&ActionRegularizerConfig>) -> QLearning {
        let seeds = SeedTree::new(3);
        let env = || IdentityConfig { n_agents: 3, ..IdentityConfig::default() }.build().unwrap();
        let vector = VectorEnv::new(vec![Box::new(env()), Box::new(env())], seeds.child("environment")).unwrap();
        let mut learner = QLearning::new(config, None, action, vector.spec(), 2, seeds.child("learner")).unwrap();
        let options = RolloutOptions { with_state: learner.uses_state(), ..Default::default() };
        let mut engine = RolloutEngine::new(vector, seeds.child("policy"), options).unwrap();
        let mut batch = RolloutBatch::default();
        engine.collect(&mut learner, 50, ActMode::Sample, &mut batch).unwrap();
        learner.observe(&batch);
        learner.replay.extend(&batch);
        learner
    }

    /// Losses of the minibatch that `rng` draws.
    fn loss(learner: &mut QLearning, rng: &Rng, weight: f64) -> f64 {
        let mut sums = Sums::default();
        learner.rng = rng.clone();
        learner.step(1.0, 0.0, &mut sums).unwrap();
        let mut metrics = Metrics::default();
        sums.action.log(weight, &mut metrics);
        sums.loss + weight * metrics.get("ernie_action/penalty").unwrap_or(0.0)
    }

    #[test]
    fn attacks_on_the_value_choose_actions_of_less_value() {
        let config = QLearningConfig { activation: Activation::Tanh, mixer: MixerKind::Sum, ..QLearningConfig::default() };
        let mut learner = frozen(&config, None);
        // Larger values than those of a fresh network, so that an observation matters.
        learner.groups[0].net.parameters_mut().iter_mut().for_each(|w| *w *= 3.0);
        let (slots, agents, width) = (12, 3, learner.groups[0].input.observation);
        let mut rng = Rng::from_seed(2);
        let observations: Vec<f32> = (0..slots * agents * width).map(|_| rng.normal_f32()).collect();
        let observed = ObservationBatch { n_slots: slots, n_agents: agents, width, observations: &observations };
        let choose = |learner: &mut QLearning| {
            let (mut indices, mut log_probs) = (vec![0; slots * agents], vec![0.0; slots * agents]);
            let mut out = ActionBatch { actions: ActionsMut::Discrete(&mut indices), log_probs: &mut log_probs };
            learner.act(&observed, &mut vec![Rng::from_seed(0); slots], ActMode::Greedy, &mut out).unwrap();
            indices
        };
        let clean = choose(&mut learner);
        let attack = ObservationAttackConfig { radius: 0.7, ..ObservationAttackConfig::default() };
        assert!(learner.set_value_attack(Some((&attack, SeedTree::new(1)))));
        let attacked = choose(&mut learner);
        learner.set_value_attack(None);
        assert_eq!(choose(&mut learner), clean);

        let Group { input, net, .. } = &learner.groups[0];
        let mut inputs = Vec::new();
        input.gather(&observations, agents, width, &mut inputs);
        let mut values = vec![0.0; slots * agents * net.output()];
        net.forward(&inputs, slots * agents, &mut values, &mut Workspace::default());
        let value = |row: usize, action: u32| values[row * net.output() + action as usize];
        let rows = || (0..slots * agents).map(|row| (value(row, clean[row]), value(row, attacked[row])));
        assert!(rows().all(|(before, after)| after <= before));
        assert!(rows().filter(|(before, after)| after < before).count() > slots, "{clean:?} {attacked:?}");
    }

    #[test]
    fn gradients_match_central_differences() {
        let weight = 0.7;
        for mixer in [MixerKind::Independent, MixerKind::Sum, MixerKind::Monotonic] {
            for (agents, only_harmful) in [(0, false), (1, false), (2, true)] {
                if agents > 0 && mixer == MixerKind::Independent {
                    continue;
                }
                let action = ActionRegularizerConfig { weight, agents, only_harmful, search: ActionSearch::Exact, ..Default::default() };
                // A smooth activation, and targets that do not depend on the online network.
                let config = QLearningConfig {
                    mixer,
                    activation: Activation::Tanh,
                    double: false,
                    hidden: vec![7],
                    mixing_width: 5,
                    hypernetwork_hidden: 6,
                    replay: ReplayConfig { batch_size: 20, n_step: 2, learning_starts: 0, capacity: 1000, ..ReplayConfig::default() },
                    ..QLearningConfig::default()
                };
                let mut learner = frozen(&config, (agents > 0).then_some(&action));
                let rng = Rng::from_seed(5);
                loss(&mut learner, &rng, weight);
                let gradient = learner.groups[0].gradient.clone();
                let h = 1e-2;
                let (mut compared, mut close) = (0, 0);
                for i in (0..gradient.len()).filter(|i| gradient[*i] != 0.0) {
                    let old = learner.groups[0].net.parameters()[i];
                    let mut at = |d: f32| {
                        learner.groups[0].net.parameters_mut()[i] = old + d;
                        loss(&mut learner, &rng, weight)
                    };
                    let numeric = (at(h) - at(-h)) / f64::from(2.0 * h);
                    learner.groups[0].net.parameters_mut()[i] = old;
                    compared += 1;
                    close += usize::from((numeric - f64::from(gradient[i])).abs() < 2e-2 * numeric.abs().max(0.1));
                }
                // Where two actions are equally bad, or a rectifier of the hypernetwork switches, differences see a kink.
                assert!(compared > 40 && close as f64 > 0.95 * f64::from(compared), "{mixer:?} {agents}: {close} of {compared}");
            }
        }
    }
}
