//! An attacker that learns: some agents are turned, and trained to make the policies of the others fail.
//!
//! The victims' policies are frozen. At each step the action of a turned agent is, with a probability, the attacker's in
//! place of its own; the attacker observes what that agent observes, is paid the negative mean reward of the agents that are
//! not turned (of all if none is left) and is trained by PPO on the actions it chose, applied or not. It is evaluated as it
//! ends, in episodes that it has not seen.
//!
//! Sources: Gleave et al. 2020, "Adversarial Policies: Attacking Deep Reinforcement Learning" (arXiv 1905.10615), for
//! attackers trained against frozen policies; Li et al. 2024, "Byzantine Robust Cooperative Multi-Agent Reinforcement Learning as a
//! Bayesian Game" (arXiv 2305.12872), for teammates that are turned.

use std::path::Path;

use serde::{Deserialize, Serialize};
use steadfast_agents::algorithms::ppo::{Critic, Ppo, PpoConfig};
use steadfast_agents::returns::RewardScaling;
use steadfast_agents::schedule::Schedule;
use steadfast_agents::{Learner, StateDict};
use steadfast_envs::perturb::MaliciousActionConfig;
use steadfast_envs::{
    ActMode, ActionBatch, ActionsMut, EnvSpec, ObservationBatch, PerturbationConfig, Policy, Rng, RolloutBatch, RolloutEngine,
    RolloutOptions, SeedTree,
};

use crate::config::ExperimentConfig;
use crate::experiment::build::{self, Ground};
use crate::failure::{Failure, Result};
use crate::run::checkpoint::{self, Checkpoint, Progress};

/// Settings of the axis `learned_attacker`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LearnedAttackerConfig {
    /// Probability that a turned agent does what the attacker wants, per agent and step, 0 to 1.
    pub probability: f64,
    /// Names or groups of the agents that can be turned; all if empty.
    pub agents: Vec<String>,
    /// How many of them are turned, the first ones, at least 1.
    pub count: usize,
    /// Joint environment steps for which the attacker is trained, at least 1.
    pub steps: u64,
    /// Seed of the attacker's training.
    pub seed: u64,
}

impl Default for LearnedAttackerConfig {
    fn default() -> Self {
        Self { probability: 1.0, agents: Vec::new(), count: 1, steps: 200_000, seed: 0 }
    }
}

/// Environments in which an attacker is trained side by side.
const SLOTS: usize = 16;

impl LearnedAttackerConfig {
    /// Checks the ranges given with the fields, and that the agents exist in `spec`.
    ///
    /// # Errors
    /// The reason, naming the field.
    pub fn validate(&self, spec: &EnvSpec) -> std::result::Result<(), String> {
        let malice = MaliciousActionConfig {
            probability: self.probability,
            agents: self.agents.clone(),
            count: Some(self.count),
            ..MaliciousActionConfig::default()
        };
        let reason = |e: steadfast_envs::EnvError| e.to_string().replace("malicious_action", "learned_attacker");
        PerturbationConfig::MaliciousAction(malice).validate(spec).map_err(reason)?;
        match (self.count, self.steps) {
            (0, _) => Err("`count` must be at least 1, got 0".to_string()),
            (_, 0) => Err("`steps` must be at least 1, got 0".to_string()),
            _ => Ok(()),
        }
    }

    /// All that the training of an attacker depends on besides the victims and the world, in words.
    ///
    /// # Errors
    /// [`Failure::Run`] if it cannot be written down.
    pub fn in_words(&self) -> Result<String> {
        let problem = |e| Failure::caused("cannot write down the settings of the attacker", e);
        let own = toml::to_string(self).map_err(problem)?;
        Ok(format!("{own}{}slots = {SLOTS}\n", toml::to_string(&ppo_of(true)).map_err(problem)?))
    }

    /// Indices of the turned agents.
    fn turned(&self, spec: &EnvSpec) -> Vec<usize> {
        let can_turn = |&i: &usize| {
            let agent = &spec.agents[i];
            self.agents.is_empty() || self.agents.iter().any(|wanted| *wanted == agent.name || *wanted == agent.group)
        };
        (0..spec.n_agents()).filter(can_turn).take(self.count).collect()
    }
}

/// Settings with which attackers learn, in worlds that have a state for a central critic or none.
fn ppo_of(has_state: bool) -> PpoConfig {
    PpoConfig {
        rollout_steps: 128,
        epochs: 5,
        minibatch_size: 512,
        learning_rate: 1e-3,
        learning_rate_schedule: Schedule::Linear,
        entropy_coefficient: 0.01,
        normalize_observations: true,
        reward_scaling: RewardScaling::ReturnStd,
        critic: if has_state { Critic::Central } else { Critic::Local },
        agent_index: true,
        ..PpoConfig::default()
    }
}

/// The turned agents and what moves them.
pub struct Attacker {
    learner: Ppo,
    agents: Vec<usize>,
    probability: f64,
    spec: EnvSpec,
}

impl Attacker {
    /// An attacker that knows nothing, in the world of `spec`.
    fn new(config: &LearnedAttackerConfig, spec: &EnvSpec) -> Result<Self> {
        let agents = config.turned(spec);
        let own = EnvSpec { agents: agents.iter().map(|&i| spec.agents[i].clone()).collect(), ..spec.clone() };
        let ppo = ppo_of(spec.state_dim > 0);
        let seeds = SeedTree::new(config.seed).child("learned_attacker").child("learner");
        let learner = Ppo::new(&ppo, None, &own, SLOTS, seeds).map_err(|e| Failure::caused("cannot build the attacker", e))?;
        Ok(Self { learner, agents, probability: config.probability, spec: own })
    }

    /// The attacker that is kept at `place`, or one that is trained against `victims` and then kept there.
    ///
    /// # Errors
    /// [`Failure::Run`] if training fails or the place cannot be read or written.
    pub fn kept(
        place: &Path,
        settings: &LearnedAttackerConfig,
        config: &ExperimentConfig,
        ground: &Ground,
        spec: &EnvSpec,
        victims: &mut dyn Policy,
        mode: ActMode,
    ) -> Result<Self> {
        let mut attacker = Self::new(settings, spec)?;
        if let (Some(found), _) = checkpoint::newest(place) {
            let unfit = |e| Failure::caused_with_help(format!("{} does not fit", place.display()), e, "remove it to train it again");
            attacker.learner.load_state(&found.learner).map_err(unfit)?;
            return Ok(attacker);
        }
        tracing::info!(attacker = %place.display(), steps = settings.steps, "training");
        attacker.train(settings, config, ground, victims, mode)?;
        let progress = Progress { step: settings.steps, ..Progress::default() };
        let checkpoint = Checkpoint { progress, learner: attacker.learner.state(), engine: StateDict::default(), reward: None };
        checkpoint::save(place, &checkpoint, 1)?;
        Ok(attacker)
    }

    fn train(
        &mut self,
        settings: &LearnedAttackerConfig,
        config: &ExperimentConfig,
        ground: &Ground,
        victims: &mut dyn Policy,
        mode: ActMode,
    ) -> Result<()> {
        let seeds = SeedTree::new(settings.seed).child("learned_attacker");
        let failed = |e| Failure::caused("training the attacker failed", e);
        let options = RolloutOptions { with_state: self.learner.uses_state(), ..RolloutOptions::default() };
        let mut engine = build::worlds(config, ground, SLOTS, 1, &[], seeds.child("environment"))
            .and_then(|worlds| RolloutEngine::new(worlds, seeds.child("policy"), options))
            .map_err(failed)?;
        let (mut all, mut own) = (RolloutBatch::default(), RolloutBatch::default());
        let rollout = self.learner.rollout_steps();
        let mut step = 0;
        while step < settings.steps {
            let mut turned = Turned::new(self, victims, mode, true);
            engine.collect(&mut turned, rollout, ActMode::Sample, &mut all).map_err(failed)?;
            let chosen = turned.chosen;
            self.experience(&all, chosen, &mut own);
            let progress = step as f64 / settings.steps as f64;
            self.learner.update(&own, progress).map_err(|e| Failure::caused("training the attacker failed", e))?;
            step += (rollout * SLOTS) as u64;
        }
        Ok(())
    }

    /// What the turned agents lived through, `all` being what all agents did.
    fn experience(&self, all: &RolloutBatch, chosen: Chosen, own: &mut RolloutBatch) {
        let (agents, width) = (all.n_agents, self.spec.observation_width());
        own.n_steps = all.n_steps;
        own.n_slots = all.n_slots;
        own.n_agents = self.agents.len();
        own.observation_width = width;
        own.action_width = if self.spec.has_continuous_actions() { self.spec.action_width() } else { 0 };
        own.state_dim = all.state_dim;
        own.observations.clear();
        select(&all.observations, agents, all.observation_width, &self.agents, width, &mut own.observations);
        own.final_observations.clear();
        select(&all.final_observations, agents, all.observation_width, &self.agents, width, &mut own.final_observations);
        own.states.clone_from(&all.states);
        own.final_states.clone_from(&all.final_states);
        own.terminated.clone_from(&all.terminated);
        own.truncated.clone_from(&all.truncated);
        own.ends.clone_from(&all.ends);
        (own.discrete_actions, own.continuous_actions, own.log_probs) = (chosen.discrete, chosen.continuous, chosen.log_probs);
        let victims: Vec<usize> = (0..agents).filter(|i| !self.agents.contains(i)).collect();
        let payers = if victims.is_empty() { &self.agents } else { &victims };
        own.rewards.clear();
        for rewards in all.rewards.chunks_exact(agents) {
            let mean = payers.iter().map(|&i| rewards[i]).sum::<f32>() / payers.len() as f32;
            own.rewards.extend(self.agents.iter().map(|_| -mean));
        }
    }

    /// The policies of all agents, those of the turned ones under attack.
    pub fn against<'a>(&'a mut self, victims: &'a mut dyn Policy, mode: ActMode) -> impl Policy + 'a {
        Turned::new(self, victims, mode, false)
    }
}

/// Appends the first `width` features of some agents of `[row, agent, all_width]` to `out`.
fn select(observations: &[f32], n_agents: usize, all_width: usize, agents: &[usize], width: usize, out: &mut Vec<f32>) {
    for row in observations.chunks_exact((n_agents * all_width).max(1)) {
        for &agent in agents {
            out.extend_from_slice(&row[agent * all_width..][..width]);
        }
    }
}

/// What the attacker chose, step by step, in the order of a batch of its own.
#[derive(Default)]
struct Chosen {
    discrete: Vec<u32>,
    continuous: Vec<f32>,
    log_probs: Vec<f32>,
}

/// Victims and attacker as one policy.
struct Turned<'a> {
    attacker: &'a mut Attacker,
    victims: &'a mut dyn Policy,
    /// How the victims choose; the attacker chooses as it is asked.
    mode: ActMode,
    /// Whether `chosen` grows step by step.
    keeps: bool,
    chosen: Chosen,
    observations: Vec<f32>,
}

impl<'a> Turned<'a> {
    fn new(attacker: &'a mut Attacker, victims: &'a mut dyn Policy, mode: ActMode, keeps: bool) -> Self {
        Self { attacker, victims, mode, keeps, chosen: Chosen::default(), observations: Vec::new() }
    }
}

impl Policy for Turned<'_> {
    fn reset(&mut self, slot: usize) {
        self.victims.reset(slot);
        self.attacker.learner.policy().reset(slot);
    }

    fn act(
        &mut self,
        observations: &ObservationBatch<'_>,
        rngs: &mut [Rng],
        mode: ActMode,
        out: &mut ActionBatch<'_>,
    ) -> steadfast_envs::Result<()> {
        self.victims.act(observations, rngs, self.mode, out)?;
        let Attacker { learner, agents, probability, spec } = &mut *self.attacker;
        let (width, action_width) = (spec.observation_width(), spec.action_width());
        let rows = observations.n_slots * agents.len();
        self.observations.clear();
        select(observations.observations, observations.n_agents, observations.width, agents, width, &mut self.observations);
        let Chosen { discrete, continuous, log_probs } = &mut self.chosen;
        if !self.keeps {
            discrete.clear();
            continuous.clear();
            log_probs.clear();
        }
        let first = log_probs.len();
        log_probs.resize(first + rows, 0.0);
        let is_discrete = spec.has_discrete_actions();
        let actions = if is_discrete {
            discrete.resize(first + rows, 0);
            ActionsMut::Discrete(&mut discrete[first..])
        } else {
            continuous.resize((first + rows) * action_width, 0.0);
            ActionsMut::Continuous(&mut continuous[first * action_width..])
        };
        let (n_slots, n_agents) = (observations.n_slots, agents.len());
        let seen = ObservationBatch { n_slots, n_agents, width, observations: &self.observations };
        learner.policy().act(&seen, rngs, mode, &mut ActionBatch { actions, log_probs: &mut log_probs[first..] })?;
        for (slot, rng) in rngs.iter_mut().enumerate().take(n_slots) {
            for (turned, &agent) in agents.iter().enumerate() {
                // One draw whatever happens, so that levels share their random numbers.
                if rng.unit() >= *probability {
                    continue;
                }
                let (from, to) = (first + slot * n_agents + turned, slot * observations.n_agents + agent);
                match &mut out.actions {
                    ActionsMut::Discrete(actions) => actions[to] = discrete[from],
                    ActionsMut::Continuous(actions) => {
                        let all_width = actions.len() / (n_slots * observations.n_agents);
                        actions[to * all_width..][..action_width].copy_from_slice(&continuous[from * action_width..][..action_width]);
                    }
                    ActionsMut::Tokens(_) => {}
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use steadfast_envs::testing::BanditConfig;
    use steadfast_envs::{EnvConfig, UniformPolicy, VectorEnv};

    use super::*;

    fn spec_of(env: &EnvConfig) -> EnvSpec {
        env.build().unwrap().spec().clone()
    }

    #[test]
    fn turned_agents_are_the_first_of_those_named() {
        let spec = spec_of(&EnvConfig::SimpleTag(Default::default()));
        let turned = |agents: &[&str], count| {
            let agents = agents.iter().map(ToString::to_string).collect();
            let config = LearnedAttackerConfig { agents, count, ..Default::default() };
            config.validate(&spec).map(|()| config.turned(&spec))
        };
        assert_eq!(turned(&[], 2), Ok(vec![0, 1]));
        let prey = spec.agents.iter().position(|a| a.group != spec.agents[0].group).unwrap();
        assert_eq!(turned(&[&spec.agents[prey].name], 1), Ok(vec![prey]));
        for (agents, count, word) in [(&["nobody"][..], 1, "`nobody`"), (&[], 99, "`count`"), (&[], 0, "`count`")] {
            let message = turned(agents, count).unwrap_err();
            assert!(message.contains(word), "{message}");
        }
        assert!(LearnedAttackerConfig { steps: 0, ..Default::default() }.validate(&spec).unwrap_err().contains("`steps`"));
        assert!(LearnedAttackerConfig { probability: 1.5, ..Default::default() }.validate(&spec).is_err());
    }

    #[test]
    fn actions_are_replaced_at_their_rate_and_others_stay() {
        let env = EnvConfig::SimpleSpread(Default::default());
        let spec = spec_of(&env);
        for (probability, expected) in [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0)] {
            let config = LearnedAttackerConfig { probability, agents: vec!["agent_1".to_string()], ..Default::default() };
            let mut attacker = Attacker::new(&config, &spec).unwrap();
            // Victims that always pause, and an attacker that hardly ever does.
            let mut victims = Paused;
            let worlds = VectorEnv::new((0..8).map(|_| env.build().unwrap()).collect(), SeedTree::new(1)).unwrap();
            let mut engine = RolloutEngine::new(worlds, SeedTree::new(2), RolloutOptions::default()).unwrap();
            let (mut batch, mut own) = (RolloutBatch::default(), RolloutBatch::default());
            let mut turned = Turned::new(&mut attacker, &mut victims, ActMode::Greedy, true);
            engine.collect(&mut turned, 200, ActMode::Sample, &mut batch).unwrap();
            let chosen = turned.chosen;
            attacker.experience(&batch, chosen, &mut own);
            let actions: Vec<&[u32]> = batch.discrete_actions.chunks_exact(3).collect();
            assert!(actions.iter().all(|a| a[0] == 0 && a[2] == 0));
            let by_choice = actions.iter().zip(&own.discrete_actions).filter(|(a, own)| a[1] == **own && **own != 0).count();
            let others = own.discrete_actions.iter().filter(|a| **a != 0).count();
            assert!((by_choice as f64 / others as f64 - expected).abs() < 0.04, "{probability}: {by_choice} of {others}");
            // Its observations are those of its agent, and it earns what the others lose.
            assert_eq!(own.observations[..18], batch.observations[18..36]);
            assert_eq!(own.rewards[5], -(batch.rewards[15] + batch.rewards[17]) / 2.0);
            assert_eq!((own.n_agents, own.rewards.len(), own.log_probs.len()), (1, 1600, 1600));
        }
    }

    struct Paused;

    impl Policy for Paused {
        fn reset(&mut self, _slot: usize) {}

        fn act(&mut self, _: &ObservationBatch<'_>, _: &mut [Rng], _: ActMode, out: &mut ActionBatch<'_>) -> steadfast_envs::Result<()> {
            if let ActionsMut::Discrete(actions) = &mut out.actions {
                actions.fill(0);
            }
            out.log_probs.fill(0.0);
            Ok(())
        }
    }

    #[test]
    fn an_attacker_finds_the_worst_arm_and_is_kept() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("attacker");
        let env = EnvConfig::Bandit(BanditConfig { rewards: vec![0.5, 1.0, 0.0, 0.7], std: 0.1, horizon: 20 });
        let config = ExperimentConfig { env: env.clone(), ..ExperimentConfig::default() };
        let spec = spec_of(&env);
        let settings = LearnedAttackerConfig { steps: 30_000, ..Default::default() };
        let kept = || {
            let mut victims = UniformPolicy::new(&spec).unwrap();
            Attacker::kept(&directory, &settings, &config, &Ground::default(), &spec, &mut victims, ActMode::Greedy).unwrap()
        };
        let mut attacker = kept();
        let worlds = VectorEnv::new(vec![env.build().unwrap()], SeedTree::new(1)).unwrap();
        let mut engine = RolloutEngine::new(worlds, SeedTree::new(2), RolloutOptions::default()).unwrap();
        let mut victims = UniformPolicy::new(&spec).unwrap();
        let episodes = engine.evaluate(&mut attacker.against(&mut victims, ActMode::Greedy), 20, ActMode::Greedy).unwrap();
        let mean = episodes.iter().map(|e| e.agent_mean()).sum::<f64>() / 20.0 / 20.0;
        assert!(mean.abs() < 0.05, "{mean}");
        // What is kept is used again, bit for bit; without it the same attacker is trained again.
        let state = attacker.learner.state();
        assert_eq!(kept().learner.state(), state);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(kept().learner.state(), state);
    }
}
