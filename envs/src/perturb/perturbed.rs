//! The wrapper that perturbs any environment.

use super::action::{ActuatorLoss, MaliciousAction, copy_actions};
use super::dynamics::Dynamics;
use super::observation::ObservationNoise;
use super::reward::RewardNoise;
use super::sensor::{ObservationBias, ObservationDelay, ObservationDropout};
use super::signal::Signal;
use super::{PerturbationConfig, out_of_range, select_agents};
use crate::snapshot::{SnapshotReader, SnapshotWriter};
use crate::{Actions, EnvSpec, Environment, Result, SeedTree, Space, StepOut};

/// An environment whose agents see something else than there is, do not always do what they decide, or meet other physics.
///
/// The ends of episodes and the global state stay the true ones, and so do rewards unless noise on them is asked for. Each
/// perturbation draws from a stream of its own that depends on the episode's seed and its place in the list alone, so the
/// same episode at another strength meets the same random numbers.
///
/// Noise leaves any box, so agents that see it have unbounded observation boxes here, and so have the others of their
/// groups, because a group has equal spaces. That does not depend on the strength: all levels have one specification.
pub struct Perturbed {
    inner: Box<dyn Environment>,
    spec: EnvSpec,
    signals: Vec<Box<dyn Signal>>,
    acts: bool,
    /// Actions so far in the episode.
    step: usize,
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
        let mut signals: Vec<Box<dyn Signal>> = Vec::with_capacity(perturbations.len());
        for perturbation in perturbations {
            signals.push(match perturbation {
                PerturbationConfig::ObservationNoise(c) => Box::new(ObservationNoise::new(c, inner.spec())?),
                PerturbationConfig::ObservationBias(c) => Box::new(ObservationBias::new(c, inner.spec())?),
                PerturbationConfig::ObservationDropout(c) => Box::new(ObservationDropout::new(c, inner.spec())?),
                PerturbationConfig::ObservationDelay(c) => Box::new(ObservationDelay::new(c, inner.spec())?),
                PerturbationConfig::CommunicationNoise(c) => Box::new(ObservationNoise::on_messages(c, inner.as_ref())?),
                PerturbationConfig::MaliciousAction(c) => Box::new(MaliciousAction::new(c, inner.spec())?),
                PerturbationConfig::ActuatorLoss(c) => Box::new(ActuatorLoss::new(c, inner.spec())?),
                PerturbationConfig::Dynamics(c) => Box::new(Dynamics::new(c, inner.as_ref())?),
                PerturbationConfig::RewardNoise(c) => Box::new(RewardNoise::new(c, inner.spec())?),
            });
            let Some(agents) = perturbation.opens_observations() else { continue };
            for perturbed in select_agents(perturbation.name(), agents, inner.spec())? {
                let group = &inner.spec().agents[perturbed].group;
                for agent in spec.agents.iter_mut().filter(|a| a.group == *group) {
                    agent.observation = Space::unbounded(agent.observation.width());
                }
            }
        }
        let (agents, width) = (spec.n_agents(), spec.action_width());
        let discrete = if spec.has_discrete_actions() { agents } else { 0 };
        let continuous = if spec.has_continuous_actions() { agents * width } else { 0 };
        let acts = signals.iter().any(|s| s.acts());
        let changed: Vec<usize> = signals.iter().filter_map(|s| s.constant(0)).map(|(index, _)| index).collect();
        if let Some(twice) = changed.iter().enumerate().find(|(i, index)| changed[..*i].contains(index)) {
            let constant = inner.constants()[*twice.1];
            return out_of_range("dynamics", "constant", "each constant once", format!("`{constant}` twice"));
        }
        Ok(Self { inner, spec, signals, acts, step: 0, discrete: vec![0; discrete], continuous: vec![0.0; continuous] })
    }

    /// Sets the physical constants for the step to come.
    fn set_constants(&mut self) {
        for signal in &self.signals {
            if let Some((index, factor)) = signal.constant(self.step) {
                self.inner.scale_constant(index, factor);
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
        for (i, signal) in self.signals.iter_mut().enumerate() {
            signal.reset(tree.index(i as u64).rng());
        }
        self.step = 0;
        self.set_constants();
        self.inner.reset(seed, observations);
        self.signals.iter_mut().for_each(|signal| signal.observe(0, observations));
    }

    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        self.set_constants();
        let actions = if self.acts {
            copy_actions(actions, &mut self.discrete, &mut self.continuous);
            self.signals.iter_mut().for_each(|signal| signal.act(self.step, &mut self.discrete, &mut self.continuous));
            match actions {
                Actions::Discrete(_) => Actions::Discrete(&self.discrete),
                Actions::Continuous(_) => Actions::Continuous(&self.continuous),
                tokens @ Actions::Tokens(_) => tokens,
            }
        } else {
            actions
        };
        self.inner.step(actions, out)?;
        self.signals.iter_mut().for_each(|signal| signal.pay(self.step, out.rewards));
        self.step += 1;
        self.signals.iter_mut().for_each(|signal| signal.observe(self.step, out.observations));
        Ok(())
    }

    fn state(&self, out: &mut [f32]) {
        self.inner.state(out);
    }

    fn episode_metrics(&self, out: &mut [f64]) {
        self.inner.episode_metrics(out);
    }

    fn constants(&self) -> &'static [&'static str] {
        self.inner.constants()
    }

    fn scale_constant(&mut self, index: usize, factor: f64) {
        self.inner.scale_constant(index, factor);
    }

    fn message_features(&self, agent: usize) -> std::ops::Range<usize> {
        self.inner.message_features(agent)
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        out.u64(self.step as u64);
        self.signals.iter().for_each(|signal| signal.snapshot(out));
        self.inner.snapshot(out);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        self.step = input.u64()? as usize;
        for signal in &mut self.signals {
            signal.restore(input)?;
        }
        self.inner.restore(input)?;
        self.set_constants();
        Ok(())
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
        PerturbationConfig::ObservationNoise(ObservationNoiseConfig { law, magnitude, scale, ..Default::default() })
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
            let malicious = PerturbationConfig::MaliciousAction(MaliciousActionConfig {
                probability,
                behaviour,
                agents: vec!["agent_0".to_string()],
                ..Default::default()
            });
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

    /// Plays `steps` steps with the actions of `act` and hands each observation, step by step, to `see`.
    fn play(env: &mut dyn Environment, seed: u64, steps: usize, action: u32, mut see: impl FnMut(&[f32], &[f32])) {
        let spec = env.spec().clone();
        let mut observations = vec![0.0; spec.observation_width() * spec.n_agents()];
        let mut rewards = vec![0.0; spec.n_agents()];
        env.reset(seed, &mut observations);
        see(&observations, &rewards);
        for _ in 0..steps {
            let mut out = StepOut { observations: &mut observations, rewards: &mut rewards, terminated: false, truncated: false };
            env.step(Actions::Discrete(&vec![action; spec.n_agents()]), &mut out).unwrap();
            see(&observations, &rewards);
        }
    }

    fn trajectory(env: &mut dyn Environment, seed: u64, steps: usize, action: u32) -> Vec<Vec<f32>> {
        let mut seen = Vec::new();
        play(env, seed, steps, action, |o, _| seen.push(o.to_vec()));
        seen
    }

    fn spread() -> Box<dyn Environment> {
        EnvConfig::SimpleSpread(Default::default()).build().unwrap()
    }

    fn cart() -> Box<dyn Environment> {
        EnvConfig::CartPole(Default::default()).build().unwrap()
    }

    fn perturbed(inner: Box<dyn Environment>, text: &str) -> Perturbed {
        Perturbed::new(inner, &[config(text)]).unwrap()
    }

    fn config(text: &str) -> PerturbationConfig {
        let all: toml::Table = text.parse().unwrap();
        all["p"].clone().try_into().unwrap()
    }

    #[test]
    fn a_bias_stays_for_the_episode() {
        let plain = trajectory(spread().as_mut(), 3, 6, 1);
        let biased = trajectory(&mut perturbed(spread(), "[p.observation_bias]\nmagnitude = 0.3"), 3, 6, 1);
        let offset: Vec<f32> = biased[0].iter().zip(&plain[0]).map(|(b, p)| b - p).collect();
        assert!(offset.iter().all(|o| (o.abs() - 0.3).abs() < 1e-5));
        assert!(offset.iter().any(|o| *o > 0.0) && offset.iter().any(|o| *o < 0.0));
        for (p, b) in plain.iter().zip(&biased) {
            assert!(p.iter().zip(b).zip(&offset).all(|((p, b), o)| (b - p - o).abs() < 1e-5));
        }
    }

    #[test]
    fn a_delay_shows_the_past() {
        let plain = trajectory(spread().as_mut(), 5, 9, 2);
        for steps in [0_usize, 1, 3] {
            let late = trajectory(&mut perturbed(spread(), &format!("[p.observation_delay]\nsteps = {steps}.0")), 5, 9, 2);
            for (t, seen) in late.iter().enumerate() {
                assert_eq!(*seen, plain[t.saturating_sub(steps)], "{steps} {t}");
            }
        }
    }

    #[test]
    fn silent_sensors_show_zero_or_what_they_showed_last() {
        let plain = trajectory(spread().as_mut(), 5, 200, 2);
        for silence in ["zero", "hold"] {
            let text = format!("[p.observation_dropout]\nprobability = 0.3\nsilence = \"{silence}\"");
            let seen = trajectory(&mut perturbed(spread(), &text), 5, 200, 2);
            let (mut missing, mut all) = (0, 0);
            for t in 1..seen.len() {
                for i in 0..seen[t].len() {
                    let instead = if silence == "hold" { seen[t - 1][i] } else { 0.0 };
                    if seen[t][i] != plain[t][i] {
                        assert_eq!(seen[t][i], instead);
                        missing += 1;
                    }
                    // Where both are the same number, nothing can be told.
                    all += usize::from(plain[t][i] != instead);
                }
            }
            let rate = missing as f64 / all as f64;
            assert!((rate - 0.3).abs() < 0.03, "{silence}: {rate}");
        }
    }

    #[test]
    fn a_burst_perturbs_its_steps_alone() {
        let plain = trajectory(spread().as_mut(), 1, 12, 1);
        let text = "[p.observation_noise]\nmagnitude = 0.5\nschedule = { burst = { start = 4, length = 3 } }";
        let seen = trajectory(&mut perturbed(spread(), text), 1, 12, 1);
        for (t, (p, s)) in plain.iter().zip(&seen).enumerate() {
            assert_eq!(p != s, (4..7).contains(&t), "{t}");
        }
    }

    #[test]
    fn changed_constants_act_as_a_world_configured_so() {
        for (constant, change, changed) in [
            ("mass", 1.0, "[env.simple_spread.physics]\nmass = 2.0"),
            ("damping", -0.4, "[env.simple_spread.physics]\ndamping = 0.15"),
            ("step_seconds", 0.5, "[env.simple_spread.physics]\nstep_seconds = 0.15"),
            ("contact_force", -0.5, "[env.simple_spread.physics]\ncontact_force = 50.0"),
            // Half the force on the same mass moves as the same force on twice the mass, away from contacts.
            ("force", -0.5, "[env.simple_spread.physics]\nmass = 2.0\ncontact_force = 200.0"),
        ] {
            let table: toml::Table = changed.parse().unwrap();
            let configured: EnvConfig = table["env"].clone().try_into().unwrap();
            let text = format!("[p.dynamics]\nconstant = \"{constant}\"\nchange = {change:?}");
            let mut env = perturbed(spread(), &text);
            for seed in [1, 2] {
                let (a, b) = (trajectory(configured.build().unwrap().as_mut(), seed, 20, 1), trajectory(&mut env, seed, 20, 1));
                for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
                    assert!((a - b).abs() < 1e-5, "{constant}: {a} {b}");
                }
            }
        }
        let heavy = EnvConfig::CartPole(crate::control::CartPoleConfig { pole_mass: 0.3, ..Default::default() });
        let mut env = perturbed(cart(), "[p.dynamics]\nconstant = \"pole_mass\"\nchange = 2.0");
        let (a, b) = (trajectory(heavy.build().unwrap().as_mut(), 2, 8, 1), trajectory(&mut env, 2, 8, 1));
        assert!(a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn every_constant_matters_and_comes_back() {
        for name in ["cart_pole", "acrobot", "simple_tag", "simple_spread"] {
            let table: toml::Table = format!("[env.{name}]").parse().unwrap();
            let world = || table["env"].clone().try_into::<EnvConfig>().unwrap().build().unwrap();
            let action = if name == "cart_pole" { 1 } else { 2 };
            for constant in world().constants() {
                let text =
                    format!("[p.dynamics]\nconstant = \"{constant}\"\nchange = 0.8\nschedule = {{ burst = {{ start = 2, length = 14 }} }}");
                let mut env = perturbed(world(), &text);
                // Agents start in each other's way sooner or later, and speeds reach their limits.
                let differs = (0..30).any(|seed| trajectory(world().as_mut(), seed, 16, action) != trajectory(&mut env, seed, 16, action));
                // There is no limit to change where agents have none.
                assert_eq!(differs, !(name == "simple_spread" && *constant == "max_speed"), "{name} {constant}");
                // The next episode begins with the constants as they were.
                assert_eq!(trajectory(world().as_mut(), 9, 2, action), trajectory(&mut env, 9, 2, action), "{name} {constant}");
            }
        }
    }

    #[test]
    fn unknown_constants_are_named() {
        let message = |inner: Box<dyn Environment>| {
            Perturbed::new(inner, &[config("[p.dynamics]\nconstant = \"viscosity\"")]).err().unwrap().to_string()
        };
        assert!(message(spread()).contains("damping") && message(spread()).contains("`viscosity`"));
        assert!(message(identity()).contains("no physical constants"), "{}", message(identity()));
        let twice = Perturbed::new(spread(), &[config("[p.dynamics]"), config("[p.dynamics]\nchange = 2.0")]).err().unwrap().to_string();
        assert!(twice.contains("`mass` twice"), "{twice}");
    }

    #[test]
    fn some_of_the_agents_turn_anew_in_each_episode() {
        let text = "[p.malicious_action]\nprobability = 1.0\nbehaviour = \"frozen\"\ncount = 1";
        let mut env = perturbed(spread(), text);
        let plain: Vec<_> = (0..20).map(|seed| trajectory(spread().as_mut(), seed, 1, 2)).collect();
        let mut turned = [0; 3];
        for (seed, plain) in plain.iter().enumerate() {
            let seen = trajectory(&mut env, seed as u64, 1, 2);
            // The frozen action leaves the agent at rest: its own velocity tells.
            let still: Vec<usize> = (0..3).filter(|agent| seen[1][agent * 18] != plain[1][agent * 18]).collect();
            assert_eq!(still.len(), 1, "{seed}");
            turned[still[0]] += 1;
        }
        assert!(turned.iter().all(|n| *n > 0), "{turned:?}");
        let message = Perturbed::new(spread(), &[config("[p.malicious_action]\ncount = 4")]).err().unwrap().to_string();
        assert!(message.contains("`count`") && message.contains('3'), "{message}");
    }

    #[test]
    fn noise_on_messages_leaves_the_rest_alone() {
        for (name, heard) in [("simple_speaker_listener", [19..22, 0..0]), ("simple_reference", [11..21, 32..42])] {
            let table: toml::Table = format!("[env.{name}]").parse().unwrap();
            let world = || table["env"].clone().try_into::<EnvConfig>().unwrap().build().unwrap();
            let plain = trajectory(world().as_mut(), 1, 3, 1);
            let seen = trajectory(&mut perturbed(world(), "[p.communication_noise]\nmagnitude = 0.5"), 1, 3, 1);
            for (p, s) in plain.iter().zip(&seen) {
                for (i, (p, s)) in p.iter().zip(s).enumerate() {
                    assert_eq!(p != s, heard.iter().any(|range| range.contains(&i)), "{name} {i}");
                }
            }
        }
        let message = Perturbed::new(spread(), &[config("[p.communication_noise]")]).err().unwrap().to_string();
        assert!(message.contains("messages"), "{message}");
    }

    #[test]
    fn noise_on_rewards_leaves_the_world_alone() {
        let (mut plain, mut noisy) = (Vec::new(), Vec::new());
        play(spread().as_mut(), 1, 500, 1, |o, r| plain.push((o.to_vec(), r[0])));
        play(&mut perturbed(spread(), "[p.reward_noise]\nmagnitude = 0.5"), 1, 500, 1, |o, r| noisy.push((o.to_vec(), r[0])));
        assert!(plain.iter().zip(&noisy).all(|(a, b)| a.0 == b.0));
        let square: f32 = plain.iter().zip(&noisy).map(|(a, b)| (a.1 - b.1).powi(2)).sum::<f32>() / 500.0;
        assert!((square.sqrt() - 0.5).abs() < 0.05, "{square}");
    }

    #[test]
    fn a_weak_motor_is_a_smaller_action() {
        let world = || EnvConfig::Pendulum(Default::default()).build().unwrap();
        let run = |mut env: Box<dyn Environment>, torque: f32| {
            let mut observations = [0.0; 3];
            env.reset(4, &mut observations);
            for _ in 0..5 {
                let mut out = StepOut { observations: &mut observations, rewards: &mut [0.0], terminated: false, truncated: false };
                env.step(Actions::Continuous(&[torque]), &mut out).unwrap();
            }
            observations
        };
        let weak = perturbed(world(), "[p.actuator_loss]\nloss = 0.25");
        assert_eq!(run(Box::new(weak), 1.0), run(world(), 0.75));
        let whole = perturbed(world(), "[p.actuator_loss]\nloss = 0.0");
        assert_eq!(run(Box::new(whole), 1.0), run(world(), 1.0));
        let message = Perturbed::new(spread(), &[config("[p.actuator_loss]")]).err().unwrap().to_string();
        assert!(message.contains("continuous"), "{message}");
    }

    #[test]
    fn level_zero_is_the_plain_world_for_every_perturbation() {
        // Actions of these worlds are choices; weak motors are looked at above.
        for (name, _) in PerturbationConfig::LIST.iter().filter(|(name, _)| *name != "actuator_loss") {
            let zero = config(&format!("[p.{name}]")).with_level(0.0);
            assert_eq!((zero.name(), zero.level()), (*name, 0.0));
            let table: toml::Table =
                if *name == "communication_noise" { "[env.simple_reference]" } else { "[env.simple_spread]" }.parse().unwrap();
            let world: EnvConfig = table["env"].clone().try_into().unwrap();
            let plain = trajectory(world.build().unwrap().as_mut(), 7, 10, 1);
            assert_eq!(trajectory(&mut Perturbed::new(world.build().unwrap(), &[zero]).unwrap(), 7, 10, 1), plain, "{name}");
        }
    }

    #[test]
    fn worlds_under_every_perturbation_keep_the_contract() {
        let kinds = [
            "[p.observation_bias]",
            "[p.observation_dropout]\nsilence = \"hold\"\nrandomize = true",
            "[p.observation_delay]\nsteps = 2.0",
            "[p.malicious_action]\ncount = 2\nrandomize = true\nschedule = { drift = { length = 5 } }",
            "[p.dynamics]\nconstant = \"force\"\nrandomize = true",
            "[p.reward_noise]\nschedule = { onset = { start = 3 } }",
        ];
        let all: Vec<PerturbationConfig> = kinds.iter().map(|text| config(text)).collect();
        check_environment(&|| Ok(Box::new(Perturbed::new(spread(), &all)?))).unwrap();
    }
}
