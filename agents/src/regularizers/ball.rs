//! The ball that holds a perturbation: its norm, steps of ascent inside it, and the way back onto it.

use num_traits::Float;
use serde::{Deserialize, Serialize};

/// The ball that holds a perturbation, per sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Euclidean length.
    L2,
    /// Largest coordinate.
    Linf,
}

/// What an ascent step makes of the slope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The slope as it is; steps depend on how steep the distance is.
    Raw,
    /// The slope divided by its Euclidean length.
    Normalized,
    /// The sign of each coordinate.
    Sign,
}

/// `Σ aᵢ²` in eight interleaved sums: a fixed order that vectorises.
fn squares<F: Float>(a: &[F]) -> F {
    let mut sums = [F::zero(); 8];
    let mut blocks = a.chunks_exact(8);
    for x in &mut blocks {
        for i in 0..8 {
            sums[i] = sums[i] + x[i] * x[i];
        }
    }
    for (i, x) in blocks.remainder().iter().enumerate() {
        sums[i] = sums[i] + *x * *x;
    }
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
}

/// Length of a vector.
pub(super) fn length<F: Float>(u: &[F], norm: Norm) -> F {
    match norm {
        Norm::L2 => squares(u).sqrt(),
        Norm::Linf => u.iter().fold(F::zero(), |m, v| m.max(v.abs())),
    }
}

/// Brings a perturbation back into the ball.
pub(super) fn project<F: Float>(u: &mut [F], norm: Norm, radius: F) {
    match norm {
        Norm::L2 => {
            let length = length(u, norm);
            if length > radius {
                let factor = radius / length;
                u.iter_mut().for_each(|v| *v = *v * factor);
            }
        }
        Norm::Linf => u.iter_mut().for_each(|v| *v = num_traits::clamp(*v, -radius, radius)),
    }
}

/// Adds one step along the slope to a perturbation.
pub(super) fn ascend<F: Float>(u: &mut [F], slope: &[F], direction: Direction, step_size: F) {
    match direction {
        Direction::Raw => u.iter_mut().zip(slope).for_each(|(v, g)| *v = *v + step_size * *g),
        Direction::Normalized => {
            let square = squares(slope);
            // A network that does not react has no direction to ascend; squares of tiny slopes underflow to 0.
            if square > F::zero() {
                let factor = step_size / square.sqrt();
                u.iter_mut().zip(slope).for_each(|(v, g)| *v = *v + factor * *g);
            }
        }
        Direction::Sign => {
            for (v, g) in u.iter_mut().zip(slope) {
                if *g != F::zero() {
                    *v = *v + step_size * g.signum();
                }
            }
        }
    }
}

/// Carries a derivative with respect to a projected perturbation back to the perturbation `u` before [`project`], in
/// place. On the boundary itself a perturbation counts as inside.
pub(super) fn project_backward<F: Float>(v: &mut [F], u: &[F], norm: Norm, radius: F) {
    match norm {
        Norm::L2 => {
            let length = length(u, norm);
            if length > radius {
                let along = dot(u, v) / (length * length);
                let factor = radius / length;
                v.iter_mut().zip(u).for_each(|(v, u)| *v = factor * (*v - along * *u));
            }
        }
        Norm::Linf => v.iter_mut().zip(u).filter(|(_, u)| u.abs() > radius).for_each(|(v, _)| *v = F::zero()),
    }
}

/// Carries a derivative with respect to the direction of [`ascend`] back to the slope, into `w`.
pub(super) fn ascend_backward<F: Float>(w: &mut [F], v: &[F], slope: &[F], direction: Direction) {
    match direction {
        Direction::Raw => w.copy_from_slice(v),
        Direction::Normalized => {
            let square = squares(slope);
            if square > F::zero() {
                let along = dot(slope, v) / square;
                let inverse = F::one() / square.sqrt();
                for ((w, v), g) in w.iter_mut().zip(v).zip(slope) {
                    *w = (*v - along * *g) * inverse;
                }
            } else {
                w.fill(F::zero());
            }
        }
        // Constant wherever it is differentiable.
        Direction::Sign => w.fill(F::zero()),
    }
}

fn dot<F: Float>(a: &[F], b: &[F]) -> F {
    a.iter().zip(b).fold(F::zero(), |sum, (a, b)| sum + *a * *b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The derivative of `⟨v, map(x)⟩` by central differences.
    fn differences(x: &[f64], v: &[f64], map: impl Fn(&mut Vec<f64>)) -> Vec<f64> {
        let at = |i: usize, h: f64| {
            let mut moved = x.to_vec();
            moved[i] += h;
            map(&mut moved);
            dot(&moved, v)
        };
        (0..x.len()).map(|i| (at(i, 1e-6) - at(i, -1e-6)) / 2e-6).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-8), "{found:?} {expected:?}");
    }

    #[test]
    fn pull_backs_match_central_differences() {
        let v = [0.3, -1.2, 0.8];
        for norm in [Norm::L2, Norm::Linf] {
            for u in [[0.1, 0.2, -0.1], [2.0, -0.3, 0.7]] {
                let mut found = v;
                project_backward(&mut found, &u, norm, 0.5);
                assert_close(&found, &differences(&u, &v, |x| project(x, norm, 0.5)));
            }
        }
        for direction in [Direction::Raw, Direction::Normalized, Direction::Sign] {
            let slope = [0.4, -0.02, 0.3];
            let mut found = [9.0; 3];
            ascend_backward(&mut found, &v, &slope, direction);
            let step = |x: &mut Vec<f64>| {
                let mut u = vec![0.0; 3];
                ascend(&mut u, x, direction, 1.0);
                *x = u;
            };
            assert_close(&found, &differences(&slope, &v, step));
        }
    }

    #[test]
    fn a_flat_distance_has_no_direction() {
        let mut u = [1.0_f32, 2.0];
        for direction in [Direction::Raw, Direction::Normalized, Direction::Sign] {
            ascend(&mut u, &[0.0, 0.0], direction, 1.0);
            let mut w = [7.0, 7.0];
            ascend_backward(&mut w, &[0.0, 0.0], &[0.0, 0.0], direction);
            assert_eq!((u, w), ([1.0, 2.0], [0.0, 0.0]));
        }
    }
}
