//! Drive an underpowered car out of a valley, with as little fuel as possible.
//!
//! Reward `−0.1·u²` for the action u, plus 100 at the goal, which terminates the episode. Observation (2): position,
//! velocity. Action (1): force in [−1, 1]; forces beyond the limits count as the limits, but are paid for in full.
//!
//! The reference keeps position and velocity in single precision and mixes it with double precision; so does this file,
//! operation by operation. Only the reference's very first step differs: it starts from a position that is not rounded.
//!
//! Source: Moore 1990, as in Gymnasium's `MountainCarContinuous-v0`.

use serde::{Deserialize, Serialize};

use crate::range::{require_all, require_horizon};
use crate::{Actions, AgentSpec, EnvError, EnvSpec, Environment, Result, Rng, SnapshotReader, SnapshotWriter, Space, StepOut};

const NAME: &str = "mountain_car_continuous";

/// Configuration of [`MountainCarContinuous`]. Lengths and times have no physical unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MountainCarContinuousConfig {
    /// Velocity gained per step at full force, above 0.
    pub power: f64,
    /// Velocity lost per step on the steepest slope.
    pub gravity: f64,
    /// Left end of the road, a wall.
    pub min_position: f64,
    /// Right end of the road, above `min_position`.
    pub max_position: f64,
    /// Limit of the velocity, above 0.
    pub max_speed: f64,
    /// Position of the goal.
    pub goal_position: f64,
    /// Least velocity that counts at the goal.
    pub goal_velocity: f64,
    /// The car starts at rest uniformly between these two positions.
    pub start_range: [f64; 2],
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for MountainCarContinuousConfig {
    fn default() -> Self {
        Self {
            power: 0.0015,
            gravity: 0.0025,
            min_position: -1.2,
            max_position: 0.6,
            max_speed: 0.07,
            goal_position: 0.45,
            goal_velocity: 0.0,
            start_range: [-0.6, -0.4],
            horizon: 999,
        }
    }
}

impl MountainCarContinuousConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<MountainCarContinuous> {
        let (low, high) = (self.min_position, self.max_position);
        let [start, end] = self.start_range;
        require_all(
            NAME,
            &[
                ("power", self.power, self.power > 0.0, "a number above 0"),
                ("gravity", self.gravity, true, "a finite number"),
                ("min_position", low, true, "a finite number"),
                ("max_position", high, high > low, "above `min_position`"),
                ("max_speed", self.max_speed, self.max_speed > 0.0, "a number above 0"),
                ("goal_position", self.goal_position, true, "a finite number"),
                ("goal_velocity", self.goal_velocity, true, "a finite number"),
                ("start_range", start, start >= low && start <= end, "two positions on the road in order"),
                ("start_range", end, end <= high, "two positions on the road in order"),
            ],
        )?;
        require_horizon(NAME, self.horizon)?;
        let speed = self.max_speed as f32;
        let spec = EnvSpec {
            name: NAME.to_string(),
            agents: vec![AgentSpec {
                name: "agent_0".to_string(),
                group: "agent".to_string(),
                observation: Space::Box { low: vec![low as f32, -speed], high: vec![high as f32, speed] },
                action: Space::interval(1, -1.0, 1.0),
            }],
            state_dim: 2,
            horizon: self.horizon,
            step_seconds: 1.0,
            episode_metrics: vec!["reached_goal".to_string()],
        };
        Ok(MountainCarContinuous { config: self.clone(), nominal: self.clone(), spec, position: 0.0, velocity: 0.0, reward: 0.0, steps: 0 })
    }
}

/// Car in a valley.
#[derive(Debug, Clone)]
pub struct MountainCarContinuous {
    config: MountainCarContinuousConfig,
    /// What the constants were before they were scaled.
    nominal: MountainCarContinuousConfig,
    spec: EnvSpec,
    position: f32,
    velocity: f32,
    reward: f64,
    steps: usize,
}

impl MountainCarContinuous {
    /// Position and velocity.
    pub fn physical_state(&self) -> [f32; 2] {
        [self.position, self.velocity]
    }

    /// Puts the car where the caller wants it.
    pub fn set_physical_state(&mut self, state: [f32; 2]) {
        [self.position, self.velocity] = state;
    }

    /// Reward of the last step before it was rounded to single precision.
    pub fn reward_f64(&self) -> f64 {
        self.reward
    }

    fn is_at_goal(&self) -> bool {
        self.position >= self.config.goal_position as f32 && self.velocity >= self.config.goal_velocity as f32
    }

    fn write(&self, out: &mut [f32]) {
        out[0] = self.position;
        out[1] = self.velocity;
    }
}

impl Environment for MountainCarContinuous {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        let [start, end] = self.config.start_range;
        self.position = Rng::from_seed(seed).uniform(start, end) as f32;
        self.velocity = 0.0;
        self.reward = 0.0;
        self.steps = 0;
        self.write(observations);
    }

    #[inline]
    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let action = actions.continuous(NAME)?[0];
        if !action.is_finite() {
            let expected = "a finite number".to_string();
            return Err(EnvError::Action { env: NAME.to_string(), agent: 0, expected, got: action.to_string() });
        }
        let c = &self.config;
        let force = action.clamp(-1.0, 1.0);
        let slope = c.gravity * f64::from(3.0 * self.position).cos();
        let max_speed = c.max_speed as f32;
        let mut velocity = (self.velocity + (force * c.power as f32 - slope as f32)).clamp(-max_speed, max_speed);
        let (low, high) = (c.min_position as f32, c.max_position as f32);
        let position = (self.position + velocity).clamp(low, high);
        if position == low && velocity < 0.0 {
            velocity = 0.0;
        }
        self.position = position;
        self.velocity = velocity;
        self.steps += 1;
        out.terminated = self.is_at_goal();
        out.truncated = self.steps >= c.horizon;
        let prize = if out.terminated { 100.0 } else { 0.0 };
        self.reward = prize - f64::from(action) * f64::from(action) * 0.1;
        out.rewards[0] = self.reward as f32;
        self.write(out.observations);
        Ok(())
    }

    fn state(&self, out: &mut [f32]) {
        self.write(out);
    }

    fn episode_metrics(&self, out: &mut [f64]) {
        out[0] = f64::from(u8::from(self.is_at_goal()));
    }

    fn constants(&self) -> &'static [&'static str] {
        &["power", "gravity"]
    }

    fn scale_constant(&mut self, index: usize, factor: f64) {
        let (config, nominal) = (&mut self.config, &self.nominal);
        match index {
            0 => config.power = factor * nominal.power,
            1 => config.gravity = factor * nominal.gravity,
            _ => debug_assert!(false, "no constant {index}"),
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        out.f32s(&[self.position, self.velocity]);
        out.f64(self.reward);
        out.u64(self.steps as u64);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        let mut state = [0.0; 2];
        input.f32s(&mut state)?;
        [self.position, self.velocity] = state;
        self.reward = input.f64()?;
        self.steps = input.u64()? as usize;
        Ok(())
    }
}
