//! The parts of an experiment, built from its configuration.

use rayon::ThreadPool;
use steadfast_agents::{AgentConfig, AgentError, Learner};
use steadfast_envs::{EnvSpec, PerturbationConfig, Perturbed, RolloutEngine, RolloutOptions, SeedTree, VectorEnv};

use crate::config::ExperimentConfig;
use crate::failure::{Failure, Result};

/// The worlds side by side, each under the same perturbations.
///
/// # Errors
/// [`steadfast_envs::EnvError::Config`] if a setting does not fit.
pub fn worlds(
    config: &ExperimentConfig,
    slots: usize,
    perturbations: &[PerturbationConfig],
    seeds: SeedTree,
) -> steadfast_envs::Result<VectorEnv> {
    let build = |_| {
        let env = config.env.build()?;
        Ok(if perturbations.is_empty() { env } else { Box::new(Perturbed::new(env, perturbations)?) as _ })
    };
    VectorEnv::new((0..slots).map(build).collect::<steadfast_envs::Result<_>>()?, seeds)
}

/// The learner with fresh parameters.
///
/// # Errors
/// [`AgentError::Config`] if a setting does not fit the world.
pub fn learner(config: &ExperimentConfig, spec: &EnvSpec) -> Result<Box<dyn Learner>, AgentError> {
    let seeds = SeedTree::new(config.seed).child("learner");
    match &config.agent {
        AgentConfig::Ppo(ppo) => {
            Ok(Box::new(steadfast_agents::algorithms::ppo::Ppo::new(ppo, config.regularizer.as_ref(), spec, config.slots, seeds)?))
        }
    }
}

/// The engine that collects training experience.
///
/// # Errors
/// [`Failure::Run`] if a part does not fit, which validated configurations exclude.
pub fn training_engine(config: &ExperimentConfig, with_state: bool) -> Result<RolloutEngine> {
    let seeds = SeedTree::new(config.seed);
    let worlds = worlds(config, config.slots, &config.perturb, seeds.child("environment")).map_err(cannot_build)?;
    let options = RolloutOptions { with_state, ..Default::default() };
    RolloutEngine::new(worlds, seeds.child("policy"), options).map_err(cannot_build)
}

fn cannot_build(error: steadfast_envs::EnvError) -> Failure {
    Failure::caused("cannot build the worlds", error)
}

/// Worker threads, as many as configured.
///
/// # Errors
/// [`Failure::Run`] with the system's reason.
pub fn thread_pool(threads: usize) -> Result<ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Failure::caused(format!("cannot start {} worker threads", threads), e))
}
