//! What a perturbation can touch.

use crate::{Result, Rng, SnapshotReader, SnapshotWriter};

/// A perturbation prepared for one environment. Each draws from a stream of its own.
pub(super) trait Signal: Send {
    /// Starts an episode, whose random numbers come from `rng`.
    fn reset(&mut self, rng: Rng);

    /// Changes what the agents see at step `step`, `[agent, observation_width]`.
    fn observe(&mut self, step: usize, observations: &mut [f32]) {
        let _ = (step, observations);
    }

    /// True if [`Signal::act`] changes anything.
    fn acts(&self) -> bool {
        false
    }

    /// Changes what the agents do at step `step`; only the array of the environment's kind is filled.
    fn act(&mut self, step: usize, discrete: &mut [u32], continuous: &mut [f32]) {
        let _ = (step, discrete, continuous);
    }

    /// Changes what the agents are paid for step `step`, `[agent]`.
    fn pay(&mut self, step: usize, rewards: &mut [f32]) {
        let _ = (step, rewards);
    }

    /// A physical constant, by its place among the environment's, and its factor in step `step`.
    fn constant(&self, step: usize) -> Option<(usize, f64)> {
        let _ = step;
        None
    }

    /// Writes what the rest of the episode depends on.
    fn snapshot(&self, out: &mut SnapshotWriter);

    /// Reads it.
    ///
    /// # Errors
    /// [`crate::EnvError::Snapshot`] if it does not fit.
    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()>;
}
