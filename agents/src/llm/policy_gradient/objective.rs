//! The loss of one completion and its slope by the log-probability of each token.

use super::kl::KlEstimator;
use super::loss::{ClipRange, Counts, LossType, RatioLevel};

/// What is minimised over a minibatch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Objective {
    /// Mean over completions of the clipped surrogate of the completion's ratio (RLOO).
    Completion,
    /// Clipped surrogate of each token (or of the completion's mean), averaged as `loss_type` says, plus `kl_coefficient` times
    /// the estimated divergence averaged in the same way (GRPO).
    Group { loss_type: LossType, level: RatioLevel, kl_coefficient: f64, estimator: KlEstimator },
    /// Mean over tokens of the clipped surrogate (PPO).
    Token,
}

/// One completion as it was drawn; every array has one entry per token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drawn<'a> {
    /// Log-probabilities when the tokens were drawn.
    pub(super) old: &'a [f32],
    /// Log-probabilities under the reference; empty if there is none.
    pub(super) reference: &'a [f32],
    pub(super) advantages: &'a [f64],
}

/// What one completion adds to the numbers of a minibatch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Share {
    pub(super) loss: f64,
    /// Ratios whose limit was active, and all ratios.
    pub(super) clipped: f64,
    pub(super) ratios: f64,
    pub(super) ratio_sum: f64,
    /// Sum over tokens of `ρ − 1 − ln ρ`.
    pub(super) approx_kl: f64,
    /// Largest difference of a log-probability from that at drawing.
    pub(super) gap: f64,
}

impl Objective {
    /// Adds the slopes of the completion's loss by `log_probs` to `slopes`.
    pub(super) fn add(self, clip: ClipRange, counts: &Counts, log_probs: &[f32], drawn: &Drawn<'_>, slopes: &mut [f32]) -> Share {
        let n = log_probs.len();
        let log_ratio = |t: usize| f64::from(log_probs[t]) - f64::from(drawn.old[t]);
        let mut share = Share::default();
        for t in 0..n {
            let x = log_ratio(t);
            share.approx_kl += x.exp_m1() - x;
            share.gap = share.gap.max(x.abs());
        }
        // One ratio for the whole completion: `exp(scale · Σ log-ratio)`, with the weight of the completion.
        let whole = match self {
            Self::Completion => Some((1.0, 1.0 / counts.completions)),
            Self::Group { loss_type, level: RatioLevel::Sequence, .. } => {
                Some((1.0 / n as f64, n as f64 * loss_type.token_weight(n, counts)))
            }
            Self::Group { level: RatioLevel::Token, .. } | Self::Token => None,
        };
        if let Some((scale, weight)) = whole {
            let x = scale * (0..n).map(log_ratio).sum::<f64>();
            // All tokens of a completion have the same advantage.
            let surrogate = clip.surrogate(x, drawn.advantages[0]);
            slopes.iter_mut().for_each(|s| *s += (weight * scale * surrogate.slope) as f32);
            share.loss += weight * surrogate.loss;
            share.clipped += f64::from(u8::from(surrogate.is_clipped));
            share.ratios += 1.0;
            share.ratio_sum += x.exp();
        } else {
            let weight = match self {
                Self::Group { loss_type, .. } => loss_type.token_weight(n, counts),
                Self::Completion | Self::Token => 1.0 / counts.tokens,
            };
            for (t, slope) in slopes.iter_mut().enumerate() {
                let surrogate = clip.surrogate(log_ratio(t), drawn.advantages[t]);
                *slope += (weight * surrogate.slope) as f32;
                share.loss += weight * surrogate.loss;
                share.clipped += f64::from(u8::from(surrogate.is_clipped));
                share.ratios += 1.0;
                share.ratio_sum += log_ratio(t).exp();
            }
        }
        if let Self::Group { loss_type, kl_coefficient, estimator, .. } = self
            && kl_coefficient > 0.0
        {
            let weight = kl_coefficient * loss_type.token_weight(n, counts);
            for (t, slope) in slopes.iter_mut().enumerate() {
                let d = f64::from(log_probs[t]) - f64::from(drawn.reference[t]);
                *slope += (weight * estimator.slope(d)) as f32;
                share.loss += weight * estimator.value(d);
            }
        }
        share
    }
}

#[cfg(test)]
mod tests {
    use super::super::advantage::{RewardScale, group_relative, leave_one_out, token_advantages};
    use super::*;

    const CLIP: ClipRange = ClipRange { low: 0.2, high: 0.2 };

    fn counts(completions: f64, tokens: f64) -> Counts {
        Counts { completions, tokens, rollout_tokens: tokens, max_tokens: 8.0 }
    }

    fn objectives() -> Vec<Objective> {
        let group = |loss_type, level| Objective::Group { loss_type, level, kl_coefficient: 0.3, estimator: KlEstimator::K3 };
        let mut all = vec![Objective::Completion, Objective::Token];
        for loss_type in [LossType::Grpo, LossType::Bnpo, LossType::DrGrpo, LossType::Dapo] {
            all.extend([group(loss_type, RatioLevel::Token), group(loss_type, RatioLevel::Sequence)]);
        }
        all
    }

    #[test]
    fn slopes_are_those_of_the_loss() {
        let old = [-1.0, -0.7, -2.0];
        let reference = [-1.2, -0.5, -1.8];
        for objective in objectives() {
            for sign in [-1.0, 1.0] {
                let advantages = if objective == Objective::Token { [sign, -0.4, 0.9] } else { [sign; 3] };
                let drawn = Drawn { old: &old, reference: &reference, advantages: &advantages };
                let log_probs = [-0.95, -0.8, -1.9_f32];
                let counts = counts(4.0, 10.0);
                let mut slopes = [0.0; 3];
                objective.add(CLIP, &counts, &log_probs, &drawn, &mut slopes);
                for t in 0..3 {
                    let at = |step: f32| {
                        let mut moved = log_probs;
                        moved[t] += step;
                        (f64::from(moved[t]), objective.add(CLIP, &counts, &moved, &drawn, &mut [0.0; 3]).loss)
                    };
                    let ((x1, up), (x0, down)) = (at(1e-3), at(-1e-3));
                    let numeric = (up - down) / (x1 - x0);
                    assert!((f64::from(slopes[t]) - numeric).abs() < 1e-5, "{objective:?} {sign} {t}: {} {numeric}", slopes[t]);
                }
            }
        }
    }

    #[test]
    fn first_pass_has_ratio_1_and_nothing_is_clipped() {
        let old = [-1.0, -0.7];
        for objective in objectives() {
            let drawn = Drawn { old: &old, reference: &old, advantages: &[0.5, 0.5] };
            let share = objective.add(CLIP, &counts(1.0, 2.0), &old, &drawn, &mut [0.0; 2]);
            assert_eq!((share.clipped, share.ratio_sum / share.ratios, share.approx_kl, share.gap), (0.0, 1.0, 0.0, 0.0));
        }
    }

    /// A policy over completions of one or two tokens out of `{0, 1}`; 0 ends. The first token has logits `[0, θ₀]`, the
    /// second `[0, θ₁]`.
    struct Table([f64; 2]);

    impl Table {
        /// Completions `0`, `10`, `11`.
        const ALL: [&'static [usize]; 3] = [&[0], &[1, 0], &[1, 1]];

        fn log_prob(&self, t: usize, token: usize) -> f64 {
            let x = self.0[t];
            let log_one = -(-x).exp().ln_1p();
            if token == 1 { log_one } else { log_one - x }
        }

        fn log_probs(&self, y: &[usize]) -> Vec<f32> {
            y.iter().enumerate().map(|(t, &token)| self.log_prob(t, token) as f32).collect()
        }

        fn probability(&self, y: &[usize]) -> f64 {
            y.iter().enumerate().map(|(t, &token)| self.log_prob(t, token)).sum::<f64>().exp()
        }

        /// Gradient by θ of `Σ slope · log-probability`.
        fn pull(&self, y: &[usize], slopes: &[f32]) -> [f64; 2] {
            let mut gradient = [0.0; 2];
            for (t, (&token, &slope)) in y.iter().zip(slopes).enumerate() {
                gradient[t] += f64::from(slope) * (token as f64 - self.log_prob(t, 1).exp());
            }
            gradient
        }
    }

    /// Reward of each completion of [`Table::ALL`].
    const REWARDS: [f64; 3] = [0.3, -1.0, 2.0];

    /// Gradient by θ of the expected reward, by differences.
    fn exact_gradient(theta: [f64; 2]) -> [f64; 2] {
        let expected = |theta| Table::ALL.iter().zip(REWARDS).map(|(y, r)| Table(theta).probability(y) * r).sum::<f64>();
        std::array::from_fn(|i| {
            let moved = |step: f64| {
                let mut theta = theta;
                theta[i] += step;
                expected(theta)
            };
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        })
    }

    #[test]
    fn expected_rloo_gradient_is_the_exact_one() {
        let theta = [0.4, -0.7];
        let table = Table(theta);
        // Every pair of completions with its probability: the expectation of the estimate, without sampling.
        let mut mean = [0.0; 2];
        for a in 0..3 {
            for b in 0..3 {
                let advantages = leave_one_out(&[REWARDS[a], REWARDS[b]], 2);
                let probability = table.probability(Table::ALL[a]) * table.probability(Table::ALL[b]);
                for (y, advantage) in [(Table::ALL[a], advantages[0]), (Table::ALL[b], advantages[1])] {
                    let (old, mut slopes) = (table.log_probs(y), vec![0.0; y.len()]);
                    let drawn = Drawn { old: &old, reference: &[], advantages: &vec![advantage; y.len()] };
                    Objective::Completion.add(CLIP, &counts(2.0, 4.0), &old, &drawn, &mut slopes);
                    let pull = table.pull(y, &slopes);
                    (0..2).for_each(|i| mean[i] += probability * pull[i]);
                }
            }
        }
        let exact = exact_gradient(theta);
        for i in 0..2 {
            // The loss is minus the reward.
            assert!((mean[i] + exact[i]).abs() < 1e-6, "{mean:?} {exact:?}");
        }
    }

    #[test]
    fn expected_gradient_of_dr_grpo_is_the_exact_one_up_to_known_factors() {
        let theta = [0.4, -0.7];
        let table = Table(theta);
        let objective =
            Objective::Group { loss_type: LossType::DrGrpo, level: RatioLevel::Token, kl_coefficient: 0.0, estimator: KlEstimator::K3 };
        let mut mean = [0.0; 2];
        for a in 0..3 {
            for b in 0..3 {
                let advantages = group_relative(&[REWARDS[a], REWARDS[b]], 2, RewardScale::None);
                let probability = table.probability(Table::ALL[a]) * table.probability(Table::ALL[b]);
                for (y, advantage) in [(Table::ALL[a], advantages[0]), (Table::ALL[b], advantages[1])] {
                    let (old, mut slopes) = (table.log_probs(y), vec![0.0; y.len()]);
                    let drawn = Drawn { old: &old, reference: &[], advantages: &vec![advantage; y.len()] };
                    objective.add(CLIP, &counts(2.0, 4.0), &old, &drawn, &mut slopes);
                    let pull = table.pull(y, &slopes);
                    (0..2).for_each(|i| mean[i] += probability * pull[i]);
                }
            }
        }
        // The group's own mean as baseline shrinks the gradient by (G − 1) / G; the constant 8 stands for the length.
        let exact = exact_gradient(theta);
        (0..2).for_each(|i| assert!((8.0 * 2.0 * mean[i] + exact[i]).abs() < 1e-6, "{mean:?} {exact:?}"));
    }

    #[test]
    fn expected_ppo_gradient_is_the_exact_one_whatever_the_critic_says() {
        let theta = [0.4, -0.7];
        let table = Table(theta);
        let mut mean = [0.0; 2];
        for (y, reward) in Table::ALL.iter().zip(REWARDS) {
            let mut rewards = vec![0.0; y.len()];
            rewards[y.len() - 1] = reward as f32;
            // Values depend on what was written before alone; λ = γ = 1 has no bias.
            let (advantages, _) = token_advantages(&rewards, &[0.7, -0.2][..y.len()], 1.0, 1.0);
            let advantages: Vec<f64> = advantages.iter().map(|&a| f64::from(a)).collect();
            let (old, mut slopes) = (table.log_probs(y), vec![0.0; y.len()]);
            let drawn = Drawn { old: &old, reference: &[], advantages: &advantages };
            // One completion per batch, and the sum over its tokens.
            Objective::Token.add(CLIP, &counts(1.0, 1.0), &old, &drawn, &mut slopes);
            let pull = table.pull(y, &slopes);
            (0..2).for_each(|i| mean[i] += table.probability(y) * pull[i]);
        }
        let exact = exact_gradient(theta);
        (0..2).for_each(|i| assert!((mean[i] + exact[i]).abs() < 1e-6, "{mean:?} {exact:?}"));
    }
}
