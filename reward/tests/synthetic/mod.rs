//! The synthetic task of robustness tests: pairs of segments of the world `random_reward`, labelled with noise.

use steadfast_envs::random_reward::RandomRewardConfig;
use steadfast_envs::testing::random_actions;
use steadfast_envs::{
    ActMode, ActionBatch, ActionsMut, EnvSpec, Environment, ObservationBatch, Policy, RolloutEngine, RolloutOptions, SeedTree, VectorEnv,
};
use steadfast_reward::dataset::{UnlabelledPair, collect_segments};
use steadfast_reward::{NoiseConfig, SegmentPair, SegmentPreference};

/// Steps of a segment, and of an episode.
pub const STEPS: usize = 10;

/// Acts at random.
pub struct RandomPolicy(pub EnvSpec);

impl Policy for RandomPolicy {
    fn reset(&mut self, _slot: usize) {}

    fn act(
        &mut self,
        observations: &ObservationBatch<'_>,
        rngs: &mut [steadfast_envs::Rng],
        _mode: ActMode,
        out: &mut ActionBatch<'_>,
    ) -> steadfast_envs::Result<()> {
        let n = observations.n_agents;
        let width = self.0.action_width();
        for (slot, rng) in rngs.iter_mut().enumerate() {
            match &mut out.actions {
                ActionsMut::Discrete(a) => random_actions(&self.0, rng, &mut a[slot * n..(slot + 1) * n], &mut []),
                ActionsMut::Continuous(a) => random_actions(&self.0, rng, &mut [], &mut a[slot * n * width..(slot + 1) * n * width]),
            }
        }
        out.log_probs.fill(0.0);
        Ok(())
    }
}

/// `n` labelled pairs; each segment is in one pair. The world's reward is drawn from `seeds`, too.
pub fn labelled_pairs(n: usize, noise: &NoiseConfig, seeds: SeedTree, purpose: &str) -> Vec<SegmentPreference> {
    let config = RandomRewardConfig { horizon: STEPS, seed: seeds.child("task").seed(), ..Default::default() };
    let seeds = seeds.child(purpose);
    let envs = (0..16).map(|_| Box::new(config.build().unwrap()) as Box<dyn Environment>).collect();
    let vector = VectorEnv::new(envs, seeds.child("environment")).unwrap();
    let mut policy = RandomPolicy(vector.spec().clone());
    let mut engine = RolloutEngine::new(vector, seeds.child("policy"), RolloutOptions::default()).unwrap();
    let found = collect_segments(&mut engine, &mut policy, "random", 2 * n, STEPS, ActMode::Sample, seeds.child("segments")).unwrap();
    let mut segments = found.segments.into_iter();
    let pairs = (0..n)
        .map(|i| {
            let pair = SegmentPair { chosen: segments.next().unwrap(), rejected: segments.next().unwrap() };
            UnlabelledPair::of_segments(format!("{i}"), pair, STEPS).unwrap()
        })
        .collect();
    noise.label(pairs, None, seeds.child("label")).unwrap().0
}
