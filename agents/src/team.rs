//! Which agents share networks and rewards, and what their networks see.

use serde::{Deserialize, Serialize};
use steadfast_envs::EnvSpec;

use crate::AgentError;
use crate::nn::RunningNorm;
use crate::regularizers::lipschitz::Scale;

/// Which agents use the same networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// One policy and one critic for all agents, who must have equal spaces.
    All,
    /// One policy and one critic per group of agents.
    Group,
    /// Each agent has its own.
    None,
}

/// Which reward an agent of a team learns from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardSharing {
    /// Its own.
    Individual,
    /// The mean over the agents of its group in the environment, such as all adversaries.
    TeamMean,
}

/// Normalised observations are clamped to this many deviations.
pub(crate) const OBSERVATION_CLIP: f32 = 10.0;

/// Names and members of the groups of agents that share networks.
///
/// # Errors
/// [`AgentError::Config`] if all agents are to share and have different spaces.
pub(crate) fn groups_of(sharing: Sharing, spec: &EnvSpec) -> Result<Vec<(String, Vec<usize>)>, AgentError> {
    let first = &spec.agents[0];
    match sharing {
        Sharing::None => Ok(spec.agents.iter().enumerate().map(|(i, a)| (a.name.clone(), vec![i])).collect()),
        Sharing::All => match spec.agents.iter().find(|a| a.observation != first.observation || a.action != first.action) {
            None => Ok(vec![("all".to_string(), (0..spec.n_agents()).collect())]),
            Some(other) => Err(AgentError::Config {
                field: "sharing".into(),
                expected: format!("\"group\" or \"none\": `{}` and `{}` have different spaces", first.name, other.name),
                got: "\"all\"".to_string(),
            }),
        },
        Sharing::Group => Ok(teams_of(spec)),
    }
}

/// Names and members of the environment's own groups.
pub(crate) fn teams_of(spec: &EnvSpec) -> Vec<(String, Vec<usize>)> {
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    for (i, agent) in spec.agents.iter().enumerate() {
        match groups.iter_mut().find(|(name, _)| *name == agent.group) {
            Some((_, members)) => members.push(i),
            None => groups.push((agent.group.clone(), vec![i])),
        }
    }
    groups
}

/// Gives every agent of a team the mean of its rewards; `rewards` are `[row, agent]`.
pub(crate) fn share_rewards<'a>(teams: impl Iterator<Item = &'a [usize]> + Clone, n_agents: usize, rewards: &mut [f32]) {
    for rewards in rewards.chunks_exact_mut(n_agents) {
        for team in teams.clone() {
            let mean = team.iter().map(|&agent| rewards[agent]).sum::<f32>() / team.len() as f32;
            team.iter().for_each(|&agent| rewards[agent] = mean);
        }
    }
}

/// How the observations of agents who share a network become its inputs.
#[derive(Debug, Clone)]
pub(crate) struct SharedInput {
    /// Their places in the environment's arrays.
    pub(crate) agents: Vec<usize>,
    /// Values of an observation.
    pub(crate) observation: usize,
    /// Length of the one-hot agent index behind it; 0 if there is none.
    pub(crate) index: usize,
    /// Statistics of the observations.
    pub(crate) norm: RunningNorm,
    /// Whether inputs are normalised by them.
    pub(crate) normalizes: bool,
}

impl SharedInput {
    pub(crate) fn new(spec: &EnvSpec, agents: Vec<usize>, with_index: bool, normalizes: bool) -> Self {
        let observation = spec.agents[agents[0]].observation.width();
        let index = if with_index && agents.len() > 1 { agents.len() } else { 0 };
        Self { agents, observation, index, norm: RunningNorm::new(observation), normalizes }
    }

    /// Features of a network input.
    pub(crate) fn width(&self) -> usize {
        self.observation + self.index
    }

    /// Agents that share.
    pub(crate) fn members(&self) -> usize {
        self.agents.len()
    }

    /// Largest size of an observed feature among the inputs, if they are clamped.
    pub(crate) fn limit(&self) -> Option<f32> {
        self.normalizes.then_some(OBSERVATION_CLIP)
    }

    /// Network inputs `[row, member, input]` of observations `[row, all agents, width]`, into `out`.
    pub(crate) fn gather(&self, observations: &[f32], n_agents: usize, width: usize, out: &mut Vec<f32>) {
        out.clear();
        for row in observations.chunks_exact(n_agents * width) {
            for (member, &agent) in self.agents.iter().enumerate() {
                let observation = &row[agent * width..agent * width + self.observation];
                let start = out.len();
                out.extend_from_slice(observation);
                if self.normalizes {
                    self.norm.normalize(observation, &mut out[start..], OBSERVATION_CLIP);
                }
                if self.index > 0 {
                    out.extend((0..self.index).map(|i| if i == member { 1.0 } else { 0.0 }));
                }
            }
        }
    }

    /// Takes observations `[row, all agents, width]` into the statistics; `room` is overwritten.
    pub(crate) fn observe(&mut self, observations: &[f32], n_agents: usize, width: usize, room: &mut Vec<f32>) {
        room.clear();
        for row in observations.chunks_exact(n_agents * width) {
            for &agent in &self.agents {
                room.extend_from_slice(&row[agent * width..agent * width + self.observation]);
            }
        }
        self.norm.update(room);
    }

    /// Size of one unit of perturbation in each observed feature, in network input units.
    pub(crate) fn units(&self, scale: Scale, out: &mut Vec<f32>) {
        out.clear();
        // The divisor of normalisation is 1 for a feature that never varied; its own deviation is 0.
        out.extend(self.norm.std().iter().zip(self.norm.var()).map(|(divisor, variance)| {
            let unit = match scale {
                Scale::Absolute => 1.0,
                Scale::RunningStd => variance.sqrt() as f32,
            };
            if self.normalizes { unit / divisor } else { unit }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steadfast_envs::Environment;
    use steadfast_envs::particle::SimpleTagConfig;

    fn tag() -> EnvSpec {
        SimpleTagConfig::default().build().unwrap().spec().clone()
    }

    #[test]
    fn groups_follow_the_sharing() {
        let names = |sharing| groups_of(sharing, &tag()).map(|groups| groups.into_iter().map(|(_, agents)| agents).collect::<Vec<_>>());
        assert_eq!(names(Sharing::Group).unwrap(), [vec![0, 1, 2], vec![3]]);
        assert_eq!(names(Sharing::None).unwrap(), [vec![0], vec![1], vec![2], vec![3]]);
        let error = names(Sharing::All).unwrap_err().to_string();
        assert!(error.contains("have different spaces"), "{error}");
    }

    #[test]
    fn a_team_shares_its_mean() {
        let mut rewards = [1.0, 2.0, 6.0, -7.0, 0.0, 0.0, 3.0, 5.0];
        let teams = [vec![0, 1, 2], vec![3]];
        share_rewards(teams.iter().map(Vec::as_slice), 4, &mut rewards);
        assert_eq!(rewards, [3.0, 3.0, 3.0, -7.0, 1.0, 1.0, 1.0, 5.0]);
    }

    #[test]
    fn inputs_are_normalised_observations_and_an_index() {
        let spec = tag();
        let (width, agents) = (spec.observation_width(), spec.n_agents());
        let observations: Vec<f32> = (0..2 * agents * width).map(|i| i as f32).collect();
        let mut input = SharedInput::new(&spec, vec![0, 1, 2], true, true);
        let mut inputs = Vec::new();
        input.observe(&observations, agents, width, &mut inputs);
        input.gather(&observations, agents, width, &mut inputs);
        assert_eq!(inputs.len(), 2 * 3 * input.width());
        for (row, values) in inputs.chunks_exact(input.width()).enumerate() {
            let index: Vec<f32> = (0..3).map(|i| f32::from(i == row % 3)).collect();
            assert_eq!(values[input.observation..], index);
        }
        // Every feature is brought to mean 0 and deviation 1 over the rows that were observed, so its unit is one deviation.
        let feature = |i: usize| inputs.iter().skip(i).step_by(input.width()).copied().collect::<Vec<_>>();
        for i in 0..input.observation {
            let values = feature(i);
            let mean = values.iter().sum::<f32>() / 6.0;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 6.0;
            assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-3, "{mean} {variance}");
        }
        let mut unit = Vec::new();
        input.units(Scale::RunningStd, &mut unit);
        assert!(unit.iter().all(|u| (u - 1.0).abs() < 1e-5));
        input.units(Scale::Absolute, &mut unit);
        assert!(unit.iter().zip(input.norm.std()).all(|(u, std)| (u * std - 1.0).abs() < 1e-5));
    }
}
