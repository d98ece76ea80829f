//! Balance a pole on a cart by pushing the cart left or right.
//!
//! Reward 1 per step. The episode terminates when the cart leaves the track or the pole falls. Observation (4): cart
//! position (m), cart velocity (m/s), pole angle (rad), pole angular velocity (rad/s). Actions: 0 left, 1 right.
//!
//! Source: Barto, Sutton and Anderson 1983; equations of Florian 2007 as in Gymnasium's `CartPole-v1`.

use serde::{Deserialize, Serialize};

use crate::environment::invalid_index;
use crate::range::{require_all, require_horizon, uniform_start};
use crate::{Actions, AgentSpec, EnvSpec, Environment, Result, SnapshotReader, SnapshotWriter, Space, StepOut};

const NAME: &str = "cart_pole";

/// How the equations of motion are integrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CartPoleIntegrator {
    /// Positions with the old velocities: Gymnasium's choice.
    #[default]
    Euler,
    /// Positions with the new velocities.
    SemiImplicitEuler,
}

/// Configuration of [`CartPole`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CartPoleConfig {
    /// Gravity in m/s².
    pub gravity: f64,
    /// Mass of the cart in kg, above 0.
    pub cart_mass: f64,
    /// Mass of the pole in kg, above 0.
    pub pole_mass: f64,
    /// Half the length of the pole in m, above 0.
    pub pole_half_length: f64,
    /// Force of a push in N.
    pub force: f64,
    /// Length of a step in seconds, above 0.
    pub step_seconds: f64,
    /// How the equations of motion are integrated.
    pub integrator: CartPoleIntegrator,
    /// Angle in degrees at which the pole counts as fallen, above 0.
    pub angle_limit_degrees: f64,
    /// Half the length of the track in m, above 0.
    pub position_limit: f64,
    /// All four coordinates start uniformly between minus this and this, at least 0.
    pub start_range: f64,
    /// Steps of an episode, at least 1.
    pub horizon: usize,
}

impl Default for CartPoleConfig {
    fn default() -> Self {
        Self {
            gravity: 9.8,
            cart_mass: 1.0,
            pole_mass: 0.1,
            pole_half_length: 0.5,
            force: 10.0,
            step_seconds: 0.02,
            integrator: CartPoleIntegrator::Euler,
            angle_limit_degrees: 12.0,
            position_limit: 2.4,
            start_range: 0.05,
            horizon: 500,
        }
    }
}

impl CartPoleConfig {
    /// The environment.
    ///
    /// # Errors
    /// [`crate::EnvError::Config`] if a field is out of its range.
    pub fn build(&self) -> Result<CartPole> {
        let positive = "a number above 0";
        require_all(
            NAME,
            &[
                ("gravity", self.gravity, true, "a finite number"),
                ("cart_mass", self.cart_mass, self.cart_mass > 0.0, positive),
                ("pole_mass", self.pole_mass, self.pole_mass > 0.0, positive),
                ("pole_half_length", self.pole_half_length, self.pole_half_length > 0.0, positive),
                ("force", self.force, true, "a finite number"),
                ("step_seconds", self.step_seconds, self.step_seconds > 0.0, positive),
                ("angle_limit_degrees", self.angle_limit_degrees, self.angle_limit_degrees > 0.0, positive),
                ("position_limit", self.position_limit, self.position_limit > 0.0, positive),
                ("start_range", self.start_range, self.start_range >= 0.0, "at least 0"),
            ],
        )?;
        require_horizon(NAME, self.horizon)?;
        let angle_limit = self.angle_limit_degrees * 2.0 * std::f64::consts::PI / 360.0;
        // Twice the limits, so that the last observation of an episode is inside.
        let high = vec![2.0 * self.position_limit as f32, f32::INFINITY, 2.0 * angle_limit as f32, f32::INFINITY];
        let low = high.iter().map(|h| -h).collect();
        let spec = EnvSpec {
            name: NAME.to_string(),
            agents: vec![AgentSpec {
                name: "agent_0".to_string(),
                group: "agent".to_string(),
                observation: Space::Box { low, high },
                action: Space::Discrete { n: 2 },
            }],
            state_dim: 4,
            horizon: self.horizon,
            step_seconds: self.step_seconds,
            episode_metrics: Vec::new(),
        };
        Ok(CartPole { config: self.clone(), nominal: self.clone(), spec, angle_limit, state: [0.0; 4], steps: 0 })
    }
}

/// Pole on a cart.
#[derive(Debug, Clone)]
pub struct CartPole {
    config: CartPoleConfig,
    /// What the constants were before they were scaled.
    nominal: CartPoleConfig,
    spec: EnvSpec,
    angle_limit: f64,
    /// Position, velocity, angle, angular velocity.
    state: [f64; 4],
    steps: usize,
}

impl CartPole {
    /// Position, velocity, angle and angular velocity in double precision.
    pub fn physical_state(&self) -> [f64; 4] {
        self.state
    }

    /// Puts cart and pole where the caller wants them.
    pub fn set_physical_state(&mut self, state: [f64; 4]) {
        self.state = state;
    }

    fn write(&self, out: &mut [f32]) {
        for (o, s) in out.iter_mut().zip(self.state) {
            *o = s as f32;
        }
    }
}

impl Environment for CartPole {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: u64, observations: &mut [f32]) {
        self.state = uniform_start(seed, self.config.start_range);
        self.steps = 0;
        self.write(observations);
    }

    #[inline]
    fn step(&mut self, actions: Actions<'_>, out: &mut StepOut<'_>) -> Result<()> {
        let action = actions.discrete(NAME)?[0];
        let c = &self.config;
        let force = match action {
            0 => -c.force,
            1 => c.force,
            other => return Err(invalid_index(NAME, 0, 2, other)),
        };
        let [x, x_dot, theta, theta_dot] = self.state;
        let (sin, cos) = theta.sin_cos();
        let total_mass = c.pole_mass + c.cart_mass;
        let moment = c.pole_mass * c.pole_half_length;
        let push = (force + moment * theta_dot * theta_dot * sin) / total_mass;
        let theta_acc = (c.gravity * sin - cos * push) / (c.pole_half_length * (4.0 / 3.0 - c.pole_mass * cos * cos / total_mass));
        let x_acc = push - moment * theta_acc * cos / total_mass;
        let dt = c.step_seconds;
        let (new_x_dot, new_theta_dot) = (x_dot + dt * x_acc, theta_dot + dt * theta_acc);
        self.state = match c.integrator {
            CartPoleIntegrator::Euler => [x + dt * x_dot, new_x_dot, theta + dt * theta_dot, new_theta_dot],
            CartPoleIntegrator::SemiImplicitEuler => [x + dt * new_x_dot, new_x_dot, theta + dt * new_theta_dot, new_theta_dot],
        };
        self.steps += 1;
        out.rewards[0] = 1.0;
        out.terminated = self.state[0].abs() > c.position_limit || self.state[2].abs() > self.angle_limit;
        out.truncated = self.steps >= c.horizon;
        self.write(out.observations);
        Ok(())
    }

    fn state(&self, out: &mut [f32]) {
        self.write(out);
    }

    fn constants(&self) -> &'static [&'static str] {
        &["gravity", "cart_mass", "pole_mass", "pole_half_length", "force", "step_seconds"]
    }

    fn scale_constant(&mut self, index: usize, factor: f64) {
        let (config, nominal) = (&mut self.config, &self.nominal);
        match index {
            0 => config.gravity = factor * nominal.gravity,
            1 => config.cart_mass = factor * nominal.cart_mass,
            2 => config.pole_mass = factor * nominal.pole_mass,
            3 => config.pole_half_length = factor * nominal.pole_half_length,
            4 => config.force = factor * nominal.force,
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
