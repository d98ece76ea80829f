//! A model with its tokenizer, from random weights or from a folder; and back into one.

use std::path::Path;

use steadfast_agents::AgentError;
use steadfast_agents::llm::{Decoder, Device, Tokenizer};
use steadfast_envs::SeedTree;
use steadfast_envs::text::{BOS, EOS, PAD, TextTask};
use steadfast_reward::{RewardScale, TextReward};

use crate::config::ModelConfig;
use crate::failure::{Failure, Result};
use crate::run::directory::RunDirectory;
use crate::run::model::{MODEL, folder};

/// A model that reads and writes text.
pub struct LanguageModel {
    /// The network.
    pub decoder: Decoder,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Any of these tokens ends a text.
    pub end_of_sequence: Vec<u32>,
}

impl LanguageModel {
    /// The model of a configuration; for a synthetic task, one that knows its words.
    ///
    /// # Errors
    /// [`Failure::Run`] naming file and tensor, or the word that differs.
    pub fn open(config: &ModelConfig, task: Option<&dyn TextTask>, seeds: SeedTree, device: &Device) -> Result<Self> {
        match (config, task) {
            (ModelConfig::Pretrained(pretrained), task) => {
                let model = Self::load(&pretrained.path, device)?;
                if let Some(task) = task {
                    model.check_task(task).map_err(|reason| mismatch(&pretrained.path, task, &reason))?;
                }
                Ok(model)
            }
            (ModelConfig::Fresh(fresh), Some(task)) => {
                let shape = fresh.decoder(task.words().len(), [Some(BOS), Some(EOS), Some(PAD)]).map_err(Failure::run)?;
                let decoder = Decoder::fresh(&shape, false, seeds.child("model"), device).map_err(cannot_build)?;
                let tokenizer = task_tokenizer(task).map_err(cannot_build)?;
                Ok(Self { decoder, tokenizer, end_of_sequence: vec![EOS] })
            }
            (ModelConfig::Fresh(_), None) => Err(Failure::run("a model with random weights has no tokenizer for files")),
        }
    }

    /// The model of a folder or of a finished run.
    ///
    /// # Errors
    /// [`Failure::Usage`] if there is none; [`Failure::Run`] naming file and tensor of what cannot be used.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let folder = folder(path).map_err(|(message, help)| Failure::usage(message, help))?;
        let fail = |e: AgentError| Failure::caused(format!("cannot load the model in {}", folder.display()), e);
        // The tokenizer is small: what is wrong with it is known before the weights are read.
        let tokenizer = Tokenizer::load(&folder).map_err(fail)?;
        let decoder = Decoder::load(&folder, device).map_err(fail)?;
        let (own, known) = (tokenizer.vocab_size(), decoder.config().vocab_size);
        if own > known {
            let reason = format!("the tokenizer has {own} tokens, but the model's vocabulary has {known}: they do not belong together");
            return Err(fail(AgentError::Model { place: folder.join("tokenizer.json").display().to_string(), reason }));
        }
        let mut end_of_sequence = decoder.config().eos_token_ids.clone();
        end_of_sequence.extend(tokenizer.eos().filter(|eos| !end_of_sequence.contains(eos)));
        Ok(Self { decoder, tokenizer, end_of_sequence })
    }

    /// Checks that the tokens are the words of a task, at the same places.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_task(&self, task: &dyn TextTask) -> Result<(), String> {
        let words = task.words();
        let n = self.tokenizer.vocab_size();
        if n != words.len() {
            return Err(format!("its tokenizer has {n} tokens, the task {} words", words.len()));
        }
        for (id, word) in (0..).zip(words) {
            let found = self.tokenizer.decode(&[id], false).map_err(|e| e.to_string())?;
            if found.trim() != word {
                return Err(format!("its token {id} is `{}`, the task's is `{word}`", found.trim()));
            }
        }
        let (needed, most) = (task.max_prompt_tokens() + task.max_new_tokens(), self.decoder.config().max_positions);
        if needed > most {
            return Err(format!("prompts and completions of the task have up to {needed} tokens, the model has {most} positions"));
        }
        Ok(())
    }

    /// A prompt of plain text as tokens, with the begin-of-sequence token where the model has one.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, AgentError> {
        let tokens = self.tokenizer.encode(text, true)?;
        match self.tokenizer.bos() {
            // Tokenizers of words add nothing of their own.
            Some(bos) if tokens.first() != Some(&bos) => Ok([vec![bos], tokens].concat()),
            _ => Ok(tokens),
        }
    }
}

/// The tokenizer of a task's words.
///
/// # Errors
/// Those of [`Tokenizer::from_words`].
pub fn task_tokenizer(task: &dyn TextTask) -> Result<Tokenizer, AgentError> {
    let words = task.words();
    let word = |token: u32| words[token as usize].as_str();
    Tokenizer::from_words(words, None, Some(word(BOS)), word(EOS), word(PAD))
}

/// The trained reward model in a folder or run, for a policy that writes the tokens of `model`.
///
/// # Errors
/// [`Failure::Run`] if it cannot be read, is none, or knows other tokens.
pub fn reward(path: &Path, model: &LanguageModel, device: &Device) -> Result<TextReward> {
    let folder = folder(path).map_err(|(message, help)| Failure::usage(message, help))?;
    let cannot = format!("cannot use the reward model in {}", folder.display());
    let tokenizer = Tokenizer::load(&folder).map_err(|e| Failure::caused(cannot.clone(), e))?;
    if tokenizer.digest() != model.tokenizer.digest() {
        let help = "train the reward model from the same language model as the policy";
        return Err(Failure::run_with_help(format!("{cannot}: its tokenizer differs from the policy's"), help));
    }
    TextReward::load(&folder, device).map_err(|e| Failure::caused(cannot, e))
}

/// Writes the folder `model` of a run: the network, its tokenizer and, for a reward model, the scale of its rewards. It is
/// there completely or not at all.
///
/// # Errors
/// [`Failure::Run`] naming the file.
pub fn save(run: &RunDirectory, decoder: &Decoder, tokenizer: &Tokenizer, scale: Option<RewardScale>) -> Result<()> {
    save_folder(&run.file(MODEL), decoder, tokenizer, scale)
}

/// As [`save`], into any folder, which is replaced if it exists.
///
/// # Errors
/// As [`save`].
pub fn save_folder(target: &Path, decoder: &Decoder, tokenizer: &Tokenizer, scale: Option<RewardScale>) -> Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".tmp");
    let temporary = target.with_file_name(name);
    let remove = |path: &Path| match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::file("remove", path, e)),
        _ => Ok(()),
    };
    let cannot = |e: AgentError| Failure::caused(format!("cannot write the model to {}", target.display()), e);
    remove(&temporary)?;
    let write = || {
        std::fs::create_dir_all(&temporary).map_err(|e| Failure::file("create", &temporary, e))?;
        decoder.save(&temporary).map_err(cannot)?;
        tokenizer.save(&temporary).map_err(cannot)?;
        if let Some(scale) = scale {
            scale.save(&temporary).map_err(|e| Failure::caused("cannot write the scale of the rewards", e))?;
        }
        remove(target)?;
        std::fs::rename(&temporary, target).map_err(|e| Failure::file("write", target, e))
    };
    write().inspect_err(|_| {
        // The error that is reported is the first one.
        let _ = std::fs::remove_dir_all(&temporary);
    })
}

fn mismatch(path: &Path, task: &dyn TextTask, reason: &str) -> Failure {
    let message = format!("the model in {} does not fit the task `{}`: {reason}", path.display(), task.name());
    Failure::run_with_help(message, "train one from the task's own words with `[model.fresh]` and `[objective.sft]`")
}

fn cannot_build(error: AgentError) -> Failure {
    Failure::caused("cannot build the model", error)
}
