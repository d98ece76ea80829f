//! An attacker on observations who knows their value.
//!
//! An attack on the outputs of a policy makes it act differently, which need not be worse. This one shows the agent, out of
//! the ball around what there is, what is worst for it: projected gradient descent on a [`Value`] from several starts, the clean
//! observation among the candidates. The policy then acts on what it is shown. Of numbered choices the greedy one is judged, also where
//! the policy draws.
//!
//! Source: the critic attack of Pattanaik et al. 2018, "Robust Deep Reinforcement Learning with Adversarial Attacks" (arXiv
//! 1712.03632), who descend the value, at the true observation, of the action that the policy takes at the false one
//! ([`Value::Action`]). A critic of states alone, as PPO has, cannot tell what an action is worth, so that `V` at the false observation is
//! descended in its place, as is usual for PPO ([`Value::State`]). A critic that neither sees the agent's observation nor its action
//! gives nothing to descend.

use steadfast_envs::Rng;

use super::Observed;
use super::attack::ObservationAttackConfig;
use super::ball::{Direction, Norm, ascend, project};
use super::lipschitz::{place, slopes};
use crate::explore::greedy;
use crate::nn::{Mlp, Trace};

/// What an attacker on the value lowers.
pub enum Value<'a> {
    /// The value that this network of one output gives to an observation.
    State(&'a Mlp),
    /// The value of what a policy does at an observation.
    Action {
        /// From observations to outputs.
        policy: &'a Mlp,
        /// The value of its outputs.
        of: &'a mut dyn ActionValue,
    },
}

/// What is done with the outputs of a policy, and the value of that at the true observations.
pub trait ActionValue {
    /// Writes the values `[rows]` of `outputs` `[rows, output]` into `value`, and into `d_outputs`, if it is wanted, a direction of outputs in
    /// which they grow.
    fn of(&mut self, outputs: &[f32], value: &mut [f32], d_outputs: Option<&mut [f32]>);
}

/// Numbered choices of known values, of which a policy takes the one with the greatest output.
///
/// The value of the greatest has no slope. It grows along that of a softened choice, with the probabilities of a softmax of the outputs
/// at a temperature of a third of their range, at which none of them vanishes.
pub struct ChoiceValues<'a> {
    /// `[rows, choice]`.
    pub values: &'a [f32],
    /// Number of choices.
    pub n: usize,
}

impl ActionValue for ChoiceValues<'_> {
    fn of(&mut self, outputs: &[f32], value: &mut [f32], d_outputs: Option<&mut [f32]>) {
        for ((outputs, values), value) in outputs.chunks_exact(self.n).zip(self.values.chunks_exact(self.n)).zip(value) {
            *value = values[greedy(outputs)];
        }
        let Some(d_outputs) = d_outputs else { return };
        let rows = outputs.chunks_exact(self.n).zip(self.values.chunks_exact(self.n)).zip(d_outputs.chunks_exact_mut(self.n));
        for ((outputs, values), d) in rows {
            let (low, high) = outputs.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
            let temperature = ((high - low) / 3.0).max(f32::MIN_POSITIVE);
            d.iter_mut().zip(outputs).for_each(|(d, v)| *d = ((v - high) / temperature).exp());
            let sum: f32 = d.iter().sum();
            let mean = d.iter().zip(values).map(|(p, v)| p * v).sum::<f32>() / sum;
            // Without the temperature, which belongs to the length alone.
            d.iter_mut().zip(values).for_each(|(d, v)| *d = *d / sum * (v - mean));
        }
    }
}

/// An [`ObservationAttackConfig`] at work on a value.
pub struct ValueAttack {
    config: ObservationAttackConfig,
    rng: Rng,
    lowest: Vec<f32>,
    inputs: Vec<f32>,
    offset: Vec<f32>,
    slope: Vec<f32>,
    perturbed: Vec<f32>,
    value: Vec<f32>,
    d_output: Vec<f32>,
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
            value: Vec::new(),
            d_output: Vec::new(),
            d_input: Vec::new(),
            trace: Trace::default(),
        }
    }

    /// The inputs `[rows, input]` of the least value.
    pub fn perturb(&mut self, target: &mut Value<'_>, clean: &Observed<'_>) -> &[f32] {
        let net = match target {
            Value::State(critic) => *critic,
            Value::Action { policy, .. } => *policy,
        };
        let (rows, width, features) = (clean.rows, net.input(), clean.unit.len());
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
        self.d_output.resize(rows * net.output(), 0.0);
        self.offset.resize(rows * features, 0.0);
        self.slope.resize(rows * features, 0.0);
        self.value.resize(rows, 0.0);
        net.forward_train(&clean.inputs[..rows * width], rows, &mut self.trace);
        self.assess(target, false);
        self.lowest.clear();
        self.lowest.extend_from_slice(&self.value);
        for _ in 0..self.config.restarts {
            for u in self.offset.chunks_exact_mut(features.max(1)) {
                u.iter_mut().for_each(|v| *v = 0.5 * radius * self.rng.normal_f32());
                project(u, norm, radius);
            }
            for step in 0..=self.config.steps {
                let is_last = step == self.config.steps;
                place(clean, width, &self.offset, &mut self.perturbed);
                net.forward_train(&self.perturbed, rows, &mut self.trace);
                self.assess(target, !is_last);
                for (row, &value) in self.value.iter().enumerate() {
                    if value < self.lowest[row] {
                        self.lowest[row] = value;
                        let at = row * width..(row + 1) * width;
                        self.inputs[at.clone()].copy_from_slice(&self.perturbed[at]);
                    }
                }
                if is_last {
                    break;
                }
                net.backward(&mut self.trace, &self.d_output, None, Some(&mut self.d_input));
                slopes(clean, width, &self.perturbed, &self.d_input, &mut self.slope);
                for (u, g) in self.offset.chunks_exact_mut(features.max(1)).zip(self.slope.chunks_exact(features.max(1))) {
                    ascend(u, g, direction, step_size);
                    project(u, norm, radius);
                }
            }
        }
        &self.inputs
    }

    /// The values of the network's last outputs into `value`, and into `d_output`, if it is wanted, a direction in which they fall.
    fn assess(&mut self, target: &mut Value<'_>, with_slope: bool) {
        match target {
            Value::State(_) => {
                self.value.copy_from_slice(self.trace.output());
                self.d_output.fill(-1.0);
            }
            Value::Action { of, .. } => {
                of.of(self.trace.output(), &mut self.value, with_slope.then_some(&mut *self.d_output));
                if with_slope {
                    self.d_output.iter_mut().for_each(|d| *d = -*d);
                }
            }
        }
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
            let moved = attack(norm, 0.2).perturb(&mut Value::State(&critic), &clean).to_vec();
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
            let moved = attack(norm, radius).perturb(&mut Value::State(&critic), &clean).to_vec();
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

    #[test]
    fn action_values_are_attacked_to_the_worst_choice_in_reach() {
        // Two features, three choices with outputs x, y and -1: the first is taken at (0.3, 0.2), and has the greatest value.
        let mut policy = Mlp::new(2, &[], 3, Activation::Tanh, 1.0, 1.0, &mut SeedTree::new(1).rng()).unwrap();
        let (_, stride) = (policy.n_parameters(), policy.n_parameters() / 3);
        let parameters = policy.parameters_mut();
        parameters.fill(0.0);
        (parameters[0], parameters[stride + 1], parameters[2 * stride + 2]) = (1.0, 1.0, -1.0);
        let inputs = [0.3, 0.2];
        let clean = observed(&inputs, 2, &[1.0, 1.0], None);
        for (values, radius, expected) in [
            // The second choice is worse and near, the third is worst and out of reach.
            ([1.0, 0.0, -5.0], 0.2, 1),
            // The ball is too small for anything.
            ([1.0, 0.0, -5.0], 0.02, 0),
            // What is taken is worst already.
            ([-1.0, 0.0, 5.0], 0.2, 0),
            // Far enough, the third.
            ([1.0, 0.0, -5.0], 1.6, 2),
        ] {
            let mut of = ChoiceValues { values: &values, n: 3 };
            let mut attack = attack(Norm::Linf, radius);
            let moved = attack.perturb(&mut Value::Action { policy: &policy, of: &mut of }, &clean).to_vec();
            let outputs = [moved[0], moved[1], -1.0];
            assert_eq!(greedy(&outputs), expected, "{values:?} {radius}: {moved:?}");
        }
    }
}
