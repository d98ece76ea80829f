//! Every check that the types cannot express, in one place, before anything slow starts.

use std::collections::BTreeSet;
use std::path::Path;

use steadfast_agents::team::Sharing;
use steadfast_agents::{AgentConfig, AgentError};
use steadfast_envs::{EnvError, EnvSpec, PerturbationConfig, Perturbed, Space};
use steadfast_reward::dataset::{PreferenceFile, ReadOptions};
use steadfast_reward::{NoiseConfig, RewardError, SegmentSpec};

use super::ExperimentConfig;
use super::report::Problem;
use crate::experiment::build;

/// A value that does not fit, with its place in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Keys and list indices from the outside in.
    pub path: Vec<String>,
    /// What is wrong.
    pub problem: Problem,
}

impl Misfit {
    pub(super) fn new(path: &str, expected: &str, got: impl std::fmt::Display) -> Self {
        Self::at(path, Problem::new(format!("`{path}` must be {expected}, got {got}"), format!("must be {expected}")))
    }

    pub(super) fn at(path: &str, problem: Problem) -> Self {
        Self { path: path.split('.').map(str::to_string).collect(), problem }
    }

    pub(super) fn from_env(path: &str, error: &EnvError) -> Self {
        match error {
            EnvError::Config { field, expected, got, .. } => Self::new(&format!("{path}.{field}"), expected, got),
            other => Self::whole(path, other),
        }
    }

    pub(super) fn from_agent(path: &str, error: &AgentError) -> Self {
        match error {
            // Some settings stand beside those of the learner, and the learner itself may be the wrong one.
            AgentError::Config { field, expected, got }
                if field.contains("regularizer") || ["agent", "adversarial_training"].contains(&field.as_str()) =>
            {
                Self::new(field, expected, got)
            }
            AgentError::Config { field, expected, got } => Self::new(&format!("{path}.{field}"), expected, got),
            AgentError::Env(error) => Self::from_env(path, error),
            other => Self::whole(path, other),
        }
    }

    pub(super) fn from_reward(path: &str, error: &RewardError) -> Self {
        match error {
            RewardError::Config { field, expected, got } => Self::new(&format!("{path}.{field}"), expected, got),
            other => Self::whole(path, other),
        }
    }

    pub(super) fn whole(path: &str, error: &dyn std::fmt::Display) -> Self {
        Self::at(path, Problem::new(format!("`{path}`: {error}"), "does not fit"))
    }
}

pub(super) const MAX_SEED: u64 = i64::MAX as u64;

/// Checks ranges and that the parts fit each other.
///
/// # Errors
/// The first value that does not fit.
pub fn validate(config: &ExperimentConfig) -> Result<(), Misfit> {
    let c = config;
    identity(&c.name, c.seed, c.threads)?;
    let least = u64::from(c.reward.is_none());
    let range = if c.reward.is_some() { "between 0 and 2^53" } else { "between 1 and 2^53" };
    check((least..=1 << 53).contains(&c.total_steps), "total_steps", range, c.total_steps)?;
    check((1..=65_536).contains(&c.slots), "slots", "between 1 and 65536", c.slots)?;
    check((2..=1_000_000).contains(&c.eval.episodes), "eval.episodes", "between 2 and 1000000", c.eval.episodes)?;
    check(c.eval.seed <= MAX_SEED, "eval.seed", "at most 2^63 - 1", c.eval.seed)?;
    check(c.checkpoint.keep >= 1, "checkpoint.keep", "at least 1", c.checkpoint.keep)?;
    check(c.log.every_updates >= 1, "log.every_updates", "at least 1", c.log.every_updates)?;

    c.agent.validate().map_err(|e| Misfit::from_agent(&format!("agent.{}", c.agent.name()), &e))?;
    #[cfg(feature = "llm")]
    let is_text = super::language_check::online(c)?;
    #[cfg(not(feature = "llm"))]
    let is_text = false;
    check(is_text || c.device == "cpu", "device", "`cpu`, but for language models", format!("`{}`", c.device))?;
    if let steadfast_envs::EnvConfig::Prompts(prompts) = &c.env {
        // What depends on the tokenizer is checked when it is read.
        let is_range = |n: usize| (1..=1 << 20).contains(&n);
        check(is_range(prompts.max_prompt_tokens), "env.prompts.max_prompt_tokens", "between 1 and 1048576", prompts.max_prompt_tokens)?;
        check(is_range(prompts.max_new_tokens), "env.prompts.max_new_tokens", "between 1 and 1048576", prompts.max_new_tokens)?;
        check(c.perturb.is_empty(), "perturb", "absent in worlds of text", "some")?;
        return check(c.robustness.is_empty(), "robustness", "absent in worlds of text", "some");
    }
    let env = || c.env.build().map_err(|e| Misfit::from_env(&format!("env.{}", c.env.name()), &e));
    let spec = env()?.spec().clone();
    if let Some(regularizer) = &c.regularizer {
        regularizer.validate().map_err(|e| Misfit::from_agent(&format!("regularizer.{}", regularizer.name()), &e))?;
    }
    if let Some(regularizer) = &c.action_regularizer {
        regularizer.validate().map_err(|e| Misfit::from_agent("action_regularizer", &e))?;
    }
    if let Some(adversary) = &c.adversarial_training {
        adversary.validate().map_err(|e| Misfit::from_agent("adversarial_training", &e))?;
    }
    if let Some(reward) = &c.reward {
        let fail = |e: RewardError| Misfit::from_reward("reward", &e);
        reward.validate().map_err(fail)?;
        let noise = reward.noise.name();
        check(!matches!(reward.noise, NoiseConfig::Malicious(_)), "reward.noise", "an annotator of segments, which have no marks", noise)?;
        SegmentSpec::of(&spec).map_err(fail)?;
        let at_most = format!("at most {}, the steps of an episode", spec.horizon);
        check(reward.segment_steps <= spec.horizon, "reward.segment_steps", &at_most, reward.segment_steps)?;
    }
    if c.reward.is_some() && c.adversarial_training.is_some() {
        let expected = "absent with a learned reward, which would see what the adversary made of observations";
        return Err(Misfit::new("adversarial_training", expected, "one"));
    }
    if let (Some(reward), AgentConfig::QLearning(_) | AgentConfig::Maddpg(_)) = (&c.reward, &c.agent) {
        let expected = "1 with a learner from replay, whose memory keeps the rewards of earlier stages";
        check(reward.stages == 1, "reward.stages", expected, reward.stages)?;
    }
    fits_memory(c, &spec)?;
    // Building the learner finds what depends on both, such as a central critic in a world without a global state.
    if !is_text {
        build::learner(c, &build::Ground::default(), &spec)
            .map(drop)
            .map_err(|e| Misfit::from_agent(&format!("agent.{}", c.agent.name()), &e))?;
    }
    let fits = |place: String, perturbation: &PerturbationConfig| {
        let path = format!("{place}.{}", perturbation.name());
        perturbation.validate(&spec).map_err(|e| Misfit::from_env(&path, &e))?;
        Perturbed::new(env()?, std::slice::from_ref(perturbation)).map(drop).map_err(|e| Misfit::from_env(&path, &e))
    };
    for (i, perturbation) in c.perturb.iter().enumerate() {
        fits(format!("perturb.{i}"), perturbation)?;
    }
    for (i, sweep) in c.robustness.iter().enumerate() {
        let place = format!("robustness.{i}");
        check((2..=1_000_000).contains(&sweep.episodes), &format!("{place}.episodes"), "between 2 and 1000000", sweep.episodes)?;
        check(!sweep.levels.is_empty(), &format!("{place}.levels"), "at least one level", "none")?;
        for &level in &sweep.levels {
            // A level takes the place of the magnitude, so that its range is checked under the name the user wrote.
            fits(format!("{place}.axis"), &sweep.axis.with_level(level)).map_err(|mut misfit| {
                if misfit.path.last().is_some_and(|f| PerturbationConfig::LEVEL_FIELDS.contains(&f.as_str())) {
                    misfit.path = vec!["robustness".to_string(), i.to_string(), "levels".to_string()];
                }
                misfit
            })?;
        }
    }
    Ok(())
}

/// Checks what every kind of experiment has.
pub(super) fn identity(name: &str, seed: u64, threads: usize) -> Result<(), Misfit> {
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && !name.starts_with('.');
    check(!name.is_empty() && name.len() <= 100 && is_plain, "name", "1 to 100 letters, digits, `.`, `_` or `-`", name)?;
    check(seed <= MAX_SEED, "seed", "at most 2^63 - 1", seed)?;
    check(threads <= 1024, "threads", "between 0 and 1024", threads)
}

/// Checks the files that a valid configuration names, for a run that has still to read them.
///
/// # Errors
/// The first file that cannot be used.
pub fn files(config: &ExperimentConfig) -> Result<(), Misfit> {
    #[cfg(feature = "llm")]
    super::language_check::online_files(config)?;
    let Some(path) = config.reward.as_ref().and_then(|reward| reward.file.as_ref()) else { return Ok(()) };
    let fits = || {
        let env = config.env.build().map_err(|e| e.to_string())?;
        fits_file(path, SegmentSpec::of(env.spec()).map_err(|e| e.to_string())?)
    };
    fits().map_err(|reason| Misfit::at("reward.file", Problem::new(format!("`reward.file`: {reason}"), "does not fit")))
}

/// Opens a preference file and compares its first row with what the world gives.
fn fits_file(path: &Path, segment: SegmentSpec) -> Result<(), String> {
    let file = PreferenceFile::open(path, &ReadOptions::default()).map_err(|e| e.to_string())?;
    let expected = (segment.observation_width, segment.action.width());
    match file.segment_widths() {
        None => Err(format!(
            "{} compares texts, but control tasks need trajectory segments, as `steadfast preferences RUN -o FILE` writes them",
            path.display()
        )),
        Some(found) if found != expected => Err(format!(
            "steps in {} have {} observed numbers and {} of action, the world's have {} and {}",
            path.display(),
            found.0,
            found.1,
            expected.0,
            expected.1
        )),
        Some(_) => Ok(()),
    }
}

/// Most samples (one agent at one time) of a rollout.
const MAX_SAMPLES: f64 = (1_u64 << 31) as f64;
/// Most bytes that a rollout and the networks may need, by a rough estimate.
pub(super) const MAX_BYTES: f64 = 64.0 * GIB;

/// Refuses settings whose arrays would not fit, before anything is allocated.
fn fits_memory(c: &ExperimentConfig, spec: &EnvSpec) -> Result<(), Misfit> {
    // Language models are measured when they are read.
    let name = c.agent.name();
    // In floating point, which cannot overflow here.
    let (slots, agents) = (c.slots as f64, spec.n_agents() as f64);
    let (observation, state) = (spec.observation_width() as f64, spec.state_dim as f64);
    let choices = |agent: &steadfast_envs::AgentSpec| match &agent.action {
        Space::Discrete { n } => *n as f64,
        other => other.width() as f64,
    };
    let joint = agents * observation + spec.agents.iter().map(choices).sum::<f64>();
    // The replay memory if there is one, who shares, and hidden layers with the inputs before them.
    let (replay, sharing, networks) = match &c.agent {
        AgentConfig::Ppo(ppo) => {
            let networks =
                [("policy_hidden", observation, &ppo.policy_hidden), ("critic_hidden", observation.max(state), &ppo.critic_hidden)];
            (None, ppo.sharing, networks.to_vec())
        }
        AgentConfig::QLearning(q) => (Some(&q.replay), q.sharing, vec![("hidden", observation, &q.hidden)]),
        AgentConfig::Maddpg(m) => {
            let networks = [("policy_hidden", observation, &m.policy_hidden), ("critic_hidden", joint, &m.critic_hidden)];
            (Some(&m.replay), m.sharing, networks.to_vec())
        }
        #[cfg(feature = "llm")]
        _ => return Ok(()),
    };
    let rollout_steps = c.agent.rollout_steps();
    let samples = slots * agents * rollout_steps as f64;
    // Observations and states as seen and as normalised, and about 16 numbers per sample besides the action.
    let per_slot_step = 2.0 * (agents * observation + state) + agents * (16.0 + spec.action_width() as f64);
    let bytes = 4.0 * per_slot_step * slots * (rollout_steps as f64 + 1.0);
    if samples > MAX_SAMPLES || bytes > MAX_BYTES {
        let problem = Problem::new(
            format!("rollouts would not fit into memory: {samples:.2e} samples, about {:.1} GiB", bytes / GIB),
            "too many steps",
        );
        let agents = spec.n_agents();
        let field = format!("agent.{name}.rollout_steps");
        return Err(Misfit::at(
            &field,
            problem.help(format!(
                "`{field}` = {rollout_steps}, `slots` = {} and {agents} agents are multiplied; at most 2^31 samples and 64 GiB are allowed",
                c.slots
            )),
        ));
    }
    if let Some(replay) = replay {
        let row = agents * (observation + spec.action_width() as f64 + 1.0) + state + 1.0;
        // Of a minibatch both ends, the rows of each agent's critic, and activations of about as much again.
        let drawn = 4.0 * (row + agents * joint);
        for (field, steps, width) in [("capacity", replay.capacity, row), ("batch_size", replay.batch_size, drawn)] {
            let bytes = 4.0 * steps as f64 * width;
            if bytes > MAX_BYTES {
                let path = format!("agent.{name}.replay.{field}");
                let message = format!("`{path}` = {steps} steps would not fit into memory: about {:.1} GiB", bytes / GIB);
                return Err(Misfit::at(&path, Problem::new(message, "too many").help("at most 64 GiB are allowed")));
            }
        }
    }
    for (field, inputs, widths) in networks {
        let mut parameters = 0.0;
        // Agent indices may be appended to the input.
        let mut inputs = inputs + agents;
        for &width in widths {
            parameters += (inputs + 1.0) * width as f64;
            inputs = width as f64;
        }
        // Parameters, gradients, two moments of Adam, and a copy, for every group.
        let groups = match sharing {
            Sharing::All => 1.0,
            Sharing::Group => spec.agents.iter().map(|a| &a.group).collect::<BTreeSet<_>>().len() as f64,
            Sharing::None => agents,
        };
        let bytes = 4.0 * 5.0 * groups * parameters;
        if bytes > MAX_BYTES {
            return Err(too_wide(&format!("agent.{name}.{field}"), bytes));
        }
    }
    if let Some(reward) = &c.reward {
        let action_features = match spec.agents.first().map(|agent| &agent.action) {
            Some(Space::Discrete { n }) => *n as f64,
            _ => spec.action_width() as f64,
        };
        let width = observation + action_features;
        let (parameters, _) =
            reward.model.hidden.iter().fold((0.0, width), |(n, inputs), &width| (n + (inputs + 1.0) * width as f64, width as f64));
        let bytes = 4.0 * 5.0 * reward.model.ensemble as f64 * parameters;
        if bytes > MAX_BYTES {
            return Err(too_wide("reward.model.hidden", bytes));
        }
        // Collected and paired segments of one stage, and the pairs of all: observations, actions and rewards.
        let segments =
            reward.segments.max(reward.test_pairs) as f64 + 2.0 * reward.stages as f64 * (reward.pairs + reward.test_pairs) as f64;
        let bytes = 4.0 * segments * reward.segment_steps as f64 * (observation + spec.action_width() as f64 + 1.0);
        if bytes > MAX_BYTES {
            let problem = Problem::new(format!("labelled pairs would not fit into memory: about {:.1} GiB", bytes / GIB), "too many pairs");
            let help = "`stages`, `pairs`, `test_pairs` and `segment_steps` are multiplied; at most 64 GiB are allowed";
            return Err(Misfit::at("reward.pairs", problem.help(help)));
        }
    }
    Ok(())
}

fn too_wide(path: &str, bytes: f64) -> Misfit {
    let problem = Problem::new(format!("the networks of `{path}` would not fit into memory: about {:.1} GiB", bytes / GIB), "too wide");
    Misfit::at(path, problem.help("at most 64 GiB are allowed"))
}

/// Bytes in a GiB.
pub(super) const GIB: f64 = (1_u64 << 30) as f64;

pub(super) fn check(holds: bool, path: &str, expected: &str, got: impl std::fmt::Display) -> Result<(), Misfit> {
    if holds { Ok(()) } else { Err(Misfit::new(path, expected, got)) }
}

#[cfg(test)]
mod tests {
    use steadfast_envs::EnvConfig;
    use steadfast_reward::RewardConfig;

    use super::*;

    fn path_of(change: impl FnOnce(&mut ExperimentConfig)) -> String {
        let mut config = ExperimentConfig::default();
        change(&mut config);
        validate(&config).unwrap_err().path.join(".")
    }

    #[test]
    fn learned_rewards_that_fit_no_memory_are_refused() {
        let reward = |change: fn(&mut RewardConfig)| {
            path_of(move |c| {
                c.env = EnvConfig::Pendulum(Default::default());
                let mut reward = RewardConfig::default();
                change(&mut reward);
                c.reward = Some(reward);
            })
        };
        assert_eq!(
            reward(|r| {
                r.model.hidden = vec![8192; 16];
                r.model.ensemble = 64;
            }),
            "reward.model.hidden"
        );
        assert_eq!(
            reward(|r| {
                r.pairs = 10_000_000;
                r.stages = 10_000;
            }),
            "reward.pairs"
        );
    }

    #[test]
    fn defaults_are_valid() {
        validate(&ExperimentConfig::default()).unwrap();
    }

    #[test]
    fn what_does_not_fit_into_memory_is_refused() {
        let with = |slots: usize, rollout_steps: usize, hidden: &[usize]| {
            let ppo = steadfast_agents::algorithms::ppo::PpoConfig { rollout_steps, critic_hidden: hidden.to_vec(), ..Default::default() };
            ExperimentConfig { slots, agent: AgentConfig::Ppo(ppo), ..Default::default() }
        };
        validate(&with(65_536, 100, &[64])).unwrap();
        for (config, path) in [
            (with(1, 1_000_000_000_000, &[64]), "agent.ppo.rollout_steps"),
            (with(8, usize::MAX, &[64]), "agent.ppo.rollout_steps"),
            (with(65_536, 100_000, &[64]), "agent.ppo.rollout_steps"),
            (with(8, 100, &[65_536, 65_536]), "agent.ppo.critic_hidden"),
        ] {
            let misfit = validate(&config).unwrap_err();
            assert_eq!(misfit.path.join("."), path);
        }
        assert!(validate(&with(65_536, 100_000, &[64])).unwrap_err().problem.help.unwrap().contains("`slots` = 65536"));
    }

    #[test]
    fn each_misfit_names_its_place() {
        assert_eq!(path_of(|c| c.name = "../elsewhere".to_string()), "name");
        assert_eq!(path_of(|c| c.slots = 0), "slots");
        assert_eq!(path_of(|c| c.total_steps = 0), "total_steps");
        assert_eq!(path_of(|c| c.eval.episodes = 1), "eval.episodes");
        let malicious = RewardConfig { noise: NoiseConfig::Malicious(Default::default()), ..Default::default() };
        assert_eq!(path_of(|c| c.reward = Some(malicious)), "reward.noise");
        let mut sweep = super::super::RobustnessConfig { levels: vec![0.0, f64::NAN], ..Default::default() };
        assert_eq!(path_of(|c| c.robustness = vec![sweep.clone()]), "robustness.0.levels");
        sweep.axis = PerturbationConfig::MaliciousAction(steadfast_envs::perturb::MaliciousActionConfig {
            agents: vec!["nobody".to_string()],
            ..Default::default()
        });
        sweep.levels = vec![0.5];
        assert_eq!(path_of(|c| c.robustness = vec![sweep]), "robustness.0.axis.malicious_action.agents");
    }
}
