//! What a model writes, and how good that is.
//!
//! Of a policy, completions of fixed prompts are drawn at temperature 1, every time from the same seeds. Columns of `eval.csv`:
//! `return_agent_mean` (gold reward; blank without a task), `metric_gold_reward`, `metric_completion_length` (tokens),
//! `metric_ended` (share that ended by itself), `metric_kl` and `metric_kl_k3` (divergence from the model that training
//! started from, in nats per completion: means of log-ratios and of r − 1 − ln r per token, the latter never negative),
//! `metric_entropy_sampled` (−ln p per token); runs that learn from what they write have the same columns, of the completions of
//! their own evaluations (`steadfast_agents::llm::drawn_metrics`). Of a reward model: `metric_rank_correlation` (Spearman's, of scores and gold
//! rewards over completions of the task's own process).

use std::sync::Arc;

use steadfast_agents::AgentError;
use steadfast_agents::llm::model::ScorePositions;
use steadfast_agents::llm::{Completion, Decoder, DrawnText, Finish, GenerationConfig, Generator, TokenSequence, drawn_metrics};
use steadfast_envs::text::TextTask;
use steadfast_envs::{Rng, SeedTree};
use steadfast_reward::metrics::spearman;

use crate::failure::{Failure, Result};

/// Completions that are drawn together.
const BATCH: usize = 64;
/// Completions that are shown.
const SHOWN: usize = 8;

/// What an evaluation found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// Gold reward of each completion; empty without a task.
    pub gold: Vec<f64>,
    /// Further numbers by their names.
    pub metrics: Vec<(&'static str, f64)>,
    /// Some of the completions with their gold rewards.
    pub shown: Vec<(TokenSequence, Option<f64>)>,
}

/// Draws completions of a policy and looks at them.
pub struct PolicyEvaluation {
    prompts: Vec<Vec<u32>>,
    task: Option<Arc<dyn TextTask>>,
    reference: Option<Decoder>,
    generation: GenerationConfig,
    end_of_sequence: Vec<u32>,
    seeds: SeedTree,
    generator: Option<Generator>,
}

impl PolicyEvaluation {
    /// Completions of `prompts`, compared with `reference` if there is one.
    pub fn new(
        prompts: Vec<Vec<u32>>,
        task: Option<Arc<dyn TextTask>>,
        reference: Option<Decoder>,
        max_new_tokens: usize,
        end_of_sequence: Vec<u32>,
        seeds: SeedTree,
    ) -> Self {
        let generation = GenerationConfig { max_new_tokens, ..GenerationConfig::default() };
        Self { prompts, task, reference, generation, end_of_sequence, seeds: seeds.child("draw"), generator: None }
    }

    /// Evaluates a policy.
    ///
    /// # Errors
    /// [`Failure::Run`] if the model fails.
    pub fn run(&mut self, decoder: &Decoder) -> Result<Found> {
        self.evaluate(decoder).map_err(|e| Failure::caused("evaluation failed", e))
    }

    fn evaluate(&mut self, decoder: &Decoder) -> Result<Found, AgentError> {
        let mut completions: Vec<Completion> = Vec::with_capacity(self.prompts.len());
        match &mut self.generator {
            Some(generator) => generator.refresh(decoder)?,
            None => self.generator = Some(Generator::new(decoder)?),
        }
        let Some(generator) = &mut self.generator else { return Ok(Found::default()) };
        for (i, chunk) in self.prompts.chunks(BATCH).enumerate() {
            let rows: Vec<&[u32]> = chunk.iter().map(Vec::as_slice).collect();
            let mut rngs: Vec<Rng> = (0..chunk.len()).map(|j| self.seeds.index((i * BATCH + j) as u64).rng()).collect();
            completions.extend(generator.generate(&rows, &self.generation, &self.end_of_sequence, &[], &mut rngs)?);
        }
        let drawn = |(prompt, completion): (&Vec<u32>, Completion)| DrawnText {
            sequence: TokenSequence::new(prompt, &completion.tokens),
            has_ended: completion.finish == Finish::EndOfSequence,
            log_probs: completion.log_probs,
        };
        let drawn: Vec<DrawnText> = self.prompts.iter().zip(completions).map(drawn).collect();
        let sequences = || drawn.iter().map(|d| &d.sequence);
        let n = drawn.len() as f64;
        let mut found = Found::default();
        if let Some(task) = &self.task {
            found.gold = sequences().map(|s| task.gold(s.prompt(), s.completion())).collect();
            let names = task.metric_names();
            let mut sums = vec![0.0; names.len()];
            let mut one = vec![0.0; names.len()];
            for s in sequences() {
                task.metrics(s.prompt(), s.completion(), &mut one);
                sums.iter_mut().zip(&one).for_each(|(sum, x)| *sum += x);
            }
            found.metrics.extend(names.iter().zip(&sums).map(|(name, sum)| (*name, sum / n)));
            found.metrics.push(("gold_reward", found.gold.iter().sum::<f64>() / n));
        }
        let temperature = self.generation.temperature as f32;
        found.metrics.extend(drawn_metrics(&drawn, self.reference.as_ref(), temperature, BATCH)?.values);
        let gold = &found.gold;
        found.shown = sequences().enumerate().take(SHOWN).map(|(i, s)| (s.clone(), gold.get(i).copied())).collect();
        Ok(found)
    }
}

/// Compares a reward model's scores with the known reward.
pub struct RewardEvaluation {
    sequences: Vec<TokenSequence>,
    gold: Vec<f64>,
}

impl RewardEvaluation {
    /// Over `n` completions of the task's own process.
    pub fn new(task: &dyn TextTask, n: usize, seeds: SeedTree) -> Self {
        let draw = |i: u64| {
            let mut rng = seeds.child("draw").index(i).rng();
            let prompt = task.prompt(&mut rng);
            let completion = task.reference_completion(&mut rng, &prompt);
            (TokenSequence::new(&prompt, &completion), task.gold(&prompt, &completion))
        };
        let (sequences, gold) = (0..n as u64).map(draw).unzip();
        Self { sequences, gold }
    }

    /// Evaluates a reward model.
    ///
    /// # Errors
    /// [`Failure::Run`] if the model fails.
    pub fn run(&self, decoder: &Decoder) -> Result<Found> {
        let mut scores = Vec::with_capacity(self.gold.len());
        for chunk in self.sequences.chunks(BATCH) {
            let of_chunk = decoder.scores(&chunk.iter().collect::<Vec<_>>(), ScorePositions::Last);
            scores.extend(of_chunk.map_err(|e| Failure::caused("evaluation failed", e))?.iter().map(|s| f64::from(s[0])));
        }
        let metrics = spearman(&scores, &self.gold).map(|rho| ("rank_correlation", rho)).into_iter().collect();
        Ok(Found { metrics, ..Found::default() })
    }
}
