//! The leader–follower term of the penalty on a policy network.

use super::super::Observed;
use super::super::stackelberg::{self, Ascent, Distances, Room, Step};
use super::{moves, place, slopes};
use crate::head::{Distance, DivergenceTangent};
use crate::nn::{Mlp, Tangent, Trace};

/// The leader–follower term of a minibatch, and what it is computed in.
#[derive(Default)]
pub(super) struct LeaderTerm {
    /// `[rows, output]`, with respect to the clean outputs.
    pub(super) outputs: Vec<f32>,
    /// Flat, with respect to the weights.
    pub(super) weights: Vec<f32>,
    /// With respect to the logarithms of the deviations.
    pub(super) log_std: Vec<f32>,
    divergence: DivergenceTangent,
    perturbed: Vec<f32>,
    direction: Vec<f32>,
    d_input: Vec<f32>,
    derivative: Vec<f32>,
    /// Of the network at the start of the ascent.
    pub(super) start: Trace,
    trace: Trace,
    tangent: Tangent,
    room: Room<f32>,
}

impl LeaderTerm {
    /// Makes room for the gradients of a minibatch, all zero.
    pub(super) fn clear(&mut self, outputs: usize, weights: usize, log_std: usize) {
        for (room, length) in [(&mut self.outputs, outputs), (&mut self.weights, weights), (&mut self.log_std, log_std)] {
            room.clear();
            room.resize(length, 0.0);
        }
    }
    /// Adds the term of some rows, whose outputs begin at `first` among all. `path` is the ascent that led to their `perturbed` inputs,
    /// `d_input` the derivative of the weighted penalty with respect to these.
    pub(super) fn add(
        &mut self,
        net: &Mlp,
        part: &Observed<'_>,
        first: usize,
        distance: Distance,
        path: &[Step<f32>],
        ascent: &Ascent<f32>,
        perturbed: &[f32],
        d_input: &[f32],
    ) {
        let (mut derivative, mut room) = (std::mem::take(&mut self.derivative), std::mem::take(&mut self.room));
        derivative.resize(part.rows * part.unit.len(), 0.0);
        slopes(part, net.input(), perturbed, d_input, &mut derivative);
        let mut distances = PolicyDistances { net, part, first, distance, leader: self };
        stackelberg::interaction(path, ascent, part.unit.len(), &mut derivative, &mut distances, &mut room);
        (self.derivative, self.room) = (derivative, room);
    }
}

/// Distances of a policy's outputs, as [`stackelberg::interaction`] asks for them.
struct PolicyDistances<'a> {
    net: &'a Mlp,
    part: &'a Observed<'a>,
    /// Where the outputs of the part begin among all.
    first: usize,
    distance: Distance,
    leader: &'a mut LeaderTerm,
}

impl Distances<f32> for PolicyDistances<'_> {
    fn products(&mut self, step: usize, offsets: &[f32], along: &[f32], curvature: Option<&mut [f32]>) {
        let Self { net, part, first, distance, leader } = self;
        let (rows, width) = (part.rows, net.input());
        leader.perturbed.resize(rows * width, 0.0);
        leader.direction.resize(rows * width, 0.0);
        leader.d_input.resize(rows * width, 0.0);
        place(part, width, offsets, &mut leader.perturbed);
        let trace = if step == 0 {
            &leader.start
        } else {
            net.forward_train(&leader.perturbed, rows, &mut leader.trace);
            &leader.trace
        };
        moves(part, width, &leader.perturbed, along, &mut leader.direction);
        net.forward_tangent(trace, &leader.direction, &mut leader.tangent);
        let divergence = &mut leader.divergence;
        part.head.divergence_tangent(*distance, trace.output(), part.outputs, leader.tangent.output(), rows, divergence);
        leader.outputs[*first..].iter_mut().zip(&divergence.d_clean_change).for_each(|(t, f)| *t += f);
        leader.log_std.iter_mut().zip(&divergence.d_log_std_change).for_each(|(t, f)| *t += f);
        let (d_out, d_out_change) = (&divergence.d_perturbed, &divergence.d_perturbed_change);
        let d_input = curvature.is_some().then_some(&mut *leader.d_input);
        net.backward_tangent(trace, &mut leader.tangent, d_out, d_out_change, &mut leader.weights, d_input);
        if let Some(curvature) = curvature {
            slopes(part, width, &leader.perturbed, &leader.d_input, curvature);
        }
    }
}
