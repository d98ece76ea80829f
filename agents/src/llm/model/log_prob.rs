//! What a decoder says of token sequences, and the gradients of losses of that.
//!
//! Sequences are packed one behind the other; nothing is padded, so what stands beside a sequence in a batch cannot change
//! what is said of it. The backbone runs on a tape ([`super::forward`]); the head does not: it is visited group by group, with
//! one buffer of logits, and its gradient enters the tape at the last hidden states.

use std::rc::Rc;

use candle_core::{DType, Device, Tensor};

use super::forward::{Forward, Packed, States, Steering};
use super::parameters::Values;
use super::rows::{Rows, pieces};
use super::weights::{Names, SCORE};
use super::{Decoder, Positions};
use crate::AgentError;
use crate::llm::ops::dot;
use crate::llm::ops::head::{statistics, statistics_plain};
use crate::llm::ops::tape::{Buffer, read};
use crate::llm::sequence::{TokenSequence, TokenStatistics};

/// Loss of one group of sequences (a pair, or a single one): gets the group's index and the statistics of its completions,
/// writes the derivative of the loss by each log-probability into `slopes[sequence][token]` (zeroed before).
pub type LogProbLoss<'a> = dyn FnMut(usize, &[TokenStatistics], &mut [Vec<f32>]) -> Result<(), AgentError> + 'a;
/// The same for scores of the scalar head: `scores[sequence][position]`.
pub type ScoreLoss<'a> = dyn FnMut(usize, &[Vec<f32>], &mut [Vec<f32>]) -> Result<(), AgentError> + 'a;

/// Where the scalar head is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScorePositions {
    /// At the last token of each sequence: one score (reward models).
    Last,
    /// At the token before each completion token: one value per completion token (critics).
    BeforeCompletion,
}

impl Decoder {
    /// Name of the matrix that gives logits.
    fn head_name(&self) -> String {
        let names = Names::of(self.config.family);
        if self.config.tie_embeddings { names.embedding() } else { names.head.to_string() }
    }

    /// Logits at every position of one sequence, `[token, vocab]`, on the device: for tests and parity.
    ///
    /// # Errors
    /// [`AgentError::Model`] for tokens that do not fit; [`AgentError::Tensor`] if the device fails.
    pub fn logits(&self, tokens: &[u32]) -> Result<Tensor, AgentError> {
        self.logits_steered(tokens, &Steering::default())
    }

    /// The same with other spans, or with a bias on chosen keys.
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    pub fn logits_steered(&self, tokens: &[u32], steering: &Steering) -> Result<Tensor, AgentError> {
        let packed = Packed::new(&[tokens], &self.config)?;
        let forward = Forward::new(self, packed, steering, false)?;
        let hidden = forward.hidden(&forward.embed()?)?;
        let shape = vec![self.config.vocab_size, self.config.hidden_size];
        let weight = match &self.named(&self.head_name())?.values {
            Values::Host { value, .. } => Tensor::from_slice(value, shape, &self.device)?,
            Values::Device { compute, .. } => compute.as_tensor().detach(),
        };
        let hidden = match hidden {
            States::Plain(hidden) => hidden,
            States::Fused(hidden) => Tensor::from_slice(hidden.values(), (tokens.len(), hidden.width()), &self.device)?,
        };
        Ok(hidden.matmul(&weight.t()?)?.to_dtype(DType::F32)?)
    }

    /// Log-probabilities of completions without gradient, one entry per sequence.
    ///
    /// # Errors
    /// [`AgentError::Model`] naming the sequence that does not fit the model; [`AgentError::Tensor`] if the device fails.
    pub fn log_probs(&self, sequences: &[&TokenSequence], temperature: f32) -> Result<Vec<TokenStatistics>, AgentError> {
        self.log_probs_steered(sequences, temperature, &Steering::default())
    }

    /// The same with other spans, or with a bias on chosen keys (marks run over all tokens of all sequences).
    ///
    /// # Errors
    /// As [`Decoder::log_probs`].
    pub fn log_probs_steered(
        &self,
        sequences: &[&TokenSequence],
        temperature: f32,
        steering: &Steering,
    ) -> Result<Vec<TokenStatistics>, AgentError> {
        let mut all = Vec::with_capacity(sequences.len());
        for (first_token, sequences) in pieces(sequences) {
            let rows = Rows::of_completions(sequences)?;
            let packed = Packed::of(sequences, &self.config)?;
            let forward = Forward::new(self, packed, &steering.starting_at(first_token), false)?;
            let hidden = forward.hidden(&forward.embed()?)?;
            let name = self.head_name();
            let mut buffer = Vec::new();
            for (sequence, rows) in sequences.iter().zip(&rows) {
                all.push(match &hidden {
                    States::Plain(hidden) => {
                        let weight = forward.tensor(&name)?;
                        statistics_plain(&rows.pick(hidden)?, &weight.detach(), sequence.completion(), temperature)?.0
                    }
                    States::Fused(hidden) => {
                        let weight = self.named(&name)?.weight()?;
                        let picked = rows.gather(hidden.values(), self.config.hidden_size);
                        let (found, rest) = statistics(&picked, &weight.value, sequence.completion(), temperature, buffer);
                        buffer = rest.into_buffer();
                        found
                    }
                });
            }
        }
        Ok(all)
    }

    /// Forward and backward of one micro-batch; gradients are added to those that are there. The head is visited group by
    /// group, so that logits of one group at most exist at a time.
    ///
    /// # Errors
    /// As [`Decoder::log_probs`]; or what `loss` says. Gradients are then incomplete: [`Decoder::clear_gradients`].
    pub fn accumulate_log_probs(
        &mut self,
        groups: &[Vec<&TokenSequence>],
        temperature: f32,
        loss: &mut LogProbLoss<'_>,
    ) -> Result<(), AgentError> {
        let sequences: Vec<&TokenSequence> = groups.iter().flatten().copied().collect();
        let rows = Rows::of_completions(&sequences)?;
        let packed = Packed::of(&sequences, &self.config)?;
        let width = self.config.hidden_size;
        let name = self.head_name();
        let forward = Forward::new(self, packed, &Steering::default(), true)?;
        let embedded = forward.embed()?;
        let hidden = forward.hidden(&embedded)?;
        // Rows, targets and lengths of a group, then its slopes from its statistics.
        let mut first = 0;
        let of_group = |group: &[&TokenSequence]| {
            let group_rows = Rows::join(&rows[first..first + group.len()]);
            first += group.len();
            let targets: Vec<u32> = group.iter().flat_map(|s| s.completion()).copied().collect();
            (group_rows, targets)
        };
        let mut answer = |g: usize, joined: &TokenStatistics| {
            let lengths: Vec<usize> = groups[g].iter().map(|s| s.completion().len()).collect();
            let statistics = split(joined, &lengths);
            let mut slopes: Vec<Vec<f32>> = lengths.iter().map(|&n| vec![0.0; n]).collect();
            loss(g, &statistics, &mut slopes)?;
            Ok::<_, AgentError>(slopes.concat())
        };
        let parts = groups.iter().map(|group| group.as_slice()).map(of_group);
        let (grad, head_grad) = match &hidden {
            States::Plain(hidden) => {
                let weight = forward.tensor(&name)?.detach();
                let mut grad = hidden.detach().zeros_like()?;
                let mut head_grad: Option<Tensor> = None;
                for (g, (rows, targets)) in parts.enumerate() {
                    let picked = rows.pick(&hidden.detach())?;
                    let (found, rest) = statistics_plain(&picked, &weight, &targets, temperature)?;
                    let (of_rows, of_weight) = rest.backward(&picked, &weight, &answer(g, &found)?, temperature)?;
                    grad = grad.index_add(&rows.tensor(&self.device)?, &of_rows, 0)?;
                    head_grad = Some(match head_grad {
                        Some(sum) => (sum + of_weight)?,
                        None => of_weight,
                    });
                }
                (HiddenGradient::Plain(grad), head_grad)
            }
            States::Fused(hidden) => {
                let weight = self.named(&name)?.weight()?;
                let mut grad = forward.buffer(hidden.values().len());
                grad.fill(0.0);
                let mut buffer = Vec::new();
                for (g, (rows, targets)) in parts.enumerate() {
                    let picked = rows.gather(hidden.values(), width);
                    let (found, rest) = statistics(&picked, &weight.value, &targets, temperature, buffer);
                    let (of_rows, rest) = rest.backward(&picked, &weight, &targets, &answer(g, &found)?, temperature);
                    buffer = rest;
                    rows.scatter(&of_rows, width, &mut grad);
                }
                (HiddenGradient::Fused(grad), None)
            }
        };
        let mut found = go_back(forward, &embedded, &hidden, grad)?;
        found.named.extend(head_grad.map(|grad| (name, grad)));
        self.add_gradients(found)
    }

    /// Scores of the scalar head without gradient, `[sequence][position]`.
    ///
    /// # Errors
    /// As [`Decoder::log_probs`]; [`AgentError::State`] if there is no scalar head.
    pub fn scores(&self, sequences: &[&TokenSequence], positions: ScorePositions) -> Result<Vec<Vec<f32>>, AgentError> {
        let weight = self.named(SCORE)?.to_vec()?;
        let mut all = Vec::with_capacity(sequences.len());
        for (_, sequences) in pieces(sequences) {
            let rows = Rows::of_scores(sequences, positions)?;
            let forward = Forward::new(self, Packed::of(sequences, &self.config)?, &Steering::default(), false)?;
            let hidden = forward.hidden(&forward.embed()?)?;
            let score = |hidden: &[f32], rows: &Rows| {
                rows.gather(hidden, weight.len()).chunks_exact(weight.len()).map(|h| dot(h, &weight)).collect()
            };
            all.extend(hidden.read(|hidden| rows.iter().map(|rows| score(hidden, rows)).collect::<Vec<Vec<f32>>>())?);
        }
        Ok(all)
    }

    /// As [`Decoder::accumulate_log_probs`], for scores.
    ///
    /// # Errors
    /// As there; [`AgentError::State`] if there is no scalar head.
    pub fn accumulate_scores(
        &mut self,
        groups: &[Vec<&TokenSequence>],
        positions: ScorePositions,
        loss: &mut ScoreLoss<'_>,
    ) -> Result<(), AgentError> {
        let weight = self.named(SCORE)?.to_vec()?;
        let width = weight.len();
        let sequences: Vec<&TokenSequence> = groups.iter().flatten().copied().collect();
        let rows = Rows::of_scores(&sequences, positions)?;
        let forward = Forward::new(self, Packed::of(&sequences, &self.config)?, &Steering::default(), true)?;
        let embedded = forward.embed()?;
        let hidden = forward.hidden(&embedded)?;
        let all_picked: Vec<Vec<f32>> = hidden.read(|h| rows.iter().map(|r| r.gather(h, width)).collect())?;
        let n_tokens: usize = sequences.iter().map(|s| s.tokens.len()).sum();
        let (mut grad, mut weight_grad) = (forward.buffer(n_tokens * width), vec![0.0_f32; width]);
        grad.fill(0.0);
        let mut first = 0;
        for (g, group) in groups.iter().enumerate() {
            let (rows, picked) = (&rows[first..first + group.len()], &all_picked[first..first + group.len()]);
            first += group.len();
            let scores: Vec<Vec<f32>> = picked.iter().map(|p| p.chunks_exact(width).map(|h| dot(h, &weight)).collect()).collect();
            let mut slopes: Vec<Vec<f32>> = scores.iter().map(|s| vec![0.0; s.len()]).collect();
            loss(g, &scores, &mut slopes)?;
            for ((rows, picked), slopes) in rows.iter().zip(picked).zip(&slopes) {
                for ((&row, hidden), &slope) in rows.0.iter().zip(picked.chunks_exact(width)).zip(slopes) {
                    let grad = &mut grad[row as usize * width..][..width];
                    for i in 0..width {
                        grad[i] += slope * weight[i];
                        weight_grad[i] += slope * hidden[i];
                    }
                }
            }
        }
        let grad = match &hidden {
            States::Plain(hidden) => {
                let grad = Tensor::from_slice(&grad, hidden.dims(), &Device::Cpu)?.to_device(&self.device)?.to_dtype(hidden.dtype())?;
                HiddenGradient::Plain(grad)
            }
            States::Fused(_) => HiddenGradient::Fused(grad),
        };
        let found = go_back(forward, &embedded, &hidden, grad)?;
        self.add_gradients(found)?;
        let i = self.index(SCORE)?;
        let weight_grad = Tensor::from_vec(weight_grad, (1, width), &Device::Cpu)?.to_device(&self.device)?;
        self.parameters[i].add_gradient(&weight_grad)
    }

    /// Adds what a pass found, besides what fused operations added on their way.
    fn add_gradients(&mut self, found: Found) -> Result<(), AgentError> {
        for (name, grad) in found.named {
            let i = self.index(&name)?;
            self.parameters[i].add_gradient(&grad)?;
        }
        let names = Names::of(self.config.family);
        self.add_rows(&names.embedding(), &found.packed.tokens, &found.embedded)?;
        if matches!(self.config.positions, Positions::Learned) {
            let table = format!("{}{}.weight", names.backbone, names.positions);
            self.add_rows(&table, &found.packed.positions(), &found.embedded)?;
        }
        Ok(())
    }

    /// Adds rows of a gradient to the rows of a table that they were read from.
    fn add_rows(&mut self, name: &str, rows: &[u32], grad: &Embedded) -> Result<(), AgentError> {
        let i = self.index(name)?;
        let shape = self.parameters[i].spec.shape.clone();
        match (&self.parameters[i].values, grad) {
            (Values::Device { gradient, .. }, Embedded::Plain(grad)) => {
                let sums = match gradient {
                    Some(sums) => sums.clone(),
                    None => Tensor::zeros(shape, DType::F32, &self.device)?,
                };
                let ids = Tensor::from_slice(rows, rows.len(), &self.device)?;
                let added = sums.zeros_like()?.index_add(&ids, &grad.to_dtype(DType::F32)?, 0)?;
                self.parameters[i].add_gradient(&added)
            }
            (_, grad) => {
                let weight = self.parameters[i].weight()?;
                let add = |grad: &[f32]| {
                    if let Some(mut sums) = weight.sums() {
                        for (&row, grad) in rows.iter().zip(grad.chunks_exact(shape[1])) {
                            sums[row as usize * shape[1]..][..shape[1]].iter_mut().zip(grad).for_each(|(s, g)| *s += g);
                        }
                    }
                };
                match grad {
                    Embedded::Plain(grad) => read(&grad.to_dtype(DType::F32)?, |grad| {
                        add(grad);
                        Ok(())
                    })?,
                    Embedded::Fused(grad) => add(grad),
                }
                Ok(())
            }
        }
    }
}

/// Gradient by the last hidden states.
enum HiddenGradient {
    Plain(Tensor),
    Fused(Buffer),
}

/// Gradient by the embedded tokens.
enum Embedded {
    Plain(Tensor),
    Fused(Rc<Buffer>),
}

/// What going back through a pass gave.
struct Found {
    packed: Packed,
    /// Gradients of parameters that are not in their sums yet.
    named: Vec<(String, Tensor)>,
    embedded: Embedded,
}

/// Goes back through the tape of a pass.
fn go_back(forward: Forward<'_>, embedded: &States, hidden: &States, grad: HiddenGradient) -> Result<Found, AgentError> {
    match (embedded, hidden, grad) {
        (States::Plain(embedded), States::Plain(hidden), HiddenGradient::Plain(grad)) => {
            let (packed, named, of_embedded) = forward.backward_plain(hidden, grad, embedded)?;
            Ok(Found { packed, named, embedded: Embedded::Plain(of_embedded) })
        }
        (States::Fused(embedded), States::Fused(hidden), HiddenGradient::Fused(grad)) => {
            let (packed, of_embedded) = forward.backward_fused(hidden, grad, embedded);
            Ok(Found { packed, named: Vec::new(), embedded: Embedded::Fused(of_embedded) })
        }
        _ => unreachable!("a pass uses one kind of operations"),
    }
}

/// Statistics of each sequence of a group.
fn split(joined: &TokenStatistics, lengths: &[usize]) -> Vec<TokenStatistics> {
    let mut first = 0;
    let part = |n: &usize| {
        let place = first..first + n;
        first += n;
        TokenStatistics {
            log_probs: joined.log_probs[place.clone()].to_vec(),
            entropies: joined.entropies[place.clone()].to_vec(),
            is_most_likely: joined.is_most_likely[place.clone()].to_vec(),
            mean_logits: joined.mean_logits[place].to_vec(),
        }
    };
    lengths.iter().map(part).collect()
}
