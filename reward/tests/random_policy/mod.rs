//! Policies for tests that need actions and no sense.

use steadfast_envs::testing::random_actions;
use steadfast_envs::{ActMode, ActionBatch, ActionsMut, EnvSpec, ObservationBatch, Policy, Rng};

/// Acts at random.
pub struct RandomPolicy(pub EnvSpec);

impl Policy for RandomPolicy {
    fn reset(&mut self, _slot: usize) {}

    fn act(
        &mut self,
        observations: &ObservationBatch<'_>,
        rngs: &mut [Rng],
        _mode: ActMode,
        out: &mut ActionBatch<'_>,
    ) -> steadfast_envs::Result<()> {
        let n = observations.n_agents;
        let width = self.0.action_width();
        for (slot, rng) in rngs.iter_mut().enumerate() {
            match &mut out.actions {
                ActionsMut::Discrete(a) => random_actions(&self.0, rng, &mut a[slot * n..(slot + 1) * n], &mut []),
                ActionsMut::Continuous(a) => random_actions(&self.0, rng, &mut [], &mut a[slot * n * width..(slot + 1) * n * width]),
                ActionsMut::Tokens(_) => return Err(steadfast_envs::EnvError::Policy("no texts".to_string())),
            }
        }
        out.log_probs.fill(0.0);
        Ok(())
    }
}

/// Pushes far beyond the limits of a world with one agent and continuous actions.
#[allow(dead_code, reason = "not every test that acts at random also does this")]
pub struct Wild;

impl Policy for Wild {
    fn reset(&mut self, _slot: usize) {}

    fn act(
        &mut self,
        _observations: &ObservationBatch<'_>,
        rngs: &mut [Rng],
        _mode: ActMode,
        out: &mut ActionBatch<'_>,
    ) -> steadfast_envs::Result<()> {
        if let ActionsMut::Continuous(actions) = &mut out.actions {
            actions.iter_mut().zip(rngs).for_each(|(a, rng)| *a = 5.0 * rng.normal_f32());
        }
        out.log_probs.fill(0.0);
        Ok(())
    }
}
