//! Audits of texts: read in passes, never kept.
//!
//! Every pass reads the file again, [`TextEncoder`] turns the pairs into a model's input in parallel, and the models of all
//! folds learn side by side, each in the order of the file. What is kept per pair does not depend on its length. The models
//! after a pass are judged during the next one, so n passes of learning read the file n + 1 times. Nothing depends on the
//! number of threads.

use std::sync::mpsc::{SyncSender, sync_channel};

use rayon::prelude::*;
use steadfast_envs::SeedTree;

use super::{Audit, AuditConfig, AuditedPair, PassReport};
use crate::dataset::{Entry, PreferenceFile, ReadReport, Row, Tally};
use crate::error::{Result, RewardError};
use crate::margin::{LossConfig, LossValue, MarginLoss};
use crate::model::RewardModel;
use crate::preference::TextPair;

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

/// Pairs per chunk that is read, encoded and learned from as a whole.
const CHUNK: usize = 256;

/// Passes without a higher accuracy after which learning stops.
const PATIENCE: usize = 1;

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
        let mut run = Run::new(config, file, encoder, model)?;
        run.left_out = audit.lowest(drop.fraction);
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
                super::check_labelled(&kept.pairs)?;
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
        let encoded = encoded.map_err(|error| match error {
            RewardError::Data(reason) => RewardError::Row { path: self.file.path().to_path_buf(), line, reason },
            other => other,
        })?;
        Ok(Some(Input { row, fold: self.config.fold(row), equal: preference.equal, target, encoded }))
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
                Err(RewardError::NonFinite { tensor: "margin", value, epoch: Some(pass - 1), pair: format!("row {}", row + 1) })
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
