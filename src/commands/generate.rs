//! `steadfast generate`.

use std::io::{IsTerminal as _, Read as _};

use serde_json::json;
use steadfast_agents::AgentError;
use steadfast_agents::llm::{Completion, Finish, GenerationConfig, Generator};
use steadfast_envs::text::Message;
use steadfast_envs::{Rng, SeedTree};

use super::print;
use crate::cli::GenerateArgs;
use crate::experiment::language::device;
use crate::experiment::language::model::LanguageModel;
use crate::failure::{Failure, Result};

/// Completions that are drawn together.
const BATCH: usize = 32;

/// Completes prompts.
pub fn run(arguments: &GenerateArgs) -> Result<()> {
    let generation = GenerationConfig {
        max_new_tokens: arguments.max_new_tokens as usize,
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        repetition_penalty: arguments.repetition_penalty,
        greedy: arguments.greedy,
    };
    check(&generation)?;
    crate::config::language_check::device(&arguments.device)
        .map_err(|misfit| Failure::usage(misfit.problem.message, misfit.problem.help.unwrap_or_else(|| "see --help".to_string())))?;
    let model = LanguageModel::load(&arguments.model, &device::open(&arguments.device)?)?;
    if model.decoder.has_scalar_head() {
        let message = format!("{} holds a reward model, which writes nothing", arguments.model.display());
        return Err(Failure::usage(message, "give a language model"));
    }
    let texts = prompts(arguments)?;
    let failed = |e: AgentError| Failure::caused("cannot generate", e);
    let mut encoded = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        let tokens = encode(&model, arguments, text).map_err(failed)?;
        let (n, most) = (tokens.len(), model.decoder.config().max_positions);
        if n >= most {
            let message = format!("prompt {} has {n} tokens, but the model has {most} positions, and one must be left to write", i + 1);
            return Err(Failure::usage(message, "give a shorter prompt"));
        }
        if n == 0 {
            return Err(Failure::usage(format!("prompt {} is empty, and the model has no token to begin with", i + 1), "write something"));
        }
        encoded.push(tokens);
    }
    let stop: Vec<Vec<u32>> = arguments.stop.iter().map(|s| model.tokenizer.encode(s, false)).collect::<Result<_, _>>().map_err(failed)?;
    if let Some(i) = stop.iter().position(Vec::is_empty) {
        return Err(Failure::usage(format!("--stop `{}` is no token", arguments.stop[i]), "give a text"));
    }
    let mut generator = Generator::new(&model.decoder).map_err(failed)?;
    let n = arguments.samples as usize;
    let rows: Vec<(usize, usize)> = (0..encoded.len()).flat_map(|prompt| (0..n).map(move |sample| (prompt, sample))).collect();
    let seeds = SeedTree::new(arguments.seed).child("generate");
    let seed_of = |&(prompt, sample): &(usize, usize)| seeds.index(prompt as u64).index(sample as u64).rng();
    if let ([row], [prompt], false) = (rows.as_slice(), encoded.as_slice(), arguments.log_probs) {
        return stream(&model, &mut generator, prompt, &generation, &stop, seed_of(row));
    }
    for chunk in rows.chunks(BATCH) {
        let prompts: Vec<&[u32]> = chunk.iter().map(|&(prompt, _)| encoded[prompt].as_slice()).collect();
        let mut rngs: Vec<Rng> = chunk.iter().map(seed_of).collect();
        let completions = generator.generate(&prompts, &generation, &model.end_of_sequence, &stop, &mut rngs).map_err(failed)?;
        for (&(prompt, sample), completion) in chunk.iter().zip(&completions) {
            print(&answer(&model, arguments, &texts[prompt], sample, completion).map_err(failed)?)?;
        }
    }
    Ok(())
}

/// Writes a completion while it is drawn.
fn stream(
    model: &LanguageModel,
    generator: &mut Generator,
    prompt: &[u32],
    generation: &GenerationConfig,
    stop: &[Vec<u32>],
    rng: Rng,
) -> Result<()> {
    let mut tokens = Vec::new();
    let mut written = String::new();
    let mut outcome = Ok(());
    let mut show = |_: usize, token: u32| {
        tokens.push(token);
        let Ok(text) = model.tokenizer.decode(&tokens, true) else { return };
        // Half a character, or spaces that the next token takes back, wait.
        if let Some(rest) = text.strip_prefix(written.as_str()).filter(|_| !text.ends_with('\u{fffd}'))
            && outcome.is_ok()
        {
            outcome = print(rest);
            written = text;
        }
    };
    let ends = &model.end_of_sequence;
    let completions = generator.generate_with(&[prompt], generation, ends, stop, &mut [rng], None, &mut show);
    let completions = completions.map_err(|e| Failure::caused("cannot generate", e))?;
    outcome?;
    let whole = completions.first().map_or(Ok(String::new()), |c| model.tokenizer.decode(&c.tokens, true));
    let whole = whole.map_err(|e| Failure::caused("cannot generate", e))?;
    print(&format!("{}\n", whole.strip_prefix(written.as_str()).unwrap_or_default()))
}

fn check(generation: &GenerationConfig) -> Result<()> {
    generation.validate().map_err(|error| match error {
        AgentError::Config { field, expected, got } => {
            let message = format!("`--{}` must be {expected}, got {got}", field.replace('_', "-"));
            Failure::usage(message, "see `steadfast generate --help`")
        }
        other => Failure::caused("cannot generate", other),
    })
}

/// The prompts: the argument, the lines of a file, or those of standard input.
fn prompts(arguments: &GenerateArgs) -> Result<Vec<String>> {
    let lines = |text: String| text.lines().map(str::to_string).filter(|line| !line.trim().is_empty()).collect::<Vec<_>>();
    let found = match (&arguments.prompt, &arguments.file) {
        (Some(prompt), _) => vec![prompt.clone()],
        (None, Some(path)) => lines(
            std::fs::read_to_string(path)
                .map_err(|e| Failure::usage(format!("cannot read {}: {e}", path.display()), "give a file with one prompt per line"))?,
        ),
        (None, None) => {
            let mut text = String::new();
            let mut input = std::io::stdin();
            if input.is_terminal() {
                return Err(Failure::usage("no prompt is given", "write it behind the model, or give --file"));
            }
            input.read_to_string(&mut text).map_err(|e| Failure::caused("cannot read standard input", e))?;
            lines(text)
        }
    };
    if found.is_empty() {
        return Err(Failure::usage("there is no prompt", "give one as an argument, in --file, or on standard input"));
    }
    Ok(found)
}

fn encode(model: &LanguageModel, arguments: &GenerateArgs, text: &str) -> Result<Vec<u32>, AgentError> {
    if !arguments.chat {
        return model.encode_prompt(text);
    }
    let message = |role: &str, content: &str| Message { role: role.to_string(), content: content.to_string() };
    let system = arguments.system.iter().map(|text| message("system", text));
    let messages: Vec<Message> = system.chain([message("user", text)]).collect();
    // A template writes its special tokens itself.
    model.tokenizer.encode(&model.tokenizer.render_chat(&messages, true)?, false)
}

fn answer(
    model: &LanguageModel,
    arguments: &GenerateArgs,
    prompt: &str,
    sample: usize,
    completion: &Completion,
) -> Result<String, AgentError> {
    let text = model.tokenizer.decode(&completion.tokens, true)?;
    if arguments.log_probs {
        let finish = match completion.finish {
            Finish::EndOfSequence => "end_of_sequence",
            Finish::StopSequence => "stop_sequence",
            Finish::Length => "length",
        };
        let tokens: Vec<String> = completion.tokens.iter().map(|&t| model.tokenizer.decode(&[t], false)).collect::<Result<_, _>>()?;
        let sum: f64 = completion.log_probs.iter().map(|&x| f64::from(x)).sum();
        let line = json!({
            "prompt": prompt, "sample": sample, "completion": text, "finish": finish, "log_prob": sum,
            "tokens": tokens, "ids": completion.tokens, "log_probs": completion.log_probs,
        });
        return Ok(format!("{line}\n"));
    }
    // Several completions stay apart by their lines.
    Ok(format!("{}\n", text.replace('\n', "\\n")))
}
