//! Margins of language-model policies: how much more a policy favours the chosen answer, from log-probabilities of whole
//! answers, with the derivatives that a back end needs.
//!
//! With `lw`, `ll` the policy's log-probabilities of the chosen and the rejected answer (sums over the tokens of the
//! completion, its end included), `a`, `b` the same less those of a reference policy, and `nw`, `nl` the numbers of tokens:
//!
//! | name | margin | source |
//! |---|---|---|
//! | `dpo` | β (a − b) | Rafailov et al. 2023 (arXiv 2305.18290) |
//! | `dpo_normalized` | β (a / nw − b / nl) | length-normalised DPO; TRL's `sigmoid_norm` |
//! | `ipo` | a − b | Azar et al. 2023 (arXiv 2310.12036) |
//! | `ipo_normalized` | a / nw − b / nl | IPO as in TRL |
//! | `simpo` | β (lw / nw − ll / nl) − γ | Meng et al. 2024 (arXiv 2405.14734) |
//! | `orpo` | logit(e^(lw / nw)) − logit(e^(ll / nl)) | Hong et al. 2024 (arXiv 2403.07691) |
//!
//! A method is a margin with a loss of [`crate::margin`]:
//!
//! | method | margin | loss |
//! |---|---|---|
//! | DPO | `dpo` | `cross_entropy` |
//! | R3M-DPO | `dpo` | `r3m` |
//! | conservative DPO | `dpo` | `label_smoothing` |
//! | robust DPO | `dpo` | `robust_dpo` |
//! | SLiC with a reference | `dpo` | `hinge` |
//! | IPO; IPO as in TRL | `ipo`; `ipo_normalized` | `ipo` with `target` = 1 / (2β): [`LogProbMarginConfig::natural_loss`] |
//! | SimPO, and its robust form | `simpo` | `cross_entropy`, `r3m` |
//! | ORPO | `orpo` | `cross_entropy`, weighted and added to the negative log-likelihood of the chosen answer by the caller |
//!
//! R3M needs a margin on the scale of log-odds: every margin here but those of IPO.

use serde::{Deserialize, Serialize};

use crate::error::{Result, RewardError, require};
use crate::margin::{CrossEntropyConfig, IpoConfig, LossConfig};

/// Settings of the margins against a reference policy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReferenceMarginConfig {
    /// Strength β of the pull towards the reference policy, above 0. For IPO it sets the target 1 / (2β) instead.
    pub beta: f64,
}

impl Default for ReferenceMarginConfig {
    fn default() -> Self {
        Self { beta: 0.1 }
    }
}

/// Settings of SimPO's margin.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimpoConfig {
    /// Scale β of the mean log-probability per token, above 0.
    pub beta: f64,
    /// Margin γ by which the chosen answer should win, at least 0.
    pub gamma: f64,
}

impl Default for SimpoConfig {
    fn default() -> Self {
        Self { beta: 2.0, gamma: 1.0 }
    }
}

/// ORPO's margin has no settings; the weight of its loss belongs to the caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OrpoConfig {}

/// Which margin a policy is trained by. Written in a configuration as `[... .margin.NAME]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogProbMarginConfig {
    /// Difference of log-ratios, times β.
    Dpo(ReferenceMarginConfig),
    /// Difference of log-ratios per token, times β.
    DpoNormalized(ReferenceMarginConfig),
    /// Difference of log-ratios.
    Ipo(ReferenceMarginConfig),
    /// Difference of log-ratios per token.
    IpoNormalized(ReferenceMarginConfig),
    /// Difference of log-probabilities per token, without a reference.
    Simpo(SimpoConfig),
    /// Difference of log-odds per token, without a reference.
    Orpo(OrpoConfig),
}

impl Default for LogProbMarginConfig {
    fn default() -> Self {
        Self::Dpo(ReferenceMarginConfig::default())
    }
}

/// One answer under the policy, and under the reference where there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AnswerLogProb {
    /// Sum of the policy's log-probabilities over the tokens of the completion.
    pub policy: f32,
    /// The same of the reference policy.
    pub reference: Option<f32>,
    /// Tokens of the completion, its end included.
    pub n_tokens: usize,
}

/// A margin and its derivatives.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LogProbMargin {
    /// The margin.
    pub margin: f32,
    /// Derivative by the policy's log-probability of the chosen answer.
    pub by_chosen: f32,
    /// Derivative by that of the rejected one.
    pub by_rejected: f32,
}

impl LogProbMarginConfig {
    /// Names and one-line descriptions of all margins.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("dpo", "log-ratio to a reference policy, whole answers"),
        ("dpo_normalized", "log-ratio to a reference policy, per token"),
        ("ipo", "log-ratio for the quadratic loss, whole answers"),
        ("ipo_normalized", "log-ratio for the quadratic loss, per token"),
        ("simpo", "log-probability per token, without a reference policy"),
        ("orpo", "log-odds per token, without a reference policy"),
    ];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dpo(_) => "dpo",
            Self::DpoNormalized(_) => "dpo_normalized",
            Self::Ipo(_) => "ipo",
            Self::IpoNormalized(_) => "ipo_normalized",
            Self::Simpo(_) => "simpo",
            Self::Orpo(_) => "orpo",
        }
    }

    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`RewardError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        let beta = |beta: f64| require(beta > 0.0 && beta.is_finite(), "beta", "a finite number above 0", beta);
        match self {
            Self::Dpo(c) | Self::DpoNormalized(c) | Self::Ipo(c) | Self::IpoNormalized(c) => beta(c.beta),
            Self::Simpo(c) => {
                beta(c.beta)?;
                require(c.gamma >= 0.0 && c.gamma.is_finite(), "gamma", "a finite number of at least 0", c.gamma)
            }
            Self::Orpo(_) => Ok(()),
        }
    }

    /// True if the margin compares with a reference policy.
    pub fn needs_reference(&self) -> bool {
        !matches!(self, Self::Simpo(_) | Self::Orpo(_))
    }

    /// The loss that the margin's paper uses.
    pub fn natural_loss(&self) -> LossConfig {
        match self {
            Self::Ipo(c) | Self::IpoNormalized(c) => LossConfig::Ipo(IpoConfig { target: 0.5 / c.beta }),
            _ => LossConfig::CrossEntropy(CrossEntropyConfig::default()),
        }
    }

    /// The margin of a pair. `id` names the pair in errors. The settings must be valid.
    ///
    /// # Errors
    /// [`RewardError::Data`] for an answer without tokens, a missing reference, or a log-probability above 0 by more than
    /// rounding explains; [`RewardError::NonFinite`] for one that is NaN or infinite, or for such a margin.
    pub fn margin(&self, id: &str, chosen: &AnswerLogProb, rejected: &AnswerLogProb) -> Result<LogProbMargin> {
        let chosen = Checked::new(id, &CHOSEN, chosen, self.needs_reference())?;
        let rejected = Checked::new(id, &REJECTED, rejected, self.needs_reference())?;
        // In double precision: log-probabilities of long answers are large and close to those of the reference.
        let (margin, by_chosen, by_rejected) = match self {
            Self::Dpo(c) => (c.beta * (chosen.log_ratio() - rejected.log_ratio()), c.beta, -c.beta),
            Self::Ipo(_) => (chosen.log_ratio() - rejected.log_ratio(), 1.0, -1.0),
            Self::DpoNormalized(c) => {
                let margin = chosen.log_ratio() / chosen.n_tokens - rejected.log_ratio() / rejected.n_tokens;
                (c.beta * margin, c.beta / chosen.n_tokens, -c.beta / rejected.n_tokens)
            }
            Self::IpoNormalized(_) => {
                let margin = chosen.log_ratio() / chosen.n_tokens - rejected.log_ratio() / rejected.n_tokens;
                (margin, 1.0 / chosen.n_tokens, -1.0 / rejected.n_tokens)
            }
            Self::Simpo(c) => {
                let margin = c.beta * (chosen.policy / chosen.n_tokens - rejected.policy / rejected.n_tokens) - c.gamma;
                (margin, c.beta / chosen.n_tokens, -c.beta / rejected.n_tokens)
            }
            Self::Orpo(_) => {
                let (chosen_odds, by_chosen) = log_odds(chosen.policy / chosen.n_tokens);
                let (rejected_odds, by_rejected) = log_odds(rejected.policy / rejected.n_tokens);
                (chosen_odds - rejected_odds, by_chosen / chosen.n_tokens, -by_rejected / rejected.n_tokens)
            }
        };
        let margin = margin as f32;
        if !margin.is_finite() {
            return Err(RewardError::NonFinite { tensor: "margin", value: margin, epoch: None, pair: id.to_string() });
        }
        Ok(LogProbMargin { margin, by_chosen: by_chosen as f32, by_rejected: by_rejected as f32 })
    }
}

/// What the numbers of an answer are called in errors.
struct Names {
    answer: &'static str,
    policy: &'static str,
    reference: &'static str,
}

const CHOSEN: Names =
    Names { answer: "chosen", policy: "log-probability of the chosen answer", reference: "reference log-probability of the chosen answer" };
const REJECTED: Names = Names {
    answer: "rejected",
    policy: "log-probability of the rejected answer",
    reference: "reference log-probability of the rejected answer",
};

/// An answer whose numbers can be used.
struct Checked {
    policy: f64,
    reference: f64,
    n_tokens: f64,
}

impl Checked {
    fn new(id: &str, names: &Names, answer: &AnswerLogProb, needs_reference: bool) -> Result<Self> {
        let which = names.answer;
        if answer.n_tokens == 0 {
            return Err(RewardError::Data(format!("pair `{id}`: the {which} answer has no tokens")));
        }
        let reference = match (needs_reference, answer.reference) {
            (true, None) => {
                let reason = format!("the {which} answer has no log-probability under the reference policy");
                return Err(RewardError::Data(format!("pair `{id}`: {reason}")));
            }
            (true, Some(reference)) => reference,
            (false, _) => 0.0,
        };
        // A softmax in single precision may give a certain token a log-probability just above 0.
        let rounding = 1e-5 * answer.n_tokens as f32;
        for (tensor, value) in [(names.policy, answer.policy), (names.reference, reference)] {
            if !value.is_finite() {
                return Err(RewardError::NonFinite { tensor, value, epoch: None, pair: id.to_string() });
            }
            if value > rounding {
                return Err(RewardError::Data(format!("pair `{id}`: the {tensor} is {value}, above 0")));
            }
        }
        Ok(Self { policy: f64::from(answer.policy), reference: f64::from(reference), n_tokens: answer.n_tokens as f64 })
    }

    fn log_ratio(&self) -> f64 {
        self.policy - self.reference
    }
}

/// `ln(p / (1 − p))` for `p = e^log_prob`, and its derivative by `log_prob`, which is `1 / (1 − p)`.
fn log_odds(log_prob: f64) -> (f64, f64) {
    // An answer that is certain to single precision has infinite odds; it is held at the largest p below 1.
    let log_prob = log_prob.min(-f64::from(f32::EPSILON));
    // ln(1 − e^x), by the form that keeps its digits on either side of p = 1/2.
    let log_rest = if log_prob > -std::f64::consts::LN_2 { (-log_prob.exp_m1()).ln() } else { (-log_prob.exp()).ln_1p() };
    (log_prob - log_rest, -1.0 / log_prob.exp_m1())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(policy: f32, reference: f32, n_tokens: usize) -> AnswerLogProb {
        AnswerLogProb { policy, reference: Some(reference), n_tokens }
    }

    fn all() -> Vec<LogProbMarginConfig> {
        LogProbMarginConfig::LIST.iter().map(|(name, _)| serde_json::from_str(&format!("{{\"{name}\": {{}}}}")).unwrap()).collect()
    }

    #[test]
    fn policy_at_its_reference_has_margin_zero() {
        for config in all().iter().filter(|c| c.needs_reference()) {
            let margin = config.margin("p", &answer(-31.5, -31.5, 12), &answer(-7.25, -7.25, 3)).unwrap();
            assert_eq!(margin.margin, 0.0, "{}", config.name());
        }
    }

    #[test]
    fn names_are_those_of_configurations() {
        for (config, (name, _)) in all().iter().zip(LogProbMarginConfig::LIST) {
            assert_eq!(config.name(), *name);
            assert!(config.validate().is_ok() && config.natural_loss().build().is_ok());
        }
        assert_eq!(all()[2].natural_loss(), LossConfig::Ipo(IpoConfig { target: 5.0 }));
    }

    #[test]
    fn bad_numbers_are_refused_by_name() {
        let good = answer(-3.0, -2.0, 4);
        for config in all() {
            let message = |bad: AnswerLogProb| config.margin("p3", &good, &bad).unwrap_err().to_string();
            assert_eq!(message(answer(-3.0, -2.0, 0)), "pair `p3`: the rejected answer has no tokens");
            assert_eq!(message(answer(0.5, -2.0, 4)), "pair `p3`: the log-probability of the rejected answer is 0.5, above 0");
            assert_eq!(message(answer(f32::NAN, -2.0, 4)), "non-finite log-probability of the rejected answer (NaN), pair `p3`");
            assert!(message(answer(f32::NEG_INFINITY, -2.0, 4)).contains("non-finite"));
            let no_reference = config.margin("p3", &AnswerLogProb { reference: None, ..good }, &good);
            assert_eq!(no_reference.is_err(), config.needs_reference(), "{}", config.name());
            let bad_reference = config.margin("p3", &answer(-3.0, f32::NAN, 4), &good);
            assert_eq!(bad_reference.is_err(), config.needs_reference(), "{}", config.name());
            if let Err(error) = bad_reference {
                assert_eq!(error.to_string(), "non-finite reference log-probability of the chosen answer (NaN), pair `p3`");
            }
        }
    }

    #[test]
    fn certain_answers_keep_finite_odds() {
        let orpo = LogProbMarginConfig::Orpo(OrpoConfig {});
        let margin = orpo.margin("p", &answer(0.0, 0.0, 3), &answer(1e-6, 0.0, 3)).unwrap();
        assert_eq!(margin.margin, 0.0);
        let margin = orpo.margin("p", &answer(0.0, 0.0, 3), &answer(-1e4, 0.0, 3)).unwrap();
        assert!(margin.margin.is_finite() && margin.by_chosen.is_finite() && margin.by_rejected.is_finite());
        // p = 1/2 has odds 1 and 1 / (1 − p) = 2.
        let (odds, slope) = log_odds(-std::f64::consts::LN_2);
        assert!(odds.abs() < 1e-15 && (slope - 2.0).abs() < 1e-15);
    }

    #[test]
    fn ranges_are_checked() {
        for beta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(LogProbMarginConfig::Dpo(ReferenceMarginConfig { beta }).validate().is_err());
            assert!(LogProbMarginConfig::Simpo(SimpoConfig { beta, gamma: 1.0 }).validate().is_err());
        }
        for gamma in [-0.1, f64::NAN] {
            assert!(LogProbMarginConfig::Simpo(SimpoConfig { beta: 2.0, gamma }).validate().is_err());
        }
    }
}
