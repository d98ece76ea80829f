//! Classic control: small single-agent tasks with the dynamics of Gymnasium 1.x, one file each.

pub mod acrobot;
pub mod cart_pole;
pub mod mountain_car;
pub mod pendulum;

pub use acrobot::{Acrobot, AcrobotConfig, AcrobotEquations};
pub use cart_pole::{CartPole, CartPoleConfig, CartPoleIntegrator};
pub use mountain_car::{MountainCarContinuous, MountainCarContinuousConfig};
pub use pendulum::{Pendulum, PendulumConfig};
