//! Models of wrong labels: who labels the pairs, and how that annotator errs.
//!
//! The truth about two things is the order of their true values: undiscounted sums of the environment's rewards for
//! segments, gold values for texts. Corruption is drawn once, when a data set is labelled; the flips stay the same from
//! pass to pass and are recorded in [`crate::Truth`], which no model sees.
//!
//! | name | label | source |
//! |---|---|---|
//! | `none` | the truth | |
//! | `uniform` | the truth, flipped with a fixed probability | |
//! | `stochastic` | first with probability σ((R₁ − R₂) / τ): Bradley and Terry's model | Bukharin et al. 2024 |
//! | `myopic` | order of Σₜ γ^(m−t) rₜ, t = 1..m: recent steps count more | Bukharin et al. 2024 |
//! | `irrational` | the truth, flipped for the \|B\|^p pairs of each batch B whose true values differ most | Bukharin et al. 2024 |
//! | `teacher` | B-Pref's annotator: stochastic, myopic, mistaken, skipping, undecided | Lee et al. 2021 |
//! | `length_bias` | the longer one, from a share of the annotators | |
//! | `malicious` | the truth, flipped for a share of all pairs in which the worse one shows more of a mark | |
//!
//! Sources: Bukharin et al. 2024, "Robust Reinforcement Learning from Corrupted Human Feedback" (arXiv 2406.15568); Lee et
//! al. 2021, "B-Pref: Benchmarking Preference-Based Reinforcement Learning" (arXiv 2111.03026).
//!
//! **Ties.** Where two true values are exactly equal there is no truth: the order that stands in for it is drawn from the
//! seed, `flipped` stays unknown, and the pair is counted in [`LabelReport::ties_in_truth`]. What an annotator cannot
//! order either (equal myopic sums, equal lengths) falls back to that order, or to the truth where the rule says so.
//!
//! **Short segments.** A segment that ended with its task lacks steps; they count as reward 0 *at its end*, in the true sum
//! and in the myopic ones. Its first step keeps the weight γ^(m−1) of the first step of a whole segment, and its last
//! step has γ^(m−k) after k steps. Where nothing but the order of two sums counts, steps that both segments lack are left
//! out: the factor that they give both sums changes no order, except that it is 0 for γ = 0 and can round to 0 for others,
//! where the order is that of the limit of small γ.
//!
//! **Randomness.** Every pair draws from branches of the given [`steadfast_envs::SeedTree`] that are numbered by its
//! position, so labels depend neither on threads nor on the order of evaluation, and a pair's tie is broken alike under
//! all models.

mod irrational;
mod label;
mod length_bias;
mod malicious;
mod myopic;
mod pair;
mod stochastic;
mod teacher;
mod uniform;

pub use irrational::IrrationalNoiseConfig;
pub use label::LabelReport;
pub use length_bias::LengthBiasConfig;
pub use malicious::MaliciousNoiseConfig;
pub use myopic::MyopicNoiseConfig;
pub use pair::{Compared, TrueRewards, UnlabelledPair};
pub use stochastic::StochasticNoiseConfig;
pub use teacher::{ReturnScale, TeacherConfig};
pub use uniform::UniformNoiseConfig;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Truthful labels have no settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoNoiseConfig {}

/// Which annotator labels the pairs. Written in a configuration as `[reward.noise.NAME]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseConfig {
    /// The truth.
    None(NoNoiseConfig),
    /// Each label flips with a fixed probability.
    Uniform(UniformNoiseConfig),
    /// Labels are drawn from Bradley and Terry's model.
    Stochastic(StochasticNoiseConfig),
    /// Recent steps count more than early ones.
    Myopic(MyopicNoiseConfig),
    /// The clearest pairs of each batch are flipped.
    Irrational(IrrationalNoiseConfig),
    /// B-Pref's annotator.
    Teacher(TeacherConfig),
    /// A share of the annotators always prefers the longer one.
    LengthBias(LengthBiasConfig),
    /// Pairs are flipped in which the better one has less of what tempts.
    Malicious(MaliciousNoiseConfig),
}

impl Default for NoiseConfig {
    fn default() -> Self {
        Self::None(NoNoiseConfig::default())
    }
}

impl NoiseConfig {
    /// Names and one-line descriptions of all models.
    pub const LIST: &'static [(&'static str, &'static str)] = &[
        ("none", "true labels"),
        ("uniform", "each label flips with a fixed probability"),
        ("stochastic", "labels drawn from Bradley and Terry's model: close pairs err often"),
        ("myopic", "an annotator to whom recent steps count more"),
        ("irrational", "the pairs whose true values differ most are flipped: few but large errors"),
        ("teacher", "B-Pref's annotator: stochastic, myopic, mistaken, skipping, undecided"),
        ("length_bias", "a share of the annotators always prefers the longer one"),
        ("malicious", "a share of all pairs is flipped in favour of what a task calls tempting, such as a visible mark"),
    ];

    /// Name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None(_) => "none",
            Self::Uniform(_) => "uniform",
            Self::Stochastic(_) => "stochastic",
            Self::Myopic(_) => "myopic",
            Self::Irrational(_) => "irrational",
            Self::Teacher(_) => "teacher",
            Self::LengthBias(_) => "length_bias",
            Self::Malicious(_) => "malicious",
        }
    }

    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`crate::RewardError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::None(_) => Ok(()),
            Self::Uniform(config) => config.validate(),
            Self::Stochastic(config) => config.validate(),
            Self::Myopic(config) => config.validate(),
            Self::Irrational(config) => config.validate(),
            Self::Teacher(config) => config.validate(),
            Self::LengthBias(config) => config.validate(),
            Self::Malicious(config) => config.validate(),
        }
    }
}
