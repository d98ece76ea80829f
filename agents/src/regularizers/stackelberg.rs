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
//! beginning with `v = ∂D/∂δ` at `δ_K`. Both second-order products of a step are derivatives of the first-order gradients along `w`
//! ([`crate::nn::Tangent`]).
//!
//! Sources: the Stackelberg form of Bukharin et al. 2023 (arXiv 2310.10810); the recursion is reverse-mode
//! differentiation of the unrolled ascent.

use num_traits::Float;

use super::ball::{Direction, Norm, ascend_backward, project_backward};

/// Second-order products of the distance `Dᵢ` of each row.
pub(super) trait Distances<F> {
    /// Adds `Σ ∂/∂θ ⟨∂Dᵢ/∂δᵢ, alongᵢ⟩` at the offsets before step `step`, `[rows, features]`, to the gradient that the implementation
    /// keeps, and writes `∂²Dᵢ/∂δᵢ² alongᵢ` into `curvature` if it is wanted.
    fn products(&mut self, step: usize, offsets: &[F], along: &[F], curvature: Option<&mut [F]>);
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
    curvature: Vec<F>,
}

/// Adds the leader–follower term to the gradient that `distances` keeps. `v` `[rows, features]` holds the derivative of
/// the weighted penalty with respect to the last perturbation and is used up.
pub(super) fn interaction<F: Float>(
    steps: &[Step<F>],
    ascent: &Ascent<F>,
    features: usize,
    v: &mut [F],
    distances: &mut impl Distances<F>,
    room: &mut Room<F>,
) {
    room.along.resize(v.len(), F::zero());
    room.curvature.resize(v.len(), F::zero());
    for (index, step) in steps.iter().enumerate().rev() {
        for (row, v) in v.chunks_exact_mut(features).enumerate() {
            let at = row * features..(row + 1) * features;
            let along = &mut room.along[at.clone()];
            project_backward(v, &step.target[at.clone()], ascent.norm, ascent.radius);
            ascend_backward(along, v, &step.slope[at], ascent.direction);
            along.iter_mut().for_each(|w| *w = *w * ascent.step_size);
        }
        // The start of the ascent does not depend on the weights: nothing is asked about what is before it.
        if index == 0 {
            distances.products(index, &step.offset, &room.along, None);
        } else {
            distances.products(index, &step.offset, &room.along, Some(&mut room.curvature));
            v.iter_mut().zip(&room.curvature).for_each(|(v, c)| *v = *v + *c);
        }
    }
}

#[cfg(test)]
mod tests;
