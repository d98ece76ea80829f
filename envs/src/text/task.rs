//! What a synthetic task of text offers, and the one environment for all of them.

use std::sync::Arc;

use crate::range::require;
use crate::{
    Actions, AgentSpec, EnvError, EnvSpec, Environment, MAX_VOCABULARY, Result, Rng, SnapshotReader, SnapshotWriter, Space, StepOut,
    write_tokens,
};

/// Token of padding, in every synthetic task.
pub const PAD: u32 = 0;
/// Token before every prompt.
pub const BOS: u32 = 1;
/// Token at the end of a completion.
pub const EOS: u32 = 2;
/// Samples from which rewards are standardised.
const SAMPLE: u64 = 16_384;
/// Deviation of standardised gold rewards over reference completions.
const GOLD_DEVIATION: f64 = 2.0;

/// The words of a completion: what stands before the first end-of-sequence token.
pub fn words_of(completion: &[u32]) -> &[u32] {
    let end = completion.iter().position(|&t| t == EOS).unwrap_or(completion.len());
    &completion[..end]
}

/// A task whose texts are lists of symbols and whose reward is known.
///
/// Functions of prompts accept any tokens: a text outside the task gets a defined, low-information answer, not a panic.
pub trait TextTask: Send + Sync {
    /// Name in configurations.
    fn name(&self) -> &'static str;

    /// The vocabulary, by token id; the first three are `<pad>`, `<bos>`, `<eos>`.
    fn words(&self) -> &[String];

    /// Most tokens of a prompt, `<bos>` included.
    fn max_prompt_tokens(&self) -> usize;

    /// Most tokens of a completion, `<eos>` included.
    fn max_new_tokens(&self) -> usize;

    /// Draws a prompt; it begins with `<bos>`.
    fn prompt(&self, rng: &mut Rng) -> Vec<u32>;

    /// Draws a completion from the process that the pretraining corpus comes from; it ends with `<eos>`.
    fn reference_completion(&self, rng: &mut Rng, prompt: &[u32]) -> Vec<u32>;

    /// Logarithm of the probability of a completion under that process; minus infinity where it is impossible. A language
    /// model trained on the corpus cannot be better than this on average.
    fn reference_log_prob(&self, prompt: &[u32], completion: &[u32]) -> f64;

    /// The known reward.
    fn gold(&self, prompt: &[u32], completion: &[u32]) -> f64;

    /// What each word of the completion ([`words_of`]) adds to the gold reward. The sum differs from [`TextTask::gold`] by a
    /// constant of the task.
    fn gold_terms(&self, prompt: &[u32], completion: &[u32]) -> Vec<f64>;

    /// The gold terms weighted by `discount^(T − t)`, the last word `T` with 1: how an annotator judges who remembers the end
    /// best.
    fn myopic_gold(&self, prompt: &[u32], completion: &[u32], discount: f64) -> f64 {
        self.gold_terms(prompt, completion).iter().fold(0.0, |sum, term| discount * sum + term)
    }

    /// How much of what a careless or malicious annotator goes by is in a completion, such as the number of visible marks.
    /// It says nothing about the gold reward. 0 in tasks without such a temptation.
    fn temptation(&self, _completion: &[u32]) -> f64 {
        0.0
    }

    /// Names of [`TextTask::metrics`].
    fn metric_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// Numbers that tell how a completion came to its reward.
    fn metrics(&self, _prompt: &[u32], _completion: &[u32], _out: &mut [f64]) {}

    /// The words of some tokens, separated by spaces; `?` for tokens outside the vocabulary.
    fn text(&self, tokens: &[u32]) -> String {
        let words = self.words();
        tokens.iter().map(|&t| words.get(t as usize).map_or("?", String::as_str)).collect::<Vec<_>>().join(" ")
    }
}

/// The vocabulary of a task: the special tokens, then `groups` of words.
pub(super) fn vocabulary(groups: &[(&str, usize)]) -> Vec<String> {
    let special = ["<pad>", "<bos>", "<eos>"].map(String::from);
    let numbered = groups.iter().flat_map(|&(name, n)| {
        let digits = n.saturating_sub(1).to_string().len();
        (0..n).map(move |i| if n == 1 { name.to_string() } else { format!("{name}{i:0digits$}") })
    });
    special.into_iter().chain(numbered).collect()
}

/// An affine map that gives `raw` rewards of reference completions mean 0 and the deviation of gold rewards.
///
/// Returns `(offset, scale)` of `scale · raw + offset`. If all raw rewards are equal the scale is 1.
pub(super) fn standardization(task: &dyn TextTask, rng: &mut Rng, raw: impl Fn(&[u32], &[u32]) -> f64) -> (f64, f64) {
    let sample: Vec<f64> = (0..SAMPLE)
        .map(|_| {
            let prompt = task.prompt(rng);
            let completion = task.reference_completion(rng, &prompt);
            raw(&prompt, &completion)
        })
        .collect();
    let mean = sample.iter().sum::<f64>() / SAMPLE as f64;
    let deviation = (sample.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / SAMPLE as f64).sqrt();
    let scale = if deviation > 1e-9 { GOLD_DEVIATION / deviation } else { 1.0 };
    (-scale * mean, scale)
}

/// Draws an index with the given probabilities, which sum to 1.
pub(super) fn draw(rng: &mut Rng, probabilities: &[f64]) -> usize {
    let mut left = rng.unit();
    for (i, p) in probabilities.iter().enumerate() {
        left -= p;
        if left < 0.0 {
            return i;
        }
    }
    // Rounding: the sum can end a little below 1.
    probabilities.len() - 1
}

/// Random probabilities: the softmax of `sharpness` times standard normal numbers.
pub(super) fn random_distribution(rng: &mut Rng, n: usize, sharpness: f64) -> Vec<f64> {
    let weights: Vec<f64> = (0..n).map(|_| (sharpness * rng.normal()).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// A synthetic task as an environment: one step per episode, the reward is the gold reward of the completion.
///
/// Drawing a prompt takes heap memory once per episode; beside the generation of a completion that is nothing.
///
/// Episode metrics: `gold_reward`, `completion_length` (tokens, the end-of-sequence token included), `ended_with_eos` (0 or
/// 1), and the task's own.
pub struct TextEnv {
    task: Arc<dyn TextTask>,
    spec: EnvSpec,
    prompt: Vec<u32>,
    metrics: Vec<f64>,
}

/// Episode metrics of all worlds of text.
pub(super) const METRICS: [&str; 3] = ["gold_reward", "completion_length", "ended_with_eos"];

/// The specification of a single-turn world of text.
pub(super) fn text_spec(
    name: &str,
    vocab_size: usize,
    max_prompt_tokens: usize,
    max_new_tokens: usize,
    metrics: &[&str],
) -> Result<EnvSpec> {
    require(name, "vocab_size", vocab_size, 1, MAX_VOCABULARY)?;
    require(name, "max_prompt_tokens", max_prompt_tokens, 1, MAX_VOCABULARY - 1)?;
    require(name, "max_new_tokens", max_new_tokens, 1, MAX_VOCABULARY - 1)?;
    Ok(EnvSpec {
        name: name.to_string(),
        agents: vec![AgentSpec {
            name: "agent_0".to_string(),
            group: "agent".to_string(),
            observation: Space::Tokens { vocab_size, max_tokens: max_prompt_tokens },
            action: Space::Tokens { vocab_size, max_tokens: max_new_tokens },
        }],
        state_dim: 0,
        horizon: 1,
        step_seconds: 1.0,
        episode_metrics: metrics.iter().map(ToString::to_string).collect(),
    })
}

/// The completion of the only agent, with all tokens inside the vocabulary.
pub(super) fn single_completion<'a>(spec: &EnvSpec, actions: Actions<'a>) -> Result<&'a [u32]> {
    let completion = actions.tokens(&spec.name)?.row(0);
    let Space::Tokens { vocab_size, max_tokens } = spec.agents[0].action else {
        unreachable!("worlds of text have token actions");
    };
    let fail = |expected: String, got: String| Err(EnvError::Action { env: spec.name.clone(), agent: 0, expected, got });
    if completion.is_empty() || completion.len() > max_tokens {
        return fail(format!("a completion of 1 to {max_tokens} tokens"), format!("{} tokens", completion.len()));
    }
    match completion.iter().position(|&t| t as usize >= vocab_size) {
        Some(at) => fail(format!("tokens below {vocab_size}"), format!("{} at position {at}", completion[at])),
        None => Ok(completion),
    }
}

impl TextEnv {
    /// The environment of a task.
    ///
    /// # Errors
    /// [`EnvError::Config`] if the task has no vocabulary or no room for prompts or completions.
    pub fn new(task: Arc<dyn TextTask>) -> Result<Self> {
        let metrics: Vec<&str> = METRICS.iter().chain(task.metric_names()).copied().collect();
        let spec = text_spec(task.name(), task.words().len(), task.max_prompt_tokens(), task.max_new_tokens(), &metrics)?;
        Ok(Self { task, prompt: vec![BOS], metrics: vec![0.0; metrics.len()], spec })
    }

    /// The task.
    pub fn task(&self) -> &Arc<dyn TextTask> {
        &self.task
    }

    fn observe(&self, out: &mut [f32]) {
        write_tokens(&self.spec.name, &self.prompt, out).expect("a task's prompts keep its own limit");
    }
}

impl Environment for TextEnv {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        self.prompt = self.task.prompt(&mut Rng::from_seed(seed));
        self.metrics.fill(0.0);
        self.observe(observations);
    }

    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let completion = single_completion(&self.spec, actions)?;
        let gold = self.task.gold(&self.prompt, completion);
        let length = words_of(completion).len();
        let has_eos = length < completion.len();
        let (common, own) = self.metrics.split_at_mut(METRICS.len());
        common.copy_from_slice(&[gold, (length + usize::from(has_eos)) as f64, f64::from(u8::from(has_eos))]);
        self.task.metrics(&self.prompt, completion, own);
        out.rewards[0] = gold as f32;
        out.terminated = true;
        out.truncated = false;
        self.observe(out.observations);
        Ok(())
    }

    fn episode_metrics(&self, out: &mut [f64]) {
        out.copy_from_slice(&self.metrics);
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        out.u64(self.prompt.len() as u64);
        self.prompt.iter().for_each(|&t| out.u64(u64::from(t)));
        out.f64s(&self.metrics);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.prompt = restore_prompt(&self.spec, input)?;
        input.f64s(&mut self.metrics)
    }
}

/// Reads a prompt from a snapshot: its length, then its tokens.
fn restore_prompt(spec: &EnvSpec, input: &mut SnapshotReader<'_>) -> Result<Vec<u32>> {
    let Space::Tokens { vocab_size, max_tokens } = spec.agents[0].observation else {
        unreachable!("worlds of text observe tokens");
    };
    let fail = |reason: String| EnvError::Snapshot { place: spec.name.clone(), reason };
    let length = input.u64()?;
    if length == 0 || length > max_tokens as u64 {
        return Err(fail(format!("a prompt must have 1 to {max_tokens} tokens, got {length}")));
    }
    (0..length)
        .map(|_| match input.u64()? {
            token if token < vocab_size as u64 => Ok(token as u32),
            token => Err(fail(format!("token {token} must be below {vocab_size}"))),
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::testing::check_environment;

    /// What every task promises: prompts and completions inside its limits and vocabulary, probabilities that are those of the
    /// process, gold terms that differ from the gold reward by a constant, defined answers to any tokens.
    pub(in crate::text) fn check_task(task: Arc<dyn TextTask>) {
        assert_eq!(task.words()[..3], ["<pad>", "<bos>", "<eos>"]);
        let vocab = task.words().len();
        let mut unique = task.words().to_vec();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), vocab, "words are different");
        let mut rng = Rng::from_seed(1);
        let mut constant = None;
        for _ in 0..300 {
            let prompt = task.prompt(&mut rng);
            assert_eq!(prompt[0], BOS);
            assert!(prompt.len() <= task.max_prompt_tokens() && prompt.iter().all(|&t| (t as usize) < vocab));
            let completion = task.reference_completion(&mut rng, &prompt);
            assert!(completion.len() <= task.max_new_tokens() && completion.iter().all(|&t| (t as usize) < vocab));
            assert_eq!(completion.iter().position(|&t| t == EOS), Some(completion.len() - 1));
            let log_prob = task.reference_log_prob(&prompt, &completion);
            assert!(log_prob < 0.0 && log_prob.is_finite());
            let terms = task.gold_terms(&prompt, &completion);
            assert_eq!(terms.len(), completion.len() - 1);
            let rest = task.gold(&prompt, &completion) - terms.iter().sum::<f64>();
            assert!((rest - *constant.get_or_insert(rest)).abs() < 1e-9, "{rest}");
            assert!((task.myopic_gold(&prompt, &completion, 1.0) - terms.iter().sum::<f64>()).abs() < 1e-9);
            let junk: Vec<u32> = (0..1 + rng.below(task.max_new_tokens())).map(|_| rng.below(vocab) as u32).collect();
            let other: Vec<u32> = (0..1 + rng.below(task.max_prompt_tokens())).map(|_| rng.below(vocab) as u32).collect();
            assert!(task.gold(&other, &junk).is_finite());
            assert!(!task.reference_log_prob(&other, &junk).is_nan());
            task.reference_completion(&mut rng, &other);
            task.text(&junk);
        }
        check_environment(&|| Ok(Box::new(TextEnv::new(Arc::clone(&task))?))).unwrap();
    }

    /// Mean and deviation of gold rewards over reference completions.
    pub(in crate::text) fn gold_moments(task: &dyn TextTask, n: usize, seed: u64) -> (f64, f64) {
        let mut rng = Rng::from_seed(seed);
        let gold: Vec<f64> = (0..n)
            .map(|_| {
                let prompt = task.prompt(&mut rng);
                let completion = task.reference_completion(&mut rng, &prompt);
                task.gold(&prompt, &completion)
            })
            .collect();
        let mean = gold.iter().sum::<f64>() / n as f64;
        (mean, (gold.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / n as f64).sqrt())
    }

    #[test]
    fn words_end_at_the_first_end_of_sequence() {
        assert_eq!(words_of(&[7, 8, EOS, 9, EOS]), [7, 8]);
        assert_eq!(words_of(&[7, 8]), [7, 8]);
        assert!(words_of(&[EOS]).is_empty());
    }

    #[test]
    fn vocabularies_number_their_words() {
        assert_eq!(vocabulary(&[("!", 1), ("w", 11)])[2..6], ["<eos>", "!", "w00", "w01"]);
    }
}
