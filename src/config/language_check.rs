//! Checks of language models and of experiments over given examples.

use std::path::Path;

use steadfast_agents::AgentError;
use steadfast_envs::EnvConfig;
use steadfast_envs::text::{BOS, EOS, PAD};
use steadfast_reward::{NoiseConfig, RewardError};

use super::ExperimentConfig;
use super::language::{DataConfig, FreshModelConfig, LanguageConfig, ModelConfig, ObjectiveConfig, TaskDataConfig};
use super::report::Problem;
use super::validate::{GIB, MAX_BYTES, MAX_SEED, Misfit, check, identity};
use crate::run::model;

/// The largest context that is asked for.
const MAX_POSITIONS: usize = 131_072;

/// Checks ranges and that the parts fit each other.
///
/// # Errors
/// The first value that does not fit.
pub fn validate(c: &LanguageConfig) -> Result<(), Misfit> {
    identity(&c.name, c.seed, c.threads)?;
    device(&c.device)?;
    c.trainer.validate().map_err(|e| Misfit::from_agent("trainer", &e))?;
    let place = format!("objective.{}", c.objective.name());
    let fail = |e: RewardError| Misfit::from_reward(&place, &e);
    match &c.objective {
        ObjectiveConfig::Sft(_) => {}
        ObjectiveConfig::Preference(config) => config.validate().map_err(fail)?,
        ObjectiveConfig::Kto(config) => config.validate().map_err(fail)?,
        ObjectiveConfig::RewardModel(config) => config.validate().map_err(fail)?,
    }
    let is_count = c.eval.samples == 0 || (2..=1_000_000).contains(&c.eval.samples);
    check(is_count, "eval.samples", "0, or between 2 and 1000000", c.eval.samples)?;
    check(c.eval.max_new_tokens <= MAX_POSITIONS, "eval.max_new_tokens", "between 0 and 131072", c.eval.max_new_tokens)?;
    check(c.eval.seed <= MAX_SEED, "eval.seed", "at most 2^63 - 1", c.eval.seed)?;
    check(c.checkpoint.keep >= 1, "checkpoint.keep", "at least 1", c.checkpoint.keep)?;
    check(c.log.every_updates >= 1, "log.every_updates", "at least 1", c.log.every_updates)?;
    match &c.data {
        DataConfig::Task(data) => task(data, &c.objective, &c.model),
        DataConfig::File(data) => {
            check((0.0..1.0).contains(&data.held_out), "data.file.held_out", "at least 0 and below 1", data.held_out)?;
            let limit = data.max_tokens;
            check(limit == 0 || (2..=MAX_POSITIONS).contains(&limit), "data.file.max_tokens", "0, or between 2 and 131072", limit)?;
            match &c.model {
                ModelConfig::Pretrained(_) => Ok(()),
                ModelConfig::Fresh(_) => {
                    let problem = Problem::new("rows of a file need a model with a tokenizer, `model.fresh` has none", "has no tokenizer");
                    Err(Misfit::at("model", problem.help("write `model=pretrained` and `model.pretrained.path=FOLDER`")))
                }
            }
        }
    }
}

fn task(data: &TaskDataConfig, objective: &ObjectiveConfig, model: &ModelConfig) -> Result<(), Misfit> {
    let place = format!("data.task.env.{}", data.env.name());
    let task = data.env.build().map_err(|e| Misfit::from_env(&place, &e))?;
    check((1..=10_000_000).contains(&data.examples), "data.task.examples", "between 1 and 10000000", data.examples)?;
    check(data.held_out <= 1_000_000, "data.task.held_out", "between 0 and 1000000", data.held_out)?;
    let is_positive = data.temperature > 0.0 && data.temperature.is_finite();
    check(is_positive, "data.task.temperature", "a finite number above 0", data.temperature)?;
    for (field, noise) in [("annotator", &data.annotator), ("noise", &data.noise)] {
        let place = format!("data.task.{field}");
        noise.validate().map_err(|e| Misfit::from_reward(&format!("{place}.{}", noise.name()), &e))?;
        if matches!(objective, ObjectiveConfig::Sft(_)) && !matches!(noise, NoiseConfig::None(_)) {
            return Err(Misfit::new(&place, "`none` for `objective.sft`, which has no labels", noise.name()));
        }
    }
    if let (ObjectiveConfig::Sft(_), Some(path)) = (objective, &data.sampler) {
        let expected = "absent for `objective.sft`, whose completions are drawn by the task itself";
        return Err(Misfit::new("data.task.sampler", expected, path.display()));
    }
    if let ModelConfig::Fresh(config) = model {
        fresh(config, task.words().len())?;
        let needed = task.max_prompt_tokens() + task.max_new_tokens();
        let expected = format!("at least {needed}, the tokens of a prompt and a completion of the task");
        check(config.max_positions >= needed, "model.fresh.max_positions", &expected, config.max_positions)?;
    }
    Ok(())
}

/// Checks the shape of a model with random weights.
///
/// # Errors
/// The first value that does not fit.
pub fn fresh(c: &FreshModelConfig, vocab_size: usize) -> Result<(), Misfit> {
    let within = |field: &str, value: usize, low: usize, high: usize| {
        check((low..=high).contains(&value), &format!("model.fresh.{field}"), &format!("between {low} and {high}"), value)
    };
    within("hidden_size", c.hidden_size, 1, 16_384)?;
    within("n_layers", c.n_layers, 1, 256)?;
    within("n_heads", c.n_heads, 1, 256)?;
    within("n_kv_heads", c.n_kv_heads, 1, 256)?;
    within("intermediate_size", c.intermediate_size, 1, 65_536)?;
    within("max_positions", c.max_positions, 2, MAX_POSITIONS)?;
    let is_even = c.hidden_size.is_multiple_of(2 * c.n_heads);
    check(is_even, "model.fresh.hidden_size", "a multiple of twice `n_heads`", c.hidden_size)?;
    check(c.n_heads.is_multiple_of(c.n_kv_heads), "model.fresh.n_kv_heads", "a divisor of `n_heads`", c.n_kv_heads)?;
    let config = c.decoder(vocab_size, [Some(BOS), Some(EOS), Some(PAD)]).map_err(|reason| Misfit::whole("model.fresh", &reason))?;
    let is_kept = config.n_kv_heads == c.n_kv_heads;
    check(is_kept, "model.fresh.n_kv_heads", "equal to `n_heads` in this family", c.n_kv_heads)?;
    // Parameters, gradients, two moments, a packed copy.
    let hidden = c.hidden_size as f64;
    let parameters = vocab_size as f64 * hidden * 2.0 + c.n_layers as f64 * hidden * (4.0 * hidden + 3.0 * c.intermediate_size as f64);
    let bytes = 4.0 * 5.0 * parameters;
    if bytes > MAX_BYTES {
        let problem = Problem::new(format!("the model would not fit into memory: about {:.1} GiB", bytes / GIB), "too large");
        return Err(Misfit::at("model.fresh", problem.help("at most 64 GiB are allowed")));
    }
    Ok(())
}

/// Checks the name of a device, and that this program can use it.
///
/// # Errors
/// The device, if it cannot be used.
pub fn device(name: &str) -> Result<(), Misfit> {
    match crate::experiment::language::device::number(name) {
        None => Err(Misfit::new("device", "`cpu`, `cuda` or `cuda:N`", format!("`{name}`"))),
        Some(Some(_)) if !cfg!(feature = "cuda") => {
            let problem = Problem::new(format!("`device` is `{name}`, but this program was built without CUDA"), "not in this build");
            Err(Misfit::at("device", problem.help("build it with `cargo build --release --features cuda`, or write `device=cpu`")))
        }
        Some(_) => Ok(()),
    }
}

/// Checks what an experiment needs whose policy is a language model. True if it is one.
///
/// # Errors
/// The first value that does not fit.
pub fn online(c: &ExperimentConfig) -> Result<bool, Misfit> {
    let place = format!("agent.{}", c.agent.name());
    let no_text = |path: &str, what: &str| {
        let problem = Problem::new(format!("`{path}` is for language models, but `agent` is `{}`", c.agent.name()), "not used");
        Err(Misfit::at(path, problem.help(format!("leave {what} away, or choose `agent` among rloo, grpo and text_ppo"))))
    };
    let Some(gradient) = c.agent.policy_gradient() else {
        if c.env.is_text() {
            let problem = Problem::new(format!("`env.{}` is a world of text, but `{place}` trains numbers", c.env.name()), "no text");
            return Err(Misfit::at(&place, problem.help("choose `agent` among rloo, grpo and text_ppo")));
        }
        if c.model.is_some() {
            return no_text("model", "the table");
        }
        return if c.reward_model.is_some() { no_text("reward_model", "the table") } else { Ok(false) };
    };
    if !c.env.is_text() {
        let problem =
            Problem::new(format!("`{place}` trains language models, but `env.{}` is no world of text", c.env.name()), "text only");
        return Err(Misfit::at(&place, problem.help("`steadfast list envs` shows the worlds; those of text are marked")));
    }
    device(&c.device)?;
    for (field, is_present) in [
        ("regularizer", c.regularizer.is_some()),
        ("action_regularizer", c.action_regularizer.is_some()),
        ("adversarial_training", c.adversarial_training.is_some()),
    ] {
        if is_present {
            return Err(Misfit::new(field, "absent for language models", "one"));
        }
    }
    let group = gradient.group_size();
    check(c.slots.is_multiple_of(group), "slots", &format!("a multiple of `{place}.group_size` = {group}"), c.slots)?;
    let Some(model) = &c.model else {
        let problem = Problem::new(format!("`{place}` needs a language model"), "no `[model.NAME]`");
        return Err(Misfit::at(&place, problem.help("write `[model.pretrained]` with `path`, or `[model.fresh]`")));
    };
    let task = c.env.text_task().map_err(|e| Misfit::from_env(&format!("env.{}", c.env.name()), &e))?;
    match (model, task) {
        (ModelConfig::Fresh(config), Some(task)) => fresh(config, task.words().len())?,
        (ModelConfig::Fresh(_), None) => {
            let problem = Problem::new("prompts of a file need a model with a tokenizer, `model.fresh` has none", "has no tokenizer");
            return Err(Misfit::at("model", problem.help("write `model=pretrained` and `model.pretrained.path=FOLDER`")));
        }
        (ModelConfig::Pretrained(_), _) => {}
    }
    if let (EnvConfig::Prompts(_), None) = (&c.env, &c.reward_model) {
        let problem = Problem::new("`env.prompts` has no reward of its own", "no reward");
        return Err(Misfit::at("env.prompts", problem.help("name a reward model with `reward_model.path`")));
    }
    Ok(true)
}

/// Checks the files of such an experiment.
///
/// # Errors
/// The first file that cannot be used.
pub fn online_files(c: &ExperimentConfig) -> Result<(), Misfit> {
    if let Some(model) = &c.model {
        pretrained(model)?;
    }
    if let EnvConfig::Prompts(prompts) = &c.env {
        check(prompts.file.is_file(), "env.prompts.file", "a file that exists", format!("`{}`", prompts.file.display()))?;
    }
    c.reward_model.as_ref().map_or(Ok(()), |reward| folder("reward_model.path", &reward.path))
}

/// Checks the files that a valid configuration names, for a run that has still to read them.
///
/// # Errors
/// The first file that cannot be used.
pub fn files(c: &LanguageConfig) -> Result<(), Misfit> {
    pretrained(&c.model)?;
    match &c.data {
        DataConfig::Task(data) => data.sampler.as_ref().map_or(Ok(()), |path| folder("data.task.sampler", path)),
        DataConfig::File(data) if data.path.is_file() => Ok(()),
        DataConfig::File(data) => Err(Misfit::new("data.file.path", "a file that exists", format!("`{}`", data.path.display()))),
    }
}

/// Checks that a model that was trained before is there, and that its configuration can be read.
///
/// # Errors
/// The path, if not.
pub fn pretrained(model: &ModelConfig) -> Result<(), Misfit> {
    match model {
        ModelConfig::Fresh(_) => Ok(()),
        ModelConfig::Pretrained(config) => folder("model.pretrained.path", &config.path),
    }
}

/// Checks that a path names a model.
///
/// # Errors
/// The path, if not.
pub fn folder(place: &str, path: &Path) -> Result<(), Misfit> {
    let no_model = |message: String, help: String| Misfit::at(place, Problem::new(format!("`{place}`: {message}"), "no model").help(help));
    let folder = model::folder(path).map_err(|(message, help)| no_model(message, help))?;
    // The shape alone: weights are read when the run starts.
    let read = || {
        let path = folder.join("config.json");
        let text =
            std::fs::read_to_string(&path).map_err(|e| AgentError::Model { place: path.display().to_string(), reason: e.to_string() })?;
        steadfast_agents::llm::DecoderConfig::from_json(&text, &path.display().to_string())
    };
    read().map(drop).map_err(|e| no_model(e.to_string(), "give a folder with a model of a supported family".to_string()))
}
