//! An attacker on observations who knows the critic.
//!
//! An attack on the outputs of a policy makes it act differently, which need not be worse. This one shows the agent, out of
//! the ball around what there is, what its own critic holds for the worst: projected gradient descent on `V(o + δ)` from
//! several starts, the clean observation among the candidates. The policy then acts on what it is shown.
//!
//! Source: the critic attack of Pattanaik et al. 2018, "Robust Deep Reinforcement Learning with Adversarial Attacks" (arXiv
//! 1712.03632), who descend the action value of the action chosen. A critic of states alone, as PPO has, cannot tell what an
//! action is worth, so that `V` is descended in its place, as is usual for PPO. A critic that does not see the agent's observation
//! gives nothing to descend.

use steadfast_envs::Rng;

use super::Observed;
use super::attack::ObservationAttackConfig;
use super::ball::{Direction, Norm, ascend, project};
use super::lipschitz::{place, slopes};
use crate::nn::{Mlp, Trace};

/// An [`ObservationAttackConfig`] at work on a critic.
pub struct ValueAttack {
    config: ObservationAttackConfig,
    rng: Rng,
    lowest: Vec<f32>,
    inputs: Vec<f32>,
    offset: Vec<f32>,
    slope: Vec<f32>,
    perturbed: Vec<f32>,
    d_value: Vec<f32>,
    d_input: Vec<f32>,
    trace: Trace,
}

impl ValueAttack {
    /// An attacker with its own stream of random numbers.
    pub fn new(config: &ObservationAttackConfig, rng: Rng) -> Self {
        Self {
            config: config.clone(),
            rng,
            lowest: Vec::new(),
            inputs: Vec::new(),
            offset: Vec::new(),
            slope: Vec::new(),
            perturbed: Vec::new(),
            d_value: Vec::new(),
            d_input: Vec::new(),
            trace: Trace::default(),
        }
    }

    /// The inputs `[rows, input]` that `critic`, a network of one output, values least. What the policy says there is not
    /// looked at.
    pub fn perturb(&mut self, critic: &Mlp, clean: &Observed<'_>) -> &[f32] {
        let (rows, width, features) = (clean.rows, critic.input(), clean.unit.len());
        let (norm, radius) = (self.config.norm, self.config.radius as f32);
        let direction = match norm {
            Norm::L2 => Direction::Normalized,
            Norm::Linf => Direction::Sign,
        };
        // Together somewhat more than the way across the ball.
        let step_size = 2.5 * radius / self.config.steps as f32;
        self.inputs.clear();
        self.inputs.extend_from_slice(&clean.inputs[..rows * width]);
        self.perturbed.resize(rows * width, 0.0);
        self.d_input.resize(rows * width, 0.0);
        self.offset.resize(rows * features, 0.0);
        self.slope.resize(rows * features, 0.0);
        self.d_value.clear();
        // Ascent on the negative value.
        self.d_value.resize(rows, -1.0);
        critic.forward_train(&clean.inputs[..rows * width], rows, &mut self.trace);
        self.lowest.clear();
        self.lowest.extend_from_slice(self.trace.output());
        for _ in 0..self.config.restarts {
            for u in self.offset.chunks_exact_mut(features.max(1)) {
                u.iter_mut().for_each(|v| *v = 0.5 * radius * self.rng.normal_f32());
                project(u, norm, radius);
            }
            for step in 0..=self.config.steps {
                place(clean, width, &self.offset, &mut self.perturbed);
                critic.forward_train(&self.perturbed, rows, &mut self.trace);
                for (row, &value) in self.trace.output().iter().enumerate() {
                    if value < self.lowest[row] {
                        self.lowest[row] = value;
                        let at = row * width..(row + 1) * width;
                        self.inputs[at.clone()].copy_from_slice(&self.perturbed[at]);
                    }
                }
                if step == self.config.steps {
                    break;
                }
                critic.backward(&mut self.trace, &self.d_value, None, Some(&mut self.d_input));
                slopes(clean, width, &self.perturbed, &self.d_input, &mut self.slope);
                for (u, g) in self.offset.chunks_exact_mut(features.max(1)).zip(self.slope.chunks_exact(features.max(1))) {
                    ascend(u, g, direction, step_size);
                    project(u, norm, radius);
                }
            }
        }
        &self.inputs
    }
}

#[cfg(test)]
mod tests {
    use steadfast_envs::SeedTree;

    use super::super::ball::length;
    use super::*;
    use crate::head::PolicyHead;
    use crate::nn::{Activation, Workspace};

    const HEAD: PolicyHead = PolicyHead::Categorical { n: 1 };

    fn observed<'a>(inputs: &'a [f32], width: usize, unit: &'a [f32], limit: Option<f32>) -> Observed<'a> {
        Observed { rows: inputs.len() / width, members: 1, inputs, unit, limit, outputs: &[], head: &HEAD }
    }

    fn values(critic: &Mlp, inputs: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; inputs.len() / critic.input()];
        critic.forward(inputs, out.len(), &mut out, &mut Workspace::default());
        out
    }

    fn attack(norm: Norm, radius: f64) -> ValueAttack {
        ValueAttack::new(&ObservationAttackConfig { radius, norm, ..Default::default() }, Rng::from_seed(3))
    }

    #[test]
    fn a_linear_critic_is_attacked_along_its_weights() {
        let critic = Mlp::new(4, &[], 1, Activation::Tanh, 1.0, 1.0, &mut SeedTree::new(1).rng()).unwrap();
        let weights: Vec<f32> = (0..3).map(|i| critic.layer_row(0, i)[0]).collect();
        let inputs = [0.5, -0.2, 0.1, 1.0, 0.0, 0.3, -2.0, 0.0];
        // The fourth feature is an index, which stays.
        let clean = observed(&inputs, 4, &[1.0, 1.0, 0.5], None);
        let scaled = [weights[0], weights[1], 0.5 * weights[2]];
        let l1: f32 = scaled.iter().map(|w| w.abs()).sum();
        let l2 = scaled.iter().map(|w| w * w).sum::<f32>().sqrt();
        for (norm, dual) in [(Norm::Linf, l1), (Norm::L2, l2)] {
            let moved = attack(norm, 0.2).perturb(&critic, &clean).to_vec();
            for (before, after) in values(&critic, &inputs).iter().zip(values(&critic, &moved)) {
                let share = (before - after) / (0.2 * dual);
                assert!((0.97..1.001).contains(&share), "{norm:?}: {before} {after} {dual}");
            }
            assert_eq!((moved[3], moved[7]), (1.0, 0.0));
        }
    }

    #[test]
    fn the_ball_holds_and_no_value_rises() {
        let critic = Mlp::new(6, &[16, 16], 1, Activation::Tanh, 1.4, 1.0, &mut SeedTree::new(2).rng()).unwrap();
        let mut rng = Rng::from_seed(5);
        let inputs: Vec<f32> = (0..6 * 40).map(|_| rng.normal_f32().clamp(-1.5, 1.5)).collect();
        let clean = observed(&inputs, 6, &[1.0; 6], Some(1.5));
        let before = values(&critic, &inputs);
        for (norm, radius) in [(Norm::L2, 0.3), (Norm::Linf, 0.3), (Norm::L2, 0.0)] {
            let moved = attack(norm, radius).perturb(&critic, &clean).to_vec();
            let after = values(&critic, &moved);
            assert!(before.iter().zip(&after).all(|(b, a)| a <= b));
            let lowered = before.iter().zip(&after).filter(|(b, a)| a < b).count();
            assert_eq!(lowered > 35, radius > 0.0, "{norm:?}: {lowered}");
            for (x, clean) in moved.chunks_exact(6).zip(inputs.chunks_exact(6)) {
                let u: Vec<f32> = x.iter().zip(clean).map(|(a, b)| a - b).collect();
                assert!(length(&u, norm) <= radius as f32 * 1.001 && x.iter().all(|v| v.abs() <= 1.5), "{norm:?}: {u:?}");
            }
        }
    }
}
