//! The wrapper that perturbs any environment.

use super::action::{MaliciousAction, copy_actions};
use super::observation::ObservationNoise;
use super::{PerturbationConfig, select_agents};
use crate::snapshot::{SnapshotReader, SnapshotWriter};
use crate::{Actions, EnvSpec, Environment, Result, Rng, SeedTree, Space, StepOut};

/// One prepared perturbation with its own stream of random numbers.
#[derive(Debug)]
enum Signal {
    Observation(ObservationNoise),
    Action(MaliciousAction),
}

/// An environment whose agents see noise, or do not always do what they decide.
///
/// Rewards, the ends of episodes and the global state stay the true ones. Each perturbation draws from a stream of its
/// own that depends on the episode's seed and its place in the list alone, so the same episode at another magnitude
/// meets the same random numbers.
///
/// Noise leaves any box, so agents that see it have unbounded observation boxes here, and so have the others of their
/// groups, because a group has equal spaces. That does not depend on the magnitude: all levels have one specification.
pub struct Perturbed {
    inner: Box<dyn Environment>,
    spec: EnvSpec,
    signals: Vec<(Signal, Rng)>,
    discrete: Vec<u32>,
    continuous: Vec<f32>,
}

impl Perturbed {
    /// Wraps `inner`; with an empty list nothing changes.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a perturbation does not fit the environment.
    pub fn new(inner: Box<dyn Environment>, perturbations: &[PerturbationConfig]) -> Result<Self> {
        let mut spec = inner.spec().clone();
        let mut signals = Vec::with_capacity(perturbations.len());
        for perturbation in perturbations {
            let signal = match perturbation {
                PerturbationConfig::ObservationNoise(c) => {
                    for noisy in select_agents("observation_noise", &c.agents, inner.spec())? {
                        let group = &inner.spec().agents[noisy].group;
                        for agent in spec.agents.iter_mut().filter(|a| a.group == *group) {
                            agent.observation = Space::unbounded(agent.observation.width());
                        }
                    }
                    Signal::Observation(ObservationNoise::new(c, inner.spec())?)
                }
                PerturbationConfig::MaliciousAction(c) => Signal::Action(MaliciousAction::new(c, inner.spec())?),
            };
            signals.push((signal, Rng::from_seed(0)));
        }
        let (agents, width) = (spec.n_agents(), spec.action_width());
        let discrete = if spec.has_discrete_actions() { agents } else { 0 };
        let continuous = if spec.has_continuous_actions() { agents * width } else { 0 };
        Ok(Self { inner, spec, signals, discrete: vec![0; discrete], continuous: vec![0.0; continuous] })
    }

    fn perturb_observations(&mut self, observations: &mut [f32]) {
        for (signal, rng) in &mut self.signals {
            if let Signal::Observation(noise) = signal {
                noise.apply(rng, observations);
            }
        }
    }
}

impl Environment for Perturbed {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        let tree = SeedTree::new(seed).child("perturbation");
        for (i, (_, rng)) in self.signals.iter_mut().enumerate() {
            *rng = tree.index(i as u64).rng();
        }
        self.inner.reset(seed, observations);
        self.perturb_observations(observations);
    }

    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        if self.signals.iter().any(|(s, _)| matches!(s, Signal::Action(_))) {
            copy_actions(actions, &mut self.discrete, &mut self.continuous);
            for (signal, rng) in &mut self.signals {
                if let Signal::Action(malicious) = signal {
                    malicious.apply(rng, &mut self.discrete, &mut self.continuous);
                }
            }
            let actions = match actions {
                Actions::Discrete(_) => Actions::Discrete(&self.discrete),
                Actions::Continuous(_) => Actions::Continuous(&self.continuous),
                tokens @ Actions::Tokens(_) => tokens,
            };
            self.inner.step(actions, out)?;
        } else {
            self.inner.step(actions, out)?;
        }
        self.perturb_observations(out.observations);
        Ok(())
    }

    fn state(&self, out: &mut [f32]) {
        self.inner.state(out);
    }

    fn episode_metrics(&self, out: &mut [f64]) {
        self.inner.episode_metrics(out);
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        for (_, rng) in &self.signals {
            rng.snapshot(out);
        }
        self.inner.snapshot(out);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        for (_, rng) in &mut self.signals {
            *rng = Rng::restore(input)?;
        }
        self.inner.restore(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EnvConfig;
    use crate::perturb::{Behaviour, MaliciousActionConfig, NoiseLaw, ObservationNoiseConfig};
    use crate::testing::{BanditConfig, IdentityConfig, check_environment};

    fn identity() -> Box<dyn Environment> {
        EnvConfig::Identity(IdentityConfig::default()).build().unwrap()
    }

    fn noise(law: NoiseLaw, magnitude: f64, scale: Vec<f32>) -> PerturbationConfig {
        PerturbationConfig::ObservationNoise(ObservationNoiseConfig { law, magnitude, scale, agents: Vec::new() })
    }

    #[test]
    fn zero_magnitude_changes_nothing() {
        let mut plain = identity();
        let mut perturbed = Perturbed::new(identity(), &[noise(NoiseLaw::Gaussian, 0.0, vec![])]).unwrap();
        let width = plain.spec().observation_width() * plain.spec().n_agents();
        let (mut a, mut b) = (vec![0.0; width], vec![0.0; width]);
        for seed in 0..20 {
            plain.reset(seed, &mut a);
            perturbed.reset(seed, &mut b);
            assert_eq!(a, b);
        }
    }

    #[test]
    fn laws_have_their_moments_and_supports() {
        for (law, std) in [(NoiseLaw::Gaussian, 0.5), (NoiseLaw::Uniform, 0.5 / 3f64.sqrt()), (NoiseLaw::Sign, 0.5)] {
            let mut plain = identity();
            let mut perturbed = Perturbed::new(identity(), &[noise(law, 0.5, vec![])]).unwrap();
            let width = plain.spec().observation_width();
            let (mut a, mut b) = (vec![0.0; width], vec![0.0; width]);
            let (mut sum, mut square, mut n) = (0.0, 0.0, 0.0);
            for seed in 0..5000 {
                plain.reset(seed, &mut a);
                perturbed.reset(seed, &mut b);
                for (x, y) in a.iter().zip(&b) {
                    let d = f64::from(y - x);
                    match law {
                        NoiseLaw::Uniform => assert!(d.abs() <= 0.5 + 1e-6),
                        NoiseLaw::Sign => assert!((d.abs() - 0.5).abs() < 1e-6),
                        NoiseLaw::Gaussian => {}
                    }
                    sum += d;
                    square += d * d;
                    n += 1.0;
                }
            }
            assert!((sum / n).abs() < 0.02, "{law:?}");
            assert!(((square / n).sqrt() / std - 1.0).abs() < 0.03, "{law:?}");
        }
    }

    #[test]
    fn scale_switches_features_off_and_levels_share_draws() {
        let mut plain = identity();
        let mut small = Perturbed::new(identity(), &[noise(NoiseLaw::Gaussian, 0.1, vec![0.0, 1.0])]).unwrap();
        let mut large = Perturbed::new(identity(), &[noise(NoiseLaw::Gaussian, 0.2, vec![0.0, 1.0])]).unwrap();
        let width = plain.spec().observation_width();
        let (mut a, mut b, mut c) = (vec![0.0; width], vec![0.0; width], vec![0.0; width]);
        plain.reset(4, &mut a);
        small.reset(4, &mut b);
        large.reset(4, &mut c);
        assert_eq!(a[0], b[0]);
        assert_eq!(a[2..], b[2..]);
        assert!(a[1] != b[1]);
        assert!(((c[1] - a[1]) / (b[1] - a[1]) - 2.0).abs() < 1e-4);
    }

    #[test]
    fn malicious_actions_come_at_their_rate() {
        let config = EnvConfig::Bandit(BanditConfig { rewards: vec![0.0, 1.0], std: 0.0, horizon: 1000 });
        for (probability, behaviour, expected) in
            [(0.0, Behaviour::Random, 1.0), (0.5, Behaviour::Random, 0.75), (1.0, Behaviour::Random, 0.5), (1.0, Behaviour::Frozen, 0.0)]
        {
            let malicious =
                PerturbationConfig::MaliciousAction(MaliciousActionConfig { probability, behaviour, agents: vec!["agent_0".to_string()] });
            let mut env = Perturbed::new(config.build().unwrap(), &[malicious]).unwrap();
            let mut observations = vec![0.0; env.spec().observation_width()];
            let mut total = 0.0;
            for seed in 0..10 {
                env.reset(seed, &mut observations);
                for _ in 0..1000 {
                    let mut rewards = [0.0];
                    env.step(
                        Actions::Discrete(&[1]),
                        &mut StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false },
                    )
                    .unwrap();
                    total += f64::from(rewards[0]);
                }
            }
            assert!((total / 10_000.0 - expected).abs() < 0.02, "{probability} {behaviour:?}: {total}");
        }
    }

    #[test]
    fn perturbed_world_keeps_the_contract() {
        check_environment(&|| {
            let malicious = PerturbationConfig::MaliciousAction(MaliciousActionConfig::default());
            Ok(Box::new(Perturbed::new(identity(), &[noise(NoiseLaw::Sign, 0.3, vec![]), malicious])?))
        })
        .unwrap();
    }

    #[test]
    fn unknown_agents_and_bad_numbers_are_named() {
        let wrong = PerturbationConfig::ObservationNoise(ObservationNoiseConfig { agents: vec!["prey".to_string()], ..Default::default() });
        let message = Perturbed::new(identity(), &[wrong]).err().unwrap().to_string();
        assert!(message.contains("`prey`") && message.contains("agent_0"), "{message}");
        assert!(Perturbed::new(identity(), &[noise(NoiseLaw::Gaussian, -1.0, vec![])]).is_err());
        assert!(Perturbed::new(identity(), &[noise(NoiseLaw::Gaussian, 0.1, vec![1.0; 99])]).is_err());
    }

    #[test]
    fn unbounded_actions_cannot_be_replaced_and_validation_says_so() {
        let config = EnvConfig::Identity(IdentityConfig { continuous_actions: true, n_agents: 2, ..Default::default() });
        let mut spec = config.build().unwrap().spec().clone();
        let malicious = |agent: &str| {
            PerturbationConfig::MaliciousAction(MaliciousActionConfig { agents: vec![agent.to_string()], ..Default::default() })
        };
        assert_eq!(malicious("agent_1").validate(&spec), Ok(()));
        spec.agents[1].action = Space::unbounded(1);
        let message = malicious("agent_1").validate(&spec).unwrap_err().to_string();
        assert!(message.contains("`agents`") && message.contains("`agent_1`"), "{message}");
        assert_eq!(malicious("agent_0").validate(&spec), Ok(()));
    }

    #[test]
    fn noise_opens_the_observation_box_and_nothing_else() {
        let pendulum = || EnvConfig::Pendulum(Default::default()).build().unwrap();
        let malicious = PerturbationConfig::MaliciousAction(MaliciousActionConfig::default());
        let bounded = Perturbed::new(pendulum(), &[malicious]).unwrap();
        assert_eq!(bounded.spec(), pendulum().spec());
        for magnitude in [0.0, 0.1] {
            let noisy = Perturbed::new(pendulum(), &[noise(NoiseLaw::Gaussian, magnitude, vec![])]).unwrap();
            assert_eq!(noisy.spec().agents[0].observation, Space::unbounded(3));
            assert_eq!(noisy.spec().agents[0].action, pendulum().spec().agents[0].action);
        }
    }
}
