//! Running means over the last training episodes.

use std::collections::VecDeque;

use steadfast_agents::{AgentError, StateDict};
use steadfast_envs::EpisodeLog;

const CAPACITY: usize = 100;

/// The last 100 episodes of training. Logged as `rollout/return_agent_mean`, `rollout/return_team_sum`,
/// `rollout/episode_length` and `rollout/NAME` for each number of the world's own.
#[derive(Debug, Clone, PartialEq)]
pub struct EpisodeWindow {
    names: Vec<String>,
    rows: VecDeque<Vec<f64>>,
}

impl EpisodeWindow {
    /// An empty window for a world with these numbers of its own.
    pub fn new(episode_metrics: &[String]) -> Self {
        let own = ["return_agent_mean", "return_team_sum", "episode_length"].map(str::to_string);
        let names = own.iter().chain(episode_metrics).map(|name| format!("rollout/{name}")).collect();
        Self { names, rows: VecDeque::with_capacity(CAPACITY) }
    }

    /// Adds finished episodes.
    pub fn extend(&mut self, episodes: &EpisodeLog) {
        for episode in episodes.iter() {
            if self.rows.len() == CAPACITY {
                self.rows.pop_front();
            }
            let own = [episode.agent_mean(), episode.team_sum(), episode.length as f64];
            self.rows.push_back(own.iter().chain(episode.metrics).copied().collect());
        }
    }

    /// Names and means; nothing before the first episode has finished.
    pub fn means(&self) -> Vec<(String, f64)> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let mean = |column: usize| self.rows.iter().map(|r| r[column]).sum::<f64>() / self.rows.len() as f64;
        self.names.iter().enumerate().map(|(i, name)| (name.clone(), mean(i))).collect()
    }

    /// Saves the episodes.
    pub fn save(&self, state: &mut StateDict) {
        let values: Vec<f64> = self.rows.iter().flatten().copied().collect();
        state.put_u64("window.rows", &[self.rows.len() as u64]);
        state.put_f64("window.values", &[self.rows.len(), self.names.len()], &values);
    }

    /// Restores what [`EpisodeWindow::save`] saved.
    ///
    /// # Errors
    /// [`AgentError::State`] if it does not fit.
    pub fn load(&mut self, state: &StateDict) -> Result<(), AgentError> {
        let rows = match state.u64("window.rows")? {
            [n] if *n <= CAPACITY as u64 => *n as usize,
            _ => return Err(AgentError::State { tensor: "window.rows".to_string(), reason: "it must be one small number".to_string() }),
        };
        let values = state.f64("window.values", rows * self.names.len())?;
        self.rows = values.chunks_exact(self.names.len()).map(<[f64]>::to_vec).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_window_gives_the_same_means() {
        let mut window = EpisodeWindow::new(&["collisions".to_string()]);
        assert!(window.means().is_empty());
        window.rows.push_back(vec![1.0, 2.0, 3.0, 4.0]);
        window.rows.push_back(vec![2.0, 4.0, 5.0, 0.1]);
        let mut state = StateDict::default();
        window.save(&mut state);
        let mut again = EpisodeWindow::new(&["collisions".to_string()]);
        again.load(&state).unwrap();
        assert_eq!(again, window);
        assert_eq!(again.means()[0], ("rollout/return_agent_mean".to_string(), 1.5));
        assert!(EpisodeWindow::new(&[]).load(&state).is_err());
    }
}
