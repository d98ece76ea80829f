//! The one loop that lets a policy act in environments.

use super::batch::RolloutBatch;
use super::episode::EpisodeLog;
use super::policy::{ActMode, ActionBatch, ActionsMut, ObservationBatch, ObservationBatchMut, Policy, TokenRowsMut};
use super::step_rewards::StepRewards;
use super::vector::{StepBuffers, VectorEnv};
use crate::snapshot::{SnapshotReader, SnapshotWriter};
use crate::{Actions, EnvError, EnvSpec, Result, RewardFn, Rng, SeedTree, TokenRows, TransitionBatch};

/// What a collection carries besides observations, actions and rewards.
#[derive(Default)]
pub struct RolloutOptions {
    /// Whether batches carry the global state.
    pub with_state: bool,
    /// Whether the policy may change observations before they are recorded: [`Policy::disturb`].
    pub disturbs: bool,
    /// Replaces the environment's reward in batches; episode returns stay the environment's.
    pub reward_fn: Option<Box<dyn RewardFn>>,
}

/// Lets a policy act in a vector of environments and records what happens.
///
/// The actions of episode `e` are drawn from `policy_seeds.index(e)`, so an episode does not depend on how many others
/// run beside it.
pub struct RolloutEngine {
    envs: VectorEnv,
    options: RolloutOptions,
    policy_seeds: SeedTree,
    rngs: Vec<Rng>,
    observations: Vec<f32>,
    states: Vec<f32>,
    episodes: EpisodeLog,
    scratch: RolloutBatch,
}

impl RolloutEngine {
    /// Starts the first episode in every slot.
    ///
    /// # Errors
    /// [`EnvError::Config`] if the global state is asked for and the environment has none; [`EnvError::NonFinite`] if a
    /// first observation or state is not finite.
    pub fn new(mut envs: VectorEnv, policy_seeds: SeedTree, options: RolloutOptions) -> Result<Self> {
        let spec = envs.spec();
        if options.with_state && spec.state_dim == 0 {
            return Err(EnvError::Config {
                env: spec.name.clone(),
                field: "state",
                expected: "an environment with a global state (or a critic that does not need one)".to_string(),
                got: "none".to_string(),
            });
        }
        let n = envs.n_slots();
        let mut observations = vec![0.0; n * spec.n_agents() * spec.observation_width()];
        let mut states = vec![0.0; if options.with_state { n * spec.state_dim } else { 0 }];
        let episodes = EpisodeLog::new(spec.n_agents(), spec.episode_metrics.len());
        envs.reset(&mut observations, &mut states);
        let rngs = (0..n as u64).map(|i| policy_seeds.index(i).rng()).collect();
        let engine = Self { envs, options, policy_seeds, rngs, observations, states, episodes, scratch: RolloutBatch::default() };
        engine.require_finite_start()?;
        Ok(engine)
    }

    /// The facts of the environments.
    pub fn spec(&self) -> &EnvSpec {
        self.envs.spec()
    }

    /// Number of environments.
    pub fn n_slots(&self) -> usize {
        self.envs.n_slots()
    }

    /// Replaces the reward function, between collections; returns the one there was. With nothing, rewards are the
    /// environment's.
    pub fn set_reward_fn(&mut self, reward_fn: Option<Box<dyn RewardFn>>) -> Option<Box<dyn RewardFn>> {
        std::mem::replace(&mut self.options.reward_fn, reward_fn)
    }

    /// Lets the policy change observations before they are recorded, or no longer: [`RolloutOptions::disturbs`].
    pub fn set_disturbs(&mut self, disturbs: bool) {
        self.options.disturbs = disturbs;
    }

    /// Episodes that ended in the last collection, in the order of their ends.
    pub fn episodes(&self) -> &EpisodeLog {
        &self.episodes
    }

    /// Fills `batch` with `steps` steps of every slot, continuing the running episodes.
    ///
    /// # Errors
    /// [`EnvError::NonFinite`] if an observation, state, reward or log-probability is not finite; otherwise what the
    /// environments, the policy or the reward report.
    pub fn collect(&mut self, policy: &mut dyn Policy, steps: usize, mode: ActMode, batch: &mut RolloutBatch) -> Result<()> {
        batch.prepare(self.envs.spec(), steps, self.n_slots(), self.options.with_state, self.options.reward_fn.is_some());
        self.episodes.clear();
        self.episodes.reserve(batch.ends.capacity());
        batch.observations[..self.observations.len()].copy_from_slice(&self.observations);
        batch.states[..self.states.len()].copy_from_slice(&self.states);
        for time in 0..steps {
            self.advance(policy, mode, batch, time)?;
        }
        let (row, state_row) = (batch.observation_row(), batch.state_row());
        self.observations.copy_from_slice(&batch.observations[steps * row..]);
        self.states.copy_from_slice(&batch.states[steps * state_row..]);
        Ok(())
    }

    /// Plays the episodes numbered `0..n_episodes` from their beginning and returns them in that order.
    ///
    /// Long and short episodes count alike: the set is fixed before the first step, not by who finishes first. The
    /// engine is left at the start of fresh episodes.
    ///
    /// # Errors
    /// As [`RolloutEngine::collect`].
    pub fn evaluate(&mut self, policy: &mut dyn Policy, n_episodes: usize, mode: ActMode) -> Result<EpisodeLog> {
        self.play(policy, n_episodes, mode, None)
    }

    /// As [`RolloutEngine::evaluate`], and keeps the environment's rewards of every step.
    ///
    /// # Errors
    /// As [`RolloutEngine::collect`].
    pub fn evaluate_steps(&mut self, policy: &mut dyn Policy, n_episodes: usize, mode: ActMode) -> Result<(EpisodeLog, StepRewards)> {
        let mut steps = StepRewards::new(self.spec().n_agents(), n_episodes);
        let episodes = self.play(policy, n_episodes, mode, Some(&mut steps))?;
        Ok((episodes, steps))
    }

    fn play(
        &mut self,
        policy: &mut dyn Policy,
        n_episodes: usize,
        mode: ActMode,
        mut steps: Option<&mut StepRewards>,
    ) -> Result<EpisodeLog> {
        self.restart(policy)?;
        let mut batch = std::mem::take(&mut self.scratch);
        let mut finished = EpisodeLog::new(self.spec().n_agents(), self.spec().episode_metrics.len());
        let mut numbers: Vec<u64> = Vec::new();
        while finished.len() < n_episodes {
            if steps.is_some() {
                numbers.clear();
                numbers.extend((0..self.n_slots()).map(|slot| self.envs.episode_number(slot)));
            }
            self.collect(policy, 1, mode, &mut batch)?;
            if let Some(steps) = steps.as_deref_mut() {
                let own = if batch.environment_rewards.is_empty() { &batch.rewards } else { &batch.environment_rewards };
                numbers.iter().zip(own.chunks_exact(batch.n_agents)).for_each(|(number, rewards)| steps.push(*number, rewards));
            }
            for stats in self.episodes.iter().filter(|s| s.number < n_episodes as u64) {
                finished.push(&stats);
            }
        }
        self.scratch = batch;
        self.restart(policy)?;
        Ok(finished.sorted())
    }

    fn restart(&mut self, policy: &mut dyn Policy) -> Result<()> {
        self.envs.reset(&mut self.observations, &mut self.states);
        for slot in 0..self.n_slots() {
            policy.reset(slot);
            self.rngs[slot] = self.policy_seeds.index(slot as u64).rng();
        }
        self.require_finite_start()
    }

    /// Checks the first observations and states of fresh episodes.
    fn require_finite_start(&self) -> Result<()> {
        let (name, slots) = (&self.spec().name, self.n_slots());
        require_finite(name, "first observation", &self.observations, 0, 0, self.observations.len() / slots)?;
        require_finite(name, "first state", &self.states, 0, 0, self.states.len() / slots)
    }

    fn advance(&mut self, policy: &mut dyn Policy, mode: ActMode, batch: &mut RolloutBatch, time: usize) -> Result<()> {
        let (slots, agents, width) = (batch.n_slots, batch.n_agents, batch.observation_width);
        let (row, state_row, per_step) = (batch.observation_row(), batch.state_row(), slots * agents);
        let samples = time * per_step..(time + 1) * per_step;
        let (now, next) = batch.observations[time * row..(time + 2) * row].split_at_mut(row);
        let (_, next_states) = batch.states[time * state_row..(time + 2) * state_row].split_at_mut(state_row);
        if self.options.disturbs {
            let observations = &mut *now;
            policy.disturb(&mut ObservationBatchMut { n_slots: slots, n_agents: agents, width, observations }, &mut self.rngs)?;
            require_finite(&self.envs.spec().name, "disturbed observation", now, time, 0, agents * width)?;
        }
        let log_probs = &mut batch.log_probs[samples.clone()];
        let view = ObservationBatch { n_slots: slots, n_agents: agents, width, observations: now };
        let actions = if batch.token_width > 0 {
            let width = batch.token_width;
            let range = samples.start * width..samples.end * width;
            let tokens = &mut batch.token_actions[range.clone()];
            let lengths = &mut batch.token_lengths[samples.clone()];
            let token_log_probs = &mut batch.token_log_probs[range];
            let chosen = TokenRowsMut { tokens, lengths, log_probs: token_log_probs, width };
            policy.act(&view, &mut self.rngs, mode, &mut ActionBatch { actions: ActionsMut::Tokens(chosen), log_probs })?;
            let (tokens, lengths) =
                (&batch.token_actions[samples.start * width..samples.end * width], &batch.token_lengths[samples.clone()]);
            if let Some(row) = lengths.iter().position(|&n| n == 0 || n as usize > width) {
                return Err(EnvError::Policy(format!(
                    "the completion of slot {} must have 1 to {width} tokens, got {}",
                    row / agents,
                    lengths[row]
                )));
            }
            let token_log_probs = &batch.token_log_probs[samples.start * width..samples.end * width];
            require_finite(&self.envs.spec().name, "token log-probability", token_log_probs, time, 0, agents * width)?;
            Actions::Tokens(TokenRows { tokens, lengths, width })
        } else if batch.action_width == 0 {
            let chosen = &mut batch.discrete_actions[samples.clone()];
            policy.act(&view, &mut self.rngs, mode, &mut ActionBatch { actions: ActionsMut::Discrete(chosen), log_probs })?;
            Actions::Discrete(chosen)
        } else {
            let chosen = &mut batch.continuous_actions[samples.start * batch.action_width..samples.end * batch.action_width];
            policy.act(&view, &mut self.rngs, mode, &mut ActionBatch { actions: ActionsMut::Continuous(chosen), log_probs })?;
            Actions::Continuous(chosen)
        };
        let rewards = &mut batch.rewards[samples.clone()];
        self.envs.step(
            actions,
            StepBuffers {
                observations: next,
                states: next_states,
                rewards,
                terminated: &mut batch.terminated[time * slots..(time + 1) * slots],
                truncated: &mut batch.truncated[time * slots..(time + 1) * slots],
            },
        )?;
        let name = &self.envs.spec().name;
        require_finite(name, "observation", next, time, 0, agents * width)?;
        require_finite(name, "state", next_states, time, 0, batch.state_dim)?;
        require_finite(name, "reward", rewards, time, 0, agents)?;
        require_finite(name, "log-probability", log_probs, time, 0, agents)?;
        if let Some(reward_fn) = &mut self.options.reward_fn {
            let own = &mut batch.environment_rewards[samples];
            own.copy_from_slice(rewards);
            let transitions = TransitionBatch {
                envs: &self.envs,
                n_agents: agents,
                observation_width: width,
                action_width: batch.action_width,
                actions,
                observations: now,
                next_observations: next,
                rewards: own,
                terminated: &batch.terminated[time * slots..(time + 1) * slots],
            };
            reward_fn.reward_batch(&transitions, rewards)?;
            require_finite(name, "learned reward", rewards, time, 0, agents)?;
        }
        for slot in 0..slots {
            if let Some(stats) = self.envs.ended(slot) {
                self.episodes.push(&stats);
                batch.ends.push((time, slot));
                let finals = self.envs.final_observations(slot);
                require_finite(name, "final observation", finals, time, slot, agents * width)?;
                batch.final_observations.extend_from_slice(finals);
                if batch.state_dim > 0 {
                    let state = self.envs.final_state(slot);
                    require_finite(name, "final state", state, time, slot, batch.state_dim)?;
                    batch.final_states.extend_from_slice(state);
                }
                policy.reset(slot);
                self.rngs[slot] = self.policy_seeds.index(self.envs.episode_number(slot)).rng();
            }
        }
        Ok(())
    }

    /// Writes everything that the next collection depends on, besides the policy.
    pub fn snapshot(&self, out: &mut SnapshotWriter) {
        self.envs.snapshot(out);
        self.rngs.iter().for_each(|rng| rng.snapshot(out));
        out.f32s(&self.observations);
        out.f32s(&self.states);
    }

    /// Restores what [`RolloutEngine::snapshot`] wrote, into an engine built from the same configuration.
    ///
    /// # Errors
    /// [`EnvError::Snapshot`] if it does not fit; the engine must then be dropped.
    pub fn restore(&mut self, words: &[u64]) -> Result<()> {
        let mut input = SnapshotReader::new("rollout engine", words);
        self.envs.restore(&mut input)?;
        for rng in &mut self.rngs {
            *rng = Rng::restore(&mut input)?;
        }
        input.f32s(&mut self.observations)?;
        input.f32s(&mut self.states)?;
        input.finish()
    }
}

/// Checks `values`, `per_slot` of them for each slot from `first_slot` on.
fn require_finite(env: &str, tensor: &'static str, values: &[f32], step: usize, first_slot: usize, per_slot: usize) -> Result<()> {
    // No early exit: the loop is then one vector instruction per eight values.
    if values.iter().fold(true, |finite, v| finite & v.is_finite()) {
        return Ok(());
    }
    let position = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
    Err(EnvError::NonFinite {
        env: env.to_string(),
        tensor,
        value: values[position],
        step,
        slot: first_slot + position / per_slot.max(1),
        position: position % per_slot.max(1),
    })
}
