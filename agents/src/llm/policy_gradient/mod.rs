//! RLOO, GRPO and PPO on completions: a learner of language models like any other.
//!
//! A rollout is one completion per slot and step; neighbouring slots have the same prompt
//! ([`steadfast_envs::VectorEnv::with_groups`]). With `s` the score of a completion (the environment's reward or that of a
//! reward model, minus a penalty if the end is missing), `d = log π_old − log π_ref` of a token and `ρ = π / π_old`:
//!
//! ```text
//! RLOO   R = s − β Σₜ kl(dₜ)        A = R − mean of the others of the group       ρ of the completion
//!        loss = mean over completions of −min(ρ A, clip(ρ) A)
//! GRPO   A = (s − mean) / deviation, both of the group                             ρ of the token
//!        loss = average over tokens of −min(ρ A, clip(ρ) A) + β kl(log π − log π_ref)
//! PPO    rₜ = −β kl(dₜ), plus s at the last token     A by generalised advantage estimation, then whitened
//!        loss = mean over tokens of −min(ρ A, clip(ρ) A)
//!        critic: mean over tokens of ½ max((V − R)², (clip(V) − R)²), with an optimiser of its own
//! ```
//!
//! `kl` is one of k1, k2, k3 ([`KlEstimator`]). The reference is a frozen copy of the policy at the start; its
//! log-probabilities are computed once per rollout. `π_old` is what was recorded when the tokens were drawn, under the
//! same temperature. All averages are taken over explicit counts of the whole minibatch, so that micro-batches change nothing
//! but rounding.
//!
//! `top_k` and `top_p` cut the distribution that tokens are drawn from, but not the one that log-probabilities are of: the
//! gradient is then biased, as in TRL. The repetition penalty, which would bias it more, is refused.
//!
//! Sources: Ahmadian et al. 2024 (arXiv 2402.14740) for RLOO; Shao et al. 2024 (arXiv 2402.03300) for GRPO, Liu et al. 2025
//! (arXiv 2503.20783) for `dr_grpo`, Yu et al. 2025 (arXiv 2503.14476) for `dapo` and the two-sided clip; Schulman et al. 2017
//! (arXiv 1707.06347) and Ziegler et al. 2019 (arXiv 1909.08593) for PPO on completions.
//!
//! Departures from TRL 1.16: the score stands at the last token of the completion, not at the padding behind it; the critic of
//! PPO has an optimiser of its own instead of a weight in a common loss; `bnpo` averages over the minibatch, not over the
//! micro-batch.
//!
//! Logged, means over the rollout unless said otherwise: `train/reward` and `train/reward_std` (what the world or the reward
//! model paid), `train/penalized_reward` (after the penalty and, for RLOO and PPO, the price of divergence), `train/kl` and
//! `train/kl_k3` (nats per completion, k1 and k3), `train/kl_coefficient` (used in this update),
//! `train/frac_reward_zero_std` (groups that teach nothing), `train/entropy` (nats per token), `train/policy_loss`,
//! `train/value_loss`, `train/explained_variance` (PPO), `train/clip_fraction`, `train/value_clip_fraction` (PPO),
//! `train/approx_kl` (per token, of π from π_old: mean of `ρ − 1 − ln ρ`), `train/grad_norm` and `train/critic_grad_norm`
//! (before clipping), `train/learning_rate`, `completions/length_mean`, `completions/length_min`, `completions/length_max`
//! (tokens, the end included), `completions/eos_share`, `sampling/ratio` and `sampling/log_prob_gap_max` (trainer against
//! sampler on the first minibatch of the first pass, before any step: 1 and at most 1e-5 in single precision).
//!
//! An evaluation adds the numbers of [`drawn_metrics`] over its own completions; the divergence only if there is a reference.

mod advantage;
mod config;
mod kl;
mod loss;
mod objective;

pub use advantage::{RewardScale, flat_share, group_relative, leave_one_out, token_advantages, whiten};
pub use config::{GrpoConfig, PolicyGradientConfig, RlooConfig, TextPpoConfig, UpdateConfig};
pub use kl::{KlConfig, KlEstimator};
pub use loss::{LossType, RatioLevel};

use steadfast_envs::{EnvSpec, Policy, RolloutBatch, SeedTree, Space, read_tokens};

use self::loss::{Counts, value_loss};
use self::objective::{Drawn, Objective, Share};
use super::drawn::{DRAWN_METRICS, drawn_metrics};
use super::model::{Decoder, ScorePositions};
use super::optimizer::AdamW;
use super::policy::TextPolicy;
use super::sequence::TokenSequence;
use crate::AgentError;
use crate::learner::{Learner, Metrics};
use crate::state_dict::{Array, StateDict};

/// A critic: the backbone of the policy with a scalar head, and what trains it.
struct Critic {
    decoder: Decoder,
    optimizer: AdamW,
}

/// What was drawn, and what it is worth; one entry per completion in the order `[time, slot]`.
#[derive(Default)]
struct Rollout {
    sequences: Vec<TokenSequence>,
    /// `[completion][token]`, as are the next ones.
    old: Vec<Vec<f32>>,
    /// Empty if there is no reference.
    reference: Vec<Vec<f32>>,
    advantages: Vec<Vec<f64>>,
    /// Empty without a critic.
    values: Vec<Vec<f32>>,
    returns: Vec<Vec<f32>>,
    /// What the world or the reward model paid.
    scores: Vec<f64>,
    /// Whether the completion ended by itself.
    has_end: Vec<bool>,
}

impl Rollout {
    fn n_tokens(&self) -> usize {
        self.old.iter().map(Vec::len).sum()
    }

    /// Divergence of each completion from the reference, as `estimator` sees it.
    fn divergences(&self, estimator: KlEstimator) -> Vec<f64> {
        let of = |(old, reference): (&Vec<f32>, &Vec<f32>)| {
            old.iter().zip(reference).map(|(&o, &r)| estimator.value(f64::from(o) - f64::from(r))).sum()
        };
        self.old.iter().zip(&self.reference).map(of).collect()
    }
}

/// Sums over the minibatches of an update.
#[derive(Debug, Default)]
struct Sums {
    steps: f64,
    policy: Share,
    value_loss: f64,
    value_clipped: f64,
    tokens: f64,
    entropy: f64,
    first_tokens: f64,
    grad_norm: f64,
    critic_grad_norm: f64,
    /// Of the first minibatch.
    first: Share,
}

impl Share {
    fn absorb(&mut self, other: Self) {
        self.loss += other.loss;
        self.clipped += other.clipped;
        self.ratios += other.ratios;
        self.ratio_sum += other.ratio_sum;
        self.approx_kl += other.approx_kl;
        self.gap = self.gap.max(other.gap);
    }
}

/// RLOO, GRPO or PPO on completions.
pub struct TextPolicyGradient {
    config: PolicyGradientConfig,
    decoder: Decoder,
    optimizer: AdamW,
    policy: TextPolicy,
    reference: Option<Decoder>,
    /// Digest of the reference's parameters: a resumed run must have the same one.
    reference_digest: u64,
    critic: Option<Critic>,
    /// Most tokens of a completion.
    max_new_tokens: usize,
    kl_coefficient: f64,
    updates: u64,
    total_updates: u64,
    seeds: SeedTree,
    metrics: Metrics,
}

impl TextPolicyGradient {
    /// A learner that starts from `decoder`, for the world of `spec` in `n_slots` slots and a run of `total_updates` updates.
    /// Completions end with one of `end_of_sequence`, and after the fewer of the tokens that the settings and the world allow.
    ///
    /// # Errors
    /// [`AgentError::Config`] if a setting is out of its range, the world is not one of text with one agent and one turn per
    /// episode, the slots are no multiple of a group, or prompts and completions do not fit into vocabulary or context.
    pub fn new(
        config: &PolicyGradientConfig,
        decoder: Decoder,
        end_of_sequence: Vec<u32>,
        spec: &EnvSpec,
        n_slots: usize,
        seeds: SeedTree,
        total_updates: u64,
    ) -> Result<Self, AgentError> {
        config.validate()?;
        let max_new_tokens = fits(config, &decoder, &end_of_sequence, spec, n_slots)?;
        let reference = if config.kl().uses_reference() { Some(decoder.duplicate()?) } else { None };
        let critic = match config {
            PolicyGradientConfig::Ppo(_) => {
                let critic = decoder.with_scalar_head(seeds.child("critic"))?;
                Some(Critic { optimizer: AdamW::new(&config.update().optimizer, &critic)?, decoder: critic })
            }
            PolicyGradientConfig::Rloo(_) | PolicyGradientConfig::Grpo(_) => None,
        };
        Ok(Self {
            optimizer: AdamW::new(&config.update().optimizer, &decoder)?,
            policy: TextPolicy::new(&decoder, config.generation().clone(), end_of_sequence)?,
            reference_digest: if reference.is_some() { digest(&decoder)? } else { 0 },
            reference,
            critic,
            max_new_tokens,
            kl_coefficient: config.kl().coefficient,
            updates: 0,
            total_updates,
            seeds: seeds.child("minibatches"),
            metrics: Metrics::default(),
            config: config.clone(),
            decoder,
        })
    }

    /// The policy's parameters as they are now.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Price of a nat of divergence in the next update.
    pub fn kl_coefficient(&self) -> f64 {
        self.kl_coefficient
    }

    fn temperature(&self) -> f32 {
        self.config.generation().temperature as f32
    }

    /// Reads the completions of a batch and what was paid for them.
    fn read(&self, batch: &RolloutBatch) -> Result<Rollout, AgentError> {
        let (n, width, group) = (batch.n_steps * batch.n_slots, batch.token_width, self.config.group_size());
        if batch.token_lengths.len() != n || width == 0 || n == 0 || !batch.n_slots.is_multiple_of(group) {
            return Err(AgentError::Shape {
                op: format!("token actions of a rollout in groups of {group} slots"),
                expected: vec![batch.n_steps, batch.n_slots.next_multiple_of(group), 1, width],
                got: vec![batch.n_steps, batch.n_slots, batch.n_agents, batch.token_width],
            });
        }
        let rows = batch.token_rows();
        let mut rollout = Rollout::default();
        let mut prompt = Vec::new();
        for row in 0..n {
            let observation = &batch.observations[row * batch.observation_width..(row + 1) * batch.observation_width];
            let first = row / group * group;
            if observation != &batch.observations[first * batch.observation_width..(first + 1) * batch.observation_width] {
                return Err(AgentError::Model {
                    place: format!("rollout, slot {}", row % batch.n_slots),
                    reason: format!("slots of a group of {group} must have the same prompt: build the worlds in groups"),
                });
            }
            read_tokens(observation, &mut prompt)?;
            let completion = rows.row(row);
            rollout.sequences.push(TokenSequence::new(&prompt, completion));
            rollout.old.push(batch.token_log_probs[row * width..row * width + completion.len()].to_vec());
            rollout.scores.push(f64::from(batch.rewards[row]));
            rollout.has_end.push(completion.last().is_some_and(|t| self.policy.end_of_sequence().contains(t)));
        }
        if let Some(reference) = &self.reference {
            let temperature = self.temperature();
            rollout.reference = in_micro_batches(&rollout.sequences, self.config.update().micro_batch_size, |part| {
                Ok(reference.log_probs(part, temperature)?.into_iter().map(|s| s.log_probs).collect())
            })?;
        }
        Ok(rollout)
    }

    /// Computes the advantages of all tokens; returns the mean reward that they were computed from.
    fn judge(&self, rollout: &mut Rollout) -> Result<f64, AgentError> {
        let penalty = self.config.missing_eos_penalty();
        let mut rewards: Vec<f64> =
            rollout.scores.iter().zip(&rollout.has_end).map(|(s, &ended)| if ended { *s } else { s - penalty }).collect();
        let (group, beta, estimator) = (self.config.group_size(), self.kl_coefficient, self.config.kl().estimator);
        let of_tokens = |rollout: &Rollout, advantages: Vec<f64>| -> Vec<Vec<f64>> {
            advantages.iter().zip(&rollout.old).map(|(&a, tokens)| vec![a; tokens.len()]).collect()
        };
        match &self.config {
            PolicyGradientConfig::Rloo(c) => {
                if beta > 0.0 {
                    rewards.iter_mut().zip(rollout.divergences(estimator)).for_each(|(r, kl)| *r -= beta * kl);
                }
                let mut advantages = leave_one_out(&rewards, group);
                if c.normalize_advantages {
                    whiten(&mut advantages, true);
                }
                rollout.advantages = of_tokens(rollout, advantages);
            }
            PolicyGradientConfig::Grpo(c) => {
                rollout.advantages = of_tokens(rollout, group_relative(&rewards, group, c.scale_rewards));
            }
            PolicyGradientConfig::Ppo(c) => {
                let mut token_rewards: Vec<Vec<f32>> = Vec::with_capacity(rewards.len());
                for (row, reward) in rewards.iter_mut().enumerate() {
                    let old = &rollout.old[row];
                    let mut tokens = vec![0.0_f64; old.len()];
                    if beta > 0.0 {
                        for (t, r) in tokens.iter_mut().enumerate() {
                            *r = -beta * estimator.value(f64::from(old[t]) - f64::from(rollout.reference[row][t]));
                        }
                    }
                    let last = tokens.len() - 1;
                    tokens[last] += *reward;
                    *reward = tokens.iter().sum();
                    token_rewards.push(tokens.iter().map(|&r| r as f32).collect());
                }
                if c.whiten_rewards {
                    over_all(&mut token_rewards, |values| whiten(values, false));
                }
                let critic = self.critic.as_ref().ok_or_else(|| missing_critic("values"))?;
                rollout.values = in_micro_batches(&rollout.sequences, self.config.update().micro_batch_size, |part| {
                    critic.decoder.scores(part, ScorePositions::BeforeCompletion)
                })?;
                let mut advantages = Vec::with_capacity(rewards.len());
                for (rewards, values) in token_rewards.iter().zip(&rollout.values) {
                    let (a, r) = token_advantages(rewards, values, c.discount, c.gae_lambda);
                    advantages.push(a);
                    rollout.returns.push(r);
                }
                if c.whiten_advantages {
                    over_all(&mut advantages, |values| whiten(values, true));
                }
                rollout.advantages = advantages.iter().map(|a| a.iter().map(|&a| f64::from(a)).collect()).collect();
            }
        }
        Ok(rewards.iter().sum::<f64>() / rewards.len() as f64)
    }

    fn objective(&self) -> Objective {
        match &self.config {
            PolicyGradientConfig::Rloo(_) => Objective::Completion,
            PolicyGradientConfig::Grpo(c) => {
                Objective::Group { loss_type: c.loss_type, level: c.ratio, kl_coefficient: self.kl_coefficient, estimator: c.kl.estimator }
            }
            PolicyGradientConfig::Ppo(_) => Objective::Token,
        }
    }

    /// One optimiser step of policy and critic on the completions `rows`.
    fn step(&mut self, rollout: &Rollout, rows: &[usize], factor: f64, is_first_pass: bool, sums: &mut Sums) -> Result<(), AgentError> {
        let update = self.config.update();
        let (micro, temperature, clip, objective) = (update.micro_batch_size, self.temperature(), self.config.clip(), self.objective());
        let counts = Counts {
            completions: rows.len() as f64,
            tokens: rows.iter().map(|&r| rollout.old[r].len()).sum::<usize>() as f64,
            rollout_tokens: rollout.n_tokens() as f64 / update.minibatches as f64,
            max_tokens: self.max_new_tokens as f64,
        };
        let mut share = Share::default();
        let mut entropy = 0.0;
        for rows in rows.chunks(micro) {
            let groups: Vec<Vec<&TokenSequence>> = rows.iter().map(|&r| vec![&rollout.sequences[r]]).collect();
            self.decoder.accumulate_log_probs(&groups, temperature, &mut |i, statistics, slopes| {
                let row = rows[i];
                let drawn = Drawn {
                    old: &rollout.old[row],
                    reference: rollout.reference.get(row).map_or(&[], Vec::as_slice),
                    advantages: &rollout.advantages[row],
                };
                share.absorb(objective.add(clip, &counts, &statistics[0].log_probs, &drawn, &mut slopes[0]));
                entropy += statistics[0].entropies.iter().map(|&h| f64::from(h)).sum::<f64>();
                Ok(())
            })?;
        }
        self.require_finite("policy loss", share.loss)?;
        sums.grad_norm += self.optimizer.step(&mut self.decoder, factor * self.config.update().learning_rate)?;
        if sums.steps == 0.0 {
            sums.first = share;
        }
        if is_first_pass {
            sums.entropy += entropy;
            sums.first_tokens += counts.tokens;
        }
        sums.policy.absorb(share);
        sums.tokens += counts.tokens;
        sums.steps += 1.0;
        if let PolicyGradientConfig::Ppo(c) = &self.config {
            let range = c.value_clip;
            let critic = self.critic.as_mut().ok_or_else(|| missing_critic("its loss"))?;
            let mut loss = 0.0;
            for rows in rows.chunks(micro) {
                let groups: Vec<Vec<&TokenSequence>> = rows.iter().map(|&r| vec![&rollout.sequences[r]]).collect();
                critic.decoder.accumulate_scores(&groups, ScorePositions::BeforeCompletion, &mut |i, scores, slopes| {
                    let row = rows[i];
                    for (t, (&value, slope)) in scores[0].iter().zip(&mut slopes[0]).enumerate() {
                        let (old, target) = (f64::from(rollout.values[row][t]), f64::from(rollout.returns[row][t]));
                        let part = value_loss(f64::from(value), old, target, range);
                        loss += part.loss / counts.tokens;
                        sums.value_clipped += f64::from(u8::from(part.is_clipped));
                        *slope += (part.slope / counts.tokens) as f32;
                    }
                    Ok(())
                })?;
            }
            sums.value_loss += loss;
            sums.critic_grad_norm += critic.optimizer.step(&mut critic.decoder, factor * c.critic_learning_rate)?;
            self.require_finite("value loss", loss)?;
        }
        Ok(())
    }

    fn require_finite(&self, tensor: &str, value: f64) -> Result<(), AgentError> {
        if value.is_finite() {
            return Ok(());
        }
        Err(AgentError::NonFinite { tensor: tensor.to_string(), value: value as f32, update: self.updates + 1, position: 0 })
    }

    /// Writes the metrics of an update.
    fn report(&mut self, rollout: &Rollout, penalized: f64, factor: f64, sums: &Sums) {
        let n = rollout.scores.len() as f64;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
        let m = &mut self.metrics;
        m.clear();
        m.push("train/reward", mean(&rollout.scores));
        m.push("train/reward_std", advantage::deviation(&rollout.scores));
        m.push("train/penalized_reward", penalized);
        if !rollout.reference.is_empty() {
            m.push("train/kl", mean(&rollout.divergences(KlEstimator::K1)));
            m.push("train/kl_k3", mean(&rollout.divergences(KlEstimator::K3)));
        }
        m.push("train/kl_coefficient", self.kl_coefficient);
        if self.config.group_size() > 1 {
            m.push("train/frac_reward_zero_std", flat_share(&rollout.scores, self.config.group_size()));
        }
        m.push("train/entropy", sums.entropy / sums.first_tokens);
        m.push("train/policy_loss", sums.policy.loss / sums.steps);
        m.push("train/clip_fraction", sums.policy.clipped / sums.policy.ratios);
        m.push("train/approx_kl", sums.policy.approx_kl / sums.tokens);
        m.push("train/grad_norm", sums.grad_norm / sums.steps);
        if self.critic.is_some() {
            m.push("train/value_loss", sums.value_loss / sums.steps);
            m.push("train/value_clip_fraction", sums.value_clipped / sums.tokens);
            m.push("train/critic_grad_norm", sums.critic_grad_norm / sums.steps);
            m.push("train/explained_variance", explained_variance(&rollout.values, &rollout.returns));
        }
        m.push("train/learning_rate", factor * self.config.update().learning_rate);
        let lengths: Vec<f64> = rollout.old.iter().map(|tokens| tokens.len() as f64).collect();
        m.push("completions/length_mean", mean(&lengths));
        m.push("completions/length_min", lengths.iter().copied().fold(f64::INFINITY, f64::min));
        m.push("completions/length_max", lengths.iter().copied().fold(0.0, f64::max));
        m.push("completions/eos_share", rollout.has_end.iter().filter(|e| **e).count() as f64 / n);
        m.push("sampling/ratio", sums.first.ratio_sum / sums.first.ratios);
        m.push("sampling/log_prob_gap_max", sums.first.gap);
    }
}

impl Learner for TextPolicyGradient {
    fn policy(&mut self) -> &mut dyn Policy {
        &mut self.policy
    }

    fn rollout_steps(&self) -> usize {
        self.config.update().rollout_steps
    }

    fn uses_state(&self) -> bool {
        false
    }

    fn group_size(&self) -> usize {
        self.config.group_size()
    }

    fn decoder(&self) -> Option<&Decoder> {
        Some(&self.decoder)
    }

    fn evaluation_metrics(&self) -> &'static [&'static str] {
        if self.reference.is_some() { &DRAWN_METRICS } else { &DRAWN_METRICS[..3] }
    }

    fn begin_evaluation(&mut self) {
        self.policy.start_recording();
    }

    fn end_evaluation(&mut self, n_episodes: usize) -> Result<Metrics, AgentError> {
        // Episodes have one turn and are numbered in the order `[time, slot]`; slots beyond the last one play for nothing.
        let mut drawn = self.policy.stop_recording();
        drawn.truncate(n_episodes);
        drawn_metrics(&drawn, self.reference.as_ref(), self.temperature(), self.config.update().micro_batch_size)
    }

    fn update(&mut self, batch: &RolloutBatch, _progress: f64) -> Result<&Metrics, AgentError> {
        let mut rollout = self.read(batch)?;
        let penalized = self.judge(&mut rollout)?;
        let update = self.config.update();
        let (epochs, minibatches) = (update.epochs, update.minibatches);
        let factor = update.schedule.factor(self.updates, self.total_updates);
        let n = rollout.sequences.len();
        let mut sums = Sums::default();
        for epoch in 0..epochs {
            let mut order: Vec<usize> = (0..n).collect();
            if minibatches > 1 {
                self.seeds.index(self.updates).index(epoch as u64).rng().shuffle(&mut order);
            }
            for i in 0..minibatches {
                let rows = &order[i * n / minibatches..(i + 1) * n / minibatches];
                self.step(&rollout, rows, factor, epoch == 0, &mut sums)?;
            }
        }
        self.policy.refresh(&self.decoder)?;
        self.report(&rollout, penalized, factor, &sums);
        if let Some(kl) = self.metrics.get("train/kl") {
            self.kl_coefficient = self.config.kl().next_coefficient(self.kl_coefficient, kl, n);
        }
        self.updates += 1;
        Ok(&self.metrics)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::default();
        let save = |state: &mut StateDict, prefix: &str, decoder: &Decoder, optimizer: &AdamW| -> Result<(), AgentError> {
            for (name, shape, values) in decoder.parameters()? {
                state.put_f32(format!("{prefix}/{name}"), &shape, &values);
            }
            optimizer.save_state(&format!("{prefix}_optimizer/"), state)
        };
        let saved = save(&mut state, "policy", &self.decoder, &self.optimizer);
        let saved = saved.and_then(|()| self.critic.as_ref().map_or(Ok(()), |c| save(&mut state, "critic", &c.decoder, &c.optimizer)));
        saved.expect("parameters that were trained a moment ago can be read");
        state.put_u64("updates", &[self.updates]);
        state.put_u64("reference_digest", &[self.reference_digest]);
        state.put_f64("kl_coefficient", &[1], &[self.kl_coefficient]);
        state
    }

    fn load_state(&mut self, state: &StateDict) -> Result<(), AgentError> {
        if state.counter("reference_digest")? != self.reference_digest {
            return Err(AgentError::State {
                tensor: "reference_digest".to_string(),
                reason: "the run started from another model than the one given now".to_string(),
            });
        }
        load(state, "policy", &mut self.decoder, &mut self.optimizer)?;
        if let Some(critic) = &mut self.critic {
            load(state, "critic", &mut critic.decoder, &mut critic.optimizer)?;
        }
        self.updates = state.counter("updates")?;
        self.kl_coefficient = state.f64("kl_coefficient", 1)?[0];
        self.policy.refresh(&self.decoder)
    }
}

/// Restores the parameters and moments of one model.
fn load(state: &StateDict, prefix: &str, decoder: &mut Decoder, optimizer: &mut AdamW) -> Result<(), AgentError> {
    for (name, shape, values) in decoder.parameters()? {
        let key = format!("{prefix}/{name}");
        if let Some(Array::F32(found, _)) = state.arrays.get(&key)
            && *found != shape
        {
            return Err(AgentError::State { tensor: key, reason: format!("expected shape {shape:?}, got {found:?}") });
        }
        decoder.set_parameter(&name, state.f32(&key, values.len())?)?;
    }
    optimizer.load_state(&format!("{prefix}_optimizer/"), state)
}

/// Checks that settings, model and world fit together; returns the most tokens of a completion.
fn fits(
    config: &PolicyGradientConfig,
    decoder: &Decoder,
    end_of_sequence: &[u32],
    spec: &EnvSpec,
    n_slots: usize,
) -> Result<usize, AgentError> {
    let fail = |field: &str, expected: String, got: String| Err(AgentError::Config { field: field.to_string(), expected, got });
    let [agent] = spec.agents.as_slice() else {
        return fail("env", "a world of text with one agent".to_string(), format!("`{}` with {} agents", spec.name, spec.n_agents()));
    };
    let (Space::Tokens { vocab_size: read, max_tokens: prompt }, Space::Tokens { vocab_size: written, max_tokens }) =
        (&agent.observation, &agent.action)
    else {
        return fail("env", "a world of text".to_string(), format!("`{}` with actions {}", spec.name, agent.action));
    };
    if spec.horizon != 1 {
        return fail("env", "a world whose episodes have one turn".to_string(), format!("`{}` with {} turns", spec.name, spec.horizon));
    }
    let group = config.group_size();
    if n_slots == 0 || !n_slots.is_multiple_of(group) {
        return fail("slots", format!("a multiple of the {group} completions of a group"), n_slots.to_string());
    }
    let (update, n) = (config.update(), n_slots * config.update().rollout_steps);
    if update.minibatches > n {
        return fail("update.minibatches", format!("at most the {n} completions of a rollout"), update.minibatches.to_string());
    }
    let model = decoder.config();
    if decoder.has_scalar_head() {
        return fail("model", "a language model".to_string(), "a reward model with a scalar head".to_string());
    }
    // The model may have more tokens than its tokenizer, such as padding to a multiple of 64; not fewer.
    if *read.max(written) > model.vocab_size {
        return fail("model", format!("a vocabulary of at least {} tokens", read.max(written)), model.vocab_size.to_string());
    }
    // A world refuses tokens that it does not know, and a policy could write any of its own.
    if *written < model.vocab_size {
        return fail(
            "model",
            format!("a vocabulary of the {written} tokens of `{}`", spec.name),
            format!("{}, some of which the world does not know", model.vocab_size),
        );
    }
    if let Some(token) = end_of_sequence.iter().find(|t| **t as usize >= model.vocab_size) {
        return fail("model", format!("an end-of-sequence token below {}", model.vocab_size), token.to_string());
    }
    let max_new_tokens = config.generation().max_new_tokens.min(*max_tokens);
    if prompt + max_new_tokens > model.max_positions {
        return fail(
            "generation.max_new_tokens",
            format!("prompts of up to {prompt} tokens and completions in a context of {}", model.max_positions),
            max_new_tokens.to_string(),
        );
    }
    Ok(max_new_tokens)
}

fn missing_critic(place: &str) -> AgentError {
    AgentError::State { tensor: "critic".to_string(), reason: format!("{place} are wanted, but there is none") }
}

/// Applies a model to all sequences, some at a time, and joins the results.
fn in_micro_batches<T>(
    sequences: &[TokenSequence],
    size: usize,
    mut of: impl FnMut(&[&TokenSequence]) -> Result<Vec<T>, AgentError>,
) -> Result<Vec<T>, AgentError> {
    let mut all = Vec::with_capacity(sequences.len());
    for part in sequences.chunks(size) {
        all.extend(of(&part.iter().collect::<Vec<_>>())?);
    }
    Ok(all)
}

/// Changes the numbers of all rows together.
fn over_all(rows: &mut [Vec<f32>], change: impl FnOnce(&mut [f64])) {
    let mut all: Vec<f64> = rows.iter().flatten().map(|&v| f64::from(v)).collect();
    change(&mut all);
    rows.iter_mut().flatten().zip(all).for_each(|(v, changed)| *v = changed as f32);
}

/// Share of the variance of returns that values explain; 0 if returns do not vary.
fn explained_variance(values: &[Vec<f32>], returns: &[Vec<f32>]) -> f64 {
    let pairs = || values.iter().flatten().zip(returns.iter().flatten()).map(|(&v, &r)| (f64::from(v), f64::from(r)));
    let returns: Vec<f64> = pairs().map(|p| p.1).collect();
    let errors: Vec<f64> = pairs().map(|(v, r)| r - v).collect();
    let (whole, left) = (advantage::deviation(&returns).powi(2), advantage::deviation(&errors).powi(2));
    if whole > 0.0 { 1.0 - left / whole } else { 0.0 }
}

/// Digest of all parameters, bit for bit.
fn digest(decoder: &Decoder) -> Result<u64, AgentError> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut mix = |word: u64| hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    for (name, _, values) in decoder.parameters()? {
        name.bytes().for_each(|b| mix(u64::from(b)));
        values.iter().for_each(|v| mix(u64::from(v.to_bits())));
    }
    Ok(hash)
}
