//! Training of a language model on given examples: step, log, evaluate, save; at the end a folder with the model.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;
use steadfast_agents::llm::{ExampleTable, Objective, SftObjective, Tokenizer, Trainer};
use steadfast_agents::{AgentError, Metrics, StateDict};
use steadfast_envs::{ActMode, EpisodeLog, SeedTree};
use steadfast_reward::{KtoObjective, PreferenceObjective, ReferenceCache, RewardError, RewardObjective, RewardScale};
use tracing::{debug, info, warn};

use super::data::{self, Examples, Gathered};
use super::device;
use super::evaluation::{Found, PolicyEvaluation, RewardEvaluation};
use super::model::{LanguageModel, save};
use crate::config::Experiment;
use crate::config::language::{LanguageConfig, ModelConfig, ObjectiveConfig};
use crate::experiment::build;
use crate::experiment::online::{note_start, record, resumable};
use crate::failure::{Failure, Result};
use crate::plot::stats::Summary;
use crate::run::checkpoint::{self, Checkpoint, Progress};
use crate::run::directory::RunDirectory;
use crate::run::log::{LogFile, write_whole};
use crate::run::manifest::Manifest;
use crate::run::metrics::MetricsLog;
use crate::run::results::{self, EvalRow, ResultsLog, Source};
use crate::terminal::{ProgressLine, short};

/// Completions that evaluations drew, some of each.
pub const SAMPLES: &str = "samples.jsonl";
/// What the trained model says of each training example.
pub const EXAMPLES: &str = "examples.csv";
/// Folder of reference log-probabilities.
const REFERENCE: &str = "reference";
/// Tokens of an evaluated completion where nothing else limits it.
const MAX_NEW_TOKENS: usize = 128;

/// What a finished run leaves for its summary.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The last evaluation.
    pub evaluation: Option<EvalRow>,
    /// Further parts of `summary.json`, by name.
    pub parts: Vec<(&'static str, serde_json::Value)>,
}

/// Trains a new run, or continues one from its newest complete checkpoint.
///
/// # Errors
/// [`Failure::Run`] if anything fails on the way; the checkpoints so far stay.
pub fn train(run: &RunDirectory, config: &LanguageConfig, resume: bool) -> Result<Finished> {
    let _lock = run.lock()?;
    let pool = build::thread_pool(config.threads)?;
    let whole = Experiment::Offline(Box::new(config.clone()));
    let found = if resume { resumable(run, &[SAMPLES])? } else { None };
    if found.is_none() {
        run.initialise(&whole)?;
    }
    pool.install(|| {
        let mut training = Training::new(run, config)?;
        if let Some(found) = &found {
            let step = found.progress.step;
            training.restore(found).map_err(|failure| failure.during(&format!("cannot resume from the checkpoint of step {step}")))?;
            info!(step, "resumed");
        }
        note_start(run, Manifest::new(&whole, rayon::current_num_threads()), resume)?;
        if found.is_none() {
            training.evaluate()?;
            training.save()?;
        }
        training.run()?;
        training.finish()
    })
}

/// How a run is evaluated besides its objective.
enum Evaluation {
    Policy(Box<PolicyEvaluation>),
    Reward(RewardEvaluation),
    Nothing,
}

struct Training<'a> {
    run: &'a RunDirectory,
    config: &'a LanguageConfig,
    trainer: Trainer,
    tokenizer: Tokenizer,
    gathered: Gathered,
    evaluation: Evaluation,
    /// Check sums of examples and of the model that training started from.
    identity: [u64; 2],
    metrics: MetricsLog,
    /// Opened by the first evaluation, which knows the columns.
    results: Option<ResultsLog>,
    samples: LogFile,
    last: Option<EvalRow>,
}

impl<'a> Training<'a> {
    fn new(run: &'a RunDirectory, config: &'a LanguageConfig) -> Result<Self> {
        let seeds = SeedTree::new(config.seed);
        let device = device::open(&config.device)?;
        let task = data::task(&config.data)?;
        let model = LanguageModel::open(&config.model, task.as_deref(), seeds, &device)?;
        let is_reward = matches!(config.objective, ObjectiveConfig::RewardModel(_));
        if model.decoder.has_scalar_head() && !is_reward {
            let message = format!("`objective.{}` trains a language model, but `model` is a reward model", config.objective.name());
            return Err(Failure::run_with_help(message, "give the language model that the reward model was trained from"));
        }
        let gathered = data::gather(Some(run), config, &model, task.as_deref(), &device)?;
        let (train, held_out) = gathered.examples.counts();
        let parameters = model.decoder.n_parameters();
        info!(objective = config.objective.name(), parameters, train, held_out, report = %gathered.report, "gathered examples");
        let evaluation = evaluation(config, &model, task, &gathered.examples)?;
        let identity = [u64::from(gathered.examples.check_sum()), check_sum(&model).map_err(cannot_start)?];
        let objective = objective(run, config, &model.tokenizer, gathered.examples.clone())?;
        let decoder = if is_reward && !model.decoder.has_scalar_head() {
            model.decoder.with_scalar_head(seeds.child("head")).map_err(cannot_start)?
        } else {
            model.decoder
        };
        let trainer = Trainer::new(&config.trainer, decoder, objective, seeds.child("trainer")).map_err(cannot_start)?;
        Ok(Self {
            metrics: MetricsLog::open(run.path(), config.log.tensorboard)?,
            samples: LogFile::open(&run.file(SAMPLES))?,
            results: None,
            run,
            config,
            trainer,
            tokenizer: model.tokenizer,
            gathered,
            evaluation,
            identity,
            last: None,
        })
    }

    fn restore(&mut self, found: &Checkpoint) -> Result<()> {
        let unfit = |e: AgentError| Failure::caused("the saved state does not fit", e);
        let [examples, start] = self.identity;
        for (name, now, what) in [("examples", examples, "examples"), ("start", start, "model that it started from")] {
            if found.engine.counter(name).map_err(unfit)? != now {
                let message = format!("the {what} of this run changed since it was begun");
                return Err(Failure::run_with_help(message, "restore the files that its configuration names, or start a new run"));
            }
        }
        self.trainer.load_state(&found.learner).map_err(unfit)?;
        self.tell();
        let length = |name: &str| {
            let known = found.progress.logs.get(name).copied();
            known.ok_or_else(|| Failure::run(format!("the checkpoint does not know the length of {name}")))
        };
        for (name, file) in self.metrics.files() {
            file.truncate(length(name)?)?;
        }
        self.samples.truncate(length(SAMPLES)?)?;
        // The columns are those that the table has.
        let mut results = ResultsLog::open_with(self.run.path(), Vec::new())?;
        results.rewind(length(results::EVAL)?, length(results::EPISODES)?)?;
        self.results = Some(results);
        let path = self.run.file(results::EVAL);
        let text = std::fs::read(&path).map_err(|e| Failure::file("read", &path, e))?;
        let rows = results::parse(&text).map_err(|e| Failure::run(format!("cannot read {}: {e}", path.display())))?;
        self.last = rows.into_iter().rfind(|r| r.source == Source::Train);
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let total = self.trainer.n_steps();
        let mut line = ProgressLine::new(total, self.trainer.step_count(), "loss");
        let mut interval = (Instant::now(), self.trainer.step_count());
        let mut tokens = 0.0;
        while self.trainer.step_count() < total {
            let before = self.trainer.step_count();
            let message = format!("training stopped in step {}; earlier checkpoints are intact", before + 1);
            let learned = self.trainer.step().map_err(|e| Failure::caused(message, e))?;
            self.tell();
            let step = self.trainer.step_count();
            let is_last = step >= total;
            let crosses = |every: u64| is_last || (every > 0 && before / every < step / every);
            tokens += learned.get("train/tokens").unwrap_or(0.0);
            if step.is_multiple_of(self.config.log.every_updates) || is_last {
                self.metrics.write(step, step, &named(&learned))?;
                let seconds = interval.0.elapsed().as_secs_f64();
                let timing = [("steps_per_second", (step - interval.1) as f64 / seconds), ("tokens_per_second", tokens / seconds)];
                self.metrics.write_timing(step, step, &timing.map(|(name, value)| (format!("timing/{name}"), value)))?;
                (interval, tokens) = ((Instant::now(), step), 0.0);
            }
            line.show(step, learned.get("train/loss"));
            if crosses(self.config.eval.every_steps) {
                self.evaluate()?;
            }
            if crosses(self.config.checkpoint.every_steps) {
                self.save()?;
            }
        }
        line.finish();
        Ok(())
    }

    /// Passes on what the objective has to say.
    fn tell(&mut self) {
        for notice in self.trainer.objective_mut().take_notices() {
            warn!("{notice}");
        }
    }

    fn evaluate(&mut self) -> Result<()> {
        let step = self.trainer.step_count();
        let of_objective = self.trainer.evaluate().map_err(|e| Failure::caused(format!("evaluation at step {step} failed"), e))?;
        self.tell();
        let found = match &mut self.evaluation {
            Evaluation::Policy(policy) => policy.run(self.trainer.decoder())?,
            Evaluation::Reward(reward) => reward.run(self.trainer.decoder())?,
            Evaluation::Nothing => Found::default(),
        };
        self.write_samples(step, &found)?;
        let row = row(self.config, step, &of_objective, &found);
        if self.results.is_none() {
            self.results = Some(ResultsLog::open_with(self.run.path(), row.metrics.keys().cloned().collect())?);
        }
        if let Some(results) = &mut self.results {
            results.write(&row, &EpisodeLog::default())?;
        }
        let values: Vec<(String, f64)> =
            row.metrics.iter().map(|(name, value)| (format!("eval/{}", name.trim_start_matches("metric_")), *value)).collect();
        self.metrics.events(step, &values)?;
        let shown = |name: &str| row.metrics.get(name).map(|value| short(*value));
        info!(
            step,
            loss = shown("metric_loss"),
            gold_reward = shown("metric_gold_reward"),
            kl = shown("metric_kl"),
            accuracy = shown("metric_rewards_accuracies").or(shown("metric_accuracy")),
            true_accuracy = shown("metric_true_accuracy"),
            "evaluated"
        );
        self.last = Some(row);
        Ok(())
    }

    fn write_samples(&mut self, step: u64, found: &Found) -> Result<()> {
        let mut lines = String::new();
        for (sequence, gold) in &found.shown {
            let text = |tokens: &[u32]| self.tokenizer.decode(tokens, false).map_err(|e| Failure::caused("cannot write samples", e));
            let mut line = json!({ "step": step, "prompt": text(sequence.prompt())?, "completion": text(sequence.completion())? });
            if let Some(gold) = gold {
                line["gold_reward"] = json!(gold);
            }
            lines.push_str(&format!("{line}\n"));
        }
        self.samples.append(lines.as_bytes())
    }

    fn save(&mut self) -> Result<()> {
        let step = self.trainer.step_count();
        let mut engine = StateDict::default();
        let [examples, start] = self.identity;
        engine.put_u64("examples", &[examples]);
        engine.put_u64("start", &[start]);
        let mut progress = Progress { step, update: step, ..Default::default() };
        record(&mut progress, self.metrics.files().into_iter().map(|(name, file)| (name, &*file)))?;
        if let Some(results) = &self.results {
            record(&mut progress, results.files())?;
        }
        record(&mut progress, [(SAMPLES, &self.samples)])?;
        let learner = self.trainer.state().map_err(|e| Failure::caused("cannot save the state", e))?;
        let checkpoint = Checkpoint { progress, learner, engine, reward: None };
        checkpoint::save(&self.run.checkpoints(), &checkpoint, self.config.checkpoint.keep)?;
        debug!(step, "saved");
        Ok(())
    }

    /// The table of examples and the folder with the model.
    fn finish(&mut self) -> Result<Finished> {
        let failed = |e: AgentError| Failure::caused("the trained model cannot be looked at", e);
        let table = self.trainer.example_table().map_err(failed)?;
        let mut parts = vec![("data", self.gathered.report.clone())];
        if !table.columns.is_empty() {
            write_whole(&self.run.file(EXAMPLES), &csv_of(&table))?;
            let numbers = table.metrics.values.iter().filter(|(_, value)| value.is_finite());
            parts.push(("final", numbers.map(|(name, value)| (name.replace('/', "_"), json!(value))).collect()));
        }
        let decoder = self.trainer.decoder();
        let scale = match self.config.objective {
            ObjectiveConfig::RewardModel(_) => {
                let scale = RewardScale::fit(decoder, &self.gathered.examples.sequences());
                Some(scale.map_err(|e| Failure::caused("the scale of the rewards cannot be found", e))?)
            }
            _ => None,
        };
        save(self.run, decoder, &self.tokenizer, scale)?;
        let reference = self.run.file(REFERENCE);
        if reference.exists() {
            // It served to go on from checkpoints.
            std::fs::remove_dir_all(&reference).map_err(|e| Failure::file("remove", &reference, e))?;
        }
        Ok(Finished { evaluation: self.last.clone(), parts })
    }
}

fn cannot_start(error: AgentError) -> Failure {
    Failure::caused("training cannot start", error)
}

/// What is learned from the examples.
fn objective(run: &RunDirectory, config: &LanguageConfig, tokenizer: &Tokenizer, examples: Examples) -> Result<Box<dyn Objective>> {
    let cache = ReferenceCache { folder: Some(run.file(REFERENCE)), tokenizer_digest: tokenizer.digest() };
    let fail = |e: RewardError| Failure::caused("training cannot start", e);
    Ok(match (&config.objective, examples) {
        (ObjectiveConfig::Sft(_), Examples::Completions { train, held_out }) => {
            Box::new(SftObjective::new(train, held_out).map_err(cannot_start)?)
        }
        (ObjectiveConfig::Preference(c), Examples::Pairs { train, held_out }) => {
            Box::new(PreferenceObjective::new(c, train, held_out, cache).map_err(fail)?)
        }
        (ObjectiveConfig::Kto(c), Examples::Answers { train, held_out }) => {
            Box::new(KtoObjective::new(c, train, held_out, cache).map_err(fail)?)
        }
        (ObjectiveConfig::RewardModel(c), Examples::Pairs { train, held_out }) => {
            Box::new(RewardObjective::new(c, train, held_out).map_err(fail)?)
        }
        (objective, _) => return Err(Failure::run(format!("`objective.{}` cannot learn from these examples", objective.name()))),
    })
}

fn evaluation(
    config: &LanguageConfig,
    model: &LanguageModel,
    task: Option<std::sync::Arc<dyn steadfast_envs::text::TextTask>>,
    examples: &Examples,
) -> Result<Evaluation> {
    let seeds = SeedTree::new(config.eval.seed).child("evaluation");
    let n = config.eval.samples;
    if n == 0 {
        return Ok(Evaluation::Nothing);
    }
    if let ObjectiveConfig::RewardModel(_) = config.objective {
        return Ok(task.map_or(Evaluation::Nothing, |task| Evaluation::Reward(RewardEvaluation::new(task.as_ref(), n, seeds))));
    }
    let prompts: Vec<Vec<u32>> = match &task {
        Some(task) => (0..n as u64).map(|i| task.prompt(&mut seeds.child("prompt").index(i).rng())).collect(),
        None => examples.prompts().into_iter().cycle().take(n).collect(),
    };
    // How far random weights move is of no interest.
    let reference = match config.model {
        ModelConfig::Fresh(_) => None,
        ModelConfig::Pretrained(_) => Some(model.decoder.duplicate().map_err(cannot_start)?),
    };
    let most = match (config.eval.max_new_tokens, &task) {
        (0, Some(task)) => task.max_new_tokens(),
        (0, None) => MAX_NEW_TOKENS,
        (given, _) => given,
    };
    Ok(Evaluation::Policy(Box::new(PolicyEvaluation::new(prompts, task, reference, most, model.end_of_sequence.clone(), seeds))))
}

/// Check sum of the parameters that a run starts from.
fn check_sum(model: &LanguageModel) -> Result<u64, AgentError> {
    let mut sum = 0;
    for (name, _, values) in model.decoder.parameters()? {
        sum = crc32c::crc32c_append(sum, name.as_bytes());
        for chunk in values.chunks(1 << 16) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
            sum = crc32c::crc32c_append(sum, &bytes);
        }
    }
    Ok(u64::from(sum))
}

fn named(metrics: &Metrics) -> Vec<(String, f64)> {
    metrics.values.iter().map(|(name, value)| ((*name).to_string(), *value)).collect()
}

/// A line of `eval.csv`. Without a known reward its returns are no numbers.
fn row(config: &LanguageConfig, step: u64, of_objective: &Metrics, found: &Found) -> EvalRow {
    let gold = Summary::of(&found.gold);
    let of_gold = |f: fn(&Summary) -> f64| gold.as_ref().map_or(f64::NAN, f);
    let own = of_objective.values.iter().map(|(name, value)| (name.trim_start_matches("eval/"), *value));
    let metrics: BTreeMap<String, f64> =
        own.chain(found.metrics.iter().copied()).map(|(name, value)| (format!("metric_{name}"), value)).collect();
    let ended = found.metrics.iter().find(|(name, _)| *name == "ended").map_or(f64::NAN, |(_, value)| *value);
    EvalRow {
        source: Source::Train,
        step,
        perturbation: "none".to_string(),
        level: 0.0,
        settings: String::new(),
        actions: "tokens".to_string(),
        mode: ActMode::Sample,
        seed: config.eval.seed,
        episodes: config.eval.samples,
        return_team_sum: of_gold(|s| s.mean),
        return_team_sum_std: of_gold(|s| s.std),
        return_team_sum_ci95: of_gold(|s| s.half_width),
        return_agent_mean: of_gold(|s| s.mean),
        return_agent_mean_std: of_gold(|s| s.std),
        return_agent_mean_ci95: of_gold(|s| s.half_width),
        length: 1.0,
        terminated: ended,
        metrics,
    }
}

fn csv_of(table: &ExampleTable) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut write = |fields: &[&str]| writer.write_record(fields).expect("writing to memory cannot fail");
    write(table.columns);
    table.rows.iter().for_each(|row| write(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    writer.into_inner().expect("flushing memory cannot fail")
}
