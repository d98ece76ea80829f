//! Evaluation of a policy in fixed episodes.

use steadfast_agents::Learner;
use steadfast_envs::{
    ActMode, EnvSpec, EpisodeLog, PerturbationConfig, Policy, RolloutBatch, RolloutEngine, RolloutOptions, SeedTree, StepRewards,
};

use super::build::{self, Ground};
use crate::config::ExperimentConfig;
use crate::failure::{Failure, Result};
use crate::run::results::{EvalRow, Setting, Source};

/// Steps that [`Evaluator::visit`] keeps in memory.
const MOST_VISITED_STEPS: usize = 1000;

/// Plays the same episodes whenever it is asked, under fixed perturbations.
///
/// The episodes depend on the evaluation seed alone: not on the run's seed, nor on the level of a perturbation. So runs
/// and levels are compared under common random numbers.
pub struct Evaluator {
    engine: RolloutEngine,
    perturbations: Vec<PerturbationConfig>,
    episodes: usize,
    mode: ActMode,
    seed: u64,
}

impl Evaluator {
    /// An evaluator of `episodes` episodes.
    ///
    /// # Errors
    /// [`Failure::Run`] if the world cannot be built.
    pub fn new(
        config: &ExperimentConfig,
        ground: &Ground,
        perturbations: &[PerturbationConfig],
        episodes: usize,
        mode: ActMode,
    ) -> Result<Self> {
        let seeds = SeedTree::new(config.eval.seed).child("evaluation");
        let slots = config.slots.min(episodes).max(1);
        let mut engine = build::worlds(config, ground, slots, 1, perturbations, seeds.child("environment"))
            .and_then(|worlds| RolloutEngine::new(worlds, seeds.child("policy"), RolloutOptions::default()))
            .map_err(|e| Failure::caused("cannot build the worlds for evaluation", e))?;
        if ground.prompts.is_some() {
            // The world has no reward of its own.
            build::set_reward_model(config, ground, &mut engine)?;
        }
        Ok(Self { engine, perturbations: perturbations.to_vec(), episodes, mode, seed: config.eval.seed })
    }

    /// The facts of the world.
    pub fn spec(&self) -> &EnvSpec {
        self.engine.spec()
    }

    /// Plays the episodes.
    ///
    /// # Errors
    /// [`Failure::Run`] if the world or the policy fails.
    pub fn play(&mut self, policy: &mut dyn Policy) -> Result<EpisodeLog> {
        self.engine.evaluate(policy, self.episodes, self.mode).map_err(|e| Failure::caused("playing the episodes failed", e))
    }

    /// As [`Evaluator::play`], and keeps the rewards of every step.
    ///
    /// # Errors
    /// [`Failure::Run`] if the world or the policy fails.
    pub fn play_steps(&mut self, policy: &mut dyn Policy) -> Result<(EpisodeLog, StepRewards)> {
        self.engine.evaluate_steps(policy, self.episodes, self.mode).map_err(|e| Failure::caused("playing the episodes failed", e))
    }

    /// At most `moments` observations `[moment, agent, width]` from all over the first steps of the episodes, as many steps as
    /// an episode can have.
    ///
    /// # Errors
    /// [`Failure::Run`] if the world or the policy fails.
    pub fn visit(&mut self, policy: &mut dyn Policy, moments: usize) -> Result<Vec<f32>> {
        let mut batch = RolloutBatch::default();
        let steps = self.engine.spec().horizon.min(MOST_VISITED_STEPS);
        self.engine.collect(policy, steps, self.mode, &mut batch).map_err(|e| Failure::caused("playing the episodes failed", e))?;
        let (row, visited) = (batch.n_agents * batch.observation_width, steps * batch.n_slots);
        let chosen = (0..moments.min(visited)).map(|i| i * visited / moments.min(visited));
        Ok(chosen.flat_map(|i| &batch.observations[i * row..(i + 1) * row]).copied().collect())
    }

    /// Plays the episodes and summarises them, with what the learner finds in them. Of what both the world and the learner
    /// know, the world's number counts.
    ///
    /// # Errors
    /// [`Failure::Run`] if the world or the policy fails.
    pub fn run(&mut self, learner: &mut dyn Learner, source: Source, step: u64) -> Result<(EvalRow, EpisodeLog)> {
        let failed = || format!("evaluation at step {step} failed");
        learner.begin_evaluation();
        let episodes = self.engine.evaluate(learner.policy(), self.episodes, self.mode).map_err(|e| Failure::caused(failed(), e))?;
        let found = learner.end_evaluation(self.episodes).map_err(|e| Failure::caused(failed(), e))?;
        let setting = Setting { source, step, perturbations: &self.perturbations, mode: self.mode, seed: self.seed };
        let mut row = EvalRow::new(&setting, self.engine.spec(), &episodes)
            .ok_or_else(|| Failure::run(format!("evaluation at step {step} has no episodes")))?;
        for (name, value) in found.values {
            row.metrics.entry(format!("metric_{name}")).or_insert(value);
        }
        Ok((row, episodes))
    }
}
