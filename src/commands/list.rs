//! `steadfast list`.

use steadfast_agents::{AgentConfig, RegularizerConfig};
use steadfast_envs::{EnvConfig, PerturbationConfig};
use steadfast_reward::{LogProbMarginConfig, LossConfig, NoiseConfig};

use super::print;
use crate::cli::{ListArgs, Listed};
use crate::failure::Result;

/// Prints the names that a configuration can use.
pub fn run(arguments: &ListArgs) -> Result<()> {
    let list = match arguments.what {
        Listed::Envs => EnvConfig::LIST,
        Listed::Agents => AgentConfig::LIST,
        Listed::Regularizers => RegularizerConfig::LIST,
        Listed::Perturbations => PerturbationConfig::LIST,
        Listed::Noise => NoiseConfig::LIST,
        Listed::Losses => LossConfig::LIST,
        Listed::Margins => LogProbMarginConfig::LIST,
        #[cfg(feature = "llm")]
        Listed::Objectives => crate::config::language::ObjectiveConfig::LIST,
    };
    print(&described(list.iter().map(|(name, text)| (*name, *text))))
}

/// Names and descriptions in two columns.
pub fn described<'a>(list: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> String {
    let width = list.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    list.map(|(name, text)| format!("{name:<width$}  {text}\n")).collect()
}
