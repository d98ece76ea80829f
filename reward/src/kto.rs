//! Policies that learn from single completions that were found good or bad: KTO.
//!
//! With a the log-ratio of a completion to a reference policy (sum over its tokens) and z₀ ≥ 0 an estimate of the divergence
//! from the reference:
//!
//! ```text
//! good: desirable_weight · (1 − σ(β (a − z₀)))      bad: undesirable_weight · (1 − σ(β (z₀ − a)))
//! z₀ = max(0, mean over the batch of the log-ratio of a completion that belongs to ANOTHER prompt)
//! ```
//!
//! The loss is the mean over the batch, and z₀ is a constant of the step. The other completion is that of the nearest earlier
//! row with another prompt, counted round the end of the data, and shortened where both together exceed the model's positions.
//! TRL shifts completions by one within each batch of an order that never changes; here it is a property of the row, so that
//! batches can be drawn anew in each pass while reference log-probabilities are computed once.
//!
//! Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization" (arXiv 2402.01306), eq. 7.
//!
//! Metrics, as in TRL: `train/loss`, `train/kl` (z₀), `rewards/chosen`, `rewards/rejected` (β a of good and of bad rows),
//! `rewards/margins` (their difference), `logps/chosen`, `logps/rejected`, `train/entropy`, `train/tokens`. On held-out rows,
//! with z₀ of all of them: `eval/loss`, `eval/kl`, `eval/rewards_chosen`, `eval/rewards_rejected`, `eval/rewards_margins`,
//! `eval/logps_chosen`, `eval/logps_rejected`, `eval/entropy`. A mean over no rows is left out.

use serde::{Deserialize, Serialize};
use steadfast_agents::llm::{Decoder, MetricSums, Objective, TokenSequence, TokenStatistics};
use steadfast_agents::{AgentError, Metrics};

use crate::dpo::agent_error;
use crate::encoded::EncodedAnswer;
use crate::error::{Result, RewardError, require};
use crate::margin::{LossValue, sigmoid};
use crate::reference::ReferenceCache;

/// Sequences that are evaluated together.
const EVALUATION_BATCH: usize = 16;

/// Settings of KTO: the `[objective.kto]` table of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KtoConfig {
    /// Strength β of the pull towards the reference policy, above 0.
    pub beta: f64,
    /// Weight of completions found good, at least 0.
    pub desirable_weight: f64,
    /// Weight of completions found bad, at least 0; one of the two must be above 0. The paper wants the products of weight
    /// and number of rows to be within a factor of 1 to 4/3 of each other.
    pub undesirable_weight: f64,
}

impl Default for KtoConfig {
    fn default() -> Self {
        Self { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 }
    }
}

impl KtoConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`RewardError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        require(self.beta > 0.0 && (self.beta as f32).is_finite(), "beta", "a finite number above 0", self.beta)?;
        let is_weight = |w: f64| w >= 0.0 && (w as f32).is_finite();
        require(is_weight(self.desirable_weight), "desirable_weight", "a finite number of at least 0", self.desirable_weight)?;
        require(is_weight(self.undesirable_weight), "undesirable_weight", "a finite number of at least 0", self.undesirable_weight)?;
        let sum = self.desirable_weight + self.undesirable_weight;
        require(sum > 0.0, "desirable_weight", "above 0 where `undesirable_weight` is 0", self.desirable_weight)
    }

    /// Loss of a row and its derivative by the log-probability of the completion, for the log-ratio `log_ratio` and z₀.
    pub fn evaluate(&self, desirable: bool, log_ratio: f64, z0: f64) -> LossValue {
        let (sign, weight) = if desirable { (1.0, self.desirable_weight) } else { (-1.0, self.undesirable_weight) };
        let d = (self.beta * sign * (log_ratio - z0)) as f32;
        // 1 − σ(d) = σ(−d), whose derivative is −σ(d) σ(−d).
        let value = f64::from(sigmoid(-d));
        let slope = -sign * self.beta * f64::from(sigmoid(d)) * value;
        LossValue { value: (weight * value) as f32, slope: (weight * slope) as f32 }
    }
}

/// The estimate of the divergence from log-ratios of mismatched completions.
pub fn divergence(log_ratios: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = log_ratios.into_iter().fold((0.0, 0.0), |(sum, n), x| (sum + x, n + 1.0));
    if n > 0.0 { (sum / n).max(0.0) } else { 0.0 }
}

/// Names of one group of metrics; pairs are of good and bad rows.
struct Names {
    loss: &'static str,
    divergence: &'static str,
    rewards: [&'static str; 2],
    margins: &'static str,
    log_probs: [&'static str; 2],
    entropy: &'static str,
}

const TRAIN: Names = Names {
    loss: "train/loss",
    divergence: "train/kl",
    rewards: ["rewards/chosen", "rewards/rejected"],
    margins: "rewards/margins",
    log_probs: ["logps/chosen", "logps/rejected"],
    entropy: "train/entropy",
};
const EVAL: Names = Names {
    loss: "eval/loss",
    divergence: "eval/kl",
    rewards: ["eval/rewards_chosen", "eval/rewards_rejected"],
    margins: "eval/rewards_margins",
    log_probs: ["eval/logps_chosen", "eval/logps_rejected"],
    entropy: "eval/entropy",
};

/// A policy learns from completions found good or bad.
pub struct KtoObjective {
    config: KtoConfig,
    train: Vec<EncodedAnswer>,
    validation: Vec<EncodedAnswer>,
    cache: ReferenceCache,
    reference_model: Option<Decoder>,
    /// Mismatched sequence of each training row, then of each held-out row.
    mismatched: Vec<TokenSequence>,
    /// Reference log-probabilities: of the rows, and of their mismatched sequences, in the same order.
    reference: Vec<f32>,
    mismatched_reference: Vec<f32>,
    /// z₀ of the present batch.
    z0: f64,
    /// Good and bad rows of the present batch.
    counts: [f64; 2],
    notices: Vec<String>,
}

impl KtoObjective {
    /// Learns from `train`, measures on `validation`, which may be empty.
    ///
    /// # Errors
    /// [`RewardError::Config`] for settings out of their range; [`RewardError::Data`] naming the first row that cannot be used.
    pub fn new(config: &KtoConfig, train: Vec<EncodedAnswer>, validation: Vec<EncodedAnswer>, cache: ReferenceCache) -> Result<Self> {
        config.validate()?;
        for row in train.iter().chain(&validation) {
            row.sequence.check().map_err(|reason| RewardError::Data(format!("row `{}`: {reason}", row.id)))?;
        }
        if let [only] = train.as_slice() {
            let reason = "KTO needs at least two rows, since the divergence is estimated with the completion of another row";
            return Err(RewardError::Data(format!("row `{}` is alone; {reason}", only.id)));
        }
        Ok(Self {
            config: *config,
            train,
            validation,
            cache,
            reference_model: None,
            mismatched: Vec::new(),
            reference: Vec::new(),
            mismatched_reference: Vec::new(),
            z0: 0.0,
            counts: [0.0; 2],
            notices: Vec::new(),
        })
    }

    /// Compares with `reference` instead of with the policy as it is at the start. It is dropped once it has been asked.
    pub fn with_reference(mut self, reference: Decoder) -> Self {
        self.reference_model = Some(reference);
        self
    }

    /// z₀ of the rows `indices`, held-out rows counted on behind the training rows.
    fn divergence(&self, decoder: &Decoder, indices: &[usize]) -> Result<f64, AgentError> {
        let mut ratios = Vec::with_capacity(indices.len());
        for chunk in indices.chunks(EVALUATION_BATCH) {
            let sequences: Vec<&TokenSequence> = chunk.iter().map(|&i| &self.mismatched[i]).collect();
            let statistics = decoder.log_probs(&sequences, 1.0)?;
            ratios.extend(chunk.iter().zip(&statistics).map(|(&i, s)| sum(&s.log_probs) - f64::from(self.mismatched_reference[i])));
        }
        let z0 = divergence(ratios);
        if z0.is_finite() {
            return Ok(z0);
        }
        Err(AgentError::NonFinite { tensor: "estimate of the divergence".into(), value: z0 as f32, update: 0, position: indices[0] })
    }

    /// Adds a row to the metrics; returns its loss.
    fn add(
        &self,
        names: &Names,
        index: usize,
        statistics: &TokenStatistics,
        z0: f64,
        counts: [f64; 2],
        sums: &mut MetricSums,
    ) -> LossValue {
        let row = self.train.get(index).unwrap_or_else(|| &self.validation[index - self.train.len()]);
        let log_prob = sum(&statistics.log_probs);
        let log_ratio = log_prob - f64::from(self.reference[index]);
        let loss = self.config.evaluate(row.desirable, log_ratio, z0);
        let which = usize::from(!row.desirable);
        sums.add(names.loss, f64::from(loss.value), 1.0);
        sums.add_maximum(names.divergence, z0);
        sums.add(names.rewards[which], self.config.beta * log_ratio, 1.0);
        sums.add(names.log_probs[which], log_prob, 1.0);
        if counts.iter().all(|&n| n > 0.0) {
            let sign = if row.desirable { 1.0 } else { -1.0 };
            sums.add_total(names.margins, sign * self.config.beta * log_ratio / counts[which]);
        }
        sums.add(names.entropy, statistics.entropies.iter().map(|&x| f64::from(x)).sum(), statistics.entropies.len() as f64);
        loss
    }
}

fn sum(log_probs: &[f32]) -> f64 {
    log_probs.iter().map(|&x| f64::from(x)).sum()
}

/// Good and bad rows.
fn counts<'a>(rows: impl IntoIterator<Item = &'a EncodedAnswer>) -> [f64; 2] {
    rows.into_iter().fold([0.0; 2], |[good, bad], row| if row.desirable { [good + 1.0, bad] } else { [good, bad + 1.0] })
}

/// Each row's prompt with the completion of the nearest earlier row that has another prompt, counted round the end; where all
/// prompts are the same, of the row before.
fn mismatch(rows: &[EncodedAnswer], max_positions: usize) -> Vec<TokenSequence> {
    let n = rows.len();
    // The last row with another prompt, kept while going on: a search per row would be quadratic in runs of equal prompts.
    let mut other: Option<usize> = (1..n).rev().find(|&j| rows[j].sequence.prompt() != rows[0].sequence.prompt());
    (0..n)
        .map(|i| {
            let prompt = rows[i].sequence.prompt();
            let before = (i + n - 1) % n;
            if rows[before].sequence.prompt() != prompt {
                other = Some(before);
            }
            let completion = rows[other.unwrap_or(before)].sequence.completion();
            let room = max_positions.saturating_sub(prompt.len()).max(1);
            TokenSequence::new(prompt, &completion[..completion.len().min(room)])
        })
        .collect()
}

impl Objective for KtoObjective {
    fn n_examples(&self) -> usize {
        self.train.len()
    }

    fn weight(&self, _example: usize) -> f64 {
        1.0
    }

    fn prepare(&mut self, decoder: &Decoder) -> Result<(), AgentError> {
        let shape = decoder.config();
        for row in self.train.iter().chain(&self.validation) {
            let check = row.sequence.check_fits(shape);
            check.map_err(|reason| AgentError::Model { place: format!("row `{}`", row.id), reason })?;
        }
        self.mismatched = mismatch(&self.train, shape.max_positions);
        self.mismatched.extend(mismatch(&self.validation, shape.max_positions));
        let model = self.reference_model.take();
        let model = model.as_ref().unwrap_or(decoder);
        if model.config().vocab_size != shape.vocab_size {
            let reason = format!("its vocabulary has {} tokens, the policy's {}", model.config().vocab_size, shape.vocab_size);
            return Err(AgentError::Model { place: "reference model".to_string(), reason });
        }
        let columns: Option<Vec<f32>> = self.train.iter().chain(&self.validation).map(|row| row.reference).collect();
        // The divergence needs the reference's opinion of mismatched completions, which no file has.
        let rows = self.train.iter().chain(&self.validation).map(|row| &row.sequence).filter(|_| columns.is_none());
        let sequences: Vec<&TokenSequence> = self.mismatched.iter().chain(rows).collect();
        let mut values = self.cache.log_probs(model, &sequences, &mut self.notices)?;
        let computed = values.split_off(self.mismatched.len());
        self.mismatched_reference = values;
        self.reference = columns.unwrap_or(computed);
        Ok(())
    }

    fn begin_batch(&mut self, decoder: &Decoder, examples: &[usize]) -> Result<(), AgentError> {
        self.z0 = self.divergence(decoder, examples)?;
        self.counts = counts(examples.iter().map(|&i| &self.train[i]));
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
        let groups: Vec<Vec<&TokenSequence>> = examples.iter().map(|&i| vec![&this.train[i].sequence]).collect();
        sums.add_total("train/tokens", groups.iter().map(|g| g[0].tokens.len() as f64).sum());
        decoder.accumulate_log_probs(&groups, 1.0, &mut |group, statistics, slopes| {
            let example = examples[group];
            let loss = this.add(&TRAIN, example, &statistics[0], this.z0, this.counts, sums);
            for (tensor, value) in [("loss", loss.value), ("slope of the loss", loss.slope)] {
                if !value.is_finite() {
                    let pair = this.train[example].id.clone();
                    return Err(agent_error(RewardError::NonFinite { tensor, value, epoch: None, pair }, example));
                }
            }
            slopes[0].fill((f64::from(loss.slope) / batch_weight) as f32);
            Ok(())
        })
    }

    fn evaluate(&mut self, decoder: &Decoder) -> Result<Metrics, AgentError> {
        if self.validation.is_empty() {
            return Ok(Metrics::default());
        }
        let indices: Vec<usize> = (self.train.len()..self.train.len() + self.validation.len()).collect();
        let z0 = self.divergence(decoder, &indices)?;
        let counts = counts(&self.validation);
        let mut sums = MetricSums::default();
        for chunk in indices.chunks(EVALUATION_BATCH) {
            let sequences: Vec<&TokenSequence> = chunk.iter().map(|&i| &self.validation[i - self.train.len()].sequence).collect();
            for (&i, statistics) in chunk.iter().zip(decoder.log_probs(&sequences, 1.0)?) {
                self.add(&EVAL, i, &statistics, z0, counts, &mut sums);
            }
        }
        Ok(sums.means())
    }

    fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: &[u32], completion: &[u32]) -> EncodedAnswer {
        EncodedAnswer { id: "r".into(), sequence: TokenSequence::new(prompt, completion), desirable: true, reference: None }
    }

    #[test]
    fn losses_of_a_worked_example() {
        let config = KtoConfig { beta: 0.5, desirable_weight: 2.0, undesirable_weight: 1.0 };
        // 1 − σ(0.5 · (3 − 1)) = 0.268941..., and its derivative −β σ(1) σ(−1) = −0.098306.
        let good = config.evaluate(true, 3.0, 1.0);
        assert!((good.value - 2.0 * 0.268_941_4).abs() < 1e-6 && (good.slope + 2.0 * 0.098_306).abs() < 1e-6);
        let bad = config.evaluate(false, 3.0, 1.0);
        assert!((bad.value - 0.731_058_6).abs() < 1e-6 && (bad.slope - 0.098_306).abs() < 1e-6);
    }

    #[test]
    fn slopes_are_derivatives_and_extremes_are_finite() {
        let config = KtoConfig { beta: 0.3, desirable_weight: 1.5, undesirable_weight: 0.5 };
        for desirable in [true, false] {
            for x in [-8.0, -1.0, 0.0, 0.7, 5.0] {
                let at = |x| f64::from(config.evaluate(desirable, x, 0.4).value);
                let numeric = (at(x + 1e-2) - at(x - 1e-2)) / 2e-2;
                assert!((numeric - f64::from(config.evaluate(desirable, x, 0.4).slope)).abs() < 2e-5);
            }
            for x in [-1e6, 1e6] {
                let loss = config.evaluate(desirable, x, 0.0);
                assert!(loss.value.is_finite() && loss.slope.is_finite());
            }
        }
    }

    #[test]
    fn the_divergence_is_a_mean_that_is_never_negative() {
        assert_eq!(divergence([1.0, 2.0, 0.0]), 1.0);
        assert_eq!(divergence([-1.0, 0.5]), 0.0);
        assert_eq!(divergence([]), 0.0);
    }

    #[test]
    fn mismatched_completions_belong_to_other_prompts() {
        let rows = [row(&[1], &[10]), row(&[1], &[11]), row(&[2], &[12, 13]), row(&[2], &[14]), row(&[3], &[15])];
        let got: Vec<Vec<u32>> = mismatch(&rows, 100).into_iter().map(|s| s.tokens).collect();
        // Row 0 looks round the end at row 4, row 1 as well; rows 2 and 3 at row 1; row 4 at row 3.
        assert_eq!(got, [vec![1, 15], vec![1, 15], vec![2, 11], vec![2, 11], vec![3, 14]]);
        let cut = mismatch(&[row(&[1], &[10]), row(&[2], &[12, 13])], 2);
        assert_eq!(cut[0].tokens, [1, 12]);
        let same: Vec<Vec<u32>> = mismatch(&[row(&[1], &[10]), row(&[1], &[11])], 9).into_iter().map(|s| s.tokens).collect();
        assert_eq!(same, [[1, 11], [1, 10]]);
        assert!(mismatch(&[], 9).is_empty());
    }
}
