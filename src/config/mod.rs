//! What an experiment is: one TOML file, or a recipe that comes with the program.

pub mod experiment;
#[cfg(feature = "llm")]
pub mod language;
#[cfg(feature = "llm")]
pub mod language_check;
pub mod load;
pub mod overrides;
pub mod recipe;
pub mod render;
pub mod report;
pub mod schema;
pub mod source;
pub mod sweep;
pub mod validate;

pub use experiment::Experiment;
#[cfg(feature = "llm")]
pub use language::{LanguageConfig, ModelConfig};
use serde::{Deserialize, Serialize};
use steadfast_agents::{ActionRegularizerConfig, AdversarialTrainingConfig, AgentConfig, RegularizerConfig};
use steadfast_envs::{ActMode, EnvConfig, PerturbationConfig};
use steadfast_reward::RewardConfig;

/// Settings of an experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExperimentConfig {
    /// Name of the experiment: letters, digits, `.`, `_` and `-`. Runs of one name are seeds of one experiment.
    pub name: String,
    /// Seed of every random number of the run, 0 to 2^63 - 1.
    pub seed: u64,
    /// Length of training in joint environment steps, summed over all slots, at least 1. The last rollout is completed.
    /// With `[reward]` it may be 0: then the reward is fitted and nothing else is learned.
    pub total_steps: u64,
    /// Environments that are stepped side by side, 1 to 65536.
    pub slots: usize,
    /// Worker threads, 0 to 1024; 0 means one per core. The numbers of a run do not depend on it.
    pub threads: usize,
    /// The world, one of `[env.NAME]`.
    pub env: EnvConfig,
    /// The learning algorithm, one of `[agent.NAME]`.
    pub agent: AgentConfig,
    /// Where networks are computed: `cpu`; for language models also `cuda` or `cuda:N`.
    pub device: String,
    /// The language model that acts in worlds of text, one of `[model.NAME]`; absent in other worlds.
    #[cfg(feature = "llm")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelConfig>,
    /// A trained reward model in place of a text world's own reward; the world's own if absent.
    #[cfg(feature = "llm")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_model: Option<RewardModelConfig>,
    /// A penalty that makes the policy robust, one of `[regularizer.NAME]`; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regularizer: Option<RegularizerConfig>,
    /// A penalty that makes the value of joint actions robust against a few agents that act otherwise; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_regularizer: Option<ActionRegularizerConfig>,
    /// An adversary who changes what the agents observe while they train; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adversarial_training: Option<AdversarialTrainingConfig>,
    /// A reward that is learned from preferences and replaces the world's own in training; the world's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<RewardConfig>,
    /// Evaluation during training, always in the unperturbed world and by its own reward.
    pub eval: EvalConfig,
    /// When the run is saved.
    pub checkpoint: CheckpointConfig,
    /// What is written while training.
    pub log: LogConfig,
    /// Perturbations that are active in training, in the order in which they act, each `[[perturb]]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub perturb: Vec<PerturbationConfig>,
    /// Sweeps over the strength of a perturbation at the end of training, each `[[robustness]]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub robustness: Vec<RobustnessConfig>,
}

impl Default for ExperimentConfig {
    fn default() -> Self {
        Self {
            name: "experiment".to_string(),
            seed: 0,
            total_steps: 200_000,
            slots: 8,
            threads: 0,
            env: EnvConfig::SimpleSpread(Default::default()),
            agent: AgentConfig::Ppo(Default::default()),
            device: "cpu".to_string(),
            #[cfg(feature = "llm")]
            model: None,
            #[cfg(feature = "llm")]
            reward_model: None,
            regularizer: None,
            action_regularizer: None,
            adversarial_training: None,
            reward: None,
            eval: EvalConfig::default(),
            checkpoint: CheckpointConfig::default(),
            log: LogConfig::default(),
            perturb: Vec::new(),
            robustness: Vec::new(),
        }
    }
}

/// A reward model that was trained before.
#[cfg(feature = "llm")]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardModelConfig {
    /// Its folder, or a finished run with `[objective.reward_model]`, whose folder `model` is taken. It must read the tokens
    /// that the policy writes.
    pub path: std::path::PathBuf,
}

/// Evaluation during training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Joint environment steps between evaluations, at least 0; 0 means only before and after training.
    pub every_steps: u64,
    /// Episodes per evaluation, 2 to 1000000. They are the same episodes every time.
    pub episodes: usize,
    /// How actions are chosen: `sample` or `greedy`.
    pub mode: ActMode,
    /// Seed of the evaluation episodes, 0 to 2^63 - 1; independent of the run's seed, so that runs meet equal episodes.
    pub seed: u64,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { every_steps: 20_000, episodes: 32, mode: ActMode::Greedy, seed: 1_000_003 }
    }
}

/// When the run is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Joint environment steps between checkpoints, at least 0; 0 means only after training.
    pub every_steps: u64,
    /// Newest checkpoints that are kept, at least 1.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 50_000, keep: 3 }
    }
}

/// What is written while training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Updates between lines of `metrics.jsonl`, at least 1.
    pub every_updates: u64,
    /// Whether the metrics are also written as TensorBoard events.
    pub tensorboard: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { every_updates: 1, tensorboard: true }
    }
}

/// A sweep over the strength of one perturbation, on the trained policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RobustnessConfig {
    /// Strengths, in the order of evaluation: magnitudes of noise, probabilities of replaced actions.
    pub levels: Vec<f64>,
    /// Episodes per level, 2 to 1000000. They have the same seeds at every level (common random numbers).
    pub episodes: usize,
    /// The perturbation, one of `[robustness.axis.NAME]`; its own strength is replaced by each level in turn.
    pub axis: PerturbationConfig,
}

impl Default for RobustnessConfig {
    fn default() -> Self {
        Self { levels: vec![0.0, 0.1, 0.2, 0.5], episodes: 100, axis: PerturbationConfig::ObservationNoise(Default::default()) }
    }
}
