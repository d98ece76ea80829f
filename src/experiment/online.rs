//! Training from experience that the policy itself collects: collect, update, log, evaluate, save.

use std::time::Instant;

use steadfast_agents::{Learner, StateDict};
use steadfast_envs::{ActMode, RolloutBatch, RolloutEngine, SnapshotWriter};
use tracing::{debug, info, warn};

use super::build::{self, Ground};
use super::evaluate::Evaluator;
use super::reward::RewardLearning;
use super::window::EpisodeWindow;
use crate::config::{Experiment, ExperimentConfig};
use crate::failure::{Failure, Result};
use crate::run::checkpoint::{self, Checkpoint, Progress};
use crate::run::directory::RunDirectory;
use crate::run::log::LogFile;
use crate::run::manifest::Manifest;
use crate::run::metrics::{self, MetricsLog};
use crate::run::results::{self, EvalRow, ResultsLog, Source};
use crate::run::reward;
use crate::terminal::{ProgressLine, short};

/// Trains a new run, or continues one from its newest complete checkpoint. Returns the last evaluation without
/// perturbation and then one per level of each robustness sweep.
///
/// # Errors
/// [`Failure::Run`] if anything fails on the way; the checkpoints so far stay.
pub fn train(run: &RunDirectory, config: &ExperimentConfig, resume: bool) -> Result<Vec<EvalRow>> {
    let _lock = run.lock()?;
    let pool = build::thread_pool(config.threads)?;
    let whole = Experiment::from(config.clone());
    if !resume {
        run.initialise(&whole)?;
    }
    pool.install(|| {
        let mut training = if resume { Training::resumed(run, config)? } else { Training::new(run, config)? };
        note_start(run, Manifest::new(&whole, rayon::current_num_threads()), resume)?;
        if !training.has_checkpoint {
            training.evaluate()?;
            training.save()?;
        }
        training.run()?;
        training.finish()
    })
}

/// Writes down which program works on the run, and says how to go on should it be stopped.
pub(super) fn note_start(run: &RunDirectory, manifest: Manifest, resume: bool) -> Result<()> {
    match Manifest::read(run) {
        Some(mut earlier) if resume => {
            let differences = earlier.resume(&manifest);
            if !differences.is_empty() {
                warn!("another program or machine began this run, so its numbers may differ: {}", differences.join("; "));
            }
            earlier.write(run)?;
        }
        // A run that was stopped before it had one gets it late.
        _ => manifest.write(run)?,
    }
    info!("continue a stopped run with: steadfast train --resume {}", run.path().display());
    Ok(())
}

/// The checkpoint to go on from; nothing if the run was stopped before its first. Then its beginnings, also those of the logs
/// named `own` besides the common ones, are removed.
pub(super) fn resumable(run: &RunDirectory, own: &[&str]) -> Result<Option<Checkpoint>> {
    let (found, passed_over) = checkpoint::newest_with_logs(run.path(), &run.checkpoints());
    for (step, error) in &passed_over {
        warn!("checkpoint of step {step} cannot be used: {error}");
    }
    if found.is_some() {
        return Ok(found);
    }
    if let Some((step, error)) = passed_over.into_iter().next() {
        let message = format!("no checkpoint in {} can be continued, the newest is of step {step}", run.path().display());
        let remedy = error.remedy().unwrap_or("restore the files from a copy");
        let again = format!("start again with `steadfast train {} --output DIR`", run.file("config.toml").display());
        return Err(Failure::caused_with_help(message, error, format!("{remedy}, or {again}")));
    }
    let logs = [metrics::METRICS, metrics::TIMING, metrics::EVENTS, results::EVAL, results::EPISODES];
    for name in logs.iter().chain(own) {
        let path = run.file(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Failure::file("remove", &path, e)),
            _ => {}
        }
    }
    info!("no checkpoint yet, starting at the beginning");
    Ok(None)
}

/// Puts the lengths of logs into `progress`. The logs come first: a checkpoint must not know of lines that a power failure can
/// still take away.
pub(super) fn record<'a>(progress: &mut Progress, logs: impl IntoIterator<Item = (&'static str, &'a LogFile)>) -> Result<()> {
    for (name, file) in logs {
        file.sync()?;
        progress.logs.insert(name.to_string(), file.len()?);
    }
    Ok(())
}

struct Training<'a> {
    run: &'a RunDirectory,
    config: &'a ExperimentConfig,
    ground: Ground,
    engine: RolloutEngine,
    learner: Box<dyn Learner>,
    evaluator: Evaluator,
    reward: Option<RewardLearning<'a>>,
    window: EpisodeWindow,
    metrics: MetricsLog,
    results: ResultsLog,
    batch: RolloutBatch,
    step: u64,
    update: u64,
    nominal: Option<EvalRow>,
    has_checkpoint: bool,
}

impl<'a> Training<'a> {
    fn new(run: &'a RunDirectory, config: &'a ExperimentConfig) -> Result<Self> {
        let ground = Ground::of(config)?;
        let evaluator = Evaluator::new(config, &ground, &[], config.eval.episodes, config.eval.mode)?;
        let learner = build::learner(config, &ground, evaluator.spec()).map_err(|e| Failure::caused("cannot build the learner", e))?;
        let engine = build::training_engine(config, &ground, learner.as_ref())?;
        let reward = config.reward.as_ref().map(|reward| RewardLearning::new(run.path(), config, reward, engine.spec())).transpose()?;
        Ok(Self {
            metrics: MetricsLog::open(run.path(), config.log.tensorboard)?,
            results: ResultsLog::open(run.path(), engine.spec(), learner.evaluation_metrics())?,
            window: EpisodeWindow::new(&engine.spec().episode_metrics),
            run,
            config,
            ground,
            engine,
            learner,
            evaluator,
            reward,
            batch: RolloutBatch::default(),
            step: 0,
            update: 0,
            nominal: None,
            has_checkpoint: false,
        })
    }

    fn resumed(run: &'a RunDirectory, config: &'a ExperimentConfig) -> Result<Self> {
        let logs = [reward::STAGES, reward::EPOCHS, reward::PAIRS, reward::TEST_PAIRS];
        let Some(found) = resumable(run, &logs)? else {
            run.initialise(&config.clone().into())?;
            return Self::new(run, config);
        };
        let mut training = Self::new(run, config)?;
        let step = found.progress.step;
        training.restore(&found).map_err(|failure| failure.during(&format!("cannot resume from the checkpoint of step {step}")))?;
        info!(step, update = training.update, "resumed");
        Ok(training)
    }

    fn restore(&mut self, found: &Checkpoint) -> Result<()> {
        let unfit = |e: steadfast_agents::AgentError| Failure::caused("the saved state does not fit", e);
        self.learner.load_state(&found.learner).map_err(unfit)?;
        let words = found.engine.u64("engine").map_err(unfit)?;
        self.engine.restore(words).map_err(|e| Failure::caused("the saved state does not fit", e))?;
        self.window.load(&found.engine).map_err(unfit)?;
        self.step = found.progress.step;
        self.update = found.progress.update;
        let length = |name: &str| {
            let known = found.progress.logs.get(name).copied();
            known.ok_or_else(|| Failure::run(format!("the checkpoint does not know the length of {name}")))
        };
        for (name, file) in self.metrics.files() {
            file.truncate(length(name)?)?;
        }
        if let Some(reward) = &mut self.reward {
            let state = found.reward.as_ref().ok_or_else(|| Failure::run("the checkpoint has no learned reward"))?;
            reward.restore(self.run, state, length)?;
            self.engine.set_reward_fn(reward.reward_fn()?);
        }
        self.results.rewind(length(results::EVAL)?, length(results::EPISODES)?)?;
        let path = self.run.file(results::EVAL);
        let text = std::fs::read(&path).map_err(|e| Failure::file("read", &path, e))?;
        let rows = results::parse(&text).map_err(|e| Failure::run(format!("cannot read {}: {e}", path.display())))?;
        self.nominal = rows.into_iter().rfind(|r| r.source == Source::Train);
        self.has_checkpoint = true;
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let total = self.config.total_steps;
        let mut line = ProgressLine::new(total, self.step, "return (agent mean)");
        let mut interval = (Instant::now(), self.step);
        if total == 0 {
            self.learn_reward()?;
            self.save()?;
        }
        while self.step < total {
            self.learn_reward()?;
            let before = self.step;
            let (collect_seconds, update_seconds) = self.advance()?;
            let is_last = self.step >= total;
            let now = self.step;
            let crosses = |every: u64| is_last || (every > 0 && before / every < now / every);

            if self.update.is_multiple_of(self.config.log.every_updates) || is_last {
                let rate = (self.step - interval.1) as f64 / interval.0.elapsed().as_secs_f64();
                interval = (Instant::now(), self.step);
                let timing = [("steps_per_second", rate), ("collect_seconds", collect_seconds), ("update_seconds", update_seconds)];
                let timing = timing.map(|(name, value)| (format!("timing/{name}"), value));
                self.metrics.write_timing(self.step, self.update, &timing)?;
            }
            let recent = self.window.means().first().map(|(_, value)| *value);
            line.show(self.step, recent);
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

    /// Fits the reward anew, if there is one to be learned and its time has come; more than once if a rollout is longer than
    /// a stage.
    fn learn_reward(&mut self) -> Result<()> {
        while let Some(reward) = self.reward.as_mut().filter(|reward| reward.is_due(self.step)) {
            let row = reward.advance(self.learner.as_mut(), self.step)?;
            self.engine.set_reward_fn(reward.reward_fn()?);
            self.metrics.write(self.step, self.update, &row.values())?;
            let known = |value: Option<f64>| value.map_or_else(|| "-".to_string(), |v| format!("{v:.3}"));
            info!(
                step = self.step,
                stage = row.stage,
                pairs = row.pairs,
                wrong_labels = known(row.label_rate),
                test_accuracy = known(row.test_accuracy),
                auroc = known(row.auroc),
                "fitted the reward"
            );
        }
        Ok(())
    }

    /// One rollout and one update; returns the seconds that they took.
    fn advance(&mut self) -> Result<(f64, f64)> {
        let config = self.config;
        let steps = self.learner.rollout_steps();
        let begin = Instant::now();
        let collected = self.engine.collect(self.learner.policy(), steps, ActMode::Sample, &mut self.batch);
        collected.map_err(|e| Failure::caused(self.stopped(), e))?;
        let collect_seconds = begin.elapsed().as_secs_f64();
        self.window.extend(self.engine.episodes());

        let progress = (self.step as f64 / config.total_steps as f64).min(1.0);
        self.step += (steps * config.slots) as u64;
        self.update += 1;
        let begin = Instant::now();
        let message = self.stopped();
        let learned = self.learner.update(&self.batch, progress).map_err(|e| Failure::caused(message, e))?;
        let update_seconds = begin.elapsed().as_secs_f64();

        if self.update.is_multiple_of(config.log.every_updates) || self.step >= config.total_steps {
            let mut values = self.window.means();
            values.extend(learned.values.iter().map(|(name, value)| ((*name).to_string(), *value)));
            debug!(step = self.step, update = self.update, collect_seconds, update_seconds, "updated");
            self.metrics.write(self.step, self.update, &values)?;
        }
        Ok((collect_seconds, update_seconds))
    }

    fn stopped(&self) -> String {
        format!("training stopped in update {} at step {}; earlier checkpoints are intact", self.update, self.step)
    }

    fn evaluate(&mut self) -> Result<()> {
        let (row, episodes) = self.evaluator.run(self.learner.as_mut(), Source::Train, self.step)?;
        self.results.write(&row, &episodes)?;
        let values = [
            ("eval/return_agent_mean", row.return_agent_mean),
            ("eval/return_team_sum", row.return_team_sum),
            ("eval/episode_length", row.length),
        ];
        self.metrics.events(self.step, &values.map(|(name, value)| (name.to_string(), value)))?;
        info!(
            step = self.step,
            return_agent_mean = short(row.return_agent_mean),
            return_team_sum = short(row.return_team_sum),
            "evaluated"
        );
        self.nominal = Some(row);
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let mut words = SnapshotWriter::default();
        self.engine.snapshot(&mut words);
        let mut engine = StateDict::default();
        engine.put_u64("engine", &words.into_words());
        self.window.save(&mut engine);
        let mut progress = Progress { step: self.step, update: self.update, ..Default::default() };
        record(&mut progress, self.metrics.files().into_iter().map(|(name, file)| (name, &*file)))?;
        record(&mut progress, self.results.files())?;
        if let Some(reward) = &mut self.reward {
            record(&mut progress, reward.files().map(|(name, file)| (name, &*file)))?;
        }
        let reward = self.reward.as_ref().map(RewardLearning::state);
        let checkpoint = Checkpoint { progress, learner: self.learner.state(), engine, reward };
        checkpoint::save(&self.run.checkpoints(), &checkpoint, self.config.checkpoint.keep)?;
        self.has_checkpoint = true;
        debug!(step = self.step, "saved");
        Ok(())
    }

    /// Robustness sweeps with the final policy, and the folder with the language model.
    fn finish(&mut self) -> Result<Vec<EvalRow>> {
        let mut rows: Vec<EvalRow> = self.nominal.clone().into_iter().collect();
        for sweep in &self.config.robustness {
            for &level in &sweep.levels {
                let perturbation = sweep.axis.with_level(level);
                let mut evaluator = Evaluator::new(self.config, &self.ground, &[perturbation], sweep.episodes, self.config.eval.mode)?;
                let (row, episodes) = evaluator.run(self.learner.as_mut(), Source::Final, self.step)?;
                self.results.write(&row, &episodes)?;
                info!(perturbation = row.perturbation, level, return_agent_mean = short(row.return_agent_mean), "evaluated");
                rows.push(row);
            }
        }
        #[cfg(feature = "llm")]
        if let (Some(model), Some(decoder)) = (&self.ground.model, self.learner.decoder()) {
            super::language::model::save(self.run, decoder, &model.tokenizer, None)?;
        }
        Ok(rows)
    }
}
