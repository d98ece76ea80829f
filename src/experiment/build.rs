//! The parts of an experiment, built from its configuration.

use rayon::ThreadPool;
use steadfast_agents::algorithms::maddpg::Maddpg;
use steadfast_agents::algorithms::ppo::Ppo;
use steadfast_agents::algorithms::q_learning::QLearning;
use steadfast_agents::{AgentConfig, AgentError, Learner};
use steadfast_envs::text::{EncodedPrompts, PromptsConfig};
use steadfast_envs::{EnvError, EnvSpec, PerturbationConfig, Perturbed, RolloutEngine, RolloutOptions, SeedTree, VectorEnv};

#[cfg(feature = "llm")]
use super::language;

use crate::config::ExperimentConfig;
use crate::failure::{Failure, Result};

/// What worlds of text and their policies are built from; nothing for other worlds.
#[derive(Default)]
pub struct Ground {
    /// The language model that training starts from.
    #[cfg(feature = "llm")]
    pub model: Option<language::model::LanguageModel>,
    /// Prompts of a file.
    pub prompts: Option<EncodedPrompts>,
}

impl Ground {
    /// Reads what the configuration names.
    ///
    /// # Errors
    /// [`Failure::Run`] naming the file and what is wrong with it.
    #[cfg(feature = "llm")]
    pub fn of(config: &ExperimentConfig) -> Result<Self> {
        let Some(model) = &config.model else { return Ok(Self::default()) };
        let device = language::device::open(&config.device)?;
        let task = config.env.text_task().map_err(cannot_build)?;
        let model = language::model::LanguageModel::open(model, task.as_deref(), SeedTree::new(config.seed), &device)?;
        let prompts = match &config.env {
            steadfast_envs::EnvConfig::Prompts(prompts) => Some(language::file::prompts(prompts, &model)?),
            _ => None,
        };
        Ok(Self { model: Some(model), prompts })
    }

    /// Nothing, in a build without language models.
    ///
    /// # Errors
    /// None.
    #[cfg(not(feature = "llm"))]
    pub fn of(_config: &ExperimentConfig) -> Result<Self> {
        Ok(Self::default())
    }

    fn encoded(&self, config: &PromptsConfig) -> Result<EncodedPrompts, EnvError> {
        self.prompts.clone().ok_or_else(|| EnvError::Config {
            env: "prompts".to_string(),
            field: "file",
            expected: "read with a tokenizer: this world needs a language-model policy".to_string(),
            got: config.file.display().to_string(),
        })
    }
}

/// The worlds side by side, each under the same perturbations. Episodes of `group` neighbours have the same seed.
///
/// # Errors
/// [`steadfast_envs::EnvError::Config`] if a setting does not fit.
pub fn worlds(
    config: &ExperimentConfig,
    ground: &Ground,
    slots: usize,
    group: usize,
    perturbations: &[PerturbationConfig],
    seeds: SeedTree,
) -> steadfast_envs::Result<VectorEnv> {
    let build = |_| {
        let env = config.env.build_with(&|prompts| ground.encoded(prompts))?;
        Ok(if perturbations.is_empty() { env } else { Box::new(Perturbed::new(env, perturbations)?) as _ })
    };
    VectorEnv::with_groups((0..slots).map(build).collect::<steadfast_envs::Result<_>>()?, seeds, group)
}

/// The learner with fresh parameters, or those of the language model of `ground`.
///
/// # Errors
/// [`AgentError::Config`] if a setting does not fit the world.
pub fn learner(config: &ExperimentConfig, ground: &Ground, spec: &EnvSpec) -> Result<Box<dyn Learner>, AgentError> {
    let seeds = SeedTree::new(config.seed).child("learner");
    #[cfg(feature = "llm")]
    if let Some(gradient) = config.agent.policy_gradient() {
        let Some(model) = &ground.model else {
            let (field, expected) = ("model".to_string(), "given, for a learner of language models".to_string());
            return Err(AgentError::Config { field, expected, got: "none".to_string() });
        };
        let total_updates = config.total_steps.div_ceil((config.slots * config.agent.rollout_steps()) as u64);
        let end = model.end_of_sequence.clone();
        let learner = steadfast_agents::llm::policy_gradient::TextPolicyGradient::new(
            &gradient,
            model.decoder.trainable_copy()?,
            end,
            spec,
            config.slots,
            seeds,
            total_updates,
        )?;
        return Ok(Box::new(learner));
    }
    let _ = ground;
    let mut learner = control_learner(config, spec, seeds)?;
    if let Some(adversary) = &config.adversarial_training
        && !learner.train_against(adversary, seeds.child("adversary"))
    {
        let (field, expected) = ("adversarial_training", format!("absent with `{}`", config.agent.name()));
        return Err(AgentError::Config { field: field.to_string(), expected, got: "present".to_string() });
    }
    Ok(learner)
}

fn control_learner(config: &ExperimentConfig, spec: &EnvSpec, seeds: SeedTree) -> Result<Box<dyn Learner>, AgentError> {
    let regularizer = config.regularizer.as_ref();
    let actions = config.action_regularizer.as_ref();
    match &config.agent {
        AgentConfig::Ppo(ppo) => {
            if actions.is_some() {
                let (field, expected) = ("action_regularizer".to_string(), "absent: the critics of `ppo` do not know actions".to_string());
                return Err(AgentError::Config { field, expected, got: "present".to_string() });
            }
            Ok(Box::new(Ppo::new(ppo, regularizer, spec, config.slots, seeds)?))
        }
        AgentConfig::QLearning(q) => Ok(Box::new(QLearning::new(q, regularizer, actions, spec, config.slots, seeds)?)),
        AgentConfig::Maddpg(maddpg) => Ok(Box::new(Maddpg::new(maddpg, regularizer, actions, spec, config.slots, seeds)?)),
        #[cfg(feature = "llm")]
        _ => unreachable!("the other agents train language models"),
    }
}

/// The engine that collects training experience for `learner`.
///
/// # Errors
/// [`Failure::Run`] if a part does not fit, which validated configurations exclude.
pub fn training_engine(config: &ExperimentConfig, ground: &Ground, learner: &dyn Learner) -> Result<RolloutEngine> {
    let seeds = SeedTree::new(config.seed);
    let worlds = worlds(config, ground, config.slots, learner.group_size(), &config.perturb, seeds.child("environment"));
    let disturbs = config.adversarial_training.is_some();
    let options = RolloutOptions { with_state: learner.uses_state(), disturbs, ..Default::default() };
    let mut engine = RolloutEngine::new(worlds.map_err(cannot_build)?, seeds.child("policy"), options).map_err(cannot_build)?;
    set_reward_model(config, ground, &mut engine)?;
    Ok(engine)
}

/// Puts the trained reward model of the configuration, if there is one, in the place of the world's reward.
///
/// # Errors
/// [`Failure::Run`] if it cannot be read or knows other tokens.
#[cfg(feature = "llm")]
pub fn set_reward_model(config: &ExperimentConfig, ground: &Ground, engine: &mut RolloutEngine) -> Result<()> {
    let (Some(reward), Some(model)) = (&config.reward_model, &ground.model) else { return Ok(()) };
    let device = language::device::open(&config.device)?;
    engine.set_reward_fn(Some(Box::new(language::model::reward(&reward.path, model, &device)?)));
    Ok(())
}

/// Does nothing in a build without language models.
///
/// # Errors
/// None.
#[cfg(not(feature = "llm"))]
pub fn set_reward_model(_config: &ExperimentConfig, _ground: &Ground, _engine: &mut RolloutEngine) -> Result<()> {
    Ok(())
}

fn cannot_build(error: EnvError) -> Failure {
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
