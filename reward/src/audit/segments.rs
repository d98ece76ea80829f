//! Audits of trajectory segments: read once, judged by networks that are fitted to the other folds.

use rayon::prelude::*;
use steadfast_envs::SeedTree;

use super::{Audit, AuditConfig, AuditedPair, PassReport};
use crate::dataset::{PreferenceFile, ReadReport, Row};
use crate::error::{Result, RewardError};
use crate::fit::{FitConfig, Selection, fit};
use crate::margin::{CrossEntropyConfig, LossConfig, MarginLoss};
use crate::model::{ActionKind, MlpReward, MlpRewardConfig, RewardModel, SegmentSpec};
use crate::preference::{SegmentPair, SegmentPreference};

/// Largest number of choices that actions are taken to have; with more, they are taken for numbers.
const MOST_CHOICES: usize = 64;

/// Reads pairs of segments and judges each by a network that has not seen it; `progress` is told how many passes of
/// learning are done, of `folds · epochs` (twice as many for the loss `filtered`).
///
/// Actions of one number each that are all whole and below 64 are taken for indices of choices.
///
/// # Errors
/// Those of the file and the fits; [`RewardError::Data`] for pairs of texts and for segments that cannot be compared;
/// [`RewardError::Config`] for fewer than two labelled pairs.
pub fn audit_segments(
    config: &AuditConfig,
    model: &MlpRewardConfig,
    file: &PreferenceFile,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Audit> {
    config.validate()?;
    let mut pairs: Vec<AuditedPair> = Vec::new();
    let mut preferences: Vec<SegmentPreference> = Vec::new();
    let report = file.scan(|line, row| {
        let Row::Segments(preference) = row else {
            return Err(RewardError::Data("this audit reads pairs of segments, not of texts".to_string()));
        };
        pairs.push(AuditedPair::new(&preference, line));
        preferences.push(preference);
        Ok(())
    })?;
    super::check_labelled(&pairs)?;
    let spec = spec_of(&preferences)?;
    spec.check_pairs(&preferences)?;

    let done = std::sync::atomic::AtomicUsize::new(0);
    let count = || progress(1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let job = Job { config, model, spec, preferences: &preferences, count: &count };
    // What `filtered` leaves out is decided by the margins out of fold; within a fit it is cross-entropy.
    let LossConfig::Filtered(drop) = config.loss else {
        return job.judge(pairs, report, &config.loss, &[]);
    };
    let loss = LossConfig::CrossEntropy(CrossEntropyConfig::default());
    let first = job.judge(pairs, report, &loss, &[])?;
    let left_out = first.lowest(drop.fraction);
    job.judge(first.pairs, first.report, &loss, &left_out)
}

/// What all folds have in common.
struct Job<'a> {
    config: &'a AuditConfig,
    model: &'a MlpRewardConfig,
    spec: SegmentSpec,
    preferences: &'a [SegmentPreference],
    count: &'a (dyn Fn() + Sync),
}

impl Job<'_> {
    /// Fits the networks of all folds and keeps the pass whose margins agree with most labels.
    fn judge(&self, mut pairs: Vec<AuditedPair>, report: ReadReport, loss: &LossConfig, left_out: &[bool]) -> Result<Audit> {
        let margin_loss: MarginLoss = loss.build()?;
        let folds: Vec<usize> = (0..pairs.len()).map(|row| self.config.fold(row)).collect();
        let judged: Vec<Result<FoldMargins>> =
            (0..self.config.folds).into_par_iter().map(|fold| self.fold(fold, &folds, loss, left_out)).collect();
        let judged: Vec<FoldMargins> = judged.into_iter().collect::<Result<_>>()?;

        let mut margins = vec![0.0; pairs.len()];
        let mut passes: Vec<PassReport> = Vec::new();
        let mut selected = 0;
        for pass in 1..=self.config.epochs {
            for fold in &judged {
                for (&row, &margin) in fold.rows.iter().zip(&fold.passes[pass - 1]) {
                    margins[row] = margin;
                }
            }
            let labelled = pairs.iter().zip(&margins).filter(|(pair, _)| !pair.equal).map(|(_, &margin)| margin);
            let pass_report = PassReport::new(pass, &labelled.collect::<Vec<f32>>(), &margin_loss);
            passes.push(pass_report);
            if selected == 0 || pass_report.accuracy > passes[selected - 1].accuracy {
                selected = pass;
                pairs.iter_mut().zip(&margins).for_each(|(pair, &margin)| pair.margin = margin);
            }
        }
        Ok(Audit::new(pairs, report, passes, selected, &margin_loss))
    }

    /// Fits one network to the other folds, pass by pass, and judges this one after each.
    fn fold(&self, fold: usize, folds: &[usize], loss: &LossConfig, left_out: &[bool]) -> Result<FoldMargins> {
        let config = self.config;
        let seeds = SeedTree::new(config.seed).child("audit/model").index(fold as u64);
        let mut model = MlpReward::new(self.model, self.spec, seeds.child("network"))?;
        let rows: Vec<usize> = (0..folds.len()).filter(|&row| folds[row] == fold).collect();
        let is_used = |row: &usize| (config.folds == 1 || folds[*row] != fold) && left_out.get(*row) != Some(&true);
        let train: Vec<SegmentPreference> = (0..folds.len()).filter(is_used).map(|row| self.preferences[row].clone()).collect();
        let own: Vec<&SegmentPair> = rows.iter().map(|&row| &self.preferences[row].pair).collect();
        let one_pass = FitConfig {
            epochs: 1,
            batch_size: config.batch_size,
            learning_rate: config.learning_rate,
            validation_fraction: 0.0,
            selection: Selection::Fixed,
        };
        let mut passes = Vec::with_capacity(config.epochs);
        for pass in 0..config.epochs {
            // A fit goes on from the parameters that the last one left.
            fit(&mut model, &train, &[], loss, &one_pass, seeds.child("pass").index(pass as u64), &mut |_| {})?;
            let mut margins = vec![0.0; own.len()];
            model.margins(&own, &mut margins)?;
            for (margin, &row) in margins.iter_mut().zip(&rows) {
                *margin -= self.preferences[row].margin.unwrap_or(0.0);
                if !margin.is_finite() {
                    let pair = self.preferences[row].id.clone();
                    return Err(RewardError::NonFinite { tensor: "margin", value: *margin, epoch: Some(pass + 1), pair });
                }
            }
            passes.push(margins);
            (self.count)();
        }
        Ok(FoldMargins { rows, passes })
    }
}

/// Margins of the pairs of one fold after each pass.
struct FoldMargins {
    rows: Vec<usize>,
    passes: Vec<Vec<f32>>,
}

/// The shape of the steps, told from the pairs themselves.
fn spec_of(preferences: &[SegmentPreference]) -> Result<SegmentSpec> {
    let segments = || preferences.iter().flat_map(|p| [&p.pair.chosen, &p.pair.rejected]);
    let Some(first) = segments().find(|s| s.steps > 0) else {
        return Err(RewardError::Data("no segment has a step".to_string()));
    };
    let width = |values: &[f32]| values.len() / first.steps;
    let is_choice = |&a: &f32| a >= 0.0 && a < MOST_CHOICES as f32 && a.fract() == 0.0;
    let action = if width(&first.actions) == 1 && segments().flat_map(|s| &s.actions).all(is_choice) {
        let most = segments().flat_map(|s| &s.actions).fold(0.0_f32, |most, &a| most.max(a));
        ActionKind::Discrete { n: most as usize + 1 }
    } else {
        ActionKind::Continuous { width: width(&first.actions) }
    };
    Ok(SegmentSpec { observation_width: width(&first.observations), action })
}
