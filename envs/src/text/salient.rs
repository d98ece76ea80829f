//! Salient copy: repeat what is marked, and nothing else. A summary in miniature.
//!
//! A prompt is `<bos>`, twelve different words of which four have a `*` before them, and `=>`. A completion is up to six
//! words and `<eos>`. With `y` its words and `S` the four salient ones:
//!
//! ```text
//! gold = 2 · |S ∩ y| / 4 − ½ · #(words not in S) − ½ · #duplicates − 0.1 · #words − [no <eos>]
//! ```
//!
//! Each word of a reference completion is a salient one with probability 0.55, another one of the prompt with 0.35, any with
//! 0.1; after each it stops with probability 0.25, and always after six.

use serde::{Deserialize, Serialize};

use super::task::{BOS, EOS, TextTask, vocabulary, words_of};
use crate::range::require;
use crate::{Result, Rng};

const NAME: &str = "salient_copy";
const MARKER: u32 = 3;
const SEPARATOR: u32 = 4;
/// Token of the first word.
const FIRST_WORD: usize = 5;
/// Words of a prompt.
const N_PROMPT: usize = 12;
/// Marked ones among them.
const N_SALIENT: usize = 4;
/// Most words of a completion.
const MAX_WORDS: usize = 6;
const SALIENT_SHARE: f64 = 0.55;
const PROMPT_SHARE: f64 = 0.35;
const STOP: f64 = 0.25;

/// Settings of [`SalientCopy`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SalientCopyConfig {
    /// Different words, 12 to 10,000.
    pub n_words: usize,
}

impl Default for SalientCopyConfig {
    fn default() -> Self {
        Self { n_words: 32 }
    }
}

impl SalientCopyConfig {
    /// Builds the task.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<SalientCopy> {
        require(NAME, "n_words", self.n_words, N_PROMPT, 10_000)?;
        let mut words = vocabulary(&[("*", 1), ("=>", 1), ("w", self.n_words)]);
        words.shrink_to_fit();
        Ok(SalientCopy { n_words: self.n_words, words })
    }
}

/// Repeat what is marked; see the module's documentation.
#[derive(Debug, Clone)]
pub struct SalientCopy {
    n_words: usize,
    words: Vec<String>,
}

impl SalientCopy {
    fn is_word(&self, token: u32) -> bool {
        (FIRST_WORD..FIRST_WORD + self.n_words).contains(&(token as usize))
    }

    /// The marked and the other words of a prompt.
    fn split(&self, prompt: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let words = (0..prompt.len()).filter(|&i| self.is_word(prompt[i]));
        let (salient, others): (Vec<usize>, Vec<usize>) = words.partition(|&i| i > 0 && prompt[i - 1] == MARKER);
        (salient.iter().map(|&i| prompt[i]).collect(), others.iter().map(|&i| prompt[i]).collect())
    }

    /// Probability of a word under the process.
    fn word_probability(&self, salient: &[u32], others: &[u32], token: u32) -> f64 {
        if !self.is_word(token) {
            return 0.0;
        }
        let share = |words: &[u32]| words.iter().filter(|&&w| w == token).count() as f64 / words.len().max(1) as f64;
        let (s, p) = (if salient.is_empty() { 0.0 } else { SALIENT_SHARE }, if others.is_empty() { 0.0 } else { PROMPT_SHARE });
        s * share(salient) + p * share(others) + (1.0 - s - p) / self.n_words as f64
    }
}

impl TextTask for SalientCopy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> &[String] {
        &self.words
    }

    fn max_prompt_tokens(&self) -> usize {
        2 + N_PROMPT + N_SALIENT
    }

    fn max_new_tokens(&self) -> usize {
        MAX_WORDS + 1
    }

    fn prompt(&self, rng: &mut Rng) -> Vec<u32> {
        let mut words: Vec<u32> = (0..self.n_words).map(|w| (FIRST_WORD + w) as u32).collect();
        // The first places of a shuffle are a sample without repeats.
        for i in 0..N_PROMPT {
            words.swap(i, i + rng.below(self.n_words - i));
        }
        let mut is_salient = [false; N_PROMPT];
        is_salient[..N_SALIENT].fill(true);
        rng.shuffle(&mut is_salient);
        let mut prompt = vec![BOS];
        for (&word, is_salient) in words.iter().zip(is_salient) {
            if is_salient {
                prompt.push(MARKER);
            }
            prompt.push(word);
        }
        prompt.push(SEPARATOR);
        prompt
    }

    fn reference_completion(&self, rng: &mut Rng, prompt: &[u32]) -> Vec<u32> {
        let (salient, others) = self.split(prompt);
        let mut tokens = Vec::with_capacity(self.max_new_tokens());
        while tokens.is_empty() || (tokens.len() < MAX_WORDS && rng.unit() >= STOP) {
            let source = rng.unit();
            let s = if salient.is_empty() { 0.0 } else { SALIENT_SHARE };
            let p = if others.is_empty() { 0.0 } else { PROMPT_SHARE };
            tokens.push(if source < s {
                salient[rng.below(salient.len())]
            } else if source < s + p {
                others[rng.below(others.len())]
            } else {
                (FIRST_WORD + rng.below(self.n_words)) as u32
            });
        }
        tokens.push(EOS);
        tokens
    }

    fn reference_log_prob(&self, prompt: &[u32], completion: &[u32]) -> f64 {
        let (salient, others) = self.split(prompt);
        let words = words_of(completion);
        if words.is_empty() || words.len() > MAX_WORDS || words.len() == completion.len() {
            return f64::NEG_INFINITY;
        }
        let choices: f64 = words.iter().map(|&w| self.word_probability(&salient, &others, w).ln()).sum();
        let end = if words.len() == MAX_WORDS { 0.0 } else { STOP.ln() };
        choices + (words.len() - 1) as f64 * (1.0 - STOP).ln() + end
    }

    fn gold(&self, prompt: &[u32], completion: &[u32]) -> f64 {
        let missing = if words_of(completion).is_empty() && !completion.contains(&EOS) { 1.0 } else { 0.0 };
        self.gold_terms(prompt, completion).iter().sum::<f64>() - missing
    }

    fn gold_terms(&self, prompt: &[u32], completion: &[u32]) -> Vec<f64> {
        let (salient, _) = self.split(prompt);
        let words = words_of(completion);
        let term = |(t, word): (usize, &u32)| {
            let (is_salient, is_duplicate) = (salient.contains(word), words[..t].contains(word));
            let mut term = -0.1;
            if is_salient && !is_duplicate {
                term += 2.0 / N_SALIENT as f64;
            }
            if !is_salient {
                term -= 0.5;
            }
            if is_duplicate {
                term -= 0.5;
            }
            // A completion that was cut off pays at its last word.
            if t + 1 == completion.len() {
                term -= 1.0;
            }
            term
        };
        words.iter().enumerate().map(term).collect()
    }

    fn metric_names(&self) -> &'static [&'static str] {
        &["salient_recall"]
    }

    fn metrics(&self, prompt: &[u32], completion: &[u32], out: &mut [f64]) {
        let (salient, _) = self.split(prompt);
        let words = words_of(completion);
        out[0] = salient.iter().filter(|s| words.contains(s)).count() as f64 / N_SALIENT as f64;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::task::tests::{check_task, gold_moments};
    use super::*;

    const PROMPT: [u32; 8] = [BOS, MARKER, 5, 6, MARKER, 7, 8, SEPARATOR];

    #[test]
    fn keeps_the_promises_of_a_task() {
        check_task(Arc::new(SalientCopyConfig::default().build().unwrap()));
        assert!(SalientCopyConfig { n_words: 11 }.build().is_err());
    }

    #[test]
    fn gold_is_what_the_formula_says() {
        let task = SalientCopyConfig::default().build().unwrap();
        let mut rng = Rng::from_seed(0);
        let prompt = task.prompt(&mut rng);
        assert_eq!(prompt.len(), 18);
        let (salient, others) = task.split(&prompt);
        assert_eq!((salient.len(), others.len()), (4, 8));
        let [a, b, c, d] = salient[..] else { panic!("four salient words") };
        let gold = |y: &[u32]| task.gold(&prompt, y);
        let close = |x: f64, y: f64| assert!((x - y).abs() < 1e-12, "{x} {y}");
        close(gold(&[a, b, c, d, EOS]), 2.0 - 0.4);
        close(gold(&[EOS]), 0.0);
        // Half the salient words, one other, one duplicate of it, four words, no end: 1 − 1 − 0.5 − 0.4 − 1.
        close(gold(&[a, others[0], b, others[0]]), 1.0 - 1.0 - 0.5 - 0.4 - 1.0);
        close(gold(&[a, a, EOS]), 0.5 - 0.5 - 0.2);
        let mut recall = [0.0];
        task.metrics(&prompt, &[a, b, a, EOS], &mut recall);
        assert_eq!(recall, [0.5]);
    }

    #[test]
    fn word_probabilities_sum_to_1() {
        let task = SalientCopyConfig::default().build().unwrap();
        for prompt in [&PROMPT[..], &[BOS]] {
            let (salient, others) = task.split(prompt);
            let sum: f64 = (0..task.words.len() as u32).map(|t| task.word_probability(&salient, &others, t)).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        }
    }

    #[test]
    fn corpus_follows_the_process() {
        let task = SalientCopyConfig::default().build().unwrap();
        let mut rng = Rng::from_seed(2);
        let n = 20_000;
        let completions: Vec<Vec<u32>> = (0..n).map(|_| task.reference_completion(&mut rng, &PROMPT)).collect();
        for expected in [vec![5, EOS], vec![7, EOS], vec![6, EOS], vec![5, 5, EOS]] {
            let p = task.reference_log_prob(&PROMPT, &expected).exp();
            let share = completions.iter().filter(|y| **y == expected).count() as f64 / f64::from(n);
            assert!((share - p).abs() < 5.0 * (p / f64::from(n)).sqrt(), "{expected:?}: {share} {p}");
        }
        // Some way is left to the best, 1.6.
        let (mean, _) = gold_moments(&task, 5000, 1);
        assert!((-1.5..0.0).contains(&mean), "{mean}");
    }
}
