//! What finished episodes amounted to.

/// One finished episode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpisodeStats<'a> {
    /// Number of the episode: `episode of the slot × slots + slot`.
    pub number: u64,
    /// Steps.
    pub length: usize,
    /// Undiscounted sum of the environment's rewards, per agent.
    pub returns: &'a [f64],
    /// The environment's own numbers, named by `EnvSpec::episode_metrics`.
    pub metrics: &'a [f64],
    /// True if the task ended, false if the time limit cut the episode.
    pub terminated: bool,
}

impl EpisodeStats<'_> {
    /// Sum of the returns of all agents.
    pub fn team_sum(&self) -> f64 {
        self.returns.iter().sum()
    }

    /// Mean of the returns over agents.
    pub fn agent_mean(&self) -> f64 {
        self.team_sum() / self.returns.len() as f64
    }
}

/// A list of finished episodes that keeps its memory when cleared.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EpisodeLog {
    n_agents: usize,
    n_metrics: usize,
    heads: Vec<(u64, usize, bool)>,
    returns: Vec<f64>,
    metrics: Vec<f64>,
}

impl EpisodeLog {
    pub(super) fn new(n_agents: usize, n_metrics: usize) -> Self {
        Self { n_agents, n_metrics, ..Self::default() }
    }

    pub(super) fn reserve(&mut self, episodes: usize) {
        self.heads.reserve(episodes);
        self.returns.reserve(episodes * self.n_agents);
        self.metrics.reserve(episodes * self.n_metrics);
    }

    pub(super) fn push(&mut self, stats: &EpisodeStats<'_>) {
        self.heads.push((stats.number, stats.length, stats.terminated));
        self.returns.extend_from_slice(stats.returns);
        self.metrics.extend_from_slice(stats.metrics);
    }

    pub(super) fn clear(&mut self) {
        self.heads.clear();
        self.returns.clear();
        self.metrics.clear();
    }

    /// Brings the episodes into the order of their numbers.
    pub(super) fn sorted(&self) -> Self {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|&i| self.heads[i].0);
        let mut sorted = Self::new(self.n_agents, self.n_metrics);
        for i in order {
            sorted.push(&self.get(i));
        }
        sorted
    }

    /// Number of episodes.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// True if no episode finished.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The `index`-th episode.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&self, index: usize) -> EpisodeStats<'_> {
        let (number, length, terminated) = self.heads[index];
        EpisodeStats {
            number,
            length,
            terminated,
            returns: &self.returns[index * self.n_agents..(index + 1) * self.n_agents],
            metrics: &self.metrics[index * self.n_metrics..(index + 1) * self.n_metrics],
        }
    }

    /// All episodes.
    pub fn iter(&self) -> impl Iterator<Item = EpisodeStats<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }
}
