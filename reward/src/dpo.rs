//! Policies that learn from pairs of completions: DPO and its kin, R3M-DPO among them.
//!
//! ```text
//! loss = loss_weight · mean over pairs of loss(margin − own margin of the pair)
//!      + nll_weight · mean over tokens of the chosen answers of −ln p(token)
//! ```
//!
//! The margin is one of [`crate::log_prob_margin`], the loss one of [`crate::margin`]; both are means over the WHOLE batch. The
//! derivative by the log-probability of a token is `slope of the loss · derivative of the margin`, and depends on its pair
//! only, so the model's head works through one pair at a time.
//!
//! | method | margin | loss | weights |
//! |---|---|---|---|
//! | DPO, R3M-DPO, cDPO, rDPO, SLiC | `dpo` | `cross_entropy`, `r3m`, `label_smoothing`, `robust_dpo`, `hinge` | 1, 0 |
//! | IPO (TRL's) | `ipo` (`ipo_normalized`) | `ipo` | 1, 0 |
//! | SimPO | `simpo` | `cross_entropy` | 1, 0 |
//! | ORPO | `orpo` | `cross_entropy` | its λ (0.1), 1 |
//!
//! Where a margin compares with a reference policy, that is the policy that training starts from, unless another one is
//! given or the data has its log-probabilities; see [`crate::reference`].
//!
//! Metrics, means over the batch; definitions are TRL's:
//!
//! | name | meaning |
//! |---|---|
//! | `train/loss` | what is minimised |
//! | `loss/ce` | −ln σ of the margin, comparable across losses |
//! | `loss/nll` | negative log-likelihood per token of chosen answers, where `nll_weight` is above 0 |
//! | `rewards/chosen`, `rewards/rejected` | β times the log-ratio to the reference; without one, β (ORPO: `loss_weight`) times the mean log-probability per token |
//! | `rewards/margins`, `rewards/accuracies` | their difference; share of pairs where it is above 0 (ties are wrong) |
//! | `logps/chosen`, `logps/rejected` | log-probability of the answer; per token where there is no reference |
//! | `logits/chosen`, `logits/rejected` | logits of the whole vocabulary, averaged over the answer's tokens |
//! | `train/token_accuracy` | share of chosen tokens that were the most likely one |
//! | `train/entropy` | of the distributions that tokens are drawn from, in nats, over both answers |
//! | `train/tokens` | all tokens of the batch |
//! | `r3m/delta_mean`, `r3m/delta_max`, `r3m/outlier_fraction` | of R3M's outlier values δ: mean, maximum, share above 0 |
//! | `r3m/clip_saturation` | mean of min(σ(−d), λ) / λ: 1 where every pair is clipped |
//! | `r3m/lambda`, `r3m/threshold` | λ and c = ln(1/λ − 1) |
//!
//! On held-out pairs: `eval/loss`, `eval/ce`, `eval/rewards_chosen`, `eval/rewards_rejected`, `eval/rewards_margins`,
//! `eval/rewards_accuracies` (labels as given), `eval/logps_chosen`, `eval/logps_rejected`, `eval/logits_chosen`,
//! `eval/logits_rejected`, `eval/token_accuracy`, `eval/entropy`; `eval/true_accuracy` where the truth is known. Pairs found equally good count for no accuracy. Where wrong
//! labels are known, how well they are found: `eval/r3m_auroc`, `eval/r3m_ap` (of −margin), `eval/r3m_precision`,
//! `eval/r3m_recall` (of δ > 0); on the training pairs, at the end, the same as `r3m/auroc`, `r3m/ap`, `r3m/precision`,
//! `r3m/recall`, with a table of all pairs: identifier, margin, δ, whether the label is wrong.

use serde::{Deserialize, Serialize};
use steadfast_agents::llm::{Decoder, ExampleTable, MetricSums, Objective, TokenSequence, TokenStatistics};
use steadfast_agents::{AgentError, Metrics};

use crate::encoded::EncodedPreference;
use crate::error::{Result, RewardError, require};
use crate::log_prob_margin::{AnswerLogProb, LogProbMargin, LogProbMarginConfig};
use crate::margin::{LossConfig, LossValue, MarginLoss};
use crate::metrics::detect;
use crate::r3m::RobustLogistic;
use crate::reference::ReferenceCache;

/// Pairs that are evaluated together.
const EVALUATION_BATCH: usize = 8;

/// How a policy learns from pairs: the `[objective.preference]` table of a configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PreferenceConfig {
    /// What is compared, one of `[objective.preference.margin.NAME]`.
    pub margin: LogProbMarginConfig,
    /// The loss of the margin, one of `[objective.preference.loss.NAME]`; left out, it is the one of the margin's paper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossConfig>,
    /// Weight of that loss, at least 0; 0.1 in ORPO.
    pub loss_weight: f64,
    /// Weight of the negative log-likelihood of chosen answers, at least 0; 1 in ORPO. One of the two must be above 0.
    pub nll_weight: f64,
    /// True if that likelihood is of the prompt as well, as in TRL's ORPO.
    pub nll_includes_prompt: bool,
}

impl Default for PreferenceConfig {
    fn default() -> Self {
        Self { margin: LogProbMarginConfig::default(), loss: None, loss_weight: 1.0, nll_weight: 0.0, nll_includes_prompt: false }
    }
}

impl PreferenceConfig {
    /// The loss that is used.
    pub fn loss(&self) -> LossConfig {
        self.loss.unwrap_or_else(|| self.margin.natural_loss())
    }

    /// Checks the ranges given with the fields, and that margin and loss fit together.
    ///
    /// # Errors
    /// [`RewardError::Config`] for the first field that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let within = |table: &str, result: Result<()>| {
            result.map_err(|error| match error {
                RewardError::Config { field, expected, got } => RewardError::Config { field: format!("{table}.{field}"), expected, got },
                other => other,
            })
        };
        let loss = self.loss();
        within(&format!("margin.{}", self.margin.name()), self.margin.validate())?;
        within(&format!("loss.{}", loss.name()), loss.build().map(drop))?;
        let is_weight = |w: f64| w >= 0.0 && (w as f32).is_finite();
        require(is_weight(self.loss_weight), "loss_weight", "a finite number of at least 0", self.loss_weight)?;
        require(is_weight(self.nll_weight), "nll_weight", "a finite number of at least 0", self.nll_weight)?;
        require(self.loss_weight + self.nll_weight > 0.0, "loss_weight", "above 0 where `nll_weight` is 0", self.loss_weight)?;
        let reads_prompt = self.nll_weight > 0.0 || !self.nll_includes_prompt;
        require(reads_prompt, "nll_includes_prompt", "false where `nll_weight` is 0", self.nll_includes_prompt)?;
        let expected = "a loss that is computed pair by pair; data filtering needs two runs: audit the file, drop its lowest pairs, train";
        require(!matches!(loss, LossConfig::Filtered(_)), "loss", expected, loss.name())?;
        if let LogProbMarginConfig::Ipo(c) | LogProbMarginConfig::IpoNormalized(c) = self.margin {
            // Its scale is not that of log-odds, and β enters by the target alone.
            let expected = "`ipo` (or left out) for the margins of IPO; the margins `dpo` and `dpo_normalized` go with every loss";
            let LossConfig::Ipo(ipo) = loss else { return require(false, "loss", expected, loss.name()) };
            let target = 0.5 / c.beta;
            let is_target = (ipo.target - target).abs() <= 1e-6 * target;
            require(is_target, "loss.ipo.target", &format!("1 / (2 beta) = {target}, or `loss` left out"), ipo.target)?;
        }
        Ok(())
    }
}

/// What one pair gives to loss and metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairTerms {
    /// Margin and derivatives, the pair's own margin subtracted.
    pub margin: LogProbMargin,
    /// Loss and slope by the margin.
    pub loss: LossValue,
    /// −ln σ of the margin.
    pub cross_entropy: f32,
    /// Outlier value δ; 0 for losses that have none and for pairs found equally good.
    pub delta: f32,
    /// Implicit rewards of the chosen and the rejected answer.
    pub rewards: [f64; 2],
    /// Log-probabilities of the chosen and the rejected answer as they are reported.
    pub log_probs: [f64; 2],
}

/// Margin and loss, ready to be evaluated.
#[derive(Debug, Clone, PartialEq)]
pub struct PairLoss {
    config: PreferenceConfig,
    loss: MarginLoss,
}

impl PairLoss {
    /// The loss of a configuration.
    ///
    /// # Errors
    /// Those of [`PreferenceConfig::validate`].
    pub fn new(config: &PreferenceConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config: config.clone(), loss: config.loss().build()? })
    }

    /// What a pair gives, from the log-probabilities of its answers. `own_margin` is subtracted from the margin unless both
    /// are `equal`.
    ///
    /// # Errors
    /// Those of [`LogProbMarginConfig::margin`].
    pub fn evaluate(
        &self,
        id: &str,
        chosen: &AnswerLogProb,
        rejected: &AnswerLogProb,
        own_margin: Option<f32>,
        equal: bool,
    ) -> Result<PairTerms> {
        let mut margin = self.config.margin.margin(id, chosen, rejected)?;
        if let Some(own) = own_margin.filter(|_| !equal) {
            margin.margin -= own;
        }
        let d = margin.margin;
        let (mut loss, mut plain) = ([LossValue::default()], [LossValue::default()]);
        // What `trimmed` leaves out is known of a whole batch only; by itself a pair has its full loss.
        let pairwise = if let MarginLoss::Trimmed { .. } = self.loss { MarginLoss::CrossEntropy } else { self.loss };
        pairwise.batch(&[d], &[equal], &mut loss);
        MarginLoss::CrossEntropy.batch(&[d], &[equal], &mut plain);
        for (tensor, value) in [("loss", loss[0].value), ("slope of the loss", loss[0].slope)] {
            if !value.is_finite() {
                return Err(RewardError::NonFinite { tensor, value, epoch: None, pair: id.to_string() });
            }
        }
        let delta = if equal { 0.0 } else { self.loss.outlier(d) };
        let (rewards, log_probs) = self.reported(chosen, rejected);
        Ok(PairTerms { margin, loss: loss[0], cross_entropy: plain[0].value, delta, rewards, log_probs })
    }

    /// Rewards and log-probabilities as TRL reports them.
    fn reported(&self, chosen: &AnswerLogProb, rejected: &AnswerLogProb) -> ([f64; 2], [f64; 2]) {
        let sums = [chosen, rejected].map(|a| f64::from(a.policy));
        let means = [chosen, rejected].map(|a| f64::from(a.policy) / a.n_tokens as f64);
        let ratios = [chosen, rejected].map(|a| f64::from(a.policy) - a.reference.map_or(0.0, f64::from));
        match self.config.margin {
            LogProbMarginConfig::Dpo(c)
            | LogProbMarginConfig::DpoNormalized(c)
            | LogProbMarginConfig::Ipo(c)
            | LogProbMarginConfig::IpoNormalized(c) => (ratios.map(|r| c.beta * r), sums),
            LogProbMarginConfig::Simpo(c) => (means.map(|m| c.beta * m), means),
            LogProbMarginConfig::Orpo(_) => (means.map(|m| self.config.loss_weight * m), means),
        }
    }

    /// λ and the loss, if the loss is R3M with outliers.
    fn r3m(&self) -> Option<(f64, RobustLogistic)> {
        match (self.config.loss(), self.loss) {
            (LossConfig::R3m(config), MarginLoss::R3m(loss)) if config.lambda < 1.0 => Some((config.lambda, loss)),
            _ => None,
        }
    }
}

/// Names of one group of metrics.
struct Names {
    loss: &'static str,
    cross_entropy: &'static str,
    nll: &'static str,
    chosen: &'static str,
    rejected: &'static str,
    accuracies: &'static str,
    margins: &'static str,
    log_prob_chosen: &'static str,
    log_prob_rejected: &'static str,
    logits: [&'static str; 2],
    token_accuracy: &'static str,
    entropy: &'static str,
}

const TRAIN: Names = Names {
    loss: "train/loss",
    cross_entropy: "loss/ce",
    nll: "loss/nll",
    chosen: "rewards/chosen",
    rejected: "rewards/rejected",
    accuracies: "rewards/accuracies",
    margins: "rewards/margins",
    log_prob_chosen: "logps/chosen",
    log_prob_rejected: "logps/rejected",
    logits: ["logits/chosen", "logits/rejected"],
    token_accuracy: "train/token_accuracy",
    entropy: "train/entropy",
};

const EVAL: Names = Names {
    loss: "eval/loss",
    cross_entropy: "eval/ce",
    nll: "eval/nll",
    chosen: "eval/rewards_chosen",
    rejected: "eval/rewards_rejected",
    accuracies: "eval/rewards_accuracies",
    margins: "eval/rewards_margins",
    log_prob_chosen: "eval/logps_chosen",
    log_prob_rejected: "eval/logps_rejected",
    logits: ["eval/logits_chosen", "eval/logits_rejected"],
    token_accuracy: "eval/token_accuracy",
    entropy: "eval/entropy",
};

impl Names {
    /// Adds a pair. `nll` is the sum over the tokens that count and their number.
    fn add(&self, terms: &PairTerms, equal: bool, statistics: [&TokenStatistics; 2], sums: &mut MetricSums) {
        sums.add(self.cross_entropy, f64::from(terms.cross_entropy), 1.0);
        sums.add(self.chosen, terms.rewards[0], 1.0);
        sums.add(self.rejected, terms.rewards[1], 1.0);
        if !equal {
            sums.add(self.accuracies, f64::from(u8::from(terms.rewards[0] > terms.rewards[1])), 1.0);
        }
        sums.add(self.margins, terms.rewards[0] - terms.rewards[1], 1.0);
        sums.add(self.log_prob_chosen, terms.log_probs[0], 1.0);
        sums.add(self.log_prob_rejected, terms.log_probs[1], 1.0);
        let n = statistics[0].is_most_likely.len() as f64;
        sums.add(self.token_accuracy, statistics[0].is_most_likely.iter().filter(|&&is| is).count() as f64, n);
        for (one, name) in statistics.into_iter().zip(self.logits) {
            sums.add(name, one.mean_logits.iter().map(|&x| f64::from(x)).sum(), one.mean_logits.len() as f64);
            sums.add(self.entropy, one.entropies.iter().map(|&x| f64::from(x)).sum(), one.entropies.len() as f64);
        }
    }
}

/// A policy learns from pairs of completions.
pub struct PreferenceObjective {
    loss: PairLoss,
    train: Vec<EncodedPreference>,
    validation: Vec<EncodedPreference>,
    cache: ReferenceCache,
    /// A reference that is not the policy at its start, until it has been asked.
    reference_model: Option<Decoder>,
    /// Reference log-probabilities of the training pairs, then of the held-out ones; empty without a reference.
    reference: Vec<[f32; 2]>,
    /// Tokens of the present batch over which the negative log-likelihood is a mean.
    nll_tokens: f64,
    /// Training pairs that `trimmed` leaves out of the present batch.
    left_out: Vec<usize>,
    notices: Vec<String>,
}

impl PreferenceObjective {
    /// Learns from `train`, measures on `validation`, which may be empty.
    ///
    /// # Errors
    /// [`RewardError::Config`] for settings that cannot be used; [`RewardError::Data`] naming the first pair that cannot be
    /// used, or if the data has reference log-probabilities for some pairs only.
    pub fn new(
        config: &PreferenceConfig,
        mut train: Vec<EncodedPreference>,
        mut validation: Vec<EncodedPreference>,
        cache: ReferenceCache,
    ) -> Result<Self> {
        let loss = PairLoss::new(config)?;
        for preference in train.iter_mut().chain(&mut validation) {
            // Columns of a file that were not carried over when its texts became tokens.
            let columns = preference.reference_log_probs.map(|both| both.map(|x| x as f32));
            preference.pair.reference = preference.pair.reference.or(columns);
        }
        let has_reference = train.first().is_some_and(|p| p.pair.reference.is_some());
        for preference in train.iter().chain(&validation) {
            let refuse = |reason: String| Err(RewardError::Data(format!("pair `{}`: {reason}", preference.id)));
            if let Err(reason) = preference.pair.check() {
                return refuse(reason);
            }
            if let Some(margin) = preference.margin.filter(|m| !m.is_finite()) {
                return refuse(format!("its margin must be finite, found {margin}"));
            }
            if config.margin.needs_reference() && preference.pair.reference.is_some() != has_reference {
                let which = if has_reference { "is without" } else { "has" };
                return refuse(format!(
                    "it {which} `logp_ref_chosen` and `logp_ref_rejected`, unlike the first pair; all pairs need them, or none"
                ));
            }
        }
        Ok(Self {
            loss,
            train,
            validation,
            cache,
            reference_model: None,
            reference: Vec::new(),
            nll_tokens: 0.0,
            left_out: Vec::new(),
            notices: Vec::new(),
        })
    }

    /// Compares with `reference` instead of with the policy as it is at the start. It is dropped once it has been asked.
    pub fn with_reference(mut self, reference: Decoder) -> Self {
        self.reference_model = Some(reference);
        self
    }

    /// The pair of an index that counts held-out pairs on behind the training pairs.
    fn preference(&self, index: usize) -> &EncodedPreference {
        self.train.get(index).unwrap_or_else(|| &self.validation[index - self.train.len()])
    }

    /// The chosen and the rejected sequence as the model reads them.
    fn sequences<'a>(&self, preference: &'a EncodedPreference, whole: &'a [TokenSequence]) -> [&'a TokenSequence; 2] {
        [whole.first().unwrap_or(&preference.pair.chosen), &preference.pair.rejected]
    }

    /// The chosen sequence with its prompt counted as completion, save for the first token; nothing where the likelihood is
    /// of the completion alone.
    fn whole_chosen(&self, preference: &EncodedPreference) -> Vec<TokenSequence> {
        let is_needed = self.loss.config.nll_includes_prompt && self.loss.config.nll_weight > 0.0;
        let chosen = &preference.pair.chosen;
        is_needed.then(|| TokenSequence { tokens: chosen.tokens.clone(), prompt_len: 1 }).into_iter().collect()
    }

    /// Tokens of a pair over which the negative log-likelihood is a mean.
    fn nll_tokens_of(&self, preference: &EncodedPreference) -> usize {
        let chosen = &preference.pair.chosen;
        if self.loss.config.nll_includes_prompt { chosen.tokens.len() - 1 } else { chosen.completion().len() }
    }

    /// What a pair gives, from what the model says of its sequences.
    fn terms(&self, index: usize, statistics: &[TokenStatistics]) -> Result<(PairTerms, f64)> {
        let preference = self.preference(index);
        let reference = self.reference.get(index);
        let chosen_len = preference.pair.chosen.completion().len();
        let chosen = &statistics[0].log_probs;
        let sum = |x: &[f32]| x.iter().map(|&x| f64::from(x)).sum::<f64>();
        let answer = |which: usize, log_probs: &[f32]| AnswerLogProb {
            policy: sum(log_probs) as f32,
            reference: reference.map(|r| r[which]),
            n_tokens: log_probs.len(),
        };
        let terms = self.loss.evaluate(
            &preference.id,
            &answer(0, &chosen[chosen.len() - chosen_len..]),
            &answer(1, &statistics[1].log_probs),
            preference.margin,
            preference.equal,
        )?;
        Ok((terms, -sum(chosen)))
    }

    /// What the model says of pairs, without gradient.
    fn evaluated(&self, decoder: &Decoder, indices: &[usize]) -> Result<Vec<(PairTerms, f64, [TokenStatistics; 2])>, AgentError> {
        let mut out = Vec::with_capacity(indices.len());
        for chunk in indices.chunks(EVALUATION_BATCH) {
            let whole: Vec<Vec<TokenSequence>> = chunk.iter().map(|&i| self.whole_chosen(self.preference(i))).collect();
            let sequences: Vec<&TokenSequence> =
                chunk.iter().zip(&whole).flat_map(|(&i, whole)| self.sequences(self.preference(i), whole)).collect();
            let mut statistics = decoder.log_probs(&sequences, 1.0)?.into_iter();
            for &i in chunk {
                let both: Vec<TokenStatistics> = statistics.by_ref().take(2).collect();
                let (terms, nll) = self.terms(i, &both).map_err(|error| agent_error(error, i))?;
                let both = both.try_into().map_err(|_| AgentError::Tensor("statistics are missing for a pair".to_string()))?;
                out.push((terms, nll, both));
            }
        }
        Ok(out)
    }

    /// Reads or computes the reference log-probabilities of all pairs.
    fn prepare_reference(&mut self, decoder: &Decoder) -> Result<(), AgentError> {
        let model = self.reference_model.take();
        if !self.loss.config.margin.needs_reference() {
            return Ok(());
        }
        let all = || self.train.iter().chain(&self.validation);
        if let Some(columns) = all().map(|p| p.pair.reference).collect::<Option<Vec<_>>>() {
            self.reference = columns;
            return Ok(());
        }
        let model = model.as_ref().unwrap_or(decoder);
        if model.config().vocab_size != decoder.config().vocab_size {
            let reason = format!(
                "its vocabulary has {} tokens, the policy's {}; both need the same tokenizer",
                model.config().vocab_size,
                decoder.config().vocab_size
            );
            return Err(AgentError::Model { place: "reference model".to_string(), reason });
        }
        let sequences: Vec<&TokenSequence> = all().flat_map(|p| [&p.pair.chosen, &p.pair.rejected]).collect();
        let values = self.cache.log_probs(model, &sequences, &mut self.notices)?;
        self.reference = values.as_chunks::<2>().0.to_vec();
        Ok(())
    }
}

/// An error of this crate in the language of objectives; `example` is the position in the data.
pub(crate) fn agent_error(error: RewardError, example: usize) -> AgentError {
    match error {
        RewardError::NonFinite { tensor, value, pair, .. } => {
            AgentError::NonFinite { tensor: format!("{tensor} of pair `{pair}`"), value, update: 0, position: example }
        }
        RewardError::Agent(error) => error,
        RewardError::Env(error) => AgentError::Env(error),
        other => AgentError::Model { place: "preferences".to_string(), reason: other.to_string() },
    }
}

impl Objective for PreferenceObjective {
    fn n_examples(&self) -> usize {
        self.train.len()
    }

    fn weight(&self, _example: usize) -> f64 {
        1.0
    }

    fn prepare(&mut self, decoder: &Decoder) -> Result<(), AgentError> {
        for preference in self.train.iter().chain(&self.validation) {
            let check = preference.pair.check_fits(decoder.config());
            check.map_err(|reason| AgentError::Model { place: format!("pair `{}`", preference.id), reason })?;
        }
        self.prepare_reference(decoder)
    }

    fn begin_batch(&mut self, decoder: &Decoder, examples: &[usize]) -> Result<(), AgentError> {
        self.nll_tokens = examples.iter().map(|&i| self.nll_tokens_of(&self.train[i]) as f64).sum();
        self.left_out.clear();
        if let MarginLoss::Trimmed { .. } = self.loss.loss {
            // A forward pass of its own: which pairs are the worst is known only when all margins are.
            let terms = self.evaluated(decoder, examples)?;
            let margins: Vec<f32> = terms.iter().map(|t| t.0.margin.margin).collect();
            let equal: Vec<bool> = examples.iter().map(|&i| self.train[i].equal).collect();
            let mut losses = vec![LossValue::default(); margins.len()];
            self.loss.loss.batch(&margins, &equal, &mut losses);
            let worst = examples.iter().zip(&losses).filter(|(_, loss)| **loss == LossValue::default()).map(|(&i, _)| i);
            self.left_out = worst.collect();
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
        let config = &this.loss.config;
        let whole: Vec<Vec<TokenSequence>> = examples.iter().map(|&i| this.whole_chosen(&this.train[i])).collect();
        let groups: Vec<Vec<&TokenSequence>> =
            examples.iter().zip(&whole).map(|(&i, whole)| this.sequences(&this.train[i], whole).to_vec()).collect();
        sums.add_total("train/tokens", groups.iter().flatten().map(|s| s.tokens.len() as f64).sum());
        let nll_slope = if config.nll_weight > 0.0 { -config.nll_weight / this.nll_tokens } else { 0.0 };
        let r3m = this.loss.r3m();
        decoder.accumulate_log_probs(&groups, 1.0, &mut |group, statistics, slopes| {
            let example = examples[group];
            let preference = &this.train[example];
            let (mut terms, nll) = this.terms(example, statistics).map_err(|error| agent_error(error, example))?;
            if this.left_out.contains(&example) {
                terms.loss = LossValue::default();
            }
            let by_margin = config.loss_weight * f64::from(terms.loss.slope) / batch_weight;
            // Prompt tokens are there only where the likelihood is of them, too; the margin does not know them.
            let first = slopes[0].len() - preference.pair.chosen.completion().len();
            slopes[0].fill(nll_slope as f32);
            slopes[0][first..].fill((by_margin * f64::from(terms.margin.by_chosen) + nll_slope) as f32);
            slopes[1].fill((by_margin * f64::from(terms.margin.by_rejected)) as f32);

            let loss = config.loss_weight * f64::from(terms.loss.value) - nll_slope * nll * batch_weight;
            if !loss.is_finite() {
                let tensor = format!("loss of pair `{}`", preference.id);
                return Err(AgentError::NonFinite { tensor, value: loss as f32, update: 0, position: example });
            }
            sums.add(TRAIN.loss, loss, 1.0);
            if config.nll_weight > 0.0 {
                sums.add(TRAIN.nll, nll, this.nll_tokens_of(preference) as f64);
            }
            TRAIN.add(&terms, preference.equal, [&statistics[0], &statistics[1]], sums);
            if let Some((lambda, loss)) = r3m {
                add_outlier(&loss, lambda, terms.delta, terms.loss.slope, sums);
            }
            Ok(())
        })
    }

    fn evaluate(&mut self, decoder: &Decoder) -> Result<Metrics, AgentError> {
        let indices: Vec<usize> = (self.train.len()..self.train.len() + self.validation.len()).collect();
        let evaluated = self.evaluated(decoder, &indices)?;
        let config = &self.loss.config;
        let nll_tokens: f64 = self.validation.iter().map(|p| self.nll_tokens_of(p) as f64).sum();
        let mut sums = MetricSums::default();
        for (preference, (terms, nll, statistics)) in self.validation.iter().zip(&evaluated) {
            let mean_nll = config.nll_weight * nll * self.validation.len() as f64 / nll_tokens;
            sums.add(EVAL.loss, config.loss_weight * f64::from(terms.loss.value) + mean_nll, 1.0);
            if config.nll_weight > 0.0 {
                sums.add(EVAL.nll, *nll, self.nll_tokens_of(preference) as f64);
            }
            EVAL.add(terms, preference.equal, [&statistics[0], &statistics[1]], &mut sums);
            if let Some(flipped) = preference.truth.flipped.filter(|_| !preference.equal) {
                let [chosen, rejected] = terms.rewards;
                let is_right = if flipped { rejected > chosen } else { chosen > rejected };
                sums.add("eval/true_accuracy", f64::from(u8::from(is_right)), 1.0);
            }
        }
        let mut metrics = sums.means();
        let judged: Vec<(f32, f32)> = evaluated.iter().map(|e| (e.0.margin.margin, e.0.delta)).collect();
        push_detection(&self.validation, &judged, EVAL_DETECTION, &mut metrics);
        Ok(metrics)
    }

    fn example_table(&mut self, decoder: &Decoder) -> Result<ExampleTable, AgentError> {
        let indices: Vec<usize> = (0..self.train.len()).collect();
        let evaluated = self.evaluated(decoder, &indices)?;
        let judged: Vec<(f32, f32)> = evaluated.iter().map(|e| (e.0.margin.margin, e.0.delta)).collect();
        Ok(table(&self.train, &judged, TRAIN_DETECTION))
    }

    fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }
}

/// What R3M makes of one pair: its outlier value and the slope of its loss.
pub(crate) fn add_outlier(loss: &RobustLogistic, lambda: f64, delta: f32, slope: f32, sums: &mut MetricSums) {
    sums.add("r3m/delta_mean", f64::from(delta), 1.0);
    sums.add_maximum("r3m/delta_max", f64::from(delta));
    sums.add("r3m/outlier_fraction", f64::from(u8::from(delta > 0.0)), 1.0);
    sums.add("r3m/clip_saturation", f64::from(slope.abs()) / lambda, 1.0);
    sums.add_maximum("r3m/lambda", lambda);
    sums.add_maximum("r3m/threshold", f64::from(loss.threshold()));
}

pub(crate) const TRAIN_DETECTION: [&str; 4] = ["r3m/auroc", "r3m/ap", "r3m/precision", "r3m/recall"];
pub(crate) const EVAL_DETECTION: [&str; 4] = ["eval/r3m_auroc", "eval/r3m_ap", "eval/r3m_precision", "eval/r3m_recall"];

/// The pairs with their margins and outlier values, `(margin, δ)`.
pub(crate) fn table(preferences: &[EncodedPreference], judged: &[(f32, f32)], names: [&'static str; 4]) -> ExampleTable {
    let row = |(preference, (margin, delta)): (&EncodedPreference, &(f32, f32))| {
        let flipped = preference.truth.flipped.map_or_else(String::new, |flipped| flipped.to_string());
        vec![preference.id.clone(), margin.to_string(), delta.to_string(), flipped]
    };
    let rows = preferences.iter().zip(judged).map(row).collect();
    let mut metrics = Metrics::default();
    push_detection(preferences, judged, names, &mut metrics);
    ExampleTable { columns: &["id", "margin", "delta", "flipped"], rows, metrics }
}

/// How well low margins point to wrong labels, among the pairs whose truth is known; `judged` are `(margin, δ)`.
pub(crate) fn push_detection(preferences: &[EncodedPreference], judged: &[(f32, f32)], names: [&'static str; 4], metrics: &mut Metrics) {
    let known = preferences.iter().zip(judged).filter(|(p, _)| !p.equal).filter_map(|(p, &(d, delta))| Some((d, delta, p.truth.flipped?)));
    let known: Vec<(f32, f32, bool)> = known.collect();
    let margins: Vec<f32> = known.iter().map(|k| k.0).collect();
    let deltas: Vec<f32> = known.iter().map(|k| k.1).collect();
    let flipped: Vec<bool> = known.iter().map(|k| k.2).collect();
    let Some(detection) = detect(&margins, &deltas, &flipped) else { return };
    let values = [Some(detection.auroc), Some(detection.average_precision), detection.precision, Some(detection.recall)];
    names.iter().zip(values).filter_map(|(name, value)| Some((*name, value?))).for_each(|(name, value)| metrics.push(name, value));
}
