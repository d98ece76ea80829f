//! Labelling pairs, and corrupting labels that are already there.

use std::cmp::Ordering;

use serde::Serialize;
use steadfast_envs::SeedTree;

use super::NoiseConfig;
use super::malicious::Temptations;
use super::pair::{Compared, UnlabelledPair};
use super::teacher::{ReturnScale, Verdict};
use crate::error::{Result, RewardError};
use crate::preference::{Preference, Truth};

/// What came of labelling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LabelReport {
    /// Pairs that were asked about.
    pub pairs: usize,
    /// Of these, pairs that the annotator skipped; they are not in the data set.
    pub dropped: usize,
    /// Pairs found equally good.
    pub equal: usize,
    /// Pairs whose label contradicts the truth.
    pub flipped: usize,
    /// Share of wrong labels among the pairs that have both an order and a truth; 0 if there are none.
    pub rate: f64,
    /// Pairs without a truth because their true values are exactly equal, dropped ones among them.
    pub ties_in_truth: usize,
    /// Flips of [`super::MaliciousNoiseConfig`] for which there was no pair.
    pub missing_flips: usize,
}

impl LabelReport {
    fn of<P>(preferences: &[Preference<P>], dropped: usize, ties_in_truth: usize) -> Self {
        let known = preferences.iter().filter(|p| p.truth.flipped.is_some()).count();
        let flipped = preferences.iter().filter(|p| p.truth.flipped == Some(true)).count();
        Self {
            pairs: preferences.len() + dropped,
            dropped,
            equal: preferences.iter().filter(|p| p.equal).count(),
            flipped,
            rate: if known > 0 { flipped as f64 / known as f64 } else { 0.0 },
            ties_in_truth,
            missing_flips: 0,
        }
    }
}

impl NoiseConfig {
    /// Labels pairs, and puts each in the order of its label. The order of the pairs stays.
    ///
    /// `truth.flipped` says whether the label contradicts the true values, which are recorded too; it is unknown for exact
    /// ties and for pairs found equal, which keep the order in which they were given. `scale` is needed for
    /// [`super::TeacherConfig::skip`] and [`super::TeacherConfig::equal`] alone.
    ///
    /// # Errors
    /// [`RewardError::Config`] for a setting out of its range; [`RewardError::Data`] naming the pair whose true rewards are
    /// missing or not finite, if `scale` is needed and missing or negative, or if `malicious` meets a pair of which is not
    /// known what tempts.
    pub fn label<P: Compared>(
        &self,
        pairs: Vec<UnlabelledPair<P>>,
        scale: Option<&ReturnScale>,
        seed: SeedTree,
    ) -> Result<(Vec<Preference<P>>, LabelReport)> {
        self.validate()?;
        pairs.iter().try_for_each(UnlabelledPair::check)?;
        let return_per_step = if let Self::Teacher(config) = self { config.return_per_step(scale)? } else { 0.0 };
        let gaps: Vec<f64> = pairs.iter().map(|p| p.first.sum() - p.second.sum()).collect();
        let (chosen_flips, missing_flips) = match self {
            Self::Irrational(config) => (config.flips(&gaps), 0),
            Self::Malicious(config) => {
                let known = pairs.iter().zip(&gaps).map(|(p, &gap)| Ok(Some(temptations(&p.pair, &p.id, gap)?)));
                config.flips(&known.collect::<Result<Vec<_>>>()?, &seed)
            }
            _ => (Vec::new(), 0),
        };

        let (mut preferences, mut dropped, mut ties) = (Vec::with_capacity(pairs.len()), 0, 0);
        for (i, pair) in pairs.into_iter().enumerate() {
            let (gap, mut rng) = (gaps[i], pair_branch(&seed, "noise", i).rng());
            ties += usize::from(gap == 0.0);
            let tied_order = pair_branch(&seed, "tie", i).rng().unit() < 0.5;
            let truth = if gap == 0.0 { tied_order } else { gap > 0.0 };
            let verdict = match self {
                Self::None(_) => Verdict::of(truth),
                Self::Uniform(config) => Verdict::of(truth != config.flips(&mut rng)),
                Self::Stochastic(config) => Verdict::of(config.prefers_first(gap, &mut rng)),
                Self::Myopic(config) => {
                    let gap = config.gap(&pair.first, &pair.second);
                    Verdict::of(if gap == 0.0 { tied_order } else { gap > 0.0 })
                }
                Self::Irrational(_) | Self::Malicious(_) => Verdict::of(truth != chosen_flips[i]),
                Self::Teacher(config) => config.judge(&pair.first, &pair.second, return_per_step, tied_order, &mut rng),
                Self::LengthBias(config) => {
                    let by_length = config.prefers_first(pair.pair.lengths(), pair.annotator.as_deref(), &seed, &mut rng);
                    Verdict::of(by_length.unwrap_or(truth))
                }
            };
            if verdict == Verdict::Skipped {
                dropped += 1;
                continue;
            }
            let mut preference = Preference {
                id: pair.id,
                pair: pair.pair,
                equal: verdict == Verdict::Equal,
                margin: None,
                annotator: pair.annotator,
                truth: Truth { flipped: Some(false), gold_chosen: Some(pair.first.sum()), gold_rejected: Some(pair.second.sum()) },
                reference_log_probs: None,
            };
            if verdict == Verdict::Second {
                exchange(&mut preference);
            }
            preference.truth.flipped = contradicts(&preference);
            preferences.push(preference);
        }
        let report = LabelReport::of(&preferences, dropped, ties);
        Ok((preferences, LabelReport { missing_flips, ..report }))
    }

    /// Corrupts labels that are already there, such as those of a file of texts.
    ///
    /// `uniform` flips labels as they are; `irrational` flips them where the true values differ most; `length_bias` lets a
    /// share of the annotators choose by length; `stochastic` draws the label anew from the true values; `malicious` flips right
    /// labels only, so that its flips are wrong ones. Pairs found equal
    /// stay so, and are left out of the batches of `irrational`. `truth.flipped` is set afterwards: by the true values
    /// where both are known, else by what was known before, and where nothing was known the given label counts as true.
    ///
    /// # Errors
    /// [`RewardError::Config`] for a setting out of its range; [`RewardError::Data`] if `irrational`, `stochastic` or
    /// `malicious` meets a pair without finite true values, `malicious` one of which is not known what tempts, or for `myopic` and `teacher`, which label by the rewards of single steps.
    pub fn corrupt<P: Compared>(&self, preferences: &mut [Preference<P>], seed: SeedTree) -> Result<LabelReport> {
        self.validate()?;
        if matches!(self, Self::Myopic(_) | Self::Teacher(_)) {
            let name = self.name();
            return Err(RewardError::Data(format!("noise `{name}` labels by the rewards of single steps, and labelled data has none")));
        }
        let needs_gold = matches!(self, Self::Irrational(_) | Self::Stochastic(_) | Self::Malicious(_));
        let gaps = preferences.iter().map(|p| match gold(p) {
            Some((chosen, rejected)) if chosen.is_finite() && rejected.is_finite() => Ok(chosen - rejected),
            _ if needs_gold && !p.equal => {
                let name = self.name();
                Err(RewardError::Data(format!("pair `{}`: noise `{name}` needs the true values of both (`gold`)", p.id)))
            }
            _ => Ok(f64::NAN),
        });
        let gaps = gaps.collect::<Result<Vec<f64>>>()?;
        let ordered: Vec<usize> = (0..preferences.len()).filter(|&i| !preferences[i].equal).collect();
        let (mut chosen_flips, mut missing_flips) = (vec![false; preferences.len()], 0);
        if let Self::Irrational(config) = self {
            let ordered_gaps: Vec<f64> = ordered.iter().map(|&i| gaps[i]).collect();
            ordered.iter().zip(config.flips(&ordered_gaps)).for_each(|(&i, flips)| chosen_flips[i] = flips);
        }
        if let Self::Malicious(config) = self {
            let of_pair = |(p, &gap): (&Preference<P>, &f64)| match p.equal {
                true => Ok(None),
                // The label of a pair with a negative gap is wrong already.
                false => Ok(Some(temptations(&p.pair, &p.id, gap)?).filter(|_| gap > 0.0)),
            };
            let known = preferences.iter().zip(&gaps).map(of_pair).collect::<Result<Vec<_>>>()?;
            (chosen_flips, missing_flips) = config.flips(&known, &seed);
        }
        // Without noise nothing is decided, so nothing becomes known either.
        let ordered = if matches!(self, Self::None(_)) { Vec::new() } else { ordered };
        for i in ordered {
            let preference = &mut preferences[i];
            let mut rng = pair_branch(&seed, "noise", i).rng();
            let keeps = match self {
                Self::None(_) => true,
                Self::Uniform(config) => !config.flips(&mut rng),
                Self::Irrational(_) | Self::Malicious(_) => !chosen_flips[i],
                Self::Stochastic(config) => config.prefers_first(gaps[i], &mut rng),
                Self::LengthBias(config) => {
                    let lengths = preference.pair.lengths();
                    config.prefers_first(lengths, preference.annotator.as_deref(), &seed, &mut rng).unwrap_or(true)
                }
                Self::Myopic(_) | Self::Teacher(_) => unreachable!("refused above"),
            };
            let was_flipped = preference.truth.flipped.unwrap_or(false);
            if !keeps {
                exchange(preference);
            }
            preference.truth.flipped = match gold(preference) {
                Some(_) => contradicts(preference),
                None => Some(was_flipped ^ !keeps),
            };
        }
        let is_tie = |p: &&Preference<P>| gold(p).is_some_and(|(chosen, rejected)| chosen == rejected);
        let report = LabelReport::of(preferences, 0, preferences.iter().filter(is_tie).count());
        Ok(LabelReport { missing_flips, ..report })
    }
}

/// What a malicious annotator knows of a pair.
fn temptations<P: Compared>(pair: &P, id: &str, gap: f64) -> Result<Temptations> {
    let unknown = || {
        let reason = "noise `malicious` goes by what the task of sampled completions calls tempting, and here no task says what that is";
        RewardError::Data(format!("pair `{id}`: {reason}"))
    };
    Ok(Temptations { gap, temptations: pair.temptations().ok_or_else(unknown)? })
}

/// The place of a pair's random numbers for one purpose.
fn pair_branch(seed: &SeedTree, purpose: &str, pair_idx: usize) -> SeedTree {
    seed.child(purpose).index(pair_idx as u64)
}

/// True values of the chosen and the rejected one.
fn gold<P>(preference: &Preference<P>) -> Option<(f64, f64)> {
    preference.truth.gold_chosen.zip(preference.truth.gold_rejected)
}

/// Turns the pair round, with its true values.
fn exchange<P: Compared>(preference: &mut Preference<P>) {
    preference.pair.exchange();
    if let Some(log_probs) = &mut preference.reference_log_probs {
        log_probs.reverse();
    }
    let truth = &mut preference.truth;
    std::mem::swap(&mut truth.gold_chosen, &mut truth.gold_rejected);
}

/// Whether the label contradicts the true values; nothing for ties, equal pairs and NaN.
fn contradicts<P>(preference: &Preference<P>) -> Option<bool> {
    let (chosen, rejected) = gold(preference)?;
    match chosen.partial_cmp(&rejected) {
        Some(Ordering::Less) if !preference.equal => Some(true),
        Some(Ordering::Greater) if !preference.equal => Some(false),
        _ => None,
    }
}
