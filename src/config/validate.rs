//! Every check that the types cannot express, in one place, before anything slow starts.

use steadfast_agents::AgentError;
use steadfast_envs::{EnvError, PerturbationConfig, Perturbed};

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
    fn new(path: &str, expected: &str, got: impl std::fmt::Display) -> Self {
        Self {
            path: path.split('.').map(str::to_string).collect(),
            problem: Problem::new(format!("`{path}` must be {expected}, got {got}"), format!("must be {expected}")),
        }
    }

    fn from_env(path: &str, error: &EnvError) -> Self {
        match error {
            EnvError::Config { field, expected, got, .. } => Self::new(&format!("{path}.{field}"), expected, got),
            other => Self::whole(path, other),
        }
    }

    fn from_agent(path: &str, error: &AgentError) -> Self {
        match error {
            AgentError::Config { field, expected, got } => Self::new(&format!("{path}.{field}"), expected, got),
            AgentError::Env(error) => Self::from_env(path, error),
            other => Self::whole(path, other),
        }
    }

    fn whole(path: &str, error: &dyn std::fmt::Display) -> Self {
        Self { path: path.split('.').map(str::to_string).collect(), problem: Problem::new(format!("`{path}`: {error}"), "does not fit") }
    }
}

const MAX_SEED: u64 = i64::MAX as u64;

/// Checks ranges and that the parts fit each other.
///
/// # Errors
/// The first value that does not fit.
pub fn validate(config: &ExperimentConfig) -> Result<(), Misfit> {
    let c = config;
    let is_plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && !name.starts_with('.');
    check(!c.name.is_empty() && c.name.len() <= 100 && is_plain(&c.name), "name", "1 to 100 letters, digits, `.`, `_` or `-`", &c.name)?;
    check(c.seed <= MAX_SEED, "seed", "at most 2^63 - 1", c.seed)?;
    check((1..=1 << 53).contains(&c.total_steps), "total_steps", "between 1 and 2^53", c.total_steps)?;
    check((1..=65_536).contains(&c.slots), "slots", "between 1 and 65536", c.slots)?;
    check(c.threads <= 1024, "threads", "between 0 and 1024", c.threads)?;
    check((2..=1_000_000).contains(&c.eval.episodes), "eval.episodes", "between 2 and 1000000", c.eval.episodes)?;
    check(c.eval.seed <= MAX_SEED, "eval.seed", "at most 2^63 - 1", c.eval.seed)?;
    check(c.checkpoint.keep >= 1, "checkpoint.keep", "at least 1", c.checkpoint.keep)?;
    check(c.log.every_updates >= 1, "log.every_updates", "at least 1", c.log.every_updates)?;

    let env = || c.env.build().map_err(|e| Misfit::from_env(&format!("env.{}", c.env.name()), &e));
    let spec = env()?.spec().clone();
    c.agent.validate().map_err(|e| Misfit::from_agent(&format!("agent.{}", c.agent.name()), &e))?;
    if let Some(regularizer) = &c.regularizer {
        regularizer.validate().map_err(|e| Misfit::from_agent(&format!("regularizer.{}", regularizer.name()), &e))?;
    }
    // Building the learner finds what depends on both, such as a central critic in a world without a global state.
    build::learner(c, &spec).map(drop).map_err(|e| Misfit::from_agent(&format!("agent.{}", c.agent.name()), &e))?;
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
                if misfit.path.last().is_some_and(|f| f == "magnitude" || f == "probability") {
                    misfit.path = vec!["robustness".to_string(), i.to_string(), "levels".to_string()];
                }
                misfit
            })?;
        }
    }
    Ok(())
}

fn check(holds: bool, path: &str, expected: &str, got: impl std::fmt::Display) -> Result<(), Misfit> {
    if holds { Ok(()) } else { Err(Misfit::new(path, expected, got)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(change: impl FnOnce(&mut ExperimentConfig)) -> String {
        let mut config = ExperimentConfig::default();
        change(&mut config);
        validate(&config).unwrap_err().path.join(".")
    }

    #[test]
    fn defaults_are_valid() {
        validate(&ExperimentConfig::default()).unwrap();
    }

    #[test]
    fn each_misfit_names_its_place() {
        assert_eq!(path_of(|c| c.name = "../elsewhere".to_string()), "name");
        assert_eq!(path_of(|c| c.slots = 0), "slots");
        assert_eq!(path_of(|c| c.total_steps = 0), "total_steps");
        assert_eq!(path_of(|c| c.eval.episodes = 1), "eval.episodes");
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
