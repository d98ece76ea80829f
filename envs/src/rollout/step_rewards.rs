//! Rewards step by step, of evaluations that ask for them.

/// The environment's rewards of each step of some episodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepRewards {
    n_agents: usize,
    /// `[episode][step, agent]`.
    episodes: Vec<Vec<f32>>,
}

impl StepRewards {
    pub(super) fn new(n_agents: usize, n_episodes: usize) -> Self {
        Self { n_agents, episodes: vec![Vec::new(); n_episodes] }
    }

    /// Adds a step of the episode with this number, if it is one of those that are kept.
    pub(super) fn push(&mut self, episode: u64, rewards: &[f32]) {
        if let Some(steps) = usize::try_from(episode).ok().and_then(|i| self.episodes.get_mut(i)) {
            steps.extend_from_slice(rewards);
        }
    }

    /// Number of episodes.
    pub fn n_episodes(&self) -> usize {
        self.episodes.len()
    }

    /// Rewards `[agent]` of a step of an episode; nothing after its end.
    pub fn get(&self, episode: usize, step: usize) -> Option<&[f32]> {
        let steps = self.episodes.get(episode)?;
        steps.get(step * self.n_agents..(step + 1) * self.n_agents)
    }
}
