//! The closed loop of a learned reward: let the policy act, compare segments of what it did, label them with errors, fit a
//! reward to all labels so far, hand it to the rollout engine.
//!
//! Each fit begins with fresh parameters, so that the reward does not depend on the order in which labels arrived.

use std::path::Path;

use steadfast_agents::{Learner, StateDict};
use steadfast_envs::{ActMode, EnvSpec, RewardFn, RolloutEngine, RolloutOptions, SeedTree, Space};
use steadfast_reward::dataset::{
    CollectedSegments, PreferenceFile, ReadOptions, ReturnScale, Row, UnlabelledPair, collect_segments, segments, write_jsonl_row,
};
use steadfast_reward::{
    FitReport, LearnedReward, MlpReward, NoiseConfig, RewardConfig, RewardError, RewardModel as _, Segment, SegmentPair, SegmentPreference,
    SegmentSpec, Ties, metrics,
};
use tracing::{info, warn};

use super::build;
use crate::config::ExperimentConfig;
use crate::failure::{Failure, Result};
use crate::run::directory::RunDirectory;
use crate::run::log::LogFile;
use crate::run::reward::{PAIRS, RewardLog, StageRow, TEST_PAIRS};
use crate::terminal::short;

/// The learned reward of a run, and everything that it was learned from.
pub struct RewardLearning<'a> {
    config: &'a ExperimentConfig,
    reward: &'a RewardConfig,
    seeds: SeedTree,
    action_space: Space,
    log: RewardLog,
    pairs: Vec<SegmentPreference>,
    test_pairs: Vec<SegmentPreference>,
    model: MlpReward,
    /// Fits so far.
    stage: usize,
    environment_steps: u64,
    horizon: usize,
    return_scale: Option<ReturnScale>,
}

impl<'a> RewardLearning<'a> {
    /// Before the first fit.
    ///
    /// # Errors
    /// [`Failure::Run`] if the logs cannot be opened.
    pub fn new(run: &Path, config: &'a ExperimentConfig, reward: &'a RewardConfig, spec: &EnvSpec) -> Result<Self> {
        let seeds = SeedTree::new(config.seed).child("reward");
        let segment = SegmentSpec::of(spec).map_err(failed)?;
        let action_space = spec.agents.first().map(|agent| agent.action.clone());
        Ok(Self {
            config,
            reward,
            log: RewardLog::open(run)?,
            pairs: Vec::new(),
            test_pairs: Vec::new(),
            model: MlpReward::new(&reward.model, segment, seeds.child("model")).map_err(failed)?,
            seeds,
            action_space: action_space.ok_or_else(|| Failure::run("a world without agents has no reward to learn"))?,
            stage: 0,
            environment_steps: 0,
            horizon: spec.horizon,
            return_scale: None,
        })
    }

    /// True if another fit is to come before training goes on from `step`.
    pub fn is_due(&self, step: u64) -> bool {
        let begin = self.stage as u128 * u128::from(self.config.total_steps) / self.reward.stages as u128;
        self.stage < self.reward.stages && u128::from(step) >= begin
    }

    /// Collects, labels and fits once. Returns what came of it.
    ///
    /// # Errors
    /// [`Failure::Run`] if any of it fails; what was logged of it is cut off when the run is continued.
    pub fn advance(&mut self, learner: &mut dyn Learner, step: u64) -> Result<StageRow> {
        let message = format!("the fit of reward {} at step {step} failed", self.stage + 1);
        let (row, report) = self.fit_once(learner, step).map_err(|failure| failure.during(&message))?;
        self.log.write(&row, &report.epochs)?;
        self.stage = row.stage;
        Ok(row)
    }

    fn fit_once(&mut self, learner: &mut dyn Learner, step: u64) -> Result<(StageRow, FitReport)> {
        let stage = self.seeds.index(self.stage as u64);
        let first = (self.pairs.len(), self.test_pairs.len());
        match &self.reward.file {
            Some(path) => self.pairs = read_segments(path, &ReadOptions::default())?,
            None => {
                let (pairs, scale) = self.compare(learner, step, self.reward.segments, self.reward.pairs, "", stage.child("pairs"))?;
                let (mut labelled, report) = self.reward.noise.label(pairs, scale.as_ref(), stage.child("noise")).map_err(failed)?;
                info!(
                    stage = self.stage + 1,
                    pairs = report.pairs,
                    wrong = short(report.rate),
                    equal = report.equal,
                    skipped = report.dropped,
                    ties = report.ties_in_truth,
                    "labelled"
                );
                let is_tie = |p: &SegmentPreference| p.truth.gold_chosen == p.truth.gold_rejected;
                match self.reward.ties {
                    Ties::Random => {}
                    Ties::Equal => labelled.iter_mut().for_each(|p| p.equal |= is_tie(p)),
                    Ties::Drop => labelled.retain(|p| !is_tie(p)),
                }
                self.pairs.extend(labelled);
            }
        }
        if self.reward.test_pairs > 0 {
            let n = self.reward.test_pairs;
            let (pairs, _) = self.compare(learner, step, n.max(2), n, "test-", stage.child("test"))?;
            let (labelled, _) = NoiseConfig::default().label(pairs, None, stage.child("test")).map_err(failed)?;
            // What has no true order cannot measure anything.
            self.test_pairs.extend(labelled.into_iter().filter(|p| p.truth.flipped == Some(false)));
        }
        self.log.write_pairs(&lines(&self.pairs[first.0..])?, &lines(&self.test_pairs[first.1..])?)?;

        self.model.reset(stage.child("model").seed());
        let report = steadfast_reward::fit(
            &mut self.model,
            &self.pairs,
            &self.test_pairs,
            &self.reward.loss,
            &self.reward.fit,
            stage.child("fit"),
            &mut |_| (),
        )
        .map_err(failed)?;
        Ok((self.row(&report, step)?, report))
    }

    /// Lets the policy act in worlds of its own and pairs the segments at random. Besides the pairs: what an episode is
    /// worth, if one ended.
    fn compare(
        &mut self,
        learner: &mut dyn Learner,
        step: u64,
        n_segments: usize,
        n_pairs: usize,
        prefix: &str,
        seeds: SeedTree,
    ) -> Result<(Vec<UnlabelledPair<SegmentPair>>, Option<ReturnScale>)> {
        let collection = collect(self.config, learner, n_segments, self.reward.segment_steps, &format!("step {step}"), seeds)?;
        self.environment_steps += collection.env_steps as u64;
        let pairs = pair_up(&collection.segments, n_pairs, self.reward.segment_steps, &format!("{prefix}{}-", self.stage + 1), seeds)?;
        // Where no episode ended this time, the returns of earlier ones are the best guess.
        self.return_scale = return_scale(&collection, self.horizon).or(self.return_scale);
        Ok((pairs, self.return_scale))
    }

    fn row(&mut self, report: &FitReport, step: u64) -> Result<StageRow> {
        let kept = report.epochs.get(report.selected_epoch.wrapping_sub(1));
        let last = report.epochs.last();
        let known: Vec<bool> = self.pairs.iter().filter_map(|p| p.truth.flipped).collect();
        let has_outliers = self.reward.loss.has_outliers();
        let share = |n: usize, of: usize| (of > 0).then(|| n as f64 / of as f64);
        let outliers = report.pairs.iter().filter(|p| p.delta > 0.0).count();
        let delta: f64 = report.pairs.iter().map(|p| f64::from(p.delta)).sum();
        Ok(StageRow {
            stage: self.stage + 1,
            step,
            environment_steps: self.environment_steps,
            pairs: self.pairs.len(),
            equal: self.pairs.iter().filter(|p| p.equal).count(),
            label_rate: share(known.iter().filter(|&&f| f).count(), known.len()),
            selected_epoch: report.selected_epoch,
            loss: last.map_or(f64::NAN, |e| e.loss),
            cross_entropy: last.map_or(f64::NAN, |e| e.cross_entropy),
            train_accuracy: report.train_accuracy,
            validation_accuracy: kept.and_then(|e| e.validation_accuracy),
            validation_cross_entropy: kept.and_then(|e| e.validation_cross_entropy),
            oracle_accuracy: kept.and_then(|e| e.oracle_accuracy),
            test_accuracy: kept.and_then(|e| e.test_accuracy),
            rank_correlation: self.rank_correlation()?,
            auroc: report.detection.map(|d| d.auroc),
            average_precision: report.detection.map(|d| d.average_precision),
            precision: report.detection.filter(|_| has_outliers).and_then(|d| d.precision),
            recall: report.detection.filter(|_| has_outliers).map(|d| d.recall),
            outlier_fraction: share(outliers, report.pairs.len()).filter(|_| has_outliers),
            delta_mean: (has_outliers && !report.pairs.is_empty()).then(|| delta / report.pairs.len() as f64),
        })
    }

    /// Of learned and true returns over the test segments.
    fn rank_correlation(&mut self) -> Result<Option<f64>> {
        let (mut learned, mut truth) = (Vec::new(), Vec::new());
        for segment in self.test_pairs.iter().flat_map(|p| [&p.pair.chosen, &p.pair.rejected]) {
            if let Some(value) = segment.true_return() {
                learned.push(self.model.segment_reward(segment).map_err(failed)?);
                truth.push(value);
            }
        }
        Ok(metrics::spearman(&learned, &truth))
    }

    /// The reward as it is now, for the engine; nothing before the first fit.
    ///
    /// # Errors
    /// [`Failure::Run`] if the pairs do not fit the model.
    pub fn reward_fn(&mut self) -> Result<Option<Box<dyn RewardFn>>> {
        if self.stage == 0 {
            return Ok(None);
        }
        let segments = self.pairs.iter().flat_map(|p| [&p.pair.chosen, &p.pair.rejected]);
        let learned = LearnedReward::new(self.model.clone(), &self.action_space, self.reward.normalization, segments).map_err(failed)?;
        Ok(Some(Box::new(learned)))
    }

    /// Everything needed to go on, besides the logged pairs.
    pub fn state(&self) -> StateDict {
        let mut state = self.model.state();
        state.put_u64("stage", &[self.stage as u64]);
        state.put_u64("environment_steps", &[self.environment_steps]);
        let scale: Vec<f64> = self.return_scale.iter().flat_map(|s| [s.average_return, s.episode_steps]).collect();
        state.put_u64("return_scale", &scale.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        state
    }

    /// Goes back to what [`RewardLearning::state`] saved and to logs of these lengths.
    ///
    /// # Errors
    /// [`Failure::Run`] if a log is shorter, or the state does not fit.
    pub fn restore(&mut self, run: &RunDirectory, state: &StateDict, length: impl Fn(&str) -> Result<u64>) -> Result<()> {
        for (name, file) in self.log.files() {
            file.truncate(length(name)?)?;
        }
        let unfit = |e: steadfast_agents::AgentError| Failure::caused("the saved reward does not fit", e);
        self.stage = state.counter("stage").map_err(unfit)? as usize;
        self.environment_steps = state.counter("environment_steps").map_err(unfit)?;
        self.return_scale = match state.u64("return_scale").map_err(unfit)? {
            [average_return, steps] => {
                Some(ReturnScale { average_return: f64::from_bits(*average_return), episode_steps: f64::from_bits(*steps) })
            }
            _ => None,
        };
        self.model.load_state(state).map_err(failed)?;
        for (name, pairs) in [(PAIRS, &mut self.pairs), (TEST_PAIRS, &mut self.test_pairs)] {
            let path = run.file(name);
            let is_empty = std::fs::metadata(&path).map_err(|e| Failure::file("read", &path, e))?.len() == 0;
            // What this run wrote it also reads, however long a line.
            let options = ReadOptions { max_line_bytes: usize::MAX, ..Default::default() };
            *pairs = if is_empty { Vec::new() } else { read_segments(&path, &options)? };
        }
        Ok(())
    }

    /// The logs by name, for lengths.
    pub fn files(&mut self) -> [(&'static str, &mut LogFile); 4] {
        self.log.files()
    }
}

/// Pairs as lines of a preference file.
fn lines(pairs: &[SegmentPreference]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pairs.iter().try_for_each(|pair| write_jsonl_row(&mut bytes, &Row::Segments(pair.clone()))).map_err(failed)?;
    Ok(bytes)
}

/// Lets a policy act in fresh worlds, as it acts in training, until there are `n` segments.
///
/// # Errors
/// [`Failure::Run`] if the worlds or the policy fail.
pub fn collect(
    config: &ExperimentConfig,
    learner: &mut dyn Learner,
    n: usize,
    steps: usize,
    policy_name: &str,
    seeds: SeedTree,
) -> Result<CollectedSegments> {
    let seeds = seeds.child("collect");
    let cannot = |e| Failure::caused("cannot build the worlds for segments", e);
    let worlds =
        build::worlds(config, &build::Ground::default(), config.slots, 1, &config.perturb, seeds.child("environment")).map_err(cannot)?;
    let mut engine = RolloutEngine::new(worlds, seeds.child("policy"), RolloutOptions::default()).map_err(cannot)?;
    collect_segments(&mut engine, learner.policy(), policy_name, n, steps, ActMode::Sample, seeds.child("phase")).map_err(failed)
}

/// What the shares of B-Pref's annotator refer to, if an episode ended while segments were collected.
pub fn return_scale(collection: &CollectedSegments, horizon: usize) -> Option<ReturnScale> {
    Some(ReturnScale { average_return: collection.return_mean?, episode_steps: horizon as f64 })
}

/// Pairs of different segments, not yet labelled; their names are `prefix` and a number. Segments that happen to be the
/// same step by step, as in small worlds, say nothing about a reward: such pairs are left out and counted.
///
/// # Errors
/// [`Failure::Run`] if there are fewer than two segments or their rewards are not known.
pub fn pair_up(collected: &[Segment], n: usize, steps: usize, prefix: &str, seeds: SeedTree) -> Result<Vec<UnlabelledPair<SegmentPair>>> {
    let indices = segments::pairs(collected, n, seeds.child("pairs")).map_err(failed)?;
    let pair = |(i, (a, b)): (usize, (usize, usize))| {
        let of = |index: usize| collected[index].clone();
        UnlabelledPair::of_segments(format!("{prefix}{}", i + 1), SegmentPair { chosen: of(a), rejected: of(b) }, steps)
    };
    let mut pairs: Vec<_> = indices.into_iter().enumerate().map(pair).collect::<Result<_, _>>().map_err(failed)?;
    pairs.retain(|p| p.pair.chosen.observations != p.pair.rejected.observations || p.pair.chosen.actions != p.pair.rejected.actions);
    if pairs.len() < n {
        info!(pairs = pairs.len(), identical = n - pairs.len(), "left out pairs of identical segments");
    }
    Ok(pairs)
}

/// The segment pairs of a preference file.
///
/// # Errors
/// [`Failure::Run`] naming file and line of what cannot be used.
pub fn read_segments(path: &Path, options: &ReadOptions) -> Result<Vec<SegmentPreference>> {
    let file = PreferenceFile::open(path, options).map_err(failed)?;
    let mut pairs = Vec::new();
    let mut texts = None;
    let report = file.scan(|line, row| {
        match row {
            Row::Segments(preference) => pairs.push(preference),
            Row::Texts(_) | Row::Completion(_) | Row::Prompt(_) => texts = texts.or(Some(line)),
        }
        Ok(())
    });
    let report = report.map_err(failed)?;
    if let Some(line) = texts {
        let message = format!("{}:{line} compares texts, but control tasks need trajectory segments", path.display());
        return Err(Failure::run_with_help(message, "`steadfast preferences RUN -o FILE` writes such pairs"));
    }
    report.warnings().iter().for_each(|warning| warn!("{}: {warning}", path.display()));
    Ok(pairs)
}

fn failed(error: RewardError) -> Failure {
    Failure::caused("the reward cannot be learned", error)
}
