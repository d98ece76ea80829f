//! The contract every environment keeps, and small worlds on which learners are tested.

use serde::{Deserialize, Serialize};

use crate::environment::invalid_index;
use crate::range::require;
use crate::snapshot::{SnapshotReader, SnapshotWriter};
use crate::{Actions, AgentSpec, EnvError, EnvSpec, Environment, Result, Rng, SeedTree, Space, StepOut, TokenRows, read_tokens};

/// Longest episode of a test world.
pub(crate) const MAX_HORIZON: usize = 1_000_000;

/// One agent named `agent_0`.
pub(crate) fn single_agent(name: &str, observation: usize, action: Space, horizon: usize) -> EnvSpec {
    EnvSpec {
        name: name.to_string(),
        agents: vec![AgentSpec {
            name: "agent_0".to_string(),
            group: "agent".to_string(),
            observation: Space::unbounded(observation),
            action,
        }],
        state_dim: 0,
        horizon,
        step_seconds: 1.0,
        episode_metrics: Vec::new(),
    }
}

/// Settings of [`Identity`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityConfig {
    /// Number of symbols, 1 to 1000.
    pub symbols: usize,
    /// Number of agents, each with a symbol of its own, 1 to 1000.
    pub n_agents: usize,
    /// Whether actions are numbers between -1 and 1, to be brought near a target, instead of symbols.
    pub continuous_actions: bool,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self { symbols: 4, n_agents: 1, continuous_actions: false, horizon: 20 }
    }
}

impl IdentityConfig {
    /// Builds the world.
    ///
    /// # Errors
    /// [`EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<Identity> {
        require("identity", "symbols", self.symbols, 1, 1000)?;
        require("identity", "n_agents", self.n_agents, 1, 1000)?;
        require("identity", "horizon", self.horizon, 1, MAX_HORIZON)?;
        let action = if self.continuous_actions { Space::interval(1, -1.0, 1.0) } else { Space::Discrete { n: self.symbols } };
        let mut spec = single_agent("identity", self.symbols, action, self.horizon);
        let agent = spec.agents[0].clone();
        spec.agents = (0..self.n_agents).map(|i| AgentSpec { name: format!("agent_{i}"), ..agent.clone() }).collect();
        spec.state_dim = self.n_agents * self.symbols;
        Ok(Identity { spec, symbols: vec![0; self.n_agents], time: 0, rng: Rng::from_seed(0) })
    }
}

/// Each agent sees a random symbol as a one-hot vector and is rewarded for repeating it: 1 if right, else 0. With
/// continuous actions symbol `i` of `n` stands for the target `-1 + 2 i / (n - 1)` and the reward is one minus the
/// distance. The best return is the horizon.
#[derive(Debug)]
pub struct Identity {
    spec: EnvSpec,
    symbols: Vec<usize>,
    time: usize,
    rng: Rng,
}

impl Identity {
    fn n_symbols(&self) -> usize {
        self.spec.agents[0].observation.width()
    }

    fn draw(&mut self) {
        let n = self.n_symbols();
        for symbol in &mut self.symbols {
            *symbol = self.rng.below(n);
        }
    }
}

impl Environment for Identity {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        self.rng = SeedTree::new(seed).rng();
        self.time = 0;
        self.draw();
        self.state(observations);
    }

    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let n = self.n_symbols();
        for agent in 0..self.symbols.len() {
            let symbol = self.symbols[agent];
            out.rewards[agent] = match &self.spec.agents[agent].action {
                Space::Discrete { .. } => {
                    let action = actions.discrete("identity")?[agent];
                    if action as usize >= n {
                        return Err(invalid_index("identity", agent, n, action));
                    }
                    if action as usize == symbol { 1.0 } else { 0.0 }
                }
                Space::Box { .. } | Space::Tokens { .. } => {
                    let target = if n == 1 { 0.0 } else { -1.0 + 2.0 * symbol as f32 / (n - 1) as f32 };
                    1.0 - (actions.continuous("identity")?[agent].clamp(-1.0, 1.0) - target).abs()
                }
            };
        }
        self.time += 1;
        self.draw();
        self.state(out.observations);
        out.terminated = false;
        out.truncated = self.time >= self.spec.horizon;
        Ok(())
    }

    fn state(&self, out: &mut [f32]) {
        out.fill(0.0);
        for (one_hot, &symbol) in out.chunks_exact_mut(self.n_symbols()).zip(&self.symbols) {
            one_hot[symbol] = 1.0;
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.rng.snapshot(out);
        out.u64(self.time as u64);
        self.symbols.iter().for_each(|&s| out.u64(s as u64));
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.rng = Rng::restore(input)?;
        self.time = input.u64()? as usize;
        let n = self.n_symbols() as u64;
        for symbol in &mut self.symbols {
            let value = input.u64()?;
            if value >= n {
                return Err(EnvError::Snapshot { place: "identity".to_string(), reason: format!("symbol {value} must be below {n}") });
            }
            *symbol = value as usize;
        }
        Ok(())
    }
}

/// Settings of [`Bandit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BanditConfig {
    /// Mean reward of each arm, 1 to 1000 arms.
    pub rewards: Vec<f64>,
    /// Standard deviation of the normal noise on rewards, at least 0.
    pub std: f64,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for BanditConfig {
    fn default() -> Self {
        Self { rewards: vec![0.1, 0.9, 0.5], std: 0.1, horizon: 10 }
    }
}

impl BanditConfig {
    /// Builds the world.
    ///
    /// # Errors
    /// [`EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<Bandit> {
        require("bandit", "rewards", self.rewards.len(), 1, 1000)?;
        require("bandit", "horizon", self.horizon, 1, MAX_HORIZON)?;
        if let Some(bad) = self.rewards.iter().chain([&self.std]).find(|v| !v.is_finite()).or((self.std < 0.0).then_some(&self.std)) {
            return Err(EnvError::Config {
                env: "bandit".to_string(),
                field: "rewards, std",
                expected: "finite numbers, std at least 0".to_string(),
                got: bad.to_string(),
            });
        }
        let spec = single_agent("bandit", 1, Space::Discrete { n: self.rewards.len() }, self.horizon);
        Ok(Bandit { spec, config: self.clone(), time: 0, rng: Rng::from_seed(0) })
    }
}

/// A choice between arms with noisy rewards; the observation is always 1.
#[derive(Debug)]
pub struct Bandit {
    spec: EnvSpec,
    config: BanditConfig,
    time: usize,
    rng: Rng,
}

impl Environment for Bandit {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        self.rng = SeedTree::new(seed).rng();
        self.time = 0;
        observations[0] = 1.0;
    }

    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let arm = actions.discrete("bandit")?[0];
        let mean = self.config.rewards.get(arm as usize).ok_or_else(|| invalid_index("bandit", 0, self.config.rewards.len(), arm))?;
        out.rewards[0] = (mean + self.config.std * self.rng.normal()) as f32;
        out.observations[0] = 1.0;
        self.time += 1;
        out.terminated = false;
        out.truncated = self.time >= self.config.horizon;
        Ok(())
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        self.rng.snapshot(out);
        out.u64(self.time as u64);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.rng = Rng::restore(input)?;
        self.time = input.u64()? as usize;
        Ok(())
    }
}

/// Settings of [`Chain`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainConfig {
    /// Number of places, 2 to 1000.
    pub length: usize,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for ChainConfig {
    fn default() -> Self {
        Self { length: 6, horizon: 30 }
    }
}

impl ChainConfig {
    /// Builds the world.
    ///
    /// # Errors
    /// [`EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<Chain> {
        require("chain", "horizon", self.horizon, 1, MAX_HORIZON)?;
        require("chain", "length", self.length, 2, 1000)?;
        Ok(Chain { spec: single_agent("chain", self.length, Space::Discrete { n: 2 }, self.horizon), place: 0, time: 0 })
    }
}

/// A corridor: action 1 moves ahead, action 0 back. The far end terminates the episode with reward 1; going back from
/// the start pays 0.001 per step, which tempts a learner without credit over time. (For a discount above 0.999 staying
/// would be right: a learner that treats the time limit as a truncation expects to go on for ever.)
#[derive(Debug)]
pub struct Chain {
    spec: EnvSpec,
    place: usize,
    time: usize,
}

impl Chain {
    fn observe(&self, out: &mut [f32]) {
        out.fill(0.0);
        out[self.place] = 1.0;
    }
}

impl Environment for Chain {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, _seed: u64, observations: &mut [f32]) {
        (self.place, self.time) = (0, 0);
        self.observe(observations);
    }

    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let last = self.spec.agents[0].observation.width() - 1;
        out.rewards[0] = 0.0;
        match actions.discrete("chain")?[0] {
            0 if self.place == 0 => out.rewards[0] = 0.001,
            0 => self.place -= 1,
            1 => self.place += 1,
            other => return Err(invalid_index("chain", 0, 2, other)),
        }
        self.time += 1;
        out.terminated = self.place == last;
        out.truncated = self.time >= self.spec.horizon;
        if out.terminated {
            out.rewards[0] = 1.0;
        }
        self.observe(out.observations);
        Ok(())
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        out.u64(self.place as u64);
        out.u64(self.time as u64);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        let place = input.u64()? as usize;
        if place >= self.spec.agents[0].observation.width() {
            return Err(EnvError::Snapshot { place: "chain".to_string(), reason: format!("place {place} is outside the corridor") });
        }
        self.place = place;
        self.time = input.u64()? as usize;
        Ok(())
    }
}

/// Uniformly random actions inside the spaces of `spec`; unbounded coordinates are standard normal. Token sequences are the
/// business of [`random_tokens`].
///
/// `discrete`: `[agent]`; `continuous`: `[agent, action_width]`. Only the one of the environment's kind is written.
pub fn random_actions(spec: &EnvSpec, rng: &mut Rng, discrete: &mut [u32], continuous: &mut [f32]) {
    let width = spec.action_width();
    for (agent, agent_spec) in spec.agents.iter().enumerate() {
        match &agent_spec.action {
            Space::Discrete { n } => discrete[agent] = rng.below(*n) as u32,
            Space::Tokens { .. } => {}
            Space::Box { low, high } => {
                for (i, (&l, &h)) in low.iter().zip(high).enumerate() {
                    continuous[agent * width + i] =
                        if l.is_finite() && h.is_finite() { l + (h - l) * rng.unit_f32() } else { rng.normal_f32() };
                }
            }
        }
    }
}

/// Uniformly random token sequences of 1 to `max_tokens` tokens, for worlds of text.
///
/// `tokens`: `[agent, action_width]`, 0 behind each end; `lengths`: `[agent]`.
pub fn random_tokens(spec: &EnvSpec, rng: &mut Rng, tokens: &mut [u32], lengths: &mut [u32]) {
    let width = spec.action_width();
    for (agent, agent_spec) in spec.agents.iter().enumerate() {
        if let Space::Tokens { vocab_size, max_tokens } = agent_spec.action {
            let row = &mut tokens[agent * width..(agent + 1) * width];
            let length = 1 + rng.below(max_tokens);
            row.fill(0);
            row[..length].fill_with(|| rng.below(vocab_size) as u32);
            lengths[agent] = length as u32;
        }
    }
}

/// What an episode under random actions looked like.
#[derive(Debug, Clone, PartialEq)]
struct Trace {
    observations: Vec<f32>,
    rewards: Vec<f32>,
    states: Vec<f32>,
    ends: Vec<(bool, bool)>,
    metrics: Vec<f64>,
}

/// Buffers for driving one environment by hand.
struct Driver {
    env: Box<dyn Environment>,
    observations: Vec<f32>,
    rewards: Vec<f32>,
    discrete: Vec<u32>,
    continuous: Vec<f32>,
    tokens: Vec<u32>,
    lengths: Vec<u32>,
}

impl Driver {
    fn new(env: Box<dyn Environment>) -> Self {
        let spec = env.spec();
        let (n, width) = (spec.n_agents(), spec.action_width());
        Self {
            observations: vec![0.0; n * spec.observation_width()],
            rewards: vec![0.0; n],
            discrete: vec![0; n],
            continuous: vec![0.0; n * width],
            tokens: vec![0; n * width],
            lengths: vec![0; n],
            env,
        }
    }

    /// Runs until the episode ends; returns the trace and, if asked, the snapshot before step `at`.
    fn run(&mut self, rng: &mut Rng, trace: &mut Trace, snapshot_at: Option<usize>) -> Result<Option<Vec<u64>>> {
        let spec = self.env.spec().clone();
        let mut snapshot = None;
        for time in 0.. {
            if snapshot_at == Some(time) {
                let mut writer = SnapshotWriter::default();
                self.env.snapshot(&mut writer);
                rng.snapshot(&mut writer);
                snapshot = Some(writer.into_words());
                *trace = Trace { observations: vec![], rewards: vec![], states: vec![], ends: vec![], metrics: vec![] };
            }
            random_actions(&spec, rng, &mut self.discrete, &mut self.continuous);
            random_tokens(&spec, rng, &mut self.tokens, &mut self.lengths);
            let actions = match spec.agents[0].action {
                Space::Discrete { .. } => Actions::Discrete(&self.discrete),
                Space::Box { .. } => Actions::Continuous(&self.continuous),
                Space::Tokens { .. } => {
                    Actions::Tokens(TokenRows { tokens: &self.tokens, lengths: &self.lengths, width: spec.action_width() })
                }
            };
            let mut out = StepOut { observations: &mut self.observations, rewards: &mut self.rewards, terminated: false, truncated: false };
            self.env.step(actions, &mut out)?;
            let end = (out.terminated, out.truncated);
            trace.ends.push(end);
            trace.observations.extend_from_slice(&self.observations);
            trace.rewards.extend_from_slice(&self.rewards);
            let mut state = vec![0.0; spec.state_dim];
            self.env.state(&mut state);
            trace.states.extend(state);
            if end.0 || end.1 {
                break;
            }
            if time > spec.horizon {
                return Err(broken(&spec, "an episode went on past its horizon"));
            }
        }
        trace.metrics = vec![0.0; spec.episode_metrics.len()];
        self.env.episode_metrics(&mut trace.metrics);
        Ok(snapshot)
    }
}

fn broken(spec: &EnvSpec, what: &str) -> EnvError {
    EnvError::Snapshot { place: spec.name.clone(), reason: format!("the environment breaks its contract: {what}") }
}

/// Checks what every environment promises: a sound specification, finite numbers, padding left at zero, ends by the
/// horizon, the same episode from the same seed whatever came before, invalid actions refused, and an exact future
/// after `restore`.
///
/// # Errors
/// An [`EnvError`] that says which promise was broken.
pub fn check_environment(build: &dyn Fn() -> Result<Box<dyn Environment>>) -> Result<()> {
    let env = build()?;
    let spec = env.spec().clone();
    if spec.agents.is_empty() || spec.horizon == 0 || spec.step_seconds <= 0.0 {
        return Err(broken(&spec, "agents, horizon and step_seconds must be positive"));
    }
    for agent in &spec.agents {
        if agent.observation.is_discrete() {
            return Err(broken(&spec, "observations must be boxes or token sequences"));
        }
        if agent.action.is_discrete() != spec.has_discrete_actions() || agent.action.is_tokens() != spec.has_token_actions() {
            return Err(broken(&spec, "all agents must have the same kind of action"));
        }
        let same = spec.agents.iter().filter(|a| a.group == agent.group);
        if same.into_iter().any(|a| a.observation != agent.observation || a.action != agent.action) {
            return Err(broken(&spec, "agents of a group must have equal spaces"));
        }
        if spec.agents.iter().filter(|a| a.name == agent.name).count() != 1 {
            return Err(broken(&spec, "agents must have different names"));
        }
    }
    let empty = Trace { observations: vec![], rewards: vec![], states: vec![], ends: vec![], metrics: vec![] };
    let mut used = Driver::new(env);
    let mut lengths = Vec::new();
    for seed in 0..6 {
        let mut first = empty.clone();
        used.env.reset(seed, &mut used.observations);
        first.observations.extend_from_slice(&used.observations);
        used.run(&mut Rng::from_seed(seed), &mut first, None)?;
        lengths.push(first.ends.len());
        let finite = [&first.observations, &first.rewards, &first.states];
        if finite.iter().any(|values| values.iter().any(|v| !v.is_finite())) || first.metrics.iter().any(|v| !v.is_finite()) {
            return Err(broken(&spec, "a number is not finite"));
        }
        let width = spec.observation_width();
        for row in first.observations.chunks_exact(width * spec.n_agents()) {
            for (agent, features) in row.chunks_exact(width).enumerate() {
                let own = spec.agents[agent].observation.width();
                if features[own..].iter().any(|&v| v != 0.0) {
                    return Err(broken(&spec, "padding behind a short observation must stay 0"));
                }
                if let Space::Box { low, high } = &spec.agents[agent].observation
                    && features.iter().zip(low.iter().zip(high)).any(|(v, (l, h))| v < l || v > h)
                {
                    return Err(broken(&spec, "an observation is outside its space"));
                }
                if let Space::Tokens { vocab_size, .. } = spec.agents[agent].observation {
                    let mut tokens = Vec::new();
                    read_tokens(&features[..own], &mut tokens)?;
                    if tokens.is_empty() || tokens.iter().any(|&t| t as usize >= vocab_size) {
                        return Err(broken(&spec, "a prompt must have tokens, all of them in the vocabulary"));
                    }
                    if features[1 + tokens.len()..].iter().any(|&v| v != 0.0) {
                        return Err(broken(&spec, "what stands behind a prompt must be 0"));
                    }
                }
            }
        }
        // A fresh environment must agree with one that has played other episodes.
        let mut fresh = Driver::new(build()?);
        let mut again = empty.clone();
        fresh.env.reset(seed, &mut fresh.observations);
        again.observations.extend_from_slice(&fresh.observations);
        fresh.run(&mut Rng::from_seed(seed), &mut again, None)?;
        if first != again {
            return Err(broken(&spec, "the same seed gave another episode"));
        }
        // Restore in the middle.
        let middle = (first.ends.len() / 2).min(first.ends.len() - 1);
        let mut tail = empty.clone();
        used.env.reset(seed, &mut used.observations);
        let words = used.run(&mut Rng::from_seed(seed), &mut tail, Some(middle))?.ok_or_else(|| broken(&spec, "no snapshot"))?;
        let mut restored = Driver::new(build()?);
        restored.env.reset(seed + 99, &mut restored.observations);
        let mut reader = SnapshotReader::new(&spec.name, &words);
        restored.env.restore(&mut reader)?;
        let mut rng = Rng::restore(&mut reader)?;
        reader.finish()?;
        let mut future = empty.clone();
        restored.run(&mut rng, &mut future, None)?;
        if future != tail {
            return Err(broken(&spec, "a restored episode has another future"));
        }
        let mut short = SnapshotReader::new(&spec.name, &words[..words.len().min(2)]);
        if restored.env.restore(&mut short).is_ok() && words.len() > 10 {
            return Err(broken(&spec, "a truncated snapshot was accepted"));
        }
    }
    // Refusal of actions that do not exist.
    used.env.reset(0, &mut used.observations);
    used.discrete.fill(u32::MAX);
    used.continuous.fill(0.0);
    used.tokens.fill(u32::MAX);
    used.lengths.fill(1);
    let wrong = if spec.has_discrete_actions() {
        Actions::Discrete(&used.discrete)
    } else if spec.has_token_actions() {
        Actions::Tokens(TokenRows { tokens: &used.tokens, lengths: &used.lengths, width: spec.action_width() })
    } else {
        Actions::Discrete(&[])
    };
    let mut out = StepOut { observations: &mut used.observations, rewards: &mut used.rewards, terminated: false, truncated: false };
    if used.env.step(wrong, &mut out).is_ok() {
        return Err(broken(&spec, "an invalid action was accepted"));
    }
    if lengths.iter().any(|&l| l > spec.horizon) {
        return Err(broken(&spec, "an episode was longer than the horizon"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EnvConfig;

    #[test]
    fn test_worlds_keep_the_contract() {
        let continuous = IdentityConfig { continuous_actions: true, n_agents: 3, ..Default::default() };
        for config in [
            EnvConfig::Identity(IdentityConfig::default()),
            EnvConfig::Identity(continuous),
            EnvConfig::Bandit(BanditConfig::default()),
            EnvConfig::Chain(ChainConfig::default()),
        ] {
            check_environment(&|| config.build()).unwrap();
        }
    }

    #[test]
    fn chain_terminates_at_the_end_and_truncates_at_the_horizon() {
        let mut chain = ChainConfig { length: 3, horizon: 2 }.build().unwrap();
        let mut observations = [0.0; 3];
        let mut rewards = [0.0];
        chain.reset(0, &mut observations);
        let mut ends = Vec::new();
        for _ in 0..2 {
            let mut out = StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false };
            chain.step(Actions::Discrete(&[1]), &mut out).unwrap();
            ends.push((out.terminated, out.truncated));
        }
        assert_eq!(ends, [(false, false), (true, true)]);
        assert_eq!(rewards, [1.0]);
    }

    /// A world that repeats its mistake of remembering the last episode.
    struct Forgetful(Bandit);

    impl Environment for Forgetful {
        fn spec(&self) -> &EnvSpec {
            self.0.spec()
        }
        fn reset(&mut self, _seed: u64, observations: &mut [f32]) {
            observations[0] = 1.0;
            self.0.time = 0;
        }
        fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
            self.0.step(actions, out)
        }
        fn snapshot(&self, out: &mut SnapshotWriter) {
            self.0.snapshot(out);
        }
        fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
            self.0.restore(input)
        }
    }

    #[test]
    fn the_check_finds_a_broken_world() {
        let error = check_environment(&|| Ok(Box::new(Forgetful(BanditConfig::default().build()?)))).unwrap_err();
        assert!(error.to_string().contains("same seed"), "{error}");
    }
}
