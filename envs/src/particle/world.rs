//! Discs in the plane that are pushed, damped and kept apart: the physics of the particle environments.
//!
//! One step of `dt` seconds, for every agent with position p, velocity v and control u:
//!
//! ```text
//! F(i,j) = contact_force · (pᵢ − pⱼ)/d · margin · ln(1 + exp(−(d − rᵢ − rⱼ)/margin)),   d = |pᵢ − pⱼ|
//! pettingzoo:  p ← p + v·dt;  v ← (1 − damping)·v + (u + ΣF)/mass·dt;  |v| ≤ max_speed
//! openai:      v ← (1 − damping)·v + (u + ΣF)/mass·dt;  |v| ≤ max_speed;  p ← p + v·dt
//! ```
//!
//! Forces use the positions before the step. Every pair of colliding bodies with a movable one feels F. Where centres
//! coincide the direction is undefined (the reference computes 0/0): here that pair feels no force in that step.
//! Beyond 45 margins of free space the force is below 1e-18 of its scale and is not computed.
//!
//! Source: Lowe et al. 2017 (arXiv 1706.02275) and the `mpe2` 1.1.1 package, whose numbers the golden tests hold.

use serde::{Deserialize, Serialize};

use crate::range::require_all;
use crate::snapshot::{SnapshotReader, SnapshotWriter};
use crate::{EnvError, Result};

/// A point or vector of the plane.
pub type Vec2 = [f64; 2];

/// Free space between two bodies, in contact margins, beyond which their force is left out.
const REACH_MARGINS: f64 = 45.0;

/// Order in which positions and velocities are updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Integrator {
    /// Position first, with the old velocity: PettingZoo, `mpe2` and JaxMARL.
    #[default]
    Pettingzoo,
    /// Velocity first, then the position with the new one: the original release.
    Openai,
}

/// Constants of the physics, shared by all bodies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Physics {
    /// Length of a step in seconds, above 0.
    pub step_seconds: f64,
    /// Share of the velocity lost per step, from 0 to 1.
    pub damping: f64,
    /// Scale of the contact force, at least 0.
    pub contact_force: f64,
    /// Softness of a contact in units of length, above 0.
    pub contact_margin: f64,
    /// Mass of every agent, above 0. Controls are forces, so a heavier agent answers more slowly.
    pub mass: f64,
}

impl Default for Physics {
    fn default() -> Self {
        Self { step_seconds: 0.1, damping: 0.25, contact_force: 100.0, contact_margin: 1e-3, mass: 1.0 }
    }
}

impl Physics {
    /// Checks the ranges for the world `env`.
    pub(crate) fn validate(&self, env: &str) -> Result<()> {
        let positive = "a number above 0";
        require_all(
            env,
            &[
                ("physics.step_seconds", self.step_seconds, self.step_seconds > 0.0, positive),
                ("physics.damping", self.damping, (0.0..=1.0).contains(&self.damping), "a number from 0 to 1"),
                ("physics.contact_force", self.contact_force, self.contact_force >= 0.0, "at least 0"),
                ("physics.contact_margin", self.contact_margin, self.contact_margin > 0.0, positive),
                ("physics.mass", self.mass, self.mass > 0.0, positive),
            ],
        )
    }
}

/// What one disc is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Body {
    /// Radius in units of length.
    pub radius: f64,
    /// Force of a full control input.
    pub acceleration: f64,
    /// Limit of the speed in units of length per second; infinite for none.
    pub max_speed: f64,
    /// False for bodies that stay where they are.
    pub is_movable: bool,
    /// True if the body pushes other colliding bodies away.
    pub collides: bool,
}

impl Body {
    /// An agent that moves, with the package's default strength and no speed limit.
    pub fn agent(radius: f64, collides: bool) -> Self {
        Self { radius, acceleration: 5.0, max_speed: f64::INFINITY, is_movable: true, collides }
    }

    /// A fixed landmark.
    pub fn landmark(radius: f64, collides: bool) -> Self {
        Self { radius, acceleration: 0.0, max_speed: f64::INFINITY, is_movable: false, collides }
    }
}

/// A pair of bodies that can push each other.
#[derive(Debug, Clone, Copy)]
struct Contact {
    first: usize,
    second: usize,
    /// Distance at which they touch.
    touch: f64,
    /// Squared distance beyond which the force is left out.
    reach_squared: f64,
    moves_first: bool,
    moves_second: bool,
}

/// All bodies: the agents first, then the landmarks, which never move.
#[derive(Debug, Clone)]
pub struct World {
    /// Position of every body.
    pub positions: Vec<Vec2>,
    /// Velocity of every agent.
    pub velocities: Vec<Vec2>,
    /// What the agents say, `[agent, message_width]`.
    pub messages: Vec<f64>,
    /// Landmarks that the episode chose (the goal, the key), each an index below [`World::n_landmarks`].
    pub choices: Vec<usize>,
    /// Force of each agent's control; the contact forces are added to it within a step.
    pub(crate) forces: Vec<Vec2>,
    bodies: Vec<Body>,
    contacts: Vec<Contact>,
    message_width: usize,
    physics: Physics,
    /// What the constants were before they were scaled.
    nominal: Physics,
    /// Factors of the agents' forces and of their speed limits.
    force_factor: f64,
    speed_factor: f64,
    integrator: Integrator,
}

impl World {
    /// A world of `n_agents` agents, the first of `bodies`, and landmarks, the rest; everything at the origin.
    pub fn new(
        physics: Physics,
        integrator: Integrator,
        n_agents: usize,
        bodies: Vec<Body>,
        message_width: usize,
        n_choices: usize,
    ) -> Self {
        debug_assert!(bodies[n_agents..].iter().all(|b| !b.is_movable), "landmarks do not move");
        let mut contacts = Vec::new();
        for (first, a) in bodies.iter().enumerate() {
            for (second, b) in bodies.iter().enumerate().skip(first + 1) {
                if a.collides && b.collides && (a.is_movable || b.is_movable) {
                    let touch = a.radius + b.radius;
                    let reach = touch + REACH_MARGINS * physics.contact_margin;
                    contacts.push(Contact {
                        first,
                        second,
                        touch,
                        reach_squared: reach * reach,
                        moves_first: a.is_movable,
                        moves_second: b.is_movable,
                    });
                }
            }
        }
        Self {
            positions: vec![[0.0; 2]; bodies.len()],
            velocities: vec![[0.0; 2]; n_agents],
            messages: vec![0.0; n_agents * message_width],
            choices: vec![0; n_choices],
            forces: vec![[0.0; 2]; n_agents],
            bodies,
            contacts,
            message_width,
            nominal: physics.clone(),
            physics,
            force_factor: 1.0,
            speed_factor: 1.0,
            integrator,
        }
    }

    /// Physical constants that can be changed while the world runs. `force` is that of the agents' controls, `max_speed`
    /// their limit where they have one.
    pub const CONSTANTS: &'static [&'static str] = &["mass", "damping", "force", "max_speed", "contact_force", "step_seconds"];

    /// Makes constant `index` of [`World::CONSTANTS`] `factor` times what the configuration says. Damping stays at most 1.
    pub(crate) fn scale_constant(&mut self, index: usize, factor: f64) {
        let (physics, nominal) = (&mut self.physics, &self.nominal);
        match index {
            0 => physics.mass = factor * nominal.mass,
            1 => physics.damping = (factor * nominal.damping).min(1.0),
            2 => self.force_factor = factor,
            3 => self.speed_factor = factor,
            4 => physics.contact_force = factor * nominal.contact_force,
            5 => physics.step_seconds = factor * nominal.step_seconds,
            _ => debug_assert!(false, "no constant {index}"),
        }
    }

    /// Factor of the agents' forces.
    #[inline]
    pub(crate) fn force_factor(&self) -> f64 {
        self.force_factor
    }

    /// Number of agents.
    #[inline]
    pub fn n_agents(&self) -> usize {
        self.velocities.len()
    }

    /// Number of landmarks.
    #[inline]
    pub fn n_landmarks(&self) -> usize {
        self.positions.len() - self.velocities.len()
    }

    /// The body with index `body`.
    #[inline]
    pub fn body(&self, body: usize) -> &Body {
        &self.bodies[body]
    }

    /// Index of landmark `landmark` among the bodies.
    #[inline]
    pub fn landmark(&self, landmark: usize) -> usize {
        self.velocities.len() + landmark
    }

    /// What agent `agent` says.
    #[inline]
    pub fn message(&self, agent: usize) -> &[f64] {
        &self.messages[agent * self.message_width..(agent + 1) * self.message_width]
    }

    /// Numbers in a message.
    #[inline]
    pub fn message_width(&self) -> usize {
        self.message_width
    }

    /// Vector from body `from` to body `to`.
    #[inline]
    pub fn offset(&self, from: usize, to: usize) -> Vec2 {
        let (a, b) = (self.positions[from], self.positions[to]);
        [b[0] - a[0], b[1] - a[1]]
    }

    /// Squared distance of two bodies' centres.
    #[inline]
    pub fn distance_squared(&self, a: usize, b: usize) -> f64 {
        let d = self.offset(a, b);
        d[0] * d[0] + d[1] * d[1]
    }

    /// Distance of two bodies' centres.
    #[inline]
    pub fn distance(&self, a: usize, b: usize) -> f64 {
        self.distance_squared(a, b).sqrt()
    }

    /// True if two bodies overlap.
    #[inline]
    pub fn touches(&self, a: usize, b: usize) -> bool {
        self.distance(a, b) < self.bodies[a].radius + self.bodies[b].radius
    }

    /// Stops the agents, silences them and forgets their controls.
    pub fn rest(&mut self) {
        self.velocities.fill([0.0; 2]);
        self.forces.fill([0.0; 2]);
        self.messages.fill(0.0);
    }

    /// One step of the physics with the controls in `forces`.
    #[inline]
    pub(crate) fn advance(&mut self) {
        let margin = self.physics.contact_margin;
        for contact in &self.contacts {
            let (a, b) = (self.positions[contact.first], self.positions[contact.second]);
            let (dx, dy) = (a[0] - b[0], a[1] - b[1]);
            let squared = dx * dx + dy * dy;
            if squared > contact.reach_squared || squared == 0.0 {
                continue;
            }
            let distance = squared.sqrt();
            let overlap = (contact.touch - distance) / margin;
            let scale = self.physics.contact_force * softplus(overlap) * margin / distance;
            if contact.moves_first {
                let force = &mut self.forces[contact.first];
                force[0] += scale * dx;
                force[1] += scale * dy;
            }
            if contact.moves_second {
                let force = &mut self.forces[contact.second];
                force[0] -= scale * dx;
                force[1] -= scale * dy;
            }
        }
        let dt = self.physics.step_seconds;
        let keep = 1.0 - self.physics.damping;
        let mass = self.physics.mass;
        for agent in 0..self.velocities.len() {
            let body = &self.bodies[agent];
            if !body.is_movable {
                continue;
            }
            let old = self.velocities[agent];
            let force = self.forces[agent];
            let mut new = [old[0] * keep + force[0] / mass * dt, old[1] * keep + force[1] / mass * dt];
            if body.max_speed.is_finite() {
                let speed = (new[0] * new[0] + new[1] * new[1]).sqrt();
                let max_speed = self.speed_factor * body.max_speed;
                if speed > max_speed {
                    new = [new[0] / speed * max_speed, new[1] / speed * max_speed];
                }
            }
            let moving = match self.integrator {
                Integrator::Pettingzoo => old,
                Integrator::Openai => new,
            };
            let position = &mut self.positions[agent];
            position[0] += moving[0] * dt;
            position[1] += moving[1] * dt;
            self.velocities[agent] = new;
        }
    }

    /// Writes positions, velocities, messages and choices.
    pub(crate) fn snapshot(&self, out: &mut SnapshotWriter) {
        out.f64s(self.positions.as_flattened());
        out.f64s(self.velocities.as_flattened());
        out.f64s(&self.messages);
        for &choice in &self.choices {
            out.u64(choice as u64);
        }
    }

    /// Reads what [`World::snapshot`] wrote.
    pub(crate) fn restore(&mut self, input: &mut SnapshotReader<'_>) -> Result<()> {
        input.f64s(self.positions.as_flattened_mut())?;
        input.f64s(self.velocities.as_flattened_mut())?;
        input.f64s(&mut self.messages)?;
        let n_landmarks = self.n_landmarks();
        for choice in &mut self.choices {
            let word = input.u64()?;
            if word >= n_landmarks as u64 {
                let reason = format!("a chosen landmark must be below {n_landmarks}, got {word}");
                return Err(EnvError::Snapshot { place: "particle world".to_string(), reason });
            }
            *choice = word as usize;
        }
        Ok(())
    }
}

/// `ln(1 + eˣ)` without overflow.
#[inline]
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(gap: f64, integrator: Integrator) -> World {
        let mut world = World::new(Physics::default(), integrator, 2, vec![Body::agent(0.15, true); 2], 0, 0);
        world.positions = vec![[0.0, 0.0], [gap, 0.0]];
        world
    }

    #[test]
    fn contact_forces_are_opposite_and_keep_the_momentum() {
        for gap in [0.01, 0.2, 0.29, 0.3, 0.305, 0.34] {
            let mut world = pair(gap, Integrator::Pettingzoo);
            world.advance();
            assert_eq!(world.velocities[0][0], -world.velocities[1][0]);
            assert!(world.velocities[1][0] > 0.0, "gap {gap}");
        }
    }

    #[test]
    fn touching_discs_feel_the_logarithm_of_two() {
        let mut world = pair(0.3, Integrator::Pettingzoo);
        world.advance();
        assert!((world.velocities[1][0] - 100.0 * 1e-3 * 2.0_f64.ln() * 0.1).abs() < 1e-12);
    }

    #[test]
    fn the_omitted_force_is_negligible() {
        assert!(softplus(-REACH_MARGINS) < 3e-20);
        let mut world = pair(0.3 + 46e-3, Integrator::Pettingzoo);
        world.advance();
        assert_eq!(world.velocities, vec![[0.0; 2]; 2]);
    }

    #[test]
    fn coincident_centres_feel_no_force() {
        let mut world = pair(0.0, Integrator::Pettingzoo);
        world.advance();
        assert_eq!(world.velocities, vec![[0.0; 2]; 2]);
    }

    #[test]
    fn integrators_differ_by_when_the_position_moves() {
        let (mut early, mut late) = (pair(3.0, Integrator::Pettingzoo), pair(3.0, Integrator::Openai));
        for world in [&mut early, &mut late] {
            world.velocities[0] = [1.0, 0.0];
            world.forces[0] = [5.0, 0.0];
            world.advance();
        }
        assert!((early.positions[0][0] - 0.1).abs() < 1e-15);
        assert!((late.positions[0][0] - 0.125).abs() < 1e-15);
        assert_eq!(early.velocities, late.velocities);
    }

    #[test]
    fn constant_control_approaches_the_terminal_velocity() {
        let mut world = pair(30.0, Integrator::Openai);
        for _ in 0..200 {
            world.forces[0] = [0.0, 5.0];
            world.advance();
        }
        // v = 0.75 v + 0.5 has the fixed point 2.
        assert!((world.velocities[0][1] - 2.0).abs() < 1e-12);
    }

    #[test]
    fn speed_limit_keeps_the_direction() {
        let body = Body { max_speed: 1.0, ..Body::agent(0.05, true) };
        let mut world = World::new(Physics::default(), Integrator::Pettingzoo, 1, vec![body], 0, 0);
        world.velocities[0] = [4.0, -3.0];
        world.advance();
        assert!((world.velocities[0][0] - 0.8).abs() < 1e-15 && (world.velocities[0][1] + 0.6).abs() < 1e-15);
    }

    #[test]
    fn bad_constants_are_refused_by_name() {
        let error = Physics { damping: 1.5, ..Physics::default() }.validate("simple").unwrap_err();
        assert_eq!(error.to_string(), "simple: `physics.damping` must be a number from 0 to 1, got 1.5");
        assert!(Physics { mass: 0.0, ..Physics::default() }.validate("simple").is_err());
        assert!(Physics { step_seconds: f64::NAN, ..Physics::default() }.validate("simple").is_err());
    }
}
