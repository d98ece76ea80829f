//! Settings of language models: where one comes from, and an experiment in which it learns from given examples.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use steadfast_agents::llm::model::Family;
use steadfast_agents::llm::{DecoderConfig, TrainerConfig};
use steadfast_envs::text::{SalientCopyConfig, ShortcutStyleConfig, TextTask, TopicLexiconConfig};
use steadfast_reward::{KtoConfig, NoiseConfig, PreferenceConfig, RewardObjectiveConfig};

use super::LogConfig;
use super::experiment::{Experiment, Root};
use super::validate::Misfit;

/// Settings of an experiment in which a language model learns from given examples. A file is one of this kind if it has a
/// table `[objective.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LanguageConfig {
    /// Name of the experiment: letters, digits, `.`, `_` and `-`. Runs of one name are seeds of one experiment.
    pub name: String,
    /// Seed of every random number of the run, 0 to 2^63 - 1.
    pub seed: u64,
    /// Worker threads, 0 to 1024; 0 means one per core. The numbers of a run do not depend on it.
    pub threads: usize,
    /// Where the model is computed: `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// The model that training starts from, one of `[model.NAME]`.
    pub model: ModelConfig,
    /// The examples, one of `[data.NAME]`.
    pub data: DataConfig,
    /// What is learned, one of `[objective.NAME]`.
    pub objective: ObjectiveConfig,
    /// Passes, batches, learning rate, optimiser.
    pub trainer: TrainerConfig,
    /// Evaluation during training.
    pub eval: LanguageEvalConfig,
    /// When the run is saved.
    pub checkpoint: LanguageCheckpointConfig,
    /// What is written while training.
    pub log: LogConfig,
}

impl Default for LanguageConfig {
    fn default() -> Self {
        Self {
            name: "language".to_string(),
            seed: 0,
            threads: 0,
            device: "cpu".to_string(),
            model: ModelConfig::default(),
            data: DataConfig::default(),
            objective: ObjectiveConfig::default(),
            trainer: TrainerConfig::default(),
            eval: LanguageEvalConfig::default(),
            checkpoint: LanguageCheckpointConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Root for LanguageConfig {
    const NAME: &'static str = "LanguageConfig";

    fn validate(&self) -> Result<(), Misfit> {
        super::language_check::validate(self)
    }

    fn files(&self) -> Result<(), Misfit> {
        super::language_check::files(self)
    }

    fn into_experiment(self) -> Experiment {
        Experiment::Offline(Box::new(self))
    }
}

/// Where a language model comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelConfig {
    /// A model with random weights; its vocabulary is that of the task.
    Fresh(FreshModelConfig),
    /// A model that was trained before.
    Pretrained(PretrainedModelConfig),
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::Fresh(FreshModelConfig::default())
    }
}

impl ModelConfig {
    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fresh(_) => "fresh",
            Self::Pretrained(_) => "pretrained",
        }
    }
}

/// A model that was trained before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PretrainedModelConfig {
    /// A folder as Hugging Face writes it (`config.json`, safetensors, `tokenizer.json`), or a finished run of this program,
    /// whose folder `model` is taken.
    pub path: PathBuf,
}

/// Shape of a model with random weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FreshModelConfig {
    /// Family of checkpoints that the model belongs to: `llama`, `mistral`, `qwen2`, `qwen3`, `gpt_neox` or `gpt2`.
    pub family: Family,
    /// Width of the residual stream, 1 to 16384; `n_heads` must divide it into heads of even width.
    pub hidden_size: usize,
    /// Blocks, 1 to 256.
    pub n_layers: usize,
    /// Query heads, 1 to 256.
    pub n_heads: usize,
    /// Heads of keys and values, at least 1; divides `n_heads`, and equals it for `gpt_neox` and `gpt2`.
    pub n_kv_heads: usize,
    /// Width of the feed-forward part, 1 to 65536.
    pub intermediate_size: usize,
    /// Longest text in tokens, 2 to 131072.
    pub max_positions: usize,
    /// True if the language-model head is the embedding.
    pub tie_embeddings: bool,
}

impl Default for FreshModelConfig {
    fn default() -> Self {
        // Learns the synthetic tasks in minutes on two cores.
        Self {
            family: Family::Llama,
            hidden_size: 128,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 4,
            intermediate_size: 352,
            max_positions: 64,
            tie_embeddings: true,
        }
    }
}

impl FreshModelConfig {
    /// The whole shape, for a vocabulary of `vocab_size` tokens. Unless it is known which tokens begin, end and fill up
    /// texts, they are those of the synthetic tasks.
    ///
    /// # Errors
    /// The reason, in the words of a checkpoint's `config.json`.
    pub fn decoder(&self, vocab_size: usize, special: [Option<u32>; 3]) -> Result<DecoderConfig, String> {
        let [bos, eos, pad] = special;
        let mut json = match self.family {
            Family::Gpt2 => serde_json::json!({
                "model_type": "gpt2", "n_embd": self.hidden_size, "n_layer": self.n_layers, "n_head": self.n_heads,
                "n_inner": self.intermediate_size, "n_positions": self.max_positions, "activation_function": "gelu_new",
                "layer_norm_epsilon": 1e-5,
            }),
            Family::GptNeox => serde_json::json!({
                "model_type": "gpt_neox", "hidden_size": self.hidden_size, "num_hidden_layers": self.n_layers,
                "num_attention_heads": self.n_heads, "intermediate_size": self.intermediate_size,
                "max_position_embeddings": self.max_positions, "hidden_act": "gelu", "rotary_pct": 0.25,
                "use_parallel_residual": true, "layer_norm_eps": 1e-5,
            }),
            family => serde_json::json!({
                "model_type": serde_json::to_value(family).unwrap_or_default(),
                "hidden_size": self.hidden_size, "num_hidden_layers": self.n_layers, "num_attention_heads": self.n_heads,
                "num_key_value_heads": self.n_kv_heads, "intermediate_size": self.intermediate_size,
                "head_dim": self.hidden_size / self.n_heads.max(1),
                "max_position_embeddings": self.max_positions, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            }),
        };
        json["vocab_size"] = vocab_size.into();
        json["tie_word_embeddings"] = self.tie_embeddings.into();
        json["initializer_range"] = 0.02.into();
        json["bos_token_id"] = bos.into();
        json["eos_token_id"] = eos.into();
        json["pad_token_id"] = pad.into();
        DecoderConfig::from_json(&json.to_string(), "model.fresh").map_err(|e| e.to_string())
    }
}

/// The examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataConfig {
    /// Examples of a synthetic task: completions of its own process, or pairs that a policy draws and the known reward labels.
    Task(TaskDataConfig),
    /// Rows of a file.
    File(FileDataConfig),
}

impl Default for DataConfig {
    fn default() -> Self {
        Self::Task(TaskDataConfig::default())
    }
}

impl DataConfig {
    /// The task's name, or `file`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Task(c) => c.env.name(),
            Self::File(_) => "file",
        }
    }
}

/// A synthetic task of text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextTaskConfig {
    /// Say words that the prompt's topic likes.
    TopicLexicon(TopicLexiconConfig),
    /// Repeat the marked words of the prompt.
    SalientCopy(SalientCopyConfig),
    /// A hidden pattern is right, a visible mark is tempting.
    ShortcutStyle(ShortcutStyleConfig),
}

impl Default for TextTaskConfig {
    fn default() -> Self {
        Self::TopicLexicon(TopicLexiconConfig::default())
    }
}

impl TextTaskConfig {
    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TopicLexicon(_) => "topic_lexicon",
            Self::SalientCopy(_) => "salient_copy",
            Self::ShortcutStyle(_) => "shortcut_style",
        }
    }

    /// The task.
    ///
    /// # Errors
    /// [`steadfast_envs::EnvError::Config`] for a setting out of its range.
    pub fn build(&self) -> steadfast_envs::Result<Arc<dyn TextTask>> {
        Ok(match self {
            Self::TopicLexicon(c) => Arc::new(c.build()?),
            Self::SalientCopy(c) => Arc::new(c.build()?),
            Self::ShortcutStyle(c) => Arc::new(c.build()?),
        })
    }
}

/// Examples of a synthetic task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskDataConfig {
    /// The task, one of `[data.task.env.NAME]`.
    pub env: TextTaskConfig,
    /// Training examples, 1 to 10000000: completions, or pairs. Pairs of equal completions are left out and counted.
    pub examples: usize,
    /// Examples that are only measured on, 0 to 1000000.
    pub held_out: usize,
    /// For pairs: who draws the completions, a folder or run as for `model.pretrained.path`; the model itself if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<PathBuf>,
    /// For pairs: temperature at which completions are drawn, above 0.
    pub temperature: f64,
    /// For pairs: who gives the labels, one of `[data.task.annotator.NAME]`.
    pub annotator: NoiseConfig,
    /// For pairs: what corrupts the labels, one of `[data.task.noise.NAME]`.
    pub noise: NoiseConfig,
}

impl Default for TaskDataConfig {
    fn default() -> Self {
        Self {
            env: TextTaskConfig::default(),
            examples: 8000,
            held_out: 500,
            sampler: None,
            temperature: 1.0,
            annotator: NoiseConfig::default(),
            noise: NoiseConfig::default(),
        }
    }
}

/// Rows of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileDataConfig {
    /// JSONL or Parquet: `prompt`, `chosen`, `rejected` for preferences and reward models, `prompt`, `completion`, `label` for
    /// KTO, `prompt` and `completion`, `messages` or `text` for SFT.
    pub path: PathBuf,
    /// Most tokens of a prompt with its completion, at least 2; 0 means as many as the model has positions. Longer completions
    /// lose their end, and rows whose prompt alone is too long are left out; both are counted.
    pub max_tokens: usize,
    /// Share of the rows that is only measured on, 0 to below 1.
    pub held_out: f64,
    /// True leaves out rows that cannot be used and counts them, instead of stopping at the first.
    pub skip_bad_rows: bool,
}

impl Default for FileDataConfig {
    fn default() -> Self {
        Self { path: PathBuf::new(), max_tokens: 0, held_out: 0.1, skip_bad_rows: false }
    }
}

/// Supervised training has no settings of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftConfig {}

/// What is learned from the examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveConfig {
    /// Likelihood of given completions: supervised fine-tuning, and pretraining.
    Sft(SftConfig),
    /// A policy from pairs: DPO and its kin, R3M-DPO, IPO, SimPO, ORPO.
    Preference(PreferenceConfig),
    /// A policy from completions found good or bad.
    Kto(KtoConfig),
    /// A reward model from pairs: a scalar head on the model's body.
    RewardModel(RewardObjectiveConfig),
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self::Sft(SftConfig::default())
    }
}

impl ObjectiveConfig {
    /// Names and one-line descriptions of all objectives.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("sft", "likelihood of given completions: supervised fine-tuning, pretraining"),
        ("preference", "a policy from pairs: DPO and its kin, R3M-DPO, IPO, SimPO, ORPO"),
        ("kto", "a policy from completions found good or bad"),
        ("reward_model", "a reward model from pairs, with cross-entropy, R3M or another loss"),
    ];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sft(_) => "sft",
            Self::Preference(_) => "preference",
            Self::Kto(_) => "kto",
            Self::RewardModel(_) => "reward_model",
        }
    }
}

/// Evaluation while a language model learns from given examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LanguageEvalConfig {
    /// Optimiser steps between evaluations, at least 0; 0 means only before and after training.
    pub every_steps: u64,
    /// Completions that are drawn per evaluation, 0 or 2 to 1000000: of prompts of the task or of held-out rows. Reward models
    /// score as many completions of the task's own process instead.
    pub samples: usize,
    /// Most tokens of such a completion, at least 1; 0 means what the task allows, or 128 for files.
    pub max_new_tokens: usize,
    /// Seed of prompts and draws, 0 to 2^63 - 1; independent of the run's seed, so that runs meet equal prompts.
    pub seed: u64,
}

impl Default for LanguageEvalConfig {
    fn default() -> Self {
        Self { every_steps: 50, samples: 256, max_new_tokens: 0, seed: 1_000_003 }
    }
}

/// When a run of a language model is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LanguageCheckpointConfig {
    /// Optimiser steps between checkpoints, at least 0; 0 means only before and after training.
    pub every_steps: u64,
    /// Newest checkpoints that are kept, at least 1.
    pub keep: usize,
}

impl Default for LanguageCheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 100, keep: 2 }
    }
}
