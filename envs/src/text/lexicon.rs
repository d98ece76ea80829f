//! Topic lexicon: say words that the prompt's topic likes.
//!
//! A prompt is `<bos>`, a topic, three fillers. A completion is up to `max_words` words and `<eos>`. With `y` the words,
//! `v_k` the values of topic `k` (8 words positive, 8 negative), `b_k` its values of word pairs:
//!
//! ```text
//! raw  = Σₜ v_k[yₜ] + ½ Σₜ b_k[yₜ₋₁, yₜ] − ¼ #repeats        repeats: words that the completion had before
//! gold = scale · raw + offset                                 mean 0, deviation 2 over reference completions
//! ```
//!
//! The reference process is a Markov chain of order 1, the same for all topics but for its first word; from the fourth word
//! on it stops with probability 0.1 after each. Without the repeats the best completion and the best completions at a
//! given distance from the process are known exactly: [`TopicLexicon::optimum`], [`TopicLexicon::soft_optimum`].

use serde::{Deserialize, Serialize};

use super::task::{BOS, EOS, TextTask, draw, random_distribution, standardization, vocabulary, words_of};
use crate::range::require;
use crate::{Result, Rng, SeedTree};

const NAME: &str = "topic_lexicon";
/// Tokens before the topics.
const N_SPECIAL: usize = 3;
/// Filler words of prompts.
const N_FILLERS: usize = 9;
/// Fillers in a prompt.
const FILLERS: usize = 3;
/// Words of each sign that a topic has an opinion on.
const N_SIGNED: usize = 8;
/// Share of word pairs that a topic has an opinion on.
const PAIR_SHARE: f64 = 0.125;
const PAIR_WEIGHT: f64 = 0.5;
const REPEAT_PENALTY: f64 = 0.25;
/// Spread of the logarithms of transition probabilities.
const SHARPNESS: f64 = 1.5;
/// Words before the chain can stop, and the probability with which it then stops after each.
const MIN_WORDS: usize = 4;
const STOP: f64 = 0.1;

/// Settings of [`TopicLexicon`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopicLexiconConfig {
    /// Topics, 1 to 64.
    pub n_topics: usize,
    /// Words of completions, 3 to 1000.
    pub n_words: usize,
    /// Most words of a completion, 1 to 1000.
    pub max_words: usize,
    /// Seed of values and process: another one is another task.
    pub seed: u64,
}

impl Default for TopicLexiconConfig {
    fn default() -> Self {
        Self { n_topics: 4, n_words: 48, max_words: 16, seed: 0 }
    }
}

impl TopicLexiconConfig {
    /// Builds the task.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<TopicLexicon> {
        require(NAME, "n_topics", self.n_topics, 1, 64)?;
        require(NAME, "n_words", self.n_words, 3, 1000)?;
        require(NAME, "max_words", self.max_words, 1, 1000)?;
        Ok(TopicLexicon::new(self))
    }
}

/// What a topic likes.
#[derive(Debug, Clone)]
struct Topic {
    /// `[word]`.
    values: Vec<f64>,
    /// `[previous, word]`.
    pairs: Vec<f64>,
    /// `[word]`: probabilities of the first word.
    first: Vec<f64>,
}

/// Say words that the topic likes; see the module's documentation.
#[derive(Debug, Clone)]
pub struct TopicLexicon {
    config: TopicLexiconConfig,
    words: Vec<String>,
    topics: Vec<Topic>,
    /// `[previous, word]`: probabilities.
    transitions: Vec<f64>,
    offset: f64,
    scale: f64,
}

/// The best that is possible at a price for leaving the reference process: the law `π ∝ reference · exp(gold / β)`, with the
/// gold reward without repeats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftOptimum {
    /// Expected gold reward, without the penalty of repeats.
    pub gold: f64,
    /// Divergence from the reference process in nats.
    pub kl: f64,
}

impl TopicLexicon {
    fn new(config: &TopicLexiconConfig) -> Self {
        let (n, seeds) = (config.n_words, SeedTree::new(config.seed).child(NAME));
        let signed = N_SIGNED.min(n / 3);
        let topics = (0..config.n_topics as u64)
            .map(|k| {
                let mut rng = seeds.child("topic").index(k).rng();
                let mut order: Vec<usize> = (0..n).collect();
                rng.shuffle(&mut order);
                let mut values = vec![0.0; n];
                for (i, &word) in order[..2 * signed].iter().enumerate() {
                    values[word] = rng.uniform(0.5, 1.5) * if i < signed { 1.0 } else { -1.0 };
                }
                let pairs = (0..n * n).map(|_| if rng.unit() < PAIR_SHARE { rng.normal() } else { 0.0 }).collect();
                Topic { values, pairs, first: random_distribution(&mut rng, n, SHARPNESS) }
            })
            .collect();
        let mut rng = seeds.child("process").rng();
        let transitions = (0..n).flat_map(|_| random_distribution(&mut rng, n, SHARPNESS)).collect();
        let words = vocabulary(&[("topic", config.n_topics), ("filler", N_FILLERS), ("w", n)]);
        let mut task = Self { config: config.clone(), words, topics, transitions, offset: 0.0, scale: 1.0 };
        let raw = |prompt: &[u32], completion: &[u32]| task.gold(prompt, completion);
        (task.offset, task.scale) = standardization(&task, &mut seeds.child("scale").rng(), raw);
        task
    }

    /// Token of the first word.
    fn first_word(&self) -> usize {
        N_SPECIAL + self.config.n_topics + N_FILLERS
    }

    /// Index of a token among the words.
    fn word(&self, token: u32) -> Option<usize> {
        (token as usize).checked_sub(self.first_word()).filter(|&w| w < self.config.n_words)
    }

    fn token(&self, word: usize) -> u32 {
        (self.first_word() + word) as u32
    }

    /// Index of the prompt's topic: that of its first topic token, or 0.
    pub fn topic(&self, prompt: &[u32]) -> usize {
        let topic = |&t: &u32| (t as usize).checked_sub(N_SPECIAL).filter(|&k| k < self.config.n_topics);
        prompt.iter().find_map(topic).unwrap_or(0)
    }

    /// Probability that the process stops after `n` words.
    fn stop(&self, n: usize) -> f64 {
        if n >= self.config.max_words {
            1.0
        } else if n < MIN_WORDS {
            0.0
        } else {
            STOP
        }
    }

    /// Probabilities of the word after `previous`.
    fn next(&self, topic: usize, previous: Option<usize>) -> &[f64] {
        let n = self.config.n_words;
        previous.map_or(&self.topics[topic].first, |p| &self.transitions[p * n..(p + 1) * n])
    }

    /// Standardised reward of a word after another, without repeats.
    fn term(&self, topic: usize, previous: Option<usize>, word: usize) -> f64 {
        let Topic { values, pairs, .. } = &self.topics[topic];
        self.scale * (values[word] + previous.map_or(0.0, |p| PAIR_WEIGHT * pairs[p * self.config.n_words + word]))
    }

    /// The best completion without the penalty of repeats, and its gold reward without it.
    pub fn optimum(&self, prompt: &[u32]) -> (Vec<u32>, f64) {
        let (n, topic, most) = (self.config.n_words, self.topic(prompt), self.config.max_words);
        // best[t][w]: the largest reward of t + 1 words that end in w, and the word before it.
        let mut best: Vec<Vec<(f64, usize)>> = vec![(0..n).map(|w| (self.term(topic, None, w), 0)).collect()];
        for t in 1..most {
            let last = &best[t - 1];
            let row = (0..n).map(|w| {
                let of = |p: usize| (last[p].0 + self.term(topic, Some(p), w), p);
                (1..n).map(of).fold(of(0), |a, b| if b.0 > a.0 { b } else { a })
            });
            let row = row.collect();
            best.push(row);
        }
        let mut place: Option<(f64, usize, usize)> = None;
        for (t, row) in best.iter().enumerate() {
            for (w, &(reward, _)) in row.iter().enumerate() {
                if place.map_or(0.0, |p| p.0) < reward {
                    place = Some((reward, t, w));
                }
            }
        }
        let Some((reward, time, mut word)) = place else { return (vec![EOS], self.offset) };
        let mut tokens = vec![EOS];
        for t in (0..=time).rev() {
            tokens.push(self.token(word));
            word = best[t][word].1;
        }
        tokens.reverse();
        (tokens, reward + self.offset)
    }

    /// The optimum at the price `beta` per nat of divergence from the reference process, above 0. No policy has a larger gold
    /// reward (without repeats) at the same divergence.
    pub fn soft_optimum(&self, prompt: &[u32], beta: f64) -> SoftOptimum {
        let (n, topic) = (self.config.n_words, self.topic(prompt));
        // Per last word, after `t` words: logarithm of the partition of what follows, and its expected reward.
        let mut after = vec![(0.0, 0.0); n];
        for t in (0..self.config.max_words).rev() {
            let step = |previous: Option<usize>| {
                let go = (1.0 - self.stop(t)).ln();
                let branch = |w: usize, p: f64| {
                    let reward = self.term(topic, previous, w);
                    (go + p.ln() + reward / beta + after[w].0, reward + after[w].1)
                };
                let mut branches: Vec<(f64, f64)> = self.next(topic, previous).iter().enumerate().map(|(w, &p)| branch(w, p)).collect();
                branches.push((self.stop(t).ln(), 0.0));
                let top = branches.iter().fold(f64::NEG_INFINITY, |a, b| a.max(b.0));
                let sum: f64 = branches.iter().map(|b| (b.0 - top).exp()).sum();
                let mean = branches.iter().map(|b| (b.0 - top).exp() * b.1).sum::<f64>() / sum;
                (top + sum.ln(), mean)
            };
            if t == 0 {
                let (log_partition, reward) = step(None);
                return SoftOptimum { gold: reward + self.offset, kl: reward / beta - log_partition };
            }
            after = (0..n).map(|w| step(Some(w))).collect();
        }
        unreachable!("a completion has room for at least one word")
    }
}

impl TextTask for TopicLexicon {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> &[String] {
        &self.words
    }

    fn max_prompt_tokens(&self) -> usize {
        2 + FILLERS
    }

    fn max_new_tokens(&self) -> usize {
        self.config.max_words + 1
    }

    fn prompt(&self, rng: &mut Rng) -> Vec<u32> {
        let mut prompt = vec![BOS, (N_SPECIAL + rng.below(self.config.n_topics)) as u32];
        prompt.extend((0..FILLERS).map(|_| (N_SPECIAL + self.config.n_topics + rng.below(N_FILLERS)) as u32));
        prompt
    }

    fn reference_completion(&self, rng: &mut Rng, prompt: &[u32]) -> Vec<u32> {
        let topic = self.topic(prompt);
        let (mut tokens, mut previous) = (Vec::with_capacity(self.max_new_tokens()), None);
        while rng.unit() >= self.stop(tokens.len()) {
            let word = draw(rng, self.next(topic, previous));
            tokens.push(self.token(word));
            previous = Some(word);
        }
        tokens.push(EOS);
        tokens
    }

    fn reference_log_prob(&self, prompt: &[u32], completion: &[u32]) -> f64 {
        let (topic, words) = (self.topic(prompt), words_of(completion));
        let (mut log_prob, mut previous) = (0.0, None);
        for (t, &token) in words.iter().enumerate() {
            let Some(word) = self.word(token) else { return f64::NEG_INFINITY };
            log_prob += (1.0 - self.stop(t)).ln() + self.next(topic, previous)[word].ln();
            previous = Some(word);
        }
        if words.len() == completion.len() { f64::NEG_INFINITY } else { log_prob + self.stop(words.len()).ln() }
    }

    fn gold(&self, prompt: &[u32], completion: &[u32]) -> f64 {
        self.gold_terms(prompt, completion).iter().sum::<f64>() + self.offset
    }

    fn gold_terms(&self, prompt: &[u32], completion: &[u32]) -> Vec<f64> {
        let topic = self.topic(prompt);
        let words = words_of(completion);
        let mut previous = None;
        let term = |(t, &token): (usize, &u32)| {
            let word = self.word(token);
            let term = word.map_or(0.0, |w| self.term(topic, previous, w));
            previous = word;
            let is_repeat = words[..t].contains(&token);
            term - if is_repeat { self.scale * REPEAT_PENALTY } else { 0.0 }
        };
        words.iter().enumerate().map(term).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::task::tests::{check_task, gold_moments};
    use super::*;

    fn small() -> TopicLexicon {
        TopicLexiconConfig { n_topics: 2, n_words: 3, max_words: 5, seed: 4 }.build().unwrap()
    }

    /// All completions of the small task with at most 5 words, with `<eos>`.
    fn all_completions(task: &TopicLexicon) -> Vec<Vec<u32>> {
        let mut all = vec![vec![]];
        let mut last = all.clone();
        for _ in 0..5 {
            last = last.iter().flat_map(|y| (0..3).map(|w| [y.as_slice(), &[task.token(w)]].concat())).collect();
            all.extend(last.clone());
        }
        all.iter().map(|y| [y.as_slice(), &[EOS]].concat()).collect()
    }

    /// Gold reward without the penalty of repeats.
    fn without_repeats(task: &TopicLexicon, prompt: &[u32], completion: &[u32]) -> f64 {
        let words = words_of(completion);
        let distinct = words.iter().enumerate().filter(|(t, y)| !words[..*t].contains(y)).count();
        task.gold(prompt, completion) + task.scale * REPEAT_PENALTY * (words.len() - distinct) as f64
    }

    #[test]
    fn keeps_the_promises_of_a_task() {
        check_task(Arc::new(TopicLexiconConfig::default().build().unwrap()));
        check_task(Arc::new(small()));
    }

    #[test]
    fn gold_is_what_the_formula_says() {
        let mut task = TopicLexiconConfig::default().build().unwrap();
        let prompt = [BOS, N_SPECIAL as u32 + 1, 7, 7, 7];
        assert_eq!(task.topic(&prompt), 1);
        (task.offset, task.scale) = (0.5, 2.0);
        let topic = &mut task.topics[1];
        (topic.values[3], topic.values[5]) = (1.25, -0.75);
        (topic.pairs[3 * 48 + 5], topic.pairs[5 * 48 + 3]) = (0.5, -1.0);
        let [a, b] = [task.token(3), task.token(5)];
        // a b a: values 1.25 − 0.75 + 1.25, pairs ½ (0.5 − 1), one repeat.
        let raw = 1.75 - 0.25 - 0.25;
        assert!((task.gold(&prompt, &[a, b, a, EOS]) - (2.0 * raw + 0.5)).abs() < 1e-12);
        assert_eq!(task.gold_terms(&prompt, &[a, b, a, EOS, a]), [2.5, -1.0, 2.0 * (1.25 - 0.5 - 0.25)]);
        // A token that is no word has no value and ends the pair.
        assert_eq!(task.gold_terms(&prompt, &[a, BOS, b]), [2.5, 0.0, -1.5]);
        assert_eq!(task.gold(&prompt, &[EOS]), 0.5);
        assert!((task.myopic_gold(&prompt, &[a, b, EOS], 0.5) - (0.5 * 2.5 - 1.0)).abs() < 1e-12);
    }

    #[test]
    fn every_topic_has_eight_words_of_each_sign() {
        let task = TopicLexiconConfig::default().build().unwrap();
        for topic in &task.topics {
            assert_eq!(topic.values.iter().filter(|v| **v > 0.0).count(), 8);
            assert_eq!(topic.values.iter().filter(|v| **v < 0.0).count(), 8);
        }
        assert_eq!(task.words.len(), 64);
    }

    #[test]
    fn gold_of_reference_completions_has_mean_0_and_deviation_2() {
        for seed in 0..2 {
            let task = TopicLexiconConfig { seed, ..Default::default() }.build().unwrap();
            let (mean, deviation) = gold_moments(&task, 20_000, 9);
            // Two samples of 16 384 and 20 000: standard errors of their differences 0.021 and 0.015.
            assert!(mean.abs() < 0.08 && (deviation - 2.0).abs() < 0.06, "{mean} {deviation}");
        }
    }

    #[test]
    fn probabilities_of_all_completions_sum_to_1() {
        let task = small();
        for topic in 0..2 {
            let prompt = [BOS, 3 + topic];
            let sum: f64 = all_completions(&task).iter().map(|y| task.reference_log_prob(&prompt, y).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        }
        assert_eq!(task.reference_log_prob(&[BOS, 3], &[task.token(0)]), f64::NEG_INFINITY);
    }

    #[test]
    fn corpus_follows_the_process() {
        let task = small();
        let prompt = [BOS, 3];
        let mut rng = Rng::from_seed(5);
        let n = 40_000;
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..n {
            *counts.entry(task.reference_completion(&mut rng, &prompt)).or_insert(0) += 1;
        }
        for completion in all_completions(&task) {
            let p = task.reference_log_prob(&prompt, &completion).exp();
            let share = f64::from(*counts.get(&completion).unwrap_or(&0)) / f64::from(n);
            assert!((share - p).abs() < 5.0 * (p / f64::from(n)).sqrt() + 1e-12, "{completion:?}: {share} {p}");
        }
    }

    #[test]
    fn optimum_is_that_of_brute_force() {
        for seed in 0..4 {
            let task = TopicLexiconConfig { n_topics: 2, n_words: 3, max_words: 5, seed }.build().unwrap();
            for prompt in [[BOS, 3], [BOS, 4]] {
                let best = all_completions(&task).iter().map(|y| without_repeats(&task, &prompt, y)).fold(f64::NEG_INFINITY, f64::max);
                let (completion, gold) = task.optimum(&prompt);
                assert!((gold - best).abs() < 1e-9, "{gold} {best}");
                assert!((without_repeats(&task, &prompt, &completion) - best).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn soft_optimum_is_that_of_brute_force() {
        let task = small();
        let prompt = [BOS, 4];
        for beta in [0.3, 1.0, 5.0] {
            let parts: Vec<(f64, f64)> = all_completions(&task)
                .iter()
                .map(|y| {
                    let gold = without_repeats(&task, &prompt, y);
                    (task.reference_log_prob(&prompt, y).exp() * (gold / beta).exp(), gold)
                })
                .collect();
            let partition: f64 = parts.iter().map(|p| p.0).sum();
            let gold = parts.iter().map(|p| p.0 * p.1).sum::<f64>() / partition;
            let kl = gold / beta - partition.ln();
            let soft = task.soft_optimum(&prompt, beta);
            assert!((soft.gold - gold).abs() < 1e-9 && (soft.kl - kl).abs() < 1e-9, "{soft:?} {gold} {kl}");
        }
        let free = task.soft_optimum(&prompt, 1e9);
        assert!(free.kl.abs() < 1e-6);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let default = TopicLexiconConfig::default;
        assert!(TopicLexiconConfig { n_topics: 0, ..default() }.build().is_err());
        assert!(TopicLexiconConfig { n_words: 2, ..default() }.build().is_err());
        assert!(TopicLexiconConfig { max_words: 0, ..default() }.build().is_err());
    }
}
