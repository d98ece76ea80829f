//! The policy that knows nothing: uniformly random actions, the zero of scales of return.

use super::policy::{ActMode, ActionBatch, ActionsMut, ObservationBatch, Policy};
use crate::{EnvError, EnvSpec, Result, Rng, Space};

/// Draws every action uniformly from its space, whatever is observed and in either mode.
#[derive(Debug, Clone)]
pub struct UniformPolicy {
    actions: Vec<Space>,
    width: usize,
    /// Log-probability (density in boxes) of any action of each agent.
    log_probs: Vec<f32>,
}

impl UniformPolicy {
    /// The policy for the agents of `spec`.
    ///
    /// # Errors
    /// [`EnvError::Config`] if an agent's actions have no uniform law: unbounded boxes and texts.
    pub fn new(spec: &EnvSpec) -> Result<Self> {
        let refuse = |agent: &crate::AgentSpec| {
            Err(EnvError::Config {
                env: spec.name.clone(),
                field: "action",
                expected: "a choice or a bounded box, to draw from uniformly".to_string(),
                got: format!("{} of `{}`", agent.action, agent.name),
            })
        };
        let mut log_probs = Vec::with_capacity(spec.n_agents());
        for agent in &spec.agents {
            log_probs.push(match &agent.action {
                Space::Discrete { n } => -(*n as f32).ln(),
                Space::Box { low, high } if low.iter().chain(high).all(|v| v.is_finite()) => {
                    // A coordinate without room for choice has probability 1.
                    low.iter().zip(high).filter(|(l, h)| h > l).map(|(l, h)| -(h - l).ln()).sum()
                }
                Space::Box { .. } | Space::Tokens { .. } => return refuse(agent),
            });
        }
        Ok(Self { actions: spec.agents.iter().map(|a| a.action.clone()).collect(), width: spec.action_width(), log_probs })
    }
}

impl Policy for UniformPolicy {
    fn reset(&mut self, _slot: usize) {}

    fn act(&mut self, observations: &ObservationBatch<'_>, rngs: &mut [Rng], _mode: ActMode, out: &mut ActionBatch<'_>) -> Result<()> {
        let agents = observations.n_agents;
        for (slot, rng) in rngs.iter_mut().enumerate().take(observations.n_slots) {
            for (agent, space) in self.actions.iter().enumerate() {
                let place = slot * agents + agent;
                out.log_probs[place] = self.log_probs[agent];
                match (space, &mut out.actions) {
                    (Space::Discrete { n }, ActionsMut::Discrete(actions)) => actions[place] = rng.below(*n) as u32,
                    (Space::Box { low, high }, ActionsMut::Continuous(actions)) => {
                        let action = &mut actions[place * self.width..(place + 1) * self.width];
                        action.fill(0.0);
                        for (a, (l, h)) in action.iter_mut().zip(low.iter().zip(high)) {
                            *a = l + (h - l) * rng.unit_f32();
                        }
                    }
                    _ => return Err(EnvError::Policy("random actions of another kind than the world's".to_string())),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BanditConfig, IdentityConfig};
    use crate::{EnvConfig, RolloutEngine, RolloutOptions, SeedTree, VectorEnv};

    #[test]
    fn a_bandit_pays_the_mean_of_its_arms() {
        let config = EnvConfig::Bandit(BanditConfig { rewards: vec![0.0, 1.0, 5.0], std: 0.0, horizon: 500 });
        let worlds = VectorEnv::new((0..4).map(|_| config.build().unwrap()).collect(), SeedTree::new(1)).unwrap();
        let mut engine = RolloutEngine::new(worlds, SeedTree::new(2), RolloutOptions::default()).unwrap();
        let mut policy = UniformPolicy::new(engine.spec()).unwrap();
        let play = |engine: &mut RolloutEngine, policy: &mut UniformPolicy, mode| engine.evaluate(policy, 8, mode).unwrap();
        let episodes = play(&mut engine, &mut policy, ActMode::Greedy);
        let mean = episodes.iter().map(|e| e.agent_mean()).sum::<f64>() / (8.0 * 500.0);
        // Four standard errors of 4000 draws.
        assert!((mean - 2.0).abs() < 4.0 * 2.16 / 4000_f64.sqrt(), "{mean}");
        assert_eq!(play(&mut engine, &mut policy, ActMode::Sample), episodes);
    }

    #[test]
    fn vectors_fill_their_box_and_unbounded_ones_are_refused() {
        let config = EnvConfig::Identity(IdentityConfig { continuous_actions: true, n_agents: 2, ..Default::default() });
        let mut spec = config.build().unwrap().spec().clone();
        let (low, high) = (vec![-1.0_f32], vec![3.0_f32]);
        spec.agents.iter_mut().for_each(|a| a.action = Space::Box { low: low.clone(), high: high.clone() });
        let mut policy = UniformPolicy::new(&spec).unwrap();
        let (mut actions, mut log_probs) = ([0.0; 2], [0.0; 2]);
        let mut rngs = [Rng::from_seed(3)];
        let observations = ObservationBatch { n_slots: 1, n_agents: 2, width: 1, observations: &[0.0; 2] };
        let mut seen: Vec<f32> = Vec::new();
        for _ in 0..2000 {
            let mut out = ActionBatch { actions: ActionsMut::Continuous(&mut actions), log_probs: &mut log_probs };
            policy.act(&observations, &mut rngs, ActMode::Sample, &mut out).unwrap();
            seen.extend(actions);
        }
        assert!(seen.iter().all(|a| (-1.0..3.0).contains(a)));
        assert!((seen.iter().sum::<f32>() / 4000.0 - 1.0).abs() < 0.08);
        assert!((log_probs[0] + 4_f32.ln()).abs() < 1e-6);
        spec.agents[1].action = Space::unbounded(1);
        let message = UniformPolicy::new(&spec).unwrap_err().to_string();
        assert!(message.contains("`agent_1`") && message.contains("bounded"), "{message}");
    }
}
