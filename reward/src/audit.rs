//! Which labels are wrong? Margins of pairs by models that have not seen them.
//!
//! A model that was fitted to a wrong label has learned to agree with it. So the pairs are divided into folds, one model
//! per fold learns from all other folds, and a pair is judged by the model that never saw its label (cross-fitting). The
//! lower its margin `r(chosen) − r(rejected)`, the more likely its label is wrong.
//!
//! The pairs are streamed: every pass reads them again, [`TextEncoder`] turns them into a model's input in parallel, and
//! all models learn side by side, each in the order of the file. What is kept per pair does not depend on its length. The
//! models after a pass are judged during the next one, so that n passes of learning read the file n + 1 times; the pass
//! with the highest out-of-fold accuracy on the labels as given is the one that counts. Nothing depends on the number of
//! threads.

use std::sync::mpsc::{SyncSender, sync_channel};

use rayon::prelude::*;
use serde::Serialize;
use steadfast_envs::SeedTree;

use crate::dataset::{Entry, PreferenceFile, ReadReport, Row, Tally};
use crate::error::{Result, RewardError, require};
use crate::fit::Detection;
use crate::margin::{LossConfig, LossValue, MarginLoss, log_one_plus_exp, sigmoid};
use crate::metrics;
use crate::model::RewardModel;
use crate::preference::{Preference, TextPair};

/// Turns pairs of texts into what a model learns from: hashed features, tokens. Called in parallel.
pub trait TextEncoder: Sync {
    /// A model's input.
    type Encoded: Send + Sync;
    /// Memory that is used again, one per thread.
    type Buffers: Default + Send;

    /// The input of a pair.
    ///
    /// # Errors
    /// [`RewardError::Data`] if a model cannot use the pair.
    fn encode(&self, pair: &TextPair, buffers: &mut Self::Buffers) -> Result<Self::Encoded>;
}

/// Settings of an audit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditConfig {
    /// Number of folds. With 1 the model judges what it has seen, which hides wrong labels.
    pub folds: usize,
    /// Most passes of learning, at least 1.
    pub epochs: usize,
    /// Pairs per step, at least 1.
    pub batch_size: usize,
    /// Step size, above 0.
    pub learning_rate: f64,
    /// Loss of a margin.
    pub loss: LossConfig,
    /// Seed of folds and models.
    pub seed: u64,
}

impl AuditConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`RewardError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        require((1..=100).contains(&self.folds), "folds", "between 1 and 100", self.folds)?;
        require((1..=100_000).contains(&self.epochs), "epochs", "between 1 and 100000", self.epochs)?;
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)?;
        let rate = self.learning_rate;
        require(rate > 0.0 && rate.is_finite(), "learning_rate", "a finite number above 0", rate)?;
        self.loss.build().map(|_| ())
    }

    /// The fold of a row: fixed by the seed and the position in the file alone.
    pub fn fold(&self, row: usize) -> usize {
        if self.folds == 1 {
            return 0;
        }
        SeedTree::new(self.seed).child("audit/fold").index(row as u64).rng().below(self.folds)
    }
}

/// A pair as the audit sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditedPair {
    /// Identifier.
    pub id: Box<str>,
    /// Line or row of the file, from 1.
    pub line: u64,
    /// Margin under the model that judges the pair, less the margin that the file asks for.
    pub margin: f32,
    /// Outlier value δ; 0 for losses that have none.
    pub outlier: f32,
    /// Whether the label is wrong, if that is known.
    pub flipped: Option<bool>,
    /// True if the annotator found both equally good, so that there is no label that could be wrong.
    pub equal: bool,
}

impl AuditedPair {
    /// A pair that is still to be judged.
    pub fn new<P>(preference: &Preference<P>, line: u64) -> Self {
        let (flipped, equal) = (preference.truth.flipped, preference.equal);
        Self { id: preference.id.as_str().into(), line, margin: 0.0, outlier: 0.0, flipped, equal }
    }

    /// Probability under Bradley and Terry's model that an annotator prefers the rejected one: σ(−margin).
    pub fn suspicion(&self) -> f32 {
        sigmoid(-self.margin)
    }
}

/// The models after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PassReport {
    /// Number of the pass, from 1.
    pub pass: usize,
    /// Share of pairs that are judged as labelled.
    pub accuracy: f64,
    /// Mean cross-entropy of the same margins.
    pub cross_entropy: f64,
    /// Share of pairs with δ > 0.
    pub outlier_fraction: f64,
}

impl PassReport {
    /// What the margins of all labelled pairs say.
    pub fn new(pass: usize, margins: &[f32], loss: &MarginLoss) -> Self {
        let n = margins.len().max(1) as f64;
        Self {
            pass,
            accuracy: metrics::accuracy(margins).unwrap_or(0.0),
            cross_entropy: margins.iter().map(|&d| f64::from(log_one_plus_exp(-d))).sum::<f64>() / n,
            outlier_fraction: margins.iter().filter(|&&d| loss.outlier(d) > 0.0).count() as f64 / n,
        }
    }
}

/// What came of an audit.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// What was found in the file.
    pub report: ReadReport,
    /// All pairs in the order of the file.
    pub pairs: Vec<AuditedPair>,
    /// The passes.
    pub passes: Vec<PassReport>,
    /// The pass that counts, from 1.
    pub selected_pass: usize,
    /// How well low margins point to wrong labels; nothing if the truth is not known for all pairs or all are alike.
    pub detection: Option<Detection>,
}

impl Audit {
    /// The audit of pairs whose margins are known.
    pub fn new(mut pairs: Vec<AuditedPair>, report: ReadReport, passes: Vec<PassReport>, selected_pass: usize, loss: &MarginLoss) -> Self {
        pairs.iter_mut().for_each(|p| p.outlier = if p.equal { 0.0 } else { loss.outlier(p.margin) });
        let judged = || pairs.iter().filter(|p| !p.equal);
        let flipped: Option<Vec<bool>> = judged().map(|p| p.flipped).collect();
        let margins: Vec<f32> = judged().map(|p| p.margin).collect();
        let deltas: Vec<f32> = judged().map(|p| p.outlier).collect();
        let detection = flipped.and_then(|flipped| metrics::detect(&margins, &deltas, &flipped));
        Self { report, pairs, passes, selected_pass, detection }
    }

    /// Positions of the labelled pairs, the most suspicious first; ties stay in the order of the file.
    pub fn ranking(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.pairs.len()).filter(|&i| !self.pairs[i].equal).collect();
        order.sort_by(|&a, &b| self.pairs[a].margin.total_cmp(&self.pairs[b].margin).then(a.cmp(&b)));
        order
    }

    /// Chance that coin tosses agree with as many labels as the selected pass, by the binomial law and multiplied by the
    /// number of passes that it was selected from (Bonferroni); at most 1.
    pub fn chance(&self) -> f64 {
        let n = self.pairs.iter().filter(|p| !p.equal).count();
        let accuracy = self.passes.get(self.selected_pass.wrapping_sub(1)).map_or(0.0, |p| p.accuracy);
        (self.passes.len() as f64 * upper_tail(n, (accuracy * n as f64).ceil() as usize)).min(1.0)
    }
}

/// Probability of at least `k` heads in `n` tosses of a coin.
fn upper_tail(n: usize, k: usize) -> f64 {
    // ln C(n, i) / 2^n, from i = 0 upwards.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for i in 0..=n {
        if i >= k {
            sum += log_term.exp();
        }
        log_term += ((n - i) as f64).ln() - ((i + 1) as f64).ln();
    }
    sum.min(1.0)
}

/// Pairs per chunk that is read, encoded and learned from as a whole.
const CHUNK: usize = 256;

/// Passes without a higher accuracy after which learning stops.
const PATIENCE: usize = 2;

/// Streams the pairs of texts of a file and judges each by a model that has not seen it; `progress` is told the pass (from
/// 1) and the rows that it has read.
///
/// `model` makes an untrained model from a seed.
///
/// # Errors
/// Those of the file, the encoder and the models; [`RewardError::Data`] for pairs of segments, for fewer than two labelled
/// pairs, and for a file that changes between passes.
pub fn audit_texts<E, M>(
    config: &AuditConfig,
    file: &PreferenceFile,
    encoder: &E,
    model: &mut dyn FnMut(u64) -> Result<M>,
    progress: &mut dyn FnMut(usize, u64),
) -> Result<Audit>
where
    E: TextEncoder,
    M: RewardModel<E::Encoded>,
{
    config.validate()?;
    let mut audit = Run::new(config, file, encoder, model)?.passes(progress)?;
    if let LossConfig::Filtered(drop) = config.loss {
        // The data-filtering baseline: once more, without the pairs that the first fit believes least.
        let ranking = audit.ranking();
        let n = (drop.fraction * ranking.len() as f64).round() as usize;
        let mut run = Run::new(config, file, encoder, model)?;
        run.left_out = vec![false; audit.pairs.len()];
        ranking[..n.min(ranking.len())].iter().for_each(|&i| run.left_out[i] = true);
        audit = run.passes(progress)?;
    }
    Ok(audit)
}

/// The models of all folds, and what they learn from.
struct Run<'a, E, M> {
    config: &'a AuditConfig,
    loss: MarginLoss,
    file: &'a PreferenceFile,
    encoder: &'a E,
    folds: Vec<Fold<M>>,
    /// Rows that nothing is learned from; empty if there are none.
    left_out: Vec<bool>,
}

/// The model that judges one fold.
struct Fold<M> {
    /// Learns from the other folds.
    learner: M,
    /// As the learner was at the end of the last pass.
    judge: M,
}

/// A row as it is read, before it is parsed.
enum Unparsed {
    /// A line of a JSONL file with its number.
    Line(u64, Vec<u8>),
    /// A row of another format, which is parsed while it is read.
    Entry(Box<Entry>),
}

/// A row that was read and encoded.
struct Input<T> {
    row: usize,
    fold: usize,
    equal: bool,
    target: f32,
    encoded: T,
}

/// What is kept of the passes.
#[derive(Default)]
struct Progress {
    report: ReadReport,
    pairs: Vec<AuditedPair>,
    /// Margins of the present pass.
    margins: Vec<f32>,
}

impl<'a, E, M> Run<'a, E, M>
where
    E: TextEncoder,
    M: RewardModel<E::Encoded>,
{
    fn new(config: &'a AuditConfig, file: &'a PreferenceFile, encoder: &'a E, model: &mut dyn FnMut(u64) -> Result<M>) -> Result<Self> {
        let seeds = SeedTree::new(config.seed).child("audit/model");
        let mut fold = |k: usize| {
            let seed = seeds.index(k as u64).seed();
            Ok(Fold { learner: model(seed)?, judge: model(seed)? })
        };
        let folds = (0..config.folds).map(&mut fold).collect::<Result<_>>()?;
        Ok(Self { config, loss: config.loss.build()?, file, encoder, folds, left_out: Vec::new() })
    }

    /// Learns until the out-of-fold accuracy no longer rises, `epochs` times at most.
    fn passes(&mut self, progress: &mut dyn FnMut(usize, u64)) -> Result<Audit> {
        let mut kept = Progress::default();
        let mut reports: Vec<PassReport> = Vec::new();
        let mut selected = 0;
        for pass in 1..=self.config.epochs + 1 {
            self.pass(pass, &mut kept, progress)?;
            if pass == 1 {
                let n = kept.pairs.iter().filter(|p| !p.equal).count();
                if n < 2 {
                    return Err(RewardError::Data(format!("an audit needs at least 2 labelled pairs, got {n}")));
                }
            } else {
                let report = self.report(pass - 1, &kept);
                reports.push(report);
                if selected == 0 || report.accuracy > reports[selected - 1].accuracy {
                    selected = pass - 1;
                    kept.pairs.iter_mut().zip(&kept.margins).for_each(|(pair, &margin)| pair.margin = margin);
                }
                if pass > selected + PATIENCE {
                    break;
                }
            }
            for fold in &mut self.folds {
                fold.judge.load_state(&fold.learner.state())?;
            }
        }
        Ok(Audit::new(kept.pairs, kept.report, reports, selected, &self.loss))
    }

    fn report(&self, pass: usize, kept: &Progress) -> PassReport {
        let labelled = kept.pairs.iter().zip(&kept.margins).filter(|(pair, _)| !pair.equal);
        PassReport::new(pass, &labelled.map(|(_, &margin)| margin).collect::<Vec<f32>>(), &self.loss)
    }

    /// Reads everything once: the judges judge from the second pass on, the learners learn in all but the last.
    fn pass(&mut self, pass: usize, kept: &mut Progress, progress: &mut dyn FnMut(usize, u64)) -> Result<()> {
        let (sender, receiver) = sync_channel(2);
        let (file, encoder) = (self.file, self.encoder);
        std::thread::scope(|scope| {
            // Owned here, so that it goes away with a failure and the reader does not wait for ever.
            let receiver = receiver;
            scope.spawn(move || read_ahead(file, &sender));
            let mut tally = Tally::new(file);
            let mut n_rows = 0;
            let mut current: Vec<Input<E::Encoded>> = Vec::new();
            loop {
                // The sender goes away at the end of the file.
                let chunk: Option<Vec<Result<Unparsed>>> = receiver.recv().ok();
                let is_last = chunk.is_none();
                let parse = || parse_and_encode(file, encoder, chunk.unwrap_or_default());
                let learn = || self.chunk(pass, &current);
                // The next chunk is parsed while the models learn from this one.
                let (parsed, judged) = rayon::join(parse, learn);
                for (row, margin) in judged? {
                    kept.margins[row] = margin;
                }
                current.clear();
                for (entry, encoded) in parsed {
                    let Some(input) = self.admit(pass, n_rows, &mut tally, entry, encoded, kept)? else { continue };
                    current.push(input);
                    n_rows += 1;
                }
                progress(pass, tally.report().rows);
                if is_last {
                    kept.report = tally.finish()?;
                    return if n_rows == kept.pairs.len() { Ok(()) } else { Err(changed()) };
                }
            }
        })
    }

    /// Takes a row in its place: the first pass notes what it is, later ones check that it is still there.
    fn admit(
        &self,
        pass: usize,
        row: usize,
        tally: &mut Tally,
        entry: Result<Entry>,
        encoded: Option<Result<E::Encoded>>,
        kept: &mut Progress,
    ) -> Result<Option<Input<E::Encoded>>> {
        let Some((line, preference)) = tally.admit(entry)? else { return Ok(None) };
        let (Row::Texts(preference), Some(encoded)) = (preference, encoded) else {
            return Err(RewardError::Data("this audit reads pairs of texts, not of segments".to_string()));
        };
        if pass == 1 {
            kept.pairs.push(AuditedPair::new(&preference, line));
            kept.margins.push(0.0);
        } else if kept.pairs.get(row).is_none_or(|pair| pair.line != line || *pair.id != *preference.id) {
            return Err(changed());
        }
        let target = preference.margin.unwrap_or(0.0);
        Ok(Some(Input { row, fold: self.config.fold(row), equal: preference.equal, target, encoded: encoded? }))
    }

    /// Judges and learns from one chunk, all folds in parallel. Returns margins by row.
    fn chunk(&mut self, pass: usize, chunk: &[Input<E::Encoded>]) -> Result<Vec<(usize, f32)>> {
        let (loss, config, left_out) = (self.loss, self.config, &self.left_out);
        let is_alone = self.folds.len() == 1;
        let judged: Vec<Result<Vec<(usize, f32)>>> = self
            .folds
            .par_iter_mut()
            .enumerate()
            .map(|(k, fold)| {
                let Fold { learner, judge } = fold;
                let mut judged = || {
                    let own: Vec<&Input<E::Encoded>> = chunk.iter().filter(|input| pass > 1 && input.fold == k).collect();
                    let mut margins = vec![0.0; own.len()];
                    judge.margins(&own.iter().map(|input| &input.encoded).collect::<Vec<_>>(), &mut margins)?;
                    Ok(own.iter().zip(margins).map(|(input, margin)| (input.row, margin - input.target)).collect())
                };
                let mut learned = || {
                    let is_used = |input: &&Input<E::Encoded>| (is_alone || input.fold != k) && left_out.get(input.row) != Some(&true);
                    let others: Vec<&Input<E::Encoded>> = chunk.iter().filter(|_| pass <= config.epochs).filter(is_used).collect();
                    others.chunks(config.batch_size).try_for_each(|batch| step(learner, batch, &loss, config.learning_rate as f32))
                };
                let (judged, learned) = rayon::join(&mut judged, &mut learned);
                learned.and(judged)
            })
            .collect();
        let mut all = Vec::with_capacity(chunk.len());
        for judged in judged {
            all.extend(judged?);
        }
        match all.iter().find(|(_, margin)| !margin.is_finite()) {
            Some(&(row, value)) => {
                Err(RewardError::NonFinite { tensor: "margin", value, epoch: pass - 1, pair: format!("row {}", row + 1) })
            }
            None => Ok(all),
        }
    }
}

fn changed() -> RewardError {
    RewardError::Data("the preferences changed while they were read; leave the file alone until the audit is done".to_string())
}

/// Sends chunks of rows until the file ends, cannot be read any further, or nobody listens.
fn read_ahead(file: &PreferenceFile, sender: &SyncSender<Vec<Result<Unparsed>>>) {
    type Source = Box<dyn Iterator<Item = Result<Unparsed>>>;
    let open = || -> Result<Source> {
        Ok(match file.lines()? {
            Some(lines) => Box::new(lines.map(|line| line.map(|(number, bytes)| Unparsed::Line(number, bytes)))),
            None => Box::new(file.entries()?.map(|entry| entry.map(|entry| Unparsed::Entry(Box::new(entry))))),
        })
    };
    let mut rows = open().unwrap_or_else(|error| Box::new(std::iter::once(Err(error))));
    loop {
        let chunk: Vec<Result<Unparsed>> = rows.by_ref().take(CHUNK).collect();
        if chunk.is_empty() || sender.send(chunk).is_err() {
            return;
        }
    }
}

/// A parsed row with its encoded pair; nothing is encoded of a row that cannot be used.
type Parsed<T> = (Result<Entry>, Option<Result<T>>);

fn parse_and_encode<E: TextEncoder>(file: &PreferenceFile, encoder: &E, chunk: Vec<Result<Unparsed>>) -> Vec<Parsed<E::Encoded>> {
    let parse = |buffers: &mut E::Buffers, unparsed: Result<Unparsed>| {
        let entry = unparsed.and_then(|unparsed| match unparsed {
            Unparsed::Line(number, bytes) => file.parse_line(number, &bytes),
            Unparsed::Entry(entry) => Ok(*entry),
        });
        let encoded = match &entry {
            Ok(Entry { row: Row::Texts(preference), .. }) => Some(encoder.encode(&preference.pair, buffers)),
            _ => None,
        };
        (entry, encoded)
    };
    // Each piece allocates buffers of its own: not too many, and enough for many threads.
    chunk.into_par_iter().with_min_len(CHUNK / 32).map_init(E::Buffers::default, parse).collect()
}

fn step<T, M: RewardModel<T>>(model: &mut M, batch: &[&Input<T>], loss: &MarginLoss, learning_rate: f32) -> Result<()> {
    let inputs: Vec<&T> = batch.iter().map(|input| &input.encoded).collect();
    let equal: Vec<bool> = batch.iter().map(|input| input.equal).collect();
    let mut batch_loss = |margins: &[f32], out: &mut [LossValue]| {
        let shifted: Vec<f32> = margins.iter().zip(batch).map(|(margin, input)| margin - input.target).collect();
        loss.batch(&shifted, &equal, out);
    };
    model.step(&inputs, &mut batch_loss, learning_rate)
}
