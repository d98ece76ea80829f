//! Losses of a margin `d`, once, in plain `f32`: value and derivative, for reward models and for the DPO family alike.
//!
//! The margin is how much better the chosen one is held to be: a difference of rewards, or one of log-probabilities
//! ([`crate::log_prob_margin`]). A back end differentiates `Σ slopeᵢ · dᵢ` with constant slopes.
//!
//! | name | loss of a pair | source |
//! |---|---|---|
//! | `cross_entropy` | −ln σ(d) | Bradley and Terry 1952 |
//! | `r3m` | −ln σ(d + δ) + λδ, δ = max(ln(1/λ − 1) − d, 0) | Bukharin et al. 2024 (arXiv 2406.15568) |
//! | `label_smoothing` | −(1 − ε) ln σ(d) − ε ln σ(−d) = −ln σ(d) + εd | as conservative DPO |
//! | `robust_dpo` | (−(1 − ε) ln σ(d) + ε ln σ(−d)) / (1 − 2ε) = −ln σ(d) − d · ε / (1 − 2ε) | Chowdhury et al. 2024 (arXiv 2403.00409) |
//! | `hinge` | max(1 − d, 0) | Zhao et al. 2023, SLiC-HF (arXiv 2305.10425) |
//! | `ipo` | (d − target)² | Azar et al. 2023 (arXiv 2310.12036); for d a difference of log-ratios, target = 1/(2β) |
//! | `bounded` | a · (−ln σ(d)) + b · σ(−d) | σ(−d) is the redescending loss; with a > 0 a mixture in the style of ROPO |
//! | `trimmed` | −ln σ(d) of the pairs of a batch that remain when the largest losses are left out | trimmed likelihood |
//! | `filtered` | cross-entropy, then again without the pairs of the lowest margins | data filtering, the paper's baseline |
//!
//! Both identities follow from ln σ(d) − ln σ(−d) = d. Only `robust_dpo` is computed by its own, which leaves no difference
//! of large logarithms and divides by 1 − 2ε once, in double precision; `label_smoothing` is computed as the sum in the
//! middle, whose terms have one sign. Where a value or slope is a sum of terms of either sign (the value of `robust_dpo`, the
//! slope of `label_smoothing`) its error is relative to the terms, elsewhere to itself. NaN goes in and NaN comes out; [`fit`](mod@crate::fit) refuses such margins by the name of their pair.

use serde::{Deserialize, Serialize};

use crate::error::{Result, require};
use crate::r3m::{R3mConfig, RobustLogistic};

/// Value and derivative of a loss at one margin.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossValue {
    /// The loss.
    pub value: f32,
    /// Its derivative by the margin.
    pub slope: f32,
}

/// `w · x`, and 0 for a part that is switched off, even where x is infinite.
fn weighted(w: f32, x: f32) -> f32 {
    if w == 0.0 { 0.0 } else { w * x }
}

/// `1 / (1 + e^(−x))`, without overflow.
pub fn sigmoid(x: f32) -> f32 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// `ln(1 + e^x)`, without overflow; `log_one_plus_exp(-x)` is `−ln σ(x)`.
pub fn log_one_plus_exp(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Cross-entropy has no settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrossEntropyConfig {}

/// The hinge has no settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HingeConfig {}

/// Settings of losses that assume a rate of random flips.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlipRateConfig {
    /// Assumed share of flipped labels, at least 0 and below 0.5.
    pub epsilon: f64,
}

impl Default for FlipRateConfig {
    fn default() -> Self {
        Self { epsilon: 0.1 }
    }
}

/// Settings of the quadratic loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IpoConfig {
    /// The margin that every pair should have, above 0.
    pub target: f64,
}

impl Default for IpoConfig {
    fn default() -> Self {
        Self { target: 1.0 }
    }
}

/// Settings of the bounded loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoundedConfig {
    /// Weight of the logistic part −ln σ(d), at least 0.
    pub logistic: f64,
    /// Weight of the bounded part σ(−d), at least 0; one of the two must be above 0.
    pub bounded: f64,
}

impl Default for BoundedConfig {
    fn default() -> Self {
        Self { logistic: 0.0, bounded: 1.0 }
    }
}

/// Settings of losses that leave pairs out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DropConfig {
    /// Share of the pairs that is left out, at least 0 and below 1.
    pub fraction: f64,
}

impl Default for DropConfig {
    fn default() -> Self {
        Self { fraction: 0.1 }
    }
}

/// Which loss a reward is fitted with. Written in a configuration as `[reward.loss.NAME]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossConfig {
    /// Logistic loss: maximum likelihood of Bradley and Terry's model.
    CrossEntropy(CrossEntropyConfig),
    /// R3M: logistic loss whose gradient per pair is clipped at lambda.
    R3m(R3mConfig),
    /// Label smoothing (conservative DPO).
    LabelSmoothing(FlipRateConfig),
    /// Unbiased under flips of a known rate (robust DPO).
    RobustDpo(FlipRateConfig),
    /// Hinge loss (SLiC).
    Hinge(HingeConfig),
    /// Squared distance of the margin from a target (IPO).
    Ipo(IpoConfig),
    /// Bounded loss, alone or mixed with the logistic one (in the style of ROPO).
    Bounded(BoundedConfig),
    /// Logistic loss without the worst pairs of each batch.
    Trimmed(DropConfig),
    /// Logistic loss twice: the second time without the pairs that the first fit believes least (data filtering).
    Filtered(DropConfig),
}

impl Default for LossConfig {
    fn default() -> Self {
        Self::R3m(R3mConfig::default())
    }
}

impl LossConfig {
    /// Names and one-line descriptions of all losses.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("cross_entropy", "logistic loss: maximum likelihood of Bradley and Terry's model"),
        ("r3m", "R3M: logistic loss whose gradient per pair is clipped at lambda; against few but large errors"),
        ("label_smoothing", "label smoothing (conservative DPO)"),
        ("robust_dpo", "unbiased under uniform flips of a known rate"),
        ("hinge", "hinge loss (SLiC)"),
        ("ipo", "squared distance of the margin from a target"),
        ("bounded", "bounded, redescending loss, alone or mixed with the logistic one; against many flips"),
        ("trimmed", "logistic loss without the worst pairs of each batch"),
        ("filtered", "logistic loss twice, the second time without the pairs that the first fit believes least"),
    ];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CrossEntropy(_) => "cross_entropy",
            Self::R3m(_) => "r3m",
            Self::LabelSmoothing(_) => "label_smoothing",
            Self::RobustDpo(_) => "robust_dpo",
            Self::Hinge(_) => "hinge",
            Self::Ipo(_) => "ipo",
            Self::Bounded(_) => "bounded",
            Self::Trimmed(_) => "trimmed",
            Self::Filtered(_) => "filtered",
        }
    }

    /// True if the loss has an outlier value δ per pair: R3M, unless its λ makes it cross-entropy.
    pub fn has_outliers(&self) -> bool {
        matches!(self, Self::R3m(config) if config.lambda < 1.0)
    }

    /// The loss of a margin. That of `trimmed` and `filtered` is cross-entropy; what they leave out is decided by
    /// [`MarginLoss::batch`] and by [`fit`](mod@crate::fit).
    ///
    /// # Errors
    /// [`crate::RewardError::Config`] for the first setting out of its range.
    pub fn build(&self) -> Result<MarginLoss> {
        let rate = |c: &FlipRateConfig| require((0.0..0.5).contains(&c.epsilon), "epsilon", "at least 0 and below 0.5", c.epsilon);
        let drop = |c: &DropConfig| require((0.0..1.0).contains(&c.fraction), "fraction", "at least 0 and below 1", c.fraction);
        Ok(match self {
            Self::CrossEntropy(_) => MarginLoss::CrossEntropy,
            Self::R3m(config) => MarginLoss::R3m(RobustLogistic::new(config)?),
            Self::LabelSmoothing(config) => {
                rate(config)?;
                MarginLoss::LabelSmoothing { epsilon: config.epsilon as f32 }
            }
            Self::RobustDpo(config) => {
                rate(config)?;
                MarginLoss::RobustDpo { tilt: (config.epsilon / (1.0 - 2.0 * config.epsilon)) as f32 }
            }
            Self::Hinge(_) => MarginLoss::Hinge,
            Self::Ipo(config) => {
                require(config.target > 0.0 && (config.target as f32).is_finite(), "target", "a finite number above 0", config.target)?;
                MarginLoss::Ipo { target: config.target as f32 }
            }
            Self::Bounded(config) => {
                let is_weight = |w: f64| w >= 0.0 && (w as f32).is_finite();
                require(is_weight(config.logistic), "logistic", "a finite number of at least 0", config.logistic)?;
                require(is_weight(config.bounded), "bounded", "a finite number of at least 0", config.bounded)?;
                require(config.logistic + config.bounded > 0.0, "bounded", "above 0 where `logistic` is 0", config.bounded)?;
                MarginLoss::Bounded { logistic: config.logistic as f32, bounded: config.bounded as f32 }
            }
            Self::Trimmed(config) => {
                drop(config)?;
                MarginLoss::Trimmed { fraction: config.fraction }
            }
            Self::Filtered(config) => {
                drop(config)?;
                MarginLoss::CrossEntropy
            }
        })
    }
}

/// A loss of margins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MarginLoss {
    /// −ln σ(d).
    CrossEntropy,
    /// The robust logistic loss.
    R3m(RobustLogistic),
    /// Label smoothing.
    LabelSmoothing {
        /// Assumed share of flips.
        epsilon: f32,
    },
    /// The unbiased loss.
    RobustDpo {
        /// ε / (1 − 2ε), where ε is the assumed share of flips.
        tilt: f32,
    },
    /// max(1 − d, 0).
    Hinge,
    /// (d − target)².
    Ipo {
        /// The margin that every pair should have.
        target: f32,
    },
    /// a · (−ln σ(d)) + b · σ(−d).
    Bounded {
        /// a.
        logistic: f32,
        /// b.
        bounded: f32,
    },
    /// Cross-entropy without the worst pairs of a batch.
    Trimmed {
        /// Share that is left out.
        fraction: f64,
    },
}

impl MarginLoss {
    /// Value and derivative at one margin. What a batch leaves out is known only to [`MarginLoss::batch`].
    pub fn evaluate(&self, margin: f32) -> LossValue {
        let d = margin;
        match *self {
            Self::CrossEntropy | Self::Trimmed { .. } => LossValue { value: log_one_plus_exp(-d), slope: -sigmoid(-d) },
            Self::R3m(loss) => loss.evaluate(d),
            Self::LabelSmoothing { epsilon } => LossValue {
                value: weighted(1.0 - epsilon, log_one_plus_exp(-d)) + weighted(epsilon, log_one_plus_exp(d)),
                slope: epsilon * sigmoid(d) - (1.0 - epsilon) * sigmoid(-d),
            },
            Self::RobustDpo { tilt } => LossValue { value: log_one_plus_exp(-d) - weighted(tilt, d), slope: -sigmoid(-d) - tilt },
            Self::Hinge if d >= 1.0 => LossValue::default(),
            Self::Hinge => LossValue { value: 1.0 - d, slope: -1.0 },
            Self::Ipo { target } => LossValue { value: (d - target) * (d - target), slope: 2.0 * (d - target) },
            Self::Bounded { logistic, bounded } => {
                let (wrong, right) = (sigmoid(-d), sigmoid(d));
                LossValue {
                    value: weighted(logistic, log_one_plus_exp(-d)) + bounded * wrong,
                    slope: -wrong * (logistic + bounded * right),
                }
            }
        }
    }

    /// δ of a pair under this loss: R3M's outlier value, 0 for losses that have none.
    pub fn outlier(&self, margin: f32) -> f32 {
        match self {
            Self::R3m(loss) => loss.outlier(margin),
            _ => 0.0,
        }
    }

    /// Value and derivative of every pair of a batch; a training step follows their mean.
    ///
    /// Pairs that were found equally good (`equal`) count half in each direction. `trimmed` gives the pairs that it
    /// leaves out weight 0; ties among them go to the later pair, and one pair always remains.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn batch(&self, margins: &[f32], equal: &[bool], out: &mut [LossValue]) {
        assert!(margins.len() == equal.len() && margins.len() == out.len(), "lengths in MarginLoss::batch");
        for ((out, &d), &equal) in out.iter_mut().zip(margins).zip(equal) {
            *out = if equal {
                let (forward, backward) = (self.evaluate(d), self.evaluate(-d));
                LossValue { value: 0.5 * (forward.value + backward.value), slope: 0.5 * (forward.slope - backward.slope) }
            } else {
                self.evaluate(d)
            };
        }
        if let Self::Trimmed { fraction } = self {
            let n = (fraction * margins.len() as f64).round() as usize;
            // NaN is never left out: it must come to light.
            let mut worst: Vec<usize> = (0..out.len()).filter(|&i| !out[i].value.is_nan()).collect();
            worst.sort_by(|&a, &b| out[b].value.total_cmp(&out[a].value).then(b.cmp(&a)));
            worst.truncate(n.min(out.len().saturating_sub(1)));
            worst.iter().for_each(|&i| out[i] = LossValue::default());
        }
    }
}
