//! Fitting a reward model to labelled pairs: passes, selection of the pass, diagnostics.
//!
//! What is drawn from the seed depends on the number of pairs alone: the held-out pairs and the order of the batches are
//! the same for every loss, so that losses can be compared pair by pair. Pairs with wrong labels are met as they are; what
//! is known about the truth enters nothing but the numbers reported and the selection called `oracle`.
//!
//! A pair's own margin is subtracted from the learned one before the loss but does not enter accuracies (the convention of
//! TRL). Pairs found equally good count half in each direction ([`MarginLoss::batch`]) and are left out of accuracies and of
//! the detection of wrong labels.
//!
//! `filtered` is two fits from the same start: cross-entropy on all pairs, then again without those of the lowest margins.
//! The reports of both are one list, the second fit's passes counted on.

use serde::{Deserialize, Serialize};
use steadfast_agents::StateDict;
use steadfast_envs::SeedTree;

use crate::error::{Result, RewardError, require};
use crate::margin::{LossConfig, LossValue, MarginLoss, log_one_plus_exp};
use crate::metrics::{accuracy, detect};
use crate::model::RewardModel;
use crate::preference::Preference;

/// Pairs whose margins are computed together outside of training.
const EVALUATION_BATCH: usize = 256;

/// Which pass's parameters are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Those of the last pass.
    Fixed,
    /// Those of the pass with the highest accuracy on held-out pairs with the labels as given, wrong ones included. Among
    /// equals, the lower cross-entropy there decides, then the earlier pass.
    NoisyValidation,
    /// The same with true labels. Real data has none: an upper bound only.
    Oracle,
}

/// Settings of fitting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FitConfig {
    /// Passes over the pairs, 1 to 100000.
    pub epochs: usize,
    /// Pairs per step of the optimiser, at least 1.
    pub batch_size: usize,
    /// Adam's learning rate, above 0.
    pub learning_rate: f64,
    /// Share of the pairs that is held out, rounded to whole pairs, to select a pass and to be reported; at least 0 and
    /// below 1, above 0 unless `selection` is `fixed`.
    pub validation_fraction: f64,
    /// Which pass's parameters are kept: `fixed` (the last), `noisy_validation` or `oracle`.
    pub selection: Selection,
}

impl Default for FitConfig {
    fn default() -> Self {
        Self { epochs: 10, batch_size: 64, learning_rate: 3e-3, validation_fraction: 0.0, selection: Selection::Fixed }
    }
}

impl FitConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`crate::RewardError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        require((1..=100_000).contains(&self.epochs), "epochs", "between 1 and 100000", self.epochs)?;
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)?;
        let rate = self.learning_rate;
        require(rate > 0.0 && rate.is_finite(), "learning_rate", "a finite number above 0", rate)?;
        let fraction = self.validation_fraction;
        require((0.0..1.0).contains(&fraction), "validation_fraction", "at least 0 and below 1", fraction)?;
        let needs_pairs = self.selection != Selection::Fixed;
        require(!needs_pairs || fraction > 0.0, "validation_fraction", "above 0 where `selection` is not `fixed`", fraction)
    }
}

/// One pass over the pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct EpochReport {
    /// Number of the pass, from 1.
    pub epoch: usize,
    /// Mean loss over the pass, each pair at the time of its step; of an ensemble, the mean over its members, here and in
    /// the next four.
    pub loss: f64,
    /// Mean cross-entropy at the same margins, comparable across losses.
    pub cross_entropy: f64,
    /// Mean outlier value δ.
    pub delta_mean: f64,
    /// Largest outlier value δ.
    pub delta_max: f64,
    /// Share of pairs with δ > 0.
    pub outlier_fraction: f64,
    /// Mean of |slope| / λ for R3M: 1 where every pair is clipped; nothing for other losses.
    pub clip_saturation: Option<f64>,
    /// Accuracy on held-out pairs, labels as given. A margin of exactly 0 counts half in every accuracy.
    pub validation_accuracy: Option<f64>,
    /// Mean cross-entropy on held-out pairs, labels as given.
    pub validation_cross_entropy: Option<f64>,
    /// Accuracy on held-out pairs, true labels; of those whose truth is known.
    pub oracle_accuracy: Option<f64>,
    /// Accuracy on separate test pairs: true labels where the truth is known, else as given. Nothing is selected by it.
    pub test_accuracy: Option<f64>,
}

/// A pair at the end of fitting.
#[derive(Debug, Clone, PartialEq)]
pub struct PairReport {
    /// Identifier.
    pub id: String,
    /// Margin under the kept parameters, less the pair's own `margin` if it has one.
    pub margin: f32,
    /// Outlier value δ; 0 for losses that have none and for pairs found equally good.
    pub delta: f32,
    /// Whether the label is wrong, if that is known.
    pub flipped: Option<bool>,
}

/// What came of a fit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FitReport {
    /// The passes.
    pub epochs: Vec<EpochReport>,
    /// The pass whose parameters were kept, from 1.
    pub selected_epoch: usize,
    /// Accuracy on the training pairs under the kept parameters, labels as given; equal ones do not count.
    pub train_accuracy: Option<f64>,
    /// The training pairs at the end, in their order, also those that a loss left out; held-out pairs are not among them.
    pub pairs: Vec<PairReport>,
    /// How well wrong labels were found among those whose truth is known; nothing if that is none or all are alike.
    pub detection: Option<Detection>,
}

/// How well low margins point to wrong labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Detection {
    /// Share of wrong labels.
    pub rate: f64,
    /// Area under the receiver operating characteristic of −margin.
    pub auroc: f64,
    /// Average precision of −margin.
    pub average_precision: f64,
    /// Precision of the set δ > 0; nothing if it is empty.
    pub precision: Option<f64>,
    /// Recall of the set δ > 0.
    pub recall: f64,
}

/// Fits `model` to `data` and says what came of it. Fitting goes on from the model's present parameters; the model ends
/// with those of the selected pass. `test` is only reported on. `on_epoch` is called after every pass.
///
/// # Errors
/// [`RewardError::Config`] if a setting is out of its range. [`RewardError::Data`] if there are no pairs to train on or to
/// select by, or naming the first pair that the model cannot use. [`RewardError::NonFinite`] naming the pair and pass of a
/// margin or loss that is not finite, and what the model reports; its parameters are then of no use.
pub fn fit<P>(
    model: &mut dyn RewardModel<P>,
    data: &[Preference<P>],
    test: &[Preference<P>],
    loss: &LossConfig,
    config: &FitConfig,
    seeds: SeedTree,
    on_epoch: &mut dyn FnMut(&EpochReport),
) -> Result<FitReport> {
    config.validate()?;
    let margin_loss = loss.build()?;
    for preference in data.iter().chain(test) {
        let refuse = |reason: String| Err(RewardError::Data(format!("pair `{}`: {reason}", preference.id)));
        if let Err(reason) = model.check(&preference.pair) {
            return refuse(reason);
        }
        if let Some(margin) = preference.margin.filter(|m| !m.is_finite()) {
            return refuse(format!("its margin must be finite, found {margin}"));
        }
    }
    let split = Split::draw(data, config, seeds)?;
    model.prepare(&split.train.iter().map(|p| &p.pair).collect::<Vec<_>>())?;
    let mut run = Run {
        loss: margin_loss,
        // The largest weight of a pair. With λ = 1 the loss is cross-entropy, and reports what that reports.
        largest_slope: if let LossConfig::R3m(r3m) = loss { Some(r3m.lambda).filter(|&lambda| lambda < 1.0) } else { None },
        config,
        seeds,
        validation: split.validation,
        test: test.iter().collect(),
        epochs: Vec::new(),
        on_epoch,
    };
    let start = model.state();
    let mut selected_epoch = run.passes(model, &split.train)?;
    // Accuracies are about the reward alone, without a pair's own margin.
    let mut raw = run.margins(model, &split.train, selected_epoch)?;
    if let LossConfig::Filtered(drop) = loss {
        let kept = without_lowest(&split.train, &less_own_margins(&split.train, &raw), drop.fraction);
        model.load_state(&start)?;
        selected_epoch = run.passes(model, &kept)?;
        raw = run.margins(model, &split.train, selected_epoch)?;
    }
    let margins = less_own_margins(&split.train, &raw);
    let train_accuracy = score(&split.train, &raw, |p| (!p.equal).then_some(true)).accuracy;
    let pairs: Vec<PairReport> = split
        .train
        .iter()
        .zip(&margins)
        .map(|(p, &margin)| {
            let delta = if p.equal { 0.0 } else { margin_loss.outlier(margin) };
            PairReport { id: p.id.clone(), margin, delta, flipped: p.truth.flipped }
        })
        .collect();
    let known: Vec<(&PairReport, bool)> =
        pairs.iter().zip(&split.train).filter(|(_, p)| !p.equal).filter_map(|(r, _)| Some((r, r.flipped?))).collect();
    let column = |f: fn(&PairReport) -> f32| known.iter().map(|(report, _)| f(report)).collect::<Vec<_>>();
    let flipped: Vec<bool> = known.iter().map(|k| k.1).collect();
    let detection = detect(&column(|r| r.margin), &column(|r| r.delta), &flipped);
    Ok(FitReport { epochs: run.epochs, selected_epoch, train_accuracy, pairs, detection })
}

/// Which of the pairs are trained on.
struct Split<'a, P> {
    train: Vec<&'a Preference<P>>,
    validation: Vec<&'a Preference<P>>,
}

impl<'a, P> Split<'a, P> {
    fn draw(data: &'a [Preference<P>], config: &FitConfig, seeds: SeedTree) -> Result<Self> {
        let n = (config.validation_fraction * data.len() as f64).round() as usize;
        if n >= data.len() {
            let reason = format!(
                "{} pairs, of which {n} are held out, leave none to train on; collect more, or ones that an annotator can tell apart",
                data.len()
            );
            return Err(RewardError::Data(reason));
        }
        let mut order: Vec<usize> = (0..data.len()).collect();
        seeds.child("validation").rng().shuffle(&mut order);
        // In the order of the data, so that nothing but the membership depends on the draw.
        order[..n].sort_unstable();
        order[n..].sort_unstable();
        let pick = |indices: &[usize]| indices.iter().map(|&i| &data[i]).collect::<Vec<_>>();
        let split = Self { train: pick(&order[n..]), validation: pick(&order[..n]) };
        let usable = match config.selection {
            Selection::Fixed => true,
            Selection::NoisyValidation => split.validation.iter().any(|p| !p.equal),
            Selection::Oracle => split.validation.iter().any(|p| is_order_right(p).is_some()),
        };
        if !usable {
            let what = if config.selection == Selection::Oracle { "a known truth" } else { "a preference" };
            let remedy = "more pairs or a larger `validation_fraction` help, or `selection = \"fixed\"`";
            return Err(RewardError::Data(format!("none of the {n} held-out pairs has {what} to select a pass by; {remedy}")));
        }
        Ok(split)
    }
}

/// True if the order of the pair is the true one; nothing if that is not known or both are equally good.
fn is_order_right<P>(preference: &Preference<P>) -> Option<bool> {
    let truth = &preference.truth;
    match (truth.gold_chosen, truth.gold_rejected) {
        (Some(chosen), Some(rejected)) if chosen != rejected => Some(chosen > rejected),
        (Some(_), Some(_)) => None,
        _ if preference.equal => None,
        _ => truth.flipped.map(|flipped| !flipped),
    }
}

/// Margins less each pair's own.
fn less_own_margins<P>(pairs: &[&Preference<P>], margins: &[f32]) -> Vec<f32> {
    pairs.iter().zip(margins).map(|(p, &d)| less_own_margin(p, d)).collect()
}

/// The pairs without the share of them that has the lowest margins; ties go to the later pair. Those found equally good
/// stay: their margin has no direction.
fn without_lowest<'a, P>(pairs: &[&'a Preference<P>], margins: &[f32], fraction: f64) -> Vec<&'a Preference<P>> {
    let mut order: Vec<usize> = (0..pairs.len()).filter(|&i| !pairs[i].equal).collect();
    let n = (fraction * order.len() as f64).round() as usize;
    // The last one stays, or a single pair could be filtered away.
    let n = n.min(pairs.len() - 1);
    order.sort_by(|&a, &b| margins[a].total_cmp(&margins[b]).then(b.cmp(&a)));
    let mut is_kept = vec![true; pairs.len()];
    order[..n.min(order.len())].iter().for_each(|&i| is_kept[i] = false);
    pairs.iter().zip(is_kept).filter(|(_, kept)| *kept).map(|(p, _)| *p).collect()
}

/// Sums over one pass, for each pair and member of an ensemble.
#[derive(Default)]
struct Totals {
    n: f64,
    loss: f64,
    cross_entropy: f64,
    delta: f64,
    delta_max: f64,
    outliers: f64,
    slope: f64,
}

/// Accuracy and mean cross-entropy.
#[derive(Clone, Copy)]
struct Score {
    accuracy: Option<f64>,
    cross_entropy: Option<f64>,
}

struct Run<'a, P> {
    loss: MarginLoss,
    largest_slope: Option<f64>,
    config: &'a FitConfig,
    seeds: SeedTree,
    validation: Vec<&'a Preference<P>>,
    test: Vec<&'a Preference<P>>,
    epochs: Vec<EpochReport>,
    on_epoch: &'a mut dyn FnMut(&EpochReport),
}

impl<P> Run<'_, P> {
    /// All passes over `train`; the model is left with the selected parameters. Returns the number of the selected pass.
    fn passes(&mut self, model: &mut dyn RewardModel<P>, train: &[&Preference<P>]) -> Result<usize> {
        let first = self.epochs.len() + 1;
        let last = first + self.config.epochs - 1;
        let mut best: Option<(Score, usize, StateDict)> = None;
        for epoch in first..=last {
            let mut order = train.to_vec();
            // Counted from this fit's start: the second fit of `filtered` draws as a fit of its own would.
            self.seeds.child("order").index((epoch - first) as u64).rng().shuffle(&mut order);
            let mut totals = Totals::default();
            for batch in order.chunks(self.config.batch_size) {
                self.step(model, batch, epoch, &mut totals)?;
            }
            let mut report = totals.report(epoch, self.largest_slope);
            let margins = self.margins(model, &self.validation, epoch)?;
            let validation = score(&self.validation, &margins, |p| (!p.equal).then_some(true));
            let oracle = score(&self.validation, &margins, is_order_right);
            let margins = self.margins(model, &self.test, epoch)?;
            let test = score(&self.test, &margins, |p| is_order_right(p).or((!p.equal).then_some(true)));
            report.validation_accuracy = validation.accuracy;
            report.validation_cross_entropy = validation.cross_entropy;
            report.oracle_accuracy = oracle.accuracy;
            report.test_accuracy = test.accuracy;
            let candidate = match self.config.selection {
                Selection::Fixed => None,
                Selection::NoisyValidation => Some(validation),
                Selection::Oracle => Some(oracle),
            };
            if let Some(score) = candidate
                && best.as_ref().is_none_or(|(other, ..)| score.is_better(other))
            {
                best = Some((score, epoch, model.state()));
            }
            self.epochs.push(report);
            (self.on_epoch)(&report);
        }
        let Some((_, selected, state)) = best else { return Ok(last) };
        if selected != last {
            model.load_state(&state)?;
        }
        Ok(selected)
    }

    fn step(&self, model: &mut dyn RewardModel<P>, batch: &[&Preference<P>], epoch: usize, totals: &mut Totals) -> Result<()> {
        let pairs: Vec<&P> = batch.iter().map(|p| &p.pair).collect();
        let equal: Vec<bool> = batch.iter().map(|p| p.equal).collect();
        let mut plain = vec![LossValue::default(); batch.len()];
        let mut adjusted = Vec::with_capacity(batch.len());
        let mut failure = None;
        let mut evaluate = |margins: &[f32], out: &mut [LossValue]| {
            adjusted.clear();
            adjusted.extend(batch.iter().zip(margins).map(|(p, &d)| less_own_margin(p, d)));
            self.loss.batch(&adjusted, &equal, out);
            MarginLoss::CrossEntropy.batch(&adjusted, &equal, &mut plain);
            for (i, preference) in batch.iter().enumerate() {
                for (tensor, value) in [("margin", margins[i]), ("loss", out[i].value), ("slope of the loss", out[i].slope)] {
                    if !value.is_finite() && failure.is_none() {
                        failure = Some(RewardError::NonFinite { tensor, value, epoch: Some(epoch), pair: preference.id.clone() });
                    }
                }
                let delta = if equal[i] { 0.0 } else { self.loss.outlier(adjusted[i]) };
                totals.add(out[i], plain[i].value, delta);
            }
        };
        let stepped = model.step(&pairs, &mut evaluate, self.config.learning_rate as f32);
        // The pair is the cause; a gradient that is not finite either is its consequence.
        match failure {
            Some(error) => Err(error),
            None => stepped,
        }
    }

    /// Margins of pairs.
    fn margins(&self, model: &mut dyn RewardModel<P>, data: &[&Preference<P>], epoch: usize) -> Result<Vec<f32>> {
        let mut margins = vec![0.0; data.len()];
        for (batch, out) in data.chunks(EVALUATION_BATCH).zip(margins.chunks_mut(EVALUATION_BATCH)) {
            model.margins(&batch.iter().map(|p| &p.pair).collect::<Vec<_>>(), out)?;
            for (preference, margin) in batch.iter().zip(out) {
                let value = *margin;
                if !value.is_finite() {
                    return Err(RewardError::NonFinite { tensor: "margin", value, epoch: Some(epoch), pair: preference.id.clone() });
                }
            }
        }
        Ok(margins)
    }
}

/// A learned margin less the pair's own one, which pairs found equally good do not have.
fn less_own_margin<P>(preference: &Preference<P>, margin: f32) -> f32 {
    match preference.margin {
        Some(own) if !preference.equal => margin - own,
        _ => margin,
    }
}

impl Totals {
    fn add(&mut self, loss: LossValue, cross_entropy: f32, delta: f32) {
        self.n += 1.0;
        self.loss += f64::from(loss.value);
        self.cross_entropy += f64::from(cross_entropy);
        self.delta += f64::from(delta);
        self.delta_max = self.delta_max.max(f64::from(delta));
        self.outliers += f64::from(u8::from(delta > 0.0));
        self.slope += f64::from(loss.slope.abs());
    }

    fn report(&self, epoch: usize, largest_slope: Option<f64>) -> EpochReport {
        EpochReport {
            epoch,
            loss: self.loss / self.n,
            cross_entropy: self.cross_entropy / self.n,
            delta_mean: self.delta / self.n,
            delta_max: self.delta_max,
            outlier_fraction: self.outliers / self.n,
            clip_saturation: largest_slope.map(|largest| self.slope / self.n / largest),
            ..EpochReport::default()
        }
    }
}

/// How well margins agree with the labels that `is_right` gives: true if the pair's order is right, nothing if the pair
/// does not count.
fn score<P>(data: &[&Preference<P>], margins: &[f32], is_right: impl Fn(&Preference<P>) -> Option<bool>) -> Score {
    let signed: Vec<f32> = data.iter().zip(margins).filter_map(|(p, &d)| is_right(p).map(|right| if right { d } else { -d })).collect();
    let sum: f64 = signed.iter().map(|&d| f64::from(log_one_plus_exp(-d))).sum();
    Score { accuracy: accuracy(&signed), cross_entropy: (!signed.is_empty()).then(|| sum / signed.len() as f64) }
}

impl Score {
    fn is_better(&self, other: &Self) -> bool {
        match (self.accuracy, other.accuracy) {
            (Some(a), Some(b)) if a == b => self.cross_entropy < other.cross_entropy,
            (a, b) => a > b,
        }
    }
}
