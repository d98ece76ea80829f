//! Which labels are wrong? Margins of pairs by models that have not seen them.
//!
//! A model that was fitted to a wrong label has learned to agree with it. So the pairs are divided into folds, one model
//! per fold learns from all other folds, and a pair is judged by the model that never saw its label (cross-fitting). The
//! lower its margin `r(chosen) − r(rejected)`, the more likely its label is wrong.
//!
//! The pairs are streamed: every pass reads them again, [`PairEncoder`] turns them into a model's input in parallel, and
//! all models learn side by side, each in the order of the file. What is kept per pair does not depend on its length. The
//! models after a pass are judged during the next one, so that n passes of learning read the file n + 1 times; the pass
//! with the highest out-of-fold accuracy on the labels as given is the one that counts. Nothing depends on the number of
//! threads.

use std::sync::mpsc::{Receiver, sync_channel};

use rayon::prelude::*;
use serde::Serialize;
use steadfast_envs::SeedTree;

use crate::error::{Result, RewardError, require};
use crate::fit::Detection;
use crate::margin::{LossConfig, LossValue, MarginLoss, log_one_plus_exp, sigmoid};
use crate::metrics;
use crate::model::RewardModel;
use crate::preference::Preference;

/// Turns pairs into what a model learns from: hashed features, tokens. Called in parallel.
pub trait PairEncoder<P>: Sync {
    /// A model's input.
    type Encoded: Send + Sync;
    /// Memory that is used again, one per thread.
    type Buffers: Default + Send;

    /// The input of a pair.
    ///
    /// # Errors
    /// [`RewardError::Data`] if a model cannot use the pair.
    fn encode(&self, pair: &P, buffers: &mut Self::Buffers) -> Result<Self::Encoded>;
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

/// A preference with its place in the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row<P> {
    /// Line or row of the file, from 1.
    pub line: u64,
    /// The preference.
    pub preference: Preference<P>,
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

/// What came of an audit.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
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
    pub fn new(mut pairs: Vec<AuditedPair>, passes: Vec<PassReport>, selected_pass: usize, loss: &MarginLoss) -> Self {
        pairs.iter_mut().for_each(|p| p.outlier = if p.equal { 0.0 } else { loss.outlier(p.margin) });
        let judged = || pairs.iter().filter(|p| !p.equal);
        let flipped: Option<Vec<bool>> = judged().map(|p| p.flipped).collect();
        let margins: Vec<f32> = judged().map(|p| p.margin).collect();
        let deltas: Vec<f32> = judged().map(|p| p.outlier).collect();
        let detection = flipped.and_then(|flipped| metrics::detect(&margins, &deltas, &flipped));
        Self { pairs, passes, selected_pass, detection }
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

/// Where the rows come from: opens the source again for every pass.
pub type OpenSource<'a, P> = dyn Fn() -> Result<Box<dyn Iterator<Item = Result<Row<P>>> + 'a>> + Sync + 'a;

/// Streams the pairs and judges each by models that have not seen it; `progress` is told the pass (from 1) and the rows
/// that it has read.
///
/// `models` makes the model of a fold, from a seed.
///
/// # Errors
/// Those of the source, the encoder and the models; [`RewardError::Data`] for fewer than two labelled pairs or a source
/// that changes between passes.
pub fn cross_fit<P, E, M>(
    config: &AuditConfig,
    open: &OpenSource<'_, P>,
    encoder: &E,
    models: &mut dyn FnMut(u64) -> Result<M>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Audit>
where
    P: Send + Sync,
    E: PairEncoder<P>,
    M: RewardModel<E::Encoded>,
{
    config.validate()?;
    let mut run = Run::new(config, models)?;
    let mut audit = run.passes(open, encoder, progress)?;
    if let LossConfig::Filtered(drop) = config.loss {
        // The data-filtering baseline: once more, without the pairs that the first fit believes least.
        let ranking = audit.ranking();
        let n = (drop.fraction * ranking.len() as f64).round() as usize;
        let mut left_out = vec![false; audit.pairs.len()];
        ranking[..n.min(ranking.len())].iter().for_each(|&i| left_out[i] = true);
        run = Run::new(config, models)?;
        run.left_out = left_out;
        audit = run.passes(open, encoder, progress)?;
    }
    Ok(audit)
}

/// The models of all folds.
struct Run<'a, M> {
    config: &'a AuditConfig,
    loss: MarginLoss,
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

/// A row that was read and encoded.
struct Input<E> {
    row: usize,
    fold: usize,
    equal: bool,
    target: f32,
    encoded: E,
}

impl<'a, M> Run<'a, M> {
    fn new(config: &'a AuditConfig, models: &mut dyn FnMut(u64) -> Result<M>) -> Result<Self> {
        let seeds = SeedTree::new(config.seed).child("audit/model");
        let fold = |k: usize| {
            let seed = seeds.index(k as u64).seed();
            Ok(Fold { learner: models(seed)?, judge: models(seed)? })
        };
        Ok(Self { config, loss: config.loss.build()?, folds: (0..config.folds).map(fold).collect::<Result<_>>()?, left_out: Vec::new() })
    }

    /// Learns until the out-of-fold accuracy no longer rises, `epochs` times at most.
    fn passes<P, E>(&mut self, open: &OpenSource<'_, P>, encoder: &E, progress: &mut dyn FnMut(usize, usize)) -> Result<Audit>
    where
        P: Send + Sync,
        E: PairEncoder<P>,
        M: RewardModel<E::Encoded>,
    {
        let mut pairs: Vec<AuditedPair> = Vec::new();
        let mut margins: Vec<f32> = Vec::new();
        let mut reports: Vec<PassReport> = Vec::new();
        let mut selected = 0;
        for pass in 1..=self.config.epochs + 1 {
            let is_learning = pass <= self.config.epochs;
            self.pass(pass, is_learning, open, encoder, &mut pairs, &mut margins, progress)?;
            if pass == 1 {
                let n = pairs.iter().filter(|p| !p.equal).count();
                if n < 2 {
                    return Err(RewardError::Data(format!("an audit needs two labelled pairs at least, got {n}")));
                }
            } else {
                let report = self.report(pass - 1, &pairs, &margins);
                reports.push(report);
                if selected == 0 || report.accuracy > reports[selected - 1].accuracy {
                    selected = pass - 1;
                    pairs.iter_mut().zip(&margins).for_each(|(pair, &margin)| pair.margin = margin);
                }
                if pass - 1 >= selected + PATIENCE {
                    break;
                }
            }
            for fold in &mut self.folds {
                fold.judge.load_state(&fold.learner.state())?;
            }
        }
        Ok(Audit::new(pairs, reports, selected, &self.loss))
    }

    fn report(&self, pass: usize, pairs: &[AuditedPair], margins: &[f32]) -> PassReport {
        let judged = || pairs.iter().zip(margins).filter(|(pair, _)| !pair.equal).map(|(_, &margin)| margin);
        let n = judged().count().max(1) as f64;
        PassReport {
            pass,
            accuracy: metrics::accuracy(&judged().collect::<Vec<f32>>()).unwrap_or(0.0),
            cross_entropy: judged().map(|d| f64::from(log_one_plus_exp(-d))).sum::<f64>() / n,
            outlier_fraction: judged().filter(|&d| self.loss.outlier(d) > 0.0).count() as f64 / n,
        }
    }

    /// Reads everything once: the judges judge from the second pass on, the learners learn if `is_learning`.
    fn pass<P, E>(
        &mut self,
        pass: usize,
        is_learning: bool,
        open: &OpenSource<'_, P>,
        encoder: &E,
        pairs: &mut Vec<AuditedPair>,
        margins: &mut Vec<f32>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()>
    where
        P: Send + Sync,
        E: PairEncoder<P>,
        M: RewardModel<E::Encoded>,
    {
        let changed = || RewardError::Data("the preferences changed while they were read".to_string());
        let (sender, receiver) = sync_channel::<Result<Vec<Row<P>>>>(2);
        let config = self.config;
        let mut n_read = 0;
        std::thread::scope(|scope| {
            // Owned here, so that it goes away with a failure and the reader does not wait for ever.
            let receiver = receiver;
            scope.spawn(move || read_ahead(open, &sender));
            let mut next = |pairs: &mut Vec<AuditedPair>, margins: &mut Vec<f32>| -> Result<Option<Vec<(usize, Row<P>)>>> {
                let Some(rows) = receive(&receiver)? else { return Ok(None) };
                for (i, row) in rows.iter().enumerate() {
                    if pass == 1 {
                        pairs.push(audited(row));
                        margins.push(0.0);
                    } else if pairs.get(n_read + i).is_none_or(|p| p.line != row.line || *p.id != *row.preference.id) {
                        return Err(changed());
                    }
                }
                let numbered = rows.into_iter().enumerate().map(|(i, row)| (n_read + i, row)).collect::<Vec<_>>();
                n_read += numbered.len();
                Ok(Some(numbered))
            };
            let mut current: Vec<Input<E::Encoded>> = Vec::new();
            loop {
                let rows = next(pairs, margins)?;
                let is_last = rows.is_none();
                let encode = || encode(config, encoder, rows.unwrap_or_default());
                let learn = || self.chunk(&current, pass > 1, is_learning, pass);
                // The next chunk is encoded while the models learn from this one.
                let (encoded, judged) = rayon::join(encode, learn);
                for (row, margin) in judged? {
                    margins[row] = margin;
                }
                current = encoded?;
                progress(pass, current.last().map_or(pairs.len(), |input| input.row + 1));
                if is_last {
                    return if n_read == pairs.len() { Ok(()) } else { Err(changed()) };
                }
            }
        })
    }

    /// Judges and learns from one chunk, all folds in parallel. Returns the margins by row.
    fn chunk<E>(&mut self, chunk: &[Input<E>], is_judging: bool, is_learning: bool, pass: usize) -> Result<Vec<(usize, f32)>>
    where
        E: Send + Sync,
        M: RewardModel<E>,
    {
        let (loss, config, left_out) = (self.loss, self.config, &self.left_out);
        let is_alone = self.folds.len() == 1;
        let judged: Vec<Result<Vec<(usize, f32)>>> = self
            .folds
            .par_iter_mut()
            .enumerate()
            .map(|(k, fold)| {
                let Fold { learner, judge } = fold;
                let own = || chunk.iter().filter(|input| input.fold == k);
                let mut judged = || -> Result<Vec<(usize, f32)>> {
                    let inputs: Vec<&E> = own().map(|input| &input.encoded).collect();
                    let mut margins = vec![0.0; inputs.len()];
                    judge.margins(&inputs, &mut margins)?;
                    Ok(own().zip(margins).map(|(input, margin)| (input.row, margin - input.target)).collect())
                };
                let mut learned = || -> Result<()> {
                    let is_used = |input: &&Input<E>| (is_alone || input.fold != k) && left_out.get(input.row) != Some(&true);
                    let others: Vec<&Input<E>> = chunk.iter().filter(is_used).collect();
                    others.chunks(config.batch_size).try_for_each(|batch| step(learner, batch, &loss, config.learning_rate as f32))
                };
                let (judged, learned) = rayon::join(
                    || if is_judging { judged() } else { Ok(Vec::new()) },
                    || if is_learning { learned() } else { Ok(()) },
                );
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

fn audited<P>(row: &Row<P>) -> AuditedPair {
    let Row { line, preference } = row;
    AuditedPair {
        id: preference.id.as_str().into(),
        line: *line,
        margin: 0.0,
        outlier: 0.0,
        flipped: preference.truth.flipped,
        equal: preference.equal,
    }
}

/// Sends chunks of rows until the end, the first error, or nobody listens.
fn read_ahead<P>(open: &OpenSource<'_, P>, sender: &std::sync::mpsc::SyncSender<Result<Vec<Row<P>>>>) {
    let mut rows = match open() {
        Ok(rows) => rows,
        Err(error) => {
            // A receiver that is gone has failed already.
            let _ = sender.send(Err(error));
            return;
        }
    };
    loop {
        let chunk: Result<Vec<Row<P>>> = rows.by_ref().take(CHUNK).collect();
        let is_last = chunk.as_ref().map_or(true, |chunk| chunk.len() < CHUNK);
        let is_empty = chunk.as_ref().is_ok_and(Vec::is_empty);
        if is_empty || sender.send(chunk).is_err() || is_last {
            return;
        }
    }
}

fn receive<P>(receiver: &Receiver<Result<Vec<Row<P>>>>) -> Result<Option<Vec<Row<P>>>> {
    // The sender goes away at the end of the source.
    receiver.recv().map_or(Ok(None), |chunk| chunk.map(Some))
}

fn encode<P, E>(config: &AuditConfig, encoder: &E, rows: Vec<(usize, Row<P>)>) -> Result<Vec<Input<E::Encoded>>>
where
    P: Send + Sync,
    E: PairEncoder<P>,
{
    let encode = |buffers: &mut E::Buffers, (row, Row { preference, .. }): (usize, Row<P>)| {
        Ok(Input {
            row,
            fold: config.fold(row),
            equal: preference.equal,
            target: preference.margin.unwrap_or(0.0),
            encoded: encoder.encode(&preference.pair, buffers)?,
        })
    };
    rows.into_par_iter().with_min_len(16).map_init(E::Buffers::default, encode).collect()
}

fn step<E, M: RewardModel<E>>(model: &mut M, batch: &[&Input<E>], loss: &MarginLoss, learning_rate: f32) -> Result<()> {
    let inputs: Vec<&E> = batch.iter().map(|input| &input.encoded).collect();
    let equal: Vec<bool> = batch.iter().map(|input| input.equal).collect();
    let mut shifted = Vec::with_capacity(batch.len());
    let mut batch_loss = |margins: &[f32], out: &mut [LossValue]| {
        shifted.clear();
        shifted.extend(margins.iter().zip(batch).map(|(margin, input)| margin - input.target));
        loss.batch(&shifted, &equal, out);
    };
    model.step(&inputs, &mut batch_loss, learning_rate)
}
