//! Swing the free end of a two-link pendulum above a line with a motor at the elbow.
//!
//! Reward −1 per step, 0 when the end is above the line, which terminates the episode. Observation (6): cos θ₁, sin θ₁,
//! cos θ₂, sin θ₂, θ̇₁, θ̇₂ (rad/s), where θ₁ = 0 hangs down and θ₂ is relative to the first link. Actions: torque −1, 0, +1.
//!
//! Source: Sutton 1996; Sutton and Barto's book, or the earlier paper, as in Gymnasium's `Acrobot-v1`.

use std::f64::consts::{FRAC_PI_2, PI};

use serde::{Deserialize, Serialize};

use crate::environment::invalid_index;
use crate::range::{require_all, require_horizon, uniform_start};
use crate::{Actions, AgentSpec, EnvSpec, Environment, Result, SnapshotReader, SnapshotWriter, Space, StepOut};

const NAME: &str = "acrobot";

/// Which published form of the equations of motion is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AcrobotEquations {
    /// Sutton and Barto's book: Gymnasium's default.
    #[default]
    Book,
    /// Sutton's paper of 1996, which leaves out one centrifugal term.
    Nips,
}

/// Configuration of [`Acrobot`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AcrobotConfig {
    /// Gravity in m/s².
    pub gravity: f64,
    /// Mass of each link in kg, above 0.
    pub link_masses: [f64; 2],
    /// Length of the first link in m, above 0. The second link's length plays no part in the equations.
    pub link_length: f64,
    /// Distance of each link's centre of mass from its joint in m, above 0.
    pub link_centres: [f64; 2],
    /// Moment of inertia of each link in kg·m², above 0.
    pub link_inertia: f64,
    /// Size of the torque in N·m, at least 0.
    pub torque: f64,
    /// Limits of the joints' angular velocities in rad/s, above 0.
    pub max_speeds: [f64; 2],
    /// Which published form of the equations of motion is used.
    pub equations: AcrobotEquations,
    /// Length of a step in seconds, above 0; integrated by one Runge–Kutta step.
    pub step_seconds: f64,
    /// All four coordinates start uniformly between minus this and this, at least 0.
    pub start_range: f64,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for AcrobotConfig {
    fn default() -> Self {
        Self {
            gravity: 9.8,
            link_masses: [1.0, 1.0],
            link_length: 1.0,
            link_centres: [0.5, 0.5],
            link_inertia: 1.0,
            torque: 1.0,
            max_speeds: [4.0 * PI, 9.0 * PI],
            equations: AcrobotEquations::Book,
            step_seconds: 0.2,
            start_range: 0.1,
            horizon: 500,
        }
    }
}

impl AcrobotConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<Acrobot> {
        let positive = "numbers above 0";
        let (masses, centres, speeds) = (self.link_masses, self.link_centres, self.max_speeds);
        require_all(
            NAME,
            &[
                ("gravity", self.gravity, true, "a finite number"),
                ("link_masses", masses[0], masses[0] > 0.0, positive),
                ("link_masses", masses[1], masses[1] > 0.0, positive),
                ("link_length", self.link_length, self.link_length > 0.0, positive),
                ("link_centres", centres[0], centres[0] > 0.0, positive),
                ("link_centres", centres[1], centres[1] > 0.0, positive),
                ("link_inertia", self.link_inertia, self.link_inertia > 0.0, positive),
                ("torque", self.torque, self.torque >= 0.0, "at least 0"),
                ("max_speeds", speeds[0], speeds[0] > 0.0, positive),
                ("max_speeds", speeds[1], speeds[1] > 0.0, positive),
                ("step_seconds", self.step_seconds, self.step_seconds > 0.0, positive),
                ("start_range", self.start_range, self.start_range >= 0.0, "at least 0"),
            ],
        )?;
        require_horizon(NAME, self.horizon)?;
        let limit = |i: usize| speeds[i].max(self.start_range) as f32;
        let high = vec![1.0, 1.0, 1.0, 1.0, limit(0), limit(1)];
        let low = high.iter().map(|h| -h).collect();
        let spec = EnvSpec {
            name: NAME.to_string(),
            agents: vec![AgentSpec {
                name: "agent_0".to_string(),
                group: "agent".to_string(),
                observation: Space::Box { low, high },
                action: Space::Discrete { n: 3 },
            }],
            state_dim: 6,
            horizon: self.horizon,
            step_seconds: self.step_seconds,
            episode_metrics: vec!["reached_goal".to_string()],
        };
        Ok(Acrobot { config: self.clone(), nominal: self.clone(), spec, state: [0.0; 4], steps: 0 })
    }
}

/// Two-link pendulum with a motor at the elbow.
#[derive(Debug, Clone)]
pub struct Acrobot {
    config: AcrobotConfig,
    /// What the constants were before they were scaled.
    nominal: AcrobotConfig,
    spec: EnvSpec,
    /// Two angles, two angular velocities.
    state: [f64; 4],
    steps: usize,
}

impl Acrobot {
    /// Angles and angular velocities in double precision.
    pub fn physical_state(&self) -> [f64; 4] {
        self.state
    }

    /// Puts the links where the caller wants them.
    pub fn set_physical_state(&mut self, state: [f64; 4]) {
        self.state = state;
    }

    fn is_above_line(&self) -> bool {
        -self.state[0].cos() - (self.state[1] + self.state[0]).cos() > 1.0
    }

    /// Time derivative of the state under `torque`.
    fn derivative(&self, state: [f64; 4], torque: f64) -> [f64; 4] {
        let c = &self.config;
        let [theta1, theta2, speed1, speed2] = state;
        let ([m1, m2], [lc1, lc2], l1, inertia, g) = (c.link_masses, c.link_centres, c.link_length, c.link_inertia, c.gravity);
        let (sin2, cos2) = theta2.sin_cos();
        let d1 = m1 * lc1 * lc1 + m2 * (l1 * l1 + lc2 * lc2 + 2.0 * l1 * lc2 * cos2) + 2.0 * inertia;
        let d2 = m2 * (lc2 * lc2 + l1 * lc2 * cos2) + inertia;
        let phi2 = m2 * lc2 * g * (theta1 + theta2 - FRAC_PI_2).cos();
        let phi1 = -m2 * l1 * lc2 * speed2 * speed2 * sin2 - 2.0 * m2 * l1 * lc2 * speed2 * speed1 * sin2
            + (m1 * lc1 + m2 * l1) * g * (theta1 - FRAC_PI_2).cos()
            + phi2;
        let centrifugal = match c.equations {
            AcrobotEquations::Book => m2 * l1 * lc2 * speed1 * speed1 * sin2,
            AcrobotEquations::Nips => 0.0,
        };
        let acceleration2 = (torque + d2 / d1 * phi1 - centrifugal - phi2) / (m2 * lc2 * lc2 + inertia - d2 * d2 / d1);
        let acceleration1 = -(d2 * acceleration2 + phi1) / d1;
        [speed1, speed2, acceleration1, acceleration2]
    }

    fn write(&self, out: &mut [f32]) {
        for joint in 0..2 {
            let (sin, cos) = self.state[joint].sin_cos();
            out[2 * joint] = cos as f32;
            out[2 * joint + 1] = sin as f32;
            out[4 + joint] = self.state[2 + joint] as f32;
        }
    }
}

/// Brings an angle into [−π, π] by whole turns.
fn wrap(mut angle: f64) -> f64 {
    while angle > PI {
        angle -= 2.0 * PI;
    }
    while angle < -PI {
        angle += 2.0 * PI;
    }
    angle
}

/// `state + scale · slope`.
fn along(state: [f64; 4], scale: f64, slope: [f64; 4]) -> [f64; 4] {
    std::array::from_fn(|i| state[i] + scale * slope[i])
}

impl Environment for Acrobot {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        // The reference starts from single-precision numbers.
        self.state = uniform_start(seed, self.config.start_range).map(|value| f64::from(value as f32));
        self.steps = 0;
        self.write(observations);
    }

    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let action = actions.discrete(NAME)?[0];
        let torque = match action {
            0 => -self.config.torque,
            1 => 0.0,
            2 => self.config.torque,
            other => return Err(invalid_index(NAME, 0, 3, other)),
        };
        let (start, dt) = (self.state, self.config.step_seconds);
        let k1 = self.derivative(start, torque);
        let k2 = self.derivative(along(start, dt / 2.0, k1), torque);
        let k3 = self.derivative(along(start, dt / 2.0, k2), torque);
        let k4 = self.derivative(along(start, dt, k3), torque);
        let mean: [f64; 4] = std::array::from_fn(|i| k1[i] + 2.0 * k2[i] + 2.0 * k3[i] + k4[i]);
        let next = along(start, dt / 6.0, mean);
        let [limit1, limit2] = self.config.max_speeds;
        self.state = [wrap(next[0]), wrap(next[1]), next[2].clamp(-limit1, limit1), next[3].clamp(-limit2, limit2)];
        self.steps += 1;
        out.terminated = self.is_above_line();
        out.truncated = self.steps >= self.config.horizon;
        out.rewards[0] = if out.terminated { 0.0 } else { -1.0 };
        self.write(out.observations);
        Ok(())
    }

    fn state(&self, out: &mut [f32]) {
        self.write(out);
    }

    fn episode_metrics(&self, out: &mut [f64]) {
        out[0] = f64::from(u8::from(self.is_above_line()));
    }

    fn constants(&self) -> &'static [&'static str] {
        &["gravity", "link_masses", "link_length", "link_inertia", "torque", "step_seconds"]
    }

    fn scale_constant(&mut self, index: usize, factor: f64) {
        let (config, nominal) = (&mut self.config, &self.nominal);
        match index {
            0 => config.gravity = factor * nominal.gravity,
            1 => config.link_masses = nominal.link_masses.map(|mass| factor * mass),
            2 => config.link_length = factor * nominal.link_length,
            3 => config.link_inertia = factor * nominal.link_inertia,
            4 => config.torque = factor * nominal.torque,
            5 => config.step_seconds = factor * nominal.step_seconds,
            _ => debug_assert!(false, "no constant {index}"),
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) {
        out.f64s(&self.state);
        out.u64(self.steps as u64);
    }

    fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        input.f64s(&mut self.state)?;
        self.steps = input.u64()? as usize;
        Ok(())
    }
}
