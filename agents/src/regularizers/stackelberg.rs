//! What a penalty gains when the perturbation's answer to the weights is counted: the leader–follower term.
//!
//! The follower starts at a perturbation that does not depend on the weights θ and takes K steps
//! `δ ← Π( δ + step_size · n( ∂D/∂δ ) )` with a direction map `n` and a projection `Π`. The total derivative of
//! `D(δ_K(θ); θ)` is the partial one plus, from the last step to the first,
//!
//! ```text
//! v ← Π'ᵀ v,   w ← n'ᵀ v
//! gradient ← gradient + step_size · ∂/∂θ ⟨∂D/∂δ, w⟩
//! v ← v + step_size · ∂²D/∂δ² w
//! ```
//!
//! beginning with `v = ∂D/∂δ` at `δ_K`. Both second-order products of a step come from one central difference of the
//! first-order gradient along `w`.
//!
//! Sources: the Stackelberg form of Bukharin et al. 2023 (arXiv 2310.10810); the recursion is reverse-mode
//! differentiation of the unrolled ascent.

use num_traits::Float;

use super::ball::{Direction, Norm, ascend_backward, length, project_backward};

/// First-order gradients of the distance `Dᵢ` of each row.
pub(super) trait Distances<F> {
    /// Writes `weightsᵢ · ∂Dᵢ/∂offsetᵢ` at `offsets` `[rows, features]` into `slopes`, and adds
    /// `Σ weightsᵢ · ∂Dᵢ/∂θ` to the gradient that the implementation keeps.
    fn gradients(&mut self, offsets: &[F], weights: &[F], slopes: &mut [F]);
}

/// One step of the ascent as it was taken, each `[rows, features]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Step<F> {
    /// The perturbation before the step.
    pub offset: Vec<F>,
    /// The slope there.
    pub slope: Vec<F>,
    /// Where the step led before the projection.
    pub target: Vec<F>,
}

/// The law of the ascent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ascent<F> {
    pub norm: Norm,
    pub radius: F,
    pub direction: Direction,
    pub step_size: F,
}

/// Room for the recursion, kept from call to call.
#[derive(Debug, Clone, Default)]
pub(super) struct Room<F> {
    along: Vec<F>,
    moved: Vec<F>,
    weights: Vec<F>,
    slopes: Vec<F>,
}

/// Adds the leader–follower term to the gradient that `distances` keeps. `v` `[rows, features]` holds the derivative of
/// the weighted penalty with respect to the last perturbation and is used up; `difference` gives the length of the
/// difference step of a row from its perturbation.
pub(super) fn interaction<F: Float>(
    steps: &[Step<F>],
    ascent: &Ascent<F>,
    features: usize,
    v: &mut [F],
    difference: impl Fn(&[F]) -> F,
    distances: &mut impl Distances<F>,
    room: &mut Room<F>,
) {
    let rows = v.len() / features;
    room.along.resize(v.len(), F::zero());
    room.moved.resize(v.len(), F::zero());
    room.slopes.resize(v.len(), F::zero());
    room.weights.resize(rows, F::zero());
    for step in steps.iter().rev() {
        for (row, v) in v.chunks_exact_mut(features).enumerate() {
            let at = row * features..(row + 1) * features;
            let along = &mut room.along[at.clone()];
            project_backward(v, &step.target[at.clone()], ascent.norm, ascent.radius);
            ascend_backward(along, v, &step.slope[at.clone()], ascent.direction);
            let size = length(along, Norm::L2);
            let h = difference(&step.offset[at]);
            // `along` becomes the difference step; what it was divided by is made up for by the weight.
            let (factor, weight) =
                if size > F::zero() && h > F::zero() { (h / size, ascent.step_size * size / (h + h)) } else { (F::zero(), F::zero()) };
            along.iter_mut().for_each(|w| *w = *w * factor);
            room.weights[row] = weight;
        }
        for sign in [F::one(), -F::one()] {
            for ((moved, offset), along) in room.moved.iter_mut().zip(&step.offset).zip(&room.along) {
                *moved = *offset + sign * *along;
            }
            distances.gradients(&room.moved, &room.weights, &mut room.slopes);
            v.iter_mut().zip(&room.slopes).for_each(|(v, s)| *v = *v + *s);
            // The second call gives what is taken away.
            room.weights.iter_mut().for_each(|w| *w = -*w);
        }
    }
}

#[cfg(test)]
mod tests;
