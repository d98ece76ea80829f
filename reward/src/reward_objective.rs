//! A reward model learns from pairs of completions through the trainer of language models.
//!
//! ```text
//! loss = mean over pairs of loss(r(chosen) − r(rejected) − own margin) + center_rewards_coefficient · (r(chosen) + r(rejected))²
//! ```
//!
//! The same as [`crate::fit()`] with a [`crate::model::TransformerReward`], with the trainer's schedule, accumulation and resume.
//! The decoder must have a scalar head ([`Decoder::with_scalar_head`]).
//!
//! Metrics: `train/loss`, `loss/ce` (−ln σ of the margin), `rewards/accuracies` (share of margins above 0, ties are wrong),
//! `rewards/margins`, `rewards/chosen`, `rewards/rejected`, `rewards/min`, `rewards/max`, `train/tokens`, and `r3m/...` as in
//! [`crate::dpo`]; on held-out pairs `eval/loss`, `eval/ce`, `eval/accuracy` (labels as given; a margin of 0 counts half),
//! `eval/true_accuracy`, `eval/rewards_margins`, `eval/rewards_mean`, `eval/rewards_deviation`, and how well wrong labels
//! are found.

use serde::{Deserialize, Serialize};
use steadfast_agents::llm::model::ScorePositions;
use steadfast_agents::llm::{Decoder, ExampleTable, MetricSums, Objective, TokenSequence};
use steadfast_agents::{AgentError, Metrics};

use crate::dpo::{EVAL_DETECTION, TRAIN_DETECTION, agent_error, push_detection};
use crate::encoded::EncodedPreference;
use crate::error::{Result, RewardError, require};
use crate::margin::{LossConfig, LossValue, MarginLoss};
use crate::metrics::accuracy;
use crate::model::transformer::{rewards, slopes_of_pair};

/// Sequences that are evaluated together.
const EVALUATION_BATCH: usize = 32;

/// Settings of a reward model that is trained on pairs: the `[objective.reward_model]` table of a configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardObjectiveConfig {
    /// The loss of a margin, one of `[objective.reward_model.loss.NAME]`.
    pub loss: LossConfig,
    /// Weight of the mean squared sum of both rewards, at least 0; 0.01 is common.
    pub center_rewards_coefficient: f64,
}

impl Default for RewardObjectiveConfig {
    fn default() -> Self {
        Self { loss: LossConfig::default(), center_rewards_coefficient: 0.0 }
    }
}

impl RewardObjectiveConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`RewardError::Config`] for the first field that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let name = self.loss.name();
        self.loss.build().map_err(|error| match error {
            RewardError::Config { field, expected, got } => RewardError::Config { field: format!("loss.{name}.{field}"), expected, got },
            other => other,
        })?;
        let expected = "a loss that is computed pair by pair; to drop pairs, audit the file, drop its lowest pairs, train";
        require(!matches!(self.loss, LossConfig::Filtered(_) | LossConfig::Trimmed(_)), "loss", expected, name)?;
        let center = self.center_rewards_coefficient;
        let is_weight = center >= 0.0 && (center as f32).is_finite();
        require(is_weight, "center_rewards_coefficient", "a finite number of at least 0", center)
    }
}

/// What one pair gives.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Terms {
    /// The learned margin.
    raw: f32,
    /// The same less the pair's own margin.
    margin: f32,
    loss: LossValue,
    cross_entropy: f32,
    delta: f32,
    /// Loss with the centring term.
    total: f64,
}

/// A pair's terms and its rewards.
type Judged = (Terms, [f32; 2]);

/// A scalar head learns from pairs of completions.
pub struct RewardObjective {
    config: RewardObjectiveConfig,
    loss: MarginLoss,
    train: Vec<EncodedPreference>,
    validation: Vec<EncodedPreference>,
}

impl RewardObjective {
    /// Learns from `train`, measures on `validation`, which may be empty.
    ///
    /// # Errors
    /// [`RewardError::Config`] for settings that cannot be used; [`RewardError::Data`] naming the first pair that cannot.
    pub fn new(config: &RewardObjectiveConfig, train: Vec<EncodedPreference>, validation: Vec<EncodedPreference>) -> Result<Self> {
        config.validate()?;
        for preference in train.iter().chain(&validation) {
            let margin = preference.margin.filter(|m| !m.is_finite()).map(|m| format!("its margin must be finite, found {m}"));
            let check = preference.pair.check().and_then(|()| margin.map_or(Ok(()), Err));
            check.map_err(|reason| RewardError::Data(format!("pair `{}`: {reason}", preference.id)))?;
        }
        Ok(Self { config: config.clone(), loss: config.loss.build()?, train, validation })
    }

    fn terms(&self, preference: &EncodedPreference, rewards: [f32; 2]) -> Result<Terms> {
        let raw = rewards[0] - rewards[1];
        let equal = preference.equal;
        let margin = raw - preference.margin.filter(|_| !equal).unwrap_or(0.0);
        let (mut loss, mut plain) = ([LossValue::default()], [LossValue::default()]);
        self.loss.batch(&[margin], &[equal], &mut loss);
        MarginLoss::CrossEntropy.batch(&[margin], &[equal], &mut plain);
        for (tensor, value) in [("margin", margin), ("loss", loss[0].value), ("slope of the loss", loss[0].slope)] {
            if !value.is_finite() {
                return Err(RewardError::NonFinite { tensor, value, epoch: None, pair: preference.id.clone() });
            }
        }
        let delta = if equal { 0.0 } else { self.loss.outlier(margin) };
        let sum = f64::from(rewards[0]) + f64::from(rewards[1]);
        let total = f64::from(loss[0].value) + self.config.center_rewards_coefficient * sum * sum;
        Ok(Terms { raw, margin, loss: loss[0], cross_entropy: plain[0].value, delta, total })
    }

    /// Terms and rewards of pairs, without gradient.
    fn evaluated(&self, decoder: &Decoder, preferences: &[EncodedPreference]) -> Result<Vec<Judged>, AgentError> {
        let sequences: Vec<&TokenSequence> = preferences.iter().flat_map(|p| [&p.pair.chosen, &p.pair.rejected]).collect();
        let rewards = rewards(decoder, &sequences, EVALUATION_BATCH)?;
        let both = preferences.iter().zip(rewards.as_chunks::<2>().0).enumerate();
        both.map(|(i, (p, &both))| Ok((self.terms(p, both).map_err(|error| agent_error(error, i))?, both))).collect()
    }
}

impl Objective for RewardObjective {
    fn n_examples(&self) -> usize {
        self.train.len()
    }

    fn weight(&self, _example: usize) -> f64 {
        1.0
    }

    fn prepare(&mut self, decoder: &Decoder) -> Result<(), AgentError> {
        if !decoder.has_scalar_head() {
            let reason = "a reward model needs a scalar head in place of the language-model head".to_string();
            return Err(AgentError::Model { place: "reward model".to_string(), reason });
        }
        for preference in self.train.iter().chain(&self.validation) {
            let check = preference.pair.check_fits(decoder.config());
            check.map_err(|reason| AgentError::Model { place: format!("pair `{}`", preference.id), reason })?;
        }
        Ok(())
    }

    fn accumulate(
        &mut self,
        decoder: &mut Decoder,
        examples: &[usize],
        batch_weight: f64,
        sums: &mut MetricSums,
    ) -> Result<(), AgentError> {
        let this = &*self;
        let groups: Vec<Vec<&TokenSequence>> =
            examples.iter().map(|&i| vec![&this.train[i].pair.chosen, &this.train[i].pair.rejected]).collect();
        sums.add_total("train/tokens", groups.iter().flatten().map(|s| s.tokens.len() as f64).sum());
        let lambda = if let LossConfig::R3m(r3m) = this.config.loss { Some(r3m.lambda).filter(|&l| l < 1.0) } else { None };
        decoder.accumulate_scores(&groups, ScorePositions::Last, &mut |group, scores, slopes| {
            let example = examples[group];
            let preference = &this.train[example];
            let both = [scores[0][0], scores[1][0]];
            let terms = this.terms(preference, both).map_err(|error| agent_error(error, example))?;
            let by_reward = slopes_of_pair(both, terms.loss.slope, this.config.center_rewards_coefficient, batch_weight);
            (slopes[0][0], slopes[1][0]) = (by_reward[0], by_reward[1]);

            sums.add("train/loss", terms.total, 1.0);
            sums.add("loss/ce", f64::from(terms.cross_entropy), 1.0);
            if !preference.equal {
                sums.add("rewards/accuracies", f64::from(u8::from(terms.raw > 0.0)), 1.0);
            }
            sums.add("rewards/margins", f64::from(terms.raw), 1.0);
            sums.add("rewards/chosen", f64::from(both[0]), 1.0);
            sums.add("rewards/rejected", f64::from(both[1]), 1.0);
            sums.add_minimum("rewards/min", f64::from(both[0].min(both[1])));
            sums.add_maximum("rewards/max", f64::from(both[0].max(both[1])));
            if let (Some(lambda), MarginLoss::R3m(loss)) = (lambda, this.loss) {
                crate::dpo::add_outlier(&loss, lambda, terms.delta, terms.loss.slope, sums);
            }
            Ok(())
        })
    }

    fn evaluate(&mut self, decoder: &Decoder) -> Result<Metrics, AgentError> {
        let evaluated = self.evaluated(decoder, &self.validation)?;
        let mut metrics = Metrics::default();
        let n = evaluated.len() as f64;
        if evaluated.is_empty() {
            return Ok(metrics);
        }
        let mean = |f: &dyn Fn(&Judged) -> f64| evaluated.iter().map(f).sum::<f64>() / n;
        metrics.push("eval/loss", mean(&|e| e.0.total));
        metrics.push("eval/ce", mean(&|e| f64::from(e.0.cross_entropy)));
        let signed = |is_right: &dyn Fn(&EncodedPreference) -> Option<bool>| {
            let both = self.validation.iter().zip(&evaluated).filter(|(p, _)| !p.equal);
            both.filter_map(|(p, e)| Some(if is_right(p)? { e.0.raw } else { -e.0.raw })).collect::<Vec<f32>>()
        };
        if let Some(value) = accuracy(&signed(&|_| Some(true))) {
            metrics.push("eval/accuracy", value);
        }
        if let Some(value) = accuracy(&signed(&|p| p.truth.flipped.map(|flipped| !flipped))) {
            metrics.push("eval/true_accuracy", value);
        }
        metrics.push("eval/rewards_margins", mean(&|e| f64::from(e.0.raw)));
        let center = mean(&|e| (f64::from(e.1[0]) + f64::from(e.1[1])) / 2.0);
        let square = |x: f32| (f64::from(x) - center) * (f64::from(x) - center);
        metrics.push("eval/rewards_mean", center);
        metrics.push("eval/rewards_deviation", mean(&|e| (square(e.1[0]) + square(e.1[1])) / 2.0).sqrt());
        let judged = evaluated.iter().map(|e| (e.0.margin, e.0.delta)).collect::<Vec<_>>();
        push_detection(&self.validation, &judged, EVAL_DETECTION, &mut metrics);
        Ok(metrics)
    }

    fn example_table(&mut self, decoder: &Decoder) -> Result<ExampleTable, AgentError> {
        let judged: Vec<(f32, f32)> = self.evaluated(decoder, &self.train)?.iter().map(|e| (e.0.margin, e.0.delta)).collect();
        Ok(crate::dpo::table(&self.train, &judged, TRAIN_DETECTION))
    }
}
