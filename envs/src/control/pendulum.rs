//! Swing a pendulum up and hold it there with a weak motor.
//!
//! With the angle θ from upright, wrapped to [−π, π), the reward is `−(θ² + 0.1·θ̇² + 0.001·u²)` of the state before the
//! step. Observation (3): cos θ, sin θ, θ̇ (rad/s). Action (1): torque u in N·m; torques beyond the limit count as the limit.
//!
//! Source: Gymnasium's `Pendulum-v1`.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::range::{require_all, require_horizon};
use crate::{Actions, AgentSpec, EnvError, EnvSpec, Environment, Result, Rng, SnapshotReader, SnapshotWriter, Space, StepOut};

const NAME: &str = "pendulum";

/// Configuration of [`Pendulum`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PendulumConfig {
    /// Gravity in m/s².
    pub gravity: f64,
    /// Mass in kg, above 0.
    pub mass: f64,
    /// Length in m, above 0.
    pub length: f64,
    /// Limit of the torque in N·m, above 0.
    pub max_torque: f64,
    /// Limit of the angular velocity in rad/s, above 0.
    pub max_speed: f64,
    /// Length of a step in seconds, above 0.
    pub step_seconds: f64,
    /// The angle starts uniformly between minus this and this, in rad, at least 0.
    pub start_angle: f64,
    /// The angular velocity starts uniformly between minus this and this, in rad/s, at least 0.
    pub start_speed: f64,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for PendulumConfig {
    fn default() -> Self {
        Self {
            gravity: 10.0,
            mass: 1.0,
            length: 1.0,
            max_torque: 2.0,
            max_speed: 8.0,
            step_seconds: 0.05,
            start_angle: PI,
            start_speed: 1.0,
            horizon: 200,
        }
    }
}

impl PendulumConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<Pendulum> {
        let positive = "a number above 0";
        require_all(
            NAME,
            &[
                ("gravity", self.gravity, true, "a finite number"),
                ("mass", self.mass, self.mass > 0.0, positive),
                ("length", self.length, self.length > 0.0, positive),
                ("max_torque", self.max_torque, self.max_torque > 0.0, positive),
                ("max_speed", self.max_speed, self.max_speed > 0.0, positive),
                ("step_seconds", self.step_seconds, self.step_seconds > 0.0, positive),
                ("start_angle", self.start_angle, self.start_angle >= 0.0, "at least 0"),
                ("start_speed", self.start_speed, self.start_speed >= 0.0, "at least 0"),
            ],
        )?;
        require_horizon(NAME, self.horizon)?;
        let max_torque = self.max_torque as f32;
        let high = vec![1.0, 1.0, self.max_speed.max(self.start_speed) as f32];
        let low = high.iter().map(|h| -h).collect();
        let spec = EnvSpec {
            name: NAME.to_string(),
            agents: vec![AgentSpec {
                name: "agent_0".to_string(),
                group: "agent".to_string(),
                observation: Space::Box { low, high },
                action: Space::interval(1, -max_torque, max_torque),
            }],
            state_dim: 3,
            horizon: self.horizon,
            step_seconds: self.step_seconds,
            episode_metrics: Vec::new(),
        };
        Ok(Pendulum { config: self.clone(), nominal: self.clone(), spec, state: [0.0; 2], reward: 0.0, steps: 0 })
    }
}

/// Pendulum with a weak motor.
#[derive(Debug, Clone)]
pub struct Pendulum {
    config: PendulumConfig,
    /// What the constants were before they were scaled.
    nominal: PendulumConfig,
    spec: EnvSpec,
    /// Angle and angular velocity.
    state: [f64; 2],
    reward: f64,
    steps: usize,
}

impl Pendulum {
    /// Angle (not wrapped) and angular velocity in double precision.
    pub fn physical_state(&self) -> [f64; 2] {
        self.state
    }

    /// Puts the pendulum where the caller wants it.
    pub fn set_physical_state(&mut self, state: [f64; 2]) {
        self.state = state;
    }

    /// Reward of the last step before it was rounded to single precision.
    pub fn reward_f64(&self) -> f64 {
        self.reward
    }

    fn write(&self, out: &mut [f32]) {
        let (sin, cos) = self.state[0].sin_cos();
        out[0] = cos as f32;
        out[1] = sin as f32;
        out[2] = self.state[1] as f32;
    }
}

impl Environment for Pendulum {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        let mut rng = Rng::from_seed(seed);
        let angle = rng.uniform(-self.config.start_angle, self.config.start_angle);
        let speed = rng.uniform(-self.config.start_speed, self.config.start_speed);
        self.state = [angle, speed];
        self.reward = 0.0;
        self.steps = 0;
        self.write(observations);
    }

    #[inline]
    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let torque = actions.continuous(NAME)?[0];
        if !torque.is_finite() {
            let expected = "a finite number".to_string();
            return Err(EnvError::Action { env: NAME.to_string(), agent: 0, expected, got: torque.to_string() });
        }
        let c = &self.config;
        let torque = torque.clamp(-c.max_torque as f32, c.max_torque as f32);
        let [theta, speed] = self.state;
        let wrapped = (theta + PI).rem_euclid(2.0 * PI) - PI;
        // The reference scales the torque in single precision.
        let effort = f64::from(0.001_f32 * (torque * torque));
        self.reward = -(wrapped * wrapped + 0.1 * (speed * speed) + effort);
        let drive = f64::from((3.0 / (c.mass * c.length * c.length)) as f32 * torque);
        let acceleration = 3.0 * c.gravity / (2.0 * c.length) * theta.sin() + drive;
        let speed = (speed + acceleration * c.step_seconds).clamp(-c.max_speed, c.max_speed);
        self.state = [theta + speed * c.step_seconds, speed];
        self.steps += 1;
        out.rewards[0] = self.reward as f32;
        out.terminated = false;
        out.truncated = self.steps >= c.horizon;
        self.write(out.observations);
        Ok(())
    }

    fn state(&self, out: &mut [f32]) {
        self.write(out);
    }

    fn constants(&self) -> &'static [&'static str] {
        &["gravity", "mass", "length", "max_torque", "step_seconds"]
    }

    fn scale_constant(&mut self, index: usize, factor: f64) {
        let (config, nominal) = (&mut self.config, &self.nominal);
        match index {
            0 => config.gravity = factor * nominal.gravity,
            1 => config.mass = factor * nominal.mass,
            2 => config.length = factor * nominal.length,
            3 => config.max_torque = factor * nominal.max_torque,
            4 => config.step_seconds = factor * nominal.step_seconds,
            _ => debug_assert!(false, "no constant {index}"),
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        out.f64s(&self.state);
        out.f64(self.reward);
        out.u64(self.steps as u64);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        input.f64s(&mut self.state)?;
        self.reward = input.f64()?;
        self.steps = input.u64()? as usize;
        Ok(())
    }
}
